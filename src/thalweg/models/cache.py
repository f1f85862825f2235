"""Keys and values that a decoder keeps while a text grows, so that each new token costs one token's work.

In: queries, keys and values of new tokens, and the cache. Out: what the new tokens attend to. New rows are
written into the cache in place, and compiled attention reads the rows written so far and no others. Called by
`models.gpt`, `models.t5` and `models.generation`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from thalweg import nn, types
from thalweg.models.transformer import attend, causal_mask, key_mask
from thalweg.nn.layer import new_buffer
from thalweg.ops.accumulation import cumulative_sum
from thalweg.ops.decoding import cached_attention
from thalweg.ops.elementwise import maximum
from thalweg.ops.indexing import dynamic_update_slice
from thalweg.tensor.state import Buffer, acquire


class Window(NamedTuple):
    """Where new tokens stand."""

    place: Any  # 0-d: of the first one in the cache
    positions: Any  # [B, T] within their texts
    visible: Any  # [B, L]: places of the cache that hold a token of the text
    mask: Any  # [B, 1, T, T]: what the new tokens see of each other, where they are the first ones; else None


class LayerCache(nn.Module):
    """Keys and values [B, G, L, d] of one attention layer, of the tokens so far."""

    def __init__(self, batch: int, groups: int, length: int, size: int, dtype: Any) -> None:
        self.keys = new_buffer((batch, groups, length, size), dtype)
        self.values = new_buffer((batch, groups, length, size), dtype)

    def store(self, key: Any, value: Any, place: Any = 0) -> tuple[Any, Any]:
        """All keys and values, with new ones [B, G, T, d] from `place` on."""
        keys = dynamic_update_slice(self.keys, key, (0, 0, place, 0))
        values = dynamic_update_slice(self.values, value, (0, 0, place, 0))
        self.keys.assign(keys)
        self.values.assign(values)
        return keys, values

    def attend(
        self,
        query: Any,  # [B, H, T, d]
        key: Any,  # [B, G, T, d]
        value: Any,  # [B, G, T, d]
        window: Window,
        scale: float | None = None,
        bias: Any = None,  # [1, H, T, L]
    ) -> Any:
        """Keep new keys and values, and attend to all so far: [B, T, H * d]."""
        keys, values = self.store(key, value, window.place)
        if window.mask is not None:
            return attend(query, key, value, window.mask, bias, scale)
        found = cached_attention(query, keys, values, window.place, window.visible, bias, scale=scale)
        return joined_heads(found)

    def attend_all(self, query: Any, visible: Any, scale: float | None = None) -> Any:
        """Attend to everything in the cache that is `visible` [B, L]: [B, T, H * d]."""
        return joined_heads(cached_attention(query, self.keys, self.values, visible=visible, scale=scale))

    def reorder(self, rows: Any, count: int) -> None:
        """Row b gets the first `count` places of row `rows[b]`."""
        for buffer in (self.keys, self.values):
            _reorder(buffer, rows, count)


def joined_heads(x: Any) -> Any:
    """[B, H, T, d] to [B, T, H * d]."""
    batch, heads, length, size = x.shape
    return x.swapaxes(1, 2).reshape(batch, length, heads * size)


def _reorder(buffer: Buffer, rows: Any, count: int) -> None:
    """Only what has been written is moved: a beam's step costs what the text is long."""
    lock = acquire(buffer)
    try:
        storage = buffer.storage_for_update()
        storage[:, :, :count] = storage[:, :, :count][rows]
    finally:
        lock.release()


class KeyValueCache(nn.Module):
    """What a decoder keeps of up to `length` tokens of each of `batch` texts.

    Places count from the start of the cache, positions from the start of each text, which may have padding
    before it. With `encoded` places there is a second layer each for the keys and values of an encoder.
    """

    def __init__(
        self, layers: int, batch: int, groups: int, size: int, length: int, dtype: Any, encoded: int = 0
    ) -> None:
        self.length = length
        self.layers = [LayerCache(batch, groups, length, size, dtype) for _ in range(layers)]
        self.encoded = [
            LayerCache(batch, groups, encoded, size, dtype) for _ in range(layers if encoded else 0)
        ]
        self.place = new_buffer((), types.int64)
        self.counts = new_buffer((batch, 1), types.int64)  # tokens of each text so far
        self.visible = new_buffer((batch, length), types.bool_)  # where there is a token of the text

    def clear(self) -> None:
        """Forget all tokens."""
        for buffer in (self.place, self.counts, self.visible):
            buffer.replace(np.zeros(buffer.shape, buffer.dtype.numpy))

    def reorder(self, rows: Any) -> None:
        """Row b becomes what row `rows[b]`, of the same prompt, was: beams that go on."""
        count = int(self.place.numpy())
        for layer in self.layers:
            layer.reorder(rows, count)

    def take_in(self, mask: Any, first: bool = False) -> Window:
        """Make room for new tokens [B, T], of which those with 0 in `mask` are padding. `first`: nothing is
        in the cache yet.
        """
        batch, count = mask.shape
        place = self.place + 0  # as it is now: the buffer itself changes below
        own = cumulative_sum(mask, 1)  # [B, T]
        positions = maximum(self.counts + own - 1, 0)  # [B, T]
        visible = dynamic_update_slice(self.visible, mask != 0, (0, place))  # [B, L]
        seen = causal_mask(count, key_mask(mask, batch, count)) if first else None
        self.counts.assign(self.counts + own[:, -1:])
        self.visible.assign(visible)
        self.place.assign(place + count)
        return Window(place, positions, visible, seen)
