"""Accumulation: results that several inputs add to. Scatter and cumulative sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError, IndexRangeError, ShapeError
from thalweg.graph import AxisGroup, Kind, Op
from thalweg.ops.core import apply, cast, operand, primitive, require
from thalweg.ops.elementwise import equal, where
from thalweg.ops.indexing import (
    along_axis,
    batched_positions,
    gather,
    gather_groups,
    gather_shape,
    integer_operand,
)
from thalweg.ops.movement import broadcast_to, moveaxis, pad, reshape
from thalweg.ops.reduction import accumulator, summable
from thalweg.ops.samples import Sample, samples, special, values
from thalweg.ops.sources import iota
from thalweg.types import Type, normalize_axis

_MODES = ("set", "add", "min", "max")


@primitive("scatter", Kind.REDUCTION)
class Scatter(Op):
    """`x` with `updates` written to the places that `gather` with the same attributes reads.

    Updates that meet in one place take effect in the row-major order of the indices: the last one is `set`;
    `add` adds to `x` one after the other (in the reference in float64, 16-bit types in float32, rounded
    once).
    """

    checked = True
    axis: int
    batch: int
    mode: str

    def infer(self, x: Type, indices: Type, updates: Type) -> tuple[Type, ...]:
        if self.mode not in _MODES:
            raise ArgumentError(f"scatter mode must be one of {', '.join(_MODES)}, received {self.mode!r}")
        if updates.dtype is not x.dtype:
            raise DTypeError(f"scatter needs equal element types, received {x} and updates {updates}")
        if x.dtype.is_bool and self.mode == "add":
            raise DTypeError(
                "scatter cannot add bool tensors; cast to an integer type, or use the mode max for `or`"
            )
        expected = gather_shape(self, x, indices)
        require(
            updates.shape == expected,
            f"scatter along axis {self.axis} of {x} with indices {indices} needs updates of shape "
            f"{expected}, received {updates.shape}",
        )
        return (x,)

    def reference(
        self, x: np.ndarray[Any, Any], indices: np.ndarray[Any, Any], updates: np.ndarray[Any, Any]
    ) -> Any:
        sizes, row, flat = batched_positions(self, x, indices)
        if not updates.size:
            return np.array(x)
        exact = x.dtype if self.mode == "set" else accumulator(x.dtype)
        result = x.astype(exact).reshape(sizes)
        places = result.swapaxes(1, 2)  # a view [batch, axis, outer, inner]
        written = updates.reshape(sizes[0], sizes[1], flat.shape[1], sizes[3]).swapaxes(1, 2).astype(exact)
        if self.mode == "set":
            places[row, flat] = written
        else:
            {"add": np.add, "min": np.minimum, "max": np.maximum}[self.mode].at(places, (row, flat), written)
        return result.reshape(x.shape).astype(x.dtype)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        x, indices, updates = inputs
        g = cotangents[0]
        if self.mode == "add":
            return (g, None, self._read(g, indices))
        if self.mode == "set":
            zeros = broadcast_to(operand(0.0, g.dtype), updates.shape)
            kept = apply(self, g, indices, zeros)
            last = broadcast_to(self._wins(x, indices), updates.shape)
            return (kept, None, where(last, self._read(g, indices), zeros))
        # equal shares for x and the updates that attain the extreme
        y = outputs[0]
        from_x = cast(equal(x, y), g.dtype)
        from_updates = cast(equal(updates, self._read(y, indices)), g.dtype)
        share = g / apply(Scatter(self.axis, self.batch, "add"), from_x, indices, from_updates)
        return (from_x * share, None, from_updates * self._read(share, indices))

    def _read(self, x: Any, indices: Any) -> Any:
        return gather(x, indices, self.axis, batch=self.batch)

    def _wins(self, x: Any, indices: Any) -> Any:
        """Whether each index is the last one that names its place; shaped to broadcast to the updates."""
        batch, rest = indices.shape[: self.batch], indices.shape[self.batch :]
        count = Type(types.int64, rest).size
        order = broadcast_to(reshape(iota((count,), 0), rest), indices.shape)
        empty = broadcast_to(operand(-1, types.int64), (*batch, x.shape[self.axis]))
        owner = apply(Scatter(self.batch, self.batch, "set"), empty, indices, order)
        wins = equal(gather(owner, indices, self.batch, batch=self.batch), order)
        outer = (1,) * (self.axis - self.batch)
        return reshape(wins, (*batch, *outer, *rest, *(1,) * (x.ndim - self.axis - 1)))

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        x, indices, _ = inputs
        return tuple(
            AxisGroup((a, b, c), (a,)) for a, b, c in gather_groups(self, x, indices) if a is not None
        )


def scatter(x: Any, indices: Any, updates: Any, axis: int = 0, mode: str = "set", *, batch: int = 0) -> Any:
    """`x` with `updates` written at `indices` along `axis`: mode "set", "add", "min" or "max".

    `updates` broadcast to `x.shape[:axis] + indices.shape[batch:] + x.shape[axis + 1:]`. Where several
    updates meet in one place they take effect in the order of the indices, so the result is always the same.
    Negative indices count from the end; one outside the axis raises `IndexRangeError`.
    """
    x = operand(x)
    op = Scatter(normalize_axis(axis, x.ndim), batch, mode)
    indices = integer_operand(indices, "scatter")
    shape = gather_shape(op, x.type, indices.type)
    updates = cast(operand(updates, x.dtype), x.dtype)
    return apply(op, x, indices, broadcast_to(updates, shape))


def put_along_axis(x: Any, indices: Any, updates: Any, axis: int = -1, mode: str = "set") -> Any:
    """`x` with `updates[.., i, ..]` written at `[.., indices[.., i, ..], ..]`: the counterpart of
    `take_along_axis`.

    The axes besides `axis` of `indices` and `updates` are broadcast to those of `x`.
    """
    x = operand(x)
    shape = x.shape
    moved, indices, position = along_axis(x, indices, axis, "put_along_axis")
    if moveaxis(moved, -1, position).shape != shape:
        raise ShapeError(
            f"put_along_axis: indices of shape {indices.shape} do not fit a tensor of shape {shape}"
        )
    updates = cast(operand(updates, x.dtype), x.dtype)
    wide = broadcast_to(updates, moveaxis(indices, -1, position).shape)
    last = x.ndim - 1
    op = Scatter(last, last, mode)
    return moveaxis(apply(op, moved, indices, moveaxis(wide, position, -1)), -1, position)


@primitive("cumulative_sum", Kind.REDUCTION)
class CumulativeSum(Op):
    """Sums of the elements up to and including each position along `axis`; from the end with `reverse`.

    The reference adds in float64 (16-bit types in float32) and rounds each result once.
    """

    axis: int
    reverse: bool

    def infer(self, x: Type) -> tuple[Type, ...]:
        require(
            0 <= self.axis < x.ndim, f"cumulative_sum along axis {self.axis} of a tensor with {x.ndim} axes"
        )
        if x.dtype.is_bool:
            raise DTypeError("cumulative_sum does not accept bool tensors; cast first, for example to int64")
        return (x,)

    def reference(self, x: np.ndarray[Any, Any]) -> Any:
        line = np.flip(x, self.axis) if self.reverse else x
        result = np.cumsum(line.astype(accumulator(x.dtype)), self.axis).astype(x.dtype)
        return np.flip(result, self.axis) if self.reverse else result

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        return (apply(CumulativeSum(self.axis, not self.reverse), cotangents[0]),)

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        return tuple(AxisGroup((axis,), (axis,)) for axis in range(inputs[0].ndim) if axis != self.axis)


def cumulative_sum(
    x: Any,
    axis: int | None = None,
    *,
    dtype: Any = None,
    include_initial: bool = False,
    reverse: bool = False,
) -> Any:
    """Running sums along `axis` (may be None for a vector). Integers and booleans add up in 64 bits.

    `include_initial` puts the 0 of no elements before the first (array-API standard); `reverse` sums from the
    end.
    """
    x = summable(x, dtype)
    if axis is None:
        if x.ndim != 1:
            raise ArgumentError(
                f"cumulative_sum of a tensor of shape {x.shape} needs an axis; only a vector has one"
            )
        axis = 0
    position = normalize_axis(axis, x.ndim)
    result = apply(CumulativeSum(position, bool(reverse)), x)
    if not include_initial:
        return result
    ends = (0, 1) if reverse else (1, 0)
    return pad(result, [ends if i == position else (0, 0) for i in range(x.ndim)])


cumsum = cumulative_sum  # NumPy's and PyTorch's name


# ---- samples -----------------------------------------------------------------------------------------------


@samples("scatter")
def _scatter_samples() -> Iterator[Sample]:
    for shape, places, axis, batch in (
        ((5,), np.array([0, -1, 2]), 0, 0),
        ((5,), np.array([1, 3, 1, -4]), 0, 0),
        ((5, 2), np.array(3), 0, 0),
        ((3, 5), np.array([[0, 4], [0, 1]]), 1, 0),
        ((2, 5, 3), np.array([4, 4, 4]), 1, 0),
        ((2, 3), np.zeros(0, int), 1, 0),
        ((2, 5, 3), np.array([[0, 0, 1], [4, -1, 2]]), 1, 1),
        ((2, 3, 5), np.array([[0, 0], [4, -1]]), 2, 1),
        ((2, 2, 5), np.array([[[0, 0], [4, -1]], [[1, 2], [3, 3]]]), 2, 2),
    ):
        updates = (*shape[:axis], *places.shape[batch:], *shape[axis + 1 :])
        for mode in ("set", "add", "max", "min"):
            options = {"axis": axis, "mode": mode, "batch": batch}
            x, u = values(*shape, distinct=True), values(*updates, distinct=True, low=-1.93, high=2.07)
            yield Sample(scatter, (x, places, u), options)
    ties = (np.zeros(3, np.float32), np.array([1, 1, 2]), np.array([2, 2, 0], np.float32))
    yield Sample(scatter, ties, {"mode": "max"}, gradient=False)
    for mode, reduction in (("add", "sum"), ("max", "amax"), ("min", "amin")):
        x, u = values(5, distinct=True), values(4, distinct=True, low=-1.9, high=2.1)
        function = lambda t, x, i, u, r=reduction: x.scatter_reduce(0, i, u, r)  # noqa: E731
        yield Sample(scatter, (x, np.array([0, 3, 3, 1]), u), {"mode": mode}, torch=function)
    yield Sample(scatter, (special(), np.array([3, 3, 1]), values(3)), {"mode": "add"})
    yield Sample(scatter, (special(), np.arange(12), special()[::-1].copy()), {"mode": "max"})
    yield Sample(scatter, (values(5, 2), np.array([1, 2]), np.float32(3)), {"mode": "add"})
    for dtype, mode in (
        ("float16", "add"),
        ("bfloat16", "add"),
        ("bfloat16", "max"),
        ("float64", "add"),
        ("int8", "add"),
        ("uint64", "min"),
        ("bool", "max"),
    ):
        inputs = (values(5, dtype=dtype), np.array([1, 1, 4], np.int16), values(3, dtype=dtype, seed=1))
        yield Sample(scatter, inputs, {"mode": mode})
    along = (values(3, 5), np.array([[0, 1], [2, 2], [-1, 0]]), values(3, 2))
    yield Sample(put_along_axis, along)
    yield Sample(
        put_along_axis, (values(5, 3), np.array([[0], [1]]), np.float32(1)), {"axis": 0, "mode": "add"}
    )
    yield Sample(
        scatter, (values(3), np.array([3]), values(1)), error=IndexRangeError, message="expected -3 to 2"
    )
    yield Sample(scatter, (values(3), np.array([0]), values(2)), error=ShapeError, message="broadcast")
    yield Sample(scatter, (values(3), values(1), values(1)), error=DTypeError, message="integer")
    yield Sample(
        scatter, (values(3), np.array([0]), values(1)), {"mode": "mean"}, error=ArgumentError, message="mean"
    )
    flags = values(3, dtype="bool")
    yield Sample(scatter, (flags, np.array([0]), flags[:1]), {"mode": "add"}, error=DTypeError, message="max")


@samples("cumulative_sum")
def _cumulative_sum_samples() -> Iterator[Sample]:
    for shape, axis in (((7,), 0), ((3, 5), 1), ((2, 3, 5), -2), ((3, 0), 1), ((0, 3), 1), ((1, 4), 0)):
        torch = lambda t, x, a=axis: t.cumsum(x, a)  # noqa: E731
        yield Sample(cumulative_sum, (values(*shape),), {"axis": axis}, torch=torch)
    yield Sample(cumulative_sum, (values(3, 5),), {"axis": 0, "reverse": True})
    yield Sample(cumulative_sum, (values(5),), {"include_initial": True})
    yield Sample(cumulative_sum, (values(2, 5),), {"axis": 1, "include_initial": True, "reverse": True})
    yield Sample(lambda x: cumulative_sum(reshape(x, (1,))), (values(),))
    yield Sample(cumulative_sum, (special(),), torch=lambda t, x: t.cumsum(x, 0))
    yield Sample(
        cumulative_sum, (values(3, 5, dtype="int8"),), {"axis": 1}, torch=lambda t, x: t.cumsum(x, 1)
    )
    yield Sample(cumulative_sum, (values(4, dtype="bool"),), torch=lambda t, x: t.cumsum(x, 0))
    for dtype in ("float16", "bfloat16", "float64", "uint8"):
        yield Sample(cumulative_sum, (values(3, 4, dtype=dtype),), {"axis": 0})
    yield Sample(cumulative_sum, (values(3, 5),), error=ArgumentError, message="needs an axis")
    yield Sample(cumulative_sum, (values(3, 5),), {"axis": 2}, error=ArgumentError)
