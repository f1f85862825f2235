"""Beam search: the best texts by the sum of their tokens' log-probabilities, as `transformers` has it.

In: log-probabilities of the next token of all running beams, step by step. Out: which beams go on with which
tokens, and in the end the best text of each prompt. Called by `models.generation`, which runs the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thalweg.errors import ArgumentError

Array = np.ndarray[Any, Any]
_NEVER = -1.0e9  # the score of a beam that does not exist yet


@dataclass
class _Text:
    """The beams of one prompt: those that run, and the finished ones with their scores by length."""

    running: list[tuple[float, list[int]]]
    finished: list[tuple[float, list[int]]] = field(default_factory=list)
    improvable: bool = True


class BeamSearch:
    """`beams` running texts for each of `prompts` prompts; at most `longest` new tokens.

    The score of a finished text is its log-probability divided by length ** `length_penalty`.
    `early_stopping`: True ends a prompt with as many finished texts as beams, False when the running ones are
    worse at their present length, "never" when they cannot become better at any length.
    """

    def __init__(
        self,
        prompts: int,
        beams: int,
        longest: int,
        ends: Array,
        stop: Sequence[Sequence[int]] = (),
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
    ) -> None:
        if isinstance(beams, bool) or not isinstance(beams, int) or beams < 2:
            raise ArgumentError(f"num_beams must be an integer from 1 on, received {beams!r}")
        if early_stopping not in (True, False, "never"):
            raise ArgumentError(f'early_stopping must be True, False or "never", received {early_stopping!r}')
        self.beams, self.longest = beams, longest
        self.ends, self.stop = {int(end) for end in ends}, [list(words) for words in stop if len(words)]
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        self.length = 0  # new tokens so far
        # only the first beam of a prompt counts at first: all are the same
        empty: list[tuple[float, list[int]]] = [(_NEVER if beam else 0.0, []) for beam in range(beams)]
        self.texts = [_Text(list(empty)) for _ in range(prompts)]
        self.done = False

    def advance(self, log_probabilities: Array) -> tuple[Array, Array]:
        """The rows [prompts * beams] that go on and the tokens they go on with, given log-probabilities
        [prompts * beams, V]; sets `done`.
        """
        self.length += 1
        rows, tokens, all_end = [], [], True
        for number, text in enumerate(self.texts):
            first = number * self.beams
            before = np.array([[score] for score, _ in text.running])
            totals = log_probabilities[first : first + self.beams] + before
            candidates = self._candidates(totals, text)
            ended = [self._ends(written) for _, written, _ in candidates]
            all_end &= all(ended)
            self._finish(text, candidates, ended)
            pairs = list(zip(candidates, ended, strict=True))
            chosen = [item for item, over in pairs if not over]
            chosen += [(item[0] + _NEVER, item[1], item[2]) for item, over in pairs if over]
            chosen = chosen[: self.beams]
            text.running = [(score, written) for score, written, _ in chosen]
            rows += [first + beam for _, _, beam in chosen]
            tokens += [written[-1] for _, written, _ in chosen]
            self._judge(text)
        full = all(len(text.finished) == self.beams for text in self.texts)
        improvable = any(text.improvable for text in self.texts)
        self.done = all_end or not improvable or (full and self.early_stopping is True)
        return np.array(rows), np.array(tokens)

    def best(self) -> list[list[int]]:
        """The new tokens of the best text of each prompt."""
        return [max(text.finished, key=lambda item: item[0])[1] for text in self.texts]

    def _candidates(self, totals: Array, text: _Text) -> list[tuple[float, list[int], int]]:
        """Score, tokens and beam of the best continuations: enough that `beams` of them do not end."""
        count = min(max(2, 1 + len(self.ends)) * self.beams, totals.size)
        flat = totals.reshape(-1)
        order = np.argsort(-flat, kind="stable")[:count]
        width = totals.shape[1]
        return [
            (float(flat[place]), [*text.running[place // width][1], int(place % width)], int(place // width))
            for place in order
        ]

    def _ends(self, written: list[int]) -> bool:
        stopped = any(written[-len(words) :] == words for words in self.stop)
        return stopped or written[-1] in self.ends or len(written) >= self.longest

    def _finish(self, text: _Text, candidates: list[tuple[float, list[int], int]], ended: list[bool]) -> None:
        """Add the ended ones of the best `beams` candidates, and keep the best finished texts."""
        full = len(text.finished) == self.beams and self.early_stopping is True
        if full or not text.improvable:
            return
        scale = self.length**self.length_penalty
        for (score, written, _), over in list(zip(candidates, ended, strict=True))[: self.beams]:
            if over:
                text.finished.append((score / scale, written))
        text.finished = sorted(text.finished, key=lambda item: -item[0])[: self.beams]

    def _judge(self, text: _Text) -> None:
        """Whether a running text may still become better than the worst finished one."""
        if len(text.finished) < self.beams:
            return
        ever = self.early_stopping == "never" and self.length_penalty > 0
        best = text.running[0][0] / (self.longest if ever else self.length) ** self.length_penalty
        text.improvable &= best > text.finished[-1][0]
