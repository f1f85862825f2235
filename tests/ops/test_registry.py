"""Generated from the registry: every op on every sample. See `thalweg.ops.samples` for what a sample is."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

import thalweg.ops
from thalweg import types
from thalweg.errors import DTypeError, ShapeError, UnsupportedError
from thalweg.graph import REGISTRY, AxisGroup, Graph, Kind, Node, Op, inline, parse, trace_graph
from thalweg.graph.build import builder
from thalweg.interpret import interpret
from thalweg.ops.core import Composite, CompositeDefinition
from thalweg.ops.samples import Sample, all_samples, sampled_ops, samples_of
from thalweg.testing import check_gradient, gradient_graph

for _module in pkgutil.iter_modules(thalweg.ops.__path__):
    importlib.import_module(f"thalweg.ops.{_module.name}")

Array = np.ndarray[Any, Any]

GOOD = [pytest.param(name, i, id=f"{name}-{i}") for name, i, _ in all_samples()]
BAD = [pytest.param(name, i, id=f"{name}-{i}") for name, i, _ in all_samples(bad=True)]

# the gradient of these is not the derivative of their values; tests/test_autodiff.py tests it, and
# tests/ops/test_quantised.py that of rounded products
NOT_A_DERIVATIVE = {"stop_gradient", "cast", "quantised_linear", "activation_bytes", "byte_product"}


@cache
def _samples(name: str) -> list[Sample]:
    return samples_of(name)


@cache
def _graph(name: str, position: int) -> Graph:
    sample = _samples(name)[position]
    return trace_graph(sample.build, sample.types, name)


def _nodes(graph: Graph, bodies: bool) -> list[Node]:
    """The nodes of a graph, with `bodies` those of its composites' bodies and of sub-graph attributes too."""
    found: list[Node] = []
    for node in graph.nodes:
        found.append(node)
        if not bodies:
            continue
        if isinstance(node.op, Composite):
            found += _nodes(node.op.body(*(value.type for value in node.inputs)), bodies)
        for attribute in node.op.attributes().values():
            if isinstance(attribute, Graph):
                found += _nodes(attribute, bodies)
    return found


def _library(entry: Any) -> bool:
    """Whether `thalweg.ops` declares an entry: tests declare composites too, and optimisers theirs."""
    owner = entry if isinstance(entry, type) else entry.function
    return bool(owner.__module__.startswith("thalweg.ops."))


def _library_ops() -> list[str]:
    return sorted(name for name, entry in REGISTRY.items() if _library(entry))


# ---- comparison --------------------------------------------------------------------------------------------

_EPSILON = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}
_STEPS = {"bfloat16": 4, "float16": 4, "float32": 64, "float64": 64}  # 16-bit types accumulate in float32
_SMALLEST = {"bfloat16": 2.4e-38, "float16": 6e-8, "float32": 1.2e-38, "float64": 2.3e-308}  # may be flushed


def assert_close(
    actual: Array, expected: Array, tolerance: float = 1.0, what: str = "result", elementwise: bool = False
) -> None:
    """Equal shape and type; floating numbers within some rounding steps of themselves or of 1.

    `elementwise`: within 4 steps of themselves, zeros with their sign.
    """
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, expected {expected.dtype}"
    if not types.dtype(actual.dtype).is_floating:
        np.testing.assert_array_equal(actual, expected, what)
        return
    wide, target = actual.astype(np.float64), expected.astype(np.float64)
    name = actual.dtype.name
    if elementwise:
        allowed = 4 * tolerance * _EPSILON[name]
        np.testing.assert_allclose(wide, target, rtol=allowed, atol=_SMALLEST[name], err_msg=what)
        zeros = target == 0
        np.testing.assert_array_equal(
            np.signbit(wide[zeros]), np.signbit(target[zeros]), f"{what}: sign of 0"
        )
        return
    allowed = _STEPS[name] * tolerance * _EPSILON[name]
    np.testing.assert_allclose(wide, target, rtol=allowed, atol=allowed, err_msg=what)


# ---- completeness ------------------------------------------------------------------------------------------


