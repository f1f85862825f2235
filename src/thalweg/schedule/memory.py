"""Memory: lifetimes to offsets in one arena, largest buffers first, each in the lowest gap that is free
while it lives."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from thalweg.plan import Buffer


def place(buffers: Sequence[Buffer]) -> int:
    """Give every buffer an offset; returns the bytes of the arena. Lifetimes are `first` to `last`, both
    included."""
    placed: list[tuple[int, int, Buffer]] = []  # offset, the byte behind, by offset
    size = 0
    totals = {id(b): b.total for b in buffers}
    for buffer in sorted(buffers, key=lambda b: (-totals[id(b)], b.first, b.name)):
        offset, total, first, last = 0, totals[id(buffer)], buffer.first, buffer.last
        for start, end, other in placed:
            if other.first <= last and first <= other.last:
                if start - offset >= total:
                    break
                offset = max(offset, end)
        buffer.offset = offset
        bisect.insort(placed, (offset, offset + total, buffer), key=lambda p: p[0])
        size = max(size, offset + total)
    return size
