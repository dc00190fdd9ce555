"""The unseen embedded cohort: synthetic heads with skulls, as another scanner would show them.

    python -m data_prep.heads OUT --subjects 25 --spacing 3 --seed 7020

A head is the phantom's anatomy without a tumour, inside cerebrospinal fluid, skull, scalp, a face
and a neck, at 3 T, with other sequences, a noise that varies in space, slices as thick as volunteer
protocols have them, and three contrasts (no contrast agent is given to volunteers). It is written
in IXI's layout and names: `OUT/T1/UNSEEN001-T1.nii.gz`, `OUT/T2/...`, `OUT/FLAIR/...`; the true
brain masks lie in `OUT/mask`. Subject k is a function of (seed, k) and the spacing alone.
"""

from __future__ import annotations

import gzip
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from joblib import delayed
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, gaussian_filter1d, zoom

from data_prep import command
from data_prep.phantom import (
    BRAIN_CENTRE,
    Array,
    Lattice,
    Rng,
    Sequence,
    Tissue,
    anatomy,
    signal,
)

VERSION = 2
"""Raised whenever the same seed gives other bytes."""
CONTRASTS = ("t1", "t2", "flair")

TISSUES = {  # at 3 T: Stanisz et al. 2005, Gold et al. 2004, Wansapura et al. 1999, rounded
    "wm": Tissue(0.70, 1080, 69),
    "gm": Tissue(0.80, 1600, 99),
    "csf": Tissue(1.00, 4300, 1800),
    "bone": Tissue(0.12, 900, 8),
    "fat": Tissue(0.90, 380, 70),
    "muscle": Tissue(0.80, 1420, 40),
}
INNER = ("wm", "gm", "csf")


def draw_sequences(rng: Rng) -> dict[str, Sequence]:
    """A volunteer protocol at 3 T: MPRAGE-like T1w, a fast T2w, FLAIR; none as in the phantom."""
    return {
        "t1": Sequence(rng.uniform(2300, 2600), rng.uniform(2, 4), rng.uniform(1050, 1150)),
        "t2": Sequence(rng.uniform(6800, 8500), rng.uniform(60, 78)),
        "flair": Sequence(rng.uniform(7000, 8200), rng.uniform(70, 92), ti=rng.uniform(2050, 2300)),
    }


@dataclass(frozen=True)
class Build:
    """What lies around a brain: the outer surfaces of fluid, skull and scalp in mm from it, the
    size and roughness of face and neck, where their cavities are, and their share of fat. The
    default is an average head."""

    fluid: Array | float = 1.7
    skull: Array | float = 7.5
    scalp: Array | float = 13.0
    size: float = 1.0
    rough: Array | float = 0.0
    cavities: NDArray[np.bool_] | bool = False
    fat: Array | float = 0.3


def draw_build(rng: Rng, lattice: Lattice) -> Build:
    """How thick one person's layers about the brain are."""
    fluid = 1.2 + 0.6 * np.abs(lattice.field(rng, 40.0))
    skull = fluid + rng.uniform(4.5, 7.0) * np.exp(0.2 * lattice.field(rng, 45.0))
    scalp = skull + rng.uniform(4.0, 7.0) * np.exp(0.25 * lattice.field(rng, 50.0))
    return Build(
        fluid, skull, scalp,
        float(rng.uniform(0.92, 1.08)),
        0.15 * lattice.field(rng, 25.0),
        lattice.field(rng, 22.0) > 0.9,
        np.clip(0.3 + 0.35 * lattice.field(rng, 12.0), 0, 1),
    )  # fmt: skip


def shells(lattice: Lattice, brain: NDArray[np.bool_], build: Build) -> dict[str, Array]:
    """Fractions of fluid, bone, fat and muscle at the lattice's points around a brain."""
    distance = np.asarray(distance_transform_edt(~brain)) * lattice.spacing
    points = lattice.points() - np.asarray(BRAIN_CENTRE, np.float32).reshape(3, 1, 1, 1)

    def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> NDArray[np.bool_]:
        size = build.size * np.asarray(radii).reshape(3, 1, 1, 1)
        away = (points - np.reshape(centre, (3, 1, 1, 1))) / size
        return (away**2).sum(0) + build.rough < 1

    face = ellipsoid((0, 52, -50), (52, 46, 52))
    soft = (face | ellipsoid((0, -12, -105), (52, 55, 75))) & (distance > build.skull)
    bone = ~brain & (distance > build.fluid) & (distance <= build.skull)
    marrow = bone * 0.35 * np.exp(-(((distance - (build.fluid + build.skull) / 2) / 1.2) ** 2))
    flesh = soft & ~(face & build.cavities)
    scalp = ~brain & ~soft & (distance > build.skull) & (distance <= build.scalp)
    parts = {
        "csf": ~brain & (distance <= build.fluid),
        "bone": bone - marrow,
        "fat": scalp + marrow + flesh * build.fat,
        "muscle": flesh * (1 - np.asarray(build.fat)),
    }
    return {name: np.asarray(part, np.float32) for name, part in parts.items()}


