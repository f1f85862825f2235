"""Random generators and random tensors: `tw.Generator`, `tw.manual_seed`, `tw.random`.

A generator's state is a buffer uint32[4] (seed low, seed high, call number low, call number high) for the
counter-based Philox4x32-10 of `thalweg.ops.sources`. Eagerly each draw is a call. A compiled function counts
one call each time it runs, and tells its draws apart by a stream number per call site. So results depend
neither on threads nor on layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, TraceError
from thalweg.graph import Value, function
from thalweg.ops import random as ops
from thalweg.tensor.state import Buffer
from thalweg.tensor.tensor import Tensor, wrap
from thalweg.tensor.trace import current_trace, suspended


class Generator:
    """A source of random numbers; equal seeds give equal numbers on every machine and backend."""

    def __init__(self, seed: int = 0) -> None:
        self.state = Buffer(_state(seed), name="generator")

    @property
    def seed(self) -> int:
        """The seed that it was made with, or that `manual_seed` set last."""
        low, high, _, _ = (int(word) for word in self.state.data)
        return low | high << 32

    def manual_seed(self, seed: int) -> Generator:
        """Begin anew with this seed, an integer from 0 to 2^64 - 1; returns the generator."""
        trace = current_trace()
        if trace is not None:
            raise TraceError(
                f"manual_seed is called while {trace.name} is being traced, where it would happen only once; "
                "call it before the compiled function"
            )
        self.state.replace(_state(seed))
        return self

    def draw(self) -> tuple[Tensor, int]:
        """State and stream number for one random tensor (the arguments of `thalweg.ops.random`); counts the
        call.
        """
        trace = current_trace()
        if trace is not None and trace.is_body:
            with suspended(trace):  # one draw outside: `scan` gives every iteration a state of its own
                return self.draw()
        if trace is not None:
            known = trace.draws.get(id(self))
            if known is None:
                before = wrap(trace.read(self.state), trace)
                self.state.assign(_next_state(before))
                known = (self, before, 0)
            trace.draws[id(self)] = (self, known[1], known[2] + 1)
            return known[1], known[2]
        array = np.array(self.state.data)
        counted = (int(array[2]) | int(array[3]) << 32) + 1
        following = array.copy()
        following[2:] = counted & 0xFFFFFFFF, counted >> 32 & 0xFFFFFFFF
        self.state.replace(following)
        return wrap(Value(self.state.type, None, 0, array), None), 0

    def __repr__(self) -> str:
        return f"Generator(seed={self.seed})"


def _state(seed: int) -> Any:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ArgumentError(f"a seed is an integer from 0 to 2**64 - 1, received {seed!r}")
    return np.array([int(seed) & 0xFFFFFFFF, int(seed) >> 32, 0, 0], np.uint32)


def _next_state(state: Tensor) -> Any:
    """The state with its 64-bit call number counted up."""
    low = state[2:3] + 1
    carry = function("equal")(low, 0).astype(types.uint32)
    return function("concat")([state[:2], low, state[3:] + carry], 0)


default_generator = Generator(0)


def manual_seed(seed: int) -> Generator:
    """Seed the default generator, which layers and initialisers use where none is given; returns it."""
    return default_generator.manual_seed(seed)


def _draw(generator: Generator | None) -> tuple[Tensor, int]:
    if generator is not None and not isinstance(generator, Generator):
        raise ArgumentError(f"generator is a tw.Generator or None, received {type(generator).__name__}")
    return (generator or default_generator).draw()


def uniform(
    shape: Any,
    low: float = 0.0,
    high: float = 1.0,
    *,
    dtype: Any = types.float32,
    generator: Generator | None = None,
) -> Any:
    """Uniform numbers in [low, high)."""
    state, stream = _draw(generator)
    return ops.uniform(state, shape, low=low, high=high, dtype=dtype, stream=stream)


def normal(
    shape: Any,
    mean: float = 0.0,
    std: float = 1.0,
    *,
    dtype: Any = types.float32,
    generator: Generator | None = None,
) -> Any:
    """Normally distributed numbers."""
    state, stream = _draw(generator)
    return ops.normal(state, shape, mean=mean, std=std, dtype=dtype, stream=stream)


def bernoulli(shape: Any, p: float = 0.5, *, generator: Generator | None = None) -> Any:
    """Booleans, each true with probability `p`."""
    state, stream = _draw(generator)
    return ops.bernoulli(state, shape, p=p, stream=stream)


def randint(
    shape: Any, low: int, high: int, *, dtype: Any = types.int64, generator: Generator | None = None
) -> Any:
    """Uniform integers from `low` to `high` - 1."""
    state, stream = _draw(generator)
    return ops.integers(state, shape, low=low, high=high, dtype=dtype, stream=stream)


def permutation(count: int, *, generator: Generator | None = None) -> Any:
    """The numbers 0 to `count` - 1 in random order; outside traced functions only, as it sorts."""
    trace = current_trace()
    if trace is not None:
        raise TraceError(
            f"permutation is called while {trace.name} is being traced; make it before and pass it as an "
            "argument"
        )
    keys = randint((count, 2), 0, 2**32, generator=generator).numpy()
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    return wrap(Value(types.Type(types.int64, (count,)), None, 0, order.astype(np.int64)), None)


def dropout(x: Any, p: float = 0.5, *, shared_axes: Any = (), generator: Generator | None = None) -> Any:
    """Each element is 0 with probability `p`, else x / (1 - p); see `thalweg.ops.random.dropout`."""
    state, stream = _draw(generator)
    return ops.dropout(x, state, p=p, stream=stream, shared_axes=shared_axes)
