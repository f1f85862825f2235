"""Layers that change shapes only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from thalweg.nn.layer import refuse_shape
from thalweg.nn.module import Module
from thalweg.ops.core import operand
from thalweg.ops.movement import flatten, reshape
from thalweg.types import normalize_axis


class Identity(Module):
    """x itself. Accepts and ignores any arguments, so that it can stand in for another layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def forward(self, x: Any) -> Any:
        return x


class Flatten(Module):
    """Axes `start_dim` to `end_dim` joined into one; by default all but the first."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Any) -> Any:
        return flatten(x, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Axis `dim` divided into axes of the sizes `unflattened_size`, one of which may be -1."""

    def __init__(self, dim: int, unflattened_size: Sequence[int]) -> None:
        self.dim, self.unflattened_size = dim, tuple(unflattened_size)

    def forward(self, x: Any) -> Any:
        x = operand(x)
        axis = normalize_axis(self.dim, x.ndim, "dim")
        known = math.prod(extent for extent in self.unflattened_size if extent != -1)
        whole = (
            x.shape[axis] % known == 0 if -1 in self.unflattened_size and known else x.shape[axis] == known
        )
        if not whole:
            refuse_shape(
                f"Unflatten cannot divide axis {axis} of size {x.shape[axis]} (shape {tuple(x.shape)}) into "
                f"{self.unflattened_size}"
            )
        return reshape(x, (*x.shape[:axis], *self.unflattened_size, *x.shape[axis + 1 :]))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
