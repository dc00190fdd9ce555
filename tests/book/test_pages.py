"""What pages promise: the whole paper, names that import, solved exercises, times."""

import importlib
import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parent.parent.parent
BOOK, NOTEBOOKS = ROOT / "book", sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGE = (BOOK / "paper_to_code.md").read_text()
NAMES = sorted(set(re.findall(r"\{py:obj\}`~(odereg_core[\w.]+)`", PAGE)))


def text_of(path):
    if path.suffix == ".md":
        return path.read_text()
    return "\n\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")


PAGES = {path.stem: text_of(path) for path in [*BOOK.glob("*.md"), *NOTEBOOKS]}


@pytest.fixture(scope="module")
def assemble():
    spec = importlib.util.spec_from_file_location("assemble", BOOK / "assemble.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAPER = [f"Eq. {n}" for n in (1, 2, 3, 4)]
PAPER += [f"Section {n}" for n in ("1", "2", "2.1", "2.2", "3", "3.1", "3.2", "4")]
PAPER += ["Table 1", *(f"Fig. {n}" for n in (1, 2, 3, 4))]


@pytest.mark.parametrize("item", PAPER)
def test_the_whole_paper_is_on_the_page(item):
    """Each equation, section, table and figure has a row of its own, with code in it."""
    rows = [r for r in PAGE.splitlines() if re.match(rf"\| {re.escape(item)}[ ,]", r)]
    assert rows and all("{py:obj}`~odereg_core" in row for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_what_implements_the_paper_is_there(name):
    """The longest part of the name that is a module imports, and has the rest; the page of the
    package documents it, so that the name is a link."""
    parts = name.split(".")
    cut = next(n for n in range(len(parts), 0, -1) if _is_module(".".join(parts[:n])))
    thing = importlib.import_module(".".join(parts[:cut]))
    for part in parts[cut:]:
        thing = getattr(thing, part)
    assert thing.__doc__
    assert f"automodule:: {'.'.join(parts[:cut])}\n" in PAGES["api"]


def _is_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def test_the_papers_equations_keep_their_numbers():
    for number, page in (
        (1, "02_transforms"),
        (2, "05_msodenet"),
        (3, "05_msodenet"),
        (4, "04_encoder"),
    ):
        assert rf"\tag{{{number}}}" in PAGES[page] and f"(eq-{number})=" in PAGES[page]
    for name, text in PAGES.items():
        assert set(re.findall(r"\\tag\{(.*?)\}", text)) <= set("1234"), name


def test_every_exercise_has_one_solution():
    """Across the book labels are unique; a solution that begins also ends."""
    text = "\n".join(PAGES.values())
    exercises = re.findall(r"```\{exercise\}[^\n]*\n:label: ([\w-]+)", text)
    assert len(exercises) == len(set(exercises)) >= 18
    assert sorted(re.findall(r"```\{solution-start\} ([\w-]+)", text)) == sorted(exercises)
    for name, page in PAGES.items():
        assert page.count("{solution-start}") == page.count("{solution-end}"), name
    for label in re.findall(r"\{ref\}`(ex-[\w-]+)`", text):
        assert label in exercises


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_chapter_teaches(path):
    """It says what it teaches, asks for a prediction, draws a conclusion, and sets exercises."""
    text = PAGES[path.stem]
    assert text.startswith("# ") and "**What this page teaches:**" in text
    assert "**Predict" in text and "**Conclude" in text
    assert text.count("```{exercise}") >= 2


def test_a_page_tells_its_times_and_its_pictures(assemble):
    picture = {"image/png": "aGk=", "text/plain": "Three\n  brains."}
    unnamed = {"image/png": "aGk=", "text/plain": "<Figure size 1x1>"}
    cells = [new_code_cell("x\n" * 30, outputs=[new_output("display_data", data=d)])
             for d in (picture, unnamed)]  # fmt: skip
    notebook = new_notebook(cells=[new_markdown_cell("# A title\n\n" + "word " * 380), *cells])
    notebook.metadata["papermill"] = {"duration": 41.3, "parameters": {"profile": "demo"}}
    assemble.dress(notebook)
    first, described, plain = notebook.cells
    assert first.source.splitlines()[0] == "# A title"
    assert "About 8 minutes to read. Running it took 41 seconds at `demo`." in first.source
    assert described.metadata["mystnb"] == {"image": {"alt": "Three brains."}}
    assert "mystnb" not in plain.metadata
