"""Axis rules of whole graphs: which output axes map to which input axes, derived from the primitives' rules."""

from __future__ import annotations

from thalweg.graph import AxisGroup, Graph

Place = tuple[int, int]  # (id of a value, axis)


class AxisClasses:
    """Axes of a graph's values joined where an op maps or reduces one to the other (union-find).

    `mixed` holds the roots of classes that some op uses in a way that no tiling may cut.
    """

    def __init__(self, graph: Graph) -> None:
        self.parent: dict[Place, Place] = {}
        self.mixed_places: list[Place] = []
        for value in graph.sources:
            self._add(id(value), len(value.shape))
        for node in graph.nodes:
            for value in node.outputs:
                self._add(id(value), len(value.shape))
            covered: set[Place] = set()
            for group in node.op.axes(*(value.type for value in node.inputs)):
                places = [(id(v), a) for v, a in zip(node.inputs, group.inputs, strict=True) if a is not None]
                places += [(id(v), a) for v, a in zip(node.outputs, group.outputs, strict=True) if a is not None]
                covered.update(places)
                for place in places[1:]:
                    self._join(places[0], place)
            for value in (*node.inputs, *node.outputs):
                for axis in range(len(value.shape)):
                    if (id(value), axis) not in covered:
                        self.mixed_places.append((id(value), axis))

    def _add(self, value: int, rank: int) -> None:
        for axis in range(rank):
            self.parent[value, axis] = (value, axis)

    def find(self, place: Place) -> Place:
        """The representative of an axis' class."""
        root = place
        while self.parent[root] != root:
            root = self.parent[root]
        while self.parent[place] != root:
            self.parent[place], place = root, self.parent[place]
        return root

    def _join(self, first: Place, second: Place) -> None:
        self.parent[self.find(first)] = self.find(second)


def graph_axes(graph: Graph) -> tuple[AxisGroup, ...]:
    """The axis rule of a graph as if it were one op: the classes that no node mixes."""
    classes = AxisClasses(graph)
    mixed = {classes.find(place) for place in classes.mixed_places}
    members: dict[Place, tuple[list[int | None], list[int | None]]] = {}
    usable: dict[Place, bool] = {}
    for side, values in enumerate((graph.inputs, graph.outputs)):
        for position, value in enumerate(values):
            for axis in range(len(value.shape)):
                root = classes.find((id(value), axis))
                if root in mixed:
                    continue
                entry = members.setdefault(root, ([None] * len(graph.inputs), [None] * len(graph.outputs)))
                if entry[side][position] is not None:  # one value has the class twice: cutting it would need a diagonal
                    usable[root] = False
                entry[side][position] = axis
    return tuple(
        AxisGroup(tuple(inputs), tuple(outputs))
        for root, (inputs, outputs) in members.items()
        if usable.get(root, True)
    )
