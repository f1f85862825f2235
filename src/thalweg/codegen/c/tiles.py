"""Register tiles: the innermost loops of row-major products and convolutions, as C functions that kernels share.

A tile is `rows x vectors` numbers of 16 lanes that stay in registers while a sum runs; each step loads `vectors` vectors
of the right operand and broadcasts one number per row of the left one. The result goes to a small buffer in the first
cache, where the kernel that called finishes it. A processor with fewer registers walks over the sum several times with
parts of the tile: each number is still the same chain of multiply-adds, so its bits are the same.

Operands in 16-bit floating point are summed in float32. float16 becomes float32 when it is copied. bfloat16 is copied as
pairs of neighbours along the sum, two to a 32-bit lane, for the processor's instruction that multiplies such pairs.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from functools import cache

from thalweg.codegen.c.bindings import STATIC, Context
from thalweg.codegen.c.build import processor

Box = tuple[int, int, int, int]  # part of a tile: first row, end, first vector, end
Loop = Callable[[list[str], int, int], list[str]]  # around the steps of a part, by its rows and its first vector
ITEM = {"f32": 4, "f64": 8}
SUMS = {"bf16": "f32", "f16": "f32"}  # what products of an element type are summed in
COPIES = {"bf16": "u32", "f16": "f32"}  # the element type of copied operands
MEMORY = {"bf16": "uint16_t", "f16": "uint16_t"}  # the C type of an element in memory
ACCUMULATORS = {64: 24, 32: 12, 16: 24}  # registers for sums, by bytes of a register
MOST_ROWS = 12  # of a tile
DOT_SUMS = 16  # vectors of sums of dot products at once
FEW_ROWS = {1: 12, 2: 8, 3: 6, 4: 5, 5: 4}  # vectors of a tile with that many rows


def balanced(extent: int, most: int) -> tuple[int, int, int]:
    """`extent` in parts of at most `most` that differ by one: how many, the larger size, how many are of that size."""
    count = -(-extent // most)
    size = -(-extent // count)
    return count, size, count - (size * count - extent)


@cache
def register_bytes(machine: str) -> int:
    """Bytes of a vector register of a target. Tiles are cut to fit them; a wrong guess costs time only."""
    levels = {"x86-64-v4": 64, "x86-64-v3": 32, "x86-64": 16}
    if machine in levels:
        return levels[machine]
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return 16
    features = processor().lower()
    return 32 if "avx2" in features and "avx512vl" not in features else 64


def tile_shape(rows: int, vectors: int, element: str, machine: str) -> tuple[int, int]:
    """The most rows and vectors of the tiles that a result of rows x vectors is cut into (measured: tall tiles, whose
    vectors come from further away, of at most four vectors; wide ones where rows are few)."""
    nbytes = register_bytes(machine)
    budget = max(1, ACCUMULATORS[nbytes] * nbytes // (16 * ITEM[element]))  # vectors that fit into the registers for sums
    if rows in FEW_ROWS:
        return rows, balanced(vectors, max(1, min(FEW_ROWS[rows], budget // rows)))[1]
    width = balanced(vectors, max(1, min(4, budget // 6)))[1]
    return balanced(rows, min(MOST_ROWS, budget // width))[1], width


def product_tile(context: Context, element: str, rows: int, vectors: int) -> str:
    """The name of `out[r][lane] = sum over k < count of a[r * row + k * step] * b[k * pitch + lane]`.

    `out` has rows of `width`; with `add` the sum is added to it. For "bf16" each k is a pair.
    """
    name = f"product_{element}_{rows}x{vectors}"
    copied, summed = COPIES.get(element, element), SUMS.get(element, element)
    head = f"int64_t row, int64_t step, const {copied} *b, int64_t pitch, int64_t count, {summed} *out, int64_t width, int add"

    def loop(steps: list[str], count: int, q: int) -> list[str]:
        return [
            f"const {copied} *y = b + {q * 16}; int64_t x = 0;",
            "for (int64_t k = 0; k < count; k++, x += step, y += pitch) {",
            *steps,
            "}",
        ]

    text = _function(element, rows, vectors, f"{STATIC} void {name}(const {copied} *a, {head})", "a + {r} * row", loop)
    return context.shared(name, text)


def window_tile(context: Context, element: str, rows: int, vectors: int) -> str:
    """The name of `out[r][lane] = sum over c < outer, t < inner of
    a[row[r] + c * a_step + taps[2 * t]] * b[c * b_step + taps[2 * t + 1] + lane]`, else as `product_tile`."""
    name = f"window_{element}_{rows}x{vectors}"
    head = (
        f"const int64_t *row, int64_t a_step, const {element} *b, int64_t b_step, int64_t outer, "
        f"const int64_t *taps, int64_t inner, {element} *out, int64_t width, int add"
    )

    def loop(steps: list[str], count: int, q: int) -> list[str]:
        return [
            f"const {element} *from = b + {q * 16}; int64_t shift = 0;",
            "for (int64_t c = 0; c < outer; c++, from += b_step, shift += a_step) {",
            # rows of a weight's transpose are far apart: no hardware fetches them ahead
            *(f"__builtin_prefetch(x{r} + shift + 8 * a_step);" for r in range(count)),
            "for (int64_t t = 0; t < inner; t++) {",
            f"const int64_t x = shift + taps[2 * t]; const {element} *y = from + taps[2 * t + 1];",
            *steps,
            "}",
            "}",
        ]

    text = _function(element, rows, vectors, f"{STATIC} void {name}(const {element} *a, {head})", "a + row[{r}]", loop)
    return context.shared(name, text)


def dots_width(rows: int, element: str, machine: str) -> int:
    """How many rows of the right operand a function of `row_dots` takes at once: a power of two, at most 8."""
    nbytes = register_bytes(machine)
    budget = min(DOT_SUMS, ACCUMULATORS[nbytes] * nbytes // (16 * ITEM[element]))
    return max(width for width in (1, 2, 4, 8) if width == 1 or width * rows <= budget)


def row_dots(context: Context, element: str, rows: int, columns: int) -> str:
    """The name of `out[16 * r + q] = sum over k < count of a[r * row + k] * b[q * count + k]`, in 16 lanes along k (of
    pairs, for "bf16")."""
    name = f"row_dots_{element}_{rows}x{columns}"
    pairs = [(r, q) for r in range(rows) for q in range(columns)]
    stored, summed = MEMORY.get(element, element), SUMS.get(element, element)
    vector, load, step, multiply = (f"{summed}x16", f"load_{element}", 16, f"fma_{summed}")
    partial = f"load_partial_{element}"
    if element == "bf16":
        vector, load, step, multiply, partial = "u32x16", "load_pairs_bf16", 32, "dot_bf16", "load_partial_pairs_bf16"
    lines = [f"{STATIC} void {name}(const {stored} *a, int64_t row, const {stored} *b, int64_t count, {summed} *out) {{"]
    lines.append(" ".join(f"{summed}x16 s{r}_{q} = broadcast_{summed}(0);" for r, q in pairs))
    lines += [f"const {stored} *const x{r} = a + {r} * row;" for r in range(rows)]
    lines += [f"const {stored} *const y{q} = b + {q} * count;" for q in range(columns)]
    lines.append("int64_t k = 0;")
    for test, function, end in (
        (f"for (; k + {step} <= count; k += {step})", load, ""),
        ("if (k < count)", partial, ", left"),
    ):
        lines.append(f"{test} {{ {'const int left = (int)(count - k);' if end else ''}")
        lines += [f"const {vector} w{r} = {function}(x{r} + k{end});" for r in range(rows)]
        for q in range(columns):
            products = " ".join(f"s{r}_{q} = {multiply}(w{r}, y, s{r}_{q});" for r in range(rows))
            lines.append(f"{{ const {vector} y = {function}(y{q} + k{end}); {products} }}")
        lines.append("}")
    if summed == "f32" and len(pairs) > 4:  # 16 sums at once
        filled = [f"s{r}_{q}" for r, q in pairs] + ["broadcast_f32(0)"] * (16 - len(pairs))
        lines.append(f"f32x16 sums[16] = {{{', '.join(filled)}}}; const f32_lanes sum = {{sum_rows_f32(sums)}};")
        lines += [f"out[{16 * r + q}] = sum.lane[{number}];" for number, (r, q) in enumerate(pairs)]
    else:
        lines += [f"out[{16 * r + q}] = sum_{summed}(s{r}_{q});" for r, q in pairs]
    return context.shared(name, "\n".join([*lines, "}", ""]))


def dots_tile(context: Context, element: str, rows: int) -> str:
    """The name of `out[16 * r + lane] = sum over c < outer, x < inner with x % 16 == lane of
    a[row[r] + c * a_step + x] * b[c * b_step + x]`; with `add` the sums are added."""
    name = f"dots_{element}_{rows}"
    head = (
        f"{STATIC} void {name}(const {element} *a, const int64_t *row, int64_t a_step, const {element} *b, int64_t b_step, "
        f"int64_t outer, int64_t inner, {element} *out, int add) {{"
    )

    def part(box: Box) -> list[str]:
        numbers = range(box[0], box[1])
        lines = ["{", " ".join(f"{element}x16 s{r} = broadcast_{element}(0);" for r in numbers)]
        lines += [f"const {element} *x{r} = a + row[{r}];" for r in numbers]
        lines += [f"const {element} *y = b;", "for (int64_t c = 0; c < outer; c++, y += b_step) {", "int64_t k = 0;"]
        for test, load, end in (("for (; k + 16 <= inner; k += 16)", "load", ""), ("if (k < inner)", "load_partial", ", left")):
            lines.append(f"{test} {{ {'const int left = (int)(inner - k);' if end else ''}")
            lines.append(f"const {element}x16 w = {load}_{element}(y + k{end});")
            lines += [f"s{r} = fma_{element}({load}_{element}(x{r} + k{end}), w, s{r});" for r in numbers]
            lines.append("}")
        lines += [f"x{r} += a_step;" for r in numbers]
        lines.append("}")
        lines += [f"if (add) s{r} = add_{element}(load_{element}(out + {16 * r}), s{r});" for r in numbers]
        lines += [f"store_{element}(out + {16 * r}, s{r});" for r in numbers]
        return [*lines, "}"]

    return context.shared(name, _by_registers(element, rows, 1, head, part))


def pack_rows(context: Context, element: str) -> str:
    """The name of `to[r * pitch + c] = from[r * stride + c]` for `rows` rows and `columns` columns, zero for columns from
    there to `width` (up to 15 further ones are written). For "bf16" two rows become one of pairs."""
    name = f"pack_rows_{element}"
    stored, copied = MEMORY.get(element, element), COPIES.get(element, element)
    step, advance = (2, "2 * stride") if element == "bf16" else (1, "stride")
    whole, part = f"load_{element}(from + c)", f"load_partial_{element}(from + c, (int)(columns - c))"
    if element == "bf16":  # behind the last of an odd number of rows comes one of zeros
        whole = "join_bf16(load_u16(from + c), r + 1 < rows ? load_u16(from + stride + c) : broadcast_u16(0))"
        part = (
            "join_bf16(load_partial_u16(from + c, (int)(columns - c)), "
            "load_partial_u16(from + stride + c, r + 1 < rows ? (int)(columns - c) : 0))"
        )
    text = f"""{STATIC} void {name}(const {stored} *from, int64_t stride, int64_t rows, int64_t columns, int64_t width, {copied} *to, int64_t pitch) {{
const int64_t next = rows * stride;
for (int64_t r = 0; r < rows; r += {step}, from += {advance}, to += pitch) {{
int64_t c = 0;
for (; c + 16 <= columns; c += 16) {{
__builtin_prefetch(from + next + c);
store_{copied}(to + c, {whole});
}}
if (c < columns) {{ store_{copied}(to + c, {part}); c += 16; }}
for (; c < width; c += 16) store_{copied}(to + c, broadcast_{copied}(0));
}}
}}
"""
    return context.shared(name, text)


def pack_pairs(context: Context) -> str:
    """The name of `to[r * pitch + c] = the pair from[r * stride + 2 * c], from[r * stride + 2 * c + 1]` of bfloat16 for
    `rows` rows and `columns` numbers, zero behind the last of an odd number (up to 15 further pairs are written)."""
    text = f"""{STATIC} void pack_pairs(const uint16_t *from, int64_t stride, int64_t rows, int64_t columns, u32 *to, int64_t pitch) {{
const int64_t next = rows * stride;
for (int64_t r = 0; r < rows; r++, from += stride, to += pitch) {{
int64_t c = 0;
for (; c + 32 <= columns; c += 32) {{
__builtin_prefetch(from + next + c);
store_u32(to + c / 2, load_pairs_bf16(from + c));
}}
if (c < columns) store_u32(to + c / 2, load_partial_pairs_bf16(from + c, (int)(columns - c)));
}}
}}
"""
    return context.shared("pack_pairs", text)


def pack_transposed(context: Context, element: str) -> str:
    """The name of `to[k * width + column] = from[column * stride + k]` for `count` steps k and `columns` columns; zero for
    columns from there to `width`. For "bf16" two steps become one of pairs."""
    name = f"pack_transposed_{element}"
    stored, copied = MEMORY.get(element, element), COPIES.get(element, element)
    head = f"{STATIC} void {name}(const {stored} *from, int64_t stride, int64_t count, int64_t columns, {copied} *to, int64_t width) {{"
    if element == "f64":
        body = """for (int64_t c = 0; c < width; c += 16) for (int64_t k = 0; k < count; k++)
