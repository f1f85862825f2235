"""Tracing, source lines, scopes, inlining and the one rewrite helper."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from thalweg import types
from thalweg.autodiff import vjp
from thalweg.errors import GraphError, ShapeError
from thalweg.graph import (
    Graph,
    Node,
    State,
    Value,
    current,
    inline,
    located,
    module_scope,
    rewrite,
    trace_graph,
)
from thalweg.graph.build import remove_dead
from thalweg.graph.text import NamedHolder
from thalweg.interpret import interpret
from thalweg.ops.elementwise import add, exp, multiply, negative, tanh
from thalweg.ops.movement import reshape
from thalweg.ops.reduction import sum, var
from thalweg.types import Span, Type

X = Type(types.float64, (3,))


def _line(mark: str) -> int:
    """The number of the line of this file that ends with a comment `mark`."""
    with open(__file__) as file:
        return next(i for i, text in enumerate(file, 1) if text.rstrip().endswith(f"# {mark}"))


def _function(x: Value) -> Value:
    y = exp(x) * x  # line one
    return sum(tanh(y))  # line two


def test_nodes_carry_the_users_line() -> None:
    graph = trace_graph(_function, [X])
    lines = [(node.op.name, node.where[0].line) for node in graph.nodes]
    one, two = _line("line one"), _line("line two")
    assert lines == [("exp", one), ("multiply", one), ("tanh", two), ("sum", two)]
    assert all(
        node.where[0].file == __file__ and node.where[0].function == "_function" for node in graph.nodes
    )
    assert graph.nodes[0].where[0].text == "y = exp(x) * x  # line one"


def test_gradient_nodes_inherit_lines_and_scope() -> None:
    def gradient(x: Value) -> list[Value | None]:
        with module_scope("Net.layer"):
            y = _function(x)
        return vjp([y], [y], [x])

    graph = trace_graph(gradient, [X])
    forward = len(trace_graph(_function, [X]).nodes)
    lines = {node.where[0].line for node in graph.nodes[forward:]}
    assert lines == {_line("line one"), _line("line two")}
    assert {node.scope.split()[0] for node in graph.nodes} == {"Net.layer"}  # "Net.layer gradient"


def test_bodies_of_composites_inherit_the_line_of_the_call() -> None:
    graph = trace_graph(lambda x: var(x), [X])
    (node,) = graph.nodes
    expanded = rewrite(graph, lambda n, inputs: inline(n.op.body(*(v.type for v in inputs)), inputs))
    assert len(expanded.nodes) > 3
    assert all(inner.where == node.where for inner in expanded.nodes)


def test_located_is_for_what_is_built_inside() -> None:
    where = (Span("other.py", 7, "f"),)

    def function(x: Value) -> Value:
        with located(where, "A.b"):
            y = exp(x)
        return exp(y)

    first, second = trace_graph(function, [X]).nodes
    assert (first.where, first.scope) == (where, "A.b")
    assert (second.where[0].file, second.scope) == (__file__, "")


def test_scopes_nest_and_close_after_errors() -> None:
    def function(x: Value) -> Value:
        with module_scope("A"):
            with module_scope("A.b"):
                y = exp(x)
            y = exp(y)
        return exp(y)

    assert [node.scope for node in trace_graph(function, [X]).nodes] == ["A.b", "A", ""]
    with pytest.raises(ShapeError, match=r"^A\.fc: "), module_scope("A.fc"):
        trace_graph(lambda x: reshape(x, (4,)), [X])
    assert trace_graph(exp, [X]).nodes[0].scope == ""


def test_rewrite_keeps_everything_without_a_rule() -> None:
    graph = trace_graph(_function, [X], "f", ["x"])
    copy = rewrite(graph, lambda node, inputs: None)
    assert copy.digest() == graph.digest()
    assert copy.text() == graph.text()
    assert not {id(v) for n in copy.nodes for v in n.outputs} & {
        id(v) for n in graph.nodes for v in n.outputs
    }


def test_rewrite_replaces_and_keeps_lines() -> None:
    graph = trace_graph(_function, [X])

    def rule(node: Node, inputs: tuple[Value, ...]) -> list[Value] | None:
        return [negative(exp(inputs[0]))] if node.op.name == "tanh" else None

    changed = rewrite(graph, rule).verify()
    assert [node.op.name for node in changed.nodes] == ["exp", "multiply", "exp", "negative", "sum"]
    assert {node.where[0].line for node in changed.nodes[2:4]} == {_line("line two")}
    x = np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(interpret(changed, [x])[0], -np.exp(np.exp(x) * x).sum())


def test_rewrite_unites_lines_of_nodes_that_become_one() -> None:
    def function(x: Value) -> Value:
        first = exp(x)  # first copy
        second = exp(x)  # second copy
        return add(first, second)

    seen: dict[object, tuple[Value, ...]] = {}

    def rule(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
        if node.op.name != "exp":
            return None
        if node.op not in seen:
            seen[node.op] = (exp(inputs[0]),)
        return seen[node.op]

    one, _ = rewrite(trace_graph(function, [X]), rule).nodes
    assert [span.line for span in one.where] == [_line("first copy"), _line("second copy")]


def test_rewrite_refuses_another_type() -> None:
    graph = trace_graph(lambda x: exp(x), [X])
    with pytest.raises(GraphError, match=r"changed f64\[3\] to f64\[3,1\]"):
        rewrite(graph, lambda node, inputs: [reshape(inputs[0], (3, 1))])


def test_rewrite_maps_state() -> None:
    holder = NamedHolder("w")

    inner = trace_graph(lambda x, w: (add(x, w), multiply(x, w)), [X, X])
    x, w = inner.inputs
    graph = Graph((x,), inner.nodes, inner.outputs[:1], (State(w, inner.outputs[1], holder),)).verify()
    copy = rewrite(graph, lambda node, inputs: None).verify()
    assert copy.state[0].holder is holder
    assert copy.state[0].after is copy.nodes[1].outputs[0]
    arrays = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    np.testing.assert_array_equal(interpret(copy, arrays[:1], arrays[1:]), [[5, 7, 9], [4, 10, 18]])


def test_remove_dead_keeps_what_results_need() -> None:
    def function(x: Value) -> Value:
        exp(tanh(x))
        return negative(x)

    graph = trace_graph(function, [X])
    assert [node.op.name for node in remove_dead(graph).nodes] == ["negative"]
    alive = trace_graph(_function, [X])
    assert remove_dead(alive) is alive


def test_inline_checks_the_number_of_inputs() -> None:
    graph = trace_graph(add, [X, X])
    with pytest.raises(GraphError, match="takes 2 inputs, received 1"):
        trace_graph(lambda x: inline(graph, [x]), [X])


def test_threads_build_separately() -> None:
    sizes: list[int] = []

    def work(count: int) -> None:
        def chain(x: Value) -> Value:
            for _ in range(count):
                x = exp(x)
            return x

        sizes.append(len(trace_graph(chain, [X]).nodes) - count)

    threads = [threading.Thread(target=work, args=(100 + i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [0, 0, 0, 0]
    assert current() is None
