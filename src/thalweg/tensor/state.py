"""State holders: parameters, buffers and what optimisers and random generators keep from call to call.

A holder is a tensor whose value can be replaced. Programs find holders by identity; each change raises the
version. A program may overwrite a holder's storage only if nobody else can see it: `storage_for_update`
decides that by the number of references to the array, because every view, DLPack capsule, tensor and history
entry holds one."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError, DTypeError, ShapeError, TraceError
from thalweg.graph import Value
from thalweg.tensor.eager import source_value
from thalweg.tensor.tensor import Tensor, as_array, eager_array, shown_type, shown_values, value_of
from thalweg.tensor.trace import current_trace, no_value
from thalweg.types import Type

Array = np.ndarray[Any, Any]

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
_LARGE = 2 << 20  # bytes from which on memory comes in huge pages


def own_storage(array: Any) -> Array:
    """A row-major copy of an array in memory of its own that starts at a multiple of 64 bytes.

    The memory belongs to no array, so that every view of the copy refers to the copy itself: NumPy would let
    a view of a view refer to the array at the end of the chain. Large copies lie in huge pages, from which
    weights are read a fifth faster."""
    source = np.asarray(array)
    dtype = types.dtype(source.dtype).numpy
    size = source.size * dtype.itemsize
    memory: bytearray | memoryview
    if size >= _LARGE:
        from thalweg.runtime.memory import allocate

        memory, start = allocate(size, role="state").data, 0
    else:
        memory = bytearray(size + _ALIGNMENT)
        start = -np.frombuffer(memory, np.uint8).ctypes.data % _ALIGNMENT
    owned: Array = np.ndarray(source.shape, dtype, memory, start)
    owned[...] = source
    return owned


# ---- epoch: has any attribute of any module changed? -------------------------------------------------------

_epoch = 0


def epoch() -> int:
    """Grows whenever a plain attribute of a module is assigned: compiled functions compare it."""
    return _epoch


def bump_epoch() -> None:
    """Note that an attribute of a module has changed."""
    global _epoch
    _epoch += 1
    trace = current_trace()
    if trace is not None:
        trace.epochs += 1


# ---- locks: one per state set ------------------------------------------------------------------------------


class ForkSafeLock:
    """A lock that is new after a fork: the child has no thread that could release what others held."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        _locks.add(self)


_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


def _after_fork() -> None:
    for known in list(_locks):
        known.lock = threading.RLock()


class StateLock(ForkSafeLock):
    """The lock of a state set: all holders that some program changes together."""

    def __init__(self) -> None:
        super().__init__()
        self.holders: weakref.WeakSet[Holder] = weakref.WeakSet()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
_joining = ForkSafeLock()


def join_locks(holders: Sequence[Holder]) -> None:
    """Give holders that a program changes together one lock."""
    with _joining.lock:
        sets = {id(holder._lock): holder._lock for holder in holders}
        if len(sets) < 2:
            return
        first, *others = sets.values()
        with contextlib.ExitStack() as stack:
            for state_lock in sets.values():
                stack.enter_context(state_lock.lock)
            for other in others:
                for holder in list(other.holders):
                    holder._lock = first
                    first.holders.add(holder)


def acquire(holder: Holder) -> threading.RLock:
    """Take and return the lock of the state set that a holder belongs to."""
    while True:
        state_lock = holder._lock
        lock = state_lock.lock
        lock.acquire()
        if holder._lock is state_lock:
            return lock
        lock.release()  # the set has been joined with another one while we waited


# ---- holders -----------------------------------------------------------------------------------------------


