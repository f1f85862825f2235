"""Linear algebra written in matrix products: the linear layer, `dot`, `outer`, `tensordot` and `einsum`.

Comes from users and `nn`; everything becomes transposes, reshapes and `matmul` nodes.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from thalweg.errors import ArgumentError, ShapeError
from thalweg.ops.contraction import MatMul, in_float32, matmul
from thalweg.ops.core import apply, composite, operand, promoted, require
from thalweg.ops.movement import expand_dims, moveaxis, reshape, slice_axis, squeeze, transpose
from thalweg.ops.reduction import sum as reduce_sum
from thalweg.ops.samples import Sample, functional, samples, special, values
from thalweg.types import normalize_axis

Array = np.ndarray[Any, Any]


@composite
def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    require(
        weight.ndim == 2, f"linear needs a weight [out features, in features], received shape {weight.shape}"
    )
    require(
        x.ndim >= 1 and x.shape[-1] == weight.shape[1],
        f"linear needs an input with {weight.shape[1]} elements on its last axis (weight {weight.shape} is "
        "[out features, in features]), received "
        + (f"{x.shape[-1]} on axis {x.ndim - 1} of shape {x.shape}" if x.ndim else "a 0-d tensor"),
    )
    require(
        bias is None or bias.shape == weight.shape[:1],
        f"linear needs a bias of shape {weight.shape[:1]}, received {None if bias is None else bias.shape}",
    )
    rows = apply(MatMul(False, True), _rows(x), weight)
    if bias is not None:
        rows = rows + bias
    return reshape(rows, (*x.shape[:-1], weight.shape[0]))


@_linear.gradient
def _linear_gradient(inputs: Any, outputs: Any, cotangents: Any) -> Sequence[Any]:
    # what the body gives, without computing the product again where values are computed at once
    x, weight, bias = inputs
    g = _rows(cotangents[0])
    by_x = reshape(apply(MatMul(), g, weight), x.shape)
    by_weight = apply(MatMul(True, False), g, _rows(x))
    return (by_x, by_weight, None if bias is None else reduce_sum(g, 0))


@_linear.reference
def _linear_reference(x: Array, weight: Array, bias: Array | None) -> Array:
    product: Array = np.matmul(in_float32(x), in_float32(weight).T)
    result = product.astype(x.dtype, copy=False)
    return result if bias is None else result + bias


def _rows(x: Any) -> Any:
    """x as [rows, last axis]."""
    return x if x.ndim == 2 else reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """x weight^T + bias over the last axis: `x` [.., in], `weight` [out, in], `bias` [out], the result [..,
    out].

    Raises `ShapeError` naming both sizes where x does not have `in` elements on its last axis.
    """
    operands = promoted(*(operand(item) for item in (x, weight, bias) if item is not None))
    x, weight, bias = (*operands, None)[:3]
    return _linear(x, weight, bias)


# ---- products of vectors and tensors -----------------------------------------------------------------------


def outer(x: Any, y: Any) -> Any:
    """`result[i, j] = x[i] y[j]` for two vectors."""
    x, y = promoted(x, y)
    if x.ndim != 1 or y.ndim != 1:
        raise ShapeError(f"outer needs two vectors, received shapes {x.shape} and {y.shape}")
    return expand_dims(x, 1) * y


def vecdot(x: Any, y: Any, axis: int = -1) -> Any:
    """The sum of products along `axis` of both operands; the other axes broadcast (array API `vecdot`)."""
    x, y = promoted(x, y)
    if x.ndim == 0 or y.ndim == 0:
        raise ShapeError(
            f"vecdot needs operands with at least one axis, received shapes {x.shape} and {y.shape}"
        )
    x, y = moveaxis(x, axis, -1), moveaxis(y, axis, -1)
    if x.shape[-1] != y.shape[-1]:
        raise ShapeError(
            f"vecdot needs equal sizes along axis {axis}, received {x.shape[-1]} and {y.shape[-1]}"
        )
    product = matmul(expand_dims(x, -2), expand_dims(y, -1))
    return reshape(product, product.shape[:-2])


def dot(x: Any, y: Any) -> Any:
    """NumPy's `dot`: sums over the last axis of `x` and the second to last (or only) one of `y`."""
    x, y = promoted(x, y)
    if x.ndim == 0 or y.ndim == 0:
        return x * y
    return tensordot(x, y, ((x.ndim - 1,), (max(y.ndim - 2, 0),)))


