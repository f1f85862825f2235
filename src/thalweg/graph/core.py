"""`Graph`, `Node`, `Value` and `Op`: the one data structure between a user's function and a plan.

A graph is an ordered list of nodes in single-assignment form. It is immutable: a pass makes a new one
(`rewrite`). There is no implicit broadcasting or promotion, nothing in place, no view and no stride in
it: the op functions in `thalweg.ops` insert explicit `broadcast` and `cast` nodes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from thalweg.errors import GraphError
from thalweg.types import DType, Span, Type


class Kind(IntEnum):
    """How an op relates output elements to input elements; fusion and rematerialisation rest on the order."""

    ELEMENTWISE = 0
    MOVEMENT = 1
    REDUCTION = 2
    CONTRACTION = 3
    OPAQUE = 4


class AxisGroup(NamedTuple):
    """One axis as it runs through an op: its position in every input and output, or None where it does
    not appear.

    A group that appears in an output is *mapped* (position i of it depends on position i of the inputs
    only); a group in no output is *reduced*. Axes that an op lists in no group are *mixed*: no tiling may
    cut them.
    """

    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]

    @property
    def reduced(self) -> bool:
        return all(axis is None for axis in self.outputs)


class Operand:
    """What op functions accept: a graph `Value` or a user's `Tensor`. The operators are bound by
    `thalweg.ops`."""

    __slots__ = ()
    __hash__ = object.__hash__
    __array_priority__ = 1000  # NumPy arrays and scalars leave mixed arithmetic to us
    __array_ufunc__ = None

    def __add__(self, other: Any) -> Any:
        return function("add")(self, other)

    def __radd__(self, other: Any) -> Any:
        return function("add")(other, self)

    def __sub__(self, other: Any) -> Any:
        return function("subtract")(self, other)

    def __rsub__(self, other: Any) -> Any:
        return function("subtract")(other, self)

    def __mul__(self, other: Any) -> Any:
        return function("multiply")(self, other)

    def __rmul__(self, other: Any) -> Any:
        return function("multiply")(other, self)

    def __truediv__(self, other: Any) -> Any:
        return function("divide")(self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return function("divide")(other, self)

    def __floordiv__(self, other: Any) -> Any:
        return function("floor_divide")(self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return function("floor_divide")(other, self)

    def __mod__(self, other: Any) -> Any:
        return function("remainder")(self, other)

    def __rmod__(self, other: Any) -> Any:
        return function("remainder")(other, self)

    def __pow__(self, other: Any) -> Any:
        return function("pow")(self, other)

    def __rpow__(self, other: Any) -> Any:
        return function("pow")(other, self)

    def __matmul__(self, other: Any) -> Any:
        return function("matmul")(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return function("matmul")(other, self)

    def __neg__(self) -> Any:
        return function("negative")(self)

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return function("abs")(self)

    def __invert__(self) -> Any:
        return function("bitwise_invert")(self)

    def __and__(self, other: Any) -> Any:
        return function("bitwise_and")(self, other)

    def __rand__(self, other: Any) -> Any:
        return function("bitwise_and")(other, self)

    def __or__(self, other: Any) -> Any:
        return function("bitwise_or")(self, other)

    def __ror__(self, other: Any) -> Any:
        return function("bitwise_or")(other, self)

    def __xor__(self, other: Any) -> Any:
        return function("bitwise_xor")(self, other)

    def __rxor__(self, other: Any) -> Any:
        return function("bitwise_xor")(other, self)

    def __lshift__(self, other: Any) -> Any:
        return function("bitwise_left_shift")(self, other)

    def __rlshift__(self, other: Any) -> Any:
        return function("bitwise_left_shift")(other, self)

    def __rshift__(self, other: Any) -> Any:
        return function("bitwise_right_shift")(self, other)

    def __rrshift__(self, other: Any) -> Any:
        return function("bitwise_right_shift")(other, self)

    def __eq__(self, other: Any) -> Any:
        return function("equal")(self, other)

    def __ne__(self, other: Any) -> Any:
        return function("not_equal")(self, other)

    def __lt__(self, other: Any) -> Any:
        return function("less")(self, other)

    def __le__(self, other: Any) -> Any:
        return function("less_equal")(self, other)

    def __gt__(self, other: Any) -> Any:
        return function("greater")(self, other)

    def __ge__(self, other: Any) -> Any:
        return function("greater_equal")(self, other)

    def __getitem__(self, key: Any) -> Any:
        return function("index")(self, key)


_functions: dict[str, Callable[..., Any]] = {}


def bind(name: str, implementation: Callable[..., Any]) -> None:
    """Let `thalweg.ops` give the function behind an operator or method."""
    _functions[name] = implementation


def function(name: str) -> Callable[..., Any]:
    """The op function of that name."""
    return _functions[name]


class Value(Operand):
    """An edge of the graph: one output of one node, or an input. Compared by identity inside dicts and
    sets only through `is`; the `==` operator builds an `equal` node like every other operator."""

    __slots__ = ("__weakref__", "data", "index", "node", "type")

    def __init__(self, type: Type, node: Node | None = None, index: int = 0, data: Any = None) -> None:
        self.type = type
        self.node = node
        self.index = index
        self.data = data  # the concrete NumPy array where the graph is built with values attached

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def ndim(self) -> int:
        return len(self.type.shape)

    @property
    def size(self) -> int:
        return self.type.size

    def __bool__(self) -> bool:
        raise GraphError("a graph value has no truth value; use thalweg.where or thalweg.cond")

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            raise GraphError("a 0-d value cannot be iterated over")
        return (self[i] for i in range(self.shape[0]))

    def __repr__(self) -> str:
        return f"Value({self.type})"


class Op:
    """The base of every op: a frozen dataclass whose fields are its attributes.

    Ops compare by class and by the bit pattern and type of their attributes: -0.0 is not 0.0, True is not
    1, arrays go by digest, sub-graphs by structure. Common subexpressions and caching rest on that.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    checked: ClassVar[bool] = False  # may it meet an index out of range while it runs?
    cost: ClassVar[int] = (
        1  # of one element beside an addition: what is dear is stored rather than computed again
    )
    partial_cotangents: ClassVar[bool] = (
        False  # vjp takes None for an output without cotangent (else zeros come)
    )
    combine: ClassVar[str | None] = (
        None  # how partial results over a cut reduced axis combine: "sum", "max", ...
    )

    def infer(self, *inputs: Type) -> tuple[Type, ...]:
        """Types of the outputs; raises `ShapeError` or `DTypeError` saying what is wrong with the inputs."""
        raise NotImplementedError

    def reference(self, *inputs: np.ndarray[Any, Any]) -> Any:
        """The op in NumPy: one array, or a tuple of them."""
        raise NotImplementedError

    def vjp(
        self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any | None]
    ) -> Sequence[Any | None]:
        """Gradients with respect to the inputs (None: zero or not differentiable), as values built with
        op functions."""
        raise NotImplementedError

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        """The axis rule: axes that are mapped or reduced. The default claims nothing."""
        return ()

    def operations(self, inputs: Sequence[Type], outputs: Sequence[Type]) -> int:
        """Arithmetic operations, counted densely; a fused multiply-add is two."""
        if self.kind is Kind.ELEMENTWISE:
            return sum(output.size for output in outputs)
        if self.kind is Kind.REDUCTION:
            return sum(value.size for value in inputs)
        return 0

    def with_residuals(self) -> Op | None:
        """The same application with further outputs that its gradient needs, or None where it needs none."""
        return None

    def without_residuals(self) -> Op | None:
        """Of an op made by `with_residuals`: the op that it was made from; else None."""
        return None

    def narrowed(self, used: Sequence[bool], *inputs: Type) -> Narrowed | None:
        """The same application without what only unused outputs need, or None where it stays as it is."""
        return None

    def attributes(self) -> dict[str, Any]:
        """Name and value of every attribute, in the order of declaration."""
        return {name: getattr(self, name) for name in _attribute_names(type(self))}

    def key(self) -> tuple[Any, ...]:
        """What makes two ops the same op."""
        cached = self.__dict__.get("_key")
        if cached is None:
            cached = (type(self), *(attribute_key(value) for value in self.attributes().values()))
            object.__setattr__(self, "_key", cached)
        return cached

    def stable_key(self, *inputs: Type) -> tuple[Any, ...]:
        """The key, for inputs of these types, without anything that differs between processes."""
        return self.key()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.attributes().items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Op) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())


