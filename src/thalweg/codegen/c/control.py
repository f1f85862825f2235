"""scan and cond as C control flow: the body is a plan of its own whose phases run inside one task.

A kernel's scratch holds the body's arena and the carries. Iteration by iteration the pointer table of the body is set:
slices and stacked outputs advance by one step, carries alternate between two copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thalweg.codegen.c.bindings import TILE_PARAMETERS, Context, KernelText
from thalweg.graph import Graph
from thalweg.plan import Kernel, Plan, Target, aligned
from thalweg.schedule import schedule


def body_plan(kernel: Kernel, name: str, target: Target) -> Plan:
    """The plan of a sub-graph, made once per kernel."""
    plans = kernel.detail.setdefault("plans", {})
    if name not in plans:
        assert kernel.anchor is not None
        graph: Graph = getattr(kernel.anchor.op, name)
        plans[name] = schedule(graph, target)
    return plans[name]  # type: ignore[no-any-return]


def _memory(plan: Plan) -> int:
    return aligned(plan.arena_bytes) + aligned(plan.thread_bytes)


def scan_workspace(kernel: Kernel, target: Target) -> int:
    """The body's arena and two copies of every carry."""
    assert kernel.anchor is not None
    op: Any = kernel.anchor.op
    carries = sum(2 * aligned(v.type.nbytes) for v in op.body.outputs[: op.carries])
    return _memory(body_plan(kernel, "body", target)) + carries + 64


def cond_workspace(kernel: Kernel, target: Target) -> int:
    """The larger branch's arena."""
    return max(_memory(body_plan(kernel, name, target)) for name in ("then", "otherwise")) + 64


def _run(context: Context, plan: Plan, workspace: str) -> list[str]:
    """Statements that run a body's phases one task after the other."""
    phases = context.writer.phases(plan)
    lines = [
        f"program body = {{.arena = (char *){workspace}, .scratch = (char *){workspace} + {aligned(plan.arena_bytes)}, .io = io}};"
    ]
    for phase, name in zip(plan.phases, phases, strict=True):
        lines.append(
            f"for (int64_t part = 0; part < {phase.tasks} && !body.error; part++) {name}(&body, part, 0);"
        )
    lines.append("if (body.error) { tw_fail(error, body.error); return; }")
    return lines


def _pointers(context: Context, values: Sequence[Any], write: bool = False) -> list[str]:
    return [context.pointer(context.buffer(value, write), write) for value in values]


def _constants(context: Context, plan: Plan) -> list[str]:
    """Pointers to the array constants of a body, written into the text."""
    return [context.writer.constant(array) for array in plan.constant_arrays()]


def emit_scan(context: Context) -> KernelText:
    """The loop over iterations."""
    kernel = context.kernel
    anchor = kernel.anchor
    assert anchor is not None
    op: Any = anchor.op
    plan = body_plan(kernel, "body", context.plan.target)
    inputs = _pointers(context, anchor.inputs)
    outputs = _pointers(context, anchor.outputs, write=True)
    workspace = context.pointer(kernel.detail["workspace"], write=True)
    carried = [v.type for v in op.body.outputs[: op.carries]]
    lines = ["if (task) return;", "int64_t index = 0; (void)index;"]
    offset = _memory(plan)
    table: list[str] = ["&index"]
    for number, type in enumerate(carried):
        lines.append(
            f"char *now{number} = (char *){workspace} + {offset}, *next{number} = now{number} + {aligned(type.nbytes)};"
        )
        lines.append(f"__builtin_memcpy(now{number}, {inputs[number]}, {type.nbytes});")
        offset += 2 * aligned(type.nbytes)
        table.append(f"now{number}")
    for position in range(op.carries, op.carries + op.slices):
        step = plan.inputs[1 + position].nbytes
        table.append(f"(char *){inputs[position]} + index * {step}")
    table += [f"(void *){name}" for name in inputs[op.carries + op.slices :]]
    results = [f"next{number}" for number in range(op.carries)]
    for position in range(op.carries, len(outputs)):
        step = plan.outputs[position].nbytes
        results.append(f"(char *){outputs[position]} + index * {step}")
    lines.append(f"for (int64_t step = 0; step < {int(op.length)}; step++) {{")
    lines.append(f"index = {int(op.length) - 1} - step;" if op.reverse else "index = step;")
    listed = ", ".join([*table, *results, *_constants(context, plan)])
    lines.append(f"void *const io[] = {{{listed}}};")
    lines += _run(context, plan, workspace)
    for number in range(op.carries):
        lines.append(
            f"char *swap{number} = now{number}; now{number} = next{number}; next{number} = swap{number};"
        )
    lines.append("}")
    for number, type in enumerate(carried):
        lines.append(f"__builtin_memcpy({outputs[number]}, now{number}, {type.nbytes});")
    return context.function("\n".join(lines), TILE_PARAMETERS)


def emit_cond(context: Context) -> KernelText:
    """One of two bodies."""
    kernel = context.kernel
    anchor = kernel.anchor
    assert anchor is not None
    predicate, *operands = _pointers(context, anchor.inputs)
    outputs = _pointers(context, anchor.outputs, write=True)
    workspace = context.pointer(kernel.detail["workspace"], write=True)
    lines = ["if (task) return;"]
    for name, test in (("then", f"if (*{predicate}) {{"), ("otherwise", "else {")):
        plan = body_plan(kernel, name, context.plan.target)
        listed = [*(f"(void *){p}" for p in operands), *outputs, *_constants(context, plan)]
        lines += [test, f"void *const io[] = {{{', '.join(listed or ['0'])}}};"]
        lines += [*_run(context, plan, workspace), "}"]
    return context.function("\n".join(lines), TILE_PARAMETERS)