def tensordot(x: Any, y: Any, axes: Any = 2) -> Any:
    """The sum of products over pairs of axes: `axes` is a number n (the last n of `x`, the first n of `y`) or
    two lists.

    The result has the remaining axes of `x`, then those of `y`.
    """
    x, y = promoted(x, y)
    if isinstance(axes, (tuple, list)):
        if len(axes) != 2:
            raise ArgumentError(f"axes must be a number or two lists of axes, received {axes!r}")
        ours, theirs = (tuple(part) if isinstance(part, (tuple, list)) else (part,) for part in axes)
        first = tuple(normalize_axis(axis, x.ndim) for axis in ours)
        second = tuple(normalize_axis(axis, y.ndim) for axis in theirs)
    else:
        if not isinstance(axes, int) or not 0 <= axes <= min(x.ndim, y.ndim):
            raise ArgumentError(
                f"axes must lie between 0 and the number of axes, received {axes!r} for shapes {x.shape} and "
                f"{y.shape}"
            )
        first, second = tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))
    if len(first) != len(second) or len(set(first)) != len(first) or len(set(second)) != len(second):
        raise ArgumentError(f"axes must name as many distinct axes of both operands, received {axes!r}")
    names = list(range(x.ndim + y.ndim))
    right = names[x.ndim :]
    for one, other in zip(first, second, strict=True):
        if x.shape[one] != y.shape[other]:
            raise ShapeError(
                f"tensordot sums axis {one} of size {x.shape[one]} with axis {other} of size "
                f"{y.shape[other]}; they must be equal (shapes {x.shape} and {y.shape})"
            )
        right[other] = one
    summed = {names[axis] for axis in first}
    left = names[: x.ndim]
    output = [label for label in (*left, *right) if label not in summed]
    return _contract(_Term(x, tuple(left)), _Term(y, tuple(right)), tuple(output), tuple(output)).value


# ---- einsum ------------------------------------------------------------------------------------------------

Label = int | str
Labels = tuple[Label, ...]


class _Term(NamedTuple):
    """An operand and the label of each of its axes."""

    value: Any
    labels: Labels


def einsum(equation: str, *operands: Any) -> Any:
    """The sum of products that `equation` names: "bij,bjk->bik" is a batched matrix product (NumPy's
    `einsum`).

    Each letter is an axis; letters that are not in the result are summed, a letter twice in one operand is
    its diagonal, "..." stands for any further axes, which broadcast. Without "->" the result has the letters
    that occur once, in alphabetical order. More than two operands are contracted in an order that keeps the
    intermediate results small. Raises `ArgumentError` for an equation that cannot be read and `ShapeError`
    for sizes that differ.
    """
    if not isinstance(equation, str):
        raise ArgumentError(f'einsum needs an equation such as "ij,jk->ik" first, received {equation!r}')
    if not operands:
        raise ArgumentError(f"einsum needs an operand for each part of {equation!r}, received none")
    values = promoted(*operands)
    terms, output = _parse(equation, values)
    sizes = _label_sizes(equation, terms)
    terms = [_without_single(_diagonal(term), sizes) for term in terms]
    for pair in _contraction_order(terms, output, sizes):
        chosen = [terms[position] for position in pair]
        terms = [term for position, term in enumerate(terms) if position not in pair]
        kept = {label for term in terms for label in term.labels} | set(output)
        needed = tuple(
            label
            for label in dict.fromkeys(label for term in chosen for label in term.labels)
            if label in kept
        )
        terms.append(_contract(chosen[0], chosen[1], needed, output))
    (last,) = terms
    result = _sum_out(last, set(output))
    missing = [label for label in output if label not in result.labels]
    if missing:
        # only axes of size 1 were dropped entirely
        result = _Term(
            reshape(result.value, (*result.value.shape, *(1,) * len(missing))), (*result.labels, *missing)
        )
    return transpose(result.value, [result.labels.index(label) for label in output])


