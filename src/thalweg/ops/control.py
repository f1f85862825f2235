"""Control flow: `scan` (a loop that carries values and collects slices) and `cond`, with graphs as
attributes.

In come graph values and functions of them; `thalweg.tensor.control` offers the same for tensors. A graph
inside knows nothing of the graph outside: what its function uses from there becomes an input of it (a
*constant* of the scan, an *operand* of the cond).

The gradient of a scan is a scan in the opposite direction. The forward scan is then replaced by its residual
form, which also stacks those values of each iteration that the gradient cannot cheaply compute again.
Gradients of constants that are products summed over time (weights) are computed behind the loop, by one
product over all iterations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError, ShapeError
from thalweg.graph import (
    AxisGroup,
    Builder,
    Graph,
    Kind,
    Narrowed,
    Node,
    Op,
    Value,
    builder,
    remove_dead,
    using,
)
from thalweg.ops.axes import AxisClasses, Place
from thalweg.ops.core import Composite, apply, cast, operand, primitive, require
from thalweg.ops.elementwise import Add, StopGradient, add
from thalweg.ops.movement import Reshape, Transpose, concat, moveaxis, reshape, slice_axis
from thalweg.ops.samples import Sample, samples, values
from thalweg.ops.sources import Constant, RandomBits, full, random_bits
from thalweg.types import Type

INDEX = Type(types.int64, ())  # of the number of an iteration


def applied(op: Op, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """`apply` whose result is a tuple for any number of outputs."""
    outputs = apply(op, *inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


# ---- scan --------------------------------------------------------------------------------------------------


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
        depends = _depends(self.body, floating_only=False)
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


def graph_operations(graph: Graph) -> int:
    """Arithmetic operations of all nodes of a graph."""
    return sum(
        node.op.operations([v.type for v in node.inputs], [v.type for v in node.outputs])
        for node in graph.nodes
    )


def scan_gradient(op: Scan, given: tuple[bool, ...]) -> ScanGradient:
    """The gradient of a scan some of whose outputs have a cotangent; made once for each op object.

    It is not shared between equal ops: its nodes carry the source lines of this one.
    """
    known: dict[tuple[bool, ...], ScanGradient] | None = op.__dict__.get("_gradients")
    if known is None:
        known = {}
        object.__setattr__(op, "_gradients", known)
    if given not in known:
        known[given] = _Differentiation(op, given).gradient()
    return known[given]


# A tensor with one slice per iteration: "input", "output" or "cotangent" of the forward scan, or "made" by
# the backward scan, and its position there.
Stack = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Product:
    """A term of a constant's gradient that is summed over time by applying `op` once, to whole stacks.

    The time axis of stack i is merged into the axis `axes[i]`, over which `op` sums; the ops in `then`
    follow.
    """

    constant: int
    op: Op
    operands: tuple[Value, ...]
    axes: tuple[int, ...]
    then: tuple[Op, ...]
    stacks: tuple[Stack, ...] = ()


@dataclass(frozen=True, slots=True)
class ScanGradient:
    """A scan in residual form, the scan that computes its gradient, and what it takes from the first."""

    forward: Scan
    backward: Scan
    active: tuple[int, ...]  # carries with a cotangent: the first carries of the backward scan
    accumulated: tuple[int, ...]  # constants whose gradient is summed by a carry: its other carries
    cut: tuple[Stack, ...]  # what it cuts into slices
    constants: tuple[int, ...]  # inputs of the forward scan that it reads whole
    sliced: tuple[int, ...]  # inputs of the forward scan for which it stacks a gradient: its first stacks
    products: tuple[_Product, ...]
    given: tuple[bool, ...]  # outputs for which a cotangent may come

    def covers(self, cotangents: Sequence[Any | None]) -> bool:
        """Whether all these cotangents are among those that it was made for."""
        return all(g is None or known for g, known in zip(cotangents, self.given, strict=True))

    def apply(
        self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any | None]
    ) -> list[Any | None]:
        """Gradients of the inputs of the forward scan, as values built with op functions."""
        filled = [_zeros(y.type) if g is None else g for y, g in zip(outputs, cotangents, strict=False)]
        places: dict[str, Sequence[Any]] = {"input": inputs, "output": outputs, "cotangent": filled}
        carries = [filled[position] for position in self.active]
        carries += [_zeros(_accumulator(inputs[position].type)) for position in self.accumulated]
        cut = [places[kind][position] for kind, position in self.cut]
        found = applied(self.backward, [*carries, *cut, *(inputs[position] for position in self.constants)])
        made = places["made"] = found[len(carries) :]
        gradients: list[Any | None] = [None] * len(inputs)
        for position, gradient in zip((*self.active, *self.accumulated), found, strict=False):
            gradients[position] = cast(gradient, inputs[position].dtype)
        for position, gradient in zip(self.sliced, made, strict=False):
            gradients[position] = gradient
        for product in self.products:
            term = _apply_product(product, [places[kind][position] for kind, position in product.stacks])
            known = gradients[product.constant]
            gradients[product.constant] = term if known is None else add(known, term)
        return gradients


def _apply_product(product: _Product, stacks: Sequence[Any]) -> Any:
    merged = [merge_iterations(stack, axis) for stack, axis in zip(stacks, product.axes, strict=True)]
    result = apply(product.op, *merged)
    for op in product.then:
        result = apply(op, result)
    return result


def merge_iterations(stack: Any, axis: int) -> Any:
    """A stack [T, ..] as one tensor in which the iterations have joined the axis `axis` of a slice."""
    shape = (*stack.shape[1 : axis + 1], stack.shape[0] * stack.shape[axis + 1], *stack.shape[axis + 2 :])
    return reshape(moveaxis(stack, 0, axis), shape)


def split_iterations(merged: Any, axis: int, length: int) -> Any:
    """The stack of `length` slices that `merge_iterations` has merged."""
    extent = merged.shape[axis] // length
    shape = (*merged.shape[:axis], length, extent, *merged.shape[axis + 1 :])
    return moveaxis(reshape(merged, shape), axis, 0)


def _zeros(type: Type) -> Any:
    return full(type.shape, 0, type.dtype)


def _accumulator(type: Type) -> Type:
    """16-bit gradients of constants are summed over the iterations in float32."""
    return Type(types.float32, type.shape) if type.dtype.itemsize == 2 else type


def _depends(body: Graph, floating_only: bool = True) -> list[int]:
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


def _active_carries(op: Scan, given: tuple[bool, ...]) -> list[int]:
    """Carries that receive a cotangent: from their last value, or in an iteration from such an output."""
    depends = _depends(op.body)
    active = {p for p in range(op.carries) if given[p]}
    while True:
        reached = 0
        for position in (*active, *(p for p in range(op.carries, len(given)) if given[p])):
            reached |= depends[position]
        found = active | {p for p in range(op.carries) if reached >> (p + 1) & 1}
        if found == active:
            return sorted(active)
        active = found


class _Differentiation:
    """Traces one iteration and its gradient together and splits them into a forward and a backward scan."""

    def __init__(self, op: Scan, given: tuple[bool, ...]) -> None:
        self.op = op
        self.given = given
        self.active = _active_carries(op, given)
        self.targets = [*self.active, *(p for p in range(op.carries, len(given)) if given[p])]
        self._trace()
        self.forward = {id(value) for value in self.inputs}  # ids of values that depend on no cotangent
        self.invariant = {id(value) for value in self.inputs[op.carries + op.slices + 1 :]}
        for node in self.nodes:
            for known in (self.forward, self.invariant):
                if all(id(value) in known for value in node.inputs):
                    known.update([id(value) for value in node.outputs])

    def _trace(self) -> None:
        from thalweg.autodiff import vjp

        body = self.op.body
        with using(Builder()) as joint:
            self.inputs = [Value(value.type) for value in body.inputs]
            self.outputs = copied(body, self.inputs)
            self.cotangents = {p: Value(self.outputs[p].type) for p in self.targets}
            wanted = [
                p for p, v in enumerate(self.inputs) if v.dtype.is_floating and self._has_gradient(p - 1)
            ]
            found = vjp(
                [self.outputs[p] for p in self.targets],
                [self.cotangents[p] for p in self.targets],
                [self.inputs[p] for p in wanted],
            )
        self.gradients = {p - 1: g for p, g in zip(wanted, found, strict=True) if g is not None}
        self.nodes = joint.nodes

    def _has_gradient(self, position: int) -> bool:
        return position >= self.op.carries or position in self.active

    def gradient(self) -> ScanGradient:
        op = self.op
        products, sums = self._constants()
        sliced = [p for p in range(op.carries, op.carries + op.slices) if p in self.gradients]
        results = [*(self.gradients[p] for p in (*self.active, *sliced) if p in self.gradients)]
        results += [term for terms in sums.values() for term in terms]
        stacked = [value for product in products for value in product.operands]
        self._choose_residuals(results, stacked)
        made = {id(value): value for value in stacked if id(value) not in self.stacks}
        for count, key in enumerate(made):
            self.stacks[key] = ("made", len(sliced) + count)
        backward, cut, constants = self._backward(list(sums), sliced, list(made.values()), sums)
        placed = [
            replace(p, stacks=tuple(self.stacks[id(v)] for v in p.operands), operands=()) for p in products
        ]
        found = ScanGradient(
            self._forward(),
            backward,
            tuple(self.active),
            tuple(sums),
            cut,
            constants,
            tuple(sliced),
            tuple(placed),
            self.given,
        )
        object.__setattr__(found.forward, "_gradient", found)
        return found

    # ---- gradients of constants ----------------------------------------------------------------------------

    def _constants(self) -> tuple[list[_Product], dict[int, list[Value]]]:
        """Terms that are computed behind the loop, and for other constants those that are summed in it."""
        first = self.op.carries + self.op.slices
        terms = [(p, t) for p, g in self.gradients.items() if p >= first for t in _summands(g)]
        products: list[_Product] = []
        sums: dict[int, list[Value]] = {}
        stacked: set[int] = set()
        for contractions in (True, False):  # a sum (of a bias) is a product if its operand is stacked anyway
            remaining = []
            for position, term in terms:
                found = self._product(position, term)
                is_wanted = found is not None and (
                    found.op.kind is Kind.CONTRACTION
                    if contractions
                    else all(id(value) in stacked for value in found.operands)
                )
                if found is not None and is_wanted:
                    products.append(found)
                    stacked.update(id(value) for value in found.operands)
                else:
                    remaining.append((position, term))
            terms = remaining
        for position, term in terms:
            sums.setdefault(position, []).append(term)
        return products, sums

    def _product(self, constant: int, term: Value) -> _Product | None:
        """`term` as an op that sums over an axis which all its operands have, so that time can join that
        axis.
        """
        then: list[Op] = []
        while term.node is not None and isinstance(term.node.op, (Reshape, Transpose)):
            then.append(term.node.op)
            term = term.node.inputs[0]
        node = term.node
        if (
            node is None
            or node.op.combine != "sum"
            or any(id(value) in self.invariant for value in node.inputs)
        ):
            return None
        shapes = [value.type for value in node.inputs]
        for group in node.op.axes(*shapes):
            axes = [axis for axis in group.inputs if axis is not None]
            if group.reduced and len(axes) == len(shapes):
                merged = [
                    Type(t.dtype, (*t.shape[:a], self.op.length * t.shape[a], *t.shape[a + 1 :]))
                    for t, a in zip(shapes, axes, strict=True)
                ]
                if node.op.infer(*merged) == (term.type,):
                    return _Product(constant, node.op, node.inputs, tuple(axes), tuple(reversed(then)))
        return None

    # ---- residuals -----------------------------------------------------------------------------------------

    def _choose_residuals(self, results: Sequence[Value], stacked: Sequence[Value]) -> None:
        """Decide what the backward scan reads from stacks (`stacks`, `saved`) and what it computes again
        (`again`).

        Saved is what cannot be had from constants, slices and other saved values by elementwise ops and
        movement alone; a broadcast or a cast to a wider type is not saved, but what it is made of.
        """
        op = self.op
        needed = {id(value) for value in (*results, *stacked)}
        self.live: set[int] = set()  # ids of the nodes of the backward scan
        for node in reversed(self.nodes):
            if any(id(value) in needed and id(value) not in self.forward for value in node.outputs):
                self.live.add(id(node))
                needed.update([id(value) for value in node.inputs])
        self.stacks: dict[int, Stack] = {}
        for position in range(op.carries, len(self.outputs)):
            self.stacks.setdefault(id(self.outputs[position]), ("output", position))
        for position in range(op.carries, op.carries + op.slices):
            self.stacks[id(self.inputs[position + 1])] = ("input", position)
        for position in self.targets[len(self.active) :]:
            self.stacks[id(self.cotangents[position])] = ("cotangent", position)
        forced = {id(value) for value in stacked}
        for node in reversed(self.nodes):
            key = id(node.outputs[0])
            if (
                key in needed
                and key not in forced
                and key not in self.stacks
                and key in self.forward
                and _widens(node)
            ):
                needed.discard(key)
                needed.add(id(node.inputs[0]))
        self.saved: list[Value] = []
        self._save(needed, forced)
        self._compute_again(results)

    def _save(self, needed: set[int], forced: set[int]) -> None:
        """Choose, in the order of computation, what is stacked for the backward scan."""
        available = {id(self.inputs[0]), *self.invariant, *self.stacks}
        carried = self.inputs[1 : self.op.carries + 1]
        for value in carried:
            if id(value) in needed:
                self._stack(value, available)
        for node in self.nodes:
            if id(node.outputs[0]) not in self.forward:
                continue
            if all(id(value) in available for value in node.inputs) and _is_cheap(node):
                available.update([id(value) for value in node.outputs])
            for value in node.outputs:
                missing = id(value) in needed and id(value) not in available
                if missing or (id(value) in forced and id(value) not in self.stacks):
                    self._stack(value, available)

    def _stack(self, value: Value, available: set[int]) -> None:
        self.stacks[id(value)] = ("output", len(self.outputs) + len(self.saved))
        self.saved.append(value)
        available.add(id(value))

    def _compute_again(self, results: Sequence[Value]) -> None:
        """Mark the forward nodes that the backward scan needs and does not read from a stack."""
        needed = {id(value) for value in results}
        for node in reversed(self.nodes):
            if id(node) in self.live:
                needed.update([id(value) for value in node.inputs])
            elif any(id(value) in needed and id(value) not in self.stacks for value in node.outputs):
                self.live.add(id(node))
                needed.update([id(value) for value in node.inputs])
        self.read = needed

    # ---- the two scans -------------------------------------------------------------------------------------

    def _forward(self) -> Scan:
        nodes = tuple(node for node in self.nodes if id(node.outputs[0]) in self.forward)
        body = replace(
            self.op.body, inputs=tuple(self.inputs), nodes=nodes, outputs=(*self.outputs, *self.saved)
        )
        return replace(self.op, body=remove_dead(body), residuals=len(self.saved))

    def _backward(
        self, accumulated: list[int], sliced: list[int], made: list[Value], sums: dict[int, list[Value]]
    ) -> tuple[Scan, tuple[Stack, ...], tuple[int, ...]]:
        """The backward scan, what it cuts into slices, and the inputs of the forward scan that it reads
        whole.
        """
        op = self.op
        old = {id(v): v for node in self.nodes for v in (*node.inputs, *node.outputs)}
        old.update((id(v), v) for v in (*self.inputs, *self.cotangents.values()))
        cut = [key for key in self.stacks if key in self.read and self.stacks[key][0] != "made"]
        constants = [
            p
            for p in range(op.carries + op.slices, len(self.inputs) - 1)
            if id(self.inputs[p + 1]) in self.read
        ]
        mapping = {id(self.inputs[0]): Value(INDEX)}
        mapping.update((id(self.cotangents[p]), Value(self.cotangents[p].type)) for p in self.active)
        sums_so_far = [Value(_accumulator(self.inputs[p + 1].type)) for p in accumulated]
        carries = [mapping[id(self.cotangents[p])] for p in self.active] + sums_so_far
        mapping.update((key, Value(old[key].type)) for key in cut)
        mapping.update((id(self.inputs[p + 1]), Value(self.inputs[p + 1].type)) for p in constants)
        with using(Builder()) as target:
            for node in self.nodes:
                if id(node) in self.live:
                    copy_node(node, mapping)
            outputs = [
                mapping[id(self.gradients[p])] if p in self.gradients else _zeros(self.inputs[p + 1].type)
                for p in self.active
            ]
            for position, total in zip(accumulated, sums_so_far, strict=True):
                for term in sums[position]:
                    total = add(total, cast(mapping[id(term)], total.dtype))
                outputs.append(total)
            outputs += [mapping[id(self.gradients[p])] for p in sliced]
            outputs += [mapping[id(value)] for value in made]
        inputs = [
            mapping[id(self.inputs[0])],
            *carries,
            *(mapping[key] for key in cut),
            *(mapping[id(self.inputs[p + 1])] for p in constants),
        ]
        body = Graph(tuple(inputs), tuple(target.nodes), tuple(outputs), (), f"{op.body.name}_gradient")
        backward = Scan(remove_dead(body), op.length, len(carries), len(cut), not op.reverse)
        return backward, tuple(self.stacks[key] for key in cut), tuple(constants)


def _summands(value: Value) -> list[Value]:
    """The terms of a sum."""
    if value.node is None or not isinstance(value.node.op, Add):
        return [value]
    return [term for part in value.node.inputs for term in _summands(part)]


def _widens(node: Node) -> bool:
    """Whether a node's one input is no larger than its output and gives it at no cost: broadcasts, masks as
    numbers.
    """
    if len(node.inputs) != 1 or len(node.outputs) != 1 or node.op.kind > Kind.MOVEMENT:
        return False
    growth = node.outputs[0].type.nbytes - node.inputs[0].type.nbytes
    return growth >= 0 if node.op.kind is Kind.MOVEMENT else growth > 0


_CHEAP = 3  # additions: storing and reading one element costs as much


def _is_cheap(node: Node) -> bool:
    """Whether computing a node again costs less than storing and reading its outputs."""
    return node.op.kind <= Kind.MOVEMENT and node.op.cost <= _CHEAP


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


# ---- cond --------------------------------------------------------------------------------------------------


@primitive("cond", Kind.OPAQUE)
class Cond(Op):
    """`then` where the first input (bool, 0-d) is true, else `otherwise`: graphs over the remaining inputs.

    Only the branch that is taken runs.
    """

    then: Graph
    otherwise: Graph

    partial_cotangents: ClassVar[bool] = True

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
            depends = _depends(branch)
            for position in given:
                reached |= depends[position]
        wanted = [position for position in range(len(inputs) - 1) if reached >> position & 1]
        if not wanted:
            return [None] * len(inputs)
        branches = [_branch_gradient(branch, given, wanted) for branch in (self.then, self.otherwise)]
        found = applied(Cond(*branches), [*inputs, *(cotangents[position] for position in given)])
        gradients: list[Any | None] = [None] * len(inputs)
        for position, gradient in zip(wanted, found, strict=True):
            gradients[position + 1] = gradient
        return gradients


def _listed(listed: Sequence[Type]) -> str:
    return f"({', '.join(map(str, listed))})"


def _branch_gradient(branch: Graph, given: Sequence[int], wanted: Sequence[int]) -> Graph:
    """The graph (operands, cotangents of the outputs `given`) -> gradients of the operands `wanted`."""
    from thalweg.autodiff import vjp

    with using(Builder()) as target:
        inputs = [Value(value.type) for value in branch.inputs]
        outputs = copied(branch, inputs)
        cotangents = [Value(outputs[position].type) for position in given]
        operands = [inputs[position] for position in wanted]
        found = vjp([outputs[position] for position in given], cotangents, operands)
        gradients = [_zeros(x.type) if g is None else g for x, g in zip(operands, found, strict=True)]
    graph = Graph(
        (*inputs, *cotangents), tuple(target.nodes), tuple(gradients), (), f"{branch.name}_gradient"
    )
    return remove_dead(graph)


# ---- graphs of functions that use values from outside ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Traced:
    """What a function did: the nodes that it made, its inputs and its results.

    No gradient flows through the values whose ids are in `stopped`.
    """

    nodes: Sequence[Node]
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    stopped: AbstractSet[int] = frozenset()


def closed(function: Traced, name: str, iteration: Value | None = None) -> tuple[Graph, list[Value]]:
    """The graph that computes `outputs` from `inputs`, and what it reads from outside: those are its last
    inputs.

    Constants from outside become constants inside. In the body of a scan random bits depend on the
    `iteration` (one of the inputs): a generator's state from outside is another one in every iteration.
    """
    inputs, outputs = tuple(function.inputs), tuple(function.outputs)
    traced = remove_dead(Graph(inputs, tuple(function.nodes), outputs, (), name))
    mapping = {id(value): Value(value.type) for value in inputs}
    own = tuple(mapping.values())
    added: list[Value] = []
    free: list[Value] = []
    with using(Builder()) as target:
        for value in _free_values(traced):
            if value.node is not None and isinstance(value.node.op, Constant):
                copy_node(value.node, mapping)
                continue
            free.append(value)
            added.append(Value(value.type))
            mapping[id(value)] = added[-1]
            if iteration is not None and value.type == STATE and _draws(traced, {id(value)}):
                mapping[id(value)] = fold_iteration(added[-1], mapping[id(iteration)])
        for node in traced.nodes:
            copy_node(node, mapping)
            for value in node.outputs:
                if id(value) in function.stopped:
                    mapping[id(value)] = apply(StopGradient(), mapping[id(value)])
    results = tuple(mapping[id(value)] for value in outputs)
    return Graph((*own, *added), tuple(target.nodes), results, (), name), free


def _free_values(graph: Graph) -> list[Value]:
    """Values that a graph reads and neither computes nor has as inputs, in the order of their first use."""
    known = {id(value) for value in graph.inputs}
    free: dict[int, Value] = {}
    for node in graph.nodes:
        free.update((id(value), value) for value in node.inputs if id(value) not in known)
        known.update([id(value) for value in node.outputs])
    free.update((id(value), value) for value in graph.outputs if id(value) not in known)
    return list(free.values())


STATE = Type(types.uint32, (4,))  # of a random generator
_FOLD_STREAM = 0xFFFFFFFF  # call sites count from 0


def fold_iteration(state: Any, iteration: Any) -> Any:
    """The state of a random generator for one iteration of a scan: its seed is drawn from seed and iteration.

    Nested scans fold one after the other, so that every pair of iterations has a seed of its own.
    """
    low = reshape(cast(iteration & 0xFFFFFFFF, types.uint32), (1,))
    high = reshape(cast(iteration >> 32, types.uint32), (1,))
    seed = random_bits(concat([slice_axis(state, 0, 0, 2), low, high]), (2,), _FOLD_STREAM)
    return concat([seed, slice_axis(state, 0, 2, 4)])


def _draws(graph: Graph, sources: set[int]) -> bool:
    """Whether random bits are drawn from a state that depends on one of the values with these ids."""
    reached = set(sources)
    for node in graph.nodes:
        positions = [p for p, value in enumerate(node.inputs) if id(value) in reached]
        if not positions:
            continue
        if isinstance(node.op, RandomBits):
            return True
        for inner, offset in _graphs_inside(node):
            if _draws(inner, {id(inner.inputs[p + offset]) for p in positions if p + offset >= 0}):
                return True
        reached.update([id(value) for value in node.outputs])
    return False


def _graphs_inside(node: Node) -> list[tuple[Graph, int]]:
    """Graphs that a node runs, each with the position of the node's first input among its inputs."""
    op = node.op
    if isinstance(op, Composite):
        return [(op.body(*[value.type for value in node.inputs]), 0)]
    if isinstance(op, Scan):
        return [(op.body, 1)]
    return [(op.then, -1), (op.otherwise, -1)] if isinstance(op, Cond) else []


