"""The embedded cohort: synthetic four-contrast MR of brains with a glioma, in BraTS 2020's layout.

    python -m data_prep.phantom OUT --subjects 90 --spacing 3 --seed 2020

A subject is an anatomy (the ICBM 2009a template that nilearn bundles, under a random smooth
diffeomorphism), a tumour that pushes it aside, and four acquisitions of it by the MR signal
equations, each with its own sequence parameters, bias field, slice profile and noise. Subject k is
a function of (seed, k) alone: the same bytes whatever the number of jobs, and no draw shared
between subjects. What it is not: more than one atlas's anatomy.
"""

from __future__ import annotations

import gzip
import os
import shutil
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from joblib import delayed
from numpy.typing import NDArray
from scipy.ndimage import center_of_mass, gaussian_filter, gaussian_filter1d, label, map_coordinates

from data_prep import command

Array = NDArray[np.float32]
Rng = np.random.Generator

VERSION = 1
"""Raised whenever the same seed gives other bytes."""

FIELD_OF_VIEW = (240.0, 240.0, 155.0)
"""BraTS's, in mm."""
BRAIN_CENTRE = (1.0, -16.0, -1.0)
"""Where BraTS's brains lie about the centre of the field of view, RAS mm."""
CONTRASTS = ("t1", "t1ce", "t2", "flair")
NECROSIS, OEDEMA, ENHANCING = 1, 2, 4


# ---------------------------------------------------------------------------- tissue and signal


@dataclass(frozen=True)
class Tissue:
    """Proton density (0 to 1), T1 and T2 in ms at 1.5 T, and gadolinium uptake in mmol/l."""

    pd: float
    t1: float
    t2: float
    gadolinium: float = 0.0


TISSUES = {
    # Stanisz et al. 2005, Bottomley et al. 1987, Just & Thelen 1988, rounded
    "wm": Tissue(0.70, 620, 80, 0.01),
    "gm": Tissue(0.80, 980, 98, 0.02),
    "csf": Tissue(1.00, 4000, 1400),
    "oedema": Tissue(0.84, 1250, 165, 0.02),
    "enhancing": Tissue(0.83, 1350, 135, 0.60),
    "necrosis": Tissue(0.93, 2100, 290, 0.03),
}
NAMES = tuple(TISSUES)
RELAXIVITY = 4.5
"""Gadolinium's r1 in 1/(s mmol/l)."""


@dataclass(frozen=True)
class Sequence:
    """Repetition, echo and inversion time in ms (no inversion where `ti` is 0), contrast agent
    given."""

    tr: float
    te: float
    ti: float = 0.0
    agent: bool = False


def signal(tissue: Tissue, sequence: Sequence) -> float:
    """Magnitude of the spin-echo or inversion-recovery signal (Bernstein et al. 2004, ch. 14)."""
    t1 = tissue.t1
    if sequence.agent:
        t1 = 1 / (1 / t1 + RELAXIVITY * tissue.gadolinium / 1000)
    recovery = 1 - np.exp(-sequence.tr / t1)
    if sequence.ti:
        recovery = 1 - 2 * np.exp(-sequence.ti / t1) + np.exp(-sequence.tr / t1)
    return float(tissue.pd * abs(recovery) * np.exp(-sequence.te / tissue.t2))


def draw_tissues(rng: Rng) -> dict[str, Tissue]:
    """This subject's tissues: each parameter varied by a few percent, the tumour's by more."""
    drawn = {}
    for name, tissue in TISSUES.items():
        spread = 0.05 if name in ("wm", "gm", "csf") else 0.15
        f = np.exp(rng.normal(0, spread, 4))
        drawn[name] = Tissue(
            min(1.0, tissue.pd * f[0] ** 0.3), tissue.t1 * f[1], tissue.t2 * f[2],
            tissue.gadolinium * f[3] ** 2,
        )  # fmt: skip
    if rng.uniform() < 0.15:  # some gliomas do not take up contrast agent
        drawn["enhancing"] = replace(drawn["enhancing"], gadolinium=0.05)
    return drawn


