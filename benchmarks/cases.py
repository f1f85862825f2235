"""The cases of `run.py`, one function per case and side. Run as `python cases.py CASE SIDE THREADS`:
prints JSON."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """`operations` is the dense count of one repetition, where a share of the FMA peak says something."""

    name: str
    sides: tuple[str, ...] = ("thalweg", "torch")
    operations: int = 0
    threaded: bool = True


LENET_OPERATIONS = 2_263_920  # per image and training step
MLP = (784, 512, 256, 10)
MLP_OPERATIONS = sum(6 * a * b for a, b in pairwise(MLP)) - 2 * MLP[0] * MLP[1]

CASES = [
    *(Case(f"lenet step, batch {b}", operations=LENET_OPERATIONS * b) for b in (1, 64, 128, 512)),
    *(Case(f"lenet inference, batch {b}") for b in (1, 64, 1024)),
    Case("lenet eager step, batch 64"),
    *(Case(f"mlp step, batch {b}", operations=MLP_OPERATIONS * b) for b in (32, 64, 512)),
    Case("trivial compiled call", threaded=False),
    Case("import", ("thalweg", "numpy"), threaded=False),
    Case("first lenet step, cold cache", ("thalweg",), threaded=False),
    Case("first lenet step, warm cache", ("thalweg",), threaded=False),
]


def repeat(step: Callable[[], Any], seconds: float = 1.0) -> float:
    """Median seconds of a repetition, after a warm-up."""
    for _ in range(3):
        step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def images(batch: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return random.standard_normal((batch, 1, 28, 28)).astype(np.float32), random.integers(0, 10, batch)


# ---- Thalweg ---------------------------------------------------------------------------------------------


def thalweg_model(name: str) -> Any:
    import thalweg as tw
    from thalweg import nn
    from thalweg.models.lenet import LeNet

    tw.manual_seed(0)
    if name == "lenet":
        return LeNet()
    a, b, c, d = MLP
    return nn.Sequential(
        nn.Flatten(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, d)
    )


def thalweg_case(case: str, threads: int) -> float:
    import thalweg as tw
    from thalweg import nn, optim

    words = case.replace(",", "").split()
    if case == "trivial compiled call":
        double = tw.compile(lambda x: x + x)
        value = tw.tensor(np.ones(4, np.float32))
        return repeat(lambda: double(value))
    model = thalweg_model(words[0])
    x, y = (tw.tensor(array) for array in images(int(words[-1])))
    if "inference" in words:
        model.eval()
        infer = tw.compile(lambda x: model(x), threads=threads)
        return repeat(lambda: infer(x))
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    if "eager" not in words:
        step = tw.compile(step, threads=threads)
    return repeat(lambda: step(x, y))


# ---- PyTorch ---------------------------------------------------------------------------------------------


def torch_model(name: str) -> Any:
    from torch import nn

    if name == "mlp":
        a, b, c, d = MLP
        return nn.Sequential(
            nn.Flatten(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, d)
        )
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def torch_case(case: str, threads: int) -> float:
    """PyTorch, eager."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    words = case.replace(",", "").split()
    if case == "trivial compiled call":
        value = torch.ones(4)
        return repeat(lambda: value + value)
    model = torch_model(words[0])
    x, y = (torch.from_numpy(array) for array in images(int(words[-1])))
    if "inference" in words:
        model.eval()

        def infer() -> Any:
            with torch.inference_mode():
                return model(x)

        return repeat(infer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return repeat(step)


# ---- whole processes -------------------------------------------------------------------------------------


def process_seconds(code: str, environment: dict[str, str], runs: int = 7) -> float:
    """Median wall time of a fresh Python process that runs `code`."""
    times: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


FIRST_STEP = """
import numpy as np, thalweg as tw
from thalweg import nn, optim
from thalweg.models.lenet import LeNet
model = LeNet()
optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
@tw.compile
def step(x, y):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.minimize(loss)
    return loss
step(np.zeros((64, 1, 28, 28), np.float32), np.zeros(64, np.int64))
"""


def first_step(cold: bool) -> float:
    """From process start to the first compiled step, with an empty or a filled program cache."""
    import os

    if not cold:
        return process_seconds(FIRST_STEP, dict(os.environ))
    times = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as cache:
            times.append(process_seconds(FIRST_STEP, {**os.environ, "THALWEG_CACHE": cache}, 1))
    return statistics.median(times)


def main() -> None:
    import os

    case, side, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if case == "peak":
        from thalweg.runtime.limits import operations_per_second

        seconds = 1 / operations_per_second(threads)
    elif case == "import":
        seconds = process_seconds(f"import {side}", dict(os.environ))
    elif case.startswith("first lenet step"):
        seconds = first_step("cold" in case)
    else:
        seconds = (thalweg_case if side == "thalweg" else torch_case)(case, threads)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
