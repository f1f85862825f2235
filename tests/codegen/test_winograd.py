"""Winograd's convolution: near the direct ones on odd sizes, the same bits everywhere, and its choice."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from thalweg.graph import Value
from thalweg.ops.contraction import ConvolutionForward, ConvolutionInputGradient, ConvolutionWeightGradient
from thalweg.ops.core import apply
from thalweg.ops.elementwise import add, maximum, multiply
from thalweg.ops.movement import broadcast_to, reshape
from thalweg.runtime.program import NativeProgram
from thalweg.schedule import winograd

Array = np.ndarray[Any, Any]
Make = Callable[..., NativeProgram]
TOLERANCE = 5e-6  # of the largest result; a direct convolution has about 1e-6

# batch, channels, filters, size, padding
CASES = [
    (1, 16, 16, (8, 8), ((1, 1), (1, 1))),
    (3, 20, 37, (13, 19), ((1, 0), (2, 1))),
    (1, 64, 64, (33, 56), ((1, 1), (1, 1))),
    (2, 513, 80, (7, 7), ((1, 1), (1, 1))),
    (5, 33, 130, (9, 30), ((0, 0), (0, 0))),
    (8, 48, 64, (7, 5), ((1, 1), (1, 1))),
    (9, 17, 16, (3, 4), ((2, 2), (0, 1))),
]


def arrays_of(case: Any) -> tuple[list[Array], Any]:
    """Input, weight and cotangent of a case, and its padding."""
    batch, channels, filters, size, padding = case
    random = np.random.default_rng(channels)
    op = ConvolutionForward((1, 1), padding, (1, 1), 1)
    x = random.standard_normal((batch, channels, *size))
    w = random.standard_normal((filters, channels, 3, 3))
    g = random.standard_normal(op.output_shape(x.shape, w.shape))
    return [array.astype("float32") for array in (x, w, g)], padding


def winograd_modes(case: Any) -> Callable[[Any], list[Value]]:
    """The three modes by Winograd's ops, whatever the cost model would choose."""
    batch, channels, filters, _, padding = case
    back = tuple((2 - low, 2 - high) for low, high in padding)

    def build(values: Any) -> list[Value]:
        x, w, g = values
        products = winograd.WinogradProducts(padding, winograd.slots(batch, channels, filters))
        return [
            apply(winograd.WinogradConvolution(filters, padding), x, apply(winograd.WinogradFilters(), w)),
            apply(winograd.WinogradConvolution(channels, back), g, apply(winograd.WinogradFilters(True), w)),
            apply(winograd.WinogradWeightGradient(filters), apply(products, x, g)),
        ]

    return build


def direct_modes(arrays: list[Array], padding: Any) -> list[Array]:
    """The same by definition, in float64."""
    x, w, g = (array.astype(np.float64) for array in arrays)
    geometry = ((1, 1), padding, (1, 1), 1)
    return [
        ConvolutionForward(*geometry).reference(x, w),
        ConvolutionInputGradient(*geometry, x.shape[2:]).reference(g, w),
        ConvolutionWeightGradient(*geometry, (3, 3)).reference(x, g),
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_references_are_convolutions(case: Any) -> None:
    arrays, padding = arrays_of(case)
    x, w, g = (array.astype(np.float64) for array in arrays)
    _, channels, filters, _, _ = case
    back = tuple((2 - low, 2 - high) for low, high in padding)
    found = [
        winograd.WinogradConvolution(filters, padding).reference(x, winograd.WinogradFilters().reference(w)),
        winograd.WinogradConvolution(channels, back).reference(
            g, winograd.WinogradFilters(True).reference(w)
        ),
        winograd.WinogradWeightGradient(filters).reference(
            winograd.WinogradProducts(padding, 2).reference(x, g)
        ),
    ]
    for result, expected in zip(found, direct_modes(arrays, padding), strict=True):
        assert np.abs(result - expected).max() <= 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels(case: Any, whole_program: Make) -> None:
    arrays, padding = arrays_of(case)
    build = winograd_modes(case)
    found = whole_program(build, arrays)([])
    for result, expected in zip(found, direct_modes(arrays, padding), strict=True):
        assert result.shape == expected.shape
        assert np.abs(result - expected).max() <= TOLERANCE * np.abs(expected).max()
    for threads in (2, 3, 7):
        again = whole_program(build, arrays, threads=threads)([])
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found, again, strict=True))


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="instruction sets of x86-64"
)
@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64"])
def test_other_instruction_sets_give_the_same_bits(target: str, whole_program: Make) -> None:
    for case in CASES[1:4]:
        arrays, _ = arrays_of(case)
        expected = whole_program(winograd_modes(case), arrays)([])
        found = whole_program(winograd_modes(case), arrays, target=target)([])
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True))


