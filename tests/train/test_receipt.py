"""Receipts: a repeated run agrees with its receipt from any step on, and what was changed is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_problem as problem

import thalweg as tw
from thalweg import data, models, optim, train
from thalweg.cli import main
from thalweg.errors import ArgumentError, DataError, ReplayError
from thalweg.train.receipt import data_digest

STEPS = 15  # five batches make an epoch


def recorded(path: Path, **options: Any) -> train.History:
    run = problem.make(dropout=0.3)
    return run.fit(3, validation=run.loader, witness=train.Recorder(path), **options)


def replayed(path: Path, **options: Any) -> train.Replay:
    replay = train.Replay(path)
    run = problem.make(dropout=0.3)
    run.fit(3, validation=run.loader, witness=replay, **options)
    return replay


def test_a_run_repeats(tmp_path: Path) -> None:
    recorded(tmp_path / "r.json")
    replay = replayed(tmp_path / "r.json")
    assert (replay.compared, replay.equal, replay.notes) == (STEPS, STEPS, [])
    recorded(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "r.json").read_bytes()


@pytest.mark.parametrize("every", ["step", "epoch"])
def test_a_run_repeats_from_any_step(tmp_path: Path, every: str) -> None:
    """A checkpoint after each step; with a schedule that moves at the end of an epoch, too."""
    copies: list[Path] = []

    class Copying(train.Recorder):
        def saved(self) -> None:
            super().saved()
            copies.append(tmp_path / f"{self.step}-{len(copies)}.safetensors")
            copies[-1].write_bytes((tmp_path / "c").read_bytes())

    run = problem.make(dropout=0.3)
    run.fit(
        3,
        validation=run.loader,
        witness=Copying(tmp_path / "r.json"),
        schedule_every=every,
        checkpoint=tmp_path / "c",
        checkpoint_every=1,
    )
    assert len(copies) == STEPS + 3
    for copy in copies[:-2]:  # of the last step there is nothing left to repeat
        replay = replayed(tmp_path / "r.json", resume=copy, schedule_every=every)
        step = int(copy.name.split("-")[0])
        assert (replay.compared, replay.equal, replay.notes) == (STEPS - step, STEPS, [])


def test_windows_of_a_text_repeat_from_any_step(tmp_path: Path) -> None:
    """Evaluations after 3, 6 and 7 steps; a checkpoint behind each step."""
    copies: list[bytes] = []

    class Copying(train.Recorder):
        def saved(self) -> None:
            copies.append((tmp_path / "c").read_bytes())

    def fit(witness: Any, **options: Any) -> None:
        tw.manual_seed(3)
        model = models.CharLSTM(5, 4, 1, dropout=0.2)
        tokens = np.random.default_rng(0).integers(0, 5, 60)
        loader = data.WindowLoader(tokens, context=6, batch_size=3, steps=7, every=3)
        train.fit(
            model,
            loader,
            loss=lambda outputs, targets: tw.nn.functional.cross_entropy(
                outputs.logits.reshape(-1, 5), targets.reshape(-1)
            ),
            optimizer=optim.AdamW(model.parameters(), lr=0.01),
            epochs=3,
            witness=witness,
            backend="numpy",
            progress=False,
            **options,
        )

    fit(Copying(tmp_path / "r.json"), checkpoint=tmp_path / "c", checkpoint_every=1)
    steps = [1, 2, 3, 3, 4, 5, 6, 6, 7, 7]
    assert len(copies) == len(steps)
    for step, copy in zip(steps[:-2], copies, strict=False):
        (tmp_path / "c").write_bytes(copy)
        replay = train.Replay(tmp_path / "r.json")
        fit(replay, resume=tmp_path / "c")
        assert (replay.compared, replay.equal) == (7 - step, 7)


def test_a_continued_run_has_the_receipt_of_a_whole_one(tmp_path: Path) -> None:
    recorded(tmp_path / "whole.json")
    one = [lambda history: len(history.epochs) == 1]
    recorded(tmp_path / "r.json", callbacks=one, checkpoint=tmp_path / "c")
    assert train.read_receipt(tmp_path / "r.json").last_step == 5
    assert replayed(tmp_path / "r.json").compared == 5  # it stops where the receipt ends
    recorded(tmp_path / "r.json", resume=tmp_path / "c")
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_receipt_that_begins_in_the_middle(tmp_path: Path) -> None:
    one = [lambda history: len(history.epochs) == 1]
    recorded(tmp_path / "first.json", callbacks=one, checkpoint=tmp_path / "c")
    recorded(tmp_path / "second.json", resume=tmp_path / "c")
    assert train.read_receipt(tmp_path / "second.json").first_step == 5
    assert replayed(tmp_path / "second.json", resume=tmp_path / "c").compared == 10
    with pytest.raises(DataError, match="continue from the checkpoint it began with"):
        replayed(tmp_path / "second.json")


def changed_model(run: problem.Problem) -> None:
    weight = next(iter(run.model.parameters()))
    array = np.array(weight.data)
    array.view(np.uint32)[0, 0] ^= 1
    weight.replace(array)


def changed_data(run: problem.Problem) -> None:
    run.loader.dataset.arrays[0][3, 1] += 1e-6


def changed_order(run: problem.Problem) -> None:
    run.loader.seed = 2


def changed_generator(run: problem.Problem) -> None:
    tw.manual_seed(8)


CHANGES: dict[str, tuple[Callable[[problem.Problem], None], str]] = {
    "one bit of a weight": (changed_model, "the state after step 0 has the hash .* in the receipt"),
    "one sample": (changed_data, "the training data are not those of the receipt"),
    "the order": (changed_order, "the loss of step 1 is .* in the receipt .*same after step 0"),
    "the generator": (changed_generator, "the state after step 0 has the hash"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_run_is_told_from_it(tmp_path: Path, what: str) -> None:
    recorded(tmp_path / "r.json")
    change, message = CHANGES[what]
    run = problem.make(dropout=0.3)
    change(run)
    with pytest.raises(ReplayError, match=message):
        run.fit(3, validation=run.loader, witness=train.Replay(tmp_path / "r.json"))


def test_where_it_first_differs(tmp_path: Path) -> None:
    """A weight that changes by one bit behind step 7 shows in the loss of step 8 or the state after it."""
    recorded(tmp_path / "r.json", checkpoint=tmp_path / "c", checkpoint_every=1)
    run = problem.make(dropout=0.3)

    class Disturbing(train.Replay):
        def loss(self, bits: str) -> bool:
            found = super().loss(bits)
            if self.step == 7:
                changed_model(run)
            return found

    with pytest.raises(ReplayError, match=r"step 8 .*the whole state was the same after step 7"):
        run.fit(3, validation=run.loader, witness=Disturbing(tmp_path / "r.json"))


def test_another_graph_is_noted(tmp_path: Path) -> None:
    recorded(tmp_path / "r.json")
    replay = train.Replay(tmp_path / "r.json")
    run = problem.make(dropout=0.3)
    same = lambda outputs, targets: tw.nn.functional.cross_entropy(outputs * 1.0, targets)  # noqa: E731
    run.fit(3, validation=run.loader, loss=same, witness=replay)
    assert replay.equal == STEPS
    assert any("another one, for batches float32[16,5], int64[16]" in note for note in replay.notes)


def test_edited_receipts_are_refused(tmp_path: Path) -> None:
    recorded(tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    parts = json.loads(text)
    assert text.count(parts["losses"][2]) == 1
    for old, new, message in (
        (parts["losses"][2], "0x1.0p+0", "changed after it was written: the entry of step 5"),
        (parts["states"][1][1], parts["states"][0][1], "the entry of step 10"),
        (parts["initial"], parts["data"], "the entry of step 5"),
        (parts["epochs"][0]["accuracy"], "0x1.0p+0", "the figures of epoch 1"),
        ('"states"', '"stated"', "is damaged: states missing"),
        ("thalweg receipt 1", "thalweg receipt 9", "is not a receipt"),
        ("{", "", "is not a receipt"),
    ):
        (tmp_path / "edited.json").write_text(text.replace(old, new, 1))
        with pytest.raises(DataError, match=message):
            train.read_receipt(tmp_path / "edited.json")
    with pytest.raises(DataError, match="cannot read the receipt"):
        train.read_receipt(tmp_path / "absent.json")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    recorded(tmp_path / "r.json")
    before = (tmp_path / "r.json").read_bytes()
    with pytest.raises(DataError, match="exists and knows nothing of the state after step 0"):
        recorded(tmp_path / "r.json")
    other = problem.make(lr=0.2)
    other.fit(1, checkpoint=tmp_path / "c")
    with pytest.raises(DataError, match="is the receipt of another run"):
        other.fit(3, resume=tmp_path / "c", witness=train.Recorder(tmp_path / "r.json"))
    assert (tmp_path / "r.json").read_bytes() == before
    with pytest.raises(ArgumentError, match="checkpoint_every"):
        recorded(tmp_path / "n.json", checkpoint_every=0)


def test_what_the_data_are_known_by() -> None:
    arrays = np.arange(12.0).reshape(6, 2), np.arange(6)
    whole = data.ArrayDataset(*arrays)
    parts = {
        "a data set": whole,
        "a subset": data.Subset(whole, [0, 1, 2, 3, 4, 5]),
        "another subset": data.Subset(whole, [0, 1, 2, 3, 5, 4]),
        "samples": [(row, label) for row, label in zip(*arrays, strict=True)],
        "batches": [(arrays[0][:3], arrays[1][:3]), (arrays[0][3:], arrays[1][3:])],
        "other numbers": data.ArrayDataset(arrays[0] + 1, arrays[1]),
        "other types": data.ArrayDataset(arrays[0].astype(np.float32), arrays[1]),
    }
    digests = {name: data_digest(data.DataLoader(part, 2)) for name, part in parts.items()}
    assert data_digest(parts["batches"]) == digests["batches"]
    assert len(set(digests.values())) == len(parts)
    assert data_digest(data.DataLoader(whole, 3, shuffle=True)) == digests["a data set"]
    with pytest.raises(ArgumentError, match="can be read twice"):
        data_digest(iter([1, 2]))


def test_on_the_command_line(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--data", "digits", "--backend", "numpy", "--batch-size", "256", "--out", "run"]
    assert main(["train", "mlp", *words, "--epochs", "2", "--receipt", "r.json"]) == 0
    assert "receipt: r.json" in capsys.readouterr().out
    assert main(["verify", "r.json", "--backend", "numpy"]) == 0
    assert "the same bits: 12 losses, 3 states" in capsys.readouterr().out
    assert main(["verify", "r.json", "--from", "run"]) == 1
    assert "is 12 steps on, the end of the receipt" in capsys.readouterr().err
    assert main(["train", "--resume", "run", "--epochs", "3", "--out", "more", "--backend", "numpy"]) == 0
    parts = json.loads(Path("r.json").read_text())
    parts["run"]["settings"]["seed"] = 1
    Path("other.json").write_text(json.dumps(parts))
    assert main(["verify", "other.json", "--backend", "numpy"]) == 1
    assert "error: the state after step 0 has the hash" in capsys.readouterr().err


def test_text_models_on_the_command_line(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is repeated from a checkpoint in its middle, and with the text in another place."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("the line a river follows down the bottom of its valley " * 9)
    sizes = ["--layers", "1", "--width", "6", "--context", "8", "--batch-size", "3", "--sample", "0"]
    words = ["--text", "a.txt", *sizes, "--steps", "6", "--evaluate-every", "3", "--backend", "numpy"]
    write = train.save_checkpoint

    def copying(path: Any, *parts: Any, **options: Any) -> None:
        write(path, *parts, **options)
        Path(f"{len(options['history'].losses)}.safetensors").write_bytes(Path(path).read_bytes())

    monkeypatch.setattr("thalweg.train.loop.save_checkpoint", copying)
    options = ["--receipt", "r.json", "--checkpoint-every", "2", "--out", "run"]
    assert main(["train", "lstm", *words, *options]) == 0
    monkeypatch.setattr("thalweg.train.loop.save_checkpoint", write)
    capsys.readouterr()
    assert main(["verify", "r.json", "--backend", "numpy"]) == 0
    assert "the same bits: 6 losses, 5 states" in capsys.readouterr().out
    Path("a.txt").rename("b.txt")
    assert main(["verify", "r.json", "--from", "4.safetensors", "--text", "b.txt", "--backend", "numpy"]) == 0
    assert "the same bits: 2 losses, 2 states" in capsys.readouterr().out
    Path("b.txt").write_text(Path("b.txt").read_text().replace("river", "rover", 1))
    assert main(["verify", "r.json", "--text", "b.txt", "--backend", "numpy"]) == 1
    assert "the training data are not those of the receipt" in capsys.readouterr().err
