"""Row-major max pooling and its gradient in vectors: the references' results on odd geometries, with NaN,
infinities and ties, and the same bits everywhere."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from thalweg.graph import Value
from thalweg.ops.core import apply
from thalweg.ops.pooling import MaxPool, MaxUnpool
from thalweg.runtime.program import NativeProgram

Array = np.ndarray[Any, Any]
Make = Callable[..., NativeProgram]

# kernel, strides, padding, dilation, spatial
CASES = [
    ((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), (112, 112)),
    ((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), (28, 29)),
    ((3, 2), (1, 1), ((1, 0), (0, 1)), (1, 1), (9, 37)),
    ((3, 3), (3, 2), ((0, 1), (1, 0)), (2, 2), (17, 40)),
    ((2, 5), (1, 2), ((1, 1), (2, 2)), (1, 1), (5, 9)),
    ((1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), (10, 33)),
    ((4, 3), (2, 3), ((2, 1), (1, 1)), (1, 1), (12, 70)),
]


def planes(spatial: tuple[int, int]) -> Array:
    """Two images of three channels with ties, NaN, and windows of nothing but -inf."""
    random = np.random.default_rng(spatial[0])
    x = random.integers(-3, 4, (2, 3, *spatial)).astype("float32")
    x[0, 1] += random.standard_normal(spatial).astype("float32")
    x[1, 0, :4, :4] = -np.inf
    x[1, 2, ::5, ::3] = np.nan
    x[0, 2, -1, -1] = np.inf
    return x


@pytest.mark.parametrize("case", CASES, ids=str)
def test_geometries(case: Any, whole_program: Make) -> None:
    *geometry, spatial = case
    op, back = MaxPool(*geometry), MaxUnpool(*geometry, spatial)
    x = planes(spatial)
    values, places = op.reference(x)
    g = np.random.default_rng(1).standard_normal(values.shape).astype("float32")

    def build(v: Any) -> list[Value]:
        return [*apply(op, v[0]), apply(back, v[1], v[2])]

    arrays = [x, g, places]
    program = whole_program(build, arrays)
    assert any("strip" in text for text in program.source.split("kernel"))
    found = program([])
    np.testing.assert_array_equal(found[0], values)
    np.testing.assert_array_equal(found[1], places)
    np.testing.assert_allclose(found[2], back.reference(g, places), rtol=1e-6, atol=1e-6)
    others = [{"threads": 2}, {"threads": 3}, {"threads": 7}]
    if platform.machine().lower() in ("x86_64", "amd64") and case is CASES[0]:
        others += [{"target": "x86-64-v3"}, {"target": "x86-64"}]
    for options in others:
        again = whole_program(build, arrays, **options)([])
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found, again, strict=True)), options


def test_values_alone(whole_program: Make) -> None:
    """Where nobody reads the indices they are not computed."""
    *geometry, spatial = CASES[0]
    x = planes(spatial)
    program = whole_program(lambda v: [apply(MaxPool(*geometry), v[0])[0]], [x])
    assert "firsts" not in program.source
    np.testing.assert_array_equal(program([])[0], MaxPool(*geometry).reference(x)[0])
