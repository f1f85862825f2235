"""What a training run shows while it runs, and how Ctrl-C stops it between two steps.

In: epochs, steps and their averages. Out: a live bar on a terminal's standard error, one line per epoch on
standard output. Called by `fit` and `evaluate`.
"""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from thalweg.train.metrics import Average

__all__ = ["Bar", "Interrupt", "Wording", "line"]


@dataclass(frozen=True)
class Wording:
    """How a run speaks of its work; a loader may have one as its attribute `wording`."""

    unit: str = "samples"
    size: int = 1  # units in a sample: the tokens in a window of text
    steps: int = 0  # of the whole run, where they are shown in place of epochs

    def title(self, epoch: int, epochs: int, step: int) -> str:
        """`epoch  3/12`, or `step  750/3000`."""
        number, count = (step, self.steps) if self.steps else (epoch, epochs)
        return f"{'step' if self.steps else 'epoch'} {number:>{len(str(count))}}/{count}"


class Bar:
    """A live bar over the samples of one pass, on standard error; nothing where that is no terminal."""

    def __init__(
        self, title: str, samples: int | None, done: int, shown: bool, wording: Wording | None = None
    ) -> None:
        self._bar: Any = None
        self._began = time.perf_counter()
        self._samples = 0
        self._wording = wording or Wording()
        size = self._wording.size
        if shown and _is_live(sys.stderr):
            from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

            # tqdm shows nothing on a terminal that does not know its size.
            columns, rows = shutil.get_terminal_size((100, 24))
            self._bar = tqdm(
                total=None if samples is None else samples * size,
                initial=done * size,
                desc=title,
                unit=f" {self._wording.unit}",
                unit_scale=True,
                leave=False,
                ncols=columns,
                nrows=rows,
            )

    def advance(self, samples: int, averages: Mapping[str, Average]) -> None:
        """Count a step of that many samples."""
        self._samples += samples
        if self._bar is not None:
            self._bar.set_postfix_str(
                numbers({name: average.value for name, average in averages.items()}, ", "), False
            )
            self._bar.update(samples * self._wording.size)

    @property
    def speed(self) -> str:
        """Time since the bar was made, and samples (or what is counted in their place) per second."""
        seconds = time.perf_counter() - self._began
        rate = self._samples * self._wording.size / max(seconds, 1e-9)
        return f"{seconds:.1f} s  {rate:,.0f} {self._wording.unit}/s"

    def close(self) -> None:
        """Remove the bar from the screen."""
        if self._bar is not None:
            self._bar.close()


def _is_live(stream: Any) -> bool:
    """Whether somebody watches: a terminal or a notebook."""
    if stream is None:  # a process without standard error, such as a windowed program
        return False
    return bool(stream.isatty()) or "ipykernel" in sys.modules


def numbers(values: Mapping[str, float], between: str = "  ") -> str:
    """Measurements in one line: `loss 0.1234  accuracy 0.9712`."""
    return between.join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())


def line(text: str, shown: bool) -> None:
    """Print one line of a run's record."""
    if shown:
        print(text, flush=True)


class Interrupt:
    """While entered, the first Ctrl-C only sets `requested`; a second one interrupts at once, as usual.

    Signals reach the main thread only; elsewhere, and where the program handles Ctrl-C itself, nothing is
    changed.
    """

    def __init__(self, shown: bool) -> None:
        self.requested = False
        self._shown = shown
        self._installed = False

    def __enter__(self) -> Interrupt:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._shown:
            print("\nstopping after this step (Ctrl-C again: at once)", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
