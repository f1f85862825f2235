"""Attention layers and positions: `MultiheadAttention` with PyTorch's names, rotary, sinusoidal, learned and
relative positions.

In: sequences [time, batch, features] ([batch, time, features] with `batch_first`) and masks. Out: sequences
of the same layout. Called by users, `nn.transformer` and the models.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError
from thalweg.nn import functional, init
from thalweg.nn.embedding import Embedding
from thalweg.nn.layer import new_parameter, refuse_shape, refusing_shapes, size
from thalweg.nn.linear import Linear
from thalweg.nn.module import Module
from thalweg.ops.attention import attention_weights, rotary_embedding
from thalweg.ops.contraction import matmul
from thalweg.ops.core import cast, operand
from thalweg.ops.elementwise import cos, exp, logical_and, logical_not, maximum, minimum, sin, where
from thalweg.ops.indexing import take
from thalweg.ops.linear import linear
from thalweg.ops.movement import (
    broadcast_to,
    concat,
    expand_dims,
    moveaxis,
    pad,
    reshape,
    slice_axis,
    split,
    squeeze,
    swapaxes,
)
from thalweg.ops.reduction import mean
from thalweg.ops.sources import arange
from thalweg.tensor.random import Generator


def _probability(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ArgumentError(f"{name} is a probability from 0 to 1, received {value!r}")
    return float(value)


# ---- attention ---------------------------------------------------------------------------------------------


class MultiheadAttention(Module):
    """Attention with `num_heads` heads of size embed_dim / num_heads (Vaswani et al., 2017).

    `output, weights = attention(query, key, value)`, see `forward`. Queries have `embed_dim` features, keys
    `kdim` and values `vdim` (None: `embed_dim`). The weights of the three projections are rows of
    `in_proj_weight`, or `q_proj_weight`, `k_proj_weight` and `v_proj_weight` where the sizes differ.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        *,
        dtype: Any = "float32",
        generator: Generator | None = None,
    ) -> None:
        self.embed_dim, self.num_heads = size("embed_dim", embed_dim), size("num_heads", num_heads)
        if self.embed_dim % self.num_heads:
            raise ArgumentError(
                f"MultiheadAttention: num_heads={num_heads} must divide embed_dim={embed_dim}"
            )
        self.kdim = embed_dim if kdim is None else size("kdim", kdim)
        self.vdim = embed_dim if vdim is None else size("vdim", vdim)
        self.dropout = _probability("dropout", dropout)
        self.batch_first, self.add_zero_attn = bool(batch_first), bool(add_zero_attn)
        self.head_dim = self.embed_dim // self.num_heads
        self.generator = generator
        self.in_proj_weight = self.q_proj_weight = self.k_proj_weight = self.v_proj_weight = None
        if self.kdim == self.vdim == self.embed_dim:
            self.in_proj_weight = new_parameter((3 * embed_dim, embed_dim), dtype)
        else:
            self.q_proj_weight = new_parameter((embed_dim, embed_dim), dtype)
            self.k_proj_weight = new_parameter((embed_dim, self.kdim), dtype)
            self.v_proj_weight = new_parameter((embed_dim, self.vdim), dtype)
        self.in_proj_bias = new_parameter((3 * embed_dim,), dtype) if bias else None
        self.bias_k = new_parameter((1, 1, embed_dim), dtype) if add_bias_kv else None
        self.bias_v = new_parameter((1, 1, embed_dim), dtype) if add_bias_kv else None
        self.out_proj = Linear(embed_dim, embed_dim, bias, dtype=dtype, generator=generator)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the weights anew (Glorot's distributions); biases of the projections become 0."""
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                init.xavier_uniform_(weight, generator=generator)
        self.out_proj.reset_parameters(generator)
        if self.in_proj_bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)
        for bias in (self.bias_k, self.bias_v):
            if bias is not None:
                init.xavier_normal_(bias, generator=generator)

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Any, Any]:
        """The attended values [L, batch, embed_dim] and the weights [batch, L, S] (None without
        `need_weights`).

        `query` is [L, batch, embed_dim], `key` and `value` are [S, batch, features]; the batch is the first
        axis with `batch_first`, and may be missing. `key_padding_mask` [batch, S] and `attn_mask` [L, S] or
        [batch * num_heads, L, S] are bool (True: does NOT take part, as in PyTorch) or numbers that are added
        to the scores. `is_causal` masks the keys behind each query. Without `average_attn_weights` the
        weights are those of each head, [batch, num_heads, L, S]. Without `need_weights` less memory is
        needed. A query for which all keys are masked gives 0 before the last projection.
        """
        q, k, v, batched = self._sequences(query, key, value)
        batch, length, keys = q.shape[0], q.shape[1], k.shape[1]
        mask = self._mask(key_padding_mask, attn_mask, batch, length, keys, batched)
        extended = self.bias_k is not None or self.add_zero_attn
        if is_causal and extended:  # every query sees the keys that are added
            below = arange(keys) <= expand_dims(arange(length), 1)
            mask, is_causal = _joined(mask, below, q.dtype), False
        q, k, v = self._projected(q, k, v, key is query and value is query, value is key)
        if self.bias_k is not None:
            k, v = (
                concat([x, broadcast_to(cast(bias, x.dtype), (batch, 1, self.embed_dim))], axis=1)
                for x, bias in ((k, self.bias_k), (v, self.bias_v))
            )
        q, k, v = (self._heads(x) for x in (q, k, v))
        if self.add_zero_attn:
            k, v = (pad(x, [(0, 0), (0, 0), (0, 1), (0, 0)]) for x in (k, v))
        if mask is not None and k.shape[2] > keys:  # what was added takes part for every query
            added = [(0, 0)] * (mask.ndim - 1) + [(0, k.shape[2] - keys)]
            mask = pad(broadcast_to(mask, (*mask.shape[:-1], keys)), added, 1 if mask.dtype.is_bool else 0)
        result, weights = self._attend(q, k, v, mask, bool(is_causal), need_weights)
        output = self.out_proj(reshape(swapaxes(result, 1, 2), (batch, length, self.embed_dim)))
        if weights is not None and average_attn_weights:
            weights = mean(weights, 1)
        if not batched:
            return squeeze(output, 0), None if weights is None else squeeze(weights, 0)
        return output if self.batch_first else swapaxes(output, 0, 1), weights

    def _attend(
        self, q: Any, k: Any, v: Any, mask: Any, is_causal: bool, need_weights: bool
    ) -> tuple[Any, Any]:
        """[batch, heads, L, head_dim], and the weights if they are wanted."""
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            found = functional.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal, generator=self.generator
            )
            return found, None
        weights = functional.dropout(
            attention_weights(q, k, mask, is_causal=is_causal), dropout, True, self.generator
        )
        return matmul(weights, v), weights

    def _heads(self, x: Any) -> Any:
        """[batch, length, embed_dim] to [batch, heads, length, head_dim]."""
        return swapaxes(reshape(x, (x.shape[0], x.shape[1], self.num_heads, self.head_dim)), 1, 2)

    def _projected(self, q: Any, k: Any, v: Any, all_equal: bool, pair_equal: bool) -> tuple[Any, ...]:
        """The three projections, with one product for those that have the same input."""
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        if weight is None:
            biases = (None,) * 3 if bias is None else split(bias, 3)
            own = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            return tuple(linear(x, w, b) for x, w, b in zip((q, k, v), own, biases, strict=True))
        if all_equal:
            return split(linear(q, weight, bias), 3, axis=-1)

        def part(x: Any, start: int, stop: int) -> Any:
            rows = slice_axis(weight, 0, start * width, stop * width)
            return linear(x, rows, None if bias is None else slice_axis(bias, 0, start * width, stop * width))

        if pair_equal:
            return part(q, 0, 1), *split(part(k, 1, 3), 2, axis=-1)
        return part(q, 0, 1), part(k, 1, 2), part(v, 2, 3)

    def extra_repr(self) -> str:
        sizes = f", kdim={self.kdim}, vdim={self.vdim}" if self.in_proj_weight is None else ""
        options = f"dropout={self.dropout}{sizes}, batch_first={self.batch_first}"
        return f"{self.embed_dim}, {self.num_heads}, {options}"

    # ---- arguments -----------------------------------------------------------------------------------------

    def _sequences(self, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any, bool]:
        """The operands as [batch, length, features], and whether they had a batch."""
        given = [operand(x) for x in (query, key, value)]
        shapes = ", ".join(
            f"{name} {tuple(x.shape)}" for name, x in zip(("query", "key", "value"), given, strict=True)
        )
        widths = (self.embed_dim, self.kdim, self.vdim)
        if any(x.ndim not in (2, 3) or x.ndim != given[0].ndim for x in given):
            layout = "[batch, length, features]" if self.batch_first else "[length, batch, features]"
            refuse_shape(
                f"MultiheadAttention needs query, key and value {layout} or [length, features], received "
                f"{shapes}"
            )
        if any(x.shape[-1] != width for x, width in zip(given, widths, strict=True)):
            refuse_shape(
                f"MultiheadAttention({self.embed_dim}, {self.num_heads}) needs {widths[0]}, {widths[1]} and "
                f"{widths[2]} "
                f"features on the last axis of query, key and value, received {shapes}"
            )
        batched = given[0].ndim == 3
        if not batched:
            given = [expand_dims(x, 0) for x in given]
        elif not self.batch_first:
            given = [swapaxes(x, 0, 1) for x in given]
        q, k, v = given
        if not q.shape[0] == k.shape[0] == v.shape[0]:
            refuse_shape(
                f"MultiheadAttention needs one batch size for query, key and value, received {shapes}"
            )
        if k.shape[1] != v.shape[1]:
            refuse_shape(f"MultiheadAttention needs key and value of one length, received {shapes}")
        return q, k, v, batched

    def _mask(self, padding: Any, attention: Any, batch: int, length: int, keys: int, batched: bool) -> Any:
        """Both masks as one in the form of `scaled_dot_product_attention`, [batch or 1, heads or 1, L or 1,
        S].
        """
        mask = None
        if attention is not None:
            attention = _mask_operand("attn_mask", attention)
            full_shape = (batch * self.num_heads, length, keys)
            if attention.shape not in ((length, keys), full_shape):
                refuse_shape(
                    f"attn_mask must be [queries, keys] = {(length, keys)} or [batch * heads, queries, keys] "
                    "= "
                    f"{full_shape}, received shape {tuple(attention.shape)}"
                )
            if attention.ndim == 3:
                attention = reshape(attention, (batch, self.num_heads, length, keys))
            mask = attention
        if padding is not None:
            padding = _mask_operand("key_padding_mask", padding)
            expected = (batch, keys) if batched else (keys,)
            if padding.shape != expected:
                refuse_shape(
                    f"key_padding_mask must be {'[batch, keys]' if batched else '[keys]'} = {expected}, "
                    "received shape "
                    f"{tuple(padding.shape)}"
                )
            padding = reshape(padding, (batch, 1, 1, keys))
            mask = padding if mask is None else _joined(mask, padding, types.float32)
        return mask


