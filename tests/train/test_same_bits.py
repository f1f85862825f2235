"""The same bits: four networks trained in several ways end in the same state.

Every way of one compiler and instruction set uses one program. `python tests/train/test_same_bits.py` runs
the whole matrix of networks, compilers, instruction sets and threads, which takes minutes to compile.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # for another process
import thalweg as tw
from helpers.small_networks import NETWORKS, make
from thalweg import train

STEPS = 4  # more than an epoch
COMPILERS = ("gcc", "clang", "clang-14", "clang-16", "clang-18", "clang-19")
TARGETS = ("native", "x86-64-v3", "x86-64")
# Two further builds: all of them take too long for every run of the tests.
BUILDS = {"lstm": ("clang", "native"), "gpt": ("", "x86-64-v3")}


def digest(state: bytes) -> str:
    return hashlib.sha256(state).hexdigest()


@pytest.fixture(scope="module")
def reference(needs_compiler: None) -> Any:
    """A function from a network's name to its state, trained with one thread."""
    known: dict[str, str] = {}

    def state(name: str) -> str:
        if name not in known:
            known[name] = digest(make(name).trained(STEPS, threads=1))
        return known[name]

    return state


@pytest.mark.parametrize("name", NETWORKS)
def test_threads_and_repetition(name: str, reference: Any) -> None:
    for threads in (1, 2, 3, 4, 7):
        assert digest(make(name).trained(STEPS, threads=threads)) == reference(name), threads
    assert digest(make(name, seed=1).trained(STEPS)) != reference(name)


@pytest.mark.parametrize("name", NETWORKS)
def test_stopping_after_any_step(name: str, reference: Any, tmp_path: Path) -> None:
    """Everything is made anew, with another seed, and gets its state from the checkpoint."""
    for stop in range(1, STEPS) if name in ("lenet", "lstm") else (2,):
        first = make(name)
        step, done = first.step(threads=2), 0
        while done < stop:
            for batch in first.loader:  # two are prepared ahead when this one is left
                step(*batch)
                done += 1
                if done == stop:
                    break
        train.save_checkpoint(tmp_path / "c", first.model, first.optimizer, loader=first.loader, step=done)
        second = make(name, seed=5)
        train.load_checkpoint(
            tmp_path / "c",
            second.model,
            second.optimizer,
            loader=second.loader,
            generator=tw.default_generator,
        )
        step = second.step(threads=3)
        while done < STEPS:
            for batch in second.loader:
                step(*batch)
                done += 1
                if done == STEPS:
                    break
        assert digest(second.state()) == reference(name), stop


def test_another_process(reference: Any) -> None:
    script = Path(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "THALWEG_THREADS": "3"}
    found = subprocess.run(
        [sys.executable, str(script), "one", *NETWORKS], env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [reference(name) for name in NETWORKS]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 instruction sets")
@pytest.mark.parametrize("name", BUILDS)
def test_other_compilers_and_instruction_sets(
    name: str, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = reference(name)
    compiler, target = BUILDS[name]
    if compiler and shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    if "v3" in target and " avx2 " not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("the processor has no AVX2")
    if compiler:
        monkeypatch.setenv("CC", compiler)
    assert digest(make(name).trained(STEPS, threads=2, target=target)) == expected


def matrix() -> int:
    """Every network by every compiler, instruction set and number of threads; the number of differences."""
    wrong = 0
    for name in NETWORKS:
        expected = ""
        for compiler in [found for found in COMPILERS if shutil.which(found)]:
            os.environ["CC"] = compiler
            for target in TARGETS:
                for threads in (1, 2, 3, 4, 7):
                    state = digest(make(name).trained(3 * STEPS, threads=threads, target=target))
                    expected = expected or state
                    wrong += state != expected
                    answer = "same" if state == expected else "OTHER BITS"
                    print(f"{name:<7} {compiler:<9} {target:<10} {threads} threads: {answer}", flush=True)
    return wrong


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        print(*(digest(make(name).trained(STEPS)) for name in sys.argv[2:]))
    else:
        sys.exit(matrix() > 0)
