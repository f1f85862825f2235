"""Lookup tables of trained vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg.nn import functional, init
from thalweg.nn.layer import new_parameter, size
from thalweg.nn.module import Module
from thalweg.tensor.random import Generator
from thalweg.types import normalize_axis


class Embedding(Module):
    """One row of `weight` [num_embeddings, embedding_dim] for every index: [..] to [.., embedding_dim].

    Rows begin normally distributed. The row `padding_idx` begins as 0 and receives no gradient. An index
    outside raises `IndexRangeError` when the program runs.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: Any = "float32",
        generator: Generator | None = None,
    ) -> None:
        self.num_embeddings = size("num_embeddings", num_embeddings)
        self.embedding_dim = size("embedding_dim", embedding_dim)
        self.padding_idx = (
            None if padding_idx is None else normalize_axis(padding_idx, num_embeddings, "padding_idx")
        )
        self.weight = new_parameter((num_embeddings, embedding_dim), dtype)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the rows anew."""
        init.normal_(self.weight, generator=generator)
        if self.padding_idx is not None:
            rows = np.array(self.weight.numpy())
            rows[self.padding_idx] = 0
            self.weight.replace(rows)

    def forward(self, x: Any) -> Any:
        return functional.embedding(x, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
