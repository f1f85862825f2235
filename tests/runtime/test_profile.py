"""Profiles of compiled functions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.errors import UnsupportedError


def test_profile_of_a_training_step(tmp_path: Path, needs_compiler: None) -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    @tw.compile(backend="c", threads=2)
    def step(x: tw.Tensor, y: tw.Tensor) -> tw.Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    random = np.random.default_rng(0)
    x, y = random.standard_normal((64, 20)).astype(np.float32), random.integers(0, 4, 64)
    before = {name: value.copy() for name, value in model.state_dict().items()}
    found = step.profile(x, y, calls=3)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])

    kernels = found.plan.kernels
    assert all(found.seconds(number) > 0 for number in range(len(kernels)))
    assert set(found.events[:, 0]) <= {0, 1}
    assert (found.events[:, 3] >= found.events[:, 2]).all()
    assert "matmul" in found.text() and "test_profile.py" in found.text()

    found.trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert len(events) == len(found.events) >= 3 * len(kernels)
    assert {event["ph"] for event in events} == {"X"}


def test_profile_needs_the_c_backend() -> None:
    double = tw.compile(lambda x: x * 2.0, backend="numpy")
    with pytest.raises(UnsupportedError, match="NumPy backend"):
        double.profile(np.ones(3, np.float32))
