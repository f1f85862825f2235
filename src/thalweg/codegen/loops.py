"""Index arithmetic: which element of a value a loop iteration needs, as an expression that simplifies itself.

An `Index` is a constant plus integer multiples of atoms. An atom is a loop variable, or the floor
quotient or remainder of another index (from reshapes). Quotients and remainders of one index join again:
`6*(i//6) + i%6` is `i`, so a reshape of something that lies in memory costs nothing. The variable `v` is
the vector lane, 0 to 15.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LANE = "v"


def is_lane(name: str) -> bool:
    """Does the variable differ by lane: the lane number itself, or a C vector of indices (named v_...)?"""
    return name == LANE or name.startswith("v_")


@dataclass(frozen=True, slots=True)
class Split:
    """`inner // divisor` or `inner % divisor`."""

    kind: str  # "/" or "%"
    inner: Index
    divisor: int


Atom = str | Split


@dataclass(frozen=True, slots=True)
class Index:
    """constant + sum of coefficient * atom; `terms` is sorted and has no zero coefficient."""

    constant: int = 0
    terms: tuple[tuple[Atom, int], ...] = ()

    def __add__(self, other: Index) -> Index:
        terms = dict(self.terms)
        for atom, coefficient in other.terms:
            terms[atom] = terms.get(atom, 0) + coefficient
        return _make(self.constant + other.constant, terms)

    def __mul__(self, factor: int) -> Index:
        return _make(self.constant * factor, {atom: c * factor for atom, c in self.terms})

    def __sub__(self, other: Index) -> Index:
        return self + other * -1

    def coefficient(self, atom: Atom) -> int:
        return dict(self.terms).get(atom, 0)

    @property
    def is_constant(self) -> bool:
        return not self.terms

    @property
    def by_lane(self) -> bool:
        """Does it differ by lane?"""
        return any(is_lane(atom) if isinstance(atom, str) else atom.inner.by_lane for atom, _ in self.terms)

    @property
    def lane_linear(self) -> bool:
        """Does the lane number enter as a multiple only?"""
        return not any(
            atom.startswith("v_") if isinstance(atom, str) else atom.inner.by_lane for atom, _ in self.terms
        )

    def variables(self) -> set[str]:
        found: set[str] = set()
        for atom, _ in self.terms:
            found |= {atom} if isinstance(atom, str) else atom.inner.variables()
        return found

    def is_linear_in(self, name: str) -> bool:
        """Does `name` appear outside quotients and remainders only?"""
        return not any(isinstance(atom, Split) and name in atom.inner.variables() for atom, _ in self.terms)

    def range(self, extents: Mapping[str, int]) -> tuple[int, int]:
        """Smallest and largest value when each variable runs from 0 to its extent - 1."""
        low = high = self.constant
        for atom, c in self.terms:
            if isinstance(atom, str):
                first, last = 0, max(extents[atom] - 1, 0)
            else:
                first, last = atom.inner.range(extents)
                if atom.kind == "/":
                    first, last = first // atom.divisor, last // atom.divisor
                elif first // atom.divisor == last // atom.divisor:
                    first, last = first % atom.divisor, last % atom.divisor
                else:
                    first, last = 0, atom.divisor - 1
            low += min(c * first, c * last)
            high += max(c * first, c * last)
        return low, high

    def text(self) -> str:
        """The index as a C expression of 64-bit integers."""
        parts: list[str] = []
        for atom, c in self.terms:
            name = atom if isinstance(atom, str) else f"(({atom.inner.text()}) {atom.kind} {atom.divisor})"
            parts.append(name if c == 1 else f"{c} * {name}")
        if self.constant or not parts:
            parts.append(str(self.constant))
        return " + ".join(parts).replace("+ -", "- ")


def _order(atom: Atom) -> tuple[int, str]:
    return (0, atom) if isinstance(atom, str) else (1, f"{atom.inner.text()}{atom.kind}{atom.divisor}")


def _make(constant: int, terms: dict[Atom, int]) -> Index:
    terms = {atom: c for atom, c in terms.items() if c}
    changed = True
    while changed:
        changed = False
        for atom, c in terms.items():
            if isinstance(atom, Split) and atom.kind == "%":
                quotient = Split("/", atom.inner, atom.divisor)
                if terms.get(quotient) == c * atom.divisor:
                    del terms[atom], terms[quotient]
                    joined = Index(constant, tuple(terms.items())) + atom.inner * c
                    constant, terms = joined.constant, dict(joined.terms)
                    changed = True
                    break
    return Index(constant, tuple(sorted(terms.items(), key=lambda t: _order(t[0]))))


def constant(value: int) -> Index:
    return Index(value)


def variable(name: str, coefficient: int = 1) -> Index:
    return Index(0, ((name, coefficient),))


class Ranges(dict[str, int]):
    """Extents of variables, of which `stepped` are multiples of a step: the starts of whole vectors."""

    def __init__(self, extents: Mapping[str, int], stepped: Mapping[str, int] = {}) -> None:
        super().__init__(extents)
        self.stepped = dict(stepped)


def vector_start(index: Index, unit: int, extents: Mapping[str, int]) -> Index | None:
    """`index` without the lane number, if that and `unit` are multiples of the 16 lanes: then no multiple of
    `unit` lies inside a vector. None where that is not known."""
    stepped = extents.stepped if isinstance(extents, Ranges) else {}
    lanes = extents.get(LANE, 0)
    rest = index - variable(LANE)
    if lanes != 16 or index.coefficient(LANE) != 1 or rest.constant % lanes or unit % lanes:
        return None
    whole = all(c * (stepped.get(a, 1) if isinstance(a, str) else 1) % lanes == 0 for a, c in rest.terms)
    return rest if whole else None


def divide(index: Index, divisor: int, extents: Mapping[str, int]) -> tuple[Index, Index]:
    """Floor quotient and remainder of a non-negative index."""
    if divisor == 1:
        return index, Index()
    start = vector_start(index, divisor, extents)
    if start is not None:
        quotient, remainder = divide(start, divisor, extents)
        return quotient, remainder + variable(LANE)
    whole = Index(
        index.constant // divisor, tuple((a, c // divisor) for a, c in index.terms if c % divisor == 0)
    )
    rest = Index(index.constant % divisor, tuple((a, c) for a, c in index.terms if c % divisor))
    low, high = rest.range(extents)
    if low >= 0 and high < divisor:
        return whole, rest
    return whole + Index(0, ((Split("/", rest, divisor), 1),)), Index(0, ((Split("%", rest, divisor), 1),))


def unravel(index: Index, shape: Sequence[int], extents: Mapping[str, int]) -> tuple[Index, ...]:
    """The row-major position `index` as one index per axis of `shape`. It lies inside the shape, so the first
    axis that has more than one position needs no remainder."""
    first = next((axis for axis, extent in enumerate(shape) if extent != 1), len(shape))
    result: list[Index] = []
    for extent in reversed(shape[first + 1 :]):
        index, rest = divide(index, max(extent, 1), extents)
        result.append(rest)
    if first < len(shape):
        result.append(index)
    return (Index(),) * first + tuple(reversed(result))


def ravel(indices: Sequence[Index], shape: Sequence[int]) -> Index:
    """The row-major position of `indices` in `shape`."""
    total = Index()
    for index, extent in zip(indices, shape, strict=True):
        total = total * extent + index
    return total


def reshape_index(
    indices: Sequence[Index], old: Sequence[int], new: Sequence[int], extents: Mapping[str, int]
) -> tuple[Index, ...]:
    """Indices into shape `new` of the element at `indices` of shape `old` (same elements in row-major order).

    Groups of axes with equal products are handled apart, so that an axis which both shapes have keeps its
    index.
    """
    if 0 in old or 0 in new:
        return (Index(),) * len(new)  # there is no element to find
    result: list[Index] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [i], [j]
        have = old[i] if i < len(old) else 1
        want = new[j] if j < len(new) else 1
        while have != want:
            if have < want:
                left.append(left[-1] + 1)
                have *= old[left[-1]]
            else:
                right.append(right[-1] + 1)
                want *= new[right[-1]]
        group = [a for a in left if a < len(old)]
        target = [a for a in right if a < len(new)]
        flat = ravel([indices[a] for a in group], [old[a] for a in group])
        result.extend(unravel(flat, [new[a] for a in target], extents) if len(target) != 1 else (flat,))
        i, j = left[-1] + 1, right[-1] + 1
    return tuple(result)
