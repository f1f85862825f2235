"""Row-major matrix products: NumPy's float64 results on odd shapes, epilogues, accuracy, and the same bits
everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from thalweg.graph import Value
from thalweg.ops.contraction import MatMul
from thalweg.ops.core import apply
from thalweg.ops.elementwise import add, maximum, multiply, subtract
from thalweg.ops.movement import broadcast_to, reshape
from thalweg.runtime.program import NativeProgram

Array = np.ndarray[Any, Any]
Case = tuple[tuple[int, ...], int, int, int, bool, bool]  # leading axes, m, n, k, transpose_a, transpose_b
Make = Callable[..., NativeProgram]

SIZES = (0, 1, 2, 3, 15, 16, 17, 31, 33, 47, 64, 100)
TOLERANCE = {"float32": 2e-6, "float64": 2e-14, "int32": 0.0}
X86 = ("x86-64-v3", "x86-64")


def odd_cases() -> list[Case]:
    """Every size as m, n and k a few times, all flags; long sums, many rows, batch axes."""
    random = np.random.default_rng(5)
    cases: list[Case] = []
    for number in range(36):
        places = (number, 5 * number + number // 12, 7 * number + number // 6)
        m, n, k = (SIZES[place % 12] for place in places)
        cases.append(((), m, n, k, bool(random.integers(2)), bool(random.integers(2))))
    for flags in ((False, False), (False, True), (True, False), (True, True)):
        cases += [((2, 3), 7, 18, 20, *flags), ((), 101, 70, 1030, *flags), ((2,), 3, 34, 33, *flags)]
    cases += [((), 400, 17, 600, False, False), ((), 50, 20, 1024, False, True)]
    for number, (m, n, k) in enumerate([(40, 1, 70), (37, 3, 33), (20, 5, 140), (21, 40, 150), (32, 9, 128)]):
        cases += [((2,) * (number % 2), m, n, k, bool(flags & 1), bool(flags & 2)) for flags in range(4)]
    return [*cases, ((), 1, 200, 9, False, False)]


def operands(cases: Sequence[Case], dtype: str) -> list[Array]:
    random = np.random.default_rng(1)
    arrays: list[Array] = []
    for lead, m, n, k, a, b in cases:
        for shape in ((k, m) if a else (m, k), (n, k) if b else (k, n)):
            arrays.append((random.standard_normal((*lead, *shape)) * 3).astype(dtype))
    return arrays


def products(cases: Sequence[Case]) -> Callable[[Sequence[Value]], list[Value]]:
    return lambda v: [apply(MatMul(c[4], c[5]), v[2 * i], v[2 * i + 1]) for i, c in enumerate(cases)]


def exact(case: Case, left: Array, right: Array) -> Array:
    wide = np.float64 if left.dtype.kind == "f" else np.int64
    x, y = left.astype(wide), right.astype(wide)
    return (np.swapaxes(x, -1, -2) if case[4] else x) @ (np.swapaxes(y, -1, -2) if case[5] else y)


def same_bits(first: Sequence[Array], second: Sequence[Array]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_products_of_odd_shapes(dtype: str, whole_program: Make) -> None:
    cases = odd_cases()
    arrays = operands(cases, dtype)
    program = whole_program(products(cases), arrays)
    assert {kernel.role for kernel in program.plan.kernels} == {"whole"}
    assert ("product_f" in program.source) == (dtype != "int32")
    found = program([])
    for case, left, right, result in zip(cases, arrays[::2], arrays[1::2], found, strict=True):
        expected = exact(case, left, right)
        assert result.shape == expected.shape and result.dtype == np.dtype(dtype)
        scale = np.abs(expected).max(initial=0)
        assert np.abs(result - expected).max(initial=0) <= TOLERANCE[dtype] * scale, case
    for threads in (2, 3, 7):
        assert same_bits(found, whole_program(products(cases), arrays, threads)([]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_read_nothing_behind_their_operands(
    dtype: str, whole_program: Make, with_guard: Callable[[Array], Array]
) -> None:
    cases = [case for case in odd_cases() if min(case[1:4]) > 0]
    arrays = operands(cases, dtype)
    build = products(cases)
    assert same_bits(
        whole_program(build, [with_guard(array) for array in arrays])([]), whole_program(build, arrays)([])
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_have_the_same_bits_for_every_instruction_set(dtype: str, whole_program: Make) -> None:
    cases: list[Case] = [
        ((), 13, 70, 530, False, False), ((), 7, 33, 20, True, True), ((), 3, 40, 100, False, True),
        ((2,), 1, 200, 17, False, False), ((), 50, 17, 35, False, True), ((), 20, 3, 60, False, False),
        ((2,), 21, 18, 130, True, True),
    ]  # fmt: skip
    arrays = operands(cases, dtype)
    found = whole_program(products(cases), arrays)([])
    for target in X86:
        assert same_bits(found, whole_program(products(cases), arrays, 1, target)([])), target


def test_long_sums_are_as_exact_as_those_of_numpy(whole_program: Make) -> None:
    """Blocks of the sum keep rounding errors below twice those of NumPy's product."""
    random = np.random.default_rng(2)
    shapes = ((64, 4096), (4096, 48), (3, 4096), (32, 4096))
    arrays = [random.uniform(0, 1, shape).astype(np.float32) for shape in shapes]
    (tiled, dots) = whole_program(
        lambda v: [apply(MatMul(), v[0], v[1]), apply(MatMul(False, True), v[2], v[3])], arrays
    )([])
    for found, x, y in ((tiled, arrays[0], arrays[1]), (dots, arrays[2], arrays[3].T)):
        expected = x.astype(np.float64) @ y.astype(np.float64)
        own, numpys = (np.abs(result - expected).max() for result in (found, x @ y))
        assert own <= 2 * numpys + 1e-7 * expected.max()


