"""LoRA: what adapters compute, train, save and merge; files of the PEFT library both ways."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.errors import ArgumentError, DataError
from thalweg.nn import lora

IDS = np.random.default_rng(0).integers(0, 40, (2, 7))


def network() -> Any:
    tw.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)))


def draw(model: Any, seed: int = 1) -> None:
    """Other values for all adapters."""
    random = np.random.default_rng(seed)
    for layer in lora.adapters(model).values():
        for part in (layer.lora_A, layer.lora_B):
            part.weight.replace(random.normal(0, 0.3, part.weight.shape).astype(np.float32))


def test_adapters_begin_without_effect_and_only_they_are_trained() -> None:
    model = network()
    x = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    before, weights = model(x).numpy(), model.state_dict()
    assert lora.inject(model, r"0|2\.1", r=2, lora_alpha=6) == ["0", "2.1"]
    np.testing.assert_array_equal(model(x).numpy(), before)
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    assert sorted(p.name.split(".", 1)[1] for p in optimizer.parameters()) == [
        "0.lora_A.weight",
        "0.lora_B.weight",
        "2.1.lora_A.weight",
        "2.1.lora_B.weight",
    ]
    losses = []
    for _ in range(30):
        loss = ((model(tw.tensor(x)) - 1.0) ** 2).mean()
        optimizer.minimize(loss)
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    for name, value in weights.items():
        np.testing.assert_array_equal(model.state_dict()[name], value)
    after = model(x).numpy()
    layer = lora.adapters(model)["2.1"]
    assert layer.scaling == 3.0 and lora.LoRALinear(nn.Linear(4, 4), 4, 8, use_rslora=True).scaling == 4.0
    assert lora.merge(model) is model and not lora.adapters(model)
    assert [type(found) for _, found in model.named_modules()].count(nn.Linear) == 3
    np.testing.assert_allclose(model(x).numpy(), after, rtol=1e-5, atol=1e-6)
    assert set(model.state_dict()) == set(weights)


def test_save_and_load(tmp_path: Path) -> None:
    model, other = network(), network()
    lora.inject(model, r"2\.\d", r=3, lora_alpha=5, use_rslora=True)
    draw(model)
    lora.save(model, tmp_path / "adapter", base_model="some/model")
    assert lora.load(other, tmp_path / "adapter") == ["2.0", "2.1"]
    x = np.ones((2, 5), np.float32)
    np.testing.assert_array_equal(model(x).numpy(), other(x).numpy())
    assert not any(parameter.trainable for parameter in other.parameters())
    third = network()
    lora.load(third, tmp_path / "adapter", trainable=True)
    assert sum(parameter.trainable for parameter in third.parameters()) == 4


def write(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "error", "expected"),
    [
        ({"use_dora": True}, ArgumentError, "use_dora=True is not supported"),
        ({"bias": "all"}, ArgumentError, "bias='all' is not supported"),
        ({"peft_type": "IA3"}, ArgumentError, "peft_type='IA3' is not supported"),
        ({"r": None}, DataError, "lacks r"),
        ({"r": 4}, ArgumentError, r"expected shape \(4, 5\), received \(2, 5\)"),
        ({"target_modules": ["0", "2.0"]}, ArgumentError, r"missing \(2\)"),
        ({"target_modules": ["9"]}, ArgumentError, "no linear layer of Sequential is meant"),
    ],
)
def test_adapters_that_do_not_fit_leave_the_model_as_it_was(
    damage: dict[str, Any], error: type[Exception], expected: str, tmp_path: Path
) -> None:
    model = network()
    lora.inject(model, "0", r=2)
    lora.save(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == "0"
    write(tmp_path, **damage)
    other = network()
    other[2].requires_grad_(False)
    names, flags = list(other.state_dict()), [parameter.trainable for parameter in other.parameters()]
    with pytest.raises(error, match=expected):
        lora.load(other, tmp_path)
    assert list(other.state_dict()) == names and not lora.adapters(other)
    assert [parameter.trainable for parameter in other.parameters()] == flags


def test_wrong_uses_are_explained(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(ArgumentError, match="its linear layers are called 0, 1"):
        lora.inject(model, ["q_proj"])
    with pytest.raises(ArgumentError, match="has no adapters"):
        lora.save(model, tmp_path)
    lora.inject(model, "all-linear")
    with pytest.raises(ArgumentError, match="has adapters already"):
        lora.inject(model, "all-linear")
    with pytest.raises(ArgumentError, match="lora_alpha must be above 0"):
        lora.LoRALinear(nn.Linear(2, 2), 1, 0)
    with pytest.raises(DataError, match="cannot read"):
        lora.load(network(), tmp_path / "absent")


def test_tied_weights_and_checkpoints_with_adapters_are_refused(tmp_path: Path) -> None:
    model = small("gpt2")
    with pytest.raises(ArgumentError, match="the weight of lm_head is tied"):
        lora.inject(model, ["lm_head"])
    lora.inject(model, ["c_attn"])
    with pytest.raises(ArgumentError, match="has adapters; merge them"):
        model.save_pretrained(tmp_path)


# ---- the PEFT library --------------------------------------------------------------------------------------


def small(kind: str) -> Any:
    from thalweg.models.bert import BertConfig, BertModel
    from thalweg.models.gpt import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    tw.manual_seed(5)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=40, n_positions=16, n_embd=12, n_layer=2, n_head=2)
        return GPT2LMHeadModel(config).eval()
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(vocab_size=40, num_key_value_heads=1, **sizes)).eval()
    return BertModel(BertConfig(vocab_size=40, max_position_embeddings=16, **sizes)).eval()


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("gpt2", ["c_attn", "c_proj"]),
        ("llama", ["q_proj", "v_proj", "down_proj"]),
        ("bert", ["query", "value", "output.dense"]),
    ],
)
def test_peft_loads_ours_and_we_load_its(kind: str, targets: list[str], tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = small(kind)
    model.save_pretrained(tmp_path / "base")
    lora.inject(model, targets, r=3, lora_alpha=7)
    draw(model)
    lora.save(model, tmp_path / "ours", base_model=str(tmp_path / "base"))
    loader = transformers.AutoModel if kind == "bert" else transformers.AutoModelForCausalLM

    def base() -> Any:
        return loader.from_pretrained(tmp_path / "base").eval()

    def output(found: Any) -> Any:
        return found.last_hidden_state if kind == "bert" else found.logits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(base(), tmp_path / "ours")
        expected = output(theirs(torch.tensor(IDS))).detach().numpy()
        np.testing.assert_allclose(output(model(IDS)).numpy(), expected, rtol=1e-4, atol=1e-5)
        merged = output(lora.merge(model)(IDS)).numpy()
        np.testing.assert_allclose(merged, expected, rtol=1e-4, atol=1e-5)
        config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets, fan_in_fan_out=kind == "gpt2")
        theirs = peft.get_peft_model(base(), config)
        torch.manual_seed(0)
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, 0.0, 0.3)
        theirs.save_pretrained(tmp_path / "theirs")
    other = small(kind)
    before = output(other(IDS)).numpy()
    lora.load(other, tmp_path / "theirs")
    expected = output(theirs.eval()(torch.tensor(IDS))).detach().numpy()
    found = output(other(IDS)).numpy()
    assert np.abs(found - before).max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
