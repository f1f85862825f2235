"""A plan's memory as a picture: every buffer a box from the phase that writes it to the last that reads it.

In: a `Plan`. Out: SVG text. Left to right run the phases (in the scratch of one thread: the kernels of the
phase that needs most), upwards the bytes of the arena. Hovering over a box shows what it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from thalweg.plan import Buffer, Plan, Scope
from thalweg.plan.report import lifetime
from thalweg.viz.picture import size

_WIDTH, _HEIGHT, _LEFT, _GAP = 1000.0, 320.0, 96.0, 60.0
_FILLS = {
    "forward": ("#dbeafe", "#1d4ed8"),
    "gradient": ("#ffedd5", "#c2410c"),
    "update": ("#dcfce7", "#15803d"),
}
_LABEL = 34.0  # a box as wide as that, and as high as a line, carries its op's name


def arena_svg(plan: Plan) -> str:
    """The arena over the phases and the scratch of one thread over the kernels of its largest phase."""
    shared = [b for b in plan.all_buffers if b.scope in (Scope.PROGRAM, Scope.SLOT) and b.nbytes]
    panels = [
        _panel(
            f"arena: {plan.arena_bytes:,} bytes over {len(plan.phases)} phases",
            [(b, b.first[0], b.last[0] + 1) for b in shared],
            plan.arena_bytes,
            len(plan.phases),
        )
    ]
    scratch = plan.scratch_by_phase()
    if scratch:
        number, own = max(scratch.items(), key=lambda item: max(b.offset + b.total for b in item[1]))
        panels.append(
            _panel(
                f"scratch of each thread: {plan.thread_bytes:,} bytes, over the kernels of phase {number}",
                [(b, b.first[1], b.last[1] + 1) for b in own],
                plan.thread_bytes,
                len(plan.phases[number].kernels),
            )
        )
    memory = ", ".join(f"{name} {size(count)}" for name, count in plan.memory().items() if count)
    height = 80 + len(panels) * (_HEIGHT + _GAP) + 20
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + _LEFT + 24:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {_WIDTH + _LEFT + 24:.0f} {height:.0f}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="11.5">',
        f"<title>Memory of {escape(plan.graph.name)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="24" y="34" font-size="18" font-weight="bold">Memory of {escape(plan.graph.name)}</text>',
        f'<text x="24" y="56" fill="#374151">{escape(memory)}</text>',
        *_legend(),
    ]
    for number, panel in enumerate(panels):
        top = 110 + number * (_HEIGHT + _GAP)
        body.append(f'<g transform="translate({_LEFT:.0f} {top:.0f})">{panel}</g>')
    return "\n".join([*body, "</svg>"]) + "\n"


def _legend() -> list[str]:
    parts, x = [], 24.0
    for kind, (fill, stroke) in _FILLS.items():
        parts.append(f'<rect x="{x:.0f}" y="66" width="22" height="12" fill="{fill}" stroke="{stroke}"/>')
        parts.append(f'<text x="{x + 28:.0f}" y="76">{kind}</text>')
        x += 100
    return parts


def _panel(title: str, boxes: Sequence[tuple[Buffer, int, int]], nbytes: int, steps: int) -> str:
    """One arena: (buffer, first step, step behind its last) against its bytes."""
    right, up = _WIDTH / max(steps, 1), _HEIGHT / max(nbytes, 1)
    parts = [
        f'<text x="0" y="-10" font-weight="bold">{escape(title)}</text>',
        f'<rect width="{_WIDTH:.0f}" height="{_HEIGHT:.0f}" fill="#f9fafb" stroke="#9ca3af"/>',
    ]
    for part in range(5):
        y = _HEIGHT * (1 - part / 4)
        label = size(round(nbytes * part / 4))
        parts.append(f'<text x="-8" y="{y + 4:.1f}" text-anchor="end" fill="#374151">{label}</text>')
    for buffer, first, last in boxes:
        parts.append(
            _box(
                buffer,
                first * right,
                _HEIGHT - (buffer.offset + buffer.total) * up,
                (last - first) * right,
                buffer.total * up,
            )
        )
    return "\n".join(parts)


def _box(buffer: Buffer, x: float, y: float, width: float, height: float) -> str:
    fill, stroke = _FILLS[_part(buffer)]
    what = f"{buffer.name}  {buffer.module}\n{buffer.type}, {buffer.total:,} bytes at {buffer.offset:,}\n"
    what += lifetime(buffer) + (f"\n{buffer.where[0]}" if buffer.where else "")
    text = (
        f"<g><title>{escape(what)}</title>"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="0.6"/>'
    )
    if width > _LABEL and height > 12:
        shown = buffer.name[: int(width / 6)]
        text += f'<text x="{x + 3:.1f}" y="{y + height / 2 + 4:.1f}" fill="#111827">{escape(shown)}</text>'
    return text + "</g>"


def _part(buffer: Buffer) -> str:
    """Forward pass, gradient or update, by the module path that the node carries."""
    if buffer.module.endswith("update"):
        return "update"
    return "gradient" if buffer.module.endswith("gradient") else "forward"
