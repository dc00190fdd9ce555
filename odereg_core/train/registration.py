"""Training of MS-ODENet (section 2.1): each scale warmed up alone, then all by the total loss."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from odereg_core.cohort import Cohort
from odereg_core.errors import InputError
from odereg_core.losses import regularity, self_loss, velocity_loss
from odereg_core.msodenet import MSODENet, pyramid
from odereg_core.ode import Solver, SolverError
from odereg_core.profiles import ModelSection, Profile, Stage
from odereg_core.seen import KEY
from odereg_core.similarity import MutualInformation, Similarity
from odereg_core.train.augment import augment, drawn_pair
from odereg_core.train.calibrate import measure
from odereg_core.train.draws import motion, state, stretch, uniform
from odereg_core.train.loop import (
    Schedule,
    check,
    fit,
    identity,
    mixed_precision,
    origin,
    record_of,
    start_from,
    step_generator,
    training_images,
    validation_pairs,
)
from odereg_core.train.team import Team
from odereg_core.transforms import affine_after
from odereg_core.warp import warp
from odereg_core.weights import load_content, save_model, weights_of

TASKS = {"rigid": "rigid", "bspline": "deformable", "dense": "deformable"}
"""The task each parameterisation is trained and validated for."""
UNDERWAY = 8, 0.4
"""Of the states that a network itself comes to in a warm-up: steps from the identity at most, and
how much of its velocity each takes. All of them leave a fiftieth of what it sees."""


def build(transform: str, profile: Profile, section: ModelSection) -> MSODENet:
    """An untrained model as the profile describes it. Raises InputError where there is none of its
    grid."""
    torch.manual_seed(section.seed)
    try:
        return MSODENet(
            transform,
            profile.working_grid,
            section.solvers,
            section.time,
            section.gain,
            section.adjoint,
            **section.network,
        )
    except (TypeError, ValueError, RuntimeError) as error:  # a size, or a name, that it has not
        raise InputError(f"the profile '{profile.name}': no model '{transform}': {error}") from None


class Volumes:
    """Every training image on one scale's grid."""

    def __init__(self, cohort: Cohort, scales: int, total: int, device: str):
        grid = cohort.grid.pyramid(total)[scales - 1]
        self.images, self.device = training_images(cohort, grid, device), device

    def draw(self, batch: int, rng: torch.Generator, crossed: int = 0) -> tuple[Tensor, Tensor]:
        """Two batches of images (B, 1, X, Y, Z), mirrored left to right half the time: the same
        image twice, but for the first `crossed`, which are two contrasts of one subject."""
        subjects, contrasts = self.images.shape[:2]
        subject = torch.randint(subjects, (batch,), generator=rng)
        first = torch.randint(contrasts, (batch,), generator=rng)
        step = torch.randint(1, contrasts, (batch,), generator=rng)
        second = torch.where(torch.arange(batch) < crossed, (first + step) % contrasts, first)
        flip = (torch.rand(batch, generator=rng) < 0.5).to(self.device)[:, None, None, None]

        def pick(contrast: Tensor) -> Tensor:
            chosen = self.images[subject.to(self.device), contrast.to(self.device)].float()
            return torch.where(flip, chosen.flip(1), chosen)[:, None]

        return pick(first), pick(second)


