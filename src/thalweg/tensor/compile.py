"""`compile`: a function of tensors as one program per input signature, found again by a key, kept valid by
guards.

A call builds the key of its arguments, checks that nothing else the trace has read has changed, and runs the
program. Only when one of these fails is the function traced again; the program is reused where the new graph
is the same."""

from __future__ import annotations

import copy
import functools
import inspect
import os
import struct
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg import types
from thalweg.config import settings
from thalweg.errors import ArgumentError, UnsupportedError
from thalweg.graph import Graph, Value, current
from thalweg.graph.build import location
from thalweg.ops.autocast import autocast as automatic_precision
from thalweg.ops.core import precision
from thalweg.plan.sizes import bytes_of
from thalweg.tensor import eager, nest
from thalweg.tensor.guards import Guards, Traceable
from thalweg.tensor.state import ForkSafeLock, Holder, Parameter, acquire, epoch, join_locks
from thalweg.tensor.tensor import Tensor, as_array, wrap
from thalweg.tensor.trace import Trace, leaked, tracing
from thalweg.types import DType, Type

Array = np.ndarray[Any, Any]

BACKENDS = (None, "c", "numpy")


class Spec:
    """Stands for a tensor of this type where only a graph, a plan or source text is wanted. Made by
    `tw.spec`.
    """

    def __init__(self, type: Type) -> None:
        self.type = type

    def __repr__(self) -> str:
        return f"spec({self.type})"


def spec(shape: Sequence[int] | int, dtype: Any = types.float32) -> Spec:
    """A stand-in for a tensor of that shape and element type, for `compiled.graph(...)`, `.plan(...)`,
    `.source(...)`.
    """
    from thalweg.ops.movement import shape_argument

    return Spec(Type(types.dtype(dtype), shape_argument(shape)))


@dataclass(frozen=True, slots=True)
class Options:
    """What `compile` was asked for."""

    backend: str | None = None
    threads: int | None = None
    target: str = "native"
    check: bool | None = None
    winograd: bool = True
    accumulate: int = 1
    memory_limit: int | None = None
    autocast: DType | None = None

    @property
    def changes_plan(self) -> bool:
        """Does something else run than the plan of the traced graph?"""
        return self.accumulate > 1 or self.memory_limit is not None


def make_program(graph: Graph, options: Options, plan: Any = None) -> Any:
    """The program of a graph: the one place where the tensor layer meets the runtime."""
    from thalweg.runtime.program import compile_graph

    return compile_graph(
        graph, options.backend, options.threads, options.target, options.check, options.winograd, plan
    )


# ---- keys of arguments -------------------------------------------------------------------------------------


class _Key:
    """The key of a call's arguments, and the arrays and objects among them."""

    __slots__ = ("arrays", "history", "objects", "parts", "values")

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.arrays: list[Array] = []
        self.values: list[Value | None] = []  # for each array the tensor's value, None for arrays of NumPy
        self.objects: list[Any] = []  # arguments that are compared by identity
        self.history = False  # whether some tensor is being differentiated in eager mode

    def add(self, item: Any) -> None:
        kind = type(item)
        if kind is Tensor:
            if item._trace is not None:
                raise leaked(item._value, item._trace)
            value = item._value
            found = value.type
            self.parts += (found.dtype, found.shape)
            array = value.data
            if not array.flags.c_contiguous:
                array = value.data = np.asarray(array, order="C")  # the same values: once is enough
            self.arrays.append(array)
            self.values.append(value)
            if value.node is not None:
                self.history = True
        elif kind is np.ndarray or isinstance(item, (np.ndarray, np.generic)):
            dtype = types.dtype(item.dtype)
            self.parts += (dtype, item.shape)
            self.arrays.append(np.asarray(item, dtype.numpy, order="C"))
            self.values.append(None)
        elif kind is float:
            self.parts += (float, struct.pack("<d", item))
        elif kind in (int, bool, str, bytes) or item is None or isinstance(item, (DType, complex)):
            self.parts += (kind, item)
        elif kind is Spec:
            self.parts += (item.type.dtype, item.type.shape)
        elif nest.is_container(item):
            keys = nest.keys_of(item)
            self.parts += (kind, tuple(keys) if isinstance(item, dict) else len(keys))
            for part in nest.items_of(item):
                self.add(part)
        elif not isinstance(item, Tensor) and (hasattr(item, "__dlpack__") or hasattr(item, "__array__")):
            self.add(as_array(item))
        else:
            self.parts += (object, id(item))
            self.objects.append(item)


