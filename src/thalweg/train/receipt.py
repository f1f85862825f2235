"""Receipts: what a training run was, and hashes of what it computed, so that anybody can repeat and compare
it.

In: a run of `fit`, step by step. Out: a JSON file with hashes of program, data and initial state, the bits
of every loss, and a chain of hashes of the whole state (weights, optimizer, random generator) at regular
steps and at the end of every epoch. `Recorder` writes one; `Replay` compares a run with one and raises
`ReplayError` where it first differs. Called by `fit(receipt=...)` and `fit(verify=...)`, and so by the
command line.

A receipt holds no time and no path: the same run gives the same file, but for "made with".
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from thalweg.config import settings
from thalweg.errors import ArgumentError, DataError, ReplayError
from thalweg.io.files import atomic_write
from thalweg.tensor.random import Generator
from thalweg.version import __version__

if TYPE_CHECKING:
    from thalweg.nn.module import Module
    from thalweg.optim import Optimizer

__all__ = ["Receipt", "Recorder", "Replay", "data_digest", "read_receipt", "state_digest"]

Array = NDArray[Any]
Path = str | os.PathLike[str]

EVERY = 100  # steps from one hash of the state to the next
_FORMAT = "thalweg receipt 1"
_PARTS = {
    "format": str,
    "library": str,
    "made_with": dict,
    "run": dict,
    "data": str,
    "programs": dict,
    "first_step": int,
    "initial": str,
    "losses": list,
    "states": list,
    "epochs": list,
}


# ---- hashes ------------------------------------------------------------------------------------------------


def state_digest(model: Module, optimizer: Optimizer, generator: Generator) -> str:
    """SHA-256 of everything that the next training step depends on but its batch."""
    arrays = {f"model.{name}": array for name, array in model.state_dict().items()}
    arrays.update({f"optimizer.{name}": array for name, array in optimizer.state_dict().items()})
    arrays["generator"] = generator.state.data
    return _digest(arrays)


def _digest(arrays: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.name} {np.shape(arrays[name])}\n".encode())
        total.update(array.data if array.dtype.kind in "biuf" else array.tobytes())
    return total.hexdigest()


def data_digest(loader: Any) -> str:
    """SHA-256 of the samples that a loader draws from.

    A loader with a `dataset` is known by that. Objects that hold arrays are known by their arrays and plain
    attributes, sequences by their items, other data sets by all their samples, which are read once.
    """
    parts: dict[str, Any] = {}
    _collect(getattr(loader, "dataset", loader), "data", parts)
    return _digest(parts)


def _collect(item: Any, name: str, parts: dict[str, Any]) -> None:
    """Add the arrays that make up `item` to `parts`."""
    if isinstance(item, (np.ndarray, np.generic, bool, int, float)):
        parts[name] = np.asarray(item)
    elif isinstance(item, (list, tuple)):
        parts[name] = np.asarray(len(item))
        for number, part in enumerate(item):
            _collect(part, f"{name}.{number:012d}", parts)
    elif _holds_arrays(item):
        for key, part in sorted(vars(item).items()):
            if not key.startswith("_") and (_holds_arrays(part) or isinstance(part, _PLAIN)):
                _collect(part, f"{name}.{key}", parts)
    elif hasattr(item, "__len__") and hasattr(item, "__getitem__"):
        parts[name] = np.asarray(len(item))
        for number in range(len(item)):
            _collect(item[number], f"{name}.{number:012d}", parts)
    elif hasattr(item, "__array__"):
        parts[name] = np.asarray(item)
    else:
        raise ArgumentError(
            f"a receipt needs a loader whose data can be read twice: a DataLoader or a list of batches; "
            f"this one gives a {type(item).__name__}"
        )


_PLAIN = (np.ndarray, np.generic, bool, int, float, list, tuple)


def _holds_arrays(item: Any) -> bool:
    """Is this an object whose attributes are its samples?"""
    if not hasattr(item, "__dict__") or isinstance(item, type) or callable(item):
        return False
    parts = [part for key, part in vars(item).items() if not key.startswith("_")]
    return any(
        isinstance(part, np.ndarray)
        or (isinstance(part, (list, tuple)) and bool(part) and isinstance(part[0], np.ndarray))
        or (hasattr(part, "__getitem__") and _holds_arrays(part))
        for part in parts
    )


# ---- the file ----------------------------------------------------------------------------------------------


@dataclass
class Receipt:
    """The content of a receipt.

    `run` is what the caller wrote about it (the command line: its settings), `programs` the digest of the
    graph of the training step for each signature of its batches. `losses` has the loss of every step after
    `first_step` as hexadecimal text, `states` entries [step, hash of the state, link of the chain], `epochs`
    the averages of each epoch with the step at its end.
    """

    run: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    programs: dict[str, str] = field(default_factory=dict)
    first_step: int = 0
    initial: str = ""
    losses: list[str] = field(default_factory=list)
    states: list[list[Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    library: str = __version__
    made_with: dict[str, Any] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        """The number of the last step."""
        return self.first_step + len(self.losses)

    def link(self, step: int, digest: str, before: list[Any] | None) -> str:
        """The chain's link for the state after a step: it depends on all losses and states up to there."""
        last, link = (before[0], before[2]) if before else (self.first_step, f"{self.data} {self.initial}")
        losses = " ".join(self.losses[last - self.first_step : step - self.first_step])
        return hashlib.sha256(f"{link} {step} {digest} {losses}".encode()).hexdigest()

    def add_state(self, step: int, digest: str) -> None:
        """Note the state after a step."""
        before = self.states[-1] if self.states else None
        self.states.append([step, digest, self.link(step, digest, before)])

    def check_chain(self, name: str) -> None:
        """Raise `DataError` if an entry was changed after it was written."""
        before = None
        for entry in self.states:
            if entry[2] != self.link(entry[0], entry[1], before):
                raise DataError(f"{name!r} was changed after it was written: the entry of step {entry[0]}")
            before = entry
        for number, epoch in enumerate(self.epochs, 1):
            if epoch.get("hash") != _epoch_digest(epoch):
                raise DataError(f"{name!r} was changed after it was written: the figures of epoch {number}")

    def save(self, path: Path) -> None:
        """Write the file, completely or not at all."""
        parts = {name: _FORMAT if name == "format" else getattr(self, name) for name in _PARTS}
        atomic_write(path, (json.dumps(parts, indent=1) + "\n").encode())


