"""`atomic_write`: the old file or the complete new one, whatever goes wrong."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

import pytest

from thalweg.errors import DataError
from thalweg.io.files import atomic_write

POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX file permissions and limits")


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_writes_bytes_and_functions(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    atomic_write(path, b"first")
    assert path.read_bytes() == b"first"

    def write(file: BinaryIO) -> None:
        file.write(b"sec")
        file.write(b"ond")

    atomic_write(str(path), write)
    assert path.read_bytes() == b"second"
    assert names(tmp_path) == ["file.bin"]


@POSIX
def test_permissions_are_the_usual_ones_or_those_of_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    previous = os.umask(0o027)
    try:
        atomic_write(path, b"1")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    atomic_write(path, b"2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


@POSIX
def test_symbolic_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    atomic_write(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_name_of_the_greatest_length(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    atomic_write(path, b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("from the writer")])
def test_a_failing_writer_leaves_the_old_file(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"half of the new")
        raise failure

    with pytest.raises(type(failure)) as raised:
        atomic_write(path, write)
    assert raised.value is failure
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"half of the new")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        DataError, match=r"cannot write .*file\.bin'.*[Nn]o space.*unchanged.*free some space"
    ):
        atomic_write(path, write)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


LIMITED = """
import resource, signal, sys
from thalweg.errors import DataError
from thalweg.io.files import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    atomic_write(sys.argv[1], bytes(100_000))
except DataError as error:
    print(error)
"""


@POSIX
def test_the_operating_system_stops_the_write_midway(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", LIMITED, str(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "cannot write" in output
    assert "too large" in output
    assert "unchanged" in output
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


READ_ONLY = """
import os, sys
from thalweg.errors import DataError
from thalweg.io.files import atomic_write
if os.getuid() == 0:  # permissions do not bind root
    os.setuid(65534)
try:
    atomic_write(sys.argv[1], b"new")
except DataError as error:
    print(error)
"""


@POSIX
def test_read_only_directory() -> None:
    # Not `tmp_path`: its parents are closed to the other user that the child process becomes under root.
    with tempfile.TemporaryDirectory() as base:
        directory = Path(base, "closed")
        directory.mkdir()
        path = directory / "file.bin"
        path.write_bytes(b"old")
        Path(base).chmod(0o755)
        directory.chmod(0o555)
        try:
            command = [sys.executable, "-c", READ_ONLY, str(path)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        finally:
            directory.chmod(0o755)
        assert "Permission denied" in output
        assert "unchanged" in output
        assert "choose another one or change its permissions" in output
        assert path.read_bytes() == b"old"
        assert names(directory) == ["file.bin"]


def test_missing_directory_directory_as_file_and_file_as_directory(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nothing was written; the directory does not exist: create it first"
    ):
        atomic_write(tmp_path / "missing" / "file.bin", b"x")
    with pytest.raises(DataError, match="the path is a directory: add a file name"):
        atomic_write(tmp_path, b"x")
    (tmp_path / "plain").write_bytes(b"old")
    with pytest.raises(DataError, match=r"plain.file\.bin"):
        atomic_write(tmp_path / "plain" / "file.bin", b"x")
    assert names(tmp_path) == ["plain"]


@POSIX
def test_syncs_the_file_before_and_the_directory_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        events.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_sync(descriptor)

    def replace(source: Path, target: Path) -> None:
        assert Path(source).read_bytes() == b"content"
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    atomic_write(tmp_path / "file.bin", b"content")
    assert events == ["file", "rename", "directory"]
