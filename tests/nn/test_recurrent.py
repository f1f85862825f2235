"""RNN, LSTM, GRU and their cells compute PyTorch's values and gradients, for every combination of options."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn
from thalweg.errors import ArgumentError, DTypeError, IndexRangeError, ShapeError
from thalweg.passes.pipeline import prepare

Array = np.ndarray[Any, Any]

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
TIME, BATCH, INPUTS, HIDDEN = 6, 4, 5, 3
LENGTHS = [6, 1, 4, 3]  # not sorted, the longest is the whole input


def options(name: str) -> list[dict[str, Any]]:
    """Every combination of layers, directions, layout and bias, with projection and nonlinearity where they
    exist.
    """
    found = []
    for layers, bidirectional, batch_first, bias in product(
        (1, 2), (False, True), (False, True), (True, False)
    ):
        common = {
            "num_layers": layers,
            "bidirectional": bidirectional,
            "batch_first": batch_first,
            "bias": bias,
        }
        if name == "LSTM":
            found += [{**common, "proj_size": size} for size in (0, 2)]
        elif name == "RNN":
            found += [{**common, "nonlinearity": kind} for kind in ("tanh", "relu")]
        else:
            found.append(common)
    return found


CASES = [(name, given) for name in ("RNN", "LSTM", "GRU") for given in options(name)]


def flat(result: Any) -> list[Any]:
    """Output and last states in a row."""
    output, last = result
    return [output, *last] if isinstance(last, tuple) else [output, last]


class Pair:
    """A layer, its twin in PyTorch with the same weights, and inputs for both."""

    def __init__(self, name: str, given: dict[str, Any], dtype: str = "float64") -> None:
        torch = pytest.importorskip("torch")
        torch.set_num_threads(1)
        torch.manual_seed(5)
        self.torch = torch
        self.theirs = getattr(torch.nn, name)(INPUTS, HIDDEN, **given).double()
        self.ours = getattr(nn, name)(INPUTS, HIDDEN, **given).to("float64")
        expected = self.theirs.state_dict()
        assert list(self.ours.state_dict()) == list(expected)
        self.ours.load_state_dict(expected)
        self.ours.to(dtype)
        self.dtype = dtype
        self.batch_first = given.get("batch_first", False)
        random = np.random.default_rng(1)
        shape = (BATCH, TIME, INPUTS) if self.batch_first else (TIME, BATCH, INPUTS)
        count = given.get("num_layers", 1) * (1 + given.get("bidirectional", False))
        self.x = random.normal(size=shape)
        self.h = random.normal(size=(count, BATCH, given.get("proj_size") or HIDDEN))
        self.c = random.normal(size=(count, BATCH, HIDDEN)) if name == "LSTM" else None

    def state(self, h: Any, c: Any) -> Any:
        return h if c is None else (h, c)

    def cotangents(self, results: list[Any]) -> list[Array]:
        random = np.random.default_rng(2)
        return [random.normal(size=tuple(one.shape)) for one in results]

    def expected(self, lengths: list[int] | None, with_state: bool) -> tuple[list[Array], dict[str, Array]]:
        torch = self.torch
        given = {"x": torch.tensor(self.x, requires_grad=True)}
        if with_state:
            given["h"] = torch.tensor(self.h, requires_grad=True)
            if self.c is not None:
                given["c"] = torch.tensor(self.c, requires_grad=True)
        state = self.state(given["h"], given.get("c")) if with_state else None
        if lengths is None:
            results = flat(self.theirs(given["x"], state))
        else:
            rnn = torch.nn.utils.rnn
            packed = rnn.pack_padded_sequence(given["x"], lengths, self.batch_first, enforce_sorted=False)
            output, last = self.theirs(packed, state)
            padded, _ = rnn.pad_packed_sequence(output, self.batch_first, total_length=TIME)
            results = flat((padded, last))
        self.theirs.zero_grad()
        sum(
            (r * torch.tensor(g)).sum() for r, g in zip(results, self.cotangents(results), strict=True)
        ).backward()
        gradients = {
            name: value.grad.numpy() for name, value in (*given.items(), *self.theirs.named_parameters())
        }
        return [one.detach().numpy() for one in results], gradients

    def found(
        self, lengths: list[int] | None, with_state: bool, backend: str | None
    ) -> tuple[list[Array], dict[str, Array]]:
        given = {"x": nn.Parameter(self.x.astype(self.dtype))}
        if with_state:
            given["h"] = nn.Parameter(self.h.astype(self.dtype))
            if self.c is not None:
                given["c"] = nn.Parameter(self.c.astype(self.dtype))
        cotangents = self.cotangents(self.expected(lengths, with_state)[0])

        def step(lengths: Any) -> Any:
            state = self.state(given["h"], given.get("c")) if with_state else None
            results = flat(self.ours(given["x"], state, lengths))
            weights = [tw.tensor(g.astype(self.dtype)) for g in cotangents]
            loss = sum((r * g).sum() for r, g in zip(results, weights, strict=True))
            return results, tw.gradient(loss, wrt={**given, **dict(self.ours.named_parameters())})

        run = step if backend is None else tw.compile(step, backend=backend)
        results, gradients = run(None if lengths is None else tw.tensor(lengths))
        return [one.numpy() for one in results], {name: value.numpy() for name, value in gradients.items()}

    def compare(
        self, lengths: list[int] | None, with_state: bool, backend: str | None, **tolerance: float
    ) -> None:
        results, gradients = self.found(lengths, with_state, backend)
        expected, slopes = self.expected(lengths, with_state)
        for one, other in zip(results, expected, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, **(tolerance or TOLERANCE))
        assert gradients.keys() == slopes.keys()
        for name, value in slopes.items():
            np.testing.assert_allclose(gradients[name], value, err_msg=name, **(tolerance or TOLERANCE))


@pytest.mark.parametrize(("name", "given"), CASES, ids=str)
def test_values_and_gradients_are_those_of_pytorch(name: str, given: dict[str, Any]) -> None:
    """All options eagerly, with states or lengths or both in turn; packed sequences are the reference of
    lengths.
    """
    number = CASES.index((name, given))
    lengths = LENGTHS if number % 2 else None
    Pair(name, given).compare(lengths, number % 3 != 0, None)
    Pair(name, given).compare(None if lengths else LENGTHS, number % 3 == 0, "numpy")


COMPILED: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {"num_layers": 2, "bidirectional": True, "nonlinearity": "relu"}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2, "batch_first": True}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {}),
]


@pytest.mark.parametrize(("name", "given"), COMPILED, ids=str)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
def test_programs_in_c(
    name: str, given: dict[str, Any], lengths: list[int] | None, needs_compiler: None
) -> None:
    Pair(name, given, "float32").compare(lengths, True, "c", rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, INPUTS), (INPUTS,)], ids=str)
def test_cells(name: str, bias: bool, shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    kinds = ({"nonlinearity": "tanh"}, {"nonlinearity": "relu"}) if name == "RNNCell" else ({},)
    for given in kinds:
        theirs = getattr(torch.nn, name)(INPUTS, HIDDEN, bias, **given).double()
        ours = getattr(nn, name)(INPUTS, HIDDEN, bias, **given).to("float64")
        assert list(ours.state_dict()) == list(theirs.state_dict())
        ours.load_state_dict(theirs.state_dict())
        random = np.random.default_rng(0)
        x = random.normal(size=shape)
        parts = [random.normal(size=(*shape[:-1], HIDDEN)) for _ in range(1 + (name == "LSTMCell"))]
        for state in (None, parts):
            tensors = None if state is None else tuple(torch.tensor(part) for part in state)
            expected = theirs(torch.tensor(x), tensors if tensors is None or len(tensors) > 1 else tensors[0])
            given_state = None if state is None else state if len(state) > 1 else state[0]
            found = ours(x, given_state)
            one = found if isinstance(found, tuple) else (found,)
            other = expected if isinstance(expected, tuple) else (expected,)
            for ours_part, their_part in zip(one, other, strict=True):
                np.testing.assert_allclose(ours_part.numpy(), their_part.detach().numpy(), **TOLERANCE)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_without_a_batch(name: str) -> None:
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, name)(INPUTS, HIDDEN, 2, bidirectional=True).double()
    ours = getattr(nn, name)(INPUTS, HIDDEN, 2, bidirectional=True).to("float64")
    ours.load_state_dict(theirs.state_dict())
    x = np.random.default_rng(0).normal(size=(TIME, INPUTS))
    for one, other in zip(flat(ours(x)), flat(theirs(torch.tensor(x))), strict=True):
        np.testing.assert_allclose(one.numpy(), other.detach().numpy(), **TOLERANCE)
    output, last = ours(x, lengths=4)
    np.testing.assert_allclose(output.numpy()[:4], flat(ours(x[:4]))[0].numpy(), **TOLERANCE)
    assert (output.numpy()[4:] == 0).all()
    assert len(last) == (2 if name == "LSTM" else 4)


def test_a_sequence_of_length_0_keeps_its_state() -> None:
    layer = nn.GRU(INPUTS, HIDDEN)
    x, h = np.ones((TIME, 2, INPUTS), np.float32), np.full((1, 2, HIDDEN), 0.5, np.float32)
    output, last = layer(x, h, [0, 2])
    assert (output.numpy()[:, 0] == 0).all()
    np.testing.assert_array_equal(last.numpy()[0, 0], h[0, 0])
    np.testing.assert_array_equal(last.numpy()[0, 1], output.numpy()[1, 1])


def test_initial_weights() -> None:
    layer = nn.LSTM(7, 25, 2, generator=tw.Generator(1))
    for name, value in layer.state_dict().items():
        assert abs(value).max() <= 1 / 5, name
        assert abs(value).max() > 0.9 / 5, name
        assert abs(value.mean()) < 0.05, name
    again = nn.LSTM(7, 25, 2, generator=tw.Generator(1))
    np.testing.assert_array_equal(again.weight_hh_l1.numpy(), layer.weight_hh_l1.numpy())


def test_dropout_is_between_layers_and_in_training_only() -> None:
    """With p = 1 the second layer sees zeros; the last layer's output is not dropped."""
    x = np.ones((TIME, 2, INPUTS), np.float32)
    layer = nn.RNN(INPUTS, HIDDEN, 2, dropout=1.0)
    dropped = layer(x)[0].numpy()
    state = layer.state_dict()
    assert (dropped != 0).all()
    h = np.zeros(HIDDEN, np.float32)
    for step in range(TIME):
        h = np.tanh(state["bias_ih_l1"] + state["bias_hh_l1"] + state["weight_hh_l1"] @ h)
        np.testing.assert_allclose(dropped[step], np.stack([h, h]), rtol=1e-5)
    kept = layer.eval()(x)[0].numpy()
    plain = nn.RNN(INPUTS, HIDDEN, 2).load_state_dict(state)
    np.testing.assert_array_equal(kept, plain(x)[0].numpy())


