"""From a folder in BraTS 2020's layout, real or synthetic, to the prepared cohort.

    python -m data_prep.brats FOLDER OUT --profile demo

Checks every subject and reports all faults at once; normalises intensities, brings volumes to the
profile's grid, and splits by subject. A run that was cut short goes on where it stopped, and a
subject whose files have changed since is prepared anew. Only subjects with a tumour mask can be
test subjects (BraTS 2020 has masks for its 369 training subjects, none for the 125 of its
validation set).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from joblib import delayed
from nibabel.orientations import ornt2axcodes

from data_prep import command
from odereg_core.cohort import (
    CONTRASTS,
    INDEX,
    Cohort,
    Subject,
    subject_source,
    write_index,
    write_subject,
)
from odereg_core.errors import InputError, tells_faults
from odereg_core.files import digest
from odereg_core.grid import Grid
from odereg_core.profiles import Profile, load_profile
from odereg_core.volume import Volume, foreground, model_image, resample

MISNAMED = {"BraTS20_Training_355": "W39_1998.09.19_Segm"}
"""BraTS 2020 itself names this mask otherwise."""
VERSION = 1
"""To be raised when the same files come to give other tensors: older ones are then made anew."""
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
    """Subjects right below `root` or its folders (MICCAI_BraTS2020_TrainingData, ...), and faults.

    A folder is a subject's if it holds a file `<its name>_<contrast>.nii[.gz]`.
    """
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder")
    subjects: dict[str, tuple[Path, Found]] = {}
    faults: list[str] = []

    def visit(folder: Path) -> bool:
        name = folder.name
        images = {c: p for c in CONTRASTS if (p := _file(folder, f"{name}_{c}"))}
        if not images:
            if any(folder.glob("*.nii")) or any(folder.glob("*.nii.gz")):
                faults.append(f"{name}: no file in {folder} is named {name}_<contrast>.nii.gz")
            return False
        if name in subjects:
            faults.append(f"{name}: found twice, in {subjects[name][0]} and in {folder}")
            return True
        for contrast in CONTRASTS:
            if contrast not in images:
                missing = folder / f"{name}_{contrast}.nii.gz"
                faults.append(f"{name}: the contrast {contrast} is missing ({missing})")
        mask = _file(folder, f"{name}_seg")
        if mask is None and name in MISNAMED:
            mask = _file(folder, MISNAMED[name])
        subjects[name] = folder, Found(name, images, mask)
        return True

    for folder in _folders(root):
        if not visit(folder):
            for inner in _folders(folder):
                visit(inner)
    if not subjects:
        raise InputError(f"{root}: no subject folders in BraTS's layout (<name>/<name>_t1.nii.gz)")
    return [found for _, (_, found) in sorted(subjects.items())], faults


def _folders(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]


def check(subject: Found, grid: Grid) -> list[str]:
    """What is wrong with one subject, a sentence each; every file is read to its end."""
    faults: list[str] = []
    first: Volume | None = None

    def fault(text: str) -> None:
        faults.append(f"{subject.name}: {text}")

    for path in [*subject.images.values(), subject.mask]:
        if path is None:
            continue
        try:
            volume = Volume.load(path)
            if path != subject.mask:
                volume.checked()
        except InputError as error:
            fault(str(error))
            continue
        if path == subject.mask:
            values = set(np.unique(volume.data).tolist())
            if values == {0}:
                fault(f"{path}: the tumour mask is empty")
            elif not values <= LABELS:
                fault(f"{path}: the tumour mask holds the label {min(values - LABELS):g}")
        if first is None and path != subject.mask:
            head, centre = foreground(volume), grid_centre(volume, grid)
            faults += in_view(subject, volume, head, centre, grid)
        first = first or volume
        ours, theirs = ("".join(ornt2axcodes(v.orientation)) for v in (volume, first))
        if ours != theirs:
            fault(f"{path}: oriented {ours}, but {Path(first.path).name} {theirs}")
        elif not volume.same_grid(first):
            fault(f"{path}: lies on another grid than {Path(first.path).name}")
    return faults


def in_view(
    subject: Found, volume: Volume, head: np.ndarray, centre: np.ndarray, grid: Grid
) -> list[str]:
    """A sentence where more than a fifth of a scan's head, a mask, lies outside of a grid about
    `centre`."""
    inside = volume.world()[:, head]
    half = np.array(grid.extent).reshape(3, 1) / 2
    share = float((np.abs(inside - centre.reshape(3, 1)) <= half).all(0).mean())
    extent = " × ".join(f"{mm:.0f}" for mm in grid.extent)
    fault = f"only {share:.0%} of its head lies in the profile's field of view of {extent} mm"
    return [f"{subject.name}: {volume.path}: {fault}"] if share < 0.8 else []


def source_of(subject: Found, grid: Grid) -> str:
    """A hash of all that a prepared subject depends on: files, grid, this code's version. Raises
    InputError for a file that cannot be read."""
    files = subject.images | ({"seg": subject.mask} if subject.mask else {})
    return digest(files.values(), VERSION, grid, list(files))


def survey(
    subject: Found, grid: Grid, out: Path, check: Callable[[Found, Grid], list[str]]
) -> tuple[str, list[str]]:
    """A subject's digest, and its faults unless it lies prepared in `out`."""
    try:
        source = source_of(subject, grid)
    except InputError as error:
        return "", [f"{subject.name}: {error}"]
    return source, [] if subject_source(out, subject.name) == source else check(subject, grid)


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


