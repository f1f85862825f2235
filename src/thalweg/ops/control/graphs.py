"""What loops and branches share: copies of graphs, what their outputs depend on, stacks of iterations.

In: the graphs that `Scan` and `Cond` hold. Out: values and nodes for the other files of this folder and for
the passes over loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thalweg import types
from thalweg.graph import Graph, Node, Op, Value, builder
from thalweg.ops.core import apply
from thalweg.ops.movement import moveaxis, reshape
from thalweg.ops.sources import full
from thalweg.types import Type

INDEX = Type(types.int64, ())  # of the number of an iteration


def applied(op: Op, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """`apply` whose result is a tuple for any number of outputs."""
    outputs = apply(op, *inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def graph_operations(graph: Graph) -> int:
    """Arithmetic operations of all nodes of a graph."""
    return sum(
        node.op.operations([v.type for v in node.inputs], [v.type for v in node.outputs])
        for node in graph.nodes
    )


def copy_node(node: Node, mapping: dict[int, Value]) -> None:
    """Append a copy of `node` to the current builder, with its source lines; `mapping` gives and receives
    values.
    """
    inputs = tuple([mapping[id(value)] for value in node.inputs])
    copy = Node(node.op, inputs, [value.type for value in node.outputs], node.where, node.scope)
    outputs = builder().append(copy)
    mapping.update((id(old), new) for old, new in zip(node.outputs, outputs, strict=True))


def copied(graph: Graph, inputs: Sequence[Value]) -> list[Value]:
    """`inline` that keeps the source lines of the graph's nodes."""
    mapping = {id(old): new for old, new in zip(graph.inputs, inputs, strict=True)}
    for node in graph.nodes:
        copy_node(node, mapping)
    return [mapping[id(value)] for value in graph.outputs]


def dependences(body: Graph, floating_only: bool = True) -> list[int]:
    """For each output of a graph the inputs that it depends on, as a set of bits; with `floating_only`
    through floating-point values alone, as gradients do.
    """

    def passes(value: Value) -> bool:
        return value.dtype.is_floating or not floating_only

    bits = {id(value): 1 << p if passes(value) else 0 for p, value in enumerate(body.inputs)}
    for node in body.nodes:
        found = 0
        for value in node.inputs:
            found |= bits[id(value)]
        bits.update((id(value), found if passes(value) else 0) for value in node.outputs)
    return [bits[id(value)] for value in body.outputs]


def merge_iterations(stack: Any, axis: int) -> Any:
    """A stack [T, ..] as one tensor in which the iterations have joined the axis `axis` of a slice."""
    shape = (*stack.shape[1 : axis + 1], stack.shape[0] * stack.shape[axis + 1], *stack.shape[axis + 2 :])
    return reshape(moveaxis(stack, 0, axis), shape)


def split_iterations(merged: Any, axis: int, length: int) -> Any:
    """The stack of `length` slices that `merge_iterations` has merged."""
    extent = merged.shape[axis] // length
    shape = (*merged.shape[:axis], length, extent, *merged.shape[axis + 1 :])
    return moveaxis(reshape(merged, shape), axis, 0)


def zeros_of(type: Type) -> Any:
    return full(type.shape, 0, type.dtype)
