"""Tensors as NumPy's and PyTorch's users know them: creation, operators, indexing, methods, copies."""

import copy
import pickle

import numpy as np
import pytest

import thalweg as tw
from thalweg.errors import ArgumentError, DTypeError, GradientError, IndexRangeError, ShapeError


def same(tensor, array):
    """Equal values, shape and element type."""
    found = tensor.numpy()
    assert found.dtype == array.dtype, (found.dtype, array.dtype)
    np.testing.assert_array_equal(found, array)
    assert tensor.shape == array.shape


@pytest.fixture
def x():
    return np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 11.5


# ---- creation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [
        (1.5, "float32", ()),
        (3, "int64", ()),
        (True, "bool", ()),
        ([1.0, 2.0], "float32", (2,)),
        ([[1, 2], [3, 4]], "int64", (2, 2)),
        ([True, False], "bool", (2,)),
        ([1, 2.5], "float32", (2,)),
        ([], "float32", (0,)),
        ([[], []], "float32", (2, 0)),
        (2**63, "uint64", ()),
        (np.float64(2), "float64", ()),
        (np.zeros((2, 0), np.int8), "int8", (2, 0)),
        ((1, (2)), "int64", (2,)),
    ],
)
def test_tensor_of_python_data(data, dtype, shape):
    made = tw.tensor(data)
    assert str(made.dtype) == dtype and made.shape == shape


def test_explicit_dtype_and_nested_tensors():
    assert tw.tensor([1, 2], dtype="float64").dtype is tw.float64
    assert tw.tensor(0.1, dtype=tw.float64).item() == 0.1
    assert tw.tensor([0.1], dtype=tw.float64).item() == 0.1
    with pytest.raises(DTypeError, match=r"int8 \(-128 to 127\)"):
        tw.tensor([1, 300], dtype="int8")
    same(tw.tensor([tw.tensor([1.0, 2.0]), tw.tensor([3.0, 4.0])]), np.array([[1, 2], [3, 4]], np.float32))
    assert tw.tensor([tw.tensor(1.0, dtype="float64")]).dtype is tw.float64


def test_tensor_copies_and_asarray_shares():
    source = np.ones(3, np.float32)
    copied, shared = tw.tensor(source), tw.asarray(source)
    source[0] = 7
    assert copied.tolist() == [1, 1, 1]
    assert np.shares_memory(shared.numpy(), source)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ("text", DTypeError, "text"),
        (None, DTypeError, "NoneType"),
        ([1.0, "a"], DTypeError, "numbers"),
        ([[1.0, 2.0], [3.0]], ShapeError, "rows of equal length"),
        (1j, DTypeError, "complex"),
        (2**70, DTypeError, "64 bits"),
        ([2**70], DTypeError, "64 bits"),
        ([object()], DTypeError, "numbers"),
    ],
)
def test_what_is_not_a_tensor(data, error, words):
    with pytest.raises(error, match=words):
        tw.tensor(data)


def test_functions_that_make_tensors():
    same(tw.zeros((2, 3)), np.zeros((2, 3), np.float32))
    same(tw.ones(2, dtype="int8"), np.ones(2, np.int8))
    same(tw.full((2,), 7), np.full(2, 7))
    same(tw.arange(2, 10, 3), np.arange(2, 10, 3))
    same(tw.eye(2), np.eye(2, dtype=np.float32))
    np.testing.assert_allclose(tw.linspace(0, 1, 5).numpy(), np.linspace(0, 1, 5), rtol=1e-6)
    like = tw.tensor([1, 2])
    same(tw.zeros_like(like), np.zeros(2, np.int64))
    same(tw.ones_like(like, dtype="float32"), np.ones(2, np.float32))
    same(tw.full_like(like, 5), np.full(2, 5))


# ---- attributes and values ---------------------------------------------------------------------------------


def test_attributes(x):
    t = tw.tensor(x)
    assert (t.shape, t.ndim, t.size, t.nbytes, t.dtype) == ((2, 3, 4), 3, 24, 96, tw.float32)
    assert len(t) == 2 and t.dim() == 3 and t.numel() == 24 and not t.is_traced
    assert t.contiguous() is t


