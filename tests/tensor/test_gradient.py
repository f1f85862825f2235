"""Gradients for users: functions, losses, nests, orders, custom rules, and every error with its repaired
code.
"""

import numpy as np
import pytest

import thalweg as tw
from thalweg.errors import GradientError


def numbers(found):
    return tuple(float(item) for item in found)


def f(x, y, z):
    return 2 * x**2 + y**3 + z


class Net:
    """The least that makes a module: named parameters."""

    def __init__(self):
        self.weight = tw.Parameter(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), name="weight")
        self.bias = tw.Parameter(np.array([0.5, -0.5], np.float32), name="bias")

    def named_parameters(self):
        yield "weight", self.weight
        yield "bias", self.bias

    def modules(self):
        yield self

    def __call__(self, x):
        return x @ self.weight + self.bias


X = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.25]], np.float32)


# ---- grad --------------------------------------------------------------------------------------------------


def test_the_definition():
    assert numbers(tw.grad(f)(1.0, 2.0, 3.0)) == (4, 12, 1)
    assert numbers(tw.grad(f, wrt=("x", "y"))(1.0, 2.0, 3.0)) == (4, 12)
    assert numbers(tw.grad(f, wrt=(1, 2))(1.0, 2.0, 3.0)) == (12, 1)
    assert numbers(tw.grad(f, wrt=("z", "x"))(1.0, 2.0, 3.0)) == (1, 4)


@pytest.mark.parametrize("wrt", ["y", 1, -2])
def test_a_single_name_or_position_gives_the_bare_gradient(wrt):
    found = tw.grad(f, wrt=wrt)(1.0, 2.0, 3.0)
    assert isinstance(found, tw.Tensor) and float(found) == 12


def test_a_function_of_one_argument_gives_the_bare_gradient():
    assert float(tw.grad(lambda x: x * x)(3.0)) == 6
    assert numbers(tw.grad(lambda x: x * x, wrt=(0,))(3.0)) == (6,)


def test_keyword_arguments():
    assert numbers(tw.grad(f)(1.0, 2.0, z=3.0)) == (4, 12, 1)
    assert float(tw.grad(f, wrt="z")(1.0, y=2.0, z=3.0)) == 1

    def scaled(x, *, factor):
        return x * factor

    assert float(tw.grad(scaled)(2.0, factor=3)) == 3
    assert float(tw.grad(scaled, wrt="factor")(2.0, factor=3.0)) == 2


def test_tensors_and_value():
    x = tw.tensor([1.0, -2.0, 3.0])
    value, found = tw.value_and_grad(lambda x: (x**3).sum())(x)
    assert float(value) == 20 and found.tolist() == [3, 12, 27]
    found = tw.grad(lambda x, y: (x * y).sum())(x, np.ones(3, np.float32))
    assert found[0].tolist() == [1, 1, 1] and found[1].tolist() == x.tolist()


def test_float64_arguments_keep_their_type():
    assert tw.grad(lambda x: x * x)(np.float64(3)).dtype is tw.float64


def test_the_same_tensor_twice_has_two_partial_derivatives():
    x = tw.tensor(3.0)
    assert numbers(tw.grad(lambda a, b: a * a * b)(x, x)) == (18, 9)
    p = tw.Parameter(3.0)
    assert numbers(tw.grad(lambda a, b: a * a * b)(p, p)) == (18, 9)
    compiled = tw.compile(lambda x: tw.grad(lambda a, b: a * a * b)(x, x))
    assert numbers(compiled(x)) == (18, 9)


def test_nests_of_arguments():
    def loss(parts):
        return (parts["a"][0] * parts["b"] + parts["a"][1]).sum()

    found = tw.grad(loss)({"a": (tw.tensor([1.0, 2.0]), np.float32(5)), "b": 3.0})
    assert found["a"][0].tolist() == [3, 3] and float(found["a"][1]) == 2 and float(found["b"]) == 3
    assert isinstance(found["a"], tuple)


def test_a_module_as_argument_gives_a_dict():
    net = Net()
    _, found = tw.value_and_grad(lambda model, x: model(x).sum(), wrt="model")(net, X)
    assert list(found) == ["weight", "bias"] and found["bias"].tolist() == [3, 3]


def test_auxiliary_results():
    def loss(x):
        return (x * x).sum(), {"double": x * 2, "text": "kept"}

    (value, extra), found = tw.value_and_grad(loss, has_aux=True)(tw.tensor([1.0, 2.0]))
    assert float(value) == 5 and extra["double"].tolist() == [2, 4] and extra["text"] == "kept"
    found, extra = tw.grad(loss, has_aux=True)(tw.tensor([1.0, 2.0]))
    assert found.tolist() == [2, 4]


