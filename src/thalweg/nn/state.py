"""Checks of saved state before any of it is loaded: by modules and by optimisers.

In: the names and holders (parameters, buffers, slots) that exist and a mapping from names to arrays of any
framework. Out: for each holder a NumPy array of its shape and dtype, or one error that lists everything that
is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError
from thalweg.types import DType

Array = np.ndarray[Any, Any]
_MOST_LINES = 20  # of each list in an error message


def as_array(value: Any) -> Array:
    """The NumPy array behind a tensor of any framework, an array or a number; may share memory with it."""
    if hasattr(value, "detach"):  # PyTorch refuses to convert what requires a gradient
        value = value.detach()
    if (
        str(getattr(value, "dtype", "")) == "torch.bfloat16"
    ):  # PyTorch converts it to no array: pass on the bits
        bits = value.cpu().contiguous().view(sys.modules["torch"].int16).numpy()
        return np.asarray(bits).view(types.bfloat16.numpy)
    return np.asarray(value)


def check_entries(
    owner: str,
    holders: Sequence[tuple[str, Any]],
    state: Mapping[str, Any],
    strict: bool = True,
    advice: str = "",
) -> list[tuple[Any, Array]]:
    """Pairs of holder and new value, each holder once; `holders` may name one holder several times.

    Raises `ArgumentError` listing missing and unexpected names (where `strict`), entries of another shape or
    kind of dtype, and names of one holder with different values; `advice` is added where names are the
    problem.
    """
    if not isinstance(state, Mapping):
        raise ArgumentError(
            f"{owner}: expected a mapping from names to arrays, received {type(state).__name__}"
        )
    names: dict[int, list[str]] = {}
    for name, holder in holders:
        names.setdefault(id(holder), []).append(name)
    by_id = {id(holder): holder for _, holder in holders}
    missing: list[str] = []
    wrong: list[str] = []
    found: list[tuple[Any, Array]] = []
    for identity, aliases in names.items():
        holder = by_id[identity]
        given = [name for name in aliases if name in state]
        if not given:
            missing.append(f"{aliases[0]}: {types.Type(holder.dtype, holder.shape)}")
            continue
        values = []
        for name in given:
            value, problem = _fit(state[name], holder.shape, holder.dtype)
            if problem:
                wrong.append(f"{name}: {problem}")
            else:
                values.append(value)
        if len(values) == len(given):
            if any(other.tobytes() != values[0].tobytes() for other in values[1:]):
                wrong.append(f"{' and '.join(given)}: different values for one parameter (tied weights)")
            found.append((holder, values[0]))
    expected = {name for name, _ in holders}
    unexpected = [str(name) for name in state if name not in expected]
    _refuse(owner, missing if strict else [], unexpected if strict else [], wrong, advice)
    return found


def _fit(value: Any, shape: tuple[int, ...], dtype: DType) -> tuple[Array, str]:
    """The value as an array of its own with that dtype, and what is wrong with it ("" if nothing)."""
    empty = np.empty(0)
    try:
        array = as_array(value)
        source = types.dtype(array.dtype)
    except (DTypeError, TypeError, ValueError, RuntimeError) as error:
        return empty, f"expected an array of numbers, received {type(value).__name__} ({error})"
    if array.shape != tuple(shape):
        return empty, f"expected shape {tuple(shape)}, received {array.shape}"
    if source.is_floating and not dtype.is_floating:
        return empty, f"expected {dtype}, received {source}"
    return np.array(array, dtype.numpy, order="C"), ""


def _refuse(owner: str, missing: list[str], unexpected: list[str], wrong: list[str], advice: str) -> None:
    parts = []
    for title, entries in (("missing", missing), ("unexpected", unexpected), ("misshapen", wrong)):
        if entries:
            shown = entries[:_MOST_LINES]
            more = [f"... and {len(entries) - len(shown)} more"] if len(entries) > len(shown) else []
            parts.append(f"  {title} ({len(entries)}):\n" + "\n".join(f"    {line}" for line in shown + more))
    if parts:
        parts += [advice] if advice and (missing or unexpected) else []
        raise ArgumentError(f"the state does not fit {owner}; nothing was loaded:\n" + "\n".join(parts))