def _reference(item: Any, forget: Callable[[Any], None]) -> Callable[[], Any]:
    """A weak reference where the object allows one: a compiled method must not keep its object alive."""
    try:
        return weakref.ref(item, forget)
    except TypeError:
        return lambda: item


# ---- one traced signature ----------------------------------------------------------------------------------


class _Slot:
    """The place of a program's output in the nest that the function returned."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


class Entry:
    """What is known of one signature: the traced graph, guards, and (once it has been called) the program."""

    def __init__(self, graph: Graph, trace: Trace, result: Any, programs: dict[tuple[Any, ...], Any]) -> None:
        self.graph = graph
        self.result = result  # the nest that the function returned, with `_Slot` in place of tensors
        self.only_output = type(result) is _Slot
        self.types = [value.type for value in graph.outputs]
        self.objects: list[Callable[[], Any]] = []  # references to arguments that are compared by identity
        self.programs = programs  # all that this signature has had, for example for train() and for eval()
        self.captured = [tensor for _, tensor in trace.captured.values()]
        self.captured_arrays = [np.asarray(tensor._value.data, order="C") for tensor in self.captured]
        changed = [entry.holder for entry in graph.state if entry.after is not None]
        join_locks(changed)
        self.changed: Holder | None = changed[0] if changed else None
        # What updates parameters is a step, whose results have no history; other calls have, eagerly.
        self.is_step = any(isinstance(holder, Parameter) for holder in changed)
        self.differentiable = any(tensor._value.node is not None for tensor in self.captured) or any(
            isinstance(entry.holder, Parameter) and entry.holder.trainable for entry in graph.state
        )
        self.call_op: eager.CompiledCall | None = None
        self.epoch = -1
        self.guards: Guards | None = None
        self.program: Any = None

    def stale(self, objects: Sequence[Any]) -> str | None:
        """Why the trace no longer describes the function, or None."""
        if self.epoch != epoch():
            return "an attribute of a module has changed"
        for reference, item in zip(self.objects, objects, strict=True):
            if reference() is not item:
                return "an argument is another object"
        assert self.guards is not None
        return self.guards.broken()


def _run(entry: Entry, inputs: list[Array]) -> Any:
    """The program's outputs; what changes state holds the lock of the state."""
    if entry.changed is None:
        return entry.program(inputs)
    lock = acquire(entry.changed)
    try:
        return entry.program(inputs)
    finally:
        lock.release()


def _key(args: Sequence[Any], kwargs: dict[str, Any]) -> _Key:
    """What identifies a call's arguments."""
    key = _Key()
    for item in args:
        key.add(item)
    if kwargs:
        key.add(kwargs)
    return key


