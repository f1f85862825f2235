"""Contractions kept whole: the batched matrix product and the three modes of the n-dimensional convolution.

In come op functions (`linear`, `conv`, `einsum`, attention, ...) and users; out go single nodes that a
backend gives its best kernel. Both families are closed under differentiation: the gradient of a matrix
product is two matrix products with transpose flags, the gradients of each mode of the convolution are the two
other modes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg.errors import ArgumentError, DTypeError, ShapeError
from thalweg.graph import AxisGroup, Kind, Op
from thalweg.ops.core import apply, broadcast_shapes, composite, operand, primitive, promoted, require
from thalweg.ops.movement import broadcast_to, reshape
from thalweg.ops.reduction import sum as reduce_sum
from thalweg.ops.samples import Sample, functional, samples, special, values
from thalweg.types import Type

Array = np.ndarray[Any, Any]
Pairs = tuple[tuple[int, int], ...]


def in_float32(array: Array) -> Array:
    """16-bit floating point as float32: products of such arrays accumulate in float32."""
    return array.astype(np.float32) if array.dtype.kind in "fV" and array.dtype.itemsize == 2 else array


# ---- matrix product ----------------------------------------------------------------------------------------


@primitive("matmul", Kind.CONTRACTION, combine="sum")
class MatMul(Op):
    """[.., M, K] x [.., K, N] -> [.., M, N] with equal leading axes; the flags swap the last two axes of an
    operand.

    float16 and bfloat16 accumulate in float32.
    """

    transpose_a: bool = False
    transpose_b: bool = False

    def _sizes(self, x: Type, y: Type) -> tuple[int, int, int, int]:
        """M, K of x, K of y, N."""
        m, k = (x.shape[-1], x.shape[-2]) if self.transpose_a else (x.shape[-2], x.shape[-1])
        k2, n = (y.shape[-1], y.shape[-2]) if self.transpose_b else (y.shape[-2], y.shape[-1])
        return m, k, k2, n

    def infer(self, x: Type, y: Type) -> tuple[Type, ...]:
        require(x.ndim >= 2 and y.ndim >= 2, f"matmul needs at least two axes, received {x} and {y}")
        if x.dtype is not y.dtype or x.dtype.is_bool:
            raise DTypeError(f"matmul needs numbers of one element type, received {x.dtype} and {y.dtype}")
        require(x.shape[:-2] == y.shape[:-2], f"matmul needs equal batch axes, received {x} and {y}")
        m, k, k2, n = self._sizes(x, y)
        flags = "".join(
            f" transpose_{name}=True"
            for name, flag in zip("ab", self.attributes().values(), strict=True)
            if flag
        )
        require(
            k == k2,
            f"matmul sums over an axis of size {k} of the first operand and one of size {k2} of the second "
            f"one; they must be equal (shapes {x.shape} and {y.shape}{',' + flags if flags else ''})",
        )
        return (Type(x.dtype, (*x.shape[:-2], m, n)),)

    def reference(self, x: Array, y: Array) -> Array:
        left = np.swapaxes(x, -1, -2) if self.transpose_a else x
        right = np.swapaxes(y, -1, -2) if self.transpose_b else y
        product: Array = np.matmul(in_float32(left), in_float32(right))
        return product.astype(x.dtype, copy=False)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        x, y = inputs
        (g,) = cotangents
        by_x = (
            apply(MatMul(self.transpose_b, True), y, g)
            if self.transpose_a
            else apply(MatMul(False, not self.transpose_b), g, y)
        )
        by_y = (
            apply(MatMul(True, self.transpose_a), g, x)
            if self.transpose_b
            else apply(MatMul(not self.transpose_a, False), x, g)
        )
        return (by_x, by_y)

    def axes(self, x: Type, y: Type) -> tuple[AxisGroup, ...]:
        first, last = x.ndim - 2, x.ndim - 1
        m, k = (last, first) if self.transpose_a else (first, last)
        k2, n = (last, first) if self.transpose_b else (first, last)
        batch = tuple(AxisGroup((axis, axis), (axis,)) for axis in range(first))
        return (
            *batch,
            AxisGroup((m, None), (first,)),
            AxisGroup((None, n), (last,)),
            AxisGroup((k, k2), (None,)),
        )

    def operations(self, inputs: Sequence[Type], outputs: Sequence[Type]) -> int:
        return 2 * outputs[0].size * self._sizes(*inputs)[1]


def matmul(x: Any, y: Any) -> Any:
    """The matrix product with NumPy's rules (array API `matmul`).

    The last axis of `x` is summed with the second to last (of a 1-d `y`: the only) axis of `y`; 1-d operands
    act as a row and a column whose axis is dropped from the result; leading axes broadcast. Where only `x`
    has leading axes they are folded into its rows, so that one 2-d product is computed. Raises `ShapeError`
    for 0-d operands, for sizes that differ and for leading axes that do not broadcast.
    """
    x, y = promoted(x, y)
    if x.ndim == 0 or y.ndim == 0:
        raise ShapeError(
            f"matmul needs operands with at least one axis, received shapes {x.shape} and {y.shape}; write x "
            "* y for a product with a number"
        )
    _check_inner(x, y)
    row, column = x.ndim == 1, y.ndim == 1
    result = _matmul(reshape(x, (1, *x.shape)) if row else x, reshape(y, (*y.shape, 1)) if column else y)
    if row or column:
        shape = (
            result.shape[:-2] + (() if row else result.shape[-2:-1]) + (() if column else result.shape[-1:])
        )
        result = reshape(result, shape)
    return result


def _check_inner(x: Any, y: Any) -> None:
    axis = -2 if y.ndim > 1 else -1
    if x.shape[-1] != y.shape[axis]:
        hint = ""
        if y.ndim > 1 and x.shape[-1] == y.shape[-1]:
            hint = "; the last axes agree: transpose the second operand"
        raise ShapeError(
            f"matmul needs axis -1 of the first operand and axis {axis} of the second one to have equal "
            f"sizes, received {x.shape[-1]} and {y.shape[axis]} (shapes {x.shape} and {y.shape}){hint}"
        )


def _matmul(x: Any, y: Any) -> Any:
    """The product of operands with at least two axes: leading axes folded or broadcast."""
    if y.ndim == 2 and x.ndim > 2:
        rows = reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
        return reshape(apply(MatMul(), rows, y), (*x.shape[:-1], y.shape[-1]))
    batch = broadcast_shapes(x.shape[:-2], y.shape[:-2])
    if x.shape[:-2] != batch:
        x = broadcast_to(x, (*batch, *x.shape[-2:]))
    if y.shape[:-2] != batch:
        y = broadcast_to(y, (*batch, *y.shape[-2:]))
    return apply(MatMul(), x, y)


# ---- convolution -------------------------------------------------------------------------------------------


def per_axis(value: Any, count: int, what: str, least: int) -> tuple[int, ...]:
    """An integer for all axes or a sequence with one for each, as a tuple; raises `ArgumentError`."""
    listed = tuple(value) if isinstance(value, (tuple, list)) else (value,) * count
    whole = all(isinstance(item, (int, np.integer)) and not isinstance(item, bool) for item in listed)
    if len(listed) != count or not whole or any(item < least for item in listed):
        raise ArgumentError(
            f"{what} must be an integer from {least} on, or {count} of them (one for each spatial axis), "
            f"received {value!r}"
        )
    return tuple(int(item) for item in listed)


def padding_pairs(
    padding: Any, kernel: Sequence[int], dilation: Sequence[int], strides: Sequence[int]
) -> Pairs:
    """`padding` (integer, one per axis, (low, high) pairs, "same" or "valid") as (low, high) pairs.

    "same" keeps the size; where the padding is odd the larger part is at the end, as in PyTorch.
    """
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * len(kernel)
        if padding != "same":
            raise ArgumentError(
                f'padding must be "same", "valid", an integer or a tuple of them, received {padding!r}'
            )
        if any(stride != 1 for stride in strides):
            raise ArgumentError(
                f'padding="same" needs stride 1, received stride {tuple(strides)}; give the padding as '
                "numbers"
            )
        totals = [spread * (size - 1) for spread, size in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, (tuple, list)) and any(isinstance(item, (tuple, list)) for item in padding):
        if len(padding) != len(kernel):
            raise ArgumentError(f"padding needs {len(kernel)} pairs (low, high), received {padding!r}")
        pairs = (per_axis(pair, 2, "each pair (low, high) of padding", 0) for pair in padding)
        return tuple((low, high) for low, high in pairs)
    return tuple((size, size) for size in per_axis(padding, len(kernel), "padding", 0))


def window_positions(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, what: str, axis: int
) -> int:
    """How many windows fit along one axis; raises `ShapeError` where none does."""
    extent = dilation * (kernel - 1) + 1
    padded = size + padding[0] + padding[1]
    require(
        padded >= extent,
        f"{what}: the window covers {extent} elements of spatial axis {axis}, the input has {size}"
        + (f" ({padded} with padding {padding})" if padded != size else ""),
    )
    return (padded - extent) // stride + 1


@dataclass(frozen=True, eq=False, repr=False)
class Convolution(Op):
    """What the three modes share: the geometry of y[b, k, o] = sum over c, t of x[b, c, o*stride + t*dilation
    - low] w[k, c, t].

    x is [B, C, *spatial], w [K, C/groups, *kernel], y [B, K, *out]; output channel k reads the C/groups input
    channels of its group. One, two or three spatial axes.
    """

    strides: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]
    groups: int

    def output_shape(self, x: Sequence[int], w: Sequence[int]) -> tuple[int, ...]:
        """Shape of y; raises `ShapeError` where x, w and the attributes do not fit together."""
        rank = len(self.strides)
        require(
            1 <= rank <= 3 and len(self.padding) == len(self.dilation) == rank,
            f"convolution has 1 to 3 spatial axes, received strides {self.strides}, padding {self.padding}, "
            f"dilation {self.dilation}",
        )
        require(
            len(x) == rank + 2,
            f"convolution over {rank} spatial axes needs an input [batch, channels, "
            f"{', '.join(['size'] * rank)}] with {rank + 2} axes, received shape {tuple(x)}",
        )
        require(
            len(w) == rank + 2,
            f"convolution over {rank} spatial axes needs a weight [output channels, input channels / "
            f"groups, {', '.join(['kernel'] * rank)}], received shape {tuple(w)}",
        )
        require(
            x[1] == w[1] * self.groups,
            f"convolution: axis 1 (channels) of the input has size {x[1]}, the weight {tuple(w)} with "
            f"groups={self.groups} needs {w[1] * self.groups}",
        )
        require(
            w[0] % self.groups == 0,
            f"convolution: {w[0]} output channels cannot be divided into {self.groups} groups",
        )
        positions = (
            window_positions(*size, "convolution", axis)
            for axis, size in enumerate(
                zip(x[2:], w[2:], self.strides, self.padding, self.dilation, strict=True)
            )
        )
        return (x[0], w[0], *positions)

    def check_dtypes(self, first: Type, second: Type) -> None:
        if first.dtype is not second.dtype or not first.dtype.is_floating:
            raise DTypeError(
                f"convolution needs floating-point tensors of one element type, received {first.dtype} and "
                f"{second.dtype}"
            )

    def pointwise(self, kernel: Sequence[int]) -> bool:
        """Whether each output position depends on the same input position only."""
        return all(size == 1 for size in (*kernel, *self.strides)) and not any(map(any, self.padding))

    def mapped(self, x: int | None, w: int | None, y: int | None, axis: int) -> AxisGroup:
        """One axis by its place in x, w and y, in the order of this mode's inputs and output."""
        raise NotImplementedError

    def geometry_axes(self, kernel: Sequence[int]) -> tuple[AxisGroup, ...]:
        """Batch, channels (of an ungrouped convolution) and the spatial axes of a 1x1 convolution."""
        groups = [self.mapped(0, None, 0, 0)]
        if self.groups == 1:
            groups += [self.mapped(None, 0, 1, 0), self.mapped(1, 1, None, 0)]
        if self.pointwise(kernel):
            groups += [self.mapped(axis, None, axis, axis) for axis in range(2, len(kernel) + 2)]
        return tuple(groups)

    def windows(self, plane: Array, first: int, kernel: Sequence[int], out: Sequence[int]) -> Array:
        """A view of a padded array: the spatial axes, from `first` on, become [*kernel, *out].

        It shows the element that each tap of each window reads."""
        behind = first + len(kernel)
        spatial = plane.strides[first:behind]
        taps = (stride * spread for stride, spread in zip(spatial, self.dilation, strict=True))
        moves = (stride * step for stride, step in zip(spatial, self.strides, strict=True))
        return np.lib.stride_tricks.as_strided(
            plane,
            (*plane.shape[:first], *kernel, *out, *plane.shape[behind:]),
            (*plane.strides[:first], *taps, *moves, *plane.strides[behind:]),
        )

    def multiplications(self, w: Sequence[int], y: Sequence[int]) -> int:
        """Dense operations, padding included; two for a multiplication with its addition."""
        return 2 * math.prod(y) * math.prod(w[1:])


