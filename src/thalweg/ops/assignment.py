"""`index_put`: a tensor with some elements replaced, under any index key. Written in other op functions."""

from __future__ import annotations

import math
from typing import Any

from thalweg.ops.accumulation import scatter
from thalweg.ops.core import cast, operand
from thalweg.ops.indexing import index
from thalweg.ops.movement import broadcast_to, reshape
from thalweg.ops.sources import iota


def index_put(x: Any, key: Any, value: Any, mode: str = "set") -> Any:
    """`x` with `value` at `x[key]`: what `x[key] = value` does to an array, as a new tensor.

    `key` is any key that `x[key]` takes; `value` broadcasts to the shape of `x[key]` and takes the element
    type of `x`. `mode` "add", "min" or "max" combines with the old elements instead. Where `key` names an
    element twice the values take effect in order. Raises the errors of indexing and broadcasting. """
    x = operand(x)
    places = index(reshape(iota((math.prod(x.shape),), 0), x.shape), key)
    values = broadcast_to(cast(operand(value, x.dtype), x.dtype), places.shape)
    written = scatter(reshape(x, (-1,)), reshape(places, (-1,)), reshape(values, (-1,)), 0, mode)
    return reshape(written, x.shape)
