"""`DataLoader`: batches of NumPy arrays from a data set, shuffled, transformed and prepared ahead.

In: a data set, and how to draw from it. Out: an iterator of batches per epoch, and a small state with which a
run continues at the next sample that it has not seen. Called by training loops.

What an epoch contains follows from the seed, the epoch's number and the data set only. Batch size,
prefetching and where a run stopped change how samples are grouped, never which come or how they were
transformed.
"""

from __future__ import annotations

import operator
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thalweg.data.dataset import Dataset, read_batch
from thalweg.data.sampling import SampleRandom, check_seed, shuffled
from thalweg.data.transforms import apply_transform
from thalweg.errors import ArgumentError, DataError

__all__ = ["DataLoader"]

Array = NDArray[Any]
Collate = Callable[[list[Any]], Any]


class DataLoader:
    """Iterates over batches of a data set; every `iter(loader)` is one epoch.

    `dataset` is any object with `__len__` and `__getitem__`: an `ArrayDataset`, `ImageFolder`, `Subset`, a
    NumPy array, a list of samples. A batch has the form of a sample, with a first axis added: tuples of
    arrays where the samples are tuples, as in PyTorch.

    * `shuffle=True` draws a new order in every epoch, from `seed` and the epoch's number.
    * `drop_last=True` leaves out the last batch if it is smaller than `batch_size`.
    * `transform` is given the batch's first array (the inputs) and returns the transformed one: a
      `Transform`, or any function of an array.
    * `prefetch` batches are prepared ahead in a background thread; 0 does without the thread. An exception
      there is raised at the consumer with its traceback; an iterator that is abandoned stops its thread.
    * `collate` makes a batch of a list of samples, instead of `default_collate`.

    `state_dict()` counts the samples handed out, not those prefetched: after `load_state_dict` the next
    iteration continues behind them. An epoch that was left early (`break`) and not resumed is not repeated:
    the next iteration is the next epoch.

    Raises `ArgumentError` for bad arguments, and `DataError` for an empty data set.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        transform: Callable[..., Array] | None = None,
        prefetch: int = 2,
        collate: Collate | None = None,
    ) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise ArgumentError(
                f"dataset is a {type(dataset).__name__}; expected an object with __len__ and __getitem__: "
                "a list of samples, or ArrayDataset(images, labels)"
            )
        if isinstance(dataset, tuple) and dataset and all(isinstance(part, np.ndarray) for part in dataset):
            raise ArgumentError(
                "dataset is a tuple of arrays; write ArrayDataset(*arrays) to pair their rows"
            )
        if len(dataset) == 0:
            raise DataError(f"the data set {dataset!r:.100} is empty")
        self.dataset = dataset
        self.batch_size = _whole("batch_size", batch_size, 1)
        self.shuffle = bool(shuffle)
        self.seed = check_seed(seed)
        self.drop_last = bool(drop_last)
        if transform is not None and not callable(transform):
            raise ArgumentError(
                f"transform is {transform!r}; expected a function of a batch; for several: Compose([a, b])"
            )
        self.transform = transform
        self.prefetch = _whole("prefetch", prefetch, 0)
        self.collate = collate
        if len(self) == 0:
            raise ArgumentError(
                f"drop_last=True leaves no batch: the data set has {len(dataset)} samples, fewer than "
                f"batch_size={self.batch_size}"
            )
        self._epoch = 0
        self._consumed = 0
        self._begun = (
            False  # whether an iteration of this epoch was started (then the next one is the next epoch)
        )
        self._owner: object = None  # the iteration that may move the two counters: the latest

    @property
    def epoch(self) -> int:
        """Number of the epoch that is being iterated; between epochs, of the one that comes next."""
        return self._epoch

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        count = len(self.dataset)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        if self._begun:
            self._epoch += 1
            self._consumed = 0
        self._begun = True
        iteration = _Iteration(self, self._epoch, self._consumed)
        self._owner = iteration.token
        return iteration

    def state_dict(self) -> dict[str, int]:
        """`seed`, `epoch`, samples of it that were handed out (`consumed`), data set's size (`samples`)."""
        return {
            "seed": self.seed,
            "epoch": self._epoch,
            "consumed": self._consumed,
            "samples": len(self.dataset),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state_dict()` was taken. The batch size may differ; the data set's size may not."""
        expected = {"seed", "epoch", "consumed", "samples"}
        if set(state) != expected:
            raise DataError(
                f"the state of a DataLoader has the entries {sorted(expected)}, got {sorted(state)}"
            )
        if state["samples"] != len(self.dataset):
            raise DataError(
                f"the state belongs to a data set of {state['samples']} samples, this one has "
                f"{len(self.dataset)}; resume with the same data set"
            )
        epoch, consumed = _whole("epoch", state["epoch"], 0), _whole("consumed", state["consumed"], 0)
        if consumed > len(self.dataset):
            raise DataError(f"the state says that {consumed} of {len(self.dataset)} samples were consumed")
        self.seed = check_seed(state["seed"])
        self._epoch, self._consumed = epoch, consumed
        self._begun = False
        self._owner = None

    def _advance(self, token: object, epoch: int, consumed: int, begun: bool) -> None:
        if token is self._owner:
            self._epoch, self._consumed, self._begun = epoch, consumed, begun

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[int, Any]]:
        """(samples handed out with this batch, batch) of the rest of an epoch.

        A generator that refers to the loader's parts, not to an iteration: the thread that runs it must not
        keep an abandoned iteration alive.
        """
        count = len(self.dataset)
        order = shuffled(count, self.seed, epoch) if self.shuffle else np.arange(count)
        for begin in range(start, count, self.batch_size):
            positions = order[begin : begin + self.batch_size]
            if self.drop_last and len(positions) < self.batch_size:
                return
            batch = read_batch(self.dataset, positions, self.collate)
            if self.transform is not None:
                batch = _transformed(batch, self.transform, SampleRandom(self.seed, epoch, positions))
            yield begin + len(positions), batch


class _Iteration(Iterator[Any]):
    """One epoch, or the rest of one."""

    def __init__(self, loader: DataLoader, epoch: int, start: int) -> None:
        self._loader = loader
        self._epoch = epoch
        batches = loader._batches(epoch, start)
        self._source = _Prefetched(batches, loader.prefetch) if loader.prefetch else batches
        # The loader knows its latest iteration by this token: a reference would keep an abandoned one alive.
        self.token = object()

    def __next__(self) -> Any:
        try:
            consumed, batch = next(self._source)
        except StopIteration:
            self._loader._advance(self.token, self._epoch + 1, 0, begun=False)
            raise
        self._loader._advance(self.token, self._epoch, consumed, begun=True)
        return batch


class _Prefetched(Iterator[Any]):
    """The items of another iterator, made ahead in a background thread: at most `capacity` wait."""

    def __init__(self, source: Iterator[Any], capacity: int) -> None:
        self._channel = _Channel(capacity)
        self._ended = False
        # The thread knows the channel only, so that this object can die while the thread waits; that ends the
        # thread.
        self._thread = threading.Thread(
            target=_produce, args=(source, self._channel), name="thalweg-prefetch", daemon=True
        )
        weakref.finalize(self, self._channel.close)
        self._thread.start()

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        item, error = self._channel.take(self._thread)
        if error is None:
            return item
        self._ended = True
        try:
            raise error  # it still carries the traceback of the thread
        finally:
            del error  # else this frame and the exception would keep each other alive


class _Channel:
    """Hands items from one thread to another, first in, first out."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[tuple[Any, BaseException | None]] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: Any, error: BaseException | None = None) -> bool:
        """Wait for room and add an item, or the error that ends the sequence; False if nobody wants it."""
        with self._changed:
            while len(self._items) >= self._capacity and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            self._items.append((item, error))
            self._changed.notify_all()
            return True

    def take(self, producer: threading.Thread) -> tuple[Any, BaseException | None]:
        """Wait for the next item."""
        with self._changed:
            while not self._items:
                if not producer.is_alive():
                    raise RuntimeError(
                        "the prefetch thread of this DataLoader iterator is gone, probably because the "
                        "process was forked: start a new iteration in the child process, or use prefetch=0"
                    )
                # With a timeout, Ctrl-C gets through on every system, and a thread lost in a fork is noticed.
                self._changed.wait(timeout=1.0)
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Release a waiting producer for good."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


def _produce(source: Iterator[Any], channel: _Channel) -> None:
    try:
        for item in source:
            if not channel.put(item):
                return
    except BaseException as error:
        channel.put(None, error)
    else:
        channel.put(None, StopIteration())


def _transformed(batch: Any, transform: Callable[..., Array], random: SampleRandom) -> Any:
    if isinstance(batch, tuple | list):
        return (apply_transform(transform, batch[0], random), *batch[1:])
    return apply_transform(transform, batch, random)


def _whole(name: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name} is {value!r}; expected a whole number of at least {least}") from None
    if number < least:
        raise ArgumentError(f"{name} is {number}; expected a whole number of at least {least}")
    return number
