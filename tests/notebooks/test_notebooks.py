"""Notebooks are parameterised, thin and free of output; `make book` executes them."""

from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_form(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.metadata.tags == ["parameters"]
    found = papermill.inspect_notebook(str(path))
    assert {name: p["inferred_type_name"] for name, p in found.items()} == {
        "profile": "str",
        "run_dir": "str",
    }
    assert found["profile"]["default"] == '"smoke"'
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert len(cell.source.splitlines()) <= 25, "a notebook calls the package"
    checked = [c for c in notebook.cells if "nbval-check-output" in c.metadata.get("tags", [])]
    assert checked, "`make nbval` has nothing to compare"
    assert not any("perf_counter" in cell.source for cell in checked), "seconds do not repeat"


def test_the_book_lists_every_notebook():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    listed = {c["file"] for part in toc["parts"] for c in part["chapters"]}
    assert {f"notebooks/{path.stem}" for path in NOTEBOOKS} <= listed
    for name in listed - {f"notebooks/{path.stem}" for path in NOTEBOOKS}:
        assert (ROOT / "book" / f"{name}.md").exists()
