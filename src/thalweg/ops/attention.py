"""Attention as composites: scaled dot products with masks, grouped heads and dropout; rotary positions.

In: queries, keys and values [.., heads, length, size], from `nn.functional` and `nn.attention`. Out: weighted
sums of the values. For the gradient only the logarithm of each row's sum is kept (as in Dao et al., 2022):
the weights are computed again. Where the queries are many, a `scan` goes over blocks of them, forward and
backward, so that memory grows with the number of keys and not with its product with the number of queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError, ShapeError
from thalweg.ops.activations import number, wide
from thalweg.ops.contraction import MatMul
from thalweg.ops.control import scan
from thalweg.ops.core import apply, broadcast_shapes, cast, composite, floating, operand, promoted
from thalweg.ops.elementwise import cos, exp, greater, less_equal, log, sin, stop_gradient, where
from thalweg.ops.movement import broadcast_to, concat, expand_dims, moveaxis, pad, reshape, slice_axis, split
from thalweg.ops.random import dropout
from thalweg.ops.reduction import max as reduce_max
from thalweg.ops.reduction import sum as reduce_sum
from thalweg.ops.samples import Sample, samples, values
from thalweg.ops.sources import full, iota

_LONG = 512  # queries from which on they are computed in blocks
_BLOCK = 256  # queries of a block: enough for full speed of the products


class _Options(NamedTuple):
    """What is equal for all blocks of queries."""

    scale: float
    is_causal: bool
    dropout_p: float
    stream: int


# ---- one block of queries ----------------------------------------------------------------------------------


def _product(rows: Any, other: Any, transpose: bool = False) -> Any:
    """rows [.., heads * group, L, k] times other [.., heads, k, n] (or its transpose) of each query's key
    head.
    """
    lead, length = rows.shape[:-2], rows.shape[-2]
    found = apply(MatMul(False, transpose), reshape(rows, _folded(rows, other)), other)
    return reshape(found, (*lead, length, found.shape[-1]))


def _folded(rows: Any, other: Any) -> tuple[int, ...]:
    """The shape in which the queries of the heads that share a key head are rows of one matrix."""
    heads = math.prod(other.shape[:-2])
    count = math.prod(rows.shape[:-1]) // heads if heads else 0
    return (*other.shape[:-2], count, rows.shape[-1])


def _sum_of_products(rows: Any, other: Any, like: Any) -> Any:
    """rows^T other, summed over the queries that share a head of `like`: the gradient of keys or values."""
    left = reshape(rows, _folded(rows, like))
    return apply(MatMul(True, False), left, reshape(other, _folded(other, like)))


def _scores(query: Any, key: Any, mask: Any, first: Any, options: _Options) -> Any:
    """Scaled and masked products [.., heads, L, S]; `first` is the position of the first query."""
    scores = _product(wide(query), wide(key), True) * options.scale
    if mask is not None:
        scores = where(mask, scores, -math.inf) if mask.dtype.is_bool else scores + wide(mask)
    if options.is_causal:
        shape = (query.shape[-2], key.shape[-2])
        rows = iota(shape, 0, types.int64) + first
        scores = where(less_equal(iota(shape, 1, types.int64), rows), scores, -math.inf)
    return scores


def _exponentials(scores: Any) -> tuple[Any, Any, Any]:
    """exp(score - shift), its sum over the keys and the shift; where all keys are masked, 0, 1 and 0."""
    largest = reduce_max(stop_gradient(scores), -1, keepdims=True)
    shift = where(greater(largest, -math.inf), largest, 0)
    weight = exp(scores - shift)
    total = reduce_sum(weight, -1, keepdims=True)
    return weight, where(greater(total, 0), total, 1), shift


def _dropped(x: Any, state: Any, options: _Options) -> Any:
    return x if state is None else dropout(x, state, p=options.dropout_p, stream=options.stream)


def _block_forward(
    query: Any, key: Any, value: Any, mask: Any, state: Any, first: Any, options: _Options
) -> tuple[Any, Any]:
    """Result [.., L, Ev] and log of the sum of exponentials [.., L, 1] of some queries."""
    if key.shape[-2] == 0:
        rows = query.shape[:-1]
        return full((*rows, value.shape[-1]), 0, query.dtype), full((*rows, 1), 0, wide(query).dtype)
    weight, total, shift = _exponentials(_scores(query, key, mask, first, options))
    result = _product(_dropped(weight, state, options), wide(value)) / total
    return cast(result, query.dtype), shift + log(total)


class _Gradients(NamedTuple):
    query: Any
    key: Any
    value: Any
    scores: Any


def _block_backward(
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    state: Any,
    first: Any,
    options: _Options,
    result: Any,
    logsum: Any,
    g: Any,
) -> _Gradients:
    """Gradients by some queries, and the part of the gradients of keys and values that comes from them."""
    g = wide(g)
    weight = exp(_scores(query, key, mask, first, options) - logsum)
    by_weight = _dropped(_product(g, wide(value), True), state, options)
    along = reduce_sum(g * wide(result), -1, keepdims=True)  # the mean of by_weight over the keys
    by_scores = weight * (by_weight - along)
    scaled = by_scores * options.scale
    return _Gradients(
        _product(scaled, wide(key)),
        _sum_of_products(scaled, wide(query), key),
        _sum_of_products(_dropped(weight, state, options), g, value),
        by_scores,
    )


# ---- blocks of queries in a loop ---------------------------------------------------------------------------


def _cut(x: Any, block: int) -> Any:
    """[.., L, n] as blocks of rows [blocks, .., block, n]; the last one is filled up with zeros."""
    blocks = -(-x.shape[-2] // block)
    missing = blocks * block - x.shape[-2]
    if missing:
        x = pad(x, [(0, 0)] * (x.ndim - 2) + [(0, missing), (0, 0)])
    return moveaxis(reshape(x, (*x.shape[:-2], blocks, block, x.shape[-1])), -3, 0)


def _joined(stack: Any, length: int) -> Any:
    """What `_cut` has cut."""
    together = moveaxis(stack, 0, -3)
    rows = reshape(together, (*together.shape[:-3], -1, together.shape[-1]))
    return slice_axis(rows, rows.ndim - 2, 0, length)


def _has_rows(mask: Any) -> bool:
    """Whether a mask differs from query to query."""
    return mask is not None and mask.shape[-2] > 1


def _loop_forward(
    query: Any, key: Any, value: Any, mask: Any, state: Any, options: _Options, block: int
) -> tuple[Any, Any]:
    cut = [_cut(query, block)] + ([_cut(mask, block)] if _has_rows(mask) else [])

    def body(number: Any, carries: list[Any], slices: list[Any]) -> Any:
        own = slices[1] if len(slices) > 1 else mask
        return [], _block_forward(slices[0], key, value, own, state, number * block, options)

    _, stacks = scan(body, [], cut, name="attention")
    return _joined(stacks[0], query.shape[-2]), _joined(stacks[1], query.shape[-2])


def _loop_backward(
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    state: Any,
    options: _Options,
    block: int,
    result: Any,
    logsum: Any,
    g: Any,
) -> tuple[Any, ...]:
    by_rows = _has_rows(mask)
    cut = [_cut(x, block) for x in (query, result, logsum, g)] + ([_cut(mask, block)] if by_rows else [])
    bias = mask is not None and mask.dtype.is_floating
    carries = [full(x.shape, 0, wide(x).dtype) for x in (key, value)]
    if bias and not by_rows:
        carries.append(full(mask.shape, 0, wide(mask).dtype))

    def body(number: Any, before: list[Any], slices: list[Any]) -> Any:
        rows, known, sums, cotangent = slices[:4]
        own = slices[4] if by_rows else mask
        found = _block_backward(rows, key, value, own, state, number * block, options, known, sums, cotangent)
        after = [before[0] + found.key, before[1] + found.value]
        stacked = [found.query]
        if bias:
            by_mask = _summed_to(found.scores, own.shape)
            if by_rows:
                stacked.append(by_mask)
            else:
                after.append(before[2] + by_mask)
        return after, stacked

    last, stacks = scan(body, carries, cut, name="attention_gradient")
    by_mask = _joined(stacks[1], query.shape[-2]) if bias and by_rows else last[2] if bias else None
    return _joined(stacks[0], query.shape[-2]), last[0], last[1], by_mask


def _summed_to(x: Any, shape: Sequence[int]) -> Any:
    """The gradient of something of this shape that was broadcast to x's."""
    offset = x.ndim - len(shape)
    axes = [a for a in range(x.ndim) if a < offset or (shape[a - offset] == 1 and x.shape[a] != 1)]
    return (
        reshape(reduce_sum(x, tuple(axes), keepdims=True), tuple(shape)) if axes else reshape(x, tuple(shape))
    )


