"""Fusion: the legalised graph cut into kernels.

Elementwise and movement nodes are *pulled*: a kernel computes, for each element of its roots, the
expression that leads back to values in memory. A node's value is stored (it is a root of some kernel)
where it is a result, where an op needs its operand in memory, or where pulling it would compute it
several times. Roots of one shape that feed each other share a kernel; a reduction or contraction takes
the elementwise nodes behind it as its epilogue.
"""

from __future__ import annotations

from collections.abc import Iterable

from thalweg.graph import Graph, Kind, Node, Value
from thalweg.ops.sources import Constant
from thalweg.plan import Kernel, Support

EXPENSIVE = 2  # elementwise nodes that may be computed again by each reader of a value instead of storing it

SCALAR = 6  # cost up to which a single number is computed by each of its readers, once per loop


def is_array(node: Node) -> bool:
    """Is the node a constant that needs memory of its own?"""
    return isinstance(node.op, Constant) and node.op.value.size != 1


class Fusion:
    """Decides what is stored, then groups roots into kernels."""

    def __init__(self, graph: Graph, support: Support) -> None:
        self.graph = graph
        self.support = support
        self.users = graph.users()
        self.position = {id(node): number for number, node in enumerate(graph.nodes)}
        self.results = {id(value) for value in graph.results}
        self.sources = {id(value) for value in graph.sources}
        self.stored: set[int] = set()  # ids of values that lie in memory
        self.alias: dict[int, Value] = {}  # id of a reshape's value -> the stored value whose bytes it has
        self.weight: dict[int, int] = {}  # id(value) -> elementwise nodes computed when it is pulled
        self.updates = self._updates()
        self._decide()

    def is_pulled(self, node: Node) -> bool:
        """Is the node computed element by element inside its readers?"""
        return node.op.name in self.support.pulled and not is_array(node) and id(node) not in self.updates

    def _updates(self) -> set[int]:
        """Ids of the nodes that make a state's new value by replacing a window of the old one, which nothing
        else reads: kernels that store the window only, in place."""
        if "dynamic_update_slice" not in self.support.looping:
            return set()
        found: set[int] = set()
        for entry in self.graph.state:
            node = entry.after.node if entry.after is not None else None
            if node is None or node.op.name != "dynamic_update_slice" or node.inputs[0] is not entry.before:
                continue
            alone = len(self.users[id(entry.before)]) == 1
            if alone and all(value is not entry.before for value in node.inputs[1:]):
                found.add(id(node))
        return found

    def _decide(self) -> None:
        for node in self.graph.nodes:
            if not self.is_pulled(node):
                self.stored.update(id(value) for value in node.outputs)
                continue
            value = node.outputs[0]
            own = node.op.cost if node.op.kind is Kind.ELEMENTWISE or node.op.cost > 1 else 0
            if self.updates and node.op.checked:  # computed again later, it would hold up the updates
                own = EXPENSIVE
            weight = own + sum(self.weight.get(id(v), 0) for v in node.inputs if id(v) not in self.stored)
            self.weight[id(value)] = weight
            if self._must_store(node, value, weight):
                self._store_under(node)
                base = self._base(node)
                if base is not None and id(value) not in self.results:
                    self.alias[id(value)] = base
                self.stored.add(id(value))

    def _store_under(self, node: Node) -> None:
        """Store what a reshape looks at in its own shape: there it can be the epilogue of a product."""
        x = node.inputs[0] if node.op.name == "reshape" and id(node.outputs[0]) not in self.results else None
        if x is None or x.node is None or id(x) in self.stored or not self.is_pulled(x.node):
            return
        if x.node.op.kind is Kind.ELEMENTWISE and x.size > 1:
            self.stored.add(id(x))

    def _base(self, node: Node) -> Value | None:
        """The value in memory that a reshape only looks at in another shape."""
        if node.op.name != "reshape":
            return None
        x = self.alias.get(id(node.inputs[0]), node.inputs[0])
        return (
            x
            if id(x) in self.stored or id(x) in self.sources or (x.node is not None and is_array(x.node))
            else None
        )

    def _must_store(self, node: Node, value: Value, weight: int) -> bool:
        if id(value) in self.results:
            return True
        users = self.users.get(id(value), [])
        if any(not self.is_pulled(user) and user.op.name not in self.support.looping for user in users):
            return True
        if weight == 0:
            return False
        if value.size == 1 and weight <= SCALAR:
            return False
        if len(users) > 1 and weight >= EXPENSIVE:
            return True
        return any(user.op.kind is Kind.MOVEMENT and self._repeats(user, value) for user in users)

    def _repeats(self, user: Node, value: Value) -> bool:
        """Does pulling `value` through this movement compute its elements more than once?"""
        return user.op.name == "gather" or user.outputs[0].size > value.size

    # ---- kernels -----------------------------------------------------------------------------------------

    def inside(self, roots: Iterable[Value], anchor: Node | None) -> tuple[list[Node], list[Value]]:
        """Nodes computed to get `roots`, in graph order, and the stored values that they read."""
        own = {id(v) for v in anchor.outputs} if anchor is not None else set()
        root_ids = {id(v) for v in roots}
        nodes: dict[int, Node] = {}
        reads: dict[int, Value] = {}
        stack = list(roots)
        if anchor is not None:
            nodes[id(anchor)] = anchor
            stack += anchor.inputs
        seen: set[int] = set()
        while stack:
            value = stack.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if id(value) in own:
                continue
            computed_here = id(value) in root_ids or (
                id(value) not in self.stored and id(value) not in self.sources
            )
            if value.node is None or not computed_here:
                base = self.alias.get(id(value), value)
                reads[id(base)] = base
                continue
            nodes[id(value.node)] = value.node
            stack.extend(value.node.inputs)
        return sorted(nodes.values(), key=lambda n: self.position[id(n)]), list(reads.values())

    def kernels(self) -> list[Kernel]:
        """All kernels in an order in which they can run."""
        groups: list[_Group] = []
        owner: dict[int, _Group] = {}
        for node in self.graph.nodes:
            if is_array(node):
                continue
            if self.is_pulled(node):
                value = node.outputs[0]
                if id(value) not in self.stored or id(value) in self.alias:
                    continue
                group = _Group([value], None, len(groups))
            else:
                group = _Group(list(node.outputs), node, len(groups))
            groups.append(group)
            for value in group.roots:
                owner[id(value)] = group
        for group in groups:
            self._link(group, owner)
        for group in groups:
            if group.anchor is None:
                producer = self._producer_to_join(group, owner)
                if producer is not None:
                    producer.absorb(group, groups)
        alive = [group for group in groups if group.merged_into is None]
        wanted = {id(v) for group in alive for v in self.inside(group.roots, group.anchor)[1]}
        return [self._kernel(group, wanted) for group in _ordered(alive)]

    def _link(self, group: _Group, owner: dict[int, _Group]) -> None:
        _, reads = self.inside(group.roots, group.anchor)
        for value in reads:
            producer = owner.get(id(value))
            if producer is not None and producer is not group:
                group.producers[id(producer)] = producer
                group.needs |= producer.needs | producer.members

    def _producer_to_join(self, group: _Group, owner: dict[int, _Group]) -> _Group | None:
        """The kernel that computes an operand of a pure elementwise kernel at the same indices, if they can
        be one."""
        candidates = {
            id(owner[id(v)].top()): owner[id(v)].top() for v in self._aligned_reads(group) if id(v) in owner
        }
        for producer in candidates.values():
            if producer is group or not self._accepts_epilogue(producer, group):
                continue
            if self._reads_elsewhere(group, producer):
                continue
            others = [p.top() for p in group.producers.values() if p.top() is not producer]
            if any(other.waits_for(producer) for other in others):
                continue
            waits = any(not producer.waits_for(other) for other in others)
            if waits and self._read_by_others(producer, group):
                continue  # what else reads the producer would wait for the other operands too
            return producer
        return None

    def _read_by_others(self, producer: _Group, group: _Group) -> bool:
        """Does any other kernel read what `producer` computes?"""
        inside = {id(n) for g in (producer, group) for n in self.inside(g.roots, g.anchor)[0]}
        return any(id(user) not in inside for v in producer.roots for user in self.users.get(id(v), []))

    def _accepts_epilogue(self, producer: _Group, group: _Group) -> bool:
        if producer.shape != group.shape:
            return False
        return producer.anchor is None or producer.anchor.op.name in self.support.epilogue

    def _aligned_reads(self, group: _Group) -> list[Value]:
        """Stored values that the group reads at the index of the root itself (through elementwise nodes
        only)."""
        found: dict[int, Value] = {}
        stack = list(group.roots)
        seen: set[int] = set()
        roots = {id(v) for v in group.roots}
        while stack:
            value = stack.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if id(value) in self.alias:
                continue
            if (id(value) in self.stored and id(value) not in roots) or value.node is None:
                found[id(value)] = value
            elif value.node.op.kind is Kind.ELEMENTWISE:
                stack.extend(value.node.inputs)
        return list(found.values())

    def _reads_elsewhere(self, group: _Group, producer: _Group) -> bool:
        """Does the group read what `producer` computes at another index than its own? Inside one kernel
        only the element at hand exists."""
        made = {id(v) for v in (*producer.roots, *(producer.anchor.outputs if producer.anchor else ()))}
        roots = {id(v) for v in group.roots}
        stack = [(root, False) for root in group.roots]
        seen: set[tuple[int, bool]] = set()
        while stack:
            value, moved = stack.pop()
            if (id(value), moved) in seen:
                continue
            seen.add((id(value), moved))
            if id(value) in self.alias:
                value, moved = self.alias[id(value)], True
            if moved and id(value) in made:
                return True
            if value.node is not None and (id(value) not in self.stored or id(value) in roots):
                moved = moved or value.node.op.kind is not Kind.ELEMENTWISE
                stack.extend((v, moved) for v in value.node.inputs)
        return False

    def _kernel(self, group: _Group, wanted: set[int]) -> Kernel:
        """A group as a kernel; roots that no other kernel reads (`wanted`) need no memory."""
        opaque = group.anchor is not None and group.anchor.op.kind is Kind.OPAQUE  # it writes all its outputs
        roots = [v for v in group.roots if opaque or id(v) in self.results or id(v) in wanted]
        if not roots:  # nothing reads it: an op kept for its check
            roots = group.roots[:1]
        nodes, reads = self.inside(group.roots, group.anchor)
        kind = "loops" if group.anchor is None else group.anchor.op.name
        operations = sum(
            node.op.operations([v.type for v in node.inputs], [v.type for v in node.outputs])
            for node in nodes
        )
        traffic = sum(v.type.nbytes for v in (*reads, *roots))
        if group.anchor is not None and id(group.anchor) in self.updates:
            traffic = 2 * group.anchor.inputs[1].type.nbytes
        return Kernel(kind, roots, nodes, reads, group.anchor, operations=operations, traffic=traffic)


