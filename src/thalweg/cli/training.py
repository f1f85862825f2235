"""`thalweg train`: train a network, write checkpoint and curves, and say how good it is.

In: options of the command line. Out: a run's directory. What all runs have in common is here;
`cli.images` and `cli.text` say what is trained on what.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from thalweg import optim, viz
from thalweg import train as training
from thalweg.cli import runs
from thalweg.cli.arguments import IMAGE_OPTIONS, TEXT_MODELS, TEXT_OPTIONS, UsageError
from thalweg.config import settings
from thalweg.errors import DataError
from thalweg.nn.module import Module
from thalweg.tensor import default_generator


def train(options: argparse.Namespace) -> int:
    """The command."""
    resumed = None if options.resume is None else runs.checkpoint_path(options.resume)
    saved = None if resumed is None else runs.open_checkpoint(resumed)
    kind = _kind(options, saved)
    chosen = choose_settings(kind.defaults_of, options, {} if saved is None else saved.metadata)
    if resumed is None:
        directory = runs.new_directory(options.out, chosen["model"])
    else:
        directory = runs.usable(resumed.parent if options.out is None else Path(options.out))
    settings.set_threads(options.threads)
    run = kind(chosen, directory, options, saved)
    if saved is not None and len(saved.history.epochs) >= run.epochs:
        print(f"{resumed} has {run.longer}, for example, trains on")
        return 0
    run.announce()
    return run.go(resumed, options.backend, _witness(options, chosen), options.checkpoint_every)


def _witness(
    options: argparse.Namespace, chosen: Mapping[str, Any]
) -> training.Recorder | training.Replay | None:
    """What writes the receipt of the run, or, for `thalweg verify`, compares it with one."""
    if options.witness is not None:
        found: training.Replay = options.witness
        return found
    if options.receipt is None:
        return None
    return training.Recorder(options.receipt, {"settings": dict(chosen)})


def _kind(options: argparse.Namespace, saved: training.Checkpoint | None) -> type[Run]:
    """The class of the run for that model; raises `UsageError` for options that it does not have."""
    model = options.model or ("" if saved is None else saved.metadata["model"])
    of_text = model in TEXT_MODELS
    for name in IMAGE_OPTIONS if of_text else TEXT_OPTIONS:
        if getattr(options, name) is not None:
            raise UsageError(
                f"thalweg train {model}: --{name.replace('_', '-')} is for models of "
                f"{'images' if of_text else 'text'}\nSee thalweg train --help."
            )
    if of_text:
        from thalweg.cli.text import TextRun

        return TextRun
    from thalweg.cli.images import ImageRun

    return ImageRun


def choose_settings(
    defaults_of: Any, options: argparse.Namespace, saved: Mapping[str, str]
) -> dict[str, Any]:
    """What holds for this run: what was given, else what the resumed run had, else the defaults."""
    before = json.loads(saved["settings"]) if "settings" in saved else {}
    model = options.model or before.get("model")
    found = {"model": model, **defaults_of(model), **before}
    for name in found:
        if getattr(options, name, None) is not None:
            found[name] = getattr(options, name)
    for name in ("model", "data"):
        if name in saved and found[name] != saved[name]:
            raise DataError(
                f"{options.resume!r} is a run of {saved['model']} on {saved['data']}, which cannot be "
                f"continued with {name} {found[name]}"
            )
    return found


class Run:
    """A training run of the command line. A subclass makes the parts and says what they are."""

    model: Module
    loader: Any
    optimizer: optim.Optimizer
    schedule: optim.Schedule | None
    epochs: int
    title: str  # of the curves
    longer: str  # what there is at the end, and the options that train on
    metrics: ClassVar[tuple[Any, ...]] = ()

    def __init__(
        self,
        chosen: dict[str, Any],
        directory: Path,
        options: argparse.Namespace,
        saved: training.Checkpoint | None,  # the run that is continued
    ) -> None:
        self.chosen = chosen
        self.directory = directory
        self.backend: str | None = options.backend
        self.history = training.History()
        self.build(options, saved)

    @staticmethod
    def defaults_of(model: str) -> dict[str, Any]:
        """The settings of a run of that model and their defaults."""
        raise NotImplementedError

    def build(self, options: argparse.Namespace, saved: training.Checkpoint | None) -> None:
        """Make model, loader, optimizer and schedule."""
        raise NotImplementedError

    def announce(self) -> None:
        """Say what is going to happen."""
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Any) -> Any:
        """What is minimised."""
        raise NotImplementedError

    def validation(self) -> Mapping[str, Any]:
        """What the model is evaluated on after every epoch, for `fit`."""
        raise NotImplementedError

    def conclude(self) -> str:
        """How good the model is, in one line."""
        raise NotImplementedError

    def note(self, history: training.History) -> None:
        """Called after every epoch."""
        self.history = history

    @property
    def checkpoint(self) -> Path:
        return self.directory / runs.CHECKPOINT

    @property
    def metadata(self) -> dict[str, str]:
        """What goes into the checkpoint, so that other commands know what it is."""
        return {
            "model": self.chosen["model"],
            "data": self.chosen["data"],
            "settings": json.dumps(self.chosen, sort_keys=True),
        }

    def go(
        self,
        resumed: Path | None,
        backend: str | None,
        witness: training.Recorder | training.Replay | None,
        checkpoint_every: int | None,
    ) -> int:
        """Train, test, draw; the exit code."""
        unsaved = None
        try:
            self.history = training.fit(
                self.model,
                self.loader,
                loss=self.loss,
                optimizer=self.optimizer,
                epochs=self.epochs,
                validation=self.validation(),
                metrics=list(self.metrics),
                schedule=self.schedule,
                callbacks=[self.note],
                checkpoint=self.checkpoint,
                resume=resumed,
                metadata=self.metadata,
                backend=backend,
                checkpoint_every=checkpoint_every,
                witness=witness,
            )
        except DataError as error:
            if len(self.history.epochs) < self.epochs:
                raise
            unsaved = error  # all is trained, only the last checkpoint could not be written
        trained = "so far" if self.history.interrupted else f"in {self.history.seconds:.1f} s"
        print(f"{self.conclude()}, trained {trained}")
        if unsaved is not None:
            return self._rescue(unsaved)
        print(f"checkpoint: {self.checkpoint}")
        if isinstance(witness, training.Recorder):
            print(f"receipt: {os.fspath(witness.path)}")
        self._draw()
        return 130 if self.history.interrupted else 0

    def _draw(self) -> None:
        path = self.directory / runs.CURVES
        try:
            viz.plot(self.history, path, self.title)
        except (ImportError, DataError) as error:
            print(f"no curves: {error}", file=sys.stderr)
        else:
            print(f"curves: {path}")

    def _rescue(self, error: DataError) -> int:
        """Write the result of the training to another place than where it could not be written."""
        print(f"thalweg: error: {error}", file=sys.stderr)
        handle, name = tempfile.mkstemp(prefix=f"thalweg-{self.chosen['model']}-", suffix=".safetensors")
        os.close(handle)
        training.save_checkpoint(
            name,
            self.model,
            self.optimizer,
            schedule=self.schedule,
            loader=self.loader,
            generator=default_generator,
            history=self.history,
            metadata=self.metadata,
        )
        print(f"the trained network was written to {name} instead", file=sys.stderr)
        return 1
