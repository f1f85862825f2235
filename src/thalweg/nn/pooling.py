"""Pooling over 1, 2 and 3 spatial axes of [B, C, *spatial]."""

from __future__ import annotations

from typing import Any, ClassVar

from thalweg.nn.layer import require_axes
from thalweg.nn.module import Module
from thalweg.ops.core import operand
from thalweg.ops.pooling import adaptive_average_pool, adaptive_max_pool, average_pool, max_pool


class _MaxPool(Module):
    rank: ClassVar[int]

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation = padding, dilation
        self.return_indices, self.ceil_mode = return_indices, ceil_mode

    def forward(self, x: Any) -> Any:
        x = operand(x)
        require_axes(type(self).__name__, x, self.rank)
        return max_pool(
            x,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxPool1d(_MaxPool):
    """The largest element of every window of [B, C, L]. `stride` defaults to `kernel_size`."""

    rank = 1


class MaxPool2d(_MaxPool):
    """The largest element of every window of [B, C, H, W]. `stride` defaults to `kernel_size`."""

    rank = 2


class MaxPool3d(_MaxPool):
    """The largest element of every window of [B, C, D, H, W]. `stride` defaults to `kernel_size`."""

    rank = 3


class _AvgPool(Module):
    rank: ClassVar[int]

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.ceil_mode = padding, ceil_mode
        self.count_include_pad, self.divisor_override = count_include_pad, divisor_override

    def forward(self, x: Any) -> Any:
        x = operand(x)
        require_axes(type(self).__name__, x, self.rank)
        return average_pool(
            x,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            ceil_mode=self.ceil_mode,
            count_include_pad=self.count_include_pad,
            divisor_override=self.divisor_override,
        )

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool1d(_AvgPool):
    """The mean of every window of [B, C, L]. `stride` defaults to `kernel_size`."""

    rank = 1


class AvgPool2d(_AvgPool):
    """The mean of every window of [B, C, H, W]. `stride` defaults to `kernel_size`."""

    rank = 2


class AvgPool3d(_AvgPool):
    """The mean of every window of [B, C, D, H, W]. `stride` defaults to `kernel_size`."""

    rank = 3


class _AdaptivePool(Module):
    rank: ClassVar[int]

    def __init__(self, output_size: Any) -> None:
        self.output_size = output_size

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class _AdaptiveAvgPool(_AdaptivePool):
    def forward(self, x: Any) -> Any:
        x = operand(x)
        require_axes(type(self).__name__, x, self.rank)
        return adaptive_average_pool(x, self.output_size)


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """Means of [B, C, L] over `output_size` windows that cover the axis."""

    rank = 1


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """Means of [B, C, H, W] over `output_size` windows along each axis; None keeps an axis."""

    rank = 2


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    """Means of [B, C, D, H, W] over `output_size` windows along each axis; None keeps an axis."""

    rank = 3


class _AdaptiveMaxPool(_AdaptivePool):
    def forward(self, x: Any) -> Any:
        x = operand(x)
        require_axes(type(self).__name__, x, self.rank)
        return adaptive_max_pool(x, self.output_size)


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """Maxima of [B, C, L] over `output_size` windows that cover the axis."""

    rank = 1


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """Maxima of [B, C, H, W] over `output_size` windows along each axis; None keeps an axis."""

    rank = 2


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """Maxima of [B, C, D, H, W] over `output_size` windows along each axis; None keeps an axis."""

    rank = 3
