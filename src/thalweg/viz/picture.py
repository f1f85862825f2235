"""What a drawing of a graph shows, before it is known where: boxes, edges and totals.

In: a `Graph`. Out: a `Picture`: one box per node, input and parameter, in the parts forward, gradient and
update; edges between them; sums of bytes and operations. Constants are not boxes but words in those that read
them. Used by the SVG and the text drawing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thalweg.graph import Graph, Node, Value
from thalweg.passes import simplify
from thalweg.types import Type

PARTS = ("forward", "gradient", "update")


@dataclass(eq=False)
class Box:
    """One box: an op's application, an input, or a piece of state (parameter, buffer)."""

    kind: str  # "forward", "gradient", "update" (ops), "input", "parameter" or "buffer"
    title: str
    module: str  # module path without the model's name
    types: list[Type]  # of the outputs that something uses
    nbytes: int  # of all outputs
    operations: int = 0
    operands: list[str] = field(default_factory=list)  # every operand in words
    reads: list[str] = field(default_factory=list)  # state that is read without an edge
    writes: list[str] = field(default_factory=list)  # state that gets its value here
    result: str = ""  # which output of the graph it is
    attributes: str = ""
    where: str = ""
    order: int = 0  # position in the graph
    name: str = ""  # how others call it: relu, relu_2, ...
    count: int = 1  # nodes that it stands for


@dataclass(eq=False)
class Edge:
    """Data that flows from one box to another."""

    source: Box
    target: Box
    types: list[Type]


@dataclass(eq=False)
class Picture:
    """All boxes in the order of the graph, edges between them, and totals."""

    name: str
    boxes: list[Box]
    edges: list[Edge]
    state_of: dict[int, list[Box]]  # id(op box) -> boxes of the state that it is the first to read
    parameter_bytes: int = 0
    parameter_count: int = 0
    buffer_bytes: int = 0

    def part(self, kind: str) -> list[Box]:
        """The boxes of one kind."""
        return [box for box in self.boxes if box.kind == kind]

    def totals(self) -> list[str]:
        """Sums in words: state, then bytes and operations of each part."""
        lines = [f"parameters: {self.parameter_count:,} in {size(self.parameter_bytes)}"]
        if self.buffer_bytes:
            lines.append(f"buffers and optimiser state: {size(self.buffer_bytes)}")
        for kind, what in zip(
            PARTS, ("activations", "gradients and intermediates", "new values"), strict=True
        ):
            boxes = self.part(kind)
            if boxes:
                count, done = sum(box.nbytes for box in boxes), sum(box.operations for box in boxes)
                nodes = sum(box.count for box in boxes)
                lines.append(f"{kind}: {nodes} nodes, {size(count)} of {what}, {operations(done)}")
        return lines


def size(count: int) -> str:
    """Bytes as people read them: 940 B, 18.8 kB, 1.20 MB (powers of 1000)."""
    if count < 1000:
        return f"{count} B"
    amount, unit = _scaled(count, ("", "kB", "MB", "GB", "TB"))
    return f"{amount} {unit}"


def operations(count: int) -> str:
    """Arithmetic operations as people read them: 940 ops, 18.8 k ops, 1.20 M ops."""
    amount, unit = _scaled(count, ("", "k", "M", "G", "T"))
    return f"{amount} {unit} ops" if unit else f"{amount} ops"


def _scaled(count: int, units: Sequence[str]) -> tuple[str, str]:
    amount, step = float(count), 0
    while amount >= 999.5 and step < len(units) - 1:
        amount, step = amount / 1000, step + 1
    digits = 0 if step == 0 or amount >= 100 else 1 if amount >= 10 else 2
    return f"{amount:.{digits}f}", units[step]


def picture(graph: Graph) -> Picture:
    """The boxes and edges of a graph, after common subexpressions have become one and dead nodes none."""
    found = _Painter(simplify(graph)).picture
    _gather_updates(found)
    return found


def _gather_updates(found: Picture) -> None:
    """Make one box of update ops that are of interest as a whole only.

    These are each connected group that sets no state, such as the clipping of all gradients, and what a
    module does to its state without any gradient, such as the running statistics of a batch norm.
    """
    trained = _downstream(found)
    inner = [
        box
        for box in found.boxes
        if box.kind == "update" and not box.result and not (box.writes and id(box) in trained)
    ]
    group = {id(box): id(box) for box in inner}

    def head(key: int) -> int:
        while group[key] != key:
            key = group[key]
        return key

    for edge in found.edges:
        if id(edge.source) in group and id(edge.target) in group:
            group[head(id(edge.target))] = head(id(edge.source))
    modules: dict[str, Box] = {}
    for box in inner:
        if id(box) not in trained:
            group[head(id(box))] = head(id(modules.setdefault(box.module, box)))
    members: dict[int, list[Box]] = {}
    for box in inner:
        members.setdefault(head(id(box)), []).append(box)
    for boxes in members.values():
        if len(boxes) > 1:
            _merge(found, boxes)


