"""Tokenizers: text to numbers and back, files, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from thalweg import data
from thalweg.errors import ArgumentError, DataError

TEXT = "Übermut tut selten gut.\n\tπ ≈ 3,14 😀 — done"


def library_json(path: Path) -> str:
    """A tiny byte-pair tokenizer with special tokens around each text, as the library writes it."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["[UNK]", "[CLS]", "[SEP]"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["tut gut selten gut tut"] * 5, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.enable_padding(length=40)
    made.save(str(path))
    return path.read_text("utf-8")


@pytest.mark.parametrize("kind", ["character", "byte", "library"])
def test_text_comes_back_through_a_file(kind: str, tmp_path: Path) -> None:
    if kind == "library":
        library_json(tmp_path / "tokenizer.json")
        tokenizer = data.load_tokenizer(tmp_path)
    else:
        made = data.CharacterTokenizer.from_text(TEXT) if kind == "character" else data.ByteTokenizer()
        made.save(tmp_path / "tokenizer.json")
        tokenizer = data.load_tokenizer(tmp_path / "tokenizer.json")
    tokens = tokenizer.encode(TEXT)
    assert tokens.dtype == np.int64 and tokens.ndim == 1
    assert tokens.min() >= 0 and tokens.max() < tokenizer.vocabulary_size
    assert tokenizer.decode(tokens) == TEXT
    pieces = list(tokenizer.stream(int(token) for token in tokens))
    assert "".join(pieces) == TEXT and len(pieces) > 20 and all(pieces)
    again = data.tokenizer_from_json(tokenizer.to_json())
    np.testing.assert_array_equal(again.encode(TEXT), tokens)


def test_characters_have_the_numbers_of_their_order() -> None:
    tokenizer = data.CharacterTokenizer.from_text("cab abc")
    assert tokenizer.characters == " abc"
    np.testing.assert_array_equal(tokenizer.encode("b ca"), [2, 0, 3, 1])
    assert data.CharacterTokenizer("zya").encode("ayz").tolist() == [2, 1, 0]
    assert data.CharacterTokenizer("ab").encode("").shape == (0,)


def test_half_a_character_waits_for_the_rest() -> None:
    tokenizer = data.ByteTokenizer()
    assert list(tokenizer.stream("aπ".encode())) == ["a", "π"]
    assert tokenizer.decode(b"a\xcf") == "a\ufffd"
    assert tokenizer.decode(b"\xff") == "\ufffd"


def test_batches_are_padded_behind_and_cut(tmp_path: Path) -> None:
    tokenizer = data.LibraryTokenizer(library_json(tmp_path / "t.json"))
    tokens, mask = tokenizer.batch(["tut gut", "gut", ""])
    assert tokens.shape == mask.shape and tokens[:, 0].tolist() == [1, 1, 1]
    assert mask.sum(1).tolist() == [len(tokenizer.encode(text)) for text in ("tut gut", "gut", "")]
    assert (tokens[mask == 0] == 0).all()
    tokens, mask = tokenizer.batch(["tut gut selten gut tut gut"], longest=5)
    assert tokens.shape == (1, 5) and tokens[0, -1] == 2  # the special token at the end stays


def test_a_stream_behind_a_prompt_has_its_spaces(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer = data.LibraryTokenizer(made.to_str())
    assert list(tokenizer.stream([1, 0])) == ["b", " a"]
    assert list(tokenizer.stream([1, 0], after=[0])) == [" b", " a"]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: data.CharacterTokenizer(""), "at least one character"),
        (lambda: data.CharacterTokenizer("aba"), "each once"),
        (lambda: data.CharacterTokenizer("ab").encode("abcbd"), "does not know: 'c', 'd'; it knows 'ab'"),
        (lambda: data.CharacterTokenizer("ab").decode([0, 2]), "token 2 is out of range; .* 0 to 1"),
        (lambda: data.ByteTokenizer().decode([256]), "token 256 is out of range"),
    ],
)
def test_wrong_uses_are_explained(make: object, expected: str) -> None:
    with pytest.raises(ArgumentError, match=expected):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"not json", "is not JSON"),
        (b"\xff\xfe", "is not a tokenizer"),
        (b"[]", "neither a tokenizer of thalweg nor"),
        (json.dumps({"format": "thalweg tokenizer 1", "type": "word"}).encode(), "neither"),
        (json.dumps({"format": "thalweg tokenizer 1", "type": "character"}).encode(), "neither"),
        (json.dumps({"model": {"type": "none"}}).encode(), "that the tokenizers library knows"),
    ],
)
def test_broken_files(content: bytes, expected: str, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=expected):
        data.load_tokenizer(path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no tokenizer\.json; save one"):
        data.load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="cannot read"):
        data.load_tokenizer(tmp_path / "absent.json")
    with pytest.raises(DataError, match="the text is empty"):
        data.CharacterTokenizer.from_text("")
