"""Runs on disk: models by name, directories for new runs, and the checkpoints of finished ones.

In: names and paths from the command line. Out: models, directories, loaded checkpoints. Called by the
commands.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from thalweg.cli.arguments import MODELS, TEXT_MODELS
from thalweg.errors import DataError
from thalweg.nn.module import Module
from thalweg.train import Checkpoint, read_checkpoint

CHECKPOINT = "checkpoint.safetensors"
CURVES = "curves.png"
RUNS = Path("runs")


class _Scores(Module):
    """The scores alone of a model that gives more."""

    def __init__(self, model: Module) -> None:
        self.model = model

    def forward(self, images: Any) -> Any:
        return self.model(images).logits


def make_model(name: str) -> Module:
    """A new model of the command line."""
    from thalweg import models

    makers: dict[str, Any] = {
        "lenet": models.LeNet,
        "mlp": models.MLP,
        "resnet": models.small_resnet,
        "vit": lambda: _Scores(models.small_vit()),
    }
    made: Module = makers[name]()
    return made


def new_directory(out: str | None, model: str) -> Path:
    """The directory of a new run: `out`, or the next free runs/<model>-<n>. Raises `DataError`."""
    if out is not None:
        directory = Path(out)
        if (directory / CHECKPOINT).exists():
            raise DataError(
                f"{os.fspath(directory)!r} already holds a checkpoint; choose another --out, or continue "
                f"that run with --resume {directory / CHECKPOINT}"
            )
        return usable(directory)
    number = 1
    while (RUNS / f"{model}-{number}").exists():
        number += 1
    return usable(RUNS / f"{model}-{number}")


def usable(directory: Path) -> Path:
    """The directory, made if need be, after a test that files can be written to it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"test")
    except OSError as error:
        raise DataError(
            f"cannot write to the directory {os.fspath(directory)!r}: {error.strerror}; choose another one "
            "with --out"
        ) from error
    return directory


def checkpoint_path(given: str | None) -> Path:
    """The checkpoint that is meant: a file, a run's directory, or (None) the last one written in ./runs."""
    if given is None:
        found = sorted(RUNS.glob(f"*/{CHECKPOINT}"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        if not found:
            raise DataError(
                f"there is no checkpoint in {os.fspath(RUNS.absolute())!r}; train one first (thalweg train "
                "lenet), or name one"
            )
        return found[-1]
    path = Path(given)
    if path.is_dir():
        path = path / CHECKPOINT
    if not path.exists():
        raise DataError(f"there is no checkpoint {os.fspath(path)!r}")
    return path


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that the command line has written. Raises `DataError` for any other file."""
    found = read_checkpoint(path)
    known = {**dict.fromkeys(MODELS, ("mnist", "digits")), **dict.fromkeys(TEXT_MODELS, ("text",))}
    if found.metadata.get("data") not in known.get(found.metadata.get("model", ""), ()):
        raise DataError(
            f"{os.fspath(path)!r} was not written by `thalweg train`: it does not name its model and data; "
            "load it in Python with thalweg.train.load_checkpoint(path, model)"
        )
    return found


def load_model(found: Checkpoint) -> Module:
    """The trained model of images of a checkpoint, in eval mode. Raises `DataError` for one of text."""
    if found.metadata["model"] in TEXT_MODELS:
        raise DataError(
            f"{found.path!r} is a {found.metadata['model']} trained on text, which knows no images; `thalweg "
            "generate` writes with it, and its validation loss is in its curves"
        )
    model = make_model(found.metadata["model"])
    found.restore(model)
    return model.eval()
