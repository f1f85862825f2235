"""Importing: quick, lazy, and the public names are all there."""

import os
import subprocess
import sys

import pytest

import thalweg as tw

MEASURE = """
import resource
def spent():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
begin = spent(); import numpy; middle = spent(); import thalweg; end = spent()
print(middle - begin, end - middle)
"""


def run(code, **environment):
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=True,
    )
    return found.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="measures with getrusage")
def test_import_takes_less_than_twice_as_long_as_numpy(tmp_path):
    cached = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    run(MEASURE, **cached)  # writes the bytecode that an installation has
    times = [tuple(map(float, run(MEASURE, **cached).split())) for _ in range(5)]
    numpy, thalweg = (min(column) for column in zip(*times, strict=True))
    assert thalweg < numpy, f"numpy {numpy:.3f} s, thalweg on top {thalweg:.3f} s of processor time"


def test_heavy_packages_are_not_imported():
    loaded = run("import sys, thalweg; print(*sys.modules)").split()
    for name in (
        "ml_dtypes",
        "safetensors",
        "tqdm",
        "matplotlib",
        "PIL",
        "torch",
        "thalweg.nn",
        "thalweg.codegen",
    ):
        assert name not in loaded


def test_parts_are_imported_when_used():
    assert tw.nn.Module and tw.optim.SGD
    with pytest.raises(AttributeError, match="nothing_of_the_sort"):
        tw.nothing_of_the_sort  # noqa: B018


def test_public_names():
    assert set(tw.__all__) <= set(dir(tw)) and len(set(tw.__all__)) == len(tw.__all__)
    for name in tw.__all__:
        assert name in ("train", "viz", "models") or getattr(tw, name) is not None
    for name in tw.ops.__all__:
        assert (getattr(tw, name).__doc__ or "").strip(), name