def test_python_numbers_from_tensors():
    assert float(tw.tensor(2.5)) == 2.5 and int(tw.tensor([3])) == 3 and bool(tw.tensor([[True]]))
    assert not tw.tensor(0.0) and complex(tw.tensor(2.0)) == 2
    assert [10, 20, 30][tw.tensor(1)] == 20
    assert tw.tensor([[1, 2]]).tolist() == [[1, 2]]
    assert type(tw.tensor(1.0).item()) is float and type(tw.tensor(True).item()) is bool
    assert tw.tensor(1.5, dtype="bfloat16").item() == 1.5
    assert f"{tw.tensor(1.25):.1f}" == "1.2"
    assert 2.0 in tw.tensor([1.0, 2.0]) and 3.0 not in tw.tensor([1.0, 2.0])
    assert [float(row.sum()) for row in tw.tensor([[1.0, 2.0], [3.0, 4.0]])] == [3, 7]


@pytest.mark.parametrize(
    ("use", "error", "words"),
    [
        (lambda t: float(t), ShapeError, "one element"),
        (lambda t: t.item(), ShapeError, "tolist"),
        (lambda t: bool(t), ShapeError, "ambiguous"),
        (lambda t: len(t.sum()), ShapeError, "0-d"),
        (lambda t: list(t.sum()), ShapeError, "0-d"),
        (lambda t: [1, 2][t.sum()], DTypeError, "int"),
        (lambda t: t.T, ShapeError, "mT"),
        (lambda t: t.to("gpu"), ArgumentError, "no device"),
        (lambda t: t.expand(-1, 2, 3, 4), ShapeError, "expand"),
        (lambda t: t.clip(), ArgumentError, "clip"),
        (lambda t: t[9], IndexRangeError, "out of range"),
        (lambda t: t.backward(), GradientError, "minimize"),
        (lambda t: t.grad, GradientError, "tw.gradient"),
    ],
)
def test_what_a_tensor_refuses(x, use, error, words):
    with pytest.raises(error, match=words):
        use(tw.tensor(x))


def test_backward_shows_three_ways():
    with pytest.raises(GradientError) as caught:
        tw.tensor(1.0).backward()
    text = str(caught.value)
    assert "optimizer.minimize(loss)" in text and "tw.gradient(loss, wrt=model)" in text
    assert "tw.value_and_grad(f)" in text


def test_assignment_to_elements_is_refused_with_code():
    t = tw.tensor([1.0, 2.0])
    with pytest.raises(ArgumentError, match=r"tw.index_put\(x, key, value\)"):
        t[0] = 5.0
    same(tw.index_put(t, 0, 5.0), np.array([5, 2], np.float32))


def test_numpy_view_is_read_only_and_shares(x):
    t = tw.tensor(x)
    view = t.numpy()
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    assert np.shares_memory(view, t.numpy())
    assert not np.asarray(t).flags.writeable and np.array(t).flags.writeable
    assert np.asarray(t, dtype=np.float64).dtype == np.float64


def test_numpy_functions_and_mixed_arithmetic(x):
    t = tw.tensor(x)
    mixed = x + t
    assert isinstance(mixed, tw.Tensor)
    same(mixed, x + x)
    assert isinstance(np.float32(2) * t, tw.Tensor)
    assert np.mean(np.asarray(t)) == x.mean()


# ---- operators ---------------------------------------------------------------------------------------------

OPERATORS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@pytest.mark.parametrize("sign", OPERATORS)
@pytest.mark.parametrize(
    "shapes", [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1), (1, 3)), ((), (2, 3)), ((2, 0), (1, 1))]
)
def test_operators_broadcast_as_numpy(sign, shapes):
    generator = np.random.default_rng(0)
    a, b = (
        np.round(generator.normal(size=shape) * 4).astype(np.float32) + np.float32(0.5) for shape in shapes
    )
    operator = OPERATORS[sign]
    expected = np.asarray(operator(a, b))
    same(operator(tw.tensor(a), tw.tensor(b)), expected)
    same(operator(tw.tensor(a), b), expected)
    if b.ndim:
        same(operator(a, tw.tensor(b)), expected)


