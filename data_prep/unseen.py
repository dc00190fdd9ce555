"""Another data set as a prepared cohort of test subjects: Fig. 4c's, synthetic or real.

    python -m data_prep.unseen FOLDER OUT --profile demo [--tool auto] [--contrasts t1,t2]

FOLDER is in IXI's layout (brain-development.org/ixi-dataset): one file a subject and contrast,
named `<subject>-<CONTRAST>.nii.gz`, in any folders below it (IXI-T1/IXI002-Guys-0828-T1.nii.gz);
contrasts are T1, T1CE, T2, PD and FLAIR, all that are found or those that `--contrasts` names.
`data_prep.heads` writes synthetic heads in that layout. For each subject: the contrasts are brought
to the first one by rigid registration (ANTs; their headers' positions start it) unless they are
said to be acquired together, the skull is stripped, the brain is put where BraTS has it, and
intensities are normalised on the profile's grid. All are test subjects. A subject that lacks a
contrast the others have is left out, and named. A run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from joblib import delayed
from torch import Tensor

from data_prep import command, strip
from data_prep.phantom import BRAIN_CENTRE
from odereg_core.baselines.ants import AntsRigid
from odereg_core.cohort import (
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
from odereg_core.transforms import Rigid
from odereg_core.volume import (
    Volume,
    centre_of_mass,
    foreground,
    normalise,
    resample,
)

VERSION = 1
"""To be raised when the same files come to give other tensors: older ones are then made anew."""
CONTRASTS = ("t1", "t1ce", "t2", "pd", "flair")
"""Those that are known, in the order in which one of them becomes the reference."""
NAME = re.compile(r"(?P<subject>.+)-(?P<contrast>T1CE|T1|T2|PD|FLAIR)\.nii(\.gz)?", re.IGNORECASE)


def find(
    root: Path, contrasts: Sequence[str] = CONTRASTS
) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Subjects with their files of these contrasts, and the names of those that lack one that
    others have.

    Raises InputError where there is no such folder or contrast, a file is there twice, or nobody
    has two contrasts.
    """
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder")
    if unknown := [name for name in contrasts if name not in CONTRASTS]:
        raise InputError(f"no contrast '{unknown[0]}'; there are: {', '.join(CONTRASTS)}")
    subjects: dict[str, dict[str, Path]] = {}
    for path in sorted(root.rglob("*.nii*")):
        match = NAME.fullmatch(path.name)
        if match is None or path.name.startswith("."):
            continue
        if (contrast := match["contrast"].lower()) not in contrasts:
            continue
        files = subjects.setdefault(match["subject"], {})
        if contrast in files:
            raise InputError(f"{path}: {match['subject']} has two {contrast}: {files[contrast]}")
        files[contrast] = path
    whole = max(subjects.values(), key=len, default={})
    if len(whole) < 2:
        raise InputError(
            f"{root}: no subject with two contrasts of {', '.join(contrasts)} in IXI's layout "
            "(<subject>-T1.nii.gz, <subject>-T2.nii.gz)"
        )
    lacking = [name for name, files in subjects.items() if set(files) != set(whole)]
    kept = {
        name: {c: files[c] for c in CONTRASTS if c in files}
        for name, files in subjects.items()
        if name not in lacking
    }
    return kept, lacking


def aligned(volume: Volume, reference: Volume, grid: Grid, centre: np.ndarray) -> Volume:
    """The volume in the reference's place: its affine changed by a rigid registration, its voxels
    as they were. `grid` about `centre` (world mm) is where the two are compared."""
    moving, fixed = (_head(v, grid, centre) for v in (volume, reference))
    # Near alignment 32 bins place better than the 16 that serve large motions (tests: unseen).
    theta = AntsRigid(bins=32)(moving, fixed, grid).theta
    assert theta is not None
    matrix = Rigid().matrix(theta.double())[0].numpy()
    # phi takes the reference's points to the volume's, both in mm about the centre.
    matrix[:3, 3] += centre - matrix[:3, :3] @ centre
    return replace(volume, affine=np.linalg.inv(matrix) @ volume.affine)


def _head(volume: Volume, grid: Grid, centre: np.ndarray) -> Tensor:
    return resample(volume.with_data(normalise(volume.data, foreground(volume))), grid, centre)


