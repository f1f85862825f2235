"""From C text to a loaded native library, through a cache on disk.

In: translation units as text, the headers that they include, a target. Out: the path of a shared library, or
the loaded library. Called by whatever makes a program, by `thalweg.runtime.pool` for the thread pool, and by
`thalweg doctor`.

The cache directory (`settings.cache`) holds

    compilers/<digest>.json         the version of each compiler seen: a warm start launches no process
    libraries/<key>/<digest>.so     one directory per entry; the file is named by the SHA-256 of its content
    failed/<key>/                   sources and output of a compilation that failed
    building/<process>-<random>/    work in progress; moved to its place by one rename
    zig/                            what the zig compiler keeps between runs

An entry is complete or absent: two processes may build the same one at once, a build may be killed at any
moment, and an entry whose content does not match its name is built again.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from thalweg.config import available_cpus, settings
from thalweg.errors import ArgumentError, CompilerError, UnsupportedError

CACHE_BYTES = 1 << 30
TARGETS = ("native", "x86-64-v4", "x86-64-v3", "x86-64")

_DAY = 24 * 60 * 60
_FORMAT = "1"  # raise it when entries of older versions must not be used
_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

_FLAGS = (
    "-std=gnu11",
    # Generated kernels are vectors already: the vectorisers find nothing in them, for 5 % of the time of compiling.
    # -O1 would save another 10 % of it (25 % with many matrix tiles) and make programs 2 % slower.
    "-O2",
    "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize",
    "-fPIC",
    # The bits of a result follow from the text alone; each fused multiply-add is written out.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-strict-aliasing",  # one arena holds values of different types, one after another
    "-fno-semantic-interposition",
    "-fvisibility=hidden",
    # Some distributions switch these on; kernels need neither.
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-pipe",
)


# --- the compiler ---


@dataclass(frozen=True)
class Compiler:
    """A C compiler: the words of its command and the text of its `--version`, which together identify it."""

    command: tuple[str, ...]
    version: str

    @property
    def is_zig(self) -> bool:
        return any(Path(word).stem in ("zig", "ziglang") for word in self.command)

    def __str__(self) -> str:
        return f"{' '.join(self.command)} ({self.version.splitlines()[0]})"

    def flags(self, target: str = "native") -> tuple[str, ...]:
        """The flags that compile one translation unit for `target`, one of `TARGETS`.

        "native" is this machine, the others the levels of the x86-64 instruction set ("x86-64": SSE2 only).
        Raises `ArgumentError` for another name and `UnsupportedError` for an x86 target on another machine.
        """
        if target not in TARGETS:
            raise ArgumentError(f"unknown target {target!r}; expected one of {', '.join(TARGETS)}")
        is_x86 = platform.machine().lower() in ("x86_64", "amd64")
        if target != "native" and not is_x86:
            raise UnsupportedError(
                f"target {target!r} is for x86-64 processors; on {platform.machine()!r}, use 'native'"
            )
        machine = ["-march=" + (target.replace("-", "_") if self.is_zig and target != "native" else target)]
        if not is_x86:
            machine = ["-mcpu=native"]
        elif target in ("native", "x86-64-v4"):
            # Clang would split 64-byte vectors in two on processors that it deems slow with them.
            machine.append("-mprefer-vector-width=512")
        if is_x86:
            machine.append("-fcf-protection=none")
        return (*_FLAGS, *machine)

    def link_flags(self) -> tuple[str, ...]:
        """The flags that link object files to a library. On Linux a missing symbol is an error here."""
        if sys.platform == "win32":
            return ("-shared",)
        if sys.platform == "darwin":
            return ("-shared", "-pthread")
        return ("-shared", "-pthread", "-Wl,-z,defs")


def find_compiler() -> Compiler | None:
    """The C compiler: `CC`, else cc, gcc or clang on `PATH`, else the package `ziglang`, else None.

    Raises `CompilerError` when `CC` is set to something that cannot be used. Launches a process only for a
    compiler that the cache does not know.
    """
    try:
        return _find_compiler(os.environ.get("CC", "").strip(), os.environ.get("PATH", ""), settings.cache)
    except LookupError:  # not remembered, as a value would be: somebody may install one in the meantime
        return None


def require_compiler() -> Compiler:
    """`find_compiler()`, or an `UnsupportedError` that says how to install a compiler."""
    compiler = find_compiler()
    if compiler is None:
        raise UnsupportedError(
            "no C compiler found: CC is not set, cc, gcc and clang are not on PATH, the Python package"
            " ziglang is not installed. Install one with `sudo apt install gcc` (Debian, Ubuntu), `sudo dnf"
            " install gcc` (Fedora, Red Hat), `xcode-select --install` (macOS) or, on any system, `pip"
            " install ziglang`; or run without one, more slowly, by setting THALWEG_BACKEND=numpy"
        )
    return compiler


@functools.lru_cache(maxsize=8)
def _find_compiler(chosen: str, path: str, cache: Path) -> Compiler:
    if chosen:
        try:
            words = tuple(shlex.split(chosen, posix=sys.platform != "win32"))
        except ValueError as error:
            raise CompilerError(f"the variable CC is {chosen!r}, which is no command: {error}") from None
        compiler = _identify(words, path, cache)
        if compiler is None:
            raise CompilerError(
                f"the environment variable CC is {chosen!r}, which does not run as GCC or Clang here (tried:"
                f" `{chosen} --version`); set it to a C compiler, or unset it to have one searched for"
            )
        return compiler
    for name in ("cc", "gcc", "clang"):
        compiler = _identify((name,), path, cache)
        if compiler is not None:
            return compiler
    package = importlib.util.find_spec("ziglang")
    for directory in (package.submodule_search_locations or ()) if package else ():
        # The same as `python -m ziglang cc`, without starting Python for each file.
        zig = Path(directory) / ("zig.exe" if sys.platform == "win32" else "zig")
        compiler = _identify((str(zig), "cc"), path, cache)
        if compiler is not None:
            return compiler
    raise LookupError("no C compiler")


def _identify(words: tuple[str, ...], path: str, cache: Path) -> Compiler | None:
    """The compiler that `words` run, from the cache if its files have not changed; None if they run none."""
    first = shutil.which(words[0], path=path)
    if first is None:
        return None
    command = (first, *words[1:])
    # `CC="ccache gcc"` names two programs, and a change of either counts.
    programs = [first, *(found for word in words[1:] if (found := shutil.which(word, path=path)))]
    stamp: list[list[object]] = []
    for program in programs:
        status = os.stat(program)
        stamp.append([os.path.realpath(program), status.st_mtime_ns, status.st_size])
    known = cache / "compilers" / (_digest([*command]) + ".json")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(known.read_text(encoding="utf-8"))
        if record["stamp"] == stamp:
            return Compiler(command, str(record["version"]))
    try:
        result = subprocess.run(
            [*command, "--version"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=_environment(cache),
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = result.stdout.decode("utf-8", "replace").strip()
    if result.returncode != 0 or not ("Free Software Foundation" in version or "clang" in version.lower()):
        return None
    with contextlib.suppress(OSError):  # a cache that cannot be written costs one process per start
        known.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(known, json.dumps({"stamp": stamp, "version": version}))
    return Compiler(command, version)


def _environment(cache: Path) -> dict[str, str]:
    """The environment of the compiler: messages in English, zig's own caches inside ours."""
    environment = {**os.environ, "LC_ALL": "C"}
    environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(cache / "zig"))
    environment.setdefault("ZIG_LOCAL_CACHE_DIR", str(cache / "zig"))
    return environment


