"""The passes in their order: what a traced graph goes through before it is scheduled.

In: a traced graph with its gradient and update. Out: the graph that `schedule` turns into a plan.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from thalweg.config import settings
from thalweg.graph import Graph, Node
from thalweg.passes.legalise import legalise
from thalweg.passes.products import move_products
from thalweg.passes.rematerialise import settle
from thalweg.passes.simplify import simplify


def prepare(graph: Graph, takes: Callable[[Node], bool]) -> Graph:
    """Simplify, move products out of loops, legalise for the target that `takes` speaks for, simplify the
    rest, settle what is to be recomputed.

    With THALWEG_DUMP the text after each pass is written there; with THALWEG_DEBUG of 1 or more each result
    is verified.
    """
    passes: list[tuple[str, Callable[[Graph], Graph]]] = [
        ("simplify", simplify),
        ("products", move_products),
        ("legalise", lambda traced: legalise(traced, takes)),
        ("simplify", simplify),
        ("settle", settle),
    ]
    directory = settings.dump
    label = f"{file_name(graph)}" if directory is not None else ""
    _finish(graph, directory, f"{label}.0-traced")
    for number, (name, run) in enumerate(passes, 1):
        graph = run(graph)
        _finish(graph, directory, f"{label}.{number}-{name}")
    return graph


def _finish(graph: Graph, directory: Path | None, label: str) -> None:
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{label}.txt").write_text(graph.text(limit=32) + "\n", encoding="utf-8")
    if settings.debug >= 1:
        graph.verify()


def file_name(graph: Graph) -> str:
    """The same for the same graph, different for graphs that share a name (one per input signature)."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', graph.name)}-{graph.digest()[:8]}"
