"""Layered layout of a directed acyclic graph: in which order, and where along its layer, each item stands.

In: items with a layer and a width, edges from lower to higher layers. Out: x of every item's centre, and for
edges that skip layers the points through which they pass. Nothing here knows what is drawn.

Method: Sugiyama, Tagawa and Toda (1981): long edges get dummy items, crossings are reduced by barycentres,
and each layer's coordinates are the least-squares fit to its neighbours' under minimal distances (isotonic
regression).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

_SWEEPS = 8
_DUMMY_WIDTH = 14.0
_DUMMY_WEIGHT = 4.0  # long edges should be straight: they yield less than boxes
_END_WEIGHT = 0.1  # what begins or ends a path yields to what continues one


@dataclass(eq=False)
class _Item:
    key: Hashable | None  # None: a dummy
    layer: int
    left: float  # extent to the left of the centre
    right: float
    x: float = 0.0
    before: list[_Item] = field(default_factory=list)
    after: list[_Item] = field(default_factory=list)

    @property
    def weight(self) -> float:
        if self.key is None:
            return _DUMMY_WEIGHT
        return 1.0 if self.before and self.after else _END_WEIGHT


@dataclass(frozen=True)
class Layered:
    """Centres by item, and the x at which each edge passes the layers between its ends: {layer: x}."""

    x: dict[Hashable, float]
    passes: dict[tuple[Hashable, Hashable], dict[int, float]]


def layered(
    layers: Mapping[Hashable, int],
    extents: Mapping[Hashable, tuple[float, float]],
    edges: Sequence[tuple[Hashable, Hashable]],
    gap: float,
) -> Layered:
    """Lay out items with their layer, extents left and right of their centre, and edges (from lower to higher
    layer).

    Items of a layer keep a distance of at least `gap`. The order of `layers` breaks ties, so equal input
    gives equal output.
    """
    items = {key: _Item(key, layer, *extents[key]) for key, layer in layers.items()}
    rows: dict[int, list[_Item]] = {}
    for item in items.values():
        rows.setdefault(item.layer, []).append(item)
    chains = {edge: _chain(items[edge[0]], items[edge[1]], rows) for edge in dict.fromkeys(edges)}
    ordered = [rows[layer] for layer in sorted(rows)]
    for sweep in range(_SWEEPS):
        _order(ordered, downwards=sweep % 2 == 0)
    for row in ordered:
        _place(row, [0.0] * len(row), gap)
    for sweep in range(_SWEEPS):
        _align(ordered, gap, downwards=sweep % 2 == 0)
    shift = min((item.x - item.left for row in ordered for item in row), default=0.0)
    return Layered(
        {key: item.x - shift for key, item in items.items()},
        {edge: {item.layer: item.x - shift for item in chain} for edge, chain in chains.items()},
    )


def _chain(source: _Item, target: _Item, rows: dict[int, list[_Item]]) -> list[_Item]:
    """Link two items through a dummy in every layer between them."""
    between = sorted(layer for layer in rows if source.layer < layer < target.layer)
    half = _DUMMY_WIDTH / 2
    dummies = [_Item(None, layer, half, half) for layer in between]
    for dummy in dummies:
        rows[dummy.layer].append(dummy)
    for upper, lower in pairwise([source, *dummies, target]):
        upper.after.append(lower)
        lower.before.append(upper)
    return dummies


def _order(rows: Sequence[list[_Item]], downwards: bool) -> None:
    """Sort each layer by the mean position of its items' neighbours in the layer before it."""
    for row in rows if downwards else reversed(rows):
        position = {id(item): index for r in rows for index, item in enumerate(r)}
        places = {}
        for item in row:
            near = [position[id(other)] for other in (item.before if downwards else item.after)]
            places[id(item)] = sum(near) / len(near) if near else position[id(item)]
        row.sort(key=lambda item: (places[id(item)], not item.after))  # what ends here stands to the right


def _align(rows: Sequence[list[_Item]], gap: float, downwards: bool) -> None:
    for row in rows if downwards else reversed(rows):
        wanted = []
        for item in row:
            near = item.before if downwards else item.after
            total = sum(other.weight for other in near)
            wanted.append(sum(other.x * other.weight for other in near) / total if near else item.x)
        _place(row, wanted, gap)


def _place(row: Sequence[_Item], wanted: Sequence[float], gap: float) -> None:
    """The positions closest to the wanted ones (weighted least squares) that keep order and distances."""
    offsets = [0.0]
    for left, right in pairwise(row):
        offsets.append(offsets[-1] + left.right + gap + right.left)
    targets = [x - offset for x, offset in zip(wanted, offsets, strict=True)]
    for item, x in zip(row, monotone(targets, [item.weight for item in row]), strict=True):
        item.x = x + offsets.pop(0)


def monotone(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-decreasing sequence closest to `values` (weighted least squares; pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, heavy, length = blocks.pop()
            other, other_heavy, other_length = blocks.pop()
            total = heavy + other_heavy
            blocks.append(((mean * heavy + other * other_heavy) / total, total, length + other_length))
    return [mean for mean, _, length in blocks for _ in range(length)]
