"""The layered layout, on graphs that have nothing to do with networks."""

from __future__ import annotations

import itertools
import random

import pytest

from thalweg.viz.layered import layered, monotone

GAP = 10.0


def extents(keys: list[str], half: float = 20.0) -> dict[str, tuple[float, float]]:
    return dict.fromkeys(keys, (half, half))


def crossings(x: dict[str, float], edges: list[tuple[str, str]], layers: dict[str, int]) -> int:
    count = 0
    for (a, b), (c, d) in itertools.combinations(edges, 2):
        if layers[a] == layers[c] and layers[b] == layers[d] and (x[a] - x[c]) * (x[b] - x[d]) < 0:
            count += 1
    return count


def test_a_chain_is_straight() -> None:
    layers = {name: number for number, name in enumerate("abcdef")}
    found = layered(layers, extents(list(layers)), list(itertools.pairwise("abcdef")), GAP)
    assert len({round(x, 6) for x in found.x.values()}) == 1


def test_a_skipped_layer_is_passed_beside_its_box() -> None:
    layers = {"a": 0, "b": 1, "c": 2}
    found = layered(layers, extents(["a", "b", "c"]), [("a", "b"), ("b", "c"), ("a", "c")], GAP)
    (passing,) = found.passes["a", "c"].values()
    assert abs(passing - found.x["b"]) >= 20 + GAP
    assert found.passes["a", "b"] == {}


def test_crossings_that_can_be_avoided_are() -> None:
    layers = {"a": 0, "b": 0, "c": 0, "x": 1, "y": 1, "z": 1}
    edges = [("a", "z"), ("b", "y"), ("c", "x")]
    found = layered(layers, extents(list(layers)), edges, GAP)
    assert crossings(found.x, edges, layers) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_boxes_keep_their_distance_and_begin_at_zero(seed: int) -> None:
    source = random.Random(seed)
    layers = {f"n{number}": source.randrange(6) for number in range(25)}
    names = list(layers)
    pairs = [(a, b) for a in names for b in names if layers[a] < layers[b]]
    sizes = {name: (source.uniform(10, 60), source.uniform(10, 60)) for name in names}
    found = layered(layers, sizes, source.sample(pairs, min(30, len(pairs))), GAP)
    for row in range(6):
        placed = sorted((name for name in names if layers[name] == row), key=lambda name: found.x[name])
        for left, right in itertools.pairwise(placed):
            assert found.x[right] - sizes[right][0] - found.x[left] - sizes[left][1] >= GAP - 1e-6
    assert min(found.x[name] - sizes[name][0] for name in names) >= -1e-6


def test_equal_input_gives_equal_output() -> None:
    layers = {"a": 0, "b": 1, "c": 1, "d": 2}
    edges = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
    assert layered(layers, extents(list("abcd")), edges, GAP) == layered(
        layers, extents(list("abcd")), edges, GAP
    )


def test_nothing_to_lay_out() -> None:
    assert layered({}, {}, [], GAP).x == {}


def test_monotone_is_the_least_squares_fit() -> None:
    assert monotone([1.0, 3.0, 2.0, 5.0], [1.0] * 4) == [1.0, 2.5, 2.5, 5.0]
    assert monotone([4.0, 1.0], [3.0, 1.0]) == [3.25, 3.25]
    assert monotone([1.0, 2.0], [1.0, 1.0]) == [1.0, 2.0]
    assert monotone([], []) == []
