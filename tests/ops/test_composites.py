"""Activations, losses, norms and lookups beyond their samples: stability, what is kept, order three."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from thalweg.autodiff import vjp
from thalweg.errors import IndexRangeError
from thalweg.graph import Graph, Value, trace_graph
from thalweg.graph.build import builder
from thalweg.interpret import interpret
from thalweg.ops.activations import (
    gelu,
    log_softmax,
    logsumexp,
    mish,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
)
from thalweg.ops.embedding import embedding
from thalweg.ops.losses import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    kl_div,
    mse_loss,
)
from thalweg.ops.normalization import batch_norm, group_norm, layer_norm, rms_norm
from thalweg.ops.samples import values
from thalweg.testing import check_gradient, gradient_graph
from thalweg.types import Type, float32, int64, type_of

Array = np.ndarray[Any, Any]


def _run(function: Callable[..., Any], *arrays: Array) -> list[Array]:
    return interpret(trace_graph(function, [type_of(array) for array in arrays]), arrays)


def _gradient(function: Callable[..., Any], *arrays: Array) -> list[Array]:
    """Gradients of the sum of a function's first result."""
    graph = gradient_graph(function, [type_of(array) for array in arrays])
    cotangents = [np.ones(value.shape, value.dtype.numpy) for value in graph.inputs[len(arrays) :]]
    return interpret(graph, [*arrays, *cotangents])


LABELS = np.array([0, 2, 1])

THIRD_ORDER: dict[str, tuple[Callable[..., Any], list[Array]]] = {
    "softmax": (softmax, [values(2, 3)]),
    "log_softmax": (log_softmax, [values(2, 3)]),
    "logsumexp": (lambda x: logsumexp(x, 1), [values(2, 3)]),
    "sigmoid": (sigmoid, [values(3)]),
    "silu": (silu, [values(3)]),
    "softplus": (softplus, [values(3)]),
    "mish": (mish, [values(3)]),
    "gelu": (gelu, [values(3)]),
    "gelu_tanh": (lambda x: gelu(x, approximate="tanh"), [values(3)]),
    "layer_norm": (layer_norm, [values(2, 3), values(3), values(3)]),
    "rms_norm": (rms_norm, [values(2, 3), values(3)]),
    "group_norm": (lambda x: group_norm(x, num_groups=2), [values(2, 4, 2)]),
    "batch_norm": (lambda x, w, b: batch_norm(x, w, b)[0], [values(3, 2), values(2), values(2)]),
    "cross_entropy": (lambda x: cross_entropy(x, LABELS, reduction="none"), [values(3, 4)]),
    "smoothed": (lambda x: cross_entropy(x, LABELS, values(4), label_smoothing=0.1), [values(3, 4)]),
    "probabilities": (cross_entropy, [values(2, 3), values(2, 3, low=0.1, high=0.9)]),
    "mse_loss": (mse_loss, [values(2, 3), values(2, 3, seed=1)]),
    "huber_loss": (huber_loss, [values(2, 3), values(2, 3, seed=1)]),
    "logits": (binary_cross_entropy_with_logits, [values(4), values(4, low=0.1, high=0.9)]),
    "kl_div": (kl_div, [values(2, 3), values(2, 3, low=0.1, high=0.9)]),
}


@pytest.mark.parametrize("name", THIRD_ORDER)
def test_third_order_gradients(name: str) -> None:
    function, arrays = THIRD_ORDER[name]

    def cubed(*operands: Any) -> Any:
        y = function(*operands)
        return y * y * y

    assert check_gradient(cubed, arrays, order=3) > 0


# ---- what a gradient keeps ---------------------------------------------------------------------------------


def _read_by_gradient(function: Callable[..., Any], *inputs: Type) -> set[str]:
    """Names of the forward ops (and "input") whose results the nodes of the gradient read."""
    read: set[str] = set()
    cotangent = Value(trace_graph(function, inputs).outputs[0].type)

    def build(*operands: Any) -> Any:
        result = function(*operands)
        forward = list(builder().nodes)
        known = {id(value): node.op.name for node in forward for value in node.outputs}
        known.update((id(value), "input") for value in operands)
        found = vjp([result], [cotangent], operands[:1])
        for node in builder().nodes[len(forward) :]:
            read.update(known[id(value)] for value in node.inputs if id(value) in known)
        return found

    trace_graph(build, inputs)
    return read


def test_relu_and_softmax_need_their_outputs_only() -> None:
    x = Type(float32, (3, 5))
    assert _read_by_gradient(relu, x) == {"relu"}
    assert _read_by_gradient(softmax, x) == {"softmax"}
    assert _read_by_gradient(log_softmax, x) == {"log_softmax"}
    assert _read_by_gradient(sigmoid, x) == {"sigmoid"}


