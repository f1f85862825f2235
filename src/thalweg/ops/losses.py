"""Losses: composites with PyTorch's semantics and argument names.

`reduction` is "mean", "sum" or "none". Class indices are checked where they are looked up: one outside of the classes
raises `IndexRangeError` when the program runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError
from thalweg.ops.activations import wide
from thalweg.ops.core import apply, cast, composite, floating, operand, promoted, require
from thalweg.ops.elementwise import (
    equal,
    exp,
    log,
    not_equal,
    stop_gradient,
    where,
)
from thalweg.ops.indexing import Gather
from thalweg.ops.movement import expand_dims, moveaxis, reshape
from thalweg.ops.reduction import max as reduce_max
from thalweg.ops.reduction import sum as reduce_sum
from thalweg.ops.sources import iota

REDUCTIONS = ("mean", "sum", "none")


def _check_reduction(reduction: Any, accepted: Sequence[str] = REDUCTIONS) -> None:
    if reduction not in accepted:
        raise ArgumentError(
            f"reduction must be one of {', '.join(map(repr, accepted))}, received {reduction!r}"
        )


def _reduced(losses: Any, reduction: str) -> Any:
    """Losses of single elements as their mean, their sum or as they are."""
    if reduction == "none":
        return losses
    total = reduce_sum(losses)
    return total if reduction == "sum" else total / losses.size


# ---- classes --------------------------------------------------------------------------------------------------------


def _class_axis(x: Any) -> int:
    return 0 if x.ndim == 1 else 1


def _check_classes(what: str, x: Any, target: Any, weight: Any, probabilities: bool) -> None:
    """Shapes of scores [C] or [B, C, ...] with class indices [] or [B, ...], or with probabilities of x's shape."""
    require(x.ndim >= 1, f"{what} needs scores [classes] or [batch, classes, ...], received a 0-d tensor")
    axis = _class_axis(x)
    expected = (*x.shape[:axis], *x.shape[axis + 1 :])
    if target.dtype.is_floating and probabilities:
        require(
            target.shape == x.shape,
            f"{what} with class probabilities needs a target of the scores' shape {x.shape}, received "
            f"{target.shape}; class indices must be integers",
        )
    elif not target.dtype.is_integer:
        raise DTypeError(
            f"{what} needs integer class indices, received {target.dtype}; cast them, for example to int64"
        )
    else:
        require(
            target.shape == expected,
            f"{what}: scores of shape {x.shape} need class indices of shape {expected}, received {target.shape}",
        )
    require(
        weight is None or weight.shape == (x.shape[axis],),
        f"{what} needs one weight for each of the {x.shape[axis]} classes, received shape "
        f"{None if weight is None else weight.shape}",
    )


def _labels(target: Any, ignore_index: int) -> tuple[Any, Any]:
    """Class indices with 0 in place of the ignored ones, and where they count."""
    labels = target if target.dtype in (types.int32, types.int64) else cast(target, types.int64)
    counted = not_equal(labels, ignore_index)
    return where(counted, labels, 0), counted


def _of_class(scores: Any, labels: Any) -> Any:
    """The score of each label's class: [B, ...] from [B, C, ...]."""
    last = scores.ndim - 1
    return apply(Gather(last, last, wrap=False), moveaxis(scores, _class_axis(scores), -1), labels)


def _row_weights(labels: Any, counted: Any, weight: Any, dtype: types.DType) -> Any:
    """The weight of each sample: its class's, and 0 where it is ignored."""
    return where(counted, 1.0 if weight is None else apply(Gather(0, 0, wrap=False), wide(weight), labels), _zero(dtype))


def _zero(dtype: types.DType) -> Any:
    return operand(0.0, dtype)


def _along_classes(weight: Any, x: Any) -> Any:
    """Class weights in a shape that broadcasts against scores."""
    return reshape(wide(weight), (-1, *(1,) * (x.ndim - 1 - _class_axis(x))))


def _scaled_rows(rows: Any, row_weights: Any, reduction: str) -> Any:
    """Weighted losses reduced; the mean divides by the sum of the weights."""
    if reduction == "none":
        return rows
    total = reduce_sum(rows)
    return total if reduction == "sum" else total / reduce_sum(row_weights)


