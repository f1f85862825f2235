"""Functions that are no ops of their own, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import thalweg.ops as ops
from thalweg import types
from thalweg.errors import ArgumentError, DTypeError, ShapeError
from thalweg.graph import trace_graph
from thalweg.interpret import interpret
from thalweg.ops.samples import special, special_pairs, values

Array = np.ndarray[Any, Any]


def run(function: Callable[..., Any], *arrays: Any) -> Any:
    """The value of a function of operands (a tuple where it gives several)."""
    arrays = tuple(np.asarray(array) for array in arrays)
    results = interpret(trace_graph(function, [types.type_of(array) for array in arrays]).verify(), arrays)
    return results[0] if len(results) == 1 else tuple(results)


def same(actual: Array, expected: Any, dtype: Any = None) -> None:
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == (expected.dtype if dtype is None else dtype)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", ["trunc", "isnan", "isinf", "isfinite", "square", "reciprocal"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_unary_on_special_values(name: str, dtype: str) -> None:
    x = special(dtype)
    with np.errstate(all="ignore"):
        expected = getattr(np, name)(x)
    result = run(getattr(ops, name), x)
    same(result, expected)
    if result.dtype != np.bool_:
        np.testing.assert_array_equal(np.signbit(result), np.signbit(expected))


@pytest.mark.parametrize("name", ["isnan", "isinf", "isfinite", "trunc"])
def test_unary_on_integers(name: str) -> None:
    x = np.array([-3, 0, 7], np.int16)
    same(run(getattr(ops, name), x), getattr(np, name)(x))


@pytest.mark.parametrize("name", ["logical_and", "logical_or", "logical_xor"])
def test_logic(name: str) -> None:
    for x, y in (
        special_pairs(),
        (np.array([True, False]), np.array([2, 0])),
        (np.array([0, 1]), np.float32(0)),
    ):
        same(run(getattr(ops, name), x, y), getattr(np, name)(x, y))
    same(run(ops.logical_not, special()), np.logical_not(special()))


@pytest.mark.parametrize("name", ["greater", "greater_equal", "not_equal"])
def test_comparisons(name: str) -> None:
    x, y = special_pairs()
    same(run(getattr(ops, name), x, y), getattr(np, name)(x, y))


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1), -1])
@pytest.mark.parametrize("name", ["any", "all"])
def test_any_and_all(name: str, axis: Any, keepdims: bool) -> None:
    for x in (
        values(3, 4) > 1.5,
        np.zeros((3, 0)),
        np.array([[0.0, np.nan], [0.0, -0.0]]),
        values(2, 2, dtype="int8"),
    ):
        expected = getattr(np, name)(x, axis=axis, keepdims=keepdims)
        same(run(lambda v: getattr(ops, name)(v, axis, keepdims), x), expected)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int64", "uint64"])
def test_integer_sums_are_64_bit(dtype: str) -> None:
    x = values(300, dtype=dtype, low=0, high=100)
    for name in ("sum", "prod"):
        same(run(getattr(ops, name), x), getattr(np, name)(x))
    same(run(lambda v: ops.cumulative_sum(v), x), np.cumsum(x))


def test_float32_sums_are_rounded_once() -> None:
    x = values(100_000, low=0, high=1)
    exact = np.float32(x.astype(np.float64).sum())
    assert run(ops.sum, x) == exact
    assert run(lambda v: ops.sum(v, 0), x.reshape(-1, 1))[0] == exact
    half = np.full(10_000, 0.1, np.float16)
    assert abs(float(run(ops.mean, half)) - float(half[0])) < 1e-4


def test_float16_sums_do_not_stall() -> None:
    """2048 + 1 is 2048 in float16: accumulation must be wider."""
    assert run(ops.sum, np.ones(5000, np.float16)) == 5000


@pytest.mark.parametrize("name", ["tril", "triu"])
@pytest.mark.parametrize("k", [-3, -1, 0, 1, 5])
def test_triangles(name: str, k: int) -> None:
    for x in (
        values(3, 4),
        values(2, 4, 3, dtype="int8"),
        np.full((3, 3), np.nan, np.float32),
        np.zeros((0, 2)),
    ):
        same(run(lambda v: getattr(ops, name)(v, k), x), getattr(np, name)(x, k))
    with pytest.raises(ShapeError, match="two axes"):
        run(getattr(ops, name), values(3))


@pytest.mark.parametrize("repeats", [0, 1, 3])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_repeat(repeats: int, axis: int | None) -> None:
    same(run(lambda v: ops.repeat(v, repeats, axis), values(2, 3)), np.repeat(values(2, 3), repeats, axis))


def test_repeat_by_counts() -> None:
    x = values(2, 3)
    same(run(lambda v: ops.repeat(v, [2, 0, 1], 1), x), np.repeat(x, [2, 0, 1], 1))
    with pytest.raises(ShapeError, match="expected 3"):
        run(lambda v: ops.repeat(v, [2, 0], 1), x)
    with pytest.raises(ArgumentError, match="negative"):
        run(lambda v: ops.repeat(v, -1), x)


@pytest.mark.parametrize("repetitions", [0, 2, (2, 1), (3, 1, 2), (1, 1, 1, 2)])
def test_tile(repetitions: Any) -> None:
    for x in (values(2, 3), values(), values(0, 2)):
        same(run(lambda v: ops.tile(v, repetitions), x), np.tile(x, repetitions))


@pytest.mark.parametrize(
    ("shift", "axis"), [(1, None), (-7, None), (2, 0), (-1, 1), ((1, 1), (0, 0)), ((1, -2), (1, 0)), (9, 1)]
)
def test_roll(shift: Any, axis: Any) -> None:
    for x in (values(3, 4), values(0, 2)):
        same(run(lambda v: ops.roll(v, shift, axis), x), np.roll(x, shift, axis))


@pytest.mark.parametrize("indexing", ["xy", "ij"])
def test_meshgrid(indexing: Any) -> None:
    lines = values(2), values(3), values(4)
    for count in (1, 2, 3):
        results = run(lambda *v: ops.meshgrid(*v, indexing=indexing), *lines[:count])
        results = results if isinstance(results, tuple) else (results,)
        for result, expected in zip(results, np.meshgrid(*lines[:count], indexing=indexing), strict=True):
            same(result, expected)


@pytest.mark.parametrize("cut", [1, 2, 3, 6, [2], [0, 2, 2, 6], [4, 2], [-1], [1, 9]])
def test_split(cut: Any) -> None:
    x = values(6, 2)
    results = run(lambda v: ops.split(v, cut), x)
    results = results if isinstance(results, tuple) else (results,)
    for result, expected in zip(results, np.split(x, cut), strict=True):
        same(result, expected)


def test_stack_and_unstack() -> None:
    x, y = values(2, 3), values(2, 3, seed=1)
    for axis in (0, 1, 2, -1):
        same(run(lambda a, b, n=axis: ops.stack([a, b], n), x, y), np.stack([x, y], axis))
    parts = run(lambda a: ops.unstack(a, 1), x)
    for i, part in enumerate(parts):
        same(part, x[:, i])


def test_shapes_from_numpy_integers() -> None:
    x = values(2, 3)
    same(run(lambda v: ops.reshape(v, (np.int64(3), np.int32(-1))), x), x.reshape(3, 2))
    same(run(lambda v: ops.reshape(v, -1), x), x.reshape(-1))
    same(run(lambda v: ops.reshape(v, [6]), x), x.reshape(6))


def test_reshape_infers_beside_other_sizes() -> None:
    same(run(lambda v: ops.reshape(v, (2, -1)), np.zeros((0, 2), np.float32)), np.zeros((2, 0), np.float32))


def test_expand_dims_and_squeeze() -> None:
    x = values(2, 3)
    for axis in (0, 1, 2, -1, (0, 3), (1, -1)):
        same(run(lambda v, a=axis: ops.expand_dims(v, a), x), np.expand_dims(x, axis))
    wide = x.reshape(1, 2, 1, 3)
    for axis in (None, 0, 2, (0, 2), -2):
        same(run(lambda v, a=axis: ops.squeeze(v, a), wide), np.squeeze(wide, axis))


@pytest.mark.parametrize("arguments", [(5,), (2, 7), (2, 7, 2), (7, 2, -2), (3, 3), (5, 2), (0, 7, 3), (-5,)])
def test_integer_arange(arguments: tuple[int, ...]) -> None:
    same(run(lambda: ops.arange(*arguments)), np.arange(*arguments))
    same(run(lambda: ops.arange(*arguments, dtype="float32")), np.arange(*arguments, dtype=np.float32))


@pytest.mark.parametrize("arguments", [(0.0, 1.0, 0.1), (1.0, 0.0, -0.25), (0.5,), (-1.0, 1.0, 0.3)])
def test_floating_arange(arguments: tuple[float, ...]) -> None:
    result = run(lambda: ops.arange(*arguments))
    expected = np.arange(*arguments)
    assert result.shape == expected.shape
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("endpoint", [True, False])
def test_linspace(number: int, endpoint: bool) -> None:
    result = run(lambda: ops.linspace(-0.1, 0.7, number, endpoint=endpoint, dtype="float64"))
    np.testing.assert_allclose(result, np.linspace(-0.1, 0.7, number, endpoint), rtol=1e-15, atol=1e-16)
    if number > 1 and endpoint:
        assert (result[0], result[-1]) == (-0.1, 0.7)


@pytest.mark.parametrize(
    ("rows", "columns", "k"), [(3, None, 0), (2, 4, 1), (4, 2, -1), (0, 3, 0), (2, 2, 9)]
)
def test_eye(rows: int, columns: int | None, k: int) -> None:
    same(run(lambda: ops.eye(rows, columns, k=k)), np.eye(rows, columns, k, dtype=np.float32))


def test_full_and_like() -> None:
    same(run(lambda: ops.full((2,), 3)), np.full(2, 3))
    same(run(lambda: ops.full((2,), True)), np.full(2, True))
    same(run(lambda: ops.full((2,), 0.5)), np.full(2, 0.5, np.float32))
    same(run(lambda: ops.full((), 1, "uint8")), np.full((), 1, np.uint8))
    x = values(2, 3, dtype="int16")
    same(run(ops.zeros_like, x), np.zeros_like(x))
    same(run(ops.ones_like, x), np.ones_like(x))
    same(run(lambda v: ops.full_like(v, 7, "float64"), x), np.full((2, 3), 7.0))
    same(run(lambda v: ops.full((2,), v), np.float64(2.5)), np.full(2, 2.5))


def test_pad_width_forms() -> None:
    x = values(2, 3)
    for widths in (1, (1, 2), ((1, 2),), ((1, 0), (0, 2)), [[1, 0], [0, 2]], np.array([[1, 0], [0, 2]])):
        same(run(lambda v, w=widths: ops.pad(v, w), x), np.pad(x, widths))


def test_scalars_are_weak() -> None:
    x = values(3, dtype="float16")
    assert run(lambda v: v * 2.5, x).dtype == np.float16
    assert run(lambda v: v + 1, values(3, dtype="int8")).dtype == np.int8
    assert run(lambda v: v + 1.5, values(3, dtype="int8")).dtype == np.float32
    assert run(lambda v: v + True, values(3, dtype="int8")).dtype == np.int8
    assert run(lambda v: 2.0 / v, values(3, dtype="int64", low=1, high=5)).dtype == np.float32
    assert run(lambda v: v + 1, values(3, dtype="bool")).dtype == np.int64
    with pytest.raises(DTypeError, match="300 does not fit"):
        run(lambda v: v + 300, values(3, dtype="int8"))


def test_powers_by_small_numbers_need_no_pow() -> None:
    x = values(3, low=0.5)
    for exponent in (2, 3, 1, -1, 0.5, -0.5):
        graph = trace_graph(lambda v, e=exponent: v**e, [types.type_of(x)])
        assert "pow" not in {node.op.name for node in graph.nodes}
        np.testing.assert_allclose(interpret(graph, [x])[0], x**exponent, rtol=3e-7)