# ---- functions ---------------------------------------------------------------------------------------------

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


# ---- samples -----------------------------------------------------------------------------------------------


def _recurrent(h: Any, xs: Any, w: Any, u: Any) -> Any:
    """The states of h = tanh(x w + h u), and the last of them."""
    from thalweg.ops.contraction import matmul
    from thalweg.ops.elementwise import tanh

    def body(iteration: Any, carries: list[Any], slices: list[Any]) -> Any:
        after = tanh(matmul(slices[0], w) + matmul(carries[0], u))
        return [after], [after]

    (last,), (states,) = scan(body, [h], [xs])
    return last, states


def _recurrent_torch(torch: Any, h: Any, xs: Any, w: Any, u: Any) -> Any:
    states = []
    for x in xs:
        h = torch.tanh(x @ w + h @ u)
        states.append(h)
    return h, torch.stack(states)


def _running(x: Any, reverse: bool) -> Any:
    """Running products, and twice each element."""
    first = full(x.shape[1:], 1, x.dtype)
    (last,), stacks = scan(lambda i, c, s: ([c[0] * s[0]], [c[0], s[0] * 2]), [first], [x], reverse=reverse)
    return (last, *stacks)


def _powers(x: Any, length: int) -> Any:
    """x to the power 2^length, and which iteration it was: no slices come in."""
    (last,), (numbers,) = scan(lambda i, c, s: ([c[0] * c[0]], [i]), [x], length=length)
    return last, numbers


