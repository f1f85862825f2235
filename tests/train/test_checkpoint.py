"""Checkpoints: exact resuming, same bytes, nothing half-loaded."""

from __future__ import annotations

import json
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_problem as problem

import thalweg as tw
from thalweg import data, nn, optim, train
from thalweg.errors import ArgumentError, DataError
from thalweg.io import safetensors


def contents(run: problem.Problem) -> dict[str, bytes]:
    """Everything that decides how a run goes on, as bytes."""
    arrays = {
        **run.model.state_dict(),
        **run.optimizer.state_dict(),
        "generator": tw.default_generator.state.data,
    }
    found = {name: np.asarray(array).tobytes() for name, array in arrays.items()}
    return {**found, "rest": json.dumps([run.schedule.state_dict(), run.loader.state_dict()]).encode()}


def stop_after(count: int) -> Any:
    return lambda history: len(history.epochs) == count


@pytest.mark.parametrize("epochs", [1, 2])
def test_resuming_after_an_epoch_continues_bit_for_bit(tmp_path: Path, epochs: int) -> None:
    whole = problem.make(dropout=0.3)
    history = whole.fit(4, validation=whole.loader)
    expected = contents(whole)

    first = problem.make(dropout=0.3)
    first.fit(4, validation=first.loader, callbacks=[stop_after(epochs)], checkpoint=tmp_path / "c")
    tw.manual_seed(123)
    second = problem.make(dropout=0.3)
    resumed = second.fit(4, validation=second.loader, resume=tmp_path / "c")
    assert contents(second) == expected
    assert resumed.losses == history.losses
    assert resumed.epochs == history.epochs


@pytest.mark.parametrize("step", [1, 4, 5, 8])
def test_resuming_in_the_middle_of_an_epoch_continues_bit_for_bit(tmp_path: Path, step: int) -> None:
    """Five batches make an epoch; 5 is the end of one before it was counted."""
    import os
    import signal

    whole = problem.make(dropout=0.3)
    history = whole.fit(3)
    expected = contents(whole)

    first = problem.make(dropout=0.3)
    first.loader.prefetch = 0
    count = [0]

    def interrupt(inputs: Any) -> Any:
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), signal.SIGINT)
        return inputs

    first.loader.transform = interrupt
    assert first.fit(3, checkpoint=tmp_path / "c").interrupted
    second = problem.make(dropout=0.3)
    resumed = second.fit(3, resume=tmp_path / "c")
    assert contents(second) == expected
    assert resumed.losses == history.losses
    assert resumed.epochs == history.epochs
    assert not resumed.interrupted


def test_a_checkpoint_restores_adam_and_its_counts(tmp_path: Path) -> None:
    def make() -> problem.Problem:
        run = problem.make()
        optimizer = optim.AdamW(run.model.parameters(), lr=0.01)
        return problem.Problem(run.model, run.loader, optimizer, optim.StepLR(optimizer, 3))

    whole = make()
    whole.fit(3)
    first = make()
    first.fit(3, callbacks=[stop_after(1)], checkpoint=tmp_path / "c")
    second = make()
    second.fit(3, resume=tmp_path / "c")
    assert contents(second) == contents(whole)


def test_the_same_run_gives_the_same_bytes_wherever_it_is_written(tmp_path: Path) -> None:
    """No time, path or thread count is in the file."""
    written = []
    for name, threads in (("a", 1), ("some/deeper/directory/b", 2)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tw.config.settings.set_threads(threads)
        try:
            problem.make().fit(2, checkpoint=path, metadata={"who": "me"})
        finally:
            tw.config.settings.set_threads(None)
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_what_a_checkpoint_holds(tmp_path: Path) -> None:
    run = problem.make()
    run.fit(2, checkpoint=tmp_path / "c", metadata={"who": "me"})
    found = train.read_checkpoint(tmp_path / "c")
    assert found.step == 10
    assert found.metadata == {"who": "me"}
    assert set(found.model) == set(run.model.state_dict())
    assert found.schedule == run.schedule.state_dict()
    assert found.loader == run.loader.state_dict()
    assert len(found.history.epochs) == 2
    arrays, _ = safetensors.load(tmp_path / "c")
    assert "model.layers.0.weight" in arrays
    assert "optimizer.state.0.momentum_buffer" in arrays


def test_saving_and_loading_by_hand(tmp_path: Path) -> None:
    run = problem.make()
    generator = tw.Generator(5)
    train.save_checkpoint(tmp_path / "c", run.model, run.optimizer, generator=generator, step=12)
    other = problem.make()
    for parameter in other.model.parameters():
        parameter.assign(parameter * 0)
    another = tw.Generator(6)
    found = train.load_checkpoint(tmp_path / "c", other.model, other.optimizer, generator=another)
    assert found.step == 12
    assert another.seed == 5
    for ours, theirs in zip(run.model.parameters(), other.model.parameters(), strict=True):
        assert np.array_equal(ours.numpy(), theirs.numpy())


def test_loading_for_inference_leaves_the_default_generator_alone(tmp_path: Path) -> None:
    run = problem.make()
    train.save_checkpoint(tmp_path / "c", run.model)
    tw.manual_seed(99)
    train.load_checkpoint(tmp_path / "c", run.model)
    assert tw.default_generator.seed == 99


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            self.a = nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)
            self.b.weight = self.a.weight

    model = Tied()
    train.save_checkpoint(tmp_path / "c", model)
    arrays, _ = safetensors.load(tmp_path / "c")
    assert "model.a.weight" in arrays
    assert "model.b.weight" not in arrays
    fresh = Tied()
    train.load_checkpoint(tmp_path / "c", fresh)
    assert np.array_equal(fresh.b.weight.numpy(), model.a.weight.numpy())


