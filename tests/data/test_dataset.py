"""Data sets, their parts, and how samples become batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from thalweg.data import ArrayDataset, BatchedDataset, Dataset, Subset, default_collate, split
from thalweg.data.dataset import read_batch
from thalweg.errors import ArgumentError, DataError

IMAGES = np.arange(5 * 2 * 2, dtype=np.float32).reshape(5, 1, 2, 2)
LABELS = np.array([3, 1, 4, 1, 5])


def test_array_dataset() -> None:
    dataset = ArrayDataset(IMAGES, LABELS)
    assert len(dataset) == 5
    image, label = dataset[2]
    np.testing.assert_array_equal(image, IMAGES[2])
    assert label == 4
    for indices in ([4, 0], np.array([4, 0]), slice(4, None, -4)):
        images, labels = dataset[indices]
        np.testing.assert_array_equal(images, IMAGES[[4, 0]])
        np.testing.assert_array_equal(labels, [5, 3])
    images, labels = dataset[[]]
    assert images.shape == (0, 1, 2, 2) and labels.shape == (0,)
    assert dataset.arrays[0] is IMAGES
    assert repr(dataset) == "ArrayDataset(float32[5, 1, 2, 2], int64[5])"
    with pytest.raises(IndexError):
        dataset[5]


def test_array_dataset_arguments() -> None:
    with pytest.raises(ArgumentError, match=r"arrays of the same length, got lengths \[5, 4\]"):
        ArrayDataset(IMAGES, LABELS[:4])
    with pytest.raises(ArgumentError, match="at least one array"):
        ArrayDataset()
    with pytest.raises(ArgumentError, match="samples along its first axis"):
        ArrayDataset(IMAGES, 3)


def test_a_batch_is_fresh() -> None:
    dataset = ArrayDataset(IMAGES.copy())
    dataset.batch(np.array([0, 1]))[0][:] = -1
    np.testing.assert_array_equal(dataset.arrays[0], IMAGES)


def test_protocols() -> None:
    assert isinstance([1, 2], Dataset)
    assert isinstance(ArrayDataset(LABELS), BatchedDataset)
    assert not isinstance(Subset([1, 2], [0]), BatchedDataset)
    assert not isinstance(iter([1]), Dataset)


def test_subset() -> None:
    subset = Subset(ArrayDataset(IMAGES, LABELS), [4, 4, 1])
    assert len(subset) == 3
    assert [int(label) for _, label in (subset[i] for i in range(3))] == [5, 5, 1]
    with pytest.raises(IndexError):
        subset[3]
    with pytest.raises(ArgumentError, match=r"index 5 lies outside 0\.\.4"):
        Subset(ArrayDataset(LABELS), [0, 5])
    with pytest.raises(ArgumentError, match=r"index -1 lies outside 0\.\.4"):
        Subset(ArrayDataset(LABELS), [-1])
    with pytest.raises(ArgumentError, match="flat list of whole numbers, got float64"):
        Subset(ArrayDataset(LABELS), [0.5])
    assert len(Subset(ArrayDataset(LABELS), [])) == 0


def test_batches_of_nested_subsets() -> None:
    inner = Subset(ArrayDataset(IMAGES, LABELS), [4, 3, 2])
    outer = Subset(inner, [2, 0])
    images, labels = read_batch(outer, np.array([1, 0]), None)
    np.testing.assert_array_equal(labels, [5, 4])
    np.testing.assert_array_equal(images, IMAGES[[4, 2]])


@pytest.mark.parametrize("parts", [[7, 3], [0.7, 0.3], (1.0,), [10], [0, 10], [0.33, 0.33, 0.34]])
def test_split_is_a_partition(parts: list[float]) -> None:
    subsets = split(list(range(10)), parts)
    assert sorted(int(index) for subset in subsets for index in subset.indices) == list(range(10))
    if all(isinstance(part, int) for part in parts):
        assert [len(subset) for subset in subsets] == list(parts)
    else:
        assert all(abs(len(subset) - part * 10) < 1.0 for subset, part in zip(subsets, parts, strict=True))


def test_split_fractions_of_the_usual_kind() -> None:
    assert [len(part) for part in split(list(range(1000)), [0.8, 0.1, 0.1])] == [800, 100, 100]
    assert [len(part) for part in split(list(range(7)), [0.5, 0.5])] == [4, 3]


def test_split_follows_the_seed() -> None:
    def order(seed: int | None) -> list[int]:
        return split(list(range(8)), [8], seed)[0].indices.tolist()

    assert order(0) == order(0) == [0, 2, 1, 5, 4, 3, 6, 7]
    assert order(1) != order(0)
    assert order(None) == list(range(8))


@pytest.mark.parametrize("parts", [[5, 4], [0.5, 0.6], [], [-1, 11], [1.5, 8.5]])
def test_split_arguments(parts: list[float]) -> None:
    with pytest.raises(ArgumentError, match="expected lengths"):
        split(list(range(10)), parts)


def test_collate_dtypes() -> None:
    cases: list[tuple[list[Any], str, tuple[int, ...]]] = [
        ([1, 2], "int64", (2,)),
        ([1.5, 2.0], "float32", (2,)),
        ([1, 2.5], "float32", (2,)),
        ([True, False], "bool", (2,)),
        ([np.float64(1), np.float64(2)], "float64", (2,)),
        ([np.uint8(1), np.uint8(2)], "uint8", (2,)),
        ([np.zeros((2, 3), np.float16)] * 4, "float16", (4, 2, 3)),
        ([np.zeros((), np.float16)] * 4, "float16", (4,)),
        ([np.zeros(0, np.int32)], "int32", (1, 0)),
    ]
    for samples, dtype, shape in cases:
        batch = default_collate(samples)
        assert (str(batch.dtype), batch.shape) == (dtype, shape)


def test_collate_structure() -> None:
    images, labels = default_collate([(np.zeros((1, 2, 2)), 3), [np.ones((1, 2, 2)), 4]])
    assert images.shape == (2, 1, 2, 2)
    np.testing.assert_array_equal(labels, [3, 4])
    assert labels.dtype == np.int64


def test_collate_errors() -> None:
    with pytest.raises(DataError, match=r"differ in shape: \(1, 2\), \(1, 3\); .*ImageFolder has size="):
        default_collate([np.zeros((1, 2)), np.zeros((1, 3))])
    with pytest.raises(DataError, match="differ in structure: the first has 2 parts"):
        default_collate([(1, 2), (1, 2, 3)])
    with pytest.raises(DataError, match="differ in structure"):
        default_collate([(1, 2), 3])
    with pytest.raises(DataError, match="samples of type dict: expected arrays, numbers, or tuples"):
        default_collate([{"image": 1}])
    with pytest.raises(DataError, match="samples of type str"):
        default_collate([(np.zeros(1), "cat")])
    with pytest.raises(DataError, match="cannot stack"):
        default_collate([2**70])
    with pytest.raises(DataError, match="cannot stack"):
        default_collate([np.zeros(2), 1])