@composite
def _nll_loss(x: Any, target: Any, weight: Any = None, *, ignore_index: int, reduction: str) -> Any:
    _check_classes("nll_loss", x, target, weight, probabilities=False)
    labels, counted = _labels(target, ignore_index)
    source = wide(x)
    row_weights = _row_weights(labels, counted, weight, source.dtype)
    rows = where(counted, -_of_class(source, labels) * row_weights, 0.0)
    return cast(_scaled_rows(rows, row_weights, reduction), x.dtype)


def nll_loss(
    input: Any, target: Any, weight: Any = None, *, ignore_index: int = -100, reduction: str = "mean"
) -> Any:
    """Negative log likelihood of log-probabilities `input` [B, C, ...] (or [C]) for class indices `target` [B, ...].

    `weight` [C] weighs the classes; the mean divides by the sum of the weights of the samples that are not ignored.
    A class index outside of 0 to C - 1 raises `IndexRangeError` at run time.
    """
    _check_reduction(reduction)
    x = floating(input)
    weight = None if weight is None else cast(weight, x.dtype)
    return _nll_loss(x, operand(target), weight, ignore_index=int(ignore_index), reduction=reduction)


@composite
def _cross_entropy(
    x: Any, target: Any, weight: Any = None, *, ignore_index: int, reduction: str, label_smoothing: float
) -> Any:
    return _cross_entropy_parts(x, target, weight, ignore_index, reduction, label_smoothing)[0]


@_cross_entropy.residuals
def _cross_entropy_with_residuals(
    x: Any, target: Any, weight: Any = None, *, ignore_index: int, reduction: str, label_smoothing: float
) -> Any:
    """The loss, and of each row the largest score and the logarithm of the sum of exp(score - largest)."""
    return _cross_entropy_parts(x, target, weight, ignore_index, reduction, label_smoothing)


def _cross_entropy_parts(
    x: Any, target: Any, weight: Any, ignore_index: int, reduction: str, label_smoothing: float
) -> tuple[Any, Any, Any]:
    _check_classes("cross_entropy", x, target, weight, probabilities=True)
    axis, source = _class_axis(x), wide(x)
    largest = reduce_max(stop_gradient(source), axis, keepdims=True)
    shifted = source - largest
    logsum = log(reduce_sum(exp(shifted), axis, keepdims=True))
    if target.dtype.is_floating:
        shares = _shares(x, target, weight, label_smoothing)
        rows = reduce_sum((logsum - shifted) * shares, axis)
        loss = rows if reduction == "none" else reduce_sum(rows)
        if reduction == "mean":
            loss = loss / rows.size
        return cast(loss, x.dtype), largest, logsum
    labels, counted = _labels(target, ignore_index)
    row_weights = _row_weights(labels, counted, weight, source.dtype)
    rows = (reshape(logsum, labels.shape) - _of_class(shifted, labels)) * row_weights
    if label_smoothing:
        every = logsum - shifted
        if weight is not None:
            every = every * _along_classes(weight, x)
        smooth = reduce_sum(every, axis) * (label_smoothing / x.shape[axis])
        rows = rows * (1.0 - label_smoothing) + smooth
    loss = _scaled_rows(where(counted, rows, 0.0), row_weights, reduction)
    return cast(loss, x.dtype), largest, logsum


def _shares(x: Any, target: Any, weight: Any, label_smoothing: float) -> Any:
    """What each class contributes to the loss of its row: smoothed probabilities times class weights."""
    shares = wide(target)
    if label_smoothing:
        shares = shares * (1.0 - label_smoothing) + label_smoothing / x.shape[_class_axis(x)]
    return shares if weight is None else shares * _along_classes(weight, x)


