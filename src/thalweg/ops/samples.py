"""Test samples, declared beside each op: what the generated tests run through every backend.

A generator registered with `@samples("sum")` yields `Sample`s; nothing is built at import. The test harness,
the comparison of the compiled program and the comparison with PyTorch read them through `all_samples()`.

Every op needs at least eight samples without `error`, among them (where they make sense) 0-d, empty, odd
sizes, broadcasts, NaN, infinities, -0.0 and several element types, and one with `error` for each kind of bad
input.

    @samples("sum")
    def _sum_samples() -> Iterator[Sample]:
        yield Sample(sum, (values(3, 5),), {"axis": 1}, torch=lambda torch, x: torch.sum(x, 1))
        yield Sample(sum, (values(3),), {"axis": 4}, error=ArgumentError)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thalweg import types

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Sample:
    """One call of an op function on fixed arrays.

    `function(*operands, **attributes)` builds the op from graph values or tensors of the types of `inputs`
    and gives one result or a tuple.
    """

    function: Callable[..., Any]
    inputs: Sequence[Any] = ()  # arrays, or what becomes one
    attributes: Mapping[str, Any] = field(default_factory=dict)
    # check gradients to second order against finite differences in float64. None: where the inputs are
    # float32 or float64 and finite. The inputs must be away from kinks and jumps; then say nothing, else
    # False.
    gradient: bool | None = None
    # positions of floating inputs that the function takes as constants on purpose (and says so)
    constants: tuple[int, ...] = ()
    # the same in PyTorch, called as `torch(torch_module, *tensors)`; values and gradients are compared
    torch: Callable[..., Any] | None = None
    torch_gradient: bool = True  # False: PyTorch has no gradient for this, or defines it otherwise (say why)
    # factor on the tolerance that a comparison uses for the result's element type
    tolerance: float = 1.0
    # the exception that tracing or running this sample must raise, and words that its message must contain
    error: type[Exception] | None = None
    message: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(np.asarray(entry) for entry in self.inputs))

    def build(self, *operands: Any) -> tuple[Any, ...]:
        """The results as a tuple, for operands in place of the arrays."""
        result = self.function(*operands, **self.attributes)
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)

    @property
    def types(self) -> list[types.Type]:
        """Types of the inputs."""
        return [types.type_of(array) for array in self.inputs]

    @property
    def checks_gradient(self) -> bool:
        """Whether gradients of this sample are compared with finite differences."""
        if self.error is not None:
            return False
        if self.gradient is not None:
            return self.gradient
        floating = [array for array in self.inputs if array.dtype in (np.float32, np.float64)]
        wide = all(array.dtype.kind in "biuf" and array.dtype != np.float16 for array in self.inputs)
        return bool(floating) and wide and all(bool(np.isfinite(array).all()) for array in floating)


Generator = Callable[[], Iterable[Sample]]

_generators: dict[str, list[Generator]] = {}


def samples(*names: str) -> Callable[[Generator], Generator]:
    """Decorator: the generator yields samples of the ops with these names (as in the registry)."""

    def register(generator: Generator) -> Generator:
        for name in names:
            _generators.setdefault(name, []).append(generator)
        return generator

    return register


def samples_of(name: str) -> list[Sample]:
    """All samples of one op, in the order of declaration; none for an op without samples."""
    return [sample for generator in _generators.get(name, ()) for sample in generator()]


def sampled_ops() -> list[str]:
    """Names of the ops that have samples."""
    return list(_generators)


def all_samples(bad: bool = False) -> Iterator[tuple[str, int, Sample]]:
    """(op name, position among its samples, sample) for every sample; with `bad` those that must raise."""
    for name in _generators:
        for position, sample in enumerate(samples_of(name)):
            if (sample.error is not None) is bad:
                yield name, position, sample


def functional(name: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
    """For `Sample.torch`: `torch.nn.functional.<name>` on the sample's tensors, then these arguments."""
    return lambda torch, *tensors: getattr(torch.nn.functional, name)(*tensors, *arguments, **options)


# ---- inputs ------------------------------------------------------------------------------------------------


def values(
    *shape: int,
    dtype: str = "float32",
    seed: int = 0,
    low: float = -2.0,
    high: float = 2.0,
    distinct: bool = False,
    avoid: Sequence[float] = (),
) -> Array:
    """An array of that shape with fixed pseudo-random numbers in [low, high).

    `distinct`: evenly spaced and shuffled, so that no two are near each other (for max, sort). `avoid`:
    points (kinks of the function) from which all numbers keep a distance of at least 0.1. Integers are drawn
    from low to high - 1; bool ignores the limits.
    """
    target = types.dtype(dtype)
    generator = np.random.Generator(np.random.PCG64([seed, *shape]))
    count = math.prod(shape)
    if target.is_bool:
        return np.asarray(generator.random(count) < 0.5).reshape(shape)
    if target.is_integer:
        low = max(low, np.iinfo(target.numpy).min) if target.kind == "i" else max(low, 0)
        return generator.integers(math.ceil(low), math.ceil(high), count).astype(target.numpy).reshape(shape)
    if distinct:
        drawn = low + (high - low) * (generator.permutation(count) + 0.5) / max(count, 1)
    else:
        drawn = generator.uniform(low, high, count)
    for point in avoid:
        near = np.abs(drawn - point) < 0.1
        drawn[near] = point + np.where(drawn[near] < point, -0.1, 0.1) * (
            1 + generator.random(int(near.sum()))
        )
    return drawn.reshape(shape).astype(target.numpy)


def special(dtype: str = "float32") -> Array:
    """A vector with NaN, both infinities, both zeros, ones, the smallest and the largest finite numbers."""
    target = types.dtype(dtype)
    if target is types.bfloat16:
        extremes = [1.18e-38, 3.38e38, -3.38e38]
    else:
        info = np.finfo(target.numpy)
        extremes = [float(info.smallest_subnormal), float(info.max), float(info.min)]
    listed = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 0.5, -2.5, *extremes]
    return np.array(listed, np.float64).astype(target.numpy)


def special_pairs(dtype: str = "float32") -> tuple[Array, Array]:
    """Every pair of special values, as two vectors."""
    line = special(dtype)
    return np.repeat(line, line.size), np.tile(line, line.size)
