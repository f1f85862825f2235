"""`thalweg train` on a text file: what it prints and writes, resuming, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thalweg import data, train
from thalweg.cli import main, text
from thalweg.config import settings

Capture = pytest.CaptureFixture[str]
SENTENCE = "the river follows the path of steepest descent.\n"
SMALL = ["--width", "16", "--context", "12", "--layers", "1", "--batch-size", "4", "--backend", "numpy"]
TEN = ["--steps", "10", "--evaluate-every", "4", "--warmup", "2", "--sample", "15"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run in a directory that holds only a text, and leave the number of threads as it was."""
    monkeypatch.chdir(tmp_path)
    Path("river.txt").write_text(SENTENCE * 40, "utf-8")
    yield
    settings.set_threads(None)


@pytest.mark.parametrize("model", ["gpt", "lstm"])
def test_a_run_says_what_it_does_and_its_loss_is_that_of_the_checkpoint(model: str, capsys: Capture) -> None:
    heads = ["--heads", "2"] if model == "gpt" else []
    assert main(["train", model, "--text", "river.txt", *SMALL, *TEN, *heads]) == 0
    out = capsys.readouterr().out
    assert "1,728 tokens for training, 192 for validation; CharacterTokenizer(19 characters)" in out
    assert f"model: {model}, 1 layers" in out and "10 steps of 4 x 12 tokens" in out
    assert re.findall(r"step +(\d+)/10  loss", out) == ["4", "8", "10"]
    assert out.count("tokens/s") == 3
    found = train.read_checkpoint(f"runs/{model}-1/checkpoint.safetensors")
    trained, tokenizer = text.open_text_model(found)
    # the whole validation part, by hand: windows one behind the other, each from a fresh state
    tokens = tokenizer.encode(SENTENCE * 40)[1728:]
    total = 0.0
    for inputs, targets in data.consecutive_windows(tokens, 12, 1):
        scores = trained(inputs).logits.numpy()[0].astype(np.float64)
        scores -= np.log(np.exp(scores).sum(1, keepdims=True))
        total -= sum(scores[place, target] for place, target in enumerate(targets[0]) if target >= 0)
    loss = float(re.findall(r"^validation loss ([\d.]+) \(", out, re.MULTILINE)[0])
    assert loss == pytest.approx(total / (len(tokens) - 1), abs=1e-4)
    assert found.history.epochs[-1]["validation_loss"] == pytest.approx(loss, abs=1e-4)
    assert len(found.history.losses) == 10 and found.history.losses[-1] < found.history.losses[0]


def test_a_resumed_run_gives_the_bytes_of_an_uninterrupted_one(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    arguments = ["train", "gpt", "--text", "river.txt", *SMALL, *TEN, "--heads", "2"]
    assert main([*arguments, "--out", "whole"]) == 0
    note = text.TextRun.note

    def stop(self: Any, history: Any) -> Any:
        note(self, history)
        return True

    monkeypatch.setattr(text.TextRun, "note", stop)
    assert main([*arguments, "--out", "part"]) == 0
    assert len(train.read_checkpoint("part/checkpoint.safetensors").history.losses) == 4
    monkeypatch.setattr(text.TextRun, "note", note)
    assert main(["train", "--resume", "part", "--backend", "numpy"]) == 0
    assert (
        Path("part/checkpoint.safetensors").read_bytes() == Path("whole/checkpoint.safetensors").read_bytes()
    )
    capsys.readouterr()
    assert main(["train", "--resume", "part"]) == 0
    assert "has 10 steps already; --steps 20, for example, trains on" in capsys.readouterr().out
    assert main(["train", "--resume", "part", "--steps", "13", "--backend", "numpy"]) == 0
    assert re.findall(r"step +(\d+)/13", capsys.readouterr().out) == ["12", "13"]


def test_bytes_and_small_texts(capsys: Capture) -> None:
    Path("short.txt").write_text("zwölf Boxkämpfer jagen Viktor\n", "utf-8")
    sizes = [*SMALL, "--heads", "1", "--steps", "2", "--sample", "0", "--out", "r"]
    assert main(["train", "gpt", "--text", "short.txt", "--tokenizer", "byte", *sizes]) == 0
    assert "ByteTokenizer()" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["gpt"], 2, "name the file to learn from: --text FILE"),
        (["gpt", "--text", "river.txt", "--epochs", "3"], 2, "--epochs is for models of images"),
        (["lenet", "--evaluate-every", "3"], 2, "--evaluate-every is for models of text"),
        (["lstm", "--text", "river.txt", "--heads", "3"], 2, "--heads is for gpt"),
        (["gpt", "--text", "river.txt", "--schedule", "step"], 2, "--schedule is cosine or none"),
        (["gpt", "--text", "absent.txt"], 1, "cannot read .*absent.txt"),
        (["gpt", "--text", "river.txt", "--tokenizer", "word"], 1, "character, byte or a tokenizer.json"),
        (["gpt", "--text", "river.txt", "--context", "1728"], 1, "a window needs 1729 tokens"),
        (["gpt", "--text", "river.txt", "--heads", "5"], 1, "n_embd=256 must be a multiple of n_head=5"),
    ],
)
def test_what_is_refused(words: list[str], code: int, expected: str, capsys: Capture) -> None:
    assert main(["train", *words]) == code
    error = capsys.readouterr().err
    assert re.search(expected, error) and "Traceback" not in error and "defect" not in error
