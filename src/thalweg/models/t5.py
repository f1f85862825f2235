"""T5 (Raffel et al., 2020), an encoder-decoder with relative positions; version 1.0 and the gated 1.1.

In: token numbers of the text [B, S] and of the answer [B, T]. Out: scores [B, T, V] of the answer's next
tokens. Arguments and results are Hugging Face's. Norms divide by the root mean square, come before each layer
and have no bias; scores of attention are not scaled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from thalweg import nn
from thalweg.errors import ArgumentError
from thalweg.models.cache import KeyValueCache, LayerCache, Window
from thalweg.models.generation import TextModel
from thalweg.models.pretrained import Config, PretrainedModel
from thalweg.models.transformer import (
    ModelOutput,
    Seq2SeqOutput,
    activation,
    attend,
    causal_mask,
    checked_labels,
    collected,
    key_mask,
    split_heads,
    token_ids,
    token_loss,
)
from thalweg.ops.elementwise import equal, where
from thalweg.ops.indexing import dynamic_slice
from thalweg.ops.movement import concat
from thalweg.ops.sources import full

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class T5Config(Config):
    """Sizes of T5; the defaults are those of T5 small, version 1.0."""

    model_type: ClassVar[str] = "t5"

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    pad_token_id: int = 0
    decoder_start_token_id: int | None = None
    tie_word_embeddings: bool = True
    # Version 1.0 scales the states before the scores by 1 / sqrt(d_model), 1.1 does not. Files of before
    # transformers 5 say so by tie_word_embeddings, which is what None means.
    scale_decoder_outputs: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        words = self.feed_forward_proj.split("-", 1)
        if len(words) == 2 and words[0] != "gated":
            raise ArgumentError(
                f'T5Config: feed_forward_proj={self.feed_forward_proj!r}; expected an activation ("relu") or '
                '"gated-" before it ("gated-gelu")'
            )
        activation(self.inner_activation)
        if self.scale_decoder_outputs is None:
            object.__setattr__(self, "scale_decoder_outputs", self.tie_word_embeddings)

    @property
    def gated(self) -> bool:
        """Whether the inner layer has a gate (version 1.1)."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def inner_activation(self) -> str:
        """Name of the inner activation; "gated-gelu" has always meant its approximation by tanh."""
        name = self.feed_forward_proj.removeprefix("gated-")
        return "gelu_new" if self.feed_forward_proj == "gated-gelu" else name

    @property
    def decoder_layers(self) -> int:
        """The number of the decoder's layers."""
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers


def relative_buckets(queries: int, keys: int, buckets: int, distance: int, both: bool) -> Array:
    """The bucket [queries, keys] of each distance between a query and a key.

    Half of the buckets are for single small distances, the others grow with the logarithm up to `distance`.
    With `both` directions keys behind the query have their own half; else they count as distance 0.
    """
    away = np.arange(keys)[None, :] - np.arange(queries)[:, None]
    result = np.zeros_like(away)
    if both:
        buckets //= 2
        result = np.where(away > 0, buckets, 0)
        away = np.abs(away)
    else:
        away = np.maximum(-away, 0)
    exact = buckets // 2
    # float32 throughout, as where the checkpoints were trained: at the borders rounding decides
    ratio = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(math.log(distance / exact)) * np.float32(buckets - exact)
    far = np.minimum(exact + steps.astype(np.int64), buckets - 1)
    return np.asarray(result + np.where(away < exact, away, far))


