"""Linear algebra written in matrix products: the linear layer, `dot`, `outer`, `tensordot` and `einsum`.

Comes from users and `nn`; everything becomes transposes, reshapes and `matmul` nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg.ops.contraction import MatMul, in_float32
from thalweg.ops.core import apply, composite, operand, promoted, require
from thalweg.ops.movement import reshape
from thalweg.ops.reduction import sum as reduce_sum

Array = np.ndarray[Any, Any]


@composite
def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    require(
        weight.ndim == 2, f"linear needs a weight [out features, in features], received shape {weight.shape}"
    )
    require(
        x.ndim >= 1 and x.shape[-1] == weight.shape[1],
        f"linear needs an input with {weight.shape[1]} elements on its last axis (weight {weight.shape} is "
        f"[out features, in features]), received "
        + (f"{x.shape[-1]} on axis {x.ndim - 1} of shape {x.shape}" if x.ndim else "a 0-d tensor"),
    )
    require(
        bias is None or bias.shape == weight.shape[:1],
        f"linear needs a bias of shape {weight.shape[:1]}, received {None if bias is None else bias.shape}",
    )
    rows = apply(MatMul(False, True), _rows(x), weight)
    if bias is not None:
        rows = rows + bias
    return reshape(rows, (*x.shape[:-1], weight.shape[0]))


@_linear.gradient
def _linear_gradient(inputs: Any, outputs: Any, cotangents: Any) -> Sequence[Any]:
    # what the body gives, without computing the product again where values are computed at once
    x, weight, bias = inputs
    g = _rows(cotangents[0])
    by_x = reshape(apply(MatMul(), g, weight), x.shape)
    by_weight = apply(MatMul(True, False), g, _rows(x))
    return (by_x, by_weight, None if bias is None else reduce_sum(g, 0))


@_linear.reference
def _linear_reference(x: Array, weight: Array, bias: Array | None) -> Array:
    result = np.matmul(in_float32(x), in_float32(weight).T).astype(x.dtype, copy=False)
    return result if bias is None else result + bias


def _rows(x: Any) -> Any:
    """x as [rows, last axis]."""
    return reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """x weight^T + bias over the last axis: `x` [.., in], `weight` [out, in], `bias` [out], the result [.., out].

    Raises `ShapeError` naming both sizes where x does not have `in` elements on its last axis.
    """
    operands = promoted(*(operand(item) for item in (x, weight, bias) if item is not None))
    x, weight, bias = (*operands, None)[:3]
    return _linear(x, weight, bias)
