"""Random graphs on special values: simplified they give the same bits, legalised the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import thalweg.ops as ops
from thalweg import types
from thalweg.autodiff import vjp
from thalweg.graph import Graph, Node, Value, parse, trace_graph
from thalweg.interpret import interpret
from thalweg.ops.control import graph_operations
from thalweg.ops.core import Composite, cast, operand
from thalweg.ops.sources import constant
from thalweg.passes import legalise, prepare, simplify
from thalweg.types import Type

Array = np.ndarray[Any, Any]

# Few bits each, so that sums and products of some of them are exact in any order.
NUMBERS = np.array([0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -0.5, 4.0, np.inf, -np.inf, np.nan])
SHAPES = [(), (1,), (3,), (2, 3), (1, 3), (3, 1), (2, 1, 3), (0, 3)]


class Growth:
    """Makes a random graph: a pool of values, to which ops on values of the pool are added."""

    def __init__(self, seed: int, composites: bool) -> None:
        self.generator = np.random.Generator(np.random.PCG64(seed))
        self.composites = composites
        self.dtype = ("float32", "float64", "float32", "int32")[seed % 4]
        self.types = [Type(types.dtype(self.dtype), self.pick(SHAPES)) for _ in range(3)]
        self.steps = int(self.generator.integers(4, 14))
        self.inexact: set[int] = set()  # ids of values that are rounded: the order of adding them matters

    def pick(self, items: Any) -> Any:
        return items[int(self.generator.integers(len(items)))]

    def arrays(self) -> list[Array]:
        numbers = NUMBERS if self.dtype.startswith("float") else np.array([0, 1, -1, 2, 5, -7])
        return [
            np.asarray(self.generator.choice(numbers, type.shape)).astype(type.dtype.numpy)
            for type in self.types
        ]

    def build(self, *inputs: Value) -> Any:
        pool = list(inputs)
        for _ in range(self.steps):
            sources = [self.pick(pool), self.pick(pool)]
            made = self.apply(*sources)
            if made is None:
                continue
            if any(id(source) in self.inexact for source in sources):
                self.inexact.add(id(made))
            pool.append(made)
        return pool[-3:]

    def apply(self, x: Value, y: Value) -> Value | None:
        families = [self.unary, self.binary, self.movement, self.binary, self.reduction]
        if self.composites:
            families.append(self.composite)
        return self.pick(families)(x, y)

    def unary(self, x: Value, y: Value) -> Value:
        floating: list[Callable[[Value], Value]] = [
            ops.exp,
            ops.tanh,
            ops.sqrt,
            lambda v: v / 2.0,
            lambda v: v / 3.0,
        ]
        exact: list[Callable[[Value], Value]] = [
            lambda v: -v,
            lambda v: abs(v),
            lambda v: v * 1,
            lambda v: v + 0,
            lambda v: v - 0,
            lambda v: v * -1,
            lambda v: v * 0,
            lambda v: cast(cast(v, "float64"), v.dtype),
            lambda v: ops.where(~(v > 0), v, -v),
            lambda v: v * (operand(2, v.dtype) * 2 - 3),
            ops.stop_gradient,
        ]
        if x.dtype.is_floating and self.generator.random() < 0.25:
            result = self.pick(floating)(x)
            self.inexact.add(id(result))
            return result
        return self.pick(exact)(x)

    def binary(self, x: Value, y: Value) -> Value | None:
        try:
            np.broadcast_shapes(x.shape, y.shape)
        except ValueError:
            return None
        return self.pick([ops.add, ops.subtract, ops.multiply, ops.maximum, ops.minimum, self.select])(x, y)

    def select(self, x: Value, y: Value) -> Value:
        return ops.where(x < y, x, y)

    def movement(self, x: Value, y: Value) -> Value:
        order = tuple(int(axis) for axis in self.generator.permutation(x.ndim))
        choices: list[Callable[[Value], Value]] = [
            lambda v: ops.transpose(v, order),
            lambda v: ops.reshape(v, (-1,)) if v.size else v,
            lambda v: ops.broadcast_to(v, (2, *v.shape)),
            lambda v: ops.flip(v) if v.ndim else v,
            lambda v: ops.pad(v, 1, self.pick([0, 1])) if v.ndim else v,
            lambda v: v[(slice(1, None),) * v.ndim] if v.ndim else v,
            lambda v: ops.concat([v, v]) if v.ndim else v,
            lambda v: v[::2] if v.ndim else v,
            lambda v: ops.reshape(v, (1, *v.shape)),
            lambda v: v * constant(np.resize([1, 2], v.shape).astype(v.dtype.numpy)),
        ]
        result = self.pick(choices)(x)
        return result if result.size < 500 else x

    def reduction(self, x: Value, y: Value) -> Value | None:
        if x.ndim == 0 or 0 in x.shape:
            return None
        axis = int(self.generator.integers(x.ndim))
        if id(x) in self.inexact:
            return ops.max(x, axis)
        product = [lambda v: ops.swapaxes(v, -1, -2) @ v] if x.ndim > 1 else []
        return self.pick([lambda v: cast(ops.sum(v, axis), v.dtype), lambda v: ops.min(v, axis), *product])(x)

    def composite(self, x: Value, y: Value) -> Value | None:
        if not x.dtype.is_floating or x.ndim == 0 or 0 in x.shape:
            return None
        result = self.pick(
            [lambda v: ops.softmax(v, axis=-1), ops.relu, lambda v: ops.var(v, -1), lambda v: ops.mean(v, 0)]
        )(x)
        self.inexact.add(id(result))
        return result


def contiguous(graph: Graph, arrays: list[Array]) -> list[Array]:
    """The interpreter on row-major copies: NumPy's results may depend on the strides of its operands."""
    known = {id(value): array for value, array in zip(graph.inputs, arrays, strict=True)}
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            results = node.op.reference(*(np.array(known[id(value)], order="C") for value in node.inputs))
            results = results if isinstance(results, tuple) else (results,)
            known.update(
                (id(value), np.asarray(result)) for value, result in zip(node.outputs, results, strict=True)
            )
    return [known[id(value)] for value in graph.outputs]


