"""Where everything in a drawing stands: forward on the left from top to bottom, its gradient beside it,
updates right.

In: a `Picture`. Out: a `Layout`: a rectangle per box and a path per edge. The forward part is laid out in
bands, one per layer of the network; the gradient of a layer stands in the same band to its right, so that the
gradient as a whole flows back up; updates stand in the last columns, next to the gradients that they use.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from thalweg.viz.layered import Layered, layered, monotone
from thalweg.viz.picture import Box, Edge, Picture, operations, size

LINE = 14.0  # height of a line of text
_CHARACTER = 6.3  # mean width of a character
_PADDING = 8.0
_GAP = 22.0  # between boxes of a row
_ROW_GAP = 30.0  # between rows, where nothing is routed
_TRACK = 6.0  # between parallel lines
_STACK_GAP = 26.0  # between a box and its parameters
_WIDEST = 34  # characters of a line in a box

Point = tuple[float, float]


@dataclass(eq=False)
class Rectangle:
    """A box with its lines of text (the first is the title) and its place; x and y are of its centre."""

    box: Box
    lines: list[str]
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0

    @property
    def top(self) -> float:
        return self.y - self.height / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height / 2

    @property
    def left(self) -> float:
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        return self.x + self.width / 2


@dataclass(eq=False)
class Route:
    """The path of an edge: points joined by straight lines with rounded corners, or by one smooth curve."""

    edge: Edge | None  # None: from a parameter to the op beside it
    kind: str  # "forward", "saved" (forward value used later), "gradient", "update" or "parameter"
    points: list[Point]
    smooth: bool


@dataclass(eq=False)
class Layout:
    """Everything with its place; the drawing covers (0, 0) to (width, height)."""

    rectangles: list[Rectangle]
    routes: list[Route]
    width: float
    height: float


def layout(picture: Picture) -> Layout:
    """Place all boxes and route all edges of a picture."""
    return _Arranger(picture).run()


def box_lines(box: Box) -> list[str]:
    """The lines of text in a box."""
    if box.count > 1:
        lines = [_clipped(box.title), box.module, f"{size(box.nbytes)}, {operations(box.operations)}"]
        return [*lines, *(f"sets {name}" for name in _clipped_list(_related(box.writes)))]
    types = " + ".join(str(type) for type in box.types[:2])
    types += f" + {len(box.types) - 2} more" if len(box.types) > 2 else ""
    if box.kind in ("input", "parameter", "buffer"):
        return [_clipped(box.title), types, size(box.nbytes)]
    if box.kind == "update" and box.writes:
        others = [name for name in box.reads if name not in box.writes]
        lines = [box.title, *(f"sets {name}" for name in _clipped_list(_related(box.writes)))]
        return lines + ([_clipped(f"reads {', '.join(others)}")] if others else [])
    head = f"{box.module}: {box.title}" if box.module else box.title
    lines = [head, types, f"{size(box.nbytes)}, {operations(box.operations)}"]
    if box.reads:
        lines.append(f"reads {', '.join(box.reads)}")
    if box.writes:
        lines.append(f"sets {', '.join(box.writes)}")
    if box.result:
        lines.append(f"= {box.result}")
    return [_clipped(line) for line in lines]


def _clipped(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _clipped_list(names: Sequence[str]) -> list[str]:
    shown = [_clipped(name) for name in names[:3]]
    return shown if len(names) <= 3 else [*shown[:2], f"and {len(names) - 2} more"]


def _related(names: Sequence[str]) -> list[str]:
    """Names with what they share with the first left out: conv1.weight, .momentum_buffer."""
    if not names:
        return []
    first = min(names, key=len)
    rest = [name for name in names if name != first]
    return [first, *(name[len(first) :] if name.startswith(f"{first}.") else name for name in rest)]


def _rectangle(box: Box) -> Rectangle:
    lines = box_lines(box)
    width = max(len(line) + (2 if number == 0 else 0) for number, line in enumerate(lines)) * _CHARACTER
    return Rectangle(box, lines, max(width + 2 * _PADDING, 90.0), len(lines) * LINE + _PADDING)


class _Arranger:
    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.rectangles = {id(box): _rectangle(box) for box in picture.boxes}
        self.routes: list[Route] = []
        self.forward = [box for box in picture.boxes if box.kind in ("forward", "input")]
        self.gradient = picture.part("gradient")
        self.update = picture.part("update")
        self.bands = self._forward_bands()
        self.band_count = 1 + max(self.bands.values(), default=0)
        self.rows = (
            self._gradient_rows()
        )  # id(gradient box) -> (band, row within the band, counted from its bottom)

    def run(self) -> Layout:
        forward = self._columns(self.forward, self.bands)
        keys = sorted(
            {*self.rows.values(), *((band, 0) for band in range(self.band_count))},
            key=lambda k: (-k[0], k[1]),
        )
        self.row_number = {key: number for number, key in enumerate(keys)}  # from bottom to top
        layers = {key: self.row_number[row] for key, row in self.rows.items()}
        gradient = self._columns(self.gradient, layers)
        self._vertical()
        left = self._horizontal(forward, gradient)
        self._route_within(self.forward, self.bands, forward, upwards=False)
        self._route_within(self.gradient, layers, gradient, upwards=True)
        self._updates(left)
        self._route_across()
        width = max((r.right for r in self.rectangles.values()), default=0.0)
        width = (
            max(width, *(x for route in self.routes for x, _ in route.points), 0.0) if self.routes else width
        )
        height = max((r.bottom for r in self.rectangles.values()), default=0.0)
        return Layout(list(self.rectangles.values()), self.routes, width, max(height, self.floor))

    # ---- which band and row --------------------------------------------------------------------------------

    def _edges(self, sources: Sequence[Box], targets: Sequence[Box]) -> list[Edge]:
        first, second = {id(box) for box in sources}, {id(box) for box in targets}
        return [e for e in self.picture.edges if id(e.source) in first and id(e.target) in second]

    def _forward_bands(self) -> dict[int, int]:
        """Longest paths; what nothing leads to stands just above what uses it."""
        inner = self._edges(self.forward, self.forward)
        bands: dict[int, int] = {}
        before: dict[int, list[int]] = {}
        for edge in inner:
            before.setdefault(id(edge.target), []).append(id(edge.source))
        for box in self.forward:
            bands[id(box)] = max((bands[key] + 1 for key in before.get(id(box), [])), default=0)
        after: dict[int, list[int]] = {}
        for edge in inner:
            after.setdefault(id(edge.source), []).append(bands[id(edge.target)])
        for box in self.forward:
            if id(box) not in before and id(box) in after:
                bands[id(box)] = min(after[id(box)]) - 1
        return bands

    def _gradient_rows(self) -> dict[int, tuple[int, int]]:
        """The band of the forward op that a gradient belongs to, and its row there above what it reads."""
        owners: dict[tuple[str, str], list[int]] = {}
        for box in self.forward:
            if box.kind == "forward":
                owners.setdefault((box.module, box.where), []).append(self.bands[id(box)])
        before: dict[int, list[int]] = {}
        saved: dict[int, list[int]] = {}
        for edge in self._edges(self.gradient, self.gradient):
            before.setdefault(id(edge.target), []).append(id(edge.source))
        for edge in self._edges(self.forward, self.gradient):
            if edge.source.kind == "forward":
                saved.setdefault(id(edge.target), []).append(self.bands[id(edge.source)])
        rows: dict[int, tuple[int, int]] = {}
        for box in self.gradient:
            known = [rows[key] for key in before.get(id(box), []) if key in rows]
            limit = min((band for band, _ in known), default=self.band_count - 1)
            near = limit if known else max(saved.get(id(box), []), default=limit)
            found = [band for band in owners.get((box.module, box.where), []) if band <= limit]
            band = min(found, key=lambda candidate: (abs(candidate - near), -candidate)) if found else near
            rows[id(box)] = (band, max((row + 1 for other, row in known if other == band), default=0))
        return rows

    def _columns(self, boxes: Sequence[Box], layers: dict[int, int]) -> Layered:
        inner = [(id(e.source), id(e.target)) for e in self._edges(boxes, boxes)]
        placed: dict[Hashable, int] = {id(box): layers[id(box)] for box in boxes}
        extents: dict[Hashable, tuple[float, float]] = {}
        for box in boxes:
            half = self.rectangles[id(box)].width / 2
            stack = self._stack(box)
            beside = max((r.width for r in stack), default=0.0) + _STACK_GAP if stack else 0.0
            extents[id(box)] = (half + beside, half)
        return layered(placed, extents, inner, _GAP)

    def _stack(self, box: Box) -> list[Rectangle]:
        """The parameters and buffers that stand beside a forward box."""
        return [self.rectangles[id(state)] for state in self.picture.state_of.get(id(box), [])]

    # ---- heights -------------------------------------------------------------------------------------------

    def _vertical(self) -> None:
        """y of every box: bands from top to bottom, the rows of their gradients within."""
        self._channels()
        y = 0.0
        self.band_top: list[float] = []
        self.band_bottom: list[float] = []
        for band in range(self.band_count):
            rows = sorted((key for key in self.row_number if key[0] == band), key=lambda key: -key[1])
            heights = [self._row_height(key) for key in rows]
            inner = sum(heights) + sum(self._gap_above(key) for key in rows[1:])
            cells = [self._cell_height(box) for box in self.forward if self.bands[id(box)] == band]
            y += self._gap_above(rows[0])
            height = max([inner, *cells])
            self.band_top.append(y)
            self._place_rows(rows, heights, y + (height - inner) / 2)
            for box in self.forward:
                if self.bands[id(box)] == band:
                    self.rectangles[id(box)].y = y + height / 2
            y += height
            self.band_bottom.append(y)
        self.floor = y + _ROW_GAP

    def _place_rows(self, rows: Sequence[tuple[int, int]], heights: Sequence[float], y: float) -> None:
        for position, (key, height) in enumerate(zip(rows, heights, strict=True)):
            y += self._gap_above(key) if position else 0.0
            self.row_top[key], self.row_bottom[key] = y, y + height
            for box in self.gradient:
                if self.rows[id(box)] == key:
                    self.rectangles[id(box)].y = y + height / 2
            y += height

    def _row_height(self, key: tuple[int, int]) -> float:
        return max((self.rectangles[b].height for b, row in self.rows.items() if row == key), default=0.0)

    def _cell_height(self, box: Box) -> float:
        stack = self._stack(box)
        return max(self.rectangles[id(box)].height, sum(r.height + 4 for r in stack))

    def _channels(self) -> None:
        """Horizontal tracks between rows: saved values below their target's row, results above theirs."""
        self.row_top: dict[tuple[int, int], float] = {}
        self.row_bottom: dict[tuple[int, int], float] = {}
        self.below: dict[int, int] = {}  # id(edge) -> track
        self.above: dict[int, int] = {}
        counts_below: dict[tuple[int, int], int] = {}
        counts_above: dict[tuple[int, int], int] = {}
        for edge in self._edges(self.forward, self.gradient):
            row = self.rows[id(edge.target)]
            self.below[id(edge)] = counts_below[row] = counts_below.get(row, 0) + 1
        for edge in self._edges([*self.forward, *self.gradient], self.update):
            row = self.rows.get(id(edge.source), (self.bands.get(id(edge.source), 0), 0))
            self.above[id(edge)] = counts_above[row] = counts_above.get(row, 0) + 1
        self.counts = counts_below, counts_above

    def _gap_above(self, key: tuple[int, int]) -> float:
        """Room between a row and the one above it: the tracks below that one and above this one."""
        number = self.row_number[key] + 1
        upper = next((other for other, position in self.row_number.items() if position == number), None)
        below, above = self.counts
        return _ROW_GAP + _TRACK * (above.get(key, 0) + (below.get(upper, 0) if upper is not None else 0))

    # ---- widths --------------------------------------------------------------------------------------------

    def _horizontal(self, forward: Layered, gradient: Layered) -> float:
        """x of every forward and gradient box; returns where the updates may begin."""
        right = 0.0
        for box in self.forward:
            rectangle = self.rectangles[id(box)]
            rectangle.x = forward.x[id(box)]
            right = max(right, rectangle.right)
            self._place_stack(box, rectangle)
        right = max([right, *(x for passes in forward.passes.values() for x in passes.values())])
        self.gutter = right + 16
        self.tracks = self._gutter_tracks()
        begin = self.gutter + _TRACK * (1 + max(self.tracks.values(), default=0)) + 16
        self.shift = begin
        for box in self.gradient:
            rectangle = self.rectangles[id(box)]
            rectangle.x = gradient.x[id(box)] + begin
            right = max(right, rectangle.right)
        return max([right, *(x + begin for passes in gradient.passes.values() for x in passes.values())])

    def _place_stack(self, box: Box, rectangle: Rectangle) -> None:
        stack = self._stack(box)
        y = rectangle.y - sum(r.height + 4 for r in stack) / 2 + 2
        for state in stack:
            state.x = rectangle.left - _STACK_GAP - state.width / 2
            state.y = y + state.height / 2
            y += state.height + 4
            self.routes.append(
                Route(None, "parameter", [(state.right, state.y), (rectangle.left, rectangle.y)], smooth=True)
            )

    def _gutter_tracks(self) -> dict[int, int]:
        """A vertical track between forward and gradient for each saved value; on one track no spans meet."""
        spans = []
        for edge in self._edges(self.forward, self.gradient):
            ends = sorted((self._exit_y(edge), self._channel_y(edge)))
            spans.append((ends[0], ends[1], edge))
        spans.sort(key=lambda span: (span[1] - span[0], span[0]))
        taken: list[list[tuple[float, float]]] = []
        found: dict[int, int] = {}
        for low, high, edge in spans:
            track = next(
                (n for n, used in enumerate(taken) if all(high + 4 < a or b + 4 < low for a, b in used)),
                len(taken),
            )
            if track == len(taken):
                taken.append([])
            taken[track].append((low, high))
            found[id(edge)] = track
        return found

    def _exit_y(self, edge: Edge) -> float:
        """Where a saved value leaves its forward box: on its right side, a little apart from others."""
        same = [e for e in self._edges(self.forward, self.gradient) if e.source is edge.source]
        rectangle = self.rectangles[id(edge.source)]
        spread = min(7.0, (rectangle.height - 12) / max(len(same), 1))
        return rectangle.y + (same.index(edge) - (len(same) - 1) / 2) * spread

    def _channel_y(self, edge: Edge) -> float:
        return self.row_bottom[self.rows[id(edge.target)]] + 8 + _TRACK * self.below[id(edge)]

    # ---- edges ---------------------------------------------------------------------------------------------

    def _entry(self, edge: Edge) -> float:
        """x at which an edge enters its target: edges come in from left to right as their sources stand."""
        same = [e for e in self.picture.edges if e.target is edge.target and e.source.kind != "update"]
        same.sort(key=lambda e: (self.rectangles[id(e.source)].x, e.source.order))
        rectangle = self.rectangles[id(edge.target)]
        spread = min(16.0, (rectangle.width - 24) / max(len(same), 1))
        return rectangle.x + (same.index(edge) - (len(same) - 1) / 2) * spread

    def _route_within(
        self, boxes: Sequence[Box], layers: dict[int, int], placed: Layered, upwards: bool
    ) -> None:
        for edge in self._edges(boxes, boxes):
            source, target = self.rectangles[id(edge.source)], self.rectangles[id(edge.target)]
            points = [(source.x, source.top if upwards else source.bottom)]
            points.append(self._passage(layers[id(edge.source)], source.x, upwards)[1])
            for layer, x in sorted(placed.passes[id(edge.source), id(edge.target)].items()):
                points += self._passage(layer, x + (self.shift if upwards else 0.0), upwards)
            entry = self._entry(edge)
            points.append(self._passage(layers[id(edge.target)], entry, upwards)[0])
            points.append((entry, target.bottom if upwards else target.top))
            self.routes.append(Route(edge, "gradient" if upwards else "forward", points, smooth=True))

    def _passage(self, layer: int, x: float, upwards: bool) -> list[Point]:
        """Two points between which an edge runs straight past the boxes of a layer."""
        if not upwards:
            return [(x, self.band_top[layer]), (x, self.band_bottom[layer])]
        key = next(key for key, number in self.row_number.items() if number == layer)
        return [(x, self.row_bottom[key]), (x, self.row_top[key])]

    def _route_across(self) -> None:
        """Saved values from forward to gradient; and every edge that fits nowhere else, as a plain curve."""
        for edge in self.picture.edges:
            parts = (self._part(edge.source), self._part(edge.target))
            source, target = self.rectangles[id(edge.source)], self.rectangles[id(edge.target)]
            if parts == ("forward", "gradient"):
                self.routes.append(Route(edge, "saved", self._saved_points(edge), smooth=False))
            elif parts[1] == "update":
                continue
            elif parts[0] == "update" or parts == ("gradient", "forward"):
                self.routes.append(
                    Route(edge, "update", [(source.x, source.top), (target.x, target.bottom)], True)
                )

    def _part(self, box: Box) -> str:
        return "forward" if box.kind == "input" else box.kind

    def _saved_points(self, edge: Edge) -> list[Point]:
        source, target = self.rectangles[id(edge.source)], self.rectangles[id(edge.target)]
        track = self.gutter + _TRACK * self.tracks[id(edge)]
        y, channel, entry = self._exit_y(edge), self._channel_y(edge), self._entry(edge)
        return [*self._way_out(source, y, track), (track, channel), (entry, channel), (entry, target.bottom)]

    def _way_out(self, source: Rectangle, y: float, x: float) -> list[Point]:
        """From a forward box to the gutter at x: straight, or below the band where boxes stand in the way."""
        band = self.bands[id(source.box)]
        blocked = any(
            self.bands[id(box)] == band and self.rectangles[id(box)].left > source.x for box in self.forward
        )
        if not blocked:
            return [(source.right, y), (x, y)]
        low = self.band_bottom[band] + 7
        return [(source.x + source.width / 4, source.bottom), (source.x + source.width / 4, low), (x, low)]

    # ---- updates -------------------------------------------------------------------------------------------

    def _updates(self, left: float) -> None:
        """Updates in columns by their depth, each as high as what it is computed from."""
        depth: dict[int, int] = {}
        sources: dict[int, list[Edge]] = {}
        for edge in self.picture.edges:
            if edge.target.kind == "update":
                sources.setdefault(id(edge.target), []).append(edge)
        for box in self.update:
            depth[id(box)] = max(
                (depth[id(e.source)] + 1 for e in sources.get(id(box), []) if id(e.source) in depth),
                default=0,
            )
        outer = [e for e in self.picture.edges if id(e) in self.above]
        begin = left + 24 + _TRACK * len(outer)
        x = begin
        for column in range(1 + max(depth.values(), default=-1)):
            boxes = [box for box in self.update if depth[id(box)] == column]
            wide = max(self.rectangles[id(box)].width for box in boxes)
            self._stand(boxes, sources, x + wide / 2)
            x += wide + 60
        self._route_updates(sources, outer, begin)

    def _stand(self, boxes: list[Box], sources: dict[int, list[Edge]], x: float) -> None:
        wanted: dict[int, float] = {}
        for box in boxes:
            near = [self.rectangles[id(e.source)].y for e in sources.get(id(box), [])]
            wanted[id(box)] = sum(near) / len(near) if near else 0.0
        boxes = sorted(boxes, key=lambda box: (wanted[id(box)], box.order))
        offsets, y = [], 0.0
        for box in boxes:
            height = self.rectangles[id(box)].height
            offsets.append(y + height / 2)
            y += height + 10
        targets = [wanted[id(box)] - offset for box, offset in zip(boxes, offsets, strict=True)]
        highest = [max(value, 0.0) for value in monotone(targets, [1.0] * len(targets))]
        for box, offset, start in zip(boxes, offsets, highest, strict=True):
            self.rectangles[id(box)].x, self.rectangles[id(box)].y = x, start + offset

    def _route_updates(self, sources: dict[int, list[Edge]], outer: Sequence[Edge], begin: float) -> None:
        ordered = sorted(outer, key=lambda e: self.rectangles[id(e.target)].y)
        track = {id(edge): begin - 18 - _TRACK * number for number, edge in enumerate(ordered)}
        for box in self.update:
            target = self.rectangles[id(box)]
            entering = sources.get(id(box), [])
            spread = min(7.0, (target.height - 10) / max(len(entering), 1))
            for number, edge in enumerate(entering):
                source = self.rectangles[id(edge.source)]
                end = (target.left, target.y + (number - (len(entering) - 1) / 2) * spread)
                if id(edge) not in track:
                    self.routes.append(Route(edge, "update", [(source.right, source.y), end], smooth=True))
                    continue
                x, y = track[id(edge)], self._track_above(edge)
                start = source.x + source.width / 4
                points = [(start, source.top), (start, y), (x, y), (x, end[1]), end]
                self.routes.append(Route(edge, "update", points, smooth=False))

    def _track_above(self, edge: Edge) -> float:
        row = self.rows.get(id(edge.source))
        top = self.band_top[self.bands[id(edge.source)]] if row is None else self.row_top[row]
        return top - 6 - _TRACK * self.above[id(edge)]
