"""Register two scans as they come, of any grid, orientation and number type."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odereg_core.device import choose_device, synchronise
from odereg_core.errors import InputError
from odereg_core.files import atomic_files, provenance, read_json, sha256, write_json
from odereg_core.metrics import folding
from odereg_core.msodenet import Cascade, Cascaded
from odereg_core.ode import SolverError
from odereg_core.optimise import refine as refine_result
from odereg_core.seen import Seen, cut_cm2, load_seen, of_image, of_result
from odereg_core.similarity import ContentSimilarity
from odereg_core.transforms import TRANSFORMS, Rigid
from odereg_core.transforms.io import write_affine_mat, write_displacement
from odereg_core.volume import (
    Volume,
    centre_of_mass,
    foreground,
    given_mask,
    model_image,
    read_labels,
)
from odereg_core.warp import warp
from odereg_core.weights import load_content, load_model, shipped

REGISTER_TRANSFORMS = (*TRANSFORMS, *(f"rigid+{name}" for name in TRANSFORMS if name != "rigid"))
REPORT = "report.json"
FEWEST = 100
"""Voxels of the model's grid that a head has at least."""
SLAB = 2**21
"""Voxels of the fixed scan mapped at a time: their coordinates take much more room than it."""


@dataclass(frozen=True)
class Registered:
    """What a registration returns.

    `warped`: the moving scan on the fixed one's grid, in the moving scan's own intensities.
    `displacement`: (3, X, Y, Z) u in RAS world mm at the fixed scan's voxels, the whole map.
    `matrix`: (4, 4) RAS world mm, fixed to moving, the rigid part where there is one: the whole
    map is then it after a deformation. `labels`: by file name, as `warped`, nearest voxels.
    `centre`: RAS world mm, the point that `affine.mat` turns about. `trajectory`: theta of each
    stage through the scales, in the models' frame. `report`: as `report.json`. `sources`: the files
    it was made of.
    """

    warped: Volume
    displacement: NDArray[np.float32]
    matrix: NDArray[np.float64] | None
    centre: NDArray[np.float64]
    labels: dict[str, Volume]
    trajectory: Cascaded
    report: dict
    sources: tuple[Path, ...] = ()

    def save(self, out: Path | str) -> None:
        """`warped.nii.gz`, `displacement.nii.gz`, `affine.mat` where there is a rigid part,
        `labels_<name>.nii.gz` for each label file, and last `report.json`: all or none, and none
        of another registration's.

        Raises InputError where they cannot be written, or would take a source's place."""
        out = Path(out)
        spare(self.sources, out, self.labels)
        vectors, affine = self.warped.with_data(np.moveaxis(self.displacement, 0, -1)).native()
        with atomic_files(out, REPORT, written(out)) as folder:
            self.warped.save(folder / "warped.nii.gz")
            write_displacement(folder / "displacement.nii.gz", np.moveaxis(vectors, -1, 0), affine)
            if self.matrix is not None:
                write_affine_mat(folder / "affine.mat", self.matrix, self.centre)
            for name, volume in self.labels.items():
                volume.save(folder / f"labels_{name}.nii.gz")
            outputs = sorted(path.name for path in folder.iterdir())
            write_json(folder / REPORT, {**self.report, "outputs": outputs})


def written(out: Path) -> list[Path]:
    """What a registration has written to a folder beside its report, as that says."""
    try:
        names = read_json(out / REPORT).get("outputs", [])
    except InputError:
        return []
    return [out / name for name in names if Path(name).name == name]


def spare(sources: Iterable[Path], out: Path, labels: Iterable[Path | str] = ()) -> None:
    """Raises InputError where a registration of these files (`labels`: theirs, or their names)
    would write one of them over, or take it for an earlier registration's and remove it."""
    names = {"warped.nii.gz", "displacement.nii.gz", "affine.mat", REPORT}
    names |= {f"labels_{label_name(label)}.nii.gz" for label in labels}
    taken = {path.resolve() for path in (*(out / name for name in names), *written(out))}
    for source in sources:
        if source.resolve() in taken:
            raise InputError(f"{source}: results in {out} would replace it; name another folder")


