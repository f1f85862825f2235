"""Stochastic gradient descent with momentum, as `torch.optim.SGD`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.errors import ArgumentError
from thalweg.ops.core import cast, composite
from thalweg.ops.elementwise import equal, where
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
def sgd_update(
    parameter: Any,
    gradient: Any,
    lr: Any,
    weight_decay: Any = None,
    momentum: Any = None,
    momentum_buffer: Any = None,
    dampening: Any = None,
    step: Any = None,
    *,
    nesterov: bool = False,
    maximize: bool = False,
) -> Any:
    """The parameter after one step and, with momentum, the new momentum buffer.

    g = gradient + weight_decay * parameter; buffer = momentum * buffer + (1 - dampening) * g, without
    dampening at the first step; parameter - lr * (nesterov: g + momentum * buffer, else buffer).
    """
    weight, g = operands(parameter, gradient, weight_decay, maximize)
    rate = cast(lr, g.dtype)
    if momentum_buffer is None:
        return cast(weight - rate * g, parameter.dtype)
    keep = cast(momentum, g.dtype)
    share = g
    if dampening is not None:
        share = cast(where(equal(step, 0), 1.0, 1.0 - dampening), g.dtype) * g
    buffer = keep * momentum_buffer + share
    direction = g + keep * buffer if nesterov else buffer
    return cast(weight - rate * direction, parameter.dtype), buffer


class SGD(Optimizer):
    """Gradient descent: parameter -= lr * direction, where `momentum` averages directions over steps.

    Numbers may be changed at any time (`opt.lr = 0.01`). With momentum 0 no buffer is kept.
    """

    absent_at_zero = ("weight_decay", "dampening", "momentum")

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        clip: Clip | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "nesterov": nesterov, "maximize": maximize}, clip)

    def check(self, options: Mapping[str, Any]) -> None:
        for name in ("lr", "momentum", "weight_decay"):
            require_number(self, options, name)
        if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
            raise ArgumentError(
                f"SGD: nesterov needs a momentum and no dampening, received momentum={options['momentum']}, "
                f"dampening={options['dampening']}; write for example momentum=0.9"
            )

    def init(self, parameter: Parameter, options: Mapping[str, Any]) -> dict[str, Array]:
        slots = {"momentum_buffer": zeros(parameter)} if options["momentum"] != 0 else {}
        if slots and options["dampening"] != 0:
            slots["step"] = no_steps()
        return slots

    def update(
        self, parameter: Any, gradient: Any, slots: Mapping[str, Any], hyper: Mapping[str, Any]
    ) -> tuple[Any, Mapping[str, Any]]:
        flags = {"nesterov": hyper["nesterov"], "maximize": hyper["maximize"]}
        if hyper["momentum"] is None:
            return sgd_update(parameter, gradient, hyper["lr"], hyper["weight_decay"], **flags), {}
        step = slots.get("step")
        value, buffer = sgd_update(
            parameter,
            gradient,
            hyper["lr"],
            hyper["weight_decay"],
            hyper["momentum"],
            slots["momentum_buffer"],
            hyper["dampening"] if step is not None else None,
            step if hyper["dampening"] is not None else None,
            **flags,
        )
        changed = {"momentum_buffer": buffer}
        return value, changed if step is None else {**changed, "step": step + 1}
