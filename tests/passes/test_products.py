"""Products that leave loops: what moves, what stays, and equal numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import thalweg.ops as ops
from thalweg import types
from thalweg.autodiff import vjp
from thalweg.graph import Graph, Node, Value, trace_graph
from thalweg.interpret import interpret
from thalweg.ops.control import Scan, cond, scan
from thalweg.ops.core import operand
from thalweg.ops.linear import linear
from thalweg.passes import prepare, simplify
from thalweg.passes.products import move_products
from thalweg.types import Type

TIME, BATCH, WIDTH, HIDDEN = 6, 3, 8, 5


def spec(*shape: int) -> Type:
    return Type(types.float64, shape)


def moved(build: Callable[..., Any], *inputs: Type) -> Graph:
    """The graph after the pass, which gives the same numbers."""
    graph = simplify(trace_graph(build, inputs))
    found = move_products(graph).verify()
    generator = np.random.Generator(np.random.PCG64(3))
    arrays = [generator.normal(size=type.shape) * 0.5 for type in inputs]
    for result, plain in zip(interpret(found, arrays), interpret(graph, arrays), strict=True):
        np.testing.assert_allclose(result, plain, rtol=1e-12, atol=1e-13)
    return simplify(found).verify()


def names(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes]


def loop(graph: Graph) -> Scan:
    (op,) = (node.op for node in graph.nodes if isinstance(node.op, Scan))
    return op


def recurrent(h: Value, xs: Value, w: Value, u: Value, b: Value) -> Any:
    def body(i: Value, c: list[Value], s: list[Value]) -> Any:
        after = ops.tanh(linear(s[0], w, b) + c[0] @ u)
        return [after], [after]

    last, stacks = scan(body, [h], [xs])
    return [*last, *stacks]


SHAPES = (
    spec(BATCH, HIDDEN),
    spec(TIME, BATCH, WIDTH),
    spec(HIDDEN, WIDTH),
    spec(HIDDEN, HIDDEN),
    spec(HIDDEN),
)


def test_projections_of_slices_are_computed_before() -> None:
    graph = moved(recurrent, *SHAPES)
    (projection,) = (node for node in graph.nodes if node.op.name == "linear")
    assert projection.inputs[0].shape == (TIME * BATCH, WIDTH)
    body = loop(graph).body
    assert "linear" not in names(body) and names(body).count("matmul") == 1
    assert [v.shape for v in body.inputs] == [(), (BATCH, HIDDEN), (BATCH, HIDDEN), (HIDDEN, HIDDEN)]


def test_a_stack_of_projections() -> None:
    def run(xs: Value, v: Value, w: Value) -> Any:
        return scan(
            lambda i, c, s: ([c[0] + (s[0] @ v) @ w], []), [ops.zeros((BATCH, WIDTH), dtype="float64")], [xs]
        )[0]

    graph = moved(run, spec(TIME, BATCH, WIDTH), spec(WIDTH, WIDTH), spec(WIDTH, WIDTH))
    assert names(graph).count("matmul") == 2 and "matmul" not in names(loop(graph).body)


def test_read_outs_are_computed_behind() -> None:
    def run(h: Value, u: Value, v: Value) -> Any:
        def body(i: Value, c: list[Value], s: list[Value]) -> Any:
            after = ops.tanh(c[0] @ u)
            return [after], [after @ v, (after @ v) * 2.0]

        last, (first, second) = scan(body, [h], length=TIME)
        return [*last, first, second]

    used_twice = moved(run, spec(BATCH, WIDTH), spec(WIDTH, WIDTH), spec(WIDTH, HIDDEN))
    assert names(loop(used_twice).body).count("matmul") == 2  # the loop needs the product itself

    def once(h: Value, u: Value, v: Value) -> Any:
        def body(i: Value, c: list[Value], s: list[Value]) -> Any:
            after = ops.tanh(c[0] @ u)
            return [after], [after @ v]

        return scan(body, [h], length=TIME)[1]

    graph = moved(once, spec(BATCH, WIDTH), spec(WIDTH, WIDTH), spec(WIDTH, HIDDEN))
    assert names(loop(graph).body).count("matmul") == 1
    (product,) = (node for node in graph.nodes if node.op.name == "matmul")
    assert product.inputs[0].shape == (TIME * BATCH, WIDTH)


def test_gradients_of_slices_are_computed_behind() -> None:
    def slopes(*inputs: Value) -> Any:
        loss = ops.sum(ops.sin(recurrent(*inputs)[1]))
        return vjp([loss], [operand(1.0, loss.dtype)], inputs)

    graph = simplify(trace_graph(slopes, SHAPES))
    found = simplify(move_products(graph)).verify()
    loops = [node.op for node in found.nodes if isinstance(node.op, Scan)]
    assert [names(op.body).count("matmul") for op in loops] == [1, 1]  # only what the next iteration needs
    generator = np.random.Generator(np.random.PCG64(3))
    arrays = [generator.normal(size=type.shape) * 0.5 for type in SHAPES]
    for result, plain in zip(interpret(found, arrays), interpret(graph, arrays), strict=True):
        np.testing.assert_allclose(result, plain, rtol=1e-11, atol=1e-12)


def test_what_stays() -> None:
    def small(c: Value, xs: Value, w: Value) -> Any:  # two operations for each element
        return scan(lambda i, c, s: ([c[0] + s[0] @ w], []), [c], [xs])[0]

    assert "matmul" in names(
        loop(moved(small, spec(BATCH, HIDDEN), spec(TIME, BATCH, 1), spec(1, HIDDEN))).body
    )

    def no_axis_for_time(
        c: Value, xs: Value, w: Value
    ) -> Any:  # the slice is the right operand of a batched product
        return scan(lambda i, c, s: ([c[0] + ops.flip(s[0], 0) @ w], []), [c], [xs])[0]

    body = loop(
        moved(no_axis_for_time, spec(BATCH, HIDDEN), spec(TIME, BATCH, WIDTH), spec(WIDTH, HIDDEN))
    ).body
    assert "matmul" in names(body)  # flip computes nothing: it stays, and so does the product

    def large_operand(
        c: Value, u: Value, v: Value
    ) -> Any:  # stacking the operand would take 16 times the bytes
        def body(i: Value, c: list[Value], s: list[Value]) -> Any:
            return [c[0] * 0.5], [ops.tanh(c[0] @ u) @ v]

        return scan(body, [c], length=TIME)[1]

    body = loop(moved(large_operand, spec(BATCH, WIDTH), spec(WIDTH, 64), spec(64, 4))).body
    assert names(body).count("matmul") == 2


def test_loops_in_loops_and_branches() -> None:
    def run(h: Value, xs: Value, w: Value) -> Any:
        def outer(i: Value, c: list[Value], s: list[Value]) -> Any:
            def inner(j: Value, d: list[Value], t: list[Value]) -> Any:
                return [ops.tanh(d[0] + t[0] @ w)], []

            return scan(inner, [c[0]], [s[0]])[0], []

        (last,), _ = scan(outer, [h], [xs])
        return cond(ops.sum(h) > 0.0, lambda: scan(outer, [last], [xs])[0], lambda: [last])

    graph = moved(run, spec(BATCH, HIDDEN), spec(2, TIME, BATCH, WIDTH), spec(WIDTH, HIDDEN))

    def products(graph: Graph, inside: bool) -> list[Node]:
        found = []
        for node in graph.nodes:
            found += [node] if node.op.name == "matmul" and inside else []
            for value in node.op.attributes().values():
                if isinstance(value, Graph):
                    found += products(value, inside or isinstance(node.op, Scan))
        return found

    assert all(node.inputs[0].shape[0] >= TIME * BATCH for node in products(graph, False))


def test_the_pipeline_moves_them() -> None:
    graph = prepare(trace_graph(recurrent, SHAPES), lambda node: False).verify()
    assert names(loop(graph).body).count("matmul") == 1 and names(graph).count("matmul") == 1
    lines = {span.function for node in graph.nodes if node.op.name == "matmul" for span in node.where}
    assert "body" in lines  # the line inside the loop
