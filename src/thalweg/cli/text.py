"""Training runs on a plain text file: a GPT or an LSTM predicts the next character, byte or token.

In: settings. Out: a `Run` for `thalweg train`, and the trained models for `thalweg generate`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thalweg import models, optim
from thalweg import train as training
from thalweg.cli.arguments import UsageError
from thalweg.cli.training import Run
from thalweg.config import settings
from thalweg.data import (
    ByteTokenizer,
    CharacterTokenizer,
    Tokenizer,
    WindowLoader,
    consecutive_windows,
    load_tokenizer,
    read_text,
    split_tokens,
    tokenizer_from_json,
)
from thalweg.errors import DataError
from thalweg.models.gpt import GPT2Config, GPT2LMHeadModel
from thalweg.nn import functional
from thalweg.nn.module import Module
from thalweg.tensor import compile, manual_seed

_COMMON: dict[str, Any] = {
    "text": None,
    "tokenizer": "character",
    "dropout": 0.1,
    "lr": 2e-3,
    "warmup": 100,
    "schedule": "cosine",
    "weight_decay": 0.1,
    "evaluate_every": 250,
    "sample": 200,
    "seed": 0,
}
_SIZES: dict[str, dict[str, Any]] = {
    "gpt": {"layers": 4, "heads": 4, "width": 256, "context": 256, "steps": 2000, "batch_size": 16},
    "lstm": {"layers": 2, "heads": None, "width": 512, "context": 128, "steps": 3000, "batch_size": 32},
}
_LAST_RATE = 0.05  # of the learning rate at the end of the cosine
_BETAS = (0.9, 0.99)
_CLIP = 1.0  # largest norm of all gradients together


def make_text_model(chosen: Mapping[str, Any], vocabulary: int) -> Module:
    """The new model of a run with these settings."""
    if chosen["model"] == "lstm":
        return models.CharLSTM(vocabulary, chosen["width"], chosen["layers"], dropout=chosen["dropout"])
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=chosen["context"],
        n_embd=chosen["width"],
        n_layer=chosen["layers"],
        n_head=chosen["heads"],
        resid_pdrop=chosen["dropout"],
        embd_pdrop=chosen["dropout"],
        attn_pdrop=0.0,  # it would draw a number for every pair of tokens
    )
    return GPT2LMHeadModel(config)


def open_text_model(found: training.Checkpoint) -> tuple[Module, Tokenizer]:
    """The trained model of a checkpoint, in eval mode, and its tokenizer."""
    tokenizer = tokenizer_from_json(found.metadata["tokenizer"], f"the tokenizer in {found.path!r}")
    model = make_text_model(json.loads(found.metadata["settings"]), tokenizer.vocabulary_size)
    found.restore(model)
    return model.eval(), tokenizer


class TextRun(Run):
    """A model learns to predict the next token of a text."""

    @staticmethod
    def defaults_of(model: str) -> dict[str, Any]:
        return {**_COMMON, **_SIZES[model], "data": "text"}

    def build(self, options: argparse.Namespace, saved: training.Checkpoint | None) -> None:
        chosen = self.chosen
        if chosen["text"] is None:
            raise UsageError(
                f"thalweg train {chosen['model']}: name the file to learn from: --text FILE\n"
                "See thalweg train --help."
            )
        if chosen["model"] == "lstm" and chosen["heads"] is not None:
            raise UsageError("thalweg train lstm: --heads is for gpt\nSee thalweg train --help.")
        if chosen["schedule"] not in ("cosine", "none"):
            raise UsageError(
                f"thalweg train {chosen['model']}: --schedule is cosine or none for models of text, received "
                f"{chosen['schedule']}\nSee thalweg train --help."
            )
        chosen["warmup"] = min(chosen["warmup"], chosen["steps"] - 1)
        text = read_text(chosen["text"])
        self.tokenizer = _tokenizer(chosen["tokenizer"], text)
        tokens = self.tokenizer.encode(text)
        self.train_tokens, self.validation_tokens = split_tokens(tokens)
        manual_seed(chosen["seed"])
        self.model = make_text_model(chosen, self.tokenizer.vocabulary_size)
        self.loader = WindowLoader(
            self.train_tokens,
            chosen["context"],
            chosen["batch_size"],
            chosen["steps"],
            chosen["seed"],
            chosen["evaluate_every"],
        )
        done = 0
        if saved is not None and saved.loader is not None:
            done = saved.loader["consumed"]
            self.loader.load_state_dict(saved.loader)
        self.epochs = self.loader.iterations + (0 if saved is None else len(saved.history.epochs))
        self.optimizer = _optimizer(self.model, chosen)
        self.schedule = _schedule(self.optimizer, chosen)
        self.title = f"{chosen['model']} on {os.path.basename(chosen['text'])}"
        self.longer = f"{done} steps already; --steps {2 * done}"
        self._sums = self._evaluation_step()

    @property
    def metadata(self) -> dict[str, str]:
        return {**super().metadata, "tokenizer": self.tokenizer.to_json()}

    def announce(self) -> None:
        chosen = self.chosen
        count = sum(parameter.size for parameter in self.model.parameters())
        print(
            f"data: {chosen['text']}: {len(self.train_tokens):,} tokens for training, "
            f"{len(self.validation_tokens):,} for validation; {self.tokenizer!r}"
        )
        heads = f", {chosen['heads']} heads" if chosen["heads"] else ""
        print(
            f"model: {chosen['model']}, {chosen['layers']} layers{heads}, width {chosen['width']}, "
            f"{count:,} parameters; {settings.threads()} threads"
        )
        print(
            f"training: {chosen['steps']} steps of {chosen['batch_size']} x {chosen['context']} tokens, "
            f"AdamW with learning rate {chosen['lr']:g} (warm-up: {chosen['warmup']} steps, schedule: "
            f"{chosen['schedule']}), weight decay {chosen['weight_decay']:g}, dropout {chosen['dropout']:g}, "
            f"seed {chosen['seed']}"
        )
        print(f"output: {self.directory}", flush=True)

    def loss(self, outputs: Any, targets: Any) -> Any:
        scores = outputs.logits
        return functional.cross_entropy(scores.reshape(-1, scores.shape[-1]), targets.reshape(-1))

    def validation(self) -> Mapping[str, Any]:
        return {"validation": self._validate}

    def conclude(self) -> str:
        loss = self.history.epochs[-1].get("validation_loss") if self.history.epochs else None
        if loss is None or self.history.interrupted:  # the last figures are older than the weights
            self.model.eval()
            loss = self._validate()["loss"]
        return f"validation loss {loss:.4f} ({loss / math.log(2):.3f} bits a token)"

    def note(self, history: training.History) -> None:
        """Show what the model writes by now."""
        super().note(history)
        if not self.chosen["sample"]:
            return
        self.model.eval()
        options = {"do_sample": True, "seed": self.chosen["seed"], "backend": self.backend}
        start = self.tokenizer.decode(self.validation_tokens[:1])
        pieces = models.write(
            self.model, self.tokenizer, start, max_new_tokens=self.chosen["sample"], **options
        )
        written = "".join(pieces).replace("\n", "\n    ")
        print(f"    {start}{written}", flush=True)
        self.model.train()

    def _evaluation_step(self) -> Any:
        def evaluation_step(inputs: Any, targets: Any) -> Any:
            scores = self.model(inputs).logits
            flat = scores.reshape(-1, scores.shape[-1])
            return functional.cross_entropy(flat, targets.reshape(-1), reduction="sum")

        return compile(evaluation_step, backend=self.backend)

    def _validate(self) -> dict[str, float]:
        """The mean loss over every token of the validation part."""
        total = 0.0
        for inputs, targets in consecutive_windows(
            self.validation_tokens, self.chosen["context"], self.chosen["batch_size"]
        ):
            total += float(self._sums(inputs, targets))
        return {"loss": total / (len(self.validation_tokens) - 1)}


def _tokenizer(name: str, text: str) -> Tokenizer:
    if name == "character":
        return CharacterTokenizer.from_text(text)
    if name == "byte":
        return ByteTokenizer()
    if not Path(name).exists():
        raise DataError(f"--tokenizer is character, byte or a tokenizer.json; there is no file {name!r}")
    return load_tokenizer(name)


def _optimizer(model: Module, chosen: Mapping[str, Any]) -> optim.AdamW:
    """AdamW; only matrices decay, as Radford et al. (2019) do it."""
    every = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in every if len(parameter.shape) > 1]},
        {"params": [parameter for parameter in every if len(parameter.shape) < 2], "weight_decay": 0.0},
    ]
    return optim.AdamW(
        groups,
        lr=chosen["lr"],
        betas=_BETAS,
        weight_decay=chosen["weight_decay"],
        clip=optim.clip_by_norm(_CLIP),
    )


def _schedule(optimizer: optim.Optimizer, chosen: Mapping[str, Any]) -> optim.Schedule | None:
    """The learning rate rises for `warmup` steps, then follows half a cosine to the end."""
    warmup, steps = chosen["warmup"], chosen["steps"]
    parts: list[optim.Schedule] = []
    if warmup:
        parts.append(optim.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup))
    if chosen["schedule"] == "cosine":
        last = _LAST_RATE * chosen["lr"]
        parts.append(optim.CosineAnnealingLR(optimizer, steps - warmup, eta_min=last))
    if len(parts) == 2:
        return optim.SequentialLR(optimizer, parts, [warmup])
    return parts[0] if parts else None