# ---- the composites ----------------------------------------------------------------------------------------


@composite
def _scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    state: Any = None,
    *,
    scale: float,
    is_causal: bool,
    dropout_p: float,
    stream: int,
    block: int,
) -> Any:
    options = _Options(scale, is_causal, dropout_p, stream)
    return _attention_parts(query, key, value, mask, state, options, block)[0]


@_scaled_dot_product_attention.residuals
def _scaled_dot_product_attention_with_residuals(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    state: Any = None,
    *,
    scale: float,
    is_causal: bool,
    dropout_p: float,
    stream: int,
    block: int,
) -> Any:
    """The result, and of each query the logarithm of the sum of exponentials (0 where all keys are
    masked).
    """
    options = _Options(scale, is_causal, dropout_p, stream)
    return _attention_parts(query, key, value, mask, state, options, block)


def _attention_parts(
    query: Any, key: Any, value: Any, mask: Any, state: Any, options: _Options, block: int
) -> tuple[Any, Any]:
    if block and query.shape[-2] > block:
        return _loop_forward(query, key, value, mask, state, options, block)
    return _block_forward(query, key, value, mask, state, 0, options)


@composite
def _scaled_dot_product_attention_gradient(
    g: Any,
    result: Any,
    logsum: Any,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    state: Any = None,
    *,
    scale: float,
    is_causal: bool,
    dropout_p: float,
    stream: int,
    block: int,
) -> Any:
    """Gradients by query, key and value."""
    options = _Options(scale, is_causal, dropout_p, stream)
    found = _parts_backward(query, key, value, mask, state, options, block, result, logsum, g)
    likes = (query, key, value)
    return tuple(cast(one, like.dtype) for one, like in zip(found, likes, strict=False))


