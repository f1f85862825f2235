"""The batch: which axis of which value counts samples, and whether to walk the graph depth-first over it.

Axes of all values are joined into classes by the ops' axis rules; the batch is the class over which most
operations run and which no parameter has. Batch kernels work on blocks of 16 samples, one per vector
lane, so whether that pays is decided here from shapes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thalweg.graph import Graph, Kind, Node, Value
from thalweg.ops.axes import AxisClasses
from thalweg.plan import LANES, Target
from thalweg.schedule.winograd import winograd_cost

MOST_PADDING = 2.0  # lanes computed per sample used, at most: a batch of 8 and more
REDUCTIONS = frozenset({"sum", "prod", "max", "min", "argmax", "argmin"})  # as fast along memory as in lanes
MOST_WEIGHTS = 2  # an operand that all blocks share may take this many times a core's cache
LIVE_LIMIT = 4  # activations of one block of 16 samples may take this many times a core's cache


@dataclass
class Batch:
    """`axis[id(value)]` is the batch axis of a value; `mixed` holds nodes that cannot be cut along it."""

    extent: int
    axis: dict[int, int]
    mixed: set[int]
    reduces: set[int]  # ids of nodes that sum the batch away

    def of(self, value: Value) -> int | None:
        return self.axis.get(id(value))


def find_batch(graph: Graph, target: Target) -> Batch | None:
    """The batch class, or None where there is none that pays."""
    classes = AxisClasses(graph)
    weights: dict[tuple[int, int], int] = {}
    for node in graph.nodes:
        operations = node.op.operations([v.type for v in node.inputs], [v.type for v in node.outputs]) + 1
        roots = {classes.find((id(v), axis)) for v in (*node.inputs, *node.outputs) for axis in range(v.ndim)}
        for root in roots:
            weights[root] = weights.get(root, 0) + operations
    state = {classes.find((id(e.before), axis)) for e in graph.state for axis in range(e.before.ndim)}
    candidates = [
        (weights.get(root, 0), value.shape[axis], root)
        for value in graph.inputs
        for axis in range(value.ndim)
        for root in [classes.find((id(value), axis))]
        if root not in state
    ]
    if not candidates:
        return None
    _, extent, chosen = max(candidates, key=lambda c: (c[0], c[1]))
    batch = _describe(graph, classes, chosen, extent)
    return batch if batch is not None and _pays(batch, graph, target) else None


def _describe(graph: Graph, classes: AxisClasses, chosen: tuple[int, int], extent: int) -> Batch | None:
    values = [*graph.sources, *(v for node in graph.nodes for v in node.outputs)]
    axis: dict[int, int] = {}
    for value in values:
        found = [a for a in range(value.ndim) if classes.find((id(value), a)) == chosen]
        if len(found) > 1:
            return None  # a value with the batch twice (x @ x.T): no block of it is independent
        if found:
            axis[id(value)] = found[0]
            if value.shape[found[0]] != extent:
                return None
    mixed: set[int] = set()
    reduces: set[int] = set()
    for node in graph.nodes:
        if not _consistent(node, axis):
            mixed.add(id(node))
        elif any(id(v) in axis for v in node.inputs) and not any(id(v) in axis for v in node.outputs):
            reduces.add(id(node))
    return Batch(extent, axis, mixed, reduces)


def _consistent(node: Node, axis: dict[int, int]) -> bool:
    """Does one group of the axis rule cover the batch axis of all the node's values?"""
    involved = [v for v in (*node.inputs, *node.outputs) if id(v) in axis]
    if not involved or not any(v.ndim for v in node.inputs):
        return True  # a source can be computed at any index
    if not any(id(v) in axis for v in node.inputs):
        return all(_covered(node, v, axis) for v in node.outputs if id(v) in axis)
    for group in node.op.axes(*(v.type for v in node.inputs)):
        matches = all(axis.get(id(v)) == a for v, a in zip(node.inputs, group.inputs, strict=True)) and all(
            axis.get(id(v)) == a for v, a in zip(node.outputs, group.outputs, strict=True)
        )
        if matches:
            return not group.reduced or node.op.combine == "sum"
    return False


