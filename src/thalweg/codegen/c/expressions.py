"""Pulled expressions: C for the element of a value at an index, 16 lanes at a time.

`Emitter.pull(value, indices)` walks from a value back to what lies in memory, through elementwise ops (one call of the
vector library each) and movement ops (index arithmetic), and appends one C declaration per new intermediate.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thalweg.codegen.loops import (
    LANE,
    Index,
    Ranges,
    constant,
    is_lane,
    ravel,
    reshape_index,
    variable,
    vector_start,
)
from thalweg.errors import UnsupportedError
from thalweg.graph import Node, Value
from thalweg.plan import LANES
from thalweg.types import DType, Type, int64

# how an element type is held in registers, in memory
REGISTER = {"float16": "f32", "bfloat16": "f32", "bool": "m8"}
MEMORY = {"float16": "uint16_t", "bfloat16": "uint16_t", "bool": "uint8_t"}


def register(dtype: DType) -> str:
    """The vector library's name of the register type: f32, i64, ...; m8 for booleans."""
    return REGISTER.get(dtype.name, dtype.short)


def memory(dtype: DType) -> str:
    """The C type of an element in memory."""
    return MEMORY.get(dtype.name, dtype.short)


@dataclass(frozen=True, slots=True)
class Expression:
    """A C expression for 16 lanes; `kind` is f32, f64, i8 ... u64, or m8 to m64 for booleans."""

    text: str
    kind: str

    @property
    def is_mask(self) -> bool:
        return self.kind[0] == "m"

    @property
    def width(self) -> int:
        return int(self.kind[1:])

    @property
    def ctype(self) -> str:
        return f"{self.kind}x16"


