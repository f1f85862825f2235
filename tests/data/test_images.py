"""Images from files and folders: right pixels, and clear words for every broken file."""

from __future__ import annotations

import builtins
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thalweg.data import DataLoader, ImageFolder, read_image
from thalweg.errors import ArgumentError, DataError

Image = pytest.importorskip("PIL.Image")

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray[Any, Any], mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def test_png_is_read_exactly(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOURS)
    image = read_image(path)
    assert image.dtype == np.float32 and image.shape == (3, 5, 4) and image.flags.c_contiguous
    np.testing.assert_array_equal(image, COLOURS.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    grey = read_image(save(tmp_path / "g.png", COLOURS[..., 0]), mode="L")
    np.testing.assert_array_equal(grey, COLOURS[None, ..., 0].astype(np.float32) / np.float32(255))
    assert read_image(tmp_path / "g.png").shape == (3, 5, 4)
    luma = COLOURS @ [0.299, 0.587, 0.114] / 255
    np.testing.assert_allclose(read_image(path, "L")[0], luma, atol=1 / 255)


def test_jpeg_and_size(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 40 * 30).reshape(40, 30).astype(np.uint8)
    path = save(tmp_path / "a.jpg", smooth)
    np.testing.assert_allclose(read_image(path, "L")[0], smooth / 255, atol=0.05)
    assert read_image(path, "L", size=8).shape == (1, 8, 8)
    assert read_image(path, "RGB", size=(4, 12)).shape == (3, 4, 12)


def test_other_pixel_formats(tmp_path: Path) -> None:
    deep = np.array([[0, 257 * 10, 65535]], np.uint16)
    path = save(tmp_path / "deep.png", deep)
    np.testing.assert_allclose(read_image(path, "L"), deep[None] / 65535, rtol=1e-6)
    assert read_image(path, "RGB").shape == (3, 1, 3)
    np.testing.assert_allclose(read_image(path, "L", size=(1, 3)), deep[None] / 65535, atol=1 / 255)

    # Black strokes on a transparent ground, as drawing programs save them.
    drawing = np.zeros((1, 2, 4), np.uint8)
    drawing[0, 1, 3] = 255
    assert read_image(save(tmp_path / "alpha.png", drawing), "L").tolist() == [[[1, 0]]]

    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    palette.save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").tolist() == [[[1, 0]], [[0, 0]], [[0, 1]]]
    palette.save(tmp_path / "clear.png", transparency=1)
    assert read_image(tmp_path / "clear.png").tolist() == [[[1, 1]], [[0, 1]], [[0, 1]]]

    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    bits.save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png", "L").tolist() == [[[0, 1]]]


def broken_files() -> dict[str, bytes]:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        buffer, "PNG"
    )
    png = buffer.getvalue()
    jpeg = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(jpeg, "JPEG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    sized = bytearray(png)
    sized[16:24] = b"\x7f\xff\xff\xff" * 2  # hostile width and height
    return {
        "empty.png": b"",
        "text.png": b"this is not an image",
        "cut.png": png[: len(png) // 2],
        "head.png": png[:20],
        "flipped.png": bytes(flipped),
        "huge.png": bytes(sized),
        "cut.jpg": jpeg.getvalue()[:300],
    }


@pytest.mark.parametrize("name", broken_files())
def test_broken_images_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(broken_files()[name])
    with pytest.raises(
        DataError, match=rf"cannot read the image '.*{name}': .*; expected a complete PNG or JPEG"
    ):
        read_image(tmp_path / name)


def test_suspiciously_large_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", COLOURS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)  # 20 pixels would only be warned about
    with pytest.raises(DataError, match="decompression bomb"):
        read_image(path)


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.png': No such file or directory"):
        read_image(tmp_path / "nowhere.png")


def test_options(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="mode is 'CMYK'; expected 'RGB'"):
        read_image(tmp_path / "x.png", mode="CMYK")
    for size in (0, (3,), (3, -1)):
        with pytest.raises(ArgumentError, match="size is "):
            ImageFolder(tmp_path, size=size)


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("PIL"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'thalweg\[app\]'"):
        read_image(tmp_path / "a.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, name in enumerate(
        ["zebra/2.png", "zebra/10.PNG", "ant/deep/x.jpeg", "ant/b.jpg", "Bee/1.png"]
    ):
        save(tmp_path / name, np.full((6, 6, 3), index * 40, np.uint8))
    save(tmp_path / ".hidden" / "1.png", COLOURS)
    save(tmp_path / "ant" / ".thumbnail.png", COLOURS)
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    save(tmp_path / "stray.png", COLOURS)
    return tmp_path


def test_image_folder(folder: Path) -> None:
    dataset = ImageFolder(folder)
    assert dataset.classes == ["Bee", "ant", "zebra"]
    names = [(path.relative_to(folder).as_posix(), label) for path, label in dataset.files]
    assert names == [
        ("Bee/1.png", 0),
        ("ant/b.jpg", 1),
        ("ant/deep/x.jpeg", 1),
        ("zebra/10.PNG", 2),
        ("zebra/2.png", 2),
    ]
    assert len(dataset) == 5
    image, label = dataset[3]
    assert label == 2
    np.testing.assert_allclose(image, np.full((3, 6, 6), 40 / 255), rtol=1e-6)
    assert ImageFolder(folder, mode="L", size=3)[0][0].shape == (1, 3, 3)


def test_image_folder_in_a_loader(folder: Path) -> None:
    images, labels = next(iter(DataLoader(ImageFolder(folder, size=4), batch_size=5)))
    assert images.shape == (5, 3, 4, 4) and images.dtype == np.float32
    assert labels.tolist() == [0, 1, 1, 2, 2] and labels.dtype == np.int64
    save(folder / "ant" / "other.png", COLOURS)
    with pytest.raises(DataError, match="ImageFolder has size="):
        next(iter(DataLoader(ImageFolder(folder), batch_size=6)))
    (folder / "ant" / "b.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"ant/b\.jpg") as raised:
        list(DataLoader(ImageFolder(folder, size=4), batch_size=2))
    assert raised.value.__notes__ == ["while reading sample 1 of ImageFolder"]


def test_image_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no sub-folders; expected one per class"):
        ImageFolder(tmp_path)
    (tmp_path / "cat").mkdir()
    save(tmp_path / "dog" / "1.png", COLOURS)
    with pytest.raises(DataError, match=r"class folder '.*cat' has no image"):
        ImageFolder(tmp_path)
    with pytest.raises(DataError, match=r"cannot read the image folder '.*nowhere': No such file"):
        ImageFolder(tmp_path / "nowhere")
