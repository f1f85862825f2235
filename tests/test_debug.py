"""`tw.debug.nonfinite`: the op that made the first NaN or infinity, and nothing else changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.errors import ArgumentError

X = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 4, 40)


@pytest.fixture(params=["numpy", "c"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "c":
        request.getfixturevalue("needs_compiler")
    return str(request.param)


class Network(nn.Module):
    def __init__(self) -> None:
        self.first = nn.Linear(6, 9)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(9, 4)

    def forward(self, x: Any) -> Any:
        x = self.dropout(self.first(x).log())  # the logarithm of negative numbers
        return self.last(x)


def test_a_training_step(backend: str) -> None:
    tw.manual_seed(0)
    model = Network()
    optimizer = optim.Adam(model.parameters(), lr=0.01)

    @tw.compile(backend=backend)
    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    before = [np.array(value) for value in (*model.state_dict().values(), tw.default_generator.state.data)]
    found = tw.debug.nonfinite(step)(X, Y)
    after = [*model.state_dict().values(), tw.default_generator.state.data]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found is not None and (found.what, found.source, found.shape) == ("nan", "log", (40, 9))
    hidden = X @ model.state_dict()["first.weight"].T + model.state_dict()["first.bias"]
    assert found.count == (hidden < 0).sum() and hidden[found.index] < 0
    assert found.operands == pytest.approx((hidden[found.index],), rel=1e-4)
    text = str(found)
    assert f"log made nan from {found.operands[0]:.9g}: {found.count} of 360 elements, the first at [" in text
    assert "x = self.dropout(self.first(x).log())" in text and f"{__file__}:" in text
    assert np.isnan(step(X, Y).item())
    state = tw.debug.nonfinite(step)(X, Y)
    assert state is not None and "holds nan already" in str(state) and not state.is_op


CASES = {
    "overflow": (lambda x: (x * 100.0).exp().sum(), "inf", "exp"),
    "a quotient": (lambda x: (x / (x - x)).sum(), "inf", "divide"),
    "a sum over the batch": (lambda x: (x * 0.0 + 3e38).sum(0), "inf", "sum"),
    "inside a product": (lambda x: (x * 1e30) @ (x.T * 1e30), "inf", "matmul"),
}


@pytest.mark.parametrize("name", CASES)
def test_single_ops(name: str, backend: str) -> None:
    function, what, op = CASES[name]
    found = tw.debug.nonfinite(tw.compile(function, backend=backend))(X)
    assert found is not None and (found.what, found.source) == (what, op), found


def test_what_is_meant_is_not_reported(backend: str) -> None:
    def masked(x: Any) -> Any:
        return tw.softmax(tw.where(x > 0.0, x, -np.inf), axis=-1).sum(0)

    rows = np.abs(X[:20]) + 0.1
    rows[:, ::2] *= -1
    assert tw.debug.nonfinite(tw.compile(masked, backend=backend))(rows) is None
    held = X.copy()
    held[3, 2] = np.nan
    found = tw.debug.nonfinite(tw.compile(masked, backend=backend))(held)
    assert str(found) == "the argument 'x' holds nan already: 1 of 240 elements, the first at [3, 2]"


def test_a_function_that_is_not_compiled() -> None:
    with pytest.raises(ArgumentError, match="takes a compiled function"):
        tw.debug.nonfinite(lambda x: x)
