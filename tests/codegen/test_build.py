"""Building C text: the cache on disk, the compiler's identity, errors, and what two processes do at once."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from thalweg.codegen.c import build
from thalweg.config import settings
from thalweg.errors import ArgumentError, CompilerError, UnsupportedError

EXPORT = '__attribute__((visibility("default")))'
ANSWER = [("answer.c", f"{EXPORT} int answer(void) {{ return 42; }}\n")]
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="compilers made of shell scripts")

REAL = build.find_compiler()
pytestmark = pytest.mark.skipif(REAL is None, reason="needs a C compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "cache"))
    yield settings.cache
    build._temporary_cache.cache_clear()
    build._warn_about_cache.cache_clear()


def answer_of(path: Path) -> int:
    result: int = build.load(path).answer()
    return result


def entries(cache: Path) -> list[Path]:
    return sorted((cache / "libraries").iterdir())


def script(path: Path, body: str) -> Path:
    """A compiler made of a shell script; `$REAL` is the real one."""
    assert REAL is not None
    # zig itself runs $CC to find the C library.
    path.write_text(f'#!/bin/sh\nunset CC\nREAL="{" ".join(REAL.command)}"\n{body}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def run_python(text: str, **arguments: object) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", text], **{**pipes, **arguments})  # type: ignore[call-overload]


# --- what is built ---


def test_a_library_is_built_loaded_and_found_again(cache: Path) -> None:
    path = build.build(ANSWER)
    assert answer_of(path) == 42
    before = path.stat().st_mtime_ns
    assert build.build(ANSWER) == path
    assert path.stat().st_mtime_ns == before
    assert cache in path.parents
    assert list((cache / "building").iterdir()) == []


def test_units_see_each_other_and_the_headers() -> None:
    sources = [
        ("first.c", f'#include "shared.h"\n{EXPORT} int answer(void) {{ return helper() + NUMBER; }}\n'),
        ("second.c", '#include "shared.h"\nint helper(void) { return 2 * NUMBER; }\n'),
        ("third.c", "int unused_elsewhere(void) { return 1; }\n"),
    ]
    headers = {"shared.h": "#define NUMBER 5\nint helper(void);\n"}
    library = build.library(sources, headers=headers)
    assert library.answer() == 15
    assert not hasattr(library, "helper"), "only what is marked is visible from outside"


def test_the_entry_depends_on_everything_that_can_change_the_code() -> None:
    base = build.build(ANSWER, "native")
    assert build.build(ANSWER, "native", {"unused.h": "#define A 1\n"}) != base
    assert build.build([("other.c", ANSWER[0][1])]) != base
    assert build.build([("answer.c", ANSWER[0][1] + " ")]) != base


@pytest.mark.skipif(build.platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 targets")
def test_each_target_has_its_own_code() -> None:
    text = f"""
