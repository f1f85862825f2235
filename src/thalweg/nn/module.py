"""`Module`: a network as an ordinary Python class whose attributes are parameters, buffers and other modules.

A subclass writes `__init__` and `forward`; nothing has to be registered and `super().__init__()` is not
needed. Parameters, buffers and modules are found by walking the attributes, also inside lists, tuples and
dicts, whenever they are asked for. One that is reachable on two ways (tied weights) is one parameter with two
names.
"""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, TraceError
from thalweg.graph import module_scope
from thalweg.nn.state import check_entries
from thalweg.tensor.state import Buffer, Holder, Parameter, bump_epoch
from thalweg.tensor.tensor import Tensor, tensor
from thalweg.tensor.trace import tracing

M = TypeVar("M", bound="Module")
Array = np.ndarray[Any, Any]
Observer = Callable[[str, "Module", Any], None]

# Names that users of other frameworks reach for, and what to write here.
_ELSEWHERE = {
    "register_buffer": "assign it: self.name = nn.Buffer(array)",
    "register_parameter": "assign it: self.name = nn.Parameter(array)",
    "add_module": "assign it: self.name = module, or use nn.ModuleDict",
    "zero_grad": "nothing: gradients are not stored, optimizer.minimize(loss) computes and applies them",
    "register_forward_hook": "model.intermediates(x, names=[...]) to read activations",
    "cuda": "nothing: the device is chosen where a function is compiled",
    "cpu": "nothing: the device is chosen where a function is compiled",
    "half": 'model.to("float16")',
    "bfloat16": 'model.to("bfloat16")',
    "float": 'model.to("float32")',
    "double": 'model.to("float64")',
}


class _Running(threading.local):
    """Which modules run in this thread, and who watches."""

    def __init__(self) -> None:
        self.scopes: list[str] = []
        self.root: Module | None = None  # the outermost running module
        self.paths: dict[int, str] = {}  # id(module) -> path below the outermost running module
        self.observer: Observer | None = None


_running = _Running()
_structure = 0  # counted up when an attribute that holds state or modules changes
_known_paths: weakref.WeakKeyDictionary[Module, tuple[int, dict[int, str]]] = weakref.WeakKeyDictionary()


def structure_changes() -> None:
    """Note that some module is about to gain or lose a parameter, buffer or module; an error inside a
    trace.
    """
    global _structure
    if tracing():
        raise TraceError(
            "a parameter, buffer or module is being assigned inside a compiled function; a model's "
            "values may change "
            "there, its structure may not. Build the model before the compiled function is called; write "
            "parameter.assign(value) to change a value"
        )
    _structure += 1


