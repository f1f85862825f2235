"""Initial values of parameters, with PyTorch's names and formulas.

In: a parameter (or buffer), which is given new values, and a generator (None: the default one, see
`tw.manual_seed`). Out: the same parameter. Called by layers when they are made, and by users, outside
compiled functions.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, ShapeError, TraceError
from thalweg.tensor.random import Generator, default_generator
from thalweg.tensor.state import Holder
from thalweg.tensor.trace import tracing
from thalweg.types import DType

Array = np.ndarray[Any, Any]


class _Drawing(threading.local):
    skipped = False


_drawing = _Drawing()


@contextmanager
def without_drawing() -> Iterator[None]:
    """Inside the block, in this thread, `uniform_`, `normal_` and what calls them leave parameters as they
    are: for models that are given other values next.
    """
    before, _drawing.skipped = _drawing.skipped, True
    try:
        yield
    finally:
        _drawing.skipped = before


def _fill(parameter: Holder, values: Any) -> Any:
    _check(parameter)
    parameter.replace(np.broadcast_to(values, parameter.shape).astype(parameter.dtype.numpy))
    return parameter


def _check(parameter: Any) -> None:
    if not isinstance(parameter, Holder):
        raise ArgumentError(
            f"nn.init sets parameters and buffers, received a {type(parameter).__name__}; write layer.weight"
        )
    if tracing():
        raise TraceError("parameters cannot be initialised inside a compiled function; do it before")


def _words(count: int, generator: Generator | None) -> Array:
    """Random 64-bit words: one call of the generator, by NumPy's Philox, which is fast and the same
    everywhere.
    """
    state = (default_generator if generator is None else generator).draw()[0].numpy().astype(np.uint64)
    seed, call = state[0] | state[1] << np.uint64(32), state[2] | state[3] << np.uint64(32)
    key = np.array([seed, call], np.uint64)
    return np.asarray(np.random.Philox(key=key).random_raw(count), np.uint64)


def _unit(count: int, dtype: DType, generator: Generator | None, shift: float = 0.0) -> Array:
    """Numbers in [0, 1), multiples of 2^-24, or of 2^-53 for float64, plus `shift` such steps."""
    if dtype is types.float64:
        return ((_words(count, generator) >> np.uint64(11)) + shift) * 2.0**-53
    halves = _words((count + 1) // 2, generator).astype("<u8", copy=False).view("<u4")[:count]
    return ((halves >> np.uint32(8)).astype(np.float32) + np.float32(shift)) * np.float32(2.0**-24)


def _uniform(
    shape: tuple[int, ...], low: float, high: float, dtype: DType, generator: Generator | None
) -> Array:
    unit = _unit(math.prod(shape), dtype, generator)
    return (low + (high - low) * unit).reshape(shape)


def _normal(
    shape: tuple[int, ...], mean: float, std: float, dtype: DType, generator: Generator | None
) -> Array:
    count = math.prod(shape)
    half = (count + 1) // 2
    unit = _unit(2 * half, dtype, generator, shift=0.5)
    # Box and Muller (1958); the half step keeps the logarithm finite
    radius, angle = np.sqrt(-2 * np.log(unit[:half])), 2 * math.pi * unit[half:]
    drawn = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return (mean + std * drawn).reshape(shape)


# ---- fixed distributions ----------------------------------------------------------------------------------


def constant_(parameter: Any, val: float) -> Any:
    """Every element `val`."""
    return _fill(parameter, val)


def zeros_(parameter: Any) -> Any:
    """Every element 0."""
    return _fill(parameter, 0.0)


def ones_(parameter: Any) -> Any:
    """Every element 1."""
    return _fill(parameter, 1.0)


def eye_(parameter: Any) -> Any:
    """The identity matrix; needs two axes."""
    if parameter.ndim != 2:
        raise ShapeError(f"eye_ needs a parameter with 2 axes, received shape {parameter.shape}")
    return _fill(parameter, np.eye(*parameter.shape))


def uniform_(parameter: Any, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Any:
    """Uniform between `a` and `b`."""
    _check(parameter)
    if _drawing.skipped:
        return parameter
    return _fill(parameter, _uniform(parameter.shape, a, b, parameter.dtype, generator))


def normal_(parameter: Any, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Any:
    """Normal with that mean and standard deviation."""
    _check(parameter)
    if _drawing.skipped:
        return parameter
    return _fill(parameter, _normal(parameter.shape, mean, std, parameter.dtype, generator))


def trunc_normal_(
    parameter: Any,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Any:
    """Normal, but only values between `a` and `b`: others are drawn again."""
    _check(parameter)
    mass = (math.erf((b - mean) / (std * math.sqrt(2))) - math.erf((a - mean) / (std * math.sqrt(2)))) / 2
    if not mass > 1e-3:
        raise ArgumentError(
            f"trunc_normal_: the range from {a} to {b} holds a share of {mass:.1e} of a normal "
            "distribution with mean "
            f"{mean} and standard deviation {std}; choose a range around the mean"
        )
    values = _normal((parameter.size,), mean, std, parameter.dtype, generator)
    outside = np.flatnonzero((values < a) | (values > b))
    while outside.size:
        values[outside] = _normal((outside.size,), mean, std, parameter.dtype, generator)
        outside = outside[(values[outside] < a) | (values[outside] > b)]
    return _fill(parameter, values.reshape(parameter.shape))


# ---- distributions that follow from the layer's size ------------------------------------------------------


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs of one output and outputs of one input of a weight [out, in, *kernel]."""
    if len(shape) < 2:
        raise ShapeError(
            f"fan in and fan out need a weight with at least 2 axes [out, in, ...], received shape {shape}"
        )
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps


_GAINS = {
    **dict.fromkeys(
        ("linear", "sigmoid", *(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3))), 1.0
    ),
    "tanh": 5.0 / 3,
    "relu": math.sqrt(2.0),
    "selu": 3.0 / 4,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the variance through a nonlinearity; `param` is the slope of "leaky_relu"
    (0.01).
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        raise ArgumentError(
            f"no gain is known for {nonlinearity!r}; use one of {', '.join((*_GAINS, 'leaky_relu'))}"
        )
    return _GAINS[nonlinearity]


def fan_in_uniform_(parameter: Any, fan_in: int, generator: Generator | None = None) -> Any:
    """Uniform within 1 / sqrt(fan_in): how PyTorch's layers begin with their biases."""
    bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0.0
    return uniform_(parameter, -bound, bound, generator)


def xavier_uniform_(parameter: Any, gain: float = 1.0, generator: Generator | None = None) -> Any:
    """Uniform within gain * sqrt(6 / (fan in + fan out)) (Glorot and Bengio, 2010)."""
    bound = gain * math.sqrt(6.0 / sum(fans(parameter.shape)))
    return uniform_(parameter, -bound, bound, generator)


def xavier_normal_(parameter: Any, gain: float = 1.0, generator: Generator | None = None) -> Any:
    """Normal with standard deviation gain * sqrt(2 / (fan in + fan out))."""
    return normal_(parameter, 0.0, gain * math.sqrt(2.0 / sum(fans(parameter.shape))), generator)


def _kaiming_std(shape: tuple[int, ...], a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError(f'mode must be "fan_in" or "fan_out", received {mode!r}')
    fan = fans(shape)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan) if fan else 0.0


def kaiming_uniform_(
    parameter: Any,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Any:
    """Uniform within gain * sqrt(3 / fan) (He et al., 2015); `a` is the slope of leaky ReLU."""
    bound = math.sqrt(3.0) * _kaiming_std(parameter.shape, a, mode, nonlinearity)
    return uniform_(parameter, -bound, bound, generator)


def kaiming_normal_(
    parameter: Any,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Any:
    """Normal with standard deviation gain / sqrt(fan); `a` is the slope of leaky ReLU."""
    return normal_(parameter, 0.0, _kaiming_std(parameter.shape, a, mode, nonlinearity), generator)


def orthogonal_(parameter: Any, gain: float = 1.0, generator: Generator | None = None) -> Any:
    """A random (semi-)orthogonal matrix [first axis, all others] times `gain` (Saxe et al., 2013)."""
    if parameter.ndim < 2:
        raise ShapeError(
            f"orthogonal_ needs a parameter with at least 2 axes, received shape {parameter.shape}"
        )
    rows = parameter.shape[0]
    columns = parameter.size // rows if rows else 0
    drawn = _normal((max(rows, columns), min(rows, columns)), 0.0, 1.0, parameter.dtype, generator)
    q, r = np.linalg.qr(drawn)
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)  # without this the distribution would not be uniform
    return _fill(parameter, gain * (q if rows >= columns else q.T).reshape(parameter.shape))