def prepare(
    name: str, files: dict[str, Path], grid: Grid, out: Path, source: str, tool: str, together: bool
) -> None:
    """Write one subject's file. Raises InputError for a file that is no usable scan, and where no
    brain is found."""
    volumes = {contrast: Volume.load(path).checked() for contrast, path in files.items()}
    reference = next(iter(volumes.values()))
    centre = centre_of_mass(reference, foreground(reference))
    spacing = float(np.clip(min(grid.spacing), 2.0, 3.0))
    # A head and what the scanner shows of its neck: 240 x 240 x 216 mm.
    work = Grid(tuple(round(mm / spacing) for mm in (240, 240, 216)), (spacing,) * 3)
    placed = [
        v if together or v is reference else aligned(v, reference, work, centre)
        for v in volumes.values()
    ]
    brain = strip.strip(_head(reference, work, centre), work, tool)
    litres = float(brain.sum()) * spacing**3 / 1e6
    if not 0.5 < litres < 2.5:
        path = next(iter(files.values()))
        raise InputError(f"{path}: stripping found a brain of {litres:.2f} l; is this a head?")
    offset = (work.points()[0] * brain[0]).sum((1, 2, 3)) / brain.sum()
    middle = centre + offset.numpy() - np.asarray(BRAIN_CENTRE)
    affine = work.affine
    affine[:3, 3] += centre
    found = Volume(brain[0, 0].numpy(), affine, reference.orientation)
    mask = resample(found, grid, middle)[0, 0] > 0.5
    images = []
    for volume in placed:
        image = resample(volume, grid, middle)[0, 0].numpy()
        images.append(torch.from_numpy(normalise(image, mask.numpy())))
    write_subject(out, Subject(name, torch.stack(images), None), source)


def source_of(files: dict[str, Path], grid: Grid, tool: str, together: bool) -> str:
    """A hash of all that a prepared subject depends on. Raises InputError for a file that cannot
    be read."""
    return digest(files.values(), VERSION, grid, tool, together, list(files))


def prepare_one(
    name: str, files: dict[str, Path], grid: Grid, out: Path, tool: str, together: bool
) -> str | None:
    """Prepare one subject unless it is there; what is wrong with it, if anything is."""
    try:
        source = source_of(files, grid, tool, together)
        if subject_source(out, name) != source:
            prepare(name, files, grid, out, source, tool, together)
    except InputError as error:
        return str(error)
    return None


def build(
    root: Path,
    out: Path,
    profile: Profile,
    tool: str = "auto",
    jobs: int = 1,
    together: bool = False,
    contrasts: Sequence[str] = CONTRASTS,
) -> Cohort:
    """Prepare every subject of a folder for testing, in these of its contrasts; `together`: a
    subject's contrasts were acquired in one and need no registration. Raises InputError with every
    fault found; the cohort then has no index."""
    tool = strip.choose_tool(tool)
    subjects, lacking = find(root, contrasts)
    for name in lacking:
        print(f"left out: {name} lacks a contrast that others have", file=sys.stderr)
    made_by = command.made_by(root / "heads.json", len(subjects), "IXI's layout")
    grid = profile.working_grid
    (out / INDEX).unlink(missing_ok=True)
    calls = [
        delayed(prepare_one)(name, files, grid, out, tool, together)
        for name, files in subjects.items()
    ]
    if faults := [fault for fault in command.progress("stripping", calls, jobs) if fault]:
        raise command.refusal(root, faults)
    settings = {"source": made_by, "subjects": len(subjects), "stripped_by": tool}
    split = {"train": [], "val": [], "test": sorted(subjects)}
    write_index(out, grid, list(next(iter(subjects.values()))), split, settings)
    return Cohort(out)


@tells_faults
def main(argv: list[str] | None = None) -> int:
    parser = command.preparation("unseen", __doc__, "subjects in IXI's layout")
    parser.add_argument("--tool", default="auto", help=f"auto, {', '.join(strip.TOOLS)}")
    parser.add_argument("--together", action="store_true", help="contrasts are aligned already")
    parser.add_argument("--contrasts", default="", help="as t1,t2; default: all there are")
    o = parser.parse_args(argv)
    contrasts = command.names(o.contrasts) or CONTRASTS
    profile = load_profile(o.profile)
    made = build(o.folder, o.out, profile, o.tool, max(1, o.jobs), o.together, contrasts)
    print(f"test: {len(made.names('test'))}, contrasts: {', '.join(made.contrasts)}")
    return 0


if __name__ == "__main__":
    from data_prep import unseen  # worker processes find functions by module, and __main__ is none

    sys.exit(unseen.main())
