"""Elementwise primitives: shape rule, NumPy reference and gradient of each, and the functions that apply
them.

All inputs of a primitive have one shape (and, where not said otherwise, one element type); the functions
promote and broadcast first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import DTypeError, ShapeError, UnsupportedError
from thalweg.graph import AxisGroup, Kind, Op
from thalweg.ops.core import (
    apply,
    broadcast_together,
    cast,
    composite,
    elementwise_axes,
    floating,
    operand,
    primitive,
    promoted,
    require,
)
from thalweg.ops.samples import Sample, samples, special, special_pairs, values
from thalweg.types import DType, Type

Gradient = Callable[[Any, Any, Any], Any]  # (input or inputs, output, cotangent) -> gradient(s)


def _compute(function: Callable[..., Any], *arrays: np.ndarray[Any, Any]) -> Any:
    """Run a NumPy function; 16-bit floating point goes through float32 and is rounded once."""
    dtype = arrays[0].dtype
    if dtype.kind in "fV" and dtype.itemsize == 2:
        result = np.asarray(function(*(array.astype(np.float32) for array in arrays)))
        return result if result.dtype == np.bool_ else result.astype(dtype)
    return function(*arrays)


class Elementwise(Op):
    """Inputs of one shape and element type, one output."""

    accepts = "biuf"  # kinds of element types
    result: DType | None = None  # None: the inputs' type

    def infer(self, *inputs: Type) -> tuple[Type, ...]:
        first = inputs[0]
        for other in inputs[1:]:
            require(
                other.shape == first.shape, f"{self.name} needs equal shapes, received {first} and {other}"
            )
            if other.dtype is not first.dtype:
                raise DTypeError(f"{self.name} needs equal element types, received {first} and {other}")
        if first.dtype.kind not in self.accepts:
            kinds = {"b": "bool", "i": "signed integer", "u": "unsigned integer", "f": "floating point"}
            accepted = ", ".join(kinds[kind] for kind in self.accepts)
            raise DTypeError(f"{self.name} accepts {accepted} tensors, received {first.dtype}")
        return (Type(self.result or first.dtype, first.shape),)

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        return elementwise_axes(inputs)


_COSTS = {
    **dict.fromkeys(
        ("exp", "expm1", "log", "log1p", "sin", "cos", "tan", "tanh", "erf", "pow", "atan", "asin", "acos"), 4
    ),
    **dict.fromkeys(("divide", "sqrt", "rsqrt", "floor_divide", "remainder"), 3),
}  # beside an addition: what costs more than 1 is not computed twice


def _unary(
    name: str, compute: Callable[..., Any], gradient: Gradient, accepts: str, doc: str
) -> type[Elementwise]:
    """A primitive of one input; `gradient(x, y, g)` builds its gradient."""

    class Unary(Elementwise):
        def reference(self, x: np.ndarray[Any, Any]) -> Any:
            return _compute(compute, x)

        def vjp(
            self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]
        ) -> Sequence[Any]:
            return (gradient(inputs[0], outputs[0], cotangents[0]),)

    Unary.accepts = accepts
    Unary.cost = _COSTS.get(name, 1)
    Unary.__name__ = Unary.__qualname__ = "".join(part.title() for part in name.split("_"))
    Unary.__doc__ = doc
    return primitive(name, Kind.ELEMENTWISE)(Unary)


def _binary(
    name: str,
    compute: Callable[..., Any],
    gradient: Gradient,
    accepts: str,
    doc: str,
    result: DType | None = None,
) -> type[Elementwise]:
    """A primitive of two inputs; `gradient((x, y), z, g)` gives a pair."""

    class Binary(Elementwise):
        def reference(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
            return _compute(compute, x, y)

        def vjp(
            self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]
        ) -> Sequence[Any]:
            return gradient(inputs, outputs[0], cotangents[0])  # type: ignore[no-any-return]

    Binary.accepts = accepts
    Binary.cost = _COSTS.get(name, 1)
    Binary.result = result
    Binary.__name__ = Binary.__qualname__ = "".join(part.title() for part in name.split("_"))
    Binary.__doc__ = doc
    return primitive(name, Kind.ELEMENTWISE)(Binary)


def _none(x: Any, y: Any, g: Any) -> Any:
    return None


def _none2(x: Any, y: Any, g: Any) -> Any:
    return (None, None)


def _in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """A NumPy function evaluated in float64 and rounded once: its float32 versions err by up to 4 units."""

    def exact(*arrays: np.ndarray[Any, Any]) -> Any:
        return np.asarray(function(*(array.astype(np.float64) for array in arrays))).astype(arrays[0].dtype)

    return exact


def _erf(x: np.ndarray[Any, Any]) -> Any:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x.astype(np.float64))).astype(x.dtype)


def _round(x: np.ndarray[Any, Any]) -> Any:
    return np.rint(x) if x.dtype.kind == "f" else x


def _sign(x: np.ndarray[Any, Any]) -> Any:
    return np.sign(x).astype(x.dtype)


# ---- one input ---------------------------------------------------------------------------------------------

Negative = _unary(
    "negative",
    lambda x: (0 - x).astype(x.dtype) if x.dtype.kind == "u" else -x,
    lambda x, y, g: -g,
    "iuf",
    "-x",
)
Abs = _unary("abs", np.abs, lambda x, y, g: g * sign(x), "iuf", "|x|; the gradient at 0 is 0.")
Sign = _unary("sign", _sign, _none, "iuf", "-1, 0 or 1; NaN stays NaN.")
Floor = _unary("floor", np.floor, _none, "f", "The largest integer not above x.")
Ceil = _unary("ceil", np.ceil, _none, "f", "The smallest integer not below x.")
Round = _unary("round", _round, _none, "f", "The nearest integer, halves to even.")
Exp = _unary("exp", _in_float64(np.exp), lambda x, y, g: g * y, "f", "e to the x.")
Expm1 = _unary("expm1", _in_float64(np.expm1), lambda x, y, g: g * exp(x), "f", "exp(x) - 1, exact near 0.")
Log = _unary("log", _in_float64(np.log), lambda x, y, g: g / x, "f", "Natural logarithm.")
Log1p = _unary(
    "log1p", _in_float64(np.log1p), lambda x, y, g: g / (x + 1.0), "f", "log(1 + x), exact near 0."
)
Sqrt = _unary("sqrt", np.sqrt, lambda x, y, g: g * 0.5 / y, "f", "Square root, correctly rounded.")
Rsqrt = _unary(
    "rsqrt",
    _in_float64(lambda x: 1 / np.sqrt(x)),
    lambda x, y, g: g * (-0.5) * (y * y * y),
    "f",
    "1 / sqrt(x).",
)
Sin = _unary("sin", _in_float64(np.sin), lambda x, y, g: g * cos(x), "f", "Sine of an angle in radians.")
Cos = _unary("cos", _in_float64(np.cos), lambda x, y, g: -(g * sin(x)), "f", "Cosine of an angle in radians.")
Tanh = _unary("tanh", _in_float64(np.tanh), lambda x, y, g: g * (1.0 - y * y), "f", "Hyperbolic tangent.")
Atan = _unary(
    "atan", _in_float64(np.arctan), lambda x, y, g: g / (x * x + 1.0), "f", "Inverse tangent, radians."
)
Erf = _unary(
    "erf", _erf, lambda x, y, g: g * (2.0 / math.sqrt(math.pi)) * exp(-(x * x)), "f", "Error function."
)
BitwiseInvert = _unary("bitwise_invert", np.invert, _none, "biu", "Every bit flipped; logical not for bool.")
StopGradient = _unary("stop_gradient", np.copy, _none, "biuf", "x itself, with gradient zero.")
Recompute = _unary(
    "recompute",
    np.copy,
    lambda x, y, g: g,
    "biuf",
    "x itself; what is computed from it is never merged with equal values.",
)


@primitive("cast", Kind.ELEMENTWISE)
class Cast(Op):
    """Another element type. Floating point to integer truncates; values out of range are not defined."""

    dtype: DType

    def infer(self, x: Type) -> tuple[Type, ...]:
        return (Type(self.dtype, x.shape),)

    def reference(self, x: np.ndarray[Any, Any]) -> Any:
        return x.astype(self.dtype.numpy)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        return (cast(cotangents[0], inputs[0].dtype),) if self.dtype.is_floating else (None,)

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        return elementwise_axes(inputs)


# ---- two inputs --------------------------------------------------------------------------------------------


def _power(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
    if x.dtype.kind == "i" and np.any(y < 0):
        raise UnsupportedError(
            "an integer to a negative power is not an integer; cast to a floating-point type first"
        )
    return _in_float64(np.power)(x, y) if x.dtype.kind == "f" else np.power(x, y)


def _power_gradient(inputs: Sequence[Any], z: Any, g: Any) -> Any:
    x, y = inputs
    # d/dx = y x^(y-1), 0 where y is 0 even at x = 0; d/dy = z log x, 0 where x is 0 and y >= 0 (as PyTorch).
    by_x = g * where(equal(y, 0.0), 0.0, y * pow(x, y - 1.0))
    flat = bitwise_and(equal(x, 0.0), less_equal(0.0, y))
    return (by_x, g * where(flat, 0.0, z * log(where(flat, 1.0, x))))


def _extreme_gradient(inputs: Sequence[Any], g: Any, largest: bool) -> Any:
    """All of `g` for the input that is taken; equal inputs share it, NaN gives it to both (as PyTorch)."""
    x, y = inputs
    tie, half = equal(x, y), g * 0.5
    x_lost, y_lost = (less(x, y), less(y, x)) if largest else (less(y, x), less(x, y))
    return (where(tie, half, where(x_lost, 0.0, g)), where(tie, half, where(y_lost, 0.0, g)))


def _divide(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
    return np.true_divide(x, y)


def _shift_left(x: np.ndarray[Any, Any], n: np.ndarray[Any, Any]) -> Any:
    return np.left_shift(x, n)


Add = _binary("add", np.add, lambda xy, z, g: (g, g), "biuf", "x + y; logical or for bool.")
Subtract = _binary("subtract", np.subtract, lambda xy, z, g: (g, -g), "iuf", "x - y.")
Multiply = _binary("multiply", np.multiply, lambda xy, z, g: (g * xy[1], g * xy[0]), "biuf", "x * y.")
Divide = _binary("divide", _divide, lambda xy, z, g: (g / xy[1], -(g * z / xy[1])), "f", "x / y.")
FloorDivide = _binary(
    "floor_divide", np.floor_divide, _none2, "iuf", "The floor of x / y; integer division by 0 gives 0."
)
Remainder = _binary(
    "remainder",
    np.remainder,
    lambda xy, z, g: (g, -(g * floor(xy[0] / xy[1]))),
    "iuf",
    "x - y floor(x / y): the sign of y, as in Python; integer remainder by 0 gives 0.",
)
Power = _binary("pow", _power, _power_gradient, "iuf", "x to the y.")
Maximum = _binary(
    "maximum",
    np.maximum,
    lambda xy, z, g: _extreme_gradient(xy, g, True),
    "biuf",
    "The larger one; NaN if either is.",
)
Minimum = _binary(
    "minimum",
    np.minimum,
    lambda xy, z, g: _extreme_gradient(xy, g, False),
    "biuf",
    "The smaller one; NaN if either is.",
)
Equal = _binary("equal", np.equal, _none2, "biuf", "x == y.", types.bool_)
Less = _binary("less", np.less, _none2, "biuf", "x < y.", types.bool_)
LessEqual = _binary("less_equal", np.less_equal, _none2, "biuf", "x <= y.", types.bool_)
BitwiseAnd = _binary("bitwise_and", np.bitwise_and, _none2, "biu", "Bit by bit and; logical and for bool.")
BitwiseOr = _binary("bitwise_or", np.bitwise_or, _none2, "biu", "Bit by bit or; logical or for bool.")
BitwiseXor = _binary("bitwise_xor", np.bitwise_xor, _none2, "biu", "Bit by bit exclusive or.")
LeftShift = _binary(
    "bitwise_left_shift", _shift_left, _none2, "iu", "x shifted left by y bits; 0 from the width on."
)
RightShift = _binary(
    "bitwise_right_shift", np.right_shift, _none2, "iu", "x shifted right by y bits, with its sign."
)


@primitive("where", Kind.ELEMENTWISE)
class Where(Op):
    """The second input where the first (bool) is true, else the third."""

    def infer(self, condition: Type, x: Type, y: Type) -> tuple[Type, ...]:
        if not condition.dtype.is_bool:
            raise DTypeError(
                f"where needs a bool condition, received {condition.dtype}; write for example x > 0"
            )
        require(
            condition.shape == x.shape == y.shape,
            f"where needs equal shapes, received {condition}, {x} and {y}",
        )
        if x.dtype is not y.dtype:
            raise DTypeError(f"where needs equal element types, received {x} and {y}")
        return (x,)

    def reference(
        self, condition: np.ndarray[Any, Any], x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]
    ) -> Any:
        bits = np.dtype(
            f"i{x.dtype.itemsize}"
        )  # blended by their bits: several times faster than np.where on mixed masks
        first, second = x.view(bits), y.view(bits)
        return (second ^ ((first ^ second) & -condition.astype(bits))).view(x.dtype)

    def vjp(self, inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
        g = cotangents[0]
        zero = broadcast_together(operand(0, g.dtype), g)[0]
        return (None, where(inputs[0], g, zero), where(inputs[0], zero, g))

    def axes(self, *inputs: Type) -> tuple[AxisGroup, ...]:
        return elementwise_axes(inputs)


# ---- functions ---------------------------------------------------------------------------------------------


def _apply_unary(op: type[Op], x: Any, needs_floating: bool) -> Any:
    return apply(op(), floating(x) if needs_floating else operand(x))


def _apply_binary(op: type[Op], x: Any, y: Any, needs_floating: bool = False) -> Any:
    x, y = promoted(x, y)
    if needs_floating:
        x, y = floating(x), floating(y)
    return apply(op(), *broadcast_together(x, y))


def negative(x: Any) -> Any:
    """-x, element by element; unsigned integers wrap."""
    return _apply_unary(Negative, x, False)


def abs(x: Any) -> Any:
    """|x|, element by element."""
    return operand(x) if operand(x).dtype.is_bool else _apply_unary(Abs, x, False)


def sign(x: Any) -> Any:
    """-1, 0 or 1 by the sign of x."""
    return _apply_unary(Sign, x, False)


def floor(x: Any) -> Any:
    """The largest integer not above x."""
    return _apply_unary(Floor, x, True) if operand(x).dtype.is_floating else operand(x)


def ceil(x: Any) -> Any:
    """The smallest integer not below x."""
    return _apply_unary(Ceil, x, True) if operand(x).dtype.is_floating else operand(x)


def round(x: Any) -> Any:
    """The nearest integer, halves to even."""
    return _apply_unary(Round, x, True) if operand(x).dtype.is_floating else operand(x)


def exp(x: Any) -> Any:
    """e to the x."""
    return _apply_unary(Exp, x, True)


def expm1(x: Any) -> Any:
    """exp(x) - 1, exact near 0."""
    return _apply_unary(Expm1, x, True)


def log(x: Any) -> Any:
    """Natural logarithm; -inf at 0, NaN below."""
    return _apply_unary(Log, x, True)


def log1p(x: Any) -> Any:
    """log(1 + x), exact near 0."""
    return _apply_unary(Log1p, x, True)


def sqrt(x: Any) -> Any:
    """Square root; NaN below 0."""
    return _apply_unary(Sqrt, x, True)


def rsqrt(x: Any) -> Any:
    """1 / sqrt(x)."""
    return _apply_unary(Rsqrt, x, True)


def sin(x: Any) -> Any:
    """Sine of an angle in radians."""
    return _apply_unary(Sin, x, True)


def cos(x: Any) -> Any:
    """Cosine of an angle in radians."""
    return _apply_unary(Cos, x, True)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    return _apply_unary(Tanh, x, True)


def atan(x: Any) -> Any:
    """Inverse tangent in radians."""
    return _apply_unary(Atan, x, True)


def erf(x: Any) -> Any:
    """Error function, 2/sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    return _apply_unary(Erf, x, True)


