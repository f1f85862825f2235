"""Composites are inlined where the target does not take them; the pipeline and its dumps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg.ops as ops
from thalweg import types
from thalweg.autodiff import vjp
from thalweg.errors import GraphError
from thalweg.graph import Graph, Node, Value, module_scope, parse, trace_graph
from thalweg.interpret import interpret
from thalweg.ops.control import cond, scan
from thalweg.ops.core import Composite, composite, operand
from thalweg.passes import legalise, prepare, simplify
from thalweg.types import Type

X = Type(types.float32, (3, 4))


@composite
def passes_inner(x: Any) -> Any:
    return ops.exp(x) + 1.0


@composite
def passes_outer(x: Any, *, factor: float = 2.0) -> Any:
    return passes_inner(x) * factor


def names(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes if node.op.name not in ("constant", "broadcast")]


def test_golden() -> None:
    def model(x: Value) -> Any:
        with module_scope("Net.block"):
            return passes_outer(x, factor=3.0)

    graph = trace_graph(model, [X], "model")
    kept = legalise(graph, lambda node: node.op.name == "passes_inner").verify()
    lines = [line.split("  #")[0] for line in kept.text().splitlines()]
    assert lines == [
        "graph model(%0: f32[3,4]) {",
        "  %v0: f32[3,4] = passes_inner(%0)",
        '  %v1: f32[] = constant() {value=array(f32[], "AABAQA==")}',
        "  %v2: f32[3,4] = broadcast(%v1) {shape=(3, 4)}",
        "  %v3: f32[3,4] = multiply(%v0, %v2)",
        "} -> %v3",
    ]
    assert {node.where for node in kept.nodes} == {graph.nodes[0].where}
    assert {node.scope for node in kept.nodes} == {"Net.block"}


def test_what_the_target_takes_stays() -> None:
    graph = trace_graph(lambda x: passes_outer(x), [X])
    assert names(legalise(graph, lambda node: True)) == ["passes_outer"]
    assert names(legalise(graph, lambda node: False)) == ["exp", "add", "multiply"]


def test_the_target_is_asked_with_types() -> None:
    asked: list[tuple[str, list[Type]]] = []

    def takes(node: Node) -> bool:
        asked.append((node.op.name, [value.type for value in (*node.inputs, *node.outputs)]))
        return False

    legalise(trace_graph(lambda x: passes_outer(x) + x, [X]), takes)
    assert asked == [("passes_outer", [X, X]), ("passes_inner", [X, X])]


def test_sub_graphs_are_legalised() -> None:
    def loop(x: Value) -> Any:
        def body(i: Any, carries: list[Any], slices: list[Any]) -> Any:
            return cond(
                ops.sum(carries[0]) > 0.0, lambda: [passes_outer(carries[0])], lambda: [carries[0]]
            ), []

        return scan(body, [x], length=3)[0][0]

    graph = trace_graph(loop, [X])
    found = legalise(graph, lambda node: False).verify()
    body = found.nodes[0].op.attributes()["body"]
    branch = next(node for node in body.nodes if node.op.name == "cond").op.attributes()["then"]
    assert not any(isinstance(node.op, Composite) for node in branch.nodes)
    array = np.full((3, 4), 0.1, np.float32)
    np.testing.assert_array_equal(interpret(found, [array])[0], interpret(graph, [array])[0])


def test_stop_gradient_is_gone() -> None:
    def step(x: Value) -> Any:
        y = ops.sum(ops.stop_gradient(ops.sin(x)) * x)
        return (y, *vjp([y], [operand(1.0, y.dtype)], [x]))

    graph = trace_graph(step, [X])
    assert "stop_gradient" in names(simplify(graph))  # a gradient may still be asked for
    assert "stop_gradient" not in names(legalise(graph, lambda node: True))


def test_prepare_writes_each_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THALWEG_DUMP", str(tmp_path / "dump"))
    graph = trace_graph(lambda x: passes_outer(x) * 1.0, [X], "step")
    prepared = prepare(graph, lambda node: False)
    files = sorted((tmp_path / "dump").iterdir())
    assert [file.name.split(".", 1)[1] for file in files] == [
        "0-traced.txt",
        "1-simplify.txt",
        "2-products.txt",
        "3-legalise.txt",
        "4-simplify.txt",
        "5-settle.txt",
    ]
    assert all(file.name.startswith("step-") for file in files)
    assert parse(files[0].read_text()).digest() == graph.digest()
    assert parse(files[-1].read_text()).digest() == prepared.digest()


def test_prepare_verifies_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THALWEG_DEBUG", "1")
    good = trace_graph(lambda x: x + x, [X])
    prepare(good, lambda node: False)
    stranger = Graph((), good.nodes, good.outputs)
    with pytest.raises(GraphError, match="before it is computed"):
        prepare(stranger, lambda node: False)
