"""`Optimizer`: what all optimisers share. One optimiser is `init` (its slots) and `update` (its mathematics).

In: parameters, and a loss or gradients. Out: new values of the parameters and slots, at once in eager mode,
as state outputs of the program inside a compiled function. Numbers such as the learning rate are scalar state
too, in float64 as in PyTorch's Python code: changing one never compiles again, unless its term is absent
while it is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, TraceError
from thalweg.graph import module_scope
from thalweg.nn.state import check_entries
from thalweg.ops.core import cast
from thalweg.tensor.gradient import gradient, gradients_where_used, no_grad, release
from thalweg.tensor.state import Buffer, Parameter, bump_epoch
from thalweg.tensor.trace import tracing
from thalweg.types import DType, Type

Array = np.ndarray[Any, Any]
Options = Mapping[str, Any]
Parameters = Iterable[Parameter] | Iterable[dict[str, Any]]
Clip = Callable[[Sequence[Any]], Sequence[Any]]


class ParameterGroup(MutableMapping[str, Any]):
    """Parameters with common options, as a mapping: `group["lr"] = 0.01` takes effect at the next step.

    Floats (and tuples of floats) are numbers, kept in scalar buffers that programs read; everything else is
    fixed in the program. The key "params" gives the parameters.
    """

    def __init__(self, optimizer: Optimizer, params: list[Parameter], options: dict[str, Any]) -> None:
        self._optimizer = optimizer
        self.params = params
        self.slots: list[dict[str, Buffer]] = [{} for _ in params]
        self.complete = [False] * len(params)  # whether a parameter has all slots that the options ask for
        self._options: dict[str, Any] = {}
        self._numbers: dict[str, tuple[Buffer, ...]] = {}
        optimizer.check(options)
        for name, value in options.items():
            self.set_checked(name, value)

    def __getitem__(self, name: str) -> Any:
        return self.params if name == "params" else self._options[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if tracing():
            raise TraceError(
                f"{name} = {value!r} is being set inside a compiled function, where it would happen "
                "only once, while "
                "tracing; set it before the call: it takes effect without compiling again"
            )
        if name == "params":
            raise ArgumentError(
                "the parameters of a group are fixed; write optimizer.add_param_group({'params': ...})"
            )
        known = self._options.get(name)
        if isinstance(known, float):
            value = _as_number(name, value)
        elif isinstance(known, tuple):
            value = tuple(_as_number(name, item) for item in value)
        if name in self._options:
            self._optimizer.check({**self._options, name: value})
        self.set_checked(name, value)

    def set_checked(self, name: str, value: Any) -> None:
        """Set an option that is known to go with the others."""
        before = self._options.get(name)
        self._options[name] = value
        values = value if isinstance(value, tuple) else (value,)
        if name not in self._optimizer.defaults:  # a note of the schedules, of no concern to programs
            return
        number = all(isinstance(item, float) for item in values)
        if number:
            if name not in self._numbers:
                self._numbers[name] = tuple(Buffer(np.float64(item), name=name) for item in values)
            for holder, item in zip(self._numbers[name], values, strict=True):
                holder.replace(np.float64(item))
        vanishes = name in self._optimizer.absent_at_zero and (before == 0) != (value == 0)
        if before is not None and (vanishes or (not number and value != before)):
            self.complete = [False] * len(self.params)
            bump_epoch()

    def __delitem__(self, name: str) -> None:
        raise ArgumentError(f"the option {name!r} of a parameter group cannot be removed")

    def __iter__(self) -> Iterator[str]:
        yield "params"
        yield from self._options

    def __len__(self) -> int:
        return len(self._options) + 1

    def hyper(self) -> dict[str, Any]:
        """The options as `update` takes them: numbers as tensors (None where absent at zero), the rest as it
        is.
        """
        found: dict[str, Any] = dict(self._options)
        for name, holders in self._numbers.items():
            if name in self._optimizer.absent_at_zero and self._options[name] == 0:
                found[name] = None
            else:
                found[name] = holders if isinstance(self._options[name], tuple) else holders[0]
        return found

    def __repr__(self) -> str:
        return f"ParameterGroup({len(self.params)} parameters, {self._options})"


class Optimizer:
    """Base class. A subclass passes its default options to `__init__` and gives `init`, `update` and `check`.

    `params` are parameters (`model.parameters()`) or, for groups with options of their own, dicts as in
    PyTorch: `[{"params": model.body.parameters()}, {"params": model.head.parameters(), "lr": 0.1}]`. `clip`
    is a function from the list of all gradients to a list of clipped ones (`clip_by_norm(1.0)`).
    """

    absent_at_zero: ClassVar[tuple[str, ...]] = (
        "weight_decay",
    )  # numbers whose term is left out while they are 0

    def __init__(self, params: Parameters, defaults: dict[str, Any], clip: Clip | None = None) -> None:
        if clip is not None and not callable(clip):
            raise ArgumentError(
                f"clip must be a function on a list of gradients, received {clip!r}; write for example "
                "clip=optim.clip_by_norm(1.0)"
            )
        self.defaults = {name: _normal(name, value) for name, value in defaults.items()}
        self.clip = clip
        self.param_groups: list[ParameterGroup] = []
        for group in _groups(type(self).__name__, params):
            self.add_param_group(group)

    # ---- what a subclass gives ----------------------------------------------------------------------------

    def init(self, parameter: Parameter, options: Options) -> dict[str, Array]:
        """Name -> first value of every slot of a parameter."""
        raise NotImplementedError(f"{type(self).__name__} must define init(parameter, options)")

    def update(
        self, parameter: Any, gradient: Any, slots: Mapping[str, Any], hyper: Mapping[str, Any]
    ) -> tuple[Any, Mapping[str, Any]]:
        """The parameter and its slots after one step, built with op functions."""
        raise NotImplementedError(
            f"{type(self).__name__} must define update(parameter, gradient, slots, hyper)"
        )

    def check(self, options: Options) -> None:
        """Raise `ArgumentError` for options that make no sense."""

    # ---- use ----------------------------------------------------------------------------------------------

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters, with options of their own: `{"params": ..., "lr": 0.1}`."""
        if tracing():
            raise TraceError("a parameter group cannot be added inside a compiled function; add it before")
        owner = type(self).__name__
        params = _parameters(owner, group["params"])
        unknown = [
            name for name in group if name != "params" and name not in self.defaults and name != "initial_lr"
        ]
        if unknown:
            raise ArgumentError(
                f"{owner} has no option {', '.join(unknown)}; it has {', '.join(self.defaults)}"
            )
        known = {id(parameter) for other in self.param_groups for parameter in other.params}
        for parameter in params:
            if id(parameter) in known:
                raise ArgumentError(f"{owner}: parameter {parameter.name!r} {parameter.type} is given twice")
            known.add(id(parameter))
        options = {**self.defaults, **{n: _normal(n, v) for n, v in group.items() if n != "params"}}
        made = ParameterGroup(self, params, options)
        self.param_groups.append(made)
        for index, parameter in enumerate(params):
            if parameter.trainable:
                self._slots(made, index)
        bump_epoch()

    def parameters(self) -> list[Parameter]:
        """The parameters that a step changes: all that are not frozen, in order."""
        return [parameter for group in self.param_groups for parameter in group.params if parameter.trainable]

    def minimize(self, loss: Any, allow_unused: bool = False) -> None:
        """One step: the gradient of the scalar `loss` with respect to the parameters, then their update.

        Frozen parameters are left alone. A parameter that the loss does not depend on is an error, or left
        alone with `allow_unused=True`.
        """
        parameters = self.parameters()
        if not parameters:
            raise ArgumentError(
                f"{type(self).__name__}.minimize: every parameter is frozen; set trainable = True"
            )
        found = gradients_where_used(loss, parameters) if allow_unused else gradient(loss, wrt=parameters)
        release(loss)
        self.apply(found)

    def apply(self, gradients: Sequence[Any]) -> None:
        """One step with these gradients, one for each of `parameters()`; None leaves its parameter alone."""
        parameters = self.parameters()
        if isinstance(gradients, Mapping):
            raise ArgumentError(
                "apply takes a sequence of gradients in the order of optimizer.parameters(); write "
                "optimizer.apply([gradients[name] for name, _ in model.named_parameters()])"
            )
        gradients = list(gradients)
        if len(gradients) != len(parameters):
            raise ArgumentError(
                f"{len(gradients)} gradients were given for {len(parameters)} trainable parameters"
            )
        with no_grad(), module_scope(f"{type(self).__name__} update"):
            if self.clip is not None:
                gradients = list(self.clip(gradients))
            remaining = iter(gradients)
            for group in self.param_groups:
                hyper = group.hyper()
                for index, parameter in enumerate(group.params):
                    given = next(remaining) if parameter.trainable else None
                    if given is not None:
                        self._step(group, index, given, hyper)

    def _step(self, group: ParameterGroup, index: int, given: Any, hyper: Mapping[str, Any]) -> None:
        parameter, slots = group.params[index], self._slots(group, index)
        if tuple(given.shape) != parameter.shape:
            raise ArgumentError(
                f"the gradient for parameter {parameter.name!r} has shape {tuple(given.shape)}, "
                f"the parameter {parameter.shape}"
            )
        value, changed = self.update(parameter, given, slots, hyper)
        parameter.assign(value)
        for name, slot in changed.items():
            slots[name].assign(slot)

    def _slots(self, group: ParameterGroup, index: int) -> dict[str, Buffer]:
        """The slots of a parameter; made when they are first needed."""
        slots, parameter = group.slots[index], group.params[index]
        if group.complete[index]:
            return slots
        for name, array in self.init(parameter, dict(group)).items():
            if name not in slots:
                slots[name] = Buffer(array, name=f"{parameter.name or 'parameter'}.{name}")
        group.complete[index] = True
        return slots

    # ---- options as attributes ----------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # Only reached for names that are not attributes: the options, opt.lr for example.
        groups = self.__dict__.get("param_groups", [])
        if not groups or name not in self.__dict__.get("defaults", {}):
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
            )
        values = [group[name] for group in groups]
        if any(value != values[0] for value in values[1:]):
            raise ArgumentError(
                f"the groups have different values of {name}, {values}; read opt.param_groups[i][{name!r}]"
            )
        return values[0]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("defaults", {}):
            for group in self.param_groups:
                group[name] = value
        else:
            object.__setattr__(self, name, value)

    # ---- state --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """Name -> copy as a NumPy array, ready for a safetensors file.

        `state.3.momentum_buffer` is a slot of the fourth parameter, `param_groups.0.lr` an option of the
        first group.
        """
        if tracing():
            raise TraceError(
                "state_dict cannot be called inside a compiled function; call it before or after"
            )
        found = {name: np.array(slot.data) for name, slot in self.named_slots()}
        for number, group in enumerate(self.param_groups):
            for name, value in group.items():
                if name != "params" and value is not None:
                    found[f"param_groups.{number}.{name}"] = np.asarray(value)
        return found

    def named_slots(self) -> list[tuple[str, Buffer]]:
        """Name, as in `state_dict`, and buffer of every slot."""
        every = [slots for group in self.param_groups for slots in group.slots]
        return [(f"state.{i}.{name}", slot) for i, slots in enumerate(every) for name, slot in slots.items()]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave for an optimiser made in the same way over parameters of the same
        shapes.

        Raises `ArgumentError` listing every missing, unexpected and misshapen entry; nothing is loaded then.
        """
        if tracing():
            raise TraceError("load_state_dict cannot be called inside a compiled function; call it before")
        self._make_slots_of(state)
        options = self._expected_options(state)
        expected: list[tuple[str, Any]] = [
            *self.named_slots(),
            *((name, found) for name, found, _, _ in options),
        ]
        places = {id(found): (group, option) for _, found, group, option in options}
        found = check_entries(type(self).__name__, expected, state)
        changes: dict[int, dict[str, Any]] = {}
        for holder, array in found:
            if id(holder) in places:
                group, option = places[id(holder)]
                value = tuple(array.tolist()) if array.ndim else array.item()
                changes.setdefault(id(group), {})[option] = value
        for group in self.param_groups:
            self.check({**group, **changes.get(id(group), {})})
        for group in self.param_groups:
            for option, value in changes.get(id(group), {}).items():
                group.set_checked(option, value)
        for holder, array in found:
            if id(holder) not in places:
                holder.replace(array)

    def _make_slots_of(self, state: Mapping[str, Any]) -> None:
        """Make the slots of parameters that are frozen here and were not where the state comes from."""
        names = [str(name) for name in state]
        position = 0
        for group in self.param_groups:
            for index in range(len(group.params)):
                if any(name.startswith(f"state.{position}.") for name in names):
                    self._slots(group, index)
                position += 1

    def _expected_options(self, state: Mapping[str, Any]) -> list[tuple[str, Type, ParameterGroup, str]]:
        """Name in the state, type, group and name in it of every option that the state must have.

        `initial_lr` is there as soon as a schedule has been made, here or where the state comes from.
        """
        found = []
        for number, group in enumerate(self.param_groups):
            names = [
                name for name in group if name not in ("params", "initial_lr") and group[name] is not None
            ]
            if f"param_groups.{number}.initial_lr" in state:
                names.append("initial_lr")
            for name in names:
                value = np.asarray(group.get(name, 0.0))
                found.append((f"param_groups.{number}.{name}", types.type_of(value), group, name))
        return found

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for number, group in enumerate(self.param_groups):
            lines.append(f"  group {number}: {len(group.params)} parameters")
            lines += [f"    {name}: {value}" for name, value in group.items() if name != "params"]
        return "\n".join([*lines, ")"])


