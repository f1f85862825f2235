"""The models themselves: sizes, shapes, states, training on a small real task."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import models, nn, optim
from thalweg.errors import ArgumentError, ShapeError


@pytest.mark.parametrize(
    ("make", "input", "output", "count"),
    [
        (models.LeNet, (2, 1, 28, 28), (2, 10), 61_706),
        (models.MLP, (2, 1, 28, 28), (2, 10), 203_530),
        (lambda: models.MLP([4, 3], dropout=0.5), (2, 4), (2, 3), 15),
        (models.Autoencoder, (2, 1, 28, 28), (2, 1, 28, 28), 111_521),
        (models.small_resnet, (2, 1, 28, 28), (2, 10), 77_754),
        (models.resnet20, (2, 3, 32, 32), (2, 10), 272_474),
        (models.resnet18, (1, 3, 64, 64), (1, 1000), 11_689_512),
        # as torchvision's documentation counts them, and Howard et al., table 1
        (models.resnet34, (2, 3, 32, 32), (2, 1000), 21_797_672),
        (models.resnet50, (2, 3, 32, 32), (2, 1000), 25_557_032),
        (models.mobilenet_v1, (2, 3, 32, 32), (2, 1000), 4_231_976),
        (models.mobilenet_v2, (2, 3, 32, 32), (2, 1000), 3_504_872),
        (lambda: models.MobileNetV2(10, 1, width=0.35), (2, 1, 28, 28), (2, 10), 408_650),
    ],
)
def test_sizes(make: Any, input: tuple[int, ...], output: tuple[int, ...], count: int) -> None:
    model = make()
    summary = model.summary(input)
    assert summary.parameters == count
    assert summary.rows[0].output == str(list(output))


def test_the_names_of_resnet18_are_those_of_torchvision() -> None:
    names = list(models.resnet18().state_dict())
    assert len(names) == 122
    for name in (
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv1.weight",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.num_batches_tracked",
        "layer4.1.bn2.bias",
        "fc.weight",
    ):
        assert name in names


def test_the_names_of_mobilenet_v2_and_resnet50_are_those_of_torchvision() -> None:
    names = models.mobilenet_v2().state_dict()
    assert len(names) == 314
    assert names["features.1.conv.0.0.weight"].shape == (32, 1, 3, 3)
    assert names["features.2.conv.3.running_var"].shape == (24,)
    assert names["features.18.0.weight"].shape == (1280, 320, 1, 1)
    assert names["classifier.1.weight"].shape == (1000, 1280)
    names = models.resnet50().state_dict()
    assert len(names) == 320
    assert names["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert names["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)


def test_mlp_layers() -> None:
    model = models.MLP([4, 8, 6, 3], activation=nn.Tanh, dropout=0.1)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["Linear", "Tanh", "Dropout", "Linear", "Tanh", "Dropout", "Linear"]


def test_autoencoder_parts_fit() -> None:
    model = models.Autoencoder(code_size=5, width=4).eval()
    x = tw.tensor(np.random.default_rng(0).uniform(size=(3, 1, 28, 28)).astype(np.float32))
    code = model.encode(x)
    assert code.shape == (3, 5)
    np.testing.assert_array_equal(model.decode(code).numpy(), model(x).numpy())
    assert model(x).numpy().min() > 0 and model(x).numpy().max() < 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.MLP([3]),
        lambda: models.ResNet((1, 1), (4,)),
        lambda: models.ResNet((1,), (4,), stem="tiny"),
        lambda: models.MobileNetV1(width=0),
        lambda: models.LeNet()(np.zeros((1, 1, 32, 32), np.float32)),
    ],
)
def test_wrong_uses_are_explained(make: Any) -> None:
    with pytest.raises((ArgumentError, ShapeError)):
        make()


def stripes(count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images with a horizontal (0) or vertical (1) bar and noise."""
    random = np.random.default_rng(1)
    x = random.normal(0, 0.3, size=(count, 1, 28, 28)).astype(np.float32)
    y = random.integers(0, 2, count)
    for image, kind in zip(x, y, strict=True):
        place = random.choice([6, 13, 20])
        if kind:
            image[0, :, place : place + 2] += 1
        else:
            image[0, place : place + 2, :] += 1
    return x, y


def test_lenet_learns_and_backends_agree() -> None:
    """Eager, interpreted and compiled training give the same losses: relative 1e-4 over 20 steps in
    float32.
    """
    x, y = stripes(64)
    tw.manual_seed(0)
    start = models.LeNet()
    losses: dict[str, list[float]] = {}
    for backend in (None, "numpy"):
        model = copy.deepcopy(start)
        optimizer = optim.Adam(model.parameters(), lr=3e-3)

        def step(x: Any, y: Any, model: Any = model, optimizer: Any = optimizer) -> Any:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.minimize(loss)
            return loss

        run = step if backend is None else tw.compile(step, backend=backend)
        data = tw.tensor(x), tw.tensor(y)
        losses[str(backend)] = [run(*data).item() for _ in range(20)]
        predicted = model.eval()(x).numpy().argmax(1)
        assert (predicted == y).mean() > 0.9
    np.testing.assert_allclose(losses["None"], losses["numpy"], rtol=1e-4)


def test_train_and_eval_programs_share_parameters() -> None:
    x, y = stripes(16)
    tw.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(676, 2)
    )
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    evaluate = tw.compile(model, backend="numpy")

    @tw.compile(backend="numpy")
    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.minimize(loss)
        return loss

    model.eval()
    before = evaluate(x).numpy()
    for _ in range(3):
        model.train()
        step(x, y)
        model.eval()
        after = evaluate(x).numpy()
        assert np.abs(after - before).max() > 1e-4
        np.testing.assert_allclose(after, model(x).numpy(), rtol=1e-5, atol=1e-6)
        before = after
    assert model[1].num_batches_tracked.item() == 3
