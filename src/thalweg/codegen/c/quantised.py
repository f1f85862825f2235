"""Products with weights of 8 and 4 bits, read once and from front to back.

In: a kernel whose anchor is `quantised_linear`. Out: its C function. An item is up to 16 rows of activations and some
groups of 16 rows of the weight. The activations become bytes first, in scratch; then each row of the weight meets them
64 bytes at a time: products of bytes are summed exactly in 32-bit integers (4 of them per lane), made float32, scaled
and added in two vectors of 16 lanes. An unsigned byte is wanted on one side: 8-bit weights have 128 added, 4-bit ones 8,
which is taken off again by a sum of the activations that is known before. Orders follow from shapes alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from thalweg.codegen.c.bindings import STATIC, TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.expressions import memory
from thalweg.graph import Node
from thalweg.ops.core import Composite
from thalweg.ops.quantised import BLOCK, BYTES, GROUP, LARGEST, groups_of
from thalweg.plan import LANES, Kernel, aligned
from thalweg.types import DType, uint8

CHUNK = 16  # rows of activations that are made bytes at once
SIDE = 4  # of them that meet a row of the weight at once


@dataclass(frozen=True)
class Shape:
    """x [rows, size] with a weight [outputs, size]."""

    rows: int
    size: int
    outputs: int
    four: bool  # bits, or eight
    dtype: DType  # of x
    scale: DType

    @property
    def padded(self) -> int:
        """Elements of a row of activations as bytes."""
        return groups_of(self.size) * GROUP if self.four else -(-self.size // BYTES) * BYTES

    @property
    def block(self) -> int:
        """Activations that share a scale."""
        return BLOCK if self.four else BYTES

    @property
    def pitch(self) -> int:
        """Bytes from one row of the weight to the next."""
        return self.padded // 2 if self.four else self.size

    @property
    def chunk(self) -> int:
        return min(self.rows, CHUNK)

    @property
    def scales(self) -> int:
        """Floats that scale the sums of a row of activations: for 4 bits a vector for every 64 of them."""
        return self.padded // BYTES * (LANES if self.four else 1)

    @property
    def offsets(self) -> int:
        """32-bit numbers for what the added 128 or 8 add to the sums of a row of activations."""
        return -(-self.padded // BLOCK // LANES) * LANES if self.four else self.padded // 4


def shape_of(anchor: Node) -> Shape:
    """The product that a kernel is."""
    x, weight, scale = anchor.inputs[:3]
    size = x.shape[-1]
    return Shape(math.prod(x.shape[:-1]), size, weight.shape[0], weight.dtype is uint8, x.dtype, scale.dtype)


def workspace(kernel: Kernel) -> int:
    """Bytes for activations as bytes, their scales, what the added 128 or 8 add, and the scales of a weight's row."""
    assert kernel.anchor is not None
    shape = shape_of(kernel.anchor)
    return shape.chunk * sum(_parts(shape)) + _scale_bytes(shape)


def _parts(shape: Shape) -> tuple[int, int, int]:
    return aligned(shape.padded), aligned(shape.scales * 4), aligned(shape.offsets * 4)


