"""`x[key]` against NumPy on random keys."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg import types
from thalweg.errors import ArgumentError, IndexRangeError, ShapeError, TraceError
from thalweg.graph import Value, trace_graph
from thalweg.interpret import interpret
from thalweg.testing import check_gradient

Array = np.ndarray[Any, Any]


def _read(x: Array, key: Any) -> Array:
    (result,) = interpret(trace_graph(lambda v: v[key], [types.type_of(x)]).verify(), [x])
    return result


def _read_traced(x: Array, key: tuple[Any, ...]) -> Array:
    """With every index array of the key as a graph input."""
    arrays = [item for item in key if isinstance(item, np.ndarray)]

    def function(v: Value, *indices: Value) -> Value:
        remaining = iter(indices)
        return v[tuple(next(remaining) if isinstance(item, np.ndarray) else item for item in key)]

    graph = trace_graph(function, [types.type_of(array) for array in (x, *arrays)]).verify()
    (result,) = interpret(graph, [x, *arrays])
    return result


@st.composite
def _cases(draw: Any, arrays: bool) -> tuple[Array, tuple[Any, ...]]:
    """An array and a key that NumPy accepts: an item for each axis, `...` for some in a row, new axes."""
    shape = draw(st.lists(st.integers(int(arrays), 4), min_size=int(arrays), max_size=4))
    common = draw(st.sampled_from([(), (2,), (1,), (3, 2), (0,)]))  # shape of the index arrays when broadcast
    key = [_item(draw, extent, common, arrays) for extent in shape]
    start = draw(st.integers(0, len(key)))
    key[start : draw(st.integers(start, len(key)))] = [Ellipsis]
    if start == len(key) - 1 and draw(st.booleans()):
        key.pop()
    for _ in range(draw(st.integers(0, 2))):
        key.insert(draw(st.integers(0, len(key))), None)
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape), tuple(key)


def _item(draw: Any, extent: int, common: tuple[int, ...], arrays: bool) -> Any:
    kind = draw(st.sampled_from(["slice", "int" if extent else "slice", "array" if arrays else "slice"]))
    if kind == "int":
        return draw(st.integers(-extent, extent - 1))
    if kind == "slice":
        bound = st.one_of(st.none(), st.integers(-6, 6))
        return slice(draw(bound), draw(bound), draw(st.sampled_from([None, 1, 2, 3, -1, -2])))
    own = tuple(draw(st.sampled_from([n, 1])) if n > 1 else n for n in common)
    listed = draw(
        st.lists(st.integers(-extent, extent - 1), min_size=math.prod(own), max_size=math.prod(own))
    )
    return np.array(listed, dtype=draw(st.sampled_from([np.int64, np.int32]))).reshape(own)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(_cases(arrays=False))
def test_basic_keys_are_numpys(case: tuple[Array, tuple[Any, ...]]) -> None:
    x, key = case
    expected = x[key]
    result = _read(x, key)
    assert result.shape == expected.shape
    np.testing.assert_array_equal(result, expected)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(_cases(arrays=True))
def test_array_keys_are_numpys(case: tuple[Array, tuple[Any, ...]]) -> None:
    x, key = case
    expected = x[key]
    for result in (_read(x, key), _read_traced(x, key)):
        assert result.shape == expected.shape
        np.testing.assert_array_equal(result, expected)


X = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "key",
    [
        1,
        -1,
        np.int64(1),
        slice(None, None, -1),
        (Ellipsis, 0),
        (0, Ellipsis, 0),
        None,
        (),
        Ellipsis,
        [1, 0],
        [[1], [0]],
        ([0, 1], [2, 0]),
        ([0, 1], slice(None), [3, 0]),
        (0, slice(None), [3, 0]),
        (slice(None), 0, [3, 0]),
        (slice(None), [0, 1], None, [3, 0]),
        ([], slice(None)),
        np.zeros((0, 2), int),
        [True, False],
        (slice(None), [True, False, True], 0),
        X > 5,
        (X[:, :, 0] > 5, slice(1, 3)),
        (np.array(1), np.array([0, 2])),
        (slice(0, 2), np.array(1), slice(None), None),
    ],
    ids=repr,
)
def test_key(key: Any) -> None:
    expected = X[key]
    result = _read(X, key)
    assert result.shape == expected.shape
    np.testing.assert_array_equal(result, expected)


def test_iteration_gives_rows() -> None:
    rows = interpret(trace_graph(lambda v: tuple(v), [types.type_of(X)]), [X])
    assert len(rows) == 2
    np.testing.assert_array_equal(rows[1], X[1])


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (
            2,
            IndexRangeError,
            "index 2 is out of range for axis 0 of a tensor of shape (2, 3, 4); expected -2 to 1",
        ),
        ((0, -4), IndexRangeError, "expected -3 to 2"),
        ([0, 2], IndexRangeError, "index 2 (at position (1,) of the indices)"),
        (
            (0, 0, 0, 0),
            ShapeError,
            "too many indices for a tensor of shape (2, 3, 4): it has 3 axes",
        ),
        ((Ellipsis, Ellipsis), ArgumentError, "only one `...`"),
        (1.0, ArgumentError, "received 1.0"),
        ("row", ArgumentError, "received 'row'"),
        ([[0, 1], [2]], ValueError, ""),
        (True, ArgumentError, "received True"),
        (slice(0, 1.5), ArgumentError, "slice"),
        ([True, False, True], ShapeError, "a mask of shape (3,) selects from axes of sizes (2,)"),
    ],
    ids=repr,
)
def test_bad_keys(key: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        _read(X, key)
    assert message in str(caught.value)


def test_traced_keys_that_have_no_shape() -> None:
    with pytest.raises(TraceError, match=r"thalweg\.where\(mask, x, 0\)"):
        trace_graph(lambda v: v[v > 5], [types.type_of(X)])
    with pytest.raises(TraceError, match=r"thalweg\.dynamic_slice"):
        trace_graph(lambda v, n: v[:n], [types.type_of(X), types.Type(types.int64, ())])


def test_out_of_range_indices_of_one_axis_are_not_another_row() -> None:
    """Index 4 is outside the last axis, although position (0, 4) of 3 x 4 would be that of (1, 0)."""
    with pytest.raises(IndexRangeError, match="index 4"):
        _read_traced(X, (slice(None), np.array([0]), np.array([4])))


def test_gradients_of_repeated_reads_add_up() -> None:
    x = X.astype(np.float64)
    assert check_gradient(lambda v: v[:, [0, 0, 2], 1], [x]) > 0
    assert check_gradient(lambda v: v[::-1, 1:, ::-2], [x]) > 0
    i, j = np.array([0, 1, 1]), np.array([[2], [0]])
    assert check_gradient(lambda v, i, j: v[i, j], [x, i, j]) > 0
