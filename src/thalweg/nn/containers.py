"""Modules that hold other modules or parameters: `Sequential`, `ModuleList`, `ModuleDict`, `ParameterList`.

Their contents are named as in PyTorch: by position or key, without a name in between.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Generic, TypeVar

import numpy as np

from thalweg.errors import ArgumentError
from thalweg.nn.module import Module, structure_changes
from thalweg.tensor.state import Parameter, bump_epoch
from thalweg.tensor.tensor import Tensor

T = TypeVar("T", Module, Parameter)


class _Container(Module, Generic[T]):
    """Named entries, in order."""

    _entries: dict[str, T]

    def members(self) -> Iterator[tuple[str, Any]]:
        yield from ((name, value) for name, value in vars(self).items() if name != "_entries")
        yield from self._entries.items()

    def _set_entries(self, entries: dict[str, T]) -> None:
        structure_changes()
        vars(self)["_entries"] = entries
        bump_epoch()

    def _checked(self, item: Any) -> Any:
        """The item, if it is of the kind that the container holds."""
        if not isinstance(item, Module):
            hint = "; write nn.ReLU() instead of a function" if callable(item) else ""
            raise ArgumentError(
                f"{type(self).__name__} holds modules, received a {type(item).__name__}{hint}"
            )
        return item

    def __len__(self) -> int:
        return len(self._entries)


class _List(_Container[T]):
    """Entries named by their positions."""

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._set_items([self._checked(item) for item in items])

    def _set_items(self, items: list[T]) -> None:
        self._set_entries({str(position): item for position, item in enumerate(items)})

    def append(self, item: T) -> Any:
        """Add one at the end; returns the container."""
        self._set_entries({**self._entries, str(len(self)): self._checked(item)})
        return self

    def extend(self, items: Iterable[T]) -> Any:
        """Add several at the end; returns the container."""
        for item in items:
            self.append(item)
        return self

    def insert(self, index: int, item: T) -> None:
        """Add one before a position; those behind it are numbered anew."""
        items = list(self)
        items.insert(index, self._checked(item))
        self._set_items(items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries.values())

    def __contains__(self, item: object) -> bool:
        return any(known is item for known in self)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            part = type(self)()
            part._set_items(list(self)[index])
            return part
        return self._entries[self._name(index)]

    def __setitem__(self, index: int, item: T) -> None:
        self._set_entries({**self._entries, self._name(index): self._checked(item)})

    def __delitem__(self, index: int | slice) -> None:
        items = list(self)
        del items[index]
        self._set_items(items)

    def _name(self, index: int) -> str:
        if not isinstance(index, (int, np.integer)) or isinstance(index, bool):
            raise ArgumentError(
                f"{type(self).__name__} is indexed by integers and slices, received {index!r}"
            )
        if not -len(self) <= index < len(self):
            raise IndexError(f"{type(self).__name__} has {len(self)} entries, there is no entry {index}")
        return list(self._entries)[index]


class ModuleList(_List[Module]):
    """Modules in a list. A plain list as an attribute is found too; this one is a module itself."""


class Sequential(_List[Module]):
    """Modules applied one after another: `Sequential(Linear(4, 8), ReLU())`, or one dict from names to
    modules.
    """

    def __init__(self, *modules: Any) -> None:
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            super().__init__()
            self._set_entries({_name(self, key): self._checked(item) for key, item in modules[0].items()})
            return
        if len(modules) == 1 and isinstance(modules[0], (list, tuple)):
            raise ArgumentError(
                "Sequential takes its modules as separate arguments; write nn.Sequential(*modules)"
            )
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x


class ModuleDict(_Container[Module]):
    """Modules by name. A plain dict as an attribute is found too; this one is a module itself."""

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()) -> None:
        self._set_entries({_name(self, key): self._checked(item) for key, item in dict(modules).items()})

    def __getitem__(self, name: str) -> Module:
        if name not in self._entries:
            raise KeyError(
                f"{name!r} is not in this ModuleDict; it has "
                f"{', '.join(map(repr, self._entries)) or 'nothing'}"
            )
        return self._entries[name]

    def __setitem__(self, name: str, module: Module) -> None:
        self._set_entries({**self._entries, _name(self, name): self._checked(module)})

    def __delitem__(self, name: str) -> None:
        self[name]
        self._set_entries({key: module for key, module in self._entries.items() if key != name})

    def update(self, modules: Mapping[str, Module]) -> None:
        """Add or replace several."""
        for name, module in modules.items():
            self[name] = module

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def keys(self) -> KeysView[str]:
        """The names, in order."""
        return self._entries.keys()

    def values(self) -> ValuesView[Module]:
        """The modules, in order."""
        return self._entries.values()

    def items(self) -> ItemsView[str, Module]:
        """Names and modules, in order."""
        return self._entries.items()


class ParameterList(_List[Parameter]):
    """Parameters in a list; tensors and arrays become parameters."""

    def _checked(self, item: Any) -> Parameter:
        if isinstance(item, Parameter):
            return item
        if isinstance(item, (Tensor, np.ndarray)):
            return Parameter(item)
        raise ArgumentError(f"ParameterList holds parameters, received a {type(item).__name__}")

    def extra_repr(self) -> str:
        return ", ".join(str(parameter.type) for parameter in self)


def _name(owner: Module, key: Any) -> str:
    if not isinstance(key, str) or not key or "." in key:
        raise ArgumentError(f"{type(owner).__name__}: a name is a text without dots, received {key!r}")
    return key


# ---- changes of structure ----------------------------------------------------------------------------------


def replace_modules(root: Module, new: Mapping[int, Module]) -> None:
    """Put new modules where the old ones with those ids are: in attributes, containers, lists."""
    for owner in list(root.modules()):
        _replace(owner, new)


def _replace(owner: Module, new: Mapping[int, Module]) -> None:
    for name, value in list(owner.members()):
        replaced = _replaced(value, new)
        if replaced is value:
            continue
        if name in vars(owner):
            setattr(owner, name, replaced)
        elif isinstance(owner, (ModuleList, Sequential)):
            owner[[entry is value for entry in owner].index(True)] = replaced
        elif isinstance(owner, ModuleDict):
            owner[name] = replaced


def _replaced(value: Any, new: Mapping[int, Module]) -> Any:
    if isinstance(value, Module):
        return new.get(id(value), value)
    if isinstance(value, (list, tuple)):
        items = [_replaced(item, new) for item in value]
        changed = any(one is not other for one, other in zip(items, value, strict=True))
        return type(value)(items) if changed else value
    if isinstance(value, dict):
        entries = {key: _replaced(item, new) for key, item in value.items()}
        return entries if any(entries[key] is not item for key, item in value.items()) else value
    return value
