"""A failing program made small: fewer results, fewer nodes, values in place of what computed them.

In: a case and a test that says whether it fails. Out: the smallest case found in the time given that still
fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from thalweg.fuzz.running import Case, Program
from thalweg.graph import Builder, Graph, Node, State, Value, using
from thalweg.tensor import Buffer

Array = np.ndarray[Any, Any]


def shrink(case: Case, fails: Callable[[Case], bool], seconds: float = 60.0) -> Case:
    """The smallest failing case found: first with one result, then with the earliest value that is wrong,
    then with inputs in place of what that is computed from.
    """
    end = time.monotonic() + seconds
    known = _values(case)
    best, results, cut = case, list(case.graph.results), set[int]()

    def better(wanted: Sequence[Value], without: set[int]) -> bool:
        nonlocal best, results, cut
        if time.monotonic() > end:
            return False
        smaller = _reduced(case, known, wanted, without)
        if len(smaller.graph.nodes) >= len(best.graph.nodes) and best is not case:
            return False
        try:
            failing = fails(smaller)
        except Exception:  # another failure than the one that is looked for
            failing = False
        if failing:
            best, results, cut = smaller, list(wanted), without
        return failing

    for result in case.graph.results:
        if better([result], cut):
            break
    for node in _needed(results, cut):
        floating = [value for value in node.outputs if value is not results[0]]
        if floating and any(better([value], cut) for value in floating):
            break
    progress = True
    while progress and time.monotonic() < end:
        progress = False
        for node in reversed(_needed(results, cut)):
            outputs = {id(value) for value in node.outputs}
            if outputs.isdisjoint(id(value) for value in results) and better(results, cut | outputs):
                progress = True
                break
    return best


def _values(case: Case) -> dict[int, Array]:
    """Every value of the graph by the references."""
    sources = [*case.arrays, *(holder.data for holder in case.holders)]
    known = {id(v): np.array(a) for v, a in zip(case.graph.sources, sources, strict=True)}
    with np.errstate(all="ignore"):
        for node in case.graph.nodes:
            found = node.op.reference(*[known[id(value)] for value in node.inputs])
            outputs = found if isinstance(found, tuple) else (found,)
            known.update((id(v), np.asarray(a)) for v, a in zip(node.outputs, outputs, strict=True))
    return known


def _needed(results: Iterable[Value], cut: set[int]) -> list[Node]:
    """The nodes that compute `results` from sources and the values in `cut`, in an order that computes
    them.
    """
    found: dict[int, Node] = {}

    def visit(value: Value) -> None:
        node = value.node
        if node is None or id(value) in cut or id(node) in found:
            return
        for operand in node.inputs:
            visit(operand)
        found[id(node)] = node

    for value in results:
        visit(value)
    return list(found.values())


def _reduced(case: Case, known: dict[int, Array], results: Sequence[Value], cut: set[int]) -> Program:
    """A case with these results only; the values in `cut` are inputs, state is read and not changed."""
    nodes = _needed(results, cut)
    made = {id(value) for node in nodes for value in node.outputs}
    outside = {
        id(value): value
        for value in (*(v for node in nodes for v in node.inputs), *results)
        if id(value) not in made or id(value) in cut
    }
    copies = {key: Value(value.type) for key, value in outside.items()}
    holders, state, inputs = [], [], []
    before = {id(entry.before): entry for entry in case.graph.state}
    for key in outside:
        if key in before:
            holders.append(Buffer(known[key], name=before[key].holder.name))
            state.append(State(copies[key], None, holders[-1]))
        else:
            inputs.append(key)
    mapping = dict(copies)
    with using(Builder()) as builder:
        for node in nodes:
            operands = tuple(mapping[id(value)] for value in node.inputs)
            outputs = builder.append(
                Node(node.op, operands, [value.type for value in node.outputs], node.where, node.scope)
            )
            for old, new in zip(node.outputs, outputs, strict=True):
                mapping.setdefault(id(old), new)
    names = tuple(f"x{number}" for number in range(len(inputs)))
    graph = Graph(
        tuple(copies[key] for key in inputs),
        tuple(builder.nodes),
        tuple(mapping[id(value)] for value in results),
        tuple(state),
        case.graph.name,
        names,
    )
    return Program(graph.verify(), [known[key] for key in inputs], holders)
