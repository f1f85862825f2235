"""Normalisation layers: batch, layer, root mean square, group and instance norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError
from thalweg.nn import functional
from thalweg.nn.init import ones_, zeros_
from thalweg.nn.layer import new_buffer, new_parameter, refuse_shape, size
from thalweg.nn.module import Module
from thalweg.ops.core import cast, operand
from thalweg.tensor.gradient import no_grad
from thalweg.tensor.state import Buffer


class _Affine(Module):
    """A layer that may scale and shift what it has normalised: weight begins as 1, bias as 0."""

    eps: Any  # float; None for RMSNorm's default

    def _make_affine(self, shape: tuple[int, ...], weight: bool, bias: bool, dtype: Any) -> None:
        self.weight = new_parameter(shape, dtype) if weight else None
        self.bias = new_parameter(shape, dtype) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to 1 and the bias to 0."""
        if self.weight is not None:
            ones_(self.weight)
        if self.bias is not None:
            zeros_(self.bias)


class _BatchNorm(_Affine):
    axes: ClassVar[tuple[int, ...]]  # how many axes an input may have
    shape: ClassVar[str]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: Any = "float32",
    ) -> None:
        self.num_features = size("num_features", num_features)
        self.eps, self.momentum, self.affine = eps, momentum, affine
        self.track_running_stats = track_running_stats
        self._make_affine((num_features,), affine, affine, dtype)
        self.running_mean: Buffer | None = None
        self.running_var: Buffer | None = None
        self.num_batches_tracked: Buffer | None = None
        if track_running_stats:
            # 16-bit averages would stop moving: momentum times a difference is soon below half a step.
            wide = types.promote(types.dtype(dtype), types.float32)
            self.running_mean = new_buffer((num_features,), wide, 0)
            self.running_var = new_buffer((num_features,), wide, 1)
            self.num_batches_tracked = new_buffer((), types.int64, 0)

    def reset_running_stats(self) -> None:
        """Forget the statistics."""
        if (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
        ):
            zeros_(self.running_mean)
            ones_(self.running_var)
            self.num_batches_tracked.replace(np.zeros((), np.int64))

    def forward(self, x: Any) -> Any:
        x = operand(x)
        if x.ndim not in self.axes or x.shape[1] != self.num_features:
            refuse_shape(
                f"{type(self).__name__}({self.num_features}) needs an input {self.shape} with "
                f"{self.num_features} "
                f"channels on axis 1, received shape {tuple(x.shape)}"
            )
        use_batch = self.training or self.running_mean is None
        if not (self.training and self.num_batches_tracked is not None):
            return functional.batch_norm(
                x,
                None if use_batch else self.running_mean,
                None if use_batch else self.running_var,
                self.weight,
                self.bias,
                training=use_batch,
                eps=self.eps,
            )
        momentum: Any = self.momentum
        with no_grad():
            count = self.num_batches_tracked + 1
            self.num_batches_tracked.assign(count)
            if momentum is None:  # the plain average over all batches so far
                momentum = 1.0 / cast(count, self.running_mean.dtype)  # type: ignore[union-attr]
        return functional.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=True,
            momentum=momentum,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Channels of [B, C] or [B, C, L] normalised over the batch in training, by running statistics in
    evaluation.

    Running statistics move towards the batch's by `momentum` (None: the average over all batches); the
    running variance is the unbiased one.
    """

    axes = (2, 3)
    shape = "[batch, channels] or [batch, channels, length]"


class BatchNorm2d(_BatchNorm):
    """Channels of [B, C, H, W] normalised over the batch in training, by running statistics in evaluation.

    As `BatchNorm1d`.
    """

    axes = (4,)
    shape = "[batch, channels, height, width]"


class BatchNorm3d(_BatchNorm):
    """Channels of [B, C, D, H, W] normalised over the batch in training, by running statistics in evaluation.

    As `BatchNorm1d`.
    """

    axes = (5,)
    shape = "[batch, channels, depth, height, width]"


def _sizes(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    listed = normalized_shape if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)
    if not listed:
        raise ArgumentError("normalized_shape must name at least one axis, received none")
    return tuple(size("normalized_shape", extent) for extent in listed)


class _OverLastAxes(_Affine):
    normalized_shape: tuple[int, ...]
    elementwise_affine: bool

    def _checked(self, x: Any) -> Any:
        x = operand(x)
        if tuple(x.shape[-len(self.normalized_shape) :]) != self.normalized_shape:
            refuse_shape(
                f"{type(self).__name__}({self.normalized_shape}) needs an input whose last axes have "
                "these sizes, "
                f"received shape {tuple(x.shape)}"
            )
        return x

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class LayerNorm(_OverLastAxes):
    """Normalised over the last axes, of sizes `normalized_shape`, then times `weight` plus `bias`."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: Any = "float32",
    ) -> None:
        self.normalized_shape = _sizes(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        self._make_affine(self.normalized_shape, elementwise_affine, elementwise_affine and bias, dtype)

    def forward(self, x: Any) -> Any:
        return functional.layer_norm(
            self._checked(x), self.normalized_shape, self.weight, self.bias, self.eps
        )


class RMSNorm(_OverLastAxes):
    """Divided by the root mean square over the last axes, of sizes `normalized_shape`, then times
    `weight`.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: Any = "float32",
    ) -> None:
        self.normalized_shape = _sizes(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        self._make_affine(self.normalized_shape, elementwise_affine, False, dtype)

    def forward(self, x: Any) -> Any:
        return functional.rms_norm(self._checked(x), self.normalized_shape, self.weight, self.eps)


class GroupNorm(_Affine):
    """Each sample's channels [B, C, ...] normalised in `num_groups` groups, then scaled and shifted by
    channel.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        dtype: Any = "float32",
    ) -> None:
        self.num_groups = size("num_groups", num_groups)
        self.num_channels = size("num_channels", num_channels)
        if self.num_channels % self.num_groups:
            raise ArgumentError(f"GroupNorm: num_groups={num_groups} must divide num_channels={num_channels}")
        self.eps, self.affine = eps, affine
        self._make_affine((num_channels,), affine, affine, dtype)

    def forward(self, x: Any) -> Any:
        x = operand(x)
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            refuse_shape(
                f"GroupNorm({self.num_groups}, {self.num_channels}) needs an input [batch, channels, "
                "...] with "
                f"{self.num_channels} channels on axis 1, received shape {tuple(x.shape)}"
            )
        return functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class _InstanceNorm(_Affine):
    rank: ClassVar[int]

    def __init__(
        self, num_features: int, eps: float = 1e-5, affine: bool = False, *, dtype: Any = "float32"
    ) -> None:
        self.num_features = size("num_features", num_features)
        self.eps, self.affine = eps, affine
        self._make_affine((num_features,), affine, affine, dtype)

    def forward(self, x: Any) -> Any:
        x = operand(x)
        if x.ndim != self.rank + 2 or x.shape[1] != self.num_features:
            refuse_shape(
                f"{type(self).__name__}({self.num_features}) needs an input with {self.rank + 2} axes and "
                f"{self.num_features} channels on axis 1, received shape {tuple(x.shape)}"
            )
        return functional.instance_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"


class InstanceNorm1d(_InstanceNorm):
    """Each channel of each sample of [B, C, L] normalised on its own. No running statistics."""

    rank = 1


class InstanceNorm2d(_InstanceNorm):
    """Each channel of each sample of [B, C, H, W] normalised on its own. No running statistics."""

    rank = 2


class InstanceNorm3d(_InstanceNorm):
    """Each channel of each sample of [B, C, D, H, W] normalised on its own. No running statistics."""

    rank = 3
