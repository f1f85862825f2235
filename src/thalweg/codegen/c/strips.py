"""The geometry of row-major convolutions, and what their kernels share: strips, the epilogue.

The input of one image (some rows of it) is copied into a *strip*: with its border of zeros, and apart by the remainder of
the stride, so that each tap of the kernel reads neighbouring elements for neighbouring outputs. Rows of the strip follow
each other at one pitch, so that output positions can be counted across rows. The kernels are in convolutions.py,
weight_gradients.py, depthwise.py and pooling.py.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from thalweg.codegen.c.bindings import STATIC, Context
from thalweg.codegen.c.expressions import Expression
from thalweg.codegen.c.nests import store
from thalweg.codegen.c.tiles import ITEM
from thalweg.codegen.loops import LANE, Index
from thalweg.plan import LANES, Kernel


@dataclass(frozen=True)
class Part:
    """Output positions of one axis with the same taps: position p is element `first + p * step` of the result."""

    count: int
    first: int
    step: int
    taps: tuple[
        tuple[int, int, int], ...
    ]  # (tap, phase, offset): position p reads element p + offset of that phase


@dataclass(frozen=True)
class Axis:
    """One spatial axis: element i of phase f of the strip is element `phases[f] + i * step` of the source, or zero."""

    source: int
    step: int
    phases: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def count(self) -> int:
        """Positions of the longest part."""
        return max(part.count for part in self.parts)

    @property
    def reach(self) -> int:
        """Elements that a position reads beyond its own."""
        return max((offset for part in self.parts for _, _, offset in part.taps), default=0)

    @property
    def extent(self) -> int:
        return self.count + self.reach

    def inside(self, phase: int) -> tuple[int, int]:
        """The elements of a phase that lie in the source: first and end."""
        low, high = (-(-(bound - self.phases[phase]) // self.step) for bound in (0, self.source))
        low = min(max(low, 0), self.extent)
        return low, min(max(high, low), self.extent)

    @property
    def pitch(self) -> int:
        """Elements from one row to the next: zeros behind a row are also those before the next one."""
        borders = [bound for f in range(len(self.phases)) for bound in self.inside(f)]
        zeros = min(min(borders[::2]), self.extent - max(borders[1::2]))
        return max(self.extent - zeros, self.count)


@dataclass(frozen=True)
class Geometry:
    """A convolution as the tiles see it: `rows` results per group from `channels` of the source per group."""

    element: str
    batch: int
    groups: int
    rows: int
    channels: int
    taps: int
    axes: tuple[Axis, ...]
    machine: str

    @property
    def phases(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*(range(len(axis.phases)) for axis in self.axes)))

    @property
    def pitches(self) -> list[int]:
        """Strip elements between neighbours along each axis."""
        pitches = [1]
        for axis in reversed(self.axes[1:]):
            pitches.append(pitches[-1] * axis.pitch)
        return pitches[::-1]

    def span(self, rows: int, part: tuple[Part, ...] | None = None) -> int:
        """Flat positions from the first to the last one of `rows` rows of the first axis."""
        counts = [axis.count for axis in self.axes[1:]] if part is None else [p.count for p in part[1:]]
        return (
            (rows - 1) * self.pitches[0]
            + sum((c - 1) * p for c, p in zip(counts, self.pitches[1:], strict=True))
            + 1
        )

    def plane(self, rows: int) -> int:
        """Elements of one phase of one channel in a strip for `rows` rows of positions."""
        inner = sum((axis.extent - 1) * p for axis, p in zip(self.axes[1:], self.pitches[1:], strict=True))
        return (rows + self.axes[0].reach - 1) * self.pitches[0] + inner + 1

    def strip(self, rows: int, channels: int) -> int:
        """Elements of a strip, with what tiles may read behind its end."""
        reach = sum(axis.reach * p for axis, p in zip(self.axes, self.pitches, strict=True))
        return channels * len(self.phases) * self.plane(rows) + reach + 16 * LANES


def geometry(kernel: Kernel, machine: str) -> Geometry | None:
    """The convolution that a kernel is, or None where plain loops compute it."""
    assert kernel.anchor is not None
    op: Any = kernel.anchor.op
    first, second = kernel.anchor.inputs
    result = kernel.anchor.outputs[0]
    element = result.dtype.short
    if element not in ITEM or 0 in (first.size, second.size, result.size):
        return None
    weights = op.name == "convolution_weight_gradient"
    w = result if weights else second
    filters, channels = w.shape[0] // op.groups, w.shape[1]
    taps = w.shape[2:]
    if op.name == "convolution_input_gradient":
        sizes = zip(result.shape[2:], first.shape[2:], strict=True)
        axes = [
            gathering_axis(size, source, low, s, d, t)
            for (size, source), (low, _), s, d, t in zip(
                sizes, op.padding, op.strides, op.dilation, taps, strict=True
            )
        ]
        return Geometry(
            element, first.shape[0], op.groups, channels, filters, math.prod(taps), tuple(axes), machine
        )
    out = second.shape[2:] if weights else result.shape[2:]
    sizes = zip(first.shape[2:], out, strict=True)
    axes = [
        striding_axis(source, count, low, s, d, t)
        for (source, count), (low, _), s, d, t in zip(
            sizes, op.padding, op.strides, op.dilation, taps, strict=True
        )
    ]
    return Geometry(
        element, first.shape[0], op.groups, filters, channels, math.prod(taps), tuple(axes), machine
    )


def striding_axis(source: int, count: int, low: int, stride: int, dilation: int, taps: int) -> Axis:
    """An axis of the forward convolution: position p and tap t read element p * stride + t * dilation - low."""
    remainders = sorted({t * dilation % stride for t in range(taps)})
    listed = tuple((t, remainders.index(t * dilation % stride), t * dilation // stride) for t in range(taps))
    return Axis(source, stride, tuple(r - low for r in remainders), (Part(count, 0, 1, listed),))


def gathering_axis(size: int, source: int, low: int, stride: int, dilation: int, taps: int) -> Axis:
    """An axis of the input gradient: element i of the result and tap t read (i + low - t * dilation) / stride, where whole.
    The elements with i + low = stride * m + remainder form a part."""
    found = []
    for remainder in range(stride):
        first = -(-(low - remainder) // stride)
        count = (size - 1 + low - remainder) // stride - first + 1
        if count > 0:
            moves = [
                (t, (t * dilation - remainder) // stride)
                for t in range(taps)
                if (t * dilation - remainder) % stride == 0
            ]
            found.append((remainder, first, count, moves))
    start = min((first - move for _, first, _, moves in found for _, move in moves), default=0)
    parts = tuple(
        Part(
            count,
            first * stride + remainder - low,
            stride,
            tuple((t, 0, first - move - start) for t, move in moves),
        )
        for remainder, first, count, moves in found
    )
    return Axis(source, 1, (start,), parts)


class Emission:
    """What the modes share: pointers, the copy into a strip, the epilogue."""

    def __init__(self, context: Context, shape: Geometry) -> None:
        self.context = context
        self.shape = shape
        kernel = context.kernel
        assert kernel.anchor is not None
        self.op: Any = kernel.anchor.op
        self.accesses = context.reads()
        self.outputs = [(root, context.access(root, write=True)) for root in kernel.roots]
        self.result = kernel.anchor.outputs[0]
        first, second = (self.accesses[id(v)].pointer for v in kernel.anchor.inputs)
        self.source, self.other = first, second
        self.scratch = context.pointer(kernel.detail["workspace"], write=True)

    def body(self) -> list[str]:
        """The statements of the kernel."""
        raise NotImplementedError

    def fill(self, rows: int, start: str, count: str) -> list[str]:
        """Copy channels `channel`.. + `count` of `image` into the strip, for positions from `start` on."""
        shape, element = self.shape, self.shape.element
        name = strip_row(self.context, element)
        sizes = [axis.source for axis in shape.axes]
        plane = shape.plane(rows)
        lines = [f"for (int64_t c = 0; c < {count}; c++) {{"]
        lines.append(
            f"const {element} *const from = {self.source} + channel * {math.prod(sizes)} + c * {math.prod(sizes)};"
        )
        for number, phase in enumerate(shape.phases):
            to = f"strip + (c * {len(shape.phases)} + {number}) * {plane}"
            inside: list[str] = []
            at = "0"
            lines.append("{")
            for a, (axis, size, pitch) in enumerate(zip(shape.axes[:-1], sizes, shape.pitches, strict=False)):
                extent = rows + axis.reach if a == 0 else axis.extent
                origin = f" + ({start}) * {axis.step}" if a == 0 else ""
                lines.append(f"for (int64_t e{a} = 0; e{a} < {extent}; e{a}++) {{")
                lines.append(f"const int64_t s{a} = e{a} * {axis.step} + {axis.phases[phase[a]]}{origin};")
                inside.append(f"s{a} >= 0 && s{a} < {size}")
                at = f"({at}) * {size} + s{a}"
                to += f" + e{a} * {pitch}"
            last = shape.axes[-1]
            low, high = last.inside(phase[-1])
            first = f"({at}) * {last.source} + {last.phases[phase[-1]]}"
            if inside:
                test = " && ".join(inside)
                bounds = f"{test} ? {low} : 0, {test} ? {high} : 0, {last.extent}"
            else:  # one axis: the strip is a part of it
                lines.append(
                    f"const int64_t low = {low} - ({start}), high = {high} - ({start}), size = {rows + last.reach};"
                )
                bounds = (
                    "low < 0 ? 0 : low > size ? size : low, high < 0 ? 0 : high > size ? size : high, size"
                )
                first += f" + ({start}) * {last.step}"
            lines.append(f"{name}({to}, from + {first}, {last.step}, {bounds}, 0);")
            lines.append("}" * len(shape.axes))
        return [*lines, "}"]

    def epilogue(
        self, register: str, indices: tuple[Index, ...], extents: dict[str, int], partial: str | None
    ) -> list[str]:
        """Everything that is computed from one vector of the result, and the stores."""
        emitter = self.context.emitter(dict(extents), self.accesses)
        emitter.partial = partial
        emitter.given[id(self.result)] = Expression(register, self.shape.element)
        for root, access in self.outputs:
            store(emitter, access, indices, emitter.pull(root, indices))
        self.context.functions |= emitter.functions
        return emitter.lines

    def both(self, register: str, indices: tuple[Index, ...], extents: dict[str, int]) -> list[str]:
        """The epilogue for a full vector and for one with `n` valid lanes."""
        if extents[LANE] < LANES:
            return self.epilogue(register, indices, extents, "n")
        full = self.epilogue(register, indices, extents, None)
        return ["if (n == 16) {", *full, "} else {", *self.epilogue(register, indices, extents, "n"), "}"]


def strip_row(context: Context, element: str) -> str:
    """The name of a function that writes a row of a strip: the border's number, the source's elements from `low` to
    `high`, the border's number up to `end`. It may write up to 15 elements more, which later rows overwrite."""
    name = f"strip_row_{element}"
    even = "else if (step == 2) for (; i + 16 <= high; i += 16) store_f32(to + i, load_even_f32(from + 2 * i));"
    text = f"""{STATIC} void {name}({element} *to, const {element} *from, int64_t step, int64_t low, int64_t high, int64_t end, {element} border) {{
const {element}x16 zero = broadcast_{element}(border);
int64_t i = 0;
for (; i < low; i += 16) store_{element}(to + i, zero);
i = low;
if (step == 1) {{
for (; i + 16 <= high; i += 16) store_{element}(to + i, load_{element}(from + i));
if (i < high) {{ store_{element}(to + i, load_partial_{element}(from + i, (int)(high - i))); i = high; }}
}} {even if element == "f32" else ""}
else for (; i + 16 <= high; i += 16) store_{element}(to + i, load_strided_{element}(from + i * step, step));
for (; i < high; i++) to[i] = from[i * step];
for (; i < end; i += 16) store_{element}(to + i, zero);
}}
"""
    return context.shared(name, text)
