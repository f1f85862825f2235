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
import weakref
from collections.abc import Callable
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


def aligned_empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An uninitialised row-major array whose address is a multiple of 64, for the outputs of a program."""
    dtype = np.dtype(dtype)
    size = shape if isinstance(shape, int) else math.prod(shape)
    whole = np.empty(size * dtype.itemsize + ALIGNMENT, _BYTE)
    return np.ndarray(shape, dtype, whole, -_addressof(_first_byte(whole)) % ALIGNMENT)