class T5Attention(nn.Module):
    """Attention of states [B, T, D] to themselves or to others [B, S, D]."""

    def __init__(self, config: T5Config, relative: bool = False, decoder: bool = False) -> None:
        inner = config.num_heads * config.d_kv
        self.heads, self.dropout = config.num_heads, config.dropout_rate
        self.q, self.k, self.v = (nn.Linear(config.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.both, self.distance = not decoder, config.relative_attention_max_distance
        count = config.relative_attention_num_buckets
        self.relative_attention_bias = nn.Embedding(count, config.num_heads) if relative else None

    def position_bias(self, queries: int, keys: int, place: Any = None) -> Any:
        """What is added to the scores for distances of queries (from `place` on) and keys: [1, H, T, S]."""
        assert self.relative_attention_bias is not None
        count = self.relative_attention_bias.num_embeddings
        rows = queries if place is None else keys
        buckets: Any = relative_buckets(rows, keys, count, self.distance, self.both)
        if place is not None:
            buckets = dynamic_slice(buckets, (place, 0), (queries, keys))
        return self.relative_attention_bias(buckets).permute(2, 0, 1).unsqueeze(0)

    def project(self, others: Any) -> tuple[Any, Any]:
        """Keys and values [B, H, S, d] of states [B, S, D]."""
        return split_heads(self.k(others), self.heads), split_heads(self.v(others), self.heads)

    def forward(
        self,
        x: Any,  # [B, T, D]
        others: Any,  # [B, S, D]; None: what the cache has
        mask: Any = None,
        bias: Any = None,
        cache: LayerCache | None = None,
        window: Window | None = None,
    ) -> Any:
        query = split_heads(self.q(x), self.heads)  # [B, H, T, d]
        if others is None:
            assert cache is not None
            return self.o(cache.attend_all(query, mask, scale=1.0))
        key, value = self.project(others)
        if cache is not None and window is not None:
            return self.o(cache.attend(query, key, value, window, 1.0, bias))
        dropout = self.dropout if self.training else 0.0
        return self.o(attend(query, key, value, mask, bias, scale=1.0, dropout=dropout))  # [B, T, D]


class T5FeedForward(nn.Module):
    """Two linear layers with an activation, or with a gate, in between: [B, T, D] to [B, T, D]."""

    def __init__(self, config: T5Config) -> None:
        width, inner = config.d_model, config.d_ff
        self.wi = None if config.gated else nn.Linear(width, inner, bias=False)
        self.wi_0 = nn.Linear(width, inner, bias=False) if config.gated else None
        self.wi_1 = nn.Linear(width, inner, bias=False) if config.gated else None
        self.wo = nn.Linear(inner, width, bias=False)
        self.activation = activation(config.inner_activation)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x: Any) -> Any:
        if self.wi is not None:
            return self.wo(self.dropout(self.activation(self.wi(x))))
        assert self.wi_0 is not None and self.wi_1 is not None
        return self.wo(self.dropout(self.activation(self.wi_0(x)) * self.wi_1(x)))


class T5Block(nn.Module):
    """Attention, in the decoder attention to the encoder's states, and the feed-forward layers."""

    def __init__(self, config: T5Config, decoder: bool, relative: bool) -> None:
        def norm() -> nn.RMSNorm:
            return nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

        self.attention, self.attention_norm = T5Attention(config, relative, decoder), norm()
        self.cross = T5Attention(config) if decoder else None
        self.cross_norm = norm() if decoder else None
        self.inner, self.inner_norm = T5FeedForward(config), norm()
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self,
        x: Any,
        mask: Any,
        bias: Any,
        encoded: Any = None,
        encoded_mask: Any = None,
        caches: tuple[LayerCache | None, LayerCache | None] = (None, None),
        window: Window | None = None,
    ) -> Any:
        normed = self.attention_norm(x)  # [B, T, D]
        x = x + self.dropout(self.attention(normed, normed, mask, bias, caches[0], window))
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.dropout(self.cross(self.cross_norm(x), encoded, encoded_mask, cache=caches[1]))
        return x + self.dropout(self.inner(self.inner_norm(x)))


class T5Stack(nn.Module):
    """Encoder or decoder: token numbers to states [B, T, D]; all blocks share the first one's bias."""

    def __init__(self, config: T5Config, embedding: nn.Embedding, decoder: bool) -> None:
        self.embed_tokens, self.decoder = embedding, decoder
        count = config.decoder_layers if decoder else config.num_layers
        self.blocks = nn.ModuleList(T5Block(config, decoder, number == 0) for number in range(count))
        self.final_layer_norm = nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self,
        input_ids: Any,  # [B, T]
        attention_mask: Any = None,  # [B, T]
        encoded: Any = None,  # [B, S, D]
        encoded_mask: Any = None,  # [B, S]
        output_hidden_states: bool = False,
        cache: KeyValueCache | None = None,  # the ids go on behind what is in it; it holds `encoded` too
    ) -> ModelOutput:
        name = "decoder_input_ids" if self.decoder else "input_ids"
        ids = token_ids(input_ids, self.embed_tokens.num_embeddings, name=name)
        batch, length = ids.shape
        window, mask, place, keys = None, None, None, length
        if cache is not None:
            window = cache.take_in(attention_mask)
            place, keys = window.place, cache.length
        else:
            mask = key_mask(attention_mask, batch, length, name.replace("input_ids", "attention_mask"))
            mask = causal_mask(length, mask) if self.decoder else mask  # [B, 1, 1 or T, T]
        if self.decoder and cache is None:
            encoded_mask = key_mask(encoded_mask, batch, encoded.shape[1])  # [B, 1, 1, S]
        states = [self.dropout(self.embed_tokens(ids))]  # [B, T, D]
        bias = self.blocks[0].attention.position_bias(length, keys, place)  # [1, H, T, keys]
        for number, block in enumerate(self.blocks):
            caches = (cache.layers[number], cache.encoded[number]) if cache else (None, None)
            states.append(block(states[-1], mask, bias, encoded, encoded_mask, caches, window))
        states[-1] = self.dropout(self.final_layer_norm(states[-1]))
        return ModelOutput(states[-1], collected(states, output_hidden_states))


