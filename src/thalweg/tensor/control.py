"""Control flow for users: `scan`, `fori_loop` and `cond` on nests of tensors.

In: a function of tensors. Out: tensors. The function is traced into a graph of its own (`Body`); what it uses
from outside (tensors, parameters) is constant for the loop, and state that it assigns is carried from
iteration to iteration. Eagerly a scan is one step of the history, in a compiled function one loop of the
program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from thalweg.errors import ArgumentError, DTypeError, ShapeError
from thalweg.graph import Value, current, function
from thalweg.graph.build import user_span
from thalweg.ops import control
from thalweg.ops.control import Scan, Traced, applied, closed, scan_length
from thalweg.ops.core import cast, operand
from thalweg.ops.elementwise import Cast, StopGradient
from thalweg.tensor import nest
from thalweg.tensor.state import Holder
from thalweg.tensor.tensor import Tensor, value_of, wrap
from thalweg.tensor.trace import HolderInTrace, Trace, current_trace, suspended
from thalweg.types import Type


class Body(Trace):
    """The trace of a function that runs inside another trace or inside eager evaluation.

    Tensors from outside are used as they are; `thalweg.ops.control.closed` makes inputs of them.
    """

    is_body = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.outer = current_trace()
        self.before: dict[int, Value] = {}  # id(holder) -> the input that stands for its value before

    def capture(self, tensor: Tensor, concrete: Value) -> Value:
        """The value of a tensor from outside, in the trace outside."""
        with suspended(self):
            return tensor._read()

    def _holder(self, holder: Holder) -> HolderInTrace:
        known = self.holders.get(id(holder))
        if known is None:
            # `detach_carried` makes a stop_gradient of this node where no gradient may flow to the value
            # before.
            before = self.before[id(holder)] = Value(holder.type)
            (read,) = self.builder.apply(Cast(holder.dtype), [before])
            known = self.holders[id(holder)] = HolderInTrace(holder, read)
        return known

    def assigned(self) -> list[HolderInTrace]:
        """Holders that the function assigns."""
        return [known for known in self.holders.values() if known.after is not None]

    def detach_carried(self) -> None:
        """Let no gradient flow from one iteration to the next through a holder that is assigned."""
        for known in self.assigned():
            node = known.reads[0].node
            assert node is not None
            node.op = StopGradient()

    def after(self, holder: Holder) -> Value:
        """The value that a holder has when the function has returned."""
        after = self._holder(holder).after
        return self.before[id(holder)] if after is None else after

    def close(self) -> None:
        """When the function has returned: changes of modules' attributes count for the trace outside too."""
        if self.outer is not None:
            self.outer.epochs += self.epochs


def outside(free: Sequence[Value], bodies: Sequence[Body]) -> list[Tensor]:
    """For values that functions read from outside: the tensors or holders that they are there."""
    holders = {id(body.before[key]): known.holder for body in bodies for key, known in body.holders.items()}
    return [holders[id(v)] if id(v) in holders else wrap(v, bodies[0].outer) for v in free]


# ---- nests of tensors --------------------------------------------------------------------------------------


class Flat:
    """The tensors of a nest in a row; the nest itself, and None in it, stay."""

    def __init__(self, given: Any) -> None:
        self.leaves: list[Any] = []
        self.paths: list[str] = []
        self.weak: set[int] = set()  # positions of Python numbers: they have no element type of their own

        def collect(leaf: Any, path: str) -> int | None:
            if leaf is None:
                return None
            if isinstance(leaf, (bool, int, float)) and not isinstance(leaf, np.generic):
                self.weak.add(len(self.leaves))
            self.leaves.append(operand(leaf))
            self.paths.append(path)
            return len(self.leaves) - 1

        self.places = nest.map_nest(collect, given)

    def rebuild(self, leaves: Sequence[Any]) -> Any:
        """The same nest with other leaves."""
        return nest.map_nest(lambda place, _: None if place is None else leaves[place], self.places)


def _outline(item: Any) -> str:
    """A nest's kind and keys in words."""
    if isinstance(item, dict):
        return f"a dict with the keys {', '.join(map(repr, item)) or 'none'}"
    if isinstance(item, (list, tuple)):
        return f"a {type(item).__name__} of {len(item)}"
    return (
        "None"
        if item is None
        else "one tensor"
        if isinstance(item, (int, Tensor))
        else f"a {type(item).__name__}"
    )


def _user_line() -> str:
    span = user_span()
    return f"\n  at {span.file}:{span.line} in {span.function}\n      {span.text}"


