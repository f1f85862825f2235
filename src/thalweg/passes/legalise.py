"""Legalise: composites that the target does not take are replaced by their bodies, those in the bodies too.

In: a graph after differentiation (autodiff needs composites whole) and the target's `takes`. Out: a graph of
primitives and of the composites that the target has kernels for. `prepare` calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from thalweg.graph import Graph, Node, Op, Value, builder, rewrite
from thalweg.ops.control import Checkpoint
from thalweg.ops.core import Composite
from thalweg.ops.elementwise import StopGradient
from thalweg.passes.subgraphs import with_subgraphs
from thalweg.types import Type

Takes = Callable[[Node], bool]


def legalise(graph: Graph, takes: Takes) -> Graph:
    """`graph` in which every composite satisfies `takes(node)`; the others are inlined, in sub-graphs too.

    Source lines and scope of a composite pass to the nodes of its body. `stop_gradient` and `checkpoint`
    disappear: no gradient is taken of a legalised graph.
    """

    def rule(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        return _placed(node.op, inputs, [value.type for value in node.outputs], node, takes)

    return rewrite(graph, rule)


def _placed(
    op: Op, inputs: tuple[Value, ...], types: Sequence[Type], origin: Node, takes: Takes
) -> Sequence[Value]:
    """Append `op`, or the body of the composite that it is, to the current builder; `origin` gives lines and
    scope.
    """
    if isinstance(op, StopGradient):
        return inputs
    if isinstance(op, Checkpoint):
        return _region(op, inputs, takes)
    op = with_subgraphs(op, lambda inner: legalise(inner, takes))
    node = Node(op, inputs, types, origin.where, origin.scope)
    if not isinstance(op, Composite) or takes(node):
        return builder().append(node)
    body = op.body(*[value.type for value in inputs])
    mapping = {id(old): new for old, new in zip(body.inputs, inputs, strict=True)}
    for inner in body.nodes:
        arguments = tuple([mapping[id(value)] for value in inner.inputs])
        outputs = _placed(inner.op, arguments, [value.type for value in inner.outputs], origin, takes)
        mapping.update((id(old), new) for old, new in zip(inner.outputs, outputs, strict=True))
    return [mapping[id(value)] for value in body.outputs]


def _region(op: Checkpoint, inputs: tuple[Value, ...], takes: Takes) -> Sequence[Value]:
    """The nodes of a checkpointed function, with the lines and scopes of their own."""
    mapping = {id(old): new for old, new in zip(op.body.inputs, inputs, strict=True)}
    for inner in op.body.nodes:
        arguments = tuple([mapping[id(value)] for value in inner.inputs])
        outputs = _placed(inner.op, arguments, [value.type for value in inner.outputs], inner, takes)
        mapping.update((id(old), new) for old, new in zip(inner.outputs, outputs, strict=True))
    return [mapping[id(value)] for value in op.body.outputs]
