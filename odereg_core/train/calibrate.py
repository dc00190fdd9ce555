"""What a model's training images and its own answers look like, measured for `odereg register`."""

from __future__ import annotations

from pathlib import Path

import torch

from odereg_core.cohort import Cohort
from odereg_core.errors import InputError
from odereg_core.files import load_tensors, provenance, read_json, save_tensors, sha256
from odereg_core.msodenet import MSODENet
from odereg_core.ode import SolverError
from odereg_core.pairs import pair_keys, simulate
from odereg_core.profiles import Augmentation
from odereg_core.seen import KEY, Seen, of_image, of_result
from odereg_core.train.augment import augment
from odereg_core.train.loop import SEED, step_generator
from odereg_core.transforms import Rigid
from odereg_core.warp import warp
from odereg_core.weights import load_content, load_model, shipped


@torch.no_grad()
def measure(
    model: MSODENet,
    cohort: Cohort,
    settings: Augmentation,
    device: str,
    count: int,
) -> Seen:
    """Register `count` simulated pairs of training subjects. The images, as they are and as
    augmented for training, give the ranges; and so do the maps of registrations that arrived,
    within two voxels of the truth. How far contents are left apart (Eq. 4, by the shipped encoder)
    is measured of those within one voxel: it says which maps are not that good."""
    similarity = load_content(shipped("encoder"), device)
    task = "rigid" if isinstance(model.transform, Rigid) else "deformable"
    keys = pair_keys(cohort.names("train"), cohort.contrasts, task, count)
    measured: list[dict[str, float]] = []
    arrived = 0
    for number, key in enumerate(keys):
        pair = simulate(cohort, key, SEED)
        rng = step_generator(SEED, number)
        for image in (pair.moving, pair.fixed):
            measured.append(of_image(image, cohort.grid))
            measured.append(of_image(augment(image, settings, rng), cohort.grid))
        try:
            result = model(pair.moving.to(device), pair.fixed.to(device))
        except SolverError:  # as one that does not arrive
            continue
        found = model.displacement(result).cpu()
        voxels = pair.error_mm(found) / max(cohort.grid.spacing)
        if voxels < 2:
            arrived += 1
            measured.append(of_result(result, model.transform, pair.fixed.to(device) > 0))
        if voxels < 1:
            warped = warp(pair.moving, found, cohort.grid).to(device)
            measured.append({"content": float(similarity(warped, pair.fixed.to(device)))})
    facts = {
        "registrations": len(keys),
        "arrived": arrived,
        "seed": SEED,
        "task": task,
        "cohort": cohort.settings,
        "encoder": sha256(shipped("encoder")),
    }
    return Seen.gather(measured, {**facts, **provenance(device)})


def calibrate(weights: Path, cohort: Cohort, device: str = "cpu") -> Seen:
    """Measure a weights file's model as its training did, by the record beside it, and keep the
    result in the file; its tensors stay.

    Raises InputError where the file holds no model for the cohort's grid, or has no such record.
    """
    model = load_model(weights, device)
    if model.grids[-1] != cohort.grid:
        raise InputError(f"{weights}: a model of another grid than the cohort {cohort.folder}")
    record = weights.with_suffix(".json")
    settings = read_json(record).get("settings", {})
    try:
        augment, pairs = Augmentation(**settings["augment"]), settings["validation_pairs"]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{record}: does not say how its weights were trained") from None
    seen = measure(model, cohort, augment, device, 2 * pairs)
    tensors, metadata = load_tensors(weights)
    save_tensors(weights, tensors, metadata | {KEY: seen.dumps()})
    return seen
