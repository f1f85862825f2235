"""Attention to a cache of keys and values: what a decoder does with each new token.

In: queries of new tokens, a cache that has room for more tokens than it holds, and how many it holds. Out:
weighted sums of the values. The C backend takes `cached_attention` whole: its loops end at the place of the
newest token, so one program serves all positions and its work grows with the position, not with the room.
Called by `models.cache`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ShapeError
from thalweg.ops.activations import wide
from thalweg.ops.contraction import MatMul, in_float32
from thalweg.ops.core import apply, cast, composite, operand, promoted, require
from thalweg.ops.elementwise import exp, greater, less_equal, stop_gradient, where
from thalweg.ops.indexing import integer_operand
from thalweg.ops.movement import broadcast_to, reshape
from thalweg.ops.reduction import max as reduce_max
from thalweg.ops.reduction import sum as reduce_sum
from thalweg.ops.samples import Sample, samples, values
from thalweg.ops.sources import iota

Array = np.ndarray[Any, Any]


@composite
def _cached_attention(
    query: Any,
    keys: Any,
    stored: Any,
    place: Any = None,
    visible: Any = None,
    bias: Any = None,
    *,
    scale: float = 1.0,
) -> Any:
    _check(query, keys, stored, place, visible, bias)
    batch, heads, length, size = query.shape
    groups, room = keys.shape[1], keys.shape[2]
    rows = reshape(wide(query), (batch, groups, heads // groups * length, size))
    scores = apply(MatMul(False, True), rows, wide(keys)) * scale
    scores = reshape(scores, (batch, heads, length, room))
    if bias is not None:
        scores = scores + broadcast_to(wide(bias), scores.shape)
    if place is not None:
        last = iota((length, room), 0, types.int64) + place
        seen = less_equal(iota((length, room), 1, types.int64), last)
        scores = where(seen, scores, -math.inf)
    if visible is not None:
        scores = where(reshape(visible, (batch, 1, 1, room)), scores, -math.inf)
    largest = reduce_max(stop_gradient(scores), -1, keepdims=True)
    weight = exp(scores - where(greater(largest, -math.inf), largest, 0))
    total = reduce_sum(weight, -1, keepdims=True)
    weight = reshape(weight, (batch, groups, heads // groups * length, room))
    mixed = reshape(apply(MatMul(), weight, wide(stored)), (batch, heads, length, size))
    return cast(mixed / where(greater(total, 0), total, 1), query.dtype)


def _check(query: Any, keys: Any, stored: Any, place: Any, visible: Any, bias: Any) -> None:
    require(
        query.ndim == 4
        and keys.ndim == 4
        and keys.shape == stored.shape
        and (keys.shape[0], keys.shape[3]) == (query.shape[0], query.shape[3])
        and keys.shape[1] > 0
        and query.shape[1] % keys.shape[1] == 0,
        "cached_attention needs queries [batch, heads, length, size] and keys and values [batch, groups, "
        f"room, size], heads a multiple of groups, received {query.shape}, {keys.shape} and {stored.shape}",
    )
    batch, heads, length, _ = query.shape
    room = keys.shape[2]
    require(place is None or place.shape == (), "cached_attention: place must be a single number")
    require(
        visible is None or visible.shape == (batch, room),
        f"cached_attention: visible must have shape {(batch, room)}, received "
        f"{None if visible is None else visible.shape}",
    )
    require(
        bias is None or (bias.shape[1:] == (heads, length, room) and bias.shape[0] in (1, batch)),
        f"cached_attention: bias must have shape {(batch, heads, length, room)}, received "
        f"{None if bias is None else bias.shape}",
    )


@_cached_attention.reference
def _cached_attention_reference(
    query: Array,
    keys: Array,
    stored: Array,
    place: Array | None,
    visible: Array | None,
    bias: Array | None,
    *,
    scale: float,
) -> Array:
    """The body, over the places that are seen only."""
    batch, heads, length, size = query.shape
    groups, room = keys.shape[1], keys.shape[2]
    count = room if place is None else min(max(int(place) + length, 0), room)
    if not count:
        return np.zeros_like(query)
    rows = in_float32(query).reshape(batch, groups, heads // groups * length, size)
    scores = rows @ in_float32(keys[:, :, :count]).swapaxes(-1, -2) * rows.dtype.type(scale)
    scores = scores.reshape(batch, heads, length, count)
    if bias is not None:
        scores = scores + in_float32(bias[..., :count])
    if place is not None:
        last = np.arange(length)[:, None] + int(place)
        scores = np.where(np.arange(count) <= last, scores, -np.inf)
    if visible is not None:
        scores = np.where(visible[:, None, None, :count], scores, -np.inf)
    largest = scores.max(-1, keepdims=True)
    weight = np.exp(scores - np.where(largest > -np.inf, largest, 0))
    total = weight.sum(-1, keepdims=True)
    weight = weight.reshape(batch, groups, heads // groups * length, count)
    mixed = (weight @ in_float32(stored[:, :, :count])).reshape(query.shape)
    return np.asarray((mixed / np.where(total > 0, total, 1)).astype(query.dtype))


def cached_attention(
    query: Any,  # [B, H, T, d]
    keys: Any,  # [B, G, L, d]
    values: Any,  # [B, G, L, d]
    place: Any = None,  # 0-d: where the first query's own key is
    visible: Any = None,  # [B, L]: False for places that no query sees
    bias: Any = None,  # [1 or B, H, T, L], added to the scores
    *,
    scale: float | None = None,  # of the scores; 1 / sqrt(d) where it is None
) -> Any:
    """softmax(scale query keys^T + bias) values over a cache with room for L tokens: [B, H, T, d].

    Query t sees the places 0 to `place` + t (all where `place` is None) that are `visible`; one that sees
    nothing gets 0. Compiled, the work grows with `place`. H is a multiple of G. Raises `ShapeError`.
    """
    floating = [query, keys, values] + ([] if bias is None else [bias])
    query, keys, values, *rest = promoted(*floating)
    if query.ndim != 4:
        raise ShapeError(
            f"cached_attention needs queries [batch, heads, length, size], received shape {query.shape}"
        )
    if scale is None:
        scale = 1.0 / math.sqrt(max(query.shape[-1], 1))
    if place is not None:
        place = cast(integer_operand(place, "cached_attention: place"), types.int64)
    if visible is not None:
        visible = operand(visible)
        visible = visible if visible.dtype.is_bool else visible != 0
    return _cached_attention(query, keys, values, place, visible, *rest, scale=float(scale))


# ---- samples -----------------------------------------------------------------------------------------------


def _operands(
    batch: int, heads: int, length: int, size: int, groups: int, room: int, dtype: str = "float32"
) -> tuple[Array, Array, Array]:
    query = values(batch, heads, length, size, dtype=dtype)
    keys, stored = (values(batch, groups, room, size, dtype=dtype, seed=seed) for seed in (1, 2))
    return query, keys, stored


def _theirs(torch: Any, query: Any, keys: Any, stored: Any, place: Any) -> Any:
    count = int(place) + query.shape[2]
    repeated = query.shape[1] // keys.shape[1]
    keys, stored = (x[:, :, :count].repeat_interleave(repeated, 1) for x in (keys, stored))
    seen = torch.ones(query.shape[2], count, dtype=torch.bool).tril(int(place))
    return torch.nn.functional.scaled_dot_product_attention(query, keys, stored, seen)


@samples("cached_attention")
def _cached_attention_samples() -> Iterator[Sample]:
    for shape, place in (((2, 3, 1, 4, 3, 9), 5), ((1, 4, 3, 5, 2, 40), 30), ((2, 2, 1, 17, 1, 20), 3)):
        yield Sample(cached_attention, (*_operands(*shape), np.int64(place)), torch=_theirs)
    yield Sample(cached_attention, (*_operands(1, 2, 1, 4, 1, 3), np.int64(0)), gradient=False)
    many = _operands(1, 2, 1, 20, 1, 1200)
    yield Sample(cached_attention, (*many, np.int64(1111)), {"scale": 0.3}, gradient=False)
    seen = values(2, 9, dtype="bool", seed=4)
    seen[1] = False
    yield Sample(cached_attention, (*_operands(2, 3, 2, 4, 3, 9), np.int64(6), seen))
    yield Sample(cached_attention, (*_operands(2, 2, 1, 4, 2, 9), np.int64(99), seen), gradient=False)
    for first in (1, 2):
        yield Sample(
            lambda query, keys, stored, bias: cached_attention(query, keys, stored, bias=bias),
            (*_operands(2, 3, 2, 4, 3, 9), values(first, 3, 2, 9, seed=5)),
        )
    for dtype in ("float64", "float16", "bfloat16"):
        yield Sample(cached_attention, (*_operands(2, 3, 1, 6, 3, 21, dtype), np.int64(18)), torch=_theirs)
    yield Sample(cached_attention, (*_operands(0, 2, 1, 4, 2, 3), np.int64(1)))
    yield Sample(cached_attention, (*_operands(1, 3, 1, 4, 2, 3), np.int64(1)), error=ShapeError)
    yield Sample(cached_attention, (*_operands(1, 2, 1, 4, 2, 3), np.zeros(1, np.int64)), error=ShapeError)
    yield Sample(cached_attention, (values(2, 4),) * 3, error=ShapeError, message="queries")