def draw_sequences(rng: Rng) -> dict[str, Sequence]:
    """Clinical protocols differ: T1w and T1ce as spin echo or inversion-prepared, T2w, FLAIR."""
    if rng.uniform() < 0.5:
        tr, te, prepare = rng.uniform(350, 600), rng.uniform(7, 14), 0.0
    else:
        tr, te, prepare = rng.uniform(1600, 2300), rng.uniform(2.5, 5), rng.uniform(800, 1000)
    ti = rng.uniform(2100, 2500)
    return {
        "t1": Sequence(tr, te, prepare),
        "t1ce": Sequence(tr * rng.uniform(0.9, 1.1), te, prepare, agent=True),
        "t2": Sequence(rng.uniform(3500, 6500), rng.uniform(80, 115)),
        "flair": Sequence(rng.uniform(8500, 10000), rng.uniform(95, 140), ti),
    }


# ------------------------------------------------------------------------------------- anatomy


@dataclass(frozen=True)
class Lattice:
    """Voxels of the volume asked for: shape, spacing in mm, and RAS mm about the centre."""

    spacing: float

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(round(mm / self.spacing) for mm in FIELD_OF_VIEW)  # type: ignore[return-value]

    def points(self) -> Array:
        axes = [(np.arange(n) - (n - 1) / 2) * self.spacing for n in self.shape]
        return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)

    def field(self, rng: Rng, correlation_mm: float) -> Array:
        """A smooth random field, unit variance: noise filtered at `correlation_mm`.

        Drawn on a lattice that depends on the correlation alone, so that every spacing sees the
        same field.
        """
        cell = correlation_mm / 1.5
        size = [int(np.ceil(mm / cell)) + 5 for mm in FIELD_OF_VIEW]
        noise = gaussian_filter(rng.standard_normal(size).astype(np.float32), 1.0, mode="wrap")
        axes = [
            (np.arange(n) - (n - 1) / 2) * self.spacing / cell + (m - 1) / 2
            for n, m in zip(self.shape, size, strict=True)
        ]
        for axis, at in enumerate(axes):  # separable cubic interpolation
            noise = _interpolate(noise, at.astype(np.float32), axis)
        return noise / noise.std()


def _interpolate(values: Array, at: Array, axis: int) -> Array:
    """Catmull-Rom interpolation of `values` along one axis at fractional indices."""
    moved = np.moveaxis(values, axis, 0)
    low = np.clip(np.floor(at).astype(int), 1, len(moved) - 3)
    f = (at - low).reshape(-1, *[1] * (values.ndim - 1))
    p0, p1, p2, p3 = (moved[low + k] for k in (-1, 0, 1, 2))
    result = p1 + f / 2 * (
        p2 - p0 + f * (2 * p0 - 5 * p1 + 4 * p2 - p3 + f * (3 * (p1 - p2) + p3 - p0))
    )
    return np.moveaxis(result, 0, axis).astype(np.float32)


@cache
def template(spacing: float) -> tuple[Array, Array]:
    """Grey matter, white matter, CSF, brain and T1 detail of the atlas, and the centre index.

    Smoothed for sampling at `spacing`. "Detail" is what of the T1 template the tissue maps do not
    explain: deep nuclei, cortical layers, vessels.
    """
    from nilearn import datasets

    load = [
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
        datasets.load_mni152_brain_mask,
        datasets.load_mni152_template,
    ]
    gm, wm, brain, t1 = (f(resolution=1).get_fdata(dtype=np.float32) for f in load)
    brain = (brain > 0).astype(np.float32)
    gm, wm = gm * brain, wm * brain
    total = np.maximum(1.0, gm + wm)
    gm, wm = gm / total, wm / total
    csf = brain - gm - wm
    design = np.stack([m[brain > 0] for m in (gm, wm, csf)], 1)
    weights, *_ = np.linalg.lstsq(design, t1[brain > 0], rcond=None)
    contrast = weights[1] - weights[0]
    detail = np.clip((t1 - np.tensordot(weights, np.stack([gm, wm, csf]), 1)) / contrast, -0.6, 0.6)
    maps = np.stack([gm, wm, csf, brain, detail * brain])
    sigma = 0.42 * np.sqrt(max(0.0, spacing**2 - 1))
    smooth = np.stack([gaussian_filter(m, sigma) if sigma else m for m in maps])
    middle = np.array(center_of_mass(brain))
    return smooth.astype(np.float32), middle.astype(np.float32)


