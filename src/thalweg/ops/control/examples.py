"""Samples of `scan` and `cond` for the generated tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from thalweg.errors import ArgumentError, DTypeError, ShapeError
from thalweg.ops.control.checkpointing import checkpoint
from thalweg.ops.control.functions import cond, scan
from thalweg.ops.samples import Sample, samples, values
from thalweg.ops.sources import full, random_bits


def _recurrent(h: Any, xs: Any, w: Any, u: Any) -> Any:
    """The states of h = tanh(x w + h u), and the last of them."""
    from thalweg.ops.contraction import matmul
    from thalweg.ops.elementwise import tanh

    def body(iteration: Any, carries: list[Any], slices: list[Any]) -> Any:
        after = tanh(matmul(slices[0], w) + matmul(carries[0], u))
        return [after], [after]

    (last,), (states,) = scan(body, [h], [xs])
    return last, states


def _recurrent_torch(torch: Any, h: Any, xs: Any, w: Any, u: Any) -> Any:
    states = []
    for x in xs:
        h = torch.tanh(x @ w + h @ u)
        states.append(h)
    return h, torch.stack(states)


def _running(x: Any, reverse: bool) -> Any:
    """Running products, and twice each element."""
    first = full(x.shape[1:], 1, x.dtype)
    (last,), stacks = scan(lambda i, c, s: ([c[0] * s[0]], [c[0], s[0] * 2]), [first], [x], reverse=reverse)
    return (last, *stacks)


def _powers(x: Any, length: int) -> Any:
    """x to the power 2^length, and which iteration it was: no slices come in."""
    (last,), (numbers,) = scan(lambda i, c, s: ([c[0] * c[0]], [i]), [x], length=length)
    return last, numbers


def _table(x: Any, y: Any) -> Any:
    """sin(x_i) + x_i y_j by two nested scans without carries."""
    from thalweg.ops.elementwise import sin

    def row(i: Any, c: list[Any], outer: list[Any]) -> Any:
        return [], scan(lambda j, c, inner: ([], [sin(outer[0]) + outer[0] * inner[0]]), [], [y])[1]

    return scan(row, [], [x])[1][0]


def _walk(state: Any) -> Any:
    """Random words of each iteration."""
    return scan(lambda i, c, s: ([], [random_bits(state, (3,), 7)]), [], length=4)[1][0]


def _alternating(x: Any) -> Any:
    """Cosine in even iterations, square in odd ones."""
    from thalweg.ops.elementwise import cos

    def body(i: Any, carries: list[Any], slices: list[Any]) -> Any:
        return cond((i & 1) > 0, lambda v: [v * v], lambda v: [cos(v)], carries), []

    return scan(body, [x], length=5)[0][0]


@samples("scan")
def _scan_samples() -> Iterator[Sample]:
    weights = (values(3, 4, seed=1), values(5, 3, 2, seed=2), values(2, 4, seed=3), values(4, 4, seed=4))
    yield Sample(_recurrent, weights, torch=_recurrent_torch)
    yield Sample(_recurrent, tuple(array.astype(np.float64) for array in weights))
    yield Sample(_recurrent, (weights[0], weights[1][:0], *weights[2:]))
    yield Sample(
        _recurrent, tuple(array.astype(np.float16) for array in weights), gradient=False, tolerance=4
    )
    for reverse in (False, True):
        yield Sample(lambda x, r=reverse: _running(x, r), (values(4, 3),))
        yield Sample(lambda x, r=reverse: _running(x, r), (values(7, dtype="int32", low=-9, high=9),))
    yield Sample(lambda x: _powers(x, 3), (values(2, 2),))
    yield Sample(lambda x: _powers(x, 0), (values(),))
    yield Sample(lambda x: _powers(x, 2), (np.array([np.nan, np.inf, -0.0, -2.0], np.float32),))
    yield Sample(_table, (values(3), values(4)))
    yield Sample(_walk, (np.array([1, 2, 3, 4], np.uint32),))
    yield Sample(_alternating, (values(3),))
    yield Sample(
        lambda x: scan(lambda i, c, s: ([c[0][0]], []), [x], length=2)[0][0], (values(3),), error=ShapeError
    )
    yield Sample(
        lambda x: scan(lambda i, c, s: ([c[0] > 0], []), [x], length=2)[0][0],
        (values(3),),
        error=DTypeError,
        message="carry 0 is f32[3] before an iteration and bool[3] after it",
    )
    yield Sample(lambda x: _running(x, False), (values(),), error=ShapeError, message="0-d")
    yield Sample(lambda x: _powers(x, -1), (values(),), error=ArgumentError, message="at least 0")


@samples("checkpoint")
def _checkpoint_samples() -> Iterator[Sample]:
    from thalweg.ops.elementwise import exp, sin

    def region(x: Any, y: Any) -> Any:
        return tuple(checkpoint(lambda v: [exp(v * y), sin(v) + y], [x]))

    def nested(x: Any) -> Any:
        return checkpoint(lambda v: [region(v, x)[0] * v], [x])[0]

    def walk(state: Any) -> Any:
        return checkpoint(lambda: [random_bits(state, (3,), 7)])[0]

    yield Sample(region, (values(3, 4, seed=1), values(3, 4, seed=2)), torch=_region_torch)
    yield Sample(region, (values(3, 4, dtype="float64"), values(3, 4, dtype="float64", seed=2)))
    yield Sample(region, (values(0), values(0)))
    yield Sample(region, (values(), values(seed=2)))
    yield Sample(region, (np.array([np.nan, -0.0], np.float32), np.array([np.inf, 1], np.float32)))
    yield Sample(nested, (values(5),))
    yield Sample(nested, (values(2, 3, dtype="float64"),))
    yield Sample(walk, (np.array([1, 2, 3, 4], np.uint32),))


def _region_torch(torch: Any, x: Any, y: Any) -> Any:
    return torch.exp(x * y), torch.sin(x) + y


@samples("cond")
def _cond_samples() -> Iterator[Sample]:
    from thalweg.ops.elementwise import exp, sin
    from thalweg.ops.reduction import sum

    def choose(x: Any, limit: float) -> Any:
        return cond(sum(x) > limit, lambda v: [sin(v) * v], lambda v: [exp(v)], [x])[0]

    def around(p: Any, x: Any, y: Any) -> Any:
        return tuple(cond(p, lambda: [x * y, y], lambda: [x - y, x * x * x]))

    def nested(x: Any) -> Any:
        return cond(sum(x) > 0, lambda: [choose(x, 2.0)], lambda: [x * x])[0]

    for limit in (-50.0, 50.0):
        yield Sample(choose, (values(3, 5),), {"limit": limit})
        yield Sample(choose, (values(0),), {"limit": limit})
        yield Sample(choose, (values(dtype="float64"),), {"limit": limit})
    for truth in (True, False):
        yield Sample(
            around,
            (np.array(truth), values(4, seed=1), values(4, seed=2)),
            torch=lambda t, p, x, y: (x * y, y) if p else (x - y, x * x * x),
        )
        yield Sample(around, (np.array(truth), values(3, dtype="int64"), values(3, dtype="int64", seed=5)))
    yield Sample(
        around, (np.array(True), np.array([np.nan, -0.0], np.float32), np.array([np.inf, 1], np.float32))
    )
    yield Sample(nested, (values(3, low=0.5),))
    yield Sample(nested, (values(3, high=-0.5),))
    yield Sample(
        around, (values(2) > 0, values(2), values(2)), error=ShapeError, message="0-d bool predicate"
    )
    yield Sample(around, (values(), values(2), values(2)), error=DTypeError, message="(x > 0).any()")
    yield Sample(
        lambda p, x: cond(p, lambda: [x], lambda: [x[0]])[0],
        (np.array(True), values(2)),
        error=ShapeError,
        message="f32[2] in the branch for true and f32[] in the one for false",
    )
    yield Sample(
        lambda p, x: cond(p, lambda: [x], lambda: [])[0], (np.array(True), values(2)), error=ShapeError
    )
