"""Activation functions and the softmax family: composites with PyTorch's semantics and argument names.

16-bit operands are computed in float32 and rounded once. A gradient rule is given where it needs fewer
operations or is more exact than the body's. Called by users, `nn` and the other composites.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError
from thalweg.ops.core import cast, composite, floating, operand
from thalweg.ops.elementwise import (
    abs,
    bitwise_and,
    erf,
    exp,
    expm1,
    greater,
    greater_equal,
    less,
    less_equal,
    log,
    log1p,
    maximum,
    minimum,
    stop_gradient,
    tanh,
    where,
)
from thalweg.ops.movement import reshape, squeeze
from thalweg.ops.reduction import max as reduce_max
from thalweg.ops.reduction import sum as reduce_sum
from thalweg.ops.samples import Sample, functional, samples, special, values
from thalweg.types import normalize_axes, normalize_axis


def wide(x: Any) -> Any:
    """x for a computation of several steps: 16-bit floating point as float32."""
    return cast(x, types.float32) if x.dtype.itemsize == 2 else x


def number(value: Any, name: str) -> float:
    """An attribute that must be a real number, as a float; raises `ArgumentError`."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, (str, bytes)) or math.isnan(found):
        raise ArgumentError(f"{name} must be a number, received {value!r}")
    return found


# ---- rectifiers --------------------------------------------------------------------------------------------


@composite
def _relu(x: Any) -> Any:
    return maximum(x, 0)


@_relu.gradient
def _relu_rule(inputs: Any, outputs: Any, cotangents: Any) -> Sequence[Any]:
    # from the output, so that the input need not be kept; at 0 the gradient is 0, at NaN it passes (as
    # PyTorch)
    return (where(less_equal(outputs[0], 0), 0, cotangents[0]),)


def relu(x: Any) -> Any:
    """max(x, 0); the gradient at 0 is 0."""
    return _relu(x)


@composite
def _leaky_relu(x: Any, *, negative_slope: float) -> Any:
    return where(greater(x, 0), x, x * negative_slope)


@_leaky_relu.gradient
def _leaky_relu_rule(inputs: Any, outputs: Any, cotangents: Any, *, negative_slope: float) -> Sequence[Any]:
    return (where(greater(inputs[0], 0), cotangents[0], cotangents[0] * negative_slope),)


def leaky_relu(x: Any, *, negative_slope: float = 0.01) -> Any:
    """x where it is positive, else `negative_slope` x."""
    return _leaky_relu(floating(x), negative_slope=number(negative_slope, "negative_slope"))


@composite
def _hardtanh(x: Any, *, min_val: float, max_val: float) -> Any:
    return where(less_equal(x, min_val), min_val, where(greater_equal(x, max_val), max_val, x))


@_hardtanh.gradient
def _hardtanh_rule(
    inputs: Any, outputs: Any, cotangents: Any, *, min_val: float, max_val: float
) -> Sequence[Any]:
    x, g = inputs[0], cotangents[0]
    return (where(less_equal(x, min_val), 0, where(greater_equal(x, max_val), 0, g)),)


