"""Fully connected layers."""

from __future__ import annotations

import math
from typing import Any

from thalweg.nn import init
from thalweg.nn.layer import new_parameter, refuse_shape, size
from thalweg.nn.module import Module
from thalweg.ops.core import operand
from thalweg.ops.linear import linear


class Linear(Module):
    """y = x weight^T + bias over the last axis: [.., in_features] to [.., out_features].

    `weight` is [out_features, in_features], `bias` [out_features]; both begin uniform within 1 /
    sqrt(in_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        generator: Any = None,
    ) -> None:
        self.in_features = size("in_features", in_features)
        self.out_features = size("out_features", out_features)
        self.weight = new_parameter((out_features, in_features), dtype)
        self.bias = new_parameter((out_features,), dtype) if bias else None
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Any = None) -> None:
        """Draw weight and bias anew."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)
        if self.bias is not None:
            init.fan_in_uniform_(self.bias, self.in_features, generator=generator)

    def forward(self, x: Any) -> Any:
        x = operand(x)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            received = (
                f"{x.shape[-1]} on axis {x.ndim - 1} of shape {tuple(x.shape)}" if x.ndim else "a 0-d tensor"
            )
            advice = f"; write nn.Linear({x.shape[-1]}, {self.out_features}), or reshape x" if x.ndim else ""
            refuse_shape(
                f"Linear(in_features={self.in_features}, out_features={self.out_features}) needs an "
                "input with "
                f"{self.in_features} elements on its last axis, received {received}{advice}"
            )
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )
