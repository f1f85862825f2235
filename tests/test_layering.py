"""A module imports nothing from a later row of docs/architecture.md."""

from __future__ import annotations

import ast
from pathlib import Path

import thalweg

ROOT = Path(thalweg.__file__).parent
ROWS = [
    {"types", "errors", "config", "version"},
    {"graph"},
    {"ops"},
    {"autodiff", "interpret", "rounding", "testing"},
    {"passes"},
    {"plan"},
    {"schedule"},
    {"codegen"},
    {"runtime"},
    {"tensor"},
    {"io", "debug"},
    {"fuzz"},
    {"nn", "optim"},
    {"data", "train", "viz"},
    {"models"},
    {"bench"},
    {"cli", "__main__"},
]
ROW = {name: number for number, names in enumerate(ROWS) for name in names}
# The steps down: ops that hold a graph (a composite's body, a loop's) run it and differentiate it when
# they are called.
ALLOWED = {
    ("ops/core.py", "interpret"),
    ("ops/control/loop.py", "interpret"),
    ("ops/control/branches.py", "interpret"),
    ("ops/control/checkpointing.py", "interpret"),
    ("ops/control/gradient.py", "autodiff"),
    ("ops/control/branches.py", "autodiff"),
}


def imported_parts(path: Path) -> set[str]:
    """First-level parts of the package that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "thalweg" else [f"thalweg.{a.name}" for a in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("thalweg.")}
    return found & set(ROW)


def test_imports_point_upwards() -> None:
    wrong: list[str] = []
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        own = relative.parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in ROW, f"{own} has no row in this test and in docs/architecture.md"
        for part in imported_parts(path):
            if ROW[part] > ROW[own] and (relative.as_posix(), part) not in ALLOWED:
                wrong.append(f"{relative} imports thalweg.{part}")
    assert not wrong, "\n".join(wrong)
