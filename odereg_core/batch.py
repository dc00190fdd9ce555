"""Many registrations: a table of pairs to a folder a pair and a summary, resumable."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm.auto import tqdm

from odereg_core.errors import InputError
from odereg_core.files import atomic, code, digest, read_json
from odereg_core.registration import (
    REPORT,
    load_cascade,
    register,
    spare,
    weights_files,
    written,
)
from odereg_core.weights import shipped

SUMMARY = "summary.csv"
COLUMNS = ("moving", "fixed", "name", "moving_mask", "fixed_mask", "labels")
Weights = Sequence[Path | str] | None


@dataclass(frozen=True)
class BatchPair:
    """One line of the table: the files of one registration, and the name of its folder."""

    name: str
    moving: Path
    fixed: Path
    moving_mask: Path | None = None
    fixed_mask: Path | None = None
    labels: tuple[Path, ...] = ()

    @property
    def files(self) -> list[Path]:
        masks = [mask for mask in (self.moving_mask, self.fixed_mask) if mask]
        return [self.moving, self.fixed, *masks, *self.labels]


def read_pairs(path: Path) -> list[BatchPair]:
    """The pairs of a CSV file; relative paths are relative to its folder.

    Columns: moving, fixed, and if wanted name (by default the pair's number), moving_mask,
    fixed_mask, labels (several files with ; between). Raises InputError, naming file and line,
    where it is no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            lines = [(reader.line_num, line) for line in reader]
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV file ({error})") from None
    for column in ("moving", "fixed"):
        if column not in names:
            raise InputError(f"{path}: it lacks the column '{column}'")
    if unknown := [name for name in names if name not in COLUMNS]:
        raise InputError(f"{path}: unknown column '{unknown[0]}'; there are: {', '.join(COLUMNS)}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path}: it has the column '{twice[0]}' twice")
    if not lines:
        raise InputError(f"{path}: it holds no pairs")
    pairs: dict[str, BatchPair] = {}
    for number, (at, line) in enumerate(lines, start=1):
        row = {key: (line.get(key) or "").strip() for key in COLUMNS}
        where = f"{path}: line {at}"
        if None in line or not row["moving"] or not row["fixed"]:
            raise InputError(f"{where}: a moving and a fixed file are needed, and no more fields")
        name = row["name"] or f"{number:04d}"
        if not re.fullmatch(r"\w[\w.+-]*", name) or name == SUMMARY:
            raise InputError(
                f"{where}: '{name}' is no name for a folder (letters, digits, - and _)"
            )
        if name in pairs:
            raise InputError(f"{where}: a second pair called '{name}'")
        base = path.parent
        pairs[name] = BatchPair(
            name,
            base / row["moving"],
            base / row["fixed"],
            base / row["moving_mask"] if row["moving_mask"] else None,
            base / row["fixed_mask"] if row["fixed_mask"] else None,
            tuple(base / one.strip() for one in row["labels"].split(";") if one.strip()),
        )
    return list(pairs.values())


def register_pair(
    pair: BatchPair, out: Path, transform: str, weights: Weights, refine: int, device: str
) -> dict:
    """Register one pair into `out`/name, unless it lies there registered; its summary's row."""
    row = {"name": pair.name, "moving": str(pair.moving), "fixed": str(pair.fixed)}
    folder = out / pair.name
    try:
        models = [*weights_files(transform, weights), shipped("encoder")]
        masked = bool(pair.moving_mask), bool(pair.fixed_mask)
        source = digest([*pair.files, *models], code(), transform, refine, masked)
        try:
            report = read_json(folder / REPORT)
        except InputError:
            report = {}
        old = written(folder)
        if report.get("source") != source or not all(path.exists() for path in old):
            spare(pair.files, folder, pair.labels)
            for path in (*old, folder / REPORT):  # they are of other files, or not all there
                path.unlink(missing_ok=True)
            result = register(
                pair.moving,
                pair.fixed,
                transform,
                weights,
                device,
                moving_mask=pair.moving_mask,
                fixed_mask=pair.fixed_mask,
                labels=pair.labels,
                refine=refine,
            )
            report = result.report
            report["source"] = source
            result.save(folder)
        done = {"status": "registered", "displacement_mm": report["displacement_mm"]["mean"]}
        for key in ("rotation_deg", "translation_mm"):
            if key in report:
                done[key] = " ".join(f"{value:g}" for value in report[key])
        done |= {"seconds": report["seconds"], "warnings": " ".join(report["warnings"])}
    except Exception as error:  # whatever is wrong with one pair, the others go on
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        done = {"status": "failed", "reason": kind + (str(error).splitlines() or [""])[0]}
    return row | done


def run(
    pairs: Sequence[BatchPair],
    out: Path,
    transform: str = "rigid",
    weights: Weights = None,
    refine: int = 0,
    device: str = "auto",
    jobs: int = 1,
) -> pd.DataFrame:
    """Register all pairs, `jobs` at a time, each into `out`/name; the summary, a row a pair.

    A pair that lies there registered from the same bytes by the same models and code is kept. One
    that cannot be registered is told in its row. The summary is also in `out`/summary.csv. Raises
    InputError where `out` cannot be written, the models cannot be loaded, or a process is ended
    from outside; what was registered until then is kept.
    """
    load_cascade(transform, weights, "cpu")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None
    summary = out / SUMMARY
    rest = out, transform, weights, refine, device
    calls = [delayed(register_pair)(pair, *rest) for pair in pairs]
    results = Parallel(n_jobs=min(jobs, len(pairs)), return_as="generator_unordered")(calls)
    order = {pair.name: place for place, pair in enumerate(pairs)}
    rows: list[dict] = []
    try:
        for row in tqdm(results, total=len(pairs), desc="registering", unit="pair"):
            rows.append(row)
            table = pd.DataFrame(sorted(rows, key=lambda row: order[row["name"]]))
            with atomic(summary) as temporary:
                table.to_csv(temporary, index=False)
    except TerminatedWorkerError:
        raise InputError(
            f"a process was ended from outside after {len(rows)} of {len(pairs)} pairs, for want "
            "of memory perhaps: the same command with fewer jobs goes on"
        ) from None
    return table