def _covered(node: Node, value: Value, axis: dict[int, int]) -> bool:
    position = next(i for i, v in enumerate(node.outputs) if v is value)
    groups = node.op.axes(*(v.type for v in node.inputs))
    return any(group.outputs[position] == axis[id(value)] for group in groups)


def _pays(batch: Batch, graph: Graph, target: Target) -> bool:
    padded = -(-batch.extent // LANES) * LANES
    if batch.extent == 0 or padded > MOST_PADDING * batch.extent:
        return False
    anchors = [node.op.name for node in graph.nodes if node.op.kind > Kind.MOVEMENT and node.inputs]
    if not anchors:  # row-major order, unless blocks have to be transposed: that happens in registers here
        return any(node.op.name == "transpose" for node in graph.nodes)
    if all(name in REDUCTIONS for name in anchors):
        return False
    contractions = [node for node in graph.nodes if node.op.kind is Kind.CONTRACTION]
    if len(contractions) == 1 and contractions[0].op.name == "matmul":
        return False  # nothing behind it would find its result in the cache
    inside = [n for n in contractions if any(id(v) in batch.axis for v in (*n.inputs, *n.outputs))]
    if contractions and not inside:
        return False  # what is left is as fast row by row, and needs no blocks packed and unpacked
    weights = [
        v.type.nbytes
        for node in inside
        if node.op.name == "matmul"
        for v in node.inputs
        if id(v) not in batch.axis
    ]
    if max(weights, default=0) > MOST_WEIGHTS * target.cache_bytes:
        return False  # every block of samples would fetch them from afar
    largest = max(
        (
            v.type.nbytes // batch.extent * LANES
            for node in graph.nodes
            for v in node.outputs
            if id(v) in batch.axis
        ),
        default=0,
    )
    if largest > LIVE_LIMIT * target.cache_bytes:
        return False
    convolutions = [node for node in contractions if node.op.name.startswith("convolution")]
    return not convolutions or not _rows_cost_less(batch, graph, contractions, target)


# What a multiply-add of one vector costs, measured; the unit is that of winograd.py.
ON_LANES, ON_ROWS, FEW_FILTERS, DEPTHWISE = 1.15, 1.25, 2.5, 3.0
FEWEST = 8  # filters of a group that fill a row-major tile
PACKING = 0.8  # of an element between a row-major value and blocks of the batch
PASSING = 0.4  # of an element that goes to memory and comes back, where the samples do not fit the cache
ROWS_GAIN = 0.75  # share of the cost on lanes up to which row-major kernels are taken


def _rows_cost_less(batch: Batch, graph: Graph, contractions: list[Node], target: Target) -> bool:
    """Are row-major kernels much faster than blocks of the batch? So it is for many channels (Winograd's
    algorithm needs whole images), for lanes without samples, and where packing costs more than convolving."""
    padding = -(-batch.extent // LANES) * LANES / batch.extent
    fixed = {id(entry.before) for entry in graph.state if entry.after is None}
    lanes = rows = 0.0
    known = len(contractions) == 1  # that one side is much better than the other
    for node in contractions:
        dense = node.op.operations([v.type for v in node.inputs], [v.type for v in node.outputs]) / 2 / LANES
        lanes += dense * ON_LANES * padding
        found = winograd_cost(node, fixed) if target.winograd else None
        rows += dense * _on_rows(node) if found is None else found
        known = known or found is not None
    outside = [v for v in (*graph.inputs, *graph.results) if id(v) in batch.axis]
    lanes += PACKING * padding * sum(v.size for v in outside)
    inside = [v for node in contractions for v in node.outputs if id(v) in batch.axis]
    if sum(v.type.nbytes for v in inside) > target.cache_bytes:
        rows += PASSING * sum(v.size for v in inside)
    return known and rows < ROWS_GAIN * lanes


def _on_rows(node: Node) -> float:
    """The cost of a multiply-add in a row-major kernel."""
    op: Any = node.op
    if op.name == "matmul":
        return ON_LANES
    weight = node.outputs[0] if op.name == "convolution_weight_gradient" else node.inputs[1]
    filters = weight.shape[0] // op.groups
    if filters == weight.shape[1] == 1:
        return DEPTHWISE
    return ON_ROWS if min(filters, weight.shape[1] * 4) >= FEWEST else FEW_FILTERS
