"""One program, several instruction sets: the same bits."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.errors import ArgumentError
from thalweg.models.lenet import LeNet


def weights(target: str, batch: int) -> bytes:
    """All parameters after two Adam steps."""
    tw.manual_seed(0)
    model = nn.Sequential(LeNet(), nn.Dropout(0.2), nn.LayerNorm(10), nn.GELU(), nn.Linear(10, 10))
    optimizer = optim.Adam(model.parameters(), lr=0.01)

    @tw.compile(backend="c", threads=2, target=target)
    def step(x: tw.Tensor, y: tw.Tensor) -> tw.Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    random = np.random.default_rng(batch)
    for _ in range(2):
        step(random.standard_normal((batch, 1, 28, 28)).astype(np.float32), random.integers(0, 10, batch))
    return b"".join(np.asarray(value).tobytes() for value in model.state_dict().values())


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 instruction sets")
@pytest.mark.parametrize("batch", [3, 17])
def test_instruction_sets_give_the_same_bits(batch: int, needs_compiler: None) -> None:
    native = weights("native", batch)
    assert np.isfinite(np.frombuffer(native, np.float32)).all()
    assert weights("x86-64", batch) == native
    information = Path("/proc/cpuinfo")
    flags = information.read_text(encoding="utf-8") if information.exists() else ""
    if " avx2 " in flags and " fma " in flags:
        assert weights("x86-64-v3", batch) == native


def test_an_unknown_target_is_refused(needs_compiler: None) -> None:
    double = tw.compile(lambda x: x * 2.0, backend="c", target="pdp-11")
    with pytest.raises(ArgumentError, match="pdp-11"):
        double(np.ones(3, np.float32))
