"""Row-major max pooling over two axes in float32, and its gradient, in vectors along the rows.

Pooling copies rows of the input into a strip, apart by the remainder of the stride and with a border of -inf, so that every
tap reads neighbouring elements for neighbouring windows. Its gradient gathers: the elements of a row with the same
remainder meet the same taps; the cotangent and the indices of a row of windows lie in strips with a border. Other geometries
and element types are nests (windows.py).
"""

from __future__ import annotations

import math
from typing import Any

from thalweg.codegen.c.bindings import TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.strips import Axis, gathering_axis, striding_axis, strip_row
from thalweg.codegen.c.windows import emit_unwindow, emit_window
from thalweg.plan import LANES, Kernel

STRIP_BYTES = 96 << 10
FEWEST = 4  # windows in a row that are worth vectors


def runs_in_rows(kernel: Kernel) -> bool:
    """Is the kernel a max pooling, or its gradient, of this file's kind?"""
    anchor = kernel.anchor
    if anchor is None or kernel.role != "whole" or kernel.kind not in ("max_pool", "max_unpool"):
        return False
    op: Any = anchor.op
    x, windows = anchor.inputs[0], anchor.outputs[0] if kernel.kind == "max_pool" else anchor.inputs[0]
    made = {id(node) for node in kernel.nodes}
    stored = all(v.node is None or id(v.node) not in made for v in anchor.inputs)
    roots = {id(value) for value in kernel.roots} <= {id(value) for value in anchor.outputs}
    fits = len(op.kernel) == 2 and x.dtype.short == "f32" and windows.shape[-1] >= FEWEST and windows.size > 0
    return fits and stored and roots and (kernel.kind == "max_pool" or op.strides[1] <= 2)


def _axes(kernel: Kernel) -> tuple[Axis, Axis]:
    """The axes of rows and of columns as strips see them."""
    assert kernel.anchor is not None
    op: Any = kernel.anchor.op
    sources, results = kernel.anchor.inputs[0].shape[2:], kernel.anchor.outputs[0].shape[2:]
    sizes = zip(sources, results, op.padding, op.strides, op.dilation, op.kernel, strict=True)
    if kernel.kind == "max_pool":
        y, x = (striding_axis(s, r, low, step, d, k) for s, r, (low, _), step, d, k in sizes)
    else:
        y, x = (gathering_axis(r, s, low, step, d, k) for s, r, (low, _), step, d, k in sizes)
    return y, x


