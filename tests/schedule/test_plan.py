"""Plans: what the checker refuses, what a plan of LeNet's training step says, and that a run uses that."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import thalweg as tw
import thalweg.ops as ops
from thalweg import nn, optim, types
from thalweg.errors import GraphError
from thalweg.fuzz.programs import RandomProgram
from thalweg.graph import Graph, Kind, State, Value, trace_graph
from thalweg.models.lenet import LeNet
from thalweg.plan import Buffer, Kernel, Phase, Plan, Scope, check
from thalweg.runtime.memory import mapped_bytes
from thalweg.runtime.program import NativeProgram, make_plan
from thalweg.types import Type

BATCH = 64


def lenet_graph(batch: int = BATCH) -> Graph:
    """The traced training step of LeNet."""
    tw.manual_seed(0)
    model = LeNet()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    @tw.compile(backend="numpy")
    def step(x: tw.Tensor, y: tw.Tensor) -> tw.Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    return step.graph(tw.zeros((batch, 1, 28, 28)), tw.zeros((batch,), dtype="int64"))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return lenet_graph()


@pytest.fixture
def plan(graph: Graph) -> Plan:
    """A fresh plan, for a test to break."""
    return make_plan(graph)


# ---- the checker ----


def buffers_of(plan: Plan, *scopes: Scope) -> list[Buffer]:
    return [b for b in plan.all_buffers if b.scope in scopes and b.nbytes]


def live_together(plan: Plan, *scopes: Scope) -> tuple[Buffer, Buffer]:
    """Two buffers that live at the same time in one arena."""
    found = buffers_of(plan, *scopes)
    return next(
        (one, other)
        for one in found
        for other in found
        if one is not other
        and (one.phase == other.phase)
        and one.first <= other.last
        and other.first <= one.last
    )


def same_offset(plan: Plan) -> None:
    one, other = live_together(plan, Scope.PROGRAM, Scope.SLOT)
    one.offset = other.offset


def same_scratch(plan: Plan) -> None:
    one, other = live_together(plan, Scope.THREAD)
    one.offset = other.offset


def outside(plan: Plan) -> None:
    buffers_of(plan, Scope.PROGRAM)[0].offset = plan.arena_bytes


def scratch_too_small(plan: Plan) -> None:
    plan.thread_bytes -= 64


def unaligned(plan: Plan) -> None:
    plan.arena_bytes += 64
    buffers_of(plan, Scope.PROGRAM)[0].offset += 4


def read_before_written(plan: Plan) -> None:
    plan.phases.insert(0, plan.phases.pop(1))


def kernel_missing(plan: Plan) -> None:
    phase = next(p for p in plan.phases if p.batch and any(k.kind == "convolution" for k in p.kernels))
    phase.kernels.remove(next(k for k in phase.kernels if k.kind == "convolution"))


def kernels_swapped(plan: Plan) -> None:
    phase = next(p for p in plan.phases if any(k.kind == "max_pool" for k in p.kernels))
    phase.kernels.reverse()


def overwritten(plan: Plan) -> None:
    """Lifetimes that say too little let another kernel write over an operand."""
    victim = next(b for b in buffers_of(plan, Scope.PROGRAM) if b.last[0] > b.first[0])
    reading = victim.last[0]
    victim.last = victim.first
    value = Value(victim.type)
    intruder = Buffer("intruder", victim.type, Scope.PROGRAM, offset=victim.offset)
    intruder.first = intruder.last = (reading, 0)
    plan.buffers[id(value)] = [intruder]
    plan.phases[reading].kernels.append(Kernel("loops", [value], [], []))


def early_update(plan: Plan) -> None:
    """State that is updated while the forward pass may still meet a label out of range."""
    plan.phases.insert(0, Phase([update_kernel(plan)], False, 1))


def update_kernel(plan: Plan) -> Kernel:
    entry = next(e for e in plan.graph.state if e.after is not None)
    return Kernel("loops", [entry.after], [], [], None)


def update_beside_reader(plan: Plan) -> None:
    """In one phase a kernel reads a parameter and another one updates it."""
    last = plan.phases[-1]
    entry = next(e for e in plan.graph.state if e.after is not None)
    writer = next(k for k in last.kernels if any(r is entry.after for r in k.roots))
    reader = next(k for k in last.kernels if k is not writer)
    reader.reads.append(entry.before)


def update_dropped(plan: Plan) -> None:
    states = {id(buffer) for buffer in plan.state}
    kernels = plan.phases[-1].kernels
    kernels.remove(
        next(k for k in kernels if any(id(b) in states for r in k.roots for b in plan.buffers[id(r)]))
    )


def wrong_sample_stride(plan: Plan) -> None:
    plan.inputs[0].sample_stride += 1


BREAKS: dict[Callable[[Plan], None], str] = {
    same_offset: "overlap and live at the same time",
    same_scratch: "overlap and live at the same time",
    outside: "lies outside",
    scratch_too_small: "lies outside",
    unaligned: "lies outside",
    read_before_written: "does not hold it there and then",
    kernel_missing: "does not hold it there and then",
    kernels_swapped: "does not hold it there and then",
    overwritten: "share bytes",
    early_update: "may fail when state has been changed",
    update_beside_reader: "share bytes",
    update_dropped: "when the program ends",
    wrong_sample_stride: "finds a sample",
}


@pytest.mark.parametrize("change", BREAKS, ids=lambda change: change.__name__)
def test_the_checker_refuses_a_broken_plan(plan: Plan, change: Callable[[Plan], None]) -> None:
    check(plan)
    change(plan)
    with pytest.raises(GraphError, match=BREAKS[change]):
        check(plan)


# ---- what a plan says ----


def test_phases_and_roles_of_lenet(plan: Plan) -> None:
    batched = [phase for phase in plan.phases if phase.batch]
    assert all(phase.extent == BATCH and phase.tasks == 4 and phase.block == 16 for phase in batched)
    contractions = {"matmul", "convolution", "convolution_input_gradient", "convolution_weight_gradient"}
    passes = [p for p in plan.phases if any(k.kind in contractions for k in p.kernels)]
    assert len(passes) == 2 and passes[0].batch and not passes[1].batch  # forward and backward; large updates
    roles = {kernel.role for kernel in passes[0].kernels}
    assert roles == {"map", "partial"}
    assert {kernel.role for kernel in passes[1].kernels} == {"combine", "whole"}
    assert passes[1] is plan.phases[-1] and len(plan.phases) <= 4
    assert not any(kernel.kind == "copy" for kernel in plan.kernels)  # every update in place


def contraction_operations(batch: int) -> int:
    """LeNet's multiply-adds, counted densely: forward, weight gradients, input gradients but the first."""
    layers = [(6 * 28 * 28, 25), (16 * 10 * 10, 150), (120, 400), (84, 120), (10, 84)]
    forward = [2 * batch * outputs * terms for outputs, terms in layers]
    return 3 * sum(forward) - forward[0]