#if defined(__AVX512F__)
#define LEVEL 4
#elif defined(__AVX2__) && defined(__FMA__)
#define LEVEL 3
#else
#define LEVEL 1
#endif
{EXPORT} int answer(void) {{ return LEVEL; }}
"""
    paths = {target: build.build([("level.c", text)], target) for target in build.TARGETS}
    assert len(set(paths.values())) == len(build.TARGETS)
    assert {target: answer_of(path) for target, path in paths.items() if target != "native"} == {
        "x86-64-v4": 4,
        "x86-64-v3": 3,
        "x86-64": 1,
    }


def test_no_multiply_add_is_fused_behind_our_back() -> None:
    numbers = "volatile double x = 1 + 0x1p-30, y = 1 - 0x1p-30;"  # the product, rounded, is 1
    text = f"{EXPORT} int answer(void) {{ {numbers} return x * y - 1 == 0; }}"
    assert answer_of(build.build([("fused.c", text)])) == 1


def test_unknown_targets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="unknown target 'avx'; expected one of native, x86-64-v4"):
        build.build(ANSWER, "avx")
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    with pytest.raises(UnsupportedError, match="'aarch64', use 'native'"):
        build.build(ANSWER, "x86-64-v3")


@pytest.mark.parametrize(
    ("sources", "headers", "message"),
    [
        ([], {}, "at least one source"),
        ([("a/b.c", "")], {}, "not a plain file name"),
        ([("..", "")], {}, "not a plain file name"),
        ([("a.cpp", "")], {}, "must end in .c"),
        ([("a.c", ""), ("A.c", "")], {}, "same name"),
        ([("a.c", "")], {"../h.h": ""}, "not a plain file name"),
    ],
)
def test_bad_names_are_refused(sources: list[tuple[str, str]], headers: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build.build(sources, headers=headers)


# --- damaged entries ---


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_entry_is_built_again(damage: str, cache: Path) -> None:
    path = build.build(ANSWER)
    content = path.read_bytes()
    if damage == "empty":
        path.unlink()
    else:
        half = len(content) // 2
        path.write_bytes(content[:half] if damage == "truncate" else content[:-1] + bytes([content[-1] ^ 1]))
    again = build.build(ANSWER)
    assert build._file_digest(again) == again.stem
    assert answer_of(again) == 42
    assert len(entries(cache)) == 1
    assert list((cache / "building").iterdir()) == []


def test_an_entry_that_does_not_load_is_built_again(cache: Path) -> None:
    path = build.build(ANSWER)
    path.unlink()
    useless = path.parent / "useless"
    useless.write_bytes(b"from another machine")
    useless.rename(path.with_stem(build._file_digest(useless)))
    with pytest.raises(CompilerError, match="does not load"):
        build.load(build.build(ANSWER))
    assert build.library(ANSWER).answer() == 42


# --- errors ---


def test_a_compile_error_shows_its_first_lines_and_where_the_rest_is() -> None:
    sources = [("good.c", "int f(void);\n"), ("bad.c", "int g(void) { return undeclared_name; }\n")]
    with pytest.raises(CompilerError) as caught:
        build.build(sources)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("the C compiler ") and "refused the generated C code" in first
    assert any("bad.c:1:" in line and "undeclared_name" in line for line in rest)
    output = Path(rest[-1].split("whole output: ")[1].split(" (the sources")[0])
    assert "undeclared_name" in output.read_text()
    assert (output.parent / "bad.c").read_text() == sources[1][1]
    with pytest.raises(CompilerError):  # and a second time, with the first one's files in the way
        build.build(sources)


@pytest.mark.skipif(sys.platform != "linux", reason="a flag of the Linux linker")
def test_a_missing_function_is_an_error_of_the_build() -> None:
    text = f"int missing_function(void);\n{EXPORT} int answer(void) {{ return missing_function(); }}\n"
    with pytest.raises(CompilerError, match=r"undefined.*missing_function"):
        build.build([("missing.c", text)])


@posix_only
def test_a_killed_or_silent_compiler_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = 'case "$1" in --version) exec $REAL --version;; esac'
    monkeypatch.setenv("CC", str(script(tmp_path / "killed", f"{version}\nkill -9 $$")))
    with pytest.raises(CompilerError, match="run out of memory"):
        build.build(ANSWER)
    monkeypatch.setenv("CC", str(script(tmp_path / "silent", f"{version}\nexit 3")))
    with pytest.raises(CompilerError, match="without a message, with exit status 3"):
        build.build(ANSWER)
    vanishing = script(tmp_path / "vanishing", f"{version}\nexit 3")
    monkeypatch.setenv("CC", str(vanishing))
    assert build.find_compiler() is not None
    vanishing.unlink()
    with pytest.raises(CompilerError, match="cannot be started"):
        build.build(ANSWER)


# --- the compiler ---


def test_without_a_compiler_the_error_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    assert build.find_compiler() is None
    with pytest.raises(UnsupportedError) as caught:
        build.build(ANSWER)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("no C compiler found", "apt install gcc", "dnf", "xcode-select", "pip install ziglang"):
        assert part in message
    # Installed in the meantime: found without a restart.
    monkeypatch.undo()
    assert build.find_compiler() is not None


@posix_only
def test_the_ziglang_package_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "ziglang"
    package.mkdir()
    (package / "__init__.py").write_text("")
    script(package / "zig", 'if [ "$1 $2" = "cc --version" ]; then echo "clang version 20"; fi')
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin/nothing_here:/bin/nothing_here")
    monkeypatch.syspath_prepend(str(tmp_path))
    compiler = build.find_compiler()
    assert compiler is not None
    assert compiler.command == (str(package / "zig"), "cc")
    assert compiler.is_zig
    if build.platform.machine() == "x86_64":
        assert "-march=x86_64_v3" in compiler.flags("x86-64-v3")


def test_a_wrong_cc_is_an_error_and_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O9")
    with pytest.raises(CompilerError, match="CC is 'no-such-compiler -O9', which does not run"):
        build.find_compiler()
    monkeypatch.setenv("CC", "gcc 'unclosed")
    with pytest.raises(CompilerError, match="No closing quotation"):
        build.find_compiler()
    monkeypatch.setenv("CC", f"{sys.executable} -E")  # runs, and answers to --version
    with pytest.raises(CompilerError, match="does not run as GCC or Clang"):
        build.find_compiler()


@posix_only
def test_cc_may_have_arguments_and_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = script(tmp_path / "wrapper", 'shift; exec $REAL "$@"')
    text = [("value.c", f"{EXPORT} int answer(void) {{ return VALUE; }}\n")]
    for value in (3, 4):
        monkeypatch.setenv("CC", f"{wrapper} gcc -DVALUE={value}")
        assert answer_of(build.build(text)) == value


@posix_only
def test_a_changed_compiler_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'if [ "$1" = "--version" ]; then echo "clang version {}"; else exec $REAL "$@"; fi'
    compiler = script(tmp_path / "compiler", text.format("1"))
    monkeypatch.setenv("CC", str(compiler))
    first = build.build(ANSWER)
    script(compiler, text.format("2.0"))
    build._find_compiler.cache_clear()
    assert build.require_compiler().version == "clang version 2.0"
    assert build.build(ANSWER) != first


def test_a_warm_start_launches_no_process() -> None:
    text = f"""
