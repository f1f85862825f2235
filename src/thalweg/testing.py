"""Checks for ops that anyone can use: gradients of every order against finite differences.

In: a function of operands (op functions inside) and arrays. Out: nothing, or an AssertionError that names
input and size of the difference. The generated op tests call it for every sample; authors of composites can
too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from thalweg import types
from thalweg.autodiff import vjp, zeros_like
from thalweg.graph import Graph, Value, trace_graph
from thalweg.interpret import interpret

Array = np.ndarray[Any, Any]
Build = Callable[..., Any]

_STEP = 2e-4  # fourth-order central differences: truncation ~1e-15, rounding ~1e-12 of the value


def _outputs(result: Any) -> tuple[Value, ...]:
    """The results that have a gradient."""
    listed = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    return tuple(value for value in listed if value.dtype.is_floating)


def _gradient(build: Build, count: int, constants: Collection[int], zeros: bool) -> Build:
    """The gradient of `build` as a function of its `count` inputs and one cotangent per floating output."""

    def gradient(*values: Value) -> list[Value]:
        sources, cotangents = values[:count], values[count:]
        wrt = [v for i, v in enumerate(sources) if v.dtype.is_floating and i not in constants]
        found = vjp(_outputs(build(*sources)), cotangents, wrt)
        filled = [zeros_like(v) if g is None and zeros else g for v, g in zip(wrt, found, strict=True)]
        return [value for value in filled if value is not None]

    return gradient


def gradient_graph(build: Build, inputs: Sequence[types.Type], constants: Collection[int] = ()) -> Graph:
    """The gradient of a function as a graph: (inputs.., one cotangent per floating output) -> one gradient
    per floating input that is not among the positions `constants`; zeros where the function does not depend
    on it.
    """
    cotangents = [value.type for value in _outputs(trace_graph(build, inputs).outputs)]
    function = _gradient(build, len(inputs), constants, zeros=True)
    return trace_graph(function, [*inputs, *cotangents], "gradient")


def check_gradient(
    build: Build,
    inputs: Sequence[Array],
    order: int = 2,
    *,
    tolerance: float = 1e-6,
    constants: Collection[int] = (),
    seed: int = 0,
) -> int:
    """Compare the gradients of `build` up to `order` with central differences in float64 along random
    directions.

    Floating inputs are converted to float64 and must be away from kinks; those at the positions `constants`
    are not differentiated. Returns how many gradients were compared (0 where no output or no input is
    floating). Raises AssertionError where one differs by more than `tolerance` relative to the sum of its
    terms.
    """
    arrays = [
        np.asarray(array, np.float64) if types.dtype(array.dtype).is_floating else array for array in inputs
    ]
    generator = np.random.Generator(np.random.PCG64(seed))
    compared = 0
    for level in range(1, order + 1):
        found = [types.type_of(array) for array in arrays]
        forward = trace_graph(lambda *values, build=build: _outputs(build(*values)), found)
        wrt = [i for i, entry in enumerate(found) if entry.dtype.is_floating and i not in constants]
        if not forward.outputs or not wrt:
            break
        weights = [np.asarray(generator.uniform(-1, 1, value.shape)) for value in forward.outputs]
        slopes = interpret(gradient_graph(build, found, constants), [*arrays, *weights])
        for position, slope in zip(wrt, slopes, strict=True):
            direction = np.asarray(generator.uniform(-1, 1, slope.shape))
            numeric, size = _difference_quotient(forward, arrays, weights, position, direction)
            _compare(numeric, slope * direction, size, tolerance, f"order {level} by input {position}")
            compared += 1
        build = _gradient(build, len(found), constants, zeros=False)
        arrays = [*arrays, *weights]
    return compared


def _difference_quotient(
    forward: Graph, arrays: Sequence[Array], weights: Sequence[Array], position: int, direction: Array
) -> tuple[float, float]:
    """Slope of the weighted sum of the outputs along `direction` from one input; the size of its terms."""

    def terms(distance: float) -> list[Array]:
        moved = list(arrays)
        moved[position] = np.asarray(arrays[position] + distance * direction)
        return [result * weight for result, weight in zip(interpret(forward, moved), weights, strict=True)]

    def change(distance: float) -> float:
        pairs = zip(terms(distance), terms(-distance), strict=True)
        return float(sum(np.sum(ahead - behind) for ahead, behind in pairs))

    quotient = (8 * change(_STEP) - change(2 * _STEP)) / (12 * _STEP)
    return quotient, float(sum(np.sum(np.abs(term)) for term in terms(0.0)))


def _compare(numeric: float, products: Array, size: float, tolerance: float, what: str) -> None:
    analytic = float(np.sum(products))
    scale = max(abs(numeric), float(np.sum(np.abs(products))))
    allowed = tolerance * scale + 1e-10 * (1 + size)
    if not abs(numeric - analytic) <= allowed:  # NaN differs from everything
        raise AssertionError(
            f"gradient of {what}: {analytic:.9g}, by finite differences {numeric:.9g} "
            f"(allowed difference {allowed:.3g})"
        )
