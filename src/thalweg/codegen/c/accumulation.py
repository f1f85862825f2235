"""Row-major kernels whose order matters: scatter and cumulative sums. Tasks never share an output element."""

from __future__ import annotations

import math
from typing import Any

from thalweg.codegen.c.bindings import TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.expressions import Emitter, Expression, register
from thalweg.codegen.c.nests import store
from thalweg.codegen.loops import LANE, Index, unravel, variable
from thalweg.graph import Value
from thalweg.plan import LANES


def _emitter(
    context: Context, extents: dict[str, int], accesses: dict[int, Any], partial: str | None
) -> Emitter:
    emitter = context.emitter({**extents, LANE: LANES}, accesses)
    emitter.partial = partial
    return emitter


def emit_scatter(context: Context) -> KernelText:
    """Each task owns some vectors of the innermost axes (or some batch entries) and walks all updates in their order."""
    kernel = context.kernel
    anchor = kernel.anchor
    assert anchor is not None
    op: Any = anchor.op
    x, indices, updates = anchor.inputs
    accesses = context.reads()
    target = context.access(kernel.roots[0], write=True)
    batch = math.prod(x.shape[: op.batch])
    outer = math.prod(x.shape[op.batch : op.axis])
    extent = x.shape[op.axis]
    inner = math.prod(x.shape[op.axis + 1 :])
    count = math.prod(indices.shape[op.batch :])
    chunks = -(-inner // LANES)
    extents = {"row": batch * outer, "chunk": inner, "a": extent, "u": count, LANE: LANES}
    lines = [
        f"for (int64_t item = task * {batch * outer * chunks} / {kernel.tasks}; item < (task + 1) * {batch * outer * chunks} / {kernel.tasks}; item++) {{"
    ]
    lines.append(f"const int64_t row = item / {max(chunks, 1)}, chunk = item % {max(chunks, 1)} * {LANES};")
    lines.append(f"const int n = {inner} - chunk < {LANES} ? (int)({inner} - chunk) : {LANES};")
    lane = variable("chunk") + variable(LANE)
    sizes = (*x.shape[: op.axis],)

    def at(position: Index) -> tuple[Index, ...]:
        lead = unravel(variable("row"), sizes, extents) if sizes else ()
        return (
            *lead,
            position,
            *(unravel(lane, x.shape[op.axis + 1 :], extents) if x.ndim > op.axis + 1 else ()),
        )

    scalar = inner == 1
    if scalar:
        lane = Index()

    def element(value: Value, indices_of: tuple[Index, ...], emitter: Emitter) -> Expression:
        return emitter.pull(value, indices_of)

    copy = _emitter(context, extents, accesses, "n")
    store(copy, target, at(variable("a")), element(x, at(variable("a")), copy))
    lines += [f"for (int64_t a = 0; a < {extent}; a++) {{", *copy.lines, "}"]
    context.functions |= copy.functions
    if not count:
        return context.function("(void)task; (void)error;\n" + "\n".join([*lines, "}"]), TILE_PARAMETERS)
    write = _emitter(context, extents, accesses, "n")
    write.counter = 500
    lead = unravel(variable("row"), sizes, extents) if sizes else ()
    place = (*lead[: op.batch], *unravel(variable("u"), indices.shape[op.batch :], extents))
    found = write.pull(indices, place)
    wide = (
        found if found.kind == "i64" else write.declare("i64", f"convert_{found.kind}_to_i64({found.text})")
    )
    position = write.scalar_index(f"lane_i64({wide.text}, 0)", extent)
    name = position.text()
    write.lines.append(
        f"if ({name} < -{extent} || {name} >= {extent}) {{ tw_fail(error, {write.code(anchor)}); continue; }}"
    )
    real = write.scalar_index(f"{name} < 0 ? {name} + {extent} : {name}", extent)
    behind = at(real)[op.axis + 1 :]
    update = write.pull(
        updates, (*lead, *unravel(variable("u"), indices.shape[op.batch :], extents), *behind)
    )
    if op.mode != "set":
        access = context.access(kernel.roots[0])
        current = write.load(access, at(real))
        function = {"add": "add", "min": "minimum", "max": "maximum"}[op.mode]
        if current.is_mask:
            logical = "bitwise_and_i8" if op.mode == "min" else "bitwise_or_i8"
            update = write.declare("m8", f"{logical}({current.text}, {write.mask(update, 8).text})")
        else:
            update = write.declare(current.kind, f"{function}_{current.kind}({current.text}, {update.text})")
    store(write, target, at(real), update)
    lines += [f"for (int64_t u = 0; u < {count}; u++) {{", *write.lines, "}", "}"]
    context.functions |= write.functions
    return context.function("(void)task; (void)error;\n" + "\n".join(lines), TILE_PARAMETERS)


def emit_cumulative_sum(context: Context) -> KernelText:
    """Running sums along one axis, lanes over the axes behind it (one lane where it is the last); floating point is
    added in float64 and rounded once per element."""
    kernel = context.kernel
    anchor = kernel.anchor
    assert anchor is not None
    op: Any = anchor.op
    x = anchor.inputs[0]
    accesses = context.reads()
    target = context.access(kernel.roots[0], write=True)
    outer, extent = math.prod(x.shape[: op.axis]), x.shape[op.axis]
    inner = math.prod(x.shape[op.axis + 1 :])
    chunks = -(-inner // LANES)
    extents = {"row": outer, "chunk": inner, "i": extent, LANE: LANES}
    kind = register(x.dtype)
    wide = "f64" if x.dtype.is_floating else kind
    lane = variable("chunk") + variable(LANE) if inner > 1 else Index()
    lead = unravel(variable("row"), x.shape[: op.axis], extents) if op.axis else ()
    behind = unravel(lane, x.shape[op.axis + 1 :], extents) if x.ndim > op.axis + 1 else ()
    indices = (*lead, variable("i"), *behind)
    emitter = _emitter(context, extents, accesses, "n")
    found = emitter.pull(x, indices)
    text = found.text if wide == kind else f"convert_{kind}_to_{wide}({found.text})"
    emitter.lines.append(f"sum = add_{wide}(sum, {text});")
    rounded = (
        Expression("sum", kind) if wide == kind else emitter.declare(kind, f"convert_{wide}_to_{kind}(sum)")
    )
    store(emitter, target, indices, rounded)
    context.functions |= emitter.functions
    total = outer * chunks
    loop = (
        f"for (int64_t i = {extent - 1}; i >= 0; i--) {{"
        if op.reverse
        else f"for (int64_t i = 0; i < {extent}; i++) {{"
    )
    lines = [
        "(void)error;",
        f"for (int64_t item = task * {total} / {kernel.tasks}; item < (task + 1) * {total} / {kernel.tasks}; item++) {{",
        f"const int64_t row = item / {max(chunks, 1)}, chunk = item % {max(chunks, 1)} * {LANES}; (void)row;",
        f"const int n = {inner} - chunk < {LANES} ? (int)({inner} - chunk) : {LANES}; (void)n;",
        f"{wide}x16 sum = broadcast_{wide}(0);",
        loop,
        *emitter.lines,
        "}}",
    ]
    return context.function("\n".join(lines), TILE_PARAMETERS)
