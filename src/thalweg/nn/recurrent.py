"""Recurrent layers `RNN`, `LSTM`, `GRU` and their cells, with PyTorch's arguments, weight names and initial
values.

In: sequences [time, batch, features] (or [batch, time, features]) and initial states. Out: the outputs of all
time steps and the last states. The part of the gates that comes from the input is one product for all time
steps; what remains is a `scan`, so that programs do not grow with the length of the sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError
from thalweg.nn import functional, init
from thalweg.nn.layer import new_parameter, refuse_shape, size
from thalweg.nn.module import Module
from thalweg.ops.activations import relu
from thalweg.ops.core import apply, broadcast_together, cast, operand
from thalweg.ops.elementwise import greater, tanh, where
from thalweg.ops.indexing import Gather
from thalweg.ops.linear import linear
from thalweg.ops.movement import concat, expand_dims, squeeze, stack, swapaxes
from thalweg.ops.recurrent import gru_cell, lstm_cell
from thalweg.ops.sources import arange, full
from thalweg.tensor.control import scan
from thalweg.tensor.random import Generator
from thalweg.tensor.tensor import Tensor

State = tuple[Any, ...]  # the hidden state [batch, size]; for an LSTM also the cell

_NONLINEARITIES = {"tanh": tanh, "relu": relu}


def _nonlinearity(name: Any) -> Any:
    if name not in _NONLINEARITIES:
        raise ArgumentError(f'nonlinearity is "tanh" or "relu", received {name!r}')
    return _NONLINEARITIES[name]


class _Weights:
    """The weights of one direction of one layer; biases and projection may be None."""

    def __init__(self, holder: Module, suffix: str) -> None:
        def named(name: str) -> Any:
            return vars(holder).get(f"{name}{suffix}")

        self.input, self.hidden, self.projection = named("weight_ih"), named("weight_hh"), named("weight_hr")
        self.input_bias, self.hidden_bias = named("bias_ih"), named("bias_hh")

    @property
    def bias(self) -> Any:
        """Both biases in one, where nothing stands between them."""
        return None if self.input_bias is None else self.input_bias + self.hidden_bias


# ---- one time step -----------------------------------------------------------------------------------------


class _Kind(Module):
    """How the gates are made and what one step does with them; layers and cells share it."""

    gates: ClassVar[int]  # rows of the weights for each element of the state
    states: ClassVar[tuple[str, ...]] = ("h_0",)
    nonlinearity: str

    def _project(self, x: Any, weights: _Weights) -> Any:
        """The part of the gates that comes from the input: [.., features] to [.., gates * hidden]."""
        return linear(x, weights.input, weights.bias)

    def _advance(self, state: State, projected: Any, weights: _Weights) -> State:
        """The state after a step; its first part is the step's output."""
        raise NotImplementedError

    def _uniform(self, hidden_size: int, generator: Generator | None) -> None:
        for parameter in self.parameters():
            init.fan_in_uniform_(parameter, hidden_size, generator)


class _RNNKind(_Kind):
    gates = 1

    def _advance(self, state: State, projected: Any, weights: _Weights) -> State:
        return (_nonlinearity(self.nonlinearity)(projected + linear(state[0], weights.hidden)),)


class _LSTMKind(_Kind):
    gates = 4
    states = ("h_0", "c_0")

    def _advance(self, state: State, projected: Any, weights: _Weights) -> State:
        hidden, cell = lstm_cell(projected + linear(state[0], weights.hidden), state[1])
        return hidden if weights.projection is None else linear(hidden, weights.projection), cell


class _GRUKind(_Kind):
    gates = 3

    def _project(self, x: Any, weights: _Weights) -> Any:
        return linear(x, weights.input, weights.input_bias)  # the reset gate stands before the other bias

    def _advance(self, state: State, projected: Any, weights: _Weights) -> State:
        return (gru_cell(projected, linear(state[0], weights.hidden, weights.hidden_bias), state[0]),)


# ---- layers ------------------------------------------------------------------------------------------------