def bitwise_invert(x: Any) -> Any:
    """Every bit flipped; logical not for bool."""
    return _apply_unary(BitwiseInvert, x, False)


def stop_gradient(x: Any) -> Any:
    """x itself, taken as constant by every gradient."""
    return _apply_unary(StopGradient, x, False)


def recompute(x: Any) -> Any:
    """x itself; what is computed from it is never merged with equal values that are computed elsewhere."""
    return _apply_unary(Recompute, x, False)


def add(x: Any, y: Any) -> Any:
    """x + y with broadcasting."""
    return _apply_binary(Add, x, y)


def subtract(x: Any, y: Any) -> Any:
    """x - y with broadcasting."""
    return _apply_binary(Subtract, x, y)


def multiply(x: Any, y: Any) -> Any:
    """x * y with broadcasting."""
    return _apply_binary(Multiply, x, y)


def divide(x: Any, y: Any) -> Any:
    """x / y with broadcasting; integers become float32."""
    return _apply_binary(Divide, x, y, True)


def floor_divide(x: Any, y: Any) -> Any:
    """The floor of x / y."""
    return _apply_binary(FloorDivide, x, y)


def remainder(x: Any, y: Any) -> Any:
    """x - y floor(x / y)."""
    return _apply_binary(Remainder, x, y)