def test_python_control_flow_works_eagerly():
    def g(x):
        return x * x if x > 0 else -3 * x

    assert float(tw.grad(g)(2.0)) == 4 and float(tw.grad(g)(-2.0)) == -3


def test_gradients_of_any_order():
    g = lambda x: x**4  # noqa: E731
    for expected in (4 * 8.0, 12 * 4.0, 24 * 2.0, 24.0):
        g = tw.grad(g)
        assert float(g(2.0)) == expected
    hessian_row = tw.grad(lambda x: tw.grad(lambda x: (x**3).sum())(x)[1])(tw.tensor([1.0, 2.0]))
    assert hessian_row.tolist() == [0, 12]


def test_second_order_through_composites():
    x = tw.tensor([0.3, -1.2, 2.0], dtype="float64")
    for function in (tw.softmax, tw.log_softmax, tw.sigmoid, tw.gelu, lambda v: tw.relu(v) ** 2, tw.softplus):

        def first(v, function=function):
            return tw.grad(lambda u: (function(u) * tw.tensor([1.0, 2.0, -1.0], dtype="float64")).sum())(v)

        exact = tw.grad(
            lambda v, first=first: (first(v) * tw.tensor([0.5, 1.0, 2.0], dtype="float64")).sum()
        )(x)
        step, weight = 1e-5, np.array([0.5, 1.0, 2.0])
        for i in range(3):
            shift = np.eye(3)[i] * step
            up, down = (first(tw.tensor(x.numpy() + s * shift)).numpy() for s in (1, -1))
            assert abs(exact.numpy()[i] - ((up - down) / (2 * step) * weight).sum()) < 1e-6


def test_grad_works_inside_no_grad_and_on_results_of_compiled_functions():
    with tw.no_grad():
        assert float(tw.grad(lambda x: x * x)(3.0)) == 6
    compiled = tw.compile(lambda x: (x**3).sum())
    assert tw.grad(compiled)(tw.tensor([1.0, 2.0])).tolist() == [3, 12]
    second = tw.grad(lambda x: tw.grad(compiled)(x).sum())(tw.tensor([1.0, 2.0]))
    assert second.tolist() == [6, 12]


# ---- gradient ----------------------------------------------------------------------------------------------


def eager_and_compiled(function, *args):
    """The results of a function run eagerly, and compiled."""
    return function(*args), tw.compile(function)(*args)


def test_gradient_by_parameter_module_and_nest():
    net = Net()

    def step(x):
        loss = (net(x) ** 2).mean()
        by_name = tw.gradient(loss, wrt=net)
        nested = tw.gradient(loss, wrt={"first": [net.bias], "rest": (net.weight, net)})
        return tw.gradient(loss, wrt=net.weight), by_name, nested

    for weight, by_name, nested in eager_and_compiled(step, X):
        expected = 2 * X.T @ (X @ net.weight.numpy() + net.bias.numpy()) / 6
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6)
        for found in (by_name["weight"], nested["rest"][0], nested["rest"][1]["weight"]):
            np.testing.assert_array_equal(found.numpy(), weight.numpy())
        np.testing.assert_array_equal(nested["first"][0].numpy(), by_name["bias"].numpy())


def test_gradient_with_respect_to_an_iterator_of_parameters():
    net = Net()
    loss = net(X).sum()
    found = tw.gradient(loss, wrt=(p for _, p in net.named_parameters()))
    assert isinstance(found, list) and found[1].tolist() == [3, 3]


def test_gradient_with_respect_to_an_intermediate_tensor():
    net = Net()

    def step(x):
        hidden = net(x)
        return tw.gradient((hidden**2).sum(), wrt=hidden), hidden

    for found, hidden in eager_and_compiled(step, X):
        np.testing.assert_allclose(found.numpy(), 2 * hidden.numpy(), rtol=1e-6)


def test_gradient_with_respect_to_an_argument_of_a_compiled_function():
    found = tw.compile(lambda x: tw.gradient((x**2).sum(), wrt=x))(X)
    np.testing.assert_allclose(found.numpy(), 2 * X)


