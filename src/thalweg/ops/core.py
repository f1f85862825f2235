"""How ops are declared and applied: `@primitive`, `@composite`, and the operands that op functions accept.

An op function is written once, generic over graph values and users' tensors: it prepares operands (`operand`,
`promoted`, `broadcast_together`), makes the op and calls `apply`.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from typing import Any, ClassVar, TypeVar, dataclass_transform

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError, GraphError, ShapeError
from thalweg.graph import (
    REGISTRY,
    AxisGroup,
    Graph,
    Kind,
    Narrowed,
    Op,
    Operand,
    Value,
    current,
    inline,
    trace_graph,
)
from thalweg.types import DType, Type

P = TypeVar("P", bound=Op)


@dataclass_transform(frozen_default=True)
def primitive(name: str, kind: Kind, combine: str | None = None) -> Callable[[type[P]], type[P]]:
    """Register a class as a primitive op. The class body holds its mathematics; its fields are its
    attributes."""

    def register(cls: type[P]) -> type[P]:
        # Making a dataclass takes part of a millisecond; most ops have no attributes and need none.
        plain = not cls.__annotations__ and not is_dataclass(cls)
        frozen = cls if plain else dataclass(frozen=True, eq=False, repr=False)(cls)
        frozen.name = name
        frozen.kind = kind
        frozen.combine = combine
        if name in REGISTRY:
            raise GraphError(f"there are two ops named {name!r}")
        REGISTRY[name] = frozen
        return frozen

    return register


# ---- operands
# -------------------------------------------------------------------------------------------------------

_lifters: list[Callable[[Op, Sequence[Any]], Any]] = []


def install_frontend(applier: Callable[[Op, Sequence[Any]], Any]) -> None:
    """Let `thalweg.tensor` say how an op is applied to operands that are not all graph values."""
    _lifters[:] = [applier]


class _Precision(threading.local):
    """What `tw.autocast` sets: the type in which products of a user's tensors are computed, or None."""

    low: DType | None = None


precision = _Precision()


def apply(op: Op, *operands: Any) -> Any:
    """Apply `op`: one operand for one output, a tuple for several. Values build a node, tensors go to the
    frontend."""
    active = current()
    if active is not None and all(isinstance(item, Value) for item in operands):
        outputs = active.apply(op, operands)
        return outputs[0] if len(outputs) == 1 else outputs
    if not _lifters:
        raise GraphError("tensors need `import thalweg`; graph values need a builder")
    if precision.low is not None:
        from thalweg.ops.autocast import adjusted

        operands = tuple(adjusted(op, operands, precision.low))
    return _lifters[0](op, operands)


def operand(value: Any, dtype: DType | None = None) -> Any:
    """`value` as something that `apply` takes: an operand as it is, numbers and arrays as constants.

    `dtype` is the element type of a Python number; arrays keep their own.
    """
    if isinstance(value, Operand):
        return value
    from thalweg.ops.sources import constant

    if isinstance(value, (bool, int, float)) and not isinstance(value, np.generic):
        return constant(np.asarray(value, _scalar_dtype(value, dtype).numpy))
    array = np.asarray(value)
    if array.dtype == object or (array.dtype.kind in "USOcmMV" and array.dtype.name != "bfloat16"):
        raise DTypeError(
            f"expected a tensor, a number or an array of numbers, received {value!r:.60} "
            f"of type {type(value).__name__}"
        )
    return constant(array)


def _scalar_dtype(value: bool | int | float, partner: DType | None) -> DType:
    """Python numbers are weak: they take the other operand's type, unless that cannot hold their kind."""
    if isinstance(value, bool):
        return partner or types.bool_
    if isinstance(value, int):
        found = partner if partner is not None and not partner.is_bool else types.int64
        if found.is_integer:
            limits = np.iinfo(found.numpy)
            if not limits.min <= value <= limits.max:
                raise DTypeError(f"{value} does not fit into {found} ({limits.min} to {limits.max})")
        return found
    return partner if partner is not None and partner.is_floating else types.float32


def cast(x: Any, dtype: Any) -> Any:
    """`x` with another element type (nothing where it has that type already)."""
    from thalweg.ops.elementwise import Cast

    target = types.dtype(dtype)
    x = operand(x)
    return x if x.dtype is target else apply(Cast(target), x)


