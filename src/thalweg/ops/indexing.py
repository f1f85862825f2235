"""Indexing: `x[key]` with NumPy's meaning, and the primitives that read at positions held in tensors.

Static keys become slice, flip and reshape nodes; integer tensors and arrays become `gather`. Positions along
an axis may be negative (counted from the end); one that lies outside raises `IndexRangeError`, at trace time
where it is known then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError, IndexRangeError, ShapeError, TraceError
from thalweg.graph import AxisGroup, Kind, Op, Operand
from thalweg.ops.core import apply, broadcast_shapes, cast, operand, primitive, require
from thalweg.ops.movement import (
    broadcast_to,
    flatten,
    flip,
    moveaxis,
    reshape,
    shape_argument,
    slice_axes,
    transpose,
)
from thalweg.ops.samples import Sample, samples, special, values
from thalweg.ops.sources import iota
from thalweg.types import Shape, Type, normalize_axis

Array = np.ndarray[Any, Any]


def checked_positions(indices: Array, extent: int, what: str, wrap: bool = True) -> Array:
    """`indices` counted from the front; raises `IndexRangeError` naming the first one outside the axis.

    Without `wrap` negative ones are outside (labels, tokens).
    """
    if indices.size:
        lowest = -extent if wrap else 0
        outside = (indices >= extent) | (indices < lowest) if indices.dtype.kind == "i" else indices >= extent
        if outside.any():
            place = np.unravel_index(int(np.argmax(outside)), indices.shape)
            where = f" (at position {tuple(map(int, place))} of the indices)" if place else ""
            accepted = f"expected {lowest} to {extent - 1}" if extent else "the axis is empty"
            raise IndexRangeError(
                f"{what}: index {int(indices[place])}{where} is out of range for an axis of size {extent}; "
                f"{accepted}"
            )
    signed = indices.astype(np.int64)
    return np.where(signed < 0, signed + extent, signed)


# ---- gather ------------------------------------------------------------------------------------------------


def gather_shape(op: Any, x: Type, indices: Type) -> Shape:
    """The shape of `x` read at `indices`: shared by `gather` and `scatter`, whose updates have it."""
    if not indices.dtype.is_integer:
        raise DTypeError(
            f"{op.name} needs integer indices, received {indices.dtype}; cast them, for example to int64"
        )
    require(0 <= op.axis < x.ndim, f"{op.name} along axis {op.axis} of a tensor with {x.ndim} axes")
    require(
        0 <= op.batch <= min(op.axis, indices.ndim) and indices.shape[: op.batch] == x.shape[: op.batch],
        f"{op.name} with {op.batch} batch axes needs indices that begin with the sizes "
        f"{x.shape[: op.batch]}, received {indices}",
    )
    return (*x.shape[: op.axis], *indices.shape[op.batch :], *x.shape[op.axis + 1 :])


def gather_groups(op: Any, x: Type, indices: Type) -> list[tuple[int | None, int | None, int]]:
    """(axis of x, axis of indices, axis of the result) of every axis but the one that is indexed."""
    count = indices.ndim - op.batch
    groups: list[tuple[int | None, int | None, int]] = []
    for axis in range(x.ndim):
        if axis != op.axis:
            position = axis if axis < op.axis else axis + count - 1
            groups.append((axis, axis if axis < op.batch else None, position))
    groups += [(None, op.batch + i, op.axis + i) for i in range(count)]
    return groups


def batched_positions(
    op: Any, x: Array, indices: Array, wrap: bool = True
) -> tuple[tuple[int, int, int, int], Array, Array]:
    """`x` as [batch, outer, axis, inner] (its sizes), and index arrays [batch, 1] and [batch, count] for axes
    0 and 2.
    """
    sizes = (
        math.prod(x.shape[: op.batch]),
        math.prod(x.shape[op.batch : op.axis]),
        x.shape[op.axis],
        math.prod(x.shape[op.axis + 1 :]),
    )
    flat = indices.reshape(sizes[0], math.prod(indices.shape[op.batch :]))
    if sizes[0] and sizes[1] and sizes[3]:
        flat = checked_positions(flat, sizes[2], op.name, wrap)
    return sizes, np.arange(sizes[0])[:, None], flat


@primitive("gather", Kind.MOVEMENT)
class Gather(Op):
    """`result[b.., o.., i.., n..] = x[b.., o.., indices[b.., i..], n..]` with the indexed axis at `axis`.

    The first `batch` axes (b) are shared by x and indices. The result's shape is `x.shape[:axis] +
    indices.shape[batch:] + x.shape[axis + 1:]`. With `wrap` negative indices count from the end, without it
    they are out of range.
    """

    checked = True
    axis: int
    batch: int
    wrap: bool = True

    def infer(self, x: Type, indices: Type) -> tuple[Type, ...]:
        return (Type(x.dtype, gather_shape(self, x, indices)),)

    def reference(self, x: Array, indices: Array) -> Any:
        shape = gather_shape(self, types.type_of(x), types.type_of(indices))
        if not math.prod(shape):
            return np.zeros(shape, x.dtype)
        if self.batch == 0:
            return np.take(x, checked_positions(indices, x.shape[self.axis], self.name, self.wrap), self.axis)
        sizes, row, flat = batched_positions(self, x, indices, self.wrap)
        return x.reshape(sizes)[row, :, flat].swapaxes(1, 2).reshape(shape)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        from thalweg.ops.accumulation import scatter

        x, indices = inputs
        zeros = broadcast_to(operand(0.0, x.dtype), x.shape)
        return (scatter(zeros, indices, cotangents[0], self.axis, "add", batch=self.batch), None)

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        return tuple(AxisGroup((a, b), (c,)) for a, b, c in gather_groups(self, *inputs))


def integer_operand(indices: Any, what: str) -> Any:
    """`indices` as an operand of an integer type; lists and arrays become constants, empty ones included."""
    if not isinstance(indices, Operand):
        array = np.asarray(indices)
        indices = operand(array.astype(np.int64) if array.size == 0 else array)
    if not indices.dtype.is_integer:
        raise DTypeError(
            f"{what} needs integer indices, received {indices.dtype}; cast them, for example with "
            "x.astype('int64')"
        )
    return indices


def gather(x: Any, indices: Any, axis: int = 0, *, batch: int = 0) -> Any:
    """`x` read at `indices` along `axis`; the first `batch` axes of both run together.

    Result: `x.shape[:axis] + indices.shape[batch:] + x.shape[axis + 1:]`. Negative indices count from the
    end.
    """
    x = operand(x)
    indices = integer_operand(indices, "gather")
    return apply(Gather(normalize_axis(axis, x.ndim), batch), x, indices)


def take(x: Any, indices: Any, axis: int | None = None) -> Any:
    """The elements of `x` at `indices` along `axis` (None: of the flattened tensor), as `numpy.take`."""
    x = operand(x)
    return gather(flatten(x), indices, 0) if axis is None else gather(x, indices, axis)


def along_axis(x: Any, indices: Any, axis: int, what: str) -> tuple[Any, Any, int]:
    """`x` and `indices` with the axis last and the other axes broadcast to each other, and that axis."""
    indices = integer_operand(indices, what)
    position = normalize_axis(axis, x.ndim)
    if indices.ndim != x.ndim:
        raise ShapeError(
            f"{what} needs indices with as many axes as the tensor, received shapes {indices.shape} "
            f"and {x.shape}"
        )
    others = broadcast_shapes(
        (*x.shape[:position], *x.shape[position + 1 :]),
        (*indices.shape[:position], *indices.shape[position + 1 :]),
    )
    x, indices = moveaxis(x, position, -1), moveaxis(indices, position, -1)
    return (
        broadcast_to(x, (*others, x.shape[-1])),
        broadcast_to(indices, (*others, indices.shape[-1])),
        position,
    )


def take_along_axis(x: Any, indices: Any, axis: int = -1) -> Any:
    """`result[.., i, ..] = x[.., indices[.., i, ..], ..]`: one index per element along `axis`, others
    broadcast.
    """
    x, indices, position = along_axis(operand(x), indices, axis, "take_along_axis")
    return moveaxis(gather(x, indices, x.ndim - 1, batch=x.ndim - 1), -1, position)


# ---- x[key] ------------------------------------------------------------------------------------------------


class _Entry:
    """One item of a key after expansion: a new axis, or what is read along one axis of the tensor."""

    def __init__(
        self, axis: int | None, bounds: range | None = None, indices: Any = None, drop: bool = False
    ) -> None:
        self.axis = axis  # None: a new axis of size 1
        self.bounds = bounds  # a slice
        self.indices = indices  # an integer array or operand
        self.drop = drop  # a single position: the axis disappears


def index(x: Any, key: Any) -> Any:
    """`x[key]` with NumPy's meaning.

    Accepts integers, slices (steps of both signs), `...`, None, and arrays or tensors of integers (several
    are broadcast together and their axes take the place of the indexed ones, or come first where a slice
    stands between them). Arrays of bool select by a mask that is known while tracing; a traced mask has no
    shape known in advance and raises `TraceError`.
    """
    x = operand(x)
    entries = _entries(x, key if isinstance(key, tuple) else (key,))
    bounds = [range(extent) for extent in x.shape]
    for entry in entries:
        if entry.axis is not None and entry.bounds is not None:
            bounds[entry.axis] = entry.bounds
    result = _slice_ranges(x, bounds)
    if any(entry.indices is not None for entry in entries):
        return _advanced(result, entries)
    return reshape(result, _shape_of(result.shape, entries))


def _shape_of(shape: Shape, entries: Sequence[_Entry]) -> Shape:
    return tuple(1 if entry.axis is None else shape[entry.axis] for entry in entries if not entry.drop)


def _slice_ranges(x: Any, bounds: Sequence[range]) -> Any:
    """`x` at the positions of one range per axis; descending ranges are read ascending and flipped."""
    starts, stops, steps, reversed_axes = [], [], [], []
    for axis, positions in enumerate(bounds):
        if positions.step < 0:
            reversed_axes.append(axis)
            positions = positions[::-1]
        starts.append(positions[0] if len(positions) else 0)
        stops.append(positions[-1] + 1 if len(positions) else 0)
        steps.append(positions.step if len(positions) > 1 else 1)
    result = slice_axes(x, starts, stops, steps)
    return flip(result, reversed_axes) if reversed_axes else result


def _entries(x: Any, key: tuple[Any, ...]) -> list[_Entry]:
    """The key with `...` written out: every axis of `x` has exactly one entry."""
    items = [_item(x, item) for item in key]
    consumed = sum(
        item.ndim if _is_mask(item) else item is not None and item is not Ellipsis for item in items
    )
    if sum(item is Ellipsis for item in items) > 1:
        raise ArgumentError("an index can contain only one `...`")
    if consumed > x.ndim:
        raise ShapeError(
            f"too many indices for a tensor of shape {x.shape}: it has {x.ndim} axes, {consumed} are indexed"
        )
    if not any(item is Ellipsis for item in items):
        items.append(Ellipsis)
    entries: list[_Entry] = []
    axis = 0
    for item in items:
        if item is None:
            entries.append(_Entry(None))
        elif item is Ellipsis:
            for _ in range(x.ndim - consumed):
                entries.append(_Entry(axis, range(x.shape[axis])))
                axis += 1
        elif _is_mask(item):
            entries += _mask_entries(x, axis, item)
            axis += item.ndim
        else:
            entries.append(_axis_entry(x, axis, item))
            axis += 1
    return entries


def _is_mask(item: Any) -> bool:
    return isinstance(item, np.ndarray) and item.dtype == np.bool_


def _item(x: Any, item: Any) -> Any:
    """One item of a key in canonical form: None, `...`, an int, a slice, an integer or bool array, or an
    operand.
    """
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    if isinstance(item, (int, np.integer)) and not isinstance(item, bool):
        return int(item)
    if isinstance(item, Operand):
        if item.dtype.is_bool:  # type: ignore[attr-defined]
            raise TraceError(
                f"x[mask] with a mask that is computed in the graph has no shape known in advance "
                f"(x has shape {x.shape}); keep the shape and write thalweg.where(mask, x, 0), or take the "
                "elements outside the traced function"
            )
        return integer_operand(item, "an index")
    array = np.asarray(item)
    if array.size == 0 and isinstance(item, (list, tuple)):
        array = array.astype(np.int64)
    if array.dtype.kind not in "biu" or (array.dtype == np.bool_ and array.ndim == 0):
        raise ArgumentError(
            f"an index must be made of integers, slices, ..., None and arrays of integers or bool, "
            f"received {item!r}"
        )
    return array if array.ndim else int(array)


def _mask_entries(x: Any, axis: int, mask: Array) -> list[_Entry]:
    expected = x.shape[axis : axis + mask.ndim]
    if mask.shape != expected:
        raise ShapeError(
            f"a mask of shape {mask.shape} selects from axes of sizes {expected}; they must be equal"
        )
    return [_Entry(axis + i, indices=line) for i, line in enumerate(np.nonzero(mask))]


def _axis_entry(x: Any, axis: int, item: Any) -> _Entry:
    extent = x.shape[axis]
    what = f"axis {axis} of a tensor of shape {x.shape}"
    if isinstance(item, int):
        if not -extent <= item < extent:
            raise IndexRangeError(
                f"index {item} is out of range for {what}; "
                + (f"expected {-extent} to {extent - 1}" if extent else "the axis is empty")
            )
        position = item % extent
        return _Entry(axis, range(position, position + 1), drop=True)
    if isinstance(item, slice):
        for bound in (item.start, item.stop, item.step):
            if isinstance(bound, Operand) and not hasattr(bound, "__index__"):
                raise TraceError(
                    "a slice whose bounds are computed in the graph has no shape known in advance; "
                    "write thalweg.dynamic_slice(x, starts, sizes) with fixed sizes"
                )
        try:
            return _Entry(axis, range(*item.indices(extent)))
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"slice {item} of {what}: {error}") from None
    if isinstance(item, np.ndarray):
        item = checked_positions(item, extent, what)
    return _Entry(axis, indices=item)


def _advanced(x: Any, entries: list[_Entry]) -> Any:
    """Read integer arrays along their axes; `x` is sliced already, integers are axes of size 1."""
    place = [i for i, entry in enumerate(entries) if entry.indices is not None or entry.drop]
    separated = place[-1] - place[0] + 1 != len(place)
    arrays = [entry for entry in entries if entry.indices is not None]
    first = 0 if separated else place[0]
    before = [e.axis for e in entries[:first] if e.axis is not None]
    behind = [e.axis for e in entries[first:] if e.axis is not None and e.indices is None and not e.drop]
    dropped = [e.axis for e in entries if e.drop]
    indexed = [e.axis for e in arrays]
    x = transpose(x, [*before, *indexed, *behind, *dropped])  # type: ignore[list-item]
    kept = x.shape[: len(before)], x.shape[len(before) + len(indexed) : x.ndim - len(dropped)]
    extents = x.shape[len(before) : len(before) + len(indexed)]
    x = reshape(x, (*kept[0], extents[0] if len(extents) == 1 else math.prod(extents), *kept[1]))
    positions = _linear([entry.indices for entry in arrays], extents)
    read = gather(x, positions, len(before))
    front = [1 if entry.axis is None else x.shape[before.index(entry.axis)] for entry in entries[:first]]
    remaining = iter(kept[1])
    back = [
        1 if e.axis is None else next(remaining) for e in entries[first:] if e.indices is None and not e.drop
    ]
    return reshape(read, (*front, *positions.shape, *back))


def _linear(indices: Sequence[Any], extents: Shape) -> Any:
    """Row-major positions in the joined axes, for index arrays broadcast together."""
    if len(indices) == 1:
        return indices[0]
    shape = broadcast_shapes(*(array.shape for array in indices))
    total: Any = None
    for array, extent in zip(indices, extents, strict=True):
        if isinstance(array, Operand):
            # reading the identity counts negative positions from the front and refuses those outside this
            # axis
            array = gather(iota((extent,), 0), cast(array, types.int64), 0)
            array = broadcast_to(array, shape)
        else:
            array = np.broadcast_to(array, shape)
        total = array if total is None else array + total * int(extent)
    return total


# ---- dynamic slices ----------------------------------------------------------------------------------------


def _start_types(op: Any, x: Type, starts: Sequence[Type]) -> None:
    require(len(starts) == x.ndim, f"{op.name} needs {x.ndim} starts for {x}, received {len(starts)}")
    for start in starts:
        require(start.ndim == 0, f"{op.name} needs 0-d starts, one for each axis, received {start}")
        if not start.dtype.is_integer:
            raise DTypeError(
                f"{op.name} needs integer starts, received {start}; cast them, for example to int64"
            )


def _window(starts: Sequence[Array], sizes: Shape, shape: Shape) -> tuple[slice, ...]:
    clamped = [
        max(0, min(int(start), extent - size))
        for start, size, extent in zip(starts, sizes, shape, strict=True)
    ]
    return tuple(slice(start, start + size) for start, size in zip(clamped, sizes, strict=True))


@primitive("dynamic_slice", Kind.MOVEMENT)
class DynamicSlice(Op):
    """The window of `sizes` that begins at the given 0-d starts, one per axis; starts are clamped so that it
    fits.
    """

    sizes: tuple[int, ...]

    def infer(self, x: Type, *starts: Type) -> tuple[Type, ...]:
        _start_types(self, x, starts)
        require(
            len(self.sizes) == x.ndim
            and all(0 <= n <= extent for n, extent in zip(self.sizes, x.shape, strict=True)),
            f"dynamic_slice of sizes {self.sizes} does not fit into a tensor of shape {x.shape}",
        )
        return (Type(x.dtype, self.sizes),)

    def reference(self, x: Array, *starts: Array) -> Any:
        return x[_window(starts, self.sizes, x.shape)]

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        zeros = broadcast_to(operand(0.0, inputs[0].dtype), inputs[0].shape)
        return (apply(DynamicUpdateSlice(), zeros, cotangents[0], *inputs[1:]), *[None] * len(inputs[1:]))

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        whole = (axis for axis, size in enumerate(self.sizes) if size == inputs[0].shape[axis])
        return tuple(AxisGroup((axis, *[None] * (len(inputs) - 1)), (axis,)) for axis in whole)


@primitive("dynamic_update_slice", Kind.MOVEMENT)
class DynamicUpdateSlice(Op):
    """The first input with the window at the given 0-d starts (clamped so that it fits) replaced by the
    second.
    """

    def infer(self, x: Type, update: Type, *starts: Type) -> tuple[Type, ...]:
        _start_types(self, x, starts)
        if update.dtype is not x.dtype:
            raise DTypeError(f"dynamic_update_slice needs equal element types, received {x} and {update}")
        require(
            update.ndim == x.ndim
            and all(n <= extent for n, extent in zip(update.shape, x.shape, strict=True)),
            f"dynamic_update_slice: an update of shape {update.shape} does not fit into a tensor of "
            f"shape {x.shape}",
        )
        return (x,)

    def reference(self, x: Array, update: Array, *starts: Array) -> Any:
        result = np.array(x)
        result[_window(starts, update.shape, x.shape)] = update
        return result

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        g, (_, update, *starts) = cotangents[0], inputs
        zeros = broadcast_to(operand(0.0, g.dtype), update.shape)
        return (
            apply(DynamicUpdateSlice(), g, zeros, *starts),
            apply(DynamicSlice(update.shape), g, *starts),
            *[None] * len(starts),
        )

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        x, update, *starts = inputs
        whole = (axis for axis in range(x.ndim) if update.shape[axis] == x.shape[axis])
        return tuple(AxisGroup((axis, axis, *[None] * len(starts)), (axis,)) for axis in whole)


def _starts(starts: Any, ndim: int, what: str) -> list[Any]:
    listed = list(starts) if isinstance(starts, (tuple, list)) else [starts]
    if len(listed) != ndim:
        raise ArgumentError(f"{what} needs one start for each of {ndim} axes, received {len(listed)}")
    return [integer_operand(start, what) for start in listed]


def dynamic_slice(x: Any, starts: Any, sizes: Any) -> Any:
    """The window of the fixed shape `sizes` that begins at `starts`, integers or 0-d tensors, one per axis.

    A window that would not fit is moved until it does (starts are clamped to 0 .. size of axis - size of
    window).
    """
    x = operand(x)
    op = DynamicSlice(shape_argument(sizes, "sizes"))
    return apply(op, x, *_starts(starts, x.ndim, "dynamic_slice"))


def dynamic_update_slice(x: Any, update: Any, starts: Any) -> Any:
    """`x` with the window that begins at `starts` replaced by `update`; starts are clamped as in
    `dynamic_slice`.
    """
    x = operand(x)
    return apply(
        DynamicUpdateSlice(), x, cast(update, x.dtype), *_starts(starts, x.ndim, "dynamic_update_slice")
    )


# ---- samples -----------------------------------------------------------------------------------------------


def _positions(*shape: int, extent: int, dtype: str = "int64", seed: int = 0) -> Array:
    low = 0 if types.dtype(dtype).kind == "u" else -extent
    return values(*shape, dtype=dtype, low=low, high=extent, seed=seed)


@samples("gather")
def _gather_samples() -> Iterator[Sample]:
    for shape, indices, axis, batch in (
        ((5,), (3,), 0, 0),
        ((5, 3), (), 0, 0),
        ((3, 5), (2, 4), 1, 0),
        ((2, 5, 3), (4,), -2, 0),
        ((2, 0, 3), (0,), 1, 0),
        ((4, 3), (0,), 0, 0),
        ((3, 5, 2), (3, 4), 1, 1),
        ((3, 2, 5), (3, 4), 2, 1),
        ((2, 3, 5), (2, 3, 1), 2, 2),
        ((0, 5), (0, 2), 1, 1),
    ):
        places = _positions(*indices, extent=shape[axis])
        options = {"axis": axis, "batch": batch}
        yield Sample(gather, (values(*shape), places), options)
    unsigned = values(4, dtype="uint8", low=0, high=5)
    yield Sample(gather, (values(5, 3), unsigned), torch=lambda t, x, i: x[i.long()])
    yield Sample(
        take, (values(5, 3), _positions(4, extent=15, dtype="int32")), torch=lambda t, x, i: x.flatten()[i]
    )
    yield Sample(take, (special(), np.array([0, 4, 3, -1])), {"axis": 0}, torch=lambda t, x, i: x[i])
    for dtype in ("float16", "bfloat16", "float64", "bool", "int16"):
        yield Sample(gather, (values(5, 3, dtype=dtype), _positions(4, extent=5, dtype="int16")))
    positive = values(3, 4, dtype="int64", low=0, high=5)
    yield Sample(take_along_axis, (values(3, 5), positive), torch=lambda t, x, i: t.gather(x, 1, i))
    yield Sample(take_along_axis, (values(2, 5, 3), _positions(2, 1, 3, extent=5)), {"axis": 1})
    yield Sample(take_along_axis, (values(2, 5, 3), _positions(1, 4, 1, extent=5)), {"axis": 1})
    yield Sample(
        lambda x, i, j: x[i, j],
        (values(4, 5), _positions(3, extent=4), _positions(2, 1, extent=5)),
        torch=lambda t, x, i, j: x[i, j],
    )
    yield Sample(
        lambda x, i, j: x[i, :, j],
        (values(4, 3, 5), _positions(3, extent=4), _positions(3, extent=5)),
        torch=lambda t, x, i, j: x[i, :, j],
    )
    yield Sample(lambda x, i: x[:, 1, None, i, ::2], (values(2, 3, 4, 5), _positions(2, 2, extent=4)))
    yield Sample(lambda x, i: x[0, ..., i], (values(2, 3, 4), _positions(2, 2, extent=4)))
    yield Sample(lambda x: x[[0, -1, 0], [[1], [2]]], (values(2, 3, 4),))
    yield Sample(lambda x: x[np.array([[True, False, True], [False, False, True]])], (values(2, 3, 4),))
    three = np.array([0, 3])
    yield Sample(gather, (values(3), three), error=IndexRangeError, message="index 3 (at position (1,)")
    yield Sample(
        gather, (values(2, 3), -three - 1), {"axis": 1}, error=IndexRangeError, message="expected -3 to 2"
    )
    yield Sample(gather, (values(3), values(2)), error=DTypeError, message="integer indices")
    yield Sample(
        gather,
        (values(3, 4), np.zeros((2, 1), int)),
        {"axis": 1, "batch": 1},
        error=ShapeError,
        message="batch",
    )
    yield Sample(take_along_axis, (values(3, 4), np.zeros(2, int)), error=ShapeError, message="as many axes")
    yield Sample(lambda x, i: x[i, i], (values(3, 9), three), error=IndexRangeError, message="size 3")
    yield Sample(lambda x: x[[0, 3]], (values(3),), error=IndexRangeError, message="axis 0 of a tensor")
    yield Sample(
        lambda x, m: x[m], (values(3), values(3, dtype="bool")), error=TraceError, message="where(mask"
    )
    yield Sample(lambda x: x[np.array([True, False])], (values(3),), error=ShapeError, message="mask")
    yield Sample(lambda x: x[[0.5]], (values(3),), error=ArgumentError)


@samples("dynamic_slice")
def _dynamic_slice_samples() -> Iterator[Sample]:
    def window(*sizes: int) -> Callable[..., Any]:
        return lambda x, *starts: dynamic_slice(x, list(starts), sizes)

    for shape, starts, sizes in (
        ((7,), (2,), (3,)),
        ((7,), (6,), (3,)),
        ((7,), (-2,), (3,)),
        ((3, 5), (1, 0), (2, 5)),
        ((3, 5), (9, 9), (3, 1)),
        ((3, 0), (0, 0), (1, 0)),
        ((3, 5), (1, 1), (0, 2)),
        ((2, 3, 4), (1, 1, 1), (1, 2, 2)),
    ):
        yield Sample(window(*sizes), (values(*shape), *map(np.int64, starts)))
    yield Sample(lambda x: dynamic_slice(x, [], ()), (values(),))
    yield Sample(window(5), (special(), np.int32(2)))
    for dtype in ("bfloat16", "bool", "int8"):
        yield Sample(window(2, 2), (values(3, 4, dtype=dtype), np.uint8(1), np.int16(2)))
    yield Sample(window(4), (values(3), np.int64(0)), error=ShapeError, message="does not fit")
    yield Sample(window(1), (values(3), np.float32(0)), error=DTypeError, message="integer")
    yield Sample(window(1, 1), (values(3, 3), np.int64(0)), error=ArgumentError, message="one start for each")
    yield Sample(window(1), (values(3), np.zeros(1, int)), error=ShapeError, message="0-d starts")


@samples("dynamic_update_slice")
def _dynamic_update_slice_samples() -> Iterator[Sample]:
    def update(x: Any, window: Any, *starts: Any) -> Any:
        return dynamic_update_slice(x, window, list(starts))

    for shape, starts, sizes in (
        ((7,), (2,), (3,)),
        ((7,), (6,), (3,)),
        ((7,), (-2,), (3,)),
        ((3, 5), (1, 0), (2, 5)),
        ((3, 5), (9, 9), (3, 1)),
        ((3, 0), (0, 0), (1, 0)),
        ((3, 5), (1, 1), (0, 2)),
        ((2, 3, 4), (1, 1, 1), (1, 2, 2)),
    ):
        yield Sample(update, (values(*shape), values(*sizes, seed=1), *map(np.int64, starts)))
    yield Sample(update, (values(), values(seed=1)))
    yield Sample(update, (special(), values(2), np.int32(4)))
    for dtype in ("bfloat16", "bool", "int8"):
        yield Sample(update, (values(3, 4, dtype=dtype), values(2, 2, dtype=dtype), np.uint8(1), np.int16(2)))
    yield Sample(update, (values(3), values(4), np.int64(0)), error=ShapeError, message="does not fit")
    yield Sample(update, (values(3), values(1, 1), np.int64(0)), error=ShapeError, message="does not fit")
    yield Sample(update, (values(3), values(1), np.float32(0)), error=DTypeError, message="integer")
