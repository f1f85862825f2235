"""Products with weights of 8 and 4 bits against their definition in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg.ops.quantised import (
    dequantised,
    quantise_blocks,
    quantise_rows,
    quantised_embedding,
    quantised_linear,
)

Array = np.ndarray[Any, Any]
PACKERS = {8: (quantise_rows, 64), 4: (quantise_blocks, 32)}


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(x: Array, block: int) -> Array:
    """Activations as the product sees them, in float64."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, -x.shape[1] % block))).reshape(len(x), -1, block)
    step = (np.abs(padded).max(-1, keepdims=True).astype(np.float32) / np.float32(127)).astype(np.float64)
    found = np.rint(padded / np.where(step > 0, step, 1)) * step
    return found.reshape(len(x), -1)[:, : x.shape[1]]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [1, 31, 64, 100, 129, 300])
def test_weights_are_near_their_numbers(bits: int, size: int) -> None:
    weight = numbers(5, size)
    weight[2] = 0
    packed, scale = PACKERS[bits][0](weight)
    found = dequantised(packed, scale, size).numpy()
    assert found.shape == weight.shape and (found[2] == 0).all()
    step = np.abs(weight).max(1, keepdims=True) / (127 if bits == 8 else 7)
    assert (np.abs(found - weight) <= step * 0.51 + 1e-7).all()
    assert packed.nbytes + scale.nbytes < {8: 5 * size + 21, 4: 5 * -(-size // 128) * 73}[bits]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 3, 16, 37])
def test_products_are_the_definition(bits: int, rows: int, needs_compiler: None) -> None:
    pack, block = PACKERS[bits]
    for size, outputs in ((64, 5), (130, 16), (257, 33), (768, 40)):
        x, bias = numbers(rows, size, seed=1), numbers(outputs, seed=2)
        weight, scale = pack(numbers(outputs, size))
        exact = dequantised(weight, scale, size).numpy().astype(np.float64)
        expected = rounded(x, block) @ exact.T + bias
        for backend in ("numpy", "c"):
            product = tw.compile(quantised_linear, backend=backend)
            found = product(x, weight, scale, bias).numpy()
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-4)


def test_threads_and_instruction_sets_give_the_same_bits(needs_compiler: None) -> None:
    x = numbers(19, 333)
    for pack, _ in PACKERS.values():
        weight, scale = pack(numbers(150, 333, seed=1))
        found = set()
        for threads, target in ((1, "native"), (2, "native"), (7, "native"), (3, "x86-64-v3"), (1, "x86-64")):
            product = tw.compile(quantised_linear, threads=threads, target=target)
            found.add(product(x, weight, scale).numpy().tobytes())
        assert len(found) == 1


@pytest.mark.parametrize("bits", [8, 4])
def test_the_gradient_is_that_of_the_values(bits: int) -> None:
    weight, scale = PACKERS[bits][0](numbers(7, 70))
    x, g = numbers(3, 70, seed=1), numbers(3, 7, seed=2)
    found = tw.grad(lambda x: (quantised_linear(x, weight, scale) * g).sum())(x).numpy()
    np.testing.assert_allclose(found, g @ dequantised(weight, scale, 70).numpy(), rtol=1e-5, atol=1e-5)


def test_rows_of_a_table() -> None:
    for pack, _ in PACKERS.values():
        weight, scale = pack(numbers(9, 150))
        ids = np.array([[3, 0], [8, 3]])
        found = quantised_embedding(ids, weight, scale, 150).numpy()
        np.testing.assert_array_equal(found, dequantised(weight, scale, 150).numpy()[ids])
        with pytest.raises(tw.errors.IndexRangeError):
            quantised_embedding(np.array([9]), weight, scale, 150)


def test_numbers_that_are_not_finite_show() -> None:
    weight, scale = quantise_rows(numbers(4, 64))
    x = numbers(2, 64)
    x[0, 5] = np.nan
    found = quantised_linear(x, weight, scale).numpy()
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()