def _mask_operand(name: str, mask: Any) -> Any:
    """A mask in which True means that a key takes part, or numbers to be added."""
    found = operand(mask)
    if found.dtype.is_bool:
        return logical_not(found)
    if not found.dtype.is_floating:
        raise DTypeError(
            f"{name} must be bool (True: does not take part) or floating point (added), received "
            f"{found.dtype}; write "
            "mask != 0"
        )
    return found


def _joined(mask: Any, other: Any, dtype: types.DType) -> Any:
    """Two masks as one: bool if both are, else numbers."""
    if mask is None:
        return other
    if mask.dtype.is_bool and other.dtype.is_bool:
        return logical_and(mask, other)
    numbers = [
        where(x, cast(operand(0.0), dtype), -math.inf) if x.dtype.is_bool else x for x in (mask, other)
    ]
    return numbers[0] + numbers[1]


# ---- positions ---------------------------------------------------------------------------------------------


class RotaryEmbedding(Module):
    """Queries or keys [.., length, head_dim] turned by angles that grow with the position (Su et al., 2021).

    The first `dim` elements of the last axis are turned, in pairs (i, i + dim / 2), or (2 i, 2 i + 1) with
    `interleaved`; the rest stays. No parameters.
    """

    def __init__(self, dim: int, base: float = 10000.0, interleaved: bool = False) -> None:
        self.dim = size("dim", dim, 2)
        if self.dim % 2:
            raise ArgumentError(f"RotaryEmbedding turns pairs: dim must be even, received {dim}")
        self.base, self.interleaved = float(base), bool(interleaved)

    def forward(self, x: Any, positions: Any = None) -> Any:
        """`positions` are integers [length], or a shape that broadcasts to x without its last axis (None: 0,
        1, ..).
        """
        x = operand(x)
        if x.ndim < 2 or x.shape[-1] < self.dim:
            refuse_shape(
                f"RotaryEmbedding({self.dim}) needs an input [.., length, size] of at least {self.dim} "
                "elements on its "
                f"last axis, received shape {tuple(x.shape)}"
            )
        with refusing_shapes():
            if x.shape[-1] == self.dim:
                return rotary_embedding(x, positions, base=self.base, interleaved=self.interleaved)
            first, rest = split(x, [self.dim], axis=-1)
            turned = rotary_embedding(first, positions, base=self.base, interleaved=self.interleaved)
            return concat([turned, rest], axis=-1)

    def extra_repr(self) -> str:
        return f"{self.dim}, base={self.base}, interleaved={self.interleaved}"


