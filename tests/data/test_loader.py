"""DataLoader: the same samples however they are grouped, resumed or prefetched, and threads that end."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from thalweg.data import ArrayDataset, Compose, DataLoader, RandomHorizontalFlip, RandomShift, Subset
from thalweg.errors import ArgumentError, DataError

IMAGES = np.random.default_rng(0).random((23, 1, 4, 4), dtype=np.float32)
LABELS = np.arange(23)
DATASET = ArrayDataset(IMAGES, LABELS)
PREFETCH = pytest.mark.parametrize("prefetch", [0, 1, 3])


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "thalweg-prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    wait_for(lambda: not threads())


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def labels_of(batches: Any) -> list[int]:
    return [int(label) for _, labels in batches for label in labels]


@PREFETCH
def test_plain_batches(prefetch: int) -> None:
    loader = DataLoader(DATASET, batch_size=5, prefetch=prefetch)
    batches = list(loader)
    assert len(batches) == len(loader) == 5
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 3]
    np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), IMAGES)
    assert labels_of(batches) == list(range(23))
    assert all(isinstance(batch, tuple) for batch in batches)


@PREFETCH
def test_drop_last(prefetch: int) -> None:
    loader = DataLoader(DATASET, batch_size=5, drop_last=True, prefetch=prefetch)
    assert [len(labels) for _, labels in loader] == [5, 5, 5, 5]
    assert len(loader) == 4
    assert loader.epoch == 1


def test_shuffling_follows_seed_and_epoch() -> None:
    def epochs(seed: int, **options: Any) -> list[list[int]]:
        loader = DataLoader(DATASET, shuffle=True, seed=seed, **options)
        return [labels_of(loader) for _ in range(3)]

    first = epochs(0)
    assert all(sorted(epoch) == list(range(23)) for epoch in first)
    assert first[0] != first[1] != first[2] != first[0]
    assert epochs(1) != first
    for batch_size in (1, 4, 23, 100):
        for prefetch in (0, 2):
            assert epochs(0, batch_size=batch_size, prefetch=prefetch) == first


def test_transforms_draw_anew_in_every_epoch() -> None:
    loader = DataLoader(DATASET, batch_size=23, transform=RandomShift(1))
    ((first, _),), ((second, _),) = list(loader), list(loader)
    assert not np.array_equal(first, second)


def collected(dataset: Any, batch_size: int, prefetch: int) -> Any:
    transform = Compose([RandomShift(1), RandomHorizontalFlip()])
    loader = DataLoader(
        dataset, batch_size=batch_size, shuffle=True, seed=7, transform=transform, prefetch=prefetch
    )
    images = [np.concatenate([images for images, _ in loader]) for _ in range(2)]
    return np.stack(images)


def test_transforms_do_not_depend_on_grouping() -> None:
    expected = collected(DATASET, 1, 0)
    assert not np.array_equal(expected[0], expected[1])
    for batch_size, prefetch in ((4, 0), (4, 2), (23, 1)):
        np.testing.assert_array_equal(collected(DATASET, batch_size, prefetch), expected)
    one_by_one = [(IMAGES[index], int(LABELS[index])) for index in range(23)]
    np.testing.assert_array_equal(collected(one_by_one, 4, 2), expected)
    np.testing.assert_array_equal(collected(Subset(DATASET, range(23)), 4, 2), expected)


@PREFETCH
@pytest.mark.parametrize("stop", [0, 1, 3, 5])
@pytest.mark.parametrize("resumed_size", [5, 4])
def test_resuming_in_the_middle_of_an_epoch(prefetch: int, stop: int, resumed_size: int) -> None:
    options: dict[str, Any] = {"shuffle": True, "seed": 3, "transform": RandomShift(1)}

    def flat(batches: Any) -> tuple[list[int], Any]:
        batches = list(batches)
        images = np.concatenate([images for images, _ in batches]) if batches else np.zeros((0, 1, 4, 4))
        return labels_of(batches), images

    whole = DataLoader(DATASET, batch_size=5, **options)
    list(whole)
    expected_rest, expected_next = flat(whole), flat(whole)

    first = DataLoader(DATASET, batch_size=5, prefetch=prefetch, **options)
    list(first)
    iteration = iter(first)
    taken = [next(iteration) for _ in range(stop)]
    state = first.state_dict()
    assert state == {"seed": 3, "epoch": 1, "consumed": min(5 * stop, 23), "samples": 23}

    second = DataLoader(DATASET, batch_size=resumed_size, prefetch=prefetch, **{**options, "seed": 99})
    second.load_state_dict(state)
    assert second.state_dict() == state
    rest = flat(second)
    assert labels_of(taken) + rest[0] == expected_rest[0]
    np.testing.assert_array_equal(rest[1], expected_rest[1][min(5 * stop, 23) :])
    following = flat(second)
    assert following[0] == expected_next[0]
    np.testing.assert_array_equal(following[1], expected_next[1])


@PREFETCH
def test_state_counts_what_was_consumed_not_prefetched(prefetch: int) -> None:
    loader = DataLoader(DATASET, batch_size=5, prefetch=prefetch)
    assert loader.state_dict()["consumed"] == 0
    for step, _ in enumerate(loader):
        time.sleep(0.005)
        assert loader.state_dict() == {
            "seed": 0,
            "epoch": 0,
            "consumed": min(5 * step + 5, 23),
            "samples": 23,
        }
    assert loader.state_dict() == {"seed": 0, "epoch": 1, "consumed": 0, "samples": 23}


def test_an_epoch_left_early_is_not_repeated_but_can_be_resumed() -> None:
    loader = DataLoader(DATASET, batch_size=5, shuffle=True)
    epochs = [labels_of(DataLoader(DATASET, batch_size=5, shuffle=True)), []]
    for _ in loader:
        break
    state = loader.state_dict()
    epochs[1] = labels_of(loader)
    assert loader.epoch == 2
    assert epochs[1] != epochs[0]
    loader.load_state_dict(state)
    assert labels_of(loader) == epochs[0][5:]
    assert labels_of(loader) == epochs[1]


def test_only_the_latest_iteration_moves_the_state() -> None:
    loader = DataLoader(DATASET, batch_size=5)
    old = iter(loader)
    next(old)
    new = iter(loader)
    next(new), next(new)
    list(old)
    assert loader.state_dict() == {"seed": 0, "epoch": 1, "consumed": 10, "samples": 23}
    loader.load_state_dict({"seed": 0, "epoch": 4, "consumed": 5, "samples": 23})
    list(new)
    assert loader.state_dict()["epoch"] == 4


def test_state_of_something_else() -> None:
    loader = DataLoader(DATASET)
    state = loader.state_dict()
    with pytest.raises(DataError, match="a data set of 24 samples, this one has 23"):
        loader.load_state_dict({**state, "samples": 24})
    with pytest.raises(
        DataError, match=r"entries \['consumed', 'epoch', 'samples', 'seed'\], got \['seed'\]"
    ):
        loader.load_state_dict({"seed": 0})
    with pytest.raises(DataError, match="24 of 23 samples were consumed"):
        loader.load_state_dict({**state, "consumed": 24})
    with pytest.raises(ArgumentError, match="epoch is -1"):
        loader.load_state_dict({**state, "epoch": -1})
    assert loader.state_dict() == state
    loader.load_state_dict({key: np.int64(value) for key, value in state.items()})
    assert all(type(value) is int for value in loader.state_dict().values())


@PREFETCH
def test_exceptions_come_with_their_traceback(prefetch: int) -> None:
    class Failing:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> int:
            return self.read_from_disk(index)

        def read_from_disk(self, index: int) -> int:
            if index == 5:
                raise OSError("disk on fire")
            return index

    loader = DataLoader(Failing(), batch_size=2, prefetch=prefetch)
    iteration = iter(loader)
    assert [next(iteration).tolist(), next(iteration).tolist()] == [[0, 1], [2, 3]]
    with pytest.raises(OSError, match="disk on fire") as raised:
        next(iteration)
    names = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert "read_from_disk" in names
    assert "while reading sample 5 of Failing" in raised.value.__notes__
    assert loader.state_dict()["consumed"] == 4
    with pytest.raises(StopIteration):
        next(iteration)


@PREFETCH
def test_exceptions_in_transform_and_collate(prefetch: int) -> None:
    def failing(value: Any) -> Any:
        raise ZeroDivisionError("on purpose")

    for options in ({"transform": failing}, {"collate": failing}):
        with pytest.raises(ZeroDivisionError, match="on purpose"):
            list(DataLoader(DATASET, prefetch=prefetch, **options))


def test_an_abandoned_iteration_stops_its_thread() -> None:
    read = []

    class Counting(list[int]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return index

    loader = DataLoader(Counting(range(1000)), prefetch=2)
    for _ in loader:
        break
    wait_for(lambda: not threads())
    assert len(read) <= 5
    iteration = iter(loader)
    next(iteration)
    assert len(threads()) == 1
    del iteration
    wait_for(lambda: not threads())


def test_prefetching_is_bounded_and_ahead() -> None:
    read: list[int] = []

    class Counting(list[int]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return index

    iteration = iter(DataLoader(Counting(range(100)), prefetch=3))
    wait_for(lambda: len(read) == 4)  # three wait in the queue, one in the hands of the thread
    time.sleep(0.02)
    assert len(read) == 4
    next(iteration)
    wait_for(lambda: len(read) == 5)


CTRL_C = """
import os, signal, threading, time
import numpy as np
from thalweg.data import DataLoader

