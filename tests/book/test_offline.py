"""A built page loads nothing from elsewhere; its mathematics is served from the book."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent.parent
REPOSITORY = "https://github.com/someone/a-fork"


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The real pages and configuration, built with the notebooks as they are."""
    spec = importlib.util.spec_from_file_location("assemble", ROOT / "book" / "assemble.py")
    assemble = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(assemble)
    out = tmp_path_factory.mktemp("book") / "book"
    cache = ROOT / "runs" / "vendor"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ODEREG_REPOSITORY", REPOSITORY)
        return assemble.build(ROOT / "notebooks", out, cache).parent


def built(html):
    yield from html.rglob("*.html")
    # What the last `make book` made, outputs and animations included.
    yield from (ROOT / "runs").glob("*/book/_build/html/**/*.html")


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(html):
    pages = list(built(html))
    assert len(pages) > 8
    for page in pages:
        soup = BeautifulSoup(page.read_text(), "html.parser")
        for tag, attribute in (
            ("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"),
            ("video", "src"), ("source", "src"), ("audio", "src"),
        ):  # fmt: skip
            for element in soup.find_all(tag):
                target = element.get(attribute) or ""
                assert not re.match(r"(https?:)?//", target), f"{page.name}: {element}"
        for style in soup.find_all("style"):
            assert not re.search(r"url\(['\"]?(https?:)?//|@import ['\"](https?:)?//", style.text)
    for sheet in html.rglob("*.css"):
        text = sheet.read_text()
        assert not re.search(r"url\(['\"]?(https?:)?//|@import ['\"](https?:)?//", text), sheet


@pytest.mark.slow
def test_every_chapter_has_buttons_that_open_its_notebook(html):
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page = BeautifulSoup((html / "notebooks" / f"{path.stem}.html").read_text(), "html.parser")
        links = {a["href"] for a in page.find_all("a", href=re.compile("mybinder|colab"))}
        lab, blob = f"lab/tree/notebooks/{path.name}", f"blob/main/notebooks/{path.name}"
        assert links == {
            f"https://mybinder.org/v2/gh/someone/a-fork/main?urlpath={lab}",
            f"https://colab.research.google.com/github/someone/a-fork/{blob}",
        }
    page = BeautifulSoup((html / "how_to_run.html").read_text(), "html.parser")
    assert f"git clone -q {REPOSITORY} " in page.text


@pytest.mark.slow
def test_mathematics_is_served_from_the_book(html):
    page = BeautifulSoup((html / "intro.html").read_text(), "html.parser")
    assert page.find_all(class_="math")
    sources = [s["src"].split("?")[0] for s in page.find_all("script") if s.get("src")]
    script = next(s for s in sources if "mathjax" in s)
    assert (html / script).resolve().stat().st_size > 1_000_000


def test_a_build_that_fails_leaves_the_old_book(tmp_path):
    spec = importlib.util.spec_from_file_location("assemble", ROOT / "book" / "assemble.py")
    assemble = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(assemble)
    notebooks = tmp_path / "notebooks"
    shutil.copytree(ROOT / "notebooks", notebooks)
    (notebooks / "00_welcome.ipynb").write_text("not a notebook")
    out = tmp_path / "book"
    (out / "_build").mkdir(parents=True)
    with pytest.raises(SystemExit, match="not built"):
        assemble.build(notebooks, out, ROOT / "runs" / "vendor")
    assert (out / "_build").exists()
