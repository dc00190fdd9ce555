"""One evaluation for all methods: a tidy table, a line a pair, with its provenance beside it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from odereg_core import metrics
from odereg_core.baselines.base import Outcome, Register
from odereg_core.cohort import INDEX, Cohort
from odereg_core.device import synchronise
from odereg_core.errors import InputError
from odereg_core.experiments.methods import METHODS, Method
from odereg_core.files import (
    atomic,
    code,
    commit,
    digest,
    provenance,
    read_json,
    sha256,
    write_json,
)
from odereg_core.motion import MOTIONS
from odereg_core.ode import SolverError
from odereg_core.pairs import Pair, PairKey, pair_keys, simulate
from odereg_core.profiles import Profile
from odereg_core.warp import warp
from odereg_core.weights import weights_of

COLUMNS = [
    "task", "subject", "moving", "fixed", "method", "dice", "rmse_x", "rmse_phi_mm",
    "rmse_phi_grid_mm", "hausdorff95_mm", "seconds", "nfe", "folding", "log_jacobian_std",
    "start_mm",
]  # fmt: skip


def score(pair: Pair, displacement: torch.Tensor) -> dict[str, float | None]:
    """The measures of section 3.1 for one registered pair, and those that the paper lacks.

    Dice and the Hausdorff distance are None without a true tumour in the field of view; the latter
    is NaN where the carried one lies outside of it.
    """
    grid, brain = pair.grid, pair.brain
    warped = warp(pair.moving, displacement, grid)
    dice = hausdorff = None
    if pair.moving_tumour is not None and pair.true_tumour is not None and pair.true_tumour.any():
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
    """A row of Table 1. Raises InputError where there is no such task, or no such method for it."""
    if task not in MOTIONS:
        raise InputError(f"no task '{task}'; there are: {', '.join(MOTIONS)}")
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
    kept: Path | None = None,
) -> pd.DataFrame:
    """Run one method on a task's pairs (a sample of `count`, 0 for all) and score each.

    The time is from the images in the device's memory to the warped image there, batch 1, after one
    call that does not count. `kept`: a file that holds the pairs done so far, written after each,
    to go on from where it is of the same code, weights, cohort and settings.
    """
    found = row(method, task)
    register = found.load(models, device)
    keys = pair_keys(cohort.names("test"), cohort.contrasts, task, count, seed)
    if not keys:
        raise InputError(f"{cohort.folder}: no subject is for 'test'")
    weights = [weights_of(models, name) for name in found.models]
    of = digest([*weights, cohort.folder / INDEX], code(), method, task, keys, seed, device)
    return measured(register, method, cohort, keys, seed, device, kept, of)


def evaluate_all(
    methods: Sequence[str],
    task: str,
    profile: Profile,
    cohort: Cohort,
    models: Path,
    out: Path,
    count: int | None = None,
    device: str = "cpu",
) -> Iterator[tuple[str, pd.DataFrame]]:
    """`evaluate` each method, as a profile says or on `count` pairs (0 for all), into
    `out`/METHOD.csv with its provenance beside it. Goes on where it stopped.

    Raises InputError for a method that there is not before the first runs.
    """
    rows = {method: row(method, task) for method in methods}
    cohort.expect(profile.working_grid, profile.name)
    settings = profile.evaluation
    kept = {method: out / f".{method}.kept.json" for method in rows}
    for method, found in rows.items():
        table = evaluate(
            method,
            task,
            cohort,
            models,
            count=settings.pairs if count is None else count,
            seed=settings.seed,
            device=device,
            kept=kept[method],
        )
        write_results(
            table,
            out / f"{method}.csv",
            device,
            profile=profile.name,
            task=task,
            method=method,
            seed=settings.seed,
            voxel_mm=cohort.grid.spacing[0],
            weights={name: sha256(weights_of(models, name)) for name in found.models},
            pairs=len(table),
            cohort=cohort.settings,
        )
        yield method, table
    for path in kept.values():  # only now: a run that is cut short has no row to repeat
        path.unlink(missing_ok=True)


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
    rows, warm = _done(kept, of), False

    def timed(pair: Pair) -> tuple[float, Outcome]:
        synchronise(device)
        start = time.perf_counter()
        try:
            contrasts = pair.key.moving, pair.key.fixed
            outcome = register(pair.moving, pair.fixed, pair.grid, contrasts)
        except SolverError as error:
            tqdm.write(f"{pair.key}: {error}")
            outcome = Outcome(torch.zeros(1, 3, *pair.grid.shape, device=device))
        warp(pair.moving, outcome.displacement.to(pair.moving), pair.grid)
        synchronise(device)
        return time.perf_counter() - start, outcome

    for key in tqdm(
        keys[len(rows) :],
        initial=len(rows),
        total=len(keys),
        desc=f"{name} ({keys[0].task})",
        unit="pair",
        mininterval=2.0,
    ):
        pair = simulate(cohort, key, seed).to(device)
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


def is_table(path: Path) -> None:
    """Raises InputError where a table's own name is that of the facts beside it."""
    if path.suffix == ".json":
        raise InputError(f"{path}: the table's provenance goes there; call the table .csv")


