"""Measure Thalweg and PyTorch side by side and print ratios.

    python benchmarks/run.py                     # every case
    python benchmarks/run.py lenet import        # cases whose name contains one of these words
    python benchmarks/run.py --processes 5 --markdown results.md

Each case has one worker per framework. Workers run in fresh processes, alternating A B A B, because the
spread between processes is larger than within one; each gives the median time of many repetitions. The
ratio is the other framework's time divided by Thalweg's, pair by pair; its median is what to quote. One
process at a time: nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import cases

HERE = Path(__file__).parent
PEER_ENVIRONMENT = {  # PyTorch's fastest setting for its allocator
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
}


def environment_of(side: str, threads: int) -> dict[str, str]:
    """The environment of a worker's process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "THALWEG_THREADS": str(threads)}
    return environment if side == "thalweg" else {**environment, **PEER_ENVIRONMENT}


def measure(case: str, side: str, threads: int) -> float:
    """Median seconds of one fresh process."""
    environment = environment_of(side, threads)
    command = [sys.executable, str(HERE / "cases.py"), case, side, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{case} ({side}, {threads} threads) failed:\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def compare(case: cases.Case, threads: int, processes: int) -> dict[str, object]:
    """Times and ratios of one case; the sides alternate."""
    times: dict[str, list[float]] = {side: [] for side in case.sides}
    measure(case.name, "thalweg", threads)  # fills the program cache
    for _ in range(processes):
        for side in case.sides:
            times[side].append(measure(case.name, side, threads))
    ours = times["thalweg"]
    row: dict[str, object] = {"case": case.name, "threads": threads, "thalweg": statistics.median(ours)}
    for side in case.sides[1:]:
        ratios = [other / own for other, own in zip(times[side], ours, strict=True)]
        row[side] = statistics.median(times[side])
        row[f"{side} / thalweg"] = statistics.median(ratios)
    if case.operations:
        peak = measure("peak", "thalweg", threads)
        row["share of peak"] = case.operations / statistics.median(ours) * peak
    return row


def line(row: dict[str, object]) -> str:
    """One row for people."""
    parts = [
        f"{row['case']:<32} {row['threads']} threads  thalweg {1e3 * float(str(row['thalweg'])):9.3f} ms"
    ]
    for key, value in row.items():
        if key.endswith("/ thalweg"):
            side = key.split()[0]
            parts.append(f"{side} {1e3 * float(str(row[side])):9.3f} ms  ratio {float(str(value)):.2f}")
    if "share of peak" in row:
        parts.append(f"{100 * float(str(row['share of peak'])):.0f} % of the FMA peak")
    return "  ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="run cases whose name contains one of these words")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes per side (3)")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="thread counts (1 2)")
    parser.add_argument("--markdown", type=Path, help="write the rows as a table to this file")
    options = parser.parse_args()
    chosen = [c for c in cases.CASES if not options.names or any(word in c.name for word in options.names)]
    rows = []
    for case in chosen:
        for threads in options.threads if case.threaded else [1]:
            rows.append(compare(case, threads, options.processes))
            print(line(rows[-1]), flush=True)
    if options.markdown:
        options.markdown.write_text(markdown(rows), encoding="utf-8")


def markdown(rows: list[dict[str, object]]) -> str:
    """The rows as a table, one line per peer."""
    table = [
        "| case | threads | Thalweg ms | peer | peer ms | peer / Thalweg | share of FMA peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = f"{float(str(row['share of peak'])):.0%}" if "share of peak" in row else ""
        own = f"| {row['case']} | {row['threads']} | {1e3 * float(str(row['thalweg'])):.3f}"
        sides = [key.split()[0] for key in row if key.endswith("/ thalweg")]
        for side in sides:
            time, ratio = 1e3 * float(str(row[side])), float(str(row[f"{side} / thalweg"]))
            table.append(f"{own} | {side} | {time:.3f} | {ratio:.2f} | {share} |")
        if not sides:
            table.append(f"{own} | | | | {share} |")
    return "\n".join(table) + "\n"


if __name__ == "__main__":
    main()
