"""Text to token numbers and back: characters, bytes, and what the `tokenizers` library reads.

In: text. Out: token numbers [T] as int64. Characters and bytes are built in; a `tokenizer.json` of Hugging
Face needs the extra `text`. Called by `data.text`, training runs on text and the command line.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import ArgumentError, DataError
from thalweg.io.files import atomic_write

__all__ = [
    "ByteTokenizer",
    "CharacterTokenizer",
    "LibraryTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "tokenizer_from_json",
]

Tokens = NDArray[np.int64]

_FORMAT = "thalweg tokenizer 1"
FILE = "tokenizer.json"


class Tokenizer(Protocol):
    """What all tokenizers have in common."""

    @property
    def vocabulary_size(self) -> int:
        """Token numbers are 0 to this number - 1."""
        ...

    def encode(self, text: str) -> Tokens:
        """The token numbers [T] of a text."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token numbers."""
        ...

    def stream(self, tokens: Iterable[int], after: Iterable[int] = ()) -> Iterator[str]:
        """The text of token numbers behind those of `after`, piece by piece, as soon as it is certain."""
        ...

    def to_json(self) -> str:
        """The tokenizer as text, for `tokenizer_from_json`."""
        ...


class _Saved:
    """Tokenizers can be written to a file."""

    def to_json(self) -> str:
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer to a JSON file, completely or not at all. Raises `DataError`."""
        atomic_write(path, self.to_json().encode())


class CharacterTokenizer(_Saved):
    """One token for each of the given characters, in their order.

    Raises `ArgumentError` for characters that are given twice, and where a text has another one.
    """

    def __init__(self, characters: str) -> None:
        if not characters or len(set(characters)) != len(characters):
            raise ArgumentError(
                f"CharacterTokenizer needs at least one character, each once; received {characters!r:.80}"
            )
        self.characters = characters
        self._codes = np.array([ord(character) for character in characters], np.uint32)
        self._order = np.argsort(self._codes, kind="stable")

    @classmethod
    def from_text(cls, text: str) -> CharacterTokenizer:
        """The tokenizer of the characters of a text, in the order of their code points."""
        if not text:
            raise DataError("the text is empty: it has no characters to make a tokenizer of")
        return cls("".join(sorted(set(text))))

    @property
    def vocabulary_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tokens:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        places = np.searchsorted(self._codes, codes, sorter=self._order)
        tokens = self._order[np.minimum(places, len(self._codes) - 1)]
        unknown = self._codes[tokens] != codes
        if unknown.any():
            found = sorted({chr(code) for code in codes[unknown]})
            shown = ", ".join(map(repr, found[:10])) + (" ..." if len(found) > 10 else "")
            raise ArgumentError(
                f"the text has characters that the tokenizer does not know: {shown}; it knows "
                f"{self.characters!r:.200}. Leave them out, or train on bytes, which know every text"
            )
        return tokens.astype(np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        return "".join(self.stream(tokens))

    def stream(self, tokens: Iterable[int], after: Iterable[int] = ()) -> Iterator[str]:
        for token in tokens:
            yield self.characters[_checked(token, self.vocabulary_size)]

    def to_json(self) -> str:
        return json.dumps({"format": _FORMAT, "type": "character", "characters": self.characters})

    def __repr__(self) -> str:
        return f"CharacterTokenizer({self.vocabulary_size} characters)"


class ByteTokenizer(_Saved):
    """256 tokens: the bytes of a text in UTF-8. Bytes that are no text become U+FFFD."""

    @property
    def vocabulary_size(self) -> int:
        return 256

    def encode(self, text: str) -> Tokens:
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        return "".join(self.stream(tokens))

    def stream(self, tokens: Iterable[int], after: Iterable[int] = ()) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            piece = decoder.decode(bytes([_checked(token, 256)]))
            if piece:
                yield piece
        rest = decoder.decode(b"", final=True)
        if rest:
            yield rest

    def to_json(self) -> str:
        return json.dumps({"format": _FORMAT, "type": "byte"})

    def __repr__(self) -> str:
        return "ByteTokenizer()"


class LibraryTokenizer(_Saved):
    """A tokenizer of the `tokenizers` library, as in a `tokenizer.json` of Hugging Face.

    `encode` adds the special tokens that the file asks for ([CLS] and [SEP] of BERT); `batch` pads.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokenizer = _library().Tokenizer.from_str(text)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @property
    def vocabulary_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> Tokens:
        return np.array(self._tokenizer.encode(text).ids, np.int64)

    def batch(self, texts: Iterable[str], longest: int | None = None) -> tuple[Tokens, Tokens]:
        """Token numbers and mask [B, T] of several texts: 0 in the mask is padding behind a text.

        With `longest`, texts are cut to that many tokens, special tokens included.
        """
        listed = list(texts)
        if longest is not None:
            self._tokenizer.enable_truncation(longest)
        try:
            encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(listed)]
        finally:
            self._tokenizer.no_truncation()
        width = max(1, *(len(ids) for ids in encoded)) if encoded else 0
        tokens, mask = np.zeros((len(encoded), width), np.int64), np.zeros((len(encoded), width), np.int64)
        for row, ids in enumerate(encoded):
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        return tokens, mask

    def decode(self, tokens: Iterable[int]) -> str:
        return str(self._tokenizer.decode([int(token) for token in tokens]))

    def stream(self, tokens: Iterable[int], after: Iterable[int] = ()) -> Iterator[str]:
        pieces = _library().decoders.DecodeStream(skip_special_tokens=True)
        for token in after:  # whether a word begins with a space depends on what is before it
            pieces.step(self._tokenizer, int(token))
        for token in tokens:
            piece = pieces.step(self._tokenizer, int(token))
            if piece:
                yield piece

    def to_json(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"LibraryTokenizer({self.vocabulary_size} tokens)"


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer in a JSON file, ours or Hugging Face's, or in the `tokenizer.json` of a directory.

    Raises `DataError` for files that are missing or broken, `ImportError` where the extra is not installed.
    """
    file = Path(path)
    if file.is_dir():
        file = file / FILE
        if not file.is_file():
            raise DataError(
                f"{os.fspath(path)!r} has no {FILE}; save one there with transformers' "
                "AutoTokenizer.from_pretrained(...).save_pretrained(directory)"
            )
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        raise DataError(f"cannot read {os.fspath(file)!r}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{os.fspath(file)!r} is not a tokenizer: {error}") from error
    return tokenizer_from_json(text, os.fspath(file))


def tokenizer_from_json(text: str, origin: str = "the text") -> Tokenizer:
    """The tokenizer that `to_json` has written, or the content of a Hugging Face `tokenizer.json`.

    `origin` names it in messages. Raises `DataError`, and `ImportError` where the extra is not installed.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(f"{origin} is not a tokenizer: it is not JSON ({error})") from error
    if isinstance(values, dict) and values.get("format") == _FORMAT:
        if values.get("type") == "byte":
            return ByteTokenizer()
        if values.get("type") == "character" and isinstance(values.get("characters"), str):
            return CharacterTokenizer(values["characters"])
    if not isinstance(values, dict) or "model" not in values:
        raise DataError(f"{origin} is neither a tokenizer of thalweg nor one of the tokenizers library")
    _library()
    try:
        return LibraryTokenizer(text)
    except Exception as error:  # the library raises plain exceptions
        raise DataError(f"{origin} is not a tokenizer that the tokenizers library knows: {error}") from error


def _library() -> Any:
    try:
        import tokenizers  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError(
            "a tokenizer.json of Hugging Face needs the tokenizers library: pip install 'thalweg[text]'"
        ) from error
    return tokenizers


def _checked(token: int, count: int) -> int:
    number = int(token)
    if not 0 <= number < count:
        raise ArgumentError(f"token {number} is out of range; the tokenizer knows 0 to {count - 1}")
    return number
