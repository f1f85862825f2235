"""What a kernel's C function receives: one pointer per buffer, and how each value is addressed through it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from thalweg.codegen.c.expressions import Access, Emitter, lane_access, memory, row_access
from thalweg.graph import Node, Value
from thalweg.plan import Buffer, Kernel, Phase, Plan, Scope


@dataclass
class KernelText:
    """One C function: `text` with `NAME` for its name, and the buffers whose pointers a call passes."""

    text: str
    buffers: list[Buffer]
    functions: set[str]


class Writer(Protocol):
    """The program that kernels are written into."""

    def error_code(self, node: Node) -> int:
        """What the program reports when an index of this node is out of range."""
        ...

    def phases(self, plan: Plan) -> list[str]:
        """Write a plan's functions; the names of its phases' functions."""
        ...

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        """Write an array as static data; its C name."""
        ...

    def shared(self, name: str, text: str, functions: Collection[str] = ()) -> None:
        """Write a function that several kernels call, once; it calls these functions of mathematics.h."""
        ...


@dataclass
class Context:
    """A kernel of a plan while its function is written."""

    plan: Plan
    phase: Phase
    number: int  # of the phase
    kernel: Kernel
    writer: Writer
    pointers: dict[int, str] = field(default_factory=dict)
    buffers: list[Buffer] = field(default_factory=list)
    written: set[int] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)  # shared functions

    @property
    def batch_axis(self) -> dict[int, int]:
        """id(value) -> batch axis."""
        return self.plan.batch_axis

    @property
    def lanes(self) -> bool:
        """Does the kernel work on a block of the batch, one sample per lane?"""
        return self.kernel.role in ("map", "partial")

    def buffer(self, value: Value, write: bool = False) -> Buffer:
        """The buffer through which this kernel reaches a value."""
        return self.plan.buffer_of(self.kernel, self.number, value, write)

    def pointer(self, buffer: Buffer, write: bool = False) -> str:
        """The argument's name for a buffer."""
        name = self.pointers.get(id(buffer))
        if name is None:
            name = self.pointers[id(buffer)] = f"p{len(self.buffers)}"
            self.buffers.append(buffer)
        if write:
            self.written.add(id(buffer))
        return name

    def access(self, value: Value, write: bool = False) -> Access:
        """How the kernel reads (or writes) a value."""
        buffer = self.buffer(value, write)
        pointer = self.pointer(buffer, write)
        if buffer.lane_axis is not None:
            return lane_access(pointer, value.type, self.batch_axis[id(value)])
        access = row_access(pointer, value.type)
        if buffer.scope is Scope.SLOT and not write:
            access.combine = buffer.copies
            access.slot_stride = buffer.total // buffer.copies // value.dtype.itemsize
        return access

    def reads(self) -> dict[int, Access]:
        """Accesses of everything that the kernel reads."""
        found = {id(value): self.access(value) for value in self.kernel.reads}
        for node in self.kernel.nodes:
            found.update(
                {
                    id(v): self.access(v)
                    for v in node.inputs
                    if id(v) in self.plan.alias and id(v) not in found
                }
            )
        return found

    def emitter(self, extents: dict[str, int], accesses: dict[int, Access]) -> Emitter:
        """A fresh emitter for one innermost body."""
        return Emitter(
            accesses,
            extents,
            batch_axis=self.batch_axis if self.lanes else {},
            error_code=self.writer.error_code,
        )

    def shared(self, name: str, text: str, functions: Collection[str] = ()) -> str:
        """A function that the kernel calls and that others may share; `text` begins with `STATIC`, `functions` are
        what it calls of mathematics.h. Its name."""
        self.writer.shared(name, text, functions)
        self.calls.add(name)
        return name

    def function(self, body: str, parameters: str) -> KernelText:
        """Wrap a body into a function with one pointer parameter per buffer."""
        declared = [
            f"{'' if id(b) in self.written else 'const '}{memory(b.type.dtype)} *restrict {self.pointers[id(b)]}"
            for b in self.buffers
        ]
        arguments = ", ".join([*declared, parameters])
        text = f"{STATIC} void NAME({arguments}) {{\n{body}\n}}\n"
        return KernelText(text, list(self.buffers), set(self.functions))


STATIC = "static __attribute__((noinline))"
SHARED = '__attribute__((noinline, visibility("hidden")))'
LANE_PARAMETERS = "int64_t count, int64_t origin, int32_t first, volatile int32_t *error"
TILE_PARAMETERS = "int64_t task, volatile int32_t *error"
