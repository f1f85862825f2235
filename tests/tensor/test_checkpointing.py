"""`tw.checkpoint`: the same results, gradients and random numbers bit for bit, from less memory."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.errors import ArgumentError
from thalweg.plan import Plan


class Block(nn.Module):
    """Linear, batch norm, dropout: something that reads parameters, assigns buffers and draws numbers."""

    def __init__(self, width: int) -> None:
        self.linear = nn.Linear(width, 4 * width)
        self.norm = nn.BatchNorm1d(4 * width)
        self.dropout = nn.Dropout(0.3)
        self.back = nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        return x + self.back(self.dropout(self.norm(self.linear(x)).gelu()))


class Network(nn.Module):
    def __init__(self, width: int, depth: int, again: bool) -> None:
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.again = again

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = tw.checkpoint(block)(x) if self.again else block(x)
        return x


def trained(again: bool, backend: str | None, steps: int = 3) -> tuple[list[np.ndarray], Plan]:
    """Loss and all state after some steps, and the plan."""
    tw.manual_seed(1)
    model = Network(8, 3, again)
    optimizer = optim.Adam(model.parameters(), lr=0.01)

    def step(x: Any) -> Any:
        loss = (model(x) ** 2).mean()
        optimizer.minimize(loss)
        return loss

    run = step if backend is None else tw.compile(step, backend=backend)
    data = np.random.default_rng(0).standard_normal((steps, 6, 8)).astype(np.float32)
    losses = [run(tw.tensor(x)).numpy() for x in data]
    state = [array for _, array in sorted(model.state_dict().items())]
    return [*losses, *map(np.asarray, state)], tw.compile(step).plan(tw.spec((6, 8)))


@pytest.mark.parametrize("backend", [None, "numpy", "c"])
def test_training_has_the_same_bits(backend: str | None, needs_compiler: None) -> None:
    plain, _ = trained(False, backend)
    again, _ = trained(True, backend)
    for one, other in zip(plain, again, strict=True):
        np.testing.assert_array_equal(one, other)


def deep(again: bool, depth: int = 8) -> Plan:
    blocks = [nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(depth)]
    optimizer = optim.SGD([p for block in blocks for p in block.parameters()], lr=0.1)

    @tw.compile
    def step(x: Any) -> Any:
        for block in blocks:
            x = x + (tw.checkpoint(block)(x) if again else block(x))
        loss = (x * x).sum()
        optimizer.minimize(loss)
        return loss

    found: Plan = step.plan(tw.spec((5, 64)))
    return found


def test_activations_inside_are_not_kept() -> None:
    plain, again = deep(False), deep(True)
    assert again.arena_bytes < 0.45 * plain.arena_bytes
    assert plain.operations < again.operations < 1.4 * plain.operations


def test_eager_history_holds_nothing_from_inside() -> None:
    weight = tw.Parameter(np.full((4,), 0.5, np.float32))
    gc.collect()

    def large(w: Any) -> Any:
        return (w.reshape(4, 1) * tw.ones((4, 250_000))).tanh().exp().sum()

    def bytes_behind(loss: Any) -> int:
        from thalweg.tensor.eager import history

        return sum(array.nbytes for node in history(loss._read()) for array in node.arrays)

    plain, again = large(weight), tw.checkpoint(large)(weight)
    assert bytes_behind(plain) > 10_000_000 > 1000 > bytes_behind(again)
    np.testing.assert_array_equal(
        tw.gradient(plain, wrt=weight).numpy(), tw.gradient(again, wrt=weight).numpy()
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_every_order(compiled: bool, needs_compiler: None) -> None:
    f = tw.checkpoint(lambda x: (x.sin() * x).exp())

    def third(x: Any) -> Any:
        g = lambda v: f(v).sum()  # noqa: E731
        for _ in range(3):
            g = (lambda h: lambda v: tw.grad(h)(v).sum())(g)
        return g(x)

    def expected(x: Any) -> Any:
        g = lambda v: (v.sin() * v).exp().sum()  # noqa: E731
        for _ in range(3):
            g = (lambda h: lambda v: tw.grad(h)(v).sum())(g)
        return g(x)

    x = tw.tensor(np.linspace(-1, 1, 5))
    found = (tw.compile(third) if compiled else third)(x)
    np.testing.assert_allclose(found.numpy(), expected(x).numpy(), rtol=1e-12)


def test_regions_in_regions_and_in_loops(needs_compiler: None) -> None:
    inner = tw.checkpoint(lambda c, w: (c * w).tanh())
    outer = tw.checkpoint(lambda c, w: inner(c, w) + c)

    def loss(w: Any, region: Any) -> Any:
        carry, _ = tw.scan(lambda c, x: (region(c, w) * x, None), tw.ones((3,)), tw.tensor([1.0, 2.0, 0.5]))
        return carry.sum()

    def plain(c: Any, w: Any) -> Any:
        return (c * w).tanh() + c

    w = tw.tensor(np.array([0.3, -0.2, 1.5], np.float32))
    for wrap in (lambda f: f, tw.compile):
        again = wrap(tw.grad(lambda v: loss(v, outer)))(w).numpy()
        np.testing.assert_allclose(again, tw.grad(lambda v: loss(v, plain))(w).numpy(), rtol=1e-6)


def test_results_are_any_nest_and_other_arguments_pass(needs_compiler: None) -> None:
    @tw.checkpoint
    def both(x: Any, *, scale: float, names: tuple[str, ...]) -> dict[str, Any]:
        return dict.fromkeys(names, (x * scale, None))

    def run(x: Any) -> Any:
        return both(x, scale=2.0, names=("a", "b"))

    for found in (run(tw.ones(3)), tw.compile(run)(tw.ones(3))):
        assert sorted(found) == ["a", "b"]
        assert found["a"][0].tolist() == [2.0, 2.0, 2.0] and found["b"][1] is None
    with tw.no_grad():
        assert run(tw.ones(3))["a"][0].tolist() == [2.0, 2.0, 2.0]


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"write tw\.checkpoint\(block\)\(x\)"):
        tw.checkpoint(tw.ones(3))