class Slow:
    def __len__(self): return 10
    def __getitem__(self, index):
        if index == 2:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            time.sleep(0.6)
        return index

loader = DataLoader(Slow(), prefetch=1)
iteration = iter(loader)
seen = []
try:
    for batch in iteration:
        seen += batch.tolist()
except KeyboardInterrupt:
    print("interrupted after", seen, loader.state_dict()["consumed"])
print("then", [int(value) for batch in iteration for value in batch])
interrupted = iter(DataLoader(Slow(), prefetch=1))
next(interrupted)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_while_waiting_and_exit_with_a_living_thread() -> None:
    result = subprocess.run([sys.executable, "-c", CTRL_C], capture_output=True, text=True, timeout=30)
    assert result.stdout.splitlines() == [
        "interrupted after [0, 1] 2",
        "then [2, 3, 4, 5, 6, 7, 8, 9]",
    ]
    assert result.stderr == ""
    assert result.returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_an_iteration_carried_over_a_fork_says_so() -> None:
    iteration = iter(DataLoader(DATASET, prefetch=1))
    wait_for(lambda: len(iteration._source._channel._items) == 1)
    time.sleep(0.05)  # the thread now waits for room
    child = os.fork()
    if child == 0:
        status = 1
        try:
            next(iteration)
            next(iteration)
        except RuntimeError as error:
            status = 0 if "forked" in str(error) else 2
        finally:
            os._exit(status)
    try:
        wait_for(lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        status = os.waitpid(child, 0)[1]
    assert status == 0
    assert len(list(iteration)) == 23  # the parent is untouched


def test_other_data_sets() -> None:
    batches = list(DataLoader(np.arange(12.0).reshape(6, 2), batch_size=4))
    assert [batch.shape for batch in batches] == [(4, 2), (2, 2)]
    (only,) = DataLoader(ArrayDataset(IMAGES), batch_size=23)
    assert isinstance(only, tuple) and len(only) == 1
    (doubled,) = DataLoader([1, 2, 3], batch_size=3, transform=lambda batch: batch * 2)
    assert doubled.tolist() == [2, 4, 6]
    samples = [{"text": "a"}, {"text": "b"}]
    (texts,) = DataLoader(samples, batch_size=2, collate=lambda batch: [sample["text"] for sample in batch])
    assert texts == ["a", "b"]


def test_no_python_per_sample_for_arrays() -> None:
    class Watched(ArrayDataset):
        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("asked for a single sample")

    assert labels_of(DataLoader(Watched(IMAGES, LABELS), batch_size=5)) == list(range(23))
    assert labels_of(DataLoader(Subset(Watched(IMAGES, LABELS), [3, 1]), batch_size=2)) == [3, 1]


def test_batches_may_be_changed() -> None:
    for images, _ in DataLoader(DATASET, batch_size=23):
        images[:] = -1
    assert IMAGES.min() >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; expected a whole number of at least 1"),
        ({"batch_size": 2.5}, r"batch_size is 2\.5; expected a whole number"),
        ({"prefetch": -1}, "prefetch is -1; expected a whole number of at least 0"),
        ({"seed": -1}, "seed is -1"),
        ({"transform": [RandomShift(1)]}, r"for several: Compose\(\[a, b\]\)"),
        (
            {"batch_size": 24, "drop_last": True},
            "drop_last=True leaves no batch: the data set has 23 samples",
        ),
        ({"dataset": iter([1])}, "expected an object with __len__ and __getitem__"),
        ({"dataset": (IMAGES, LABELS)}, r"write ArrayDataset\(\*arrays\)"),
    ],
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        DataLoader(**{"dataset": DATASET, **arguments})


def test_empty_data_set() -> None:
    with pytest.raises(DataError, match="is empty"):
        DataLoader([])
