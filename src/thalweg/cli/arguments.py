"""What may be written on the command line.

In: words. Out: a namespace whose `command` is the function to call with it. Wrong usage raises `UsageError`,
whose text says what was received, what is accepted and, where something is close, what was probably meant.
The functions are imported only when they are called, so that `thalweg --help` is quick.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from thalweg.bench.measuring import PEERS
from thalweg.version import __version__

MODELS = ("lenet", "mlp", "resnet", "vit")  # of images
TEXT_MODELS = ("gpt", "lstm")
# Options of `train` that only one of the two kinds has.
IMAGE_OPTIONS = ("data", "data_dir", "epochs", "momentum", "augment")
TEXT_OPTIONS = (
    "text",
    "tokenizer",
    "layers",
    "heads",
    "width",
    "context",
    "dropout",
    "steps",
    "warmup",
    "weight_decay",
    "evaluate_every",
    "sample",
)
SCHEDULES = ("none", "cosine", "step", "onecycle")

_DESCRIPTION = "Train, evaluate and inspect networks. Each command has its own --help."
_EPILOG = """\
examples:
  thalweg train lenet                       MNIST where it can be had, else the digits in the package
  thalweg train lenet --data mnist --epochs 12
  thalweg train gpt --text book.txt
  thalweg generate runs/gpt-1 --prompt "Once upon a time"
  thalweg evaluate                          the network trained last in ./runs
  thalweg predict seven.png
  thalweg graph lenet --gradient -o step.svg
  thalweg plan lenet --batch-size 64
  thalweg export lenet --to c -o lenet-c
"""


class UsageError(Exception):
    """The command line cannot be understood; the text says why."""


class _Parser(argparse.ArgumentParser):
    """Without abbreviated options (what is close is suggested instead), and with errors as exceptions."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, formatter_class=form, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '?([^'\s]*)'? \(choose from (.*)\)", message)
        if choice is not None:
            known = [word.strip(" '") for word in choice.group(2).split(",")]
            what = message.partition(":")[0].removeprefix("argument ")
            message = f"{what}: there is no {choice.group(1)!r}; write one of {', '.join(known)}"
            message += suggestion(choice.group(1), known)
        raise UsageError(f"{self.prog}: {message}\nSee {self.prog} --help.")

    def options(self) -> list[str]:
        """Every option that it knows."""
        return [text for action in self._actions for text in action.option_strings if text.startswith("--")]


def suggestion(word: str, known: Sequence[str]) -> str:
    """What was probably meant, or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f". Did you mean {close[0]}?" if close else ""


def _either(names: Sequence[str]) -> str:
    """`lenet, mlp or gpt`."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; raises `UsageError`."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    used: _Parser = options.parser
    if options.command.__name__ == "train" and options.model is None and options.resume is None:
        used.error(f"name the model to train: {_either(MODELS + TEXT_MODELS)}")
    if rest:
        word = rest[0].partition("=")[0]
        if word.startswith("-"):
            hint = suggestion(word, used.options())
            raise UsageError(f"{used.prog}: there is no option {word}{hint}\nSee {used.prog} --help.")
        raise UsageError(f"{used.prog}: {word!r} is one word too many\nSee {used.prog} --help.")
    return options


