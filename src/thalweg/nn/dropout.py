"""Dropout: random zeros in training, nothing in evaluation."""

from __future__ import annotations

from typing import Any

from thalweg.errors import ArgumentError
from thalweg.nn import functional
from thalweg.nn.module import Module
from thalweg.tensor.random import Generator


class _Dropout(Module):
    def __init__(self, p: float = 0.5, inplace: bool = False, *, generator: Generator | None = None) -> None:
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
            raise ArgumentError(f"{type(self).__name__}: p is a probability from 0 to 1, received {p!r}")
        self.p = float(p)
        self.generator = generator

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout(_Dropout):
    """In training each element is 0 with probability `p`, else x / (1 - p).

    Random numbers come from `generator`, or from the default one (`tw.manual_seed`).
    """

    def forward(self, x: Any) -> Any:
        return functional.dropout(x, self.p, self.training, self.generator)


class Dropout1d(_Dropout):
    """In training each channel of [B, C, L] is 0 with probability `p`, else x / (1 - p)."""

    def forward(self, x: Any) -> Any:
        return functional.dropout1d(x, self.p, self.training, self.generator)


class Dropout2d(_Dropout):
    """In training each channel of [B, C, H, W] is 0 with probability `p`, else x / (1 - p)."""

    def forward(self, x: Any) -> Any:
        return functional.dropout2d(x, self.p, self.training, self.generator)


class Dropout3d(_Dropout):
    """In training each channel of [B, C, D, H, W] is 0 with probability `p`, else x / (1 - p)."""

    def forward(self, x: Any) -> Any:
        return functional.dropout3d(x, self.p, self.training, self.generator)
