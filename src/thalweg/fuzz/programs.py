"""Random programs: seeded graphs with a batch axis, state and gradients.

In: a seed. Out: `RandomProgram(seed)` with `graph`, `arrays` for its inputs and `holders` of its state.
Called by the fuzzer and by the tests of passes, schedules and kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import thalweg.ops as ops
from thalweg import types
from thalweg.autodiff import vjp
from thalweg.errors import ArgumentError, DTypeError, ShapeError, UnsupportedError
from thalweg.graph import Graph, State, Value
from thalweg.graph.build import Builder, remove_dead, using
from thalweg.ops.accumulation import cumulative_sum, scatter
from thalweg.ops.contraction import conv, conv_transpose
from thalweg.ops.control import cond, scan
from thalweg.ops.core import cast, operand
from thalweg.ops.indexing import gather
from thalweg.ops.losses import cross_entropy
from thalweg.ops.normalization import batch_norm, layer_norm
from thalweg.ops.pooling import average_pool, max_pool
from thalweg.ops.random import uniform
from thalweg.ops.samples import Sample, all_samples
from thalweg.tensor import Buffer
from thalweg.types import Type

Array = np.ndarray[Any, Any]

# Few bits each, so that sums and products of some of them are exact in any order.
NUMBERS = np.array([0.0, 1.0, -1.0, 2.0, 0.5, -0.5, 3.0])
MOST_ELEMENTS = 6000
CLASSES = 7
REFUSED = (ShapeError, DTypeError, ArgumentError, UnsupportedError)


@functools.cache
def _samples() -> list[Sample]:
    """Samples of all ops that are small and raise nothing."""
    return [
        sample
        for _, _, sample in all_samples()
        if sample.inputs and all(array.size <= MOST_ELEMENTS // 10 for array in sample.inputs)
    ]


class RandomProgram:
    """A graph of up to about 25 ops over inputs of one batch extent, with holders that it updates."""

    def __init__(self, seed: int, dtype: str | None = None, samples: bool = False) -> None:
        self.seed = seed
        self.samples = samples  # whether ops come from the samples of the registry too
        self.generator = np.random.Generator(np.random.PCG64(seed))
        self.batch = int(self.pick([1, 2, 3, 5, 8, 12, 15, 16, 17, 20, 31, 32, 33, 40, 600]))
        if self.chance(0.03):
            self.batch = 0
        self.dtype = dtype or str(self.pick(["float32"] * 6 + ["float64", "float16", "bfloat16"]))
        self.features = int(self.pick([1, 3, 5, 16, 17, 18]))
        self.other = int(self.pick([1, 2, 4, 9]))
        self.exact = self.chance(0.3)  # inputs of few bits: results are the same in any order of summation
        self.builder = Builder()
        with using(self.builder):
            self._sources()
            self._grow()
            self._results()
        names = tuple(f"x{i}" for i in range(len(self.inputs)))
        state = tuple(
            State(before, after, holder)
            for before, after, holder in zip(self.before, self.after, self.holders, strict=True)
        )
        graph = Graph(
            tuple(self.inputs), tuple(self.builder.nodes), self.outputs, state, f"program{seed}", names
        )
        self.graph = remove_dead(graph).verify()

    # ---- choices ----

    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.generator.integers(len(items)))]

    def chance(self, probability: float) -> bool:
        return bool(self.generator.random() < probability)

    # ---- sources ----

    def _sources(self) -> None:
        f, g, b = self.features, self.other, self.batch
        self.inputs: list[Value] = []
        self.arrays: list[Array] = []
        self.before: list[Value] = []
        self.holders: list[Any] = []
        shapes: list[tuple[int, ...]] = [(b, f), (b, f), (b, g, f), (b,), (b, 1), (f, b), (), (0, f), (b, g)]
        for _ in range(int(self.generator.integers(1, 4))):
            self._input(self.pick(shapes[: 4 + int(self.generator.integers(6))]), self.dtype)
        self.image = self.chance(0.25) and self.dtype in ("float32", "float64")
        if self.image:
            self._input((b, 2, 5, 6), self.dtype)
        self.labels = self._input((b,), self.pick(["int64", "int32"]), labels=True)
        if self.chance(0.4):
            self._input(
                self.pick([(b, f), (f,), (b,)]), self.pick(["int32", "int8", "uint8", "int64", "uint16"])
            )
        if self.chance(0.2):
            self._input(self.pick([(b, f), (b,)]), "bool")
        weights: list[tuple[int, ...]] = [(f,), (f,), (f, g), (f, g), (), (g, f), (1, f), (g, f), (f, f)]
        for _ in range(int(self.generator.integers(0, 5))):
            self._holder(self.pick(weights), self.dtype)
        if self.image:
            self._holder((3, 2, 3, 2), self.dtype)
        if self.chance(0.15):
            self._holder((b, f), self.dtype)  # state with as many rows as the batch has samples
        self.draws = self.chance(0.15)
        if self.draws:
            self._holder((3,), "uint32")

    def _values(self, shape: tuple[int, ...], dtype: str, labels: bool = False) -> Array:
        found: Any
        if labels:
            found = self.generator.integers(0, CLASSES, shape)
        elif dtype == "bool":
            found = self.generator.integers(0, 2, shape)
        elif dtype in ("float32", "float64", "float16", "bfloat16"):
            found = self.generator.choice(NUMBERS, shape) if self.exact else self.generator.normal(size=shape)
        else:
            low = 0 if dtype.startswith("u") else -7
            found = self.generator.integers(low, 8, shape)
        return np.ascontiguousarray(np.asarray(found).astype(types.dtype(dtype).numpy)).reshape(shape)

    def _input(self, shape: tuple[int, ...], dtype: str, labels: bool = False) -> Value:
        value = Value(Type(types.dtype(dtype), shape))
        self.inputs.append(value)
        self.arrays.append(self._values(shape, dtype, labels))
        return value

    def _holder(self, shape: tuple[int, ...], dtype: str) -> Value:
        value = Value(Type(types.dtype(dtype), shape))
        self.before.append(value)
        self.holders.append(Buffer(self._values(shape, dtype), name=f"state{len(self.holders)}"))
        return value

    # ---- nodes ----

    def _grow(self) -> None:
        self.pool = [*self.inputs, *(v for v in self.before if v.dtype.short != "u32")]
        if self.image:
            image = next(v for v in self.inputs if v.ndim == 4)
            self.pool.append(ops.relu(self._contraction(image, image)))
        families = [
            self._unary,
            self._binary,
            self._binary,
            self._binary,
            self._movement,
            self._reduction,
            self._reduction,
            self._contraction,
            self._composite,
            self._logic,
            self._indexing,
        ]
        if self.chance(0.3):
            families.append(self._control)
        if self.samples:
            families += [self._sample] * 4
        for _ in range(int(self.generator.integers(4, 22))):
            recent = self.pool[-5:] if self.chance(0.6) else self.pool
            try:
                made = self.pick(families)(self.pick(recent), self.pick(self.pool))
            except REFUSED:
                continue
            if made is not None and made.size <= MOST_ELEMENTS:
                self.pool.append(made)

    def floating(self, x: Value) -> Value:
        return x if x.dtype.is_floating else cast(x, self.dtype)

    def _unary(self, x: Value, y: Value) -> Any:
        x = self.floating(x)
        choices: list[Callable[[Value], Value]] = [
            lambda v: ops.exp(ops.minimum(v, 3.0)),
            ops.tanh,
            lambda v: ops.sqrt(ops.abs(v)),
            lambda v: v / 3.0,
            lambda v: -v,
            ops.abs,
            lambda v: v * 0.5 + 1.0,
            ops.relu,
            ops.sigmoid,
            lambda v: ops.log(ops.abs(v) + 1.0),
            ops.square,
            ops.stop_gradient,
            lambda v: ops.clip(v, -1.0, 2.0),
            lambda v: v * operand(np.resize(np.array([1.0, -2.0, 0.5]), v.shape).astype(v.dtype.numpy)),
        ]
        return self.pick(choices)(x)

    def _binary(self, x: Value, y: Value) -> Any:
        x, y = self.floating(x), self.floating(y)
        if x.dtype is not y.dtype:
            y = cast(y, x.dtype)
        try:
            np.broadcast_shapes(x.shape, y.shape)
        except ValueError:
            return None
        choices: list[Callable[[Value, Value], Value]] = [
            ops.add,
            ops.subtract,
            ops.multiply,
            ops.maximum,
            ops.minimum,
            lambda a, b: ops.where(a < b, a, b * 2.0),
            lambda a, b: a / (ops.abs(b) + 1.0),
        ]
        return self.pick(choices)(x, y)

    def _logic(self, x: Value, y: Value) -> Any:
        """Integers, masks and casts."""
        if x.dtype.is_floating:
            choices: list[Callable[[Value], Value]] = [
                lambda v: v > 0.0,
                lambda v: cast(ops.clip(ops.round(v), -50.0, 50.0), self.pick(["int32", "int8", "int64"])),
                lambda v: cast(v, self.pick(["float32", "float64", "float16", "bfloat16"])),
                lambda v: ops.isfinite(v),
                lambda v: ops.sign(v),
                lambda v: ops.floor(v),
            ]
            return self.pick(choices)(x)
        if x.dtype.short == "bool":
            return self.pick([lambda v: ~v, lambda v: cast(v, "int32"), lambda v: ops.where(v, 2.0, -1.0)])(x)
        choices = [
            lambda v: v + 3,
            lambda v: v * v,
            lambda v: v // 3,
            lambda v: v % 4,
            lambda v: v & 5,
            lambda v: v ^ 3,
            lambda v: v << 1,
            lambda v: v >> 1,
            lambda v: v == 2,
            lambda v: cast(v, self.pick(["int64", "int16", "uint8", self.dtype])),
        ]
        return self.pick(choices)(x)

    def _movement(self, x: Value, y: Value) -> Any:
        order = tuple(int(axis) for axis in self.generator.permutation(x.ndim))
        axis = int(self.generator.integers(x.ndim)) if x.ndim else 0
        choices: list[Callable[[Value], Value]] = [
            lambda v: ops.transpose(v, order),
            lambda v: ops.reshape(v, (-1,)) if v.size else v,
            lambda v: ops.flatten(v, 1) if v.ndim > 2 else ops.expand_dims(v, 1) if v.ndim else v,
            lambda v: ops.reshape(v, (1, *v.shape)),
            lambda v: ops.broadcast_to(v, (2, *v.shape)),
            lambda v: ops.flip(v, axis) if v.ndim else v,
            lambda v: ops.roll(v, 1, axis) if v.ndim else v,
            lambda v: ops.pad(v, 1, 0) if v.ndim else v,
            lambda v: v[1:] if v.ndim else v,
            lambda v: v[:, ::2] if v.ndim > 1 else v,
            lambda v: v[..., -1] if v.ndim and v.shape[-1] else v,
            lambda v: ops.concat([v, v], axis) if v.ndim else v,
            lambda v: ops.concat([v, y], 0) if v.ndim and v.shape[1:] == y.shape[1:] and y.ndim else v,
            lambda v: ops.concat([v, y], 1) if v.ndim > 1 and v.shape == y.shape else v,
            lambda v: ops.squeeze(v, 1) if v.ndim > 1 and v.shape[1] == 1 else v,
        ]
        return self.pick(choices)(x)

    def _reduction(self, x: Value, y: Value) -> Any:
        if x.ndim == 0:
            return None
        axis: Any = 0 if self.chance(0.5) else int(self.generator.integers(x.ndim))
        if x.ndim > 2 and self.chance(0.3):
            axis = (0, 2)
        keep = self.chance(0.4)
        if not x.dtype.is_floating:
            names = ["sum", "max", "min", "any", "all", "prod"]
            return getattr(ops, self.pick(names))(x, axis=axis, keepdims=keep)
        names = ["sum", "sum", "mean", "max", "min", "var"]
        if self.chance(0.15) and isinstance(axis, int):
            return self.pick([ops.argmax, ops.argmin])(x, axis=axis)
        return getattr(ops, self.pick(names))(x, axis=axis, keepdims=keep)

    def _contraction(self, x: Value, y: Value) -> Any:
        x = self.floating(x)
        if x.ndim == 4:
            weights = [v for v in self.before if v.ndim == 4]
            if weights and x.shape[1] == 2 and x.dtype is weights[0].dtype:
                stride = self.pick([1, 2, (1, 2)])
                return conv(x, weights[0], stride=stride, padding=self.pick([0, 1, (1, 0)]))
            if weights and x.shape[1] == 3 and x.dtype is weights[0].dtype:
                return conv_transpose(x, weights[0], stride=self.pick([1, 2]))
            return self.pick(
                [
                    lambda v: max_pool(v, 2),
                    lambda v: max_pool(v, 3, stride=1, padding=1),
                    lambda v: average_pool(v, 2),
                ]
            )(x)
        partners = [v for v in self.pool if v.dtype is x.dtype and v.ndim >= 1 and v.ndim <= 3]
        self.generator.shuffle(partners)
        for partner in partners:
            for left, right in ((x, partner), (ops.swapaxes(x, -1, -2) if x.ndim > 1 else x, partner)):
                if (
                    left.ndim >= 1
                    and right.ndim >= 1
                    and left.shape[-1] == right.shape[-2 if right.ndim > 1 else 0]
                ):
                    try:
                        return (left @ right) * (0.25 if self.chance(0.7) else 1.0)
                    except REFUSED:
                        continue
        return None

    def _composite(self, x: Value, y: Value) -> Any:
        x = self.floating(x)
        if x.ndim == 0:
            return None
        choices: list[Callable[[Value], Value]] = [
            lambda v: ops.softmax(v, axis=-1),
            lambda v: ops.log_softmax(v, axis=0),
            lambda v: ops.logsumexp(v, axis=-1),
            lambda v: layer_norm(v),
            lambda v: batch_norm(v)[int(self.generator.integers(3))] if v.ndim > 1 else v,
            lambda v: ops.gelu(v),
            lambda v: ops.std(v + 1.0, 0),
            lambda v: (v - ops.mean(v, 0)) * ops.rsqrt(ops.var(v, 0) + 0.01),
        ]
        if self.draws:
            state = next(v for v in self.before if v.dtype.short == "u32")
            choices.append(lambda v: v * uniform(state, v.shape, dtype=v.dtype))
        return self.pick(choices)(x)

    def _indexing(self, x: Value, y: Value) -> Any:
        labels = self.labels
        choices: list[Callable[[Value], Value | None]] = [
            lambda v: gather(v, labels % v.shape[0]) if v.ndim and v.shape[0] else None,
            lambda v: ops.one_hot(labels, CLASSES) if CLASSES else None,
            lambda v: (
                scatter(ops.zeros((CLASSES, *v.shape[1:]), dtype=v.dtype), labels, v, mode="add")
                if v.ndim and v.shape[0] == self.batch
                else None
            ),
            lambda v: cumulative_sum(v, axis=self.pick(range(v.ndim))) if v.ndim else None,
            lambda v: (
                ops.take_along_axis(v, ops.expand_dims(labels % v.shape[1], 1), 1)
                if v.ndim == 2 and v.shape[0] == self.batch and v.shape[1]
                else None
            ),
            lambda v: (
                cross_entropy(v, labels % v.shape[1], reduction=self.pick(["mean", "sum", "none"]))
                if v.ndim == 2
                and v.shape[0] == self.batch
                and v.shape[1]
                and v.dtype.is_floating
                and self.batch
                else None
            ),
        ]
        return self.pick(choices)(x)

    def _control(self, x: Value, y: Value) -> Any:
        """A loop over the first axis, or a choice between two branches."""
        x = self.floating(x)
        if self.chance(0.3):
            return cond(
                ops.sum(x) > 0.0,
                lambda v: [ops.tanh(v) * 2.0],
                lambda v: [ops.flip(v) if v.ndim else -v],
                [x],
            )[0]
        if not x.ndim or x.size > 1000 or x.shape[0] > 40:
            return None
        square = [v for v in self.before if v.dtype is x.dtype and v.ndim == 2 and v.shape[0] == v.shape[1]]
        outside = [v for v in self.pool if v.dtype is x.dtype and v.shape in ((), x.shape[1:], x.shape[-1:])]
        other = self.pick(outside) if outside else operand(0.5, x.dtype)
        nested, draws = self.chance(0.2), self.draws and self.chance(0.5)

        def body(
            iteration: Value, carries: list[Value], slices: list[Value]
        ) -> tuple[list[Value], list[Value]]:
            (carry,), (part,) = carries, slices
            moved = carry * 0.5 + part
            if x.ndim > 1 and x.shape[-1] and other.shape in ((), x.shape[1:]):
                moved = moved + other * 0.25
            if square and x.ndim > 1 and x.shape[-1] == square[0].shape[0]:
                moved = moved @ square[0] * 0.1
            if nested:
                (moved,), _ = scan(lambda i, c, s: ([c[0] * 0.5 + part], []), [moved], length=2)
            if draws:
                state = next(v for v in self.before if v.dtype.short == "u32")
                moved = moved * uniform(state, moved.shape, dtype=moved.dtype)
            moved = ops.tanh(moved)
            return [moved], [moved * 2.0 + cast(iteration, moved.dtype)]

        start = ops.zeros(x.shape[1:], dtype=x.dtype)
        carries, stacked = scan(body, [start], [x], reverse=self.chance(0.3))
        return self.pick([carries[0], stacked[0]])

    def _sample(self, x: Value, y: Value) -> Value | None:
        """An op of the registry on the arrays of one of its samples, as further inputs."""
        sample: Sample = self.pick(_samples())
        operands = []
        for array in sample.inputs:
            operands.append(self._input(array.shape, str(types.dtype(array.dtype))))
            self.arrays[-1] = np.ascontiguousarray(array).reshape(array.shape)
        results = [value for value in sample.build(*operands) if isinstance(value, Value)]
        self.pool.extend(results[1:])
        return results[0] if results else None

    # ---- results ----

    def _results(self) -> None:
        wanted = [self.pick(self.pool[-4:]), *(self.pick(self.pool) for _ in range(2)), self.pool[-1]]
        gradients: dict[int, Value] = {}
        losses = [
            v for v in self.pool[len(self.inputs) :] if v.dtype.is_floating and v.node is not None and v.size
        ]
        if losses and self.chance(0.6):
            chosen = self.pick(losses[-4:])
            loss = ops.mean(chosen * 0.5) if self.chance(0.5) else ops.sum(ops.tanh(chosen))
            wrt = [v for v in (*self.inputs, *self.before) if v.dtype.is_floating]
            found = vjp([loss], [operand(1.0, loss.dtype)], wrt)
            gradients = {id(v): g for v, g in zip(wrt, found, strict=True) if g is not None}
            wanted.append(loss)
            wanted += [g for v in self.inputs if (g := gradients.get(id(v))) is not None]
        self.after: list[Value | None] = [self._update(v, gradients) for v in self.before]
        self._exchange()
        if self.after and self.chance(0.3):
            wanted.append(self.pick([v for v in self.after if v is not None] or [self.before[0]]))
        if self.before and self.chance(0.3):
            wanted.append(self.pick(self.before))
        self.outputs = tuple(wanted)

    def _update(self, p: Value, gradients: dict[int, Value]) -> Any:
        if p.dtype.short == "u32":
            return p + operand(1, p.dtype)
        gradient = gradients.get(id(p))
        if gradient is not None and self.chance(0.8):
            return p - gradient * 0.125
        same = [v for v in self.pool if v.type == p.type and v is not p]
        choices: list[Callable[[], Value | None]] = [
            lambda: None,
            lambda: p * 0.5 + 1.0,
            lambda: ops.flip(p) if p.ndim else p + 1.0,
            lambda: ops.transpose(p) if p.ndim == 2 and p.shape[0] == p.shape[1] else p * p,
            lambda: self.pick(same) if same else p,
            lambda: p + self.pick(same) if same else ops.zeros_like(p),
            lambda: p + cast(ops.tanh(ops.sum(self.floating(self.pick(self.pool)))), p.dtype),
            lambda: ops.cumulative_sum(p, axis=0) if p.ndim else -p,
        ]
        return self.pick(choices)()

    def _exchange(self) -> None:
        """Swap two holders, or let two have one new value."""
        pairs = [
            (i, j)
            for i, v in enumerate(self.before)
            for j, w in enumerate(self.before)
            if i < j and v.type == w.type
        ]
        if not pairs or self.chance(0.5):
            return
        i, j = self.pick(pairs)
        how = self.pick(["swap", "share", "average", "cross"])
        if how == "swap":
            self.after[i], self.after[j] = self.before[j], self.before[i]
        elif how == "share":
            self.after[i] = self.after[j]
        elif self.before[i].dtype.is_floating:
            first, second = self.before[i], self.before[j]
            self.after[i] = first * 0.5 + second * 0.5
            self.after[j] = second + self.after[i] if how == "cross" else self.after[i]
