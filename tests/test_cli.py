"""The command line, as a user meets it: what it prints, what it writes, its exit codes."""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import thalweg
from thalweg import data, train
from thalweg.cli import main, runs, sources
from thalweg.cli.sources import prepare_picture
from thalweg.config import settings
from thalweg.errors import DataError

Capture = pytest.CaptureFixture[str]
QUICK = ["--data", "digits", "--backend", "numpy", "--epochs", "2", "--batch-size", "256"]
STEPS = 6  # of an epoch


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run in an empty directory, without a network, and leave the number of threads as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("THALWEG_DEBUG", raising=False)
    unreachable = functools.partial(data.mnist, mirrors=["http://127.0.0.1:9/mnist"], progress=False)
    monkeypatch.setattr(sources, "mnist", unreachable)
    yield
    settings.set_threads(None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    directory = tmp_path_factory.mktemp("trained") / "mlp"
    assert main(["train", "mlp", *QUICK, "--batch-size", "64", "--out", str(directory)]) == 0
    return directory


def thalweg_process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(thalweg.__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, "-m", "thalweg", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# ---- usage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "lenet", "--epoch", "3"], "there is no option --epoch. Did you mean --epochs?"),
        (["train", "lenet", "--batchsize=3"], "there is no option --batchsize. Did you mean --batch-size?"),
        (["trian", "lenet"], "there is no 'trian'; write one of train, evaluate, .*Did you mean train\\?"),
        (
            ["train", "lenett"],
            "there is no 'lenett'; write one of lenet, mlp, resnet, vit, gpt, lstm. Did you mean lenet\\?",
        ),
        (["train", "lenet", "mlp"], "'mlp' is one word too many"),
        (["train"], "name the model to train: lenet, mlp, resnet, vit, gpt or lstm"),
        (
            ["train", "lenet", "--epochs", "x"],
            "--epochs: expected a whole number of at least 1, received 'x'",
        ),
        (["train", "lenet", "--epochs", "0"], "expected a whole number of at least 1, received '0'"),
        (["train", "lenet", "--lr", "-1"], "expected a number above 0, received '-1'"),
        (["train", "lenet", "--lr", "nan"], "expected a number above 0, received 'nan'"),
        (["train", "lenet", "--momentum", "1"], "expected a number of at least 0 and below 1"),
        (["train", "lenet", "--seed", "-3"], "expected a whole number from 0"),
        (["train", "lenet", "--schedule", "cosin"], "there is no 'cosin'.*Did you mean cosine\\?"),
        (["graph", "lenet", "-o", "g.png"], "expected a file name ending in .svg or .txt, received 'g.png'"),
        (["predict"], "required"),
        ([], "required"),
    ],
)
def test_wrong_usage_is_two_lines_and_exit_code_2(words: list[str], expected: str, capsys: Capture) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    first, second = shown.err.splitlines()
    assert first.startswith("thalweg")
    assert re.search(expected, first), first
    assert re.fullmatch(r"See thalweg( \w+)? --help\.", second)


def test_help_and_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"thalweg {thalweg.__version__}\n"
    assert main(["--help"]) == 0
    assert "thalweg train lenet" in capsys.readouterr().out
    for command in ("train", "evaluate", "predict", "graph", "plan", "doctor"):
        assert main([command, "--help"]) == 0
        assert f"usage: thalweg {command}" in capsys.readouterr().out


def test_python_m_thalweg() -> None:
    process = thalweg_process("--version")
    out, error = process.communicate()
    assert (process.returncode, out, error) == (0, f"thalweg {thalweg.__version__}\n", "")


# ---- train -------------------------------------------------------------------------------------------------


