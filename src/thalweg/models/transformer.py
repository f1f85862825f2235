"""What the Transformer models share: attention in a few lines, masks, checks of arguments, results.

In: hidden states [B, T, D] and masks as users give them. Out: hidden states, boolean masks, named tuples.
Called by `models.bert`, `models.t5` and `models.gpt`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from thalweg import nn, types
from thalweg.errors import ArgumentError, DTypeError, IndexRangeError
from thalweg.nn import functional
from thalweg.nn.layer import refuse_shape
from thalweg.ops.core import operand
from thalweg.ops.elementwise import logical_and, where
from thalweg.ops.movement import broadcast_to
from thalweg.ops.sources import arange
from thalweg.tensor.tensor import Tensor

# ---- results: the names of Hugging Face --------------------------------------------------------------------


class ModelOutput(NamedTuple):
    """Of a model without a head: states [B, T, D]; all of them (embeddings first) where asked for; the pooled
    first token [B, D].
    """

    last_hidden_state: Any
    hidden_states: tuple[Any, ...] | None = None
    pooler_output: Any = None


class HeadOutput(NamedTuple):
    """Of a model with a head: the loss where labels were given, and scores."""

    loss: Any
    logits: Any
    hidden_states: tuple[Any, ...] | None = None


class Seq2SeqOutput(NamedTuple):
    """Of an encoder-decoder; `logits` [B, T, vocabulary] (None without a head)."""

    loss: Any
    logits: Any
    last_hidden_state: Any
    decoder_hidden_states: tuple[Any, ...] | None = None
    encoder_last_hidden_state: Any = None
    encoder_hidden_states: tuple[Any, ...] | None = None


# ---- attention ---------------------------------------------------------------------------------------------


CAUSAL = "causal"  # a mask that needs no tensor: each query sees itself and what is before it


def attend(
    query: Any,  # [B, H, T, d]
    key: Any,  # [B, G, S, d], G groups of H / G heads
    value: Any,  # [B, G, S, d]
    mask: Any = None,  # CAUSAL, or bool, broadcasts to [B, H, T, S]; False: not seen
    bias: Any = None,  # added to the scores, broadcasts to [B, H, T, S]
    scale: float | None = None,  # of the scores; 1 / sqrt(d) where it is None
    dropout: float = 0.0,  # of the weights
) -> Any:
    """softmax(scale query key^T + bias) value with the heads joined: [B, T, H * d].

    A query that may see nothing sees everything alike (such rows belong to padding). Vaswani et al., 2017;
    groups: Ainslie et al., 2023.
    """
    batch, heads, length, size = query.shape
    causal = isinstance(mask, str)
    if mask is not None and not causal:
        # so low that adding a score changes nothing, and finite: rows of nothing else become uniform
        hidden = where(mask, 0.0, -65504.0 if query.dtype is types.float16 else -3.0e38)
        bias = hidden if bias is None else bias + hidden
    mixed = functional.scaled_dot_product_attention(
        query, key, value, bias, dropout, causal, scale, enable_gqa=heads != key.shape[1]
    )
    return mixed.swapaxes(1, 2).reshape(batch, length, heads * size)


def split_heads(x: Any, heads: int) -> Any:
    """[B, T, H * d] to [B, H, T, d]."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def key_mask(attention_mask: Any, batch: int, length: int, name: str = "attention_mask") -> Any:
    """`attention_mask` [B, S] (or [B, T, S] for each query), 0 or False where nothing is to be seen, as a
    boolean [B, 1, 1 or T, S]; None for None.
    """
    if attention_mask is None:
        return None
    mask = operand(attention_mask)
    wrong = mask.ndim not in (2, 3) or mask.shape[0] != batch or mask.shape[-1] != length
    if wrong or (mask.ndim == 3 and mask.shape[1] not in (1, length)):
        refuse_shape(
            f"{name} has shape {tuple(mask.shape)}; expected [batch, length] = [{batch}, {length}], 1 for "
            f"tokens and 0 for padding (or [{batch}, {length}, {length}]: for each token what it may see)"
        )
    mask = mask if mask.dtype.is_bool else mask != 0
    return mask.reshape(batch, 1, 1 if mask.ndim == 2 else mask.shape[1], length)


def causal_mask(length: int, mask: Any = None) -> Any:
    """What queries may see of as many keys [.., T, T]: themselves and what is before them, within `mask`."""
    if mask is None:
        return CAUSAL
    positions = arange(length)
    causal = positions.reshape(length, 1) >= positions.reshape(1, length)  # [T, T]
    shape = (mask.shape[0], 1, length, length)
    return logical_and(broadcast_to(causal, shape), broadcast_to(mask, shape))


