"""Activation functions as layers. `inplace`, where PyTorch has it, is accepted and has no effect: tensors
never change.
"""

from __future__ import annotations

from typing import Any

from thalweg.nn import functional
from thalweg.nn.init import constant_
from thalweg.nn.layer import new_parameter, size
from thalweg.nn.module import Module
from thalweg.ops.core import operand
from thalweg.ops.elementwise import greater, where
from thalweg.ops.movement import reshape


class _Plain(Module):
    """An activation without numbers of its own."""

    def __init__(self, inplace: bool = False) -> None:
        pass


class ReLU(_Plain):
    """max(x, 0)."""

    def forward(self, x: Any) -> Any:
        return functional.relu(x)


class ReLU6(_Plain):
    """x limited to the range from 0 to 6."""

    def forward(self, x: Any) -> Any:
        return functional.relu6(x)


class SELU(_Plain):
    """1.0507.. elu(x, alpha=1.6732..)."""

    def forward(self, x: Any) -> Any:
        return functional.selu(x)


class SiLU(_Plain):
    """x sigmoid(x), also known as swish."""

    def forward(self, x: Any) -> Any:
        return functional.silu(x)


class Mish(_Plain):
    """x tanh(softplus(x))."""

    def forward(self, x: Any) -> Any:
        return functional.mish(x)


class Hardswish(_Plain):
    """x hardsigmoid(x)."""

    def forward(self, x: Any) -> Any:
        return functional.hardswish(x)


class Hardsigmoid(_Plain):
    """x / 6 + 1/2 limited to the range from 0 to 1."""

    def forward(self, x: Any) -> Any:
        return functional.hardsigmoid(x)


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Any) -> Any:
        return functional.sigmoid(x)


class LogSigmoid(Module):
    """log(sigmoid(x))."""

    def forward(self, x: Any) -> Any:
        return functional.logsigmoid(x)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Any) -> Any:
        return functional.tanh(x)


class Softsign(Module):
    """x / (1 + |x|)."""

    def forward(self, x: Any) -> Any:
        return functional.softsign(x)


class LeakyReLU(Module):
    """x where it is positive, else `negative_slope` times x."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Any) -> Any:
        return functional.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class PReLU(Module):
    """x where it is positive, else a trained slope times x: one slope, or one for each channel (axis 1)."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25, *, dtype: Any = "float32") -> None:
        self.num_parameters = size("num_parameters", num_parameters)
        self.weight = new_parameter((self.num_parameters,), dtype)
        constant_(self.weight, init)

    def forward(self, x: Any) -> Any:
        x = operand(x)
        slope = self.weight if self.num_parameters == 1 else reshape(self.weight, (-1, *(1,) * (x.ndim - 2)))
        return where(greater(x, 0), x, x * slope)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class ELU(Module):
    """x where it is positive, else alpha (exp(x) - 1)."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        self.alpha = alpha

    def forward(self, x: Any) -> Any:
        return functional.elu(x, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class GELU(Module):
    """x times the normal distribution function of x; `approximate="tanh"` for the usual approximation."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, x: Any) -> Any:
        return functional.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class Softplus(Module):
    """log(1 + exp(beta x)) / beta; x itself where beta x is above `threshold`."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        self.beta, self.threshold = beta, threshold

    def forward(self, x: Any) -> Any:
        return functional.softplus(x, self.beta, self.threshold)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, threshold={self.threshold}"


class Hardtanh(Module):
    """x limited to the range from `min_val` to `max_val`."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> None:
        self.min_val, self.max_val = min_val, max_val

    def forward(self, x: Any) -> Any:
        return functional.hardtanh(x, self.min_val, self.max_val)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}"


class _AlongAxis(Module):
    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Softmax(_AlongAxis):
    """exp(x) / sum(exp(x)) along axis `dim`."""

    def forward(self, x: Any) -> Any:
        return functional.softmax(x, self.dim)


class LogSoftmax(_AlongAxis):
    """log(softmax(x)) along axis `dim`."""

    def forward(self, x: Any) -> Any:
        return functional.log_softmax(x, self.dim)


class GLU(_AlongAxis):
    """The first half along axis `dim` times the sigmoid of the second half."""

    def forward(self, x: Any) -> Any:
        return functional.glu(x, self.dim)