def test_gradient_of_gradient_as_penalty():
    net = Net()

    def step(x):
        slope = tw.grad(lambda x: (net(x) ** 2).sum())(x)
        return tw.gradient((slope**2).sum(), wrt=net)

    (eager, compiled) = eager_and_compiled(step, tw.tensor(X))
    for name in ("weight", "bias"):
        np.testing.assert_allclose(eager[name].numpy(), compiled[name].numpy(), rtol=1e-5)
    # against finite differences in float64
    weight, bias, h = net.weight.numpy().astype(np.float64), net.bias.numpy().astype(np.float64), 1e-6

    def penalty(weight):
        return ((2 * (X @ weight + bias) @ weight.T) ** 2).sum()

    for i, j in np.ndindex(2, 2):
        shift = np.zeros((2, 2))
        shift[i, j] = h
        expected = (penalty(weight + shift) - penalty(weight - shift)) / (2 * h)
        assert abs(eager["weight"].numpy()[i, j] - expected) < 1e-3 * max(1, abs(expected))


def test_two_losses_share_a_trunk():
    net = Net()

    def step(x):
        hidden = net(x)
        first, second = hidden.sum(), (hidden * 2).sum()
        return tw.gradient(first, wrt=net.bias), tw.gradient(second, wrt=net.bias)

    for first, second in eager_and_compiled(step, X):
        assert first.tolist() == [3, 3] and second.tolist() == [6, 6]


def test_frozen_parameters():
    net = Net()
    net.weight.trainable = False

    def step(x):
        return tw.gradient((net(x) ** 2).sum(), wrt=net)

    for found in eager_and_compiled(step, X):
        assert list(found) == ["bias"]
    with pytest.raises(GradientError, match="frozen"):
        tw.gradient(net(X).sum(), wrt=net.weight)
    net.weight.trainable = True
    assert list(tw.gradient(net(X).sum(), wrt=net)) == ["weight", "bias"]
    net.weight.trainable = net.bias.trainable = False
    with pytest.raises(GradientError, match="all parameters of the module are frozen"):
        tw.gradient(net(X).sum(), wrt=net)


def test_history_keeps_old_values():
    p = tw.Parameter(3.0)
    loss = p * p
    p.assign(100.0)
    assert float(tw.gradient(loss, wrt=p)) == 6


def test_a_parameter_read_before_and_after_an_assignment():
    p = tw.Parameter(2.0)

    def step():
        before = p * p  # 2p = 4
        p.assign(p * 5)  # no gradient flows through the assignment
        after = p * p * p  # 3p^2 = 300
        found = tw.gradient(before + after, wrt=p)
        p.assign(2.0)
        return found

    for found in eager_and_compiled(step):
        assert float(found) == 304


# ---- what ends a path --------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "cut",
    [
        tw.stop_gradient,
        lambda t: t.detach(),
        tw.no_grad(lambda t: t * 1),
        tw.no_grad()(lambda t: t * 1),
        lambda t: (t > 0).float(),
        lambda t: t.long().float(),
    ],
)
def test_what_ends_a_path(cut, compiled):
    p = tw.Parameter([1.0, 2.0], name="p")

    def step():
        return tw.gradient((cut(p) * p).sum(), wrt=p), cut(p)

    found, constant = (tw.compile(step) if compiled else step)()
    assert found.tolist() == constant.tolist()

    def unused():
        return tw.gradient(cut(p).sum() + 0.0, wrt=p)

    with pytest.raises(GradientError, match=r"does not depend on wrt \(p\)"):
        (tw.compile(unused) if compiled else unused)()


def test_no_grad_is_a_context_manager_that_nests_and_survives_errors():
    p = tw.Parameter(1.0)
    block = tw.no_grad()
    with block:
        with block:
            assert (p * 2)._value.node is None
        assert (p * 2)._value.node is None
    assert (p * 2)._value.node is not None
    with pytest.raises(ZeroDivisionError), tw.no_grad():
        1 / 0  # noqa: B018
    assert (p * 2)._value.node is not None


def test_without_tracked_tensors_no_history_is_kept():
    assert (tw.tensor(1.0) * 2)._value.node is None
    assert (tw.Buffer(1.0) * 2)._value.node is None
    assert (tw.Parameter(1.0, trainable=False) * 2)._value.node is None
    assert (tw.Parameter(1.0) > 0)._value.node is None


def test_history_is_freed_without_the_garbage_collector():
    import gc
    import weakref

    p = tw.Parameter(np.ones(4, np.float32))
    gc.disable()
    try:
        hidden = p * 2
        node = weakref.ref(hidden._value.node)
        loss = (hidden * hidden).sum()
        del hidden
        assert node() is not None
        tw.gradient(loss, wrt=p)
        del loss
        assert node() is None
    finally:
        gc.enable()


def test_long_histories_do_not_overflow_the_stack():
    p = tw.Parameter(1.0)
    total = p * 0.0
    for _ in range(5_000):
        total = total + p
    assert float(tw.gradient(total, wrt=p)) == 5_000
    del total


def test_a_gradient_is_never_partial_because_half_was_not_recorded():
    x = tw.tensor([1.0, 2.0])
    square = x * x  # not recorded
    with pytest.raises(GradientError, match="has no history"):
        tw.gradient((p * x + square).sum(), wrt=x)


# ---- vjp ---------------------------------------------------------------------------------------------------


def test_vjp_of_several_results():
    x, y = tw.tensor([1.0, 2.0]), tw.tensor(3.0)
    outputs, pull = tw.vjp(lambda x, y: {"product": x * y, "sum": x.sum()}, x, y)
    assert outputs["product"].tolist() == [3, 6]
    by_x, by_y = pull({"product": [1.0, 10.0], "sum": 100.0})
    assert by_x.tolist() == [103, 130] and float(by_y) == 21
    with pytest.raises(GradientError, match="cotangent"):
        pull({"product": [1.0, 10.0, 3.0], "sum": 1.0})
    with pytest.raises(
        GradientError, match="a dict with the keys 'product', 'sum', its cotangent a list of 1"
    ):
        pull([1.0])
    with pytest.raises(GradientError, match="not a tensor but int"):
        tw.vjp(lambda x: [x, 7], x)[1]([x, 7])


def test_vjp_inside_compile_and_of_unused_arguments():
    def step(x):
        outputs, pull = tw.vjp(lambda x: x**3, x)
        return outputs, pull(tw.ones_like(outputs))[0]

    outputs, found = tw.compile(step)(tw.tensor([1.0, 2.0]))
    assert outputs.tolist() == [1, 8] and found.tolist() == [3, 12]
    _, pull = tw.vjp(lambda x, y: x * 2, tw.tensor(1.0), tw.tensor(1.0))
    with pytest.raises(GradientError, match="argument 1"):
        pull(1.0)
    assert numbers(pull(1.0, allow_unused=True)) == (2, 0)


# ---- custom rules ------------------------------------------------------------------------------------------


def test_user_composite_with_a_gradient_rule_of_its_own():
    @tw.composite
    def clipped_identity_for_test(x, *, limit: float):
        return x * 1.0

    @clipped_identity_for_test.gradient
    def rule(inputs, outputs, cotangents, *, limit):
        return (tw.clip(cotangents[0], -limit, limit),)

    def step(x):
        return tw.grad(
            lambda x: (clipped_identity_for_test(x, limit=0.5) * tw.tensor([0.1, 3.0, -9.0])).sum()
        )(x)

    for found in eager_and_compiled(step, tw.tensor([1.0, 1.0, 1.0])):
        np.testing.assert_allclose(found.numpy(), [0.1, 0.5, -0.5], rtol=1e-6)


def test_user_composite_without_a_rule_is_differentiated_through_its_body():
    @tw.composite
    def cubed_for_test(x):
        return x * x * x

    assert float(tw.grad(cubed_for_test)(2.0)) == 12
    assert float(tw.grad(tw.grad(cubed_for_test))(2.0)) == 12
    with tw.no_grad():
        assert float(tw.grad(tw.compile(cubed_for_test))(2.0)) == 12


def test_composite_with_residuals_uses_those_of_the_forward_pass():
    calls = []

    @tw.composite
    def halved_for_test(x):
        return x * 0.5

    @halved_for_test.residuals
    def halved_with_residual_for_test(x):
        return x * 0.5, x * 0.0 + 0.5

    @halved_with_residual_for_test.reference
    def numpy_version(x):
        calls.append(1)
        return x * np.float32(0.5), np.full_like(x, 0.5)

    @halved_for_test.gradient
    def rule(inputs, outputs, cotangents):
        return (cotangents[0] * outputs[1],)

    p = tw.Parameter([2.0, 4.0])
    loss = (halved_for_test(p) ** 2).sum()
    assert len(calls) == 1
    assert tw.gradient(loss, wrt=p).tolist() == [1, 2] and len(calls) == 1
    first = tw.grad(lambda x: (halved_for_test(x) ** 2).sum())
    assert tw.grad(lambda x: (first(x) * x).sum())(tw.tensor([2.0, 4.0])).tolist() == [2, 4]
    compiled = tw.compile(lambda: tw.gradient((halved_for_test(p) ** 2).sum(), wrt=p))
    assert compiled().tolist() == [1, 2]


