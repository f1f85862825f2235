"""Images from files: one, or a folder with a sub-folder per class. Needs Pillow (the extra `app`).

In: paths. Out: float32 arrays [C, H, W] in [0, 1], and labels. Called by `DataLoader` and the command line's
`predict`.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from thalweg.data.transforms import height_and_width
from thalweg.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageFolder", "read_image"]

_SUFFIXES = (".png", ".jpg", ".jpeg")
_CHANNELS = {"L": 1, "RGB": 3}
Size = int | tuple[int, int]


def read_image(
    path: str | os.PathLike[str], mode: str = "RGB", size: Size | None = None
) -> NDArray[np.float32]:
    """Read a PNG or JPEG file as float32 [C, H, W] in [0, 1].

    `mode` is `"RGB"` (3 channels) or `"L"` (1 channel, grey by the ITU-R 601 luma formula). `size` scales to
    that number of rows and columns (or `(height, width)`) with Pillow's bilinear filter. 16-bit grey images
    keep their precision unless they are scaled. Transparent pixels are shown on white, as most viewers do.

    Raises `DataError`, which names the file, if it cannot be read; `ImportError` without Pillow.
    """
    height_width = _check_options(mode, size)
    pillow = _pillow()
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:
            # Suspiciously large pictures ("decompression bombs") are refused instead of warned about.
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(file) as image:
                image.load()
                pixels = _pixels(image, mode, height_width)
    except (
        Exception
    ) as error:  # the decoders raise many classes: OSError, SyntaxError, ValueError, zlib.error
        reason = (
            ("it holds no picture" if type(error).__name__ == "UnidentifiedImageError" else None)
            or (error.strerror if isinstance(error, OSError) else None)
            or str(error)
            or type(error).__name__
        )
        raise DataError(
            f"cannot read the image {os.fspath(path)!r}: {reason}; expected a complete PNG or JPEG file"
        ) from error
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy()


class ImageFolder:
    """Labelled images in a directory: `directory/<class>/.../<image>.png`, one sub-folder per class.

    Sample i is `(image float32 [C, H, W] in [0, 1], label)`, read when asked for by `read_image(path, mode,
    size)`. Classes are the sub-folders' names in sorted order and labels their numbers; images are sorted by
    path (by code point, so on every machine alike) and found in deeper folders too. Files that are not
    `.png`, `.jpg` or `.jpeg` and hidden ones are passed over. Batches need images of one size: give `size`,
    unless all have the same.

    `classes` are the names, `files` the pairs (path, label). Raises `DataError` when there is nothing to
    read.
    """

    def __init__(
        self, directory: str | os.PathLike[str], mode: str = "RGB", size: Size | None = None
    ) -> None:
        _check_options(mode, size)
        self.directory = Path(directory)
        self.mode = mode
        self.size = size
        try:
            folders = [entry for entry in self.directory.iterdir() if entry.is_dir() and not _hidden(entry)]
        except OSError as error:
            raise DataError(
                f"cannot read the image folder {os.fspath(directory)!r}: {error.strerror}"
            ) from error
        self.classes: list[str] = sorted(folder.name for folder in folders)
        if not self.classes:
            raise DataError(
                f"{os.fspath(directory)!r} has no sub-folders; expected one per class, with its images: "
                "directory/cat/1.png, directory/dog/1.png"
            )
        self.files: list[tuple[Path, int]] = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in _images(self.directory / name)
        ]
        missing = sorted(set(range(len(self.classes))) - {label for _, label in self.files})
        if missing:
            raise DataError(
                f"the class folder {os.fspath(self.directory / self.classes[missing[0]])!r} has no image; "
                f"expected files ending in {', '.join(_SUFFIXES)}; add some or remove the folder"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], int]:
        path, label = self.files[index]
        return read_image(path, self.mode, self.size), label

    def __repr__(self) -> str:
        return f"ImageFolder({os.fspath(self.directory)!r}: {len(self)} images, {len(self.classes)} classes)"


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading PNG and JPEG needs Pillow: pip install 'thalweg[app]'") from error
    return Image


def _check_options(mode: str, size: Size | None) -> tuple[int, int] | None:
    if mode not in _CHANNELS:
        raise ArgumentError(f"mode is {mode!r}; expected 'RGB' (3 channels) or 'L' (1 channel, grey)")
    if size is None:
        return None
    return height_and_width(size)


def _pixels(image: Image.Image, mode: str, size: tuple[int, int] | None) -> NDArray[np.float32]:
    """float32 [H, W] or [H, W, C] in [0, 1]."""
    if image.mode.startswith("I;16"):  # `convert` would clip these to 255 instead of scaling them
        deep = np.asarray(image).astype(np.float32) / np.float32(65535)
        if size is None:
            return np.stack([deep] * _CHANNELS[mode], axis=-1)
        image = _from_array(np.rint(deep * 255).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels have {image.mode!r} format, whose range is not known")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = _pillow().new("RGBA", image.size, "white")
        image = _pillow().alpha_composite(white, image)
    image = image.convert(mode)
    if size is not None:
        image = image.resize((size[1], size[0]), _pillow().Resampling.BILINEAR)
    return np.asarray(image).astype(np.float32) / np.float32(255)


def _from_array(pixels: NDArray[np.uint8]) -> Image.Image:
    image: Image.Image = _pillow().fromarray(pixels)
    return image


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _images(folder: Path) -> list[Path]:
    found = []
    for directory, folders, files in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(directory, name) for name in files if name.lower().endswith(_SUFFIXES) and name[0] != "."
        ]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())
