"""Training data from a plain text file: tokens, their split, and batches of windows.

In: a text file and a tokenizer. Out: tokens [N], and batches (inputs, targets), both [B, T], where targets
are the inputs moved by one. Called by training scripts and the command line.

    tokens = tokenizer.encode(read_text("book.txt"))
    training, validation = split_tokens(tokens)
    loader = WindowLoader(training, context=256, batch_size=16, steps=2000, seed=0)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.data.sampling import SampleRandom, check_seed
from thalweg.errors import ArgumentError, DataError
from thalweg.train.progress import Wording

__all__ = ["WindowLoader", "consecutive_windows", "read_text", "split_tokens"]

Tokens = NDArray[np.int64]

IGNORED = -100  # the target that `cross_entropy` leaves out


def read_text(path: str | os.PathLike[str]) -> str:
    """The content of a text file in UTF-8, line ends as they are. Raises `DataError`."""
    name = os.fspath(path)
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"cannot read {name!r}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name!r} is not text in UTF-8: byte {error.start} is {error.object[error.start]:#04x}; "
            "convert it (iconv -f latin1 -t utf-8)"
        ) from error
    if not text:
        raise DataError(f"{name!r} is empty")
    return text


def split_tokens(tokens: Tokens, validation: float = 0.1) -> tuple[Tokens, Tokens]:
    """The first part of the tokens for training and the last one, a share of `validation`, for validation."""
    if not 0 < validation < 1:
        raise ArgumentError(f"validation is the share between 0 and 1 to hold back, received {validation!r}")
    place = int(len(tokens) * (1 - validation))
    return tokens[:place], tokens[place:]


class WindowLoader:
    """Batches of windows at random places of a long sequence of tokens, for `train.fit`.

    One iteration gives the batches up to the next multiple of `every` (default: all `steps` in one), so that
    an "epoch" of `fit` is what lies between two evaluations. What batch i holds follows from `seed` and i
    alone: a run that was stopped and resumed sees the batches of an uninterrupted one.
    """

    def __init__(
        self,
        tokens: Tokens,
        context: int,
        batch_size: int,
        steps: int,
        seed: int = 0,
        every: int | None = None,
    ) -> None:
        for name, value in (("context", context), ("batch_size", batch_size), ("steps", steps)):
            if value < 1:
                raise ArgumentError(f"WindowLoader: {name} must be at least 1, received {value!r}")
        if len(tokens) < context + 1:
            raise DataError(
                f"a window needs {context + 1} tokens (context={context} and the one after it), the text has "
                f"{len(tokens)}; take a longer text, or a smaller context"
            )
        self.tokens = np.asarray(tokens)
        self.context, self.batch_size, self.steps = context, batch_size, steps
        self.every = steps if every is None else every
        self.seed = check_seed(seed)
        self._next = 0
        self._end: int | None = None  # of the iteration that is under way

    @property
    def iterations(self) -> int:
        """How many iterations come yet, the one under way included."""
        begin = self._next if self._end is None else self._end
        later = -(-self.steps // self.every) - begin // self.every if begin < self.steps else 0
        return later + (self._end is not None)

    @property
    def samples(self) -> int:
        """Windows of the iteration that is under way, or comes next."""
        return len(self) * self.batch_size

    def batch(self, number: int) -> tuple[Tokens, Tokens]:
        """Inputs and targets [B, T] of batch `number`, counted from 0."""
        samples = np.arange(self.batch_size) + number * self.batch_size
        starts = SampleRandom(self.seed, 0, samples).integers(0, len(self.tokens) - self.context)[:, 0]
        windows = self.tokens[starts[:, None] + np.arange(self.context + 1)]
        return windows[:, :-1], windows[:, 1:]

    def __len__(self) -> int:
        """Batches of the iteration that is under way, or comes next."""
        begin = (self._next if self._end is None else self._end - 1) // self.every * self.every
        return min(begin + self.every, self.steps) - begin

    def __iter__(self) -> Iterator[tuple[Tokens, Tokens]]:
        if self._end is None:
            self._end = min((self._next // self.every + 1) * self.every, self.steps)
        while self._next < self._end:
            self._next += 1
            yield self.batch(self._next - 1)
        self._end = None

    @property
    def wording(self) -> Wording:
        """`train.fit` counts steps and tokens, not epochs and windows."""
        return Wording("tokens", self.context, self.steps)

    def state_dict(self) -> dict[str, int]:
        """`seed`, the number of batches handed out (`consumed`), whether the iteration that gave the last one
        is `unfinished`, and the number of tokens.
        """
        return {
            "seed": self.seed,
            "consumed": self._next,
            "unfinished": int(self._end is not None),
            "tokens": len(self.tokens),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict()` was taken; the tokens must be the same."""
        if set(state) != set(self.state_dict()):
            raise DataError(
                f"the state of a WindowLoader has the entries {sorted(self.state_dict())}, got "
                f"{sorted(state)}"
            )
        if state["tokens"] != len(self.tokens):
            raise DataError(
                f"the state belongs to a text of {state['tokens']} tokens, this one has {len(self.tokens)}; "
                "resume with the same text"
            )
        self.seed, self._next, self._end = check_seed(state["seed"]), int(state["consumed"]), None
        if state["unfinished"]:  # it ends where it would have ended, and may have nothing left
            self._end = min(-(-self._next // self.every) * self.every, self.steps)


def consecutive_windows(tokens: Tokens, context: int, batch_size: int) -> Iterator[tuple[Tokens, Tokens]]:
    """All tokens in windows one behind the other, as batches (inputs, targets) of one shape [B, T].

    Every token but the first is a target once; what fills up the last batch has the target -100, which
    `cross_entropy` leaves out. Raises `DataError` for fewer than two tokens.
    """
    count = len(tokens) - 1
    if count < 1:
        raise DataError(f"there is nothing to predict in {len(tokens)} tokens; at least two are needed")
    size = batch_size * context
    for begin in range(0, count, size):
        inputs, targets = np.zeros(size, np.int64), np.full(size, IGNORED, np.int64)
        end = min(begin + size, count)
        inputs[: end - begin], targets[: end - begin] = tokens[begin:end], tokens[begin + 1 : end + 1]
        yield inputs.reshape(batch_size, context), targets.reshape(batch_size, context)
