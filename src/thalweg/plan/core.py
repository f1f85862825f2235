"""`Plan`: what will run, before it runs. Phases, tasks, kernels and buffers, with exact bytes and operations.

A plan is data: the scheduler makes it, the checker proves it, the code generator prints it as C. A
barrier separates phases. A phase's tasks are cut by shape only, so the number of threads decides who does
a task and never a result.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from thalweg.config import settings
from thalweg.errors import GraphError
from thalweg.graph import Graph, Kind, Node, Value, function
from thalweg.ops.sources import Constant
from thalweg.plan import report
from thalweg.plan.machine import machine
from thalweg.types import Span, Type

LANES = 16  # virtual lanes of every vector, whatever the instruction set
MOST_SLOTS = 16  # partial results of a reduction that is cut over tasks
ALIGNMENT = 64  # bytes


@dataclass(frozen=True, slots=True)
class Support:
    """What a backend has templates for, by op name. The backend fills it in beside its templates."""

    pulled: frozenset[str] = frozenset()  # computed element by element inside a reader's loops
    looping: frozenset[str] = frozenset()  # anchors whose operands may be pulled into their loops
    epilogue: frozenset[str] = frozenset()  # anchors that take elementwise readers of their result along
    takes: Callable[[Node], bool] = lambda node: False  # is there a kernel for this composite as a whole?
    lanes: Callable[[Node], bool] = lambda anchor: False  # can it run on a batch block, one sample per lane?
    keep: Callable[[Kernel, Plan], None] = lambda scan, body: None  # memory that lives through a loop
    workspace: Callable[[Kernel, int, Target], int] = lambda kernel, block, target: (
        0
    )  # bytes of scratch of a kernel


@dataclass(frozen=True, slots=True)
class Target:
    """The machine that a program is made for. Only shapes and these fields decide a plan, never the
    thread count."""

    support: Support
    machine: str = "native"  # instruction set, a name that the C compiler's flags know
    cache_bytes: int = 1 << 20  # of one core's own cache: batch blocks are cut so that activations stay in it
    winograd: bool = True  # may 3x3 convolutions be computed with fewer multiplications, rounded otherwise?


class Scope(Enum):
    """Where a buffer lives and how long."""

    INPUT = "input"  # the caller's
    OUTPUT = "output"  # fresh at each call, then the caller's
    STATE = "state"  # a holder's storage
    CONSTANT = "constant"  # read-only data of the program
    PROGRAM = "program"  # the arena, from the phase that writes it to the last that reads it
    SLOT = "slot"  # the arena, one copy per shard of the batch
    THREAD = "thread"  # scratch of one thread, one block of the batch


@dataclass(eq=False, slots=True)
class Buffer:
    """Bytes that hold a value. `lane_axis` is the axis that is cut in blocks of 16 kept innermost (None:
    row-major)."""

    name: str
    type: Type
    scope: Scope
    lane_axis: int | None = None
    copies: int = 1  # slots
    offset: int = (
        0  # bytes from the start of its arena (program, thread) or its number (input, output, state)
    )
    first: tuple[int, int] = (-1, 0)  # (phase, kernel) that writes it
    last: tuple[int, int] = (-1, 0)  # (phase, kernel) that reads it last
    where: tuple[Span, ...] = ()
    module: str = ""
    op: str = ""
    sample_stride: int = 0  # elements from one sample to the next (row-major buffers with a batch axis)
    phase: int = -1  # the phase that it belongs to (thread scope: it holds only the block being worked on)

    @property
    def nbytes(self) -> int:
        """Exact bytes of one copy; a lane axis is padded to full vectors."""
        size = 1
        for axis, extent in enumerate(self.type.shape):
            size *= -(-extent // LANES) * LANES if axis == self.lane_axis else extent
        return size * self.type.dtype.itemsize

    @property
    def total(self) -> int:
        """Bytes of all copies, each aligned."""
        return aligned(self.nbytes) * self.copies


def aligned(count: int) -> int:
    """`count` rounded up to the alignment of buffers."""
    return -(-count // ALIGNMENT) * ALIGNMENT


@dataclass(eq=False, slots=True)
class Kernel:
    """One loop nest or template: its anchor (a reduction, contraction, ... or None), and what is computed
    beside it.

    `roots` are the values that it stores; `nodes` all nodes that it computes, producers and epilogue
    included.
    """

    kind: str
    roots: list[Value]
    nodes: list[Node]
    reads: list[Value] = field(default_factory=list)
    anchor: Node | None = None
    # how the kernel relates to the batch: "map" (one block at a time), "partial" (sums over its block
    # into a slot),
    # "combine" (adds the slots, then its epilogue), "whole" (sees whole values; cut into tiles of its output)
    role: str = "whole"
    tasks: int = 1
    operations: int = 0
    traffic: int = 0  # bytes read and written, each buffer once
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> tuple[Span, ...]:
        return tuple(dict.fromkeys(span for node in self.nodes for span in node.where))

    @property
    def name(self) -> str:
        return (
            self.kind
            if self.anchor is None or self.anchor.op.name == self.kind
            else f"{self.kind} {self.anchor.op.name}"
        )


@dataclass(eq=False, slots=True)
class Phase:
    """Tasks between two barriers. In a batch phase each task walks its shard block by block through all
    kernels; else each kernel has its own tasks, cut from its output."""

    kernels: list[Kernel]
    batch: bool = False
    tasks: int = 1
    block: int = 0  # samples per block (batch phases)
    extent: int = 0  # samples (batch phases)
    kept: bool = False  # what it computes follows from state alone, and is kept until that state changes
    loop: Plan | None = None  # of the body of a scan, the only kernel: its phases run in every iteration


@dataclass(eq=False, slots=True)
class Plan:
    """Everything about a program but its text."""

    graph: Graph
    target: Target
    phases: list[Phase]
    buffers: dict[int, list[Buffer]]  # id(value) -> its buffers: at most one per layout and scope
    inputs: list[Buffer]
    outputs: list[Buffer]
    state: list[Buffer]
    constants: list[Buffer]
    arena_bytes: int = 0
    thread_bytes: int = 0
    alias: dict[int, Value] = field(
        default_factory=dict
    )  # id(value) -> the value whose bytes it has in another shape
    batch_axis: dict[int, int] = field(default_factory=dict)  # id(value) -> axis that counts samples

    @property
    def kept(self) -> int:
        """Phases at the beginning that a call leaves out while the state that they read is as it was."""
        return sum(phase.kept for phase in self.phases)

    def kept_state(self) -> list[int]:
        """Numbers of the state entries that those phases read."""
        read = {id(v) for phase in self.phases[: self.kept] for k in phase.kernels for v in k.reads}
        return [number for number, entry in enumerate(self.graph.state) if id(entry.before) in read]

    @property
    def workspaces(self) -> list[Buffer]:
        return [k.detail[name] for k in self.kernels for name in ("workspace", "shared") if name in k.detail]

    @property
    def all_buffers(self) -> list[Buffer]:
        seen: dict[int, Buffer] = {}
        for group in (self.inputs, self.state, self.outputs, *self.buffers.values(), self.workspaces):
            for buffer in group:
                seen[id(buffer)] = buffer
        return list(seen.values())

    def scratch_by_phase(self) -> dict[int, list[Buffer]]:
        """For each phase that has any, the buffers of one thread."""
        found: dict[int, list[Buffer]] = {}
        for buffer in self.all_buffers:
            if buffer.scope is Scope.THREAD:
                found.setdefault(buffer.phase, []).append(buffer)
        return found

    def buffer_of(self, kernel: Kernel, number: int, value: Value, write: bool = False) -> Buffer:
        """The buffer through which a kernel of phase `number` reads (or writes) a value."""
        if kernel.kind == "copy" and write:
            return kernel.detail["state"]  # type: ignore[no-any-return]
        found = self.buffers[id(self.alias.get(id(value), value))]
        if kernel.role in ("map", "partial"):
            rows = (kernel.kind == "pack" and not write) or (kernel.kind == "unpack" and write)
            blocks = [b for b in found if b.scope is Scope.THREAD and b.phase == number]
            if blocks and not rows:
                return blocks[0]
        slots = [b for b in found if b.scope is Scope.SLOT]
        if slots and kernel.role == ("partial" if write else "combine"):
            return slots[0]
        rows_of = [b for b in found if b.scope not in (Scope.THREAD, Scope.SLOT)]
        if not rows_of:
            raise GraphError(f"{value} has no buffer for kernel {kernel.name} of phase {number}")
        return rows_of[0]

    def constant_arrays(self) -> list[np.ndarray[Any, Any]]:
        """The arrays behind `constants`."""
        by_buffer: dict[int, np.ndarray[Any, Any]] = {}
        for node in self.graph.nodes:
            if isinstance(node.op, Constant):
                for buffer in self.buffers.get(id(node.outputs[0]), ()):
                    by_buffer[id(buffer)] = node.op.value
        return [by_buffer[id(buffer)] for buffer in self.constants]

    @property
    def kernels(self) -> list[Kernel]:
        return [kernel for phase in self.phases for kernel in phase.kernels]

    @property
    def operations(self) -> int:
        """Arithmetic operations of one call, counted densely."""
        return sum(kernel.operations for kernel in self.kernels)

    def bytes_of(self, scope: Scope) -> int:
        return sum(buffer.total for buffer in self.all_buffers if buffer.scope is scope)

    def memory(self, threads: int | None = None) -> dict[str, int]:
        """Exact bytes by role for so many threads (None: the setting). A kernel's packed copies of its
        operands are in the scratch, which each thread has for itself."""
        return {
            "inputs": sum(b.nbytes for b in self.inputs),
            "outputs": sum(b.nbytes for b in self.outputs),
            "state": sum(b.nbytes for b in self.state),
            "constants": sum(b.nbytes for b in self.constants),
            "arena": self.arena_bytes,
            "scratch": self.thread_bytes * (threads or settings.threads()),
        }

    def total_bytes(self, threads: int | None = None) -> int:
        """All bytes that a call works with: the sum of `memory`."""
        return sum(self.memory(threads).values())

    @property
    def moved_bytes(self) -> int:
        """Bytes that a call moves at least: each input and state read, each result written, once."""
        changed = sum(e.before.type.nbytes for e in self.graph.state if e.after is not None)
        return sum(b.nbytes for b in (*self.inputs, *self.outputs, *self.state, *self.constants)) + changed

    def least_seconds(self, threads: int | None = None) -> float:
        """A lower bound on the time of a call on this machine: no kernel beats the peak of the arithmetic,
        and what does not fit the cache comes from memory. `thalweg.plan.machine` has the figures."""
        found = machine(threads)
        return found.seconds(self.operations, max(0, self.moved_bytes - found.cache_bytes))

    def __str__(self) -> str:
        return self.text()

    def text(self, threads: int | None = None, limit: int | None = 60) -> str:
        """Bytes, operations and the least time for so many threads (None: the setting), then phases with
        their kernels and the largest buffers; at most `limit` of each (None: all)."""
        return report.text(self, threads or settings.threads(), limit)

    def json(self, threads: int | None = None) -> str:
        """The same facts as JSON, for tools: every kernel and every buffer."""
        return report.json_text(self, threads or settings.threads())

    def draw(self, path: Any) -> None:
        """Write a picture (`.svg`) of the arena over time to a file: every buffer from the phase that
        writes it to the last that reads it, at its offset."""
        function("draw")(self, path)


def check(plan: Plan) -> None:
    """Prove that every kernel finds in memory what it reads, however many threads run the tasks of a phase.

    Independent of the planner: buffers that say that they live at the same time share no bytes and lie
    inside their arena; then the phases are walked while the bytes of every buffer are followed. Raises
    `GraphError`.
    """
    _check_arena(
        (b for b in plan.all_buffers if b.scope in (Scope.PROGRAM, Scope.SLOT)), plan.arena_bytes, "arena"
    )
    for number, blocks in plan.scratch_by_phase().items():
        _check_arena(blocks, plan.thread_bytes, f"scratch of phase {number}")
    _check_failures(plan)
    contents = _Contents(plan)
    for number, phase in enumerate(plan.phases):
        contents.run(number, phase)
    contents.finish()


def failing_nodes(graph: Graph) -> set[int]:
    """Ids of the nodes that may meet an index out of range when all nodes before them have not.

    The scatter in the gradient of a gather has its indices and never fails: it need not come before updates.
    """
    found: set[int] = set()
    checked: dict[tuple[int, int], bool] = {}  # (id(indices), extent of the axis) -> may they be negative?
    for node in graph.nodes:
        if not node.op.checked:
            continue
        if node.op.kind is Kind.OPAQUE:  # a loop or a branch with such a node in it
            found.add(id(node))
            continue
        indices = node.inputs[1]
        while indices.node is not None and indices.node.op.name == "reshape":
            indices = indices.node.inputs[0]
        key = (id(indices), node.inputs[0].shape[node.op.axis])  # type: ignore[attr-defined]
        wraps = getattr(node.op, "wrap", True)
        if key in checked and (wraps or not checked[key]):
            continue
        checked[key] = wraps
        found.add(id(node))
    return found


def _check_failures(plan: Plan) -> None:
    """A call that fails must leave the state as it was: checks come before the first phase that changes
    it."""
    updated = False
    risky = failing_nodes(plan.graph)
    for number, phase in enumerate(plan.phases):
        updated = updated or any(
            plan.buffer_of(kernel, number, root, True).scope is Scope.STATE
            for kernel in phase.kernels
            for root in kernel.roots
        )
        for kernel in phase.kernels if updated else ():
            if any(id(node) in risky for node in kernel.nodes):
                raise GraphError(
                    f"kernel {kernel.name} of phase {number} may fail when state has been changed already"
                )


_Step = tuple[Kernel, list[tuple[Value, Buffer]], list[tuple[Value, Buffer]]]  # what it reads, what it writes


class _Contents:
    """Which value each buffer holds while a plan runs."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.held: dict[int, tuple[Buffer, int]] = {}  # id(buffer) -> the buffer and the id of its value
        self.arena, self.scratch = _Bytes(), _Bytes()
        for value, buffer in zip(plan.graph.inputs, plan.inputs, strict=True):
            self.held[id(buffer)] = (buffer, id(value))
        for entry, buffer in zip(plan.graph.state, plan.state, strict=True):
            self.held[id(buffer)] = (buffer, id(entry.before))
        for node in plan.graph.nodes:
            if isinstance(node.op, Constant):
                for buffer in plan.buffers.get(id(node.outputs[0]), ()):
                    if buffer.scope is Scope.CONSTANT:
                        self.held[id(buffer)] = (buffer, id(node.outputs[0]))

    def run(self, number: int, phase: Phase) -> None:
        """Follow a phase. The kernels of a batch phase run in order on each block; those of others at
        once."""
        plan = self.plan
        steps = [
            (
                kernel,
                [(v, plan.buffer_of(kernel, number, v)) for v in kernel.reads],
                [(v, plan.buffer_of(kernel, number, v, True)) for v in kernel.roots],
            )
            for kernel in phase.kernels
        ]
        if not phase.batch:
            for kernel, reads, _ in steps:
                self._expect(kernel, number, reads)
        self._beside(number, phase, steps)
        for kernel, reads, writes in steps:
            if phase.batch:
                self._expect(kernel, number, reads)
                self._samples(kernel, number, [*reads, *writes])
            for value, buffer in writes:
                self._write(value, buffer)
        for buffer in self.scratch.clear():
            self.held.pop(id(buffer), None)

    def _expect(self, kernel: Kernel, number: int, reads: Iterable[tuple[Value, Buffer]]) -> None:
        for value, buffer in reads:
            if buffer.nbytes and self.held.get(id(buffer), (buffer, 0))[1] != id(value):
                raise GraphError(
                    f"kernel {kernel.name} of phase {number} reads {value} from {buffer.name}, "
                    "which does not hold it there and then"
                )

    def _samples(self, kernel: Kernel, number: int, places: Iterable[tuple[Value, Buffer]]) -> None:
        """Does every value have its samples where a block of the batch looks for them?"""
        looked_at = {id(v): v for node in kernel.nodes for v in node.inputs if id(v) in self.plan.alias}
        views = [(v, self.plan.buffer_of(kernel, number, v)) for v in looked_at.values()]
        for value, buffer in (*places, *views):
            axis = self.plan.batch_axis.get(id(value))
            step = 0 if axis is None else math.prod(value.shape[axis + 1 :])
            if buffer.scope not in (Scope.THREAD, Scope.SLOT) and buffer.sample_stride != step:
                raise GraphError(
                    f"kernel {kernel.name} of phase {number} finds a sample of {value} every {step} "
                    f"elements, {buffer.name} has one every {buffer.sample_stride}"
                )

    def _beside(self, number: int, phase: Phase, steps: Sequence[_Step]) -> None:
        """Does no kernel write what another one of the phase reads or writes? Within a batch phase a
        kernel may follow another on the same buffer, for each task has its own samples there."""
        places = [
            (*_bytes(buffer), kernel, buffer, written)
            for kernel, reads, writes in steps
            for written, pairs in ((False, reads), (True, writes))
            for _, buffer in pairs
            if buffer.scope is not Scope.THREAD and buffer.nbytes
        ]
        open_places: list[tuple[Any, int, int, Kernel, Buffer, bool]] = []
        for place in sorted(places, key=lambda p: (p[0], p[1])):
            where, start, _, kernel, buffer, written = place
            open_places = [p for p in open_places if p[0] == where and p[2] > start]
            for _, _, _, other, found, wrote in open_places:
                if (written or wrote) and other is not kernel and not (phase.batch and found is buffer):
                    raise GraphError(
                        f"kernel {kernel.name} of phase {number} and {other.name} use {buffer.name} and "
                        f"{found.name}, which share bytes, and one of them writes"
                    )
            open_places.append(place)

    def _write(self, value: Value, buffer: Buffer) -> None:
        for other in self.scratch.put(buffer) if buffer.scope is Scope.THREAD else self.arena.put(buffer):
            self.held.pop(id(other), None)
        self.held[id(buffer)] = (buffer, id(value))

    def finish(self) -> None:
        """Do outputs and state hold their values at the end?"""
        graph, plan = self.plan.graph, self.plan
        ends = [
            *zip(graph.outputs, plan.outputs, strict=True),
            *(
                (e.before if e.after is None else e.after, b)
                for e, b in zip(graph.state, plan.state, strict=True)
            ),
        ]
        for value, buffer in ends:
            if buffer.nbytes and self.held.get(id(buffer), (buffer, 0))[1] != id(value):
                raise GraphError(f"{buffer.name} does not hold {value} when the program ends")
        for kernel in (k for phase in plan.phases[: plan.kept] for k in phase.kernels):
            for value in kernel.roots:
                buffer = plan.buffers[id(value)][0]
                if buffer.nbytes and self.held.get(id(buffer), (buffer, 0))[1] != id(value):
                    raise GraphError(f"{buffer.name} does not keep {value} for the next call")