def pow(x: Any, y: Any) -> Any:
    """x to the y; small constant exponents become products or roots."""
    base = operand(x)
    if isinstance(y, (int, float)) and not isinstance(y, bool):
        if y == 2:
            return base * base
        if y == 1:
            return base
        if base.dtype.is_floating:
            if y == 3:
                return base * base * base
            if y == -1:
                return 1.0 / base
            if y == 0.5:
                return sqrt(base)
            if y == -0.5:
                return rsqrt(base)
    return _apply_binary(Power, base if not isinstance(x, (int, float)) else x, y)


def maximum(x: Any, y: Any) -> Any:
    """The larger of x and y; NaN if either is NaN."""
    return _apply_binary(Maximum, x, y)


def minimum(x: Any, y: Any) -> Any:
    """The smaller of x and y; NaN if either is NaN."""
    return _apply_binary(Minimum, x, y)


def equal(x: Any, y: Any) -> Any:
    """x == y, a bool tensor."""
    return _apply_binary(Equal, x, y)


def not_equal(x: Any, y: Any) -> Any:
    """x != y, a bool tensor."""
    return bitwise_invert(equal(x, y))


def less(x: Any, y: Any) -> Any:
    """x < y, a bool tensor."""
    return _apply_binary(Less, x, y)


def less_equal(x: Any, y: Any) -> Any:
    """x <= y, a bool tensor."""
    return _apply_binary(LessEqual, x, y)


