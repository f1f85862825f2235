"""scan and cond against loops unrolled by hand: values, gradients, second derivatives, and what the gradient
keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import thalweg.ops as ops
from thalweg import types
from thalweg.autodiff import vjp
from thalweg.errors import DTypeError, GraphError, ShapeError
from thalweg.graph import AxisGroup, Builder, Graph, Node, Value, parse, trace_graph, using
from thalweg.interpret import interpret
from thalweg.ops.control import INDEX, STATE, Cond, Scan, cond, fold_iteration, scan
from thalweg.ops.core import cast, composite, operand
from thalweg.ops.linear import linear
from thalweg.ops.random import dropout
from thalweg.ops.sources import random_bits
from thalweg.passes import prepare, simplify
from thalweg.testing import check_gradient
from thalweg.types import Type

Array = np.ndarray[Any, Any]
Build = Callable[..., Any]


def arrays(*shapes: tuple[int, ...], dtype: str = "float64") -> list[Array]:
    generator = np.random.Generator(np.random.PCG64(len(shapes)))
    return [generator.normal(size=shape).astype(dtype) * 0.5 for shape in shapes]


def unrolled(
    body: Build,
    carries: Sequence[Any],
    xs: Sequence[Any] = (),
    length: int | None = None,
    reverse: bool = False,
) -> tuple[list[Any], list[Any]]:
    """What `scan` means."""
    count = xs[0].shape[0] if xs else length
    assert count is not None
    carries, collected = list(carries), {}
    for number in reversed(range(count)) if reverse else range(count):
        index = operand(np.asarray(number, np.int64))
        carries, collected[number] = body(index, carries, [x[number] for x in xs])
    return carries, [ops.stack([collected[n][i] for n in range(count)]) for i in range(len(collected[0]))]


def total(results: Any) -> Any:
    """A scalar that depends on every floating-point result in its own way."""
    terms = [ops.sum(ops.sin(r * (1.0 + 0.25 * i))) for i, r in enumerate(results) if r.dtype.is_floating]
    value = terms[0]
    for term in terms[1:]:
        value = value + term
    return value


def gradients(build: Build) -> Build:
    def run(*inputs: Value) -> list[Value]:
        loss = total(build(*inputs))
        wrt = [v for v in inputs if v.dtype.is_floating]
        found = vjp([loss], [operand(1.0, loss.dtype)], wrt)
        return [ops.zeros_like(v) if g is None else g for v, g in zip(wrt, found, strict=True)]

    return run


def graph_of(build: Build, inputs: Sequence[Array]) -> Graph:
    return trace_graph(build, [types.type_of(array) for array in inputs])


def compare(first: Build, second: Build, inputs: Sequence[Array], exact: bool = False) -> None:
    """Equal values, gradients and second derivatives, as traced and prepared."""
    for level, wrap in enumerate((lambda f: f, gradients, lambda f: gradients(gradients(f)))):
        graph = graph_of(wrap(first), inputs).verify()
        expected = interpret(graph_of(wrap(second), inputs), inputs)
        prepared = prepare(graph, lambda node: False).verify()
        assert parse(prepared.text()).digest() == prepared.digest()
        for found in (interpret(graph, inputs), interpret(prepared, inputs)):
            for result, plain in zip(found, expected, strict=True):
                if exact and level == 0:
                    np.testing.assert_array_equal(result, plain)
                np.testing.assert_allclose(result, plain, rtol=1e-9, atol=1e-11)


def both(build: Callable[[Build], Build], *shapes: tuple[int, ...]) -> None:
    """`build(loop)` gives the function for a way of looping."""
    inputs = arrays(*shapes)
    compare(build(scan), build(unrolled), inputs)
    check_gradient(build(scan), inputs)


def nodes_named(graph: Graph, name: str) -> list[Node]:
    return [node for node in graph.nodes if node.op.name == name]


# ---- scan against the unrolled loop ------------------------------------------------------------------------


def recurrent(loop: Build) -> Build:
    def run(h: Value, xs: Value, w: Value, u: Value, b: Value) -> list[Value]:
        def body(i: Value, carries: list[Value], slices: list[Value]) -> Any:
            after = ops.tanh(slices[0] @ w + carries[0] @ u + b)
            return [after], [after * 2.0]

        last, stacks = loop(body, [h], [xs])
        return [*last, *stacks]

    return run


def test_recurrent_network() -> None:
    both(recurrent, (3, 4), (5, 3, 2), (2, 4), (4, 4), (4,))


def test_weights_shared_by_two_uses_and_by_outside() -> None:
    def build(loop: Build) -> Build:
        def run(h: Value, w: Value) -> list[Value]:
            def body(i: Value, carries: list[Value], slices: list[Value]) -> Any:
                return [ops.tanh(carries[0] @ w + ops.transpose(carries[0] @ ops.transpose(w)))], []

            return [*loop(body, [h @ w], length=3)[0], w * w]

        return run

    both(build, (4, 4), (4, 4))


def test_several_carries_and_slices_of_which_some_are_integers() -> None:
    def build(loop: Build) -> Build:
        def run(a: Value, b: Value, xs: Value, ys: Value) -> list[Value]:
            counts = cast(ops.zeros((2,), dtype="int64"), "int64")

            def body(i: Value, carries: list[Value], slices: list[Value]) -> Any:
                first, second, count = carries
                x, y, n = slices
                moved = [second + x * cast(n, "float64"), first * y, count + n]
                return moved, [first * second, count]

            numbers = ops.reshape(ops.arange(8), (4, 2))
            last, stacks = loop(body, [a, b, counts], [xs, ys, numbers])
            return [*last, *stacks]

        return run

    both(build, (2,), (2,), (4, 2), (4, 2))


@pytest.mark.parametrize("reverse", [False, True])
def test_directions(reverse: bool) -> None:
    def build(loop: Build) -> Build:
        def run(c: Value, xs: Value) -> list[Value]:
            def body(i: Value, carries: list[Value], slices: list[Value]) -> Any:
                after = carries[0] * slices[0] + cast(i, "float64")
                return [after], [ops.sin(after), carries[0]]

            last, stacks = loop(body, [c], [xs], reverse=reverse)
            return [*last, *stacks]

        return run

    both(build, (3,), (4, 3))


def test_nothing_is_cut() -> None:
    def build(loop: Build) -> Build:
        def run(x: Value) -> list[Value]:
            last, stacks = loop(lambda i, c, s: ([c[0] * c[0] + x], [cast(i, x.dtype) * c[0]]), [x], length=4)
            return [*last, *stacks]

        return run

    both(build, (3,))


def test_nothing_is_carried() -> None:
    def build(loop: Build) -> Build:
        def run(xs: Value, w: Value) -> list[Value]:
            return list(loop(lambda i, c, s: ([], [ops.exp(s[0] @ w)]), [], [xs])[1])

        return run

    both(build, (4, 2, 3), (3, 3))


def test_nested_scans() -> None:
    def build(loop: Build) -> Build:
        def run(h: Value, xs: Value, w: Value) -> list[Value]:
            def outer(i: Value, carries: list[Value], slices: list[Value]) -> Any:
                def inner(j: Value, c: list[Value], s: list[Value]) -> Any:
                    return [ops.tanh(c[0] * w + s[0] * cast(i + j, "float64"))], [c[0]]

                (after,), stacks = loop(inner, [carries[0]], [slices[0]])
                return [after], [ops.sum(stacks[0], 0)]

            last, stacks = loop(outer, [h], [xs])
            return [*last, *stacks]

        return run

    both(build, (2,), (3, 2, 2), (2,))


def test_scan_of_cond_and_cond_of_scan() -> None:
    def choose(even: Value, x: Value, w: Value) -> Value:
        return cond(even, lambda v: [v * w], lambda v: [ops.sin(v)], [x])[0]

    def build(loop: Build) -> Build:
        def run(x: Value, w: Value) -> list[Value]:
            (after,), _ = loop(lambda i, c, s: ([choose(ops.equal(i & 1, 0), c[0], w)], []), [x], length=5)
            powers = cond(
                ops.sum(x) > 100.0,
                lambda: [after],
                lambda: list(loop(lambda i, c, s: ([c[0] * w], []), [after], length=2)[0]),
            )
            return powers

        return run

    both(build, (3,), (3,))


def test_composites_in_the_body() -> None:
    def build(loop: Build) -> Build:
        def run(h: Value, xs: Value, w: Value, b: Value) -> list[Value]:
            def body(i: Value, carries: list[Value], slices: list[Value]) -> Any:
                after = ops.softmax(linear(carries[0] + slices[0], w, b), axis=-1)
                return [after], [ops.log(after)]

            last, stacks = loop(body, [h], [xs])
            return [*last, *stacks]

        return run

    both(build, (2, 3), (4, 2, 3), (3, 3), (3,))


@pytest.mark.parametrize("length", [0, 1])
def test_short_loops(length: int) -> None:
    def run(h: Value, xs: Value, w: Value) -> list[Value]:
        def body(i: Value, carries: list[Value], slices: list[Value]) -> Any:
            after = ops.tanh(carries[0] @ w + slices[0])
            return [after], [after * 2.0]

        last, stacks = scan(body, [h], [xs])
        return [*last, *stacks]

    inputs = arrays((2, 3), (length, 2, 3), (3, 3))
    found = interpret(graph_of(run, inputs), inputs)
    assert found[1].shape == (length, 2, 3)
    if length == 0:
        np.testing.assert_array_equal(found[0], inputs[0])
    slopes = interpret(graph_of(gradients(run), inputs), inputs)
    assert [slope.shape for slope in slopes] == [array.shape for array in inputs]
    if length == 0:
        np.testing.assert_allclose(slopes[0], np.cos(inputs[0]))
        assert not slopes[2].any()
    prepared = prepare(graph_of(run, inputs), lambda node: False).verify()
    assert not nodes_named(prepared, "scan")
    for result, plain in zip(interpret(prepared, inputs), found, strict=True):
        np.testing.assert_array_equal(result, plain)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_gradients_of_constants_are_summed_in_float32(dtype: str) -> None:
    """300 terms of 1: a sum in the type itself would stop growing at 256 (bfloat16)."""

    def run(w: Value) -> Any:
        return scan(lambda i, c, s: ([c[0] + w], []), [ops.zeros((1,), dtype=dtype)], length=300)[0][0]

    def slope(w: Value) -> Any:
        return vjp([run(w)], [ops.ones((1,), dtype=dtype)], [w])[0]

    found = interpret(
        trace_graph(slope, [Type(types.dtype(dtype), (1,))]), [np.zeros(1, types.dtype(dtype).numpy)]
    )
    assert float(found[0][0]) == 300.0


# ---- what the gradient keeps and where it computes ---------------------------------------------------------


def backward(build: Build, inputs: Sequence[Array]) -> tuple[Graph, Scan, Scan]:
    """The simplified gradient graph, its forward and its backward scan."""
    graph = simplify(graph_of(gradients(build), inputs)).verify()
    first, second = (node.op for node in nodes_named(graph, "scan"))
    assert isinstance(first, Scan) and isinstance(second, Scan)
    return graph, first, second


def test_one_forward_scan_serves_value_and_gradient() -> None:
    def step(*inputs: Value) -> list[Value]:
        loss = total(recurrent(scan)(*inputs))
        return [loss, *(g for g in vjp([loss], [operand(1.0, loss.dtype)], inputs) if g is not None)]

    inputs = arrays((3, 4), (5, 3, 2), (2, 4), (4, 4), (4,))
    graph = simplify(graph_of(step, inputs))
    scans = [node.op for node in nodes_named(graph, "scan")]
    assert [(op.reverse, op.residuals) for op in scans if isinstance(op, Scan)] == [(False, 2), (True, 0)]


def test_gradients_of_weights_leave_the_loop_as_one_product() -> None:
    inputs = arrays((3, 4), (5, 3, 2), (2, 4), (4, 4), (4,))
    graph, forward, back = backward(recurrent(scan), inputs)
    assert forward.residuals == 2  # h before, and 1 - tanh^2
    assert [v.type for v in back.body.outputs[: back.carries]] == [
        Type(types.float64, (3, 4))
    ]  # no sum is carried
    products = nodes_named(graph, "matmul")
    assert sorted(node.outputs[0].shape for node in products) == [(2, 4), (4, 4)]
    assert all(node.inputs[0].shape[0] == 15 for node in products)  # 5 iterations of 3 rows
    assert [node.inputs[0].shape for node in nodes_named(graph, "sum") if node.outputs[0].shape == (4,)] == [
        (15, 4)
    ]


def test_a_gradient_that_is_no_product_is_a_carry() -> None:
    def run(h: Value, w: Value) -> list[Value]:
        return scan(lambda i, c, s: ([c[0] * w], []), [h], length=4)[0]

    _, forward, back = backward(run, arrays((3,), (3,)))
    assert back.carries == 2 and forward.residuals == 1


def test_what_is_cheap_is_computed_again() -> None:
    """Masks are kept instead of the numbers made of them; what depends on slices and constants alone is not
    kept.
    """

    def run(h: Value, xs: Value, w: Value) -> list[Value]:
        def body(i: Value, c: list[Value], s: list[Value]) -> Any:
            gate = s[0] * 2.0 + w  # cheap, from a slice and a constant
            positive = cast(c[0] > 0.0, "float64")
            return [c[0] * positive * gate], []

        return scan(body, [h], [xs])[0]

    _, forward, _ = backward(run, arrays((3,), (4, 3), (3,)))
    kept = [value.type for value in forward.body.outputs[forward.carries :]]
    assert Type(types.bool_, (3,)) in kept or len(kept) == 1
    assert all(type.shape == (3,) for type in kept) and len(kept) <= 2


def test_stacked_results_are_not_stored_twice() -> None:
    def run(h: Value, xs: Value) -> list[Value]:
        def body(i: Value, c: list[Value], s: list[Value]) -> Any:
            after = ops.exp(c[0] * s[0])
            return [after], [after]

        last, stacks = scan(body, [h], [xs])
        return [*last, *stacks]

    _, forward, _ = backward(run, arrays((3,), (4, 3)))
    assert forward.residuals == 1  # the carry before; exp itself is the stacked result


def test_only_the_gradients_that_are_asked_for_are_computed() -> None:
    def slope(h: Value, xs: Value, w: Value) -> Any:
        def body(i: Value, c: list[Value], s: list[Value]) -> Any:
            return [ops.tanh(c[0] * w) + s[0]], []

        (last,), _ = scan(body, [h], [xs])
        return vjp([ops.sum(last)], [operand(1.0, last.dtype)], [h])[0]

    graph = simplify(graph_of(slope, arrays((3,), (4, 3), (3,))))
    back = nodes_named(graph, "scan")[-1].op
    assert isinstance(back, Scan)
    assert back.carries == 1 and len(back.body.outputs) == 1


def test_carries_without_a_path_to_the_loss_have_no_gradient() -> None:
    def slope(a: Value, b: Value) -> list[Any]:
        (first, _), _ = scan(lambda i, c, s: ([c[0] * 2.0, c[1] * c[0]], []), [a, b], length=3)
        found = vjp([ops.sum(first)], [operand(1.0, a.dtype)], [a, b])
        assert found[1] is None
        return [found[0]]

    inputs = arrays((2,), (2,))
    np.testing.assert_array_equal(interpret(graph_of(slope, inputs), inputs)[0], [8.0, 8.0])


def test_gradient_lines_are_those_of_the_body() -> None:
    def body(i: Value, carries: list[Value], slices: list[Value]) -> Any:
        squared = carries[0] * carries[0]
        return [ops.sin(squared)], []

    graph = graph_of(gradients(lambda x: scan(body, [x], length=3)[0]), arrays((2,)))
    back = nodes_named(graph, "scan")[-1].op.attributes()["body"]
    first = body.__code__.co_firstlineno
    lines = {span.line for node in back.nodes for span in node.where}
    assert {first + 1, first + 2} <= lines


# ---- random numbers ----------------------------------------------------------------------------------------


STATE_ARRAY = np.array([7, 8, 9, 10], np.uint32)


def test_random_bits_differ_between_iterations_and_follow_the_seed() -> None:
    def drawn(state: Value) -> Any:
        return scan(lambda i, c, s: ([], [random_bits(state, (64,), 0)]), [], length=6)[1]

    graph = trace_graph(drawn, [STATE])
    rows = interpret(graph, [STATE_ARRAY])[0]
    assert len({row.tobytes() for row in rows}) == 6
    np.testing.assert_array_equal(interpret(simplify(graph), [STATE_ARRAY])[0], rows)
    other = interpret(graph, [np.array([7, 8, 11, 10], np.uint32)])[0]
    assert not np.array_equal(other, rows)
    outside = interpret(
        trace_graph(lambda s: random_bits(fold_iteration(s, operand(np.int64(2))), (64,), 0), [STATE]),
        [STATE_ARRAY],
    )
    np.testing.assert_array_equal(outside[0], rows[2])


def test_nested_loops_draw_anew_in_every_pair_of_iterations() -> None:
    def drawn(state: Value) -> Any:
        def outer(i: Value, c: list[Value], s: list[Value]) -> Any:
            return [], scan(lambda j, c, s: ([], [random_bits(state, (16,), 0)]), [], length=4)[1]

        return scan(outer, [], length=4)[1]

    rows = interpret(trace_graph(drawn, [STATE]), [STATE_ARRAY])[0].reshape(16, 16)
    assert len({row.tobytes() for row in rows}) == 16


def test_branches_draw_by_iteration() -> None:
    def drawn(state: Value) -> Any:
        def body(i: Value, c: list[Value], s: list[Value]) -> Any:
            return [], cond(
                ops.equal(i, 0), lambda: [random_bits(state, (9,), 0)], lambda: [random_bits(state, (9,), 0)]
            )

        return scan(body, [], length=3)[1]

    rows = interpret(trace_graph(drawn, [STATE]), [STATE_ARRAY])[0]
    assert len({row.tobytes() for row in rows}) == 3


def test_dropout_in_a_loop_has_the_gradient_of_its_mask() -> None:
    def run(x: Value, state: Value) -> list[Value]:
        return scan(lambda i, c, s: ([dropout(c[0], state, p=0.5)], []), [x], length=3)[0]

    x = np.ones(1000)
    kept = interpret(trace_graph(run, [types.type_of(x), STATE]), [x, STATE_ARRAY])[0]
    slope = interpret(
        trace_graph(lambda v, s: vjp(run(v, s), [ops.ones_like(v)], [v])[0], [types.type_of(x), STATE]),
        [x, STATE_ARRAY],
    )[0]
    np.testing.assert_array_equal(slope, kept)
    assert 60 < np.count_nonzero(kept) < 200  # an eighth


def test_data_of_the_type_of_a_state_is_left_alone() -> None:
    def run(words: Value) -> Any:
        return scan(lambda i, c, s: ([c[0] + words], []), [words], length=2)[0]

    graph = trace_graph(run, [STATE])
    np.testing.assert_array_equal(interpret(graph, [STATE_ARRAY])[0], STATE_ARRAY * 3)


# ---- the graph ---------------------------------------------------------------------------------------------


def test_free_values_become_constants_once() -> None:
    def run(x: Value, w: Value) -> Any:
        two = operand(2.0, x.dtype)
        return scan(lambda i, c, s: ([c[0] * w + w * two], []), [x], length=3)[0]

    (node,) = nodes_named(trace_graph(run, [Type(types.float32, (2,))] * 2), "scan")
    assert len(node.inputs) == 2  # the number is a constant in the body
    assert isinstance(node.op, Scan) and len(node.op.body.inputs) == 3


def test_text_round_trip() -> None:
    inputs = arrays((2,), (3, 2, 2), (2,))

    def run(h: Value, xs: Value, w: Value) -> Any:
        def outer(i: Value, c: list[Value], s: list[Value]) -> Any:
            inner = scan(lambda j, c, s: ([c[0] * s[0]], []), [c[0]], [s[0]])[0]
            return cond(ops.sum(c[0]) > 0.0, lambda: inner, lambda: [w]), []

        return scan(outer, [h], [xs])[0]

    graph = graph_of(run, inputs)
    again = parse(graph.text())
    assert again.digest() == graph.digest()
    assert again.text(spans=False) == graph.text(spans=False)
    np.testing.assert_array_equal(interpret(again, inputs)[0], interpret(graph, inputs)[0])


def test_verify_looks_into_sub_graphs() -> None:
    graph = trace_graph(
        lambda x: scan(lambda i, c, s: ([-c[0]], []), [x], length=2)[0], [Type(types.float32, ())]
    )
    body = graph.nodes[0].op.attributes()["body"]
    broken = Scan(Graph(body.inputs[:1], body.nodes, body.outputs), 2, 0, 0)
    with using(Builder()) as builder, pytest.raises(GraphError):
        builder.apply(broken, [])
        Graph((), tuple(builder.nodes), ()).verify()


def test_equal_loops_are_one_and_different_ones_are_not() -> None:
    def run(x: Value) -> Any:
        def loop(factor: float) -> Any:
            return scan(lambda i, c, s: ([c[0] * factor], []), [x], length=3)[0][0]

        return loop(3.0) + loop(3.0) + loop(5.0)

    graph = simplify(trace_graph(run, [Type(types.float32, (2,))]))
    assert len(nodes_named(graph, "scan")) == 2


@composite
def control_square(x: Any) -> Any:
    return x * x


def test_bodies_with_equally_named_composites_differ() -> None:
    """Two composites of one name (a cell run twice in a notebook): the loops must not be merged."""
    first = control_square

    def define() -> Any:
        @composite
        def control_square(x: Any) -> Any:
            return x * x * x

        return control_square

    second = define()

    def run(x: Value) -> Any:
        loops = [scan(lambda i, c, s, f=f: ([f(c[0])], []), [x], length=2)[0][0] for f in (first, second)]
        return loops[0] + loops[1]

    graph = trace_graph(run, [Type(types.float64, ())])
    x = np.asarray(3.0)
    assert interpret(simplify(graph), [x])[0] == 3.0**4 + 3.0**9


def test_axis_rules() -> None:
    def body_of(build: Build, *shapes: tuple[int, ...]) -> tuple[AxisGroup, ...]:
        graph = trace_graph(build, [Type(types.float32, shape) for shape in shapes])
        (node,) = (n for n in graph.nodes if n.op.name in ("scan", "cond"))
        return node.op.axes(*(value.type for value in node.inputs))

    groups = body_of(recurrent(scan), (3, 4), (5, 3, 2), (2, 4), (4, 4), (4,))
    assert AxisGroup((0, 1, None, None, None), (0, 1)) in groups  # the batch
    assert all(group.inputs[1] != 0 for group in groups)  # never the time

    def mixing(x: Value, xs: Value) -> Any:
        return scan(lambda i, c, s: ([c[0] + ops.flip(s[0], 0)], []), [x], [xs])[0]

    assert body_of(mixing, (3, 4), (5, 3, 4)) == (AxisGroup((1, 2), (1,)),)

    def branches(p: Value, x: Value, y: Value) -> Any:
        return cond(p > 0.0, lambda: [x + y], lambda: [ops.transpose(ops.transpose(y)) * ops.max(x, 0)])

    graph = trace_graph(branches, [Type(types.float32, s) for s in ((), (3, 4), (3, 4))])
    node = nodes_named(graph, "cond")[0]
    assert AxisGroup((None, 1, 1), (1,)) in node.op.axes(*(v.type for v in node.inputs))
    assert not any(group.outputs == (0,) for group in node.op.axes(*(v.type for v in node.inputs)))


def test_only_the_branch_that_is_taken_runs() -> None:
    def run(x: Value, i: Value) -> Any:
        return cond(x > 0.0, lambda: [x], lambda: [ops.take(ops.reshape(x, (1,)), i, axis=0)])[0]

    graph = trace_graph(run, [Type(types.float32, ()), Type(types.int64, ())])
    far = np.asarray(99)
    assert interpret(graph, [np.float32(2.0), far])[0] == 2.0
    with pytest.raises(IndexError):
        interpret(graph, [np.float32(-2.0), far])


# ---- what is refused ---------------------------------------------------------------------------------------


def test_errors_name_the_carry_and_both_types() -> None:
    x = Type(types.float32, (3,))
    with pytest.raises(DTypeError, match=r"carry 1 is f32\[3\] before an iteration and f64\[3\] after it"):
        trace_graph(
            lambda v: scan(lambda i, c, s: ([c[0], cast(c[1], "float64")], []), [v, v], length=2)[0], [x]
        )
    with pytest.raises(
        ShapeError, match=r"carry 0 is f32\[3\] before an iteration and f32\[1,3\] after it"
    ) as error:
        trace_graph(lambda v: scan(lambda i, c, s: ([ops.reshape(c[0], (1, 3))], []), [v], length=2)[0], [x])
    assert "test_control.py" in str(error.value)


def test_errors_inside_the_body_name_the_line() -> None:
    def body(i: Value, c: list[Value], s: list[Value]) -> Any:
        return [ops.concat([c[0], ops.transpose(c[0])])], []

    with pytest.raises(ShapeError, match=r"test_control.py:\d+ in body"):
        trace_graph(lambda v: scan(body, [v], length=2)[0], [Type(types.float32, (2, 3))])


def test_ops_check_their_inputs() -> None:
    inner = trace_graph(lambda i, c, x: (c + x, c), [INDEX, *[Type(types.float32, (2,))] * 2])
    op = Scan(inner, 4, 1, 1)
    carry, stack = Type(types.float32, (2,)), Type(types.float32, (4, 2))
    assert op.infer(carry, stack) == (carry, stack)
    with pytest.raises(ShapeError, match="2 tensors, received 1"):
        op.infer(carry)
    with pytest.raises(ShapeError, match="axis 0 must be the number of iterations, 4"):
        op.infer(carry, Type(types.float32, (5, 2)))
    with pytest.raises(ShapeError, match=r"slices of tensor 0 are f32\[3\], the body takes f32\[2\]"):
        op.infer(carry, Type(types.float32, (4, 3)))
    branch = trace_graph(lambda x: x, [carry])
    with pytest.raises(ShapeError, match="a branch takes"):
        Cond(branch, branch).infer(Type(types.bool_, ()), stack)
