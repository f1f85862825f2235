"""The SVG of a laid-out picture: a plain file that browsers, editors and documents show.

In: a `Picture`. Out: text. Hovering over a box shows everything about it: operands, attributes, source line.
"""

from __future__ import annotations

from itertools import pairwise
from xml.sax.saxutils import escape, quoteattr

from thalweg.viz.layout import LINE, Layout, Point, Rectangle, Route, layout
from thalweg.viz.picture import Box, Picture, operations

_MARGIN = 24.0
_ROUNDING = 6.0

_FILLS = {
    "input": ("#f3f4f6", "#4b5563"),
    "parameter": ("#ede9fe", "#6d28d9"),
    "buffer": ("#faf5ff", "#6d28d9"),
    "forward": ("#dbeafe", "#1d4ed8"),
    "gradient": ("#ffedd5", "#c2410c"),
    "update": ("#dcfce7", "#15803d"),
}
_LINES = {
    "forward": ("#1e3a8a", ""),
    "saved": ("#6482b8", "5 3"),
    "gradient": ("#c2410c", ""),
    "update": ("#15803d", ""),
    "parameter": ("#6d28d9", ""),
}
_MEANINGS = {
    "input": "input",
    "parameter": "parameter",
    "buffer": "buffer",
    "forward": "forward: op, output, its bytes, operations",
    "gradient": "gradient",
    "update": "update of state",
}


def svg(picture: Picture) -> str:
    """The drawing as SVG text."""
    placed = layout(picture)
    head = _head(picture)
    height = placed.height + head[1] + 2 * _MARGIN
    width = max(placed.width + 2 * _MARGIN, head[2])
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="11.5">',
        f"<title>{escape(picture.name)}</title>",
        "<defs>",
        *(_marker(kind) for kind in _LINES),
        "</defs>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
        head[0],
        f'<g transform="translate({_MARGIN:.0f} {head[1] + _MARGIN:.0f})">',
        *_drawing(placed),
        "</g>",
        "</svg>",
    ]
    return "\n".join(body) + "\n"


def _drawing(placed: Layout) -> list[str]:
    order = ("saved", "parameter", "forward", "gradient", "update")
    routes = sorted(placed.routes, key=lambda route: order.index(route.kind))
    return [*(_route(route) for route in routes), *(_box(rectangle) for rectangle in placed.rectangles)]


def _head(picture: Picture) -> tuple[str, float, float]:
    """Title, totals and legend; with their height and width."""
    kinds = [kind for kind in _FILLS if picture.part(kind)]
    lines = picture.totals()
    parts = [
        f'<text x="{_MARGIN:.0f}" y="34" font-size="18" font-weight="bold">{escape(picture.name)}</text>'
    ]
    y = 56.0
    for text in lines:
        parts.append(f'<text x="{_MARGIN:.0f}" y="{y:.0f}" fill="#374151">{escape(text)}</text>')
        y += 16
    x, y = _MARGIN, y + 8
    for kind in kinds:
        fill, stroke = _FILLS[kind]
        outline = _outline(kind, x, y - 11, 26, 14)
        parts.append(f'<path d="{outline}" fill="{fill}" stroke="{stroke}"{_dashes(kind)}/>')
        parts.append(f'<text x="{x + 32:.0f}" y="{y:.0f}">{escape(_MEANINGS[kind])}</text>')
        x += 32 + 6.3 * len(_MEANINGS[kind]) + 18
    if picture.part("gradient"):
        parts.append(
            f'<path d="M{x:.0f},{y - 4:.0f}h26" stroke="{_LINES["saved"][0]}" stroke-width="1.3" '
            f'stroke-dasharray="{_LINES["saved"][1]}" fill="none"/>'
            f'<text x="{x + 32:.0f}" y="{y:.0f}">forward value kept for the gradient</text>'
        )
        x += 32 + 6.3 * 36
    return "\n".join(parts), y + 4, max(x, max(len(text) for text in lines) * 6.5) + _MARGIN


def _marker(kind: str) -> str:
    return (
        f'<marker id="to-{kind}" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="6.5" markerHeight="6.5" '
        f'orient="auto"><path d="M0,0.6L8,4L0,7.4z" fill="{_LINES[kind][0]}"/></marker>'
    )


def _dashes(kind: str) -> str:
    return ' stroke-dasharray="4 2"' if kind == "buffer" else ""


