"""Rematerialisation: values that are computed again instead of being kept from the forward pass.

`settle` ends what `thalweg.checkpoint` began: `recompute` has kept equal values apart, and disappears.
`prepare` calls it behind the last pass that merges common subexpressions.
"""

from __future__ import annotations

from collections.abc import Sequence

from thalweg.graph import Graph, Node, Value, builder, rewrite
from thalweg.ops.elementwise import Recompute
from thalweg.passes.subgraphs import with_subgraphs


def settle(graph: Graph) -> Graph:
    """`graph` without `recompute`, in sub-graphs too; nothing is merged."""
    if not _recomputes(graph):
        return graph

    def rule(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if isinstance(node.op, Recompute):
            return inputs
        op = with_subgraphs(node.op, settle)
        if op is node.op:
            return None
        return builder().append(Node(op, inputs, [v.type for v in node.outputs], node.where, node.scope))

    return rewrite(graph, rule)


def _recomputes(graph: Graph) -> bool:
    """Is there a `recompute` in a graph or its sub-graphs?"""
    return any(
        isinstance(node.op, Recompute)
        or any(isinstance(value, Graph) and _recomputes(value) for value in node.op.attributes().values())
        for node in graph.nodes
    )
