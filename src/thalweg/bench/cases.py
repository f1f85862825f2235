"""What `thalweg bench` measures, and one worker: case, side, number of threads -> seconds."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise

from thalweg.bench import sequences
from thalweg.bench.measuring import Case
from thalweg.bench.random_networks import draw

LENET_OPERATIONS = 2_263_920  # per image and training step
LENET_FORWARD = 833_040
MLP = (784, 512, 256, 10)
MLP_OPERATIONS = sum(6 * a * b for a, b in pairwise(MLP)) - 2 * MLP[0] * MLP[1]
MLP_FORWARD = sum(2 * a * b for a, b in pairwise(MLP))
RANDOM_NETWORKS = 20

TRAINING = ("torch", "torch.compile", "jax")
INFERENCE = ("torch", "torch.compile", "jax", "onnxruntime")

CASES = [
    *(Case(f"lenet step, batch {b}", TRAINING, LENET_OPERATIONS * b) for b in (1, 64, 128, 512)),
    *(Case(f"lenet inference, batch {b}", INFERENCE, LENET_FORWARD * b) for b in (1, 64, 1024)),
    *(Case(f"mlp step, batch {b}", TRAINING, MLP_OPERATIONS * b) for b in (32, 64, 512)),
    *(Case(f"mlp inference, batch {b}", INFERENCE, MLP_FORWARD * b) for b in (1, 64)),
    *(
        Case(f"random network {seed}, batch 64", ("torch",), 64 * draw(seed).operations)
        for seed in range(RANDOM_NETWORKS)
    ),
    *sequences.CASES,
    Case("lenet eager step, batch 64", ("torch",)),
    Case("lenet step beside a busy process, batch 64", ("torch",)),
    Case("trivial compiled call", ("torch.compile", "jax"), threaded=False),
    Case("import", ("numpy",), threaded=False),
    Case("first lenet step, cold cache", threaded=False),
    Case("first lenet step, warm cache", threaded=False),
]

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


def seconds_of(case: str, side: str, threads: int) -> float:
    """Median seconds of one repetition of a case, measured in this process."""
    if case == "peak":
        from thalweg.runtime.limits import operations_per_second

        return 1 / operations_per_second(threads)
    if case == "import":
        return _process_seconds(f"import {side}", dict(os.environ))
    if case.startswith("first lenet step"):
        return _first_step(cold="cold" in case)
    if case in sequences.NAMES:
        return sequences.measure(case, side, threads)
    if side == "thalweg":
        from thalweg.bench.own import measure
    else:
        from thalweg.bench.peers import measure
    if "busy" not in case:
        return measure(case, side, threads)
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # takes one core
    try:
        return measure(case, side, threads)
    finally:
        neighbour.kill()


def _process_seconds(code: str, environment: dict[str, str], runs: int = 7) -> float:
    """Median wall time of a fresh Python process that runs `code`."""
    times: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _first_step(cold: bool) -> float:
    """From process start to the first compiled step, with an empty or a filled program cache."""
    if not cold:
        return _process_seconds(FIRST_STEP, dict(os.environ))
    times = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as cache:
            times.append(_process_seconds(FIRST_STEP, {**os.environ, "THALWEG_CACHE": cache}, 1))
    return statistics.median(times)