class _Layers(_Kind):
    """Layers one above the other, each in one direction or two."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        dtype: Any = "float32",
        generator: Generator | None = None,
    ) -> None:
        self.input_size, self.hidden_size = size("input_size", input_size), size("hidden_size", hidden_size)
        self.num_layers, self.proj_size = size("num_layers", num_layers), size("proj_size", proj_size, 0)
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ArgumentError(f"dropout is a probability from 0 to 1, received {dropout!r}")
        if self.proj_size >= self.hidden_size:
            raise ArgumentError(
                f"proj_size must be smaller than hidden_size ({hidden_size}), received {proj_size}; 0 is no "
                "projection"
            )
        self.bias, self.batch_first, self.dropout = bool(bias), bool(batch_first), float(dropout)
        self.bidirectional = bool(bidirectional)
        self.generator = generator
        for layer, suffix, _ in self._runs():
            self._make_weights(layer, suffix, dtype)
        self.reset_parameters(generator)

    @property
    def output_size(self) -> int:
        """Elements of one direction's output."""
        return self.proj_size or self.hidden_size

    def _runs(self) -> Iterator[tuple[int, str, bool]]:
        """Layer, suffix of its weights' names, and whether it runs backwards, in the order of the states."""
        for layer in range(self.num_layers):
            yield layer, f"_l{layer}", False
            if self.bidirectional:
                yield layer, f"_l{layer}_reverse", True

    def _make_weights(self, layer: int, suffix: str, dtype: Any) -> None:
        inputs = self.input_size if layer == 0 else self.output_size * (1 + self.bidirectional)
        rows = self.gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, inputs),
            "weight_hh": (rows, self.output_size),
        }
        if self.bias:
            shapes.update(bias_ih=(rows,), bias_hh=(rows,))
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, self.hidden_size)
        for name, shape in shapes.items():
            setattr(self, name + suffix, new_parameter(shape, dtype))

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw all weights anew: uniform within 1 / sqrt(hidden_size)."""
        self._uniform(self.hidden_size, generator)

    def forward(self, input: Any, hx: Any = None, lengths: Any = None) -> tuple[Any, Any]:
        """Outputs [time, batch, directions * size] and the last states [layers * directions, batch, size].

        `input` is [time, batch, features] ([batch, time, features] with `batch_first`), or [time, features]
        without a batch. `hx` are the initial states in the form of the last ones (None: zeros). `lengths`
        [batch] are the numbers of time steps of each sequence: outputs behind its end are 0, its last state
        is that at its end, and the backward direction begins there.
        """
        x, batched = self._sequences(operand(input))
        time, batch = x.shape[0], x.shape[1]
        mask = None if lengths is None else self._mask(lengths, time, batch, batched)
        first = self._initial(hx, batch, batched, self._dtype(x))
        finals: list[State] = []
        outputs: list[Any] = []
        for number, (layer, suffix, backwards) in enumerate(self._runs()):
            state = tuple(part[number] for part in first)
            output, last = self._run(x, state, _Weights(self, suffix), mask, backwards)
            outputs.append(output)
            finals.append(last)
            if backwards or not self.bidirectional:
                x = outputs[0] if len(outputs) == 1 else concat(outputs, axis=-1)
                outputs = []
                if layer < self.num_layers - 1:
                    x = functional.dropout(x, self.dropout, self.training, self.generator)
        last = tuple(stack(parts) for parts in zip(*finals, strict=True))
        if not batched:
            x, last = squeeze(x, 1), tuple(squeeze(part, 1) for part in last)
        elif self.batch_first:
            x = swapaxes(x, 0, 1)
        return x, last if len(last) > 1 else last[0]

    def _run(self, x: Any, state: State, weights: _Weights, mask: Any, backwards: bool) -> tuple[Any, State]:
        """One direction of one layer: outputs [time, batch, size] and the last state."""

        def step(before: State, given: Any) -> tuple[State, Any]:
            after = self._advance(before, given[0], weights)
            if mask is None:
                return after, after[0]
            runs = given[1]
            kept = tuple(
                where(runs, new, old) for new, old in zip(after, before, strict=True)
            )  # a finished sequence keeps its state, one that runs backwards its first
            return kept, where(runs, after[0], 0)

        slices = (self._project(x, weights),) if mask is None else (self._project(x, weights), mask)
        last, outputs = scan(step, state, slices, reverse=backwards)
        return outputs, last

    def _dtype(self, x: Any) -> types.DType:
        return types.promote(x.dtype, self.weight_hh_l0.dtype)

    # ---- arguments -----------------------------------------------------------------------------------------

    def _sequences(self, x: Any) -> tuple[Any, bool]:
        """The input as [time, batch, features], and whether it had a batch."""
        layout = "[batch, time, features]" if self.batch_first else "[time, batch, features]"
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            refuse_shape(
                f"{type(self).__name__}({self.input_size}, {self.hidden_size}) needs an input {layout} or "
                f"[time, features] with {self.input_size} features on its last axis, received shape "
                f"{tuple(x.shape)}"
            )
        if not x.dtype.is_floating:
            raise DTypeError(
                f"{type(self).__name__} needs a floating-point input, received {x.dtype}; give token numbers "
                "to "
                "nn.Embedding first"
            )
        if x.ndim == 2:
            return expand_dims(x, 1), False
        return (swapaxes(x, 0, 1) if self.batch_first else x), True

    def _initial(self, hx: Any, batch: int, batched: bool, dtype: types.DType) -> State:
        """The initial states, each [layers * directions, batch, size]."""
        count = self.num_layers * (1 + self.bidirectional)
        sizes = (self.output_size, self.hidden_size)
        if hx is None:
            return tuple(
                full((count, batch, extent), 0, dtype) for extent, _ in zip(sizes, self.states, strict=False)
            )
        given = _parts(type(self).__name__, hx, self.states)
        found = []
        for name, extent, part in zip(self.states, sizes, given, strict=False):
            part = cast(operand(part), dtype)
            expected = (count, batch, extent) if batched else (count, extent)
            if part.shape != expected:
                axes = "[layers * directions, batch, size]" if batched else "[layers * directions, size]"
                refuse_shape(
                    f"{name} must be {axes} = {expected} for this input, received shape {tuple(part.shape)}"
                )
            found.append(part if batched else expand_dims(part, 1))
        return tuple(found)

    def _mask(self, lengths: Any, time: int, batch: int, batched: bool) -> Any:
        """Whether a sequence still runs at a time step: bool [time, batch, 1]."""
        found = operand(lengths)
        if not found.dtype.is_integer:
            raise DTypeError(f"{type(self).__name__}: lengths must be integers, received {found.dtype}")
        expected = (batch,) if batched else ()
        if found.shape != expected:
            refuse_shape(
                f"lengths must be one integer for each sequence, of shape {expected}, "
                "received "
                f"shape {tuple(found.shape)}"
            )
        if isinstance(found, Tensor) and not found.is_traced:
            numbers = np.atleast_1d(found.numpy())
            for position in np.flatnonzero((numbers < 0) | (numbers > time))[:1]:
                refuse_shape(
                    f"lengths must be from 0 to {time}, the number of time steps of "
                    "the input, "
                    f"received {numbers[position]} for sequence {position}"
                )
        else:
            found = apply(
                Gather(0, 0, wrap=False), arange(time + 1), found
            )  # itself, or an error when it runs
        steps = expand_dims(arange(time), 1)
        running = greater(
            *broadcast_together(cast(found if batched else expand_dims(found, 0), "int64"), steps)
        )
        return expand_dims(running, 2)

    def extra_repr(self) -> str:
        options = [f"{self.input_size}, {self.hidden_size}"]
        plain = {
            "proj_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
        }
        options += [
            f"{name}={getattr(self, name)}" for name, value in plain.items() if getattr(self, name) != value
        ]
        return ", ".join(options)


def _parts(what: str, hx: Any, names: Sequence[str]) -> Sequence[Any]:
    """The states that a caller has given, as a sequence."""
    if len(names) == 1:
        if isinstance(hx, (tuple, list)):
            raise ArgumentError(f"{what}: the initial state is one tensor, received a {type(hx).__name__}")
        return [hx]
    if not isinstance(hx, (tuple, list)) or len(hx) != len(names):
        received = f"{type(hx).__name__} of {len(hx)}" if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise ArgumentError(
            f"{what}: the initial state is a tuple ({', '.join(names)}), received a {received}"
        )
    return hx


class RNN(_RNNKind, _Layers):
    """h = tanh(W_ih x + b_ih + W_hh h + b_hh) in `num_layers` layers (Elman, 1990); `nonlinearity="relu"`
    takes ReLU.

    Outputs and last state: `output, h_n = rnn(input, h_0, lengths)`, see `forward`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
        generator: Generator | None = None,
    ) -> None:
        _nonlinearity(nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype=dtype,
            generator=generator,
        )