def test_the_program_does_not_grow_with_the_sequence() -> None:
    layer = nn.LSTM(INPUTS, HIDDEN, 2, bidirectional=True)

    def step(x: Any) -> Any:
        output = layer(x)[0]
        return tw.gradient((output * output).sum(), wrt=layer)

    compiled = tw.compile(step, backend="c")
    short, long = (compiled.graph(tw.spec((time, 3, INPUTS))) for time in (64, 4096))
    assert len(short.nodes) == len(long.nodes)
    lines = [len(str(compiled.source(tw.spec((time, 3, INPUTS)))).splitlines()) for time in (64, 4096)]
    assert abs(lines[0] - lines[1]) <= 0.02 * lines[0]


def test_the_gradient_keeps_gates_and_states_only() -> None:
    """Stacked are the output, and for the backward loop 4 gates, tanh of the cell, and the states before."""
    layer = nn.LSTM(INPUTS, HIDDEN)

    def step(x: Any) -> Any:
        output = layer(x)[0]
        return tw.gradient((output * output).sum(), wrt=layer)

    traced = tw.compile(step, backend="numpy").graph(tw.spec((TIME, BATCH, INPUTS)))
    graph = prepare(traced, lambda node: False)
    stacked = [
        value.shape
        for node in graph.nodes
        if node.op.name == "scan"
        for value in node.outputs
        if value.shape == (TIME, BATCH, HIDDEN)
    ]
    assert len(stacked) == 1 + 4 + 1 + 2


