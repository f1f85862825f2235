"""The op `checkpoint`: a graph whose inner values are computed again where its gradient needs them.

In: operands. Out: the results of the graph. Its gradient starts from the operands alone, so nothing inside
has to be kept from the forward pass; `recompute` keeps later passes from
finding that the values are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from thalweg.graph import AxisGroup, Builder, Graph, Kind, Narrowed, Op, Value, remove_dead, using
from thalweg.ops.axes import graph_axes
from thalweg.ops.control.graphs import applied, copied, dependences, graph_operations
from thalweg.ops.core import operand, primitive, require
from thalweg.ops.elementwise import recompute
from thalweg.types import Type


@primitive("checkpoint", Kind.OPAQUE)
class Checkpoint(Op):
    """The outputs of `body`, a graph over the inputs (activation checkpointing; Chen et al. 2016,
    arXiv:1604.06174).
    """

    body: Graph

    partial_cotangents: ClassVar[bool] = True

    def infer(self, *inputs: Type) -> tuple[Type, ...]:
        expected = tuple(value.type for value in self.body.inputs)
        require(
            inputs == expected,
            f"checkpoint: the function takes ({', '.join(map(str, expected))}), received "
            f"({', '.join(map(str, inputs))})",
        )
        return tuple(value.type for value in self.body.outputs)

    def reference(self, *operands: np.ndarray[Any, Any]) -> Any:
        from thalweg.interpret import interpret

        return tuple(interpret(self.body, operands))

    def narrowed(self, used: Sequence[bool], *inputs: Type) -> Narrowed | None:
        """Without outputs that nothing reads."""
        order = [position for position, needed in enumerate(used) if needed]
        if len(order) == len(used):
            return None
        body = remove_dead(replace(self.body, outputs=tuple(self.body.outputs[p] for p in order)))
        places = {position: number for number, position in enumerate(order)}
        outputs = tuple(places.get(p) for p in range(len(used)))
        return Narrowed(Checkpoint(body), tuple(range(len(inputs))), outputs)

    def operations(self, inputs: Sequence[Type], outputs: Sequence[Type]) -> int:
        return graph_operations(self.body)

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        return graph_axes(self.body)

    def vjp(
        self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any | None]
    ) -> Sequence[Any | None]:
        """The gradient of the body, behind a body that is computed anew from the inputs."""
        from thalweg.ops.control.branches import graph_gradient

        given = [position for position, g in enumerate(cotangents) if g is not None]
        depends = dependences(self.body)
        reached = 0
        for position in given:
            reached |= depends[position]
        wanted = [position for position in range(len(inputs)) if reached >> position & 1]
        gradients: list[Any | None] = [None] * len(inputs)
        if wanted:
            graph = graph_gradient(self.body, given, wanted)
            again = [recompute(x) for x in inputs]
            received: list[Any] = [cotangents[position] for position in given]
            found = copied(graph, [*again, *received])
            for position, gradient in zip(wanted, found, strict=True):
                gradients[position] = gradient
        return gradients


def checkpoint(function: Callable[..., Sequence[Any]], operands: Sequence[Any] = ()) -> list[Any]:
    """`function(*operands)`, a list of values, whose inner values are computed again for the gradient.

    The function may use any value of the graph around it. `thalweg.checkpoint` is the same for nests of
    tensors.
    """
    from thalweg.ops.control.closures import Traced, closed

    operands = [operand(x) for x in operands]
    with using(Builder()) as inner:
        inputs = [Value(x.type) for x in operands]
        outputs = [operand(x) for x in function(*inputs)]
    graph, free = closed(Traced(inner.nodes, inputs, outputs), "checkpoint")
    return list(applied(Checkpoint(graph), [*operands, *free]))
