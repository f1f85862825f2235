"""Winograd's convolution F(4x4, 3x3): which 3x3 convolutions are computed by it, and its ops.

In: a legalised graph. Out: a graph in which the convolutions for which the cost model finds it faster are
replaced. `schedule` calls `use_winograd`; the kernels are in codegen/c/winograd.py.

A tile of 4x4 results needs 36 multiplications per channel instead of 144: y = At [(G w Gt) * (Bt x B)] A,
with 6x6 tiles of the input that overlap by two. The points are 0, +-sqrt(1/2), +-sqrt(2) and infinity, whose
rounding errors are three to five times smaller than those of 0, +-1, +-2. Sums over channels (over tiles, in
the weight gradient) are 36 matrix products. Filters are transformed in float64. (Lavin and Gray, 2016; the
points: Barabasz et al., 2020.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg.graph import AxisGroup, Graph, Kind, Node, Op, Value, rewrite
from thalweg.ops.contraction import Pairs
from thalweg.ops.core import apply, primitive
from thalweg.plan import LANES
from thalweg.types import Type

Array = np.ndarray[Any, Any]

TILE = 4  # results of a tile along each axis
WINDOW = 6  # elements of the input that a tile reads along each axis
POINTS = WINDOW * WINDOW
LOW, HIGH = math.sqrt(0.5), math.sqrt(2.0)  # the points are 0, +-LOW, +-HIGH and infinity
PANEL = 4  # most vectors of filters beside each other in a product

OUTPUT = np.array(
    [
        [1, 1, 1, 1, 1, 0],
        [0, LOW, -LOW, HIGH, -HIGH, 0],
        [0, 0.5, 0.5, 2, 2, 0],
        [0, LOW / 2, -LOW / 2, 2 * HIGH, -2 * HIGH, 1],
    ]
)  # At
FILTER = np.array(
    [
        [1, 0, 0],
        [-2 / 3, -2 / 3 * LOW, -1 / 3],
        [-2 / 3, 2 / 3 * LOW, -1 / 3],
        [1 / 6, HIGH / 6, 1 / 3],
        [1 / 6, -HIGH / 6, 1 / 3],
        [0, 0, 1],
    ]
)  # G
INPUT = np.array(
    [
        [1, 0, -2.5, 0, 1, 0],
        [0, -2 * LOW, -2, LOW, 1, 0],
        [0, 2 * LOW, -2, -LOW, 1, 0],
        [0, -HIGH / 2, -0.5, HIGH, 1, 0],
        [0, HIGH / 2, -0.5, -HIGH, 1, 0],
        [0, 1, 0, -2.5, 0, 1],
    ]
)  # Bt


def panels(filters: int) -> tuple[int, int]:
    """Panels that filters are cut into, and the filters of each: a multiple of 16; zeros fill the last."""
    vectors = -(-filters // LANES)
    count = -(-vectors // PANEL)
    return count, -(-vectors // count) * LANES


def _tiled(x: Array, rows: int, columns: int, size: int, low: Sequence[int]) -> Array:
    """The tiles [N, C, rows, columns, size, size] of x behind a border of `low` zeros, zero outside of x."""
    n, c, height, width = x.shape
    border = np.zeros((n, c, TILE * rows + size + height, TILE * columns + size + width))
    border[:, :, low[0] : low[0] + height, low[1] : low[1] + width] = x
    windows = np.lib.stride_tricks.sliding_window_view(border, (size, size), (2, 3))
    return windows[:, :, : TILE * rows : TILE, : TILE * columns : TILE]


@primitive("winograd_filters", Kind.CONTRACTION)
class WinogradFilters(Op):
    """[K, C, 3, 3] -> [36, panels, C, filters of a panel]: G w Gt of every filter.

    `back`: for the input gradient; channels take the place of filters, and the taps are turned around.
    """

    back: bool = False

    def _sizes(self, w: Type) -> tuple[int, int]:
        """Filters and channels of the convolution that is computed."""
        return (w.shape[1], w.shape[0]) if self.back else (w.shape[0], w.shape[1])

    def infer(self, w: Type) -> tuple[Type, ...]:
        filters, channels = self._sizes(w)
        count, width = panels(filters)
        return (Type(w.dtype, (POINTS, count, channels, width)),)

    def reference(self, w: Array) -> Array:
        given = w.astype(np.float64)
        if self.back:
            given = given.swapaxes(0, 1)[:, :, ::-1, ::-1]
        filters, channels = given.shape[:2]
        count, width = panels(filters)
        result = np.zeros((POINTS, channels, count * width))
        found = np.einsum("ai,bj,kcij->abck", FILTER, FILTER, given)
        result[:, :, :filters] = found.reshape(POINTS, channels, filters)
        result = result.reshape(POINTS, channels, count, width).swapaxes(1, 2)
        return np.ascontiguousarray(result).astype(w.dtype)

    def axes(self, w: Type) -> tuple[AxisGroup, ...]:
        return ()

    def operations(self, inputs: Sequence[Type], outputs: Sequence[Type]) -> int:
        return 3 * outputs[0].size


@primitive("winograd_convolution", Kind.CONTRACTION, combine="sum")
class WinogradConvolution(Op):
    """x [N, C, H, W] and transformed filters -> [N, filters, rows, columns] of a 3x3 convolution."""

    filters: int
    padding: Pairs

    def infer(self, x: Type, u: Type) -> tuple[Type, ...]:
        sizes = [size + sum(pair) - 2 for size, pair in zip(x.shape[2:], self.padding, strict=True)]
        return (Type(x.dtype, (x.shape[0], self.filters, *sizes)),)

    def reference(self, x: Array, u: Array) -> Array:
        height, width = (size + sum(pair) - 2 for size, pair in zip(x.shape[2:], self.padding, strict=True))
        rows, columns = -(-height // TILE), -(-width // TILE)
        tiles = _tiled(x, rows, columns, WINDOW, [low for low, _ in self.padding])
        filters = u.astype(np.float64).swapaxes(1, 2).reshape(WINDOW, WINDOW, x.shape[1], -1)
        points = np.einsum("ai,bj,nchwij->nchwab", INPUT, INPUT, tiles)
        sums = np.einsum("nchwab,abck->nkhwab", points, filters[..., : self.filters])
        result = np.einsum("ia,jb,nkhwab->nkhiwj", OUTPUT, OUTPUT, sums)
        result = result.reshape(x.shape[0], self.filters, rows * TILE, columns * TILE)
        return np.ascontiguousarray(result[:, :, :height, :width]).astype(x.dtype)

    def axes(self, x: Type, u: Type) -> tuple[AxisGroup, ...]:
        return (AxisGroup((0, None), (0,)), AxisGroup((1, 2), (None,)))

    def operations(self, inputs: Sequence[Type], outputs: Sequence[Type]) -> int:
        return 18 * outputs[0].size * inputs[0].shape[1]


@primitive("winograd_products", Kind.CONTRACTION, combine="sum")
class WinogradProducts(Op):
    """x [N, C, H, W] and y's cotangent [N, K, rows, columns] -> [slots, 36, panels, C, filters of a panel]:
    the gradient with respect to the transformed filters, each slot from a part of the images.
    """

    padding: Pairs
    slots: int

    def infer(self, x: Type, g: Type) -> tuple[Type, ...]:
        count, width = panels(g.shape[1])
        return (Type(x.dtype, (self.slots, POINTS, count, x.shape[1], width)),)

    def reference(self, x: Array, g: Array) -> Array:
        filters, (rows, columns) = g.shape[1], (-(-size // TILE) for size in g.shape[2:])
        tiles = _tiled(x, rows, columns, WINDOW, [low for low, _ in self.padding])
        points = np.einsum("ai,bj,nchwij->nchwab", INPUT, INPUT, tiles)
        spread = np.einsum("ia,jb,nkhwij->nkhwab", OUTPUT, OUTPUT, _tiled(g, rows, columns, TILE, (0, 0)))
        count, width = panels(filters)
        result = np.zeros((self.slots, POINTS, x.shape[1], count * width))
        for slot in range(self.slots):
            own = slice(slot * len(x) // self.slots, (slot + 1) * len(x) // self.slots)
            found = np.einsum("nchwab,nkhwab->abck", points[own], spread[own])
            result[slot, :, :, :filters] = found.reshape(POINTS, x.shape[1], filters)
        result = result.reshape(self.slots, POINTS, x.shape[1], count, width).swapaxes(2, 3)
        return np.ascontiguousarray(result).astype(x.dtype)

    def axes(self, x: Type, g: Type) -> tuple[AxisGroup, ...]:
        return ()

    def operations(self, inputs: Sequence[Type], outputs: Sequence[Type]) -> int:
        return 18 * inputs[1].size * inputs[0].shape[1]


@primitive("winograd_weight_gradient", Kind.CONTRACTION, combine="sum")
class WinogradWeightGradient(Op):
    """The gradient [filters, C, 3, 3] from that with respect to the transformed filters: Gt u G, added over
    slots.
    """

    filters: int

    def infer(self, u: Type) -> tuple[Type, ...]:
        return (Type(u.dtype, (self.filters, u.shape[3], 3, 3)),)

    def reference(self, u: Array) -> Array:
        channels = u.shape[3]
        given = u.astype(np.float64).sum(0).swapaxes(1, 2).reshape(WINDOW, WINDOW, channels, -1)
        found = np.einsum("ai,bj,abck->kcij", FILTER, FILTER, given[..., : self.filters])
        return np.ascontiguousarray(found).astype(u.dtype)

    def axes(self, u: Type) -> tuple[AxisGroup, ...]:
        return ()

    def operations(self, inputs: Sequence[Type], outputs: Sequence[Type]) -> int:
        return inputs[0].size + 3 * inputs[0].size // inputs[0].shape[0]


# ---- cost --------------------------------------------------------------------------------------------------

# All costs are in multiply-adds of one vector of 16 numbers, of which a core does about one per cycle.
TRANSFORM = 130  # of one tile of 16 channels
DIRECT = 1.15  # a direct convolution, for each multiply-add
CACHED = 300_000  # bytes of filters that stay in a core's own cache
NEAR, FAR = 32, 12  # bytes per cycle from that cache, and from behind it
BLOCK_BYTES = 768 << 10  # of transformed tiles and sums that stay in that cache
SHARE = 4  # tasks that should have as much to do as each other
GAIN = 0.9  # of the direct cost, up to which it is worth it


@dataclass(frozen=True)
class Cut:
    """A convolution's tiles in blocks of `images` x `rows` rows of tiles, its filters in `chunks` parts."""

    images: int
    rows: int
    chunks: int
    blocks: int
    cost: float


