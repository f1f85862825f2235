"""The thread pool: every task once, phases in order, errors, and nothing that hangs."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from thalweg.codegen.c import build
from thalweg.errors import ArgumentError
from thalweg.runtime import pool as pools

pytestmark = [
    pytest.mark.skipif(build.find_compiler() is None, reason="needs a C compiler"),
    pytest.mark.skipif(sys.platform == "win32", reason="no threads on Windows yet"),
]

# All tasks work on one context; each function is one kind of phase.
TASKS = r"""
#include "runtime.h"
#include <sched.h>
#include <string.h>

typedef struct {
    int64_t size, number, failing;
    int64_t *first, *second, *owner;
    int32_t in_use[64];
    int64_t arrived, expected, overlaps, controls;
    volatile int32_t error;
    tw_pool *pool;
    tw_run_function run;
} context;

/* Counts the runs of each index, and how often a thread's number is in use twice at the same time. */
TW_EXPORT void count(void *argument, int64_t index, int32_t thread) {
    context *c = argument;
    if (__atomic_exchange_n(&c->in_use[thread], 1, __ATOMIC_ACQ_REL)) {
        __atomic_add_fetch(&c->overlaps, 1, __ATOMIC_RELAXED);
    }
    c->first[index]++;
    c->owner[index] = thread;
    __atomic_store_n(&c->in_use[thread], 0, __ATOMIC_RELEASE);
}

TW_EXPORT void reverse(void *argument, int64_t index, int32_t thread) {
    context *c = argument;
    (void)thread;
    c->second[index] = c->first[c->size - 1 - index] + index;
}

/* Serial: appends its index and thread; a lost order or a second thread shows. */
TW_EXPORT void append(void *argument, int64_t index, int32_t thread) {
    context *c = argument;
    c->first[c->number] = index;
    c->owner[c->number] = thread;
    c->number++;
}

TW_EXPORT void fail(void *argument, int64_t index, int32_t thread) {
    context *c = argument;
    (void)thread;
    if (index >= c->failing) {
        tw_fail(&c->error, (int32_t)index);
    }
}

/* Waits until `expected` tasks have arrived: comes to an end only if that many threads take part. */
TW_EXPORT void meet(void *argument, int64_t index, int32_t thread) {
    context *c = argument;
    c->owner[index] = thread;
    int64_t number = __atomic_fetch_add(&c->arrived, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(&c->arrived, __ATOMIC_ACQUIRE) < (number / c->expected + 1) * c->expected) {
        sched_yield();
    }
}

TW_EXPORT void nested(void *argument, int64_t index, int32_t thread) {
    context *c = argument;
    tw_phase phase = {append, 3, 0};
    context inner = {0};
    int64_t order[3], owner[3];
    (void)thread;
    inner.first = order;
    inner.owner = owner;
    c->run(c->pool, &phase, 1, &inner, &inner.error);
    c->first[index] = inner.number == 3 && order[0] == 0 && order[2] == 2 && owner[1] == 0;
}

#if defined(__x86_64__)
#define DEFAULT_CONTROL 0x1f80
static int64_t control(void) { return __builtin_ia32_stmxcsr() & ~0x3f; }
TW_EXPORT int64_t set_control(int64_t value) {
    int64_t before = control();
    __builtin_ia32_ldmxcsr((uint32_t)value);
    return before;
}
#elif defined(__aarch64__)
#define DEFAULT_CONTROL 0
static int64_t control(void) {
    int64_t value;
    __asm__ volatile("mrs %0, fpcr" : "=r"(value));
    return value;
}
TW_EXPORT int64_t set_control(int64_t value) {
    int64_t before = control();
    __asm__ volatile("msr fpcr, %0" : : "r"(value));
    return before;
}
#else
#define DEFAULT_CONTROL 0
static int64_t control(void) { return 0; }
TW_EXPORT int64_t set_control(int64_t value) { return 0 * value; }
#endif

TW_EXPORT void check_control(void *argument, int64_t index, int32_t thread) {
    context *c = argument;
    meet(argument, index, thread);
    __atomic_add_fetch(&c->controls, control() == DEFAULT_CONTROL, __ATOMIC_RELAXED);
}

