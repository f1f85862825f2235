"""What layers share: checked sizes, new parameters, and shape errors that name the layer and the user's
line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, ShapeError
from thalweg.graph.build import location
from thalweg.tensor.state import Buffer, Parameter


def size(name: str, value: Any, least: int = 1) -> int:
    """`value` as an integer from `least` on; raises `ArgumentError`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ArgumentError(f"{name} must be an integer from {least} on, received {value!r}")
    return int(value)


def per_axis(name: str, value: Any, rank: int, least: int = 1) -> tuple[int, ...]:
    """An integer for all spatial axes, or one for each, as a tuple; raises `ArgumentError`."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    if len(values) != rank:
        raise ArgumentError(f"{name} must be an integer or {rank} of them, received {value!r}")
    return tuple(size(name, item, least) for item in values)


def new_parameter(shape: tuple[int, ...], dtype: Any) -> Parameter:
    """A parameter of zeros, to be initialised."""
    return Parameter(np.zeros(shape, types.dtype(dtype).numpy))


def new_buffer(shape: tuple[int, ...], dtype: Any, value: float = 0) -> Buffer:
    """A buffer filled with one number."""
    return Buffer(np.full(shape, value, types.dtype(dtype).numpy))


def refuse_shape(message: str) -> NoReturn:
    """Raise `ShapeError` with the running module's path in front and the user's line behind."""
    where, scope = location()
    lines = [f"{scope}: {message}" if scope else message]
    lines += [f"  at {span.file}:{span.line} in {span.function}\n      {span.text}" for span in where]
    error = ShapeError("\n".join(lines))
    error.located = True  # type: ignore[attr-defined]
    raise error


@contextmanager
def refusing_shapes() -> Iterator[None]:
    """Let shape errors of the op functions called inside name the running module and the user's line."""
    try:
        yield
    except ShapeError as error:
        if getattr(error, "located", False):
            raise
        message = str(error)
    else:
        return
    refuse_shape(message)


_SPATIAL = {1: "length", 2: "height, width", 3: "depth, height, width"}


def require_axes(name: str, x: Any, rank: int) -> None:
    """Raise `ShapeError` unless `x` is [batch, channels, *spatial] with `rank` spatial axes."""
    if x.ndim != rank + 2:
        hint = "; write x.unsqueeze(0) for one sample without a batch axis" if x.ndim == rank + 1 else ""
        refuse_shape(
            f"{name} needs an input with {rank + 2} axes [batch, channels, {_SPATIAL[rank]}], "
            f"received shape {tuple(x.shape)}{hint}"
        )
