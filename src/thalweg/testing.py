"""Checks for ops that anyone can use: gradients of every order against finite differences.

In: a function of operands (op functions inside) and arrays. Out: nothing, or an AssertionError that names input and size
of the difference. The generated op tests call it for every sample; authors of composites can too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def gradient_graph(build: Build, inputs: Sequence[types.Type]) -> Graph:
    """The gradient of a function as a graph: (inputs.., one cotangent per floating output) -> one gradient per
    floating input, zeros where the function does not depend on it.
    """
    forward = trace_graph(build, inputs)
    cotangents = [value.type for value in forward.outputs if value.dtype.is_floating]

    def gradient(*values: Value) -> list[Value]:
        sources, seeds = values[: len(inputs)], values[len(inputs) :]
        outputs = [value for value in _outputs(build(*sources)) if value.dtype.is_floating]
        wrt = [value for value in sources if value.dtype.is_floating]
        found = vjp(outputs, seeds, wrt)
        return [zeros_like(v) if g is None else g for v, g in zip(wrt, found, strict=True)]

    return trace_graph(gradient, [*inputs, *cotangents], "gradient")


def check_gradient(
    build: Build, inputs: Sequence[Array], order: int = 2, tolerance: float = 1e-6, seed: int = 0
) -> int:
    """Compare the gradients of `build` up to `order` with central differences in float64 along a random direction.

    Floating inputs are converted to float64 and must be away from kinks. Returns how many gradients were compared
    (0 where no output or no input is floating). Raises AssertionError where one differs by more than `tolerance`
    relative to the sum of its terms.
    """
    arrays = [array.astype(np.float64) if types.dtype(array.dtype).is_floating else array for array in inputs]
    generator = np.random.Generator(np.random.PCG64(seed))
    compared = 0
    for level in range(1, order + 1):
        found = [types.type_of(array) for array in arrays]
        forward = trace_graph(build, found)
        floating = [position for position, value in enumerate(forward.outputs) if value.dtype.is_floating]
        wrt = [position for position, entry in enumerate(found) if entry.dtype.is_floating]
        if not floating or not wrt:
            break
        seeds = [generator.uniform(-1, 1, forward.outputs[i].shape) for i in floating]
        gradient = gradient_graph(build, found)
        analytic = interpret(gradient, [*arrays, *seeds])
        directions = [generator.uniform(-1, 1, arrays[i].shape) for i in wrt]
        for array, slopes, name in zip(directions, analytic, wrt, strict=True):
            _compare(forward, arrays, seeds, floating, name, array, slopes, tolerance, level)
            compared += 1
        arrays = [*arrays, *seeds]
        build = _as_function(build, len(found))
    return compared


def _as_function(build: Build, count: int) -> Build:
    """The gradient of `build` (of `count` inputs) as a function that can be differentiated again."""

    def gradient(*values: Value) -> list[Value]:
        sources, seeds = values[:count], values[count:]
        outputs = [value for value in _outputs(build(*sources)) if value.dtype.is_floating]
        found = vjp(outputs, seeds, [value for value in sources if value.dtype.is_floating])
        return [value for value in found if value is not None]

    return gradient


def _compare(
    forward: Graph,
    arrays: Sequence[Array],
    seeds: Sequence[Array],
    floating: Sequence[int],
    position: int,
    direction: Array,
    slopes: Array,
    tolerance: float,
    level: int,
) -> None:
    """One input's gradient against the difference quotient along `direction`."""

    def weighted(distance: float) -> tuple[float, float]:
        moved = list(arrays)
        moved[position] = np.asarray(arrays[position] + distance * direction)
        results = interpret(forward, moved)
        terms = [float(np.sum(results[i] * w)) for i, w in zip(floating, seeds, strict=True)]
        return sum(terms), sum(float(np.sum(np.abs(results[i] * w))) for i, w in zip(floating, seeds, strict=True))

    near = weighted(_STEP)[0] - weighted(-_STEP)[0]
    far = weighted(2 * _STEP)[0] - weighted(-2 * _STEP)[0]
    numeric = (8 * near - far) / (12 * _STEP)
    products = slopes * direction
    analytic = float(np.sum(products))
    scale = max(abs(numeric), float(np.sum(np.abs(products))))
    allowed = tolerance * scale + 1e-10 * (1 + weighted(0.0)[1])
    if not abs(numeric - analytic) <= allowed:
        raise AssertionError(
            f"gradient of order {level} by input {position}: {analytic:.9g}, by finite differences {numeric:.9g} "
            f"(allowed difference {allowed:.3g})"
        )
