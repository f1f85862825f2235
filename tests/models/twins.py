"""The same tiny model in `transformers` and here, compared: scores, states, loss and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import thalweg as tw
from thalweg import models

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BACKENDS = [None, "numpy"]
Arrays = dict[str, np.ndarray[Any, Any]]


@contextmanager
def double(active: bool) -> Iterator[None]:
    """`transformers` goes through float32 in places (norms, angles, losses); inside it stays in double."""
    if not active:
        yield
        return
    kinds = {"float32": torch.float64, "float": torch.float64}
    with mock.patch.multiple(torch, **kinds), mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


def twins(name: str, config: Any, folder: Path, dtype: str = "float32") -> tuple[Any, Any]:
    """Their model with random weights (larger than usual, so that nothing is nearly linear), and ours."""
    torch.manual_seed(1)
    torch.set_num_threads(1)  # its threads spin, which is slow where others compute too
    config._attn_implementation = "eager"
    with double(dtype == "float64"):
        theirs = getattr(transformers, name)(config).to(getattr(torch, dtype)).eval()
    for parameter in theirs.parameters():
        noise = torch.randn(parameter.shape, dtype=parameter.dtype)
        parameter.data = parameter.data + 0.2 * noise
    theirs.save_pretrained(folder / "theirs")
    ours = models.from_pretrained(folder / "theirs", dtype=dtype)
    assert type(ours).__name__ == name and not ours.training
    return theirs, ours


def agree(
    theirs: Any,
    ours: Any,
    inputs: Arrays,
    backend: str | None,
    objective: Any = None,
    renamed: Callable[[str], str] = str,
) -> None:
    """Compare everything for these inputs.

    `objective(outputs)` is the loss where the model has none; `renamed` gives the name in files of a
    parameter of theirs, where it has another one in memory.
    """
    precise = next(theirs.parameters()).dtype == torch.float64
    with double(precise):
        tensors = {name: torch.tensor(value) for name, value in inputs.items()}
        expected = theirs(**tensors, output_hidden_states=True)
        loss = expected.loss if objective is None else objective(expected)
        theirs.zero_grad()
        loss.backward()

    def step(inputs: Any) -> Any:
        found = ours(**inputs, output_hidden_states=True)
        loss = found.loss if objective is None else objective(found)
        return found, loss, tw.gradient(loss, wrt=ours)

    run = step if backend is None else tw.compile(step, backend=backend)
    found, our_loss, gradients = run({name: tw.tensor(value) for name, value in inputs.items()})
    relative, absolute = (1e-9, 1e-9) if precise else (1e-4, 1e-6)
    close(our_loss, loss, relative, absolute)
    for field in found._fields:
        value = getattr(found, field)
        if value is None or field == "loss":
            continue
        other = getattr(expected, field, None)
        if other is None and field == "last_hidden_state":
            other = expected.decoder_hidden_states[-1]
        values, others = (value, other) if isinstance(value, tuple) else ((value,), (other,))
        assert len(values) == len(others), field
        for ours_, theirs_ in zip(values, others, strict=True):
            close(ours_, theirs_, relative, absolute, field)
    compare_gradients(theirs, ours, gradients, relative, absolute, renamed)


def compare_gradients(
    theirs: Any,
    ours: Any,
    gradients: Any,
    relative: float,
    absolute: float,
    renamed: Callable[[str], str] = str,
) -> None:
    """Every parameter of theirs has one of ours, with the same gradient."""
    names = {ours.checkpoint_name(path): path for path, _ in ours.named_parameters(remove_duplicate=False)}
    paths = {id(parameter): path for path, parameter in ours.named_parameters()}
    parameters = dict(ours.named_parameters(remove_duplicate=False))
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters())
    compared = set()
    for name, parameter in theirs.named_parameters():
        path = paths[id(parameters[names[renamed(name)]])]
        gradient = gradients[path].numpy()
        if parameter.shape != gradient.shape or name.endswith(
            ("c_proj.weight", "c_fc.weight", "c_attn.weight")
        ):
            gradient = gradient.T
        expected = parameter.grad.numpy()
        assert gradient.shape == expected.shape, name
        limit = relative * np.abs(expected).max() + absolute * largest
        assert np.abs(gradient - expected).max() <= limit, name
        compared.add(path)
    assert compared == set(gradients)


def close(found: Any, expected: Any, relative: float, absolute: float, what: str = "loss") -> None:
    """|a - b| <= relative max|b| + absolute, element by element."""
    a, b = found.numpy(), expected.detach().numpy()
    assert a.shape == b.shape, what
    assert np.abs(a - b).max() <= relative * np.abs(b).max() + absolute, what


def there_and_back(theirs: Any, ours: Any, inputs: Arrays, folder: Path) -> None:
    """What we save, `transformers` loads without a complaint, and computes the same scores."""
    ours.save_pretrained(folder / "ours")
    again, report = type(theirs).from_pretrained(
        folder / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    again = again.to(next(theirs.parameters()).dtype).eval()
    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    for first, second in zip(theirs(**tensors).to_tuple(), again(**tensors).to_tuple(), strict=True):
        if isinstance(first, torch.Tensor):
            assert torch.equal(first, second)
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    for name, value in again.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[name], err_msg=name)


def tokens(
    batch: int, length: int, vocabulary: int, padding: Callable[[int], slice] | None = None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Random tokens and their mask; `padding(row)` is what is padding in a row."""
    random = np.random.default_rng(length)
    ids = random.integers(0, vocabulary, (batch, length))
    mask = np.ones((batch, length), np.int64)
    if padding is not None:
        for row in range(batch):
            mask[row, padding(row)] = 0
    return ids, mask
