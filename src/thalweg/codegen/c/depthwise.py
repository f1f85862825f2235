"""Depthwise convolutions, row-major over two axes: each channel has one filter of its own. Forward with any stride, and the
input gradient with stride 1, which is one with the taps turned around.

Rows of a plane are copied into a strip with a border of zeros, apart by the remainder of the stride. A register tile is
several rows of results x up to two vectors along them: a vector of the strip, once loaded, serves every row of the tile that
it is a tap of, which halves the loads for each multiply-add.
"""

from __future__ import annotations

from thalweg.codegen.c.bindings import STATIC, Context
from thalweg.codegen.c.strips import Emission, Geometry
from thalweg.codegen.c.tiles import balanced
from thalweg.codegen.loops import LANE, variable
from thalweg.plan import LANES

STRIP_BYTES = 24 << 10  # a strip should stay in the first cache
SUMS = 8  # vectors of a register tile
MOST_TAPS = 49


def is_depthwise(shape: Geometry) -> bool:
    """Does this file have the kernel of a convolution (not of a weight gradient)?"""
    single = all(len(axis.parts) == 1 for axis in shape.axes)
    return (shape.rows, shape.channels, len(shape.axes)) == (1, 1, 2) and single and shape.taps <= MOST_TAPS


class DepthwiseCut:
    """Sizes of strips and tiles."""

    def __init__(self, shape: Geometry) -> None:
        self.shape = shape
        self.y, self.x = shape.axes
        down = self.y.parts[0].taps
        self.taps = sorted((self.y.phases[f] + o * self.y.step, t) for t, f, o in down)  # row of the source, tap
        self.first = self.taps[0][0]
        self.reach = self.taps[-1][0] - self.first + 1  # rows of the source that a row of results reads
        self.pitch = -(-self.x.count // LANES) * LANES + self.x.reach + LANES
        vectors = -(-self.x.count // LANES)
        self.pieces, self.width, self.wide = balanced(vectors, 2)
        row = 4 * self.pitch * len(self.x.phases)
        rows = max(1, (STRIP_BYTES // row - self.reach) // self.y.step + 1)
        high = SUMS // self.width
        self.bands, self.band, self.tall_bands = balanced(self.y.count, max(min(rows, self.y.count) // high * high, min(high, self.y.count)))
        self.heights = sorted({h for rows in (self.band, self.band - 1) if rows for h in self._heights(rows)})
        self.most = high

    def _heights(self, rows: int) -> set[int]:
        parts = -(-rows // (SUMS // self.width))
        return {rows // parts, -(-rows // parts)}

    @property
    def strip(self) -> int:
        """Elements of a strip."""
        rows = (self.band - 1) * self.y.step + self.reach
        return -(-rows * len(self.x.phases) * self.pitch // LANES) * LANES + LANES

    @property
    def elements(self) -> int:
        """Elements of scratch."""
        return self.strip + SUMS * LANES + self.line

    @property
    def line(self) -> int:
        """Elements of a row of the source, with zeros behind it."""
        return -(-self.x.source // LANES) * LANES + (self.x.step + 1) * LANES


def _tile(context: Context, cut: DepthwiseCut, rows: int, vectors: int) -> str:
    """The name of `(strip, weights, out)`: the sums of rows x vectors results."""
    shape = cut.shape
    across = sorted(cut.x.parts[0].taps)
    size = len(across)
    pitch = cut.pitch * len(cut.x.phases)
    key = "_".join(f"{t}_{f}_{o}" for t, f, o in across) + "__" + "_".join(f"{d - cut.first}_{t}" for d, t in cut.taps)
    name = f"depthwise_{shape.element}_{rows}x{vectors}_{cut.y.step}_{cut.pitch}_{len(cut.x.phases)}_{key}"
    kind = f"{shape.element}x16"
    lines = [f"{STATIC} void {name}(const {shape.element} *strip, const {shape.element} *w, {shape.element} *out) {{"]
    lines += [f"const {kind} w{n} = broadcast_{shape.element}(w[{n}]);" for n in range(shape.taps)]
    lines.append(" ".join(f"{kind} s{r}_{q} = broadcast_{shape.element}(0);" for r in range(rows) for q in range(vectors)))
    for row in range((rows - 1) * cut.y.step + cut.reach):
        users = [(r, t) for r in range(rows) for d, t in cut.taps if r * cut.y.step + d - cut.first == row]
        if not users:
            continue
        for t, f, o in across:
            for q in range(vectors):
                at = row * pitch + f * cut.pitch + o + q * LANES
                lines.append(
                    f"{{ const {kind} v = load_{shape.element}(strip + {at}); "
                    + " ".join(f"s{r}_{q} = fma_{shape.element}(v, w{down * size + t}, s{r}_{q});" for r, down in users)
                    + " }"
                )
    lines += [
        f"store_{shape.element}(out + {(r * vectors + q) * LANES}, s{r}_{q});" for r in range(rows) for q in range(vectors)
    ]
    return context.shared(name, "\n".join([*lines, "}", ""]))


class Depthwise(Emission):
    """Writes a depthwise convolution."""

    def body(self) -> list[str]:
        """Items (plane, band of rows): the strip, then its tiles through the epilogue."""
        context, shape = self.context, self.shape
        cut = DepthwiseCut(shape)
        element, tasks = shape.element, context.kernel.tasks
        planes = shape.batch * shape.groups
        items = planes * cut.bands
        x, y = cut.x, cut.y
        lines = [
            "(void)error;",
            f"{element} *const strip = ({element} *){self.scratch}, *const sums = strip + {cut.strip}, *const line = sums + {SUMS * LANES};",
            f"for (int64_t i = 0; i < {cut.elements}; i += 16) store_{element}(strip + i, broadcast_{element}(0));",
            f"for (int64_t item = task * {items} / {tasks}; item < (task + 1) * {items} / {tasks}; item++) {{",
            f"const int64_t plane = item / {cut.bands}, band = item % {cut.bands}, image = plane / {shape.groups}, "
            f"group = plane % {shape.groups};",
            f"const int64_t start = band * {cut.band} - (band > {cut.tall_bands} ? band - {cut.tall_bands} : 0);",
            f"const int64_t count = band < {cut.tall_bands} ? {cut.band} : {cut.band - 1};",
            f"const {element} *const w = {self.other} + group * {shape.taps};",
            "(void)image;",
            *self._copy(cut),
        ]
        lines += [
            f"for (int64_t r = 0, parts = (count + {cut.most - 1}) / {cut.most}, part = 0; part < parts; part++) {{",
            "const int64_t rows = (count - r) / (parts - part);",
            f"for (int64_t piece = 0; piece < {cut.pieces}; piece++) {{",
            f"const int64_t vectors = piece < {cut.wide} ? {cut.width} : {cut.width - 1};",
            f"const int64_t column = (piece * {cut.width} - (piece > {cut.wide} ? piece - {cut.wide} : 0)) * 16;",
        ]
        step = y.step * len(x.phases) * cut.pitch
        for vectors in {cut.width, cut.width - 1 if cut.wide < cut.pieces else cut.width}:
            for height in cut.heights:
                tile = _tile(context, cut, height, vectors)
                lines.append(f"if (vectors == {vectors} && rows == {height}) {tile}(strip + r * {step} + column, w, sums);")
        lines += [
            "for (int64_t i = 0; i < rows; i++) for (int64_t q = 0; q < vectors; q++) {",
            f"const {element}x16 sum = load_{element}(sums + (i * vectors + q) * 16);",
            f"const int64_t p = start + r + i, j = column + q * 16, n = {x.count} - j < 16 ? {x.count} - j : 16; (void)n;",
        ]
        extents = {
            "image": shape.batch, "group": shape.groups, "p": y.count, "j": max(x.count - LANES + 1, 1), LANE: min(x.count, LANES),
        }  # fmt: skip
        indices = (variable("image"), variable("group"), variable("p"), variable("j") + variable(LANE))
        return [*lines, *self.both("sum", indices, extents), "}", "}", "r += rows;", "}", "}"]

    def _copy(self, cut: DepthwiseCut) -> list[str]:
        """C that copies the rows of a band into the strip. The border, zero from the beginning, is left alone."""
        element, x, y = self.shape.element, cut.x, cut.y
        row = len(x.phases) * cut.pitch
        lines = [
            f"for (int64_t r = 0; r < (count - 1) * {y.step} + {cut.reach}; r++) {{",
            f"const int64_t from = start * {y.step} + {cut.first} + r;",
            f"{element} *const to = strip + r * {row};",
            f"if (from < 0 || from >= {y.source}) {{",
            *([f"for (int64_t i = 0; i < {row}; i += 16) store_{element}(to + i, broadcast_{element}(0));"] if cut.bands > 1 else []),
            "continue; }",
            f"const {element} *const source = {self.source} + (plane * {y.source} + from) * {x.source};",
        ]
        if element == "f32" and x.step == 2:
            return [*lines, *self._even(cut), "}"]
        apart = x.step > 1
        low, high = (0, x.source) if apart else x.inside(0)
        into = "line" if apart else f"to + {low}"
        given = f"source + {0 if apart else low + x.phases[0]}"
        lines += self._row(into, given, high - low)
        for number, phase in enumerate(x.phases if apart else ()):
            low, high = x.inside(number)
            lines.append(
                f"for (int64_t i = {low}; i < {high}; i += 16) store_{element}(to + {number * cut.pitch} + i, "
                f"load_strided_{element}(line + {phase} + {x.step} * i, {x.step}));"
            )
        return [*lines, "}"]

    def _row(self, to: str, source: str, count: int) -> list[str]:
        """C that copies `count` neighbours; up to 15 zeros come behind them."""
        element = self.shape.element
        full, rest = count // LANES * LANES, count % LANES
        lines = [f"for (int64_t i = 0; i < {full}; i += 16) store_{element}({to} + i, load_{element}({source} + i));"]
        if rest:
            lines.append(f"store_{element}({to} + {full}, load_partial_{element}({source} + {full}, {rest}));")
        return lines

    def _even(self, cut: DepthwiseCut) -> list[str]:
        """C that copies every second element of a row. Its last vector may reach into the next row; at the end of the source
        it goes by way of the line."""
        lines: list[str] = []
        y, x = cut.y, cut.x
        size = self.shape.batch * self.shape.groups * y.source * x.source
        for number, phase in enumerate(x.phases):
            low, high = x.inside(number)
            full, to = (high - low) // LANES * LANES, f"to + {number * cut.pitch}"
            lines.append(
                f"for (int64_t i = {low}; i < {low + full}; i += 16) store_f32({to} + i, load_even_f32(source + {phase} + 2 * i));"
            )
            if low + full < high:
                first = phase + 2 * (low + full)
                count = 2 * (high - low - full) - 1
                lines.append(f"if ((plane * {y.source} + from) * {x.source} + {first + 31} <= {size})")
                vector = f"load_even_f32(source + {first})"
                lines.append(f"store_partial_f32({to} + {low + full}, {vector}, {high - low - full}); else {{")
                lines += self._row("line", f"source + {first}", count)
                lines += [f"store_f32(line + {16 if count <= 16 else 32}, broadcast_f32(0));"]
                lines.append(f"store_f32({to} + {low + full}, load_even_f32(line)); }}")
        return lines