def write_results(table: pd.DataFrame, path: Path, device: str = "cpu", **facts: object) -> None:
    """The table as CSV and, beside it, where its numbers come from as JSON."""
    write_table(table, path, {**facts, **provenance(device)})


def write_table(table: pd.DataFrame, path: Path, facts: Mapping[str, object]) -> None:
    """A CSV file, whole or not at all, and `facts` beside it. Raises InputError as `is_table`."""
    is_table(path)
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    write_json(path.with_suffix(".json"), facts)


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
    if table.empty or table["rmse_phi_mm"].isna().any():
        raise InputError(f"{path}: not a results table, a pair in it has no RMSE(phi)")
    for column in COLUMNS[5:]:
        if not pd.api.types.is_numeric_dtype(table[column]):
            raise InputError(f"{path}: the column '{column}' holds more than numbers")
    for column, known in (("task", MOTIONS), ("method", METHODS)):
        if unknown := sorted(set(table[column].astype(str)) - set(known)):
            raise InputError(f"{path}: no {column} is called '{unknown[0]}'")
    return table


def voxel_mm(path: Path) -> float:
    """The voxel size of all rows of a merged table, from the JSON beside it. Raises InputError
    where they have none, or several."""
    facts = path.with_suffix(".json")
    rows = [row for row in read_json(facts).values() if isinstance(row, dict)]
    sizes = {size for row in rows if isinstance(size := row.get("voxel_mm"), int | float | None)}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    if not isinstance(size, int | float):
        raise InputError(f"{facts}: its rows are not of one size of voxels")
    return float(size)


def merged_facts(*places: Path) -> dict[str, dict]:
    """Where the numbers of `merge` come from, by `<task>/<method>`."""
    return {f"{p.parent.name}/{p.stem}": read_json(p.with_suffix(".json")) for p in _tables(places)}


def merge(*places: Path) -> pd.DataFrame:
    """Tables `<task>/<method>.csv` as one: those named, and all below a folder that is named.
    Raises InputError for a folder without, and for a pair that a method has twice."""
    table = pd.concat([read_results(path) for path in _tables(places)], ignore_index=True)
    twice = table[table.duplicated(COLUMNS[:5])]
    if not twice.empty:
        line = " ".join(twice.iloc[0][["task", "method", "subject", "moving", "fixed"]])
        raise InputError(f"{', '.join(map(str, places))}: this pair is there twice: {line}")
    return table


def _tables(places: Iterable[Path]) -> list[Path]:
    found = []
    for place in places:
        paths = sorted(place.glob("*/[!.]*.csv")) if place.is_dir() else [place]
        if not paths:
            raise InputError(f"{place}: holds no results (<task>/<method>.csv)")
        found += paths
    return found