@pytest.mark.parametrize("batch", [1, 17, BATCH])
def test_operations_are_the_dense_counts(batch: int) -> None:
    plan = make_plan(lenet_graph(batch))
    found = sum(
        node.op.operations([v.type for v in node.inputs], [v.type for v in node.outputs])
        for node in plan.graph.nodes
        if node.op.kind is Kind.CONTRACTION
    )
    assert found == contraction_operations(batch)
    besides = plan.operations - found  # activations, pooling, loss, update
    assert 0 < besides < 0.05 * found + 5 * 61_706
    for kernel in plan.kernels:
        if kernel.anchor is not None and kernel.anchor.op.kind is Kind.CONTRACTION:
            types_of = [[v.type for v in values] for values in (kernel.anchor.inputs, kernel.anchor.outputs)]
            assert kernel.operations >= kernel.anchor.op.operations(*types_of)


def test_text_names_phases_kernels_buffers_and_lines(plan: Plan) -> None:
    text = plan.text(threads=2)
    assert text.startswith(f"plan of step: {plan.operations:,} operations")
    assert f"{sum(plan.memory(2).values()):,} bytes" in text and "with 2 threads" in text
    for number, phase in enumerate(plan.phases):
        assert f"phase {number}: {phase.tasks} tasks" in text
    for name in ("convolution ", "max_pool", "convolution_weight_gradient", "combine"):
        assert name in text
    assert "lenet.py:" in text and "LeNet.fc1.weight" in text and "[LeNet" in text


def test_json_holds_the_same_facts(plan: Plan) -> None:
    found = json.loads(plan.json(threads=2))
    assert found["operations"] == plan.operations and found["memory"] == plan.memory(2)
    assert [p["tasks"] for p in found["phases"]] == [p.tasks for p in plan.phases]
    kernels = [k for p in found["phases"] for k in p["kernels"]]
    assert [k["name"] for k in kernels] == [k.name for k in plan.kernels]
    assert sum(k["operations"] for k in kernels) == plan.operations
    assert {b["name"] for b in found["buffers"]} >= {"LeNet.fc1.weight", "x", "y"}
    assert any("lenet.py:" in line for k in kernels for line in k["where"])


def test_a_plan_is_deterministic(graph: Graph) -> None:
    first = make_plan(graph)
    assert make_plan(graph).json() == first.json()
    assert make_plan(lenet_graph()).json() == first.json()


