"""Run a graph node by node with the ops' NumPy references: the independent oracle, and the backend
without a compiler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg.errors import GraphError, ThalwegError
from thalweg.graph import Graph, Node, Value
from thalweg.graph.build import located_error

Array = np.ndarray[Any, Any]


class Interpreter:
    """A graph made ready to run many times: every value has a slot, emptied behind its last use."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        slots = {id(value): slot for slot, value in enumerate(graph.sources)}
        self.sources = len(slots)
        last: dict[int, int] = {}
        for position, node in enumerate(graph.nodes):
            for value in node.outputs:
                slots[id(value)] = len(slots)
                last[id(value)] = position
            for value in node.inputs:
                last[id(value)] = position
        for value in graph.results:
            last.pop(id(value), None)
        dead: dict[int, list[int]] = {}
        for key, position in last.items():
            dead.setdefault(position, []).append(slots[key])
        self.steps = [
            (
                node,
                [slots[id(v)] for v in node.inputs],
                [slots[id(v)] for v in node.outputs],
                dead.get(position, []),
            )
            for position, node in enumerate(graph.nodes)
        ]
        self.results = [slots[id(value)] for value in graph.results]
        self.slots = len(slots)

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Values of `graph.results` for arrays given for `graph.sources`."""
        if len(arrays) != self.sources:
            raise GraphError(f"{self.graph.name} takes {self.sources} arrays, received {len(arrays)}")
        known: list[Any] = [*arrays, *[None] * (self.slots - self.sources)]
        with np.errstate(all="ignore"):
            for node, inputs, outputs, dead in self.steps:
                try:
                    results = node.op.reference(*[known[slot] for slot in inputs])
                except ThalwegError as error:
                    types = [value.type for value in node.inputs]
                    raise located_error(error, node.op, types, node.where, node.scope) from None
                if not isinstance(results, tuple):
                    results = (results,)
                for value, slot, result in zip(node.outputs, outputs, results, strict=True):
                    known[slot] = _checked(node, value, np.asarray(result))
                for slot in dead:
                    known[slot] = None
        return [known[slot] for slot in self.results]


def _checked(node: Node, value: Value, array: Array) -> Array:
    if array.shape != value.type.shape or array.dtype != value.type.dtype.numpy:
        raise GraphError(
            f"the reference of {node.op.name} gave {array.dtype}{array.shape}, its shape rule {value.type}"
        )
    return array


def interpret(graph: Graph, inputs: Sequence[Array], state: Sequence[Array] = ()) -> list[Array]:
    """Values of `graph.results` for arrays given for `graph.inputs` and for the state's values before.

    Each intermediate array is dropped after its last use. Raises the op's error with the user's line.
    """
    return Interpreter(graph)([*inputs, *state])
