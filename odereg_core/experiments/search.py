"""The search for ANTs' settings, on validation pairs. The best of each row are the defaults of
`baselines.ants` and what `methods` runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from odereg_core.baselines.ants import AntsRigid, AntsSyn
from odereg_core.baselines.base import Register
from odereg_core.baselines.translate import Translated
from odereg_core.cohort import Cohort
from odereg_core.experiments.evaluate import measured
from odereg_core.files import digest
from odereg_core.networks.disentangle import Disentangler
from odereg_core.pairs import pair_keys

RIGID, SYN = AntsRigid(bins=32), AntsSyn(flow_variance=3.0)
"""Where the search began; where it ended are the defaults."""

CANDIDATES: Mapping[tuple[str, str], Mapping[str, Register]] = {
    ("ANTs", "rigid"): {
        "search at 12-9-6 mm, all voxels": RIGID,
        "a fifth of the voxels": replace(RIGID, sampling=0.2),
        "search at 18-12-6 mm": replace(RIGID, shrink_mm=(18.0, 12.0, 6.0)),
        "16 bins": replace(RIGID, bins=16),
    },
    ("ANTs", "deformable"): {
        "100-70-50 iterations": SYN,
        "40-20-0, the package's": replace(SYN, iterations=(40, 20, 0)),
        "200-150-100": replace(SYN, iterations=(200, 150, 100)),
        "steps of 0.1": replace(SYN, gradient_step=0.1),
        "steps of 0.4": replace(SYN, gradient_step=0.4),
        **{
            f"flow variance of {v:g}": replace(SYN, flow_variance=v)
            for v in (2.0, 4.0, 5.0, 6.0, 9.0, 16.0, 30.0, 60.0)
        },
        "flow variance of 16, total of 1": replace(SYN, flow_variance=16.0, total_variance=1.0),
    },
    ("ANTs+I2I", "rigid"): {
        "correlation": replace(RIGID, metric="GC"),
        "mean squares": replace(RIGID, metric="meansquares"),
        "mutual information": RIGID,
    },
    ("ANTs+I2I", "deformable"): {
        "mutual information": SYN,
        "mutual information, flow variance of 30": replace(SYN, flow_variance=30.0),
        "correlation": replace(SYN, metric="GC"),
        "mean squares": replace(SYN, metric="meansquares"),
        "local correlation, radius 2, 40-20-0": replace(
            SYN, metric="CC", sampling=2, iterations=(40, 20, 0)
        ),
    },
}
"""By row and task: settings in words, and the baseline with them. The hybrid task runs the best of
both."""


def search(
    cohort: Cohort,
    encoder: Disentangler,
    count: int,
    seed: int,
    device: str = "cpu",
    kept: Path | None = None,
    of: str = "",
) -> pd.DataFrame:
    """Every candidate on the same `count` validation pairs of its task: a line a pair, as
    `evaluate` returns them, `method` being the settings in words, and a column `row`.

    `kept`: a folder that holds the pairs done so far, to go on from; `of` names the code, weights
    and cohort that they are of.
    """
    tables = []
    for (row, task), candidates in CANDIDATES.items():
        keys = pair_keys(cohort.names("val"), cohort.contrasts, task, count, seed)
        for name, plain in candidates.items():
            register = Translated(encoder, plain) if row.endswith("I2I") else plain
            mine = digest([], of, row, name, plain, keys, seed, device)
            done = kept and kept / f"{mine}.json"
            found = measured(register, name, cohort, keys, seed, device, done, mine)
            tables.append(found.assign(row=row))
    return pd.concat(tables, ignore_index=True)


def ranking(found: pd.DataFrame, voxel_mm: float) -> pd.DataFrame:
    """A line a candidate: mean and median RMSE(phi) in mm, the share of pairs under two voxels in
    %, the mean time in s; the best of a row and task first."""
    marked = found.assign(success=100.0 * (found["rmse_phi_mm"] < 2 * voxel_mm))
    tables = [
        pd.DataFrame(
            {
                "mean": candidates["rmse_phi_mm"].mean(),
                "median": candidates["rmse_phi_mm"].median(),
                "success": candidates["success"].mean(),
                "seconds": candidates["seconds"].mean(),
            }
        ).sort_values("mean")
        for _, rows in marked.groupby(["task", "row"], sort=False)
        for candidates in [rows.groupby(["task", "row", "method"], sort=False)]
    ]
    return pd.concat(tables)