import sys
launched = []
events = ("subprocess.Popen", "os.posix_spawn", "os.system", "os.exec", "os.fork", "os.startfile")
sys.addaudithook(lambda event, arguments: launched.append(event) if event in events else None)
from thalweg.codegen.c import build
assert build.library({ANSWER!r}).answer() == 42
print(len(launched))
"""
    counts = []
    for _ in range(2):
        process = run_python(text)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        counts.append(int(output))
    assert counts[0] >= 3, "the version, the compilation, the link"
    assert counts[1] == 0


# --- several processes ---


def test_processes_that_build_the_same_entry_at_once_all_get_it(cache: Path, tmp_path: Path) -> None:
    text = f"""
import pathlib, time
from thalweg.codegen.c import build
build.require_compiler()
print("ready", flush=True)
go = pathlib.Path({str(tmp_path / "go")!r})
while not go.exists():
    time.sleep(0.001)
print(build.library({ANSWER!r}).answer())
"""
    processes = [run_python(text) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (0, "42\n"), errors
    assert len(entries(cache)) == 1
    assert list((cache / "building").iterdir()) == []


@posix_only
def test_a_killed_build_leaves_no_entry_and_is_swept_a_day_later(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = script(tmp_path / "slow", 'case "$1" in --version) exec $REAL --version;; esac; exec sleep 30')
    process = run_python(
        f"from thalweg.codegen.c import build; build.build({ANSWER!r})",
        env={**os.environ, "CC": str(slow)},
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not list(cache.glob("building/*/answer.c")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    (left,) = (cache / "building").iterdir()

    assert answer_of(build.build(ANSWER)) == 42
    assert left.exists(), "younger than a day: nobody knows whether it is still in use"
    ours = cache / "building" / f"{os.getpid()}-suspended"
    ours.mkdir()
    two_days_ago = time.time() - 2 * 24 * 60 * 60
    for path in (left, ours, cache / "tidied"):
        os.utime(path, (two_days_ago, two_days_ago))
    build.build([("next.c", ANSWER[0][1])])
    assert not left.exists()
    assert ours.exists(), "its process still runs"
    assert (cache / "tidied").stat().st_mtime > time.time() - 60


# --- a cache that cannot be written, or is full ---


def test_a_cache_that_cannot_be_written_is_replaced_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(RuntimeWarning, match="cannot be written.*THALWEG_CACHE") as caught:
        path = build.build(ANSWER)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert answer_of(path) == 42
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.build(ANSWER) == path
        assert build.build([("next.c", ANSWER[0][1])]) != path


def test_the_replacement_is_removed_at_exit(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environment = {**os.environ, "THALWEG_CACHE": str(tmp_path / "file" / "below")}
    text = f"from thalweg.codegen.c import build; print(build.build({ANSWER!r}))"
    process = run_python(text, env=environment)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "thalweg-" in output
    assert not Path(output.strip()).parent.parent.parent.exists()


@posix_only
def test_a_full_cache_is_replaced_too(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = f"""
case "$1" in --version) exec $REAL --version;; esac
case "$PWD" in {cache}*) echo "error: answer.o: No space left on device"; exit 1;; esac
exec $REAL "$@"
"""
    monkeypatch.setenv("CC", str(script(tmp_path / "full", full)))
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        path = build.build(ANSWER)
    assert answer_of(path) == 42
    assert cache not in path.parents


# --- the size of the cache ---


def test_pruning_removes_what_was_not_used_for_longest(cache: Path) -> None:
    paths = [build.build([(f"unit{i}.c", ANSWER[0][1])]) for i in range(3)]
    with pytest.raises(CompilerError):
        build.build([("bad.c", "not C\n")])
    (failed,) = (cache / "failed").iterdir()
    now = time.time()
    for age, path in ((40, paths[1].parent), (30, failed), (20, paths[0].parent), (10, paths[2].parent)):
        os.utime(path, (now - age, now - age))
    assert build.build([("unit1.c", ANSWER[0][1])]) == paths[1]  # used again: now the youngest

    sizes = [path.stat().st_size for path in paths]
    failed_size = sum(file.stat().st_size for file in failed.iterdir())
    assert build.prune_cache(sum(sizes) + failed_size) == 0
    assert build.prune_cache(sum(sizes)) == failed_size
    assert build.prune_cache(sizes[1]) == sizes[0] + sizes[2]
    assert entries(cache) == [paths[1].parent]
    build.prune_cache(0)
    assert entries(cache) == []
    shutil.rmtree(cache)
    assert build.prune_cache(0) == 0