class Module:
    """Base of layers and models.

    `training` tells layers such as dropout and batch norm how to act; `train()` and `eval()` set it for a
    whole model.
    """

    training: bool = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The computation of the module; call the module itself, not this method, so that errors can name
        it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward method; define forward(self, x)")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not _running.scopes:
            args = tuple(_as_tensor(item) for item in args)
            kwargs = {name: _as_tensor(item) for name, item in kwargs.items()}
        with _entered(self) as path:
            result = self.forward(*args, **kwargs)
        if _running.observer is not None:
            _running.observer(path, self, result)
        return result

    # ---- attributes ---------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        previous = vars(self).get(name)
        if isinstance(previous, Holder) and _is_value(value):
            if isinstance(previous, Buffer):
                previous.assign(value)
                return
            raise ArgumentError(
                f"{type(self).__name__}.{name} is a parameter and a {type(value).__name__} would replace it; "
                f"write self.{name}.assign(value) to change its value, or "
                "nn.Parameter(value) for a new parameter"
            )
        if previous is not value and (_holds_state(value) or _holds_state(previous)):
            structure_changes()
        object.__setattr__(self, name, value)
        bump_epoch()

    def __delattr__(self, name: str) -> None:
        if _holds_state(vars(self).get(name)):
            structure_changes()
        object.__delattr__(self, name)
        bump_epoch()

    def __getattr__(self, name: str) -> Any:
        # Only reached when the attribute does not exist.
        hint = f"; here, write {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
        raise AttributeError(
            f"{type(self).__name__!r} object has no attribute {name!r}{hint}", name=name, obj=self
        )

    def members(self) -> Iterator[tuple[str, Any]]:
        """Name and value of every attribute that may hold parameters, buffers or modules. Containers override
        it.
        """
        yield from vars(self).items()

    # ---- what the module consists of ----------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Name and module of every direct child, each once."""
        seen: set[int] = set()
        for name, found in _leaves(self):
            if isinstance(found, Module) and id(found) not in seen:
                seen.add(id(found))
                yield name, found

    def children(self) -> Iterator[Module]:
        """The direct children, each once."""
        for _, child in self.named_children():
            yield child

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Path and module of this module (path "") and everything below it, each once, parents first."""
        seen: set[int] = set()
        for path, module in _all_modules(self, ""):
            if id(module) not in seen:
                seen.add(id(module))
                yield path, module

    def modules(self) -> Iterator[Module]:
        """This module and everything below it, each once, parents first."""
        for _, module in self.named_modules():
            yield module

    def named_parameters(self, remove_duplicate: bool = True) -> Iterator[tuple[str, Parameter]]:
        """Path and parameter of everything trainable or frozen; tied parameters once, unless asked
        otherwise.
        """
        yield from self._named(Parameter, remove_duplicate)

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, each once: a module's own first, then its children's."""
        for _, parameter in self.named_parameters():
            yield parameter

    def own_parameters(self) -> Iterator[Parameter]:
        """The parameters that this module holds itself, not those of its children."""
        for _, found in _leaves(self):
            if isinstance(found, Parameter):
                yield found

    def named_buffers(self, remove_duplicate: bool = True) -> Iterator[tuple[str, Buffer]]:
        """Path and buffer of everything that is kept but not trained, such as running means."""
        yield from self._named(Buffer, remove_duplicate)

    def buffers(self) -> Iterator[Buffer]:
        """All buffers, each once."""
        for _, buffer in self.named_buffers():
            yield buffer

    def _named(self, kind: Any, remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for path, module in _all_modules(self, ""):
            for name, found in _leaves(module):
                if isinstance(found, kind) and not (remove_duplicate and id(found) in seen):
                    seen.add(id(found))
                    full = f"{path}.{name}" if path else name
                    _label(found, f"{type(self).__name__}.{full}")
                    yield full, found

    # ---- changes to the whole -----------------------------------------------------------------------------

    def train(self: M, mode: bool = True) -> M:
        """Set `training` here and in every module below; returns the module."""
        if not isinstance(mode, bool):
            raise ArgumentError(f"train expects True or False, received {mode!r}")
        for module in self.modules():
            if module.training is not mode:
                module.training = mode
        return self

    def eval(self: M) -> M:
        """The same as `train(False)`."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Set `trainable` of every parameter: `requires_grad_(False)` freezes the module; returns the
        module.
        """
        for parameter in self.parameters():
            parameter.trainable = requires_grad
        return self

    def apply(self: M, function: Callable[[Module], Any]) -> M:
        """Call `function` with every module, children before parents (to initialise, for example)."""
        for module in reversed(list(self.modules())):
            function(module)
        return self

    def to(self: M, dtype: Any) -> M:
        """Convert all floating-point parameters and buffers, in place, to another dtype; returns the
        module.
        """
        if tracing():
            raise TraceError("to cannot be called inside a compiled function; convert the model before")
        target = types.dtype(dtype)
        if not target.is_floating:
            raise ArgumentError(f"{type(self).__name__}.to needs a floating-point dtype, received {target}")
        for holder in (*self.parameters(), *self.buffers()):
            if holder.dtype.is_floating and holder.dtype is not target:
                holder.convert(target)
        return self

    # ---- state --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """Path -> copy of the value, as a NumPy array, of every parameter and buffer.

        The names are PyTorch's. Tied weights appear under each of their names. Later training does not change
        the copies, and changing them does not change the model.
        """
        return {name: np.array(holder.numpy()) for name, holder in self._holders()}

    def _holders(self) -> Iterator[tuple[str, Parameter | Buffer]]:
        for path, module in _all_modules(self, ""):
            own = list(_leaves(module))
            for kind in (Parameter, Buffer):
                for name, found in own:
                    if isinstance(found, kind):
                        yield f"{path}.{name}" if path else name, found

    def load_state_dict(self: M, state: Mapping[str, Any], strict: bool = True) -> M:
        """Set parameters and buffers to the values given by name; returns the module.

        Accepts NumPy arrays, tensors, and other frameworks' tensors. `strict` demands that the names are
        exactly those of `state_dict()` (one of its names is enough for a tied weight). Values take the dtype
        that the model has. Raises `ArgumentError` listing every missing, unexpected and misshapen entry;
        nothing is loaded then.
        """
        if tracing():
            raise TraceError("load_state_dict cannot be called inside a compiled function; call it before")
        advice = "strict=False ignores missing and unexpected names, not misshapen entries"
        checked = check_entries(type(self).__name__, list(self._holders()), state, strict, advice)
        for holder, value in checked:
            holder.replace(value)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `state_dict()` to a safetensors file, completely or not at all. Raises `DataError`."""
        from thalweg.io import safetensors

        # The format has one array per name; a tied weight is written under its first name.
        holders = {id(holder): (name, holder) for name, holder in reversed(list(self._holders()))}
        safetensors.save(path, {name: np.array(holder.numpy()) for name, holder in holders.values()})

    def load(self: M, path: str | os.PathLike[str], strict: bool = True) -> M:
        """`load_state_dict` of a safetensors file; returns the module. Raises `DataError` if the file is
        broken.
        """
        from thalweg.io import safetensors

        arrays, _ = safetensors.load(path)
        return self.load_state_dict(arrays, strict)

    def __copy__(self: M) -> M:
        """A second module with the same parameters, buffers and children."""
        twin = type(self).__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def __deepcopy__(self: M, memo: dict[int, Any]) -> M:
        """An independent module: parameters, buffers and children are copied, tied ones stay tied."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for name, value in vars(self).items():
            vars(twin)[name] = copy.deepcopy(value, memo)
        return twin

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled: unpickling a file can run any code. Write "
            "model.save(path) and, where it is needed, build the model and call model.load(path)"
        )

    # ---- looking inside -----------------------------------------------------------------------------------

    def intermediates(self, *inputs: Any, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Path -> output of each module below this one, for these inputs; `names` selects some of them.

        A module that is called several times gives a list of its outputs in order, one that is not called is
        left out (an error if it was asked for by name). The module itself has the path "".
        """
        known = {id(module): path for path, module in self.named_modules()}
        unknown = [name for name in names or () if name not in known.values()]
        if unknown:
            raise ArgumentError(
                f"{type(self).__name__} has no module named {', '.join(map(repr, unknown))}; "
                f"it has {', '.join(repr(path) for path in known.values() if path)}"
            )
        calls: dict[str, list[Any]] = {}

        def note(path: str, module: Module, result: Any) -> None:
            if id(module) in known:
                calls.setdefault(known[id(module)], []).append(result)

        with observed(note):
            self(*inputs)
        silent = [name for name in names or () if name not in calls]
        if silent:
            raise ArgumentError(f"{type(self).__name__}.forward did not call {', '.join(map(repr, silent))}")
        return {
            name: found[0] if len(found) == 1 else found
            for name, found in ((name, calls[name]) for name in (calls if names is None else names))
        }

    def summary(self, *inputs: Any, dtype: Any = "float32") -> Any:
        """A table of layers: path, class, output shape, parameters, activation bytes, operations; and totals.

        `inputs` are tensors or arrays, or shapes (then of `dtype`). The forward pass is traced, nothing is
        computed. Print the result, or read its fields (`thalweg.nn.summary.Summary`).
        """
        from thalweg.nn.summary import summarize

        return summarize(self, inputs, dtype)

    def extra_repr(self) -> str:
        """What `repr` shows between the parentheses; layers override it."""
        return ""

    def __repr__(self) -> str:
        name, extra = type(self).__name__, self.extra_repr()
        lines = [f"({path}): {_indented(repr(child))}" for path, child in self.named_children()]
        if not lines:
            return f"{name}({extra})"
        return "\n".join([f"{name}(", *(f"  {line}" for line in ([extra] if extra else []) + lines), ")"])


def _is_value(item: Any) -> bool:
    """Whether an object can be the value of a parameter or buffer, and is neither itself."""
    return isinstance(item, (Tensor, np.ndarray, np.generic, int, float)) and not isinstance(item, Holder)


def _as_tensor(item: Any) -> Any:
    """An argument of the outermost module: arrays become tensors, so that `x.flatten(1)` means what it
    says.
    """
    return tensor(item) if isinstance(item, np.ndarray) else item


def _label(holder: Parameter | Buffer, label: str) -> None:
    """Name a holder for plans and messages: the longest path from a root that it has been reached by."""
    if holder.name.count(".") < label.count("."):
        holder.name = label


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


def _leaves(module: Module) -> Iterator[tuple[str, Any]]:
    """Name and object of every parameter, buffer and module that the module holds itself."""
    for name, value in module.members():
        yield from _inside(name, value, ())


def _inside(name: str, value: Any, around: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (Module, Parameter, Buffer)):
        yield name, value
    elif isinstance(value, (list, tuple, dict)) and id(value) not in around:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _inside(f"{name}.{key}", item, (*around, id(value)))


def _holds_state(value: Any) -> bool:
    return any(True for _ in _inside("", value, ()))


def _all_modules(module: Module, path: str, above: tuple[int, ...] = ()) -> Iterator[tuple[str, Module]]:
    """Path and module, parents first; a module that is reachable on two ways comes twice."""
    if id(module) in above:  # a child that refers to its parent
        return
    yield path, module
    for name, found in _leaves(module):
        if isinstance(found, Module):
            yield from _all_modules(found, f"{path}.{name}" if path else name, (*above, id(module)))


@contextmanager
def _entered(module: Module) -> Iterator[str]:
    """The module's path while it runs: the root's class name, then attribute names."""
    outermost = not _running.scopes
    if outermost:
        _running.root, _running.paths = module, _paths(module)
    path = _running.paths.get(id(module)) or _unknown_path(module)
    _running.scopes.append(path)
    try:
        with module_scope(path):
            yield path
    finally:
        _running.scopes.pop()
        if outermost:
            _running.root = None


def _unknown_path(module: Module) -> str:
    """The path of a module that a plain list has gained unnoticed, or that does not belong to the running
    root.
    """
    assert _running.root is not None
    _running.paths = _paths(_running.root, anew=True)
    return _running.paths.setdefault(id(module), f"{_running.scopes[-1]}.{type(module).__name__}")


def _paths(root: Module, anew: bool = False) -> dict[int, str]:
    known = _known_paths.get(root)
    if known is None or known[0] != _structure or anew:
        head = type(root).__name__
        found = {id(module): f"{head}.{path}" if path else head for path, module in root.named_modules()}
        known = _known_paths[root] = (_structure, found)
        for _ in (*root.named_parameters(), *root.named_buffers()):
            pass  # being listed gives each its name, for graphs, plans and messages
    return known[1]


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Call `observer(path, module, result)` after every module call of this thread inside the block."""
    previous = _running.observer
    _running.observer = observer
    try:
        yield
    finally:
        _running.observer = previous
