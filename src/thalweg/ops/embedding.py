"""Lookup by class or token: `one_hot` and `embedding`.

An index outside raises `IndexRangeError` at run time; negative ones do not count from the end here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError, IndexRangeError, ShapeError
from thalweg.ops.core import apply, cast, composite, operand, require
from thalweg.ops.elementwise import equal, stop_gradient, where
from thalweg.ops.indexing import Gather, integer_operand
from thalweg.ops.movement import expand_dims
from thalweg.ops.samples import Sample, functional, samples, values
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


# ---- samples -----------------------------------------------------------------------------------------------


@samples("one_hot")
def _one_hot_samples() -> Iterator[Sample]:
    theirs = functional("one_hot", 5)
    for shape in ((), (4,), (2, 3), (0,), (2, 0, 3)):
        indices = values(*shape, dtype="int64", low=0, high=5)
        yield Sample(one_hot, (indices,), {"num_classes": 5}, torch=theirs)
        yield Sample(one_hot, (indices.astype(np.uint8),), {"num_classes": 5, "dtype": "float32"})
    yield Sample(one_hot, (values(3, dtype="uint8", low=0, high=255),), {"num_classes": 300, "dtype": "bool"})
    yield Sample(one_hot, (np.array([5]),), {"num_classes": 5}, error=IndexRangeError, message="index 5")
    yield Sample(one_hot, (np.array([-1]),), {"num_classes": 5}, error=IndexRangeError, message="index -1")
    yield Sample(one_hot, (values(3),), {"num_classes": 5}, error=DTypeError, message="integer indices")
    yield Sample(one_hot, (np.array([0]),), {"num_classes": 0}, error=ArgumentError, message="num_classes")


@samples("embedding")
def _embedding_samples() -> Iterator[Sample]:
    for shape in ((), (4,), (2, 3), (0,)):
        indices = values(*shape, dtype="int64", low=0, high=5)
        for padding in (None, 2, -1):
            # with padding the gradient is not the derivative, on purpose
            check = None if padding is None else False
            yield Sample(
                embedding,
                (values(5, 3), indices),
                {"padding_idx": padding},
                gradient=check,
                torch=lambda torch, w, i, p=padding: torch.nn.functional.embedding(i, w, p),
            )
    for dtype in ("float16", "bfloat16", "float64"):
        yield Sample(embedding, (values(5, 3, dtype=dtype), values(4, dtype="uint8", low=0, high=5)))
    yield Sample(embedding, (values(5, 3), np.array([1, 5])), error=IndexRangeError, message="index 5")
    yield Sample(embedding, (values(5, 3), np.array([1, -1])), error=IndexRangeError, message="index -1")
    yield Sample(embedding, (values(5), np.array([1])), error=ShapeError, message="[rows, features]")
    yield Sample(
        embedding,
        (values(5, 3), np.array([1])),
        {"padding_idx": 5},
        error=ArgumentError,
        message="padding_idx",
    )
