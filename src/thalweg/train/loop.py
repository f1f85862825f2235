"""The training loop: `fit` and `evaluate`.

In: a model, a loader of batches, a loss, an optimiser. Out: a trained model and the `History` of its
training. One training step (forward, loss, gradient, update, sums of the metrics) is one compiled program.
Called by users and the command line.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.errors import ArgumentError, CompilerError, DataError, NumericError
from thalweg.tensor import Generator, Tensor, compile, default_generator
from thalweg.train.checkpoint import Path, read_checkpoint, save_checkpoint
from thalweg.train.history import History
from thalweg.train.metrics import Average, Metric, named_metrics, summed
from thalweg.train.progress import Bar, Interrupt, Wording, line, numbers
from thalweg.train.receipt import Recorder, Replay

if TYPE_CHECKING:
    from thalweg.nn.module import Module
    from thalweg.optim import Optimizer, Schedule

__all__ = ["evaluate", "fit"]

Loss = Callable[[Any, Any], Any]
Metrics = Mapping[str, Metric] | Iterable[Metric] | None
Callback = Callable[[History], Any]


def fit(
    model: Module,
    loader: Any,
    *,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    validation: Any = None,
    metrics: Metrics = None,
    schedule: Schedule | None = None,
    schedule_every: str = "step",
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    checkpoint: Path | None = None,
    resume: Path | None = None,
    generator: Generator | None = None,
    metadata: Mapping[str, str] | None = None,
    backend: str | None = None,
    checkpoint_every: int | None = None,
    witness: Recorder | Replay | None = None,
) -> History:
    """Train `model` for `epochs` passes over `loader` and return the history of losses and metrics.

    * `loader` gives batches `(inputs, targets)`, or `(input1, input2, ..., targets)` for a model of several
      inputs: a `data.DataLoader`, or anything that can be iterated over once per epoch. A last batch of
      another size is trained on like the others (with a program of its own); `DataLoader(drop_last=True)`
      leaves it out.
    * `loss(outputs, targets)` gives the scalar to be minimised, the mean over the batch.
    * `metrics`: functions of (outputs, targets), such as `[train.accuracy]`; each gives a value per sample or
      a scalar.
    * `validation`: a loader that the model is evaluated on after every epoch; for another name in the history
      than "validation", or for several, a dict: `{"test": loader}`. In place of a loader there may be a
      function that takes nothing and gives measurements, such as `{"loss": 1.5}`; the model is in eval mode
      then.
    * `schedule` is stepped after every "step" or "epoch" (`schedule_every`).
    * `callbacks` are called with the history after every epoch; one that returns True ends the training.
    * `checkpoint`: a file that is written after every epoch, after every `checkpoint_every` steps, and when
      Ctrl-C stops the training; `metadata` goes into it. `resume`: such a file, whose run is continued until
      it has `epochs` epochs, exactly as if it had never stopped (`generator` is the one that the model's
      random layers use: the default one unless given).
    * `witness`: `train.Recorder(path)` writes a receipt of the run, `train.Replay(path)` compares it with
      one.

    Ctrl-C ends the training after the current step: the model is as trained so far, the checkpoint is written
    and the history returned. Raises `NumericError` when the loss is no longer finite.
    """
    run = _Run(model, loader, optimizer, epochs, schedule, schedule_every, generator)
    run.evaluator = _Evaluator(model, loss, named_metrics(metrics), backend)
    run.step = _training_step(model, loss, run.evaluator.metrics, optimizer, backend)
    run.validation = validation if isinstance(validation, Mapping) else {"validation": validation}
    if validation is None:
        run.validation = {}
    run.callbacks, run.shown = tuple(callbacks), progress
    run.checkpoint, run.metadata = checkpoint, dict(metadata or {})
    run.checkpoint_every, run.witness, run.backend = _steps_between(checkpoint_every), witness, backend
    if resume is not None:
        run.resume(resume)
    return run.go()


def evaluate(
    model: Module,
    loader: Any,
    *,
    loss: Loss | None = None,
    metrics: Metrics = None,
    progress: bool = False,
    backend: str | None = None,
) -> dict[str, float]:
    """The mean of `loss` and of each metric over all samples of `loader`, without training.

    Returns a dict: "loss" (if given) and the metrics' names. The model is in eval mode meanwhile and
    afterwards as it was. Every sample counts alike, whatever batch it is in.
    """
    found = named_metrics(metrics)
    if loss is None and not found:
        raise ArgumentError("evaluate needs a loss or metrics; write for example metrics=[train.accuracy]")
    return _Evaluator(model, loss, found, backend).run(loader, progress)


# ---- programs ----------------------------------------------------------------------------------------------


def _training_step(
    model: Module, loss: Loss, metrics: Mapping[str, Metric], optimizer: Optimizer, backend: str | None
) -> Any:
    def train_step(inputs: Sequence[Any], targets: Any) -> Any:
        outputs = model(*inputs)
        value = _scalar(loss(outputs, targets))
        sums = _sums(metrics, outputs, targets, inputs[0].shape[0])
        optimizer.minimize(value)
        return value, sums

    return compile(train_step, backend=backend)


def _scalar(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.size != 1:
        shape = f" of shape {value.shape}" if isinstance(value, Tensor) else ""
        raise ArgumentError(
            f"loss(outputs, targets) gave a {type(value).__name__}{shape}; expected a scalar tensor, the "
            "mean over the batch: write .mean() at its end"
        )
    return value


def _sums(
    metrics: Mapping[str, Metric], outputs: Any, targets: Any, samples: int
) -> dict[str, tuple[Any, int]]:
    return {name: summed(metric(outputs, targets), samples) for name, metric in metrics.items()}


class _Evaluator:
    """The compiled evaluation of one model, used again for every epoch."""

    def __init__(
        self, model: Module, loss: Loss | None, metrics: dict[str, Metric], backend: str | None
    ) -> None:
        self.model = model
        self.metrics = metrics
        self.names = [*(() if loss is None else ("loss",)), *metrics]

        def evaluation_step(inputs: Sequence[Any], targets: Any) -> Any:
            outputs = model(*inputs)
            value = None if loss is None else _scalar(loss(outputs, targets))
            return value, _sums(metrics, outputs, targets, inputs[0].shape[0])

        self.step = compile(evaluation_step, backend=backend)

    def run(self, loader: Any, shown: bool) -> dict[str, float]:
        averages = {name: Average() for name in self.names}
        bar = Bar("evaluation", _length(loader), 0, shown)
        with _evaluation_mode(self.model):
            try:
                for batch in loader:
                    inputs, targets, count = _parts(batch)
                    value, sums = self.step(inputs, targets)
                    _add(averages, value, sums, count)
                    bar.advance(count, averages)
            finally:
                bar.close()
        return {name: average.value for name, average in averages.items()}


def _add(averages: Mapping[str, Average], value: Any, sums: Mapping[str, Any], samples: int) -> None:
    """Count one batch; its scalars are means over its samples."""
    if value is not None:
        averages["loss"].add(float(value) * samples, samples)
    for name, (total, count) in sums.items():
        if count:
            averages[name].add(total.item(), count)
        else:
            averages[name].add(float(total) * samples, samples)


@contextmanager
def _evaluation_mode(model: Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            if module.training is not training:
                module.training = training


def _parts(batch: Any) -> tuple[list[Any], Any, int]:
    """Inputs, targets and number of samples of a batch."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise DataError(
            f"the loader gave a {type(batch).__name__}; expected a tuple (inputs, targets). To reconstruct "
            "the inputs themselves give the data set as ArrayDataset(images, images)"
        )
    *inputs, targets = (part if isinstance(part, Tensor) else np.asarray(part) for part in batch)
    if not inputs[0].ndim:
        raise DataError("the loader gave an input without axes; expected batches [N, ...]")
    return inputs, targets, int(inputs[0].shape[0])


