"""Automatic precision: which types come out, and values and gradients against PyTorch's autocast."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.errors import ArgumentError
from thalweg.graph import REGISTRY
from thalweg.nn import functional
from thalweg.ops.autocast import EXACT, LOW

Array = np.ndarray[Any, Any]


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_lists_name_ops() -> None:
    assert set(REGISTRY) >= LOW | EXACT


def test_types_inside() -> None:
    x, w = tw.tensor(numbers(2, 3, 8)), tw.tensor(numbers(5, 8))
    with tw.autocast("bfloat16"):
        y = functional.linear(x, w)
        assert y.dtype is tw.bfloat16 and (x @ w.T).dtype is tw.bfloat16
        assert functional.gelu(y).dtype is tw.bfloat16
        for exact in (
            functional.softmax(y, -1),
            functional.layer_norm(y, (5,)),
            y.sum(),
            y.mean(-1),
            y.var(-1),
        ):
            assert exact.dtype is tw.float32
        assert y.max().dtype is tw.bfloat16
        assert functional.cross_entropy(y.reshape(6, 5), np.zeros(6, np.int64)).dtype is tw.float32
        q = tw.tensor(numbers(1, 2, 3, 4))
        assert functional.scaled_dot_product_attention(q, q, q).dtype is tw.bfloat16
        image = tw.tensor(numbers(1, 2, 5, 5))
        assert functional.conv2d(image, numbers(3, 2, 3, 3)).dtype is tw.bfloat16
        assert (tw.tensor(np.ones((2, 2))) @ np.ones((2, 2))).dtype is tw.float64
        with tw.autocast(None):
            assert functional.linear(x, w).dtype is tw.float32
        with tw.autocast("float16"):
            assert functional.linear(x, w).dtype is tw.float16
    assert functional.linear(x, w).dtype is tw.float32
    with pytest.raises(ArgumentError, match="bfloat16 or float16"):
        tw.autocast("float64")


class Net(nn.Module):
    def __init__(self) -> None:
        tw.manual_seed(1)
        self.conv = nn.Conv2d(1, 4, 3)
        self.first, self.norm, self.last = nn.Linear(4 * 36, 32), nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Any) -> Any:
        return self.last(self.norm(self.first(self.conv(x).relu().flatten(1)).relu()))


X, LABELS = numbers(16, 1, 8, 8), np.arange(16) % 10


def test_values_and_gradients_are_those_of_pytorch(needs_compiler: None) -> None:
    torch = pytest.importorskip("torch")
    net = Net()
    theirs = torch.nn.ModuleDict(
        {
            "conv": torch.nn.Conv2d(1, 4, 3),
            "first": torch.nn.Linear(144, 32),
            "norm": torch.nn.LayerNorm(32),
            "last": torch.nn.Linear(32, 10),
        }
    )
    theirs.load_state_dict({name: torch.tensor(value) for name, value in net.state_dict().items()})

    def run(low: bool) -> tuple[Array, dict[str, Array]]:
        theirs.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            hidden = theirs["conv"](torch.tensor(X)).relu().flatten(1)
            hidden = theirs["norm"](
                theirs["first"](hidden).relu().float() if low else theirs["first"](hidden).relu()
            )
            loss = torch.nn.functional.cross_entropy(theirs["last"](hidden).float(), torch.tensor(LABELS))
        loss.backward()
        return loss.detach().numpy(), {n: p.grad.numpy() for n, p in theirs.named_parameters()}

    exact_loss, exact = run(False)
    their_loss, _ = run(True)
    for backend in ("numpy", "c"):

        def step(x: Any, y: Any) -> Any:
            loss = functional.cross_entropy(net(x), y)
            return loss, tw.gradient(loss, wrt=list(net.parameters()))

        ours, gradients = tw.compile(step, backend=backend, autocast="bfloat16")(X, LABELS)
        assert abs(float(ours) - float(their_loss)) < 0.01 * float(their_loss)
        assert 0 < abs(float(ours) - float(exact_loss)) < 0.01 * float(exact_loss)
        for (name, parameter), g in zip(net.named_parameters(), gradients, strict=True):
            assert g.dtype is parameter.dtype is tw.float32
            difference = np.linalg.norm(g.numpy() - exact[name]) / np.linalg.norm(exact[name])
            assert difference < 0.03, name


def test_a_compiled_function_sees_the_precision_around_it() -> None:
    product = tw.compile(lambda x: (x @ x), backend="numpy")
    x = numbers(4, 4)
    assert product(x).dtype is tw.float32
    with tw.autocast("bfloat16"):
        assert product(x).dtype is tw.bfloat16
    assert product(x).dtype is tw.float32
    own = tw.compile(lambda x: (x @ x), backend="numpy", autocast="float16")
    assert own(x).dtype is tw.float16
    assert tw.compile(lambda x: own(x) * 2, backend="numpy")(x).dtype is tw.float16
    assert tw.autocast("bfloat16")(lambda x: tw.matmul(x, x))(x).dtype is tw.bfloat16


@pytest.mark.parametrize("backend", ["numpy", "c", None])
def test_a_step_with_infinite_gradients_is_left_out(backend: str | None, needs_compiler: None) -> None:
    net = Net()
    optimizer = optim.Adam(net.parameters(), lr=1e-3)
    scaler = optim.GradScaler(init_scale=2.0**120, growth_interval=2)  # the first gradients are infinite

    def step(x: Any, y: Any) -> Any:
        with tw.autocast("float16"):
            loss = functional.cross_entropy(net(x), y)
        scaler.minimize(optimizer, loss)
        return loss

    train = step if backend is None else tw.compile(step, backend=backend)
    before = net.state_dict()
    train(X, LABELS)
    assert float(scaler.scale.numpy()) == 2.0**119
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert all(not slot.numpy().any() for _, slot in optimizer.named_slots())
    scaler.load_state_dict({"scale": np.float32(1024), "growth_tracker": np.int32(0)})
    losses = [float(train(X, LABELS)) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert float(scaler.scale.numpy()) == 4096.0  # grown after the second and the fourth
    assert scaler.state_dict()["growth_tracker"] == 1


def test_scaled_steps_are_plain_steps() -> None:
    plain, scaled = Net(), Net()
    optimizers = [optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (plain, scaled)]
    scaler = optim.GradScaler(init_scale=2.0**10)
    for _ in range(3):
        optimizers[0].minimize(functional.cross_entropy(plain(X), LABELS))
        scaler.minimize(optimizers[1], functional.cross_entropy(scaled(X), LABELS))
    for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ArgumentError, match="backoff_factor"):
        optim.GradScaler(backoff_factor=2.0)
