"""Pooling beyond its samples: what the indices mean, ties, padding, gradients of order three."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from thalweg.graph import trace_graph
from thalweg.interpret import interpret
from thalweg.ops.core import apply
from thalweg.ops.pooling import MaxPool, MaxPoolGather, MaxUnpool, average_pool, max_pool
from thalweg.ops.samples import values
from thalweg.testing import check_gradient, gradient_graph
from thalweg.types import type_of

Array = np.ndarray[Any, Any]


def _run(function: Callable[..., Any], *arrays: Array) -> list[Array]:
    return interpret(trace_graph(function, [type_of(array) for array in arrays]), arrays)


@pytest.mark.parametrize("kernel", [(3, 2), (17, 16)])
def test_an_index_is_the_row_major_position_in_the_window(kernel: tuple[int, int]) -> None:
    op = MaxPool(kernel, (1, 2), ((1, 0), (0, 1)), (1, 1))
    x = values(2, 3, 20, 19, distinct=True)
    best, index = op.reference(x)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 1)), constant_values=-np.inf)
    for place in np.ndindex(*best.shape):
        batch, channel, row, column = place
        window = padded[batch, channel, row : row + kernel[0], 2 * column : 2 * column + kernel[1]]
        assert index[place] == np.argmax(window)
        assert best[place] == window.max()
    assert index.dtype == np.int32


def test_ties_and_nan_as_in_pytorch() -> None:
    """The first of equal elements and the last NaN win; padding is never chosen, even where all is -inf."""
    x = np.full((1, 1, 4, 4), -np.inf, np.float32)
    x[0, 0, 2:, 2:] = [[np.nan, 1], [np.nan, 5]]
    x[0, 0, 2:, :2] = 7
    op = MaxPool((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1))
    assert op.reference(x)[1].tolist() == [[[[0, 0], [0, 2]]]]
    op = MaxPool((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))
    lowest = np.full((1, 1, 4, 4), -np.inf, np.float32)
    best, index = op.reference(lowest)
    assert np.isneginf(best).all()
    assert index.tolist() == [[[[4, 3], [1, 0]]]]


def test_gather_reads_what_pooling_found() -> None:
    x = values(2, 3, 7, 6, distinct=True)
    op = MaxPool((3, 2), (2, 1), ((1, 1), (0, 1)), (1, 2))
    best, index = op.reference(x)
    np.testing.assert_array_equal(MaxPoolGather(*op.geometry).reference(x, index), best)


def test_unpool_and_gather_are_transposes() -> None:
    x = values(2, 1, 5, 6, distinct=True)
    op = MaxPool((3, 3), (1, 2), ((1, 1), (1, 0)), (1, 1))
    _, index = op.reference(x)
    g, v = values(*index.shape, dtype="float64", seed=1), values(*x.shape, dtype="float64", seed=2)
    unpooled = MaxUnpool(*op.geometry, x.shape[2:]).reference(g, index)
    gathered = MaxPoolGather(*op.geometry).reference(v, index)
    np.testing.assert_allclose(np.sum(unpooled * v), np.sum(g * gathered), rtol=1e-12)


def test_a_cotangent_with_infinity_reaches_one_place_only() -> None:
    x = values(1, 1, 4, distinct=True)
    step = gradient_graph(lambda v: max_pool(v, 2), [type_of(x)])
    (by_x,) = interpret(step, [x, np.array([[[np.inf, np.nan]]], np.float32)])
    assert np.isinf(by_x).sum() == 1
    assert np.isnan(by_x).sum() == 1
    assert (by_x == 0).sum() == 2


def test_third_order_gradients() -> None:
    x = values(1, 2, 5, 4, distinct=True)
    for function in (lambda v: max_pool(v, 2, stride=1), lambda v: average_pool(v, 3, stride=2, padding=1)):
        assert check_gradient(lambda v, f=function: f(v) * f(v) * f(v), [x], order=3) > 0  # type: ignore[misc]


def test_average_of_16_bit_numbers_is_rounded_once() -> None:
    x = np.full((1, 1, 4096), 1.0, np.float16)
    x[..., 0] = 4096
    (found,) = _run(lambda v: average_pool(v, 4096), x)
    assert float(found.item()) == pytest.approx((4096 + 4095) / 4096, rel=2**-11)


def test_window_ops_work_on_values_directly() -> None:
    x = values(1, 1, 4)
    indices = np.array([[[1, 0]]], np.int32)
    (found,) = _run(lambda v, i: apply(MaxPoolGather((2,), (2,), ((0, 0),), (1,)), v, i), x, indices)
    assert found.tolist() == [[[x[0, 0, 1], x[0, 0, 2]]]]
