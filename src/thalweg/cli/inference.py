"""`thalweg evaluate` and `thalweg predict`: what a trained network gives."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from thalweg import ops, train
from thalweg.cli import runs
from thalweg.cli.sources import choose, prepare_picture
from thalweg.config import settings
from thalweg.data import DataLoader, read_image
from thalweg.errors import DataError
from thalweg.nn import functional
from thalweg.tensor import compile


def evaluate(options: argparse.Namespace) -> int:
    """The command: accuracy and loss on the test images."""
    path = runs.checkpoint_path(options.checkpoint)
    saved = runs.open_checkpoint(path)
    model = runs.load_model(saved)
    settings.set_threads(options.threads)
    trained_on = saved.metadata["data"]
    source = choose(options.data or trained_on, options.data_dir)
    after = f"after {len(saved.history.epochs)} epochs on {trained_on}"
    print(f"checkpoint: {path} ({saved.metadata['model']} {after})")
    print(f"data: {source}")
    loader = DataLoader(source.test, options.batch_size or min(1000, len(source.test)))
    found = train.evaluate(
        model,
        loader,
        loss=functional.cross_entropy,
        metrics=[train.accuracy],
        progress=True,
        backend=options.backend,
    )
    right = round(found["accuracy"] * len(source.test))
    print(
        f"test accuracy {100 * found['accuracy']:.2f} % ({right:,} of {len(source.test):,} images), "
        f"loss {found['loss']:.4f}"
    )
    return 0


def predict(options: argparse.Namespace) -> int:
    """The command: class and probabilities of pictures."""
    first = Path(options.paths[0])
    named = first.suffix == ".safetensors" or (first / runs.CHECKPOINT).exists()
    files = options.paths[1:] if named else options.paths
    if not files:
        raise DataError("name at least one picture: thalweg predict [CHECKPOINT] FILE.png")
    path = runs.checkpoint_path(options.paths[0] if named else None)
    saved = runs.open_checkpoint(path)
    model = runs.load_model(saved)
    settings.set_threads(options.threads)
    print(f"checkpoint: {path} ({saved.metadata['model']} trained on {saved.metadata['data']})")
    scores = compile(lambda images: ops.softmax(model(images), -1), backend=options.backend)
    for file in files:
        try:
            image, done = prepare_picture(read_image(file, "L"), saved.metadata["data"])
        except DataError as error:
            raise DataError(f"{file}: {error}" if file not in str(error) else str(error)) from error
        _show(file, done, scores(image).numpy()[0])
    return 0


def _show(file: str, done: list[str], probabilities: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
    """The most likely class, then all of them with their probabilities."""
    ranked = np.argsort(-probabilities, kind="stable")
    note = f"  ({'; '.join(done)})" if done else ""
    print(f"{file}: {ranked[0]} with probability {probabilities[ranked[0]]:.4f}{note}")
    for number in ranked:
        bar = "#" * round(40 * float(probabilities[number]))
        print(f"  {number}  {probabilities[number]:.4f}  {bar}".rstrip())
