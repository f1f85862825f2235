"""Movement primitives: they place elements anew and compute nothing. Functions with the names of the array-API standard.

A shape, an axis or a permutation is a fixed attribute; what depends on indices held in a tensor is in `indexing` and
`accumulation`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg.errors import ArgumentError, ShapeError
from thalweg.graph import AxisGroup, Kind, Op
from thalweg.ops.core import apply, operand, primitive, require
from thalweg.types import Shape, Symbol, Type, normalize_axes, normalize_axis


def _symbols(shape: Shape) -> list[tuple[str, int]]:
    return sorted((extent.name, int(extent)) for extent in shape if isinstance(extent, Symbol))


def shape_argument(shape: Any, what: str = "shape") -> Shape:
    """`shape` (an integer or a sequence of them) as a tuple of Python integers or symbols; negative sizes are refused."""
    listed = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    found: list[int] = []
    for extent in listed:
        if isinstance(extent, bool) or not isinstance(extent, (int, np.integer)):
            raise ArgumentError(f"{what} must be integers, received {extent!r} of type {type(extent).__name__}")
        if extent < 0:
            raise ArgumentError(f"{what} {listed} has the negative size {extent}; sizes are 0 or larger")
        found.append(extent if isinstance(extent, Symbol) else int(extent))
    return tuple(found)


# ---- reshape --------------------------------------------------------------------------------------------------------


def _matched_axes(source: Shape, target: Shape) -> list[tuple[int, int]]:
    """Pairs of axes that a row-major reshape leaves as they are, for example axis 0 of [B,16,5,5] to [B,400]."""
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
            else f"reshape of {x.shape} to {shape}: beside a size 0 the size for -1 is not determined; write it out"
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
        shape_argument([1 if isinstance(extent, (int, np.integer)) and extent == -1 else extent for extent in wanted])
        wanted = _fill_unknown(wanted, x)
    wanted = shape_argument(wanted)
    return x if wanted == x.shape else apply(Reshape(wanted), x)


def flatten(x: Any, start_axis: int = 0, end_axis: int = -1) -> Any:
    """Axes `start_axis` to `end_axis` (inclusive) joined into one; a 0-d tensor becomes a vector of one element."""
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
                f"squeeze: axis {position} of a tensor of shape {x.shape} has size {x.shape[position]}, expected 1"
            )
    return reshape(x, tuple(extent for position, extent in enumerate(x.shape) if position not in dropped))


def expand_dims(x: Any, axis: Any) -> Any:
    """`x` with new axes of size 1, so that they are at the positions `axis` of the result."""
    x = operand(x)
    count = len(axis) if isinstance(axis, (tuple, list)) else 1
    new = normalize_axes(axis, x.ndim + count)
    remaining = iter(x.shape)
    return reshape(x, tuple(1 if position in new else next(remaining) for position in range(x.ndim + count)))


# ---- transpose ------------------------------------------------------------------------------------------------------


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
            f"moveaxis needs as many distinct sources as destinations, received {source!r} and {destination!r}"
        )
    target = dict(zip(places, moved, strict=True))
    remaining = iter(axis for axis in range(x.ndim) if axis not in moved)
    return transpose(x, [target[position] if position in target else next(remaining) for position in range(x.ndim)])


# ---- broadcast ------------------------------------------------------------------------------------------------------


@primitive("broadcast", Kind.MOVEMENT)
class Broadcast(Op):
    """The input repeated to `shape`; its axes are aligned at the right, each of the same size or 1 (NumPy's rule)."""

    shape: tuple[int, ...]

    def infer(self, x: Type) -> tuple[Type, ...]:
        require(
            x.ndim <= len(self.shape)
            and all(a in (b, 1) for a, b in zip(x.shape, self.shape[len(self.shape) - x.ndim :], strict=True)),
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
            AxisGroup((None if axis in repeated else axis - offset,), (axis,)) for axis in range(len(self.shape))
        )


def broadcast_to(x: Any, shape: Any) -> Any:
    """`x` repeated to `shape` under NumPy's rule: axes aligned at the right, sizes equal or 1."""
    x = operand(x)
    wanted = shape_argument(shape)
    return x if wanted == x.shape else apply(Broadcast(wanted), x)


# ---- flip -----------------------------------------------------------------------------------------------------------


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
