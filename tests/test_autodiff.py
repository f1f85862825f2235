"""Differentiation of graphs: what the generated op tests do not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from thalweg import types
from thalweg.autodiff import vjp
from thalweg.errors import GraphError
from thalweg.graph import Value, trace_graph
from thalweg.interpret import interpret
from thalweg.ops.core import cast, composite
from thalweg.ops.elementwise import exp, floor, multiply, sin, stop_gradient, where
from thalweg.ops.indexing import gather
from thalweg.ops.movement import broadcast_to, split
from thalweg.ops.reduction import argmax, sum
from thalweg.ops.sources import full_like
from thalweg.testing import check_gradient
from thalweg.types import Type

F64 = types.float64
SCALAR, VECTOR = Type(F64, ()), Type(F64, (3,))
X = np.array([0.5, 1.0, 2.0])


def _gradients(function: Any, *arrays: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any] | None]:
    """Gradients of the sum of a function's outputs by all inputs; None where no path leads there."""
    missing: list[bool] = []

    def build(*values: Value) -> list[Value]:
        outputs = function(*values)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        found = vjp(outputs, [full_like(v, 1.0) if v.dtype.is_floating else None for v in outputs], values)
        missing[:] = [g is None for g in found]
        return [g for g in found if g is not None]

    arrays = tuple(np.asarray(array) for array in arrays)
    results = iter(interpret(trace_graph(build, [types.type_of(array) for array in arrays]).verify(), arrays))
    return [None if absent else next(results) for absent in missing]


def test_the_definition() -> None:
    """f = 2x^2 + y^3 + z has the gradients 4x, 3y^2, 1."""
    x, y, z = _gradients(lambda x, y, z: 2 * x**2 + y**3 + z, np.array(1.0), np.array(2.0), np.array(3.0))
    assert (x, y, z) == (4.0, 12.0, 1.0)


def test_paths_add_up() -> None:
    (g,) = _gradients(lambda x: x * x + x * 3.0 + x, X)
    np.testing.assert_allclose(g, 2 * X + 4)


def test_shared_subexpressions_are_visited_once() -> None:
    """A chain of 60 doublings has 2^60 paths."""

    def function(x: Value) -> Value:
        for _ in range(60):
            x = x + x
        return x

    (g,) = _gradients(function, np.array(1.0))
    assert g == 2.0**60


def test_long_chains_do_not_recurse() -> None:
    def function(x: Value) -> Value:
        for _ in range(5000):
            x = x * 1.0
        return x

    (g,) = _gradients(function, np.array(1.0))
    assert g == 1.0


def test_no_path_is_none() -> None:
    assert _gradients(lambda x, y: exp(x), X, X)[1] is None
    assert _gradients(lambda x: stop_gradient(x) * 2.0, X) == [None]
    assert _gradients(lambda x: argmax(x), X) == [None]
    assert _gradients(lambda i, x: gather(x, i), np.array([0, 0]), X)[0] is None


def test_stop_gradient_blocks_one_path() -> None:
    (g,) = _gradients(lambda x: stop_gradient(x) * x, X)
    np.testing.assert_array_equal(g, X)
    (blocked,) = _gradients(lambda x: sum(stop_gradient(exp(x))), X)
    assert blocked is None


def test_gradients_have_the_type_of_their_input() -> None:
    x32, x16 = X.astype(np.float32), X.astype(np.float16)
    a, b = _gradients(lambda x, y: cast(x, F64) * cast(y, F64), x32, x16)
    assert a is not None and b is not None
    assert (a.dtype, b.dtype) == (np.float32, np.float16)
    np.testing.assert_allclose(a, X)
    (through_integers,) = _gradients(lambda x: cast(cast(x, types.int64), F64) * 2.0, X)
    assert through_integers is None


def test_unused_outputs_count_as_zero() -> None:
    (g,) = _gradients(lambda x: split(x, 3)[1], X)
    np.testing.assert_array_equal(g, [0, 1, 0])


def test_outputs_that_are_inputs() -> None:
    a, b = _gradients(lambda x, y: (x, x * y), X, X + 1)
    np.testing.assert_allclose(a, X + 2)
    np.testing.assert_allclose(b, X)


def test_gradient_by_an_intermediate_value() -> None:
    def build(x: Value) -> list[Value | None]:
        y = sin(x)
        z = sum(y * y)
        return vjp([z], [full_like(z, 1.0)], [y, x])

    by_y, by_x = interpret(trace_graph(build, [VECTOR]), [X])
    np.testing.assert_allclose(by_y, 2 * np.sin(X))
    np.testing.assert_allclose(by_x, 2 * np.sin(X) * np.cos(X))


def test_boundary_stops_the_search() -> None:
    def build(x: Value) -> list[Value | None]:
        y = exp(x)
        found = vjp([sum(y)], [full_like(sum(y), 1.0)], [x], boundary=[y])
        assert found == [None]
        return [y]

    trace_graph(build, [VECTOR])


