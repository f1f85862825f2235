"""Downloads against mirrors on this machine: resumed, checked, and clear about what went wrong."""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mirror import Mirror, serving

from thalweg.data.download import download_unpacked
from thalweg.errors import DataError

CONTENT = np.random.default_rng(7).bytes(300_000)
PACKED = gzip.compress(CONTENT)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def fetch(target: Path, *mirrors: str, **options: Any) -> None:
    options = {"progress": False, "timeout": 5.0, "sha256": DIGEST, "size": len(CONTENT), **options}
    download_unpacked(target, mirrors, **options)


def only(directory: Path, *names: str) -> bool:
    return sorted(entry.name for entry in directory.iterdir()) == sorted(names)


def dead_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/files"


def test_from_the_first_mirror(tmp_path: Path) -> None:
    with serving({"file.gz": PACKED}) as mirror:
        fetch(tmp_path / "new" / "file", mirror.url + "/", dead_address())
        assert mirror.requests == [("file.gz", None)]
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert only(tmp_path / "new", "file")


def test_next_mirror_after_each_fault(tmp_path: Path) -> None:
    other = gzip.compress(b"something else")
    with serving({}) as missing, serving({"file.gz": other}) as wrong, serving({"file.gz": PACKED}) as good:
        fetch(tmp_path / "file", dead_address(), missing.url, wrong.url, good.url)
        assert len(missing.requests) == len(wrong.requests) == len(good.requests) == 1
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_every_failure_is_listed(tmp_path: Path) -> None:
    files = {"file.gz": gzip.compress(b"something else")}
    corrupt = {"file.gz": PACKED[:1000] + b"\0\0\0" + PACKED[1003:]}
    dead = dead_address()
    with serving({}) as missing, serving(files) as wrong, serving(corrupt) as broken:
        with pytest.raises(DataError) as raised:
            fetch(tmp_path / "file", dead, missing.url, wrong.url, broken.url, "nonsense")
        lines = str(raised.value).splitlines()
        assert lines[0] == "cannot download file; what was tried:"
        assert lines[1].startswith(f"  {dead}/file.gz: ") and "refused" in lines[1]
        assert lines[2] == f"  {missing.url}/file.gz: HTTP status 404 Not Found"
        digest = hashlib.sha256(b"something else").hexdigest()
        assert lines[3].endswith(f"sent other content: SHA-256 {digest}, expected {DIGEST}")
        assert "sent a corrupt gzip file" in lines[4]
        assert "nonsense/file.gz: unknown url type" in lines[5]
        assert len(lines) == 6
    assert not (tmp_path / "file").exists()


def test_broken_connection_is_resumed_at_the_same_mirror(tmp_path: Path) -> None:
    with serving({"file.gz": PACKED}) as mirror:
        mirror.break_after = [100_000, 50_000]
        fetch(tmp_path / "file", mirror.url)
        assert mirror.requests == [
            ("file.gz", None),
            ("file.gz", "bytes=100000-"),
            ("file.gz", "bytes=150000-"),
        ]
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert only(tmp_path, "file")


def test_broken_download_is_resumed_in_the_next_run_and_at_another_mirror(tmp_path: Path) -> None:
    with serving({"file.gz": PACKED}) as mirror:
        mirror.break_after = [100_000, 0]
        with pytest.raises(DataError, match=r"broke off after 100,000 of 300,\d+ bytes"):
            fetch(tmp_path / "file", mirror.url)
    assert only(tmp_path, "file.gz.part")
    with serving({"file.gz": PACKED}) as other:
        fetch(tmp_path / "file", other.url)
        assert other.requests == [("file.gz", "bytes=100000-")]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_mirror_without_ranges_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "file.gz.part").write_bytes(PACKED[:1234])
    with serving({"file.gz": PACKED}) as mirror:
        mirror.ranges = False
        fetch(tmp_path / "file", mirror.url)
        assert mirror.requests == [("file.gz", "bytes=1234-")]
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "rest", [b"garbage", PACKED + b"garbage", PACKED[:-1] + b"x"], ids=["start", "long", "end"]
)
def test_a_bad_partial_file_is_thrown_away(tmp_path: Path, rest: bytes) -> None:
    (tmp_path / "file.gz.part").write_bytes(rest)
    with serving({"file.gz": PACKED}) as mirror:
        fetch(tmp_path / "file", mirror.url)
        assert mirror.requests[-1] == ("file.gz", None)
        assert len(mirror.requests) == 2
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_complete_partial_file_needs_no_transfer(tmp_path: Path) -> None:
    (tmp_path / "file.gz.part").write_bytes(PACKED)
    with serving({"file.gz": PACKED}) as mirror:
        fetch(tmp_path / "file", mirror.url)
        assert mirror.requests == [("file.gz", f"bytes={len(PACKED)}-")]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_server_that_unpacks_and_one_without_a_length(tmp_path: Path) -> None:
    with serving({"file.gz": CONTENT}) as mirror:
        fetch(tmp_path / "one" / "file", mirror.url)
    with serving({"file.gz": PACKED}) as mirror:
        mirror.announce_length = False
        fetch(tmp_path / "two" / "file", mirror.url)
    assert (tmp_path / "one" / "file").read_bytes() == (tmp_path / "two" / "file").read_bytes() == CONTENT


