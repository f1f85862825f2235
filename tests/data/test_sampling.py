"""Random numbers as functions of seed, epoch and sample: fixed for ever, and random enough."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from thalweg.data import SampleRandom
from thalweg.data.sampling import shuffled
from thalweg.errors import ArgumentError


def test_known_values_never_change() -> None:
    """A changed value would silently give other results to everyone who resumes or repeats a run."""
    assert shuffled(10, seed=0, epoch=0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert shuffled(10, seed=2**64 - 1, epoch=3).tolist() == [3, 2, 8, 0, 1, 6, 9, 5, 4, 7]
    assert SampleRandom(0, 0, [0, 1, 59_999]).integers(0, 1000, 3).tolist() == [
        [338, 269, 271],
        [635, 791, 733],
        [398, 606, 686],
    ]
    assert SampleRandom(5, 7, [2]).bits(2).tolist() == [[18011634423670455934, 7401591524128985740]]


def test_splitmix_is_the_published_one() -> None:
    """Sample 0 draws the SplitMix64 sequence that starts at the key, written here with Python integers."""
    random = SampleRandom(11, 13, [0])
    state = int(random._states[0])
    expected = []
    for _ in range(5):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        value = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
        expected.append(value ^ (value >> 31))
    assert random.bits(5)[0].tolist() == expected


def test_draws_do_not_depend_on_grouping() -> None:
    def draws(indices: Any) -> tuple[Any, Any, Any]:
        random = SampleRandom(1, 2, indices)
        return random.uniform(2), random.integers(-3, 4), random.bits(3)

    together = draws(np.arange(100))
    for index in (0, 7, 99):
        for whole, alone in zip(together, draws([index]), strict=True):
            np.testing.assert_array_equal(whole[index : index + 1], alone)
    one_by_one = SampleRandom(1, 2, [7])
    np.testing.assert_array_equal(
        np.concatenate([one_by_one.uniform(), one_by_one.uniform()], axis=1), draws([7])[0]
    )


def test_seeds_epochs_and_samples_differ() -> None:
    keys = {
        int(SampleRandom(seed, epoch, [sample]).bits()[0, 0])
        for seed in range(20)
        for epoch in range(20)
        for sample in range(20)
    }
    assert len(keys) == 20**3


def test_distribution() -> None:
    random = SampleRandom(3, 0, np.arange(20_000))
    uniform = random.uniform(3)
    assert uniform.min() >= 0 and uniform.max() < 1
    assert np.abs(uniform.mean(axis=0) - 0.5).max() < 0.01
    correlation = np.corrcoef(np.concatenate([uniform.T, uniform[:, :1].T.copy()[:, ::-1]]))
    assert np.abs(correlation - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(uniform[1:, 0], uniform[:-1, 0])[0, 1]) < 0.03  # neighbouring samples
    counts = np.bincount(random.integers(0, 5)[:, 0], minlength=5)
    assert ((counts - 4000) ** 2 / 4000).sum() < 20  # chi-square, 4 degrees of freedom: p < 0.0005
    values = random.integers(-2, 3, 4)
    assert set(np.unique(values)) == {-2, -1, 0, 1, 2}


def test_shuffled_is_a_permutation_of_every_length() -> None:
    for count in (0, 1, 2, 1000):
        assert sorted(shuffled(count, 1, 1).tolist()) == list(range(count))
    assert shuffled(1000, 1, 1).tolist() != shuffled(1000, 1, 2).tolist() != shuffled(1000, 2, 1).tolist()


def test_arguments() -> None:
    for seed in (-1, 2**64, 1.5, "0", None):
        with pytest.raises(ArgumentError, match="expected a whole number"):
            SampleRandom(seed, 0, [0])
    with pytest.raises(ArgumentError, match=r"integers\(low=3, high=3\)"):
        SampleRandom(0, 0, [0]).integers(3, 3)
