"""Build the HTML book from the pages here and executed notebooks.

    python book/assemble.py NOTEBOOKS OUT

Built beside OUT and swapped in when whole; warnings are errors. MathJax is fetched once from the
npm registry, checked against its digest, and served from the book, so that no page loads anything
from elsewhere.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

import nbformat
import yaml

HERE = Path(__file__).resolve().parent
MATHJAX = "https://registry.npmjs.org/mathjax/-/mathjax-3.2.2.tgz"
SHA512 = (
    "06df9249553c7811b6ef30a155ec0e89c62ced7b1db78d2a9b8f94a47c97ee4d"
    "3f3bd36588f73ec7bee4d7f144b0fb2328f64626fb5164cd6f3be81e5b43a11b"
)


def mathjax(cache: Path) -> Path:
    """MathJax's one-file build with its fonts, from the cache or the npm registry."""
    target = cache / "mathjax-3.2.2" / "tex-svg.js"
    if target.exists():
        return target
    with urllib.request.urlopen(MATHJAX, timeout=120) as response:
        packed = response.read()
    if hashlib.sha512(packed).hexdigest() != SHA512:
        raise RuntimeError(f"{MATHJAX} is not the file that was expected")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        member = archive.extractfile("package/es5/tex-svg.js")
        assert member is not None
        script = member.read()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_bytes(script)
    os.replace(partial, target)
    return target


WORDS_A_MINUTE = 200
CODE_LINES_A_MINUTE = 10


def dress(notebook: nbformat.NotebookNode) -> None:
    """Give an executed notebook what only its page needs.

    Below the title, how long it takes; the parameters that were set, in place of the defaults; each
    picture's alternative text, which is the text the figure itself has for a cell's output
    (odereg_core.experiments.figures.style.Described).
    """
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    if any("injected-parameters" in t for t in tags):
        kept = [c for c, t in zip(notebook.cells, tags, strict=True) if "parameters" not in t]
        notebook.cells = kept
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = "".join(data.get("text/plain", ""))
            if "image/png" in data and not text.startswith("<"):
                cell.metadata["mystnb"] = {"image": {"alt": " ".join(text.split())}}
    title, _, rest = notebook.cells[0].source.partition("\n")
    if title.startswith("# "):
        notebook.cells[0].source = f"{title}\n\n{time_needed(notebook)}\n{rest}"


def time_needed(notebook: nbformat.NotebookNode) -> str:
    """The minutes that prose and code take to read, and what papermill took to run it."""
    words = lines = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            words += len(cell.source.split())
        else:
            lines += len(cell.source.splitlines())
    minutes = math.ceil(words / WORDS_A_MINUTE + lines / CODE_LINES_A_MINUTE)
    text = f"About {minutes} minutes to read."
    facts = notebook.metadata.get("papermill", {})
    if seconds := facts.get("duration"):
        took = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
        profile = facts["parameters"]["profile"]
        text += f" Running it took {took} at `{profile}`."
        if profile == "smoke":
            text += " Its models train for seconds: see how it works, not how well."
    return f":::{{div}} chapter-time\n{text}\n:::\n"


def launch_from(repository: str, book: Path) -> None:
    """Buttons that open a chapter on Binder or Colab, from the repository at this address."""
    config, page = book / "_config.yml", book / "how_to_run.md"
    page.write_text(page.read_text().replace("https://github.com/owner/name", repository))
    settings = yaml.safe_load(config.read_text())
    settings["repository"] = {"url": repository, "branch": "main"}
    settings["launch_buttons"] |= {
        "notebook_interface": "jupyterlab",
        "binderhub_url": "https://mybinder.org",
        "colab_url": "https://colab.research.google.com",
    }
    config.write_text(yaml.safe_dump(settings, sort_keys=False))


def build(notebooks: Path, out: Path, cache: Path) -> Path:
    """Assemble the sources, build, and swap the result into `out`. Returns its index page."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(
        HERE, partial, ignore=shutil.ignore_patterns("assemble.py", "execute.py", "__pycache__")
    )
    (partial / "notebooks").mkdir()
    for path in sorted(notebooks.glob("[!.]*.ipynb")):
        try:
            notebook = nbformat.read(path, 4)
        except nbformat.reader.NotJSONError:
            raise SystemExit(f"error: the book was not built; {path} is no notebook") from None
        dress(notebook)
        nbformat.write(notebook, partial / "notebooks" / path.name)
    if repository := os.environ.get("ODEREG_REPOSITORY"):
        launch_from(repository, partial)
    extra = partial / "extra" / "mathjax"
    extra.mkdir(parents=True)
    shutil.copy(mathjax(cache), extra)
    program = str(Path(sys.executable).with_name("jupyter-book"))
    command = [program, "build", str(partial), "-W", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (partial / "_build" / "html" / "index.html").exists():
        print(done.stdout[-6000:], done.stderr[-6000:], sep="\n", file=sys.stderr)
        raise SystemExit(f"error: the book was not built; its sources are in {partial}")
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)  # a book half removed would still open
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)
    return out / "_build" / "html" / "index.html"


if __name__ == "__main__":
    source, target = (Path(argument) for argument in sys.argv[1:3])
    print(build(source, target, target.parent.parent / "vendor"))
