"""Workers in fresh processes, side by side: from cases to rows with times, ratios and shares of the peak.

Workers alternate A B A B, because the spread between processes is larger than within one; each gives the
median time of many repetitions. A ratio is the peer's time divided by Thalweg's, pair by pair, and its median
is what to quote. One process at a time: nothing else should run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from thalweg.errors import ThalwegError

PEERS = ("torch", "torch.compile", "jax", "onnxruntime", "numpy")
PEER_ENVIRONMENT = {  # PyTorch's fastest setting for its allocator
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
}


@dataclass(frozen=True)
class Case:
    """One line of the table. `operations` is the dense count of one repetition, where a share of the peak of
    multiply-adds says something."""

    name: str
    peers: tuple[str, ...] = ()
    operations: int = 0
    threaded: bool = True


@dataclass
class Row:
    """What was measured of a case: median seconds of Thalweg, of each peer, and the ratios to it."""

    case: Case
    threads: int
    seconds: float
    share: float | None = None
    peers: dict[str, tuple[float, float]] = field(default_factory=dict)

    def text(self) -> str:
        """One line for people."""
        parts = [f"{self.case.name:<32} {self.threads} threads  thalweg {1e3 * self.seconds:9.3f} ms"]
        if self.share is not None:
            parts.append(f"{100 * self.share:.0f} % of the peak")
        parts += [f"{name} {1e3 * time:.3f} ms ({ratio:.2f} x)" for name, (time, ratio) in self.peers.items()]
        return "  ".join(parts)


def repeat(step: Callable[[], Any], seconds: float = 1.0) -> float:
    """Median seconds of one call of `step`, after a warm-up."""
    for _ in range(3):
        step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def environment_of(side: str, threads: int) -> dict[str, str]:
    """The environment of a worker's process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "THALWEG_THREADS": str(threads)}
    return environment if side == "thalweg" else {**environment, **PEER_ENVIRONMENT}


def worker_seconds(case: str, side: str, threads: int) -> float:
    """Median seconds of one repetition, in a fresh process."""
    command = [sys.executable, "-m", "thalweg.bench", case, side, str(threads)]
    environment = environment_of(side, threads)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise ThalwegError(f"{case} ({side}, {threads} threads) failed:\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def compare(case: Case, threads: int, processes: int, peers: Sequence[str]) -> Row:
    """Times and ratios of one case; the sides take turns."""
    sides = ["thalweg", *(peer for peer in case.peers if peer in peers)]
    for side in sides:  # fills the program caches
        if side in ("thalweg", "torch.compile"):
            worker_seconds(case.name, side, threads)
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(processes):
        for side in sides:
            times[side].append(worker_seconds(case.name, side, threads))
    own = times["thalweg"]
    row = Row(case, threads, statistics.median(own))
    for side in sides[1:]:
        ratios = [other / mine for other, mine in zip(times[side], own, strict=True)]
        row.peers[side] = (statistics.median(times[side]), statistics.median(ratios))
    if case.operations:
        row.share = case.operations / row.seconds * worker_seconds("peak", "thalweg", threads)
    return row


def random_summary(rows: Sequence[Row]) -> list[str]:
    """The median share of the peak over the random networks, one line per number of threads."""
    shares: dict[int, list[float]] = {}
    for row in rows:
        if row.case.name.startswith("random") and row.share is not None:
            shares.setdefault(row.threads, []).append(row.share)
    return [
        f"{len(found)} random networks, {threads} threads: median {statistics.median(found):.0%} of the "
        f"peak, {min(found):.0%} to {max(found):.0%}"
        for threads, found in shares.items()
    ]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table with a column of times and one of ratios for each peer that was measured."""
    peers = [peer for peer in PEERS if any(peer in row.peers for row in rows)]
    head = ["case", "threads", "Thalweg ms", "share of peak"]
    head += [f"{peer} ms (ratio)" for peer in peers]
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.case.name, str(row.threads), f"{1e3 * row.seconds:.3f}"]
        cells.append("" if row.share is None else f"{row.share:.0%}")
        for peer in peers:
            seconds, ratio = row.peers.get(peer, (0.0, 0.0))
            cells.append(f"{1e3 * seconds:.3f} ({ratio:.2f})" if peer in row.peers else "")
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table) + "\n"
