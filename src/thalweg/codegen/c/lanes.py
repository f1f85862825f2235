"""Batch kernels: one sample per lane. Packing, matrix products, unpooling, and what they share with convolutions.

A block buffer holds 16 samples per vector, other axes row-major, the lane innermost. Every load is then aligned and
contiguous, weights are broadcast from row-major memory as they are, and a register tile of accumulators is never
wasted on few channels. Edge tiles are emitted as tiles of their own size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from thalweg.codegen.c.bindings import LANE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.expressions import Expression, memory, register
from thalweg.codegen.c.nests import store_all
from thalweg.codegen.loops import LANE, Index, constant, variable
from thalweg.errors import UnsupportedError
from thalweg.graph import Value
from thalweg.plan import LANES
from thalweg.types import Type

MOST_ACCUMULATORS = 24  # of 32 vector registers; the others hold operands
BLOCKS = f"for (int64_t b = 0; b * {LANES} < count; b++)"
UNUSED = "(void)origin; (void)first; (void)error;"


def best_tile(rows: int, columns: int, most_rows: int = 12, most_columns: int = 14) -> tuple[int, int]:
    """The register tile of least cost: per step a tile of r x c takes r*c multiply-adds and r + c loads, and fewer than
    8 accumulators wait for each other."""

    def cost(r: int, c: int) -> float:
        total = 0.0
        for height in _tiles(rows, r):
            for width in _tiles(columns, c):
                total += max(height * width, 0.9 * (height + width), 6)
        return total

    candidates = [
        (r, c)
        for r in range(1, min(rows, most_rows) + 1)
        for c in range(1, min(columns, most_columns) + 1)
        if r * c <= MOST_ACCUMULATORS
    ]
    return min(candidates, key=lambda t: (cost(*t), -t[0] * t[1]))


def _tiles(extent: int, size: int) -> list[int]:
    return [size] * (extent // size) + ([extent % size] if extent % size else [])


def tile_loops(name: str, extent: int, size: int) -> Iterator[tuple[str, int]]:
    """Headers of the loop over full tiles and of the edge tile, with the tile's size."""
    whole = extent // size * size
    if whole:
        yield f"for (int64_t {name} = 0; {name} < {whole}; {name} += {size}) {{", size
    if extent % size:
        yield f"{{ const int64_t {name} = {whole};", extent % size


# ---- packing --------------------------------------------------------------------------------------------------------


def emit_pack(context: Context) -> KernelText:
    """Row-major samples into a batch block (and back, for "unpack"): 16 x 16 transposes."""
    kernel = context.kernel
    value = kernel.roots[0]
    unpack = kernel.kind == "unpack"
    source, target = context.access(value), context.access(value, write=True)
    axis = context.batch_axis[id(value)]
    inner = math.prod(value.shape[axis + 1 :])
    outer = math.prod(value.shape[:axis])
    rest = inner * outer
    element = memory(value.dtype)
    row, lane = (target.pointer, source.pointer) if unpack else (source.pointer, target.pointer)
    row_stride = inner
    address = f"o * {value.shape[axis] * inner} + (b * {LANES} + l) * {row_stride} + i"
    lane_address = f"b * {rest * LANES} + (o * {inner} + i) * {LANES} + l"
    lines = [
        UNUSED,
        f"{BLOCKS} {{",
        f"const int n = count - b * {LANES} < {LANES} ? (int)(count - b * {LANES}) : {LANES};",
    ]
    lines.append(f"for (int64_t o = 0; o < {outer}; o++) {{")
    start = 0
    if value.dtype.short == "f32" and inner >= LANES:
        start = inner // LANES * LANES
        lines.append(
            f"if (n == {LANES}) for (int64_t i = 0; i < {start}; i += {LANES}) {{ f32x16 t[{LANES}];"
        )
        first = f"{row} + o * {value.shape[axis] * inner} + b * {LANES * row_stride} + i"
        block = f"{lane} + b * {rest * LANES} + (o * {inner} + i) * {LANES}"
        near, far = (block, LANES), (first, row_stride)
        (load_from, load_step), (store_to, store_step) = (near, far) if unpack else (far, near)
        lines.append(f"for (int l = 0; l < {LANES}; l++) t[l] = load_f32({load_from} + l * {load_step});")
        lines.append("transpose_f32(t);")
        lines.append(f"for (int l = 0; l < {LANES}; l++) store_f32({store_to} + l * {store_step}, t[l]); }}")
    begin = f"(n == {LANES} ? {start} : 0)" if start else "0"
    lines.append(f"for (int64_t i = {begin}; i < {inner}; i++) for (int l = 0; l < {LANES}; l++)")
    if unpack:
        lines.append(f"if (l < n) {row}[{address}] = {lane}[{lane_address}];")
    else:
        lines.append(f"{lane}[{lane_address}] = l < n ? {row}[{address}] : ({element})0;")
    lines.append("}}")
    return context.function("\n".join(lines), LANE_PARAMETERS)


