"""A multi-layer perceptron: linear layers with an activation between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from thalweg import nn
from thalweg.errors import ArgumentError


class MLP(nn.Module):
    """Linear layers of the given sizes: `MLP([784, 256, 10])` is 784 to 256 to 10, with ReLU in between.

    All axes but the first are joined, so that images can be passed as they are. `activation` makes an
    activation layer; `dropout` is the probability of dropping a hidden element in training.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (784, 256, 10),
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        if len(sizes) < 2:
            raise ArgumentError(f"MLP needs at least an input and an output size, received {list(sizes)}")
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers.append(nn.Linear(inputs, outputs))
            layers.append(activation())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        hidden_end = -2 if dropout > 0 else -1  # the last layer gives scores: nothing behind it
        self.layers = nn.Sequential(*layers[:hidden_end])

    def forward(self, x: Any) -> Any:  # [B, ...]
        return self.layers(x.flatten(1))  # [B, sizes[-1]]