def _block_names(stack: str) -> dict[str, str]:
    """Paths here -> paths in files, which number the layers of a block."""
    inner = 2 if stack == "decoder" else 1
    ours, theirs = f"{stack}.blocks.*", f"{stack}.block.*.layer"
    names = {
        f"{ours}.attention_norm": f"{theirs}.0.layer_norm",
        f"{ours}.inner_norm": f"{theirs}.{inner}.layer_norm",
    }
    for part in ("q", "k", "v", "o", "relative_attention_bias"):
        names[f"{ours}.attention.{part}"] = f"{theirs}.0.SelfAttention.{part}"
    if stack == "decoder":
        names[f"{ours}.cross_norm"] = f"{theirs}.1.layer_norm"
        for part in ("q", "k", "v", "o"):
            names[f"{ours}.cross.{part}"] = f"{theirs}.1.EncDecAttention.{part}"
    for part in ("wi", "wi_0", "wi_1", "wo"):
        names[f"{ours}.inner.{part}"] = f"{theirs}.{inner}.DenseReluDense.{part}"
    return names


# An entry that old files have and nothing has ever used.
_UNUSED = r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\."


class _T5(PretrainedModel):
    """What the T5 models share."""

    config_class = T5Config
    names = _block_names("encoder") | _block_names("decoder")

    config: T5Config
    shared: nn.Embedding

    def initial_values(self) -> None:
        """Initial values as in the paper's code: scores without a scale need small queries."""
        config, factor = self.config, self.config.initializer_factor
        outer, inner = config.d_model**-0.5, (config.num_heads * config.d_kv) ** -0.5
        for path, module in self.named_modules():
            part = path.rpartition(".")[2]
            stds = {"q": (config.d_model * config.d_kv) ** -0.5, "o": inner, "wo": config.d_ff**-0.5}
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, 0.0, factor * (1.0 if part == "shared" else outer))
            elif isinstance(module, nn.Linear) and part != "lm_head":
                nn.init.normal_(module.weight, 0.0, factor * stds.get(part, outer))
            elif isinstance(module, nn.Linear) and not config.tie_word_embeddings:
                nn.init.normal_(module.weight, 0.0, factor)


class T5EncoderModel(_T5):
    """The encoder alone: `ModelOutput` with states [B, S, D]."""

    ignored = (r"^decoder\.", r"^lm_head\.")

    def build(self, config: T5Config) -> None:
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config, self.shared, decoder=False)

    def forward(
        self,
        input_ids: Any,  # [B, S]
        attention_mask: Any = None,  # [B, S]
        output_hidden_states: bool = False,
    ) -> ModelOutput:
        return self.encoder(input_ids, attention_mask, output_hidden_states=output_hidden_states)  # type: ignore[no-any-return]


class T5Model(_T5):
    """Encoder and decoder without a head: `Seq2SeqOutput` with the decoder's states [B, T, D]."""

    ignored: ClassVar[tuple[str, ...]] = (_UNUSED, r"^lm_head\.")

    def build(self, config: T5Config) -> None:
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config, self.shared, decoder=False)
        self.decoder = T5Stack(config, self.shared, decoder=True)

    def forward(
        self,
        input_ids: Any = None,  # [B, S]
        attention_mask: Any = None,  # [B, S]
        decoder_input_ids: Any = None,  # [B, T]
        decoder_attention_mask: Any = None,  # [B, T]
        encoder_outputs: ModelOutput | None = None,  # of an earlier call of `model.encoder`
        output_hidden_states: bool = False,
    ) -> Seq2SeqOutput:
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids, attention_mask, output_hidden_states=output_hidden_states
            )
        if decoder_input_ids is None:
            raise ArgumentError("decoder_input_ids is missing; pass the answer's tokens so far, or labels")
        encoded = encoder_outputs.last_hidden_state
        found = self.decoder(
            decoder_input_ids, decoder_attention_mask, encoded, attention_mask, output_hidden_states
        )
        states, all_states = found.last_hidden_state, found.hidden_states
        return Seq2SeqOutput(None, None, states, all_states, encoded, encoder_outputs.hidden_states)


