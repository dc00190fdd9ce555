"""How often `odereg register` warns of simulated pairs that it registered, and of those it lost.

python -m odereg_core.bench.warned runs/demo/prepared --task rigid --pairs 96
"""

from __future__ import annotations

import argparse
import sys

import pandas as pd
import torch
from nibabel.orientations import axcodes2ornt
from torch import Tensor
from tqdm.auto import tqdm

from odereg_core.cohort import Cohort
from odereg_core.errors import tells_faults
from odereg_core.grid import Grid
from odereg_core.pairs import pair_keys, simulate
from odereg_core.registration import register
from odereg_core.volume import Volume

REGISTERED_WITH = {"rigid": "rigid", "deformable": "bspline", "hybrid": "rigid+bspline"}
"""What each task is registered with."""


def volume(image: Tensor, grid: Grid, name: str) -> Volume:
    """An image (1, 1, X, Y, Z) as a scan whose world has its origin at the grid's centre."""
    return Volume(image[0, 0].numpy(), grid.affine, axcodes2ornt("RAS"), name)


def warned(cohort: Cohort, task: str, count: int, seed: int = 7, refine: int = 0) -> pd.DataFrame:
    """A row for each of `count` test pairs: RMSE(phi) in mm, whether the pair was lost (two voxels
    or more), and the sentences of the warnings."""
    rows = []
    keys = pair_keys(cohort.names("test"), cohort.contrasts, task, count)
    for key in tqdm(keys, desc="pairs", unit="pair", mininterval=2.0):
        pair = simulate(cohort, key, seed)
        scans = (volume(pair.moving, pair.grid, "moving"), volume(pair.fixed, pair.grid, "fixed"))
        found = register(*scans, REGISTERED_WITH[task], refine=refine)
        u = torch.from_numpy(found.displacement)[None]
        error = pair.error_mm(u)
        lost, said = error >= 2 * max(pair.grid.spacing), " ".join(found.report["warnings"])
        rows.append((key.subject, key.moving, key.fixed, error, lost, said))
    columns = ["subject", "moving", "fixed", "rmse_phi_mm", "lost", "warnings"]
    return pd.DataFrame(rows, columns=columns)


@tells_faults
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m odereg_core.bench.warned",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cohort", help="a prepared cohort")
    parser.add_argument("--task", choices=REGISTERED_WITH, default="rigid")
    parser.add_argument("--pairs", type=int, default=0, help="0: all")
    parser.add_argument("--refine", type=int, default=0, help="steps of direct optimisation")
    options = parser.parse_args(argv)
    table = warned(Cohort(options.cohort), options.task, options.pairs, refine=options.refine)
    for lost, rows in table.groupby("lost"):
        of = "lost" if lost else "registered within two voxels"
        print(f"{of}: warned of {(rows.warnings != '').sum()} of {len(rows)}")
    for _, row in table[(table.warnings != "") | table.lost].iterrows():
        print(f"  {row.subject} {row.moving}>{row.fixed} {row.rmse_phi_mm:.2f} mm: {row.warnings}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
