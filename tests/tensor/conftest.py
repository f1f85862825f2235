"""What the tests of the tensor layer share."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["c", "numpy"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every compiled function of the test runs on this backend."""
    if request.param == "c":
        request.getfixturevalue("needs_compiler")
    monkeypatch.setenv("THALWEG_BACKEND", request.param)
    return str(request.param)
