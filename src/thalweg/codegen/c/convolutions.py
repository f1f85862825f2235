"""Row-major convolutions (N C spatial): one to three axes, groups, strides, dilation, any padding, in the three modes.

The input of one image (some rows of it) is copied into a *strip*: with its border of zeros, and apart by the remainder of
the stride, so that each tap of the kernel reads neighbouring elements for neighbouring outputs. Rows of the strip follow
each other at one pitch, so that output positions can be counted across rows: a register tile (tiles.py) is filters x
positions, whatever the width of the image; the few positions between two rows are computed and dropped. Nothing is
unfolded: the tile walks over channels and a table of taps. The input gradient is the same convolution of the cotangent
for each remainder of the stride. In the weight gradient filters lie along the vectors, channels and taps are the rows of
the tile, and the sum runs over pixels. Kernel size 1 with stride 1 is a product (products.py).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from thalweg.codegen.c.bindings import STATIC, TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.expressions import Expression
from thalweg.codegen.c.nests import store
from thalweg.codegen.c.products import BLOCK, FEW_ITEMS, emit_product, product_workspace, shape_of
from thalweg.codegen.c.tiles import (
    ITEM,
    MOST_ROWS,
    balanced,
    dots_tile,
    pack_transposed,
    tile_shape,
    window_tile,
)
from thalweg.codegen.c.windows import emit_contraction
from thalweg.codegen.loops import LANE, Index, constant, unravel, variable
from thalweg.plan import LANES, Kernel

STRIP_BYTES = 384 << 10  # a strip should stay in a core's own cache
CHUNK_ROWS = (
    48  # rows of a tile's operand that share a strip or a panel, at least, where tasks are cut by rows
)
WEIGHT_COST = 0.4  # of reading the weights once, in multiply-adds for each of their elements
FEWEST_FILTERS = 8  # that lie along the vectors of a weight gradient; fewer would leave most lanes empty


@dataclass(frozen=True)
class Part:
    """Output positions of one axis with the same taps: position p is element `first + p * step` of the result."""

    count: int
    first: int
    step: int
    taps: tuple[
        tuple[int, int, int], ...
    ]  # (tap, phase, offset): position p reads element p + offset of that phase


@dataclass(frozen=True)
class Axis:
    """One spatial axis: element i of phase f of the strip is element `phases[f] + i * step` of the source, or zero."""

    source: int
    step: int
    phases: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def count(self) -> int:
        """Positions of the longest part."""
        return max(part.count for part in self.parts)

    @property
    def reach(self) -> int:
        """Elements that a position reads beyond its own."""
        return max((offset for part in self.parts for _, _, offset in part.taps), default=0)

    @property
    def extent(self) -> int:
        return self.count + self.reach

    def inside(self, phase: int) -> tuple[int, int]:
        """The elements of a phase that lie in the source: first and end."""
        low, high = (-(-(bound - self.phases[phase]) // self.step) for bound in (0, self.source))
        low = min(max(low, 0), self.extent)
        return low, min(max(high, low), self.extent)

    @property
    def pitch(self) -> int:
        """Elements from one row to the next: zeros behind a row are also those before the next one."""
        borders = [bound for f in range(len(self.phases)) for bound in self.inside(f)]
        zeros = min(min(borders[::2]), self.extent - max(borders[1::2]))
        return max(self.extent - zeros, self.count)


@dataclass(frozen=True)
class Geometry:
    """A convolution as the tiles see it: `rows` results per group from `channels` of the source per group."""

    element: str
    batch: int
    groups: int
    rows: int
    channels: int
    taps: int
    axes: tuple[Axis, ...]
    machine: str

    @property
    def phases(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*(range(len(axis.phases)) for axis in self.axes)))

    @property
    def pitches(self) -> list[int]:
        """Strip elements between neighbours along each axis."""
        pitches = [1]
        for axis in reversed(self.axes[1:]):
            pitches.append(pitches[-1] * axis.pitch)
        return pitches[::-1]

    def span(self, rows: int, part: tuple[Part, ...] | None = None) -> int:
        """Flat positions from the first to the last one of `rows` rows of the first axis."""
        counts = [axis.count for axis in self.axes[1:]] if part is None else [p.count for p in part[1:]]
        return (
            (rows - 1) * self.pitches[0]
            + sum((c - 1) * p for c, p in zip(counts, self.pitches[1:], strict=True))
            + 1
        )

    def plane(self, rows: int) -> int:
        """Elements of one phase of one channel in a strip for `rows` rows of positions."""
        inner = sum((axis.extent - 1) * p for axis, p in zip(self.axes[1:], self.pitches[1:], strict=True))
        return (rows + self.axes[0].reach - 1) * self.pitches[0] + inner + 1

    def strip(self, rows: int, channels: int) -> int:
        """Elements of a strip, with what tiles may read behind its end."""
        reach = sum(axis.reach * p for axis, p in zip(self.axes, self.pitches, strict=True))
        return channels * len(self.phases) * self.plane(rows) + reach + 16 * LANES


def geometry(kernel: Kernel, machine: str) -> Geometry | None:
    """The convolution that a kernel is, or None where plain loops compute it."""
    assert kernel.anchor is not None
    op: Any = kernel.anchor.op
    first, second = kernel.anchor.inputs
    result = kernel.anchor.outputs[0]
    element = result.dtype.short
    if element not in ITEM or 0 in (first.size, second.size, result.size):
        return None
    weights = op.name == "convolution_weight_gradient"
    w = result if weights else second
    filters, channels = w.shape[0] // op.groups, w.shape[1]
    taps = w.shape[2:]
    if op.name == "convolution_input_gradient":
        sizes = zip(result.shape[2:], first.shape[2:], strict=True)
        axes = [
            gathering_axis(size, source, low, s, d, t)
            for (size, source), (low, _), s, d, t in zip(
                sizes, op.padding, op.strides, op.dilation, taps, strict=True
            )
        ]
        return Geometry(
            element, first.shape[0], op.groups, channels, filters, math.prod(taps), tuple(axes), machine
        )
    out = second.shape[2:] if weights else result.shape[2:]
    sizes = zip(first.shape[2:], out, strict=True)
    axes = [
        striding_axis(source, count, low, s, d, t)
        for (source, count), (low, _), s, d, t in zip(
            sizes, op.padding, op.strides, op.dilation, taps, strict=True
        )
    ]
    return Geometry(
        element, first.shape[0], op.groups, filters, channels, math.prod(taps), tuple(axes), machine
    )


def striding_axis(source: int, count: int, low: int, stride: int, dilation: int, taps: int) -> Axis:
    """An axis of the forward convolution: position p and tap t read element p * stride + t * dilation - low."""
    remainders = sorted({t * dilation % stride for t in range(taps)})
    listed = tuple((t, remainders.index(t * dilation % stride), t * dilation // stride) for t in range(taps))
    return Axis(source, stride, tuple(r - low for r in remainders), (Part(count, 0, 1, listed),))


def gathering_axis(size: int, source: int, low: int, stride: int, dilation: int, taps: int) -> Axis:
    """An axis of the input gradient: element i of the result and tap t read (i + low - t * dilation) / stride, where whole.
    The elements with i + low = stride * m + remainder form a part."""
    found = []
    for remainder in range(stride):
        first = -(-(low - remainder) // stride)
        count = (size - 1 + low - remainder) // stride - first + 1
        if count > 0:
            moves = [
                (t, (t * dilation - remainder) // stride)
                for t in range(taps)
                if (t * dilation - remainder) % stride == 0
            ]
            found.append((remainder, first, count, moves))
    start = min((first - move for _, first, _, moves in found for _, move in moves), default=0)
    parts = tuple(
        Part(
            count,
            first * stride + remainder - low,
            stride,
            tuple((t, 0, first - move - start) for t, move in moves),
        )
        for remainder, first, count, moves in found
    )
    return Axis(source, 1, (start,), parts)


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
        cut = _WeightCut(shape, kernel.tasks)
        return cut.table * 8 + (cut.strip + cut.panel + cut.sums) * item
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
    emission: type[_Convolution | _WeightGradient] = _Convolution
    if anchor.op.name == "convolution_weight_gradient":
        emission = _WeightGradient if shape.rows >= FEWEST_FILTERS else _NarrowWeightGradient
    return context.function("\n".join(emission(context, shape).body()), TILE_PARAMETERS)


class _Emission:
    """What the modes share: pointers, the copy into a strip, the epilogue."""

    def __init__(self, context: Context, shape: Geometry) -> None:
        self.context = context
        self.shape = shape
        kernel = context.kernel
        assert kernel.anchor is not None
        self.op: Any = kernel.anchor.op
        self.accesses = context.reads()
        self.outputs = [(root, context.access(root, write=True)) for root in kernel.roots]
        self.result = kernel.anchor.outputs[0]
        first, second = (self.accesses[id(v)].pointer for v in kernel.anchor.inputs)
        self.source, self.other = first, second
        self.scratch = context.pointer(kernel.detail["workspace"], write=True)

    def fill(self, rows: int, start: str, count: str) -> list[str]:
        """Copy channels `channel`.. + `count` of `image` into the strip, for positions from `start` on."""
        shape, element = self.shape, self.shape.element
        name = strip_row(self.context, element)
        sizes = [axis.source for axis in shape.axes]
        plane = shape.plane(rows)
        lines = [f"for (int64_t c = 0; c < {count}; c++) {{"]
        lines.append(
            f"const {element} *const from = {self.source} + channel * {math.prod(sizes)} + c * {math.prod(sizes)};"
        )
        for number, phase in enumerate(shape.phases):
            to = f"strip + (c * {len(shape.phases)} + {number}) * {plane}"
            inside: list[str] = []
            at = "0"
            lines.append("{")
            for a, (axis, size, pitch) in enumerate(zip(shape.axes[:-1], sizes, shape.pitches, strict=False)):
                extent = rows + axis.reach if a == 0 else axis.extent
                origin = f" + ({start}) * {axis.step}" if a == 0 else ""
                lines.append(f"for (int64_t e{a} = 0; e{a} < {extent}; e{a}++) {{")
                lines.append(f"const int64_t s{a} = e{a} * {axis.step} + {axis.phases[phase[a]]}{origin};")
                inside.append(f"s{a} >= 0 && s{a} < {size}")
                at = f"({at}) * {size} + s{a}"
                to += f" + e{a} * {pitch}"
            last = shape.axes[-1]
            low, high = last.inside(phase[-1])
            first = f"({at}) * {last.source} + {last.phases[phase[-1]]}"
            if inside:
                test = " && ".join(inside)
                bounds = f"{test} ? {low} : 0, {test} ? {high} : 0, {last.extent}"
            else:  # one axis: the strip is a part of it
                lines.append(
                    f"const int64_t low = {low} - ({start}), high = {high} - ({start}), size = {rows + last.reach};"
                )
                bounds = (
                    "low < 0 ? 0 : low > size ? size : low, high < 0 ? 0 : high > size ? size : high, size"
                )
                first += f" + ({start}) * {last.step}"
            lines.append(f"{name}({to}, from + {first}, {last.step}, {bounds}, 0);")
            lines.append("}" * len(shape.axes))
        return [*lines, "}"]

    def epilogue(
        self, register: str, indices: tuple[Index, ...], extents: dict[str, int], partial: str | None
    ) -> list[str]:
        """Everything that is computed from one vector of the result, and the stores."""
        emitter = self.context.emitter(dict(extents), self.accesses)
        emitter.partial = partial
        emitter.given[id(self.result)] = Expression(register, self.shape.element)
        for root, access in self.outputs:
            store(emitter, access, indices, emitter.pull(root, indices))
        self.context.functions |= emitter.functions
        return emitter.lines

    def both(self, register: str, indices: tuple[Index, ...], extents: dict[str, int]) -> list[str]:
        """The epilogue for a full vector and for one with `n` valid lanes."""
        if extents[LANE] < LANES:
            return self.epilogue(register, indices, extents, "n")
        full = self.epilogue(register, indices, extents, None)
        return ["if (n == 16) {", *full, "} else {", *self.epilogue(register, indices, extents, "n"), "}"]


class _Convolution(_Emission):
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


class _WeightCut:
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


class _WeightGradient(_Emission):
    """Filters along the vectors; rows are (channel, tap); the sum runs over images and pixels in their order."""

    def __init__(self, context: Context, shape: Geometry) -> None:
        super().__init__(context, shape)
        self.cut = _WeightCut(shape, context.kernel.tasks)

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


class _NarrowWeightGradient(_WeightGradient):
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


def strip_row(context: Context, element: str) -> str:
    """The name of a function that writes a row of a strip: the border's number, the source's elements from `low` to
    `high`, the border's number up to `end`. It may write up to 15 elements more, which later rows overwrite."""
    name = f"strip_row_{element}"
    even = "else if (step == 2) for (; i + 16 <= high; i += 16) store_f32(to + i, load_even_f32(from + 2 * i));"
    text = f"""{STATIC} void {name}({element} *to, const {element} *from, int64_t step, int64_t low, int64_t high, int64_t end, {element} border) {{
const {element}x16 zero = broadcast_{element}(border);
int64_t i = 0;
for (; i < low; i += 16) store_{element}(to + i, zero);
i = low;
if (step == 1) {{
for (; i + 16 <= high; i += 16) store_{element}(to + i, load_{element}(from + i));
if (i < high) {{ store_{element}(to + i, load_partial_{element}(from + i, (int)(high - i))); i = high; }}
}} {even if element == "f32" else ""}
else for (; i + 16 <= high; i += 16) store_{element}(to + i, load_strided_{element}(from + i * step, step));
for (; i < high; i++) to[i] = from[i * step];
for (; i < end; i += 16) store_{element}(to + i, zero);
}}
"""
    return context.shared(name, text)
