"""Learning-rate schedules with PyTorch's names and values.

In: an optimiser and a few numbers. `schedule.step()`, called by the training loop after each epoch or step,
writes the next value into the optimiser's parameter groups; compiled steps read it from there, so nothing is
compiled again.

Every schedule is a closed formula of the number of steps done and of the rate with which the optimiser was
made (`initial_lr`), never of the present rate: it can be resumed anywhere and does not accumulate rounding.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from thalweg.errors import ArgumentError
from thalweg.optim.optimizer import Optimizer


class Schedule:
    """Base class. A subclass gives `rate(base, step)`, or `write(step)` where it sets more than `lr`."""

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError(
                f"{type(self).__name__} needs an optimiser, received {type(optimizer).__name__}; "
                f"write {type(self).__name__}(optimizer, ...)"
            )
        self.optimizer = optimizer
        self.base_lrs: list[float] = []
        for group in optimizer.param_groups:
            self.base_lrs.append(float(group.setdefault("initial_lr", group["lr"])))
        self.last_epoch = 0
        self.write(0)

    def rate(self, base: float, step: int) -> float:
        """The learning rate after `step` steps of a group whose rate was `base` at first."""
        raise NotImplementedError

    def rates(self, step: int) -> list[float]:
        """The learning rate of every parameter group after `step` steps."""
        return [self.rate(base, step) for base in self.base_lrs]

    def write(self, step: int) -> None:
        """Write the values of that step into the optimiser's groups."""
        for group, rate in zip(self.optimizer.param_groups, self.rates(step), strict=True):
            group["lr"] = rate

    def step(self) -> None:
        """Go on by one step. To be called outside compiled functions, which read the new value by
        themselves.
        """
        self.write(self.last_epoch + 1)
        self.last_epoch += 1

    def get_last_lr(self) -> list[float]:
        """The present learning rate of every parameter group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """What is needed to resume: numbers only, so it can be written as JSON."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state_dict()` of a schedule made with the same arguments; sets the learning rates."""
        self._check_state(state)
        self._restore(state)
        self.write(self.last_epoch)

    def _check_state(self, state: Mapping[str, Any]) -> None:
        expected = self.state_dict()
        if set(state) != set(expected):
            raise ArgumentError(
                f"{type(self).__name__} expects the entries {sorted(expected)}, received {sorted(state)}; "
                "was the state saved by another kind of schedule?"
            )
        if len(state["base_lrs"]) != len(self.base_lrs):
            raise ArgumentError(
                f"the saved schedule has {len(state['base_lrs'])} parameter groups, "
                f"this optimiser has {len(self.base_lrs)}"
            )

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.base_lrs = [float(rate) for rate in state["base_lrs"]]
        self.last_epoch = int(state["last_epoch"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(step={self.last_epoch}, lr={self.get_last_lr()})"


def _positive(name: str, value: float, schedule: str) -> None:
    if not value > 0:
        raise ArgumentError(f"{schedule}: {name} must be positive, received {value!r}")


class LambdaLR(Schedule):
    """The initial rate times `lr_lambda(step)`; one function for all groups, or a list with one for each."""

    def __init__(
        self, optimizer: Optimizer, lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]]
    ) -> None:
        groups = len(optimizer.param_groups)
        self.lr_lambdas = [lr_lambda] * groups if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != groups:
            raise ArgumentError(
                f"LambdaLR: {len(self.lr_lambdas)} functions for {groups} parameter groups; give one "
                "function, "
                "or one for each group"
            )
        super().__init__(optimizer)

    def rates(self, step: int) -> list[float]:
        return [base * float(f(step)) for base, f in zip(self.base_lrs, self.lr_lambdas, strict=True)]


