"""Traces: the graph that grows while a user's function runs, and the state that it reads and assigns.

While a trace runs (on one thread), operations on tensors append nodes to it instead of computing. Reading a
state holder makes it a state input, assigning it a state output; a concrete tensor from outside becomes a
hidden input."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from thalweg.errors import GraphError, TraceError
from thalweg.graph import Builder, Graph, State, Value, remove_dead
from thalweg.graph.build import user_span
from thalweg.ops.elementwise import StopGradient
from thalweg.types import Span, Type

if TYPE_CHECKING:
    from thalweg.tensor.state import Holder
    from thalweg.tensor.tensor import Tensor


class _Stack(threading.local):
    def __init__(self) -> None:
        self.traces: list[Trace] = []


_stack = _Stack()


def current_trace() -> Trace | None:
    """The innermost trace of this thread, or None."""
    return _stack.traces[-1] if _stack.traces else None


def tracing() -> bool:
    """Whether a function is being traced on this thread."""
    return bool(_stack.traces)


class HolderInTrace:
    """What a trace knows of one holder: its value before, the last assigned one, and every value that was
    read.
    """

    __slots__ = ("after", "holder", "read", "reads")

    def __init__(self, holder: Holder, before: Value) -> None:
        self.holder = holder
        self.after: Value | None = None
        self.reads = [before]  # the first is the value before
        self.read: Value | None = before  # what a read gives now; None: not made yet


class Trace:
    """One run of a function in which operations are recorded instead of computed."""

    is_body = False  # of a loop or a branch: it uses tensors of the trace around it as they are

    def __init__(self, name: str) -> None:
        self.name = name
        self.where = user_span()
        self.builder = Builder()
        self.active = True
        self.inputs: list[Value] = []
        self.labels: list[str] = []  # of the inputs
        self.holders: dict[int, HolderInTrace] = {}
        self.captured: dict[int, tuple[Value, Tensor]] = {}  # id(concrete value) -> (input, tensor)
        self.unrecorded: list[Value] = []  # made inside no_grad: gradients do not look behind them
        self.released: dict[int, Span] = {}  # id(loss value) -> line of the minimize
        self.draws: dict[
            int, tuple[Any, Tensor, int]
        ] = {}  # id(generator) -> generator, state before, draws so far
        self.epochs = 0  # how often this trace itself has changed an attribute of a module

    # ---- what comes in -------------------------------------------------------------------------------------

    def input(self, type: Type, label: str) -> Value:
        """A new argument."""
        value = Value(type)
        self.inputs.append(value)
        self.labels.append(label)
        return value

    def capture(self, tensor: Tensor, concrete: Value) -> Value:
        """The input that stands for a concrete tensor from outside the traced function."""
        known = self.captured.get(id(concrete))
        if known is None:
            known = self.captured[id(concrete)] = (Value(concrete.type), tensor)
        return known[0]

    def read(self, holder: Holder) -> Value:
        """The value of a holder at this point of the trace."""
        known = self._holder(holder)
        if known.read is None:
            assert known.after is not None
            # Reading gives the value alone: as in eager mode no gradient flows through an assignment.
            (known.read,) = self.builder.apply(StopGradient(), [known.after])
            known.reads.append(known.read)
        return known.read

    def write(self, holder: Holder, value: Value) -> None:
        """Let the holder have this value from here on."""
        known = self._holder(holder)
        known.after = value
        known.read = None

    def _holder(self, holder: Holder) -> HolderInTrace:
        known = self.holders.get(id(holder))
        if known is None:
            known = self.holders[id(holder)] = HolderInTrace(holder, Value(holder.type))
        return known

    # ---- what goes out -------------------------------------------------------------------------------------

    def graph(self, outputs: list[Value]) -> Graph:
        """The finished graph: arguments, then captured tensors as inputs; nodes without use are left out."""
        captured = list(self.captured.values())
        labels = [*self.labels, *(f"captured{position}" for position in range(len(captured)))]
        state = []
        for known in self.holders.values():
            after = None if known.after is known.reads[0] else known.after
            state.append(State(known.reads[0], after, known.holder))
        inputs = (*self.inputs, *(value for value, _ in captured))
        graph = Graph(
            inputs, tuple(self.builder.nodes), tuple(outputs), tuple(state), self.name, tuple(labels)
        )
        return remove_dead(graph)

    # ---- use -----------------------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[Trace]:
        """Record operations of this thread in this trace while the block runs."""
        _stack.traces.append(self)
        try:
            yield self
        finally:
            self.active = False
            _stack.traces.pop()


@contextmanager
def suspended(trace: Trace) -> Iterator[None]:
    """Work in what is around `trace`, the innermost one, while the block runs."""
    if current_trace() is not trace:
        raise GraphError(f"{trace.name} is not the innermost trace")
    _stack.traces.pop()
    try:
        yield
    finally:
        _stack.traces.append(trace)


def origin(value: Value, trace: Trace) -> str:
    """Where a traced value comes from, in words, for error messages."""
    if value.node is not None:
        span = value.node.where[0]
        return (
            f"made by {value.node.op.name} at {span.file}:{span.line} in {span.function}\n      {span.text}"
        )
    for number, known in enumerate(trace.inputs):
        if known is value:
            return f"the argument {trace.labels[number]} of {trace.name}"
    return f"read while {trace.name} was traced"


def leaked(value: Value, trace: Trace) -> TraceError:
    """The error for a traced tensor that is used where its trace does not run."""
    state = "is being traced on another thread" if trace.active else "is over"
    return TraceError(
        f"a traced tensor ({value.type}) is used outside its trace: the trace of {trace.name} {state}, so "
        f"the tensor has no value\n  it was {origin(value, trace)}\n"
        f"  write instead: return the tensor from {trace.name}, or keep it in a tw.Buffer with "
        "buffer.assign(tensor)"
    )


def no_value(value: Value, trace: Trace, what: str, instead: str) -> TraceError:
    """The error for asking a traced tensor for its value."""
    span = user_span()
    return TraceError(
        f"{what} needs the value of a tensor, but {trace.name} is being traced: there are no values yet, "
        f"only {value.type}\n"
        f"  at {span.file}:{span.line} in {span.function}\n      {span.text}\n"
        f"  the tensor was {origin(value, trace)}\n"
        f"  write instead: {instead}"
    )


def lift(tensor: Tensor, trace: Trace) -> Value:
    """The value in `trace` that stands for a tensor (not a holder)."""
    value, home = tensor._value, tensor._trace
    if home is None or (trace.is_body and home is not trace and home in _stack.traces):
        return trace.capture(tensor, value)
    if home is trace:
        return value
    if home in _stack.traces:
        raise GraphError(f"a tensor of the trace of {home.name} is used in the inner trace of {trace.name}")
    raise leaked(value, home)
