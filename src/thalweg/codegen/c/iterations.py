"""A scan whose iterations the threads share: each runs the phases of the body, one after the other, with all threads.

In: a phase that is a loop (`schedule` has planned the body; its arena and the carries are a buffer of the program, its
scratch is a workspace of each thread). Out: a C function that runs the phases `length` times. Between iterations only the
table of pointers changes: slices and stacked outputs advance by one step, carries alternate between two places. Right
operands of products that are the same in all iterations are copied into panels before the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from thalweg.codegen.c import products
from thalweg.graph import Value
from thalweg.plan import Buffer, Kernel, Phase, Plan, Scope, aligned
from thalweg.types import Type, uint8

Pointer = Callable[[Buffer], str]  # C text of a buffer's address in the program around the loop


def keep_panels(kernel: Kernel, body: Plan) -> None:
    """Give every product of a body whose right operand is a constant of the scan memory for its panels."""
    assert kernel.anchor is not None
    op: Any = kernel.anchor.op
    constants = {id(value) for value in body.graph.inputs[1 + op.carries + op.slices :]}
    for product in body.kernels:
        if product.kind != "matmul" or product.role != "whole":
            continue
        assert product.anchor is not None
        right = product.anchor.inputs[1]
        shape = products.shape_of(product, body.target.machine)
        if shape is None or shape.short or shape.left or (shape.dots and shape.m <= products.FEW_DOT_ROWS):
            continue
        if id(body.alias.get(id(right), right)) not in constants:
            continue
        size = shape.panel_elements * right.dtype.itemsize
        panels = Buffer("panels", Type(uint8, (size,)), Scope.PROGRAM, offset=body.arena_bytes)
        body.arena_bytes += panels.total
        product.detail["panels"] = panels
        needed = products.product_workspace(product, body.target.machine)  # other tiles than without panels
        if "workspace" not in product.detail or product.detail["workspace"].total < needed:
            scratch = Buffer("matmul workspace", Type(uint8, (needed,)), Scope.THREAD)
            scratch.offset = aligned(body.thread_bytes)
            body.thread_bytes = scratch.offset + scratch.total
            product.detail["workspace"] = scratch


def packing(body: Plan) -> Phase | None:
    """The phase before the first iteration that fills the panels."""
    kernels: list[Kernel] = []
    for product in body.kernels:
        if "panels" in product.detail:
            shape = products.shape_of(product, body.target.machine)
            assert shape is not None and product.anchor is not None
            right = product.anchor.inputs[1]
            base = body.alias.get(id(right), right)
            pack = Kernel("panels", [right], [], [base], product.anchor, detail=dict(product.detail))
            pack.tasks = shape.lead * shape.panels
            kernels.append(pack)
    return Phase(kernels, False, sum(kernel.tasks for kernel in kernels)) if kernels else None


def phase_table(name: str, phases: Sequence[Phase], functions: Sequence[str]) -> str:
    """C text of an array of the runtime's phases."""
    listed = ", ".join(f"{{{f}, {p.tasks}, {int(p.tasks == 1)}}}" for f, p in zip(functions, phases, strict=True))
    return f"static const tw_phase {name}[] = {{{listed}}};"


