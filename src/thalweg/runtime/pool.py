"""The thread pools that compiled programs run on: one per process and number of threads.

In: a number of threads. Out: the address of a pool, which a program hands to `tw_run` (`codegen/c/runtime.h`,
where phases, tasks and errors are described). Called by whatever calls a program. Pools start on first use; a
forked child makes its own; at exit the workers end.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import threading
from pathlib import Path

from thalweg.codegen.c.build import library
from thalweg.config import MOST_THREADS, settings
from thalweg.errors import ArgumentError

_TEXTS = Path(__file__).parent.parent / "codegen" / "c"


class Phase(ctypes.Structure):
    """`tw_phase`: the address of the task function, the number of tasks, 1 if one thread runs them all."""

    _fields_ = (("task", ctypes.c_void_p), ("tasks", ctypes.c_int64), ("serial", ctypes.c_int32))


_pools: dict[int, int] = {}  # number of threads -> address of a tw_pool
_lock = threading.Lock()


def pool(threads: int | None = None) -> int | None:
    """The address of the pool (`tw_pool *`) of `threads` threads, `settings.threads()` unless given.

    None for one thread, which `tw_run` takes for "in the caller". A pool is made on first use, with fewer
    threads where the system refuses more (results do not depend on that). Ask again for each call of a
    program instead of keeping the address: a forked child has pools of its own.
    Raises `UnsupportedError` without a C compiler, except for one thread, which needs none.
    """
    threads = settings.threads() if threads is None else threads
    if threads == 1:
        return None
    return _pools.get(threads) or _create(threads)


def _create(threads: int) -> int:
    if not 1 < threads <= MOST_THREADS:
        raise ArgumentError(f"a pool has from 1 to {MOST_THREADS} threads, not {threads}")
    runtime = runtime_library()
    with _lock:
        if threads not in _pools:
            address = runtime.tw_pool_create(threads)
            if address is None:
                raise MemoryError(f"no memory for a pool of {threads} threads")
            _pools[threads] = address
        return _pools[threads]


def runtime_header() -> str:
    """The text of `runtime.h`, for programs that call `tw_run` through a `tw_run_function`."""
    return (_TEXTS / "runtime.h").read_text(encoding="utf-8")


@functools.cache
def runtime_library() -> ctypes.CDLL:
    """The loaded `runtime.c`, with the argument types of its functions set; calls release Python's lock."""
    text = (_TEXTS / "runtime.c").read_text(encoding="utf-8")
    return declare(library([("runtime.c", text)], headers={"runtime.h": runtime_header()}))


def declare(runtime: ctypes.CDLL) -> ctypes.CDLL:
    """Sets the argument and result types of the functions of a loaded `runtime.c`."""
    address, integer = ctypes.c_void_p, ctypes.c_int32
    runtime.tw_pool_create.argtypes, runtime.tw_pool_create.restype = (integer,), address
    runtime.tw_pool_threads.argtypes, runtime.tw_pool_threads.restype = (address,), integer
    runtime.tw_pool_stop.argtypes, runtime.tw_pool_stop.restype = (address,), None
    runtime.tw_pool_destroy.argtypes, runtime.tw_pool_destroy.restype = (address,), None
    runtime.tw_run.argtypes, runtime.tw_run.restype = (address, address, integer, address, address), integer
    return runtime


def _stop_all() -> None:
    # Stopped, not freed: a daemon thread may still be about to call a program.
    for address in list(_pools.values()):
        runtime_library().tw_pool_stop(address)


def _forget_all() -> None:
    """In a forked child: the parent's workers do not exist here, and its lock may be held for ever."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
