"""The LSTM models: PyTorch's values and training steps, states that continue, lengths, learning, bad
input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import optim
from thalweg.errors import ArgumentError, IndexRangeError, ShapeError
from thalweg.models import CharLSTM, LSTMClassifier

TOKENS = np.random.default_rng(0).integers(0, 7, (3, 9))


def twin(model: CharLSTM) -> Any:
    torch = pytest.importorskip("torch")
    parts = {
        "embedding": torch.nn.Embedding(7, 5),
        "lstm": torch.nn.LSTM(5, 4, 2, batch_first=True),
        "head": torch.nn.Linear(4, 7),
    }
    other = torch.nn.ModuleDict(parts).double()
    assert list(model.state_dict()) == list(other.state_dict())
    other.load_state_dict({name: torch.tensor(value) for name, value in model.state_dict().items()})
    return other


@pytest.mark.parametrize("backend", ["numpy", "c"])
def test_three_training_steps_are_those_of_pytorch(backend: str, request: pytest.FixtureRequest) -> None:
    torch = pytest.importorskip("torch")
    if backend == "c":
        request.getfixturevalue("needs_compiler")
    model = CharLSTM(7, 4, 2, embedding_size=5).to("float64")
    other = twin(model)
    ours, theirs = optim.Adam(model.parameters(), lr=0.01), torch.optim.Adam(other.parameters(), lr=0.01)

    @tw.compile(backend=backend)
    def step(tokens: Any) -> Any:
        loss = model(tokens, labels=tokens).loss
        ours.minimize(loss)
        return loss

    for _ in range(3):
        x = torch.tensor(TOKENS)
        logits = other["head"](other["lstm"](other["embedding"](x))[0])
        expected = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 7), x[:, 1:].reshape(-1))
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        assert step(TOKENS).item() == pytest.approx(expected.item(), rel=1e-9)
    for name, value in other.state_dict().items():
        np.testing.assert_allclose(
            model.state_dict()[name], value.numpy(), rtol=1e-7, atol=1e-9, err_msg=name
        )


def test_a_state_continues_a_sequence() -> None:
    model = CharLSTM(7, 4).eval()
    whole = model(TOKENS)
    first = model(TOKENS[:, :4])
    second = model(TOKENS[:, 4:], first.state)
    np.testing.assert_allclose(second.logits.numpy(), whole.logits.numpy()[:, 4:], rtol=1e-5, atol=1e-6)
    for one, other in zip(second.state, whole.state, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-6)


def test_the_classifier_does_not_see_what_is_behind_the_end() -> None:
    model = LSTMClassifier(7, 3, 4, 2).eval()
    lengths = np.array([9, 2, 5])
    changed = np.where(np.arange(9) < lengths[:, None], TOKENS, 6 - TOKENS)
    first, second = model(TOKENS, lengths), model(changed, lengths)
    assert first.logits.shape == (3, 3)
    np.testing.assert_array_equal(first.logits.numpy(), second.logits.numpy())
    alone = model(TOKENS[1:2, :2])
    np.testing.assert_allclose(first.logits.numpy()[1:2], alone.logits.numpy(), rtol=1e-5, atol=1e-6)


def test_the_classifier_learns_compiled(needs_compiler: None) -> None:
    """Which of two tokens occurs in a sequence of varying length."""
    tw.manual_seed(1)
    random = np.random.default_rng(1)
    model = LSTMClassifier(7, 2, 8, embedding_size=8)
    optimizer = optim.Adam(model.parameters(), lr=0.02)

    @tw.compile(backend="c")
    def step(tokens: Any, lengths: Any, labels: Any) -> Any:
        loss = model(tokens, lengths, labels).loss
        optimizer.minimize(loss)
        return loss

    losses = []
    for _ in range(100):
        tokens, lengths = random.integers(2, 7, (32, 10)), random.integers(1, 11, 32)
        labels = random.integers(0, 2, 32)
        tokens[np.arange(32), random.integers(0, lengths)] = labels
        losses.append(float(step(tokens, lengths, labels)))
    assert losses[0] > 0.6
    assert np.mean(losses[-5:]) < 0.1


def test_bad_input() -> None:
    model = CharLSTM(7, 4)
    with pytest.raises(IndexRangeError, match="token 7 at position"):
        model(TOKENS + 1)
    with pytest.raises(ShapeError, match=r"input_ids has shape \(9,\)"):
        model(TOKENS[0])
    with pytest.raises(ArgumentError, match=r"tuple \(h_0, c_0\)"):
        model(TOKENS, model(TOKENS).state[0])
    with pytest.raises(ShapeError, match=r"CharLSTM\.lstm: h_0 must be .* = \(2, 2, 4\)"):
        model(TOKENS[:2], model(TOKENS).state)
    with pytest.raises(ShapeError, match=r"LSTMClassifier\.lstm: lengths must be from 0 to 9"):
        LSTMClassifier(7, 2)(TOKENS, [9, 10, 1])
    with pytest.raises(ShapeError, match="labels has shape"):
        LSTMClassifier(7, 2)(TOKENS, None, TOKENS)
