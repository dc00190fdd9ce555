"""Register two scans as they come, of any grid, orientation and number type."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from odereg_core.errors import InputError
from odereg_core.files import provenance, write_json
from odereg_core.metrics import folding
from odereg_core.msodenet import Cascade, Cascaded
from odereg_core.ode import SolverError
from odereg_core.transforms import Rigid
from odereg_core.transforms.io import write_affine_mat, write_displacement
from odereg_core.volume import Volume, centre_of_mass, foreground, normalise, resample
from odereg_core.weights import load_model, shipped

REGISTER_TRANSFORMS = ("rigid", "bspline", "dense", "rigid+bspline", "rigid+dense")


@dataclass(frozen=True)
class Registered:
    """What a registration returns.

    `warped`: the moving scan on the fixed one's grid, in the moving scan's own intensities.
    `displacement`: (3, X, Y, Z) u in RAS world mm at the fixed scan's voxels, the whole map.
    `matrix`: (4, 4) RAS world mm, fixed to moving, the rigid part where there is one: the whole
    map is then it after a deformation.
    `trajectory`: theta of each stage through the scales, in the models' frame. `report`: as
    `report.json`.
    """

    warped: Volume
    displacement: NDArray[np.float64]
    matrix: NDArray[np.float64] | None
    centre: NDArray[np.float64]
    trajectory: Cascaded
    report: dict = field(default_factory=dict)

    def save(self, out: Path | str) -> None:
        """`warped.nii.gz`, `displacement.nii.gz`, `affine.mat` where there is a rigid part,
        `report.json`."""
        out = Path(out)
        self.warped.save(out / "warped.nii.gz")
        vectors, affine = self.warped.with_data(np.moveaxis(self.displacement, 0, -1)).native()
        write_displacement(out / "displacement.nii.gz", np.moveaxis(vectors, -1, 0), affine)
        if self.matrix is not None:
            write_affine_mat(out / "affine.mat", self.matrix, self.centre)
        write_json(out / "report.json", self.report)


def choose_device(device: str) -> str:
    """`auto` is the GPU where there is one. Raises InputError for a device that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"there is no device '{device}' here; try auto or cpu") from None
    return device


def register(
    moving: Path | str | Volume,
    fixed: Path | str | Volume,
    transform: str = "rigid",
    weights: Sequence[Path | str] | Path | str | None = None,
    device: str = "auto",
) -> Registered:
    """Register two 3-D scans.

    `transform`: rigid, bspline, dense, rigid+bspline or rigid+dense; `weights`: files to use in
    the shipped ones' place, one a stage. Where both scans share one grid, motion is sought about
    its centre; otherwise they are first brought together at their heads' centres of mass, as
    classical tools do. Raises InputError for files that are no usable scans, and where the solver
    does not end on them.
    """
    if transform not in REGISTER_TRANSFORMS:
        raise InputError(f"no transform '{transform}'; there are: {', '.join(REGISTER_TRANSFORMS)}")
    device = choose_device(device)
    model = load_cascade(transform, weights, device)
    moving = (moving if isinstance(moving, Volume) else Volume.load(moving)).checked()
    fixed = (fixed if isinstance(fixed, Volume) else Volume.load(fixed)).checked()

    grid = model.grid
    masks = foreground(moving), foreground(fixed)
    shared = moving.same_grid(fixed)
    if shared:
        centres = moving.centre, fixed.centre
    else:
        centres = centre_of_mass(moving, masks[0]), centre_of_mass(fixed, masks[1])
    images = [
        resample(volume.with_data(normalise(volume.data, mask)), grid, centre).to(device)
        for volume, mask, centre in zip((moving, fixed), masks, centres, strict=True)
    ]
    started = time.perf_counter()
    try:
        with torch.no_grad():
            result = model(*images, trajectory=True)
    except SolverError as error:
        raise InputError(f"{moving.path} to {fixed.path}: the solver gave up ({error})") from None
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started

    points = fixed.world()
    local = torch.from_numpy(points - centres[1].reshape(3, 1, 1, 1))[None]
    target = result.map(local)[0].numpy() + centres[0].reshape(3, 1, 1, 1)
    warped = map_coordinates(moving.data, moving.index(target), order=1, mode="constant", cval=0.0)
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
    head = np.linalg.norm((target - points)[:, masks[1]], axis=0)
    if transform != "rigid":
        report["folded_share"] = round(float(folding(result.displacement(), grid)), 6)
    report |= {
        "displacement_mm": {
            "mean": round(float(head.mean()), 3),
            "largest": round(float(head.max()), 3),
        },
        "seconds": round(seconds, 3),
        "function_evaluations": [s.nfe for stage in result.stages for s in stage.segments],
        **provenance(device),
    }
    return Registered(
        fixed.with_data(warped.astype(np.float32)),
        target - points,
        matrix,
        centres[1],
        result,
        report,
    )


def load_cascade(
    transform: str, weights: Sequence[Path | str] | Path | str | None, device: str
) -> Cascade:
    """The models of a transform such as `rigid+bspline`, shipped or from files, one a stage.

    Raises InputError where their number or kind is another, or where they differ in grid.
    """
    names = transform.split("+")
    files = [weights] if isinstance(weights, str | Path) else list(weights or map(shipped, names))
    if len(files) != len(names):
        raise InputError(f"'{transform}' needs {len(names)} weights files, got {len(files)}")
    models = [load_model(Path(file), device) for file in files]
    for file, name, model in zip(files, names, models, strict=True):
        if model.transform.name != name:
            raise InputError(f"{file}: a model of '{model.transform.name}', not of '{name}'")
    try:
        return Cascade(*models)
    except ValueError as error:
        raise InputError(f"{' and '.join(map(str, files))}: {error}") from None
