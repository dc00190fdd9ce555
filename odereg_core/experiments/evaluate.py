"""One evaluation for all methods: a tidy table, a line a pair, with its provenance beside it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from odereg_core import metrics
from odereg_core.baselines.base import Outcome, Register
from odereg_core.cohort import INDEX, Cohort
from odereg_core.errors import InputError
from odereg_core.experiments.methods import METHODS, Method, weights_of
from odereg_core.files import atomic, code, commit, digest, provenance, read_json, write_json
from odereg_core.ode import SolverError
from odereg_core.pairs import Pair, PairKey, pair_keys, simulate
from odereg_core.warp import warp

COLUMNS = [
    "task", "subject", "moving", "fixed", "method", "dice", "rmse_x", "rmse_phi_mm",
    "rmse_phi_grid_mm", "hausdorff95_mm", "seconds", "nfe", "folding", "log_jacobian_std",
    "start_mm",
]  # fmt: skip


def score(pair: Pair, displacement: torch.Tensor) -> dict[str, float | None]:
    """The measures of section 3.1 for one registered pair, and those that the paper lacks.

    Dice and the Hausdorff distance are None without a tumour mask; the latter is NaN where the
    carried or the true tumour lies outside the field of view.
    """
    grid, brain = pair.grid, pair.brain
    warped = warp(pair.moving, displacement, grid)
    dice = hausdorff = None
    if pair.moving_tumour is not None and pair.true_tumour is not None:
        carried = warp(pair.moving_tumour.float(), displacement, grid, mode="nearest") > 0.5
        dice = float(metrics.dice(carried, pair.true_tumour))
        hausdorff = float(metrics.hausdorff95(carried, pair.true_tumour, grid))
    return {
        "dice": dice,
        "rmse_x": float(metrics.rmse(warped, pair.true_image, brain)),
        "rmse_phi_mm": float(metrics.rmse_phi(displacement, pair.displacement, brain)),
        "rmse_phi_grid_mm": float(metrics.rmse_phi(displacement, pair.displacement)),
        "hausdorff95_mm": hausdorff,
        "folding": float(metrics.folding(displacement, grid, brain)),
        "log_jacobian_std": float(metrics.log_jacobian_std(displacement, grid, brain)),
        "start_mm": float(
            metrics.rmse_phi(torch.zeros_like(displacement), pair.displacement, brain)
        ),
    }


def row(method: str, task: str) -> Method:
    """A row of Table 1. Raises InputError where there is none of that name for the task."""
    if method not in METHODS or task not in METHODS[method].tasks:
        known = ", ".join(f"{k} ({', '.join(m.tasks)})" for k, m in METHODS.items())
        raise InputError(f"no method '{method}' for the task '{task}'; there are: {known}")
    return METHODS[method]


def evaluate(
    method: str,
    task: str,
    cohort: Cohort,
    models: Path,
    *,
    count: int = 0,
    seed: int = 7,
    device: str = "cpu",
    split: str = "test",
    keys: list[PairKey] | None = None,
    kept: Path | None = None,
) -> pd.DataFrame:
    """Run one method on a task's pairs (a sample of `count`, 0 for all) and score each.

    The time is from the images in the device's memory to the warped image there, batch 1, after one
    call that does not count. `kept`: a file that holds the pairs done so far, written after each,
    to go on from where it is of the same code, weights, cohort and settings.
    """
    found = row(method, task)
    register = found.load(models, device)
    keys = keys or pair_keys(cohort.names(split), cohort.contrasts, task, count, seed)
    if not keys:
        raise InputError(f"{cohort.folder}: no subject is for '{split}'")
    weights = [weights_of(models, name) for name in found.models]
    of = digest([*weights, cohort.folder / INDEX], code(), method, task, keys, seed, device)
    return measured(register, method, cohort, keys, seed, device, kept, of)


@torch.no_grad()
def measured(
    register: Register,
    name: str,
    cohort: Cohort,
    keys: Sequence[PairKey],
    seed: int,
    device: str = "cpu",
    kept: Path | None = None,
    of: str = "",
) -> pd.DataFrame:
    """What `evaluate` returns, of any way to register, called `name`; `of` names all that the pairs
    in the file `kept` depend on. A pair whose solve does not end is left as it was."""
    commit()
    rows = _done(kept, of)
    subject, warm = None, False

    def timed(pair: Pair) -> tuple[float, Outcome]:
        _wait(device)
        start = time.perf_counter()
        try:
            contrasts = pair.key.moving, pair.key.fixed
            outcome = register(pair.moving, pair.fixed, pair.grid, contrasts)
        except SolverError as error:
            tqdm.write(f"{pair.key}: {error}")
            outcome = Outcome(torch.zeros(1, 3, *pair.grid.shape, device=device))
        warp(pair.moving, outcome.displacement.to(pair.moving), pair.grid)
        _wait(device)
        return time.perf_counter() - start, outcome

    for key in tqdm(
        keys[len(rows) :],
        initial=len(rows),
        total=len(keys),
        desc=f"{name} ({keys[0].task})",
        unit="pair",
        mininterval=2.0,
    ):
        if subject is None or subject.name != key.subject:
            subject = cohort.load(key.subject)
        pair = simulate(cohort, subject, key, seed).to(device)
        if not warm:
            timed(pair)
            warm = True
        seconds, outcome = timed(pair)
        scores = score(pair, outcome.displacement.to(pair.moving))
        named = {**key.__dict__, "method": name, "seconds": seconds, "nfe": outcome.nfe}
        rows.append(named | scores)
        if kept:
            write_json(kept, {"of": of, "rows": rows})
    return pd.DataFrame(rows, columns=COLUMNS)


def _done(kept: Path | None, of: str) -> list[dict]:
    """The rows of an evaluation that was cut short, if the file's are of this one."""
    try:
        content = read_json(kept) if kept else {}
    except InputError:
        return []
    return content["rows"] if content.get("of") == of else []


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def write_results(table: pd.DataFrame, path: Path, device: str = "cpu", **facts: object) -> None:
    """The table as CSV and, beside it, where its numbers come from as JSON."""
    write_table(table, path)
    write_json(path.with_suffix(".json"), {**facts, **provenance(device)})