def test_a_composite_that_uses_a_tensor_from_outside_is_an_error():
    outside = tw.tensor([1.0])

    @tw.composite
    def leaky_for_test(x):
        return x * outside

    with pytest.raises(tw.errors.TraceError, match="further positional argument"):
        leaky_for_test(tw.tensor([2.0]))


# ---- errors ------------------------------------------------------------------------------------------------

p = tw.Parameter([1.0, 2.0], name="p")
q = tw.Parameter([1.0, 2.0], name="q")


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda: tw.gradient(p * 2, wrt=p), r"scalar, received shape \(2,\); write loss.mean\(\)"),
        (lambda: tw.gradient((p > 0).sum(), wrt=p), "floating point, received int64"),
        (lambda: tw.gradient(3.0, wrt=p), "must be a tensor, received 3.0"),
        (lambda: tw.gradient(float(p.sum()), wrt=p), "lose the history"),
        (lambda: tw.gradient(p.sum(), wrt=tw.tensor([1])), "element type int64"),
        (lambda: tw.gradient(p.sum(), wrt="p"), "tw.grad"),
        (lambda: tw.gradient(p.sum(), wrt=[]), "empty"),
        (lambda: tw.gradient(p.sum(), wrt=[p, {"other": q}]), r"wrt\[1\]\['other'\] \(q\)"),
        (lambda: tw.gradient(p.sum(), wrt=q), "allow_unused=True"),
        (lambda: tw.gradient(tw.tensor(1.0), wrt=q), "no history at all"),
        (lambda: tw.gradient(p.sum(), wrt=tw.tensor([1.0])), r"value_and_grad\(f\)\(x\)"),
        (lambda: tw.gradient(p.sum(), wrt=tw.tensor([1.0]), allow_unused=True), "has no history"),
        (lambda: tw.gradient(p.sum(), wrt=tw.Buffer([1.0], name="mean")), "'mean' is a Buffer"),
        (lambda: tw.grad(lambda x: x * 2)(tw.tensor([1.0, 2.0])), "scalar"),
        (lambda: tw.grad(lambda x: 5.0)(1.0), "must be a tensor"),
        (lambda: tw.grad(lambda x: x * x)(3), "write 3.0"),
        (lambda: tw.grad(lambda x, y: x * y)(1.0, tw.tensor(2)), r"argument 'y' has the element type int64"),
        (lambda: tw.grad(lambda x, flag: x)(1.0, True), "argument 'flag'"),
        (lambda: tw.grad(lambda x, mode: x)(1.0, "fast"), "argument 'mode' is 'fast'"),
        (lambda: tw.grad(lambda x, y: x)(1.0, 2.0), "does not depend on argument 'y'"),
        (
            lambda: tw.grad(f, wrt="w")(1.0, 2.0, 3.0),
            "'w' is not an argument of this call; its arguments are 'x', 'y', 'z'",
        ),
        (lambda: tw.grad(f, wrt=3)(1.0, 2.0, 3.0), "not a position"),
        (lambda: tw.grad(f, wrt=("x", 0))(1.0, 2.0, 3.0), "twice"),
        (lambda: tw.grad(f, wrt=1.5)(1.0, 2.0, 3.0), "positions and names"),
        (lambda: tw.grad(lambda: p.sum())(), "without arguments"),
        (lambda: tw.grad(lambda x: x, has_aux=True)(1.0), r"\(loss, auxiliary\)"),
    ],
)
def test_errors(use, words):
    with pytest.raises(GradientError, match=words):
        use()


def test_grad_of_what_is_not_a_function():
    with pytest.raises(tw.errors.ArgumentError, match=r"tw\.gradient"):
        tw.grad(tw.tensor(1.0))


def test_allow_unused_gives_zeros():
    found = tw.gradient(p.sum(), wrt=[p, q], allow_unused=True)
    assert found[1].tolist() == [0, 0]
    assert numbers(tw.grad(lambda x, y: x, allow_unused=True)(1.0, 2.0)) == (1, 0)
    assert tw.compile(lambda: tw.gradient(p.sum(), wrt=q, allow_unused=True))().tolist() == [0, 0]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_released_loss_cannot_be_differentiated_again(compiled):
    def again():
        loss = (p * p).sum()
        later = loss * 2
        tw.gradient(loss, wrt=p)
        tw.release(loss)
        value = loss + 0.0
        with pytest.raises(GradientError, match=r"released by minimize at .*test_gradient.py"):
            tw.gradient(loss, wrt=p)
        with pytest.raises(GradientError, match="compute the loss anew"):
            tw.gradient(later, wrt=p)
        return value

    assert float((tw.compile(again) if compiled else again)()) == 5