def test_python_numbers_are_weak():
    whole, half = tw.tensor([1, 2]), tw.tensor([1.0], dtype="float16")
    assert (whole + 1).dtype is tw.int64 and (whole + 1.5).dtype is tw.float32
    assert (half * 2.5).dtype is tw.float16 and (2 - half).dtype is tw.float16
    assert (tw.tensor([1], dtype="int8") + 1).dtype is tw.int8
    assert (whole / 2).dtype is tw.float32 and (whole // 2).dtype is tw.int64


def test_integer_and_bool_operators():
    a, b = np.array([5, -3, 12]), np.array([3, 2, 5])
    s, t = tw.tensor(a), tw.tensor(b)
    same(s & t, a & b)
    same(s | t, a | b)
    same(s ^ t, a ^ b)
    same(s << t, a << b)
    same(s >> t, a >> b)
    same(~s, ~a)
    same(-s, -a)
    same(abs(s), abs(a))
    same(s**2, a**2)
    same(+s, a)
    same(~tw.tensor([True]), np.array([False]))


def test_matmul_operator():
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(12, dtype=np.float32).reshape(3, 4)
    same(tw.tensor(a) @ tw.tensor(b), a @ b)
    same(a @ tw.tensor(b), a @ b)


def test_shape_error_names_the_line():
    with pytest.raises(ShapeError) as caught:
        tw.tensor(np.zeros((2, 3), np.float32)) + tw.tensor(np.zeros((2, 4), np.float32))
    assert "axis -1" in str(caught.value)


def test_matmul_error_names_shapes_and_line():
    with pytest.raises(ShapeError) as caught:
        tw.tensor(np.zeros((2, 3), np.float32)) @ tw.tensor(np.zeros((4, 2), np.float32))
    text = str(caught.value)
    assert "3" in text and "4" in text


# ---- indexing ----------------------------------------------------------------------------------------------

KEYS = [
    0,
    -1,
    (1, 2),
    slice(None),
    slice(1, None),
    slice(None, None, -1),
    (slice(None), slice(2, 0, -1)),
    (..., 0),
    (None, 1),
    (slice(None), None, 1),
    (0, ..., slice(None, None, 2)),
    ([0, 1, 1],),
    ([0, 1], [2, 0]),
    (slice(None), [2, 0]),
    (slice(None), slice(None), np.array([[0, 1], [3, 2]])),
    ([0, 1], slice(None), [1, 2]),
    (1, slice(None), [0, 0]),
    ([-1],),
    np.array([True, False]),
    (slice(None), np.array([True, False, True])),
    slice(5, 9),
    (),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_indexing_as_numpy(x, key):
    same(tw.tensor(x)[key], x[key])


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_index_put_as_numpy_assignment(x, key):
    expected = x.copy()
    expected[key] = 99
    same(tw.index_put(tw.tensor(x), key, 99), expected)


def test_indexing_by_tensors(x):
    t = tw.tensor(x)
    same(t[tw.tensor(1)], x[1])
    same(t[tw.tensor([1, 0]), 2], x[[1, 0], 2])
    same(t[t > 0], x[x > 0])
    same(t[:, tw.tensor([True, False, True])], x[:, [True, False, True]])
    same(t[: tw.tensor(1)], x[:1])


# ---- methods -----------------------------------------------------------------------------------------------

METHODS = {
    "reshape": (lambda t: t.reshape(4, -1), lambda a: a.reshape(4, -1)),
    "reshape tuple": (lambda t: t.reshape((6, 4)), lambda a: a.reshape(6, 4)),
    "view": (lambda t: t.view(24), lambda a: a.reshape(24)),
    "flatten": (lambda t: t.flatten(1), lambda a: a.reshape(2, 12)),
    "transpose": (lambda t: t.transpose(), lambda a: a.transpose()),
    "transpose two": (lambda t: t.transpose(0, 2), lambda a: a.swapaxes(0, 2)),
    "transpose two of a matrix": (lambda t: t[0].transpose(0, 1), lambda a: a[0].T),
    "transpose permutation": (lambda t: t.transpose((1, 0, 2)), lambda a: a.transpose(1, 0, 2)),
    "permute": (lambda t: t.permute(2, 0, 1), lambda a: a.transpose(2, 0, 1)),
    "swapaxes": (lambda t: t.swapaxes(0, 1), lambda a: a.swapaxes(0, 1)),
    "moveaxis": (lambda t: t.moveaxis(0, -1), lambda a: np.moveaxis(a, 0, -1)),
    "T": (lambda t: t[0].T, lambda a: a[0].T),
    "mT": (lambda t: t.mT, lambda a: a.swapaxes(-1, -2)),
    "squeeze": (lambda t: t[:1].squeeze(0), lambda a: a[0]),
    "unsqueeze": (lambda t: t.unsqueeze(-1), lambda a: a[..., None]),
    "expand": (lambda t: t[:, :1].expand(-1, 5, 4), lambda a: np.broadcast_to(a[:, :1], (2, 5, 4))),
    "broadcast_to": (lambda t: t.broadcast_to(2, 2, 3, 4), lambda a: np.broadcast_to(a, (2, 2, 3, 4))),
    "flip": (lambda t: t.flip(1), lambda a: np.flip(a, 1)),
    "tile": (lambda t: t.tile(1, 2, 1), lambda a: np.tile(a, (1, 2, 1))),
    "repeat": (lambda t: t.repeat(2, 1), lambda a: np.repeat(a, 2, 1)),
    "sum": (lambda t: t.sum(), lambda a: a.sum()),
    "sum axes": (lambda t: t.sum((0, 2), keepdims=True), lambda a: a.sum((0, 2), keepdims=True)),
    "mean": (lambda t: t.mean(-1), lambda a: a.mean(-1)),
    "max": (lambda t: t.max(1), lambda a: a.max(1)),
    "min": (lambda t: t.min(), lambda a: a.min()),
    "argmax": (lambda t: t.argmax(2), lambda a: a.argmax(2)),
    "argmin": (lambda t: t.argmin(), lambda a: np.asarray(a.argmin())),
    "any": (lambda t: (t > 11).any(), lambda a: (a > 11).any()),
    "all": (lambda t: (t > 11).all(0), lambda a: (a > 11).all(0)),
    "abs": (lambda t: t.abs(), lambda a: np.abs(a)),
    "square": (lambda t: t.square(), lambda a: a * a),
    "relu": (lambda t: t.relu(), lambda a: np.maximum(a, 0)),
    "clip": (lambda t: t.clip(-1, 2), lambda a: a.clip(-1, 2)),
    "clamp": (lambda t: t.clamp(min=0), lambda a: a.clip(0)),
    "maximum": (lambda t: t.maximum(0), lambda a: np.maximum(a, 0)),
    "take": (lambda t: t.take([0, 2], axis=1), lambda a: a.take([0, 2], axis=1)),
    "cumsum": (lambda t: t.cumsum(1), lambda a: a.cumsum(1)),
    "masked_fill": (lambda t: t.masked_fill(t > 0, 0.0), lambda a: np.where(a > 0, np.float32(0), a)),
    "gather": (
        lambda t: t.gather(2, tw.tensor(np.zeros((2, 3, 1), np.int64))),
        lambda a: np.take_along_axis(a, np.zeros((2, 3, 1), np.int64), 2),
    ),
    "floor": (lambda t: t.floor(), np.floor),
    "round": (lambda t: t.round(), np.round),
    "sign": (lambda t: t.sign(), np.sign),
    "long": (lambda t: t.long(), lambda a: a.astype(np.int64)),
    "double": (lambda t: t.double(), lambda a: a.astype(np.float64)),
    "bool": (lambda t: t.bool(), lambda a: a.astype(bool)),
    "to": (lambda t: t.to("int32"), lambda a: a.astype(np.int32)),
    "astype": (lambda t: t.astype(np.float16), lambda a: a.astype(np.float16)),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_as_numpy(x, name):
    ours, theirs = METHODS[name]
    same(ours(tw.tensor(x)), np.asarray(theirs(x)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda t: t.exp(), np.exp),
        (lambda t: t.abs().log(), lambda a: np.log(np.abs(a))),
        (lambda t: t.abs().sqrt(), lambda a: np.sqrt(np.abs(a))),
        (lambda t: t.abs().rsqrt(), lambda a: 1 / np.sqrt(np.abs(a))),
        (lambda t: t.sin(), np.sin),
        (lambda t: t.cos(), np.cos),
        (lambda t: t.tanh(), np.tanh),
        (lambda t: t.expm1(), np.expm1),
        (lambda t: t.abs().log1p(), lambda a: np.log1p(np.abs(a))),
        (lambda t: t.pow(3), lambda a: a**3),
        (lambda t: t.sigmoid(), lambda a: 1 / (1 + np.exp(-a))),
        (lambda t: t.softmax(0), lambda a: np.exp(a) / np.exp(a).sum(0)),
        (lambda t: t.log_softmax(), lambda a: a - np.log(np.exp(a).sum(-1, keepdims=True))),
        (lambda t: t.logsumexp(1), lambda a: np.log(np.exp(a).sum(1))),
        (lambda t: t.var(1), lambda a: a.var(1)),
        (lambda t: t.std(correction=1), lambda a: a.std(ddof=1)),
        (lambda t: (t / 12).prod(-1), lambda a: (a / 12).prod(-1)),
        (lambda t: t.silu(), lambda a: a / (1 + np.exp(-a))),
    ],
)
def test_floating_point_methods(x, ours, theirs):
    found = ours(tw.tensor(x))
    np.testing.assert_allclose(found.numpy(), theirs(x.astype(np.float64)), rtol=3e-6, atol=1e-6)
    assert found.dtype is tw.float32


def test_the_body_of_a_composite_may_use_methods():
    @tw.composite
    def normalized_for_test(x):
        return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True).clip(1e-5, 10) + x.T.sum() * 0

    x = np.array([[1.0, 3.0], [2.0, 6.0]], np.float32)
    np.testing.assert_allclose(normalized_for_test(tw.tensor(x)).numpy(), [[-1, 1], [-1, 1]], rtol=1e-6)
    assert float(tw.compile(normalized_for_test)(x)[0, 1]) == 1


# ---- repr, copies, pickling --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: tw.tensor(1.0), "tensor(1.)"),
        (lambda: tw.tensor([1, 2]), "tensor([1, 2])"),
        (lambda: tw.tensor([1.0], dtype="float64"), "tensor([1.], dtype=float64)"),
        (lambda: tw.zeros((0, 3)), "tensor([], dtype=float32, shape=(0, 3))"),
        (lambda: tw.tensor([True]), "tensor([ True])"),
        (lambda: tw.tensor([1.5], dtype="bfloat16"), "tensor([1.5], dtype=bfloat16)"),
        (lambda: tw.Parameter([1.0, 2.0], name="fc.bias"), "Parameter('fc.bias', [1., 2.])"),
        (lambda: tw.Buffer(3), "Buffer(3)"),
    ],
)
def test_repr(made, text):
    assert repr(made()) == text


