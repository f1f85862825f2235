"""Running programs against the references: results, state and bits.

In: graphs with arrays and holders. Out: what is wrong with a compiled one, in words, or None. Called by the
fuzzer and by tests. Many graphs are built as one library, because starting a compiler takes longer than a
small program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from thalweg.codegen.c import build
from thalweg.codegen.c.program import ENTRY, Kernels, Part, Source, _entry, headers
from thalweg.graph import Graph
from thalweg.interpret import interpret
from thalweg.passes.pipeline import prepare
from thalweg.rounding import DISTURBANCES, disturbed, is_coarse, mismatch
from thalweg.runtime import program as programs

Array = np.ndarray[Any, Any]


class Case(Protocol):
    """A graph, arrays for its inputs, and the holders of its state."""

    @property
    def graph(self) -> Graph: ...

    @property
    def arrays(self) -> list[Array]: ...

    @property
    def holders(self) -> list[Any]: ...


@dataclass
class Program:
    """A case that was not drawn at random: shrunk, read from a file, or written by hand."""

    graph: Graph
    arrays: list[Array]
    holders: list[Any]


def problem(
    program: Case, native: programs.NativeProgram, threads: Sequence[int] = (1, 2, 3, 7)
) -> str | None:
    """Run a program with each number of threads: what differs from the reference or between runs, or None."""
    state = [holder.data.copy() for holder in program.holders]
    expected = interpret(program.graph, program.arrays, state)
    written_out = prepare(program.graph, lambda node: False)
    others = [disturbed(written_out, program.arrays, state, seed) for seed in range(DISTURBANCES)]
    coarse = is_coarse(written_out.nodes)
    first: list[Array] = []
    for count in threads:
        native.threads = count
        for holder, array in zip(program.holders, state, strict=True):
            holder.replace(array)
        results = native([array.copy() for array in program.arrays])
        for entry, array in zip(program.graph.state, state, strict=True):
            if entry.after is not None:
                results.append(entry.holder.data.copy())
            elif entry.holder.data.tobytes() != array.tobytes():
                return f"{entry.holder.name} has changed"
        first = first or results
        for number, (one, other) in enumerate(zip(results, first, strict=True)):
            if one.tobytes() != other.tobytes():
                return f"result {number} has other bits with {count} threads"
    for number, (found, reference, *moved) in enumerate(zip(first, expected, *others, strict=True)):
        wrong = mismatch(found, reference, moved, coarse)
        if wrong is not None:
            return f"result {number}, {reference.dtype}{reference.shape}: {wrong}"
    return None


# ---- many programs in one library ----


def build_together(graphs: Sequence[Graph]) -> list[programs.NativeProgram]:
    """The programs of several graphs, from one call of the C compiler."""
    writer = Kernels()
    plans = [programs.make_plan(graph) for graph in graphs]
    entries = []
    for number, plan in enumerate(plans):
        text = _entry(plan, writer.phases(plan), writer.loops)
        entries.append(Part(text.replace(ENTRY, f"{ENTRY}_{number}"), set()))
    units = Source([*writer.parts, *entries], writer.failures).units(2)
    library = build.library(units, "native", headers())
    found = []
    for number, (graph, plan) in enumerate(zip(graphs, plans, strict=True)):
        program = programs.NativeProgram.__new__(programs.NativeProgram)
        program.graph, program.plan, program.threads, program.unchecked = graph, plan, 1, False
        program.attach(library, f"{ENTRY}_{number}", writer.failures)
        found.append(program)
    return found