def diffeomorphism(rng: Rng, lattice: Lattice) -> Array:
    """A smooth invertible displacement in mm (3, X, Y, Z): a random velocity, scaled and squared.

    Solved at 6 mm, finer than anything it varies by, and interpolated.
    """
    coarse = Lattice(6.0)
    velocity = sum(
        amplitude * np.stack([coarse.field(rng, mm) for _ in range(3)])
        for mm, amplitude in ((60.0, 3.5), (25.0, 1.6))
    )
    index = np.indices(coarse.shape, dtype=np.float32)
    u = velocity / 64
    for _ in range(6):
        at = index + u / coarse.spacing
        u = u + np.stack([map_coordinates(c, at, order=1, mode="nearest") for c in u])
    scale = [coarse.spacing / lattice.spacing] * 3
    if lattice.spacing == coarse.spacing:
        return u
    at = [
        (np.arange(n) - (n - 1) / 2) / s + (m - 1) / 2
        for n, m, s in zip(lattice.shape, coarse.shape, scale, strict=True)
    ]
    for axis, places in enumerate(at):
        u = _interpolate(u, places.astype(np.float32), axis + 1)
    return u


@dataclass(frozen=True)
class Tumour:
    """Centre (RAS mm), radii in mm of core and oedema, share of necrosis, mass effect."""

    centre: Array
    core: float
    halo: float
    necrosis: float
    push: float


@dataclass(frozen=True)
class Anatomy:
    """Fractions of each tissue (order of NAMES; their sum is one a little way past the brain too),
    how much of a voxel is brain, what a stripper leaves of it, segmentation and texture of one
    subject."""

    fractions: Array
    whole: Array
    brain: NDArray[np.bool_]
    seg: NDArray[np.uint8]
    vessels: Array


def sample(maps: Array, points: Array, middle: Array) -> Array:
    """The atlas's maps at points in mm about its centre, (3, X, Y, Z)."""
    index = points + middle.reshape(3, 1, 1, 1)
    return np.stack([map_coordinates(m, index, order=1, mode="constant") for m in maps])


def draw_tumour(rng: Rng, wm: Array, brain: Array, points: Array) -> Tumour:
    """A place in cerebral white matter, clear of the midline and the brain's edge, and sizes."""
    core = float(np.clip(rng.lognormal(np.log(17), 0.35), 7, 30))
    above = points[2] > BRAIN_CENTRE[2] - 25
    aside = np.abs(points[0] - BRAIN_CENTRE[0]) > 14
    deep = gaussian_filter(brain, 9 / (points[0, 1, 0, 0] - points[0, 0, 0, 0])) > 0.85
    choices = np.flatnonzero((wm > 0.5) & above & aside & deep)
    centre = points.reshape(3, -1)[:, rng.choice(choices)]
    halo = core * float(rng.uniform(1.3, 2.0))
    return Tumour(centre, core, halo, float(rng.uniform(0.3, 0.75)), float(rng.uniform(0.1, 0.4)))


