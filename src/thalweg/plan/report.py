"""A plan in words and as JSON: totals, the least time, kernels by phase, buffers with lifetime and origin.

In: a `Plan`. Out: text. `Plan.text` and `Plan.json` call it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from thalweg.plan.machine import Machine, machine

if TYPE_CHECKING:
    from thalweg.plan.core import Buffer, Kernel, Phase, Plan


def text(plan: Plan, threads: int, limit: int | None) -> str:
    """Totals, then phases with their kernels, then buffers by size; at most `limit` kernels and buffers."""
    found = machine(threads)
    plural = "s" if threads > 1 else ""
    lines = [
        f"plan of {plan.graph.name}: {plan.operations:,} operations, {plan.total_bytes(threads):,} bytes "
        f"with {threads} thread{plural}, {'at least' if found.measured else 'limit estimated as'} "
        f"{duration(plan.least_seconds(threads))}",
        "  " + ", ".join(f"{name} {count:,}" for name, count in plan.memory(threads).items()),
        f"  limits: {found}",
    ]
    lines += _phases(plan, found, limit)
    return "\n".join([*lines, *_buffers(plan, limit)])


def _phases(plan: Plan, found: Machine, limit: int | None) -> list[str]:
    """The phases; of many kernels those that take longest."""
    kernels = plan.kernels
    costly = sorted(kernels, key=lambda k: -found.seconds(k.operations, k.traffic))[:limit]
    shown = {id(kernel) for kernel in costly}
    lines: list[str] = []
    for number, phase in enumerate(plan.phases):
        rows = [_kernel(kernel, found) for kernel in phase.kernels if id(kernel) in shown]
        if rows or limit is None or len(kernels) <= limit:
            lines += [_phase(number, phase), *rows]
    if len(kernels) > len(shown):
        lines.append(
            f"  ... and {len(kernels) - len(shown):,} cheaper kernels of {len(plan.phases):,} phases; "
            "plan.text(limit=None) lists all"
        )
    return lines


def _phase(number: int, phase: Phase) -> str:
    how = f"{phase.tasks} tasks" + (", kept until the state changes" if phase.kept else "")
    if phase.loop is not None:
        length: Any = getattr(phase.kernels[0].anchor, "op", None)
        how = f"{length.length} iterations of {len(phase.loop.phases)} phases"
    if phase.batch:
        how += f" over {phase.extent} samples, blocks of {phase.block}"
    return f"phase {number}: {how}"


def _kernel(kernel: Kernel, found: Machine) -> str:
    shapes = ", ".join(str(root.type) for root in kernel.roots)
    spans = ", ".join(map(str, kernel.where[:3]))
    least = duration(found.seconds(kernel.operations, 0))
    return (
        f"  {kernel.name:<34} {kernel.role:<8} -> {shapes:<32} {kernel.operations:>14,} ops "
        f"{kernel.traffic:>12,} B {least:>9}  # {spans}"
    )


def _buffers(plan: Plan, limit: int | None) -> list[str]:
    every = sorted(plan.all_buffers, key=lambda b: -b.total)
    lines = ["buffers:"]
    for buffer in every[:limit]:
        layout = f" lanes on axis {buffer.lane_axis}" if buffer.lane_axis is not None else ""
        copies = f" x {buffer.copies}" if buffer.copies > 1 else ""
        lines.append(
            f"  {buffer.scope.value:<8} {buffer.total:>12,} B  {place(buffer):<14} {lifetime(buffer):<22} "
            f"{buffer.type!s:<24}{copies}{layout} {buffer.name}"
            + (f"  [{buffer.module}]" if buffer.module else "")
            + (f"  # {buffer.where[0]}" if buffer.where else "")
        )
    rest = every[len(lines) - 1 :]
    if rest:
        lines.append(f"  ... and {len(rest):,} smaller ones, {sum(b.total for b in rest):,} B")
    return lines


def planned(buffer: Buffer) -> bool:
    """Has it a place in an arena (rather than being the caller's, a holder's or the program's)?"""
    return buffer.scope.value in ("program", "slot", "thread")


def place(buffer: Buffer) -> str:
    """The offset in its arena."""
    return f"at {buffer.offset:,}" if planned(buffer) else ""


def lifetime(buffer: Buffer) -> str:
    """From the first write to the last read, in words."""
    if not planned(buffer) or buffer.first[0] < 0:
        return ""
    (first, begin), (last, end) = buffer.first, buffer.last
    if buffer.scope.value == "thread":
        steps = f"kernel {begin}" if begin == end else f"kernels {begin} to {end}"
        return f"phase {first}, {steps}"
    return f"phase {first}" if first == last else f"phases {first} to {last}"


def duration(seconds: float) -> str:
    """A time with a unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.2g} us"


def json_text(plan: Plan, threads: int) -> str:
    """Everything as JSON."""
    found = machine(threads)
    facts = {
        "graph": plan.graph.name,
        "threads": threads,
        "operations": plan.operations,
        "memory": plan.memory(threads),
        "total_bytes": plan.total_bytes(threads),
        "least_seconds": plan.least_seconds(threads),
        "machine": {
            "origin": found.origin,
            "operations_per_second": found.operations_per_second,
            "bytes_per_second": found.bytes_per_second,
            "cache_bytes": found.cache_bytes,
        },
        "phases": [
            {
                "tasks": phase.tasks,
                "batch": phase.batch,
                "block": phase.block,
                "kernels": [_kernel_facts(kernel) for kernel in phase.kernels],
            }
            for phase in plan.phases
        ],
        "buffers": [_buffer_facts(buffer) for buffer in plan.all_buffers],
    }
    return json.dumps(facts, indent=1)


def _kernel_facts(kernel: Kernel) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "role": kernel.role,
        "tasks": kernel.tasks,
        "operations": kernel.operations,
        "bytes": kernel.traffic,
        "where": [f"{span.file}:{span.line}" for span in kernel.where],
    }


def _buffer_facts(buffer: Buffer) -> dict[str, Any]:
    return {
        "name": buffer.name,
        "type": str(buffer.type),
        "scope": buffer.scope.value,
        "bytes": buffer.total,
        "offset": buffer.offset,
        "copies": buffer.copies,
        "first": buffer.first,
        "last": buffer.last,
        "op": buffer.op,
        "module": buffer.module,
        "where": [f"{span.file}:{span.line}" for span in buffer.where],
    }
