"""Attention taken whole: forward and backward kernels whose memory grows with the sequence, not with its square.

In: the composites of `ops/attention.py` (queries, keys, values [.., length, size], perhaps a mask). Out: kernels that
take a head (and a part of its queries) at a time. Keys are copied transposed into panels [64 keys][size]; a tile of up
to six queries meets all keys it may see, and only the logarithm of each row's sum of exponentials is kept. The gradient
computes the weights of a block of queries x keys again, and from them its part of all three gradients (Dao et al.,
2022). With a causal mask only the triangle is computed. Tiles are the register tiles of `tiles.py`; every order of
summation follows from shapes. What these kernels cannot do (`takes`) goes through the composite's body.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from thalweg.codegen.c.bindings import STATIC, TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.tiles import balanced, pack_transposed, product_tile
from thalweg.graph import Node, Value
from thalweg.plan import LANES, Kernel

FORWARD = "scaled_dot_product_attention"
RESIDUALS = "scaled_dot_product_attention_with_residuals"
GRADIENT = "scaled_dot_product_attention_gradient"
NAMES = (FORWARD, RESIDUALS, GRADIENT)

ROWS = 6  # of a tile
PANEL = 64  # keys of a panel, and columns of a result that a tile computes at once
TILES = 8  # of a row that meet a panel one after the other, while it is in the first cache
LEAST_ROWS = 16  # queries below which packing the keys does not pay
MOST_SIZE = 256  # of a head
SUM_BLOCK = 512  # keys whose weighted values are summed before they are added to the sum of those before
QUERY_BLOCK, KEY_BLOCK = 128, 256  # of the gradient: their weights stay in the second cache
CHUNK_ROWS = 48  # queries that share packed keys, at least
FEW_ITEMS = 16  # fewer tasks than this leave threads without work


@dataclass(frozen=True)
class Shape:
    """`heads` heads of queries, of which `group` each share a head of keys and values."""

    heads: int
    group: int
    length: int  # queries
    keys: int
    size: int  # of a query and a key
    width: int  # of a value
    causal: bool
    scale: float
    mask: str  # "": none, "bool", "added"

    @property
    def chunks(self) -> int:
        """Parts of the queries of a head (forward)."""
        return max(1, min(self.length // CHUNK_ROWS, -(-FEW_ITEMS // self.heads)))

    @property
    def panels(self) -> int:
        return -(-self.keys // PANEL)

    @property
    def pitch(self) -> int:
        """Numbers from one row of scores to the next; never whole pages."""
        return self.panels * PANEL + LANES


def operands(node: Node) -> dict[str, Value]:
    """The inputs of one of the composites by name."""
    op: Any = node.op
    names = op.definition.tensors
    given = iter(node.inputs)
    return {name: next(given) for name, present in zip(names, op.present, strict=True) if present}


def takes(node: Node) -> bool:
    """Is there a kernel for this application? float32, sizes of whole vectors, no dropout."""
    if node.op.name not in NAMES:
        return False
    found = operands(node)
    query, key, value, mask = found["query"], found["key"], found["value"], found.get("mask")
    size, width = query.shape[-1], value.shape[-1]
    return (
        "state" not in found
        and query.dtype.short == "f32"
        and query.shape[-2] >= LEAST_ROWS
        and key.shape[-2] >= LANES
        and all(0 < extent <= MOST_SIZE and extent % LANES == 0 for extent in (size, width))
        and math.prod(query.shape[:-2]) > 0
        and (mask is None or (mask.shape[-1] == key.shape[-2] and mask.dtype.short in ("bool", "f32")))
    )


def shape_of(node: Node) -> Shape:
    """The sizes of an application that is taken."""
    op: Any = node.op
    found = operands(node)
    query, key, mask = found["query"], found["key"], found.get("mask")
    heads, attributes = math.prod(query.shape[:-2]), op.attributes()
    return Shape(
        heads,
        heads // math.prod(key.shape[:-2]),
        query.shape[-2],
        key.shape[-2],
        query.shape[-1],
        found["value"].shape[-1],
        attributes["is_causal"],
        attributes["scale"],
        "" if mask is None else "bool" if mask.dtype.is_bool else "added",
    )


def attention_workspace(kernel: Kernel) -> int:
    """Bytes of packed keys (and values), and of scores."""
    assert kernel.anchor is not None
    shape = shape_of(kernel.anchor)
    if kernel.kind != GRADIENT:
        return 4 * (shape.panels * PANEL * shape.size + TILES * ROWS * shape.pitch)
    return 4 * (KEY_BLOCK * (shape.size + shape.width) + 2 * QUERY_BLOCK * (KEY_BLOCK + LANES))


# ---- pieces of text ------------------------------------------------------------------------------------------------


class _Writer:
    """What the two kernels share: operands by head, tiles, rows."""

    def __init__(self, context: Context) -> None:
        assert context.kernel.anchor is not None
        self.context = context
        self.node = context.kernel.anchor
        self.shape = shape_of(self.node)
        self.inputs = operands(self.node)
        self.names = {name: context.pointer(context.buffer(value)) for name, value in self.inputs.items()}
        self.results = [context.pointer(context.buffer(v, True), True) for v in self.node.outputs]
        self.scratch = context.pointer(context.kernel.detail["workspace"], write=True)

    def rows(self, name: str, pointer: str, head: str, extent: int, size: int, write: bool = False) -> str:
        """Declare `name`: the rows [extent, size] of a head."""
        return f"{'' if write else 'const '}float *const {name} = {pointer} + ({head}) * {extent * size};"

    def mask_rows(self) -> list[str]:
        """Declare `mask`, the rows of the mask for `head`; they lie `mask_pitch` apart."""
        if not self.shape.mask:
            return []
        mask, lead = self.inputs["mask"], self.inputs["query"].shape[:-2]
        element = "uint8_t" if self.shape.mask == "bool" else "float"
        terms, below, stride = [], 1, math.prod(mask.shape[-2:])
        sizes = (1,) * (len(lead) + 2 - mask.ndim) + tuple(mask.shape[:-2])
        for extent, own in zip(reversed(lead), reversed(sizes), strict=True):
            if own > 1:
                terms.append(f"head / {below} % {extent} * {stride}")
                stride *= own
            below *= extent
        at = " + ".join(terms) or "0"
        return [f"const {element} *const mask = {self.names['mask']} + {at};"]

    @property
    def mask_pitch(self) -> int:
        mask = self.inputs.get("mask")
        return mask.shape[-1] if mask is not None and mask.shape[-2] > 1 else 0

    def pack(self, source: str, keys: str, size: int, target: str, scaled: bool) -> list[str]:
        """Copy `keys` rows of `source` to panels [panel][size][64] at `target`, perhaps times the scale."""
        pack = pack_transposed(self.context, "f32")
        lines = [
            f"for (int64_t c = 0; c < {keys}; c += {PANEL})",
            f"{pack}({source} + c * {size}, {size}, {size}, {keys} - c < {PANEL} ? {keys} - c : {PANEL}, "
            f"{target} + c * {size}, {PANEL});",
        ]
        if scaled:
            lines.append(
                f"for (int64_t c = 0; c < ({keys} + {PANEL - 1}) / {PANEL} * {PANEL * size}; c += 16)"
                f" store_f32({target} + c, multiply_f32(load_f32({target} + c), broadcast_f32({self.scale})));"
            )
        return lines

    @property
    def scale(self) -> str:
        return f"{float.hex(float(self.shape.scale))}f"

    def tile(self, heights: set[int], widths: set[int], arguments: str) -> list[str]:
        """Call the tile of `rows` rows and `vectors` vectors, which are known when the program runs."""
        lines = []
        cases = [(r, v) for r in sorted(heights, reverse=True) for v in sorted(widths, reverse=True)]
        for number, (rows, vectors) in enumerate(cases):
            tests = [f"rows == {rows}"] if len(heights) > 1 else []
            tests += [f"vectors == {vectors}"] if len(widths) > 1 else []
            last = number == len(cases) - 1
            start = "else " if number else ""
            start += "" if last or not tests else f"if ({' && '.join(tests)}) "
            lines.append(f"{start}{product_tile(self.context, 'f32', rows, vectors)}({arguments});")
        return lines

    def columns(self, heights: set[int], size: int, arguments: str) -> list[str]:
        """Tiles over all `size` columns `c` of a result."""
        widths = {min(PANEL, size - c) // LANES for c in range(0, size, PANEL)}
        return [
            f"for (int64_t c = 0; c < {size}; c += {PANEL}) {{",
            f"const int64_t vectors = {size} - c < {PANEL} ? ({size} - c) / {LANES} : {PANEL // LANES}; (void)vectors;",
            *self.tile(heights, widths, arguments),
            "}",
        ]

    def scores(self, heights: set[int], arguments: str) -> list[str]:
        """A tile over the panel of keys `c`."""
        least = 1 if self.shape.causal else (min(PANEL, (self.shape.keys - 1) % PANEL + 1) + 15) // LANES
        widths = {*range(1, 5)} if self.shape.causal else {least, *([4] if self.shape.keys > PANEL else [])}
        return [
            f"{{ const int64_t vectors = limit - c < {PANEL} ? (limit - c + 15) / 16 : 4; (void)vectors;",
            *self.tile(heights, widths, arguments),
            "}",
        ]

    def row_function(self, name: str, head: str, before: str, body: str, tail: str) -> str:
        """A function over the scores of a row: `body` for each vector `x` (masked; `lanes` says which count)."""
        mask = self.shape.mask
        element = {"bool": ", const uint8_t *mask", "added": ", const float *mask"}.get(mask, "")
        apply = {
            "bool": "x = select_f32(convert_i8_to_i32({0}_bool(mask + j{1})), x, none);",
            "added": "x = add_f32(x, {0}_f32(mask + j{1}));",
        }.get(mask, "")
        full, part = apply.format("load", ""), apply.format("load_partial", ", (int)(n - j)")
        keep = "x = select_f32(first_lanes_i32((int)(n - j)), x, none);"
        text = f"""{STATIC} void {name}{mask and '_' + mask}({head}{element}) {{
const f32x16 none = broadcast_f32(-__builtin_inff()); (void)none;
{before}
int64_t j = 0;
for (; j + 16 <= n; j += 16) {{ f32x16 x = load_f32(s + j); {full} {body} }}
if (j < n) {{ f32x16 x = load_f32(s + j); {part} {keep} {body} j += 16; }}
{tail}
}}
"""
        return self.context.shared(name + (mask and "_" + mask), text, {"exp_f32", "log_f32"})

    def finish(self, lines: list[str]) -> KernelText:
        return self.context.function("\n".join(["(void)error;", *lines]), TILE_PARAMETERS)


# ---- forward -------------------------------------------------------------------------------------------------------


def _softmax_row(writer: _Writer) -> str:
    """The name of: scores s[n] to exponentials (zero from n to end), their sum, and its logarithm with the shift."""
    largest = writer.row_function(
        "attention_largest",
        "float *s, int64_t n, float *shift",
        "f32x16 m = none;",
        "m = maximum_f32(m, x);" + (" store_f32(s + j, x);" if writer.shape.mask else ""),
        "const float found = max_f32(m); *shift = found > -__builtin_inff() || found != found ? found : 0.0f;",
    )
    mask = f", mask + (row + r) * {writer.mask_pitch}" if writer.shape.mask else ""
    text = f"""{STATIC} void attention_exponentials(float *s, int64_t n, int64_t end, float shift, float *total, float *logsum) {{
const f32x16 least = broadcast_f32(shift);
f32x16 t0 = broadcast_f32(0), t1 = t0;
int64_t j = 0;
for (; j + 32 <= n; j += 32) {{
const f32x16 x = exp_f32(subtract_f32(load_f32(s + j), least)), y = exp_f32(subtract_f32(load_f32(s + j + 16), least));
store_f32(s + j, x); store_f32(s + j + 16, y);
t0 = add_f32(t0, x); t1 = add_f32(t1, y);
}}
for (; j < n; j += 16) {{
f32x16 x = exp_f32(subtract_f32(load_f32(s + j), least));
if (n - j < 16) x = select_f32(first_lanes_i32((int)(n - j)), x, broadcast_f32(0));
store_f32(s + j, x); t0 = add_f32(t0, x);
}}
for (; j < end; j += 16) store_f32(s + j, broadcast_f32(0));
const float sum = sum_f32(add_f32(t0, t1));
*total = sum > 0 || sum != sum ? sum : 1.0f;
*logsum = shift + lane_f32(log_f32(broadcast_f32(*total)), 0);
}}
"""
    exponentials = writer.context.shared("attention_exponentials", text, {"exp_f32", "log_f32"})
    return (
        f"float shift, sum; {largest}(s, n, &shift{mask}); {exponentials}(s, n, (limit + 15) / 16 * 16, shift, &sum, &logsum);"
    )


def emit_attention(context: Context) -> KernelText:
    """Items are chunks of the queries of a head; each packs the keys it may see, then takes tile after tile of rows."""
    if context.kernel.kind == GRADIENT:
        return _emit_gradient(context)
    writer = _Writer(context)
    shape = writer.shape
    tiles, height, tall = balanced(shape.length, ROWS)
    heights = {height, height - 1} if tall < tiles else {height}
    items, tasks = shape.heads * shape.chunks, context.kernel.tasks
    packed = shape.panels * PANEL * shape.size
    width = shape.width
    place = [
        f"const int64_t row = tile * {height} - (tile > {tall} ? tile - {tall} : 0);",
        f"const int64_t rows = tile < {tall} ? {height} : {height - 1};",
        "const int64_t limit = row + rows < seen ? row + rows : seen;" if shape.causal else "const int64_t limit = seen;",
    ]
    lines = [
        f"float *const packed = (float *){writer.scratch}, *const scores = packed + {packed};",
        f"for (int64_t item = task * {items} / {tasks}; item < (task + 1) * {items} / {tasks}; item++) {{",
        f"const int64_t head = item / {shape.chunks}, chunk = item % {shape.chunks};",
        f"const int64_t begin = chunk * {tiles} / {shape.chunks}, stop = (chunk + 1) * {tiles} / {shape.chunks};",
        writer.rows("q", writer.names["query"], "head", shape.length, shape.size),
        writer.rows("k", writer.names["key"], f"head / {shape.group}", shape.keys, shape.size),
        writer.rows("v", writer.names["value"], f"head / {shape.group}", shape.keys, width),
        writer.rows("o", writer.results[0], "head", shape.length, width, write=True),
        *writer.mask_rows(),
    ]
    if shape.causal:
        last = f"stop * {height} - (stop > {tall} ? stop - {tall} : 0)"
        lines.append(f"const int64_t seen = {last} < {shape.keys} ? {last} : {shape.keys};")
    else:
        lines.append(f"const int64_t seen = {shape.keys};")
    lines += [
        *writer.pack("k", "seen", shape.size, "packed", scaled=True),
        f"for (int64_t group = begin; group < stop; group += {TILES}) {{",
        f"const int64_t last = group + {TILES} < stop ? group + {TILES} : stop;",
        f"for (int64_t c = 0; c < seen; c += {PANEL}) for (int64_t tile = group; tile < last; tile++) {{",
        *place,
        "if (c >= limit) continue;",
        *writer.scores(
            heights,
            f"q + row * {shape.size}, {shape.size}, 1, packed + c * {shape.size}, {PANEL}, {shape.size}, "
            f"scores + (tile - group) * {ROWS * shape.pitch} + c, {shape.pitch}, 0",
        ),
        "}",
        "for (int64_t tile = group; tile < last; tile++) {",
        *place,
        f"float totals[{ROWS}], *const own = scores + (tile - group) * {ROWS * shape.pitch};",
        "for (int64_t r = 0; r < rows; r++) {",
        f"float *const s = own + r * {shape.pitch}; float logsum;",
        "const int64_t n = row + r + 1 < limit ? row + r + 1 : limit;" if shape.causal else "const int64_t n = limit;",
        _softmax_row(writer),
        "totals[r] = sum; (void)logsum;",
    ]
    if len(writer.results) > 1:
        lines.append(f"{writer.results[1]}[head * {shape.length} + row + r] = logsum;")
    lines += [
        "}",
        f"for (int64_t j = 0; j < limit; j += {SUM_BLOCK}) {{",
        f"const int64_t count = limit - j < {SUM_BLOCK} ? limit - j : {SUM_BLOCK};",
        *writer.columns(
            heights,
            width,
            f"own + j, {shape.pitch}, 1, v + j * {width} + c, {width}, count, o + row * {width} + c, {width}, j > 0",
        ),
        "}",
        f"for (int64_t r = 0; r < rows; r++) for (int64_t c = 0; c < {width}; c += 16) {{",
        f"float *const x = o + (row + r) * {width} + c;",
        "store_f32(x, divide_f32(load_f32(x), broadcast_f32(totals[r])));",
        "}",
        "}",
        "}",
        "}",
    ]
    return writer.finish(lines)


# ---- backward ------------------------------------------------------------------------------------------------------


def _heights(extent: int, block: int) -> set[int]:
    """Heights of the tiles that blocks of `extent` rows are cut into."""
    found: set[int] = set()
    for rows in {min(extent, block), (extent - 1) % block + 1}:
        tiles, height, tall = balanced(rows, ROWS)
        found |= {height, height - 1} if tall < tiles else {height}
    return found


def _tiles(name: str, extent: str) -> list[str]:
    """Statements that begin a loop over balanced tiles of up to six rows of `extent`: `name` and `rows`."""
    return [
        f"const int64_t tiles_{name} = ({extent} + {ROWS - 1}) / {ROWS};",
        f"const int64_t height_{name} = ({extent} + tiles_{name} - 1) / tiles_{name};",
        f"const int64_t tall_{name} = tiles_{name} - (height_{name} * tiles_{name} - {extent});",
        f"for (int64_t tile = 0; tile < tiles_{name}; tile++) {{",
        f"const int64_t {name} = tile * height_{name} - (tile > tall_{name} ? tile - tall_{name} : 0);",
        f"const int64_t rows = height_{name} - (tile >= tall_{name});",
    ]


def _gradient_row(writer: _Writer) -> str:
    """The name of: scores s[n] and gradients d[n] of the weights to the weights and the gradients of the scores; both
    zero from n to end."""
    body = (
        "const f32x16 w = exp_f32(subtract_f32(x, broadcast_f32(logsum)));"
        " store_f32(s + j, w);"
        " store_f32(d + j, multiply_f32(multiply_f32(subtract_f32(load_f32(d + j), mean), w), times));"
    )
    return writer.row_function(
        "attention_gradient_row",
        "float *s, float *d, int64_t n, int64_t end, float logsum, const float *g, const float *o, int64_t width, float scale",
        """f32x16 t = broadcast_f32(0);