# ---- arguments --------------------------------------------------------------------------------------------


def _groups(owner: str, params: Any) -> list[dict[str, Any]]:
    if isinstance(params, Parameter) or hasattr(params, "named_parameters"):
        name = "[parameter]" if isinstance(params, Parameter) else "model.parameters()"
        raise ArgumentError(
            f"{owner} takes the parameters to train, received a {type(params).__name__}; write {name}"
        )
    if isinstance(params, Mapping) or not isinstance(params, Iterable):
        raise ArgumentError(
            f"{owner} takes parameters or a list of groups, received a {type(params).__name__}; write "
            'model.parameters(), or [{"params": model.parameters(), "lr": 0.1}]'
        )
    listed = list(params)
    if not listed:
        raise ArgumentError(f"{owner} received no parameters; is the model empty, or an iterator used up?")
    if not isinstance(listed[0], Mapping):
        return [{"params": listed}]
    for group in listed:
        if not isinstance(group, Mapping) or "params" not in group:
            raise ArgumentError(
                f'{owner}: each group is a dict with the key "params", received {group!r:.100}'
            )
    return listed


def _parameters(owner: str, params: Any) -> list[Parameter]:
    found = [params] if isinstance(params, Parameter) else list(params)
    for parameter in found:
        if not isinstance(parameter, Parameter):
            raise ArgumentError(
                f"{owner} trains parameters, received a {type(parameter).__name__}; write model.parameters()"
            )
    return found


