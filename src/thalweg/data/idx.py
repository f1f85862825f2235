"""The idx format, in which MNIST is published: one array per file, plain or gzip-compressed.

In: a path or a binary stream. Out: a NumPy array, with every claim of the header checked against the content
before memory is taken for it. Called by the standard data sets, and by users who have such files.

A file is: two zero bytes, a dtype code, the number of axes; each axis's size as a big-endian uint32; the
elements in row-major order, big-endian (Y. LeCun, http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from io import BufferedIOBase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import DataError
from thalweg.io.files import atomic_write

__all__ = ["idx_digest", "parse_idx", "read_idx", "write_idx"]

Array = NDArray[Any]

_DTYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_CODES = {name: code for code, name in _DTYPES.items()}
_MOST_AXES = 64  # NumPy's own limit
_MOST_BYTES = 2**63 - 1  # NumPy's own limit
_LARGEST_GZIP_RATIO = 1032  # DEFLATE cannot expand more (zlib's technical details)
_CHUNK = 1 << 20


def read_idx(path: str | os.PathLike[str]) -> Array:
    """Read an idx file, plain or gzip-compressed (told by content, not by name), as a writable native array.

    Raises `DataError`, which names the file, what was found and what was expected: not an idx file, unknown
    dtype, truncated, longer than its header says, corrupt gzip data, or unreadable.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return parse_idx(file, size, os.fspath(path))
    except OSError as error:
        raise DataError(f"cannot read {os.fspath(path)!r}: {error.strerror or error}") from error


def parse_idx(stream: BufferedIOBase, size: int, name: str) -> Array:
    """`read_idx` from a seekable `stream` of `size` bytes; `name` stands for it in error messages."""
    compressed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    if not compressed:
        return _parse(stream, size, name)
    try:
        with gzip.GzipFile(fileobj=stream) as unpacked:
            return _parse(unpacked, size * _LARGEST_GZIP_RATIO, name)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{name!r} is a corrupt or truncated gzip file ({error}); copy or download it again"
        ) from error


def write_idx(path: str | os.PathLike[str], array: Array) -> None:
    """Write `array` as an idx file, gzip-compressed where the name ends in `.gz`; atomic, and without a time
    stamp.

    Raises `DataError` for a dtype that the format lacks, an axis of 2**32 or more, or when the file cannot be
    written.
    """
    if array.dtype.name not in _CODES:
        raise DataError(
            f"cannot write {os.fspath(path)!r}: the idx format has no dtype {array.dtype}; "
            f"convert the array with .astype to one of {', '.join(_CODES)}"
        )
    if any(size >= 2**32 for size in array.shape):
        raise DataError(f"cannot write {os.fspath(path)!r}: shape {array.shape} has an axis of 2**32 or more")
    content = _header(array) + _big_endian(array).tobytes()
    atomic_write(path, gzip.compress(content, 9, mtime=0) if os.fspath(path).endswith(".gz") else content)


def idx_digest(array: Array) -> str:
    """SHA-256, in hexadecimal, of the uncompressed idx file that holds `array`."""
    import hashlib

    digest = hashlib.sha256(_header(array))
    digest.update(_big_endian(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _header(array: Array) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, _CODES[array.dtype.name], array.ndim, *array.shape)


def _big_endian(array: Array) -> Array:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder(">"))


def _parse(stream: BufferedIOBase, limit: int, name: str) -> Array:
    """Read one array from `stream`, which can hold at most `limit` bytes."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
        codes = ", ".join(f"{code:02x} ({dtype})" for code, dtype in _DTYPES.items())
        raise DataError(
            f"{name!r} is not an idx file: it starts with the bytes {magic.hex(' ')!r}, "
            f"expected 00 00, then one of {codes}, then the number of axes"
        )
    dtype, axes = np.dtype(_DTYPES[magic[2]]), magic[3]
    if axes > _MOST_AXES:
        raise DataError(f"{name!r}: the idx header announces {axes} axes, expected at most {_MOST_AXES}")
    sizes = stream.read(4 * axes)
    if len(sizes) < 4 * axes:
        raise DataError(
            f"{name!r} is truncated: its header should have {4 + 4 * axes} bytes, found {4 + len(sizes)}"
        )
    shape = struct.unpack(f">{axes}I", sizes)
    if math.prod(size for size in shape if size) * dtype.itemsize > _MOST_BYTES:
        raise DataError(f"{name!r}: the idx header announces shape {shape}, which is too large for any array")
    expected = math.prod(shape) * dtype.itemsize
    if expected + len(magic) + len(sizes) > limit:  # before any memory is taken: the header may be hostile
        raise DataError(
            f"{name!r} is truncated or corrupt: its header announces shape {shape} of {dtype}, "
            f"{expected:,} bytes, but the file cannot hold more than {limit:,}; copy or download it again"
        )
    content = _read_at_most(stream, expected + 1)
    if len(content) != expected:
        found = f"only {len(content):,}" if len(content) < expected else "more"
        raise DataError(
            f"{name!r} is truncated or corrupt: its header announces shape {shape} of {dtype}, "
            f"{expected:,} bytes, but {found} follow; copy or download it again"
        )
    return np.frombuffer(content, dtype.newbyteorder(">")).astype(dtype, copy=False).reshape(shape)


def _read_at_most(stream: BufferedIOBase, count: int) -> bytearray:
    content = bytearray()
    while len(content) < count:
        chunk = stream.read(min(_CHUNK, count - len(content)))
        if not chunk:
            break
        content += chunk
    return content