@cache
def _in_gradients() -> frozenset[str]:
    """Ops that the gradient of some checked sample contains: composites that only gradient rules apply."""
    found: set[str] = set()
    for _, _, sample in all_samples():
        if sample.checks_gradient:
            graph = gradient_graph(sample.build, sample.types, sample.constants)
            found.update(node.op.name for node in _nodes(graph, bodies=True))
    return frozenset(found)


@pytest.mark.parametrize("name", _library_ops())
def test_every_op_has_samples(name: str) -> None:
    good = [sample for sample in _samples(name) if sample.error is None]
    if not good and isinstance(REGISTRY[name], CompositeDefinition) and name in _in_gradients():
        return  # part of another op's gradient, checked with it
    assert len(good) >= 8, (
        f"{name} has {len(good)} samples, at least 8 are needed: see thalweg/ops/samples.py"
    )


@pytest.mark.parametrize("name", sorted(sampled_ops()))
def test_samples_check_gradients(name: str) -> None:
    """An op from floating point to floating point has at least two samples whose gradient is compared."""
    assert name in REGISTRY, f"there are samples for {name!r}, which is not an op"
    differentiable = False
    for position, sample in enumerate(_samples(name)):
        if sample.error is None:
            graph = _graph(name, position)
            differentiable |= any(v.dtype.is_floating for v in graph.inputs) and any(
                v.dtype.is_floating for v in graph.outputs
            )
    if differentiable and name not in NOT_A_DERIVATIVE:
        assert sum(sample.checks_gradient for sample in _samples(name)) >= 2


# ---- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "position"), GOOD)
def test_values(name: str, position: int) -> None:
    """The op is in the graph, its shape rule and its body agree with its reference."""
    sample, graph = _samples(name)[position], _graph(name, position).verify()
    assert name in {node.op.name for node in _nodes(graph, bodies=True)}, (
        f"this sample of {name} does not use {name}"
    )
    before = [array.copy() for array in sample.inputs]
    results = interpret(graph, sample.inputs)  # raises where shape rule and reference differ
    for value, result in zip(graph.outputs, results, strict=True):
        assert types.type_of(result) == value.type
    for array, copy in zip(sample.inputs, before, strict=True):
        assert array.tobytes() == copy.tobytes(), "the reference changed its input"
    expanded = interpret(_expanded(name, position), sample.inputs)
    for number, (result, plain) in enumerate(zip(results, expanded, strict=True)):
        assert_close(plain, result, sample.tolerance, f"body of {name}, result {number}")


def _expanded(name: str, position: int) -> Graph:
    graph = _graph(name, position)
    return trace_graph(lambda *values: _expand(graph, values), [value.type for value in graph.inputs])