def _table(x: Any, y: Any) -> Any:
    """sin(x_i) + x_i y_j by two nested scans without carries."""
    from thalweg.ops.elementwise import sin

    def row(i: Any, c: list[Any], outer: list[Any]) -> Any:
        return [], scan(lambda j, c, inner: ([], [sin(outer[0]) + outer[0] * inner[0]]), [], [y])[1]

    return scan(row, [], [x])[1][0]


def _walk(state: Any) -> Any:
    """Random words of each iteration."""
    return scan(lambda i, c, s: ([], [random_bits(state, (3,), 7)]), [], length=4)[1][0]


def _alternating(x: Any) -> Any:
    """Cosine in even iterations, square in odd ones."""
    from thalweg.ops.elementwise import cos

    def body(i: Any, carries: list[Any], slices: list[Any]) -> Any:
        return cond((i & 1) > 0, lambda v: [v * v], lambda v: [cos(v)], carries), []

    return scan(body, [x], length=5)[0][0]


@samples("scan")
def _scan_samples() -> Iterator[Sample]:
    weights = (values(3, 4, seed=1), values(5, 3, 2, seed=2), values(2, 4, seed=3), values(4, 4, seed=4))
    yield Sample(_recurrent, weights, torch=_recurrent_torch)
    yield Sample(_recurrent, tuple(array.astype(np.float64) for array in weights))
    yield Sample(_recurrent, (weights[0], weights[1][:0], *weights[2:]))
    yield Sample(
        _recurrent, tuple(array.astype(np.float16) for array in weights), gradient=False, tolerance=4
    )
    for reverse in (False, True):
        yield Sample(lambda x, r=reverse: _running(x, r), (values(4, 3),))
        yield Sample(lambda x, r=reverse: _running(x, r), (values(7, dtype="int32", low=-9, high=9),))
    yield Sample(lambda x: _powers(x, 3), (values(2, 2),))
    yield Sample(lambda x: _powers(x, 0), (values(),))
    yield Sample(lambda x: _powers(x, 2), (np.array([np.nan, np.inf, -0.0, -2.0], np.float32),))
    yield Sample(_table, (values(3), values(4)))
    yield Sample(_walk, (np.array([1, 2, 3, 4], np.uint32),))
    yield Sample(_alternating, (values(3),))
    yield Sample(
        lambda x: scan(lambda i, c, s: ([c[0][0]], []), [x], length=2)[0][0], (values(3),), error=ShapeError
    )
    yield Sample(
        lambda x: scan(lambda i, c, s: ([c[0] > 0], []), [x], length=2)[0][0],
        (values(3),),
        error=DTypeError,
        message="carry 0 is f32[3] before an iteration and bool[3] after it",
    )
    yield Sample(lambda x: _running(x, False), (values(),), error=ShapeError, message="0-d")
    yield Sample(lambda x: _powers(x, -1), (values(),), error=ArgumentError, message="at least 0")


