"""From a folder in BraTS 2020's layout, real or synthetic, to the prepared cohort.

    python -m data_prep.brats FOLDER OUT --profile demo

Checks every subject and reports all faults at once; normalises intensities, brings volumes to the
profile's grid, and splits by subject. Only subjects with a tumour mask can be test subjects (BraTS
2020 has masks for its 369 training subjects, none for the 125 of its validation set).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from odereg_core.cohort import CONTRASTS, INDEX, Cohort, Subject, write_index, write_subject
from odereg_core.errors import InputError
from odereg_core.grid import Grid
from odereg_core.profiles import Profile, load_profile
from odereg_core.volume import Volume, normalise, resample

MISNAMED = {"BraTS20_Training_355": "W39_1998.09.19_Segm.nii"}
"""BraTS 2020 itself names this mask otherwise."""
LABELS = {0, 1, 2, 4}


@dataclass(frozen=True)
class Found:
    """One subject's folder and files; `mask` is None where there is none."""

    name: str
    images: dict[str, Path]
    mask: Path | None


def _file(folder: Path, stem: str) -> Path | None:
    return next((p for s in (".nii.gz", ".nii") if (p := folder / f"{stem}{s}").is_file()), None)


def find(root: Path) -> tuple[list[Found], list[str]]:
    """Subjects right below `root`, or below its folders (MICCAI_BraTS2020_TrainingData, ...); faults.

    A folder is a subject's if it holds a file `<its name>_<contrast>.nii[.gz]`.
    """
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder")
    candidates = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    below = [q for p in candidates for q in sorted(p.iterdir()) if q.is_dir()]
    subjects, faults = [], []
    for folder in candidates + below:
        images = {c: p for c in CONTRASTS if (p := _file(folder, f"{folder.name}_{c}"))}
        if not images:
            continue
        faults += [
            f"{folder.name}: the contrast {c} is missing ({folder / f'{folder.name}_{c}.nii.gz'})"
            for c in CONTRASTS
            if c not in images
        ]
        mask = _file(folder, f"{folder.name}_seg")
        other = folder / MISNAMED.get(folder.name, "")
        if mask is None and other.is_file():
            mask = other
        subjects.append(Found(folder.name, images, mask))
    if not subjects:
        raise InputError(f"{root}: no subject folders in BraTS's layout (<name>/<name>_t1.nii.gz)")
    return sorted(subjects, key=lambda s: s.name), faults


def check(subject: Found) -> list[str]:
    """What is wrong with one subject, a sentence each: grids and orientations from the headers, the mask whole."""
    faults, first = [], None
    files = [*subject.images.values(), *([subject.mask] if subject.mask else [])]
    for path in files:
        try:
            if path == subject.mask:
                volume = Volume.load(path)
                shape, affine = volume.shape, nib.load(path).affine
                values = set(np.unique(volume.data).tolist())
                if values == {0}:
                    faults.append(f"{subject.name}: the tumour mask is empty ({path})")
                elif not values <= LABELS:
                    odd = sorted(values - LABELS)[0]
                    faults.append(f"{subject.name}: the tumour mask holds the label {odd:g} ({path})")
            else:
                image = nib.load(path)
                shape, affine = image.shape, image.affine
        except InputError as error:
            faults.append(f"{subject.name}: {error}")
            continue
        except Exception as error:  # noqa: BLE001 - nibabel raises many kinds for a broken header
            faults.append(f"{subject.name}: {path}: not a readable NIfTI file ({error})")
            continue
        if first is None:
            first = (path, shape, affine)
        elif nib.aff2axcodes(affine) != nib.aff2axcodes(first[2]):
            ours, theirs = ("".join(nib.aff2axcodes(a)) for a in (affine, first[2]))
            faults.append(f"{subject.name}: {path} is oriented {ours}, {first[0].name} {theirs}")
        elif shape != first[1] or not np.allclose(affine, first[2], atol=1e-3):
            faults.append(f"{subject.name}: {path} lies on another grid than {first[0].name}")
    return faults