# ---- bad input ---------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    def __init__(self) -> None:
        self.lstm = nn.LSTM(INPUTS, HIDDEN)

    def forward(self, x: Any, hx: Any = None, lengths: Any = None) -> Any:
        return self.lstm(x, hx, lengths)[0]


X = np.ones((TIME, BATCH, INPUTS), np.float32)
H, C = np.ones((1, BATCH, HIDDEN), np.float32), np.ones((1, BATCH, HIDDEN), np.float32)

BAD: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    ((X[..., :2],), ShapeError, r"Tagger\.lstm: LSTM\(5, 3\) needs an input \[time, batch, features\]"),
    ((X[0, 0],), ShapeError, r"Tagger\.lstm.*received shape \(5,\)"),
    ((X.astype(np.int64),), DTypeError, "nn.Embedding"),
    (
        (X, (H[:, :2], C)),
        ShapeError,
        r"Tagger\.lstm: h_0 must be .* = \(1, 4, 3\).*received shape \(1, 2, 3\)",
    ),
    ((X, (H, C[0])), ShapeError, r"Tagger\.lstm: c_0 must be"),
    ((X, H), ArgumentError, r"tuple \(h_0, c_0\)"),
    ((X, None, [6, 7, 1, 1]), ShapeError, r"Tagger\.lstm: lengths must be from 0 to 6.*7 for sequence 1"),
    ((X, None, [6, 5, -1, 1]), ShapeError, "received -1 for sequence 2"),
    ((X, None, [6, 5]), ShapeError, r"Tagger\.lstm: lengths must be one integer for each sequence"),
    ((X, None, np.ones(4, np.float32)), DTypeError, "lengths must be integers"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_bad_input(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Tagger()(*arguments)


@pytest.mark.parametrize("backend", ["numpy", "c"])
def test_lengths_out_of_range_in_a_program(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "c":
        request.getfixturevalue("needs_compiler")
    model = Tagger()
    run = tw.compile(lambda x, lengths: model(x, None, lengths), backend=backend)
    with pytest.raises(IndexRangeError, match=r"Tagger\.lstm.*expected 0 to 6"):
        run(X, tw.tensor([6, 1, 7, 1]))
    assert run(X, tw.tensor([6, 1, 2, 1])).shape == (TIME, BATCH, HIDDEN)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.LSTM(5, 3, proj_size=3), "smaller than hidden_size"),
        (lambda: nn.RNN(5, 3, nonlinearity="gelu"), '"tanh" or "relu"'),
        (lambda: nn.GRU(5, 3, dropout=1.5), "probability"),
        (lambda: nn.GRU(5, 0), "hidden_size must be an integer from 1 on"),
        (lambda: nn.LSTM(5, 3, 0), "num_layers"),
        (lambda: nn.GRU(5, 3)(X, (H,)), "one tensor"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
