"""Row-major convolutions: the references' results on a grid of geometries in the three modes, epilogues, and
the same bits everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from thalweg.graph import Value
from thalweg.ops.contraction import (
    Convolution,
    ConvolutionForward,
    ConvolutionInputGradient,
    ConvolutionWeightGradient,
)
from thalweg.ops.core import apply
from thalweg.ops.elementwise import add, maximum, multiply, subtract
from thalweg.ops.movement import broadcast_to, reshape
from thalweg.runtime.program import NativeProgram

Array = np.ndarray[Any, Any]
Make = Callable[..., NativeProgram]
Pairs = tuple[tuple[int, int], ...]
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}
MODES = ("forward", "input gradient", "weight gradient")


@dataclass(frozen=True)
class Case:
    """A convolution of `batch` images with `channels` of `size` and `filters` of `kernel`."""

    batch: int
    groups: int
    filters: int
    channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]

    def operation(
        self, mode: str, random: np.random.Generator, dtype: str
    ) -> tuple[Convolution, Array, Array]:
        """The op of a mode, and its operands."""
        geometry = (self.strides, self.padding, self.dilation, self.groups)
        forward = ConvolutionForward(*geometry)
        shape = (self.batch, self.channels, *self.size)
        weight = (self.filters, self.channels // self.groups, *self.kernel)
        x, w, y = (
            random.standard_normal(found).astype(dtype)
            for found in (shape, weight, forward.output_shape(shape, weight))
        )
        if mode == "forward":
            return forward, x, w
        if mode == "input gradient":
            return ConvolutionInputGradient(*geometry, self.size), y, w
        return ConvolutionWeightGradient(*geometry, self.kernel), x, y


def plane(
    batch: int, groups: int, filters: int, channels: int, size: tuple[int, int], kernel: int, stride: int = 1,
    pad: int = 0, dilation: int = 1,
) -> Case:  # fmt: skip
    """A case with two axes alike."""
    both = ((kernel,) * 2, (stride,) * 2, ((pad, pad),) * 2, (dilation,) * 2)
    return Case(batch, groups, filters, channels, size, *both)


CASES = [
    plane(1, 1, 8, 3, (9, 11), 3, 1, 1),
    plane(2, 1, 20, 5, (14, 14), 3, 1, 1),
    plane(1, 1, 64, 16, (28, 28), 3, 1, 1),
    plane(3, 1, 9, 4, (15, 17), 3, 2, 1),
    plane(1, 1, 16, 3, (31, 30), 7, 2, 3),
    plane(1, 1, 33, 130, (6, 5), 3, 1, 1),  # sums in several blocks
    plane(1, 1, 130, 20, (9, 9), 3, 1, 2, 2),
    plane(1, 1, 3, 2, (50, 40), 3, 1, 1),  # few filters
    plane(1, 1, 10, 6, (13, 12), 1, 2),  # a tap for one remainder of the stride only
    plane(2, 1, 17, 5, (7, 7), 1),  # products
    plane(1, 3, 27, 6, (12, 9), 1),
    plane(2, 6, 6, 6, (12, 19), 3, 1, 1),  # depthwise
    plane(1, 5, 5, 5, (40, 47), 3, 2, 1),
    plane(1, 3, 3, 3, (90, 33), 5, 1, 2),  # several bands of rows
    plane(2, 4, 4, 4, (9, 20), 3, 3, 2, 2),
    Case(1, 2, 2, 2, (12, 21), (2, 3), (1, 1), ((0, 3), (4, 0)), (3, 2)),
    plane(1, 4, 8, 4, (11, 11), 3, 2, 1),
    plane(1, 1, 7, 3, (1, 1), 3, 1, 1),
    plane(2, 1, 5, 2, (3, 70), 2, 3, 1),
    Case(2, 2, 8, 6, (10, 10), (3, 2), (1, 2), ((0, 2), (1, 0)), (2, 1)),
    Case(1, 1, 5, 3, (20, 20), (5, 5), (3, 3), ((2, 2), (4, 4)), (1, 1)),
    Case(2, 1, 8, 4, (4, 4), (3, 3), (1, 1), ((3, 3), (0, 0)), (1, 1)),
    Case(1, 1, 8, 3, (6, 9), (4, 4), (2, 3), ((1, 0), (0, 2)), (2, 1)),
    Case(3, 1, 9, 4, (40,), (5,), (1,), ((2, 2),), (1,)),
    Case(2, 1, 12, 7, (33,), (4,), (3,), ((1, 2),), (2,)),
    Case(1, 2, 4, 4, (600,), (9,), (2,), ((4, 4),), (1,)),
    Case(1, 1, 8, 2, (5, 6, 7), (3, 3, 3), (1, 1, 1), ((1, 1),) * 3, (1, 1, 1)),
    Case(2, 1, 9, 3, (6, 7, 5), (2, 3, 2), (2, 1, 2), ((1, 0), (0, 1), (1, 1)), (1, 2, 1)),
    Case(1, 3, 3, 3, (4, 5, 18), (3, 3, 3), (1, 1, 1), ((1, 1),) * 3, (1, 1, 1)),
]


def program_of(
    make: Make, operations: Sequence[tuple[Convolution, Array, Array]], **options: Any
) -> tuple[NativeProgram, list[Array]]:
    """All convolutions in one program, and its results."""
    arrays = [array for _, *both in operations for array in both]

    def build(v: Sequence[Value]) -> list[Value]:
        return [apply(op, v[2 * i], v[2 * i + 1]) for i, (op, _, _) in enumerate(operations)]

    program = make(build, arrays, **options)
    return program, program([])


def same_bits(first: Sequence[Array], second: Sequence[Array]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", MODES)
def test_geometries(mode: str, dtype: str, whole_program: Make) -> None:
    random = np.random.default_rng(0)
    operations = [case.operation(mode, random, dtype) for case in CASES]
    program, found = program_of(whole_program, operations)
    assert {kernel.role for kernel in program.plan.kernels} == {"whole"}
    assert "window_f" in program.source and "product_f" in program.source
    assert ("dots_f" in program.source) == (mode == "weight gradient")
    for case, (op, first, second), result in zip(CASES, operations, found, strict=True):
        expected = op.reference(first.astype(np.float64), second.astype(np.float64))
        assert result.shape == expected.shape and result.dtype == np.dtype(dtype)
        scale = np.abs(expected).max()
        assert np.abs(result - expected).max() <= TOLERANCE[dtype] * scale, case
    for threads in (2, 3, 7):
        assert same_bits(found, program_of(whole_program, operations, threads=threads)[1])


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_read_behind_the_operands(
    mode: str, whole_program: Make, with_guard: Callable[[Array], Array]
) -> None:
    random = np.random.default_rng(0)
    operations = [case.operation(mode, random, "float32") for case in CASES]
    behind = [(op, with_guard(first), with_guard(second)) for op, first, second in operations]
    assert same_bits(program_of(whole_program, operations)[1], program_of(whole_program, behind)[1])


@pytest.mark.parametrize("mode", MODES)
def test_same_bits_for_every_instruction_set(mode: str, whole_program: Make) -> None:
    random = np.random.default_rng(1)
    chosen = [CASES[0], CASES[3], CASES[11], CASES[15], CASES[20]]
    for dtype in TOLERANCE:
        operations = [case.operation(mode, random, dtype) for case in chosen]
        _, found = program_of(whole_program, operations)
        for target in ("x86-64-v3", "x86-64"):
            assert same_bits(found, program_of(whole_program, operations, target=target)[1]), (dtype, target)


def test_sixteen_bit_and_empty_convolutions_take_plain_loops(whole_program: Make) -> None:
    random = np.random.default_rng(2)
    half = plane(1, 1, 4, 3, (6, 6), 3, 1, 1).operation("forward", random, "float16")
    empty = plane(0, 1, 4, 3, (6, 6), 3, 1, 1)
    _, found = program_of(
        whole_program, [half, *(empty.operation(mode, random, "float32") for mode in MODES)]
    )
    np.testing.assert_allclose(
        found[0].astype(np.float32), half[0].reference(*half[1:]).astype(np.float32), rtol=5e-3, atol=5e-3
    )
    assert found[1].shape == (0, 4, 6, 6) and found[2].shape == (0, 3, 6, 6)
    assert found[3].shape == (4, 3, 3, 3) and not found[3].any()


def test_infinities_stay_where_they_belong(whole_program: Make) -> None:
    """Positions between rows, which tiles compute too, never reach a result."""
    random = np.random.default_rng(3)
    op, x, w = plane(1, 1, 8, 2, (9, 21), 3).operation("forward", random, "float32")
    x[0, 1, 4, 20] = np.inf
    gradient, _, g = plane(1, 1, 8, 2, (9, 21), 3).operation("weight gradient", random, "float32")
    narrow, _, few = plane(1, 1, 3, 2, (9, 21), 3).operation("weight gradient", random, "float32")
    _, found = program_of(whole_program, [(op, x, w), (gradient, x, g), (narrow, x, few)])
    for result, expected in zip(
        found, (op.reference(x, w), gradient.reference(x, g), narrow.reference(x, few)), strict=True
    ):
        assert (np.isfinite(result) == np.isfinite(expected)).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_epilogues(threads: int, whole_program: Make) -> None:
    """Bias, ReLU and a residual behind a convolution; the update of a weight, in place, behind its
    gradient."""
    random = np.random.default_rng(4)
    cases = [plane(2, 1, 20, 6, (13, 21), 3, 1, 1), plane(1, 1, 9, 4, (7, 7), 3, 2, 1)]
    cases += [plane(2, 1, 16, 8, (6, 7), 1), plane(2, 8, 8, 8, (12, 21), 3, 1, 1)]
    operations = [case.operation("forward", random, "float32") for case in cases]
    gradients = [case.operation("weight gradient", random, "float32") for case in cases]
    arrays: list[Array] = []
    weights: list[Array] = []
    for (_, x, w), (_, _, g) in zip(operations, gradients, strict=True):
        arrays += [x, w, random.standard_normal(w.shape[0]).astype(np.float32), g]
        weights.append(random.standard_normal(w.shape).astype(np.float32))
    before = [weight.copy() for weight in weights]

    def build(v: Sequence[Value]) -> list[Value]:
        results: list[Value] = []
        updates: list[Value] = []
        for i, ((op, _, _), (gradient, _, _)) in enumerate(zip(operations, gradients, strict=True)):
            x, w, bias, residual = v[4 * i : 4 * i + 4]
            spread = broadcast_to(reshape(bias, (bias.shape[0], *(1,) * (x.ndim - 2))), residual.shape)
            results.append(maximum(add(add(apply(op, x, w), spread), residual), 0.0))
            updates.append(subtract(v[4 * len(cases) + i], multiply(apply(gradient, x, residual), 0.5)))
        return [*results, *updates]

    program = whole_program(build, [*arrays, *weights], threads, after=len(cases))
    assert len(program.plan.kernels) == 2 * len(cases)
    found = program([])
    for i, ((op, x, w), (gradient, _, g)) in enumerate(zip(operations, gradients, strict=True)):
        bias = arrays[4 * i + 2][:, None, None]
        expected = np.maximum(op.reference(x.astype(np.float64), w.astype(np.float64)) + bias + g, 0)
        np.testing.assert_allclose(found[i], expected, rtol=1e-5, atol=1e-4)
        update = before[i] - 0.5 * gradient.reference(x.astype(np.float64), g.astype(np.float64))
        np.testing.assert_allclose(weights[i], update, rtol=1e-5, atol=1e-3)


def test_channels_that_look_like_a_batch(whole_program: Make) -> None:
    """Where the weight is an input of the program, an axis of filters may be taken for the batch."""
    import thalweg as tw

    random = np.random.default_rng(7)
    x, w = (random.standard_normal(shape).astype(np.float32) for shape in ((1, 4, 9, 9), (32, 4, 3, 3)))

    @tw.compile(backend="c")
    def convolve(x: tw.Tensor, w: tw.Tensor) -> tw.Tensor:
        return tw.nn.functional.conv2d(x, w)

    op = ConvolutionForward((1, 1), ((0, 0),) * 2, (1, 1), 1)
    np.testing.assert_allclose(convolve(x, w).numpy(), op.reference(x, w), rtol=1e-4, atol=1e-5)
