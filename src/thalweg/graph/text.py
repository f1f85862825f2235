"""Graphs as text: what `print(graph)` shows, what golden tests compare, and what `parse` reads back.

graph step(%x: f32[2,3]; state %w: f32[4,3] "fc.weight") {
  %1: f32[2,4] = matmul(%x, %w) {transpose_a=False, transpose_b=True}  # train.py:12 in loss [Net.fc]
} -> %1; %w := %w
"""

from __future__ import annotations

import base64
import inspect
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg.errors import GraphError
from thalweg.graph.core import REGISTRY, Graph, Node, Op, State, Value, digest
from thalweg.types import DType, Span, Type, type_of


def to_text(graph: Graph, *, spans: bool = True, limit: int | None = None, indent: str = "") -> str:
    """The text of a graph. Arrays above `limit` elements are shown by digest only and cannot be read back."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for position, value in enumerate(graph.inputs):
        given = graph.input_names[position] if position < len(graph.input_names) else str(position)
        label = f"%{_plain(given)}"
        while label in taken or _RESERVED.fullmatch(label):
            label += "_"
        taken.add(label)
        names[id(value)] = label
    for position, entry in enumerate(graph.state):
        names[id(entry.before)] = f"%state{position}"
    inputs = ", ".join(f"{names[id(v)]}: {v.type}" for v in graph.inputs)
    for entry in graph.state:
        inputs += f"; state {names[id(entry.before)]}: {entry.before.type} {json.dumps(entry.holder.name)}"
    lines = [f"graph {_word(graph.name)}({inputs}) {{"]
    counter = 0
    for node in graph.nodes:
        for value in node.outputs:
            names[id(value)] = f"%v{counter}"
            counter += 1
        lines.append(f"{indent}  {_node_text(node, names, spans, limit, indent)}")
    results = ", ".join(names[id(v)] for v in graph.outputs)
    changes = "".join(
        f"; {names[id(e.before)]} := {names[id(e.after)]}" for e in graph.state if e.after is not None
    )
    lines.append(f"{indent}}} -> {results}{changes}".rstrip())
    return "\n".join(lines)


_RESERVED = re.compile(r"%(v|state)\d+")  # labels of nodes' outputs and of state


def _plain(name: str) -> str:
    """`name` in the characters that a label may have."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)


def _word(name: str) -> str:
    """`name` as the grammar's word: it does not begin with a digit or a dot, and is not empty."""
    plain = _plain(name)
    return plain if re.match(r"[A-Za-z_]", plain) else f"_{plain}"


def _node_text(node: Node, names: dict[int, str], spans: bool, limit: int | None, indent: str) -> str:
    left = ", ".join(f"{names[id(v)]}: {v.type}" for v in node.outputs)
    right = ", ".join(names[id(v)] for v in node.inputs)
    text = f"{left} = {node.op.name}({right})"
    attributes = node.op.attributes()
    if attributes:
        shown = ", ".join(f"{k}={_attribute_text(v, spans, limit, indent)}" for k, v in attributes.items())
        text += f" {{{shown}}}"
    if spans and node.where:
        text += f"  # {', '.join(map(str, node.where))} in {node.where[0].function}"
        text += f" [{node.scope}]" if node.scope else ""
    return text


def _attribute_text(value: Any, spans: bool, limit: int | None, indent: str) -> str:
    if isinstance(value, DType):
        return value.short
    if isinstance(value, (tuple, list)):
        items = [_attribute_text(item, spans, limit, indent) for item in value]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, np.ndarray):
        if limit is not None and value.size > limit:
            return f"elided({type_of(value)}, {json.dumps(digest(value)[:16])})"
        return f"array({type_of(value)}, {json.dumps(base64.b64encode(value.tobytes()).decode())})"
    if isinstance(value, Graph):
        return to_text(value, spans=spans, limit=limit, indent=indent + "  ")
    if isinstance(value, np.generic):
        return repr(value.item())
    return repr(value)


@dataclass(frozen=True, slots=True)
class NamedHolder:
    """Stands for a state holder in a graph that was parsed from text."""

    name: str
    data: Any = None


