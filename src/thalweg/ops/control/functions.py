"""`scan` and `cond` as functions of graph values. `thalweg.tensor.control` offers the same for tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from thalweg.errors import ArgumentError, ShapeError
from thalweg.graph import Builder, Graph, Value, using
from thalweg.ops.control.branches import Cond
from thalweg.ops.control.closures import Traced, closed
from thalweg.ops.control.graphs import INDEX, applied
from thalweg.ops.control.loop import Scan
from thalweg.ops.core import operand
from thalweg.types import Type

Body = Callable[[Any, list[Any], list[Any]], tuple[Sequence[Any], Sequence[Any]]]


def scan(
    body: Body,
    carries: Sequence[Any],
    xs: Sequence[Any] = (),
    length: int | None = None,
    reverse: bool = False,
    name: str = "body",
) -> tuple[list[Any], list[Any]]:
    """Loop over graph values: `body(iteration, carries, slices)` gives (new carries, further slices).

    `xs` are cut into slices along axis 0. Returns the last carries and the further slices stacked along a new
    axis 0. The body may use any value of the graph around it. `thalweg.scan` is the same for nests of
    tensors.
    """
    carries, xs = [operand(x) for x in carries], [operand(x) for x in xs]
    count = scan_length(xs, length)
    with using(Builder()) as inner:
        iteration = Value(INDEX)
        own = [Value(x.type) for x in carries]
        slices = [Value(Type(x.dtype, x.shape[1:])) for x in xs]
        after, stacked = body(iteration, list(own), list(slices))
        outputs = [operand(x) for x in (*after, *stacked)]
    if len(after) != len(carries):
        raise ArgumentError(
            f"scan: the body takes {len(carries)} carries and gives {len(after)}; it must give as many"
        )
    graph, free = closed(Traced(inner.nodes, [iteration, *own, *slices], outputs), name, iteration)
    results = applied(Scan(graph, count, len(carries), len(xs), reverse), [*carries, *xs, *free])
    return list(results[: len(carries)]), list(results[len(carries) :])


def scan_length(xs: Sequence[Any], length: Any) -> int:
    """The number of iterations: `length`, or the common size of axis 0 of `xs`; raises where they do not
    agree.
    """
    for position, x in enumerate(xs):
        if x.ndim == 0:
            raise ShapeError(
                f"scan cuts its tensors along axis 0, but tensor {position} of xs is 0-d; what every "
                "iteration needs whole is used in the body directly"
            )
    sizes: list[int] = [x.shape[0] for x in xs]
    if len(set(sizes)) > 1:
        raise ShapeError(f"scan: the tensors of xs have the sizes {sizes} along axis 0; they must be equal")
    if length is None:
        if not sizes:
            raise ArgumentError("scan without xs needs the number of iterations: scan(f, init, length=10)")
        return sizes[0]
    if isinstance(length, bool) or not isinstance(length, (int, np.integer)) or length < 0:
        raise ArgumentError(f"scan: length must be an integer of at least 0, received {length!r}")
    if sizes and sizes[0] != length:
        raise ShapeError(f"scan: length is {length}, but the tensors of xs have size {sizes[0]} along axis 0")
    return sizes[0] if sizes else int(length)


def cond(
    predicate: Any,
    then: Callable[..., Sequence[Any]],
    otherwise: Callable[..., Sequence[Any]],
    operands: Sequence[Any] = (),
) -> list[Any]:
    """`then(*operands)` where `predicate` (bool, 0-d) is true, else `otherwise(*operands)`: lists of values.

    Only the branch that is taken runs. The branches may use any value of the graph around them.
    `thalweg.cond` is the same for nests of tensors.
    """
    operands = [operand(x) for x in operands]
    traced = []
    for function in (then, otherwise):
        with using(Builder()) as inner:
            inputs = [Value(x.type) for x in operands]
            outputs = [operand(x) for x in function(*inputs)]
        traced.append(Traced(inner.nodes, inputs, outputs))
    branches, free = closed_branches(traced)
    return list(applied(Cond(*branches), [operand(predicate), *operands, *free]))


def closed_branches(functions: Sequence[Traced]) -> tuple[list[Graph], list[Value]]:
    """Graphs of functions of equal inputs, and what any of them reads from outside: their last inputs."""
    found = [closed(one, name) for one, name in zip(functions, ("then", "otherwise"), strict=True)]
    free = list({id(value): value for _, outside in found for value in outside}.values())
    branches = []
    for graph, outside in found:
        count = len(graph.inputs) - len(outside)
        places = {id(value): inner for value, inner in zip(outside, graph.inputs[count:], strict=True)}
        rest = [places[id(value)] if id(value) in places else Value(value.type) for value in free]
        branches.append(replace(graph, inputs=(*graph.inputs[:count], *rest)))
    return branches, free
