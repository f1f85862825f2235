"""safetensors files: the same bytes as the library where those are defined, and no trust in any header."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.errors import DataError
from thalweg.io import safetensors

DTYPES = [
    np.dtype(name)
    for name in (
        *("bool", "uint8", "int8", "int16", "uint16", "float16", "int32", "uint32"),
        *("float32", "complex64", "float64", "int64", "uint64"),
    )
] + [np.dtype(ml_dtypes.bfloat16)]


def bits(array: np.ndarray[Any, Any]) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        assert found[name].shape == array.shape
        assert bits(found[name]) == bits(array.astype(array.dtype.newbyteorder("=")))


def random_array(dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Random bit patterns, NaN payloads among them."""
    count = int(np.prod(shape))
    raw = np.random.default_rng(count).integers(0, 256, count * dtype.itemsize, dtype=np.uint8)
    if dtype == np.bool_:
        raw &= 1
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 0, 3), (2, 3, 4, 1)], ids=str)
def test_every_dtype_and_shape_comes_back(
    tmp_path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> None:
    array = random_array(dtype, shape)
    safetensors.save(tmp_path / "a.safetensors", {"x": array})
    found, metadata = safetensors.load(tmp_path / "a.safetensors")
    assert_same(found, {"x": array})
    assert metadata == {}


def test_any_layout_and_byte_order(tmp_path: Path) -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {
        "transposed": base.T,
        "strided": base[::-2, 1::3],
        "fortran": np.asfortranarray(base),
        "big endian": base.astype(">f4"),
        "broadcast": np.broadcast_to(np.float32(7), (3, 2)),
        "scalar": np.float64(2.5),
    }
    safetensors.save(tmp_path / "a", arrays)
    assert_same(
        safetensors.load(tmp_path / "a")[0], {name: np.asarray(value) for name, value in arrays.items()}
    )


def test_bytes_depend_on_content_only(tmp_path: Path) -> None:
    arrays = {f"layer{i}.weight": np.full((i + 1, 3), i, np.float32) for i in range(20)}
    arrays["flags"] = np.array([True, False, True])
    metadata = {f"key{i}": str(i) for i in range(20)}
    safetensors.save(tmp_path / "one", arrays, metadata)
    os.mkdir(tmp_path / "elsewhere")
    safetensors.save(
        tmp_path / "elsewhere" / "two", dict(reversed(arrays.items())), dict(reversed(metadata.items()))
    )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "elsewhere" / "two").read_bytes()
    assert safetensors.load(tmp_path / "one")[1] == metadata


