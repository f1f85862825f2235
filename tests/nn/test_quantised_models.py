"""Quantised models: what is replaced, what is lost, what is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn
from thalweg.errors import ArgumentError
from thalweg.models import from_pretrained
from thalweg.models.gpt import GPT2Config, GPT2LMHeadModel
from thalweg.nn.quantised import QuantisedEmbedding, QuantisedLinear


def small() -> GPT2LMHeadModel:
    tw.manual_seed(5)
    return GPT2LMHeadModel(GPT2Config(61, n_positions=32, n_embd=128, n_layer=2, n_head=4)).eval()


IDS = np.random.default_rng(0).integers(0, 61, (2, 9))


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.02), ("int4", 0.2)])
def test_scores_stay_near(kind: str, error: float) -> None:
    exact = small()(IDS).logits.numpy()
    model = tw.quantize(small(), kind)
    found = model(IDS).logits.numpy()
    assert 0 < np.abs(found - exact).max() < error * np.abs(exact).max()
    assert isinstance(model.lm_head, QuantisedLinear)
    assert isinstance(model.transformer.wte, QuantisedEmbedding)
    assert model.lm_head.weight is model.transformer.wte.weight  # one table
    assert type(model.transformer.wpe) is nn.Embedding
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    assert not model.transformer.h[0].mlp.c_fc.training


def test_memory_is_in_the_plan() -> None:
    def state(model: Any) -> int:
        plan = tw.compile(lambda ids: model(ids).logits).plan(IDS)
        return int(plan.memory()["state"])

    whole, eight, four = (
        state(model) for model in (small(), tw.quantize(small(), "int8"), tw.quantize(small(), "int4"))
    )
    assert eight < 0.33 * whole
    assert four < 0.24 * whole  # positions, norms and biases stay


def test_layers_can_be_left_out_and_lists_are_searched() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            self.first = nn.Linear(8, 8)
            self.parts = [nn.Linear(8, 8), nn.ReLU()]
            self.named = nn.ModuleDict({"a": nn.Linear(8, 8)})
            self.stack = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))

        def forward(self, x: Any) -> Any:
            return self.stack(self.named["a"](self.parts[0](self.first(x))))

    net = tw.quantize(Net(), "int8", skip=["stack.2"])
    found = {path: type(module) for path, module in net.named_modules()}
    for path in ("first", "parts.0", "named.a", "stack.0"):
        assert found[path] is QuantisedLinear
    assert found["stack.2"] is nn.Linear
    assert net(np.ones((3, 8), np.float32)).shape == (3, 2)
    assert {name for name, _ in net.named_parameters()} >= {"first.bias", "stack.2.weight"}


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_saved_weights_come_back(kind: str, tmp_path: Path) -> None:
    model = tw.quantize(small(), kind)
    expected = model(IDS).logits.numpy()
    model.save(tmp_path / "weights.safetensors")
    again = tw.quantize(GPT2LMHeadModel(model.config).eval(), kind)
    again.load(tmp_path / "weights.safetensors")
    np.testing.assert_array_equal(again(IDS).logits.numpy(), expected)
    model.save_pretrained(tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model")
    assert isinstance(loaded, GPT2LMHeadModel)
    np.testing.assert_array_equal(loaded(IDS).logits.numpy(), expected)
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written["quantization_config"] == {"quant_method": "thalweg", "kinds": [kind]}
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert size < {"int8": 0.36, "int4": 0.26}[kind] * sum(p.data.nbytes for p in small().parameters())


def test_quantised_models_write_text(needs_compiler: None) -> None:
    for kind in ("int8", "int4"):
        model = tw.quantize(small(), kind)
        found = [model.generate(IDS, max_new_tokens=6, backend=backend).numpy() for backend in ("numpy", "c")]
        np.testing.assert_array_equal(*found)


def test_wrong_calls_are_named() -> None:
    with pytest.raises(ArgumentError, match="knows"):
        tw.quantize(small(), "int2")
    with pytest.raises(ArgumentError, match=r"skip names 'transformer\.h', which is no linear layer"):
        tw.quantize(small(), skip=["transformer.h"])
    with pytest.raises(ArgumentError, match="no linear layer to replace"):
        tw.quantize(nn.Linear(3, 4))
    with pytest.raises(tw.errors.ShapeError, match="needs an input with 128 elements"):
        tw.quantize(small()).transformer.h[0].mlp.c_fc(np.ones((2, 3), np.float32))
