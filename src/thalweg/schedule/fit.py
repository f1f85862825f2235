"""Fitting: a step that needs more memory than there is, changed so that it needs less.

In: the prepared graph of a step, how to get it for a smaller batch, and a number of bytes. Out: the plan of
the same step with values computed again (`passes.rematerialise`), the batch in parts (`passes.microbatch`),
or both, at the least extra time. Every candidate is planned in full, so what it needs is exact.
`thalweg.tensor.plans` and `compile` call it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from thalweg.errors import MemoryLimitError, UnsupportedError
from thalweg.graph import Graph, Node, Value, builder, rewrite
from thalweg.ops.control import Scan
from thalweg.passes.microbatch import LOOP, microbatch
from thalweg.passes.rematerialise import Segments, find_segments, rematerialise
from thalweg.plan import Kernel, Machine, Phase, Plan, Target, machine
from thalweg.schedule.planning import schedule

Resized = Callable[[int], Graph]  # k -> the prepared graph for a batch 1/k as large


@dataclass(frozen=True)
class Fit:
    """How a step fits: its plan, and what was changed."""

    plan: Plan
    threads: int
    limit: int
    micro_batches: int  # parts of the batch, one after the other
    recomputed: tuple[int, ...]  # by segment of the forward pass: 0 kept, 1 cheap ops again, 2 all again
    slowdown: float  # estimated time, as a multiple of the unchanged step's

    @property
    def total_bytes(self) -> int:
        return self.plan.total_bytes(self.threads)

    @property
    def change(self) -> str:
        """In words, what was changed."""
        done = []
        if self.micro_batches > 1:
            done.append(f"{self.micro_batches} micro-batches")
        for level, what in ((1, "without its contractions"), (2, "whole")):
            count = sum(found == level for found in self.recomputed)
            if count:
                done.append(f"{count} of {len(self.recomputed)} segments of the forward pass again, {what}")
        return "; ".join(done) or "as it is"

    def __str__(self) -> str:
        return (
            f"{self.total_bytes:,} of {self.limit:,} bytes with {self.threads} thread"
            f"{'s' if self.threads > 1 else ''}: {self.change}; about {self.slowdown:.2f} x the time"
        )


def fit(
    graph: Graph,
    target: Target,
    limit: int,
    threads: int,
    batch: int | None = None,
    resized: Resized | None = None,
    micro_batches: int = 1,
) -> Fit:
    """The fastest of the changed steps that need at most `limit` bytes.

    `graph` is prepared; `resized(k)` is the same step for a k-th of its batch of `batch` samples. With
    `micro_batches` that many parts are given. Raises `MemoryLimitError`, saying what would fit.
    """
    limits = machine(threads)
    found: list[Fit] = []
    least: tuple[int, int] | None = None  # bytes, micro-batches
    usual = estimate(schedule(graph, target), limits)
    reason: UnsupportedError | None = None
    for count in _divisors(batch, micro_batches, resized):
        try:
            cut = _Candidates(graph, resized, count, target, threads)
        except UnsupportedError as error:
            reason = reason or error
            continue
        chosen = cut.first_below(limit)
        if least is None or cut.least < least[0]:
            least = (cut.least, count)
        if chosen is not None:
            plan, levels = chosen
            found.append(Fit(plan, threads, limit, count, levels, estimate(plan, limits) / usual))
            if not any(levels) or len(found) > 1:
                break  # smaller parts need more time
    if found:
        return min(found, key=lambda f: f.slowdown)
    if least is None:
        assert reason is not None
        raise reason
    raise _refusal(graph, schedule(graph, target), limit, threads, least, reason)


def _divisors(batch: int | None, given: int, resized: Resized | None) -> list[int]:
    """Numbers of micro-batches to try."""
    if given > 1 or batch is None or resized is None:
        return [given]
    return [count for count in range(1, batch + 1) if batch % count == 0]


def _refusal(
    graph: Graph, plan: Plan, limit: int, threads: int, least: tuple[int, int], reason: Exception | None
) -> MemoryLimitError:
    memory = plan.memory(threads)
    fixed = sum(memory[name] for name in ("inputs", "outputs", "state", "constants"))
    parts = f" in {least[1]} micro-batches" if least[1] > 1 else ""
    state = memory["state"] + memory["constants"]
    smaller = f", or a smaller batch: plan.largest_batch({limit})" if state < limit else ""
    text = (
        f"{graph.name} needs {plan.total_bytes(threads):,} bytes with {threads} thread{'s' * (threads > 1)}, "
        f"and {least[0]:,} with all that can be computed again{parts}; the limit is {limit:,}\n"
        f"  the least change that fits: memory={least[0]} (inputs, outputs, state and constants alone take "
        f"{fixed:,}){smaller}"
    )
    return MemoryLimitError(text if reason is None else f"{text}\n  {reason}", least[0])


class _Candidates:
    """One number of micro-batches, with more and more computed again."""

    def __init__(
        self, graph: Graph, resized: Resized | None, count: int, target: Target, threads: int
    ) -> None:
        self.target = target
        self.threads = threads
        self.graph = graph
        if count > 1:
            assert resized is not None
            self.graph = microbatch(graph, resized(count), count)
        self.segments = find_segments(self._inner())
        size = len(self.segments)
        self.rungs = [(0,) * size]
        self.rungs += [(1,) * n + (0,) * (size - n) for n in range(1, size + 1)]
        self.rungs += [(2,) * n + (1,) * (size - n) for n in range(1, size + 1)]
        self.plans: dict[int, Plan] = {}
        self.least = 0

    def _inner(self) -> Graph:
        """The graph with the forward pass: that of the loop over micro-batches, if there is one."""
        for node in self.graph.nodes:
            if isinstance(node.op, Scan) and node.op.body.name == LOOP:
                return node.op.body
        return self.graph

    def plan(self, rung: int) -> Plan:
        if rung not in self.plans:
            self.plans[rung] = schedule(self._changed(self.rungs[rung]), self.target)
        return self.plans[rung]

    def bytes(self, rung: int) -> int:
        return self.plan(rung).total_bytes(self.threads)

    def _changed(self, levels: Sequence[int]) -> Graph:
        if not any(levels):
            return self.graph
        inner = rematerialise(self.segments, levels)
        return inner if self.segments.graph is self.graph else _with_body(self.graph, self.segments, inner)

    def first_below(self, limit: int) -> tuple[Plan, tuple[int, ...]] | None:
        """The first rung that fits, by bisection: further rungs need less memory, as a rule. Where the last
        one does not fit, one before it still may."""
        low, high = 0, len(self.rungs) - 1
        self.least = self.bytes(low)
        if self.least <= limit:
            return self.plan(low), self.rungs[low]
        if self.bytes(high) > limit:
            self.least = min(map(self.bytes, range(high + 1)))
            fitting = [rung for rung in range(high) if self.bytes(rung) <= limit]
            return (self.plan(fitting[0]), self.rungs[fitting[0]]) if fitting else None
        while high - low > 1:
            middle = (low + high) // 2
            if self.bytes(middle) <= limit:
                high = middle
            else:
                low = middle
        return self.plan(high), self.rungs[high]


def _with_body(graph: Graph, segments: Segments, body: Graph) -> Graph:
    """The graph whose loop over micro-batches has another body."""

    def rule(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if not isinstance(node.op, Scan) or node.op.body is not segments.graph:
            return None
        types = [v.type for v in node.outputs]
        return builder().append(Node(replace(node.op, body=body), inputs, types, node.where, node.scope))

    return rewrite(graph, rule)


def estimate(plan: Plan, limits: Machine) -> float:
    """Seconds that a plan takes, by its operations and the bytes that its kernels move: good for comparisons
    of plans of the same step."""
    return sum(_kernel_seconds(phase, kernel, limits) for phase in plan.phases for kernel in phase.kernels)


def _kernel_seconds(phase: Phase, kernel: Kernel, limits: Machine) -> float:
    body: Any = getattr(phase, "loop", None) or kernel.detail.get("plans", {}).get("body")
    if kernel.kind != "scan" or body is None:
        return limits.seconds(kernel.operations, kernel.traffic)
    assert kernel.anchor is not None
    op: Any = kernel.anchor.op
    return float(op.length) * estimate(body, limits) + kernel.traffic / limits.bytes_per_second
