"""Guards: what a traced function reads beside its arguments, so that a change leads to a new trace.

In: a function that has been traced. Out: a snapshot of its closure cells, of the globals and user modules'
attributes that its code names, of defaults, containers, and plain objects' attributes; and the same of the
user's functions and classes that it can reach from there. Attributes of a `Module` are covered by the epoch,
its containers by the snapshot."""

from __future__ import annotations

import functools
import os
import struct
import sys
import sysconfig
import types as python
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import is_
from typing import Any

import numpy as np

from thalweg.graph.build import is_library
from thalweg.graph.core import digest
from thalweg.tensor.tensor import Tensor
from thalweg.types import DType

_MISSING = object()
_DEEPEST = 6  # levels of containers and objects inside each other
_MOST = 20_000  # things that one snapshot looks at
_NAMESPACES = ("SimpleNamespace", "Namespace")  # of the standard library, `argparse` among it
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


class _Same:
    """Stands for an object that is compared by identity, and keeps it alive so that its address stays its
    own.
    """

    __slots__ = ("item",)

    def __init__(self, item: Any) -> None:
        self.item = item

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.item is other.item

    __hash__ = None  # type: ignore[assignment]


def frozen(item: Any, depth: int = 0) -> Any:
    """Something that compares equal as long as the item means the same to a trace."""
    kind = type(item)
    if kind is float:
        return (float, struct.pack("<d", item))
    if kind in _PLAIN:
        return (kind, item)
    if depth < _DEEPEST:
        if kind in (list, tuple) or (isinstance(item, tuple) and hasattr(item, "_fields")):
            return (kind, [frozen(part, depth + 1) for part in item])
        if isinstance(item, dict):
            return (kind, [(frozen(k, depth + 1), frozen(v, depth + 1)) for k, v in item.items()])
        if kind in (set, frozenset):
            return (kind, set(item) if all(type(part) in _PLAIN for part in item) else _Same(item))
        if _is_plain_object(item):
            return (kind, [(name, frozen(value, depth + 1)) for name, value in vars(item).items()])
    if kind is np.ndarray and item.dtype != object:
        return (np.ndarray, item.dtype, item.shape, digest(item))
    if isinstance(item, np.generic):
        return (kind, item.tobytes())
    if isinstance(item, python.MethodType):
        return (kind, _Same(item.__func__), _Same(item.__self__))
    return _Same(item)


def _is_plain_object(item: Any) -> bool:
    """Whether an object is an instance of a user's class whose attributes can be compared one by one."""
    if isinstance(item, (Tensor, type, python.ModuleType, python.FunctionType)) or is_module_like(item):
        return False
    cls: Any = type(item)
    return hasattr(item, "__dict__") and (is_user_class(cls) or cls.__name__ in _NAMESPACES)


def _is_fixed(item: Any, depth: int = 0) -> bool:
    """Whether an object can never change: then whoever refers to it is guarded, not the object."""
    if type(item) in (tuple, frozenset):
        return depth < _DEEPEST and all(_is_fixed(part, depth + 1) for part in item)
    return type(item) in _PLAIN or isinstance(item, DType)


def is_module_like(item: Any) -> bool:
    """Whether it is a neural network module: changes of its plain attributes are counted by the epoch."""
    return callable(getattr(type(item), "named_parameters", None)) and callable(
        getattr(type(item), "modules", None)
    )


@functools.cache
def is_user_class(cls: type) -> bool:
    """Whether a class stands in the user's own code."""
    module = sys.modules.get(cls.__module__)
    if module is None or cls.__module__ == "builtins":
        return False
    return is_user_module(module)


def is_user_module(module: python.ModuleType) -> bool:
    """Whether a Python module is the user's own code: not Thalweg, the standard library or an installed
    package.
    """
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__name__ == "__main__"
    return is_user_file(file)


@functools.cache
def is_user_file(file: str) -> bool:
    """Whether a source file is the user's own."""
    if is_library(file):
        return False
    path = os.path.abspath(file)
    paths = sysconfig.get_paths()
    return not any(
        path.startswith(os.path.abspath(paths[name]) + os.sep)
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    )


def _code_names(code: python.CodeType) -> Iterator[str]:
    """Names of globals and attributes in a function's code, inner functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, python.CodeType):
            yield from _code_names(constant)


def _fixed_parts(item: Any) -> Any:
    """The parts of a list or dict none of which is a container, so that comparing identities is enough; else
    None.
    """
    if type(item) not in (list, dict):
        return None
    parts = list(item.values()) if type(item) is dict else list(item)
    if any(
        isinstance(part, (list, tuple, dict, set, np.ndarray)) or _is_plain_object(part) for part in parts
    ):
        return None
    return (list(item), parts) if type(item) is dict else parts


def _has_same_parts(item: Any, parts: Any) -> bool:
    """Whether a list or dict still has exactly the parts from `_fixed_parts`: quick, and enough if true."""
    if parts is None:
        return False
    if type(item) is dict:
        keys, parts = parts
        return len(item) == len(keys) and all(map(is_, item, keys)) and all(map(is_, item.values(), parts))
    return len(item) == len(parts) and all(map(is_, item, parts))


class Guards:
    """A snapshot; `broken()` tells what has changed since it was taken."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.cells: list[tuple[str, python.CellType, Any, Any]] = []
        self.names: list[tuple[str, Mapping[str, Any], str, Any, Any]] = []
        self.deep: list[tuple[str, Any, Any, Any]] = []
        walk = _Walk(self)
        walk.add("the function", function)
        walk.run()

    def broken(self) -> str | None:
        """What has changed, in words, or None."""
        for label, cell, value, snapshot in self.cells:
            now = _contents(cell)
            if now is not value and frozen(now) != snapshot:
                return f"{label} has changed from {value!r:.40} to {now!r:.40}"
        for label, mapping, name, value, snapshot in self.names:
            now = mapping.get(name, _MISSING)
            if now is not value and frozen(now) != snapshot:
                return f"{label} has changed from {value!r:.40} to {now!r:.40}"
        for label, item, parts, snapshot in self.deep:
            if not _has_same_parts(item, parts) and frozen(item) != snapshot:
                return f"the contents of {label} have changed"
        return None


