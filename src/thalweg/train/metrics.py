"""Metrics, and their exact averages over many batches.

In: a model's outputs and the targets of a batch. Out: a number per sample (or the batch's mean), and over all
batches the mean. Called inside the compiled steps of `fit` and `evaluate`, or by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from thalweg import ops
from thalweg.errors import ArgumentError, ShapeError
from thalweg.ops.core import operand

__all__ = ["Average", "Metric", "accuracy", "named_metrics"]

Metric = Callable[[Any, Any], Any]


def accuracy(outputs: Any, targets: Any) -> Any:
    """For each sample, whether the class with the largest score is the right one: bool [N, ...].

    `outputs` are scores [N, classes, ...] and `targets` class indices [N, ...], as `cross_entropy` takes
    them. The mean is the accuracy: `train.accuracy(model(x), y).mean()`.
    """
    outputs, targets = operand(outputs), operand(targets)
    expected = (*outputs.shape[:1], *outputs.shape[2:])
    if outputs.ndim < 2 or targets.shape != expected or targets.dtype.is_floating:
        raise ShapeError(
            f"accuracy expects scores [N, classes, ...] and whole numbers [N, ...], received "
            f"{outputs.type} and {targets.type}; for others pass metrics=[your_function] to fit and evaluate"
        )
    return ops.equal(ops.argmax(outputs, 1), targets)


class Average:
    """The mean over batches of a quantity, kept as sum and count: exact for counts, float64 for the rest."""

    def __init__(self, total: float = 0, count: int = 0) -> None:
        self.total = total
        self.count = count

    def add(self, total: float, count: int) -> None:
        """Add the sum of `count` numbers."""
        self.total += total
        self.count += count

    @property
    def value(self) -> float:
        """The mean; NaN before anything was added."""
        return float(self.total) / self.count if self.count else math.nan


def named_metrics(metrics: Mapping[str, Metric] | Iterable[Metric] | None) -> dict[str, Metric]:
    """Metrics as a dict: functions are called by their own names."""
    if metrics is None:
        return {}
    if isinstance(metrics, Mapping):
        found = dict(metrics)
    elif callable(metrics):
        raise ArgumentError("metrics is a function; write metrics=[function], or metrics={'name': function}")
    else:
        found = {getattr(metric, "__name__", type(metric).__name__): metric for metric in metrics}
    for name, metric in found.items():
        if not callable(metric):
            raise ArgumentError(
                f"the metric {name!r} is {metric!r}; expected a function of (outputs, targets)"
            )
    return found


def summed(values: Any, samples: int) -> tuple[Any, int]:
    """A metric's result in a batch as (sum, how many numbers); a count of 0 says that it is the mean of the
    batch.

    Whole numbers and truth values are summed as int64, others as float64.
    """
    values = operand(values)
    if values.ndim == 0:
        return ops.cast(values, "float64"), 0
    if values.shape[0] != samples:
        raise ShapeError(
            f"a metric gave shape {values.shape} for {samples} samples; expected one value per sample, "
            f"[{samples}, ...], or a scalar: their mean"
        )
    return ops.sum(ops.cast(values, "float64" if values.dtype.is_floating else "int64")), values.size