def test_train_says_what_it_does_and_writes_checkpoint_and_curves(capsys: Capture) -> None:
    assert main(["train", "mlp", *QUICK]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == (
        "data: the digits in the package, 8 x 8 pixels resized to 28 x 28: 1,442 training and 355 test images"
    )
    assert lines[1].startswith("model: mlp, 203,530 parameters")
    assert lines[3] == f"output: {Path('runs/mlp-1')}"
    assert [line.split("  ")[0] for line in lines[4:6]] == ["epoch 1/2", "epoch 2/2"]
    assert re.fullmatch(r"test accuracy \d\d\.\d\d % \(\d+ of 355 images\), trained in \d+\.\d s", lines[6])
    assert lines[7] == f"checkpoint: {Path('runs/mlp-1/checkpoint.safetensors')}"
    assert lines[8] == f"curves: {Path('runs/mlp-1/curves.png')}"
    assert shown.err == ""
    saved = train.read_checkpoint("runs/mlp-1/checkpoint.safetensors")
    assert (saved.metadata["model"], saved.metadata["data"]) == ("mlp", "digits")
    assert len(saved.history.epochs) == 2
    assert Path("runs/mlp-1/curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_accuracy_is_that_of_the_last_weights_in_the_checkpoint(trained: Path, capsys: Capture) -> None:
    saved = train.read_checkpoint(trained / "checkpoint.safetensors")
    assert main(["evaluate", str(trained), "--backend", "numpy"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"test accuracy {100 * saved.history.epochs[-1]['test_accuracy']:.2f} % (")


@pytest.mark.parametrize("schedule", ["none", "cosine", "step", "onecycle"])
def test_schedules(schedule: str) -> None:
    assert main(["train", "mlp", *QUICK, "--schedule", schedule, "--augment", "none", "--out", "o"]) == 0
    saved = train.read_checkpoint("o/checkpoint.safetensors")
    assert (saved.schedule is None) == (schedule == "none")
    if saved.schedule is not None:
        assert saved.schedule["last_epoch"] == saved.step == 2 * STEPS


def test_options_reach_the_run(capsys: Capture) -> None:
    options = ["--batch-size", "100", "--lr", "0.01", "--momentum", "0.5", "--seed", "9", "--threads", "1"]
    assert main(["train", "mlp", *QUICK, *options]) == 0
    out = capsys.readouterr().out
    assert "batches of 100, SGD with learning rate 0.01 (schedule: onecycle) and momentum 0.5" in out
    assert "seed 9" in out
    assert "1 threads" in out
    found = json.loads(train.read_checkpoint("runs/mlp-1/checkpoint.safetensors").metadata["settings"])
    assert found == {
        "batch_size": 100, "lr": 0.01, "momentum": 0.5, "seed": 9, "epochs": 2, "schedule": "onecycle",
        "augment": "shift", "data": "digits", "model": "mlp",
    }  # fmt: skip


def test_the_same_seed_gives_the_same_checkpoint_another_one_another() -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["train", "mlp", *QUICK, "--seed", seed, "--out", name]) == 0
    a, b, c = (Path(name, "checkpoint.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_runs_are_numbered_and_never_overwritten(capsys: Capture) -> None:
    for _ in range(2):
        assert main(["train", "mlp", *QUICK]) == 0
    assert sorted(os.listdir("runs")) == ["mlp-1", "mlp-2"]
    capsys.readouterr()
    assert main(["train", "mlp", *QUICK, "--out", "runs/mlp-1"]) == 1
    assert "already holds a checkpoint; choose another --out, or continue" in capsys.readouterr().err


def test_resuming_a_finished_run_with_more_epochs(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    before = (trained / "checkpoint.safetensors").read_bytes()
    assert main(["train", "--resume", str(trained), "--out", "more"]) == 0
    assert "has 2 epochs already; --epochs 4, for example, trains on" in capsys.readouterr().out
    assert (
        main(["train", "--resume", str(trained), "--epochs", "3", "--out", "more", "--backend", "numpy"]) == 0
    )
    assert "epoch 3/3" in capsys.readouterr().out
    saved = train.read_checkpoint("more/checkpoint.safetensors")
    assert len(saved.history.epochs) == 3
    assert len(saved.history.losses) == 3 * 23
    assert (trained / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["lenet", "--resume", "{run}"],
            "is a run of mlp on digits, which cannot be continued with model lenet",
        ),
        (["mlp", "--data", "mnist", "--resume", "{run}"], "cannot be continued with data mnist"),
        (["mlp", "--resume", "nothing"], "there is no checkpoint 'nothing'"),
    ],
)
def test_runs_that_cannot_be_resumed(
    options: list[str], message: str, trained: Path, capsys: Capture
) -> None:
    assert main(["train", *(word.format(run=trained) for word in options)]) == 1
    assert message in capsys.readouterr().err


def test_ctrl_c_and_resume_give_the_same_bytes_as_one_run() -> None:
    options = ["mlp", *QUICK, "--epochs", "12"]
    assert main(["train", *options, "--out", "whole"]) == 0
    process = thalweg_process("train", *options, "--out", "parts")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch"):
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate()
    if process.returncode == 0:
        pytest.skip("the run was over before the signal came")
    assert process.returncode == 130
    assert re.search(r"stopped after step \d+, in epoch \d+ of 12; the checkpoint is parts", out)
    assert "so far" in out
    assert "Traceback" not in error
    assert main(["train", "--resume", "parts", "--backend", "numpy"]) == 0
    whole, parts = (Path(name, "checkpoint.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_lenet_learns_the_digits(needs_compiler: None, capsys: Capture) -> None:
    """The main job, with its default settings."""
    begin = time.perf_counter()
    assert main(["train", "lenet", "--data", "digits", "--out", "o"]) == 0
    out = capsys.readouterr().out
    accuracy = re.search(r"test accuracy (\d+\.\d+) %", out)
    assert accuracy is not None
    assert float(accuracy.group(1)) >= 97.0
    assert time.perf_counter() - begin < 120  # 30 s on an idle machine


def test_lenet_learns_mnist(needs_compiler: None, capsys: Capture) -> None:
    """Where MNIST is at hand: in the directory MNIST_DIRECTORY, or in the cache."""
    directory = os.environ.get("MNIST_DIRECTORY")
    try:
        data.mnist(directory, "test", download=False)
    except DataError:
        pytest.skip("MNIST is not at hand; set MNIST_DIRECTORY")
    words = ["train", "lenet", "--data", "mnist", "--epochs", "3", "--out", "o"]
    assert main([*words, *(["--data-dir", directory] if directory else [])]) == 0
    accuracy = re.search(r"test accuracy (\d+\.\d+) %", capsys.readouterr().out)
    assert accuracy is not None
    assert float(accuracy.group(1)) >= 98.8


# ---- which data --------------------------------------------------------------------------------------------


def test_auto_takes_the_digits_and_says_why(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("THALWEG_CACHE", str(Path.cwd() / "cache"))
    assert main(["train", "mlp", "--backend", "numpy", "--epochs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("data: the digits in the package")
    assert re.search(
        r"because MNIST is not in '.*mnist' and could not be downloaded: http://127\.0\.0\.1:9", lines[1]
    )
    assert "--data mnist insists" in lines[2]


def tiny_mnist(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four files in MNIST's form, with other digests than the published ones."""
    from thalweg.data import standard
    from thalweg.data.idx import idx_digest

    directory.mkdir()
    generator = np.random.default_rng(0)
    files: dict[str, Any] = {}
    for split, prefix, count in (("train", "train", 130), ("test", "t10k", 40)):
        images = generator.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = generator.integers(0, 10, count).astype(np.uint8)
        parts = []
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            data.write_idx(directory / name, array)
            parts.append(standard._File(name, idx_digest(array), 0))
        files[split] = tuple(parts)
    monkeypatch.setattr(standard, "_MNIST", files)


def test_auto_takes_mnist_where_it_is(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    tiny_mnist(Path("files"), monkeypatch)
    assert main(["train", "mlp", "--data-dir", "files", "--backend", "numpy", "--epochs", "1"]) == 0
    assert capsys.readouterr().out.startswith("data: MNIST: 130 training and 40 test images\n")
    assert main(["evaluate", "--data-dir", "files", "--backend", "numpy"]) == 0
    assert main(["evaluate", "--data", "digits", "--backend", "numpy"]) == 0


def test_mnist_that_cannot_be_had_is_an_error_with_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("THALWEG_CACHE", str(Path.cwd() / "cache"))
    assert main(["train", "mlp", "--data", "mnist"]) == 1
    error = capsys.readouterr().err
    assert "--data-dir on the command line" in error
    assert "--data digits" in error
    assert main(["train", "mlp", "--data-dir", "nowhere"]) == 1
    assert "--data-dir 'nowhere' is not a directory" in capsys.readouterr().err


def test_a_damaged_mnist_file_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    tiny_mnist(Path("files"), monkeypatch)
    path = Path("files/train-images-idx3-ubyte")
    path.write_bytes(path.read_bytes()[:-5])
    assert main(["train", "mlp", "--data", "mnist", "--data-dir", "files"]) == 1
    assert "train-images-idx3-ubyte" in capsys.readouterr().err


# ---- evaluate and predict ----------------------------------------------------------------------------------


def test_the_default_checkpoint_is_the_last_one_trained(trained: Path, capsys: Capture) -> None:
    for number, name in enumerate(("mlp-1", "mlp-2")):
        path = Path("runs", name, "checkpoint.safetensors")
        path.parent.mkdir(parents=True)
        path.write_bytes((trained / "checkpoint.safetensors").read_bytes())
        os.utime(path, (1000 - number, 1000 - number))
    assert main(["evaluate", "--backend", "numpy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0] == f"checkpoint: {Path('runs/mlp-1/checkpoint.safetensors')} (mlp after 2 epochs on digits)"
    )
    assert re.fullmatch(r"test accuracy [\d.]+ % \(\d+ of 355 images\), loss [\d.]+", lines[2])


def test_without_any_checkpoint(capsys: Capture) -> None:
    assert main(["evaluate"]) == 1
    assert "train one first (thalweg train lenet), or name one" in capsys.readouterr().err


def digit_png(path: str, index: int = 0) -> int:
    image = pytest.importorskip("PIL.Image")
    images, labels = data.digits("test").arrays
    image.fromarray((images[index, 0] * 255).astype(np.uint8)).save(path)
    return int(labels[index])


def test_predict_prints_class_and_probabilities(trained: Path, capsys: Capture) -> None:
    right = 0
    for index in range(10):
        label = digit_png(f"{index}.png", index)
        assert main(["predict", str(trained), f"{index}.png", "--backend", "numpy"]) == 0
        first, second, *rest = capsys.readouterr().out.splitlines()
        assert first.startswith(f"checkpoint: {trained / 'checkpoint.safetensors'}")
        right += second.startswith(f"{index}.png: {label} with probability 0.")
        found = [line.split()[:2] for line in rest]
        assert sorted(number for number, _ in found) == [str(number) for number in range(10)]
        chances = [float(chance) for _, chance in found]
        assert chances == sorted(chances, reverse=True)
        assert sum(chances) == pytest.approx(1, abs=1e-3)
    assert right >= 7


def test_predict_several_pictures_with_the_default_checkpoint(trained: Path, capsys: Capture) -> None:
    Path("runs").mkdir()
    Path("runs/x").symlink_to(trained, target_is_directory=True)
    digit_png("a.png", 3)
    digit_png("b.png", 5)
    assert main(["predict", "a.png", "b.png", "--backend", "numpy"]) == 0
    out = capsys.readouterr().out
    assert f"checkpoint: {Path('runs/x/checkpoint.safetensors')}" in out
    assert "a.png: " in out
    assert "b.png: " in out


def test_pictures_that_cannot_be_read(trained: Path, capsys: Capture) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("L", (40, 30), 255).save("blank.png")
    digit_png("whole.png")
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:60])
    Path("text.png").write_text("no picture")
    for name, expected in (
        ("blank.png", "blank.png: the picture shows nothing"),
        ("cut.png", "cannot read the image 'cut.png'"),
        ("text.png", "cannot read the image 'text.png': it holds no picture"),
        ("absent.png", "No such file"),
    ):
        assert main(["predict", str(trained), name, "--backend", "numpy"]) == 1
        error = capsys.readouterr().err
        assert expected in error
        assert len(error.splitlines()) == 1
    assert main(["predict", str(trained)]) == 1
    assert "name at least one picture" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_a_dark_drawing_on_paper_becomes_what_the_network_knows(name: str) -> None:
    paper = np.ones((1, 120, 90), np.float32)
    paper[0, 20:100, 40:50] = 0.1  # a stroke
    found, done = prepare_picture(paper, name)
    assert found.shape == (1, 1, 28, 28)
    assert done[0] == "dark on bright: inverted"
    ink = found[0, 0] > found.mean()
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    assert abs((rows[0] + rows[-1]) / 2 - 13.5) <= 1
    assert abs((columns[0] + columns[-1]) / 2 - 13.5) <= 1.5
    height = 20 if name == "mnist" else 28
    assert abs(len(rows) - height) <= 2


def test_pictures_of_the_data_set_itself_are_left_alone() -> None:
    images = data.digits("test").arrays[0][:5]
    for image in images:
        found, done = prepare_picture(image, "digits")
        assert done == []
        expected = sources.normalised(data.Resize(28)(image[np.newaxis]), "digits")
        assert np.array_equal(found, expected)


def test_the_statistics_are_those_of_the_training_images() -> None:
    images = data.Resize(28)(data.digits("train").arrays[0])
    assert sources.STATISTICS["digits"] == pytest.approx((images.mean(), images.std()), abs=1e-4)


# ---- graph, plan, doctor -----------------------------------------------------------------------------------


def test_graph_prints_a_table(capsys: Capture) -> None:
    assert main(["graph", "lenet"]) == 0
    out = capsys.readouterr().out
    assert "forward: 12 nodes" in out
    assert "gradient" not in out
    assert main(["graph", "lenet", "--gradient", "--batch-size", "2"]) == 0
    out = capsys.readouterr().out
    assert "f32[2,6,28,28]" in out
    assert "\ngradient:\n" in out
    assert "\nupdate:\n" in out


def test_graph_draws_a_picture(capsys: Capture) -> None:
    assert main(["graph", "lenet", "--gradient", "-o", "g.svg"]) == 0
    texts = set(ElementTree.parse("g.svg").getroot().itertext())
    assert {"conv1: conv", "f32[64,6,28,28]", "sgd_update", "cross_entropy_gradient"} <= texts
    assert main(["graph", "mlp", "-o", "g.txt"]) == 0
    assert "layers.0.weight" in Path("g.txt").read_text()
    assert main(["graph", "mlp", "-o", "absent/g.txt"]) == 1
    assert "the directory does not exist" in capsys.readouterr().err


def test_plan_needs_no_compiler_and_runs_nothing(capsys: Capture) -> None:
    assert main(["plan", "lenet", "--batch-size", "16", "--threads", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("plan of training_step: ")
    assert "with 3 threads" in out
    assert main(["plan", "lenet", "--batch-size", "16", "--inference", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["graph"] == "forward"
    assert found["memory"]["inputs"] == 16 * 28 * 28 * 4


def test_doctor(capsys: Capture) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for title in (
        "thalweg",
        "machine",
        "packages",
        "compiler",
        "cache",
        "threads",
        "accelerators",
        "environment",
    ):
        assert re.search(rf"^{title} +\S", out, re.MULTILINE), title
    assert "made and ran correctly" in out


def test_doctor_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("THALWEG_THREADS", "many")
    assert main(["doctor"]) == 1
    assert "PROBLEM: the environment variable THALWEG_THREADS is 'many'" in capsys.readouterr().out


# ---- what can go wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "text", "weights", "foreign"])
def test_checkpoints_that_cannot_be_used(damage: str, trained: Path, capsys: Capture) -> None:
    content = (trained / "checkpoint.safetensors").read_bytes()
    path = Path("x.safetensors")
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        path.write_text("no checkpoint at all, only a text")
    elif damage == "weights":
        runs.make_model("mlp").save(path)
    else:
        train.save_checkpoint(path, runs.make_model("mlp"))
    for words in (
        ["evaluate", str(path)],
        ["predict", str(path), "a.png"],
        ["train", "mlp", "--resume", str(path)],
    ):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert error.startswith("thalweg: error: ")
        assert "x.safetensors" in error
        assert len(error.splitlines()) <= 2


def test_an_output_that_cannot_be_written_is_noticed_before_training(capsys: Capture) -> None:
    Path("file").write_text("")
    for out in ("file", "file/below"):
        assert main(["train", "mlp", *QUICK, "--out", out]) == 1
        shown = capsys.readouterr()
        assert f"cannot write to the directory '{Path(out)}'" in shown.err
        assert "choose another one with --out" in shown.err
        assert shown.out == ""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory(capsys: Capture) -> None:
    Path("locked").mkdir(mode=0o500)
    assert main(["train", "mlp", *QUICK, "--out", "locked"]) == 1
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_when_the_checkpoint_does_not_fit_the_training_is_not_lost(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk; the network is written elsewhere if that works."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = thalweg_process("train", "mlp", *QUICK, "--out", "o", preexec_fn=limit)
    out, error = process.communicate()
    assert process.returncode == 1
    assert "test accuracy" in out
    assert "File too large; nothing was written" in error
    assert "the training goes on" in error  # after the first epoch
    assert "Traceback" not in error
    assert not list(Path("o").iterdir())


def test_a_rescued_network_can_be_used(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    import errno

    def full(source: Any, target: Any) -> None:
        if Path(target).parent == Path.cwd() / "o":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    real = os.replace
    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setenv("TMPDIR", str(Path.cwd()))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert main(["train", "mlp", *QUICK, "--out", "o"]) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    written = re.search(r"was written to (\S+\.safetensors) instead", error)
    assert written is not None, error
    monkeypatch.setattr(os, "replace", real)
    assert main(["evaluate", written.group(1), "--backend", "numpy"]) == 0


def test_without_matplotlib_there_are_no_curves_but_all_else(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["train", "mlp", *QUICK, "--out", "o"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "no curves: drawing curves needs matplotlib: pip install 'thalweg[app]'\n"
    assert os.listdir("o") == ["checkpoint.safetensors"]


def test_a_run_that_diverges_ends_with_advice(capsys: Capture) -> None:
    assert main(["train", "mlp", *QUICK, "--lr", "1e8", "--schedule", "none", "--out", "o"]) == 1
    error = capsys.readouterr().err
    assert re.search(r"the loss became (nan|inf) at step \d+", error)
    assert "Traceback" not in error


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert main(["evaluate", "absent"]) == 1
    assert capsys.readouterr().err == "thalweg: error: there is no checkpoint 'absent'\n"
    monkeypatch.setenv("THALWEG_DEBUG", "1")
    assert main(["evaluate", "absent"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_defect_is_reported_as_one(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(runs, "make_model", lambda name: 1 / 0)
    assert main(["graph", "lenet"]) == 1
    error = capsys.readouterr().err
    assert "ZeroDivisionError" in error
    assert "THALWEG_DEBUG=1" in error


def test_without_a_compiler_everything_works_and_one_line_says_what_to_install() -> None:
    """In a process of its own, whose PATH is empty."""
    environment = {**os.environ, "PYTHONPATH": str(Path(thalweg.__file__).parent.parent), "PATH": ""}
    environment.pop("CC", None)
    environment["THALWEG_CACHE"] = str(Path.cwd() / "cache")
    words = ["train", "mlp", "--data", "digits", "--epochs", "1"]
    process = subprocess.run(
        [sys.executable, "-m", "thalweg", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if "no C compiler found" not in process.stderr:
        pytest.skip("a compiler was found without PATH (the package ziglang)")
    assert process.returncode == 0
    assert "test accuracy" in process.stdout
    (line,) = process.stderr.splitlines()
    assert line.startswith("thalweg: note: running on the NumPy reference backend, which is slow")
    assert "sudo apt install gcc" in line
