"""Methods of tensors: op functions under the names that NumPy's and PyTorch's users expect.

They are generic like the functions that they call; `Value` gets them too, so that the body of a composite
reads like any other code."""

from __future__ import annotations

from typing import Any, TypeAlias

from thalweg import types
from thalweg.errors import ArgumentError, ShapeError
from thalweg.graph import Value, function
from thalweg.types import DType

Integer: TypeAlias = int  # the class below has methods named int, float and bool
Real: TypeAlias = float
Truth: TypeAlias = bool


def _sizes(sizes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sizes or axes written as several arguments or as one sequence."""
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        return tuple(sizes[0])
    return sizes


class Methods:
    """Everything that `tensor.name(...)` computes."""

    __slots__ = ()

    # ---- shapes --------------------------------------------------------------------------------------------

    def reshape(self, *shape: Any) -> Any:
        """The same elements in row-major order under another shape; one size may be -1."""
        return function("reshape")(self, _sizes(shape))

    view = reshape

    def flatten(self, start_axis: Integer = 0, end_axis: Integer = -1) -> Any:
        """Axes `start_axis` to `end_axis` joined into one."""
        return function("flatten")(self, start_axis, end_axis)

    def transpose(self, *axes: Any) -> Any:
        """Axes in another order: none given reverses them, a tuple is a permutation as in NumPy, and two
        separate integers exchange those two axes as in PyTorch."""
        if len(axes) == 2:
            return function("swapaxes")(self, *axes)
        return function("transpose")(self, _sizes(axes) if axes else None)

    def permute(self, *axes: Any) -> Any:
        """Axes in the given order."""
        return function("transpose")(self, _sizes(axes))

    def swapaxes(self, first: Integer, second: Integer) -> Any:
        """Two axes exchanged."""
        return function("swapaxes")(self, first, second)

    def moveaxis(self, source: Any, destination: Any) -> Any:
        """The axes `source` at the positions `destination`."""
        return function("moveaxis")(self, source, destination)

    @property
    def T(self) -> Any:
        """The transpose of a matrix."""
        if self.ndim != 2:  # type: ignore[attr-defined]
            raise ShapeError(
                f"x.T needs a tensor with 2 axes, received shape {self.shape}; "  # type: ignore[attr-defined]
                "write x.mT for a stack of matrices, or x.permute(...)"
            )
        return function("transpose")(self)

    @property
    def mT(self) -> Any:
        """The last two axes exchanged: the transpose of each matrix of a stack."""
        if self.ndim < 2:  # type: ignore[attr-defined]
            raise ShapeError(f"x.mT needs at least 2 axes, received shape {self.shape}")  # type: ignore[attr-defined]
        return function("swapaxes")(self, -1, -2)

    def squeeze(self, axis: Any = None) -> Any:
        """Without the axes in `axis`, each of size 1 (None: all of size 1)."""
        return function("squeeze")(self, axis)

    def unsqueeze(self, axis: Integer) -> Any:
        """With a new axis of size 1."""
        return function("expand_dims")(self, axis)

    def expand_dims(self, axis: Any) -> Any:
        """With new axes of size 1."""
        return function("expand_dims")(self, axis)

    def broadcast_to(self, *shape: Any) -> Any:
        """Repeated to `shape` under NumPy's rules."""
        return function("broadcast_to")(self, _sizes(shape))

    def expand(self, *shape: Any) -> Any:
        """Repeated to `shape`; -1 keeps the size of an axis."""
        wanted = _sizes(shape)
        own = self.shape  # type: ignore[attr-defined]
        offset = len(wanted) - len(own)
        if any(size == -1 and position < offset for position, size in enumerate(wanted)):
            raise ShapeError(f"expand of shape {own} to {wanted}: -1 stands for a size that does not exist")
        filled = tuple(own[position - offset] if size == -1 else size for position, size in enumerate(wanted))
        return function("broadcast_to")(self, filled)

    def flip(self, axis: Any = None) -> Any:
        """Elements in reverse order along `axis`."""
        return function("flip")(self, axis)

    def repeat(self, repeats: Integer, axis: Integer | None = None) -> Any:
        """Each element `repeats` times in a row along `axis`, as in NumPy."""
        return function("repeat")(self, repeats, axis)

    def tile(self, *repetitions: Any) -> Any:
        """The whole tensor repeated along every axis."""
        return function("tile")(self, _sizes(repetitions))

    # ---- reductions ----------------------------------------------------------------------------------------

    def sum(self, axis: Any = None, keepdims: Truth = False, *, dtype: Any = None) -> Any:
        """Sum over `axis` (None: all axes)."""
        return function("sum")(self, axis, keepdims, dtype=dtype)

    def prod(self, axis: Any = None, keepdims: Truth = False, *, dtype: Any = None) -> Any:
        """Product over `axis`."""
        return function("prod")(self, axis, keepdims, dtype=dtype)

    def mean(self, axis: Any = None, keepdims: Truth = False) -> Any:
        """Arithmetic mean over `axis`."""
        return function("mean")(self, axis, keepdims)

    def var(self, axis: Any = None, keepdims: Truth = False, *, correction: Real = 0) -> Any:
        """Variance over `axis`; the divisor is the count minus `correction`."""
        return function("var")(self, axis, keepdims, correction=correction)

    def std(self, axis: Any = None, keepdims: Truth = False, *, correction: Real = 0) -> Any:
        """Standard deviation over `axis`."""
        return function("std")(self, axis, keepdims, correction=correction)

    def max(self, axis: Any = None, keepdims: Truth = False) -> Any:
        """Largest element along `axis`."""
        return function("max")(self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: Truth = False) -> Any:
        """Smallest element along `axis`."""
        return function("min")(self, axis, keepdims)

    def argmax(self, axis: Integer | None = None, keepdims: Truth = False) -> Any:
        """Index of the first largest element along `axis` (None: of the flattened tensor)."""
        return function("argmax")(self, axis, keepdims)

    def argmin(self, axis: Integer | None = None, keepdims: Truth = False) -> Any:
        """Index of the first smallest element along `axis`."""
        return function("argmin")(self, axis, keepdims)

    def any(self, axis: Any = None, keepdims: Truth = False) -> Any:
        """Whether any element along `axis` is not zero."""
        return function("any")(self, axis, keepdims)

    def all(self, axis: Any = None, keepdims: Truth = False) -> Any:
        """Whether every element along `axis` is not zero."""
        return function("all")(self, axis, keepdims)

    def logsumexp(self, axis: Any = None, keepdims: Truth = False) -> Any:
        """log(sum(exp(x))) over `axis`, without overflow."""
        return function("logsumexp")(self, axis, keepdims)

    def cumsum(self, axis: Integer) -> Any:
        """Sums of all elements up to each along `axis`."""
        return function("cumulative_sum")(self, axis)

    # ---- element by element --------------------------------------------------------------------------------

    def abs(self) -> Any:
        """Absolute value."""
        return function("abs")(self)

    def sign(self) -> Any:
        """-1, 0 or 1."""
        return function("sign")(self)

    def exp(self) -> Any:
        """e to the x."""
        return function("exp")(self)

    def expm1(self) -> Any:
        """exp(x) - 1, exact near 0."""
        return function("expm1")(self)

    def log(self) -> Any:
        """Natural logarithm."""
        return function("log")(self)

    def log1p(self) -> Any:
        """log(1 + x), exact near 0."""
        return function("log1p")(self)

    def sqrt(self) -> Any:
        """Square root."""
        return function("sqrt")(self)

    def rsqrt(self) -> Any:
        """1 / sqrt(x)."""
        return function("rsqrt")(self)

    def square(self) -> Any:
        """x * x."""
        return function("square")(self)

    def pow(self, exponent: Any) -> Any:
        """x to the exponent."""
        return function("pow")(self, exponent)

    def sin(self) -> Any:
        """Sine, in radians."""
        return function("sin")(self)

    def cos(self) -> Any:
        """Cosine, in radians."""
        return function("cos")(self)

    def tanh(self) -> Any:
        """Hyperbolic tangent."""
        return function("tanh")(self)

    def erf(self) -> Any:
        """Error function."""
        return function("erf")(self)

    def floor(self) -> Any:
        """The largest integer not above x."""
        return function("floor")(self)

    def ceil(self) -> Any:
        """The smallest integer not below x."""
        return function("ceil")(self)

    def round(self) -> Any:
        """The nearest integer, halves to even."""
        return function("round")(self)

    def sigmoid(self) -> Any:
        """1 / (1 + exp(-x))."""
        return function("sigmoid")(self)

    def relu(self) -> Any:
        """max(x, 0)."""
        return function("relu")(self)

    def gelu(self, approximate: str = "none") -> Any:
        """x times the normal distribution function of x."""
        return function("gelu")(self, approximate=approximate)

    def silu(self) -> Any:
        """x * sigmoid(x)."""
        return function("silu")(self)

    def softmax(self, axis: Integer = -1) -> Any:
        """exp(x) / sum(exp(x)) along `axis`."""
        return function("softmax")(self, axis=axis)

    def log_softmax(self, axis: Integer = -1) -> Any:
        """The logarithm of the softmax along `axis`."""
        return function("log_softmax")(self, axis=axis)

    def maximum(self, other: Any) -> Any:
        """The larger of two, element by element."""
        return function("maximum")(self, other)

    def minimum(self, other: Any) -> Any:
        """The smaller of two, element by element."""
        return function("minimum")(self, other)

    def clip(self, min: Any = None, max: Any = None) -> Any:
        """Values below `min` raised to it, values above `max` lowered to it; None: no bound."""
        if min is None and max is None:
            raise ArgumentError("clip needs min or max")
        return function("clip")(self, min, max)

    clamp = clip

    # ---- indices, products ---------------------------------------------------------------------------------

    def take(self, indices: Any, axis: Integer | None = None) -> Any:
        """Elements at `indices` along `axis` (None: of the flattened tensor)."""
        return function("take")(self, indices, axis)

    def gather(self, axis: Integer, index: Any) -> Any:
        """result[i][j] = x[index[i][j]][j] for axis 0 and so on: PyTorch's gather."""
        return function("take_along_axis")(self, index, axis)

    def masked_fill(self, mask: Any, value: Any) -> Any:
        """`value` where `mask` is true, else x."""
        return function("where")(mask, value, self)

    def matmul(self, other: Any) -> Any:
        """Matrix product under NumPy's rules."""
        return function("matmul")(self, other)

    def dot(self, other: Any) -> Any:
        """The product of two vectors or matrices."""
        return function("matmul")(self, other)

    # ---- element types -------------------------------------------------------------------------------------

    def astype(self, dtype: Any) -> Any:
        """With another element type."""
        return function("cast")(self, dtype)

    def to(self, dtype: Any) -> Any:
        """With another element type. There is no device to move to: programs choose it where they are
        compiled.
        """
        if isinstance(dtype, str) and dtype not in DType.by_name:
            raise ArgumentError(
                f"to({dtype!r}): expected an element type such as 'float32'; a tensor has no device, "
                "a compiled program runs where its backend runs"
            )
        return function("cast")(self, dtype)

    def float(self) -> Any:
        """As float32."""
        return function("cast")(self, types.float32)

    def double(self) -> Any:
        """As float64."""
        return function("cast")(self, types.float64)

    def half(self) -> Any:
        """As float16."""
        return function("cast")(self, types.float16)

    def bfloat16(self) -> Any:
        """As bfloat16."""
        return function("cast")(self, types.bfloat16)

    def int(self) -> Any:
        """As int32."""
        return function("cast")(self, types.int32)

    def long(self) -> Any:
        """As int64."""
        return function("cast")(self, types.int64)

    def bool(self) -> Any:
        """As bool: whether an element is not zero."""
        return function("cast")(self, types.bool_)

    def dim(self) -> Integer:
        """PyTorch's name for `ndim`."""
        return self.ndim  # type: ignore[attr-defined,no-any-return]

    def numel(self) -> Integer:
        """PyTorch's name for `size`."""
        return self.size  # type: ignore[attr-defined,no-any-return]

    def contiguous(self) -> Any:
        """The tensor itself: layout is the compiler's business here."""
        return self


for _name, _method in vars(Methods).items():
    if not _name.startswith("__"):
        setattr(Value, _name, _method)
