"""GPT-2 (Radford et al., 2019), and its successor of the Llama type (Touvron et al., 2023).

In: token numbers [B, T]. Out: scores [B, T, V] of the next token at every place. Arguments and results are
Hugging Face's, and so are the paths of all parameters; only GPT-2's matrices lie transposed in files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from thalweg import nn
from thalweg.errors import ArgumentError
from thalweg.models.cache import KeyValueCache, LayerCache, Window
from thalweg.models.generation import TextModel
from thalweg.models.pretrained import Config, PretrainedModel
from thalweg.models.transformer import (
    HeadOutput,
    ModelOutput,
    activation,
    attend,
    causal_mask,
    collected,
    index_ids,
    key_mask,
    next_token_loss,
    normal_weights,
    split_heads,
    token_ids,
)
from thalweg.ops.core import cast, operand
from thalweg.ops.indexing import take
from thalweg.ops.movement import concat

Array = np.ndarray[Any, Any]

# ---- GPT-2 -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GPT2Config(Config):
    """Sizes of GPT-2; the defaults are those of GPT-2 small."""

    model_type: ClassVar[str] = "gpt2"
    supported: ClassVar[Mapping[str, tuple[Any, ...]]] = {"add_cross_attention": (False,)}

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_embd % self.n_head:
            raise ArgumentError(
                f"GPT2Config: n_embd={self.n_embd} must be a multiple of n_head={self.n_head}"
            )


class GPT2Attention(nn.Module):
    """Every token looks at itself and what is before it: [B, T, D] to [B, T, D]."""

    def __init__(self, config: GPT2Config, number: int) -> None:
        self.heads, self.attention_dropout = config.n_head, config.attn_pdrop
        self.scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= number + 1
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query, key and value side by side
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self, x: Any, mask: Any, cache: LayerCache | None = None, window: Window | None = None
    ) -> Any:
        width = x.shape[-1]
        joined = self.c_attn(x)  # [B, T, 3 D]
        query, key, value = (
            split_heads(joined[..., part * width : (part + 1) * width], self.heads) for part in range(3)
        )  # [B, H, T, d]
        if cache is not None and window is not None:
            return self.c_proj(cache.attend(query, key, value, window, self.scale))
        dropout = self.attention_dropout if self.training else 0.0
        mixed = attend(query, key, value, mask, scale=self.scale, dropout=dropout)  # [B, T, D]
        return self.dropout(self.c_proj(mixed))


class GPT2MLP(nn.Module):
    """Two linear layers: [B, T, D] to [B, T, 4 D] to [B, T, D]."""

    def __init__(self, config: GPT2Config) -> None:
        inner = 4 * config.n_embd if config.n_inner is None else config.n_inner
        self.c_fc = nn.Linear(config.n_embd, inner)
        self.c_proj = nn.Linear(inner, config.n_embd)
        self.activation = activation(config.activation_function)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Any) -> Any:
        return self.dropout(self.c_proj(self.activation(self.c_fc(x))))


class GPT2Block(nn.Module):
    """Attention and two linear layers, each normalised before and added to its input."""

    def __init__(self, config: GPT2Config, number: int) -> None:
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, number)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(
        self, x: Any, mask: Any, cache: LayerCache | None = None, window: Window | None = None
    ) -> Any:
        x = x + self.attn(self.ln_1(x), mask, cache, window)  # [B, T, D]
        return x + self.mlp(self.ln_2(x))


class _GPT2(PretrainedModel):
    """What the GPT-2 models share."""

    config_class = GPT2Config
    prefix = "transformer."
    ignored = (r"\.attn\.(bias|masked_bias)$",)  # the causal mask, in old files
    # GPT-2 was written with layers whose matrices are [in, out].
    transposed = (r"\.(c_attn|c_proj|c_fc)\.weight$",)

    config: GPT2Config

    def initial_values(self) -> None:
        """Normal; what is added to the states is smaller the more layers add (Radford et al., 2019)."""
        std = self.config.initializer_range
        normal_weights(self, std)
        for path, module in self.named_modules():
            if path.endswith("c_proj") and isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, std / math.sqrt(2 * self.config.n_layer))


class GPT2Model(_GPT2):
    """GPT-2 without a head: `ModelOutput` with states [B, T, D]."""

    def build(self, config: GPT2Config) -> None:
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(GPT2Block(config, number) for number in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(
        self,
        input_ids: Any,  # [B, T]
        attention_mask: Any = None,  # [B, T]: 1 for tokens, 0 for padding
        position_ids: Any = None,  # [B, T]
        output_hidden_states: bool = False,
        cache: KeyValueCache | None = None,  # the ids go on behind what is in it; then there must be a mask
        first: bool = False,  # nothing is in the cache yet
    ) -> ModelOutput:
        ids = token_ids(input_ids, self.config.vocab_size, None if cache else self.config.n_positions)
        batch, length = ids.shape
        window = None if cache is None else cache.take_in(attention_mask, first)
        if window is None:
            mask = causal_mask(length, key_mask(attention_mask, batch, length))
        else:
            mask, position_ids = None, window.positions
        if position_ids is None:
            positions = self.wpe.weight[:length]  # [T, D]
        else:
            positions = self.wpe(
                index_ids(position_ids, self.config.n_positions, (batch, length), "position_ids")
            )
        states = [self.drop(self.wte(ids) + positions)]  # [B, T, D]
        for number, block in enumerate(self.h):
            states.append(block(states[-1], mask, cache.layers[number] if cache else None, window))
        states[-1] = self.ln_f(states[-1])
        return ModelOutput(states[-1], collected(states, output_hidden_states))


class GPT2LMHeadModel(_GPT2, TextModel):
    """GPT-2 with scores [B, T, V] of the next token: `HeadOutput`.

    `labels` [B, T] are the tokens themselves (-100 for padding): they are moved by one inside.
    """

    has_head = True
    may_be_new = (r"^lm_head\.",)

    def build(self, config: GPT2Config) -> None:
        self.transformer = GPT2Model(config, initialise=False)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(
        self,
        input_ids: Any,  # [B, T]
        attention_mask: Any = None,  # [B, T]
        position_ids: Any = None,  # [B, T]
        labels: Any = None,  # [B, T]
        output_hidden_states: bool = False,
    ) -> HeadOutput:
        found = self.transformer(input_ids, attention_mask, position_ids, output_hidden_states)
        logits = self.lm_head(found.last_hidden_state)  # [B, T, V]
        loss = None if labels is None else next_token_loss(logits, labels)
        return HeadOutput(loss, logits, found.hidden_states)

    def new_cache(self, batch: int, length: int, encoded: int = 0) -> KeyValueCache:
        """A cache for `length` tokens of `batch` texts."""
        config = self.config
        size, dtype = config.n_embd // config.n_head, next(self.parameters()).dtype
        return KeyValueCache(config.n_layer, batch, config.n_head, size, length, dtype)

    def next_scores(self, ids: Any, mask: Any, cache: KeyValueCache, *, first: bool = False) -> Any:
        """Scores [B, V] of what follows new tokens [B, T], which go into the cache."""
        states = self.transformer(ids, mask, cache=cache, first=first).last_hidden_state  # [B, T, D]
        return self.lm_head(states[:, -1])


# ---- Llama -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LlamaConfig(Config):
    """Sizes of a Llama-type model; the defaults are those of Llama 7B.

    `rope_parameters` holds `rope_theta`, `rope_type` ("default", "linear" with `factor`, or "llama3").
    """

    model_type: ClassVar[str] = "llama"

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    rope_parameters: Mapping[str, Any] = field(
        default_factory=lambda: {"rope_theta": 10000.0, "rope_type": "default"}
    )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Any:
        """Files of before transformers 5 have `rope_theta` and `rope_scaling`, not `rope_parameters`."""
        rest = dict(values)
        theta, scaling = rest.pop("rope_theta", 10000.0), rest.pop("rope_scaling", None) or {}
        rope = {"rope_theta": theta, **scaling, **(rest.pop("rope_parameters", None) or {})}
        rope.setdefault("rope_type", rope.pop("type", "default"))
        return super().from_dict({**rest, "rope_parameters": rope})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_attention_heads % self.groups:
            raise ArgumentError(
                f"LlamaConfig: num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.groups}"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ArgumentError(
                f"LlamaConfig: hidden_size={self.hidden_size} must be a multiple of "
                f"num_attention_heads={self.num_attention_heads}, or head_dim must be given"
            )
        if self.size_per_head % 2:
            raise ArgumentError(
                f"LlamaConfig: heads need an even size to rotate, received {self.size_per_head}"
            )
        rotary_frequencies(self.size_per_head, self.rope_parameters)

    @property
    def groups(self) -> int:
        """The number of key and value heads."""
        return self.num_attention_heads if self.num_key_value_heads is None else self.num_key_value_heads

    @property
    def size_per_head(self) -> int:
        """The size of a head."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim


