"""The book on paper: every chapter, with its mathematics, in one file."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BOOKS = sorted(ROOT.glob("runs/*/book/_build/html"), key=lambda p: p.stat().st_mtime)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="no chromedriver here"),
    pytest.mark.skipif(not BOOKS, reason="no built book in runs/; `make book` makes one"),
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture
def pdf():
    spec = importlib.util.spec_from_file_location("pdf", ROOT / "book" / "pdf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_whole_book_is_printed(pdf, tmp_path):
    """From a copy, so that the book in runs/ stays as it is."""
    book = tmp_path / "book"
    shutil.copytree(BOOKS[-1].parent.parent, book, ignore=shutil.ignore_patterns("_build"))
    page = pdf.single_page(book)
    text = page.read_text()
    for chapter in (ROOT / "notebooks").glob("*.ipynb"):
        assert f'id="document-notebooks/{chapter.stem}"' in text
    sheets = pdf.printed(page)
    assert sheets.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", sheets)) > 60


def test_a_picture_that_does_not_load_is_told(pdf, tmp_path):
    page = tmp_path / "page.html"
    script = "<script>MathJax = {startup: {promise: Promise.resolve()}}</script>"
    page.write_text(f'{script}<img src="missing.png" alt="Three brains">')
    with pytest.raises(SystemExit, match="Three brains does not load"):
        pdf.printed(page)
