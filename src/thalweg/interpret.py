"""Run a graph node by node with the ops' NumPy references: the independent oracle, and the backend without a compiler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg.errors import GraphError, ThalwegError
from thalweg.graph import Graph
from thalweg.graph.build import located_error

Array = np.ndarray[Any, Any]


def interpret(graph: Graph, inputs: Sequence[Array], state: Sequence[Array] = ()) -> list[Array]:
    """Values of `graph.results` for arrays given for `graph.inputs` and for the state's values before.

    Each intermediate array is dropped after its last use. Raises the op's error with the user's line.
    """
    sources = graph.sources
    arrays = [*inputs, *state]
    if len(sources) != len(arrays):
        raise GraphError(f"{graph.name} takes {len(sources)} arrays, received {len(arrays)}")
    known: dict[int, Array] = {id(value): array for value, array in zip(sources, arrays, strict=True)}
    last: dict[int, int] = {}
    for position, node in enumerate(graph.nodes):
        for value in node.inputs:
            last[id(value)] = position
    keep = {id(value) for value in graph.results}
    with np.errstate(all="ignore"):
        for position, node in enumerate(graph.nodes):
            try:
                results = node.op.reference(*(known[id(value)] for value in node.inputs))
            except ThalwegError as error:
                types = [value.type for value in node.inputs]
                raise located_error(error, node.op, types, node.where, node.scope) from None
            results = results if isinstance(results, tuple) else (results,)
            for value, result in zip(node.outputs, results, strict=True):
                array = np.asarray(result)
                if array.shape != value.shape or array.dtype != value.dtype.numpy:
                    raise GraphError(
                        f"the reference of {node.op.name} gave {array.dtype}{array.shape}, its shape rule {value.type}"
                    )
                known[id(value)] = array
            for value in node.inputs:
                if last[id(value)] == position and id(value) not in keep:
                    known.pop(id(value), None)
    return [known[id(value)] for value in graph.results]