def greater(x: Any, y: Any) -> Any:
    """x > y, a bool tensor."""
    return _apply_binary(Less, y, x)


def greater_equal(x: Any, y: Any) -> Any:
    """x >= y, a bool tensor."""
    return _apply_binary(LessEqual, y, x)


def bitwise_and(x: Any, y: Any) -> Any:
    """Bit by bit and; logical and for bool."""
    return _apply_binary(BitwiseAnd, x, y)


def bitwise_or(x: Any, y: Any) -> Any:
    """Bit by bit or; logical or for bool."""
    return _apply_binary(BitwiseOr, x, y)


def bitwise_xor(x: Any, y: Any) -> Any:
    """Bit by bit exclusive or."""
    return _apply_binary(BitwiseXor, x, y)


def bitwise_left_shift(x: Any, y: Any) -> Any:
    """x shifted left by y bits."""
    return _apply_binary(LeftShift, x, y)


def bitwise_right_shift(x: Any, y: Any) -> Any:
    """x shifted right by y bits, keeping the sign."""
    return _apply_binary(RightShift, x, y)


def where(condition: Any, x: Any, y: Any) -> Any:
    """x where `condition` is true, else y; all three broadcast."""
    x, y = promoted(x, y)
    return apply(Where(), *broadcast_together(operand(condition, types.bool_), x, y))


# ---- written in the others ---------------------------------------------------------------------------------


def square(x: Any) -> Any:
    """x * x."""
    x = operand(x)
    return x * x


def reciprocal(x: Any) -> Any:
    """1 / x; integers become float32."""
    return 1.0 / floating(x)


def trunc(x: Any) -> Any:
    """x rounded towards zero."""
    x = operand(x)
    return where(less(x, 0), ceil(x), floor(x)) if x.dtype.is_floating else x


def isnan(x: Any) -> Any:
    """Whether x is NaN, a bool tensor."""
    x = operand(x)
    return not_equal(x, x)


def isinf(x: Any) -> Any:
    """Whether x is infinite of either sign, a bool tensor."""
    x = operand(x)
    return equal(abs(x), math.inf) if x.dtype.is_floating else not_equal(x, x)


def isfinite(x: Any) -> Any:
    """Whether x is neither infinite nor NaN, a bool tensor."""
    x = operand(x)
    return less(abs(x), math.inf) if x.dtype.is_floating else equal(x, x)


def truth(x: Any) -> Any:
    """Whether x is not zero (NaN is not), a bool tensor; bool tensors as they are."""
    x = operand(x)
    return x if x.dtype.is_bool else not_equal(x, 0)


def logical_not(x: Any) -> Any:
    """Whether x is zero."""
    return bitwise_invert(truth(x))


def logical_and(x: Any, y: Any) -> Any:
    """Whether neither x nor y is zero."""
    return bitwise_and(truth(x), truth(y))


def logical_or(x: Any, y: Any) -> Any:
    """Whether x or y is not zero."""
    return bitwise_or(truth(x), truth(y))


def logical_xor(x: Any, y: Any) -> Any:
    """Whether exactly one of x and y is not zero."""
    return bitwise_xor(truth(x), truth(y))


def _wide(x: Any) -> Any:
    """`x` as float64: formulas of several steps (of rarely used functions) are rounded once for smaller
    types.
    """
    return cast(x, types.float64)


@composite
def _clip(x: Any, low: Any = None, high: Any = None) -> Any:
    if low is not None:
        x = maximum(x, low)
    return x if high is None else minimum(x, high)


