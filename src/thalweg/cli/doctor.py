"""`thalweg doctor`: what this installation can use, and whether it works."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from thalweg.config import available_cpus, settings
from thalweg.errors import ThalwegError
from thalweg.version import __version__

_PACKAGES = ("numpy", "ml_dtypes", "tqdm", "matplotlib", "pillow", "torch", "onnx")
_INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve")
_VARIABLES = ("BACKEND", "THREADS", "DEBUG", "CHECK", "DUMP", "CACHE")


def doctor(options: argparse.Namespace) -> int:
    """The command. Its exit code is 1 if something does not work, not if something optional is absent."""
    fine = True
    for title, report in _REPORTS.items():
        try:
            lines = report()
        except (ThalwegError, OSError) as error:
            fine = False
            lines = [f"PROBLEM: {error}"]
        first, *rest = [part for line in lines for part in line.splitlines()]
        print(f"{title:<13} {first}")
        for line in rest:
            print(f"{'':<13} {line}")
    return 0 if fine else 1


def _versions() -> list[str]:
    return [
        f"{__version__}, Python {platform.python_version()} ({sys.executable})",
        f"in {Path(__file__).parent.parent}",
    ]


def _machine() -> list[str]:
    from thalweg.codegen.c.build import processor

    words = set(processor().replace(";", " ").split())
    lines = [f"{platform.system()} {platform.release()}, {platform.machine()}: {_processor_name()}"]
    known = [word for word in _INSTRUCTIONS if word in words]
    return [*lines, f"vector instructions: {', '.join(known)}"] if known else lines


def _processor_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def _packages() -> list[str]:
    found, absent = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    lines = [", ".join(found)]
    if absent:
        lines.append(
            f"not installed: {', '.join(absent)} (optional; matplotlib and pillow come with thalweg[app])"
        )
    return lines


def _compiler() -> list[str]:
    from thalweg.codegen.c.build import find_compiler, require_compiler

    compiler = find_compiler()
    if compiler is None:
        try:
            require_compiler()
        except ThalwegError as error:
            return ["none: programs run on the NumPy reference backend, which is slow", str(error)]
    assert compiler is not None
    return [str(compiler), f"flags: {' '.join(compiler.flags())}"]


def _cache() -> list[str]:
    directory = settings.cache
    files = [path for path in directory.rglob("*") if path.is_file()] if directory.exists() else []
    size = sum(path.stat().st_size for path in files) / 1e6
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK):
        return [f"PROBLEM: {directory} cannot be written to; set THALWEG_CACHE to another directory"]
    return [f"{directory}: {len(files):,} files, {size:.1f} MB"]


def _threads() -> list[str]:
    return [f"{settings.threads()} (this process may use {available_cpus()} of {os.cpu_count()} CPUs)"]


def _limits() -> list[str]:
    from thalweg.codegen.c.build import find_compiler
    from thalweg.plan import machine
    from thalweg.runtime import limits

    if find_compiler() is None:
        return [str(machine(settings.threads()))]
    return [f"{limits.measure(settings.threads())} (kept for `thalweg plan`)"]


def _accelerators() -> list[str]:
    return ["none: this version runs on the CPU"]


def _environment() -> list[str]:
    names = [f"THALWEG_{name}" for name in _VARIABLES]
    given = [f"{name}={os.environ[name]}" for name in (*names, "CC") if os.environ.get(name)]
    problems = []
    for read in (lambda: settings.backend, lambda: settings.debug, lambda: settings.check):
        try:
            read()
        except ThalwegError as error:
            problems.append(f"PROBLEM: {error}")
    return [", ".join(given) or "no THALWEG_ variable is set", *problems]


def _trial() -> list[str]:
    """Compile and run a small program with the backend that would be used."""
    from thalweg.tensor import compile

    begin = time.perf_counter()
    program = compile(lambda x: (x * x + 1.0).sum())
    result = float(program(np.arange(1000, dtype=np.float32)))
    taken = time.perf_counter() - begin
    expected = float(np.square(np.arange(1000.0)).sum() + 1000)
    if abs(result - expected) > 1e-5 * expected:
        return [f"PROBLEM: a small program gave {result} instead of {expected}; please report this"]
    return [f"a small program was made and ran correctly in {taken:.2f} s"]


_REPORTS: dict[str, Callable[[], list[str]]] = {
    "thalweg": _versions,
    "machine": _machine,
    "packages": _packages,
    "compiler": _compiler,
    "cache": _cache,
    "threads": _threads,
    "limits": _limits,
    "accelerators": _accelerators,
    "environment": _environment,
    "trial": _trial,
}