def _steps_between(count: int | None) -> int | None:
    """Training steps from one checkpoint to the next."""
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ArgumentError(f"checkpoint_every is {count!r}; expected a whole number of steps, or None")
    return count


def _length(loader: Any) -> int | None:
    """Samples of a whole pass, where the loader tells."""
    dataset = getattr(loader, "dataset", None)
    if dataset is None:
        return getattr(loader, "samples", None)
    if getattr(loader, "drop_last", False):
        return len(loader) * int(loader.batch_size)
    return len(dataset)


# ---- one run -----------------------------------------------------------------------------------------------


class _Run:
    """One call of `fit`."""

    evaluator: _Evaluator
    step: Any
    validation: Mapping[str, Any]
    callbacks: tuple[Callback, ...]
    shown: bool
    checkpoint: Path | None
    metadata: dict[str, str]
    checkpoint_every: int | None
    witness: Recorder | Replay | None
    backend: str | None

    def __init__(
        self,
        model: Module,
        loader: Any,
        optimizer: Optimizer,
        epochs: int,
        schedule: Schedule | None,
        schedule_every: str,
        generator: Generator | None,
    ) -> None:
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
            raise ArgumentError(f"epochs is {epochs!r}; expected a whole number of at least 0")
        if schedule_every not in ("step", "epoch"):
            raise ArgumentError(f'schedule_every is {schedule_every!r}; expected "step" or "epoch"')
        if isinstance(loader, Iterator):
            raise ArgumentError(
                "the loader is an iterator, which ends after one epoch; pass a list or a DataLoader"
            )
        self.model, self.loader, self.optimizer, self.epochs = model, loader, optimizer, epochs
        self.schedule, self.schedule_every = schedule, schedule_every
        self.generator = generator or default_generator
        self.history = History()
        self.averages: dict[str, Average] = {}

    def resume(self, path: Path) -> None:
        saved = read_checkpoint(path)
        loader = self.loader if hasattr(self.loader, "load_state_dict") else None
        if loader is None and saved.averages:
            raise ArgumentError(
                f"{os.fspath(path)!r} was saved in the middle of an epoch; to continue there the loader "
                "needs state_dict and load_state_dict, as data.DataLoader has"
            )
        saved.restore(
            self.model, self.optimizer, schedule=self.schedule, loader=loader, generator=self.generator
        )
        self.history = saved.history
        if saved.averages:
            self.averages = {name: saved.averages.get(name, Average()) for name in self.evaluator.names}

    def go(self) -> History:
        began = time.perf_counter()
        if not self.model.training:
            self.model.train()
        failure: DataError | None = None
        if self.witness is not None:
            done = len(self.history.losses)
            self.witness.begin(
                self.model,
                self.optimizer,
                self.generator,
                self.loader,
                done,
                bool(self.averages),
                self.backend,
            )
        with Interrupt(self.shown) as interrupt:
            while len(self.history.epochs) < self.epochs and not interrupt.requested:
                finished = self._epoch(interrupt)
                failure = self._save()
                self.history.seconds = time.perf_counter() - began
                if finished and self._callbacks():
                    break
                if failure is not None and len(self.history.epochs) < self.epochs and not interrupt.requested:
                    warnings.warn(f"{failure}; the training goes on", stacklevel=3)
        if interrupt.requested and len(self.history.epochs) < self.epochs:
            self.history.interrupted = True
            self._say_stopped(saved=failure is None)
        if self.witness is not None:
            self.witness.end()
        if failure is not None:
            raise failure
        return self.history

    def _say_stopped(self, saved: bool) -> None:
        where = f"; the checkpoint is {os.fspath(self.checkpoint)}" if self.checkpoint and saved else ""
        done, epoch = len(self.history.losses), len(self.history.epochs) + bool(self.averages)
        line(f"stopped after step {done}, in epoch {epoch} of {self.epochs}{where}", self.shown)

    def _callbacks(self) -> bool:
        """Call all of them; whether one asks to stop."""
        answers = [callback(self.history) for callback in self.callbacks]
        return any(answers)

    def _epoch(self, interrupt: Interrupt) -> bool:
        """Train for one epoch, or the rest of one; False if it was interrupted."""
        number = len(self.history.epochs) + 1
        if not self.averages:
            self.averages = {name: Average() for name in self.evaluator.names}
        wording = getattr(self.loader, "wording", Wording())
        title = f"epoch {number}/{self.epochs}"
        done = self.averages["loss"].count
        bar = Bar(title, _length(self.loader), done, self.shown, wording)
        try:
            self._steps(bar, interrupt)
        except CompilerError:
            if not interrupt.requested:  # Ctrl-C reaches the C compiler too
                raise
        finally:
            bar.close()
        if interrupt.requested:
            return False
        if not self.averages["loss"].count:
            raise DataError("the loader gave no batch; is the data set empty, or an iterator used up?")
        values = {name: average.value for name, average in self.averages.items()}
        self.averages = {}
        speed = bar.speed
        for prefix, loader in self.validation.items():
            found = self._measured(loader)
            values.update({f"{prefix}_{name}": value for name, value in found.items()})
        self.history.epochs.append(values)
        if self.schedule is not None and self.schedule_every == "epoch":
            self.schedule.step()
        if self.witness is not None and self.witness.epoch(values):
            interrupt.requested = True
        title = wording.title(number, self.epochs, len(self.history.losses))
        line(f"{title}  {numbers(values)}  {speed}", self.shown)
        return True

    def _measured(self, loader: Any) -> dict[str, float]:
        """What the evaluation on a loader gives, or a function in its place."""
        if not callable(loader):
            return self.evaluator.run(loader, self.shown)
        with _evaluation_mode(self.model):
            return dict(loader())

    def _steps(self, bar: Bar, interrupt: Interrupt) -> None:
        for batch in self.loader:
            inputs, targets, count = _parts(batch)
            value, sums = self.step(inputs, targets)
            loss = float(value)
            self.history.losses.append(loss)
            if not math.isfinite(loss):
                raise self._diverged(loss)
            _add(self.averages, value, sums, count)
            if self.schedule is not None and self.schedule_every == "step":
                self.schedule.step()
            bar.advance(count, self.averages)
            if self.witness is not None and self.witness.stepped(self.step, inputs, targets, loss):
                interrupt.requested = True
            if interrupt.requested:
                return
            if self.checkpoint_every is not None and len(self.history.losses) % self.checkpoint_every == 0:
                failure = self._save()
                if failure is not None:
                    warnings.warn(f"{failure}; the training goes on", stacklevel=5)

    def _diverged(self, loss: float) -> NumericError:
        rates = sorted({f"{group['lr']:g}" for group in self.optimizer.param_groups})
        return NumericError(
            f"the loss became {loss} at step {len(self.history.losses)}, in epoch "
            f"{len(self.history.epochs) + 1}; the learning rate was {', '.join(rates)}: try a tenth of it, "
            "clip the gradients (optim.SGD(..., clip=optim.clip_by_norm(1.0))), and look for NaN in the data"
        )

    def _save(self) -> DataError | None:
        """Write the checkpoint; gives what prevented it."""
        if self.checkpoint is None:
            return None
        try:
            save_checkpoint(
                self.checkpoint,
                self.model,
                self.optimizer,
                schedule=self.schedule,
                loader=self.loader,
                generator=self.generator,
                history=self.history,
                averages=self.averages,
                metadata=self.metadata,
            )
        except DataError as error:
            return error
        if self.witness is not None:
            self.witness.saved()
        return None
