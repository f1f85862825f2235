"""The memory of programs: arenas, scratch, state and outputs, aligned for vector instructions.

In: sizes from a plan. Out: NumPy arrays that own their memory; it is returned to the system when the last
view of them dies. Called by the runtime when it prepares a program, and for each output of a call.
`mapped_bytes` says what is held, so that a test can compare it with what the plan announced.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import mmap
import sys
import weakref
from collections import deque
from collections.abc import Callable
from sys import getrefcount
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from thalweg.errors import ArgumentError

ALIGNMENT = 64  # a cache line, and the widest vector register
ROLES = ("arena", "scratch", "state", "output")

_HUGE_PAGE = 2 << 20
_BYTE = np.dtype(np.uint8)
_addressof = ctypes.addressof
_first_byte: Callable[[Any], ctypes.c_char] = ctypes.c_char.from_buffer
_POSIX = hasattr(mmap, "MAP_ANONYMOUS")

# Live allocations: number -> (role, bytes). Single operations on a dict are atomic, so that a finalizer,
# which may run in the middle of anything, needs no lock.
_live: dict[int, tuple[str, int]] = {}
_numbers = itertools.count()


def allocate(nbytes: int, alignment: int = ALIGNMENT, role: str = "arena") -> NDArray[np.uint8]:
    """`nbytes` zero bytes whose address is a multiple of `alignment`, a power of two.

    role: what the memory is for, one of `ROLES`; `mapped_bytes` counts by it. On Linux, 2 MiB and more are
    aligned to 2 MiB and use huge pages. Memory is taken from the system page by page, when it is first
    written. Raises `MemoryError` when the system refuses.
    """
    if role not in ROLES:
        raise ArgumentError(f"unknown role {role!r} of memory; expected one of {', '.join(ROLES)}")
    if nbytes < 0:
        raise ArgumentError(f"cannot allocate {nbytes} bytes; the size must be 0 or more")
    if alignment < 1 or alignment & (alignment - 1):
        raise ArgumentError(f"the alignment must be a power of two, not {alignment}")
    if nbytes == 0:
        return np.zeros(0, np.uint8)
    try:
        array, owner = _map(nbytes, alignment) if _POSIX else _take(nbytes, alignment)
    except (OSError, OverflowError, ValueError, MemoryError) as error:
        raise MemoryError(f"cannot allocate {nbytes:,} bytes for the role {role!r}: {error}") from error
    number = next(_numbers)
    _live[number] = (role, nbytes)
    finalizer = weakref.finalize(owner, _live.pop, number)
    finalizer.atexit = False  # type: ignore[misc, unused-ignore]  # some type stubs do not know it
    return array


def _map(nbytes: int, alignment: int) -> tuple[NDArray[np.uint8], Any]:
    """An anonymous mapping, the base of the array; it is unmapped when nothing refers to it any more."""
    huge = hasattr(mmap, "MADV_HUGEPAGE") and nbytes >= _HUGE_PAGE
    if huge:
        alignment = max(alignment, _HUGE_PAGE)
    # The slack is address space only: pages that nobody touches take no memory.
    slack = alignment if alignment > mmap.PAGESIZE else 0
    mapping = mmap.mmap(-1, nbytes + slack, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    offset = -_address(np.frombuffer(mapping, np.uint8)) % alignment
    if huge:
        # Whole huge pages only, so that a program never takes more memory than its plan says.
        with contextlib.suppress(OSError):  # a kernel without huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE, offset, nbytes // _HUGE_PAGE * _HUGE_PAGE)
    return np.frombuffer(mapping, np.uint8, nbytes, offset), mapping


def _take(nbytes: int, alignment: int) -> tuple[NDArray[np.uint8], Any]:
    whole = np.zeros(nbytes + alignment - 1, np.uint8)
    offset = -_address(whole) % alignment
    array = whole[offset : offset + nbytes]
    return array, whole


def _address(array: NDArray[Any]) -> int:
    # Three times as fast as array.ctypes.data.
    return _addressof(_first_byte(array))


def mapped_bytes(role: str | None = None) -> int:
    """The bytes that live arrays of `allocate` hold, of one role or of all: as asked for, not in pages."""
    if role is not None and role not in ROLES:
        raise ArgumentError(f"unknown role {role!r} of memory; expected one of {', '.join(ROLES)}")
    return sum(nbytes for kind, nbytes in list(_live.values()) if role is None or kind == role)


def address_of(array: NDArray[Any]) -> int:
    """Where the elements of an array begin. Fast where the array may be written and is not empty."""
    try:
        return _addressof(_first_byte(array))
    except (TypeError, ValueError):
        return int(array.ctypes.data)


def aligned_empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A row-major array whose address is a multiple of 64, for the outputs of a program; on Linux, 2 MiB and
    more use huge pages.

    Its memory is no array, so that every view refers to the array itself: NumPy would let a view of a view
    refer to the array at the end of the chain."""
    dtype = np.dtype(dtype)
    nbytes = (shape if isinstance(shape, int) else math.prod(shape)) * dtype.itemsize
    if _POSIX and nbytes >= _HUGE_PAGE:
        whole, mapping = _map(nbytes, ALIGNMENT)
        return np.ndarray(shape, dtype, mapping, _address(whole) - _address(np.frombuffer(mapping, np.uint8)))
    memory = bytearray(nbytes + ALIGNMENT)
    return np.ndarray(shape, dtype, memory, -_addressof(_first_byte(memory)) % ALIGNMENT)


class ResultMemory:
    """The memory of one result of a program: what callers have dropped is used again, because pages that the
    system gives anew cost more than a small program's whole call.

    Whether an array is in use is seen by its references: every view, tensor and DLPack capsule holds one.
    """

    __slots__ = ("dtype", "kept", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        small = math.prod(shape) * dtype.itemsize <= MOST_KEPT_BYTES
        self.kept: deque[tuple[NDArray[Any], int]] = deque(maxlen=KEPT if small and _COUNTED else 0)

    def take(self) -> tuple[NDArray[Any], int]:
        """An uninitialised array that nobody else refers to, and its address."""
        kept = self.kept
        for _ in range(len(kept)):
            try:
                found = kept.pop()
            except IndexError:  # other threads have taken them
                break
            array = found[0]
            if getrefcount(array) <= _UNSHARED:
                kept.append(found)  # last written, first written again: it may still be in the cache
                return found
            kept.appendleft(found)
        array = aligned_empty(self.shape, self.dtype)
        found = array, address_of(array)
        kept.append(found)
        return found


def _count_unshared() -> int:
    """The references to an array that only a `ResultMemory` knows, as `take` counts them: it differs between
    Python versions."""
    found = (np.zeros(1), 0)
    array = found[0]
    return getrefcount(array)


KEPT = 2  # arrays of one result: while a caller holds the last result, the next call writes another one
MOST_KEPT_BYTES = 64 << 20  # larger results are given back to the system
# Without the interpreter lock (free-threaded Python) another thread may take a reference meanwhile.
_COUNTED = hasattr(sys, "getrefcount") and getattr(sys, "_is_gil_enabled", lambda: True)()
_UNSHARED = _count_unshared() if _COUNTED else 0
