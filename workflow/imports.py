"""The files of this repository that a step's results depend on: what its modules import."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

OURS = ("odereg_core", "data_prep")
APART = {
    Path("odereg_core/__init__.py"),  # the version, and a shorter way to `register`
    Path("odereg_core/errors.py"),
    Path("odereg_core/profiles/__init__.py"),  # the settings themselves are a rule's params
}
"""Files that no number depends on."""


def code_of(*steps: str) -> list[str]:
    """Modules (`odereg_core.cohort`) or notebooks (`notebooks/01_data.ipynb`): the modules' own
    files, and all of ours that these import, at the top or within, and what those import in turn.

    Paths are relative to the repository's root, where this has to run.
    """
    todo: set[Path] = set()
    for step in steps:
        if step.endswith(".ipynb"):
            cells = json.loads(Path(step).read_text(encoding="utf-8"))["cells"]
            code = ("".join(c["source"]) for c in cells if c["cell_type"] == "code")
            todo |= imported("\n".join(code))
        elif file := _file(step):
            todo.add(file)
        else:
            raise ValueError(f"no module of ours is called {step}")
    found: set[Path] = set()
    while todo := todo - found - APART:
        found |= todo
        todo = {file for path in todo for file in _imported_by(path)}
    return sorted(map(str, found))


def imported(code: str) -> set[Path]:
    """Our files that code imports itself."""
    return {file for name in _names(ast.parse(code)) if (file := _file(name))}


@cache
def _imported_by(path: Path) -> set[Path]:
    return imported(path.read_text(encoding="utf-8"))


def _names(node: ast.AST) -> Iterator[str]:
    """What is imported below a node, but for what only a type checker imports."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
            yield str(child.module)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _names(child)


def _file(module: str) -> Path | None:
    """A module's file, where the name is a module's and of ours."""
    at = Path(*module.split("."))
    files = (at.with_suffix(".py"), at / "__init__.py")
    ours = at.parts[0] in OURS
    return next((path for path in files if ours and path.is_file()), None)
