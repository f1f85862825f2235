"""Row-major convolutions (N C spatial): one to three axes, groups, strides, dilation, any padding, in the three modes.

A register tile (tiles.py) is filters x positions of a strip (strips.py), whatever the width of the image; the few positions
between two rows are computed and dropped. Nothing is unfolded: the tile walks over channels and a table of taps. The input
gradient is the same convolution of the cotangent for each remainder of the stride. Kernel size 1 with stride 1 is a product
(products.py); weight gradients and depthwise convolutions have files of their own.
"""

from __future__ import annotations

import itertools

from thalweg.codegen.c.bindings import TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.depthwise import Depthwise, DepthwiseCut, is_depthwise
from thalweg.codegen.c.products import BLOCK, FEW_ITEMS, emit_product, product_workspace, shape_of
from thalweg.codegen.c.strips import Emission, Geometry, Part, geometry
from thalweg.codegen.c.tiles import ITEM, balanced, tile_shape, window_tile
from thalweg.codegen.c.weight_gradients import (
    CHUNK_ROWS,
    FEWEST_FILTERS,
    NarrowWeightGradient,
    WeightCut,
    WeightGradient,
)
from thalweg.codegen.c.windows import emit_contraction
from thalweg.codegen.loops import LANE, Index, constant, variable
from thalweg.plan import LANES, Kernel

STRIP_BYTES = 384 << 10  # a strip should stay in a core's own cache
WEIGHT_COST = 0.4  # of reading the weights once, in multiply-adds for each of their elements


