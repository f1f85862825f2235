"""Every layer, one row each: it builds, has PyTorch's state, and computes PyTorch's values and gradients.

Values are compared in float64, so that a wrong formula cannot hide in rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn
from thalweg.errors import ThalwegError

TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}


@dataclass
class Case:
    """A layer with the arguments of its constructor, the shape of an input and the shape of the output."""

    name: str
    arguments: tuple[Any, ...]
    input: tuple[int, ...]
    output: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    indices: int = 0  # above 0: the input is integers below this number
    rtol: float = 1e-9

    @property
    def label(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}{self.arguments}{options}".replace(" ", "")


CASES = [
    Case("Linear", (5, 3), (4, 5), (4, 3)),
    Case("Linear", (5, 3), (2, 3, 5), (2, 3, 3), {"bias": False}),
    Case("Linear", (5, 1), (5,), (1,)),
    Case("Conv1d", (3, 4, 3), (2, 3, 9), (2, 4, 7)),
    Case("Conv1d", (4, 6, 3), (2, 4, 9), (2, 6, 5), {"stride": 2, "padding": 1, "groups": 2}),
    Case("Conv2d", (3, 4, 3), (2, 3, 7, 8), (2, 4, 5, 6)),
    Case(
        "Conv2d",
        (3, 4, (3, 2)),
        (2, 3, 7, 8),
        (2, 4, 4, 7),
        {"stride": (2, 1), "padding": (1, 0), "bias": False},
    ),
    Case("Conv2d", (3, 4, 3), (2, 3, 7, 8), (2, 4, 7, 8), {"padding": "same", "dilation": 2}),
    Case("Conv3d", (2, 3, 2), (2, 2, 4, 5, 3), (2, 3, 3, 4, 2)),
    Case(
        "ConvTranspose1d", (3, 4, 3), (2, 3, 5), (2, 4, 10), {"stride": 2, "padding": 1, "output_padding": 1}
    ),
    Case("ConvTranspose2d", (4, 6, 3), (2, 4, 3, 4), (2, 6, 5, 7), {"stride": 2, "padding": 1, "groups": 2}),
    Case("ConvTranspose2d", (3, 4, 2), (2, 3, 3, 4), (2, 4, 5, 6), {"dilation": 2, "bias": False}),
    Case("ConvTranspose3d", (2, 3, 2), (2, 2, 3, 2, 3), (2, 3, 6, 4, 6), {"stride": 2}),
    Case("MaxPool1d", (2,), (2, 3, 7), (2, 3, 3)),
    Case("MaxPool2d", (3,), (2, 3, 7, 8), (2, 3, 4, 4), {"stride": 2, "padding": 1}),
    Case("MaxPool2d", (2,), (2, 3, 7, 8), (2, 3, 4, 4), {"ceil_mode": True}),
    Case("MaxPool3d", ((2, 1, 2),), (2, 3, 4, 3, 5), (2, 3, 2, 3, 2)),
    Case("AvgPool1d", (2,), (2, 3, 7), (2, 3, 3)),
    Case(
        "AvgPool2d", (3,), (2, 3, 7, 8), (2, 3, 4, 4), {"stride": 2, "padding": 1, "count_include_pad": False}
    ),
    Case("AvgPool2d", (2,), (2, 3, 4, 4), (2, 3, 2, 2), {"divisor_override": 3}),
    Case("AvgPool3d", (2,), (2, 3, 4, 3, 5), (2, 3, 2, 1, 2)),
    Case("AdaptiveAvgPool1d", (3,), (2, 3, 7), (2, 3, 3)),
    Case("AdaptiveAvgPool2d", ((2, None),), (2, 3, 7, 5), (2, 3, 2, 5)),
    Case("AdaptiveAvgPool3d", (1,), (2, 3, 4, 3, 5), (2, 3, 1, 1, 1)),
    Case("AdaptiveMaxPool1d", (3,), (2, 3, 7), (2, 3, 3)),
    Case("AdaptiveMaxPool2d", (2,), (2, 3, 7, 5), (2, 3, 2, 2)),
    Case("AdaptiveMaxPool3d", (2,), (2, 3, 4, 3, 5), (2, 3, 2, 2, 2)),
    Case("BatchNorm1d", (3,), (4, 3), (4, 3)),
    Case("BatchNorm1d", (3,), (4, 3, 5), (4, 3, 5), {"momentum": None}),
    Case("BatchNorm2d", (3,), (4, 3, 5, 2), (4, 3, 5, 2), {"momentum": 0.3, "eps": 1e-3}),
    Case("BatchNorm2d", (3,), (4, 3, 5, 2), (4, 3, 5, 2), {"affine": False, "track_running_stats": False}),
    Case("BatchNorm3d", (3,), (4, 3, 2, 2, 2), (4, 3, 2, 2, 2)),
    Case("LayerNorm", (5,), (4, 3, 5), (4, 3, 5)),
    Case("LayerNorm", ((3, 5),), (4, 3, 5), (4, 3, 5), {"bias": False}),
    Case("LayerNorm", (5,), (4, 5), (4, 5), {"elementwise_affine": False}),
    Case("RMSNorm", (5,), (4, 3, 5), (4, 3, 5)),
    Case("RMSNorm", ((3, 5),), (4, 3, 5), (4, 3, 5), {"eps": 1e-3}),
    Case("GroupNorm", (2, 6), (4, 6, 5), (4, 6, 5)),
    Case("GroupNorm", (3, 6), (4, 6), (4, 6), {"affine": False}),
    Case("InstanceNorm1d", (3,), (4, 3, 5), (4, 3, 5), {"affine": True}),
    Case("InstanceNorm2d", (3,), (4, 3, 5, 2), (4, 3, 5, 2)),
    Case("InstanceNorm3d", (3,), (4, 3, 2, 2, 2), (4, 3, 2, 2, 2)),
    Case("Embedding", (7, 4), (2, 3), (2, 3, 4), indices=7),
    Case("Embedding", (7, 4), (2, 9), (2, 9, 4), {"padding_idx": -2}, indices=7),
    Case("Flatten", (), (2, 3, 4), (2, 12)),
    Case("Flatten", (0, 1), (2, 3, 4), (6, 4)),
    Case("Unflatten", (1, (2, 3)), (2, 6, 4), (2, 2, 3, 4)),
    Case("Unflatten", (-1, (2, -1)), (2, 6, 4), (2, 6, 2, 2)),
    Case("Identity", (), (2, 3), (2, 3)),
    Case("ReLU", (), (4, 5), (4, 5)),
    Case("ReLU6", (), (4, 5), (4, 5)),
    Case("SELU", (), (4, 5), (4, 5)),
    Case("SiLU", (), (4, 5), (4, 5)),
    Case("Mish", (), (4, 5), (4, 5)),
    Case("Hardswish", (), (4, 5), (4, 5)),
    Case("Hardsigmoid", (), (4, 5), (4, 5), rtol=1e-7),  # PyTorch takes 1/6 in float32
    Case("Sigmoid", (), (4, 5), (4, 5)),
    Case("LogSigmoid", (), (4, 5), (4, 5)),
    Case("Tanh", (), (4, 5), (4, 5)),
    Case("Softsign", (), (4, 5), (4, 5)),
    Case("LeakyReLU", (0.2,), (4, 5), (4, 5)),
    Case("PReLU", (), (4, 5), (4, 5)),
    Case("PReLU", (5,), (4, 5, 2), (4, 5, 2), {"init": 0.1}),
    Case("ELU", (0.7,), (4, 5), (4, 5)),
    Case("GELU", (), (4, 5), (4, 5)),
    Case("GELU", ("tanh",), (4, 5), (4, 5)),
    Case("Softplus", (2.0, 3.0), (4, 5), (4, 5)),
    Case("Hardtanh", (-0.5, 0.7), (4, 5), (4, 5)),
    Case("Softmax", (1,), (4, 5, 2), (4, 5, 2)),
    Case("LogSoftmax", (-1,), (4, 5), (4, 5)),
    Case("GLU", (1,), (4, 6, 2), (4, 3, 2)),
    Case("Dropout", (0.0,), (4, 5), (4, 5)),
    Case("Dropout2d", (0.0,), (4, 5, 2, 2), (4, 5, 2, 2)),
]


def make_input(case: Case) -> Any:
    random = np.random.default_rng(7)
    if case.indices:
        return random.integers(0, case.indices, case.input)
    # distinct values at some distance from 0: no ties in max pooling, no kinks under the finite precision
    values = np.linspace(-3, 3, int(np.prod(case.input)) + 1)[:-1] + 0.011
    return random.permutation(values).reshape(case.input)


def make_layer(case: Case) -> nn.Module:
    tw.manual_seed(11)
    return getattr(nn, case.name)(*case.arguments, **case.options).to("float64")


def compare_state(layer: nn.Module, other: Any) -> None:
    expected = {name: value.numpy() for name, value in other.state_dict().items()}
    found = layer.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_builds_and_gives_the_stated_shape(case: Case) -> None:
    layer = make_layer(case)
    assert layer(make_input(case)).shape == case.output
    assert tuple(tw.compile(layer, backend="numpy")(make_input(case)).shape) == case.output
    assert repr(layer).startswith(case.name + "(")
    again = make_layer(case)
    for name, value in layer.state_dict().items():
        if "running" not in name and "tracked" not in name:
            np.testing.assert_array_equal(value, again.state_dict()[name], err_msg="not reproducible")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_state_values_and_gradients_are_those_of_pytorch(case: Case) -> None:
    torch = pytest.importorskip("torch")
    layer = make_layer(case)
    other = getattr(torch.nn, case.name)(*case.arguments, **case.options).double()
    theirs = other.state_dict()
    assert list(layer.state_dict()) == list(theirs)
    assert {k: v.shape for k, v in layer.state_dict().items()} == {
        k: tuple(v.shape) for k, v in theirs.items()
    }
    assert [n for n, _ in layer.named_parameters()] == [n for n, _ in other.named_parameters()]
    layer.load_state_dict(theirs)

    values = make_input(case)
    given = torch.tensor(values, requires_grad=not case.indices)
    result = other(given)
    cotangent = np.random.default_rng(3).normal(size=case.output)
    (result * torch.tensor(cotangent)).sum().backward()

    parameters = dict(layer.named_parameters())

    def loss(x: Any) -> Any:
        return (layer(x) * cotangent).sum()

    if case.indices:
        gradients = tw.gradient(loss(tw.tensor(values)), wrt=parameters)
    else:
        x = nn.Parameter(values)
        gradients = tw.gradient(loss(x), wrt={"input": x, **parameters})
        tolerance = {**TOLERANCE, "rtol": case.rtol}
        np.testing.assert_allclose(gradients["input"].numpy(), given.grad.numpy(), **tolerance)
    for name, parameter in other.named_parameters():
        np.testing.assert_allclose(gradients[name].numpy(), parameter.grad.numpy(), err_msg=name, **TOLERANCE)
    compare_state(layer, other)  # the running statistics have moved

    layer.eval()
    other.eval()
    np.testing.assert_allclose(layer(values).numpy(), other(given).detach().numpy(), **TOLERANCE)
    compare_state(layer, other)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_statistics_over_several_steps(momentum: float | None) -> None:
    torch = pytest.importorskip("torch")
    layer, other = nn.BatchNorm2d(3, momentum=momentum), torch.nn.BatchNorm2d(3, momentum=momentum)
    compiled = tw.compile(layer, backend="numpy")
    random = np.random.default_rng(0)
    for step in range(4):
        x = random.normal(2.0, 3.0, size=(5, 3, 4, 2)).astype(np.float32)
        found = (compiled if step % 2 else layer)(x)
        np.testing.assert_allclose(
            found.numpy(), other(torch.tensor(x)).detach().numpy(), rtol=1e-4, atol=1e-5
        )
    for name, value in other.state_dict().items():
        np.testing.assert_allclose(
            layer.state_dict()[name], value.numpy(), rtol=1e-5, atol=1e-6, err_msg=name
        )
    layer.reset_running_stats()
    assert layer.running_mean.numpy().tolist() == [0, 0, 0]
    assert layer.running_var.numpy().tolist() == [1, 1, 1]
    assert layer.num_batches_tracked.item() == 0


def test_batch_norm_statistics_of_16_bit_layers_are_float32() -> None:
    layer = nn.BatchNorm1d(3, dtype="bfloat16")
    assert layer.weight.dtype is tw.bfloat16
    assert layer.running_mean.dtype is tw.float32
    assert layer(tw.tensor(np.ones((4, 3)), dtype="bfloat16")).dtype is tw.bfloat16


def test_max_pool_returns_indices() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)
    values, indices = nn.MaxPool2d(2, return_indices=True)(x)
    expected = torch.nn.MaxPool2d(2, return_indices=True)(torch.tensor(x))
    np.testing.assert_array_equal(values.numpy(), expected[0].numpy())
    np.testing.assert_array_equal(indices.numpy(), expected[1].numpy())


def test_dropout_drops_scales_and_is_reproducible() -> None:
    x = np.ones((100, 100), np.float32)
    layer = nn.Dropout(0.25, generator=tw.Generator(3))
    first, second = layer(x).numpy(), layer(x).numpy()
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((first == 0).mean() - 0.25) < 0.02
    assert (first != second).any()
    layer.generator.manual_seed(3)
    np.testing.assert_array_equal(layer(x).numpy(), first)
    np.testing.assert_array_equal(layer.eval()(x).numpy(), x)


def test_dropout_gradient_has_the_mask_of_the_forward_pass() -> None:
    layer = nn.Dropout(0.5, generator=tw.Generator(0))
    x = nn.Parameter(np.ones((10, 10), np.float32))
    y = layer(x)
    np.testing.assert_array_equal(tw.gradient(y.sum(), wrt=x).numpy(), y.numpy())


@pytest.mark.parametrize(("rank", "name"), [(1, "Dropout1d"), (2, "Dropout2d"), (3, "Dropout3d")])
def test_channel_dropout_drops_whole_channels(rank: int, name: str) -> None:
    x = np.ones((8, 16, *(3,) * rank), np.float32)
    found = getattr(nn, name)(0.5, generator=tw.Generator(1))(x).numpy()
    channels = found.reshape(8, 16, -1)
    assert (channels == channels[..., :1]).all()
    assert 0.3 < (channels[..., 0] == 0).mean() < 0.7


def test_embedding_padding_row_begins_as_zero() -> None:
    assert (nn.Embedding(5, 3, padding_idx=2).weight.numpy()[2] == 0).all()
    torch = pytest.importorskip("torch")
    assert (torch.nn.Embedding(5, 3, padding_idx=2).weight[2] == 0).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Linear(0, 3), ["in_features", "0"]),
        (lambda: nn.Linear(3, 2.5), ["out_features", "2.5"]),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ["groups=2", "in_channels=3"]),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), ["kernel_size", "2 of them"]),
        (lambda: nn.Conv2d(3, 4, 3, padding=-1), ["padding", "-1"]),
        (
            lambda: nn.Conv2d(3, 4, 3)(np.ones((2, 5, 8, 8))),
            ["Conv2d(3, 4)", "axis 1", "5", "nn.Conv2d(5, 4"],
        ),
        (lambda: nn.Conv2d(3, 4, 3)(np.ones((3, 8, 8))), ["4 axes", "(3, 8, 8)", "unsqueeze(0)"]),
        (lambda: nn.ConvTranspose2d(3, 4, 3)(np.ones((2, 5, 8, 8))), ["axis 1", "5", "3"]),
        (lambda: nn.MaxPool2d(2)(np.ones((3, 8))), ["MaxPool2d", "4 axes", "(3, 8)"]),
        (lambda: nn.BatchNorm2d(3)(np.ones((2, 4, 3, 3))), ["BatchNorm2d(3)", "(2, 4, 3, 3)"]),
        (lambda: nn.BatchNorm1d(3)(np.ones((1, 3))), ["more than one value"]),
        (lambda: nn.LayerNorm(5)(np.ones((2, 4))), ["LayerNorm((5,))", "(2, 4)"]),
        (lambda: nn.GroupNorm(4, 6), ["num_groups=4", "num_channels=6"]),
        (lambda: nn.Dropout(1.5), ["p", "1.5"]),
        (lambda: nn.Unflatten(1, (2, 4))(np.ones((2, 6))), ["axis 1 of size 6", "(2, 4)"]),
        (lambda: nn.Embedding(4, 2)(np.array([4])), ["4"]),
        (lambda: nn.Embedding(4, 2, padding_idx=4), ["padding_idx 4"]),
        (lambda: nn.CrossEntropyLoss(reduction="avg"), ["'avg'", "'mean'"]),
    ],
)
def test_bad_input_is_explained(make: Any, words: list[str]) -> None:
    with pytest.raises(ThalwegError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)
