"""Automatic precision: which ops compute in 16 bits and which in float32 inside `tw.autocast`.

In: an op and a user's tensors, from `ops.core.apply`. Out: the tensors, cast. Only what a user's code applies
is cast, so bodies of composites and gradients stay as they are written; the gradient of a cast casts back,
and parameters keep their type: the float32 weights are the master copy. The lists follow PyTorch's for the
CPU (products in 16 bits, losses in float32), with softmax, norms and reductions in float32 too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from thalweg import types
from thalweg.errors import ArgumentError
from thalweg.graph import Kind, Op
from thalweg.ops.core import Composite, cast, precision
from thalweg.types import DType

# Composites; primitives follow their kind: contractions in 16 bits, reductions in float32.
LOW = frozenset(("linear", "conv", "conv_transpose", "scaled_dot_product_attention"))
EXACT = frozenset(
    (
        *("mean", "var", "std", "softmax", "log_softmax", "logsumexp", "attention_weights"),
        *("layer_norm", "rms_norm", "group_norm", "batch_norm", "batch_norm_inference"),
        *("nll_loss", "cross_entropy", "mse_loss", "l1_loss", "huber_loss", "kl_div"),
        *("binary_cross_entropy", "binary_cross_entropy_with_logits"),
    )
)
_ORDER = frozenset(
    ("max", "min", "argmax", "argmin", "max_pool")
)  # their results are operands: nothing rounds


def adjusted(op: Op, operands: Sequence[Any], low: DType) -> Sequence[Any]:
    """The operands of an op that a user applies, in the types in which it is to compute."""
    composite = isinstance(op, Composite)
    if op.name in LOW or (not composite and op.kind is Kind.CONTRACTION):
        return [cast(x, low) if x.dtype.is_floating and x.dtype.itemsize <= 4 else x for x in operands]
    if op.name in EXACT or (not composite and op.kind is Kind.REDUCTION and op.name not in _ORDER):
        return [
            cast(x, types.float32) if x.dtype.is_floating and x.dtype.itemsize == 2 else x for x in operands
        ]
    return operands


class autocast:
    """Products, convolutions and attention compute in `dtype`; softmax, norms, losses and sums in float32.

    A context manager and a decorator: `with tw.autocast("bfloat16"):`. Parameters keep their type, and so do
    their gradients. Tensors of float64 are left alone. float16 needs a scaled loss: `optim.GradScaler`.
    Around the loss is enough; `opt.minimize(loss)` may stand inside or behind. `tw.autocast(None)` switches
    it off inside. `tw.compile(f, autocast="bfloat16")` does the same for one function.
    """

    def __init__(self, dtype: Any = "bfloat16") -> None:
        self.dtype = None if dtype is None else types.dtype(dtype)
        if self.dtype not in (None, types.bfloat16, types.float16):
            raise ArgumentError(
                f"autocast computes in bfloat16 or float16 (None: not at all), received {dtype!r}"
            )
        self._previous: list[DType | None] = []

    def __enter__(self) -> autocast:
        self._previous.append(precision.low)
        precision.low = self.dtype
        return self

    def __exit__(self, *error: object) -> None:
        precision.low = self._previous.pop()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with autocast(self.dtype):
                return function(*args, **kwargs)

        return inside
