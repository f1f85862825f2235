"""Element types, dimensions, tensor types and source spans: the vocabulary that every other module uses.

Nothing here knows a graph, an op or a tensor. Promotion follows the array-API standard
(https://data-apis.org/array-api/latest/API_specification/type_promotion.html); where the standard leaves
it open (integer with floating point), the floating-point type wins, as in PyTorch and JAX.
"""

from __future__ import annotations

import linecache
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from thalweg.errors import ArgumentError, DTypeError


class DType:
    """An element type. There is one object per type, so `is` and `==` agree."""

    by_name: ClassVar[dict[str, DType]] = {}

    def __init__(self, name: str, short: str, kind: str, itemsize: int) -> None:
        self.name = name
        self.short = short
        self.kind = kind  # "b" bool, "i" signed, "u" unsigned, "f" floating point
        self.itemsize = itemsize  # bytes
        DType.by_name[name] = DType.by_name[short] = self

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype of the same bytes; bfloat16 comes from `ml_dtypes`."""
        found: np.dtype[Any]
        if self.name == "bfloat16":
            import ml_dtypes

            found = np.dtype(ml_dtypes.bfloat16)
        else:
            found = np.dtype(self.name)
        return found

    @property
    def is_floating(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    @property
    def is_bool(self) -> bool:
        return self.kind == "b"

    def __repr__(self) -> str:
        return f"thalweg.{self.name}"

    def __str__(self) -> str:
        return self.name

    def __deepcopy__(self, memo: dict[int, Any]) -> DType:
        return self

    def __copy__(self) -> DType:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (dtype, (self.name,))


bool_ = DType("bool", "bool", "b", 1)
int8 = DType("int8", "i8", "i", 1)
int16 = DType("int16", "i16", "i", 2)
int32 = DType("int32", "i32", "i", 4)
int64 = DType("int64", "i64", "i", 8)
uint8 = DType("uint8", "u8", "u", 1)
uint16 = DType("uint16", "u16", "u", 2)
uint32 = DType("uint32", "u32", "u", 4)
uint64 = DType("uint64", "u64", "u", 8)
float16 = DType("float16", "f16", "f", 2)
bfloat16 = DType("bfloat16", "bf16", "f", 2)
float32 = DType("float32", "f32", "f", 4)
float64 = DType("float64", "f64", "f", 8)

ALL_DTYPES = tuple(dict.fromkeys(DType.by_name.values()))
FLOATING_DTYPES = tuple(d for d in ALL_DTYPES if d.is_floating)
INTEGER_DTYPES = tuple(d for d in ALL_DTYPES if d.is_integer)

_from_numpy: dict[np.dtype[Any], DType] = {np.dtype(d.name): d for d in ALL_DTYPES if d is not bfloat16}


def dtype(source: object) -> DType:
    """The `DType` for a `DType`, its name ("float32" or "f32"), a NumPy dtype or a Python type.

    Raises `DTypeError` for anything else, complex numbers and objects included.
    """
    if isinstance(source, DType):
        return source
    if source is float:
        return float32
    if source is int:
        return int64
    if source is bool:
        return bool_
    if isinstance(source, str) and source in DType.by_name:
        return DType.by_name[source]
    try:
        found = np.dtype(source)  # type: ignore[call-overload]
    except TypeError:
        found = None
    if found is not None:
        if found in _from_numpy:
            return _from_numpy[found]
        if not found.isnative and found.newbyteorder("=") in _from_numpy:
            return _from_numpy[found.newbyteorder("=")]
        if found.name == "bfloat16":
            return bfloat16
    known = ", ".join(d.name for d in ALL_DTYPES)
    raise DTypeError(f"{source!r} is not an element type; write one of {known}")


_FLOAT_BY_SIZE = {(float16, bfloat16): float32, (bfloat16, float16): float32}


def promote(first: DType, second: DType) -> DType:
    """The element type of an operation on two tensors; raises `DTypeError` where no type holds both."""
    if first is second:
        return first
    if first.is_bool:
        return second
    if second.is_bool:
        return first
    if first.is_floating and second.is_floating:
        if (first, second) in _FLOAT_BY_SIZE:
            return _FLOAT_BY_SIZE[first, second]
        return first if first.itemsize > second.itemsize else second
    if first.is_floating or second.is_floating:
        return first if first.is_floating else second
    if first.kind == second.kind:
        return first if first.itemsize > second.itemsize else second
    signed, unsigned = (first, second) if first.kind == "i" else (second, first)
    if signed.itemsize > unsigned.itemsize:
        return signed
    if unsigned.itemsize < 8:
        return DType.by_name[f"int{unsigned.itemsize * 16}"]
    raise DTypeError(
        f"no integer type holds both {first} and {second}; cast one of them first, "
        f"for example x.astype({signed})"
    )


class Symbol(int):
    """A dimension known by name instead of by number; as an integer it is its declared upper bound.

    Sizes and memory are therefore computed at the bound. Two symbols are equal only if they have the same
    name and bound, and none equals a plain number: what cannot be proved equal is different.
    """

    name: str

    def __new__(cls, name: str, upper: int) -> Symbol:
        symbol = super().__new__(cls, upper)
        symbol.name = name
        return symbol

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Symbol) and self.name == other.name and int(self) == int(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.name, int(self)))

    def __str__(self) -> str:
        return f"{self.name}<={int(self)}"

    def __repr__(self) -> str:
        return f"Symbol({self.name!r}, {int(self)})"


Dim: TypeAlias = int | Symbol
Shape: TypeAlias = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Type:
    """What is known of a value before it exists: element type and shape."""

    dtype: DType
    shape: Shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.short}[{','.join(map(str, self.shape))}]"


def type_of(array: np.ndarray[Any, Any]) -> Type:
    """The `Type` of a NumPy array."""
    return Type(dtype(array.dtype), array.shape)


class Span(NamedTuple):
    """A line of the user's source code."""

    file: str
    line: int
    function: str

    @property
    def text(self) -> str:
        """The source line itself, or "" where the file cannot be read."""
        return linecache.getline(self.file, self.line).strip()

    def __str__(self) -> str:
        name = self.file.replace("\\", "/").rsplit("/", 1)[-1]
        return f"{name}:{self.line}"


def normalize_axis(axis: int, ndim: int, what: str = "axis") -> int:
    """`axis` counted from the front; raises `ArgumentError` naming the accepted range."""
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise ArgumentError(f"{what} must be an integer, received {axis!r} of type {type(axis).__name__}")
    if not -ndim <= axis < ndim:
        raise ArgumentError(
            f"{what} {axis} is out of range for a tensor with {ndim} axes; expected {-ndim} to {ndim - 1}"
            if ndim
            else f"{what} {axis} given for a tensor without axes (0-d)"
        )
    return int(axis) % ndim


def normalize_axes(axes: object, ndim: int) -> tuple[int, ...]:
    """`axes` (None for all, an integer, or a sequence) as a sorted tuple of distinct non-negative axes."""
    if axes is None:
        return tuple(range(ndim))
    listed = axes if isinstance(axes, (tuple, list)) else (axes,)
    found = tuple(sorted(normalize_axis(axis, ndim) for axis in listed))
    if len(set(found)) != len(found):
        raise ArgumentError(f"an axis is given twice in {axes!r}")
    return found