@_clip.gradient
def _clip_gradient(inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
    x, low, high = inputs
    g = cotangents[0]
    zero = broadcast_together(operand(0, g.dtype), g)[0]  # not g * 0: NaN where g is not finite
    below = None if low is None else less(x, low)
    # where low > high the result is high, wherever x is
    above = None if high is None else less(high, x if low is None else maximum(x, low))
    by_x, by_low = g, None
    if below is not None:
        by_x, by_low = where(below, zero, by_x), where(below, g, zero)
    if above is not None:
        by_x = where(above, zero, by_x)
        by_low = None if by_low is None else where(above, zero, by_low)
    return (by_x, by_low, None if above is None else where(above, g, zero))


def clip(x: Any, min: Any = None, max: Any = None) -> Any:
    """x limited to [min, max], each a number, a tensor or None; NaN stays NaN.

    At a limit itself the whole gradient goes to x, as in PyTorch.
    """
    limits = [limit for limit in (min, max) if limit is not None]
    x, *limits = broadcast_together(*promoted(x, *limits))
    return _clip(x, None if min is None else limits[0], None if max is None else limits[-1])


@composite
def _tan(x: Any) -> Any:
    wide = _wide(x)
    return cast(sin(wide) / cos(wide), x.dtype)


@_tan.gradient
def _tan_gradient(inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
    y = outputs[0]
    return (cotangents[0] * (y * y + 1.0),)


@composite
def _asin(x: Any) -> Any:
    wide = _wide(x)
    return cast(atan(wide / sqrt((1.0 - wide) * (1.0 + wide))), x.dtype)


@_asin.gradient
def _asin_gradient(inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
    x = inputs[0]
    return (cotangents[0] * rsqrt((1.0 - x) * (1.0 + x)),)


@composite
def _acos(x: Any) -> Any:
    wide = _wide(x)
    return cast(2.0 * atan(sqrt((1.0 - wide) / (1.0 + wide))), x.dtype)


@_acos.gradient
def _acos_gradient(inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
    x = inputs[0]
    return (-(cotangents[0] * rsqrt((1.0 - x) * (1.0 + x))),)


def _half_exponential(magnitude: Any) -> Any:
    """exp(a) / 2 without overflow where the result is finite."""
    root = exp(magnitude * 0.5)
    return (root * 0.5) * root


@composite
def _sinh(x: Any) -> Any:
    wide = _wide(x)
    magnitude = abs(wide)
    grown = expm1(magnitude)
    exact = (grown + grown / (grown + 1.0)) * 0.5
    result = where(less(grown, math.inf), exact, _half_exponential(magnitude))
    signed = where(less(wide, 0.0), -result, result)
    return cast(where(equal(wide, 0.0), wide, signed), x.dtype)


@_sinh.gradient
def _sinh_gradient(inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
    return (cotangents[0] * cosh(inputs[0]),)


@composite
def _cosh(x: Any) -> Any:
    wide = _wide(x)
    magnitude = abs(wide)
    grown = exp(magnitude)
    result = where(less(grown, math.inf), (grown + 1.0 / grown) * 0.5, _half_exponential(magnitude))
    return cast(result, x.dtype)


@_cosh.gradient
def _cosh_gradient(inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]) -> Sequence[Any]:
    return (cotangents[0] * sinh(inputs[0]),)


def _negative_sign(x: Any) -> Any:
    """Whether x is below zero or -0.0."""
    return bitwise_or(less(x, 0.0), bitwise_and(equal(x, 0.0), less(1.0 / x, 0.0)))


@composite
def _atan2(y: Any, x: Any) -> Any:
    high, wide = _wide(y), _wide(x)
    rise, run = abs(high), abs(wide)
    one = where(equal(rise, 0.0), 0.0, 1.0)  # the ratio of equal ones, infinities included; 0 for zeros
    angle = atan(where(equal(rise, run), cast(one, rise.dtype), rise / run))
    angle = where(_negative_sign(wide), math.pi - angle, angle)
    return cast(where(_negative_sign(high), -angle, angle), y.dtype)


@_atan2.gradient
def _atan2_gradient(
    inputs: Sequence[Any], outputs: Sequence[Any], cotangents: Sequence[Any]
) -> Sequence[Any]:
    y, x = inputs
    scaled = cotangents[0] / (x * x + y * y)
    return (scaled * x, -(scaled * y))


def tan(x: Any) -> Any:
    """Tangent of an angle in radians."""
    return _tan(floating(x))


def asin(x: Any) -> Any:
    """Inverse sine in radians, from -pi/2 to pi/2; NaN outside [-1, 1]."""
    return _asin(floating(x))


def acos(x: Any) -> Any:
    """Inverse cosine in radians, from 0 to pi; NaN outside [-1, 1]."""
    return _acos(floating(x))


def sinh(x: Any) -> Any:
    """Hyperbolic sine."""
    return _sinh(floating(x))


def cosh(x: Any) -> Any:
    """Hyperbolic cosine."""
    return _cosh(floating(x))


def atan2(y: Any, x: Any) -> Any:
    """The angle of the point (x, y) in radians, from -pi to pi; zeros have signs, as in IEEE 754."""
    y, x = (floating(value) for value in promoted(y, x))
    return _atan2(*broadcast_together(y, x))


# ---- samples -----------------------------------------------------------------------------------------------


def _torch(name: str) -> Callable[..., Any]:
    return lambda torch, *tensors: getattr(torch, name)(*tensors)


def _unary_samples(
    name: str,
    torch_name: str,
    function: Callable[..., Any],
    low: float = -2.0,
    high: float = 2.0,
    avoid: Sequence[float] = (),
    integers: bool = False,
    special_torch: bool = True,
    special_gradient: bool = True,
) -> None:
    """Register samples of a function of one floating tensor on [low, high), away from its kinks.

    `special_torch`, `special_gradient`: whether values and gradients at special numbers are PyTorch's.
    """

    def array(*shape: int, dtype: str = "float32") -> Any:
        return values(*shape, dtype=dtype, low=low, high=high, avoid=avoid)

    @samples(name)
    def generate() -> Iterator[Sample]:
        torch = _torch(torch_name)
        same = torch if special_torch else None
        for shape in ((), (1,), (7,), (3, 5), (2, 3, 5), (0,), (3, 0)):
            yield Sample(function, (array(*shape),), torch=torch)
        yield Sample(function, (array(37, 3, dtype="float64"),), torch=torch)
        for dtype in ("float16", "bfloat16"):
            yield Sample(function, (array(4, 9, dtype=dtype),), torch=torch, torch_gradient=False)
            yield Sample(function, (special(dtype),), torch=same, torch_gradient=False)
        for dtype in ("float32", "float64"):
            yield Sample(function, (special(dtype),), torch=same, torch_gradient=special_gradient)
        for dtype in ("int8", "int64", "uint8") if integers else ():
            yield Sample(function, (values(3, 5, dtype=dtype, low=-9, high=9),), torch=torch)
        yield Sample(lambda x: function("text"), (array(),), error=DTypeError, message="received 'text'")


_WHOLE, _HALVES = (-2.0, -1.0, 0.0, 1.0, 2.0), (-1.5, -0.5, 0.5, 1.5)
_unary_samples("negative", "neg", negative, integers=True)
_unary_samples(
    "abs", "abs", abs, avoid=(0.0,), integers=True, special_gradient=False
)  # NaN: ours NaN, theirs 0
_unary_samples(
    "sign", "sign", sign, avoid=(0.0,), integers=True, special_torch=False
)  # sign(NaN): theirs is 0
_unary_samples("floor", "floor", floor, avoid=_WHOLE)
_unary_samples("ceil", "ceil", ceil, avoid=_WHOLE)
_unary_samples("round", "round", round, avoid=_HALVES)
_unary_samples("exp", "exp", exp)
_unary_samples("expm1", "expm1", expm1)
_unary_samples("log", "log", log, 0.1)
_unary_samples("log1p", "log1p", log1p, -0.5)
_unary_samples("sqrt", "sqrt", sqrt, 0.1)
_unary_samples("rsqrt", "rsqrt", rsqrt, 0.1)
_unary_samples("sin", "sin", sin)
_unary_samples("cos", "cos", cos)
_unary_samples("tanh", "tanh", tanh)
_unary_samples("atan", "atan", atan)
_unary_samples("erf", "erf", erf)
_unary_samples("tan", "tan", tan, -1.2, 1.2)
_unary_samples("asin", "asin", asin, -0.9, 0.9)
_unary_samples("acos", "acos", acos, -0.9, 0.9)
_unary_samples("sinh", "sinh", sinh)
_unary_samples("cosh", "cosh", cosh)


@samples("bitwise_invert")
def _bitwise_invert_samples() -> Iterator[Sample]:
    for dtype in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
        signed = dtype[0] != "u" or dtype == "uint8"
        yield Sample(
            bitwise_invert,
            (values(3, 5, dtype=dtype, low=-9, high=9),),
            torch=_torch("bitwise_not") if signed else None,
        )
    yield Sample(bitwise_invert, (values(dtype="int8"),))
    yield Sample(bitwise_invert, (values(0, dtype="int8"),))
    yield Sample(bitwise_invert, (values(3),), error=DTypeError, message="accepts bool")


@samples("recompute")
def _recompute_samples() -> Iterator[Sample]:
    for dtype in ("float32", "float64", "float16", "int32", "uint8", "bool"):
        yield Sample(recompute, (values(3, 5, dtype=dtype),))
    for array in (values(), values(0), special()):
        yield Sample(recompute, (array,))


@samples("stop_gradient")
def _stop_gradient_samples() -> Iterator[Sample]:
    for dtype in ("float16", "bfloat16", "float32", "float64", "int8", "bool"):
        yield Sample(stop_gradient, (values(3, 5, dtype=dtype),), gradient=False)
    for array in (values(), values(0, 2), special()):
        yield Sample(stop_gradient, (array,), gradient=False, torch=lambda t, x: x.detach())


def _binary_samples(
    name: str,
    torch_name: str | None,
    function: Callable[..., Any],
    accepts: str = "iuf",
    left: Mapping[str, Any] | None = None,
    right: Mapping[str, Any] | None = None,
    torch_gradient: bool = True,
    special_torch: bool = True,
    special_gradient: bool = True,
) -> None:
    """Register samples of a function of two tensors; `left` and `right` are the ranges of its smooth inputs.

    `torch_gradient`: whether PyTorch has a gradient; `special_torch`, `special_gradient` as above.
    """
    left, right = left or {}, right or {}

    @samples(name)
    def generate() -> Iterator[Sample]:
        torch = None if torch_name is None else _torch(torch_name)
        if "f" in accepts:
            yield from floating_samples(torch)
        for dtype, kind in (("int8", "i"), ("int64", "i"), ("uint8", "u"), ("bool", "b")):
            if kind in accepts:
                inputs = (
                    values(3, 5, dtype=dtype, low=-9, high=9),
                    values(5, dtype=dtype, low=1, high=9, seed=1),
                )
                yield Sample(function, inputs, torch=torch)
                yield Sample(function, (inputs[0][0, 0], inputs[1][:0]))
        if "u" in accepts:
            yield Sample(
                function, (values(4, dtype="int8", low=1, high=5), values(4, dtype="uint8", low=1, high=5))
            )
        yield Sample(
            function, (values(3, dtype="int8"), values(4, dtype="int8")), error=ShapeError, message="axis -1"
        )
        if "u" in accepts:
            mixed = values(3, dtype="int64"), values(3, dtype="uint64")
            yield Sample(function, mixed, error=DTypeError, message="no integer type holds both")
        if "b" not in accepts:
            flags = values(3, dtype="bool")
            yield Sample(function, (flags, flags), error=DTypeError, message="received bool")
        if "f" not in accepts:
            yield Sample(function, (values(3), values(3)), error=DTypeError, message="received float32")

    def floating_samples(torch: Callable[..., Any] | None) -> Iterator[Sample]:
        same = torch if special_torch else None
        for first, second in (
            ((), ()),
            ((7,), ()),
            ((3, 5), (5,)),
            ((3, 1), (1, 5)),
            ((2, 3, 5), (2, 3, 5)),
            ((0, 3), (1, 3)),
            ((2, 1, 3), (4, 1)),
        ):
            inputs = values(*first, **left), values(*second, seed=1, **right)
            yield Sample(function, inputs, torch=torch, torch_gradient=torch_gradient)
        inputs = values(5, 3, dtype="float64", **left), values(3, dtype="float64", seed=1, **right)
        yield Sample(function, inputs, torch=torch, torch_gradient=torch_gradient)
        yield Sample(
            function, (values(5, dtype="float16", **left), values(5, dtype="float64", seed=1, **right))
        )
        yield Sample(lambda y: function(1.5, y), (values(5, **right),))
        for dtype in ("float16", "bfloat16"):
            inputs = values(4, 9, dtype=dtype, **left), values(4, 9, dtype=dtype, seed=1, **right)
            yield Sample(function, inputs, torch=torch, torch_gradient=False)
            yield Sample(function, special_pairs(dtype), torch=same, torch_gradient=False)
        for dtype in ("float32", "float64"):
            yield Sample(function, special_pairs(dtype), torch=same, torch_gradient=special_gradient)


_LOW, _HIGH = {"low": 0.3, "high": 0.9}, {"low": 1.2, "high": 2.0}
_ODD, _EVEN = {"distinct": True}, {"distinct": True, "low": -1.93, "high": 2.07}
_binary_samples("add", "add", add, "biuf")
_binary_samples("subtract", "subtract", subtract)
_binary_samples("multiply", "multiply", multiply, "biuf")
_binary_samples("divide", "divide", divide, "biuf", right={"avoid": (0.0,)})
_binary_samples(
    "floor_divide",
    "floor_divide",
    floor_divide,
    "iuf",
    _LOW,
    _HIGH,
    torch_gradient=False,
    special_gradient=False,
)
_binary_samples(
    "remainder", "remainder", remainder, "iuf", _LOW, _HIGH, special_torch=False
)  # theirs is NaN where x / y overflows
_binary_samples("pow", "pow", pow, left=_LOW)
_binary_samples("maximum", "maximum", maximum, "biuf", _ODD, _EVEN)
_binary_samples("minimum", "minimum", minimum, "biuf", _ODD, _EVEN)
_binary_samples("equal", "eq", equal, "biuf")
_binary_samples("less", "less", less, "biuf")
_binary_samples("less_equal", "less_equal", less_equal, "biuf")
_binary_samples("bitwise_and", "bitwise_and", bitwise_and, "biu")
_binary_samples("bitwise_or", "bitwise_or", bitwise_or, "biu")
_binary_samples("bitwise_xor", "bitwise_xor", bitwise_xor, "biu")
_binary_samples("bitwise_left_shift", "bitwise_left_shift", bitwise_left_shift, "iu")
_binary_samples("bitwise_right_shift", "bitwise_right_shift", bitwise_right_shift, "iu")
# at the origin the derivative does not exist: PyTorch says 0
_binary_samples("atan2", "atan2", atan2, "biuf", {"avoid": (0.0,)}, {"avoid": (0.0,)}, special_gradient=False)


@samples("bitwise_left_shift", "bitwise_right_shift")
def _no_shift_samples() -> Iterator[Sample]:
    """Shifts of zero positions, and of nothing."""
    for dtype in ("int16", "uint32"):
        x, zero = values(2, 3, dtype=dtype, low=-9, high=9), np.zeros((), dtype)
        yield Sample(lambda x, n: bitwise_right_shift(bitwise_left_shift(x, n), n), (x, zero))
        yield Sample(lambda x, n: bitwise_right_shift(bitwise_left_shift(x, n), n), (x[:0], zero))


@samples("bitwise_left_shift")
def _left_shift_samples() -> Iterator[Sample]:
    counts = np.array([0, 1, 30, 31, 32, 40], np.int32)
    yield Sample(bitwise_left_shift, (np.array([[1], [-3]], np.int32), counts))


@samples("bitwise_right_shift")
def _right_shift_samples() -> Iterator[Sample]:
    counts = np.array([0, 1, 30, 31, 32, 40], np.int32)
    yield Sample(bitwise_right_shift, (np.array([[2**31 - 1], [-3]], np.int32), counts))


@samples("equal")
def _equal_samples() -> Iterator[Sample]:
    for array in (np.arange(6, dtype=np.float32), np.arange(6, dtype=np.int16), special()):
        yield Sample(not_equal, (array, array[::-1].copy()), torch=_torch("ne"))
    yield Sample(equal, (special(), special()), torch=_torch("eq"))


@samples("remainder")
def _remainder_samples() -> Iterator[Sample]:
    for x, y in ((-0.7, 1.5), (5.2, 1.5), (-5.2, -1.5), (5.2, -1.5)):
        yield Sample(
            remainder,
            (np.array([x, x / 2], np.float32), np.array([y, y], np.float32)),
            torch=_torch("remainder"),
        )
    yield Sample(remainder, (np.array([7, -7, 7, -7], np.int8), np.array([3, 3, -3, 0], np.int8)))


@samples("floor_divide")
def _floor_divide_samples() -> Iterator[Sample]:
    yield Sample(
        floor_divide, (np.array([7, -7, 7, -7, -128], np.int8), np.array([3, 3, -3, 0, -1], np.int8))
    )


@samples("pow")
def _pow_samples() -> Iterator[Sample]:
    for exponent in (2.5, 3.0, -2.0, 0.0):
        base = values(3, 5, avoid=(0.0,)) if exponent != 2.5 else values(3, 5, low=0.3)
        wide = np.float32(exponent)
        yield Sample(lambda x, e=wide: pow(x, e), (base,), torch=lambda t, x, e=exponent: t.pow(x, e))
    yield Sample(lambda x: pow(2, x), (values(3, 5),), torch=lambda t, x: t.pow(2, x))
    yield Sample(
        pow, (np.array([3, -2, 0, 7], np.int64), np.array([4, 3, 0, 1], np.int64)), torch=_torch("pow")
    )
    yield Sample(
        pow,
        (np.array([3], np.int64), np.array([-1], np.int64)),
        error=UnsupportedError,
        message="floating-point",
    )


@samples("where")
def _where_samples() -> Iterator[Sample]:
    for shapes in (
        ((), (), ()),
        ((7,), (7,), ()),
        ((3, 1), (5,), (3, 5)),
        ((0, 3), (3,), (1, 3)),
        ((2, 3, 4),) * 3,
    ):
        condition, x, y = (
            values(*s, seed=i, dtype="bool" if i == 0 else "float32") for i, s in enumerate(shapes)
        )
        yield Sample(where, (condition, x, y), torch=_torch("where"))
    yield Sample(where, (np.arange(12) % 2 == 0, special(), -special()), torch=_torch("where"))
    for dtype in ("float16", "bfloat16", "float64", "int8", "uint64", "bool"):
        inputs = values(3, 5, dtype="bool"), values(3, 5, dtype=dtype), values(3, 5, dtype=dtype, seed=1)
        yield Sample(where, inputs, torch=_torch("where") if dtype != "uint64" else None)
    yield Sample(lambda c, x: where(c, x, 0.0), (values(3, 5, dtype="bool"), values(3, 5)))
    yield Sample(where, (values(3), values(3), values(3)), error=DTypeError, message="x > 0")
    flags = values(3, dtype="bool")
    yield Sample(where, (flags, values(4), values(4)), error=ShapeError, message="broadcast")


@samples("cast")
def _cast_samples() -> Iterator[Sample]:
    names = ("bool", "int8", "int64", "uint8", "uint32", "float16", "bfloat16", "float32", "float64")
    for source in names:
        for target in names:
            if source != target:
                torch = lambda t, x, n=target: x.to(getattr(t, n))  # noqa: E731
                inputs = (values(3, 5, dtype=source, low=0.0, high=9.0),)
                yield Sample(cast, inputs, {"dtype": target}, gradient=False, torch=torch)
    for source, target in (
        ("float64", "float32"),
        ("float32", "bfloat16"),
        ("bfloat16", "float64"),
        ("float32", "float16"),
    ):
        torch = lambda t, x, n=target: x.to(getattr(t, n))  # noqa: E731
        yield Sample(cast, (special(source),), {"dtype": target}, torch=torch)
        yield Sample(cast, (values(37, dtype=source),), {"dtype": target}, gradient=False, torch=torch)
    yield Sample(cast, (special(),), {"dtype": "bool"}, torch=lambda t, x: x.bool())
    yield Sample(
        cast, (np.array([-1.9, -0.5, 0.5, 1.9], np.float32),), {"dtype": "int32"}, torch=lambda t, x: x.int()
    )
    yield Sample(
        cast, (np.array([-1, 300, 2**31], np.int64),), {"dtype": "uint8"}, torch=lambda t, x: x.to(t.uint8)
    )
    yield Sample(cast, (values(),), {"dtype": "float64"}, gradient=False)
    yield Sample(cast, (values(0, 3),), {"dtype": "int8"})
    yield Sample(cast, (values(3),), {"dtype": "complex64"}, error=DTypeError, message="complex64")


@samples("clip")
def _clip_samples() -> Iterator[Sample]:
    edges = (-1.0, 1.0)
    for shape in ((), (7,), (3, 5), (0, 3)):
        options = {"min": -1.0, "max": 1.0}
        yield Sample(clip, (values(*shape, avoid=edges),), options, torch=lambda t, x: t.clip(x, -1.0, 1.0))
    yield Sample(clip, (values(7, avoid=(0.0,)),), {"min": 0}, torch=lambda t, x: t.clip(x, min=0))
    yield Sample(clip, (values(7, avoid=(0.0,)),), {"max": 0}, torch=lambda t, x: t.clip(x, max=0))
    limits = values(3, 1, distinct=True, low=-1.9, high=-0.1), values(5, distinct=True, low=0.05, high=1.95)
    yield Sample(clip, (values(3, 5, distinct=True), *limits), torch=_torch("clip"))
    yield Sample(
        clip, (values(3, 5, distinct=True), limits[1], limits[0])
    )  # empty interval: the maximum wins
    yield Sample(
        clip,
        (np.array([-1, 0, 1, 2], np.float32),),
        {"min": 0, "max": 1},
        gradient=False,
        torch=lambda t, x: t.clip(x, 0, 1),
    )
    bounded = lambda t, x: t.clip(x, -1.0, 1.0)  # noqa: E731
    yield Sample(clip, (special(),), {"min": -1.0, "max": 1.0}, torch=bounded, torch_gradient=False)
    for dtype in ("float16", "bfloat16", "float64", "int8", "uint64"):
        yield Sample(clip, (values(3, 5, dtype=dtype),), {"min": 0, "max": 1}, gradient=False)
    yield Sample(clip, (values(3), values(4)), error=ShapeError, message="broadcast")