def label_name(path: Path | str) -> str:
    """What a file of labels is called in the results."""
    return Path(path).name.removesuffix(".gz").removesuffix(".nii")


def register(
    moving: Path | str | Volume,
    fixed: Path | str | Volume,
    transform: str = "rigid",
    weights: Sequence[Path | str] | Path | str | None = None,
    device: str = "auto",
    *,
    moving_mask: Path | str | Volume | None = None,
    fixed_mask: Path | str | Volume | None = None,
    labels: Sequence[Path | str] | Path | str = (),
    refine: int = 0,
) -> Registered:
    """Register two 3-D scans.

    `transform`: rigid, bspline, dense, rigid+bspline or rigid+dense; `weights`: files to use in
    the shipped ones' place, one a stage. Where both scans share one grid, motion is sought about
    its centre; otherwise they are first brought together at their heads' centres of mass, as
    classical tools do.

    `moving_mask`, `fixed_mask`: what of each scan to register, of any grid in that scan's world
    (a brain mask, for heads with skulls); by default all that is not background. `labels`: files
    in the moving scan's world to be carried along. `refine`: so many steps of direct optimisation
    from the model's answer, on MIND [13]: finer than content codes, which are half as fine as a
    slice along an axis. It brings rigid maps nearer to the truth, not deformations. The report's
    warnings say where scans or answer lie outside what the model has seen (see
    `odereg_core.seen`); its measures are of the model's own answer, but `content` of the refined.

    Raises InputError for files that are no usable scans, and where the solver does not end on
    them; TypeError for scans and masks that are neither files nor volumes.
    """
    device = choose_device(str(device))
    labels = [labels] if isinstance(labels, str | Path) else labels
    given = {"moving": moving, "fixed": fixed, "moving_mask": moving_mask, "fixed_mask": fixed_mask}
    for name, one in given.items():
        if not isinstance(one, str | Path | Volume) and not (name.endswith("mask") and one is None):
            raise TypeError(f"{name}: a file or a Volume is needed, not a {type(one).__name__}")
    if refine < 0:
        raise InputError(f"refine: {refine} steps; none or more are needed")
    files = weights_files(transform, weights)
    model = load_cascade(transform, files, device)
    similarity = load_content(shipped("encoder"), device)
    moving = (moving if isinstance(moving, Volume) else Volume.load(moving)).checked()
    fixed = (fixed if isinstance(fixed, Volume) else Volume.load(fixed)).checked()
    given_masks = moving_mask, fixed_mask
    masks = [
        foreground(volume) if mask is None else given_mask(mask, volume)
        for volume, mask in zip((moving, fixed), given_masks, strict=True)
    ]
    carried = _by_name([read_labels(path) for path in labels])
    for volume in carried.values():
        if volume.data.any() and not moving.covers(volume):
            raise InputError(f"{volume.path}: no label lies within {moving.path}")

    shared = moving.same_grid(fixed)
    if shared:
        centres = moving.centre, fixed.centre
    else:
        centres = centre_of_mass(moving, masks[0]), centre_of_mass(fixed, masks[1])
    images = [
        model_image(volume, mask, model.grid, centre).to(device)
        for volume, mask, centre in zip((moving, fixed), masks, centres, strict=True)
    ]
    for volume, mask, image in zip((moving, fixed), given_masks, images, strict=True):
        if (count := int((image > 0).sum())) < FEWEST:
            what = volume.path if mask is None else f"{_path(mask)}: of {volume.path}"
            raise InputError(
                f"{what}: only {count} voxels of {model.grid.spacing[0]:g} mm are left to register "
                "in the model's field of view"
            )
    started = time.perf_counter()
    try:
        with torch.no_grad():
            result = model(*images, trajectory=True)
    except SolverError as error:
        raise InputError(f"{moving.path} to {fixed.path}: the solver gave up ({error})") from None
    synchronise(device)
    seconds = time.perf_counter() - started
    seen = [load_seen(file) for file in files]
    measures, warnings = _outside(model, seen, result, images, (moving, fixed), masks)
    refined = {"refined": _refined(result, images, refine)} if refine else {}
    warnings += _lost(similarity, seen[-1], model, result, images, measures)

    displacement, warped, *warped_labels = _carry(result, fixed, centres, moving, carried.values())
    for name, volume in (("moving", moving), ("fixed", fixed)):
        warnings += [f"The header of the {name} scan {doubt}." for doubt in volume.doubts]
    for volume, there in zip(carried.values(), warped_labels, strict=True):
        if volume.data.any() and not there.data.any():
            warnings.append(f"No label of {Path(volume.path).name} comes to lie in the fixed scan.")
    report = {
        "moving": Path(moving.path).name,
        "fixed": Path(fixed.path).name,
        "transform": transform,
        "start": "shared grid" if shared else "centres of mass",
    }
    matrix = None
    if isinstance(model.transforms[0], Rigid):
        theta = result.stages[0].theta.double().cpu()
        matrix = model.transforms[0].matrix(theta)[0].numpy()
        matrix[:3, 3] += centres[0] - matrix[:3, :3] @ centres[1]
        report["rotation_deg"] = [round(math.degrees(a), 3) for a in theta[0, :3].tolist()]
        report["translation_mm"] = [round(t, 3) for t in theta[0, 3:].tolist()]
    if transform != "rigid":
        report["folded_share"] = round(float(folding(result.displacement(), model.grid)), 6)
    head = np.linalg.norm(displacement[:, masks[1]], axis=0)
    report |= {
        "displacement_mm": {
            "mean": round(float(head.mean()), 3),
            "largest": round(float(head.max()), 3),
        },
        "seconds": round(seconds, 3),
        "function_evaluations": [s.nfe for stage in result.stages for s in stage.segments],
        **refined,
        "measures": measures,
        "warnings": warnings,
        **provenance(device),
    }
    return Registered(
        warped,
        displacement,
        matrix,
        centres[1],
        dict(zip(carried, warped_labels, strict=True)),
        result,
        report,
        tuple(Path(_path(one)) for one in (*given.values(), *labels) if one is not None),
    )