def _pitch(axis: Axis) -> int:
    """Elements of a strip's row for each phase: tiles read whole vectors."""
    return -(-axis.count // LANES) * LANES + axis.reach + LANES


def _band(kernel: Kernel, x: Axis) -> tuple[int, int]:
    """Rows of windows whose input shares a strip, and rows of that input."""
    assert kernel.anchor is not None
    op: Any = kernel.anchor.op
    count = kernel.anchor.outputs[0].shape[2]
    reach = (op.kernel[0] - 1) * op.dilation[0] + 1
    rows = max(1, (STRIP_BYTES // (4 * len(x.phases) * _pitch(x)) - reach) // op.strides[0] + 1)
    band = -(-count // -(-count // min(rows, count)))
    return band, (band - 1) * op.strides[0] + reach


def pooling_workspace(kernel: Kernel) -> int:
    """Bytes of the strips."""
    if not runs_in_rows(kernel):
        return 0
    assert kernel.anchor is not None
    _, x = _axes(kernel)
    if kernel.kind == "max_pool":
        return _band(kernel, x)[1] * len(x.phases) * _pitch(x) * 4 + 64
    return 2 * kernel.anchor.inputs[0].shape[2] * _pitch(x) * 4 + 4 * (2 * x.count + 4 * LANES)


def emit_max_pool(context: Context) -> KernelText:
    """Planes; in each, bands of rows: the strip, then the windows, 16 at a time."""
    kernel = context.kernel
    if not runs_in_rows(kernel):
        return emit_window(context)
    anchor = kernel.anchor
    assert anchor is not None
    op: Any = anchor.op
    accesses = context.reads()
    (height, width), (rows, columns) = anchor.inputs[0].shape[2:], anchor.outputs[0].shape[2:]
    planes = math.prod(anchor.inputs[0].shape[:2])
    _, x = _axes(kernel)
    band, taken = _band(kernel, x)
    pitch, low = _pitch(x), op.padding[0][0]
    source = accesses[id(anchor.inputs[0])].pointer
    strip = context.pointer(kernel.detail["workspace"], write=True)
    lines = [
        "(void)error;",
        f"f32 *const strip = (f32 *){strip};",
        f"for (int64_t plane = task * {planes} / {kernel.tasks}; plane < (task + 1) * {planes} / {kernel.tasks}; plane++)",
        f"for (int64_t start = 0; start < {rows}; start += {band}) {{",
        f"const int64_t first = start * {op.strides[0]} - {low}, end = start + {band} < {rows} ? start + {band} : {rows};",
        f"for (int64_t r = 0; r < {taken}; r++) {{",
        f"const int64_t y = first + r; if (y < 0 || y >= {height}) continue;",
    ]
    for number, phase in enumerate(x.phases):
        inside = x.inside(number)
        lines.append(
            f"{strip_row(context, 'f32')}(strip + (r * {len(x.phases)} + {number}) * {pitch}, {source} + (plane * {height} + y) * "
            f"{width} + {phase}, {x.step}, {inside[0]}, {inside[1]}, {pitch - LANES}, -__builtin_inff());"
        )
    lines += ["}", f"for (int64_t o = start; o < end; o++) for (int64_t j = 0; j < {columns}; j += 16) {{"]
    return context.function("\n".join(lines + _windows(context, x, pitch)), TILE_PARAMETERS)


def _windows(context: Context, x: Axis, pitch: int) -> list[str]:
    """C that computes the windows j .. j + 15 of row `o`."""
    anchor = context.kernel.anchor
    assert anchor is not None
    op: Any = anchor.op
    roots = {id(root): context.access(root, write=True).pointer for root in context.kernel.roots}
    values, places = (roots.get(id(output)) for output in anchor.outputs)
    height, (rows, columns) = anchor.inputs[0].shape[2], anchor.outputs[0].shape[2:]
    lines = [f"const int64_t y = o * {op.strides[0]} - {op.padding[0][0]}, r = y - first; (void)r;"]
    if places:  # where nothing exceeds -inf, the first tap inside the image
        step, spread = op.strides[1], op.dilation[1]
        firsts = [
            min(max(-((j * step - op.padding[1][0]) // spread), 0), op.kernel[1] - 1)
            for j in range(-(-columns // LANES) * LANES)
        ]
        lines += [
            f"static const int32_t firsts[] = {{{', '.join(map(str, firsts))}}};",
            f"const int64_t top = y >= 0 ? 0 : (-y + {op.dilation[0] - 1}) / {op.dilation[0]};",
            f"i32x16 place = add_i32(load_i32(firsts + j), broadcast_i32((int32_t)top * {op.kernel[1]}));",
        ]
    lines.append("f32x16 best = broadcast_f32(-__builtin_inff());")
    for row in range(op.kernel[0]):
        shift = row * op.dilation[0]
        lines.append(f"if (y + {shift} >= 0 && y + {shift} < {height}) {{")
        for tap, phase, offset in x.parts[0].taps:
            lines.append(
                f"{{ const f32x16 v = load_f32(strip + ((r + {shift}) * {len(x.phases)} + {phase}) * {pitch} + j + {offset});"
            )
            lines.append("const m32x16 chosen = bitwise_or_i32(less_f32(best, v), is_nan_f32(v)); best = select_f32(chosen, v, best);")
            if places:
                lines.append(f"place = select_i32(chosen, broadcast_i32({row * op.kernel[1] + tap}), place);")
            lines.append("}")
        lines.append("}")
    lines.append(f"const int64_t n = {columns} - j < 16 ? {columns} - j : 16, at = (plane * {rows} + o) * {columns} + j;")
    for pointer, name, kind in ((values, "best", "f32"), (places, "place", "i32")):
        if pointer:
            lines.append(
                f"if (n == 16) store_{kind}({pointer} + at, {name}); else store_partial_{kind}({pointer} + at, {name}, (int)n);"
            )
    return [*lines, "}", "}"]


def emit_max_unpool(context: Context) -> KernelText:
    """Planes; in each, strips of cotangents and indices, then rows: parts with the same taps, then interleaved."""
    kernel = context.kernel
    if not runs_in_rows(kernel):
        return emit_unwindow(context)
    anchor = kernel.anchor
    assert anchor is not None
    g, result = anchor.inputs[0], anchor.outputs[0]
    accesses = context.reads()
    target = context.access(kernel.roots[0], write=True).pointer
    given, index = (accesses[id(value)].pointer for value in anchor.inputs)
    (rows, columns), (height, width) = g.shape[2:], result.shape[2:]
    planes = math.prod(result.shape[:2])
    y, x = _axes(kernel)
    pitch = _pitch(x)
    low, high = x.inside(0)
    scratch = context.pointer(kernel.detail["workspace"], write=True)
    start = x.phases[0]
    op: Any = anchor.op
    across = op.kernel[1]
    lines = [
        "(void)error;",
        f"f32 *const strip = (f32 *){scratch}, *const line = strip + {2 * rows * pitch};",
        f"i32 *const places = (i32 *)(strip + {rows * pitch});",
        f"for (int64_t plane = task * {planes} / {kernel.tasks}; plane < (task + 1) * {planes} / {kernel.tasks}; plane++) {{",
        f"for (int64_t r = 0; r < {rows}; r++) {{",
        f"const int64_t from = (plane * {rows} + r) * {columns} + {start};",
        f"for (int64_t i = 0; i < {pitch}; i++) {{ const int in = i >= {low} && i < {high};",
        f"strip[r * {pitch} + i] = in ? {given}[from + i] : 0; places[r * {pitch} + i] = in ? {index}[from + i] : -1; }}",
        "}",
    ]
    for part in y.parts:
        lines.append(f"for (int64_t p = 0; p < {part.count}; p++) {{")
        lines.append(f"f32 *const to = {target} + (plane * {height} + p * {part.step} + {part.first}) * {width};")
        lines.append(f"for (int64_t j = 0; j < {x.count}; j += 16) {{")
        for number, other in enumerate(x.parts):
            lines.append(f"f32x16 s{number} = broadcast_f32(0);")
            for row_tap, _, row_offset in reversed(part.taps):
                row = f"p + {row_offset + y.phases[0]}"
                lines.append(f"if ({row} >= 0 && {row} < {rows}) {{ const int64_t at = ({row}) * {pitch} + j;")
                for tap, _, offset in reversed(other.taps):
                    lines.append(
                        f"s{number} = add_f32(s{number}, select_f32(equal_i32(load_i32(places + at + {offset}), "
                        f"broadcast_i32({row_tap * across + tap})), load_f32(strip + at + {offset}), broadcast_f32(0)));"
                    )
                lines.append("}")
        lines += [*_interleaved(x), "}", *_copied(x, width), "}"]
    return context.function("\n".join([*lines, "}"]), TILE_PARAMETERS)


def _interleaved(x: Axis) -> list[str]:
    """C that stores the vectors of the parts of a row to `line`, in the order of the elements."""
    if len(x.parts) == 1:
        return ["store_f32(line + j, s0);"]
    order = sorted(range(2), key=lambda number: x.parts[number].first)
    return [f"store_zipped_f32(line + 2 * j, s{order[0]}, s{order[1]});"]


def _copied(x: Axis, width: int) -> list[str]:
    """C that copies the line to the result."""
    full = width // LANES * LANES
    lines = [f"for (int64_t i = 0; i < {full}; i += 16) store_f32(to + i, load_f32(line + i));"]
    if width > full:
        lines.append(f"store_partial_f32(to + {full}, load_f32(line + {full}), {width - full});")
    return lines
