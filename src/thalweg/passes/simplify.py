"""Simplify: dead code, common subexpressions, constants, and algebra that changes no bit of any result.

In: a graph. Out: a graph with the same inputs, state and results, with at most as many operations. `prepare`
calls it before and after `legalise`; it is linear in the number of nodes.

Nodes are rebuilt in order, each through `Sweep.make`: it first looks whether the same op was applied to the
same values already, then asks the rules of `algebra`, then folds constants. What a rule builds goes through
`make` again, so that one sweep reaches nearly everything; a second one sees what the first made dead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg.errors import ThalwegError
from thalweg.graph import Graph, Kind, Node, Op, Value, add_lines, builder, located, remove_dead, rewrite
from thalweg.ops import elementwise
from thalweg.ops.control import Cond, Scan
from thalweg.ops.movement import Broadcast
from thalweg.ops.sources import Constant
from thalweg.passes import algebra, loops
from thalweg.passes.subgraphs import with_subgraphs
from thalweg.types import Type, type_of

_SWEEPS = 2


def simplify(graph: Graph) -> Graph:
    """The same results, bit for bit, from fewer nodes; sub-graphs are simplified too."""
    for number in range(_SWEEPS):
        sweep = Sweep(remove_dead(graph), descend=number == 0)
        graph = sweep.run()
        if not sweep.changed:
            break
    return remove_dead(graph)


class Sweep:
    """One pass over a graph without dead nodes. `changed` tells afterwards whether it did anything."""

    def __init__(self, graph: Graph, descend: bool) -> None:
        self.graph = graph
        self.descend = descend  # into sub-graphs
        self.changed = False
        self.node: Node  # the old node that is being rewritten
        self.table: dict[tuple[object, ...], tuple[Value, ...]] = {}  # (op, inputs) -> outputs
        self.used = {id(value) for node in graph.nodes for value in node.inputs}
        self.used.update([id(value) for value in graph.results])
        self.residual_forms = self._residual_forms()
        self.moved: set[int] = set()  # ids of old nodes of residual forms that an earlier place has taken

    def run(self) -> Graph:
        return rewrite(self.graph, self._rule)

    def _residual_forms(self) -> dict[tuple[object, ...], Node]:
        """For (op, inputs): the node of its residual form, where autodiff has appended that and the residuals
        are used.
        """
        found: dict[tuple[object, ...], Node] = {}
        for node in self.graph.nodes:
            plain = node.op.without_residuals()
            if plain is not None:
                count = len(plain.infer(*[value.type for value in node.inputs]))
                if any(id(value) in self.used for value in node.outputs[count:]):
                    found.setdefault((plain.key(), *map(id, node.inputs)), node)
        return found

    def _rule(self, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
        self.node = node
        op = node.op
        if self.residual_forms:
            # Autodiff appends residual forms behind the forward nodes: they move to the place of the plain
            # ones.
            form = self.residual_forms.get((op.key(), *map(id, node.inputs)))
            if form is not None:
                self.changed = True
                self.moved.add(id(form))
                return self.make(self._descended(form.op), inputs)[: len(node.outputs)]
        if len(node.outputs) > 1 and id(node) not in self.moved:
            narrowed = self._narrowed(op, node, inputs)
            if narrowed is not None:
                return narrowed
        return self.make(self._descended(op), inputs, [value.type for value in node.outputs])

    def _descended(self, op: Op) -> Op:
        return with_subgraphs(op, simplify) if self.descend else op

    def _narrowed(self, op: Op, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        """A smaller op where some outputs are not used: their places are filled with values that nobody
        reads.
        """
        used = [id(value) in self.used for value in node.outputs]
        found = None if all(used) else op.narrowed(used, *[value.type for value in inputs])
        if found is None:
            return None
        self.changed = True
        outputs = self.make(self._descended(found.op), tuple([inputs[position] for position in found.inputs]))
        return [
            Value(value.type) if position is None else outputs[position]
            for value, position in zip(node.outputs, found.outputs, strict=True)
        ]

    def make(
        self, op: Op, inputs: tuple[Value, ...], types: Sequence[Type] | None = None
    ) -> tuple[Value, ...]:
        """The outputs of `op`: those of an equal application before, what a rule makes of it, or those of a
        new node.

        `types` are the outputs' where they are known already.
        """
        places = [id(value) for value in inputs]
        if type(op) in algebra.COMMUTATIVE:
            places.sort()
        key = (op.key(), *places)
        known = self.table.get(key)
        if known is not None:
            self.changed = True
            for value in known[:1]:
                if value.node is not None:
                    add_lines(value.node, self.node.where)
            return known
        outputs = self._replaced(op, inputs)
        if outputs is not None:
            self.changed = True
        elif types is None:
            outputs = builder().apply(op, inputs)
        else:
            outputs = builder().append(Node(op, inputs, types, self.node.where, self.node.scope))
        self.table[key] = outputs
        return outputs

    def make_one(self, op: Op, *inputs: Value) -> Value:
        """`make` for an op with one output: what rules call."""
        return self.make(op, inputs)[0]

    def make_copy(self, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        """`make` for a node of a sub-graph, which keeps its source lines."""
        outside, self.node = self.node, node
        with located(node.where, node.scope):
            outputs = self.make(node.op, inputs, [value.type for value in node.outputs])
        self.node = outside
        return outputs

    def simplified(self, graph: Graph) -> Graph:
        """A sub-graph that a rule has changed, simplified."""
        return simplify(graph)

    def _replaced(self, op: Op, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
        constants = constant_inputs(inputs)
        if constants is not None:
            folded = fold(op, constants)
            if folded is not None:
                return tuple([self.make_one(Constant(array)) for array in folded])
        if isinstance(op, (Scan, Cond)):
            return loops.rewritten(self, op, inputs)
        for rule in algebra.rules(op):
            found = rule(self.make_one, op, inputs)
            if found is not None:
                return (found,)
        return None


# ---- constants ---------------------------------------------------------------------------------------------

_LARGEST_FOLDED = 4096  # elements that a constant may have if its inputs are smaller

# Every backend computes these in its own way. Folded by NumPy their bits would depend on the machine that
# compiles.
_NOT_CORRECTLY_ROUNDED = (
    elementwise.Exp,
    elementwise.Expm1,
    elementwise.Log,
    elementwise.Log1p,
    elementwise.Rsqrt,
    elementwise.Sin,
    elementwise.Cos,
    elementwise.Tanh,
    elementwise.Atan,
    elementwise.Erf,
    elementwise.Power,
)


def constant_inputs(inputs: tuple[Value, ...]) -> list[np.ndarray[Any, Any]] | None:
    """The arrays of the inputs if all of them are constants and there is one."""
    arrays = []
    for value in inputs:
        if value.node is None or type(value.node.op) is not Constant:
            return None
        arrays.append(value.node.op.value)
    return arrays or None


def fold(op: Op, arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]] | None:
    """The results of `op`, computed now by its reference, or None where it must run later.

    Only what every backend computes to the same bits is folded: elementwise arithmetic, movement, reductions
    of integers. Broadcasts stay: they cost nothing where they are read and their results are large.
    """
    floating = any(array.dtype.kind not in "biu" for array in arrays)
    if op.kind > Kind.REDUCTION or isinstance(op, Broadcast) or (op.kind is Kind.REDUCTION and floating):
        return None
    if isinstance(op, _NOT_CORRECTLY_ROUNDED) and floating:
        return None
    types = op.infer(*[type_of(array) for array in arrays])
    limit = max(_LARGEST_FOLDED, sum(array.size for array in arrays))
    if sum(type.size for type in types) > limit:
        return None
    try:
        with np.errstate(all="ignore"):
            results = op.reference(*arrays)
    except ThalwegError:  # it fails when it runs, with the user's line, if it runs at all
        return None
    results = results if isinstance(results, tuple) else (results,)
    folded = [np.array(result, order="C") for result in results]
    for array in folded:
        array.flags.writeable = False
    return folded
