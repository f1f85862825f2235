"""The table that `Module.summary` gives: what each layer costs, found by tracing the forward pass without
running it.

In: a module and stand-ins for its inputs. Out: `Summary`, which prints as a table. Nodes of the traced graph
are counted for the innermost module that made them, so that the rows add up to the totals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.errors import ArgumentError
from thalweg.graph import Graph, Kind
from thalweg.tensor import nest
from thalweg.tensor.compile import Spec, compile, spec
from thalweg.tensor.tensor import Tensor

if TYPE_CHECKING:
    from thalweg.nn.module import Module


@dataclass(frozen=True)
class Row:
    """One module; the numbers leave out the modules below it."""

    path: str
    kind: str  # the class
    output: str  # shape of what it returned, "" where it was not called
    parameters: int
    activation_bytes: int  # results of its operations; views and constants do not count
    operations: int  # a multiplication with an addition is two


@dataclass(frozen=True)
class Summary:
    """The rows, parents first, and totals."""

    rows: tuple[Row, ...]
    parameters: int
    trainable: int
    parameter_bytes: int  # of parameters and buffers
    activation_bytes: int
    operations: int

    def __str__(self) -> str:
        head = ("layer", "class", "output", "parameters", "activations", "operations")
        body = [
            (
                row.path,
                row.kind,
                row.output,
                f"{row.parameters:,}",
                size_text(row.activation_bytes),
                f"{row.operations:,}",
            )
            for row in self.rows
        ]
        total = (
            "total",
            "",
            "",
            f"{self.parameters:,}",
            size_text(self.activation_bytes),
            f"{self.operations:,}",
        )
        widths = [max(len(line[column]) for line in (head, *body, total)) for column in range(len(head))]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        lines = [
            _line(head, widths),
            rule,
            *(_line(line, widths) for line in body),
            rule,
            _line(total, widths),
        ]
        lines.append(
            f"{self.trainable:,} trainable, {self.parameters - self.trainable:,} frozen parameters; "
            f"parameters and buffers take {size_text(self.parameter_bytes)}"
        )
        return "\n".join(lines)

    __repr__ = __str__


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    texts = [cell.ljust(width) for cell, width in zip(cells[:3], widths[:3], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[3:], widths[3:], strict=True)]
    return "  ".join([*texts, *numbers]).rstrip()


def size_text(count: int) -> str:
    """A number of bytes for people: 512 B, 3.4 KiB, 12.0 MiB."""
    if count < 1024:
        return f"{count} B"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= 1024
        if amount < 1024 or unit == "TiB":
            break
    return f"{amount:.1f} {unit}"


def summarize(module: Module, inputs: Sequence[Any], dtype: Any) -> Summary:
    """The summary of a module for these inputs: tensors, arrays, `tw.spec` stand-ins, or shapes (of
    `dtype`).
    """
    from thalweg.nn.module import observed

    if not inputs:
        raise ArgumentError(
            "summary needs the shape of the input; write for example model.summary((1, 1, 28, 28))"
        )
    outputs: dict[str, str] = {}

    def note(path: str, _: Module, result: Any) -> None:
        outputs.setdefault(path, _shapes(result))

    with observed(note):
        graph = compile(module.__call__).graph(*(_stand_in(item, dtype) for item in inputs))
    memory, operations = _costs(graph)
    rows = []
    seen: set[int] = set()
    for name, part in module.named_modules():
        own = [p for p in part.own_parameters() if id(p) not in seen]
        seen.update(map(id, own))
        head = type(module).__name__
        path = f"{head}.{name}" if name else head
        rows.append(
            Row(
                path,
                type(part).__name__,
                outputs.get(path, ""),
                sum(p.size for p in own),
                memory.pop(path, 0),
                operations.pop(path, 0),
            )
        )
    # What belongs to no module of this tree (a module that forward made or borrowed) counts for the whole.
    rows[0] = Row(
        *(rows[0].path, rows[0].kind, rows[0].output, rows[0].parameters),
        rows[0].activation_bytes + sum(memory.values()),
        rows[0].operations + sum(operations.values()),
    )
    parameters = list(module.parameters())
    return Summary(
        tuple(rows),
        sum(p.size for p in parameters),
        sum(p.size for p in parameters if p.trainable),
        sum(holder.nbytes for holder in (*parameters, *module.buffers())),
        sum(row.activation_bytes for row in rows),
        sum(row.operations for row in rows),
    )


def _costs(graph: Graph) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of results and number of operations, by module path."""
    memory: dict[str, int] = {}
    operations: dict[str, int] = {}
    for node in graph.nodes:
        if node.op.kind is not Kind.MOVEMENT:
            memory[node.scope] = memory.get(node.scope, 0) + sum(value.type.nbytes for value in node.outputs)
        counted = node.op.operations([v.type for v in node.inputs], [v.type for v in node.outputs])
        operations[node.scope] = operations.get(node.scope, 0) + counted
    return memory, operations


def _stand_in(item: Any, dtype: Any) -> Any:
    if isinstance(item, (Tensor, np.ndarray, Spec)):
        return item
    if isinstance(item, (tuple, list)) and all(isinstance(extent, (int, np.integer)) for extent in item):
        return spec(tuple(item), dtype)
    raise ArgumentError(
        f"summary takes shapes, tensors and arrays, received {item!r:.60}; write (1, 1, 28, 28)"
    )


def _shapes(result: Any) -> str:
    shapes = [str(list(leaf.shape)) for leaf in nest.leaves(result) if isinstance(leaf, Tensor)]
    return ", ".join(shapes)
