"""tw.scan, tw.fori_loop and tw.cond: nests, state, random numbers, gradients, eagerly and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import thalweg as tw
from thalweg.errors import ArgumentError, DTypeError, ShapeError, TraceError

pytestmark = pytest.mark.usefixtures("backend")  # all of this holds on every backend


def numbers(*shape: int, seed: int = 0) -> Any:
    generator = np.random.Generator(np.random.PCG64([seed, *shape]))
    return tw.tensor(generator.normal(size=shape) * 0.5, dtype="float64")


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return tw.compile(function, backend="numpy")


def close(first: Any, second: Any) -> None:
    np.testing.assert_allclose(first.numpy(), second.numpy(), rtol=1e-9, atol=1e-12)


class Pair(NamedTuple):
    hidden: Any
    cell: Any


# ---- nests -------------------------------------------------------------------------------------------------


def test_nests_of_every_kind() -> None:
    def step(carry: Any, x: Any) -> Any:
        pair, listed = carry["pair"], carry["list"]
        after = {"pair": Pair(pair.hidden + x["a"], pair.cell * 2.0), "list": [listed[0] - 1.0]}
        return after, (pair.hidden, {"cell": after["pair"].cell, "nothing": None})

    init = {"pair": Pair(tw.zeros((2,)), tw.ones(())), "list": [tw.ones((3,))]}
    xs = {"a": tw.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": None}
    for run in (tw.scan, compiled(lambda i, x: tw.scan(step, i, x))):
        carry, (stacked, more) = run(step, init, xs) if run is tw.scan else run(init, xs)
        assert isinstance(carry["pair"], Pair)
        assert carry["pair"].hidden.tolist() == [4.0, 6.0] and carry["pair"].cell.item() == 4.0
        assert carry["list"][0].tolist() == [-1.0, -1.0, -1.0]
        assert stacked.tolist() == [[0.0, 0.0], [1.0, 2.0]]
        assert more["cell"].tolist() == [2.0, 4.0] and more["nothing"] is None


def test_numbers_take_the_type_of_the_carry() -> None:
    total, _ = tw.scan(lambda c, x: (c + x, None), 0, tw.tensor([1.5, 2.0]))
    assert total.dtype is tw.float32 and total.item() == 3.5
    count, _ = tw.scan(lambda c, x: (c + 1, None), 0, length=3)
    assert count.dtype is tw.int64 and count.item() == 3


def test_reverse_and_length() -> None:
    last, stacked = tw.scan(lambda c, x: (x, c), tw.tensor(0.0), tw.tensor([1.0, 2.0, 3.0]), reverse=True)
    assert last.item() == 1.0 and stacked.tolist() == [2.0, 3.0, 0.0]
    last, stacked = tw.scan(lambda c, x: (c * 2, c), 1, length=4)
    assert last.item() == 16 and stacked.tolist() == [1, 2, 4, 8]
    last, stacked = tw.scan(lambda c, x: (c * 2, c), 1, length=0)
    assert last.item() == 1 and stacked.shape == (0,)


def test_fori_loop() -> None:
    assert tw.fori_loop(2, 6, lambda i, c: c + i, 0).item() == 14
    assert tw.fori_loop(6, 2, lambda i, c: c + i, 7).item() == 7
    assert compiled(lambda x: tw.fori_loop(0, 3, lambda i, c: c * i + x, x))(tw.tensor(2.0)).item() == 10.0


# ---- gradients ---------------------------------------------------------------------------------------------


def recurrent(weight: Any, bias: Any) -> Callable[[Any, Any], Any]:
    def run(h: Any, xs: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            h = tw.tanh(x + h @ weight + bias)
            return h, h * 2.0

        h, ys = tw.scan(step, h, xs)
        return (h * h).sum() + (ys * ys * ys).sum()

    return run


def unrolled(weight: Any, bias: Any) -> Callable[[Any, Any], Any]:
    def run(h: Any, xs: Any) -> Any:
        total = 0.0
        for x in xs:
            h = tw.tanh(x + h @ weight + bias)
            total = total + ((h * 2.0) ** 3).sum()
        return (h * h).sum() + total

    return run


@pytest.mark.parametrize("where", ["eager", "compiled"])
def test_gradients_reach_parameters_arguments_and_captured_tensors(where: str) -> None:
    weight = tw.Parameter(numbers(3, 3, seed=1), name="weight")
    bias = numbers(3, seed=2)
    h, xs = numbers(2, 3, seed=3), numbers(4, 2, 3, seed=4)
    run, plain = recurrent(weight, bias), unrolled(weight, bias)

    def slopes(function: Any) -> Callable[[Any, Any], Any]:
        def both(h: Any, xs: Any) -> Any:
            loss, found = tw.value_and_grad(function)(h, xs)
            return loss, found, tw.gradient(function(h, xs), weight)

        return both

    measure = slopes(run) if where == "eager" else compiled(slopes(run))
    loss, (by_h, by_xs), by_weight = measure(h, xs)
    expected, (plain_h, plain_xs), plain_weight = slopes(plain)(h, xs)
    for found, other in ((loss, expected), (by_h, plain_h), (by_xs, plain_xs), (by_weight, plain_weight)):
        close(found, other)


def test_second_derivatives() -> None:
    weight, bias = numbers(3, 3, seed=1), numbers(3, seed=2)
    h, xs = numbers(2, 3, seed=3), numbers(3, 2, 3, seed=4)

    def curvature(function: Any) -> Any:
        return tw.grad(lambda h: (tw.grad(lambda v: function(v, xs))(h) ** 2).sum())(h)

    close(curvature(recurrent(weight, bias)), curvature(unrolled(weight, bias)))
    close(compiled(lambda: curvature(recurrent(weight, bias)))(), curvature(unrolled(weight, bias)))


def test_gradients_inside_the_body() -> None:
    """Gradient descent as a loop: gradients of each iteration, and through all of them."""

    def descend(x: Any) -> Any:
        return tw.scan(lambda v, _: (v - 0.1 * tw.grad(lambda u: (u**4).sum())(v), None), x, length=3)[0]

    def plain(x: Any) -> Any:
        for _ in range(3):
            x = x - 0.1 * 4 * x**3
        return x

    x = numbers(4)
    close(descend(x), plain(x))
    close(tw.grad(lambda v: descend(v).sum())(x), tw.grad(lambda v: plain(v).sum())(x))
    close(compiled(lambda v: tw.grad(lambda u: descend(u).sum())(v))(x), tw.grad(lambda v: plain(v).sum())(x))


def test_no_grad_in_the_body_stops_gradients() -> None:
    def run(x: Any) -> Any:
        def step(c: Any, _: Any) -> Any:
            with tw.no_grad():
                factor = c * 2.0
            return c * factor, None

        return tw.scan(step, x, length=1)[0]

    assert tw.grad(run)(3.0).item() == 6.0
    assert compiled(tw.grad(run))(tw.tensor(3.0)).item() == 6.0


def test_history_of_an_eager_scan_is_one_step() -> None:
    parameter = tw.Parameter([2.0])
    result, _ = tw.scan(lambda c, _: (c * parameter, None), tw.ones((1,)), length=3)
    assert tw.gradient(result.sum(), parameter).tolist() == [12.0]
    with tw.no_grad():
        result, _ = tw.scan(lambda c, _: (c * parameter, None), tw.ones((1,)), length=3)
    with pytest.raises(tw.errors.GradientError):
        tw.gradient(result.sum(), parameter)


# ---- state -------------------------------------------------------------------------------------------------


def test_assigned_buffers_are_carried() -> None:
    counter = tw.Buffer(np.zeros((), np.float32), name="counter")

    def run(x: Any) -> Any:
        def step(c: Any, _: Any) -> Any:
            counter.assign(counter + 1.0)
            return c + counter, counter * 10.0

        return tw.scan(step, x, length=3)

    for function in (run, compiled(run)):
        counter.assign(0.0)
        last, stacked = function(tw.tensor(100.0))
        assert last.item() == 106.0 and stacked.tolist() == [10.0, 20.0, 30.0] and counter.item() == 3.0


def test_training_steps_in_a_loop() -> None:
    """Several steps of gradient descent in one program: assigned parameters are carried, without gradient
    between.
    """
    weight = tw.Parameter([1.0, -2.0], dtype="float64", name="weight")

    def steps(xs: Any) -> Any:
        def step(_: Any, x: Any) -> Any:
            loss = ((weight * x) ** 2).sum()
            weight.assign(weight - 0.1 * tw.gradient(loss, weight))
            return None, loss

        return tw.scan(step, None, xs)[1]

    xs = numbers(5, 2)
    expected, losses = np.array([1.0, -2.0]), []
    for x in xs.numpy():
        losses.append(((expected * x) ** 2).sum())
        expected = expected - 0.1 * 2 * expected * x * x
    for function in (steps, compiled(steps)):
        weight.assign(np.array([1.0, -2.0]))
        np.testing.assert_allclose(function(xs).numpy(), losses)
        np.testing.assert_allclose(weight.numpy(), expected)


def test_a_buffer_assigned_in_one_branch_keeps_its_value_in_the_other() -> None:
    flag = tw.Buffer(np.zeros((), np.float32))

    def mark(x: Any) -> Any:
        flag.assign(flag + x)
        return x * 2.0

    run = compiled(lambda p, x: tw.cond(p, mark, lambda v: v, x))
    assert run(tw.tensor(False), tw.tensor(3.0)).item() == 3.0 and flag.item() == 0.0
    assert run(tw.tensor(True), tw.tensor(3.0)).item() == 6.0 and flag.item() == 3.0


# ---- random numbers ----------------------------------------------------------------------------------------


def test_random_numbers_differ_by_iteration_and_agree_between_eager_and_compiled() -> None:
    def draw() -> Any:
        return tw.scan(lambda c, _: (c, tw.random.uniform((50,))), 0.0, length=5)[1]

    tw.manual_seed(11)
    first = draw().numpy()
    tw.manual_seed(11)
    second = compiled(draw)().numpy()
    np.testing.assert_array_equal(first, second)
    assert len({row.tobytes() for row in first}) == 5
    assert not np.array_equal(draw().numpy(), first)


# ---- cond --------------------------------------------------------------------------------------------------


def test_cond_values_and_gradients() -> None:
    weight = tw.Parameter([3.0], name="weight")

    def run(x: Any) -> Any:
        return tw.cond(x.sum() > 0, lambda v: {"y": (v * weight).sum()}, lambda v: {"y": (v * v).sum()}, x)[
            "y"
        ]

    for function in (run, compiled(run)):
        assert function(tw.tensor([2.0])).item() == 6.0
        assert function(tw.tensor([-2.0])).item() == 4.0
    slope = compiled(lambda x: (tw.grad(run)(x), tw.gradient(run(x), weight, allow_unused=True)))
    assert [g.tolist() for g in slope(tw.tensor([2.0]))] == [[3.0], [2.0]]
    assert [g.tolist() for g in slope(tw.tensor([-2.0]))] == [[-4.0], [0.0]]


def test_eagerly_the_chosen_function_is_simply_called() -> None:
    seen: list[float] = []

    def note(x: Any) -> Any:
        seen.append(float(x))
        return x

    assert tw.cond(tw.tensor(True), note, lambda x: x, tw.tensor(2.0)).item() == 2.0
    assert seen == [2.0]
    assert tw.cond(False, note, lambda x: x + 1, tw.tensor(2.0)).item() == 3.0


def test_in_a_composite() -> None:
    @tw.composite
    def control_polynomial(x: Any, coefficients: Any) -> Any:
        return tw.scan(lambda c, a: (c * x + a, None), tw.zeros_like(x), coefficients)[0]

    x, coefficients = numbers(3), tw.tensor([2.0, -1.0, 0.5], dtype="float64")
    close(control_polynomial(x, coefficients), 2.0 * x * x - x + 0.5)
    close(tw.grad(lambda v: control_polynomial(v, coefficients).sum())(x), 4.0 * x - 1.0)

    @tw.composite
    def control_either(x: Any) -> Any:
        return tw.cond(tw.sum(x) > 0, lambda: x * 2.0, lambda: -x)

    assert control_either(tw.tensor([1.0])).item() == 2.0 and control_either(tw.tensor([-1.0])).item() == 1.0


# ---- what is refused ---------------------------------------------------------------------------------------


def test_refused_loops() -> None:
    x, xs = tw.zeros((3,)), tw.zeros((2, 3))
    with pytest.raises(
        ShapeError, match=r"carry\['h'\] is f32\[3\] before an iteration and f32\[\] after it"
    ) as error:
        tw.scan(lambda c, x: ({"h": c["h"].sum()}, None), {"h": x}, xs)
    assert "made by sum at test_control_flow.py" in str(error.value)
    with pytest.raises(DTypeError, match=r"carry is f32\[3\] before an iteration and f64\[3\] after it"):
        tw.scan(lambda c, x: (c.astype("float64"), None), x, xs)
    with pytest.raises(ArgumentError, match=r"must return \(carry, y\), received one tensor"):
        tw.scan(lambda c, x: c, x, xs)
    with pytest.raises(ArgumentError, match="a tuple of 2 after it; it must stay the same nest"):
        tw.scan(lambda c, x: ((c, c), None), x, xs)
    with pytest.raises(ArgumentError, match="length=10"):
        tw.scan(lambda c, x: (c, None), x)
    with pytest.raises(ShapeError, match=r"sizes \[2, 3\] along axis 0"):
        tw.scan(lambda c, x: (c, None), x, [xs, tw.zeros((3,))])
    with pytest.raises(ShapeError, match="length is 5, but"):
        tw.scan(lambda c, x: (c, None), x, xs, length=5)
    with pytest.raises(ArgumentError, match="upper must be a Python integer"):
        tw.fori_loop(0, tw.tensor(3), lambda i, c: c, x)  # type: ignore[arg-type]


def test_refused_branches() -> None:
    x = tw.zeros((3,))
    with pytest.raises(DTypeError, match=r"0-d bool, received f32\[\]; write for example \(x > 0\).any\(\)"):
        tw.cond(tw.tensor(1.0), lambda: x, lambda: x)
    with pytest.raises(ShapeError, match=r"0-d bool, received bool\[3\]"):
        tw.cond(x > 0, lambda: x, lambda: x)
    both = compiled(lambda p: tw.cond(p, lambda: {"y": x}, lambda: {"y": x.sum()}))
    with pytest.raises(ShapeError, match=r"result\['y'\] is f32\[3\] from the function for true and f32\[\]"):
        both(tw.tensor(True))
    nests = compiled(lambda p: tw.cond(p, lambda: (x, x), lambda: x))
    with pytest.raises(ArgumentError, match="a tuple of 2, the one for false one tensor"):
        nests(tw.tensor(True))


def test_values_are_refused_while_the_body_is_traced() -> None:
    with pytest.raises(TraceError, match="the body of scan is being traced"):
        tw.scan(lambda c, x: (c * float(x), None), tw.zeros(()), tw.zeros((2,)))
    with pytest.raises(TraceError, match="or tw"):
        tw.scan(lambda c, x: (c if c > 0 else x, None), tw.zeros(()), tw.zeros((2,)))


def test_leaked_tensors_are_named() -> None:
    kept: list[Any] = []

    def step(c: Any, x: Any) -> Any:
        kept.append(c * 2.0)
        return c, None

    tw.scan(step, tw.zeros(()), length=2)
    with pytest.raises(TraceError, match="the body of scan"):
        kept[0] + 1.0

    def leaking(x: Any) -> Any:
        tw.scan(step, x, length=2)
        return kept[-1] + 1.0

    with pytest.raises(TraceError, match="the body of scan"):
        compiled(leaking)(tw.zeros(()))
