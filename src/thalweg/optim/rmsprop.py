"""RMSprop (Tieleman and Hinton, 2012), as `torch.optim.RMSprop`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.ops.core import cast, composite
from thalweg.ops.elementwise import sqrt
from thalweg.optim.optimizer import Array, Clip, Optimizer, Parameters, operands, require_number, zeros
from thalweg.tensor.state import Parameter


@composite
def rmsprop_update(
    parameter: Any,
    gradient: Any,
    lr: Any,
    alpha: Any,
    eps: Any,
    square_avg: Any,
    grad_avg: Any = None,
    momentum: Any = None,
    momentum_buffer: Any = None,
    weight_decay: Any = None,
    *,
    maximize: bool = False,
) -> Any:
    """Parameter, running mean of squares, (centred: of gradients,) (with momentum: its buffer) after one
    step.
    """
    weight, g = operands(parameter, gradient, weight_decay, maximize)
    fresh = cast(1.0 - alpha, g.dtype)
    square = cast(alpha, g.dtype) * square_avg + fresh * (g * g)
    slots = [square]
    variance = square
    if grad_avg is not None:
        mean = grad_avg + fresh * (g - grad_avg)
        slots.append(mean)
        variance = square - mean * mean
    direction = g / (sqrt(variance) + cast(eps, g.dtype))
    if momentum_buffer is not None:
        direction = cast(momentum, g.dtype) * momentum_buffer + direction
        slots.append(direction)
    return cast(weight - cast(lr, g.dtype) * direction, parameter.dtype), *slots


class RMSprop(Optimizer):
    """Gradients divided by the root of a running mean of their squares (`centered`: by the standard
    deviation).
    """

    absent_at_zero = ("weight_decay", "momentum")

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        clip: Clip | None = None,
    ) -> None:
        defaults = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, {**defaults, "centered": centered, "maximize": maximize}, clip)

    def check(self, options: Mapping[str, Any]) -> None:
        for name in ("lr", "alpha", "eps", "weight_decay", "momentum"):
            require_number(self, options, name)

    def init(self, parameter: Parameter, options: Mapping[str, Any]) -> dict[str, Array]:
        names = ["square_avg"]
        names += ["grad_avg"] if options["centered"] else []
        names += ["momentum_buffer"] if options["momentum"] != 0 else []
        return {name: zeros(parameter) for name in names}

    def update(
        self, parameter: Any, gradient: Any, slots: Mapping[str, Any], hyper: Mapping[str, Any]
    ) -> tuple[Any, Mapping[str, Any]]:
        mean = slots.get("grad_avg") if hyper["centered"] else None
        buffer = slots.get("momentum_buffer") if hyper["momentum"] is not None else None
        value, *changed = rmsprop_update(
            parameter,
            gradient,
            hyper["lr"],
            hyper["alpha"],
            hyper["eps"],
            slots["square_avg"],
            mean,
            hyper["momentum"],
            buffer,
            hyper["weight_decay"],
            maximize=hyper["maximize"],
        )
        names = [
            "square_avg",
            *(["grad_avg"] if mean is not None else []),
            *(["momentum_buffer"] if buffer is not None else []),
        ]
        return value, dict(zip(names, changed, strict=True))
