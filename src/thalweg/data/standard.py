"""The standard data sets: MNIST (downloaded once) and the UCI optical digits (inside the package).

In: which split, and for MNIST where the files lie or may be put. Out: an `ArrayDataset` of float32 images [N,
1, H, W] in [0, 1] and int64 labels [N]. Called by training scripts and the command line.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from thalweg.data.dataset import ArrayDataset
from thalweg.data.idx import idx_digest, parse_idx, read_idx
from thalweg.errors import ArgumentError, DataError

__all__ = ["MNIST_MIRRORS", "digits", "mnist"]

Array = NDArray[Any]
Split = Literal["train", "test"]
Path_ = str | os.PathLike[str]

MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
    "https://yann.lecun.com/exdb/mnist",
)


@dataclass(frozen=True)
class _File:
    """One published file: its name, and the SHA-256 and size in bytes of its unpacked content."""

    name: str
    sha256: str
    size: int


_MNIST: dict[str, tuple[_File, _File]] = {
    "train": (
        _File(
            "train-images-idx3-ubyte",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            47040016,
        ),
        _File(
            "train-labels-idx1-ubyte",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            60008,
        ),
    ),
    "test": (
        _File(
            "t10k-images-idx3-ubyte",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            7840016,
        ),
        _File(
            "t10k-labels-idx1-ubyte",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            10008,
        ),
    ),
}


def mnist(
    directory: Path_ | None = None,
    split: Split = "train",
    download: bool = True,
    progress: bool = True,
    *,
    mirrors: Sequence[str] = MNIST_MIRRORS,
    timeout: float = 10.0,
) -> ArrayDataset:
    """MNIST (Y. LeCun, C. Cortes, C. Burges): 60,000 training and 10,000 test images of handwritten digits.

    Returns images float32 [N, 1, 28, 28], raw pixel / 255, so 0 is the background and 1 full ink, and labels
    int64 [N] in 0..9, in the published order. To normalise, use `Normalize(0.1307, 0.3081)` as a transform.

    The idx files, plain or gzip-compressed, named `train-images-idx3-ubyte` or `train-images.idx3-ubyte` and
    so on, are looked for in `directory`, in its sub-folder `MNIST/raw`, and in the cache; else they are
    downloaded, to `directory` if given and to the cache if not. Every file is checked by its SHA-256,
    wherever it comes from.

    `download=False` never touches the network. `timeout` (seconds) is how long to wait for each mirror's
    answer. Raises `DataError` for a file that is not MNIST's, or when a file can neither be found nor
    downloaded.
    """
    _check_split(split, _MNIST)
    cache = _cache()
    places = [cache] if directory is None else [Path(directory), Path(directory, "MNIST", "raw"), cache]
    arrays = []
    for file in _MNIST[split]:
        array = _find(file, places, cache, replaceable=download)
        if array is None:
            if not download:
                raise DataError(_not_found(file, places, "downloading was not allowed"))
            array = _fetch(file, places, mirrors, progress, timeout)
        arrays.append(array)
    images, labels = arrays
    return ArrayDataset(_scaled(images, 255), labels.astype(np.int64))


def digits(split: Split = "train") -> ArrayDataset:
    """The UCI optical digits (E. Alpaydin, C. Kaynak; CC BY 4.0): 1,797 images of 8 x 8 pixels, inside the
    package.

    Returns images float32 [N, 1, 8, 8], raw value (0..16) / 16, and labels int64 [N] in 0..9. The images are
    those that scikit-learn ships as `load_digits`: the test part of the UCI set.

    The split is fixed and balanced: in the file's order, every fifth image of each class (its 5th, 10th,
    15th, ...) is a test image: 1,442 training and 355 test images, both in the file's order. Writers appear
    in both.

    For a network that expects 28 x 28 images, use the transform `Resize(28)`.
    """
    _check_split(split, ("train", "test"))
    images, labels = _packaged("images.idx.gz"), _packaged("labels.idx.gz")
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[4::5]] = True
    chosen = test if split == "test" else ~test
    return ArrayDataset(_scaled(images[chosen], 16), labels[chosen].astype(np.int64))


def _check_split(split: str, accepted: Any) -> None:
    if split not in accepted:
        raise ArgumentError(f"split is {split!r}; expected one of {', '.join(map(repr, accepted))}")


def _scaled(images: Array, maximum: int) -> Array:
    return images[:, np.newaxis].astype(np.float32) / np.float32(maximum)


def _cache() -> Path:
    from thalweg.config import settings

    return Path(settings.cache) / "mnist"


def _find(file: _File, places: Sequence[Path], cache: Path, replaceable: bool) -> Array | None:
    """The content of `file` from the first place that has it; a bad copy in the cache counts as none."""
    for place in places:
        for name in (file.name, file.name.replace("-idx", ".idx")):
            for path in (place / name, place / f"{name}.gz"):
                if not path.is_file():
                    continue
                try:
                    return _checked(path, file)
                except DataError:
                    if place != cache or not replaceable:
                        raise
                    path.unlink(missing_ok=True)
    return None


def _checked(path: Path, file: _File) -> Array:
    array = read_idx(path)
    digest = idx_digest(array)
    if digest != file.sha256:
        raise DataError(
            f"{os.fspath(path)!r} is a valid idx file, shape {array.shape} of {array.dtype}, but not the "
            f"published {file.name}: SHA-256 of its content is {digest}, expected {file.sha256}; "
            "replace it, or read a data set of your own with thalweg.data.read_idx and ArrayDataset"
        )
    return array


def _fetch(
    file: _File, places: Sequence[Path], mirrors: Sequence[str], progress: bool, timeout: float
) -> Array:
    from thalweg.data.download import download_unpacked

    target = places[0] / file.name
    try:
        download_unpacked(
            target, mirrors, sha256=file.sha256, size=file.size, progress=progress, timeout=timeout
        )
    except DataError as error:
        raise DataError(_not_found(file, places, str(error))) from error
    return _checked(target, file)


def _not_found(file: _File, places: Sequence[Path], problem: str) -> str:
    looked = ", ".join(repr(os.fspath(place)) for place in places)
    return (
        f"the MNIST file {file.name} (or {file.name}.gz) is not in {looked}, and {problem}\n"
        "What you can do: put the four MNIST files into a directory and pass it (data.mnist(directory), or "
        "--data-dir on the command line), or use the digits in the package (data.digits(), --data digits)."
    )


def _packaged(name: str) -> Array:
    from importlib import resources

    content = (resources.files("thalweg.data") / "optdigits" / name).read_bytes()
    return parse_idx(BytesIO(content), len(content), name)
