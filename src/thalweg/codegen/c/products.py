"""Row-major matrix products: matmul, and the convolutions that are one (kernel size 1, stride 1, no padding).

The result is cut into panels of columns, and a panel into register tiles of rows x vectors (tiles.py). Sums over k run in
blocks, so that a block of the right operand stays in cache and rounding errors stay small. A right operand whose rows
do not run along the result's columns (transposed), or that many rows share, is first copied into panels [k][columns]
in scratch: a group of panels that fills most of a core's cache, so that rows of the left operand, which come from further
away, serve many columns. A left operand whose rows fall on each other in the first cache, or whose steps lie far apart
(transposed), is copied too, some rows at a time. A tile goes to a buffer, and from there through the epilogue to memory.
Few rows times a transposed operand are dot products instead: both operands run along k. A product with few columns is
computed as its transpose. Every choice and every order of
summation follows from shapes, so results depend neither on the number of tasks nor on the instruction set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from thalweg.codegen.c.bindings import TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.expressions import Access, Expression
from thalweg.codegen.c.nests import store_all
from thalweg.codegen.c.tiles import (
    COPIES,
    ITEM,
    MEMORY,
    SUMS,
    balanced,
    dots_width,
    pack_pairs,
    pack_rows,
    pack_transposed,
    product_tile,
    row_dots,
    tile_shape,
    transpose_rows,
)
from thalweg.codegen.c.windows import emit_contraction
from thalweg.codegen.loops import LANE, Index, divide, unravel, variable
from thalweg.graph import Value
from thalweg.plan import LANES, Kernel

SHARED_ROWS = 48  # rows from which copying an untransposed panel pays
NARROW = 16  # a product with fewer columns, and no fewer rows, is computed as its transpose
FEW_DOT_ROWS, DOT_ROWS = 8, 32  # up to so many rows a transposed right operand is read in place,
DOT_STEPS, MANY_DOT_STEPS = 48, 128  # where a sum has so many steps (as few for few rows)
BLOCK = 512  # steps of a sum before it is added to the sum of the blocks before
GROUP_BYTES = 768 << 10  # of panels of the right operand side by side: most of a core's own cache
TURN_COLUMNS = 8  # columns for each row of a transposed left operand, at least, in a task that turns it
DOT_HEIGHT = 4  # rows of a tile of dot products where there are more than few
FEW_ITEMS = 8  # fewer parts of a kernel leave threads without work
MOST_ITEMS = 16  # parts of a product: more would copy operands more often, fewer leave threads without work
RIGHT_COST, LEFT_COST = 15, 8  # of copying an element of an operand, in the time of a multiply-add
BUFFER_ROWS = 1024  # rows whose sums wait for the next block, at most
STRIP_TILES = 16  # tiles whose rows of a transposed left operand are copied together
STRIP_PANELS = 3  # panels that use the copy, at least
FAR = 512  # bytes between two steps of a transposed left operand, from which on it is copied
PAGE = 4096  # rows of the left operand that lie whole pages apart fall on each other in the first cache


def _start(p: str, width: int, wide: int, panels: int) -> str:
    """C text of the first column of panel `p`: the first `wide` panels have `width` vectors, the others one less."""
    rest = f" - ({p} > {wide} ? ({p} - {wide}) * {LANES} : 0)" if wide < panels else ""
    return f"{p} * {width * LANES}{rest}"


def _width(p: str, width: int, wide: int, panels: int) -> str:
    """C text of the columns of panel `p`."""
    return f"{p} < {wide} ? {width * LANES} : {(width - 1) * LANES}" if wide < panels else f"{width * LANES}"


@dataclass(frozen=True)
class Shape:
    """`lead` products [m, n] beside each other, each the sum of `repeats` products over k."""

    lead: int
    m: int
    n: int
    k: int
    transpose_a: bool
    transpose_b: bool
    element: str  # as it is stored
    machine: str = "native"
    repeats: int = 1
    left: int = 0  # which operand is the left one
    left_at: str = ""  # C text of the offset of the left operand by `lead` and `image` (of the repeats)
    right_at: str = ""
    kept: bool = False  # is the right operand in panels already?

    @property
    def panel_elements(self) -> int:
        """Numbers in all panels of the right operand."""
        return self.lead * -(-self.n // LANES) * LANES * self.k

    @property
    def summed(self) -> str:
        """The element type of sums."""
        return SUMS.get(self.element, self.element)

    @property
    def copied(self) -> str:
        """The element type of copied operands."""
        return COPIES.get(self.element, self.element)

    @property
    def pair(self) -> int:
        """Steps of the sum in one element of a copied operand."""
        return 2 if self.element == "bf16" else 1

    @property
    def short(self) -> bool:
        """Are the operands stored in 16 bits? Then both are copied in the form that tiles read."""
        return self.element in COPIES

    @property
    def dots(self) -> bool:
        least = DOT_STEPS if self.m <= FEW_DOT_ROWS else MANY_DOT_STEPS
        return self.transpose_b and self.m <= DOT_ROWS and self.k >= least and self.repeats == 1 and not self.kept

    @property
    def copies(self) -> bool:
        """Is the right operand copied everywhere?"""
        return self.transpose_b or self.m >= SHARED_ROWS or self.short

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and vectors of the largest register tile."""
        return tile_shape(self.m, -(-self.n // LANES), self.summed, self.machine)

    @property
    def blocks(self) -> int:
        """Parts of a sum over k."""
        return -(-self.k // (BLOCK * self.pair))

    @property
    def block(self) -> int:
        return -(-self.k // self.blocks // LANES) * LANES if self.blocks > 1 else self.k

    @property
    def height(self) -> int:
        """Rows of a copied block of the right operand."""
        return -(-self.block // self.pair)

    @property
    def left_copied(self) -> bool:
        """Are rows of the left operand copied before use?"""
        alias = self.short or (self.m > FEW_DOT_ROWS and self.k * ITEM[self.element] % PAGE == 0)
        return not self.transpose_a and alias

    @property
    def strips(self) -> bool:
        """Are rows of a transposed left operand copied before use?"""
        far = self.m * ITEM[self.summed] >= FAR and self.panels >= STRIP_PANELS
        return self.transpose_a and (self.short or far)

    @property
    def panels(self) -> int:
        """Parts of the columns, each as wide as a tile."""
        return balanced(-(-self.n // LANES), self.tile[1])[0]

    def cut(self, tasks: int) -> tuple[int, int]:
        """Groups of panels and chunks of rows: one product of a group and a chunk is an item. Enough items for the
        tasks, and among those the cut that copies least."""
        most = 1
        if self.copies and not self.kept:
            most = max(1, GROUP_BYTES // (self.height * self.tile[1] * LANES * ITEM[self.summed]))
        fewest = -(-self.panels // most)
        wanted = -(-min(tasks, MOST_ITEMS) // self.lead)
        least = 1 if self.blocks * self.repeats == 1 else -(-self.m // BUFFER_ROWS)
        tiles = balanced(self.m, self.tile[0])[0]
        right = RIGHT_COST if self.copies else 1

        def cost(chunks: int) -> tuple[float, float]:
            groups = max(fewest, min(self.panels, -(-wanted // chunks)))
            idle = max(0, wanted - groups * chunks)
            return idle, right * chunks / self.m + LEFT_COST * groups / self.n

        chunks = min(range(least, max(least, min(tiles, wanted)) + 1), key=cost)
        return max(fewest, min(self.panels, -(-wanted // chunks))), chunks

    def scratch(self, tasks: int) -> tuple[int, int, int]:
        """Elements of the panels of a group, of the buffer of sums, and of the copied rows of the left operand."""
        groups, chunks = self.cut(tasks)
        rows, vectors = self.tile
        columns = -(-self.panels // groups) * vectors * LANES
        buffered = rows * vectors * LANES
        if self.blocks * self.repeats > 1:
            buffered = -(-balanced(self.m, rows)[0] // chunks) * rows * columns
        left = rows * (self.height + LANES) if self.left_copied else 0
        if self.strips:
            left = self.height * self.strip
        return 0 if self.kept else self.height * columns, buffered, left

    @property
    def strip(self) -> int:
        """Numbers from one step to the next in copied rows of a transposed left operand."""
        return -(-STRIP_TILES * self.tile[0] // LANES) * LANES


def shape_of(kernel: Kernel, machine: str) -> Shape | None:
    """The product that a kernel is, or None."""
    assert kernel.anchor is not None
    result = kernel.anchor.outputs[0]
    if (result.dtype.short not in ITEM and result.dtype.short not in COPIES) or not result.size:
        return None
    shape = _matmul(kernel, machine) if kernel.anchor.op.name == "matmul" else _pointwise(kernel, machine)
    return shape if shape is not None and shape.k * shape.repeats > 0 else None


def _matmul(kernel: Kernel, machine: str) -> Shape:
    assert kernel.anchor is not None
    op: Any = kernel.anchor.op
    a = kernel.anchor.inputs[0]
    result = kernel.anchor.outputs[0]
    k = a.shape[-2] if op.transpose_a else a.shape[-1]
    *lead, m, n = result.shape
    batch, element = math.prod(lead), result.dtype.short
    left, right = f"lead * {m * k}", f"lead * {k * n}"
    if n < NARROW <= m:  # the transposed product: its columns fill the lanes
        turned = not op.transpose_b, not op.transpose_a
        return Shape(batch, n, m, k, *turned, element, machine, left=1, left_at=right, right_at=left)
    kept = "panels" in kernel.detail
    flags = op.transpose_a, op.transpose_b
    return Shape(batch, m, n, k, *flags, element, machine, left_at=left, right_at=right, kept=kept)


def _pointwise(kernel: Kernel, machine: str) -> Shape | None:
    """A convolution with a kernel of size 1 and stride 1 without padding, in any of its modes."""
    assert kernel.anchor is not None
    op: Any = kernel.anchor.op
    first, second = kernel.anchor.inputs
    result = kernel.anchor.outputs[0]
    element = result.dtype.short
    weights = op.name == "convolution_weight_gradient"
    w = result if weights else second
    if not op.pointwise(w.shape[2:]):
        return None
    groups, filters, channels = op.groups, w.shape[0] // op.groups, w.shape[1]
    batch, pixels = first.shape[0], math.prod(first.shape[2:])
    if weights:
        member = f"(image * {groups} + lead)" if batch > 1 else "lead"
        left, right = (f"{member} * {size * pixels}" for size in (filters, channels))
        return Shape(groups, filters, channels, pixels, False, True, element, machine, batch, 1, left, right)
    left = f"lead % {groups} * {filters * channels}"
    back = op.name == "convolution_input_gradient"
    m, k = (channels, filters) if back else (filters, channels)
    return Shape(
        batch * groups, m, pixels, k, back, False, element, machine, 1, 1, left, f"lead * {k * pixels}"
    )


def product_workspace(kernel: Kernel, machine: str) -> int:
    """Bytes of the panel and of the buffer of sums."""
    shape = shape_of(kernel, machine)
    if shape is None:
        return 0
    if shape.dots:  # rows of a transposed left operand
        return shape.m * (shape.k + LANES) * ITEM[shape.summed] if shape.transpose_a else 0
    return sum(shape.scratch(kernel.tasks)) * ITEM[shape.summed]


def emit_product(context: Context) -> KernelText:
    """A matmul kernel with its epilogue; other element types and empty sums go through plain loops."""
    shape = shape_of(context.kernel, context.plan.target.machine)
    return emit_contraction(context) if shape is None else _Product(context, shape).emit()


def emit_panels(context: Context) -> KernelText:
    """Copies a right operand into panels [k][columns], one for each task, for products that use it again and again."""
    shape = shape_of(context.kernel, context.plan.target.machine)
    assert shape is not None and context.kernel.anchor is not None
    element, panels = shape.element, shape.panels
    count, width, wide = balanced(-(-shape.n // LANES), shape.tile[1])
    source = context.pointer(context.buffer(context.kernel.anchor.inputs[1]))
    target = context.pointer(context.kernel.detail["panels"], write=True)
    lines = [
        "(void)error;",
        f"const int64_t lead = task / {panels}, p = task % {panels};",
        f"const int64_t column = {_start('p', width, wide, count)}, width = {_width('p', width, wide, count)};",
        f"const int64_t valid = {shape.n} - column < width ? {shape.n} - column : width;",
        f"const {element} *const from = {source} + {shape.right_at};",
        f"{element} *const to = ({element} *){target} + lead * {shape.panel_elements // shape.lead} + column * {shape.k};",
    ]
    if shape.transpose_b:
        pack = pack_transposed(context, element)
        lines.append(f"{pack}(from + column * {shape.k}, {shape.k}, {shape.k}, valid, to, width);")
    else:
        pack = pack_rows(context, element)
        lines.append(f"{pack}(from + column, {shape.n}, {shape.k}, valid, width, to, width);")
    return context.function("\n".join(lines), TILE_PARAMETERS)


class _Product:
    """Writes one product."""

    def __init__(self, context: Context, shape: Shape) -> None:
        self.context = context
        self.shape = shape
        kernel = context.kernel
        assert kernel.anchor is not None
        self.accesses = context.reads()
        self.outputs = [(root, context.access(root, write=True)) for root in kernel.roots]
        self.result: Value = kernel.anchor.outputs[0]
        self.a: Access = self.accesses[id(kernel.anchor.inputs[shape.left])]
        self.b: Access = self.accesses[id(kernel.anchor.inputs[1 - shape.left])]
        self.scratch = ""
        if "workspace" in kernel.detail:
            self.scratch = context.pointer(kernel.detail["workspace"], write=True)

    def emit(self) -> KernelText:
        return self.context.function(
            "\n".join(self._dots() if self.shape.dots else self._tiles()), TILE_PARAMETERS
        )

    # ---- register tiles ----------------------------------------------------------------------------------------------

    def _tiles(self) -> list[str]:
        """Items (product, group of panels, chunk of rows); in each the blocks of k, the tiles of rows, the panels."""
        shape = self.shape
        copied, summed = shape.copied, shape.summed
        panels, width, wide = balanced(-(-shape.n // LANES), shape.tile[1])
        tiles, height, tall = balanced(shape.m, shape.tile[0])
        tasks = self.context.kernel.tasks
        groups, chunks = shape.cut(tasks)
        items = shape.lead * groups * chunks
        right, buffered, _ = shape.scratch(tasks)
        lines = [
            "(void)error;",
            f"{copied} *const panel = ({copied} *){self.scratch};",
            f"{summed} *const sums = ({summed} *)(panel + {right});",
            f"{copied} *const copy = ({copied} *)(sums + {buffered}); (void)copy;",
            f"for (int64_t item = task * {items} / {tasks}; item < (task + 1) * {items} / {tasks}; item++) {{",
            f"const int64_t lead = item / {groups * chunks}, group = item / {chunks} % {groups}, chunk = item % {chunks}; (void)lead;",
            f"const int64_t first = group * {panels} / {groups}, behind = (group + 1) * {panels} / {groups};",
            f"const int64_t begin = chunk * {tiles} / {chunks}, end = (chunk + 1) * {tiles} / {chunks};",
            f"const int64_t origin = {_start('first', width, wide, panels)};",
        ]
        if shape.repeats > 1:
            lines.append(f"for (int64_t image = 0; image < {shape.repeats}; image++)")
        if shape.blocks > 1:
            lines.append(f"for (int64_t k = 0; k < {shape.k}; k += {shape.block}) {{")
            lines.append(
                f"const int64_t count = k + {shape.block} < {shape.k} ? {shape.block} : {shape.k} - k;"
            )
        else:
            lines.append(f"{{ const int64_t k = 0, count = {shape.k};")
        lines += self._operands(width, wide, panels)
        lines.append("for (int64_t tile = begin; tile < end; tile++) {")
        lines.append(f"const int64_t row = tile * {height} - (tile > {tall} ? tile - {tall} : 0);")
        lines.append(f"const int64_t rows = tile < {tall} ? {height} : {height - 1}; (void)rows;")
        left = self._left(height, tall)
        lines += left[:-1]
        lines.append("for (int64_t p = first; p < behind; p++) {")
        lines += self._panel(width, wide, panels)
        ahead = " && ".join(
            [*(["k == 0"] if shape.blocks > 1 else []), *(["image == 0"] if shape.repeats > 1 else [])]
        )
        several = shape.blocks * shape.repeats > 1
        place = f" + ((tile - begin) * {width * LANES} * (behind - first) + column - origin) * {height}"
        lines.append(f"{summed} *const to = sums{place if several else ''};")
        steps = "count" if shape.pair == 1 else f"(count + {shape.pair - 1}) / {shape.pair}"
        arguments = f"{left[-1]}, b, pitch, {steps}, to, width, " + (f"!({ahead})" if ahead else "0")
        calls = self._calls(height, tall < tiles, width, wide < panels, arguments)
        last = [f"k + {shape.block} >= {shape.k}"] if shape.blocks > 1 else []
        if shape.repeats > 1:
            last.append(f"image == {shape.repeats - 1}")
        test = f"if ({' && '.join(last)}) " if last else ""
        return [*lines, *self._ahead(test), *calls, f"{test}{{", *self._finish(), "}", "}", "}", "}", "}"]

    def _ahead(self, test: str) -> list[str]:
        """Fetch what the epilogue reads beside each sum (a parameter under its update, a residual) while the sum runs."""
        assert self.context.kernel.anchor is not None
        own = {id(value) for value in self.context.kernel.anchor.inputs}
        extents = {"lead": self.shape.lead, "i": self.shape.m, "j": self.shape.n}
        indices = self._indices(variable("i"), variable("j"), extents)
        written = {access.pointer for _, access in self.outputs}  # with these the line becomes this core's own
        beside = [
            f"__builtin_prefetch({access.pointer} + {access.address(indices).text()}, {int(access.pointer in written)});"
            for key, access in self.accesses.items()
            if key not in own and access.type.shape == self.result.shape and not access.combine
        ]
        if not beside or self.shape.left:
            return []
        step = 64 // ITEM[self.shape.summed]
        return [
            f"{test}for (int64_t i = row; i < row + rows; i++) for (int64_t j = column; j < column + width; j += {step}) {{",
            *beside,
            "}",
        ]

    def _left(self, height: int, tall: int) -> list[str]:
        """Statements that copy rows of the left operand, and last the arguments of a tile function for it."""
        shape, element = self.shape, self.shape.element
        if shape.strips:
            pack = pack_rows(self.context, element)
            most = STRIP_TILES * height
            return [
                f"const int64_t start = tile - (tile - begin) % {STRIP_TILES};",
                f"const int64_t top = start * {height} - (start > {tall} ? start - {tall} : 0);",
                f"if (tile == start) {pack}(a + top, {shape.m}, count, "
                f"{shape.m} - top < {most} ? {shape.m} - top : {most}, 0, copy, {shape.strip});",
                f"copy + row - top, 1, {shape.strip}",
            ]
        if shape.left_copied:
            pitch = shape.height + LANES
            call = f"(a + row * {shape.k}, {shape.k}, rows, count, 0, copy, {pitch});"
            if shape.pair == 1:
                return [pack_rows(self.context, element) + call, f"copy, {pitch}, 1"]
            return [pack_pairs(self.context) + call.replace("0, copy", "copy"), f"copy, {pitch}, 1"]
        row_step, k_step = (1, shape.m) if shape.transpose_a else (shape.k, 1)
        return [f"a + row * {row_step}, {row_step}, {k_step}"]

    def _calls(self, height: int, short: bool, width: int, narrow: bool, arguments: str) -> list[str]:
        """The call of the tile function of the right size."""
        lines: list[str] = []
        for vectors in (width, width - 1)[: 1 + narrow]:
            test = f"if (width == {vectors * LANES}) " if narrow else ""
            for rows in (height, height - 1)[: 1 + short]:
                inner = f"if (rows == {rows}) " if short else ""
                name = product_tile(self.context, self.shape.element, rows, vectors)
                lines.append(f"{test}{inner}{name}({arguments});")
        return lines

    def _operands(self, width: int, wide: int, panels: int) -> list[str]:
        """The left operand's address `a`, the right one's `from`, and the panels of the group where they are copied."""
        shape, element = self.shape, self.shape.element
        left = f" + k * {shape.m}" if shape.transpose_a else " + k"
        stored = MEMORY.get(element, element)
        lines = [f"const {stored} *const a = {self.a.pointer} + {shape.left_at}{left};"]
        if shape.kept:
            panels_at = f"lead * {shape.panel_elements // shape.lead}"
            kept = self.context.pointer(self.context.kernel.detail["panels"])
            unread = f"(void){self.b.pointer};"
            return [*lines, f"const {element} *const from = (const {element} *){kept} + {panels_at}; {unread}"]
        place = "k" if shape.transpose_b else f"k * {shape.n}"
        lines.append(f"const {stored} *const from = {self.b.pointer} + {shape.right_at} + {place};")
        if not shape.copies:
            return lines
        start = _start("p", width, wide, panels)
        size = _width("p", width, wide, panels)
        each = [
            "for (int64_t p = first; p < behind; p++) {",
            f"const int64_t column = {start}, width = {size};",
            f"const int64_t valid = {shape.n} - column < width ? {shape.n} - column : width;",
            f"{shape.copied} *const to = panel + (column - origin) * {shape.height};",
        ]
        if shape.transpose_b:
            pack = pack_transposed(self.context, element)
            call = f"{pack}(from + column * {shape.k}, {shape.k}, count, valid, to, width);"
            return [*lines, *each, call, "}"]
        pack = pack_rows(self.context, element)  # some rows of every panel, so that memory is read in long runs
        return [
            *lines,
            f"for (int64_t step = 0; step < count; step += {LANES}) {{",
            f"const int64_t steps = count - step < {LANES} ? count - step : {LANES};",
            *each,
            f"{pack}(from + step * {shape.n} + column, {shape.n}, steps, valid, width, to + step / {shape.pair} * width, width);",
            "}}",
        ]

    def _panel(self, width: int, wide: int, panels: int) -> list[str]:
        """The place of panel `p`, and its numbers `b` with their `pitch`: copied, or in place."""
        shape, element = self.shape, self.shape.element
        start = _start("p", width, wide, panels)
        lines = [f"const int64_t column = {start}, width = {_width('p', width, wide, panels)};"]
        if shape.kept:
            address = f"from + column * {shape.k} + k * width"
            return [*lines, f"const {element} *const b = {address}; const int64_t pitch = width;"]
        if shape.copies:
            address = f"panel + (column - origin) * {shape.height}"
            return [*lines, f"const {shape.copied} *const b = {address}; const int64_t pitch = width;"]
        if shape.n % LANES == 0:
            return [*lines, f"const {element} *const b = from + column; const int64_t pitch = {shape.n};"]
        pack = pack_rows(self.context, element)
        return [
            *lines,
            f"const int copied = column + width > {shape.n};",
            f"if (copied && tile == begin) {pack}(from + column, {shape.n}, count, {shape.n} - column, width, panel, width);",
            f"const {element} *const b = copied ? panel : from + column; const int64_t pitch = copied ? width : {shape.n};",
        ]

    # ---- epilogue ----------------------------------------------------------------------------------------------------

    def _finish(self) -> list[str]:
        """The rows of a tile from the buffer through the epilogue to memory."""
        shape, summed = self.shape, self.shape.summed
        lines = [
            "for (int64_t r = 0; r < rows; r++) for (int64_t c = 0; c < width; c += 16) {",
            f"const int64_t i = row + r, j = column + c; const {summed}x16 sum = load_{summed}(to + r * width + c); (void)i;",
        ]
        place = variable("j") + variable(LANE)
        rest = shape.n % LANES
        if shape.n >= LANES:
            lines.append(f"if (j + 16 <= {shape.n}) {{" if rest else "{")
            lines += [*self._epilogue("sum", variable("i"), place, None), "}"]
        if rest:
            lines.append("else {" if shape.n >= LANES else "{")
            lines += [*self._epilogue("sum", variable("i"), place, str(rest)), "}"]
        return [*lines, "}"]

    def _epilogue(self, register: str, row: Index, column: Index, partial: str | None) -> list[str]:
        """Everything that is computed from one vector of the product, and the stores."""
        shape = self.shape
        extents = {
            "lead": shape.lead,
            "i": shape.m,
            "j": max(shape.n - LANES + 1, 1),
            LANE: min(shape.n, LANES),
        }
        emitter = self.context.emitter(extents, self.accesses)
        emitter.partial = partial
        emitter.given[id(self.result)] = Expression(register, shape.summed)
        indices = self._indices(row, column, extents)
        store_all(emitter, self.outputs, indices)
        self.context.functions |= emitter.functions
        return emitter.lines

    def _indices(self, row: Index, column: Index, extents: dict[str, int]) -> tuple[Index, ...]:
        """Where element (row, column) of product `lead` lies in the result."""
        result, lead = self.result.shape, variable("lead")
        assert self.context.kernel.anchor is not None
        op: Any = self.context.kernel.anchor.op
        if op.name == "matmul":
            place = (column, row) if self.shape.left else (row, column)
            return (*unravel(lead, result[:-2], extents), *place)
        if op.name == "convolution_weight_gradient":
            return (lead * self.shape.m + row, column, *(Index() for _ in result[2:]))
        image, group = divide(lead, op.groups, extents)
        return (image, group * self.shape.m + row, *unravel(column, result[2:], extents))

    # ---- dot products ------------------------------------------------------------------------------------------------

    def _dots(self) -> list[str]:
        """Few rows against rows of the right operand, 16 of them per item."""
        shape, element, tasks = self.shape, self.shape.element, self.context.kernel.tasks
        groups = -(-shape.n // LANES)
        items = shape.lead * groups
        if shape.transpose_a:  # each task that works turns the left operand for itself
            tasks = min(tasks, -(-shape.lead * shape.n // (TURN_COLUMNS * shape.m)))
        stored, summed = MEMORY.get(element, element), shape.summed
        parts, height, tall = balanced(shape.m, shape.m if shape.m <= FEW_DOT_ROWS else DOT_HEIGHT)
        lines = [
            "(void)error;",
            f"{summed} to[{shape.m * LANES}] __attribute__((aligned(64)));",
            f"for (int64_t l = 0; l < {shape.m * LANES}; l++) to[l] = 0;",
            *([f"if (task >= {tasks}) return;", "int64_t known = -1;"] if shape.transpose_a else []),
            f"for (int64_t item = task * {items} / {tasks}; item < (task + 1) * {items} / {tasks}; item++) {{",
            f"const int64_t lead = item / {groups}, column = item % {groups} * {LANES}, row = 0, rows = {shape.m}, width = {LANES};",
            f"const int64_t valid = {shape.n} - column < {LANES} ? {shape.n} - column : {LANES};",
            f"const {stored} *a = {self.a.pointer} + {shape.left_at};",
            f"const {stored} *const b = {self.b.pointer} + {shape.right_at} + column * {shape.k}; (void)lead;",
        ]
        pitch = shape.k
        if shape.transpose_a:
            pitch = -(-shape.k // LANES) * LANES
            turn = transpose_rows(self.context, element)
            lines += [
                f"{stored} *const turned = ({stored} *){self.scratch};",
                f"if (lead != known) {{ {turn}(a, {shape.m}, {shape.m}, {shape.k}, turned, {pitch}); known = lead; }}",
                "a = turned;",
            ]
        lines.append("int64_t q = 0;")
        steps = [dots_width(rows, summed, shape.machine) for rows in (height, height - 1)]
        step = min(steps) if tall < parts else steps[0]
        for columns in dict.fromkeys((step, 1)):
            lines.append(f"for (; q + {columns} <= valid; q += {columns}) {{")
            for first, rows, count in ((0, height, tall), (tall * height, height - 1, parts - tall)):
                if count:
                    name = row_dots(self.context, element, rows, columns)
                    lines.append(
                        f"for (int64_t r = {first}; r < {first + rows * count}; r += {rows}) "
                        f"{name}(a + r * {pitch}, {pitch}, b + q * {shape.k}, {shape.k}, to + r * {LANES} + q);"
                    )
            lines.append("}")
        return [*lines, *self._finish(), "}"]