class _Group:
    """A kernel in the making."""

    def __init__(self, roots: list[Value], anchor: Node | None, number: int) -> None:
        self.roots = roots
        self.anchor = anchor
        self.producers: dict[int, _Group] = {}
        self.merged_into: _Group | None = None
        # Sets of groups as the bits of one number: a question about them costs nothing, even with thousands.
        self.members = 1 << number  # the groups that this one is made of
        self.needs = 0  # the groups that it depends on, directly or not

    def top(self) -> _Group:
        group = self
        while group.merged_into is not None:
            group = group.merged_into
        return group

    @property
    def shape(self) -> tuple[int, ...]:
        return self.roots[0].shape

    def waits_for(self, other: _Group) -> bool:
        """Does this group depend on another one (or is it the same)?"""
        return other is self or bool(self.needs & other.members)

    def absorb(self, group: _Group, groups: list[_Group]) -> None:
        """Make `group` a part of this one; whatever depends on either then depends on both."""
        self.roots.extend(group.roots)
        for other in group.producers.values():
            if other.top() is not self:
                self.producers[id(other.top())] = other.top()
        group.merged_into = self
        self.members |= group.members
        self.needs = (self.needs | group.needs) & ~self.members
        gained = self.needs | self.members
        for other in groups:
            if other.needs & self.members:
                other.needs |= gained


def _ordered(groups: list[_Group]) -> list[_Group]:
    """Producers before consumers, otherwise in the order given."""
    done: set[int] = set()
    result: list[_Group] = []
    for start in groups:
        stack: list[tuple[_Group, bool]] = [(start, False)]
        while stack:
            group, ready = stack.pop()
            if id(group) in done:
                continue
            if ready:
                done.add(id(group))
                result.append(group)
                continue
            stack.append((group, True))
            stack.extend(
                (p.top(), False)
                for p in group.producers.values()
                if id(p.top()) not in done and p.top() is not group
            )
    return result
