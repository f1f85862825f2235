"""Random tensors: distributions, independence of shape, exact scaling, and the gradient of dropout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from thalweg.graph import trace_graph
from thalweg.interpret import interpret
from thalweg.ops.random import bernoulli, dropout, integers, normal, uniform
from thalweg.testing import gradient_graph
from thalweg.types import type_of

Array = np.ndarray[Any, Any]
STATE = np.array([12345, 678, 0, 0], np.uint32)


def _draw(function: Any, *arrays: Array, state: Array = STATE, **options: Any) -> Array:
    inputs = (*arrays, state)
    graph = trace_graph(lambda *values: function(*values, **options), [type_of(a) for a in inputs])
    return interpret(graph, inputs)[0]


@pytest.mark.parametrize(
    ("dtype", "bits"), [("float16", 11), ("bfloat16", 8), ("float32", 24), ("float64", 53)]
)
def test_uniform_numbers_are_exact_multiples(dtype: str, bits: int) -> None:
    drawn = _draw(uniform, shape=(20000,), dtype=dtype).astype(np.float64)
    scaled = drawn * 2.0**bits
    np.testing.assert_array_equal(scaled, np.floor(scaled))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert np.histogram(drawn, 10, (0, 1))[0].min() > 1800
    if bits > 24:
        assert len(np.unique(scaled % 2**20)) > 19000  # the low bits are random too


def test_normal_numbers() -> None:
    for dtype in ("float32", "float64"):
        drawn = _draw(normal, shape=(40000,), mean=2.0, std=3.0, dtype=dtype).astype(np.float64)
        centred = (drawn - 2) / 3
        assert np.isfinite(drawn).all()
        assert centred.mean() == pytest.approx(0, abs=0.02)
        assert centred.std() == pytest.approx(1, abs=0.02)
        assert (centred**3).mean() == pytest.approx(0, abs=0.06)
        assert (centred**4).mean() == pytest.approx(3, abs=0.15)
        below = [(centred < x).mean() - 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in (-2, -1, 0, 1, 2)]
        assert max(map(abs, below)) < 0.01


def test_bernoulli_and_integers() -> None:
    assert _draw(bernoulli, shape=(40000,), p=0.3).mean() == pytest.approx(0.3, abs=0.01)
    assert not _draw(bernoulli, shape=(1000,), p=0.0).any()
    assert _draw(bernoulli, shape=(1000,), p=1.0).all()
    drawn = _draw(integers, shape=(30000,), low=-2, high=4, dtype="int8")
    assert drawn.dtype == np.int8
    assert np.unique(drawn).tolist() == [-2, -1, 0, 1, 2, 3]
    assert np.bincount(drawn + 2).min() > 4700
    wide = _draw(integers, shape=(1000,), low=-(2**31), high=2**31)
    assert wide.min() < -(2**30)
    assert wide.max() > 2**30


def test_an_element_depends_on_its_row_major_index_only() -> None:
    for function in (uniform, normal, bernoulli):
        long = _draw(function, shape=(4, 6))
        np.testing.assert_array_equal(_draw(function, shape=(2, 6)), long[:2])
        np.testing.assert_array_equal(_draw(function, shape=(24,)), long.reshape(-1))


@pytest.mark.parametrize("word", [0, 1, 2])
def test_seed_call_and_stream_change_every_number(word: int) -> None:
    first = _draw(uniform, shape=(1000,))
    other = STATE.copy()
    other[word] += 1
    assert (first == _draw(uniform, shape=(1000,), state=other)).mean() < 0.01
    assert (first == _draw(uniform, shape=(1000,), stream=1)).mean() < 0.01
    np.testing.assert_array_equal(first, _draw(uniform, shape=(1000,)))


def test_dropout_keeps_the_mean_and_repeats_its_mask_in_the_gradient() -> None:
    x = np.full((100, 100), 3.0, np.float32)
    kept = _draw(dropout, x, p=0.2, stream=5)
    assert set(np.unique(kept).tolist()) == {0.0, float(np.float32(3.0) * np.float32(1 / 0.8))}
    assert (kept != 0).mean() == pytest.approx(0.8, abs=0.01)
    step = gradient_graph(lambda v, s: dropout(v, s, p=0.2, stream=5), [type_of(x), type_of(STATE)])
    (by_x,) = interpret(step, [x, STATE, np.ones_like(x)])
    np.testing.assert_array_equal(by_x != 0, kept != 0)
    np.testing.assert_array_equal(np.unique(by_x), np.array([0.0, 1 / 0.8], np.float32))
    assert not [node for node in step.nodes if node.op.name == "random_bits"]  # no mask is kept in between


def test_dropped_numbers_are_zero_even_where_they_are_not_finite() -> None:
    x = np.full(64, np.nan, np.float32)
    kept = _draw(dropout, x, p=0.5)
    assert 0 < (kept == 0).sum() < 64
    np.testing.assert_array_equal(_draw(dropout, x, p=1.0), np.zeros_like(x))


def test_channels_share_their_fate() -> None:
    kept = _draw(dropout, np.ones((8, 16, 3, 3), np.float32), p=0.5, shared_axes=(2, 3))
    assert ((kept == kept[:, :, :1, :1]).all(axis=(2, 3))).all()
    assert 30 < (kept[:, :, 0, 0] == 0).sum() < 98
