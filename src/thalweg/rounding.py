"""How far rounding may move a result, and whether a result lies further away than that.

In: nodes and arrays, or two results. Out: results of the references on operands that were moved by a few
units of rounding; what is wrong with a result, in words and numbers. Called by the check of compiled
programs and by the fuzzer. A fixed tolerance would be too tight for a difference of large numbers and too
loose for a copy; here every element has the bound that its own computation asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg.graph import Graph, Kind, Node

Array = np.ndarray[Any, Any]

DISTURBANCES = 6
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
_EXACT = {"maximum", "minimum", "abs", "negative", "where", "max", "min", "sign"}
_EXACT |= {"floor", "ceil", "round", "trunc", "stop_gradient", "cast"}


def moved(
    array: Array,
    generator: np.random.Generator,
    units: float = 3.0,
    relative: bool = True,
    dear: bool = False,
) -> Array:
    """Each number moved by up to some units of rounding, its own or the largest one's.

    Numbers of few bits stay, for sums and products give them without rounding; but not those of a `dear`
    function such as tanh, whose 1 may as well be the number before it."""
    name = array.dtype.name
    if name not in UNIT or not array.size:
        return array
    wide = np.asarray(array, np.float64)
    with np.errstate(all="ignore"):
        few = (wide * 256 == np.floor(wide * 256)) & (np.abs(wide) < 0.25 / UNIT[name] / 256)
        if dear or array.dtype.itemsize == 2:  # 16 bits may come from more: kernels keep float32 inside
            few = wide == 0
        # sums of many terms round to one side or to either
        shift = (generator.uniform(-units, units, wide.shape) + generator.uniform(-units, units)) / 2
        size = wide if relative else np.abs(wide).max(where=np.isfinite(wide), initial=0.0)
        result = np.where(few | ~np.isfinite(wide), wide, wide + size * shift * UNIT[name])
        return np.asarray(result).astype(array.dtype)


def disturb(node: Node, inputs: Sequence[Array], generator: np.random.Generator) -> list[Array]:
    """The outputs of a node, operands and results moved as far as another order of operations may do it."""
    many = node.op.kind not in (Kind.ELEMENTWISE, Kind.MOVEMENT)
    if many and node.op.name not in _EXACT:
        inputs = [moved(array, generator, 8.0) for array in inputs]
    results = node.op.reference(*inputs)
    found = []
    for result in results if isinstance(results, tuple) else (results,):
        array = np.asarray(result)
        if node.op.name in ("scan", "cond"):  # what is rounded inside is not followed
            array = moved(array, generator, 16.0, relative=False)
        elif node.op.kind is not Kind.MOVEMENT and node.op.name not in _EXACT:
            array = moved(array, generator, dear=node.op.kind is Kind.ELEMENTWISE and node.op.cost > 1)
        found.append(array)
    return found


def disturbed(graph: Graph, arrays: Sequence[Array], state: Sequence[Array], seed: int) -> list[Array]:
    """The results of a graph when every step of it rounds differently."""
    generator = np.random.Generator(np.random.PCG64(seed))
    known = {id(v): a for v, a in zip(graph.sources, [*arrays, *state], strict=True)}
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            results = disturb(node, [known[id(v)] for v in node.inputs], generator)
            known.update((id(v), array) for v, array in zip(node.outputs, results, strict=True))
    return [known[id(v)] for v in graph.results]


def is_coarse(nodes: Iterable[Node]) -> bool:
    """Are there 16-bit numbers? Kernels keep them in float32 where they do not store them, so that roundings,
    overflows and integers made from them differ from the reference's."""
    return any(v.dtype.itemsize == 2 and v.dtype.is_floating for node in nodes for v in node.outputs)


@dataclass(frozen=True)
class Mismatch:
    """What is wrong with a result; `index` is that of the worst element, None where type or shape differ."""

    wrong: int
    size: int
    index: tuple[int, ...] | None
    found: Any
    expected: Any
    tolerance: float

    def __str__(self) -> str:
        if self.index is None:
            return f"{self.found} instead of {self.expected}"
        place = f"[{', '.join(map(str, self.index))}]"
        bound = f" (tolerance {self.tolerance:.3g})" if self.tolerance else ""
        return (
            f"{self.wrong:,} of {self.size:,} elements are wrong, the worst at {place}: {self.found} instead "
            f"of {self.expected}{bound}"
        )


def mismatch(found: Array, expected: Array, others: Sequence[Array], coarse: bool = False) -> Mismatch | None:
    """What is wrong with a result, or None: it may lie as far away as rounding moves the reference, times 16.

    `others` are disturbed references. `coarse`: see `is_coarse`."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        shown = [f"{array.dtype}{array.shape}" for array in (found, expected)]
        return Mismatch(found.size, found.size, None, shown[0], shown[1], 0.0)
    if found.dtype.name not in UNIT:
        if coarse:
            return None
        wrong = found != expected
        for other in others:
            wrong &= other == expected
        excess = wrong.astype(np.float64)
        bound = np.zeros(found.shape)
    else:
        wrong, excess, bound = _beyond(found, expected, others, coarse)
    if not wrong.any():
        return None
    place = np.unravel_index(int(np.argmax(np.where(wrong, excess, -1.0))), found.shape)
    index = tuple(int(i) for i in place)
    return Mismatch(int(wrong.sum()), wrong.size, index, found[index], expected[index], float(bound[index]))


def _beyond(
    found: Array, expected: Array, others: Sequence[Array], coarse: bool
) -> tuple[Array, Array, Array]:
    """Of floating-point results: which elements are wrong, how far they exceed the bound, and the bound."""
    x, y = found.astype(np.float64), expected.astype(np.float64)
    wide = [other.astype(np.float64) for other in others] or [y]
    with np.errstate(all="ignore"):
        distance = np.max([np.abs(w - y) for w in wide], axis=0)
        scale = np.abs(y).max(initial=0.0, where=np.isfinite(y))
        bound = 16 * distance + 8 * UNIT[found.dtype.name] * (np.abs(y) + 2.0**-10 * scale) + 1e-37
        if coarse:
            bound += 2.0**-8 * (np.abs(y) + 0.1 * scale) + 1e-7
        wrong = np.isfinite(distance) & ~(np.abs(x - y) <= bound)
        agree = np.all([np.isnan(w) & np.isnan(y) | (w == y) for w in wide], axis=0)
        special = ~np.isfinite(y) & agree & ~(np.isnan(y) & np.isnan(x) | (x == y))
        wrong |= special & (not coarse)
        excess = np.nan_to_num(np.abs(x - y) / bound, nan=np.inf)
    return wrong, excess, bound
