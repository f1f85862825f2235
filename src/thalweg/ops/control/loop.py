"""The op `scan`: a loop that carries values and collects slices.

In: a graph of one iteration. Out: its op, which `functions.scan` applies; `gradient` differentiates it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from thalweg.errors import DTypeError, ShapeError
from thalweg.graph import AxisGroup, Graph, Kind, Narrowed, Op, remove_dead
from thalweg.ops.axes import AxisClasses, Place
from thalweg.ops.control.graphs import INDEX, applied, dependences, graph_operations
from thalweg.ops.core import primitive, require
from thalweg.types import Type


@primitive("scan", Kind.OPAQUE)
class Scan(Op):
    """`length` applications of `body`, each to the carries of the one before.

    Inputs: the first carries, then tensors whose axis 0 (of size `length`) is cut into slices, then
    constants. `body` takes (iteration int64, carries, slices, constants) and gives (carries, further slices).
    Outputs: the last carries, then the further slices stacked along a new axis 0. With `reverse` the
    iterations run from the last to the first. The last `residuals` outputs are there for the gradient only.
    """

    body: Graph
    length: int
    carries: int
    slices: int
    reverse: bool = False
    residuals: int = 0

    partial_cotangents: ClassVar[bool] = True

    def key(self) -> tuple[Any, ...]:
        """Without `residuals`: what an output is for does not change what is computed."""
        cached = self.__dict__.get("_key")
        if cached is None:
            cached = (Scan, self.body.digest(), int(self.length), self.carries, self.slices, self.reverse)
            object.__setattr__(self, "_key", cached)
        return cached

    def is_cut(self, position: int) -> bool:
        """Whether input `position` is cut into slices."""
        return self.carries <= position < self.carries + self.slices

    @property
    def checked(self) -> bool:
        """Whether an op of the body may meet an index out of range."""
        return any(node.op.checked for node in self.body.nodes)

    def infer(self, *inputs: Type) -> tuple[Type, ...]:
        expected = len(self.body.inputs) - 1
        require(
            len(inputs) == expected and self.body.inputs[0].type == INDEX,
            f"scan: the body takes the iteration and {expected} tensors, received {len(inputs)} tensors",
        )
        for position, (given, inner) in enumerate(zip(inputs, self.body.inputs[1:], strict=True)):
            self._check_input(position, given, inner.type)
        for position in range(self.carries):
            self._check_carry(position, inputs[position], self.body.outputs[position].type)
        stacked = [Type(v.dtype, (self.length, *v.shape)) for v in self.body.outputs[self.carries :]]
        return (*inputs[: self.carries], *stacked)

    def _check_carry(self, position: int, before: Type, after: Type) -> None:
        if before == after:
            return
        error = ShapeError if before.shape != after.shape else DTypeError
        raise error(
            f"scan: carry {position} is {before} before an iteration and {after} after it; a carry keeps its "
            f"shape and element type: start from a value of type {after}, or cast or reshape it in the body "
            f"to {before}"
        )

    def _check_input(self, position: int, given: Type, inner: Type) -> None:
        """Raise unless an input is what the body takes: a slice of it for those that are cut."""
        if not self.is_cut(position):
            require(given == inner, f"scan: input {position} is {given}, the body takes {inner}")
            return
        number = position - self.carries
        require(
            given.ndim > 0 and given.shape[0] == self.length,
            f"scan: tensor {number} of those that are cut into slices is {given}; the size of its axis 0 "
            f"must be the number of iterations, {self.length}",
        )
        part = Type(given.dtype, given.shape[1:])
        require(part == inner, f"scan: slices of tensor {number} are {part}, the body takes {inner}")

    def reference(self, *inputs: np.ndarray[Any, Any]) -> Any:
        from thalweg.interpret import Interpreter

        run = Interpreter(self.body)
        carries = list(inputs[: self.carries])
        cut = inputs[self.carries : self.carries + self.slices]
        constants = inputs[self.carries + self.slices :]
        outputs = self.body.outputs[self.carries :]
        stacks = [np.empty((self.length, *value.shape), value.dtype.numpy) for value in outputs]
        order = range(self.length)
        for number in reversed(order) if self.reverse else order:
            results = run([np.asarray(number, np.int64), *carries, *(x[number] for x in cut), *constants])
            carries = results[: self.carries]
            for stack, result in zip(stacks, results[self.carries :], strict=True):
                stack[number] = result
        return (*carries, *stacks)

    def narrowed(self, used: Sequence[bool], *inputs: Type) -> Narrowed | None:
        """Without stacks that nothing reads, and without carries that no result depends on."""
        depends = dependences(self.body, floating_only=False)
        kept = {position for position, needed in enumerate(used) if needed}
        while True:
            reached = 0
            for position in kept:
                reached |= depends[position]
            found = kept | {p for p in range(self.carries) if reached >> (p + 1) & 1}
            if found == kept:
                break
            kept = found
        if len(kept) == len(used):
            return None
        order = sorted(kept)
        taken = [p for p in range(len(inputs)) if p >= self.carries or p in kept]
        body = replace(
            self.body,
            inputs=(self.body.inputs[0], *(self.body.inputs[p + 1] for p in taken)),
            outputs=tuple(self.body.outputs[p] for p in order),
        )
        residuals = sum(p >= len(used) - self.residuals for p in order)
        carries = sum(p < self.carries for p in order)
        places = {position: number for number, position in enumerate(order)}
        op = replace(self, body=remove_dead(body), carries=carries, residuals=residuals)
        return Narrowed(op, tuple(taken), tuple(places.get(p) for p in range(len(used))))

    def operations(self, inputs: Sequence[Type], outputs: Sequence[Type]) -> int:
        return self.length * graph_operations(self.body)

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        classes = AxisClasses(self.body)
        for before, after in zip(self.body.inputs[1 : self.carries + 1], self.body.outputs, strict=False):
            for first, second in zip(classes.places(before), classes.places(after), strict=True):
                classes.join(first, second)
        places: list[list[Place | None]] = [[*classes.places(value)] for value in self.body.inputs[1:]]
        results: list[list[Place | None]] = [[*classes.places(value)] for value in self.body.outputs]
        for position, found in enumerate(places):
            if self.is_cut(position):
                found.insert(0, None)  # the axis of the iterations
        for found in results[self.carries :]:
            found.insert(0, None)
        return classes.groups(places, results)

    # ---- gradient ------------------------------------------------------------------------------------------

    def with_residuals(self) -> Scan | None:
        """The same scan that also stacks what its gradient needs, whichever outputs have a cotangent."""
        from thalweg.ops.control.gradient import scan_gradient

        given = tuple(value.dtype.is_floating for value in self.body.outputs)
        return scan_gradient(self, given).forward if any(given) else None

    def without_residuals(self) -> Scan | None:
        """Of a residual form: the scan as it was."""
        if not self.residuals:
            return None
        body = remove_dead(replace(self.body, outputs=self.body.outputs[: -self.residuals]))
        return replace(self, body=body, residuals=0)

    def vjp(
        self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any | None]
    ) -> Sequence[Any | None]:
        from thalweg.ops.control.gradient import ScanGradient, scan_gradient

        count = len(cotangents) - self.residuals
        known: ScanGradient | None = self.__dict__.get("_gradient")
        if (
            known is None
            or any(g is not None for g in cotangents[count:])
            or not known.covers(cotangents[:count])
        ):
            known = scan_gradient(self, tuple(g is not None for g in cotangents))
            outputs, count = applied(known.forward, inputs), len(cotangents)
        return known.apply(inputs, outputs, cotangents[:count])
