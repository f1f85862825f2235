"""All layers of the table in compiled programs: values, gradients and state agree with eager evaluation."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from test_layers import CASES, Case, make_input, make_layer

import thalweg as tw
from thalweg import nn

_PER_PROGRAM = 12
_GROUPS = [CASES[start : start + _PER_PROGRAM] for start in range(0, len(CASES), _PER_PROGRAM)]


def run(layers: list[nn.Module], cases: list[Case], values: list[Any]) -> list[Any]:
    """Outputs, and gradients with respect to inputs and parameters, of all layers."""
    found = []
    for layer, case, value in zip(layers, cases, values, strict=True):
        found.append(layer(value))
        cotangent = np.cos(np.arange(np.prod(case.output))).reshape(case.output).astype(np.float32)

        def loss(x: Any, layer: nn.Module = layer, cotangent: Any = cotangent) -> Any:
            return (layer(x) * cotangent).sum()

        if not case.indices:
            found.append(tw.grad(loss)(value))
        if list(layer.parameters()):
            found.extend(tw.gradient(loss(value), wrt=layer).values())
    return found


@pytest.mark.parametrize("number", range(len(_GROUPS)))
def test_compiled_layers_agree_with_eager_ones(number: int, needs_compiler: None) -> None:
    cases = _GROUPS[number]
    eager = [make_layer(case).to("float32") for case in cases]
    compiled = copy.deepcopy(eager)
    values = [tw.tensor(make_input(case), dtype=None if case.indices else "float32") for case in cases]
    expected = run(eager, cases, values)
    found = tw.compile(lambda values: run(compiled, cases, values), backend="c")(values)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=2e-5, atol=2e-5)
    for one_layer, other_layer, case in zip(compiled, eager, cases, strict=True):
        for name, value in other_layer.state_dict().items():
            np.testing.assert_allclose(
                one_layer.state_dict()[name], value, rtol=1e-5, atol=1e-6, err_msg=f"{case.label} {name}"
            )
