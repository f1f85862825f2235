"""The attention kernels of the C backend: values and gradients, bits, memory."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg.nn import functional

pytestmark = pytest.mark.usefixtures("needs_compiler")

Arrays = list[np.ndarray[Any, Any]]


def operands(lead: tuple[int, ...], length: int, keys: int, size: int, width: int, groups: int = 0) -> Arrays:
    """Queries, keys, values and the gradient of the result."""
    random = np.random.default_rng(length)
    few = (*lead[:-1], groups) if groups else lead
    shapes = ((*lead, length, size), (*few, keys, size), (*few, keys, width), (*lead, length, width))
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def step(backend: str, causal: bool, grouped: bool = False, **options: Any) -> Any:
    """A compiled function that gives the result and the gradients of query, key, value (and a mask)."""

    def run(query: Any, key: Any, value: Any, g: Any, mask: Any = None) -> Any:
        def attention(query: Any, key: Any, value: Any, *bias: Any) -> Any:
            seen = bias[0] if bias else mask
            return functional.scaled_dot_product_attention(
                query, key, value, seen, is_causal=causal, enable_gqa=grouped
            )

        added = () if mask is None or mask.dtype.is_bool else (mask,)
        result, back = tw.vjp(attention, query, key, value, *added)
        return (result, *back(g))

    return tw.compile(run, backend=backend, **options)


def kernels(compiled: Any, arrays: Arrays) -> list[str]:
    return [kernel.name for kernel in compiled.plan(*arrays).kernels if "attention" in kernel.name]


def masks(length: int, keys: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(3)
    rows = random.random((length, keys)) < 0.6
    rows[2] = False  # a query that sees nothing
    return {
        "rows": rows,
        "keys": random.random((2, 1, 1, keys)) < 0.7,
        "heads": random.standard_normal((3, length, keys)).astype(np.float32),
        "added": random.standard_normal((2, 1, 1, keys)).astype(np.float32),
    }


CASES = [
    # lead, queries, keys, size, width, heads of the keys, causal
    ((2, 3), 37, 37, 16, 16, 0, False),
    ((1, 4), 67, 67, 48, 32, 2, True),
    ((1,), 300, 333, 64, 64, 0, False),
    ((2,), 290, 290, 16, 80, 0, True),
    ((1, 2), 131, 70, 32, 32, 1, True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_kernels_agree_with_the_reference(case: Any) -> None:
    lead, length, keys, size, width, groups, causal = case
    arrays = operands(lead, length, keys, size, width, groups)
    compiled = step("c", causal, bool(groups), threads=2)
    assert len(kernels(compiled, arrays)) == 2
    for found, expected in zip(
        compiled(*arrays), step("numpy", causal, bool(groups))(*arrays), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("name", ["rows", "keys", "heads", "added"])
def test_masks(name: str) -> None:
    mask = masks(41, 50)[name]
    arrays = [*operands((2, 3), 41, 50, 32, 16), mask]
    compiled = step("c", name == "keys", threads=1)
    assert len(kernels(compiled, arrays)) == 2
    for found, expected in zip(compiled(*arrays), step("numpy", name == "keys")(*arrays), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-6)
    if name == "rows":
        assert not np.asarray(compiled(*arrays)[0])[..., 2, :].any()


def bits(arrays: Arrays, causal: bool, **options: Any) -> bytes:
    return b"".join(np.asarray(x).tobytes() for x in step("c", causal, **options)(*arrays))


@pytest.mark.parametrize("causal", [False, True])
def test_the_same_bits_for_any_number_of_threads_and_every_instruction_set(causal: bool) -> None:
    arrays = operands((2, 3), 141, 141, 32, 48)
    expected = bits(arrays, causal, threads=1)
    for threads in (2, 3, 7):
        assert bits(arrays, causal, threads=threads) == expected
    if platform.machine() in ("x86_64", "AMD64"):
        assert bits(arrays, causal, threads=2, target="x86-64") == expected
        information = Path("/proc/cpuinfo")
        flags = information.read_text(encoding="utf-8") if information.exists() else ""
        if " avx2 " in flags and " fma " in flags:
            assert bits(arrays, causal, threads=2, target="x86-64-v3") == expected


def test_memory_grows_with_the_sequence_and_not_with_its_square() -> None:
    def planned(length: int) -> int:
        memory = step("c", True).plan(*operands((1, 2), length, length, 64, 64)).memory(threads=2)
        return memory["arena"] + memory["scratch"]

    short, long = planned(512), planned(8192)
    assert long < 17 * short


@pytest.mark.parametrize(
    ("lead", "length", "size", "dtype"),
    [((2,), 5, 32, "float32"), ((2,), 40, 24, "float32"), ((2,), 40, 32, "float64")],
)
def test_what_the_kernels_cannot_do_goes_through_the_body(
    lead: tuple[int, ...], length: int, size: int, dtype: str
) -> None:
    arrays = [x.astype(dtype) for x in operands(lead, length, 40, size, size)]
    compiled = step("c", False)
    assert not kernels(compiled, arrays)
    for found, expected in zip(compiled(*arrays), step("numpy", False)(*arrays), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-6)
