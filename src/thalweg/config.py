"""The settings of a process: six environment variables and the number of threads.

In: the environment, read each time a setting is asked for, so that a test or a notebook may change it while
it runs. Out: checked values, or an `ArgumentError` that says what the variable may hold. Every module that
has a choice to make asks `settings`; nothing else in the package reads `THALWEG_*`.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

from thalweg.errors import ArgumentError

BACKENDS = ("auto", "c", "numpy")  # auto: c where a C compiler is found, else the NumPy reference
MOST_THREADS = 1024

_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")

# The dictionary behind os.environ, where there is one: looking a variable up takes a tenth of the time.
_environment: Any = getattr(os.environ, "_data", os.environ)
_THREADS: Any = "THALWEG_THREADS" if _environment is os.environ else os.environ.encodekey("THALWEG_THREADS")
_UNREAD = object()


class Settings:
    """The process-wide settings. Use the one instance `settings`; an empty variable counts as not set."""

    def __init__(self) -> None:
        self._threads: int | None = None
        self._known: tuple[Any, int] = (_UNREAD, 0)  # THALWEG_THREADS as the environment holds it, its number

    @property
    def backend(self) -> str:
        """`THALWEG_BACKEND`: one of `BACKENDS`; "auto" unless set."""
        text = _variable("THALWEG_BACKEND")
        if text is None:
            return "auto"
        if text.lower() not in BACKENDS:
            raise _refusal("THALWEG_BACKEND", text, "one of " + ", ".join(BACKENDS))
        return text.lower()

    @property
    def debug(self) -> int:
        """`THALWEG_DEBUG`: 0 (silent, the default) to 3 (everything)."""
        text = _variable("THALWEG_DEBUG")
        if text is None:
            return 0
        if text not in ("0", "1", "2", "3"):
            raise _refusal("THALWEG_DEBUG", text, "0, 1, 2 or 3")
        return int(text)

    @property
    def check(self) -> bool:
        """`THALWEG_CHECK`: does a program's first call compare it with the references? False unless set."""
        text = _variable("THALWEG_CHECK")
        if text is None or text.lower() in _NO:
            return False
        if text.lower() not in _YES:
            raise _refusal("THALWEG_CHECK", text, "1 (compare every program with the reference) or 0")
        return True

    @property
    def dump(self) -> Path | None:
        """`THALWEG_DUMP`: the directory for graphs, plans and C text; None, for no files, unless set."""
        return _directory("THALWEG_DUMP")

    @property
    def cache(self) -> Path:
        """`THALWEG_CACHE`: the directory of compiled programs; the platform's cache directory unless set."""
        return _directory("THALWEG_CACHE") or _platform_cache()

    def threads(self) -> int:
        """How many threads a program uses: `set_threads`, else `THALWEG_THREADS`, else `available_cpus`."""
        if self._threads is not None:
            return self._threads
        found = _environment.get(_THREADS)  # each call of a program asks: only a changed text is read again
        if found is not self._known[0]:
            self._known = found, self._threads_of_environment()
        return self._known[1]

    def _threads_of_environment(self) -> int:
        text = _variable("THALWEG_THREADS")
        if text is None:
            return available_cpus()
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_THREADS):
            raise _refusal("THALWEG_THREADS", text, f"a whole number from 1 to {MOST_THREADS}")
        return int(text)

    def set_threads(self, count: int | None) -> None:
        """Use `count` threads from the next call of a program on; None: the environment's or the default."""
        if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
            raise ArgumentError(f"set_threads takes a whole number of threads or None, not {count!r}")
        if count is not None and not 1 <= count <= MOST_THREADS:
            raise ArgumentError(f"set_threads takes from 1 to {MOST_THREADS} threads, not {count}")
        self._threads = count


def _variable(name: str) -> str | None:
    return os.environ.get(name, "").strip() or None


def _refusal(name: str, text: str, expected: str) -> ArgumentError:
    return ArgumentError(f"the environment variable {name} is {text!r}; expected {expected}, or unset it")


def _directory(name: str) -> Path | None:
    text = _variable(name)
    if text is None:
        return None
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:  # ~somebody, who has no home directory here
        raise _refusal(name, text, "the path of a directory") from None


def _platform_cache() -> Path:
    if sys.platform == "win32":
        base = _variable("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = _variable("XDG_CACHE_HOME") or "~/.cache"
        if not os.path.isabs(os.path.expanduser(base)):  # the XDG standard says to ignore relative paths
            base = "~/.cache"
    try:
        return Path(base).expanduser() / "thalweg"
    except RuntimeError:  # a process without a home directory, as some containers run
        raise ArgumentError(
            "no cache directory: this user has no home directory; set the environment variable THALWEG_CACHE"
        ) from None


@functools.cache
def available_cpus() -> int:
    """The CPUs that this process may use: its affinity mask, limited by the cgroup's quota; at least 1.

    A quota of 2.5 CPUs counts as 2: a third busy thread would stall all three for part of each period.
    """
    has_mask = hasattr(os, "sched_getaffinity")  # Linux
    count = len(os.sched_getaffinity(0)) if has_mask else os.cpu_count() or 1
    quota = cgroup_quota() if sys.platform == "linux" else None
    if quota is not None:
        count = min(count, int(quota))
    return max(1, min(count, MOST_THREADS))


def cgroup_quota(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """The CPU time per second that the Linux control groups of this process allow (2.5: two and a half CPUs).

    None where there is no limit. Both versions are read: `cpu.max` (v2) and `cpu.cfs_quota_us` (v1); the
    tightest limit of the group and all its ancestors counts.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    limits: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += _limits(root, path, "cpu.max")
        elif "cpu" in controllers.split(","):
            limits += _limits(root / controllers, path, "cpu.cfs_quota_us")
            limits += _limits(root / "cpu", path, "cpu.cfs_quota_us")
    return min(limits, default=None)


def _limits(mount: Path, path: str, name: str) -> list[float]:
    """The quotas of the group at `path` below `mount` and of each of its ancestors.

    Inside a container the path may be the host's and not exist here; only what exists counts.
    """
    group = Path(os.path.normpath(str(mount) + "/" + path))
    found: list[float] = []
    for directory in (group, *group.parents):
        if not directory.is_relative_to(mount):
            break
        try:
            words = (directory / name).read_text().split()
            period = words[1] if name == "cpu.max" else (directory / "cpu.cfs_period_us").read_text()
            if words[0] not in ("max", "-1"):
                found.append(int(words[0]) / int(period))
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue
    return found


settings = Settings()
