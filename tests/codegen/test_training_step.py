"""Whole training steps, compiled: the same bits for any number of threads, in another process, on
repetition."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.models.lenet import LeNet


def train(batch: int, steps: int, threads: int, backend: str = "c") -> tuple[str, list[float]]:
    """SHA-256 of parameters, optimiser slots and generator after some steps, and the losses."""
    tw.manual_seed(1)
    model = LeNet()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    @tw.compile(backend=backend, threads=threads)
    def step(x: tw.Tensor, y: tw.Tensor) -> tw.Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    random = np.random.default_rng(batch)
    losses = []
    for _ in range(steps):
        x = random.standard_normal((batch, 1, 28, 28)).astype(np.float32)
        losses.append(float(step(x, random.integers(0, 10, batch))))
    state = hashlib.sha256()
    for name, array in sorted({**model.state_dict(), **flatten(optimizer.state_dict())}.items()):
        state.update(name.encode() + np.asarray(array).tobytes())
    return state.hexdigest(), losses


def flatten(nest: object, path: str = "") -> dict[str, np.ndarray]:
    """The arrays of a nested state dictionary by path."""
    if isinstance(nest, dict):
        return {k: v for key, item in nest.items() for k, v in flatten(item, f"{path}.{key}").items()}
    if isinstance(nest, (list, tuple)):
        return {k: v for key, item in enumerate(nest) for k, v in flatten(item, f"{path}.{key}").items()}
    return {path: np.asarray(nest)} if nest is not None and not isinstance(nest, str) else {}


@pytest.mark.parametrize("batch", [1, 17, 64, 100])
def test_lenet_has_the_same_bits_for_any_number_of_threads(batch: int, needs_compiler: None) -> None:
    first, losses = train(batch, 50 if batch < 64 else 12, 1)
    assert np.isfinite(losses).all()
    for threads in (1, 2, 3, 7):
        assert train(batch, len(losses), threads) == (first, losses)


def test_lenet_has_the_same_bits_in_another_process(needs_compiler: None) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from test_training_step import train\nprint(train(17, 5, 2)[0])"
    )
    here = __file__.rsplit("test_training_step", 1)[0]
    found = subprocess.run([sys.executable, "-c", code, here], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == train(17, 5, 1)[0]


@pytest.mark.parametrize("batch", [1, 5, 16, 33])
def test_compiled_and_interpreted_losses_agree(batch: int, needs_compiler: None) -> None:
    _, compiled = train(batch, 8, 2)
    _, interpreted = train(batch, 8, 1, backend="numpy")
    np.testing.assert_allclose(compiled, interpreted, rtol=2e-5)


def losses_of(build: Callable[[], nn.Module], backend: str) -> list[float]:
    """Losses of a few Adam steps of a model with batch norm."""
    tw.manual_seed(3)
    model = build()
    optimizer = optim.Adam(model.parameters(), lr=1e-3)

    @tw.compile(backend=backend)
    def step(x: tw.Tensor, y: tw.Tensor) -> tw.Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    random = np.random.default_rng(0)
    x = random.standard_normal((12, 3, 9, 11)).astype(np.float32)
    y = random.integers(0, 5, 12)
    return [float(step(x, y)) for _ in range(6)]


def test_batch_norm_network_agrees(needs_compiler: None) -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 7, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(7),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.LayerNorm(42),
            nn.Linear(42, 5),
        )

    np.testing.assert_allclose(losses_of(build, "c"), losses_of(build, "numpy"), rtol=1e-4)
