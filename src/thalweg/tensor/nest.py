"""Nests: lists, tuples, dicts and dataclasses of any depth, as arguments, results and `wrt` of functions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def is_container(item: Any) -> bool:
    """Whether an item of a nest has items itself."""
    if isinstance(item, (list, tuple, dict)):
        return True
    cls = type(item)
    return hasattr(cls, "__dataclass_fields__") and not hasattr(cls, "named_parameters")  # no module


def keys_of(container: Any) -> Sequence[Any]:
    """Keys of a dict, names of a dataclass' fields, positions otherwise."""
    if isinstance(container, dict):
        return list(container)
    if isinstance(container, (list, tuple)):
        return range(len(container))
    return list(type(container).__dataclass_fields__)


def items_of(container: Any) -> Sequence[Any]:
    """The items of a container, in the order of `keys_of`."""
    if isinstance(container, dict):
        return list(container.values())
    if isinstance(container, (list, tuple)):
        return container
    return [getattr(container, name) for name in keys_of(container)]


def rebuild(container: Any, items: list[Any]) -> Any:
    """A container of the same kind (and the same keys) with these items."""
    if isinstance(container, dict):
        return dict(zip(container, items, strict=True))
    if isinstance(container, tuple):
        return type(container)(*items) if hasattr(container, "_fields") else tuple(items)
    if isinstance(container, list):
        return list(items)
    twin = copy.copy(container)
    for name, item in zip(keys_of(container), items, strict=True):
        object.__setattr__(twin, name, item)  # a frozen dataclass too
    return twin


def map_nest(function: Callable[[Any, str], Any], nest: Any, path: str = "") -> Any:
    """The same nest with `function(leaf, path)` in place of each leaf; a path is for example `["a"][0]`."""
    if not is_container(nest):
        return function(nest, path)
    pairs = zip(keys_of(nest), items_of(nest), strict=True)
    return rebuild(nest, [map_nest(function, item, f"{path}[{key!r}]") for key, item in pairs])


def leaves(nest: Any) -> Iterator[Any]:
    """The leaves of a nest from left to right."""
    if not is_container(nest):
        yield nest
        return
    for item in items_of(nest):
        yield from leaves(item)
