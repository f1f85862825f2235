"""Residual networks from checkpoints, against `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thalweg.errors import ArgumentError, ShapeError
from thalweg.models.resnet_pretrained import ResNetConfig, ResNetForImageClassification

from twins import there_and_back, torch, transformers, twins  # isort: skip

SIZES: dict[str, dict[str, Any]] = {
    "basic": {"layer_type": "basic", "depths": [1, 2]},
    "bottleneck": {"layer_type": "bottleneck", "depths": [2, 1], "num_channels": 1, "num_labels": 3},
}


@pytest.mark.parametrize("size", SIZES)
def test_resnet_is_that_of_transformers(size: str, tmp_path: Path) -> None:
    sizes = {"embedding_size": 4, "hidden_sizes": [8, 12], "num_labels": 2, **SIZES[size]}
    theirs, _ = twins("ResNetForImageClassification", transformers.ResNetConfig(**sizes), tmp_path)
    random = np.random.default_rng(0)
    for name, buffer in theirs.named_buffers():  # statistics other than those of the start
        if "running" in name:
            buffer.copy_(torch.from_numpy(random.uniform(0.5, 2, tuple(buffer.shape)).astype(np.float32)))
    theirs.save_pretrained(tmp_path / "again")
    ours = ResNetForImageClassification.from_pretrained(tmp_path / "again")
    images = random.normal(size=(3, theirs.config.num_channels, 37, 33)).astype(np.float32)
    inputs = {"pixel_values": images, "labels": np.arange(3) % theirs.config.num_labels}
    found, expected = ours(images).logits.numpy(), theirs(torch.tensor(images)).logits.detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    there_and_back(theirs, ours, inputs, tmp_path)


def test_wrong_uses_are_explained() -> None:
    small = ResNetConfig(embedding_size=4, hidden_sizes=(4,), depths=(1,), layer_type="basic")
    with pytest.raises(ShapeError, match=r"pixel_values has shape \(1, 2, 8, 8\); expected \[batch, 3"):
        ResNetForImageClassification(small)(np.zeros((1, 2, 8, 8), np.float32))
    with pytest.raises(ArgumentError, match="must have the same length"):
        ResNetConfig(hidden_sizes=(4,), depths=(1, 2))
    with pytest.raises(ArgumentError, match="layer_type='other' is not supported"):
        ResNetConfig.from_dict({"layer_type": "other"})
