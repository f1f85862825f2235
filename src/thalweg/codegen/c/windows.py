"""Windows, and contractions without register tiles, as plain reductions: any element type and any geometry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from thalweg.codegen.c.bindings import TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.expressions import Emitter, Expression, bounded, number, select
from thalweg.codegen.c.nests import Nest, Reduction, row_position
from thalweg.codegen.loops import Index, constant, divide
from thalweg.graph import Node, Value
from thalweg.types import int64

# ---- windows ----------------------------------------------------------------------------------------------


def emit_window(context: Context) -> KernelText:
    """max_pool, sum_pool and max_pool_gather: a reduction over the window of each output element."""
    anchor = context.kernel.anchor
    assert anchor is not None
    op: Any = anchor.op
    x, result = anchor.inputs[0], anchor.outputs[0]
    name = op.name

    def inside(kept: tuple[Index, ...], reduced: tuple[Index, ...]) -> tuple[Index, ...]:
        spatial = [
            index * stride + tap * dilation - constant(low)
            for index, tap, stride, dilation, (low, _) in zip(
                kept[2:], reduced, op.strides, op.dilation, op.padding, strict=True
            )
        ]
        return (*kept[:2], *spatial)

    def element(
        e: Emitter, kept: tuple[Index, ...], reduced: tuple[Index, ...]
    ) -> tuple[Expression, Expression | None]:
        condition, clamped = bounded(e, x, inside(kept, reduced))
        found = e.pull(x, clamped)
        if name == "max_pool_gather":
            place = e.pull(anchor.inputs[1], kept)
            tap = e.convert(e.as_integer(row_position(reduced, op.kernel)), int64, anchor.inputs[1].dtype)
            hit = e.declare("m32", f"equal_i32({place.text}, {tap.text})")
            found = select(e, hit, found, number(e, 0, x.dtype))
        return found, condition

    pooled = name == "max_pool"
    batch = context.batch_axis.get(id(result)) if context.lanes else None
    return Nest(
        context,
        result.shape,
        tuple(op.kernel),
        Reduction(
            element,
            "max_pool" if pooled else "add",
            result,
            (lambda reduced: row_position(reduced, op.kernel)) if pooled else None,
            anchor.outputs[1] if pooled else None,
        ),
        batch_root=batch,
    ).emit()


def emit_unwindow(context: Context) -> KernelText:
    """max_unpool and sum_unpool: plane by plane in float32 and float64; else as gathers, where each element adds
    the windows that cover it."""
    anchor = context.kernel.anchor
    assert anchor is not None
    if anchor.outputs[0].dtype.short in ("f32", "f64"):
        return _emit_planes(context, anchor)
    op: Any = anchor.op
    g, result = anchor.inputs[0], anchor.outputs[0]

    def element(
        e: Emitter, kept: tuple[Index, ...], taps: tuple[Index, ...]
    ) -> tuple[Expression, Expression | None]:
        places = (*kept[:2], *_windows(e, op, kept[2:], taps))
        condition, clamped = bounded(e, g, places)
        found = e.pull(g, clamped)
        if op.name == "max_unpool":
            place = e.pull(anchor.inputs[1], clamped)
            tap = e.convert(e.as_integer(row_position(taps, op.kernel)), int64, anchor.inputs[1].dtype)
            found = select(
                e, e.declare("m32", f"equal_i32({place.text}, {tap.text})"), found, number(e, 0, g.dtype)
            )
        return found, condition

    return Nest(context, result.shape, tuple(op.kernel), Reduction(element, "add", result)).emit()


def _emit_planes(context: Context, anchor: Node) -> KernelText:
    """Each task owns some planes: zeros first, then every window gives its taps what they get, in order."""
    op: Any = anchor.op
    g, result = anchor.inputs[0], anchor.outputs[0]
    accesses = context.reads()
    target = context.access(context.kernel.roots[0], write=True)
    element = result.dtype.short
    planes, tasks = result.shape[0] * result.shape[1], context.kernel.tasks
    spatial, pooled = result.shape[2:], g.shape[2:]
    chosen = op.name == "max_unpool"
    names = [f"o{axis}" for axis in range(len(pooled))]
    lines = [
        "(void)error;",
        f"for (int64_t plane = task * {planes} / {tasks}; plane < (task + 1) * {planes} / {tasks}; plane++) {{",
        f"{element} *const to = {target.pointer} + plane * {math.prod(spatial)};",
        f"for (int64_t i = 0; i < {math.prod(spatial)}; i++) to[i] = 0;",
    ]
    at = "plane"
    for name, extent in zip(names, pooled, strict=True):
        lines.append(f"for (int64_t {name} = 0; {name} < {extent}; {name}++) {{")
        at = f"({at}) * {extent} + {name}"
    lines.append(f"const {element} given = {accesses[id(g)].pointer}[{at}];")
    if chosen:
        lines.append(f"const i32 place = {accesses[id(anchor.inputs[1])].pointer}[{at}];")
    for position, tap in enumerate(itertools.product(*(range(k) for k in op.kernel))):
        conditions = [f"place == {position}"] if chosen else []
        spot = "0"
        for axis, (t, name) in enumerate(zip(tap, names, strict=True)):
            stride, shift = op.strides[axis], t * op.dilation[axis] - op.padding[axis][0]
            place = f"{name} * {stride} + {shift}"
            if shift < 0:
                conditions.append(f"{place} >= 0")
            if (pooled[axis] - 1) * stride + shift >= spatial[axis]:
                conditions.append(f"{place} < {spatial[axis]}")
            spot = f"({spot}) * {spatial[axis]} + {place}"
        guard = f"if ({' && '.join(conditions)}) " if conditions else ""
        lines.append(f"{guard}to[{spot}] += given;")
    lines.append("}" * (len(names) + 1))
    return context.function("\n".join(lines), TILE_PARAMETERS)


def _windows(e: Emitter, op: Any, position: tuple[Index, ...], taps: tuple[Index, ...]) -> list[Index]:
    """The windows that read `position` with tap `taps`: (position + low - tap * dilation) / stride, where whole."""
    found: list[Index] = []
    for i, t, s, d, (low, _) in zip(position, taps, op.strides, op.dilation, op.padding, strict=True):
        place = i + constant(low) - t * d
        found.append(place if s == 1 else _whole_quotient(e, place, s))
    return found


# ---- contractions -----------------------------------------------------------------------------------------


def emit_contraction(context: Context) -> KernelText:
    """matmul and the convolutions as plain reductions: every element type and geometry, no register tiles."""
    anchor = context.kernel.anchor
    assert anchor is not None
    op: Any = anchor.op
    a, b = anchor.inputs
    result = anchor.outputs[0]
    element = _CONTRACTIONS[op.name]
    reduced, places = element(op, a, b, result)

    def product(
        e: Emitter, kept: tuple[Index, ...], inner: tuple[Index, ...]
    ) -> tuple[Expression, Expression | None]:
        first, second = places(e, kept, inner)
        conditions: list[Expression | None] = []
        factors: list[Expression] = []
        for value, indices in ((a, first), (b, second)):
            condition, clamped = bounded(e, value, indices)
            conditions.append(condition)
            factors.append(e.pull(value, clamped))
        kind = factors[0].kind
        found = e.declare(kind, f"multiply_{kind}({factors[0].text}, {factors[1].text})")
        listed = [c for c in conditions if c is not None]
        if len(listed) == 2:
            listed = [e.declare("m64", f"bitwise_and_i64({listed[0].text}, {listed[1].text})")]
        return found, listed[0] if listed else None

    return Nest(context, result.shape, reduced, Reduction(product, "add", result)).emit()


Places = Callable[
    [Emitter, tuple[Index, ...], tuple[Index, ...]], tuple[tuple[Index, ...], tuple[Index, ...]]
]


def _matmul(op: Any, a: Value, b: Value, result: Value) -> tuple[tuple[int, ...], Places]:
    k = a.shape[-2] if op.transpose_a else a.shape[-1]

    def places(
        e: Emitter, kept: tuple[Index, ...], inner: tuple[Index, ...]
    ) -> tuple[tuple[Index, ...], tuple[Index, ...]]:
        *lead, m, n = kept
        first = (inner[0], m) if op.transpose_a else (m, inner[0])
        second = (n, inner[0]) if op.transpose_b else (inner[0], n)
        return (*lead, *first), (*lead, *second)

    return (k,), places


def _taps(op: Any, position: tuple[Index, ...], taps: tuple[Index, ...]) -> tuple[Index, ...]:
    return tuple(
        o * s + t * d - constant(low)
        for o, t, s, d, (low, _) in zip(position, taps, op.strides, op.dilation, op.padding, strict=True)
    )


def _convolution(op: Any, x: Value, w: Value, y: Value) -> tuple[tuple[int, ...], Places]:
    filters, channels = w.shape[0] // op.groups, w.shape[1]

    def places(
        e: Emitter, kept: tuple[Index, ...], inner: tuple[Index, ...]
    ) -> tuple[tuple[Index, ...], tuple[Index, ...]]:
        n, k, *position = kept
        c, *taps = inner
        group = divide(k, filters, e.extents)[0] if op.groups > 1 else Index()
        return (n, group * channels + c, *_taps(op, tuple(position), tuple(taps))), (k, c, *taps)

    return (channels, *w.shape[2:]), places


def _weight_gradient(op: Any, x: Value, g: Value, w: Value) -> tuple[tuple[int, ...], Places]:
    filters, channels = w.shape[0] // op.groups, w.shape[1]

    def places(
        e: Emitter, kept: tuple[Index, ...], inner: tuple[Index, ...]
    ) -> tuple[tuple[Index, ...], tuple[Index, ...]]:
        k, c, *taps = kept
        n, *position = inner
        group = divide(k, filters, e.extents)[0] if op.groups > 1 else Index()
        return (n, group * channels + c, *_taps(op, tuple(position), tuple(taps))), (n, k, *position)

    return (x.shape[0], *g.shape[2:]), places


def _input_gradient(op: Any, g: Value, w: Value, x: Value) -> tuple[tuple[int, ...], Places]:
    """Position i of x meets tap t at the window (i + low - t*dilation) / stride, where that is whole."""
    filters, channels = w.shape[0] // op.groups, w.shape[1]

    def places(
        e: Emitter, kept: tuple[Index, ...], inner: tuple[Index, ...]
    ) -> tuple[tuple[Index, ...], tuple[Index, ...]]:
        n, channel, *position = kept
        f, *taps = inner
        if op.groups > 1:
            group, c = divide(channel, channels, e.extents)
        else:
            group, c = Index(), channel
        windows = _windows(e, op, tuple(position), tuple(taps))
        k = group * filters + f
        return (n, k, *windows), (k, c, *taps)

    return (filters, *w.shape[2:]), places


def _whole_quotient(e: Emitter, place: Index, stride: int) -> Index:
    """place / stride, or -1 (out of range) where that is not whole."""
    e.splits.append(place)
    _, high = place.range(e.extents)
    if place.by_lane:
        lanes = e.declare("i64", e.vector_index(place)).text
        quotient = f"floor_divide_i64({lanes}, broadcast_i64({stride}))"
        whole = f"equal_i64(multiply_i64({quotient}, broadcast_i64({stride})), {lanes})"
        index = e.lane_index(f"select_i64({whole}, {quotient}, broadcast_i64(-1))", high // stride + 2)
    else:
        text = place.text()
        index = e.scalar_index(
            f"({text}) >= 0 && ({text}) % {stride} == 0 ? ({text}) / {stride} : -1", high // stride + 2
        )
    e.signed.update(index.variables())
    return index


_CONTRACTIONS: dict[str, Callable[[Any, Value, Value, Value], tuple[tuple[int, ...], Places]]] = {
    "matmul": _matmul,
    "convolution": _convolution,
    "convolution_input_gradient": _input_gradient,
    "convolution_weight_gradient": _weight_gradient,
}
