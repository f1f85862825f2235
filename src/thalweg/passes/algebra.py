"""Algebra that changes no bit: for each op, what an application of it may be replaced by.

In: an op and its inputs. Out: the value that replaces its output, or None. `simplify` calls the rules.

Every identity here holds in IEEE 754 arithmetic for NaN, infinities and both zeros (the sign and payload of a
NaN are not kept), and in wrapping integer arithmetic. What one might look for and will not find:

* x + 0 is not x: -0 + 0 = +0. (x + -0 is x, and so is x - 0.)
* x * 0 is not 0: NaN and infinities give NaN, negative numbers -0. Integers have the rule.
* x - x, x / x are not 0 and 1: infinities and NaN. (x + y) - y is not x: rounding.
* -(x - y) is not y - x: where x = y one is -0 and the other +0.
* max(x, y) is not max(y, x): of -0 and +0 either may be taken.
* the sum of n equal numbers is not n times the number: each addition rounds. Integers have the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np

from thalweg.graph import Kind, Op, Value
from thalweg.ops.contraction import MatMul
from thalweg.ops.elementwise import (
    Abs,
    Add,
    BitwiseAnd,
    BitwiseInvert,
    BitwiseOr,
    BitwiseXor,
    Cast,
    Divide,
    Equal,
    FloorDivide,
    LeftShift,
    Maximum,
    Minimum,
    Multiply,
    Negative,
    Power,
    RightShift,
    Subtract,
    Where,
)
from thalweg.ops.movement import Broadcast, Concat, Flip, Pad, Reshape, Slice, Transpose
from thalweg.ops.reduction import Max, Min, Prod, Sum
from thalweg.ops.sources import Constant
from thalweg.types import DType, Shape

Make: TypeAlias = Callable[..., Value]  # make(op, *inputs): an application, itself simplified
Inputs: TypeAlias = tuple[Value, ...]
AnyOp = TypeVar("AnyOp", bound=Op)
Rule: TypeAlias = Callable[[Make, Any, Inputs], Value | None]

COMMUTATIVE = frozenset({Add, Multiply, Equal, BitwiseAnd, BitwiseOr, BitwiseXor})


def applied(value: Value, op: type[Op]) -> Inputs | None:
    """The inputs of the node that computes `value`, if it applies `op`."""
    return value.node.inputs if value.node is not None and type(value.node.op) is op else None


def op_of(value: Value, op: type[AnyOp]) -> AnyOp | None:
    """The op of the node that computes `value`, if it is of this class."""
    return value.node.op if value.node is not None and isinstance(value.node.op, op) else None


def source(value: Value) -> Value:
    """The first input of the node that computes `value`."""
    assert value.node is not None
    return value.node.inputs[0]


def literal(value: Value) -> Any:
    """The number that every element of `value` is known to be, as a NumPy scalar, or None."""
    while value.node is not None and type(value.node.op) is Broadcast:
        value = value.node.inputs[0]
    if value.node is None or not isinstance(value.node.op, Constant) or value.node.op.value.size != 1:
        return None
    return value.node.op.value.reshape(())[()]


def _is(number: Any, wanted: int) -> bool:
    """Whether a literal is `wanted`; a zero must be a positive one."""
    return number is not None and bool(number == wanted) and not (wanted == 0 and _is_negative_zero(number))


def _is_negative_zero(number: Any) -> bool:
    if number is None or number.dtype.kind in "biu" or number != 0:
        return False
    return math.copysign(1.0, float(number)) < 0


def _is_exact(value: Value) -> bool:
    """Integers and booleans: their arithmetic does not round and has one zero."""
    return not value.dtype.is_floating


# ---- arithmetic --------------------------------------------------------------------------------------------


def _add(make: Make, op: Op, inputs: Inputs) -> Value | None:
    for x, y in (inputs, inputs[::-1]):
        number = literal(y)
        if _is_negative_zero(number) or (_is_exact(y) and _is(number, 0)):
            return x
        negated = applied(y, Negative)
        if negated is not None:
            return make(Subtract(), x, negated[0])
    return None


def _subtract(make: Make, op: Op, inputs: Inputs) -> Value | None:
    x, y = inputs
    if _is(literal(y), 0):
        return x
    if _is_negative_zero(literal(x)) or (_is_exact(x) and _is(literal(x), 0)):
        return make(Negative(), y)
    negated = applied(y, Negative)
    return None if negated is None else make(Add(), x, negated[0])


def _multiply(make: Make, op: Op, inputs: Inputs) -> Value | None:
    for x, y in (inputs, inputs[::-1]):
        number = literal(y)
        if number is None:
            continue
        if _is(number, 1):
            return x
        if x.dtype.kind in "if" and _is(number, -1):
            return make(Negative(), x)
        if _is_exact(y) and _is(number, 0):
            return y
    return _without_signs(make, op, inputs)


def _divide(make: Make, op: Op, inputs: Inputs) -> Value | None:
    x, y = inputs
    number = literal(y)
    if _is(number, 1):
        return x
    if _is(number, -1):
        return make(Negative(), x)
    if number is not None and _is_power_of_two(number):
        reciprocal = np.asarray(1.0 / float(number)).astype(y.dtype.numpy)
        return make(Multiply(), x, uniform(make, reciprocal, y.shape))
    return _without_signs(make, op, inputs)


def _is_power_of_two(number: Any) -> bool:
    """Whether multiplying by 1 / `number` is exact: a power of two whose reciprocal is a normal number in the
    same type.

    Both are then the correctly rounded value of the same real number.
    """
    mantissa, exponent = math.frexp(float(number))
    lowest, highest = {"float16": (-14, 15), "float64": (-1022, 1023)}.get(number.dtype.name, (-126, 127))
    return (
        math.fabs(mantissa) == 0.5 and lowest <= exponent - 1 <= highest and lowest <= 1 - exponent <= highest
    )


def _without_signs(make: Make, op: Op, inputs: Inputs) -> Value | None:
    """(-x) (-y) = x y and (-x) / (-y) = x / y."""
    x, y = (applied(value, Negative) for value in inputs)
    return None if x is None or y is None else make(op, x[0], y[0])


def _floor_divide(make: Make, op: Op, inputs: Inputs) -> Value | None:
    x, y = inputs
    return x if _is_exact(x) and _is(literal(y), 1) else None


def _power(make: Make, op: Op, inputs: Inputs) -> Value | None:
    return inputs[0] if _is(literal(inputs[1]), 1) else None


def _negative(make: Make, op: Op, inputs: Inputs) -> Value | None:
    twice = applied(inputs[0], Negative)
    return None if twice is None else twice[0]


def _abs(make: Make, op: Op, inputs: Inputs) -> Value | None:
    if applied(inputs[0], Abs) is not None:
        return inputs[0]
    negated = applied(inputs[0], Negative)
    return None if negated is None else make(op, negated[0])


def _extreme(make: Make, op: Op, inputs: Inputs) -> Value | None:
    return inputs[0] if inputs[0] is inputs[1] else None


# ---- bits, selection, element types ------------------------------------------------------------------------


def _invert(make: Make, op: Op, inputs: Inputs) -> Value | None:
    twice = applied(inputs[0], BitwiseInvert)
    return None if twice is None else twice[0]


def _all_ones(number: Any) -> bool:
    return number is not None and bool(np.invert(number) == 0)


def _and_or(make: Make, op: Op, inputs: Inputs) -> Value | None:
    if inputs[0] is inputs[1]:
        return inputs[0]
    is_and = isinstance(op, BitwiseAnd)
    for x, y in (inputs, inputs[::-1]):
        number = literal(y)
        if _all_ones(number):
            return x if is_and else y
        if _is(number, 0):
            return y if is_and else x
    return None


def _xor(make: Make, op: Op, inputs: Inputs) -> Value | None:
    for x, y in (inputs, inputs[::-1]):
        if _is(literal(y), 0):
            return x
        if _all_ones(literal(y)):
            return make(BitwiseInvert(), x)
    return None


def _shift(make: Make, op: Op, inputs: Inputs) -> Value | None:
    return inputs[0] if _is(literal(inputs[1]), 0) else None


def _where(make: Make, op: Where, inputs: Inputs) -> Value | None:
    condition, x, y = inputs
    if x is y:
        return x
    known = literal(condition)
    if known is not None:
        return x if known else y
    inverted = applied(condition, BitwiseInvert)
    return None if inverted is None else make(op, inverted[0], y, x)


_FRACTION_BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}


def preserves(source: DType, target: DType) -> bool:
    """Whether `target` holds every value of `source`, so that a cast loses nothing."""
    if source is target or source.is_bool:
        return True
    if target.is_bool:
        return False
    if source.is_floating:
        return target.is_floating and target.itemsize > source.itemsize
    bits = _integer_bits(source)
    if target.is_floating:
        return bits <= _FRACTION_BITS[target.name]
    if target.kind == "u":
        return source.kind == "u" and target.itemsize >= source.itemsize
    return bits <= target.itemsize * 8 - 1


def _integer_bits(dtype: DType) -> int:
    return dtype.itemsize * 8 - (dtype.kind == "i")


def _cast(make: Make, op: Cast, inputs: Inputs) -> Value | None:
    x = inputs[0]
    if op.dtype is x.dtype:
        return x
    inner = applied(x, Cast)
    if inner is None or not preserves(inner[0].dtype, x.dtype):
        return None
    source = inner[0].dtype
    if source.is_floating and op.dtype.is_integer:
        return None  # out of range each type has results of its own
    if source.is_integer and _integer_bits(source) > 24 and op.dtype.is_floating and op.dtype.itemsize == 2:
        return None  # a direct cast to 16 bits may round twice, through float32
    return make(op, inner[0])


# ---- movement ----------------------------------------------------------------------------------------------


def uniform(make: Make, number: np.ndarray[Any, Any], shape: Shape) -> Value:
    """A 0-d array repeated to `shape`."""
    array = np.array(number)
    array.flags.writeable = False
    scalar = make(Constant(array))
    return scalar if shape == () else make(Broadcast(shape), scalar)


def _constant(make: Make, op: Constant, inputs: Inputs) -> Value | None:
    """An array of equal elements is one number repeated."""
    array = op.value
    if array.size < 2:
        return None
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, -1)
    if (content[-1] != content[0]).any() or (content != content[0]).any():
        return None
    return uniform(make, array.reshape(-1)[0], array.shape)


def repeated_scalar(value: Value) -> Value | None:
    """The value of one element that `value` repeats, if it does."""
    source = applied(value, Broadcast)
    return source[0] if source is not None and source[0].size == 1 else None


def _again(make: Make, scalar: Value, shape: Shape) -> Value:
    """A value of one element repeated to another shape."""
    if scalar.ndim > len(shape):
        scalar = make(Reshape(()), scalar)
    return make(Broadcast(shape), scalar) if scalar.shape != shape else scalar


def _reshape(make: Make, op: Reshape, inputs: Inputs) -> Value | None:
    x = inputs[0]
    if op.shape == x.shape:
        return x
    inner = applied(x, Reshape)
    if inner is not None:
        return make(op, inner[0])
    scalar = repeated_scalar(x)
    return None if scalar is None else _again(make, scalar, op.shape)


def _transpose(make: Make, op: Transpose, inputs: Inputs) -> Value | None:
    x = inputs[0]
    inner = op_of(x, Transpose)
    if inner is not None:
        return make(Transpose(tuple(inner.permutation[axis] for axis in op.permutation)), source(x))
    shape = tuple(x.shape[axis] for axis in op.permutation)
    scalar = repeated_scalar(x)
    if scalar is not None:
        return _again(make, scalar, shape)
    wide = [axis for axis in op.permutation if x.shape[axis] != 1]
    return make(Reshape(shape), x) if wide == sorted(wide) else None  # no element moves


def _broadcast(make: Make, op: Broadcast, inputs: Inputs) -> Value | None:
    x = inputs[0]
    if op.shape == x.shape:
        return x
    inner = applied(x, Broadcast)
    if inner is not None:
        return make(op, inner[0])
    inner = applied(x, Reshape)
    if inner is not None and inner[0].ndim <= len(op.shape) and _core(inner[0].shape) == _core(x.shape):
        return make(op, inner[0])  # a reshape that adds or drops leading axes of size 1
    return None


def _core(shape: Shape) -> Shape:
    """A shape without its leading axes of size 1."""
    start = 0
    while start < len(shape) and shape[start] == 1:
        start += 1
    return shape[start:]


def _flip(make: Make, op: Flip, inputs: Inputs) -> Value | None:
    """Flipped twice is not flipped; neither is an axis along which all elements are equal."""
    x, axis = inputs[0], set(op.axis)
    inner = op_of(x, Flip)
    if inner is not None:
        x, axis = source(x), axis ^ set(inner.axis)
    repeat = op_of(x, Broadcast)
    still = set(repeat.repeated(source(x).type)) if repeat is not None else set()
    axis = {a for a in axis if a not in still and x.shape[a] != 1}
    if not axis:
        return x
    return make(Flip(tuple(sorted(axis))), x) if inner is not None or axis != set(op.axis) else None


def _slice(make: Make, op: Slice, inputs: Inputs) -> Value | None:
    x = inputs[0]
    shape = op.infer(x.type)[0].shape
    if shape == x.shape:
        return x
    inner = op_of(x, Op)
    if isinstance(inner, Slice):
        starts = [a + b * step for a, b, step in zip(inner.starts, op.starts, inner.steps, strict=True)]
        steps = [a * b for a, b in zip(inner.steps, op.steps, strict=True)]
        stops = [a + (n - 1) * step + 1 if n else a for a, n, step in zip(starts, shape, steps, strict=True)]
        return make(Slice(tuple(starts), tuple(stops), tuple(steps)), source(x))
    if isinstance(inner, Broadcast):
        repeated = inner.repeated(source(x).type)
        cut = [axis for axis in range(x.ndim) if shape[axis] != x.shape[axis]]
        return make(Broadcast(shape), source(x)) if all(axis in repeated for axis in cut) else None
    if isinstance(inner, Pad):
        return _slice_of_pad(make, op, inner, source(x))
    parts = applied(x, Concat)
    return _slice_of_concat(make, op, inner, parts) if isinstance(inner, Concat) and parts else None


def _slice_of_pad(make: Make, op: Slice, inner: Pad, x: Value) -> Value | None:
    """A slice that leaves out what a pad has added."""
    starts = tuple(start - low for start, low in zip(op.starts, inner.low, strict=True))
    stops = tuple(stop - low for stop, low in zip(op.stops, inner.low, strict=True))
    inside = all(0 <= a <= b <= extent for a, b, extent in zip(starts, stops, x.shape, strict=True))
    return make(Slice(starts, stops, op.steps), x) if inside else None


def _slice_of_concat(make: Make, op: Slice, inner: Concat, parts: Inputs) -> Value | None:
    """A slice that lies within one of the parts."""
    start = 0
    for part in parts:
        low, high = op.starts[inner.axis] - start, op.stops[inner.axis] - start
        if 0 <= low <= high <= part.shape[inner.axis]:
            starts, stops = list(op.starts), list(op.stops)
            starts[inner.axis], stops[inner.axis] = low, high
            return make(Slice(tuple(starts), tuple(stops), op.steps), part)
        start += part.shape[inner.axis]
    return None


def _pad(make: Make, op: Pad, inputs: Inputs) -> Value | None:
    x = inputs[0]
    if not any((*op.low, *op.high)):
        return x
    value = np.asarray(op.value, x.dtype.numpy)
    number = literal(x)
    if number is not None and number.tobytes() == value.tobytes():
        return uniform(make, value, op.infer(x.type)[0].shape)
    inner = op_of(x, Pad)
    if inner is None or np.asarray(inner.value, x.dtype.numpy).tobytes() != value.tobytes():
        return None
    low = tuple(a + b for a, b in zip(op.low, inner.low, strict=True))
    high = tuple(a + b for a, b in zip(op.high, inner.high, strict=True))
    return make(Pad(low, high, op.value), source(x))


def _concat(make: Make, op: Concat, inputs: Inputs) -> Value | None:
    """Empty parts and parts that are concatenations themselves disappear; neighbouring slices of one value
    join again.
    """
    parts: list[Value] = []
    for value in inputs:
        inner = op_of(value, Concat)
        nested = applied(value, Concat) if inner is not None and inner.axis == op.axis else None
        for part in nested or (value,):
            joined = _joined(make, op.axis, parts[-1], part) if parts else None
            if joined is not None:
                parts[-1] = joined
            elif part.shape[op.axis] != 0:
                parts.append(part)
    if not parts:
        return inputs[0]
    if len(parts) == 1:
        return parts[0]
    return make(op, *parts) if len(parts) != len(inputs) else None


def _joined(make: Make, axis: int, first: Value, second: Value) -> Value | None:
    """Two slices of one value that lie behind each other along `axis` as one slice."""
    a, b = op_of(first, Slice), op_of(second, Slice)
    if a is None or b is None or source(first) is not source(second):
        return None
    others = [i for i in range(first.ndim) if i != axis]
    if a.steps != b.steps or a.steps[axis] != 1 or a.stops[axis] != b.starts[axis]:
        return None
    if any(a.starts[i] != b.starts[i] or a.stops[i] != b.stops[i] for i in others):
        return None
    return make(Slice(a.starts, b.stops, a.steps), source(first))


# ---- contractions ------------------------------------------------------------------------------------------


def _matmul(make: Make, op: MatMul, inputs: Inputs) -> Value | None:
    """An operand whose last two axes are swapped before: the flag swaps them."""
    x, y = (_swapped(value) for value in inputs)
    if x is None and y is None:
        return None
    return make(
        MatMul(op.transpose_a != (x is not None), op.transpose_b != (y is not None)),
        inputs[0] if x is None else x,
        inputs[1] if y is None else y,
    )


def _swapped(value: Value) -> Value | None:
    op = op_of(value, Transpose)
    if op is None:
        return None
    count = len(op.permutation)
    return source(value) if op.permutation == (*range(count - 2), count - 1, count - 2) else None


# ---- reductions --------------------------------------------------------------------------------------------


def _reduce_one(make: Make, op: Any, inputs: Inputs) -> Value | None:
    """A reduction over axes of size 1. A sum starts from +0, so that of -0 alone is +0."""
    x = inputs[0]
    if any(x.shape[axis] != 1 for axis in op.axis):
        return None
    result = make(Reshape(tuple(e for a, e in enumerate(x.shape) if a not in op.axis)), x)
    if isinstance(op, Sum) and x.dtype.is_floating:
        return make(Add(), result, uniform(make, np.zeros((), x.dtype.numpy), result.shape))
    return result


def _reduce_repeated(make: Make, op: Any, inputs: Inputs) -> Value | None:
    """A reduction of a broadcast over axes that the broadcast has made: the largest of equal numbers is the
    number.
    """
    x = inputs[0]
    repeat = op_of(x, Broadcast)
    if repeat is None or x.size == 0 or (isinstance(op, Sum) and not _is_exact(x)):
        return None
    repeated = source(x)
    made = repeat.repeated(repeated.type)
    if not op.axis or any(axis not in made for axis in op.axis):
        return None
    kept = tuple(extent for axis, extent in enumerate(x.shape) if axis not in op.axis)
    offset = x.ndim - repeated.ndim
    inner = tuple(repeated.shape[a - offset] for a in range(offset, x.ndim) if a not in op.axis)
    result = make(Broadcast(kept), make(Reshape(inner), repeated))
    if not isinstance(op, Sum):
        return result
    count = math.prod(int(x.shape[axis]) for axis in op.axis)
    return make(Multiply(), result, uniform(make, np.asarray(count).astype(x.dtype.numpy), kept))


# ---- broadcasts through elementwise ops --------------------------------------------------------------------


def _lift_broadcast(make: Make, op: Op, inputs: Inputs) -> Value | None:
    """An elementwise op of broadcasts is the broadcast of the op: it computes fewer elements.

    All inputs must repeat the same shape, or a single element.
    """
    sources: list[Value] = []
    for value in inputs:
        source = applied(value, Broadcast)
        if source is None:
            return None
        sources.append(source[0])
    wide = [source for source in sources if source.size != 1 or source.ndim]
    shape: Shape = wide[0].shape if wide else ()
    if any(source.shape != shape for source in wide):
        return None
    aligned = [source if source.shape == shape else make(Broadcast(shape), source) for source in sources]
    return make(Broadcast(inputs[0].shape), make(op, *aligned))


RULES: dict[type[Op], tuple[Rule, ...]] = {
    Add: (_add,),
    Subtract: (_subtract,),
    Multiply: (_multiply,),
    Divide: (_divide,),
    FloorDivide: (_floor_divide,),
    Power: (_power,),
    Negative: (_negative,),
    Abs: (_abs,),
    Maximum: (_extreme,),
    Minimum: (_extreme,),
    BitwiseInvert: (_invert,),
    BitwiseAnd: (_and_or,),
    BitwiseOr: (_and_or,),
    BitwiseXor: (_xor,),
    LeftShift: (_shift,),
    RightShift: (_shift,),
    Where: (_where,),
    Cast: (_cast,),
    Constant: (_constant,),
    Reshape: (_reshape,),
    Transpose: (_transpose,),
    Broadcast: (_broadcast,),
    Flip: (_flip,),
    Slice: (_slice,),
    Pad: (_pad,),
    Concat: (_concat,),
    MatMul: (_matmul,),
    Sum: (_reduce_one, _reduce_repeated),
    Prod: (_reduce_one,),
    Max: (_reduce_one, _reduce_repeated),
    Min: (_reduce_one, _reduce_repeated),
}


def rules(op: Op) -> tuple[Rule, ...]:
    """The rules for an op, in the order in which they are asked."""
    own = RULES.get(type(op), ())
    return (*own, _lift_broadcast) if op.kind is Kind.ELEMENTWISE else own
