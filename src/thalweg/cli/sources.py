"""The images that the command line trains and tests on: MNIST or the digits in the package, as LeNet takes
them.

In: the choice of the user. Out: training and test images [N, 1, 28, 28], normalised, and why these. Called by
`train` and `evaluate`; `predict` brings a picture into the same form.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.config import settings
from thalweg.data import ArrayDataset, Normalize, Resize, digits, mnist
from thalweg.errors import DataError

Array = NDArray[Any]

SIZE = 28
TIMEOUT = 2.0  # seconds to wait for a mirror's answer before `--data auto` takes the digits
# Mean and standard deviation of the training pixels, at 28 x 28.
STATISTICS = {"mnist": (0.1307, 0.3081), "digits": (0.3051, 0.3249)}


@dataclass(frozen=True)
class Source:
    """Two data sets and in words what they are."""

    name: str  # "mnist" or "digits"
    train: ArrayDataset
    test: ArrayDataset
    why: str

    def __str__(self) -> str:
        title = {"mnist": "MNIST", "digits": "the digits in the package, 8 x 8 pixels resized to 28 x 28"}
        counts = f"{len(self.train):,} training and {len(self.test):,} test images"
        return f"{title[self.name]}: {counts}{self.why}"


def normalised(images: Array, name: str) -> Array:
    """Images [N, 1, 28, 28] in [0, 1], ink bright, as the networks take them."""
    found: Array = Normalize(*STATISTICS[name])(images)
    return found


def background(name: str) -> float:
    """What a pixel without ink is after `normalised`."""
    return float(normalised(np.zeros((1, 1, 1, 1), np.float32), name)[0, 0, 0, 0])


def choose(choice: str, directory: str | None) -> Source:
    """The data for "mnist", "digits" or "auto". Raises `DataError` where "mnist" cannot be had."""
    if directory is not None and not os.path.isdir(directory):
        raise DataError(f"--data-dir {directory!r} is not a directory; it should hold the four MNIST files")
    if choice == "digits":
        return _digits("")
    if choice == "mnist":
        return _mnist(directory, {})
    try:
        return _mnist(directory, {"timeout": TIMEOUT})
    except DataError as error:
        return _digits(
            f"\n  because {_reason(error, directory)}\n"
            "  (--data mnist insists, --data-dir says where the files are, --data digits does not try)"
        )


def _reason(error: DataError, directory: str | None) -> str:
    """Why MNIST cannot be had, in one line."""
    first, *further = str(error).splitlines()
    tried = [line.strip() for line in further if line.startswith("  http")]
    if not tried:
        return first
    place = settings.cache / "mnist" if directory is None else directory
    more = f" (and {len(tried) - 1} more mirrors)" if len(tried) > 1 else ""
    return f"MNIST is not in '{place}' and could not be downloaded: {tried[0]}{more}"


def _mnist(directory: str | None, options: dict[str, Any]) -> Source:
    train, test = mnist(directory, "train", **options), mnist(directory, "test", **options)
    return Source("mnist", _prepared(train, "mnist"), _prepared(test, "mnist"), "")


def _digits(why: str) -> Source:
    train, test = digits("train"), digits("test")
    return Source("digits", _prepared(train, "digits"), _prepared(test, "digits"), why)


def _prepared(dataset: ArrayDataset, name: str) -> ArrayDataset:
    images, labels = dataset.arrays
    if images.shape[-1] != SIZE:
        images = Resize(SIZE)(images)
    return ArrayDataset(normalised(images, name), labels)


# ---- one picture -------------------------------------------------------------------------------------------


def prepare_picture(picture: Array, name: str) -> tuple[Array, list[str]]:
    """A grey picture [1, H, W] in [0, 1] in the form of the data set `name`, and what was done to it, in
    words.

    Dark ink on bright paper is inverted. A picture that does not have the data set's own size is cut to its
    ink and scaled as the data set's makers did: for MNIST into 20 x 20 of 28 x 28 pixels, for the digits to
    the full 8 x 8. Raises `DataError` for a picture without any ink.
    """
    ink, done = picture[0], []
    border = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
    if np.median(border) > 0.5:
        ink = 1 - ink
        done.append("dark on bright: inverted")
    strong = ink > 0.25 * ink.max()
    if not strong.any() or ink.max() - ink.min() < 0.1:
        raise DataError("the picture shows nothing: all its pixels have nearly the same brightness")
    own = SIZE if name == "mnist" else 8
    if ink.shape != (own, own):
        ink = _framed(ink, strong, name)
        done.append(f"cut to its ink and scaled to {own} x {own}")
    images = ink[np.newaxis, np.newaxis].astype(np.float32)
    if own != SIZE:
        images = Resize(SIZE)(Resize(own)(images))
    return normalised(images, name), done


def _framed(ink: Array, strong: Array, name: str) -> Array:
    """The part with ink, in a square, scaled and with the data set's margin."""
    rows, columns = np.flatnonzero(strong.any(axis=1)), np.flatnonzero(strong.any(axis=0))
    part = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(part.shape)
    square = np.zeros((side, side), np.float32)
    top, left = (side - part.shape[0]) // 2, (side - part.shape[1]) // 2
    square[top : top + part.shape[0], left : left + part.shape[1]] = part
    if name != "mnist":
        return square
    small = Resize(20)(square[np.newaxis, np.newaxis])[0, 0]
    weights = small / small.sum()
    places = np.arange(20) + 0.5
    # MNIST's makers put the centre of mass into the centre of the picture.
    top = int(np.clip(round(SIZE / 2 - (weights.sum(axis=1) * places).sum()), 0, SIZE - 20))
    left = int(np.clip(round(SIZE / 2 - (weights.sum(axis=0) * places).sum()), 0, SIZE - 20))
    framed = np.zeros((SIZE, SIZE), np.float32)
    framed[top : top + 20, left : left + 20] = small
    return framed