# ---- scan --------------------------------------------------------------------------------------------------


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """A loop over axis 0 of `xs`: `carry, y = f(carry, x)` for every slice x, beginning with `init`.

    Returns the last carry and all y stacked along a new axis 0. `init`, `xs` and y are tensors or nests of
    them in lists, tuples and dicts; y and `xs` may be None (then `length` says how many iterations there
    are). The carry keeps its nest, shapes and element types. With `reverse` the loop runs from the last slice
    to the first, and so do the stacks' positions. `f` is traced, not run once per slice, and may use any
    tensor, parameter or buffer; what it assigns is carried along.

    >>> import thalweg as tw >>> total, sums = tw.scan(lambda c, x: (c + x, c + x), 0.0, tw.tensor([1.0, 2.0,
    3.0])) >>> float(total), sums.tolist() (6.0, [1.0, 3.0, 6.0])

    Raises `ShapeError`, `DTypeError` or `ArgumentError` where the carry changes or sizes differ.
    """
    start, cut = Flat(init), Flat(xs)
    loop = _Loop(f, start, cut, scan_length(cut.leaves, length), bool(reverse))
    return loop.in_graph() if current() is not None else loop.on_tensors()


class _Loop:
    """One call of `scan`."""

    def __init__(
        self, f: Callable[[Any, Any], Any], start: Flat, cut: Flat, length: int, reverse: bool
    ) -> None:
        self.f = f
        self.start = start
        self.cut = cut
        self.length = length
        self.reverse = reverse
        self.stacked: Flat

    def step(self, carries: Sequence[Any], slices: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """One iteration: leaves of the carry and of y."""
        result = self.f(self.start.rebuild(carries), self.cut.rebuild(slices))
        if not isinstance(result, tuple) or len(result) != 2:
            raise ArgumentError(
                f"scan: the function must return (carry, y), received {_outline(result)}; where nothing is "
                f"to be stacked write return carry, None{_user_line()}"
            )
        after, self.stacked = Flat(result[0]), Flat(result[1])
        if after.places != self.start.places:
            raise ArgumentError(
                f"scan: the carry is {_outline(self.start.places)} before an iteration and "
                f"{_outline(after.places)} after it; it must stay the same nest{_user_line()}"
            )
        return after.leaves, self.stacked.leaves

    def in_graph(self) -> tuple[Any, Any]:
        """Inside a composite or another graph that is being built of values."""

        def body(iteration: Any, carries: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
            return self.step(carries, slices)

        last, stacks = control.scan(body, self.start.leaves, self.cut.leaves, self.length, self.reverse)
        return self.start.rebuild(last), self.stacked.rebuild(stacks)

    def on_tensors(self) -> tuple[Any, Any]:
        body, iteration, own, slices, after = self.trace()
        holders = [known.holder for known in body.assigned()]
        body.detach_carried()
        carried = [body.before[id(holder)] for holder in holders]
        changed = [body.after(holder) for holder in holders]
        outputs = [*after[: len(own)], *changed, *after[len(own) :]]
        stopped = {id(value) for value in body.unrecorded}
        traced = Traced(body.builder.nodes, [iteration, *own, *carried, *slices], outputs, stopped)
        graph, free = closed(traced, "body", iteration)
        op = Scan(graph, self.length, len(own) + len(carried), len(slices), self.reverse)
        results = applied(op, [*self.start.leaves, *holders, *self.cut.leaves, *outside(free, [body])])
        for holder, value in zip(holders, results[len(own) :], strict=False):
            holder.assign(value)
        stacks = results[len(own) + len(holders) :]
        return self.start.rebuild(results[: len(own)]), self.stacked.rebuild(stacks)

    def trace(self) -> tuple[Body, Value, list[Value], list[Value], list[Value]]:
        """The trace, the iteration's number, the carries, the slices, and the values of the carries after it
        and of y.

        Where a carry begins with a Python number it takes the element type that it has after one iteration.
        """
        while True:
            body = Body("the body of scan")
            with body.running():
                iteration = Value(control.INDEX)
                own = [Value(x.type) for x in self.start.leaves]
                slices = [Value(Type(x.dtype, x.shape[1:])) for x in self.cut.leaves]
                after, stacked = self.step([wrap(v, body) for v in own], [wrap(v, body) for v in slices])
                outputs = [value_of(x) for x in (*after, *stacked)]
            body.close()
            retyped = [
                p
                for p in self.start.weak
                if own[p].shape == outputs[p].shape and own[p].type != outputs[p].type
            ]
            for position in retyped:
                self.start.leaves[position] = cast(self.start.leaves[position], outputs[position].dtype)
                self.start.weak.discard(position)
            if not retyped:
                self.check_carries(own, outputs)
                return body, iteration, own, slices, outputs

    def check_carries(self, before: Sequence[Value], after: Sequence[Value]) -> None:
        for path, old, new in zip(self.start.paths, before, after, strict=False):
            if old.type == new.type:
                continue
            error = ShapeError if old.shape != new.shape else DTypeError
            made = "" if new.node is None else f"\n  made by {new.node.op.name} at {new.node.where[0]}"
            raise error(
                f"scan: carry{path} is {old.type} before an iteration and {new.type} after it; a carry keeps "
                f"its shape and element type: begin with a tensor of type {new.type}, or cast or reshape in "
                f"the function to {old.type}{made}{_user_line()}"
            )


def fori_loop(lower: int, upper: int, f: Callable[[Any, Any], Any], init: Any) -> Any:
    """`carry = f(i, carry)` for i (a 0-d int64 tensor) from `lower` to `upper` - 1, beginning with `init`.

    `lower` and `upper` are Python integers; with `upper` at or below `lower` the result is `init`. Like
    `scan`, `f` is traced and not run once per iteration.
    """
    for name, bound in (("lower", lower), ("upper", upper)):
        if isinstance(bound, bool) or not isinstance(bound, (int, np.integer)):
            raise ArgumentError(
                f"fori_loop: {name} must be a Python integer, received {bound!r:.60} of type "
                f"{type(bound).__name__}; the number of iterations is fixed when the loop is compiled"
            )
    numbers = function("arange")(int(lower), max(int(lower), int(upper)))
    return scan(lambda carry, i: (f(i, carry), None), init, numbers)[0]


# ---- cond --------------------------------------------------------------------------------------------------


def cond(
    predicate: Any, true_function: Callable[..., Any], false_function: Callable[..., Any], *operands: Any
) -> Any:
    """`true_function(*operands)` where `predicate` (a 0-d bool) is true, else `false_function(*operands)`.

    Only the chosen function runs. In a compiled function both are traced and must return the same nest of the
    same shapes and element types; outside, the chosen one is simply called. They may use any tensor,
    parameter or buffer.
    """
    if isinstance(predicate, (bool, np.bool_)):
        return (true_function if predicate else false_function)(*operands)
    chosen = operand(predicate)
    if chosen.shape != () or not chosen.dtype.is_bool:
        raise (ShapeError if chosen.dtype.is_bool else DTypeError)(
            f"cond: the predicate must be a 0-d bool, received {chosen.type}; write for example (x > 0).any()"
            f"{_user_line()}"
        )
    if current() is None and current_trace() is None:
        return (true_function if bool(chosen) else false_function)(*operands)
    branches = [
        _Branch(name, f, operands) for name, f in (("true", true_function), ("false", false_function))
    ]
    return _cond_in_graph(chosen, branches) if current() is not None else _cond_on_tensors(chosen, branches)


class _Branch:
    """One of the functions of `cond`; the operands are free values like any other."""

    def __init__(self, name: str, f: Callable[..., Any], operands: Sequence[Any]) -> None:
        self.name = name
        self.f = f
        self.operands = operands
        self.result: Flat

    def run(self) -> list[Any]:
        """The leaves of the result."""
        self.result = Flat(self.f(*self.operands))
        return self.result.leaves


def _check_branches(first: _Branch, second: _Branch) -> None:
    if first.result.places != second.result.places:
        raise ArgumentError(
            f"cond: the function for true returns {_outline(first.result.places)}, the one for false "
            f"{_outline(second.result.places)}; they must return the same nest{_user_line()}"
        )
    for path, one, other in zip(first.result.paths, first.result.leaves, second.result.leaves, strict=True):
        if one.type != other.type:
            raise (ShapeError if one.shape != other.shape else DTypeError)(
                f"cond: result{path} is {one.type} from the function for true and {other.type} from the one "
                f"for false; both must have the same shape and element type{_user_line()}"
            )


def _cond_in_graph(predicate: Any, branches: Sequence[_Branch]) -> Any:
    first, second = branches
    results = control.cond(predicate, first.run, second.run)
    _check_branches(first, second)
    return first.result.rebuild(results)


def _cond_on_tensors(predicate: Any, branches: Sequence[_Branch]) -> Any:
    first, second = branches
    bodies: list[Body] = []
    values: list[list[Value]] = []
    for branch in branches:
        body = Body(f"the function for {branch.name} of cond")
        with body.running():
            values.append([value_of(x) for x in branch.run()])
        body.close()
        bodies.append(body)
    _check_branches(first, second)
    holders = list({id(k.holder): k.holder for body in bodies for k in body.assigned()}.values())
    traced = []
    for body, outputs in zip(bodies, values, strict=True):
        changed = [body.after(holder) for holder in holders]
        stopped = {id(value) for value in body.unrecorded}
        traced.append(Traced(body.builder.nodes, [], [*outputs, *changed], stopped))
    graphs, free = control.closed_branches(traced)
    results = applied(control.Cond(*graphs), [predicate, *outside(free, bodies)])
    count = len(values[0])
    for holder, value in zip(holders, results[count:], strict=True):
        holder.assign(value)
    return first.result.rebuild(results[:count])