def prepare(subject: Found, grid: Grid, out: Path, source: str) -> None:
    """Write one subject's file."""
    images, centre = [], None
    for path in subject.images.values():
        volume = Volume.load(path).checked()
        mask = foreground(volume)
        centre = grid_centre(volume, grid) if centre is None else centre  # the first one's, for all
        images.append(model_image(volume, mask, grid, centre)[0, 0])
    seg = None
    if subject.mask:
        volume = Volume.load(subject.mask)
        seg = resample(volume, grid, centre, "nearest")[0, 0].to(torch.uint8)
    write_subject(out, Subject(subject.name, torch.stack(images), seg), source)


def split(names: list[str], with_mask: list[str], profile: Profile) -> dict[str, list[str]]:
    """Test subjects drawn from those with a mask (from all where none has one), then validation,
    the rest trains.

    Raises InputError where there are too few.
    """
    wanted, eligible = profile.split, with_mask or names
    if len(eligible) < wanted.test or len(names) < wanted.test + wanted.val + 1:
        also, have = (" with a mask", f", {len(with_mask)} with a mask") if with_mask else ("", "")
        raise InputError(
            f"the profile '{profile.name}' wants {wanted.test} test subjects{also}, {wanted.val} "
            f"for validation and at least one to train; there are {len(names)} subjects{have}"
        )
    rng = np.random.default_rng(wanted.seed)
    test = sorted(rng.permutation(sorted(eligible))[: wanted.test].tolist())
    rest = rng.permutation(sorted(set(names) - set(test))).tolist()
    return {
        "train": sorted(rest[wanted.val :]),
        "val": sorted(rest[: wanted.val]),
        "test": test,
    }


def build(
    root: Path, out: Path, profile: Profile, jobs: int = 1, test_only: bool = False
) -> Cohort:
    """Check, prepare and split a folder; with `test_only` all of its subjects are for testing.

    Raises InputError with every fault found in it; then nothing is written.
    """
    subjects, faults = find(root)
    made_by = command.made_by(root / "phantom.json", len(subjects), "BraTS 2020 layout")
    return assemble(
        root, subjects, faults, out, profile, made_by, CONTRASTS, check, jobs, test_only
    )


def assemble(
    root: Path,
    subjects: list[Found],
    faults: list[str],
    out: Path,
    profile: Profile,
    made_by: dict,
    contrasts: tuple[str, ...],
    check: Callable[[Found, Grid], list[str]],
    jobs: int,
    test_only: bool,
) -> Cohort:
    """Check, prepare and split the subjects found. Raises InputError as `build` does."""
    grid = profile.working_grid
    if (out / INDEX).exists() and Cohort(out).grid != grid:
        raise InputError(f"{out}: holds a cohort on another grid; remove it or name another folder")
    calls = [delayed(survey)(subject, grid, out, check) for subject in subjects]
    sources = []
    for source, found in command.progress("checking", calls, jobs):
        sources.append(source)
        faults += found
    if faults:
        raise command.refusal(root, faults, ", nothing written")
    names = [s.name for s in subjects]
    if test_only:
        parts = {"train": [], "val": [], "test": names}
    else:
        parts = split(names, [s.name for s in subjects if s.mask], profile)

    calls = [
        delayed(prepare)(subject, grid, out, source)
        for subject, source in zip(subjects, sources, strict=True)
        if subject_source(out, subject.name) != source
    ]
    if calls:
        (out / INDEX).unlink(missing_ok=True)  # until all are written this is no whole cohort
    for _ in command.progress("preparing", calls, jobs):
        pass
    settings = {"source": made_by, "subjects": len(names), "split_seed": profile.split.seed}
    write_index(out, grid, contrasts, parts, settings)
    return Cohort(out)


@tells_faults
def main(argv: list[str] | None = None) -> int:
    parser = command.preparation("brats", __doc__, "subjects in BraTS's layout")
    parser.add_argument("--test-only", action="store_true", help="no split: all are test subjects")
    o = parser.parse_args(argv)
    made = build(o.folder, o.out, load_profile(o.profile), max(1, o.jobs), o.test_only)
    print(command.parts(made))
    return 0


if __name__ == "__main__":
    from data_prep import brats  # worker processes find functions by module, and __main__ is none

    sys.exit(brats.main())
