"""Building graphs: the current builder, source lines, module scopes, inlining and the one rewrite helper.

`apply(op, inputs)` appends a node to the thread's current builder. A builder with `evaluate=True` also
computes each node's value at once with the NumPy reference: eager mode and debugging are the same graph
with values attached.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from thalweg.errors import DTypeError, GraphError, ShapeError, ThalwegError, UnsupportedError
from thalweg.graph.core import Graph, Node, Op, State, Value
from thalweg.types import Span, Type

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# Models and the command line are written like a user's code.
_USER_CODE = tuple(os.path.join(_PACKAGE, part) + os.sep for part in ("models", "cli"))
_libraries: list[str] = [_PACKAGE]


def register_library(path: str) -> None:
    """Treat source files below `path` as library code: their lines are skipped when a user's line is
    looked for."""
    _libraries.append(os.path.abspath(path) + os.sep)


def is_library(file: str, cache: dict[str, bool] = {}) -> bool:  # noqa: B006 - the default is the cache
    known = cache.get(file)
    if known is None:
        known = any(file.startswith(path) for path in _libraries) and not file.startswith(_USER_CODE)
        known = (
            known or file.startswith("<frozen") or os.path.basename(file) in ("contextlib.py", "functools.py")
        )
        cache[file] = known
    return known


def user_span() -> Span:
    """The innermost stack frame outside the library."""
    frame = sys._getframe(1)
    last = frame
    while frame is not None:
        if not is_library(frame.f_code.co_filename):
            return Span(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
        last = frame
        frame = frame.f_back  # type: ignore[assignment]
    return Span(last.f_code.co_filename, last.f_lineno, last.f_code.co_name)


class _Local(threading.local):
    def __init__(self) -> None:
        self.builders: list[Builder] = []
        self.scopes: list[str] = []
        self.origin: tuple[tuple[Span, ...], str] | None = None


_local = _Local()


@contextmanager
def module_scope(path: str) -> Iterator[None]:
    """Nodes built inside belong to the module with this path, for example "LeNet.fc1"."""
    _local.scopes.append(path)
    try:
        yield
    finally:
        _local.scopes.pop()


def scope_path() -> str:
    """Path of the innermost module being run, or ""."""
    return _local.scopes[-1] if _local.scopes else ""


@contextmanager
def located(where: tuple[Span, ...], scope: str) -> Iterator[None]:
    """Nodes built inside inherit these source lines and this scope (gradients, passes) instead of the
    stack's."""
    previous = _local.origin
    _local.origin = (where, scope)
    try:
        yield
    finally:
        _local.origin = previous


def location() -> tuple[tuple[Span, ...], str]:
    """Source lines and module path of a node built now: those of `located`, else the user's line and
    running module."""
    return _local.origin or ((user_span(),), scope_path())


class Builder:
    """Collects nodes. With `evaluate` it computes their values and keeps no list: values hold their nodes."""

    def __init__(self, evaluate: bool = False, record: bool = True) -> None:
        self.evaluate = evaluate
        self.record = record
        self.nodes: list[Node] = []

    def apply(self, op: Op, inputs: Sequence[Value]) -> tuple[Value, ...]:
        """Append a node and return its outputs; errors of the op's shape rule gain the user's line and
        module."""
        where, scope = location()
        try:
            types = op.infer(*(value.type for value in inputs))
        except (ShapeError, DTypeError, UnsupportedError) as error:
            raise located_error(error, op, [value.type for value in inputs], where, scope) from None
        return self.append(Node(op, tuple(inputs), types, where, scope))

    def append(self, node: Node) -> tuple[Value, ...]:
        """Append a node whose types are known to follow the shape rule (a copy in a pass), and return its
        outputs."""
        if self.evaluate:
            self._compute(node)
            if not self.record:
                return tuple(Value(v.type, None, 0, v.data) for v in node.outputs)
        else:
            self.nodes.append(node)
        return node.outputs

    def _compute(self, node: Node) -> None:
        try:
            with np.errstate(all="ignore"):
                results = node.op.reference(*(value.data for value in node.inputs))
        except ThalwegError as error:
            types = [value.type for value in node.inputs]
            raise located_error(error, node.op, types, node.where, node.scope) from None
        results = results if isinstance(results, tuple) else (results,)
        for value, result in zip(node.outputs, results, strict=True):
            array = np.asarray(result)
            if array.shape != value.shape or array.dtype != value.dtype.numpy:
                raise GraphError(
                    f"the reference of {node.op.name} gave {array.dtype}{array.shape}, "
                    f"its shape rule {value.type}"
                )
            value.data = array

    def source(self, type: Type, data: Any = None) -> Value:
        """A value that no node computes."""
        return Value(type, None, 0, data)