@dataclass(slots=True)
class Access:
    """How a kernel reaches a stored value: a pointer argument and the address of an element."""

    pointer: str
    type: Type
    strides: tuple[int, ...]
    lane_axis: int | None = None  # laid out in blocks of 16 along this axis, which is innermost
    block_stride: int = 0  # elements between blocks
    combine: int = 0  # > 0: that many slots lie one after the other, their tree sum is the value
    slot_stride: int = 0

    def address(self, indices: Sequence[Index]) -> Index:
        """Elements from the pointer."""
        total = Index()
        for axis, (index, stride) in enumerate(zip(indices, self.strides, strict=True)):
            if axis == self.lane_axis:
                if (
                    index.coefficient(LANE) != 1
                    or index.constant
                    or any(c % 16 for a, c in index.terms if a != LANE)
                ):
                    raise UnsupportedError(f"a batch block is read at {index.text()}")
                total = (
                    total
                    + Index(0, tuple((a, c // 16 * self.block_stride) for a, c in index.terms if a != LANE))
                    + Index(0, ((LANE, 1),))
                )
            else:
                total = total + index * stride
        return total


def row_access(pointer: str, type: Type) -> Access:
    """Row-major memory."""
    strides: list[int] = []
    step = 1
    for extent in reversed(type.shape):
        strides.append(step)
        step *= extent
    return Access(pointer, type, tuple(reversed(strides)))


def lane_access(pointer: str, type: Type, axis: int) -> Access:
    """Blocks of 16 along `axis`; inside a block the other axes are row-major and the lane innermost."""
    strides = [0] * type.ndim
    step = 16
    for other in reversed(range(type.ndim)):
        if other != axis:
            strides[other] = step
            step *= type.shape[other]
    return Access(pointer, type, tuple(strides), axis, step)


def literal(value: Any, dtype: DType) -> str:
    """A number as a C constant with exactly its bits."""
    if dtype.is_bool:
        return "-1" if value else "0"
    if dtype.is_floating:
        number = float(value)
        if math.isnan(number):
            return '__builtin_nan("")' if dtype.short == "f64" else '__builtin_nanf("")'
        if math.isinf(number):
            return ("-" if number < 0 else "") + (
                "__builtin_inf()" if dtype.short == "f64" else "__builtin_inff()"
            )
        text = (
            number.hex() if dtype.short == "f64" else struct.unpack("<f", struct.pack("<f", number))[0].hex()
        )
        return text if dtype.short == "f64" else text + "f"
    number = int(value)
    if dtype.short == "i64" and number == -(1 << 63):
        return "(-9223372036854775807 - 1)"
    return f"{number}{'u' if dtype.kind == 'u' else ''}{'ll' if dtype.itemsize == 8 else ''}"


@dataclass(slots=True)
class Emitter:
    """Emits the body of one innermost iteration. `lines` grows; equal (value, index) pairs are computed once."""

    accesses: Mapping[int, Access]  # id(value) -> where a stored value lies
    extents: dict[str, int]  # of the loop variables
    partial: str | None = None  # C text of the number of valid lanes, where fewer than 16 may be
    origin: Index = field(default_factory=Index)  # added to the batch axis where absolute positions count
    batch_axis: Mapping[int, int] = field(default_factory=dict)  # id(value) -> batch axis (batch kernels)
    lines: list[str] = field(default_factory=list)
    known: dict[Any, Expression] = field(default_factory=dict)
    addresses: list[Index] = field(default_factory=list)  # of every load, for the choice of loops
    signed: set[str] = field(default_factory=set)  # variables that may be -1: out of range
    splits: list[Index] = field(default_factory=list)  # indices that are used other than in an address
    functions: set[str] = field(default_factory=set)  # sections of the mathematics library that are used
    given: dict[int, Expression] = field(
        default_factory=dict
    )  # values that lie in registers already (epilogues)
    given_index: tuple[Index, ...] | None = None
    error_code: Callable[[Node], int] | None = None
    counter: int = 0

    def declare(self, kind: str, text: str) -> Expression:
        """A new C variable holding `text`."""
        name = f"t{self.counter}"
        self.counter += 1
        self.lines.append(f"{kind}x16 {name} = {text};")
        return Expression(name, kind)

    # ---- values -----------------------------------------------------------------------------------------------------

    def pull(self, value: Value, indices: tuple[Index, ...]) -> Expression:
        """The element of `value` at `indices`."""
        key = (id(value), indices)
        found = self.known.get(key)
        if found is None:
            found = self._compute(value, indices)
            self.known[key] = found
        return found

    def _compute(self, value: Value, indices: tuple[Index, ...]) -> Expression:
        if id(value) in self.given:
            return self.rounded(self.given[id(value)], value.dtype)
        if id(value) in self.accesses:
            return self.load(self.accesses[id(value)], indices)
        node = value.node
        if node is None:
            raise UnsupportedError("a kernel reads a value that has no memory")
        name = node.op.name
        if name in MOVES:
            return MOVES[name](self, node, indices)
        inputs = [self.pull(v, indices) for v in node.inputs]
        found = self.elementwise(node, inputs)
        return found if name in EXACT else self.rounded(found, value.dtype)

    def rounded(self, expression: Expression, dtype: DType) -> Expression:
        """16-bit floating point lives in float32 registers. Each result is rounded as if it were stored: a value that
        one kernel stores and another computes again must be the same number in both."""
        if dtype.short not in ("f16", "bf16"):
            return expression
        packed = f"convert_f32_to_{dtype.short}({expression.text})"
        return self.declare("f32", f"convert_{dtype.short}_to_f32({packed})")

    def load(self, access: Access, indices: tuple[Index, ...]) -> Expression:
        """A load of 16 lanes: contiguous, one element repeated, strided, or gathered."""
        address = access.address(indices)
        if access.combine:
            return self._load_slots(access, address)
        return self._load_at(access, address)

    def _load_slots(self, access: Access, address: Index) -> Expression:
        parts = [
            self._load_at(access, address + constant(s * access.slot_stride)) for s in range(access.combine)
        ]
        while len(parts) > 1:  # a balanced tree, the same for every number of threads
            parts = [
                self.declare(a.kind, f"add_{a.kind}({a.text}, {b[0].text})")
                if (b := parts[i + 1 : i + 2])
                else a
                for i, a in list(enumerate(parts))[::2]
            ]
        return parts[0]

    def _load_at(self, access: Access, address: Index) -> Expression:
        self.addresses.append(address)
        kind, short = register(access.type.dtype), access.type.dtype.short
        linear = address.lane_linear
        step = address.coefficient(LANE)
        if linear and step == 0:
            return self.declare(kind, self._broadcast(access, address))
        if linear:
            base = f"{access.pointer} + {(address - Index(0, ((LANE, step),))).text()}"
            padded = access.lane_axis is not None  # a batch block has all its lanes
            if step == 1:
                if self.partial is None or padded:
                    return self.declare(kind, f"load_{short}({base})")
                return self.declare(kind, f"load_partial_{short}({base}, {self.partial})")
            if self.partial is None:
                return self.declare(kind, f"load_strided_{short}({base}, {step})")
        lanes = self.vector_index(address)
        if self.partial is not None:
            lanes = f"bitwise_and_i64({lanes}, first_lanes_i64({self.partial}))"
        return self.declare(kind, f"gather_wide_{short}({access.pointer}, {lanes})")

    def _broadcast(self, access: Access, address: Index) -> str:
        element = f"{access.pointer}[{address.text()}]"
        short = access.type.dtype.short
        if short == "bool":
            return f"broadcast_i8((i8)-({element} != 0))"
        if short in ("f16", "bf16"):
            return f"convert_{short}_to_f32(broadcast_u16({element}))"
        return f"broadcast_{short}({element})"

    def vector_index(self, index: Index) -> str:
        """An index that differs by lane, as an i64x16."""
        text = f"broadcast_i64({index.constant})"
        for atom, c in index.terms:
            if isinstance(atom, str):
                part = "iota_i64()" if atom == LANE else atom if is_lane(atom) else f"broadcast_i64({atom})"
            elif not atom.inner.by_lane:
                part = f"broadcast_i64(({atom.inner.text()}) {atom.kind} {atom.divisor})"
            else:
                function = "floor_divide" if atom.kind == "/" else "remainder"
                part = f"{function}_i64({self.vector_index(atom.inner)}, broadcast_i64({atom.divisor}))"
            if c != 1:
                part = f"multiply_i64({part}, broadcast_i64({c}))"
            text = part if text == "broadcast_i64(0)" else f"add_i64({text}, {part})"
        return text

    def as_integer(self, index: Index) -> Expression:
        """An index as an i64 vector; the loops may not be merged across it."""
        self.splits.append(index)
        if index.by_lane:
            return self.declare("i64", self.vector_index(index))
        return self.declare("i64", f"broadcast_i64({index.text()})")

    def lane_index(self, text: str, extent: int) -> Index:
        """An index held in a C vector of its own."""
        name = f"v_{self.counter}"
        self.counter += 1
        self.lines.append(f"i64x16 {name} = {text};")
        self.extents[name] = extent
        return variable(name)

    def scalar_index(self, text: str, extent: int) -> Index:
        """An index held in a C integer of its own."""
        name = f"c{self.counter}"
        self.counter += 1
        self.lines.append(f"const int64_t {name} = {text};")
        self.extents[name] = extent
        return variable(name)

    def code(self, node: Node) -> int:
        """The error code that the program reports for an index of this node out of range."""
        assert self.error_code is not None
        return self.error_code(node)

    def absolute(self, value: Value, indices: tuple[Index, ...]) -> tuple[Index, ...]:
        """Indices with the batch axis counted over the whole batch instead of the block."""
        axis = self.batch_axis.get(id(value))
        if axis is None:
            return indices
        return tuple(index + self.origin if a == axis else index for a, index in enumerate(indices))

    # ---- kinds ------------------------------------------------------------------------------------------------------

    def mask(self, expression: Expression, width: int) -> Expression:
        """A mask with lanes of that width."""
        if expression.width == width:
            return expression
        return self.declare(f"m{width}", f"convert_i{expression.width}_to_i{width}({expression.text})")

    def convert(self, expression: Expression, source: DType, target: DType) -> Expression:
        """A cast with NumPy's semantics."""
        kind = register(target)
        if expression.is_mask:
            if target.is_bool:
                return expression
            mask = self.mask(expression, int(kind[1:]))
            one, zero = literal(1, target), literal(0, target)
            return self.declare(
                kind, f"select_{kind}({mask.text}, broadcast_{kind}({one}), broadcast_{kind}({zero}))"
            )
        if target.is_bool:
            return self.declare(
                f"m{expression.width}",
                f"not_equal_{expression.kind}({expression.text}, broadcast_{expression.kind}(0))",
            )
        found = expression
        if found.kind != kind:
            found = self.declare(kind, f"convert_{found.kind}_to_{kind}({found.text})")
        if target.short in ("f16", "bf16") and source is not target:
            found = self.declare(
                "f32", f"convert_{target.short}_to_f32(convert_f32_to_{target.short}({found.text}))"
            )
        return found

    def elementwise(self, node: Node, inputs: Sequence[Expression]) -> Expression:
        """One elementwise op."""
        name = node.op.name
        dtype = node.inputs[0].dtype
        if name == "cast":
            return self.convert(inputs[0], dtype, node.outputs[0].dtype)
        if name == "stop_gradient":
            return inputs[0]
        if name == "where":
            return self._where(inputs)
        if inputs[0].is_mask:
            return self._boolean(name, inputs)
        kind = inputs[0].kind
        arguments = ", ".join(expression.text for expression in inputs)
        if name in COMPARISONS:
            return self.declare(f"m{kind[1:]}", f"{name}_{kind}({arguments})")
        if name in SIMPLE:
            return self.declare(kind, f"{SIMPLE[name]}_{kind}({arguments})")
        if name in FORMULAS:
            return FORMULAS[name](self, kind, [expression.text for expression in inputs])
        function = f"{name}_{kind}"
        if not (name in INTEGER_ONLY and kind[0] != "f"):
            self.functions.add(function)
        return self.declare(kind, f"{function}({arguments})")

    def _where(self, inputs: Sequence[Expression]) -> Expression:
        condition, x, y = inputs
        if x.is_mask:
            width = x.width
            condition, y = self.mask(condition, width), self.mask(y, width)
            return self.declare(x.kind, f"select_i{width}({condition.text}, {x.text}, {y.text})")
        condition = self.mask(condition, x.width)
        return self.declare(x.kind, f"select_{x.kind}({condition.text}, {x.text}, {y.text})")

    def _boolean(self, name: str, inputs: Sequence[Expression]) -> Expression:
        width = inputs[0].width
        texts = [self.mask(expression, width).text for expression in inputs]
        kind = f"i{width}"
        if name == "bitwise_invert":
            return self.declare(f"m{width}", f"bitwise_invert_{kind}({texts[0]})")
        forms = {
            "add": "bitwise_or_{k}({a}, {b})",
            "maximum": "bitwise_or_{k}({a}, {b})",
            "bitwise_or": "bitwise_or_{k}({a}, {b})",
            "multiply": "bitwise_and_{k}({a}, {b})",
            "minimum": "bitwise_and_{k}({a}, {b})",
            "bitwise_and": "bitwise_and_{k}({a}, {b})",
            "bitwise_xor": "bitwise_xor_{k}({a}, {b})",
            "equal": "bitwise_invert_{k}(bitwise_xor_{k}({a}, {b}))",
            "less": "bitwise_and_{k}(bitwise_invert_{k}({a}), {b})",
            "less_equal": "bitwise_or_{k}(bitwise_invert_{k}({a}), {b})",
        }
        if name not in forms:
            raise UnsupportedError(f"{name} of bool tensors has no kernel")
        return self.declare(f"m{width}", forms[name].format(k=kind, a=texts[0], b=texts[1]))

    # ---- stores -----------------------------------------------------------------------------------------------------

    def store(self, access: Access, indices: tuple[Index, ...], expression: Expression) -> None:
        """Write 16 lanes (or the valid ones) of a root."""
        address = access.address(indices)
        self.addresses.append(address)
        short = access.type.dtype.short
        if expression.is_mask:
            expression = self.mask(expression, 8)
        step = address.coefficient(LANE)
        base = f"{access.pointer} + {(address - Index(0, ((LANE, step),))).text()}"
        if step == 1:
            if self.partial is None or access.lane_axis is not None:
                self.lines.append(f"store_{short}({base}, {expression.text});")
            else:
                self.lines.append(f"store_partial_{short}({base}, {expression.text}, {self.partial});")
            return
        count = self.partial or "16"
        self.lines.append(
            f"{{ {memory(access.type.dtype)} lanes[16]; store_{short}(lanes, {expression.text}); "
            f"for (int l = 0; l < {count}; l++) ({base})[l * {step}] = lanes[l]; }}"
        )


# ---- movement -------------------------------------------------------------------------------------------------------


def _reshape(e: Emitter, node: Node, indices: tuple[Index, ...]) -> Expression:
    x = node.inputs[0]
    return e.pull(x, reshape_index(indices, node.outputs[0].shape, x.shape, e.extents))


def _transpose(e: Emitter, node: Node, indices: tuple[Index, ...]) -> Expression:
    permutation = node.op.permutation  # type: ignore[attr-defined]
    inner: list[Index] = [Index()] * len(permutation)
    for position, axis in enumerate(permutation):
        inner[axis] = indices[position]
    return e.pull(node.inputs[0], tuple(inner))


def _broadcast(e: Emitter, node: Node, indices: tuple[Index, ...]) -> Expression:
    x = node.inputs[0]
    behind = indices[len(indices) - x.ndim :] if x.ndim else ()
    shape = node.outputs[0].shape[len(indices) - x.ndim :] if x.ndim else ()
    return e.pull(
        x,
        tuple(
            Index() if extent == 1 and full != 1 else index
            for index, extent, full in zip(behind, x.shape, shape, strict=True)
        ),
    )


def _slice(e: Emitter, node: Node, indices: tuple[Index, ...]) -> Expression:
    op: Any = node.op
    return e.pull(
        node.inputs[0],
        tuple(
            index * step + constant(start)
            for index, step, start in zip(indices, op.steps, op.starts, strict=True)
        ),
    )


def _flip(e: Emitter, node: Node, indices: tuple[Index, ...]) -> Expression:
    axes = node.op.axis  # type: ignore[attr-defined]
    shape = node.outputs[0].shape
    return e.pull(
        node.inputs[0],
        tuple(constant(shape[a] - 1) - index if a in axes else index for a, index in enumerate(indices)),
    )


def _constant(e: Emitter, node: Node, indices: tuple[Index, ...]) -> Expression:
    value: np.ndarray[Any, Any] = node.op.value  # type: ignore[attr-defined]
    dtype = node.outputs[0].dtype
    if value.size != 1:
        raise UnsupportedError("a constant array needs memory of its own")
    return number(e, value.item(), dtype)


def _iota(e: Emitter, node: Node, indices: tuple[Index, ...]) -> Expression:
    op: Any = node.op
    index = e.absolute(node.outputs[0], indices)[op.axis]
    return e.convert(e.as_integer(index), int64, op.dtype)


def bounded(
    e: Emitter, value: Value, indices: tuple[Index, ...]
) -> tuple[Expression | None, tuple[Index, ...]]:
    """The mask of lanes whose indices lie inside `value` (None: all), and the indices clamped so that a load is safe."""
    condition: Expression | None = None
    clamped = list(indices)
    for axis, (index, extent) in enumerate(zip(indices, value.shape, strict=True)):
        low, high = index.range(e.extents)
        if (low >= 0 and high < extent and not index.variables() & e.signed) or e.batch_axis.get(
            id(value)
        ) == axis:
            continue
        e.splits.append(index)
        last = max(extent - 1, 0)
        clamped[axis] = Index()
        start = vector_start(index, extent, e.extents)
        if start is not None and extent:  # a vector lies inside or outside as a whole
            text = start.text()
            test = f"broadcast_i64(-(int64_t)({text} >= 0 && {text} < {extent}))"
            last -= LANES - 1
            found_at = e.scalar_index(f"{text} < 0 ? 0 : {text} > {last} ? {last} : {text}", last + 1)
            if isinstance(e.extents, Ranges):
                e.extents.stepped.update(dict.fromkeys(found_at.variables(), LANES))
            clamped[axis] = found_at + variable(LANE)
        elif index.by_lane:
            lanes = e.declare("i64", e.vector_index(index)).text
            test = f"bitwise_and_i64(greater_equal_i64({lanes}, broadcast_i64(0)), less_i64({lanes}, broadcast_i64({extent})))"
            if last:
                clamped[axis] = e.lane_index(
                    f"minimum_i64(maximum_i64({lanes}, broadcast_i64(0)), broadcast_i64({last}))", extent
                )
        else:
            text = index.text()
            test = f"broadcast_i64(-(int64_t)({text} >= 0 && {text} < {extent}))"
            if last:
                clamped[axis] = e.scalar_index(f"{text} < 0 ? 0 : {text} > {last} ? {last} : {text}", extent)
        found = e.declare("m64", test)
        condition = (
            found
            if condition is None
            else e.declare("m64", f"bitwise_and_i64({condition.text}, {found.text})")
        )
    return condition, tuple(clamped)


def select(e: Emitter, condition: Expression, x: Expression, y: Expression) -> Expression:
    """x where the condition holds, else y."""
    return e._where([condition, x, y])


def number(e: Emitter, value: Any, dtype: DType) -> Expression:
    """A constant in all lanes."""
    if dtype.is_bool:
        return e.declare("m8", f"broadcast_i8({literal(value, dtype)})")
    kind = register(dtype)
    return e.declare(kind, f"broadcast_{kind}({literal(value, dtype)})")


def _pad(e: Emitter, node: Node, indices: tuple[Index, ...]) -> Expression:
    op: Any = node.op
    x = node.inputs[0]
    fill = number(e, op.value, x.dtype)
    if x.size == 0:
        return fill
    inner = tuple(index - constant(low) for index, low in zip(indices, op.low, strict=True))
    condition, clamped = bounded(e, x, inner)
    found = e.pull(x, clamped)
    return found if condition is None else select(e, condition, found, fill)


def _concat(e: Emitter, node: Node, indices: tuple[Index, ...]) -> Expression:
    axis = node.op.axis  # type: ignore[attr-defined]
    start = sum(v.shape[axis] for v in node.inputs)
    result: Expression | None = None
    for x in reversed(node.inputs):
        start -= x.shape[axis]
        if x.size == 0:
            continue
        inner = tuple(index - constant(start) if a == axis else index for a, index in enumerate(indices))
        condition, clamped = bounded(e, x, inner)
        found = e.pull(x, clamped)
        result = found if result is None or condition is None else select(e, condition, found, result)
    assert result is not None
    return result


def _gather(e: Emitter, node: Node, indices: tuple[Index, ...]) -> Expression:
    """x[.., position, ..] with the position pulled from the index tensor, checked, negative ones from the end."""
    op: Any = node.op
    x, positions = node.inputs
    rank = positions.ndim - op.batch
    at = (*indices[: op.batch], *indices[op.axis : op.axis + rank])
    found = e.convert(e.pull(positions, at), positions.dtype, int64).text
    extent = x.shape[op.axis]
    lowest = -extent if op.wrap else 0
    valid = f"bitwise_and_i64(greater_equal_i64({found}, broadcast_i64({lowest})), less_i64({found}, broadcast_i64({extent})))"
    if e.partial is not None:
        valid = f"bitwise_or_i64({valid}, bitwise_invert_i64(first_lanes_i64({e.partial})))"
    e.lines.append(f"if (__builtin_expect(!all_i64({valid}), 0)) tw_fail(error, {e.code(node)});")
    wrapped = (
        f"add_i64({found}, bitwise_and_i64(less_i64({found}, broadcast_i64(0)), broadcast_i64({extent})))"
    )
    safe = f"minimum_i64(maximum_i64({wrapped}, broadcast_i64(0)), broadcast_i64({max(extent - 1, 0)}))"
    by_lane = any(index.by_lane for index in at)
    position = e.lane_index(safe, extent) if by_lane else e.scalar_index(f"lane_i64({safe}, 0)", extent)
    return e.pull(x, (*indices[: op.axis], position, *indices[op.axis + rank :]))


def clamped_start(e: Emitter, text: str, last: int) -> Index:
    """The start of a window, moved so that it fits."""
    return e.scalar_index(
        f"lane_i64(minimum_i64(maximum_i64({text}, broadcast_i64(0)), broadcast_i64({last})), 0)", last + 1
    )


def _dynamic_slice(e: Emitter, node: Node, indices: tuple[Index, ...]) -> Expression:
    """A window whose starts are 0-d tensors, clamped so that it lies inside x."""
    x, *starts = node.inputs
    inner: list[Index] = []
    for index, start, extent, size in zip(indices, starts, x.shape, node.outputs[0].shape, strict=True):
        found = e.convert(e.pull(start, ()), start.dtype, int64).text
        inner.append(clamped_start(e, found, extent - size) + index)
    return e.pull(x, tuple(inner))


def _dynamic_update_slice(e: Emitter, node: Node, indices: tuple[Index, ...]) -> Expression:
    """x outside a window whose starts are 0-d tensors (clamped so that it fits), the update inside."""
    x, update, *starts = node.inputs
    inner: list[Index] = []
    for index, start, extent, size in zip(indices, starts, x.shape, update.shape, strict=True):
        found = e.convert(e.pull(start, ()), start.dtype, int64).text
        inner.append(index - clamped_start(e, found, extent - size))
    if update.size == 0:
        return e.pull(x, indices)
    condition, clamped = bounded(e, update, tuple(inner))
    inside = e.pull(update, clamped)
    return inside if condition is None else select(e, condition, inside, e.pull(x, indices))


def _random_bits(e: Emitter, node: Node, indices: tuple[Index, ...]) -> Expression:
    """Word i % 4 of Philox block i // 4, i the row-major position over the whole batch."""
    op: Any = node.op
    e.functions.add("philox4x32")
    position = ravel(e.absolute(node.outputs[0], indices), node.outputs[0].shape)
    lanes = e.as_integer(position).text
    state = [e.pull(node.inputs[0], (constant(word),)).text for word in range(4)]
    block = e.declare("i64", f"right_shift_i64({lanes}, broadcast_i64(2))").text
    low = f"convert_i64_to_u32({block})"
    high = f"bitwise_xor_u32(convert_i64_to_u32(right_shift_i64({block}, broadcast_i64(32))), {state[3]})"
    name = f"random{e.counter}"
    e.counter += 1
    e.lines.append(
        f"u32x16 {name}[4] = {{{low}, {high}, {state[2]}, broadcast_u32({op.stream}u)}}; "
        f"u32x16 {name}_key[2] = {{{state[0]}, {state[1]}}}; philox4x32({name}, {name}_key);"
    )
    word = e.declare("u32", f"bitwise_and_u32(convert_i64_to_u32({lanes}), broadcast_u32(3))").text
    result = f"{name}[0]"
    for i in range(1, 4):
        result = f"select_u32(equal_u32({word}, broadcast_u32({i})), {name}[{i}], {result})"
    return e.declare("u32", result)


def _sign(e: Emitter, kind: str, x: list[str]) -> Expression:
    zero, one = f"broadcast_{kind}(0)", f"broadcast_{kind}(1)"
    text = f"select_{kind}(less_{kind}({zero}, {x[0]}), {one}, {x[0]})"
    if kind[0] != "u":
        text = f"select_{kind}(less_{kind}({x[0]}, {zero}), broadcast_{kind}(-1), {text})"
    return e.declare(kind, text)


def _rsqrt(e: Emitter, kind: str, x: list[str]) -> Expression:
    return e.declare(kind, f"divide_{kind}(broadcast_{kind}(1), sqrt_{kind}({x[0]}))")


COMPARISONS = frozenset({"equal", "less", "less_equal"})
SIMPLE = {
    "add": "add",
    "subtract": "subtract",
    "multiply": "multiply",
    "divide": "divide",
    "maximum": "maximum",
    "minimum": "minimum",
    "negative": "negative",
    "abs": "absolute",
    "floor": "floor",
    "ceil": "ceil",
    "round": "rint",
    "sqrt": "sqrt",
    "bitwise_and": "bitwise_and",
    "bitwise_or": "bitwise_or",
    "bitwise_xor": "bitwise_xor",
    "bitwise_invert": "bitwise_invert",
    "bitwise_left_shift": "left_shift",
    "bitwise_right_shift": "right_shift",
}
# Their results need no rounding: each is an operand, or an operand with another sign; casts round themselves.
EXACT = {"cast", "stop_gradient", "where", "maximum", "minimum", "negative", "abs"}
INTEGER_ONLY = {
    "floor_divide": "floor_divide",
    "remainder": "remainder",
}  # floating point: from the mathematics library
FORMULAS: dict[str, Callable[[Emitter, str, list[str]], Expression]] = {"sign": _sign, "rsqrt": _rsqrt}
MOVES: dict[str, Callable[[Emitter, Node, tuple[Index, ...]], Expression]] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast": _broadcast,
    "slice": _slice,
    "flip": _flip,
    "constant": _constant,
    "iota": _iota,
    "pad": _pad,
    "concat": _concat,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "random_bits": _random_bits,
}
