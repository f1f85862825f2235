"""`thalweg generate`, `embed` and `classify`: what a trained model of text gives.

In: a run of `thalweg train`, or a directory of Hugging Face (or a name on its hub), and texts. Out: text as
it is written, vectors, classes with probabilities.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from thalweg import models, ops
from thalweg.cli import runs
from thalweg.config import settings
from thalweg.data import LibraryTokenizer, Tokenizer, load_tokenizer, read_text
from thalweg.errors import ArgumentError, DataError
from thalweg.io.files import atomic_write
from thalweg.models.bert import BertForSequenceClassification, SentenceEncoder
from thalweg.models.pretrained import checkpoint_folder, read_json
from thalweg.tensor import compile, no_grad

Array = np.ndarray[Any, Any]

_BATCH = 16
_LENGTHS = 32  # texts are padded to a multiple of it, so that few programs serve all


def generate(options: argparse.Namespace) -> int:
    """The command: a prompt and what the model writes behind it."""
    settings.set_threads(options.threads)
    model, tokenizer = _writer(options.checkpoint)
    chosen = {
        "do_sample": not options.greedy,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "repetition_penalty": options.repetition_penalty,
        "backend": options.backend,
    }
    pieces = models.write(
        model,
        tokenizer,
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        **chosen,
    )
    if not hasattr(model, "encode"):  # T5 answers; the others go on
        print(options.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def embed(options: argparse.Namespace) -> int:
    """The command: one vector for each text, as lines of JSON or as a file of NumPy."""
    texts = _texts(options)
    settings.set_threads(options.threads)
    folder = checkpoint_folder(options.checkpoint)
    model = SentenceEncoder.from_pretrained(folder)
    encode = compile(lambda ids, mask: model(ids, mask).sentence_embedding, backend=options.backend)
    vectors = _in_batches(encode, texts, folder, model.config)
    if options.output is None:
        for text, vector in zip(texts, vectors, strict=True):
            numbers = [float(f"{number:.7g}") for number in vector]
            print(json.dumps({"text": text, "embedding": numbers}, ensure_ascii=False))
        return 0
    atomic_write(options.output, lambda file: np.save(file, vectors))
    print(f"{options.output}: {vectors.dtype} [{len(vectors)}, {vectors.shape[1]}], one row for each text")
    return 0


def classify(options: argparse.Namespace) -> int:
    """The command: the classes of each text with their probabilities."""
    texts = _texts(options)
    settings.set_threads(options.threads)
    folder = checkpoint_folder(options.checkpoint)
    model = models.from_pretrained(folder)
    if not isinstance(model, BertForSequenceClassification):
        raise ArgumentError(
            f"{options.checkpoint} holds a {type(model).__name__}; classify needs a model with a head for "
            "whole texts, such as BertForSequenceClassification"
        )
    score = compile(lambda ids, mask: model(ids, mask).logits, backend=options.backend)
    scores = _in_batches(score, texts, folder, model.config)
    names = _label_names(model.config, scores.shape[1])
    kind = model.config.extra.get("problem_type")
    for text, row in zip(texts, scores, strict=True):
        _show(text, row, names, str(kind))
    return 0


def _writer(given: str | None) -> tuple[Any, Tokenizer]:
    """Model and tokenizer of a run of ours, or of a directory or name of Hugging Face."""
    path = None if given is None else Path(given)
    if path is None or path.suffix == ".safetensors" or (path / runs.CHECKPOINT).is_file():
        from thalweg.cli.text import open_text_model

        found = runs.open_checkpoint(runs.checkpoint_path(given))
        if "tokenizer" not in found.metadata:
            raise DataError(
                f"{found.path!r} is a {found.metadata['model']} for images, which writes nothing; name a run "
                "of thalweg train gpt or lstm"
            )
        return open_text_model(found)
    folder = checkpoint_folder(str(given))
    tokenizer = load_tokenizer(folder)
    return models.from_pretrained(folder), tokenizer


def _texts(options: argparse.Namespace) -> list[str]:
    """The texts on the command line and the lines of the file, without empty lines."""
    texts = list(options.text or ())
    if options.file is not None:
        texts += [line for line in read_text(options.file).splitlines() if line.strip()]
    if not texts:
        raise DataError(
            'there is no text; write --text "..." (as often as you like), or name a file of lines'
        )
    return texts


def _in_batches(function: Callable[..., Any], texts: list[str], folder: Path, config: Any) -> Array:
    """The results [N, ...] of `function(ids, mask)` for all texts, which are cut to what the model takes."""
    tokenizer = load_tokenizer(folder)
    if not isinstance(tokenizer, LibraryTokenizer):
        raise DataError(f"{str(folder)!r}: the tokenizer is not one of the tokenizers library")
    longest = _longest(folder, config)
    # texts of similar length go together
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    found: dict[int, Array] = {}
    for numbers in _groups(order):
        ids, mask = tokenizer.batch([texts[number] for number in numbers], longest)
        width = min(-(-ids.shape[1] // _LENGTHS) * _LENGTHS, longest)
        padding = ((0, 0), (0, width - ids.shape[1]))
        with no_grad():
            rows = function(np.pad(ids, padding), np.pad(mask, padding)).numpy()
        found.update(zip(numbers, rows, strict=True))
    return np.stack([found[number] for number in range(len(texts))])


def _groups(order: list[int]) -> Iterator[list[int]]:
    for begin in range(0, len(order), _BATCH):
        yield order[begin : begin + _BATCH]


def _longest(folder: Path, config: Any) -> int:
    """Tokens of a text that the model takes: its positions, or fewer where sentence-transformers says so."""
    path = folder / "sentence_bert_config.json"
    wanted = read_json(path).get("max_seq_length") if path.is_file() else None
    positions = int(config.max_position_embeddings)
    return positions if wanted is None else min(positions, int(wanted))


def _label_names(config: Any, count: int) -> list[str]:
    table = config.extra.get("id2label") or {}
    return [str(table.get(str(number), f"LABEL_{number}")) for number in range(count)]


def _show(text: str, scores: Array, names: list[str], kind: str) -> None:
    """The most likely class, then all of them; a number where the model gives one."""
    if len(scores) == 1:
        print(f"{text}: {float(scores[0]):.4f}")
        return
    several = kind == "multi_label_classification"  # each by itself
    wide = scores.astype(np.float64)
    probabilities = (ops.sigmoid(wide) if several else ops.softmax(wide, -1)).numpy()
    ranked = np.argsort(-probabilities, kind="stable")
    print(f"{text}: {names[ranked[0]]} with probability {probabilities[ranked[0]]:.4f}")
    width = max(map(len, names))
    for number in ranked:
        bar = "#" * round(40 * float(probabilities[number]))
        print(f"  {names[number]:<{width}}  {probabilities[number]:.4f}  {bar}".rstrip())