def promoted(*values: Any) -> list[Any]:
    """Operands with one common element type (array-API promotion; Python numbers are weak)."""
    strong: list[Any] = [v if isinstance(v, Operand) else None for v in values]
    strong = [
        operand(v) if s is None and not _is_number(v) else s for s, v in zip(strong, values, strict=True)
    ]
    common: DType | None = None
    for found in strong:
        if found is not None:
            common = found.dtype if common is None else types.promote(common, found.dtype)
    for value, found in zip(values, strong, strict=True):
        if found is None:
            weak = _scalar_dtype(value, common)
            common = weak if common is None else types.promote(common, weak) if weak is not common else common
    return [cast(operand(v, common) if s is None else s, common) for s, v in zip(strong, values, strict=True)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and not isinstance(value, np.generic)


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The common shape under NumPy's rules; raises `ShapeError` naming the axis that does not fit."""
    rank = max(map(len, shapes), default=0)
    result: list[int] = []
    for axis in range(-rank, 0):
        extents = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        if len(extents) > 1:
            raise ShapeError(
                f"shapes {' and '.join(map(str, shapes))} cannot be broadcast together: "
                f"axis {axis} has sizes {' and '.join(map(str, sorted(extents)))}; they must be equal or 1"
            )
        result.append(extents.pop() if extents else 1)
    return tuple(result)


def broadcast_together(*values: Any) -> list[Any]:
    """Operands brought to one shape with explicit `broadcast` nodes."""
    from thalweg.ops.movement import broadcast_to

    shape = broadcast_shapes(*(value.shape for value in values))
    return [value if value.shape == shape else broadcast_to(value, shape) for value in values]


def floating(x: Any) -> Any:
    """`x` as a floating-point operand: integers and booleans become float32."""
    x = operand(x)
    return x if x.dtype.is_floating else cast(x, types.float32)


def require(condition: bool, message: str) -> None:
    """Raise `ShapeError(message)` unless `condition` holds: for shape rules."""
    if not condition:
        raise ShapeError(message)


def elementwise_axes(inputs: Sequence[Type], outputs: int = 1) -> tuple[AxisGroup, ...]:
    """The axis rule of an op whose inputs and outputs all have one shape."""
    return tuple(
        AxisGroup((axis,) * len(inputs), (axis,) * outputs)
        for axis in range(len(inputs[0].shape) if inputs else 0)
    )


# ---- composites
# -----------------------------------------------------------------------------------------------------


class Composite(Op):
    """An application of a composite: its definition, which optional tensors are present, and its
    attributes."""

    kind: ClassVar[Kind] = Kind.OPAQUE

    def __init__(
        self, definition: CompositeDefinition, present: tuple[bool, ...], attributes: dict[str, Any]
    ) -> None:
        self.definition = definition
        self.present = present
        self._attributes = attributes
        self.name = definition.name  # type: ignore[misc]

    def attributes(self) -> dict[str, Any]:
        shown = dict(self._attributes)
        return shown if all(self.present) else {**shown, "present": self.present}

    def key(self) -> tuple[Any, ...]:
        cached = self.__dict__.get("_key")
        if cached is None:
            from thalweg.graph.core import attribute_key

            values = (attribute_key(value) for value in self._attributes.values())
            cached = self.__dict__["_key"] = (self.name, id(self.definition), self.present, *values)
        return cached

    def stable_key(self, *inputs: Type) -> tuple[Any, ...]:
        """The key without the address of the definition. Library composites have names of their own; for
        those of a user, who may define one name twice, the structure of the body stands.
        """
        key = (self.key()[0], *self.key()[2:])
        library = self.definition.function.__module__.startswith("thalweg.")
        return key if library else (*key, self.body(*inputs).digest())

    def arguments(self, inputs: Sequence[Any]) -> list[Any]:
        """`inputs` with None at the places of absent optional tensors."""
        remaining = iter(inputs)
        return [next(remaining) if given else None for given in self.present]

    def body(self, *inputs: Type) -> Graph:
        """The composite written in other ops, for these input types."""
        return _body(self, inputs)

    def infer(self, *inputs: Type) -> tuple[Type, ...]:
        return tuple(value.type for value in self.body(*inputs).outputs)

    def reference(self, *inputs: np.ndarray[Any, Any]) -> Any:
        if self.definition.numpy is not None:
            return self.definition.numpy(*self.arguments(inputs), **self._attributes)
        from thalweg.interpret import interpret

        results = interpret(self.body(*(types.type_of(array) for array in inputs)), inputs)
        return tuple(results) if len(results) > 1 else results[0]

    def vjp(
        self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any | None]
    ) -> Sequence[Any | None]:
        rule = self.definition.gradient_rule
        if rule is None:
            raise GraphError(f"{self.name} has no gradient rule: autodiff differentiates its body")
        found = rule(self.arguments(inputs), outputs, cotangents, **self._attributes)
        if len(found) != len(self.present):
            raise GraphError(
                f"the gradient rule of {self.name} gave {len(found)} gradients "
                f"for {len(self.present)} arguments"
            )
        return [gradient for gradient, given in zip(found, self.present, strict=True) if given]

    def with_residuals(self) -> Op | None:
        """The same application with its residuals as further outputs, or None where it needs none."""
        found = self.definition.residual_form
        return None if found is None else Composite(found, self.present, self._attributes)

    def without_residuals(self) -> Composite | None:
        """Of a residual form: the plain application whose outputs come first; else None."""
        found = self.definition.plain_form
        return None if found is None else Composite(found, self.present, self._attributes)

    def narrowed(self, used: Sequence[bool], *inputs: Type) -> Narrowed | None:
        """A residual form whose residuals nothing reads is the plain composite again."""
        plain = self.without_residuals()
        if plain is None:
            return None
        count = len(plain.infer(*inputs))
        if any(used[count:]):
            return None
        kept = (*range(count), *(None for _ in used[count:]))
        return Narrowed(plain, tuple(range(len(inputs))), kept)

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        from thalweg.ops.axes import graph_axes

        return graph_axes(self.body(*inputs))

    def operations(self, inputs: Sequence[Type], outputs: Sequence[Type]) -> int:
        return sum(
            node.op.operations([v.type for v in node.inputs], [v.type for v in node.outputs])
            for node in self.body(*inputs).nodes
        )

    def __repr__(self) -> str:
        return f"Composite({self.name})"


