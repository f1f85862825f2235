"""Lookup by class or token: `one_hot` and `embedding`. An index outside raises `IndexRangeError` at run time."""

from __future__ import annotations

from typing import Any

from thalweg import types
from thalweg.errors import ArgumentError
from thalweg.ops.core import apply, cast, composite, operand, require
from thalweg.ops.elementwise import equal, stop_gradient, where
from thalweg.ops.indexing import Gather, integer_operand
from thalweg.ops.movement import expand_dims
from thalweg.ops.sources import iota
from thalweg.types import DType


@composite
def _one_hot(indices: Any, *, num_classes: int, dtype: DType) -> Any:
    numbers = iota((num_classes,), 0, types.int64)
    checked = apply(Gather(0, 0, wrap=False), numbers, indices)  # the index itself, or an error
    return cast(equal(expand_dims(checked, indices.ndim), numbers), dtype)


def one_hot(indices: Any, num_classes: int, *, dtype: Any = types.int64) -> Any:
    """A new last axis of size `num_classes` that is 1 at the index and 0 elsewhere."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ArgumentError(f"num_classes must be a positive integer, received {num_classes!r}")
    indices = integer_operand(indices, "one_hot")
    return _one_hot(indices, num_classes=num_classes, dtype=types.dtype(dtype))


@composite
def _embedding(weight: Any, indices: Any, *, padding_idx: int | None) -> Any:
    require(weight.ndim == 2, f"embedding needs a weight [rows, features], received shape {weight.shape}")
    rows = apply(Gather(0, 0, wrap=False), weight, indices)
    if padding_idx is None:
        return rows
    padding = expand_dims(equal(indices, padding_idx), indices.ndim)
    return where(padding, stop_gradient(rows), rows)


def embedding(weight: Any, indices: Any, *, padding_idx: int | None = None) -> Any:
    """Row `indices[..]` of `weight` [rows, features] for every index: [.., features].

    The row `padding_idx` (negative: from the end) receives no gradient.
    """
    weight = operand(weight)
    if padding_idx is not None and weight.ndim == 2:
        padding_idx = types.normalize_axis(padding_idx, weight.shape[0], "padding_idx")
    return _embedding(weight, integer_operand(indices, "embedding"), padding_idx=padding_idx)
