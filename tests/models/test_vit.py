"""The Vision Transformer against `transformers`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thalweg import models
from thalweg.errors import ArgumentError, ShapeError
from thalweg.models.vit import ViTConfig, ViTForImageClassification, ViTModel, small_vit

from twins import BACKENDS, agree, there_and_back, transformers, twins  # isort: skip

SIZES: dict[str, dict[str, Any]] = {
    "small": {},
    "one patch": {"image_size": 5, "patch_size": 5, "num_channels": 1, "num_labels": 2},
    "no bias": {"qkv_bias": False, "num_attention_heads": 1, "hidden_act": "relu", "layer_norm_eps": 1e-3},
    "odd": {"hidden_size": 15, "num_attention_heads": 5, "intermediate_size": 7, "num_hidden_layers": 1},
    "long": {"image_size": 18, "patch_size": 2, "num_channels": 2, "num_hidden_layers": 3},
}
# Names of `transformers` in memory -> in its files.
IN_FILES = {
    r"^(vit\.)?layers\.": r"\1encoder.layer.",
    r"attention\.q_proj": "attention.attention.query",
    r"attention\.k_proj": "attention.attention.key",
    r"attention\.v_proj": "attention.attention.value",
    r"attention\.o_proj": "attention.output.dense",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
}


def in_files(name: str) -> str:
    for pattern, replacement in IN_FILES.items():
        name = re.sub(pattern, replacement, name)
    return name


def vit(name: str) -> Any:
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    images = {"image_size": 8, "patch_size": 4, "num_channels": 3, "num_labels": 4}
    return transformers.ViTConfig(**{**sizes, **images, **SIZES[name]})


def images_for(config: Any) -> np.ndarray[Any, Any]:
    shape = (3, config.num_channels, config.image_size, config.image_size)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_vit_is_that_of_transformers(size: str, tmp_path: Path) -> None:
    theirs, ours = twins("ViTForImageClassification", vit(size), tmp_path)
    labels = np.arange(3) % theirs.config.num_labels
    inputs = {"pixel_values": images_for(theirs.config), "labels": labels}
    for backend in BACKENDS:
        agree(theirs, ours, inputs, backend, renamed=in_files)
    there_and_back(theirs, ours, inputs, tmp_path)


def test_vit_without_head(tmp_path: Path) -> None:
    theirs, ours = twins("ViTModel", vit("small"), tmp_path)
    inputs = {"pixel_values": images_for(theirs.config)}
    agree(
        theirs,
        ours,
        inputs,
        "numpy",
        objective=lambda found: (found.pooler_output**2).sum() + (found.last_hidden_state**2).mean(),
        renamed=in_files,
    )
    ours.save_pretrained(tmp_path / "body")
    with pytest.raises(ArgumentError, match=r"classifier\.weight"):
        models.from_pretrained(tmp_path / "body", model_class=ViTForImageClassification)
    with_head = ViTForImageClassification.from_pretrained(tmp_path / "body", strict=False, num_labels=7)
    assert with_head(inputs["pixel_values"]).logits.shape == (3, 7)
    with_head.save_pretrained(tmp_path / "head")
    body = ViTModel.from_pretrained(tmp_path / "head", strict=False)
    found, expected = body(**inputs).last_hidden_state, ours(**inputs).last_hidden_state
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


def test_wrong_uses_are_explained() -> None:
    model = small_vit()
    expected = r"pixel_values has shape \(2, 3, 28, 28\); expected \['batch', 1, 28, 28\]"
    with pytest.raises(ShapeError, match=expected):
        model(np.zeros((2, 3, 28, 28), np.float32))
    with pytest.raises(ArgumentError, match="image_size=30 must be a multiple of patch_size=4"):
        ViTConfig(image_size=30, patch_size=4)