def _scale_bytes(shape: Shape) -> int:
    return aligned((shape.padded // BLOCK + LANES) * 4) if shape.four else 0


def emit(context: Context) -> KernelText:
    """The kernel: items of (chunk of rows, part of the groups of outputs)."""
    kernel = context.kernel
    anchor = kernel.anchor
    assert anchor is not None and isinstance(anchor.op, Composite)
    shape = shape_of(anchor)
    x, weight, scale, bias = anchor.op.arguments(anchor.inputs)
    pointers = [context.access(value).pointer for value in (x, weight, scale)]
    target = context.access(kernel.roots[0], write=True).pointer
    scratch = context.pointer(kernel.detail["workspace"], write=True)
    tasks, chunks = kernel.tasks, -(-shape.rows // CHUNK)
    groups = -(-shape.outputs // LANES)
    parts = max(1, min(groups, -(-tasks // chunks)))
    items = chunks * parts
    bytes_, scales, _ = (part * shape.chunk for part in _parts(shape))
    ctype, short, size = memory(shape.dtype), shape.dtype.short, shape.size
    lines = [
        "(void)error; int64_t ready = -1;",
        f"i8 *const own = (i8 *){scratch}; f32 *const step = (f32 *)(own + {bytes_});",
        f"i32 *const offset = (i32 *)((char *)step + {scales});",
        f"f32 sums[{CHUNK * LANES}] __attribute__((aligned(64)));",
        f"for (int64_t item = task * {items} / {tasks}; item < (task + 1) * {items} / {tasks}; item++) {{",
        f"const int64_t chunk = item / {parts}, part = item % {parts}, row = chunk * {CHUNK};",
        f"const int64_t rows = {shape.rows} - row < {CHUNK} ? {shape.rows} - row : {CHUNK};",
        "if (ready != chunk) {",
        f"for (int64_t r = 0; r < rows; r++) {_to_bytes(context, shape)}({pointers[0]} + (row + r) * {size}, "
        f"own + r * {_parts(shape)[0]}, step + r * {_parts(shape)[1] // 4}, offset + r * {_parts(shape)[2] // 4});",
        "ready = chunk;",
        "}",
        f"for (int64_t group = part * {groups} / {parts}; group < (part + 1) * {groups} / {parts}; group++) {{",
        f"const int64_t j = group * {LANES};",
        f"const int count = {shape.outputs} - j < {LANES} ? (int)({shape.outputs} - j) : {LANES};",
        "int64_t r = 0;",
    ]
    given = f"own + r * {_parts(shape)[0]}, step + r * {_parts(shape)[1] // 4}, offset + r * {_parts(shape)[2] // 4}"
    for side in dict.fromkeys((min(SIDE, shape.chunk), 1)):
        columns = f"{pointers[2]} + j * {shape.padded // BLOCK}" if shape.four else "0"
        more = f", (f32 *)((char *)offset + {shape.chunk * _parts(shape)[2]})" if shape.four else ""
        lines.append(
            f"for (; r + {side} <= rows; r += {side}) {_row_products(context, shape, side)}({given}, "
            f"(const i8 *){pointers[1]} + j * {shape.pitch}, {columns}, count, sums + r * {LANES}{more});"
        )
    lines.append("for (r = 0; r < rows; r++) {")
    lines.append(f"f32x16 sum = load_f32(sums + r * {LANES});")
    if not shape.four:
        lines.append(f"sum = multiply_f32(sum, load_partial_{shape.scale.short}({pointers[2]} + j, count));")
    if bias is not None:
        lines.append(f"sum = add_f32(sum, load_partial_{bias.dtype.short}({context.access(bias).pointer} + j, count));")
    lines.append(f"store_partial_{short}(({ctype} *){target} + (row + r) * {shape.outputs} + j, sum, count);")
    return context.function("\n".join([*lines, "}", "}", "}"]), TILE_PARAMETERS)


def _to_bytes(context: Context, shape: Shape) -> str:
    """The name of a function that makes a row of activations bytes, with their scales and offsets."""
    short, ctype, size = shape.dtype.short, memory(shape.dtype), shape.size
    name = f"to_bytes_{short}_{4 if shape.four else 8}_{size}"
    vectors = shape.block // LANES
    load = [f"const f32x16 v{c} = load_{short}(x + b + {c * LANES});" for c in range(vectors)]
    partial = [
        f"const int n{c} = {size} - b - {c * LANES} < 0 ? 0 : {size} - b - {c * LANES} < {LANES} ? (int)({size} - b - "
        f"{c * LANES}) : {LANES}; const f32x16 v{c} = n{c} ? load_partial_{short}(x + b + {c * LANES}, n{c}) : "
        "broadcast_f32(0);"
        for c in range(vectors)
    ]
    top = "absolute_f32(v0)"
    for c in range(1, vectors):
        top = f"maximum_f32({top}, absolute_f32(v{c}))"
    convert = [
        f"store_i8(y + b + {c * LANES}, convert_f32_to_i8(rint_f32(divide_f32(v{c}, divisor))));" for c in range(vectors)
    ]
    body = [
        f"const f32 scale = max_f32({top}) / {LARGEST}.0f;",
        "const f32x16 divisor = broadcast_f32(scale > 0 || scale != scale ? scale : 1);",
        *convert,
    ]
    ones = "broadcast_i32(0x01010101)"
    if shape.four:
        body += [
            f"for (int l = 0; l < {LANES // 2}; l++) step[b / {BYTES} * {LANES} + b % {BYTES} / {BLOCK} * {LANES // 2} + l] = scale;",
            f"i32 total = 0; for (int l = 0; l < {BLOCK}; l++) total += y[b + l];",
            f"((f32 *)offset)[b / {BLOCK}] = -8.0f * (f32)total * scale;",
        ]
    else:
        body += [
            f"step[b / {BYTES}] = scale;",
            f"store_i32(offset + b / 4, multiply_i32(tw_dot_bytes(broadcast_i32(0), {ones}, load_i32((const i32 *)(y + b))),"
            " broadcast_i32(-128)));",
        ]
    whole = size // shape.block * shape.block
    lines = [
        f"{STATIC} void {name}(const {ctype} *x, i8 *y, f32 *step, i32 *offset) {{",
        f"for (int64_t b = 0; b < {whole}; b += {shape.block}) {{",
        *load,
        *body,
        "}",
    ]
    if whole < shape.padded:
        lines += [f"for (int64_t b = {whole}; b < {shape.padded}; b += {shape.block}) {{", *partial, *body, "}"]
    if shape.four:
        first, end = shape.padded // BLOCK, shape.offsets
        lines.append(f"for (int64_t b = {first}; b < {end}; b++) ((f32 *)offset)[b] = 0;")
    return context.shared(name, "\n".join([*lines, "}", ""]), ("tw_dot_bytes",))


def _row_products(context: Context, shape: Shape, side: int) -> str:
    """The name of `sums[16 * r + q] = scaled sum over k of x[r][k] * w[q][k]` for `side` rows r and `count` rows q."""
    bits = 4 if shape.four else 8
    name = f"byte_products_{bits}_{shape.scale.short}_{side}x{shape.size}_{shape.chunk}"
    kept = ", f32 *kept" if shape.four else ""
    lines = [
        f"{STATIC} void {name}(const i8 *x, const f32 *step, const i32 *offset, const i8 *w, const {memory(shape.scale)} *scale, "
        f"int count, f32 *sums{kept}) {{",
        f"f32x16 all[{side}][{LANES}]; (void)scale;",
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
    return context.shared(name, "\n".join([*lines, "}", ""]), ("tw_dot_bytes",))


def _eight(shape: Shape, side: int) -> list[str]:
    """One row of 8-bit weights: 64 at a time, blocks in turn to two sums."""
    pitch, scales, offsets = _parts(shape)

    def block(at: str, number: str, chain: int, source: str) -> list[str]:
        lines = [f"{{ const i32x16 a = bitwise_xor_i32(load_i32((const i32 *)({source})), broadcast_i32((i32)0x80808080u));"]
        for r in range(side):
            start = f"load_i32(offset + {r * offsets // 4} + ({at}) / 4)"
            product = f"tw_dot_bytes({start}, a, load_i32((const i32 *)(x + {r * pitch} + {at})))"
            scaled = f"broadcast_f32(step[{r * scales // 4} + {number}])"
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
        rest = shape.size % BYTES
        lines.append(f"{{ i8 tail[{BYTES}] __attribute__((aligned(64))) = {{0}};")
        lines.append(f"__builtin_memcpy(tail, w + {whole * BYTES}, {rest});")
        lines += [*block(str(whole * BYTES), str(whole), whole % 2, "tail"), "}"]
    return lines


def _four(shape: Shape, side: int) -> list[str]:
    """One row of 4-bit weights: 128 at a time, low halves to one sum and high ones to the other."""
    pitch, scales, offsets = _parts(shape)
    blocks = shape.padded // BLOCK
    whole = blocks // LANES * LANES
    lines = [f"const {memory(shape.scale)} *const own = scale + q * {blocks};"]

    def prepare(at: str, load: str) -> list[str]:
        """The row's scales as float32, and what the added 8 add, in all blocks at once."""
        found = [f"{{ const f32x16 v = {load}; store_f32(kept + {at}, v);"]
        for r in range(side):
            found.append(f"s{r}_0 = fma_f32(v, load_f32((const f32 *)offset + {r * offsets // 4} + {at}), s{r}_0);")
        return [*found, "}"]

    if whole:
        lines += [f"for (int64_t b = 0; b < {whole}; b += {LANES})", *prepare("b", f"load_{shape.scale.short}(own + b)")]
    if whole < blocks:
        lines += prepare(str(whole), f"load_partial_{shape.scale.short}(own + {whole}, {blocks - whole})")
    mask = "broadcast_i32(0x0f0f0f0f)"
    lines += [
        f"for (int64_t g = 0; g < {groups_of(shape.size)}; g++) {{",
        f"const i32x16 both = load_i32((const i32 *)(w + g * {BYTES}));",
        f"const i32x16 a0 = bitwise_and_i32(both, {mask});",
        f"const i32x16 a1 = bitwise_and_i32(right_shift_i32(both, broadcast_i32(4)), {mask});",
    ]
    first = f"less_i32(iota_i32(), broadcast_i32({LANES // 2}))"
    for half in range(2):
        at = f"kept + g * {GROUP // BLOCK} + {2 * half}"
        lines.append(f"const f32x16 c{half} = select_f32({first}, broadcast_f32(({at})[0]), broadcast_f32(({at})[1]));")
    for r in range(side):
        for half in range(2):
            place = f"g * {GROUP} + {half * BYTES}"
            product = f"tw_dot_bytes(broadcast_i32(0), a{half}, load_i32((const i32 *)(x + {r * pitch} + {place})))"
            factor = f"multiply_f32(c{half}, load_f32(step + {r * scales // 4} + (2 * g + {half}) * {LANES}))"
            lines.append(f"s{r}_{half} = fma_f32(convert_i32_to_f32({product}), {factor}, s{r}_{half});")
    return [*lines, "}"]
