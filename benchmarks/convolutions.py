"""A sweep of 60 convolutions, forward and both gradients, against PyTorch (oneDNN).

    python benchmarks/convolutions.py                              # 60 shapes x 3 modes, 1 and 2 threads
    python benchmarks/convolutions.py --modes forward --processes 1 --threads 2 --markdown convolutions.md

Kernels of 1x1, 3x3, 5x5 and 7x7, depthwise, grouped, strided and dilated, with few and many channels and
batches of 1 to 64. Both sides run in fresh processes, alternating A B A B; each process times every case (the
fastest of several calls) through the public interface. PyTorch's time is that of the faster of its two memory
formats. The ratio of a case is PyTorch's time divided by Thalweg's, pair by pair; its median is printed, and
the geometric mean over the cases.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from products import fastest

from thalweg.bench.measuring import environment_of

MODES = ("forward", "input gradient", "weight gradient")
SLOW = 0.8  # a ratio below this is listed


@dataclass(frozen=True)
class Case:
    """`batch` square images with `channels`; stride 1 keeps the size."""

    batch: int
    channels: int
    filters: int
    size: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1

    def __str__(self) -> str:
        text = f"{self.batch}x{self.channels}x{self.size}x{self.size} to {self.filters}, "
        text += f"{self.kernel}x{self.kernel}"
        for name, value in (("stride", self.stride), ("dilation", self.dilation), ("groups", self.groups)):
            text += f", {name} {value}" if value != 1 else ""
        return text

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel - 1) // 2

    def arrays(self, random: np.random.Generator) -> tuple[Any, Any, Any]:
        """Input, weight and cotangent."""
        reach = self.dilation * (self.kernel - 1)
        out = (self.size + 2 * self.padding - reach - 1) // self.stride + 1
        shapes = (
            (self.batch, self.channels, self.size, self.size),
            (self.filters, self.channels // self.groups, self.kernel, self.kernel),
            (self.batch, self.filters, out, out),
        )
        x, w, g = (random.standard_normal(shape, np.float32) for shape in shapes)
        return x, w, g


CASES = [
    *(Case(1, c, k, s, 1) for c, k, s in ((64, 256, 56), (512, 128, 28), (1024, 256, 14), (512, 2048, 7))),
    *(Case(8, c, k, s, 1) for c, k, s in ((24, 96, 56), (256, 64, 56), (96, 576, 14))),
    *(Case(32, c, k, s, 1) for c, k, s in ((16, 16, 32), (128, 128, 16), (320, 1280, 7))),
    *(Case(1, c, c, s, 3) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))),
    *(Case(8, c, c, s, 3) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))),
    *(Case(64, c, k, s, 3) for c, k, s in ((16, 16, 32), (32, 32, 16), (64, 64, 8))),
    *(Case(64, c, k, s, 3) for c, k, s in ((1, 32, 28), (32, 64, 13))),
    *(Case(4, c, k, s, 3) for c, k, s in ((3, 64, 224), (48, 96, 40), (100, 100, 33), (384, 256, 13))),
    *(Case(b, c, k, s, 5) for b, c, k, s in ((64, 1, 6, 28), (64, 6, 16, 14), (8, 64, 192, 27))),
    *(Case(b, c, k, s, 7) for b, c, k, s in ((1, 16, 16, 64), (16, 32, 32, 28))),
    *(Case(b, 3, 64, 224, 7, 2) for b in (1, 8)),
    *(Case(b, c, 2 * c, s, 3, 2) for b, c, s in ((1, 64, 56), (8, 64, 56), (8, 128, 28))),
    *(Case(b, c, 2 * c, s, 3, 2) for b, c, s in ((1, 256, 14), (32, 16, 32))),
    *(Case(b, c, 2 * c, s, 1, 2) for b, c, s in ((1, 64, 56), (8, 128, 28), (8, 256, 14))),
    Case(4, 96, 128, 27, 5, 2),
    *(Case(b, c, c, s, 3, dilation=d) for b, c, s, d in ((1, 64, 56, 2), (4, 128, 28, 4), (8, 32, 40, 2))),
    *(Case(1, c, c, s, 3, groups=c) for c, s in ((32, 112), (128, 56), (512, 14), (1024, 7))),
    *(Case(8, c, c, s, 3, groups=c) for c, s in ((64, 56), (256, 28))),
    *(Case(b, c, c, s, 3, 2, groups=c) for b, c, s in ((1, 64, 112), (8, 256, 28))),
    *(Case(b, c, c, s, k, groups=c) for b, c, s, k in ((4, 96, 28, 7), (8, 120, 28, 5))),
    *(Case(b, c, c, s, 3, groups=g) for b, c, s, g in ((1, 128, 56, 32), (8, 256, 28, 8), (4, 64, 28, 4))),
    Case(8, 240, 480, 28, 1, groups=3),
]


def own_call(case: Case, mode: str, arrays: Sequence[Any]) -> Callable[[], object]:
    """A call of the compiled convolution."""
    import thalweg as tw
    from thalweg.ops import contraction

    pad = ((case.padding,) * 2,) * 2
    op = contraction.ConvolutionForward((case.stride,) * 2, pad, (case.dilation,) * 2, case.groups)
    x, w, g = (tw.tensor(array) for array in arrays)
    if mode == "forward":
        compiled = tw.compile(lambda x, w: contraction.forward(op, x, w))
        return lambda: compiled(x, w)
    if mode == "input gradient":
        compiled = tw.compile(lambda g, w: contraction.input_gradient(op, g, w, x.shape[2:]))
        return lambda: compiled(g, w)
    compiled = tw.compile(lambda x, g: contraction.weight_gradient(op, x, g, w.shape[2:]))
    return lambda: compiled(x, g)


def torch_calls(case: Case, mode: str, arrays: Sequence[Any]) -> list[Callable[[], object]]:
    """Calls of PyTorch's convolution in its memory formats."""
    import torch

    mask = [mode == "input gradient", mode == "weight gradient", False]
    calls: list[Callable[[], object]] = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x, w, g = (torch.from_numpy(array).contiguous(memory_format=layout) for array in arrays)
        geometry = ([case.stride] * 2, [case.padding] * 2, [case.dilation] * 2)
        if mode == "forward":
            calls.append(lambda x=x, w=w, geometry=geometry: torch.conv2d(x, w, None, *geometry, case.groups))  # type: ignore[misc]
        else:
            rest = (None, *geometry, False, [0, 0], case.groups, mask)
            calls.append(lambda g=g, x=x, w=w, rest=rest: torch.ops.aten.convolution_backward(g, x, w, *rest))  # type: ignore[misc]
    return calls


