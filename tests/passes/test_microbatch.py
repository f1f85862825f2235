"""Micro-batches and rematerialisation: what they compute, what they refuse, and how they are chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.errors import ArgumentError, MemoryLimitError, UnsupportedError
from thalweg.interpret import interpret
from thalweg.models.lenet import LeNet
from thalweg.passes import prepare
from thalweg.passes.microbatch import microbatch
from thalweg.passes.rematerialise import find_segments, rematerialise


class Recurrent(nn.Module):
    """Samples on axis 1, joined with time in one axis: [T * B, H]."""

    def __init__(self) -> None:
        self.lstm = nn.LSTM(3, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Any) -> Any:
        return self.head(self.lstm(x)[0][-1])


class Tokens(nn.Module):
    """Embedding and attention: gathers, scatters and [B * T, H]."""

    def __init__(self) -> None:
        self.embedding = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        return self.head(self.layer(self.embedding(x)).mean(axis=1))


def mlp(depth: int = 6) -> nn.Module:
    layers = [nn.Linear(6, 64), nn.GELU()]
    for _ in range(depth):
        layers += [nn.Linear(64, 64), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(64, 4))


class Positions(nn.Module):
    """Many positions of each sample: activations that weigh more than parameters."""

    def __init__(self) -> None:
        self.layers = mlp(12)

    def forward(self, x: Any) -> Any:
        return self.layers(x).mean(axis=1)


MODELS: dict[str, tuple[Any, Any]] = {
    "lenet": (LeNet, lambda batch: tw.spec((batch, 1, 28, 28))),
    "mlp": (mlp, lambda batch: tw.spec((batch, 6))),
    "recurrent": (Recurrent, lambda batch: tw.spec((7, batch, 3))),
    "positions": (Positions, lambda batch: tw.spec((batch, 50, 6))),
    "tokens": (Tokens, lambda batch: tw.spec((batch, 5), "int64")),
}


def step_of(model: Any, **options: Any) -> Any:
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    @tw.compile(**options)
    def step(x: Any, y: Any) -> Any:
        scores = model(x)
        loss = nn.functional.cross_entropy(scores, y)
        optimizer.minimize(loss)
        return loss, scores

    return step


def examples(name: str, batch: int) -> tuple[Any, Any]:
    return MODELS[name][1](batch), tw.spec((batch,), "int64")


def data(name: str, batch: int) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    type = MODELS[name][1](batch).type
    x = random.standard_normal(type.shape).astype(np.float32)
    if not type.dtype.is_floating:
        x = random.integers(0, 11, type.shape)
    labels = random.integers(0, 4, batch)
    labels[1] = -100  # ignored: the mean counts the others
    return [x, labels]


def prepared(step: Any, name: str, batch: int) -> Any:
    return prepare(step.graph(*examples(name, batch)), lambda node: False)


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_of_a_batch_give_what_the_whole_gives(name: str) -> None:
    tw.manual_seed(0)
    step = step_of(MODELS[name][0]())
    whole = prepared(step, name, 8)
    inputs, state = data(name, 8), [np.array(e.holder.data) for e in whole.state]
    expected = interpret(whole, inputs, state)
    for count in (2, 4):
        changed = microbatch(whole, prepared(step, name, 8 // count), count).verify()
        found = interpret(changed, inputs, state)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("name", MODELS)
def test_recomputed_values_have_the_same_bits(name: str) -> None:
    tw.manual_seed(0)
    whole = prepared(step_of(MODELS[name][0]()), name, 8)
    inputs, state = data(name, 8), [np.array(e.holder.data) for e in whole.state]
    expected = interpret(whole, inputs, state)
    segments = find_segments(whole)
    for level in (1, 2):
        changed = rematerialise(segments, [level] * len(segments)).verify()
        assert len(changed.nodes) > len(whole.nodes)
        for one, other in zip(interpret(changed, inputs, state), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def trained(name: str, **options: Any) -> list[np.ndarray]:
    tw.manual_seed(0)
    model = MODELS[name][0]()
    step = step_of(model, **options)
    x, y = data(name, 8)
    losses = [np.array(step(x, y)[0]) for _ in range(3)]
    return [*losses, *(np.array(p.data) for p in model.parameters())]


@pytest.mark.parametrize("name", ["mlp", "tokens", "lenet"])
def test_compiled_accumulation(name: str, needs_compiler: None) -> None:
    usual = trained(name)
    parts = trained(name, accumulate=4)
    for one, other in zip(parts, usual, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    for threads in (1, 3):  # a fixed number of parts has the same bits, whoever computes them
        for one, other in zip(trained(name, accumulate=4, threads=threads), parts, strict=True):
            np.testing.assert_array_equal(one, other)


def test_results_of_samples_are_put_together_again() -> None:
    step = step_of(mlp(1), accumulate=4, backend="numpy")
    x, y = data("mlp", 8)
    loss, scores = step(x, y)
    assert scores.shape == (8, 4) and loss.shape == ()


def test_batch_norm_is_refused_by_name() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            self.first = nn.Linear(6, 8)
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x: Any) -> Any:
            return self.norm(self.first(x))

    step = step_of(Normed(), accumulate=2)
    with pytest.raises(UnsupportedError, match=r"Normed\.norm, sum at .*test_microbatch\.py"):
        step.plan(*examples("mlp", 8))


def test_mixing_samples_is_refused() -> None:
    weight = tw.Parameter(np.ones((6, 4), np.float32))
    optimizer = optim.SGD([weight], lr=0.1)

    @tw.compile(accumulate=2)
    def step(x: Any) -> Any:
        y = x @ weight
        loss = (y @ y.T).sum()
        optimizer.minimize(loss)
        return loss

    with pytest.raises(UnsupportedError, match=r"the batch cannot be cut"):
        step.plan(tw.spec((8, 6)))


def test_a_number_that_does_not_divide_the_batch_is_refused() -> None:
    step = step_of(mlp(1), accumulate=3)
    with pytest.raises(ArgumentError, match="accumulate=3 does not divide the batch of 8 samples"):
        step.plan(*examples("mlp", 8))
    with pytest.raises(ArgumentError, match="accumulate is a positive integer"):
        tw.compile(lambda x: x, accumulate=0)


# ---- fitting -----------------------------------------------------------------------------------------------


def test_a_step_is_made_to_fit(needs_compiler: None) -> None:
    plan = step_of(Positions()).plan(*examples("positions", 6))
    usual = plan.total_bytes(1)
    assert "as it is" in str(plan.fit(usual, threads=1))
    floor = usual - plan.arena_bytes
    limit = floor + int(0.65 * plan.arena_bytes)
    found = plan.fit(limit, threads=1)
    assert found.total_bytes == found.plan.total_bytes(1) <= limit < usual
    assert (found.micro_batches > 1 or any(found.recomputed)) and found.slowdown < 2.5

    def bits(**options: Any) -> list[np.ndarray]:
        tw.manual_seed(0)
        model = Positions()
        step = step_of(model, threads=1, **options)
        x, y = data("positions", 6)
        for _ in range(2):
            step(x, y)
        assert step.program(x, y).plan.total_bytes(1) <= options.get("memory_limit", usual)
        return [np.array(p.data) for p in model.parameters()]

    for one, other in zip(bits(memory_limit=limit), bits(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_what_cannot_fit_says_what_would() -> None:
    plan = step_of(mlp(3)).plan(*examples("mlp", 4))
    with pytest.raises(MemoryLimitError, match=r"the least change that fits: memory=(\d+)") as error:
        plan.fit("1KB", threads=1)
    least = int(str(error.value).split("memory=")[1].split()[0])
    assert plan.fit(least, threads=1).total_bytes <= least


def test_the_largest_batch_that_fits() -> None:
    plan = step_of(mlp(2)).plan(*examples("mlp", 4))
    assert plan.batch_size == 4
    limit = plan.total_bytes(1) * 2
    largest = plan.largest_batch(limit, threads=1)
    step = step_of(mlp(2))
    assert step.plan(*examples("mlp", largest)).total_bytes(1) <= limit
    assert step.plan(*examples("mlp", largest + 1)).total_bytes(1) > limit
    with pytest.raises(MemoryLimitError, match="for a batch of one sample"):
        plan.largest_batch("1KB", threads=1)


def test_bytes_by_batch_go_through_exact_plans() -> None:
    plan = step_of(mlp(2)).plan(*examples("mlp", 4))
    found = plan.bytes_by_batch([64, 128, 192, 256], threads=1)
    for size, nbytes in found.points.items():
        assert plan.step.plan(size).total_bytes(1) == nbytes
        assert abs(found(size) - nbytes) <= found.error * nbytes + 1
    assert found.error < 0.02 and "bytes for a batch of B samples" in str(found)
    with pytest.raises(ArgumentError, match="three different"):
        plan.bytes_by_batch([4, 8])


@pytest.mark.parametrize("text", ["2 GX", "", -1, 0, True, "GB", None])
def test_amounts_that_make_no_sense_are_refused(text: Any) -> None:
    with pytest.raises(ArgumentError, match="an amount of memory"):
        step_of(mlp(1)).plan(*examples("mlp", 4)).fit(text)


def test_amounts() -> None:
    from thalweg.plan.sizes import bytes_of

    assert [bytes_of(t) for t in ("2GB", "1.5 MiB", "256k", "512", 7)] == [
        2_000_000_000,
        3 << 19,
        256_000,
        512,
        7,
    ]