def hardtanh(x: Any, *, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    """x clipped to [min_val, max_val]; the gradient at the bounds is 0."""
    low, high = number(min_val, "min_val"), number(max_val, "max_val")
    if low > high:
        raise ArgumentError(f"hardtanh needs min_val <= max_val, received {min_val!r} and {max_val!r}")
    return _hardtanh(floating(x), min_val=low, max_val=high)


def relu6(x: Any) -> Any:
    """x clipped to [0, 6]."""
    return hardtanh(x, min_val=0.0, max_val=6.0)


@composite
def _elu(x: Any, *, alpha: float, scale: float) -> Any:
    source = wide(x)
    positive = greater(source, 0)
    below = expm1(where(positive, 0, source)) * (alpha * scale)  # no overflow where it is not used
    return cast(where(positive, source * scale if scale != 1 else source, below), x.dtype)


@_elu.gradient
def _elu_rule(inputs: Any, outputs: Any, cotangents: Any, *, alpha: float, scale: float) -> Sequence[Any]:
    x, g = wide(inputs[0]), wide(cotangents[0])
    positive = greater(x, 0)
    slope = where(positive, scale, exp(where(positive, 0, x)) * (alpha * scale))
    return (cast(g * slope, inputs[0].dtype),)


def elu(x: Any, *, alpha: float = 1.0) -> Any:
    """x where it is positive, else alpha (exp(x) - 1) (Clevert et al., 2015)."""
    return _elu(floating(x), alpha=number(alpha, "alpha"), scale=1.0)


def selu(x: Any) -> Any:
    """1.0507.. elu(x, alpha=1.6732..): keeps mean 0 and variance 1 (Klambauer et al., 2017)."""
    return _elu(floating(x), alpha=1.6732632423543772848170429916717, scale=1.0507009873554804934193349852946)


# ---- sigmoids ----------------------------------------------------------------------------------------------


@composite
def _sigmoid(x: Any) -> Any:
    return cast(1.0 / (exp(-wide(x)) + 1.0), x.dtype)


@_sigmoid.gradient
def _sigmoid_rule(inputs: Any, outputs: Any, cotangents: Any) -> Sequence[Any]:
    y = outputs[0]
    return (cotangents[0] * (1.0 - y) * y,)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return _sigmoid(floating(x))


@composite
def _logsigmoid(x: Any) -> Any:
    source = wide(x)
    return cast(minimum(source, 0) - log1p(exp(-abs(source))), x.dtype)


@_logsigmoid.gradient
def _logsigmoid_rule(inputs: Any, outputs: Any, cotangents: Any) -> Sequence[Any]:
    return (cotangents[0] * sigmoid(-inputs[0]),)


def logsigmoid(x: Any) -> Any:
    """log(sigmoid(x)), exact where the sigmoid itself would vanish."""
    return _logsigmoid(floating(x))


@composite
def _softplus(x: Any, *, beta: float, threshold: float) -> Any:
    source = wide(x)
    scaled = source * beta if beta != 1 else source
    smooth = maximum(scaled, 0) + log1p(exp(-abs(scaled)))
    return cast(where(greater(scaled, threshold), source, smooth / beta if beta != 1 else smooth), x.dtype)


@_softplus.gradient
def _softplus_rule(
    inputs: Any, outputs: Any, cotangents: Any, *, beta: float, threshold: float
) -> Sequence[Any]:
    x, g = inputs[0], cotangents[0]
    scaled = x * beta if beta != 1 else x
    return (where(greater(scaled, threshold), g, g * sigmoid(scaled)),)


def softplus(x: Any, *, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """log(1 + exp(beta x)) / beta; x itself where beta x is above `threshold`."""
    beta = number(beta, "beta")
    if beta == 0:
        raise ArgumentError("softplus needs a beta other than 0")
    return _softplus(floating(x), beta=beta, threshold=number(threshold, "threshold"))


def softsign(x: Any) -> Any:
    """x / (1 + |x|)."""
    x = floating(x)
    return x / (abs(x) + 1.0)


@composite
def _silu(x: Any) -> Any:
    source = wide(x)
    return cast(source / (exp(-source) + 1.0), x.dtype)


@_silu.gradient
def _silu_rule(inputs: Any, outputs: Any, cotangents: Any) -> Sequence[Any]:
    x = wide(inputs[0])
    gate = sigmoid(x)
    return (cast(wide(cotangents[0]) * (gate * (x * (1.0 - gate) + 1.0)), inputs[0].dtype),)


def silu(x: Any) -> Any:
    """x sigmoid(x), also known as swish."""
    return _silu(floating(x))


@composite
def _mish(x: Any) -> Any:
    source = wide(x)
    return cast(source * tanh(softplus(source)), x.dtype)


@_mish.gradient
def _mish_rule(inputs: Any, outputs: Any, cotangents: Any) -> Sequence[Any]:
    x = wide(inputs[0])
    inner = tanh(softplus(x))
    slope = inner + x * sigmoid(x) * (1.0 - inner * inner)
    return (cast(wide(cotangents[0]) * slope, inputs[0].dtype),)


def mish(x: Any) -> Any:
    """x tanh(softplus(x)) (Misra, 2019)."""
    return _mish(floating(x))


@composite
def _hardsigmoid(x: Any) -> Any:
    return where(less_equal(x, -3), 0, where(greater_equal(x, 3), 1, x / 6.0 + 0.5))


def hardsigmoid(x: Any) -> Any:
    """x / 6 + 1/2 clipped to [0, 1]."""
    return _hardsigmoid(floating(x))


@composite
def _hardswish(x: Any) -> Any:
    return where(less_equal(x, -3), 0, where(greater_equal(x, 3), x, x * (x + 3.0) / 6.0))


def hardswish(x: Any) -> Any:
    """x hardsigmoid(x) (Howard et al., 2019)."""
    return _hardswish(floating(x))


# ---- Gaussian error linear unit ----------------------------------------------------------------------------

_TANH_SCALE = math.sqrt(2.0 / math.pi)
_TANH_CUBIC = 0.044715


def _inner(x: Any) -> Any:
    """The argument of tanh in the approximation."""
    return (x + x * x * x * _TANH_CUBIC) * _TANH_SCALE


@composite
def _gelu(x: Any, *, approximate: str) -> Any:
    source = wide(x)
    spread = erf(source * math.sqrt(0.5)) if approximate == "none" else tanh(_inner(source))
    return cast(source * 0.5 * (spread + 1.0), x.dtype)


@composite
def _gelu_gradient(x: Any, g: Any, *, approximate: str) -> Any:
    source = wide(x)
    if approximate == "none":
        below = (erf(source * math.sqrt(0.5)) + 1.0) * 0.5
        slope = below + source * (exp(source * source * -0.5) * (1.0 / math.sqrt(2.0 * math.pi)))
    else:
        spread = tanh(_inner(source))
        steep = (1.0 - spread * spread) * ((source * source * (3.0 * _TANH_CUBIC) + 1.0) * _TANH_SCALE)
        slope = (spread + 1.0) * 0.5 + source * 0.5 * steep
    return cast(wide(g) * slope, x.dtype)


@_gelu.gradient
def _gelu_rule(inputs: Any, outputs: Any, cotangents: Any, *, approximate: str) -> Sequence[Any]:
    return (_gelu_gradient(inputs[0], cotangents[0], approximate=approximate),)


def gelu(x: Any, *, approximate: str = "none") -> Any:
    """x times the standard normal distribution function of x (Hendrycks and Gimpel, 2016).

    `approximate="tanh"` is the older formula x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    """
    if approximate not in ("none", "tanh"):
        raise ArgumentError(f'gelu takes approximate="none" or "tanh", received {approximate!r}')
    return _gelu(floating(x), approximate=approximate)


def glu(x: Any, axis: int = -1) -> Any:
    """The first half of x along `axis` times the sigmoid of the second half (Dauphin et al., 2016)."""
    from thalweg.ops.movement import split

    x = floating(x)
    position = normalize_axis(axis, x.ndim)
    if x.shape[position] % 2:
        raise ArgumentError(f"glu needs an even size on axis {position}, received shape {x.shape}")
    first, second = split(x, 2, axis=position)
    return first * sigmoid(second)


# ---- softmax -----------------------------------------------------------------------------------------------


def _with_axis(x: Any, axis: int) -> tuple[Any, int]:
    """The operand with at least one axis, and the axis counted from the front."""
    x = floating(x)
    return (x, normalize_axis(axis, x.ndim)) if x.ndim else (reshape(x, (1,)), normalize_axis(axis, 1))


def _largest(x: Any, axis: int | tuple[int, ...]) -> Any:
    """The maximum along axes, kept with size 1, as a constant shift: results do not depend on it."""
    return reduce_max(stop_gradient(x), axis, keepdims=True)


@composite
def _softmax(x: Any, *, axis: int) -> Any:
    if x.size == 0:
        return x
    source = wide(x)
    weight = exp(source - _largest(source, axis))
    return cast(weight / reduce_sum(weight, axis, keepdims=True), x.dtype)


@composite
def _softmax_gradient(y: Any, g: Any, *, axis: int) -> Any:
    probability, cotangent = wide(y), wide(g)
    inner = reduce_sum(cotangent * probability, axis, keepdims=True)
    return cast((cotangent - inner) * probability, y.dtype)


@_softmax.gradient
def _softmax_rule(inputs: Any, outputs: Any, cotangents: Any, *, axis: int) -> Sequence[Any]:
    return (_softmax_gradient(outputs[0], cotangents[0], axis=axis),)


def softmax(x: Any, axis: int = -1) -> Any:
    """exp(x) / sum(exp(x)) along `axis`, computed without overflow; a row of -inf gives NaN."""
    source, position = _with_axis(x, axis)
    return reshape(_softmax(source, axis=position), operand(x).shape)


@composite
def _log_softmax(x: Any, *, axis: int) -> Any:
    if x.size == 0:
        return x
    source = wide(x)
    shifted = source - _largest(source, axis)
    return cast(shifted - log(reduce_sum(exp(shifted), axis, keepdims=True)), x.dtype)


@composite
def _log_softmax_gradient(y: Any, g: Any, *, axis: int) -> Any:
    cotangent = wide(g)
    total = reduce_sum(cotangent, axis, keepdims=True)
    return cast(cotangent - exp(wide(y)) * total, y.dtype)


@_log_softmax.gradient
def _log_softmax_rule(inputs: Any, outputs: Any, cotangents: Any, *, axis: int) -> Sequence[Any]:
    return (_log_softmax_gradient(outputs[0], cotangents[0], axis=axis),)


def log_softmax(x: Any, axis: int = -1) -> Any:
    """log(softmax(x)) along `axis`, exact where the softmax itself would vanish."""
    source, position = _with_axis(x, axis)
    return reshape(_log_softmax(source, axis=position), operand(x).shape)


@composite
def _logsumexp(x: Any, *, axis: tuple[int, ...], keepdims: bool) -> Any:
    source = wide(x)
    if x.size == 0:
        total = log(reduce_sum(exp(source), axis, keepdims=True))
    else:
        largest = _largest(source, axis)
        finite = bitwise_and(less(largest, math.inf), greater(largest, -math.inf))
        shift = where(finite, largest, 0)  # rows of -inf give -inf, rows with inf give inf
        total = log(reduce_sum(exp(source - shift), axis, keepdims=True)) + shift
    return cast(total if keepdims else squeeze(total, axis), x.dtype)


@composite
def _logsumexp_gradient(x: Any, y: Any, g: Any, *, axis: tuple[int, ...]) -> Any:
    """g softmax(x), for a result y and a cotangent g of either form of `keepdims`."""
    kept = tuple(1 if position in axis else extent for position, extent in enumerate(x.shape))
    return cast(reshape(wide(g), kept) * exp(wide(x) - reshape(wide(y), kept)), x.dtype)


@_logsumexp.gradient
def _logsumexp_rule(
    inputs: Any, outputs: Any, cotangents: Any, *, axis: tuple[int, ...], keepdims: bool
) -> Sequence[Any]:
    return (_logsumexp_gradient(inputs[0], outputs[0], cotangents[0], axis=axis),)


def logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """log(sum(exp(x))) over `axis` (None: all), computed without overflow; of nothing it is -inf."""
    x = floating(x)
    return _logsumexp(x, axis=normalize_axes(axis, x.ndim), keepdims=bool(keepdims))


# ---- samples -----------------------------------------------------------------------------------------------


def _activation_samples(
    function: Any,
    theirs: str,
    options: Sequence[dict[str, Any]] = ({},),
    kinks: Sequence[float] = (),
    scale: float = 4,
    like_torch: Sequence[str] = ("special", "float16", "bfloat16", "float64"),
) -> Iterator[Sample]:
    """Samples of an elementwise function with the PyTorch function of that name.

    `like_torch` names the inputs on which PyTorch is as exact as we are.
    """

    def compare(**given: Any) -> Any:
        return functional(theirs, **given)

    for given in options:
        x = values(3, 5, low=-8, high=8, avoid=kinks)
        yield Sample(function, (x,), given, torch=compare(**given), tolerance=scale)
        extreme = compare(**given) if "special" in like_torch else None
        yield Sample(function, (special(),), given, torch=extreme, torch_gradient=False, tolerance=scale)
    for shape in ((), (0,), (2, 3, 1)):
        yield Sample(
            function, (values(*shape, low=-4, high=4, avoid=kinks),), torch=compare(), tolerance=scale
        )
    for dtype in ("float16", "bfloat16", "float64"):
        x = values(7, 9, dtype=dtype, low=-6, high=6, avoid=kinks)
        yield Sample(function, (x,), torch=compare() if dtype in like_torch else None, tolerance=scale)
    yield Sample(function, (values(4, dtype="int32", low=-5, high=5),))
    yield Sample(
        function,
        (np.array([[0.0, -0.0], [30.0, -30.0]], np.float32),),
        gradient=False,
        torch=compare(),
        tolerance=scale,
    )


@samples("relu")
def _relu_samples() -> Iterator[Sample]:
    yield from _activation_samples(relu, "relu", kinks=(0.0,))
    with_nan = np.array([1.0, np.nan, -1.0, np.inf, -np.inf], np.float32)
    yield Sample(relu, (with_nan,), torch=functional("relu"))


@samples("leaky_relu")
def _leaky_relu_samples() -> Iterator[Sample]:
    options: tuple[dict[str, Any], ...] = ({}, {"negative_slope": 0.3}, {"negative_slope": -0.5})
    yield from _activation_samples(leaky_relu, "leaky_relu", options, kinks=(0.0,))
    yield Sample(leaky_relu, (values(3),), {"negative_slope": "0.1"}, error=ArgumentError, message="number")


@samples("hardtanh")
def _hardtanh_samples() -> Iterator[Sample]:
    options: tuple[dict[str, Any], ...] = ({}, {"min_val": -2.0, "max_val": 0.5})
    yield from _activation_samples(hardtanh, "hardtanh", options, kinks=(-2.0, -1.0, 0.5, 1.0))
    yield from _activation_samples(relu6, "relu6", kinks=(0.0, 6.0))
    bounds = np.array([-1.0, 1.0, 0.0], np.float32)
    yield Sample(hardtanh, (bounds,), gradient=False, torch=functional("hardtanh"))
    yield Sample(hardtanh, (bounds,), {"min_val": 2.0}, error=ArgumentError, message="min_val <= max_val")


@samples("elu")
def _elu_samples() -> Iterator[Sample]:
    yield from _activation_samples(elu, "elu", ({}, {"alpha": 0.7}), kinks=(0.0,))
    yield from _activation_samples(selu, "selu", kinks=(0.0,))


@samples("sigmoid")
def _sigmoid_samples() -> Iterator[Sample]:
    yield from _activation_samples(sigmoid, "sigmoid")
    yield Sample(sigmoid, (values(5, low=-90, high=90),), torch=functional("sigmoid"), tolerance=4)


@samples("logsigmoid")
def _logsigmoid_samples() -> Iterator[Sample]:
    yield from _activation_samples(logsigmoid, "logsigmoid")


@samples("softplus")
def _softplus_samples() -> Iterator[Sample]:
    yield from _activation_samples(
        softplus, "softplus", ({}, {"beta": 2.0}, {"beta": 0.5, "threshold": 1.0}), kinks=(2.0,)
    )
    yield Sample(softplus, (values(3),), {"beta": 0}, error=ArgumentError, message="beta")


@samples("silu")
def _silu_samples() -> Iterator[Sample]:
    yield from _activation_samples(silu, "silu")


@samples("mish")
def _mish_samples() -> Iterator[Sample]:
    yield from _activation_samples(mish, "mish")


@samples("hardsigmoid")
def _hardsigmoid_samples() -> Iterator[Sample]:
    yield from _activation_samples(
        hardsigmoid, "hardsigmoid", kinks=(-3.0, 3.0), like_torch=("special", "float16", "bfloat16")
    )


@samples("hardswish")
def _hardswish_samples() -> Iterator[Sample]:
    yield from _activation_samples(
        hardswish, "hardswish", kinks=(-3.0, 3.0), like_torch=("float16", "bfloat16", "float64")
    )


@samples("gelu")
def _gelu_samples() -> Iterator[Sample]:
    yield from _activation_samples(
        gelu, "gelu", ({}, {"approximate": "tanh"}), scale=8, like_torch=("float16", "bfloat16", "float64")
    )
    yield Sample(gelu, (values(3),), {"approximate": "erf"}, error=ArgumentError, message='"tanh"')


@samples("divide")
def _softsign_samples() -> Iterator[Sample]:
    yield Sample(softsign, (values(3, 5, avoid=(0.0,)),), torch=functional("softsign"))


@samples("multiply")
def _glu_samples() -> Iterator[Sample]:
    yield Sample(glu, (values(3, 6),), torch=functional("glu"))
    yield Sample(glu, (values(4, 3),), {"axis": 0}, torch=functional("glu", 0))
    yield Sample(glu, (values(4, 3),), error=ArgumentError, message="even size")


def _softmax_samples_of(function: Any, name: str) -> Iterator[Sample]:
    def compare(axis: int = -1) -> Any:
        return lambda torch, x: getattr(torch, name)(x, axis)

    for shape, axis in (
        ((5,), 0),
        ((3, 5), 1),
        ((3, 5), 0),
        ((2, 3, 4), -2),
        ((1, 1), 0),
        ((), -1),
        ((0, 3), 1),
        ((3, 0), 1),
    ):
        theirs = compare(axis) if 0 not in shape else None
        yield Sample(function, (values(*shape),), {"axis": axis}, torch=theirs, tolerance=2)
    yield Sample(function, (values(9, 33, low=-40, high=40),), torch=compare(), tolerance=4)
    yield Sample(function, (values(3, 5, low=9000, high=9100),), torch=compare(), tolerance=2, gradient=False)
    infinite = np.array([[-np.inf] * 3, [np.inf, 1, 2], [-np.inf, 1, 2], [np.nan, 1, 2]], np.float32)
    yield Sample(function, (infinite,), torch=compare())
    for dtype in ("float16", "bfloat16", "float64"):
        yield Sample(function, (values(3, 10, dtype=dtype),), torch=compare(), tolerance=2)
    yield Sample(function, (values(3, 4, dtype="int32", low=-3, high=3),))
    yield Sample(function, (values(3, 4),), {"axis": 2}, error=ArgumentError, message="expected -2 to 1")


@samples("softmax")
def _softmax_samples() -> Iterator[Sample]:
    yield from _softmax_samples_of(softmax, "softmax")


@samples("log_softmax")
def _log_softmax_samples() -> Iterator[Sample]:
    yield from _softmax_samples_of(log_softmax, "log_softmax")


@samples("logsumexp")
def _logsumexp_samples() -> Iterator[Sample]:
    def compare(axis: Any, keepdims: bool = False) -> Any:
        return lambda torch, x: torch.logsumexp(x, axis, keepdims)

    for shape, axis in (((5,), 0), ((3, 5), 1), ((3, 5), (0, 1)), ((2, 3, 4), (0, -1)), ((0, 3), 1)):
        yield Sample(logsumexp, (values(*shape),), {"axis": axis}, torch=compare(axis), tolerance=2)
        yield Sample(
            logsumexp,
            (values(*shape),),
            {"axis": axis, "keepdims": True},
            torch=compare(axis, True),
            tolerance=2,
        )
    yield Sample(logsumexp, (values(),), torch=compare(()))
    yield Sample(logsumexp, (values(3, 0),), {"axis": 1}, gradient=False, torch=compare(1))
    infinite = np.array([[-np.inf] * 3, [np.inf, 1, 2], [-np.inf, 1, 2], [np.nan, 1, 2]], np.float32)
    yield Sample(logsumexp, (infinite,), {"axis": 1}, torch=compare(1))
    for dtype in ("float16", "bfloat16", "float64"):
        yield Sample(logsumexp, (values(3, 10, dtype=dtype),), {"axis": 1}, torch=compare(1), tolerance=2)
