"""`draw`: a graph to a file, in the form that the file's name asks for."""

from __future__ import annotations

import os

from thalweg.errors import ArgumentError
from thalweg.graph import Graph
from thalweg.io.files import atomic_write
from thalweg.viz.picture import picture
from thalweg.viz.rows import rows
from thalweg.viz.svg import svg

_FORMS = {".svg": svg, ".txt": rows}


def table(graph: Graph) -> str:
    """The graph as a table: one line per op, input and parameter, with shapes, bytes and operations."""
    return rows(picture(graph))


def draw(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Draw `graph` to `path`: a picture (`.svg`) or a table (`.txt`).

    Composites stay whole; the forward part, its gradient and the update of the state are told apart. Every
    box shows the op, the module, its output, the bytes of that and the arithmetic operations. Raises
    `ArgumentError` for another ending, and `DataError` when the file cannot be written.
    """
    if not isinstance(graph, Graph):
        raise ArgumentError(
            f"draw takes a graph, received a {type(graph).__name__}; write draw(compiled.graph(x, y), path)"
        )
    ending = os.path.splitext(os.fspath(path))[1].lower()
    if ending not in _FORMS:
        raise ArgumentError(
            f"cannot draw to {os.fspath(path)!r}: the name must end in .svg (a picture) or .txt (a table)"
        )
    atomic_write(path, _FORMS[ending](picture(graph)).encode())
