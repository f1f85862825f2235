"""A program watched kernel by kernel: what each kernel really read and what it wrote.

In: a program, inputs, copies of the state. Out: for every kernel, in the order in which they run, an
`Observation`: whole values in row-major order, put together from the blocks of the batch where the kernel
works on them. The same kernels run as in the program itself, on one thread; only the calls between them
differ. Called by the check against the reference and by the search for NaN.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thalweg.graph import Node, Value
from thalweg.plan import LANES, Buffer, Kernel, Phase, Plan, Scope
from thalweg.runtime.program import Frame, NativeProgram

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Observation:
    """One kernel in one call: arrays by `id(value)`. `slots` has the partial sums, one per shard, of values
    that the kernel sums over the batch (it writes them) or combines (it reads them)."""

    number: int  # of the kernel in the plan
    phase: int
    kernel: Kernel
    reads: dict[int, Array] = field(default_factory=dict)
    writes: dict[int, Array] = field(default_factory=dict)
    slots: dict[int, Array] = field(default_factory=dict)

    def known(self, plan: Plan) -> _Known:
        """What the kernel starts from, for evaluating its nodes."""
        sums = {key: total(slots) for key, slots in self.slots.items() if self.kernel.role == "combine"}
        return _Known(plan, {**self.reads, **sums})

    def found(self) -> list[tuple[Value, Array]]:
        """What the kernel wrote; partial sums are added up."""
        if self.kernel.role == "partial":
            return [(root, total(self.slots[id(root)])) for root in self.kernel.roots]
        return [(root, self.writes[id(root)]) for root in self.kernel.roots]


def total(slots: Array) -> Array:
    """The sum of partial results, rounded once."""
    wide = np.float64 if slots.dtype.kind == "f" else slots.dtype
    with np.errstate(all="ignore"):
        return np.asarray(slots.astype(wide).sum(axis=0, dtype=wide)).astype(slots.dtype)


@dataclass
class _Known:
    """Arrays by `id(value)`; a reshape of something in memory is found through the plan."""

    plan: Plan
    arrays: dict[int, Array]

    def __getitem__(self, value: Value) -> Array:
        array = self.arrays.get(id(value))
        if array is None:
            array = self.arrays[id(self.plan.alias[id(value)])].reshape(value.shape)
        return array

    def set(self, node: Node, results: Any) -> None:
        found = results if isinstance(results, (tuple, list)) else (results,)
        for value, array in zip(node.outputs, found, strict=True):
            self.arrays[id(value)] = np.asarray(array)


def watch(
    program: NativeProgram,
    inputs: Sequence[Array],
    states: Sequence[Array],
    see: Callable[[Observation], None],
) -> list[Array]:
    """Run the program's kernels on these arrays and show `see` each of them; the outputs.

    `states` are overwritten with the new values. Kernels of a phase are shown when the phase is over. What
    `see` raises ends the run and is raised here; a program that fails raises its own error.
    """
    twin = program.observed("watched")
    watcher = _Watcher(twin.plan, see)
    try:
        outputs = twin.run_on(inputs, states, watcher.start)
        watcher.finish()
    finally:
        watcher.frame = None
    if watcher.error is not None:
        raise watcher.error
    return outputs


_Told = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class _Watcher:
    """Hears of every call of a kernel and copies what lies in memory then."""

    def __init__(self, plan: Plan, see: Callable[[Observation], None]) -> None:
        self.plan = plan
        self.see = see
        self.error: BaseException | None = None
        self.frame: Frame | None = None
        self.told = _Told(self._told)
        self.places = [(n, kernel) for n, phase in enumerate(plan.phases) for kernel in phase.kernels]
        self.current = -1  # number of the phase whose observations are being made
        self.open: dict[int, Observation] = {}

    def start(self, frame: Frame) -> int:
        """Watch a call on this memory; the address of the function that the program tells."""
        self.frame = frame
        return ctypes.cast(self.told, ctypes.c_void_p).value or 0

    def finish(self) -> None:
        """The call is over."""
        if self.error is None:
            try:
                self._show()
            except BaseException as error:
                self.error = error

    def _told(self, number: int, ended: int, task: int, origin: int, count: int) -> None:
        """A kernel's call begins or is over. An exception cannot pass through C: it waits."""
        frame = self.frame
        if self.error is not None or frame is None or frame.call.error:
            return
        try:
            phase, kernel = self.places[number]
            if phase != self.current:
                self._show()
                self.current = phase
            if number not in self.open:
                self.open[number] = Observation(number, phase, kernel)
            if self.plan.phases[phase].batch:
                self._block(self.open[number], bool(ended), origin, count)
            elif task == (kernel.tasks - 1 if ended else 0):
                self._whole(self.open[number], bool(ended))
        except BaseException as error:
            self.error = error
            frame.call.error = -1  # no further phase

    def _show(self) -> None:
        """The phase is complete: its partial sums too."""
        seen, self.open = self.open, {}
        for number in sorted(seen):
            observation = seen[number]
            if observation.kernel.role == "partial":
                for root in observation.kernel.roots:
                    observation.slots[id(root)] = self._slots(self._buffer(observation, root, True), root)
            self.see(observation)

    def _whole(self, observation: Observation, ended: bool) -> None:
        kernel = observation.kernel
        for value in kernel.roots if ended else kernel.reads:
            buffer = self._buffer(observation, value, ended)
            if buffer.scope is Scope.SLOT:
                observation.slots[id(value)] = self._slots(buffer, value)
            else:
                kept = observation.writes if ended else observation.reads
                kept[id(value)] = self._rows(buffer, value).copy()

    def _block(self, observation: Observation, ended: bool, origin: int, count: int) -> None:
        """Samples `origin` to `origin + count` of what has a batch axis; the rest once."""
        kernel = observation.kernel
        kept = observation.writes if ended else observation.reads
        for value in kernel.roots if ended else kernel.reads:
            buffer = self._buffer(observation, value, ended)
            axis = self.plan.batch_axis.get(id(value))
            if buffer.scope is Scope.SLOT:
                continue  # complete only behind the phase
            if axis is None:
                if id(value) not in kept:
                    kept[id(value)] = self._rows(buffer, value).copy()
                continue
            whole = kept.setdefault(id(value), np.zeros(value.shape, value.dtype.numpy))
            samples = (slice(None),) * axis + (slice(origin, origin + count),)
            if buffer.lane_axis is None:
                whole[samples] = self._rows(buffer, value)[samples]
            else:
                whole[samples] = self._lanes(buffer, value, axis, count)

    def _buffer(self, observation: Observation, value: Value, write: bool) -> Buffer:
        return self.plan.buffer_of(observation.kernel, observation.phase, value, write)

    def _bytes(self, buffer: Buffer, nbytes: int) -> Array:
        """The memory of a buffer."""
        plan, frame = self.plan, self.frame
        assert frame is not None
        if not nbytes:
            return np.zeros(0, np.uint8)
        if buffer.scope in (Scope.PROGRAM, Scope.SLOT):
            return frame.arena[buffer.offset : buffer.offset + nbytes]
        if buffer.scope is Scope.THREAD:
            return frame.scratch[buffer.offset : buffer.offset + nbytes]
        groups = {Scope.INPUT: 0, Scope.STATE: len(plan.inputs)}
        groups[Scope.OUTPUT] = len(plan.inputs) + len(plan.state)
        groups[Scope.CONSTANT] = groups[Scope.OUTPUT] + len(plan.outputs)
        address = frame.pointers[groups[buffer.scope] + buffer.offset] or 0
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def _rows(self, buffer: Buffer, value: Value) -> Array:
        return self._bytes(buffer, value.type.nbytes).view(value.dtype.numpy).reshape(value.shape)

    def _lanes(self, buffer: Buffer, value: Value, axis: int, count: int) -> Array:
        """The first `count` samples of a block, in which the samples of a vector lie side by side."""
        shape = buffer.type.shape
        others = shape[:axis] + shape[axis + 1 :]
        vectors = -(-shape[axis] // LANES)
        held = self._bytes(buffer, vectors * LANES * math.prod(others) * value.dtype.itemsize)
        blocks = held.view(value.dtype.numpy).reshape(vectors, *others, LANES)
        samples = np.moveaxis(blocks, -1, 1).reshape(vectors * LANES, *others)[:count]
        return np.moveaxis(samples, 0, axis)

    def _slots(self, buffer: Buffer, value: Value) -> Array:
        """The partial sums of all shards."""
        held = self._bytes(buffer, buffer.total).reshape(buffer.copies, -1)[:, : value.type.nbytes]
        return np.ascontiguousarray(held).view(value.dtype.numpy).reshape(buffer.copies, *value.shape)


def kernel_text(plan: Plan, observation: Observation) -> str:
    """A kernel in words: number, what it computes, where it runs."""
    kernel, phase = observation.kernel, _phase(plan, observation)
    shapes = ", ".join(str(root.type) for root in kernel.roots)
    how = f"blocks of {phase.block} samples" if phase.batch else f"{kernel.tasks} tasks"
    return (
        f"kernel {observation.number + 1} of {len(plan.kernels)}: {kernel.name} ({kernel.role}) -> {shapes}, "
        f"phase {observation.phase}, {how}"
    )


def _phase(plan: Plan, observation: Observation) -> Phase:
    return plan.phases[observation.phase]