def cut(batch: int, rows: int, columns: int, channels: int, filters: int) -> Cut:
    """The blocks that cost least: many tiles read the transformed filters seldom, few stay in cache."""
    count, width = panels(filters)
    nbytes = 4 * POINTS * channels * count * width
    speed = NEAR if nbytes <= CACHED else FAR
    found: list[Cut] = []
    sizes = [(1, -(-rows // parts)) for parts in range(1, rows + 1)]
    sizes += [(-(-batch // parts), rows) for parts in range(1, batch + 1)]
    for images, high in dict.fromkeys(sizes):
        blocks = -(-batch // images) * -(-rows // high)
        chunks = min(count, -(-8 // blocks))
        tiles = images * high * columns
        if tiles > 64 and (images, high) != (1, 1):
            continue
        products = POINTS * tiles * channels * count * width / LANES
        transforms = tiles * TRANSFORM * (chunks * -(-channels // LANES) + -(-filters // LANES))
        near = 4 * POINTS * tiles * (channels + width) <= BLOCK_BYTES
        again = 0 if near else count * 4 * POINTS * tiles * channels
        reads = nbytes / speed / 2 + again / FAR * 2  # a stream comes in time, scattered rows do not
        items = blocks * chunks
        idle = -(-items // SHARE) * SHARE / items
        found.append(Cut(images, high, chunks, blocks, blocks * (products + transforms + reads) * idle))
    return min(found, key=lambda c: c.cost)


def _cost(batch: int, out: Sequence[int], channels: int, filters: int, fixed: bool) -> float | None:
    """The cost where Winograd's convolution is faster than the direct one. `fixed`: filters are transformed
    once."""
    if min(channels, filters) < LANES or not min(batch, *out):
        return None
    direct = DIRECT * batch * math.prod(out) * filters * channels * 9 / LANES
    rows, columns = (-(-size // TILE) for size in out)
    own = cut(batch, rows, columns, channels, filters).cost
    if not fixed:
        own += 4 * 4 * POINTS * channels * filters / FAR
    return own if own < GAIN * direct else None


# ---- the rewrite -------------------------------------------------------------------------------------------

SLOTS = 8  # tasks that the sums of a weight gradient should have
CHUNK = 64  # channels of one task of a weight gradient


def slots(batch: int, channels: int, filters: int) -> int:
    """Parts of the images whose sums are kept apart, so that there are enough tasks."""
    return min(batch, -(-SLOTS // (panels(filters)[0] * -(-channels // CHUNK))))


def use_winograd(graph: Graph) -> Graph:
    """The graph with Winograd's convolutions where they pay; the same graph where they pay nowhere."""
    fixed = {id(entry.before) for entry in graph.state if entry.after is None}
    chosen = {id(node) for node in graph.nodes if winograd_cost(node, fixed) is not None}
    if not chosen:
        return graph

    def rule(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        return [_replaced(node, inputs)] if id(node) in chosen else None

    return rewrite(graph, rule)


def _replaced(node: Node, inputs: tuple[Value, ...]) -> Value:
    op: Any = node.op
    first, second = inputs
    if op.name == "convolution_weight_gradient":
        filters = second.shape[1]
        parts = slots(first.shape[0], first.shape[1], filters)
        return apply(  # type: ignore[no-any-return]
            WinogradWeightGradient(filters), apply(WinogradProducts(op.padding, parts), first, second)
        )
    back = op.name == "convolution_input_gradient"
    padding = tuple((2 - low, 2 - high) for low, high in op.padding) if back else op.padding
    transformed = apply(WinogradFilters(back), second)
    filters = second.shape[1] if back else second.shape[0]
    return apply(WinogradConvolution(filters, padding), first, transformed)  # type: ignore[no-any-return]


def winograd_cost(node: Node, fixed: set[int]) -> float | None:
    """What a convolution costs by Winograd's algorithm, or None where it is not one that gets faster.
    `fixed`: ids of the values that no call changes."""
    op: Any = node.op
    if not op.name.startswith("convolution") or op.groups != 1:
        return None
    first, second = node.inputs
    if first.ndim != 4 or first.dtype.short != "f32" or {*op.strides, *op.dilation} != {1}:
        return None
    if op.name == "convolution_weight_gradient":
        if op.kernel != (3, 3):
            return None
        return _cost(first.shape[0], second.shape[2:], first.shape[1], second.shape[1], False)
    if second.shape[2:] != (3, 3):
        return None
    known = id(second) in fixed
    if op.name == "convolution":
        filters, channels = second.shape[:2]
        return _cost(first.shape[0], node.outputs[0].shape[2:], channels, filters, known)
    if any(max(pair) > 2 for pair in op.padding):
        return None
    channels, filters = second.shape[:2]
    return _cost(first.shape[0], node.outputs[0].shape[2:], channels, filters, known)
