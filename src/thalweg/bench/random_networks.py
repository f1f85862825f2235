"""Small convolutional networks drawn by a seed: odd channel counts and sizes, to see whether speed holds away
from the networks that the compiler was measured on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Convolution:
    """One layer: convolution with bias, ReLU, then a maximum over squares of `pool` pixels (1: none)."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    padding: int
    pool: int

    def size(self, size: int) -> int:
        """Height and width behind the layer for those in front of it."""
        return self.convolved(size) // self.pool

    def convolved(self, size: int) -> int:
        """Height and width behind the convolution."""
        return (size + 2 * self.padding - self.kernel_size) // self.stride + 1


@dataclass(frozen=True)
class Network:
    """2 to 5 convolutions and a linear layer of 10 classes on images of channels x size x size."""

    channels: int
    size: int
    layers: tuple[Convolution, ...]

    @property
    def features(self) -> int:
        """Inputs of the linear layer."""
        size = self.size
        for layer in self.layers:
            size = layer.size(size)
        return self.layers[-1].out_channels * size * size

    @property
    def operations(self) -> int:
        """Dense operations per image and training step: three products per layer, two in the first one,
        whose input needs no gradient."""
        total, size = 6 * 10 * self.features, self.size
        for position, layer in enumerate(self.layers):
            pixels = layer.convolved(size) ** 2
            products = layer.in_channels * layer.out_channels * layer.kernel_size**2 * pixels
            total += 2 * products * (3 if position else 2)
            size = layer.size(size)
        return total


def draw(seed: int) -> Network:
    """The network of a seed."""
    random = np.random.default_rng(seed)
    channels, size = int(random.integers(1, 5)), int(random.integers(15, 34))
    layers: list[Convolution] = []
    count, incoming, here = int(random.integers(2, 6)), channels, size
    while len(layers) < count:
        kernel = int(random.choice([3, 3, 5]))
        stride = int(random.choice([1, 1, 1, 2]))
        padding = int(random.choice([0, kernel // 2]))
        pool = int(random.choice([1, 2])) if stride == 1 else 1
        layer = Convolution(incoming, int(random.integers(3, 33)), kernel, stride, padding, pool)
        if layer.convolved(here) < 2 or layer.size(here) < 2:
            layer = Convolution(incoming, layer.out_channels, 3, 1, 1, 1)
        layers.append(layer)
        incoming, here = layer.out_channels, layer.size(here)
    return Network(channels, size, tuple(layers))