def _cut(shape: Geometry, tasks: int) -> tuple[int, int]:
    """Positions of the first axis per strip, and parts of the rows of results: the least work with enough items."""
    count, most = shape.axes[0].count, max(1, shape.rows // CHUNK_ROWS)

    def cost(rows: int) -> tuple[float, int]:
        strips = -(-count // rows)
        items = shape.batch * shape.groups * strips
        chunks = min(most, max(1, -(-tasks // items)))
        vectors = -(-shape.span(rows) // LANES)
        steps = shape.rows * shape.channels * shape.taps / len(shape.axes[0].parts)
        tiles = (vectors + WEIGHT_COST * -(-vectors // 4)) * steps
        fill = (
            shape.channels * len(shape.phases) * (rows + shape.axes[0].reach) * (shape.pitches[0] / LANES + 2)
        )
        nbytes = shape.strip(rows, shape.channels) * ITEM[shape.element]
        slow = 1 + 0.1 * (nbytes > STRIP_BYTES)
        idle = max(1.0, min(tasks, FEW_ITEMS) / (items * chunks))
        return strips * (tiles * slow + chunks * fill * 4) * idle, -rows

    rows = min({*range(1, min(count, 8) + 1), *(-(-count // strips) for strips in range(1, 65))}, key=cost)
    items = shape.batch * shape.groups * -(-count // rows)
    return rows, min(most, max(1, -(-tasks // items)))


def convolution_workspace(kernel: Kernel, machine: str) -> int:
    """Bytes of the strip, the panel and the buffer of sums."""
    shape = geometry(kernel, machine)
    if shape_of(kernel, machine) is not None or shape is None:
        return product_workspace(kernel, machine)
    assert kernel.anchor is not None
    item = ITEM[shape.element]
    if kernel.anchor.op.name == "convolution_weight_gradient":
        cut = WeightCut(shape, kernel.tasks)
        return cut.table * 8 + (cut.strip + cut.panel + cut.sums) * item
    if is_depthwise(shape):
        return DepthwiseCut(shape).elements * item
    rows, _ = _cut(shape, kernel.tasks)
    height, width = _tile(shape, rows)
    return (shape.strip(rows, shape.channels) + height * width * LANES + LANES) * item


def _tile(shape: Geometry, rows: int) -> tuple[int, int]:
    """Rows and vectors of the register tile."""
    return tile_shape(shape.rows, -(-shape.span(rows) // LANES), shape.element, shape.machine)


def emit_convolution(context: Context) -> KernelText:
    """A convolution in one of its three modes, with its epilogue."""
    machine = context.plan.target.machine
    shape = geometry(context.kernel, machine)
    anchor = context.kernel.anchor
    assert anchor is not None
    if shape_of(context.kernel, machine) is not None:
        return emit_product(context)
    if shape is None:
        return emit_contraction(context)
    if anchor.op.name == "convolution_weight_gradient":
        mode: type[Emission] = WeightGradient if shape.rows >= FEWEST_FILTERS else NarrowWeightGradient
    else:
        mode = Depthwise if is_depthwise(shape) else _Convolution
    return context.function("\n".join(mode(context, shape).body()), TILE_PARAMETERS)


class _Convolution(Emission):
    """Forward, and the input gradient as one such convolution per combination of remainders of the strides."""

    def __init__(self, context: Context, shape: Geometry) -> None:
        super().__init__(context, shape)
        self.rows, self.chunks = _cut(shape, context.kernel.tasks)
        self.height, self.width = _tile(shape, self.rows)
        self.back = self.op.name == "convolution_input_gradient"

    def body(self) -> list[str]:
        """Items (image, group, strip, chunk of filters)."""
        shape, element, tasks = self.shape, self.shape.element, self.context.kernel.tasks
        strips = -(-shape.axes[0].count // self.rows)
        items = shape.batch * shape.groups * strips * self.chunks
        step = shape.taps * (shape.rows if self.back else 1)
        row = shape.taps * (1 if self.back else shape.channels)
        lines = [
            "(void)error;",
            f"{element} *const strip = ({element} *){self.scratch}, "
            f"*const sums = strip + {shape.strip(self.rows, shape.channels)};",
            f"static const int64_t row[] = {{{', '.join(str(r * row) for r in range(self.height))}}};",
            "int64_t held = -1;",
            f"for (int64_t item = task * {items} / {tasks}; item < (task + 1) * {items} / {tasks}; item++) {{",
            f"const int64_t lead = item / {strips * self.chunks}, image = lead / {shape.groups}, group = lead % {shape.groups};",
            f"const int64_t start = item / {self.chunks} % {strips} * {self.rows}, chunk = item % {self.chunks};",
            f"const int64_t channel = lead * {shape.channels};",
            f"const {element} *const w = {self.other} + group * {shape.rows * shape.channels * shape.taps};",
            "(void)image;",
            f"if (held != item / {self.chunks}) {{",
            f"held = item / {self.chunks};",
            *self.fill(self.rows, "start", str(shape.channels)),
            "}",
        ]
        for part in itertools.product(*(axis.parts for axis in shape.axes)):
            lines += ["{", *self._part(part, row, step), "}"]
        return [*lines, "}"]

    def _part(self, part: tuple[Part, ...], row: int, step: int) -> list[str]:
        """All tiles of positions and rows for positions with the same taps."""
        shape, element, width = self.shape, self.shape.element, self.width
        tiles, height, tall = balanced(shape.rows, self.height)
        table, taps = self._taps(part)
        inner = shape.span(1, part)
        block = max(1, BLOCK // max(taps, 1))
        blocked = shape.channels > block
        lines = [
            table,
            f"const int64_t count = {part[0].count} - start < {self.rows} ? {part[0].count} - start : {self.rows};",
            f"const int64_t span = (count - 1) * {shape.pitches[0]} + {inner}, vectors = (span + 15) / 16;",
            f"int64_t narrow = ({width} - vectors % {width}) % {width};",
            f"if (narrow * {width - 1} > vectors) narrow = 0;",
            f"const int64_t pieces = (vectors + {width - 1}) / {width};",
            "if (count > 0) for (int64_t piece = 0; piece < pieces; piece++) {",
            f"const int64_t width = piece < pieces - narrow ? {width * LANES} : {(width - 1) * LANES};",
            f"const int64_t flat = piece * {width * LANES} - (piece > pieces - narrow ? (piece - pieces + narrow) * 16 : 0);",
            f"for (int64_t tile = chunk * {tiles} / {self.chunks}; tile < (chunk + 1) * {tiles} / {self.chunks}; tile++) {{",
            f"const int64_t first = tile * {height} - (tile > {tall} ? tile - {tall} : 0);",
            f"const int64_t rows = tile < {tall} ? {height} : {height - 1};",
        ]
        phases = len(shape.phases) * shape.plane(self.rows)
        if blocked:
            lines.append(f"for (int64_t c = 0; c < {shape.channels}; c += {block}) {{")
            lines.append(
                f"const int64_t channels = c + {block} < {shape.channels} ? {block} : {shape.channels} - c;"
            )
            at, channels, add = f" + c * {step}", "channels", "c > 0"
            source = f"strip + c * {phases} + flat"
        else:
            at, channels, add, source = "", str(shape.channels), "0", "strip + flat"
        arguments = f"w + first * {row}{at}, row, {step}, {source}, {phases}, {channels}, taps, {taps}, sums, width, {add}"
        for vectors in range(width, max(width - 2, 0), -1):
            for rows in (height, height - 1)[: 1 + (tall < tiles)]:
                name = window_tile(self.context, element, rows, vectors)
                lines.append(f"if (width == {vectors * LANES} && rows == {rows}) {name}({arguments});")
        if blocked:
            lines.append("}")
        return [*lines, *self._finish(part), "}", "}"]

    def _taps(self, part: tuple[Part, ...]) -> tuple[str, int]:
        """The table of taps of a part: where each lies in the weights and in the strip."""
        shape = self.shape
        plane = shape.plane(self.rows)
        anchor = self.context.kernel.anchor
        assert anchor is not None
        sizes = anchor.inputs[1].shape[2:]
        entries: list[str] = []
        for taps in itertools.product(*(p.taps for p in part)):
            tap = phase = offset = 0
            for (t, f, o), size, axis, pitch in zip(taps, sizes, shape.axes, shape.pitches, strict=True):
                tap = tap * size + t
                phase = phase * len(axis.phases) + f
                offset += o * pitch
            entries.append(f"{tap}, {phase * plane + offset}")
        return f"static const int64_t taps[] = {{{', '.join(entries) or '0'}}};", len(entries)

    def _finish(self, part: tuple[Part, ...]) -> list[str]:
        """The positions of a tile that exist, run by run, through the epilogue to memory."""
        shape, element = self.shape, self.shape.element
        names = [f"q{a}" for a in range(len(part) - 1)] + ["x"]
        lines = ["for (int64_t at = 0; at < width;) {", "const int64_t f0 = flat + at;"]
        for a, name in enumerate(names):
            if a < len(names) - 1:
                pitch = shape.pitches[a]
                lines.append(f"const int64_t {name} = f{a} / {pitch}, f{a + 1} = f{a} % {pitch};")
            else:
                lines.append(f"const int64_t {name} = f{a};")
            if a == 0:
                lines.append(f"if ({name} >= count) break;")
            else:
                lines.append(
                    f"if ({name} >= {part[a].count}) {{ at += {shape.pitches[a - 1]} - f{a}; continue; }}"
                )
        end = "count" if len(part) == 1 else str(part[-1].count)
        lines += [
            f"int64_t n = {end} - x < width - at ? {end} - x : width - at; n = n < 16 ? n : 16;",
            "for (int64_t r = 0; r < rows; r++) {",
            f"const int64_t i = first + r; const {element}x16 sum = load_{element}(sums + r * width + at); (void)i;",
        ]
        extents = {
            "image": shape.batch,
            "group": shape.groups,
            "i": shape.rows,
            "start": max(1, part[0].count),
        }
        places: list[Index] = []
        for a, (name, p) in enumerate(zip(names, part, strict=True)):
            place = variable(name)
            extents[name] = p.count
            if a == 0 and shape.axes[0].count > self.rows:
                place = place + variable("start")  # both together stay below the count
                lines.append(f"const int64_t p0 = {name} + start;")
                place, extents["p0"] = variable("p0"), p.count
                name = "p0"
            if a == len(part) - 1:
                place = place + variable(LANE)
                extents[name] = max(p.count - LANES + 1, 1)
                extents[LANE] = min(p.count, LANES)
            places.append(place * p.step + constant(p.first))
        indices = (variable("image"), variable("group") * shape.rows + variable("i"), *places)
        return [*lines, *self.both("sum", indices, extents), "}", "at += n;", "}"]
