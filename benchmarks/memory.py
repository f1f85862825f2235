"""Hold plans against what processes really take: mapped bytes, resident bytes, an address-space limit.

    python benchmarks/memory.py                  # lenet, resnet18, gpt_nano, lstm
    python benchmarks/memory.py bert_base        # takes 3 GB and some minutes
    python benchmarks/memory.py --markdown memory.md

Each case runs in fresh processes, the program compiled before. In the first, the resident bytes above the
base (the process with everything loaded, less the state and inputs that it holds already) are compared with
the plan; in the second the address space may grow by no more than the plan says; half must not suffice.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import thalweg as tw
from thalweg import models, nn, optim
from thalweg.runtime.memory import mapped_bytes
from thalweg.runtime.pool import pool

SLACK = 6 << 20  # of address space: two mappings aligned to 2 MiB, and what Python takes for its objects
Case = tuple[Any, list[np.ndarray]]  # a compiled step and its arguments


def trained(model: Any, optimizer: Any, loss_of: Callable[..., Any]) -> Any:
    """The compiled training step."""

    @tw.compile
    def step(*arguments: Any) -> Any:
        loss = loss_of(model, *arguments)
        optimizer.minimize(loss)
        return loss

    return step


def classified(model: Any, x: Any, y: Any) -> Any:
    return nn.functional.cross_entropy(model(x), y)


def lenet() -> Case:
    model = models.LeNet()
    step = trained(model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9), classified)
    return step, [np.ones((64, 1, 28, 28), np.float32), np.zeros(64, np.int64)]


def resnet18() -> Case:
    model = models.resnet18(num_classes=10)
    step = trained(model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9), classified)
    return step, [np.ones((8, 3, 64, 64), np.float32), np.zeros(8, np.int64)]


def language(model: Any, ids: Any, labels: Any) -> Any:
    return model(ids, labels=labels).loss


def gpt_nano() -> Case:
    from thalweg.models.gpt import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=1024, n_positions=256, n_embd=256, n_layer=4, n_head=4)
    model = GPT2LMHeadModel(config).eval()  # without dropout
    step = trained(model, optim.AdamW(model.parameters(), lr=1e-3), language)
    return step, [np.zeros((8, 256), np.int64), np.zeros((8, 256), np.int64)]


def bert_base() -> Case:
    from thalweg.models.bert import BertConfig, BertForMaskedLM

    with nn.init.without_drawing():
        model = BertForMaskedLM(BertConfig())
    step = trained(model, optim.AdamW(model.parameters(), lr=1e-4), language)
    return step, [np.zeros((8, 128), np.int64), np.zeros((8, 128), np.int64)]


class Sequence(nn.Module):
    """A recurrent classifier."""

    def __init__(self) -> None:
        self.lstm = nn.LSTM(64, 256)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.lstm(x)[0][-1])


def lstm() -> Case:
    model = Sequence()
    step = trained(model, optim.Adam(model.parameters(), lr=1e-3), classified)
    return step, [np.ones((64, 32, 64), np.float32), np.zeros(32, np.int64)]


CASES: dict[str, Callable[[], Case]] = {
    "lenet": lenet,
    "resnet18": resnet18,
    "gpt_nano": gpt_nano,
    "lstm": lstm,
    "bert_base": bert_base,
}


def status(name: str) -> int:
    """Bytes of this process: VmRSS (resident) or VmSize (address space)."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(name + ":"))
    return int(line.split()[1]) << 10


def settled() -> None:
    """Give back what Python and the C library keep for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def resident(case: Case, threads: int) -> dict[str, int]:
    """What a process takes above its base, and what the plan says."""
    step, arguments = case
    start = time.perf_counter()
    step.plan(*arguments)
    milliseconds = round(1e3 * (time.perf_counter() - start))
    plan = step.program(*arguments).plan
    pool(threads)
    settled()
    memory = plan.memory(threads)
    held = mapped_bytes()
    base = status("VmRSS") - memory["state"] - memory["inputs"]
    results = [step(*arguments) for _ in range(3)]
    settled()
    above = status("VmRSS") - base
    mapped = mapped_bytes() - held
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    results = [step(*arguments)]
    allocated = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    del results
    return {
        "plan": plan.total_bytes(threads),
        "above base": above,
        "planned maps": memory["arena"] + memory["scratch"],
        "mapped": mapped,
        "outputs": memory["outputs"],
        "a call allocates": allocated,
        "grown by 5 calls": grown(step, arguments),
        "ms to plan": milliseconds,
    }


def grown(step: Any, arguments: list[np.ndarray]) -> int:
    settled()
    before = status("VmRSS")
    for _ in range(5):
        step(*arguments)
    settled()
    return status("VmRSS") - before


def limited(case: Case, threads: int, share: float) -> dict[str, int]:
    """Does a call succeed where the address space may grow by `share` of what the plan says, and no more?"""
    step, arguments = case
    plan = step.program(*arguments).plan
    pool(threads)
    settled()
    memory = plan.memory(threads)
    more = memory["arena"] + memory["scratch"] + memory["outputs"]
    limit = status("VmSize") + int(share * more) + (SLACK if share == 1 else 0)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        step(*arguments)
    except MemoryError:
        return {"ran": 0}
    return {"ran": 1}


def worker(name: str, what: str, threads: int) -> dict[str, int]:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, "--worker", what, "--threads", str(threads), name]
    environment = {**os.environ, "THALWEG_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name} ({what}) failed:\n{done.stderr}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(name: str, threads: int) -> dict[str, int]:
    """All measurements of a case; the first fills the cache of programs."""
    worker(name, "compile", threads)
    found = worker(name, "resident", threads)
    found["runs in the plan"] = worker(name, "limited", threads)["ran"]
    found["runs in half of it"] = worker(name, "too little", threads)["ran"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", type=Path, help="write the table to a file")
    parser.add_argument("--worker", choices=("compile", "resident", "limited", "too little"))
    options = parser.parse_args()
    if options.worker is not None:
        case = CASES[options.cases[0]]()
        if options.worker == "compile":
            case[0].program(*case[1])
            print("{}")
        elif options.worker == "resident":
            print(json.dumps(resident(case, options.threads)))
        else:
            print(json.dumps(limited(case, options.threads, 1 if options.worker == "limited" else 0.5)))
        return
    rows = [
        (name, measured(name, options.threads))
        for name in options.cases or [n for n in CASES if n != "bert_base"]
    ]
    titles = ["case", *rows[0][1]]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    lines += [f"| {name} | {' | '.join(f'{value:,}' for value in row.values())} |" for name, row in rows]
    print("\n".join(lines))
    if options.markdown is not None:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
