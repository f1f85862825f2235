"""A running average of a model's weights, which often predicts better than the weights themselves.

In: a model while it is trained. Out: a model of the same kind with averaged parameters. Called by users,
inside the compiled training step or after it.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from thalweg.errors import ArgumentError
from thalweg.nn.module import Module
from thalweg.ops.elementwise import equal, where
from thalweg.tensor.gradient import no_grad
from thalweg.tensor.state import Buffer

__all__ = ["ExponentialMovingAverage"]


class ExponentialMovingAverage(Module):
    """A copy of `model` whose parameters are decay * average + (1 - decay) * parameter after each update.

    As `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(decay)`, with its names: `module` is
    the averaged model, `n_averaged` counts updates; the first one copies. Buffers are averaged too with
    `use_buffers`, else copied. Call it as the model itself; it is in eval mode from the start.

        average = optim.ExponentialMovingAverage(model, decay=0.999)
        ...
        opt.minimize(loss)
        average.update_parameters(model)  # in the same compiled step
    """

    def __init__(self, model: Module, decay: float = 0.999, use_buffers: bool = False) -> None:
        if not 0 <= decay <= 1:
            raise ArgumentError(f"ExponentialMovingAverage: decay must be from 0 to 1, received {decay!r}")
        self.decay, self.use_buffers = float(decay), bool(use_buffers)
        self.module = copy.deepcopy(model)
        self.module.requires_grad_(False)
        self.n_averaged = Buffer(np.zeros((), np.int64), name="n_averaged")
        self.eval()

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)

    def update_parameters(self, model: Module) -> None:
        """Take in the weights of `model` as they are now. Raises `ArgumentError` for another kind of
        model.
        """
        ours = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        theirs = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        wrong = [name for name in {**ours, **theirs} if _type(ours.get(name)) != _type(theirs.get(name))]
        if wrong:
            raise ArgumentError(
                f"ExponentialMovingAverage of a {type(self.module).__name__} cannot take in a "
                f"{type(model).__name__}: {', '.join(wrong[:10])} are not the same in both"
            )
        averaged = {name for name, _ in self.module.named_parameters()}
        first = equal(self.n_averaged, 0)
        with no_grad():
            for name, holder in ours.items():
                given = theirs[name]
                floating = holder.dtype.is_floating
                if floating and (self.use_buffers or name in averaged):
                    holder.assign(where(first, given, holder + (1.0 - self.decay) * (given - holder)))
                else:
                    holder.assign(given + 0)
            self.n_averaged.assign(self.n_averaged + 1)

    def extra_repr(self) -> str:
        return f"decay={self.decay}, use_buffers={self.use_buffers}"


def _type(holder: Any) -> Any:
    return None if holder is None else (holder.dtype, holder.shape)
