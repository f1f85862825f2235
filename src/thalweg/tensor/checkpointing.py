"""Activation checkpointing for users: `checkpoint` makes a function whose inner values are not kept for the
gradient.

In: a function of tensors. Out: one with the same results and gradients that takes less memory in training.
The function is traced into a graph of its own, as the body of a loop is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from thalweg.errors import ArgumentError
from thalweg.graph import current
from thalweg.ops import control
from thalweg.tensor import eager
from thalweg.tensor.control import Body, Flat, outside
from thalweg.tensor.tensor import value_of
from thalweg.tensor.trace import tracing


def checkpoint(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` (or a module), with its inner activations computed again in the backward pass.

    Of a call only the arguments, the parameters and the results stay in memory until the gradient is taken,
    which costs the function's time once more: PyTorch's `torch.utils.checkpoint`. Results, gradients (of any
    order) and random numbers are the same, bit for bit. Works eagerly and in compiled functions, around whole
    blocks: `x = tw.checkpoint(self.block)(x)`, or as a decorator.

    Arguments and results are nests of tensors; other arguments are passed on as they are. The function is
    traced: it may use any tensor, parameter or buffer, and its Python code must not ask for values.

    >>> import thalweg as tw
    >>> f = tw.checkpoint(lambda x: (x.sin() * x).exp())
    >>> float(tw.grad(lambda x: f(x).sum())(0.0))
    0.0
    """
    if not callable(function):
        raise ArgumentError(
            f"checkpoint takes a function or a module, received {type(function).__name__}; write "
            "tw.checkpoint(block)(x)"
        )

    @functools.wraps(function, updated=())
    def run(*args: Any, **kwargs: Any) -> Any:
        if current() is not None:
            return _in_graph(function, args, kwargs)
        if not tracing() and not eager.mode.recording:
            return function(*args, **kwargs)
        return _on_tensors(function, args, kwargs)

    return run


def _in_graph(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Inside a composite or another graph that is being built of values."""
    found: list[Flat] = []

    def leaves() -> list[Any]:
        found.append(Flat(function(*args, **kwargs)))
        return found[0].leaves

    results = control.checkpoint(leaves)
    return found[0].rebuild(results)


def _on_tensors(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    body = Body(f"the checkpointed function {getattr(function, '__name__', type(function).__name__)}")
    with body.running():
        flat = Flat(function(*args, **kwargs))
        outputs = [value_of(x) for x in flat.leaves]
    body.close()
    holders = [known.holder for known in body.assigned()]
    changed = [body.after(holder) for holder in holders]
    stopped = {id(value) for value in body.unrecorded}
    traced = control.Traced(body.builder.nodes, [], [*outputs, *changed], stopped)
    graph, free = control.closed(traced, "checkpoint")
    results = control.applied(control.Checkpoint(graph), outside(free, [body]))
    for holder, value in zip(holders, results[len(outputs) :], strict=True):
        holder.assign(value)
    return flat.rebuild(results[: len(outputs)])