def anatomy(rng: Rng, lattice: Lattice, diseased: bool = True) -> Anatomy:
    """Warp the atlas, grow the tumour if `diseased`, and say what every voxel is made of."""
    maps, middle = template(lattice.spacing)
    points = lattice.points()
    size = np.exp(rng.normal(0, 0.04, 3) + rng.normal(-0.03, 0.03))
    angles = rng.normal(0, np.deg2rad(3.0), 3)
    shift = np.asarray(BRAIN_CENTRE) + rng.normal(0, 1.5, 3)
    cx, cy, cz = np.cos(angles)
    sx, sy, sz = np.sin(angles)
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    linear = (rz @ ry @ rx / size).astype(np.float32)
    u = diffeomorphism(rng, lattice)

    def to_atlas(p: Array) -> Array:
        return np.tensordot(linear, p - shift.reshape(3, 1, 1, 1).astype(np.float32), 1)

    pushed = points
    if diseased:
        wm, brain = sample(maps[[1, 3]], to_atlas(points) + u, middle)
        tumour = draw_tumour(rng, wm, brain, points)
        noise = lattice.field(rng, 14.0) * 0.16 + lattice.field(rng, 30.0) * 0.20
        offset = points - tumour.centre.reshape(3, 1, 1, 1)
        radius = np.sqrt((offset**2).sum(0))
        # Tissue around the core comes from nearer its centre: pushed outwards, monotone for
        # push < 1.
        pull = tumour.push * np.exp(-((radius / (1.6 * tumour.core)) ** 2))
        pushed = points - pull * offset
    gm, wm, csf, brain, detail = sample(maps, to_atlas(pushed) + u, middle)
    tissue = np.clip(gm + wm, 0, 1)
    core = halo = necrosis = np.zeros(lattice.shape, np.float32)
    if diseased:
        core, halo, necrosis = _grow(rng, lattice, tumour, radius, noise, gm, wm)

    # The atlas is an average: sharpen its tissue maps as a single brain's are, keeping their sum,
    # and give back the CSF that averaging filled its sulci with, more of it in an older brain.
    csf = np.clip(csf, 0, 1) * rng.uniform(1.3, 2.6)
    wm_detail = np.clip(wm + 0.5 * detail * tissue, 0, 1)
    gm_detail = np.clip(gm + wm - wm_detail, 0, 1)
    powers = np.stack([wm_detail, gm_detail, csf]) ** 2.2
    healthy = powers / np.maximum(powers.sum(0), 1e-6)
    outside_core = 1 - core
    oedema = halo * outside_core * 0.85
    fractions = np.concatenate(
        [
            healthy * (outside_core - oedema),
            oedema[None],
            (core - necrosis)[None],
            necrosis[None],
        ]
    )
    # Strippers cut through the CSF around the brain and leave a ragged edge.
    rind = brain - 0.6 * np.clip(brain - tissue, 0, 1) * (near_surface := _shallow(brain, lattice))
    ragged = gaussian_filter(rind, 1.2 / lattice.spacing) + 0.10 * lattice.field(rng, 12.0)
    mask = (ragged > rng.uniform(0.42, 0.62)) & (brain > 0.02)
    seg = np.zeros(lattice.shape, np.uint8)
    seg[oedema > 0.4] = OEDEMA
    seg[core > 0.5] = ENHANCING
    seg[(core > 0.5) & (necrosis > 0.5 * core)] = NECROSIS
    seg[~mask] = 0
    surface = np.clip(csf - 0.35, 0, 1) * near_surface * (lattice.field(rng, 7.0) > 1.0)
    return Anatomy(fractions.astype(np.float32), brain, mask, seg, surface.astype(np.float32))


def _grow(
    rng: Rng, lattice: Lattice, tumour: Tumour, radius: Array, noise: Array, gm: Array, wm: Array
) -> tuple[Array, Array, Array]:
    """Fractions of the tumour's core, of oedema around it, and of necrosis within the core."""
    edge = 0.45 * lattice.spacing + 0.8
    depth = radius * np.exp(noise)
    core = _soft(tumour.core - depth, edge) * np.minimum(1, 1.5 * np.clip(gm + wm, 0, 1))
    rim = (
        tumour.core * (1 - tumour.necrosis) * (0.35 + 0.25 * np.exp(lattice.field(rng, 18.0) * 0.5))
    )
    necrosis = core * _soft(tumour.core - rim - depth, edge)
    spread = tumour.halo * (0.45 + 0.75 * gaussian_filter(wm, 3 / lattice.spacing))
    halo = _soft(spread - radius * np.exp(1.2 * noise), 1.6 * edge) * np.clip(wm + 0.25 * gm, 0, 1)
    parts, _ = label((halo > 0.2) | (core > 0.2))  # oedema does not jump to the other hemisphere
    halo *= parts == parts[np.unravel_index(radius.argmin(), radius.shape)]
    return core, halo, necrosis


def _shallow(brain: Array, lattice: Lattice) -> NDArray[np.bool_]:
    """Within about a centimetre of the brain's surface: sulci, not ventricles."""
    return gaussian_filter(brain, 9.0 / lattice.spacing) < 0.9


def _soft(signed: Array, edge: float) -> Array:
    """1 inside, 0 outside, a smooth step `edge` mm wide where the signed distance is zero."""
    return 1 / (1 + np.exp(-np.clip(signed / (0.35 * edge), -40, 40)))


# ---------------------------------------------------------------------------------- acquisition


