"""`thalweg train`: train a network, write checkpoint and curves, and say how good it is on test images."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thalweg import nn, optim, viz
from thalweg import train as training
from thalweg.cli import runs
from thalweg.cli.sources import Source, background, choose
from thalweg.config import settings
from thalweg.data import DataLoader, RandomShift
from thalweg.errors import DataError
from thalweg.tensor import default_generator, manual_seed

SHIFT = 2  # pixels
EPOCHS = {"mnist": 3, "digits": 40}
DEFAULTS: dict[str, Any] = {
    "batch_size": 64,
    "lr": 0.05,
    "momentum": 0.9,
    "schedule": "onecycle",
    "augment": "shift",
    "seed": 0,
}
_TEST_BATCH = 1000


def train(options: argparse.Namespace) -> int:
    """The command."""
    resumed = None if options.resume is None else runs.checkpoint_path(options.resume)
    saved = None if resumed is None else runs.open_checkpoint(resumed)
    chosen = _settings(options, {} if saved is None else saved.metadata)
    if resumed is None:
        directory = runs.new_directory(options.out, chosen["model"])
    else:
        directory = runs.usable(resumed.parent if options.out is None else Path(options.out))
    source = choose(chosen["data"], options.data_dir)
    chosen.update(data=source.name)
    chosen.setdefault("epochs", EPOCHS[source.name])
    if saved is not None and len(saved.history.epochs) >= chosen["epochs"]:
        done = len(saved.history.epochs)
        print(f"{resumed} has {done} epochs already; --epochs {2 * done}, for example, trains on")
        return 0
    settings.set_threads(options.threads)
    run = _Run(chosen, source, directory)
    run.announce()
    return run.go(resumed, options.backend)


def _settings(options: argparse.Namespace, saved: Mapping[str, str]) -> dict[str, Any]:
    """What holds for this run: what was given, else what the resumed run had, else the defaults."""
    before = json.loads(saved["settings"]) if "settings" in saved else {}
    found = {**DEFAULTS, "data": "auto", **before}
    for name in (*DEFAULTS, "epochs", "data", "model"):
        if getattr(options, name) is not None:
            found[name] = getattr(options, name)
    for name in ("model", "data"):
        if name in saved and found[name] != saved[name]:
            raise DataError(
                f"{options.resume!r} is a run of {saved['model']} on {saved['data']}, which cannot be "
                f"continued with {name} {found[name]}"
            )
    return found


class _Run:
    """A training run of the command line."""

    def __init__(self, chosen: Mapping[str, Any], source: Source, directory: Path) -> None:
        self.chosen = chosen
        self.source = source
        self.directory = directory
        manual_seed(chosen["seed"])
        self.model = runs.make_model(chosen["model"])
        shift = RandomShift(SHIFT, fill=background(source.name)) if chosen["augment"] == "shift" else None
        self.loader = DataLoader(
            source.train, chosen["batch_size"], shuffle=True, seed=chosen["seed"], transform=shift
        )
        self.optimizer = optim.SGD(self.model.parameters(), lr=chosen["lr"], momentum=chosen["momentum"])
        self.schedule = _schedule(self.optimizer, chosen, chosen["epochs"] * len(self.loader))
        # Equal batches: one program. The test images choose nothing; they are looked at for the record only.
        self.test = DataLoader(source.test, min(_TEST_BATCH, len(source.test)))
        self.history = training.History()

    def announce(self) -> None:
        """What is going to happen."""
        chosen = self.chosen
        count = sum(parameter.size for parameter in self.model.parameters())
        shift = f", images shifted by up to {SHIFT} pixels" if chosen["augment"] == "shift" else ""
        print(f"data: {self.source}")
        print(f"model: {chosen['model']}, {count:,} parameters; {settings.threads()} threads")
        print(
            f"training: {chosen['epochs']} epochs, batches of {chosen['batch_size']}, SGD with learning rate "
            f"{chosen['lr']:g} (schedule: {chosen['schedule']}) and momentum {chosen['momentum']:g}{shift}, "
            f"seed {chosen['seed']}"
        )
        print(f"output: {self.directory}", flush=True)

    @property
    def checkpoint(self) -> Path:
        return self.directory / runs.CHECKPOINT

    @property
    def metadata(self) -> dict[str, str]:
        return {
            "model": self.chosen["model"],
            "data": self.chosen["data"],
            "settings": json.dumps(self.chosen, sort_keys=True),
        }

    def go(self, resumed: Path | None, backend: str | None) -> int:
        """Train, test, draw; the exit code."""
        metrics = [training.accuracy]
        unsaved = None
        try:
            self.history = training.fit(
                self.model,
                self.loader,
                loss=nn.functional.cross_entropy,
                optimizer=self.optimizer,
                epochs=self.chosen["epochs"],
                validation={"test": self.test},
                metrics=metrics,
                schedule=self.schedule,
                callbacks=[self._note],
                checkpoint=self.checkpoint,
                resume=resumed,
                metadata=self.metadata,
                backend=backend,
            )
        except DataError as error:
            if len(self.history.epochs) < self.chosen["epochs"]:
                raise
            unsaved = error  # all is trained, only the last checkpoint could not be written
        if self.history.interrupted:  # the last epoch's figures are older than the weights
            found = training.evaluate(self.model, self.test, metrics=metrics, backend=backend)
            accuracy = found["accuracy"]
        else:
            accuracy = self.history.epochs[-1]["test_accuracy"]
        right = round(accuracy * len(self.source.test))
        trained = "so far" if self.history.interrupted else f"in {self.history.seconds:.1f} s"
        print(
            f"test accuracy {100 * accuracy:.2f} % ({right:,} of {len(self.source.test):,} images), "
            f"trained {trained}"
        )
        if unsaved is not None:
            return self._rescue(unsaved)
        print(f"checkpoint: {self.checkpoint}")
        self._draw()
        return 130 if self.history.interrupted else 0

    def _note(self, history: training.History) -> None:
        self.history = history

    def _draw(self) -> None:
        path = self.directory / runs.CURVES
        title = f"{self.chosen['model']} on {self.source.name}"
        try:
            viz.plot(self.history, path, title)
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


def _schedule(optimizer: optim.SGD, chosen: Mapping[str, Any], steps: int) -> optim.Schedule | None:
    """The schedule of the learning rate over that many training steps."""
    if chosen["schedule"] == "cosine":
        return optim.CosineAnnealingLR(optimizer, steps)
    if chosen["schedule"] == "step":
        return optim.MultiStepLR(optimizer, [steps * 6 // 10, steps * 85 // 100])
    if chosen["schedule"] == "onecycle":
        return optim.OneCycleLR(optimizer, chosen["lr"], steps, cycle_momentum=False)
    return None
