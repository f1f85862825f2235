"""Nests: lists, tuples and dicts of any depth, as arguments, results and `wrt` of functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def is_container(item: Any) -> bool:
    """Whether an item of a nest has items itself."""
    return isinstance(item, (list, tuple, dict))


def rebuild(container: Any, items: list[Any]) -> Any:
    """A container of the same kind (and the same keys) with these items."""
    if isinstance(container, dict):
        return dict(zip(container, items, strict=True))
    if isinstance(container, tuple):
        return type(container)(*items) if hasattr(container, "_fields") else tuple(items)
    return list(items)


def map_nest(function: Callable[[Any, str], Any], nest: Any, path: str = "") -> Any:
    """The same nest with `function(leaf, path)` in place of each leaf; a path is for example `["a"][0]`."""
    if not is_container(nest):
        return function(nest, path)
    keys = nest.keys() if isinstance(nest, dict) else range(len(nest))
    items = nest.values() if isinstance(nest, dict) else nest
    return rebuild(
        nest, [map_nest(function, item, f"{path}[{key!r}]") for key, item in zip(keys, items, strict=True)]
    )


def leaves(nest: Any) -> Iterator[Any]:
    """The leaves of a nest from left to right."""
    if not is_container(nest):
        yield nest
        return
    for item in nest.values() if isinstance(nest, dict) else nest:
        yield from leaves(item)