for (int64_t l = 0; l < 16; l++) to[k * width + c + l] = c + l < columns ? from[(c + l) * stride + k] : 0;
"""
        return context.shared(name, f"{head}\n{body}}}\n")
    pair = 2 if element == "bf16" else 1
    load, partial, store = f"load_{element}({{}})", f"load_partial_{element}({{}}, steps)", "store_f32({}, {});"
    if pair == 2:  # lanes are only moved: their bits may as well be those of float32
        load = "from_bits_f32(convert_u32_to_i32(load_pairs_bf16({})))"
        partial = "from_bits_f32(convert_u32_to_i32(load_partial_pairs_bf16({}, steps)))"
        store = "store_u32({}, convert_i32_to_u32(bits_of_f32({})));"
    # sixteen statements instead of loops: the compiler keeps the block in registers then
    rows = [f"x + {lane} * stride" for lane in range(16)]
    whole = ", ".join(load.format(row) for row in rows)
    rest = ", ".join(f"c + {i} < columns ? {partial.format(row)} : broadcast_f32(0)" for i, row in enumerate(rows))
    stores = " ".join(store.format(f"y + {i} * width", f"t[{i}]") for i in range(16))
    body = f"""for (int64_t c = 0; c < width; c += 16) for (int64_t k = 0; k < count; k += {16 * pair}) {{
const {stored} *const x = from + c * stride + k;
{copied} *const y = to + k / {pair} * width + c;
if (c + 16 <= columns && k + {16 * pair} <= count) {{
f32x16 t[16] = {{{whole}}};
transpose_f32(t);
{stores}
continue;
}}
const int steps = count - k < {16 * pair} ? (int)(count - k) : {16 * pair};
f32x16 t[16] = {{{rest}}};
transpose_f32(t);
if (steps > {15 * pair}) {{ {stores} continue; }}
for (int l = 0; l * {pair} < steps; l++) {store.format("y + l * width", "t[l]")}
}}
"""
    return context.shared(name, f"{head}\n{body}}}\n")


def transpose_rows(context: Context, element: str) -> str:
    """The name of `to[r * pitch + k] = from[k * stride + r]` for `rows` rows and `count` steps k; float32 zero behind the
    steps to `pitch`."""
    if element == "f32":
        return pack_transposed(context, element)
    name, stored = f"transpose_rows_{element}", MEMORY.get(element, element)
    text = f"""{STATIC} void {name}(const {stored} *from, int64_t stride, int64_t rows, int64_t count, {stored} *to, int64_t pitch) {{
for (int64_t k = 0; k < count; k++) for (int64_t r = 0; r < rows; r++) to[r * pitch + k] = from[k * stride + r];
}}
"""
    return context.shared(name, text)


def _function(element: str, rows: int, vectors: int, head: str, left: str, loop: Loop) -> str:
    """A tile function."""
    return _by_registers(element, rows, vectors, head + " {", lambda part: _part(element, part, left, loop))


def _by_registers(element: str, rows: int, vectors: int, head: str, part: Callable[[Box], list[str]]) -> str:
    """A function that works, for each width of registers, on the parts of a tile that fit into them, one by one."""
    variants: list[tuple[list[int], list[Box]]] = []
    for nbytes in ACCUMULATORS:
        boxes = list(_parts(rows, vectors, nbytes, 16 * ITEM[SUMS.get(element, element)] // nbytes))
        if variants and variants[-1][1] == boxes:
            variants[-1][0].append(nbytes)
        else:
            variants.append(([nbytes], boxes))
    lines = [head]
    for number, (sizes, boxes) in enumerate(variants):
        if len(variants) > 1:
            test = " || ".join(f"TW_BYTES == {size}" for size in sizes)
            lines.append("#else" if number == len(variants) - 1 else f"#{'el' if number else ''}if {test}")
        for box in boxes:
            lines += part(box)
    if len(variants) > 1:
        lines.append("#endif")
    return "\n".join([*lines, "}", ""])


def _parts(rows: int, vectors: int, nbytes: int, registers: int) -> Iterator[Box]:
    """Parts of a tile whose sums fit into registers of `nbytes`."""
    budget = max(1, ACCUMULATORS[nbytes] // registers)

    def cost(size: tuple[int, int]) -> float:
        r, q = size
        return -(-rows // r) * -(-vectors // q) * (max(r * q, 0.9 * (r + q)) + 0.1 * (r + q))

    sizes = [(r, q) for r in range(1, rows + 1) for q in range(1, vectors + 1) if r * q <= budget]
    r, q = min(sizes, key=cost)
    for row in range(0, rows, r):
        for vector in range(0, vectors, q):
            yield row, min(row + r, rows), vector, min(vector + q, vectors)


def _part(element: str, part: Box, left: str, loop: Loop) -> list[str]:
    row, row_end, vector, vector_end = part
    rows, vectors = range(row_end - row), range(vector_end - vector)
    pairs = [(r, q) for r in rows for q in vectors]
    copied, summed = COPIES.get(element, element), SUMS.get(element, element)
    multiply = "dot_bf16" if element == "bf16" else f"fma_{summed}"
    lines = ["{", " ".join(f"{summed}x16 s{r}_{q} = broadcast_{summed}(0);" for r, q in pairs)]
    lines += [f"const {copied} *const x{r} = {left.format(r=r + row)};" for r in rows]
    loads = [f"const {copied}x16 y{q} = load_{copied}(y + {q * 16});" for q in vectors]
    spreads = [f"const {copied}x16 w{r} = broadcast_{copied}(x{r}[x]);" for r in rows]
    if len(rows) >= len(vectors):
        steps = loads + [
            f"{{ {spreads[r]} " + " ".join(f"s{r}_{q} = {multiply}(w{r}, y{q}, s{r}_{q});" for q in vectors) + " }"
            for r in rows
        ]
    else:
        steps = spreads + [
            f"{{ {loads[q]} " + " ".join(f"s{r}_{q} = {multiply}(w{r}, y{q}, s{r}_{q});" for r in rows) + " }"
            for q in vectors
        ]
    lines += loop(steps, len(rows), vector)
    at = [f"out + {r + row} * width + {(q + vector) * 16}" for r, q in pairs]
    lines.append("if (add) {")
    lines += [f"s{r}_{q} = add_{summed}(load_{summed}({a}), s{r}_{q});" for (r, q), a in zip(pairs, at, strict=True)]
    lines.append("}")
    lines += [f"store_{summed}({a}, s{r}_{q});" for (r, q), a in zip(pairs, at, strict=True)]
    return [*lines, "}"]
