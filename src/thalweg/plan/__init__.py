"""Plans: what will run, before it runs; the checker that proves their memory; reports; the machine's limits.

In: what the scheduler decided. Out: `Plan` and its parts, and a `Machine` to hold it against.
"""

from thalweg.plan.core import (
    ALIGNMENT,
    LANES,
    MOST_SLOTS,
    Buffer,
    Kernel,
    Phase,
    Plan,
    Scope,
    Support,
    Target,
    aligned,
    check,
    failing_nodes,
)
from thalweg.plan.machine import Machine, machine

__all__ = [
    "ALIGNMENT",
    "LANES",
    "MOST_SLOTS",
    "Buffer",
    "Kernel",
    "Machine",
    "Phase",
    "Plan",
    "Scope",
    "Support",
    "Target",
    "aligned",
    "check",
    "failing_nodes",
    "machine",
]