def acquire(
    rng: Rng, lattice: Lattice, body: Anatomy, tissues: dict[str, Tissue], sequence: Sequence
) -> NDArray[np.int16]:
    """One scan of the anatomy: signal, texture, bias, slice profile, Rician noise, int16 scale."""
    levels = np.array([signal(tissues[name], sequence) for name in NAMES], np.float32)
    image = np.tensordot(levels, body.fractions, 1)
    if sequence.agent:
        vessel = signal(Tissue(0.85, 1200, 120, 1.2), sequence)
        image += body.vessels * (vessel - image)
    texture = 0.025 * lattice.field(rng, 4.0) + 0.03 * lattice.field(rng, 9.0)
    image *= 1 + texture
    # Slices are thick along one axis, thin in plane; BraTS interpolates them to 1 mm.
    thick = int(rng.choice([2, 2, 2, 1, 0]))
    for axis in range(3):
        fwhm = rng.uniform(2.0, 5.0) if axis == thick else rng.uniform(0.8, 1.3)
        extra = max(0.0, (fwhm / 2.355) ** 2 - (0.4 * lattice.spacing) ** 2) ** 0.5
        if extra > 0.2 * lattice.spacing:
            image = gaussian_filter1d(image, extra / lattice.spacing, axis, mode="nearest")
    image *= np.exp(rng.uniform(0.03, 0.14) * lattice.field(rng, 90.0))
    reference = float(np.percentile(image[body.brain], 98))
    # Averaging into larger voxels leaves less noise, if less than independent noise would.
    sigma = reference * rng.uniform(0.008, 0.03) / max(1.0, lattice.spacing) ** 0.5
    real, imaginary = (
        rng.standard_normal(image.shape).astype(np.float32) * sigma for _ in range(2)
    )
    image = np.sqrt((image + real) ** 2 + imaginary**2)
    scale = np.exp(rng.uniform(np.log(250), np.log(2500))) / reference
    return np.where(body.brain, np.clip(np.rint(image * scale), 1, 32767), 0).astype(np.int16)


def subject(seed: int, index: int, spacing: float) -> dict[str, NDArray]:
    """All five volumes of subject `index` (from 1), RAS+ axes: int16 contrasts and uint8 `seg`."""
    lattice = Lattice(spacing)
    streams = np.random.SeedSequence(seed, spawn_key=(index,)).spawn(6)
    rng, contrast_rng = np.random.default_rng(streams[0]), streams[2:]
    body = anatomy(rng, lattice)
    protocol = np.random.default_rng(streams[1])
    tissues, sequences = draw_tissues(protocol), draw_sequences(protocol)
    volumes: dict[str, NDArray] = {
        contrast: acquire(
            np.random.default_rng(stream), lattice, body, tissues, sequences[contrast]
        )
        for contrast, stream in zip(CONTRASTS, contrast_rng, strict=True)
    }
    return volumes | {"seg": body.seg}


# --------------------------------------------------------------------------------------- on disk


def name_of(index: int) -> str:
    return f"BraTS20_Training_{index:03d}"


def write_subject(out: Path, seed: int, index: int, spacing: float) -> None:
    """Make one subject's folder, under another name until it is whole. A whole one is kept."""
    name = name_of(index)
    if (out / name).exists():
        return
    partial = out / f".{name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for contrast, data in subject(seed, index, spacing).items():
        # BraTS stores LPS: x and y flipped, the origin at (0, 239, 0) for 1 mm.
        flipped = np.ascontiguousarray(data[::-1, ::-1])
        affine = np.diag([-spacing, -spacing, spacing, 1.0])
        affine[1, 3] = spacing * (data.shape[1] - 1)
        image = nib.Nifti1Image(flipped, affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        # No name, no time: the same bytes every time.
        packed = gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)
        (partial / f"{name}_{contrast}.nii.gz").write_bytes(packed)
    partial.rename(out / name)


def cohort(out: Path, subjects: int, spacing: float, seed: int, jobs: int = 1) -> None:
    """Subjects 1 to `subjects` in `out`, and `phantom.json` that says how they were made.

    Whole subjects of the same settings are kept. Raises InputError where `out` holds others.
    """
    settings = {
        "made_by": "data_prep.phantom",
        "version": VERSION,
        "seed": seed,
        "spacing_mm": spacing,
    }
    command.declare(out / "phantom.json", settings, subjects)
    for leftover in out.glob(".*.partial"):
        shutil.rmtree(leftover)
    calls = [delayed(write_subject)(out, seed, index, spacing) for index in range(1, subjects + 1)]
    for _ in command.progress("synthetic cohort", calls, jobs):
        pass


def main(argv: list[str] | None = None) -> int:
    return command.synthesis("phantom", __doc__, cohort, argv, subjects=90, seed=2020)


if __name__ == "__main__":
    from data_prep import phantom  # worker processes find functions by module, and __main__ is none

    sys.exit(phantom.main())