class LSTM(_LSTMKind, _Layers):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997) in `num_layers` layers.

    `proj_size` above 0 multiplies every hidden state with a further weight of that many rows (Sak et al.,
    2014). Outputs and last states: `output, (h_n, c_n) = lstm(input, (h_0, c_0), lengths)`, see `forward`.
    """


class GRU(_GRUKind, _Layers):
    """Gated recurrent units (Cho et al., 2014) in `num_layers` layers.

    Outputs and last state: `output, h_n = gru(input, h_0, lengths)`, see `forward`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
        generator: Generator | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype=dtype,
            generator=generator,
        )


# ---- cells -------------------------------------------------------------------------------------------------


class _Cell(_Kind):
    """One step of one layer, for loops of one's own."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        generator: Generator | None = None,
    ) -> None:
        self.input_size, self.hidden_size = size("input_size", input_size), size("hidden_size", hidden_size)
        self.bias = bool(bias)
        rows = self.gates * hidden_size
        self.weight_ih = new_parameter((rows, input_size), dtype)
        self.weight_hh = new_parameter((rows, hidden_size), dtype)
        self.bias_ih = new_parameter((rows,), dtype) if bias else None
        self.bias_hh = new_parameter((rows,), dtype) if bias else None
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw all weights anew: uniform within 1 / sqrt(hidden_size)."""
        self._uniform(self.hidden_size, generator)

    def forward(self, input: Any, hx: Any = None) -> Any:
        """The state [batch, hidden_size] after one step with `input` [batch, input_size], both also without
        batch.

        `hx` is the state before (None: zeros); an LSTM's state is a tuple of hidden state and cell.
        """
        x = operand(input)
        if x.ndim not in (1, 2) or x.shape[-1] != self.input_size:
            refuse_shape(
                f"{type(self).__name__}({self.input_size}, {self.hidden_size}) needs an input [batch, "
                "features] or "
                f"[features] with {self.input_size} features, received shape {tuple(x.shape)}"
            )
        dtype = types.promote(x.dtype, self.weight_hh.dtype)
        expected = (*x.shape[:-1], self.hidden_size)
        if hx is None:
            state = tuple(full(expected, 0, dtype) for _ in self.states)
        else:
            given = _parts(type(self).__name__, hx, self.states)
            state = tuple(cast(operand(part), dtype) for part in given)
        for name, part in zip(self.states, state, strict=True):
            if part.shape != expected:
                refuse_shape(
                    f"{name} must have shape {expected} for this input, received shape {tuple(part.shape)}"
                )
        weights = _Weights(self, "")
        after = self._advance(state, self._project(x, weights), weights)
        return after if len(after) > 1 else after[0]

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")


class RNNCell(_RNNKind, _Cell):
    """One step of `RNN`: `h = cell(x, h)`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        dtype: Any = "float32",
        generator: Generator | None = None,
    ) -> None:
        _nonlinearity(nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(input_size, hidden_size, bias, dtype=dtype, generator=generator)


class LSTMCell(_LSTMKind, _Cell):
    """One step of `LSTM`: `h, c = cell(x, (h, c))`."""


class GRUCell(_GRUKind, _Cell):
    """One step of `GRU`: `h = cell(x, h)`."""
