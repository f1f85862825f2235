"""Metrics and their averages."""

from __future__ import annotations

import math

import numpy as np
import pytest

import thalweg as tw
from thalweg import train
from thalweg.errors import ArgumentError, ShapeError
from thalweg.train.metrics import named_metrics, summed


def test_accuracy_says_for_each_sample_whether_the_largest_score_is_right() -> None:
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], np.float32)
    found = train.accuracy(scores, np.array([1, 1, 1]))
    assert found.numpy().tolist() == [True, False, True]
    assert found.dtype is tw.bool_


def test_accuracy_of_images_has_the_classes_on_axis_1() -> None:
    scores = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    labels = scores.argmax(axis=1)
    labels[0, 0, 0] = (labels[0, 0, 0] + 1) % 3
    found = train.accuracy(scores, labels).numpy()
    assert found.shape == (2, 4, 5)
    assert (~found).sum() == 1
    assert not found[0, 0, 0]


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        (np.zeros((3, 2), np.float32), np.zeros((2,), np.int64)),
        (np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32)),
        (np.zeros((3,), np.float32), np.zeros((3,), np.int64)),
    ],
)
def test_accuracy_refuses_what_does_not_fit(scores: object, labels: object) -> None:
    with pytest.raises(ShapeError, match=r"accuracy expects scores \[N, classes, \.\.\.\]"):
        train.accuracy(scores, labels)


def test_average_of_counts_is_exact() -> None:
    average = train.Average()
    assert math.isnan(average.value)
    for _ in range(10):
        average.add(1, 10)
    assert (average.total, average.count, average.value) == (10, 100, 0.1)


def test_sums_of_truth_values_are_whole_numbers() -> None:
    total, count = summed(tw.tensor([True, True, False]), 3)
    assert (total.dtype, total.item(), count) == (tw.int64, 2, 3)
    total, count = summed(tw.tensor([0.5, 0.25]), 2)
    assert (total.dtype, total.item(), count) == (tw.float64, 0.75, 2)
    assert summed(tw.tensor(0.5), 8)[1] == 0  # a mean of the batch


def test_a_metric_of_another_length_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"gave shape \(4,\) for 3 samples; expected one value per sample"):
        summed(tw.tensor([1.0, 2.0, 3.0, 4.0]), 3)


def test_metrics_are_named_after_their_functions() -> None:
    assert list(named_metrics([train.accuracy])) == ["accuracy"]
    assert list(named_metrics({"right": train.accuracy})) == ["right"]
    assert named_metrics(None) == {}
    with pytest.raises(ArgumentError, match=r"write metrics=\[function\]"):
        named_metrics(train.accuracy)
    with pytest.raises(ArgumentError, match="the metric 'a' is 3; expected a function"):
        named_metrics({"a": 3})  # type: ignore[dict-item]
