"""The limits of the machine that a plan is held against: operations and bytes per second, and its cache.

In: what Linux says of the processor, or figures that `thalweg.runtime.limits` has measured and stored in
the cache directory. Out: a `Machine`. Nothing is measured here, so a plan needs neither compiler nor time.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from thalweg.config import settings

STORE = "machine.json"  # in the cache directory: {processor: {threads: [operations/s, bytes/s]}}
CLOCK = 3.0e9  # where the system does not say how fast the processor runs
CORE_BANDWIDTH = 20e9  # bytes per second that one core reads from memory, as a rule
CACHE_BYTES = 32 << 20
SYSTEM = Path("/sys/devices/system/cpu/cpu0")


@dataclass(frozen=True, slots=True)
class Machine:
    """What some threads of a machine can do at most together."""

    origin: str  # where the figures come from, in words
    threads: int
    operations_per_second: float  # float32; a multiply-add is two
    bytes_per_second: float  # from memory
    cache_bytes: int  # of the last level, which all threads share
    measured: bool  # else times are estimates: a processor may run faster than its nominal clock

    def seconds(self, operations: float, nbytes: float) -> float:
        """The least time for so many operations while so many bytes move."""
        return max(operations / self.operations_per_second, nbytes / self.bytes_per_second)

    def __str__(self) -> str:
        return (
            f"{self.operations_per_second / 1e9:,.0f} GFLOP/s and {self.bytes_per_second / 1e9:,.0f} GB/s "
            f"with {self.threads} thread{'s' if self.threads > 1 else ''}, {self.origin}"
        )


def machine(threads: int | None = None) -> Machine:
    """The limits for that many threads: measured ones where stored, else those of a model."""
    count = threads or settings.threads()
    found = _stored().get(str(count))
    if found is not None:
        return Machine("measured on this machine", count, found[0], found[1], _cache_bytes(), True)
    per_cycle, why = _operations_per_cycle()
    clock = _clock()
    return Machine(
        f"a model of this processor ({clock / 1e9:.1f} GHz, {why}); `thalweg doctor` measures them",
        count,
        count * clock * per_cycle,
        count * CORE_BANDWIDTH,
        _cache_bytes(),
        False,
    )


def store(threads: int, operations_per_second: float, bytes_per_second: float) -> None:
    """Keep measured limits for later processes: the best so far, for others may have been busy meanwhile.
    Without a cache directory they are simply not kept."""
    path = settings.cache / STORE
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        own = known.setdefault(processor(), {})
        before = own.get(str(threads), [0.0, 0.0])
        own[str(threads)] = [max(operations_per_second, before[0]), max(bytes_per_second, before[1])]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1), encoding="utf-8")
    except (OSError, ValueError, AttributeError, IndexError):
        return


def _stored() -> dict[str, list[float]]:
    try:
        known = json.loads((settings.cache / STORE).read_text(encoding="utf-8"))
        found: dict[str, list[float]] = known.get(processor(), {})
    except (OSError, ValueError, AttributeError):
        return {}
    return {name: pair for name, pair in found.items() if len(pair) == 2 and min(pair) > 0}


@cache
def _facts() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; nothing on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = [line.partition(":") for line in text.partition("\n\n")[0].splitlines()]
    return {name.strip(): value.strip() for name, _, value in lines}


def processor() -> str:
    """The processor's name."""
    return _facts().get("model name") or platform.processor() or platform.machine() or "unknown"


def _clock() -> float:
    """Cycles per second: the highest that the system names, else the present one."""
    try:
        return float((SYSTEM / "cpufreq/cpuinfo_max_freq").read_text()) * 1e3
    except (OSError, ValueError):
        return float(_facts().get("cpu MHz", CLOCK / 1e6)) * 1e6


def _operations_per_cycle() -> tuple[int, str]:
    """float32 operations of one core per cycle: two multiply-add units as wide as the vectors."""
    flags = _facts().get("flags", "").split()
    if "avx512f" in flags:
        # AMD before Zen 5 (whose flag is avx512_vp2intersect) runs a 512-bit instruction in two halves.
        halves = "AMD" in _facts().get("vendor_id", "") and "avx512_vp2intersect" not in flags
        if not halves:
            return 64, "two 512-bit multiply-adds a cycle"
    if "fma" in flags or "avx512f" in flags:
        return 32, "two 256-bit multiply-adds a cycle"
    return 16, "two 128-bit multiply-adds a cycle"


@cache
def _cache_bytes() -> int:
    """Bytes of the last level of cache."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    try:
        sizes = [path.read_text().strip() for path in SYSTEM.glob("cache/index*/size")]
        return max(int(text[:-1]) * units[text[-1]] for text in sizes)
    except (OSError, ValueError, KeyError, IndexError):
        return CACHE_BYTES
