"""The text of the C vector library, as the generated programs include it.

In: the names of the mathematical functions that a program calls. Out: C text. Called by whatever writes a
program. ``header()`` comes first in each translation unit, then ``text_for(names)``, then the kernels.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib import resources

_INCLUDE = re.compile(r'^#include "(\w+\.h)"$', re.MULTILINE)
_SECTION = re.compile(r"^/\* @section (\w+) needs:([\w ]*)\*/$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Section:
    """A function of ``mathematics.h``, or a private helper, and the sections that must stand before it."""

    needs: tuple[str, ...]
    text: str


def _read(name: str) -> str:
    """A file of this package, with those that it includes in their places."""
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda found: _read(found[1]), text)


@cache
def header() -> str:
    """The text of ``vector.h``: 16-lane vector types and the operations on them, in one piece."""
    return _read("vector.h")


@cache
def _sections() -> dict[str, _Section]:
    """The sections of ``mathematics.h`` in the order of the file; a section needs only earlier ones."""
    text = _read("mathematics.h")
    marks = list(_SECTION.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return {
        mark[1]: _Section(tuple(mark[2].split()), text[mark.end() : end].strip() + "\n")
        for mark, end in zip(marks, ends, strict=True)
    }


@cache
def names() -> frozenset[str]:
    """The functions that ``text_for`` can give, such as ``exp_f32``."""
    return frozenset(name for name in _sections() if not name.startswith("tw_"))


def text_for(names: Collection[str]) -> str:
    """The C text of these functions and of all that they need, in an order that compiles.

    It goes after ``header()``, once in a translation unit. ``KeyError`` for a name outside ``names()``.
    """
    sections = _sections()
    wanted: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in wanted:
            continue
        if name not in sections:
            known = ", ".join(sorted(key for key in sections if not key.startswith("tw_")))
            raise KeyError(f"mathematics.h has no function {name!r}; it has {known}")
        wanted.add(name)
        waiting.extend(sections[name].needs)
    return "\n".join(section.text for name, section in sections.items() if name in wanted)
