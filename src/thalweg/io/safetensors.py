"""The safetensors format: named arrays and text metadata in one file that cannot execute anything.

In: `{name: array}` and `{text: text}`. Out: a file, or the same back with every claim of its header checked
before the first array is handed out. Called by checkpoints and by models that load published weights.

A file is: 8 bytes, the header's length (little-endian); the header, a JSON object that maps each name to
dtype, shape and [begin, end) within the data, padded with spaces to a multiple of 8; the data, without gaps
(https://huggingface.co/docs/safetensors). The `safetensors` library's own NumPy interface is not used: it
writes metadata in an order that changes between runs, saves arrays that are not contiguous wrongly without a
word, and does not read bfloat16. Where its result is well defined, the bytes written here are the same; the
tests hold that.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import DataError
from thalweg.io.files import atomic_write

__all__ = ["load", "save"]

Array = NDArray[Any]

# Name in the file -> name of the NumPy dtype. The order is the library's: data is written from the last to
# the first, so wide elements come first and every array is aligned.
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(_DTYPES.values())}
_METADATA = "__metadata__"
_LONGEST_HEADER = 100_000_000  # bytes; the library's own limit
_MOST_AXES = 64  # NumPy's own limit
_MOST_BYTES = 2**63 - 1  # NumPy's own limit


def save(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named arrays (any layout and byte order; 0-d and empty ones too) and text metadata to `path`.

    The bytes depend on the names, arrays and metadata only: no time, no path, no order of insertion. The file
    is written atomically (`thalweg.io.files.atomic_write`).

    Raises `DataError` when a dtype has no name in the format, or when the file cannot be written; `TypeError`
    for names, metadata or values of the wrong type.
    """
    ordered = _ordered(path, arrays)
    header = _header(path, ordered, metadata or {})

    def write(file: BinaryIO) -> None:
        file.write(struct.pack("<Q", len(header)))
        file.write(header)
        for _, array in ordered:
            file.write(_little_endian_bytes(array))

    atomic_write(path, write)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Read `path` and return its arrays, in the order of the file, and its metadata.

    The arrays are read-only views of the memory-mapped file: pages are read when touched, and `array.copy()`
    gives one that can be changed. Replacing the file (as `save` does) does not affect them; changing it in
    place does.

    Raises `DataError`, which names the file and the problem, unless the whole file is valid: nothing is
    half-loaded.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, start = _read_header(name, file, size)
            entries, metadata = _check_header(name, header, size - start)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f"cannot read {name!r}: {error.strerror or error}") from error
    return {entry: _view(mapped, start, *claim) for entry, claim in entries.items()}, metadata


def _ordered(path: str | os.PathLike[str], arrays: Mapping[str, Array]) -> list[tuple[str, Array]]:
    for name, array in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"names of arrays must be text, got {name!r} of type {type(name).__name__}")
        if name == _METADATA:
            raise DataError(
                f"cannot save {os.fspath(path)!r}: the name {_METADATA!r} is reserved by the format"
            )
        if not isinstance(array, np.ndarray | np.generic):
            raise TypeError(
                f"{name!r} is a {type(array).__name__}; expected a NumPy array: "
                "write numpy.asarray(value), or tensor.numpy()"
            )
        if array.dtype.name not in _NAMES:
            raise DataError(
                f"cannot save {os.fspath(path)!r}: array {name!r} has dtype {array.dtype}, which the "
                f"safetensors format cannot hold; convert it with .astype to one of {', '.join(_NAMES)}"
            )
    return sorted(arrays.items(), key=lambda item: (-_RANKS[item[1].dtype.name], item[0]))


def _header(
    path: str | os.PathLike[str], ordered: list[tuple[str, Array]], metadata: Mapping[str, str]
) -> bytes:
    content: dict[str, Any] = {}
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise TypeError(
                f"metadata must map text to text, got {key!r}: {value!r}; write str(...) around it"
            )
    if metadata:
        content[_METADATA] = dict(sorted(metadata.items()))
    offset = 0
    for name, array in ordered:
        content[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    try:
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"cannot save {os.fspath(path)!r}: a name or metadata is not valid Unicode: {error}"
        ) from error
    if len(text) > _LONGEST_HEADER - 8:
        raise DataError(
            f"cannot save {os.fspath(path)!r}: names and metadata take {len(text):,} bytes, "
            f"more than the {_LONGEST_HEADER:,} that readers of the format accept"
        )
    return text + b" " * (-len(text) % 8)