def test_epilogues_on_registers(whole_program: Make) -> None:
    """Bias, ReLU and a residual behind products with full and partial vectors; several results a kernel."""
    random = np.random.default_rng(3)
    sizes = [(5, 33, 20), (64, 64, 600), (2, 40, 30), (17, 16, 7)]
    arrays: list[Array] = []
    for m, n, k in sizes:
        shapes = ((m, k), (n, k), (n,), (m, n))
        arrays += [random.standard_normal(shape).astype(np.float32) for shape in shapes]

    def build(v: Sequence[Value]) -> list[Value]:
        results: list[Value] = []
        for i in range(0, len(v), 4):
            x, w, bias, residual = v[i : i + 4]
            y = add(apply(MatMul(False, True), x, w), broadcast_to(bias, residual.shape))
            results += [y, add(maximum(y, 0.0), residual)]
        return results

    program = whole_program(build, arrays)
    assert [kernel.kind for kernel in program.plan.kernels] == ["matmul"] * len(sizes)
    found = program([])
    for i in range(len(sizes)):
        x, w, bias, residual = (array.astype(np.float64) for array in arrays[4 * i : 4 * i + 4])
        y = x @ w.T + bias
        np.testing.assert_allclose(found[2 * i], y, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(found[2 * i + 1], np.maximum(y, 0) + residual, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_update_behind_a_weight_gradient_happens_once(threads: int, whole_program: Make) -> None:
    """weight -= 0.5 * x^T g in the epilogue, in place, over several blocks of the sum."""
    random = np.random.default_rng(4)
    shapes = ((1200, 37), (1200, 50), (37, 50))
    arrays = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    expected = arrays[2] - 0.5 * (arrays[0].astype(np.float64).T @ arrays[1])
    program = whole_program(
        lambda v: [subtract(v[2], multiply(apply(MatMul(True, False), v[0], v[1]), 0.5))],
        arrays,
        threads,
        after=1,
    )
    assert len(program.plan.kernels) == 1
    program([])
    np.testing.assert_allclose(arrays[2], expected, rtol=1e-4, atol=1e-4)


def test_an_epilogue_may_read_another_order_of_the_result(whole_program: Make) -> None:
    """A reshaped operand is read where it lies."""
    random = np.random.default_rng(6)
    arrays = [random.standard_normal(shape).astype(np.float32) for shape in ((6, 20), (20, 35), (2, 3, 7, 5))]
    (found,) = whole_program(lambda v: [add(apply(MatMul(), v[0], v[1]), reshape(v[2], (6, 35)))], arrays)([])
    np.testing.assert_allclose(found, arrays[0] @ arrays[1] + arrays[2].reshape(6, 35), rtol=1e-5, atol=1e-5)
