"""Transforms of images, applied to whole batches of NumPy arrays [N, C, H, W] (or [N, H, W]).

In: a batch, and for random transforms the random numbers of its samples. Out: the transformed batch; the
input is never changed. Called by `DataLoader`, or by hand: `Resize(28)(images)`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from thalweg.data.sampling import SampleRandom
from thalweg.errors import ArgumentError, DTypeError, ShapeError

__all__ = [
    "Compose",
    "Normalize",
    "RandomHorizontalFlip",
    "RandomShift",
    "Resize",
    "ToFloat",
    "Transform",
    "apply_transform",
]

Array = NDArray[Any]


class Transform(ABC):
    """Base of transforms that may need random numbers; one that needs none can be any function of a batch.

    A subclass writes `apply(images, random)`, where `random` is the `SampleRandom` of the batch. Drawing from
    it only keeps results independent of batch size, prefetching and resuming.
    """

    @abstractmethod
    def apply(self, images: Array, random: SampleRandom) -> Array:
        """The transformed batch, with as many samples as `images`."""

    def __call__(self, images: Array, random: SampleRandom | None = None) -> Array:
        """Transform a batch; random transforms need `random=SampleRandom(seed, epoch, indices)`."""
        return self.apply(images, _NO_RANDOM if random is None else random)


class _NoRandom(SampleRandom):
    """Stands for the random numbers that were not given: drawing from it is the error."""

    def __init__(self) -> None:
        super().__init__(0, 0, [])

    def bits(self, count: int = 1) -> NDArray[np.uint64]:
        raise ArgumentError(
            "a random transform was called without random numbers; write "
            "transform(images, SampleRandom(seed, epoch, range(len(images)))), or give it to DataLoader"
        )


_NO_RANDOM = _NoRandom()


def apply_transform(transform: Callable[..., Array], images: Array, random: SampleRandom) -> Array:
    """Apply a `Transform`, or any function of a batch, and check that no sample was lost or added."""
    result = transform.apply(images, random) if isinstance(transform, Transform) else transform(images)
    if np.shape(result)[:1] != np.shape(images)[:1]:
        raise ShapeError(
            f"transform {transform!r} turned a batch of shape {np.shape(images)} into shape "
            f"{np.shape(result)}; transforms are given whole batches [N, C, H, W] and must keep their length"
        )
    return result


class Compose(Transform):
    """One transform after the other; each may be a `Transform` or any function of a batch."""

    def __init__(self, transforms: Sequence[Callable[..., Array]]) -> None:
        for transform in transforms:
            if not callable(transform):
                raise ArgumentError(
                    f"Compose got {transform!r}; expected a list of transforms: Compose([a, b])"
                )
        self.transforms = tuple(transforms)

    def apply(self, images: Array, random: SampleRandom) -> Array:
        for transform in self.transforms:
            images = apply_transform(transform, images, random)
        return images

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.transforms))}])"


@dataclass(frozen=True)
class ToFloat(Transform):
    """Pixels to float32: unsigned integers are divided by the largest value of their dtype, truth values
    become 0 and 1, floating ones keep their values."""

    def apply(self, images: Array, random: SampleRandom) -> Array:
        if images.dtype == np.bool_ or np.issubdtype(images.dtype, np.floating):
            return images.astype(np.float32)
        if np.issubdtype(images.dtype, np.unsignedinteger):
            return (images / np.array(np.iinfo(images.dtype).max, np.float64)).astype(np.float32)
        raise DTypeError(
            f"ToFloat got {images.dtype} pixels, whose range is not known; expected unsigned integers, "
            "truth values or floating pixels: use a function such as "
            "`lambda images: (images / 255).astype('float32')`"
        )


@dataclass(frozen=True)
class Normalize(Transform):
    """`(images - mean) / std`, each one number or one per channel (axis 1), as in torchvision."""

    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = np.asarray(getattr(self, name))
            if values.ndim > 1 or values.dtype.kind not in "iuf":
                raise ArgumentError(
                    f"Normalize: {name} is {getattr(self, name)!r}; expected a number or one per channel"
                )
        if np.any(np.asarray(self.std) <= 0):
            raise ArgumentError(f"Normalize: std is {self.std!r}; expected numbers above 0")

    def apply(self, images: Array, random: SampleRandom) -> Array:
        if not np.issubdtype(images.dtype, np.floating):
            raise DTypeError(
                f"Normalize got {images.dtype} images; expected floating ones: put ToFloat() before it"
            )
        result: Array = images - self._per_channel("mean", images)
        result /= self._per_channel("std", images)
        return result

    def _per_channel(self, name: str, images: Array) -> Array:
        values = np.asarray(getattr(self, name), dtype=images.dtype)
        if values.ndim == 0:
            return values
        if images.ndim < 2 or len(values) not in (1, images.shape[1]):
            raise ShapeError(
                f"Normalize has {len(values)} values of {name}, but the images of shape {images.shape} "
                "need one, or one per channel (axis 1)"
            )
        return values.reshape(-1, *[1] * (images.ndim - 2))


@dataclass(frozen=True)
class RandomHorizontalFlip(Transform):
    """Mirror each image left to right with the given probability."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ArgumentError(f"RandomHorizontalFlip: probability is {self.probability!r}; expected 0 to 1")

    def apply(self, images: Array, random: SampleRandom) -> Array:
        _check_images("RandomHorizontalFlip", images)
        chosen = random.uniform()[:, 0] < self.probability
        result = images.copy()
        result[chosen] = images[chosen][..., ::-1]
        return result


