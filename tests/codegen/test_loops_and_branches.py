"""scan and cond in compiled programs: recurrent networks train as without a loop, eagerly and by the
interpreter; short loops, loops in loops, random numbers, and indices out of range inside a body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import optim
from thalweg.errors import IndexRangeError

pytestmark = pytest.mark.usefixtures("needs_compiler")

Array = np.ndarray[Any, Any]
BATCH, STEPS, SIZE, HIDDEN = 20, 7, 3, 5


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


class Recurrent:
    """h' = tanh(x W + h U + b), read out at every step; the loop is a scan or Python's."""

    def __init__(self, loop: str) -> None:
        self.loop = loop
        self.w, self.u = (
            tw.Parameter(numbers(SIZE, HIDDEN) * 0.5),
            tw.Parameter(numbers(HIDDEN, HIDDEN) * 0.5),
        )
        self.b, self.out = tw.Parameter(np.zeros(HIDDEN, np.float32)), tw.Parameter(numbers(HIDDEN, SIZE))
        self.parameters = [self.w, self.u, self.b, self.out]

    def step(self, h: Any, x: Any) -> tuple[Any, Any]:
        h = (x @ self.w + h @ self.u + self.b).tanh()
        return h, h @ self.out

    def __call__(self, xs: Any) -> Any:
        """[steps, batch, size] to the same."""
        h = tw.zeros((xs.shape[1], HIDDEN))
        if self.loop == "scan":
            return tw.scan(self.step, h, xs)[1]
        found = []
        for t in range(xs.shape[0]):
            h, y = self.step(h, xs[t])
            found.append(y)
        return tw.stack(found)


def train(loop: str, backend: str | None, threads: int | None = None) -> tuple[list[float], list[Array]]:
    model = Recurrent(loop)
    optimizer = optim.Adam(model.parameters, lr=0.02)

    def step(xs: Any, ys: Any) -> Any:
        loss = ((model(xs) - ys) ** 2).mean()
        optimizer.minimize(loss)
        return loss

    run = step if backend is None else tw.compile(step, backend=backend, threads=threads)
    xs, ys = (tw.tensor(numbers(STEPS, BATCH, SIZE, seed=seed)) for seed in (1, 2))
    losses = [run(xs, ys).item() for _ in range(6)]
    return losses, [parameter.numpy() for parameter in model.parameters]


def test_a_recurrent_network_trains_as_without_a_loop() -> None:
    expected, weights = train("python", None)
    for loop, backend in (("scan", None), ("scan", "numpy"), ("scan", "c"), ("python", "c")):
        losses, found = train(loop, backend)
        np.testing.assert_allclose(losses, expected, rtol=1e-5, err_msg=f"{loop} {backend}")
        for one, other in zip(found, weights, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5, err_msg=f"{loop} {backend}")


def test_a_loop_has_the_same_bits_for_any_number_of_threads() -> None:
    first, weights = train("scan", "c", 1)
    for threads in (2, 3, 7):
        losses, found = train("scan", "c", threads)
        assert losses == first
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found, weights, strict=True))


def flat(nest: Any) -> list[Any]:
    return [x for item in nest for x in flat(item)] if isinstance(nest, (tuple, list)) else [nest]


def both(function: Callable[..., Any], *arrays: Any) -> None:
    """The compiled results are those of eager mode."""
    inputs = [tw.tensor(array) for array in arrays]
    eager, compiled = flat(function(*inputs)), flat(tw.compile(function, backend="c")(*inputs))
    for one, other in zip(eager, compiled, strict=True):
        assert one.shape == other.shape and one.dtype is other.dtype
        np.testing.assert_allclose(other.numpy(), one.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 2, 9])
@pytest.mark.parametrize("reverse", [False, True])
def test_short_loops_with_gradients(length: int, reverse: bool) -> None:
    def loss(w: Any, xs: Any) -> Any:
        last, stacked = tw.scan(lambda h, x: ((h * w + x).tanh(), h.sum() * x), w * 0.5, xs, reverse=reverse)
        return (last**2).sum() + stacked.sum()

    both(tw.value_and_grad(loss, wrt=("w", "xs")) if length else loss, numbers(4), numbers(length, 4))


def test_loops_in_loops_with_gradients() -> None:
    def loss(w: Any, xs: Any) -> Any:
        def outer(h: Any, rows: Any) -> Any:
            inner, seen = tw.scan(lambda c, row: ((c * w + row).tanh(), c * row), h, rows)
            return inner, seen.sum(0)

        last, stacked = tw.scan(outer, w * 0.1, xs)
        return (last * stacked.sum(0)).sum()

    both(tw.value_and_grad(loss, wrt=("w", "xs")), numbers(3), numbers(4, 5, 3))


def test_second_derivatives_of_a_loop() -> None:
    def loss(x: Any) -> Any:
        return tw.scan(lambda h, s: (h * s.sin(), h), x.sum(), x)[1].sum()

    both(tw.grad(lambda x: (tw.grad(loss)(x) ** 2).sum()), numbers(6))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_branches_with_gradients(sign: float) -> None:
    def loss(x: Any, w: Any) -> Any:
        return tw.cond(x.sum() > 0, lambda: (x @ w).tanh().sum(), lambda: (x * 3).sum() + w.exp().sum())

    x = np.abs(numbers(4, 3)) * np.float32(sign)
    both(tw.value_and_grad(loss, wrt=("x", "w")), x, numbers(3, 2))


def test_a_branch_in_every_iteration() -> None:
    def loss(x: Any, w: Any) -> Any:
        def body(h: Any, s: Any) -> Any:
            h = tw.cond(s.sum() > 0, lambda: h * w + s, lambda: (h - s).tanh())
            return h, h.sum()

        last, sums = tw.scan(body, w, x)
        return last.sum() + (sums**2).sum()

    both(tw.value_and_grad(loss, wrt=("x", "w")), numbers(9, 4), numbers(4))


def test_random_numbers_in_a_loop() -> None:
    """Eager mode counts every draw; within a program the second draw is another stream of the same call."""

    def draw(x: Any) -> Any:
        def body(h: Any, s: Any) -> Any:
            noise = tw.random.normal(s.shape)
            return h + noise, (noise, tw.random.dropout(s, 0.5))

        return tw.scan(body, x[0], x)

    results = []
    for run in (tw.compile(draw, backend="c"), tw.compile(draw, backend="numpy"), draw):
        tw.manual_seed(11)
        results.append([found.numpy() for found in flat(run(tw.tensor(numbers(6, 40))))])
        _, noise, dropped = results[-1]
        assert len({row.tobytes() for row in noise}) == len({row.tobytes() for row in dropped == 0}) == 6
        assert 0.3 < (dropped == 0).mean() < 0.7
    for other in results[1:]:
        np.testing.assert_allclose(other[0], results[0][0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other[1], results[0][1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(results[1][2], results[0][2])


def test_steps_of_training_in_one_program() -> None:
    def make() -> tuple[tw.Parameter, Callable[[Any], Any], Callable[[Any], Any]]:
        weight = tw.Parameter(numbers(4))
        optimizer = optim.SGD([weight], lr=0.1, momentum=0.9)

        def once(x: Any) -> Any:
            loss = ((x * weight).sum() - 1) ** 2
            optimizer.minimize(loss)
            return loss

        return weight, once, lambda xs: tw.scan(lambda carry, x: (carry, once(x)), tw.zeros(()), xs)[1]

    xs = numbers(8, 4)
    first, once, _ = make()
    one_by_one = tw.compile(once, backend="c")
    expected = [one_by_one(tw.tensor(x)).item() for x in xs]
    second, _, many = make()
    found = tw.compile(many, backend="c")(tw.tensor(xs)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(second.numpy(), first.numpy(), rtol=1e-5)


@pytest.mark.parametrize("place", ["scan", "cond"])
def test_an_index_out_of_range_in_a_body_names_the_line_and_changes_nothing(place: str) -> None:
    table = tw.Parameter(numbers(5, 3))
    counter = tw.Buffer(np.int64(0))

    @tw.compile(backend="c")
    def step(positions: Any) -> Any:
        counter.assign(counter + 1)
        if place == "scan":
            total = tw.scan(lambda h, i: (h + tw.take(table, i, axis=0), i), tw.zeros((3,)), positions)[0]
        else:
            total = tw.cond(
                positions.sum() > 0, lambda: tw.take(table, positions, axis=0).sum(0), lambda: tw.zeros((3,))
            )
        table.assign(table - total * 0.1)
        return total

    step(np.array([0, 1, 4]))
    before = table.numpy()
    with pytest.raises(IndexRangeError) as caught:
        step(np.array([0, 1, 5]))
    assert "5" in str(caught.value) and "tw.take(table" in str(caught.value)
    np.testing.assert_array_equal(table.numpy(), before)
    assert int(counter) == 1
    step(np.array([0, 1, 3]))
    assert int(counter) == 2