def loop_function(
    name: str,
    plan: Plan,
    number: int,
    functions: Sequence[str],
    packed: tuple[Phase, str] | None,
    constants: Sequence[str],
    pointer: Pointer,
) -> str:
    """The C function of loop phase `number` of `plan`; `functions` are those of the body's phases, `packed` is the phase
    before them, `constants` are the addresses of the body's arrays."""
    phase = plan.phases[number]
    kernel, body = phase.kernels[0], phase.loop
    assert kernel.anchor is not None and body is not None
    op: Any = kernel.anchor.op
    length = int(op.length)

    def place(value: Value, write: bool = False) -> str:
        return pointer(plan.buffer_of(kernel, number, value, write))

    inputs = [place(value) for value in kernel.anchor.inputs]
    outputs = [place(value, True) for value in kernel.anchor.outputs]
    scratch = pointer(kernel.detail["workspace"]) if "workspace" in kernel.detail else "0"
    lines = [
        f"static int32_t {name}(tw_pool *pool, tw_run_function run, program *x) {{",
        phase_table("phases", body.phases, functions),
        f"char *const shared = {pointer(kernel.detail['shared'])}, *const scratch = x->scratch; (void)scratch;",
        *_first_carries(op, body, kernel.detail["homes"], inputs, outputs),
        "int64_t index = 0; (void)index;",
        f"program body = {{.arena = shared, .scratch = {scratch}}};",
        f"for (int64_t step = 0; step < {length}; step++) {{",
        f"index = {length - 1} - step;" if op.reverse else "index = step;",
    ]
    table, results = _addresses(op, body, kernel.detail["homes"], inputs, outputs)
    lines += [f"void *const io[] = {{{', '.join([*table, *results, *constants])}}};", "body.io = io;"]
    if packed is not None:
        before, function = packed
        lines += [
            "if (!step) {",
            phase_table("before", [before], [function]),
            "run(pool, before, 1, &body, &body.error);",
            "}",
        ]
    count = len(body.phases)
    lines += [
        f"if (run(pool, phases, {count}, &body, &body.error)) {{ tw_fail(&x->error, body.error); return x->error; }}",
        "}",
        *_last_carries(op, body, kernel.detail["homes"], outputs),
        "return x->error;",
        "}",
    ]
    return "\n".join(lines)


def _first_and_last(op: Any) -> tuple[int, int]:
    """Indices of the first and of the last iteration."""
    return (int(op.length) - 1, 0) if op.reverse else (0, int(op.length) - 1)


def _addresses(
    op: Any, body: Plan, homes: dict[int, tuple[int, bool]], inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[list[str], list[str]]:
    """C text of what an iteration reads, and of what it writes, in the order of the body's inputs and outputs."""
    table, results, offset = ["&index"], [], aligned(body.arena_bytes)
    back, ahead = ("index + 1", "index - 1") if op.reverse else ("index - 1", "index + 1")
    last = int(op.length) - 1
    for carry in range(op.carries):
        nbytes = body.inputs[1 + carry].nbytes
        if carry in homes:
            position, after = homes[carry]
            stack = outputs[position]
            table.append(f"step ? {stack} + ({back}) * {nbytes} : {inputs[carry]}" if after else f"{stack} + index * {nbytes}")
            results.append(
                f"{stack} + index * {nbytes}"
                if after
                else f"step == {last} ? {outputs[carry]} : {stack} + ({ahead}) * {nbytes}"
            )
            continue
        size = aligned(nbytes)
        table.append(f"step ? shared + {offset} + (step - 1) % 2 * {size} : {inputs[carry]}")
        results.append(f"step == {last} ? {outputs[carry]} : shared + {offset} + step % 2 * {size}")
        offset += 2 * size
    for position in range(op.carries, op.carries + op.slices):
        table.append(f"{inputs[position]} + index * {body.inputs[1 + position].nbytes}")
    table += inputs[op.carries + op.slices :]
    taken = {position for position, _ in homes.values()}
    for position in range(op.carries, len(outputs)):
        if position not in taken:
            results.append(f"{outputs[position]} + index * {op.body.outputs[position].type.nbytes}")
    return table, results


def _first_carries(
    op: Any, body: Plan, homes: dict[int, tuple[int, bool]], inputs: Sequence[str], outputs: Sequence[str]
) -> list[str]:
    """Copy carries to the stacks that hold them before each iteration."""
    first, _ = _first_and_last(op)
    return [
        f"__builtin_memcpy({outputs[position]} + {first * body.inputs[1 + carry].nbytes}, {inputs[carry]}, "
        f"{body.inputs[1 + carry].nbytes});"
        for carry, (position, after) in homes.items()
        if not after
    ]


def _last_carries(
    op: Any, body: Plan, homes: dict[int, tuple[int, bool]], outputs: Sequence[str]
) -> list[str]:
    """Copy carries from the stacks that hold them after each iteration."""
    _, last = _first_and_last(op)
    return [
        f"__builtin_memcpy({outputs[carry]}, {outputs[position]} + {last * body.inputs[1 + carry].nbytes}, "
        f"{body.inputs[1 + carry].nbytes});"
        for carry, (position, after) in homes.items()
        if after
    ]
