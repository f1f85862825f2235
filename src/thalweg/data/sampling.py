"""Order and randomness as functions of seed, epoch and sample number only.

In: seed, epoch, sample numbers. Out: a permutation, or random numbers per sample. Called by `DataLoader` and
random transforms. Nothing here depends on batch size, prefetching, the machine or NumPy's version: a run that
stops and resumes in the middle of an epoch sees exactly what an uninterrupted one sees.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import ArgumentError

__all__ = ["SampleRandom", "check_seed", "shuffled"]

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def check_seed(seed: int) -> int:
    """`seed` as a Python integer, if it lies in 0..2**64-1."""
    try:
        value = operator.index(seed)
    except TypeError:
        raise ArgumentError(f"seed is {seed!r}; expected a whole number of at least 0") from None
    if not 0 <= value <= _MASK:
        raise ArgumentError(f"seed is {value}; expected a whole number in 0..2**64-1")
    return value


def shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A random permutation of 0..count-1.

    Sample i's sort key is the i-th number of NumPy's Philox generator with the 128-bit key (seed, epoch): its
    raw numbers are guaranteed to stay the same, which those of `Generator.permutation` are not (NEP 19).
    """
    keys = np.random.Philox(key=check_seed(seed) | (epoch << 64)).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


class SampleRandom:
    """Random numbers for the samples of one batch, drawn for all of them at once.

    Every number is a function of seed, epoch, sample number and how many were drawn before it for that
    sample. It is number (sample << 32) + draw of the SplitMix64 generator (Steele, Lea, Flood 2014) started
    at a hash of seed and epoch; that generator can be entered at any place.
    """

    def __init__(self, seed: int, epoch: int, indices: Any) -> None:
        key = _mixed_integer(_mixed_integer(check_seed(seed) + _GOLDEN) + epoch * _GOLDEN)
        places = np.asarray(indices, dtype=np.uint64) << np.uint64(32)
        self._states = places * np.uint64(_GOLDEN) + np.uint64(key)
        self._drawn = 0

    def __len__(self) -> int:
        return len(self._states)

    def bits(self, count: int = 1) -> NDArray[np.uint64]:
        """Uniform 64-bit numbers [samples, count]."""
        draws = np.arange(self._drawn + 1, self._drawn + 1 + count, dtype=np.uint64)
        self._drawn += count
        state = self._states[:, np.newaxis] + draws * np.uint64(_GOLDEN)
        state ^= state >> np.uint64(30)
        state *= np.uint64(0xBF58476D1CE4E5B9)
        state ^= state >> np.uint64(27)
        state *= np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
        return state

    def uniform(self, count: int = 1) -> NDArray[np.float64]:
        """Numbers [samples, count] uniform in [0, 1), multiples of 2**-53."""
        return (self.bits(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, low: int, high: int, count: int = 1) -> NDArray[np.int64]:
        """Whole numbers [samples, count] uniform in low..high-1; the range may span up to 2**32."""
        if not 0 < high - low <= 2**32:
            raise ArgumentError(f"integers(low={low}, high={high}): expected low < high <= low + 2**32")
        scaled = (self.bits(count) >> np.uint64(32)) * np.uint64(high - low)
        return (scaled >> np.uint64(32)).astype(np.int64) + low


def _mixed_integer(value: int) -> int:
    """SplitMix64's output function on one Python integer."""
    value &= _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
