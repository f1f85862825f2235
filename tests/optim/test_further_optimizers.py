"""Lion, Adafactor and Muon, and the running average of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.errors import ArgumentError

Array = np.ndarray[Any, Any]
SHAPES = [(3, 5), (6, 4), (2, 4, 3), (7,), ()]
STEPS = 8
BACKENDS = [None, "c"]  # None: eager


@pytest.fixture(autouse=True)
def _compiler(request: pytest.FixtureRequest) -> None:
    if "backend" in request.fixturenames and request.getfixturevalue("backend") == "c":
        request.getfixturevalue("needs_compiler")


def values(shapes: list[tuple[int, ...]], dtype: str) -> list[Array]:
    random = np.random.default_rng(4)
    return [np.asarray(random.normal(size=shape)).astype(dtype) for shape in shapes]


def trained(optimizer: Any, parameters: list[Any], backend: str | None, dtype: str) -> list[list[Array]]:
    """The parameters after each step, with gradients that depend on them."""

    def step(targets: list[Any]) -> None:
        difference = [(p - t) for p, t in zip(parameters, targets, strict=True)]
        optimizer.minimize(sum((d * d * d.tanh()).sum() for d in difference))

    run = step if backend is None else tw.compile(step, backend=backend)
    found = []
    for number in range(STEPS):
        run([tw.tensor(t) for t in targets(parameters, number, dtype)])
        found.append([np.array(p.numpy()) for p in parameters])
    return found


def targets(parameters: list[Any], number: int, dtype: str) -> list[Array]:
    random = np.random.default_rng(number)
    return [np.asarray(random.normal(size=tuple(p.shape))).astype(dtype) for p in parameters]


def trained_by_torch(optimizer: Any, parameters: list[Any], dtype: str) -> list[list[Array]]:
    torch = pytest.importorskip("torch")
    found = []
    for number in range(STEPS):
        optimizer.zero_grad()
        difference = [
            p - torch.from_numpy(np.array(t))
            for p, t in zip(parameters, targets(parameters, number, dtype), strict=True)
        ]
        sum((d * d * d.tanh()).sum() for d in difference).backward()
        optimizer.step()
        found.append([p.detach().numpy().copy() for p in parameters])
    return found


def compare(found: list[list[Array]], expected: list[list[Array]], tolerance: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for value, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(value, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 5e-6)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.3, "beta2_decay": -0.5, "eps": (1e-6, 0.1), "d": 1.5, "weight_decay": 0.1, "maximize": True},
    ],
    ids=["defaults", "others"],
)
def test_adafactor_is_that_of_pytorch(
    options: dict[str, Any], dtype: str, tolerance: float, backend: str | None
) -> None:
    torch = pytest.importorskip("torch")
    theirs = [torch.tensor(value, requires_grad=True) for value in values(SHAPES, dtype)]
    expected = trained_by_torch(torch.optim.Adafactor(theirs, **options), theirs, dtype)
    ours = [nn.Parameter(value) for value in values(SHAPES, dtype)]
    optimizer = optim.Adafactor(ours, **options)
    compare(trained(optimizer, ours, backend, dtype), expected, tolerance)
    state = optimizer.state_dict()
    # a row and a column of each matrix, nothing of its size
    assert state["state.2.row_var"].shape == (2, 4, 1) and state["state.2.col_var"].shape == (2, 1, 3)
    assert state["state.3.variance"].shape == (7,)
    other = optim.Adafactor([nn.Parameter(value) for value in values(SHAPES, dtype)], **options)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.state_dict()["state.0.row_var"], state["state.0.row_var"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-5)])
@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.05},
        {
            "lr": 0.05,
            "nesterov": False,
            "weight_decay": 0.0,
            "ns_steps": 3,
            "adjust_lr_fn": "match_rms_adamw",
        },
    ],
    ids=["defaults", "others"],
)
def test_muon_is_that_of_pytorch(
    options: dict[str, Any],
    dtype: str,
    tolerance: float,
    backend: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch")
    # PyTorch rounds the iteration to bfloat16; compared in the type that the parameters have
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
    shapes = [shape for shape in SHAPES if len(shape) == 2] + [(4, 4)]
    theirs = [torch.tensor(value, requires_grad=True) for value in values(shapes, dtype)]
    expected = trained_by_torch(torch.optim.Muon(theirs, **options), theirs, dtype)
    ours = [nn.Parameter(value) for value in values(shapes, dtype)]
    compare(trained(optim.Muon(ours, **options), ours, backend, dtype), expected, tolerance)


def test_muon_takes_matrices_only_and_its_steps_are_nearly_orthogonal() -> None:
    with pytest.raises(ArgumentError, match=r"Muon trains matrices; parameter .* has shape \(7,\)"):
        optim.Muon([nn.Parameter(np.zeros(7))])
    weight = nn.Parameter(np.zeros((20, 30)))
    random = np.random.default_rng(0)
    optimizer = optim.Muon([weight], lr=1.0, momentum=0.0, weight_decay=0.0)
    optimizer.apply([tw.tensor(random.normal(size=(20, 30)))])
    sizes = np.linalg.svd(weight.numpy(), compute_uv=False)
    assert sizes.max() < 1.25 and sizes.min() > 0.3


@pytest.mark.parametrize("backend", BACKENDS)
def test_lion_by_hand(backend: str | None) -> None:
    ours = [nn.Parameter(value) for value in values(SHAPES, "float64")]
    optimizer = optim.Lion(ours, lr=0.01, betas=(0.8, 0.9), weight_decay=0.2)
    found = trained(optimizer, ours, backend, "float64")
    weights, means = values(SHAPES, "float64"), [np.zeros(shape) for shape in SHAPES]
    for number, step in enumerate(found):
        given = targets(ours, number, "float64")
        for place, (weight, mean) in enumerate(zip(weights, means, strict=True)):
            d = weight - given[place]
            gradient = 2 * d * np.tanh(d) + d * d * (1 - np.tanh(d) ** 2)
            weight = weight * (1 - 0.01 * 0.2) - 0.01 * np.sign(0.8 * mean + 0.2 * gradient)
            weights[place], means[place] = weight, 0.9 * mean + 0.1 * gradient
            np.testing.assert_allclose(step[place], weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.Lion(p, betas=(0.9,)),  # type: ignore[arg-type]
        lambda p: optim.Lion(p, lr=-1),
        lambda p: optim.Adafactor(p, eps=(1e-3,)),  # type: ignore[arg-type]
        lambda p: optim.Adafactor(p, d=0.5),
        lambda p: optim.Adafactor(p, beta2_decay=0.8),
        lambda p: optim.Muon(p, adjust_lr_fn="other"),
        lambda p: optim.Muon(p, ns_steps=0),
        lambda p: optim.Muon(p, momentum=1),
    ],
)
def test_options_that_make_no_sense(make: Any) -> None:
    with pytest.raises(ArgumentError):
        make([nn.Parameter(np.zeros((2, 2)))])


# ---- averages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_average_is_that_of_pytorch(use_buffers: bool, backend: str | None) -> None:
    torch = pytest.importorskip("torch")
    tw.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to("float64")
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).double()
    theirs.load_state_dict({name: torch.tensor(value) for name, value in model.state_dict().items()})
    average = optim.ExponentialMovingAverage(model, decay=0.9, use_buffers=use_buffers)
    other = torch.optim.swa_utils.AveragedModel(
        theirs, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=use_buffers
    )
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    their_optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)

    def step(x: Any) -> None:
        y = model(x)
        optimizer.minimize((y * y.tanh()).sum())
        average.update_parameters(model)

    run = step if backend is None else tw.compile(step, backend=backend)
    for number in range(5):
        x = np.random.default_rng(number).normal(size=(6, 3))
        run(tw.tensor(x))
        y = theirs(torch.tensor(x))
        their_optimizer.zero_grad()
        (y * y.tanh()).sum().backward()
        their_optimizer.step()
        other.update_parameters(theirs)
    found, expected = average.state_dict(), other.state_dict()
    assert found["n_averaged"] == 5 and set(found) == set(expected)
    for name, value in expected.items():
        if not (use_buffers and name.endswith("num_batches_tracked")):  # PyTorch averages whole numbers too
            np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-10, atol=1e-12, err_msg=name)
    x = np.random.default_rng(9).normal(size=(6, 3))
    assert not average.module.training
    np.testing.assert_allclose(average(x).numpy(), other.eval()(torch.tensor(x)).detach().numpy(), rtol=1e-9)


def test_averages_refuse_other_models() -> None:
    average = optim.ExponentialMovingAverage(nn.Linear(3, 4))
    with pytest.raises(
        ArgumentError, match=r"cannot take in a Linear: weight, bias are not the same in both"
    ):
        average.update_parameters(nn.Linear(3, 5))
    with pytest.raises(ArgumentError, match="decay must be from 0 to 1"):
        optim.ExponentialMovingAverage(nn.Linear(3, 4), decay=1.5)
    assert int(average.n_averaged.numpy()) == 0