# ---- arguments ---------------------------------------------------------------------------------------------


def token_ids(ids: Any, vocabulary: int, longest: int | None = None, name: str = "input_ids") -> Any:
    """`ids` as an integer operand [B, T] with tokens of the vocabulary and at most `longest` positions.

    Where the values are not known yet, a token outside raises `IndexRangeError` when the program runs.
    """
    if ids is None:
        raise ArgumentError(f"{name} is missing; pass token numbers [batch, length]")
    ids = operand(np.asarray(ids) if isinstance(ids, (list, tuple)) else ids)
    if not ids.dtype.is_integer:
        raise DTypeError(
            f"{name} must hold integers, received {ids.dtype}; token numbers come from a tokenizer"
        )
    if ids.ndim != 2 or 0 in ids.shape:
        refuse_shape(
            f"{name} has shape {tuple(ids.shape)}; expected [batch, length]"
            + ("; write x.unsqueeze(0) for one sequence" if ids.ndim == 1 else "")
        )
    if longest is not None and ids.shape[1] > longest:
        refuse_shape(
            f"{name} has {ids.shape[1]} tokens; the model has {longest} positions. Cut the text, or split it"
        )
    if isinstance(ids, Tensor) and not ids.is_traced:
        check_range(ids.numpy(), vocabulary, name, "token")
    return ids


def check_range(values: Any, count: int, name: str, what: str) -> None:
    """Raise `IndexRangeError` for the first of `values` that is not from 0 to `count` - 1."""
    outside = (values < 0) | (values >= count)
    if outside.any():
        place = tuple(map(int, np.argwhere(outside)[0]))
        raise IndexRangeError(
            f"{name}: {what} {int(values[place])} at position {place} is out of range; the model knows 0 to "
            f"{count - 1}"
        )


def index_ids(ids: Any, count: int, shape: tuple[int, ...], name: str) -> Any:
    """Position or type numbers, of `shape` or broadcast to it from [T] or [1, T]."""
    ids = operand(np.asarray(ids) if isinstance(ids, (list, tuple)) else ids)
    if not ids.dtype.is_integer:
        raise DTypeError(f"{name} must hold integers, received {ids.dtype}")
    if ids.shape not in (shape, (1, shape[1]), shape[1:]):
        refuse_shape(f"{name} has shape {tuple(ids.shape)}; expected that of input_ids, {shape}")
    if isinstance(ids, Tensor) and not ids.is_traced:
        check_range(ids.numpy(), count, name, "number")
    return broadcast_to(ids, shape)


def checked_labels(labels: Any, shape: tuple[int, ...]) -> Any:
    """Integer labels of `shape`; -100 marks what does not count."""
    labels = operand(np.asarray(labels) if isinstance(labels, (list, tuple)) else labels)
    if not labels.dtype.is_integer:
        raise DTypeError(f"labels must hold integers here, received {labels.dtype}")
    if labels.shape != shape:
        refuse_shape(
            f"labels has shape {tuple(labels.shape)}; expected {shape}, -100 for what does not count"
        )
    return labels


def token_loss(logits: Any, labels: Any) -> Any:
    """Mean cross entropy of scores [B, T, V] for labels [B, T] over the labels that are not -100."""
    labels = checked_labels(labels, tuple(logits.shape[:2]))
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def next_token_loss(logits: Any, labels: Any) -> Any:
    """Mean cross entropy of the scores [B, T, V] of each token for the label [B, T] of the following one."""
    labels = checked_labels(labels, tuple(logits.shape[:2]))
    if labels.shape[1] < 2:
        refuse_shape("labels has one token for each sequence: there is no next token, write at least two")
    return functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))


# ---- parts -------------------------------------------------------------------------------------------------


def _tanh_gelu(x: Any) -> Any:
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": functional.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "relu": functional.relu,
    "silu": functional.silu,
    "swish": functional.silu,
    "tanh": functional.tanh,
}


def activation(name: str) -> Callable[[Any], Any]:
    """The activation function of that name in a `config.json`."""
    if name not in ACTIVATIONS:
        raise ArgumentError(f"unknown activation {name!r}; expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def collected(states: Sequence[Any], wanted: bool) -> tuple[Any, ...] | None:
    """All hidden states as a tuple where they are wanted."""
    return tuple(states) if wanted else None


def normal_weights(model: nn.Module, std: float) -> None:
    """Weights of linear layers and embeddings normal around 0, biases 0; norms stay as they are."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, 0.0, std)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            rows = np.array(module.weight.numpy())
            rows[module.padding_idx] = 0
            module.weight.replace(rows)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