def _path(given: Path | str | Volume) -> str:
    return given.path if isinstance(given, Volume) else str(given)


def _refined(result: Cascaded, images: Sequence[Tensor], steps: int) -> dict[str, float]:
    """Refine a result in place; what the report says of it."""
    started = time.perf_counter()
    losses = refine_result(result, images[0], images[1], steps)
    return {
        "steps": steps,
        "loss_before": round(float(losses[0]), 5),
        "loss_after": round(float(losses.min()), 5),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _outside(
    model: Cascade,
    seen: Sequence[Seen | None],
    result: Cascaded,
    images: Sequence[Tensor],
    volumes: Sequence[Volume],
    masks: Sequence[NDArray[np.bool_]],
) -> tuple[dict, list[str]]:
    """Measures of both scans and of each stage's answer, and a sentence for each outside what
    the models have seen."""
    measures: dict[str, dict[str, float]] = {}
    warnings: list[str] = []
    if None in seen:
        warnings.append("These weights do not say what their training saw.")
    for name, image, volume, mask in zip(("moving", "fixed"), images, volumes, masks, strict=True):
        found = measures[name] = of_image(image.cpu(), model.grid)
        native = cut_cm2(torch.from_numpy(mask), volume.spacing)
        found["cut_cm2"] = max(found["cut_cm2"], native)
        if seen[0]:
            warnings += seen[0].outside(found, f"The {name} scan")
    for stage, transform, known in zip(result.stages, result.transforms, seen, strict=True):
        outer = result.outer if stage is result.stages[-1] else None
        found = measures[transform.name] = of_result(stage, transform, images[1] > 0, outer)
        if known:
            warnings += known.outside(found, f"The {transform.name} map")
    for found in measures.values():
        found.update({name: round(value, 4) for name, value in found.items()})
    return measures, warnings


def _lost(
    similarity: ContentSimilarity,
    seen: Seen | None,
    model: Cascade,
    result: Cascaded,
    images: Sequence[Tensor],
    measures: dict[str, dict[str, float]],
) -> list[str]:
    """Measure how far the final map leaves the contents apart, into `measures`; a sentence where
    that is further than after the training's registrations, measured by the same encoder."""
    warped = warp(images[0], result.displacement(), model.grid)
    name, value = model.transforms[-1].name, float(similarity(warped, images[1]))
    measures[name]["content"] = round(value, 4)
    if seen is None or seen.facts.get("encoder") != sha256(shipped("encoder")):
        return []
    return seen.outside({"content": value}, f"The {name} map")


def _by_name(volumes: list[Volume]) -> dict[str, Volume]:
    """Label volumes by their file's name. Raises InputError where two share it."""
    named: dict[str, Volume] = {}
    for volume in volumes:
        name = label_name(volume.path)
        if name in named:
            raise InputError(f"{volume.path}: a second file of labels called '{name}'")
        named[name] = volume
    return named


def _carry(
    result: Cascaded,
    fixed: Volume,
    centres: tuple[NDArray, NDArray],
    moving: Volume,
    labels: Iterable[Volume],
) -> tuple[NDArray[np.float32], *tuple[Volume, ...]]:
    """u (3, X, Y, Z) in world mm at the fixed scan's voxels; the moving scan and labels there."""
    displacement = np.empty((3, *fixed.shape), np.float32)
    sources = [(moving, "linear"), *((volume, "nearest") for volume in labels)]
    warped = [np.empty(fixed.shape, volume.data.dtype) for volume, _ in sources]
    theirs, ours = (centre.reshape(3, 1, 1, 1) for centre in centres)
    planes = max(1, SLAB // math.prod(fixed.shape[1:]))
    for first in range(0, fixed.shape[0], planes):
        slab = slice(first, first + planes)
        points = fixed.world(first, first + planes)
        target = result.map(torch.from_numpy(points - ours)[None])[0].numpy() + theirs
        displacement[:, slab] = target - points
        for whole, (volume, mode) in zip(warped, sources, strict=True):
            whole[slab] = volume.sample(target, mode)
    return displacement, *(fixed.with_data(whole) for whole in warped)


def weights_files(transform: str, weights: Sequence[Path | str] | Path | str | None) -> list[Path]:
    """The weights of each stage of a transform such as `rigid+bspline`: those given, or shipped.

    Raises InputError for a transform that is none of `REGISTER_TRANSFORMS`, and where the number of
    files is another, or none are shipped.
    """
    if transform not in REGISTER_TRANSFORMS:
        raise InputError(f"no transform '{transform}'; there are: {', '.join(REGISTER_TRANSFORMS)}")
    names = transform.split("+")
    files = [weights] if isinstance(weights, str | Path) else list(weights or map(shipped, names))
    if len(files) != len(names):
        raise InputError(f"'{transform}' needs {len(names)} weights files, got {len(files)}")
    return [Path(file) for file in files]


def load_cascade(
    transform: str, weights: Sequence[Path | str] | Path | str | None, device: str
) -> Cascade:
    """The models of a transform such as `rigid+bspline`, shipped or from files, one a stage.

    Raises InputError where their number or kind is another, or where they differ in grid.
    """
    files = weights_files(transform, weights)
    models = [load_model(file, device) for file in files]
    for file, name, model in zip(files, transform.split("+"), models, strict=True):
        if model.transform.name != name:
            raise InputError(f"{file}: a model of '{model.transform.name}', not of '{name}'")
    try:
        return Cascade(*models)
    except ValueError as error:
        raise InputError(f"{' and '.join(map(str, files))}: {error}") from None
