"""Printing a graph and reading it back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from thalweg import types
from thalweg.errors import GraphError
from thalweg.graph import Builder, Graph, State, Value, module_scope, parse, trace_graph, using
from thalweg.graph.text import NamedHolder
from thalweg.ops.core import cast
from thalweg.ops.elementwise import add, exp
from thalweg.ops.movement import pad, reshape
from thalweg.ops.reduction import mean, sum, var
from thalweg.ops.sources import constant, full
from thalweg.types import Type

X = Type(types.float32, (2, 3))


def _again(graph: Graph) -> Graph:
    copy = parse(graph.text())
    assert copy.digest() == graph.digest()
    assert copy.text(spans=False) == graph.text(spans=False)
    return copy


def test_text_is_as_documented() -> None:
    graph = trace_graph(lambda x: sum(exp(x), 1), [X], "step", ["x"])
    assert graph.text(spans=False) == (
        "graph step(%x: f32[2,3]) {\n"
        "  %v0: f32[2,3] = exp(%x)\n"
        "  %v1: f32[2] = sum(%v0) {axis=(1,)}\n"
        "} -> %v1"
    )


def test_text_shows_lines_and_scope() -> None:
    with module_scope("Net.fc"):
        graph = trace_graph(lambda x: exp(x), [X])
    line = graph.text().splitlines()[1]
    assert "# test_graph_text.py:" in line
    assert line.endswith("in <lambda> [Net.fc]")
    _again(graph)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-5, 1e300, -1.5, math.inf, -math.inf, math.nan, 5e-324, 1e16])
def test_floats_round_trip(value: float) -> None:
    _again(trace_graph(lambda x: pad(cast(x, "float64"), 1, value), [X]))


@pytest.mark.parametrize("dtype", [d.name for d in types.ALL_DTYPES])
def test_constants_of_every_type_round_trip(dtype: str) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(types.dtype(dtype).numpy)
    copy = _again(trace_graph(lambda: (constant(array), constant(array[0, 0]), constant(array[:0])), []))
    np.testing.assert_array_equal(copy.nodes[0].op.value, array)
    assert not copy.nodes[0].op.value.flags.writeable


def test_composites_and_several_outputs_round_trip() -> None:
    _again(trace_graph(lambda x: (mean(x, 1), var(x, correction=1), x), [X]))
    _again(trace_graph(lambda x: (), [X]))
    _again(trace_graph(lambda: full((2,), True), []))


def test_state_round_trips() -> None:
    x, w, v = Value(X), Value(X), Value(X)
    with using(Builder()) as builder:
        new = add(x, w)
    state = (State(w, new, NamedHolder('a "quoted" näme')), State(v, None, NamedHolder("b")))
    graph = Graph((x,), tuple(builder.nodes), (new,), state, "step", ("x",)).verify()
    copy = _again(graph)
    assert [entry.holder.name for entry in copy.state] == ['a "quoted" näme', "b"]
    assert copy.state[0].after is copy.outputs[0]
    assert copy.state[1].after is None


@pytest.mark.parametrize(
    "names", [("v0", "v1"), ("state0", "x"), ("x", "x"), ("a b", "a_b"), ("1", "0"), ("größe", "x.y")]
)
def test_any_input_names_round_trip(names: tuple[str, str]) -> None:
    """Names of inputs never collide with each other or with those of the nodes."""
    graph = trace_graph(lambda a, b: exp(a) * b, [X, X], "f", names)
    assert parse(graph.text()).digest() == graph.digest()


@pytest.mark.parametrize("name", ["<lambda>", "two words", "", "Net.forward", "graph"])
def test_any_graph_name_round_trips(name: str) -> None:
    graph = trace_graph(lambda x: exp(x), [X], name)
    assert parse(graph.text()).digest() == graph.digest()


def test_sub_graphs_round_trip() -> None:
    from thalweg.ops.control import scan

    def function(x: Value) -> Any:
        (total,), (doubled,) = scan(lambda i, c, s: ([c[0] + s[0]], [c[0] * 2.0]), [full((3,), 0.0)], [x])
        return total, doubled

    graph = trace_graph(function, [X])
    assert any(isinstance(value, Graph) for node in graph.nodes for value in node.op.attributes().values())
    _again(graph)


def test_large_constants_are_elided_in_str() -> None:
    graph = trace_graph(lambda: constant(np.arange(1000.0)), [])
    assert len(str(graph)) < 200
    with pytest.raises(GraphError, match=r"elided.*graph\.text\(\)"):
        parse(str(graph))
    _again(graph)


GOOD = "graph f(%x: f32[2]) {\n  %v0: f32[2] = exp(%x)\n} -> %v0"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("exp", "expo", "line 2: there is no op 'expo'"),
        ("(%x)", "(%y)", "line 2: %y is used before"),
        ("f32[2] =", "f32[3] =", "shape rule"),
        ("f32[2]) {", "f33[2]) {", "line 1: 'f33' is not an element type"),
        ("-> %v0", "-> %v1", "line 3: %v1 is used before"),
        ("} ->", "}", "line 3: expected ->"),
        ("exp(%x)", "exp(%x", "line 2|line 3"),
        ("-> %v0", "-> %v0 junk", "line 3: unexpected 'junk'"),
        ("exp", "ex?p", "line 2: unexpected"),
        ("graph f", "graf f", "line 1: expected graph"),
        ("exp(%x)", "exp(%x, %x)", "line 2: exp: too many positional"),
        ("exp(%x)", "add(%x)", "line 2: add: missing a required argument"),
        ("exp(%x)", "sum(%x) {axes=(0,)}", "line 2: sum: .*'axes'"),
        ("exp(%x)", "sum(%x)", "line 2: sum: .*'axis'"),
        ("exp(%x)", "mean(%x)", "line 2: mean: attributes axis, keepdims are missing"),
        ("exp(%x)", "tan(%x, %x)", "line 2: tan: takes 1 inputs, received 2"),
        ("exp(%x)", 'constant() {value=array(f32[2], "AAAA")}', "line 2"),
    ],
)
def test_broken_text_names_the_line(old: str, new: str, message: str) -> None:
    parse(GOOD)
    assert old in GOOD
    with pytest.raises(GraphError, match=message):
        parse(GOOD.replace(old, new, 1))


@pytest.mark.parametrize("cut", range(1, len(GOOD) - 4, 3))
def test_truncated_text_is_refused(cut: int) -> None:
    with pytest.raises(GraphError):
        parse(GOOD[:cut])


def test_parsed_nodes_have_the_line_of_the_text() -> None:
    assert parse(GOOD).nodes[0].where[0].line == 2


def test_reshape_of_scalars_round_trips() -> None:
    _again(trace_graph(lambda x: reshape(x, ()), [Type(types.float32, (1,))]))
