"""The settings: what each variable may hold, and how many CPUs a process may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from thalweg import config
from thalweg.config import settings
from thalweg.errors import ArgumentError

NAMES = ("BACKEND", "THREADS", "DEBUG", "CHECK", "DUMP", "CACHE")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in NAMES:
        monkeypatch.delenv(f"THALWEG_{name}", raising=False)
    settings.set_threads(None)
    yield
    settings.set_threads(None)


def test_defaults() -> None:
    assert (settings.backend, settings.debug, settings.check, settings.dump) == ("auto", 0, False, None)
    assert settings.threads() == config.available_cpus() >= 1
    assert settings.cache.is_absolute() and "thalweg" in str(settings.cache)


def test_values_are_read_when_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, text in zip(NAMES, ("C", " 3 ", "2", "yes", str(tmp_path), "~/here"), strict=True):
        monkeypatch.setenv(f"THALWEG_{name}", text)
    assert (settings.backend, settings.threads(), settings.debug, settings.check) == ("c", 3, 2, True)
    assert settings.dump == tmp_path
    assert settings.cache == Path.home() / "here"
    for name in NAMES:
        monkeypatch.setenv(f"THALWEG_{name}", "")  # empty counts as not set
    test_defaults()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("BACKEND", "cuda", "one of auto, c, numpy"),
        ("THREADS", "0", "a whole number from 1 to"),
        ("THREADS", "two", "a whole number from 1 to"),
        ("THREADS", "1.5", "a whole number from 1 to"),
        ("THREADS", "²", "a whole number from 1 to"),
        ("THREADS", "9999999", "a whole number from 1 to"),
        ("DEBUG", "4", "0, 1, 2 or 3"),
        ("CHECK", "maybe", "1 .* or 0"),
    ],
)
def test_wrong_values_are_named(name: str, text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"THALWEG_{name}", text)
    with pytest.raises(ArgumentError, match=f"THALWEG_{name} is '{text}'; expected {expected}"):
        settings.threads() if name == "THREADS" else getattr(settings, name.lower())


def test_set_threads_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THALWEG_THREADS", "3")
    settings.set_threads(5)
    assert settings.threads() == 5
    settings.set_threads(None)
    assert settings.threads() == 3
    for wrong in (0, -1, 2.0, True, "2"):
        with pytest.raises(ArgumentError, match=r"set_threads takes .*, not"):
            settings.set_threads(wrong)  # type: ignore[arg-type]
    assert settings.threads() == 3


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the XDG standard")
def test_the_cache_directory_follows_the_xdg_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert settings.cache == Path("/somewhere/thalweg")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert settings.cache == Path.home() / ".cache" / "thalweg"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("own", "parent", "quota"),
    [
        ("max 100000", "max 100000", None),
        ("150000 100000", "max 100000", 1.5),
        ("max 100000", "400000 100000", 4.0),
        ("300000 100000", "50000 100000", 0.5),
        ("garbage", "200000 100000", 2.0),
    ],
)
def test_quota_of_control_groups_2(own: str, parent: str, quota: float | None, tmp_path: Path) -> None:
    write(tmp_path / "membership", "0::/parent/own\n")
    write(tmp_path / "fs/parent/own/cpu.max", own + "\n")
    write(tmp_path / "fs/parent/cpu.max", parent + "\n")
    write(tmp_path / "cpu.max", "1 100000\n")  # above the mount: not ours
    assert config.cgroup_quota(tmp_path / "membership", tmp_path / "fs") == quota


def test_quota_of_control_groups_1(tmp_path: Path) -> None:
    # As in a container: the path is the host's and does not exist here, the mount's root is ours.
    write(tmp_path / "membership", "4:memory:/docker/12\n3:cpu,cpuacct:/docker/12\n0::/\n")
    write(tmp_path / "fs/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "fs/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert config.cgroup_quota(tmp_path / "membership", tmp_path / "fs") is None
    write(tmp_path / "fs/cpu,cpuacct/cpu.cfs_quota_us", "250000\n")
    assert config.cgroup_quota(tmp_path / "membership", tmp_path / "fs") == 2.5
    assert config.cgroup_quota(tmp_path / "missing", tmp_path / "fs") is None


def test_available_cpus_obey_the_quota_and_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for quota, count in ((None, 8), (2.5, 2), (0.5, 1), (64.0, 8)):
        monkeypatch.setattr(config, "cgroup_quota", lambda quota=quota: quota)
        assert config.available_cpus.__wrapped__() == count
