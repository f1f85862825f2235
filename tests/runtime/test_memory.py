"""Memory of programs: alignment, accounting, and that it goes back to the system."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from thalweg.errors import ArgumentError
from thalweg.runtime import memory
from thalweg.runtime.memory import ResultMemory, aligned_empty, allocate, mapped_bytes

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def address_of(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


@pytest.fixture(params=["mapping", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways to get memory: mappings where the system has them, NumPy elsewhere."""
    if request.param == "numpy":
        monkeypatch.setattr(memory, "_POSIX", False)
    elif not memory._POSIX:
        pytest.skip("no anonymous mappings on this system")
    gc.collect()
    yield request.param


@pytest.mark.parametrize("nbytes", [1, 63, 64, 4096, 100_000, (2 << 20) - 1, 2 << 20, (6 << 20) + 5])
@pytest.mark.parametrize("alignment", [1, 64, 4096, 8192, 1 << 21])
def test_allocations_are_aligned_zero_and_writable(nbytes: int, alignment: int, way: str) -> None:
    array = allocate(nbytes, alignment)
    assert (array.shape, array.dtype) == ((nbytes,), np.uint8)
    assert address_of(array) % alignment == 0
    assert not array.any()
    array[:] = 255
    assert array.all()


def flags_at(address: int) -> list[str]:
    """The flags of the mapping that holds an address ("hg": may use huge pages)."""
    inside = False
    with open("/proc/self/smaps") as file:
        for line in file:
            first, *words = line.split()
            if "-" in first:
                begin, end = (int(part, 16) for part in first.split("-"))
                inside = begin <= address < end
            elif inside and first == "VmFlags:":
                return words
    raise AssertionError(f"no mapping at {address:x}")


@linux_only
def test_large_arenas_use_whole_huge_pages_only() -> None:
    if not os.path.exists("/sys/kernel/mm/transparent_hugepage"):
        pytest.skip("a kernel without huge pages")
    array = allocate((4 << 20) + 4096)
    start = address_of(array)
    assert start % (2 << 20) == 0
    assert "hg" in flags_at(start) and "hg" in flags_at(start + (4 << 20) - 1)
    assert "hg" not in flags_at(start + (4 << 20)), "a huge page there would take 2 MiB for 4 KiB"


def test_bytes_are_counted_by_role_until_the_last_view_dies(way: str) -> None:
    before = {role: mapped_bytes(role) for role in memory.ROLES}
    arena = allocate(5_000_001, role="arena")
    state = allocate(77, role="state")
    assert mapped_bytes("arena") - before["arena"] == 5_000_001
    assert mapped_bytes("state") - before["state"] == 77
    assert mapped_bytes("output") == before["output"]
    assert mapped_bytes() == sum(mapped_bytes(role) for role in memory.ROLES)
    view = arena[64:128].view(np.float32).reshape(4, 4)
    view[:] = 3
    del arena
    assert mapped_bytes("arena") - before["arena"] == 5_000_001, "the view still uses it"
    assert (view == 3).all()
    del view, state
    assert {role: mapped_bytes(role) for role in memory.ROLES} == before


@linux_only
def test_memory_goes_back_to_the_system() -> None:
    array = allocate(8 << 20)
    place = f"{address_of(array):x}-"
    with open("/proc/self/maps") as file:
        assert any(line.startswith(place) for line in file)
    del array
    with open("/proc/self/maps") as file:
        assert not any(line.startswith(place) for line in file)


def test_counting_survives_many_threads() -> None:
    before = mapped_bytes()

    def work() -> None:
        for size in range(1, 300):
            allocate(size)[0] = 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mapped_bytes() == before


def test_nothing_is_an_allocation_too(way: str) -> None:
    before = mapped_bytes()
    assert allocate(0).shape == (0,)
    assert mapped_bytes() == before


def test_what_cannot_be_had_is_an_error_with_the_size_and_role() -> None:
    before = mapped_bytes()
    for size in (1 << 60, 1 << 80):
        with pytest.raises(MemoryError, match=f"cannot allocate {size:,} bytes for the role 'state'"):
            allocate(size, role="state")
    with pytest.raises(ArgumentError, match=r"unknown role 'stack'.*arena, scratch, state, output"):
        allocate(8, role="stack")
    with pytest.raises(ArgumentError, match="unknown role 'stack'"):
        mapped_bytes("stack")
    with pytest.raises(ArgumentError, match="-8 bytes"):
        allocate(-8)
    for alignment in (0, 3, -64):
        with pytest.raises(ArgumentError, match="power of two"):
            allocate(8, alignment)
    assert mapped_bytes() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_has_memory_of_its_own() -> None:
    array = allocate(100)
    child = os.fork()
    if child == 0:
        array[:] = 9
        os._exit(0 if array.all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert not array.any()


@pytest.mark.parametrize("shape", [(), 5, (0, 3), (1,), (7, 3, 5), (1000, 1000)])
@pytest.mark.parametrize("dtype", ["float32", np.float64, np.dtype(np.bool_), "complex128"])
def test_outputs_are_aligned(shape: int | tuple[int, ...], dtype: object) -> None:
    kept = [aligned_empty(shape, dtype) for _ in range(5)]  # type: ignore[arg-type]
    for number, array in enumerate(kept):
        assert array.shape == ((shape,) if isinstance(shape, int) else shape)
        assert array.dtype == np.dtype(dtype)  # type: ignore[call-overload]
        assert address_of(array) % 64 == 0 or array.size == 0
        assert array.flags.c_contiguous and array.flags.writeable
        array[...] = number % 2
    assert all((array == number % 2).all() for number, array in enumerate(kept)), "they overlap"


def test_outputs_may_have_the_types_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = aligned_empty((4, 4), ml_dtypes.bfloat16)
    array[:] = 1.5
    assert (array == 1.5).all() and address_of(array) % 64 == 0


@pytest.mark.parametrize("size", [3, 600_000])  # the larger one lies in a mapping
def test_the_memory_of_a_result_is_used_again_when_nobody_refers_to_it(size: int) -> None:
    if not memory._COUNTED:
        pytest.skip("references are not counted here")
    results = ResultMemory((size,), np.dtype(np.float32))
    first, address = results.take()
    first[:] = 1
    second, other = results.take()
    assert other != address and address_of(second) == other
    seen = first[1:][::2]  # a view of a view keeps the array
    del first
    third = results.take()[1]
    assert third not in (address, other)
    assert (seen == 1).all()
    del seen, second
    assert results.take()[1] in (address, other, third)
    del results


def test_large_results_are_given_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_KEPT_BYTES", 1000)
    assert not ResultMemory((251,), np.dtype(np.float32)).kept.maxlen
    assert ResultMemory((250,), np.dtype(np.float32)).kept.maxlen


def test_threads_never_get_the_same_result() -> None:
    """Each thread fills what it takes with its own number and finds it unchanged."""
    results = ResultMemory((64,), np.dtype(np.int64))
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(2000):
            array, _ = results.take()
            array[:] = number
            if not (array == number).all():
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
