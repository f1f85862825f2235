"""Schedules: PyTorch's learning rates (and momenta) step by step, resuming, and effect on compiled steps."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.errors import ArgumentError, TraceError

STEPS = 30

# The same text builds both: `s` is thalweg.optim or torch.optim.lr_scheduler.
MAKERS: dict[str, Callable[[Any, Any], Any]] = {
    "step": lambda s, o: s.StepLR(o, 7, gamma=0.3),
    "multistep": lambda s, o: s.MultiStepLR(o, [3, 10, 10, 21], gamma=0.5),
    "exponential": lambda s, o: s.ExponentialLR(o, 0.9),
    "constant": lambda s, o: s.ConstantLR(o, factor=0.25, total_iters=6),
    "constant default": lambda s, o: s.ConstantLR(o),
    "linear": lambda s, o: s.LinearLR(o, start_factor=0.1, total_iters=8),
    "linear down": lambda s, o: s.LinearLR(o, start_factor=1.0, end_factor=0.2, total_iters=11),
    "polynomial": lambda s, o: s.PolynomialLR(o, total_iters=20, power=2.0),
    "cosine": lambda s, o: s.CosineAnnealingLR(o, T_max=30, eta_min=0.01),
    "cosine beyond": lambda s, o: s.CosineAnnealingLR(o, T_max=12),
    "lambda": lambda s, o: s.LambdaLR(o, lambda step: 1 / (1 + step)),
    "lambdas": lambda s, o: s.LambdaLR(o, [lambda step: 0.9**step, lambda step: 1.0]),
    "one cycle": lambda s, o: s.OneCycleLR(o, 0.7, total_steps=31),
    "one cycle linear": lambda s, o: s.OneCycleLR(
        o, [0.7, 0.2], epochs=4, steps_per_epoch=8, pct_start=0.4, anneal_strategy="linear", div_factor=10.0
    ),
    "one cycle in three": lambda s, o: s.OneCycleLR(
        o, 0.7, total_steps=40, three_phase=True, base_momentum=0.7, final_div_factor=50.0
    ),
    "warm-up, then cosine": lambda s, o: s.SequentialLR(
        o, [s.LinearLR(o, 0.1, total_iters=5), s.CosineAnnealingLR(o, 20), s.ConstantLR(o, 0.5, 3)], [5, 25]
    ),
    "chained": lambda s, o: s.ChainedScheduler([s.LinearLR(o, 0.25, total_iters=4), s.ExponentialLR(o, 0.9)]),
}


def optimisers(kind: str) -> tuple[Any, Any]:
    torch = pytest.importorskip("torch")

    def make(library: Any, parameter: Any) -> Any:
        groups = [{"params": [parameter()], "lr": 0.4}, {"params": [parameter()]}]
        if kind == "Adam":
            return library.Adam(groups, lr=0.1, betas=(0.8, 0.99))
        return library.SGD(groups, lr=0.1, momentum=0.9)

    ours = make(optim, lambda: nn.Parameter(np.ones(1)))
    return ours, make(torch.optim, lambda: torch.ones(1, requires_grad=True))


def values(optimizer: Any) -> list[float]:
    found = []
    for group in optimizer.param_groups:
        found += [group["lr"], group["betas"][0] if "betas" in group else group["momentum"]]
    return found


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize("name", MAKERS)
def test_values_are_those_of_pytorch(name: str, kind: str) -> None:
    torch = pytest.importorskip("torch")
    ours, theirs = optimisers(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns about its own SequentialLR
        schedule, other = MAKERS[name](optim, ours), MAKERS[name](torch.optim.lr_scheduler, theirs)
        for step in range(STEPS):
            np.testing.assert_allclose(
                values(ours), values(theirs), rtol=1e-9, atol=1e-12, err_msg=f"step {step}"
            )
            assert schedule.get_last_lr() == [group["lr"] for group in ours.param_groups]
            schedule.step()
            theirs.step()
            other.step()


@pytest.mark.parametrize("name", MAKERS)
def test_resuming_continues_the_same_values(name: str) -> None:
    def fresh() -> tuple[Any, Any]:
        groups = [{"params": [nn.Parameter(np.ones(1))], "lr": 0.4}, {"params": [nn.Parameter(np.ones(1))]}]
        optimizer = optim.SGD(groups, lr=0.1, momentum=0.9)
        return optimizer, MAKERS[name](optim, optimizer)

    optimizer, schedule = fresh()
    for _ in range(9):
        schedule.step()
    saved = json.loads(json.dumps(schedule.state_dict()))
    resumed_optimizer, resumed = fresh()
    resumed.load_state_dict(saved)
    assert "step=9" in repr(resumed)
    for _ in range(STEPS - 10):
        assert values(resumed_optimizer) == values(optimizer)
        schedule.step()
        resumed.step()


def test_resuming_with_the_optimisers_state() -> None:
    def fresh() -> tuple[Any, Any]:
        optimizer = optim.SGD([nn.Parameter(np.ones(1))], lr=0.4)
        return optimizer, optim.StepLR(optimizer, 2)

    optimizer, schedule = fresh()
    for _ in range(5):
        schedule.step()
    other, resumed = fresh()
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert other.lr == optimizer.lr == pytest.approx(0.004)
    bare = optim.SGD([nn.Parameter(np.ones(1))], lr=0.4)
    bare.load_state_dict(optimizer.state_dict())  # no schedule yet: it begins from the saved initial rate
    assert optim.StepLR(bare, 2).base_lrs == [0.4]


def test_a_schedule_takes_effect_in_a_compiled_step() -> None:
    parameter = nn.Parameter(np.array([0.0]))
    optimizer = optim.SGD([parameter], lr=1.0)
    schedule = optim.ExponentialLR(optimizer, 0.5)
    traces: list[int] = []

    @tw.compile(backend="numpy")
    def step() -> None:
        traces.append(1)
        optimizer.minimize(-(parameter * 1.0).sum())

    seen = []
    for _ in range(4):
        step()
        schedule.step()
        seen.append(parameter.item())
    assert seen == [1.0, 1.5, 1.75, 1.875]
    assert len(traces) == 1


def test_stepping_inside_a_trace_is_an_error() -> None:
    optimizer = optim.SGD([nn.Parameter(np.ones(1))], lr=1.0)
    schedule = optim.StepLR(optimizer, 1)

    def step(x: Any) -> Any:
        schedule.step()
        return x * 1

    with pytest.raises(TraceError, match="inside a compiled function"):
        tw.compile(step, backend="numpy")(np.ones(1))
    assert (schedule.last_epoch, optimizer.lr) == (0, 1.0)


def sgd(momentum: float = 0.9) -> Any:
    return optim.SGD([nn.Parameter(np.ones(1))], lr=0.1, momentum=momentum)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: optim.StepLR(nn.Linear(1, 1), 2), "needs an optimiser, received Linear"),
        (lambda: optim.StepLR(sgd(), 0), "step_size must be positive"),
        (lambda: optim.LinearLR(sgd(), start_factor=0.0), "start_factor"),
        (lambda: optim.LinearLR(sgd(), end_factor=1.5), "end_factor"),
        (lambda: optim.ConstantLR(sgd(), factor=2.0), "factor must lie between"),
        (lambda: optim.CosineAnnealingLR(sgd(), 0), "T_max must be positive"),
        (lambda: optim.LambdaLR(sgd(), [abs, abs]), "2 functions for 1 parameter groups"),
        (lambda: optim.OneCycleLR(sgd(), 0.1), "give total_steps, or both epochs and steps_per_epoch"),
        (lambda: optim.OneCycleLR(sgd(), [0.1, 0.2], total_steps=5), "2 values of max_lr for 1"),
        (lambda: optim.OneCycleLR(sgd(), 0.1, total_steps=5, pct_start=2.0), "pct_start"),
        (lambda: optim.OneCycleLR(sgd(), 0.1, total_steps=5, anneal_strategy="sin"), "anneal_strategy"),
        (lambda: optim.OneCycleLR(sgd(0.0), 0.1, total_steps=5), "cycle_momentum=False"),
        (lambda: optim.SequentialLR(sgd(), [], []), "rising milestones"),
        (lambda: optim.ChainedScheduler([]), "at least one schedule"),
        (lambda: optim.ChainedScheduler([optim.StepLR(sgd(), 1)], sgd()), "belongs to another optimiser"),
        (lambda: optim.StepLR(sgd(), 1).load_state_dict({"step": 3}), "last_epoch"),
        (
            lambda: optim.StepLR(sgd(), 1).load_state_dict({"last_epoch": 1, "base_lrs": [1, 2]}),
            "2 parameter groups",
        ),
    ],
)
def test_wrong_uses_are_explained(call: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        call()


def test_one_cycle_ends() -> None:
    schedule = optim.OneCycleLR(sgd(), 0.1, total_steps=3)
    for _ in range(3):
        schedule.step()
    with pytest.raises(ArgumentError, match="made for 3 steps"):
        schedule.step()
    assert schedule.last_epoch == 3