class T5ForConditionalGeneration(T5Model, TextModel):
    """Encoder, decoder and scores [B, T, V]: `Seq2SeqOutput`.

    With `labels` [B, T] (-100 for padding) the loss is their mean cross entropy; without `decoder_input_ids`
    those are the labels moved to the right behind the start token.
    """

    ignored = (_UNUSED,)

    def build(self, config: T5Config) -> None:
        super().build(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.shared.weight

    @classmethod
    def adapted(cls, config: Config, entries: Mapping[str, Any]) -> Config:
        """The head is tied unless the files have two matrices, whatever `tie_word_embeddings` says, as in
        transformers 5.
        """
        assert isinstance(config, T5Config)
        head, shared = entries.get("lm_head.weight"), entries.get("shared.weight")
        tied = head is None or (shared is not None and np.array_equal(head, shared))
        return replace(config, tie_word_embeddings=tied)

    def forward(  # type: ignore[override]
        self,
        input_ids: Any = None,  # [B, S]
        attention_mask: Any = None,  # [B, S]
        decoder_input_ids: Any = None,  # [B, T]
        decoder_attention_mask: Any = None,  # [B, T]
        labels: Any = None,  # [B, T]
        encoder_outputs: ModelOutput | None = None,
        output_hidden_states: bool = False,
    ) -> Seq2SeqOutput:
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.shifted(labels)
        found = super().forward(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            output_hidden_states,
        )
        logits = self._scores(found.last_hidden_state)  # [B, T, V]
        loss = None if labels is None else token_loss(logits, labels)
        return found._replace(loss=loss, logits=logits)

    def _scores(self, states: Any) -> Any:
        """[.., D] to [.., V]."""
        if self.config.scale_decoder_outputs:
            states = states * self.config.d_model**-0.5
        return self.lm_head(states)

    def new_cache(self, batch: int, length: int, encoded: int = 0) -> KeyValueCache:
        """A cache for `length` tokens of `batch` answers to texts of `encoded` tokens."""
        config, dtype = self.config, next(self.parameters()).dtype
        layers, heads = config.decoder_layers, config.num_heads
        return KeyValueCache(layers, batch, heads, config.d_kv, length, dtype, encoded)

    def encode(self, input_ids: Any, attention_mask: Any, cache: KeyValueCache) -> None:
        """Put the keys and values of a text [B, S] into the cache, for `next_scores`."""
        states = self.encoder(input_ids, attention_mask).last_hidden_state  # [B, S, D]
        for block, kept in zip(self.decoder.blocks, cache.encoded, strict=True):
            kept.store(*block.cross.project(states))

    def next_scores(
        self, ids: Any, mask: Any, cache: KeyValueCache, encoded_mask: Any = None, *, first: bool = False
    ) -> Any:
        """Scores [B, V] of what follows new tokens [B, T] of the answer, which go into the cache."""
        found = self.decoder(ids, mask, None, encoded_mask, cache=cache)
        return self._scores(found.last_hidden_state[:, -1])

    def shifted(self, labels: Any) -> Any:
        """The decoder's tokens for labels [B, T]: the start token, then the labels but the last."""
        start = self.config.decoder_start_token_id
        if start is None:
            raise ArgumentError(
                "config.decoder_start_token_id is missing, with which labels become decoder_input_ids; "
                "set it (T5 has 0, its padding), or pass decoder_input_ids"
            )
        labels = checked_labels(labels, tuple(getattr(labels, "shape", np.shape(labels))))
        first = full((labels.shape[0], 1), start, dtype=labels.dtype)
        moved = concat([first, labels[:, :-1]], 1)  # [B, T]
        return where(equal(moved, -100), self.config.pad_token_id, moved)
