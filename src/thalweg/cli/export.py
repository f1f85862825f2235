"""`thalweg export`: a network's training step or forward pass as a C program that fits a device's memory."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg import optim
from thalweg.cli import runs
from thalweg.cli.arguments import suggestion
from thalweg.cli.sources import STATISTICS
from thalweg.errors import DataError
from thalweg.nn import functional
from thalweg.nn.module import Module
from thalweg.nn.quantised import quantize
from thalweg.tensor import compile, manual_seed, spec


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
    choice, made = _chosen(model, data, options, directory)
    print(f"weights: {said}")
    if not options.inference:
        print(f"training: batches of {choice.batch_size}, updates {choice.words(model)}")
    print(f"functions: {', '.join(f'{made.name}_{function.name}' for function in made.functions)}")
    print(
        f"memory: {made.memory_bytes:,} bytes (state {made.state_bytes:,}, arena {made.arena_bytes:,}, "
        f"scratch {made.scratch_bytes:,}) and {_arguments(made):,} for inputs and outputs"
    )
    print(f"output: {directory} (README.md says more; `make -C {directory}` builds it)")
    return 0


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

    def words(self, model: Module) -> str:
        every = [name for name, _ in model.named_parameters()]
        return "all parameters" if len(self.names) == len(every) else ", ".join(self.names)


def _chosen(model: Module, data: str, options: argparse.Namespace, directory: Path) -> tuple[_Choice, Any]:
    """The first choice that fits, written to the directory. Raises `DataError` where none does."""
    least: tuple[int, _Choice] | None = None
    for choice in _choices(model, options):
        if options.fit_memory is None:
            return choice, _export(model, data, choice, options, directory)
        with tempfile.TemporaryDirectory() as place:
            made = _export(model, data, choice, options, Path(place))
        needed = made.memory_bytes + _arguments(made)
        if needed <= options.fit_memory:
            return choice, made.write(directory)
        if least is None or needed < least[0]:
            least = needed, choice
    assert least is not None
    needed, choice = least
    what = "" if options.inference else f" (batches of {choice.batch_size}, updating {choice.words(model)})"
    hint = "; --momentum 0 needs less" if options.momentum and not options.inference else ""
    raise DataError(
        f"nothing fits into {options.fit_memory:,} bytes; the least found needs {needed:,}{what}{hint}"
    )


def _choices(model: Module, options: argparse.Namespace) -> Iterator[_Choice]:
    """What may be trained: as much as possible first, then smaller batches, then only the last layers."""
    every = [name for name, _ in model.named_parameters()]
    sizes = [options.batch_size or (1 if options.inference else 16)]
    while options.fit_memory is not None and sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    names = every if options.update is None else _matching(every, options.update)
    sets = [names]
    if options.fit_memory is not None and options.update is None and not options.inference:
        layer = {name: name.rpartition(".")[0] for name in every}
        layers = list(dict.fromkeys(layer.values()))
        sets += [[n for n in every if layer[n] in layers[first:]] for first in range(1, len(layers))]
        sets.append([n for n in every if layer[n] == layers[-1] and n.endswith("bias")])
    for chosen in sets:
        for size in sizes:
            yield _Choice(tuple(chosen), size)


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


def _export(model: Module, data: str, choice: _Choice, options: argparse.Namespace, directory: Path) -> Any:
    """Write the program of one choice."""
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
    if options.inference:
        return compile(predict).export_c(directory, _images(choice.batch_size), **settings)
    trained = [parameter for parameter in model.parameters() if parameter.trainable]
    optimizer = optim.SGD(trained, lr=options.lr, momentum=options.momentum)

    def train(images: Any, labels: Any) -> Any:
        loss = functional.cross_entropy(model(images), labels)
        optimizer.minimize(loss)
        return loss

    examples = _images(choice.batch_size), spec((choice.batch_size,), "int64")
    also = {"predict": (compile(predict), _images(1))}
    return compile(train).export_c(directory, *examples, functions=also, **settings)


def _images(batch_size: int) -> Any:
    return spec((batch_size, 1, 28, 28), "float32")


def _arguments(made: Any) -> int:
    """Bytes of the inputs and outputs of one call, at most."""
    return max(
        sum(
            int(value.type.nbytes) for value in (*f.plan.graph.inputs[: len(f.inputs)], *f.plan.graph.outputs)
        )
        for f in made.functions
    )