def _check_length(module: Module, x: Any, width: int) -> None:
    if x.ndim < 2 or x.shape[-1] != width:
        refuse_shape(
            f"{type(module).__name__} needs an input [.., length, {width}], received shape {tuple(x.shape)}"
        )


class SinusoidalPositions(Module):
    """Adds sin and cos of position * base^(-2 i / dim) to elements 2 i and 2 i + 1 of [.., length, dim]
    (Vaswani et al., 2017). No parameters.
    """

    def __init__(self, dim: int, base: float = 10000.0) -> None:
        self.dim, self.base = size("dim", dim, 2), float(base)
        if self.dim % 2:
            raise ArgumentError(f"SinusoidalPositions: dim must be even, received {dim}")

    def forward(self, x: Any, positions: Any = None) -> Any:
        """`positions` are integers [length] or [.., length] (None: 0, 1, ..)."""
        x = operand(x)
        _check_length(self, x, self.dim)
        steps = arange(x.shape[-2]) if positions is None else operand(positions)
        dtype = types.promote(x.dtype, types.float32)  # in 16 bits positions and angles would be rounded
        rates = exp(arange(self.dim // 2, dtype=dtype) * (-2.0 * math.log(self.base) / self.dim))
        angle = expand_dims(cast(steps, dtype), steps.ndim) * rates
        pairs = concat([expand_dims(part, part.ndim) for part in (sin(angle), cos(angle))], axis=-1)
        return x + cast(reshape(pairs, (*steps.shape, self.dim)), x.dtype)

    def extra_repr(self) -> str:
        return f"{self.dim}, base={self.base}"


class LearnedPositions(Module):
    """Adds row p of `weight` [max_length, dim] to position p of [.., length, dim]; rows begin normally
    distributed.
    """

    def __init__(
        self,
        max_length: int,
        dim: int,
        std: float = 0.02,
        *,
        dtype: Any = "float32",
        generator: Generator | None = None,
    ) -> None:
        self.max_length, self.dim, self.std = size("max_length", max_length), size("dim", dim), float(std)
        self.weight = new_parameter((max_length, dim), dtype)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the rows anew."""
        init.normal_(self.weight, 0.0, self.std, generator)

    def forward(self, x: Any, positions: Any = None) -> Any:
        """`positions` are integers [length] or [.., length] (None: 0, 1, ..)."""
        x = operand(x)
        _check_length(self, x, self.dim)
        if positions is not None:
            return x + functional.embedding(positions, self.weight)
        if x.shape[-2] > self.max_length:
            refuse_shape(
                f"LearnedPositions has {self.max_length} positions, received a sequence of {x.shape[-2]} "
                "(shape "
                f"{tuple(x.shape)}); cut it, or make the table larger"
            )
        return x + slice_axis(self.weight, 0, 0, x.shape[-2])

    def extra_repr(self) -> str:
        return f"{self.max_length}, {self.dim}"


class RelativePositionBias(Module):
    """T5's bias of attention scores by the distance of query and key (Raffel et al., 2020), for `attn_mask`.

    Distances share `num_buckets` rows of `relative_attention_bias.weight` [num_buckets, num_heads]: near ones
    have a row each, farther ones share rows logarithmically up to `max_distance`. Without `bidirectional`
    (decoders) keys behind the query have the row of distance 0.
    """

    def __init__(
        self,
        num_heads: int,
        num_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        *,
        dtype: Any = "float32",
        generator: Generator | None = None,
    ) -> None:
        self.num_heads, self.bidirectional = size("num_heads", num_heads), bool(bidirectional)
        self.num_buckets = size("num_buckets", num_buckets, 4 if bidirectional else 2)
        self.max_distance = size("max_distance", max_distance)
        exact = self.num_buckets // (4 if bidirectional else 2)
        if self.max_distance <= exact:
            raise ArgumentError(
                f"max_distance must be larger than the {exact} distances with a row each, received "
                f"{max_distance}"
            )
        self.relative_attention_bias = Embedding(num_buckets, num_heads, dtype=dtype, generator=generator)

    def buckets(self) -> np.ndarray[Any, Any]:
        """The row of each distance key - query from -max_distance to max_distance, int64 [2 max_distance +
        1].
        """
        relative = np.arange(-self.max_distance, self.max_distance + 1)
        count = self.num_buckets
        if self.bidirectional:
            count //= 2
            base, distance = np.where(relative > 0, count, 0), np.abs(relative)
        else:
            base, distance = np.zeros_like(relative), np.maximum(-relative, 0)
        exact = count // 2
        # float32 as in the original: a border between two rows must fall on the same distance
        ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
        steps = ratio / np.float32(math.log(self.max_distance / exact)) * np.float32(count - exact)
        far = np.minimum(exact + steps.astype(np.int64), count - 1)
        return base + np.where(distance < exact, distance, far)

    def forward(self, query_positions: Any, key_positions: Any = None) -> Any:
        """The bias [num_heads, L, S]; positions are integers [L] and [S], or numbers of positions 0, 1, ..
        (None: as the queries').
        """
        queries = _positions(query_positions)
        keys = queries if key_positions is None else _positions(key_positions)
        relative = expand_dims(keys, 0) - expand_dims(queries, 1)
        limit = self.max_distance
        rows = take(operand(self.buckets()), maximum(minimum(relative, limit), -limit) + limit)
        return moveaxis(self.relative_attention_bias(rows), -1, 0)

    def extra_repr(self) -> str:
        return (
            f"{self.num_heads}, num_buckets={self.num_buckets}, max_distance={self.max_distance}, "
            f"bidirectional={self.bidirectional}"
        )


def _positions(given: Any) -> Any:
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool):
        return arange(int(given))
    found = operand(given)
    if found.ndim != 1 or not found.dtype.is_integer:
        refuse_shape(f"positions must be a number of them or a vector of integers, received {found.type}")
    return found
