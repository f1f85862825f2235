"""Thalweg's side of the cases."""

from __future__ import annotations

from typing import Any

import numpy as np

import thalweg as tw
from thalweg import nn, optim
from thalweg.bench.measuring import repeat
from thalweg.bench.random_networks import Network, draw

Array = np.ndarray[Any, Any]


def images(case: str) -> tuple[Array, Array]:
    """Images [B, C, H, W] and labels [B] for a case whose name ends in its batch size."""
    words = case.replace(",", "").split()
    network = draw(int(words[2])) if words[0] == "random" else None
    channels, size = (network.channels, network.size) if network else (1, 28)
    random, batch = np.random.default_rng(0), int(words[-1])
    x = random.standard_normal((batch, channels, size, size)).astype(np.float32)
    return x, random.integers(0, 10, batch)


def random_model(network: Network) -> nn.Module:
    """The layers of a drawn network."""
    layers: list[nn.Module] = []
    for c in network.layers:
        layers += [nn.Conv2d(c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding), nn.ReLU()]
        if c.pool > 1:
            layers.append(nn.MaxPool2d(c.pool))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(network.features, 10))


def model_of(case: str) -> nn.Module:
    """The network that a case's first word names."""
    from thalweg.bench.cases import MLP
    from thalweg.models.lenet import LeNet

    tw.manual_seed(0)
    if case.startswith("random"):
        return random_model(draw(int(case.replace(",", "").split()[2])))
    if case.startswith("lenet"):
        return LeNet()
    a, b, c, d = MLP
    return nn.Sequential(
        nn.Flatten(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, d)
    )


def measure(case: str, side: str, threads: int) -> float:
    """Median seconds of one repetition."""
    if case == "trivial compiled call":
        double = tw.compile(lambda x: x + x)
        value = tw.tensor(np.ones(4, np.float32))
        return repeat(lambda: double(value))
    model = model_of(case)
    x, y = (tw.tensor(array) for array in images(case))
    if "inference" in case:
        model.eval()
        infer = tw.compile(lambda x: model(x), threads=threads)
        return repeat(lambda: infer(x))
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    run = step if "eager" in case else tw.compile(step, threads=threads)
    return repeat(lambda: run(x, y))
