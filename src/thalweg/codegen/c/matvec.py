"""Few rows times a weight as layers store it, [out, in]: what a decoder does with each token.

The weight is read once and from front to back, row after row, which is what memory gives fastest (several rows side
by side reach two thirds of it); each row meets all rows of the left operand, which stay in the first cache. A sum runs
in four vectors of 16 lanes, joined pairwise. 16-bit operands are read as float32. Every order follows from shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from thalweg.codegen.c.bindings import STATIC, TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.expressions import Expression, memory, register
from thalweg.codegen.c.nests import store_all
from thalweg.codegen.loops import LANE, constant, unravel, variable
from thalweg.graph import Value
from thalweg.plan import LANES, Kernel, aligned
from thalweg.types import DType

ROWS = 4  # rows of the left operand, at most
LEAST = 48  # elements of a sum, at least: shorter ones are better off in register tiles
CHAINS = 4  # vectors in which a sum runs


@dataclass(frozen=True)
class Shape:
    """`lead` products of [m, k] with the transpose of [n, k] beside each other."""

    lead: int
    m: int
    n: int
    k: int
    dtype: DType

    @property
    def kind(self) -> str:
        """The element type of the sums."""
        return register(self.dtype)


def shape_of(kernel: Kernel) -> Shape | None:
    """The product that a kernel is, or None where it is none for this file."""
    assert kernel.anchor is not None
    op: Any = kernel.anchor.op
    a = kernel.anchor.inputs[0]
    *lead, m, n = kernel.anchor.outputs[0].shape
    k = a.shape[-1]
    fits = op.transpose_b and not op.transpose_a and 0 < m <= ROWS and k >= LEAST and n > 0
    return Shape(math.prod(lead), m, n, k, a.dtype) if fits and a.dtype.is_floating else None


def workspace(shape: Shape) -> int:
    """Bytes of 16-bit rows as float32."""
    return aligned(shape.m * _pitch(shape) * 4) if shape.dtype.itemsize == 2 else 0


def _pitch(shape: Shape) -> int:
    """Elements from one row of the left operand to the next."""
    return -(-shape.k // LANES) * LANES if shape.dtype.itemsize == 2 else shape.k


def emit(context: Context, shape: Shape) -> KernelText:
    """16 outputs per item, then the epilogue on a vector of them."""
    kernel = context.kernel
    assert kernel.anchor is not None
    accesses = context.reads()
    outputs = [(root, context.access(root, write=True)) for root in kernel.roots]
    a, b = (accesses[id(value)].pointer for value in kernel.anchor.inputs)
    kind, ctype = shape.kind, memory(shape.dtype)
    groups, tasks = -(-shape.n // LANES), kernel.tasks
    items = shape.lead * groups
    lines = [
        "(void)error;",
        f"{kind} to[{shape.m * LANES}] __attribute__((aligned(64)));",
        "int64_t known = -1; (void)known;",
        f"for (int64_t item = task * {items} / {tasks}; item < (task + 1) * {items} / {tasks}; item++) {{",
        f"const int64_t lead = item / {groups}, j = item % {groups} * {LANES}; (void)lead;",
        f"const int64_t count = {shape.n} - j < {LANES} ? {shape.n} - j : {LANES};",
        f"const {ctype} *const given = {a} + lead * {shape.m * shape.k};",
        f"const {ctype} *const weight = {b} + (lead * {shape.n} + j) * {shape.k};",
    ]
    rows = "given"
    if shape.dtype.itemsize == 2:
        rows = "wide"
        scratch = context.pointer(kernel.detail["workspace"], write=True)
        lines += [
            f"f32 *const wide = (f32 *){scratch};",
            f"if (known != lead) {{ {_widen(context, shape)}(given, wide); known = lead; }}",
        ]
    lines.append(f"{_row_products(context, shape)}({rows}, weight, count, to);")
    for r in range(shape.m):
        lines += _finish(context, shape, accesses, outputs, r)
    return context.function("\n".join([*lines, "}"]), TILE_PARAMETERS)


def _finish(
    context: Context, shape: Shape, accesses: dict[int, Any], outputs: list[tuple[Value, Any]], row: int
) -> list[str]:
    """One row of 16 outputs through the epilogue to memory."""
    assert context.kernel.anchor is not None
    result = context.kernel.anchor.outputs[0]
    lines = [f"{{ const {shape.kind}x16 sum = load_{shape.kind}(to + {row * LANES});"]
    rest = shape.n % LANES
    bodies = ([None] if shape.n >= LANES else []) + ([str(rest)] if rest else [])
    for number, partial in enumerate(bodies):
        extents = {"lead": shape.lead, "j": max(shape.n - LANES + 1, 1), LANE: min(shape.n, LANES)}
        emitter = context.emitter(extents, accesses)
        emitter.partial = partial
        emitter.given[id(result)] = Expression("sum", shape.kind)
        lead = unravel(variable("lead"), result.shape[:-2], extents)
        store_all(emitter, outputs, (*lead, constant(row), variable("j") + variable(LANE)))
        context.functions |= emitter.functions
        test = "else " if number else f"if (count == {LANES}) " if len(bodies) == 2 else ""
        lines += [test + "{", *emitter.lines, "}"]
    return [*lines, "}"]


def _widen(context: Context, shape: Shape) -> str:
    """The name of a function that writes 16-bit rows as float32 rows, filled up with zeros."""
    short = shape.dtype.short
    name = f"widen_{short}_{shape.m}x{shape.k}"
    whole, rest = shape.k // LANES * LANES, shape.k % LANES
    last = f"store_f32(y + {whole}, load_partial_{short}(x + {whole}, {rest}));" if rest else ""
    text = f"""{STATIC} void {name}(const uint16_t *x, f32 *y) {{
for (int r = 0; r < {shape.m}; r++, x += {shape.k}, y += {_pitch(shape)}) {{
for (int64_t k = 0; k < {whole}; k += {LANES}) store_f32(y + k, load_{short}(x + k));
{last}
}}
}}
"""
    return context.shared(name, text)


def _row_products(context: Context, shape: Shape) -> str:
    """The name of `out[16 * r + q] = sum over k of x[r][k] * w[q][k]` for `count` rows q of w."""
    short, kind, ctype = shape.dtype.short, shape.kind, memory(shape.dtype)
    name = f"row_products_{short}_{shape.m}x{shape.k}"
    step = CHAINS * LANES
    whole = shape.k // step * step
    chains = [(r, c) for r in range(shape.m) for c in range(CHAINS)]

    def part(at: str, chain: int, left: int = LANES) -> str:
        load, end = ("load", "") if left == LANES else ("load_partial", f", {left}")
        products = " ".join(
            f"s{r}_{chain} = fma_{kind}({'load' if short != kind else load}_{kind}(x + {r * _pitch(shape)} + {at}"
            f"{end if short == kind else ''}), y, s{r}_{chain});"
            for r in range(shape.m)
        )
        return f"{{ const {kind}x16 y = {load}_{short}(w + {at}{end}); {products} }}"

    lines = [
        f"{STATIC} void {name}(const {kind} *x, const {ctype} *w, int64_t count, {kind} *out) {{",
        f"{kind}x16 sums[{shape.m}][{LANES}];",
        f"for (int64_t q = 0; q < count; q++, w += {shape.k}) {{",
        " ".join(f"{kind}x16 s{r}_{c} = broadcast_{kind}(0);" for r, c in chains),
        f"for (int64_t k = 0; k < {whole}; k += {step}) {{",
        *(part(f"k + {c * LANES}", c) for c in range(CHAINS)),
        "}",
    ]
    for number, k in enumerate(range(whole, shape.k, LANES)):
        lines.append(part(str(k), number, min(LANES, shape.k - k)))
    for r in range(shape.m):
        pairs = [f"add_{kind}(s{r}_{c}, s{r}_{c + 1})" for c in range(0, CHAINS, 2)]
        lines.append(f"sums[{r}][q] = add_{kind}({', '.join(pairs)});")
    lines.append("}")
    lines.append(f"for (int64_t q = count; q < {LANES}; q++) {{")
    lines += [f"sums[{r}][q] = broadcast_{kind}(0);" for r in range(shape.m)]
    lines.append("}")
    for r in range(shape.m):
        if kind == "f32":
            lines.append(f"store_f32(out + {r * LANES}, sum_rows_f32(sums[{r}]));")
        else:
            lines.append(f"for (int q = 0; q < {LANES}; q++) out[{r * LANES} + q] = sum_{kind}(sums[{r}][q]);")
    return context.shared(name, "\n".join([*lines, "}", ""]))
