"""What this machine can do at most, measured: multiply-adds per second and bytes per second.

Profiles and benchmarks state times as a share of these. Each is measured once per process and thread
count, as the best of some runs of a small C loop on all threads at once.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from thalweg.plan.machine import Machine, machine, store

ACCUMULATORS = 12  # independent chains: more than latency times throughput of one multiply-add
STEPS = 200_000
STREAM_BYTES = 64 << 20  # per thread: far beyond any core's share of the caches


def _source() -> str:
    chains = range(ACCUMULATORS)
    total = "a0"
    for i in chains[1:]:
        total = f"add_f32({total}, a{i})"
    return "\n".join(
        [
            '#include "vector.h"',
            '#define EXPORT __attribute__((visibility("default")))',
            "EXPORT float spin(int64_t n);",
            "EXPORT float spin(int64_t n) {",
            *(f"    f32x16 a{i} = broadcast_f32({i});" for i in chains),
            "    f32x16 x = broadcast_f32(0.999f), y = broadcast_f32(0.001f);",
            '    __asm__ volatile("" : "+m"(x), "+m"(y));',
            "    for (int64_t i = 0; i < n; i++) {",
            *(f"        a{i} = fma_f32(a{i}, x, y);" for i in chains),
            "    }",
            f"    return sum_f32({total});",
            "}",
            "EXPORT float stream(const float *p, int64_t n);",
            "EXPORT float stream(const float *p, int64_t n) {",
            "    f32x16 a = broadcast_f32(0), b = a, c = a, d = a;",
            "    for (int64_t i = 0; i < n; i += 64) {",
            "        a = add_f32(a, load_f32(p + i)); b = add_f32(b, load_f32(p + i + 16));",
            "        c = add_f32(c, load_f32(p + i + 32)); d = add_f32(d, load_f32(p + i + 48));",
            "    }",
            "    return sum_f32(add_f32(add_f32(a, b), add_f32(c, d)));",
            "}",
        ]
    )


@cache
def _library() -> ctypes.CDLL:
    from thalweg.codegen.c import build, library

    found = build.library([("limits.c", _source())], "native", {"vector.h": library.header()})
    found.spin.argtypes, found.spin.restype = [ctypes.c_int64], ctypes.c_float
    found.stream.argtypes, found.stream.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_float
    return found


def _best(work: Callable[[int], object], threads: int, runs: int) -> float:
    """Seconds of the fastest of some runs of `work(thread)` on all threads at once."""
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(runs):
            start = time.perf_counter()
            list(pool.map(work, range(threads)))
            best = min(best, time.perf_counter() - start)
    return best


@cache
def operations_per_second(threads: int = 1) -> float:
    """float32 operations (a multiply-add is two) of `threads` threads per second, the best of 20 runs."""
    spin = _library().spin
    return threads * STEPS * ACCUMULATORS * 32 / _best(lambda _: spin(STEPS), threads, 20)


@cache
def bytes_per_second(threads: int = 1) -> float:
    """Bytes that `threads` threads read from memory per second, the best of 5 runs."""
    arrays = [np.ones(STREAM_BYTES // 4, np.float32) for _ in range(threads)]
    stream = _library().stream
    seconds = _best(lambda t: stream(arrays[t].ctypes.data, arrays[t].size), threads, 5)
    return threads * STREAM_BYTES / seconds


def measure(threads: int) -> Machine:
    """The limits for that many threads, measured now and kept for the plans of later processes."""
    store(threads, operations_per_second(threads), bytes_per_second(threads))
    return machine(threads)
