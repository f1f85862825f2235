"""A process takes what the plan of its program says: mapped and resident bytes, and an address-space limit.

`benchmarks/memory.py` measures more networks in the same way.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory.py"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits the address space")


def measured(what: str) -> dict[str, Any]:
    """A measurement of LeNet's training step in a fresh process."""
    command = [sys.executable, str(SCRIPT), "--worker", what, "--threads", "2", "lenet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    from thalweg.codegen.c.build import find_compiler

    if find_compiler() is None:
        pytest.skip("there is no C compiler")
    measured("compile")


def test_resident_bytes_are_those_of_the_plan() -> None:
    found = measured("resident")
    assert found["mapped"] == found["planned maps"]
    assert abs(found["above base"] - found["plan"]) <= max(0.01 * found["plan"], 2 << 20)
    # On a busy machine a thread may get its first task, and touch its planned scratch, only later.
    untouched = max(0, found["plan"] - found["above base"])
    assert found["grown by 5 calls"] <= untouched + (256 << 10)
    assert found["a call allocates"] <= found["outputs"] + (16 << 10)  # the Python objects of a call


def test_a_call_succeeds_in_the_address_space_of_the_plan() -> None:
    assert measured("limited") == {"ran": 1}
    assert measured("too little") == {"ran": 0}
