"""Products with weights of 8 and 4 bits, read once and from front to back.

In: a kernel whose anchor is `activation_bytes` or `byte_product`. Out: its C function. Each row of the weight meets the
rows of activations 64 bytes at a time: products of bytes are summed exactly in 32-bit integers (4 of them per lane), made
float32, scaled and added in two vectors of 16 lanes. An unsigned byte is wanted on one side: 8-bit weights have 128 added,
4-bit ones 8, which is taken off again by sums of the activations. Orders follow from shapes alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from thalweg.codegen.c.bindings import STATIC, TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.expressions import literal, memory
from thalweg.graph import Node
from thalweg.ops.core import Composite
from thalweg.ops.quantised import BLOCK, BYTES, GROUP, LARGEST
from thalweg.plan import LANES, Kernel, aligned
from thalweg.types import DType, float32, uint8

CHUNK = 16  # rows of activations that are prepared at once
SIDE = 4  # of them that meet a row of the weight at once
DOT = ("tw_dot_bytes",)

# ---- activations as bytes ----------------------------------------------------------------------------------


def emit_bytes(context: Context) -> KernelText:
    """Rows of activations as bytes, with the step and the sum of each block."""
    kernel = context.kernel
    assert kernel.anchor is not None
    x, (whole, steps, totals) = kernel.anchor.inputs[0], kernel.anchor.outputs
    rows, size = x.shape
    padded, tasks = whole.shape[1], kernel.tasks
    block = kernel.anchor.op.attributes()["block"]
    blocks, short, vectors = padded // block, x.dtype.short, block // LANES
    source = context.access(x).pointer
    target, step, total = (context.access(value, write=True).pointer for value in (whole, steps, totals))
    top = "absolute_f32(v0)"
    for c in range(1, vectors):
        top = f"maximum_f32({top}, absolute_f32(v{c}))"
    added = "w0"
    for c in range(1, vectors):
        added = f"add_f32({added}, w{c})"
    body = [
        f"const f32 largest = max_f32({top});",
        f"const f32x16 inverse = broadcast_f32({LARGEST}.0f / (largest == 0 ? 1 : largest));",
        *(f"const f32x16 w{c} = rint_f32(multiply_f32(v{c}, inverse));" for c in range(vectors)),
        *(f"store_i8({target} + r * {padded} + b + {c * LANES}, convert_f32_to_i8(w{c}));" for c in range(vectors)),
        f"{step}[r * {blocks} + b / {block}] = largest * {literal(1.0 / LARGEST, float32)};",
        f"{total}[r * {blocks} + b / {block}] = sum_f32({added});",
    ]
    end = size // block * block
    lines = [
        "(void)error;",
        f"for (int64_t r = task * {rows} / {tasks}; r < (task + 1) * {rows} / {tasks}; r++) {{",
        f"const {memory(x.dtype)} *const row = {source} + r * {size};",
        f"for (int64_t b = 0; b < {end}; b += {block}) {{",
        *(f"const f32x16 v{c} = load_{short}(row + b + {c * LANES});" for c in range(vectors)),
        *body,
        "}",
    ]
    if end < padded:
        lines.append(f"for (int64_t b = {end}; b < {padded}; b += {block}) {{")
        for c in range(vectors):
            at = f"b + {c * LANES}"
            lines += [
                f"const int n{c} = {size} - ({at}) < 0 ? 0 : {size} - ({at}) < {LANES} ? (int)({size} - ({at})) : {LANES};",
                f"const f32x16 v{c} = n{c} ? load_partial_{short}(row + {at}, n{c}) : broadcast_f32(0);",
            ]
        lines += [*body, "}"]
    return context.function("\n".join([*lines, "}"]), TILE_PARAMETERS)


# ---- the product -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Rows [rows, padded] with a weight [outputs, size]."""

    rows: int
    size: int
    padded: int
    outputs: int
    four: bool  # bits, or eight
    scale: DType

    @property
    def pitch(self) -> int:
        """Bytes from one row of the weight to the next."""
        return self.padded // 2 if self.four else self.size

    @property
    def blocks(self) -> int:
        """Blocks of activations in a row."""
        return self.padded // (BLOCK if self.four else BYTES)

    @property
    def chunk(self) -> int:
        return min(self.rows, CHUNK)

    @property
    def offsets(self) -> int:
        """Numbers of 4 bytes for what the added 128 or 8 add to the sums of a row of activations."""
        return -(-self.blocks // LANES) * LANES if self.four else self.padded // 4

    @property
    def steps(self) -> int:
        """Floats for the steps of 4-bit products of a row: a vector for every 64 bytes."""
        return self.padded // BYTES * LANES if self.four else 0

    @property
    def prepared(self) -> int:
        """Numbers of 4 bytes that are prepared for a row of activations."""
        return self.offsets + self.steps


def shape_of(anchor: Node) -> Shape:
    """The product that a kernel is."""
    rows, _, _, weight, scale = anchor.inputs[:5]
    four = weight.dtype is uint8
    size = rows.shape[1] if four else weight.shape[1]
    return Shape(rows.shape[0], size, rows.shape[1], weight.shape[0], four, scale.dtype)


def workspace(kernel: Kernel) -> int:
    """Bytes of what is prepared for the rows of a chunk, and of a weight row's scales as float32."""
    assert kernel.anchor is not None
    shape = shape_of(kernel.anchor)
    scales = shape.blocks + LANES if shape.four else 0
    return aligned((shape.chunk * shape.prepared + scales) * 4)


def emit_product(context: Context) -> KernelText:
    """Items of (chunk of rows, part of the groups of 16 outputs)."""
    kernel = context.kernel
    anchor = kernel.anchor
    assert anchor is not None and isinstance(anchor.op, Composite)
    shape = shape_of(anchor)
    bytes_, step, total, weight, scale, bias = anchor.op.arguments(anchor.inputs)
    x, steps, totals, w, scales = (context.access(v).pointer for v in (bytes_, step, total, weight, scale))
    target = context.access(kernel.roots[0], write=True).pointer
    scratch = context.pointer(kernel.detail["workspace"], write=True)
    tasks, chunks, groups = kernel.tasks, -(-shape.rows // CHUNK), -(-shape.outputs // LANES)
    parts = max(1, min(groups, -(-tasks // chunks)))
    items = chunks * parts
    lines = [
        "(void)error; int64_t ready = -1;",
        f"i32 *const ahead = (i32 *){scratch};",
        f"f32 sums[{CHUNK * LANES}] __attribute__((aligned(64)));",
        f"for (int64_t item = task * {items} / {tasks}; item < (task + 1) * {items} / {tasks}; item++) {{",
        f"const int64_t chunk = item / {parts}, part = item % {parts}, row = chunk * {CHUNK};",
        f"const int64_t rows = {shape.rows} - row < {CHUNK} ? {shape.rows} - row : {CHUNK};",
        f"const i8 *const bytes = {x} + row * {shape.padded}; const f32 *const step = {steps} + row * {shape.blocks};",
        f"if (ready != chunk) {_prepare(context, shape)}(bytes, step, {totals} + row * {shape.blocks}, rows, ahead);",
        "ready = chunk;",
        f"for (int64_t group = part * {groups} / {parts}; group < (part + 1) * {groups} / {parts}; group++) {{",
        f"const int64_t j = group * {LANES};",
        f"const int count = {shape.outputs} - j < {LANES} ? (int)({shape.outputs} - j) : {LANES};",
        "int64_t r = 0;",
    ]
    own = f"{scales} + j * {shape.blocks}, (f32 *)(ahead + {shape.chunk * shape.prepared})" if shape.four else "0, 0"
    for side in dict.fromkeys((min(SIDE, shape.chunk), 1)):
        lines.append(
            f"for (; r + {side} <= rows; r += {side}) {_row_products(context, shape, side)}(bytes + r * {shape.padded}, "
            f"step + r * {shape.blocks}, ahead + r * {shape.prepared}, (const i8 *){w} + j * {shape.pitch}, {own}, count, "
            f"sums + r * {LANES});"
        )
    lines.append(f"for (r = 0; r < rows; r++) {{ f32x16 sum = load_f32(sums + r * {LANES});")
    if not shape.four:
        lines.append(f"sum = multiply_f32(sum, load_partial_{shape.scale.short}({scales} + j, count));")
    if bias is not None:
        lines.append(f"sum = add_f32(sum, load_partial_{bias.dtype.short}({context.access(bias).pointer} + j, count));")
    lines.append(f"store_partial_f32({target} + (row + r) * {shape.outputs} + j, sum, count); }}")
    return context.function("\n".join([*lines, "}", "}"]), TILE_PARAMETERS)


def _prepare(context: Context, shape: Shape) -> str:
    """The name of a function that prepares rows of activations: what the added 128 (per lane of a product) or 8 (per
    block, scaled) add to their sums, taken negative; for 4 bits also the steps of the two blocks of a product by lane."""
    name = f"prepare_{4 if shape.four else 8}_{shape.padded}"
    lines = [
        f"{STATIC} void {name}(const i8 *x, const f32 *step, const f32 *total, int64_t rows, i32 *ahead) {{",
        "(void)x; (void)step; (void)total;",
        f"for (int64_t r = 0; r < rows; r++, x += {shape.padded}, step += {shape.blocks}, total += {shape.blocks}, ahead += {shape.prepared}) {{",
    ]
    if shape.four:
        whole, rest = shape.blocks // LANES * LANES, shape.blocks % LANES
        for load, at, last in (("load", "b", ""), ("load_partial", str(whole), f", {rest}")):
            product = f"multiply_f32(multiply_f32({load}_f32(total + {at}{last}), broadcast_f32(-8)), {load}_f32(step + {at}{last}))"
            store = f"store_f32((f32 *)ahead + {at}, {product});"
            if last:
                lines += [store] if rest else []
            else:
                lines.append(f"for (int64_t b = 0; b < {whole}; b += {LANES}) {store}")
        lines.append(
            f"for (int64_t b = 0; b < {shape.blocks}; b += 2) store_f32((f32 *)ahead + {shape.offsets} + b * {LANES // 2}, "
            f"select_f32({_first_half()}, broadcast_f32(step[b]), broadcast_f32(step[b + 1])));"
        )
    else:
        ones = "broadcast_i32(0x01010101)"
        lines.append(
            f"for (int64_t b = 0; b < {shape.padded}; b += {BYTES}) store_i32(ahead + b / 4, multiply_i32("
            f"tw_dot_bytes(broadcast_i32(0), {ones}, load_i32((const i32 *)(x + b))), broadcast_i32(-128)));"
        )
    return context.shared(name, "\n".join([*lines, "}", "}", ""]), DOT)


def _first_half() -> str:
    """A mask of the lower 8 lanes."""
    return f"less_i32(iota_i32(), broadcast_i32({LANES // 2}))"


def _row_products(context: Context, shape: Shape, side: int) -> str:
    """The name of `sums[16 * r + q] = scaled sum over k of x[r][k] * w[q][k]` for `side` rows r and `count` rows q."""
    name = f"byte_products_{4 if shape.four else 8}_{shape.scale.short}_{side}x{shape.size}"
    lines = [
        f"{STATIC} void {name}(const i8 *x, const f32 *step, const i32 *ahead, const i8 *w, "
        f"const {memory(shape.scale)} *scale, f32 *kept, int count, f32 *sums) {{",
        f"f32x16 all[{side}][{LANES}]; (void)step; (void)scale; (void)kept;",
        f"for (int q = 0; q < count; q++, w += {shape.pitch}) {{",
        " ".join(f"f32x16 s{r}_0 = broadcast_f32(0), s{r}_1 = broadcast_f32(0);" for r in range(side)),
        *(_four(shape, side) if shape.four else _eight(shape, side)),
        *(f"all[{r}][q] = add_f32(s{r}_0, s{r}_1);" for r in range(side)),
        "}",
        f"for (int q = count; q < {LANES}; q++) {{",
        *(f"all[{r}][q] = broadcast_f32(0);" for r in range(side)),
        "}",
        *(f"store_f32(sums + {r * LANES}, sum_rows_f32(all[{r}]));" for r in range(side)),
    ]
    return context.shared(name, "\n".join([*lines, "}", ""]), DOT)


def _eight(shape: Shape, side: int) -> list[str]:
    """One row of 8-bit weights: 64 at a time, blocks in turn to two sums."""

    def block(at: str, number: str, chain: int, source: str) -> list[str]:
        lines = [f"{{ const i32x16 a = bitwise_xor_i32(load_i32((const i32 *)({source})), broadcast_i32((i32)0x80808080u));"]
        for r in range(side):
            start = f"load_i32(ahead + {r * shape.prepared} + ({at}) / 4)"
            product = f"tw_dot_bytes({start}, a, load_i32((const i32 *)(x + {r * shape.padded} + {at})))"
            scaled = f"broadcast_f32(step[{r * shape.blocks} + {number}])"
            lines.append(f"s{r}_{chain} = fma_f32(convert_i32_to_f32({product}), {scaled}, s{r}_{chain});")
        return [*lines, "}"]

    whole = shape.size // BYTES
    pairs = whole // 2 * 2
    lines = [f"for (int64_t b = 0; b < {pairs}; b += 2) {{"]
    lines += block(f"b * {BYTES}", "b", 0, f"w + b * {BYTES}")
    lines += block(f"(b + 1) * {BYTES}", "b + 1", 1, f"w + (b + 1) * {BYTES}")
    lines.append("}")
    if whole > pairs:
        lines += block(str(pairs * BYTES), str(pairs), 0, f"w + {pairs * BYTES}")
    if shape.size % BYTES:
        lines.append(f"{{ i8 tail[{BYTES}] __attribute__((aligned(64))) = {{0}};")
        lines.append(f"__builtin_memcpy(tail, w + {whole * BYTES}, {shape.size % BYTES});")
        lines += [*block(str(whole * BYTES), str(whole), whole % 2, "tail"), "}"]
    return lines


def _four(shape: Shape, side: int) -> list[str]:
    """One row of 4-bit weights: 128 at a time, low halves to one sum and high ones to the other."""
    whole, rest = shape.blocks // LANES * LANES, shape.blocks % LANES
    lines = [f"const {memory(shape.scale)} *const own = scale + q * {shape.blocks};"]

    def prepare(at: str, load: str, last: str) -> list[str]:
        """The row's scales as float32, and what the added 8 add, 16 blocks at once."""
        found = [f"{{ const f32x16 v = load{load}_{shape.scale.short}(own + {at}{last}); store_f32(kept + {at}, v);"]
        for r in range(side):
            offset = f"load{load}_f32((const f32 *)ahead + {r * shape.prepared} + {at}{last})"
            found.append(f"s{r}_0 = fma_f32(v, {offset}, s{r}_0);")
        return [*found, "}"]

    if whole:
        lines += [f"for (int64_t b = 0; b < {whole}; b += {LANES})", *prepare("b", "", "")]
    if rest:
        lines += prepare(str(whole), "_partial", f", {rest}")
    mask = "broadcast_i32(0x0f0f0f0f)"
    lines += [
        f"for (int64_t g = 0; g < {shape.padded // GROUP}; g++) {{",
        f"const i32x16 both = load_i32((const i32 *)(w + g * {BYTES}));",
        f"const i32x16 a0 = bitwise_and_i32(both, {mask});",
        f"const i32x16 a1 = bitwise_and_i32(right_shift_i32(both, broadcast_i32(4)), {mask});",
    ]
    for half in range(2):
        at = f"kept + g * {GROUP // BLOCK} + {2 * half}"
        lines.append(
            f"const f32x16 c{half} = select_f32({_first_half()}, broadcast_f32(({at})[0]), broadcast_f32(({at})[1]));"
        )
    for r in range(side):
        for half in range(2):
            place = f"x + {r * shape.padded} + g * {GROUP} + {half * BYTES}"
            product = f"tw_dot_bytes(broadcast_i32(0), a{half}, load_i32((const i32 *)({place})))"
            step = f"load_f32((const f32 *)ahead + {r * shape.prepared + shape.offsets} + (2 * g + {half}) * {LANES})"
            lines.append(f"s{r}_{half} = fma_f32(convert_i32_to_f32({product}), multiply_f32(c{half}, {step}), s{r}_{half});")
    return [*lines, "}"]