def write_table(table: pd.DataFrame, path: Path) -> None:
    """A CSV file, whole or not at all."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file. Raises InputError where it is missing or unreadable."""
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable results table ({error})") from None


def read_results(path: Path) -> pd.DataFrame:
    """A table that `evaluate` made. Raises InputError where it is missing or not such a table."""
    table = read_table(path)
    if missing := [c for c in COLUMNS if c not in table.columns]:
        raise InputError(f"{path}: not a results table, it lacks the column '{missing[0]}'")
    return table


def voxel_mm(path: Path) -> float:
    """The voxel size of all rows of a merged table, from the JSON beside it. Raises InputError
    where they have none, or several."""
    facts = path.with_suffix(".json")
    sizes = {row.get("voxel_mm") for row in read_json(facts).values() if isinstance(row, dict)}
    if len(sizes) != 1 or None in sizes:
        raise InputError(f"{facts}: its rows are not of one size of voxels")
    return float(sizes.pop())


def merged_facts(*places: Path) -> dict[str, dict]:
    """Where the numbers of `merge` come from, by `<task>/<method>`."""
    return {f"{p.parent.name}/{p.stem}": read_json(p.with_suffix(".json")) for p in _tables(places)}


def merge(*places: Path) -> pd.DataFrame:
    """Tables `<task>/<method>.csv` as one: those named, and all below a folder that is named.
    Raises InputError for a folder without."""
    return pd.concat([read_results(path) for path in _tables(places)], ignore_index=True)


def _tables(places: Iterable[Path]) -> list[Path]:
    found = []
    for place in places:
        paths = sorted(place.glob("*/[!.]*.csv")) if place.is_dir() else [place]
        if not paths:
            raise InputError(f"{place}: holds no results (<task>/<method>.csv)")
        found += paths
    return found
