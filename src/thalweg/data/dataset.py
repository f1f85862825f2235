"""Data sets: anything with a length and samples under the numbers 0..length-1.

In: arrays, or any sequence of samples. Out: samples one by one, or whole batches of arrays where the data set
can give them without a Python step per sample. Called by `DataLoader`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thalweg.data.sampling import shuffled
from thalweg.errors import ArgumentError, DataError

__all__ = ["ArrayDataset", "BatchedDataset", "Dataset", "Subset", "default_collate", "read_batch", "split"]

Array = NDArray[Any]
Indices = NDArray[np.int64]


@runtime_checkable
class Dataset(Protocol):
    """What a data set must have; a list of samples is one. A sample: array, number, or tuple of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@runtime_checkable
class BatchedDataset(Dataset, Protocol):
    """A data set that also gives whole batches: `DataLoader` then runs no Python per sample."""

    def batch(self, indices: Indices) -> tuple[Array, ...]:
        """The samples `indices` as a tuple of fresh arrays [len(indices), ...]."""
        ...


class ArrayDataset:
    """Samples that lie in arrays of the same length: sample i is `(array[i] for array in arrays)`.

    `dataset[3]` is one sample, `dataset[indices]` (a slice, list or array) a batch: a tuple of arrays. The
    arrays are not copied; `arrays` gives them back: `images, labels = dataset.arrays`.
    """

    def __init__(self, *arrays: ArrayLike) -> None:
        self.arrays: tuple[Array, ...] = tuple(np.asarray(array) for array in arrays)
        if not arrays or any(array.ndim == 0 for array in self.arrays):
            raise ArgumentError(
                "ArrayDataset needs at least one array, each with the samples along its first axis"
            )
        lengths = [len(array) for array in self.arrays]
        if len(set(lengths)) != 1:
            raise ArgumentError(f"ArrayDataset needs arrays of the same length, got lengths {lengths}")

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int | slice | Sequence[int] | Indices) -> tuple[Any, ...]:
        if isinstance(index, list):
            index = np.asarray(index, dtype=np.int64)
        return tuple(array[index] for array in self.arrays)

    def batch(self, indices: Indices) -> tuple[Array, ...]:
        """The samples `indices` (each in 0..len-1) as a tuple of fresh arrays."""
        return tuple(np.take(array, indices, axis=0) for array in self.arrays)

    def __repr__(self) -> str:
        parts = ", ".join(f"{array.dtype}{list(array.shape)}" for array in self.arrays)
        return f"ArrayDataset({parts})"


class Subset:
    """The samples `indices` of another data set, in that order."""

    def __init__(self, dataset: Dataset, indices: ArrayLike) -> None:
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or (chosen.size and not np.issubdtype(chosen.dtype, np.integer)):
            raise ArgumentError(
                f"Subset needs a flat list of whole numbers, got {chosen.dtype} of shape {chosen.shape}"
            )
        self.indices: Indices = chosen.astype(np.int64)
        outside = self.indices[(self.indices < 0) | (self.indices >= len(dataset))]
        if outside.size:
            raise ArgumentError(f"Subset: index {outside[0]} lies outside 0..{len(dataset) - 1}")
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[operator.index(index)])]

    def __repr__(self) -> str:
        return f"Subset({len(self)} of {self.dataset!r})"


def split(dataset: Dataset, parts: Sequence[int | float], seed: int | None = 0) -> list[Subset]:
    """Divide a data set at random into disjoint parts: `train, test = split(dataset, [0.8, 0.2])`.

    `parts` are either lengths that add up to `len(dataset)`, or fractions that add up to 1; fractions are
    rounded down, and what is left goes to the first parts, one each. The same seed gives the same parts on
    every machine; `seed=None` keeps the order.
    """
    count = len(dataset)
    if not parts or any(part < 0 for part in parts):
        raise ArgumentError(f"parts is {list(parts)!r}; expected lengths, or fractions, of at least 0")
    if all(isinstance(part, int) for part in parts) and sum(parts) == count:
        lengths = [int(part) for part in parts]
    elif abs(sum(parts) - 1) < 1e-9:
        lengths = [int(part * count + 1e-9) for part in parts]
        for position in range(count - sum(lengths)):
            lengths[position % len(lengths)] += 1
    else:
        raise ArgumentError(
            f"parts {list(parts)!r} add up to {sum(parts)}; expected lengths that add up to {count}, "
            "the length of the data set, or fractions that add up to 1"
        )
    order = np.arange(count) if seed is None else shuffled(count, seed, epoch=0)
    ends = np.cumsum(lengths)
    return [Subset(dataset, order[end - length : end]) for length, end in zip(lengths, ends, strict=True)]


def read_batch(dataset: Dataset, indices: Indices, collate: Callable[[list[Any]], Any] | None) -> Any:
    """The samples `indices` as one batch: at once where the data set can, else one by one, then collated."""
    while isinstance(dataset, Subset):
        indices = dataset.indices[indices]
        dataset = dataset.dataset
    if collate is None and isinstance(dataset, BatchedDataset):
        return dataset.batch(indices)
    samples = []
    for index in indices.tolist():
        try:
            samples.append(dataset[index])
        except Exception as error:
            error.add_note(f"while reading sample {index} of {type(dataset).__name__}")
            raise
    return (collate or default_collate)(samples)


def default_collate(samples: list[Any]) -> Any:
    """Stack samples to a batch: arrays [...] become one array [N, ...]; tuples become a tuple of such arrays.

    Whole numbers become int64, Python floats float32, truth values bool; NumPy values keep their dtype.
    Raises `DataError` when samples differ in shape or structure, or are something else.
    """
    first = samples[0]
    if isinstance(first, tuple | list):
        if any(not isinstance(sample, tuple | list) or len(sample) != len(first) for sample in samples):
            raise DataError(
                f"the samples of a batch differ in structure: the first has {len(first)} parts, not all have"
            )
        return tuple(_stack([sample[part] for sample in samples]) for part in range(len(first)))
    return _stack(samples)


def _stack(values: list[Any]) -> Array:
    shapes = sorted({np.shape(value) for value in values if isinstance(value, np.ndarray)})
    if len(shapes) > 1:
        raise DataError(
            f"the samples of a batch differ in shape: {', '.join(map(str, shapes))}; bring them to one shape "
            "(ImageFolder has size=...), or give DataLoader a collate function"
        )
    types = {type(value) for value in values}
    if not all(isinstance(value, np.ndarray | np.generic | int | float) for value in values):
        names = ", ".join(sorted(kind.__name__ for kind in types))
        raise DataError(
            f"cannot stack samples of type {names}: expected arrays, numbers, or tuples of them; "
            "return those from the data set, or give DataLoader a collate function"
        )
    dtype = None
    if types <= {int, float, bool}:
        dtype = np.float32 if float in types else np.int64 if int in types else np.bool_
    try:
        return np.array(values, dtype=dtype)
    except (ValueError, OverflowError) as error:
        raise DataError(f"cannot stack the samples of a batch: {error}") from error
