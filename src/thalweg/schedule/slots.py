"""Large reductions to few results, cut so that threads can share them.

In: a legalised graph without a batch. Out: the same graph, in which a sum (product, maximum, minimum) of many
elements to a few results is two: one over each slot of an axis, then one over the slots. Both the number of
slots and the order of the sums follow from the shape.
"""

from __future__ import annotations

from typing import Any

from thalweg.graph import Graph, Node, Value, rewrite
from thalweg.ops.core import apply
from thalweg.ops.elementwise import add, maximum, minimum, multiply
from thalweg.ops.movement import reshape, slice_axis
from thalweg.ops.reduction import Max, Min, Prod, Sum

FEW_RESULTS = 16  # more results are enough tasks by themselves
MANY_ELEMENTS = 1 << 17  # for one result; fewer are not worth sharing
FEWEST_SLOTS, MOST_SLOTS = 16, 64
COMBINE: dict[type, Any] = {Sum: add, Prod: multiply, Max: maximum, Min: minimum}


def cut_reductions(graph: Graph) -> Graph:
    """The graph with its large reductions in slots."""
    if not any(_is_large(node) for node in graph.nodes):
        return graph
    return rewrite(graph, lambda node, inputs: (_cut(node, inputs[0]),) if _is_large(node) else None)


def _is_large(node: Node) -> bool:
    if type(node.op) not in COMBINE:
        return False
    x, result = node.inputs[0], node.outputs[0]
    if x.dtype.short in ("f16", "bf16"):  # sums of slots would be rounded to 16 bits
        return False
    return 0 < result.size < FEW_RESULTS and x.size // result.size >= MANY_ELEMENTS


def _cut(node: Node, x: Value) -> Value:
    """Slots along the longest reduced axis, and what is left where its length has no divisor that fits."""
    op: Any = node.op
    axis = max(op.axis, key=lambda a: x.shape[a])
    extent = x.shape[axis]
    slots = max(n for n in range(1, MOST_SLOTS + 1) if extent % n == 0)
    if slots >= FEWEST_SLOTS:
        return _in_slots(op, x, axis, slots)
    whole = extent - extent % FEWEST_SLOTS
    if not whole:
        return apply(op, x)  # type: ignore[no-any-return]
    most = _in_slots(op, slice_axis(x, axis, 0, whole), axis, FEWEST_SLOTS)
    return COMBINE[type(op)](most, apply(op, slice_axis(x, axis, whole, extent)))  # type: ignore[no-any-return]


def _in_slots(op: Any, x: Value, axis: int, slots: int) -> Value:
    shape = (*x.shape[:axis], slots, x.shape[axis] // slots, *x.shape[axis + 1 :])
    inner = tuple(a + (a >= axis) for a in op.axis)
    before = sum(a not in op.axis for a in range(axis))
    return apply(type(op)((before,)), apply(type(op)(inner), reshape(x, shape)))  # type: ignore[no-any-return]

