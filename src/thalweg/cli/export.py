"""`thalweg export`: a network's training step or forward pass as a C program that fits a device's memory."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg import optim
from thalweg.cli import runs
from thalweg.cli.arguments import suggestion
from thalweg.cli.sources import STATISTICS
from thalweg.errors import DataError, MemoryLimitError
from thalweg.nn import functional
from thalweg.nn.module import Module
from thalweg.nn.quantised import quantize
from thalweg.tensor import compile, manual_seed, spec

MOST_LISTED = 8  # parameters by name in one line


def export(options: argparse.Namespace) -> int:
    """The command: files in a directory, and what they hold."""
    model, data, said = _weights(options)
    if options.quantize is not None:
        if not options.inference:
            raise DataError(
                f"--quantize {options.quantize} is for --inference; training needs float32 weights"
            )
        quantize(model, options.quantize)
        said += f", linear layers in {options.quantize}"
    directory = runs.usable(Path(options.output))
    tried: list[_Candidate] = []
    chosen = _chosen(model, data, options, tried)
    made = chosen.exported
    if tried:
        made.remarks = _remarks(tried, options.fit_memory)
    made.write(directory)
    print(f"weights: {said}")
    for candidate in tried:
        print(f"{'chosen' if candidate is chosen else 'tried'}: {candidate.bytes:>11,} bytes, {candidate}")
    if not options.inference:
        print(f"training: {chosen}")
    print(f"functions: {', '.join(f'{made.name}_{function.name}' for function in made.functions)}")
    print(
        f"memory: {made.memory_bytes:,} bytes (state {made.state_bytes:,}, arena {made.arena_bytes:,}, "
        f"scratch {made.scratch_bytes:,}) and {made.argument_bytes:,} for inputs and outputs"
    )
    print(f"output: {directory} (README.md says more; `make -C {directory}` builds it)")
    return 0


def _remarks(tried: Sequence[_Candidate], limit: int) -> str:
    """README.md's words on the choice; the last candidate is the one that fits."""
    rows = "\n".join(f"| {candidate} | {candidate.bytes:,} |" for candidate in tried)
    return (
        f"## The choice\n\n`--fit-memory` gave {limit:,} bytes for the struct and a call's inputs and "
        f"outputs. Of what was tried, in this order, the last fits:\n\n"
        f"| program | bytes |\n|---|---|\n{rows}\n"
    )


def _weights(options: argparse.Namespace) -> tuple[Module, str, str]:
    """The network, the data set whose normalisation it takes, and in words where its weights are from."""
    if options.checkpoint is None:
        manual_seed(0)
        return runs.make_model(options.model), "mnist", "new, seed 0 (--checkpoint takes trained ones)"
    path = runs.checkpoint_path(options.checkpoint)
    saved = runs.open_checkpoint(path)
    if saved.metadata["model"] != options.model:
        raise DataError(f"{str(path)!r} holds a {saved.metadata['model']}, not a {options.model}")
    return runs.load_model(saved).train(), saved.metadata["data"], str(path)


@dataclass(frozen=True)
class _Choice:
    """What is trained, and on how many samples at a time."""

    names: tuple[str, ...]  # of the parameters that are updated
    batch_size: int


@dataclass(frozen=True)
class _Candidate:
    """The program of one choice, not written yet."""

    words: str
    exported: Any

    @property
    def fitted(self) -> Any:
        """How the step was changed to fit, or None."""
        return self.exported.functions[0].plan.fitted

    @property
    def bytes(self) -> int:
        """What --fit-memory limits."""
        return int(self.exported.memory_bytes + self.exported.argument_bytes)

    def __str__(self) -> str:
        if self.fitted is None:
            return self.words
        return f"{self.words}, with {self.fitted.change} (about {self.fitted.slowdown:.2f} x the time)"


def _chosen(model: Module, data: str, options: argparse.Namespace, tried: list[_Candidate]) -> _Candidate:
    """The first program that fits; `tried` gets it and what was tried before.

    Parameters with which not even the smallest batch fits are not tried with others. Raises `DataError` where
    nothing fits.
    """
    sets, sizes = _choices(model, options)
    if options.fit_memory is None:
        return _candidate(model, data, _Choice(sets[0], sizes[0]), options)
    made: dict[_Choice, list[_Candidate]] = {}

    def fits(choice: _Choice) -> bool:
        if choice not in made:
            made[choice] = _programs(model, data, choice, options)
        return bool(made[choice][-1].bytes <= options.fit_memory)

    for number, names in enumerate(sets):
        choices = [_Choice(names, size) for size in sizes]
        asked = choices[:1] if number == 0 else []
        if not any(map(fits, asked)) and not fits(choices[-1]):
            choices = [*asked, choices[-1]]
        for choice in dict.fromkeys(choices):
            fitting = fits(choice)
            tried += made[choice]
            if fitting:
                return tried[-1]
    raise _refusal(model, data, choices[-1], options, tried)


def _programs(model: Module, data: str, choice: _Choice, options: argparse.Namespace) -> list[_Candidate]:
    """The program of one choice and, where that is too large, the changed one."""
    plain = _candidate(model, data, choice, options)
    changed = _changed(model, data, choice, options, plain) if plain.bytes > options.fit_memory else None
    return [plain] if changed is None else [plain, changed]


