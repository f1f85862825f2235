"""Adagrad (Duchi, Hazan and Singer, 2011), as `torch.optim.Adagrad`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg import types
from thalweg.ops.core import cast, composite
from thalweg.ops.elementwise import sqrt
from thalweg.optim.optimizer import (
    Array,
    Clip,
    Optimizer,
    Parameters,
    no_steps,
    operands,
    require_number,
    zeros,
)
from thalweg.tensor.state import Parameter


@composite
def adagrad_update(
    parameter: Any,
    gradient: Any,
    lr: Any,
    lr_decay: Any,
    eps: Any,
    step: Any,
    sum: Any,
    weight_decay: Any = None,
    *,
    maximize: bool = False,
) -> Any:
    """Parameter, sum of squared gradients and step count after one step."""
    weight, g = operands(parameter, gradient, weight_decay, maximize)
    rate = lr / (1.0 + cast(step, types.float64) * lr_decay)
    total = sum + g * g
    value = weight - cast(rate, g.dtype) * (g / (sqrt(total) + cast(eps, g.dtype)))
    return cast(value, parameter.dtype), total, step + 1


class Adagrad(Optimizer):
    """Gradients divided by the root of the sum of all their squares so far."""

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        clip: Clip | None = None,
    ) -> None:
        defaults = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps}
        defaults["initial_accumulator_value"] = initial_accumulator_value
        super().__init__(params, {**defaults, "maximize": maximize}, clip)

    def check(self, options: Mapping[str, Any]) -> None:
        for name in ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"):
            require_number(self, options, name)

    def init(self, parameter: Parameter, options: Mapping[str, Any]) -> dict[str, Array]:
        return {
            "step": no_steps(),
            "sum": zeros(parameter) + zeros(parameter).dtype.type(options["initial_accumulator_value"]),
        }

    def update(
        self, parameter: Any, gradient: Any, slots: Mapping[str, Any], hyper: Mapping[str, Any]
    ) -> tuple[Any, Mapping[str, Any]]:
        value, total, step = adagrad_update(
            parameter,
            gradient,
            hyper["lr"],
            hyper["lr_decay"],
            hyper["eps"],
            slots["step"],
            slots["sum"],
            hyper["weight_decay"],
            maximize=hyper["maximize"],
        )
        return value, {"sum": total, "step": step}
