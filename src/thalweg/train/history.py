"""`History`: what a training run has measured so far. It grows in `fit` and is kept in checkpoints.

In: the loss of every step and the averages of every epoch. Out: numbers, a table, arrays for a checkpoint. It
holds no time that would go into a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import DataError

__all__ = ["History"]


class History:
    """Measurements of a training run.

    `losses` has the loss of every step, `epochs` one dict per finished epoch: `loss` and the metrics are
    means over the epoch's samples while the model was being trained, `validation_loss` and so on those of the
    model after it. `interrupted` says whether Ctrl-C ended the run, `seconds` how long this call of `fit`
    took.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.epochs: list[dict[str, float]] = []
        self.interrupted = False
        self.seconds = 0.0

    def series(self, name: str) -> list[float]:
        """One measurement over the epochs, NaN where it was not taken: `history.series("accuracy")`."""
        return [epoch.get(name, float("nan")) for epoch in self.epochs]

    @property
    def names(self) -> list[str]:
        """The measurements that at least one epoch has, in order."""
        return list(dict.fromkeys(name for epoch in self.epochs for name in epoch))

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """The numbers as float64 arrays: `losses`, and one per measurement."""
        found = {f"epochs.{name}": np.array(self.series(name), np.float64) for name in self.names}
        return {"losses": np.array(self.losses, np.float64), **found}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> History:
        """The history that gave these arrays; raises `DataError` if they do not belong together."""
        history = cls()
        series = {name.removeprefix("epochs."): array for name, array in arrays.items() if name != "losses"}
        lengths = {array.shape for array in series.values()}
        losses = arrays.get("losses", np.zeros(()))
        if losses.ndim != 1 or len(lengths) > 1 or any(len(shape) != 1 for shape in lengths):
            raise DataError(
                f"a history has `losses` and further arrays of one length, received {sorted(arrays)}"
            )
        history.losses = [float(loss) for loss in losses]
        for position in range(lengths.pop()[0] if lengths else 0):
            values = {name: float(array[position]) for name, array in series.items()}
            history.epochs.append({name: value for name, value in values.items() if value == value})
        return history

    def __repr__(self) -> str:
        state = ", interrupted" if self.interrupted else ""
        head = f"History({len(self.losses)} steps, {len(self.epochs)} epochs{state})"
        if not self.epochs:
            return head
        last = ", ".join(f"{name} {value:.4f}" for name, value in self.epochs[-1].items())
        return f"{head}: {last}"
