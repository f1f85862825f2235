"""The op `cond`: one of two graphs. In: a predicate and operands. Out: the results of the branch taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from thalweg import types
from thalweg.errors import DTypeError, ShapeError
from thalweg.graph import AxisGroup, Builder, Graph, Kind, Narrowed, Op, Value, remove_dead, using
from thalweg.ops.axes import AxisClasses
from thalweg.ops.control.graphs import applied, copied, dependences, graph_operations, zeros_of
from thalweg.ops.core import primitive, require
from thalweg.types import Type


@primitive("cond", Kind.OPAQUE)
class Cond(Op):
    """`then` where the first input (bool, 0-d) is true, else `otherwise`: graphs over the remaining inputs.

    Only the branch that is taken runs.
    """

    then: Graph
    otherwise: Graph

    partial_cotangents: ClassVar[bool] = True

    @property
    def checked(self) -> bool:
        """Whether an op of a branch may meet an index out of range."""
        return any(node.op.checked for branch in (self.then, self.otherwise) for node in branch.nodes)

    def infer(self, *inputs: Type) -> tuple[Type, ...]:
        require(bool(inputs), "cond needs a predicate")
        if inputs[0] != Type(types.bool_, ()):
            raise (ShapeError if inputs[0].dtype.is_bool else DTypeError)(
                f"cond needs a 0-d bool predicate, received {inputs[0]}; write for example (x > 0).any()"
            )
        for branch in (self.then, self.otherwise):
            taken = tuple(value.type for value in branch.inputs)
            require(
                taken == inputs[1:], f"cond: a branch takes {_listed(taken)}, received {_listed(inputs[1:])}"
            )
        first, second = (tuple(v.type for v in branch.outputs) for branch in (self.then, self.otherwise))
        require(
            len(first) == len(second),
            f"cond: the branch for true gives {len(first)} tensors, the one for false {len(second)}",
        )
        for position, (one, other) in enumerate(zip(first, second, strict=True)):
            if one != other:
                raise (ShapeError if one.shape != other.shape else DTypeError)(
                    f"cond: result {position} is {one} in the branch for true and {other} in the one for "
                    "false; both must have the same shape and element type"
                )
        return first

    def reference(self, predicate: np.ndarray[Any, Any], *operands: np.ndarray[Any, Any]) -> Any:
        from thalweg.interpret import interpret

        return tuple(interpret(self.then if predicate else self.otherwise, operands))

    def narrowed(self, used: Sequence[bool], *inputs: Type) -> Narrowed | None:
        """Without outputs that nothing reads."""
        order = [position for position, needed in enumerate(used) if needed]
        if len(order) == len(used):
            return None
        branches = [
            remove_dead(replace(branch, outputs=tuple(branch.outputs[p] for p in order)))
            for branch in (self.then, self.otherwise)
        ]
        places = {position: number for number, position in enumerate(order)}
        outputs = tuple(places.get(p) for p in range(len(used)))
        return Narrowed(Cond(*branches), tuple(range(len(inputs))), outputs)

    def operations(self, inputs: Sequence[Type], outputs: Sequence[Type]) -> int:
        return max(graph_operations(self.then), graph_operations(self.otherwise))

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        classes = AxisClasses(self.then, self.otherwise)
        pairs = zip(
            (*self.then.inputs, *self.then.outputs),
            (*self.otherwise.inputs, *self.otherwise.outputs),
            strict=True,
        )
        for first, second in pairs:
            for one, other in zip(classes.places(first), classes.places(second), strict=True):
                classes.join(one, other)
        given = [classes.places(value) for value in self.then.inputs]
        return classes.groups([[], *given], [classes.places(value) for value in self.then.outputs])

    def vjp(
        self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any | None]
    ) -> Sequence[Any | None]:
        """The predicate chooses between the gradients of the branches, which compute their branch again."""
        given = [position for position, g in enumerate(cotangents) if g is not None]
        reached = 0
        for branch in (self.then, self.otherwise):
            depends = dependences(branch)
            for position in given:
                reached |= depends[position]
        wanted = [position for position in range(len(inputs) - 1) if reached >> position & 1]
        if not wanted:
            return [None] * len(inputs)
        branches = [graph_gradient(branch, given, wanted) for branch in (self.then, self.otherwise)]
        found = applied(Cond(*branches), [*inputs, *(cotangents[position] for position in given)])
        gradients: list[Any | None] = [None] * len(inputs)
        for position, gradient in zip(wanted, found, strict=True):
            gradients[position + 1] = gradient
        return gradients


def _listed(listed: Sequence[Type]) -> str:
    return f"({', '.join(map(str, listed))})"


def graph_gradient(branch: Graph, given: Sequence[int], wanted: Sequence[int]) -> Graph:
    """The graph (operands, cotangents of the outputs `given`) -> gradients of the operands `wanted`. It
    computes `branch` again."""
    from thalweg.autodiff import vjp

    with using(Builder()) as target:
        inputs = [Value(value.type) for value in branch.inputs]
        outputs = copied(branch, inputs)
        cotangents = [Value(outputs[position].type) for position in given]
        operands = [inputs[position] for position in wanted]
        found = vjp([outputs[position] for position in given], cotangents, operands)
        gradients = [zeros_of(x.type) if g is None else g for x, g in zip(operands, found, strict=True)]
    graph = Graph(
        (*inputs, *cotangents), tuple(target.nodes), tuple(gradients), (), f"{branch.name}_gradient"
    )
    return remove_dead(graph)
