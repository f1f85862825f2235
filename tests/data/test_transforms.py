"""Transforms: the right pixels, per sample, for every dtype and layout."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from thalweg.data import (
    Compose,
    Normalize,
    RandomHorizontalFlip,
    RandomShift,
    Resize,
    SampleRandom,
    ToFloat,
    Transform,
    digits,
)
from thalweg.errors import ArgumentError, DTypeError, ShapeError

generator = np.random.default_rng(0)
IMAGES = generator.random((50, 3, 6, 5), dtype=np.float32)


def draws(count: int = 50) -> SampleRandom:
    return SampleRandom(1, 2, np.arange(count))


def shifted(image: np.ndarray[Any, Any], down: int, right: int, fill: float) -> np.ndarray[Any, Any]:
    """`image` [C, H, W] moved pixel by pixel."""
    result = np.full_like(image, fill)
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            if 0 <= row - down < image.shape[1] and 0 <= column - right < image.shape[2]:
                result[:, row, column] = image[:, row - down, column - right]
    return result


@pytest.mark.parametrize("pixels", [1, 2, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.float64])
def test_random_shift_moves_whole_images(pixels: int, dtype: Any) -> None:
    images = (IMAGES * 200 + 20).astype(dtype)
    before = images.copy()
    result = RandomShift(pixels, fill=9)(images, draws())
    np.testing.assert_array_equal(images, before)
    assert result.dtype == dtype and result.shape == images.shape and result.flags.c_contiguous
    found = set()
    for image, moved in zip(images, result, strict=True):
        fits = [
            (down, right)
            for down in range(-pixels, pixels + 1)
            for right in range(-pixels, pixels + 1)
            if np.array_equal(moved, shifted(image, down, right, 9))
        ]
        assert fits  # several only where nothing of the image is left
        found.add(fits[0])
    if pixels == 1:
        assert len(found) == 9  # every shift occurs among 50 images


def test_random_shift_of_other_layouts() -> None:
    flat = IMAGES[:, 0]
    np.testing.assert_array_equal(RandomShift(2)(flat, draws()), RandomShift(2)(flat[:, None], draws())[:, 0])
    video = IMAGES.reshape(50, 1, 3, 6, 5)
    np.testing.assert_array_equal(RandomShift(2)(video, draws())[:, 0], RandomShift(2)(IMAGES, draws()))
    np.testing.assert_array_equal(RandomShift(0)(IMAGES, draws()), IMAGES)
    assert RandomShift(2)(IMAGES[:0], draws(0)).shape == (0, 3, 6, 5)
    reversed_view = IMAGES[:, :, ::-1]
    np.testing.assert_array_equal(
        RandomShift(2)(reversed_view, draws()), RandomShift(2)(reversed_view.copy(), draws())
    )


def test_random_shift_is_fast() -> None:
    images = np.zeros((64, 1, 28, 28), np.float32)
    transform, seconds = RandomShift(2), []
    for _ in range(200):
        start = time.perf_counter()
        transform(images, SampleRandom(0, 0, np.arange(64)))
        seconds.append(time.perf_counter() - start)
    assert (
        min(seconds) < 0.6e-3
    )  # 0.06 to 0.2 ms where it was written; a Python step per pixel row takes 2 ms


def test_random_horizontal_flip() -> None:
    result = RandomHorizontalFlip()(IMAGES, draws())
    flipped = [np.array_equal(after, before[..., ::-1]) for after, before in zip(result, IMAGES, strict=True)]
    kept = [np.array_equal(after, before) for after, before in zip(result, IMAGES, strict=True)]
    assert all(one != other for one, other in zip(flipped, kept, strict=True))
    assert 10 < sum(flipped) < 40
    np.testing.assert_array_equal(RandomHorizontalFlip(1.0)(IMAGES, draws()), IMAGES[..., ::-1])
    np.testing.assert_array_equal(RandomHorizontalFlip(0.0)(IMAGES, draws()), IMAGES)


@pytest.mark.parametrize("transform", [RandomShift(2), RandomHorizontalFlip()], ids=str)
def test_random_transforms_depend_on_the_sample_only(transform: Transform) -> None:
    together = transform(IMAGES, draws())
    indices = np.array([17, 3, 49])
    apart = transform(IMAGES[indices], SampleRandom(1, 2, indices))
    np.testing.assert_array_equal(together[indices], apart)
    assert not np.array_equal(transform(IMAGES, SampleRandom(1, 3, np.arange(50))), together)


@pytest.mark.parametrize(
    "transform", [RandomShift(2), RandomHorizontalFlip(), Compose([RandomShift(1)])], ids=str
)
def test_random_transforms_need_random_numbers(transform: Transform) -> None:
    with pytest.raises(ArgumentError, match=r"SampleRandom\(seed, epoch, range\(len\(images\)\)\)"):
        transform(IMAGES)


SIZES = [
    ((8, 8), (28, 28)),
    ((6, 5), (9, 4)),
    ((28, 28), (8, 8)),
    ((7, 13), (3, 40)),
    ((1, 1), (5, 5)),
    ((5, 5), (1, 1)),
]


@pytest.mark.parametrize(("old", "new"), SIZES, ids=str)
def test_resize_agrees_with_torch(old: tuple[int, int], new: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    images = generator.random((2, 3, *old))
    for mode, options in (("bilinear", {"antialias": True}), ("nearest-exact", {})):
        expected = torch.nn.functional.interpolate(torch.tensor(images), new, mode=mode, **options).numpy()
        found = Resize(new, mode.removesuffix("-exact"))(images)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    single = Resize(new)(images.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, Resize(new)(images), rtol=0, atol=1e-6)


def test_resize_is_exact_where_it_can_be() -> None:
    ramp = np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4)
    np.testing.assert_array_equal(Resize((1, 8))(ramp)[0, 0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    np.testing.assert_array_equal(Resize((1, 8), "nearest")(ramp)[0, 0, 0], [0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(
        Resize((3, 2))(np.ones((1, 7, 9), np.float32)), np.ones((1, 3, 2), np.float32)
    )
    np.testing.assert_array_equal(Resize((6, 5))(IMAGES), IMAGES)


def test_resize_keeps_the_dtype() -> None:
    pixels = np.array([[[0, 255], [255, 0]]], np.uint8)
    assert Resize((1, 4))(pixels[:, :1]).tolist() == [[[0, 64, 191, 255]]]
    assert Resize(4)(pixels).dtype == np.uint8
    assert Resize(4)(pixels.astype(np.float16)).dtype == np.float16
    assert Resize(4, "nearest")(pixels).dtype == np.uint8


def test_digits_for_lenet() -> None:
    images = Resize(28)(digits("test").arrays[0])
    assert images.shape == (355, 1, 28, 28) and images.dtype == np.float32
    assert images.min() >= 0 and images.max() <= 1


def test_to_float() -> None:
    pixels = np.array([[[0, 51, 255]]], np.uint8)
    result = ToFloat()(pixels)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, np.float32([[[0, 0.2, 1]]]))
    assert ToFloat()(np.array([[65535, 0]], np.uint16)).tolist() == [[1, 0]]
    assert ToFloat()(np.array([[True, False]])).dtype == np.float32
    np.testing.assert_array_equal(ToFloat()(np.float64([[2.5, -1]])), np.float32([[2.5, -1]]))
    with pytest.raises(DTypeError, match="int64 pixels, whose range is not known"):
        ToFloat()(np.zeros((1, 2), np.int64))


def test_normalize() -> None:
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    before = IMAGES.copy()
    result = Normalize(mean, std)(IMAGES)
    np.testing.assert_array_equal(IMAGES, before)
    expected = np.stack([(IMAGES[:, c] - np.float32(mean[c])) / np.float32(std[c]) for c in range(3)], axis=1)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(
        Normalize(0.1307, 0.3081)(IMAGES), (IMAGES - np.float32(0.1307)) / np.float32(0.3081)
    )
    assert Normalize(0, 1)(IMAGES.astype(np.float16)).dtype == np.float16
    with pytest.raises(DTypeError, match=r"uint8 images; expected floating ones: put ToFloat\(\) before"):
        Normalize(0, 1)(np.zeros((1, 1, 2, 2), np.uint8))
    with pytest.raises(ShapeError, match=r"has 2 values of mean, but the images of shape \(50, 3, 6, 5\)"):
        Normalize([0, 0], 1)(IMAGES)
    with pytest.raises(ArgumentError, match="std is 0; expected numbers above 0"):
        Normalize(0, 0)
    with pytest.raises(ArgumentError, match="mean is '0'"):
        Normalize("0", 1)


def test_compose() -> None:
    transform = Compose(
        [RandomShift(1), lambda images: images * 2, RandomHorizontalFlip(), Normalize(0.5, 0.5)]
    )
    random = draws()
    expected = RandomShift(1)(IMAGES, random) * 2
    expected = Normalize(0.5, 0.5)(RandomHorizontalFlip()(expected, random))
    np.testing.assert_array_equal(transform(IMAGES, draws()), expected)
    assert repr(Compose([RandomShift(1), ToFloat()])) == "Compose([RandomShift(pixels=1, fill=0), ToFloat()])"
    with pytest.raises(ArgumentError, match=r"Compose got 3; expected a list of transforms"):
        Compose([3])
    with pytest.raises(
        ShapeError, match=r"shape \(50, 3, 6, 5\) into shape \(3, 50, 6, 5\); .* whole batches"
    ):
        Compose([lambda images: images.swapaxes(0, 1)])(IMAGES)


def test_two_draws_of_one_sample_differ() -> None:
    """The second random transform of a chain does not repeat the first one's numbers."""
    marked = np.zeros((200, 1, 9, 9), np.float32)
    marked[:, :, 4, 4] = 1
    twice = Compose([RandomShift(2), RandomShift(2)])(marked, draws(200))
    places = np.argwhere(twice[:, 0])[:, 1:] - 4
    assert (places % 2 != 0).any()  # equal draws would double every shift


@pytest.mark.parametrize("transform", [Resize(4), RandomShift(1), RandomHorizontalFlip()], ids=str)
def test_a_single_image_is_refused(transform: Transform) -> None:
    with pytest.raises(ShapeError, match=r"got shape \(28, 28\); expected a batch of images.*images\[numpy"):
        transform(np.zeros((28, 28)), draws(28))


def test_arguments() -> None:
    for size in (0, -3, (3,), (3, 0), 2.5):
        with pytest.raises(
            ArgumentError, match=r"size is .*; expected a number of pixels, or \(height, width\)"
        ):
            Resize(size)
    with pytest.raises(ArgumentError, match="mode is 'cubic'; expected 'bilinear' or 'nearest'"):
        Resize(3, "cubic")
    for pixels in (-1, 1.5):
        with pytest.raises(ArgumentError, match="expected a whole number of at least 0"):
            RandomShift(pixels)
    with pytest.raises(ArgumentError, match=r"probability is 1\.5"):
        RandomHorizontalFlip(1.5)
    with pytest.raises(ShapeError, match="images without pixels"):
        Resize(3)(np.zeros((2, 1, 0, 4)))