def _parser() -> _Parser:
    parser = _Parser("thalweg", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"thalweg {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True, parser_class=_Parser, title="commands")

    def command(name: str, module: str, text: str) -> _Parser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.set_defaults(command=_later(module, name), parser=added)
        return added

    _train(command("train", "training", "train a network"))
    evaluate = command("evaluate", "inference", "measure a trained network on test images")
    evaluate.add_argument("checkpoint", nargs="?", help="default: the last one trained in ./runs")
    _data(evaluate, "default: what the network was trained on")
    _running(evaluate)
    evaluate.add_argument("--batch-size", type=_at_least_one, help="images at a time")
    predict = command("predict", "inference", "say which digit a picture shows")
    predict.add_argument(
        "paths",
        nargs="+",
        metavar="[CHECKPOINT] FILE.png",
        help="pictures; before them a checkpoint (.safetensors), by default the last one trained in ./runs",
    )
    _running(predict)
    _language(command)
    verify = command("verify", "verification", "repeat a training run and compare it with its receipt")
    verify.add_argument("receipt", metavar="receipt.json", help="what train --receipt has written")
    verify.add_argument("--from", dest="resume", metavar="CHECKPOINT", help="begin behind this checkpoint")
    verify.add_argument("--data-dir", help="directory with the four MNIST files (plain or .gz)")
    verify.add_argument("--text", metavar="FILE", help="the text, where it is not where it was")
    _running(verify)
    _inspection(command)
    _fuzz(command("fuzz", "fuzzing", "compile random programs and compare them with the NumPy references"))
    return parser


def _later(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        return int(getattr(importlib.import_module(f"thalweg.cli.{module}"), name)(options))

    run.__name__ = name
    return run


def _train(parser: _Parser) -> None:
    parser.add_argument(
        "model",
        choices=MODELS + TEXT_MODELS,
        metavar="model",
        nargs="?",
        help=f"of images: {_either(MODELS)}; of text: {_either(TEXT_MODELS)}; not needed with --resume",
    )
    add = parser.add_argument
    add(
        "--batch-size",
        type=_at_least_one,
        help="samples per step (default: 64 images; gpt 16, lstm 32 windows of text)",
    )
    add(
        "--lr",
        type=_positive,
        help="learning rate, the highest where a schedule changes it (default: 0.05; vit, text 0.002)",
    )
    add(
        "--schedule", choices=SCHEDULES, help="of the learning rate (default: onecycle; text: cosine or none)"
    )
    add("--seed", type=_seed, help="of initial weights, order and shifts (default: 0)")
    _running(parser)
    _train_images(parser.add_argument_group("models of images"))
    _train_text(parser.add_argument_group("models of text"))
    add(
        "--out",
        help="directory for the checkpoint and the curves (default: the next free ./runs/<model>-<n>)",
    )
    add("--resume", metavar="CHECKPOINT", help="continue this run; its settings hold unless given anew")
    add(
        "--checkpoint-every",
        type=_at_least_one,
        metavar="STEPS",
        help="write the checkpoint this often, besides at the end of every epoch",
    )
    add("--receipt", metavar="FILE.json", help="write hashes of the run there, for thalweg verify")
    parser.set_defaults(witness=None)


def _train_images(group: Any) -> None:
    _data(group, "default: auto, MNIST where it can be had, else the digits in the package")
    add = group.add_argument
    add("--epochs", type=_at_least_one, help="passes over the training images (default: mnist 3, digits 40)")
    add("--momentum", type=_momentum, help="of stochastic gradient descent (default: 0.9)")
    add(
        "--augment",
        choices=("none", "shift"),
        help="shift: move training images by up to 2 pixels (the default)",
    )


def _train_text(group: Any) -> None:
    add = group.add_argument
    add("--text", metavar="FILE", help="a plain text file in UTF-8; its last tenth is for validation")
    add(
        "--tokenizer",
        metavar="character|byte|FILE",
        help="what a token is; FILE: a tokenizer.json of Hugging Face (default: character)",
    )
    add("--layers", type=_at_least_one, help="default: gpt 4, lstm 2")
    add("--heads", type=_at_least_one, help="of attention (gpt only; default: 4)")
    add("--width", type=_at_least_one, help="size of the states (default: gpt 256, lstm 512)")
    add("--context", type=_at_least_one, help="tokens in a window (default: gpt 256, lstm 128)")
    add("--dropout", type=_momentum, help="default: 0.1")
    add("--steps", type=_at_least_one, help="training steps (default: gpt 2000, lstm 3000)")
    add("--warmup", type=_not_negative, help="steps in which the learning rate rises (default: 100)")
    add("--weight-decay", type=_decay, help="of AdamW (default: 0.1)")
    add("--evaluate-every", type=_at_least_one, metavar="STEPS", help="default: 250")
    add("--sample", type=_not_negative, metavar="TOKENS", help="written at each evaluation (default: 200)")


def _fuzz(parser: _Parser) -> None:
    add = parser.add_argument
    add("--minutes", type=_positive, default=1.0, help="how long (default: 1)")
    add("--count", type=_at_least_one, help="how many programs, instead of --minutes")
    add("--seed", type=_seed, default=0, help="of the first program (default: 0)")
    add("--sanitize", action="store_true", help="under AddressSanitizer and UndefinedBehaviorSanitizer (GCC)")
    add("--out", default="fuzz", metavar="DIR", help="where failing programs are kept (default: ./fuzz)")
    add("--replay", metavar="FILE", help="run a program that was kept, instead")


def _data(parser: Any, default: str) -> None:
    parser.add_argument("--data", choices=("auto", "mnist", "digits"), help=default)
    parser.add_argument("--data-dir", help="directory with the four MNIST files (plain or .gz)")


def _running(parser: _Parser) -> None:
    parser.add_argument("--threads", type=_at_least_one, help="default: all CPUs")
    parser.add_argument(
        "--backend",
        choices=("c", "numpy"),
        help="default: c where a C compiler is found, else numpy, which is slow",
    )


def _language(command: Callable[[str, str, str], _Parser]) -> None:
    where = "a run of thalweg train, or a directory of Hugging Face, or a name on its hub"
    generate = command("generate", "language", "write text behind a prompt")
    add = generate.add_argument
    add("checkpoint", nargs="?", help=f"{where} (default: the last one trained in ./runs)")
    add("--prompt", default="\n", help="what the text begins with (default: a line break)")
    add("--max-new-tokens", type=_at_least_one, default=200, help="default: 200")
    add("--temperature", type=_positive, default=1.0, help="below 1: closer to the most likely (default: 1)")
    add("--top-k", type=_at_least_one, help="only the so many most likely tokens")
    add("--top-p", type=_share, default=1.0, help="only the most likely tokens that together have this share")
    add("--repetition-penalty", type=_positive, default=1.0, help="above 1: what is there comes less often")
    add("--greedy", action="store_true", help="always the most likely token")
    add("--seed", type=_seed, help="for the same text again")
    _running(generate)
    for name, text in (("embed", "turn texts into vectors"), ("classify", "say of which class texts are")):
        found = command(name, "language", text)
        found.add_argument("checkpoint", help="a directory of Hugging Face, or a name on its hub")
        found.add_argument("file", nargs="?", help="a file with a text in each line")
        found.add_argument("--text", action="append", metavar="TEXT", help="may be given several times")
        if name == "embed":
            found.add_argument("-o", "--output", metavar="FILE", type=_numpy, help="a file of NumPy (.npy)")
        _running(found)


def _inspection(command: Callable[[str, str, str], _Parser]) -> None:
    graph = command("graph", "inspection", "print or draw the graph of a network")
    graph.add_argument("model", choices=MODELS, metavar="model", help=" or ".join(MODELS))
    graph.add_argument(
        "--gradient", action="store_true", help="the whole training step: loss, gradient, update"
    )
    graph.add_argument("--batch-size", type=_at_least_one, default=64, help="default: 64")
    graph.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=_drawing,
        help="a picture (.svg) or a table (.txt) instead of printing",
    )
    plan = command(
        "plan", "inspection", "print what a training step will run and the memory that it will use"
    )
    plan.add_argument("model", choices=MODELS, metavar="model", help=" or ".join(MODELS))
    plan.add_argument("--batch-size", type=_at_least_one, default=64, help="default: 64")
    plan.add_argument("--threads", type=_at_least_one, help="for the sum of memory (default: all CPUs)")
    plan.add_argument("--inference", action="store_true", help="the forward pass alone")
    plan.add_argument(
        "--memory",
        metavar="BYTES",
        type=_amount,
        help="make it fit into so much (2GB, 512MiB), recomputing values or cutting the batch into parts",
    )
    plan.add_argument("--json", action="store_true", help="for other programs")
    plan.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=_drawing,
        help="a picture of the memory over time (.svg) or the whole table (.txt) instead of printing",
    )
    _bench(command("bench", "benchmark", "measure speed against the limit and other frameworks"))
    _export(command("export", "export", "write a network as a C program that needs nothing else"))
    command("doctor", "doctor", "report compiler, flags, cache, threads, accelerators and versions")


