"""Residual networks from Hugging Face's checkpoints, `microsoft/resnet-50` for example, and back.

In: images [B, C, H, W]. Out: scores [B, num_labels]. The network itself is that of `models.resnet`; here are
its configuration and the names in files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from thalweg import nn
from thalweg.errors import ArgumentError
from thalweg.models.pretrained import Config, PretrainedModel, label_tables, labels_of
from thalweg.models.resnet import BasicBlock, Bottleneck, ResNet
from thalweg.models.transformer import HeadOutput
from thalweg.nn import functional
from thalweg.nn.layer import refuse_shape
from thalweg.ops.core import operand
from thalweg.tensor.state import Buffer, Parameter

_BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


@dataclass(frozen=True)
class ResNetConfig(Config):
    """Sizes of a residual network; the defaults are those of ResNet-50."""

    model_type: ClassVar[str] = "resnet"
    supported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_act": ("relu",),
        "downsample_in_first_stage": (False,),
        "downsample_in_bottleneck": (False,),
        "layer_type": ("basic", "bottleneck"),
    }

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: Sequence[int] = (256, 512, 1024, 2048)
    depths: Sequence[int] = (3, 4, 6, 3)
    layer_type: str = "bottleneck"
    num_labels: int = 2

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Any:
        return super().from_dict(labels_of(values))

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.hidden_sizes) != len(self.depths) or not self.depths:
            raise ArgumentError(
                f"ResNetConfig: hidden_sizes={list(self.hidden_sizes)} and depths={list(self.depths)} must "
                "have the same length"
            )

    def to_dict(self) -> dict[str, Any]:
        values = label_tables(super().to_dict())
        return {**values, "hidden_sizes": list(self.hidden_sizes), "depths": list(self.depths)}


def _names(stages: int) -> dict[str, str]:
    """Paths here -> paths in files."""
    found = {"net.fc": "classifier.1"}
    pairs = {"net.conv1": "net.bn1"}
    places = {"net.conv1": "resnet.embedder.embedder"}
    for stage in range(stages):
        ours, theirs = f"net.layer{stage + 1}.*", f"resnet.encoder.stages.{stage}.layers.*"
        for number in range(3):
            pairs[f"{ours}.conv{number + 1}"] = f"{ours}.bn{number + 1}"
            places[f"{ours}.conv{number + 1}"] = f"{theirs}.layer.{number}"
        found[f"{ours}.downsample.*"] = f"{theirs}.shortcut.*"
    for convolution, norm in pairs.items():
        found[convolution] = f"{places[convolution]}.convolution"
        found[norm] = f"{places[convolution]}.normalization"
    return found


class ResNetForImageClassification(PretrainedModel):
    """`HeadOutput` with scores [B, num_labels] of each image; `labels` [B] are classes."""

    config_class = ResNetConfig
    names: ClassVar[Mapping[str, str]] = _names(8)
    has_head = True
    may_be_new = (r"^classifier\.",)

    config: ResNetConfig

    def build(self, config: ResNetConfig) -> None:
        self.net = ResNet(
            config.depths,
            config.hidden_sizes,
            config.num_labels,
            config.num_channels,
            stem="imagenet",
            block=_BLOCKS[config.layer_type],
            stem_channels=config.embedding_size,
        )

    def initial_values(self) -> None:
        """Those of `models.resnet`; the last layer as PyTorch's."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.net.fc.reset_parameters()

    def checkpoint_entries(self) -> list[tuple[str, Parameter | Buffer]]:
        """The running statistics are in files too."""
        buffers = [(self.checkpoint_name(name), buffer) for name, buffer in self.named_buffers()]
        return [*super().checkpoint_entries(), *buffers]

    @classmethod
    def checkpoint_name(cls, name: str) -> str:
        found = super().checkpoint_name(name)
        for number, kind in enumerate(("convolution", "normalization")):
            found = found.replace(f".shortcut.{number}.", f".shortcut.{kind}.")
        return found

    def forward(self, pixel_values: Any, labels: Any = None) -> HeadOutput:
        images = operand(pixel_values)
        if images.ndim != 4 or images.shape[1] != self.config.num_channels:
            refuse_shape(
                f"pixel_values has shape {tuple(images.shape)}; expected [batch, {self.config.num_channels}, "
                "height, width]"
            )
        logits = self.net(images)  # [B, num_labels]
        loss = None if labels is None else functional.cross_entropy(logits, operand(labels))
        return HeadOutput(loss, logits, None)
