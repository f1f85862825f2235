"""Reverse-mode differentiation: graph in, graph out. There is no op name in this file.

`vjp` walks the nodes between outputs and inputs backwards and appends, for each, the nodes of its
gradient rule to the current builder. Because the result is an ordinary graph, gradients of gradients need
nothing further.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from thalweg.graph import Graph, Node, Value, apply, inline, located, remove_dead, trace_graph
from thalweg.ops.core import Composite
from thalweg.ops.elementwise import add
from thalweg.ops.sources import full
from thalweg.types import Type


def path_nodes(outputs: Sequence[Value], wrt: Sequence[Value], boundary: Sequence[Value] = ()) -> list[Node]:
    """Nodes on some path from `wrt` to `outputs`, inputs first. The search does not look behind
    `boundary`."""
    targets = {id(value) for value in wrt}
    closed = {id(value) for value in boundary}
    depends: dict[int, bool] = {}  # id(node) -> is it reached from wrt
    order: list[Node] = []
    stack: list[tuple[Node, bool]] = [
        (v.node, False) for v in outputs if v.node is not None and id(v) not in closed
    ]
    while stack:
        node, children_done = stack.pop()
        if children_done:
            reached = any(
                id(v) in targets
                or (v.node is not None and id(v) not in closed and depends.get(id(v.node), False))
                for v in node.inputs
            )
            depends[id(node)] = reached
            if reached:
                order.append(node)
        elif id(node) not in depends:
            depends[id(node)] = False
            stack.append((node, True))
            for value in node.inputs:
                if value.node is not None and id(value) not in closed and id(value.node) not in depends:
                    stack.append((value.node, False))
    return order


def vjp(
    outputs: Sequence[Value],
    cotangents: Sequence[Value | None],
    wrt: Sequence[Value],
    boundary: Sequence[Value] = (),
) -> list[Value | None]:
    """For each of `wrt`, the sum over outputs of cotangent times derivative; None where no path leads to it.

    New nodes go to the current builder and carry the source lines and module paths of the nodes that they
    differentiate; " gradient" behind the path tells texts, plans and drawings what they are.
    """
    gradients: dict[int, Value] = {}

    def accumulate(value: Value, gradient: Value | None) -> None:
        if gradient is None or not value.dtype.is_floating:
            return
        known = gradients.get(id(value))
        gradients[id(value)] = gradient if known is None else add(known, gradient)

    for value, cotangent in zip(outputs, cotangents, strict=True):
        accumulate(value, cotangent)
    order = path_nodes(outputs, wrt, boundary)
    wanted = {id(value) for value in wrt}
    wanted |= {id(v) for node in order for v in node.outputs} - {id(value) for value in boundary}
    for node in reversed(order):
        received = [gradients.get(id(value)) for value in node.outputs]
        if all(gradient is None for gradient in received):
            continue
        with located(node.where, f"{node.scope} gradient".lstrip()):
            for value, gradient in zip(node.inputs, _node_vjp(node, received), strict=True):
                if callable(gradient):  # dear enough to be made only where something depends on it
                    gradient = gradient() if id(value) in wanted else None
                accumulate(value, gradient)
    return [gradients.get(id(value)) for value in wrt]


def _node_vjp(node: Node, received: Sequence[Value | None]) -> Sequence[Value | None]:
    """Gradients of one node's inputs. Composites use their rule, if any, else their body."""
    op = node.op
    outputs: Sequence[Value] = node.outputs
    if isinstance(op, Composite):
        plain = op.without_residuals()
        if plain is not None and plain.definition.gradient_rule is not None:
            # The node computes its residuals already (eager history). A cotangent of a residual, which second
            # derivatives have, is beyond the rule: then the body is differentiated.
            count = len(plain.infer(*(value.type for value in node.inputs)))
            if all(gradient is None for gradient in received[count:]):
                return plain.vjp(node.inputs, outputs, _filled(outputs[:count], received))
        if op.definition.gradient_rule is None:
            return _body_vjp(op, node.inputs, received)
        residual_form = op.with_residuals()
        if residual_form is not None:
            outputs = apply(residual_form, node.inputs)
    if op.partial_cotangents:
        return op.vjp(node.inputs, outputs, received)
    return op.vjp(node.inputs, outputs, _filled(node.outputs, received))


def _filled(outputs: Sequence[Value], received: Sequence[Value | None]) -> list[Value]:
    return [zeros_like(v) if g is None else g for v, g in zip(outputs, received, strict=False)]


def _body_vjp(op: Composite, inputs: Sequence[Value], received: Sequence[Value | None]) -> list[Value | None]:
    """Gradients of a composite's inputs through its body, as nodes in the current builder."""
    given = tuple(gradient is not None for gradient in received)
    graph, found = _body_gradient(op, tuple(value.type for value in inputs), given)
    cotangents = [gradient for gradient in received if gradient is not None]
    results = iter(inline(graph, [*inputs, *cotangents]))
    return [next(results) if exists else None for exists in found]


@lru_cache(maxsize=4096)
def _body_gradient(
    op: Composite, inputs: tuple[Type, ...], given: tuple[bool, ...]
) -> tuple[Graph, tuple[bool, ...]]:
    return gradient_graph(op.body(*inputs), given)


def gradient_graph(graph: Graph, given: Sequence[bool]) -> tuple[Graph, tuple[bool, ...]]:
    """The graph (inputs, cotangents of the `given` outputs) -> gradients of `graph`, and which inputs
    have one.

    A graph of its own, so that it does not matter whether the current builder keeps the nodes of what it
    computes.
    """
    found: list[bool] = []
    count = len(graph.inputs)

    def build(*values: Value) -> list[Value]:
        cotangents = iter(values[count:])
        results = inline(graph, values[:count])
        gradients = vjp(results, [next(cotangents) if exists else None for exists in given], values[:count])
        found.extend(gradient is not None for gradient in gradients)
        return [gradient for gradient in gradients if gradient is not None]

    sources = [*graph.inputs, *(value for value, exists in zip(graph.outputs, given, strict=True) if exists)]
    traced = trace_graph(build, [value.type for value in sources], f"{graph.name}_gradient")
    return remove_dead(traced), tuple(found)


def zeros_like(value: Value) -> Value:
    """Zeros of the same type, as a broadcast constant."""
    return full(value.shape, 0, value.dtype)  # type: ignore[no-any-return]