/* Many runs, of phases of changing numbers of tasks; the number of wrong results. */
TW_EXPORT int64_t rapid(tw_run_function run, tw_pool *pool, int64_t runs, int64_t seed) {
    int64_t first[24], second[24], owner[24], wrong = 0;
    uint64_t state = (uint64_t)seed;
    for (int64_t r = 0; r < runs; r++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        context c = {.size = 1 + (int64_t)(state >> 33) % 24, .failing = 1 + (int64_t)(state >> 60) % 8};
        c.first = first;
        c.second = second;
        c.owner = owner;
        memset(first, 0, sizeof(first));
        tw_phase phases[] = {
            {count, c.size, 0}, {reverse, c.size, 0}, {fail, 7, (state >> 40) & 1}, {count, 1, 1}};
        int32_t code = run(pool, phases, 4, &c, &c.error);
        int64_t failed = c.failing < 7, sum = 0;
        for (int64_t i = 0; i < c.size; i++) {
            sum += first[i] + second[i];
        }
        int32_t expected = failed ? (int32_t)c.failing : 0;
        wrong += code != expected || c.overlaps ||
                 sum != 2 * c.size + c.size * (c.size - 1) / 2 + !failed;
    }
    return wrong;
}
"""


# The runtime with random delays between its steps, and no spin before it sleeps: rare orders get common.
DELAYS = r"""
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
static void delay(void) {
    static _Thread_local uint32_t state;
    state = state * 1664525u + 1013904223u + (uint32_t)((uintptr_t)&state >> 6);
    if (state >> 28 == 0) {
        sched_yield();
    }
    for (volatile uint32_t i = 0; i < (state >> 20) % 512; i++) {
    }
}
#define TW_BETWEEN() delay()
#define SPIN_NANOSECONDS 0
#define CROWDED_SPIN_NANOSECONDS 0
"""
VARIANTS = {"own way to sleep": "", "mutex and condition": "#define TW_NO_FUTEX\n", "delays": DELAYS}
VARIANTS["mutex and condition, delays"] = VARIANTS["mutex and condition"] + DELAYS


def runtime_of(variant: str) -> ctypes.CDLL:
    text = VARIANTS[variant] + (pools._TEXTS / "runtime.c").read_text()
    return pools.declare(build.library([("runtime.c", text)], headers={"runtime.h": pools.runtime_header()}))


class Context(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("size", "number", "failing")),
        *((name, ctypes.c_void_p) for name in ("first", "second", "owner")),
        ("in_use", ctypes.c_int32 * 64),
        *((name, ctypes.c_int64) for name in ("arrived", "expected", "overlaps", "controls")),
        ("error", ctypes.c_int32),
        ("pool", ctypes.c_void_p),
        ("run", ctypes.c_void_p),
    )


class Runner:
    """A pool of one variant of the runtime, and what a test needs to run phases on it."""

    def __init__(self, runtime: ctypes.CDLL, tasks: ctypes.CDLL, threads: int) -> None:
        self.runtime, self.tasks = runtime, tasks
        self.address = runtime.tw_pool_create(threads)
        assert runtime.tw_pool_threads(self.address) == threads

    def context(self, size: int) -> Context:
        context = Context(size=size, pool=self.address)
        context.run = ctypes.cast(self.runtime.tw_run, ctypes.c_void_p).value
        context.arrays = {name: np.zeros(size, np.int64) for name in ("first", "second", "owner")}
        for name, array in context.arrays.items():
            setattr(context, name, array.ctypes.data)
        return context

    def run(self, context: Context, *phases: tuple[str, int, int], error: bool = True) -> int:
        table = (pools.Phase * len(phases))()
        for entry, (task, tasks, serial) in zip(table, phases, strict=True):
            entry.task = ctypes.cast(getattr(self.tasks, task), ctypes.c_void_p).value
            entry.tasks, entry.serial = tasks, serial
        word = ctypes.addressof(context) + Context.error.offset if error else None
        code: int = self.runtime.tw_run(self.address, table, len(phases), ctypes.addressof(context), word)
        return code


@pytest.fixture(scope="module")
def tasks() -> ctypes.CDLL:
    library = build.library([("tasks.c", TASKS)], headers={"runtime.h": pools.runtime_header()})
    library.rapid.restype = library.set_control.restype = ctypes.c_int64
    library.rapid.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    library.set_control.argtypes = (ctypes.c_int64,)
    return library


@pytest.fixture(scope="module", params=["own way to sleep", "mutex and condition"])
def runtime(request: pytest.FixtureRequest) -> ctypes.CDLL:
    return runtime_of(request.param)


@pytest.fixture
def runner(runtime: ctypes.CDLL, tasks: ctypes.CDLL) -> Iterator[Callable[[int], Runner]]:
    made: list[Runner] = []

    def make(threads: int) -> Runner:
        made.append(Runner(runtime, tasks, threads))
        return made[-1]

    yield make
    for each in made:
        runtime.tw_pool_destroy(each.address)


THREADS = pytest.mark.parametrize("threads", [1, 2, 3, 7])
Make = Callable[[int], Runner]


@THREADS
@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000])
def test_every_task_runs_once_and_phases_in_order(runner: Make, threads: int, size: int) -> None:
    pool = runner(threads)
    context = pool.context(size)
    for repetition in range(1, 20):
        assert pool.run(context, ("count", size, 0), ("reverse", size, 0)) == 0
        assert (context.arrays["first"] == repetition).all()
        assert (context.arrays["second"] == repetition + np.arange(size)).all()
        assert context.overlaps == 0
        assert ((context.arrays["owner"] >= 0) & (context.arrays["owner"] < threads)).all()


@THREADS
def test_a_phase_may_have_very_many_tasks(runner: Make, threads: int) -> None:
    size = 2_500_001
    context = runner(threads).context(size)
    pool = runner(threads)
    pool.run(context, ("count", size, 0), ("reverse", size, 0))
    assert (context.arrays["first"] == 1).all()
    assert (context.arrays["second"] == 1 + np.arange(size)).all()


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_all_threads_take_part_also_after_they_have_slept(runner: Make, threads: int) -> None:
    pool = runner(threads)
    for pause in (0, 0, 0.02, 0):
        time.sleep(pause)
        context = pool.context(threads)
        phases = [("meet", threads, 0), ("append", 0, 0), ("meet", threads, 0)]
        context.expected = threads
        assert pool.run(context, *phases[:1]) == 0
        assert sorted(context.arrays["owner"]) == list(range(threads))
        assert pool.run(context, *phases) == 0
        assert context.arrived == 3 * threads


def test_nothing_to_do_is_fine(runner: Make) -> None:
    pool = runner(3)
    context = pool.context(4)
    assert pool.run(context) == 0
    assert pool.run(context, ("count", 0, 0), ("count", 0, 1), ("count", -1, 0)) == 0
    assert pool.run(context, ("count", 0, 0), ("count", 4, 0), ("count", 0, 0), ("count", 4, 0)) == 0
    assert (context.arrays["first"] == 2).all()


@THREADS
def test_serial_phases_run_in_order_on_one_thread(runner: Make, threads: int) -> None:
    pool = runner(threads)
    for _ in range(50):
        context = pool.context(64)
        serial = [("append", 3, 1), ("append", 1, 0), ("append", 2, 1)]
        assert pool.run(context, *serial, ("reverse", 32, 0), *serial, ("reverse", 32, 0), *serial) == 0
        assert context.number == 18
        for group in range(3):
            part = slice(6 * group, 6 * group + 6)
            assert context.arrays["first"][part].tolist() == [0, 1, 2, 0, 0, 1]
            assert len(set(context.arrays["owner"][part])) == 1
        assert (context.arrays["owner"][:6] == 0).all(), "before the first fork the caller is alone"


@THREADS
def test_an_error_ends_the_run_after_its_phase(runner: Make, threads: int) -> None:
    pool = runner(threads)
    for failing in (1, 5, 11, 12):
        context = pool.context(64)
        context.failing = failing
        code = pool.run(context, ("fail", 12, 0), ("count", 64, 0), ("append", 1, 1))
        assert code == (failing if failing < 12 else 0), "the smallest code, whoever was first"
        assert context.number == (code == 0)
        assert (context.arrays["first"][1:] == (code == 0)).all()


@THREADS
def test_a_serial_phase_may_fail_and_an_old_error_runs_nothing(runner: Make, threads: int) -> None:
    pool = runner(threads)
    context = pool.context(8)
    context.failing = 2
    assert pool.run(context, ("count", 8, 0), ("fail", 4, 1), ("count", 8, 0)) == 2
    assert (context.arrays["first"] == 1).all()
    assert pool.run(context, ("count", 8, 0)) == 2
    assert (context.arrays["first"] == 1).all()
    context.error = 0
    assert pool.run(context, ("count", 8, 0), error=False) == 0
    assert (context.arrays["first"] == 2).all()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64", "arm64"), reason="knows x86 and ARM")
@THREADS
def test_floating_point_settings_hold_in_the_run_and_come_back(runner: Make, threads: int) -> None:
    # Flush to zero, and rounding towards minus infinity, set before the workers start, too.
    odd = 0x1F80 | 1 << 15 | 1 << 13 if platform.machine() == "x86_64" else 1 << 24 | 2 << 22
    tasks = build.library([("tasks.c", TASKS)], headers={"runtime.h": pools.runtime_header()})
    tasks.set_control.argtypes, tasks.set_control.restype = (ctypes.c_int64,), ctypes.c_int64
    before = tasks.set_control(odd)
    try:
        pool = runner(threads)
        context = pool.context(threads)
        context.expected = threads
        pool.run(context, ("check_control", threads, 0))
        during = tasks.set_control(odd)
    finally:
        tasks.set_control(before)
    assert context.controls == threads
    assert during == odd


@THREADS
def test_a_run_within_a_run_takes_place_in_its_task(runner: Make, threads: int) -> None:
    pool = runner(threads)
    context = pool.context(20)
    assert pool.run(context, ("nested", 20, 0)) == 0
    assert (context.arrays["first"] == 1).all()


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_two_callers_at_once_get_right_results(runner: Make, tasks: ctypes.CDLL, threads: int) -> None:
    pool = runner(threads)
    wrong: list[int] = []

    def call(seed: int) -> None:
        wrong.append(tasks.rapid(pool.runtime.tw_run, pool.address, 5000, seed))

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == [0, 0, 0]


def test_a_stopped_pool_works_in_its_callers(runner: Make, tasks: ctypes.CDLL) -> None:
    pool = runner(3)
    wrong: list[int] = []

    def call() -> None:
        wrong.append(tasks.rapid(pool.runtime.tw_run, pool.address, 20000, 1))

    caller = threading.Thread(target=call)
    caller.start()
    pool.runtime.tw_pool_stop(pool.address)  # in the middle of somebody's runs
    caller.join()
    wrong.append(tasks.rapid(pool.runtime.tw_run, pool.address, 1000, 2))
    pool.runtime.tw_pool_stop(pool.address)
    assert wrong == [0, 0]


# --- in processes of their own, so that a hang is seen and not waited for ---


def run_python(text: str, timeout: float = 60) -> str:
    # The tasks travel as a module: the child imports this file.
    program = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\nimport test_pool as t\n{text}"
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


OPEN = """
import ctypes, os
library = t.build.library([("tasks.c", t.TASKS)], headers={"runtime.h": t.pools.runtime_header()})
library.rapid.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
library.rapid.restype = ctypes.c_int64
def rapid(pool, runs, runtime=t.pools.runtime_library()):
    return library.rapid(runtime.tw_run, pool, runs, 1)
