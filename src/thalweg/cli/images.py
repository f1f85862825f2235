"""Training runs on images: MNIST or the digits in the package.

In: settings. Out: a `Run` for `thalweg train`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, ClassVar

from thalweg import nn, optim
from thalweg import train as training
from thalweg.cli import runs
from thalweg.cli.sources import background, choose
from thalweg.cli.training import Run
from thalweg.config import settings
from thalweg.data import DataLoader, RandomShift
from thalweg.tensor import manual_seed

SHIFT = 2  # pixels
EPOCHS = {"mnist": 3, "digits": 40}
_TEST_BATCH = 1000


class ImageRun(Run):
    """A network of `cli.runs.make_model` learns to tell ten digits apart."""

    metrics: ClassVar[tuple[Any, ...]] = (training.accuracy,)

    @staticmethod
    def defaults_of(model: str) -> dict[str, Any]:
        return {
            "data": "auto",
            "epochs": None,
            "batch_size": 64,
            "lr": 2e-3 if model == "vit" else 0.05,
            "momentum": 0.9,
            "schedule": "onecycle",
            "augment": "shift",
            "seed": 0,
        }

    def build(self, options: argparse.Namespace, saved: training.Checkpoint | None) -> None:
        chosen = self.chosen
        self.source = choose(chosen["data"], options.data_dir)
        chosen["data"] = self.source.name
        chosen["epochs"] = self.epochs = chosen["epochs"] or EPOCHS[self.source.name]
        self.title = f"{chosen['model']} on {self.source.name}"
        done = self.epochs if saved is None else len(saved.history.epochs)
        self.longer = f"{done} epochs already; --epochs {2 * done}"
        manual_seed(chosen["seed"])
        self.model = runs.make_model(chosen["model"])
        shift = (
            RandomShift(SHIFT, fill=background(self.source.name)) if chosen["augment"] == "shift" else None
        )
        self.loader = DataLoader(
            self.source.train, chosen["batch_size"], shuffle=True, seed=chosen["seed"], transform=shift
        )
        self.optimizer = _optimizer(self.model, chosen)
        self.schedule = _schedule(self.optimizer, chosen, self.epochs * len(self.loader))
        # Equal batches: one program. The test images choose nothing; they are looked at for the record only.
        self.test = DataLoader(self.source.test, min(_TEST_BATCH, len(self.source.test)))

    def announce(self) -> None:
        chosen = self.chosen
        count = sum(parameter.size for parameter in self.model.parameters())
        shift = f", images shifted by up to {SHIFT} pixels" if chosen["augment"] == "shift" else ""
        print(f"data: {self.source}")
        print(f"model: {chosen['model']}, {count:,} parameters; {settings.threads()} threads")
        print(
            f"training: {chosen['epochs']} epochs, batches of {chosen['batch_size']}, "
            f"{type(self.optimizer).__name__} with learning rate "
            f"{chosen['lr']:g} (schedule: {chosen['schedule']}) and momentum {chosen['momentum']:g}{shift}, "
            f"seed {chosen['seed']}"
        )
        print(f"output: {self.directory}", flush=True)

    def loss(self, outputs: Any, targets: Any) -> Any:
        return nn.functional.cross_entropy(outputs, targets)

    def validation(self) -> Mapping[str, Any]:
        return {"test": self.test}

    def conclude(self) -> str:
        if self.history.interrupted:  # the last epoch's figures are older than the weights
            found = training.evaluate(self.model, self.test, metrics=self.metrics, backend=self.backend)
            accuracy = found["accuracy"]
        else:
            accuracy = self.history.epochs[-1]["test_accuracy"]
        right = round(accuracy * len(self.source.test))
        return f"test accuracy {100 * accuracy:.2f} % ({right:,} of {len(self.source.test):,} images)"


def _optimizer(model: nn.Module, chosen: Mapping[str, Any]) -> optim.Optimizer:
    """Gradient descent with momentum; Transformers need steps that Adam has scaled."""
    rate, momentum = chosen["lr"], chosen["momentum"]
    if chosen["model"] == "vit":
        return optim.AdamW(model.parameters(), lr=rate, betas=(momentum, 0.99), weight_decay=0.05)
    return optim.SGD(model.parameters(), lr=rate, momentum=momentum)


def _schedule(optimizer: optim.Optimizer, chosen: Mapping[str, Any], steps: int) -> optim.Schedule | None:
    """The schedule of the learning rate over that many training steps."""
    if chosen["schedule"] == "cosine":
        return optim.CosineAnnealingLR(optimizer, steps)
    if chosen["schedule"] == "step":
        return optim.MultiStepLR(optimizer, [steps * 6 // 10, steps * 85 // 100])
    if chosen["schedule"] == "onecycle":
        return optim.OneCycleLR(optimizer, chosen["lr"], steps, cycle_momentum=False)
    return None
