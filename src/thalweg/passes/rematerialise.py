"""Rematerialisation: values that are computed again instead of being kept from the forward pass.

`settle` ends what `thalweg.checkpoint` began: `recompute` has kept equal values apart, and disappears.
`prepare` calls it behind the last pass that merges common subexpressions.

`rematerialise` does the same without being asked for by the user's code: `schedule.fit` says for which
segments of the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from thalweg.graph import Builder, Graph, Kind, Node, State, Value, builder, remove_dead, rewrite, using
from thalweg.ops.elementwise import Recompute
from thalweg.ops.sources import Constant
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


# ---- an automatic choice -----------------------------------------------------------------------------------

MOST_SEGMENTS = 32
CONTRACTIONS_PER_SEGMENT = 3  # about half a Transformer block, or a residual block


@dataclass(frozen=True)
class Segments:
    """The forward pass of a prepared graph, cut where little is handed on."""

    graph: Graph
    forward: int  # nodes before the first of the gradient
    cuts: tuple[int, ...]  # positions at which segments begin, 0 and `forward` included

    def __len__(self) -> int:
        return len(self.cuts) - 1


def find_segments(graph: Graph) -> Segments:
    """Cuts of the forward pass at the places where the fewest bytes are handed on, evenly spread over it."""
    nodes = graph.nodes
    forward = next((n for n, node in enumerate(nodes) if node.scope.endswith("gradient")), 0)
    last: dict[int, int] = {}  # id(value) -> the last node of the forward pass that reads it
    for position, node in enumerate(nodes[:forward]):
        for value in node.inputs:
            last[id(value)] = position
    crossing = [0] * (forward + 1)  # bytes that are handed on from before a position to behind it
    for position, node in enumerate(nodes[:forward]):
        for value in node.outputs:
            if id(value) in last:
                crossing[position + 1] += value.type.nbytes
                crossing[last[id(value)] + 1] -= value.type.nbytes
    crossing = list(accumulate(crossing))
    heavy = [n for n in range(forward) if nodes[n].op.kind >= Kind.CONTRACTION]
    count = min(MOST_SEGMENTS, len(heavy) // CONTRACTIONS_PER_SEGMENT)
    cuts = [0]
    for number in range(1, count):
        begin = heavy[(2 * number - 1) * len(heavy) // (2 * count)]
        end = heavy[(2 * number + 1) * len(heavy) // (2 * count)]
        cut = min(range(begin + 1, end + 1), key=lambda p: crossing[p])
        if cut > cuts[-1]:
            cuts.append(cut)
    return Segments(graph, forward, (*cuts, forward) if forward else (0,))


def rematerialise(found: Segments, levels: Sequence[int]) -> Graph:
    """The graph in which the gradient computes values of the forward pass again instead of keeping them.

    `levels` has a number for each segment: 0 keeps what the gradient reads, 1 recomputes all but the results
    of contractions and loops, 2 everything inside from what is handed on into the segment. The recomputed
    nodes are copies of those of the forward pass, so all results have the same bits.
    """
    graph = found.graph
    segment: dict[int, int] = {}  # id(node) -> its segment
    for number in range(len(found)):
        for node in graph.nodes[found.cuts[number] : found.cuts[number + 1]]:
            segment[id(node)] = number
    lost = _lost(found, levels, segment)
    mapping: dict[int, Value] = {id(value): Value(value.type) for value in graph.sources}
    again: dict[int, Value] = {}

    def recomputed(value: Value) -> Value:
        """The value for the gradient: the one of the forward pass, or a copy that is computed now."""
        if id(value) not in lost:
            return mapping[id(value)]
        stack = [value]
        while stack:
            top = stack[-1]
            node = top.node
            assert node is not None
            waiting = [v for v in node.inputs if id(v) in lost and id(v) not in again]
            if id(top) not in again and waiting:
                stack += waiting
                continue
            stack.pop()
            if id(top) not in again:
                inputs = tuple([again.get(id(v), mapping[id(v)]) for v in node.inputs])
                scope = f"{node.scope} recomputed".lstrip()
                copy = Node(node.op, inputs, [v.type for v in node.outputs], node.where, scope)
                outputs = builder().append(copy)
                again.update((id(old), new) for old, new in zip(node.outputs, outputs, strict=True))
        return again[id(value)]

    with using(Builder()) as target:
        for position, node in enumerate(graph.nodes):
            late = position >= found.forward
            inputs = tuple([recomputed(v) if late else mapping[id(v)] for v in node.inputs])
            copy = Node(node.op, inputs, [v.type for v in node.outputs], node.where, node.scope)
            outputs = target.append(copy)
            mapping.update((id(old), new) for old, new in zip(node.outputs, outputs, strict=True))
    state = tuple(
        State(mapping[id(e.before)], None if e.after is None else mapping[id(e.after)], e.holder)
        for e in graph.state
    )
    return remove_dead(
        replace(
            graph,
            inputs=tuple(mapping[id(v)] for v in graph.inputs),
            nodes=tuple(target.nodes),
            outputs=tuple(mapping[id(v)] for v in graph.outputs),
            state=state,
        )
    )


def _lost(found: Segments, levels: Sequence[int], segment: dict[int, int]) -> set[int]:
    """Ids of the values that are not kept for the gradient."""
    graph = found.graph
    lost: set[int] = set()
    for node in graph.nodes[: found.forward]:
        level = levels[segment[id(node)]]
        heavy = node.op.kind >= Kind.CONTRACTION and not isinstance(node.op, Constant)
        if level == 2 or (level == 1 and not heavy):
            lost.update(id(value) for value in node.outputs)
    for node in graph.nodes[: found.forward]:  # what is handed on to another segment stays
        for value in node.inputs:
            if value.node is not None and segment[id(value.node)] != segment[id(node)]:
                lost.discard(id(value))
    return lost - {id(value) for value in graph.results}