"""


def test_a_hundred_thousand_runs_do_not_hang() -> None:
    text = f"{OPEN}\nfor threads in (2, 3, 7): print(rapid(t.pools.pool(threads), 100_000))"
    assert run_python(text, timeout=120) == "0\n0\n0\n"


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "delays" in name])
def test_no_order_of_events_loses_a_task_or_a_wake_up(variant: str) -> None:
    text = f"""{OPEN}
runtime = t.runtime_of({variant!r})
for threads in (2, 3, 7):
    address = runtime.tw_pool_create(threads)
    print(rapid(address, 10_000, runtime))
    runtime.tw_pool_destroy(address)
"""
    assert run_python(text, timeout=120) == "0\n0\n0\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_its_own_pool_and_the_old_one_still_works() -> None:
    text = f"""{OPEN}
before = t.pools.pool(3)
assert rapid(before, 1000) == 0
child = os.fork()
if child == 0:
    stale = rapid(before, 1000)
    t.pools.runtime_library().tw_pool_stop(before)
    t.pools.runtime_library().tw_pool_destroy(before)
    after = t.pools.pool(3)
    threads = len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 3
    print("child", stale, rapid(after, 1000), threads, flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
print("parent", rapid(t.pools.pool(3), 1000), t.pools.pool(3) == before)
"""
    assert run_python(text) == "child 0 0 3\nparent 0 True\n"


def test_the_process_ends_while_a_daemon_thread_is_in_a_run() -> None:
    text = f"""{OPEN}
import threading, time
address = t.pools.pool(3)
threading.Thread(target=rapid, args=(address, 10**9), daemon=True).start()
time.sleep(0.05)
print("end")
"""
    assert run_python(text) == "end\n"


def test_pools_are_made_once_per_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pools.pool(1) is None, "one thread needs no pool, and so no compiler"
    assert pools.pool(2) == pools.pool(2) != pools.pool(3)
    monkeypatch.setenv("THALWEG_THREADS", "3")
    assert pools.pool() == pools.pool(3)
    for wrong in (0, -2, 100_000):
        with pytest.raises(ArgumentError, match=f"from 1 to .* threads, not {wrong}"):
            pools.pool(wrong)