def test_endless_content_and_compression_bombs_are_cut_off(tmp_path: Path) -> None:
    endless, bomb = {"file.gz": bytes(3_000_000)}, {"file.gz": gzip.compress(bytes(100_000_000))}
    message = r"sends more than 1,348,576 bytes, which cannot be file\.gz"
    with serving(endless) as mirror, pytest.raises(DataError, match=message):
        fetch(tmp_path / "file", mirror.url)
    with serving(bomb) as mirror, pytest.raises(DataError, match="sent other content"):
        fetch(tmp_path / "file", mirror.url)


def test_silent_mirror_is_passed_over(tmp_path: Path) -> None:
    with serving({"file.gz": PACKED}) as silent, serving({"file.gz": PACKED}) as good:
        silent.delay = 1.0
        start = time.perf_counter()
        fetch(tmp_path / "file", silent.url, good.url, timeout=0.2)
        assert time.perf_counter() - start < 0.9
        assert len(good.requests) == 1
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_target_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with serving({"file.gz": PACKED}) as mirror:
        with pytest.raises(DataError, match=r"cannot write the download .*file\.gz\.part'"):
            fetch(tmp_path / "plain" / "file", mirror.url)
        assert mirror.requests == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_ends_the_download_at_once(tmp_path: Path) -> None:
    (tmp_path / "file.gz.part").symlink_to("/dev/full")
    with serving({"file.gz": PACKED}) as mirror, serving({"file.gz": PACKED}) as second:
        with pytest.raises(DataError, match=r"cannot write the download .*[Nn]o space left.*free some space"):
            fetch(tmp_path / "file", mirror.url, second.url)
        assert second.requests == []


def test_progress_bar_counts_what_was_there_already(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.gz.part").write_bytes(PACKED[:150_000])
    with serving({"file.gz": PACKED}) as mirror:
        fetch(tmp_path / "file", mirror.url, progress=True)
    bar = capsys.readouterr().err
    assert "file:" in bar
    assert "100%" in bar
    assert "150k/300k" in bar


def _fetch_in_child(target: Path, url: str, results: Any) -> None:
    try:
        fetch(target, url)
        results.put("done")
    except BaseException as error:
        results.put(repr(error))


@pytest.mark.skipif(sys.platform == "win32", reason="file locks of POSIX")
def test_two_processes_download_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with serving({"file.gz": PACKED}) as mirror:
        mirror.delay = 0.5
        results = context.Queue()
        children = [
            context.Process(target=_fetch_in_child, args=(tmp_path / "file", mirror.url, results))
            for _ in range(2)
        ]
        for child in children:
            child.start()
        assert [results.get(timeout=30) for _ in children] == ["done", "done"]
        for child in children:
            child.join()
        assert len(mirror.requests) == 1
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert only(tmp_path, "file")


def test_ctrl_c_keeps_what_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tqdm

    class Interrupting(tqdm.tqdm):
        def update(self, count: float | None = 1) -> bool | None:
            raise KeyboardInterrupt

    monkeypatch.setattr(tqdm, "tqdm", Interrupting)
    with serving({"file.gz": PACKED}) as mirror, pytest.raises(KeyboardInterrupt):
        fetch(tmp_path / "file", mirror.url)
    assert (tmp_path / "file.gz.part").stat().st_size > 0
    assert not (tmp_path / "file").exists()


def test_mirror_class_is_what_the_tests_assume() -> None:
    """The good mirror answers a range with exactly that range; else the tests above would prove little."""
    from urllib.request import Request, urlopen

    with serving({"a": b"0123456789"}) as mirror:
        assert isinstance(mirror, Mirror)
        with urlopen(Request(f"{mirror.url}/a", headers={"Range": "bytes=4-"})) as response:
            assert response.status == 206
            assert response.read() == b"456789"
