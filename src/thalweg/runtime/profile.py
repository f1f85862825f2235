"""Profiles: how long each kernel of a program took, what it could have taken, and which lines it came
from."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.config import settings
from thalweg.plan import Kernel, Phase, Plan
from thalweg.runtime import limits
from thalweg.runtime.program import NativeProgram

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Profile:
    """`events` has one row (thread, kernel, start, end in nanoseconds) per call of a kernel, over `calls`
    calls of the program."""

    plan: Plan
    threads: int
    calls: int
    events: Array

    def seconds(self, number: int) -> float:
        """Time of kernel `number` of the plan per call of the program, added over threads."""
        own = self.events[self.events[:, 1] == number]
        return float((own[:, 3] - own[:, 2]).sum()) * 1e-9 / self.calls

    def limit(self, kernel: Kernel) -> float:
        """The least seconds of one core for a kernel's operations and bytes."""
        return max(
            kernel.operations / limits.operations_per_second(1), kernel.traffic / limits.bytes_per_second(1)
        )

    def text(self) -> str:
        """A table: kernels by time, with the share of the machine's limit that they reach."""
        kernels = self.plan.kernels
        times = [self.seconds(number) for number in range(len(kernels))]
        total = sum(times) or 1.0
        lines = [
            f"{total * 1e6:,.1f} us of {self.threads} thread{'s' if self.threads > 1 else ''} per call "
            f"(mean of {self.calls} calls)",
            f"{'us':>9} {'share':>6} {'GFLOP/s':>8} {'GB/s':>7} {'limit':>6}  kernel",
        ]
        for number in sorted(range(len(kernels)), key=lambda n: -times[n]):
            kernel, seconds = kernels[number], times[number] or 1e-12
            where = ", ".join(map(str, kernel.where[:3]))
            lines.append(
                f"{seconds * 1e6:9.1f} {seconds / total:6.1%} {kernel.operations / seconds / 1e9:8.1f} "
                f"{kernel.traffic / seconds / 1e9:7.1f} {min(self.limit(kernel) / seconds, 1):6.0%}  "
                f"{kernel.name} -> {', '.join(str(root.type) for root in kernel.roots)}"
                + (f"  # {where}" if where else "")
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Write the calls as a trace file that chrome://tracing and https://ui.perfetto.dev open."""
        kernels = self.plan.kernels
        first = int(self.events[:, 2].min(initial=0)) if len(self.events) else 0
        rows = [
            {
                "name": kernels[kernel].name,
                "ph": "X",
                "pid": 0,
                "tid": int(thread),
                "ts": (start - first) / 1e3,
                "dur": (end - start) / 1e3,
                "args": {
                    "operations": kernels[kernel].operations,
                    "bytes": kernels[kernel].traffic,
                    "lines": [f"{span.file}:{span.line}" for span in kernels[kernel].where],
                },
            }
            for thread, kernel, start, end in self.events.tolist()
        ]
        Path(path).write_text(json.dumps({"traceEvents": rows}), encoding="utf-8")


def _events(phase: Phase) -> int:
    """Calls of kernels in a phase, at most."""
    if phase.batch:
        return len(phase.kernels) * -(-phase.extent // phase.block)
    return sum(kernel.tasks for kernel in phase.kernels)


def profile(program: NativeProgram, inputs: Sequence[Array], calls: int = 20) -> Profile:
    """Run a timed twin of `program`; state is as before afterwards."""
    from thalweg.codegen.c.program import EVENTS

    threads = program.threads or settings.threads()
    twin = program.observed("timed")
    twin.threads = threads
    calls = max(1, min(calls, EVENTS // max(1, sum(_events(phase) for phase in twin.plan.phases))))
    kept = [(holder, np.array(holder.data)) for holder, changes in twin.states if changes]
    twin.events = np.zeros((threads, 3 * EVENTS + 1), np.int64)
    try:
        twin(inputs)  # warms caches and threads up
        twin.events[:, 0] = 0
        for _ in range(calls):
            twin(inputs)
    finally:
        for holder, array in kept:
            holder.replace(array)
    rows = [
        np.column_stack([np.full(int(own[0]), thread), own[1 : 1 + 3 * int(own[0])].reshape(-1, 3)])
        for thread, own in enumerate(twin.events)
    ]
    return Profile(twin.plan, threads, calls, np.concatenate(rows))