def test_repr_of_large_tensors_is_short():
    text = repr(tw.zeros((1000, 1000)))
    assert "..." in text and "shape=(1000, 1000)" in text and len(text) < 600


def test_copies_of_tensors():
    t = tw.tensor([1.0, 2.0])
    for twin in (copy.copy(t), copy.deepcopy(t), t.clone(), t.copy(), t.detach()):
        same(twin, t.numpy())
        assert twin is not t


def test_deepcopy_of_holders_is_independent_and_keeps_ties():
    parameter = tw.Parameter([1.0, 2.0], trainable=False, name="w")
    first, second, slot = copy.deepcopy([parameter, parameter, tw.Buffer([1])])
    assert first is second and first is not parameter
    assert (first.name, first.trainable) == ("w", False)
    first.assign([5.0, 6.0])
    assert parameter.tolist() == [1, 2] and second.tolist() == [5, 6]
    assert type(slot) is tw.Buffer


@pytest.mark.parametrize(
    "item", [tw.tensor([1.0]), tw.Parameter([1.0]), tw.Buffer([1])], ids=lambda t: type(t).__name__
)
def test_pickling_is_refused_with_a_way_out(item):
    with pytest.raises(TypeError, match="safetensors"):
        pickle.dumps(item)


def test_tensors_are_hashable_by_identity():
    first, second = tw.tensor([1.0]), tw.tensor([1.0])
    assert len({first, second, first}) == 2


def test_bfloat16_values():
    t = tw.tensor([1.0, 2.5, 3.1]).bfloat16()
    assert t.dtype is tw.bfloat16 and t.tolist()[:2] == [1.0, 2.5]
    assert (t + 1).dtype is tw.bfloat16
