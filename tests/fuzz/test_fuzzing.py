"""The fuzzer: a fixed number of random programs, shrinking, files, sanitizers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from thalweg import fuzz
from thalweg.cli import main
from thalweg.codegen.c import support
from thalweg.codegen.c.bindings import Context, KernelText
from thalweg.errors import DataError, UnsupportedError
from thalweg.fuzz import sanitized
from thalweg.fuzz.shrinking import shrink


def test_a_fixed_number_of_programs(needs_compiler: None) -> None:
    """Ops and arrays of the registry's samples among them."""
    found = [failure for _, wrong in fuzz.fuzz(0, lambda done: done < 20) for failure in wrong]
    assert not found, "\n\n".join(map(str, found))


def wrong_tanh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel computes something else in place of tanh."""
    for table in (support.BLOCK_EMITTERS, support.TILE_EMITTERS):
        for kind, emit in list(table.items()):

            def mutated(context: Context, emit: Any = emit) -> KernelText:
                written = emit(context)
                text = written.text.replace("tanh_f32(", "negative_f32(")
                return KernelText(text, written.buffers, written.functions)

            monkeypatch.setitem(table, kind, mutated)


def test_what_fails_is_made_small_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_compiler: None, capsys: Any
) -> None:
    seeds = range(100)
    case = next(
        program
        for program in map(fuzz.RandomProgram, seeds)
        if program.dtype == "float32"
        and len(program.graph.nodes) > 15
        and any(node.op.name == "tanh" for node in program.graph.nodes[:10])
    )
    assert fuzz.trial(case) is None
    with monkeypatch.context() as patch:
        wrong_tanh(patch)
        wrong = fuzz.trial(case)
        assert wrong is not None and "elements are wrong" in wrong
        small = shrink(case, lambda other: fuzz.trial(other) is not None)
        assert [node.op.name for node in small.graph.nodes] == ["tanh"]
        failure = fuzz.Failure(case.seed, wrong, case, small)
        path = fuzz.save_failure(failure, tmp_path / "kept")
        assert main(["fuzz", "--replay", str(path)]) == 1
        assert "tanh(%" in capsys.readouterr().out
    text = path.with_suffix(".txt").read_text()
    assert text.startswith(f"seed {case.seed}: ") and "tanh(%" in text
    assert main(["fuzz", "--replay", str(path)]) == 0
    assert "this program is right" in capsys.readouterr().out


def test_a_whole_case_survives_a_file(tmp_path: Path) -> None:
    program = next(p for p in map(fuzz.RandomProgram, range(50)) if len(p.holders) > 1)
    fuzz.write_case(tmp_path / "case", program)
    read = fuzz.read_case(tmp_path / "case")
    assert read.graph.digest() == program.graph.digest()
    for one, other in zip(
        [*read.arrays, *(h.data for h in read.holders)],
        [*program.arrays, *(h.data for h in program.holders)],
        strict=True,
    ):
        assert one.tobytes() == other.tobytes() and one.dtype == other.dtype
    fuzz.safetensors.save(tmp_path / "other", {})
    with pytest.raises(DataError, match="holds no graph"):
        fuzz.read_case(tmp_path / "other")


@pytest.fixture(scope="module")
def sanitizers(needs_compiler: None) -> dict[str, str]:
    if not sys.platform.startswith("linux"):
        pytest.skip("sanitizers are preloaded as on Linux")
    try:
        return sanitized.environment()
    except UnsupportedError as error:
        pytest.skip(str(error))


def test_programs_are_clean_under_the_sanitizers(sanitizers: dict[str, str]) -> None:
    assert sanitized.run_group(0, 2, sanitizers) is None


OVERFLOW = """
import ctypes, numpy as np
from thalweg.codegen.c.build import library
text = "void set(float *x, int n) { for (int i = 0; i <= n; i++) x[i] = 1; }"
text = text.replace("void set", '__attribute__((visibility("default"))) void set')
x = np.empty(1000, np.float32)
library([("set.c", text)]).set(ctypes.c_void_p(x.ctypes.data), 1000)
"""


def test_the_sanitizers_see_what_generated_code_does(sanitizers: dict[str, str]) -> None:
    found = subprocess.run(
        [sys.executable, "-c", OVERFLOW], env=sanitizers, capture_output=True, text=True, check=False
    )
    assert found.returncode != 0 and "heap-buffer-overflow" in found.stderr
