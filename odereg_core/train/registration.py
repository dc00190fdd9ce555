"""Self-supervised training of MS-ODENet (section 2.1, L_self), the coarse scales first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from odereg_core.cohort import Cohort
from odereg_core.files import provenance, write_json
from odereg_core.losses import self_loss
from odereg_core.metrics import rmse_phi
from odereg_core.motion import MOTIONS
from odereg_core.msodenet import MSODENet, pyramid
from odereg_core.ode import Solver
from odereg_core.pairs import Pair, pair_keys, simulate
from odereg_core.profiles import ModelSection, Profile, Stage
from odereg_core.train.augment import augment, uniform
from odereg_core.train.loop import Checkpoint, Log, run, step_generator
from odereg_core.warp import warp
from odereg_core.weights import save_model

TASKS = {"rigid": "rigid", "bspline": "deformable", "dense": "deformable"}
"""The task each parameterisation is trained and validated for."""


def build(transform: str, profile: Profile, section: ModelSection) -> MSODENet:
    """An untrained model as the profile describes it."""
    torch.manual_seed(section.seed)
    return MSODENet(
        transform,
        profile.working_grid,
        section.solvers,
        section.time,
        section.adjoint,
        **section.network,
    )


class Volumes:
    """Every training image, on one scale's grid and on the device: no file is read during
    training."""

    def __init__(self, cohort: Cohort, split: str, scales: int, total: int, device: str):
        factor = 2 ** (total - scales)
        images = []
        for name in cohort.names(split):
            whole = cohort.load(name).images
            pooled = F.avg_pool3d(whole[:, None], factor) if factor > 1 else whole[:, None]
            images.append(pooled.half())
        self.images = torch.cat(images).to(device)
        self.device = device

    def draw(self, batch: int, rng: torch.Generator) -> Tensor:
        """Random images (B, 1, X, Y, Z) of any contrast, mirrored left to right half the time."""
        index = torch.randint(len(self.images), (batch,), generator=rng)
        flip = (torch.rand(batch, generator=rng) < 0.5).to(self.device)
        chosen = self.images[index.to(self.device)].float()
        return torch.where(flip[:, None, None, None, None], chosen.flip(2), chosen)


@dataclass
class Trainer:
    """One model's training on one cohort; `train` runs it."""

    transform: str
    profile: Profile
    cohort: Cohort
    device: str

    def __post_init__(self) -> None:
        self.section = self.profile.models[self.transform]
        self.model = build(self.transform, self.profile, self.section).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.section.stages[0].lr)
        self.ends = [0]
        for stage in self.section.stages:
            self.ends.append(self.ends[-1] + stage.steps)
        self._volumes: tuple[int, Volumes] | None = None
        keys = pair_keys(
            self.cohort.names("val"),
            self.cohort.contrasts,
            TASKS[self.transform],
            self.section.validation_pairs,
        )
        loaded = {name: self.cohort.load(name) for name in {key.subject for key in keys}}
        self.pairs: list[Pair] = [
            simulate(self.cohort, loaded[key.subject], key, seed=1_000_000) for key in keys
        ]

    def stage(self, step: int) -> tuple[Stage, float]:
        """The stage that a step falls into and how far through it the step is, in [0, 1)."""
        i = next(i for i, end in enumerate(self.ends[1:]) if step < end)
        return self.section.stages[i], (step - self.ends[i]) / self.section.stages[i].steps

    def use(self, stage: Stage) -> Volumes:
        """Set the model and the data for a stage."""
        self.model.solvers = [Solver.parse(s) for s in stage.solvers or self.section.solvers]
        if self._volumes is None or self._volumes[0] != stage.scales:
            self._volumes = None
            volumes = Volumes(self.cohort, "train", stage.scales, self.model.scales, self.device)
            self._volumes = (stage.scales, volumes)
        return self._volumes[1]

    def motion(self, batch: int, like: Tensor, rng: torch.Generator) -> Tensor:
        """theta~ of L_self: uniform over the task's range (its own draw, never an evaluation
        motion)."""
        task = MOTIONS[TASKS[self.transform]]
        limits = torch.tensor([math.radians(task.rotation_deg)] * 3 + [task.translation_mm] * 3)
        return uniform((batch, 6), -1.0, 1.0, like, rng) * limits.to(like.device)

    def step(self, number: int) -> dict[str, float]:
        """One step of Adam on L_self."""
        stage, progress = self.stage(number)
        volumes = self.use(stage)
        for group in self.optimizer.param_groups:
            group["lr"] = stage.lr * (
                stage.decay + (1 - stage.decay) * (1 + math.cos(math.pi * progress)) / 2
            )
        rng = step_generator(self.section.seed, number)
        image = volumes.draw(stage.batch, rng)
        grid = self.model.grids[stage.scales - 1]
        theta = self.motion(stage.batch, image, rng)
        moving = augment(image, self.section.augment, rng)
        target = augment(image, self.section.augment, rng)
        fixed = warp(target, self.model.transform.displacement(theta, grid), grid)
        self.model.train()
        with torch.autocast(
            torch.device(self.device).type, torch.bfloat16, self.section.precision == "bf16"
        ):
            result = self.model(moving, fixed, scales=stage.scales)
        loss = self_loss(result.theta, theta, self.model.transform)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return {"loss": float(loss.detach()), "nfe": result.nfe}

    @torch.no_grad()
    def validate(self, scales: int) -> dict[str, float]:
        """RMSE(phi) on the validation pairs, cross-contrast, registered by the coarsest scales."""
        self.model.eval()
        errors, evaluations = [], 0
        below = self.model.scales - scales
        for pair in self.pairs:
            moving, fixed = (
                pyramid(image.to(self.device), below + 1)[0] for image in (pair.moving, pair.fixed)
            )
            result = self.model(moving, fixed, scales=scales)
            theta = self.model.transform.resample(result.theta, result.grids[-1], pair.grid)
            u = self.model.transform.displacement(theta, pair.grid).cpu()
            errors.append(float(rmse_phi(u, pair.displacement, pair.brain)))
            evaluations += result.nfe
        error = torch.tensor(errors)
        return {
            "rmse_phi_mm": float(error.mean()),
            "median_mm": float(error.median()),
            "val_nfe": evaluations / len(errors),
        }


