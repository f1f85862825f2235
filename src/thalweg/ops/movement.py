"""Movement primitives: they place elements anew and compute nothing. Functions with the names of the
array-API standard.

A shape, an axis or a permutation is a fixed attribute; what depends on indices held in a tensor is in
`indexing` and `accumulation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from thalweg.errors import ArgumentError, DTypeError, ShapeError
from thalweg.graph import AxisGroup, Kind, Op, Operand
from thalweg.ops.core import apply, operand, primitive, promoted, require
from thalweg.ops.elementwise import less_equal, where
from thalweg.ops.samples import Sample, samples, special, special_pairs, values
from thalweg.ops.sources import iota
from thalweg.types import DType, Shape, Symbol, Type, normalize_axes, normalize_axis, type_of


def _symbols(shape: Shape) -> list[tuple[str, int]]:
    return sorted((extent.name, int(extent)) for extent in shape if isinstance(extent, Symbol))


def shape_argument(shape: Any, what: str = "shape") -> Shape:
    """`shape` (an integer or a sequence of them) as a tuple of Python integers or symbols; negative sizes are
    refused.
    """
    listed = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    found: list[int] = []
    for extent in listed:
        if isinstance(extent, bool) or not isinstance(extent, (int, np.integer)):
            raise ArgumentError(
                f"{what} must be integers, received {extent!r} of type {type(extent).__name__}"
            )
        if extent < 0:
            raise ArgumentError(f"{what} {listed} has the negative size {extent}; sizes are 0 or larger")
        found.append(extent if isinstance(extent, Symbol) else int(extent))
    return tuple(found)


# ---- reshape -----------------------------------------------------------------------------------------------


def _matched_axes(source: Shape, target: Shape) -> list[tuple[int, int]]:
    """Pairs of axes that a row-major reshape leaves as they are, like axis 0 of [B,16,5,5] to [B,400]."""
    pairs: list[tuple[int, int]] = []
    i = j = 0
    while i < len(source) and j < len(target):
        if source[i] == target[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
            continue
        if source[i] == 0 or target[j] == 0:
            break
        left, right = [i], [j]
        have, want = int(source[i]), int(target[j])
        while have != want:
            if have < want and left[-1] + 1 < len(source):
                left.append(left[-1] + 1)
                have *= source[left[-1]]
            elif have > want and right[-1] + 1 < len(target):
                right.append(right[-1] + 1)
                want *= target[right[-1]]
            else:
                return pairs
        wide_left = [axis for axis in left if source[axis] != 1]
        wide_right = [axis for axis in right if target[axis] != 1]
        if len(wide_left) == len(wide_right) == 1 and source[wide_left[0]] == target[wide_right[0]]:
            pairs.append((wide_left[0], wide_right[0]))
        i, j = left[-1] + 1, right[-1] + 1
    return pairs


@primitive("reshape", Kind.MOVEMENT)
class Reshape(Op):
    """The same elements in row-major order under another shape."""

    shape: tuple[int, ...]

    def infer(self, x: Type) -> tuple[Type, ...]:
        result = Type(x.dtype, self.shape)
        require(
            result.size == x.size and _symbols(x.shape) == _symbols(self.shape),
            f"a tensor of shape {x.shape} with {x.size} elements cannot take shape {self.shape} "
            f"with {result.size} elements",
        )
        return (result,)

    def reference(self, x: np.ndarray[Any, Any]) -> Any:
        return x.reshape(self.shape)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        return (reshape(cotangents[0], inputs[0].shape),)

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        return tuple(AxisGroup((i,), (j,)) for i, j in _matched_axes(inputs[0].shape, self.shape))


def _fill_unknown(shape: tuple[Any, ...], x: Any) -> tuple[Any, ...]:
    """`shape` with its -1 replaced by the size that keeps the number of elements."""
    known = tuple(extent for extent in shape if extent != -1)
    if len(known) < len(shape) - 1:
        raise ShapeError(f"reshape to {shape}: only one size can be -1")
    count = math.prod(known)
    if count == 0 or x.size % count:
        raise ShapeError(
            f"reshape of a tensor of shape {x.shape} with {x.size} elements to {shape}: "
            f"{x.size} is not a multiple of {count}, so there is no size for -1"
            if count
            else f"reshape of {x.shape} to {shape}: beside a size 0 any size fits for -1; write it out"
        )
    unknown: int = x.size // count
    free = [extent for extent in x.shape if isinstance(extent, Symbol) and extent not in known]
    if len(free) == 1 and int(free[0]) == unknown:
        unknown = free[0]
    return tuple(unknown if extent == -1 else extent for extent in shape)


def reshape(x: Any, shape: Any) -> Any:
    """`x` under another shape, elements in row-major order; one size may be -1 and is then computed.

    Raises `ShapeError` where the number of elements would change.
    """
    x = operand(x)
    wanted = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    if any(isinstance(extent, (int, np.integer)) and extent == -1 for extent in wanted):
        shape_argument(
            [1 if isinstance(extent, (int, np.integer)) and extent == -1 else extent for extent in wanted]
        )
        wanted = _fill_unknown(wanted, x)
    wanted = shape_argument(wanted)
    return x if wanted == x.shape else apply(Reshape(wanted), x)


def flatten(x: Any, start_axis: int = 0, end_axis: int = -1) -> Any:
    """Axes `start_axis` to `end_axis` (inclusive) joined into one; a 0-d tensor becomes a vector of one
    element.
    """
    x = operand(x)
    if x.ndim == 0:
        return reshape(x, (1,))
    start = normalize_axis(start_axis, x.ndim, "start_axis")
    end = normalize_axis(end_axis, x.ndim, "end_axis")
    if start > end:
        raise ArgumentError(f"flatten from axis {start_axis} to {end_axis}: the start lies behind the end")
    joined = x.shape[start] if start == end else math.prod(x.shape[start : end + 1])
    return reshape(x, (*x.shape[:start], joined, *x.shape[end + 1 :]))


def squeeze(x: Any, axis: Any = None) -> Any:
    """`x` without the axes in `axis`, each of size 1 (None: every axis of size 1)."""
    x = operand(x)
    if axis is None:
        return reshape(x, tuple(extent for extent in x.shape if extent != 1))
    dropped = normalize_axes(axis, x.ndim)
    for position in dropped:
        if x.shape[position] != 1:
            raise ShapeError(
                f"squeeze: axis {position} of a tensor of shape {x.shape} has size {x.shape[position]}, not 1"
            )
    return reshape(x, tuple(extent for position, extent in enumerate(x.shape) if position not in dropped))


def expand_dims(x: Any, axis: Any) -> Any:
    """`x` with new axes of size 1, so that they are at the positions `axis` of the result."""
    x = operand(x)
    count = len(axis) if isinstance(axis, (tuple, list)) else 1
    new = normalize_axes(axis, x.ndim + count)
    remaining = iter(x.shape)
    return reshape(x, tuple(1 if position in new else next(remaining) for position in range(x.ndim + count)))


# ---- transpose ---------------------------------------------------------------------------------------------


@primitive("transpose", Kind.MOVEMENT)
class Transpose(Op):
    """Axes in another order: axis i of the result is axis `permutation[i]` of the input."""

    permutation: tuple[int, ...]

    def infer(self, x: Type) -> tuple[Type, ...]:
        require(
            sorted(self.permutation) == list(range(x.ndim)),
            f"transpose of a tensor with {x.ndim} axes needs each of {tuple(range(x.ndim))} once, "
            f"received {self.permutation}",
        )
        return (Type(x.dtype, tuple(x.shape[axis] for axis in self.permutation)),)

    def reference(self, x: np.ndarray[Any, Any]) -> Any:
        return x.transpose(self.permutation)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        inverse = sorted(range(len(self.permutation)), key=self.permutation.__getitem__)
        return (transpose(cotangents[0], inverse),)

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        return tuple(AxisGroup((axis,), (position,)) for position, axis in enumerate(self.permutation))


def transpose(x: Any, axes: Sequence[int] | None = None) -> Any:
    """Axes of `x` in the order `axes` (None: reversed)."""
    x = operand(x)
    if axes is None:
        order = tuple(reversed(range(x.ndim)))
    else:
        order = tuple(normalize_axis(axis, x.ndim) for axis in axes)
    return x if order == tuple(range(x.ndim)) else apply(Transpose(order), x)


def swapaxes(x: Any, first: int, second: int) -> Any:
    """`x` with two axes exchanged."""
    x = operand(x)
    order = list(range(x.ndim))
    first, second = normalize_axis(first, x.ndim), normalize_axis(second, x.ndim)
    order[first], order[second] = second, first
    return transpose(x, order)


def moveaxis(x: Any, source: Any, destination: Any) -> Any:
    """`x` with the axes `source` moved to the positions `destination`; the others keep their order."""
    x = operand(x)
    moved = [normalize_axis(a, x.ndim) for a in (source if isinstance(source, (tuple, list)) else (source,))]
    listed = destination if isinstance(destination, (tuple, list)) else (destination,)
    places = [normalize_axis(a, x.ndim) for a in listed]
    if len(moved) != len(places) or len(set(moved)) != len(moved) or len(set(places)) != len(places):
        raise ArgumentError(
            f"moveaxis needs as many distinct sources as destinations, received {source!r}, {destination!r}"
        )
    target = dict(zip(places, moved, strict=True))
    remaining = iter(axis for axis in range(x.ndim) if axis not in moved)
    return transpose(
        x, [target[position] if position in target else next(remaining) for position in range(x.ndim)]
    )


# ---- broadcast ---------------------------------------------------------------------------------------------


@primitive("broadcast", Kind.MOVEMENT)
class Broadcast(Op):
    """The input repeated to `shape`; its axes are aligned at the right, each of the same size or 1 (NumPy's
    rule).
    """

    shape: tuple[int, ...]

    def infer(self, x: Type) -> tuple[Type, ...]:
        require(
            x.ndim <= len(self.shape)
            and all(
                a in (b, 1) for a, b in zip(x.shape, self.shape[len(self.shape) - x.ndim :], strict=True)
            ),
            f"a tensor of shape {x.shape} cannot be broadcast to {self.shape}: aligned at the right, "
            "each of its sizes must be equal or 1",
        )
        return (Type(x.dtype, self.shape),)

    def repeated(self, x: Type) -> tuple[int, ...]:
        """Axes of the result along which the input is constant."""
        offset = len(self.shape) - x.ndim
        return tuple(
            axis
            for axis, extent in enumerate(self.shape)
            if axis < offset or (x.shape[axis - offset] == 1 and extent != 1)
        )

    def reference(self, x: np.ndarray[Any, Any]) -> Any:
        return np.broadcast_to(x, self.shape)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        from thalweg.ops.reduction import sum

        x = inputs[0]
        return (reshape(sum(cotangents[0], self.repeated(x.type)), x.shape),)

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        offset = len(self.shape) - inputs[0].ndim
        repeated = self.repeated(inputs[0])
        return tuple(
            AxisGroup((None if axis in repeated else axis - offset,), (axis,))
            for axis in range(len(self.shape))
        )


def broadcast_to(x: Any, shape: Any) -> Any:
    """`x` repeated to `shape` under NumPy's rule: axes aligned at the right, sizes equal or 1."""
    x = operand(x)
    wanted = shape_argument(shape)
    return x if wanted == x.shape else apply(Broadcast(wanted), x)


