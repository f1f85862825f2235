"""The gradient of a scan: a scan in the opposite direction, and what it needs of the forward one.

In: a `Scan` and which of its outputs have a cotangent. Out: a `ScanGradient`: the forward scan in residual
form, the backward scan, and the products over all iterations behind it. `Scan.vjp` calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from thalweg import types
from thalweg.graph import Builder, Graph, Kind, Node, Op, Value, remove_dead, using
from thalweg.ops.control.graphs import (
    INDEX,
    applied,
    copied,
    copy_node,
    dependences,
    merge_iterations,
    zeros_of,
)
from thalweg.ops.control.loop import Scan
from thalweg.ops.core import apply, cast
from thalweg.ops.elementwise import Add, add
from thalweg.ops.movement import Reshape, Transpose
from thalweg.types import Type


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
        filled = [zeros_of(y.type) if g is None else g for y, g in zip(outputs, cotangents, strict=False)]
        places: dict[str, Sequence[Any]] = {"input": inputs, "output": outputs, "cotangent": filled}
        carries = [filled[position] for position in self.active]
        carries += [zeros_of(_accumulator(inputs[position].type)) for position in self.accumulated]
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


def _accumulator(type: Type) -> Type:
    """16-bit gradients of constants are summed over the iterations in float32."""
    return Type(types.float32, type.shape) if type.dtype.itemsize == 2 else type


def _active_carries(op: Scan, given: tuple[bool, ...]) -> list[int]:
    """Carries that receive a cotangent: from their last value, or in an iteration from such an output."""
    depends = dependences(op.body)
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
                mapping[id(self.gradients[p])] if p in self.gradients else zeros_of(self.inputs[p + 1].type)
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
