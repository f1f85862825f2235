"""Four small networks that between them use most of the library, made anew in each call: LeNet, an LSTM, a
GPT, and a ResNet with batch norm and dropout. For tests that train the same thing in several ways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import thalweg as tw
from thalweg import data, models, nn, optim
from thalweg.models.gpt import GPT2Config, GPT2LMHeadModel

VOCABULARY = 17


@dataclass
class Training:
    """A model, batches for it, and what trains it."""

    model: nn.Module
    loader: data.DataLoader
    loss: Callable[[Any, Any], Any]
    optimizer: optim.Optimizer

    def step(self, **options: Any) -> Any:
        """The compiled training step."""

        def train_step(inputs: Any, targets: Any) -> Any:
            loss = self.loss(self.model(inputs), targets)
            self.optimizer.minimize(loss)
            return loss

        return tw.compile(train_step, backend="c", **options)

    def state(self) -> bytes:
        """Every bit that the next step depends on."""
        arrays = [*self.model.state_dict().values(), *self.optimizer.state_dict().values()]
        arrays.append(tw.default_generator.state.data)
        return b"".join(np.asarray(array).tobytes() for array in arrays)

    def trained(self, steps: int, **options: Any) -> bytes:
        """The state after that many steps."""
        step = self.step(**options)
        batches = [batch for _ in range(-(-steps // len(self.loader))) for batch in self.loader]
        for inputs, targets in batches[:steps]:
            assert np.isfinite(step(inputs, targets).item())
        return self.state()


class LSTMNetwork(nn.Module):
    """Scores [B, T, V] of the next token."""

    def __init__(self) -> None:
        self.language = models.CharLSTM(VOCABULARY, hidden_size=12, num_layers=2, dropout=0.1)

    def forward(self, tokens: Any) -> Any:
        return self.language(tokens).logits


class GPTNetwork(nn.Module):
    """Scores [B, T, V] of the next token."""

    def __init__(self) -> None:
        sizes = GPT2Config(vocab_size=VOCABULARY, n_positions=12, n_embd=16, n_layer=1, n_head=2)
        self.language = GPT2LMHeadModel(sizes)

    def forward(self, tokens: Any) -> Any:
        return self.language(tokens).logits


class DropoutResNet(nn.Module):
    """A residual network of two blocks with dropout behind it."""

    def __init__(self) -> None:
        self.body = models.ResNet((1, 1), (4, 8), num_classes=8, in_channels=1)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Any) -> Any:
        return self.head(self.dropout(self.body(images).relu()))


def token_loss(scores: Any, targets: Any) -> Any:
    return nn.functional.cross_entropy(scores.reshape(-1, VOCABULARY), targets.reshape(-1))


def images(size: int, classes: int, count: int) -> data.ArrayDataset:
    random = np.random.default_rng(size)
    pictures = random.standard_normal((count, 1, size, size)).astype(np.float32)
    return data.ArrayDataset(pictures, random.integers(0, classes, count))


def texts(count: int) -> data.ArrayDataset:
    tokens = np.random.default_rng(5).integers(0, VOCABULARY, (count, 11))
    return data.ArrayDataset(tokens[:, :-1], tokens[:, 1:])


def lenet() -> Training:
    model = models.LeNet()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, _loader(images(28, 10, 90), 36), nn.functional.cross_entropy, optimizer)


def lstm() -> Training:
    model = LSTMNetwork()
    return Training(model, _loader(texts(44), 20), token_loss, optim.Adam(model.parameters(), lr=0.01))


def gpt() -> Training:
    model = GPTNetwork()
    return Training(model, _loader(texts(44), 17), token_loss, optim.AdamW(model.parameters(), lr=0.01))


def resnet() -> Training:
    model = DropoutResNet()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    return Training(model, _loader(images(12, 5, 40), 18), nn.functional.cross_entropy, optimizer)


def _loader(samples: data.ArrayDataset, batch_size: int) -> data.DataLoader:
    return data.DataLoader(samples, batch_size, shuffle=True, seed=3, prefetch=2)


NETWORKS: dict[str, Callable[[], Training]] = {"lenet": lenet, "lstm": lstm, "gpt": gpt, "resnet": resnet}


def make(name: str, seed: int = 0) -> Training:
    """One of `NETWORKS`, its initial weights drawn from the default generator."""
    tw.manual_seed(seed)
    return NETWORKS[name]()