# Entries of rope_parameters that a rope_type needs.
_ROPE_NEEDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def rotary_frequencies(size: int, rope: Mapping[str, Any]) -> Array:
    """The angle by which each pair of a head's elements turns from position to position: [size / 2].

    Su et al., 2021; "llama3" slows down the low frequencies (Llama 3.1).
    """
    frequencies: Array = float(rope.get("rope_theta", 10000.0)) ** (-np.arange(0, size, 2) / size)
    kind = rope.get("rope_type", "default")
    absent = [name for name in _ROPE_NEEDS.get(kind, ()) if name not in rope]
    if absent:
        raise ArgumentError(f"LlamaConfig: rope_type={kind!r} also needs {', '.join(absent)}")
    if kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / float(rope["factor"])
    if kind != "llama3":
        raise ArgumentError(f"LlamaConfig: rope_type={kind!r} is unknown; expected default, linear or llama3")
    turns = float(rope["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)  # 1: many turns in the old context, unchanged
    return np.asarray(kept * frequencies + (1.0 - kept) * frequencies / float(rope["factor"]))


def rotate(x: Any, cosines: Any, sines: Any) -> Any:
    """Each pair (x[i], x[i + d / 2]) of a head [B, H, T, d] turned by its angle; tables [.., T, d / 2]."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return concat([first * cosines - second * sines, second * cosines + first * sines], -1)


class LlamaAttention(nn.Module):
    """Causal attention with rotated queries and keys; several heads share a key and a value."""

    def __init__(self, config: LlamaConfig) -> None:
        width, size, bias = config.hidden_size, config.size_per_head, config.attention_bias
        self.heads, self.groups = config.num_attention_heads, config.groups
        self.attention_dropout = config.attention_dropout
        self.q_proj = nn.Linear(width, self.heads * size, bias=bias)
        self.k_proj = nn.Linear(width, self.groups * size, bias=bias)
        self.v_proj = nn.Linear(width, self.groups * size, bias=bias)
        self.o_proj = nn.Linear(self.heads * size, width, bias=bias)

    def forward(
        self,
        x: Any,
        mask: Any,
        cosines: Any,
        sines: Any,
        cache: LayerCache | None = None,
        window: Window | None = None,
    ) -> Any:
        query = rotate(split_heads(self.q_proj(x), self.heads), cosines, sines)  # [B, H, T, d]
        key = rotate(split_heads(self.k_proj(x), self.groups), cosines, sines)  # [B, G, T, d]
        value = split_heads(self.v_proj(x), self.groups)
        if cache is not None and window is not None:
            return self.o_proj(cache.attend(query, key, value, window))
        dropout = self.attention_dropout if self.training else 0.0
        return self.o_proj(attend(query, key, value, mask, dropout=dropout))


class LlamaMLP(nn.Module):
    """Two linear layers, the inner one with a gate (Shazeer, 2020): [B, T, D] to [B, T, D]."""

    def __init__(self, config: LlamaConfig) -> None:
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.activation = activation(config.hidden_act)

    def forward(self, x: Any) -> Any:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class LlamaBlock(nn.Module):
    """Attention and the inner layers, each normalised before and added to its input."""

    def __init__(self, config: LlamaConfig) -> None:
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(
        self,
        x: Any,
        mask: Any,
        cosines: Any,
        sines: Any,
        cache: LayerCache | None = None,
        window: Window | None = None,
    ) -> Any:
        x = x + self.self_attn(self.input_layernorm(x), mask, cosines, sines, cache, window)  # [B, T, D]
        return x + self.mlp(self.post_attention_layernorm(x))


class _Llama(PretrainedModel):
    """What the Llama-type models share."""

    config_class = LlamaConfig
    prefix = "model."
    ignored = (r"\.rotary_emb\.inv_freq$",)  # follows from the configuration

    config: LlamaConfig

    def initial_values(self) -> None:
        normal_weights(self, self.config.initializer_range)


class LlamaModel(_Llama):
    """A Llama-type model without a head: `ModelOutput` with states [B, T, D]."""

    def build(self, config: LlamaConfig) -> None:
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(LlamaBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        input_ids: Any,  # [B, T]
        attention_mask: Any = None,  # [B, T]: 1 for tokens, 0 for padding
        position_ids: Any = None,  # [B, T]
        output_hidden_states: bool = False,
        cache: KeyValueCache | None = None,  # the ids go on behind what is in it; then there must be a mask
        first: bool = False,  # nothing is in the cache yet
    ) -> ModelOutput:
        longest = None if cache else self.config.max_position_embeddings
        ids = token_ids(input_ids, self.config.vocab_size, longest)
        batch, length = ids.shape
        window = None if cache is None else cache.take_in(attention_mask, first)
        if window is None:
            mask = causal_mask(length, key_mask(attention_mask, batch, length))
        else:
            mask, position_ids = None, window.positions
        states = [self.embed_tokens(ids)]  # [B, T, D]
        cosines, sines = self._angles(position_ids, batch, length, states[0].dtype)
        for number, layer in enumerate(self.layers):
            kept = cache.layers[number] if cache else None
            states.append(layer(states[-1], mask, cosines, sines, kept, window))
        states[-1] = self.norm(states[-1])
        return ModelOutput(states[-1], collected(states, output_hidden_states))

    def _angles(self, position_ids: Any, batch: int, length: int, dtype: Any) -> tuple[Any, Any]:
        """Cosines and sines of the positions' angles, [T, d / 2] or [B, 1, T, d / 2]."""
        config = self.config
        frequencies = rotary_frequencies(config.size_per_head, config.rope_parameters)
        count = length if position_ids is None else config.max_position_embeddings
        angles = np.arange(count)[:, None] * frequencies  # in double precision: far positions turn often
        tables = [
            cast(operand(table.astype(_exact(dtype))), dtype) for table in (np.cos(angles), np.sin(angles))
        ]
        if position_ids is None:
            return tables[0], tables[1]
        ids = index_ids(position_ids, count, (batch, length), "position_ids")  # [B, T]
        cosines, sines = (take(table, ids, 0).unsqueeze(1) for table in tables)
        return cosines, sines


def _exact(dtype: Any) -> Any:
    return np.float64 if str(dtype) == "float64" else np.float32


class LlamaForCausalLM(_Llama, TextModel):
    """A Llama-type model with scores [B, T, V] of the next token: `HeadOutput`; `labels` as for GPT-2."""

    has_head = True
    may_be_new = (r"^lm_head\.",)

    def build(self, config: LlamaConfig) -> None:
        self.model = LlamaModel(config, initialise=False)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids: Any,  # [B, T]
        attention_mask: Any = None,  # [B, T]
        position_ids: Any = None,  # [B, T]
        labels: Any = None,  # [B, T]
        output_hidden_states: bool = False,
    ) -> HeadOutput:
        found = self.model(input_ids, attention_mask, position_ids, output_hidden_states)
        logits = self.lm_head(found.last_hidden_state)  # [B, T, V]
        loss = None if labels is None else next_token_loss(logits, labels)
        return HeadOutput(loss, logits, found.hidden_states)

    def new_cache(self, batch: int, length: int, encoded: int = 0) -> KeyValueCache:
        """A cache for `length` tokens of `batch` texts."""
        config, dtype = self.config, next(self.parameters()).dtype
        layers, groups = config.num_hidden_layers, config.groups
        return KeyValueCache(layers, batch, groups, config.size_per_head, length, dtype)

    def next_scores(self, ids: Any, mask: Any, cache: KeyValueCache, *, first: bool = False) -> Any:
        """Scores [B, V] of what follows new tokens [B, T], which go into the cache."""
        states = self.model(ids, mask, cache=cache, first=first).last_hidden_state  # [B, T, D]
        return self.lm_head(states[:, -1])