_names: dict[type, tuple[str, ...]] = {}


def _attribute_names(cls: type) -> tuple[str, ...]:
    found = _names.get(cls)
    if found is None:
        found = _names[cls] = tuple(field.name for field in fields(cls)) if is_dataclass(cls) else ()
    return found


class Narrowed(NamedTuple):
    """A smaller op for an application some of whose outputs nothing uses."""

    op: Op
    inputs: tuple[int, ...]  # positions of the inputs that it still takes
    outputs: tuple[
        int | None, ...
    ]  # for every old output: its position among the new ones, None where it is gone


REGISTRY: dict[str, Any] = {}  # op name -> primitive class or composite definition; filled by thalweg.ops


def attribute_key(value: Any) -> Any:
    """A hashable stand-in for an attribute that distinguishes types and bit patterns."""
    if isinstance(value, (bool, int, str, bytes, DType)) or value is None:
        return (type(value), value)
    if isinstance(value, float):
        return (float, struct.pack("<d", value))
    if isinstance(value, (tuple, list)):
        return (tuple, *(attribute_key(item) for item in value))
    if isinstance(value, np.ndarray):
        return (np.ndarray, digest(value))
    if isinstance(value, Graph):
        return (Graph, value.digest())
    if isinstance(value, np.generic):
        return (type(value), value.tobytes())
    raise GraphError(
        f"attribute {value!r} of type {type(value).__name__} cannot be compared; "
        "use numbers, strings, dtypes, tuples of them, arrays or graphs"
    )