class Holder(Tensor):
    """A tensor whose value can be replaced. Its shape stays, its dtype too but for `convert`; use `Parameter`
    or `Buffer`.
    """

    __slots__ = ("_array", "_leaf", "_lock", "_type", "address", "name", "version")

    def __init__(self, data: Any, dtype: Any = None, name: str = "") -> None:
        self._hold(own_storage(as_array(data, dtype)))
        self._type = types.type_of(self._array)
        self._trace = None
        self._leaf: Value | None = None
        self._lock = StateLock()
        self._lock.holders.add(self)
        self.name = name
        self.version = 0  # counts the changes of the value

    @property
    def type(self) -> Type:
        return self._type

    @property
    def data(self) -> Array:
        """The current value, for programs and files: row-major, 64-byte aligned, not to be written to."""
        lock = acquire(self)
        try:
            return self._array
        finally:
            lock.release()

    def _read(self) -> Value:
        """The value as an operand here and now."""
        trace = current_trace()
        if trace is not None:
            return trace.read(self)
        lock = acquire(self)
        try:
            if self._leaf is None:
                self._leaf = self._new_leaf(self._array)
            return self._leaf
        finally:
            lock.release()

    def _new_leaf(self, array: Array) -> Value:
        return Value(self._type, None, 0, array)

    def _concrete(self, what: str, instead: str = "") -> Array:
        trace = current_trace()
        if trace is None:
            return self.data
        raise no_value(
            trace.read(self), trace, what, instead or f"read the value of {self!r} outside {trace.name}"
        )

    def assign(self, value: Any) -> None:
        """Replace the value: at once outside traces, at the end of the program's call inside.

        `value` is a tensor, an array or a number of this holder's shape and dtype. Reading the holder
        afterwards gives the new value. Raises `ShapeError` or `DTypeError` if it does not fit."""
        trace = current_trace()
        if trace is None:
            self.replace(eager_array(value, self._type.dtype))
            return
        from thalweg.ops.core import operand

        lifted = value_of(operand(value, self._type.dtype))
        self._check(lifted.type)
        trace.write(self, lifted)

    def replace(self, array: Any) -> None:
        """Let the holder have a copy of this array as its value, from now on."""
        given = np.asarray(array)
        self._check(types.type_of(given))
        self._store(own_storage(given))

    def adopt(self, array: Array) -> None:
        """`replace` without a copy, for programs: `array` is row-major and nobody else writes to it."""
        if (array.base is not None and isinstance(array.base, np.ndarray)) or not array.flags.c_contiguous:
            raise ArgumentError("adopt takes a row-major array that is not a view of another array")
        self._check(types.type_of(array))
        self._store(array)

    def _store(self, array: Array) -> None:
        lock = acquire(self)
        try:
            self._hold(array)
            self._leaf = None
            self.version += 1
        finally:
            lock.release()

    def _hold(self, array: Array) -> None:
        """Let `array` be the storage. Its address is kept because programs need it at every call."""
        self._array = array
        self.address = array.ctypes.data

    def convert(self, dtype: Any) -> None:
        """Change the element type, and the value with it, outside traces. Programs that use the holder are
        made anew.
        """
        trace = current_trace()
        if trace is not None:
            raise TraceError(
                f"the element type of a {type(self).__name__} cannot change while {trace.name} is being "
                "traced; convert it before, or write x.astype(dtype) for the value"
            )
        array = own_storage(self.data.astype(types.dtype(dtype).numpy))
        self._type = types.type_of(array)
        self._store(array)
        bump_epoch()

    def storage_for_update(self) -> Array:
        """An array with the current value that may be overwritten: the program's way to change a holder in
        place.

        It is the holder's own array if nobody else can see it, else a copy that takes its place, so that
        views keep their values. Call it while holding the state's lock."""
        self._leaf = None
        if not _COUNTED or self._references() > _UNSHARED:
            self._hold(own_storage(self._array))
        self.version += 1
        return self._array

    def _references(self) -> int:
        return sys.getrefcount(self._array)

    def _check(self, found: Type) -> None:
        label = f"{type(self).__name__} {self.name!r}" if self.name else f"a {type(self).__name__}"
        if found.shape != self._type.shape:
            raise ShapeError(
                f"{label} of shape {self._type.shape} cannot take a value of shape {found.shape}; the shape "
                f"stays for life. Write value.reshape({self._type.shape}), or make a new "
                f"{type(self).__name__}"
            )
        if found.dtype is not self._type.dtype:
            raise DTypeError(
                f"{label} of {self._type.dtype} cannot take a value of {found.dtype}; write "
                f"value.astype({str(self._type.dtype)!r})"
            )

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        kind = type(self).__name__
        return f"{kind}({name}{shown_values(self.data, len(kind) + 1)}{shown_type(self._type)})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = type(self)(self.data, name=self.name)
        memo[id(self)] = twin
        return twin

    def __copy__(self) -> Any:
        return self.__deepcopy__({})

    def _in_place(self, other: Any) -> Any:
        raise ArgumentError(
            f"{type(self).__name__} {self.name!r} cannot be changed by an operator such as +=; write "
            "parameter.assign(parameter + step)"
        )

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __imatmul__ = __ipow__ = _in_place


class Buffer(Holder):
    """A tensor that is kept from call to call but not trained: a running mean, an optimiser's slot, a
    learning rate.
    """

    __slots__ = ()


class Parameter(Holder):
    """A tensor that defines the model and is trained. `trainable = False` freezes it."""

    __slots__ = ("_trainable",)

    def __init__(self, data: Any, trainable: bool = True, dtype: Any = None, name: str = "") -> None:
        super().__init__(data, dtype, name)
        if not self._type.dtype.is_floating:
            raise DTypeError(
                f"a Parameter needs a floating-point dtype, received {self._type.dtype}; write "
                "tw.Parameter(data, dtype='float32'), or tw.Buffer(data) for what is not trained"
            )
        self._trainable = self._truth(trainable)

    @staticmethod
    def _truth(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ArgumentError(f"trainable is True or False, received {value!r}")
        return value

    @property
    def trainable(self) -> bool:
        """Whether gradients reach it: False freezes the parameter."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = self._truth(value)
        self._leaf = None
        bump_epoch()

    @property
    def requires_grad(self) -> bool:
        """PyTorch's name for `trainable`."""
        return self._trainable

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.trainable = value

    def _new_leaf(self, array: Array) -> Value:
        if self._trainable:
            return source_value(array, weakref.ref(self), self.name)
        return Value(self._type, None, 0, array)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = type(self)(self.data, self._trainable, name=self.name)
        memo[id(self)] = twin
        return twin


def _count_unshared() -> int:
    """What `_references` gives for an array that only its holder refers to; it differs between Python
    versions.
    """
    probe = Buffer.__new__(Buffer)
    probe._array = np.zeros(1)
    return probe._references()


# Without the interpreter lock (free-threaded Python) another thread may take a reference meanwhile: always
# copy then.
_COUNTED = hasattr(sys, "getrefcount") and getattr(sys, "_is_gil_enabled", lambda: True)()
_UNSHARED = _count_unshared() if _COUNTED else 0