def _parse(equation: str, values: Sequence[Any]) -> tuple[list[_Term], Labels]:
    """Terms and the labels of the result; the axes of "..." get negative numbers, counted from the right."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    for part in (*parts, right):
        if not re.fullmatch(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*", part):
            raise ArgumentError(
                f'einsum cannot read {part!r} in {equation!r}: write letters and at most one "..."'
            )
    if len(parts) != len(values):
        raise ArgumentError(f"einsum equation {equation!r} has {len(parts)} operands, received {len(values)}")
    terms = [
        _Term(value, _expand_labels(equation, part, value)) for part, value in zip(parts, values, strict=True)
    ]
    widest = max(
        -min((label for label in term.labels if isinstance(label, int)), default=0) for term in terms
    )
    ellipsis: Labels = tuple(range(-widest, 0))
    if not arrow:
        counts = Counter(label for term in terms for label in term.labels if isinstance(label, str))
        return terms, (*ellipsis, *sorted(label for label, count in counts.items() if count == 1))
    before, dots, after = right.partition("...")
    output = (*before, *(ellipsis if dots else ()), *after)
    known = {label for term in terms for label in term.labels}
    for label in output:
        if label not in known or output.count(label) > 1:
            raise ArgumentError(
                f"einsum: {label!r} in the result of {equation!r} must name one axis of an operand"
            )
    return terms, output


def _expand_labels(equation: str, part: str, value: Any) -> Labels:
    before, dots, after = part.partition("...")
    further = value.ndim - len(before) - len(after)
    if further < 0 or (further and not dots):
        raise ShapeError(
            f"einsum: {part!r} in {equation!r} names {len(before) + len(after)} axes, the operand has shape "
            f"{value.shape}"
        )
    return (*before, *range(-further, 0), *after)


def _label_sizes(equation: str, terms: Sequence[_Term]) -> dict[Label, int]:
    sizes: dict[Label, int] = {}
    for term in terms:
        for label, size in zip(term.labels, term.value.shape, strict=True):
            if sizes.get(label, 1) == 1:
                sizes[label] = size
            elif size not in (1, sizes[label]):
                name = "an axis of '...'" if isinstance(label, int) else repr(label)
                raise ShapeError(
                    f"einsum: {name} in {equation!r} has sizes {sizes[label]} and {size}; operands of shapes "
                    f"{', '.join(str(term.value.shape) for term in terms)}"
                )
    return sizes


def _diagonal(term: _Term) -> _Term:
    """Axes with the same label become one: every (n + 1)-th element of the two axes joined."""
    value, labels = term
    repeated = next((label for label in labels if labels.count(label) > 1), None)
    if repeated is None:
        return term
    first, second = [axis for axis, label in enumerate(labels) if label == repeated][:2]
    size = value.shape[first]
    if size != value.shape[second]:
        raise ShapeError(f"einsum: a diagonal needs two axes of equal size, received shape {value.shape}")
    rest = tuple(label for axis, label in enumerate(labels) if axis not in (first, second))
    value = moveaxis(value, (first, second), (-2, -1))
    joined = reshape(value, (*value.shape[:-2], size * size))
    line = slice_axis(joined, joined.ndim - 1, 0, size * size, size + 1) if size else joined
    return _diagonal(_Term(line, (*rest, repeated)))


def _without_single(term: _Term, sizes: Mapping[Label, int]) -> _Term:
    """An operand without its axes of size 1 where others are longer: they broadcast."""
    dropped = [axis for axis, label in enumerate(term.labels) if term.value.shape[axis] != sizes[label]]
    labels = tuple(label for axis, label in enumerate(term.labels) if axis not in dropped)
    return _Term(squeeze(term.value, dropped) if dropped else term.value, labels)


def _contraction_order(
    terms: Sequence[_Term], output: Labels, sizes: Mapping[Label, int]
) -> list[tuple[int, int]]:
    """Pairs of positions to contract: each time the pair with the smallest result relative to its operands.

    The result of a pair goes to the end of the list.
    """
    remaining = [set(term.labels) for term in terms]
    order: list[tuple[int, int]] = []

    def volume(labels: set[Label]) -> int:
        return math.prod(sizes[label] for label in labels)

    while len(remaining) > 1:
        best: tuple[int, int, int] | None = None
        for first, second in itertools.combinations(range(len(remaining)), 2):
            others = set(output).union(*(s for i, s in enumerate(remaining) if i not in (first, second)))
            joined = (remaining[first] | remaining[second]) & others
            growth = volume(joined) - volume(remaining[first]) - volume(remaining[second])
            if best is None or growth < best[0]:
                best = (growth, first, second)
        assert best is not None
        _, first, second = best
        others = set(output).union(*(s for i, s in enumerate(remaining) if i not in (first, second)))
        joined = (remaining[first] | remaining[second]) & others
        remaining = [s for i, s in enumerate(remaining) if i not in (first, second)] + [joined]
        order.append((first, second))
    return order


def _sum_out(term: _Term, kept: set[Label]) -> _Term:
    axes = tuple(axis for axis, label in enumerate(term.labels) if label not in kept)
    if not axes:
        return term
    value = reduce_sum(term.value, axes, dtype=term.value.dtype)
    return _Term(value, tuple(label for label in term.labels if label in kept))


def _contract(first: _Term, second: _Term, kept: Labels, output: Labels) -> _Term:
    """The product of two terms summed over their labels that are not in `kept`: one `matmul`, or a plain
    product.

    The result's labels are those that run together, then those of one operand, then those of the other; the
    operand whose own labels come first in `output` is on the left.
    """
    first = _sum_out(first, set(kept) | set(second.labels))
    second = _sum_out(second, set(kept) | set(first.labels))
    common = [label for label in first.labels if label in second.labels]
    batch, summed = (
        [label for label in common if label in kept],
        [label for label in common if label not in kept],
    )
    own = [[label for label in term.labels if label not in common] for term in (first, second)]
    if own[0] and own[1] and _place(output, own[1][0]) < _place(output, own[0][0]):
        first, second, own = second, first, own[::-1]
    sizes = dict(zip((*first.labels, *second.labels), (*first.value.shape, *second.value.shape), strict=True))
    labels = (*batch, *own[0], *own[1])
    if not summed:
        return _Term(_aligned(first, labels) * _aligned(second, labels), labels)
    left, transpose_a = _as_matrices(first, batch, own[0], summed, False)
    right, transpose_b = _as_matrices(second, batch, own[1], summed, True)
    product = apply(MatMul(transpose_a, transpose_b), left, right)
    return _Term(reshape(product, tuple(sizes[label] for label in labels)), labels)


def _place(output: Labels, label: Label) -> int:
    return output.index(label) if label in output else len(output)


def _aligned(term: _Term, labels: Labels) -> Any:
    """The operand with its axes in the order of `labels` and axes of size 1 where it has none."""
    value = transpose(term.value, [term.labels.index(label) for label in labels if label in term.labels])
    shape = iter(value.shape)
    return reshape(value, tuple(next(shape) if label in term.labels else 1 for label in labels))


def _as_matrices(
    term: _Term, batch: list[Label], own: list[Label], summed: list[Label], right: bool
) -> tuple[Any, bool]:
    """The operand as [batch, rows, columns], and its transpose flag: the order that moves nothing."""
    plain = (*batch, *summed, *own) if right else (*batch, *own, *summed)
    swapped = (*batch, *own, *summed) if right else (*batch, *summed, *own)
    flag = term.labels == swapped and term.labels != plain
    order = swapped if flag else plain
    value = transpose(term.value, [term.labels.index(label) for label in order])
    size = {label: value.shape[axis] for axis, label in enumerate(order)}
    outer, inner = (math.prod(size[label] for label in part) for part in (own, summed))
    rows, columns = (inner, outer) if right != flag else (outer, inner)
    lead = (math.prod(size[label] for label in batch),) if batch else ()
    return reshape(value, (*lead, rows, columns)), flag


# ---- samples -----------------------------------------------------------------------------------------------


@samples("linear")
def _linear_samples() -> Iterator[Sample]:
    theirs = functional("linear")

    for lead, inner, out in (
        ((2,), 3, 4),
        ((), 5, 3),
        ((0,), 3, 2),
        ((1,), 1, 1),
        ((2, 3), 5, 7),
        ((4, 1, 2), 3, 5),
    ):
        x, weight = values(*lead, inner), values(out, inner, seed=1)
        yield Sample(linear, (x, weight), torch=theirs)
        yield Sample(linear, (x, weight, values(out, seed=2)), torch=theirs)
    yield Sample(
        linear, (values(5, 400), values(120, 400), values(120)), torch=theirs, tolerance=10, gradient=False
    )
    for dtype in ("float16", "bfloat16", "float64"):
        x, weight, bias = (values(*shape, dtype=dtype) for shape in ((3, 5), (4, 5), (4,)))
        yield Sample(linear, (x, weight, bias), torch=theirs, tolerance=8)
    yield Sample(linear, (np.stack([special(), special()[::-1]]), values(3, special().size)))
    yield Sample(
        linear, (values(2, 256), values(120, 400)), error=ShapeError, message="400 elements on its last axis"
    )
    yield Sample(
        linear, (values(2, 3), values(4, 3), values(3)), error=ShapeError, message="bias of shape (4,)"
    )
    yield Sample(linear, (values(2, 3), values(3)), error=ShapeError, message="[out features, in features]")
    yield Sample(linear, (values(), values(4, 3)), error=ShapeError, message="0-d")


@samples("matmul")
def _einsum_samples() -> Iterator[Sample]:
    def both(equation: str, *arrays: Array, gradient: bool | None = None) -> Sample:
        return Sample(
            lambda *operands: einsum(equation, *operands),
            arrays,
            gradient=gradient,
            torch=lambda torch, *tensors: torch.einsum(equation, *tensors),
        )

    yield both("ij,kj->ik", values(2, 3), values(4, 3))
    yield both("bqhd,bkhd->bhqk", values(2, 3, 2, 5), values(2, 4, 2, 5))
    yield both("...ij,...jk->...ik", values(3, 1, 2, 3), values(2, 3, 4))
    yield both("iij,jk,k", values(3, 3, 2), values(2, 4), values(4))
    yield both("abc,cd,be->ade", values(2, 3, 4), values(4, 2), values(3, 5))
    yield both("ij,jk->ik", values(2, 0), values(0, 3))
    yield Sample(
        tensordot, (values(2, 3, 4), values(3, 4, 5)), torch=lambda torch, x, y: torch.tensordot(x, y, 2)
    )
    yield Sample(tensordot, (values(2, 3, 4), values(4, 2, 5)), {"axes": ((0, 2), (1, 0))})
    yield Sample(dot, (values(2, 3), values(4, 3, 5)))
    yield Sample(vecdot, (values(2, 3, 4), values(3, 1)), {"axis": 1}, error=ShapeError, message="axis")
    yield Sample(vecdot, (values(2, 3), values(3)), torch=lambda torch, x, y: torch.linalg.vecdot(x, y))
    for equation, message in (
        ("ij,jk->ii", "must name one axis"),
        ("i.j,jk", "cannot read"),
        ("ij->i", "1 operands"),
    ):
        yield Sample(
            lambda x, y, text=equation: einsum(text, x, y),
            (values(2, 3), values(3, 2)),
            error=ArgumentError,
            message=message,
        )
    yield Sample(
        lambda x, y: einsum("ij,jk", x, y), (values(2, 3), values(2, 3)), error=ShapeError, message="'j'"
    )
    yield Sample(
        lambda x, y: einsum("ij,j", x, y), (values(2, 3, 1), values(3)), error=ShapeError, message="names 2"
    )
    yield Sample(tensordot, (values(2, 3), values(2, 3)), {"axes": 1}, error=ShapeError, message="size 3")
    yield Sample(
        tensordot, (values(2, 3), values(2, 3)), {"axes": 3}, error=ArgumentError, message="between 0"
    )
    yield Sample(outer, (values(2, 3), values(3)), error=ShapeError, message="two vectors")


@samples("multiply")
def _product_samples() -> Iterator[Sample]:
    yield Sample(outer, (values(3), values(5)), torch=lambda torch, x, y: torch.outer(x, y))
    yield Sample(outer, (values(0), values(5)))
    yield Sample(lambda x, y: einsum("i,j->ji", x, y), (values(3), values(5)))
    yield Sample(lambda x, y: einsum("ij,jk->ik", x, y), (values(2, 1), values(3, 4)))  # j broadcasts
    yield Sample(dot, (values(), values(5)))
