"""Muon (Jordan, 2024), as `torch.optim.Muon`: momentum, made orthogonal. For matrices only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from thalweg.errors import ArgumentError
from thalweg.ops.core import cast, composite
from thalweg.ops.elementwise import maximum, sqrt
from thalweg.ops.reduction import sum as reduce_sum
from thalweg.optim.optimizer import (
    Array,
    Clip,
    Optimizer,
    Parameters,
    operands,
    require_number,
    zeros,
)
from thalweg.tensor.state import Parameter

_ADJUSTMENTS = ("original", "match_rms_adamw")


def orthogonalised(matrix: Any, coefficients: tuple[float, float, float], steps: int, eps: Any) -> Any:
    """The matrix with all its singular values brought near 1 (0.7 to 1.2), by a Newton-Schulz iteration.

    `steps` times X = a X + (b X X^T + c (X X^T)^2) X, from X = matrix / its norm. PyTorch does it in
    bfloat16.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.swapaxes(0, 1) if tall else matrix
    x = x / maximum(sqrt(reduce_sum(x * x)), eps)
    for _ in range(steps):
        gram = x @ x.swapaxes(0, 1)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.swapaxes(0, 1) if tall else x


@composite
def muon_update(
    parameter: Any,
    gradient: Any,
    lr: Any,
    momentum: Any,
    eps: Any,
    momentum_buffer: Any,
    weight_decay: Any = None,
    *,
    nesterov: bool,
    coefficients: tuple[float, float, float],
    steps: int,
    factor: float,
) -> Any:
    """Parameter [R, C] and momentum after one step; `factor` multiplies the learning rate of the
    direction.
    """
    weight, g = operands(parameter, gradient, None, False)
    dtype = g.dtype
    keep = cast(momentum, dtype)
    buffer = momentum_buffer + cast(1.0 - momentum, dtype) * (g - momentum_buffer)
    direction = g + keep * (buffer - g) if nesterov else buffer
    direction = orthogonalised(direction, coefficients, steps, cast(eps, dtype))
    if weight_decay is not None:
        weight = weight * cast(1.0 - lr * weight_decay, dtype)
    return cast(weight - cast(lr * factor, dtype) * direction, parameter.dtype), buffer


class Muon(Optimizer):
    """Steps whose singular values are all alike, for the matrices inside a network.

    Embeddings, the last layer, biases and norms are left to another optimiser, such as AdamW. `adjust_lr_fn`:
    "original" (also None) multiplies the rate by sqrt(max(1, rows / columns)), "match_rms_adamw" by
    0.2 sqrt(max(rows, columns)), so that AdamW's rates fit.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        clip: Clip | None = None,
    ) -> None:
        if adjust_lr_fn is not None and adjust_lr_fn not in _ADJUSTMENTS:
            raise ArgumentError(
                f"Muon: adjust_lr_fn is one of {', '.join(_ADJUSTMENTS)}, received {adjust_lr_fn!r}"
            )
        if len(ns_coefficients) != 3 or not 1 <= ns_steps < 100:
            raise ArgumentError(
                "Muon: expected three ns_coefficients and 1 to 99 ns_steps, received "
                f"{ns_coefficients!r} and "
                f"{ns_steps!r}"
            )
        self.ns_coefficients = tuple(float(number) for number in ns_coefficients)
        self.ns_steps, self.adjust_lr_fn = int(ns_steps), adjust_lr_fn
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        super().__init__(params, {**defaults, "eps": eps}, clip)

    def check(self, options: Mapping[str, Any]) -> None:
        for name in ("lr", "weight_decay", "eps"):
            require_number(self, options, name)
        require_number(self, options, "momentum", below=1)

    def init(self, parameter: Parameter, options: Mapping[str, Any]) -> dict[str, Array]:
        if len(parameter.shape) != 2:
            raise ArgumentError(
                f"Muon trains matrices; parameter {parameter.name!r} has shape {parameter.shape}. Give it to "
                "another optimiser, such as AdamW"
            )
        return {"momentum_buffer": zeros(parameter)}

    def update(
        self, parameter: Any, gradient: Any, slots: Mapping[str, Any], hyper: Mapping[str, Any]
    ) -> tuple[Any, Mapping[str, Any]]:
        rows, columns = parameter.shape
        original = self.adjust_lr_fn in (None, "original")
        factor = math.sqrt(max(1.0, rows / columns)) if original else 0.2 * math.sqrt(max(rows, columns))
        value, buffer = muon_update(
            parameter,
            gradient,
            hyper["lr"],
            hyper["momentum"],
            hyper["eps"],
            slots["momentum_buffer"],
            hyper["weight_decay"],
            nesterov=hyper["nesterov"],
            coefficients=self.ns_coefficients,
            steps=self.ns_steps,
            factor=factor,
        )
        return value, {"momentum_buffer": buffer}
