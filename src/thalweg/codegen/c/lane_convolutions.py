"""Convolutions on batch blocks, one sample per lane: forward, input gradient and weight gradient.

A register tile holds filters x pixels (filters x taps for weight gradients). At the border the loops over taps are
clipped, so nothing is multiplied by zeros; with dilation, and for weight gradients, a bordered copy is read instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from thalweg.codegen.c.bindings import LANE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.expressions import Expression, register
from thalweg.codegen.c.lanes import (
    BLOCKS,
    UNUSED,
    best_tile,
    clear_tail,
    floating,
    sum_lanes,
    tile_loops,
    workspace_pointer,
)
from thalweg.codegen.c.nests import store_all
from thalweg.codegen.loops import LANE, constant, variable
from thalweg.graph import Value
from thalweg.plan import LANES, Kernel


@dataclass
class Geometry:
    """A convolution as the kernels run it: correlate a bordered source of C channels with K filters."""

    channels: int  # of the source, per group
    filters: int  # per group
    groups: int
    source: tuple[int, ...]  # spatial sizes before the border
    low: tuple[int, ...]  # border before
    bordered: tuple[int, ...]  # spatial sizes of the bordered copy
    spread: tuple[int, ...]  # 1, or the stride of a gradient: zeros between neighbours of the source
    out: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def bordered_elements(self) -> int:
        return self.channels * self.groups * math.prod(self.bordered)

    @property
    def is_bordered(self) -> bool:
        """Do taps reach beyond the source, or between its neighbours?"""
        return self.bordered != self.source or any(s != 1 for s in self.spread)

    @property
    def clips(self) -> bool:
        """Can the loops over taps be clipped to the source instead of reading zeros from a bordered copy?"""
        return all(s == 1 for s in self.spread) and all(d == 1 for d in self.dilation)

    def clear(self, first: int, last: int) -> bool:
        """Do all taps of output positions first to last (last axis) lie inside the source?"""
        low, stride = self.low[-1], self.strides[-1]
        return (
            first * stride >= low
            and last * stride + (self.kernel[-1] - 1) * self.dilation[-1] - low < self.source[-1]
        )


def geometry(kernel: Kernel) -> Geometry:
    """The geometry of a convolution or of its input gradient."""
    assert kernel.anchor is not None
    op: Any = kernel.anchor.op
    x, w = kernel.anchor.inputs
    y = kernel.anchor.outputs[0]
    taps = op.kernel if op.name == "convolution_weight_gradient" else w.shape[2:]
    reach = [(k - 1) * d for k, d in zip(taps, op.dilation, strict=True)]
    if op.name != "convolution_input_gradient":
        out = (w if op.name == "convolution_weight_gradient" else y).shape[2:]
        low = tuple(p[0] for p in op.padding)
        bordered = tuple((o - 1) * s + r + 1 for o, s, r in zip(out, op.strides, reach, strict=True))
        filters = (w.shape[1] if op.name == "convolution_weight_gradient" else w.shape[0]) // op.groups
        return Geometry(
            x.shape[1] // op.groups,
            filters,
            op.groups,
            x.shape[2:],
            low,
            bordered,
            (1,) * len(out),
            out,
            taps,
            op.strides,
            op.dilation,
        )
    low = tuple(r - p[0] for r, p in zip(reach, op.padding, strict=True))
    bordered = tuple(o + r for o, r in zip(op.spatial, reach, strict=True))
    return Geometry(
        x.shape[1] // op.groups,
        w.shape[1],
        op.groups,
        x.shape[2:],
        low,
        bordered,
        op.strides,
        tuple(op.spatial),
        taps,
        (1,) * len(taps),
        op.dilation,
    )


def convolution_workspace(kernel: Kernel, block: int) -> int:
    """Bytes of scratch for the bordered copy: one vector of samples, or the whole block for weight gradients."""
    shape = geometry(kernel)
    assert kernel.anchor is not None
    weights = kernel.anchor.op.name == "convolution_weight_gradient"
    if not shape.is_bordered or (shape.clips and not weights):
        return 0
    vectors = block // LANES if weights else 1
    return shape.bordered_elements * LANES * kernel.anchor.inputs[0].dtype.itemsize * vectors


def _border_copy(shape: Geometry, source: str, target: str, element: str) -> list[str]:
    """Statements that write one vector of samples with its border (zeros) to `target`."""
    rank = len(shape.source)
    lines = [f"for (int64_t i = 0; i < {shape.bordered_elements * LANES}; i++) {target}[i] = 0;"]
    names = [f"s{a}" for a in range(rank)]
    lines.append(f"for (int64_t c = 0; c < {shape.channels * shape.groups}; c++)")
    conditions: list[str] = []
    for name, extent, low, size, spread in zip(
        names, shape.source, shape.low, shape.bordered, shape.spread, strict=True
    ):
        lines.append(f"for (int64_t {name} = 0; {name} < {extent}; {name}++)")
        if low < 0 or low + (extent - 1) * spread >= size:
            conditions.append(f"{name} * {spread} + {low} >= 0 && {name} * {spread} + {low} < {size}")
    if conditions:
        lines.append(f"if ({' && '.join(conditions)})")
    at = "c"
    to = "c"
    for name, extent, low, size, spread in zip(
        names, shape.source, shape.low, shape.bordered, shape.spread, strict=True
    ):
        at = f"({at}) * {extent} + {name}"
        to = f"({to}) * {size} + {name} * {spread} + {low}"
    lines.append(
        f"store_{element}({target} + ({to}) * {LANES}, load_{element}({source} + ({at}) * {LANES}));"
    )
    return lines


def emit_convolution(context: Context) -> KernelText:
    """Convolution, or its gradient with respect to the input: a tile of filters x pixels in registers per vector."""
    kernel = context.kernel
    anchor = kernel.anchor
    assert anchor is not None
    backward = anchor.op.name == "convolution_input_gradient"
    shape = geometry(kernel)
    x, w = anchor.inputs
    element = floating(x)
    accesses = context.reads()
    outputs = [(root, context.access(root, write=True)) for root in kernel.roots]
    source, weight = accesses[id(x)].pointer, accesses[id(w)].pointer
    block_elements = math.prod(x.shape[1:]) * LANES
    lines = [UNUSED, f"{BLOCKS} {{"]
    at = f"{source} + b * {block_elements}"
    if shape.is_bordered and not shape.clips:
        lines.append(f"{element} *const border = ({element} *){workspace_pointer(context)};")
        lines += [f"const {element} *const from = {at};", *_border_copy(shape, "from", "border", element)]
        lines.append(f"const {element} *const input = border;")
        shape = replace(shape, source=shape.bordered, low=(0,) * len(shape.low))
    else:
        lines.append(f"const {element} *const input = {at};")
    rows, columns = best_tile(shape.filters, shape.out[-1])
    for group in range(shape.groups):
        for header, height in tile_loops("k", shape.filters, rows):
            lines.append(header)
            spatial = [f"o{a}" for a in range(len(shape.out) - 1)]
            for name, extent in zip(spatial, shape.out, strict=False):
                lines.append(f"for (int64_t {name} = 0; {name} < {extent}; {name}++) {{")
            for inner, first, width in _pixel_tiles(shape, columns):
                lines.append(inner)
                lines += _convolution_tile(shape, group, height, width, first, element, weight, w, backward)
                lines += _tile_epilogue(
                    context,
                    accesses,
                    outputs,
                    anchor.outputs[0],
                    group * shape.filters,
                    spatial,
                    height,
                    width,
                )
                lines.append("}")
            lines.append("}" * (len(spatial) + 1))
    lines.append("}")
    return context.function("\n".join(lines), LANE_PARAMETERS)


def _pixel_tiles(shape: Geometry, columns: int) -> Iterator[tuple[str, int | None, int]]:
    """Headers of the tiles along the last axis: (header, first pixel or None inside a loop, width).

    Tiles whose taps all lie inside the source share a loop; each tile at a border is written out, its taps clipped.
    """
    position, extent = 0, shape.out[-1]
    while position < extent:
        width = min(columns, extent - position)
        end = position
        while end + columns <= extent and shape.clear(end, end + columns - 1):
            end += columns
        if end > position:
            yield f"for (int64_t p = {position}; p < {end}; p += {columns}) {{", None, columns
            position = end
        else:
            yield f"{{ const int64_t p = {position};", position, width
            position += width


def _convolution_tile(
    shape: Geometry,
    group: int,
    height: int,
    width: int,
    first: int | None,
    element: str,
    weight: str,
    w: Value,
    backward: bool,
) -> list[str]:
    """Accumulators a<filter>_<pixel> of one tile, summed over channels and the taps that lie inside the source."""
    rank = len(shape.out)
    lines = [
        " ".join(
            f"{element}x16 a{r}_{j} = broadcast_{element}(0);" for r in range(height) for j in range(width)
        ),
        f"for (int64_t c = 0; c < {shape.channels}; c++) {{",
    ]
    position = f"{group * shape.channels} + c"
    for a in range(rank - 1):
        start = f"o{a} * {shape.strides[a]} - {shape.low[a]}"
        taps, extent = shape.kernel[a], shape.source[a]
        lower, upper = "0", str(taps)
        if shape.low[a] > 0:
            lower = f"({start} < 0 ? -({start}) : 0)"
        if (shape.out[a] - 1) * shape.strides[a] + (taps - 1) * shape.dilation[a] - shape.low[a] >= extent:
            upper = f"({extent} - ({start}) < {taps} ? {extent} - ({start}) : {taps})"
        lines.append(f"for (int64_t t{a} = {lower}; t{a} < {upper}; t{a}++) {{")
        position = f"({position}) * {extent} + {start} + t{a} * {shape.dilation[a]}"
    position = f"({position}) * {shape.source[-1]} + p * {shape.strides[-1]} - {shape.low[-1]}"
    lines.append(f"const {element} *const s = input + ({position}) * {LANES};")
    # weight [K][C/groups][taps]: forward row k, gradient column k with the taps reversed
    size = math.prod(shape.kernel)
    tap = "0"
    for a in range(rank - 1):
        step = f"{shape.kernel[a] - 1} - t{a}" if backward else f"t{a}"
        tap = f"({tap}) * {shape.kernel[a]} + {step}"
    tap = f"({tap}) * {shape.kernel[-1]}"
    per_filter = w.shape[1] * size
    if backward:
        lines.append(
            f"const {element} *const f = {weight} + ({group * shape.channels} + c) * {per_filter} + k * {size} + {tap};"
        )
        filter_step = size
    else:
        lines.append(
            f"const {element} *const f = {weight} + ({group * shape.filters} + k) * {per_filter} + c * {size} + {tap};"
        )
        filter_step = per_filter
    last = shape.kernel[-1]
    for t in range(last):
        inside = [j for j in range(width) if first is None or _reaches(shape, first + j, t)]
        if not inside:
            continue
        lines.append("{")
        for j in inside:
            offset = (j * shape.strides[-1] + t * shape.dilation[-1]) * LANES
            lines.append(f"const {element}x16 x{j} = load_{element}(s + {offset});")
        for r in range(height):
            at = r * filter_step + (last - 1 - t if backward else t)
            products = " ".join(f"a{r}_{j} = fma_{element}(w, x{j}, a{r}_{j});" for j in inside)
            lines.append(f"{{ const {element}x16 w = broadcast_{element}(f[{at}]); {products} }}")
        lines.append("}")
    lines.append("}" * rank)
    return lines


def _reaches(shape: Geometry, pixel: int, tap: int) -> bool:
    """Does a tap of an output position (last axis) lie inside the source?"""
    return 0 <= pixel * shape.strides[-1] + tap * shape.dilation[-1] - shape.low[-1] < shape.source[-1]


def _tile_epilogue(
    context: Context,
    accesses: dict[int, Any],
    outputs: Sequence[tuple[Value, Any]],
    result: Value,
    first_filter: int,
    spatial: Sequence[str],
    height: int,
    width: int,
) -> list[str]:
    """Bias, activation, ... and the stores, on the accumulators of one tile."""
    lines = [f"const int n = count - b * {LANES} < {LANES} ? (int)(count - b * {LANES}) : {LANES}; (void)n;"]
    extents = dict(zip(spatial, result.shape[2:], strict=False))
    for r in range(height):
        for j in range(width):
            emitter = context.emitter(
                {**extents, "k": 1 << 30, "p": 1 << 30, "b": 1 << 40, LANE: LANES}, accesses
            )
            emitter.partial = "n"
            emitter.given[id(result)] = Expression(f"a{r}_{j}", register(result.dtype))
            indices = (
                variable("b", LANES) + variable(LANE),
                variable("k") + constant(first_filter + r),
                *(variable(name) for name in spatial),
                variable("p") + constant(j),
            )
            store_all(emitter, outputs, indices)
            context.functions |= emitter.functions
            lines.append("{ " + " ".join(emitter.lines) + " }")
    return lines


def emit_convolution_weight_gradient(context: Context) -> KernelText:
    """Sums over the block's samples and pixels: a tile of filters x taps in registers, then a tree over the lanes."""
    kernel = context.kernel
    anchor = kernel.anchor
    assert anchor is not None
    shape = geometry(kernel)
    x, g = anchor.inputs
    element = floating(x)
    accesses = context.reads()
    slot = context.access(kernel.roots[0], write=True).pointer
    source, cotangent = accesses[id(x)].pointer, accesses[id(g)].pointer
    context.written |= {id(context.buffer(g)), id(context.buffer(x))}
    rank = len(shape.out)
    pixels, taps = math.prod(shape.out), math.prod(shape.kernel)
    all_filters, all_channels = shape.filters * shape.groups, shape.channels * shape.groups
    lines = [UNUSED, f"const int64_t vectors = (count + {LANES - 1}) / {LANES};"]
    lines.append(clear_tail(cotangent, all_filters * pixels))
    lines.append(clear_tail(source, all_channels * math.prod(shape.source)))
    if shape.is_bordered:
        lines.append(f"{element} *const input = ({element} *){workspace_pointer(context)};")
        lines.append("for (int64_t b = 0; b < vectors; b++) {")
        lines.append(
            f"const {element} *const from = {source} + b * {all_channels * math.prod(shape.source) * LANES};"
        )
        lines.append(f"{element} *const border = input + b * {shape.bordered_elements * LANES};")
        lines += [*_border_copy(shape, "from", "border", element), "}"]
    else:
        lines.append(f"const {element} *const input = {source};")
    rows, columns = best_tile(shape.filters, shape.kernel[-1], 8, 12)
    outer_taps = [f"t{a}" for a in range(rank - 1)]
    lines.append(f"for (int64_t group = 0; group < {shape.groups}; group++)")
    lines.append(f"for (int64_t c = 0; c < {shape.channels}; c++)")
    for name, extent in zip(outer_taps, shape.kernel, strict=False):
        lines.append(f"for (int64_t {name} = 0; {name} < {extent}; {name}++)")
    lines.append("{")
    for header, height in tile_loops("k", shape.filters, rows):
        lines.append(header)
        for inner, width in tile_loops("t", shape.kernel[-1], columns):
            lines.append(inner)
            lines += _weight_tile(shape, height, width, element, cotangent, pixels, all_filters, all_channels)
            names = [(r, j) for r in range(height) for j in range(width)]
            at = "c"
            for a in range(rank - 1):
                at = f"({at}) * {shape.kernel[a]} + t{a}"
            base = (
                f"(group * {shape.filters} + k) * {shape.channels * taps} + (({at}) * {shape.kernel[-1]} + t)"
            )
            lines += sum_lanes(
                element,
                [f"a{r}_{j}" for r, j in names],
                [f"{slot}[{base} + {r * shape.channels * taps + j}]" for r, j in names],
            )
            lines.append("}")
        lines.append("}")
    lines.append("}")
    return context.function("\n".join(lines), LANE_PARAMETERS)


