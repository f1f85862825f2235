"""The check of compiled programs against the references: silent where they are right, exact where one is
wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.codegen.c import support
from thalweg.codegen.c.bindings import Context, KernelText
from thalweg.errors import ArgumentError, CheckError, IndexRangeError
from thalweg.runtime import check as checking

BATCH = 40  # three blocks of 16 samples, the last one not full
RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.standard_normal((BATCH, 6)).astype(np.float32)
LABELS = RANDOM.integers(0, 4, BATCH)


class Network(nn.Module):
    """A batch phase, sums over the batch, updates."""

    def __init__(self) -> None:
        self.first = nn.Linear(6, 9)
        self.norm = nn.LayerNorm(9)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(9, 4)

    def forward(self, x: Any) -> Any:
        hidden = self.dropout(self.norm(self.first(x)).tanh())
        return self.last(hidden)


def training(**options: Any) -> tuple[Network, Any]:
    tw.manual_seed(1)
    model = Network()
    optimizer = optim.Adam(model.parameters(), lr=0.01)

    @tw.compile(backend="c", **options)
    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    return model, step


def state(model: nn.Module) -> bytes:
    generator = tw.default_generator.state.data.tobytes()
    return b"".join(np.asarray(value).tobytes() for value in model.state_dict().values()) + generator


@pytest.fixture
def wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any], str, str, str], None]:
    """A function `(table, kind, text, other)`: such kernels have `other` in place of `text` in their C."""

    def mutate(table: dict[str, Any], kind: str, text: str, other: str) -> None:
        emit = table[kind]

        def mutated(context: Context) -> KernelText:
            written = emit(context)
            return KernelText(written.text.replace(text, other, 1), written.buffers, written.functions)

        monkeypatch.setitem(table, kind, mutated)

    return mutate


def test_a_right_program_passes(needs_compiler: None) -> None:
    checked, checked_step = training(check=True)
    plain, plain_step = training(check=False)
    for _ in range(2):
        tw.manual_seed(2)
        expected = plain_step(INPUTS, LABELS).item()
        tw.manual_seed(2)
        assert checked_step(INPUTS, LABELS).item() == expected
    assert state(checked) == state(plain)


MUTATIONS = {
    # table, kind of kernel, C text, what stands there instead
    "an activation": (support.BLOCK_EMITTERS, "loops", "tanh_f32(", "absolute_f32("),
    "a sum over the batch": (support.BLOCK_EMITTERS, "sum", "add_f32(", "subtract_f32("),
    "an update": (support.TILE_EMITTERS, "combine", "sqrt_f32(", "absolute_f32("),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_kernel_is_named(name: str, wrong_kernel: Any, needs_compiler: None) -> None:
    table, kind, text, other = MUTATIONS[name]
    wrong_kernel(table, kind, text, other)
    model, step = training(check=True)
    before = state(model)
    for _ in range(2):  # what failed once is checked again
        with pytest.raises(CheckError) as caught:
            step(INPUTS, LABELS)
        assert state(model) == before
    report = str(caught.value)
    assert "step does not compute what the NumPy reference does" in report
    assert f"{kind} " in report and "elements are wrong, the worst at [" in report
    assert "instead of" in report and "tolerance" in report
    if name == "an activation":
        assert f"at {__file__}:" in report
        assert "hidden = self.dropout(self.norm(self.first(x)).tanh())" in report
        assert "tanh" in report and f"f32[{BATCH},9]" in report


def test_the_worst_element_is_the_wrong_one(needs_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is wrong in a single element of the last, partly filled block."""
    emit = support.BLOCK_EMITTERS["matmul"]

    def spoiled(context: Context) -> KernelText:
        written = emit(context)
        pointer = next(context.pointers[id(b)] for b in written.buffers if id(b) in context.written)
        head, _, tail = written.text.rpartition("}")
        # block of 8 valid lanes from sample 32: vector element 5 of column 2
        text = f"{head} if (origin == 32) {{ {pointer}[2 * 16 + 5] += 1.0f; }} }}{tail}"
        return KernelText(text, written.buffers, written.functions)

    monkeypatch.setitem(support.BLOCK_EMITTERS, "matmul", spoiled)
    layer = nn.Linear(6, 9)
    function = tw.compile(lambda x: (layer(x).exp() @ layer.weight).tanh(), backend="c", check=True)
    with pytest.raises(CheckError, match=r"1 of \d+ elements are wrong, the worst at \[37, 2\]"):
        function(INPUTS)


def test_the_setting_is_the_default(
    wrong_kernel: Any, needs_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_kernel(support.TILE_EMITTERS, "loops", "exp_f32(", "absolute_f32(")

    def function(x: Any) -> Any:
        return x.exp()

    few = np.ones(3, np.float32)
    monkeypatch.setenv("THALWEG_CHECK", "1")
    with pytest.raises(CheckError, match="exp"):
        tw.compile(function, backend="c")(few)
    assert tw.compile(function, backend="c", check=False)(few).tolist() == [1.0, 1.0, 1.0]
    monkeypatch.setenv("THALWEG_CHECK", "0")
    assert tw.compile(function, backend="c")(few).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ArgumentError, match="check"):
        tw.compile(function, check="yes")


def test_loops_are_checked(wrong_kernel: Any, needs_compiler: None) -> None:
    """What runs inside `scan` is judged as a whole."""

    def running(x: Any) -> Any:
        return tw.scan(lambda carry, row: ((carry * 0.5 + row).tanh(),) * 2, tw.zeros(6), x)[1]

    right = tw.compile(running, backend="c", check=True)(INPUTS)
    np.testing.assert_allclose(right, tw.compile(running, backend="numpy")(INPUTS), rtol=1e-5, atol=1e-6)
    wrong_kernel(support.TILE_EMITTERS, "loops", "tanh_f32(", "absolute_f32(")
    with pytest.raises(CheckError, match="scan"):
        tw.compile(running, backend="c", check=True)(INPUTS)


def test_a_failing_call_raises_its_own_error(needs_compiler: None) -> None:
    table = tw.Parameter(np.ones((4, 3), np.float32))

    @tw.compile(backend="c", check=True)
    def rows(positions: Any) -> Any:
        taken = tw.take(table, positions, axis=0).exp()
        table.assign(table * 2.0)
        return taken

    with pytest.raises(IndexRangeError, match="4"):
        rows(np.array([0, 4]))
    assert table.tolist() == np.ones((4, 3)).tolist()
    assert rows(np.array([0, 3])).shape == (2, 3)
    assert table.tolist() == np.full((4, 3), 2.0).tolist()


def test_bits_that_depend_on_threads_are_reported(
    needs_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = checking.watch

    def other_bits(*arguments: Any) -> list[Any]:
        outputs = watched(*arguments)
        outputs[0].view(np.uint32)[...] ^= 1
        return outputs

    monkeypatch.setattr(checking, "watch", other_bits)
    model, step = training(check=True)
    before = state(model)
    with pytest.raises(CheckError, match="output 0 has other bits"):
        step(INPUTS, LABELS)
    assert state(model) == before


def test_special_values_and_16_bits(needs_compiler: None) -> None:
    special = np.array([[np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3.4e38]] * 17, np.float32)
    function = tw.compile(lambda x: ((x * 2.0).exp(), x.sum(0), x.max(1)), backend="c", check=True)
    assert np.isnan(function(special)[2].numpy()).all()
    half = tw.compile(lambda x: (x.tanh() @ x.T, x.var(0)), backend="c", check=True)
    half(RANDOM.standard_normal((33, 5)).astype(np.float16))
    half(tw.tensor(INPUTS, dtype="bfloat16"))
