"""Adam (Kingma and Ba, 2015) and AdamW (Loshchilov and Hutter, 2019), as `torch.optim.Adam` and `AdamW`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg import types
from thalweg.errors import ArgumentError
from thalweg.ops.core import cast, composite
from thalweg.ops.elementwise import maximum, pow, sqrt
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


def _moments(
    parameter: Any,
    gradient: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    max_exp_avg_sq: Any,
    step: Any,
    numbers: tuple[Any, Any, Any, Any],
) -> Any:
    """The parameter, both moments, their maximum (where given) and the step count after one step without
    decay.
    """
    lr, beta1, beta2, eps = numbers
    dtype = gradient.dtype
    step = step + 1
    count = cast(step, types.float64)
    mean = exp_avg + cast(1.0 - beta1, dtype) * (gradient - exp_avg)
    square = cast(beta2, dtype) * exp_avg_sq + cast(1.0 - beta2, dtype) * (gradient * gradient)
    # Scalars in float64, as PyTorch computes them in Python: 1 - beta2^step loses digits in float32.
    rate = cast(lr / (1.0 - pow(beta1, count)), dtype)
    correction = cast(sqrt(1.0 - pow(beta2, count)), dtype)
    largest = None if max_exp_avg_sq is None else maximum(max_exp_avg_sq, square)
    spread = sqrt(square if largest is None else largest) / correction + cast(eps, dtype)
    value = parameter - rate * (mean / spread)
    return (value, mean, square, step) if largest is None else (value, mean, square, largest, step)


@composite
def adam_update(
    parameter: Any,
    gradient: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    step: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    max_exp_avg_sq: Any = None,
    weight_decay: Any = None,
    *,
    maximize: bool = False,
) -> Any:
    """Parameter, first and second moment, (with amsgrad: largest second moment,) and step count after one
    step.

    The weight decay is added to the gradient (an L2 penalty).
    """
    weight, g = operands(parameter, gradient, weight_decay, maximize)
    value, *slots = _moments(weight, g, exp_avg, exp_avg_sq, max_exp_avg_sq, step, (lr, beta1, beta2, eps))
    return cast(value, parameter.dtype), *slots


@composite
def adamw_update(
    parameter: Any,
    gradient: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    step: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    max_exp_avg_sq: Any = None,
    weight_decay: Any = None,
    *,
    maximize: bool = False,
) -> Any:
    """As `adam_update`, but the parameter itself decays by lr * weight_decay before the step."""
    weight, g = operands(parameter, gradient, None, maximize)
    if weight_decay is not None:
        weight = weight * cast(1.0 - lr * weight_decay, weight.dtype)
    value, *slots = _moments(weight, g, exp_avg, exp_avg_sq, max_exp_avg_sq, step, (lr, beta1, beta2, eps))
    return cast(value, parameter.dtype), *slots


class Adam(Optimizer):
    """Steps scaled by running averages of gradients and of their squares, element by element.

    `weight_decay` adds to the gradient; `AdamW` shrinks the parameter instead. `amsgrad` divides by the
    largest second moment so far.
    """

    _update = staticmethod(adam_update)

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        clip: Clip | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "amsgrad": amsgrad, "maximize": maximize}, clip)

    def check(self, options: Mapping[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            require_number(self, options, name)
        if not isinstance(options["betas"], tuple) or len(options["betas"]) != 2:
            name = type(self).__name__
            raise ArgumentError(
                f"{name}: betas must be a pair, received {options['betas']!r}; write (0.9, 0.999)"
            )
        require_number(self, options, "betas", below=1)

    def init(self, parameter: Parameter, options: Mapping[str, Any]) -> dict[str, Array]:
        slots = {"step": no_steps(), "exp_avg": zeros(parameter), "exp_avg_sq": zeros(parameter)}
        return {**slots, "max_exp_avg_sq": zeros(parameter)} if options["amsgrad"] else slots

    def update(
        self, parameter: Any, gradient: Any, slots: Mapping[str, Any], hyper: Mapping[str, Any]
    ) -> tuple[Any, Mapping[str, Any]]:
        largest = slots.get("max_exp_avg_sq") if hyper["amsgrad"] else None
        value, mean, square, *rest = self._update(
            parameter,
            gradient,
            hyper["lr"],
            *hyper["betas"],
            hyper["eps"],
            slots["step"],
            slots["exp_avg"],
            slots["exp_avg_sq"],
            largest,
            hyper["weight_decay"],
            maximize=hyper["maximize"],
        )
        changed = {"exp_avg": mean, "exp_avg_sq": square, "step": rest[-1]}
        return value, changed if largest is None else {**changed, "max_exp_avg_sq": rest[0]}


class AdamW(Adam):
    """Adam with decoupled weight decay: every step first multiplies the parameter by 1 - lr *
    weight_decay.
    """

    _update = staticmethod(adamw_update)

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        clip: Clip | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, clip=clip)
