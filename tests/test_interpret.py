"""The interpreter: the independent oracle."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest

from thalweg import types
from thalweg.errors import GraphError, IndexRangeError
from thalweg.graph import Graph, Kind, Op, State, Value, module_scope, trace_graph
from thalweg.graph.text import NamedHolder
from thalweg.interpret import interpret
from thalweg.ops.core import apply
from thalweg.ops.elementwise import add, exp, log, multiply
from thalweg.ops.indexing import gather
from thalweg.ops.reduction import sum
from thalweg.types import Type

X = Type(types.float32, (3,))
ONES = np.ones(3, np.float32)


def test_results_are_outputs_then_state() -> None:
    inner = trace_graph(lambda x, w: (exp(x), add(x, w)), [X, X])
    x, w = inner.inputs
    state = (State(w, inner.outputs[1], NamedHolder("w")), State(Value(X), None, NamedHolder("v")))
    graph = Graph((x,), inner.nodes, inner.outputs[:1], state)
    first, second = interpret(graph, [ONES], [2 * ONES, ONES])
    np.testing.assert_allclose(first, np.exp(ONES))
    np.testing.assert_array_equal(second, 3 * ONES)


def test_outputs_may_be_inputs_or_repeated() -> None:
    graph = trace_graph(lambda x: (x, exp(x), x), [X])
    results = interpret(graph, [ONES])
    assert results[0] is ONES
    assert results[2] is ONES


@pytest.mark.parametrize("count", [0, 2])
def test_number_of_inputs_is_checked(count: int) -> None:
    with pytest.raises(GraphError, match=f"takes 1 arrays, received {count}"):
        interpret(trace_graph(exp, [X], "f"), [ONES] * count)


def test_errors_name_module_and_line() -> None:
    with module_scope("Net.embedding"):
        graph = trace_graph(gather, [X, Type(types.int64, (2,))])
    with pytest.raises(IndexRangeError) as caught:
        interpret(graph, [ONES, np.array([0, 3])])
    message = str(caught.value)
    assert message.startswith("Net.embedding: gather: index 3 (at position (1,) of the indices)")
    assert "gather(f32[3], i64[2])" in message
    assert "test_interpret.py" in message


def test_special_values_raise_no_warnings() -> None:
    graph = trace_graph(lambda x: log(x) / x, [X])
    (result,) = interpret(graph, [np.array([0.0, -1.0, np.inf], np.float32)])
    np.testing.assert_array_equal(result, np.array([-np.inf, np.nan, np.nan], np.float32))


class _Wrong(Op):
    """Its reference does not follow its shape rule."""

    name = "wrong"
    kind = Kind.OPAQUE

    def __init__(self, result: Any) -> None:
        self.result = result

    def infer(self, *inputs: Type) -> tuple[Type, ...]:
        return (X,)

    def reference(self, *inputs: Any) -> Any:
        return self.result


@pytest.mark.parametrize("result", [np.ones(3), np.ones((3, 1), np.float32), np.float32(1), (ONES, ONES), ()])
def test_references_must_follow_the_shape_rule(result: Any) -> None:
    graph = trace_graph(lambda: apply(_Wrong(result)), [])
    with pytest.raises((GraphError, ValueError)):
        interpret(graph, [])
    assert interpret(trace_graph(lambda: apply(_Wrong(ONES)), []), [])[0] is ONES


def test_intermediate_arrays_are_dropped() -> None:
    alive: list[weakref.ref[Any]] = []
    counts: list[int] = []

    class Watch(Op):
        name = "watch"
        kind = Kind.OPAQUE

        def infer(self, x: Type) -> tuple[Type, ...]:
            return (x,)

        def reference(self, x: np.ndarray[Any, Any]) -> Any:
            counts.append([reference() is not None for reference in alive].count(True))
            result = x + np.float32(1)
            alive.append(weakref.ref(result))
            return result

    def chain(x: Value) -> Value:
        for _ in range(10):
            x = apply(Watch(), x)
        return sum(multiply(x, x))

    interpret(trace_graph(chain, [X]), [ONES])
    assert len(counts) == 10
    assert max(counts) <= 2, "arrays outlive their last use"
