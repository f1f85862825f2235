"""Downloading one gzip-compressed file from the first of several mirrors that has the right content.

In: mirrors' addresses, the SHA-256 and size of the unpacked content, and where to put it. Out: the unpacked
file, in place only when it is complete and right. Called by the standard data sets.

An interrupted download is kept beside the target as `<name>.gz.part` and resumed (HTTP Range), by the same
mirror or another one. A lock on that file makes a second process wait for the first instead of writing into
the same file.
"""

from __future__ import annotations

import gzip
import os
import queue
import sys
import threading
import zlib
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from thalweg.errors import DataError
from thalweg.io.files import atomic_write

__all__ = ["download_unpacked"]

_CHUNK = 1 << 16
_ATTEMPTS = 4  # per mirror, as long as each brings something new
_GZIP_SLACK = 1 << 20  # bytes by which a compressed file may exceed the unpacked one; more is refused


def download_unpacked(
    target: str | os.PathLike[str],
    mirrors: Sequence[str],
    *,
    sha256: str,
    size: int,
    progress: bool = True,
    timeout: float = 10.0,
) -> None:
    """Fetch `<mirror>/<target's name>.gz` from the first mirror that delivers it and unpack it to `target`.

    `sha256` and `size` (bytes) belong to the unpacked content. A mirror that does not answer within `timeout`
    seconds is passed over. `progress` shows a bar on standard error.

    Raises `DataError`, which lists what went wrong at each mirror, or says why the target cannot be written.
    """
    download = _Download(Path(target), sha256, size, progress, timeout)
    try:
        download.target.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(download.part, "a+")
    except OSError as error:
        raise _cannot_write(download.part, error) from error
    with file:
        _lock(file)
        # Another process may have finished it while this one waited for the lock.
        if not download.target.exists():
            download.run(file, mirrors)
    with suppress(OSError):
        download.part.unlink()


class _InterruptedError(Exception):
    """A mirror refused, or the connection broke; what arrived so far is good for resuming."""


class _WrongContentError(Exception):
    """What arrived cannot become the wanted file."""


class _Download:
    def __init__(self, target: Path, sha256: str, size: int, progress: bool, timeout: float) -> None:
        self.target = target
        self.part = target.with_name(f"{target.name}.gz.part")
        self.sha256 = sha256
        self.size = size
        self.progress = progress
        self.timeout = timeout

    def run(self, file: FileIO, mirrors: Sequence[str]) -> None:
        failures = []
        for mirror in mirrors:
            url = f"{mirror.rstrip('/')}/{self.target.name}.gz"
            try:
                content = self._from_mirror(file, url)
            except (_InterruptedError, _WrongContentError) as failure:
                failures.append(f"  {url}: {failure}")
            else:
                atomic_write(self.target, content)
                return
        tried = "\n".join(failures) or "  (no mirror was given)"
        raise DataError(f"cannot download {self.target.name}; what was tried:\n{tried}")

    def _from_mirror(self, file: FileIO, url: str) -> bytes:
        for attempt in range(1, _ATTEMPTS + 1):
            start = _length(file)
            try:
                self._transfer(file, url)
                return self._unpack(file)
            except _WrongContentError:
                self._write(file, b"", restart=True)
                if start == 0:  # all of it came from this mirror
                    raise
            except _InterruptedError:
                if _length(file) <= start or attempt == _ATTEMPTS:
                    raise
        raise _InterruptedError(f"gave up after {_ATTEMPTS} attempts")

    def _transfer(self, file: FileIO, url: str) -> None:
        """Append what is still missing to the partial file."""
        start = _length(file)
        try:
            response = self._open(url, start)
        except HTTPError as error:
            error.close()
            if error.code == 416 and start:
                return  # nothing follows: the partial file is complete, or too long
            raise _InterruptedError(f"HTTP status {error.code} {error.reason}") from error
        except (OSError, HTTPException, ValueError) as error:
            raise _InterruptedError(_reason(error)) from error
        with response:
            if start and not _continues(response, start):
                self._write(file, b"", restart=True)
                start = 0
            announced = response.headers.get("Content-Length", "")
            total = start + int(announced) if announced.isdecimal() else None
            self._copy(file, response, start, total)

    def _copy(self, file: FileIO, response: Any, start: int, total: int | None) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

        limit = self.size + _GZIP_SLACK
        name = self.target.name
        with tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=not self.progress
        ) as bar:
            while True:
                try:
                    chunk = response.read(_CHUNK)
                except (OSError, HTTPException) as error:
                    raise _InterruptedError(
                        f"broke off after {_length(file):,} bytes: {_reason(error)}"
                    ) from error
                if not chunk:
                    break
                self._write(file, chunk)
                bar.update(len(chunk))
                if _length(file) > limit:
                    raise _WrongContentError(f"sends more than {limit:,} bytes, which cannot be {name}.gz")
        if total is not None and _length(file) < total:
            raise _InterruptedError(f"broke off after {_length(file):,} of {total:,} bytes")

    def _open(self, url: str, start: int) -> Any:
        """Open `url` from byte `start` on; in a thread, because a name look-up knows no timeout."""
        headers = {"User-Agent": "thalweg", **({"Range": f"bytes={start}-"} if start else {})}
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        abandoned = threading.Event()

        def work() -> None:
            try:
                answer = urlopen(Request(url, headers=headers), timeout=self.timeout)
            except BaseException as error:
                answer = error
            answers.put(answer)
            if abandoned.is_set() and not isinstance(answer, BaseException):
                answer.close()

        threading.Thread(target=work, name="thalweg-download", daemon=True).start()
        try:
            answer = answers.get(timeout=self.timeout)
        except queue.Empty:
            abandoned.set()
            raise TimeoutError(f"no answer within {self.timeout:g} seconds") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _unpack(self, file: FileIO) -> bytes:
        """The content of the complete partial file, if it is the right one."""
        import hashlib

        file.seek(0)
        content = file.read()
        if content[:2] == b"\x1f\x8b":  # some servers unpack on the way
            try:
                with gzip.GzipFile(fileobj=BytesIO(content)) as stream:
                    content = stream.read(self.size + 1)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise _WrongContentError(f"sent a corrupt gzip file ({error})") from error
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.sha256:
            raise _WrongContentError(f"sent other content: SHA-256 {digest}, expected {self.sha256}")
        return content

    def _write(self, file: FileIO, content: bytes, restart: bool = False) -> None:
        try:
            if restart:
                file.truncate(0)
            while content:  # an unbuffered file may take a part only
                content = content[file.write(content) :]
        except OSError as error:
            raise _cannot_write(self.part, error) from error


def _length(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _lock(file: FileIO) -> None:
    """Wait until no other process downloads into `file`; closing it or the end of the process unlocks it."""
    if sys.platform == "win32":  # there the checksum alone guards against two writers
        return
    import fcntl

    with suppress(OSError):  # some network file systems have no locks
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)


def _continues(response: Any, start: int) -> bool:
    """Whether a response is the rest from byte `start` on, and not the whole file once more."""
    content_range = str(response.headers.get("Content-Range", ""))
    return response.status == 206 and content_range.startswith(f"bytes {start}-")


def _reason(error: BaseException) -> str:
    if isinstance(error, URLError) and isinstance(error.reason, BaseException):
        return _reason(error.reason)
    return str(error) or type(error).__name__


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write the download {os.fspath(path)!r}: {error.strerror or error}; "
        "free some space, or choose a directory that you may write to"
    )
