"""Large reductions to few results: cut into slots that follow from the shape, shared by threads."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw

SHAPES = [(2, 1 << 18), (300_007,), (1 << 18, 3), (7, 101, 911)]  # with and without a fitting divisor


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["sum", "max", "min", "mean"])
def test_large_reductions_are_shared_and_keep_their_bits(
    shape: tuple[int, ...], name: str, needs_compiler: None
) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    axis = None if len(shape) == 1 else int(np.argmax(shape))
    reduced = x.size // (1 if axis is None else x.size // shape[axis])

    def run(threads: int) -> np.ndarray:
        compiled = tw.compile(lambda t: getattr(t, name)(axis=axis), threads=threads)
        tasks = sum(kernel.tasks for kernel in compiled.plan(x).kernels)
        assert tasks >= 4 or reduced < 1 << 17
        result: np.ndarray = compiled(x).numpy()
        return result

    found = run(1)
    expected = getattr(x.astype(np.float64), name)(axis=axis)
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=2e-6 * np.abs(expected).max())
    for threads in (2, 3):
        assert run(threads).tobytes() == found.tobytes()


def test_sums_in_16_bits_are_not_cut() -> None:
    """Sums of slots would be rounded to 16 bits."""
    plan = tw.compile(lambda t: t.sum()).plan(tw.spec((1 << 20,), tw.bfloat16))
    assert [kernel.kind for kernel in plan.kernels] == ["sum"]


@pytest.mark.parametrize("shape", [(40, 70), (65, 64), (3, 100, 130)])
@pytest.mark.parametrize("target", ["native", "x86-64-v3", "x86-64"])
def test_columns_are_reduced_side_by_side(shape: tuple[int, ...], target: str, needs_compiler: None) -> None:
    """Full groups of vectors, the vectors and the columns behind them: the bits of every target agree."""
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)

    def run(threads: int, machine: str) -> np.ndarray:
        result: np.ndarray = tw.compile(lambda t: t.sum(axis=-2), threads=threads, target=machine)(x).numpy()
        return result

    found = run(1, target)
    np.testing.assert_allclose(found, x.astype(np.float64).sum(-2), rtol=1e-6, atol=1e-5)
    assert found.tobytes() == run(3, "native").tobytes()