def _changed(
    model: Module, data: str, choice: _Choice, options: argparse.Namespace, plain: _Candidate
) -> _Candidate | None:
    """The same training step with values computed again or the batch in parts: within the limit where
    possible, else in the least memory; None where that saves nothing or the rest alone is too large."""
    plan, made = plain.exported.functions[0].plan, plain.exported
    kept = plain.bytes - made.arena_bytes - made.scratch_bytes
    if kept >= options.fit_memory:
        return None
    planned = plan.total_bytes(1) - plan.arena_bytes - plan.thread_bytes  # also counts what lies in flash
    limit = planned + options.fit_memory - kept
    try:
        return _candidate(model, data, choice, options, limit)
    except MemoryLimitError as error:
        if error.least >= plan.total_bytes(1):
            return None
        return _candidate(model, data, choice, options, error.least)


def _refusal(
    model: Module,
    data: str,
    last: _Choice,
    options: argparse.Namespace,
    tried: Sequence[_Candidate],
) -> DataError:
    """What was found, and the smallest change with which it would fit."""
    least = min(tried, key=lambda candidate: candidate.bytes)
    bias = _Choice(last.names[-1:], last.batch_size)
    changes: list[tuple[str, _Choice, dict[str, Any]]] = []
    if not options.inference and options.momentum:
        changes.append(("--momentum 0", last, {"momentum": 0.0}))
    if not options.inference and options.update is not None:
        changes.append((f"--update {bias.names[0]}", bias, {}))
        changes.append((f"--update {bias.names[0]} --momentum 0", bias, {"momentum": 0.0}))
    if not options.inference:
        changes.append(("--inference", last, {"inference": True}))
    for words, choice, settings in changes:
        changed = argparse.Namespace(**{**vars(options), **settings})
        found = _candidate(model, data, choice, changed)
        if found.bytes <= options.fit_memory:
            advice = f"{words}: {found.bytes:,} bytes ({found})"
            break
    else:
        advice = f"--fit-memory {least.bytes}"
    return DataError(
        f"nothing fits into {options.fit_memory:,} bytes; the least found needs {least.bytes:,} ({least})\n"
        f"  the smallest change that fits: {advice}"
    )


def _choices(model: Module, options: argparse.Namespace) -> tuple[list[tuple[str, ...]], list[int]]:
    """What may be trained, as asked first, then only the last layers; and sizes of the batch."""
    every = [name for name, _ in model.named_parameters()]
    sizes = [options.batch_size or (1 if options.inference else 16)]
    while options.fit_memory is not None and sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    sets = [every if options.update is None else _matching(every, options.update)]
    if options.fit_memory is not None and options.update is None and not options.inference:
        layer = {name: name.rpartition(".")[0] for name in every}
        layers = list(dict.fromkeys(layer.values()))
        sets += [[n for n in every if layer[n] in layers[first:]] for first in range(1, len(layers))]
        sets.append([n for n in every if layer[n] == layers[-1] and n.endswith("bias")])
    return [tuple(names) for names in sets], sizes


def _matching(every: Sequence[str], words: Sequence[str]) -> list[str]:
    """The parameters that --update names: a parameter, a layer, or "biases"."""
    found: list[str] = []
    for word in words:
        fitting = [name for name in every if _named(name, word)]
        if not fitting:
            known = [*dict.fromkeys(n.rpartition(".")[0] for n in every), *every, "biases"]
            raise DataError(
                f"--update: there is no parameter or layer {word!r}; write one of {', '.join(known)}"
                + suggestion(word, known)
            )
        found += fitting
    return [name for name in every if name in found]


def _named(name: str, word: str) -> bool:
    return name == word or name.startswith(word + ".") or (word == "biases" and name.endswith("bias"))


def _candidate(
    model: Module, data: str, choice: _Choice, options: argparse.Namespace, limit: int | None = None
) -> _Candidate:
    """The program of one choice, its training step changed so that it needs at most `limit` bytes."""
    for name, parameter in model.named_parameters():
        parameter.trainable = name in choice.names

    def predict(images: Any) -> Any:
        training = model.training
        model.eval()
        scores = model(images)
        model.train(training)
        return scores

    settings: dict[str, Any] = {
        "name": options.model,
        "embed_weights": options.embed or options.fit_memory is not None,
        "normalisation": STATISTICS[data],
    }
    images, words = _images(choice.batch_size), f"batches of {choice.batch_size}"
    if options.inference:
        function = compile(predict, threads=1, memory_limit=limit)
        return _Candidate(words, function.export_c(None, images, **settings))
    trained = [parameter for parameter in model.parameters() if parameter.trainable]
    optimizer = optim.SGD(trained, lr=options.lr, momentum=options.momentum)

    def train(images: Any, labels: Any) -> Any:
        loss = functional.cross_entropy(model(images), labels)
        optimizer.minimize(loss)
        return loss

    words += f", updates {_listed(choice.names, len(list(model.parameters())))}"
    also = {"predict": (compile(predict), _images(1))}
    function = compile(train, threads=1, memory_limit=limit)
    labels = spec((choice.batch_size,), "int64")
    return _Candidate(words, function.export_c(None, images, labels, functions=also, **settings))


def _listed(names: Sequence[str], every: int) -> str:
    """Parameters in words, of `every` that there are."""
    if len(names) == every:
        return "all parameters"
    if len(names) <= MOST_LISTED:
        return ", ".join(names)
    return f"{names[0]}, ..., {names[-1]} ({len(names)} of {every} parameters)"


def _images(batch_size: int) -> Any:
    return spec((batch_size, 1, 28, 28), "float32")
