"""Writing a file so that it is either the old one or the complete new one.

In: a path and the content (bytes, or a function that writes them). Out: the file, synced to the disk. Called
by whatever saves something that must survive a crash, a full disk or Ctrl-C: checkpoints, downloads, data
files.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from thalweg.errors import DataError

__all__ = ["atomic_write"]

_ADVICE = {
    errno.ENOSPC: "free some space or choose another directory",
    errno.EDQUOT: "your disk quota is used up: free some space or choose another directory",
    errno.EFBIG: "the file is larger than this file system or process may write: choose another directory",
    errno.EACCES: "you may not write in this directory: choose another one or change its permissions",
    errno.EPERM: "you may not write in this directory: choose another one or change its permissions",
    errno.EROFS: "this file system is read-only: choose another directory",
    errno.ENOENT: "the directory does not exist: create it first",
    errno.ENOTDIR: "a part of the path is a file, not a directory: correct the path",
    errno.EISDIR: "the path is a directory: add a file name",
    errno.ENAMETOOLONG: "the file name is too long: choose a shorter one",
}


def atomic_write(
    path: str | os.PathLike[str], content: bytes | bytearray | memoryview | Callable[[BinaryIO], None]
) -> None:
    """Write `content` to `path` so that a crash at any moment leaves the old file or the complete new one.

    `content` is bytes, or a function that is given the open binary file and writes to it. The content goes to
    a temporary file in the same directory, which is synced, renamed to `path`, and the directory synced. A
    symbolic link is followed, and an existing file's permissions are kept. Whatever fails, the old file stays
    as it was and the temporary one is removed.

    Raises `DataError` when the operating system refuses (full disk, read-only or missing directory, ...);
    what `content` itself raises passes through unchanged.
    """
    target = Path(os.path.realpath(path))
    # A short name of its own: `path` with a suffix could exceed the length that a file name may have.
    temporary = target.parent / f".thalweg-{os.urandom(8).hex()}.tmp"
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _write_synced(temporary, content, _permissions(target))
        os.replace(temporary, target)
        _sync_directory(target.parent)
    except OSError as error:
        raise DataError(_explain(os.fspath(path), target, error)) from error
    finally:
        # After a successful rename there is nothing under this name; else this removes what was begun.
        with suppress(OSError):
            temporary.unlink()


def _write_synced(
    temporary: Path,
    content: bytes | bytearray | memoryview | Callable[[BinaryIO], None],
    permissions: int | None,
) -> None:
    with open(temporary, "xb") as file:
        if permissions is not None:
            os.chmod(temporary, permissions)
        if callable(content):
            content(file)
        else:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _permissions(target: Path) -> int | None:
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        return None


def _sync_directory(directory: Path) -> None:
    if os.name == "nt":  # Windows cannot open a directory as a file; its rename is journalled.
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync directories; the file itself is complete and in place.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _explain(path: str, target: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0, "choose another directory or correct the path")
    state = "the file that was there is unchanged" if target.is_file() else "nothing was written"
    return f"cannot write {path!r}: {reason}; {state}; {advice}"
