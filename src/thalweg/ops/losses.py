"""Losses: composites with PyTorch's semantics and argument names.

`reduction` is "mean", "sum" or "none". Weights are constants: no gradient flows to them. Class indices are
checked where they are looked up: one outside of the classes raises `IndexRangeError` when the program runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError, IndexRangeError, ShapeError
from thalweg.ops.activations import number, sigmoid, softplus, wide
from thalweg.ops.core import apply, cast, composite, floating, operand, promoted, require
from thalweg.ops.elementwise import (
    abs,
    equal,
    exp,
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
from thalweg.ops.samples import Sample, functional, samples, values
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


def _constant(weight: Any, x: Any) -> Any:
    """A weight in the scores' type, without gradient."""
    return None if weight is None else stop_gradient(cast(weight, x.dtype))


# ---- classes -----------------------------------------------------------------------------------------------


def _class_axis(x: Any) -> int:
    return 0 if x.ndim == 1 else 1


def _check_classes(what: str, x: Any, target: Any, weight: Any, probabilities: bool) -> None:
    """Scores are [C] or [B, C, ...], class indices [] or [B, ...], probabilities of the scores' shape."""
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
            f"{what}: scores of shape {x.shape} need class indices of shape {expected}, received "
            f"{target.shape}",
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
    return where(
        counted,
        1.0 if weight is None else apply(Gather(0, 0, wrap=False), wide(weight), labels),
        _zero(dtype),
    )


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
    """Negative log likelihood of log-probabilities `input` [B, C, ...] (or [C]) for class indices `target`
    [B, ...].

    `weight` [C] weighs the classes; the mean divides by the sum of the weights of the samples that are not
    ignored. A class index outside of 0 to C - 1 raises `IndexRangeError` at run time.
    """
    _check_reduction(reduction)
    x = floating(input)
    return _nll_loss(
        x, operand(target), _constant(weight, x), ignore_index=int(ignore_index), reduction=reduction
    )


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
    """The gradient by the scores: softmax times the sum of the row's shares, minus the shares."""
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
def _cross_entropy_rule(inputs: Any, outputs: Any, cotangents: Any, **attributes: Any) -> Sequence[Any]:
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

    `target` is class indices [B, ...] (integers) or class probabilities of the scores' shape (floating
    point). `weight` [C] weighs the classes; with indices the mean divides by the sum of the weights of the
    samples whose index is not `ignore_index`, with probabilities by their number. A class index outside of 0
    to C - 1 raises `IndexRangeError` at run time.
    """
    _check_reduction(reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ArgumentError(f"label_smoothing must lie between 0 and 1, received {label_smoothing!r}")
    x, target = floating(input), operand(target)
    if target.dtype.is_floating:
        target = cast(target, x.dtype)
    return _cross_entropy(
        x,
        target,
        _constant(weight, x),
        ignore_index=int(ignore_index),
        reduction=reduction,
        label_smoothing=float(label_smoothing),
    )


# ---- element by element ------------------------------------------------------------------------------------


def _pair(input: Any, target: Any, reduction: str, accepted: Sequence[str] = REDUCTIONS) -> tuple[Any, Any]:
    """Prediction and target in one floating-point type."""
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
    """d^2 / 2 where |d| < `delta`, else delta (|d| - delta / 2), for d = input - target (Huber, 1964)."""
    delta = number(delta, "delta")
    if delta <= 0:
        raise ArgumentError(f"huber_loss needs a positive delta, received {delta}")
    return _huber_loss(*_pair(input, target, reduction), delta=delta, scale=1.0, reduction=reduction)


def smooth_l1_loss(input: Any, target: Any, *, beta: float = 1.0, reduction: str = "mean") -> Any:
    """d^2 / (2 beta) where |d| < `beta`, else |d| - beta / 2, for d = input - target; beta 0: `l1_loss`."""
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
def _binary_cross_entropy_rule(
    inputs: Any, outputs: Any, cotangents: Any, *, reduction: str
) -> Sequence[Any]:
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
    return _binary_cross_entropy(x, target, _constant(weight, x), reduction=reduction)


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
    weight, pos_weight = _constant(weight, x), _constant(pos_weight, x)
    return _binary_cross_entropy_with_logits(x, target, weight, pos_weight, reduction=reduction)


@composite
def _kl_div(x: Any, target: Any, *, log_target: bool, reduction: str) -> Any:
    _check_equal("kl_div", x, target)
    given, truth = wide(x), wide(target)
    if log_target:
        losses = exp(truth) * (truth - given)
    else:
        entropy = truth * log(where(equal(truth, 0), 1.0, truth))
        losses = entropy - truth * given
    if reduction == "batchmean":
        return cast(reduce_sum(losses) / (x.shape[0] if x.ndim else 1), x.dtype)
    return cast(_reduced(losses, reduction), x.dtype)


def kl_div(input: Any, target: Any, *, reduction: str = "mean", log_target: bool = False) -> Any:
    """The Kullback-Leibler divergence t (log t - input) for log-probabilities `input`, reduced; 0 where t is
    0.

    With `log_target` the target too is log-probabilities. `reduction="batchmean"` (the divergence as
    mathematics defines it) divides the sum by the size of the first axis.
    """
    x, target = _pair(input, target, reduction, (*REDUCTIONS, "batchmean"))
    return _kl_div(x, target, log_target=bool(log_target), reduction=reduction)


# ---- samples -----------------------------------------------------------------------------------------------


def _positive(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray[Any, Any]:
    return values(*shape, dtype=dtype, low=0.1, high=0.9, seed=seed)


def _class_targets(shape: tuple[int, ...], classes: int, ignored: int | None = None) -> np.ndarray[Any, Any]:
    target = values(*shape, dtype="int64", low=0, high=classes)
    if ignored is not None:
        target.reshape(-1)[::3] = ignored
    return target


def _indexed_samples(function: Any, name: str, options: Sequence[dict[str, Any]]) -> Iterator[Sample]:
    """Samples with class indices, with and without weights, for every given set of arguments."""
    for given in options:
        theirs = functional(name, **given)
        for shape in ((4, 5), (2, 3, 4), (3, 4, 2, 2), (5,), (1, 1), (1, 3)):
            classes = shape[0] if len(shape) == 1 else shape[1]
            target = _class_targets(() if len(shape) == 1 else (shape[0], *shape[2:]), classes)
            yield Sample(function, (values(*shape), target), given, torch=theirs, tolerance=2)
            if shape in ((4, 5), (3, 4, 2, 2)):
                target = _class_targets(target.shape, classes, given.get("ignore_index", -100))
                weighted, compare = _weighted(function, theirs, given, _positive(classes))
                yield Sample(weighted, (values(*shape), target), torch=compare, tolerance=2)
    theirs = functional(name)
    ignored = np.full(3, -100)
    yield Sample(function, (values(3, 4), ignored), gradient=False, torch=theirs, torch_gradient=False)
    yield Sample(function, (values(0, 4), ignored[:0]), gradient=False, torch=theirs, torch_gradient=False)
    for dtype in ("float16", "bfloat16", "float64"):
        x, target = values(4, 5, dtype=dtype), _class_targets((4,), 5)
        yield Sample(function, (x, target), torch=theirs, tolerance=2)
        yield Sample(function, (x, target.astype("int32" if dtype == "float64" else "uint8")), tolerance=2)
    labels = np.array([0, 3])
    yield Sample(function, (values(2, 3), labels), error=IndexRangeError, message="index 3")
    yield Sample(function, (values(2, 3), labels - 1), error=IndexRangeError, message="index -1")
    yield Sample(
        function, (values(2, 3), labels[:1]), error=ShapeError, message="class indices of shape (2,)"
    )
    yield Sample(function, (values(), labels), error=ShapeError, message="0-d")
    yield Sample(function, (values(2, 3), labels > 0), error=DTypeError, message="integer class indices")
    yield Sample(
        function, (values(2, 3), labels, values(2)), error=ShapeError, message="each of the 3 classes"
    )
    yield Sample(
        function, (values(2, 3), labels), {"reduction": "max"}, error=ArgumentError, message="'mean'"
    )


def _weighted(
    function: Any, theirs: Any, options: dict[str, Any], weight: np.ndarray[Any, Any]
) -> tuple[Any, Any]:
    """Both functions with a fixed weight."""

    def ours(x: Any, target: Any) -> Any:
        return function(x, target, weight, **options)

    def compare(torch: Any, x: Any, target: Any) -> Any:
        return theirs(torch, x, target, torch.tensor(weight))

    return ours, compare


@samples("nll_loss")
def _nll_loss_samples() -> Iterator[Sample]:
    options: tuple[dict[str, Any], ...] = ({}, {"reduction": "sum"}, {"reduction": "none", "ignore_index": 1})
    yield from _indexed_samples(nll_loss, "nll_loss", options)
    yield Sample(nll_loss, (values(2, 3), values(2, 3)), error=DTypeError, message="integer class indices")


@samples("cross_entropy")
def _cross_entropy_samples() -> Iterator[Sample]:
    options: tuple[dict[str, Any], ...] = (
        {},
        {"reduction": "sum", "label_smoothing": 0.1},
        {"reduction": "none", "ignore_index": 1, "label_smoothing": 0.3},
        {"label_smoothing": 0.2},
        {"reduction": "none"},
    )
    yield from _indexed_samples(cross_entropy, "cross_entropy", options)
    for given in options:
        theirs = functional("cross_entropy", **given)
        if "ignore_index" in given:
            continue  # for class indices only
        for shape in ((4, 5), (2, 3, 4), (5,)):
            yield Sample(
                cross_entropy, (values(*shape), _positive(*shape, seed=1)), given, torch=theirs, tolerance=2
            )
        weighted, compare = _weighted(cross_entropy, theirs, given, _positive(4))
        yield Sample(weighted, (values(3, 4, 2), _positive(3, 4, 2, seed=1)), torch=compare, tolerance=2)
    theirs = functional("cross_entropy")
    large = values(4, 10, low=-1e4, high=1e4)
    yield Sample(cross_entropy, (large, _class_targets((4,), 10)), torch=theirs, gradient=False, tolerance=2)
    infinite = np.array([[-np.inf, 1, 2], [np.inf, 1, 2], [np.nan, 1, 2]], np.float32)
    yield Sample(cross_entropy, (infinite, np.array([1, 1, 1])), {"reduction": "none"}, torch=_no_reduction)
    yield Sample(cross_entropy, (values(2, 3), values(2)), error=ShapeError, message="class probabilities")
    yield Sample(
        cross_entropy,
        (values(2, 3), np.array([0, 1])),
        {"label_smoothing": 1.5},
        error=ArgumentError,
        message="between",
    )


def _no_reduction(torch: Any, x: Any, target: Any) -> Any:
    return torch.nn.functional.cross_entropy(x, target, reduction="none")


def _pair_samples(
    function: Any,
    theirs: str | Callable[..., Any],
    x: Callable[..., Any],
    target: Callable[..., Any],
    options: Sequence[dict[str, Any]] = ({},),
) -> Iterator[Sample]:
    """Samples of a loss between two tensors of one shape; `theirs` is PyTorch's name of it, or a function."""

    def compare(**given: Any) -> Any:
        if callable(theirs):
            return lambda torch, *operands: theirs(torch, *operands, **given)
        return functional(theirs, **given)

    for given in options:
        for reduction in REDUCTIONS:
            attributes = {**given, "reduction": reduction}
            for shape in ((3, 5), (), (2, 1, 7)):
                operands = (x(*shape), target(*shape, seed=7))
                yield Sample(function, operands, attributes, torch=compare(**attributes), tolerance=4)
    for dtype in ("float16", "bfloat16", "float64"):
        operands = (x(4, 6, dtype=dtype), target(4, 6, dtype=dtype, seed=7))
        yield Sample(function, operands, options[-1], torch=compare(**options[-1]), tolerance=4)
    yield Sample(function, (x(0), target(0)), gradient=False, torch=compare(), torch_gradient=False)
    yield Sample(function, (x(0, 3), target(0, 3)), {"reduction": "sum"})
    yield Sample(function, (values(3, 1), values(3)), error=ShapeError, message="equal shapes")
    yield Sample(
        function, (values(3), values(3)), {"reduction": "avg"}, error=ArgumentError, message="'mean'"
    )