def _bench(parser: _Parser) -> None:
    add = parser.add_argument
    add("names", nargs="*", help="only cases whose name contains one of these words, such as lenet")
    add("--list", action="store_true", help="print the names of the cases")
    add("--processes", type=_at_least_one, default=3, help="fresh processes per case and side (default: 3)")
    add("--threads", type=_at_least_one, nargs="+", default=[1, 2], help="numbers of threads (default: 1 2)")
    add("--peers", nargs="*", choices=PEERS, help="default: those installed")
    add("--markdown", metavar="FILE", help="write the table to this file too")


def _export(parser: _Parser) -> None:
    add = parser.add_argument
    add("model", choices=MODELS, metavar="model", help=" or ".join(MODELS))
    add("--to", choices=("c",), default="c", help="c: portable C99 with optional vector extensions (default)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--training", action="store_true", help="training step and prediction (default)")
    what.add_argument("--inference", action="store_true", help="prediction alone")
    add("--checkpoint", metavar="FILE", help="trained weights (default: new ones)")
    add("--batch-size", type=_at_least_one, help="images per call (default: training 16, inference 1)")
    add("--lr", type=_positive, default=0.01, help="learning rate, which C can set too (default: 0.01)")
    add("--momentum", type=_momentum, default=0.9, help="0 needs half the memory for state (default: 0.9)")
    add("--update", nargs="+", metavar="NAME", help="train only these layers or parameters, or: biases")
    add(
        "--fit-memory",
        type=_bytes,
        metavar="SIZE",
        help="such as 256KB: as asked, else recomputing or micro-batches, else a smaller batch, else "
        "training the last layers only (implies --embed)",
    )
    add("--quantize", choices=("int8", "int4"), help="linear layers of 8 or 4 bits, with --inference")
    add("--embed", action="store_true", help="weights as a C array, read-only where nothing updates them")
    add("-o", "--output", metavar="DIR", required=True, help="directory for the files")