def test_same_bytes_as_the_library(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    arrays = {
        f'{name}.{dtype.name}\u00e4"\\\n': random_array(dtype, (3, 1))
        for dtype in DTYPES
        for name in ("b", "a")
    }
    for metadata in (None, {"format": "pt"}):
        safetensors.save(tmp_path / "ours", arrays, metadata)
        assert (tmp_path / "ours").read_bytes() == library.save(arrays, metadata)


def test_reads_what_torch_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    tensors = {"w": torch.randn(3, 4), "half": torch.randn(5).bfloat16(), "n": torch.tensor(7)}
    library.save_file(tensors, tmp_path / "t", {"format": "pt"})
    found, metadata = safetensors.load(tmp_path / "t")
    assert metadata == {"format": "pt"}
    assert bits(found["w"]) == bits(tensors["w"].numpy())
    assert found["half"].dtype == ml_dtypes.bfloat16
    assert bits(found["half"]) == bits(tensors["half"].view(torch.int16).numpy())
    assert found["n"].shape == () and found["n"] == 7


def test_the_library_reads_ours(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    arrays = {str(dtype): random_array(dtype, (2, 3)) for dtype in DTYPES if dtype != ml_dtypes.bfloat16}
    safetensors.save(tmp_path / "a", arrays, {"a": "1", "b": "2"})
    assert_same(library.load_file(tmp_path / "a"), arrays)


def test_arrays_are_read_only_views_of_the_mapped_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    safetensors.save(path, {"x": np.arange(1000.0), "empty": np.zeros((0, 2))})
    found, _ = safetensors.load(path)
    with pytest.raises(ValueError, match="read-only"):
        found["x"][0] = 1
    assert not found["empty"].flags.writeable
    assert not found["x"].flags.owndata
    assert found["x"].flags.aligned
    safetensors.save(path, {"x": np.zeros(1000)})  # replaces the file; the old content stays mapped
    assert found["x"][999] == 999


def test_unaligned_data_of_other_writers(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F64", "shape": [1], "data_offsets": [3, 11]},
    }
    path = write_raw(tmp_path, json.dumps(header).encode(), bytes(3) + struct.pack("<d", 1.25))
    found, _ = safetensors.load(path)
    assert found["b"].flags.aligned
    assert not found["b"].flags.writeable
    assert found["b"][0] == 1.25


def test_arguments_of_the_wrong_kind(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(TypeError, match=r"'x' is a list; expected a NumPy array: write numpy\.asarray"):
        safetensors.save(path, {"x": [1, 2]})
    with pytest.raises(TypeError, match="names of arrays must be text, got 3 of type int"):
        safetensors.save(path, {3: np.zeros(1)})
    with pytest.raises(TypeError, match="metadata must map text to text, got 'epoch': 3"):
        safetensors.save(path, {}, {"epoch": 3})
    with pytest.raises(DataError, match="array 'x' has dtype complex128"):
        safetensors.save(path, {"x": np.zeros(1, complex)})
    with pytest.raises(DataError, match="array 'x' has dtype object"):
        safetensors.save(path, {"x": np.array([None])})
    with pytest.raises(DataError, match="'__metadata__' is reserved"):
        safetensors.save(path, {"__metadata__": np.zeros(1)})
    with pytest.raises(DataError, match="not valid Unicode"):
        safetensors.save(path, {"\ud800": np.zeros(1)})
    assert not path.exists()


def test_no_arrays(tmp_path: Path) -> None:
    safetensors.save(tmp_path / "a", {}, {"only": "text"})
    assert safetensors.load(tmp_path / "a") == ({}, {"only": "text"})
    safetensors.save(tmp_path / "b", {})
    assert safetensors.load(tmp_path / "b") == ({}, {})


def write_raw(directory: Path, header: bytes, data: bytes, length: int | None = None) -> Path:
    path = directory / "hostile.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE_HEADERS: list[tuple[Any, str]] = [
    ({"x": entry(offsets=(0, 12))}, r"'x' of dtype F32 and shape \[2\] needs 8 bytes, .* span 12"),
    ({"x": entry(shape=(1,), offsets=(0, 4))}, "describes 4 bytes of data, the file has 8$"),
    (
        {"x": entry(shape=(4,), offsets=(0, 16))},
        "describes 16 bytes of data, the file has 8; the file is truncated",
    ),
    ({"x": entry(), "y": entry()}, "data of 'y', bytes 0 to 8, overlap"),
    ({"x": entry(), "y": entry(shape=(1,), offsets=(4, 8))}, "data of 'y', bytes 4 to 8, overlap"),
    ({"x": entry(shape=(1,), offsets=(4, 8))}, "bytes 4 to 8, leave a gap"),
    ({"x": entry(offsets=(8, 0))}, "begin <= end"),
    ({"x": entry(offsets=(-8, 0))}, "data_offsets"),
    ({"x": entry(offsets=(0, 8, 8))}, "data_offsets"),
    ({"x": entry(offsets=(0, 8.0))}, "data_offsets"),
    ({"x": entry(offsets="0-8")}, "data_offsets"),
    ({"x": entry(offsets=(2**64, 2**64 + 8))}, "leave a gap"),
    ({"x": entry(dtype="F33")}, "'x' has dtype 'F33'; expected one of BOOL"),
    ({"x": entry(dtype=["F32"])}, "'x' has dtype"),
    ({"x": entry(dtype="F8_E4M3", shape=(8,))}, "dtype 'F8_E4M3'"),
    ({"x": entry(shape=(-2,))}, "'x' has shape"),
    ({"x": entry(shape=(True, 2))}, "'x' has shape"),
    ({"x": entry(shape="2")}, "'x' has shape"),
    ({"x": entry(shape=[1] * 65 + [2])}, "at most 64 sizes"),
    ({"x": entry(shape=(2**62, 2**62))}, "too large for any array"),
    ({"x": entry(shape=(0, 2**62, 2), offsets=(0, 0))}, "too large for any array"),
    ({"x": {"dtype": "F32", "shape": [2]}}, "needs dtype, shape and data_offsets"),
    ({"x": [1, 2]}, "needs dtype, shape and data_offsets"),
    ({"x": entry(), "__metadata__": {"a": 1}}, "__metadata__ must be an object of texts"),
    ({"x": entry(), "__metadata__": ["a"]}, "__metadata__ must be an object of texts"),
    ([1, 2], "its header is a JSON list, expected an object"),
    (None, "its header is a JSON NoneType, expected an object"),
]


@pytest.mark.parametrize(("header", "message"), HOSTILE_HEADERS, ids=range(len(HOSTILE_HEADERS)))
def test_hostile_headers(tmp_path: Path, header: Any, message: str) -> None:
    path = write_raw(tmp_path, json.dumps(header).encode(), bytes(8))
    with pytest.raises(DataError, match=message) as raised:
        safetensors.load(path)
    assert "hostile.safetensors" in str(raised.value)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    cases = [
        (b"", None, "it has 8 bytes|header is not JSON"),
        (b"{not json", None, "its header is not JSON"),
        (b"\xff\xfe{}", None, "its header is not JSON"),
        (b"[" * 100_000, None, "its header is not JSON"),
        (b'{"x": NaN', None, "its header is not JSON"),
        (b'{"x": 1' + b"0" * 5000 + b"}", None, "its header is not JSON"),
        (b'{"x": {}, "x": {}}', None, "contains the name 'x' twice"),
        (b'{"__metadata__": {"a": "1", "a": "2"}}', None, "contains the name 'a' twice"),
        (b"{}", 2**63, "announce a header of 9,223,372,036,854,775,808 bytes"),
        (b"{}", 1000, r"should have 1,000 bytes, but only 2 follow"),
    ]
    for header, length, message in cases:
        with pytest.raises(DataError, match=message):
            safetensors.load(write_raw(tmp_path, header, b"", length))
    (tmp_path / "short").write_bytes(b"1234567")
    with pytest.raises(DataError, match="it has 7 bytes, expected at least 8"):
        safetensors.load(tmp_path / "short")
    with pytest.raises(DataError, match=r"cannot read .*missing"):
        safetensors.load(tmp_path / "missing")
    with pytest.raises(DataError, match="cannot read"):
        safetensors.load(tmp_path)


def test_every_truncation_and_extension_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    safetensors.save(path, {"x": np.arange(3, dtype=np.float32), "y": np.ones(2, np.int8)}, {"k": "v"})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=str(path)):
            safetensors.load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(DataError, match="describes 14 bytes of data, the file has 15"):
        safetensors.load(path)


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 250), value=st.integers(0, 255))
def test_a_changed_byte_gives_an_error_or_a_complete_result(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    safetensors.save(path, {"x": np.arange(6, dtype=np.int16).reshape(2, 3), "y": np.float32(1)}, {"k": "v"})
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    try:
        found, _ = safetensors.load(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert sum(array.nbytes for array in found.values()) == 16


def test_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    safetensors.save(path, {"x": np.arange(3)})

    def interrupted(array: Any) -> memoryview:
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors, "_little_endian_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        safetensors.save(path, {"x": np.zeros(3)})
    assert safetensors.load(path)[0]["x"].tolist() == [0, 1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