def _bytes(buffer: Buffer) -> tuple[str, int, int]:
    """Where a buffer lies: a name for its memory, first byte, and the byte behind its last."""
    if buffer.scope in (Scope.PROGRAM, Scope.SLOT):
        return "arena", buffer.offset, buffer.offset + buffer.total
    return f"{buffer.scope.value} {id(buffer)}", 0, buffer.total


class _Bytes:
    """The buffers that hold something in one arena, by offset; they never overlap."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.buffers: list[Buffer] = []

    def put(self, buffer: Buffer) -> list[Buffer]:
        """Let `buffer` hold something; returns the buffers whose bytes it takes."""
        if buffer.scope not in (Scope.PROGRAM, Scope.SLOT, Scope.THREAD) or not buffer.nbytes:
            return []
        first = bisect.bisect_left(self.starts, buffer.offset)
        if first and self.starts[first - 1] + self.buffers[first - 1].total > buffer.offset:
            first -= 1
        last = bisect.bisect_left(self.starts, buffer.offset + buffer.total)
        taken = self.buffers[first:last]
        self.starts[first:last] = [buffer.offset]
        self.buffers[first:last] = [buffer]
        return taken

    def clear(self) -> list[Buffer]:
        """Forget everything; returns what was held."""
        gone = self.buffers
        self.starts, self.buffers = [], []
        return gone


def _check_arena(buffers: Iterable[Buffer], size: int, what: str) -> None:
    listed = sorted((b for b in buffers if b.nbytes), key=lambda b: b.offset)
    for index, buffer in enumerate(listed):
        if buffer.offset % ALIGNMENT or buffer.offset + buffer.total > size:
            raise GraphError(
                f"{what}: {buffer.name} at {buffer.offset} with {buffer.total} bytes lies outside {size}"
            )
        for other in listed[index + 1 :]:
            if other.offset >= buffer.offset + buffer.total:
                break
            if buffer.first <= other.last and other.first <= buffer.last:
                raise GraphError(f"{what}: {buffer.name} and {other.name} overlap and live at the same time")