class _Walk:
    """Fills a snapshot with what can be reached from a function, breadth first."""

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self.seen: dict[int, Any] = {}
        self.work: list[tuple[str, Any, int]] = []  # label, item, levels of containers around it

    def add(self, label: str, item: Any, around: int = 0) -> None:
        if type(item) not in _PLAIN and id(item) not in self.seen:
            self.seen[id(item)] = item
            self.work.append((label, item, around))

    def run(self) -> None:
        while self.work and len(self.seen) < _MOST:
            label, item, around = self.work.pop(0)
            if isinstance(item, python.FunctionType):
                self.function(item)
            elif isinstance(item, python.MethodType):
                self.add(label, item.__func__)
                self.add("self", item.__self__)
            elif isinstance(item, (staticmethod, classmethod)):
                self.add(label, item.__func__)
            elif isinstance(item, property):
                self.add(label, item.fget)
            elif isinstance(item, functools.partial):
                self.add(label, item.func)
                self.add(f"an argument of {label}", item.args)
                self.add(f"an argument of {label}", item.keywords)
            elif isinstance(item, type):
                self.user_class(item)
            elif isinstance(getattr(item, "__wrapped__", None), python.FunctionType):
                self.add(label, item.__wrapped__)
            elif isinstance(item, Traceable):
                self.add(label, item.traced_function)
            elif is_module_like(item):
                self.module(label, item)
            elif not isinstance(item, (Tensor, python.ModuleType)):
                self.contents(label, item, around)

    def function(self, function: python.FunctionType) -> None:
        code = function.__code__
        if not is_user_file(code.co_filename):
            return
        names = list(dict.fromkeys(_code_names(code)))
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            value = _contents(cell)
            label = f"the variable {name!r} around {code.co_name}"
            self.guards.cells.append((label, cell, value, frozen(value)))
            self.value(label, value, names)
        for default in (function.__defaults__, function.__kwdefaults__):
            if default:
                self.add(f"a default of {code.co_name}", default)
        for name in names:
            self.name(f"the global {name!r} of {code.co_name}", function.__globals__, name, names)

    def name(self, label: str, mapping: Mapping[str, Any], name: str, attributes: Sequence[str] = ()) -> None:
        """Guard one name of a namespace."""
        if name in mapping:
            value = mapping[name]
            self.guards.names.append((label, mapping, name, value, frozen(value)))
            self.value(label, value, attributes)

    def value(self, label: str, value: Any, attributes: Sequence[str]) -> None:
        """Follow the value of a variable: of a user's Python module the `attributes` that the code names."""
        if not isinstance(value, python.ModuleType):
            self.add(label, value)
        elif is_user_module(value):
            for attribute in attributes:
                self.name(f"{value.__name__}.{attribute}", vars(value), attribute)

    def user_class(self, cls: type) -> None:
        """Methods of a user's class, and its class attributes."""
        for base in cls.__mro__:
            if not is_user_class(base):
                continue
            for name, value in vars(base).items():
                label = f"{base.__name__}.{name}"
                if isinstance(value, (python.FunctionType, staticmethod, classmethod, property)):
                    self.add(label, value)
                elif not name.startswith("__"):
                    self.name(label, vars(base), name)

    def module(self, label: str, module: Any) -> None:
        """The classes of a network's modules, and the containers and plain objects that they hold."""
        for part in module.modules():
            self.seen[id(part)] = part
            self.add(label, type(part))
            for name, value in vars(part).items():
                self.add(f"{type(part).__name__}.{name}", value)

    def contents(self, label: str, item: Any, around: int) -> None:
        """The parts of a container or plain object; one snapshot of the outermost covers them."""
        if _is_fixed(item):
            return
        parts: Iterable[Any] = ()
        if isinstance(item, (list, tuple, dict, set, frozenset)):
            parts = item.values() if isinstance(item, dict) else item
        elif _is_plain_object(item):
            parts = vars(item).values()
            self.add(label, type(item))
        elif not isinstance(item, np.ndarray):
            return
        if around == 0:
            self.guards.deep.append((label, item, _fixed_parts(item), frozen(item)))
        if around < _DEEPEST:
            for part in parts:
                self.add(f"an element of {label}", part, around + 1)


class Traceable:
    """Base of what wraps a function for tracing, so that guards look through it."""

    traced_function: Callable[..., Any]


def _contents(cell: python.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the variable has been deleted
        return _MISSING
