"""Products of 16-bit floating point: summed in float32, rounded once, the same bits everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from thalweg.codegen.c.build import processor
from thalweg.graph import Value
from thalweg.ops.contraction import MatMul
from thalweg.ops.core import apply
from thalweg.ops.elementwise import add, maximum
from thalweg.ops.movement import broadcast_to
from thalweg.runtime.program import NativeProgram

Array = np.ndarray[Any, Any]
Case = tuple[tuple[int, ...], int, int, int, bool, bool]  # leading axes, m, n, k, transpose_a, transpose_b
Make = Callable[..., NativeProgram]

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def odd_cases() -> list[Case]:
    """Odd and even extents, tiles with and without remainders, sums of one and of several blocks."""
    sizes = [(1, 40, 70), (3, 17, 33), (7, 33, 31), (5, 5, 5), (20, 50, 64), (33, 65, 129), (17, 1, 3)]
    cases: list[Case] = [
        ((), m, n, k, bool(flags & 1), bool(flags & 2))
        for number, (m, n, k) in enumerate(sizes)
        for flags in (number % 4, (number + 1) % 4)
    ]
    cases += [((2, 3), 9, 18, 20, bool(flags & 1), bool(flags & 2)) for flags in range(4)]
    return [*cases, ((), 50, 70, 2051, False, True), ((), 50, 70, 2051, True, False)]


def operands(cases: Sequence[Case], dtype: str, draw: Callable[[tuple[int, ...]], Array]) -> list[Array]:
    arrays: list[Array] = []
    for lead, m, n, k, a, b in cases:
        for shape in ((k, m) if a else (m, k), (n, k) if b else (k, n)):
            arrays.append(draw((*lead, *shape)).astype(DTYPES[dtype]))
    return arrays


def products(cases: Sequence[Case]) -> Callable[[Sequence[Value]], list[Value]]:
    return lambda v: [apply(MatMul(c[4], c[5]), v[2 * i], v[2 * i + 1]) for i, c in enumerate(cases)]


def exact(case: Case, left: Array, right: Array) -> Array:
    x, y = left.astype(np.float64), right.astype(np.float64)
    result: Array = (np.swapaxes(x, -1, -2) if case[4] else x) @ (np.swapaxes(y, -1, -2) if case[5] else y)
    return result


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_exact_and_rounded_once(dtype: str, whole_program: Make) -> None:
    """Small whole numbers have sums that float32 holds: only the last rounding is left."""
    random = np.random.default_rng(6)
    cases = odd_cases()
    arrays = operands(cases, dtype, lambda shape: random.integers(-4, 5, shape).astype(np.float32))
    program = whole_program(products(cases), arrays)
    assert "product_" in program.source and ("dot_bf16" in program.source) == (dtype == "bfloat16")
    found = program([])
    for case, left, right, result in zip(cases, arrays[::2], arrays[1::2], found, strict=True):
        expected = exact(case, left, right).astype(np.float32).astype(DTYPES[dtype])
        assert result.tobytes() == expected.tobytes(), case
    for threads in (2, 3, 7):
        again = whole_program(products(cases), arrays, threads)([])
        assert [a.tobytes() for a in again] == [a.tobytes() for a in found]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_instruction_for_pairs_gives_the_bits_of_two_multiply_adds(
    dtype: str, whole_program: Make
) -> None:
    """On a processor with AVX512_BF16 "native" uses the instruction, the other targets its definition."""
    random = np.random.default_rng(7)
    cases: list[Case] = [((), 13, 70, 530, False, False), ((), 7, 33, 21, True, True)]
    cases += [((), 3, 40, 101, False, True), ((), 20, 17, 1100, False, True)]
    arrays = operands(cases, dtype, random.standard_normal)
    found = whole_program(products(cases), arrays)([])
    for target in ("x86-64-v4", "x86-64-v3", "x86-64"):
        if target == "x86-64-v4" and "avx512vl" not in processor().lower():
            continue
        again = whole_program(products(cases), arrays, 1, target)([])
        assert [a.tobytes() for a in again] == [a.tobytes() for a in found], target


@pytest.mark.parametrize("dtype", DTYPES)
def test_short_products_read_nothing_behind_their_operands(
    dtype: str, whole_program: Make, with_guard: Callable[[Array], Array]
) -> None:
    random = np.random.default_rng(8)
    cases = odd_cases()
    arrays = operands(cases, dtype, random.standard_normal)
    build = products(cases)
    guarded = whole_program(build, [with_guard(array) for array in arrays])([])
    assert [a.tobytes() for a in guarded] == [a.tobytes() for a in whole_program(build, arrays)([])]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_epilogue_gets_the_rounded_product(dtype: str, whole_program: Make) -> None:
    """Bias and ReLU in registers: each result is rounded as if it were stored."""
    random = np.random.default_rng(9)
    shapes = ((18, 40), (33, 40), (33,))
    arrays = [random.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes]
    program = whole_program(
        lambda v: [maximum(add(apply(MatMul(False, True), v[0], v[1]), broadcast_to(v[2], (18, 33))), 0.0)],
        arrays,
    )
    assert [kernel.kind for kernel in program.plan.kernels] == ["matmul"]
    x, w, bias = (array.astype(np.float32) for array in arrays)
    product = (x.astype(np.float64) @ w.T.astype(np.float64)).astype(np.float32).astype(DTYPES[dtype])
    expected = np.maximum((product.astype(np.float32) + bias).astype(DTYPES[dtype]), 0)
    (found,) = program([])
    difference = np.abs(found.astype(np.float32) - expected.astype(np.float32)).max()
    assert difference <= np.abs(expected.astype(np.float32)).max() * 2.0**-7
