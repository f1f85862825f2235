"""The examples of README.md and docs/*.md are run as they stand there.

Blocks marked `python` of one page run in order, as one program, in an empty directory. A block marked
`text` right behind one is what it prints, or the message of the error that it ends with; "..." stands for
anything. Lines of blocks marked `console` that call `thalweg` are checked for commands and options that
exist.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import thalweg as tw
from thalweg.cli.arguments import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int  # of its first line of content in the page
    end: int  # position behind it in the page
    begin: int


def blocks(page: Path) -> list[Block]:
    content = page.read_text(encoding="utf-8")
    return [
        Block(
            found.group(1),
            found.group(2),
            content.count("\n", 0, found.start()) + 2,
            found.end(),
            found.start(),
        )
        for found in FENCE.finditer(content)
    ]


def examples(page: Path) -> list[tuple[Block, str | None]]:
    """Each Python block, and what it is said to print."""
    content, every = page.read_text(encoding="utf-8"), blocks(page)
    found = []
    for position, block in enumerate(every):
        if block.language != "python":
            continue
        following = every[position + 1] if position + 1 < len(every) else None
        adjoining = following is not None and not content[block.end : following.begin].strip()
        expected = (
            following.text if following is not None and adjoining and following.language == "text" else None
        )
        found.append((block, expected))
    return found


def matches(printed: str, expected: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in expected.strip().split("..."))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def run(block: Block, expected: str | None, name: str, namespace: dict[str, Any]) -> str:
    """Run a block; gives what it printed, or the message of its error where an error is expected."""
    source = "\n" * (block.line - 1) + block.text
    # Messages quote the user's line: let Python know this "file".
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(source, name, "exec"), namespace)
    except Exception as error:
        if expected is None or type(error).__name__ not in expected:
            raise
        return f"{type(error).__name__}: {error}"
    return printed.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    tw.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block, expected in examples(page):
        printed = run(block, expected, f"{page.stem}.py", namespace)
        if expected is not None:
            assert matches(printed, expected), (
                f"{page.name}, line {block.line}: printed\n{printed}\nexpected\n{expected}"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    for block in blocks(page):
        if block.language != "console":
            continue
        for line in block.text.splitlines():
            for command in re.split(r"&&|\|", line):
                words = shlex.split(command, comments=True)
                if (
                    words
                    and Path(words[0]).name == "thalweg"
                    and words[1:] not in (["--version"], ["--help"])
                ):
                    parse(words[1:])  # raises UsageError


def test_links_within_the_repository_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_has_two_commands_of_one_line_each() -> None:
    """`.ci/run` runs these two lines."""
    content = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for line in content.splitlines() if line.startswith("python3 -m venv ")]
    assert len(lines) == 2
    assert lines[0].endswith("thalweg train lenet")
    assert "pytest" in lines[1]
    directories = {line.split()[3] for line in lines}
    assert len(directories) == 2  # independent of each other


def test_the_checker_notices_wrong_output_and_wrong_commands() -> None:
    assert matches("loss 0.123\n", "loss ...")
    assert not matches("loss 0.123\n", "accuracy ...")
    block = Block("python", "1 / 0", 1, 0, 0)
    with pytest.raises(ZeroDivisionError):
        run(block, None, "x.py", {})
    assert run(block, "ZeroDivisionError: ...", "x.py", {}) == "ZeroDivisionError: division by zero"