@functools.cache
def processor() -> str:
    """The processor's model and instruction-set features: what "native" code depends on."""
    if sys.platform == "linux":
        wanted = ["vendor_id", "cpu family", "model", "flags"]  # x86
        wanted += ["CPU implementer", "CPU part", "Features", "isa"]  # ARM, RISC-V
        with contextlib.suppress(OSError), open("/proc/cpuinfo", "rb", buffering=0) as file:
            # One block of text per CPU; the first is enough, and reading all takes long on large machines.
            first = file.read(16384).decode("utf-8", "replace").split("\n\n")[0]
            fields = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
            described = {name.strip(): " ".join(sorted(text.split())) for name, text in fields.items()}
            return "; ".join(f"{name}: {described[name]}" for name in wanted if name in described)
    if sys.platform == "darwin":
        names = ("machdep.cpu.brand_string", "machdep.cpu.features", "machdep.cpu.leaf7_features")
        return "; ".join(_sysctl(name) for name in names)
    return platform.processor()


def _sysctl(name: str) -> str:
    library = ctypes.CDLL(None)
    text = ctypes.create_string_buffer(4096)
    size = ctypes.c_size_t(len(text))
    if library.sysctlbyname(name.encode(), text, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return ""
    return text.value.decode("utf-8", "replace")


# --- building and loading ---


def library(
    sources: Sequence[tuple[str, str]], target: str = "native", headers: Mapping[str, str] | None = None
) -> ctypes.CDLL:
    """`load(build(...))`; an entry of the cache that does not load is thrown away and built once more."""
    path = build(sources, target, headers)
    try:
        return load(path)
    except CompilerError:
        _remove(path.parent)
    return load(build(sources, target, headers))


def load(path: Path) -> ctypes.CDLL:
    """Loads a shared library, its symbols kept to itself. Raises `CompilerError` if the system refuses."""
    try:
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        raise CompilerError(
            f"the compiled library {path} does not load: {error}. If its file system forbids executing files"
            " (mounted noexec), set THALWEG_CACHE to a directory on another one"
        ) from error


def build(
    sources: Sequence[tuple[str, str]], target: str = "native", headers: Mapping[str, str] | None = None
) -> Path:
    """Compiles and links the translation units `sources`, pairs of a file name such as "step.c" and its text.

    `headers` are the files that they include by `#include "name"`. The units are compiled in parallel.
    Returns the path of the library, which lies in the cache: the same texts, flags and compiler (and, for
    "native", processor) give the same entry. Where the cache cannot be written, a temporary directory takes
    its place, with one warning.

    Raises `CompilerError` when the compiler refuses, `UnsupportedError` when there is none.
    """
    headers = dict(headers or {})
    _check_names(sources, headers)
    compiler = require_compiler()
    flags, link_flags = compiler.flags(target), compiler.link_flags()
    host = processor() if target == "native" else ""
    unit_texts = [part for source in sources for part in source]
    header_texts = [part for header in sorted(headers.items()) for part in header]
    parts = [_FORMAT, sys.platform, platform.machine(), *compiler.command, compiler.version, host]
    key = _digest([*parts, *flags, "", *link_flags, "", *unit_texts, "", *header_texts])
    roots = [settings.cache]
    if _temporary_cache.cache_info().currsize:
        roots.append(_temporary_cache())
    for root in roots:
        found = _lookup(root / "libraries" / key)
        if found is not None:
            return found
    work = _Work(compiler, flags, link_flags, tuple(sources), tuple(headers.items()), key)
    try:
        path = _build(work, roots[0])
    except OSError as error:
        _warn_about_cache(roots[0], str(error))
        try:
            return _build(work, _temporary_cache())
        except OSError as second:
            raise CompilerError(
                f"no place to compile in: the cache directory cannot be written ({error}), nor a temporary"
                f" directory ({second}). Set THALWEG_CACHE to a directory that can be written"
            ) from second
    _tidy(roots[0])
    return path


@dataclass(frozen=True)
class _Work:
    compiler: Compiler
    flags: tuple[str, ...]
    link_flags: tuple[str, ...]
    sources: tuple[tuple[str, str], ...]
    headers: tuple[tuple[str, str], ...]
    key: str


def _check_names(sources: Sequence[tuple[str, str]], headers: Mapping[str, str]) -> None:
    if not sources:
        raise ArgumentError("build takes at least one source, a pair of a file name and C text")
    names = [name for name, _ in sources] + list(headers)
    for name in names:
        if not _NAME.fullmatch(name):
            raise ArgumentError(f"{name!r} is not a plain file name of letters, digits, '_', '-' and '.'")
    for name, _ in sources:
        if not name.endswith(".c"):
            raise ArgumentError(f"the name of a C source must end in .c, not {name!r}")
    # Some file systems do not tell upper from lower case.
    if len({name.lower() for name in names}) < len(names):
        raise ArgumentError(f"two sources or headers have the same name: {', '.join(sorted(names))}")


def _build(work: _Work, root: Path) -> Path:
    """Builds below `root` and moves the result to its place; `OSError` if `root` cannot be written."""
    with _work_directory(root) as directory:
        for name, text in (*work.sources, *work.headers):
            (directory / name).write_text(text, encoding="utf-8", newline="\n")
        output = directory / ("library" + _SUFFIX)
        try:
            _compile(work, directory, output, root)
        except _Refused as refusal:
            if _is_full(root, refusal.output):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root)) from None
            raise _compiler_error(work, directory, root, refusal) from None
        with open(output, "rb+") as file:
            os.fsync(file.fileno())
        finished = directory / "entry" / (_file_digest(output) + _SUFFIX)
        finished.parent.mkdir()
        output.rename(finished)
        return _publish(finished, root / "libraries" / work.key)


