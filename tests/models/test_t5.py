"""T5 in both versions against `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import models
from thalweg.errors import ArgumentError, IndexRangeError, ShapeError
from thalweg.models.t5 import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Model, relative_buckets

from twins import BACKENDS, agree, there_and_back, tokens, torch, transformers, twins  # isort: skip

SIZES: dict[str, dict[str, Any]] = {
    "small": {},
    "gated": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 3},
    "deep decoder": {"num_layers": 1, "num_decoder_layers": 3, "num_heads": 1},
    "few buckets": {"relative_attention_num_buckets": 4, "relative_attention_max_distance": 5},
    "gated silu": {
        "feed_forward_proj": "gated-silu",
        "d_model": 7,
        "layer_norm_epsilon": 1e-4,
        "num_layers": 1,
    },
}


def t5(name: str) -> Any:
    sizes = {"vocab_size": 29, "d_model": 10, "d_kv": 4, "d_ff": 13, "num_layers": 2, "num_heads": 3}
    more = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
    return transformers.T5Config(**{**sizes, **more, "decoder_start_token_id": 0, **SIZES[name]})


def inputs_for(vocabulary: int = 29) -> dict[str, np.ndarray[Any, Any]]:
    ids, mask = tokens(3, 11, vocabulary, lambda row: slice(11 - 4 * row, None))
    answer, answer_mask = tokens(3, 6, vocabulary, lambda row: slice(6 - 2 * row, None))
    return {"input_ids": ids, "attention_mask": mask, "labels": np.where(answer_mask, answer, -100)}


@pytest.mark.parametrize("size", SIZES)
def test_t5_is_that_of_transformers(size: str, tmp_path: Path) -> None:
    theirs, ours = twins("T5ForConditionalGeneration", t5(size), tmp_path)
    for backend in BACKENDS:
        agree(theirs, ours, inputs_for(), backend)
    there_and_back(theirs, ours, inputs_for(), tmp_path)


def test_double_precision(tmp_path: Path) -> None:
    for name in ("T5ForConditionalGeneration", "T5Model", "T5EncoderModel"):
        theirs, ours = twins(name, t5("gated"), tmp_path, "float64")
        inputs = inputs_for()
        if name != "T5ForConditionalGeneration":
            answer = inputs.pop("labels")
        if name == "T5Model":
            inputs["decoder_input_ids"] = np.maximum(answer, 0)
            inputs["decoder_attention_mask"] = (answer >= 0).astype(np.int64)

        def objective(found: Any) -> Any:
            return (found.last_hidden_state**2)[:, :2].mean()

        for backend in BACKENDS:
            agree(theirs, ours, inputs, backend, None if "labels" in inputs else objective)


def test_in_c(tmp_path: Path, needs_compiler: None) -> None:
    theirs, ours = twins("T5ForConditionalGeneration", t5("gated"), tmp_path)
    agree(theirs, ours, inputs_for(), "c")


def test_states_of_the_encoder_can_be_used_again(tmp_path: Path) -> None:
    _, ours = twins("T5ForConditionalGeneration", t5("small"), tmp_path)
    inputs = inputs_for()
    mask, labels = inputs["attention_mask"], inputs["labels"]
    encoded = ours.encoder(inputs["input_ids"], mask)
    found = ours(attention_mask=mask, labels=labels, encoder_outputs=encoded)
    np.testing.assert_array_equal(found.logits.numpy(), ours(**inputs).logits.numpy())


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 12), (4, 5), (64, 1000)])
@pytest.mark.parametrize("both", [True, False])
def test_buckets_of_all_distances(buckets: int, distance: int, both: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    away = torch.arange(-1500, 1501)
    expected = T5Attention._relative_position_bucket(away, both, buckets, distance).numpy()
    found = relative_buckets(1501, 3001, buckets, distance, both)[1500]
    np.testing.assert_array_equal(found, expected)


def test_two_matrices_in_the_file_are_not_tied(tmp_path: Path) -> None:
    """As the first checkpoints of version 1.1 have them."""
    theirs, tied = twins("T5ForConditionalGeneration", t5("gated"), tmp_path)
    assert tied.lm_head.weight is tied.shared.weight
    assert not tied.config.scale_decoder_outputs
    model = T5ForConditionalGeneration(
        T5Config.from_dict({**t5("gated").to_dict(), "tie_word_embeddings": False})
    )
    assert model.lm_head.weight is not model.shared.weight
    model.save_pretrained(tmp_path / "two")
    again = models.from_pretrained(tmp_path / "two")
    assert again.lm_head.weight is not again.shared.weight
    inputs = inputs_for()
    expected = again(**inputs).loss.item()
    assert abs(model.eval()(**inputs).loss.item() - expected) < 1e-6
    other = type(theirs).from_pretrained(tmp_path / "two").eval()
    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    assert abs(other(**tensors).loss.item() - expected) < 1e-5


def test_parts_of_a_checkpoint(tmp_path: Path) -> None:
    _, whole = twins("T5ForConditionalGeneration", t5("small"), tmp_path)
    inputs = inputs_for()
    encoder = T5EncoderModel.from_pretrained(tmp_path / "theirs")
    found = encoder(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state.numpy()
    np.testing.assert_array_equal(found, whole(**inputs).encoder_last_hidden_state.numpy())
    body = T5Model.from_pretrained(tmp_path / "theirs")
    states = body(inputs["input_ids"], inputs["attention_mask"], whole.shifted(inputs["labels"]))
    np.testing.assert_array_equal(states.last_hidden_state.numpy(), whole(**inputs).last_hidden_state.numpy())


def test_training_begins_near_the_uniform_loss() -> None:
    """The initial values of the paper give scores of moderate size."""
    tw.manual_seed(3)
    config = T5Config(100, 32, 8, 64, 2, num_heads=4, decoder_start_token_id=0)
    loss = T5ForConditionalGeneration(config).eval()(**inputs_for(100)).loss.item()
    assert abs(loss - np.log(100)) < 1.0


def test_wrong_inputs_are_named() -> None:
    model = T5ForConditionalGeneration(T5Config(29, 8, 4, 9, 1, num_heads=2)).eval()
    inputs = inputs_for()
    with pytest.raises(ArgumentError, match="decoder_start_token_id is missing"):
        model(**inputs)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with pytest.raises(ArgumentError, match="decoder_input_ids is missing"):
        model(ids, mask)
    with pytest.raises(ShapeError, match=r"decoder_attention_mask has shape \(3, 7\)"):
        model(ids, mask, ids, np.ones((3, 7)))
    with pytest.raises(IndexRangeError, match="decoder_input_ids: token -100"):
        model(ids, mask, inputs["labels"])
    with pytest.raises(ShapeError, match="labels has shape"):
        model(ids, mask, ids, labels=ids[:, :-1])
    with pytest.raises(ArgumentError, match=r'feed_forward_proj=.*expected an activation \("relu"\)'):
        T5Config(feed_forward_proj="half-gelu")
