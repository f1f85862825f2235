"""Models with weights of 8 or 4 bits: `tw.quantize(model, "int8")`.

In: a trained model. Out: the same model whose linear layers, and embeddings that share their weight with one,
hold whole numbers and scales instead; formats and arithmetic are those of `ops.quantised`. Called by users.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, TraceError
from thalweg.nn.containers import replace_modules
from thalweg.nn.embedding import Embedding
from thalweg.nn.layer import refuse_shape
from thalweg.nn.linear import Linear
from thalweg.nn.module import Module
from thalweg.ops.core import cast, operand
from thalweg.ops.quantised import quantise_blocks, quantise_rows, quantised_embedding, quantised_linear
from thalweg.tensor.state import Buffer
from thalweg.tensor.trace import tracing

M = TypeVar("M", bound=Module)
Array = np.ndarray[Any, Any]
_PACKERS = {"int8": quantise_rows, "int4": quantise_blocks}


class QuantisedWeight(Module):
    """A matrix [rows, columns] of whole numbers with scales; the base of the layers below.

    `weight` and `scale` are buffers: they are saved and loaded as they are, and not trained.
    """

    weight: Buffer
    scale: Buffer

    def hold(self, packed: tuple[Buffer, Buffer]) -> None:
        """Let `packed` be the weight; layers that share a weight hold the same buffers."""
        self.weight, self.scale = packed

    @property
    def bits(self) -> int:
        """4 or 8."""
        return 4 if self.weight.dtype is types.uint8 else 8


class QuantisedLinear(QuantisedWeight):
    """`nn.Linear` with a weight of 8 or 4 bits: [.., in_features] to [.., out_features].

    The gradient by the input is that of the weight's values; the weight itself is not trained.
    """

    def __init__(self, layer: Linear, packed: tuple[Buffer, Buffer]) -> None:
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.hold(packed)
        self.bias = layer.bias

    def forward(self, x: Any) -> Any:
        x = operand(x)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            refuse_shape(
                f"QuantisedLinear(in_features={self.in_features}, out_features={self.out_features}) needs an "
                f"input with {self.in_features} elements on its last axis, received shape {tuple(x.shape)}"
            )
        return quantised_linear(x, self.weight, self.scale, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, bits={self.bits}"
        )


class QuantisedEmbedding(QuantisedWeight):
    """`nn.Embedding` that shares its table with a quantised linear layer: [..] to [.., embedding_dim]."""

    def __init__(self, layer: Embedding, packed: tuple[Buffer, Buffer]) -> None:
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim
        self.dtype = layer.weight.dtype  # of the result
        self.hold(packed)

    def forward(self, x: Any) -> Any:
        return cast(quantised_embedding(x, self.weight, self.scale, self.embedding_dim), self.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}"


def quantize(model: M, kind: str = "int8", *, skip: Collection[str] = ()) -> M:
    """The model with linear layers of 8 bits ("int8", a scale per row) or 4 ("int4", one per 32 numbers).

    In place; also embeddings that share their weight with a linear layer. What else there is (norms, biases,
    other embeddings) stays; convert it before, with `model.to(dtype)`. `skip`: paths of layers, as in
    `model.named_modules()`, that stay too. To load saved quantised weights, build the model, quantise it in
    the same way, and `load`; `from_pretrained` does so by itself.
    Raises `ArgumentError` for an unknown kind, a path that is no layer, or a model without linear layers.
    """
    if tracing():
        raise TraceError("quantize cannot be called inside a compiled function; quantise the model before")
    if kind not in _PACKERS:
        raise ArgumentError(f'quantize knows "int8" and "int4", received {kind!r}')
    if isinstance(skip, str):
        skip = (skip,)
    paths = dict(model.named_modules())
    unknown = [path for path in skip if not isinstance(paths.get(path), (Linear, Embedding))]
    if unknown:
        known = [path for path, module in paths.items() if isinstance(module, Linear)]
        raise ArgumentError(
            f"quantize: skip names {', '.join(map(repr, unknown))}, which is no linear layer or embedding; "
            f"there are {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
        )
    kept = {id(paths[path].weight) for path in skip}
    linear = [module for module in paths.values() if type(module) is Linear and id(module.weight) not in kept]
    if not linear or isinstance(model, Linear):
        raise ArgumentError(
            f"quantize: {type(model).__name__} has no linear layer to replace inside; quantise the model "
            "that contains the layers"
        )
    packed = {}
    for layer in linear:
        if id(layer.weight) not in packed:
            weight, scale = _PACKERS[kind](layer.weight.numpy())
            packed[id(layer.weight)] = (Buffer(weight), Buffer(scale))
    new: dict[int, Module] = {id(layer): QuantisedLinear(layer, packed[id(layer.weight)]) for layer in linear}
    for module in paths.values():
        if type(module) is Embedding and id(module.weight) in packed:
            new[id(module)] = QuantisedEmbedding(module, packed[id(module.weight)])
    for module in new.values():
        module.training = model.training
    replace_modules(model, new)
    return model
