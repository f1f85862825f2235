"""Primitives without inputs (constant, iota), random bits, and the functions that make tensors of a given
shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError, ShapeError
from thalweg.graph import AxisGroup, Kind, Op
from thalweg.ops.core import apply, cast, operand, primitive, require
from thalweg.ops.samples import Sample, samples, special, values
from thalweg.types import DType, Type


@primitive("constant", Kind.MOVEMENT)
class Constant(Op):
    """A fixed array."""

    value: np.ndarray[Any, Any]

    def infer(self) -> tuple[Type, ...]:
        return (types.type_of(self.value),)

    def reference(self) -> Any:
        return self.value

    def vjp(self, inputs: Any, outputs: Any, cotangents: Any) -> Any:
        return ()


def constant(value: Any, dtype: DType | None = None) -> Any:
    """A fixed array as an operand; the array is copied and never changes."""
    array = np.array(value, dtype=None if dtype is None else dtype.numpy, order="C")
    array = array.astype(types.dtype(array.dtype).numpy, copy=False)  # native byte order
    array.flags.writeable = False
    return apply(Constant(array))


@primitive("iota", Kind.MOVEMENT)
class Iota(Op):
    """The index along one axis: `result[i0, .., in] = i_axis`."""

    shape: tuple[int, ...]
    axis: int
    dtype: DType

    def infer(self) -> tuple[Type, ...]:
        require(0 <= self.axis < len(self.shape), f"iota axis {self.axis} is not an axis of {self.shape}")
        if self.dtype.is_bool:
            raise DTypeError("iota needs a number type, received bool")
        return (Type(self.dtype, self.shape),)

    def reference(self) -> Any:
        line = np.arange(self.shape[self.axis]).astype(self.dtype.numpy)
        line = line.reshape([-1 if axis == self.axis else 1 for axis in range(len(self.shape))])
        return np.broadcast_to(line, self.shape)

    def vjp(self, inputs: Any, outputs: Any, cotangents: Any) -> Any:
        return ()

    def axes(self) -> tuple[AxisGroup, ...]:
        return tuple(AxisGroup((), (axis,)) for axis in range(len(self.shape)) if axis != self.axis)


def iota(shape: tuple[int, ...], axis: int, dtype: DType = types.int64) -> Any:
    """Indices along `axis` of a tensor of that shape."""
    return apply(Iota(tuple(shape), types.normalize_axis(axis, len(shape)), dtype))


def _philox(counter: list[np.ndarray[Any, Any]], key: list[Any]) -> list[np.ndarray[Any, Any]]:
    """Philox4x32-10 on uint32 arrays (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011)."""
    c0, c1, c2, c3 = (word.astype(np.uint64) for word in counter)
    k0, k1 = (np.uint64(word) for word in key)
    mask = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    for _ in range(10):
        product0 = c0 * np.uint64(0xD2511F53)
        product1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (product1 >> shift) ^ c1 ^ k0,
            product1 & mask,
            (product0 >> shift) ^ c3 ^ k1,
            product0 & mask,
        )
        k0 = (k0 + np.uint64(0x9E3779B9)) & mask
        k1 = (k1 + np.uint64(0xBB67AE85)) & mask
    return [word.astype(np.uint32) for word in (c0, c1, c2, c3)]


@primitive("random_bits", Kind.MOVEMENT)
class RandomBits(Op):
    """Uniform 32-bit words from a counter: word `i % 4` of Philox4x32-10 at counter (i // 4, call, stream).

    The input is a generator's state uint32[4] = (seed low, seed high, call number low, call number high); the
    call number is counted up once per call of the program. `i` is the logical row-major element index, so the
    bits depend neither on layout nor on tiling.
    """

    cost = 20
    shape: tuple[int, ...]
    stream: int

    def infer(self, state: Type) -> tuple[Type, ...]:
        require(
            state == Type(types.uint32, (4,)),
            f"random_bits needs a generator's state u32[4], received {state}",
        )
        return (Type(types.uint32, self.shape),)

    def reference(self, state: np.ndarray[Any, Any]) -> Any:
        size = int(np.prod(self.shape, dtype=np.int64))
        blocks = np.arange((size + 3) // 4, dtype=np.uint64)
        ones = np.ones_like(blocks, dtype=np.uint32)
        words = _philox(
            [
                (blocks & np.uint64(0xFFFFFFFF)).astype(np.uint32),
                ((blocks >> np.uint64(32)).astype(np.uint32) ^ (ones * state[3])),
                ones * state[2],
                ones * np.uint32(self.stream),
            ],
            [state[0], state[1]],
        )
        return np.stack(words, axis=-1).reshape(-1)[:size].reshape(self.shape)

    def vjp(self, inputs: Any, outputs: Any, cotangents: Any) -> Any:
        return (None,)

    def operations(self, inputs: Any, outputs: Any) -> int:
        return 25 * int(outputs[0].size)


def random_bits(state: Any, shape: tuple[int, ...], stream: int) -> Any:
    """Uniform uint32 words for a generator's state; `stream` tells call sites apart."""
    return apply(RandomBits(tuple(shape), int(stream)), state)


# ---- tensors of a given shape ------------------------------------------------------------------------------


def full(shape: Any, value: Any, dtype: Any = None) -> Any:
    """A tensor of one repeated number (or 0-d tensor), as a broadcast.

    Without `dtype` Python numbers give bool, int64 or float32.
    """
    from thalweg.ops.movement import broadcast_to

    target = None if dtype is None else types.dtype(dtype)
    single = operand(value, target)
    return broadcast_to(single if target is None else cast(single, target), shape)


def zeros(shape: Any, dtype: Any = types.float32) -> Any:
    """A tensor of zeros."""
    return full(shape, 0, types.dtype(dtype))


def ones(shape: Any, dtype: Any = types.float32) -> Any:
    """A tensor of ones."""
    return full(shape, 1, types.dtype(dtype))


def full_like(x: Any, value: Any, dtype: Any = None) -> Any:
    """A tensor of the shape of `x` (and its type where `dtype` is None), filled with one number."""
    x = operand(x)
    return full(x.shape, value, x.dtype if dtype is None else dtype)


def zeros_like(x: Any, dtype: Any = None) -> Any:
    """Zeros of the shape of `x` (and its type where `dtype` is None)."""
    return full_like(x, 0, dtype)


def ones_like(x: Any, dtype: Any = None) -> Any:
    """Ones of the shape of `x` (and its type where `dtype` is None)."""
    return full_like(x, 1, dtype)


def _number(value: Any, name: str) -> int | float:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ArgumentError(
            f"{name} must be a finite number, received {value!r:.60}; the shape depends on it"
        )
    found: int | float = value
    return found


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> Any:
    """start, start + step, ... below `stop` (above it for a negative step); of one argument 0, 1, ... below
    it.

    Integers give int64, other numbers float32, unless `dtype` is given.
    """
    if stop is None:
        start, stop = 0, start
    start, stop, step = _number(start, "start"), _number(stop, "stop"), _number(step, "step")
    if step == 0:
        raise ArgumentError("the step of arange must not be 0")
    whole = all(isinstance(value, int) for value in (start, stop, step))
    target = types.dtype(dtype) if dtype is not None else types.int64 if whole else types.float32
    count = max(0, -((start - stop) // step) if whole else math.ceil((stop - start) / step))
    wide = types.int64 if whole else types.float64
    line: Any = iota((count,), 0, wide)
    if step != 1:
        line = line * step
    return cast(line + start if start != 0 else line, target)


def linspace(start: Any, stop: Any, num: int, *, endpoint: bool = True, dtype: Any = types.float32) -> Any:
    """`num` evenly spaced numbers from `start` to `stop` (without it where `endpoint` is False); both ends
    are exact.
    """
    from thalweg.ops.elementwise import less, where

    start, stop = float(_number(start, "start")), float(_number(stop, "stop"))
    if isinstance(num, bool) or not isinstance(num, (int, np.integer)) or num < 0:
        raise ArgumentError(f"num must be an integer that is 0 or larger, received {num!r}")
    intervals = int(num) - 1 if endpoint else int(num)
    step = (stop - start) / intervals if intervals > 0 else 0.0
    position = iota((int(num),), 0, types.float64)
    from_start = position * step + start
    if not endpoint or num < 2:
        return cast(from_start, dtype)
    from_stop = stop - (float(intervals) - position) * step
    return cast(where(less(position, num / 2), from_start, from_stop), dtype)


def eye(n_rows: int, n_cols: int | None = None, *, k: int = 0, dtype: Any = types.float32) -> Any:
    """Ones on the diagonal that begins at column `k` (negative: at row -k), zeros elsewhere."""
    from thalweg.ops.elementwise import equal

    shape = (n_rows, n_rows if n_cols is None else n_cols)
    row = iota(shape, 0)
    return cast(equal(row + int(k) if k else row, iota(shape, 1)), dtype)


# ---- samples -----------------------------------------------------------------------------------------------


@samples("constant")
def _constant_samples() -> Iterator[Sample]:
    for array in (
        values(),
        values(7),
        values(3, 5),
        values(0, 2),
        special(),
        special("bfloat16"),
        special("float16"),
    ):
        yield Sample(lambda a=array: constant(a))
    for dtype in ("bool", "int8", "uint64", "float64"):
        array = values(3, 2, dtype=dtype)
        yield Sample(lambda a=array: constant(a))
    for shape in ((), (3,), (2, 0), (2, 3)):
        yield Sample(full, (), {"shape": shape, "value": 1.5}, torch=lambda t, s=shape: t.full(s, 1.5))
    yield Sample(full, (), {"shape": 4, "value": True})
    yield Sample(zeros, (), {"shape": (2, 3)}, torch=lambda t: t.zeros(2, 3))
    yield Sample(ones, (), {"shape": (2, 3), "dtype": "int8"})
    yield Sample(lambda x: zeros_like(x) + ones_like(x), (values(3),), torch=lambda t, x: t.ones_like(x))
    yield Sample(lambda x: x * constant(np.array([1, -2, 3], np.float32)), (values(3),))
    yield Sample(lambda x: full_like(x, 2.0) * x, (values(3, 5),), torch=lambda t, x: 2.0 * x)
    yield Sample(full, (), {"shape": (-1,), "value": 0}, error=ArgumentError, message="negative")
    yield Sample(full, (), {"shape": (1,), "value": 300, "dtype": "int8"}, error=DTypeError, message="300")
    yield Sample(lambda: constant(["a"]), error=DTypeError, message="element type")


@samples("iota")
def _iota_samples() -> Iterator[Sample]:
    for shape, axis in (((7,), 0), ((3, 5), 0), ((3, 5), 1), ((2, 3, 4), -2), ((0,), 0), ((3, 0), 0)):
        yield Sample(lambda s=shape, a=axis: iota(s, a))
    for dtype in (types.float32, types.bfloat16, types.float16, types.uint8, types.int32):
        yield Sample(lambda d=dtype: iota((3, 4), 1, d))
    for arguments in ((5,), (2, 9), (2, 9, 3), (9, 2, -3), (3, 3), (0.0, 1.0, 0.1)):
        yield Sample(lambda a=arguments: arange(*a), torch=lambda t, a=arguments: t.arange(*a))
    yield Sample(lambda: arange(4, dtype="float64") * 0.5)
    for count in (0, 1, 2, 7):
        yield Sample(lambda n=count: linspace(-1, 2, n), torch=lambda t, n=count: t.linspace(-1, 2, n))
    yield Sample(lambda: linspace(0, 1, 4, endpoint=False))
    yield Sample(lambda: eye(3, 4, k=1))
    yield Sample(lambda: eye(3), torch=lambda t: t.eye(3))
    yield Sample(lambda x: x + iota((3,), 0, x.dtype), (values(3),))
    yield Sample(lambda x: x * iota((2, 3), 1, x.dtype), (values(2, 3),))
    yield Sample(lambda: iota((3,), 1), error=ArgumentError)
    yield Sample(lambda: iota((3,), 0, types.bool_), error=DTypeError, message="number type")
    yield Sample(lambda: arange(0, 5, 0), error=ArgumentError, message="step")
    yield Sample(lambda: arange("a"), error=ArgumentError, message="finite number")
    yield Sample(lambda: linspace(0, 1, -1), error=ArgumentError, message="num")


@samples("random_bits")
def _random_bits_samples() -> Iterator[Sample]:
    for seed, shape in (
        (0, ()),
        (1, (1,)),
        (2, (7,)),
        (3, (3, 5)),
        (4, (0,)),
        (5, (2, 3, 4)),
        (6, (64,)),
        (7, (129,)),
    ):
        state = np.array([seed, 2**32 - 1 - seed, 17 * seed, seed // 2], np.uint32)
        yield Sample(lambda s, n=shape, c=seed: random_bits(s, n, c), (state,))
    yield Sample(
        lambda s: random_bits(s, (3,), 0), (np.zeros(4, np.int32),), error=ShapeError, message="u32[4]"
    )
