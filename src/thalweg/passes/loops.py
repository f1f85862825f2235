"""Rules for `scan` and `cond`: what a loop need not carry, cut, take or compute in every iteration.

In: an op and its inputs. Out: the values that replace its outputs, or None. `simplify` calls the rules; like
those of `algebra` they change no bit of any result. What does not change in a loop is computed before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from thalweg.graph import Builder, Graph, Kind, Node, Op, Value, builder, remove_dead, using
from thalweg.ops.control import INDEX, Cond, Scan
from thalweg.ops.elementwise import BitwiseInvert
from thalweg.ops.movement import Broadcast, Reshape
from thalweg.passes import algebra
from thalweg.types import Shape, Type


class Sweep(Protocol):
    """What the rules need of a sweep of `thalweg.passes.simplify`."""

    def make(self, op: Op, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        """An application, itself simplified."""

    def make_one(self, op: Op, *inputs: Value) -> Value:
        """The same for an op with one output."""

    def make_copy(self, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        """The application of a node with its source lines."""

    def simplified(self, graph: Graph) -> Graph:
        """A sub-graph that has been changed, simplified."""


def rewritten(sweep: Sweep, op: Op, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
    """What an application of an op with sub-graphs may be replaced by, or None."""
    if isinstance(op, Scan):
        if op.length <= 1:
            return _unrolled(sweep, op, inputs)
        return _with_simpler_ends(sweep, op, inputs) or _hoisted(sweep, op, inputs)
    return _cond(sweep, op, inputs) if isinstance(op, Cond) else None


def _inlined(sweep: Sweep, graph: Graph, inputs: Sequence[Value]) -> list[Value]:
    """The outputs of a sub-graph whose nodes take the place of the op."""
    mapping = {id(old): new for old, new in zip(graph.inputs, inputs, strict=True)}
    for node in graph.nodes:
        outputs = sweep.make_copy(node, tuple([mapping[id(value)] for value in node.inputs]))
        mapping.update((id(old), new) for old, new in zip(node.outputs, outputs, strict=True))
    return [mapping[id(value)] for value in graph.outputs]


def _uniform(sweep: Sweep, number: Any, shape: Shape) -> Value:
    return algebra.uniform(sweep.make_one, np.asarray(number), shape)


# ---- sub-graphs with other inputs and outputs --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """What an old input of a sub-graph is in the new one.

    "input": the new input with this key; "broadcast": that, repeated to the old one's shape; "number": a
    number known now, repeated to that shape; "unused".
    """

    kind: str
    key: int = -1
    number: Any = None


def _rebuilt(
    graph: Graph,
    sources: Sequence[_Source],
    inputs: Mapping[int, Value],
    outputs: Sequence[int],
    known: Mapping[int, Value] = {},
) -> Graph:
    """`graph` with the new `inputs` (by key, in their order) and only these of its outputs.

    `known` gives values of its nodes that are new inputs now.
    """
    mapping = dict(known)
    with using(Builder()) as target:
        for old, source in zip(graph.inputs, sources, strict=True):
            if source.kind == "number":
                mapping[id(old)] = algebra.uniform(_append, np.asarray(source.number), old.shape)
            elif source.kind == "broadcast":
                mapping[id(old)] = _append(Broadcast(old.shape), inputs[source.key])
            elif source.kind == "input":
                mapping[id(old)] = inputs[source.key]
        for node in graph.nodes:
            if all(id(value) in mapping for value in node.outputs):
                continue
            arguments = tuple([mapping[id(value)] for value in node.inputs])
            types = [value.type for value in node.outputs]
            for old, new in zip(
                node.outputs,
                target.append(Node(node.op, arguments, types, node.where, node.scope)),
                strict=True,
            ):
                mapping.setdefault(id(old), new)
    results = tuple(mapping[id(graph.outputs[position])] for position in outputs)
    return remove_dead(Graph(tuple(inputs.values()), tuple(target.nodes), results, (), graph.name))


def _append(op: Op, *inputs: Value) -> Value:
    return builder().apply(op, inputs)[0]


def _read(*graphs: Graph) -> set[int]:
    """Ids of the values that the graphs read or give."""
    found = {id(value) for graph in graphs for node in graph.nodes for value in node.inputs}
    found.update(id(value) for graph in graphs for value in graph.outputs)
    return found


# ---- scan --------------------------------------------------------------------------------------------------


def _unrolled(sweep: Sweep, op: Scan, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """The iterations, of which there is at most one, in place of the loop."""
    if op.length == 0:
        stacked = op.body.outputs[op.carries :]
        empty = [_uniform(sweep, np.zeros((), v.dtype.numpy), (op.length, *v.shape)) for v in stacked]
        return (*inputs[: op.carries], *empty)
    given = [
        sweep.make_one(Reshape(x.shape[1:]), x) if op.is_cut(position) else x
        for position, x in enumerate(inputs)
    ]
    found = _inlined(sweep, op.body, [_uniform(sweep, np.zeros((), np.int64), ()), *given])
    stacks = [sweep.make_one(Reshape((op.length, *y.shape)), y) for y in found[op.carries :]]
    return (*found[: op.carries], *stacks)


def _with_simpler_ends(sweep: Sweep, op: Scan, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
    """Inputs that need not be carried, cut or passed, and outputs that need not be stacked."""
    ends = _Ends(sweep, op, inputs)
    return ends.applied() if ends.changed else None


class _Ends:
    """What becomes of each input and output of a scan."""

    def __init__(self, sweep: Sweep, op: Scan, inputs: tuple[Value, ...]) -> None:
        self.sweep = sweep
        self.op = op
        self.given = inputs
        self.changed = False
        self.read = _read(op.body)
        self.seen: dict[tuple[bool, int], int] = {}  # (is it cut, id of the outer value) -> position
        self.outer: dict[int, Value] = {}  # by position: what the new scan takes, outside
        self.inner: dict[int, Type] = {}  # and the type that it has inside
        self.part: dict[int, int] = {}  # 0 carry, 1 slice, 2 constant
        self.sources = [_Source("input", -1)]
        for position, value in enumerate(inputs):
            source = self._input(position, value)
            self.changed |= source != _Source("input", position) or self.part[position] != self._old_part(
                position
            )
            self.sources.append(source)
        self.kept: list[int] = [p for p in range(op.carries) if self.part.get(p) == 0]
        self.results: list[int | Value] = []  # for every old output: its number in the new scan, or its value
        self._outputs()

    def _old_part(self, position: int) -> int:
        return 0 if position < self.op.carries else 1 if self.op.is_cut(position) else 2

    def _input(self, position: int, value: Value) -> _Source:
        inner = self.op.body.inputs[position + 1]
        part = self._old_part(position)
        if part == 0:
            if self.op.body.outputs[position] is not inner:
                return self._take(position, value, inner.type, 0)
            part = 2  # a carry that never changes
        number = algebra.literal(value)
        if id(inner) not in self.read:
            return _Source("unused")
        if number is not None:
            return _Source("number", number=number)
        known = self.seen.setdefault((part == 1, id(value)), position)
        if known != position:
            return self.sources[known + 1]
        return (
            self._repeated(position, value, inner.type)
            if part == 1
            else self._take(position, value, inner.type, 2)
        )

    def _take(self, position: int, value: Value, inner: Type, part: int) -> _Source:
        self.outer[position], self.inner[position], self.part[position] = value, inner, part
        return _Source("input", position)

    def _repeated(self, position: int, value: Value, inner: Type) -> _Source:
        """A tensor whose slices are all equal is a constant."""
        repeat = algebra.op_of(value, Broadcast)
        if repeat is None or 0 not in repeat.repeated(algebra.source(value).type):
            return self._take(position, value, inner, 1)
        single = algebra.source(value)
        if single.ndim == value.ndim:
            single = self.sweep.make_one(Reshape(single.shape[1:]), single)
        self._take(position, single, single.type, 2)
        return _Source("input" if single.type == inner else "broadcast", position)

    def _outputs(self) -> None:
        op, body = self.op, self.op.body
        places = {id(value): position for position, value in enumerate(body.inputs[1:])}
        stacked: dict[int, int] = {}
        for position, value in enumerate(body.outputs):
            if position < op.carries:
                self.results.append(
                    self.kept.index(position) if position in self.kept else self.given[position]
                )
                continue
            number = algebra.literal(value)
            source = places.get(id(value), -1)
            if number is not None:
                self.results.append(_uniform(self.sweep, number, (op.length, *value.shape)))
            elif source >= 0 and op.is_cut(source):
                self.results.append(self.given[source])
            elif source >= 0 and (source not in self.part or self.part[source] == 2):
                stack = Broadcast((op.length, *value.shape))
                self.results.append(self.sweep.make_one(stack, self.given[source]))
            else:
                if id(value) not in stacked:
                    stacked[id(value)] = len(self.kept)
                    self.kept.append(position)
                self.results.append(stacked[id(value)])
        self.changed |= len(self.kept) != len(body.outputs)

    def applied(self) -> tuple[Value, ...]:
        op = self.op
        order = sorted(self.outer, key=lambda position: (self.part[position], position))
        inputs = {-1: Value(INDEX), **{position: Value(self.inner[position]) for position in order}}
        body = _rebuilt(op.body, self.sources, inputs, self.kept)
        parts = list(self.part.values())
        plain = len(op.body.outputs) - op.residuals
        smaller = replace(
            op,
            body=self.sweep.simplified(body),
            carries=parts.count(0),
            slices=parts.count(1),
            residuals=sum(position >= plain for position in self.kept),
        )
        found = self.sweep.make(smaller, tuple([self.outer[position] for position in order]))
        return tuple([found[result] if isinstance(result, int) else result for result in self.results])


def _hoisted(sweep: Sweep, op: Scan, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
    """What depends on constants only is computed before the loop, but for broadcasts: they are larger than
    their input.
    """
    body = op.body
    constants = body.inputs[op.carries + op.slices + 1 :]
    invariant = {id(value) for value in constants}
    wanted = {id(value) for value in body.outputs}
    for node in body.nodes:
        if all(id(value) in invariant for value in node.inputs):
            invariant.update([id(value) for value in node.outputs])
        else:
            wanted.update([id(value) for value in node.inputs])
    moved: dict[int, Value] = {}
    needed: set[int] = set()
    for node in reversed(body.nodes):
        if id(node.outputs[0]) not in invariant:
            continue
        if any(id(value) in wanted for value in node.outputs):
            number = algebra.literal(node.outputs[0]) is not None  # as cheap inside, where it comes back to
            if node.inputs and not number and not _grows(node):
                moved.update((id(value), value) for value in node.outputs if id(value) in wanted)
            else:
                wanted.update([id(value) for value in node.inputs])
        if any(id(value) in moved or id(value) in needed for value in node.outputs):
            needed.update([id(value) for value in node.inputs])
    if not moved:
        return None
    mapping = {id(old): new for old, new in zip(body.inputs[1:], inputs, strict=True)}
    for node in body.nodes:
        if any(id(value) in moved or id(value) in needed for value in node.outputs):
            outputs = sweep.make_copy(node, tuple([mapping[id(value)] for value in node.inputs]))
            mapping.update((id(old), new) for old, new in zip(node.outputs, outputs, strict=True))
    own = {position: Value(value.type) for position, value in enumerate(body.inputs)}
    added = {key: Value(value.type) for key, value in moved.items()}
    sources = [_Source("input", position) for position in own]
    everything = {**own, **{len(own) + number: value for number, value in enumerate(added.values())}}
    changed = _rebuilt(body, sources, everything, range(len(body.outputs)), added)
    return sweep.make(
        replace(op, body=sweep.simplified(changed)), (*inputs, *(mapping[key] for key in added))
    )


def _grows(node: Node) -> bool:
    """Whether the node only repeats elements, so that reading its input in every iteration is cheaper."""
    return node.op.kind is Kind.MOVEMENT and sum(v.type.nbytes for v in node.outputs) > sum(
        v.type.nbytes for v in node.inputs
    )


# ---- cond --------------------------------------------------------------------------------------------------


def _cond(sweep: Sweep, op: Cond, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
    known = algebra.literal(inputs[0])
    if known is not None:
        return tuple(_inlined(sweep, op.then if known else op.otherwise, inputs[1:]))
    inverted = algebra.applied(inputs[0], BitwiseInvert)
    if inverted is not None:
        return sweep.make(Cond(op.otherwise, op.then), (inverted[0], *inputs[1:]))
    return _with_fewer_operands(sweep, op, inputs)


def _with_fewer_operands(sweep: Sweep, op: Cond, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
    """Numbers known now become constants inside; an operand that both branches return goes past them."""
    same: dict[int, Value] = {}  # output -> the operand that it is in both branches
    places = [
        {id(value): position for position, value in enumerate(b.inputs)} for b in (op.then, op.otherwise)
    ]
    for position, pair in enumerate(zip(op.then.outputs, op.otherwise.outputs, strict=True)):
        found = [known.get(id(value), -1) for known, value in zip(places, pair, strict=True)]
        if found[0] == found[1] >= 0:
            same[position] = inputs[found[0] + 1]
    kept = [position for position in range(len(op.then.outputs)) if position not in same]
    branches = [replace(b, outputs=tuple(b.outputs[p] for p in kept)) for b in (op.then, op.otherwise)]
    read = _read(*branches)
    taken: dict[int, int] = {}  # id(outer value) -> position
    sources: list[_Source] = []
    for position, value in enumerate(inputs[1:]):
        number = algebra.literal(value)
        if not any(id(branch.inputs[position]) in read for branch in branches):
            sources.append(_Source("unused"))
        elif number is not None:
            sources.append(_Source("number", number=number))
        else:
            sources.append(_Source("input", taken.setdefault(id(value), position)))
    if not same and sources == [_Source("input", position) for position in range(len(sources))]:
        return None
    order = sorted(taken.values())
    smaller = [
        sweep.simplified(_rebuilt(b, sources, {p: Value(b.inputs[p].type) for p in order}, range(len(kept))))
        for b in branches
    ]
    found_values = iter(
        sweep.make(Cond(*smaller), (inputs[0], *(inputs[p + 1] for p in order))) if kept else ()
    )
    return tuple(same[p] if p in same else next(found_values) for p in range(len(op.then.outputs)))