# ---- values ------------------------------------------------------------------------------------------------


def _value(text: str, kind: Callable[[str], Any], accepted: Callable[[Any], bool], expected: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not accepted(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, received {text!r}")
    return value


def _drawing(text: str) -> Any:
    return _value(
        text, str, lambda name: name.lower().endswith((".svg", ".txt")), "a file name ending in .svg or .txt"
    )


def _numpy(text: str) -> Any:
    return _value(text, str, lambda name: name.lower().endswith(".npy"), "a file name ending in .npy")


def _share(text: str) -> Any:
    return _value(text, float, lambda value: 0 < value <= 1, "a number above 0 and at most 1")


def _amount(text: str) -> Any:
    from thalweg.errors import ArgumentError
    from thalweg.plan.sizes import bytes_of

    try:
        return bytes_of(text)
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _at_least_one(text: str) -> Any:
    return _value(text, int, lambda value: value >= 1, "a whole number of at least 1")


def _not_negative(text: str) -> Any:
    return _value(text, int, lambda value: value >= 0, "a whole number of at least 0")


def _decay(text: str) -> Any:
    return _value(text, float, lambda value: 0 <= value < float("inf"), "a number of at least 0")


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?)i?B?", text, re.IGNORECASE)
    unit = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}

    def size(_: str) -> int:
        return 0 if found is None else int(float(found[1]) * unit[found[2].upper()])

    return int(_value(text, size, lambda count: count >= 1, "a size such as 256KB or 1MB"))


def _seed(text: str) -> Any:
    return _value(text, int, lambda value: 0 <= value < 2**64, "a whole number from 0 to 2**64 - 1")


def _positive(text: str) -> Any:
    return _value(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def _momentum(text: str) -> Any:
    return _value(text, float, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")