@composite
def _cross_entropy_gradient(
    g: Any,
    x: Any,
    target: Any,
    largest: Any,
    logsum: Any,
    weight: Any = None,
    *,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Any:
    """The gradient with respect to the scores: softmax times the sum of the row's shares, minus the shares."""
    axis = _class_axis(x)
    probability = exp((wide(x) - largest) - logsum)
    if target.dtype.is_floating:
        shares = _shares(x, target, weight, label_smoothing)
        scale = wide(g) / (x.size // x.shape[axis]) if reduction == "mean" else wide(g)
        by_row = expand_dims(scale, axis) if reduction == "none" else scale
        return cast((probability * reduce_sum(shares, axis, keepdims=True) - shares) * by_row, x.dtype)
    labels, counted = _labels(target, ignore_index)
    row_weights = _row_weights(labels, counted, weight, probability.dtype)
    scale = wide(g) / reduce_sum(row_weights) if reduction == "mean" else wide(g)
    hit = equal(iota(x.shape, axis, labels.dtype), expand_dims(labels, axis))
    if not label_smoothing:
        by_row = expand_dims(row_weights * scale, axis)
        return cast(where(hit, probability - 1.0, probability) * by_row, x.dtype)
    shares = where(hit, expand_dims(row_weights * (1.0 - label_smoothing), axis), 0.0)
    even = operand(label_smoothing / x.shape[axis], probability.dtype)
    shares = shares + (even if weight is None else _along_classes(weight, x) * even)
    by_row = expand_dims(where(counted, scale, 0.0), axis)
    return cast((probability * reduce_sum(shares, axis, keepdims=True) - shares) * by_row, x.dtype)


@_cross_entropy.gradient
def _cross_entropy_rule(
    inputs: Any, outputs: Any, cotangents: Any, **attributes: Any
) -> Sequence[Any]:
    (x, target, weight), (_, largest, logsum), (g,) = inputs, outputs, cotangents
    by_x = _cross_entropy_gradient(g, x, target, largest, logsum, weight, **attributes)
    if not target.dtype.is_floating:
        return (by_x, None, None)
    axis, smoothing = _class_axis(x), attributes["label_smoothing"]
    scale = wide(g) / (x.size // x.shape[axis]) if attributes["reduction"] == "mean" else wide(g)
    scale = expand_dims(scale, axis) if attributes["reduction"] == "none" else scale
    by_target = (logsum - (wide(x) - largest)) * (scale * (1.0 - smoothing))
    if weight is not None:
        by_target = by_target * _along_classes(weight, x)
    return (by_x, cast(by_target, target.dtype), None)


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """Cross entropy of scores (logits) `input` [B, C, ...] (or [C]), as PyTorch's `cross_entropy`.

    `target` is class indices [B, ...] (integers) or class probabilities of the scores' shape (floating point). `weight`
    [C] weighs the classes; with indices the mean divides by the sum of the weights of the samples whose index is not
    `ignore_index`, with probabilities by their number. A class index outside of 0 to C - 1 raises `IndexRangeError` at
    run time.
    """
    _check_reduction(reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ArgumentError(f"label_smoothing must lie between 0 and 1, received {label_smoothing!r}")
    x, target = floating(input), operand(target)
    if target.dtype.is_floating:
        target = cast(target, x.dtype)
    weight = None if weight is None else cast(weight, x.dtype)
    return _cross_entropy(
        x,
        target,
        weight,
        ignore_index=int(ignore_index),
        reduction=reduction,
        label_smoothing=float(label_smoothing),
    )


# ---- element by element ---------------------------------------------------------------------------------------------


def _pair(what: str, input: Any, target: Any, reduction: str, accepted: Sequence[str] = REDUCTIONS) -> tuple[Any, Any]:
    """Prediction and target in one floating-point type; shapes must be equal, for broadcasting hides mistakes here."""
    _check_reduction(reduction, accepted)
    x, target = promoted(input, target)
    return floating(x), floating(target)


def _check_equal(what: str, x: Any, *others: Any) -> None:
    for other in others:
        require(
            other is None or other.shape == x.shape,
            f"{what} needs input and target of equal shapes, received {x.shape} and "
            f"{None if other is None else other.shape}; reshape or broadcast one of them first",
        )


@composite
def _mse_loss(x: Any, target: Any, *, reduction: str) -> Any:
    _check_equal("mse_loss", x, target)
    difference = wide(x) - wide(target)
    return cast(_reduced(difference * difference, reduction), x.dtype)


def mse_loss(input: Any, target: Any, *, reduction: str = "mean") -> Any:
    """(input - target)^2, reduced. Shapes must be equal."""
    return _mse_loss(*_pair("mse_loss", input, target, reduction), reduction=reduction)
