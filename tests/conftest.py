"""What all tests share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def needs_compiler() -> None:
    """Skip the test where there is no C compiler."""
    from thalweg.codegen.c.build import find_compiler

    if find_compiler() is None:
        pytest.skip("there is no C compiler")
