"""Exported programs: they compile without a warning, alone, and compute the bits of the Python run."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.cli import main
from thalweg.codegen.c.export import Export, identifier
from thalweg.data import write_idx
from thalweg.errors import ArgumentError, DataError
from thalweg.models import LeNet

IS_X86 = platform.machine() in ("x86_64", "AMD64")
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
EXACT = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
VECTOR = ["-std=gnu99", "-O1", "-march=native" if IS_X86 else "-mcpu=native", "-DTW_SCALAR=0", *EXACT]
# Neither vectors nor fused multiply-adds nor square roots: all of it is in model.c. -O1 is quick to compile.
SCALAR = ["-std=c99", "-pedantic", "-O1", *(["-march=x86-64", "-mno-fma"] if IS_X86 else [])]
BUILDS = {"vector": VECTOR, "scalar": SCALAR}
QUICK = [*SCALAR, "-O0"]  # to compile
SANITIZED = [*QUICK, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def tool(*names: str) -> str:
    """The first of these programs that is installed; the test is skipped where none is."""
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"needs {' or '.join(names)}")
    return found


def run(*words: object, directory: Path | None = None, code: int = 0) -> str:
    """What a command prints; it must end with this exit code."""
    done = subprocess.run(
        list(map(str, words)), cwd=directory, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == code, (
        f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout + done.stderr


def build(
    directory: Path, flags: Sequence[str], *, compiler: str = "", sources: Sequence[str] = ("model.c",)
) -> Path:
    """The program of an export. No library but libc, and that for main.c only: libm is not there."""
    program = directory / f"program-{abs(hash(tuple(flags)))}"
    run(
        compiler or tool("gcc", "cc", "clang"),
        *flags,
        *WARNINGS,
        "main.c",
        *sources,
        "-o",
        program,
        directory=directory,
    )
    return program


class Trained:
    """A training step, its batches, and what Python makes of them."""

    def __init__(self, step: Any, batches: Sequence[Sequence[np.ndarray[Any, Any]]], place: Path) -> None:
        self.step, self.batches, self.place = step, batches, place
        self.exported = step.export_c(place / "c", *batches[0], name="net")
        self.files = [place / f"input{i}.bin" for i in range(len(batches[0]))]
        for i, path in enumerate(self.files):
            path.write_bytes(b"".join(np.ascontiguousarray(batch[i]).tobytes() for batch in batches))

    def python(self) -> bytes:
        """The state after Python's run, as the C program would save it."""
        for batch in self.batches:
            self.step(*batch)
        return self.step.export_c(self.place / "after", *self.batches[0], name="net").saved_state()

    def c(self, flags: Sequence[str]) -> bytes:
        """The state that the C program saves after its run."""
        program = build(self.place / "c", flags)
        name = self.exported.functions[0].name
        weights = self.place / "c" / "weights.bin"
        run(program, name, *self.files, "--load", weights, "--save", self.place / "saved.bin")
        return (self.place / "saved.bin").read_bytes()


def stepper(model: nn.Module, loss: Callable[..., Any], optimizer: optim.Optimizer, **options: Any) -> Any:
    @tw.compile(backend="c", **options)
    def train(x: tw.Tensor, y: tw.Tensor) -> tw.Tensor:
        found = loss(model(x), y)
        optimizer.minimize(found)
        return found

    return train


def images(count: int, side: int, channels: int = 1, batches: int = 3, classes: int = 10) -> list[list[Any]]:
    random = np.random.default_rng(0)
    return [
        [
            random.standard_normal((count, channels, side, side), np.float32),
            random.integers(0, classes, count),
        ]
        for _ in range(batches)
    ]


