"""What the commands of this folder share: their options, their progress, their refusals."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joblib import Parallel
from tqdm import tqdm

from odereg_core.errors import InputError, tells_faults

if TYPE_CHECKING:  # the synthetic cohort's processes start sooner without torch
    from odereg_core.cohort import Cohort


def progress(title: str, calls: list[Any], jobs: int) -> Iterator[Any]:
    """The results of joblib's delayed calls in their order, with a progress bar."""
    results = Parallel(n_jobs=jobs, return_as="generator")(calls)
    return iter(tqdm(results, total=len(calls), desc=title, unit="subject", mininterval=2.0))


def parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows the module's docstring as it stands, with --jobs."""
    made = argparse.ArgumentParser(
        prog=f"python -m data_prep.{module}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    return made


def preparation(module: str, doc: str | None, folder: str) -> argparse.ArgumentParser:
    """The options of a command that prepares a cohort; `folder` says what its input is."""
    made = parser(module, doc)
    made.add_argument("folder", type=Path, help=folder)
    made.add_argument("out", type=Path, help="folder for the prepared cohort")
    made.add_argument("--profile", default="demo", help="a profile or its file (default demo)")
    return made


def names(text: str) -> tuple[str, ...]:
    """What an option lists, commas between."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parts(cohort: Cohort) -> str:
    """How many subjects each part of a cohort has."""
    return ", ".join(f"{name}: {len(cohort.names(name))}" for name in ("train", "val", "test"))


def refusal(root: Path, faults: list[str], also: str = "") -> InputError:
    """The error that lists every fault of a folder."""
    count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
    return InputError(f"{root}: {count}{also}:\n  " + "\n  ".join(faults))


def _noted(note: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(note.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError):
        raise InputError(f"{note}: not a readable JSON file") from None


def declare(note: Path, settings: dict[str, Any], subjects: int) -> None:
    """Write how the synthetic subjects beside `note` are made and how many there are to be, before
    the first one is. Raises InputError where subjects of other settings lie there."""
    if (noted := _noted(note)) and {**noted, "subjects": 0} != {**settings, "subjects": 0}:
        raise InputError(
            f"{note.parent}: holds a cohort of other settings; remove it or name another folder"
        )
    note.parent.mkdir(parents=True, exist_ok=True)
    temporary = note.with_name(f".{os.getpid()}.partial.{note.name}")
    temporary.write_text(json.dumps({**settings, "subjects": subjects}, indent=1) + "\n")
    os.replace(temporary, note)


def made_by(note: Path, found: int, otherwise: str) -> dict[str, Any]:
    """What `declare` wrote, or that the subjects are `otherwise`. Raises InputError where fewer
    subjects were found than declared: their making was cut short."""
    noted = _noted(note) or {"made_by": otherwise}
    if found < (wanted := noted.get("subjects", 0)):
        raise InputError(
            f"{note.parent}: {found} of {wanted} subjects are made; "
            f"python -m {noted['made_by']} goes on where it stopped"
        )
    return noted


@tells_faults
def synthesis(
    module: str,
    doc: str | None,
    cohort: Callable[[Path, int, float, int, int], None],
    argv: list[str] | None,
    *,
    subjects: int,
    seed: int,
) -> int:
    """A command that makes synthetic subjects by `cohort(out, subjects, spacing, seed, jobs)`; the
    exit code."""
    made = parser(module, doc)
    made.add_argument("out", type=Path, help="folder to write subjects into")
    made.add_argument("--subjects", type=int, default=subjects, help=f"(default {subjects})")
    made.add_argument("--spacing", type=float, default=3.0, help="voxel size in mm (default 3)")
    made.add_argument("--seed", type=int, default=seed, help=f"the cohort's seed (default {seed})")
    options = made.parse_args(argv)
    if options.subjects < 1 or options.jobs < 1 or options.seed < 0:
        made.error("--subjects and --jobs are at least 1, --seed at least 0")
    if not 0.5 <= options.spacing <= 12:
        made.error(f"--spacing lies between 0.5 and 12 mm, not {options.spacing:g}")
    cohort(options.out, options.subjects, options.spacing, options.seed, options.jobs)
    return 0
