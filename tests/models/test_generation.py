"""Generated text against `transformers`, token for token; draws against their distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg.errors import ArgumentError, IndexRangeError, ShapeError
from thalweg.models.bert import BertConfig, BertModel
from thalweg.models.generation import Choice, Run, generate, stream
from thalweg.models.gpt import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from thalweg.models.t5 import T5Config, T5ForConditionalGeneration

from twins import tokens, torch, transformers, twins  # isort: skip

END, PADDING = 1, 3
KINDS = ["GPT2LMHeadModel", "LlamaForCausalLM", "T5ForConditionalGeneration"]


def config_of(kind: str) -> Any:
    more = {"vocab_size": 29, "eos_token_id": END, "pad_token_id": PADDING, "bos_token_id": 0}
    if kind == "GPT2LMHeadModel":
        return transformers.GPT2Config(n_embd=12, n_layer=2, n_head=3, n_positions=80, **more)
    if kind == "LlamaForCausalLM":
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
        return transformers.LlamaConfig(
            hidden_size=16, intermediate_size=21, max_position_embeddings=80, **heads, **more
        )
    sizes = {"d_model": 10, "d_kv": 4, "d_ff": 13, "num_layers": 2, "num_heads": 3}
    buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
    return transformers.T5Config(decoder_start_token_id=0, **sizes, **buckets, **more)


def prompts(kind: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Texts of different lengths: padding before, or for an encoder behind."""
    if kind == "T5ForConditionalGeneration":
        return tokens(5, 9, 29, lambda row: slice(9 - row, None))
    return tokens(5, 9, 29, lambda row: slice(0, row))


def until_the_end(texts: Any, start: int) -> list[list[int]]:
    """New tokens up to the one that ends a text."""
    result = []
    for row in np.asarray(texts)[:, start:].tolist():
        result.append(row[: row.index(END) + 1] if END in row else row)
    return result


def both(theirs: Any, ours: Any, kind: str, backend: str = "numpy", **options: Any) -> None:
    ids, mask = prompts(kind)
    start = 1 if kind == "T5ForConditionalGeneration" else ids.shape[1]
    with torch.no_grad():
        expected = theirs.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **options).numpy()
    found = ours.generate(ids, mask, backend=backend, **options).numpy()
    assert until_the_end(found, start) == until_the_end(expected, start)
    assert found.shape == expected.shape and np.array_equal(found[:, :start], expected[:, :start])
    if options.get("num_beams", 1) == 1:
        np.testing.assert_array_equal(found, expected)  # with what fills the ends


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_tokens_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs, ours = twins(kind, config_of(kind), tmp_path)
    both(theirs, ours, kind, max_new_tokens=40)  # past the end of a block of the cache
    both(theirs, ours, kind, max_new_tokens=15, repetition_penalty=1.7)
    both(theirs, ours, kind, max_new_tokens=1)
    both(theirs, ours, kind, max_new_tokens=20, eos_token_id=[1, 5, 7])


@pytest.mark.parametrize("kind", KINDS)
def test_beams_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs, ours = twins(kind, config_of(kind), tmp_path)
    for parameter in theirs.parameters():  # flatter scores, so that beams differ
        parameter.data *= 0.7
    theirs.save_pretrained(tmp_path / "flat")
    ours = type(ours).from_pretrained(tmp_path / "flat")
    for beams, penalty, early in ((2, 1.0, False), (4, 0.0, True), (3, 2.0, "never"), (3, -1.0, False)):
        options: dict[str, Any] = {"num_beams": beams, "length_penalty": penalty, "early_stopping": early}
        both(theirs, ours, kind, max_new_tokens=12, **options)
    both(theirs, ours, kind, max_new_tokens=8, num_beams=3, repetition_penalty=1.5)