def _normal(name: str, value: Any) -> Any:
    """An option as it is kept: numbers as floats, lists of them as tuples."""
    if value is None or isinstance(value, bool):
        return value
    return (
        tuple(_as_number(name, item) for item in value)
        if isinstance(value, (tuple, list))
        else _as_number(name, value)
    )


def _as_number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise ArgumentError(f"{name} must be a number, received {value!r} of type {type(value).__name__}")
    return float(value)


def require_number(owner: Optimizer, options: Options, name: str, below: float = np.inf) -> None:
    """Raise `ArgumentError` unless each number of that option is at least 0 and less than `below`."""
    value = options[name]
    for number in value if isinstance(value, tuple) else (value,):
        if not 0 <= number < below:
            limit = "at least 0" if below == np.inf else f"at least 0 and less than {below:g}"
            raise ArgumentError(f"{type(owner).__name__}: {name} must be {limit}, received {number!r}")


# ---- mathematics that the optimisers share ----------------------------------------------------------------


def slot_dtype(dtype: DType) -> DType:
    """The element type of slots and of the update's arithmetic: float32, or float64 for float64
    parameters.
    """
    return types.promote(dtype, types.float32)


def zeros(parameter: Parameter) -> Array:
    """A slot of the parameter's shape."""
    return np.zeros(parameter.shape, slot_dtype(parameter.dtype).numpy)


def no_steps() -> Array:
    """A slot that counts steps."""
    return np.zeros((), np.int64)


def operands(parameter: Any, gradient: Any, weight_decay: Any, maximize: bool) -> tuple[Any, Any]:
    """Parameter and gradient in the arithmetic's element type; the sign turned and the decay added where
    asked for.
    """
    dtype = slot_dtype(parameter.dtype)
    weight, g = cast(parameter, dtype), cast(gradient, dtype)
    if maximize:
        g = -g
    return weight, g if weight_decay is None else g + cast(weight_decay, dtype) * weight
