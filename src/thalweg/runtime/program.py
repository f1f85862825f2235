"""Programs: compiled, loaded, callable graphs that read and update the state holders they were traced with.

`compile_graph` is what the tensor layer calls. A program checks nothing about its inputs but their types:
arguments, guards and errors are the caller's business.
"""

from __future__ import annotations

import copy
import ctypes
import warnings
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from thalweg.config import available_cpus, settings
from thalweg.errors import IndexRangeError, ThalwegError, UnsupportedError
from thalweg.graph import Graph, Node
from thalweg.graph.build import located_error
from thalweg.interpret import interpret
from thalweg.plan import Plan, Target
from thalweg.runtime.memory import ResultMemory, address_of, aligned_empty, allocate
from thalweg.runtime.pool import pool

Array = np.ndarray[Any, Any]


class Program(Protocol):
    """What every backend gives."""

    graph: Graph

    def __call__(self, inputs: Sequence[Array]) -> list[Array]: ...

    @property
    def plan(self) -> Plan: ...

    @property
    def source(self) -> str: ...


def compile_graph(
    graph: Graph,
    backend: str | None = None,
    threads: int | None = None,
    target: str = "native",
    check: bool | None = None,
    winograd: bool = True,
    plan: Plan | None = None,
) -> Program:
    """The program of a traced graph.

    `backend` is "c" or "numpy" (None: the THALWEG_BACKEND setting, else C where a compiler is found),
    `threads` how many take part (None: the THALWEG_THREADS setting), `target` the instruction set of the
    C compiler's flags, `check` whether the first call compares the program with the references (None: the
    THALWEG_CHECK setting), `winograd` whether 3x3 convolutions may be computed with fewer multiplications.
    `plan` is one that has been made for the graph already; its own graph is then what runs.
    """
    chosen = backend or settings.backend
    if chosen == "auto":
        chosen = "c" if _has_compiler() else "numpy"
    if chosen == "numpy":
        return InterpretedProgram(graph if plan is None else plan.graph)
    checked = settings.check if check is None else check
    return NativeProgram(graph, threads, target, checked, winograd, plan)


@cache
def _has_compiler() -> bool:
    """Is there a C compiler? Where there is none, one warning says what to install."""
    from thalweg.codegen.c.build import require_compiler

    try:
        require_compiler()
    except UnsupportedError as error:
        warnings.warn(f"running on the NumPy reference backend, which is slow: {error}", stacklevel=2)
        return False
    return True


def make_plan(graph: Graph, target: str = "native", winograd: bool = True) -> Plan:
    """The plan of a traced graph for the C backend; needs no compiler."""
    from thalweg.codegen.c.support import support
    from thalweg.passes.pipeline import prepare
    from thalweg.schedule import schedule

    backend = support()
    return schedule(prepare(graph, backend.takes), Target(backend, target, winograd=winograd))


def _dump(directory: Path, graph: Graph, plan: Plan, text: str) -> None:
    """Write the plan and the C of a program beside the graphs that the passes leave there."""
    from thalweg.passes.pipeline import file_name

    directory.mkdir(parents=True, exist_ok=True)
    name = file_name(graph)
    (directory / f"{name}.plan.txt").write_text(plan.text(limit=None), encoding="utf-8")
    (directory / f"{name}.plan.json").write_text(plan.json(), encoding="utf-8")
    (directory / f"{name}.c").write_text(text, encoding="utf-8")


class InterpretedProgram:
    """Runs the graph with the NumPy references. Its bits are outside the same-bits promise."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.holders = [entry.holder for entry in graph.state]
        self.changed = [entry.holder for entry in graph.state if entry.after is not None]

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs for the inputs; the state changes only when the whole call has succeeded."""
        results = interpret(self.graph, inputs, [holder.data for holder in self.holders])
        count = len(self.graph.outputs)
        for holder, array in zip(self.changed, results[count:], strict=True):
            holder.replace(
                np.array(array, order="C")
            )  # a copy of its own: the result may be a view of an input
        return [np.array(array, order="C") for array in results[:count]]

    @cached_property
    def plan(self) -> Plan:
        return make_plan(self.graph)

    @property
    def source(self) -> str:
        from thalweg.codegen.c.program import generate

        return generate(self.plan).text


