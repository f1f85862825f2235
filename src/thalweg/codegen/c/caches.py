"""Kernels of decoding: rows written into a cache in place, and attention to what a cache holds.

In: a kernel whose anchor is `dynamic_update_slice` of a state, or `cached_attention`. Out: its C function. Every
order of summation follows from the place of the newest token and from shapes.
"""

from __future__ import annotations

import math
from typing import Any

from thalweg.codegen.c.bindings import TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.expressions import clamped_start, literal, memory, register
from thalweg.codegen.c.nests import emit_loops, store
from thalweg.codegen.loops import LANE, Index, unravel, variable
from thalweg.graph import Node, Value
from thalweg.ops.core import Composite
from thalweg.plan import LANES, Kernel, aligned
from thalweg.types import float32, int64

BLOCK = 512  # keys whose values are added up before their sum joins that of the blocks before


# ---- a window of a state -----------------------------------------------------------------------------------


def emit_update(context: Context) -> KernelText:
    """The window alone where old and new value share their memory, else the whole new value."""
    anchor = context.kernel.anchor
    assert anchor is not None
    x, update, *starts = anchor.inputs
    if context.buffer(x) is not context.buffer(context.kernel.roots[0], write=True):
        return emit_loops(context)
    if not update.size:
        return context.function("(void)task; (void)error;", TILE_PARAMETERS)
    accesses = context.reads()
    target = context.access(context.kernel.roots[0], write=True)
    shape, tasks = update.shape, context.kernel.tasks
    inner = shape[-1] if shape else 1
    chunks = -(-inner // LANES)
    items = math.prod(shape[:-1]) * chunks
    extents = {"row": math.prod(shape[:-1]), "chunk": inner, LANE: LANES}
    emitter = context.emitter(extents, accesses)
    emitter.partial = "n"
    lead = unravel(variable("row"), shape[:-1], extents) if shape else ()
    indices = (*lead, *([variable("chunk") + variable(LANE)] if shape else []))
    places: list[Index] = []
    for index, start, extent, size in zip(indices, starts, x.shape, shape, strict=True):
        found = emitter.convert(emitter.pull(start, ()), start.dtype, int64).text
        places.append(clamped_start(emitter, found, extent - size) + index)
    store(emitter, target, tuple(places), emitter.pull(update, indices))
    context.functions |= emitter.functions
    lines = [
        "(void)task; (void)error;",
        f"for (int64_t item = task * {items} / {tasks}; item < (task + 1) * {items} / {tasks}; item++) {{",
        f"const int64_t row = item / {chunks}, chunk = item % {chunks} * {LANES}; (void)row; (void)chunk;",
        f"const int n = {inner} - chunk < {LANES} ? (int)({inner} - chunk) : {LANES}; (void)n;",
        *emitter.lines,
        "}",
    ]
    return context.function("\n".join(lines), TILE_PARAMETERS)


# ---- attention to a cache ----------------------------------------------------------------------------------


def attention_workspace(kernel: Kernel) -> int:
    """Bytes for the scores of one query."""
    assert kernel.anchor is not None
    keys = kernel.anchor.inputs[1]
    return int(aligned(-(-keys.shape[2] // LANES) * LANES * max(keys.dtype.itemsize, 4)))


def emit_attention(context: Context) -> KernelText:
    """Query by query: scores of the places up to the query's own, their exponentials, the sum of the values."""
    return _Attention(context).emit()


class _Attention:
    """Writes one kernel."""

    def __init__(self, context: Context) -> None:
        anchor = context.kernel.anchor
        assert anchor is not None and isinstance(anchor.op, Composite)
        self.context = context
        query, keys, stored, place, visible, bias = anchor.op.arguments(anchor.inputs)
        self.scale = literal(anchor.op.attributes()["scale"], _sums(anchor))
        self.query, self.keys, self.stored = query, keys, stored
        self.place, self.visible, self.bias = place, visible, bias
        self.element = query.dtype.short  # in memory; sums are in `kind`
        self.kind = register(query.dtype)
        context.functions.add(f"exp_{self.kind}")

    def pointer(self, value: Value) -> str:
        return self.context.access(value).pointer

    def emit(self) -> KernelText:
        batch, heads, length, size = self.query.shape
        groups, room = self.keys.shape[1], self.keys.shape[2]
        items, tasks = batch * heads * length, self.context.kernel.tasks
        element, kind, ctype = self.element, self.kind, memory(self.query.dtype)
        target = self.context.access(self.context.kernel.roots[0], write=True).pointer
        scratch = self.context.pointer(self.context.kernel.detail["workspace"], write=True)
        limit = f"{self.pointer(self.place)}[0] + t + 1" if self.place is not None else str(room)
        base = f"(b * {groups} + h / {heads // groups}) * {room * size}"
        lines = [
            "(void)error;",
            f"{kind} *const score = ({kind} *){scratch};",
            f"for (int64_t item = task * {items} / {tasks}; item < (task + 1) * {items} / {tasks}; item++) {{",
            f"const int64_t b = item / {heads * length}, h = item / {length} % {heads}, t = item % {length};",
            f"int64_t n = {limit}; n = n < 0 ? 0 : n > {room} ? {room} : n; (void)b; (void)h; (void)t;",
            f"const {ctype} *const q = {self.pointer(self.query)} + item * {size};",
            f"const {ctype} *const keys = {self.pointer(self.keys)} + {base};",
            f"const {ctype} *const values = {self.pointer(self.stored)} + {base};",
            *(f"const {kind}x16 q{c} = {self._load('q', c)};" for c in range(self.chunks)),
            *self._scores(),
            *self._exponentials(),
            *self._values(),
            f"const {kind}x16 whole = broadcast_{kind}(total > 0 ? total : 1);",
        ]
        for c in range(self.chunks):
            at, left = f"{target} + item * {size} + {c * LANES}", min(LANES, size - c * LANES)
            mean = f"divide_{kind}(sum{c}, whole)"
            last = f", {left}" if left < LANES else ""
            lines.append(f"store_{'partial_' if last else ''}{element}({at}, {mean}{last});")
        return self.context.function("\n".join([*lines, "}"]), TILE_PARAMETERS)

    @property
    def chunks(self) -> int:
        """Vectors of one row."""
        size: int = self.query.shape[3]
        return -(-size // LANES)

    def _load(self, row: str, chunk: int) -> str:
        """Part of a row of keys, values or queries."""
        left = self.query.shape[3] - chunk * LANES
        if left >= LANES:
            return f"load_{self.element}({row} + {chunk * LANES})"
        return f"load_partial_{self.element}({row} + {chunk * LANES}, {left})"

    def _scores(self) -> list[str]:
        """Scaled products of 16 keys at a time, minus infinity for those that are not seen; their largest."""
        kind, size, room = self.kind, self.query.shape[3], self.keys.shape[2]
        product = [
            f"const {memory(self.keys.dtype)} *const key = keys + (j + r) * {size};",
            f"{kind}x16 s = broadcast_{kind}(0);",
            *(f"s = fma_{kind}(q{c}, {self._load('key', c)}, s);" for c in range(self.chunks)),
            "rows[r] = s;",
        ]
        joined = (
            ["const f32x16 sums = sum_rows_f32(rows);"]
            if kind == "f32"
            else [
                f"{kind}_lanes each; for (int r = 0; r < 16; r++) each.lane[r] = sum_{kind}(rows[r]);",
                f"const {kind}x16 sums = each.whole;",
            ]
        )
        mask = f"m{32 if kind == 'f32' else 64}"
        lines = [
            f"{kind}x16 top = broadcast_{kind}(-__builtin_inf());",
            f"for (int64_t j = 0; j < n; j += {LANES}) {{",
            f"const int count = n - j < {LANES} ? (int)(n - j) : {LANES};",
            f"{kind}x16 rows[{LANES}];",
            f"for (int r = 0; r < count; r++) {{ {' '.join(product)} }}",
            f"for (int r = count; r < {LANES}; r++) rows[r] = broadcast_{kind}(0);",
            *joined,
            f"{kind}x16 s = multiply_{kind}(sums, broadcast_{kind}({self.scale}));",
            f"{mask}x16 seen = first_lanes_{mask.replace('m', 'i')}(count);",
        ]
        if self.bias is not None:
            row = f"((b % {self.bias.shape[0]} * {self.query.shape[1]} + h) * {self.query.shape[2]} + t) * {room}"
            load = f"load_partial_{self.element}({self.pointer(self.bias)} + {row} + j, count)"
            lines.append(f"s = add_{kind}(s, {load});")
        if self.visible is not None:
            load = f"load_partial_bool({self.pointer(self.visible)} + b * {room} + j, count)"
            wide = mask.replace("m", "i")
            lines.append(f"seen = bitwise_and_{wide}(seen, convert_i8_to_{wide}({load}));")
        return [
            *lines,
            f"s = select_{kind}(seen, s, broadcast_{kind}(-__builtin_inf()));",
            f"store_{kind}(score + j, s); top = maximum_{kind}(top, s);",
            "}",
        ]

    def _exponentials(self) -> list[str]:
        kind = self.kind
        return [
            f"const {kind} largest = max_{kind}(top);",
            f"const {kind}x16 shift = broadcast_{kind}(largest == -__builtin_inf() ? 0 : largest);",
            f"{kind}x16 totals = broadcast_{kind}(0);",
            f"for (int64_t j = 0; j < n; j += {LANES}) {{",
            f"const {kind}x16 weight = exp_{kind}(subtract_{kind}(load_{kind}(score + j), shift));",
            f"store_{kind}(score + j, weight); totals = add_{kind}(totals, weight);",
            "}",
            f"const {kind} total = sum_{kind}(totals);",
        ]

    def _values(self) -> list[str]:
        kind, size = self.kind, self.query.shape[3]
        names = range(self.chunks)
        add = [f"p{c} = fma_{kind}(weight, {self._load('value', c)}, p{c});" for c in names]
        return [
            " ".join(f"{kind}x16 sum{c} = broadcast_{kind}(0);" for c in names),
            f"for (int64_t first = 0; first < n; first += {BLOCK}) {{",
            f"const int64_t end = first + {BLOCK} < n ? first + {BLOCK} : n;",
            " ".join(f"{kind}x16 p{c} = broadcast_{kind}(0);" for c in names),
            "for (int64_t j = first; j < end; j++) {",
            f"const {memory(self.stored.dtype)} *const value = values + j * {size};",
            f"const {kind}x16 weight = broadcast_{kind}(score[j]);",
            *add,
            "}",
            *(f"sum{c} = add_{kind}(sum{c}, p{c});" for c in names),
            "}",
        ]


def _sums(anchor: Node) -> Any:
    """The element type of the sums."""
    dtype = anchor.inputs[0].dtype
    return float32 if dtype.itemsize == 2 else dtype