def grid_centre(volume: Volume, grid: Grid) -> np.ndarray:
    """World mm for the grid's centre: the field of view's, moved so that equal voxels coincide.

    Bringing 155 slices to 160 moves it by half a voxel; the data then are copied, not interpolated.
    """
    centre = volume.centre
    for axis in range(3):
        odd = (volume.shape[axis] - grid.shape[axis]) % 2
        if odd and np.isclose(volume.spacing[axis], grid.spacing[axis]):
            centre = centre + volume.affine[:3, axis] / 2
    return centre


def prepare(subject: Found, grid: Grid, out: Path) -> None:
    """Write one subject's file, unless it is there."""
    if (out / f"{subject.name}.safetensors").exists():
        return
    images = []
    for contrast in CONTRASTS:
        volume = Volume.load(subject.images[contrast]).checked()
        mask = volume.data != 0
        scaled = volume.with_data(normalise(volume.data, mask))
        centre = grid_centre(volume, grid)
        image = resample(scaled, grid, centre)[0, 0]
        # Smoothing bleeds over the edge of the brain: the mask decides what is background.
        inside = resample(volume.with_data(mask.astype(np.float32)), grid, centre)[0, 0]
        images.append(torch.where(inside > 0.5, image / inside.clamp_min(0.5), 0.0).clamp(0, 1))
    seg = None
    if subject.mask:
        volume = Volume.load(subject.mask)
        seg = resample(volume, grid, grid_centre(volume, grid), "nearest")[0, 0].to(torch.uint8)
    write_subject(out, Subject(subject.name, torch.stack(images), seg))


def split(names: list[str], with_mask: list[str], profile: Profile) -> dict[str, list[str]]:
    """Test subjects drawn from those with a mask, then validation, the rest trains.

    Raises InputError where there are too few.
    """
    wanted = profile.split
    if len(with_mask) < wanted.test or len(names) < wanted.test + wanted.val + 1:
        raise InputError(
            f"the profile '{profile.name}' wants {wanted.test} test subjects with a mask, {wanted.val} "
            f"for validation and at least one to train; there are {len(names)}, {len(with_mask)} with a mask"
        )
    rng = np.random.default_rng(wanted.seed)
    test = sorted(rng.permutation(sorted(with_mask))[: wanted.test].tolist())
    rest = rng.permutation(sorted(set(names) - set(test))).tolist()
    return {
        "train": sorted(rest[wanted.val :]),
        "val": sorted(rest[: wanted.val]),
        "test": test,
    }


def build(root: Path, out: Path, profile: Profile, jobs: int = 1) -> Cohort:
    """Check, prepare and split a folder. Raises InputError with every fault found; then nothing is written."""
    subjects, faults = find(root)
    checks = Parallel(n_jobs=jobs, return_as="generator")(delayed(check)(s) for s in subjects)
    for found in tqdm(checks, total=len(subjects), desc="checking", unit="subject", mininterval=2.0):
        faults += found
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        raise InputError(f"{root}: {count}, nothing written:\n  " + "\n  ".join(faults))
    names = [s.name for s in subjects]
    parts = split(names, [s.name for s in subjects if s.mask], profile)

    grid = profile.working_grid
    note = root / "phantom.json"
    source = json.loads(note.read_text()) if note.exists() else {"made_by": "BraTS 2020 layout"}
    settings = {"source": source, "subjects": len(names), "split_seed": profile.split.seed}
    stale = out / INDEX
    if stale.exists():
        before = Cohort(out)
        if before.grid != grid or before.settings.get("source") != source:
            raise InputError(f"{out}: holds a cohort prepared otherwise; remove it or name another folder")
    work = Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(prepare)(subject, grid, out) for subject in subjects
    )
    for _ in tqdm(work, total=len(subjects), desc="preparing", unit="subject", mininterval=2.0):
        pass
    write_index(out, grid, CONTRASTS, parts, settings)
    return Cohort(out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.brats",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="subjects in BraTS's layout")
    parser.add_argument("out", type=Path, help="folder for the prepared cohort")
    parser.add_argument("--profile", default="demo", help="profile, or a profile's file (default demo)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(argv)
    try:
        cohort = build(options.folder, options.out, load_profile(options.profile), max(1, options.jobs))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{name}: {len(cohort.names(name))}" for name in ("train", "val", "test")))
    return 0


if __name__ == "__main__":
    from data_prep import brats  # worker processes find functions by module, and __main__ is none

    sys.exit(brats.main())