# ---- what does not fit -------------------------------------------------------------------------------------


def test_nothing_is_loaded_when_one_part_does_not_fit(tmp_path: Path) -> None:
    run = problem.make()
    run.fit(2, checkpoint=tmp_path / "c")
    fresh = problem.make()
    other = optim.Adam(fresh.model.parameters())
    target = problem.Problem(fresh.model, fresh.loader, other, optim.CosineAnnealingLR(other, 40))
    before = contents(target)
    saved = train.read_checkpoint(tmp_path / "c")
    with pytest.raises(DataError, match="does not fit the optimizer"):
        saved.restore(
            target.model,
            target.optimizer,
            schedule=target.schedule,
            loader=target.loader,
            generator=tw.default_generator,
        )
    after = contents(target)
    slots = [name for name in after if name not in before]  # made while loading, still zero
    assert {name: after[name] for name in before} == before
    assert all(not any(after[name]) for name in slots)


def test_another_model_is_refused_with_its_entries(tmp_path: Path) -> None:
    train.save_checkpoint(tmp_path / "c", nn.Linear(3, 4))
    with pytest.raises(
        DataError, match=r"does not fit the model.*expected shape \(5, 3\), received \(4, 3\)"
    ):
        _flat_error(lambda: train.load_checkpoint(tmp_path / "c", nn.Linear(3, 5)))


def _flat_error(action: Any) -> None:
    try:
        action()
    except DataError as error:
        raise DataError(str(error).replace("\n", " ")) from None


def test_parts_that_were_not_saved_are_named(tmp_path: Path) -> None:
    run = problem.make()
    train.save_checkpoint(tmp_path / "c", run.model)
    with pytest.raises(DataError, match="has no state of the optimizer"):
        train.load_checkpoint(tmp_path / "c", run.model, run.optimizer)
    with pytest.raises(DataError, match="has no state of the schedule"):
        train.load_checkpoint(tmp_path / "c", run.model, schedule=run.schedule)


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    run = problem.make()
    run.fit(1, checkpoint=tmp_path / "c")
    fresh = problem.make()
    smaller = data.DataLoader(data.Subset(problem.samples(), range(20)), 16)
    with pytest.raises(DataError, match="belongs to a data set of 70 samples, this one has 20"):
        problem.Problem(fresh.model, smaller, fresh.optimizer, fresh.schedule).fit(2, resume=tmp_path / "c")


def test_a_list_of_batches_cannot_be_resumed_in_the_middle(tmp_path: Path) -> None:
    run = problem.make()
    averages = {"loss": train.Average(1.0, 16), "accuracy": train.Average(3, 16)}
    train.save_checkpoint(tmp_path / "c", run.model, run.optimizer, schedule=run.schedule, averages=averages)
    batches: Any = list(run.loader)
    with pytest.raises(ArgumentError, match="in the middle of an epoch; to continue there the loader needs"):
        problem.Problem(run.model, batches, run.optimizer, run.schedule).fit(2, resume=tmp_path / "c")


def test_weights_alone_are_told_apart_from_a_checkpoint(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.save(tmp_path / "weights.safetensors")
    with pytest.raises(DataError, match=r"not a training checkpoint.*model\.load"):
        train.read_checkpoint(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "metadata", "history"])
def test_broken_files_give_a_clear_error_and_change_nothing(tmp_path: Path, damage: str) -> None:
    run = problem.make()
    path = tmp_path / "c"
    run.fit(1, checkpoint=path)
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not a checkpoint, but long enough to be read as one")
    elif damage == "metadata":
        arrays, metadata = safetensors.load(path)
        safetensors.save(path, dict(arrays), {**metadata, "training": "{"})
    else:
        arrays, metadata = safetensors.load(path)
        safetensors.save(path, {**arrays, "history.losses": np.zeros((2, 2))}, metadata)
    fresh = problem.make()
    before = contents(fresh)
    with pytest.raises(DataError, match=str(path)):
        fresh.fit(2, resume=path)
    assert contents(fresh) == before


def test_a_hostile_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(DataError, match="at most"):
        train.read_checkpoint(tmp_path / "c")


# ---- full disk ---------------------------------------------------------------------------------------------


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, writes: set[int]) -> None:
    """Let these writes of files (counted from 1) fail as on a full disk."""
    import errno

    real, count = os.fsync, [0]

    def full(descriptor: int) -> None:
        count[0] += 1
        if count[0] in writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr("thalweg.io.files._sync_directory", lambda directory: None)


def test_a_full_disk_in_the_middle_warns_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(monkeypatch, {2})
    with pytest.warns(UserWarning, match=r"No space left on device.*the training goes on"):
        history = problem.make().fit(3, checkpoint=tmp_path / "c")
    assert len(history.epochs) == 3
    assert train.read_checkpoint(tmp_path / "c").step == 15


def test_a_full_disk_at_the_end_is_an_error_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(monkeypatch, {3})
    seen: list[train.History] = []
    run = problem.make()
    with pytest.raises(DataError, match="No space left on device; the file that was there is unchanged"):
        run.fit(3, checkpoint=tmp_path / "c", callbacks=[lambda history: seen.append(history)])
    assert len(seen[-1].epochs) == 3  # the work is not lost: the model is trained, the history is known
    assert train.read_checkpoint(tmp_path / "c").step == 10
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_missing_directory_is_an_error_after_one_epoch_of_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="the directory does not exist"):
            problem.make().fit(2, checkpoint=tmp_path / "absent" / "c")
