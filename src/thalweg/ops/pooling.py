"""Pooling: the primitives that gather windows of [B, C, *spatial] and scatter them back, and the functions on
them.

`max_pool` gives values and indices; its gradient `max_unpool` places each cotangent where the index points,
and the gradient of that is `max_pool_gather`. `sum_pool` and `sum_unpool` are each other's gradient; averages
divide by counts that follow from the shapes. An index is the position inside the window (row-major over the
kernel, without dilation), not inside the plane: it stays valid under any tiling, and a kernel of at most 256
taps may keep it in a byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError, ShapeError
from thalweg.graph import AxisGroup, Kind, Op
from thalweg.ops.contraction import Pairs, in_float32, per_axis, window_positions
from thalweg.ops.core import apply, cast, composite, floating, operand, primitive, require
from thalweg.ops.elementwise import floor_divide, where
from thalweg.ops.movement import reshape
from thalweg.ops.reduction import argmax, mean
from thalweg.ops.samples import Sample, functional, samples, special, values
from thalweg.ops.sources import constant, iota
from thalweg.types import Type

Array = np.ndarray[Any, Any]


# ---- primitives --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Pool(Op):
    """Windows over [B, C, *spatial]: tap t of window o reads position o*stride + t*dilation - low."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]

    @property
    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], Pairs, tuple[int, ...]]:
        """What the ops over the same windows share."""
        return (self.kernel, self.strides, self.padding, self.dilation)

    def pooled(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Numbers of windows; raises `ShapeError` where an axis is too short."""
        rank = len(self.kernel)
        require(
            len(self.strides) == len(self.padding) == len(self.dilation) == rank >= 1
            and len(spatial) == rank,
            f"{self.name} over {rank} spatial axes needs a tensor [batch, channels, "
            f"{', '.join(['size'] * rank)}], received {len(spatial) + 2} axes",
        )
        geometry = zip(spatial, self.kernel, self.strides, self.padding, self.dilation, strict=True)
        return tuple(window_positions(*axis, self.name, position) for position, axis in enumerate(geometry))

    def check_number(self, x: Type) -> None:
        if x.dtype.is_bool:
            raise DTypeError(f"{self.name} accepts numbers, received {x.dtype}")

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        """Batch, channels and spatial axes with windows of one element."""
        alone = [
            axis + 2
            for axis, step in enumerate(zip(self.kernel, self.strides, self.padding, strict=True))
            if step == (1, 1, (0, 0))
        ]
        outputs = len(self.infer(*inputs))
        return tuple(AxisGroup((axis,) * len(inputs), (axis,) * outputs) for axis in (0, 1, *alone))

    def operations(self, inputs: Sequence[Type], outputs: Sequence[Type]) -> int:
        return min(inputs[0].size, outputs[0].size) * math.prod(self.kernel)

    def taps(self, plane: Array, out: Sequence[int]) -> Iterator[Array]:
        """For each tap, in the order of the indices: what it reads of a padded array in every window."""
        for tap in np.ndindex(*self.kernel):
            yield plane[
                (
                    slice(None),
                    slice(None),
                    *(
                        slice(t * spread, t * spread + (count - 1) * stride + 1, stride)
                        for t, spread, count, stride in zip(
                            tap, self.dilation, out, self.strides, strict=True
                        )
                    ),
                )
            ]

    def axis_taps(self, axis: int, count: int) -> list[tuple[slice, ...]]:
        """For each tap along one spatial axis: where it reads in every window."""
        stride, spread = self.strides[axis], self.dilation[axis]
        lead = (slice(None),) * (axis + 2)
        starts = (tap * spread for tap in range(self.kernel[axis]))
        return [(*lead, slice(start, start + (count - 1) * stride + 1, stride)) for start in starts]

    def padded_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        grown = (size + low + high for size, (low, high) in zip(shape[2:], self.padding, strict=True))
        return (shape[0], shape[1], *grown)

    def inside(self, padded: Array) -> Array:
        """The view of a padded array without its border."""
        border = (
            slice(low, size - high) for size, (low, high) in zip(padded.shape[2:], self.padding, strict=True)
        )
        return padded[(slice(None), slice(None), *border)]

    def padded(self, x: Array, value: Any) -> Array:
        """x with its border filled with `value`."""
        if not any(map(any, self.padding)):
            return x
        result = np.full(self.padded_shape(x.shape), value, x.dtype)
        self.inside(result)[...] = x
        return result


@primitive("max_pool", Kind.REDUCTION)
class MaxPool(Pool):
    """The largest element of every window, and where in the window it was (int32).

    Padding takes part as -inf and is never pointed at. The first of equal elements wins; NaN wins over
    numbers, the last NaN over earlier ones (as PyTorch).
    """

    def infer(self, x: Type) -> tuple[Type, ...]:
        self.check_number(x)
        shape = (*x.shape[:2], *self.pooled(x.shape[2:]))
        return (Type(x.dtype, shape), Type(types.int32, shape))

    def reference(self, x: Array) -> Any:
        best = in_float32(x)
        floating = best.dtype.kind == "f"
        out = self.pooled(x.shape[2:])
        has_nan = bool(floating and best.size and np.isnan(best.max()))
        best = self.padded(best, -np.inf if floating else np.iinfo(best.dtype).min)
        index: Array | None = None  # position in the window over the axes done so far
        weight = 1
        for axis in reversed(range(len(out))):
            # the last axis first: the winner of each row of a window, then the first of the winning rows
            best, index = self._reduce_axis(best, index, axis, out[axis], weight, has_nan)
            weight *= self.kernel[axis]
        return best.astype(x.dtype, copy=False), np.asarray(index, np.int32)

    def _reduce_axis(
        self, plane: Array, known: Array | None, axis: int, count: int, weight: int, has_nan: bool
    ) -> tuple[Array, Array]:
        """Maxima along one spatial axis, and their positions: tap * weight + known position."""
        taps = self.axis_taps(axis, count)
        best = plane[taps[0]].copy()
        small = np.uint8 if math.prod(self.kernel) <= 256 else np.int32
        first = (
            (self._first_taps(axis, count) * weight)
            .astype(small)
            .reshape(-1, *(1,) * (plane.ndim - axis - 3))
        )
        index = np.zeros(best.shape, small) + (first if known is None else first + known[taps[0]])
        for tap, place in enumerate(taps[1:], 1):
            view = plane[place]
            better = view > best
            if has_nan:
                better |= np.isnan(view)
            position = small(tap * weight) if known is None else known[place] + small(tap * weight)
            np.maximum(
                index, better * position, out=index
            )  # positions grow with the tap: the larger one is the new one
            np.maximum(best, view, out=best)
        return best, index

    def _first_taps(self, axis: int, count: int) -> Array:
        """For each window the first tap behind the low padding: its index where nothing exceeds -inf."""
        missing = np.arange(count) * self.strides[axis] - self.padding[axis][0]
        return np.clip(-(missing // self.dilation[axis]), 0, self.kernel[axis] - 1).astype(np.int32)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        return (apply(MaxUnpool(*self.geometry, inputs[0].shape[2:]), cotangents[0], outputs[1]),)


@primitive("max_unpool", Kind.MOVEMENT)
class MaxUnpool(Pool):
    """[B, C, *spatial] with each element of g added where its index points: the gradient of `max_pool`."""

    spatial: tuple[int, ...]

    def infer(self, g: Type, indices: Type) -> tuple[Type, ...]:
        expected = Type(types.int32, (*g.shape[:2], *self.pooled(self.spatial)))
        require(
            g.shape == expected.shape and indices == expected,
            f"max_unpool to spatial sizes {self.spatial} needs values of shape {expected.shape} and indices "
            f"{expected}, received {g} and {indices}",
        )
        return (Type(g.dtype, (*g.shape[:2], *self.spatial)),)

    def reference(self, g: Array, indices: Array) -> Array:
        wide = in_float32(g)
        result = np.zeros(self.padded_shape((*g.shape[:2], *self.spatial)), wide.dtype)
        for position, view in enumerate(self.taps(result, g.shape[2:])):
            view += _selected(wide, indices == position)
        return np.ascontiguousarray(self.inside(result)).astype(g.dtype, copy=False)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        gather = MaxPoolGather(*self.geometry)
        return (apply(gather, cotangents[0], inputs[1]), None)


def _selected(x: Array, mask: Array) -> Array:
    """x where the mask is true, else 0, by its bits: several times faster than `np.where`, exact for NaN."""
    bits = np.dtype(f"i{x.dtype.itemsize}")
    selected: Array = (x.view(bits) & -mask.astype(bits)).view(x.dtype)
    return selected


@primitive("max_pool_gather", Kind.MOVEMENT)
class MaxPoolGather(Pool):
    """For every window the element of x that the index points at: the gradient of `max_unpool`."""

    def infer(self, x: Type, indices: Type) -> tuple[Type, ...]:
        expected = Type(types.int32, (*x.shape[:2], *self.pooled(x.shape[2:])))
        require(indices == expected, f"max_pool_gather from {x} needs indices {expected}, received {indices}")
        return (Type(x.dtype, expected.shape),)

    def reference(self, x: Array, indices: Array) -> Array:
        result = np.zeros(indices.shape, x.dtype)
        for position, view in enumerate(self.taps(self.padded(x, 0), indices.shape[2:])):
            np.copyto(result, view, where=indices == position)
        return result

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        unpool = MaxUnpool(*self.geometry, inputs[0].shape[2:])
        return (apply(unpool, cotangents[0], inputs[1]), None)


@primitive("sum_pool", Kind.REDUCTION)
class SumPool(Pool):
    """The sum of every window; padding takes part as 0. float16 and bfloat16 add up in float32."""

    def infer(self, x: Type) -> tuple[Type, ...]:
        self.check_number(x)
        return (Type(x.dtype, (*x.shape[:2], *self.pooled(x.shape[2:]))),)

    def reference(self, x: Array) -> Array:
        out = self.pooled(x.shape[2:])
        result = self.padded(in_float32(x), 0)
        for axis, count in enumerate(
            out
        ):  # one axis after the other: as many additions as the kernel has rows and columns
            views = [result[index] for index in self.axis_taps(axis, count)]
            total = views[0].copy()
            for view in views[1:]:
                total += view
            result = total
        return result.astype(x.dtype, copy=False)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        return (apply(SumUnpool(*self.geometry, inputs[0].shape[2:]), cotangents[0]),)


@primitive("sum_unpool", Kind.REDUCTION)
class SumUnpool(Pool):
    """[B, C, *spatial] with each element of g added to every position of its window: the gradient of
    `sum_pool`."""

    spatial: tuple[int, ...]

    def infer(self, g: Type) -> tuple[Type, ...]:
        expected = (*g.shape[:2], *self.pooled(self.spatial))
        require(
            g.shape == expected,
            f"sum_unpool to spatial sizes {self.spatial} needs values of shape {expected}, received {g}",
        )
        return (Type(g.dtype, (*g.shape[:2], *self.spatial)),)

    def reference(self, g: Array) -> Array:
        wide = in_float32(g)
        result = np.zeros(self.padded_shape((*g.shape[:2], *self.spatial)), wide.dtype)
        for view in self.taps(result, g.shape[2:]):
            view += wide
        return np.ascontiguousarray(self.inside(result)).astype(g.dtype, copy=False)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        return (apply(SumPool(*self.geometry), cotangents[0]),)


# ---- functions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """A user's pooling arguments with one entry for each spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool

    @staticmethod
    def of(x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Windows:
        rank = x.ndim - 2
        if rank not in (1, 2, 3):
            raise ShapeError(
                "pooling needs a tensor [batch, channels, *spatial] with 1 to 3 spatial axes, received "
                f"{x.shape}"
            )
        kernel = per_axis(kernel_size, rank, "kernel_size", 1)
        strides = kernel if stride is None else per_axis(stride, rank, "stride", 1)
        spread, border = per_axis(dilation, rank, "dilation", 1), per_axis(padding, rank, "padding", 0)
        for size, step, low in zip(kernel, spread, border, strict=True):
            if low > (step * (size - 1) + 1) // 2:
                raise ArgumentError(
                    f"padding must be at most half of the window, received padding {padding!r} for "
                    f"kernel_size {kernel_size!r} and dilation {dilation!r}"
                )
        return Windows(kernel, strides, border, spread, bool(ceil_mode))

    def pairs(self, spatial: Sequence[int]) -> Pairs:
        """(low, high) padding; in `ceil_mode` the high side lets the last window that begins inside fit."""
        found = []
        geometry = zip(spatial, self.kernel, self.strides, self.padding, self.dilation, strict=True)
        for size, kernel, stride, border, spread in geometry:
            extent = spread * (kernel - 1) + 1
            high = border
            if self.ceil_mode:
                last = -(-(size + 2 * border - extent) // stride) * stride  # where the last window starts
                if last >= size + border:
                    last -= stride
                high = max(border, last + extent - size - border)
            found.append((border, high))
        return tuple(found)


def max_pool(
    x: Any,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of every window of [B, C, *spatial], 1 to 3 spatial axes, as PyTorch's
    `max_pool{n}d`.

    `stride` defaults to `kernel_size`. With `return_indices` also where each maximum was: its row-major
    position in the input's plane (int64). Raises `ShapeError` where no window fits, `ArgumentError` for
    padding above half a window.
    """
    x = operand(x)
    windows = Windows.of(x, kernel_size, stride, padding, dilation, ceil_mode)
    op = MaxPool(windows.kernel, windows.strides, windows.pairs(x.shape[2:]), windows.dilation)
    result, indices = apply(op, x)
    return (result, _plane_positions(op, indices, x.shape[2:])) if return_indices else result


def _plane_positions(op: MaxPool, indices: Any, spatial: Sequence[int]) -> Any:
    """Positions in a plane of shape `spatial` for positions in windows."""
    remaining = cast(indices, types.int64)
    flat: Any = None
    factor = 1
    for axis in reversed(range(len(spatial))):
        rest = floor_divide(remaining, op.kernel[axis])
        tap = remaining - rest * op.kernel[axis]
        window = iota(indices.shape, axis + 2)
        position = (window * op.strides[axis] + tap * op.dilation[axis] - op.padding[axis][0]) * factor
        flat = position if flat is None else flat + position
        remaining, factor = rest, factor * int(spatial[axis])
    return flat


def _counts(windows: Windows, spatial: Sequence[int], out: Sequence[int], include_padding: bool) -> Array:
    """How many elements each average divides by; the overhang of `ceil_mode` never counts."""
    total: Array = np.ones((), np.int64)
    geometry = zip(spatial, out, windows.kernel, windows.strides, windows.padding, strict=True)
    for size, count, kernel, stride, border in geometry:
        start = np.arange(count) * stride - border
        end = np.minimum(start + kernel, size + border)
        if not include_padding:
            start, end = np.maximum(start, 0), np.minimum(end, size)
        total = total[..., None] * (end - start)
    return total


@composite
def _average_pool(
    x: Any,
    *,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    windows = Windows(kernel_size, stride, padding, (1,) * len(kernel_size), ceil_mode)
    total = apply(SumPool(kernel_size, stride, windows.pairs(x.shape[2:]), windows.dilation), _wide(x))
    counts = _counts(windows, x.shape[2:], total.shape[2:], count_include_pad)
    if divisor_override is not None:
        counts = np.asarray(divisor_override)
    elif (counts == counts.flat[0]).all():
        counts = counts.flat[0]
    return cast(total / constant(np.asarray(counts, total.dtype.numpy)), x.dtype)


def _wide(x: Any) -> Any:
    return cast(x, types.float32) if x.dtype.itemsize < 4 else x


def average_pool(
    x: Any,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The mean of every window of [B, C, *spatial], 1 to 3 spatial axes, as PyTorch's `avg_pool{n}d`.

    `stride` defaults to `kernel_size`. Padding counts as elements unless `count_include_pad=False`;
    `divisor_override` replaces the number that the sums are divided by.
    """
    x = floating(x)
    windows = Windows.of(x, kernel_size, stride, padding, 1, ceil_mode)
    if divisor_override is not None:
        (divisor_override,) = per_axis(divisor_override, 1, "divisor_override", 1)
    return _average_pool(
        x,
        kernel_size=windows.kernel,
        stride=windows.strides,
        padding=windows.padding,
        ceil_mode=windows.ceil_mode,
        count_include_pad=bool(count_include_pad),
        divisor_override=divisor_override,
    )


def _adaptive_sizes(x: Any, output_size: Any) -> tuple[int, ...]:
    """One size for each spatial axis; None keeps the input's."""
    rank = x.ndim - 2
    if rank not in (1, 2, 3):
        raise ShapeError(
            f"pooling needs a tensor [batch, channels, *spatial] with 1 to 3 spatial axes, received {x.shape}"
        )
    listed = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * rank
    if len(listed) != rank:
        raise ArgumentError(
            f"output_size needs {rank} entries for a tensor of shape {x.shape}, received {output_size!r}"
        )
    sizes = [x.shape[axis + 2] if size is None else size for axis, size in enumerate(listed)]
    if 0 in x.shape[2:]:
        raise ShapeError(f"adaptive pooling needs spatial axes that are not empty, received {x.shape}")
    return per_axis(sizes, rank, "output_size", 1)


def _adaptive_windows(x: Any, sizes: Sequence[int]) -> tuple[Any, tuple[int, ...], list[Array]]:
    """x with every adaptive window laid out in full along each axis, the common window length, and the true
    lengths.

    Window i of an axis covers floor(i * size / out) to ceil((i + 1) * size / out); shorter ones repeat their
    last element.
    """
    from thalweg.ops.indexing import take

    longest, lengths = [], []
    for axis, out in enumerate(sizes, 2):
        size = int(x.shape[axis])
        starts = np.arange(out) * size // out
        counts = -(-(np.arange(out) + 1) * size // out) - starts
        length = int(counts.max())
        if size != out * length or (counts != length).any():
            places = starts[:, None] + np.minimum(np.arange(length), counts[:, None] - 1)
            x = take(x, places.reshape(-1), axis=axis)
        longest.append(length)
        lengths.append(counts)
    return x, tuple(longest), lengths


@composite
def _adaptive_average_pool(x: Any, *, output_size: tuple[int, ...]) -> Any:
    laid, kernel, lengths = _adaptive_windows(_wide(x), output_size)
    counts = np.ones((), np.int64)
    real = np.ones((), np.bool_)
    for length, count in zip(kernel, lengths, strict=True):
        counts = counts[..., None] * count
        real = real[..., None] & (np.arange(length) < count[:, None]).reshape(-1)
    if not real.all():
        laid = where(constant(real), laid, 0.0)
    total = apply(SumPool(kernel, kernel, ((0, 0),) * len(kernel), (1,) * len(kernel)), laid)
    return cast(total / constant(counts.astype(total.dtype.numpy)), x.dtype)


def adaptive_average_pool(x: Any, output_size: Any) -> Any:
    """The means of windows that divide each spatial axis of [B, C, *spatial] into `output_size` parts.

    As PyTorch's `adaptive_avg_pool{n}d`: an entry None keeps the input's size, windows may overlap by one
    element.
    """
    x = floating(x)
    return _adaptive_average_pool(x, output_size=_adaptive_sizes(x, output_size))


@composite
def _adaptive_max_pool(x: Any, *, output_size: tuple[int, ...]) -> Any:
    laid, kernel, _ = _adaptive_windows(x, output_size)
    return apply(MaxPool(kernel, kernel, ((0, 0),) * len(kernel), (1,) * len(kernel)), laid)[0]


def adaptive_max_pool(x: Any, output_size: Any) -> Any:
    """The maxima of windows that divide each spatial axis of [B, C, *spatial] into `output_size` parts.

    As PyTorch's `adaptive_max_pool{n}d`: an entry None keeps the input's size, windows may overlap by one
    element.
    """
    x = operand(x)
    return _adaptive_max_pool(x, output_size=_adaptive_sizes(x, output_size))


def global_average_pool(x: Any) -> Any:
    """The mean of each channel of [B, C, *spatial], as [B, C]."""
    return mean(_pooled_input(x), tuple(range(2, x.ndim)))


def global_max_pool(x: Any) -> Any:
    """The largest element of each channel of [B, C, *spatial], as [B, C]; the first has the gradient."""
    from thalweg.ops.indexing import take_along_axis

    x = _pooled_input(x)
    flat = reshape(x, (*x.shape[:2], math.prod(x.shape[2:])))
    return reshape(take_along_axis(flat, argmax(flat, 2, keepdims=True), axis=2), x.shape[:2])


def _pooled_input(x: Any) -> Any:
    x = operand(x)
    if x.ndim < 3:
        raise ShapeError(f"pooling needs a tensor [batch, channels, *spatial], received shape {x.shape}")
    return x


# ---- samples -----------------------------------------------------------------------------------------------

# (shape of x, kernel, arguments)
_WINDOWS: tuple[tuple[tuple[int, ...], Any, dict[str, Any]], ...] = (
    ((2, 3, 4, 6), 2, {}),
    ((1, 2, 5, 7), (3, 2), {"stride": (2, 3), "padding": (1, 0)}),
    ((2, 1, 7, 5), 3, {"stride": 2, "padding": 1, "ceil_mode": True}),
    ((2, 2, 5, 6), 2, {"stride": 3, "padding": 1, "ceil_mode": True}),
    ((1, 2, 6, 5), 3, {"stride": 1, "padding": 1}),
    ((2, 3, 7), 3, {"stride": 2}),
    ((1, 2, 3, 4, 5), 2, {"stride": (1, 2, 2), "padding": (1, 0, 1)}),
    ((0, 2, 4, 4), 2, {}),
    ((2, 2, 4, 4), 1, {"stride": 1}),
)


def _spread_values(*shape: int, dtype: str = "float32") -> Array:
    return values(*shape, dtype=dtype, distinct=True)


@samples("max_pool")
def _max_pool_samples() -> Iterator[Sample]:
    dilated: tuple[Any, ...] = ((2, 1, 7, 6), (2, 3), {"stride": 1, "dilation": (3, 2), "padding": 1})
    for shape, kernel, options in (*_WINDOWS, dilated):
        rank, x = len(shape) - 2, _spread_values(*shape)
        compare = functional(f"max_pool{rank}d", kernel, **options) if 0 not in shape else None
        yield Sample(max_pool, (x,), {"kernel_size": kernel, **options}, torch=compare)
        options = {**options, "return_indices": True}
        compare = functional(f"max_pool{rank}d", kernel, **options) if 0 not in shape else None
        yield Sample(max_pool, (x,), {"kernel_size": kernel, **options}, gradient=False, torch=compare)
    plane = np.resize(special(), (2, 2, 5, 6))
    plane[0, 1] = -np.inf
    plane[1, 0] = 1.0
    options = {"stride": 2, "padding": 1, "return_indices": True}
    yield Sample(
        max_pool,
        (plane,),
        {"kernel_size": 3, **options},
        gradient=False,
        torch=functional("max_pool2d", 3, **options),
    )
    for dtype in ("float16", "bfloat16", "float64", "int32"):
        x = values(2, 2, 4, 5, dtype=dtype, low=-9, high=9)
        yield Sample(max_pool, (x,), {"kernel_size": 2}, gradient=False)
    x = values(2, 3, 4, 4)
    for kernel, options, error, message in (
        (5, {}, ShapeError, "covers 5 elements of spatial axis 0"),
        ((2, 2, 2), {}, ArgumentError, "kernel_size must be"),
        (2, {"padding": 2}, ArgumentError, "half of the window"),
        (2, {"stride": 0}, ArgumentError, "stride must be"),
    ):
        yield Sample(max_pool, (x,), {"kernel_size": kernel, **options}, error=error, message=message)
    yield Sample(
        max_pool, (values(3, 4),), {"kernel_size": 2}, error=ShapeError, message="1 to 3 spatial axes"
    )
    yield Sample(
        max_pool, (values(1, 1, 4, dtype="bool"),), {"kernel_size": 2}, error=DTypeError, message="numbers"
    )


def _indexed(shape: tuple[int, ...], kernel: Any, options: dict[str, Any]) -> tuple[MaxPool, Array]:
    x = _spread_values(*shape)
    windows = Windows.of(
        x, kernel, options.get("stride"), options.get("padding", 0), 1, "ceil_mode" in options
    )
    op = MaxPool(windows.kernel, windows.strides, windows.pairs(shape[2:]), windows.dilation)
    return op, op.reference(x)[1]


@samples("max_unpool")
def _max_unpool_samples() -> Iterator[Sample]:
    for shape, kernel, options in _WINDOWS:
        op, indices = _indexed(shape, kernel, options)
        unpool = MaxUnpool(*op.geometry, shape[2:])
        yield Sample(lambda g, i, op=unpool: apply(op, g, i), (values(*indices.shape), indices))
        for dtype in ("float64", "bfloat16"):
            yield Sample(
                lambda g, i, op=unpool: apply(op, g, i), (values(*indices.shape, dtype=dtype), indices)
            )


@samples("max_pool_gather")
def _max_pool_gather_samples() -> Iterator[Sample]:
    for shape, kernel, options in _WINDOWS:
        op, indices = _indexed(shape, kernel, options)
        gather = MaxPoolGather(*op.geometry)
        yield Sample(lambda x, i, op=gather: apply(op, x, i), (values(*shape), indices))
    yield Sample(
        lambda x, i: apply(gather, x, i), (values(*shape), indices[1:]), error=ShapeError, message="indices"
    )


@samples("average_pool", "sum_pool")
def _average_pool_samples() -> Iterator[Sample]:
    for shape, kernel, options in _WINDOWS:
        compare = functional(f"avg_pool{len(shape) - 2}d", kernel, **options) if 0 not in shape else None
        yield Sample(average_pool, (values(*shape),), {"kernel_size": kernel, **options}, torch=compare)
    for options in (
        {"padding": 1, "count_include_pad": False},
        {"stride": 2, "ceil_mode": True, "count_include_pad": False, "padding": 1},
        {"padding": 1, "divisor_override": 5},
    ):
        x = values(2, 3, 6, 7)
        yield Sample(
            average_pool, (x,), {"kernel_size": 3, **options}, torch=functional("avg_pool2d", 3, **options)
        )
    for dtype in ("float16", "bfloat16", "float64"):
        yield Sample(
            average_pool,
            (values(2, 3, 4, 6, dtype=dtype),),
            {"kernel_size": 2},
            torch=functional("avg_pool2d", 2),
        )
    yield Sample(average_pool, (values(2, 3, 4, dtype="int32", high=9),), {"kernel_size": 2})
    yield Sample(
        average_pool,
        (np.resize(special(), (1, 2, 20)),),
        {"kernel_size": 3},
        torch=functional("avg_pool1d", 3),
    )
    x = values(2, 3, 4, 4)
    yield Sample(average_pool, (x,), {"kernel_size": 2, "padding": 2}, error=ArgumentError, message="half")
    yield Sample(average_pool, (x,), {"kernel_size": 2, "divisor_override": 0}, error=ArgumentError)
    yield Sample(average_pool, (x,), {"kernel_size": 5}, error=ShapeError, message="covers 5")


@samples("sum_unpool")
def _sum_unpool_samples() -> Iterator[Sample]:
    for shape, kernel, options in _WINDOWS:
        op, indices = _indexed(shape, kernel, options)
        unpool = SumUnpool(*op.geometry, shape[2:])
        yield Sample(lambda g, op=unpool: apply(op, g), (values(*indices.shape),))
    yield Sample(lambda g: apply(unpool, g), (values(2, 2, 3, 4),), error=ShapeError, message="spatial sizes")


@samples("adaptive_average_pool")
def _adaptive_average_pool_samples() -> Iterator[Sample]:
    yield from _adaptive_samples(adaptive_average_pool, "adaptive_avg_pool")
    yield Sample(adaptive_average_pool, (values(2, 2, 5, dtype="bfloat16"),), {"output_size": 3})


@samples("adaptive_max_pool")
def _adaptive_max_pool_samples() -> Iterator[Sample]:
    yield from _adaptive_samples(adaptive_max_pool, "adaptive_max_pool")
    x = np.resize(special(), (1, 2, 25))
    compare = functional("adaptive_max_pool1d", 4)
    yield Sample(adaptive_max_pool, (x,), {"output_size": 4}, torch=compare)


def _adaptive_samples(function: Any, name: str) -> Iterator[Sample]:
    for shape, size in (
        ((2, 3, 6, 4), (3, 2)),
        ((2, 3, 5, 7), (3, 4)),
        ((1, 2, 5, 5), 1),
        ((1, 2, 3, 4), (5, None)),
        ((2, 3, 7), 3),
        ((1, 2, 4, 3, 5), (2, 2, 3)),
        ((0, 2, 5, 5), 2),
    ):
        compare = functional(f"{name}{len(shape) - 2}d", size)
        yield Sample(
            function,
            (_spread_values(*shape),),
            {"output_size": size},
            torch=compare if 0 not in shape else None,
        )
    x = values(2, 3, 4, 4)
    yield Sample(function, (x,), {"output_size": (2, 2, 2)}, error=ArgumentError, message="2 entries")
    yield Sample(function, (x,), {"output_size": 0}, error=ArgumentError, message="output_size must be")
    yield Sample(function, (values(3, 4),), {"output_size": 2}, error=ShapeError, message="spatial axes")
    yield Sample(function, (values(1, 1, 0, 4),), {"output_size": 2}, error=ShapeError, message="not empty")


@samples("mean")
def _global_average_pool_samples() -> Iterator[Sample]:
    yield Sample(global_average_pool, (values(2, 3, 4, 5),), torch=lambda torch, x: x.mean((2, 3)))
    yield Sample(global_average_pool, (values(2, 3),), error=ShapeError, message="spatial")


@samples("argmax")
def _global_max_pool_samples() -> Iterator[Sample]:
    compare = lambda torch, x: torch.nn.functional.adaptive_max_pool2d(x, 1).flatten(1)  # noqa: E731
    yield Sample(global_max_pool, (_spread_values(2, 3, 4, 5),), torch=compare)
