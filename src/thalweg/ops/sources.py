"""Primitives without inputs (constant, iota) and random bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import DTypeError
from thalweg.graph import AxisGroup, Kind, Op
from thalweg.ops.core import apply, primitive, require
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


def full(shape: tuple[int, ...], value: float | int | bool, dtype: DType) -> Any:
    """A tensor of one repeated number, as a broadcast constant."""
    from thalweg.ops.movement import broadcast_to

    return broadcast_to(constant(np.asarray(value, dtype.numpy)), shape)


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
    """Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) on uint32 arrays."""
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

    The input is a generator's state uint32[4] = (seed low, seed high, call number low, call number high); the call number
    is counted up once per call of the program. `i` is the logical row-major element index, so the bits depend neither
    on layout nor on tiling.
    """

    shape: tuple[int, ...]
    stream: int

    def infer(self, state: Type) -> tuple[Type, ...]:
        require(state == Type(types.uint32, (4,)), f"random_bits needs a generator's state u32[4], received {state}")
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
