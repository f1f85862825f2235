"""A sweep of matrix products of random shapes against PyTorch (MKL, oneDNN).

    python benchmarks/products.py                      # 200 shapes, float32, 1 and 2 threads
    python benchmarks/products.py --shapes 40 --processes 1 --dtype bfloat16 --markdown products.md

Extents are drawn from 1 to 4096, log-uniformly, and each operand is transposed or not, by a seed. Both
sides run in fresh processes, alternating A B A B; each process times every shape (the fastest of several
calls) and both sides are called through their public interface, so that small shapes count what a call
costs. The ratio of a shape is PyTorch's time divided by Thalweg's, pair by pair; its median is printed, and
the geometric mean over the shapes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.bench.measuring import environment_of

LARGEST = 4096
MOST_OPERATIONS = 4e9  # of a product: larger ones would take most of the time and say little more
SLOW = 0.95  # a ratio below this is listed


@dataclass(frozen=True)
class Product:
    """[m, k] times [k, n], each operand stored as it is or transposed."""

    m: int
    n: int
    k: int
    transpose_a: bool
    transpose_b: bool

    def __str__(self) -> str:
        flags = "ᵀ" if self.transpose_a else "", "ᵀ" if self.transpose_b else ""
        return f"{self.m}x{self.k}{flags[0]} @ {self.k}x{self.n}{flags[1]}"

    def operands(self, random: np.random.Generator) -> tuple[Any, Any]:
        """Two float32 arrays as they are stored."""
        a = (self.k, self.m) if self.transpose_a else (self.m, self.k)
        b = (self.n, self.k) if self.transpose_b else (self.k, self.n)
        return random.standard_normal(a, np.float32), random.standard_normal(b, np.float32)

    @property
    def function(self) -> Callable[[Any, Any], Any]:
        """The product as a plain function of the stored operands."""
        return FUNCTIONS[self.transpose_a, self.transpose_b]


FUNCTIONS: dict[tuple[bool, bool], Callable[[Any, Any], Any]] = {
    (False, False): lambda a, b: a @ b,
    (False, True): lambda a, b: a @ b.T,
    (True, False): lambda a, b: a.T @ b,
    (True, True): lambda a, b: a.T @ b.T,
}


def draw(count: int, seed: int) -> list[Product]:
    """Random products, the same for every side."""
    random = np.random.default_rng(seed)
    products: list[Product] = []
    while len(products) < count:
        m, n, k = (round(math.exp(x)) for x in random.uniform(0, math.log(LARGEST), 3))
        a, b = (bool(flag) for flag in random.integers(0, 2, 2))
        if 2.0 * m * n * k <= MOST_OPERATIONS:
            products.append(Product(m, n, k, a, b))
    return products


def fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest call: enough calls for some milliseconds, at least five."""
    run()
    begin = time.perf_counter()
    run()
    once = max(time.perf_counter() - begin, 1e-7)
    together = max(1, min(100, int(20e-6 / once)))
    least = math.inf
    for _ in range(max(5, min(60, int(6e-3 / (once * together))))):
        begin = time.perf_counter()
        for _ in range(together):
            run()
        least = min(least, (time.perf_counter() - begin) / together)
    return least


def timed(side: str, products: list[Product], dtype: str, threads: int) -> list[float]:
    """Seconds of each product in this process."""
    random = np.random.default_rng(0)
    seconds: list[float] = []
    for product in products:
        arrays = product.operands(random)
        if side == "torch":
            import torch

            torch.set_num_threads(threads)
            with torch.inference_mode():
                a, b = (torch.from_numpy(array).to(getattr(torch, dtype)) for array in arrays)
                seconds.append(fastest(lambda a=a, b=b, run=product.function: run(a, b)))  # type: ignore[misc]
        else:
            import thalweg as tw

            x, y = (tw.tensor(array).astype(getattr(tw, dtype)) for array in arrays)
            compiled = tw.compile(product.function)
            seconds.append(fastest(lambda x=x, y=y, compiled=compiled: compiled(x, y)))  # type: ignore[misc]
    return seconds


def measure(side: str, options: argparse.Namespace, threads: int) -> list[float]:
    """The times of one fresh process."""
    command = [sys.executable, __file__, "--worker", side, "--threads", str(threads)]
    command += ["--shapes", str(options.shapes), "--seed", str(options.seed), "--dtype", options.dtype]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment_of(side, threads), check=False
    )
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr}")
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(products: list[Product], options: argparse.Namespace, threads: int) -> str:
    """One section of a results page."""
    measure("thalweg", options, threads)  # fills the program cache
    pairs = [
        (measure("thalweg", options, threads), measure("torch", options, threads))
        for _ in range(options.processes)
    ]
    rows = []
    for number, product in enumerate(products):
        ratio = statistics.median(torch[number] / own[number] for own, torch in pairs)
        seconds = statistics.median(own[number] for own, _ in pairs)
        rows.append((ratio, seconds, product))
    rows.sort(key=lambda row: row[0])
    mean = math.exp(statistics.fmean(math.log(ratio) for ratio, _, _ in rows))
    slow = [row for row in rows if row[0] < SLOW]
    lines = [
        f"{options.dtype}, {threads} thread{'s' if threads > 1 else ''}: geometric mean of PyTorch / Thalweg "
        f"over {len(rows)} shapes {mean:.2f}, median {rows[len(rows) // 2][0]:.2f}, "
        f"{len(slow)} slower than PyTorch by more than {1 - SLOW:.0%}",
        "",
    ]
    if slow:
        lines += ["| product | Thalweg us | PyTorch / Thalweg |", "|---|---|---|"]
        lines += [f"| {product} | {1e6 * seconds:.1f} | {ratio:.2f} |" for ratio, seconds, product in slow]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=int, default=200, help="how many (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the shapes (0)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64", "bfloat16", "float16"))
    parser.add_argument("--processes", type=int, default=3, help="fresh processes per side (3)")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="thread counts (1 2)")
    parser.add_argument("--markdown", type=Path, help="write the sections to this file")
    parser.add_argument("--worker", choices=("thalweg", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    products = draw(options.shapes, options.seed)
    if options.worker:
        print(json.dumps(timed(options.worker, products, options.dtype, options.threads[0])))
        return
    sections = []
    for threads in options.threads:
        sections.append(report(products, options, threads))
        print(sections[-1], flush=True)
    if options.markdown:
        options.markdown.write_text("\n".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
