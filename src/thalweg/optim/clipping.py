"""Gradient clipping by norm and by value, on lists of gradients or as an optimiser's `clip`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thalweg.errors import ArgumentError
from thalweg.ops.activations import wide
from thalweg.ops.core import cast
from thalweg.ops.elementwise import abs, maximum, minimum, pow, sqrt
from thalweg.ops.reduction import max as reduce_max
from thalweg.ops.reduction import sum as reduce_sum


def global_norm(gradients: Sequence[Any], norm_type: float = 2.0) -> Any:
    """The norm of all gradients together, as of one long vector: a 0-d tensor. None entries are left out."""
    if not norm_type > 0:
        raise ArgumentError(
            f"norm_type must be positive (math.inf for the largest element), received {norm_type!r}"
        )
    present = [wide(gradient) for gradient in gradients if gradient is not None and gradient.size]
    if not present:
        raise ArgumentError("the norm of no gradients was asked for")
    if norm_type == math.inf:
        found = reduce_max(abs(present[0]))
        for gradient in present[1:]:
            found = maximum(found, reduce_max(abs(gradient)))
        return found
    total = None
    for gradient in present:
        part = reduce_sum(gradient * gradient if norm_type == 2 else pow(abs(gradient), norm_type))
        total = part if total is None else total + part
    return sqrt(total) if norm_type == 2 else pow(total, 1.0 / norm_type)


@dataclass(frozen=True)
class clip_by_norm:
    """Scale all gradients by one factor, min(1, max_norm / (norm + 1e-6)), so that their norm is at most
    `max_norm`.

    The formula of PyTorch's `clip_grad_norm_`.
    """

    max_norm: float
    norm_type: float = 2.0

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise ArgumentError(f"clip_by_norm: max_norm must be positive, received {self.max_norm!r}")

    def __call__(self, gradients: Sequence[Any]) -> list[Any]:
        norm = global_norm(gradients, self.norm_type)
        factor = minimum(self.max_norm / (norm + 1e-6), 1.0)
        return [
            None if g is None else cast(wide(g) * cast(factor, wide(g).dtype), g.dtype) for g in gradients
        ]


@dataclass(frozen=True)
class clip_by_value:
    """Limit every element of every gradient to the range from -limit to limit."""

    limit: float

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ArgumentError(f"clip_by_value: limit must be positive, received {self.limit!r}")

    def __call__(self, gradients: Sequence[Any]) -> list[Any]:
        return [None if g is None else minimum(maximum(g, -self.limit), self.limit) for g in gradients]