def _weight_tile(
    shape: Geometry,
    height: int,
    width: int,
    element: str,
    cotangent: str,
    pixels: int,
    all_filters: int,
    all_channels: int,
) -> list[str]:
    rank = len(shape.out)
    lines = [
        " ".join(
            f"{element}x16 a{r}_{j} = broadcast_{element}(0);" for r in range(height) for j in range(width)
        )
    ]
    lines.append("for (int64_t b = 0; b < vectors; b++)")
    names = [f"o{a}" for a in range(rank - 1)]
    for name, extent in zip(names, shape.out, strict=False):
        lines.append(f"for (int64_t {name} = 0; {name} < {extent}; {name}++)")
    lines.append("{")
    at = f"(b * {all_channels} + group * {shape.channels} + c)"
    row = "0"
    for a in range(rank - 1):
        at = f"({at} * {shape.bordered[a]} + o{a} * {shape.strides[a]} + t{a} * {shape.dilation[a]})"
        row = f"({row} * {shape.out[a]} + o{a})"
    at = f"({at} * {shape.bordered[-1]} + t * {shape.dilation[-1]})"
    lines.append(f"const {element} *s = input + {at} * {LANES};")
    lines.append(
        f"const {element} *g = {cotangent} + ((b * {all_filters} + group * {shape.filters} + k) * {pixels} + {row} * {shape.out[-1]}) * {LANES};"
    )
    lines.append(
        f"for (int64_t p = 0; p < {shape.out[-1]}; p++, s += {shape.strides[-1] * LANES}, g += {LANES}) {{"
    )
    for j in range(width):
        lines.append(f"const {element}x16 x{j} = load_{element}(s + {j * shape.dilation[-1] * LANES});")
    for r in range(height):
        products = " ".join(f"a{r}_{j} = fma_{element}(y, x{j}, a{r}_{j});" for j in range(width))
        lines.append(f"{{ const {element}x16 y = load_{element}(g + {r * pixels * LANES}); {products} }}")
    lines.append("}}")
    return lines
