"""A small classification problem and everything that trains on it, made anew in each call."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import thalweg as tw
from thalweg import data, models, nn, optim, train

SAMPLES, FEATURES, CLASSES = 70, 5, 3


class Problem(NamedTuple):
    model: nn.Module
    loader: data.DataLoader
    optimizer: optim.Optimizer
    schedule: optim.Schedule

    def fit(self, epochs: int, **options: Any) -> train.History:
        """Train on the reference backend, quietly."""
        return train.fit(
            self.model,
            self.loader,
            epochs=epochs,
            optimizer=self.optimizer,
            schedule=self.schedule,
            **{
                "loss": nn.functional.cross_entropy,
                "metrics": [train.accuracy],
                "backend": "numpy",
                "progress": False,
                **options,
            },
        )


def samples() -> data.ArrayDataset:
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((SAMPLES, FEATURES)).astype(np.float32)
    return data.ArrayDataset(inputs, (inputs @ generator.standard_normal((FEATURES, CLASSES))).argmax(axis=1))


def make(dropout: float = 0.0, batch_size: int = 16, lr: float = 0.1) -> Problem:
    tw.manual_seed(7)
    model = models.MLP([FEATURES, 8, CLASSES], dropout=dropout)
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    loader = data.DataLoader(samples(), batch_size, shuffle=True, seed=1)
    return Problem(model, loader, optimizer, optim.CosineAnnealingLR(optimizer, 40))