def _padded(x: Array, padding: Pairs) -> Array:
    """x with a border of zeros around its spatial axes."""
    if not any(map(any, padding)):
        return x
    shape = (
        *x.shape[:2],
        *(size + low + high for size, (low, high) in zip(x.shape[2:], padding, strict=True)),
    )
    result = np.zeros(shape, x.dtype)
    inside = (slice(low, low + size) for size, (low, _) in zip(x.shape[2:], padding, strict=True))
    result[(slice(None), slice(None), *inside)] = x
    return result


_BLOCK = (
    1 << 22
)  # elements of unfolded columns at a time: bounds the memory that a reference takes beside its result


def _batch_blocks(batch: int, elements_per_sample: int) -> list[slice]:
    step = max(1, _BLOCK // max(1, elements_per_sample))
    return [slice(start, start + step) for start in range(0, batch, step)]


@primitive("convolution", Kind.CONTRACTION, combine="sum")
class ConvolutionForward(Convolution):
    """y of x and w (a cross-correlation, as in every deep-learning framework)."""

    def infer(self, x: Type, w: Type) -> tuple[Type, ...]:
        self.check_dtypes(x, w)
        return (Type(x.dtype, self.output_shape(x.shape, w.shape)),)

    def reference(self, x: Array, w: Array) -> Array:
        batch, _, *out = shape = self.output_shape(x.shape, w.shape)
        source, kernel = _padded(in_float32(x), self.padding), w.shape[2:]
        filters = in_float32(w).reshape(self.groups, w.shape[0] // self.groups, math.prod(w.shape[1:]))
        result = np.empty((batch, self.groups, filters.shape[1], math.prod(out)), source.dtype)
        for block in _batch_blocks(batch, x.shape[1] * math.prod(kernel) * math.prod(out)):
            columns = self.windows(source[block], 2, kernel, out)
            columns = columns.reshape(columns.shape[0], self.groups, filters.shape[2], math.prod(out))
            np.matmul(filters, columns, out=result[block])
        return result.reshape(shape).astype(x.dtype, copy=False)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        (x, w), (g,) = inputs, cotangents
        return (input_gradient(self, g, w, x.shape[2:]), weight_gradient(self, x, g, w.shape[2:]))

    def mapped(self, x: int | None, w: int | None, y: int | None, axis: int) -> AxisGroup:
        return AxisGroup((x, w), (y,))

    def axes(self, x: Type, w: Type) -> tuple[AxisGroup, ...]:
        return self.geometry_axes(w.shape[2:])

    def operations(self, inputs: Sequence[Type], outputs: Sequence[Type]) -> int:
        return self.multiplications(inputs[1].shape, outputs[0].shape)


@primitive("convolution_input_gradient", Kind.CONTRACTION, combine="sum")
class ConvolutionInputGradient(Convolution):
    """The gradient [B, C, *spatial] with respect to x of the convolution, from y's cotangent and w: its
    transpose in x.

    `spatial` is x's spatial shape: several sizes lead to the same size of y where a stride is above 1.
    """

    spatial: tuple[int, ...]

    def infer(self, g: Type, w: Type) -> tuple[Type, ...]:
        self.check_dtypes(g, w)
        require(
            g.ndim == w.ndim >= 3,
            f"convolution_input_gradient needs operands of equal rank, received {g} and {w}",
        )
        shape = (g.shape[0], w.shape[1] * self.groups, *self.spatial)
        expected = self.output_shape(shape, w.shape)
        require(
            g.shape == expected,
            f"convolution_input_gradient: an input of shape {shape} gives outputs of shape {expected}, "
            f"received {g.shape}",
        )
        return (Type(g.dtype, shape),)

    def reference(self, g: Array, w: Array) -> Array:
        batch, rank = g.shape[0], len(self.spatial)
        channels, kernel = w.shape[1] * self.groups, w.shape[2:]
        filters = in_float32(w).reshape(self.groups, w.shape[0] // self.groups, -1).transpose(0, 2, 1)
        sizes = [size + low + high for size, (low, high) in zip(self.spatial, self.padding, strict=True)]
        borders = zip(self.spatial, self.padding, strict=True)
        inside = (slice(None), *(slice(low, low + size) for size, (low, _) in borders))
        result = np.empty((batch, channels, *self.spatial), filters.dtype)
        for block in _batch_blocks(batch, channels * math.prod(kernel) * math.prod(g.shape[2:])):
            # batch last: the sums below then run over long rows of memory
            cotangent = np.moveaxis(in_float32(g[block]), 0, -1)
            columns = np.matmul(filters, cotangent.reshape(self.groups, w.shape[0] // self.groups, -1))
            columns = columns.reshape(channels, *kernel, *cotangent.shape[1:])
            plane = np.zeros((channels, *sizes, cotangent.shape[-1]), columns.dtype)
            target = self.windows(plane, 1, kernel, g.shape[2:])
            for tap in np.ndindex(*kernel):  # one after the other: the windows of one tap never overlap
                target[(slice(None), *tap)] += columns[(slice(None), *tap)]
            result[block] = np.moveaxis(plane[inside], rank + 1, 0)
        return result.astype(g.dtype, copy=False)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        (g, w), (c,) = inputs, cotangents
        return (forward(self, c, w), weight_gradient(self, c, g, w.shape[2:]))

    def mapped(self, x: int | None, w: int | None, y: int | None, axis: int) -> AxisGroup:
        return AxisGroup((y, w), (x,))

    def axes(self, g: Type, w: Type) -> tuple[AxisGroup, ...]:
        return self.geometry_axes(w.shape[2:])

    def operations(self, inputs: Sequence[Type], outputs: Sequence[Type]) -> int:
        return self.multiplications(inputs[1].shape, inputs[0].shape)


@primitive("convolution_weight_gradient", Kind.CONTRACTION, combine="sum")
class ConvolutionWeightGradient(Convolution):
    """The gradient [K, C/groups, *kernel] with respect to w of the convolution, from x and y's cotangent.

    `kernel` is w's spatial shape: several sizes lead to the same size of y where a stride is above 1.
    """

    kernel: tuple[int, ...]

    def infer(self, x: Type, g: Type) -> tuple[Type, ...]:
        self.check_dtypes(x, g)
        require(
            x.ndim == g.ndim >= 3,
            f"convolution_weight_gradient needs operands of equal rank, received {x} and {g}",
        )
        require(
            x.shape[1] % self.groups == 0,
            f"convolution_weight_gradient: {x.shape[1]} input channels cannot be divided into {self.groups} "
            "groups",
        )
        shape = (g.shape[1], x.shape[1] // self.groups, *self.kernel)
        expected = self.output_shape(x.shape, shape)
        require(
            g.shape == expected,
            f"convolution_weight_gradient: an input of shape {x.shape} and a weight of shape {shape} give "
            f"outputs of shape {expected}, received {g.shape}",
        )
        return (Type(x.dtype, shape),)

    def reference(self, x: Array, g: Array) -> Array:
        batch, filters, *out = g.shape
        source = _padded(in_float32(x), self.padding)
        members = x.shape[1] // self.groups * math.prod(self.kernel)
        cotangent = in_float32(g).reshape(batch, self.groups, filters // self.groups, math.prod(out))
        result = np.zeros((self.groups, members, filters // self.groups), source.dtype)
        for block in _batch_blocks(
            batch, self.groups * members * max(math.prod(out), filters // self.groups)
        ):
            columns = self.windows(source[block], 2, self.kernel, out)
            columns = columns.reshape(columns.shape[0], self.groups, members, math.prod(out))
            result += np.matmul(columns, cotangent[block].swapaxes(2, 3)).sum(0)
        result = result.transpose(0, 2, 1).reshape(filters, -1, *self.kernel)
        return np.ascontiguousarray(result).astype(x.dtype, copy=False)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        (x, g), (c,) = inputs, cotangents
        return (input_gradient(self, g, c, x.shape[2:]), forward(self, x, c))

    def mapped(self, x: int | None, w: int | None, y: int | None, axis: int) -> AxisGroup:
        return AxisGroup((x, y), (w,))

    def axes(self, x: Type, g: Type) -> tuple[AxisGroup, ...]:
        return self.geometry_axes(self.kernel)

    def operations(self, inputs: Sequence[Type], outputs: Sequence[Type]) -> int:
        return self.multiplications(outputs[0].shape, inputs[1].shape)


def forward(op: Convolution, x: Any, w: Any) -> Any:
    """The convolution of x and w with the geometry of `op`."""
    return apply(ConvolutionForward(op.strides, op.padding, op.dilation, op.groups), x, w)


def input_gradient(op: Convolution, g: Any, w: Any, spatial: Sequence[int]) -> Any:
    """The gradient of `op`'s convolution with respect to an input with these spatial sizes."""
    return apply(
        ConvolutionInputGradient(op.strides, op.padding, op.dilation, op.groups, tuple(spatial)), g, w
    )


def weight_gradient(op: Convolution, x: Any, g: Any, kernel: Sequence[int]) -> Any:
    """The gradient of `op`'s convolution with respect to a weight with this kernel shape."""
    return apply(
        ConvolutionWeightGradient(op.strides, op.padding, op.dilation, op.groups, tuple(kernel)), x, g
    )


def geometry(x: Any, w: Any, stride: Any, padding: Any, dilation: Any, groups: Any) -> ConvolutionForward:
    """The convolution op for operands and attributes as users write them; raises `ArgumentError`."""
    if w.ndim not in (3, 4, 5):
        raise ShapeError(
            "convolution needs a weight [output channels, input channels / groups, *kernel] with 1 to 3 "
            f"kernel axes, received shape {w.shape}"
        )
    rank = w.ndim - 2
    if any(size == 0 for size in w.shape[2:]):
        raise ShapeError(
            f"convolution needs a kernel without empty axes, received a weight of shape {w.shape}"
        )
    strides = per_axis(stride, rank, "stride", 1)
    spread = per_axis(dilation, rank, "dilation", 1)
    (count,) = per_axis(groups, 1, "groups", 1)
    return ConvolutionForward(strides, padding_pairs(padding, w.shape[2:], spread, strides), spread, count)


def convolution(
    x: Any, w: Any, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    """The n-dimensional convolution (cross-correlation) of deep learning, n = 1, 2 or 3, as PyTorch's
    `conv{n}d`.

    `x` is [B, C, *spatial], `w` [K, C / groups, *kernel], the result [B, K, *out] with
    out = floor((size + low + high - dilation * (kernel - 1) - 1) / stride) + 1. `padding` is an integer, one
    for each axis, a (low, high) pair for each axis, "same" or "valid". Raises `ShapeError` where the sizes do
    not fit.
    """
    x, w = promoted(operand(x), operand(w))
    return apply(geometry(x, w, stride, padding, dilation, groups), x, w)


# ---- convolution layers ------------------------------------------------------------------------------------


def _with_bias(y: Any, bias: Any) -> Any:
    """y plus one number for each channel (axis 1)."""
    if bias is None:
        return y
    require(
        bias.shape == (y.shape[1],),
        f"the bias must have one element for each output channel, shape ({y.shape[1]},), received "
        f"{bias.shape}",
    )
    return y + reshape(bias, (y.shape[1], *(1,) * (y.ndim - 2)))


def _channel_sum(g: Any) -> Any:
    return reduce_sum(g, (0, *range(2, g.ndim)))


@composite
def _conv(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    strides: tuple[int, ...],
    padding: Pairs,
    dilation: tuple[int, ...],
    groups: int,
) -> Any:
    return _with_bias(apply(ConvolutionForward(strides, padding, dilation, groups), x, w), bias)


@_conv.gradient
def _conv_gradient(inputs: Any, outputs: Any, cotangents: Any, **attributes: Any) -> Sequence[Any]:
    # what the body gives, without computing the convolution again where values are computed at once
    (x, w, bias), (g,) = inputs, cotangents
    op = ConvolutionForward(**attributes)
    by_bias = None if bias is None else _channel_sum(g)
    by_x = lambda: input_gradient(op, g, w, x.shape[2:])  # noqa: E731 - made only where it is wanted
    return (by_x, weight_gradient(op, x, g, w.shape[2:]), by_bias)


@_conv.reference
def _conv_reference(x: Array, w: Array, bias: Array | None, **attributes: Any) -> Array:
    result = ConvolutionForward(**attributes).reference(x, w)
    return result if bias is None else result + bias.reshape(-1, *(1,) * (x.ndim - 2))


def conv(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """`convolution` plus an optional `bias` [K]: PyTorch's `conv{n}d`, n = 1, 2 or 3."""
    x, w, bias = _layer_operands(x, w, bias)
    return _conv(x, w, bias, **geometry(x, w, stride, padding, dilation, groups).attributes())


def _layer_operands(x: Any, w: Any, bias: Any) -> tuple[Any, Any, Any]:
    if bias is None:
        x, w = promoted(operand(x), operand(w))
        return x, w, None
    x, w, bias = promoted(operand(x), operand(w), operand(bias))
    return x, w, bias


@composite
def _conv_transpose(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    strides: tuple[int, ...],
    padding: Pairs,
    dilation: tuple[int, ...],
    groups: int,
    spatial: tuple[int, ...],
) -> Any:
    return _with_bias(
        apply(ConvolutionInputGradient(strides, padding, dilation, groups, spatial), x, w), bias
    )


@_conv_transpose.gradient
def _conv_transpose_gradient(
    inputs: Any, outputs: Any, cotangents: Any, *, spatial: tuple[int, ...], **attributes: Any
) -> Sequence[Any]:
    (x, w, bias), (g,) = inputs, cotangents
    op = ConvolutionForward(**attributes)
    by_bias = None if bias is None else _channel_sum(g)
    return (forward(op, g, w), weight_gradient(op, g, x, w.shape[2:]), by_bias)


def conv_transpose(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """The transposed convolution, PyTorch's `conv_transpose{n}d`: the gradient of `conv` with respect to its
    input.

    `x` is [B, C, *spatial], `w` [C, K / groups, *kernel], the result [B, K, *out] with
    out = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1; `padding` is an
    integer or one for each axis, `output_padding` is below `stride` or `dilation`. Raises `ShapeError` where
    the sizes do not fit.
    """
    x, w, bias = _layer_operands(x, w, bias)
    op = geometry(x, w, stride, padding, dilation, groups)
    rank = len(op.strides)
    if isinstance(padding, str):
        raise ArgumentError(f"conv_transpose takes padding as numbers, received {padding!r}")
    if x.ndim != rank + 2:
        raise ShapeError(
            f"conv_transpose with a weight of shape {w.shape} needs an input with {rank + 2} axes, received "
            f"shape {x.shape}"
        )
    if x.shape[1] != w.shape[0]:
        raise ShapeError(
            f"conv_transpose: axis 1 (channels) of the input has size {x.shape[1]}, the weight [input "
            f"channels, output channels / groups, *kernel] of shape {w.shape} needs {w.shape[0]}"
        )
    extra = per_axis(output_padding, rank, "output_padding", 0)
    spatial, pairs = [], []
    for size, kernel, more, step, spread, (low, high) in zip(
        x.shape[2:], w.shape[2:], extra, op.strides, op.dilation, op.padding, strict=True
    ):
        if more >= max(step, spread) or more - high >= step:
            raise ArgumentError(
                "output_padding must be smaller than stride (or than dilation, where padding + stride "
                f"exceeds it), received output_padding {output_padding!r}, stride {stride!r}, dilation "
                f"{dilation!r}, padding {padding!r}"
            )
        spatial.append((size - 1) * step - low - high + spread * (kernel - 1) + more + 1)
        pairs.append(
            (low, high if more < step else high - more)
        )  # less of the full result is cut off at its end
        if size < 1 or spatial[-1] < 1:
            raise ShapeError(
                f"conv_transpose of spatial sizes {x.shape[2:]} with padding {padding!r} would give an "
                f"output of size {spatial[-1]}; sizes are at least 1"
            )
    attributes = {**op.attributes(), "padding": tuple(pairs), "spatial": tuple(spatial)}
    return _conv_transpose(x, w, bias, **attributes)


# ---- samples -----------------------------------------------------------------------------------------------


@samples("matmul")
def _matmul_samples() -> Iterator[Sample]:
    def theirs(torch: Any, x: Any, y: Any) -> Any:
        return torch.matmul(x, y)

    shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
        ((2, 3), (3, 4)),
        ((1, 1), (1, 1)),
        ((7,), (7,)),
        ((2, 3), (3,)),
        ((3,), (3, 5)),
        ((4, 2, 3), (3, 5)),
        ((4, 2, 3), (4, 3, 5)),
        ((5, 1, 2, 3), (4, 3, 2)),
        ((2, 3), (4, 3, 2)),
        ((4, 2, 3), (3,)),
        ((0, 3), (3, 4)),
        ((2, 0), (0, 4)),
        ((3, 0, 2), (2, 4)),
    )
    for left, right in shapes:
        yield Sample(matmul, (values(*left), values(*right, seed=1)), torch=theirs)
    for flags in ((True, False), (False, True), (True, True)):
        x = values(2, 4, 3) if flags[0] else values(2, 3, 4)
        y = values(2, 5, 4) if flags[1] else values(2, 4, 5)
        yield Sample(lambda a, b, flags=flags: apply(MatMul(*flags), a, b), (x, y))
    yield Sample(matmul, (values(65, 129), values(129, 33)), torch=theirs, gradient=False, tolerance=10)
    for dtype in ("float16", "bfloat16", "float64"):
        yield Sample(
            matmul, (values(3, 9, dtype=dtype), values(9, 5, dtype=dtype)), torch=theirs, tolerance=4
        )
    for dtype in ("int32", "int64", "uint8"):
        x, y = (values(*shape, dtype=dtype, low=-9, high=99) for shape in ((3, 5), (5, 2)))
        yield Sample(matmul, (x, y), torch=theirs)
    yield Sample(
        matmul,
        (np.stack([special(), special()]), np.stack([special(), special()], 1)),
        torch=theirs,
        gradient=False,
    )
    yield Sample(
        matmul, (values(2, 3), values(2, 3)), error=ShapeError, message="transpose the second operand"
    )
    yield Sample(matmul, (values(2, 3), values(4)), error=ShapeError, message="received 3 and 4")
    yield Sample(matmul, (values(2, 2, 3), values(5, 3, 2)), error=ShapeError, message="broadcast")
    yield Sample(matmul, (values(), values(2, 2)), error=ShapeError, message="x * y")
    yield Sample(
        matmul, (values(2, 2, dtype="bool"), values(2, 2, dtype="bool")), error=DTypeError, message="numbers"
    )


# (shape of x, shape of w, arguments): every attribute, odd sizes, 1 to 3 spatial axes
_GEOMETRIES: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((2, 1, 5, 6), (3, 1, 3, 3), {"padding": 1}),
    ((2, 3, 6, 5), (4, 3, 2, 3), {"stride": (2, 1), "padding": (0, 2)}),
    ((1, 2, 7, 8), (2, 2, 3, 2), {"dilation": (2, 3), "padding": 1}),
    ((2, 4, 5, 5), (6, 2, 3, 3), {"groups": 2, "stride": 2}),
    ((1, 3, 5, 4), (3, 1, 3, 3), {"groups": 3, "padding": 1}),
    ((2, 3, 4, 4), (5, 3, 1, 1), {}),
    ((2, 3, 9), (2, 3, 4), {"stride": 3, "padding": 2}),
    ((1, 2, 3, 4, 5), (2, 2, 2, 3, 2), {"stride": (1, 2, 2), "padding": (1, 0, 1)}),
    ((0, 2, 5, 5), (3, 2, 3, 3), {}),
    ((2, 2, 8, 3), (1, 2, 3, 3), {"stride": 3, "padding": 1}),
)


@samples("convolution", "conv")
def _convolution_samples() -> Iterator[Sample]:
    for x, w, options in _GEOMETRIES:
        operands = (values(*x), values(*w, seed=1))
        theirs = functional(f"conv{len(x) - 2}d", **options)
        yield Sample(conv, operands, options, torch=theirs, tolerance=2)
        yield Sample(conv, (*operands, values(w[0], seed=2)), options, torch=theirs, tolerance=2)
    same = {"padding": "same", "dilation": (1, 2)}
    pair = (values(2, 3, 5, 6), values(4, 3, 4, 3))
    yield Sample(
        conv,
        pair,
        same,
        torch=lambda torch, x, w: torch.conv2d(torch.nn.functional.pad(x, (2, 2, 1, 2)), w, dilation=(1, 2)),
    )
    yield Sample(conv, pair, {"padding": "valid"}, torch=functional("conv2d"))
    yield Sample(
        conv,
        pair,
        {"padding": ((1, 0), (0, 2))},
        torch=lambda torch, x, w: torch.conv2d(torch.nn.functional.pad(x, (0, 2, 1, 0)), w),
    )
    for dtype in ("float16", "bfloat16", "float64"):
        pair = (values(2, 3, 6, 5, dtype=dtype), values(4, 3, 3, 3, dtype=dtype))
        yield Sample(conv, pair, {"padding": 1}, torch=functional("conv2d", padding=1), tolerance=4)
    line = special().reshape(1, 1, -1)
    yield Sample(conv, (line, values(2, 1, 1)), {}, torch=functional("conv1d"))
    yield from _bad_convolutions()


def _bad_convolutions() -> Iterator[Sample]:
    x, w = values(2, 3, 5, 5), values(4, 3, 3, 3)
    cases: tuple[tuple[tuple[Array, ...], dict[str, Any], type[Exception], str], ...] = (
        ((x, values(4, 1, 3, 3)), {}, ShapeError, "axis 1 (channels) of the input has size 3"),
        ((x, values(4, 3, 7, 7)), {}, ShapeError, "covers 7 elements of spatial axis 0"),
        ((values(3, 5, 5), w), {}, ShapeError, "needs an input [batch, channels"),
        ((x, values(4, 3)), {}, ShapeError, "1 to 3 kernel axes"),
        ((x, values(4, 3, 0, 3)), {}, ShapeError, "without empty axes"),
        ((values(2, 4, 5, 5), values(3, 2, 3, 3)), {"groups": 2}, ShapeError, "divided into 2 groups"),
        ((x, w), {"stride": 0}, ArgumentError, "stride must be"),
        ((x, w), {"stride": (1, 1, 1)}, ArgumentError, "stride must be"),
        ((x, w), {"padding": -1}, ArgumentError, "padding must be"),
        ((x, w), {"padding": "full"}, ArgumentError, '"same"'),
        ((x, w), {"padding": "same", "stride": 2}, ArgumentError, "needs stride 1"),
        (
            (values(2, 3, 5, 5, dtype="int32"), values(4, 3, 3, 3, dtype="int32")),
            {},
            DTypeError,
            "floating-point",
        ),
        ((x, w, values(3)), {}, ShapeError, "each output channel"),
    )
    for operands, options, error, message in cases:
        yield Sample(conv, operands, options, error=error, message=message)


def _gradient_sample(
    form: type[Convolution], x: Sequence[int], w: Sequence[int], dtype: str, **options: Any
) -> Sample:
    """One of the gradient modes by itself, on a cotangent of the right shape."""
    first, second = values(*x, dtype=dtype), values(*w, dtype=dtype, seed=1)
    op = geometry(first, second, **{"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options})
    cotangent = values(*op.output_shape(x, w), dtype=dtype, seed=2)
    by_input = form is ConvolutionInputGradient
    shape, operands = (tuple(x), (cotangent, second)) if by_input else (tuple(w), (first, cotangent))
    function = input_gradient if by_input else weight_gradient

    def theirs(torch: Any, a: Any, b: Any) -> Any:
        gradient = getattr(torch.nn.grad, f"conv{len(x) - 2}d_{'input' if by_input else 'weight'}")
        return gradient(shape, b, a, **options) if by_input else gradient(a, shape, b, **options)

    return Sample(
        lambda a, b: function(op, a, b, shape[2:]),
        operands,
        torch=theirs if 0 not in x else None,
        torch_gradient=False,  # PyTorch's own gradients are tested through `conv` to second order
        tolerance=4,
    )


@samples("convolution_input_gradient")
def _input_gradient_samples() -> Iterator[Sample]:
    for x, w, options in _GEOMETRIES:
        yield _gradient_sample(ConvolutionInputGradient, x, w, "float32", **options)
    yield _gradient_sample(ConvolutionInputGradient, (2, 3, 5, 6), (4, 3, 3, 3), "float64", padding=1)
    yield _gradient_sample(ConvolutionInputGradient, (2, 3, 5, 6), (4, 3, 3, 3), "bfloat16", padding=1)


@samples("convolution_weight_gradient")
def _weight_gradient_samples() -> Iterator[Sample]:
    for x, w, options in _GEOMETRIES:
        yield _gradient_sample(ConvolutionWeightGradient, x, w, "float32", **options)
    yield _gradient_sample(ConvolutionWeightGradient, (2, 3, 5, 6), (4, 3, 3, 3), "float64", padding=1)
    yield _gradient_sample(ConvolutionWeightGradient, (2, 3, 5, 6), (4, 3, 3, 3), "float16", padding=1)


@samples("conv_transpose")
def _conv_transpose_samples() -> Iterator[Sample]:
    geometries: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
        ((2, 3, 4, 5), (3, 2, 3, 3), {"padding": 1}),
        ((1, 2, 3, 4), (2, 3, 2, 3), {"stride": (2, 3), "padding": (0, 1), "output_padding": 1}),
        ((2, 4, 3, 3), (4, 1, 3, 2), {"groups": 2, "stride": 2}),
        ((1, 2, 4, 3), (2, 2, 3, 3), {"dilation": 2, "output_padding": (1, 0), "padding": 2}),
        ((2, 3, 5), (3, 4, 4), {"stride": 2, "padding": 1}),
        ((1, 2, 2, 3, 2), (2, 2, 2, 2, 3), {"stride": 2}),
        ((0, 3, 4, 5), (3, 2, 3, 3), {}),
    )
    for shape, kernel, options in geometries:
        pair = (values(*shape), values(*kernel, seed=1))
        bias = values(kernel[1] * options.get("groups", 1), seed=2)
        theirs = functional(f"conv_transpose{len(shape) - 2}d", **options)
        yield Sample(conv_transpose, pair, options, torch=theirs, tolerance=2)
        yield Sample(conv_transpose, (*pair, bias), options, torch=theirs, tolerance=2)
    x, w = values(2, 3, 4, 4), values(3, 2, 3, 3)
    cases: tuple[tuple[tuple[Array, ...], dict[str, Any], type[Exception], str], ...] = (
        ((values(2, 4, 4, 4), w), {}, ShapeError, "needs 3"),
        ((x, w), {"output_padding": 1}, ArgumentError, "smaller than stride"),
        ((x, w), {"padding": "same"}, ArgumentError, "as numbers"),
        ((values(3, 4, 4), w), {}, ShapeError, "4 axes"),
        ((x, values(3, 2, 1, 1)), {"padding": 3}, ShapeError, "sizes are at least 1"),
    )
    for operands, options, error, message in cases:
        yield Sample(conv_transpose, operands, options, error=error, message=message)
