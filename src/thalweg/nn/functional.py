"""Layers as functions, with PyTorch's names and argument order; each is one call of an op of `thalweg.ops`.

In: tensors (images are [batch, channels, *spatial]). Out: tensors. Called by users and by the layers of
`thalweg.nn`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thalweg.errors import ArgumentError
from thalweg.nn.layer import refuse_shape, refusing_shapes, require_axes
from thalweg.ops import activations, attention, losses, movement, normalization, pooling
from thalweg.ops.activations import (
    hardsigmoid,
    hardswish,
    logsigmoid,
    mish,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softsign,
)
from thalweg.ops.contraction import conv, conv_transpose
from thalweg.ops.core import cast, operand
from thalweg.ops.elementwise import maximum, sqrt, tanh
from thalweg.ops.embedding import embedding as lookup
from thalweg.ops.embedding import one_hot
from thalweg.ops.linear import linear
from thalweg.ops.reduction import sum as reduce_sum
from thalweg.tensor import random
from thalweg.tensor.gradient import no_grad
from thalweg.tensor.random import Generator, default_generator
from thalweg.tensor.state import Buffer

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cross_entropy",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "elu",
    "embedding",
    "gelu",
    "glu",
    "group_norm",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "huber_loss",
    "instance_norm",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "logsigmoid",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "mish",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "relu",
    "relu6",
    "rms_norm",
    "scaled_dot_product_attention",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "softsign",
    "tanh",
]


def _image(name: str, x: Any, rank: int) -> Any:
    x = operand(x)
    require_axes(name, x, rank)
    return x


# ---- activations ------------------------------------------------------------------------------------------


def leaky_relu(input: Any, negative_slope: float = 0.01) -> Any:
    """x where it is positive, else `negative_slope` times x."""
    return activations.leaky_relu(input, negative_slope=negative_slope)


def elu(input: Any, alpha: float = 1.0) -> Any:
    """x where it is positive, else alpha (exp(x) - 1)."""
    return activations.elu(input, alpha=alpha)


def gelu(input: Any, approximate: str = "none") -> Any:
    """x times the normal distribution function of x; `approximate="tanh"` for the usual approximation."""
    return activations.gelu(input, approximate=approximate)


def softplus(input: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """log(1 + exp(beta x)) / beta; x itself where beta x is above `threshold`."""
    return activations.softplus(input, beta=beta, threshold=threshold)


def hardtanh(input: Any, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    """x limited to the range from `min_val` to `max_val`."""
    return activations.hardtanh(input, min_val=min_val, max_val=max_val)


def softmax(input: Any, dim: int = -1) -> Any:
    """exp(x) / sum(exp(x)) along axis `dim`."""
    return activations.softmax(input, dim)


def log_softmax(input: Any, dim: int = -1) -> Any:
    """log(softmax(x)) along axis `dim`."""
    return activations.log_softmax(input, dim)


def glu(input: Any, dim: int = -1) -> Any:
    """The first half along axis `dim` times the sigmoid of the second half."""
    return activations.glu(input, dim)


# ---- convolution ------------------------------------------------------------------------------------------


def conv1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Convolution of [B, C, L] with [K, C / groups, kernel]."""
    x = _image("conv1d", input, 1)
    return conv(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Convolution of [B, C, H, W] with [K, C / groups, *kernel]."""
    x = _image("conv2d", input, 2)
    return conv(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv3d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Convolution of [B, C, D, H, W] with [K, C / groups, *kernel]."""
    x = _image("conv3d", input, 3)
    return conv(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv_transpose1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Transposed convolution of [B, C, L] with [C, K / groups, kernel]."""
    return _conv_transpose(
        "conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Transposed convolution of [B, C, H, W] with [C, K / groups, *kernel]."""
    return _conv_transpose(
        "conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose3d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Transposed convolution of [B, C, D, H, W] with [C, K / groups, *kernel]."""
    return _conv_transpose(
        "conv_transpose3d", 3, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def _conv_transpose(
    name: str,
    rank: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Any:
    return conv_transpose(
        _image(name, input, rank),
        weight,
        bias,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        groups=groups,
        dilation=dilation,
    )


# ---- pooling ----------------------------------------------------------------------------------------------


def _max_pool(
    name: str,
    rank: int,
    input: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    return pooling.max_pool(
        _image(name, input, rank),
        kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
        return_indices=return_indices,
    )


def max_pool1d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of every window of [B, C, L]; `stride` defaults to `kernel_size`."""
    return _max_pool(
        "max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


def max_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of every window of [B, C, H, W]; `stride` defaults to `kernel_size`."""
    return _max_pool(
        "max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


def max_pool3d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of every window of [B, C, D, H, W]; `stride` defaults to `kernel_size`."""
    return _max_pool(
        "max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


def _avg_pool(
    name: str,
    rank: int,
    input: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    return pooling.average_pool(
        _image(name, input, rank),
        kernel_size,
        stride=stride,
        padding=padding,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        divisor_override=divisor_override,
    )


def avg_pool1d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    """The mean of every window of [B, C, L]; `stride` defaults to `kernel_size`."""
    return _avg_pool("avg_pool1d", 1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The mean of every window of [B, C, H, W]; `stride` defaults to `kernel_size`."""
    return _avg_pool(
        "avg_pool2d", 2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def avg_pool3d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The mean of every window of [B, C, D, H, W]; `stride` defaults to `kernel_size`."""
    return _avg_pool(
        "avg_pool3d", 3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def adaptive_avg_pool1d(input: Any, output_size: Any) -> Any:
    """Means of [B, C, L] over `output_size` windows that cover the axis."""
    return pooling.adaptive_average_pool(_image("adaptive_avg_pool1d", input, 1), output_size)


def adaptive_avg_pool2d(input: Any, output_size: Any) -> Any:
    """Means of [B, C, H, W] over `output_size` windows along each axis; None keeps an axis."""
    return pooling.adaptive_average_pool(_image("adaptive_avg_pool2d", input, 2), output_size)


def adaptive_avg_pool3d(input: Any, output_size: Any) -> Any:
    """Means of [B, C, D, H, W] over `output_size` windows along each axis; None keeps an axis."""
    return pooling.adaptive_average_pool(_image("adaptive_avg_pool3d", input, 3), output_size)


def adaptive_max_pool1d(input: Any, output_size: Any) -> Any:
    """Maxima of [B, C, L] over `output_size` windows that cover the axis."""
    return pooling.adaptive_max_pool(_image("adaptive_max_pool1d", input, 1), output_size)


def adaptive_max_pool2d(input: Any, output_size: Any) -> Any:
    """Maxima of [B, C, H, W] over `output_size` windows along each axis; None keeps an axis."""
    return pooling.adaptive_max_pool(_image("adaptive_max_pool2d", input, 2), output_size)


def adaptive_max_pool3d(input: Any, output_size: Any) -> Any:
    """Maxima of [B, C, D, H, W] over `output_size` windows along each axis; None keeps an axis."""
    return pooling.adaptive_max_pool(_image("adaptive_max_pool3d", input, 3), output_size)


# ---- normalisation ----------------------------------------------------------------------------------------


def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Channels of [B, C, ...] normalised: in training over the batch, else by the running statistics [C].

    In training, running statistics that are buffers move towards the batch's by `momentum` (the variance
    without bias).
    """
    if not training:
        if running_mean is None or running_var is None:
            raise ArgumentError(
                "batch_norm outside training needs running_mean and running_var; write training=True"
            )
        return normalization.batch_norm_inference(input, running_mean, running_var, weight, bias, eps=eps)
    result, mean, variance = normalization.batch_norm(input, weight, bias, eps=eps)
    if running_mean is not None and running_var is not None:
        if not (isinstance(running_mean, Buffer) and isinstance(running_var, Buffer)):
            raise ArgumentError(
                "batch_norm in training updates running_mean and running_var, which must be buffers; "
                "write nn.Buffer(...)"
            )
        count = result.size // result.shape[1]
        with no_grad():
            for buffer, value in ((running_mean, mean), (running_var, variance * (count / (count - 1)))):
                buffer.assign(
                    cast((1.0 - momentum) * buffer + momentum * cast(value, buffer.dtype), buffer.dtype)
                )
    return result


def layer_norm(
    input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """Normalised over the last axes, whose sizes are `normalized_shape`."""
    return normalization.layer_norm(input, weight, bias, normalized_shape=normalized_shape, eps=eps)


def rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    """Divided by the root mean square over the last axes, whose sizes are `normalized_shape`."""
    return normalization.rms_norm(input, weight, normalized_shape=normalized_shape, eps=eps)


def group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """Each sample's channels [B, C, ...] normalised in `num_groups` groups."""
    return normalization.group_norm(input, weight, bias, num_groups=num_groups, eps=eps)


def instance_norm(input: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """Each channel of each sample of [B, C, *spatial] normalised on its own."""
    return normalization.instance_norm(input, weight, bias, eps=eps)


def normalize(input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Any:
    """Divided by the larger of `eps` and the p-norm along axis `dim`."""
    x = operand(input)
    if p == 2:
        norm = sqrt(reduce_sum(x * x, dim, keepdims=True))
    else:
        norm = reduce_sum(abs(x) ** p, dim, keepdims=True) ** (1.0 / p)
    return x / maximum(norm, eps)


# ---- dropout, lookup, padding -----------------------------------------------------------------------------


def dropout(input: Any, p: float = 0.5, training: bool = True, generator: Generator | None = None) -> Any:
    """In training each element is 0 with probability `p`, else x / (1 - p)."""
    return random.dropout(input, p, generator=generator) if training and p != 0 else operand(input)


def _channel_dropout(
    name: str, rank: int, input: Any, p: float, training: bool, generator: Generator | None
) -> Any:
    x = _image(name, input, rank)
    spatial = tuple(range(2, rank + 2))
    return random.dropout(x, p, shared_axes=spatial, generator=generator) if training and p != 0 else x


def dropout1d(input: Any, p: float = 0.5, training: bool = True, generator: Generator | None = None) -> Any:
    """In training each channel of [B, C, L] is 0 with probability `p`, else x / (1 - p)."""
    return _channel_dropout("dropout1d", 1, input, p, training, generator)


def dropout2d(input: Any, p: float = 0.5, training: bool = True, generator: Generator | None = None) -> Any:
    """In training each channel of [B, C, H, W] is 0 with probability `p`, else x / (1 - p)."""
    return _channel_dropout("dropout2d", 2, input, p, training, generator)


def dropout3d(input: Any, p: float = 0.5, training: bool = True, generator: Generator | None = None) -> Any:
    """In training each channel of [B, C, D, H, W] is 0 with probability `p`, else x / (1 - p)."""
    return _channel_dropout("dropout3d", 3, input, p, training, generator)


def embedding(input: Any, weight: Any, padding_idx: int | None = None) -> Any:
    """Row `input[..]` of `weight` [rows, features] for every index; row `padding_idx` receives no
    gradient.
    """
    return lookup(weight, input, padding_idx=padding_idx)


def pad(input: Any, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Any:
    """Padding given from the last axis backwards: (left, right, top, bottom, ...). Negative numbers cut
    off.
    """
    x = operand(input)
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        refuse_shape(f"pad needs two numbers for each axis, at most {x.ndim} axes, received {tuple(pad)}")
    if mode != "constant":
        raise ArgumentError(f'pad knows mode="constant" only, received {mode!r}')
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)][::-1]
    width = [(0, 0)] * (x.ndim - len(pairs)) + [(int(low), int(high)) for low, high in pairs]
    return movement.pad(x, width, value)


# ---- attention --------------------------------------------------------------------------------------------


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    generator: Generator | None = None,
) -> Any:
    """softmax(scale query key^T + mask) value: [.., heads, L, E], [.., heads, S, E], [.., heads, S, Ev] to
    [.., heads, L, Ev].

    `attn_mask` broadcasts to [.., heads, L, S]: a bool says which keys take part, a number is added to the
    scores. `is_causal` lets query i see the keys 0 to i. `scale` is 1 / sqrt(E) unless given. With
    `enable_gqa` several heads of the queries share one of the keys and values. Weights are dropped with
    probability `dropout_p` (also in evaluation: pass 0 there). A query for which all keys are masked gives 0.
    Memory grows linearly with L and S: above 512 queries the scores exist for one block of them at a time.
    """
    state, stream = (generator or default_generator).draw() if dropout_p != 0 else (None, 0)
    with refusing_shapes():
        return attention.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask,
            state,
            dropout_p=dropout_p,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            stream=stream,
        )


# ---- losses -----------------------------------------------------------------------------------------------


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """Cross entropy of scores [B, C, ...] for class indices [B, ...] or class probabilities [B, C, ...]."""
    return losses.cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def nll_loss(
    input: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean"
) -> Any:
    """Negative log likelihood of log-probabilities [B, C, ...] for class indices [B, ...]."""
    return losses.nll_loss(input, target, weight, ignore_index=ignore_index, reduction=reduction)


def mse_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """(input - target)^2, reduced."""
    return losses.mse_loss(input, target, reduction=reduction)


def l1_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """|input - target|, reduced."""
    return losses.l1_loss(input, target, reduction=reduction)


def huber_loss(input: Any, target: Any, reduction: str = "mean", delta: float = 1.0) -> Any:
    """Squared for differences below `delta`, linear above."""
    return losses.huber_loss(input, target, delta=delta, reduction=reduction)


def smooth_l1_loss(input: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Any:
    """The Huber loss divided by `beta`."""
    return losses.smooth_l1_loss(input, target, beta=beta, reduction=reduction)


def binary_cross_entropy(input: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Any:
    """Cross entropy of probabilities of one class and targets from 0 to 1."""
    return losses.binary_cross_entropy(input, target, weight, reduction=reduction)


def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Any:
    """Cross entropy of scores (logits) of one class and targets from 0 to 1."""
    return losses.binary_cross_entropy_with_logits(input, target, weight, pos_weight, reduction=reduction)


def kl_div(input: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> Any:
    """Divergence of the distribution `target` from log-probabilities `input`; reduction "batchmean" divides
    by B.
    """
    return losses.kl_div(input, target, reduction=reduction, log_target=log_target)