def test_third_and_fourth_order() -> None:
    function = lambda x, y: sum(sin(x * y) * exp(x))  # noqa: E731
    assert check_gradient(function, [X, X[::-1].copy()], order=3, tolerance=1e-5) >= 3
    assert check_gradient(lambda x: x**4, [X], order=4, tolerance=1e-5) >= 4


def test_where_does_not_leak_nan_from_the_other_branch() -> None:
    """The masked branch is finite by the double-where idiom, the gradient too."""

    def safe_root(x: Value) -> Value:
        positive = x > 0.0
        return where(positive, where(positive, x, 1.0) ** 0.5, 0.0)

    (g,) = _gradients(safe_root, np.array([-1.0, 0.0, 4.0]))
    np.testing.assert_array_equal(g, [0, 0, 0.25])


def test_broadcast_axes_are_summed() -> None:
    (g,) = _gradients(lambda x: broadcast_to(x, (4, 3)), X)
    np.testing.assert_array_equal(g, [4, 4, 4])
    a, b = _gradients(lambda x, y: x * y, X.reshape(3, 1), X.reshape(1, 3))
    assert a is not None and b is not None
    np.testing.assert_allclose(a[:, 0], X.sum())
    np.testing.assert_allclose(b[0], X.sum())


def test_piecewise_constant_functions_have_gradient_zero() -> None:
    (g,) = _gradients(lambda x: floor(x) * x, X + 0.25)
    np.testing.assert_array_equal(g, np.floor(X + 0.25))


def test_composites_use_rule_residuals_or_body() -> None:
    """A composite without a rule, with a rule, and with residuals give one gradient by different graphs."""

    @composite
    def plain_for_test(x: Any) -> Any:
        return exp(x) * x

    @composite
    def ruled_for_test(x: Any) -> Any:
        return exp(x) * x

    @ruled_for_test.gradient
    def _(inputs: Any, outputs: Any, cotangents: Any) -> Any:
        return (cotangents[0] * (outputs[0] + exp(inputs[0])),)

    @composite
    def saving_for_test(x: Any) -> Any:
        return exp(x) * x

    @saving_for_test.residuals
    def saving_for_test_with_residuals(x: Any) -> Any:
        grown = exp(x)
        return grown * x, grown

    @saving_for_test.gradient
    def _saving(inputs: Any, outputs: Any, cotangents: Any) -> Any:
        result, grown = outputs
        return (cotangents[0] * (result + grown),)

    def names(function: Any) -> list[str]:
        graph = trace_graph(lambda x, g: vjp([function(x)], [g], [x]), [VECTOR, VECTOR])
        return [node.op.name for node in graph.nodes]

    expected = np.exp(X) * (1 + X)
    for function in (plain_for_test, ruled_for_test, saving_for_test):
        (g,) = _gradients(function, X)
        np.testing.assert_allclose(g, expected)
        check_gradient(function, [X])
    assert names(plain_for_test)[:3] == ["plain_for_test", "exp", "multiply"]
    assert names(ruled_for_test) == ["ruled_for_test", "exp", "add", "multiply"]
    assert names(saving_for_test) == ["saving_for_test", "saving_for_test_with_residuals", "add", "multiply"]


def test_rules_with_the_wrong_number_of_gradients_are_refused() -> None:
    @composite
    def miscounted_for_test(x: Any, y: Any) -> Any:
        return x * y

    @miscounted_for_test.gradient
    def _(inputs: Any, outputs: Any, cotangents: Any) -> Any:
        return (cotangents[0],)

    with pytest.raises(GraphError, match="gave 1 gradients for 2"):
        _gradients(miscounted_for_test, X, X)


def test_absent_optional_tensors() -> None:
    @composite
    def optional_for_test(x: Any, bias: Any = None, scale: Any = None) -> Any:
        y = x if bias is None else x + bias
        return y if scale is None else y * scale

    @optional_for_test.gradient
    def _(inputs: Any, outputs: Any, cotangents: Any) -> Any:
        x, bias, scale = inputs
        g = cotangents[0] if scale is None else cotangents[0] * scale
        return (g, None if bias is None else g, None if scale is None else cotangents[0] * x)

    a, b = _gradients(lambda x, s: optional_for_test(x, None, s), X, X + 1)
    np.testing.assert_allclose(a, X + 1)
    np.testing.assert_allclose(b, X)
    (c,) = _gradients(lambda x: optional_for_test(x), X)
    np.testing.assert_allclose(c, [1, 1, 1])


def test_gradient_graphs_are_small() -> None:
    """One multiplication for each factor, nothing for inputs that are not asked for."""
    graph = trace_graph(lambda x, y, g: vjp([multiply(x, y)], [g], [x]), [VECTOR] * 3)
    assert len(graph.nodes) <= 3