@pytest.mark.parametrize("kind", KINDS)
def test_in_c(kind: str, tmp_path: Path, needs_compiler: None) -> None:
    theirs, ours = twins(kind, config_of(kind), tmp_path)
    both(theirs, ours, kind, backend="c", max_new_tokens=10)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_from_the_cache_are_those_of_the_whole_text(kind: str, tmp_path: Path) -> None:
    _, ours = twins(kind, config_of(kind), tmp_path, "float64")
    ids, mask = prompts(kind)
    written = np.random.default_rng(1).integers(0, 29, (5, 30))
    seq2seq = kind == "T5ForConditionalGeneration"
    texts = written[:, :1] if seq2seq else np.concatenate([ids, written[:, :1]], 1)
    shown = np.concatenate([mask, np.ones((5, 30), np.int64)], 1)
    places = np.maximum(np.cumsum(shown, 1) - 1, 0)
    step = Run(ours, ids, shown[:, : texts.shape[1]] if not seq2seq else mask, texts, 40, "numpy")
    newest = texts
    for number in range(1, 30):
        scores = step(newest)
        if seq2seq:
            whole = ours(ids, mask, written[:, :number]).logits.numpy()
        else:
            text, length = np.concatenate([ids, written[:, :number]], 1), 9 + number
            whole = ours(text, shown[:, :length], places[:, :length]).logits.numpy()
        np.testing.assert_allclose(scores, whole[:, -1], rtol=1e-5, atol=1e-5)  # scores are float32
        newest = written[:, number : number + 1]


# ---- drawing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.7}, {"temperature": 2.0, "top_k": 9, "top_p": 0.8}],
)
def test_distributions_are_those_of_transformers(options: dict[str, Any]) -> None:
    from transformers.generation import logits_process as processors

    scores = np.random.default_rng(2).normal(size=(6, 23)).astype(np.float32) * 3
    expected = torch.tensor(scores)
    for name, processor in (("temperature", "Temperature"), ("top_k", "TopK"), ("top_p", "TopP")):
        if name in options:
            expected = getattr(processors, f"{processor}LogitsWarper")(options[name])(None, expected)
    found = Choice(do_sample=True, **options).probabilities(scores)
    np.testing.assert_allclose(found, torch.softmax(expected, -1).numpy(), atol=1e-6)


def test_draws_follow_the_distribution() -> None:
    """Chi-square: 22 degrees of freedom exceed 48.3 with probability 0.001; seeds are fixed."""
    scores = np.repeat(np.random.default_rng(3).normal(size=(1, 23)), 20_000, 0)
    choice = Choice(do_sample=True, temperature=0.8)
    drawn = choice.next(scores, np.zeros((20_000, 1), np.int64), np.random.default_rng(4))
    expected = 20_000 * choice.probabilities(scores[:1])[0]
    found = np.bincount(drawn, minlength=23)
    assert ((found - expected) ** 2 / expected).sum() < 48.3


def small(kind: Any = GPT2LMHeadModel) -> Any:
    tw.manual_seed(1)
    if kind is GPT2LMHeadModel:
        return GPT2LMHeadModel(GPT2Config(20, 16, 12, 2, 3, initializer_range=0.5)).eval()
    if kind is LlamaForCausalLM:
        return kind(LlamaConfig(20, 12, 16, 1, 2, max_position_embeddings=16)).eval()
    return kind(T5Config(20, 8, 4, 9, 1, num_heads=2)).eval()


def test_seeds() -> None:
    model, ids = small(), np.array([[4, 5], [4, 5]])
    options: dict[str, Any] = {
        "do_sample": True,
        "temperature": 3.0,
        "max_new_tokens": 10,
        "backend": "numpy",
    }
    first = model.generate(ids, seed=1, **options).numpy()
    np.testing.assert_array_equal(first, model.generate(ids, seed=1, **options).numpy())
    assert not np.array_equal(first, model.generate(ids, seed=2, **options).numpy())
    assert not np.array_equal(first[0], first[1])  # each text has draws of its own
    tw.manual_seed(6)
    one, two = (model.generate(ids, **options).numpy() for _ in range(2))
    assert not np.array_equal(one, two)
    tw.manual_seed(6)
    np.testing.assert_array_equal(one, model.generate(ids, **options).numpy())


# ---- ends, streams, wrong arguments ------------------------------------------------------------------------