class _Call(ctypes.Structure):
    """The generated code's `program`: what one call works on."""

    _fields_ = (
        ("arena", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("io", ctypes.c_void_p),
        ("error", ctypes.c_int32),
        ("observer", ctypes.c_void_p),
        ("kept", ctypes.c_int32),  # phases at the beginning that are left out
    )


class Frame:
    """Memory and pointer table of one call; concurrent calls take one each."""

    def __init__(self, plan: Plan, threads: int, constants: Sequence[Array]) -> None:
        self.threads = threads
        self.versions: list[int] = []  # of the state that what the arena keeps was computed from
        self.arena = allocate(plan.arena_bytes, role="arena")
        self.scratch = allocate(plan.thread_bytes * threads, role="scratch")
        self.first_constant = len(plan.inputs) + len(plan.state) + len(plan.outputs)
        self.pointers = (ctypes.c_void_p * (self.first_constant + len(constants) + 1))()
        for number, array in enumerate(constants):
            self.pointers[self.first_constant + number] = array.ctypes.data
        self.call = _Call(
            self.arena.ctypes.data,
            self.scratch.ctypes.data,
            ctypes.cast(self.pointers, ctypes.c_void_p).value,
            0,
        )
        self.reference = ctypes.byref(self.call)


class NativeProgram:
    """The graph as a native library: scheduled, written as C, built (or found in the cache) and loaded."""

    def __init__(
        self,
        graph: Graph,
        threads: int | None = None,
        target: str = "native",
        check: bool = False,
        winograd: bool = True,
        plan: Plan | None = None,
    ) -> None:
        self.graph = graph
        self.plan = make_plan(graph, target, winograd) if plan is None else plan
        self.threads = threads  # None: the setting at the time of each call
        self.unchecked = check  # the next call compares the program with the reference first
        self._build()

    def observed(self, how: str) -> NativeProgram:
        """A twin with the same plan, kernels and numerics that is "timed" or "watched"."""
        twin = copy.copy(self)
        twin.unchecked = False
        twin._build(how)
        return twin

    def _build(self, observed: str = "") -> None:
        from thalweg.codegen.c import build
        from thalweg.codegen.c.program import ENTRY, generate, headers

        generated = generate(self.plan, observed)
        self.source = generated.text
        if settings.dump is not None and not observed:
            _dump(settings.dump, self.graph, self.plan, generated.text)
        library = build.library(generated.units(available_cpus()), self.plan.target.machine, headers())
        self.attach(library, ENTRY, generated.failures)

    def attach(self, library: ctypes.CDLL, entry: str, failures: Sequence[Node]) -> None:
        """Make the plan callable by a function of a loaded library; `failures`: what its error codes mean."""
        from thalweg.runtime.pool import runtime_library

        self.failures = failures
        self.library = library  # it stays loaded as long as the program lives
        self.entry = getattr(library, entry)
        self.entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        self.entry.restype = ctypes.c_int32
        self.run = ctypes.cast(runtime_library().tw_run, ctypes.c_void_p)
        scheduled = self.plan.graph
        self.states = [(state.holder, state.after is not None) for state in scheduled.state]
        self.results = [ResultMemory(value.shape, value.dtype.numpy) for value in scheduled.outputs]
        self.constants = self.plan.constant_arrays()
        self.kept = self.plan.kept
        self.kept_holders = [scheduled.state[number].holder for number in self.plan.kept_state()]
        self.frames: list[Frame] = []
        self.events: Array | None = None  # of a timed program: one row of records per thread

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs for the inputs (row-major arrays of the graph's types); state is updated in place."""
        if self.unchecked:
            from thalweg.runtime.check import check

            check(self, inputs)
            self.unchecked = False
        threads = self.threads or settings.threads()
        try:
            frame = self.frames.pop()
        except IndexError:  # all are in use by other threads
            frame = None
        if frame is None or frame.threads != threads:
            frame = Frame(self.plan, threads, self.constants)
        versions = [holder.version for holder in self.kept_holders]  # before the values: those may be newer
        frame.call.kept = self.kept if versions and versions == frame.versions else 0
        pointers = frame.pointers
        position = 0
        for array in inputs:
            pointers[position] = address_of(array)
            position += 1
        held = []  # while we refer to an array that is only read, no other program overwrites it
        for holder, changes in self.states:
            if changes:  # under the lock of the state
                holder.storage_for_update()
                pointers[position] = holder.address
            else:
                array = holder.data
                held.append(array)
                pointers[position] = address_of(array)
            position += 1
        outputs = []
        for result in self.results:
            array, pointers[position] = result.take()
            outputs.append(array)
            position += 1
        call = frame.call
        call.error = 0
        if self.events is not None:
            call.observer = self.events.ctypes.data
        code = self.entry(pool(threads), self.run, frame.reference)
        frame.versions = [] if code else versions
        self.frames.append(frame)
        if code:
            raise self._failure(self.failures[code - 1], inputs)
        return outputs

    def run_on(
        self, inputs: Sequence[Array], states: Sequence[Array], observer: Callable[[Frame], int] | None = None
    ) -> list[Array]:
        """A call on arrays instead of the holders: `states` (row-major, in the order of the graph's state)
        are overwritten with the new values.

        `observer` gets the call's memory and gives what its `observer` shall be; one thread runs it then.
        """
        threads = 1 if observer is not None else self.threads or settings.threads()
        frame = Frame(self.plan, threads, self.constants)
        outputs = [aligned_empty(result.shape, result.dtype) for result in self.results]
        for position, array in enumerate((*inputs, *states, *outputs)):
            frame.pointers[position] = address_of(array)
        frame.call.observer = observer(frame) if observer is not None else None
        code = self.entry(pool(threads), self.run, frame.reference)
        if code > 0:
            raise self._failure(self.failures[code - 1], inputs)
        return outputs

    def _failure(self, node: Node, inputs: Sequence[Array]) -> ThalwegError:
        """The error of an index out of range: the reference finds its value, for the state is as it was."""
        try:
            interpret(self.plan.graph, inputs, [holder.data for holder, _ in self.states])
        except ThalwegError as error:
            return error
        types = [value.type for value in node.inputs]
        return located_error(
            IndexRangeError("an index is out of range"), node.op, types, node.where, node.scope
        )
