"""Convolutions and transposed convolutions over 1, 2 and 3 spatial axes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from thalweg.errors import ArgumentError
from thalweg.nn import init
from thalweg.nn.layer import new_parameter, per_axis, refuse_shape, require_axes, size
from thalweg.nn.module import Module
from thalweg.ops.contraction import conv, conv_transpose
from thalweg.ops.core import operand


class _Convolution(Module):
    """What both kinds share; a subclass says how many spatial axes there are."""

    rank: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        bias: bool,
        dtype: Any,
        generator: Any,
    ) -> None:
        self.in_channels = size("in_channels", in_channels)
        self.out_channels = size("out_channels", out_channels)
        self.kernel_size = per_axis("kernel_size", kernel_size, self.rank)
        self.stride = per_axis("stride", stride, self.rank)
        self.padding = (
            padding if isinstance(padding, str) else per_axis("padding", padding, self.rank, least=0)
        )
        self.dilation = per_axis("dilation", dilation, self.rank)
        self.groups = size("groups", groups)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ArgumentError(
                f"{type(self).__name__}: groups={groups} must divide in_channels={in_channels} and "
                f"out_channels={out_channels}"
            )
        self.weight = new_parameter(self._weight_shape(), dtype)
        self.bias = new_parameter((self.out_channels,), dtype) if bias else None
        self.reset_parameters(generator)

    def _weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def reset_parameters(self, generator: Any = None) -> None:
        """Draw weight and bias anew, uniform within 1 / sqrt(fan in)."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)
        if self.bias is not None:
            init.fan_in_uniform_(self.bias, math.prod(self.weight.shape[1:]), generator=generator)

    def _checked(self, x: Any) -> Any:
        x = operand(x)
        require_axes(type(self).__name__, x, self.rank)
        if x.shape[1] != self.in_channels:
            refuse_shape(
                f"{type(self).__name__}({self.in_channels}, {self.out_channels}) needs an input with "
                f"{self.in_channels} channels on axis 1, received {x.shape[1]} (shape {tuple(x.shape)}); "
                f"write nn.{type(self).__name__}({x.shape[1]}, {self.out_channels}, ...), or check the "
                "order of axes"
            )
        return x

    def extra_repr(self) -> str:
        zero, one = (0,) * self.rank, (1,) * self.rank
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        ]
        parts += [f"padding={self.padding!r}"] if self.padding != zero else []
        parts += [f"dilation={self.dilation}"] if self.dilation != one else []
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        parts += ["bias=False"] if self.bias is None else []
        return ", ".join(parts)


class _Forward(_Convolution):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        generator: Any = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, dtype, generator
        )

    def forward(self, x: Any) -> Any:
        return conv(
            self._checked(x),
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )


class Conv1d(_Forward):
    """[B, in_channels, L] to [B, out_channels, L']; `weight` is [out_channels, in_channels / groups, kernel].

    L' = floor((L + 2 padding - dilation (kernel - 1) - 1) / stride) + 1. `padding` may be "same" or "valid".
    """

    rank = 1


class Conv2d(_Forward):
    """[B, in_channels, H, W] to [B, out_channels, H', W']; `weight` is [out_channels, in_channels / groups,
    *kernel].

    H' = floor((H + 2 padding - dilation (kernel - 1) - 1) / stride) + 1, W' likewise. `padding` may be "same"
    or "valid".
    """

    rank = 2


class Conv3d(_Forward):
    """[B, in_channels, D, H, W] to [B, out_channels, D', H', W']; sizes as in `Conv2d`."""

    rank = 3


class _Transposed(_Convolution):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        *,
        dtype: Any = "float32",
        generator: Any = None,
    ) -> None:
        self.output_padding = per_axis("output_padding", output_padding, self.rank, least=0)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, dtype, generator
        )

    def _weight_shape(self) -> tuple[int, ...]:
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    def forward(self, x: Any) -> Any:
        return conv_transpose(
            self._checked(x),
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            groups=self.groups,
            dilation=self.dilation,
        )

    def extra_repr(self) -> str:
        extra = f", output_padding={self.output_padding}" if any(self.output_padding) else ""
        return super().extra_repr() + extra


class ConvTranspose1d(_Transposed):
    """[B, in_channels, L] to [B, out_channels, L']; `weight` is [in_channels, out_channels / groups, kernel].

    L' = (L - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1.
    """

    rank = 1


class ConvTranspose2d(_Transposed):
    """[B, in_channels, H, W] to [B, out_channels, H', W']; sizes as in `ConvTranspose1d`."""

    rank = 2


class ConvTranspose3d(_Transposed):
    """[B, in_channels, D, H, W] to [B, out_channels, D', H', W']; sizes as in `ConvTranspose1d`."""

    rank = 3
