"""From a folder of one's own, with two contrasts or more a subject, to the prepared cohort.

    python -m data_prep.own FOLDER OUT --profile mine.yaml \\
        --pattern "{subject}/anat/{subject}_{contrast}.nii.gz" --contrasts T1w,T2w --mask lesion

The pattern says where a subject's scan of a contrast lies below FOLDER (the example is BIDS). The
contrasts of a subject must be aligned, as they are within one session; their grids may differ.
Masks are optional: those of a subject lie where the pattern says for the contrast `--mask`. As with
BraTS all faults are reported at once, and a run that was cut short goes on.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from data_prep import command
from data_prep.brats import Found, assemble, grid_centre, in_view
from odereg_core.cohort import Cohort
from odereg_core.errors import InputError, tells_faults
from odereg_core.grid import Grid
from odereg_core.profiles import Profile, load_profile
from odereg_core.volume import Volume, centre_of_mass, foreground, read_labels, resample

PATTERN = "{subject}/{subject}_{contrast}.nii.gz"
NEAR_MM = 40.0
"""How far the heads of one subject's contrasts may lie apart and still pass for aligned."""


def find(
    root: Path, pattern: str = PATTERN, contrasts: tuple[str, ...] = (), mask: str = "seg"
) -> tuple[list[Found], list[str]]:
    """Subjects below `root`, and faults; without `contrasts`, all that are found.

    Raises InputError for a pattern that is none, no files, and fewer than two contrasts or one
    named twice.
    """
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder")
    if "{subject}" not in pattern or "{contrast}" not in pattern:
        raise InputError(f"the pattern '{pattern}' needs both {{subject}} and {{contrast}}")
    if len(set(contrasts)) < len(contrasts):
        raise InputError(f"a contrast is named twice in: {', '.join(contrasts)}")
    expression = re.escape(pattern)
    # Where contrasts are named, sub_01_T1w is the subject sub_01 and not the contrast 01_T1w.
    named = "|".join(map(re.escape, (*contrasts, mask))) if contrasts else "[^/]+?"
    for name, what in (("subject", "[^/]+?"), ("contrast", named)):
        escaped = re.escape(f"{{{name}}}")
        expression = expression.replace(escaped, f"(?P<{name}>{what})", 1)
        expression = expression.replace(escaped, f"(?P={name})")

    def filled(subject: str, contrast: str) -> str:
        return pattern.replace("{subject}", subject).replace("{contrast}", contrast)

    try:
        paths = sorted(root.glob(filled("*", "*")))
    except (NotImplementedError, ValueError) as error:
        raise InputError(f"the pattern '{pattern}' is none below {root} ({error})") from None
    files: dict[str, dict[str, Path]] = {}
    for path in paths:
        match = re.fullmatch(expression, path.relative_to(root).as_posix())
        if match:
            files.setdefault(match["subject"], {})[match["contrast"]] = path
    if not files:
        raise InputError(f"{root}: no file lies where the pattern '{pattern}' says")
    contrasts = contrasts or tuple(sorted({c for own in files.values() for c in own} - {mask}))
    if len(contrasts) < 2:
        raise InputError(f"{root}: two contrasts or more are needed, found: {', '.join(contrasts)}")
    faults = [
        f"{subject}: the contrast {contrast} is missing ({root / filled(subject, contrast)})"
        for subject, own in files.items()
        for contrast in contrasts
        if contrast not in own
    ]
    subjects = [
        Found(subject, {c: own[c] for c in contrasts if c in own}, own.get(mask))
        for subject, own in files.items()
    ]
    return subjects, faults


def check(subject: Found, grid: Grid) -> list[str]:
    """What is wrong with one subject, a sentence each; every file is read to its end."""
    faults: list[str] = []
    middle: np.ndarray | None = None
    first: np.ndarray | None = None
    for path in subject.images.values():
        try:
            volume = Volume.load(path).checked()
        except InputError as error:
            faults.append(f"{subject.name}: {error}")
            continue
        if middle is None:
            middle = grid_centre(volume, grid)
        head = foreground(volume)
        middle_of_head = centre_of_mass(volume, head)
        first = middle_of_head if first is None else first
        if (away := float(np.linalg.norm(middle_of_head - first))) > NEAR_MM:
            faults.append(
                f"{subject.name}: {path}: its head lies {away:.0f} mm from that of the first "
                "contrast; a subject's contrasts must be aligned"
            )
        faults += in_view(subject, volume, head, middle, grid)
    if subject.mask:
        try:
            mask = read_labels(subject.mask)
        except InputError as error:
            return [*faults, f"{subject.name}: {error}"]
        labels, fault = mask.data, ""
        if not labels.any():
            fault = "the mask is empty"
        elif labels.min() < 0 or labels.max() > 255:
            fault = "labels lie between 0 and 255"
        elif middle is not None and not resample(mask, grid, middle, "nearest").any():
            fault = "none of the mask lies in the profile's field of view"
        if fault:
            faults.append(f"{subject.name}: {subject.mask}: {fault}")
    return faults


def build(
    root: Path,
    out: Path,
    profile: Profile,
    pattern: str = PATTERN,
    contrasts: tuple[str, ...] = (),
    mask: str = "seg",
    jobs: int = 1,
    test_only: bool = False,
) -> Cohort:
    """Check, prepare and split a folder; with `test_only` all of its subjects are for testing.

    Raises InputError with every fault found in it; then nothing is written.
    """
    subjects, faults = find(root, pattern, contrasts, mask)
    found = tuple(dict.fromkeys(c for subject in subjects for c in subject.images))
    made_by = {"made_by": "own", "pattern": pattern}
    return assemble(
        root, subjects, faults, out, profile, made_by, contrasts or found, check, jobs, test_only
    )


@tells_faults
def main(argv: list[str] | None = None) -> int:
    parser = command.preparation("own", __doc__, "where the subjects lie")
    parser.add_argument("--pattern", default=PATTERN, help=f"default {PATTERN}".replace("%", "%%"))
    parser.add_argument("--contrasts", default="", help="as T1w,T2w; default: all there are")
    parser.add_argument("--mask", default="seg", help="the contrast that is a mask (default seg)")
    parser.add_argument("--test-only", action="store_true", help="no split: all are test subjects")
    o = parser.parse_args(argv)
    profile, contrasts = load_profile(o.profile), command.names(o.contrasts)
    made = build(
        o.folder, o.out, profile, o.pattern, contrasts, o.mask, max(1, o.jobs), o.test_only
    )
    print(command.parts(made))
    return 0


if __name__ == "__main__":
    from data_prep import own  # worker processes find functions by module, and __main__ is none

    sys.exit(own.main())
