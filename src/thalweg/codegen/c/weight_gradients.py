"""Row-major weight gradients of convolutions.

Filters lie along the vectors, channels and taps are the rows of the register tile, and the sum runs over images and pixels in
their order. Where filters are few, lanes run along pixels and are added at the end.
"""

from __future__ import annotations

import itertools
import math

from thalweg.codegen.c.bindings import Context
from thalweg.codegen.c.products import BLOCK, FEW_ITEMS
from thalweg.codegen.c.strips import Emission, Geometry
from thalweg.codegen.c.tiles import MOST_ROWS, balanced, dots_tile, pack_transposed, tile_shape, window_tile
from thalweg.codegen.loops import LANE, unravel, variable
from thalweg.plan import LANES

CHUNK_ROWS = 48  # rows that share a strip, at least, where tasks are cut by rows
FEWEST_FILTERS = 8  # that lie along the vectors; fewer would leave most lanes empty


class WeightCut:
    """How a weight gradient is cut: panels of filters, chunks of rows (channel, tap), strips of pixels. Where filters are
    few, all are one panel, which needs no copy, and lanes run along pixels."""

    def __init__(self, shape: Geometry, tasks: int) -> None:
        self.rows = shape.channels * shape.taps  # of the tiles
        self.inner = math.prod(
            axis.count for axis in shape.axes[1:]
        )  # pixels of one position of the first axis
        narrow = shape.rows < FEWEST_FILTERS
        self.positions = min(shape.axes[0].count, max(1, BLOCK * (LANES if narrow else 1) // self.inner))
        vectors = -(-shape.rows // LANES)
        self.height, width = (
            (MOST_ROWS, 1) if narrow else tile_shape(self.rows, vectors, shape.element, shape.machine)
        )
        self.panels, self.width, self.wide = balanced(vectors, width)
        self.tiles, self.height, self.tall = balanced(self.rows, self.height)
        beside = self.panels * shape.groups
        least = min(-(-FEW_ITEMS // beside), self.rows // CHUNK_ROWS)
        self.chunks = max(1, min(-(-tasks // beside), max(least, self.rows // (4 * CHUNK_ROWS)), self.tiles))
        chunk_rows = -(-self.tiles // self.chunks) * self.height
        channels = min(shape.channels, (chunk_rows - 2) // shape.taps + 2)
        self.table = 0 if narrow else -(-2 * self.inner // 8) * 8  # integers: places of pixels
        self.strip = shape.strip(self.positions, channels)
        self.panel = 0 if narrow else -(-self.positions * self.inner // LANES) * LANES * self.width * LANES
        self.chunk_rows = chunk_rows + LANES
        self.sums = self.chunk_rows * (shape.rows if narrow else self.width) * LANES


class WeightGradient(Emission):
    """Filters along the vectors; rows are (channel, tap); the sum runs over images and pixels in their order."""

    def __init__(self, context: Context, shape: Geometry) -> None:
        super().__init__(context, shape)
        self.cut = WeightCut(shape, context.kernel.tasks)

    def body(self) -> list[str]:
        """Items (group, panel of filters, chunk of rows); in each, images and strips."""
        shape, element, cut, tasks = self.shape, self.shape.element, self.cut, self.context.kernel.tasks
        items = shape.groups * cut.panels * cut.chunks
        lines = [
            "(void)error;",
            f"int64_t *const pixels = (int64_t *){self.scratch}; {element} *const strip = ({element} *)(pixels + {cut.table}), "
            f"*const panel = strip + {cut.strip}, *const sums = panel + {cut.panel};",
            f"for (int64_t item = task * {items} / {tasks}; item < (task + 1) * {items} / {tasks}; item++) {{",
            f"const int64_t group = item / {cut.panels * cut.chunks}, p = item / {cut.chunks} % {cut.panels}, "
            f"chunk = item % {cut.chunks};",
            f"const int64_t width = p < {cut.wide} ? {cut.width * LANES} : {(cut.width - 1) * LANES};",
            f"const int64_t filter = p * {cut.width * LANES} - (p > {cut.wide} ? (p - {cut.wide}) * {LANES} : 0);",
            f"const int64_t valid = {shape.rows} - filter < width ? {shape.rows} - filter : width;",
            f"const int64_t begin = chunk * {cut.tiles} / {cut.chunks}, end = (chunk + 1) * {cut.tiles} / {cut.chunks};",
            f"const int64_t low = begin * {cut.height} - (begin > {cut.tall} ? begin - {cut.tall} : 0);",
            f"const int64_t high = end * {cut.height} - (end > {cut.tall} ? end - {cut.tall} : 0);",
            f"const int64_t first = low / {shape.taps}, channels = (high - 1) / {shape.taps} + 1 - first;",
            *(self._pixels() if cut.table else ["(void)pixels;"]),
            f"for (int64_t image = 0; image < {shape.batch}; image++) "
            f"for (int64_t start = 0; start < {shape.axes[0].count}; start += {cut.positions}) {{",
            f"const int64_t channel = (image * {shape.groups} + group) * {shape.channels} + first;",
            f"const int64_t count = {shape.axes[0].count} - start < {cut.positions} ? "
            f"{shape.axes[0].count} - start : {cut.positions};",
            *self.fill(cut.positions, "start", "channels"),
            *self._strip(),
            "}",
        ]
        return [*lines, *self._finish(), "}"]

    def _cotangent(self) -> tuple[str, int]:
        """C text of the address of the cotangent's pixels of the strip for the panel's first filter, and its pixels."""
        shape = self.shape
        pixels = shape.axes[0].count * self.cut.inner
        member = f"image * {shape.rows * shape.groups} + group * {shape.rows} + filter"
        return f"{self.other} + ({member}) * {pixels} + start * {self.cut.inner}", pixels

    def _strip(self) -> list[str]:
        """What a strip adds to the sums: the panel of the cotangent, then all tiles of rows."""
        pack = pack_transposed(self.context, self.shape.element)
        cotangent, pixels = self._cotangent()
        return [
            f"{pack}({cotangent}, {pixels}, count * {self.cut.inner}, valid, panel, width);",
            *self._tiles(),
        ]

    def _pixels(self) -> list[str]:
        """Statements that fill the table of the pixels of one position of the first axis: where each lies in the strip and
        in the panel."""
        shape = self.shape
        lines = ["{ int64_t q = 0;"]
        place = "0"
        for a, (axis, pitch) in enumerate(zip(shape.axes[1:], shape.pitches[1:], strict=True)):
            lines.append(f"for (int64_t e{a} = 0; e{a} < {axis.count}; e{a}++)")
            place += f" + e{a} * {pitch}"
        return [*lines, f"{{ pixels[2 * q] = {place}; pixels[2 * q + 1] = q * width; q++; }}", "}"]

    def _rows(self) -> list[str]:
        """The loop over tiles of rows, with the place of each row in the strip."""
        shape, cut = self.shape, self.cut
        plane = shape.plane(cut.positions)
        offsets: list[str] = []
        for taps in itertools.product(*(axis.parts[0].taps for axis in shape.axes)):
            phase = offset = 0
            for (_, f, o), axis, pitch in zip(taps, shape.axes, shape.pitches, strict=True):
                phase = phase * len(axis.phases) + f
                offset += o * pitch
            offsets.append(str(phase * plane + offset))
        return [
            f"static const int64_t offset[] = {{{', '.join(offsets)}}};",
            "for (int64_t tile = begin; tile < end; tile++) {",
            f"const int64_t at = tile * {cut.height} - (tile > {cut.tall} ? tile - {cut.tall} : 0);",
            f"const int64_t rows = tile < {cut.tall} ? {cut.height} : {cut.height - 1};",
            f"int64_t row[{cut.height}], base = (at / {shape.taps} - first) * {len(shape.phases) * plane};",
            f"for (int64_t r = 0, tap = at % {shape.taps}; r < rows; r++) {{",
            "row[r] = base + offset[tap];",
            f"if (++tap == {shape.taps}) {{ tap = 0; base += {len(shape.phases) * plane}; }}",
            "}",
        ]

    def _heights(self) -> tuple[int, ...]:
        """Rows of the tiles."""
        return (self.cut.height, self.cut.height - 1)[: 1 + (self.cut.tall < self.cut.tiles)]

    def _tiles(self) -> list[str]:
        """All tiles of rows over the pixels of the strip."""
        shape, cut = self.shape, self.cut
        lines = self._rows()
        for vectors in range(cut.width, max(cut.width - 2, 0), -1):
            for rows in self._heights():
                name = window_tile(self.context, shape.element, rows, vectors)
                lines.append(
                    f"if (width == {vectors * LANES} && rows == {rows}) {name}(strip, row, {shape.pitches[0]}, panel, "
                    f"{cut.inner} * width, count, pixels, {cut.inner}, sums + (at - low) * width, width, "
                    "image + start > 0);"
                )
        return [*lines, "}"]

    def _sum(self) -> list[str]:
        """16 neighbouring rows of filter `f` from the sums, in a vector."""
        element = self.shape.element
        return [f"const {element}x16 sum = load_strided_{element}(sums + (at - low) * width + f, width);"]

    def _finish(self) -> list[str]:
        """The sums, transposed to rows of filters, through the epilogue to memory."""
        shape = self.shape
        rows = self.cut.rows
        lines = [
            "for (int64_t f = 0; f < valid; f++) for (int64_t at = low; at < high; at += 16) {",
            "const int64_t i = filter + f, n = high - at < 16 ? high - at : 16; (void)i;",
            *self._sum(),
        ]
        extents = {
            "group": shape.groups,
            "i": shape.rows,
            "at": max(rows - LANES + 1, 1),
            LANE: min(rows, LANES),
        }
        inner = unravel(variable("at") + variable(LANE), self.result.shape[1:], extents)
        indices = (variable("group") * shape.rows + variable("i"), *inner)
        return [*lines, *self.both("sum", indices, extents), "}"]


class NarrowWeightGradient(WeightGradient):
    """Few filters per group (depthwise convolutions): lanes run along the last axis and are added at the end."""

    def _strip(self) -> list[str]:
        """Each filter with each tile of rows, over the rows of pixels of the strip."""
        shape, cut = self.shape, self.cut
        cotangent, pixels = self._cotangent()
        outer, length, extent = "1", "count", 1  # one axis: a single row of pixels
        from_strip, from_cotangent, loop = "", "", ""
        if len(shape.axes) == 2:
            outer, length, extent = "count", str(shape.axes[1].count), shape.axes[1].count
        elif len(shape.axes) == 3:
            outer, length, extent = str(shape.axes[1].count), str(shape.axes[2].count), shape.axes[2].count
            loop = "for (int64_t q = 0; q < count; q++)"
            from_strip, from_cotangent = f" + q * {shape.pitches[0]}", f" + q * {cut.inner}"
        step = shape.pitches[-2] if len(shape.axes) > 1 else 0
        lines = [
            "for (int64_t f = 0; f < valid; f++) {",
            f"const {shape.element} *const y = {cotangent} + f * {pixels};",
        ]
        lines += self._rows()
        add = "image + start > 0" + (" || q > 0" if loop else "")
        for rows in self._heights():
            name = dots_tile(self.context, shape.element, rows)
            lines.append(
                f"if (rows == {rows}) {loop} {name}(strip{from_strip}, row, {step}, y{from_cotangent}, {extent}, {outer}, "
                f"{length}, sums + (f * {cut.chunk_rows} + at - low) * {LANES}, {add});"
            )
        return [*lines, "}", "}"]

    def _sum(self) -> list[str]:
        element = self.shape.element
        return [
            f"{element}_lanes lanes;",
            f"for (int64_t l = 0; l < n; l++) lanes.lane[l] = sum_{element}(load_{element}("
            f"sums + (f * {self.cut.chunk_rows} + at - low + l) * {LANES}));",
            "for (int64_t l = n; l < 16; l++) lanes.lane[l] = 0;",
            f"const {element}x16 sum = lanes.whole;",
        ]
