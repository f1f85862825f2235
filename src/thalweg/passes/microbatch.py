"""Micro-batches: a training step whose batch runs through it in parts, one after the other.

In: the prepared graph of a step, the one of the same step for a batch 1/k as large, and k. Out: a graph with
the inputs, state and results of the first, in which a scan runs over k parts of the batch. What the step sums
over the batch travels as a sum; what depends on the sums (the update) runs behind the loop. Because numbers
that follow from the batch size, such as the 1/B of a mean, are those of the whole batch, sums and means are
those of the whole batch too, up to rounding.

The two graphs have the same nodes; where their shapes differ, there is the batch. Every node that it passes
through must treat samples alike, which the ops' axis rules say; what mixes samples (batch norm in training)
is refused by name. `schedule.fit` and `compile(accumulate=k)` call it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from thalweg.errors import UnsupportedError
from thalweg.graph import Graph, Kind, Node, Op, State, Value, builder, located, remove_dead, using
from thalweg.graph.build import Builder
from thalweg.ops.accumulation import Scatter
from thalweg.ops.control import copy_node, merge_iterations, scan, split_iterations
from thalweg.ops.core import cast
from thalweg.ops.elementwise import add
from thalweg.ops.movement import Reshape
from thalweg.ops.sources import Constant, Iota, RandomBits, full
from thalweg.types import Span, Type, float32

LOOP = "micro-batch"  # the name of the loop's body
LINE = (Span("<micro-batches>", 0, "microbatch"),)


def microbatch(whole: Graph, part: Graph, count: int) -> Graph:
    """The step `whole` as a loop over `count` parts of its batch; `part` is the step for one of them.

    Raises `UnsupportedError` naming the layer and the line where the parts depend on each other.
    """
    split = _Split(whole, part, count)
    return split.graph()


class _Split:
    """The nodes of a step by what they have to do with the batch."""

    def __init__(self, whole: Graph, part: Graph, count: int) -> None:
        self.whole = whole
        self.part = part
        self.count = count
        self.twin: dict[int, Value] = {}  # id(value of the part) -> the value of the whole batch
        self.op: dict[int, Op] = {}  # id(node of the part) -> the op that takes the place of its own
        self.axis: dict[int, int] = {}  # id(value of the part) -> the axis that grows with the batch
        # id(value) -> how often the samples follow each other along that axis, as in [T * B, H]; None: where
        # all elements of the axis are alike, any number fits
        self.rounds: dict[int, int | None] = {}
        self._pair()
        self.inside: list[Node] = []  # nodes of the part that run in the loop
        self.sums: list[Node] = []  # those of them that sum over the batch
        self._classify()

    # ---- the two graphs ------------------------------------------------------------------------------------

    def _pair(self) -> None:
        whole, part = self.whole, self.part
        same = len(whole.nodes) == len(part.nodes) and len(whole.sources) == len(part.sources)
        if same:
            for given, twin in zip(part.sources, whole.sources, strict=True):
                self._twins(given, twin, None)
        for small, large in zip(part.nodes, whole.nodes, strict=False) if same else ():
            if not self._alike(small, large):
                same = False
                break
            if large.op.kind is Kind.ELEMENTWISE:
                self.op[id(small)] = large.op  # its numbers, if it has any, are those of the whole batch
            for one, other in zip(small.outputs, large.outputs, strict=True):
                self._twins(one, other, small)
        if not same:
            raise UnsupportedError(
                f"the program has another structure for a batch 1/{self.count} as large; choose another "
                "number of micro-batches"
            )
        for entry in part.state:
            if id(entry.before) in self.axis:
                raise UnsupportedError(
                    f"the state {entry.holder.name!r} has a value for every sample, so the batch cannot be "
                    "cut; make it an argument"
                )

    def _alike(self, small: Node, large: Node) -> bool:
        """Do two nodes do the same to values that belong to each other? A mean may divide by one number of
        samples and multiply by the reciprocal of another."""
        wired = [self.twin.get(id(v)) for v in small.inputs]
        if len(wired) != len(large.inputs) or len(small.outputs) != len(large.outputs):
            return False
        if any(one is not other for one, other in zip(wired, large.inputs, strict=True)):
            return False
        if small.op.kind is Kind.ELEMENTWISE and large.op.kind is Kind.ELEMENTWISE:
            return True
        others = large.op.attributes()
        return type(small.op) is type(large.op) and all(
            value == others[name] for name, value in small.op.attributes().items() if isinstance(value, float)
        )

    def _twins(self, small: Value, large: Value, node: Node | None) -> None:
        self.twin[id(small)] = large
        if small.type == large.type:
            return
        differing = [a for a, (s, b) in enumerate(zip(small.shape, large.shape, strict=False)) if s != b]
        if (
            small.ndim != large.ndim
            or small.dtype is not large.dtype
            or len(differing) != 1
            or small.shape[differing[0]] * self.count != large.shape[differing[0]]
        ):
            raise self._refusal(node, f"its size does not grow with the batch: {small.type}, {large.type}")
        self.axis[id(small)] = differing[0]

    def _refusal(self, node: Node | None, why: str) -> UnsupportedError:
        if node is None:
            return UnsupportedError(f"an argument cannot be cut into micro-batches: {why}")
        place = f"{node.scope or 'the step'}, {node.op.name} at {node.where[0].file}:{node.where[0].line}"
        return UnsupportedError(
            f"the batch cannot be cut into micro-batches: {place}: {why}\n"
            "  write instead: a smaller batch, or a layer that treats every sample by itself (group norm for "
            "batch norm)"
        )

    # ---- what the nodes do to the batch --------------------------------------------------------------------

    def _classify(self) -> None:
        late: dict[int, Node] = {}  # id(value) -> the sum over the batch that it depends on
        early: set[int] = set()  # ids of sums that are made outside the loop, from the arguments
        for small in self.part.nodes:
            cut = [v for v in small.outputs if id(v) in self.axis]
            source = next((late[id(v)] for v in small.inputs if id(v) in late), None)
            if cut and source is not None:
                self._make_early(source, early)
                late = self._late(early, small)
                source = None
            if cut or any(id(v) in self.axis for v in small.inputs):
                self._check(small, cut)
                self.inside.append(small)
                if not cut and id(small) not in early:
                    source = small
            if source is not None:
                late.update((id(v), source) for v in small.outputs)
        self.sums = [
            node
            for node in self.inside
            if id(node) not in early and not any(id(v) in self.axis for v in node.outputs)
        ]
        self.inside = [node for node in self.inside if id(node) not in early]
        self.late = late

    def _late(self, early: set[int], until: Node) -> dict[int, Node]:
        """What depends on sums over the batch, among the nodes before `until`."""
        late: dict[int, Node] = {}
        for node in self.part.nodes:
            if node is until:
                break
            source = next((late[id(v)] for v in node.inputs if id(v) in late), None)
            reads = any(id(v) in self.axis for v in node.inputs)
            if reads and id(node) not in early and not any(id(v) in self.axis for v in node.outputs):
                source = node
            if source is not None:
                late.update((id(v), source) for v in node.outputs)
        return late

    def _make_early(self, total: Node, early: set[int]) -> None:
        """Let a sum that samples depend on be made before the loop: it must follow from the arguments by
        cheap means, as the number of labels that count does.
        """
        stack, seen = [total], set()
        while stack:
            node = stack.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if node.op.kind >= Kind.CONTRACTION and not isinstance(node.op, (Constant, Iota)):
                raise self._refusal(
                    total,
                    "every sample depends on a sum over all samples, which needs their forward pass",
                )
            stack += [v.node for v in node.inputs if v.node is not None]
        early.update(
            number for number in seen if any(number == id(n) and self._sums(n) for n in self.part.nodes)
        )

    def _sums(self, node: Node) -> bool:
        return any(id(v) in self.axis for v in node.inputs) and not any(
            id(v) in self.axis for v in node.outputs
        )

    def _check(self, node: Node, cut: Sequence[Value]) -> None:
        """Does a node treat the samples alike, or sum over them?"""
        axes = [self.axis.get(id(v)) for v in node.inputs]
        out = [self.axis.get(id(v)) for v in node.outputs]
        known = {self.rounds.get(id(v), 1) for v in node.inputs if id(v) in self.axis} - {None}
        if len(known) > 1:
            raise self._refusal(node, "samples lie in another order in its operands")
        rounds = known.pop() if known else None
        if isinstance(node.op, (Constant, Iota, RandomBits)):
            rounds = 1
        elif isinstance(node.op, Reshape):
            rounds = self._reshaped(node, axes[0], out[0], rounds)
        self.rounds.update((id(v), rounds) for v in cut)
        if isinstance(node.op, (Constant, Iota, RandomBits, Reshape)):
            return
        if isinstance(node.op, Scatter) and not cut and node.op.mode == "add" and axes[0] is None:
            if axes[1] is not None and axes[2] == node.op.axis + axes[1] - node.op.batch:
                return
        elif any(axis is not None for axis in axes):
            for group in node.op.axes(*(v.type for v in node.inputs)):
                fits = list(group.inputs) == axes and list(group.outputs) == out
                if fits and (not group.reduced or node.op.combine == "sum"):
                    return
        elif any(  # something without samples is repeated for each
            [g for g in group.outputs if g is not None] == [o for o in out if o is not None]
            for group in node.op.axes(*(v.type for v in node.inputs))
        ):
            return
        raise self._refusal(node, "it mixes samples")

    def _reshaped(self, node: Node, old: int | None, new: int | None, rounds: int | None) -> int | None:
        """How often the samples follow each other along the axis of a reshape's result."""
        if old is None or new is None:
            raise self._refusal(node, "samples are joined with something else")
        if rounds is None:
            return None
        before = math.prod(node.inputs[0].shape[:old]) * rounds
        result = node.outputs[0].shape
        found, rest = divmod(before, math.prod(result[:new]))
        if rest or result[new] % found:
            raise self._refusal(node, "samples are spread over several axes")
        return found

    # ---- the new graph -------------------------------------------------------------------------------------

    def graph(self) -> Graph:
        whole = self.whole
        small_of = {id(large): small for small, large in zip(self.part.nodes, whole.nodes, strict=True)}
        outer: dict[int, Value] = {id(v): Value(v.type) for v in whole.sources}
        running = {id(node) for node in self.inside}
        with using(Builder()) as target:
            behind = []
            for node in whole.nodes:
                small = small_of[id(node)]
                if any(id(v) in self.late for v in small.inputs) or id(small) in {id(n) for n in self.sums}:
                    behind.append(node)
                else:
                    copy_node(node, outer)  # of the nodes in the loop those stay that an early sum needs
            self._loop(outer, running)
            for node in behind:
                if id(small_of[id(node)]) not in running:
                    copy_node(node, outer)
        state = tuple(
            State(outer[id(e.before)], None if e.after is None else outer[id(e.after)], e.holder)
            for e in whole.state
        )
        return remove_dead(
            replace(
                whole,
                inputs=tuple(outer[id(v)] for v in whole.inputs),
                nodes=tuple(target.nodes),
                outputs=tuple(outer[id(v)] for v in whole.outputs),
                state=state,
            )
        )

    def _loop(self, outer: dict[int, Value], running: set[int]) -> None:
        """Append the scan; `outer` (id(value of the whole) -> value) learns its results."""
        cut = [v for v in self.part.sources if id(v) in self.axis]
        cut += [
            v
            for node in self.inside
            if isinstance(node.op, (Constant, Iota))
            for v in node.outputs
            if id(v) in self.axis
        ]
        results = [
            v
            for v in self.part.outputs
            if id(v) in self.axis and v.node is not None and id(v.node) in running
        ]
        results = list({id(v): v for v in results}.values())
        for value in (*results, *cut):
            if self.rounds.get(id(value), 1) not in (1, None):
                raise self._refusal(value.node, "samples do not follow each other along its axis")
        totals = [node.outputs[0] for node in self.sums]

        def body(iteration: Any, carries: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
            inner: dict[int, Value] = {id(v): s for v, s in zip(cut, slices, strict=True)}
            carried = {id(v): c for v, c in zip(totals, carries, strict=True)}
            after = {}
            for node in self.inside:
                if all(id(v) in inner for v in node.outputs):
                    continue
                inputs = [
                    inner[id(v)] if id(v) in inner else outer[id(self.twin[id(v)])] for v in node.inputs
                ]
                if isinstance(node.op, Scatter) and id(node.outputs[0]) in carried:
                    inputs[0] = carried[id(node.outputs[0])]  # it adds to what there is
                op, types = self.op.get(id(node), node.op), [v.type for v in node.outputs]
                outputs = builder().append(Node(op, tuple(inputs), types, node.where, node.scope))
                inner.update((id(v), new) for v, new in zip(node.outputs, outputs, strict=True))
                if id(node.outputs[0]) in carried:
                    with located(node.where, node.scope):
                        after[id(node.outputs[0])] = self._total(node, outputs[0], carried)
            return [after[id(v)] for v in totals], [inner[id(v)] for v in results]

        with located(LINE, "micro-batches"):
            slices = [
                split_iterations(outer[id(self.twin[id(v)])], self.axis[id(v)], self.count) for v in cut
            ]
            begin = [self._begin(node, outer) for node in self.sums]
            last, stacks = scan(body, begin, slices, self.count, name=LOOP)
            for value, total in zip(totals, last, strict=True):
                outer[id(self.twin[id(value)])] = cast(total, value.dtype)
            for value, stack in zip(results, stacks, strict=True):
                outer[id(self.twin[id(value)])] = merge_iterations(stack, self.axis[id(value)])

    def _begin(self, node: Node, outer: dict[int, Value]) -> Any:
        """What a sum over the batch begins with."""
        if isinstance(node.op, Scatter):
            return outer[id(self.twin[id(node.inputs[0])])]
        type = _accumulator(node.outputs[0].type)
        return full(type.shape, 0, type.dtype)

    def _total(self, node: Node, value: Value, carried: dict[int, Value]) -> Any:
        if isinstance(node.op, Scatter):
            return value
        before = carried[id(node.outputs[0])]
        return add(before, cast(value, before.dtype))


def _accumulator(type: Type) -> Type:
    """16-bit sums are carried in float32."""
    return type if type.dtype.itemsize != 2 or not type.dtype.is_floating else Type(float32, type.shape)
