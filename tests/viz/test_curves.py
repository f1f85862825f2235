"""Curves of a training run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from thalweg import train, viz
from thalweg.errors import ArgumentError, DataError


def history(epochs: int = 3, steps: int = 200) -> train.History:
    found = train.History()
    found.losses = [2.3 * 0.98**step for step in range(steps)]
    found.epochs = [
        {"loss": 1.0 / number, "accuracy": 0.5, "test_loss": 1.0, "test_accuracy": 1 - 0.5**number}
        for number in range(1, epochs + 1)
    ]
    return found


def test_a_png_of_two_panels(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    viz.plot(history(), tmp_path / "c.png", "a title")
    image = matplotlib.image.imread(tmp_path / "c.png")
    height, width = image.shape[:2]
    assert width > 2 * height > 400
    assert 0.01 < (image[..., :3] < 0.9).any(axis=-1).mean() < 0.5  # lines on white


@pytest.mark.parametrize("found", [history(0, 5), history(1, 1), history(2, 0), train.History()])
def test_short_histories(tmp_path: Path, found: train.History) -> None:
    pytest.importorskip("matplotlib")
    viz.plot(found, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_what_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ArgumentError, match=r"write a name that ends in \.png"):
        viz.plot(history(), tmp_path / "c.xyz")
    with pytest.raises(DataError, match="the directory does not exist"):
        viz.plot(history(), tmp_path / "absent" / "c.png")


def test_without_matplotlib_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"needs matplotlib: pip install 'thalweg\[app\]'"):
        viz.plot(history(), tmp_path / "c.png")