def _outline(kind: str, x: float, y: float, width: float, height: float) -> str:
    """The shape of a box: inputs are pills, state is six-sided, ops are rounded rectangles."""
    if kind in ("parameter", "buffer"):
        cut = min(8.0, height / 2)
        return (
            f"M{x + cut:.1f},{y:.1f}h{width - 2 * cut:.1f}l{cut:.1f},{height / 2:.1f}"
            f"l{-cut:.1f},{height / 2:.1f}"
            f"h{2 * cut - width:.1f}l{-cut:.1f},{-height / 2:.1f}z"
        )
    r = height / 2 if kind == "input" else 5.0
    r = min(r, 16.0)
    arc = f"a{r:.1f},{r:.1f} 0 0 1 "
    return (
        f"M{x + r:.1f},{y:.1f}h{width - 2 * r:.1f}{arc}{r:.1f},{r:.1f}"
        f"v{height - 2 * r:.1f}{arc}{-r:.1f},{r:.1f}"
        f"h{2 * r - width:.1f}{arc}{-r:.1f},{-r:.1f}v{2 * r - height:.1f}{arc}{r:.1f},{-r:.1f}z"
    )


def _box(rectangle: Rectangle) -> str:
    box = rectangle.box
    fill, stroke = _FILLS[box.kind]
    thick = 2.4 if box.result else 1.2
    outline = _outline(box.kind, rectangle.left, rectangle.top, rectangle.width, rectangle.height)
    parts = [
        f"<g><title>{escape(tooltip(box))}</title>"
        f'<path d="{outline}" fill="{fill}" stroke="{stroke}" stroke-width="{thick}"{_dashes(box.kind)}/>'
    ]
    y = rectangle.top + LINE + 1
    for number, line in enumerate(rectangle.lines):
        style = 'fill="#111827" font-weight="bold"' if number == 0 else 'fill="#374151"'
        parts.append(
            f'<text x="{rectangle.x:.1f}" y="{y:.1f}" text-anchor="middle" {style}>{escape(line)}</text>'
        )
        y += LINE
    return "".join(parts) + "</g>"


def tooltip(box: Box) -> str:
    """Everything about a box, in lines."""
    lines = [f"{box.name or box.title}  {box.module}".strip()]
    lines += [f"gives {type}" for type in box.types]
    lines.append(f"{box.nbytes:,} bytes")
    if box.operations:
        lines.append(f"{box.operations:,} operations ({operations(box.operations)})")
    if box.operands:
        lines.append(f"of {', '.join(box.operands)}")
    lines += [f"sets {name}" for name in box.writes]
    return "\n".join([*lines, *(text for text in (box.attributes[:600], box.where) if text)])


def _route(route: Route) -> str:
    colour, dashes = _LINES[route.kind]
    path = _curve(route.points) if route.smooth else _rounded(route.points)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    label = ""
    if route.edge is not None:
        source, target = route.edge.source, route.edge.target
        types = " + ".join(map(str, route.edge.types))
        label = f"<title>{escape(f'{source.name or source.title} to {target.name}: {types}')}</title>"
    return (
        f'<path d={quoteattr(path)} fill="none" stroke="{colour}" stroke-width="1.3"{dashed} '
        f'marker-end="url(#to-{route.kind})">{label}</path>'
    )


def _curve(points: list[Point]) -> str:
    """A smooth line; vertical at its points where it runs down or up, horizontal where it runs sideways."""
    path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
    sideways = len(points) == 2 and abs(points[1][0] - points[0][0]) > 3 * abs(points[1][1] - points[0][1])
    for (x, y), (to_x, to_y) in pairwise(points):
        if abs(to_x - x) < 0.5 and abs(to_y - y) < 0.5:
            continue  # a last step without length would turn the arrow's head
        if sideways:
            middle = (x + to_x) / 2
            path += f"C{middle:.1f},{y:.1f} {middle:.1f},{to_y:.1f} {to_x:.1f},{to_y:.1f}"
        elif abs(to_x - x) < 0.5:
            path += f"L{to_x:.1f},{to_y:.1f}"
        else:
            middle = (y + to_y) / 2
            path += f"C{x:.1f},{middle:.1f} {to_x:.1f},{middle:.1f} {to_x:.1f},{to_y:.1f}"
    return path


def _rounded(points: list[Point]) -> str:
    """Straight lines with rounded corners."""
    path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
    for before, (x, y), after in zip(points, points[1:], points[2:], strict=False):
        start, end = _towards((x, y), before), _towards((x, y), after)
        path += f"L{start[0]:.1f},{start[1]:.1f}Q{x:.1f},{y:.1f} {end[0]:.1f},{end[1]:.1f}"
    return path + f"L{points[-1][0]:.1f},{points[-1][1]:.1f}"


def _towards(corner: Point, other: Point) -> Point:
    """The point near a corner in the direction of another one."""
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = max((dx * dx + dy * dy) ** 0.5, 1e-9)
    part = min(_ROUNDING, length / 2) / length
    return corner[0] + dx * part, corner[1] + dy * part
