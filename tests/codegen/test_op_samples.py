"""Every op, compiled: values and gradients of all samples agree with the interpreter, with the same bits
for 1 and 3 threads. All samples of an op are one program, so that one build serves them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import thalweg.ops
from thalweg.graph import Builder, Graph, Value, inline, using
from thalweg.interpret import interpret
from thalweg.ops.samples import Sample, sampled_ops, samples_of
from thalweg.passes.pipeline import prepare
from thalweg.runtime.program import NativeProgram
from thalweg.testing import gradient_graph

for _module in pkgutil.iter_modules(thalweg.ops.__path__):  # some are imported by thalweg.nn only
    importlib.import_module(f"thalweg.ops.{_module.name}")

Array = np.ndarray[Any, Any]

# relative to the element and to the largest element, by element type, widened by a sample's own factor
TOLERANCE = {"float16": 3e-3, "bfloat16": 2e-2, "float32": 3e-6, "float64": 1e-13}


def joint_graph(samples: Sequence[Sample], gradient: bool) -> tuple[Graph, list[Array], list[int]]:
    """One graph of all samples (or of their gradients), its input arrays, and each output's sample."""
    builder = Builder()
    inputs: list[Value] = []
    arrays: list[Array] = []
    outputs: list[Value] = []
    owners: list[int] = []
    random = np.random.default_rng(0)
    with using(builder):
        for number, sample in enumerate(samples):
            if gradient:
                graph = gradient_graph(sample.build, sample.types)
                values = [Value(value.type) for value in graph.inputs]
                cotangents = values[len(sample.inputs) :]
                results = inline(graph, values)
                arrays += [*sample.inputs]
                arrays += [
                    np.asarray(random.uniform(-1, 1, v.shape)).astype(v.dtype.numpy) for v in cotangents
                ]
            else:
                values = [Value(found) for found in sample.types]
                results = sample.build(*values)
                arrays += sample.inputs
            inputs += values
            outputs += results
            owners += [number] * len(results)
    graph = Graph(tuple(inputs), tuple(builder.nodes), tuple(outputs))
    return graph.verify(), [np.array(array, order="C") for array in arrays], owners


def difference(found: Array, expected: Array, factor: float) -> str | None:
    """What is wrong with `found`, or None."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"{found.dtype}{found.shape} instead of {expected.dtype}{expected.shape}"
    if found.dtype.kind in "iub":
        return None if np.array_equal(found, expected) else f"{found} instead of {expected}"
    x, y = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(y)
    with np.errstate(all="ignore"):
        special = np.where(np.isnan(y), np.isnan(x), x == y)
        if not special[~finite].all():
            return f"special values: {found} instead of {expected}"
        scale = np.abs(y[finite]).max(initial=0.0)
        bound = TOLERANCE[found.dtype.name] * factor * (np.abs(y) + 0.3 * scale) + 1e-30
        wrong = finite & ~(np.abs(x - y) <= bound)
    return f"{x[wrong][:4]} instead of {y[wrong][:4]}" if wrong.any() else None


@pytest.mark.parametrize("gradient", [False, True], ids=["values", "gradients"])
@pytest.mark.parametrize("name", sampled_ops())
def test_compiled_samples_agree_with_the_interpreter(name: str, gradient: bool, needs_compiler: None) -> None:
    samples = [s for s in samples_of(name) if s.error is None and (not gradient or s.checks_gradient)]
    if not samples:
        pytest.skip("no gradient to check")
    graph, arrays, owners = joint_graph(samples, gradient)
    expected = interpret(prepare(graph, lambda node: False), arrays)
    found = NativeProgram(graph, threads=1)(arrays)
    again = NativeProgram(graph, threads=3)(arrays)
    for one, other in zip(found, again, strict=True):
        assert one.tobytes() == other.tobytes()
    problems = [
        f"sample {owner} ({samples[owner].types}, {dict(samples[owner].attributes)}): {problem}"
        for owner, one, other in zip(owners, found, expected, strict=True)
        # a gradient may be a sum of terms that cancel
        if (problem := difference(one, other, samples[owner].tolerance * (30 if gradient else 1))) is not None
    ]
    assert not problems, "\n".join(problems[:5])
