"""Losses: composites with PyTorch's semantics and argument names.

`reduction` is "mean", "sum" or "none". Class indices are checked where they are looked up: one outside of the classes
raises `IndexRangeError` when the program runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError
from thalweg.ops.activations import number, sigmoid, softplus, wide
from thalweg.ops.core import apply, cast, composite, floating, operand, promoted, require
from thalweg.ops.elementwise import (
    abs,
    equal,
    exp,
    greater,
    less,
    log,
    log1p,
    maximum,
    not_equal,
    stop_gradient,
    where,
)
from thalweg.ops.indexing import Gather
from thalweg.ops.movement import broadcast_to, expand_dims, moveaxis, reshape
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


def _pair(input: Any, target: Any, reduction: str, accepted: Sequence[str] = REDUCTIONS) -> tuple[Any, Any]:
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
    return _mse_loss(*_pair(input, target, reduction), reduction=reduction)


@_mse_loss.gradient
def _mse_loss_rule(inputs: Any, outputs: Any, cotangents: Any, *, reduction: str) -> Sequence[Any]:
    (x, target), g = inputs, wide(cotangents[0])
    scale = g * (2.0 / x.size) if reduction == "mean" and x.size else g * 2.0
    by_x = cast((wide(x) - wide(target)) * scale, x.dtype)
    return (by_x, -by_x)


@composite
def _l1_loss(x: Any, target: Any, *, reduction: str) -> Any:
    _check_equal("l1_loss", x, target)
    return cast(_reduced(abs(wide(x) - wide(target)), reduction), x.dtype)


def l1_loss(input: Any, target: Any, *, reduction: str = "mean") -> Any:
    """|input - target|, reduced; the gradient at 0 is 0. Shapes must be equal."""
    return _l1_loss(*_pair(input, target, reduction), reduction=reduction)


@composite
def _huber_loss(x: Any, target: Any, *, delta: float, scale: float, reduction: str) -> Any:
    _check_equal("huber_loss", x, target)
    difference = wide(x) - wide(target)
    distance = abs(difference)
    near = difference * difference * (0.5 * scale)
    far = (distance - 0.5 * delta) * (delta * scale)
    return cast(_reduced(where(less(distance, delta), near, far), reduction), x.dtype)


def huber_loss(input: Any, target: Any, *, delta: float = 1.0, reduction: str = "mean") -> Any:
    """d^2 / 2 where |d| = |input - target| is below `delta`, else delta (|d| - delta / 2), reduced (Huber, 1964)."""
    delta = number(delta, "delta")
    if delta <= 0:
        raise ArgumentError(f"huber_loss needs a positive delta, received {delta}")
    return _huber_loss(*_pair(input, target, reduction), delta=delta, scale=1.0, reduction=reduction)


def smooth_l1_loss(input: Any, target: Any, *, beta: float = 1.0, reduction: str = "mean") -> Any:
    """d^2 / (2 beta) where |d| = |input - target| is below `beta`, else |d| - beta / 2, reduced; beta 0 is `l1_loss`."""
    beta = number(beta, "beta")
    if beta < 0:
        raise ArgumentError(f"smooth_l1_loss needs a beta of at least 0, received {beta}")
    if beta == 0:
        return l1_loss(input, target, reduction=reduction)
    return _huber_loss(*_pair(input, target, reduction), delta=beta, scale=1.0 / beta, reduction=reduction)


@composite
def _binary_cross_entropy(x: Any, target: Any, weight: Any = None, *, reduction: str) -> Any:
    _check_equal("binary_cross_entropy", x, target)
    probability, truth = wide(x), wide(target)
    # logarithms are cut at -100, as in PyTorch: the loss stays finite
    hit, miss = maximum(log(probability), -100), maximum(log1p(-probability), -100)
    losses = (truth - 1.0) * miss - truth * hit
    if weight is not None:
        losses = losses * wide(weight)
    return cast(_reduced(losses, reduction), x.dtype)


@_binary_cross_entropy.gradient
def _binary_cross_entropy_rule(inputs: Any, outputs: Any, cotangents: Any, *, reduction: str) -> Sequence[Any]:
    (x, target, weight), g = inputs, wide(cotangents[0])
    probability, truth = wide(x), wide(target)
    scale = g / x.size if reduction == "mean" else g
    if weight is not None:
        scale = scale * wide(weight)
    spread = maximum(probability * (1.0 - probability), 1e-12)
    by_target = maximum(log1p(-probability), -100) - maximum(log(probability), -100)
    return (
        cast(scale * (probability - truth) / spread, x.dtype),
        cast(broadcast_to(scale * by_target, x.shape), target.dtype),
        None,
    )


def binary_cross_entropy(input: Any, target: Any, weight: Any = None, *, reduction: str = "mean") -> Any:
    """-(t log p + (1 - t) log(1 - p)) for probabilities `input`, reduced; logarithms are cut at -100.

    `weight` broadcasts against the input. Use `binary_cross_entropy_with_logits` for scores: it is exact.
    """
    x, target = _pair(input, target, reduction)
    weight = None if weight is None else cast(weight, x.dtype)
    return _binary_cross_entropy(x, target, weight, reduction=reduction)


@composite
def _binary_cross_entropy_with_logits(
    x: Any, target: Any, weight: Any = None, pos_weight: Any = None, *, reduction: str
) -> Any:
    _check_equal("binary_cross_entropy_with_logits", x, target)
    score, truth = wide(x), wide(target)
    tail = log1p(exp(-abs(score))) + maximum(-score, 0)  # log(1 + exp(-score)) without overflow
    if pos_weight is not None:
        tail = tail * ((wide(pos_weight) - 1.0) * truth + 1.0)
    losses = (1.0 - truth) * score + tail
    if weight is not None:
        losses = losses * wide(weight)
    return cast(_reduced(losses, reduction), x.dtype)


@_binary_cross_entropy_with_logits.gradient
def _binary_cross_entropy_with_logits_rule(
    inputs: Any, outputs: Any, cotangents: Any, *, reduction: str
) -> Sequence[Any]:
    (x, target, weight, pos_weight), g = inputs, wide(cotangents[0])
    score, truth = wide(x), wide(target)
    scale = g / x.size if reduction == "mean" else g
    if weight is not None:
        scale = scale * wide(weight)
    probability = sigmoid(score)
    if pos_weight is None:
        by_x, by_target = probability - truth, -score
    else:
        heavy = wide(pos_weight) * truth
        by_x = (heavy + 1.0 - truth) * probability - heavy
        by_target = (wide(pos_weight) - 1.0) * softplus(-score, threshold=math.inf) - score
    return (cast(by_x * scale, x.dtype), cast(by_target * scale, target.dtype), None, None)


def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, pos_weight: Any = None, *, reduction: str = "mean"
) -> Any:
    """`binary_cross_entropy(sigmoid(input), target)`, exact for scores of any size.

    `weight` and `pos_weight` (a factor on the loss of positive targets) broadcast against the input.
    """
    x, target = _pair(input, target, reduction)
    weight, pos_weight = (None if value is None else cast(value, x.dtype) for value in (weight, pos_weight))
    return _binary_cross_entropy_with_logits(x, target, weight, pos_weight, reduction=reduction)


@composite
def _kl_div(x: Any, target: Any, *, log_target: bool, reduction: str) -> Any:
    _check_equal("kl_div", x, target)
    given, truth = wide(x), wide(target)
    if log_target:
        losses = exp(truth) * (truth - given)
    else:
        positive = greater(truth, 0)
        entropy = where(positive, truth * log(where(positive, truth, 1.0)), truth * 0.0)
        losses = entropy - truth * given
    if reduction == "batchmean":
        return cast(reduce_sum(losses) / (x.shape[0] if x.ndim else 1), x.dtype)
    return cast(_reduced(losses, reduction), x.dtype)


def kl_div(input: Any, target: Any, *, reduction: str = "mean", log_target: bool = False) -> Any:
    """The Kullback-Leibler divergence t (log t - input) for log-probabilities `input`, reduced; 0 where t is 0.

    With `log_target` the target too is log-probabilities. `reduction="batchmean"` (the divergence as mathematics defines
    it) divides the sum by the size of the first axis.
    """
    x, target = _pair(input, target, reduction, (*REDUCTIONS, "batchmean"))
    return _kl_div(x, target, log_target=bool(log_target), reduction=reduction)