def test_epilogue(whole_program: Make) -> None:
    """Scale and shift per channel, a residual and ReLU belong to the convolution's kernel."""
    random = np.random.default_rng(3)
    shape = (2, 32, 21, 21)
    x, residual = (random.standard_normal(shape).astype("float32") for _ in range(2))
    w = random.standard_normal((32, 32, 3, 3)).astype("float32")
    scale, shift = (random.standard_normal(32).astype("float32") for _ in range(2))

    def build(v: Any) -> list[Value]:
        y = apply(ConvolutionForward((1, 1), ((1, 1), (1, 1)), (1, 1), 1), v[0], v[1])
        a, b = (broadcast_to(reshape(s, (32, 1, 1)), shape) for s in (v[2], v[3]))
        return [maximum(add(add(multiply(y, a), b), v[4]), 0.0)]

    program = whole_program(build, [x, w, scale, shift, residual])
    assert [k.kind for k in program.plan.kernels] == ["winograd_filters", "winograd_convolution"]
    y = ConvolutionForward((1, 1), ((1, 1), (1, 1)), (1, 1), 1).reference(x.astype("f8"), w.astype("f8"))
    expected = np.maximum(y * scale[:, None, None] + shift[:, None, None] + residual, 0)
    (found,) = program([])
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def kinds(case: Any, **options: Any) -> set[str]:
    """Kinds of the kernels of a training step's convolution on images of a case."""
    import thalweg as tw
    from thalweg import nn, optim

    batch, channels, filters, size, padding = case
    layer = nn.Conv2d(channels, filters, 3, padding=padding[0][0], stride=options.pop("stride", 1))
    step = optim.SGD(layer.parameters(), lr=0.1)

    @tw.compile(**options)
    def train(x: Any) -> Any:
        x = x * 2
        loss = (layer(x) ** 2).sum()
        step.minimize(loss)
        return loss

    return {kernel.kind for kernel in train.plan(tw.spec((batch, channels, *size))).kernels}


def test_the_cost_model_chooses() -> None:
    """Many channels: Winograd. Strides, few channels, winograd=False: direct."""
    deep = (4, 64, 64, (40, 40), ((1, 1), (1, 1)))
    assert {"winograd_convolution", "winograd_products", "winograd_weight_gradient"} <= kinds(deep)
    few = (4, 3, 64, (40, 40), ((1, 1), (1, 1)))
    for case, options in ((few, {}), (deep, {"stride": 2}), (deep, {"winograd": False})):
        found = kinds(case, **options)
        assert "convolution" in found and not any(kind.startswith("winograd") for kind in found)


def test_transformed_filters_are_kept_until_the_weight_changes() -> None:
    import thalweg as tw
    from thalweg import nn

    layer = nn.Conv2d(32, 32, 3, padding=1)
    x = np.random.default_rng(0).standard_normal((1, 32, 24, 24)).astype("float32")
    compiled = tw.compile(layer)
    plan = compiled.plan(x)
    assert plan.kept == 1 and [k.kind for k in plan.phases[0].kernels] == ["winograd_filters"]
    first = compiled(x).numpy()
    assert compiled(x).numpy().tobytes() == first.tobytes()
    layer.weight.assign(layer.weight * 2)
    layer.bias.assign(layer.bias * 2)
    assert compiled(x).numpy().tobytes() == (first * 2).tobytes()
