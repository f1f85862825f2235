"""Lion (Chen et al., 2023): steps of one size, along the sign of a running average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.errors import ArgumentError
from thalweg.ops.core import cast, composite
from thalweg.ops.elementwise import sign
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


@composite
def lion_update(
    parameter: Any,
    gradient: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    exp_avg: Any,
    weight_decay: Any = None,
    *,
    maximize: bool = False,
) -> Any:
    """Parameter and average after one step (Chen et al., 2023, algorithm 2).

    parameter * (1 - lr * weight_decay) - lr * sign(beta1 * average + (1 - beta1) * gradient); then the
    average becomes beta2 * average + (1 - beta2) * gradient.
    """
    weight, g = operands(parameter, gradient, None, maximize)
    dtype = g.dtype
    if weight_decay is not None:
        weight = weight * cast(1.0 - lr * weight_decay, dtype)
    direction = sign(cast(beta1, dtype) * exp_avg + cast(1.0 - beta1, dtype) * g)
    mean = cast(beta2, dtype) * exp_avg + cast(1.0 - beta2, dtype) * g
    return cast(weight - cast(lr, dtype) * direction, parameter.dtype), mean


class Lion(Optimizer):
    """Every element moves by `lr` up or down: half the state of Adam. The paper takes 3 to 10 times smaller
    learning rates, and larger weight decay, than with AdamW.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        clip: Clip | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, clip)

    def check(self, options: Mapping[str, Any]) -> None:
        for name in ("lr", "weight_decay"):
            require_number(self, options, name)
        if not isinstance(options["betas"], tuple) or len(options["betas"]) != 2:
            raise ArgumentError(
                f"Lion: betas must be a pair, received {options['betas']!r}; write (0.9, 0.99)"
            )
        require_number(self, options, "betas", below=1)

    def init(self, parameter: Parameter, options: Mapping[str, Any]) -> dict[str, Array]:
        return {"exp_avg": zeros(parameter)}

    def update(
        self, parameter: Any, gradient: Any, slots: Mapping[str, Any], hyper: Mapping[str, Any]
    ) -> tuple[Any, Mapping[str, Any]]:
        value, mean = lion_update(
            parameter,
            gradient,
            hyper["lr"],
            *hyper["betas"],
            slots["exp_avg"],
            hyper["weight_decay"],
            maximize=hyper["maximize"],
        )
        return value, {"exp_avg": mean}