def digest(array: np.ndarray[Any, Any]) -> str:
    """SHA-256 over dtype, shape and bytes of an array."""
    import hashlib  # here, because it takes long to load and not every use needs it

    state = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode())
    state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


class Node:
    """One application of an op: "the statement `outputs = op(*inputs)`", with the source lines it stems
    from."""

    __slots__ = ("__weakref__", "inputs", "op", "outputs", "scope", "where")

    def __init__(
        self,
        op: Op,
        inputs: tuple[Value, ...],
        types: Sequence[Type],
        where: tuple[Span, ...],
        scope: str,
    ) -> None:
        self.op = op
        self.inputs = inputs
        self.where = where
        self.scope = scope
        self.outputs = tuple(Value(type, self, index) for index, type in enumerate(types))

    def __repr__(self) -> str:
        return f"Node({self.op.name}: {', '.join(str(v.type) for v in self.outputs)})"


class Holder(Protocol):
    """What owns a piece of persistent state: a parameter, a buffer, an optimiser slot, a random generator."""

    name: str
    data: np.ndarray[Any, Any]
    version: int  # counts the changes of the value


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A graph input that stands for a holder's value, and the graph value it has afterwards (None:
    unchanged)."""

    before: Value
    after: Value | None
    holder: Any


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Inputs, ordered nodes, outputs and state pairs. `inputs` does not contain the state's `before`
    values."""

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    state: tuple[State, ...] = ()
    name: str = "graph"
    input_names: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[Value, ...]:
        """Every value that no node computes: inputs, then the state as it is before."""
        return (*self.inputs, *(entry.before for entry in self.state))

    @property
    def results(self) -> tuple[Value, ...]:
        """Every value that must be computed: outputs, then the changed state."""
        return (*self.outputs, *(entry.after for entry in self.state if entry.after is not None))

    def users(self) -> Mapping[int, list[Node]]:
        """For `id(value)`: the nodes that read it, in order, each once."""
        found: dict[int, list[Node]] = {}
        for node in self.nodes:
            for value in {id(v): v for v in node.inputs}.values():
                found.setdefault(id(value), []).append(node)
        return found

    def verify(self) -> Graph:
        """Check every invariant and return the graph; raises `GraphError`."""
        known = {id(value) for value in self.sources}
        if len(known) != len(self.sources):
            raise GraphError(f"{self.name}: a value is an input twice")
        for node in self.nodes:
            for value in node.inputs:
                if id(value) not in known:
                    raise GraphError(f"{self.name}: {node!r} reads a value before it is computed")
            for attribute in node.op.attributes().values():
                if isinstance(attribute, Graph):
                    attribute.verify()
            inferred = node.op.infer(*(value.type for value in node.inputs))
            if tuple(inferred) != tuple(value.type for value in node.outputs):
                raise GraphError(
                    f"{self.name}: {node!r} does not have the types of its shape rule, {inferred}"
                )
            if not node.where:
                raise GraphError(f"{self.name}: {node!r} has lost its source line")
            for value in node.outputs:
                if id(value) in known:
                    raise GraphError(f"{self.name}: an output of {node!r} is computed twice")
                known.add(id(value))
        for value in self.results:
            if id(value) not in known:
                raise GraphError(f"{self.name}: a result is never computed")
        for entry in self.state:
            if entry.after is not None and entry.after.type != entry.before.type:
                raise GraphError(
                    f"{self.name}: state {entry.holder.name} would change from {entry.before.type} "
                    f"to {entry.after.type}"
                )
        return self

    def digest(self) -> str:
        """SHA-256 of the structure: ops, types, wiring; not names, source lines or holders."""
        import hashlib

        number: dict[int, int] = {}
        lines: list[str] = []
        for value in self.sources:
            number[id(value)] = len(number)
            lines.append(str(value.type))
        for node in self.nodes:
            key = node.op.stable_key(*[value.type for value in node.inputs])
            lines.append(f"{_stable(key)} {[number[id(v)] for v in node.inputs]}")
            for value in node.outputs:
                number[id(value)] = len(number)
        lines.append(str([number[id(v)] for v in self.outputs]))
        lines.append(str([number[id(e.after)] if e.after is not None else -1 for e in self.state]))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def text(self, *, spans: bool = True, limit: int | None = None) -> str:
        """The graph as text that `thalweg.graph.parse` reads back; constants above `limit` elements are
        elided."""
        from thalweg.graph.text import to_text

        return to_text(self, spans=spans, limit=limit)

    def draw(self, path: Any) -> None:
        """Write a picture (`.svg`) or the text (`.txt`) of the graph to a file."""
        function("draw")(self, path)

    def __str__(self) -> str:
        return self.text(limit=32)

    def __len__(self) -> int:
        return len(self.nodes)


def _stable(key: Any) -> str:
    """A key as text that is the same in every process (classes by name, never by address)."""
    if isinstance(key, tuple):
        return "(" + ",".join(_stable(item) for item in key) + ")"
    if isinstance(key, type):
        return getattr(key, "name", None) or key.__name__ if issubclass(key, Op) else key.__name__
    return repr(key)
