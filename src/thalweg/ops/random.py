"""Random tensors from a generator's state, written in `random_bits`; the same on every backend.

The state is uint32[4] (seed low, seed high, call number low, call number high); whoever owns the generator
counts the call number up once per call of a program. `stream` tells call sites apart, so that one state
serves all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError, ShapeError
from thalweg.ops.activations import number
from thalweg.ops.core import cast, composite, floating, operand
from thalweg.ops.elementwise import bitwise_right_shift, cos, less, log, sqrt, where
from thalweg.ops.movement import broadcast_to, reshape, shape_argument, slice_axis
from thalweg.ops.samples import Sample, samples, values
from thalweg.ops.sources import random_bits
from thalweg.types import DType

_MANTISSA = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}  # bits, the hidden one included


def _words(state: Any, shape: tuple[int, ...], stream: int, count: int) -> list[Any]:
    """`count` independent 32-bit words for each element; an element's words are neighbours in the counter."""
    drawn = random_bits(state, (*shape, count), stream)
    return [reshape(slice_axis(drawn, len(shape), word, word + 1), shape) for word in range(count)]


def _unit(state: Any, shape: tuple[int, ...], dtype: DType, stream: int) -> Any:
    """Uniform multiples of 2^-m in [0, 1) with the type's m bits: every value is exact."""
    bits = _MANTISSA[dtype.name]
    if dtype is types.float64:
        return _pair_unit(*_words(state, shape, stream, 2))
    drawn = bitwise_right_shift(random_bits(state, shape, stream), 32 - bits)
    return cast(drawn, dtype) * 2.0**-bits


def _pair_unit(high: Any, low: Any) -> Any:
    """53 bits of two words as a float64 in [0, 1)."""
    upper = cast(bitwise_right_shift(high, 5), types.float64) * 2.0**-27
    return upper + cast(bitwise_right_shift(low, 6), types.float64) * 2.0**-53


@composite
def _uniform(
    state: Any, *, shape: tuple[int, ...], low: float, high: float, dtype: DType, stream: int
) -> Any:
    unit = _unit(state, shape, dtype, stream)
    scaled = unit if high - low == 1 else unit * (high - low)
    return scaled if low == 0 else scaled + low


def uniform(
    state: Any,
    shape: Any,
    *,
    low: float = 0.0,
    high: float = 1.0,
    dtype: Any = types.float32,
    stream: int = 0,
) -> Any:
    """Uniform numbers in [low, high), by low + (high - low) u with u a multiple of 2^-24 (2^-53 for
    float64)."""
    low, high = number(low, "low"), number(high, "high")
    if not low <= high:
        raise ArgumentError(f"uniform needs low <= high, received {low} and {high}")
    return _uniform(
        state,
        shape=shape_argument(shape),
        low=low,
        high=high,
        dtype=_floating_type(dtype),
        stream=int(stream),
    )


@composite
def _normal(state: Any, *, shape: tuple[int, ...], mean: float, std: float, dtype: DType, stream: int) -> Any:
    if dtype is types.float64:
        first_high, first_low, high, low = _words(state, shape, stream, 4)
        radius, turn = _pair_unit(first_high, first_low) + 2.0**-54, _pair_unit(high, low)
    else:
        first, second = _words(state, shape, stream, 2)
        radius = cast(first, types.float32) * 2.0**-32 + 2.0**-33
        turn = cast(bitwise_right_shift(second, 8), types.float32) * 2.0**-24
    # Box and Muller (1958); the half step keeps the logarithm finite
    drawn = sqrt(log(radius) * -2.0) * cos(turn * (2.0 * math.pi))
    return cast(drawn * std + mean, dtype)


def normal(
    state: Any,
    shape: Any,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    dtype: Any = types.float32,
    stream: int = 0,
) -> Any:
    """Normally distributed numbers with that mean and standard deviation."""
    mean, std = number(mean, "mean"), number(std, "std")
    if std < 0:
        raise ArgumentError(f"normal needs a standard deviation of at least 0, received {std}")
    return _normal(
        state,
        shape=shape_argument(shape),
        mean=mean,
        std=std,
        dtype=_floating_type(dtype),
        stream=int(stream),
    )


def _floating_type(dtype: Any) -> DType:
    found = types.dtype(dtype)
    if not found.is_floating:
        raise DTypeError(f"random numbers of this distribution are floating point, received dtype {found}")
    return found


def _probability(p: Any) -> float:
    found = number(p, "p")
    if not 0.0 <= found <= 1.0:
        raise ArgumentError(f"p must be a probability between 0 and 1, received {p!r}")
    return found


def _with_probability(state: Any, shape: tuple[int, ...], p: float, stream: int) -> Any:
    """True with probability p, rounded to a multiple of 2^-32."""
    threshold = round(p * 2**32)
    if threshold == 2**32:
        return broadcast_to(operand(True), shape)
    return less(random_bits(state, shape, stream), threshold)


@composite
def _bernoulli(state: Any, *, shape: tuple[int, ...], p: float, stream: int) -> Any:
    return _with_probability(state, shape, p, stream)


def bernoulli(state: Any, shape: Any, *, p: float = 0.5, stream: int = 0) -> Any:
    """A bool tensor, each element true with probability `p`."""
    return _bernoulli(state, shape=shape_argument(shape), p=_probability(p), stream=int(stream))


@composite
def _integers(state: Any, *, shape: tuple[int, ...], low: int, high: int, dtype: DType, stream: int) -> Any:
    drawn = cast(random_bits(state, shape, stream), types.uint64) * (high - low)
    return cast(cast(bitwise_right_shift(drawn, 32), types.int64) + low, dtype)


