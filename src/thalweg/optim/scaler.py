"""`GradScaler`: training in float16, whose small gradients would become zero.

In: an optimiser and a loss. Out: one step, or none where a gradient is not finite. Everything happens in the
graph: a compiled step needs no look at the gradients from Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from thalweg import types
from thalweg.errors import ArgumentError
from thalweg.graph import module_scope
from thalweg.nn.state import check_entries
from thalweg.ops.core import cast
from thalweg.ops.elementwise import equal, isfinite, logical_and, stop_gradient, where
from thalweg.ops.reduction import all as reduce_all
from thalweg.optim.optimizer import Optimizer
from thalweg.tensor.gradient import gradient, gradients_where_used, no_grad, release
from thalweg.tensor.state import Buffer

Array = np.ndarray[Any, Any]


class GradScaler:
    """Dynamic loss scaling (Micikevicius et al., 2018); names and defaults are PyTorch's.

    The loss is multiplied by a scale, the gradients are divided by it. A step with a gradient that is not
    finite changes nothing but the scale, which becomes `backoff_factor` times as large; after
    `growth_interval` steps in a row without such a gradient it becomes `growth_factor` times as large.
    """

    def __init__(
        self,
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        if not init_scale > 0 or not growth_factor > 1 or not 0 < backoff_factor < 1 or growth_interval < 1:
            raise ArgumentError(
                "GradScaler needs init_scale > 0, growth_factor > 1, 0 < backoff_factor < 1 and "
                f"growth_interval >= 1, received {init_scale}, {growth_factor}, {backoff_factor} and "
                f"{growth_interval}"
            )
        self.growth_factor, self.backoff_factor = float(growth_factor), float(backoff_factor)
        self.growth_interval = int(growth_interval)
        self.scale = Buffer(np.float32(init_scale), name="GradScaler.scale")
        self.growth_tracker = Buffer(np.int32(0), name="GradScaler.growth_tracker")

    def minimize(self, optimizer: Optimizer, loss: Any, allow_unused: bool = False) -> None:
        """`optimizer.minimize(loss)` by way of a scaled loss; no step where a gradient is not finite."""
        parameters = optimizer.parameters()
        scaled = cast(loss, types.float32) * self.scale
        wanted = gradients_where_used if allow_unused else gradient
        found = wanted(scaled, parameters)
        release(scaled)
        with no_grad(), module_scope("GradScaler"):
            inverse = 1.0 / self.scale
            gradients = [None if g is None else g * cast(inverse, g.dtype) for g in found]
            finite: Any = None
            for g in gradients:
                if g is not None:
                    fine = reduce_all(isfinite(g))
                    finite = fine if finite is None else logical_and(finite, fine)
            holders = [*parameters, *(slot for _, slot in optimizer.named_slots())]
            before = [stop_gradient(holder) for holder in holders]
            optimizer.apply(gradients)
            for holder, old in zip(holders, before, strict=True):
                holder.assign(where(finite, holder, old))
            self._adapt(finite)

    def _adapt(self, finite: Any) -> None:
        grown = equal(self.growth_tracker + 1, self.growth_interval)
        larger = where(grown, self.scale * self.growth_factor, self.scale)
        scale = where(finite, larger, self.scale * self.backoff_factor)
        tracker = where(logical_and(finite, ~grown), self.growth_tracker + 1, 0)
        self.scale.assign(cast(scale, types.float32))
        self.growth_tracker.assign(cast(tracker, types.int32))

    def state_dict(self) -> dict[str, Array]:
        """Scale and number of good steps in a row, as arrays."""
        return {"scale": np.array(self.scale.data), "growth_tracker": np.array(self.growth_tracker.data)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        holders = [("scale", self.scale), ("growth_tracker", self.growth_tracker)]
        for holder, value in check_entries("GradScaler", holders, state):
            holder.replace(value)