def _expand(graph: Graph, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """`graph` inlined into the current builder, every composite replaced by its body, down to primitives."""
    known = {id(old): new for old, new in zip(graph.inputs, inputs, strict=True)}
    for node in graph.nodes:
        given = [known[id(value)] for value in node.inputs]
        if isinstance(node.op, Composite):
            outputs = _expand(node.op.body(*(value.type for value in given)), given)
        else:
            outputs = builder().apply(node.op, given)
        known.update((id(old), new) for old, new in zip(node.outputs, outputs, strict=True))
    return tuple(known[id(value)] for value in graph.outputs)


@pytest.mark.parametrize(("name", "position"), GOOD)
def test_text_round_trip(name: str, position: int) -> None:
    graph = _graph(name, position)
    again = parse(graph.text())
    assert again.digest() == graph.digest()
    assert again.text(spans=False) == graph.text(spans=False)
    inputs = _samples(name)[position].inputs
    for first, second in zip(interpret(graph, inputs), interpret(again, inputs), strict=True):
        assert first.tobytes() == second.tobytes()


SMOOTH = [pytest.param(name, i, id=f"{name}-{i}") for name, i, s in all_samples() if s.checks_gradient]


@pytest.mark.parametrize(("name", "position"), SMOOTH)
def test_gradients(name: str, position: int) -> None:
    sample = _samples(name)[position]
    differentiable = any(value.dtype.is_floating for value in _graph(name, position).outputs)
    assert (check_gradient(sample.build, sample.inputs, constants=sample.constants) > 0) is differentiable


@pytest.mark.parametrize(("name", "position"), BAD)
def test_bad_input(name: str, position: int) -> None:
    sample = _samples(name)[position]
    assert sample.error is not None
    with pytest.raises(sample.error) as caught:
        interpret(trace_graph(sample.build, sample.types), sample.inputs)
    assert sample.message in str(caught.value)
    assert len(str(caught.value)) > 20, "an unhelpful error message is a bug"


# ---- axis rules --------------------------------------------------------------------------------------------


def _applications(name: str, position: int) -> list[tuple[Op, list[Array]]]:
    """The op's nodes in a sample's graph (or in its composites' bodies) with the arrays that they receive."""
    sample, graph = _samples(name)[position], _graph(name, position)
    if all(node.op.name != name for node in graph.nodes):
        graph = _expanded(name, position)
    wanted = [node for node in graph.nodes if node.op.name == name]
    values = [value for node in wanted for value in node.inputs]
    traced = Graph(graph.inputs, graph.nodes, tuple(values))
    arrays = iter(interpret(traced, sample.inputs))
    return [(node.op, [next(arrays) for _ in node.inputs]) for node in wanted]


def _run(op: Op, arrays: Sequence[Array]) -> list[Array]:
    with np.errstate(all="ignore"):
        results = op.reference(*arrays)
    return [np.asarray(result) for result in (results if isinstance(results, tuple) else (results,))]


def _taken(arrays: Sequence[Array], axes: Sequence[int | None], positions: Array) -> list[Array]:
    return [
        array if axis is None else np.take(array, positions, axis)
        for array, axis in zip(arrays, axes, strict=True)
    ]


def check_axes(op: Op, arrays: Sequence[Array], tolerance: float = 1.0) -> int:
    """Check every axis group of one application by running it on rearranged inputs; returns how many were
    checked.
    """
    expected = _run(op, arrays)
    groups = op.axes(*(types.type_of(array) for array in arrays))
    for side, ranks in (("inputs", [a.ndim for a in arrays]), ("outputs", [r.ndim for r in expected])):
        for number, rank in enumerate(ranks):
            listed = [getattr(group, side)[number] for group in groups]
            used = [axis for axis in listed if axis is not None]
            assert all(0 <= axis < rank for axis in used), f"{op.name}: {side} {number} has no axis {used}"
            assert len(set(used)) == len(used), f"{op.name}: an axis of {side} {number} is in two groups"
    checked = 0
    for group in groups:
        extents = {
            array.shape[axis] for array, axis in zip(arrays, group.inputs, strict=True) if axis is not None
        }
        extents |= {
            array.shape[axis] for array, axis in zip(expected, group.outputs, strict=True) if axis is not None
        }
        assert len(extents) == 1, f"{op.name}: {group} joins axes of sizes {extents}"
        (extent,) = extents
        if extent < 2:
            continue
        _check_group(op, arrays, expected, group, extent, tolerance)
        checked += 1
    return checked


def _check_group(
    op: Op,
    arrays: Sequence[Array],
    expected: Sequence[Array],
    group: AxisGroup,
    extent: int,
    tolerance: float,
) -> None:
    order = np.random.Generator(np.random.PCG64(extent)).permutation(extent)
    order = order if not np.array_equal(order, np.arange(extent)) else order[::-1]
    moved = _run(op, _taken(arrays, group.inputs, order))
    for result, target in zip(moved, _taken(expected, group.outputs, order), strict=True):
        assert_close(result, target, tolerance, f"{op.name} with {group}, positions permuted")
    if group.reduced:
        _check_combine(op, arrays, expected, group, extent, tolerance)
        return
    for kept in {0, extent - 1}:  # an output position depends on the same position of the inputs only
        alone = _run(op, _taken(arrays, group.inputs, np.full(extent, kept)))
        for result, target, axis in zip(alone, expected, group.outputs, strict=True):
            if axis is not None:
                only = np.array([kept])
                what = f"{op.name} with {group}: position {kept} depends on other positions"
                assert_close(np.take(result, only, axis), np.take(target, only, axis), tolerance, what)


_COMBINE: dict[str, Callable[..., Any]] = {
    "sum": np.add,
    "prod": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def _check_combine(
    op: Op,
    arrays: Sequence[Array],
    expected: Sequence[Array],
    group: AxisGroup,
    extent: int,
    tolerance: float,
) -> None:
    """Partial results over two parts of a reduced axis, combined, are the whole result."""
    if op.combine is None:
        return
    cut = extent // 2
    parts = []
    for positions in (np.arange(cut), np.arange(cut, extent)):
        pieces = _taken(arrays, group.inputs, positions)
        try:
            op.infer(*(types.type_of(piece) for piece in pieces))
        except (ShapeError, DTypeError, UnsupportedError):
            return  # the sizes are attributes of this op
        parts.append(_run(op, pieces))
    with np.errstate(all="ignore"):
        for first, second, whole in zip(*parts, expected, strict=True):
            combined = _COMBINE[op.combine](first, second).astype(whole.dtype)
            assert_close(combined, whole, 4 * tolerance, f"{op.name} in two parts along {group}")


@pytest.mark.parametrize(("name", "position"), GOOD)
def test_axis_rule(name: str, position: int) -> None:
    for op, arrays in _applications(name, position):
        check_axes(op, arrays, _samples(name)[position].tolerance)


def test_axis_rules_are_checked_often() -> None:
    """The test above runs for most primitives on real groups."""
    checked: dict[str, int] = {}
    for name, position, _ in all_samples():
        for op, arrays in _applications(name, position):
            extents = [array.shape for array in arrays] + [result.shape for result in _run(op, arrays)]
            for group in op.axes(*(types.type_of(array) for array in arrays)):
                axes = [*group.inputs, *group.outputs]
                sizes = [shape[axis] for shape, axis in zip(extents, axes, strict=True) if axis is not None]
                checked[name] = checked.get(name, 0) + (max(sizes) > 1)
    without = {"constant", "random_bits"}  # no axis may be cut, or none to cut
    primitives = {name for name in _library_ops() if isinstance(REGISTRY[name], type)}
    assert {name for name in primitives & set(sampled_ops()) if checked.get(name, 0) < 2} <= without


# ---- PyTorch -----------------------------------------------------------------------------------------------

TORCH = [
    pytest.param(name, i, id=f"{name}-{i}") for name, i, sample in all_samples() if sample.torch is not None
]


def _to_torch(torch: Any, array: Array) -> Any:
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _from_torch(torch: Any, tensor: Any) -> Array:
    tensor = tensor.detach().resolve_neg().contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy().view(types.bfloat16.numpy))
    return np.asarray(tensor.numpy())


@pytest.mark.parametrize(("name", "position"), TORCH)
def test_against_pytorch(name: str, position: int) -> None:
    torch = pytest.importorskip("torch")
    sample, graph = _samples(name)[position], _graph(name, position)
    assert sample.torch is not None
    tensors = [_to_torch(torch, array) for array in sample.inputs]
    wanted = sample.torch_gradient and any(array.dtype.name in _EPSILON for array in sample.inputs)
    wrt = [t for i, t in enumerate(tensors) if t.dtype.is_floating_point and i not in sample.constants]
    for tensor in wrt if wanted else ():
        tensor.requires_grad_(True)
    theirs = sample.torch(torch, *tensors)
    theirs = list(theirs) if isinstance(theirs, (tuple, list)) else [theirs]
    results = interpret(graph, sample.inputs)
    entry = REGISTRY[name]
    # which of two zeros is the larger one is open
    strict = isinstance(entry, type) and entry.kind is Kind.ELEMENTWISE and name not in ("maximum", "minimum")
    for number, (ours, other) in enumerate(zip(results, theirs, strict=True)):
        what = f"{name}, result {number} against PyTorch"
        assert_close(ours, _from_torch(torch, other), sample.tolerance, what, strict)
    pairs = [(r, t) for r, t in zip(results, theirs, strict=True) if types.dtype(r.dtype).is_floating]
    if not wanted or not any(tensor.requires_grad for _, tensor in pairs):
        return
    generator = np.random.Generator(np.random.PCG64(3))
    seeds = [generator.uniform(-1, 1, ours.shape).astype(ours.dtype) for ours, _ in pairs]
    outputs = [(tensor, _to_torch(torch, seed)) for (_, tensor), seed in zip(pairs, seeds, strict=True)]
    outputs = [(tensor, seed) for tensor, seed in outputs if tensor.requires_grad]
    torch.autograd.backward([tensor for tensor, _ in outputs], [seed for _, seed in outputs])
    graph = gradient_graph(sample.build, sample.types, sample.constants)
    gradients = interpret(graph, [*sample.inputs, *seeds])
    for number, (ours, tensor) in enumerate(zip(gradients, wrt, strict=True)):
        other = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        what = f"{name}, gradient {number} against PyTorch"
        assert_close(ours, _from_torch(torch, other), 4 * sample.tolerance, what)


# ---- the harness itself ------------------------------------------------------------------------------------


def test_harness_refuses_wrong_gradients() -> None:
    from thalweg.ops.core import composite

    @composite
    def wrong_gradient_for_test(x: Any, *, factor: float) -> Any:
        return x * x * x

    @wrong_gradient_for_test.gradient
    def _(inputs: Any, outputs: Any, cotangents: Any, factor: float) -> Any:
        x = inputs[0]
        return (cotangents[0] * x * x * factor,)

    x = np.linspace(0.5, 2.0, 5)
    assert check_gradient(lambda v: wrong_gradient_for_test(v, factor=3.0), [x]) == 3
    for factor in (2.999, 3.001, -3.0, 0.0):
        with pytest.raises(AssertionError, match="gradient of order 1"):
            check_gradient(lambda v, f=factor: wrong_gradient_for_test(v, factor=f), [x])


def test_harness_refuses_gradients_that_are_not_differentiable() -> None:
    """A first gradient that is right but cut off from its inputs is found at order 2."""
    from thalweg.ops.core import composite
    from thalweg.ops.elementwise import stop_gradient

    @composite
    def cut_gradient_for_test(x: Any) -> Any:
        return x * x * x

    @cut_gradient_for_test.gradient
    def _(inputs: Any, outputs: Any, cotangents: Any) -> Any:
        return (cotangents[0] * stop_gradient(inputs[0] * inputs[0]) * 3.0,)

    with pytest.raises(AssertionError, match="gradient of order 2"):
        check_gradient(cut_gradient_for_test, [np.linspace(0.5, 2.0, 5)])


class _Claims(Op):
    """A softmax that claims what the test says."""

    name = "claims"

    def __init__(self, groups: tuple[AxisGroup, ...]) -> None:
        self.groups = groups

    def infer(self, x: types.Type) -> tuple[types.Type, ...]:
        return (x,)

    def reference(self, x: Array) -> Any:
        return np.exp(x) / np.exp(x).sum(1, keepdims=True)

    def axes(self, *inputs: types.Type) -> tuple[AxisGroup, ...]:
        return self.groups


def test_harness_refuses_wrong_axis_rules() -> None:
    x = np.random.Generator(np.random.PCG64(1)).normal(size=(3, 3))
    assert check_axes(_Claims((AxisGroup((0,), (0,)),)), [x]) == 1
    for groups in (
        (AxisGroup((1,), (1,)),),  # normalised over this axis
        (AxisGroup((0,), (1,)),),
        (AxisGroup((0,), (None,)),),
        (AxisGroup((None,), (0,)),),
        (AxisGroup((0,), (0,)), AxisGroup((0,), (None,))),
    ):
        with pytest.raises(AssertionError):
            check_axes(_Claims(groups), [x])


def test_inline_keeps_results() -> None:
    """`inline` of a sample's graph is the graph: what the tests above rest on."""
    sample = samples_of("mean")[0]
    graph = _graph("mean", 0)
    copy = trace_graph(lambda *values: inline(graph, values), sample.types)
    assert copy.digest() == graph.digest()
