"""Passes inside passes: ops such as `scan` and `cond` hold graphs as attributes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from thalweg.graph import Graph, Op


def with_subgraphs(op: Op, change: Callable[[Graph], Graph]) -> Op:
    """`op` with `change` applied to every graph among its attributes; itself where nothing changes."""
    changed: dict[str, Any] = {}
    for name, value in op.attributes().items():
        if isinstance(value, Graph):
            graph = change(value)
            if graph.digest() != value.digest():
                changed[name] = graph
    return replace(op, **changed) if changed else op  # type: ignore[type-var]
