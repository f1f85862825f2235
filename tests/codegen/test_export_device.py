"""LeNet on a microcontroller: the example in examples/cortex_m under QEMU, with the bits of this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from thalweg.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "cortex_m"
M4 = "-mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16"
M3 = "-mcpu=cortex-m3 -mthumb -mfloat-abi=soft"  # no floating-point instruction at all


def run(*words: str, directory: Path) -> str:
    done = subprocess.run(words, cwd=directory, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr  # QEMU gives what the device says to standard error


@pytest.mark.parametrize(
    ("cpu", "machine", "ram", "stack", "options"),
    [
        (M4, "mps2-an386", "192K", "12K", ["--fit-memory", "176KB", "--momentum", "0", "--batch-size", "4"]),
        (M3, "mps2-an385", "48K", "6K", ["--inference", "--embed"]),
    ],
    ids=["training on Cortex-M4", "inference on Cortex-M3"],
)
def test_lenet_runs_within_its_memory(
    cpu: str, machine: str, ram: str, stack: str, options: list[str], tmp_path: Path
) -> None:
    for name in ("make", "arm-none-eabi-gcc", "qemu-system-arm", "cc"):
        if shutil.which(name) is None:
            pytest.skip(f"needs {name}")
    directory = tmp_path / "device"
    shutil.copytree(EXAMPLE, directory)
    assert main(["export", "lenet", *options, "-o", str(directory / "lenet")]) == 0
    batch = "-DLENET_BATCH=4" if "--momentum" in options else ""
    words = f"MODEL=lenet CPU={cpu}", f"RAM={ram}", f"STACK={stack}", f"BATCH={batch}"
    settings = [*words[0].split(" ", 1), *words[1:]]
    run("make", *settings, "device.elf", directory=directory)  # the link fails where memory is too small
    run("make", *settings, "host", directory=directory)
    emulator = ["qemu-system-arm", "-M", machine, "-nographic", "-semihosting", "-kernel", "device.elf"]
    device, host = run(*emulator, directory=directory), run("./host", directory=directory)
    used = int(re.findall(r"stack: (\d+)", device)[0])
    assert 0 < used < int(stack[:-1]) * 1024
    assert re.sub("stack.*", "", device) == re.sub("stack.*", "", host)
    assert device.startswith("scores: ") and ("loss: " in device) == bool(batch)