def test_planning_is_quick_and_needs_no_compiler(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    from thalweg.codegen.c import build

    def refuse(*arguments: Any) -> None:
        raise AssertionError("a plan needs no compiler")

    monkeypatch.setattr(build, "find_compiler", refuse)
    monkeypatch.setattr(build, "build", refuse)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        make_plan(graph)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3


# ---- state ----


def plan_of(build: Callable[..., Any], *shapes: tuple[int, ...], state: int) -> Plan:
    """`build` of float32 values, the last `state` of them state, gives results and then the new state."""
    values = [Type(types.float32, shape) for shape in shapes]
    graph = trace_graph(build, values)
    split, count = len(values) - state, len(graph.outputs) - state
    entries = tuple(
        State(before, after, tw.Buffer(np.zeros(before.shape, np.float32), name=f"s{number}"))
        for number, (before, after) in enumerate(
            zip(graph.inputs[split:], graph.outputs[count:], strict=True)
        )
    )
    return make_plan(Graph(graph.inputs[:split], graph.nodes, graph.outputs[:count], entries, "program"))


def copies(plan: Plan) -> int:
    return sum(kernel.kind == "copy" for kernel in plan.kernels)


SQUARE = (4, 4)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda x, s: [ops.sum(x), s - x], 0),  # each element is read where it is written
        (lambda x, s: [ops.sum(x), ops.sum(s) + s], 0),  # the sum is done before
        (lambda x, s: [s + 1.0, s * 2.0], 0),  # an output of the old value
        (lambda x, s: [x, x + 0.0 * s], 0),
        (lambda x, s: [ops.sum(x), ops.flip(s)], 1),  # read at another place than written
        (lambda x, s: [ops.sum(x), ops.transpose(s) + x], 1),
        (lambda x, s: [ops.sum(x), s @ x], 1),
        (lambda x, s: [ops.sum(x), ops.take(s, [0, 3, 2, 1], axis=0)], 1),
        (lambda x, s: [ops.sum(x), ops.cumulative_sum(s, axis=0)], 1),
        (lambda x, s: [ops.sum(x), s], 0),  # unchanged: nothing to write
    ],
)
def test_state_is_updated_in_place_where_that_is_allowed(build: Callable[..., Any], expected: int) -> None:
    assert copies(plan_of(build, SQUARE, SQUARE, state=1)) == expected


def test_state_that_swaps_goes_through_memory_of_its_own() -> None:
    swapped = plan_of(lambda x, s, t: [ops.sum(x), t, s], SQUARE, SQUARE, SQUARE, state=2)
    assert copies(swapped) >= 1


def test_state_with_one_new_value_is_written_twice() -> None:
    plan = plan_of(lambda x, s, t: [ops.sum(x), *[s + t] * 2], SQUARE, SQUARE, SQUARE, state=2)
    places = [
        plan.buffer_of(kernel, number, root, write=True)
        for number, phase in enumerate(plan.phases)
        for kernel in phase.kernels
        for root in kernel.roots
    ]
    assert {id(buffer) for buffer in plan.state} <= {id(place) for place in places}


# ---- memory ----


@pytest.mark.parametrize("threads", [1, 3])
def test_a_run_maps_the_bytes_that_the_plan_announces(threads: int, needs_compiler: None) -> None:
    arrays = [np.zeros((20, 1, 28, 28), np.float32), np.zeros(20, np.int64)]
    graph = lenet_graph(20)
    before = {role: mapped_bytes(role) for role in ("arena", "scratch")}
    program = NativeProgram(graph, threads=threads)
    program(arrays)
    announced = program.plan.memory(threads)
    assert {role: mapped_bytes(role) - held for role, held in before.items()} == {
        role: announced[role] for role in before
    }
    held = mapped_bytes()
    program(arrays)
    assert mapped_bytes() == held  # a second call takes no more


@pytest.mark.parametrize("seed", range(300, 340))
def test_bytes_of_random_plans_add_up(seed: int) -> None:
    """Every planned buffer lies in its arena, and the arena is not larger than its buffers together."""
    plan = make_plan(RandomProgram(seed).graph)
    for scopes, size in (
        ((Scope.PROGRAM, Scope.SLOT), plan.arena_bytes),
        ((Scope.THREAD,), plan.thread_bytes),
    ):
        found = buffers_of(plan, *scopes)
        assert size == max((b.offset + b.total for b in found), default=0)
        assert size <= sum(b.total for b in found)
    announced = plan.memory()
    assert announced["inputs"] == sum(nbytes(v) for v in plan.graph.inputs)
    assert announced["state"] == sum(nbytes(e.before) for e in plan.graph.state)
    assert announced["outputs"] == sum(nbytes(v) for v in plan.graph.outputs)


def nbytes(value: Value) -> int:
    return math.prod(value.shape) * value.dtype.itemsize


def test_blocks_of_the_batch_do_not_fetch_large_weights_again_and_again() -> None:
    def phases(width: int) -> list[bool]:
        layer = nn.Linear(width, width)
        network = nn.Sequential(layer, nn.ReLU(), nn.Linear(width, 16))
        compiled = tw.compile(lambda x: network(x), backend="c")
        return [phase.batch for phase in compiled.plan(np.ones((64, width), np.float32)).phases]

    assert any(phases(256)) and not any(phases(800))