# ---- flip --------------------------------------------------------------------------------------------------


@primitive("flip", Kind.MOVEMENT)
class Flip(Op):
    """Positions reversed along each of `axis`."""

    axis: tuple[int, ...]

    def infer(self, x: Type) -> tuple[Type, ...]:
        require(
            list(self.axis) == sorted(set(self.axis) & set(range(x.ndim))),
            f"flip over axes {self.axis} of a tensor with {x.ndim} axes",
        )
        return (x,)

    def reference(self, x: np.ndarray[Any, Any]) -> Any:
        return np.flip(x, self.axis)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        return (flip(cotangents[0], self.axis),)

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        return tuple(AxisGroup((axis,), (axis,)) for axis in range(inputs[0].ndim) if axis not in self.axis)


def flip(x: Any, axis: Any = None) -> Any:
    """`x` with positions reversed along `axis` (None: every axis)."""
    x = operand(x)
    reversed_axes = normalize_axes(axis, x.ndim)
    return apply(Flip(reversed_axes), x) if reversed_axes else x


# ---- slice and pad -----------------------------------------------------------------------------------------


@primitive("slice", Kind.MOVEMENT)
class Slice(Op):
    """Positions `starts[i]`, `starts[i] + steps[i]`, ... below `stops[i]` along every axis i; steps are
    positive.
    """

    starts: tuple[int, ...]
    stops: tuple[int, ...]
    steps: tuple[int, ...]

    def infer(self, x: Type) -> tuple[Type, ...]:
        require(
            len(self.starts) == len(self.stops) == len(self.steps) == x.ndim,
            f"slice of a tensor with {x.ndim} axes needs as many starts, stops and steps, received "
            f"{self.starts}, {self.stops}, {self.steps}",
        )
        shape: list[int] = []
        for axis, (start, stop, step) in enumerate(zip(self.starts, self.stops, self.steps, strict=True)):
            require(
                0 <= start <= stop <= x.shape[axis] and step > 0,
                f"slice {start}:{stop}:{step} does not lie within axis {axis} of size {x.shape[axis]}",
            )
            shape.append(x.shape[axis] if self._whole(axis, x) else -(-(stop - start) // step))
        return (Type(x.dtype, tuple(shape)),)

    def _whole(self, axis: int, x: Type) -> bool:
        return self.starts[axis] == 0 and self.stops[axis] == int(x.shape[axis]) and self.steps[axis] == 1

    def reference(self, x: np.ndarray[Any, Any]) -> Any:
        return x[tuple(map(slice, self.starts, self.stops, self.steps))]

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        g, shape = cotangents[0], inputs[0].shape
        widths: list[tuple[int, int]] = []
        for axis, (start, step) in enumerate(zip(self.starts, self.steps, strict=True)):
            g = _dilate(g, axis, step)
            widths.append((start, shape[axis] - start - g.shape[axis]))
        return (pad(g, widths),)

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        whole = (axis for axis in range(len(self.starts)) if self._whole(axis, inputs[0]))
        return tuple(AxisGroup((axis,), (axis,)) for axis in whole)


def _dilate(x: Any, axis: int, step: int) -> Any:
    """`x` with `step - 1` zeros between neighbours along `axis`."""
    count = x.shape[axis]
    if step == 1 or count <= 1:
        return x
    before, behind = x.shape[:axis], x.shape[axis + 1 :]
    paired = pad(reshape(x, (*before, count, 1, *behind)), _at(x.ndim + 1, axis + 1, (0, step - 1)))
    line = reshape(paired, (*before, count * step, *behind))
    return slice_axis(line, axis, 0, (count - 1) * step + 1)


def _at(ndim: int, axis: int, pair: tuple[int, int]) -> list[tuple[int, int]]:
    return [pair if position == axis else (0, 0) for position in range(ndim)]


def slice_axes(x: Any, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> Any:
    """The slice of `x` with these bounds (within the axes) and positive steps, one for every axis."""
    whole = all(start == 0 and step == 1 for start, step in zip(starts, steps, strict=True))
    if whole and tuple(stops) == tuple(map(int, x.shape)):
        return x
    op = Slice(tuple(map(int, starts)), tuple(map(int, stops)), tuple(map(int, steps)))
    return apply(op, x)


def slice_axis(x: Any, axis: int, start: int, stop: int, step: int = 1) -> Any:
    """Positions `start` to `stop` (exclusive) of one axis."""
    starts, stops, steps = [0] * x.ndim, list(x.shape), [1] * x.ndim
    starts[axis], stops[axis], steps[axis] = start, stop, step
    return slice_axes(x, starts, stops, steps)


@primitive("pad", Kind.MOVEMENT)
class Pad(Op):
    """`low[i]` positions before and `high[i]` behind axis i, filled with `value`."""

    low: tuple[int, ...]
    high: tuple[int, ...]
    value: float | int | bool

    def infer(self, x: Type) -> tuple[Type, ...]:
        require(
            len(self.low) == len(self.high) == x.ndim,
            f"pad of a tensor with {x.ndim} axes needs as many widths, received {self.low} and {self.high}",
        )
        require(
            all(width >= 0 for width in (*self.low, *self.high)),
            f"pad widths must not be negative, received {self.low} and {self.high}; slice to remove elements",
        )
        shape = tuple(
            before + extent + behind if before or behind else extent
            for before, extent, behind in zip(self.low, x.shape, self.high, strict=True)
        )
        return (Type(x.dtype, shape),)

    def reference(self, x: np.ndarray[Any, Any]) -> Any:
        result = np.full(self.infer(type_of(x))[0].shape, self.value, x.dtype)
        result[tuple(slice(low, low + extent) for low, extent in zip(self.low, x.shape, strict=True))] = x
        return result

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        shape = inputs[0].shape
        stops = [low + extent for low, extent in zip(self.low, shape, strict=True)]
        return (slice_axes(cotangents[0], self.low, stops, [1] * len(shape)),)

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        widths = enumerate(zip(self.low, self.high, strict=True))
        return tuple(AxisGroup((axis,), (axis,)) for axis, width in widths if width == (0, 0))


def pad(x: Any, pad_width: Any, value: float | int | bool = 0) -> Any:
    """`x` with a border of `value`: `pad_width` is one integer, one (before, after) pair, or a pair for every
    axis.
    """
    x = operand(x)
    widths = pad_width.tolist() if isinstance(pad_width, np.ndarray) else pad_width
    if isinstance(widths, (int, np.integer)):
        widths = (widths, widths)
    if len(widths) == 2 and not any(isinstance(width, (tuple, list)) for width in widths):
        widths = [tuple(widths)] * x.ndim
    if len(widths) == 1 and x.ndim > 1:
        widths = list(widths) * x.ndim
    if len(widths) != x.ndim or any(not isinstance(w, (tuple, list)) or len(w) != 2 for w in widths):
        raise ArgumentError(
            f"pad_width must be an integer, a pair or {x.ndim} (before, after) pairs for a tensor of shape "
            f"{x.shape}, received {pad_width!r}"
        )
    if not any(width for pair in widths for width in pair):
        return x
    low, high = (tuple(int(pair[side]) for pair in widths) for side in (0, 1))
    return apply(Pad(low, high, fill_value(value, x.dtype)), x)


def fill_value(value: float | int | bool, dtype: DType) -> float | int | bool:
    """`value` as the Python number kept in an attribute for tensors of `dtype`; raises where the type cannot
    hold it.
    """
    if dtype.is_floating:
        return float(value)
    if dtype.is_bool and value in (0, 1):
        return bool(value)
    if dtype.is_integer and not isinstance(value, float):
        limits = np.iinfo(dtype.numpy)
        if limits.min <= value <= limits.max:
            return int(value)
    raise DTypeError(
        f"{value!r} is not a value of a {dtype} tensor; cast the tensor first, for example to float32"
    )


# ---- joining and splitting ---------------------------------------------------------------------------------


@primitive("concat", Kind.MOVEMENT)
class Concat(Op):
    """The inputs one behind the other along an axis."""

    axis: int

    def infer(self, *inputs: Type) -> tuple[Type, ...]:
        first = inputs[0]
        require(
            0 <= self.axis < first.ndim, f"concat along axis {self.axis} of a tensor with {first.ndim} axes"
        )
        for other in inputs[1:]:
            if other.dtype is not first.dtype:
                raise DTypeError(f"concat needs equal element types, received {first} and {other}")
            require(
                other.ndim == first.ndim, f"concat needs equal numbers of axes, received {first} and {other}"
            )
            for axis in range(first.ndim):
                require(
                    axis == self.axis or other.shape[axis] == first.shape[axis],
                    f"concat along axis {self.axis}: axis {axis} has sizes {first.shape[axis]} and "
                    f"{other.shape[axis]} in {first} and {other}; only axis {self.axis} may differ",
                )
        total = sum(entry.shape[self.axis] for entry in inputs)
        return (Type(first.dtype, (*first.shape[: self.axis], total, *first.shape[self.axis + 1 :])),)

    def reference(self, *inputs: np.ndarray[Any, Any]) -> Any:
        return np.concatenate(inputs, self.axis)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        gradients: list[Any] = []
        start = 0
        for x in inputs:
            stop = start + x.shape[self.axis]
            gradients.append(slice_axis(cotangents[0], self.axis, start, stop))
            start = stop
        return gradients

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        others = (axis for axis in range(inputs[0].ndim) if axis != self.axis)
        return tuple(AxisGroup((axis,) * len(inputs), (axis,)) for axis in others)


def _sequence(tensors: Any, what: str) -> list[Any]:
    if isinstance(tensors, Operand):
        raise ArgumentError(f"{what} takes a list of tensors, received one tensor; write {what}([x, y])")
    listed = promoted(*tensors)
    if not listed:
        raise ArgumentError(f"{what} needs at least one tensor, received an empty list")
    return listed


def concat(tensors: Any, axis: int | None = 0) -> Any:
    """The tensors one behind the other along `axis` (None: all flattened first); the other sizes must be
    equal.
    """
    listed = _sequence(tensors, "concat")
    if axis is None:
        listed, axis = [flatten(x) for x in listed], 0
    position = normalize_axis(axis, listed[0].ndim)
    return listed[0] if len(listed) == 1 else apply(Concat(position), *listed)


def stack(tensors: Any, axis: int = 0) -> Any:
    """Tensors of one shape joined along a new axis at the position `axis` of the result."""
    listed = _sequence(tensors, "stack")
    for x in listed[1:]:
        require(
            x.shape == listed[0].shape, f"stack needs equal shapes, received {listed[0].shape} and {x.shape}"
        )
    position = normalize_axis(axis, listed[0].ndim + 1)
    return concat([expand_dims(x, position) for x in listed], position)


def unstack(x: Any, axis: int = 0) -> tuple[Any, ...]:
    """The slices of `x` along `axis`, without that axis."""
    x = operand(x)
    position = normalize_axis(axis, x.ndim)
    kept = (*x.shape[:position], *x.shape[position + 1 :])
    return tuple(reshape(slice_axis(x, position, i, i + 1), kept) for i in range(x.shape[position]))


def split(x: Any, sections: int | Sequence[int], axis: int = 0) -> tuple[Any, ...]:
    """`x` cut along `axis`: into `sections` equal parts, or before each of the positions in `sections` (as
    NumPy).
    """
    x = operand(x)
    position = normalize_axis(axis, x.ndim)
    extent = x.shape[position]
    if isinstance(sections, (int, np.integer)):
        if sections <= 0 or extent % sections:
            raise ShapeError(
                f"split: axis {position} of size {extent} cannot be cut into {sections} equal parts; "
                "give the positions to cut at instead"
            )
        size = int(extent // sections)
        bounds = [size * i for i in range(int(sections) + 1)]
    else:
        clamped = [slice(0, int(cut)).indices(extent)[1] for cut in sections]
        bounds = [0, *clamped, extent]
    return tuple(slice_axis(x, position, start, max(start, stop)) for start, stop in pairwise(bounds))


def roll(x: Any, shift: Any, axis: Any = None) -> Any:
    """`x` shifted cyclically by `shift` positions along `axis` (None: over all elements, row by row)."""
    x = operand(x)
    if axis is None:
        return reshape(roll(flatten(x), shift, 0), x.shape)
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    shifts = shift if isinstance(shift, (tuple, list)) else (shift,) * len(axes)
    if len(shifts) != len(axes):
        raise ArgumentError(
            f"roll needs one shift for every axis, received shifts {shift!r} and axes {axis!r}"
        )
    for amount, position in zip(shifts, (normalize_axis(a, x.ndim) for a in axes), strict=True):
        extent = x.shape[position]
        cut = -int(amount) % extent if extent else 0
        if cut:
            parts = [slice_axis(x, position, cut, extent), slice_axis(x, position, 0, cut)]
            x = concat(parts, position)
    return x


def tile(x: Any, repetitions: Any) -> Any:
    """`x` repeated as a whole: `repetitions[i]` times along axis i, both aligned at the right."""
    x = operand(x)
    counts = shape_argument(repetitions, "repetitions")
    rank = max(x.ndim, len(counts))
    counts = (1,) * (rank - len(counts)) + counts
    shape = (1,) * (rank - x.ndim) + x.shape
    spread = reshape(x, tuple(extent for size in shape for extent in (1, size)))
    wide = tuple(extent for pair in zip(counts, shape, strict=True) for extent in pair)
    return reshape(broadcast_to(spread, wide), tuple(n * size for n, size in zip(counts, shape, strict=True)))


def repeat(x: Any, repeats: int | Sequence[int], axis: int | None = None) -> Any:
    """Every element repeated `repeats` times in place along `axis` (None: of the flattened tensor).

    A sequence gives a count for every position.
    """
    x = operand(x)
    if axis is None:
        x, axis = flatten(x), 0
    position = normalize_axis(axis, x.ndim)
    before, extent, behind = x.shape[:position], x.shape[position], x.shape[position + 1 :]
    if isinstance(repeats, (int, np.integer)):
        count = shape_argument(repeats, "repeats")[0]
        spread = broadcast_to(reshape(x, (*before, extent, 1, *behind)), (*before, extent, count, *behind))
        return reshape(spread, (*before, extent * count, *behind))
    counts = shape_argument(tuple(repeats), "repeats")
    if len(counts) != extent:
        raise ShapeError(
            f"repeat: {len(counts)} counts for axis {position} of size {extent}; expected {extent}"
        )
    from thalweg.ops.indexing import gather

    return gather(x, np.repeat(np.arange(extent), counts), position)


def meshgrid(*tensors: Any, indexing: str = "xy") -> tuple[Any, ...]:
    """Coordinate grids of 0-d or 1-d tensors: axis i runs with the i-th one ("ij"), the first two swapped for
    "xy".
    """
    if indexing not in ("xy", "ij"):
        raise ArgumentError(f"indexing must be 'xy' or 'ij', received {indexing!r}")
    lines = [flatten(operand(x)) if operand(x).ndim == 0 else operand(x) for x in tensors]
    for line in lines:
        require(line.ndim == 1, f"meshgrid needs 1-d tensors, received one of shape {line.shape}")
    order = list(range(len(lines)))
    if indexing == "xy" and len(lines) > 1:
        order[0], order[1] = 1, 0
    shape = [0] * len(lines)
    for line, axis in zip(lines, order, strict=True):
        shape[axis] = line.size
    results = []
    for line, axis in zip(lines, order, strict=True):
        aligned = reshape(line, tuple(line.size if position == axis else 1 for position in range(len(lines))))
        results.append(broadcast_to(aligned, shape))
    return tuple(results)


# ---- triangles ---------------------------------------------------------------------------------------------


def _triangle(x: Any, diagonal: int, upper: bool) -> Any:
    x = operand(x)
    require(x.ndim >= 2, f"{'triu' if upper else 'tril'} needs at least two axes, received shape {x.shape}")
    row, column = iota(x.shape[-2:], 0), iota(x.shape[-2:], 1)
    edge = row + int(diagonal) if diagonal else row
    kept = less_equal(edge, column) if upper else less_equal(column, edge)
    return where(kept, x, fill_value(0, x.dtype))


def tril(x: Any, k: int = 0) -> Any:
    """The last two axes with zeros above the k-th diagonal."""
    return _triangle(x, k, upper=False)


def triu(x: Any, k: int = 0) -> Any:
    """The last two axes with zeros below the k-th diagonal."""
    return _triangle(x, k, upper=True)


# ---- samples -----------------------------------------------------------------------------------------------


@samples("reshape")
def _reshape_samples() -> Iterator[Sample]:
    for shape, target in (
        ((), (1, 1)),
        ((1,), ()),
        ((3, 5), (15,)),
        ((15,), (5, -1)),
        ((3, 16, 5, 5), (3, 400)),
        ((2, 3, 4, 5), (6, 4, 5)),
        ((3, 1, 5), (1, 3, 5, 1)),
        ((3, 0, 2), (0, 7)),
        ((0, 3), (0, 1, 3)),
    ):
        yield Sample(
            reshape, (values(*shape),), {"shape": target}, torch=lambda t, x, s=target: t.reshape(x, s)
        )
    for dtype in ("float16", "bfloat16", "float64", "bool", "int8", "uint64"):
        yield Sample(reshape, (values(3, 4, dtype=dtype),), {"shape": (4, 3)})
    yield Sample(reshape, (special(),), {"shape": (3, 4)})
    yield Sample(flatten, (values(2, 3, 5),), {"start_axis": 1}, torch=lambda t, x: t.flatten(x, 1))
    yield Sample(flatten, (values(),))
    yield Sample(squeeze, (values(3, 1, 5, 1),), torch=lambda t, x: t.squeeze(x))
    yield Sample(squeeze, (values(3, 1, 5, 1),), {"axis": -1}, torch=lambda t, x: t.squeeze(x, -1))
    yield Sample(expand_dims, (values(3, 5),), {"axis": (0, -1)})
    yield Sample(reshape, (values(3, 5),), {"shape": (4, 4)}, error=ShapeError, message="16 elements")
    yield Sample(
        reshape, (values(3, 5),), {"shape": (4, -1)}, error=ShapeError, message="not a multiple of 4"
    )
    yield Sample(reshape, (values(3, 5),), {"shape": (-1, -1)}, error=ShapeError, message="only one")
    yield Sample(reshape, (values(3, 0),), {"shape": (0, -1)}, error=ShapeError, message="write it out")
    yield Sample(reshape, (values(3, 5),), {"shape": (-3, 5)}, error=ArgumentError, message="negative size")
    yield Sample(reshape, (values(3, 5),), {"shape": (3.0, 5)}, error=ArgumentError, message="integers")
    yield Sample(squeeze, (values(3, 1),), {"axis": 0}, error=ShapeError, message="has size 3")
    yield Sample(flatten, (values(3, 1),), {"start_axis": 1, "end_axis": 0}, error=ArgumentError)


@samples("transpose")
def _transpose_samples() -> Iterator[Sample]:
    for shape, axes in (
        ((3, 5), (1, 0)),
        ((2, 3, 5), (2, 0, 1)),
        ((2, 3, 5, 7), (0, 2, 3, 1)),
        ((2, 3, 5), (-1, -2, 0)),
        ((3, 0), (1, 0)),
        ((1, 3), (1, 0)),
    ):
        yield Sample(transpose, (values(*shape),), {"axes": axes}, torch=lambda t, x, a=axes: x.permute(a))
    yield Sample(transpose, (values(2, 3, 4, 5),), torch=lambda t, x: x.permute(3, 2, 1, 0))
    yield Sample(
        moveaxis,
        (values(2, 3, 5),),
        {"source": 0, "destination": -1},
        torch=lambda t, x: t.moveaxis(x, 0, -1),
    )
    yield Sample(
        swapaxes, (values(2, 3, 5),), {"first": 0, "second": 2}, torch=lambda t, x: t.swapaxes(x, 0, 2)
    )
    yield Sample(lambda x: transpose(reshape(x, (1, 1)), (1, 0)), (values(),))
    yield Sample(transpose, (np.stack(special_pairs()),))
    for dtype in ("float16", "bfloat16", "bool", "int32"):
        yield Sample(transpose, (values(3, 4, dtype=dtype),))
    yield Sample(transpose, (values(2, 3),), {"axes": (0, 0)}, error=ShapeError, message="once")
    yield Sample(transpose, (values(2, 3),), {"axes": (0,)}, error=ShapeError)
    yield Sample(transpose, (values(2, 3),), {"axes": (0, 2)}, error=ArgumentError)
    yield Sample(moveaxis, (values(2, 3),), {"source": (0, 1), "destination": 0}, error=ArgumentError)


@samples("broadcast")
def _broadcast_samples() -> Iterator[Sample]:
    for shape, target in (
        ((), (3,)),
        ((), (2, 0)),
        ((5,), (3, 5)),
        ((3, 1), (3, 5)),
        ((1, 5), (7, 3, 5)),
        ((1,), (0,)),
        ((2, 1, 3, 1), (2, 4, 3, 5)),
        ((1, 1), (1, 3)),
    ):
        yield Sample(
            broadcast_to, (values(*shape),), {"shape": target}, torch=lambda t, x, s=target: x.broadcast_to(s)
        )
    yield Sample(broadcast_to, (special(),), {"shape": (2, 12)})
    for dtype in ("float16", "bfloat16", "float64", "bool", "uint8"):
        yield Sample(broadcast_to, (values(3, 1, dtype=dtype),), {"shape": (3, 4)})
    yield Sample(tile, (values(2, 3),), {"repetitions": (2, 1, 3)}, torch=lambda t, x: t.tile(x, (2, 1, 3)))
    yield Sample(tile, (values(2, 3),), {"repetitions": 2}, torch=lambda t, x: t.tile(x, (2,)))
    yield Sample(
        repeat, (values(2, 3),), {"repeats": 2, "axis": 1}, torch=lambda t, x: x.repeat_interleave(2, 1)
    )
    yield Sample(repeat, (values(2, 3),), {"repeats": 3}, torch=lambda t, x: x.repeat_interleave(3))
    yield Sample(
        lambda x, y: meshgrid(x, y),
        (values(3), values(5)),
        torch=lambda t, x, y: t.meshgrid(x, y, indexing="xy"),
    )
    yield Sample(broadcast_to, (values(3),), {"shape": (3, 4)}, error=ShapeError, message="equal or 1")
    yield Sample(
        broadcast_to, (values(2, 3),), {"shape": (3,)}, error=ShapeError, message="aligned at the right"
    )
    yield Sample(broadcast_to, (values(2, 3),), {"shape": (-1, 3)}, error=ArgumentError, message="negative")


@samples("flip")
def _flip_samples() -> Iterator[Sample]:
    for shape, axis in (
        ((3,), 0),
        ((3, 5), (0, 1)),
        ((2, 3, 5), -2),
        ((0, 3), 1),
        ((1, 4), 0),
        ((2, 3, 4), (0, 2)),
    ):
        listed = axis if isinstance(axis, tuple) else (axis,)
        yield Sample(flip, (values(*shape),), {"axis": axis}, torch=lambda t, x, a=listed: t.flip(x, a))
    yield Sample(flip, (values(2, 3, 4),))
    yield Sample(flip, (special(),))
    yield Sample(lambda x: flip(reshape(x, (1,))), (values(),))
    for dtype in ("float16", "bfloat16", "bool", "int64"):
        yield Sample(flip, (values(3, 4, dtype=dtype),), {"axis": 0})
    yield Sample(flip, (values(3, 4),), {"axis": 2}, error=ArgumentError)
    yield Sample(flip, (values(3, 4),), {"axis": (0, 0)}, error=ArgumentError, message="twice")


@samples("slice")
def _slice_samples() -> Iterator[Sample]:
    for shape, key in (
        ((7,), slice(1, 6, 2)),
        ((7,), slice(None, None, 3)),
        ((3, 5), (slice(None), slice(1, 4))),
        ((3, 5), (1, slice(None))),
        ((3, 5), (-1, -2)),
        ((3, 5), (slice(2, 2), slice(0, 3))),
        ((4, 5, 6), (slice(None, None, -1), Ellipsis, slice(5, 0, -2))),
        ((3, 0), (slice(0, 1),)),
        ((3, 5), (slice(10, 20),)),
        ((1, 9), (0, None, slice(None, None, 4))),
    ):
        negative = any(
            isinstance(k, slice) and (k.step or 1) < 0 for k in (key if isinstance(key, tuple) else (key,))
        )
        torch = None if negative else lambda t, x, k=key: x[k]
        yield Sample(lambda x, k=key: x[k], (values(*shape),), torch=torch)
    yield Sample(lambda x: x[3:9], (special(),))
    yield Sample(lambda x: reshape(x, (1,))[0:0], (values(),))
    for dtype in ("float16", "bfloat16", "bool", "int16"):
        yield Sample(lambda x: x[1:, ::2], (values(3, 4, dtype=dtype),))
    yield Sample(lambda x: split(x, 3, 1), (values(2, 6),), torch=lambda t, x: t.tensor_split(x, 3, 1))
    yield Sample(lambda x: split(x, [1, 4]), (values(6, 2),), torch=lambda t, x: t.tensor_split(x, [1, 4]))
    yield Sample(lambda x: unstack(x, 1), (values(2, 3),), torch=lambda t, x: t.unbind(x, 1))
    yield Sample(lambda x: x[3], (values(3),), error=IndexError, message="expected -3 to 2")
    yield Sample(lambda x: x[0, 0], (values(3),), error=ShapeError, message="too many indices")
    yield Sample(lambda x: x[..., 0, ...], (values(3),), error=ArgumentError, message="only one")
    yield Sample(lambda x: x[::0], (values(3),), error=ArgumentError)
    yield Sample(lambda x: x[1.5], (values(3),), error=ArgumentError, message="integers")
    yield Sample(lambda x: x["a"], (values(3),), error=ArgumentError)
    yield Sample(lambda x: split(x, 4), (values(6),), error=ShapeError, message="equal parts")
    yield Sample(
        lambda x: apply(Slice((0,), (4,), (1,)), x), (values(3),), error=ShapeError, message="does not lie"
    )


@samples("pad")
def _pad_samples() -> Iterator[Sample]:
    for shape, widths, value in (
        ((3,), [(1, 2)], 0.0),
        ((3, 5), [(0, 0), (2, 1)], 1.5),
        ((2, 3, 4), 1, -1.0),
        ((3, 0), [(0, 1), (2, 0)], 7.0),
        ((1, 1), (1, 0), math.inf),
        ((3, 2), [(1, 1), (0, 0)], math.nan),
        ((2, 2), [(0, 3), (3, 0)], -0.0),
    ):
        smooth = False if value in (math.inf,) or value != value else None
        yield Sample(pad, (values(*shape),), {"pad_width": widths, "value": value}, gradient=smooth)
    yield Sample(
        pad,
        (values(3, 5),),
        {"pad_width": [(1, 2), (3, 4)]},
        torch=lambda t, x: t.nn.functional.pad(x, (3, 4, 1, 2)),
    )
    yield Sample(lambda x: pad(reshape(x, (1,)), 1), (values(),))
    yield Sample(pad, (special(),), {"pad_width": 2})
    for dtype, value in (
        ("float16", 1),
        ("bfloat16", 0.5),
        ("float64", 0.1),
        ("bool", True),
        ("int8", -128),
        ("uint64", 2**63),
    ):
        yield Sample(pad, (values(3, 4, dtype=dtype),), {"pad_width": 1, "value": value})
    yield Sample(pad, (values(3),), {"pad_width": [(-1, 0)]}, error=ShapeError, message="slice to remove")
    yield Sample(pad, (values(3),), {"pad_width": [(1, 0), (0, 1)]}, error=ArgumentError, message="pad_width")
    yield Sample(
        pad, (values(3, dtype="int8"),), {"pad_width": 1, "value": 0.5}, error=DTypeError, message="0.5"
    )
    yield Sample(
        pad, (values(3, dtype="int8"),), {"pad_width": 1, "value": 128}, error=DTypeError, message="128"
    )


@samples("concat")
def _concat_samples() -> Iterator[Sample]:
    def joined(axis: int | None) -> Callable[..., Any]:
        return lambda *tensors: concat(tensors, axis)

    for shapes, axis in (
        (((3,), (2,)), 0),
        (((3, 5), (1, 5), (2, 5)), 0),
        (((3, 5), (3, 1)), -1),
        (((2, 0), (2, 3)), 1),
        (((0, 3), (0, 3)), 0),
        (((2, 3, 4), (2, 2, 4)), 1),
    ):
        inputs = tuple(values(*shape, seed=i) for i, shape in enumerate(shapes))
        yield Sample(joined(axis), inputs, torch=lambda t, *x, a=axis: t.cat(x, a))
    yield Sample(joined(None), (values(2, 2), values()))
    yield Sample(
        lambda x, y: stack([x, y], 1),
        (values(3, 5), values(3, 5, seed=1)),
        torch=lambda t, x, y: t.stack([x, y], 1),
    )
    yield Sample(
        lambda x, y: stack([x, y]), (values(), values(seed=1)), torch=lambda t, x, y: t.stack([x, y])
    )
    yield Sample(lambda x: stack([x, x, x], -1), (values(4),))
    yield Sample(
        lambda x: roll(x, (1, -2), (0, 1)), (values(3, 5),), torch=lambda t, x: t.roll(x, (1, -2), (0, 1))
    )
    yield Sample(lambda x: roll(x, 4), (values(3, 5),), torch=lambda t, x: t.roll(x, 4))
    yield Sample(joined(0), (special(), special()))
    yield Sample(joined(0), (values(3, dtype="int8"), values(2, dtype="float64")))
    for dtype in ("float16", "bfloat16", "bool", "uint32"):
        yield Sample(joined(1), (values(3, 4, dtype=dtype), values(3, 1, dtype=dtype)))
    yield Sample(joined(0), (values(3, 5), values(3, 4)), error=ShapeError, message="only axis 0 may differ")
    yield Sample(joined(0), (values(3, 5), values(3)), error=ShapeError, message="numbers of axes")
    yield Sample(joined(2), (values(3, 5), values(3, 5)), error=ArgumentError)
    yield Sample(lambda x: concat(x), (values(3),), error=ArgumentError, message="list of tensors")
    yield Sample(lambda x: concat([]), (values(3),), error=ArgumentError, message="at least one")
    yield Sample(lambda x, y: stack([x, y]), (values(3), values(4)), error=ShapeError, message="equal shapes")