@composite
def _scaled_dot_product_attention_mask_gradient(
    g: Any,
    result: Any,
    logsum: Any,
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    state: Any = None,
    *,
    scale: float,
    is_causal: bool,
    dropout_p: float,
    stream: int,
    block: int,
) -> Any:
    """The gradient by a mask that is added, apart because most masks are known: what it shares with the
    other gradients is found by `simplify` where both are written out.
    """
    options = _Options(scale, is_causal, dropout_p, stream)
    found = _parts_backward(query, key, value, mask, state, options, block, result, logsum, g)
    return cast(found[3], mask.dtype)


def _parts_backward(
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    state: Any,
    options: _Options,
    block: int,
    result: Any,
    logsum: Any,
    g: Any,
) -> Sequence[Any]:
    """Gradients by query, key, value, and by the mask where it is added."""
    if block and query.shape[-2] > block:
        return _loop_backward(query, key, value, mask, state, options, block, result, logsum, g)
    parts = _block_backward(query, key, value, mask, state, 0, options, result, logsum, g)
    bias = mask is not None and mask.dtype.is_floating
    return (*parts[:3], _summed_to(parts.scores, mask.shape) if bias else None)


@_scaled_dot_product_attention.gradient
def _attention_rule(inputs: Any, outputs: Any, cotangents: Any, **attributes: Any) -> Sequence[Any]:
    mask = inputs[3]
    found = _scaled_dot_product_attention_gradient(cotangents[0], *outputs, *inputs, **attributes)

    def by_mask() -> Any:
        return _scaled_dot_product_attention_mask_gradient(cotangents[0], *outputs, *inputs, **attributes)

    return (*found, by_mask if mask is not None and mask.dtype.is_floating else None, None)


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    state: Any = None,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    stream: int = 0,
    block: int | None = None,
) -> Any:
    """softmax(scale query key^T + mask) value (Vaswani et al., 2017): [.., L, E], [.., S, E], [.., S, Ev] to
    [.., L, Ev].

    `mask` broadcasts to [.., L, S]: a bool says which keys take part, a number is added. `is_causal` lets
    query i see the keys 0 to i. `scale` is 1 / sqrt(E) unless given. With `enable_gqa` several heads (axis
    -3) of the queries share a head of keys and values. Weights are dropped with `dropout_p` by the random
    bits of `state`. A query for which all keys are masked gives 0. `block` queries are computed at a time (0:
    all; None: 256 where there are more than 512).
    """
    query, key, value = promoted(floating(query), floating(key), floating(value))
    query, key, value = _aligned(query, key, value, bool(enable_gqa))
    lead, length, extent = query.shape[:-2], query.shape[-2], key.shape[-2]
    if mask is not None:
        mask = _checked_mask(operand(mask), (*lead, length, extent), query.dtype)
    drops = dropout_p != 0
    if drops and state is None:
        raise ArgumentError(
            "scaled_dot_product_attention with dropout_p above 0 needs the state of a generator"
        )
    factor = 1.0 / math.sqrt(max(query.shape[-1], 1)) if scale is None else number(scale, "scale")
    return _scaled_dot_product_attention(
        query,
        key,
        value,
        mask,
        state if drops else None,
        scale=factor,
        is_causal=bool(is_causal),
        dropout_p=number(dropout_p, "dropout_p"),
        stream=int(stream),
        block=_even_block(length, block) if extent else 0,
    )


