"""Normalisation: layer, RMS, group, instance and batch norm, with PyTorch's semantics and argument names.

Statistics of 16-bit tensors are computed and returned in float32. The gradients have closed forms over
residuals (mean and reciprocal deviation), so that nothing of the tensor's size is kept besides the input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from thalweg.errors import ArgumentError, ShapeError
from thalweg.ops.activations import number, wide
from thalweg.ops.core import cast, composite, floating, require
from thalweg.ops.elementwise import rsqrt, stop_gradient
from thalweg.ops.movement import reshape
from thalweg.ops.reduction import sum as reduce_sum
from thalweg.ops.samples import Sample, samples, values


def _mean(x: Any, axes: tuple[int, ...]) -> Any:
    return reduce_sum(x, axes, keepdims=True) / math.prod(x.shape[axis] for axis in axes)


def _affine(y: Any, weight: Any, bias: Any) -> Any:
    if weight is not None:
        y = y * wide(weight)
    return y if bias is None else y + wide(bias)


def _trailing(x: Any, normalized_shape: Any, weight: Any, bias: Any, what: str) -> int:
    """How many trailing axes `normalized_shape` names (None: those of the weight, else the last)."""
    if normalized_shape is None:
        given = weight if weight is not None else bias
        return given.ndim if given is not None else 1
    listed = tuple(normalized_shape) if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)
    if not listed or tuple(x.shape[-len(listed) :]) != listed:
        raise ArgumentError(
            f"{what} with normalized_shape {listed} needs an input whose last axes have these sizes, "
            f"received shape {x.shape}"
        )
    return len(listed)


def _last_axes(what: str, x: Any, count: int, weight: Any, bias: Any) -> tuple[int, ...]:
    require(
        1 <= count <= x.ndim,
        f"{what} over the last {count} axes needs as many, received a tensor of shape {x.shape}",
    )
    for name, value in (("weight", weight), ("bias", bias)):
        require(
            value is None or value.shape == x.shape[x.ndim - count :],
            f"{what} over axes of sizes {x.shape[x.ndim - count :]} needs a {name} of that shape, received "
            f"{None if value is None else value.shape}",
        )
    return tuple(range(x.ndim - count, x.ndim))


def _small_operands(x: Any, *others: Any) -> tuple[Any, ...]:
    """x in floating point, and weights and biases in its type."""
    x = floating(x)
    return (x, *(None if other is None else cast(other, x.dtype) for other in others))


# ---- layer norm --------------------------------------------------------------------------------------------


@composite
def _layer_norm(x: Any, weight: Any = None, bias: Any = None, *, normalized_ndim: int, eps: float) -> Any:
    return _layer_norm_parts(x, weight, bias, normalized_ndim, eps)[0]


@_layer_norm.residuals
def _layer_norm_with_residuals(
    x: Any, weight: Any = None, bias: Any = None, *, normalized_ndim: int, eps: float
) -> Any:
    """The result, and of each row the mean and 1 / sqrt(variance + eps)."""
    return _layer_norm_parts(x, weight, bias, normalized_ndim, eps)


def _layer_norm_parts(
    x: Any, weight: Any, bias: Any, normalized_ndim: int, eps: float
) -> tuple[Any, Any, Any]:
    axes = _last_axes("layer_norm", x, normalized_ndim, weight, bias)
    source = wide(x)
    mean = _mean(source, axes)
    centred = source - mean
    scale = rsqrt(_mean(centred * centred, axes) + eps)
    return cast(_affine(centred * scale, weight, bias), x.dtype), mean, scale


@composite
def _layer_norm_gradient(
    g: Any, x: Any, mean: Any, scale: Any, weight: Any = None, *, normalized_ndim: int
) -> Any:
    """The gradient with respect to x."""
    axes = tuple(range(x.ndim - normalized_ndim, x.ndim))
    normal = (wide(x) - mean) * scale
    cotangent = _affine(wide(g), weight, None)
    along = _mean(cotangent * normal, axes)
    return cast((cotangent - _mean(cotangent, axes) - normal * along) * scale, x.dtype)


@_layer_norm.gradient
def _layer_norm_rule(
    inputs: Any, outputs: Any, cotangents: Any, *, normalized_ndim: int, eps: float
) -> Sequence[Any]:
    (x, weight, bias), (_, mean, scale), (g,) = inputs, outputs, cotangents
    by_x = _layer_norm_gradient(g, x, mean, scale, weight, normalized_ndim=normalized_ndim)
    leading = tuple(range(x.ndim - normalized_ndim))
    by_weight = by_bias = None
    if weight is not None:
        by_weight = cast(reduce_sum(wide(g) * ((wide(x) - mean) * scale), leading), weight.dtype)
    if bias is not None:
        by_bias = cast(reduce_sum(wide(g), leading), bias.dtype)
    return (by_x, by_weight, by_bias)


def layer_norm(
    x: Any, weight: Any = None, bias: Any = None, *, normalized_shape: Any = None, eps: float = 1e-5
) -> Any:
    """(x - mean) / sqrt(variance + eps) over the last axes, then times `weight` plus `bias` (Ba et al.,
    2016).

    `normalized_shape` gives the sizes of these axes (None: the weight's, else the last axis). The variance is
    the biased one.
    """
    x, weight, bias = _small_operands(x, weight, bias)
    count = _trailing(x, normalized_shape, weight, bias, "layer_norm")
    return _layer_norm(x, weight, bias, normalized_ndim=count, eps=number(eps, "eps"))


# ---- root mean square --------------------------------------------------------------------------------------


@composite
def _rms_norm(x: Any, weight: Any = None, *, normalized_ndim: int, eps: float) -> Any:
    return _rms_norm_parts(x, weight, normalized_ndim, eps)[0]


@_rms_norm.residuals
def _rms_norm_with_residuals(x: Any, weight: Any = None, *, normalized_ndim: int, eps: float) -> Any:
    """The result, and of each row 1 / sqrt(mean of squares + eps)."""
    return _rms_norm_parts(x, weight, normalized_ndim, eps)


def _rms_norm_parts(x: Any, weight: Any, normalized_ndim: int, eps: float) -> tuple[Any, Any]:
    axes = _last_axes("rms_norm", x, normalized_ndim, weight, None)
    source = wide(x)
    scale = rsqrt(_mean(source * source, axes) + eps)
    return cast(_affine(source * scale, weight, None), x.dtype), scale


@composite
def _rms_norm_gradient(g: Any, x: Any, scale: Any, weight: Any = None, *, normalized_ndim: int) -> Any:
    """The gradient with respect to x."""
    axes = tuple(range(x.ndim - normalized_ndim, x.ndim))
    normal = wide(x) * scale
    cotangent = _affine(wide(g), weight, None)
    return cast((cotangent - normal * _mean(cotangent * normal, axes)) * scale, x.dtype)


@_rms_norm.gradient
def _rms_norm_rule(
    inputs: Any, outputs: Any, cotangents: Any, *, normalized_ndim: int, eps: float
) -> Sequence[Any]:
    (x, weight), (_, scale), (g,) = inputs, outputs, cotangents
    by_x = _rms_norm_gradient(g, x, scale, weight, normalized_ndim=normalized_ndim)
    if weight is None:
        return (by_x, None)
    leading = tuple(range(x.ndim - normalized_ndim))
    return (by_x, cast(reduce_sum(wide(g) * (wide(x) * scale), leading), weight.dtype))


_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


def rms_norm(x: Any, weight: Any = None, *, normalized_shape: Any = None, eps: float | None = None) -> Any:
    """x / sqrt(mean of squares + eps) over the last axes, then times `weight` (Zhang and Sennrich, 2019).

    `normalized_shape` as in `layer_norm`; `eps` None is the element type's distance of 1 from the next
    number, as in PyTorch.
    """
    x, weight = _small_operands(x, weight)
    count = _trailing(x, normalized_shape, weight, None, "rms_norm")
    eps = _EPSILON[x.dtype.name] if eps is None else number(eps, "eps")
    return _rms_norm(x, weight, normalized_ndim=count, eps=eps)


# ---- group and instance norm -------------------------------------------------------------------------------


def _per_channel(what: str, x: Any, *values: Any) -> list[Any]:
    """One value for each channel (axis 1 of x), in a shape that broadcasts against x."""
    require(x.ndim >= 2, f"{what} needs a tensor [batch, channels, ...], received shape {x.shape}")
    for value in values:
        require(
            value is None or value.shape == (x.shape[1],),
            f"{what} needs weights, biases and statistics with one element for each of the {x.shape[1]} "
            f"channels, received shape {None if value is None else value.shape}",
        )
    shape = (x.shape[1], *(1,) * (x.ndim - 2))
    return [None if value is None else reshape(wide(value), shape) for value in values]


@composite
def _group_norm(x: Any, weight: Any = None, bias: Any = None, *, num_groups: int, eps: float) -> Any:
    weight, bias = _per_channel("group_norm", x, weight, bias)
    require(
        x.shape[1] % num_groups == 0,
        f"group_norm cannot divide the {x.shape[1]} channels of shape {x.shape} into {num_groups} groups",
    )
    members = x.shape[1] // num_groups * math.prod(x.shape[2:])
    rows = reshape(wide(x), (x.shape[0], num_groups, members))
    normal = reshape(_layer_norm(rows, normalized_ndim=1, eps=eps), x.shape)
    return cast(_affine(normal, weight, bias), x.dtype)


def group_norm(x: Any, weight: Any = None, bias: Any = None, *, num_groups: int, eps: float = 1e-5) -> Any:
    """Each sample's channels [B, C, ...] normalised in `num_groups` groups, then scaled by channel (Wu and
    He, 2018)."""
    x, weight, bias = _small_operands(x, weight, bias)
    if not isinstance(num_groups, int) or num_groups < 1:
        raise ArgumentError(f"num_groups must be a positive integer, received {num_groups!r}")
    return _group_norm(x, weight, bias, num_groups=num_groups, eps=number(eps, "eps"))


def instance_norm(x: Any, weight: Any = None, bias: Any = None, *, eps: float = 1e-5) -> Any:
    """Each channel of each sample of [B, C, *spatial] normalised on its own (Ulyanov et al., 2016)."""
    x = floating(x)
    require(
        x.ndim >= 3, f"instance_norm needs a tensor [batch, channels, *spatial], received shape {x.shape}"
    )
    return group_norm(x, weight, bias, num_groups=x.shape[1], eps=eps)


# ---- batch norm --------------------------------------------------------------------------------------------


@composite
def _batch_norm(x: Any, weight: Any = None, bias: Any = None, *, eps: float) -> Any:
    return _batch_norm_parts(x, weight, bias, eps)[:3]


@_batch_norm.residuals
def _batch_norm_with_residuals(x: Any, weight: Any = None, bias: Any = None, *, eps: float) -> Any:
    """Result, statistics, and the mean and 1 / sqrt(variance + eps) through which gradients do flow."""
    return _batch_norm_parts(x, weight, bias, eps)


def _batch_norm_parts(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, ...]:
    weight, bias = _per_channel("batch_norm", x, weight, bias)
    axes = (0, *range(2, x.ndim))
    require(
        math.prod(x.shape[axis] for axis in axes) > 1,
        f"batch_norm in training needs more than one value for each channel, received shape {x.shape}; use "
        "a larger batch, or the running statistics (eval mode)",
    )
    source = wide(x)
    mean = _mean(source, axes)
    centred = source - mean
    variance = _mean(centred * centred, axes)
    scale = rsqrt(variance + eps)
    result = cast(_affine(centred * scale, weight, bias), x.dtype)
    statistics = (reshape(stop_gradient(value), (x.shape[1],)) for value in (mean, variance))
    return (result, *statistics, mean, scale)


@composite
def _batch_norm_gradient(g: Any, x: Any, mean: Any, scale: Any, weight: Any = None) -> Any:
    """Gradients with respect to x, the weight and the bias."""
    (weight,) = _per_channel("batch_norm_gradient", x, weight)
    axes = (0, *range(2, x.ndim))
    count = math.prod(x.shape[axis] for axis in axes)
    normal, cotangent = (wide(x) - mean) * scale, wide(g)
    by_bias = reduce_sum(cotangent, axes, keepdims=True)
    by_weight = reduce_sum(cotangent * normal, axes, keepdims=True)
    by_x = cotangent - by_bias / count - normal * (by_weight / count)
    by_x = by_x * (scale if weight is None else scale * weight)
    return cast(by_x, x.dtype), reshape(by_weight, (x.shape[1],)), reshape(by_bias, (x.shape[1],))


@_batch_norm.gradient
def _batch_norm_rule(inputs: Any, outputs: Any, cotangents: Any, *, eps: float) -> Sequence[Any]:
    (x, weight, bias), (*_, mean, scale) = inputs, outputs
    by_x, by_weight, by_bias = _batch_norm_gradient(cotangents[0], x, mean, scale, weight)
    return (
        by_x,
        None if weight is None else cast(by_weight, weight.dtype),
        None if bias is None else cast(by_bias, bias.dtype),
    )


def batch_norm(x: Any, weight: Any = None, bias: Any = None, *, eps: float = 1e-5) -> Any:
    """Training: channels [B, C, ...] normalised over the batch (Ioffe and Szegedy, 2015), and their
    statistics.

    Returns (result, mean [C], variance [C]); the variance is the biased one (PyTorch's running variance takes
    it times n / (n - 1)). The statistics are for running averages: no gradient flows through them.
    """
    x, weight, bias = _small_operands(x, weight, bias)
    return _batch_norm(x, weight, bias, eps=number(eps, "eps"))


@composite
def _batch_norm_inference(
    x: Any, mean: Any, variance: Any, weight: Any = None, bias: Any = None, *, eps: float
) -> Any:
    mean, variance, weight, bias = _per_channel("batch_norm", x, mean, variance, weight, bias)
    scale = rsqrt(variance + eps)
    scaled = (wide(x) - mean) * (scale if weight is None else scale * weight)
    return cast(_affine(scaled, None, bias), x.dtype)


def batch_norm_inference(
    x: Any, mean: Any, variance: Any, weight: Any = None, bias: Any = None, *, eps: float = 1e-5
) -> Any:
    """Channels [B, C, ...] normalised by given statistics [C]: `batch_norm` in evaluation."""
    x, weight, bias = _small_operands(x, weight, bias)
    mean, variance = cast(mean, wide(x).dtype), cast(variance, wide(x).dtype)
    return _batch_norm_inference(x, mean, variance, weight, bias, eps=number(eps, "eps"))


# ---- samples -----------------------------------------------------------------------------------------------


def _norm_samples(function: Any, theirs: Any, biased: bool, **options: Any) -> Iterator[Sample]:
    """Samples of a norm over trailing axes; `theirs(torch, x, shape, weight, bias)`."""
    for shape, count in (((3, 5), 1), ((2, 3, 4), 1), ((2, 3, 4), 2), ((7,), 1), ((1, 9), 1), ((0, 4), 1)):
        x, trailing = values(*shape), shape[len(shape) - count :]
        affine = [values(*trailing, seed=seed) for seed in ((1, 2) if biased else (1,))]
        plain = lambda torch, v, t=trailing: theirs(torch, v, t)  # noqa: E731
        yield Sample(function, (x,), {"normalized_shape": trailing, **options}, torch=plain, tolerance=4)
        scaled = lambda torch, v, *a, t=trailing: theirs(torch, v, t, *a)  # noqa: E731
        yield Sample(function, (x, *affine), options, torch=scaled, tolerance=4)
    for dtype in ("float16", "bfloat16", "float64"):
        given = [values(*shape, dtype=dtype) for shape in ((4, 16), *((16,),) * (2 if biased else 1))]
        scaled = lambda torch, v, *a: theirs(torch, v, (16,), *a)  # noqa: E731
        yield Sample(function, given, options, torch=scaled, tolerance=8)
    yield Sample(
        function,
        (values(3, 5) * 100 + 1000,),
        options,
        torch=lambda torch, v: theirs(torch, v, (5,)),
        tolerance=2000,
    )
    yield Sample(
        function,
        (np.zeros((2, 5), np.float32),),
        options,
        torch=lambda torch, v: theirs(torch, v, (5,)),
        gradient=False,
    )
    yield Sample(function, (values(3, 5), values(4)), error=ShapeError, message="a weight of that shape")
    yield Sample(
        function, (values(3, 5),), {"normalized_shape": (3,)}, error=ArgumentError, message="last axes"
    )
    yield Sample(function, (values(5), values(3, 5)), error=ShapeError, message="last 2 axes")


@samples("layer_norm")
def _layer_norm_samples() -> Iterator[Sample]:
    theirs = lambda torch, x, shape, *a: torch.nn.functional.layer_norm(x, shape, *a)  # noqa: E731
    yield from _norm_samples(layer_norm, theirs, True)
    no_bias = lambda torch, x, w: torch.nn.functional.layer_norm(x, (5,), w, eps=0.1)  # noqa: E731
    yield Sample(layer_norm, (values(3, 5), values(5)), {"eps": 0.1}, torch=no_bias)


@samples("rms_norm")
def _rms_norm_samples() -> Iterator[Sample]:
    theirs = lambda torch, x, shape, *a: torch.nn.functional.rms_norm(x, shape, *a, eps=1e-5)  # noqa: E731
    yield from _norm_samples(rms_norm, theirs, False, eps=1e-5)
    default = lambda torch, x: torch.nn.functional.rms_norm(x, (5,))  # noqa: E731
    for dtype in ("float32", "float16", "bfloat16"):
        yield Sample(
            rms_norm, (values(3, 5, dtype=dtype) * values(1, dtype=dtype),), torch=default, tolerance=4
        )


@samples("group_norm")
def _group_norm_samples() -> Iterator[Sample]:
    for shape, groups in (
        ((2, 4, 3), 2),
        ((2, 6, 3, 2), 3),
        ((3, 4), 2),
        ((1, 3, 2, 2, 2), 1),
        ((2, 3, 5), 3),
        ((0, 4, 3), 2),
    ):
        theirs = lambda torch, x, *a, n=groups: torch.nn.functional.group_norm(x, n, *a)  # noqa: E731
        affine = (values(shape[1], seed=1), values(shape[1], seed=2))
        torch = theirs if 0 not in shape else None
        yield Sample(group_norm, (values(*shape),), {"num_groups": groups}, torch=torch, tolerance=4)
        yield Sample(group_norm, (values(*shape), *affine), {"num_groups": groups}, torch=torch, tolerance=4)
    theirs = lambda torch, x, *a: torch.nn.functional.group_norm(x, 2, *a)  # noqa: E731
    for dtype in ("bfloat16", "float64"):
        operands = tuple(values(*shape, dtype=dtype) for shape in ((2, 4, 6), (4,), (4,)))
        yield Sample(group_norm, operands, {"num_groups": 2}, torch=theirs, tolerance=8)
    instance = lambda torch, x, *a: torch.nn.functional.instance_norm(x, None, None, *a)  # noqa: E731
    yield Sample(
        instance_norm, (values(2, 3, 4, 5), values(3), values(3, seed=1)), torch=instance, tolerance=4
    )
    for function, operands, options, message in (
        (group_norm, (values(2, 5, 3),), {"num_groups": 2}, "5 channels"),
        (group_norm, (values(2, 4, 3), values(3)), {"num_groups": 2}, "each of the 4 channels"),
        (group_norm, (values(4),), {"num_groups": 2}, "batch, channels"),
        (instance_norm, (values(4, 2),), {}, "spatial"),
    ):
        yield Sample(function, operands, options, error=ShapeError, message=message)
    yield Sample(group_norm, (values(2, 4, 3),), {"num_groups": 0}, error=ArgumentError, message="num_groups")


def _channel_operands(shape: tuple[int, ...], dtype: str = "float32") -> tuple[Any, ...]:
    return (values(*shape, dtype=dtype), *(values(shape[1], dtype=dtype, seed=seed) for seed in (1, 2)))


@samples("batch_norm")
def _batch_norm_samples() -> Iterator[Sample]:
    def theirs(torch: Any, x: Any, *affine: Any, eps: float = 1e-5) -> Any:
        mean, variance = (
            torch.zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32)) for _ in range(2)
        )
        result = torch.nn.functional.batch_norm(
            x, mean, variance, *affine, training=True, momentum=1.0, eps=eps
        )
        count = x.numel() // x.shape[1]
        return result, mean, variance * ((count - 1) / count)

    for shape in ((4, 3), (2, 3, 5), (3, 2, 4, 5), (2, 1, 3, 2, 2), (5, 1)):
        x, weight, bias = _channel_operands(shape)
        for operands in ((x,), (x, weight, bias)):
            yield Sample(batch_norm, operands, gradient=False, torch=theirs, tolerance=4)
            yield Sample(lambda *a: batch_norm(*a)[0], operands)  # the statistics have no gradient
    eps = lambda torch, *a: theirs(torch, *a, eps=0.1)  # noqa: E731
    yield Sample(batch_norm, (x, weight), {"eps": 0.1}, gradient=False, torch=eps, tolerance=4)
    operands = _channel_operands((3, 2, 4, 5), "float64")
    yield Sample(batch_norm, operands, gradient=False, torch=theirs, tolerance=4)
    yield Sample(batch_norm, _channel_operands((3, 2, 4, 5), "bfloat16"), tolerance=8)
    yield Sample(batch_norm, (values(1, 3),), error=ShapeError, message="more than one value")
    yield Sample(batch_norm, (values(3),), error=ShapeError, message="batch, channels")
    yield Sample(batch_norm, (values(4, 3), values(2)), error=ShapeError, message="each of the 3 channels")


@samples("batch_norm_inference")
def _batch_norm_inference_samples() -> Iterator[Sample]:
    def theirs(torch: Any, x: Any, mean: Any, variance: Any, *affine: Any) -> Any:
        # PyTorch has no gradient for the statistics here: written out
        shape = (-1, *(1,) * (x.ndim - 2))
        scaled = (x - mean.view(shape)) * torch.rsqrt(variance.view(shape) + 1e-5)
        scaled = scaled * affine[0].view(shape) if affine else scaled
        return scaled + affine[1].view(shape) if len(affine) > 1 else scaled

    for shape in ((4, 3), (2, 3, 5), (3, 2, 4, 5), (1, 1, 3, 2, 2), (0, 2)):
        x, weight, bias = _channel_operands(shape)
        statistics = (values(shape[1], seed=3), values(shape[1], low=0.2, high=2, seed=4))
        yield Sample(batch_norm_inference, (x, *statistics), torch=theirs, tolerance=4)
        yield Sample(batch_norm_inference, (x, *statistics, weight, bias), torch=theirs, tolerance=4)
    x, mean, variance = values(2, 3, 4, dtype="bfloat16"), values(3), values(3, low=0.2, high=2)
    yield Sample(batch_norm_inference, (x, mean, variance), tolerance=8)
    yield Sample(
        batch_norm_inference, (values(4, 3), values(2), values(3)), error=ShapeError, message="statistics"
    )