def timed(side: str, cases: list[tuple[Case, str]], threads: int) -> list[float]:
    """Seconds of each case in this process."""
    random = np.random.default_rng(0)
    seconds: list[float] = []
    if side == "torch":
        import torch

        torch.set_num_threads(threads)
    for case, mode in cases:
        arrays = case.arrays(random)
        if side == "torch":
            with torch.inference_mode():
                seconds.append(min(fastest(call) for call in torch_calls(case, mode, arrays)))
        else:
            seconds.append(fastest(own_call(case, mode, arrays)))
    return seconds


def measure(side: str, options: argparse.Namespace, threads: int) -> list[float]:
    """The times of one fresh process."""
    command = [sys.executable, __file__, "--worker", side, "--threads", str(threads)]
    command += ["--modes", *options.modes, "--cases", *map(str, options.cases)]
    environment = environment_of(side, threads)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr}")
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def mean_of(ratios: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))


def report(cases: list[tuple[Case, str]], options: argparse.Namespace, threads: int) -> str:
    """One section of a results page."""
    measure("thalweg", options, threads)  # fills the program cache
    pairs = [
        (measure("thalweg", options, threads), measure("torch", options, threads))
        for _ in range(options.processes)
    ]
    rows = []
    for number, (case, mode) in enumerate(cases):
        ratio = statistics.median(torch[number] / own[number] for own, torch in pairs)
        seconds = statistics.median(own[number] for own, _ in pairs)
        rows.append((ratio, seconds, case, mode))
    rows.sort(key=lambda row: row[0])
    slow = [row for row in rows if row[0] < SLOW]
    lines = [
        f"{threads} thread{'s' if threads > 1 else ''}: geometric mean of PyTorch / Thalweg over "
        f"{len(rows)} cases {mean_of([row[0] for row in rows]):.2f} ("
        + ", ".join(f"{mode} {mean_of([r[0] for r in rows if r[3] == mode]):.2f}" for mode in options.modes)
        + f"), {len(slow)} below {SLOW}",
        "",
        "| convolution | mode | Thalweg us | PyTorch / Thalweg |",
        "|---|---|---|---|",
    ]
    shown = rows if options.all else slow
    for ratio, seconds, case, mode in shown:
        lines.append(f"| {case} | {mode} | {1e6 * seconds:.0f} | {ratio:.2f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modes", nargs="*", default=MODES, choices=MODES, help="which (all three)")
    parser.add_argument("--cases", nargs="*", type=int, default=range(len(CASES)), help="their numbers (all)")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes per side (3)")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="thread counts (1 2)")
    parser.add_argument("--all", action="store_true", help=f"list every case, not those below {SLOW} only")
    parser.add_argument("--markdown", type=Path, help="write the sections to this file")
    parser.add_argument("--worker", choices=("thalweg", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = [(CASES[number], mode) for number in options.cases for mode in options.modes]
    if options.worker:
        print(json.dumps(timed(options.worker, cases, options.threads[0])))
        return
    sections = []
    for threads in options.threads:
        sections.append(report(cases, options, threads))
        print(sections[-1], flush=True)
    if options.markdown:
        options.markdown.write_text("\n".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
