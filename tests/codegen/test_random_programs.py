"""Random programs, compiled: values, gradients and state agree with the interpreter, with the same bits for
any number of threads. A group of programs is built as one library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import thalweg as tw
import thalweg.ops as ops
from thalweg import types
from thalweg.autodiff import vjp
from thalweg.errors import IndexRangeError
from thalweg.fuzz.programs import RandomProgram
from thalweg.fuzz.running import Program, build_together, problem
from thalweg.graph import State, Value, trace_graph
from thalweg.ops.core import operand
from thalweg.ops.pooling import max_pool
from thalweg.runtime.program import make_plan

GROUP = 25


@pytest.mark.parametrize("start", range(0, 200, GROUP))
def test_random_programs_agree_with_the_interpreter(start: int, needs_compiler: None) -> None:
    programs = [RandomProgram(seed) for seed in range(start, start + GROUP)]
    natives = build_together([program.graph for program in programs])
    found = [
        f"seed {program.seed} ({program.dtype}, batch {program.batch}): {wrong}"
        for program, native in zip(programs, natives, strict=True)
        if (wrong := problem(program, native)) is not None
    ]
    assert not found, "\n".join(found)


def program(build: Callable[..., Any], *arrays: Any, state: Sequence[Any] = ()) -> Program:
    """`build` gets the inputs and the state before; it returns results, then new state."""
    inputs = [np.asarray(array) for array in arrays]
    graph = trace_graph(build, [types.type_of(array) for array in (*inputs, *state)])
    holders = [tw.Buffer(array, name=f"state{number}") for number, array in enumerate(state)]
    count = len(graph.outputs) - len(holders)
    pairs = zip(graph.inputs[len(inputs) :], graph.outputs[count:], holders, strict=True)
    entries = tuple(State(before, after, holder) for before, after, holder in pairs)
    found = replace(graph, inputs=graph.inputs[: len(inputs)], outputs=graph.outputs[:count], state=entries)
    return Program(found.verify(), inputs, holders)


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def overwritten_operand(x: Value) -> list[Value]:
    """Two roots of one kernel read the same dying operand."""
    y = ops.exp(x) + x
    z = ops.maximum(ops.tanh(x), 0.5)
    total = ops.sum(z * y, axis=0)
    return [ops.minimum(y, z) * total, ops.square(y - z) + total, ops.minimum(y, z * z) - total]


def elsewhere(x: Value) -> list[Value]:
    """An elementwise reader of a sum that also reads the sum's second element."""
    total = ops.sum(x, axis=(0, 2))
    return [ops.where(total[1:2] < total, total[1:2], total * 2.0)]


# What random programs have found, each made small.
MENDED = {
    "packing a value without elements": lambda: program(lambda x: [ops.exp(x)], numbers(0, 16)),
    "one-dimensional operands of a block product": lambda: program(
        lambda x, y: [ops.reshape(x, (1, 8)) @ ops.reshape(y, (8, 1)) + ops.exp(x)],
        *(numbers(8, dtype="float64"), numbers(8, dtype="float64") + 1),
    ),
    "a reshape that keeps the batch axis": lambda: program(
        lambda x, w: [(x @ w) @ ops.reshape(ops.exp(x)[0] * 0.0 + 1.0, (17, 1)), ops.flatten(w.T @ x.T)],
        *(numbers(40, 17), numbers(17, 17)),
    ),
    "a root stored over an operand of another": lambda: program(overwritten_operand, numbers(16, 3)),
    "new state that is a batch": lambda: program(
        lambda x, p: [ops.exp(x), x * 2.0], numbers(40, 16), state=[numbers(40, 16)]
    ),
    "a copied input as state": lambda: program(
        lambda x, p: [ops.exp(x), x], numbers(40, 16), state=[numbers(40, 16)]
    ),
    "an epilogue that reads its producer elsewhere": lambda: program(elsewhere, numbers(16, 2, 17)),
    "unpooling whose channels are the samples": lambda: program(
        lambda x: vjp([ops.sum(ops.tanh(max_pool(x, 3, stride=1, padding=1)))], [operand(1.0, x.dtype)], [x]),
        numbers(1, 33, 2, 18),
    ),
    "swapped state": lambda: program(
        lambda x, p, q: [x + p, q, p], numbers(3), state=[numbers(3), numbers(3) + 1]
    ),
}


def test_programs_that_were_wrong(needs_compiler: None) -> None:
    programs = [make() for make in MENDED.values()]
    natives = build_together([found.graph for found in programs])
    wrong = {
        reason: found
        for reason, each, native in zip(MENDED, programs, natives, strict=True)
        if (found := problem(each, native)) is not None
    }
    assert not wrong


def test_state_survives_a_kernel_that_fails_halfway(needs_compiler: None) -> None:
    """The very kernel that makes the new state meets the index out of range."""
    table = numbers(50, 3)

    def rows(table: Value, positions: Value) -> list[Value]:
        return [ops.sum(table), ops.take(table, positions, axis=0), ops.index_put(table, positions, 0.0)]

    def step(positions: Value, first: Value, second: Value) -> list[Value]:
        total, taken, put = rows(first, positions)
        return [total, taken, put + second * 0.0]

    positions = np.r_[np.arange(49), 50]
    found = program(step, positions, state=[table, table])
    (native,) = build_together([found.graph])
    for threads in (1, 3):
        native.threads = threads
        with pytest.raises(IndexRangeError, match="50"):
            native(found.arrays)
        for holder in found.holders:
            np.testing.assert_array_equal(holder.data, table)


def test_programs_have_what_they_are_meant_to_test() -> None:
    """The generator reaches batch phases, slots, packing, in-place state and copies of it."""
    kinds: set[str] = set()
    for seed in range(120):
        plan = make_plan(RandomProgram(seed).graph)
        kinds |= {kernel.role for kernel in plan.kernels} | {kernel.kind for kernel in plan.kernels}
        kinds |= {"alias"} if plan.alias else set()
    assert kinds >= {"map", "partial", "combine", "whole", "pack", "unpack", "copy", "alias", "loops"}
    assert kinds >= {"matmul", "convolution", "convolution_weight_gradient", "scatter", "sum", "max"}