@samples("mse_loss")
def _mse_loss_samples() -> Iterator[Sample]:
    yield from _pair_samples(mse_loss, "mse_loss", values, values)


@samples("l1_loss")
def _l1_loss_samples() -> Iterator[Sample]:
    yield from _pair_samples(l1_loss, "l1_loss", values, values)
    equal_values = np.zeros(3, np.float32)
    theirs = functional("l1_loss")
    yield Sample(l1_loss, (equal_values, equal_values), gradient=False, torch=theirs)


@samples("huber_loss")
def _huber_loss_samples() -> Iterator[Sample]:
    yield from _pair_samples(huber_loss, "huber_loss", values, values, ({}, {"delta": 0.3}))
    yield from _pair_samples(smooth_l1_loss, "smooth_l1_loss", values, values, ({}, {"beta": 0.3}))
    yield Sample(huber_loss, (values(3), values(3)), {"delta": 0.0}, error=ArgumentError, message="delta")
    yield Sample(smooth_l1_loss, (values(3), values(3)), {"beta": -1.0}, error=ArgumentError, message="beta")


@samples("binary_cross_entropy")
def _binary_cross_entropy_samples() -> Iterator[Sample]:
    name = "binary_cross_entropy"
    yield from _pair_samples(binary_cross_entropy, name, _positive, _positive)
    theirs = functional("binary_cross_entropy")
    weighted, compare = _weighted(binary_cross_entropy, theirs, {}, _positive(4))
    yield Sample(weighted, (_positive(3, 4), _positive(3, 4, seed=1)), torch=compare, tolerance=4)
    ends = np.array([0.0, 1.0, 0.0, 1.0], np.float32)
    operands = (ends, ends[::-1].copy())  # PyTorch does not cut the logarithms of the target's gradient
    yield Sample(binary_cross_entropy, operands, gradient=False, torch=theirs, torch_gradient=False)


