"""Programs: compiled, loaded, callable graphs that read and update the state holders they were traced with.

`compile_graph` is what the tensor layer calls. A program checks nothing about its inputs but their types: arguments,
guards and errors are the caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg.graph import Graph
from thalweg.interpret import interpret

Array = np.ndarray[Any, Any]


class InterpretedProgram:
    """Runs the graph with the NumPy references. Its bits are outside the same-bits promise."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.holders = [entry.holder for entry in graph.state]
        self.changed = [entry.holder for entry in graph.state if entry.after is not None]

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs for the inputs; the state changes only when the whole call has succeeded."""
        results = interpret(self.graph, inputs, [holder.data for holder in self.holders])
        count = len(self.graph.outputs)
        for holder, array in zip(self.changed, results[count:], strict=True):
            holder.replace(np.array(array, order="C"))  # a copy of its own: the result may be a view of an input
        return [np.array(array, order="C") for array in results[:count]]