def integers(
    state: Any, shape: Any, *, low: int = 0, high: int, dtype: Any = types.int64, stream: int = 0
) -> Any:
    """Uniform integers from `low` to `high` - 1; the range is at most 2^32 (a value's bias is below
    2^-32)."""
    if not 1 <= high - low <= 2**32:
        raise ArgumentError(
            f"integers needs low < high and a range of at most 2^32, received {low} and {high}"
        )
    target = types.dtype(dtype)
    if not target.is_integer:
        raise DTypeError(f"integers gives an integer type, received dtype {target}")
    return _integers(
        state, shape=shape_argument(shape), low=int(low), high=int(high), dtype=target, stream=int(stream)
    )


# ---- dropout -----------------------------------------------------------------------------------------------


@composite
def _dropout(x: Any, state: Any, *, p: float, stream: int, shared_axes: tuple[int, ...]) -> Any:
    if p == 1.0:
        return broadcast_to(operand(0.0, x.dtype), x.shape)
    shape = tuple(1 if axis in shared_axes else extent for axis, extent in enumerate(x.shape))
    kept = _with_probability(state, shape, 1.0 - p, stream)
    return where(kept, x * (1.0 / (1.0 - p)), 0)


@_dropout.gradient
def _dropout_rule(inputs: Any, outputs: Any, cotangents: Any, **attributes: Any) -> Sequence[Any]:
    # the same state gives the same mask: nothing is kept
    return (_dropout(cotangents[0], inputs[1], **attributes), None)


def dropout(x: Any, state: Any, *, p: float = 0.5, stream: int = 0, shared_axes: Sequence[int] = ()) -> Any:
    """Each element is 0 with probability `p`, else x / (1 - p) (Srivastava et al., 2014).

    Elements that differ in `shared_axes` only share their fate ((2, 3) drops whole channels of [B, C, H, W]).
    """
    x = floating(x)
    shared = types.normalize_axes(tuple(shared_axes), x.ndim)
    return _dropout(x, state, p=_probability(p), stream=int(stream), shared_axes=shared)


# ---- samples -----------------------------------------------------------------------------------------------


def _states() -> Iterator[tuple[np.ndarray[Any, Any], tuple[int, ...], int]]:
    """States, shapes and streams."""
    for seed, shape in enumerate(((), (0,), (1,), (3,), (4,), (5, 7), (2, 0, 3), (2, 3, 4))):
        state = np.array([seed * 0x9E3779B9 % 2**32, 7, seed, 2**32 - 1 - seed], np.uint32)
        yield state, shape, seed


@samples("uniform")
def _uniform_samples() -> Iterator[Sample]:
    for state, shape, stream in _states():
        yield Sample(uniform, (state,), {"shape": shape, "stream": stream})
        options: dict[str, Any] = {"shape": shape, "low": -3.0, "high": 0.5, "stream": stream}
        for dtype in ("float16", "bfloat16", "float64"):
            yield Sample(uniform, (state,), {**options, "dtype": dtype})
    yield Sample(
        uniform, (state,), {"shape": 3, "low": 1, "high": 0}, error=ArgumentError, message="low <= high"
    )
    yield Sample(
        uniform, (state,), {"shape": 3, "dtype": "int32"}, error=DTypeError, message="floating point"
    )
    yield Sample(uniform, (state[:3],), {"shape": 3}, error=ShapeError, message="u32[4]")
    yield Sample(uniform, (state,), {"shape": (-1,)}, error=ArgumentError, message="negative")


@samples("normal")
def _normal_samples() -> Iterator[Sample]:
    for state, shape, stream in _states():
        for dtype in ("float32", "float16", "bfloat16", "float64"):
            yield Sample(
                normal, (state,), {"shape": shape, "std": 0.5, "dtype": dtype, "stream": stream}, tolerance=4
            )
    yield Sample(normal, (state,), {"shape": 3, "std": -1.0}, error=ArgumentError, message="deviation")


@samples("bernoulli")
def _bernoulli_samples() -> Iterator[Sample]:
    for state, shape, stream in _states():
        for p in (0.0, 0.3, 1.0):
            yield Sample(bernoulli, (state,), {"shape": shape, "p": p, "stream": stream})
    yield Sample(bernoulli, (state,), {"shape": 3, "p": 1.5}, error=ArgumentError, message="probability")


@samples("integers")
def _integers_samples() -> Iterator[Sample]:
    for state, shape, stream in _states():
        yield Sample(integers, (state,), {"shape": shape, "high": 10, "stream": stream})
        yield Sample(integers, (state,), {"shape": shape, "low": -5, "high": 2**32 - 5, "dtype": "int64"})
    yield Sample(integers, (state,), {"shape": 5, "low": -5, "high": 5, "dtype": "int8"})
    yield Sample(integers, (state,), {"shape": 3, "high": 0}, error=ArgumentError, message="low < high")
    yield Sample(
        integers, (state,), {"shape": 3, "high": 9, "dtype": "float32"}, error=DTypeError, message="integer"
    )


@samples("dropout")
def _dropout_samples() -> Iterator[Sample]:
    for state, shape, stream in _states():
        for p in (0.0, 0.3, 1.0):
            yield Sample(dropout, (values(*shape), state), {"p": p, "stream": stream})
    for dtype in ("float16", "bfloat16", "float64"):
        yield Sample(dropout, (values(5, 6, dtype=dtype), state), {"p": 0.25})
    yield Sample(dropout, (values(2, 3, 4, 5), state), {"shared_axes": (2, -1)})
    yield Sample(dropout, (values(3), state), {"p": -0.1}, error=ArgumentError, message="probability")
    yield Sample(
        dropout, (values(3), state), {"shared_axes": (1,)}, error=ArgumentError, message="out of range"
    )
