"""Training checkpoints: everything with which a run continues as if it had never stopped, in one safetensors
file.

In: a model, and what else takes part in training. Out: a file written completely or not at all, that contains
no time, path or thread count: the same run gives the same bytes. Called by `fit`, the command line, or by
hand.

Arrays are named `model.<name>`, `optimizer.<name>`, `generator` and `history.<name>`; the metadata entry
`training` holds the small rest as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import ArgumentError, DataError
from thalweg.io import safetensors
from thalweg.tensor.random import Generator, default_generator
from thalweg.train.history import History
from thalweg.train.metrics import Average

if TYPE_CHECKING:
    from thalweg.nn.module import Module
    from thalweg.optim import Optimizer, Schedule

__all__ = ["Checkpoint", "load_checkpoint", "read_checkpoint", "save_checkpoint"]

Array = NDArray[Any]
Path = str | os.PathLike[str]

_FORMAT = "thalweg training checkpoint 1"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds; `restore` gives it to the objects that it belongs to."""

    path: str
    model: dict[str, Array]
    optimizer: dict[str, Array]
    generator: Array
    history: History
    step: int  # training steps done
    schedule: dict[str, Any] | None = None
    loader: dict[str, int] | None = None
    averages: dict[str, Average] = field(default_factory=dict)  # of an epoch that was stopped in its middle
    metadata: dict[str, str] = field(default_factory=dict)  # what the caller of `save_checkpoint` added

    def restore(
        self,
        model: Module,
        optimizer: Optimizer | None = None,
        *,
        schedule: Schedule | None = None,
        loader: Any = None,
        generator: Generator | None = None,
    ) -> None:
        """Give the saved state to these objects: to all of them or, where one refuses it, to none.

        Objects that are not given keep their state; so the default generator stays as it is unless it is
        given. Raises `DataError` where the checkpoint has no state for an object, or one that does not fit.
        """
        with ExitStack() as undo:
            if loader is not None:
                self._give("the data loader", self.loader, loader, undo)
            if schedule is not None:
                self._give("the schedule", self.schedule, schedule, undo)
            if generator is not None:
                before = generator.state.data
                self._attempt("the random generator", lambda: generator.state.replace(self.generator))
                undo.callback(generator.state.replace, before)
            self._give("the model", self.model, model, undo)
            if optimizer is not None:  # last: its slots are made when they are loaded, and cannot be unmade
                if not self.optimizer:
                    raise self._absent("the optimizer")
                self._attempt("the optimizer", lambda: optimizer.load_state_dict(self.optimizer))
            undo.pop_all()

    def _give(self, what: str, state: Any, receiver: Any, undo: ExitStack) -> None:
        if state is None:
            raise self._absent(what)
        before = receiver.state_dict()
        self._attempt(what, lambda: receiver.load_state_dict(state))
        undo.callback(receiver.load_state_dict, before)

    def _attempt(self, what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except (ArgumentError, DataError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{self.path!r} does not fit {what}: {error}") from error

    def _absent(self, what: str) -> DataError:
        return DataError(
            f"{self.path!r} has no state of {what}: it was saved without it. Load it without giving {what}, "
            "or start the training anew"
        )


def save_checkpoint(
    path: Path,
    model: Module,
    optimizer: Optimizer | None = None,
    *,
    schedule: Schedule | None = None,
    loader: Any = None,
    generator: Generator | None = None,
    step: int | None = None,
    history: History | None = None,
    averages: Mapping[str, Average] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the state of a training run to the safetensors file `path`, completely or not at all.

    Each of model, optimizer, schedule and loader gives its `state_dict()`; `loader` may be any object that
    has one. `generator` is the random generator of dropout and the like, the default one unless given. `step`
    is the number of training steps done (the history's, unless given), `averages` those of an unfinished
    epoch, `metadata` text of your own. Raises `DataError` when the file cannot be written; the old file then
    stays as it was.
    """
    history = History() if history is None else history
    arrays = {f"model.{name}": array for name, array in _model_arrays(model).items()}
    if optimizer is not None:
        arrays.update({f"optimizer.{name}": array for name, array in optimizer.state_dict().items()})
    arrays["generator"] = np.array((generator or default_generator).state.data)
    arrays.update({f"history.{name}": array for name, array in history.arrays().items()})
    training = {
        "format": _FORMAT,
        "step": len(history.losses) if step is None else step,
        "schedule": None if schedule is None else schedule.state_dict(),
        "loader": loader.state_dict() if hasattr(loader, "state_dict") else None,
        "averages": {name: [average.total, average.count] for name, average in (averages or {}).items()},
    }
    text = json.dumps(training, sort_keys=True)
    safetensors.save(path, arrays, {**(metadata or {}), "training": text})


def _model_arrays(model: Module) -> dict[str, Array]:
    """Parameters and buffers; tied ones under their first name only."""
    holders = [*model.named_parameters(), *model.named_buffers()]
    return {name: np.array(holder.data) for name, holder in holders}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint file. Raises `DataError` if it is broken, or another kind of file."""
    name = os.fspath(path)
    arrays, metadata = safetensors.load(path)
    try:
        training = json.loads(metadata.pop("training"))
        if training["format"] != _FORMAT:
            raise ValueError(f"its format is {training['format']!r}")
        averages = {key: Average(total, count) for key, (total, count) in training["averages"].items()}
        history = History.from_arrays(_part(arrays, "history."))
        return Checkpoint(
            name,
            _part(arrays, "model."),
            _part(arrays, "optimizer."),
            arrays["generator"],
            history,
            int(training["step"]),
            training["schedule"],
            training["loader"],
            averages,
            metadata,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{name!r} is a safetensors file but not a training checkpoint ({error}); to load weights only, "
            "write model.load(path)"
        ) from error


def _part(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def load_checkpoint(
    path: Path,
    model: Module,
    optimizer: Optimizer | None = None,
    *,
    schedule: Schedule | None = None,
    loader: Any = None,
    generator: Generator | None = None,
) -> Checkpoint:
    """Read a checkpoint and give its state to these objects, made in the same way as those that were saved.

    Returns the `Checkpoint`, which has the step, the history and the metadata. To resume exactly, give all
    objects that took part, the generator (`tw.default_generator` unless you made one) included; for inference
    the model is enough. Raises `DataError` if the file is broken or does not fit; all objects are then as
    they were.
    """
    checkpoint = read_checkpoint(path)
    checkpoint.restore(model, optimizer, schedule=schedule, loader=loader, generator=generator)
    return checkpoint
