"""`nn.functional` and the losses: PyTorch's names, argument order, values and gradients (in float64)."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn
from thalweg.errors import ArgumentError, IndexRangeError, ShapeError
from thalweg.nn import functional

random = np.random.default_rng(5)


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    return random.normal(size=shape)


IMAGE = numbers(2, 4, 6, 5)
LINE = numbers(2, 4, 9)
VOLUME = numbers(2, 4, 3, 4, 3)
SCORES = numbers(6, 5)
LABELS = np.array([0, 4, 2, 2, 1, 3])
PROBABILITIES = np.exp(SCORES) / np.exp(SCORES).sum(1, keepdims=True)
LOG_PROBABILITIES = np.log(PROBABILITIES)
TRUTH = random.uniform(0.1, 0.9, size=(6, 5))
CLASS_WEIGHTS = random.uniform(0.5, 2.0, size=5)

CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("relu", (IMAGE,), {}),
    ("relu6", (IMAGE,), {}),
    ("leaky_relu", (IMAGE, 0.3), {}),
    ("elu", (IMAGE, 0.6), {}),
    ("selu", (IMAGE,), {}),
    ("gelu", (IMAGE,), {"approximate": "tanh"}),
    ("silu", (IMAGE,), {}),
    ("mish", (IMAGE,), {}),
    ("sigmoid", (IMAGE,), {}),
    ("logsigmoid", (IMAGE,), {}),
    ("tanh", (IMAGE,), {}),
    ("softsign", (IMAGE,), {}),
    ("softplus", (IMAGE, 1.5, 10.0), {}),
    ("hardtanh", (IMAGE, -0.7, 0.4), {}),
    ("hardswish", (IMAGE,), {}),
    ("softmax", (IMAGE, 1), {}),
    ("log_softmax", (IMAGE,), {"dim": -1}),
    ("glu", (IMAGE, 1), {}),
    ("linear", (SCORES, numbers(3, 5), numbers(3)), {}),
    ("conv1d", (LINE, numbers(6, 2, 3), numbers(6), 2, 1, 1, 2), {}),
    ("conv2d", (IMAGE, numbers(6, 4, 3, 3), None, 1, "same"), {}),
    ("conv2d", (IMAGE, numbers(6, 4, 3, 3), numbers(6)), {"stride": (2, 1), "padding": 1, "dilation": 1}),
    ("conv3d", (VOLUME, numbers(2, 4, 2, 2, 2), numbers(2)), {}),
    ("conv_transpose1d", (LINE, numbers(4, 3, 3), numbers(3), 2, 1, 1), {}),
    ("conv_transpose2d", (IMAGE, numbers(4, 3, 2, 2), None, 2, 0, 0, 2), {}),
    ("conv_transpose3d", (VOLUME, numbers(4, 2, 2, 1, 2), numbers(2)), {"dilation": 2}),
    ("max_pool1d", (LINE, 3, 2, 1), {}),
    ("max_pool2d", (IMAGE, 2), {}),
    ("max_pool2d", (IMAGE, 3, 2, 1, 1, True), {}),
    ("max_pool3d", (VOLUME, 2), {}),
    ("avg_pool1d", (LINE, 3, 2), {}),
    ("avg_pool2d", (IMAGE, 3, 2, 1, False, False), {}),
    ("avg_pool3d", (VOLUME, 2), {"divisor_override": 5}),
    ("adaptive_avg_pool1d", (LINE, 4), {}),
    ("adaptive_avg_pool2d", (IMAGE, (3, 2)), {}),
    ("adaptive_avg_pool3d", (VOLUME, 2), {}),
    ("adaptive_max_pool1d", (LINE, 4), {}),
    ("adaptive_max_pool2d", (IMAGE, (3, None)), {}),
    ("adaptive_max_pool3d", (VOLUME, 2), {}),
    ("batch_norm", (IMAGE, numbers(4), random.uniform(1, 2, 4), numbers(4), numbers(4)), {}),
    ("batch_norm", (IMAGE, None, None, numbers(4), None, True, 0.1, 1e-3), {}),
    ("layer_norm", (IMAGE, (6, 5), numbers(6, 5), numbers(6, 5), 1e-4), {}),
    ("rms_norm", (IMAGE, (5,), numbers(5)), {"eps": 1e-4}),
    ("group_norm", (IMAGE, 2, numbers(4), numbers(4)), {}),
    ("instance_norm", (IMAGE,), {"eps": 1e-4}),
    ("normalize", (SCORES,), {}),
    ("normalize", (SCORES, 3.0, 0), {}),
    ("dropout", (IMAGE, 0.3, False), {}),
    ("dropout2d", (IMAGE, 0.3, False), {}),
    ("embedding", (LABELS, numbers(5, 3)), {}),
    ("embedding", (LABELS, numbers(5, 3), 2), {}),
    ("pad", (IMAGE, (1, 2)), {}),
    ("pad", (IMAGE, (1, 2, 0, 3), "constant", 0.5), {}),
    ("cross_entropy", (SCORES, LABELS), {}),
    ("cross_entropy", (SCORES, LABELS, CLASS_WEIGHTS), {"ignore_index": 2, "label_smoothing": 0.1}),
    ("cross_entropy", (SCORES, PROBABILITIES), {"reduction": "sum"}),
    ("cross_entropy", (numbers(2, 5, 3), np.array([[0, 1, 2], [4, 3, 1]])), {"reduction": "none"}),
    ("nll_loss", (LOG_PROBABILITIES, LABELS, CLASS_WEIGHTS), {}),
    ("mse_loss", (SCORES, TRUTH), {}),
    ("mse_loss", (SCORES, TRUTH), {"reduction": "sum"}),
    ("l1_loss", (SCORES, TRUTH), {}),
    ("huber_loss", (SCORES, TRUTH, "mean", 0.7), {}),
    ("smooth_l1_loss", (SCORES, TRUTH), {"beta": 0.7}),
    ("binary_cross_entropy", (PROBABILITIES, TRUTH), {}),
    ("binary_cross_entropy", (PROBABILITIES, TRUTH, CLASS_WEIGHTS), {}),
    ("binary_cross_entropy_with_logits", (SCORES, TRUTH), {"pos_weight": CLASS_WEIGHTS}),
    ("kl_div", (LOG_PROBABILITIES, TRUTH), {"reduction": "batchmean"}),
    ("kl_div", (LOG_PROBABILITIES, TRUTH), {"reduction": "sum", "log_target": True}),
]


@pytest.mark.parametrize(
    ("name", "arguments", "options"), CALLS, ids=[f"{i}-{c[0]}" for i, c in enumerate(CALLS)]
)
def test_values_and_gradients_are_those_of_pytorch(name: str, arguments: Any, options: Any) -> None:
    torch = pytest.importorskip("torch")
    theirs: list[Any] = []
    ours: list[Any] = []
    for position, argument in enumerate(arguments):
        if isinstance(argument, np.ndarray):
            trained = argument.dtype.kind == "f" and not (name in ("batch_norm",) and position in (1, 2))
            trained = trained and argument is not TRUTH and argument is not CLASS_WEIGHTS
            theirs.append(torch.tensor(argument, requires_grad=trained))
            ours.append(nn.Parameter(argument) if trained else tw.tensor(argument))
        else:
            theirs.append(argument)
            ours.append(argument)
    extra = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    expected = getattr(torch.nn.functional, name)(*theirs, **extra)
    found = getattr(functional, name)(*ours, **options)
    np.testing.assert_allclose(found.numpy(), expected.detach().numpy(), rtol=1e-9, atol=1e-12)
    trained_ours = [item for item in ours if isinstance(item, nn.Parameter)]
    if not trained_ours or not expected.requires_grad:
        return
    cotangent = np.random.default_rng(1).normal(size=found.shape)
    (expected * torch.tensor(cotangent)).sum().backward()
    gradients = tw.gradient((found * cotangent).sum(), wrt=trained_ours)
    for gradient, other in zip(
        gradients, [t for t in theirs if getattr(t, "requires_grad", False)], strict=True
    ):
        np.testing.assert_allclose(gradient.numpy(), other.grad.numpy(), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", sorted(functional.__all__))
def test_argument_names_and_defaults_are_those_of_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    assert callable(getattr(functional, name))
    other = getattr(torch.nn.functional, name)
    try:
        theirs = inspect.signature(other).parameters
    except (TypeError, ValueError):
        pytest.skip("PyTorch gives no signature for its built-in functions")
    if "args" in theirs:
        pytest.skip("PyTorch dispatches it at run time")
    ours = inspect.signature(getattr(functional, name)).parameters
    missing = {"inplace", "size_average", "reduce", "_stacklevel", "dtype", "use_input_stats"}
    missing |= {"max_norm", "norm_type", "scale_grad_by_freq", "sparse", "out"}
    if name == "instance_norm":
        missing |= {"running_mean", "running_var", "momentum"}
    if name in ("mse_loss", "l1_loss", "huber_loss"):
        missing |= {"weight"}
    shared = [key for key in theirs if key not in missing][1:]  # the first is the input
    assert [key for key in ours if key != "generator"][1:] == shared
    for key in shared:
        if theirs[key].default is not None and ours[key].default is not inspect.Parameter.empty:
            assert ours[key].default == theirs[key].default, key


def test_one_hot() -> None:
    assert functional.one_hot(np.array([1, 0]), 3).tolist() == [[0, 1, 0], [1, 0, 0]]
    with pytest.raises(IndexRangeError):
        functional.one_hot(np.array([3]), 3)


def test_batch_norm_moves_buffers_and_refuses_other_statistics() -> None:
    mean, variance = nn.Buffer(np.zeros(4)), nn.Buffer(np.ones(4))
    functional.batch_norm(IMAGE, mean, variance, training=True, momentum=1.0)
    np.testing.assert_allclose(mean.numpy(), IMAGE.mean((0, 2, 3)))
    np.testing.assert_allclose(variance.numpy(), IMAGE.var((0, 2, 3), ddof=1))
    with pytest.raises(ArgumentError, match=r"nn\.Buffer"):
        functional.batch_norm(IMAGE, np.zeros(4), np.ones(4), training=True)
    with pytest.raises(ArgumentError, match="training=True"):
        functional.batch_norm(IMAGE, None, None)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: functional.max_pool2d(LINE, 2),
            ["max_pool2d", "[batch, channels, height, width]", "unsqueeze(0)"],
        ),
        (lambda: functional.conv1d(IMAGE, numbers(3, 4, 3)), ["conv1d", "3 axes", "(2, 4, 6, 5)"]),
        (lambda: functional.pad(IMAGE, (1,)), ["two numbers for each axis"]),
    ],
)
def test_wrong_shapes_are_explained(call: Any, words: list[str]) -> None:
    with pytest.raises(ShapeError) as caught:
        call()
    for word in (*words, "test_functional.py"):
        assert word in str(caught.value)


LOSSES: list[tuple[str, dict[str, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]] = [
    ("MSELoss", {}, SCORES, TRUTH),
    ("L1Loss", {"reduction": "sum"}, SCORES, TRUTH),
    ("HuberLoss", {"delta": 0.5}, SCORES, TRUTH),
    ("SmoothL1Loss", {"beta": 0.5}, SCORES, TRUTH),
    ("NLLLoss", {"weight": CLASS_WEIGHTS}, LOG_PROBABILITIES, LABELS),
    ("CrossEntropyLoss", {"weight": CLASS_WEIGHTS, "label_smoothing": 0.2}, SCORES, LABELS),
    ("CrossEntropyLoss", {"ignore_index": 2, "reduction": "none"}, SCORES, LABELS),
    ("BCELoss", {"weight": CLASS_WEIGHTS}, PROBABILITIES, TRUTH),
    ("BCEWithLogitsLoss", {"pos_weight": CLASS_WEIGHTS}, SCORES, TRUTH),
    ("KLDivLoss", {"reduction": "batchmean"}, LOG_PROBABILITIES, TRUTH),
]


@pytest.mark.parametrize(
    ("name", "options", "given", "target"), LOSSES, ids=[f"{i}-{c[0]}" for i, c in enumerate(LOSSES)]
)
def test_losses_are_those_of_pytorch(name: str, options: Any, given: Any, target: Any) -> None:
    torch = pytest.importorskip("torch")
    extra = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    other, loss = getattr(torch.nn, name)(**extra), getattr(nn, name)(**options)
    expected = other(torch.tensor(given), torch.tensor(target))
    np.testing.assert_allclose(loss(given, target).numpy(), expected.numpy(), rtol=1e-10)
    np.testing.assert_allclose(
        tw.compile(loss, backend="numpy")(given, target).numpy(), expected.numpy(), rtol=1e-10
    )
    assert list(loss.state_dict()) == list(other.state_dict())
    assert not list(loss.parameters())


# ---- initial values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("uniform_", (300, 200), {"a": -1.0, "b": 3.0}),
        ("normal_", (300, 200), {"mean": 0.5, "std": 2.0}),
        ("trunc_normal_", (300, 200), {"std": 0.7, "a": -1.0, "b": 0.9}),
        ("xavier_uniform_", (300, 200), {"gain": 1.5}),
        ("xavier_normal_", (30, 20, 10, 5), {}),
        ("kaiming_uniform_", (30, 20, 10, 5), {"a": 0.3}),
        ("kaiming_normal_", (300, 200), {"mode": "fan_out", "nonlinearity": "relu"}),
        ("constant_", (3, 2), {"val": 0.3}),
        ("zeros_", (3, 2), {}),
        ("ones_", (3, 2), {}),
        ("eye_", (3, 2), {}),
    ],
)
def test_initial_distributions_are_those_of_pytorch(name: str, shape: tuple[int, ...], options: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    tw.manual_seed(0)
    parameter = nn.Parameter(np.full(shape, 9, np.float32))
    assert getattr(nn.init, name)(parameter, **options) is parameter
    found = parameter.numpy()
    expected = getattr(torch.nn.init, name)(torch.empty(shape), **options).numpy()
    spread = expected.std()
    np.testing.assert_allclose(found.mean(), expected.mean(), atol=0.02 * spread + 1e-9)
    np.testing.assert_allclose(found.std(), spread, rtol=0.02, atol=1e-9)
    if name not in ("normal_", "xavier_normal_", "kaiming_normal_"):  # unbounded
        np.testing.assert_allclose(
            [found.min(), found.max()], [expected.min(), expected.max()], atol=0.01 * spread
        )
    quantiles = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(
        np.quantile(found, quantiles), np.quantile(expected, quantiles), atol=0.03 * spread + 1e-9
    )


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3), (4, 3, 2)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(np.zeros(shape))
    nn.init.orthogonal_(parameter, gain=2.0)
    matrix = parameter.numpy().reshape(shape[0], -1)
    product = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_normal_values_have_every_dtype_and_are_independent(dtype: str) -> None:
    parameter = nn.Parameter(np.zeros((300, 301)), dtype=dtype)
    values = nn.init.normal_(parameter).numpy().astype(np.float64)
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02
    assert abs((values**4).mean() - 3) < 0.15
    flat = values.ravel()
    for lag in (1, 2, flat.size // 2):
        assert abs(np.corrcoef(flat[lag:], flat[: flat.size - lag])[0, 1]) < 0.02


def test_seeds_reproduce_and_generators_are_independent() -> None:
    tw.manual_seed(5)
    first = nn.Linear(20, 30).state_dict()
    again = nn.Linear(20, 30).state_dict()
    assert (first["weight"] != again["weight"]).all()
    tw.manual_seed(5)
    nn.Linear(3, 3, generator=tw.Generator(1))  # does not touch the default generator
    np.testing.assert_array_equal(nn.Linear(20, 30).state_dict()["weight"], first["weight"])
    one, two = nn.Linear(9, 9, generator=tw.Generator(7)), nn.Linear(9, 9, generator=tw.Generator(7))
    np.testing.assert_array_equal(one.weight.numpy(), two.weight.numpy())


def test_initial_values_are_the_same_on_every_machine() -> None:
    # the upper 24 bits of the halves of Philox4x64-10's first words for key 0 (NumPy guarantees that stream)
    parameter = nn.Parameter(np.zeros(4, np.float32))
    nn.init.uniform_(parameter, generator=tw.Generator(0))
    assert (parameter.numpy() * 2**24).astype(int).tolist() == [582872, 193722, 10266821, 4052523]


@pytest.mark.parametrize(("layer", "rank"), [("Linear", 0), ("Conv2d", 2), ("ConvTranspose2d", 2)])
def test_layers_begin_as_in_pytorch(layer: str, rank: int) -> None:
    torch = pytest.importorskip("torch")
    arguments = (64, 48) if rank == 0 else (64, 48, 3)
    ours, theirs = getattr(nn, layer)(*arguments), getattr(torch.nn, layer)(*arguments)
    for name, value in theirs.state_dict().items():
        found = ours.state_dict()[name]
        np.testing.assert_allclose(np.abs(found).max(), np.abs(value.numpy()).max(), rtol=0.1)
        np.testing.assert_allclose(found.std(), value.numpy().std(), rtol=0.25 if value.ndim == 1 else 0.05)


def test_gains() -> None:
    torch = pytest.importorskip("torch")
    for name in ("linear", "sigmoid", "tanh", "relu", "selu", "conv2d", "conv_transpose3d", "leaky_relu"):
        assert nn.init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name))
    assert nn.init.calculate_gain("leaky_relu", 0.5) == pytest.approx(math.sqrt(2 / 1.25))


@pytest.mark.parametrize(
    "call",
    [
        lambda: nn.init.normal_(np.zeros(3)),
        lambda: nn.init.xavier_uniform_(nn.Parameter(np.zeros(3))),
        lambda: nn.init.kaiming_uniform_(nn.Parameter(np.zeros((3, 3))), mode="fan"),
        lambda: nn.init.calculate_gain("swish"),
        lambda: nn.init.trunc_normal_(nn.Parameter(np.zeros(3)), a=5.0, b=6.0),
        lambda: nn.init.eye_(nn.Parameter(np.zeros(3))),
        lambda: nn.init.orthogonal_(nn.Parameter(np.zeros(3))),
    ],
)
def test_wrong_uses_of_initialisers_are_explained(call: Any) -> None:
    with pytest.raises((ArgumentError, ShapeError)):
        call()
