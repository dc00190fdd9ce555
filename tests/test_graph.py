"""The experiment graph: every step's inputs are whole, and a change redoes what it should."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from odereg_core import cli
from odereg_core.experiments.kept import TABLES
from odereg_core.profiles import load_profile
from workflow.imports import APART, code_of, imported

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("odereg_core", "data_prep", "notebooks", "book", "workflow", "results")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources, without any run."""
    folder = tmp_path_factory.mktemp("graph")
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "Snakefile", folder)
    return folder


def snakemake(tree, *arguments):
    """What snakemake says."""
    command = [sys.executable, "-m", "snakemake", *arguments, "--nolock", "--cores", "2"]
    done = subprocess.run(
        [*command, "--config", "profile=smoke"], cwd=tree, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def planned(tree, *targets):
    """The jobs that a dry run lists: rule, input, output, resources and shell command of each."""
    found = []
    for text in snakemake(tree, *targets, "-n", "-p").split("\nrule ")[1:]:
        job = {"rule": text.partition(":")[0], "input": "", "output": "", "resources": ""}
        job |= dict(re.findall(r"^    (input|output|resources): (.*)$", text, re.MULTILINE))
        command = re.search(r"^Shell command: (.*)$", text, re.MULTILINE)
        found.append(job | {"shell": command[1] if command else ""})
    return found


@pytest.fixture(scope="module")
def jobs(tree):
    """All that there is to do where nothing has been done, by what comes out first."""
    wanted = planned(tree, "sample", "results", "ablations", "book")
    return {job["output"].split(", ")[0]: job for job in wanted if job["output"]}


def test_imports_are_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, code in {
        "odereg_core/first.py": "import numpy\nfrom odereg_core import second, errors",
        "odereg_core/second.py": "def f():\n    from odereg_core.inner.third import g\n",
        "odereg_core/inner/__init__.py": "from odereg_core import never",
        "odereg_core/inner/third.py": "import data_prep.fourth",
        "data_prep/fourth.py": "if TYPE_CHECKING:\n    from odereg_core import never\n",
        "odereg_core/never.py": "",
        "odereg_core/errors.py": "",
        "page.ipynb": '{"cells": [{"cell_type": "code", "source": ["import os\\n", '
        '"from data_prep import fourth"]}]}',
    }.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    assert code_of("odereg_core.first") == [
        "data_prep/fourth.py", "odereg_core/first.py", "odereg_core/inner/third.py",
        "odereg_core/second.py",
    ]  # fmt: skip
    assert code_of("page.ipynb") == ["data_prep/fourth.py"]
    with pytest.raises(ValueError, match=r"odereg_core\.fifth"):
        code_of("odereg_core.fifth")


def run_by(command):
    """The files of ours that a step's command runs first."""
    if module := re.search(r"python -m (data_prep\.\w+)", command):
        return {Path(*module[1].split(".")).with_suffix(".py")}
    if notebook := re.search(r"notebooks/\w+\.ipynb", command):
        return set(map(Path, code_of(notebook[0])))
    name = re.search(r"odereg (\w+)", command)
    found = imported(inspect.getsource(getattr(cli, name[1]))) if name else set()
    if name and name[1] == "train":
        model, profile = re.search(r"odereg train (\w+)", command)[1], load_profile("smoke")
        kinds = {"gan": profile.encoders, "baselines": profile.baselines}
        kind = next((kind for kind, models in kinds.items() if model in models), "registration")
        found = {Path(f"odereg_core/train/{kind}.py")}
    return found


def test_a_step_depends_on_all_that_its_command_imports(jobs, monkeypatch):
    monkeypatch.chdir(ROOT)
    for job in jobs.values():
        if job["rule"] in ("ablation_profile", "html", "shipped_model"):
            continue  # the first says what it writes in its params, the others run nothing of ours
        given = {Path(path) for path in job["input"].split(", ")}
        first = run_by(job["shell"]) - APART
        assert first and first <= given, (job["rule"], first - given)
        ours = [path for path in given if path.suffix == ".py" and path.parts[0] != "book"]
        within = code_of(*(".".join(path.with_suffix("").parts) for path in ours))
        assert set(map(Path, within)) <= given, job["rule"]


def test_the_graph_knows_which_tables_a_chapter_shows():
    """By the names of tables in its code, and by what a Run has of Table 1."""
    listed = re.search(r"^SHOWN = (\{.*?^\})", (ROOT / "Snakefile").read_text(), re.S | re.M)
    found = {}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, 4).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        names = set(re.findall(r'"(\w+)"', code)) & set(TABLES)
        if re.search(r"run\.(results|kept|result_facts)\b", code):
            names.add("pairs")
        if names:
            found[path.stem] = names
    assert {key: set(names) for key, names in ast.literal_eval(listed[1]).items()} == found


