"""LSTM models of text: one that predicts the next token (a character, a byte), one that classifies
sequences.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from thalweg import nn
from thalweg.errors import ArgumentError
from thalweg.models.generation import Choice, random_numbers
from thalweg.models.transformer import checked_labels, next_token_loss, token_ids
from thalweg.tensor.compile import compile as compile_function
from thalweg.tensor.gradient import no_grad

Array = np.ndarray[Any, Any]


class LSTMOutput(NamedTuple):
    """The loss where labels were given, scores, and the state after the last token of each layer."""

    loss: Any
    logits: Any
    state: tuple[Any, Any]  # hidden states and cells, both [layers, B, hidden_size]


class CharLSTM(nn.Module):
    """A language model of characters (Karpathy, 2015): tokens [B, T] to scores [B, T, V] of the token after
    each.

    The state that a call returns can be given to the next one, which then continues the sequences.
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_size: int = 512,
        num_layers: int = 2,
        embedding_size: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        self.vocabulary_size = vocabulary_size
        width = hidden_size if embedding_size is None else embedding_size
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.lstm = nn.LSTM(width, hidden_size, num_layers, batch_first=True, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, vocabulary_size)

    def forward(
        self,
        input_ids: Any,  # [B, T]
        state: tuple[Any, Any] | None = None,  # as in the result; None at the beginning of a text
        labels: Any = None,  # [B, T], the tokens themselves (-100: does not count), moved by one inside
    ) -> LSTMOutput:
        x = self.embedding(token_ids(input_ids, self.vocabulary_size))  # [B, T, width]
        x, state = self.lstm(x, state)  # [B, T, hidden_size]
        logits = self.head(self.dropout(x))  # [B, T, V]
        loss = None if labels is None else next_token_loss(logits, labels)
        return LSTMOutput(loss, logits, state)

    def stream(
        self,
        input_ids: Any,  # [B, T], without padding
        *,
        max_new_tokens: int = 20,
        seed: int | None = None,
        backend: str | None = None,
        **choice: Any,
    ) -> Iterator[Array]:
        """The next tokens [B] of all texts, one after the other, as `models.generation.stream` gives them.

        `choice`: do_sample, temperature, top_k, top_p, repetition_penalty. Texts may have any length.
        """
        if self.training:
            raise ArgumentError("the model is in training mode, with dropout; write model.eval() before")
        chosen, random = Choice(**choice), random_numbers(seed)
        texts = np.asarray(input_ids)
        token_ids(texts, self.vocabulary_size)
        step = _step(self, backend)
        size = (self.lstm.num_layers, len(texts), self.lstm.hidden_size)
        dtype = self.head.weight.dtype.numpy
        state = (np.zeros(size, dtype), np.zeros(size, dtype))
        with no_grad():
            for column in texts[:, :-1].T:
                _, state = step(column[:, None], state)
        for _ in range(max_new_tokens):
            with no_grad():
                scores, state = step(texts[:, -1:], state)
            tokens = chosen.next(np.asarray(scores.numpy(), np.float32), texts, random)
            texts = np.concatenate([texts, tokens[:, None]], 1)
            yield tokens


# The compiled step of one token of each model that has written text, for the backend that it used last.
_steps: weakref.WeakKeyDictionary[CharLSTM, tuple[str | None, Any]] = weakref.WeakKeyDictionary()


def _step(model: CharLSTM, backend: str | None) -> Any:
    """The program of one token [B, 1]: scores [B, V] and the state behind it."""
    known = _steps.get(model)
    if known is not None and known[0] == backend:
        return known[1]
    reference = weakref.ref(model)

    def step(ids: Any, state: tuple[Any, Any]) -> Any:
        found = reference()(ids, state)  # type: ignore[misc]
        return found.logits[:, -1], found.state

    compiled = compile_function(step, backend=backend)
    _steps[model] = backend, compiled
    return compiled


class LSTMClassifier(nn.Module):
    """Classes of whole sequences: tokens [B, T] of any length up to T to scores [B, num_classes].

    The last states of both directions, each at its end of the sequence, go to a linear layer.
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_classes: int,
        hidden_size: int = 128,
        num_layers: int = 1,
        embedding_size: int = 64,
        bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        self.vocabulary_size, self.directions = vocabulary_size, 1 + bidirectional
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.lstm = nn.LSTM(
            embedding_size,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout,
            bidirectional=bidirectional,
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.directions * hidden_size, num_classes)

    def forward(
        self,
        input_ids: Any,  # [B, T]; what is behind a sequence's end does not matter
        lengths: Any = None,  # [B], from 0 to T; None: all T
        labels: Any = None,  # [B]
    ) -> LSTMOutput:
        x = self.embedding(token_ids(input_ids, self.vocabulary_size))  # [B, T, embedding_size]
        _, state = self.lstm(x, lengths=lengths)
        last = state[0][-self.directions :]  # the last layer's [directions, B, hidden_size]
        joined = last.swapaxes(0, 1).flatten(1)  # [B, directions * hidden_size]
        logits = self.classifier(self.dropout(joined))  # [B, num_classes]
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits, checked_labels(labels, (logits.shape[0],)))
        return LSTMOutput(loss, logits, state)
