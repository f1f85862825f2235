"""`draw`: a graph or a plan to a file, in the form that the file's name asks for."""

from __future__ import annotations

import os

from thalweg.errors import ArgumentError
from thalweg.graph import Graph
from thalweg.io.files import atomic_write
from thalweg.plan import Plan
from thalweg.viz.arena import arena_svg
from thalweg.viz.picture import picture
from thalweg.viz.rows import rows
from thalweg.viz.svg import svg

_FORMS = {".svg": svg, ".txt": rows}


def table(graph: Graph) -> str:
    """The graph as a table: one line per op, input and parameter, with shapes, bytes and operations."""
    return rows(picture(graph))


def draw(drawn: Graph | Plan, path: str | os.PathLike[str]) -> None:
    """Draw a graph or a plan to `path`: a picture (`.svg`) or a table (`.txt`).

    Of a graph, composites stay whole; the forward part, its gradient and the update of the state are told
    apart. Every box shows the op, the module, its output, the bytes of that and the arithmetic operations.
    Of a plan, the picture shows the arena over time. Raises `ArgumentError` for another ending, and
    `DataError` when the file cannot be written.
    """
    if not isinstance(drawn, (Graph, Plan)):
        raise ArgumentError(
            f"draw takes a graph or a plan, received a {type(drawn).__name__}; write "
            "draw(compiled.graph(x, y), path)"
        )
    ending = os.path.splitext(os.fspath(path))[1].lower()
    if ending not in _FORMS:
        raise ArgumentError(
            f"cannot draw to {os.fspath(path)!r}: the name must end in .svg (a picture) or .txt (a table)"
        )
    if isinstance(drawn, Plan):
        text = arena_svg(drawn) if ending == ".svg" else drawn.text(limit=None) + "\n"
    else:
        text = _FORMS[ending](picture(drawn))
    atomic_write(path, text.encode())
