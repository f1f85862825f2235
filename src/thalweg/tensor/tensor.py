"""`Tensor`: the user's multi-dimensional array, concrete (it has a value) or traced (it has a place in a
graph).

A concrete tensor never changes. All mathematics is in `thalweg.ops`; this file says how operands meet traces
and the eager evaluation, how a value is read, and what NumPy and PyTorch users expect of an array object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, SupportsIndex

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError, GradientError, GraphError, ShapeError, TraceError
from thalweg.graph import Op, Operand, Value, current, function
from thalweg.graph.build import user_span
from thalweg.ops.core import install_frontend
from thalweg.tensor import eager
from thalweg.tensor.methods import Methods
from thalweg.tensor.trace import Trace, current_trace, leaked, lift, no_value
from thalweg.types import DType, Type

Array = np.ndarray[Any, Any]

_SHOWN = 100  # elements that repr shows before it abbreviates


def as_array(data: Any, dtype: Any = None) -> Array:
    """`data` (a tensor, array, number or nested sequence of numbers) as a NumPy array; Python floats give
    float32.

    May share memory with `data`. Raises `DTypeError` for what is not made of numbers, `ShapeError` for ragged
    nests."""
    wanted = None if dtype is None else types.dtype(dtype)
    if isinstance(data, Tensor):
        array = data._concrete("converting a tensor to an array")
    elif isinstance(data, (np.ndarray, np.generic)):
        array = np.asarray(data)
    elif isinstance(data, (list, tuple)) and not _is_plain(data):
        array = _stacked(data)
    elif isinstance(data, (bool, int, float, list, tuple)):
        return _from_python(data, wanted)
    elif not hasattr(data, "__array__") and hasattr(data, "__dlpack__"):
        array = np.from_dlpack(data)
    else:
        array = np.asarray(data)
        if array.dtype.kind not in "biufV":
            raise DTypeError(
                f"expected a number, an array or a nested list of numbers, received {data!r:.60} of type "
                f"{type(data).__name__}"
            )
    found = types.dtype(array.dtype)  # refuses objects, text and complex numbers
    return np.asarray(array, (wanted or found).numpy)


def _is_plain(data: Sequence[Any]) -> bool:
    """Whether all leaves of a nested list are Python numbers."""
    return all(
        _is_plain(item) if isinstance(item, (list, tuple)) else type(item) in (bool, int, float)
        for item in data
    )


def _from_python(data: Any, wanted: DType | None) -> Array:
    """Python numbers, or a nested list of them, with the given element type or their own."""
    try:
        array = np.asarray(data)
    except ValueError:
        raise _ragged(data) from None
    if array.dtype.kind not in "biuf":
        raise DTypeError(f"an integer in {data!r:.60} does not fit into 64 bits; write it as a float")
    if wanted is None:
        if array.dtype.kind == "f":
            wanted = types.float32
        else:
            wanted = types.int64 if array.dtype.kind == "i" else types.dtype(array.dtype)
    if wanted.is_integer and array.dtype.kind in "iu" and array.size:
        limits = np.iinfo(wanted.numpy)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise DTypeError(f"{data!r:.60} does not fit into {wanted} ({limits.min} to {limits.max})")
    return array.astype(wanted.numpy)


def _stacked(data: Any) -> Array:
    """A nested list with arrays or tensors inside, which keep their element type."""

    def convert(item: Any) -> Any:
        if isinstance(item, (list, tuple)) and not _is_plain(item):
            return [convert(part) for part in item]
        return as_array(item)

    items = convert(data)
    try:
        return np.asarray(items)
    except ValueError:
        raise _ragged(data) from None


def _ragged(data: Any) -> ShapeError:
    return ShapeError(
        f"a nested list must have rows of equal length to become a tensor, received {data!r:.80}"
    )


def eager_array(value: Any, dtype: DType) -> Array:
    """A value given to a holder outside traces as an array; Python numbers take `dtype`."""
    if isinstance(value, (bool, int, float)) and not isinstance(value, np.generic):
        from thalweg.ops.core import _scalar_dtype

        return np.asarray(value, _scalar_dtype(value, dtype).numpy)
    return as_array(value)


# ---- how operands meet traces and eager evaluation ---------------------------------------------------------


def value_of(item: Any) -> Value:
    """The graph value of a tensor here and now: in the running trace, or concrete."""
    if isinstance(item, Tensor):
        return item._read()
    if isinstance(item, Value):
        raise GraphError("a graph value is used outside the composite or graph that it belongs to")
    raise DTypeError(f"expected a tensor, received {item!r:.60} of type {type(item).__name__}")


def wrap(value: Value, trace: Trace | None) -> Tensor:
    """A tensor for a value, traced or (trace None) concrete."""
    tensor = object.__new__(Tensor)
    tensor._value = value
    tensor._trace = trace
    return tensor


def _apply(op: Op, operands: Sequence[Any]) -> Any:
    """How `thalweg.ops` applies an op to tensors."""
    if current() is not None:
        span = user_span()
        raise TraceError(
            "the body of a composite uses a tensor that is not one of its arguments\n"
            f"  at {span.file}:{span.line} in {span.function}\n      {span.text}\n"
            "  write instead: pass the tensor to the composite as a further positional argument"
        )
    trace = current_trace()
    values = [value_of(item) for item in operands]
    if trace is None:
        outputs = eager.EAGER.apply(op, values)
    else:
        outputs = trace.builder.apply(op, values)
        if not eager.mode.recording:
            trace.unrecorded.extend(outputs)
    if len(outputs) == 1:
        return wrap(outputs[0], trace)
    return tuple([wrap(value, trace) for value in outputs])


install_frontend(_apply)


class Tensor(Methods, Operand):
    """A multi-dimensional array with a shape and an element type. Make one with `tw.tensor(data)`.

    Tensors never change: where NumPy and PyTorch write into an array, Thalweg makes a new one. `Parameter`
    and `Buffer` are the tensors whose value can be replaced."""

    __slots__ = ("__weakref__", "_trace", "_value")
    _value: Value
    _trace: Trace | None

    def __init__(self, data: Any, dtype: Any = None) -> None:
        array = np.array(as_array(data, dtype), order="C")
        self._value = Value(types.type_of(array), None, 0, array)
        self._trace = None

    # ---- what it is ----------------------------------------------------------------------------------------

    @property
    def type(self) -> Type:
        """Element type and shape."""
        return self._value.type

    @property
    def dtype(self) -> DType:
        """The element type, for example `tw.float32`."""
        return self.type.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of every axis."""
        return self.type.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.type.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.type.size

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.type.nbytes

    @property
    def is_traced(self) -> bool:
        """Whether it stands for a place in a graph and has no value."""
        return self._trace is not None

    # ---- the value -----------------------------------------------------------------------------------------

    def _read(self) -> Value:
        """The value as an operand here and now."""
        trace = current_trace()
        if trace is not None:
            return lift(self, trace)
        if self._trace is not None:
            raise leaked(self._value, self._trace)
        return self._value

    def _concrete(
        self, what: str, instead: str = "compute it outside the traced function, from a returned tensor"
    ) -> Array:
        """The concrete array; raises `TraceError` where there is none."""
        if self._trace is None:
            return self._value.data  # type: ignore[no-any-return]
        if self._trace.active and current_trace() is not None:
            raise no_value(self._value, self._trace, what, instead)
        raise leaked(self._value, self._trace)

    def numpy(self) -> Array:
        """The value as a read-only NumPy array that keeps it for ever; no copy."""
        view = self._concrete("numpy()").view()
        view.flags.writeable = False
        return view

    def item(self) -> float | int | bool:
        """The value of a tensor with one element as a Python number."""
        return _scalar(self, "item()")  # type: ignore[no-any-return]

    def tolist(self) -> Any:
        """The value as nested lists of Python numbers."""
        array = self._concrete("tolist()")
        return array.astype(np.float32).tolist() if array.dtype.kind == "V" else array.tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        array = self._concrete("converting a tensor to a NumPy array")
        if copy or (dtype is not None and np.dtype(dtype) != array.dtype):
            if copy is False:
                raise ArgumentError(
                    f"a {self.dtype} tensor cannot become an array of {np.dtype(dtype)} without a copy"
                )
            return np.array(array, dtype)
        return self.numpy()

    def __float__(self) -> float:
        return float(_scalar(self, "float(tensor)"))

    def __int__(self) -> int:
        return int(_scalar(self, "int(tensor)"))

    def __complex__(self) -> complex:
        return complex(_scalar(self, "complex(tensor)"))

    def __index__(self) -> int:
        if not self.dtype.is_integer:
            raise DTypeError(
                f"only an integer tensor can be a Python index, received {self.dtype}; write int(tensor)"
            )
        return int(
            _scalar(
                self, "using a tensor as a Python integer", "tensor indices, x[index], or tw.take(x, index)"
            )
        )

    def __bool__(self) -> bool:
        instead = (
            "tw.where(condition, a, b) to choose between values, or tw.cond(condition, f, g, ...) to choose "
            "between computations"
        )
        array = self._concrete("the truth of a tensor (if, while, and, or, not, bool)", instead)
        if array.size != 1:
            raise ShapeError(
                f"the truth of a tensor with {array.size} elements is ambiguous (shape {self.shape}); write "
                "x.any() or x.all()"
            )
        return bool(array.reshape(())[()])

    def __contains__(self, item: Any) -> bool:
        instead = "(x == item).any(), which is a tensor"
        array = self._concrete("`item in tensor`", instead)
        wanted = item._concrete("`item in tensor`", instead) if isinstance(item, Tensor) else item
        return bool(np.any(array == wanted))

    def __getitem__(self, key: Any) -> Any:
        return function("index")(self, _concrete_masks(key))

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("len() of a 0-d tensor; it has no axes. Write x.size for the number of elements")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            raise ShapeError("a 0-d tensor cannot be iterated over; write x.item() for its value")
        return (self[position] for position in range(self.shape[0]))

    def __format__(self, form: str) -> str:
        if not form:
            return str(self)
        return format(_scalar(self, f"formatting with {form!r}"), form)

    # ---- other frameworks, copies --------------------------------------------------------------------------

    def __dlpack__(self, **options: Any) -> Any:
        from thalweg.tensor.dlpack import export

        return export(self, **options)

    def __dlpack_device__(self) -> tuple[int, int]:
        from thalweg.tensor.dlpack import CPU

        return CPU

    def detach(self) -> Tensor:
        """The same value without history: gradients take it as constant."""
        value = self._read()
        trace = current_trace()
        if trace is not None:
            from thalweg.ops.elementwise import stop_gradient

            return stop_gradient(self)  # type: ignore[no-any-return]
        return wrap(Value(value.type, None, 0, value.data), None)

    def clone(self) -> Tensor:
        """The same value; a tensor never changes, so that nothing is copied."""
        return wrap(self._read(), current_trace())

    copy = clone

    def __copy__(self) -> Tensor:
        return self.clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        twin = self if self._trace is not None else wrap(Value(self.type, None, 0, self._value.data), None)
        memo[id(self)] = twin
        return twin

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled: unpickling a file can run any code. Write "
            "tw.io.save(path, {'name': tensor}) for a safetensors file, model.save(path) for a model, or "
            "pass "
            "tensor.numpy() to another process"
        )

    # ---- what is written differently here ------------------------------------------------------------------

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise ArgumentError(
            "a tensor never changes, so that x[key] = value is refused; write instead\n"
            "  x = tw.index_put(x, key, value)       # a new tensor with the change\n"
            "  x = tw.where(mask, value, x)          # for a mask\n"
            "  buffer.assign(tw.index_put(buffer, key, value))   # for a Parameter or Buffer"
        )

    def backward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not here: gradients are returned, never stored."""
        raise GradientError(
            "loss.backward() does not exist here: gradients are returned, never stored in .grad; write "
            "instead\n"
            "  optimizer.minimize(loss)                        # gradient and update in one\n"
            "  gradients = tw.gradient(loss, wrt=model)        # a dict: parameter name -> gradient\n"
            "  loss, gradients = tw.value_and_grad(f)(x)       # for a function of tensors"
        )

    @property
    def grad(self) -> NoReturn:
        """Not here: `tw.gradient(loss, wrt=tensor)` returns the gradient."""
        raise GradientError(
            "tensors have no .grad: gradients are returned, never stored; write gradient = "
            "tw.gradient(loss, wrt=tensor), or optimizer.minimize(loss) for gradient and update"
        )

    def __repr__(self) -> str:
        if self._trace is not None:
            value = self._value
            trace = self._trace
            made = (
                f"input of {trace.name}"
                if value.node is None
                else f"{value.node.op.name} at {value.node.where[0]}"
            )
            return f"tensor({self.type}, traced: {made}{'' if trace.active else ', trace over'})"
        return f"tensor({shown_values(self._value.data, 7)}{shown_type(self.type)})"


def _concrete_masks(key: Any) -> Any:
    """An index key with arrays in place of the bool tensors whose value is known."""
    if isinstance(key, tuple):
        return tuple([_concrete_masks(item) for item in key])
    if isinstance(key, Tensor) and key.dtype.is_bool and not key.is_traced and current_trace() is None:
        return key.numpy()
    return key


def _scalar(
    tensor: Tensor, what: str, instead: str = "compute it outside the traced function, from a returned tensor"
) -> Any:
    array = tensor._concrete(what, instead)
    if array.size != 1:
        raise ShapeError(
            f"{what} needs a tensor with one element, received shape {tensor.shape}; write x.tolist() for "
            "all values, or reduce first: x.sum(), x.mean()"
        )
    return array.astype(np.float32).item() if array.dtype.kind == "V" else array.item()


def shown_values(array: Array, indent: int) -> str:
    """Values for `repr`, abbreviated where there are many."""
    shown = array.astype(np.float32) if array.dtype.kind == "V" else array
    return np.array2string(
        shown,
        precision=4,
        threshold=_SHOWN,
        edgeitems=3,
        separator=", ",
        prefix=" " * indent,
        max_line_width=100,
    )


def shown_type(found: Type) -> str:
    """What `repr` shows of a type: element type and shape where the shown values do not tell them."""
    text = (
        ""
        if found.dtype in (types.float32, types.int64, types.bool_) and found.size
        else f", dtype={found.dtype}"
    )
    return text + (f", shape={found.shape}" if found.size > _SHOWN or found.size == 0 else "")


def tensor(data: Any, dtype: Any = None) -> Any:
    """A tensor with a copy of `data`: numbers, nested lists, NumPy arrays, tensors.

    Python floats become float32, Python integers int64, booleans bool; arrays keep their element type. In a
    traced function the values become constants of the program. Raises `DTypeError` or `ShapeError` for what
    is not an array."""
    if isinstance(data, Operand) and (
        not isinstance(data, Tensor) or data.is_traced or current_trace() is not None
    ):
        from thalweg.ops.core import cast

        return cast(data, data.dtype if dtype is None else dtype)  # type: ignore[attr-defined]
    if current() is not None or current_trace() is not None:
        from thalweg.ops.sources import constant

        return constant(as_array(data, dtype))
    return Tensor(data, dtype)


def asarray(data: Any, dtype: Any = None) -> Any:
    """Like `tensor`, but on the memory of a NumPy array where no conversion is needed; nobody may write to it
    then.
    """
    if isinstance(data, Operand) or current() is not None or current_trace() is not None:
        return tensor(data, dtype)
    array = as_array(data, dtype)
    return wrap(Value(types.type_of(array), None, 0, array), None)
