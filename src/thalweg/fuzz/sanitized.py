"""Random programs under AddressSanitizer and UndefinedBehaviorSanitizer, each group in a process of its own.

In: a first seed. Out: for each group the seed of the program that the sanitizers object to and their report.
The compiler gets the sanitizers' flags, the process their libraries (LD_PRELOAD). Arenas come from `malloc`,
so that bytes behind them are watched. Linux with GCC only.

`python -m thalweg.fuzz.sanitized SEED COUNT` is the process: it prints each seed before it runs it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from thalweg.codegen.c.build import require_compiler
from thalweg.config import settings
from thalweg.errors import UnsupportedError

GROUP = 10
FLAGS = ("-fsanitize=address,undefined", "-g")


def environment() -> dict[str, str]:
    """The variables of a sanitized process; raises `UnsupportedError` where the sanitizers are not
    installed.
    """
    compiler = require_compiler()
    libraries = []
    for name in ("libasan.so", "libubsan.so"):
        found = subprocess.run(
            [*compiler.command, f"-print-file-name={name}"], capture_output=True, text=True
        ).stdout.strip()
        if not os.path.isabs(found):  # the compiler gives the name back where it knows no such file
            raise UnsupportedError(
                f"{' '.join(compiler.command)} has no {name}; install GCC with its sanitizers, and set CC=gcc"
            )
        libraries.append(found)
    return {
        **os.environ,
        "CC": " ".join([*compiler.command, *FLAGS]),
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it has until the end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "THALWEG_CACHE": str(settings.cache / "sanitized"),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }


def run_group(seed: int, count: int, variables: dict[str, str]) -> tuple[int, str] | None:
    """Run programs in a sanitized process: the seed that failed and the report, or None."""
    found = subprocess.run(
        [sys.executable, "-m", "thalweg.fuzz.sanitized", str(seed), str(count)],
        env=variables,
        capture_output=True,
        text=True,
    )
    lines = found.stdout.splitlines()
    begun = [int(line.split()[1]) for line in lines if line.startswith("seed ")]
    wrong = [line for line in lines if line.startswith("wrong ")]
    report = found.stderr.strip()
    if found.returncode or wrong or "runtime error" in report:
        return (begun[-1] if begun else seed), "\n".join([*wrong, report])
    return None


def main(seed: int, count: int) -> None:
    """The process: programs one after the other."""
    from thalweg.fuzz import random_case
    from thalweg.fuzz.running import build_together, problem
    from thalweg.runtime import memory

    memory._POSIX = False  # arrays of NumPy instead of mappings
    cases = [random_case(seed + number) for number in range(count)]
    for case, native in zip(cases, build_together([case.graph for case in cases]), strict=True):
        print("seed", case.seed, flush=True)
        wrong = problem(case, native, (1, 2))
        if wrong is not None:
            print("wrong", case.seed, wrong, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
