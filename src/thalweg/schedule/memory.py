"""Memory: lifetimes to offsets in one arena, largest buffers first, each in the lowest gap that is free
while it lives."""

from __future__ import annotations

from collections.abc import Sequence

from thalweg.plan import Buffer


def place(buffers: Sequence[Buffer]) -> int:
    """Give every buffer an offset; returns the bytes of the arena. Lifetimes are `first` to `last`, both
    included."""
    placed: list[Buffer] = []
    size = 0
    for buffer in sorted(buffers, key=lambda b: (-b.total, b.first, b.name)):
        offset = 0
        for other in sorted(
            (b for b in placed if b.first <= buffer.last and buffer.first <= b.last), key=lambda b: b.offset
        ):
            if other.offset - offset >= buffer.total:
                break
            offset = max(offset, other.offset + other.total)
        buffer.offset = offset
        placed.append(buffer)
        size = max(size, offset + buffer.total)
    return size