class StepLR(Schedule):
    """Times `gamma` every `step_size` steps."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        _positive("step_size", step_size, "StepLR")
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        return float(base * self.gamma ** (step // self.step_size))


class MultiStepLR(Schedule):
    """Times `gamma` at each of the `milestones`, given in steps."""

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        return float(base * self.gamma ** bisect_right(self.milestones, step))


class ConstantLR(Schedule):
    """Times `factor` during the first `total_iters` steps."""

    def __init__(self, optimizer: Optimizer, factor: float = 1.0 / 3, total_iters: int = 5) -> None:
        if not 0 <= factor <= 1:
            raise ArgumentError(f"ConstantLR: factor must lie between 0 and 1, received {factor!r}")
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        return base * self.factor if step < self.total_iters else base


class LinearLR(Schedule):
    """From `start_factor` to `end_factor` times the rate in `total_iters` equal steps: a linear warm-up."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
    ) -> None:
        if not 0 < start_factor <= 1:
            raise ArgumentError(
                f"LinearLR: start_factor must be above 0 and at most 1, received {start_factor!r}"
            )
        if not 0 <= end_factor <= 1:
            raise ArgumentError(f"LinearLR: end_factor must lie between 0 and 1, received {end_factor!r}")
        _positive("total_iters", total_iters, "LinearLR")
        self.start_factor, self.end_factor, self.total_iters = start_factor, end_factor, total_iters
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        done = min(step, self.total_iters) / self.total_iters
        return base * (self.start_factor + (self.end_factor - self.start_factor) * done)


class ExponentialLR(Schedule):
    """Times `gamma` every step."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = gamma
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        return float(base * self.gamma**step)


class PolynomialLR(Schedule):
    """Falls to 0 in `total_iters` steps as (1 - step / total_iters) to the `power`."""

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0) -> None:
        _positive("total_iters", total_iters, "PolynomialLR")
        self.total_iters, self.power = total_iters, power
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        return float(base * (1 - min(step, self.total_iters) / self.total_iters) ** self.power)


class CosineAnnealingLR(Schedule):
    """Half a cosine from the initial rate down to `eta_min` in `T_max` steps (Loshchilov and Hutter,
    2017).
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        _positive("T_max", T_max, "CosineAnnealingLR")
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * step / self.T_max)) / 2


