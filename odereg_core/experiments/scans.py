"""A pair of scans for the chapter on one's own: real ones where there are, else the embedded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from odereg_core.errors import InputError
from odereg_core.volume import Volume, foreground, open_nifti, save_nifti

REAL = "ODEREG_REAL"
"""The variable of the environment that names a folder of real volumes in BraTS's layout."""


@dataclass(frozen=True)
class ScanPair:
    """Files of one head's T1 and, turned by a known motion, T2; the tumour's labels of the T1."""

    moving: Path
    fixed: Path
    labels: Path
    truth: NDArray[np.float64]
    """(4, 4), fixed to moving, RAS world mm."""
    real: bool

    def error_mm(self, matrix: NDArray[np.float64]) -> float:
        """Mean distance of a map from the truth over the fixed scan's foreground."""
        fixed = Volume.load(self.fixed)
        points = fixed.world()[:, foreground(fixed)].T
        away = apply_affine(matrix, points) - apply_affine(self.truth, points)
        return float(np.linalg.norm(away, axis=1).mean())


def scan_pair(cohort: Path, out: Path) -> ScanPair:
    """The first subject below the folder that `REAL` names, or below `cohort`; the T2 is written to
    `out` as if the head had turned by (12, -9, 20)° and moved by (6, -8, 5) mm before it.

    Raises InputError where neither folder holds a subject in BraTS's layout.
    """
    named = os.environ.get(REAL)
    for root in (*([Path(named)] if named else []), cohort):
        for moving in sorted(root.glob("[!.]*/*_t1.nii.gz")):
            other, labels = (
                moving.with_name(moving.name.replace("_t1.", f"_{kind}.")) for kind in ("t2", "seg")
            )
            if not (other.exists() and labels.exists()):
                continue
            motion = np.eye(4)
            motion[:3, :3] = Rotation.from_euler("xyz", (12, -9, 20), degrees=True).as_matrix()
            motion[:3, 3] = 6.0, -8.0, 5.0
            image = open_nifti(other)
            affine = np.asarray(image.affine)
            # Turned about the field of view's centre; the voxels stay, their place changes.
            centre = np.eye(4)
            centre[:3, 3] = apply_affine(affine, (np.array(image.shape) - 1) / 2)
            motion = centre @ motion @ np.linalg.inv(centre)
            fixed = out / "t2_turned.nii.gz"
            save_nifti(fixed, np.asarray(image.dataobj), motion @ affine)
            return ScanPair(moving, fixed, labels, np.linalg.inv(motion), root != cohort)
    raise InputError(f"{cohort}: holds no subject with t1, t2 and seg")