def head(seed: int, index: int, spacing: float) -> dict[str, tuple[NDArray, Array]]:
    """Subject `index` (from 1): contrast to voxels (int16) and their size in mm along x, y and z;
    and `mask`, the true brain (uint8) on the T1's voxels. RAS+ axes, one centre for all."""
    lattice = Lattice(spacing)
    streams = np.random.SeedSequence(seed, spawn_key=(index,)).spawn(3 + len(CONTRASTS))
    rng, protocol, around, *contrast_streams = map(np.random.default_rng, streams)
    body = anatomy(rng, lattice, diseased=False)
    inner = dict(zip(INNER, body.fractions, strict=False))
    brain = body.whole > 0.5
    inner = {name: part * brain for name, part in inner.items()}
    outer = shells(lattice, brain, draw_build(around, lattice))
    parts = {n: inner.get(n, 0) + outer.get(n, 0) for n in TISSUES}
    tissues = {
        name: Tissue(t.pd, *(np.array([t.t1, t.t2]) * np.exp(protocol.normal(0, 0.05, 2))))
        for name, t in TISSUES.items()
    }
    sequences = draw_sequences(protocol)
    made: dict[str, tuple[NDArray, Array]] = {}
    for contrast, stream in zip(CONTRASTS, contrast_streams, strict=True):
        levels = {name: signal(tissue, sequences[contrast]) for name, tissue in tissues.items()}
        ideal = sum(levels[name] * part for name, part in parts.items())
        made[contrast] = acquire(stream, lattice, np.asarray(ideal, np.float32), brain, contrast)
    shape, voxel = made["t1"][0].shape, made["t1"][1]
    made["mask"] = (_to_voxels(brain.astype(np.float32), shape) > 0.5).astype(np.uint8), voxel
    return made


def acquire(
    rng: Rng, lattice: Lattice, ideal: Array, brain: NDArray[np.bool_], contrast: str
) -> tuple[NDArray, Array]:
    """One scan: texture, coil shading, its own voxels (the T1's nearly isotropic, the others' thick
    along z), noise that grows towards the middle as parallel imaging's does."""
    image = ideal * (1 + 0.02 * lattice.field(rng, 5.0))
    wanted = np.array([1.0, 1.0, 1.1 if contrast == "t1" else 1.6]) * lattice.spacing * 1.1
    for axis, size in enumerate(wanted):
        sigma = 0.42 * np.sqrt(max(0.0, size**2 - lattice.spacing**2)) / lattice.spacing
        if sigma > 0.1:
            image = gaussian_filter1d(image, sigma, axis)
    image = image * np.exp(rng.uniform(0.10, 0.22) * lattice.field(rng, 70.0))
    shape = tuple(np.rint(np.array(lattice.shape) * lattice.spacing / wanted).astype(int))
    reference = float(np.percentile(image[brain], 98))
    image = _to_voxels(image, shape)
    deep = gaussian_filter(brain.astype(np.float32), 25 / lattice.spacing)
    g_factor = 0.6 + 0.9 * _to_voxels(deep, shape)
    sigma = reference * rng.uniform(0.012, 0.035) / max(1.0, lattice.spacing) ** 0.5
    real, imaginary = (
        rng.standard_normal(shape).astype(np.float32) * sigma * g_factor for _ in range(2)
    )
    image = np.sqrt((image + real) ** 2 + imaginary**2)
    scale = rng.uniform(300, 900) / reference
    voxel = np.array(lattice.shape) * lattice.spacing / np.array(shape)
    return np.clip(np.rint(image * scale), 0, 32767).astype(np.int16), voxel


def _to_voxels(image: Array, shape: tuple[int, ...]) -> Array:
    """The image on other voxels of the same field of view (trilinear)."""
    factors = [m / n for n, m in zip(image.shape, shape, strict=True)]
    return zoom(image, factors, order=1, grid_mode=True, mode="nearest")


def write_head(out: Path, seed: int, index: int, spacing: float) -> None:
    """Make one subject's files; its T1 comes last and marks it as whole. A whole one is kept."""
    name = f"UNSEEN{index:03d}"
    if (out / "T1" / f"{name}-T1.nii.gz").exists():
        return
    made = head(seed, index, spacing)
    for kind in ("mask", *CONTRASTS[::-1]):
        data, voxel = made[kind]
        affine = np.diag([*voxel, 1.0])
        affine[:3, 3] = -(np.array(data.shape) - 1) / 2 * voxel
        image = nib.Nifti1Image(data, affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, 1)
        label = kind if kind == "mask" else kind.upper()
        path = out / label / f"{name}-{label}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
        partial.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))
        os.replace(partial, path)


def cohort(out: Path, subjects: int, spacing: float, seed: int, jobs: int = 1) -> None:
    """Heads 1 to `subjects` in `out`, and `heads.json` that says how they were made.

    Whole heads of the same settings are kept. Raises InputError where `out` holds others.
    """
    settings = {
        "made_by": "data_prep.heads",
        "version": VERSION,
        "seed": seed,
        "spacing_mm": spacing,
    }
    command.declare(out / "heads.json", settings, subjects)
    calls = [delayed(write_head)(out, seed, index, spacing) for index in range(1, subjects + 1)]
    for _ in command.progress("synthetic heads", calls, jobs):
        pass


def main(argv: list[str] | None = None) -> int:
    return command.synthesis("heads", __doc__, cohort, argv, subjects=25, seed=7020)


if __name__ == "__main__":
    from data_prep import heads  # worker processes find functions by module, and __main__ is none

    sys.exit(heads.main())
