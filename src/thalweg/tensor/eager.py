"""Eager evaluation: ops on concrete tensors run at once, and keep their history where a gradient may be asked
for.

In: an op and concrete graph values. Out: values with arrays. A value that depends on something *tracked* (a
trainable parameter, an argument of `grad`) keeps the node that made it, so `node is not None` means tracked.
The history holds the arrays as they were: a later assignment to a parameter cannot change it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from thalweg.autodiff import gradient_graph
from thalweg.errors import GraphError, ThalwegError
from thalweg.graph import Builder, Graph, Kind, Node, Op, Value, inline, remove_dead
from thalweg.graph.build import located_error, location
from thalweg.types import Span, Type, type_of

Array = np.ndarray[Any, Any]


class _Mode(threading.local):
    recording = True


mode = _Mode()


@contextmanager
def recording(enabled: bool) -> Iterator[None]:
    """Whether operations inside the block keep their history."""
    previous = mode.recording
    mode.recording = enabled
    try:
        yield
    finally:
        mode.recording = previous


class HistoryNode(Node):
    """A node whose outputs are known weakly, so that a history without users is freed at once, without a
    collector.

    The arrays are kept here; a value that nobody holds any more is made anew when a gradient rule asks for
    it."""

    __slots__ = ("_alive", "arrays", "types")

    def __init__(
        self,
        op: Op,
        inputs: tuple[Value, ...],
        types: Sequence[Type],
        arrays: Sequence[Array],
        where: tuple[Span, ...],
        scope: str,
    ) -> None:
        self.op = op
        self.inputs = inputs
        self.where = where
        self.scope = scope
        self.types = types
        self.arrays = arrays
        self._alive: list[weakref.ref[Value] | None] = [None] * len(types)

    @property
    def outputs(self) -> tuple[Value, ...]:  # type: ignore[override]
        found: list[Value] = []
        for index, reference in enumerate(self._alive):
            value = None if reference is None else reference()
            if value is None:
                value = Value(self.types[index], self, index, self.arrays[index])
                self._alive[index] = weakref.ref(value)
            found.append(value)
        return tuple(found)


class Source(Op):
    """Where a history begins: a parameter, or an argument of `grad`. `owner` is compared by identity."""

    name = "source"
    kind = Kind.OPAQUE

    def __init__(self, owner: Any, label: str) -> None:
        self.owner = owner
        self.label = label

    def key(self) -> tuple[Any, ...]:
        return (Source, id(self))


def source_value(array: Array, owner: Any, label: str) -> Value:
    """A tracked value that no operation has computed."""
    where, scope = location()
    return HistoryNode(Source(owner, label), (), (type_of(array),), (array,), where, scope).outputs[0]


class Released(Op):
    """Where a history has been cut by `release`."""

    name = "released"
    kind = Kind.OPAQUE

    def key(self) -> tuple[Any, ...]:
        return (Released, id(self))


class CompiledCall(Op):
    """A call of a compiled function as one step of a history; its gradient is that of the traced graph.

    The inputs are those of the graph, state included; the outputs are the graph's.
    """

    name = "compiled_call"
    kind = Kind.OPAQUE

    def __init__(self, graph: Graph) -> None:
        sources, outputs = graph.sources, graph.outputs
        self.graph = remove_dead(Graph(sources, graph.nodes, outputs, (), graph.name))
        self._gradient: tuple[Graph, tuple[bool, ...]] | None = None

    def key(self) -> tuple[Any, ...]:
        return (CompiledCall, id(self))

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        given = [value.dtype.is_floating for value in outputs]
        if self._gradient is None:
            self._gradient = gradient_graph(self.graph, given)
        graph, found = self._gradient
        received = [gradient for gradient, exists in zip(cotangents, given, strict=True) if exists]
        results = iter(inline(graph, [*inputs, *received]))
        return [next(results) if exists else None for exists in found]


class EagerBuilder(Builder):
    """Computes every application at once; nodes are made only for what depends on something tracked."""

    def __init__(self) -> None:
        super().__init__(evaluate=True)

    def apply(self, op: Op, inputs: Sequence[Value]) -> tuple[Value, ...]:
        in_types = [value.type for value in inputs]
        try:
            out_types = op.infer(*in_types)
            record = (
                mode.recording
                and any(value.node is not None for value in inputs)
                and any(type.dtype.is_floating for type in out_types)
            )
            count = len(out_types)
            if record:
                residual_form = op.with_residuals()
                if residual_form is not None:
                    op, out_types = residual_form, residual_form.infer(*in_types)
            arrays = _evaluate(op, [value.data for value in inputs], out_types)
        except ThalwegError as error:
            raise located_error(error, op, in_types, *location()) from None
        if not record:
            return tuple([Value(type, None, 0, array) for type, array in zip(out_types, arrays, strict=True)])
        node = HistoryNode(op, tuple(inputs), out_types, arrays, *location())
        return node.outputs[:count]

    def append(self, node: Node) -> tuple[Value, ...]:
        return self.apply(node.op, node.inputs)


def _evaluate(op: Op, arrays: Sequence[Array], types: Sequence[Type]) -> tuple[Array, ...]:
    with np.errstate(all="ignore"):
        results = op.reference(*arrays)
    if not isinstance(results, tuple):
        results = (results,)
    found = tuple([np.asarray(result) for result in results])
    for array, type in zip(found, types, strict=True):
        if array.shape != type.shape or array.dtype != type.dtype.numpy:
            raise GraphError(
                f"the reference of {op.name} gave {array.dtype}{array.shape}, its shape rule {type}"
            )
    return found


EAGER = EagerBuilder()


def history(value: Value) -> Iterator[Node]:
    """Every node that `value` depends on, in no particular order."""
    seen: set[int] = set()
    stack = [value.node]
    while stack:
        node = stack.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        stack.extend(item.node for item in node.inputs)