def clear_tail(pointer: str, rest: int) -> str:
    """Statement that zeroes the lanes behind the last sample of a block: sums over the batch must not see them."""
    return (
        f"if (count % {LANES}) for (int64_t i = 0; i < {rest}; i++) for (int l = (int)(count % {LANES}); l < {LANES}; l++) "
        f"{pointer}[(count / {LANES} * {rest} + i) * {LANES} + l] = 0;"
    )


def sum_lanes(element: str, names: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Statements that add the lane sums of vectors to their slots (or store them, for the first block of a shard)."""
    lines: list[str] = []
    for start in range(0, len(names), LANES):
        chosen, slots = names[start : start + LANES], targets[start : start + LANES]
        if element == "f32" and len(chosen) > 4:
            filled = [*chosen, *["broadcast_f32(0)"] * (LANES - len(chosen))]
            lines.append(
                f"{{ f32x16 rows[{LANES}] = {{{', '.join(filled)}}}; f32_lanes sums = {{sum_rows_f32(rows)}};"
            )
            lines += [f"{t} = first ? sums.lane[{i}] : {t} + sums.lane[{i}];" for i, t in enumerate(slots)]
            lines.append("}")
        else:
            lines += [
                f"{{ const {element} sum = sum_{element}({v}); {t} = first ? sum : {t} + sum; }}"
                for v, t in zip(chosen, slots, strict=True)
            ]
    return lines


# ---- matrix products ------------------------------------------------------------------------------------------------


@dataclass
class _Operand:
    """How an operand element at (lead.., row, k) is loaded: one vector of samples, or one number for all of them."""

    pointer: str
    address: Index
    vector: bool


def emit_matmul(context: Context) -> KernelText:
    """Matrix products in which each lane is a sample: x @ W and W @ x with the batch on a row, or one product per sample;
    with the batch summed over ("partial") the products of samples are added up and the lanes at the end."""
    kernel = context.kernel
    anchor = kernel.anchor
    assert anchor is not None
    op: Any = anchor.op
    a, b = anchor.inputs
    result = anchor.outputs[0]
    element = floating(a)
    accesses = context.reads()
    batch = context.batch_axis
    lead = result.ndim - 2
    partial = kernel.role == "partial"
    where = None if partial else batch[id(result)]
    m, n = result.shape[-2:]
    k = a.shape[-2] if op.transpose_a else a.shape[-1]
    outputs = [(root, context.access(root, write=True)) for root in kernel.roots]
    lines = [UNUSED]
    if partial:
        for operand in (a, b):
            context.written.add(id(context.buffer(operand)))
            lines.append(
                clear_tail(accesses[id(operand)].pointer, operand.size // operand.shape[batch[id(operand)]])
            )
    lines.append(f"{BLOCKS} {{" if not partial else "{")
    names: list[Index] = []
    opened = 1
    for axis in range(lead):
        if axis == where:
            names.append(variable("b", LANES) + variable(LANE))
            continue
        names.append(variable(f"l{axis}"))
        lines.append(f"for (int64_t l{axis} = 0; l{axis} < {result.shape[axis]}; l{axis}++) {{")
        opened += 1
    rows = 1 if where == lead else m
    columns = 1 if where == lead + 1 else n
    height, width = best_tile(rows, columns, MOST_ACCUMULATORS, MOST_ACCUMULATORS)
    for header, r in tile_loops("i", rows, height):
        lines.append(header)
        for inner, c in tile_loops("j", columns, width):
            lines.append(inner)
            lines += _product_tile(context, accesses, names, where, k, r, c, element)
            if partial:
                target = outputs[0][1]
                slots = [
                    f"{target.pointer}[{target.address((*names, variable('i') + constant(p), variable('j') + constant(q))).text()}]"
                    for p in range(r)
                    for q in range(c)
                ]
                lines += sum_lanes(element, [f"a{p}_{q}" for p in range(r) for q in range(c)], slots)
            else:
                lines += _product_epilogue(context, accesses, outputs, names, where, r, c)
            lines.append("}")
        lines.append("}")
    lines.append("}" * opened)
    return context.function("\n".join(lines), LANE_PARAMETERS)


def _product_tile(
    context: Context,
    accesses: dict[int, Any],
    names: list[Index],
    where: int | None,
    k: int,
    r: int,
    c: int,
    element: str,
) -> list[str]:
    """Accumulators a<row>_<column> summed over k (and, in a partial product, over the vectors of the block)."""
    anchor = context.kernel.anchor
    assert anchor is not None
    op: Any = anchor.op
    partial = context.kernel.role == "partial"
    sample = variable("b", LANES) + variable(LANE)
    lines = [" ".join(f"{element}x16 a{p}_{q} = broadcast_{element}(0);" for p in range(r) for q in range(c))]
    summed = sample if partial else variable("k")
    header = (
        f"for (int64_t b = 0; b * {LANES} < count; b++) {{"
        if partial
        else f"for (int64_t k = 0; k < {k}; k++) {{"
    )
    lines.append(header)
    row = [sample] if where == len(names) else [variable("i") + constant(p) for p in range(r)]
    column = [sample] if where == len(names) + 1 else [variable("j") + constant(q) for q in range(c)]

    def load(value: Value, position: Index, swapped: bool, first: bool) -> str:
        pair = (position, summed) if first else (summed, position)
        if swapped:
            pair = (pair[1], pair[0])
        access = accesses[id(value)]
        indices = tuple(
            sample if context.batch_axis.get(id(value)) == axis else index
            for axis, index in enumerate((*names, *pair))
        )
        address = access.address(indices)
        if address.by_lane:
            return f"load_{element}({access.pointer} + {(address - variable(LANE)).text()})"
        return f"broadcast_{element}({access.pointer}[{address.text()}])"

    for q, position in enumerate(column):
        lines.append(f"const {element}x16 y{q} = {load(anchor.inputs[1], position, op.transpose_b, False)};")
    for p, position in enumerate(row):
        products = " ".join(f"a{p}_{q} = fma_{element}(x, y{q}, a{p}_{q});" for q in range(len(column)))
        lines.append(
            f"{{ const {element}x16 x = {load(anchor.inputs[0], position, op.transpose_a, True)}; {products} }}"
        )
    lines.append("}")
    return lines


def _product_epilogue(
    context: Context,
    accesses: dict[int, Any],
    outputs: Sequence[tuple[Value, Any]],
    names: list[Index],
    where: int | None,
    r: int,
    c: int,
) -> list[str]:
    anchor = context.kernel.anchor
    assert anchor is not None
    result = anchor.outputs[0]
    sample = variable("b", LANES) + variable(LANE)
    lines = [f"const int n = count - b * {LANES} < {LANES} ? (int)(count - b * {LANES}) : {LANES}; (void)n;"]
    extents = {"b": 1 << 40, LANE: LANES, "i": 1 << 30, "j": 1 << 30}
    extents.update({f"l{axis}": result.shape[axis] for axis in range(len(names))})
    for p in range(r):
        for q in range(c):
            emitter = context.emitter(dict(extents), accesses)
            emitter.partial = "n"
            emitter.given[id(result)] = Expression(f"a{p}_{q}", register(result.dtype))
            row = sample if where == len(names) else variable("i") + constant(p)
            column = sample if where == len(names) + 1 else variable("j") + constant(q)
            indices = (*names, row, column)
            store_all(emitter, outputs, indices)
            context.functions |= emitter.functions
            lines.append("{ " + " ".join(emitter.lines) + " }")
    return lines


# ---- unpooling ------------------------------------------------------------------------------------------------------


def emit_unpool(context: Context) -> KernelText:
    """Cotangents back to their windows: zeros first, then each tap of each window takes what its index says."""
    kernel = context.kernel
    anchor = kernel.anchor
    assert anchor is not None
    op: Any = anchor.op
    g, result = anchor.inputs[0], anchor.outputs[0]
    accesses = context.reads()
    target = context.access(kernel.roots[0], write=True)
    kind, short = register(result.dtype), result.dtype.short
    batch = context.batch_axis[id(result)]
    planes = result.shape[1 - batch]  # channels; where those are the samples, what else leads
    spatial, pooled = result.shape[2:], g.shape[2:]
    rest = math.prod(spatial)
    lines = [
        UNUSED,
        f"{BLOCKS} {{",
        f"{memory(result.dtype)} *const to = {target.pointer} + b * {planes * rest * LANES};",
    ]
    overlap = any(k > s or d > 1 for k, s, d in zip(op.kernel, op.strides, op.dilation, strict=True))
    covered = not overlap and all(
        k == s and o * s == e and p == (0, 0)
        for k, s, o, e, p in zip(op.kernel, op.strides, pooled, spatial, op.padding, strict=True)
    )
    if not covered:
        lines.append(f"for (int64_t i = 0; i < {planes * rest * LANES}; i++) to[i] = 0;")
    lines.append(f"for (int64_t c = 0; c < {planes}; c++) {{")
    names = [f"o{a}" for a in range(len(pooled))]
    for name, extent in zip(names, pooled, strict=True):
        lines.append(f"for (int64_t {name} = 0; {name} < {extent}; {name}++) {{")
    at = "b * " + str(planes) + " + c"
    for name, extent in zip(names, pooled, strict=True):
        at = f"({at}) * {extent} + {name}"
    lines.append(f"const {kind}x16 g = load_{short}({accesses[id(g)].pointer} + ({at}) * {LANES});")
    chosen = op.name == "max_unpool"
    if chosen:
        lines.append(
            f"const i32x16 place = load_i32({accesses[id(anchor.inputs[1])].pointer} + ({at}) * {LANES});"
        )
    for number, tap in enumerate(_positions(op.kernel)):
        conditions: list[str] = []
        to = "c"
        for axis, (t, name) in enumerate(zip(tap, names, strict=True)):
            stride, dilation, low = op.strides[axis], op.dilation[axis], op.padding[axis][0]
            shift = t * dilation - low
            place = f"{name} * {stride} + {shift}" if shift >= 0 else f"{name} * {stride} - {-shift}"
            if shift < 0:
                conditions.append(f"{place} >= 0")
            if (pooled[axis] - 1) * stride + shift >= spatial[axis]:
                conditions.append(f"{place} < {spatial[axis]}")
            to = f"({to}) * {spatial[axis]} + {place}"
        value = "g"
        if chosen:
            zero = f"broadcast_{kind}(0)"
            mask = f"equal_i32(place, broadcast_i32({number}))"
            if kind not in ("f32", "i32", "u32"):
                mask = f"convert_i32_to_i{kind[1:]}({mask})"
            value = f"select_{kind}({mask}, g, {zero})"
        spot = f"to + ({to}) * {LANES}"
        if overlap:
            value = f"add_{kind}(load_{short}({spot}), {value})"
        guard = f"if ({' && '.join(conditions)}) " if conditions else ""
        lines.append(f"{guard}store_{short}({spot}, {value});")
    lines.append("}" * (len(names) + 2))
    return context.function("\n".join(lines), LANE_PARAMETERS)


def _positions(kernel: Sequence[int]) -> Iterator[tuple[int, ...]]:
    import itertools

    return itertools.product(*(range(k) for k in kernel))


# ---- helpers --------------------------------------------------------------------------------------------------------


def floating(value: Value) -> str:
    if value.dtype.short not in ("f32", "f64"):
        raise UnsupportedError(f"no batch kernel for {value.dtype} contractions")
    return value.dtype.short


def workspace_pointer(context: Context) -> str:
    buffer = context.kernel.detail["workspace"]
    return context.pointer(buffer, write=True)


def workspace_type(nbytes: int) -> Type:
    """A buffer of raw bytes."""
    from thalweg import types

    return Type(types.uint8, (nbytes,))