def same_bits(first: Array, second: Array) -> None:
    assert first.dtype == second.dtype and first.shape == second.shape
    np.testing.assert_array_equal(first, second)
    if first.dtype.kind == "f":
        number = ~np.isnan(first)
        np.testing.assert_array_equal(np.signbit(first[number]), np.signbit(second[number]))


def nothing(node: Node) -> bool:
    return False


@pytest.mark.parametrize("seed", range(240))
def test_simplified_graphs_give_the_same_bits(seed: int) -> None:
    growth = Growth(seed, composites=False)
    graph = trace_graph(growth.build, growth.types).verify()
    found = simplify(graph).verify()
    assert graph_operations(found) <= graph_operations(graph)
    for _ in range(3):
        arrays = growth.arrays()
        for result, plain in zip(contiguous(found, arrays), contiguous(graph, arrays), strict=True):
            same_bits(result, plain)
    assert parse(found.text()).digest() == found.digest()
    assert simplify(found).text(spans=False) == found.text(spans=False)


@pytest.mark.parametrize("seed", range(80))
def test_legalised_graphs_give_the_same_numbers(seed: int) -> None:
    growth = Growth(1000 + seed, composites=True)
    graph = trace_graph(growth.build, growth.types)
    inlined, prepared = legalise(graph, nothing).verify(), prepare(graph, nothing).verify()
    for found in (inlined, prepared):
        assert not any(isinstance(node.op, Composite) for node in found.nodes)
    arrays = growth.arrays()
    for plain, first, second in zip(
        interpret(graph, arrays), interpret(inlined, arrays), interpret(prepared, arrays), strict=True
    ):
        np.testing.assert_allclose(first, plain, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(second, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(60))
def test_gradient_graphs(seed: int) -> None:
    """The same for gradients; each node keeps a source line of the function that was differentiated."""
    growth = Growth(2000 + seed, composites=True)
    growth.dtype = "float64"
    growth.types = [Type(types.float64, type.shape) for type in growth.types]

    def gradient(*inputs: Value) -> list[Value]:
        results = growth.build(*inputs)
        total = ops.sum(results[-1])
        return [g for g in vjp([total], [operand(1.0, total.dtype)], inputs) if g is not None] or [total]

    graph = trace_graph(gradient, growth.types)
    found = prepare(graph, nothing).verify()
    arrays = [np.random.Generator(np.random.PCG64(seed)).normal(size=type.shape) for type in growth.types]
    for plain, result in zip(interpret(graph, arrays), interpret(found, arrays), strict=True):
        np.testing.assert_allclose(result, plain, rtol=1e-9, atol=1e-9)
    for node in found.nodes:
        assert any(span.file == __file__ for span in node.where)
