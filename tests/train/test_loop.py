"""`fit` and `evaluate`."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_problem as problem

import thalweg as tw
from thalweg import data, nn, optim, train
from thalweg.errors import ArgumentError, DataError, NumericError


def test_fit_is_the_loop_that_one_would_write() -> None:
    """The same weights, bit for bit, as a hand-written eager loop; the last partial batch included."""
    run = problem.make()
    history = run.fit(2)

    by_hand = problem.make()
    losses, right, weighted = [], 0, 0.0
    for epoch in range(2):
        for inputs, targets in by_hand.loader:
            outputs = by_hand.model(inputs)
            loss = nn.functional.cross_entropy(outputs, targets)
            by_hand.optimizer.minimize(loss)
            by_hand.schedule.step()
            losses.append(loss.item())
            if epoch == 1:
                right += int((outputs.numpy().argmax(axis=1) == targets).sum())
                weighted += loss.item() * len(targets)
    assert [len(targets) for _, targets in problem.make().loader] == [16, 16, 16, 16, 6]
    assert history.losses == losses
    assert history.epochs[1]["accuracy"] == right / problem.SAMPLES
    assert history.epochs[1]["loss"] == pytest.approx(weighted / problem.SAMPLES, rel=1e-12)
    for ours, theirs in zip(run.model.parameters(), by_hand.model.parameters(), strict=True):
        assert ours.numpy().tobytes() == theirs.numpy().tobytes()


def test_training_lowers_the_loss_and_evaluation_does_not_train() -> None:
    run = problem.make()
    test = data.DataLoader(problem.samples(), 32)
    metrics = {"right": train.accuracy}
    before = train.evaluate(
        run.model, test, loss=nn.functional.cross_entropy, metrics=metrics, backend="numpy"
    )
    history = run.fit(8, metrics=metrics, validation=test)
    after = train.evaluate(
        run.model, test, loss=nn.functional.cross_entropy, metrics=metrics, backend="numpy"
    )
    assert after["loss"] < 0.5 * before["loss"]
    assert history.epochs[-1]["validation_loss"] == after["loss"]
    assert history.epochs[-1]["validation_right"] == after["right"] > 0.8
    assert history.series("validation_right")[-1] == after["right"]
    assert history.names == ["loss", "right", "validation_loss", "validation_right"]


def test_evaluation_counts_every_sample_alike_whatever_its_batch() -> None:
    model = problem.make().model
    found = [
        train.evaluate(
            model,
            data.DataLoader(problem.samples(), size),
            loss=nn.functional.cross_entropy,
            metrics=[train.accuracy],
            backend="numpy",
        )
        for size in (problem.SAMPLES, 9, 1)
    ]
    assert found[0]["accuracy"] == found[1]["accuracy"] == found[2]["accuracy"]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-6)
    assert found[0]["loss"] == pytest.approx(found[2]["loss"], rel=1e-6)


def test_a_scalar_metric_is_weighted_by_samples() -> None:
    def largest(outputs: Any, targets: Any) -> Any:
        return outputs.max() * 0 + targets.astype("float32").mean()

    labels = np.array([0, 0, 0, 2])
    loader = data.DataLoader(data.ArrayDataset(np.ones((4, problem.FEATURES), np.float32), labels), 3)
    found = train.evaluate(problem.make().model, loader, metrics=[largest], backend="numpy")
    assert found == {"largest": 0.5}


def test_modes_are_eval_meanwhile_and_afterwards_as_they_were() -> None:
    run = problem.make(dropout=0.5)
    seen: list[bool] = []

    def probe(outputs: Any, targets: Any) -> Any:
        seen.append(run.model.training)
        return train.accuracy(outputs, targets)

    frozen = next(module for module in run.model.modules() if isinstance(module, nn.Dropout))
    frozen.training = False
    train.evaluate(run.model, run.loader, metrics=[probe], backend="numpy")
    assert run.model.training
    assert not frozen.training
    assert seen == [False, False]  # traced once for each size of batch
    run.model.eval()
    run.fit(1)
    assert run.model.training  # fit switches a model in eval mode to train mode
    assert frozen.training


def test_a_part_that_is_frozen_in_eval_mode_stays_so() -> None:
    run = problem.make(dropout=0.5)
    frozen = next(module for module in run.model.modules() if isinstance(module, nn.Dropout))
    frozen.eval()
    run.fit(1, validation=run.loader)
    assert not frozen.training


def test_schedule_by_step_and_by_epoch() -> None:
    run = problem.make()
    run.fit(2)
    assert run.schedule.last_epoch == 10
    run = problem.make()
    run.fit(2, schedule_every="epoch")
    assert run.schedule.last_epoch == 2


def test_callbacks_see_the_history_and_may_stop() -> None:
    counts: list[int] = []

    def watch(history: train.History) -> bool:
        counts.append(len(history.epochs))
        return len(history.epochs) == 3

    history = problem.make().fit(10, callbacks=[watch])
    assert counts == [1, 2, 3]
    assert len(history.epochs) == 3
    assert not history.interrupted


def test_models_of_several_inputs_and_loaders_that_are_lists() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            self.weight = nn.Parameter([0.0])

        def forward(self, a: Any, b: Any) -> Any:
            return (a + b) * self.weight

    model = Sum()
    one = np.ones((4,), np.float32)
    history = train.fit(
        model,
        [(one, one, 2 * one), (one, 3 * one, 4 * one)],
        loss=nn.functional.mse_loss,
        optimizer=optim.SGD(model.parameters(), lr=0.05),
        epochs=20,
        progress=False,
        backend="numpy",
    )
    assert model.weight.item() == pytest.approx(1.0, abs=1e-3)
    assert len(history.losses) == 40


def test_multiple_validation_sets_have_their_names() -> None:
    run = problem.make()
    history = run.fit(1, validation={"test": run.loader, "again": run.loader})
    assert history.names == ["loss", "accuracy", "test_loss", "test_accuracy", "again_loss", "again_accuracy"]
    assert history.epochs[0]["test_accuracy"] == history.epochs[0]["again_accuracy"]


# ---- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs is -1; expected a whole number of at least 0"),
        ({"epochs": True}, "epochs is True"),
        ({"schedule_every": "batch"}, 'expected "step" or "epoch"'),
        ({"metrics": train.accuracy}, r"write metrics=\[function\]"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        problem.make().fit(**{"epochs": 1, **options})


def test_an_iterator_is_refused_before_training() -> None:
    run = problem.make()
    with pytest.raises(ArgumentError, match="ends after one epoch"):
        problem.Problem(run.model, iter(run.loader), run.optimizer, run.schedule).fit(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([np.ones((2, problem.FEATURES))], "the loader gave a ndarray; expected a tuple"),
        ([(np.float32(1), np.ones(1))], "an input without axes"),
        ([], "the loader gave no batch"),
    ],
)
def test_bad_batches(batches: list[Any], message: str) -> None:
    run = problem.make()
    with pytest.raises(DataError, match=message):
        problem.Problem(run.model, batches, run.optimizer, run.schedule).fit(1)  # type: ignore[arg-type]


def test_a_loss_that_is_not_a_scalar_is_explained() -> None:
    with pytest.raises(ArgumentError, match=r"gave a Tensor of shape \(16, 3\); expected a scalar tensor"):
        problem.make().fit(1, loss=lambda outputs, targets: outputs)


def test_evaluate_needs_something_to_measure() -> None:
    run = problem.make()
    with pytest.raises(ArgumentError, match="needs a loss or metrics"):
        train.evaluate(run.model, run.loader)


def test_a_loss_that_is_not_finite_ends_the_training_with_advice() -> None:
    run = problem.make(lr=1e30)
    with pytest.raises(
        NumericError, match=r"the loss became (nan|inf) at step \d+, in epoch \d+; the learning rate"
    ):
        run.fit(20)


def test_a_label_out_of_range_leaves_the_weights_as_they_were() -> None:
    run = problem.make()
    before = run.model.state_dict()
    inputs = np.ones((2, problem.FEATURES), np.float32)
    bad = problem.Problem(run.model, [(inputs, np.array([0, 9]))], run.optimizer, run.schedule)  # type: ignore[arg-type]
    with pytest.raises(tw.errors.IndexRangeError):
        bad.fit(1)
    assert all(np.array_equal(before[name], value) for name, value in run.model.state_dict().items())


# ---- Ctrl-C ------------------------------------------------------------------------------------------------


def interrupting(step: int) -> Any:
    """A metric-like transform of the loader that sends SIGINT before a certain batch."""
    count = [0]

    def transform(inputs: Any) -> Any:
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), signal.SIGINT)
        return inputs

    return transform


def interruptible(step: int) -> problem.Problem:
    run = problem.make()
    run.loader.transform = interrupting(step)
    run.loader.prefetch = 0
    return run


def test_ctrl_c_stops_after_the_step_and_keeps_the_work(tmp_path: Path) -> None:
    run = interruptible(7)
    handler = signal.getsignal(signal.SIGINT)
    history = run.fit(5, checkpoint=tmp_path / "c.safetensors")
    assert history.interrupted
    assert len(history.losses) == 7
    assert len(history.epochs) == 1
    assert run.schedule.last_epoch == 7
    assert train.read_checkpoint(tmp_path / "c.safetensors").step == 7
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_says_what_happened_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interruptible(7).fit(5, checkpoint=tmp_path / "c.safetensors", progress=True)
    shown = capsys.readouterr()
    assert shown.err.strip() == "stopping after this step (Ctrl-C again: at once)"
    assert shown.out.splitlines()[-1] == (
        f"stopped after step 7, in epoch 2 of 5; the checkpoint is {tmp_path / 'c.safetensors'}"
    )


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    run = problem.make()
    run.loader.prefetch = 0

    def twice(inputs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return inputs

    run.loader.transform = twice
    with pytest.raises(KeyboardInterrupt):
        run.fit(1)


def test_fit_in_another_thread_leaves_signals_alone() -> None:
    found: list[train.History] = []
    thread = threading.Thread(target=lambda: found.append(problem.make().fit(1)))
    thread.start()
    thread.join()
    assert len(found[0].epochs) == 1


def test_a_program_that_handles_ctrl_c_itself_keeps_its_handler() -> None:
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        history = interruptible(2).fit(1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught == [signal.SIGINT]
    assert not history.interrupted


# ---- what is shown -----------------------------------------------------------------------------------------


def test_each_epoch_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    run = problem.make()
    run.fit(2, progress=True, validation={"test": run.loader})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2  loss ")
    for word in ("accuracy 0.", "test loss ", "test accuracy 0.", " samples/s"):
        assert word in lines[0]


def test_nothing_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    problem.make().fit(1)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_a_live_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    problem.make().fit(2, progress=True)
    shown = capsys.readouterr().err
    assert "epoch 2/2" in shown
    assert "samples/s" in shown
