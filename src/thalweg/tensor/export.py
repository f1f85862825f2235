"""Compiled functions as C files: from traces to the functions of an exported program. Called by
`Compiled.export_c`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thalweg.errors import ArgumentError
from thalweg.tensor import nest

if TYPE_CHECKING:
    from thalweg.codegen.c.export import Export, Function
    from thalweg.plan import Plan
    from thalweg.tensor.compile import Entry


def export_functions(
    directory: str | os.PathLike[str] | None,
    entries: Mapping[str, tuple[Entry, Plan]],
    name: str,
    embed_weights: bool,
    normalisation: Sequence[float],
) -> Export:
    """A program of traced functions, name -> (what was traced, its plan); written if there is a directory."""
    from thalweg.codegen.c.export import Export

    mean, std = map(float, normalisation)
    if not std > 0:
        raise ArgumentError(f"normalisation is a mean and a standard deviation above 0, received {std!r}")
    functions = [_function(word, entry, plan) for word, (entry, plan) in entries.items()]
    exported = Export(name, functions, embed_weights, (mean, std))
    return exported if directory is None else exported.write(directory)


def _function(name: str, entry: Entry, plan: Plan) -> Function:
    from thalweg.codegen.c.export import Function, identifier, require_exportable

    graph = entry.graph
    require_exportable(graph, name)
    count = len(graph.inputs) - len(entry.captured)
    names: list[str] = []
    for label in graph.input_names[:count]:
        names.append(identifier(label, names))
    labels = [""] * len(graph.outputs)
    nest.map_nest(lambda leaf, path: _label(leaf, path, labels), entry.result)
    results: list[str] = []
    for label in labels:
        results.append(identifier(label or "output", [*names, *results]))
    return Function(name, graph, plan, names, results, entry.captured_arrays)


def _label(leaf: Any, path: str, labels: list[str]) -> Any:
    """Note where in the result an output stands."""
    index = getattr(leaf, "index", None)
    if isinstance(index, int):
        labels[index] = f"output{path}"
    return leaf
