"""Cells of recurrent layers: what happens to the gates of one time step, as composites.

In: the gates before their activation (`nn.recurrent` computes them with linear layers, those of the input for
all time steps at once) and the state. Out: the new state. The residual forms keep the activated gates, from
which the gradients have closed forms without a transcendental function, so that the backward loop computes
none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from thalweg.errors import ShapeError
from thalweg.ops.activations import sigmoid, wide
from thalweg.ops.core import cast, composite, floating, promoted, require
from thalweg.ops.elementwise import tanh
from thalweg.ops.movement import concat, split
from thalweg.ops.samples import Sample, samples, values


def _check(name: str, gates: Any, state: Any, count: int) -> None:
    require(
        gates.ndim == state.ndim >= 1 and gates.shape == (*state.shape[:-1], count * state.shape[-1]),
        f"{name} needs gates of {count} times the state's size on the last axis, received gates {gates.shape}"
        f" and a state {state.shape}",
    )


# ---- long short-term memory --------------------------------------------------------------------------------


@composite
def _lstm_cell(gates: Any, cell: Any) -> Any:
    return _lstm_parts(gates, cell)[:2]


@_lstm_cell.residuals
def _lstm_cell_with_residuals(gates: Any, cell: Any) -> Any:
    """The result, and input, forget, cell and output gate and tanh of the new cell."""
    return _lstm_parts(gates, cell)


def _lstm_parts(gates: Any, cell: Any) -> tuple[Any, ...]:
    _check("lstm_cell", gates, cell, 4)
    before = split(wide(gates), 4, axis=-1)
    enter, forget, output = sigmoid(before[0]), sigmoid(before[1]), sigmoid(before[3])
    candidate = tanh(before[2])
    after = forget * wide(cell) + enter * candidate
    shown = tanh(after)
    return (
        cast(output * shown, cell.dtype),
        cast(after, cell.dtype),
        *(enter, forget, candidate, output, shown),
    )


@composite
def _lstm_cell_gradient(
    by_hidden: Any,
    by_after: Any,
    cell: Any,
    enter: Any,
    forget: Any,
    candidate: Any,
    output: Any,
    shown: Any,
) -> Any:
    """Gradients with respect to gates and cell."""
    by_hidden = wide(by_hidden)
    by_cell = wide(by_after) + by_hidden * output * (1.0 - shown * shown)
    by_gates = [
        by_cell * candidate * (enter * (1.0 - enter)),
        by_cell * wide(cell) * (forget * (1.0 - forget)),
        by_cell * enter * (1.0 - candidate * candidate),
        by_hidden * shown * (output * (1.0 - output)),
    ]
    return cast(concat(by_gates, axis=-1), cell.dtype), cast(by_cell * forget, cell.dtype)


@_lstm_cell.gradient
def _lstm_cell_rule(inputs: Any, outputs: Any, cotangents: Any) -> Sequence[Any]:
    (gates, cell), (_, _, *kept) = inputs, outputs
    by_gates, by_cell = _lstm_cell_gradient(cotangents[0], cotangents[1], cell, *kept)
    return cast(by_gates, gates.dtype), by_cell


def lstm_cell(gates: Any, cell: Any) -> tuple[Any, Any]:
    """New hidden state and cell of an LSTM (Hochreiter and Schmidhuber, 1997, with forget gates).

    `gates` [.., 4 H] are input, forget, cell and output gate before their activation, `cell` [.., H] is the
    cell before. Cell: sigmoid(forget) cell + sigmoid(input) tanh(cell gate); hidden state: sigmoid(output)
    tanh(cell).
    """
    gates, cell = promoted(floating(gates), floating(cell))
    hidden, after = _lstm_cell(gates, cell)
    return hidden, after


# ---- gated recurrent unit ----------------------------------------------------------------------------------


@composite
def _gru_cell(from_input: Any, from_hidden: Any, hidden: Any) -> Any:
    return _gru_parts(from_input, from_hidden, hidden)[0]


@_gru_cell.residuals
def _gru_cell_with_residuals(from_input: Any, from_hidden: Any, hidden: Any) -> Any:
    """The result, and reset, update and new gate and the part of the new gate that the reset gate
    multiplies.
    """
    return _gru_parts(from_input, from_hidden, hidden)


def _gru_parts(from_input: Any, from_hidden: Any, hidden: Any) -> tuple[Any, ...]:
    _check("gru_cell", from_input, hidden, 3)
    _check("gru_cell", from_hidden, hidden, 3)
    own, other = split(wide(from_input), 3, axis=-1), split(wide(from_hidden), 3, axis=-1)
    reset, update = sigmoid(own[0] + other[0]), sigmoid(own[1] + other[1])
    new = tanh(own[2] + reset * other[2])
    after = (1.0 - update) * new + update * wide(hidden)
    return cast(after, hidden.dtype), reset, update, new, other[2]


@composite
def _gru_cell_gradient(by_after: Any, hidden: Any, reset: Any, update: Any, new: Any, inner: Any) -> Any:
    """Gradients with respect to both kinds of gates and to the hidden state."""
    g = wide(by_after)
    by_new = g * (1.0 - update) * (1.0 - new * new)
    by_reset = by_new * inner * (reset * (1.0 - reset))
    by_update = g * (wide(hidden) - new) * (update * (1.0 - update))
    found = (
        concat([by_reset, by_update, by_new], axis=-1),
        concat([by_reset, by_update, by_new * reset], axis=-1),
        g * update,
    )
    return tuple(cast(one, hidden.dtype) for one in found)


@_gru_cell.gradient
def _gru_cell_rule(inputs: Any, outputs: Any, cotangents: Any) -> Sequence[Any]:
    return _gru_cell_gradient(cotangents[0], inputs[2], *outputs[1:])  # type: ignore[no-any-return]


def gru_cell(from_input: Any, from_hidden: Any, hidden: Any) -> Any:
    """The new hidden state of a GRU (Cho et al., 2014, in the form of cuDNN and PyTorch).

    `from_input` and `from_hidden` [.., 3 H] are reset, update and new gate before their activation, each with
    its bias; `hidden` [.., H] is the state before. New gate: tanh(input part + sigmoid(reset) hidden part);
    result: (1 - sigmoid(update)) new + sigmoid(update) hidden.
    """
    return _gru_cell(*promoted(floating(from_input), floating(from_hidden), floating(hidden)))


# ---- samples -----------------------------------------------------------------------------------------------


def _lstm_torch(torch: Any, gates: Any, cell: Any) -> Any:
    enter, forget, candidate, output = gates.chunk(4, -1)
    after = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
    return torch.sigmoid(output) * torch.tanh(after), after


def _gru_torch(torch: Any, from_input: Any, from_hidden: Any, hidden: Any) -> Any:
    own, other = from_input.chunk(3, -1), from_hidden.chunk(3, -1)
    update = torch.sigmoid(own[1] + other[1])
    new = torch.tanh(own[2] + torch.sigmoid(own[0] + other[0]) * other[2])
    return (1 - update) * new + update * hidden


_SHAPES: tuple[tuple[int, ...], ...] = ((3, 5), (1, 1), (0, 2), (4,), (2, 3, 2), (17, 3))


@samples("lstm_cell")
def _lstm_cell_samples() -> Iterator[Sample]:
    for shape in _SHAPES:
        gates = values(*shape[:-1], 4 * shape[-1], seed=1)
        yield Sample(lstm_cell, (gates, values(*shape)), torch=_lstm_torch)
    for dtype in ("float64", "float16", "bfloat16"):
        gates, cell = values(3, 20, dtype=dtype, seed=1), values(3, 5, dtype=dtype)
        yield Sample(lstm_cell, (gates, cell), torch=_lstm_torch, tolerance=4)
    far = values(2, 12, low=-300, high=300)
    yield Sample(lstm_cell, (far, values(2, 3)), gradient=False, torch=_lstm_torch)
    yield Sample(
        lstm_cell, (values(2, 12), values(2, 4)), error=ShapeError, message="4 times the state's size"
    )
    yield Sample(lstm_cell, (values(), values()), error=ShapeError, message="4 times")


@samples("gru_cell")
def _gru_cell_samples() -> Iterator[Sample]:
    for shape in _SHAPES:
        gates = [values(*shape[:-1], 3 * shape[-1], seed=seed) for seed in (1, 2)]
        yield Sample(gru_cell, (*gates, values(*shape)), torch=_gru_torch)
    for dtype in ("float64", "float16", "bfloat16"):
        gates = [values(3, 15, dtype=dtype, seed=seed) for seed in (1, 2)]
        yield Sample(gru_cell, (*gates, values(3, 5, dtype=dtype)), torch=_gru_torch, tolerance=4)
    wrong = (values(2, 12), values(2, 12), values(2, 3))
    yield Sample(gru_cell, wrong, error=ShapeError, message="3 times the state's size")
