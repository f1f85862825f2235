"""From kernels to a plan: roles, phases, tasks, buffers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from thalweg.graph import Graph, Node, State, Value, located
from thalweg.graph.build import Builder, using
from thalweg.ops.elementwise import StopGradient
from thalweg.plan import (
    LANES,
    MOST_SLOTS,
    Buffer,
    Kernel,
    Phase,
    Plan,
    Scope,
    Target,
    aligned,
    check,
    failing_nodes,
)
from thalweg.schedule.batch import Batch, find_batch
from thalweg.schedule.fuse import Fusion, is_array
from thalweg.schedule.memory import place
from thalweg.schedule.slots import cut_reductions
from thalweg.schedule.winograd import use_winograd
from thalweg.types import Span, Type, uint8

SMALL_SLOT, LARGEST_SLOT = 16 << 10, 256 << 10  # bytes of a partial result: a larger one is cut by its output
OPERATIONS_PER_SLOT_BYTE = 32  # from here on adding the slots up is a few percent of the time of filling them
BLOCK_BYTES = 3  # a batch block's activations may take cache_bytes / this
TILE_OPERATIONS = 1 << 17  # a kernel below this is not worth sharing among threads
MOST_TILES = 64
LOOP_OPERATIONS = 1 << 18  # of an iteration, from which on the threads share it


def schedule(graph: Graph, target: Target, inner: bool = False, blocks: bool = True) -> Plan:
    """The plan of a legalised graph. Everything in it follows from shapes and the target.

    `inner`: of the body of a loop. Without `blocks` no phase walks over blocks of the batch.
    """
    batch = find_batch(graph, target) if blocks else None
    if batch is None:
        graph = cut_reductions(use_winograd(graph) if target.winograd else graph)
    graph = separate_results(graph)
    fusion = Fusion(graph, target.support)
    kernels = fusion.kernels()
    if batch is not None:
        batch = find_batch(graph, target)  # of the graph as it is now
    kernels = assign_roles(kernels, batch, target, fusion.alias)
    kept, others = ([], kernels) if inner else split_kept(kernels, graph)
    phases = make_phases(kept, assign_levels(kept, graph), None, target, False)
    for phase in phases:
        phase.kept = True
    phases += make_phases(others, assign_levels(others, graph), batch, target, not inner)
    plan = Plan(graph, target, phases, {}, [], [], [], [])
    plan.alias = fusion.alias
    plan.batch_axis = batch.axis if batch is not None else {}
    _Buffers(plan, batch, fusion).build()
    check(plan)
    return plan


def separate_results(graph: Graph) -> Graph:
    """Every result computed by a node of its own: copies where a result is an input or stands for two
    results."""
    seen = {id(value) for value in graph.sources} | {id(n.outputs[0]) for n in graph.nodes if is_array(n)}
    copies: list[Node] = []

    def own(value: Value) -> Value:
        if id(value) not in seen:
            seen.add(id(value))
            return value
        where = value.node.where if value.node is not None else (Span("<input>", 0, "input"),)
        with using(Builder()) as builder, located(where, value.node.scope if value.node is not None else ""):
            (copy,) = builder.apply(StopGradient(), [value])
        copies.extend(builder.nodes)
        return copy

    outputs = tuple(own(value) for value in graph.outputs)
    state = tuple(
        entry if entry.after is None else State(entry.before, own(entry.after), entry.holder)
        for entry in graph.state
        if entry.after is None or entry.after is not entry.before
    )
    unchanged = tuple(
        State(e.before, None, e.holder) for e in graph.state if e.after is not None and e.after is e.before
    )
    if not copies and not unchanged:
        return graph
    by_before = {id(entry.before): entry for entry in (*state, *unchanged)}
    ordered = tuple(by_before[id(entry.before)] for entry in graph.state)
    return Graph(graph.inputs, (*graph.nodes, *copies), outputs, ordered, graph.name, graph.input_names)


# ---- roles -----------------------------------------------------------------------------------------------


def assign_roles(
    kernels: list[Kernel], batch: Batch | None, target: Target, alias: dict[int, Value]
) -> list[Kernel]:
    """Give each kernel its role; sums over the batch become a partial and a combining kernel."""
    if batch is None:
        return kernels
    result: list[Kernel] = []
    for kernel in kernels:
        kernel.role = _role(kernel, batch, target)
        if kernel.role != "partial":
            result.append(kernel)
            continue
        assert kernel.anchor is not None
        value = kernel.anchor.outputs[0]
        if not _fits_slots(kernel.anchor, batch):
            kernel.role = "whole"
            result.append(kernel)
            continue
        result.extend(_split(kernel, value, alias))
    return result


def _role(kernel: Kernel, batch: Batch, target: Target) -> str:
    if any(id(node) in batch.mixed for node in kernel.nodes):
        return "whole"
    if kernel.anchor is not None and not target.support.lanes(kernel.anchor):
        return "whole"
    anchor = kernel.anchor
    if anchor is not None and kernel.kind.startswith("convolution"):
        axes = [batch.of(value) for value in (*anchor.inputs, *anchor.outputs)]
        if any(axes):  # the axis along which samples are counted is one of channels or pixels
            return "whole"
    rooted = [batch.of(root) is not None for root in kernel.roots]
    reducing = [node for node in kernel.nodes if id(node) in batch.reduces]
    if all(rooted) and not reducing:
        return "map"
    if not any(rooted) and len(reducing) == 1 and reducing[0] is kernel.anchor:
        return "partial"
    return "whole"


def _fits_slots(anchor: Node, batch: Batch) -> bool:
    """Whether a sum over the batch goes through slots, one per shard, rather than being cut by its output."""
    result = anchor.outputs[0].type
    if result.dtype.itemsize == 2:  # 16-bit partial sums would lose bits
        return False
    shards = min(MOST_SLOTS, -(-batch.extent // LANES))
    operations = anchor.op.operations([v.type for v in anchor.inputs], [v.type for v in anchor.outputs])
    return result.nbytes <= SMALL_SLOT or (
        result.nbytes <= LARGEST_SLOT and operations >= OPERATIONS_PER_SLOT_BYTE * shards * result.nbytes
    )


def _split(kernel: Kernel, value: Value, alias: dict[int, Value]) -> list[Kernel]:
    """The two halves of a kernel that sums over the batch."""
    assert kernel.anchor is not None
    before = _producers(kernel)
    behind = [node for node in kernel.nodes if id(node) not in before]
    inputs = {id(alias.get(id(v), v)) for node in kernel.nodes if id(node) in before for v in node.inputs}
    reads = [v for v in kernel.reads if id(v) in inputs]
    operations = sum(
        n.op.operations([v.type for v in n.inputs], [v.type for v in n.outputs])
        for n in kernel.nodes
        if id(n) in before
    )
    partial = Kernel(
        kernel.kind,
        [value],
        [n for n in kernel.nodes if id(n) in before],
        reads,
        kernel.anchor,
        "partial",
        operations=operations,
        traffic=sum(v.type.nbytes for v in (*reads, value)),
    )
    late = {id(alias.get(id(v), v)) for node in behind for v in node.inputs}
    reads = [value, *(v for v in kernel.reads if id(v) in late and v is not value)]
    combine = Kernel(
        "combine",
        kernel.roots,
        behind,
        reads,
        None,
        "combine",
        operations=kernel.operations - operations,
        traffic=sum(v.type.nbytes for v in (*reads, *kernel.roots)),
        detail={"value": value, "span": kernel.anchor},
    )
    return [partial, combine]


def _producers(kernel: Kernel) -> set[int]:
    """Ids of the anchor and of the nodes in the kernel that compute its operands."""
    assert kernel.anchor is not None
    inside = {id(node) for node in kernel.nodes}
    found = {id(kernel.anchor)}
    stack = list(kernel.anchor.inputs)
    reads = {id(v) for v in kernel.reads}
    while stack:
        value = stack.pop()
        if (
            value.node is None
            or id(value) in reads
            or id(value.node) not in inside
            or id(value.node) in found
        ):
            continue
        found.add(id(value.node))
        stack.extend(value.node.inputs)
    return found


def split_kept(kernels: list[Kernel], graph: Graph) -> tuple[list[Kernel], list[Kernel]]:
    """The kernels whose results follow from state that the program does not change, and the others. What the
    first compute (packed or transformed weights, scales of a normalisation) is kept from call to call."""
    fixed = {id(entry.before) for entry in graph.state if entry.after is None}
    arrays = {id(node.outputs[0]) for node in graph.nodes if is_array(node)}
    results, risky = {id(value) for value in graph.results}, set(failing_nodes(graph))
    kept: list[Kernel] = []
    others: list[Kernel] = []
    for kernel in kernels:
        reads = {id(value) for value in kernel.reads}
        follows = bool(reads & fixed) and reads <= fixed | arrays and kernel.role == "whole"
        bound = results & {id(root) for root in kernel.roots} or risky & {id(node) for node in kernel.nodes}
        if follows and not bound:
            kept.append(kernel)
            fixed.update(id(root) for root in kernel.roots)
        else:
            others.append(kernel)
    return kept, others


# ---- levels and phases -----------------------------------------------------------------------------------


def assign_levels(kernels: list[Kernel], graph: Graph) -> dict[int, int]:
    """For `id(kernel)` the number of barriers before it. Updates of state come after every read of the
    old value, and after every kernel that can fail; a new value that is needed before that goes to memory
    of its own first."""
    owner: dict[int, Kernel] = {}
    for kernel in kernels:
        for root in kernel.roots:
            if kernel.role != "partial":
                owner[id(root)] = kernel
    partials = {id(k.roots[0]): k for k in kernels if k.role == "partial"}
    writer = {id(e.after): e for e in graph.state if e.after is not None}
    producers: dict[int, list[Kernel]] = {}
    for kernel in kernels:
        found = [owner[id(v)] for v in kernel.reads if id(v) in owner and owner[id(v)] is not kernel]
        if kernel.role == "combine":
            value = kernel.detail["value"]
            found = [k for k in found if k is not kernel]
            found.append(partials[id(value)])
        producers[id(kernel)] = found
    after: dict[int, list[Kernel]] = {id(k): [] for k in kernels}  # anti-dependences
    behind: dict[int, list[Kernel]] = {id(k): [] for k in kernels}  # what has to wait for a kernel
    for kernel in kernels:
        for producer in producers[id(kernel)]:
            behind[id(producer)].append(kernel)
    risky = failing_nodes(graph)
    failing = {id(k): k for k in kernels if any(id(node) in risky for node in k.nodes)}
    readers: dict[int, list[Kernel]] = {}
    for kernel in kernels:
        for value in kernel.reads:
            readers.setdefault(id(value), []).append(kernel)
    for kernel in kernels:
        entries = [writer[id(root)] for root in kernel.roots if id(root) in writer]
        if not entries:
            continue
        befores = {id(e.before) for e in entries}
        before = [*failing.values(), *(k for value in befores for k in readers.get(value, ()))]
        earlier = list({id(k): k for k in before if k is not kernel}.values())
        waiting = _waiting_for(kernel, behind)
        if any(id(k) in waiting for k in earlier) or id(kernel) in failing or not _aligned(kernel, befores):
            kernel.detail["copy"] = [id(e.after) for e in entries]
        else:
            after[id(kernel)] = earlier
            for other in earlier:
                behind[id(other)].append(kernel)
    levels: dict[int, int] = {}
    for _ in range(len(kernels) + 1):
        changed = False
        for kernel in kernels:
            level = 0
            for producer in producers[id(kernel)]:
                same = producer.role == "map" and kernel.role in ("map", "partial")
                level = max(level, levels.get(id(producer), 0) + (not same))
            for other in after[id(kernel)]:
                level = max(level, levels.get(id(other), 0) + 1)
            if levels.get(id(kernel)) != level:
                levels[id(kernel)] = level
                changed = True
        if not changed:
            results = {id(value) for value in graph.results}
            levels = _sink(kernels, levels, producers, after)
            return _raise(kernels, levels, producers, after, failing, results)
    raise AssertionError("the kernels depend on each other in a circle")


def _sink(
    kernels: list[Kernel],
    levels: dict[int, int],
    producers: dict[int, list[Kernel]],
    after: dict[int, list[Kernel]],
) -> dict[int, int]:
    """Every kernel as late as its readers allow. What the batch reads then meets its readers in one
    phase: a forward pass that waits for nothing joins the backward pass that waits for, say, the number
    of labels that count."""
    top = max(levels.values(), default=0)
    bound = {id(kernel): top for kernel in kernels}
    position = {id(kernel): number for number, kernel in enumerate(kernels)}
    for kernel in sorted(kernels, key=lambda k: (-levels[id(k)], -position[id(k)])):
        own = bound[id(kernel)]
        for producer in producers[id(kernel)]:
            same = producer.role == "map" and kernel.role in ("map", "partial")
            bound[id(producer)] = min(bound[id(producer)], own - (not same))
        for other in after[id(kernel)]:
            bound[id(other)] = min(bound[id(other)], own - 1)
    return bound


def _raise(
    kernels: list[Kernel],
    levels: dict[int, int],
    producers: dict[int, list[Kernel]],
    after: dict[int, list[Kernel]],
    failing: dict[int, Kernel],
    results: set[int],
) -> dict[int, int]:
    """Kernels outside the batch as early as what they need allows, where that takes less memory: those
    whose results are smaller than the operands that they alone keep alive. Updates of state, whose results
    take none, run right behind the gradient; what may fail holds updates back and never waits."""
    level = dict(levels)
    computed = {id(root) for kernel in kernels for root in kernel.roots}
    readers: dict[int, list[Kernel]] = {}
    for kernel in kernels:
        for value in kernel.reads:
            readers.setdefault(id(value), []).append(kernel)
    position = {id(kernel): number for number, kernel in enumerate(kernels)}
    for kernel in sorted(kernels, key=lambda k: (level[id(k)], position[id(k)])):
        if kernel.role in ("map", "partial"):
            continue
        own = level[id(kernel)]
        needed = [*producers[id(kernel)], *after[id(kernel)]]
        earliest = max((level[id(k)] + 1 for k in needed), default=0)
        if earliest >= own:
            continue
        kept = [
            v
            for v in kernel.reads
            if id(v) in computed and all(k is kernel or level[id(k)] < own for k in readers[id(v)])
        ]
        made = sum(v.type.nbytes for v in kernel.roots if id(v) not in results)
        if id(kernel) in failing or not made or made < sum(v.type.nbytes for v in kept):
            level[id(kernel)] = earliest
    return level


def _waiting_for(kernel: Kernel, behind: dict[int, list[Kernel]]) -> set[int]:
    """Ids of the kernels that have to wait for `kernel`, and its own."""
    stack, seen = [kernel], set()
    while stack:
        found = stack.pop()
        if id(found) not in seen:
            seen.add(id(found))
            stack.extend(behind[id(found)])
    return seen


def _aligned(kernel: Kernel, values: set[int]) -> bool:
    """Does the kernel read these values only at the index that it writes (so that it may write in place)?"""
    from thalweg.graph import Kind

    if kernel.kind == "dynamic_update_slice":
        return True  # a kernel only where nothing else reads the old value
    for node in kernel.nodes:
        if any(id(v) in values for v in node.inputs) and (
            node.op.kind is not Kind.ELEMENTWISE
            or (kernel.anchor is not None and id(node) in _producers(kernel))
        ):
            return False
    movement = [n for n in kernel.nodes if n.op.kind is Kind.MOVEMENT and n.inputs]
    reached: set[int] = set(values)
    for node in kernel.nodes:
        if any(id(v) in reached for v in node.inputs):
            if any(node is m for m in movement):
                return False
            reached.update(id(v) for v in node.outputs)
    return True


def make_phases(
    kernels: list[Kernel], levels: dict[int, int], batch: Batch | None, target: Target, loops: bool
) -> list[Phase]:
    """Kernels of one level: those of the batch in one phase, the others in another; with `loops` scans that
    are worth all threads have phases of their own."""
    phases: list[Phase] = []
    for level in range(max(levels.values(), default=-1) + 1):
        members = [k for k in kernels if levels[id(k)] == level]  # some levels are empty after sinking
        blocked = [k for k in members if k.role in ("map", "partial")]
        if blocked:
            assert batch is not None
            blocks = -(-batch.extent // LANES)
            per_block = _block_vectors(blocked, batch, target, blocks)
            tasks = min(MOST_SLOTS, -(-blocks // per_block))
            phases.append(Phase(blocked, True, tasks, per_block * LANES, batch.extent))
        tiled = [k for k in members if k.role not in ("map", "partial")]
        for kernel in [k for k in tiled if loops and k.kind == "scan"]:
            body = loop_body(kernel, target)
            if body is not None:
                tiled = [k for k in tiled if k is not kernel]
                phases.append(Phase([kernel], False, 1, loop=body))
        if tiled:
            for kernel in tiled:
                kernel.tasks = tile_count(kernel)
            phases.append(Phase(tiled, False, sum(k.tasks for k in tiled)))
    return phases


def loop_body(kernel: Kernel, target: Target) -> Plan | None:
    """The plan of a scan's body where the threads should share every iteration; None where one thread alone
    is as fast. Products gain by it: each thread keeps its part of the weights in its cache."""
    assert kernel.anchor is not None
    op: Any = kernel.anchor.op
    if op.length < 2 or kernel.operations < LOOP_OPERATIONS * op.length:
        return None
    convolves = any(node.op.name.startswith("convolution") for node in op.body.nodes)
    homes = carry_homes(op)
    stacks = {position for position, _ in homes.values()}
    outputs = tuple(v for position, v in enumerate(op.body.outputs) if position not in stacks)
    body = schedule(replace(op.body, outputs=outputs), target, inner=True, blocks=convolves)
    kernel.detail["homes"] = homes
    if all(phase.tasks == 1 for phase in body.phases):
        return None
    target.support.keep(kernel, body)
    return body


def carry_homes(op: Any) -> dict[int, tuple[int, bool]]:
    """For carries of a scan that are also stacked, the position of that output: the carry lives in the stack,
    and nothing is copied. True: the stack holds the carry after each iteration, else before it."""
    homes: dict[int, tuple[int, bool]] = {}
    for carry in range(op.carries):
        for value, after in ((op.body.outputs[carry], True), (op.body.inputs[1 + carry], False)):
            for position in range(op.carries, len(op.body.outputs)):
                taken = any(position == found for found, _ in homes.values())
                if carry not in homes and not taken and op.body.outputs[position] is value:
                    homes[carry] = (position, after)
    return homes


def _block_vectors(kernels: list[Kernel], batch: Batch, target: Target, blocks: int) -> int:
    """Vectors of 16 samples per block: two where their activations fit beside each other in the cache
    (weights are then loaded half as often) and every shard still gets one."""
    values = {id(v): v for k in kernels for v in (*k.roots, *k.reads) if batch.of(v) is not None}
    block_bytes = sum(v.type.nbytes // max(batch.extent, 1) * LANES for v in values.values())
    return 2 if blocks >= 2 * MOST_SLOTS and 2 * block_bytes <= 2 * target.cache_bytes else 1


def tile_count(kernel: Kernel) -> int:
    """Tasks of a kernel that is cut by its output: enough for any number of threads, none too small to
    share."""
    cost = max(kernel.operations, kernel.traffic * 2)
    return max(1, min(MOST_TILES, cost // TILE_OPERATIONS))


# ---- buffers ---------------------------------------------------------------------------------------------


class _Buffers:
    """Decides scope and layout of every stored value, inserts packing kernels, and places the arenas."""

    def __init__(self, plan: Plan, batch: Batch | None, fusion: Fusion) -> None:
        self.plan = plan
        self.batch = batch
        self.fusion = fusion
        self.rows: dict[int, Buffer] = {}  # row-major buffer of a value, visible to all phases
        self.holding: dict[int, list[int]] = {}  # id(buffer) -> ids of the values that it holds in turn
        self.readers: dict[int, list[tuple[int, int]]] = {}  # id(value) -> (phase, kernel) of every read
        self.place: dict[int, tuple[int, int]] = {}  # id(kernel) -> (phase, kernel)
        self.kept: list[Buffer] = []  # what the next call needs again

    def build(self) -> None:
        graph = self.plan.graph
        for position, value in enumerate(graph.inputs):
            name = graph.input_names[position] if position < len(graph.input_names) else f"input {position}"
            self.plan.inputs.append(self._row(value, name, Scope.INPUT, position))
        for position, entry in enumerate(graph.state):
            self.plan.state.append(self._row(entry.before, entry.holder.name, Scope.STATE, position))
        for position, value in enumerate(graph.outputs):
            self.plan.outputs.append(self._row(value, f"output {position}", Scope.OUTPUT, position))
        for node in graph.nodes:
            if is_array(node):
                position = len(self.plan.constants)
                self.plan.constants.append(self._row(node.outputs[0], "constant", Scope.CONSTANT, position))
        self._state_results()
        for number, phase in enumerate(self.plan.phases):
            for index, kernel in enumerate(phase.kernels):
                self.place[id(kernel)] = (number, index)
                for value in kernel.reads:
                    self.readers.setdefault(id(value), []).append((number, index))
        for number, phase in enumerate(self.plan.phases):
            self._phase(number, phase)
            self._workspaces(number, phase)
        self._lifetimes()
        every = self.plan.all_buffers
        self.plan.arena_bytes = place([b for b in every if b.scope in (Scope.PROGRAM, Scope.SLOT)])
        for scratch in self.plan.scratch_by_phase().values():
            self.plan.thread_bytes = max(self.plan.thread_bytes, place(scratch))

    def _describe(self, buffer: Buffer, value: Value) -> Buffer:
        if value.node is not None:
            buffer.where, buffer.module, buffer.op = value.node.where, value.node.scope, value.node.op.name
        return self._hold(buffer, value)

    def _hold(self, buffer: Buffer, value: Value) -> Buffer:
        self.plan.buffers.setdefault(id(value), []).append(buffer)
        self.holding.setdefault(id(buffer), []).append(id(value))
        return buffer

    def _row(self, value: Value, name: str, scope: Scope, offset: int = 0) -> Buffer:
        buffer = Buffer(name, value.type, scope, offset=offset, sample_stride=self._by_sample(value))
        self.rows[id(value)] = buffer
        return self._describe(buffer, value)

    def _by_sample(self, value: Value) -> int:
        """Elements from one sample to the next, 0 where a value has no batch axis."""
        axis = self.batch.of(value) if self.batch is not None else None
        return 0 if axis is None else math.prod(value.shape[axis + 1 :])

    def _state_results(self) -> None:
        """New values go straight into the holder's storage, or through the arena where that is not
        allowed."""
        copied = {v for k in self.plan.kernels for v in k.detail.get("copy", ())}
        late: list[Kernel] = []
        for position, entry in enumerate(self.plan.graph.state):
            if entry.after is None:
                continue
            if id(entry.after) in copied or self._by_sample(entry.before) != self._by_sample(entry.after):
                late.append(
                    Kernel(
                        "copy",
                        [entry.after],
                        [],
                        [entry.after],
                        detail={"state": self.plan.state[position]},
                        traffic=2 * entry.after.type.nbytes,
                    )
                )
            else:
                self.rows[id(entry.after)] = self.plan.state[position]
                self._hold(self.plan.state[position], entry.after)
        if late:
            self.plan.phases.append(Phase(late, False, len(late)))

    def _phase(self, number: int, phase: Phase) -> None:
        produced = {id(root): kernel for kernel in phase.kernels for root in kernel.roots}
        if not phase.batch:
            for kernel in phase.kernels:
                for root in kernel.roots:
                    if id(root) not in self.rows:
                        found = self._reused(kernel, root, self.rows, phase)
                        if found is not None:
                            self.rows[id(root)] = found
                        else:
                            self._row(root, root.node.op.name if root.node else "value", Scope.PROGRAM)
                    if phase.kept:
                        self.kept.append(self.rows[id(root)])
            return
        assert self.batch is not None
        kernels: list[Kernel] = []
        lanes: dict[int, Buffer] = {}
        blocked = self._blocked(phase)
        for kernel in phase.kernels:
            for value in kernel.reads:
                axis = self.batch.of(value)
                if (
                    axis is not None
                    and id(value) not in lanes
                    and id(value) not in produced
                    and (value.ndim > 1 or id(value) in blocked)
                ):
                    lanes[id(value)] = self._lane(value, axis, number, "pack")
                    kernels.append(
                        Kernel("pack", [value], [], [value], role="map", traffic=2 * value.type.nbytes)
                    )
            kernels.append(kernel)
            for root in kernel.roots:
                if kernel.role == "partial":
                    slot = Buffer("slots", root.type, Scope.SLOT, copies=phase.tasks)
                    self._describe(slot, root)
                    continue
                axis = self.batch.of(root)
                assert axis is not None
                outside = id(root) in self.fusion.results or self._read_later(root, number)
                in_block = root.ndim > 1 or id(root) in blocked
                if in_block or not outside:
                    lanes[id(root)] = self._reused(kernel, root, lanes, phase) or self._lane(
                        root, axis, number
                    )
                if outside:
                    if id(root) not in self.rows:
                        self._row(root, root.node.op.name if root.node else "value", Scope.PROGRAM)
                    if in_block:
                        kernels.append(
                            Kernel("unpack", [root], [], [root], role="map", traffic=2 * root.type.nbytes)
                        )
        phase.kernels = kernels

    def _blocked(self, phase: Phase) -> set[int]:
        """Ids of the values that a template reads in blocks. Only loops can read one number per sample as
        it lies in row-major memory."""
        looping, alias = self.plan.target.support.looping, self.plan.alias
        anchors = [
            k.anchor for k in phase.kernels if k.anchor is not None and k.anchor.op.name not in looping
        ]
        return {id(alias.get(id(v), v)) for anchor in anchors for v in anchor.inputs}

    def _lane(self, value: Value, axis: int, number: int, what: str = "") -> Buffer:
        name = (value.node.op.name if value.node is not None else "input") + (f" ({what})" if what else "")
        shape = tuple(self.plan.phases[number].block if a == axis else e for a, e in enumerate(value.shape))
        block = Type(value.dtype, shape)
        return self._describe(Buffer(name, block, Scope.THREAD, lane_axis=axis, phase=number), value)

    def _reused(self, kernel: Kernel, root: Value, buffers: dict[int, Buffer], phase: Phase) -> Buffer | None:
        """The buffer of an operand that the kernel may overwrite: of the same type, read only where it is
        written, and by no other kernel from here on."""
        if kernel.kind != "loops" or id(root) in self.fusion.results:
            return None
        for value in kernel.reads:
            buffer = buffers.get(id(value))
            if (
                buffer is None
                or buffer.scope not in (Scope.PROGRAM, Scope.THREAD)
                or value.type != root.type
                or self.plan.batch_axis.get(id(value)) != self.plan.batch_axis.get(id(root))
                or any(
                    found is buffer
                    for other in kernel.roots
                    for found in self.plan.buffers.get(id(other), ())
                )
                or not _aligned(kernel, {id(value)})
                or self._read_after(value, buffer, kernel, phase)
            ):
                continue
            return self._hold(buffer, root)
        return None

    def _read_after(self, value: Value, buffer: Buffer, kernel: Kernel, phase: Phase) -> bool:
        """Does anything read these bytes beside or after the kernel?"""
        if any(found is buffer for found in self.kept):
            return True
        number, position = self.place[id(kernel)]
        for held in self.holding[id(buffer)]:
            for other, index in self.readers.get(held, ()):
                if other == number and index != position and (index > position or not phase.batch):
                    return True
                if other > number and buffer.scope is not Scope.THREAD:
                    return True
        return False

    def _read_later(self, value: Value, number: int) -> bool:
        return any(other != number for other, _ in self.readers.get(id(value), ()))

    def _lifetimes(self) -> None:
        """First write and last read of every planned buffer, in (phase, kernel); a buffer that several
        tasks share lives through whole phases, because the tasks of a phase run in any order."""
        for number, phase in enumerate(self.plan.phases):
            for index, kernel in enumerate(phase.kernels):
                for value in (*kernel.roots, *kernel.reads):
                    for buffer in self._planned(value, number):
                        private = buffer.scope is Scope.THREAD
                        if buffer.first[0] < 0:
                            buffer.first = (number, index if private else 0)
                        buffer.last = (number, index if private else 1 << 30)
        for buffer in self.kept:
            buffer.last = (len(self.plan.phases), 0)

    def _workspaces(self, number: int, phase: Phase) -> None:
        """Scratch that kernels need beside their operands, private to a thread while the kernel runs."""
        if phase.loop is not None:
            self._shared(number, phase.kernels[0], phase.loop)
        for index, kernel in enumerate(phase.kernels):
            if phase.loop is not None:
                nbytes = phase.loop.thread_bytes
            else:
                nbytes = self.plan.target.support.workspace(kernel, phase.block, self.plan.target)
            if nbytes:
                scratch = Buffer(
                    f"{kernel.name} workspace", Type(uint8, (nbytes,)), Scope.THREAD, phase=number
                )
                scratch.first = scratch.last = (number, index)
                kernel.detail["workspace"] = scratch

    def _shared(self, number: int, kernel: Kernel, body: Plan) -> None:
        """What the threads of a loop share: the arena of its body, and two copies of every carry."""
        assert kernel.anchor is not None
        op: Any = kernel.anchor.op
        nbytes = aligned(body.arena_bytes)
        nbytes += sum(2 * aligned(value.type.nbytes) for value in op.body.outputs[: op.carries])
        shared = Buffer(f"{kernel.name} arena", Type(uint8, (nbytes,)), Scope.PROGRAM)
        shared.first, shared.last = (number, 0), (number, 1 << 30)
        kernel.detail["shared"] = shared

    def _planned(self, value: Value, number: int) -> Iterable[Buffer]:
        for buffer in self.plan.buffers.get(id(value), ()):
            if buffer.scope in (Scope.PROGRAM, Scope.SLOT) or (
                buffer.scope is Scope.THREAD and buffer.phase == number
            ):
                yield buffer
