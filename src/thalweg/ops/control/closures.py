"""Graphs of functions that use values from outside: what they read there becomes their last inputs.

In: the nodes that a function made (`Traced`). Out: a closed graph for `Scan` or `Cond`, and its free values.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from thalweg import types
from thalweg.graph import Builder, Graph, Node, Value, remove_dead, using
from thalweg.ops.control.branches import Cond
from thalweg.ops.control.checkpointing import Checkpoint
from thalweg.ops.control.graphs import copy_node
from thalweg.ops.control.loop import Scan
from thalweg.ops.core import Composite, apply, cast
from thalweg.ops.elementwise import StopGradient
from thalweg.ops.movement import concat, reshape, slice_axis
from thalweg.ops.sources import Constant, RandomBits, random_bits
from thalweg.types import Type


@dataclass(frozen=True, slots=True)
class Traced:
    """What a function did: the nodes that it made, its inputs and its results.

    No gradient flows through the values whose ids are in `stopped`.
    """

    nodes: Sequence[Node]
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    stopped: AbstractSet[int] = frozenset()


def closed(function: Traced, name: str, iteration: Value | None = None) -> tuple[Graph, list[Value]]:
    """The graph that computes `outputs` from `inputs`, and what it reads from outside: those are its last
    inputs.

    Constants from outside become constants inside. In the body of a scan random bits depend on the
    `iteration` (one of the inputs): a generator's state from outside is another one in every iteration.
    """
    inputs, outputs = tuple(function.inputs), tuple(function.outputs)
    traced = remove_dead(Graph(inputs, tuple(function.nodes), outputs, (), name))
    mapping = {id(value): Value(value.type) for value in inputs}
    own = tuple(mapping.values())
    added: list[Value] = []
    free: list[Value] = []
    with using(Builder()) as target:
        for value in _free_values(traced):
            if value.node is not None and isinstance(value.node.op, Constant):
                copy_node(value.node, mapping)
                continue
            free.append(value)
            added.append(Value(value.type))
            mapping[id(value)] = added[-1]
            if iteration is not None and value.type == STATE and _draws(traced, {id(value)}):
                mapping[id(value)] = fold_iteration(added[-1], mapping[id(iteration)])
        for node in traced.nodes:
            copy_node(node, mapping)
            for value in node.outputs:
                if id(value) in function.stopped:
                    mapping[id(value)] = apply(StopGradient(), mapping[id(value)])
    results = tuple(mapping[id(value)] for value in outputs)
    return Graph((*own, *added), tuple(target.nodes), results, (), name), free


def _free_values(graph: Graph) -> list[Value]:
    """Values that a graph reads and neither computes nor has as inputs, in the order of their first use."""
    known = {id(value) for value in graph.inputs}
    free: dict[int, Value] = {}
    for node in graph.nodes:
        free.update((id(value), value) for value in node.inputs if id(value) not in known)
        known.update([id(value) for value in node.outputs])
    free.update((id(value), value) for value in graph.outputs if id(value) not in known)
    return list(free.values())


STATE = Type(types.uint32, (4,))  # of a random generator
_FOLD_STREAM = 0xFFFFFFFF  # call sites count from 0


def fold_iteration(state: Any, iteration: Any) -> Any:
    """The state of a random generator for one iteration of a scan: its seed is drawn from seed and iteration.

    Nested scans fold one after the other, so that every pair of iterations has a seed of its own.
    """
    low = reshape(cast(iteration & 0xFFFFFFFF, types.uint32), (1,))
    high = reshape(cast(iteration >> 32, types.uint32), (1,))
    seed = random_bits(concat([slice_axis(state, 0, 0, 2), low, high]), (2,), _FOLD_STREAM)
    return concat([seed, slice_axis(state, 0, 2, 4)])


def _draws(graph: Graph, sources: set[int]) -> bool:
    """Whether random bits are drawn from a state that depends on one of the values with these ids."""
    reached = set(sources)
    for node in graph.nodes:
        positions = [p for p, value in enumerate(node.inputs) if id(value) in reached]
        if not positions:
            continue
        if isinstance(node.op, RandomBits):
            return True
        for inner, offset in _graphs_inside(node):
            if _draws(inner, {id(inner.inputs[p + offset]) for p in positions if p + offset >= 0}):
                return True
        reached.update([id(value) for value in node.outputs])
    return False


def _graphs_inside(node: Node) -> list[tuple[Graph, int]]:
    """Graphs that a node runs, each with the position of the node's first input among its inputs."""
    op = node.op
    if isinstance(op, Composite):
        return [(op.body(*[value.type for value in node.inputs]), 0)]
    if isinstance(op, Scan):
        return [(op.body, 1)]
    if isinstance(op, Checkpoint):
        return [(op.body, 0)]
    return [(op.then, -1), (op.otherwise, -1)] if isinstance(op, Cond) else []