# ---- LeNet -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """LeNet's training step and prediction, exported, with idx files of 40 images."""
    place = tmp_path_factory.mktemp("lenet")
    tw.manual_seed(0)
    model = LeNet()
    step = stepper(model, nn.functional.cross_entropy, optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    predict = tw.compile(lambda x: model(x), backend="c")
    random = np.random.default_rng(0)
    write_idx(place / "images", random.integers(0, 256, (40, 28, 28), dtype=np.uint8))
    write_idx(place / "labels", random.integers(0, 10, 40, dtype=np.uint8))
    exported = step.export_c(
        place / "c",
        tw.spec((16, 1, 28, 28)),
        tw.spec((16,), "int64"),
        name="lenet",
        functions={"predict": (predict, tw.spec((3, 1, 28, 28)))},
        normalisation=(0.1307, 0.3081),
    )
    return step, exported, place


@pytest.mark.parametrize("kind", ["gcc", "clang"])
def test_no_compiler_has_a_warning(lenet: tuple[Any, Any, Path], kind: str) -> None:
    compiler, directory = tool(kind), lenet[2] / "c"
    for flags in (["-std=c99", "-pedantic"], ["-std=gnu99"], VECTOR, ["-std=c11", "-pedantic", "-O3"]):
        run(compiler, *flags, *WARNINGS, "-fsyntax-only", "model.c", "main.c", directory=directory)
    run(compiler, "-std=c99", *WARNINGS, "-fsyntax-only", "-ffreestanding", "model.c", directory=directory)
    assert "fast-math" in run(
        compiler, "-ffast-math", "-fsyntax-only", "model.c", directory=directory, code=1
    )


def test_without_gnu_c(lenet: tuple[Any, Any, Path]) -> None:
    """A compiler that is none of GCC's kin gets C99 without attributes and built-in functions."""
    flags = ["-std=c99", "-pedantic", "-U__GNUC__", *WARNINGS, "-Wno-unused-function", "-Wno-unused-variable"]
    run(tool("gcc"), *flags, "-fsyntax-only", "model.c", directory=lenet[2] / "c")


@pytest.fixture(scope="module")
def lenet_programs(lenet: tuple[Any, Any, Path]) -> dict[str, Path]:
    return {kind: build(lenet[2] / "c", flags) for kind, flags in BUILDS.items()}


def test_lenet_trains_on_idx_files_with_the_bits_of_python(
    lenet: tuple[Any, Any, Path], lenet_programs: dict[str, Path], needs_compiler: None
) -> None:
    step, exported, place = lenet
    said = {}
    for kind, program in lenet_programs.items():
        files = place / "images", place / "labels", "--load", place / "c" / "weights.bin"
        said[kind] = run(program, "train", *files, "--save", place / kind, "--epochs", 2)
        # stopping and going on changes nothing
        run(program, "train", *files, "--save", place / "half")
        run(program, "train", *files[:2], "--load", place / "half", "--save", place / "whole")
        assert (place / "whole").read_bytes() == (place / kind).read_bytes()
    assert said["scalar"] == said["vector"]
    assert "train, pass 2: 2 calls" in said["scalar"]  # the last 8 images are no whole batch
    before = exported.saved_state()
    pixels = np.frombuffer((place / "images").read_bytes(), np.uint8, offset=16).astype(np.float32)
    x = ((pixels / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)).reshape(40, 1, 28, 28)
    y = np.frombuffer((place / "labels").read_bytes(), np.uint8, offset=8).astype(np.int64)
    for _ in range(2):
        for first in (0, 16):
            loss = step(x[first : first + 16], y[first : first + 16])
    functions = {"predict": (tw.compile(lambda x: x), tw.spec(1))}
    after = step.export_c(place / "after", x[:16], y[:16], name="lenet", functions=functions).saved_state()
    assert after != before
    for kind in BUILDS:
        assert (place / kind).read_bytes() == after
    assert f"output: {float(loss):.9g}" in said["vector"]
    state = exported.read_state(place / "vector")
    holder = next(entry.holder for entry in exported.functions[0].graph.state if entry.after is not None)
    np.testing.assert_array_equal(state[holder.name], holder.data)


def test_prediction_counts_what_is_right(
    lenet: tuple[Any, Any, Path], lenet_programs: dict[str, Path], needs_compiler: None
) -> None:
    _, exported, place = lenet
    options = (
        "--labels",
        place / "labels",
        "--output",
        place / "scores",
        "--load",
        place / "c" / "weights.bin",
    )
    said = {run(program, "predict", place / "images", *options) for program in lenet_programs.values()}
    assert len(said) == 1
    scores = np.fromfile(place / "scores", np.float32).reshape(-1, 10)
    assert scores.shape == (42, 10)  # 14 calls with 3 images each; the last two are zeros
    labels = np.frombuffer((place / "labels").read_bytes(), np.uint8, offset=8)
    right = int((scores[:40].argmax(1) == labels).sum())
    assert f"predict, pass 1: 14 calls, {right} of 40 right" in said.pop()
    assert exported.functions[1].name == "predict"


def test_bad_files_and_words_are_refused(
    lenet: tuple[Any, Any, Path], lenet_programs: dict[str, Path]
) -> None:
    place, program = lenet[2], lenet_programs["vector"]
    train = [program, "train", place / "images", place / "labels", "--load"]
    weights = place / "c" / "weights.bin"
    content = weights.read_bytes()
    for name, wrong in {"short": content[:-1], "long": content + b"0", "other": b"T" + content[1:]}.items():
        (place / name).write_bytes(wrong)
        assert "not the saved state of lenet" in run(*train, place / name, code=1)
        with pytest.raises(DataError, match=name):
            lenet[1].read_state(place / name)
    assert "cannot be opened" in run(*train, place / "nowhere", code=1)
    assert "there is no such function" in run(program, "walk", code=1)
    assert "no file given" in run(program, "train", place / "images", "--load", weights, code=1)
    (place / "packed").write_bytes(b"\x1f\x8b\x08")
    assert "gunzip" in run(program, "train", place / "packed", place / "labels", code=1)
    # A label that is no class: the call fails before anything is updated.
    write_idx(place / "wrong", np.full(40, 10, np.uint8))
    said = run(program, "train", place / "images", place / "wrong", "--load", weights, code=1)
    assert "out of range" in said
    assert run(program, "--help").startswith("lenet FUNCTION FILE...")


def test_a_cpp_program_uses_it(lenet: tuple[Any, Any, Path], lenet_programs: dict[str, Path]) -> None:
    """Two structs side by side; a failed call leaves the state as it was."""
    directory = lenet[2] / "c"
    (directory / "user.cpp").write_text(CPP, encoding="utf-8")
    run(tool("gcc"), *VECTOR, "-c", "model.c", "-o", "model.o", directory=directory)
    run(
        tool("g++"),
        "-std=c++11",
        "-pedantic",
        *WARNINGS,
        "user.cpp",
        "model.o",
        "-o",
        "user",
        directory=directory,
    )
    assert run(directory / "user", directory / "weights.bin").split() == [
        "same",
        "unchanged",
        "same",
        "different",
    ]


CPP = r"""
#include <cstdio>
#include <cstring>
#include <vector>
#include "model.h"

static lenet first, second;

int main(int, char **words) {
    std::vector<unsigned char> bytes(LENET_SAVED_BYTES);
    std::FILE *file = std::fopen(words[1], "rb");
    if (!file || std::fread(bytes.data(), 1, bytes.size(), file) != bytes.size()) return 1;
    std::fclose(file);
    if (lenet_load(&first, bytes.data(), bytes.size())) return 2;
    if (lenet_load(&second, bytes.data(), bytes.size())) return 2;
    std::vector<float> x(16 * 784, 0.5f);
    std::vector<int64_t> y(16, 3);
    float one, two;
    if (lenet_train(&first, x.data(), y.data(), &one)) return 3;
    if (lenet_train(&second, x.data(), y.data(), &two)) return 3;
    const bool same = one == two && !std::memcmp(first.state, second.state, sizeof first.state);
    std::puts(same ? "same" : "different");
    y[15] = 10;
    if (lenet_train(&first, x.data(), y.data(), &one) <= 0) return 4;
    std::puts(std::memcmp(first.state, second.state, sizeof first.state) ? "changed" : "unchanged");
    y[15] = 3;
    lenet_set_lr(&first, 0.2);
    if (lenet_train(&first, x.data(), y.data(), &one)) return 5;
    if (lenet_train(&second, x.data(), y.data(), &two)) return 5;
    std::puts(one == two ? "same" : "different");
    std::puts(std::memcmp(first.state, second.state, sizeof first.state) ? "different" : "same");
    return 0;
}
"""


# ---- other networks ----------------------------------------------------------------------------------------


def perceptron() -> tuple[Any, list[list[Any]]]:
    """With dropout (the random generator is state) and Adam (square roots, a counter)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.GELU(), nn.Dropout(0.3), nn.Linear(20, 10))
    return stepper(model, nn.functional.cross_entropy, optim.Adam(model.parameters(), lr=0.01)), images(20, 6)


def depthwise() -> tuple[Any, list[list[Any]]]:
    """As in MobileNet: depthwise and pointwise convolutions with batch norm."""
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6() if hasattr(nn, "ReLU6") else nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return stepper(model, nn.functional.cross_entropy, optimizer), images(6, 12, 2)


class CharLSTM(nn.Module):
    """Scores of the next of 11 characters."""

    def __init__(self, hidden: int = 12) -> None:
        self.embedding = nn.Embedding(11, 8)
        self.lstm = nn.LSTM(8, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 11)

    def forward(self, x: Any) -> Any:
        return self.head(self.lstm(self.embedding(x))[0])


def over_characters(
    model: nn.Module, optimizer: optim.Optimizer, batch: int = 4
) -> tuple[Any, list[list[Any]]]:
    def loss(scores: Any, y: Any) -> Any:
        return nn.functional.cross_entropy(scores.reshape(-1, 11), y.reshape(-1))

    random = np.random.default_rng(0)
    texts = [random.integers(0, 11, (batch, 8)) for _ in range(3)]
    return stepper(model, loss, optimizer), [[text[:, :-1], text[:, 1:]] for text in texts]


def lstm() -> tuple[Any, list[list[Any]]]:
    model = CharLSTM()
    return over_characters(model, optim.SGD(model.parameters(), lr=0.1))


def wide_lstm() -> tuple[Any, list[list[Any]]]:
    """Its time steps are heavy enough for all threads of the Python run."""
    model = CharLSTM(72)
    return over_characters(model, optim.SGD(model.parameters(), lr=0.1), 21)


class CharGPT(nn.Module):
    """One block of attention over characters, as nanoGPT."""

    def __init__(self) -> None:
        self.token, self.place = nn.Embedding(11, 16), nn.Embedding(7, 16)
        self.block = nn.TransformerEncoderLayer(
            16, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 11)

    def forward(self, x: Any) -> Any:
        mask = np.triu(np.full((7, 7), -np.inf, np.float32), 1)
        y = self.token(x) + self.place(np.arange(7))
        return self.head(self.norm(self.block(y, mask)))


def gpt() -> tuple[Any, list[list[Any]]]:
    model = CharGPT()
    return over_characters(model, optim.AdamW(model.parameters(), lr=0.01))


NETWORKS = {
    "perceptron": perceptron,
    "depthwise": depthwise,
    "lstm": lstm,
    "wide lstm": wide_lstm,
    "gpt": gpt,
}


@pytest.mark.parametrize("network", list(NETWORKS))
def test_networks_train_with_the_bits_of_python(network: str, tmp_path: Path, needs_compiler: None) -> None:
    tw.manual_seed(0)
    trained = Trained(*NETWORKS[network](), tmp_path)
    found = trained.c(VECTOR)
    scalar = trained.c(SANITIZED if network == "perceptron" else QUICK)
    expected = trained.python()
    assert expected != trained.exported.saved_state()
    assert found == expected
    assert scalar == expected


def test_weights_of_eight_bits_predict_with_the_bits_of_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], needs_compiler: None
) -> None:
    tw.manual_seed(3)
    model = tw.quantize(nn.Sequential(nn.Linear(70, 33), nn.ReLU(), nn.Linear(33, 5)), "int8")
    predict = tw.compile(lambda x: model(x), backend="c")
    x = np.random.default_rng(0).standard_normal((3, 70), np.float32)
    exported = predict.export_c(tmp_path, x)
    (tmp_path / "x").write_bytes(x.tobytes())
    for flags in (VECTOR, QUICK):
        program = build(tmp_path, flags)
        run(program, exported.functions[0].name, "x", "--output", "y", directory=tmp_path)
        np.testing.assert_array_equal(
            np.fromfile(tmp_path / "y", np.float32).reshape(3, 5), predict(x).numpy()
        )
    assert main(["export", "lenet", "--quantize", "int8", "-o", str(tmp_path / "lenet")]) == 1
    assert "--quantize int8 is for --inference" in capsys.readouterr().err
    assert main(["export", "lenet", "--inference", "--quantize", "int8", "-o", str(tmp_path / "lenet")]) == 0
    assert "state 7" in capsys.readouterr().out  # kilobytes; 247 in float32


# ---- what an export is -------------------------------------------------------------------------------------


def test_embedded_weights_stay_in_read_only_memory(tmp_path: Path, needs_compiler: None) -> None:
    tw.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].weight.trainable = model[0].bias.trainable = False
    optimizer = optim.SGD([p for p in model.parameters() if p.trainable], lr=0.5)
    step = stepper(model, nn.functional.cross_entropy, optimizer)
    random = np.random.default_rng(0)
    x, y = random.standard_normal((4, 6), np.float32), random.integers(0, 3, 4)
    exported = step.export_c(tmp_path, x, y, embed_weights=True)
    assert not (tmp_path / "weights.bin").exists()
    numbers = [t.name for t in exported.tensors if t.setter]
    assert "lr" in numbers
    layers = [t.name.rpartition(".")[0][-1] for t in exported.tensors if t.changes and not t.setter]
    assert layers == ["2", "2"]
    # 3 x 8 weights, 3 biases and the numbers, each at a multiple of 64 bytes
    assert exported.state_bytes == 2 * 64 + 64 + 64 * len(numbers)
    (tmp_path / "x").write_bytes(x.tobytes())
    (tmp_path / "y").write_bytes(y.tobytes())
    program = build(tmp_path, VECTOR, sources=("model.c", "weights.c"))
    said = run(program, "train", "x", "y", "--epochs", 3, "--save", "saved", directory=tmp_path)
    losses = [float(step(x, y)) for _ in range(3)]
    assert f"mean output {losses[-1]:.6f}" in said
    state = exported.read_state(tmp_path / "saved")
    for name in numbers:
        assert state.pop(name) == optimizer.lr or name != "lr"
    for name, array in state.items():
        np.testing.assert_array_equal(array, getattr(model[2], name.rpartition(".")[2]).data)


def test_the_struct_has_the_planned_bytes(tmp_path: Path) -> None:
    step, batches = perceptron()
    exported = step.export_c(tmp_path, *batches[0], name="net")
    plan = step.plan(*batches[0])
    parts = exported.state_bytes, plan.arena_bytes, plan.thread_bytes
    assert exported.memory_bytes == sum(max(64, -(-part // 64) * 64) for part in parts)
    planned = f"typedef char planned[sizeof(net) == {exported.memory_bytes} ? 1 : -1];"
    size = f'#include "model.h"\n{planned}\n'
    (tmp_path / "size.c").write_text(size, encoding="utf-8")
    run(tool("gcc", "cc", "clang"), "-std=c99", "-fsyntax-only", "size.c", directory=tmp_path)
    assert f"{exported.memory_bytes:,}" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_tensors_with_one_name_are_told_apart(tmp_path: Path) -> None:
    weights = [tw.Parameter(np.full(2, value, np.float32), name="w") for value in (1, 2)]
    add = tw.compile(lambda x: x + weights[0] * weights[1])
    exported = add.export_c(tmp_path, np.zeros(2, np.float32))
    state = exported.read_state(tmp_path / "weights.bin")
    assert {name: float(array[0]) for name, array in state.items()} == {"w": 1, "w (2)": 2}


def test_names_become_c_names() -> None:
    assert identifier("x") == "x"
    assert identifier("batch['images'][0]") == "batch_images_0"
    assert identifier("<lambda>") == "lambda"
    assert identifier("int") == "int_"
    assert identifier("0") == "value_0"
    assert identifier("x", ["x", "x_2"]) == "x_3"


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    double = tw.compile(lambda x: x * 2.0)
    x = np.ones(3, np.float32)
    with pytest.raises(ArgumentError, match="cannot be a name in C"):
        double.export_c(tmp_path, x, name="two words")
    with pytest.raises(ArgumentError, match="'int' cannot be a name in C"):
        double.export_c(tmp_path, x, name="int")
    with pytest.raises(ArgumentError, match="compiled function and its arguments"):
        double.export_c(tmp_path, x, functions={"other": (lambda x: x, x)})
    with pytest.raises(ArgumentError, match="standard deviation above 0"):
        double.export_c(tmp_path, x, normalisation=(0, 0))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the export"):
        double.export_c(tmp_path / "file", x)


# ---- the command -------------------------------------------------------------------------------------------


def test_the_command_exports_what_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        main(["export", "lenet", "--to", "c", "--fit-memory", "128KB", "--batch-size", "2", "-o", "small"])
        == 0
    )
    said = capsys.readouterr().out
    assert "batches of 1, updates fc2.weight, fc2.bias, fc3.weight, fc3.bias" in said
    total = sum(
        int(said.split(f"{word} ")[1].split(" ")[0].rstrip(",").replace(",", ""))
        for word in ("memory:", "and")
    )
    assert total <= 128 * 1024
    assert (tmp_path / "small" / "weights.c").exists()
    assert main(["export", "lenet", "--inference", "-o", "forward"]) == 0
    assert "functions: lenet_predict\n" in capsys.readouterr().out
    assert main(["export", "lenet", "--fit-memory", "8KB", "-o", "tiny", "--batch-size", "1"]) == 1
    said = capsys.readouterr().err
    least = int(said.split("the least found needs ")[1].split(" ")[0].replace(",", ""))
    assert "nothing fits into 8,192 bytes" in said
    assert f"the smallest change that fits: --fit-memory {least}\n" in said
    assert main(["export", "lenet", "--fit-memory", str(least), "-o", "tiny", "--batch-size", "1"]) == 0
    assert f"chosen: {least:>11,} bytes, batches of 1, updates fc3.bias\n" in capsys.readouterr().out
    assert main(["export", "lenet", "--fit-memory", "100KB", "--update", "fc1", "-o", "wrong"]) == 1
    assert "the smallest change that fits: --update fc1.bias: " in capsys.readouterr().err
    assert main(["export", "lenet", "--fit-memory", "300KB", "--update", "fc1", "-o", "wrong"]) == 1
    assert "the smallest change that fits: --momentum 0: " in capsys.readouterr().err
    assert main(["export", "lenet", "--update", "fc4", "-o", "wrong"]) == 1
    assert "Did you mean fc3?" in capsys.readouterr().err
    assert main(["export", "lenet", "--fit-memory", "lots", "-o", "wrong"]) == 2
    assert "a size such as 256KB" in capsys.readouterr().err


def test_what_does_not_fit_at_once_runs_in_micro_batches(
    lenet: tuple[Any, Any, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    needs_compiler: None,
) -> None:
    """The batch that was asked for stays; the C computes the bits of `compile(accumulate=...)`."""
    written: list[Export] = []
    write = Export.write
    monkeypatch.setattr(Export, "write", lambda self, place: written.append(self) or write(self, place))
    options = ["--update", "fc3", "--fit-memory", "150KB", "--lr", "0.1"]
    assert main(["export", "lenet", *options, "-o", str(tmp_path / "c")]) == 0
    said = capsys.readouterr().out
    exported = written.pop()
    fitted = exported.functions[0].plan.fitted  # type: ignore[attr-defined]
    words = f"batches of 16, updates fc3.weight, fc3.bias, with {fitted.micro_batches} micro-batches"
    assert fitted.micro_batches > 1
    assert exported.memory_bytes + exported.argument_bytes <= 150 * 1024
    readme = (tmp_path / "c" / "README.md").read_text(encoding="utf-8")
    for text in (said, readme):
        assert words in text
        assert "batches of 16, updates fc3.weight, fc3.bias" in text.replace(words, "")  # with its bytes
    images, labels = (lenet[2] / name for name in ("images", "labels"))
    program = build(tmp_path / "c", VECTOR, sources=("model.c", "weights.c"))
    run(program, "train", images, labels, "--epochs", 2, "--save", tmp_path / "saved")
    found = exported.read_state(tmp_path / "saved")

    tw.manual_seed(0)
    model = LeNet()
    for name, parameter in model.named_parameters():
        parameter.trainable = name.startswith("fc3")
    optimizer = optim.SGD([p for p in model.parameters() if p.trainable], lr=0.1, momentum=0.9)
    step = stepper(model, nn.functional.cross_entropy, optimizer, accumulate=fitted.micro_batches)
    pixels = np.frombuffer(images.read_bytes(), np.uint8, offset=16).astype(np.float32)
    x = ((pixels / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)).reshape(40, 1, 28, 28)
    y = np.frombuffer(labels.read_bytes(), np.uint8, offset=8).astype(np.int64)
    for first in (0, 16, 0, 16):
        step(x[first : first + 16], y[first : first + 16])
    np.testing.assert_array_equal(found["LeNet.fc3.weight"], model.fc3.weight.data)
    np.testing.assert_array_equal(found["LeNet.fc3.bias"], model.fc3.bias.data)


def test_recomputed_values_have_the_bits_of_kept_ones(tmp_path: Path, needs_compiler: None) -> None:
    states = {}
    limit = None
    for place in ("kept", "again"):
        tw.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(12)]
        model = nn.Sequential(nn.Linear(6, 16), *layers)
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        def loss(scores: Any, y: Any) -> Any:
            return ((scores.mean(axis=1) - y) ** 2).mean()

        random = np.random.default_rng(0)
        batches = [[random.standard_normal((3, 50, 6), np.float32), np.ones((3, 16), np.float32)]] * 2
        step = stepper(model, loss, optimizer, threads=1, memory_limit=limit)
        trained = Trained(step, batches, tmp_path / place)
        plan = step.plan(*batches[0])
        if limit is None:
            limit = int(0.8 * plan.total_bytes(1))
        else:
            assert any(plan.fitted.recomputed) and plan.fitted.micro_batches == 1
            assert plan.total_bytes(1) <= limit
        states[place] = trained.c(QUICK)
    assert states["again"][32:] == states["kept"][32:]


def test_prediction_beside_training_is_that_of_eval_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running statistics are read by the prediction and updated by the training step."""
    written: list[Export] = []
    write = Export.write
    monkeypatch.setattr(Export, "write", lambda self, place: written.append(self) or write(self, place))
    assert main(["export", "resnet", "--batch-size", "2", "-o", str(tmp_path)]) == 0
    train, predict = (function.graph.state for function in written[0].functions)
    changed = {state.holder.name for state in train if state.after is not None}
    assert any(name.endswith("running_mean") for name in changed)
    assert any(state.holder.name.endswith("running_mean") for state in predict)
    assert all(state.after is None for state in predict)
