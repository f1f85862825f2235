"""MNIST from a directory, the cache or mirrors (small stand-in files), and the digits of the package."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from mirror import serving

from thalweg import data
from thalweg.data import standard
from thalweg.data.idx import idx_digest
from thalweg.errors import ArgumentError, DataError

random = np.random.default_rng(3)
IMAGES = random.integers(0, 256, (7, 28, 28), dtype=np.uint8)
LABELS = random.integers(0, 10, 7, dtype=np.uint8)
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
NOWHERE = ("http://127.0.0.1:9/nothing",)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files take the place of the published ones; returns the folder of MNIST in an empty cache."""
    files = tuple(
        standard._File(name, idx_digest(array), array.nbytes + 4 + 4 * array.ndim)
        for name, array in zip(NAMES, (IMAGES, LABELS), strict=True)
    )
    monkeypatch.setitem(standard._MNIST, "train", files)
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache" / "mnist"


def put(directory: Path, *names: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, (IMAGES, LABELS), strict=True):
        data.write_idx(directory / name, array)


def served() -> dict[str, bytes]:
    contents = {}
    for name, array in zip(NAMES, (IMAGES, LABELS), strict=True):
        header = b"\0\0\x08" + bytes([array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        contents[f"{name}.gz"] = gzip.compress(header + array.tobytes())
    return contents


def check(found: data.ArrayDataset) -> None:
    images, labels = found.arrays
    assert images.dtype == np.float32 and labels.dtype == np.int64
    assert images.shape == (7, 1, 28, 28)
    np.testing.assert_array_equal(images[:, 0], IMAGES.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("folder", ["", "MNIST/raw"])
def test_finds_every_usual_name(cache: Path, tmp_path: Path, suffix: str, dotted: bool, folder: str) -> None:
    names = [(name.replace("-idx", ".idx") if dotted else name) + suffix for name in NAMES]
    put(tmp_path / "mine" / folder, *names)
    check(data.mnist(tmp_path / "mine", download=False))


def test_finds_the_cache_when_the_directory_has_nothing(cache: Path, tmp_path: Path) -> None:
    put(cache, *NAMES)
    check(data.mnist(download=False))
    check(data.mnist(tmp_path / "empty", download=False))
    check(data.mnist(str(tmp_path), split="train", download=True, progress=False, mirrors=NOWHERE))


def test_downloads_to_the_cache_or_the_directory_once(cache: Path, tmp_path: Path) -> None:
    with serving(served()) as mirror:
        check(data.mnist(progress=False, mirrors=[mirror.url]))
        check(data.mnist(progress=False, mirrors=[mirror.url]))
        assert [name for name, _ in mirror.requests] == [f"{name}.gz" for name in NAMES]
        assert sorted(entry.name for entry in cache.iterdir()) == sorted(NAMES)
        (cache / NAMES[0]).unlink()
        check(data.mnist(tmp_path / "mine", progress=False, mirrors=[mirror.url]))
        assert [entry.name for entry in (tmp_path / "mine").iterdir()] == [NAMES[0]]


def test_nothing_found(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        data.mnist(tmp_path / "mine", download=False)
    message = str(raised.value)
    assert message.startswith(f"the MNIST file {NAMES[0]} (or {NAMES[0]}.gz) is not in ")
    assert str(tmp_path / "mine") in message and str(cache) in message
    assert "downloading was not allowed" in message
    assert "--data-dir" in message and "data.digits()" in message

    with pytest.raises(DataError) as raised:
        data.mnist(progress=False, mirrors=NOWHERE, timeout=2)
    message = str(raised.value)
    assert f"http://127.0.0.1:9/nothing/{NAMES[0]}.gz: " in message
    assert "--data-dir" in message and "data.digits()" in message


def test_bad_files_of_the_user_are_named_and_kept(cache: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    put(mine, *NAMES)
    content = (mine / NAMES[0]).read_bytes()
    (mine / NAMES[0]).write_bytes(content[:-1])
    with serving(served()) as mirror:
        with pytest.raises(DataError, match=rf"{NAMES[0]}' is truncated"):
            data.mnist(mine, mirrors=[mirror.url], progress=False)
        changed = bytearray(content)
        changed[1000] ^= 1
        (mine / NAMES[0]).write_bytes(changed)
        with pytest.raises(
            DataError, match=r"is a valid idx file, shape \(7, 28, 28\) of uint8, but not the publ"
        ):
            data.mnist(mine, mirrors=[mirror.url], progress=False)
        assert mirror.requests == []
    assert (mine / NAMES[0]).read_bytes() == changed


def test_bad_files_in_the_cache_are_fetched_again(cache: Path) -> None:
    put(cache, *NAMES)
    (cache / NAMES[0]).write_bytes(b"garbage")
    with pytest.raises(DataError, match="is not an idx file"):
        data.mnist(download=False)
    with serving(served()) as mirror:
        check(data.mnist(mirrors=[mirror.url], progress=False))
        assert [name for name, _ in mirror.requests] == [f"{NAMES[0]}.gz"]


def test_published_files_are_described_consistently() -> None:
    assert [file.size for pair in standard._MNIST.values() for file in pair] == [
        *(60_000 * 28 * 28 + 16, 60_000 + 8),
        *(10_000 * 28 * 28 + 16, 10_000 + 8),
    ]
    assert all(len(file.sha256) == 64 for pair in standard._MNIST.values() for file in pair)
    assert len(standard.MNIST_MIRRORS) >= 2


def test_unknown_split() -> None:
    with pytest.raises(ArgumentError, match="split is 'validation'; expected one of 'train', 'test'"):
        data.mnist(split="validation")
    with pytest.raises(ArgumentError, match="split is 'all'; expected one of 'train', 'test'"):
        data.digits("all")


def test_digits_split_is_fixed_and_balanced() -> None:
    train, test = data.digits("train"), data.digits("test")
    assert (len(train), len(test)) == (1442, 355)
    for part in (train, test):
        images, labels = part.arrays
        assert images.dtype == np.float32 and labels.dtype == np.int64
        assert images.shape == (len(part), 1, 8, 8)
        assert images.min() == 0 and images.max() == 1
        np.testing.assert_array_equal(images * 16, np.rint(images * 16))
    counts = np.bincount(test.arrays[1], minlength=10)
    totals = counts + np.bincount(train.arrays[1], minlength=10)
    np.testing.assert_array_equal(counts, totals // 5)
    digest = hashlib.sha256(b"".join(part.arrays[0].tobytes() for part in (train, test))).hexdigest()
    assert digest == "45e203c01b7922dcd40581fcbabbc727c2cce6ce9b11625c3dd144c5a93d0688"


def test_digits_are_those_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    expected = sklearn.load_digits()
    images, labels = standard._packaged("images.idx.gz"), standard._packaged("labels.idx.gz")
    np.testing.assert_array_equal(images, expected.images)
    np.testing.assert_array_equal(labels, expected.target)
    test = [index for label in range(10) for index in np.flatnonzero(labels == label).tolist()[4::5]]
    np.testing.assert_array_equal(data.digits("test").arrays[1], expected.target[sorted(test)])
    np.testing.assert_array_equal(data.digits("test").arrays[0][:, 0] * 16, expected.images[sorted(test)])


def test_digits_take_little_room_in_the_package() -> None:
    folder = Path(standard.__file__).parent / "optdigits"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 100_000
    assert "CC BY 4.0" in (folder / "README.md").read_text()
