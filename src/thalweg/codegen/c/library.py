"""The text of the C vector library, as the generated programs include it.

In: the names of the mathematical functions that a program calls. Out: C text. Called by whatever writes a program:
``header()`` comes first in each translation unit, then ``text_for(names)``, then the program's own kernels.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def header() -> str:
    """The text of ``vector.h``: 16-lane vector types and the operations on them."""
    return (Path(__file__).parent / "vector.h").read_text(encoding="utf-8")