@dataclass
class Trainer:
    """One model's training on one cohort; `train` runs it."""

    transform: str
    profile: Profile
    cohort: Cohort
    device: str
    similarity: Similarity | None = None
    init: Path | None = None
    team: Team = field(default_factory=Team)

    def __post_init__(self) -> None:
        self.section = self.profile.models[self.transform]
        self.model = build(self.transform, self.profile, self.section).to(self.device)
        if self.init:
            start_from(self.model, self.init)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.section.stages[0].lr)
        self.schedule = Schedule(self.section.stages)
        self._volumes: tuple[int, Volumes] | None = None
        self.pairs = validation_pairs(
            self.cohort, TASKS[self.transform], self.section.validation_pairs
        )

    @cached_property
    def inherits(self) -> set[int]:
        """The first steps of the warm-ups that begin with the next coarser scale's network: those
        of a scale that nothing before has trained."""
        stages = self.section.stages
        if self.init:
            return set()
        return {
            start
            for i, (start, stage) in enumerate(zip(self.schedule.starts, stages, strict=True))
            if stage.objective == "velocity"
            and stage.scales > max((earlier.scales for earlier in stages[:i]), default=1)
        }

    def use(self, stage: Stage) -> Volumes:
        """Set the model and the data for a stage."""
        self.model.solvers = [Solver.parse(s) for s in stage.solvers or self.section.solvers]
        if self._volumes is None or self._volumes[0] != stage.scales:
            self._volumes = None
            volumes = Volumes(self.cohort, stage.scales, self.model.scales, self.device)
            self._volumes = (stage.scales, volumes)
        return self._volumes[1]

    def step(self, number: int) -> dict[str, float]:
        """One step of Adam."""
        stage, _ = self.schedule.at(number)
        volumes = self.use(stage)
        if number in self.inherits:
            networks = self.model.networks
            networks[stage.scales - 1].inherit(networks[stage.scales - 2])  # type: ignore[operator]
        self.schedule.set_rate(self.optimizer, number)
        rng = step_generator(self.section.seed, number)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        terms = (self.velocity if stage.objective == "velocity" else self.losses)(
            stage, volumes, rng
        )
        terms["loss"].backward()
        self.team.average(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return {name: float(value.detach()) for name, value in terms.items()}

    def velocity(self, stage: Stage, volumes: Volumes, rng: torch.Generator) -> dict[str, Tensor]:
        """Warm-up of one scale without a solve: at a drawn state, the velocity to the drawn motion.

        As flow matching (Lipman et al. 2023) does for generative ODEs: it costs one evaluation of f
        where a solve costs tens, and leaves to the losses what depends on the solver. The network
        learns the velocity that arrives in unit time; the model's gain, how fast it is followed.
        Of a stage's share `solved`, the states are where the network itself has come to.
        """
        i, transform = stage.scales - 1, self.model.transform
        grid, settings, batch = self.model.grids[i], self.section.motion, stage.batch
        one, two = volumes.draw(batch, rng)
        drawn, other = (motion(transform, settings, batch, grid, one, rng) for _ in range(2))
        theta = state(transform, drawn, other, 0.3 if i == 0 else 0.0, *stage.left, rng)
        linear = stretch(batch, self.section.augment.stretch, one, rng)
        moving = augment(one, self.section.augment, rng)
        seen = affine_after(drawn.displacement, grid, linear)
        fixed = warp(augment(two, self.section.augment, rng), seen, grid)
        t = (i + uniform((1,), 0.0, 1.0, one, rng)) * self.model.time / self.model.scales
        steps = int(torch.randint(1, UNDERWAY[0] + 1, (1,), generator=rng))
        solved = uniform((batch,), 0.0, 1.0, one, rng) < stage.solved
        mine = self.team.share(batch).to(self.device)
        moving, linear, fixed, theta, target, solved = (
            x[mine] for x in (moving, linear, fixed, theta, drawn.theta, solved)
        )

        network = self.model.networks[i]
        with mixed_precision(self.device, self.section.precision):
            known = network.known(fixed)  # type: ignore[operator]

        def velocity_at(theta: Tensor, some: Tensor | slice) -> Tensor:
            u = affine_after(transform.displacement(theta, grid), grid, linear[some])
            images = warp(moving[some], u, grid), fixed[some]
            with mixed_precision(self.device, self.section.precision):
                found = network(*images, t, *(part[some] for part in known))
            return found.float() * transform.unit(theta)

        if solved.any():
            on = torch.zeros_like(theta[solved])
            with torch.no_grad():
                for _ in range(steps):
                    on = on + UNDERWAY[1] * transform.rate(on, velocity_at(on, solved))
            theta[solved] = on
        velocity = velocity_at(theta, slice(None))
        # A theta that is no image of this grid is smooth: the coarsest grid measures it as well.
        inside, place = (fixed > 0).float(), grid
        if theta.shape[2:] != fixed.shape[2:]:
            inside, place = F.avg_pool3d(inside, 2**i), self.model.grids[0]
        loss = velocity_loss(
            velocity,
            transform.towards(theta, target),
            transform,
            place,
            inside,
            stage.floor_mm,
        )
        return {"loss": loss}

    def losses(self, stage: Stage, volumes: Volumes, rng: torch.Generator) -> dict[str, Tensor]:
        """The paper's total loss, through the solver: L_sim on pairs of two contrasts as they are,
        L_self on an image and its perturbed copy, L_reg on both."""
        section, transform, batch = self.section, self.model.transform, stage.batch
        grid = self.model.grids[stage.scales - 1]
        crossed = batch // 2 if self.similarity else 0
        one, two = volumes.draw(batch, rng, crossed)
        moving, fixed, drawn = drawn_pair(
            transform, section.motion, section.augment, grid, one, two, rng, crossed
        )
        mine = torch.cat([self.team.share(crossed), crossed + self.team.share(batch - crossed)])
        mine, crossed = mine.to(self.device), crossed // self.team.size
        moving, fixed, truth = (x[mine] for x in (moving, fixed, drawn.theta))
        with mixed_precision(self.device, self.section.precision):
            result = self.model(moving, fixed, scales=stage.scales)
        own = slice(crossed, None)
        inside = (fixed[own] > 0).float()
        terms = {"l_self": self_loss(result.theta[own], truth[own], transform, grid, inside)}
        loss = section.lambda_self * terms["l_self"]
        u = transform.displacement(result.theta, grid)
        if section.lambda_reg:
            terms["l_reg"] = regularity(u, grid)
            loss = loss + section.lambda_reg * terms["l_reg"]
        if self.similarity:
            warped = warp(moving[:crossed], u[:crossed], grid)
            with mixed_precision(self.device, self.section.precision):
                terms["l_sim"] = self.similarity(warped, fixed[:crossed], rng).mean()
            loss = loss + terms["l_sim"]
        return {"loss": loss, **terms, "nfe": torch.tensor(float(result.nfe))}

    @torch.no_grad()
    def validate(self, scales: int) -> dict[str, float]:
        """RMSE(phi) on the validation pairs, cross-contrast, registered by the coarsest scales with
        the model's own solvers, whatever a stage trains through."""
        self.model.eval()
        self.model.solvers = [Solver.parse(s) for s in self.section.solvers]
        errors, evaluations = [], 0
        below = self.model.scales - scales
        for pair in self.pairs:
            moving, fixed = (
                pyramid(image.to(self.device), below + 1)[0] for image in (pair.moving, pair.fixed)
            )
            u = torch.zeros_like(pair.displacement)
            with suppress(SolverError):  # a solve that does not end leaves a pair as it was
                result = self.model(moving, fixed, scales=scales)
                theta = self.model.transform.resample(result.theta, result.grids[-1], pair.grid)
                u = self.model.transform.displacement(theta, pair.grid).cpu()
                evaluations += result.nfe
            errors.append(pair.error_mm(u))
        error = torch.tensor(errors)
        return {
            "rmse_phi_mm": float(error.mean()),
            "median_mm": float(error.median()),
            "val_nfe": evaluations / len(errors),
        }


def similarity_of(section: ModelSection, encoder: Path | None, device: str) -> Similarity | None:
    """L_sim as the profile names it; the content encoder comes from a weights file, frozen."""
    if encoder:
        return load_content(encoder, device)
    return MutualInformation() if section.similarity == "mi" else None


def train(
    transform: str,
    profile: Profile,
    cohort: Cohort,
    out: Path,
    device: str,
    command: str = "",
    encoder: Path | None = None,
    init: Path | None = None,
    team: Team | None = None,
) -> Path:
    """Train a model and write `<transform>.safetensors`, its provenance `.json` and `.log.csv`
    to `out`.

    `encoder`: the weights of E^c for L_sim; `encoder.safetensors` in `out` unless given. `init`:
    weights of the same kind of model to start from rather than from none, their `.json` beside
    them: what they saw counts among the samples. `team`: the processes that train together (see
    `odereg_core.train.team.assemble`). Goes on from `<transform>.checkpoint.safetensors` where
    there is one; on the CPU the result is then the same to the bit as an uninterrupted run's.
    Returns the weights file. Raises InputError for settings that cannot train, and where a solve
    of the training does not end.
    """
    check(cohort, profile)
    section = profile.models[transform]
    needed = section.similarity == "content"
    encoder = (encoder or weights_of(out, "encoder")) if needed else None
    similarity = similarity_of(section, encoder, device)
    before = record_of(init)
    facts = origin(command, profile, section, cohort, device, init=init, encoder=encoder)
    team = team or Team()
    for stage in section.stages:  # rather now than after the hours before that stage
        compared = stage.objective == "losses" and similarity
        crossed = stage.batch // 2 if compared else 0
        if compared and not crossed:
            raise InputError(f"{transform}: a batch of 1 has no half for L_sim; 2 at least")
        for count in (crossed, stage.batch - crossed):
            team.share(count)
    trainer = Trainer(transform, profile, cohort, device, similarity, init, team)
    schedule = trainer.schedule
    try:
        fitted = fit(
            transform,
            out,
            trainer.model,
            trainer.optimizer,
            schedule.ends,
            trainer.step,
            lambda step: trainer.validate(schedule.at(step)[0].scales),
            section.validate_every,
            of=identity(facts),
            anew=schedule.anew,
            title=f"{transform} ({profile.name})",
            leads=team.leads,
        )
    except SolverError as error:
        raise InputError(f"{transform}: a solve of the training did not end ({error})") from None
    if not team.leads:
        return fitted.weights
    seen = measure(
        trainer.model.eval(), cohort, section.augment, device, 2 * section.validation_pairs
    )
    save_model(fitted.weights, trainer.model, {KEY: seen.dumps()})
    fitted.write_record(
        facts,
        schedule.samples,
        device,
        before,
        processes=team.size,
        validation_rmse_phi_mm=fitted.best,
    )
    return fitted.weights
