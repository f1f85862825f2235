"""Looking for what went wrong in a compiled function.

In: a function made by `tw.compile`. Out: what happened inside it in one call, which changes no state. See
also `tw.compile(check=True)`, which compares every kernel with the NumPy references.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thalweg.errors import ArgumentError
from thalweg.runtime.origins import NonFinite
from thalweg.tensor.compile import BoundCompiled, Compiled

__all__ = ["NonFinite", "nonfinite"]


def nonfinite(step: Any) -> Callable[..., NonFinite | None]:
    """A function that takes the arguments of `step` and says where the first NaN or infinity comes from.

    `tw.debug.nonfinite(step)(x, y)` runs the kernels of the compiled function one by one, with the same
    numerics, on a copy of the state; parameters, buffers and random generators are as before afterwards. It
    gives a `NonFinite`, which prints as op, module, user's line, index and operands, or None where every
    value is finite. What an argument or the state held before counts as well; an infinity that is written as
    a constant, such as that of a mask, does not, nor does what no kernel stores. "First" is in the order of
    the graph: forward pass, loss, gradients, updates.
    """
    if not isinstance(step, (Compiled, BoundCompiled)):
        raise ArgumentError(
            f"nonfinite takes a compiled function, received {type(step).__name__}; write "
            "tw.debug.nonfinite(tw.compile(function))"
        )

    def search(*args: Any, **kwargs: Any) -> NonFinite | None:
        from thalweg.runtime.origins import find

        program, inputs = step.prepared(*args, **kwargs)
        return find(program, inputs)

    return search
