"""A graph as a table that people read: one line per op, input and parameter, in the order of computation.

In: a `Picture`. Out: text. (`graph.text()` is the other text form, which can be parsed back.)
"""

from __future__ import annotations

from collections.abc import Sequence

from thalweg.viz.picture import PARTS, Box, Picture, operations, size


def rows(picture: Picture) -> str:
    """The drawing as plain text."""
    parts = [picture.name, *(f"  {line}" for line in picture.totals())]
    sources = [*picture.part("input"), *picture.part("parameter"), *picture.part("buffer")]
    parts += _section("inputs and state", [_source_row(box) for box in sources])
    for kind in PARTS:
        parts += _section(kind, [_op_row(box) for box in picture.part(kind)])
    return "\n".join(parts) + "\n"


def _source_row(box: Box) -> tuple[str, ...]:
    return box.title, box.kind, str(box.types[0]), size(box.nbytes)


def _op_row(box: Box) -> tuple[str, ...]:
    operands = ", ".join(box.operands)
    ends = [f"sets {', '.join(box.writes)}"] if box.writes else []
    ends += [f"= {box.result}"] if box.result else []
    types = " + ".join(str(type) for type in box.types)
    line = box.where.split("  ")[0]
    if box.count > 1:
        sets = f"sets {', '.join(box.writes)}" if box.writes else ""
        return (box.title, "", size(box.nbytes), operations(box.operations), box.module, sets, f"# {line}")
    return (
        f"{box.name} = {box.title}({operands})",
        types,
        size(box.nbytes),
        operations(box.operations),
        box.module,
        "; ".join(ends),
        f"# {line}" if line else "",
    )


def _section(title: str, rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    widths = [min(max(len(row[column]) for row in rows), 100) for column in range(len(rows[0]))]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    ]
    return ["", f"{title}:", *(line.rstrip() for line in lines)]
