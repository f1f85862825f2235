"""Winograd's convolution as C: the kernels of the ops of schedule/winograd.py.

Channels lie along the vectors. The input of a block of tiles is copied into strips [row][column][16 channels] by
transposes of 16 x 16, with a border of zeros; each tile of a strip is transformed and goes to 36 matrices [tile][channel].
The products with the transformed filters are register tiles (tiles.py). Each tile of the sums is transformed back into rows
[pixel][16 filters], which transposes turn into rows of pixels; these go through the epilogue to memory. In the weight
gradient the cotangent is spread to 36 matrices [tile][filter] as well, and the products sum over tiles.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from thalweg.codegen.c.bindings import STATIC, TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.expressions import Expression
from thalweg.codegen.c.nests import store_all
from thalweg.codegen.c.tiles import product_tile
from thalweg.codegen.loops import LANE, Index, unravel, variable
from thalweg.graph import Node
from thalweg.plan import LANES, Kernel
from thalweg.schedule.winograd import CHUNK, HIGH, LOW, PANEL, POINTS, TILE, WINDOW, cut, panels

BLOCK = 128  # channels of a sum before it is added to the sum of the channels before: rounding errors stay small
GRADIENT_TILES = 32  # about so many tiles are transformed before their products are added to a weight gradient
HEIGHTS = {1: 12, 2: 12, 3: 8, PANEL: 6}  # most rows of a register tile, by its vectors


def _pitch(size: int) -> int:
    """Elements from row to row of a matrix: rows a power of two apart would fall on each other in the first cache."""
    return size + LANES if size % 256 == 0 else size


def _balanced(what: str, number: str, extent: int, most: int) -> tuple[str, int]:
    """C that sets `first_<what>` and `count_<what>` for part `number` of `extent` in parts of at most `most`; parts."""
    parts = -(-extent // most)
    size = -(-extent // parts)
    full = parts - (size * parts - extent)
    text = f"const int64_t {what}_first = {number} * {size} - ({number} > {full} ? {number} - {full} : 0), "
    return text + f"{what}_count = {number} < {full} ? {size} : {size - 1};", parts


# ---- transforms ----------------------------------------------------------------------------------------------


def _input(x: list[str], y: list[str]) -> list[str]:
    """Bt x."""
    return [
        f"{{ const f32x16 p = fma_f32({x[2]}, minus2, {x[4]}), q = fma_f32({x[1]}, minus2, {x[3]});",
        f"const f32x16 r = fma_f32({x[2]}, minus_half, {x[4]}), s = fma_f32({x[1]}, minus_half, {x[3]});",
        f"{y[0]} = fma_f32({x[2]}, middle, add_f32({x[0]}, {x[4]})); {y[5]} = fma_f32({x[3]}, middle, add_f32({x[1]}, {x[5]}));",
        f"{y[1]} = fma_f32(q, low, p); {y[2]} = fma_f32(q, minus_low, p);",
        f"{y[3]} = fma_f32(s, high, r); {y[4]} = fma_f32(s, minus_high, r); }}",
    ]


def _output(x: list[str], y: list[str]) -> list[str]:
    """At x."""
    return [
        f"{{ const f32x16 p = add_f32({x[1]}, {x[2]}), q = subtract_f32({x[1]}, {x[2]});",
        f"const f32x16 r = add_f32({x[3]}, {x[4]}), s = subtract_f32({x[3]}, {x[4]});",
        f"{y[0]} = add_f32(add_f32({x[0]}, p), r); {y[1]} = fma_f32(s, high, multiply_f32(q, low));",
        f"{y[2]} = fma_f32(r, two, multiply_f32(p, half)); "
        f"{y[3]} = fma_f32(s, twice_high, fma_f32(q, half_low, {x[5]})); }}",
    ]


def _spread(x: list[str], y: list[str]) -> list[str]:
    """A x."""
    return [
        f"{{ const f32x16 p = fma_f32({x[2]}, half, {x[0]}), q = fma_f32({x[3]}, half, {x[1]});",
        f"const f32x16 r = fma_f32({x[2]}, two, {x[0]}), s = fma_f32({x[3]}, two, {x[1]});",
        f"{y[0]} = {x[0]}; {y[5]} = {x[3]}; {y[1]} = fma_f32(q, low, p); {y[2]} = fma_f32(q, minus_low, p);",
        f"{y[3]} = fma_f32(s, high, r); {y[4]} = fma_f32(s, minus_high, r); }}",
    ]


def _filter(x: list[str], y: list[str]) -> list[str]:
    """G x, in float64."""
    return [
        f"{{ const f64x16 p = fma_f64({x[2]}, half, {x[0]}), q = multiply_f64({x[1]}, low);",
        f"const f64x16 r = fma_f64({x[2]}, two, {x[0]}), s = multiply_f64({x[1]}, high);",
        f"{y[0]} = {x[0]}; {y[5]} = {x[2]};",
        f"{y[1]} = multiply_f64(add_f64(p, q), third); {y[2]} = multiply_f64(subtract_f64(p, q), third);",
        f"{y[3]} = multiply_f64(add_f64(r, s), sixth); {y[4]} = multiply_f64(subtract_f64(r, s), sixth); }}",
    ]


def _gather(x: list[str], y: list[str]) -> list[str]:
    """Gt x."""
    return [
        f"{{ const f32x16 p = multiply_f32(add_f32({x[1]}, {x[2]}), third), q = multiply_f32(subtract_f32({x[1]}, {x[2]}), third);",
        f"const f32x16 r = multiply_f32(add_f32({x[3]}, {x[4]}), sixth), s = multiply_f32(subtract_f32({x[3]}, {x[4]}), sixth);",
        f"{y[0]} = add_f32(add_f32({x[0]}, p), r); {y[1]} = fma_f32(s, high, multiply_f32(q, low));",
        f"{y[2]} = add_f32(fma_f32(r, two, multiply_f32(p, half)), {x[5]}); }}",
    ]


NUMBERS = {
    "low": LOW, "minus_low": -LOW, "high": HIGH, "minus_high": -HIGH, "half": 0.5, "two": 2.0, "minus2": -2.0,
    "minus_half": -0.5, "middle": -2.5, "twice_high": 2 * HIGH, "half_low": LOW / 2, "third": -2 / 3, "sixth": 1 / 6,
}  # fmt: skip


def _transform(
    context: Context, name: str, step: Callable[[list[str], list[str]], list[str]], sizes: tuple[int, int], head: str,
    load: str, store: str, element: str = "f32",
) -> str:  # fmt: skip
    """The name of a function that loads a square of sizes[0] vectors, applies `step` along both axes, and stores a square
    of sizes[1]. `load` and `store` are C texts in which i and j count rows and columns."""
    taken, given = sizes
    body = step([f"x{n}" for n in range(taken)], [f"y{n}" for n in range(given)])
    numbers = [n for n in NUMBERS if re.search(rf"\b{n}\b", " ".join(body))]
    kind = f"{element}x16"
    lines = [f"{STATIC} void {name}({head}) {{", f"{kind} t[{taken * given}];"]
    lines += [f"const {kind} {n} = broadcast_{element}(({element}){NUMBERS[n]!r});" for n in numbers]
    results = ", ".join(f"y{n}" for n in range(given))
    lines.append(f"for (int j = 0; j < {taken}; j++) {{")
    lines += [f"const {kind} x{n} = {load.replace('ROW', str(n))};" for n in range(taken)]
    lines += [f"{kind} {results};", *body]
    lines += [f"t[{n * taken} + j] = y{n};" for n in range(given)]
    lines += ["}", f"for (int i = 0; i < {given}; i++) {{"]
    lines += [f"const {kind} x{n} = t[i * {taken} + {n}];" for n in range(taken)]
    lines += [f"{kind} {results};", *body]
    lines += [store.replace("COLUMN", str(n)).replace("VALUE", f"y{n}") for n in range(given)]
    return context.shared(name, "\n".join([*lines, "}", "}", ""]))


def _input_tile(context: Context) -> str:
    """`(from, row, to, step)`: a 6x6 tile of a strip whose rows are `row` apart, to 36 matrices `step` apart."""
    head = "const f32 *from, int64_t row, f32 *to, int64_t step"
    load, store = "load_f32(from + ROW * row + j * 16)", "store_f32(to + (i * 6 + COLUMN) * step, VALUE);"
    return _transform(context, "winograd_input", _input, (WINDOW, WINDOW), head, load, store)


def _spread_tile(context: Context) -> str:
    """The same for a 4x4 tile of a cotangent."""
    head = "const f32 *from, int64_t row, f32 *to, int64_t step"
    load, store = "load_f32(from + ROW * row + j * 16)", "store_f32(to + (i * 6 + COLUMN) * step, VALUE);"
    return _transform(context, "winograd_spread", _spread, (TILE, WINDOW), head, load, store)


def _output_tile(context: Context) -> str:
    """`(from, step, to, row)`: 36 matrices `step` apart to a 4x4 tile of rows `row` apart."""
    head = "const f32 *from, int64_t step, f32 *to, int64_t row"
    load, store = "load_f32(from + (ROW * 6 + j) * step)", "store_f32(to + i * row + COLUMN * 16, VALUE);"
    return _transform(context, "winograd_output", _output, (WINDOW, TILE), head, load, store)


def _strip(context: Context) -> str:
    """The name of a function that copies rows `first`.. + `count` of 16 channels, `valid` of them, behind `left` zeros into
    a strip of `columns` columns. It may write up to 15 columns more."""
    name = "winograd_strip"
    text = f"""{STATIC} void {name}(const f32 *from, int64_t height, int64_t width, int64_t valid, int64_t first, int64_t count, int64_t left, int64_t columns, f32 *to) {{
const f32x16 zero = broadcast_f32(0);
for (int64_t r = 0; r < count; r++) {{
const int64_t y = first + r;
f32 *const row = to + r * columns * 16;
int64_t i = 0;
if (y >= 0 && y < height) {{
for (; i < left; i++) store_f32(row + i * 16, zero);
for (int64_t x = 0; x < width; x += 16) {{
f32x16 t[16];
const f32 *const at = from + y * width + x;
const int64_t n = width - x;
if (n >= 16) {{ for (int64_t l = 0; l < valid; l++) t[l] = load_f32(at + l * height * width); }}
else {{ for (int64_t l = 0; l < valid; l++) t[l] = load_partial_f32(at + l * height * width, (int)n); }}
for (int64_t l = valid; l < 16; l++) t[l] = zero;
transpose_f32(t);
for (int64_t l = 0; l < 16; l++) store_f32(row + (left + x + l) * 16, t[l]);
}}
i = left + width;
}}
for (; i < columns; i++) store_f32(row + i * 16, zero);
}}
}}
"""
    return context.shared(name, text)


# ---- kernels -------------------------------------------------------------------------------------------------


class _Block:
    """Tiles of an image: sizes that the kernels share."""

    def __init__(self, x: Any, y: Any, padding: Any, images: int, rows: int) -> None:
        self.batch, self.channels, self.height, self.width = x.shape
        self.filters, (self.out_height, self.out_width) = y[1], y[2:]
        self.rows, self.columns = -(-self.out_height // TILE), -(-self.out_width // TILE)
        self.top, self.left = padding[0][0], padding[1][0]
        self.images, self.high = images, rows  # of the largest block
        self.tiles = images * rows * self.columns
        self.panels, self.panel = panels(self.filters)

    @property
    def counts(self) -> set[int]:
        """Tiles that blocks have."""
        images, rows = (
            {-(-extent // parts), extent // parts}
            for extent, parts in ((self.batch, -(-self.batch // self.images)), (self.rows, -(-self.rows // self.high)))
        )
        return {i * r * self.columns for i in images for r in rows if i * r}

    def strip(self, window: int) -> int:
        """Elements of a strip for `high` rows of tiles."""
        columns = TILE * self.columns + window - TILE
        elements: int = ((TILE * self.high + window - TILE) * columns + self.left + 2 * LANES) * LANES
        return elements

    def matrices(self, size: int) -> tuple[int, int]:
        """For 36 matrices [tile][size]: elements from row to row, and from matrix to matrix."""
        row = _pitch(size)
        return row, self.tiles * row + LANES

    def position(self, block: str) -> list[str]:
        """C that sets the images and the rows of tiles of a block."""
        rows, bands = _balanced("row", f"({block} % {-(-self.rows // self.high)})", self.rows, self.high)
        images, _ = _balanced("image", f"({block} / {bands})", self.batch, self.images)
        return [images, rows, f"const int64_t tiles = image_count * row_count * {self.columns};"]

    def transform(
        self, context: Context, source: str, channels: str, first: str, count: str, target: str, spread: bool = False
    ) -> list[str]:
        """C that transforms channels `first` .. + `count` of the block's tiles, of a source with `channels` of them, into
        36 matrices at `target`; `spread`: the source is a cotangent."""
        window = TILE if spread else WINDOW
        height, width = (self.out_height, self.out_width) if spread else (self.height, self.width)
        top, left = (0, 0) if spread else (self.top, self.left)
        columns = TILE * self.columns + window - TILE
        tile = _spread_tile(context) if spread else _input_tile(context)
        size = f"{target}_row, {target}_step"
        row, step = size.split(", ")
        return [
            f"for (int64_t image = 0; image < image_count; image++) for (int64_t c = 0; c < {count}; c += 16) {{",
            f"const int64_t rest = {channels} - ({first}) - c;",
            f"if (rest <= 0) {{ for (int64_t q = 0; q < row_count * {self.columns}; q++) for (int64_t i = 0; i < {POINTS}; i++) "
            f"store_f32({target} + i * {step} + (image * row_count * {self.columns} + q) * {row} + c, broadcast_f32(0)); continue; }}",
            f"{_strip(context)}({source} + ((image_first + image) * {channels} + {first} + c) * {height * width}, {height}, {width}, "
            f"rest < 16 ? rest : 16, row_first * {TILE} - {top}, row_count * {TILE} + {window - TILE}, {left}, {columns}, strip);",
            f"for (int64_t y = 0; y < row_count; y++) for (int64_t q = 0; q < {self.columns}; q++)",
            f"{tile}(strip + (y * {TILE * columns} + q * {TILE}) * 16, {columns * LANES}, "
            f"{target} + ((image * row_count + y) * {self.columns} + q) * {row} + c, {step});",
            "}",
        ]


def _products(context: Context, counts: set[int], vectors: int, rows: str, arguments: str) -> list[str]:
    """C that calls register tiles for `rows` rows (one of `counts`) in balanced parts; in `arguments`, `at` is the row."""
    most = HEIGHTS[vectors]
    heights = sorted({height for count in counts for height in (-(-count // -(-count // most)), count // -(-count // most))})
    lines = [
        f"const int64_t parts = ({rows} + {most - 1}) / {most};",
        "for (int64_t part = 0, at = 0; part < parts; part++) {",
        f"const int64_t height = ({rows} - at) / (parts - part);",
    ]
    for height in heights:
        name = product_tile(context, "f32", height, vectors)
        lines.append(f"{f'if (height == {height}) ' if len(heights) > 1 else ''}{name}({arguments});")
    return [*lines, "at += height;", "}"]


def _convolution_block(anchor: Node) -> tuple[_Block, int]:
    op: Any = anchor.op
    x, result = anchor.inputs[0], anchor.outputs[0]
    rows, columns = (-(-size // TILE) for size in result.shape[2:])
    found = cut(x.shape[0], rows, columns, x.shape[1], op.filters)
    return _Block(x, result.shape, op.padding, found.images, found.rows), found.chunks


def _gradient_block(anchor: Node) -> _Block:
    op: Any = anchor.op
    x, g = anchor.inputs
    rows, columns = (-(-size // TILE) for size in g.shape[2:])
    images = max(1, min(x.shape[0] // op.slots, GRADIENT_TILES // (rows * columns)))
    high = max(1, min(rows, GRADIENT_TILES // columns))
    return _Block(x, g.shape, op.padding, images if high == rows else 1, high)


def winograd_workspace(kernel: Kernel) -> int:
    """Bytes of strips and matrices."""
    anchor = kernel.anchor
    assert anchor is not None
    if kernel.kind in ("winograd_filters", "winograd_weight_gradient"):
        return 9 * LANES * LANES * PANEL * 4
    if kernel.kind == "winograd_products":
        block = _gradient_block(anchor)
        channels = min(CHUNK, -(-block.channels // LANES) * LANES)
        parts = (block.strip(WINDOW), POINTS * block.matrices(channels)[1], POINTS * block.matrices(block.panel)[1])
        return sum(parts) * 4
    block, _ = _convolution_block(anchor)
    matrices = POINTS * (block.matrices(-(-block.channels // LANES) * LANES)[1] + block.matrices(block.panel)[1])
    pixels: int = TILE * -(-TILE * block.columns // LANES) * LANES * LANES
    return (block.strip(WINDOW) + matrices + pixels) * 4


class _Kernel:
    """What the kernels share: pointers, the loop over items, the epilogue."""

    def __init__(self, context: Context) -> None:
        self.context = context
        kernel = context.kernel
        assert kernel.anchor is not None
        self.anchor = kernel.anchor
        self.op: Any = kernel.anchor.op
        self.accesses = context.reads()
        self.outputs = [(root, context.access(root, write=True)) for root in kernel.roots]
        self.result = kernel.anchor.outputs[0]
        self.operands = [self.accesses[id(v)].pointer for v in kernel.anchor.inputs]
        self.scratch = context.pointer(kernel.detail["workspace"], write=True)

    def items(self, count: int) -> str:
        tasks = self.context.kernel.tasks
        return f"for (int64_t item = task * {count} / {tasks}; item < (task + 1) * {count} / {tasks}; item++) {{"

    def epilogue(self, register: str, indices: tuple[Index, ...], extents: dict[str, int], partial: str | None) -> list[str]:
        """Everything that is computed from one vector of the result, and the stores."""
        emitter = self.context.emitter(dict(extents), self.accesses)
        emitter.partial = partial
        emitter.given[id(self.result)] = Expression(register, "f32")
        store_all(emitter, self.outputs, indices)
        self.context.functions |= emitter.functions
        return emitter.lines

    def both(self, register: str, indices: tuple[Index, ...], extents: dict[str, int]) -> list[str]:
        """The epilogue for a full vector and for one with `n` valid lanes."""
        if extents[LANE] < LANES:
            return self.epilogue(register, indices, extents, "n")
        full = self.epilogue(register, indices, extents, None)
        return ["if (n == 16) {", *full, "} else {", *self.epilogue(register, indices, extents, "n"), "}"]

    def function(self, lines: list[str]) -> KernelText:
        return self.context.function("\n".join(["(void)error;", *lines]), TILE_PARAMETERS)


def emit_winograd_convolution(context: Context) -> KernelText:
    """Items (block of tiles, chunk of panels); in each, transforms, and panel by panel products and transforms back."""
    kernel = _Kernel(context)
    block, chunks = _convolution_block(kernel.anchor)
    channels = -(-block.channels // LANES) * LANES
    blocks = -(-block.batch // block.images) * -(-block.rows // block.high)
    points_row, points_step = block.matrices(channels)
    sums_row, sums_step = block.matrices(block.panel)
    x, filters = kernel.operands
    lines = [
        f"enum {{ points_row = {points_row}, points_step = {points_step}, sums_row = {sums_row}, sums_step = {sums_step} }};",
        f"f32 *const strip = (f32 *){kernel.scratch}, *const points = strip + {block.strip(WINDOW)}, "
        f"*const sums = points + {POINTS} * points_step, *const pixels = sums + {POINTS} * sums_step;",
        "int64_t held = -1;",
        kernel.items(blocks * chunks),
        f"const int64_t block = item / {chunks}, chunk = item % {chunks};",
        *block.position("block"),
        "if (held != block) {",
        "held = block;",
        *block.transform(context, x, str(block.channels), "0", str(block.channels), "points"),
        "}",
        f"for (int64_t p = chunk * {block.panels} / {chunks}; p < (chunk + 1) * {block.panels} / {chunks}; p++) {{",
        f"for (int64_t i = 0; i < {POINTS}; i++) for (int64_t c = 0; c < {block.channels}; c += {BLOCK}) {{",
        f"const int64_t count = {block.channels} - c < {BLOCK} ? {block.channels} - c : {BLOCK};",
        *_products(
            context, block.counts, block.panel // LANES, "tiles",
            f"points + i * points_step + at * points_row + c, points_row, 1, {filters} + ((i * {block.panels} + p) * "
            f"{block.channels} + c) * {block.panel}, {block.panel}, count, sums + i * sums_step + at * sums_row, sums_row, c > 0",
        ),
        "}",
        *_finish(kernel, block),
        "}",
        "}",
    ]  # fmt: skip
    return kernel.function(lines)


def _finish(kernel: _Kernel, block: _Block) -> list[str]:
    """The sums of a panel through transforms, transposes and the epilogue to memory."""
    pitch = -(-TILE * block.columns // LANES) * LANES
    lines = [
        f"for (int64_t k = 0; k < {block.panel}; k += 16) {{",
        f"const int64_t filter = p * {block.panel} + k, valid = {block.filters} - filter < 16 ? {block.filters} - filter : 16;",
        "if (valid <= 0) break;",
        "for (int64_t q = 0; q < image_count; q++) for (int64_t row = 0; row < row_count; row++) {",
        f"const int64_t image = image_first + q, at = (q * row_count + row) * {block.columns};",
        f"for (int64_t t = 0; t < {block.columns}; t++) {_output_tile(kernel.context)}(sums + (at + t) * sums_row + k, sums_step, "
        f"pixels + t * {TILE * LANES}, {pitch * LANES});",
        f"for (int64_t i = 0; i < {TILE}; i++) {{",
        f"const int64_t y = (row_first + row) * {TILE} + i;",
        f"if (y >= {block.out_height}) break;",
        f"for (int64_t j = 0; j < {block.out_width}; j += 16) {{",
        f"const int64_t n = {block.out_width} - j < 16 ? {block.out_width} - j : 16;",
        "f32x16 t[16];",
        f"for (int l = 0; l < 16; l++) t[l] = load_f32(pixels + (i * {pitch} + j + l) * 16);",
        "transpose_f32(t);",
        "for (int64_t l = 0; l < valid; l++) {",
        "const f32x16 sum = t[l]; const int64_t f = filter + l; (void)n; (void)image; (void)f;",
    ]
    extents = {
        "image": block.batch,
        "f": block.filters,
        "y": block.out_height,
        "j": max(block.out_width - LANES + 1, 1),
        LANE: min(block.out_width, LANES),
    }
    indices = (variable("image"), variable("f"), variable("y"), variable("j") + variable(LANE))
    return [*lines, *kernel.both("sum", indices, extents), *["}"] * 5]


def emit_winograd_products(context: Context) -> KernelText:
    """Items (slot, panel of filters, chunk of channels); in each, the slot's blocks of tiles one after the other."""
    kernel = _Kernel(context)
    block, parts = _gradient_block(kernel.anchor), kernel.op.slots
    size = min(CHUNK, -(-block.channels // LANES) * LANES)
    chunks = -(-block.channels // size)
    points_row, points_step = block.matrices(size)
    spread_row, spread_step = block.matrices(block.panel)
    x, g = kernel.operands
    target = kernel.outputs[0][1].pointer
    bands, band_count = _balanced("row", "band", block.rows, block.high)
    rows = {min(size, block.channels), block.channels - (chunks - 1) * size}
    place = f"(((slot * {POINTS} + i) * {block.panels} + p) * {block.channels} + channel + at) * {block.panel}"
    lines = [
        f"enum {{ points_row = {points_row}, points_step = {points_step}, spread_row = {spread_row}, spread_step = {spread_step} }};",
        f"f32 *const strip = (f32 *){kernel.scratch}, *const points = strip + {block.strip(WINDOW)}, "
        f"*const spread = points + {POINTS} * points_step;",
        kernel.items(parts * block.panels * chunks),
        f"const int64_t slot = item / {block.panels * chunks}, p = item / {chunks} % {block.panels}, channel = item % {chunks} * {size};",
        f"const int64_t count = {block.channels} - channel < {size} ? {block.channels} - channel : {size};",
        f"const int64_t begin = slot * {block.batch} / {parts}, end = (slot + 1) * {block.batch} / {parts};",
        f"for (int64_t image_first = begin; image_first < end; image_first += {block.images}) "
        f"for (int64_t band = 0; band < {band_count}; band++) {{",
        f"const int64_t image_count = end - image_first < {block.images} ? end - image_first : {block.images};",
        bands,
        f"const int64_t tiles = image_count * row_count * {block.columns};",
        *block.transform(context, x, str(block.channels), "channel", "count", "points"),
        *block.transform(context, g, str(block.filters), f"p * {block.panel}", str(block.panel), "spread", True),
        f"for (int64_t i = 0; i < {POINTS}; i++) {{",
        *_products(
            context, rows, block.panel // LANES, "count",
            f"points + i * points_step + at, 1, points_row, spread + i * spread_step, spread_row, tiles, {target} + {place}, "
            f"{block.panel}, image_first + band > begin",
        ),
        "}",
        "}",
        "}",
    ]  # fmt: skip
    return kernel.function(lines)


def emit_winograd_filters(context: Context) -> KernelText:
    """Items (panel, 16 channels): transposed copies [channel][tap][filter], then the transforms of their rows."""
    kernel = _Kernel(context)
    w = kernel.anchor.inputs[0]
    back = kernel.op.back
    filters, channels = (w.shape[1], w.shape[0]) if back else w.shape[:2]
    count, width = panels(filters)
    chunks = -(-channels // LANES)
    target = kernel.outputs[0][1].pointer
    head = "const f32 *from, f32 *to, int64_t step"
    tap = "(8 - (ROW * 3 + j))" if back else "(ROW * 3 + j)"
    load = f"convert_f32_to_f64(load_f32(from + {tap} * 16))"
    store = "store_f32(to + (i * 6 + COLUMN) * step, convert_f64_to_f32(VALUE));"
    name = "winograd_filter_back" if back else "winograd_filter"
    tile = _transform(context, name, _filter, (3, WINDOW), head, load, store, "f64")
    lines = [
        f"f32 *const taps = (f32 *){kernel.scratch};",
        kernel.items(count * chunks),
        f"const int64_t p = item / {chunks}, channel = item % {chunks} * 16;",
        f"const int64_t some = {channels} - channel < 16 ? {channels} - channel : 16;",
        f"for (int64_t k = 0; k < {width}; k += 16) {{",
        f"const int64_t filter = p * {width} + k, valid = {filters} - filter;",
        f"f32 *const to = taps + k * {9 * LANES};",
        *_taps(kernel.operands[0], filters, channels, back),
        "}",
        f"for (int64_t c = 0; c < some; c++) for (int64_t k = 0; k < {width}; k += 16)",
        f"{tile}(taps + (k + c) * {9 * LANES}, {target} + (p * {channels} + channel + c) * {width} + k, {count * channels * width});",
        "}",
    ]
    return kernel.function(lines)


def _taps(w: str, filters: int, channels: int, back: bool) -> list[str]:
    """C that copies the weights of 16 filters and `some` channels to [channel][tap][filter]."""
    lines = []
    if back:  # the taps of neighbouring filters lie beside each other
        lines += [
            "if (valid >= 16) {",
            "for (int64_t c = 0; c < some; c++) for (int64_t tap = 0; tap < 9; tap++) store_f32(to + (c * 9 + tap) * 16, "
            f"load_strided_f32({w} + ((channel + c) * {filters} + filter) * 9 + tap, 9));",
        ]
        place = f"((channel + c) * {filters} + filter + l) * 9 + tap"
    else:  # those of neighbouring channels
        lines += [
            "if (valid >= 16 && some == 16) {",
            "for (int64_t at = 0; at < 144; at += 16) {",
            "f32x16 t[16];",
            f"for (int64_t l = 0; l < 16; l++) t[l] = load_f32({w} + ((filter + l) * {channels} + channel) * 9 + at);",
            "transpose_f32(t);",
            "for (int64_t l = 0; l < 16; l++) store_f32(to + (at + l) * 16, t[l]);",
            "}",
        ]
        place = f"((filter + l) * {channels} + channel + c) * 9 + tap"
    return [
        *lines,
        "} else for (int64_t c = 0; c < some; c++) for (int64_t l = 0; l < 16; l++) for (int64_t tap = 0; tap < 9; tap++)",
        f"to[(c * 9 + tap) * 16 + l] = l < valid ? {w}[{place}] : 0;",
    ]


def emit_winograd_weight_gradient(context: Context) -> KernelText:
    """Items (panel, 16 channels): the slots added and transformed to [channel][tap][filter], then transposed."""
    kernel = _Kernel(context)
    u = kernel.anchor.inputs[0]
    parts, _, count, channels, width = u.shape
    filters = kernel.op.filters
    chunks = -(-channels // LANES)
    step = count * channels * width
    added = "load_f32(from + (ROW * 6 + j) * step)"
    for slot in range(1, parts):
        added = f"add_f32({added}, load_f32(from + (ROW * 6 + j + {slot * POINTS}) * step))"
    store = "store_f32(to + (i * 3 + COLUMN) * 16, VALUE);"
    head = "const f32 *from, int64_t step, f32 *to"
    tile = _transform(context, f"winograd_gather{parts}", _gather, (WINDOW, 3), head, added, store)
    lines = [
        f"f32 *const taps = (f32 *){kernel.scratch};",
        kernel.items(count * chunks),
        f"const int64_t p = item / {chunks}, channel = item % {chunks} * 16;",
        f"const int64_t some = {channels} - channel < 16 ? {channels} - channel : 16;",
        f"for (int64_t c = 0; c < some; c++) for (int64_t k = 0; k < {width}; k += 16)",
        f"{tile}({kernel.operands[0]} + (p * {channels} + channel + c) * {width} + k, {step}, taps + (k + c) * {9 * LANES});",
        f"for (int64_t k = 0; k < {width}; k += 16) for (int64_t at = 0; at < some * 9; at += 16) {{",
        "const int64_t n = some * 9 - at < 16 ? some * 9 - at : 16, place = channel * 9 + at;",
        "f32x16 t[16];",
        f"for (int l = 0; l < 16; l++) t[l] = load_f32(taps + k * {9 * LANES} + (at + l) * 16);",
        "transpose_f32(t);",
        f"for (int64_t l = 0; l < 16 && p * {width} + k + l < {filters}; l++) {{",
        f"const f32x16 sum = t[l]; const int64_t f = p * {width} + k + l; (void)n; (void)place; (void)f;",
    ]
    flat = channels * 9
    extents = {"f": filters, "place": max(flat - LANES + 1, 1), LANE: min(flat, LANES)}
    inner = unravel(variable("place") + variable(LANE), (channels, 3, 3), extents)
    lines += [*kernel.both("sum", (variable("f"), *inner), extents), "}", "}", "}"]
    return kernel.function(lines)
