"""Checkpoints in directories and on the hub: whole, in shards, broken; what is written and refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import models
from thalweg.errors import ArgumentError, DataError
from thalweg.io import safetensors
from thalweg.models.bert import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
)
from thalweg.models.gpt import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)
from thalweg.models.pretrained import ARCHITECTURES
from thalweg.models.resnet_pretrained import ResNetConfig, ResNetForImageClassification
from thalweg.models.t5 import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Model
from thalweg.models.vit import ViTConfig, ViTForImageClassification, ViTModel

BERT = BertConfig(13, 6, 2, 2, 5, max_position_embeddings=7)
DISTILBERT = DistilBertConfig(13, 6, 2, 2, 5, max_position_embeddings=7)
GPT2 = GPT2Config(13, 7, 6, 2, 2)
LLAMA = LlamaConfig(13, 8, 5, 2, 2, max_position_embeddings=7)
T5 = T5Config(13, 6, 3, 5, 2, num_heads=2, decoder_start_token_id=0)
MODELS: list[tuple[Any, Any]] = [
    *((kind, BERT) for kind in (BertModel, BertForMaskedLM, BertForSequenceClassification)),
    (BertForTokenClassification, BERT),
    *((kind, DISTILBERT) for kind in (DistilBertModel, DistilBertForMaskedLM)),
    *((kind, DISTILBERT) for kind in (DistilBertForSequenceClassification, DistilBertForTokenClassification)),
    *((kind, GPT2) for kind in (GPT2Model, GPT2LMHeadModel)),
    *((kind, LLAMA) for kind in (LlamaModel, LlamaForCausalLM)),
    *((kind, T5) for kind in (T5Model, T5EncoderModel, T5ForConditionalGeneration)),
]
IMAGE_MODELS: list[tuple[Any, Any]] = [
    *(
        (kind, ViTConfig(6, 2, 2, 5, image_size=8, patch_size=4))
        for kind in (ViTModel, ViTForImageClassification)
    ),
    (ResNetForImageClassification, ResNetConfig(3, 4, (4, 8), (1, 1), "basic")),
]
IDS = np.array([[1, 5, 12], [0, 3, 3]])


def saved(kind: Any, config: Any, folder: Path) -> Any:
    tw.manual_seed(2)
    model = kind(config).eval()
    model.save_pretrained(folder)
    return model


def arrays_of(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name: np.array(value) for name, value in safetensors.load(folder / "model.safetensors")[0].items()
    }


def rewrite(folder: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    safetensors.save(folder / "model.safetensors", arrays, {"format": "pt"})


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same(first: Any, second: Any) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return list(one) == list(two) and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("kind", "config"), MODELS + IMAGE_MODELS, ids=[kind.__name__ for kind, _ in MODELS + IMAGE_MODELS]
)
def test_what_is_saved_is_loaded(kind: Any, config: Any, tmp_path: Path) -> None:
    model = saved(kind, config, tmp_path / "a")
    again = models.from_pretrained(tmp_path / "a")
    assert type(again) is kind and not again.training
    assert same(model, again)
    # saved once more, the bytes are the same, and no tied weight is there twice
    again.save_pretrained(tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    count = sum(array.size for array in arrays_of(tmp_path / "a").values())
    statistics = model.buffers() if kind is ResNetForImageClassification else ()
    assert count == sum(holder.size for holder in (*model.parameters(), *statistics))


def test_every_architecture_has_a_class() -> None:
    known = {kind.__name__ for kind, _ in MODELS + IMAGE_MODELS}
    assert {cls for _, cls in ARCHITECTURES.values()} == known


def test_element_types(tmp_path: Path) -> None:
    model = saved(GPT2LMHeadModel, GPT2, tmp_path / "a")
    for dtype in ("bfloat16", "float16", "float64"):
        other = models.from_pretrained(tmp_path / "a", dtype=dtype)
        assert {str(parameter.dtype) for parameter in other.parameters()} == {dtype}
        other.save_pretrained(tmp_path / dtype)
        assert json.loads((tmp_path / dtype / "config.json").read_text())["dtype"] == dtype
        back = models.from_pretrained(tmp_path / dtype)
        weight, expected = back.lm_head.weight.numpy(), model.lm_head.weight.numpy()
        assert weight.dtype == np.float32
        np.testing.assert_allclose(weight, expected, atol=0 if dtype == "float64" else 3e-4)


@pytest.mark.parametrize(("kind", "config"), MODELS, ids=[kind.__name__ for kind, _ in MODELS])
def test_low_precision(kind: Any, config: Any, tmp_path: Path) -> None:
    """Scores in 16 bits are those in 32, up to rounding, and stay in 16 bits."""
    model = saved(kind, config, tmp_path)
    inputs = {"input_ids": IDS, "attention_mask": np.array([[1, 1, 0], [1, 1, 1]])}
    if kind in (T5Model, T5ForConditionalGeneration):
        inputs["decoder_input_ids"] = IDS

    def result(model: Any) -> Any:
        found = model(**inputs)
        logits = getattr(found, "logits", None)
        return found.last_hidden_state if logits is None else logits

    expected = result(model).numpy()
    for dtype, precision in (("bfloat16", 2.0**-8), ("float16", 2.0**-11)):
        found = result(models.from_pretrained(tmp_path, dtype=dtype))
        assert str(found.dtype) == dtype
        error = np.abs(found.numpy().astype(np.float32) - expected).max()
        assert error < 8 * precision * np.abs(expected).max()


def test_loading_draws_nothing(tmp_path: Path) -> None:
    """Hence it is fast, and what is drawn afterwards does not depend on it."""
    saved(GPT2LMHeadModel, GPT2, tmp_path)
    tw.manual_seed(7)
    expected = tw.nn.Linear(3, 2).weight.numpy().copy()
    tw.manual_seed(7)
    models.from_pretrained(tmp_path)
    np.testing.assert_array_equal(tw.nn.Linear(3, 2).weight.numpy(), expected)


def test_entries_that_nobody_uses_here_are_kept(tmp_path: Path) -> None:
    saved(BertForSequenceClassification, BERT, tmp_path / "a")
    tables = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    configure(tmp_path / "a", **tables, task_specific={"a": [1, None]}, torch_dtype="float32")
    models.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    values = json.loads((tmp_path / "b" / "config.json").read_text())
    assert values["id2label"] == tables["id2label"] and values["task_specific"] == {"a": [1, None]}
    assert "torch_dtype" not in values and values["dtype"] == "float32"


# ---- shards ------------------------------------------------------------------------------------------------


def in_shards(folder: Path) -> dict[str, str]:
    """Cut the checkpoint into three files."""
    arrays = arrays_of(folder)
    (folder / "model.safetensors").unlink()
    places = {}
    for part in range(3):
        shard = f"model-{part + 1:05}-of-00003.safetensors"
        names = list(arrays)[part::3]
        safetensors.save(folder / shard, {name: arrays[name] for name in names}, {"format": "pt"})
        places.update(dict.fromkeys(names, shard))
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return places


def test_shards(tmp_path: Path) -> None:
    model = saved(BertForMaskedLM, BERT, tmp_path)
    in_shards(tmp_path)
    again = models.from_pretrained(tmp_path)
    assert same(model, again)
    again.save_pretrained(tmp_path)  # one file in place of three
    assert not (tmp_path / "model.safetensors.index.json").exists()
    assert same(model, models.from_pretrained(tmp_path))


def test_broken_shards_are_named(tmp_path: Path) -> None:
    saved(BertForMaskedLM, BERT, tmp_path)
    places = in_shards(tmp_path)
    second = tmp_path / "model-00002-of-00003.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"model-00002-of-00003\.safetensors.*truncated"):
        models.from_pretrained(tmp_path)
    second.unlink()
    with pytest.raises(
        DataError, match=r"1 of 3 files.*missing: model-00002-of-00003\.safetensors.*interrupted"
    ):
        models.from_pretrained(tmp_path)
    second.write_bytes(whole)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {**places, "new.weight": second.name}}))
    with pytest.raises(DataError, match=r"lists arrays.*new\.weight \(in model-00002"):
        models.from_pretrained(tmp_path)
    for wrong in ({"weight_map": {"a": "../secret.safetensors"}}, {"weight_map": {"a": 3}}, {}):
        index.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match="needs a weight_map from names to files beside it"):
            models.from_pretrained(tmp_path)
    index.write_text("{")
    with pytest.raises(DataError, match=r"index\.json' is not JSON"):
        models.from_pretrained(tmp_path)


# ---- what does not fit -------------------------------------------------------------------------------------


def test_entries_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    saved(BertForMaskedLM, BERT, tmp_path)
    arrays = arrays_of(tmp_path)
    del arrays["bert.encoder.layer.1.attention.self.query.bias"]
    arrays["bert.encoder.layer.2.output.dense.bias"] = np.zeros(6, np.float32)
    arrays["bert.embeddings.word_embeddings.weight"] = np.zeros((14, 6), np.float32)
    arrays["bert.encoder.layer.0.intermediate.dense.bias"] = np.zeros(5, bool)
    rewrite(tmp_path, arrays)
    with pytest.raises(ArgumentError) as error:
        models.from_pretrained(tmp_path)
    text = str(error.value)
    assert "does not fit BertForMaskedLM" in text and "nothing was loaded" in text
    assert "missing (1):\n    bert.encoder.layer.1.attention.self.query.bias: f32[6]" in text
    assert "unexpected (1):\n    bert.encoder.layer.2.output.dense.bias" in text
    assert "bert.embeddings.word_embeddings.weight: expected shape (13, 6), received (14, 6)" in text
    # a body must be complete, and shapes must fit, whatever is allowed of the head
    with pytest.raises(ArgumentError, match=r"missing \(1\)"):
        models.from_pretrained(tmp_path, strict=False)


def test_tied_weights_with_two_values(tmp_path: Path) -> None:
    saved(GPT2LMHeadModel, GPT2, tmp_path)
    arrays = arrays_of(tmp_path)
    arrays["lm_head.weight"] = arrays["transformer.wte.weight"].copy()
    rewrite(tmp_path, arrays)
    models.from_pretrained(tmp_path)
    arrays["lm_head.weight"][0, 0] += 1
    rewrite(tmp_path, arrays)
    with pytest.raises(
        ArgumentError, match=r"wte\.weight and lm_head\.weight: different values for one parameter"
    ):
        models.from_pretrained(tmp_path)
    model = models.from_pretrained(tmp_path, tie_word_embeddings=False)
    assert not np.array_equal(model.lm_head.weight.numpy(), model.transformer.wte.weight.numpy())


def test_unknown_architectures_and_broken_configurations(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read '.*config\.json'"):
        models.from_pretrained(tmp_path)
    saved(BertModel, BERT, tmp_path)
    configure(tmp_path, architectures=["MambaForCausalLM"], model_type="mamba")
    with pytest.raises(ArgumentError, match=r"unknown architecture 'MambaForCausalLM'.*'mamba'.*BertModel"):
        models.from_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="describes a model of type 'mamba'; BertModel needs 'bert'"):
        BertModel.from_pretrained(tmp_path)
    configure(tmp_path, architectures=None, model_type="bert")
    assert type(models.from_pretrained(tmp_path)) is BertModel
    configure(tmp_path, hidden_size="six")
    with pytest.raises(ArgumentError, match="hidden_size must be of type int, received 'six'"):
        models.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(DataError, match="is a JSON list, expected an object"):
        models.from_pretrained(tmp_path)


def test_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    saved(BertModel, BERT, tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="truncated"):
        models.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(
        DataError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"
    ):
        models.from_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"pytorch_model\.bin is PyTorch's pickle, which can run any code"):
        models.from_pretrained(tmp_path)
    with pytest.raises(DataError, match="there is no directory"):
        models.from_pretrained(tmp_path / "elsewhere")


# ---- the hub -----------------------------------------------------------------------------------------------


def hub_cache(folder: Path, name: str) -> Any:
    """A cache as `huggingface_hub` makes it, with one model in it."""
    base = folder / f"models--{name.replace('/', '--')}"
    revision = "0123456789abcdef0123456789abcdef01234567"
    model = saved(GPT2LMHeadModel, GPT2, base / "snapshots" / revision)
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text(revision)
    return model


def test_names_on_the_hub_are_found_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    model = hub_cache(tmp_path, "someone/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert same(model, models.from_pretrained("someone/tiny"))
    with pytest.raises(DataError, match="no directory 'someone/other', and it cannot be fetched"):
        models.from_pretrained("someone/other")


def test_without_the_hub_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"install the extra: pip install 'thalweg\[hub\]'"):
        models.from_pretrained("someone/tiny")
    with pytest.raises(DataError, match=r"there is no directory '\./tiny'$"):
        models.from_pretrained("./tiny")


def test_no_other_framework_is_imported(tmp_path: Path) -> None:
    saved(BertModel, BERT, tmp_path)
    code = (
        "import sys, thalweg as tw; tw.models.from_pretrained(sys.argv[1]); "
        "others = ('torch', 'transformers', 'huggingface_hub', 'safetensors'); "
        "print([name for name in others if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