_TOKEN = re.compile(
    r"\s+|#[^\n]*|(?P<arrow>->|:=)|(?P<value>%[A-Za-z0-9_.]+)|(?P<string>\"(?:[^\"\\]|\\.)*\")"
    r"|(?P<number>-?(?:inf|nan|\d+(?:\.\d*)?(?:e[+-]?\d+)?))(?![A-Za-z_])|(?P<word>[A-Za-z_][A-Za-z0-9_.]*)"
    r"|(?P<mark>[(){}\[\],:;=])"
)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.error(f"unexpected {text[position : position + 10]!r}", position)
            if match.lastgroup:
                self.tokens.append((match.lastgroup, match.group(), position))
            position = match.end()
        self.next = 0

    def error(self, message: str, position: int | None = None) -> GraphError:
        if position is None:
            position = self.tokens[self.next][2] if self.next < len(self.tokens) else len(self.text)
        return GraphError(f"graph text, line {self.text.count(chr(10), 0, position) + 1}: {message}")

    def peek(self) -> str:
        return self.tokens[self.next][1] if self.next < len(self.tokens) else ""

    def take(self, kind: str | None = None, text: str | None = None) -> str:
        if self.next >= len(self.tokens):
            raise self.error(f"ends where {text or kind} was expected")
        found_kind, found, _ = self.tokens[self.next]
        if (kind and kind != found_kind) or (text and text != found):
            raise self.error(f"expected {text or kind}, found {found!r}")
        self.next += 1
        return found

    def accept(self, text: str) -> bool:
        if self.peek() == text:
            self.next += 1
            return True
        return False

    def type(self) -> Type:
        name = self.take("word")
        if name not in DType.by_name:
            raise self.error(f"{name!r} is not an element type")
        self.take(text="[")
        shape: list[int] = []
        while not self.accept("]"):
            shape.append(int(self.take("number")))
            self.accept(",")
        return Type(DType.by_name[name], tuple(shape))

    def graph(self) -> Graph:
        self.take(text="graph")
        name = self.take("word")
        self.take(text="(")
        values: dict[str, Value] = {}
        inputs: list[Value] = []
        input_names: list[str] = []
        state: list[tuple[str, Value, NamedHolder]] = []
        while not self.accept(")"):
            if self.accept(";"):
                self.take(text="state")
                label = self.take("value")
                self.take(text=":")
                values[label] = Value(self.type())
                state.append((label, values[label], NamedHolder(json.loads(self.take("string")))))
                continue
            label = self.take("value")
            self.take(text=":")
            values[label] = Value(self.type())
            inputs.append(values[label])
            input_names.append(label[1:])
            self.accept(",")
        self.take(text="{")
        nodes: list[Node] = []
        while not self.accept("}"):
            nodes.append(self.node(values))
        self.take(text="->")
        outputs: list[Value] = []
        while self.peek().startswith("%"):
            outputs.append(self.value(values))
            if not self.accept(","):
                break
        after: dict[str, Value] = {}
        while self.accept(";"):
            label = self.take("value")
            self.take(text=":=")
            after[label] = self.value(values)
        states = tuple(State(before, after.get(label), holder) for label, before, holder in state)
        numbered = all(given == str(i) for i, given in enumerate(input_names))
        return Graph(
            tuple(inputs), tuple(nodes), tuple(outputs), states, name, () if numbered else tuple(input_names)
        )

    def value(self, values: dict[str, Value]) -> Value:
        label = self.take("value")
        if label not in values:
            raise self.error(f"{label} is used before it is computed")
        return values[label]

    def node(self, values: dict[str, Value]) -> Node:
        if self.next >= len(self.tokens):
            raise self.error("ends where a node or } was expected")
        start = self.tokens[self.next][2]
        line = self.text.count("\n", 0, start) + 1
        labels: list[tuple[str, Type]] = []
        while True:
            label = self.take("value")
            self.take(text=":")
            labels.append((label, self.type()))
            if not self.accept(","):
                break
        self.take(text="=")
        name = self.take("word")
        if name not in REGISTRY:
            raise self.error(f"there is no op {name!r}")
        self.take(text="(")
        inputs: list[Value] = []
        while not self.accept(")"):
            inputs.append(self.value(values))
            self.accept(",")
        attributes: dict[str, Any] = {}
        if self.accept("{"):
            while not self.accept("}"):
                key = self.take("word")
                self.take(text="=")
                attributes[key] = self.attribute()
                self.accept(",")
        op = self.op(name, attributes, inputs, start)
        node = Node(op, tuple(inputs), [type for _, type in labels], (Span("<text>", line, "parse"),), "")
        for (label, _), value in zip(labels, node.outputs, strict=True):
            values[label] = value
        return node

    def op(self, name: str, attributes: dict[str, Any], inputs: list[Value], position: int) -> Op:
        """The op of that name; an error where it does not take these attributes or this many inputs."""
        entry = REGISTRY[name]
        try:
            if isinstance(entry, type):
                op: Op = entry(**attributes)
                inspect.signature(op.reference).bind(*inputs)
                return op
            wrong = set(entry.options) ^ (set(attributes) - {"present"})
            if wrong:
                raise TypeError(f"attributes {', '.join(sorted(wrong))} are missing or not known")
            composite = entry.op(**attributes)
            if sum(composite.present) != len(inputs):
                raise TypeError(f"takes {sum(composite.present)} inputs, received {len(inputs)}")
            return composite  # type: ignore[no-any-return]
        except TypeError as error:
            raise self.error(f"{name}: {error}", position) from None

    def attribute(self) -> Any:
        kind, text, _ = self.tokens[self.next] if self.next < len(self.tokens) else ("", "", 0)
        if text == "graph":
            return self.graph()
        self.next += 1
        if kind == "string":
            return json.loads(text)
        if kind == "number":
            return float(text) if re.search(r"[.en]", text) else int(text)
        if text in _WORDS:
            return _WORDS[text]
        if text in DType.by_name:
            return DType.by_name[text]
        if text == "(":
            items: list[Any] = []
            while not self.accept(")"):
                items.append(self.attribute())
                self.accept(",")
            return tuple(items)
        if text == "array":
            self.take(text="(")
            type = self.type()
            self.take(text=",")
            content = base64.b64decode(json.loads(self.take("string")))
            self.take(text=")")
            if len(content) != type.nbytes:
                raise self.error(
                    f"an array of type {type} has {type.nbytes} bytes, the text gives {len(content)}"
                )
            array = np.frombuffer(content, type.dtype.numpy).reshape(type.shape)
            array.flags.writeable = False
            return array
        if text == "elided":
            raise self.error("a constant was elided; print the graph with graph.text() to keep all of them")
        raise self.error(f"unexpected {text!r}")


_WORDS: dict[str, Any] = {"True": True, "False": False, "None": None}


def parse(text: str) -> Graph:
    """The graph that `graph.text()` printed; raises `GraphError` naming the line where the text is wrong."""
    parser = _Parser(text)
    graph = parser.graph()
    if parser.next < len(parser.tokens):
        raise parser.error(f"unexpected {parser.peek()!r} after the graph")
    return graph.verify()
