"""Graph, node, value, op: invariants, equality of attributes, digests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from thalweg import types
from thalweg.errors import GraphError, ShapeError
from thalweg.graph import Builder, Graph, Node, State, Value, trace_graph, using
from thalweg.graph.core import attribute_key
from thalweg.graph.text import NamedHolder
from thalweg.ops.core import apply, cast
from thalweg.ops.elementwise import Add, Exp, add, exp, multiply
from thalweg.ops.movement import Pad, Reshape, reshape, transpose
from thalweg.ops.reduction import sum
from thalweg.ops.sources import constant
from thalweg.types import Span, Type

X = Type(types.float32, (2, 3))
HERE = (Span("user.py", 3, "step"),)


def _graph() -> Graph:
    return trace_graph(lambda x, y: sum(exp(x) * y + 1.0, 1), [X, X], "example", ["x", "y"])


def test_verify_accepts_traced_graphs() -> None:
    graph = _graph()
    assert graph.verify() is graph
    assert len(graph) == len(graph.nodes) == 6
    assert [str(value.type) for value in graph.outputs] == ["f32[2]"]


def test_verify_finds_broken_invariants() -> None:
    x = Value(X)
    first = Node(Exp(), (x,), [X], HERE, "")
    second = Node(Exp(), first.outputs, [X], HERE, "")

    def broken(
        message: str, inputs: Any = (x,), nodes: Any = (first, second), outputs: Any = None, **more: Any
    ) -> None:
        graph = Graph(tuple(inputs), tuple(nodes), tuple(outputs or second.outputs), **more)
        with pytest.raises(GraphError, match=message):
            graph.verify()

    Graph((x,), (first, second), second.outputs).verify()
    broken("reads a value before it is computed", nodes=(second, first))
    broken("reads a value before it is computed", inputs=())
    broken("is an input twice", inputs=(x, x))
    broken("is never computed", nodes=(first,))
    broken("is computed twice", nodes=(first, first, second))
    broken("types of its shape rule", nodes=(Node(Exp(), (x,), [Type(types.float32, (3, 2))], HERE, ""),))
    broken("has lost its source line", nodes=(Node(Exp(), (x,), [X], (), ""),))
    before, after = Value(Type(types.float32, (2,))), second.outputs[0]
    broken("would change from", state=(State(before, after, NamedHolder("w")),))
    broken("is never computed", state=(State(x, Value(X), NamedHolder("w")),), inputs=())


def test_attributes_compare_by_type_and_bits() -> None:
    different = [0, 0.0, -0.0, False, 1, True, 1.0, "1", None, (), (1,), (True,), (1.0,), types.float32, b"1"]
    keys = [attribute_key(value) for value in different]
    for i, first in enumerate(keys):
        for j, second in enumerate(keys):
            assert (first == second) is (i == j), (different[i], different[j])
    assert attribute_key(float("nan")) == attribute_key(float("nan"))
    assert attribute_key([1, 2]) == attribute_key((1, 2))
    with pytest.raises(GraphError, match="cannot be compared"):
        attribute_key({1})


def test_ops_compare_by_class_and_attributes() -> None:
    assert Reshape((2, 3)) == Reshape((2, 3))
    assert hash(Reshape((2, 3))) == hash(Reshape((2, 3)))
    assert Reshape((2, 3)) != Reshape((3, 2))
    assert Pad((1,), (0,), 0.0) != Pad((1,), (0,), -0.0)
    assert Pad((1,), (0,), 0.0) != Pad((1,), (0,), 0)
    assert Exp() != Add()


def test_constants_compare_by_content() -> None:
    def graph(array: Any) -> Graph:
        return trace_graph(lambda: constant(array), [])

    base = np.array([1.0, 2.0], np.float32)
    assert graph(base).nodes[0].op == graph(base.copy()).nodes[0].op
    others = (base.astype(np.float64), base.reshape(2, 1), np.array([1.0, -2.0], np.float32))
    for other in others:
        assert graph(base).nodes[0].op != graph(other).nodes[0].op
        assert graph(base).digest() != graph(other).digest()
    mutable = base.copy()
    kept = graph(mutable)
    before = kept.digest()
    mutable[0] = 5.0
    assert kept.nodes[0].op.value[0] == 1.0
    assert kept.digest() == before
    with pytest.raises(ValueError, match="read-only"):
        kept.nodes[0].op.value[0] = 5.0


def test_digest_is_of_the_structure_alone() -> None:
    graph = _graph()
    assert graph.digest() == _graph().digest()
    renamed = replace(graph, name="other", input_names=("a", "b"))
    assert renamed.digest() == graph.digest()
    moved = trace_graph(lambda a, b: sum(exp(a) * b + 1.0, 1), [X, X])  # another source line
    assert moved.digest() == graph.digest()
    swapped = trace_graph(lambda x, y: sum(exp(y) * x + 1.0, 1), [X, X])
    assert swapped.digest() != graph.digest()
    other_axis = trace_graph(lambda x, y: sum(exp(x) * y + 1.0, 0), [X, X])
    assert other_axis.digest() != graph.digest()
    wide = Type(types.float64, (2, 3))
    assert trace_graph(lambda x, y: sum(exp(x) * y + 1.0, 1), [wide, wide]).digest() != graph.digest()
    assert replace(graph, outputs=graph.outputs * 2).digest() != graph.digest()


def test_digest_tells_state() -> None:
    x, w = Value(X), Value(X)
    with using(Builder()) as builder:
        new = add(x, w)
    unchanged = Graph((x,), tuple(builder.nodes), (new,), (State(w, None, NamedHolder("w")),))
    changed = Graph((x,), tuple(builder.nodes), (new,), (State(w, new, NamedHolder("w")),))
    other_name = Graph((x,), tuple(builder.nodes), (new,), (State(w, new, NamedHolder("v")),))
    assert unchanged.digest() != changed.digest()
    assert changed.digest() == other_name.digest()
    assert [id(value) for value in changed.sources] == [id(x), id(w)]
    assert [id(value) for value in changed.results] == [id(new), id(new)]


def test_users_lists_each_reader_once() -> None:
    graph = trace_graph(lambda x: multiply(x, x) + exp(x), [X])
    readers = graph.users()[id(graph.inputs[0])]
    assert [node.op.name for node in readers] == ["multiply", "exp"]


def test_values_have_no_truth_value() -> None:
    with pytest.raises(GraphError, match=r"thalweg\.where"):
        trace_graph(lambda x: exp(x) if x.shape and x > 0 else x, [X])


def test_errors_name_op_shapes_and_the_users_line() -> None:
    with pytest.raises(ShapeError) as caught:
        trace_graph(lambda x: apply(Add(), x, transpose(x)), [X])  # the user's line
    message = str(caught.value)
    assert "add(f32[2,3], f32[3,2])" in message
    assert "test_graph_core.py" in message
    assert "# the user's line" in message


def test_values_cannot_be_used_outside_a_builder() -> None:
    graph = trace_graph(lambda x: x, [X])
    with pytest.raises(Exception, match=r"graph|trace"):
        reshape(graph.inputs[0], (6,))


def test_builder_with_values_computes_at_once() -> None:
    with using(Builder(evaluate=True)) as builder:
        x = builder.source(X, np.arange(6, dtype=np.float32).reshape(2, 3))
        y = sum(cast(x, "float64") * 2.0)
        assert y.data == 30.0
        assert y.data.dtype == np.float64
        assert builder.nodes == []
        assert y.node is not None
    with using(Builder(evaluate=True, record=False)) as builder:
        assert sum(builder.source(X, np.ones((2, 3), np.float32))).node is None
