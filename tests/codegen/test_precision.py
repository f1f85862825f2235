"""Errors of compiled float32 against float64: at most twice PyTorch's plus one unit in the last place of the
largest result. For every op sample that has a counterpart in PyTorch, and for sums of many terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from test_op_samples import joint_graph

import thalweg.ops as ops
from thalweg import types
from thalweg.graph import REGISTRY, trace_graph
from thalweg.interpret import interpret
from thalweg.ops.contraction import conv
from thalweg.ops.normalization import batch_norm, layer_norm
from thalweg.ops.samples import Sample, sampled_ops, samples_of
from thalweg.runtime.program import NativeProgram
from thalweg.testing import gradient_graph

Array = np.ndarray[Any, Any]


def error(result: Array, exact: Array) -> float:
    """The largest absolute error where the exact result is a float32."""
    with np.errstate(all="ignore"):
        inside = np.isfinite(exact) & (np.abs(exact) <= np.finfo(np.float32).max)
        return float(np.abs(result.astype(np.float64) - exact).max(initial=0.0, where=inside))


def last_place(exact: Array) -> float:
    """One unit in the last place of the largest result."""
    finite = np.abs(exact[np.isfinite(exact)])
    largest = np.float32(min(finite.max(initial=0.0), np.finfo(np.float32).max))
    return float(np.spacing(largest / 2)) * 2 if largest > 1e-30 else float(np.spacing(largest))


def excess(ours: Array, theirs: Array, exact: Array, unit: float) -> str | None:
    """What is wrong with our error, or None."""
    found, other = error(ours, exact), error(theirs, exact)
    return None if found <= 2 * other + unit else f"error {found:.3g}, PyTorch's {other:.3g}, unit {unit:.3g}"


def precise_samples(name: str) -> list[tuple[int, Sample]]:
    """Position and sample: those in float32 with a counterpart in PyTorch."""
    listed = [sample for sample in samples_of(name) if sample.error is None]
    return [
        (position, sample)
        for position, sample in enumerate(listed)
        if sample.torch is not None
        and any(array.dtype == np.float32 for array in sample.inputs)
        and not any(array.dtype.name in ("float16", "bfloat16") for array in sample.inputs)
    ]


def wider(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype == np.float32 else array


@pytest.mark.parametrize("name", [name for name in sampled_ops() if precise_samples(name)])
def test_samples(name: str, needs_compiler: None) -> None:
    torch = pytest.importorskip("torch")
    listed = [sample for sample in samples_of(name) if sample.error is None]
    graph, arrays, owners = joint_graph(listed, gradient=False)
    results = NativeProgram(graph, threads=1)(arrays)
    problems = []
    for position, sample in precise_samples(name):
        ours = [result for result, owner in zip(results, owners, strict=True) if owner == position]
        wide = [wider(array) for array in sample.inputs]
        exact = interpret(trace_graph(sample.build, [types.type_of(array) for array in wide]), wide)
        tensors = [torch.from_numpy(np.array(array, order="C")) for array in sample.inputs]
        theirs = sample.torch(torch, *tensors)
        theirs = list(theirs) if isinstance(theirs, (tuple, list)) else [theirs]
        for number, (one, other, right) in enumerate(zip(ours, theirs, exact, strict=True)):
            if one.dtype != np.float32 or right.dtype != np.float64:
                continue
            wrong = excess(one, other.detach().numpy(), right, last_place(right))
            if wrong is not None:
                problems.append(f"sample {position} {sample.types}, result {number}: {wrong}")
    assert not problems, "\n".join(problems[:5])


# ---- sums of many terms ----


def uniform(*shape: int, low: float = -1.0, high: float = 1.0) -> Array:
    return np.random.default_rng(sum(shape)).uniform(low, high, shape).astype(np.float32)


# name: ours, PyTorch's, inputs
LARGE: dict[str, tuple[Callable[..., Any], Callable[..., Any], Sequence[Array]]] = {
    "sum of all": (ops.sum, lambda t, x: x.sum(), [uniform(100_003, low=0.0)]),
    "sum of rows": (lambda x: ops.sum(x, -1), lambda t, x: x.sum(-1), [uniform(7, 20_001, low=0.0)]),
    "sum of columns": (lambda x: ops.sum(x, 0), lambda t, x: x.sum(0), [uniform(20_001, 19, low=0.0)]),
    "mean over the batch": (
        lambda x: ops.mean(x * 2.0, 0),
        lambda t, x: (x * 2).mean(0),
        [uniform(4000, 3, low=0.5)],
    ),
    "variance": (
        lambda x: ops.var(x, 1),
        lambda t, x: x.var(1, correction=0),
        [uniform(5, 10_000, low=10.0, high=10.1)],
    ),
    "cumulative sum": (
        lambda x: ops.cumulative_sum(x, axis=1),
        lambda t, x: x.cumsum(1),
        [uniform(3, 5000, low=0.0)],
    ),
    "softmax": (lambda x: ops.softmax(x, -1), lambda t, x: x.softmax(-1), [uniform(9, 3000, low=-9, high=9)]),
    "log of a sum": (
        lambda x: ops.logsumexp(x, -1),
        lambda t, x: x.logsumexp(-1),
        [uniform(9, 3001, low=-9, high=9)],
    ),
    "layer norm": (
        lambda x: layer_norm(x),
        lambda t, x: t.nn.functional.layer_norm(x, x.shape[-1:]),
        [uniform(6, 3002, low=3.0, high=4.0)],
    ),
    "batch norm": (
        lambda x: batch_norm(x)[0],
        lambda t, x: t.nn.functional.batch_norm(x, None, None, training=True),
        [uniform(32, 3, 9, 9, low=3.0, high=4.0)],
    ),
    "matrix product": (ops.matmul, lambda t, x, y: x @ y, [uniform(33, 2049), uniform(2049, 65)]),
    "positive matrix product": (
        ops.matmul,
        lambda t, x, y: x @ y,
        [uniform(33, 2047, low=0.0), uniform(2047, 47, low=0.0)],
    ),
    "vector product": (
        ops.matmul,
        lambda t, x, y: x @ y,
        [uniform(30_000, low=0.0), uniform(30_000, low=0.0)],
    ),
    "convolution": (
        conv,
        lambda t, x, w: t.nn.functional.conv2d(x, w),
        [uniform(16, 40, 9, 8, low=0.0), uniform(5, 40, 5, 5, low=0.0)],
    ),
    "product over the batch": (
        lambda x, y: (x * 0.5).T @ y,
        lambda t, x, y: (x * 0.5).T @ y,
        [uniform(3000, 6, low=0.0), uniform(3000, 5, low=0.0)],
    ),
}


def test_sums_of_many_terms(needs_compiler: None) -> None:
    torch = pytest.importorskip("torch")
    problems = []
    for name, (ours, theirs, arrays) in LARGE.items():
        graph = trace_graph(ours, [types.type_of(array) for array in arrays])
        (result,) = NativeProgram(graph, threads=2)(arrays)
        exact = theirs(torch, *(torch.from_numpy(array.astype(np.float64)) for array in arrays)).numpy()
        reference = theirs(torch, *(torch.from_numpy(array) for array in arrays)).numpy()
        wrong = excess(result, reference, exact, last_place(exact))
        if wrong is not None:
            problems.append(f"{name}: {wrong}")
    assert not problems, "\n".join(problems)


def gradients(torch: Any, function: Callable[..., Any], arrays: Sequence[Array], seed: Array) -> list[Array]:
    """PyTorch's gradients by every input."""
    tensors = [torch.from_numpy(array).requires_grad_() for array in arrays]
    function(torch, *tensors).backward(torch.from_numpy(seed))
    return [tensor.grad.numpy() for tensor in tensors]


def test_gradients_of_sums_of_many_terms(needs_compiler: None) -> None:
    torch = pytest.importorskip("torch")
    problems = []
    for name, (ours, theirs, arrays) in LARGE.items():
        graph = gradient_graph(ours, [types.type_of(array) for array in arrays])
        seed = np.random.default_rng(1).uniform(-1, 1, graph.inputs[-1].shape).astype(np.float32)
        results = NativeProgram(graph, threads=2)([*arrays, seed])
        exact = gradients(torch, theirs, [wider(array) for array in arrays], wider(seed))
        reference = gradients(torch, theirs, arrays, seed)
        for number, (one, other, right) in enumerate(zip(results, reference, exact, strict=True)):
            wrong = excess(one, other, right, last_place(right))
            if wrong is not None:
                problems.append(f"{name} by input {number}: {wrong}")
    assert not problems, "\n".join(problems)


def test_most_ops_are_compared() -> None:
    assert len([name for name in REGISTRY if precise_samples(name)]) > 80