for (int64_t c = 0; c < width; c += 16) t = fma_f32(load_f32(g + c), load_f32(o + c), t);
const f32x16 mean = broadcast_f32(sum_f32(t)), times = broadcast_f32(scale);""",
        body,
        "for (; j < end; j += 16) { store_f32(s + j, broadcast_f32(0)); store_f32(d + j, broadcast_f32(0)); }",
    )


def _emit_gradient(context: Context) -> KernelText:
    """Items are heads of keys; blocks of keys, and in each blocks of the queries of all heads that share them."""
    writer = _Writer(context)
    shape = writer.shape
    items, tasks, size, width = shape.heads // shape.group, context.kernel.tasks, shape.size, shape.width
    pitch = KEY_BLOCK + LANES
    names = writer.names
    queries, keys = _heights(shape.length, QUERY_BLOCK), _heights(shape.keys, KEY_BLOCK)
    zero = "for (int64_t c = 0; c < {0}; c += 16) store_f32({1} + c, broadcast_f32(0));"
    lines = [
        f"float *const packed = (float *){writer.scratch}, *const turned = packed + {KEY_BLOCK * size};",
        f"float *const weights = turned + {KEY_BLOCK * width}, *const slopes = weights + {QUERY_BLOCK * pitch};",
        f"for (int64_t item = task * {items} / {tasks}; item < (task + 1) * {items} / {tasks}; item++) {{",
        writer.rows("k", names["key"], "item", shape.keys, size),
        writer.rows("v", names["value"], "item", shape.keys, width),
        writer.rows("dk", writer.results[1], "item", shape.keys, size, write=True),
        writer.rows("dv", writer.results[2], "item", shape.keys, width, write=True),
        zero.format(shape.keys * size, "dk"),
        zero.format(shape.keys * width, "dv"),
        zero.format(
            shape.group * shape.length * size, f"{writer.results[0]} + item * {shape.group * shape.length * size}"
        ),
        f"for (int64_t first = 0; first < {shape.keys}; first += {KEY_BLOCK}) {{",
        f"const int64_t keys = {shape.keys} - first < {KEY_BLOCK} ? {shape.keys} - first : {KEY_BLOCK};",
        *writer.pack(f"k + first * {size}", "keys", size, "packed", scaled=True),
        *writer.pack(f"v + first * {width}", "keys", width, "turned", scaled=False),
        f"for (int64_t head = item * {shape.group}; head < (item + 1) * {shape.group}; head++) {{",
        writer.rows("q", names["query"], "head", shape.length, size),
        writer.rows("g", names["g"], "head", shape.length, width),
        writer.rows("o", names["result"], "head", shape.length, width),
        writer.rows("dq", writer.results[0], "head", shape.length, size, write=True),
        *writer.mask_rows(),
        f"for (int64_t block = {'first' if shape.causal else '0'}; block < {shape.length}; block += {QUERY_BLOCK}) {{",
        f"const int64_t queries = {shape.length} - block < {QUERY_BLOCK} ? {shape.length} - block : {QUERY_BLOCK};",
        *_gradient_of_queries(writer, queries, pitch),
        *_gradient_of_keys(writer, keys, pitch),
        "}",
        "}",
        "}",
        "}",
    ]
    return writer.finish(lines)


def _gradient_of_queries(writer: _Writer, heights: set[int], pitch: int) -> list[str]:
    """Weights and gradients of the scores of a block, and what they give to the queries."""
    shape, size, width = writer.shape, writer.shape.size, writer.shape.width
    mask = f", mask + (block + row + r) * {writer.mask_pitch} + first" if shape.mask else ""
    seen = "block + row + rows - first"
    limit = f"{seen} < keys ? {seen} : keys" if shape.causal else "keys"
    at = f"row * {pitch}"
    return [
        f"for (int64_t c = 0; c < keys; c += {PANEL}) {{",
        *_tiles("row", "queries"),
        f"const int64_t limit = {limit};",
        "if (c >= limit) continue;",
        *writer.scores(
            heights,
            f"q + (block + row) * {size}, {size}, 1, packed + c * {size}, {PANEL}, {size}, weights + {at} + c, {pitch}, 0",
        ),
        *writer.scores(
            heights,
            f"g + (block + row) * {width}, {width}, 1, turned + c * {width}, {PANEL}, {width}, slopes + {at} + c, {pitch}, 0",
        ),
        "}",
        "}",
        "{",
        *_tiles("row", "queries"),
        f"const int64_t limit = {limit};",
        "for (int64_t r = 0; r < rows; r++) {",
        "const int64_t place = block + row + r;",
        "const int64_t n = place + 1 - first < keys ? place + 1 - first : keys;" if shape.causal else "const int64_t n = keys;",
        f"{_gradient_row(writer)}(weights + (row + r) * {pitch}, slopes + (row + r) * {pitch}, n, (limit + 15) / 16 * 16 + 16, "
        f"{writer.names['logsum']}[head * {shape.length} + place], g + place * {width}, o + place * {width}, {width}, {writer.scale}{mask});",
        "}",
        *writer.columns(
            heights,
            size,
            f"slopes + {at}, {pitch}, 1, k + first * {size} + c, {size}, limit, dq + (block + row) * {size} + c, {size}, 1",
        ),
        "}",
        "}",
    ]


def _gradient_of_keys(writer: _Writer, heights: set[int], pitch: int) -> list[str]:
    """What the weights of a block, and the gradients of its scores, give to values and keys."""
    size, width = writer.shape.size, writer.shape.width
    start = "first + column > block ? first + column - block : 0" if writer.shape.causal else "0"
    return [
        *_tiles("column", "keys"),
        f"const int64_t start = {start};",
        "if (start >= queries) continue;",
        *writer.columns(
            heights,
            width,
            f"weights + start * {pitch} + column, 1, {pitch}, g + (block + start) * {width} + c, {width}, queries - start, "
            f"dv + (first + column) * {width} + c, {width}, 1",
        ),
        *writer.columns(
            heights,
            size,
            f"slopes + start * {pitch} + column, 1, {pitch}, q + (block + start) * {size} + c, {size}, queries - start, "
            f"dk + (first + column) * {size} + c, {size}, 1",
        ),
        "}",
    ]