def _little_endian_bytes(array: Array) -> memoryview:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def _read_header(name: str, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The parsed header and the position at which the data starts."""
    if size < 8:
        raise DataError(f"{name!r} is not a safetensors file: it has {size} bytes, expected at least 8")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _LONGEST_HEADER:
        raise DataError(
            f"{name!r} is not a safetensors file: its first 8 bytes announce a header of {length:,} bytes; "
            f"at most {_LONGEST_HEADER:,} are allowed"
        )
    if length > size - 8:
        raise DataError(
            f"{name!r} is truncated or not a safetensors file: its header should have {length:,} bytes, "
            f"but only {size - 8:,} follow; copy or download it again"
        )
    text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except _DuplicateError as error:
        raise DataError(f"{name!r}: the header contains the name {error.args[0]!r} twice") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name!r} is not a safetensors file: its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise DataError(
            f"{name!r} is not a safetensors file: its header is a JSON {type(header).__name__}, "
            "expected an object"
        )
    return header, 8 + length


class _DuplicateError(Exception):
    """A JSON object holds the same key twice; the key is the argument."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _DuplicateError(key)
        result[key] = value
    return result


_Claim = tuple[str, tuple[int, ...], int]  # NumPy name of the dtype, shape, first byte within the data


def _check_header(
    name: str, header: dict[str, Any], available: int
) -> tuple[dict[str, _Claim], dict[str, str]]:
    """Check every claim of the header against the `available` bytes of data."""
    metadata = header.pop(_METADATA, {})
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise DataError(f"{name!r}: {_METADATA} must be an object of texts")
    claims = {entry: _check_entry(name, entry, claim) for entry, claim in header.items()}
    claims = dict(sorted(claims.items(), key=lambda item: item[1][2:]))
    position = 0
    for entry, (_, _, begin, end) in claims.items():
        if begin != position:
            problem = "overlap the array before" if begin < position else "leave a gap after the array before"
            raise DataError(
                f"{name!r}: the data of {entry!r}, bytes {begin:,} to {end:,}, {problem}, "
                f"which ends at byte {position:,}"
            )
        position = end
    if position != available:
        advice = "; the file is truncated: copy or download it again" if position > available else ""
        raise DataError(
            f"{name!r}: the header describes {position:,} bytes of data, the file has {available:,}{advice}"
        )
    return {entry: (dtype, shape, begin) for entry, (dtype, shape, begin, _) in claims.items()}, metadata


def _check_entry(name: str, entry: str, claim: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Dtype, shape, begin and end of one array."""
    if not (isinstance(claim, dict) and {"dtype", "shape", "data_offsets"} <= claim.keys()):
        raise DataError(
            f"{name!r}: the header entry of {entry!r} needs dtype, shape and data_offsets, got {claim!r:.200}"
        )
    dtype, shape, offsets = claim["dtype"], claim["shape"], claim["data_offsets"]
    if not (isinstance(dtype, str) and dtype in _DTYPES):
        raise DataError(f"{name!r}: {entry!r} has dtype {dtype!r:.100}; expected one of {', '.join(_DTYPES)}")
    if not _is_sizes(shape) or len(shape) > _MOST_AXES:
        raise DataError(
            f"{name!r}: {entry!r} has shape {shape!r:.200}; expected at most {_MOST_AXES} sizes of at least 0"
        )
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise DataError(
            f"{name!r}: {entry!r} has data_offsets {offsets!r:.200}; expected [begin, end] with begin <= end"
        )
    itemsize = _dtype(_DTYPES[dtype]).itemsize
    # NumPy refuses such sizes even where another size is 0 and no byte is needed.
    if math.prod(size for size in shape if size) * itemsize > _MOST_BYTES:
        raise DataError(f"{name!r}: {entry!r} has shape {shape!r:.200}, which is too large for any array")
    needed = math.prod(shape) * itemsize
    if needed != offsets[1] - offsets[0]:
        raise DataError(
            f"{name!r}: {entry!r} of dtype {dtype} and shape {shape!r:.200} needs {needed:,} bytes, "
            f"but its data_offsets {offsets} span {offsets[1] - offsets[0]:,}"
        )
    return _DTYPES[dtype], tuple(shape), offsets[0], offsets[1]


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    return np.dtype(name)


def _view(mapped: mmap.mmap, start: int, dtype_name: str, shape: tuple[int, ...], begin: int) -> Array:
    dtype = _dtype(dtype_name)
    stored = dtype.newbyteorder("<")
    count = math.prod(shape)
    if count == 0:
        array = np.empty(shape, dtype)
    else:
        array = np.frombuffer(mapped, stored, count, start + begin).reshape(shape)
        if not array.flags.aligned or stored != dtype:
            array = array.astype(dtype)
    array.flags.writeable = False
    return array
