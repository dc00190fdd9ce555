"""What this book needs of its pages beyond jupyter-book."""

from __future__ import annotations

from sphinx.application import Sphinx


def without_thebe(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """jupyter-book adds thebe's scripts to every page, twice, and the second time they fail. They
    would run cells on somebody's server; no page here uses them."""
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in f"{script} {getattr(script, 'attributes', '')}"
    ]


def setup(app: Sphinx) -> dict:
    app.connect("html-page-context", without_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