@lru_cache(maxsize=4096)
def _body(op: Composite, inputs: tuple[Type, ...]) -> Graph:
    def build(*values: Value) -> Any:
        return op.definition.function(*op.arguments(values), **op._attributes)

    return trace_graph(build, inputs, op.name)


class CompositeDefinition:
    """What `@composite` makes of a function: callable on tensors and values, with optional rules attached.

    Positional parameters are tensors (None: absent), keyword-only parameters are attributes.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self.name = name
        self.gradient_rule: Callable[..., Sequence[Any | None]] | None = None
        self.residual_form: CompositeDefinition | None = None
        self.plain_form: CompositeDefinition | None = None  # of a residual form: what it is without residuals
        self.numpy: Callable[..., Any] | None = None
        self.signature = inspect.signature(function)
        parameters = self.signature.parameters.values()
        self.tensors = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
        self.options = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        self.__doc__ = function.__doc__
        self.__name__ = name
        self.__wrapped__ = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(f"{self.name}{self.signature}: {error}") from None
        bound.apply_defaults()
        given = [bound.arguments[name] for name in self.tensors]
        operands = [None if value is None else operand(value) for value in given]
        attributes = {name: bound.arguments[name] for name in self.options}
        present = tuple(value is not None for value in operands)
        op = Composite(self, present, {k: _canonical(v) for k, v in attributes.items()})
        return apply(op, *(value for value in operands if value is not None))

    def op(self, present: tuple[bool, ...] | None = None, **attributes: Any) -> Composite:
        """The op for these attributes (used by the parser)."""
        return Composite(self, present or (True,) * len(self.tensors), attributes)

    def gradient(self, rule: Callable[..., Sequence[Any | None]]) -> Callable[..., Sequence[Any | None]]:
        """Decorator: `rule(inputs, outputs, cotangents, **attributes)` gives one gradient (or None) per
        tensor.

        With a residual form `outputs` are the outputs followed by the residuals. A gradient that is dear may
        be given as a function without arguments, which is called only where something depends on it.
        """
        self.gradient_rule = rule
        return rule

    def residuals(self, function: Callable[..., Any]) -> CompositeDefinition:
        """Decorator: the same function with residuals as further results; autodiff uses it instead."""
        self.residual_form = composite(function)
        self.residual_form.plain_form = self
        return self.residual_form

    def reference(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: an explicit NumPy version, faster or more exact than interpreting the body."""
        self.numpy = function
        return function

    def __repr__(self) -> str:
        return f"<composite {self.name}{self.signature}>"


def _canonical(value: Any) -> Any:
    """Attributes in the form in which graphs keep them: lists become tuples, NumPy scalars Python numbers."""
    if isinstance(value, (list, tuple)):
        return tuple(_canonical(item) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    return value


def composite(function: Callable[..., Any]) -> CompositeDefinition:
    """Declare a composite op: a named function whose body is written in other ops.

    Shape rule, reference, gradients of every order and every backend follow from the body. Positional
    parameters are tensors (they may be None where the default is None), keyword-only parameters are
    attributes: numbers, strings, dtypes, tuples of them. Library composites and a user's are declared in
    the same way.
    """
    name = function.__name__.lstrip(
        "_"
    )  # `_mean` is the op "mean": a wrapper with a freer signature has the name
    definition = CompositeDefinition(function, name)
    existing = REGISTRY.get(name)
    if existing is not None and (
        isinstance(existing, type) or existing.function.__module__ != function.__module__
    ):
        raise ArgumentError(f"there is an op named {name!r} already; give the composite another name")
    REGISTRY[name] = definition
    return definition


def expand(op: Composite, inputs: Sequence[Value]) -> tuple[Value, ...]:
    """Inline the body of a composite into the current builder."""
    return inline(op.body(*(value.type for value in inputs)), inputs)
