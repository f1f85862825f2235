"""Activation functions and the softmax family: composites with PyTorch's semantics and argument names.

16-bit operands are computed in float32 and rounded once. A gradient rule is given where it needs fewer operations or is
more exact than the body's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thalweg import types
from thalweg.ops.core import cast, composite, floating
from thalweg.ops.elementwise import (
    exp,
    less_equal,
    log,
    maximum,
    stop_gradient,
    where,
)
from thalweg.ops.reduction import max as reduce_max
from thalweg.ops.reduction import sum as reduce_sum
from thalweg.types import normalize_axis


def wide(x: Any) -> Any:
    """x for a computation of several steps: 16-bit floating point as float32."""
    return cast(x, types.float32) if x.dtype.itemsize == 2 else x


# ---- elementwise ----------------------------------------------------------------------------------------------------


@composite
def _relu(x: Any) -> Any:
    return maximum(x, 0)


@_relu.gradient
def _relu_gradient(inputs: Any, outputs: Any, cotangents: Any) -> Sequence[Any]:
    # from the output, so that the input need not be kept; at 0 the gradient is 0, at NaN it passes (as PyTorch)
    return (where(less_equal(outputs[0], 0), 0, cotangents[0]),)


def relu(x: Any) -> Any:
    """max(x, 0)."""
    return _relu(x)


# ---- softmax --------------------------------------------------------------------------------------------------------


def _class_axis(x: Any, axis: int) -> tuple[Any, int]:
    x = floating(x)
    return x, normalize_axis(axis, x.ndim) if x.ndim else 0


def _largest(x: Any, axis: int) -> Any:
    """The maximum along an axis, kept with size 1, as a constant shift: the result does not depend on it."""
    return reduce_max(stop_gradient(x), axis, keepdims=True)


@composite
def _softmax(x: Any, *, axis: int) -> Any:
    if x.size == 0:
        return x
    source = wide(x)
    weight = exp(source - _largest(source, axis))
    return cast(weight / reduce_sum(weight, axis, keepdims=True), x.dtype)


@composite
def _softmax_gradient(y: Any, g: Any, *, axis: int) -> Any:
    probability, cotangent = wide(y), wide(g)
    inner = reduce_sum(cotangent * probability, axis, keepdims=True)
    return cast((cotangent - inner) * probability, y.dtype)


@_softmax.gradient
def _softmax_rule(inputs: Any, outputs: Any, cotangents: Any, *, axis: int) -> Sequence[Any]:
    return (_softmax_gradient(outputs[0], cotangents[0], axis=axis),)


def softmax(x: Any, axis: int = -1) -> Any:
    """exp(x) / sum(exp(x)) along `axis`, computed without overflow; a row of -inf gives NaN."""
    x, axis = _class_axis(x, axis)
    return _softmax(x, axis=axis) if x.ndim else x * 0.0 + 1.0


@composite
def _log_softmax(x: Any, *, axis: int) -> Any:
    if x.size == 0:
        return x
    source = wide(x)
    shifted = source - _largest(source, axis)
    return cast(shifted - log(reduce_sum(exp(shifted), axis, keepdims=True)), x.dtype)


@composite
def _log_softmax_gradient(y: Any, g: Any, *, axis: int) -> Any:
    cotangent = wide(g)
    total = reduce_sum(cotangent, axis, keepdims=True)
    return cast(cotangent - exp(wide(y)) * total, y.dtype)


@_log_softmax.gradient
def _log_softmax_rule(inputs: Any, outputs: Any, cotangents: Any, *, axis: int) -> Sequence[Any]:
    return (_log_softmax_gradient(outputs[0], cotangents[0], axis=axis),)


def log_softmax(x: Any, axis: int = -1) -> Any:
    """log(softmax(x)) along `axis`, exact where the softmax itself would vanish."""
    x, axis = _class_axis(x, axis)
    return _log_softmax(x, axis=axis) if x.ndim else x * 0.0