def test_one_job_at_a_time_has_the_gpu(jobs):
    alone = re.compile(r"odereg (train|evaluate|encoders|search) ")
    for output, job in jobs.items():
        cpu = re.search(r"/(none|ants_rigid|ants_syn|ants_rigid_syn)\.csv", output)
        works = alone.search(job["shell"]) and not cpu
        assert ("gpu=1" in job["resources"]) == bool(works), output


def test_what_a_step_leaves(jobs):
    """Evaluations are files, which a second try finds; a checkpoint goes when its training ends."""
    assert "runs/smoke/fig4/4a/mi/results/msodenet_rb.csv" in jobs
    for output, job in jobs.items():
        if job["rule"] in ("trained_model", "ablation_trained"):
            checkpoint = output.replace(".safetensors", ".checkpoint.safetensors")
            assert job["shell"].endswith(f"&& rm -f {checkpoint}")
    unseen = jobs["runs/smoke/fig4/unseen/cohort.json"]["shell"]
    assert unseen.startswith("grep -qsx ") and "rm -rf runs/smoke/fig4/unseen.of " in unseen
    assert "--contrasts t1,t1ce,t2,flair " in unseen


HTML = "runs/smoke/book/_build/html/index.html"


def page(number):
    """A chapter, executed."""
    (path,) = (ROOT / "notebooks").glob(f"{number:02}_*.ipynb")
    return f"runs/smoke/notebooks/{path.name}"


def change(path, old="", new="\n# changed\n"):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1) if old else text + new)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_change_redoes_what_depends_on_it(tree, jobs):
    # As if all of it had been made: every step writes empty files.
    graph = tree / "Snakefile"
    step = re.compile(r"^( +)shell:\n(?:\1 +.*\n)+", re.MULTILINE)
    graph.write_text(step.sub(r'\1shell:\n\1    "touch {output}"\n', graph.read_text()))
    for targets in (["sample", "results", "ablations"], ["book"]):
        snakemake(tree, *targets)

    def redone(*targets):
        """The first files of what a dry run would make, and its rules."""
        wanted = [job for job in planned(tree, *targets) if job["output"]]
        return {job["output"].split(", ")[0] for job in wanted}, {job["rule"] for job in wanted}

    # The book shows all pairs where they are evaluated, and then asks for no sample of them.
    shutil.rmtree(tree / "runs" / "smoke" / "results")
    assert redone("book", "results", "ablations")[0] == set()

    # A kept table is shown by one chapter, a module used by two; a training's code is in no hurry
    # to make all pairs or Fig. 4 anew.
    change(tree / "results" / "demo" / "4c.csv", new="\n")
    change(tree / "odereg_core" / "bench" / "ode.py")
    assert redone("book")[0] == {HTML, *map(page, (3, 9, 10))}
    change(tree / "odereg_core" / "train" / "draws.py")
    assert redone("book")[1] == {"trained_model", "notebook", "html"}

    # The seed is another, and so is a tool's code; no model of Fig. 4 is trained for it.
    shutil.copy(ROOT / "odereg_core" / "train" / "draws.py", tree / "odereg_core" / "train")
    change(tree / "odereg_core" / "profiles" / "smoke.yaml", "fig4: 6, seed: 7", "fig4: 6, seed: 8")
    change(tree / "data_prep" / "strip.py")
    assert redone("results", "ablations")[1] == {
        "evaluated", "merged", "table", "search", "ablation_evaluated", "ablation_collected",
        "unseen_prepared", "unseen_evaluated", "unseen_merged",
    }  # fmt: skip