def test_residuals_are_small() -> None:
    """Norms and cross entropy keep numbers per row besides their input, nothing of its size."""
    x, y = Type(float32, (3, 50)), Type(int64, (3,))
    for function, inputs in ((layer_norm, [x]), (rms_norm, [x]), (cross_entropy, [x, y])):
        graph = gradient_graph(function, inputs)
        names = [node.op.name for node in graph.nodes]
        (residual,) = [node for node in graph.nodes if node.op.name.endswith("_with_residuals")]
        assert all(value.size <= 3 for value in residual.outputs[1:])
        assert any(name.endswith("_gradient") for name in names)


# ---- stability ---------------------------------------------------------------------------------------------


def test_large_scores_lose_nothing() -> None:
    """A constant added to all scores changes loss and gradient by no more than rounding."""
    x = np.array([[1.0, 2.0, 4.0], [0.0, -3.0, 0.5]], np.float32)
    labels = np.array([1, 0])
    near = _gradient(lambda v: cross_entropy(v, labels), x)
    far = _gradient(lambda v: cross_entropy(v, labels), x + np.float32(2**20))
    np.testing.assert_allclose(far[0], near[0], rtol=2e-7)
    np.testing.assert_array_equal(
        _run(lambda v: cross_entropy(v, labels), x),
        _run(lambda v: cross_entropy(v, labels), x + np.float32(2**20)),
    )


def test_extreme_inputs_stay_finite() -> None:
    x = np.array([-1e30, -1000.0, -100.0, 0.0, 100.0, 1000.0, 1e30], np.float32)
    for function in (softplus, silu, mish, gelu, sigmoid):
        (value,), (slope,) = _run(function, x), _gradient(function, x)
        assert np.isfinite(value).all(), function
        assert np.isfinite(slope).all(), function
    for target in (0.0, 1.0):
        loss = lambda v, t=target: binary_cross_entropy_with_logits(v, np.full(7, t, np.float32))  # noqa: E731
        assert np.isfinite(_run(loss, x)).all()
        assert np.isfinite(_gradient(loss, x)).all()


def test_half_precision_is_rounded_once() -> None:
    x = values(64, 33, dtype="bfloat16", low=-5, high=5)
    for function in (softmax, log_softmax, gelu, silu, layer_norm, lambda v: rms_norm(v, eps=1e-5)):
        (found,) = _run(function, x)
        (exact,) = _run(function, x.astype(np.float32))
        np.testing.assert_array_equal(found, exact.astype(x.dtype))


# ---- labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "uint64"])
def test_every_integer_type_of_label(dtype: str) -> None:
    """Also where the classes are more than the type can count."""
    x = values(4, 300)
    labels = np.array([0, 7, 100, 127])
    (expected,) = _run(lambda v, y: cross_entropy(v, y), x, labels)
    (found,) = _run(lambda v, y: cross_entropy(v, y), x, labels.astype(dtype))
    np.testing.assert_array_equal(found, expected)
    step = gradient_graph(cross_entropy, [type_of(x), type_of(labels.astype(dtype))])
    (slopes,) = interpret(step, [x, labels.astype(dtype), np.float32(1).reshape(())])
    assert (np.argmin(slopes, 1) == labels).all()


def test_a_bad_label_is_named_with_the_users_line() -> None:
    graph = trace_graph(cross_entropy, [Type(float32, (2, 10)), Type(int64, (2,))])
    with pytest.raises(IndexRangeError, match=r"index 10 .*expected 0 to 9") as caught:
        interpret(graph, [values(2, 10), np.array([3, 10])])
    assert __file__ in str(caught.value)


def test_ignored_samples_change_nothing() -> None:
    x, labels = values(4, 5), np.array([1, -100, 3, -100])
    (loss,) = _run(lambda v: cross_entropy(v, labels), x)
    (fewer,) = _run(lambda v: cross_entropy(v, labels[::2]), x[::2])
    np.testing.assert_array_equal(loss, fewer)
    (slopes,) = _gradient(lambda v: cross_entropy(v, labels), x)
    assert (slopes[1::2] == 0).all()
    assert (slopes[::2] != 0).all()


def test_padding_row_has_no_gradient() -> None:
    weight, indices = values(5, 3), np.array([[0, 2], [2, 4]])
    (slopes,) = _gradient(lambda w: embedding(w, indices, padding_idx=2), weight)
    np.testing.assert_array_equal(
        slopes, np.array([1, 0, 0, 0, 1], np.float32)[:, None] * np.ones(3, np.float32)
    )


def test_statistics_of_batch_norm_are_constants() -> None:
    def loss(x: Any) -> Any:
        _, mean, variance = batch_norm(x)
        return mean + variance

    (slopes,) = _gradient(loss, values(4, 3))
    assert (slopes == 0).all()


def _names(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes]


def test_gradient_of_the_classifier_is_a_handful_of_nodes() -> None:
    """No node of a size beyond what a person can read: the loss and its gradient are one composite each."""
    graph = gradient_graph(cross_entropy, [Type(float32, (8, 10)), Type(int64, (8,))])
    assert _names(graph) == ["cross_entropy", "cross_entropy_with_residuals", "cross_entropy_gradient"]
