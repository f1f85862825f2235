"""Numbers of bytes as people write them: "2GB" is 2,000,000,000, "2GiB" is 2,147,483,648."""

from __future__ import annotations

import re

from thalweg.errors import ArgumentError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_FORM = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)


def bytes_of(text: str | int) -> int:
    """The number of bytes that a text such as "2GB", "512 MiB" or "256K" names; an int is one already."""
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    if found is not None:
        unit = (found.group(2) or "").lower()
        count = int(float(found.group(1)) * (_BINARY.get(unit) or _UNITS[unit]))
    elif isinstance(text, int) and not isinstance(text, bool):
        count = text
    else:
        count = 0
    if count < 1:
        raise ArgumentError(f"an amount of memory is for example '2GB' or 512000, received {text!r}")
    return count
