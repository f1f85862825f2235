"""The curves of a training run as a picture. Needs matplotlib (the extra `app`).

In: a `History`. Out: a PNG (or another format that matplotlib knows by the ending).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.errors import ArgumentError
from thalweg.io.files import atomic_write

if TYPE_CHECKING:
    from thalweg.train.history import History

__all__ = ["plot"]


def plot(history: History, path: str | os.PathLike[str], title: str = "") -> None:
    """Draw the loss over the steps and the metrics over the epochs of a training run to `path`.

    Raises `ImportError` without matplotlib, `ArgumentError` for an ending that it does not know, `DataError`
    when the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing curves needs matplotlib: pip install 'thalweg[app]'") from error
    names = [name for name in history.names if not name.endswith("loss")]
    figure = Figure(figsize=(11 if names else 6, 4.2), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if names else 1, squeeze=False)[0]
    _loss(axes[0], history)
    if names:
        _metrics(axes[1], history, names)
    if title:
        figure.suptitle(title)
    ending = os.path.splitext(os.fspath(path))[1].lower().lstrip(".") or "png"
    if ending not in canvas.get_supported_filetypes():
        raise ArgumentError(f"cannot draw curves to {os.fspath(path)!r}; write a name that ends in .png")
    content = BytesIO()
    figure.savefig(content, format=ending)
    atomic_write(path, content.getvalue())


def _loss(axes: Any, history: History) -> None:
    """Every step's loss, their running mean, and the means of the epochs."""
    steps = np.arange(1, len(history.losses) + 1)
    losses = np.asarray(history.losses)
    axes.plot(steps, losses, color="#93c5fd", linewidth=0.7, label="each step")
    window = max(1, len(losses) // 50)
    if window > 1:
        mean = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], mean, color="#1d4ed8", linewidth=1.6, label=f"mean of {window} steps")
    ends = np.linspace(0, len(losses), len(history.epochs) + 1)[1:]
    others = [name for name in history.names if name.endswith("_loss")]
    for number, name in enumerate(others, 1):
        colour = f"C{number}"  # C0 is too close to the colour of the steps
        axes.plot(ends, history.series(name), "o-", color=colour, markersize=3, label=name.replace("_", " "))
    positive = losses[losses > 0]
    if positive.size and losses.min() > 0 and positive.max() / positive.min() > 20:
        axes.set_yscale("log")
    axes.set(xlabel="training step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()


def _metrics(axes: Any, history: History, names: Sequence[str]) -> None:
    epochs = np.arange(1, len(history.epochs) + 1)
    for name in names:
        label = name.replace("_", " ") if "_" in name else f"training {name}"
        axes.plot(epochs, history.series(name), "o-", markersize=3, label=label)
    axes.set(xlabel="epoch")
    axes.grid(alpha=0.3)
    axes.legend()
