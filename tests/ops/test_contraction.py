"""Contractions beyond their samples: operations, blocks of the references, third-order gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from thalweg.graph import Graph, Kind, trace_graph
from thalweg.interpret import interpret
from thalweg.ops import contraction
from thalweg.ops.activations import relu
from thalweg.ops.contraction import conv, conv_transpose, convolution, matmul
from thalweg.ops.linear import einsum, linear
from thalweg.ops.losses import cross_entropy
from thalweg.ops.movement import flatten
from thalweg.ops.pooling import max_pool
from thalweg.ops.samples import values
from thalweg.testing import check_gradient, gradient_graph
from thalweg.types import Type, float32, int64, type_of

Array = np.ndarray[Any, Any]

_LENET = ((6, 1, 5, 5), (6,), (16, 6, 5, 5), (16,), (120, 400), (120,), (84, 120), (84,), (10, 84), (10,))


def _lenet(x: Any, y: Any, *w: Any) -> Any:
    hidden = max_pool(relu(conv(x, w[0], w[1], padding=2)), 2)
    hidden = max_pool(relu(conv(hidden, w[2], w[3])), 2)
    hidden = relu(linear(flatten(hidden, 1), w[4], w[5]))
    return cross_entropy(linear(relu(linear(hidden, w[6], w[7])), w[8], w[9]), y)


def _contractions(graph: Graph, needed: set[int] | None = None) -> int:
    """Operations of the products and convolutions in a graph (of those whose outputs are `needed`)."""
    total = 0
    for node in graph.nodes:
        if needed is not None and not needed & {id(value) for value in node.outputs}:
            continue
        inputs, outputs = [v.type for v in node.inputs], [v.type for v in node.outputs]
        if node.op.kind is Kind.CONTRACTION:
            total += node.op.operations(inputs, outputs)
        elif hasattr(node.op, "body"):
            total += _contractions(node.op.body(*inputs))
    return total


def _live(graph: Graph) -> set[int]:
    found = {id(value) for value in graph.outputs}
    for node in reversed(graph.nodes):
        if found & {id(value) for value in node.outputs}:
            found |= {id(value) for value in node.inputs}
    return found


def test_operations_of_lenet() -> None:
    """Two for every multiplication with its addition; the first convolution needs no input gradient."""
    batch = 3
    inputs = [Type(float32, (batch, 1, 28, 28)), Type(int64, (batch,)), *(Type(float32, s) for s in _LENET)]
    assert _contractions(trace_graph(_lenet, inputs)) == 833_040 * batch

    step = gradient_graph(_lenet, inputs, constants=(0,))
    assert _contractions(step, _live(step)) == 2_263_920 * batch


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("block", [1, 100, 10**9])
def test_blocks_of_the_batch_do_not_change_results(
    groups: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = values(5, 4, 6, 7), values(6, 4 // groups, 3, 2)
    options: dict[str, Any] = {"stride": (2, 1), "padding": 1, "groups": groups}
    graph = trace_graph(lambda a, b: convolution(a, b, **options), [type_of(x), type_of(w)])
    step = gradient_graph(lambda a, b: convolution(a, b, **options), [type_of(x), type_of(w)])
    cotangent = values(*graph.outputs[0].shape, seed=5)
    expected = [*interpret(graph, [x, w]), *interpret(step, [x, w, cotangent])]
    monkeypatch.setattr(contraction, "_BLOCK", block)
    found = [*interpret(graph, [x, w]), *interpret(step, [x, w, cotangent])]
    for ours, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x, w: convolution(x, w, stride=2, padding=1), ((1, 2, 4, 3), (2, 2, 3, 2))),
        (lambda x, w: conv_transpose(x, w, stride=2), ((1, 2, 2, 2), (2, 2, 2, 3))),
        (matmul, ((2, 2, 3), (3, 2))),
        (lambda x, y: einsum("bij,bjk->bki", x, y), ((2, 2, 3), (2, 3, 2))),
    ],
)
def test_third_order_gradients(function: Callable[..., Any], shapes: tuple[tuple[int, ...], ...]) -> None:
    arrays = [values(*shape, seed=i) for i, shape in enumerate(shapes)]
    assert check_gradient(lambda x, y: function(x, y) * function(x, y), arrays, order=3) > 0


def test_one_product_for_a_stack_of_rows() -> None:
    """A 2-d right operand is never repeated along leading axes, neither forward nor in the gradient."""
    inputs = [Type(float32, (4, 5, 6)), Type(float32, (6, 7))]
    step = gradient_graph(matmul, inputs)
    products = [node for node in step.nodes if node.op.name == "matmul"]
    assert [node.outputs[0].shape for node in products] == [(20, 7), (20, 6), (6, 7)]
    assert not [node for node in step.nodes if node.op.name in ("broadcast", "sum")]


def test_einsum_moves_nothing_that_a_flag_can_say() -> None:
    shapes = ((2, 3, 4, 5), (2, 3, 6, 5))
    graph = trace_graph(lambda q, k: einsum("bhqd,bhkd->bhqk", q, k), [Type(float32, s) for s in shapes])
    assert {node.op.name for node in graph.nodes} == {"reshape", "matmul"}


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk,kl,lm->im", ((2, 3), (3, 4), (4, 5), (5, 2))),
        ("a,b,c->cab", ((2,), (3,), (4,))),
        ("ijk,ilm,njm,nlk,abc->", ((2, 3, 4), (2, 5, 3), (3, 3, 3), (3, 5, 4), (1, 2, 2))),
        ("...a,...b,ab->...", ((4, 2, 3), (1, 5), (3, 5))),
        ("iijj->ij", ((3, 3, 2, 2),)),
        ("i...i->...", ((3, 2, 3),)),
        ("ab...,b...->a...", ((2, 3, 4, 5), (3, 4, 5))),
        ("ij", ((2, 3),)),
        ("ba", ((2, 3),)),
        (" i j , j -> i ", ((2, 3), (3,))),
        ("ij,ij->j", ((1, 3), (4, 3))),
        (",i->i", ((), (3,))),
        ("ij->", ((0, 3),)),
    ],
)
def test_einsum_against_numpy(equation: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    arrays = [values(*shape, dtype="float64", seed=i) for i, shape in enumerate(shapes)]
    graph = trace_graph(lambda *operands: einsum(equation, *operands), [type_of(a) for a in arrays])
    (found,) = interpret(graph, arrays)
    np.testing.assert_allclose(found, np.einsum(equation, *arrays), rtol=1e-12, atol=1e-12)


def test_einsum_of_integers() -> None:
    x, y = values(2, 3, dtype="int32", low=-9, high=9), values(3, 4, dtype="int64", low=-9, high=9)
    graph = trace_graph(lambda a, b: einsum("ij,jk->i", a, b), [type_of(x), type_of(y)])
    (found,) = interpret(graph, [x, y])
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, np.einsum("ij,jk->i", x.astype(np.int64), y))
