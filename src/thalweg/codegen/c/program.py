"""Plan to C: one translation unit with a function per distinct kernel, one per phase, and an entry point."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.codegen.c import iterations, library
from thalweg.codegen.c.bindings import SHARED, STATIC, Context, KernelText
from thalweg.codegen.c.expressions import memory
from thalweg.codegen.c.support import emit
from thalweg.graph import Node
from thalweg.plan import Buffer, Kernel, Phase, Plan, Scope

ENTRY = "thalweg_run"


@dataclass
class Source:
    """The C text of a plan, and what its error codes mean."""

    parts: list[Part]
    failures: list[Node]  # error code - 1 -> the node whose index was out of range

    @property
    def text(self) -> str:
        """The program as one translation unit."""
        return _unit(self.parts)

    def units(self, most: int) -> list[tuple[str, str]]:
        """The program as up to `most` translation units (name, text), which a compiler can take side by side."""
        total = sum(len(part.text) for part in self.parts)
        count = max(1, min(most, total // UNIT_BYTES))
        loads = [sum(len(part.text) for part in self.parts if not part.leaf)] + [0] * (count - 1)
        members: list[list[Part]] = [[] for _ in range(count)]
        for part in sorted((p for p in self.parts if p.leaf), key=lambda p: -len(p.text)):
            lightest = loads.index(min(loads))
            loads[lightest] += len(part.text)
            members[lightest].append(part)
        away = {id(part) for others in members[1:] for part in others}
        main = [replace(part, text=part.prototype) if id(part) in away else part for part in self.parts]
        shared = [[replace(part, text=part.shared) for part in others] for others in members[1:]]
        return [(f"program{number}.c", _unit(parts)) for number, parts in enumerate([main, *shared])]


PROGRAM = "typedef struct { char *arena; char *scratch; void *const *io; volatile int32_t error; void *observer; int32_t kept; } program;"
UNIT_BYTES = 60_000  # of C text that are worth a translation unit of their own


@dataclass
class Part:
    """A function or a constant of a program. A leaf calls nothing but the vector library: it can live anywhere."""

    text: str
    functions: set[str]
    leaf: bool = False

    @property
    def shared(self) -> str:
        """A leaf as a function that other units see."""
        return self.text.replace(STATIC, SHARED, 1)

    @property
    def prototype(self) -> str:
        """Its declaration."""
        return self.shared[: self.shared.index("{")].rstrip() + ";"


def _unit(parts: list[Part]) -> str:
    functions: set[str] = set().union(*(part.functions for part in parts))
    return _prelude(functions) + "\n" + indented("\n".join(part.text for part in parts))


def headers() -> dict[str, str]:
    """The files that a program includes."""
    runtime = Path(__file__).with_name("runtime.h").read_text(encoding="utf-8")
    return {"vector.h": library.header(), "runtime.h": runtime}


def generate(plan: Plan, observed: str = "") -> Source:
    """The program of a plan. Kernels with equal text are written once.

    `observed` is what happens around each call of a kernel: "" nothing, "timed" its begin and end are
    recorded by thread, "watched" a function of the caller is told of both (`thalweg.runtime.watch`).
    """
    writer = Kernels(observed)
    phases = writer.phases(plan)
    return Source([*writer.parts, Part(_entry(plan, phases, writer.loops), set())], writer.failures)


def indented(text: str) -> str:
    """C text with four spaces per open brace."""
    lines: list[str] = []
    depth = 0
    for line in text.split("\n"):
        line = line.strip()
        leading = len(line) - len(line.lstrip("}"))
        lines.append("    " * (depth - leading) + line if line else "")
        depth += line.count("{") - line.count("}")
    return "\n".join(lines) + "\n"


class Kernels:
    """The kernels and phases of plans as C functions, in an order in which C can read them."""

    def __init__(self, observed: str = "") -> None:
        self.observed = observed
        self.failures: list[Node] = []
        self.names: dict[str, str] = {}  # text of a kernel -> its name
        self.parts: list[Part] = []
        self.plans = 0
        self.loops: dict[str, str] = {}  # function of a loop -> its call by the entry point

    def error_code(self, node: Node) -> int:
        for number, known in enumerate(self.failures):
            if known is node:
                return number + 1
        self.failures.append(node)
        return len(self.failures)

    def phases(self, plan: Plan, stride: int | None = None) -> list[str]:
        """`stride`: bytes from one thread's scratch to the next, where it is that of a plan around this one."""
        stride = plan.thread_bytes if stride is None else stride
        prefix = f"plan{self.plans}_" if self.plans else ""
        # what runs inside a loop's kernel belongs to that kernel
        observe = OBSERVERS[self.observed] if self.observed and not self.plans else None
        if observe is not None:
            self.parts.append(Part(observe.text, set()))
        self.plans += 1
        done = 0
        names: list[str] = []
        for number, phase in enumerate(plan.phases):
            around = [
                observe.around(done + i, phase.batch) if observe else "CALL" for i in range(len(phase.kernels))
            ]
            done += len(phase.kernels)
            if phase.loop is not None:
                self._loop(plan, number, f"{prefix}loop{number}")
                names.append(f"{prefix}loop{number}")
                self.loops[names[-1]] = around[0].replace("CALL", f"{names[-1]}(pool, run, x);")
                continue
            calls = [self._kernel(Context(plan, phase, number, kernel, self)) for kernel in phase.kernels]
            names.append(f"{prefix}phase{number}")
            write = _batch_phase if phase.batch else _tile_phase
            self.parts.append(Part(write(plan, names[-1], phase, calls, around, stride), set()))
        return names

    def _loop(self, plan: Plan, number: int, name: str) -> None:
        """The phases of a loop's body, and the function that runs them."""
        body = plan.phases[number].loop
        assert body is not None
        functions = self.phases(body, plan.thread_bytes)
        before = iterations.packing(body)
        packed = None
        if before is not None:
            calls = [self._kernel(Context(body, before, 0, kernel, self)) for kernel in before.kernels]
            packed = (before, f"{name}_panels")
            text = _tile_phase(body, packed[1], before, calls, ["CALL"] * len(calls), plan.thread_bytes)
            self.parts.append(Part(text, set()))
        constants = [self.constant(array) for array in body.constant_arrays()]
        text = iterations.loop_function(
            name, plan, number, functions, packed, constants, lambda buffer: _pointer(plan, buffer, False, False)
        )
        self.parts.append(Part(text, set()))

    def _kernel(self, context: Context) -> Call:
        before = len(self.parts)
        written = emit(context)
        if written.text not in self.names:
            self.names[written.text] = f"kernel{len(self.names)}"
            text = written.text.replace("NAME", self.names[written.text], 1)
            self.parts.append(
                Part(text, written.functions, leaf=len(self.parts) == before and not context.calls)
            )
        return context.kernel, self.names[written.text], written

    def shared(self, name: str, text: str, functions: Collection[str] = ()) -> None:
        if text not in self.names:
            self.names[text] = name
            self.parts.append(Part(text, set(functions), leaf=True))

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        name = f"constant{len(self.parts)}"
        content = ", ".join(map(str, np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
        text = f"static const uint8_t {name}[] __attribute__((aligned(64))) = {{{content}}};"
        self.parts.append(Part(text, set()))
        return f"(void *){name}"


Call = tuple[Kernel, str, KernelText]


def _prelude(functions: set[str]) -> str:
    return "\n".join(
        [
            '#include "vector.h"',
            '#include "runtime.h"',
            library.text_for(sorted(functions)) if functions else "",
            PROGRAM,
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
        f"({memory(b.type.dtype)} *)({_pointer(plan, b, batch, kernel.role == 'partial')})"
        for b in written.buffers
    )


def _comment(kernel: Kernel) -> str:
    """What a call computes. Source lines stay out of the text: moving code must not make a new program."""
    return f"/* {kernel.name} -> {', '.join(str(root.type) for root in kernel.roots)} */"


@dataclass(frozen=True)
class Observer:
    """What surrounds each call of a kernel: functions, and the C of a call with CALL and numbers left open."""

    text: str
    call: str

    def around(self, number: int, batch: bool) -> str:
        """The C around the call of kernel `number`, in which CALL stands for the call itself."""
        samples = "origin, count" if batch else "0, 0"
        return self.call.replace("NUMBER", str(number)).replace("SAMPLES", samples)


EVENTS = 1 << 15  # calls per thread that a timed program can record; further ones are dropped
TIMED = Observer(
    f"""#include <time.h>
static inline int64_t now(void) {{
struct timespec t;
clock_gettime(CLOCK_MONOTONIC, &t);
return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}}
/* events of a thread: their count, then (kernel, start, end) of each in nanoseconds */
static inline void record(program *x, int32_t thread, int64_t kernel, int64_t start) {{
int64_t *const own = (int64_t *)x->observer + (int64_t)thread * {3 * EVENTS + 1};
if (own[0] < {EVENTS}) {{
int64_t *const event = own + 1 + 3 * own[0]++;
event[0] = kernel; event[1] = start; event[2] = now();
}}
}}""",
    "{ const int64_t start = now(); CALL record(x, thread, NUMBER, start); }",
)
WATCHED = Observer(
    """/* tells the caller that a call of a kernel begins (ended 0) or is over (ended 1) */
static inline void watch(program *x, int64_t kernel, int64_t ended, int64_t task, int64_t origin, int64_t count) {
((void (*)(int64_t, int64_t, int64_t, int64_t, int64_t))x->observer)(kernel, ended, task, origin, count);
}""",
    "{ watch(x, NUMBER, 0, task, SAMPLES); CALL watch(x, NUMBER, 1, task, SAMPLES); }",
)
OBSERVERS = {"timed": TIMED, "watched": WATCHED}


def _batch_phase(plan: Plan, name: str, phase: Phase, calls: list[Call], around: list[str], stride: int) -> str:
    """Each task walks its shard of the batch block by block, every block through all kernels."""
    blocks = -(-phase.extent // phase.block)
    lines = [
        f"static void {name}(void *context, int64_t task, int32_t thread) {{",
        "program *const x = context;",
        f"char *const scratch = x->scratch + (int64_t)thread * {stride};",
        f"const int64_t begin = task * {blocks} / {phase.tasks}, end = (task + 1) * {blocks} / {phase.tasks};",
        "(void)scratch;",
        "for (int64_t block = begin; block < end; block++) {",
        f"const int64_t origin = block * {phase.block};",
        f"const int64_t count = {phase.extent} - origin < {phase.block} ? {phase.extent} - origin : {phase.block};",
        "const int32_t first = block == begin;",
    ]
    for (kernel, function, written), frame in zip(calls, around, strict=True):
        arguments = _arguments(plan, kernel, written, True)
        arguments += ", " if arguments else ""
        call = frame.replace("CALL", f"{function}({arguments}count, origin, first, &x->error);")
        lines.append(f"{call} {_comment(kernel)}")
    return "\n".join([*lines, "}}"])


def _tile_phase(plan: Plan, name: str, phase: Phase, calls: list[Call], around: list[str], stride: int) -> str:
    """The tasks of several kernels one after the other."""
    lines = [
        f"static void {name}(void *context, int64_t task, int32_t thread) {{",
        "program *const x = context;",
        f"char *const scratch = x->scratch + (int64_t)thread * {stride}; (void)scratch;",
    ]
    for (kernel, function, written), frame in zip(calls, around, strict=True):
        arguments = _arguments(plan, kernel, written, False)
        arguments += ", " if arguments else ""
        call = frame.replace("CALL", f"{function}({arguments}task, &x->error);")
        lines.append(
            f"if (task < {kernel.tasks}) {{ {call} return; }} task -= {kernel.tasks}; {_comment(kernel)}"
        )
    return "\n".join([*lines, "}"])


def _entry(plan: Plan, phases: list[str], loops: dict[str, str]) -> str:
    """The function that a caller sees; `loops` are the calls of those functions that run a loop."""
    lines: list[str] = []
    group: list[int] = []

    def run() -> str:
        table = iterations.phase_table(
            f"phases{group[0]}", [plan.phases[i] for i in group], [phases[i] for i in group]
        )
        some = f"phases{group[0]}, {len(group)}" if group[0] else f"phases0 + x->kept, {len(group)} - x->kept"
        call = f"run(pool, {some}, x, &x->error)"
        group.clear()
        lines.append(table)
        return call

    for number, phase in enumerate(plan.phases):
        if phase.loop is None:
            group.append(number)
            continue
        if group:
            lines.append(f"if ({run()}) return x->error;")
        # the observers of a kernel name a thread and a task
        lines.append(f"{{ const int32_t thread = 0; const int64_t task = 0; (void)thread; (void)task; {loops[phases[number]]} }}")
        lines.append("if (x->error) return x->error;")
    lines.append(f"return {run()};" if group else "(void)pool; (void)run; return x->error;" if plan.phases else "(void)pool; (void)run; (void)x; return 0;")
    body = "\n".join(lines)
    return (
        f'__attribute__((visibility("default"))) int32_t {ENTRY}(tw_pool *pool, tw_run_function run, program *x);\n'
        f"int32_t {ENTRY}(tw_pool *pool, tw_run_function run, program *x) {{\n{body}\n}}\n"
    )
