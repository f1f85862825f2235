"""The idx format: every dtype comes back, and no claim of a header is believed."""

from __future__ import annotations

import gzip
import hashlib
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from thalweg.data import read_idx, write_idx
from thalweg.data.idx import idx_digest
from thalweg.errors import DataError

DTYPES = ["uint8", "int8", "int16", "int32", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0, 2), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_round_trip(tmp_path: Path, dtype: str, shape: tuple[int, ...], suffix: str) -> None:
    values = np.random.default_rng(1).normal(0, 50, shape)
    array = np.asarray(np.clip(values, 0, 100) if dtype == "uint8" else values).astype(dtype)
    path = tmp_path / f"array.idx{suffix}"
    write_idx(path, array)
    found = read_idx(path)
    assert found.dtype == array.dtype and found.dtype.isnative
    np.testing.assert_array_equal(found, array)
    assert found.shape == shape
    assert found.flags.writeable
    content = path.read_bytes()
    unpacked = gzip.decompress(content) if suffix else content
    assert idx_digest(array) == hashlib.sha256(unpacked).hexdigest()


def test_published_layout(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_idx(path, np.array([[1, -2]], np.int16).T)
    assert path.read_bytes() == bytes.fromhex("00000b02 00000002 00000001 0001 fffe")


def test_big_endian_and_strided_arrays_are_written_right(tmp_path: Path) -> None:
    base = np.arange(12, dtype=">i4").reshape(3, 4)
    write_idx(tmp_path / "a", base[:, ::2])
    np.testing.assert_array_equal(read_idx(tmp_path / "a"), base[:, ::2])


def test_compressed_bytes_hold_no_time(tmp_path: Path) -> None:
    for name in ("a.gz", "b.gz"):
        write_idx(tmp_path / name, np.arange(10, dtype=np.uint8))
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert (tmp_path / "a.gz").read_bytes()[4:8] == b"\0\0\0\0"


def test_dtypes_that_the_format_lacks(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"has no dtype int64; convert the array with \.astype to one of uint8, "
    ):
        write_idx(tmp_path / "a", np.arange(3))
    assert not (tmp_path / "a").exists()


def header(code: int, *sizes: int, axes: int | None = None) -> bytes:
    return struct.pack(f">HBB{len(sizes)}I", 0, code, len(sizes) if axes is None else axes, *sizes)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an idx file: it starts with the bytes ''"),
        (b"\0\0\x08", "is not an idx file"),
        (b"\x89PNG\r\n", "starts with the bytes '89 50 4e 47', expected 00 00, then one of 08 \\(uint8\\), "),
        (header(0x0A, 1) + b"\0", "is not an idx file"),
        (header(0x08, axes=3) + b"\0\0\0\x01", "its header should have 16 bytes, found 8"),
        (header(0x08, 2, 3) + bytes(5), r"announces shape \(2, 3\) of uint8, 6 bytes, but"),
        (header(0x08, 2, 3) + bytes(7), r"announces shape \(2, 3\) of uint8, 6 bytes, but more follow"),
        (header(0x0D, 3) + bytes(11), r"of float32, 12 bytes, but"),
        (header(0x0E, *[2**32 - 1] * 3), "which is too large for any array"),
        (header(0x08, 0, *[2**32 - 1] * 3), "which is too large for any array"),
        (header(0x08, 2**32 - 1, 2**20), "but the file cannot hold more than"),
        (header(0x08, *[1] * 65) + b"\0", "announces 65 axes, expected at most 64"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str, compressed: bool) -> None:
    path = tmp_path / "bad.idx"
    path.write_bytes(gzip.compress(content) if compressed else content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message) as raised:
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20  # nothing was taken on a header's word
    finally:
        tracemalloc.stop()
    assert "bad.idx" in str(raised.value)


def test_broken_compression(tmp_path: Path) -> None:
    content = gzip.compress(header(0x08, 1000) + np.random.default_rng(0).bytes(1000))
    path = tmp_path / "bad.gz"
    flipped = bytearray(content)
    flipped[500] ^= 1
    for broken in (content[:-3], content[:600], content[:12], bytes(flipped), content[:2] + b"\0" * 50):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"bad\.gz' is a corrupt or truncated gzip file"):
            read_idx(path)


def test_a_file_that_unpacks_to_far_more_than_it_says(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(header(0x08, 10) + bytes(50_000_000)))
    tracemalloc.start()
    with pytest.raises(DataError, match="10 bytes, but more follow"):
        read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read '.*nowhere\.idx': No such file"):
        read_idx(tmp_path / "nowhere.idx")
    with pytest.raises(DataError, match="cannot read"):
        read_idx(tmp_path)
