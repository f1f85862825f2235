"""Reductions: sum, max, min, prod, argmax, argmin, and what is written in them (mean, var, std, any, all).

The primitives drop the reduced axes; the functions put them back for `keepdims=True`. Semantics are the
array-API standard's: `axis` is None (all axes), an integer or a tuple; sums and products of nothing are 0 and
1, the largest of nothing is an error; sums of integers and booleans are 64-bit integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError, ShapeError
from thalweg.graph import AxisGroup, Kind, Op
from thalweg.ops.core import apply, cast, composite, floating, operand, primitive, require
from thalweg.ops.elementwise import equal, sqrt, truth, where
from thalweg.ops.movement import broadcast_to, flip, pad, reshape, slice_axis, transpose
from thalweg.ops.samples import Sample, samples, special, special_pairs, values
from thalweg.types import Shape, Type, normalize_axes, normalize_axis


def accumulator(dtype: np.dtype[Any]) -> Any:
    """In what the references add and multiply: float32 for 16 bits, float64 (the more exact) above."""
    if dtype.kind in "iu":
        return dtype
    return np.float32 if dtype.itemsize == 2 else np.float64


def _comparable(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """bfloat16 as float32, which NumPy compares."""
    return x.astype(np.float32) if x.dtype.kind == "V" or x.dtype.name == "bfloat16" else x


def _kept(shape: Shape, axis: Sequence[int]) -> Shape:
    return tuple(1 if position in axis else extent for position, extent in enumerate(shape))


class Reduction(Op):
    """Over `axis` (sorted, distinct), which the result does not have."""

    axis: tuple[int, ...]

    accepts = "iuf"
    needs_elements = False

    def infer(self, x: Type) -> tuple[Type, ...]:
        require(
            list(self.axis) == sorted(set(self.axis) & set(range(x.ndim))),
            f"{self.name} over axes {self.axis} of a tensor with {x.ndim} axes",
        )
        if x.dtype.kind not in self.accepts:
            raise DTypeError(
                f"{self.name} does not accept {x.dtype} tensors; cast first, for example to int64"
            )
        if self.needs_elements:
            for axis in self.axis:
                require(
                    x.shape[axis] != 0,
                    f"{self.name} of a tensor of shape {x.shape} over axis {axis}, which has size 0: "
                    "nothing is the largest or smallest of no elements",
                )
        return (Type(x.dtype, tuple(extent for axis, extent in enumerate(x.shape) if axis not in self.axis)),)

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        groups: list[AxisGroup] = []
        position = 0
        for axis in range(inputs[0].ndim):
            reduced = axis in self.axis
            groups.append(AxisGroup((axis,), (None if reduced else position,)))
            position += not reduced
        return tuple(groups)


def _restore(reduced: Any, axis: Sequence[int], shape: Shape) -> Any:
    """A reduced operand brought back to the shape before the reduction."""
    return broadcast_to(reshape(reduced, _kept(shape, axis)), shape)


@primitive("sum", Kind.REDUCTION, "sum")
class Sum(Reduction):
    """The sum; integers wrap.

    The reference adds 16-bit floating point in float32 and float32 in float64 and rounds once: NumPy's own
    float32 sum is pairwise along the last axis only.
    """

    axis: tuple[int, ...]

    def reference(self, x: np.ndarray[Any, Any]) -> Any:
        return np.sum(x, self.axis, accumulator(x.dtype)).astype(x.dtype)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        return (_restore(cotangents[0], self.axis, inputs[0].shape),)


@primitive("prod", Kind.REDUCTION, "prod")
class Prod(Reduction):
    """The product; integers wrap. Accumulated as `Sum`."""

    axis: tuple[int, ...]

    def reference(self, x: np.ndarray[Any, Any]) -> Any:
        return np.prod(x, self.axis, accumulator(x.dtype)).astype(x.dtype)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        return (_prod_gradient(inputs[0], cotangents[0], self.axis),)


def _prod_gradient(x: Any, g: Any, axis: tuple[int, ...]) -> Any:
    """Products of all other elements by a balanced tree: no division, so zeros are exact at every order.

    Upwards each pair is multiplied; downwards each element receives its parent's share times its neighbour.
    """
    kept = tuple(position for position in range(x.ndim) if position not in axis)
    order = (*kept, *axis)
    outer = tuple(x.shape[position] for position in kept)
    count = math.prod(x.shape[position] for position in axis)
    if x.size == 0:
        return broadcast_to(operand(0.0, x.dtype), x.shape)
    line = reshape(transpose(x, order), (*outer, count))
    levels: list[Any] = []
    size = 1 << (count - 1).bit_length()
    line = pad(line, [(0, 0)] * len(outer) + [(0, size - count)], value=1)
    while size > 1:
        size //= 2
        pairs = reshape(line, (*outer, size, 2))
        levels.append(pairs)
        line = prod(pairs, -1)
    share = reshape(g, (*outer, 1))
    for pairs in reversed(levels):
        share = reshape(
            broadcast_to(reshape(share, (*share.shape, 1)), pairs.shape) * flip(pairs, -1), (*outer, -1)
        )
    share = slice_axis(share, len(outer), 0, count)
    permuted = reshape(share, tuple(x.shape[position] for position in order))
    return transpose(permuted, sorted(range(x.ndim), key=order.__getitem__))


def _extreme_vjp(op: Reduction, x: Any, y: Any, g: Any) -> Any:
    """The gradient shared equally among the elements that attain the extreme (as PyTorch's amax)."""
    attained = cast(equal(x, _restore(y, op.axis, x.shape)), g.dtype)
    share = g / apply(Sum(op.axis), attained)
    return attained * _restore(share, op.axis, x.shape)


@primitive("max", Kind.REDUCTION, "max")
class Max(Reduction):
    """The largest element; NaN if any is NaN."""

    axis: tuple[int, ...]

    accepts = "biuf"
    needs_elements = True

    def reference(self, x: np.ndarray[Any, Any]) -> Any:
        return np.max(_comparable(x), self.axis).astype(x.dtype)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        return (_extreme_vjp(self, inputs[0], outputs[0], cotangents[0]),)


@primitive("min", Kind.REDUCTION, "min")
class Min(Reduction):
    """The smallest element; NaN if any is NaN."""

    axis: tuple[int, ...]

    accepts = "biuf"
    needs_elements = True

    def reference(self, x: np.ndarray[Any, Any]) -> Any:
        return np.min(_comparable(x), self.axis).astype(x.dtype)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        return (_extreme_vjp(self, inputs[0], outputs[0], cotangents[0]),)


class ArgReduction(Op):
    """The int64 position along one axis, which the result does not have; the first one among equals."""

    axis: int

    def infer(self, x: Type) -> tuple[Type, ...]:
        require(0 <= self.axis < x.ndim, f"{self.name} over axis {self.axis} of a tensor with {x.ndim} axes")
        require(
            x.shape[self.axis] != 0,
            f"{self.name} of a tensor of shape {x.shape} over axis {self.axis} of size 0",
        )
        return (Type(types.int64, (*x.shape[: self.axis], *x.shape[self.axis + 1 :])),)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        return (None,)

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        return tuple(
            AxisGroup((axis,), (axis - (axis > self.axis),))
            for axis in range(inputs[0].ndim)
            if axis != self.axis
        )


@primitive("argmax", Kind.REDUCTION)
class Argmax(ArgReduction):
    """Position of the largest element; NaN counts as the largest, as in NumPy."""

    axis: int

    def reference(self, x: np.ndarray[Any, Any]) -> Any:
        return np.argmax(_comparable(x), self.axis)


@primitive("argmin", Kind.REDUCTION)
class Argmin(ArgReduction):
    """Position of the smallest element; NaN counts as the smallest, as in NumPy."""

    axis: int

    def reference(self, x: np.ndarray[Any, Any]) -> Any:
        return np.argmin(_comparable(x), self.axis)


# ---- functions ---------------------------------------------------------------------------------------------


def _reduce(op: type[Any], x: Any, axis: Any, keepdims: bool) -> Any:
    over = normalize_axes(axis, x.ndim)
    result = apply(op(over), x) if over else x
    return reshape(result, _kept(x.shape, over)) if keepdims else result


def summable(x: Any, dtype: Any) -> Any:
    """`x` in the type of its sum: 64 bits for integers and booleans where no type is asked for."""
    x = operand(x)
    if dtype is not None:
        return cast(x, dtype)
    if x.dtype.is_floating:
        return x
    return cast(x, types.uint64 if x.dtype.kind == "u" else types.int64)


def sum(x: Any, axis: Any = None, keepdims: bool = False, *, dtype: Any = None) -> Any:
    """The sum over `axis`; of nothing it is 0. Integers and booleans add up in 64 bits."""
    return _reduce(Sum, summable(x, dtype), axis, keepdims)


def prod(x: Any, axis: Any = None, keepdims: bool = False, *, dtype: Any = None) -> Any:
    """The product over `axis`; of nothing it is 1. Integers and booleans multiply in 64 bits."""
    return _reduce(Prod, summable(x, dtype), axis, keepdims)


def max(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The largest element over `axis`; NaN if any is NaN. Equal ones share the gradient."""
    return _reduce(Max, operand(x), axis, keepdims)


def min(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The smallest element over `axis`; NaN if any is NaN. Equal ones share the gradient."""
    return _reduce(Min, operand(x), axis, keepdims)


def _arg_reduce(op: type[Any], x: Any, axis: int | None, keepdims: bool) -> Any:
    x = operand(x)
    if axis is None:
        result = apply(op(0), reshape(x, (-1,) if x.size else (0,)))
        return reshape(result, (1,) * x.ndim) if keepdims else result
    position = normalize_axis(axis, x.ndim)
    result = apply(op(position), x)
    return reshape(result, _kept(x.shape, (position,))) if keepdims else result


def argmax(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    """Position (int64) of the first largest element along `axis` (None: in row-major order of all)."""
    return _arg_reduce(Argmax, x, axis, keepdims)


def argmin(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    """Position (int64) of the first smallest element along `axis` (None: in row-major order of all)."""
    return _arg_reduce(Argmin, x, axis, keepdims)


def any(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Whether some element over `axis` is not zero, a bool tensor; False of nothing."""
    return _reduce_truth(Max, x, axis, keepdims, False)


def all(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """Whether every element over `axis` is not zero, a bool tensor; True of nothing."""
    return _reduce_truth(Min, x, axis, keepdims, True)


def _reduce_truth(op: type[Any], x: Any, axis: Any, keepdims: bool, of_nothing: bool) -> Any:
    x = truth(x)
    over = normalize_axes(axis, x.ndim)
    if 0 in [x.shape[position] for position in over]:
        kept = [1 if p in over else extent for p, extent in enumerate(x.shape) if keepdims or p not in over]
        return broadcast_to(operand(of_nothing), tuple(kept))
    return _reduce(op, x, over, keepdims)


def _count(shape: Shape, axis: Sequence[int]) -> int:
    return math.prod(shape[position] for position in axis)


@composite
def _mean(x: Any, *, axis: tuple[int, ...], keepdims: bool) -> Any:
    # 16-bit sums are divided before they are rounded: they would overflow
    wide = cast(x, types.float32) if x.dtype.itemsize == 2 else x
    return cast(sum(wide, axis, keepdims) / _count(x.shape, axis), x.dtype)


@composite
def _var(x: Any, *, axis: tuple[int, ...], keepdims: bool, correction: float) -> Any:
    wide = cast(x, types.float32) if x.dtype.itemsize == 2 else x
    centred = wide - _mean(wide, axis=axis, keepdims=True)
    divisor = _count(x.shape, axis) - correction
    return cast(sum(centred * centred, axis, keepdims) / (divisor if divisor > 0 else 0.0), x.dtype)


def _spread(x: Any, g: Any, axis: tuple[int, ...], correction: float) -> Any:
    """g (x - mean) / (n - correction) with `g` reduced over `axis`."""
    divisor = _count(x.shape, axis) - correction
    scaled = g / (divisor if divisor > 0 else 0.0)
    return (x - _mean(x, axis=axis, keepdims=True)) * reshape(scaled, _kept(x.shape, axis))


@_var.gradient
def _var_gradient(
    inputs: Any, outputs: Any, cotangents: Any, axis: tuple[int, ...], keepdims: bool, correction: float
) -> Sequence[Any]:
    return (_spread(inputs[0], cotangents[0] * 2.0, axis, correction),)


@composite
def _std(x: Any, *, axis: tuple[int, ...], keepdims: bool, correction: float) -> Any:
    return sqrt(_var(x, axis=axis, keepdims=keepdims, correction=correction))


@_std.gradient
def _std_gradient(
    inputs: Any, outputs: Any, cotangents: Any, axis: tuple[int, ...], keepdims: bool, correction: float
) -> Sequence[Any]:
    y, g = outputs[0], cotangents[0]
    constant = equal(y, 0.0)  # no spread: the gradient is taken as 0, as in PyTorch
    return (_spread(inputs[0], where(constant, 0.0, g / where(constant, 1.0, y)), axis, correction),)


def mean(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The arithmetic mean over `axis`; NaN of nothing. Integers become float32."""
    x = floating(x)
    return _mean(x, axis=normalize_axes(axis, x.ndim), keepdims=bool(keepdims))


def var(x: Any, axis: Any = None, keepdims: bool = False, *, correction: float = 0) -> Any:
    """The variance over `axis`: squared distances from the mean divided by n - `correction` (1: unbiased)."""
    x = floating(x)
    return _var(x, axis=normalize_axes(axis, x.ndim), keepdims=bool(keepdims), correction=float(correction))


def std(x: Any, axis: Any = None, keepdims: bool = False, *, correction: float = 0) -> Any:
    """The square root of `var`."""
    x = floating(x)
    return _std(x, axis=normalize_axes(axis, x.ndim), keepdims=bool(keepdims), correction=float(correction))


# ---- samples -----------------------------------------------------------------------------------------------


def _reduction_samples(name: str, function: Any, distinct: bool, integers: bool) -> Iterator[Sample]:
    """Samples that sum, prod, max and min share; `name` is PyTorch's function of one axis."""

    def whole(torch: Any, x: Any) -> Any:
        return getattr(torch, name)(x) if x.ndim else getattr(torch, name)(x, 0)

    low, high = (0.5, 1.5) if name == "prod" else (-2.0, 2.0)

    def array(*shape: int, dtype: str = "float32") -> Any:
        return values(*shape, dtype=dtype, low=low, high=high, distinct=distinct)

    def along(torch: Any, x: Any, axis: Any, keepdims: bool = False) -> Any:
        return getattr(torch, name)(x, axis, keepdim=keepdims)

    yield Sample(lambda x: function(reshape(x, (1,))), (array(),))  # 0-d in and out
    yield Sample(function, (array(7),), torch=whole)
    yield Sample(function, (array(3, 5),), {"axis": 1}, torch=lambda t, x: along(t, x, 1))
    yield Sample(
        function, (array(3, 5, 7),), {"axis": 0, "keepdims": True}, torch=lambda t, x: along(t, x, 0, True)
    )
    yield Sample(function, (array(3, 2, 4),), {"axis": (0, -1)})
    yield Sample(function, (array(2, 3, 1),), {"axis": (0, 1, 2), "keepdims": True})
    yield Sample(function, (array(4, 0),), {"axis": 0}, torch=lambda t, x: along(t, x, 0))
    yield Sample(function, (array(9, 33, dtype="float64"),), {"axis": 0}, torch=lambda t, x: along(t, x, 0))
    yield Sample(function, (array(5, 6, dtype="float16"),), {"axis": 1}, torch=lambda t, x: along(t, x, 1))
    yield Sample(function, (array(5, 6, dtype="bfloat16"),), {"axis": 0}, torch=lambda t, x: along(t, x, 0))
    yield Sample(function, (special(),), torch=whole, torch_gradient=False)
    yield Sample(
        function,
        (np.stack(special_pairs()),),
        {"axis": 0},
        torch=lambda t, x: along(t, x, 0),
        torch_gradient=False,
    )
    if integers:
        yield Sample(function, (values(3, 4, dtype="int8", low=-9, high=9),), {"axis": 1})
        yield Sample(function, (values(3, 4, dtype="uint16", high=9),), {"axis": 0})
        yield Sample(function, (values(3, 4, dtype="bool"),), {"axis": 0})
    yield Sample(function, (array(3, 5),), {"axis": 2}, error=ArgumentError, message="expected -2 to 1")
    yield Sample(function, (array(3, 5),), {"axis": (0, -2)}, error=ArgumentError, message="twice")
    yield Sample(function, (array(3, 5),), {"axis": 1.0}, error=ArgumentError, message="integer")


@samples("sum")
def _sum_samples() -> Iterator[Sample]:
    yield from _reduction_samples("sum", sum, False, True)
    yield Sample(sum, (values(0),), torch=lambda t, x: t.sum(x))
    yield Sample(sum, (values(3, 0, 2),), {"axis": 1})
    yield Sample(sum, (values(300, dtype="float16", low=100, high=200),))
    yield Sample(sum, (values(3, 5, dtype="int32"),), {"axis": 0, "dtype": "float64"})


@samples("prod")
def _prod_samples() -> Iterator[Sample]:
    yield from _reduction_samples("prod", prod, False, True)
    yield Sample(prod, (values(0),), torch=lambda t, x: t.prod(x))
    with_zeros = values(3, 5)
    with_zeros[0, 1] = with_zeros[1, 2] = with_zeros[1, 4] = 0.0
    yield Sample(prod, (with_zeros,), {"axis": 1}, torch=lambda t, x: t.prod(x, 1))
    yield Sample(prod, (with_zeros,), torch=lambda t, x: t.prod(x))


@samples("max")
def _max_samples() -> Iterator[Sample]:
    yield from _reduction_samples("amax", max, True, False)
    yield from _extreme_samples(max, "amax")


@samples("min")
def _min_samples() -> Iterator[Sample]:
    yield from _reduction_samples("amin", min, True, False)
    yield from _extreme_samples(min, "amin")


def _extreme_samples(function: Any, name: str) -> Iterator[Sample]:
    ties = np.array([[1, 2, 2, 0, 0], [3, 3, 3, 3, 3], [-1, 4, 0, -1, 4]], np.float32)
    torch_function = lambda t, x: getattr(t, name)(x, 1)  # noqa: E731
    yield Sample(function, (ties,), {"axis": 1}, gradient=False, torch=torch_function)
    for dtype in ("int8", "uint64", "bool"):
        yield Sample(function, (values(3, 4, dtype=dtype, low=-9, high=9),), {"axis": 1})
    yield Sample(function, (values(2, 0, 3),), {"axis": 2})
    yield Sample(function, (values(0),), error=ShapeError, message="size 0")
    yield Sample(function, (values(2, 0, 3),), {"axis": 1}, error=ShapeError, message="size 0")


@samples("argmax")
def _argmax_samples() -> Iterator[Sample]:
    yield from _position_samples(argmax, "argmax")


@samples("argmin")
def _argmin_samples() -> Iterator[Sample]:
    yield from _position_samples(argmin, "argmin")


def _position_samples(function: Any, name: str) -> Iterator[Sample]:
    def along(axis: int | None, keepdims: bool = False) -> Any:
        return lambda t, x: getattr(t, name)(x, axis, keepdim=keepdims)

    yield Sample(function, (values(),), gradient=False)
    yield Sample(function, (values(7),), gradient=False, torch=along(None))
    yield Sample(function, (values(3, 5),), {"axis": 1}, gradient=False, torch=along(1))
    yield Sample(function, (values(3, 5),), gradient=False, torch=along(None))
    yield Sample(
        function, (values(3, 5, 7),), {"axis": -3, "keepdims": True}, gradient=False, torch=along(0, True)
    )
    yield Sample(function, (values(3, 0),), {"axis": 0}, gradient=False, torch=along(0))
    yield Sample(function, (np.array([1, 3, 3, -2, -2], np.float32),), {"axis": 0})
    yield Sample(function, (special(),), torch=along(None))
    yield Sample(function, (special("bfloat16"),))
    yield Sample(function, (np.stack(special_pairs()),), {"axis": 0})
    for dtype in ("int16", "bool", "float16", "float64"):
        yield Sample(function, (values(4, 5, dtype=dtype, low=-9, high=9),), {"axis": 0}, gradient=False)
    yield Sample(function, (values(0),), error=ShapeError, message="size 0")
    yield Sample(function, (values(2, 0),), {"axis": 1}, error=ShapeError, message="size 0")
    yield Sample(function, (values(2, 3),), {"axis": 2}, error=ArgumentError)


@samples("mean")
def _mean_samples() -> Iterator[Sample]:
    yield from _reduction_samples("mean", mean, False, False)
    yield Sample(
        mean,
        (values(3, 0),),
        {"axis": 1},
        gradient=False,
        torch=lambda t, x: t.mean(x, 1),
        torch_gradient=False,
    )
    yield Sample(mean, (values(3, 5, dtype="int32", high=9),), {"axis": 0})
    yield Sample(mean, (np.full(70000, 2.0, np.float16),), torch=lambda t, x: t.mean(x))


@samples("var")
def _var_samples() -> Iterator[Sample]:
    yield from _spread_samples(var, "var")


@samples("std")
def _std_samples() -> Iterator[Sample]:
    yield from _spread_samples(std, "std")
    constant = np.full((2, 5), 3.0, np.float32)
    along = lambda t, x: t.std(x, 1, correction=0)  # noqa: E731
    yield Sample(std, (constant,), {"axis": 1}, gradient=False, torch=along)


def _spread_samples(function: Any, name: str) -> Iterator[Sample]:
    def along(axis: Any = None, correction: float = 0, keepdims: bool = False) -> Any:
        return lambda t, x: getattr(t, name)(x, axis, correction=correction, keepdim=keepdims)

    yield Sample(function, (values(7),), torch=along())
    yield Sample(function, (values(3, 5),), {"axis": 1}, torch=along(1))
    yield Sample(
        function, (values(3, 5),), {"axis": 0, "correction": 1, "keepdims": True}, torch=along(0, 1, True)
    )
    yield Sample(function, (values(3, 5, 7) + 100,), {"axis": (0, 2)}, torch=along((0, 2)), tolerance=100)
    yield Sample(function, (values(3, 5, dtype="float64"),), {"axis": 0}, torch=along(0))
    yield Sample(function, (values(3, 33, dtype="float16"),), {"axis": 1}, torch=along(1))
    yield Sample(function, (values(3, 33, dtype="bfloat16"),), {"axis": 1}, torch=along(1))
    yield Sample(function, (values(3, 5, dtype="int16", high=9),), {"axis": 0})
    yield Sample(function, (values(),), gradient=False)
    yield Sample(function, (values(0, 3),), {"axis": 1})  # PyTorch warns of no degrees of freedom
    yield Sample(function, (values(0, 3),), {"axis": 0}, gradient=False)
    yield Sample(
        function, (np.array([1, np.nan, 2, np.inf], np.float32),), torch=along(), torch_gradient=False
    )
    yield Sample(function, (values(3, 5),), {"axis": 5}, error=ArgumentError)
