"""`thalweg verify`: repeat a training run and compare it with its receipt, step by step."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from thalweg.cli import runs
from thalweg.cli.arguments import IMAGE_OPTIONS, TEXT_MODELS, TEXT_OPTIONS, parse
from thalweg.cli.training import train
from thalweg.errors import DataError, ReplayError
from thalweg.train import Receipt, Replay


def verify(options: argparse.Namespace) -> int:
    """The command. Its exit code is 1 where the run differs from the receipt."""
    replay = Replay(options.receipt)
    receipt = replay.receipt
    if options.resume is not None:
        path = runs.checkpoint_path(options.resume)
        done = len(runs.open_checkpoint(path).history.losses)
        if done >= receipt.last_step:
            raise DataError(
                f"{os.fspath(path)!r} is {done} steps on, the end of the receipt: nothing to repeat"
            )
    with tempfile.TemporaryDirectory() as directory:
        training = _options(receipt, options, str(Path(directory) / "replay"))
        training.witness = replay
        begin = "the beginning" if options.resume is None else os.fspath(options.resume)
        print(f"{options.receipt}: {_words(receipt)}; repeated from {begin}", flush=True)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            code = train(training)
    for note in replay.notes:
        print(f"note: {note}")
    if replay.step < receipt.last_step and code == 130:
        print(f"stopped after step {replay.step:,}; up to there all was the same")
        return code
    if replay.step < receipt.last_step:
        raise ReplayError(
            f"the run ended after step {replay.step}, its receipt has {receipt.last_step} steps; up to there "
            "all was the same"
        )
    print(
        f"the same bits: {replay.compared:,} losses, {replay.states:,} states (weights, optimizer, generator)"
        f", the last one after step {replay.equal:,}"
    )
    return 0


def _words(receipt: Receipt) -> str:
    """The run in a few words."""
    settings = receipt.run.get("settings", {})
    return (
        f"{settings.get('model')} on {settings.get('data') or settings.get('text')}, seed "
        f"{settings.get('seed')}, steps {receipt.first_step + 1:,} to {receipt.last_step:,}"
    )


def _options(receipt: Receipt, given: argparse.Namespace, out: str) -> argparse.Namespace:
    """The options of `thalweg train` with which the run was made."""
    settings: dict[str, Any] = receipt.run.get("settings", {})
    if not isinstance(settings, dict) or not isinstance(settings.get("model"), str):
        raise DataError(
            f"{os.fspath(given.receipt)!r} was not written by `thalweg train`: it does not say what was "
            "trained; repeat the run in Python with train.fit(..., witness=train.Replay(path))"
        )
    training = parse(["train", settings["model"], "--out", out])
    foreign = IMAGE_OPTIONS if settings["model"] in TEXT_MODELS else TEXT_OPTIONS
    for name, value in settings.items():
        if hasattr(training, name) and name not in foreign:
            setattr(training, name, value)
    for name in ("threads", "backend", "data_dir", "text", "resume"):
        if getattr(given, name) is not None:
            setattr(training, name, getattr(given, name))
    return training
