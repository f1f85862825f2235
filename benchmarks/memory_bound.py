"""Kernels at the limit of memory against PyTorch: elementwise functions, softmax, norms, reductions, gathers.

    python benchmarks/memory_bound.py                        # 4 million float32 numbers, 1 and 2 threads
    python benchmarks/memory_bound.py sum softmax --rows 100000 --markdown memory.md

Each side runs every case in one fresh process per round, alternating A B A B; a time is the fastest of
several calls, a ratio PyTorch's time divided by Thalweg's, pair by pair, of which the median is printed.
Bytes are those that must be read and written once; 16 MB lie in the last cache of many machines, so choose
more rows to see the memory itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from products import fastest

from thalweg.bench.measuring import environment_of

COLUMNS = 1000
Pair = tuple[Callable[..., Any], Callable[..., Any], int]  # Thalweg's, PyTorch's, passes over the elements


def cases() -> dict[str, Pair]:
    """The cases by name; the functions get the matrix and, where they take two tensors, indices."""
    import torch

    import thalweg as tw
    from thalweg.nn import functional as ours

    peer = torch.nn.functional
    shape = (COLUMNS,)
    return {
        "add": (lambda x: x + 1.5, lambda x: x + 1.5, 2),
        "relu": (lambda x: ours.relu(x), lambda x: peer.relu(x), 2),
        "gelu": (lambda x: ours.gelu(x), lambda x: peer.gelu(x), 2),
        "exp": (lambda x: tw.exp(x), torch.exp, 2),
        "tanh": (lambda x: tw.tanh(x), torch.tanh, 2),
        "softmax": (lambda x: ours.softmax(x, dim=-1), lambda x: peer.softmax(x, -1), 2),
        "layer norm": (lambda x: ours.layer_norm(x, shape), lambda x: peer.layer_norm(x, shape), 2),
        "cross entropy": (lambda x, i: ours.cross_entropy(x, i), lambda x, i: peer.cross_entropy(x, i), 1),
        "sum": (lambda x: x.sum(), lambda x: x.sum(), 1),
        "sum of columns": (lambda x: x.sum(axis=0), lambda x: x.sum(0), 1),
        "sum of rows": (lambda x: x.sum(axis=1), lambda x: x.sum(1), 1),
        "max": (lambda x: x.max(), lambda x: x.max(), 1),
        "max of rows": (lambda x: x.max(axis=1), lambda x: x.amax(1), 1),
        "argmax of rows": (lambda x: x.argmax(axis=1), lambda x: x.argmax(1), 1),
        "standardised columns": (
            lambda x: (x - x.mean(axis=0)) / (x.var(axis=0) + 1e-5) ** 0.5,
            lambda x: peer.batch_norm(x, None, None, training=True),
            2,
        ),
        "transpose": (lambda x: tw.transpose(x, (1, 0)), lambda x: x.t().contiguous(), 2),
        "rows by index": (lambda x, i: x[i], lambda x, i: x[i], 2),
    }


def timed(side: str, names: list[str], rows: int, threads: int) -> dict[str, float]:
    """Seconds of each case in this process."""
    import torch

    import thalweg as tw

    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    matrix = random.standard_normal((rows, COLUMNS), np.float32)
    indices = random.integers(0, min(rows, COLUMNS), rows)
    found: dict[str, float] = {}
    for name, (own, other, _) in cases().items():
        if names and not any(word in name for word in names):
            continue
        arrays = (matrix, indices)[: own.__code__.co_argcount]
        if side == "torch":
            tensors = [torch.from_numpy(array) for array in arrays]
            with torch.inference_mode():
                found[name] = fastest(lambda run=other, tensors=tensors: run(*tensors))  # type: ignore[misc]
        else:
            compiled, inputs = tw.compile(own), [tw.tensor(array) for array in arrays]
            found[name] = fastest(lambda run=compiled, inputs=inputs: run(*inputs))  # type: ignore[misc]
    return found


def measure(side: str, options: argparse.Namespace, threads: int) -> dict[str, float]:
    """The times of one fresh process."""
    command = [sys.executable, __file__, *options.names, "--worker", side]
    command += ["--threads", str(threads), "--rows", str(options.rows)]
    environment = environment_of(side, threads)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(options: argparse.Namespace, threads: int) -> list[str]:
    """The rows of one number of threads."""
    measure("thalweg", options, threads)  # fills the program cache
    sides = ("thalweg", "torch")
    pairs = [[measure(side, options, threads) for side in sides] for _ in range(options.processes)]
    lines = []
    for name, (_, _, passes) in cases().items():
        if name in pairs[0][0]:
            seconds = statistics.median(own[name] for own, _ in pairs)
            ratio = statistics.median(peer[name] / own[name] for own, peer in pairs)
            elements = options.rows * COLUMNS
            speed = 4 * passes * elements / seconds / 1e9
            each = 1e9 * seconds / elements
            lines.append(
                f"| {name} | {threads} | {1e3 * seconds:.2f} | {each:.2f} | {speed:.0f} | {ratio:.2f} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="run cases whose name contains one of these words")
    parser.add_argument("--rows", type=int, default=4000, help=f"of {COLUMNS} numbers (4000)")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes per side (3)")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="thread counts (1 2)")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument("--worker", choices=("thalweg", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(timed(options.worker, options.names, options.rows, options.threads[0])))
        return
    lines = [
        "| case | threads | Thalweg ms | ns per element | GB/s | PyTorch / Thalweg |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for threads in options.threads:
        found = table(options, threads)
        lines += found
        print("\n".join(found), flush=True)
    if options.markdown:
        options.markdown.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
