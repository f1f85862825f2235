"""Adafactor (Shazeer and Stern, 2018), as `torch.optim.Adafactor`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError
from thalweg.ops.core import cast, composite
from thalweg.ops.elementwise import maximum, minimum, pow, sqrt
from thalweg.ops.reduction import mean as reduce_mean
from thalweg.ops.reduction import sum as reduce_sum
from thalweg.optim.optimizer import (
    Array,
    Clip,
    Optimizer,
    Parameters,
    no_steps,
    operands,
    require_number,
    slot_dtype,
    zeros,
)
from thalweg.tensor.state import Parameter


def _root_mean_square(x: Any) -> Any:
    """The root of the mean square of all elements, in float64 as PyTorch computes with Python's numbers."""
    return sqrt(cast(reduce_sum(x * x), types.float64)) / math.sqrt(max(1, math.prod(x.shape)))


@composite
def adafactor_update(
    parameter: Any,
    gradient: Any,
    lr: Any,
    beta2_decay: Any,
    d: Any,
    step: Any,
    first: Any,  # row_var [.., R, 1] of matrices, variance of vectors
    second: Any = None,  # col_var [.., 1, C] of matrices
    weight_decay: Any = None,
    *,
    eps: tuple[float, float],
    maximize: bool = False,
) -> Any:
    """Parameter, step count and second moments after one step (Shazeer and Stern, 2018, algorithms 4 and 5).

    A matrix keeps the means of squared gradients over its rows and over its columns, in place of all squares.
    The step is relative to the size of the parameter, and no longer than `d` times that.
    """
    weight, g = operands(parameter, gradient, None, maximize)
    dtype = g.dtype
    step = step + 1
    count = cast(step, types.float64)
    share = cast(pow(count, beta2_decay), dtype)  # of the new squares
    alpha = maximum(_root_mean_square(weight), eps[1]) * minimum(lr, 1.0 / sqrt(count))
    if weight_decay is not None:
        weight = weight * cast(1.0 - lr * weight_decay, dtype)
    square = g * g
    if second is None:
        first = first + share * (square - first)
        estimate = first
    else:
        first = first + share * (reduce_mean(square, axis=-1, keepdims=True) - first)
        second = second + share * (reduce_mean(square, axis=-2, keepdims=True) - second)
        estimate = first * second / maximum(reduce_mean(first, axis=-2, keepdims=True), eps[0])
    update = g / sqrt(maximum(estimate, eps[0] * eps[0]))
    longest = maximum(_root_mean_square(update) / d, 1.0)
    value = cast(weight - cast(alpha / longest, dtype) * update, parameter.dtype)
    return (value, step, first) if second is None else (value, step, first, second)


def _least(eps: float | None, parameter: Any) -> float:
    """The smallest root of a second moment; by default the spacing of the parameter's numbers near 1."""
    if eps is not None:
        return float(eps)
    import ml_dtypes

    return float(ml_dtypes.finfo(parameter.dtype.numpy).eps)  # type: ignore[no-untyped-call]


class Adafactor(Optimizer):
    """Adam's second moments as a row and a column for each matrix: hardly any state.

    `lr` limits a rate that falls as 1 / sqrt(step) and counts relative to the root mean square of each
    parameter (at least `eps[1]`); `d` limits the root mean square of an update. `eps[0]` None: the spacing of
    the parameter's dtype. The Hugging Face library's Adafactor has other defaults.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        clip: Clip | None = None,
    ) -> None:
        if len(eps) != 2 or not (eps[0] is None or eps[0] >= 0) or not eps[1] >= 0:
            raise ArgumentError(
                "Adafactor: eps must be a pair of numbers of at least 0, the first may be None; "
                f"received {eps!r}"
            )
        self.eps: tuple[float | None, float] = (eps[0], float(eps[1]))
        defaults = {"lr": lr, "beta2_decay": beta2_decay, "d": d, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "maximize": maximize}, clip)

    def check(self, options: Mapping[str, Any]) -> None:
        for name in ("lr", "weight_decay"):
            require_number(self, options, name)
        if not options["beta2_decay"] <= 0:
            raise ArgumentError(
                f"Adafactor: beta2_decay must be at most 0, received {options['beta2_decay']}"
            )
        if not options["d"] >= 1:
            raise ArgumentError(f"Adafactor: d must be at least 1, received {options['d']}")

    def init(self, parameter: Parameter, options: Mapping[str, Any]) -> dict[str, Array]:
        shape, dtype = parameter.shape, slot_dtype(parameter.dtype).numpy
        if len(shape) < 2:
            return {"step": no_steps(), "variance": zeros(parameter)}
        row, column = np.zeros((*shape[:-1], 1), dtype), np.zeros((*shape[:-2], 1, shape[-1]), dtype)
        return {"step": no_steps(), "row_var": row, "col_var": column}

    def update(
        self, parameter: Any, gradient: Any, slots: Mapping[str, Any], hyper: Mapping[str, Any]
    ) -> tuple[Any, Mapping[str, Any]]:
        names = ("row_var", "col_var") if "row_var" in slots else ("variance",)
        least = _least(self.eps[0], parameter)
        moments = [slots[name] for name in names]
        value, step, *changed = adafactor_update(
            parameter,
            gradient,
            hyper["lr"],
            hyper["beta2_decay"],
            hyper["d"],
            slots["step"],
            moments[0],
            moments[1] if len(moments) > 1 else None,
            hyper["weight_decay"],
            eps=(least, self.eps[1]),
            maximize=hyper["maximize"],
        )
        return value, {"step": step, **dict(zip(names, changed, strict=True))}