class Compiled(Traceable):
    """A compiled function; call it like the function itself. Made by `tw.compile`."""

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        self.traced_function = function
        self.options = options
        self.name = getattr(function, "__name__", None) or type(function).__name__
        self._entries: dict[tuple[Any, ...], Entry] = {}
        self._lock = ForkSafeLock()
        functools.update_wrapper(self, function, updated=())

    # ---- calling -------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if tracing() or current() is not None:
            with self._precision():
                return self.traced_function(*args, **kwargs)
        key = self._key(args, kwargs)
        entry = self._entries.get(tuple(key.parts))
        if entry is None or entry.program is None or entry.stale(key.objects) is not None:
            entry = self._entry(args, kwargs, key, run=True)
        inputs = key.arrays + entry.captured_arrays if entry.captured_arrays else key.arrays
        if (key.history or entry.differentiable) and eager.mode.recording and not entry.is_step:
            tensors = [wrap(value, None) for value in self._recorded(entry, key, inputs)]
        else:
            outputs = entry.program(inputs) if entry.changed is None else _run(entry, inputs)
            if entry.only_output:
                return wrap(Value(entry.types[0], None, 0, outputs[0]), None)
            tensors = [
                wrap(Value(type, None, 0, array), None)
                for type, array in zip(entry.types, outputs, strict=True)
            ]
        if entry.only_output:
            return tensors[0]
        return nest.map_nest(
            lambda leaf, _: tensors[leaf.index] if type(leaf) is _Slot else leaf, entry.result
        )

    def _recorded(self, entry: Entry, key: _Key, inputs: list[Array]) -> list[Value]:
        """A call that becomes one step of the eager history. What it read stays as it was: hence before the
        call.
        """
        arguments = [
            Value(types.type_of(array), None, 0, array.copy()) if value is None else value
            for value, array in zip(key.values, key.arrays, strict=True)
        ]
        captured = [tensor._value for tensor in entry.captured]
        state = [holder.holder._read() for holder in entry.graph.state]
        if entry.call_op is None:
            entry.call_op = eager.CompiledCall(entry.graph)
        outputs = _run(entry, inputs)
        sources = (*arguments, *captured, *state)
        node = eager.HistoryNode(entry.call_op, sources, entry.types, outputs, *location())
        return [
            value if value.dtype.is_floating else Value(value.type, None, 0, value.data)
            for value in node.outputs
        ]

    def _key(self, args: Sequence[Any], kwargs: dict[str, Any]) -> _Key:
        """What identifies a call: its arguments, and the automatic precision that is on around it."""
        key = _key(args, kwargs)
        if precision.low is not None and self.options.autocast is None:
            key.parts += (automatic_precision, precision.low)
        return key

    def _precision(self) -> automatic_precision:
        """The automatic precision of this function: its own, or that around the call."""
        return automatic_precision(self.options.autocast or precision.low)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else BoundCompiled(self, instance)

    # ---- looking inside ------------------------------------------------------------------------------------

    def graph(self, *args: Any, **kwargs: Any) -> Graph:
        """The graph for these arguments (or `tw.spec` stand-ins), as it was traced; nothing is computed."""
        return self._inspected(args, kwargs, run=False).graph

    def plan(self, *args: Any, **kwargs: Any) -> Any:
        """What runs for these arguments (or `tw.spec` stand-ins): phases, kernels, buffers and exact bytes;
        nothing is compiled. See `thalweg.tensor.plans.FunctionPlan` for what can be asked of it."""
        return self._planned(args, kwargs)[1]

    def _planned(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Entry, Any]:
        """What was traced for these arguments, and its plan."""
        from thalweg.tensor.plans import FunctionPlan

        entry = self._inspected(args, kwargs, run=False)
        return entry, FunctionPlan.of(self._step(entry, args, kwargs))

    def source(self, *args: Any, **kwargs: Any) -> str:
        """The C text of the program for these arguments; no compiler is needed."""
        from thalweg.codegen.c.program import generate

        return generate(self.plan(*args, **kwargs)).text

    def export_c(
        self,
        directory: str | os.PathLike[str] | None,
        *args: Any,
        name: str = "model",
        functions: Mapping[str, tuple[Any, ...]] | None = None,
        embed_weights: bool = False,
        normalisation: Sequence[float] = (0.0, 1.0),
        **kwargs: Any,
    ) -> Any:
        """Write the program for these arguments (or `tw.spec` stand-ins) as C files that need nothing else.

        `directory` gets model.h, model.c, weights.bin, main.c, Makefile, CMakeLists.txt, README.md. The C
        function `<name>_<function>` does what a call of this function does, with the same bits, on a struct
        `<name>` that holds the state as it is now. `functions` are further ones that share the state, as
        `{"predict": (predict, images)}`: a compiled function and its arguments. `embed_weights` puts the
        values into weights.c; what nothing updates then stays in read-only memory. `normalisation` is the
        mean and standard deviation with which main.c makes inputs of an idx file's bytes. Returns what was
        exported: `.memory_bytes`, `.tensors`, `.read_state(path)`. With None for a directory nothing is
        written until `.write(directory)`. No compiler is needed.
        """
        from thalweg.codegen.c.export import identifier
        from thalweg.tensor.export import export_functions

        entries = {identifier(self.name): self._planned(args, kwargs)}
        for word, (further, *examples) in (functions or {}).items():
            if word in entries or not isinstance(further, (Compiled, BoundCompiled)):
                raise ArgumentError(
                    f"functions[{word!r}] is ({type(further).__name__}, ...); expected a compiled function "
                    f"and its arguments, under a name other than {', '.join(entries)}"
                )
            plain = further.compiled if isinstance(further, BoundCompiled) else further
            if isinstance(further, BoundCompiled):
                examples = [further.instance, *examples]
            entries[word] = plain._planned(examples, {})
        return export_functions(directory, entries, name, embed_weights, normalisation)

    def program(self, *args: Any, **kwargs: Any) -> Any:
        """The program for these arguments, compiled but not run."""
        return self._inspected(args, kwargs, run=True).program

    def profile(self, *args: Any, calls: int = 20, **kwargs: Any) -> Any:
        """Time of every kernel for these arguments, over some calls on a copy of the state: print it for
        a table, `.trace(path)` writes a file for https://ui.perfetto.dev. C backend only."""
        from thalweg.runtime.profile import profile
        from thalweg.runtime.program import NativeProgram

        program, inputs = self.prepared(*args, **kwargs)
        if not isinstance(program, NativeProgram):
            raise UnsupportedError(f'{self.name} runs on the NumPy backend; profile compile(backend="c")')
        return profile(program, inputs, calls)

    def prepared(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Array]]:
        """The program for these arguments, not run, and the arrays that a call would give it."""
        key = self._key(args, kwargs)
        entry = self._entry(args, kwargs, key, run=True)
        return entry.program, key.arrays + entry.captured_arrays

    def _inspected(self, args: Sequence[Any], kwargs: dict[str, Any], run: bool) -> Entry:
        return self._entry(args, kwargs, self._key(args, kwargs), run)

    # ---- tracing -------------------------------------------------------------------------------------------

    def _entry(self, args: Sequence[Any], kwargs: dict[str, Any], key: _Key, run: bool) -> Entry:
        """A valid entry for the key; with a program where `run`."""
        parts = tuple(key.parts)
        with self._lock.lock:
            entry = self._entries.get(parts)
            reason = (
                f"no trace for these arguments: {_signature(parts)}"
                if entry is None
                else entry.stale(key.objects)
            )
            if entry is None or reason is not None:
                if settings.debug >= 1:
                    print(f"thalweg: {self.name} is traced: {reason}", file=sys.stderr)
                entry = self._traced(args, kwargs, {} if entry is None else entry.programs)
                entry.objects = [_reference(item, self._forgetter(parts)) for item in key.objects]
                self._entries[parts] = entry
            if run and entry.program is None:
                entry.program = self._program(entry, args, kwargs)
        return entry

    def _step(self, entry: Entry, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The traced function with the way to trace it for arguments of other shapes."""
        from thalweg.tensor.plans import Step

        inputs = entry.graph.inputs
        leaves = [value.type for value in inputs[: len(inputs) - len(entry.captured)]]

        def traced(types: Sequence[Type]) -> Graph:
            remaining = iter(types)

            def stand_in(leaf: Any, _: str) -> Any:
                return Spec(next(remaining)) if _is_array(leaf) else leaf

            others = nest.map_nest(stand_in, tuple(args)), nest.map_nest(stand_in, kwargs)
            return self._traced(*others, {}).graph

        return Step(entry.graph, leaves, traced, self.options)

    def _forgetter(self, parts: tuple[Any, ...]) -> Callable[[Any], None]:
        """A function that drops an entry when one of its arguments no longer exists."""
        compiled = weakref.ref(self)

        def forget(reference: Any) -> None:
            owner = compiled()
            if owner is not None:
                owner._entries.pop(parts, None)

        return forget

    def _traced(
        self, args: Sequence[Any], kwargs: dict[str, Any], programs: dict[tuple[Any, ...], Any]
    ) -> Entry:
        before = epoch()
        trace = Trace(self.name)
        names = self._argument_names(len(args))
        with trace.running(), eager.recording(True), self._precision():
            inner = [_as_input(item, name, trace) for item, name in zip(args, names, strict=True)]
            inner_named = {name: _as_input(item, name, trace) for name, item in kwargs.items()}
            result = self.traced_function(*inner, **inner_named)
            outputs: list[Value] = []
            places: dict[int, int] = {}
            result = nest.map_nest(lambda leaf, path: _as_output(leaf, trace, outputs, places), result)
        entry = Entry(trace.graph(outputs), trace, result, programs)
        entry.epoch = before + trace.epochs
        entry.guards = Guards(self.traced_function)
        return entry

    def _argument_names(self, count: int) -> list[str]:
        function = self.traced_function
        forward = getattr(function, "forward", None)
        try:
            parameters = list(inspect.signature(forward or function).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
        return names + [f"argument{position}" for position in range(len(names), count)]

    def _program(self, entry: Entry, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The program of an entry's graph: an earlier one if that had the same graph and holders."""
        identity = (entry.graph.digest(), *(id(state.holder) for state in entry.graph.state))
        if identity not in entry.programs:
            changed = self.options.changes_plan
            plan = self._step(entry, args, kwargs).plan() if changed else None
            entry.programs[identity] = make_program(entry.graph, self.options, plan)
        return entry.programs[identity]

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return Compiled(copy.deepcopy(self.traced_function, memo), self.options)

    def __repr__(self) -> str:
        programs = sum(len(entry.programs) for entry in self._entries.values())
        return f"<compiled {self.name}: {len(self._entries)} signatures, {programs} programs>"


class BoundCompiled(Traceable):
    """A compiled method of an object."""

    def __init__(self, compiled: Compiled, instance: Any) -> None:
        self.compiled = compiled
        self.instance = instance

    @property
    def traced_function(self) -> Callable[..., Any]:  # type: ignore[override]
        return self.compiled.traced_function.__get__(self.instance)  # type: ignore[no-any-return]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.compiled(self.instance, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.compiled, name)
        return (
            functools.partial(found, self.instance)
            if name in ("graph", "plan", "source", "program", "prepared")
            else found
        )


def _signature(parts: Sequence[Any]) -> str:
    """A key in words."""
    shown = []
    for position in range(0, len(parts), 2):
        first, second = parts[position], parts[position + 1]
        if isinstance(first, DType):
            shown.append(str(Type(first, second)))
        elif first is float:
            shown.append(repr(struct.unpack("<d", second)[0]))
        elif first is object:
            shown.append("an object")
        else:
            shown.append(repr(second) if first in (int, bool, str, type(None)) else first.__name__)
    return ", ".join(shown) or "none"


def _as_input(item: Any, label: str, trace: Trace) -> Any:
    """An argument as the traced function sees it: a traced tensor for every array."""

    def convert(leaf: Any, path: str) -> Any:
        if isinstance(leaf, Holder):
            return leaf
        if isinstance(leaf, Tensor):
            return wrap(trace.input(leaf.type, label + path), trace)
        if isinstance(leaf, Spec):
            return wrap(trace.input(leaf.type, label + path), trace)
        if _is_array(leaf):
            return wrap(trace.input(types.type_of(as_array(leaf)), label + path), trace)
        return leaf

    return nest.map_nest(convert, item)


def _is_array(leaf: Any) -> bool:
    """Is an argument one that `_as_input` makes an input of?"""
    if isinstance(leaf, Holder):
        return False
    known = isinstance(leaf, (Tensor, Spec, np.ndarray, np.generic))
    return known or hasattr(leaf, "__dlpack__") or hasattr(leaf, "__array__")


def _as_output(leaf: Any, trace: Trace, outputs: list[Value], places: dict[int, int]) -> Any:
    """A leaf of the result: a place among the outputs for a computed tensor, else the leaf itself."""
    if not isinstance(leaf, Tensor) or (not leaf.is_traced and not isinstance(leaf, Holder)):
        return leaf
    value = leaf._read()
    if id(value) not in places:
        places[id(value)] = len(outputs)
        outputs.append(value)
    return _Slot(places[id(value)])


def compile(
    function: Callable[..., Any] | None = None,
    *,
    backend: str | None = None,
    threads: int | None = None,
    target: str = "native",
    check: bool | None = None,
    winograd: bool = True,
    accumulate: int = 1,
    memory_limit: str | int | None = None,
    autocast: Any = None,
) -> Any:
    """Compile a function of tensors: traced once per signature of its arguments, then run as one program.

    `@tw.compile`, `@tw.compile(backend="numpy")` or `tw.compile(f)`; for functions, methods and modules.
    Arguments and results are tensors, NumPy arrays and any nest of them in lists, tuples and dicts. Python
    numbers, strings and None are static: part of the signature, baked into the program (wrap a number that
    changes in `tw.tensor`); other objects are static by identity. Parameters, buffers and random generators
    that the function reads or assigns are found by identity and changed in place. What else it reads
    (attributes of modules, globals, closure variables, containers) is guarded: when it changes, the function
    is traced again. Side effects of the Python code happen while tracing only.

    `backend`: "c", "numpy" (the reference, no compiler needed), or None for THALWEG_BACKEND's choice.
    `threads`: for this program; None for THALWEG_THREADS or all CPUs. `target`: the instruction set of the C
    backend: "native", "x86-64-v4" (AVX-512), "x86-64-v3" (AVX2) or "x86-64"; results have the same bits on
    each. `check`: whether the first call begins by comparing every kernel of the C program with the NumPy
    references (None: where THALWEG_CHECK=1); a difference raises `CheckError` and changes nothing.
    `winograd`: whether convolutions of 3x3 with many channels may be computed with a third of the
    multiplications (Winograd's algorithm), where that is faster; results then differ in rounding, and an
    infinity or NaN in the input spreads over its tile of 4x4 results. `accumulate`: the batch runs in so many
    parts, one after the other, whose sums and gradients are added before anything is updated: activations
    take less memory, results are those of the whole batch up to rounding, random numbers (dropout) others.
    `memory_limit` ("2GB", a number of bytes): parts of the batch, and what is computed again, are chosen so
    that the program takes no more, at the least extra time (`plan.fit`). `autocast`: "bfloat16" or "float16"
    to compute products in 16 bits, as `tw.autocast` does. Inside
    another traced function, and where a gradient of its arguments is being recorded eagerly, the plain
    function runs."""
    if backend not in BACKENDS:
        raise ArgumentError(f'backend is "c", "numpy" or None, received {backend!r}')
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ArgumentError(f"threads is a positive integer or None, received {threads!r}")
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise ArgumentError(f"accumulate is a positive integer, received {accumulate!r}")
    if not isinstance(winograd, bool):
        raise ArgumentError(f"winograd is True or False, received {winograd!r}")
    low = automatic_precision(autocast).dtype
    if function is None:
        return lambda decorated: compile(
            decorated,
            backend=backend,
            threads=threads,
            target=target,
            check=check,
            winograd=winograd,
            accumulate=accumulate,
            memory_limit=memory_limit,
            autocast=autocast,
        )
    if check not in (None, True, False):
        raise ArgumentError(f"check is True, False or None, received {check!r}")
    if not callable(function):
        raise ArgumentError(
            f"compile takes a function, a method or a module, received {type(function).__name__}"
        )
    if isinstance(function, (Compiled, BoundCompiled)):
        return function
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        kind = "generator" if inspect.isgeneratorfunction(function) else "coroutine"
        raise ArgumentError(
            f"{function.__name__} is a {kind} function, whose code runs after the trace is over; return a "
            "list or tuple of tensors instead"
        )
    limit = None if memory_limit is None else bytes_of(memory_limit)
    return Compiled(function, Options(backend, threads, target, check, winograd, accumulate, limit, low))
