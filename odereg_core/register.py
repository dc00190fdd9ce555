"""Register two scans as they come, of any grid, orientation and number type."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from odereg_core.errors import InputError
from odereg_core.files import provenance, write_json
from odereg_core.msodenet import MSODENet, Registration
from odereg_core.ode import SolverError
from odereg_core.transforms.io import write_affine_mat, write_displacement
from odereg_core.volume import Volume, centre_of_mass, foreground, normalise, resample
from odereg_core.weights import load_model, shipped

REGISTER_TRANSFORMS = ("rigid",)


@dataclass(frozen=True)
class Registered:
    """What a registration returns.

    `warped`: the moving scan on the fixed one's grid, in the moving scan's own intensities.
    `displacement`: (3, X, Y, Z) u in RAS world mm at the fixed scan's voxels, the whole map.
    `matrix`: (4, 4) RAS world mm, fixed to moving, where the transform is rigid.
    `trajectory`: theta through the scales, in the model's frame. `report`: as `report.json`.
    """

    warped: Volume
    displacement: NDArray[np.float64]
    matrix: NDArray[np.float64] | None
    centre: NDArray[np.float64]
    trajectory: Registration
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
    weights: Path | str | None = None,
    device: str = "auto",
) -> Registered:
    """Register two 3-D scans.

    Where both share one grid, motion is sought about its centre; otherwise the scans are first
    brought together at their heads' centres of mass, as classical tools do. Raises InputError for
    files that are no usable scans, and where the solver does not end on them.
    """
    if transform not in REGISTER_TRANSFORMS:
        raise InputError(f"no transform '{transform}'; there are: {', '.join(REGISTER_TRANSFORMS)}")
    device = choose_device(device)
    model: MSODENet = load_model(Path(weights) if weights else shipped(transform), device)
    if model.transform.name != transform:
        raise InputError(f"{weights}: a model of '{model.transform.name}', not of '{transform}'")
    moving = (moving if isinstance(moving, Volume) else Volume.load(moving)).checked()
    fixed = (fixed if isinstance(fixed, Volume) else Volume.load(fixed)).checked()

    grid = model.grids[-1]
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
    theta = result.theta.double().cpu()
    target = model.transform.map(theta, local, grid)[0].numpy() + centres[0].reshape(3, 1, 1, 1)
    warped = map_coordinates(moving.data, moving.index(target), order=1, mode="constant", cval=0.0)
    matrix = model.transform.matrix(theta)[0].numpy()  # type: ignore[attr-defined]
    matrix[:3, 3] += centres[0] - matrix[:3, :3] @ centres[1]
    head = np.linalg.norm((target - points)[:, masks[1]], axis=0)
    report = {
        "moving": Path(moving.path).name,
        "fixed": Path(fixed.path).name,
        "transform": transform,
        "start": "shared grid" if shared else "centres of mass",
        "rotation_deg": [round(math.degrees(a), 3) for a in theta[0, :3].tolist()],
        "translation_mm": [round(t, 3) for t in theta[0, 3:].tolist()],
        "displacement_mm": {
            "mean": round(float(head.mean()), 3),
            "largest": round(float(head.max()), 3),
        },
        "seconds": round(seconds, 3),
        "function_evaluations": [segment.nfe for segment in result.segments],
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