def _even_block(length: int, block: int | None) -> int:
    """Blocks of nearly equal size, none larger than `block`; 0 where one is enough."""
    if block is None:
        block = _BLOCK if length > _LONG else 0
    return -(-length // -(-length // block)) if 0 < block < length else 0


def _aligned(query: Any, key: Any, value: Any, grouped: bool) -> tuple[Any, Any, Any]:
    """Operands with the same leading axes; only the heads of grouped queries may be a multiple of the
    others'.
    """
    shapes = f"query {query.shape}, key {key.shape} and value {value.shape}"
    least = 3 if grouped else 2
    if min(query.ndim, key.ndim, value.ndim) < least:
        axes = "[.., heads, length, size]" if grouped else "[.., length, size]"
        raise ShapeError(f"attention needs operands {axes}, received {shapes}")
    if query.shape[-1] != key.shape[-1]:
        raise ShapeError(f"attention needs queries and keys of one size on the last axis, received {shapes}")
    if key.shape[-2] != value.shape[-2]:
        raise ShapeError(f"attention needs as many values as keys (axis -2), received {shapes}")
    heads: list[tuple[int, ...]] = [()] * 3
    if grouped:
        heads = [(x.shape[-3],) for x in (query, key, value)]
        if heads[1] != heads[2] or heads[1][0] == 0 or heads[0][0] % heads[1][0]:
            raise ShapeError(
                "attention with enable_gqa needs keys and values of the same number of heads (axis -3), "
                "which "
                f"divides that of the queries, received {shapes}"
            )
    try:
        lead = broadcast_shapes(*(x.shape[:-least] for x in (query, key, value)))
    except ShapeError:
        hint = "" if grouped else "; enable_gqa=True lets several heads of the queries share one of the keys"
        raise ShapeError(f"attention needs leading axes that broadcast, received {shapes}{hint}") from None
    found = (
        broadcast_to(x, (*lead, *own, *x.shape[-2:]))
        for x, own in zip((query, key, value), heads, strict=True)
    )
    return tuple(found)


def _checked_mask(mask: Any, shape: tuple[int, ...], dtype: types.DType) -> Any:
    """The mask with at least two axes, bool or of the element type of the scores."""
    if not (mask.dtype.is_bool or mask.dtype.is_floating):
        raise DTypeError(
            f"an attention mask is bool (True: takes part) or floating point (added to the scores), received "
            f"{mask.dtype}; write mask != 0"
        )
    fits = mask.ndim <= len(shape) and all(
        a in (1, b) for a, b in zip(reversed(mask.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ShapeError(
            f"an attention mask must broadcast to the scores [.., queries, keys] = {shape}, received shape "
            f"{mask.shape}"
        )
    if mask.ndim < 2:
        mask = reshape(mask, (1,) * (2 - mask.ndim) + tuple(mask.shape))
    return mask if mask.dtype.is_bool else cast(mask, dtype)


@composite
def _attention_weights(query: Any, key: Any, mask: Any = None, *, scale: float, is_causal: bool) -> Any:
    if key.shape[-2] == 0:
        return full((*query.shape[:-1], 0), 0, query.dtype)
    weight, total, _ = _exponentials(_scores(query, key, mask, 0, _Options(scale, is_causal, 0.0, 0)))
    return cast(weight / total, query.dtype)


def attention_weights(
    query: Any, key: Any, mask: Any = None, *, is_causal: bool = False, scale: float | None = None
) -> Any:
    """softmax(scale query key^T + mask): [.., L, E] and [.., S, E] to [.., L, S]; rows that are masked
    entirely are 0.

    Arguments as in `scaled_dot_product_attention`, which needs less memory where the weights are not wanted.
    """
    query, key = promoted(floating(query), floating(key))
    query, key, _ = _aligned(query, key, key, False)
    shape = (*query.shape[:-1], key.shape[-2])
    if mask is not None:
        mask = _checked_mask(operand(mask), shape, query.dtype)
    factor = 1.0 / math.sqrt(max(query.shape[-1], 1)) if scale is None else number(scale, "scale")
    return _attention_weights(query, key, mask, scale=factor, is_causal=bool(is_causal))


# ---- rotary positions --------------------------------------------------------------------------------------


@composite
def _rotary_embedding(x: Any, positions: Any, *, base: float, interleaved: bool, backwards: bool) -> Any:
    source = wide(x)
    half = x.shape[-1] // 2
    exponents = iota((half,), 0, source.dtype) * (-2.0 * math.log(base) / x.shape[-1])
    angle = expand_dims(cast(positions, source.dtype), positions.ndim) * exp(exponents)
    cosine, sine = cos(angle), -sin(angle) if backwards else sin(angle)
    if interleaved:
        pairs = reshape(source, (*x.shape[:-1], half, 2))
        first, second = (reshape(part, part.shape[:-1]) for part in split(pairs, 2, axis=-1))
    else:
        first, second = split(source, 2, axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    if interleaved:
        result = reshape(concat([expand_dims(part, part.ndim) for part in turned], axis=-1), x.shape)
    else:
        result = concat(turned, axis=-1)
    return cast(result, x.dtype)


@_rotary_embedding.gradient
def _rotary_rule(
    inputs: Any, outputs: Any, cotangents: Any, *, base: float, interleaved: bool, backwards: bool
) -> Sequence[Any]:
    # a rotation's transpose turns the other way
    options = {"base": base, "interleaved": interleaved, "backwards": not backwards}
    return (_rotary_embedding(cotangents[0], inputs[1], **options), None)


def rotary_embedding(
    x: Any, positions: Any = None, *, base: float = 10000.0, interleaved: bool = False
) -> Any:
    """Pairs of elements of x [.., L, D] turned by the angle position * base^(-2 i / D) (Su et al., 2021).

    `positions` are integers [L], or any shape that broadcasts to x without its last axis (None: 0 to L - 1).
    Pair i is (i, i + D / 2), as in Llama and Hugging Face, or (2 i, 2 i + 1) with `interleaved`, as in GPT-J.
    """
    x = floating(x)
    if x.ndim < 2 or x.shape[-1] % 2:
        raise ShapeError(
            f"rotary_embedding needs an operand [.., length, size] of even size, received shape {x.shape}"
        )
    base = number(base, "base")
    if not base > 0:
        raise ArgumentError(f"rotary_embedding needs a base above 0, received {base}")
    positions = iota((x.shape[-2],), 0, types.int64) if positions is None else operand(positions)
    if not positions.dtype.is_integer:
        raise DTypeError(f"positions must be integers, received {positions.dtype}")
    places = zip(reversed(positions.shape), reversed(x.shape[:-1]), strict=False)
    if positions.ndim >= x.ndim or any(own not in (1, other) for own, other in places):
        raise ShapeError(
            f"positions must broadcast to the axes of x before the last, {x.shape[:-1]}, received shape "
            f"{positions.shape}"
        )
    return _rotary_embedding(x, positions, base=base, interleaved=bool(interleaved), backwards=False)


# ---- samples -----------------------------------------------------------------------------------------------


def _attention_torch(torch: Any, query: Any, key: Any, value: Any, mask: Any = None, **options: Any) -> Any:
    options.pop("block", None)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)


def _sample(*arrays: Any, **options: Any) -> Sample:
    extra = {
        name: options.pop(name) for name in ("tolerance", "error", "message", "gradient") if name in options
    }
    return Sample(
        lambda *given: scaled_dot_product_attention(*given, **options),
        arrays,
        torch=lambda torch, *given: _attention_torch(torch, *given, **options),
        **extra,
    )


def _operands(
    lead: tuple[int, ...] = (2, 3),
    length: int = 5,
    keys: int = 4,
    size: int = 3,
    heads: int | None = None,
    **options: Any,
) -> list[Any]:
    inner = lead if heads is None else (*lead[:-1], heads)
    return [
        values(*lead, length, size, seed=1, **options),
        values(*inner, keys, size, seed=2, **options),
        values(*inner, keys, size + 1, seed=3, **options),
    ]


@samples("scaled_dot_product_attention")
def _attention_samples() -> Iterator[Sample]:
    chosen = values(5, 4, dtype="bool", seed=4)
    chosen[:, 0] = True
    for block in (0, 2):
        yield _sample(*_operands(), block=block)
        yield _sample(*_operands(), is_causal=True, scale=0.3, block=block)
        yield _sample(*_operands(), chosen, block=block)
        yield _sample(*_operands(), values(3, 5, 4), block=block)
        yield _sample(*_operands(), values(2, 1, 1, 4), block=block)
        yield _sample(*_operands((4,), heads=2), enable_gqa=True, is_causal=True, block=block)
        state = np.array([1, 2, 3, 4], np.uint32)
        yield Sample(
            lambda q, k, v, s, b=block: scaled_dot_product_attention(
                q, k, v, None, s, dropout_p=0.4, block=b
            ),
            (*_operands((2,)), state),
        )
    yield _sample(*_operands(()))
    yield _sample(*_operands((1, 1), 1, 1, 1))
    yield _sample(values(2, 3, 5, 4), values(1, 3, 2, 4), values(3, 2, 4))
    empty = np.zeros((5, 4), bool)
    empty[1:, :3] = True
    yield _sample(*_operands(), empty)
    yield _sample(*_operands(length=0))
    yield _sample(*_operands(keys=0))
    yield _sample(*_operands(keys=0), is_causal=True, block=2)
    for dtype in ("float64", "float16", "bfloat16"):
        yield _sample(*_operands(dtype=dtype), tolerance=4)
    bad = {"error": ShapeError, "gradient": False}
    yield _sample(*_operands(), values(4, 5), message="must broadcast to the scores", **bad)
    yield _sample(values(2, 3), values(2, 4), values(2, 4), message="one size on the last axis", **bad)
    yield _sample(values(2, 3), values(4, 3), values(5, 3), message="as many values as keys", **bad)
    yield _sample(values(3), values(4, 3), values(4, 3), message="[.., length, size]", **bad)
    yield _sample(*_operands((4,), heads=2), message="enable_gqa=True", **bad)
    yield _sample(*_operands((4,), heads=3), enable_gqa=True, message="divides", **bad)
    integers = values(5, 4, dtype="int64")
    yield _sample(*_operands(), integers, error=DTypeError, message="takes part")
    yield _sample(*_operands(), dropout_p=0.5, error=ArgumentError, message="state of a generator")


@samples("attention_weights")
def _weights_samples() -> Iterator[Sample]:
    def theirs(torch: Any, query: Any, key: Any, mask: Any = None) -> Any:
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -math.inf)
        return torch.softmax(scores, -1)

    for lead, length, keys in (((2, 3), 5, 4), ((), 3, 2), ((1,), 1, 1), ((2,), 0, 3)):
        query, key, _ = _operands(lead, length, keys)
        yield Sample(attention_weights, (query, key), torch=theirs)
    query, key, _ = _operands()
    chosen = values(5, 4, dtype="bool", seed=4)
    chosen[:, 0] = True
    yield Sample(attention_weights, (query, key, chosen), torch=theirs)
    yield Sample(attention_weights, (query, key, values(5, 4)), torch=theirs)
    yield Sample(attention_weights, (query, key), {"is_causal": True})
    yield Sample(attention_weights, (query, key, np.zeros((1, 4), bool)))
    for dtype in ("float64", "float16", "bfloat16"):
        query, key, _ = _operands(dtype=dtype)
        yield Sample(attention_weights, (query, key), torch=theirs, tolerance=4)
    yield Sample(attention_weights, (values(2, 3), values(2, 4)), error=ShapeError, message="last axis")


@samples("rotary_embedding")
def _rotary_samples() -> Iterator[Sample]:
    def theirs(torch: Any, x: Any, positions: Any = None, interleaved: bool = False) -> Any:
        half = x.shape[-1] // 2
        steps = torch.arange(x.shape[-2]) if positions is None else positions
        rates = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = (steps.double()[..., None] * rates).to(x.dtype)
        if interleaved:
            first, second = x[..., 0::2], x[..., 1::2]
        else:
            first, second = x[..., :half], x[..., half:]
        turned = (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin())
        return torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)

    for shape in ((2, 3, 5, 4), (3, 6), (1, 2), (0, 4), (2, 7, 8)):
        for interleaved in (False, True):
            yield Sample(
                rotary_embedding,
                (values(*shape),),
                {"interleaved": interleaved},
                torch=lambda torch, x, i=interleaved: theirs(torch, x, interleaved=i),
            )
    yield Sample(rotary_embedding, (values(2, 3, 4), np.array([7, 0, 2])), torch=theirs)
    yield Sample(rotary_embedding, (values(2, 3, 4), np.array([[7, 0, 2], [1, 1, 3]])), torch=theirs)
    for dtype in ("float64", "bfloat16"):
        yield Sample(rotary_embedding, (values(5, 4, dtype=dtype),), {"base": 100.0})
    yield Sample(rotary_embedding, (values(5, 3),), error=ShapeError, message="even size")
    yield Sample(rotary_embedding, (values(5, 4),), {"base": -1}, error=ArgumentError, message="base")
    yield Sample(rotary_embedding, (values(5, 4), values(5)), error=DTypeError, message="integers")
    yield Sample(rotary_embedding, (values(5, 4), np.arange(4)), error=ShapeError, message="broadcast")