@dataclass(frozen=True)
class RandomShift(Transform):
    """Shift each image by whole pixels, up to `pixels` in each direction; what comes in has the value `fill`.

    Put it before `Normalize`, where the background is still 0.
    """

    pixels: int
    fill: float = 0

    def __post_init__(self) -> None:
        if not isinstance(self.pixels, int | np.integer) or self.pixels < 0:
            raise ArgumentError(
                f"RandomShift: pixels is {self.pixels!r}; expected a whole number of at least 0"
            )

    def apply(self, images: Array, random: SampleRandom) -> Array:
        _check_images("RandomShift", images)
        pixels = self.pixels
        count, height, width = len(images), *images.shape[-2:]
        planes = images.reshape(count, math.prod(images.shape[1:-2]), height, width)
        padded = np.full(
            (*planes.shape[:2], height + 2 * pixels, width + 2 * pixels), self.fill, images.dtype
        )
        padded[:, :, pixels : pixels + height, pixels : pixels + width] = planes
        # All windows of each padded image, as a view [N, planes, rows, columns, height, width]; then one per
        # sample.
        spans = 2 * pixels + 1
        windows = as_strided(
            padded,
            (count, planes.shape[1], spans, spans, height, width),
            (*padded.strides, *padded.strides[2:]),
            writeable=False,
        )
        start = random.integers(0, spans, 2)
        shifted: Array = windows[np.arange(count), :, start[:, 0], start[:, 1]]
        return shifted.reshape(images.shape)


@dataclass(frozen=True)
class Resize(Transform):
    """Scale images to `size` (one number for both, or height and width); the last two axes are the image.

    `"bilinear"` interpolates between pixel centres (PyTorch's `align_corners=False`); when an axis shrinks,
    the triangle is widened so that every pixel counts (`antialias=True` there, and what Pillow does).
    `"nearest"` takes the pixel whose area holds the new centre (PyTorch's `"nearest-exact"`). Floating images
    keep their dtype; integer ones are computed in float32 and rounded. The bits are the same on every
    machine: sums have a fixed order and no matrix product is involved.
    """

    size: int | tuple[int, int]
    mode: str = "bilinear"

    def __post_init__(self) -> None:
        height_and_width(self.size)
        if self.mode not in ("bilinear", "nearest"):
            raise ArgumentError(f"Resize: mode is {self.mode!r}; expected 'bilinear' or 'nearest'")

    def apply(self, images: Array, random: SampleRandom) -> Array:
        _check_images("Resize", images)
        height, width = height_and_width(self.size)
        if self.mode == "nearest":
            rows, columns = _nearest(images.shape[-2], height), _nearest(images.shape[-1], width)
            return images[..., rows[:, np.newaxis], columns]
        result = images if images.dtype == np.float64 else images.astype(np.float32)
        result = _interpolate(result, images.ndim - 2, height)
        result = _interpolate(result, images.ndim - 1, width)
        if np.issubdtype(images.dtype, np.integer):
            np.rint(result, out=result)
        return result.astype(images.dtype, copy=False)


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """A size in pixels, given as one number for both or as a pair, as `(height, width)`."""
    sizes = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sizes) != 2 or not all(isinstance(number, int | np.integer) and number > 0 for number in sizes):
        raise ArgumentError(f"size is {size!r}; expected a number of pixels, or (height, width)")
    return int(sizes[0]), int(sizes[1])


def _check_images(name: str, images: Array) -> None:
    if images.ndim < 3:
        raise ShapeError(
            f"{name} got shape {images.shape}; expected a batch of images [N, C, H, W] or [N, H, W]; "
            "for a single image write images[numpy.newaxis]"
        )
    if images.shape[-1] == 0 or images.shape[-2] == 0:
        raise ShapeError(f"{name} got images without pixels, shape {images.shape}")


def _nearest(old: int, new: int) -> NDArray[np.int64]:
    return (2 * np.arange(new, dtype=np.int64) + 1) * old // (2 * new)


def _interpolate(images: Array, axis: int, new: int) -> Array:
    old = images.shape[axis]
    if old == new:
        return images
    shape = [1] * images.ndim
    shape[axis] = new
    positions, weights = _triangle(old, new)
    result: Array | None = None
    for position, weight in zip(positions, weights, strict=True):
        term = np.take(images, position, axis=axis)
        term *= weight.astype(images.dtype).reshape(shape)
        if result is None:
            result = term
        else:
            result += term
    assert result is not None  # there are at least two terms
    return result


@lru_cache(maxsize=64)
def _triangle(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which old pixels [terms, new], with which weights, make each new pixel of one axis."""
    scale = old / new
    reach = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    first = np.maximum(np.floor(centres - reach + 0.5), 0).astype(np.int64)
    positions = first + np.arange(math.ceil(reach) * 2 + 1)[:, np.newaxis]
    weights = np.maximum(1 - np.abs(positions + 0.5 - centres) / reach, 0) * (positions < old)
    used = np.any(weights > 0, axis=1)
    positions, weights = np.minimum(positions[used], old - 1), weights[used]
    return positions, weights / weights.sum(axis=0)