def test_streams_and_stops() -> None:
    model, ids = small(), np.array([[4, 5], [7, 8]])
    whole = model.generate(ids, max_new_tokens=12, backend="numpy").numpy()
    parts = model.stream(ids, max_new_tokens=12, backend="numpy")
    first = next(parts)
    assert first.shape == (2,)
    np.testing.assert_array_equal(np.stack([first, *parts], 1), whole[:, 2:])
    words = whole[0, 4:6].tolist()
    stopped = model.generate(ids, max_new_tokens=12, stop=[words], pad_token_id=19, backend="numpy").numpy()
    where = next(n for n in range(2, 13) if whole[0, n : n + 2].tolist() == words)
    np.testing.assert_array_equal(stopped[0, : where + 2], whole[0, : where + 2])
    assert (stopped[0, where + 2 :] == 19).all()


def test_two_streams_at_once() -> None:
    model, ids, others = small(), np.array([[4, 5]]), np.array([[9, 2]])
    options: dict[str, Any] = {"max_new_tokens": 8, "backend": "numpy"}
    first = model.generate(ids, **options).numpy()[0, 2:]
    second = model.generate(others, **options).numpy()[0, 2:]
    assert not np.array_equal(first, second)
    pairs = list(zip(model.stream(ids, **options), model.stream(others, **options), strict=True))
    np.testing.assert_array_equal(np.concatenate([one for one, _ in pairs]), first)
    np.testing.assert_array_equal(np.concatenate([two for _, two in pairs]), second)


def test_training_between_two_texts_changes_the_second() -> None:
    model, ids = small(), np.array([[4, 5, 6]])
    before = model.generate(ids, max_new_tokens=6, backend="numpy").numpy()
    weight = model.transformer.ln_f.weight
    weight.assign(-1.0 * weight)
    after = model.generate(ids, max_new_tokens=6, backend="numpy").numpy()
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("kind", [GPT2LMHeadModel, LlamaForCausalLM])
def test_wrong_arguments_are_named(kind: Any) -> None:
    model, ids = small(kind), np.array([[4, 5, 6]])
    with pytest.raises(ShapeError, match=r"the prompt has 3 tokens; with max_new_tokens=14 .* 16 positions"):
        model.generate(ids, max_new_tokens=14)
    with pytest.raises(IndexRangeError, match=r"input_ids: token 20 at position \(0, 0\)"):
        model.generate(np.array([[20]]))
    with pytest.raises(ShapeError, match="attention_mask has shape"):
        model.generate(ids, np.ones((1, 2)))
    with pytest.raises(ArgumentError, match=r"a prompt ends with padding.*pad on the left"):
        model.generate(ids, np.array([[1, 1, 0]]))
    with pytest.raises(ShapeError, match="with at least one token"):
        model.generate(np.zeros((1, 0), np.int64))
    with pytest.raises(ArgumentError, match="temperature must be above 0"):
        model.generate(ids, do_sample=True, temperature=0.0)
    with pytest.raises(ArgumentError, match="top_p must be above 0"):
        model.generate(ids, do_sample=True, top_p=0.0)
    with pytest.raises(ArgumentError, match="top_k must be at least 1"):
        stream(model, ids, top_k=0)
    with pytest.raises(ArgumentError, match="beam search draws nothing: leave out do_sample"):
        model.generate(ids, num_beams=2, do_sample=True)
    with pytest.raises(ArgumentError, match="num_beams must be an integer"):
        model.generate(ids, num_beams=0)
    with pytest.raises(ArgumentError, match="max_new_tokens must be at least 1"):
        model.generate(ids, max_new_tokens=0)
    model.train()
    with pytest.raises(ArgumentError, match=r"training mode.*model\.eval\(\)"):
        model.generate(ids)


def test_models_that_write_nothing() -> None:
    with pytest.raises(ArgumentError, match="BertModel does not generate text"):
        generate(BertModel(BertConfig(20, 4, 1, 1, 4)), np.array([[1]]))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="decoder_start_token_id is missing"):
        small(T5ForConditionalGeneration).generate(np.array([[1]]))
