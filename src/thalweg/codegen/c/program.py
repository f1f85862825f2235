"""Plan to C: one translation unit with a function per distinct kernel, one per phase, and an entry point."""

from __future__ import annotations

from dataclasses import dataclass

from thalweg.codegen.c import library
from thalweg.codegen.c.bindings import Context, KernelText
from thalweg.codegen.c.expressions import memory
from thalweg.codegen.c.support import emit
from thalweg.graph import Node
from thalweg.plan import Buffer, Kernel, Phase, Plan, Scope

ENTRY = "thalweg_run"


@dataclass
class Source:
    """The C text of a plan, and what its error codes mean."""

    text: str
    failures: list[Node]  # error code - 1 -> the node whose index was out of range


def generate(plan: Plan) -> Source:
    """The program of a plan. Kernels with equal text are written once."""
    failures: list[Node] = []

    def error_code(node: Node) -> int:
        for number, known in enumerate(failures):
            if known is node:
                return number + 1
        failures.append(node)
        return len(failures)

    names: dict[str, str] = {}
    functions: set[str] = set()
    phases: list[str] = []
    for number, phase in enumerate(plan.phases):
        calls: list[tuple[Kernel, str, KernelText]] = []
        for kernel in phase.kernels:
            written = emit(Context(plan, phase, number, kernel, plan.batch_axis, error_code))
            name = names.setdefault(written.text, f"kernel{len(names)}")
            functions |= written.functions
            calls.append((kernel, name, written))
        phases.append(_batch_phase(plan, number, phase, calls) if phase.batch else _tile_phase(plan, number, phase, calls))
    kernels = [text.replace("NAME", name, 1) for text, name in names.items()]
    return Source("\n".join([_prelude(functions), *kernels, *phases, _entry(plan)]), failures)


def _prelude(functions: set[str]) -> str:
    return "\n".join(
        [
            '#include "vector.h"',
            '#include "runtime.h"',
            library.text_for(sorted(functions)) if functions else "",
            "typedef struct { char *arena; char *scratch; void *const *io; volatile int32_t error; } program;",
        ]
    )


def _pointer(plan: Plan, buffer: Buffer, batch: bool, write: bool) -> str:
    """The address of a buffer in a phase function, as an untyped C expression."""
    scope = buffer.scope
    if scope is Scope.THREAD:
        return f"scratch + {buffer.offset}"
    if scope is Scope.SLOT:
        step = buffer.total // buffer.copies
        return f"x->arena + {buffer.offset} + task * {step}" if write else f"x->arena + {buffer.offset}"
    if scope is Scope.PROGRAM:
        base = f"x->arena + {buffer.offset}"
    else:
        first = {
            Scope.INPUT: 0,
            Scope.STATE: len(plan.inputs),
            Scope.OUTPUT: len(plan.inputs) + len(plan.state),
            Scope.CONSTANT: len(plan.inputs) + len(plan.state) + len(plan.outputs),
        }[scope]
        base = f"(char *)x->io[{first + buffer.offset}]"
    if batch and buffer.sample_stride:
        base += f" + origin * {buffer.sample_stride * buffer.type.dtype.itemsize}"
    return base


def _arguments(plan: Plan, kernel: Kernel, written: KernelText, batch: bool) -> str:
    return ", ".join(
        f"({memory(b.type.dtype)} *)({_pointer(plan, b, batch, kernel.role == 'partial')})" for b in written.buffers
    )


def _batch_phase(plan: Plan, number: int, phase: Phase, calls: list[tuple[Kernel, str, KernelText]]) -> str:
    """Each task walks its shard of the batch block by block, every block through all kernels."""
    blocks = -(-phase.extent // phase.block)
    lines = [
        f"static void phase{number}(void *context, int64_t task, int32_t thread) {{",
        "program *const x = context;",
        f"char *const scratch = x->scratch + (int64_t)thread * {plan.thread_bytes};",
        f"const int64_t begin = task * {blocks} / {phase.tasks}, end = (task + 1) * {blocks} / {phase.tasks};",
        "(void)scratch;",
        "for (int64_t block = begin; block < end; block++) {",
        f"const int64_t origin = block * {phase.block};",
        f"const int64_t count = {phase.extent} - origin < {phase.block} ? {phase.extent} - origin : {phase.block};",
        "const int32_t first = block == begin;",
    ]
    for kernel, name, written in calls:
        arguments = _arguments(plan, kernel, written, True)
        lines.append(f"{name}({arguments}, count, origin, first, &x->error);")
    return "\n".join([*lines, "}}"])


def _tile_phase(plan: Plan, number: int, phase: Phase, calls: list[tuple[Kernel, str, KernelText]]) -> str:
    """The tasks of several kernels one after the other."""
    lines = [
        f"static void phase{number}(void *context, int64_t task, int32_t thread) {{",
        "program *const x = context;",
        f"char *const scratch = x->scratch + (int64_t)thread * {plan.thread_bytes}; (void)scratch;",
    ]
    for kernel, name, written in calls:
        arguments = _arguments(plan, kernel, written, False)
        arguments += ", " if arguments else ""
        lines.append(f"if (task < {kernel.tasks}) {{ {name}({arguments}task, &x->error); return; }} task -= {kernel.tasks};")
    return "\n".join([*lines, "}"])


def _entry(plan: Plan) -> str:
    listed = ", ".join(f"{{phase{n}, {p.tasks}, {int(p.tasks == 1)}}}" for n, p in enumerate(plan.phases))
    count = len(plan.phases)
    body = f"static const tw_phase phases[] = {{{listed}}};\nreturn run(pool, phases, {count}, x, &x->error);"
    if not count:
        body = "(void)pool; (void)run; (void)x; return 0;"
    return (
        f"__attribute__((visibility(\"default\"))) int32_t {ENTRY}(tw_pool *pool, tw_run_function run, program *x);\n"
        f"int32_t {ENTRY}(tw_pool *pool, tw_run_function run, program *x) {{\n{body}\n}}\n"
    )



