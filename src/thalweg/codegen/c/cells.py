"""Cells of recurrent layers taken whole: each reads its gates once, wherever they come from, and writes all results.

In: the composites of `ops/recurrent.py`, forward (with what the gradient needs) and backward. Out: row-major kernels whose
operands are pulled into the loop, so that the sum of input and hidden part needs no memory, and whose gradient writes the
gates side by side. They compute as the bodies do.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from thalweg.codegen.c.bindings import TILE_PARAMETERS, Context, KernelText
from thalweg.codegen.c.expressions import Emitter, Expression
from thalweg.codegen.c.nests import store
from thalweg.codegen.loops import LANE, Index, Ranges, constant, unravel, variable
from thalweg.graph import Node, Value
from thalweg.plan import LANES


class _Cell:
    """Arithmetic on the vectors of one innermost iteration, with the names of the vector library."""

    def __init__(self, emitter: Emitter, kind: str) -> None:
        self.emitter = emitter
        self.kind = kind
        self.one = self.call("broadcast", "1")

    def call(self, function: str, *operands: str) -> str:
        """The C variable that holds the result of `function`."""
        name = f"{function}_{self.kind}"
        if function in ("exp", "tanh"):
            self.emitter.functions.add(name)
        return self.emitter.declare(self.kind, f"{name}({', '.join(operands)})").text

    def add(self, x: str, y: str) -> str:
        return self.call("add", x, y)

    def times(self, *factors: str) -> str:
        """The product, from left to right."""
        found = factors[0]
        for factor in factors[1:]:
            found = self.call("multiply", found, factor)
        return found

    def rest(self, x: str) -> str:
        """1 - x"""
        return self.call("subtract", self.one, x)

    def sigmoid(self, x: str) -> str:
        return self.call("divide", self.one, self.add(self.call("exp", self.call("negative", x)), self.one))

    def tanh(self, x: str) -> str:
        return self.call("tanh", x)


def _lstm(c: _Cell, operands: list[list[str]]) -> list[list[str]]:
    (enter, forget, candidate, output), (cell,) = operands
    enter, forget, output = c.sigmoid(enter), c.sigmoid(forget), c.sigmoid(output)
    candidate = c.tanh(candidate)
    after = c.add(c.times(forget, cell), c.times(enter, candidate))
    shown = c.tanh(after)
    results = (c.times(output, shown), after, enter, forget, candidate, output, shown)
    return [[one] for one in results]


def _lstm_gradient(c: _Cell, operands: list[list[str]]) -> list[list[str]]:
    by_hidden, by_after, cell, enter, forget, candidate, output, shown = (one[0] for one in operands)
    by_cell = c.add(by_after, c.times(by_hidden, output, c.rest(c.times(shown, shown))))
    by_gates = [
        c.times(c.times(by_cell, candidate), c.times(enter, c.rest(enter))),
        c.times(c.times(by_cell, cell), c.times(forget, c.rest(forget))),
        c.times(c.times(by_cell, enter), c.rest(c.times(candidate, candidate))),
        c.times(c.times(by_hidden, shown), c.times(output, c.rest(output))),
    ]
    return [by_gates, [c.times(by_cell, forget)]]


def _gru(c: _Cell, operands: list[list[str]]) -> list[list[str]]:
    own, other, (hidden,) = operands
    reset, update = c.sigmoid(c.add(own[0], other[0])), c.sigmoid(c.add(own[1], other[1]))
    new = c.tanh(c.add(own[2], c.times(reset, other[2])))
    after = c.add(c.times(c.rest(update), new), c.times(update, hidden))
    return [[one] for one in (after, reset, update, new, other[2])]


def _gru_gradient(c: _Cell, operands: list[list[str]]) -> list[list[str]]:
    g, hidden, reset, update, new, inner = (one[0] for one in operands)
    by_new = c.times(c.times(g, c.rest(update)), c.rest(c.times(new, new)))
    by_reset = c.times(c.times(by_new, inner), c.times(reset, c.rest(reset)))
    by_update = c.times(c.times(g, c.call("subtract", hidden, new)), c.times(update, c.rest(update)))
    return [[by_reset, by_update, by_new], [by_reset, by_update, c.times(by_new, reset)], [c.times(g, update)]]


CELLS: dict[str, Callable[[_Cell, list[list[str]]], list[list[str]]]] = {
    "lstm_cell": _lstm,
    "lstm_cell_with_residuals": _lstm,
    "lstm_cell_gradient": _lstm_gradient,
    "gru_cell": _gru,
    "gru_cell_with_residuals": _gru,
    "gru_cell_gradient": _gru_gradient,
}


def takes(node: Node) -> bool:
    """Is there a kernel for this application? float32 or float64 throughout."""
    values = (*node.inputs, *node.outputs)
    return (
        node.op.name in CELLS
        and values[0].dtype.short in ("f32", "f64")
        and all(v.dtype is values[0].dtype for v in values)
        and values[0].ndim > 0
    )


def emit_cell(context: Context) -> KernelText:
    """Rows and vectors of the state, as items in row-major order."""
    anchor = context.kernel.anchor
    assert anchor is not None
    # operands and results are as wide as the state, or as several gates side by side
    width = min(value.shape[-1] for value in anchor.inputs)
    lead = anchor.inputs[-1].shape[:-1]
    rows, chunks = math.prod(lead), -(-width // LANES)
    items, tasks = rows * chunks, context.kernel.tasks
    accesses = context.reads()
    outputs = [(root, context.access(root, write=True)) for root in anchor.outputs]
    lines = [
        "(void)error;",
        f"for (int64_t item = task * {items} / {tasks}; item < (task + 1) * {items} / {tasks}; item++) {{",
        f"const int64_t row = item / {chunks}, j = item % {chunks} * {LANES};",
    ]
    rest = width % LANES

    def body(partial: str | None) -> list[str]:
        extents = {"row": rows, "j": max(width - LANES + 1, 1), LANE: min(width, LANES)}
        emitter = context.emitter(Ranges(extents, {"j": LANES}), dict(accesses))
        emitter.partial = partial
        column = variable("j") + variable(LANE)

        def places(value: Value) -> list[tuple[Index, ...]]:
            at = unravel(variable("row"), lead, extents) if lead else ()
            return [(*at, column + constant(width * gate)) for gate in range(value.shape[-1] // width)]

        operands = [[emitter.pull(value, place).text for place in places(value)] for value in anchor.inputs]
        cell = _Cell(emitter, anchor.outputs[0].dtype.short)
        found = CELLS[anchor.op.name](cell, operands)
        for (root, access), parts in zip(outputs, found, strict=False):
            for place, part in zip(places(root), parts, strict=True):
                store(emitter, access, place, Expression(part, cell.kind))
        context.functions |= emitter.functions
        return emitter.lines

    if width >= LANES:
        lines += [f"if (j + {LANES} <= {width}) {{" if rest else "{", *body(None), "}"]
    if rest:
        lines += ["else {" if width >= LANES else "{", *body(str(rest)), "}"]
    return context.function("\n".join([*lines, "}"]), TILE_PARAMETERS)
