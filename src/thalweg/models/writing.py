"""Text from a model and a tokenizer: `write`.

In: a model that writes (GPT-2, Llama, T5, `CharLSTM`), a tokenizer and a prompt as text. Out: pieces of text,
each as soon as it is certain. Called by users and the command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from thalweg.errors import ArgumentError
from thalweg.models.generation import end_tokens, positions

__all__ = ["write"]

Array = np.ndarray[Any, Any]


def write(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    max_new_tokens: int = 200,
    seed: int | None = None,
    **options: Any,
) -> Iterator[str]:
    """What the model writes behind `prompt`, piece by piece: `print(piece, end="", flush=True)`.

    `options` are those of `model.stream`: do_sample, temperature, top_k, top_p, repetition_penalty, backend.
    A text may grow beyond the model's positions: it then goes on behind its second half. Raises
    `ArgumentError` for an empty prompt and one that is longer than the model's positions, `IndexRangeError`
    where the tokenizer has more tokens than the model.
    """
    tokens = tokenizer.encode(prompt)
    if not len(tokens):
        raise ArgumentError("the prompt is empty; write at least one character, such as a line break")
    longest = None if hasattr(model, "encode") else positions(model)
    if longest is not None and len(tokens) >= longest:
        raise ArgumentError(
            f"the prompt has {len(tokens)} tokens, the model {longest} positions, of which the answer needs "
            "some; cut the prompt"
        )
    return _pieces(model, tokenizer, tokens, max_new_tokens, longest, seed, options)


def _pieces(
    model: Any,
    tokenizer: Any,
    tokens: Array,
    count: int,
    longest: int | None,
    seed: int | None,
    options: dict[str, Any],
) -> Iterator[str]:
    """The text of all new tokens but those that end it."""
    ends = set(end_tokens(model, None, None)[0].tolist()) if hasattr(model, "config") else set()

    def new_tokens() -> Iterator[int]:
        nonlocal tokens
        left, part = count, 0
        while left > 0:
            if longest is not None and len(tokens) >= longest:
                tokens = tokens[-max(1, longest // 2) :]
            room = left if longest is None else min(left, longest - len(tokens))
            # a part of its own random numbers: another seed for each
            own = None if seed is None else seed + part
            for token in model.stream(tokens[None], max_new_tokens=room, seed=own, **options):
                if int(token[0]) in ends:
                    return
                tokens = np.append(tokens, token)
                yield int(token[0])
            left, part = left - room, part + 1

    yield from tokenizer.stream(new_tokens(), after=() if hasattr(model, "encode") else tokens.copy())
