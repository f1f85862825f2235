"""Vision Transformer (Dosovitskiy et al., 2021): an image as a sequence of patches.

In: images [B, C, H, W]. Out: states [B, 1 + N, D] of a class token and N patches, or scores [B, num_labels].
Arguments and results are Hugging Face's, and so are the names in files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from thalweg import nn
from thalweg.errors import ArgumentError
from thalweg.models.pretrained import Config, PretrainedModel, label_tables, labels_of
from thalweg.models.transformer import (
    HeadOutput,
    ModelOutput,
    activation,
    attend,
    collected,
    normal_weights,
    split_heads,
)
from thalweg.nn import functional
from thalweg.nn.layer import new_parameter, refuse_shape
from thalweg.ops.core import operand
from thalweg.ops.movement import broadcast_to, concat


@dataclass(frozen=True)
class ViTConfig(Config):
    """Sizes of a Vision Transformer; the defaults are those of ViT base with patches of 16 x 16."""

    model_type: ClassVar[str] = "vit"
    supported: ClassVar[Mapping[str, tuple[Any, ...]]] = {"pooler_act": ("tanh",)}

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    pooler_output_size: int | None = None
    num_labels: int = 2

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Any:
        return super().from_dict(labels_of(values))

    def __post_init__(self) -> None:
        super().__post_init__()
        for whole, part in (("hidden_size", "num_attention_heads"), ("image_size", "patch_size")):
            if getattr(self, whole) % getattr(self, part):
                raise ArgumentError(
                    f"ViTConfig: {whole}={getattr(self, whole)} must be a multiple of "
                    f"{part}={getattr(self, part)}"
                )

    def to_dict(self) -> dict[str, Any]:
        return label_tables(super().to_dict())

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2


class ViTEmbeddings(nn.Module):
    """Patches as vectors behind a class token, each plus that of its place: [B, C, H, W] to [B, 1 + N, D]."""

    def __init__(self, config: ViTConfig) -> None:
        width, patch = config.hidden_size, config.patch_size
        self.channels, self.size = config.num_channels, config.image_size
        self.cls_token = new_parameter((1, 1, width), "float32")
        self.position_embeddings = new_parameter((1, 1 + config.patches, width), "float32")
        self.patches = nn.Conv2d(config.num_channels, width, patch, stride=patch)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Any) -> Any:
        images = operand(pixel_values)
        expected = (self.channels, self.size, self.size)
        if images.ndim != 4 or images.shape[1:] != expected:
            refuse_shape(f"pixel_values has shape {tuple(images.shape)}; expected {['batch', *expected]}")
        patches = self.patches(images).flatten(2).swapaxes(1, 2)  # [B, N, D]
        first = broadcast_to(self.cls_token, (images.shape[0], 1, patches.shape[2]))
        return self.dropout(concat([first, patches], 1) + self.position_embeddings)  # [B, 1 + N, D]


class ViTLayer(nn.Module):
    """Attention and two linear layers, each normalised before and added to its input: [B, T, D]."""

    def __init__(self, config: ViTConfig) -> None:
        width, eps, bias = config.hidden_size, config.layer_norm_eps, config.qkv_bias
        self.heads, self.attention_dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.norm_before = nn.LayerNorm(width, eps=eps)
        self.query, self.key = nn.Linear(width, width, bias=bias), nn.Linear(width, width, bias=bias)
        self.value, self.output = nn.Linear(width, width, bias=bias), nn.Linear(width, width)
        self.norm_after = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, width)
        self.activation = activation(config.hidden_act)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Any) -> Any:
        normal = self.norm_before(x)
        query, key, value = (split_heads(f(normal), self.heads) for f in (self.query, self.key, self.value))
        dropout = self.attention_dropout if self.training else 0.0
        x = x + self.dropout(self.output(attend(query, key, value, dropout=dropout)))  # [B, T, D]
        inner = self.activation(self.up(self.norm_after(x)))  # [B, T, 4 D]
        return x + self.dropout(self.down(inner))


# Paths here -> paths in files.
_NAMES = {
    "embeddings.patches": "embeddings.patch_embeddings.projection",
    "layers.*.norm_before": "encoder.layer.*.layernorm_before",
    "layers.*.query": "encoder.layer.*.attention.attention.query",
    "layers.*.key": "encoder.layer.*.attention.attention.key",
    "layers.*.value": "encoder.layer.*.attention.attention.value",
    "layers.*.output": "encoder.layer.*.attention.output.dense",
    "layers.*.norm_after": "encoder.layer.*.layernorm_after",
    "layers.*.up": "encoder.layer.*.intermediate.dense",
    "layers.*.down": "encoder.layer.*.output.dense",
    "norm": "layernorm",
    "pooler": "pooler.dense",
}


class _ViT(PretrainedModel):
    """What the two models share."""

    config_class = ViTConfig
    prefix = "vit."

    config: ViTConfig

    def initial_values(self) -> None:
        """Normal, as every weight; biases 0."""
        std = self.config.initializer_range
        normal_weights(self, std)
        for module in self.modules():
            if isinstance(module, ViTEmbeddings):
                for drawn in (module.cls_token, module.position_embeddings, module.patches.weight):
                    nn.init.normal_(drawn, 0.0, std)
                nn.init.zeros_(module.patches.bias)


class ViTModel(_ViT):
    """Without a head: `ModelOutput` with states [B, 1 + N, D] and the pooled class token [B, D]."""

    names = _NAMES
    may_be_new = (r"^pooler\.",)

    def build(self, config: ViTConfig, pooling: bool = True) -> None:
        width = config.hidden_size
        self.embeddings = ViTEmbeddings(config)
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.pooler = nn.Linear(width, config.pooler_output_size or width) if pooling else None

    def forward(self, pixel_values: Any, output_hidden_states: bool = False) -> ModelOutput:
        states = [self.embeddings(pixel_values)]  # [B, 1 + N, D]
        for layer in self.layers:
            states.append(layer(states[-1]))
        last = self.norm(states[-1])
        pooled = None if self.pooler is None else self.pooler(last[:, 0]).tanh()  # [B, D]
        return ModelOutput(last, collected(states, output_hidden_states), pooled)


class ViTForImageClassification(_ViT):
    """`HeadOutput` with scores [B, num_labels] of each image; `labels` [B] are classes."""

    names: ClassVar[Mapping[str, str]] = {f"vit.{ours}": f"vit.{its}" for ours, its in _NAMES.items()}
    has_head = True
    may_be_new = (r"^classifier\.",)
    ignored = (r"^vit\.pooler\.",)

    def build(self, config: ViTConfig) -> None:
        self.vit = ViTModel(config, initialise=False, pooling=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        pixel_values: Any,  # [B, C, H, W]
        labels: Any = None,  # [B]
        output_hidden_states: bool = False,
    ) -> HeadOutput:
        found = self.vit(pixel_values, output_hidden_states)
        logits = self.classifier(found.last_hidden_state[:, 0])  # [B, num_labels]
        loss = None if labels is None else functional.cross_entropy(logits, operand(labels))
        return HeadOutput(loss, logits, found.hidden_states)


def small_vit(num_labels: int = 10, num_channels: int = 1) -> ViTForImageClassification:
    """For MNIST's 28x28 images: 49 patches of 4x4, four layers of width 64."""
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=28,
        patch_size=4,
        num_channels=num_channels,
        num_labels=num_labels,
    )
    return ViTForImageClassification(config)