@samples("binary_cross_entropy_with_logits")
def _binary_cross_entropy_with_logits_samples() -> Iterator[Sample]:
    function, name = binary_cross_entropy_with_logits, "binary_cross_entropy_with_logits"
    yield from _pair_samples(function, name, values, _positive)
    weight, factor = _positive(3, 1), values(4, low=0.5, high=3)
    for reduction in REDUCTIONS:
        yield Sample(
            lambda x, y, r=reduction: function(x, y, weight, factor, reduction=r),
            (values(3, 4), _positive(3, 4, seed=1)),
            torch=lambda torch, x, y, r=reduction: torch.nn.functional.binary_cross_entropy_with_logits(
                x, y, torch.tensor(weight), reduction=r, pos_weight=torch.tensor(factor)
            ),
            tolerance=4,
        )
    theirs = functional("binary_cross_entropy_with_logits")
    yield Sample(
        function, (values(6, low=-200, high=200), _positive(6)), torch=theirs, gradient=False, tolerance=4
    )


@samples("kl_div")
def _kl_div_samples() -> Iterator[Sample]:
    def mean_of_all(torch: Any, *operands: Any, reduction: str = "mean", **options: Any) -> Any:
        # PyTorch warns that its "mean" is not the divergence
        mean = reduction == "mean"
        found = torch.nn.functional.kl_div(*operands, reduction="sum" if mean else reduction, **options)
        return found / operands[0].numel() if mean else found

    yield from _pair_samples(kl_div, mean_of_all, values, _positive)
    yield from _pair_samples(kl_div, mean_of_all, values, values, ({"log_target": True},))
    theirs = functional("kl_div", reduction="batchmean")
    yield Sample(kl_div, (values(3, 4), _positive(3, 4)), {"reduction": "batchmean"}, torch=theirs)
    zeros = np.array([0.0, 0.5, 0.0], np.float32)
    theirs = functional("kl_div", reduction="sum")
    yield Sample(
        kl_div, (values(3), zeros), {"reduction": "sum"}, gradient=False, torch=theirs, torch_gradient=False
    )
