"""Axis rules of whole graphs: which output axes map to which input axes by the rules of their nodes."""

from __future__ import annotations

from collections.abc import Sequence

from thalweg.graph import AxisGroup, Graph, Node, Value

Place = tuple[int, int]  # (id of a value, axis)


class AxisClasses:
    """Axes of the values of graphs, joined where an op maps or reduces one to the other (union-find).

    `mixed_places` lie in classes that some op uses in a way that no tiling may cut, `reduced_places` in
    classes that some op reduces.
    """

    def __init__(self, *graphs: Graph) -> None:
        self.parent: dict[Place, Place] = {}
        self.mixed_places: list[Place] = []
        self.reduced_places: list[Place] = []
        for graph in graphs:
            for value in graph.sources:
                self._add(value)
            for node in graph.nodes:
                self._add_node(node)

    def _add(self, value: Value) -> None:
        for place in self.places(value):
            self.parent[place] = place

    def _add_node(self, node: Node) -> None:
        for value in node.outputs:
            self._add(value)
        covered: set[Place] = set()
        for group in node.op.axes(*(value.type for value in node.inputs)):
            inputs = [(id(v), a) for v, a in zip(node.inputs, group.inputs, strict=True) if a is not None]
            outputs = [(id(v), a) for v, a in zip(node.outputs, group.outputs, strict=True) if a is not None]
            places = inputs + outputs
            covered.update(places)
            if not outputs:
                self.reduced_places.extend(inputs)
            for place in places[1:]:
                self.join(places[0], place)
        for value in (*node.inputs, *node.outputs):
            self.mixed_places.extend(place for place in self.places(value) if place not in covered)

    def places(self, value: Value) -> list[Place]:
        """One place for each axis of a value."""
        return [(id(value), axis) for axis in range(value.ndim)]

    def find(self, place: Place) -> Place:
        """The representative of an axis' class."""
        root = place
        while self.parent[root] != root:
            root = self.parent[root]
        while self.parent[place] != root:
            self.parent[place], place = root, self.parent[place]
        return root

    def join(self, first: Place, second: Place) -> None:
        """Let two axes be of one class."""
        self.parent[self.find(first)] = self.find(second)

    def groups(
        self, inputs: Sequence[Sequence[Place | None]], outputs: Sequence[Sequence[Place | None]]
    ) -> tuple[AxisGroup, ...]:
        """The axis rule of an op with these inputs and outputs: for each of their axes its place, or None
        (mixed).

        A class that is reduced anywhere is a group only if no output has it: softmax reduces its axis and has
        it in the result, which therefore depends on the whole axis.
        """
        unusable = {self.find(place) for place in self.mixed_places}
        reduced = {self.find(place) for place in self.reduced_places}
        members: dict[Place, tuple[list[int | None], list[int | None]]] = {}
        for side, listed in enumerate((inputs, outputs)):
            for position, places in enumerate(listed):
                for axis, place in enumerate(places):
                    if place is None:
                        continue
                    root = self.find(place)
                    entry = members.setdefault(root, ([None] * len(inputs), [None] * len(outputs)))
                    if entry[side][position] is not None or (side == 1 and root in reduced):
                        unusable.add(root)  # twice in one value: cutting it would need a diagonal
                    entry[side][position] = axis
        return tuple(
            AxisGroup(tuple(found[0]), tuple(found[1]))
            for root, found in members.items()
            if root not in unusable
        )


def graph_axes(graph: Graph) -> tuple[AxisGroup, ...]:
    """The axis rule of a graph as if it were one op."""
    classes = AxisClasses(graph)
    return classes.groups(
        [classes.places(value) for value in graph.inputs], [classes.places(value) for value in graph.outputs]
    )
