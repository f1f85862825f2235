"""Plans of users' functions: besides the facts, what they are for another batch and how they fit.

In: a compiled function and the arguments of a call. Out: `FunctionPlan`. `Compiled.plan` makes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from thalweg.config import settings
from thalweg.errors import ArgumentError, MemoryLimitError, ThalwegError
from thalweg.graph import Graph
from thalweg.plan import Plan, Target
from thalweg.plan.sizes import bytes_of
from thalweg.types import Type

if TYPE_CHECKING:
    from thalweg.schedule.fit import Fit

LARGEST = 1 << 20  # samples: what fits beyond that is no question of the batch


class FunctionPlan(Plan):
    """The plan of a function for certain arguments, that can be made for other sizes of the batch."""

    __slots__ = ("fitted", "step")

    step: Step
    fitted: Fit | None  # what `compile(memory_limit=...)` has changed

    @classmethod
    def of(cls, step: Step) -> FunctionPlan:
        """The plan that runs for a step's arguments."""
        plan, fitted = step.planned()
        found = cls(**{field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)})
        found.step, found.fitted = step, fitted
        return found

    @property
    def batch_size(self) -> int | None:
        """Samples in the arguments; None where no axis counts them."""
        return self.step.batch

    def fit(self, memory: str | int, threads: int | None = None) -> Fit:
        """The same step for the same batch in at most that much memory ("2GB", "512MiB", a number of bytes).

        Values of the forward pass are computed again in the backward pass, and the batch runs in parts whose
        gradients are added, so that it fits at the least extra time. The result says what was changed and has
        the `plan`; `tw.compile(memory_limit=...)` runs it. Raises `MemoryLimitError` saying what would fit.
        """
        return self.step.fit(bytes_of(memory), threads or settings.threads())

    def largest_batch(self, memory: str | int, threads: int | None = None) -> int:
        """The largest number of samples with which the step, as it is, fits into that much memory.

        Raises `MemoryLimitError` where not even one sample fits.
        """
        limit, count = bytes_of(memory), threads or settings.threads()
        if self.step.batch is None:
            raise ArgumentError(f"{self.graph.name} has no argument with an axis that counts samples")

        def fits(batch: int) -> bool:
            return self.step.plan(batch).total_bytes(count) <= limit

        low, high = 0, self.step.batch
        while high <= LARGEST and fits(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        if low:
            return low
        least = self.step.plan(1).total_bytes(count)
        threads_text = f"{count} thread{'s' * (count > 1)}"
        raise MemoryLimitError(
            f"{self.graph.name} needs {least:,} bytes with {threads_text} for a batch of one sample; the "
            f"limit is {limit:,}. Write memory={least}, or plan.fit(memory={limit}) for the given batch in "
            "parts",
            least,
        )

    def bytes_by_batch(self, sizes: Sequence[int] | None = None, threads: int | None = None) -> BatchBytes:
        """The bytes that the step needs, as a polynomial in the size of the batch, checked by exact plans.

        `sizes`: where to check it (at least three; None: multiples of the present size). Sizes are rounded up
        to whole vectors of samples in places, so that between the checked ones the polynomial may be off.
        """
        if self.step.batch is None:
            raise ArgumentError(f"{self.graph.name} has no argument with an axis that counts samples")
        chosen = sorted(set(sizes or [self.step.batch * n for n in (1, 2, 3, 4, 6)]))
        if len(chosen) < 3 or chosen[0] < 1:
            raise ArgumentError(f"sizes are at least three different positive numbers, received {sizes!r}")
        count = threads or settings.threads()
        return BatchBytes({size: self.step.plan(size).total_bytes(count) for size in chosen})


class BatchBytes:
    """Bytes by size of the batch: exact points, and the line or parabola through them.

    `points` has the exact bytes; `coefficients` those of 1, B and B^2; `exact` tells whether the polynomial
    goes through all points, `error` how far it is off at most, as a share.
    """

    def __init__(self, points: dict[int, int]) -> None:
        self.points = points
        sizes = sorted(points)
        first, middle, last = sizes[0], sizes[len(sizes) // 2], sizes[-1]
        self.coefficients = _through([(size, points[size]) for size in (first, middle, last)])
        misses = [abs(self(size) - nbytes) / max(nbytes, 1) for size, nbytes in points.items()]
        self.error = max(misses)
        self.exact = self.error == 0

    def __call__(self, batch: int) -> int:
        """Bytes for a batch of that size: exact at the points, else by the polynomial."""
        constant, linear, square = self.coefficients
        return round(constant + linear * batch + square * batch * batch)

    def __str__(self) -> str:
        constant, linear, square = self.coefficients
        text = f"{constant:,.0f} + {linear:,.0f} B" + (f" {square:+,.3g} B^2" if square else "")
        how = "exact" if self.exact else f"within {self.error:.2%}"
        return (
            f"{text} bytes for a batch of B samples ({how} at B = {', '.join(map(str, sorted(self.points)))})"
        )


def _through(points: Sequence[tuple[int, int]]) -> tuple[float, float, float]:
    """The polynomial of degree 2 through three points (Newton's form)."""
    (x0, y0), (x1, y1), (x2, y2) = points
    slope = (y1 - y0) / (x1 - x0)
    square = ((y2 - y1) / (x2 - x1) - slope) / (x2 - x0)
    if abs(square) * x2 * x2 < 1e-9 * max(abs(y2), 1):
        square = 0.0
    linear = slope - square * (x0 + x1)
    return y0 - linear * x0 - square * x0 * x0, linear, square


class Step:
    """A traced function that can be traced for another batch."""

    def __init__(
        self, graph: Graph, leaves: Sequence[Type], traced: Callable[[Sequence[Type]], Graph], options: Any
    ) -> None:
        self.graph = graph
        self.leaves = leaves  # types of the arguments' arrays
        self.traced = traced
        self.options = options
        self.axes = batch_axes(leaves)
        found = {type.shape[axis] for type, axis in zip(leaves, self.axes, strict=True) if axis is not None}
        self.batch: int | None = found.pop() if found else None

    def at(self, batch: int) -> Graph:
        """The graph of the function for another number of samples."""
        if batch == self.batch:
            return self.graph
        types = [
            type if axis is None else Type(type.dtype, (*type.shape[:axis], batch, *type.shape[axis + 1 :]))
            for type, axis in zip(self.leaves, self.axes, strict=True)
        ]
        try:
            return self.traced(types)
        except ThalwegError as error:
            raise ArgumentError(
                f"the function cannot be traced for a batch of {batch} instead of {self.batch}: {error}"
            ) from error

    @property
    def target(self) -> Target:
        from thalweg.codegen.c.support import support

        return Target(support(), self.options.target, winograd=self.options.winograd)

    def prepared(self, batch: int | None = None) -> Graph:
        from thalweg.passes.pipeline import prepare

        graph = self.graph if batch is None else self.at(batch)
        return prepare(graph, self.target.support.takes)

    def plan(self, batch: int | None = None) -> Plan:
        """The plan that runs for so many samples (None: as many as the arguments have)."""
        return self.planned(batch)[0]

    def planned(self, batch: int | None = None) -> tuple[Plan, Fit | None]:
        """The plan that runs for so many samples, and what a limit of memory has changed."""
        options = self.options
        if options.memory_limit is not None:
            fitted = self.fit(options.memory_limit, options.threads or settings.threads(), batch)
            return fitted.plan, fitted
        from thalweg.passes.microbatch import microbatch
        from thalweg.schedule import schedule

        graph, size = self.prepared(batch), batch or self.batch
        if options.accumulate > 1:
            if size is None or size % options.accumulate:
                raise ArgumentError(
                    f"accumulate={options.accumulate} does not divide the batch of {size} samples; choose a "
                    "batch that is a multiple of it"
                )
            part = self.prepared(size // options.accumulate)
            graph = microbatch(graph, part, options.accumulate)
        return schedule(graph, self.target), None

    def fit(self, limit: int, threads: int, batch: int | None = None) -> Fit:
        from thalweg.schedule.fit import fit

        size = batch or self.batch
        resized = None if size is None else lambda count: self.prepared(size // count)
        return fit(self.prepared(batch), self.target, limit, threads, size, resized, self.options.accumulate)


def batch_axes(leaves: Sequence[Type]) -> list[int | None]:
    """The axis of each array that counts samples, by the extents: that of axis 0 of some array which most
    arrays have on one of their first two axes, the first array's where several do."""
    candidates = dict.fromkeys(type.shape[0] for type in leaves if type.shape)
    if not candidates:
        return [None] * len(leaves)
    counts = {extent: sum(extent in type.shape[:2] for type in leaves) for extent in candidates}
    chosen = max(candidates, key=lambda extent: counts[extent])
    return [type.shape.index(chosen) if chosen in type.shape[:2] else None for type in leaves]
