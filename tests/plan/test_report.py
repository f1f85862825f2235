"""Reports of plans: text, JSON, the picture of the arena, the least time and the machine that it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.models.lenet import LeNet
from thalweg.plan import Machine, Plan, Scope, machine
from thalweg.plan import machine as find_machine


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without limits that this machine has measured before."""
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path))


def step_of(model: Any) -> Any:
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    @tw.compile
    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    return step


@pytest.fixture(scope="module")
def plan() -> Plan:
    found: Plan = step_of(LeNet()).plan(tw.spec((64, 1, 28, 28)), tw.spec((64,), "int64"))
    return found


def test_text_gives_bytes_offsets_lifetimes_and_origins(plan: Plan) -> None:
    text = plan.text(threads=2)
    assert text.startswith("plan of step: ")
    assert f"{plan.total_bytes(2):,} bytes with 2 threads, " in text
    assert f"arena {plan.arena_bytes:,}, scratch {2 * plan.thread_bytes:,}" in text
    largest = max((b for b in plan.all_buffers if b.scope is Scope.PROGRAM), key=lambda b: b.total)
    line = next(line for line in text.splitlines() if f"{largest.total:,} B  at {largest.offset:,} " in line)
    assert f"phases {largest.first[0]} to {largest.last[0]}" in line
    assert largest.module in line and "lenet.py:" in line
    assert str(plan) == plan.text()


def test_long_plans_show_what_takes_longest_and_say_what_they_leave_out(plan: Plan) -> None:
    short, whole = plan.text(limit=5), plan.text(limit=None)
    assert f"... and {len(plan.kernels) - 5:,} cheaper kernels" in short
    assert f"... and {len(plan.all_buffers) - 5:,} smaller ones" in short
    assert "..." not in whole
    assert len(whole.splitlines()) > len(plan.kernels) + len(plan.all_buffers)


def test_json_says_where_every_buffer_lies_and_lives(plan: Plan) -> None:
    found = json.loads(plan.json(threads=2))
    assert found["total_bytes"] == sum(found["memory"].values()) == plan.total_bytes(2)
    assert found["least_seconds"] == plan.least_seconds(2)
    ends = [b["offset"] + b["bytes"] for b in found["buffers"] if b["scope"] in ("program", "slot")]
    assert max(ends) == plan.arena_bytes
    assert all(b["first"] <= b["last"] for b in found["buffers"])


def test_the_picture_has_a_box_for_every_buffer_in_the_arena(plan: Plan, tmp_path: Path) -> None:
    plan.draw(tmp_path / "arena.svg")
    root = ElementTree.parse(tmp_path / "arena.svg").getroot()
    titles = [text for text in root.itertext() if " bytes at " in text]
    shared = [b for b in plan.all_buffers if b.scope in (Scope.PROGRAM, Scope.SLOT) and b.nbytes]
    scratch = max(plan.scratch_by_phase().values(), key=lambda own: max(b.offset + b.total for b in own))
    assert len(titles) == len(shared) + len(scratch)
    assert any(text.startswith(f"arena: {plan.arena_bytes:,} bytes") for text in root.itertext())
    plan.draw(tmp_path / "arena.txt")
    assert (tmp_path / "arena.txt").read_text() == plan.text(limit=None) + "\n"
    with pytest.raises(tw.errors.ArgumentError, match=r"must end in \.svg"):
        plan.draw(tmp_path / "arena.png")


def test_the_least_time_follows_from_operations_and_bytes() -> None:
    fast = Machine("made up", 2, 1e12, 1e10, 1 << 20, measured=True)
    assert fast.seconds(1e9, 0) == 1e-3
    assert fast.seconds(1e9, 1e8) == 1e-2


def test_limits_are_modelled_until_they_are_measured(plan: Plan) -> None:
    modelled = find_machine(1)
    assert "a model of this processor" in modelled.origin
    assert find_machine(3).operations_per_second == pytest.approx(3 * modelled.operations_per_second)
    machine_module = __import__("thalweg.plan.machine", fromlist=["store"])
    machine_module.store(1, 5e10, 2e10)
    machine_module.store(1, 4e10, 3e10)  # a busier moment: the best of each stays
    found = machine(1)
    assert (found.operations_per_second, found.bytes_per_second) == (5e10, 3e10)
    assert found.origin == "measured on this machine"
    assert plan.least_seconds(1) == pytest.approx(plan.operations / 5e10)


def test_an_unreadable_store_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text("[1, 2")
    assert "a model" in machine(1).origin


def test_updates_run_right_behind_their_gradients() -> None:
    """Otherwise every activation and gradient of a deep network would live to the end."""
    model = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(256, 256), nn.Tanh())])
    plan = step_of(model).plan(tw.spec((5, 256)), tw.spec((5,), "int64"))
    writers = [
        number
        for number, phase in enumerate(plan.phases)
        for kernel in phase.kernels
        for root in kernel.roots
        if plan.buffer_of(kernel, number, root, write=True).scope is Scope.STATE and root.ndim == 2
    ]
    assert len(set(writers)) >= 7


def test_an_index_that_was_checked_before_does_not_hold_updates_back() -> None:
    table = tw.Parameter(tw.zeros((10, 64)).numpy())
    weight = tw.Parameter(tw.zeros((64, 64)).numpy())
    optimizer = optim.SGD([table, weight], lr=0.1)

    @tw.compile
    def step(indices: Any) -> Any:
        loss = (nn.functional.embedding(indices, table) @ weight).sum()
        optimizer.minimize(loss)
        return loss

    plan = step.plan(tw.spec((12,), "int64"))
    checked = [node for node in plan.graph.nodes if node.op.checked]
    assert [node.op.name for node in checked] == ["gather", "scatter"]
    from thalweg.plan import failing_nodes

    assert failing_nodes(plan.graph) == {id(checked[0])}
