"""Programs made from a few nodes, for tests of kernels."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from thalweg.graph import Builder, Graph, State, Value, using
from thalweg.runtime.program import NativeProgram
from thalweg.types import type_of

Array = np.ndarray[Any, Any]
Build = Callable[[Sequence[Value]], Sequence[Value]]


class Parameter:
    """An array that a program reads as state, so that no axis of it counts samples."""

    name = "parameter"
    version = 0

    def __init__(self, data: Array) -> None:
        self.data = data
        self.address = data.ctypes.data

    def storage_for_update(self) -> Array:
        return self.data


@pytest.fixture
def whole_program(needs_compiler: None) -> Callable[..., NativeProgram]:
    """A function `(build, arrays, threads=1, target="native", after=0)` that makes a program whose kernels
    see whole values.

    `build` makes the results from values that stand for the arrays; the last `after` results become the new
    values of the last `after` arrays instead of outputs.
    """

    def make(
        build: Build, arrays: Sequence[Array], threads: int = 1, target: str = "native", after: int = 0
    ) -> NativeProgram:
        values = [Value(type_of(array)) for array in arrays]
        with using(Builder()) as builder:
            results = list(build(values))
        updates = [None] * (len(values) - after) + results[len(results) - after :]
        state = tuple(
            State(value, update, Parameter(array))
            for value, update, array in zip(values, updates, arrays, strict=True)
        )
        outputs = tuple(results[: len(results) - after])
        graph = Graph((), tuple(builder.nodes), outputs, state).verify()
        return NativeProgram(graph, threads, target)

    return make


def guarded(array: Array) -> Array:
    """A copy that ends where a page begins that nobody may touch: reading past its end kills the process."""
    libc = ctypes.CDLL(None)
    page = mmap.PAGESIZE
    length = -(-max(array.nbytes, 1) // page) * page
    memory = mmap.mmap(-1, length + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if libc.mprotect(ctypes.c_void_p(address + length), ctypes.c_size_t(page), 0) != 0:
        pytest.skip("pages cannot be protected")
    copy = np.frombuffer(memory, array.dtype, array.size, length - array.nbytes).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.fixture
def with_guard() -> Callable[[Array], Array]:
    """`guarded`, where the system lets a test protect pages."""
    if sys.platform != "linux":
        pytest.skip("protects pages as on Linux")
    return guarded
