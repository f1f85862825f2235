"""The first op that made a NaN or an infinity out of finite numbers.

In: a program and the inputs of a call. Out: a `NonFinite`, or None where all is finite. The program's own
kernels run one after the other on copies of the state; where one writes a NaN or an infinity that it has not
read, its nodes are evaluated by the references on what it read, to find the op. Called by `thalweg.debug`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg.graph import Graph, Node
from thalweg.runtime.program import InterpretedProgram, NativeProgram
from thalweg.runtime.watch import Observation, watch
from thalweg.types import Span

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class NonFinite:
    """Where a NaN or an infinity came from.

    `what` is "nan" or "inf", `source` the op's name or the argument or state that held it before, `index` the
    first such element of `shape`, `count` how many there are, `operands` what the op computed it from at that
    index, where its operands have the same shape.
    """

    what: str
    source: str
    is_op: bool
    shape: tuple[int, ...]
    index: tuple[int, ...]
    count: int
    operands: tuple[float, ...] = ()
    module: str = ""
    where: tuple[Span, ...] = ()

    def __str__(self) -> str:
        place = f"[{', '.join(map(str, self.index))}]"
        many = f"{self.count} of {int(np.prod(self.shape))} elements" if self.shape else "its value"
        if not self.is_op:
            return f"{self.source} holds {self.what} already: {many}, the first at {place}"
        given = f" from {', '.join(f'{x:.9g}' for x in self.operands)}" if self.operands else ""
        module = f"{self.module}: " if self.module else ""
        lines = [f"{module}{self.source} made {self.what}{given}: {many}, the first at {place}"]
        lines += [
            f"  at {span.file}:{span.line} in {span.function}\n      {span.text}" for span in self.where
        ]
        return "\n".join(lines)


_TESTS = {"nan": np.isnan, "inf": np.isinf}


def _holds(array: Array, what: str) -> bool:
    if array.dtype.kind in "biu":
        return False
    return bool(_TESTS[what](array.astype(np.float64) if array.dtype.kind != "f" else array).any())


def made(inputs: Iterable[Array], outputs: Iterable[Array]) -> tuple[str, int] | None:
    """What is among the outputs and not among the inputs, and in which output; NaN before infinity."""
    before, after = list(inputs), list(outputs)
    for what in _TESTS:
        if what == "inf" and any(_holds(array, "nan") for array in before):
            continue
        if not any(_holds(array, what) for array in before):
            for number, array in enumerate(after):
                if _holds(array, what):
                    return what, number
    return None


def find(program: NativeProgram | InterpretedProgram, inputs: Sequence[Array]) -> NonFinite | None:
    """The first op, in the order of the program's graph, that makes a NaN or an infinity in a call."""
    if isinstance(program, InterpretedProgram):
        graph, states = program.graph, [np.array(holder.data) for holder in program.holders]
    else:
        graph, states = program.plan.graph, [np.array(holder.data) for holder, _ in program.states]
    held = _sources(graph, inputs, states, "nan")
    if held is not None:
        return held
    found: dict[int, NonFinite] = {}
    position = {id(node): number for number, node in enumerate(graph.nodes)}
    if isinstance(program, InterpretedProgram):
        _walk(
            graph.nodes, dict(zip(map(id, graph.sources), [*inputs, *states], strict=True)), position, found
        )
    else:
        plan = program.plan

        def see(seen: Observation) -> None:
            origin = made([*seen.reads.values(), *seen.slots.values()], [array for _, array in seen.found()])
            if seen.kernel.role == "partial":
                origin = made(seen.reads.values(), seen.slots.values())
            if origin is None or not seen.kernel.nodes:
                return
            before = len(found)
            known = seen.known(plan)
            with np.errstate(all="ignore"):
                for node in seen.kernel.nodes:
                    operands = [known[value] for value in node.inputs]
                    known.set(node, node.op.reference(*operands))
                    _note(node, operands, [known[value] for value in node.outputs], position, found)
            root, array = seen.found()[origin[1]]
            if len(found) == before and not _holds(known[root], origin[0]):  # only the kernel overflows
                node = root.node or seen.kernel.nodes[-1]
                found[position.get(id(node), len(position))] = _report(node, (), array, origin[0])

        watch(program, inputs, states, see)
    if found:
        return found[min(found)]
    return _sources(graph, inputs, states, "inf")


def _walk(
    nodes: Sequence[Node], known: dict[int, Array], position: dict[int, int], found: dict[int, NonFinite]
) -> None:
    """Evaluate all nodes by the references and note where something is made."""
    with np.errstate(all="ignore"):
        for node in nodes:
            operands = [known[id(value)] for value in node.inputs]
            results = node.op.reference(*operands)
            outputs = [np.asarray(part) for part in (results if isinstance(results, tuple) else (results,))]
            known.update((id(value), array) for value, array in zip(node.outputs, outputs, strict=True))
            _note(node, operands, outputs, position, found)


def _note(
    node: Node,
    operands: Sequence[Array],
    outputs: Sequence[Array],
    position: dict[int, int],
    found: dict[int, NonFinite],
) -> None:
    origin = made(operands, outputs) if node.inputs else None  # a constant that is infinite is meant so
    if origin is not None:
        found.setdefault(position[id(node)], _report(node, operands, outputs[origin[1]], origin[0]))


def _first(array: Array, what: str) -> tuple[tuple[int, ...], int]:
    wrong = _TESTS[what](np.asarray(array, np.float64))
    return tuple(int(i) for i in np.argwhere(wrong)[0]), int(wrong.sum())


def _report(node: Node, operands: Sequence[Array], array: Array, what: str) -> NonFinite:
    index, count = _first(array, what)
    given = tuple(float(x[index]) for x in operands if x.shape == array.shape)
    return NonFinite(
        what, node.op.name, True, array.shape, index, count, given, node.scope, tuple(node.where[:3])
    )


def _sources(graph: Graph, inputs: Sequence[Array], states: Sequence[Array], what: str) -> NonFinite | None:
    """An argument or state that holds NaN or infinity before the call."""
    names = [f"the argument {name!r}" for name in graph.input_names]
    names += [f"argument {number}" for number in range(len(names), len(graph.inputs))]
    names += [f"the state {entry.holder.name!r}" for entry in graph.state]
    for name, array in zip(names, [*inputs, *states], strict=True):
        if _holds(array, what):
            index, count = _first(array, what)
            return NonFinite(what, name, False, array.shape, index, count)
    return None
