"""Scans whose iterations are shared by all threads: values, gradients, bits, memory, failures."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.errors import IndexRangeError

pytestmark = pytest.mark.usefixtures("needs_compiler")


def shared_loops(compiled: Any, *arguments: Any) -> int:
    """How many scans have phases of their own."""
    return sum(phase.loop is not None for phase in compiled.plan(*arguments).phases)


def training(kind: str, hidden: int, batch: int, length: int, **options: Any) -> tuple[Any, Any, Any]:
    """A compiled training step of a recurrent network, its model and its arguments."""
    tw.manual_seed(0)
    model = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](24, hidden, bidirectional=True)
    optimizer = optim.Adam(model.parameters(), lr=0.01)

    def step(x: Any, y: Any) -> Any:
        found, _ = model(x)
        loss = ((found - y) ** 2).mean()
        optimizer.minimize(loss)
        return loss

    random = np.random.default_rng(hidden)
    x = random.standard_normal((length, batch, 24)).astype(np.float32)
    y = random.standard_normal((length, batch, 2 * hidden)).astype(np.float32)
    return tw.compile(step, **options), model, (x, y)


def parameters(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.asarray(value) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("kind", "hidden", "batch"), [("lstm", 72, 21), ("gru", 83, 13)])
def test_training_agrees_with_the_reference(kind: str, hidden: int, batch: int) -> None:
    step, model, arguments = training(kind, hidden, batch, 5, backend="c", threads=2)
    assert shared_loops(step, *arguments) == 4  # two directions, forward and backward
    expected, reference, _ = training(kind, hidden, batch, 5, backend="numpy")
    for _ in range(2):
        np.testing.assert_allclose(step(*arguments), expected(*arguments), rtol=1e-5)
    for name, value in parameters(reference).items():
        np.testing.assert_allclose(parameters(model)[name], value, rtol=1e-3, atol=2e-5, err_msg=name)


def bits(**options: Any) -> bytes:
    step, model, arguments = training("lstm", 72, 21, 4, backend="c", **options)
    step(*arguments)
    return b"".join(value.tobytes() for value in parameters(model).values())


def test_the_same_bits_for_any_number_of_threads_and_every_instruction_set() -> None:
    expected = bits(threads=1)
    for threads in (2, 3, 7):
        assert bits(threads=threads) == expected
    if platform.machine() in ("x86_64", "AMD64"):
        assert bits(threads=2, target="x86-64") == expected
        information = Path("/proc/cpuinfo")
        flags = information.read_text(encoding="utf-8") if information.exists() else ""
        if " avx2 " in flags and " fma " in flags:
            assert bits(threads=2, target="x86-64-v3") == expected


def test_carries_slices_and_both_directions_of_time() -> None:
    random = np.random.default_rng(0)
    w = random.standard_normal((130, 130)).astype(np.float32) * 0.1
    h, xs = (random.standard_normal(s).astype(np.float32) for s in ((40, 130), (3, 40, 130)))
    for reverse in (False, True):
        for length in (2, 3):
            run = tw.compile(
                lambda h, xs, w, reverse=reverse: tw.scan(
                    lambda h, x: (tw.tanh(h @ w + x), h @ w), h, xs, reverse=reverse
                ),
                backend="c",
                threads=2,
            )
            assert shared_loops(run, h, xs[:length], w) == 1
            last, stack = run(h, xs[:length], w)
            carry, expected = h, {}
            for number in reversed(range(length)) if reverse else range(length):
                expected[number] = carry @ w
                carry = np.tanh(expected[number] + xs[number])
            np.testing.assert_allclose(last, carry, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(stack, [expected[i] for i in range(length)], rtol=1e-4, atol=1e-5)


def test_a_failure_in_an_iteration_leaves_the_state_as_it_was() -> None:
    table = tw.Parameter(np.ones((5, 64), np.float32))
    w = np.ones((64, 64), np.float32) / 64

    @tw.compile(backend="c", threads=2)
    def step(positions: Any, h: Any, w: Any) -> Any:
        total = tw.scan(lambda h, i: (h @ w + tw.take(table, i, axis=0), None), h, positions)[0]
        table.assign(table - 0.1)
        return total

    h = np.ones((64, 64), np.float32)
    assert shared_loops(step, np.array([0, 1, 4]), h, w) == 1
    step(np.array([0, 1, 4]), h, w)
    before = table.numpy()
    with pytest.raises(IndexRangeError):
        step(np.array([0, 5, 4]), h, w)
    np.testing.assert_array_equal(table.numpy(), before)
    np.testing.assert_allclose(step(np.array([0, 1, 4]), h, w), h + 3 * before[0, 0], rtol=1e-5)
