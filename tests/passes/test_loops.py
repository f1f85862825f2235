"""Rules for scan and cond: the loop before, what must be left of it, and equal bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import thalweg.ops as ops
from thalweg import types
from thalweg.errors import IndexRangeError
from thalweg.graph import Graph, Node, Value, trace_graph
from thalweg.interpret import interpret
from thalweg.ops.control import Cond, Scan, cond, scan
from thalweg.ops.core import cast, operand
from thalweg.passes import simplify
from thalweg.types import Type

X = Type(types.float32, (3,))
STACK = Type(types.float32, (4, 3))
MATRIX = Type(types.float32, (3, 3))
TRUTH = Type(types.bool_, ())


def check(build: Callable[..., Any], *inputs: Type) -> Graph:
    """The simplified graph, which gives the same bits."""
    graph = trace_graph(build, inputs)
    found = simplify(graph).verify()
    generator = np.random.Generator(np.random.PCG64(5))
    for truth in (True, False):
        arrays = [
            np.asarray(truth) if type is TRUTH else generator.normal(size=type.shape).astype(type.dtype.numpy)
            for type in inputs
        ]
        for result, plain in zip(interpret(found, arrays), interpret(graph, arrays), strict=True):
            assert result.dtype == plain.dtype
            np.testing.assert_array_equal(result, plain)
    return found


def names(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes if node.op.name not in ("constant", "broadcast")]


def only(graph: Graph, kind: type[Any]) -> tuple[Any, Node]:
    (node,) = (node for node in graph.nodes if isinstance(node.op, kind))
    return node.op, node


def test_unread_stacks_and_idle_carries_go() -> None:
    def run(x: Value, y: Value, xs: Value) -> Any:
        def body(i: Value, c: list[Value], s: list[Value]) -> Any:
            return [c[0] + s[0], ops.exp(c[1]), c[2] * c[0]], [ops.sin(s[0]), c[0]]

        return scan(body, [x, y, y], [xs])[0][0]

    op, node = only(check(run, X, X, STACK), Scan)
    assert (op.carries, op.slices, len(op.body.outputs), len(node.inputs)) == (1, 1, 1, 2)
    assert names(op.body) == ["add"]


def test_a_carry_that_another_one_needs_stays() -> None:
    def run(x: Value, y: Value) -> Any:
        return scan(lambda i, c, s: ([c[0] + c[1], ops.cos(c[1]), -c[2]], []), [x, y, y], length=4)[0][0]

    op, _ = only(check(run, X, X), Scan)
    assert op.carries == 2


def test_a_carry_that_never_changes_is_a_constant() -> None:
    def run(x: Value, w: Value) -> Any:
        last, stacks = scan(lambda i, c, s: ([c[0] * c[1], c[1]], [c[1]]), [x, w], length=4)
        return [*last, *stacks]

    graph = check(run, X, X)
    op, node = only(graph, Scan)
    assert (op.carries, len(node.inputs), len(op.body.outputs)) == (1, 2, 1)
    assert graph.outputs[1] is graph.inputs[1]
    assert graph.outputs[2].node is not None and graph.outputs[2].node.op.name == "broadcast"


def test_equal_slices_are_a_constant() -> None:
    def run(x: Value, w: Value) -> Any:
        stacked = ops.broadcast_to(w, (4, 3))
        zeros = ops.zeros((4, 3))
        return scan(lambda i, c, s: ([c[0] * s[0] + s[1]], []), [x], [stacked, zeros])[0]

    op, node = only(check(run, X, X), Scan)
    assert (op.slices, len(node.inputs)) == (0, 2)
    assert "constant" in [inner.op.name for inner in op.body.nodes]  # the zeros


def test_equal_slices_of_a_kept_axis_are_a_constant() -> None:
    def run(x: Value, w: Value) -> Any:
        stacked = ops.broadcast_to(ops.reshape(w, (1, 3)) * 2.0, (4, 3))
        return scan(lambda i, c, s: ([c[0] * s[0]], []), [x], [stacked])[0]

    op, node = only(check(run, X, X), Scan)
    assert op.slices == 0 and node.inputs[1].type == X


def test_equal_inputs_are_taken_once() -> None:
    def run(x: Value, xs: Value, w: Value) -> Any:
        twice = w + w

        def body(i: Value, c: list[Value], s: list[Value]) -> Any:
            return [c[0] * s[0] + s[1] * twice - (w + w)], []

        return scan(body, [x], [xs, xs])[0]

    op, node = only(check(run, X, STACK, X), Scan)
    assert op.slices == 1 and len(node.inputs) == 3


def test_stacks_that_need_no_loop() -> None:
    def run(x: Value, xs: Value, w: Value) -> Any:
        def body(i: Value, c: list[Value], s: list[Value]) -> Any:
            after = c[0] * s[0]
            return [after], [after, s[0], w, ops.zeros((3,)), after]

        return scan(body, [x], [xs])[1]

    graph = check(run, X, STACK, X)
    op, node = only(graph, Scan)
    assert len(op.body.outputs) == 2
    assert graph.outputs[0] is graph.outputs[4]
    assert graph.outputs[1] is graph.inputs[1]
    assert len(node.inputs) == 2


def test_numbers_go_inside() -> None:
    def run(x: Value) -> Any:
        two = ops.broadcast_to(operand(2.0, x.dtype), (3,))
        return scan(lambda i, c, s: ([c[0] * (two * 3.0)], []), [x], length=4)[0]

    op, node = only(check(run, X), Scan)
    assert len(node.inputs) == 1 and names(op.body) == ["multiply"]


def test_what_does_not_change_is_computed_before() -> None:
    def run(x: Value, w: Value) -> Any:
        def body(i: Value, c: list[Value], s: list[Value]) -> Any:
            return [c[0] @ ops.tanh(w @ w) + ops.broadcast_to(w[0], (3, 3))], []

        return scan(body, [x], length=4)[0]

    graph = check(run, MATRIX, MATRIX)
    op, _ = only(graph, Scan)
    assert names(graph)[-1] == "scan" and sorted(names(graph)) == ["matmul", "scan", "slice", "tanh"]
    assert sorted(names(op.body)) == ["add", "matmul"]
    assert "broadcast" in [node.op.name for node in op.body.nodes]  # larger than what it is made of: inside


def test_hoisted_nodes_keep_their_lines() -> None:
    def body(i: Value, c: list[Value], s: list[Value]) -> Any:
        return [c[0] + ops.tanh(c[1])], []

    def run(x: Value, w: Value) -> Any:
        return scan(lambda i, c, s: body(i, [c[0], w], s), [x], length=4)[0]

    graph = check(run, X, X)
    node = next(node for node in graph.nodes if node.op.name == "tanh")
    assert node.where[0].line == body.__code__.co_firstlineno + 1


def test_short_loops_unroll() -> None:
    def once(x: Value, xs: Value) -> Any:
        last, stacks = scan(lambda i, c, s: ([c[0] * s[0] + cast(i, x.dtype)], [c[0]]), [x], [xs[:1]])
        return [*last, *stacks]

    assert "scan" not in names(check(once, X, STACK))

    def never(x: Value, i: Value) -> Any:
        last, stacks = scan(lambda n, c, s: ([c[0] + ops.take(x, i, axis=0)], [c[0]]), [x], length=0)
        return [*last, *stacks]

    assert names(check(never, X, Type(types.int64, ()))) == []


def test_a_check_is_not_hoisted_out_of_a_loop_that_never_runs_but_runs_once_else() -> None:
    def run(x: Value, i: Value) -> Any:
        return scan(lambda n, c, s: ([c[0] + ops.take(x, i, axis=0)], []), [x], length=3)[0]

    graph = simplify(trace_graph(run, [X, Type(types.int64, ())]))
    with pytest.raises(IndexRangeError):
        interpret(graph, [np.zeros(3, np.float32), np.asarray(7)])


def test_nested_loops_are_simplified() -> None:
    def run(x: Value, w: Value) -> Any:
        def outer(i: Value, c: list[Value], s: list[Value]) -> Any:
            inner = scan(lambda j, d, t: ([d[0] * ops.exp(w) * 1.0], [d[0]]), [c[0]], length=4)[0]
            return inner, []

        return scan(outer, [x], length=2)[0]

    graph = check(run, X, X)
    op, _ = only(graph, Scan)
    assert names(graph) == ["exp", "scan"]
    inner, _ = only(op.body, Scan)
    assert names(inner.body) == ["multiply"] and len(inner.body.outputs) == 1


# ---- cond --------------------------------------------------------------------------------------------------


def test_a_known_predicate_takes_its_branch() -> None:
    def run(x: Value) -> Any:
        return cond(operand(True), lambda: [ops.sin(x)], lambda: [ops.cos(x)])

    assert names(check(run, X)) == ["sin"]


def test_an_inverted_predicate_swaps_the_branches() -> None:
    graph = check(lambda p, x: cond(~p, lambda: [ops.sin(x)], lambda: [ops.cos(x)]), TRUTH, X)
    op, _ = only(graph, Cond)
    assert names(graph) == ["cond"] and names(op.then) == ["cos"]


def test_branches_lose_what_they_do_not_need() -> None:
    def run(p: Value, x: Value, y: Value) -> Any:
        one = ops.ones((3,))
        found = cond(p, lambda a, b: [a * one, b, ops.exp(a)], lambda a, b: [a - y, b, ops.exp(y)], [x, y])
        return found[:2]

    graph = check(run, TRUTH, X, X)
    op, node = only(graph, Cond)
    assert len(node.inputs) == 3 and len(node.outputs) == 1
    assert names(op.then) == [] and names(op.otherwise) == ["subtract"]
    assert graph.outputs[1] is graph.inputs[2]


def test_branches_that_return_operands_only() -> None:
    graph = check(lambda p, x: cond(p, lambda: [x, x], lambda: [x, x]), TRUTH, X)
    assert names(graph) == []


def test_numbers_of_one_element_stay_inside() -> None:
    """They are computed before the loop and come back as numbers: that must end."""

    def run(x: Value, xs: Value) -> Any:
        return scan(lambda i, c, s: ([c[0] * 0.5 + s[0]], [c[0] * 2.0]), [x], [xs])[1][0]

    check(run, Type(types.float32, (1,)), Type(types.float32, (4, 1)))
    check(run, Type(types.float32, (1, 1)), Type(types.float32, (4, 1, 1)))
