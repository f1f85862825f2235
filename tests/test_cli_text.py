"""`thalweg train` on a text file: what it prints and writes, resuming, and what it refuses."""

from __future__ import annotations

import json
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


# ---- generate, embed, classify -----------------------------------------------------------------------------

TEXTS = ["the river", "a steep path down the hill", "descent", "the river follows the path"]


def save_tokenizer(folder: Path, words: str = SENTENCE) -> int:
    """A tokenizer of words with BERT's special tokens; gives the size of its vocabulary."""
    tokenizers = pytest.importorskip("tokenizers")
    known = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *sorted(set(words.replace(".", " .").split()))]
    numbers = {word: number for number, word in enumerate(known)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return len(known)


def small_bert(vocabulary: int, **more: Any) -> Any:
    from thalweg.models.bert import BertConfig

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    return BertConfig(vocab_size=vocabulary, max_position_embeddings=12, **sizes, **more)


def test_generate_goes_on_with_the_prompt(capsys: Capture) -> None:
    arguments = [
        "train",
        "gpt",
        "--text",
        "river.txt",
        *SMALL,
        "--heads",
        "2",
        "--steps",
        "120",
        "--lr",
        "0.03",
    ]
    assert main([*arguments, "--sample", "0", "--warmup", "5", "--dropout", "0"]) == 0
    capsys.readouterr()
    run = ["generate", "runs/gpt-1", "--backend", "numpy", "--prompt", "the r"]
    # more than the 12 positions: the window moves
    assert main([*run, "--greedy", "--max-new-tokens", "30"]) == 0
    written = capsys.readouterr().out
    assert written.startswith("the r") and written.endswith("\n") and len(written) == 36
    found = train.read_checkpoint("runs/gpt-1/checkpoint.safetensors")
    model, tokenizer = text.open_text_model(found)
    ids = tokenizer.encode("the r")
    for _ in range(12 - len(ids)):  # by hand, without a cache
        ids = np.append(ids, model(ids[None]).logits.numpy()[0, -1].argmax())
    assert written.startswith(tokenizer.decode(ids))
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*run, "--seed", seed, "--temperature", "2", "--max-new-tokens", "30"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert main([*run[:-1], "the river?"]) == 1
    assert "characters that the tokenizer does not know: '?'" in capsys.readouterr().err
    assert main([*run[:-1], "the river follows"]) == 1
    assert "the prompt has 17 tokens, the model 12 positions" in capsys.readouterr().err


def test_generate_with_an_lstm_by_hand(capsys: Capture) -> None:
    assert main(["train", "lstm", "--text", "river.txt", *SMALL, *TEN]) == 0
    capsys.readouterr()
    assert (
        main(["generate", "--backend", "numpy", "--prompt", "the r", "--greedy", "--max-new-tokens", "20"])
        == 0
    )
    model, tokenizer = text.open_text_model(train.read_checkpoint("runs/lstm-1/checkpoint.safetensors"))
    ids = tokenizer.encode("the r")
    for _ in range(20):
        ids = np.append(ids, model(ids[None]).logits.numpy()[0, -1].argmax())
    assert capsys.readouterr().out == tokenizer.decode(ids) + "\n"
    assert main(["evaluate"]) == 1
    assert "is a lstm trained on text, which knows no images; `thalweg generate`" in capsys.readouterr().err


def test_generate_with_a_directory_of_hugging_face(capsys: Capture) -> None:
    from thalweg.models.gpt import GPT2Config, GPT2LMHeadModel

    size = save_tokenizer(Path("hub"))
    GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_positions=16, n_embd=8, n_layer=1, n_head=2, extra={"eos_token_id": 2})
    ).save_pretrained("hub")
    command = ["generate", "hub", "--prompt", "the river", "--max-new-tokens", "6", "--seed", "3"]
    assert main([*command, "--backend", "numpy"]) == 0
    words = capsys.readouterr().out.split()
    assert words[:2] == ["the", "river"] and len(words) > 2
    Path("hub/tokenizer.json").unlink()
    assert main(command) == 1
    assert "has no tokenizer.json; save one there" in capsys.readouterr().err


def test_embed_gives_the_vectors_of_the_model_in_the_order_of_the_texts(capsys: Capture) -> None:
    from thalweg.models.bert import SentenceEncoder

    made = SentenceEncoder(small_bert(save_tokenizer(Path("encoder")))).eval()
    made.save_pretrained("encoder")
    Path("lines.txt").write_text("\n".join(TEXTS) + "\n\n", "utf-8")
    assert main(["embed", "encoder", "lines.txt", "--text", "path " * 30, "--backend", "numpy"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["path " * 30, *TEXTS]
    tokenizer = data.load_tokenizer("encoder")
    for line in lines:
        ids = tokenizer.encode(line["text"])
        ids = np.array([*ids[:11], 2]) if len(ids) > 12 else ids  # cut, with the special token at its end
        expected = made(ids[None]).sentence_embedding.numpy()[0]
        np.testing.assert_allclose(line["embedding"], expected, rtol=1e-5, atol=1e-6)
    assert main(["embed", "encoder", "lines.txt", "--backend", "numpy", "-o", "vectors.npy"]) == 0
    np.testing.assert_allclose(np.load("vectors.npy"), [line["embedding"] for line in lines[1:]], atol=1e-6)
    assert main(["embed", "encoder"]) == 1
    assert 'there is no text; write --text "..."' in capsys.readouterr().err


def test_classify_names_the_classes(capsys: Capture) -> None:
    from thalweg.models.bert import BertForSequenceClassification, BertModel

    labels = {"id2label": {"0": "bad", "1": "good", "2": "fair"}}
    config = small_bert(save_tokenizer(Path("judge")), num_labels=3, extra=labels)
    made = BertForSequenceClassification(config).eval()
    made.save_pretrained("judge")
    assert main(["classify", "judge", "--text", TEXTS[0], "--text", TEXTS[1], "--backend", "numpy"]) == 0
    out = capsys.readouterr().out
    ids = data.load_tokenizer("judge").encode(TEXTS[0])
    scores = made(ids[None]).logits.numpy()[0].astype(np.float64)
    probabilities = np.exp(scores) / np.exp(scores).sum()
    best = int(probabilities.argmax())
    name = labels["id2label"][str(best)]
    assert f"{TEXTS[0]}: {name} with probability {probabilities[best]:.4f}\n" in out
    assert out.count("probability") == 2 and all(
        out.count(f"  {word}") == 2 for word in ("bad ", "good", "fair")
    )
    BertModel(config).save_pretrained("judge")
    assert main(["classify", "judge", "--text", "a"]) == 1
    assert "judge holds a BertModel; classify needs a model with a head" in capsys.readouterr().err


def test_an_image_network_writes_nothing(capsys: Capture) -> None:
    quick = ["--data", "digits", "--epochs", "1", "--batch-size", "512", "--backend", "numpy"]
    assert main(["train", "mlp", *quick]) == 0
    assert main(["generate", "--prompt", "a"]) == 1
    assert "is a mlp for images, which writes nothing" in capsys.readouterr().err
    assert main(["generate", "absent/../dir", "--prompt", "a"]) == 1
    assert "there is no directory" in capsys.readouterr().err