def _epoch_digest(epoch: Mapping[str, Any]) -> str:
    text = json.dumps({name: value for name, value in epoch.items() if name != "hash"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


_RIGHT: dict[str, Callable[[Any], bool]] = {
    "losses": lambda entry: isinstance(entry, str),
    "states": lambda entry: (isinstance(entry, list) and [type(part) for part in entry] == [int, str, str]),
    "epochs": lambda entry: isinstance(entry, dict) and isinstance(entry.get("step"), int),
}


def read_receipt(path: Path) -> Receipt:
    """Read and check a receipt; raises `DataError`."""
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            parts = json.load(file)
    except OSError as error:
        raise DataError(f"cannot read the receipt {name!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{name!r} is not a receipt: {error}") from error
    if not isinstance(parts, dict) or parts.get("format") != _FORMAT:
        raise DataError(f"{name!r} is not a receipt of `thalweg train --receipt` (format {_FORMAT!r})")
    wrong = [part for part, kind in _PARTS.items() if not isinstance(parts.get(part), kind)]
    if not wrong:
        wrong = [part for part, right in _RIGHT.items() if not all(right(entry) for entry in parts[part])]
    if wrong:
        raise DataError(f"the receipt {name!r} is damaged: {', '.join(wrong)} missing or of the wrong kind")
    receipt = Receipt(**{part: parts[part] for part in _PARTS if part != "format"})
    receipt.check_chain(name)
    return receipt


# ---- during a run ------------------------------------------------------------------------------------------


class _Witness:
    """What `fit` tells of a run: its beginning, every step, the end of every epoch, its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.receipt = Receipt()
        self.step = 0  # steps done
        self.unfinished = False
        self.backend: str | None = None
        self._digest: Callable[[], str] = str
        self._known: dict[Any, str] = {}

    def begin(
        self,
        model: Module,
        optimizer: Optimizer,
        generator: Generator,
        loader: Any,
        step: int,
        unfinished: bool,
        backend: str | None,
    ) -> None:
        """The run begins, or is continued, behind `step` steps, the last of them in an `unfinished` epoch."""
        self.step, self.unfinished, self.backend = step, unfinished, backend
        self._digest = lambda: state_digest(model, optimizer, generator)
        self.started(data_digest(loader))

    def started(self, data: str) -> None:
        raise NotImplementedError

    def stepped(self, program: Any, inputs: Any, targets: Any, loss: float) -> bool:
        """A step was made; whether the run should end here."""
        self.step += 1
        signature = _signature(inputs, targets)
        if signature not in self._known:
            self._known[signature] = program.graph(inputs, targets).digest()
            self.program(_words(signature), self._known[signature])
        return self.loss(loss.hex())

    def program(self, signature: str, digest: str) -> None:
        raise NotImplementedError

    def loss(self, bits: str) -> bool:
        raise NotImplementedError

    def epoch(self, values: Mapping[str, float]) -> bool:
        """An epoch with these averages is over; whether the run should end here."""
        found = {"step": self.step, **{name: float(value).hex() for name, value in values.items()}}
        return self.figures({**found, "hash": _epoch_digest(found)})

    def figures(self, found: dict[str, Any]) -> bool:
        raise NotImplementedError

    def saved(self) -> None:
        """A checkpoint has been written."""

    def end(self) -> None:
        raise NotImplementedError


def _signature(inputs: Any, targets: Any) -> tuple[Any, ...]:
    return tuple((str(array.dtype), tuple(array.shape)) for array in (*inputs, targets))


def _words(signature: tuple[Any, ...]) -> str:
    return ", ".join(f"{dtype}[{','.join(map(str, shape))}]" for dtype, shape in signature)


class Recorder(_Witness):
    """Writes the receipt of a run to `path`; `run` is what shall be known about it.

    Where the run is continued from a checkpoint and `path` holds its receipt so far, that is continued too;
    any other file at `path` is left alone and raises `DataError`.
    """

    def __init__(self, path: Path, run: Mapping[str, Any] | None = None) -> None:
        super().__init__(path)
        self.about = dict(run or {})

    def started(self, data: str) -> None:
        digest = self._digest()
        name = os.fspath(self.path)
        if os.path.exists(self.path):
            self.receipt = self._continued(name, data, digest)
        else:
            self.receipt = Receipt(self.about, data, {}, self.step, digest)
            self.receipt.made_with = _circumstances(self.backend)
        self.receipt.save(self.path)

    def _continued(self, name: str, data: str, digest: str) -> Receipt:
        """The receipt of the run's first part, up to where it is continued."""
        found = read_receipt(self.path)
        known = {found.first_step: found.initial, **{entry[0]: entry[1] for entry in found.states}}
        if self.step == 0 or self.step not in known:
            raise DataError(
                f"{name!r} exists and knows nothing of the state after step {self.step}; choose another file "
                "for the receipt, or remove it"
            )
        if self.unfinished and any(epoch["step"] == self.step for epoch in found.epochs):
            known[self.step] = digest  # what is known is the state after the epoch's end, which comes yet
        if known[self.step] != digest or found.data != data:
            what = "state" if known[self.step] != digest else "data"
            raise DataError(
                f"{name!r} is the receipt of another run: it has another {what} at step {self.step}; choose "
                "another file for the receipt"
            )
        found.losses = found.losses[: self.step - found.first_step]
        found.states = [entry for entry in found.states if entry[0] <= self.step]
        found.epochs = [epoch for epoch in found.epochs if epoch["step"] < self.step + (not self.unfinished)]
        found.run = self.about
        return found

    def program(self, signature: str, digest: str) -> None:
        self.receipt.programs[signature] = digest

    def loss(self, bits: str) -> bool:
        self.receipt.losses.append(bits)
        if self.step % EVERY == 0:
            self._note()
        return False

    def figures(self, found: dict[str, Any]) -> bool:
        self.receipt.epochs.append(found)
        self._write()
        return False

    def saved(self) -> None:
        self._write()

    def end(self) -> None:
        self._write()

    def _write(self) -> None:
        self._note()
        self.receipt.save(self.path)

    def _note(self) -> None:
        """The state now; the end of an epoch may have changed it since the step was counted."""
        entries = self.receipt.states
        if entries and entries[-1][0] == self.step:
            entries.pop()
        if self.step > self.receipt.first_step:
            self.receipt.add_state(self.step, self._digest())


def _circumstances(backend: str | None) -> dict[str, Any]:
    """What should make no difference: for whoever looks for the reason of one."""
    from thalweg.codegen.c.build import find_compiler

    chosen = backend or settings.backend
    compiler = None if chosen == "numpy" else find_compiler()
    return {
        "backend": "numpy" if compiler is None else "c",
        "compiler": "" if compiler is None else compiler.version.splitlines()[0],
        "machine": f"{platform.system()} {platform.machine()}",
        "numpy": np.__version__,
        "threads": settings.threads(),
    }


class Replay(_Witness):
    """Compares a run with the receipt at `path`; `ReplayError` says where it first differs.

    `notes` are differences that need not change a result: another version, another graph.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.receipt = read_receipt(path)
        self.notes: list[str] = []
        self.equal = -1  # the last step whose whole state was the same
        self.compared, self.states = 0, 0  # how many losses and states were the same

    def started(self, data: str) -> None:
        receipt, step = self.receipt, self.step
        if receipt.library != __version__:
            self.notes.append(f"the receipt is by version {receipt.library}, this is {__version__}")
        if data != receipt.data:
            raise ReplayError("the training data are not those of the receipt: their hashes differ")
        self._digests = {receipt.first_step: receipt.initial, **{e[0]: e[1] for e in receipt.states}}
        self._epochs = {epoch["step"]: epoch for epoch in receipt.epochs}
        if not receipt.first_step <= step < receipt.last_step:
            raise DataError(
                f"the receipt covers the steps {receipt.first_step + 1} to {receipt.last_step}; a replay "
                f"behind step {step} has nothing to compare"
                + ("; continue from the checkpoint it began with" if step < receipt.first_step else "")
            )
        if step in self._epochs and self.unfinished:
            return  # its hash is that of the state after the epoch's end, which comes yet
        if step in self._digests:
            self._compare_state()
        else:
            self.notes.append(f"the receipt has no hash of the state after step {step}, where this begins")

    def program(self, signature: str, digest: str) -> None:
        known = self.receipt.programs.get(signature)
        if known is None:
            self.notes.append(f"the receipt has no program for batches {signature}")
        elif known != digest:
            self.notes.append(f"the graph of the training step is another one, for batches {signature}")

    def loss(self, bits: str) -> bool:
        expected = self.receipt.losses[self.step - self.receipt.first_step - 1]
        if bits != expected:
            raise self._difference(f"the loss of step {self.step} is {_shown(bits)}", _shown(expected))
        self.compared += 1
        if self.step in self._epochs:  # compared when the epoch is over
            return False
        if self.step in self._digests:
            self._compare_state()
        return self.step == self.receipt.last_step

    def _compare_state(self) -> None:
        digest, expected = self._digest(), self._digests[self.step]
        if digest != expected:
            what = f"the state after step {self.step} has the hash {digest[:16]}..."
            raise self._difference(what, f"{expected[:16]}...")
        self.equal = self.step
        self.states += 1

    def figures(self, found: dict[str, Any]) -> bool:
        known = self._epochs.get(self.step)
        if known is None:
            raise self._difference(f"an epoch is over after step {self.step}", "it goes on")
        for name in (key for key in known if key in found and key not in ("step", "hash")):
            if found[name] != known[name]:
                what = f"{name} at the end of the epoch at step {self.step} is {_shown(found[name])}"
                raise self._difference(what, _shown(known[name]))
        self._compare_state()
        return self.step == self.receipt.last_step

    def _difference(self, what: str, expected: str) -> ReplayError:
        same = f"; the whole state was the same after step {self.equal}" if self.equal >= 0 else ""
        notes = "".join(f"\n  note: {note}" for note in self.notes)
        made = ", ".join(f"{name} {value}" for name, value in self.receipt.made_with.items() if value)
        return ReplayError(
            f"{what}, in the receipt {expected}{same}{notes}\n  the receipt was made with {made}"
        )

    def end(self) -> None:
        if self.step < self.receipt.last_step:
            self.notes.append(f"stopped after step {self.step} of {self.receipt.last_step}")


def _shown(bits: str) -> str:
    try:
        return f"{float.fromhex(bits):.9g} ({bits})"
    except ValueError:
        return repr(bits)