class OneCycleLR(Schedule):
    """Up to `max_lr`, then far down, within `total_steps` steps (Smith and Topin, 2018).

    The rate rises from `max_lr / div_factor` during the share `pct_start` of the steps and then falls to
    `max_lr / (div_factor * final_div_factor)`; with `three_phase` it first falls back to where it began.
    Momentum (SGD, RMSprop) or the first of `betas` (Adam) moves the other way between `max_momentum` and
    `base_momentum`, unless `cycle_momentum=False`. Give `total_steps`, or `epochs` and `steps_per_epoch`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
    ) -> None:
        groups = len(optimizer.param_groups)
        self.max_lrs = [float(max_lr)] * groups if isinstance(max_lr, (int, float)) else list(max_lr)
        if len(self.max_lrs) != groups:
            raise ArgumentError(
                f"OneCycleLR: {len(self.max_lrs)} values of max_lr for {groups} parameter groups"
            )
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ArgumentError("OneCycleLR: give total_steps, or both epochs and steps_per_epoch")
            total_steps = epochs * steps_per_epoch
        _positive("total_steps", total_steps, "OneCycleLR")
        if not 0 <= pct_start <= 1:
            raise ArgumentError(f"OneCycleLR: pct_start must lie between 0 and 1, received {pct_start!r}")
        if anneal_strategy not in ("cos", "linear"):
            raise ArgumentError(
                f'OneCycleLR: anneal_strategy must be "cos" or "linear", received {anneal_strategy!r}'
            )
        self.total_steps, self.anneal = total_steps, _ANNEAL[anneal_strategy]
        self.cycle_momentum, self.base_momentum, self.max_momentum = (
            cycle_momentum,
            base_momentum,
            max_momentum,
        )
        self.div_factor, self.final_div_factor, self.three_phase = div_factor, final_div_factor, three_phase
        self.pct_start = pct_start
        if cycle_momentum:
            for group in optimizer.param_groups:
                if "betas" not in group and not group.get("momentum"):
                    raise ArgumentError(
                        "OneCycleLR cycles the momentum, which this optimiser does not use; give the "
                        "optimiser a "
                        "momentum, or write OneCycleLR(..., cycle_momentum=False)"
                    )
        super().__init__(optimizer)

    def _phases(self, low: float, high: float, end: float) -> list[tuple[float, float, float]]:
        """(last step, value at its start, value at its end) of each phase."""
        rise = self.pct_start * self.total_steps - 1
        last = self.total_steps - 1
        if self.three_phase:
            return [(rise, low, high), (2 * rise, high, low), (last, low, end)]
        return [(rise, low, high), (last, high, end)]

    def _value(self, phases: list[tuple[float, float, float]], step: int) -> float:
        begin = 0.0
        for number, (last, start, end) in enumerate(phases):
            if step <= last or number == len(phases) - 1:
                return self.anneal(start, end, (step - begin) / (last - begin) if last > begin else 1.0)
            begin = last
        raise AssertionError("unreachable: the last phase always matches")

    def rates(self, step: int) -> list[float]:
        found = []
        for top in self.max_lrs:
            low = top / self.div_factor
            found.append(self._value(self._phases(low, top, low / self.final_div_factor), step))
        return found

    def write(self, step: int) -> None:
        if step > self.total_steps:
            raise ArgumentError(
                f"OneCycleLR was made for {self.total_steps} steps and has been asked for step {step}; "
                "make it with a larger total_steps"
            )
        super().write(step)
        if not self.cycle_momentum:
            return
        momentum = self._value(self._phases(self.max_momentum, self.base_momentum, self.max_momentum), step)
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


def _linear(start: float, end: float, part: float) -> float:
    return (end - start) * part + start


_ANNEAL = {"cos": _cosine, "linear": _linear}


class _Combined(Schedule):
    """Several schedules of one optimiser; the parts are only formulas here, the whole does the stepping."""

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[Schedule]) -> None:
        self.schedulers = list(schedulers)
        if not self.schedulers:
            raise ArgumentError(f"{type(self).__name__} needs at least one schedule, received none")
        for part in self.schedulers:
            if part.optimizer is not optimizer:
                raise ArgumentError(f"{type(self).__name__}: {part!r} belongs to another optimiser")
        super().__init__(optimizer)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "schedulers": [part.state_dict() for part in self.schedulers]}

    def _check_state(self, state: Mapping[str, Any]) -> None:
        super()._check_state(state)
        if len(state["schedulers"]) != len(self.schedulers):
            raise ArgumentError(
                f"the saved {type(self).__name__} has {len(state['schedulers'])} parts, this one "
                f"{len(self.schedulers)}"
            )
        for part, saved in zip(self.schedulers, state["schedulers"], strict=True):
            part._check_state(saved)

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        for part, saved in zip(self.schedulers, state["schedulers"], strict=True):
            part._restore(saved)


class SequentialLR(_Combined):
    """One schedule after another: part i+1 begins, at its own step 0, when `milestones[i]` steps are done."""

    def __init__(
        self, optimizer: Optimizer, schedulers: Sequence[Schedule], milestones: Sequence[int]
    ) -> None:
        self.milestones = list(milestones)
        if len(self.milestones) != len(schedulers) - 1 or self.milestones != sorted(self.milestones):
            raise ArgumentError(
                f"SequentialLR: {len(schedulers)} schedules need {len(schedulers) - 1} rising milestones, "
                f"received {list(milestones)}"
            )
        super().__init__(optimizer, schedulers)

    def write(self, step: int) -> None:
        number = bisect_right(self.milestones, step)
        begin = self.milestones[number - 1] if number else 0
        self.schedulers[number].write(step - begin)
        self.schedulers[number].last_epoch = step - begin

    def rates(self, step: int) -> list[float]:
        number = bisect_right(self.milestones, step)
        return self.schedulers[number].rates(step - (self.milestones[number - 1] if number else 0))


class ChainedScheduler(_Combined):
    """All schedules at once: the initial rate times the product of their factors."""

    def __init__(self, schedulers: Sequence[Schedule], optimizer: Optimizer | None = None) -> None:
        if optimizer is None and not schedulers:
            raise ArgumentError("ChainedScheduler needs at least one schedule, received none")
        super().__init__(optimizer or schedulers[0].optimizer, schedulers)

    def rates(self, step: int) -> list[float]:
        found = list(self.base_lrs)
        for part in self.schedulers:
            for index, (base, rate) in enumerate(zip(part.base_lrs, part.rates(step), strict=True)):
                found[index] *= rate / base if base else 0.0
        return found

    def step(self) -> None:
        super().step()
        for part in self.schedulers:
            part.last_epoch = self.last_epoch
