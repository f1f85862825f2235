"""Optimisers: PyTorch's values step by step, groups, state, clipping, changes of numbers without compiling
again.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.errors import ArgumentError, GradientError, TraceError

CONFIGURATIONS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "amsgrad": True, "maximize": True}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.0, "maximize": True}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "alpha": 0.9, "momentum": 0.8, "centered": True, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.5, "maximize": True}),
    ("Adagrad", {"lr": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5}),
]
IDS = [f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items())}" for name, options in CONFIGURATIONS]
BACKENDS = [None, "numpy", "c"]  # None: eager


@pytest.fixture(autouse=True)
def _compiler(request: pytest.FixtureRequest) -> None:
    if "backend" in request.fixturenames and request.getfixturevalue("backend") == "c":
        request.getfixturevalue("needs_compiler")


def target(dtype: Any = np.float64) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(4)
    return [random.normal(size=(3, 4)).astype(dtype), random.normal(size=4).astype(dtype)]


def loss_of(weight: Any, bias: Any, x: Any) -> Any:
    y = x @ weight + bias
    return (y.tanh() * y.tanh()).sum() * 0.3 + (y * bias).mean()


class Run:
    """A small problem with an optimiser of ours, eager or compiled."""

    def __init__(
        self, name: str, options: dict[str, Any], backend: str | None, dtype: Any = np.float64
    ) -> None:
        self.parameters = [nn.Parameter(value) for value in target(dtype)]
        self.optimizer = getattr(optim, name)(self.parameters, **options)
        self.traces = 0

        def step(x: Any) -> Any:
            self.traces += 1
            loss = loss_of(*self.parameters, x)
            self.optimizer.minimize(loss)
            return loss

        self.step = step if backend is None else tw.compile(step, backend=backend)


def inputs(count: int, dtype: Any = np.float64) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(9)
    return [random.normal(size=(5, 3)).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS, ids=IDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 2e-6)])
def test_ten_steps_are_those_of_pytorch(
    name: str, options: dict[str, Any], backend: str | None, dtype: str, tolerance: float
) -> None:
    torch = pytest.importorskip("torch")
    run = Run(name, options, backend, dtype)
    theirs = [torch.tensor(value, requires_grad=True) for value in target(dtype)]
    other = getattr(torch.optim, name)(theirs, **options)
    for x in inputs(10, dtype):
        loss = loss_of(*theirs, torch.tensor(x))
        other.zero_grad()
        loss.backward()
        other.step()
        np.testing.assert_allclose(run.step(tw.tensor(x)).item(), loss.item(), rtol=10 * tolerance)
        for ours, expected in zip(run.parameters, theirs, strict=True):
            np.testing.assert_allclose(
                ours.numpy(), expected.detach().numpy(), rtol=tolerance, atol=tolerance
            )
    slots = {name: value for name, value in run.optimizer.state_dict().items() if name.startswith("state.")}
    for position, tensor in enumerate(theirs):
        for key, value in other.state[tensor].items():
            if value is not None and f"state.{position}.{key}" in slots:
                found = slots.pop(f"state.{position}.{key}")
                np.testing.assert_allclose(found, value.numpy(), rtol=tolerance * 10, atol=tolerance)
    assert not [name for name in slots if not name.endswith(".step")], "a slot that PyTorch does not have"


def numpy_sgd(weight: Any, gradient: Any, buffer: Any) -> tuple[Any, Any]:
    buffer = 0.9 * buffer + gradient + 0.1 * weight
    return weight - 0.05 * buffer, buffer


def test_sgd_by_hand() -> None:
    parameter = nn.Parameter(np.array([1.0, -2.0, 3.0]))
    optimizer = optim.SGD([parameter], lr=0.05, momentum=0.9, weight_decay=0.1)
    weight, buffer = parameter.numpy().copy(), np.zeros(3)
    for _ in range(5):
        gradient = 2 * weight
        weight, buffer = numpy_sgd(weight, gradient, buffer)
        optimizer.minimize((parameter * parameter).sum())
        np.testing.assert_allclose(parameter.numpy(), weight, rtol=1e-12)


def test_adam_by_hand() -> None:
    parameter = nn.Parameter(np.array([1.0, -2.0, 3.0]))
    optimizer = optim.Adam([parameter], lr=0.1)
    weight, mean, square = parameter.numpy().copy(), np.zeros(3), np.zeros(3)
    for step in range(1, 6):
        gradient = 2 * weight
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        weight = weight - 0.1 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        optimizer.minimize((parameter * parameter).sum())
        np.testing.assert_allclose(parameter.numpy(), weight, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_parameters_have_float32_slots(dtype: str) -> None:
    parameter = nn.Parameter(np.ones(3), dtype=dtype)
    optimizer = optim.Adam([parameter], lr=0.1)
    optimizer.minimize((parameter * parameter).sum())
    assert parameter.dtype is tw.dtype(dtype)
    state = optimizer.state_dict()
    assert state["state.0.exp_avg"].dtype == np.float32
    assert state["state.0.step"] == 1
    np.testing.assert_allclose(parameter.numpy().astype(np.float32), 0.9, rtol=1e-2)


# ---- numbers that change -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "options", "changes"),
    [
        (
            "SGD",
            {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
            {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.2},
        ),
        ("Adam", {"lr": 0.1, "weight_decay": 0.1}, {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3}),
        ("RMSprop", {"lr": 0.1}, {"alpha": 0.5, "lr": 0.02}),
    ],
)
def test_numbers_take_effect_without_compiling_again(
    name: str, options: Any, changes: Any, backend: str | None
) -> None:
    torch = pytest.importorskip("torch")
    run = Run(name, options, backend)
    theirs = [torch.tensor(value, requires_grad=True) for value in target()]
    other = getattr(torch.optim, name)(theirs, **options)
    for number, x in enumerate(inputs(6)):
        if number == 3:
            for option, value in changes.items():
                setattr(run.optimizer, option, value)
                other.param_groups[0][option] = value
                assert getattr(run.optimizer, option) == value
        other.zero_grad()
        loss_of(*theirs, torch.tensor(x)).backward()
        other.step()
        run.step(tw.tensor(x))
    for ours, expected in zip(run.parameters, theirs, strict=True):
        np.testing.assert_allclose(ours.numpy(), expected.detach().numpy(), rtol=1e-11)
    assert run.traces == (6 if backend is None else 1)


@pytest.mark.parametrize("name", ["SGD", "RMSprop"])
@pytest.mark.parametrize("option", ["momentum", "weight_decay"])
def test_a_term_that_appears_or_vanishes_is_compiled_in(name: str, option: str) -> None:
    torch = pytest.importorskip("torch")
    run = Run(name, {"lr": 0.1}, "numpy")
    theirs = [torch.tensor(value, requires_grad=True) for value in target()]
    other = getattr(torch.optim, name)(theirs, lr=0.1)
    for number, x in enumerate(inputs(9)):
        if number in (3, 6):
            run.optimizer.param_groups[0][option] = other.param_groups[0][option] = 0.5 if number == 3 else 0
        other.zero_grad()
        loss_of(*theirs, torch.tensor(x)).backward()
        if name == "RMSprop" and number == 3 and option == "momentum":
            for tensor in theirs:  # PyTorch does not make the buffer later
                other.state[tensor]["momentum_buffer"] = torch.zeros_like(tensor)
        other.step()
        run.step(tw.tensor(x))
        for ours, expected in zip(run.parameters, theirs, strict=True):
            np.testing.assert_allclose(ours.numpy(), expected.detach().numpy(), rtol=1e-11)
    assert run.traces == 3
    assert ("state.0.momentum_buffer" in run.optimizer.state_dict()) == (option == "momentum")


def test_numbers_cannot_be_set_inside_a_trace() -> None:
    run = Run("SGD", {"lr": 0.1}, "numpy")

    def step(x: Any) -> Any:
        run.optimizer.lr = 0.01
        return x * 2

    with pytest.raises(TraceError, match="before the call"):
        tw.compile(step, backend="numpy")(np.ones(3))
    assert run.optimizer.lr == 0.1


# ---- which parameters --------------------------------------------------------------------------------------


def test_groups() -> None:
    torch = pytest.importorskip("torch")
    ours = [nn.Parameter(value) for value in target()]
    theirs = [torch.tensor(value, requires_grad=True) for value in target()]
    groups = [{"params": 0, "lr": 0.5}, {"params": 1, "momentum": 0.9, "weight_decay": 0.1}]
    mine = optim.SGD([{**g, "params": [ours[g["params"]]]} for g in groups], lr=0.01)
    other = torch.optim.SGD([{**g, "params": [theirs[g["params"]]]} for g in groups], lr=0.01)
    for x in inputs(3):
        mine.minimize(loss_of(*ours, tw.tensor(x)))
        other.zero_grad()
        loss_of(*theirs, torch.tensor(x)).backward()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=1e-12)
    assert [group["lr"] for group in mine.param_groups] == [0.5, 0.01]
    assert list(mine.state_dict())[:1] == ["state.1.momentum_buffer"]
    with pytest.raises(ArgumentError, match="different values of lr"):
        mine.lr  # noqa: B018
    mine.lr = 0.2
    assert [group["lr"] for group in mine.param_groups] == [0.2, 0.2]
    extra = nn.Parameter(np.ones(2))
    mine.add_param_group({"params": extra, "lr": 1.0})
    assert mine.parameters()[-1] is extra


def test_frozen_parameters_are_left_alone_until_they_thaw() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    compiled = tw.compile(lambda x: optimizer.minimize((model(x) ** 2).sum()), backend="numpy")
    before = model.state_dict()
    x = np.ones((4, 3), np.float32)
    compiled(x)
    after = model.state_dict()
    np.testing.assert_array_equal(before["0.weight"], after["0.weight"])
    assert (before["1.weight"] != after["1.weight"]).all()
    assert not [name for name in optimizer.state_dict() if name.startswith(("state.0.", "state.1."))]
    model.requires_grad_(True)
    compiled(x)
    state = optimizer.state_dict()
    assert (state["state.0.step"], state["state.2.step"]) == (1, 2)
    # the first step of Adam moves by lr where the gradient is not 0
    np.testing.assert_allclose(np.abs(model[0].bias.numpy() - after["0.bias"]), 0.1, rtol=1e-3)
    model.requires_grad_(False)
    with pytest.raises(ArgumentError, match="frozen"):
        optimizer.minimize((model(x) ** 2).sum())


@pytest.mark.parametrize("backend", BACKENDS)
def test_unused_parameters_are_an_error_or_left_alone(backend: str | None) -> None:
    used, unused = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(3))
    optimizer = optim.Adam([unused, used], lr=0.1, weight_decay=0.5)

    def step(allow: bool) -> None:
        optimizer.minimize((used * used).sum(), allow_unused=allow)

    run = step if backend is None else tw.compile(step, backend=backend)
    with pytest.raises(GradientError, match="does not depend on"):
        run(False)
    run(True)
    np.testing.assert_array_equal(unused.numpy(), np.ones(3))
    np.testing.assert_allclose(used.numpy(), 0.9, rtol=1e-6)
    assert optimizer.state_dict()["state.0.step"] == 0


def test_apply_takes_gradients_in_order() -> None:
    a, b = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(3))
    optimizer = optim.SGD([a, b], lr=0.1)
    optimizer.apply([np.ones(2), None])
    np.testing.assert_allclose(a.numpy(), 0.9)
    np.testing.assert_allclose(b.numpy(), 1.0)
    with pytest.raises(ArgumentError, match="1 gradients were given for 2"):
        optimizer.apply([np.ones(2)])
    with pytest.raises(ArgumentError, match=r"shape \(3,\), the parameter \(2,\)"):
        optimizer.apply([np.ones(3), np.ones(3)])
    with pytest.raises(ArgumentError, match="in the order of"):
        optimizer.apply({"a": np.ones(2), "b": np.ones(3)})  # type: ignore[arg-type]


def test_the_loss_is_released() -> None:
    parameter = nn.Parameter(np.ones(2))
    optimizer = optim.SGD([parameter], lr=0.1)
    loss = (parameter * parameter).sum()
    optimizer.minimize(loss)
    with pytest.raises(GradientError, match="released by minimize"):
        optimizer.minimize(loss)
    assert loss.item() == 2


def test_two_optimisers_in_one_step() -> None:
    a, b = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    first, second = optim.SGD([a], lr=0.1), optim.Adam([b], lr=0.1)

    @tw.compile(backend="numpy")
    def step() -> Any:
        loss = (a * b).sum()
        gradients = tw.gradient(loss, wrt=[a, b])
        first.apply(gradients[:1])
        second.apply(gradients[1:])
        return loss

    assert step().item() == 2
    np.testing.assert_allclose(a.numpy(), 0.9)
    np.testing.assert_allclose(b.numpy(), 0.9, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: optim.SGD([], lr=0.1), "no parameters"),
        (lambda p: optim.SGD(nn.Linear(2, 2), lr=0.1), r"model\.parameters\(\)"),
        (lambda p: optim.SGD(p, lr=0.1), r"\[parameter\]"),
        (lambda p: optim.SGD([np.ones(2)], lr=0.1), "trains parameters, received a ndarray"),
        (lambda p: optim.SGD([p, p], lr=0.1), "given twice"),
        (lambda p: optim.SGD([p], lr=-1.0), "lr must be at least 0, received -1.0"),
        (lambda p: optim.SGD([p], lr="fast"), "lr must be a number"),
        (lambda p: optim.SGD([p], lr=0.1, nesterov=True), "nesterov needs a momentum"),
        (lambda p: optim.SGD([{"params": [p], "momentun": 0.9}], lr=0.1), "has no option momentun"),
        (lambda p: optim.SGD([{"lr": 0.1}], lr=0.1), '"params"'),
        (lambda p: optim.Adam([p], betas=(0.9, 1.0)), "betas must be at least 0 and less than 1"),
        (lambda p: optim.Adam([p], betas=0.9), "betas must be a pair"),
        (lambda p: optim.SGD([p], lr=0.1, clip=1.0), "clip_by_norm"),
        (lambda p: setattr(optim.SGD([p], lr=0.1), "lr", -1), "lr must be at least 0"),
        (lambda p: setattr(optim.Adam([p]), "betas", (2, 2)), "betas"),
        (lambda p: optim.SGD([p]).param_groups[0].__setitem__("params", []), "add_param_group"),
    ],
)
def test_wrong_arguments_are_explained(make: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        make(nn.Parameter(np.ones(2)))


def test_repr_shows_options() -> None:
    text = repr(optim.SGD([nn.Parameter(np.ones(2))], lr=0.25))
    assert "group 0: 1 parameters" in text
    assert "lr: 0.25" in text
    with pytest.raises(AttributeError, match="'SGD' object has no attribute 'learning_rate'"):
        optim.SGD([nn.Parameter(np.ones(2))]).learning_rate  # noqa: B018


# ---- state -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "options"), [CONFIGURATIONS[3], CONFIGURATIONS[6], CONFIGURATIONS[12]])
def test_state_resumes(name: str, options: dict[str, Any], backend: str | None, tmp_path: Any) -> None:
    from thalweg.io import safetensors

    whole, first, second = (Run(name, options, backend) for _ in range(3))
    steps = inputs(6)
    for x in steps:
        whole.step(tw.tensor(x))
    for x in steps[:3]:
        first.step(tw.tensor(x))
    first.optimizer.lr = options["lr"]
    safetensors.save(tmp_path / "optimizer.safetensors", first.optimizer.state_dict())
    second.step(tw.tensor(steps[0]))  # must be forgotten
    second.optimizer.lr = 123.0
    second.optimizer.load_state_dict(safetensors.load(tmp_path / "optimizer.safetensors")[0])
    for ours, other in zip(second.parameters, first.parameters, strict=True):
        ours.assign(other.numpy())
    for x in steps[3:]:
        second.step(tw.tensor(x))
    for ours, other in zip(second.parameters, whole.parameters, strict=True):
        np.testing.assert_array_equal(ours.numpy(), other.numpy())
    assert second.optimizer.param_groups[0]["lr"] == options["lr"]
    assert second.optimizer.maximize is options.get("maximize", False)


def test_loading_wrong_state_changes_nothing() -> None:
    run = Run("Adam", {"lr": 0.1}, None)
    run.step(tw.tensor(inputs(1)[0]))
    before = run.optimizer.state_dict()
    state = {name: value + 1 for name, value in before.items() if name != "state.1.exp_avg"}
    state["state.0.exp_avg"] = np.zeros(3)
    state["state.5.exp_avg"] = np.zeros(3)
    with pytest.raises(ArgumentError) as caught:
        run.optimizer.load_state_dict(state)
    for words in ("Adam", "state.1.exp_avg", "state.5.exp_avg", "state.0.exp_avg: expected shape (3, 4)"):
        assert words in str(caught.value)
    assert "strict=False" not in str(caught.value)  # which an optimiser does not have
    for name, value in run.optimizer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_loading_a_number_out_of_range_changes_nothing() -> None:
    run = Run("Adam", {"lr": 0.1}, None)
    run.step(tw.tensor(inputs(1)[0]))
    before = run.optimizer.state_dict()
    state = {name: value + 1 for name, value in before.items()}
    with pytest.raises(ArgumentError, match="betas"):
        run.optimizer.load_state_dict(state)
    for name, value in run.optimizer.state_dict().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_state_of_a_parameter_that_was_frozen_later_is_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.minimize(model(np.ones((1, 2), np.float32)).sum())
    state = optimizer.state_dict()
    frozen = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    other = optim.SGD(frozen.parameters(), lr=0.1, momentum=0.9)
    assert "state.0.momentum_buffer" not in other.state_dict()
    other.load_state_dict(state)
    for name, value in state.items():
        np.testing.assert_array_equal(other.state_dict()[name], value)


def test_model_and_optimiser_copy_together() -> None:
    model = nn.Linear(2, 1)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = np.ones((1, 2), np.float32)
    optimizer.minimize(model(x).sum())
    twin, other = copy.deepcopy((model, optimizer))
    for a, b in ((model, optimizer), (twin, other)):
        b.minimize(a(x).sum())
    np.testing.assert_array_equal(model.weight.numpy(), twin.weight.numpy())
    optimizer.minimize(model(x).sum())
    assert (model.weight.numpy() != twin.weight.numpy()).any()


# ---- clipping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_by_norm_is_that_of_pytorch(norm_type: float, max_norm: float) -> None:
    torch = pytest.importorskip("torch")
    values = target()
    theirs = [torch.zeros(v.shape, dtype=torch.float64, requires_grad=True) for v in values]
    for tensor, value in zip(theirs, values, strict=True):
        tensor.grad = torch.tensor(value)
    norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    given = [tw.tensor(value) for value in values]
    np.testing.assert_allclose(optim.global_norm(given, norm_type).item(), norm.item(), rtol=1e-12)
    for ours, other in zip(optim.clip_by_norm(max_norm, norm_type)(given), theirs, strict=True):
        np.testing.assert_allclose(ours.numpy(), other.grad.numpy(), rtol=1e-9)


def test_clipping_by_value() -> None:
    found = optim.clip_by_value(0.5)([tw.tensor([-2.0, 0.1, 0.7]), None])
    np.testing.assert_allclose(found[0].numpy(), [-0.5, 0.1, 0.5])
    assert found[1] is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_optimiser_that_clips(backend: str | None) -> None:
    run = Run("SGD", {"lr": 1.0, "clip": optim.clip_by_norm(0.1)}, backend)
    before = [parameter.numpy().copy() for parameter in run.parameters]
    run.step(tw.tensor(inputs(1)[0]))
    change = np.concatenate([(p.numpy() - b).ravel() for p, b in zip(run.parameters, before, strict=True)])
    np.testing.assert_allclose(np.linalg.norm(change), 0.1, rtol=1e-4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: optim.clip_by_norm(0.0),
        lambda: optim.clip_by_value(-1.0),
        lambda: optim.global_norm([]),
        lambda: optim.global_norm([tw.tensor([1.0])], 0),
    ],
)
def test_wrong_uses_of_clipping_are_explained(call: Any) -> None:
    with pytest.raises(ArgumentError):
        call()


# ---- a user's optimiser, and the form of the graph ---------------------------------------------------------


class SignDescent(optim.Optimizer):
    """The example of the documentation: a step of lr against the sign of a running mean."""

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    def init(self, parameter: Any, options: Any) -> Any:
        return {"mean": np.zeros(parameter.shape)}

    def update(self, parameter: Any, gradient: Any, slots: Any, hyper: Any) -> Any:
        mean = hyper["beta"] * slots["mean"] + (1 - hyper["beta"]) * gradient
        return parameter - hyper["lr"] * tw.sign(mean), {"mean": mean}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_users_optimiser(backend: str | None) -> None:
    parameter = nn.Parameter(np.array([1.0, -1.0]))
    optimizer = SignDescent([parameter])
    step = lambda: optimizer.minimize((parameter * parameter).sum())  # noqa: E731
    run = step if backend is None else tw.compile(step, backend=backend)
    run()
    run()
    optimizer.lr = 0.3
    run()
    np.testing.assert_allclose(parameter.numpy(), [0.5, -0.5])


def test_an_update_is_one_unit_in_the_graph() -> None:
    for name, unit in (("SGD", "sgd_update"), ("Adam", "adam_update"), ("AdamW", "adamw_update")):
        run = Run(name, {"lr": 0.1}, "numpy")
        names = [node.op.name for node in run.step.graph(tw.spec((5, 3), "float64")).nodes]
        assert names.count(unit) == 2
