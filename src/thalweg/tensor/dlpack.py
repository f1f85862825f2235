"""Exchange of tensors with other frameworks without a copy, by the DLPack protocol (host memory)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DataError, DTypeError
from thalweg.graph import Value

if TYPE_CHECKING:
    from thalweg.tensor.tensor import Tensor

CPU = (1, 0)  # DLPack's device type and number of host memory


class _Alias:
    """Lets NumPy make a second array on the memory of a read-only one: DLPack capsules cannot tell read-only
    memory.
    """

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.__array_interface__ = {
            "version": 3,
            "shape": array.shape,
            "strides": array.strides,
            "typestr": array.dtype.str,
            "data": (array.__array_interface__["data"][0], False),
        }


def export(
    tensor: Tensor,
    *,
    stream: Any = None,
    max_version: Any = None,
    dl_device: Any = None,
    copy: bool | None = None,
) -> Any:
    """A DLPack capsule of a tensor's value. Whoever receives it must not write to the memory."""
    if stream is not None:
        raise ArgumentError(f"__dlpack__: a tensor in host memory has no stream, received stream={stream!r}")
    if dl_device is not None and tuple(int(part) for part in dl_device) != CPU:
        raise ArgumentError(
            f"__dlpack__: the tensor is in host memory, device {CPU}; received dl_device={dl_device!r}"
        )
    if tensor.dtype is types.bfloat16:
        raise DTypeError(
            "bfloat16 cannot be exchanged by DLPack here, because NumPy has no such type; write "
            "torch.from_dlpack(x.float()), or pass the bits: "
            "torch.from_numpy(x.numpy().view('int16')).view(torch.bfloat16)"
        )
    array = tensor._concrete("exporting a tensor")
    if copy:
        array = array.copy()
    return np.asarray(array if array.flags.writeable else _Alias(array)).__dlpack__()


def from_dlpack(source: Any) -> Any:
    """A tensor on the memory of another framework's tensor, without a copy: any object with `__dlpack__`.

    The other framework must not write to that memory while the tensor is in use. Raises `DataError` for
    memory that is not on the host or of a type that NumPy cannot read (bfloat16)."""
    from thalweg.tensor.tensor import wrap

    if not hasattr(source, "__dlpack__"):
        raise ArgumentError(
            f"from_dlpack takes an object with __dlpack__, received {type(source).__name__}; write "
            "tw.tensor(data)"
        )
    try:
        array = np.from_dlpack(source)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"{type(source).__module__}.{type(source).__name__} cannot be read by DLPack: {error}. It must "
            "be in host memory, of a type that NumPy has (not bfloat16: pass x.float()), and without "
            "gradient (x.detach())"
        ) from None
    found = types.type_of(array)
    return wrap(Value(found, None, 0, array), None)
