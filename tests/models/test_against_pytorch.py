"""The models train as in PyTorch, step by step for ten steps, eagerly, interpreted and compiled.

The twin in PyTorch is made from the very source file of the model, with PyTorch's `nn` in place of ours.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg import nn, optim
from thalweg.models import autoencoder, lenet, mlp, mobilenet, resnet

STEPS = 10

CASES: dict[str, tuple[types.ModuleType, Callable[[Any], Any], tuple[int, ...]]] = {
    "LeNet": (lenet, lambda m: m.LeNet(), (5, 1, 28, 28)),
    "MLP": (mlp, lambda m: m.MLP([36, 20, 12, 10]), (7, 1, 6, 6)),
    "ResNet": (resnet, lambda m: m.ResNet((1, 2), (4, 6), in_channels=2), (4, 2, 9, 8)),
    "ResNet stem": (resnet, lambda m: m.ResNet((1,), (4,), stem="imagenet"), (4, 3, 17, 16)),
    "Autoencoder": (autoencoder, lambda m: m.Autoencoder(code_size=6, width=3), (3, 1, 28, 28)),
}
# Deep models amplify rounding from step to step and take long to compile: one gradient shows their structure.
DEEP: dict[str, tuple[types.ModuleType, Callable[[Any], Any], tuple[int, ...]]] = {
    "ResNet bottleneck": (
        resnet,
        lambda m: m.ResNet((1,), (8,), block=m.Bottleneck, stem_channels=4),
        (4, 3, 7, 8),
    ),
    "MobileNetV1": (mobilenet, lambda m: m.MobileNetV1(10, 2, width=0.1, dropout=0.0), (6, 2, 40, 33)),
    "MobileNetV2": (mobilenet, lambda m: m.MobileNetV2(10, 2, width=0.1, dropout=0.0), (6, 2, 40, 33)),
}
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("SGD", {"lr": 0.05, "momentum": 0.9}),
    "Adam": ("Adam", {"lr": 1e-3}),
}


def twin_of(module: types.ModuleType, make: Callable[[Any], Any]) -> Any:
    """The model of a source file written against `torch.nn`."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # its threads spin, which is slow where others compute too

    class Module(torch.nn.Module):  # type: ignore[name-defined, misc]
        """PyTorch's own needs super().__init__() before the first assignment."""

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            self = super().__new__(cls)
            torch.nn.Module.__init__(self)
            return self

        def __init__(self) -> None:
            pass

    library = types.SimpleNamespace(**{name: getattr(torch.nn, name) for name in dir(torch.nn)})
    library.Module = Module
    source = inspect.getsource(module)
    assert "from thalweg import nn\n" in source
    space = types.ModuleType("twin")
    vars(space)["nn"] = library
    exec(compile(source.replace("from thalweg import nn\n", ""), "twin", "exec"), vars(space))
    return make(space)


def batches(shape: tuple[int, ...], dtype: str) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    random = np.random.default_rng(2)
    return [
        (random.uniform(size=shape).astype(dtype), random.integers(0, 10, shape[0])) for _ in range(STEPS)
    ]


def loss_of(functional: Any, model: Any, x: Any, y: Any) -> Any:
    result = model(x)
    return functional.mse_loss(result, x) if result.shape == x.shape else functional.cross_entropy(result, y)


@pytest.mark.parametrize(
    ("backend", "dtype"), [(None, "float64"), ("numpy", "float64"), ("c", "float64"), ("c", "float32")]
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", CASES)
def test_ten_steps_are_those_of_pytorch(
    name: str, optimizer: str, backend: str | None, dtype: str, request: pytest.FixtureRequest
) -> None:
    torch = pytest.importorskip("torch")
    if backend == "c":
        request.getfixturevalue("needs_compiler")
    source, make, shape = CASES[name]
    if backend == "c":  # enough samples for kernels with one sample per vector lane
        shape = (4 * shape[0], *shape[1:])
    kind, options = OPTIMIZERS[optimizer]
    torch.manual_seed(3)
    other = twin_of(source, make).to(getattr(torch, dtype))
    model = make(source).to(dtype)
    assert list(model.state_dict()) == list(other.state_dict())
    model.load_state_dict(other.state_dict())
    ours = getattr(optim, kind)(model.parameters(), **options)
    theirs = getattr(torch.optim, kind)(other.parameters(), **options)

    def step(x: Any, y: Any) -> Any:
        loss = loss_of(nn.functional, model, x, y)
        ours.minimize(loss)
        return loss

    run = step if backend is None else tw.compile(step, backend=backend)
    # float32: Adam divides gradients by their size, so that rounding of the smallest ones counts in full
    tolerance = 1e-8 if dtype == "float64" else 2e-3 if optimizer == "Adam" else 2e-4
    for x, y in batches(shape, dtype):
        expected = loss_of(torch.nn.functional, other, torch.tensor(x), torch.tensor(y))
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        np.testing.assert_allclose(run(tw.tensor(x), tw.tensor(y)).item(), expected.item(), rtol=tolerance)
    for key, value in other.state_dict().items():
        found = model.state_dict()[key]
        np.testing.assert_allclose(found, value.numpy(), rtol=tolerance * 10, atol=tolerance, err_msg=key)
    model.eval()
    other.eval()
    x = batches(shape, dtype)[0][0]
    evaluate = model if backend is None else tw.compile(model, backend=backend)
    expected = other(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(evaluate(x).numpy(), expected, rtol=tolerance * 10, atol=tolerance * 10)


@pytest.mark.parametrize("name", DEEP)
def test_deep_models_have_the_gradients_of_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    source, make, shape = DEEP[name]
    torch.manual_seed(3)
    other = twin_of(source, make).double()
    model = make(source).to("float64")
    assert list(model.state_dict()) == list(other.state_dict())
    model.load_state_dict(other.state_dict())
    x, y = batches(shape, "float64")[0]
    expected = loss_of(torch.nn.functional, other, torch.tensor(x), torch.tensor(y))
    expected.backward()
    loss = loss_of(nn.functional, model, tw.tensor(x), tw.tensor(y))
    np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-12)
    found = tw.gradient(loss, wrt=list(model.parameters()))
    for (key, theirs), ours in zip(other.named_parameters(), found, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.grad.numpy(), rtol=1e-7, atol=1e-9, err_msg=key)
    for key, value in other.state_dict().items():  # the running statistics
        np.testing.assert_allclose(model.state_dict()[key], value.numpy(), 1e-10, 1e-12, err_msg=key)
    np.testing.assert_allclose(
        model.eval()(x).numpy(), other.eval()(torch.tensor(x)).detach().numpy(), rtol=1e-8, atol=1e-10
    )