def _downstream(found: Picture) -> set[int]:
    """Ids of the boxes that are computed from a gradient."""
    behind = {id(box) for box in found.boxes if box.kind == "gradient"}
    for edge in sorted(found.edges, key=lambda edge: edge.target.order):
        if id(edge.source) in behind:
            behind.add(id(edge.target))
    return behind


def _merge(found: Picture, boxes: list[Box]) -> None:
    counts: dict[str, int] = {}
    for box in boxes:
        counts[box.title] = counts.get(box.title, 0) + 1
    title = ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
    joint = Box(
        "update",
        f"{len(boxes)} ops: {title}",
        boxes[0].module,
        [],
        sum(box.nbytes for box in boxes),
        sum(box.operations for box in boxes),
        reads=list(dict.fromkeys(name for box in boxes for name in box.reads)),
        writes=[name for box in boxes for name in box.writes],
        where=boxes[0].where,
        order=boxes[0].order,
        name=boxes[0].name,
        count=len(boxes),
    )
    inside = {id(box) for box in boxes}
    found.boxes[:] = [box for box in found.boxes if id(box) not in inside or box is boxes[0]]
    found.boxes[next(i for i, box in enumerate(found.boxes) if box is boxes[0])] = joint
    edges: dict[tuple[int, int], Edge] = {}
    for edge in found.edges:
        source = joint if id(edge.source) in inside else edge.source
        target = joint if id(edge.target) in inside else edge.target
        if source is not target:
            known = edges.setdefault((id(source), id(target)), Edge(source, target, []))
            known.types.extend(edge.types)
    found.edges[:] = edges.values()