def _compile(work: _Work, directory: Path, output: Path, root: Path) -> None:
    """Compiles all units, at most one per CPU at a time, and links them."""
    # The pool of Python threads is imported here because a warm start does not need it.
    from concurrent.futures import ThreadPoolExecutor

    command, environment = work.compiler.command, _environment(root)
    names = [name for name, _ in work.sources]
    objects = [name[: -len(".c")] + ".o" for name in names]
    commands = [
        [*command, *work.flags, "-c", name, "-o", result] for name, result in zip(names, objects, strict=True)
    ]
    run = functools.partial(_run, directory=directory, environment=environment)
    with ThreadPoolExecutor(min(len(commands), available_cpus())) as executor:
        results = list(executor.map(run, commands))
    for result in results:
        if result is not None:
            raise result
    result = run([*command, *work.link_flags, *objects, "-o", output.name])
    if result is not None:
        raise result


class _Refused(Exception):
    """A command of the compiler that failed."""

    def __init__(self, command: Sequence[str], status: int, output: str) -> None:
        self.command, self.status, self.output = shlex.join(command), status, output


def _run(command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> _Refused | None:
    try:
        result = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    except OSError as error:  # it was there when it was searched for
        return _Refused(command, -1, f"the compiler cannot be started: error: {error}")
    if result.returncode == 0:
        return None
    return _Refused(command, result.returncode, result.stdout.decode("utf-8", "replace"))


def _compiler_error(work: _Work, directory: Path, root: Path, refusal: _Refused) -> CompilerError:
    """The error of a failed compilation. The sources and the whole output are kept in the cache."""
    kept = root / "failed" / work.key
    (directory / "output.txt").write_text(
        f"{refusal.command}\nexit status {refusal.status}\n\n{refusal.output}", encoding="utf-8"
    )
    _remove(kept)
    kept.parent.mkdir(exist_ok=True)
    with contextlib.suppress(OSError):  # another process has failed in the same way in this moment
        directory.rename(kept)
    lines = [line for line in refusal.output.splitlines() if line.strip()]
    wanted = [line for line in lines if re.search(r"error\b|undefined|fatal|Killed", line)]
    shown = (wanted or lines)[:5]
    reason = "refused the generated C code; this is a defect, of Thalweg or of the compiler: please report it"
    if refusal.status == -9 or "Killed" in refusal.output:
        reason = "was killed; most often the machine has run out of memory"
    elif not lines:
        reason = f"failed without a message, with exit status {refusal.status}"
    text = "\n".join(f"    {line}" for line in shown)
    return CompilerError(
        f"the C compiler {work.compiler} {reason}\n{text}\n"
        f"  whole output: {kept / 'output.txt'} (the sources are beside it)"
    )


def _is_full(root: Path, output: str) -> bool:
    return os.strerror(errno.ENOSPC) in output or shutil.disk_usage(root).free < 1 << 16


# --- the cache ---


def _digest(parts: Iterable[str]) -> str:
    """SHA-256 over texts, each preceded by its length, so that no two lists run together."""
    total = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        total.update(len(encoded).to_bytes(8, "little") + encoded)
    return total.hexdigest()[:32]


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _lookup(entry: Path) -> Path | None:
    """The library of an entry, its use noted; None where there is none or its content is damaged."""
    try:
        for path in entry.iterdir():
            if path.suffix == _SUFFIX and _file_digest(path) == path.stem:
                with contextlib.suppress(OSError):
                    os.utime(entry)
                return path
    except OSError:
        return None
    return None


def _publish(finished: Path, place: Path) -> Path:
    """Moves the directory of a finished library to its place, unless another process was first."""
    entry = finished.parent
    place.parent.mkdir(exist_ok=True)
    for attempt in range(100):
        try:
            os.rename(entry, place)
            return place / finished.name
        except OSError:
            found = _lookup(place)
            if found is not None:
                return found
            if attempt > 0 and not place.exists():  # nothing is in the way: the cache cannot be written
                raise
        with contextlib.suppress(OSError):  # the damaged entry moves away whole, never half removed
            os.rename(place, entry.with_name(f"damaged-{attempt}"))
    raise OSError(errno.EBUSY, "a damaged entry cannot be replaced", str(place))


@contextlib.contextmanager
def _work_directory(root: Path) -> Iterator[Path]:
    """A new directory below building/, removed at the end."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    building = root / "building"
    building.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=building))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _write_atomically(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


@functools.cache
def _temporary_cache() -> Path:
    """The directory that takes the place of a cache that cannot be written; removed when the process ends."""
    directory, owner = Path(tempfile.mkdtemp(prefix="thalweg-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # and not a forked child
            _remove(directory)

    atexit.register(remove)
    return directory


@functools.cache
def _warn_about_cache(root: Path, reason: str) -> None:
    warnings.warn(
        f"the cache directory {root} cannot be written ({reason}); compiled programs are kept in a temporary"
        " directory, and every process compiles them anew. Set THALWEG_CACHE to one that can be written",
        RuntimeWarning,
        stacklevel=3,
    )


def _tidy(root: Path) -> None:
    """At most once a day: removes what killed builds have left, and limits the cache to `CACHE_BYTES`."""
    mark = root / "tidied"
    with contextlib.suppress(OSError):
        try:
            if abs(time.time() - mark.stat().st_mtime) < _DAY:
                return
        except FileNotFoundError:
            pass
        mark.touch()
        _sweep(root)
        prune_cache()


def _sweep(root: Path) -> None:
    """Removes the work of processes that are gone, when it is older than a day."""
    for directory in (root / "building").iterdir():
        with contextlib.suppress(OSError):
            is_old = time.time() - directory.stat().st_mtime > _DAY
            if is_old and not _is_running(directory.name.split("-")[0]):
                _remove(directory)


def _is_running(process: str) -> bool:
    if sys.platform == "win32" or not process.isdigit():  # on Windows os.kill(process, 0) would end it
        return False
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def prune_cache(max_bytes: int = CACHE_BYTES) -> int:
    """Removes what was not used for the longest time until the cache's entries take at most `max_bytes`.

    Returns the number of bytes removed. Libraries that a process has loaded stay usable there.
    """
    entries: list[tuple[float, int, Path]] = []
    for kind in ("libraries", "failed"):
        with contextlib.suppress(OSError):
            for entry in (settings.cache / kind).iterdir():
                with contextlib.suppress(OSError):  # another process removes it at the same time
                    size = sum(file.stat().st_size for file in entry.iterdir())
                    entries.append((entry.stat().st_mtime, size, entry))
    left = total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries):
        if left <= max_bytes:
            break
        _remove(entry)
        left -= size
    return total - left
