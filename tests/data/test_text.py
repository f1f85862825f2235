"""Windows of a text: what is in them, their order, resuming, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thalweg import data
from thalweg.errors import ArgumentError, DataError

TOKENS = np.arange(1000)


def test_targets_are_the_inputs_moved_by_one() -> None:
    loader = data.WindowLoader(TOKENS, context=7, batch_size=5, steps=200, seed=3)
    assert len(loader) == 200 and loader.samples == 1000
    batches = list(loader)
    assert len(batches) == 200 and len(loader) == 0
    for inputs, targets in batches:
        assert inputs.shape == targets.shape == (5, 7)
        np.testing.assert_array_equal(inputs + 1, targets)
        np.testing.assert_array_equal(np.diff(inputs, axis=1), 1)
    starts = np.concatenate([inputs[:, 0] for inputs, _ in batches])
    assert starts.min() < 20 and starts.max() > 972  # everywhere, up to both ends
    assert 600 < len(set(starts.tolist())) < 670  # 1000 draws of 993: 993 (1 - 1/e) = 628 different ones


def test_every_place_can_be_drawn_and_no_other() -> None:
    loader = data.WindowLoader(np.arange(6), context=4, batch_size=50, steps=1)
    ((inputs, targets),) = loader
    assert set(inputs[:, 0].tolist()) == {0, 1} and targets.max() == 5
    ((inputs, targets),) = data.WindowLoader(np.arange(5), context=4, batch_size=3, steps=1)
    assert inputs.tolist() == [[0, 1, 2, 3]] * 3 and targets.tolist() == [[1, 2, 3, 4]] * 3


def test_iterations_end_where_an_evaluation_is_due_and_resume_in_their_middle() -> None:
    whole = list(data.WindowLoader(TOKENS, 4, 2, steps=10, seed=1))
    loader = data.WindowLoader(TOKENS, 4, 2, steps=10, seed=1, every=4)
    assert loader.iterations == 3 and len(loader) == 4
    found = [*loader]
    iterator = iter(loader)
    found += [next(iterator), next(iterator)]
    other = data.WindowLoader(TOKENS, 4, 2, steps=10, seed=9, every=4)
    other.load_state_dict(loader.state_dict())
    assert other.iterations == 2 and len(other) == 4
    rest = [*other]
    assert len(rest) == 2 and len(other) == 2
    found += [*rest, *other]
    assert [*other] == [] and other.iterations == 0
    for (inputs, targets), (expected, others) in zip(found, whole, strict=True):
        np.testing.assert_array_equal(inputs, expected)
        np.testing.assert_array_equal(targets, others)


def test_an_iteration_that_was_left_behind_its_last_batch_is_not_begun_again() -> None:
    """As `fit` does when Ctrl-C comes in the last step before an evaluation."""
    loader = data.WindowLoader(TOKENS, 4, 2, steps=10, every=4)
    left = [iter(loader)]
    for _ in range(4):
        next(left[0])
    other = data.WindowLoader(TOKENS, 4, 2, steps=10, every=4)
    other.load_state_dict(loader.state_dict())
    assert other.iterations == 3 and [*other] == []
    assert other.iterations == 2 and [len([*other]) for _ in range(3)] == [4, 2, 0]


@pytest.mark.parametrize(("count", "context", "batch_size"), [(50, 7, 3), (43, 7, 3), (44, 7, 3), (2, 5, 4)])
def test_consecutive_windows_predict_every_token_once(count: int, context: int, batch_size: int) -> None:
    targets_seen: list[int] = []
    for inputs, targets in data.consecutive_windows(np.arange(count), context, batch_size):
        assert inputs.shape == targets.shape == (batch_size, context)
        counted = targets != -100
        np.testing.assert_array_equal(inputs[counted] + 1, targets[counted])
        targets_seen += targets[counted].tolist()
    assert targets_seen == list(range(1, count))


def test_split() -> None:
    training, validation = data.split_tokens(TOKENS)
    assert len(training) == 900 and len(validation) == 100
    np.testing.assert_array_equal(np.concatenate([training, validation]), TOKENS)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("zwölf\r\nBoxkämpfer\n".encode())
    assert data.read_text(path) == "zwölf\r\nBoxkämpfer\n"
    path.write_bytes(b"abc\xfc")
    with pytest.raises(DataError, match="not text in UTF-8: byte 3 is 0xfc; convert it"):
        data.read_text(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        data.read_text(path)
    with pytest.raises(DataError, match="cannot read"):
        data.read_text(tmp_path / "absent.txt")


def test_wrong_uses_are_explained() -> None:
    with pytest.raises(DataError, match=r"a window needs 9 tokens .* the text has 8"):
        data.WindowLoader(np.arange(8), 8, 2, 1)
    with pytest.raises(ArgumentError, match="steps must be at least 1"):
        data.WindowLoader(TOKENS, 8, 2, 0)
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        data.split_tokens(TOKENS, 1.0)
    with pytest.raises(DataError, match="at least two"):
        next(data.consecutive_windows(np.arange(1), 4, 2))
    loader = data.WindowLoader(TOKENS, 8, 2, 5)
    with pytest.raises(DataError, match="a text of 900 tokens, this one has 1000"):
        loader.load_state_dict({"seed": 0, "consumed": 1, "unfinished": 1, "tokens": 900})
    with pytest.raises(DataError, match="has the entries"):
        loader.load_state_dict({"seed": 0, "epoch": 1})