class _Painter:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.words: dict[int, str] = {}  # id(value) -> how a reader names it
        self.boxes: dict[int, Box] = {}  # id(value) -> the box that gives it
        self.state: dict[int, Box] = {}  # id(value) -> box of a parameter or buffer
        self.edges: dict[tuple[int, int], Edge] = {}  # ids of source and target
        self.named: dict[str, int] = {}  # how often an op has occurred
        self.kinds = node_kinds(graph)
        self.users = graph.users()
        self.root = self._root()
        self.picture = Picture(graph.name, [], [], {})
        self._sources()
        for order, node in enumerate(graph.nodes):
            self._node(node, order)
        self._results()

    def _root(self) -> str:
        """The name of the model, which all module paths and parameters begin with, or ""."""
        heads = {node.scope.split(" ")[0].split(".")[0] for node in self.graph.nodes if node.scope}
        heads -= {"gradient", *(node.scope.split(" ")[0] for node in self.graph.nodes if _is_update(node))}
        return heads.pop() if len(heads) == 1 else ""

    def short(self, path: str) -> str:
        """A module path or parameter name without the model's name."""
        head, _, rest = path.partition(".")
        return rest if head == self.root else path

    def _sources(self) -> None:
        for position, value in enumerate(self.graph.inputs):
            names = self.graph.input_names
            name = names[position] if position < len(names) else f"input {position}"
            box = Box("input", name, "", [value.type], value.type.nbytes, order=-1)
            self.boxes[id(value)] = box
            self.words[id(value)] = name
            if self.users.get(id(value)):
                self.picture.boxes.append(box)
        for number, entry in enumerate(self.graph.state):
            self._state(number, entry.before, entry.holder)

    def _state(self, number: int, value: Value, holder: Any) -> None:
        trained = getattr(holder, "trainable", None) is not None
        name = self.short(holder.name) if holder.name else self._reader_name(value, number)
        kind = "parameter" if trained else "buffer"
        self.words[id(value)] = name
        self.state[id(value)] = Box(kind, name, "", [value.type], value.type.nbytes, order=-1)
        if trained:
            self.picture.parameter_bytes += value.type.nbytes
            self.picture.parameter_count += value.type.size
        else:
            self.picture.buffer_bytes += value.type.nbytes

    def _reader_name(self, value: Value, number: int) -> str:
        """A name for state that has none: after the module that reads it."""
        readers = self.users.get(id(value), [])
        scope = self.short(readers[0].scope) if readers else ""
        return f"{scope} state {number}".strip()

    def _node(self, node: Node, order: int) -> None:
        if self._is_constant(node):
            for value in node.outputs:
                self.words[id(value)] = _constant_word(node, self.words)
            return
        in_types = [value.type for value in node.inputs]
        used = [value for value in node.outputs if self.users.get(id(value)) or self._is_result(value)]
        box = Box(
            self.kinds[id(node)],
            node.op.name.removesuffix("_with_residuals"),
            self.short(re.sub(r"( ?\bgradient)+$", "", node.scope)),
            [value.type for value in used or node.outputs],
            sum(value.type.nbytes for value in node.outputs),
            node.op.operations(in_types, [value.type for value in node.outputs]),
            [self.words[id(value)] for value in node.inputs],
            attributes=", ".join(
                f"{name}={value}" for name, value in node.op.attributes().items() if name != "present"
            ),
            where=", ".join(f"{span}  {span.text}".strip() for span in node.where[:2]),
            order=order,
        )
        number = self.named[box.title] = self.named.get(box.title, 0) + 1
        box.name = box.title if number == 1 else f"{box.title}_{number}"
        self.picture.boxes.append(box)
        for position, value in enumerate(node.outputs):
            self.boxes[id(value)] = box
            self.words[id(value)] = f"{box.name}[{position}]" if len(node.outputs) > 1 else box.name
        for value in {id(value): value for value in node.inputs}.values():
            self._connect(value, box)

    def _connect(self, value: Value, box: Box) -> None:
        source = self.boxes.get(id(value))
        if source is not None:
            known = self.edges.get((id(source), id(box)))
            if known is not None:
                known.types.append(value.type)
                return
            edge = self.edges[id(source), id(box)] = Edge(source, box, [value.type])
            self.picture.edges.append(edge)
            return
        held = self.state.get(id(value))
        if held is None:
            return
        if box.kind == "forward" and held not in self.picture.boxes:
            self.picture.boxes.append(held)
            self.picture.state_of.setdefault(id(box), []).append(held)
        else:
            box.reads.append(held.title)

    def _is_constant(self, node: Node) -> bool:
        """Whether a node's value is known without any input: it is shown as a word, not as a box."""
        return all(id(value) not in self.boxes and id(value) not in self.state for value in node.inputs) and (
            not any(self._is_result(value) for value in node.outputs)
        )

    def _is_result(self, value: Value) -> bool:
        return any(value is result for result in self.graph.results)

    def _results(self) -> None:
        several = len(self.graph.outputs) > 1
        for position, value in enumerate(self.graph.outputs):
            box = self.boxes.get(id(value))
            if box is not None:
                label = f"output {position}" if several else "output"
                box.result = f"{box.result}, {label}" if box.result else label
        for entry in self.graph.state:
            box = None if entry.after is None else self.boxes.get(id(entry.after))
            if box is not None:
                box.writes.append(self.words[id(entry.before)])


def _is_update(node: Node) -> bool:
    return node.scope.endswith(" update")


def node_kinds(graph: Graph) -> dict[int, str]:
    """For `id(node)`: "forward", "gradient" or "update".

    Autodiff marks its nodes in their module path, optimisers theirs. What else is computed from gradients, or
    only for state that the outputs do not depend on, is an update too.
    """
    kinds: dict[int, str] = {}
    needed = {id(value) for value in graph.outputs}
    for node in reversed(graph.nodes):
        marked = node.scope.endswith("gradient")
        if marked or any(id(value) in needed for value in node.outputs):
            needed.update(id(value) for value in node.inputs)
            kinds[id(node)] = "gradient" if marked else "forward"
        else:
            kinds[id(node)] = "update"
    behind: set[int] = set()  # values computed from gradients
    for node in graph.nodes:
        if kinds[id(node)] == "gradient" or any(id(value) in behind for value in node.inputs):
            behind.update(id(value) for value in node.outputs)
            if kinds[id(node)] == "forward":
                kinds[id(node)] = "update"
    return kinds


def _constant_word(node: Node, words: dict[int, str]) -> str:
    """A constant in words: its value where that is one number."""
    value = getattr(node.op, "value", None)
    if isinstance(value, np.ndarray) and value.size == 1:
        return f"{value.reshape(())[()]:.6g}" if value.dtype.kind in "fV" else str(value.reshape(())[()])
    if len(node.inputs) == 1:
        return words[id(node.inputs[0])]
    return f"{node.op.name} {node.outputs[0].type}"
