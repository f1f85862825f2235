"""Products leave loops: what a scan multiplies in every iteration by the same constant is one product
outside.

In: a graph. Out: a graph in which projections of a scan's slices (the input weights of a recurrent layer) are
computed before the loop, and those of values that are only stacked (a readout; the gradient of the slices)
behind it. `prepare` calls it.

Which ops can take all iterations at once follows from their axis rules: one that maps an axis of everything
that changes, and that the constants do not have, maps the iterations too once they are merged into that axis.
The numbers are the same up to rounding: a backend may sum a longer product in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from thalweg.errors import ThalwegError
from thalweg.graph import (
    AxisGroup,
    Builder,
    Graph,
    Kind,
    Node,
    Value,
    builder,
    located,
    remove_dead,
    rewrite,
    using,
)
from thalweg.ops.control import Cond, Scan, applied, copy_node, merge_iterations, split_iterations
from thalweg.ops.movement import broadcast_to
from thalweg.passes.subgraphs import with_subgraphs
from thalweg.types import Type

_HEAVY = 8  # operations for each element of the result, from which on an op is worth moving
_MOST_GROWTH = 4  # bytes stacked for each byte no longer stacked


def move_products(graph: Graph) -> Graph:
    """`graph` with the products of every scan that can be moved before or behind it; loops inside loops
    first.
    """
    if not any(isinstance(node.op, (Scan, Cond)) for node in graph.nodes):
        return graph

    def rule(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        op = with_subgraphs(node.op, move_products)
        found = _Moved(op, inputs).outputs() if isinstance(op, Scan) and op.length > 1 else None
        if found is None and op is not node.op:
            return builder().apply(op, inputs)
        return found

    return rewrite(graph, rule)


class _Moved:
    """One scan, taken apart: what is before it, the loop, and what is behind it."""

    def __init__(self, op: Scan, inputs: tuple[Value, ...]) -> None:
        self.op = op
        self.inputs = inputs
        body = op.body
        self.stacks: dict[int, Value] = {}  # id(value of the body) -> what stacks it, outside
        self.constants: dict[int, Value] = {}  # id(constant input of the body) -> the same outside
        for position, value in enumerate(inputs):
            inner = id(body.inputs[position + 1])
            if op.is_cut(position):
                self.stacks[inner] = value
            elif position >= op.carries:
                self.constants[inner] = value
        self.before = {id(node) for node in body.nodes if self._computed_before(node)}
        self.behind = self._computed_behind()

    def outputs(self) -> Sequence[Value] | None:
        """The outputs of the scan, or None where there is nothing to move."""
        if not self.before and not self.behind:
            return None
        op, body = self.op, self.op.body
        inner = [node for node in body.nodes if id(node) not in self.before and id(node) not in self.behind]
        moved = [node for node in body.nodes if id(node) in self.behind]
        wanted = [*body.outputs[op.carries :], *(value for node in moved for value in node.inputs)]
        made = {id(value) for node in inner for value in node.outputs}
        made.update(id(value) for value in body.inputs[: op.carries + 1])
        collected = list({id(v): v for v in wanted if id(v) in made and id(v) not in self.stacks}.values())
        last = self._loop(inner, collected)
        for node in moved:
            group = self._group(node)
            assert group is not None
            self._compute(node, group)
        return [*last, *(self._stack(value) for value in body.outputs[op.carries :])]

    def _stack(self, value: Value) -> Value:
        known = self.stacks.get(id(value))
        if known is None:  # a constant of the scan
            constant = self.constants[id(value)]
            return broadcast_to(constant, (self.op.length, *value.shape))  # type: ignore[no-any-return]
        return known

    # ---- which nodes move ----------------------------------------------------------------------------------

    def _computed_before(self, node: Node) -> bool:
        """Compute a node for all iterations at once, if its inputs are slices and constants and that pays."""
        if not all(id(v) in self.stacks or id(v) in self.constants for v in node.inputs) or not _is_heavy(
            node
        ):
            return False
        group = self._group(node)
        if group is None:
            return False
        self._compute(node, group)
        return True

    def _computed_behind(self) -> set[int]:
        """Ids of the nodes whose results are only stacked, where stacking their operands instead pays."""
        op, body = self.op, self.op.body
        read = {id(value) for value in body.outputs[: op.carries]}
        stacked = {id(value) for value in body.outputs[op.carries :]}
        found: set[int] = set()
        for node in reversed(body.nodes):
            if id(node) in self.before:
                continue
            is_stacked = any(id(v) in stacked for v in node.outputs) and not any(
                id(v) in read for v in node.outputs
            )
            if is_stacked and _is_heavy(node) and self._group(node) is not None:
                changing = {id(v): v for v in node.inputs if id(v) not in self.constants}
                new = [
                    v.type.nbytes for k, v in changing.items() if k not in stacked and k not in self.stacks
                ]
                if sum(new) <= _MOST_GROWTH * sum(v.type.nbytes for v in node.outputs):
                    found.add(id(node))
                    stacked.update(changing)
                    continue
            read.update(id(value) for value in node.inputs)
        return found

    def _group(self, node: Node) -> AxisGroup | None:
        """An axis of all outputs and of all inputs but the constants, which the iterations can join."""
        types = [value.type for value in node.inputs]
        changing = [id(value) not in self.constants for value in node.inputs]
        if not any(changing):
            return None
        for group in node.op.axes(*types):
            if [axis is not None for axis in group.inputs] == changing and None not in group.outputs:
                merged = [self._merged(type, axis) for type, axis in zip(types, group.inputs, strict=True)]
                results = [self._merged(v.type, a) for v, a in zip(node.outputs, group.outputs, strict=True)]
                if _infers(node, merged, results):
                    return group
        return None

    def _merged(self, type: Type, axis: int | None) -> Type:
        if axis is None:
            return type
        return Type(
            type.dtype, (*type.shape[:axis], self.op.length * type.shape[axis], *type.shape[axis + 1 :])
        )

    # ---- computing -----------------------------------------------------------------------------------------

    def _compute(self, node: Node, group: AxisGroup) -> None:
        """Append a node for all iterations at once, with its source lines."""
        with located(node.where, node.scope):
            operands = [
                self.constants[id(value)] if axis is None else merge_iterations(self.stacks[id(value)], axis)
                for value, axis in zip(node.inputs, group.inputs, strict=True)
            ]
            results = applied(node.op, operands)
            for value, result, axis in zip(node.outputs, results, group.outputs, strict=True):
                assert axis is not None
                self.stacks[id(value)] = split_iterations(result, axis, self.op.length)

    def _loop(self, nodes: Sequence[Node], collected: Sequence[Value]) -> Sequence[Value]:
        """Append what remains of the scan; returns the last carries and notes the stacks of `collected`."""
        op, body = self.op, self.op.body
        first = op.carries + op.slices + 1
        needed = {id(value) for node in nodes for value in node.inputs}
        needed.update(id(value) for value in body.outputs[: op.carries])
        computed = [
            v for node in body.nodes if id(node) in self.before for v in node.outputs if id(v) in needed
        ]
        old = [*body.inputs[:first], *computed, *body.inputs[first:]]
        mapping = {id(value): Value(value.type) for value in old}
        inputs = tuple(mapping.values())
        with using(Builder()) as target:
            for node in nodes:
                copy_node(node, mapping)
        results = tuple(mapping[id(value)] for value in (*body.outputs[: op.carries], *collected))
        graph = remove_dead(Graph(inputs, tuple(target.nodes), results, (), body.name))
        smaller = replace(op, body=graph, slices=op.slices + len(computed), residuals=0)
        cut = op.carries + op.slices
        given = [*self.inputs[:cut], *(self.stacks[id(value)] for value in computed), *self.inputs[cut:]]
        found = applied(smaller, given)
        self.stacks.update((id(v), stack) for v, stack in zip(collected, found[op.carries :], strict=True))
        return found[: op.carries]


def _infers(node: Node, inputs: Sequence[Type], outputs: Sequence[Type]) -> bool:
    """Whether the op accepts these types, and gives those: its attributes may fix a size."""
    try:
        return list(node.op.infer(*inputs)) == list(outputs)
    except ThalwegError:
        return False


def _is_heavy(node: Node) -> bool:
    """Whether an op computes much for each element of its result: products, and composites of them."""
    if node.op.kind < Kind.CONTRACTION:
        return False
    operations = node.op.operations([v.type for v in node.inputs], [v.type for v in node.outputs])
    return operations >= _HEAVY * sum(value.size for value in node.outputs)