def train(
    transform: str, profile: Profile, cohort: Cohort, out: Path, device: str, command: str = ""
) -> Path:
    """Train a model and write `<transform>.safetensors`, its provenance `.json` and `.log.csv`
    to `out`.

    Goes on from `<transform>.checkpoint.safetensors` where there is one; on the CPU the result is
    then the same to the bit as an uninterrupted run's. Returns the weights file.
    """
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(transform, profile, cohort, device)
    checkpoint = Checkpoint(
        out / f"{transform}.checkpoint.safetensors", trainer.model, trainer.optimizer
    )
    checkpoint.load()
    log = Log(out / f"{transform}.log.csv", checkpoint.step)
    total = trainer.ends[-1]
    run(
        checkpoint,
        log,
        total,
        trainer.step,
        lambda: trainer.validate(trainer.stage(checkpoint.step - 1)[0].scales),
        trainer.section.validate_every,
        tuple(trainer.ends[1:]),
        title=f"{transform} ({profile.name})",
    )
    trainer.model.solvers = [Solver.parse(s) for s in trainer.section.solvers]
    weights = out / f"{transform}.safetensors"
    save_model(weights, trainer.model)
    write_json(
        weights.with_suffix(".json"),
        {
            "command": command,
            "profile": profile.name,
            "settings": trainer.section.model_dump(mode="json"),
            "cohort": cohort.settings,
            "training_subjects": len(cohort.names("train")),
            "steps": total,
            "samples": sum(stage.steps * stage.batch for stage in trainer.section.stages),
            "seconds": round(checkpoint.seconds, 1),
            "validation_rmse_phi_mm": checkpoint.best_score,
            "validation_curve": [[row["step"], row["rmse_phi_mm"]] for row in log.rows],
            **provenance(device),
        },
    )
    return weights
