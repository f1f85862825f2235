"""Random programs, compiled and compared with the references; what fails is made small and kept.

In: a first seed and a number of programs or minutes. Out: `Failure`s with a program's seed, what is wrong,
and the smallest graph that shows it, as text and arrays. Called by `thalweg fuzz`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.errors import DataError, ThalwegError
from thalweg.fuzz.programs import RandomProgram
from thalweg.fuzz.running import Case, Program, build_together, problem
from thalweg.fuzz.shrinking import shrink
from thalweg.graph import State, parse
from thalweg.io import safetensors
from thalweg.tensor import Buffer

__all__ = [
    "Failure",
    "RandomProgram",
    "build_together",
    "fuzz",
    "problem",
    "read_case",
    "trial",
    "write_case",
]

Array = np.ndarray[Any, Any]
GROUP = 20  # programs that one call of the C compiler makes


@dataclass
class Failure:
    """A program that is wrong: its seed, what is wrong with it, and the smallest case found that is, too."""

    seed: int
    wrong: str
    case: Case
    small: Case

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.wrong}\n{self.small.graph.text(limit=4096)}"


def trial(case: Case) -> str | None:
    """Build and run one case: what is wrong with it, or None."""
    try:
        (native,) = build_together([case.graph])
        return problem(case, native)
    except ThalwegError as error:
        return f"{type(error).__name__}: {error}"


def random_case(seed: int) -> RandomProgram:
    """The program of a seed, as the fuzzer draws it."""
    return RandomProgram(seed, samples=True)


def fuzz(
    seed: int, going: Callable[[int], bool], shrinking: float = 60.0
) -> Iterator[tuple[int, list[Failure]]]:
    """Groups of programs from `seed` on while `going(programs done)`: their number so far, what failed."""
    done = 0
    while going(done):
        cases = [random_case(seed + done + number) for number in range(GROUP)]
        try:
            wrong = [
                problem(c, n) for c, n in zip(cases, build_together([c.graph for c in cases]), strict=True)
            ]
        except ThalwegError:  # one of them cannot be planned, built or run
            wrong = [trial(case) for case in cases]
        done += GROUP
        found = []
        for case, reason in zip(cases, wrong, strict=True):
            if reason is not None:
                small = shrink(case, lambda other: trial(other) is not None, shrinking)
                found.append(Failure(case.seed, reason, case, small))
        yield done, found


def for_minutes(minutes: float) -> Callable[[int], bool]:
    """Whether the time is not over yet, for `fuzz`."""
    end = time.monotonic() + 60 * minutes
    return lambda done: time.monotonic() < end


# ---- on disk -----------------------------------------------------------------------------------------------


def write_case(path: str | os.PathLike[str], case: Case) -> None:
    """Write a case as one safetensors file: the graph's text and the arrays of inputs and state."""
    arrays = {f"input.{number}": array for number, array in enumerate(case.arrays)}
    arrays.update({f"state.{number}": holder.data for number, holder in enumerate(case.holders)})
    safetensors.save(path, arrays, {"graph": case.graph.text()})


def read_case(path: str | os.PathLike[str]) -> Program:
    """The case that `write_case` wrote; raises `DataError`."""
    arrays, metadata = safetensors.load(path)
    if "graph" not in metadata:
        raise DataError(f"{os.fspath(path)!r} holds no graph: it was not written by `thalweg fuzz`")
    graph = parse(metadata["graph"])
    holders = [
        Buffer(arrays[f"state.{number}"], name=entry.holder.name) for number, entry in enumerate(graph.state)
    ]
    state = [State(e.before, e.after, h) for e, h in zip(graph.state, holders, strict=True)]
    graph = type(graph)(graph.inputs, graph.nodes, graph.outputs, tuple(state), graph.name, graph.input_names)
    return Program(graph, [arrays[f"input.{number}"] for number in range(len(graph.inputs))], holders)


def save_failure(failure: Failure, directory: Path) -> Path:
    """Write the small case of a failure and its text; the path of the case."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"seed-{failure.seed}.safetensors"
    write_case(path, failure.small)
    path.with_suffix(".txt").write_text(f"{failure}\n", encoding="utf-8")
    return path
