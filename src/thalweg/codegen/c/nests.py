"""Loop nests: fused elementwise, movement and reduction kernels, in row-major order or one sample per lane.

The same text generator serves every such kernel. It emits the body once symbolically to see the addresses, joins loops
whose addresses run on, picks the axis that becomes the vector, and emits the body for full and for partial vectors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from thalweg.codegen.c.bindings import LANE_PARAMETERS, TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.expressions import (
    Access,
    Emitter,
    Expression,
    literal,
    register,
)
from thalweg.codegen.loops import LANE, Index, Ranges, divide, variable
from thalweg.graph import Value
from thalweg.plan import LANES

BESIDE = 4  # vectors of results that are reduced side by side
ACCUMULATED = re.compile(r"\b(sum|added)\d\b")  # names of an `Accumulator` in C text
FLUSH = 64  # vectors added up before their sum moves to the next accumulator: keeps rounding errors small
FEW_TERMS = 8  # vectors of float32 whose sum is formed in float64 throughout: more would cost time where rows are long


@dataclass
class Axis:
    """A loop: `name` runs from 0 to `extent` - 1."""

    name: str
    extent: int
    reduced: bool = False


@dataclass
class Reduction:
    """How the elements that a reducing nest meets are combined."""

    element: Callable[[Emitter, tuple[Index, ...], tuple[Index, ...]], tuple[Expression, Expression | None]]
    combine: str  # "add", "multiply", "maximum", "minimum", "argmax", "argmin", "max_pool"
    value: Value  # the first output: its element type decides the accumulator
    position: Callable[[tuple[Index, ...]], Index] | None = None  # of an element, for arg reductions
    index_value: Value | None = None


@dataclass
class Nest:
    """A kernel as loops: kept axes of the root, reduced axes, and how root and operand indices follow from them."""

    context: Context
    shape: tuple[int, ...]  # of the roots
    reduced: tuple[int, ...] = ()
    reduction: Reduction | None = None
    batch_root: int | None = None  # the root's batch axis (lane mode, "map")
    batch_reduced: int | None = None  # the reduced batch axis (lane mode, "partial")
    axes: list[Axis] = field(default_factory=list)
    joins: list[tuple[str, str, str, int]] = field(
        default_factory=list
    )  # (joined, outer, inner, extent of inner)

    def emit(self) -> KernelText:
        context = self.context
        self.accesses = context.reads()
        self.outputs = [(root, context.access(root, write=True)) for root in context.kernel.roots]
        self._make_axes()
        trial, stores = self._trial()
        self._join(trial)
        if self.context.lanes:
            vector: Axis | None = None
        else:
            trial, stores = self._trial()
            vector = self._choose_vector(trial, stores)
        body = self._lane_body() if self.context.lanes else self._row_body(vector)
        return context.function(body, LANE_PARAMETERS if context.lanes else TILE_PARAMETERS)

    # ---- axes -------------------------------------------------------------------------------------------------------

    def _make_axes(self) -> None:
        self.axes = [
            Axis(f"i{a}", extent)
            for a, extent in enumerate(self.shape)
            if extent != 1 and a != self.batch_root
        ]
        self.axes += [
            Axis(f"r{a}", extent, True)
            for a, extent in enumerate(self.reduced)
            if extent != 1 and a != self.batch_reduced
        ]
        self.extents = {axis.name: axis.extent for axis in self.axes}
        self.extents.update({LANE: LANES, "b": 1 << 40})

    def _variable(self, name: str, vector: Axis | None) -> Index:
        index = variable(name)
        return index + variable(LANE) if vector is not None and vector.name == name else index

    def indices(self, vector: Axis | None) -> tuple[tuple[Index, ...], tuple[Index, ...]]:
        """Root and reduced indices."""
        kept = tuple(
            self._resolve(f"i{a}", e, a == self.batch_root, vector) for a, e in enumerate(self.shape)
        )
        reduced = tuple(
            self._resolve(f"r{a}", e, a == self.batch_reduced, vector) for a, e in enumerate(self.reduced)
        )
        return kept, reduced

    def _resolve(self, name: str, extent: int, batch: bool, vector: Axis | None) -> Index:
        if batch:
            return variable("b", LANES) + variable(LANE)
        if extent == 1:
            return Index()
        return self._expand(name, vector)

    def _expand(self, name: str, vector: Axis | None) -> Index:
        """`name` through the joins: outer part = joined // inner, inner part = joined % inner."""
        for joined, outer, inner, size in self.joins:
            if name in (outer, inner):
                whole, rest = divide(self._expand(joined, vector), size, self._ranges(vector))
                return whole if name == outer else rest
        return self._variable(name, vector)

    def _emitter(self, vector: Axis | None, partial: str | None) -> Emitter:
        """An emitter whose ranges fit the loops. Lanes behind the end of the vector axis are never stored, so an index
        along it lies inside the axis: its start and the lane number together run from 0 to the extent."""
        emitter = self.context.emitter(self._ranges(vector), dict(self.accesses))
        if self.context.lanes:
            emitter.origin = variable("origin")
        emitter.partial = partial
        return emitter

    def _ranges(self, vector: Axis | None) -> dict[str, int]:
        extents = {**self.extents, "origin": 1 << 40}
        if vector is not None:
            extents[vector.name] = max(vector.extent - LANES + 1, 1)
            extents[LANE] = min(vector.extent, LANES)
            return Ranges(extents, {vector.name: LANES})
        return extents

    # ---- choices ----------------------------------------------------------------------------------------------------

    def _trial(self) -> tuple[Emitter, list[Index]]:
        """Emit the body once with every axis a plain loop, to see its addresses."""
        emitter = self._emitter(None, "n" if self.context.lanes else None)
        kept, reduced = self.indices(None)
        if self.reduction is not None:
            if 0 not in self.reduced:
                self.reduction.element(emitter, kept, reduced)
            self._given(emitter)
        self._store_roots(emitter, kept)
        stores = emitter.addresses[-len(self.outputs) :] if self.outputs else []
        self.context.functions |= emitter.functions
        return emitter, stores

    def _given(self, emitter: Emitter) -> None:
        """Pretend that the reduction's results lie in registers."""
        assert self.reduction is not None
        anchor = self.context.kernel.anchor
        assert anchor is not None
        for value in anchor.outputs:
            emitter.given[id(value)] = Expression("accumulated", register(value.dtype))

    def _join(self, emitter: Emitter) -> None:
        """Join neighbouring loops whose addresses run on from one to the next in every access."""
        changed = True
        while changed:
            changed = False
            for kind in (False, True):
                names = [axis for axis in self.axes if axis.reduced is kind]
                for outer, inner in pairwise(names):
                    if self._runs_on(emitter, outer, inner):
                        joined = Axis(f"{outer.name}_{inner.name}", outer.extent * inner.extent, kind)
                        self.joins.append((joined.name, outer.name, inner.name, inner.extent))
                        position = self.axes.index(outer)
                        self.axes[position : position + 2] = [joined]
                        self.extents[joined.name] = joined.extent
                        emitter, _ = self._trial()
                        changed = True
                        break

    def _runs_on(self, emitter: Emitter, outer: Axis, inner: Axis) -> bool:
        if 0 in (outer.extent, inner.extent) or any(
            {outer.name, inner.name} & index.variables() for index in emitter.splits
        ):
            return False
        position = self.reduction.position if self.reduction is not None else None
        if position is not None and outer.reduced:
            return False
        for address in emitter.addresses:
            if not (address.is_linear_in(outer.name) and address.is_linear_in(inner.name)):
                return False
            if address.coefficient(outer.name) != inner.extent * address.coefficient(inner.name):
                return False
        return True

    def _choose_vector(self, emitter: Emitter, stores: Sequence[Index]) -> Axis | None:
        """The axis along which most accesses are contiguous or constant."""
        best: tuple[float, int] | None = None
        chosen: Axis | None = None
        summed = {axis.name for axis in self.axes if axis.reduced}
        for position, axis in enumerate(self.axes):
            score = 0.0
            for address in emitter.addresses:
                linear = address.is_linear_in(axis.name)
                step = address.coefficient(axis.name) if linear else None
                weight = 2.0 if any(address is store for store in stores) and not axis.reduced else 1.0
                if address.variables() & summed:  # read in the innermost loops
                    weight = 2.0
                score += weight * (1.0 if step == 1 else 0.4 if step == 0 else -0.5)
            if axis.reduced:
                score *= min(1.0, axis.extent / LANES)  # the other lanes would be idle
            score += -1.0 * (axis.extent < 4) + 0.5 * (axis.extent >= LANES)
            if best is None or (score, position) >= best:
                best, chosen = (score, position), axis
        return chosen

    # ---- row-major ---------------------------------------------------------------------------------------------------

    def _row_body(self, vector: Axis | None) -> str:
        tasks = self.context.kernel.tasks
        kept = [axis for axis in self.axes if not axis.reduced and axis is not vector]
        if vector is not None and not vector.reduced:
            kept.append(vector)
        lines: list[str] = []
        closing = 0
        for position, axis in enumerate(kept):
            first, last = "0", str(axis.extent)
            if position == 0:
                unit = LANES * self._beside(axis) if axis is vector else 1
                count = -(-axis.extent // unit)
                first, last = f"task * {count} / {tasks} * {unit}", f"(task + 1) * {count} / {tasks} * {unit}"
                if unit > 1 and axis.extent % unit:
                    lines.append(f"int64_t last = {last}; if (last > {axis.extent}) last = {axis.extent};")
                    last = "last"
            if axis is vector:
                lines += self._vector_loop(axis, first, last)
            else:
                lines.append(f"for (int64_t {axis.name} = {first}; {axis.name} < {last}; {axis.name}++) {{")
                closing += 1
        if not kept:
            lines.append("if (task) return;")
        if vector is None or vector.reduced:
            lines += self._inner(vector, None)
        return "(void)task; (void)error;\n" + "\n".join(lines) + "\n" + "}" * closing

    def _vector_loop(self, axis: Axis, first: str, last: str) -> list[str]:
        """The innermost kept loop in steps of 16 lanes, with a partial vector at its end."""
        name, extent = axis.name, axis.extent
        whole, rest = extent // LANES * LANES, extent % LANES
        lines: list[str] = []
        if whole:
            bound = last if last == str(extent) and not rest else f"({last} < {whole} ? {last} : {whole})"
            if last == str(extent):
                bound = str(whole)
            if self._beside(axis) > 1:
                lines += self._several(axis, first, bound)
                first = "begin"
            lines.append(f"for (int64_t {name} = {first}; {name} < {bound}; {name} += {LANES}) {{")
            lines += self._inner(axis, None)
            lines.append("}")
        if rest:
            lines.append(f"if ({last} == {extent} && {first} <= {whole}) {{ const int64_t {name} = {whole};")
            lines += self._inner(axis, str(rest))
            lines.append("}")
        return lines

    def _beside(self, axis: Axis) -> int:
        """Vectors of results that are reduced side by side, so that memory is read in longer runs."""
        if self.reduction is None or axis.reduced or 0 in self.reduced or self.reduction.position is not None:
            return 1
        return BESIDE if axis.extent >= BESIDE * LANES and self._iterations(axis) >= BESIDE else 1

    def _several(self, axis: Axis, first: str, bound: str) -> list[str]:
        """The loop over `BESIDE` vectors at once; the next one begins at `begin`."""
        step = BESIDE * LANES
        lines = [f"int64_t begin = {first};", f"for (; begin + {step} <= {bound}; begin += {step}) {{"]
        opening, looping, closing = self._reducing_parts(axis, None)
        loops = [f"for (int64_t {a.name} = 0; {a.name} < {a.extent}; {a.name}++) {{" for a in self.axes if a.reduced]
        for part, around in ((opening, []), (looping, loops), (closing, [])):
            lines += around
            for number in range(BESIDE):
                own = [ACCUMULATED.sub(rf"\g<0>_{number}", line) for line in part]
                if part is not opening:
                    own = [f"{{ const int64_t {axis.name} = begin + {number * LANES};", *own, "}"]
                lines += own
            lines.append("}" * len(around))
        return [*lines, "}"]

    def _reducing_parts(self, vector: Axis, partial: str | None) -> tuple[list[str], list[str], list[str]]:
        """Statements before, inside and behind the loops over reduced axes, for a vector along a kept axis."""
        assert self.reduction is not None
        accumulator = Accumulator(self.reduction, self._iterations(vector), False)
        opening = accumulator.open()
        looping = self._accumulate(accumulator, vector, partial, None)
        return opening, looping, self._finish(accumulator, vector, partial)

    # ---- lanes -------------------------------------------------------------------------------------------------------

    def _lane_body(self) -> str:
        """Loops over blocks of 16 samples, lanes over samples."""
        lines = ["(void)origin; (void)first; (void)error;"]
        kept = [axis for axis in self.axes if not axis.reduced]
        opened = 0
        if self.batch_root is not None:
            lines.append(f"for (int64_t b = 0; b * {LANES} < count; b++) {{")
            lines.append(
                f"const int n = count - b * {LANES} < {LANES} ? (int)(count - b * {LANES}) : {LANES}; (void)n;"
            )
            opened += 1
        for axis in kept:
            lines.append(f"for (int64_t {axis.name} = 0; {axis.name} < {axis.extent}; {axis.name}++) {{")
            opened += 1
        lines += self._inner(None, "n")
        return "\n".join(lines) + "\n" + "}" * opened

    # ---- one root element --------------------------------------------------------------------------------------------

    def _inner(self, vector: Axis | None, partial: str | None) -> list[str]:
        """Statements that compute and store the roots at the current kept indices."""
        if self.reduction is not None:
            return self._reducing(vector, partial)
        kept, _ = self.indices(vector)
        emitter = self._emitter(vector, partial)
        self._store_roots(emitter, kept)
        self.context.functions |= emitter.functions
        return emitter.lines

    def _store_roots(self, emitter: Emitter, kept: tuple[Index, ...]) -> None:
        store_all(emitter, self.outputs, kept)

    def _reducing(self, vector: Axis | None, partial: str | None) -> list[str]:
        """Accumulators, the reduced loops, then the epilogue on the result."""
        assert self.reduction is not None
        horizontal = (vector is not None and vector.reduced) or self.batch_reduced is not None
        accumulator = Accumulator(self.reduction, self._iterations(vector), horizontal)
        lines = accumulator.open()
        if 0 in self.reduced:
            return [*lines, *self._finish(accumulator, vector, partial)]
        loops = [axis for axis in self.axes if axis.reduced and axis is not vector]
        opened = 0
        if self.batch_reduced is not None:
            lines.append(f"for (int64_t b = 0; b * {LANES} < count; b++) {{")
            lines.append(
                f"const int n = count - b * {LANES} < {LANES} ? (int)(count - b * {LANES}) : {LANES};"
            )
            opened += 1
        for axis in loops:
            lines.append(f"for (int64_t {axis.name} = 0; {axis.name} < {axis.extent}; {axis.name}++) {{")
            opened += 1
        if vector is not None and vector.reduced:
            whole, rest = vector.extent // LANES * LANES, vector.extent % LANES
            if whole:
                lines.append(
                    f"for (int64_t {vector.name} = 0; {vector.name} < {whole}; {vector.name} += {LANES}) {{"
                )
                lines += self._accumulate(accumulator, vector, None, None)
                lines.append("}")
            if rest:
                lines.append(f"{{ const int64_t {vector.name} = {whole};")
                lines += self._accumulate(accumulator, vector, str(rest), str(rest))
                lines.append("}")
        else:
            lines += self._accumulate(
                accumulator, vector, partial, "n" if self.batch_reduced is not None else None
            )
        lines.append("}" * opened)
        return [*lines, *self._finish(accumulator, vector, partial)]

    def _finish(self, accumulator: Accumulator, vector: Axis | None, partial: str | None) -> list[str]:
        """Statements behind the loops: the lanes' tree, the epilogue, the stores."""
        lines = accumulator.close()
        kept, _ = self.indices(vector)
        emitter = self._emitter(vector, partial)
        emitter.counter = 1000
        anchor = self.context.kernel.anchor
        assert anchor is not None
        for value, name in zip(anchor.outputs, accumulator.results, strict=True):
            kind = register(value.dtype)
            emitter.given[id(value)] = Expression(name, kind)
        if self.context.kernel.role == "partial":
            ((_, access),) = self.outputs
            address = access.address(kept).text()
            element = accumulator.scalar
            lines.append(
                f"{access.pointer}[{address}] = first ? {element} : {access.pointer}[{address}] + {element};"
            )
            return lines
        self._store_roots(emitter, kept)
        self.context.functions |= emitter.functions
        return lines + emitter.lines

    def _iterations(self, vector: Axis | None) -> int:
        count = 1
        for axis in self.axes:
            if axis.reduced:
                count *= -(-axis.extent // LANES) if axis is vector else axis.extent
        return count * (4 if self.batch_reduced is not None else 1)

    def _accumulate(
        self, accumulator: Accumulator, vector: Axis | None, partial: str | None, valid: str | None
    ) -> list[str]:
        assert self.reduction is not None
        kept, reduced = self.indices(vector)
        emitter = self._emitter(vector, "n" if self.batch_reduced is not None else partial)
        element, inside = self.reduction.element(emitter, kept, reduced)
        if valid is not None:
            lanes = emitter.declare(f"m{element.width}", f"first_lanes_i{element.width}({valid})")
            inside = (
                lanes
                if inside is None
                else emitter.declare(
                    lanes.kind,
                    f"bitwise_and_i{lanes.width}({lanes.text}, {emitter.mask(inside, lanes.width).text})",
                )
            )
        position: Expression | None = None
        if self.reduction.position is not None:
            place = self.reduction.position(reduced)
            text = f"broadcast_i32((i32)({place.text()}))"
            if place.by_lane:
                text = f"convert_i64_to_i32({emitter.vector_index(place)})"
            position = emitter.declare("i32", text)
        accumulator.add(emitter, element, inside, position)
        self.context.functions |= emitter.functions
        return emitter.lines


def store_all(emitter: Emitter, outputs: Sequence[tuple[Value, Access]], indices: tuple[Index, ...]) -> None:
    """Compute all roots, then store them: a root may overwrite an operand that another one reads."""
    for (_, access), found in [(output, emitter.pull(output[0], indices)) for output in outputs]:
        store(emitter, access, indices, found)


def store(emitter: Emitter, access: Access, indices: tuple[Index, ...], expression: Expression) -> None:
    """Store a root; an address without lanes takes one element."""
    address = access.address(indices)
    if address.by_lane:
        emitter.store(access, indices, expression)
        return
    emitter.addresses.append(address)
    if expression.is_mask:
        expression = emitter.mask(expression, 8)
    emitter.lines.append(
        f"store_partial_{access.type.dtype.short}({access.pointer} + {address.text()}, {expression.text}, 1);"
    )


class Accumulator:
    """The running result of a reduction in one or several vectors."""

    def __init__(self, reduction: Reduction, iterations: int, horizontal: bool) -> None:
        self.reduction = reduction
        self.horizontal = horizontal  # the lanes are summed too
        self.kind = register(reduction.value.dtype)
        if self.kind == "m8":
            self.kind = "i8"
        self.iterations = iterations
        self.positioned = reduction.position is not None
        self.levels = 1
        if reduction.combine == "add" and self.kind in ("f32", "f64"):
            self.levels += (iterations > FLUSH) + (iterations > FLUSH * FLUSH)
        # Float32 lanes are added in float64, so a sum is rounded once there; where a lane takes few terms, these are too.
        self.exact_lanes = horizontal and self.kind == "f32" and reduction.combine == "add"
        self.exact_terms = self.exact_lanes and iterations <= FEW_TERMS
        self.results: list[str] = []
        self.scalar = ""

    def identity(self) -> str:
        dtype = self.reduction.value.dtype
        combine = self.reduction.combine
        if combine == "add":
            return "0"
        if combine == "multiply":
            return "1"
        lowest = combine in ("maximum", "argmax", "max_pool")
        if dtype.is_floating:
            return literal(float("-inf") if lowest else float("inf"), dtype)
        if dtype.is_bool:
            return "0" if lowest else "1" if combine == "argmin" else "-1"
        import numpy as np

        limits = np.iinfo(dtype.numpy)
        return literal(limits.min if lowest else limits.max, dtype)

    def open(self) -> list[str]:
        kind = self.kind
        if self.exact_terms:
            return ["f64x16 total = broadcast_f64(0);"]
        lines = [
            f"{kind}x16 sum{level} = broadcast_{kind}({self.identity()});" for level in range(self.levels)
        ]
        lines += [f"int64_t added{level} = 0;" for level in range(self.levels - 1)]
        if self.positioned:
            lines.append("i32x16 place = broadcast_i32(-1);")
        return lines

    def add(
        self, e: Emitter, element: Expression, inside: Expression | None, position: Expression | None
    ) -> None:
        """Statements that take one more vector of elements."""
        kind, text = self.kind, element.text
        if element.is_mask:
            text = e.mask(element, 8).text
            if self.positioned:
                text = e.declare("i8", f"bitwise_and_i8({text}, broadcast_i8(1))").text
        if self.positioned:
            assert position is not None
            self._compare(e, text, inside, position)
            return
        if inside is not None:
            mask = e.mask(inside, int(kind[1:]))
            text = f"select_{kind}({mask.text}, {text}, broadcast_{kind}({self.identity()}))"
        function = (
            {"maximum": "bitwise_or", "minimum": "bitwise_and"}.get(self.reduction.combine, "")
            if element.is_mask
            else ""
        )
        function = function or self.reduction.combine
        if self.exact_terms:
            e.lines.append(f"total = add_f64(total, convert_f32_to_f64({text}));")
            return
        e.lines.append(f"sum0 = {function}_{kind}(sum0, {text});")
        if self.levels > 1:
            inner = f"sum1 = add_{kind}(sum1, sum0); sum0 = broadcast_{kind}(0); added0 = 0;"
            if self.levels > 2:
                inner += f" if (++added1 == {FLUSH}) {{ sum2 = add_{kind}(sum2, sum1); sum1 = broadcast_{kind}(0); added1 = 0; }}"
            e.lines.append(f"if (++added0 == {FLUSH}) {{ {inner} }}")

    def _compare(self, e: Emitter, text: str, inside: Expression | None, position: Expression) -> None:
        kind, width = self.kind, int(self.kind[1:])
        smaller = self.reduction.combine == "argmin"
        better = f"less_{kind}({text}, sum0)" if smaller else f"less_{kind}(sum0, {text})"
        if self.reduction.value.dtype.is_floating:
            if self.reduction.combine == "max_pool":
                nan = f"is_nan_{kind}({text})"
            else:
                nan = f"bitwise_and_i{width}(is_nan_{kind}({text}), bitwise_invert_i{width}(is_nan_{kind}(sum0)))"
            better = f"bitwise_or_i{width}({better}, {nan})"
        chosen = e.declare(f"m{width}", better)
        unset = e.mask(e.declare("m32", "less_i32(place, broadcast_i32(0))"), width)
        chosen = e.declare(f"m{width}", f"bitwise_or_i{width}({chosen.text}, {unset.text})")
        if inside is not None:
            chosen = e.declare(
                f"m{width}", f"bitwise_and_i{width}({chosen.text}, {e.mask(inside, width).text})"
            )
        e.lines.append(f"sum0 = select_{kind}({chosen.text}, {text}, sum0);")
        e.lines.append(f"place = select_i32({e.mask(chosen, 32).text}, {position.text}, place);")

    def close(self) -> list[str]:
        """Statements behind the loops; afterwards `results` name the outputs' registers."""
        kind = self.kind
        if self.exact_lanes:
            lines = [] if self.exact_terms else ["f64x16 total = convert_f32_to_f64(sum0);"]
            lines += [f"total = add_f64(total, convert_f32_to_f64(sum{n}));" for n in range(1, self.levels)]
            lines += ["const f32 element = (f32)sum_f64(total);", "const f32x16 sum = broadcast_f32(element);"]
            self.scalar, self.results = "element", ["sum"]
            return lines
        lines = [f"sum0 = add_{kind}(sum0, sum{level});" for level in range(1, self.levels)]
        if not self.horizontal:
            self.results = ["sum0"]
        elif self.positioned:
            lines += self._horizontal_place()
            self.results = ["sum0"]
        else:
            name = {"add": "sum", "multiply": "product", "maximum": "max", "minimum": "min"}[
                self.reduction.combine
            ]
            self.scalar = "element"
            if self.reduction.value.dtype.is_bool:
                bits = "any_i8(sum0)" if name == "max" else "all_i8(sum0)"
                lines.append(f"const i8 element = (i8)-({bits});")
            else:
                lines.append(f"const {kind} element = {name}_{kind}(sum0);")
            lines.append(f"sum0 = broadcast_{kind}(element);")
            self.results = ["sum0"]
        if self.positioned:
            index = self.reduction.index_value
            assert index is not None
            target = register(index.dtype)
            if target != "i32":
                lines.append(f"const {target}x16 place_{target} = convert_i32_to_{target}(place);")
            place = "place" if target == "i32" else f"place_{target}"
            self.results = ["sum0", place] if self.reduction.combine == "max_pool" else [place]
        return lines

    def _horizontal_place(self) -> list[str]:
        """The best of 16 lanes, the first of equal ones, NaN before numbers."""
        kind = self.kind
        sign = "<" if self.reduction.combine == "argmin" else ">"
        nan = " || (x != x && best == best)" if self.reduction.value.dtype.is_floating else ""
        same = (
            "(x == best || (x != x && best != best))"
            if self.reduction.value.dtype.is_floating
            else "x == best"
        )
        return [
            f"{{ {kind}_lanes values = {{sum0}}; i32_lanes places = {{place}}; {kind} best = values.lane[0]; i32 at = places.lane[0];",
            f"for (int l = 1; l < 16; l++) {{ const {kind} x = values.lane[l]; const i32 p = places.lane[l];",
            f"if (p >= 0 && (at < 0 || x {sign} best{nan} || ({same} && p < at))) {{ best = x; at = p; }} }}",
            f"sum0 = broadcast_{kind}(best); place = broadcast_i32(at); }}",
        ]


# ---- which nest a kernel is -----------------------------------------------------------------------------------------

COMBINE = {
    "sum": "add",
    "prod": "multiply",
    "max": "maximum",
    "min": "minimum",
    "argmax": "argmax",
    "argmin": "argmin",
}


def emit_loops(context: Context) -> KernelText:
    """An elementwise or movement kernel, or one that combines slots."""
    root = context.kernel.roots[0]
    return Nest(
        context, root.shape, batch_root=context.batch_axis.get(id(root)) if context.lanes else None
    ).emit()


def emit_reduction(context: Context) -> KernelText:
    """sum, prod, max, min, argmax, argmin with pulled operand and elementwise epilogue."""
    anchor = context.kernel.anchor
    assert anchor is not None
    op: Any = anchor.op
    x, result = anchor.inputs[0], anchor.outputs[0]
    listed = op.axis if isinstance(op.axis, tuple) else (op.axis,)
    kept_axes = [a for a in range(x.ndim) if a not in listed]
    reduced_shape = tuple(x.shape[a] for a in listed)

    def element(
        e: Emitter, kept: tuple[Index, ...], reduced: tuple[Index, ...]
    ) -> tuple[Expression, Expression | None]:
        inner: list[Index] = [Index()] * x.ndim
        for axis, index in zip(kept_axes, kept, strict=True):
            inner[axis] = index
        for axis, index in zip(listed, reduced, strict=True):
            inner[axis] = index
        return e.pull(x, tuple(inner)), None

    arg = op.name in ("argmax", "argmin")
    batch = context.batch_axis.get(id(x)) if context.lanes else None
    return Nest(
        context,
        result.shape,
        reduced_shape,
        Reduction(
            element,
            COMBINE[op.name],
            x if arg else result,
            (lambda reduced: row_position(reduced, reduced_shape)) if arg else None,
            result if arg else None,
        ),
        batch_root=kept_axes.index(batch) if batch is not None and batch in kept_axes else None,
        batch_reduced=listed.index(batch) if batch is not None and batch in listed else None,
    ).emit()


def row_position(reduced: tuple[Index, ...], shape: tuple[int, ...]) -> Index:
    """The row-major position of indices in a shape."""
    total = Index()
    for index, extent in zip(reduced, shape, strict=True):
        total = total * extent + index
    return total