def located_error(
    error: ThalwegError, op: Op, types: Sequence[Type], where: tuple[Span, ...], scope: str
) -> ThalwegError:
    """The same error with module path, op, shapes received and the user's line (once)."""
    if getattr(error, "located", False):
        return error
    head = f"{scope}: " if scope else ""
    received = ", ".join(map(str, types))
    lines = [f"{head}{error}", f"  in {op.name}({received})"]
    lines += [f"  at {span.file}:{span.line} in {span.function}\n      {span.text}" for span in where]
    found = type(error)("\n".join(lines))
    found.located = True  # type: ignore[attr-defined]
    return found


@contextmanager
def using(builder: Builder) -> Iterator[Builder]:
    """Make `builder` the current one of this thread."""
    _local.builders.append(builder)
    try:
        yield builder
    finally:
        _local.builders.pop()


def current() -> Builder | None:
    """The innermost builder of this thread, or None outside all of them."""
    return _local.builders[-1] if _local.builders else None


def builder() -> Builder:
    """The current builder; raises `GraphError` where there is none."""
    if not _local.builders:
        raise GraphError("graph values can only be used while a graph is being built")
    return _local.builders[-1]


def apply(op: Op, inputs: Sequence[Value]) -> tuple[Value, ...]:
    """Append a node to the current builder."""
    return builder().apply(op, inputs)


def trace_graph(
    body: Callable[..., Any], types: Sequence[Type], name: str = "graph", input_names: Sequence[str] = ()
) -> Graph:
    """The graph of a function of values (a composite's body, a gradient, a test): one or several results."""
    inputs = tuple(Value(type) for type in types)
    with using(Builder()) as inner:
        result = body(*inputs)
    outputs = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    return Graph(inputs, tuple(inner.nodes), outputs, (), name, tuple(input_names))


def remove_dead(graph: Graph) -> Graph:
    """Without the nodes that no result needs.

    Results are the outputs and the changed state. A node that could fail when it runs (an index outside
    its axis) is removed like any other: a check guards the value that it gives, and nobody reads that.
    """
    needed = {id(value) for value in graph.results}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(id(value) in needed for value in node.outputs):
            kept.append(node)
            needed.update([id(value) for value in node.inputs])
    return graph if len(kept) == len(graph.nodes) else replace(graph, nodes=tuple(reversed(kept)))


def inline(graph: Graph, inputs: Sequence[Value]) -> tuple[Value, ...]:
    """Append a copy of `graph` (without state) to the current builder; returns its outputs.

    Nodes keep the lines of the calling context (`located`), which is where the user wrote the composite.
    """
    if len(inputs) != len(graph.inputs):
        raise GraphError(f"{graph.name} takes {len(graph.inputs)} inputs, received {len(inputs)}")
    mapping = {id(old): new for old, new in zip(graph.inputs, inputs, strict=True)}
    target = builder()
    for node in graph.nodes:
        outputs = target.apply(node.op, [mapping[id(value)] for value in node.inputs])
        mapping.update((id(old), new) for old, new in zip(node.outputs, outputs, strict=True))
    return tuple(mapping[id(value)] for value in graph.outputs)


_MOST_SPANS = 8  # of one node: enough for an error message, and merging many nodes stays cheap


def add_lines(node: Node, where: tuple[Span, ...]) -> None:
    """Let `node` carry these source lines too: it stands for what was written there."""
    if node.where is not where and len(node.where) < _MOST_SPANS:
        node.where = tuple(dict.fromkeys((*node.where, *where)))[:_MOST_SPANS]


Rule = Callable[[Node, tuple[Value, ...]], Sequence[Value] | None]


def rewrite(graph: Graph, rule: Rule) -> Graph:
    """A new graph in which `rule` decides for every node: None keeps it, else the values that replace its
    outputs.

    The rule receives the old node and its already rewritten inputs; what it builds through op functions
    inherits the node's source lines and scope; a node that replaces several carries the lines of all.
    This is the only way in which passes make graphs.
    """
    mapping: dict[int, Value] = {id(value): Value(value.type) for value in graph.sources}
    outside = _local.origin
    try:
        with using(Builder()) as target:
            for node in graph.nodes:
                inputs = tuple([mapping[id(value)] for value in node.inputs])
                _local.origin = (node.where, node.scope)  # `located`, without its cost for every node
                outputs = rule(node, inputs)
                if outputs is None:
                    outputs = target.append(
                        Node(node.op, inputs, [value.type for value in node.outputs], node.where, node.scope)
                    )
                for old, new in zip(node.outputs, outputs, strict=True):
                    if old.type is not new.type and old.type != new.type:
                        raise GraphError(f"a rewrite of {node!r} changed {old.type} to {new.type}")
                    if new.node is not None and new.node.where is not node.where:
                        add_lines(new.node, node.where)
                    mapping[id(old)] = new
    finally:
        _local.origin = outside
    state = tuple(
        State(
            mapping[id(entry.before)], None if entry.after is None else mapping[id(entry.after)], entry.holder
        )
        for entry in graph.state
    )
    return Graph(
        tuple(mapping[id(value)] for value in graph.inputs),
        tuple(target.nodes),
        tuple(mapping[id(value)] for value in graph.outputs),
        state,
        graph.name,
        graph.input_names,
    )
