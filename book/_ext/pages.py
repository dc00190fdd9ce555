"""What this book needs of its pages beyond jupyter-book."""

from __future__ import annotations

import re

from sphinx.application import Sphinx


def without_thebe(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """jupyter-book adds thebe's scripts to every page, twice, and the second time they fail. They
    would run cells on somebody's server; no page here uses them."""
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in f"{script} {getattr(script, 'attributes', '')}"
    ]


def as_written(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Docstrings here are plain text with `code` in backticks, not reStructuredText."""
    parts = "\n".join(lines).split("`")
    parts[::2] = [re.sub(r"([*|_\\])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"``{part}``" for part in parts[1::2]]
    lines[:] = "".join(parts).split("\n")


def setup(app: Sphinx) -> dict:
    app.connect("autodoc-process-docstring", as_written)
    app.connect("html-page-context", without_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
