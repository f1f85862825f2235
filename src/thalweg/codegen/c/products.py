"""Row-major matrix products: register tiles of rows x vectors, panels of the right operand, an epilogue in registers.

A tile keeps `rows x vectors` accumulators while it walks over k; each step loads `vectors` vectors of the right operand
and broadcasts one number per row of the left one. A right operand whose rows do not run along the result's columns
(transposed), or that many rows share, is first copied into a panel [k][columns] in scratch. Few rows times a transposed
operand are dot products instead: both operands run along k. Every choice and every order of summation follows from
shapes, so results do not depend on the number of tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thalweg.codegen.c.bindings import TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.expressions import Access, Expression
from thalweg.codegen.c.lanes import best_tile
from thalweg.codegen.c.nests import emit_contraction, store
from thalweg.codegen.loops import LANE, Index, constant, unravel, variable
from thalweg.graph import Value
from thalweg.plan import LANES, Kernel

SHARED_ROWS = 48  # rows from which copying an untransposed panel pays
DOT_ROWS = 4  # rows up to which a transposed right operand is read in place


@dataclass(frozen=True)
class Shape:
    """A product [lead.., m, n] and how its operands are reached."""

    lead: tuple[int, ...]
    m: int
    n: int
    k: int
    transpose_a: bool
    transpose_b: bool
    element: str

    @property
    def dots(self) -> bool:
        return self.transpose_b and not self.transpose_a and self.m <= DOT_ROWS and self.k >= LANES

    @property
    def packs(self) -> bool:
        return not self.dots and (self.transpose_b or self.m >= SHARED_ROWS)

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and vectors of the register tile."""
        return best_tile(self.m, -(-self.n // LANES), 12, 6)


def shape_of(kernel: Kernel) -> Shape:
    assert kernel.anchor is not None
    op: Any = kernel.anchor.op
    a, _ = kernel.anchor.inputs
    result = kernel.anchor.outputs[0]
    k = a.shape[-2] if op.transpose_a else a.shape[-1]
    *lead, m, n = result.shape
    return Shape(tuple(lead), m, n, k, op.transpose_a, op.transpose_b, result.dtype.short)


def is_tiled(kernel: Kernel) -> bool:
    """Is this product one for register tiles? Other element types and empty sums go through plain loops."""
    shape = shape_of(kernel)
    return shape.element in ("f32", "f64") and min(shape.m, shape.n, shape.k, *shape.lead) > 0


def product_workspace(kernel: Kernel) -> int:
    """Bytes of the panel."""
    if not is_tiled(kernel):
        return 0
    shape = shape_of(kernel)
    return shape.k * shape.tile[1] * LANES * (4 if shape.element == "f32" else 8) if shape.packs else 0


def emit_product(context: Context) -> KernelText:
    """A matmul kernel with its epilogue."""
    if not is_tiled(context.kernel):
        return emit_contraction(context)
    return _Product(context).emit()


class _Product:
    """Writes one product."""

    def __init__(self, context: Context) -> None:
        self.context = context
        kernel = context.kernel
        assert kernel.anchor is not None
        self.shape = shape_of(kernel)
        self.accesses = context.reads()
        self.outputs = [(root, context.access(root, write=True)) for root in kernel.roots]
        self.result: Value = kernel.anchor.outputs[0]
        self.a: Access = self.accesses[id(kernel.anchor.inputs[0])]
        self.b: Access = self.accesses[id(kernel.anchor.inputs[1])]
        self.rows, self.vectors = self.shape.tile
        self.panel = (
            context.pointer(kernel.detail["workspace"], write=True) if self.shape.packs else ""
        )
        self.lead = unravel(variable("lead"), self.shape.lead, {"lead": math.prod(self.shape.lead)}) if self.shape.lead else ()

    def emit(self) -> KernelText:
        shape, element = self.shape, self.shape.element
        if shape.dots:
            return self.context.function(self._dots(), TILE_PARAMETERS)
        columns = self.vectors * LANES
        panels = -(-shape.n // columns)
        row_tiles = -(-shape.m // self.rows)
        lead = math.prod(shape.lead)
        chunks = min(row_tiles, max(1, -(-self.context.kernel.tasks // max(panels * lead, 1))))
        items, tasks = lead * panels * chunks, self.context.kernel.tasks
        lines = [
            "(void)error;",
            f"for (int64_t item = task * {items} / {tasks}; item < (task + 1) * {items} / {tasks}; item++) {{",
            f"const int64_t lead = item / {panels * chunks}, j = item / {chunks} % {panels} * {columns}, chunk = item % {chunks};",
            f"const int64_t begin = chunk * {row_tiles} / {chunks} * {self.rows}, "
            f"finish = (chunk + 1) * {row_tiles} / {chunks} * {self.rows}, end = finish < {shape.m} ? finish : {shape.m};",
            f"const {element} *const a = {self.a.pointer} + lead * {shape.m * shape.k};",
            f"const {element} *const b = {self.b.pointer} + lead * {shape.k * shape.n}; (void)lead;",
        ]
        if shape.packs:
            lines.append(f"{element} *const panel = ({element} *){self.panel};")
        whole, rest = shape.n // columns * columns, shape.n % columns
        if whole:
            lines.append(f"if (j < {whole}) {{" if rest else "{")
            lines += [*self._panel(columns), "}"]
        if rest:
            lines.append("else {" if whole else "{")
            lines += [*self._panel(rest), "}"]
        lines.append("}")
        return self.context.function("\n".join(lines), TILE_PARAMETERS)

    # ---- panels ------------------------------------------------------------------------------------------------------

    def _panel(self, columns: int) -> list[str]:
        """All row tiles against one panel of columns."""
        lines = self._pack(columns) if self.shape.packs else []
        lines.append("int64_t i = begin;")
        lines.append(f"for (; i + {self.rows} <= end; i += {self.rows}) {{")
        lines += [*self._tile(self.rows, columns), "}"]
        rest = self.shape.m % self.rows
        if rest:
            lines.append("if (i < end) {")
            lines += [*self._tile(rest, columns), "}"]
        return lines

    def _pack(self, columns: int) -> list[str]:
        """Copy columns j.. of the right operand to panel[k][width], lanes behind the last column zero."""
        shape, element = self.shape, self.shape.element
        vectors = -(-columns // LANES)
        width = vectors * LANES
        if not shape.transpose_b:
            lines = [f"for (int64_t k = 0; k < {shape.k}; k++) {{ const {element} *const from = b + k * {shape.n} + j;"]
            for q in range(vectors):
                count = min(columns - q * LANES, LANES)
                loaded = self._load(f"from + {q * LANES}", count)
                lines.append(f"store_{element}(panel + k * {width} + {q * LANES}, {loaded});")
            return [*lines, "}"]
        lines = []
        whole = shape.k // LANES * LANES
        start = 0
        if element == "f32" and whole:
            full = columns // LANES
            if full:
                lines.append(f"for (int64_t q = 0; q < {full}; q++) for (int64_t k = 0; k < {whole}; k += {LANES}) {{")
                lines.append(f"f32x16 t[{LANES}]; const f32 *const from = b + (j + q * {LANES}) * {shape.k} + k;")
                lines.append(f"for (int l = 0; l < {LANES}; l++) t[l] = load_f32(from + l * {shape.k});")
                lines.append(f"transpose_f32(t); for (int l = 0; l < {LANES}; l++) store_f32(panel + (k + l) * {width} + q * {LANES}, t[l]); }}")
            start = whole
            if columns % LANES:
                lines += self._pack_plain(full * LANES, columns, width, 0, shape.k)
            if shape.k % LANES and full:
                lines += self._pack_plain(0, full * LANES, width, start, shape.k)
            return lines
        return self._pack_plain(0, columns, width, 0, shape.k)

    def _pack_plain(self, first: int, last: int, width: int, start: int, end: int) -> list[str]:
        filled = -(-last // LANES) * LANES
        k = self.shape.k
        return [
            f"for (int64_t k = {start}; k < {end}; k++) for (int64_t c = {first}; c < {filled}; c++) "
            f"panel[k * {width} + c] = {'' if filled == last else f'c >= {last} ? 0 : '}b[(j + c) * {k} + k];"
        ]

    def _load(self, address: str, count: int) -> str:
        element = self.shape.element
        return f"load_{element}({address})" if count == LANES else f"load_partial_{element}({address}, {count})"

    # ---- tiles -------------------------------------------------------------------------------------------------------

    def _tile(self, rows: int, columns: int) -> list[str]:
        """One register tile over the whole of k, then its epilogue."""
        shape, element = self.shape, self.shape.element
        vectors = -(-columns // LANES)
        width = vectors * LANES
        lines = [" ".join(f"{element}x16 a{r}_{q} = broadcast_{element}(0);" for r in range(rows) for q in range(vectors))]
        row_step, k_step = (1, shape.m) if shape.transpose_a else (shape.k, 1)
        lines.append(f"const {element} *x = a + i * {row_step};")
        source, step = ("panel", width) if shape.packs else ("b + j", shape.n)
        lines.append(f"const {element} *y = {source};")
        lines.append(f"for (int64_t k = 0; k < {shape.k}; k++, x += {k_step}, y += {step}) {{")
        for q in range(vectors):
            count = LANES if shape.packs else min(columns - q * LANES, LANES)
            lines.append(f"const {element}x16 y{q} = {self._load(f'y + {q * LANES}', count)};")
        for r in range(rows):
            products = " ".join(f"a{r}_{q} = fma_{element}(w, y{q}, a{r}_{q});" for q in range(vectors))
            lines.append(f"{{ const {element}x16 w = broadcast_{element}(x[{r * row_step}]); {products} }}")
        lines.append("}")
        for r in range(rows):
            for q in range(vectors):
                count = min(columns - q * LANES, LANES)
                column = variable("j") + constant(q * LANES) + variable(LANE)
                lines += self._epilogue(f"a{r}_{q}", variable("i") + constant(r), column, None if count == LANES else str(count))
        return lines

    def _epilogue(self, register: str, row: Index, column: Index, partial: str | None) -> list[str]:
        """Everything that is computed from one vector of the product, and the stores."""
        extents = {"lead": math.prod(self.shape.lead), "i": max(self.shape.m, 1), "j": max(self.shape.n - LANES + 1, 1), LANE: LANES}
        emitter = self.context.emitter(extents, self.accesses)
        emitter.partial = partial
        emitter.given[id(self.result)] = Expression(register, self.shape.element)
        indices = (*self.lead, row, column)
        for root, access in self.outputs:
            store(emitter, access, indices, emitter.pull(root, indices))
        self.context.functions |= emitter.functions
        return ["{ " + " ".join(emitter.lines) + " }"]

    # ---- dot products ------------------------------------------------------------------------------------------------

    def _dots(self) -> str:
        """Few rows against rows of the right operand: vectors run along k, lanes are added at the end."""
        shape, element, tasks = self.shape, self.shape.element, self.context.kernel.tasks
        width = max(1, min(16 // shape.m, 8, shape.n))
        groups = -(-shape.n // width)
        items = math.prod(shape.lead) * groups
        lines = [
            "(void)error;",
            f"for (int64_t item = task * {items} / {tasks}; item < (task + 1) * {items} / {tasks}; item++) {{",
            f"const int64_t lead = item / {groups}, j = item % {groups} * {width};",
            f"const {element} *const a = {self.a.pointer} + lead * {shape.m * shape.k};",
            f"const {element} *const b = {self.b.pointer} + lead * {shape.k * shape.n}; (void)lead;",
        ]
        whole, rest = shape.n // width * width, shape.n % width
        if whole:
            lines.append(f"if (j < {whole}) {{" if rest else "{")
            lines += [*self._dot_tile(width), "}"]
        if rest:
            lines.append("else {" if whole else "{")
            lines += [*self._dot_tile(rest), "}"]
        return "\n".join([*lines, "}"])

    def _dot_tile(self, width: int) -> list[str]:
        shape, element = self.shape, self.shape.element
        pairs: Sequence[tuple[int, int]] = [(r, q) for r in range(shape.m) for q in range(width)]
        lines = [" ".join(f"{element}x16 a{r}_{q} = broadcast_{element}(0);" for r, q in pairs)]
        whole, rest = shape.k // LANES * LANES, shape.k % LANES

        def step(count: int) -> list[str]:
            body = [f"const {element}x16 x{r} = {self._load(f'a + {r * shape.k} + k', count)};" for r in range(shape.m)]
            for q in range(width):
                products = " ".join(f"a{r}_{q} = fma_{element}(x{r}, y, a{r}_{q});" for r in range(shape.m))
                body.append(f"{{ const {element}x16 y = {self._load(f'b + (j + {q}) * {shape.k} + k', count)}; {products} }}")
            return body

        lines += [f"for (int64_t k = 0; k < {whole}; k += {LANES}) {{", *step(LANES), "}"]
        if rest:
            lines += [f"{{ const int64_t k = {whole};", *step(rest), "}"]
        for r, q in pairs:
            lines.append(f"a{r}_{q} = broadcast_{element}(sum_{element}(a{r}_{q}));")
            lines += self._epilogue(f"a{r}_{q}", constant(r), variable("j") + constant(q), "1")
        return lines
