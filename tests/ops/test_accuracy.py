"""Errors of float32 functions against float64: at most twice PyTorch's plus one unit in the last place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import thalweg.ops as ops
from thalweg import types
from thalweg.graph import trace_graph
from thalweg.interpret import interpret

Array = np.ndarray[Any, Any]

# name, name in PyTorch, lower and upper end of the inputs
UNARY = [
    ("exp", "exp", -80.0, 80.0),
    ("expm1", "expm1", -10.0, 10.0),
    ("log", "log", 1e-6, 10.0),
    ("log1p", "log1p", -0.9, 5.0),
    ("sqrt", "sqrt", 0.0, 100.0),
    ("rsqrt", "rsqrt", 1e-3, 100.0),
    ("sin", "sin", -20.0, 20.0),
    ("cos", "cos", -20.0, 20.0),
    ("tan", "tan", -20.0, 20.0),
    ("asin", "asin", -1.0, 1.0),
    ("acos", "acos", -1.0, 1.0),
    ("atan", "atan", -10.0, 10.0),
    ("sinh", "sinh", -80.0, 80.0),
    ("cosh", "cosh", -80.0, 80.0),
    ("tanh", "tanh", -5.0, 5.0),
    ("erf", "erf", -4.0, 4.0),
    ("reciprocal", "reciprocal", 0.1, 10.0),
]


def _run(function: Callable[..., Any], *arrays: Array) -> Array:
    return interpret(trace_graph(function, [types.type_of(array) for array in arrays]), arrays)[0]


def units(result: Array, exact: Array) -> float:
    """The largest error in units in the last place of float32."""
    spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(result.astype(np.float64) - exact) / spacing))


@pytest.mark.parametrize(("name", "torch_name", "low", "high"), UNARY, ids=[entry[0] for entry in UNARY])
def test_unary(name: str, torch_name: str, low: float, high: float) -> None:
    torch = pytest.importorskip("torch")
    x = np.random.Generator(np.random.PCG64(1)).uniform(low, high, 50_000).astype(np.float32)
    exact = getattr(torch, torch_name)(torch.from_numpy(x.astype(np.float64))).numpy()
    theirs = getattr(torch, torch_name)(torch.from_numpy(x)).numpy()
    assert units(_run(getattr(ops, name), x), exact) <= 2 * units(theirs, exact) + 1


@pytest.mark.parametrize("name", ["atan2", "pow", "divide"])
def test_binary(name: str) -> None:
    torch = pytest.importorskip("torch")
    generator = np.random.Generator(np.random.PCG64(1))
    x, y = (generator.uniform(0.1, 9.0, 50_000).astype(np.float32) for _ in range(2))
    function = getattr(torch, name)
    exact = function(*(torch.from_numpy(array.astype(np.float64)) for array in (x, y))).numpy()
    theirs = function(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    assert units(_run(getattr(ops, name), x, y), exact) <= 2 * units(theirs, exact) + 1


@pytest.mark.parametrize("name", ["sum", "mean", "var", "std", "prod", "cumsum"])
@pytest.mark.parametrize("shape", [(64, 1000), (1000, 64)])
def test_reductions(name: str, shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    x = np.random.Generator(np.random.PCG64(1)).uniform(0.99, 1.02, shape).astype(np.float32)
    options = {"correction": 0} if name in ("var", "std") else {}
    exact = getattr(torch, name)(torch.from_numpy(x.astype(np.float64)), 0, **options).numpy()
    theirs = getattr(torch, name)(torch.from_numpy(x), 0, **options).numpy()
    function = ops.cumulative_sum if name == "cumsum" else getattr(ops, name)
    ours = _run(lambda v: function(v, axis=0), x)
    assert units(ours, exact) <= 2 * units(theirs, exact) + 1


def test_erf_in_float64() -> None:
    """The reference of erf is exact to two units in float64."""
    x = np.concatenate([np.linspace(-7, 7, 20_001), [0.0, -0.0, 1e-300, np.inf, -np.inf]])
    exact = np.array([math.erf(value) for value in x])
    result = _run(ops.erf, x)
    assert np.all(np.abs(result - exact) <= 2 * np.spacing(np.abs(exact)))
    assert np.array_equal(np.signbit(result), np.signbit(exact))
