"""GPT-2 and Llama-type models against `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import models
from thalweg.errors import ArgumentError, IndexRangeError, ShapeError
from thalweg.models.gpt import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

from twins import BACKENDS, agree, there_and_back, tokens, transformers, twins  # isort: skip

GPT2: dict[str, dict[str, Any]] = {
    "small": {},
    "one head": {"n_head": 1, "n_inner": 17, "activation_function": "gelu"},
    "no scale": {"n_embd": 9, "scale_attn_weights": False, "n_layer": 1},
    "scale by layer": {"scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 1e-3, "n_layer": 3},
    "two matrices": {"tie_word_embeddings": False, "activation_function": "relu"},
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 9,
}
LLAMA: dict[str, dict[str, Any]] = {
    "small": {},
    "one group": {"num_key_value_heads": 1, "tie_word_embeddings": True, "num_hidden_layers": 1},
    "no groups": {"num_key_value_heads": 4, "head_dim": 6, "rms_norm_eps": 1e-3},
    "biases": {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "pad_token_id": 2},
    "llama3": {"rope_parameters": LLAMA3, "head_dim": 10},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}},
}


def gpt2(name: str) -> Any:
    sizes = {"vocab_size": 31, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 14}
    return transformers.GPT2Config(**{**sizes, "bos_token_id": 0, "eos_token_id": 0, **GPT2[name]})


def llama(name: str) -> Any:
    sizes = {"vocab_size": 27, "hidden_size": 16, "intermediate_size": 21, "num_hidden_layers": 2}
    more = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 15}
    return transformers.LlamaConfig(**{**sizes, **more, **LLAMA[name]})


def inputs_for(vocabulary: int) -> dict[str, np.ndarray[Any, Any]]:
    ids, mask = tokens(3, 11, vocabulary, lambda row: slice(11 - 3 * row, None))
    return {"input_ids": ids, "attention_mask": mask, "labels": np.where(mask, ids, -100)}


@pytest.mark.parametrize("size", GPT2)
def test_gpt2_is_that_of_transformers(size: str, tmp_path: Path) -> None:
    theirs, ours = twins("GPT2LMHeadModel", gpt2(size), tmp_path)
    assert (ours.lm_head.weight is ours.transformer.wte.weight) == (size != "two matrices")
    for backend in BACKENDS:
        agree(theirs, ours, inputs_for(31), backend)
    there_and_back(theirs, ours, inputs_for(31), tmp_path)


@pytest.mark.parametrize("size", LLAMA)
def test_llama_is_that_of_transformers(size: str, tmp_path: Path) -> None:
    theirs, ours = twins("LlamaForCausalLM", llama(size), tmp_path)
    for backend in BACKENDS:
        agree(theirs, ours, inputs_for(27), backend)
    there_and_back(theirs, ours, inputs_for(27), tmp_path)


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "LlamaForCausalLM", "GPT2Model", "LlamaModel"])
def test_double_precision(kind: str, tmp_path: Path) -> None:
    config = gpt2("scale by layer") if kind.startswith("GPT2") else llama("llama3")
    theirs, ours = twins(kind, config, tmp_path, "float64")
    inputs = inputs_for(27)
    if kind.endswith("Model") and not kind.endswith("HeadModel"):
        del inputs["labels"]

    def objective(found: Any) -> Any:
        return (found.last_hidden_state**2)[:, :5].mean()

    for backend in BACKENDS:
        agree(theirs, ours, inputs, backend, None if "labels" in inputs else objective)


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_in_c(kind: str, tmp_path: Path, needs_compiler: None) -> None:
    config = gpt2("small") if kind.startswith("GPT2") else llama("small")
    theirs, ours = twins(kind, config, tmp_path)
    agree(theirs, ours, inputs_for(27), "c")


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_padding_on_the_left_with_positions(kind: str, tmp_path: Path) -> None:
    """As prompts of different lengths are given.

    A padding token sees nothing at all, and its scores differ even between the implementations of attention
    in transformers: what would be predicted from it does not count.
    """
    theirs, ours = twins(kind, gpt2("small") if kind.startswith("GPT2") else llama("small"), tmp_path)
    ids, mask = tokens(3, 11, 27, lambda row: slice(0, 3 * row))
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    counts = mask * np.roll(mask, 1, 1)
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": np.where(counts, ids, -100)}
    for backend in BACKENDS:
        agree(theirs, ours, {**inputs, "position_ids": positions}, backend)
    alone = ours(ids[2:, 6:]).logits.numpy()
    padded = ours(ids, mask, positions).logits.numpy()[2:, 6:]
    np.testing.assert_allclose(padded, alone, atol=1e-4)


def test_the_first_files_of_gpt2(tmp_path: Path) -> None:
    """On the hub they have no prefix, and the causal mask among the weights."""
    from thalweg.io import safetensors

    _, ours = twins("GPT2LMHeadModel", gpt2("small"), tmp_path)
    folder = tmp_path / "theirs"
    arrays, _ = safetensors.load(folder / "model.safetensors")
    old = {name.removeprefix("transformer."): np.array(array) for name, array in arrays.items()}
    old["h.0.attn.bias"] = np.tril(np.ones((1, 1, 14, 14), np.float32))
    safetensors.save(folder / "model.safetensors", old)
    ids = tokens(2, 7, 27)[0]
    expected = ours(ids).logits.numpy()
    np.testing.assert_array_equal(models.from_pretrained(folder)(ids).logits.numpy(), expected)
    states = GPT2Model.from_pretrained(folder)(ids).last_hidden_state.numpy()
    np.testing.assert_array_equal(states, ours.transformer(ids).last_hidden_state.numpy())


def test_rotary_entries_of_before_transformers_5() -> None:
    old = {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    config = LlamaConfig.from_dict(old)
    assert config.rope_parameters == {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0}
    assert LlamaConfig.from_dict({"rope_scaling": None}).rope_parameters["rope_type"] == "default"
    with pytest.raises(
        ArgumentError, match="rope_type='yarn' is unknown; expected default, linear or llama3"
    ):
        LlamaConfig.from_dict({"rope_scaling": {"rope_type": "yarn"}})
    with pytest.raises(ArgumentError, match="rope_type='llama3' also needs low_freq_factor, high"):
        LlamaConfig(rope_parameters={k: v for k, v in LLAMA3.items() if "freq" not in k})


@pytest.mark.parametrize("kind", [GPT2LMHeadModel, LlamaForCausalLM])
def test_training_from_nothing(kind: Any) -> None:
    """Initial scores are almost alike, and a few steps learn a pattern by heart."""
    tw.manual_seed(5)
    config = (
        GPT2Config(20, 16, 24, 2, 3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        if kind is GPT2LMHeadModel
        else LlamaConfig(20, 24, 32, 2, 2, num_key_value_heads=1)
    )
    model = kind(config)
    optimizer = tw.optim.Adam(model.parameters(), lr=0.01)
    ids = np.arange(40).reshape(4, 10) * 7 % 20

    @tw.compile(backend="numpy")
    def step(ids: Any) -> Any:
        loss = model(ids, labels=ids).loss
        optimizer.minimize(loss)
        return loss

    losses = [step(ids).item() for _ in range(25)]
    assert abs(losses[0] - np.log(20)) < 0.2
    assert losses[-1] < 0.7


def test_wrong_inputs_are_named() -> None:
    for model in (
        GPT2LMHeadModel(GPT2Config(20, 8, 12, 1, 3)).eval(),
        LlamaForCausalLM(LlamaConfig(20, 12, 16, 1, 2, max_position_embeddings=8)).eval(),
    ):
        with pytest.raises(ShapeError, match="input_ids has 9 tokens; the model has 8 positions"):
            model(np.zeros((1, 9), np.int64))
        with pytest.raises(IndexRangeError, match=r"input_ids: token 20 at position \(0, 1\)"):
            model(np.array([[3, 20]]))
        with pytest.raises(ShapeError, match="attention_mask has shape"):
            model(np.zeros((2, 4), np.int64), np.ones((4, 2)))
        with pytest.raises(IndexRangeError, match="position_ids: number 8"):
            model(np.zeros((1, 2), np.int64), position_ids=np.array([[7, 8]]))
        with pytest.raises(ShapeError, match="there is no next token"):
            model(np.zeros((2, 1), np.int64), labels=np.zeros((2, 1), np.int64))
    with pytest.raises(ArgumentError, match="n_embd=10 must be a multiple of n_head=3"):
        GPT2Config(n_embd=10, n_head=3)
    with pytest.raises(
        ArgumentError, match="num_attention_heads=4 must be a multiple of num_key_value_heads=3"
    ):
        LlamaConfig(hidden_size=16, num_attention_heads=4, num_key_value_heads=3)
    with pytest.raises(ArgumentError, match="heads need an even size to rotate, received 3"):
        LlamaModel(LlamaConfig(hidden_size=12, num_attention_heads=4))