@samples("cond")
def _cond_samples() -> Iterator[Sample]:
    from thalweg.ops.elementwise import exp, sin
    from thalweg.ops.reduction import sum

    def choose(x: Any, limit: float) -> Any:
        return cond(sum(x) > limit, lambda v: [sin(v) * v], lambda v: [exp(v)], [x])[0]

    def around(p: Any, x: Any, y: Any) -> Any:
        return tuple(cond(p, lambda: [x * y, y], lambda: [x - y, x * x * x]))

    def nested(x: Any) -> Any:
        return cond(sum(x) > 0, lambda: [choose(x, 2.0)], lambda: [x * x])[0]

    for limit in (-50.0, 50.0):
        yield Sample(choose, (values(3, 5),), {"limit": limit})
        yield Sample(choose, (values(0),), {"limit": limit})
        yield Sample(choose, (values(dtype="float64"),), {"limit": limit})
    for truth in (True, False):
        yield Sample(
            around,
            (np.array(truth), values(4, seed=1), values(4, seed=2)),
            torch=lambda t, p, x, y: (x * y, y) if p else (x - y, x * x * x),
        )
        yield Sample(around, (np.array(truth), values(3, dtype="int64"), values(3, dtype="int64", seed=5)))
    yield Sample(
        around, (np.array(True), np.array([np.nan, -0.0], np.float32), np.array([np.inf, 1], np.float32))
    )
    yield Sample(nested, (values(3, low=0.5),))
    yield Sample(nested, (values(3, high=-0.5),))
    yield Sample(
        around, (values(2) > 0, values(2), values(2)), error=ShapeError, message="0-d bool predicate"
    )
    yield Sample(around, (values(), values(2), values(2)), error=DTypeError, message="(x > 0).any()")
    yield Sample(
        lambda p, x: cond(p, lambda: [x], lambda: [x[0]])[0],
        (np.array(True), values(2)),
        error=ShapeError,
        message="f32[2] in the branch for true and f32[] in the one for false",
    )
    yield Sample(
        lambda p, x: cond(p, lambda: [x], lambda: [])[0], (np.array(True), values(2)), error=ShapeError
    )
