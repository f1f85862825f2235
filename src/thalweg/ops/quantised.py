"""Products with weights of 8 and 4 bits: what `tw.quantize` makes of linear layers and embeddings.

In: floating-point rows and an integer weight with its scales. Out: floating-point rows. Activations are
rounded to 8 bits too, block by block, so that a product is a sum of whole numbers, which is exact: in NumPy,
and on every machine in whatever order. The C backend takes `quantised_linear` whole. Called by
`nn.quantised`.

Formats of a weight [out, in] (scales per row as in Dettmers et al., 2022; per block as in Frantar et al.,
2022):

* 8 bits: int8 [out, in] with one float32 scale per row, [out].
* 4 bits: two numbers per byte, uint8 [out, groups * 64] with one bfloat16 scale per 32 numbers,
  [out, groups * 4]. A group is 128 numbers of a row (the last one filled up with zeros): byte j has number j
  in its low and number 64 + j in its high half, both with 8 added.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import DTypeError, ShapeError
from thalweg.ops.activations import wide
from thalweg.ops.contraction import MatMul
from thalweg.ops.core import apply, cast, composite, floating, operand, require
from thalweg.ops.elementwise import abs as absolute
from thalweg.ops.elementwise import bitwise_and, bitwise_right_shift, equal, where
from thalweg.ops.elementwise import round as rounded
from thalweg.ops.indexing import take
from thalweg.ops.movement import concat, expand_dims, pad, reshape, slice_axis, transpose
from thalweg.ops.reduction import max as reduce_max
from thalweg.ops.reduction import sum as reduce_sum
from thalweg.ops.samples import Sample, samples, values

Array = np.ndarray[Any, Any]

BLOCK = 32  # numbers of 4 bits that share a scale
GROUP = 128  # numbers of 4 bits that share 64 bytes
BYTES = 64  # of a step of a sum; activations for weights of 8 bits have one scale per so many numbers
LARGEST = 127  # of an activation


def groups_of(size: int) -> int:
    """Groups of a row of `size` numbers of 4 bits."""
    return -(-size // GROUP)


# ---- weights as arrays -------------------------------------------------------------------------------------


def quantise_rows(weight: Array) -> tuple[Array, Array]:
    """A weight [out, in] as int8 with one float32 scale per row; the largest number of a row becomes 127."""
    exact = np.asarray(weight, np.float32)
    scale = (np.abs(exact).max(1, initial=0) / LARGEST).astype(np.float32)
    found = np.rint(exact / np.where(scale > 0, scale, 1)[:, None])
    return found.astype(np.int8), scale


def quantise_blocks(weight: Array) -> tuple[Array, Array]:
    """A weight [out, in] with two numbers of -8 to 7 per byte, and bfloat16 scales, one per 32 numbers.

    The number of largest size becomes -8. Numbers are rounded by the scale as it is stored.
    """
    exact = np.asarray(weight, np.float32)
    rows, size = exact.shape
    groups = groups_of(size)
    padded = np.pad(exact, ((0, 0), (0, groups * GROUP - size))).reshape(rows, -1, BLOCK)
    place = (
        np.abs(padded).argmax(-1)[..., None] if padded.size else np.zeros((*padded.shape[:2], 1), np.int64)
    )
    largest = np.take_along_axis(padded, place, -1)[..., 0]
    scale = (largest / -8).astype(types.bfloat16.numpy)
    divisor = scale.astype(np.float32)
    divisor = np.where(divisor == 0, 1, divisor)[..., None]
    whole = (np.clip(np.rint(padded / divisor), -8, 7) + 8).astype(np.uint8)
    halves = whole.reshape(rows, groups, 2, BYTES)
    packed = halves[:, :, 0] | halves[:, :, 1] << 4
    return packed.reshape(rows, groups * BYTES), scale.reshape(rows, groups * GROUP // BLOCK)


# ---- weights as operands -----------------------------------------------------------------------------------


def _numbers(weight: Any, size: int) -> Any:
    """The whole numbers of rows of a weight as float32, filled up to `size`: [.., blocks, block]."""
    lead = weight.shape[:-1]
    if weight.dtype is types.int8:
        missing = size - weight.shape[-1]
        found = pad(weight, [(0, 0)] * len(lead) + [(0, missing)]) if missing else weight
        return cast(reshape(found, (*lead, size // BYTES, BYTES)), types.float32)
    halves = reshape(weight, (*lead, groups_of(size), 1, BYTES))
    low, high = bitwise_and(halves, 15), bitwise_right_shift(halves, 4)
    found = reshape(concat([low, high], len(lead) + 1), (*lead, groups_of(size) * GROUP // BLOCK, BLOCK))
    return cast(found, types.float32) - 8.0


def dequantised(weight: Any, scale: Any, size: int) -> Any:
    """Rows of a quantised weight as float32: [.., size]."""
    weight, scale = operand(weight), cast(operand(scale), types.float32)
    lead = weight.shape[:-1]
    if weight.dtype is types.int8:
        return cast(weight, types.float32) * expand_dims(scale, -1)
    found = _numbers(weight, size) * expand_dims(scale, -1)
    return slice_axis(reshape(found, (*lead, groups_of(size) * GROUP)), len(lead), 0, size)


def quantised_embedding(indices: Any, weight: Any, scale: Any, size: int) -> Any:
    """Row `indices[..]` of a quantised table as float32: [.., size]; `IndexRangeError` for one outside."""
    return dequantised(take(operand(weight), indices, 0), take(operand(scale), indices, 0), size)


# ---- the product -------------------------------------------------------------------------------------------


@composite
def _activation_bytes(x: Any, *, block: int) -> tuple[Any, Any, Any]:
    """Rows [rows, in] as int8 [rows, padded], and for each block the step and the sum of its bytes."""
    rows, size = x.shape
    padded = -(-size // (GROUP if block == BLOCK else BYTES)) * (GROUP if block == BLOCK else BYTES)
    blocks = reshape(pad(wide(x), [(0, 0), (0, padded - size)]), (rows, padded // block, block))
    largest = reduce_max(absolute(blocks), -1, keepdims=True)
    inverse = float(LARGEST) / where(equal(largest, 0), 1.0, largest)
    whole = rounded(blocks * inverse)
    step = reshape(largest, (rows, padded // block)) * (1.0 / LARGEST)
    return reshape(cast(whole, types.int8), (rows, padded)), step, reduce_sum(whole, -1)


@composite
def _byte_product(bytes_: Any, step: Any, total: Any, weight: Any, scale: Any, bias: Any = None) -> Any:
    """Rows as `activation_bytes` gives them times a weight [out, in], as float32 [rows, out].

    The sums of the bytes are for kernels whose instruction wants unsigned numbers on one side.
    """
    rows, padded = bytes_.shape
    block = padded // step.shape[1] if step.shape[1] else BYTES
    # sums of at most 64 products of numbers of 8 bits: exact in float32
    left = transpose(cast(reshape(bytes_, (rows, padded // block, block)), types.float32), (1, 0, 2))
    right = transpose(_numbers(weight, padded), (1, 0, 2))
    products = apply(MatMul(False, True), left, right) * expand_dims(transpose(step, (1, 0)), 2)
    own = cast(scale, types.float32)  # [blocks, rows, out] until here
    result = reduce_sum(products * expand_dims(transpose(own, (1, 0)), 1) if own.ndim == 2 else products, 0)
    result = result * own if own.ndim == 1 else result
    return result if bias is None else result + wide(bias)


@composite
def _quantised_linear(x: Any, weight: Any, scale: Any, bias: Any = None) -> Any:
    _check(x, weight, scale, bias)
    rows = reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    block = BLOCK if weight.dtype is types.uint8 else BYTES
    found = _byte_product(*_activation_bytes(rows, block=block), weight, scale, bias)
    return cast(reshape(found, (*x.shape[:-1], weight.shape[0])), x.dtype)


def _check(x: Any, weight: Any, scale: Any, bias: Any) -> None:
    if weight.dtype not in (types.int8, types.uint8):
        raise DTypeError(
            f"quantised_linear needs a weight of int8 or uint8 (4 bits), received {weight.dtype}"
        )
    require(
        x.ndim >= 1 and weight.ndim == 2,
        f"quantised_linear needs x [.., in] and a weight of two axes, received {x.shape} and {weight.shape}",
    )
    groups = groups_of(x.shape[-1])
    four = weight.dtype is types.uint8
    columns = groups * BYTES if four else x.shape[-1]
    expected = (weight.shape[0], groups * GROUP // BLOCK) if four else (weight.shape[0],)
    require(
        weight.shape[1] == columns and scale.shape == expected,
        f"quantised_linear: for {x.shape[-1]} inputs the weight must have {columns} columns and the scale "
        f"the shape {expected}, received {weight.shape} and {scale.shape}",
    )
    require(
        bias is None or bias.shape == weight.shape[:1],
        f"quantised_linear needs a bias of shape {weight.shape[:1]}, received "
        f"{None if bias is None else bias.shape}",
    )


@_quantised_linear.gradient
def _quantised_linear_gradient(inputs: Any, outputs: Any, cotangents: Any) -> Sequence[Any]:
    """Rounding counts as the identity (Bengio et al., 2013); the weight stays as it is."""
    x, weight, scale, bias = inputs
    g = wide(cotangents[0])
    rows = reshape(g, (math.prod(g.shape[:-1]), g.shape[-1]))
    by_x = apply(MatMul(), rows, dequantised(weight, scale, x.shape[-1]))
    by_bias = None if bias is None else cast(reduce_sum(rows, 0), bias.dtype)
    return (cast(reshape(by_x, x.shape), x.dtype), None, None, by_bias)


def quantised_linear(x: Any, weight: Any, scale: Any, bias: Any = None) -> Any:
    """x weight^T + bias with a weight of 8 or 4 bits (formats above): [.., in] to [.., out], of x's type.

    Activations are rounded to 8 bits with one scale per 64 (4-bit weights: 32) of them. The gradient by `x`
    is that of the weight's values. Raises `ShapeError` or `DTypeError`.
    """
    x = floating(x)
    double = x.dtype is types.float64
    found = _quantised_linear(cast(x, types.float32) if double else x, weight, scale, bias)
    return cast(found, types.float64) if double else found


# ---- samples -----------------------------------------------------------------------------------------------


@samples("quantised_linear")
def _quantised_linear_samples() -> Iterator[Sample]:
    sizes = (
        ((1, 64), 5),
        ((3, 100), 17),
        ((2, 2, 130), 33),
        ((20, 40), 18),
        ((1, 300), 1),
        ((64,), 3),
        ((0, 4), 2),
    )
    for number, (shape, rows) in enumerate(sizes):
        for pack in (quantise_rows, quantise_blocks):
            weight, scale = pack(values(rows, shape[-1], seed=1))
            bias = [values(rows, seed=2)] if number % 2 else []
            yield Sample(quantised_linear, (values(*shape), weight, scale, *bias), gradient=False)
    weight, scale = quantise_rows(values(7, 70, seed=1))
    for dtype in ("bfloat16", "float16"):
        yield Sample(
            quantised_linear, (values(3, 70, dtype=dtype), weight, scale), gradient=False, tolerance=4
        )
    yield Sample(quantised_linear, (np.zeros((2, 70), np.float32), weight, scale), gradient=False)
    yield Sample(quantised_linear, (values(3, 69), weight, scale), error=ShapeError, message="69 inputs")
    yield Sample(quantised_linear, (values(3, 70), weight, scale[:3]), error=ShapeError)
    yield Sample(quantised_linear, (values(3, 70), weight, scale, scale[:3]), error=ShapeError)
    yield Sample(quantised_linear, (values(3, 70), values(7, 70), scale), error=DTypeError, message="int8")


@samples("activation_bytes")
def _bytes_samples() -> Iterator[Sample]:
    for block in (BLOCK, BYTES):
        for shape in ((1, 64), (3, 100), (2, 7), (0, 5)):
            yield Sample(lambda x, b=block: _activation_bytes(x, block=b), (values(*shape),), gradient=False)


@samples("byte_product")
def _product_samples() -> Iterator[Sample]:
    for block, pack in ((BLOCK, quantise_blocks), (BYTES, quantise_rows)):
        for rows, size, outputs in ((1, 64, 3), (3, 100, 17), (2, 7, 1), (18, 130, 16)):
            yield Sample(
                lambda x, w, s, b=block: _byte_product(*_activation_bytes(x, block=b), w, s),
                (values(rows, size), *pack(values(outputs, size, seed=1))),
                gradient=False,
            )
