"""Training of the learned baselines, as their authors train them: similarity of the warped and the
fixed image, plus regularity. Before it VoxelMorph may be taught the drawn motion itself, as our
models are in their warm-up."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from odereg_core.baselines.translate import translate
from odereg_core.cohort import Cohort, contrast_pairs
from odereg_core.grid import Grid
from odereg_core.losses import regularity, velocity_loss
from odereg_core.networks.disentangle import Disentangler
from odereg_core.networks.regression import Rcn, VoxelMorph
from odereg_core.profiles import BASELINE_SCALES, BaselineSection, Profile, Stage
from odereg_core.similarity import CrossCorrelation, MutualInformation
from odereg_core.train.augment import drawn_pair
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
    validation_pairs,
)
from odereg_core.train.team import Team
from odereg_core.transforms import BSpline, Dense, Rigid
from odereg_core.warp import averaged, warp
from odereg_core.weights import kind_of, load_model, save_model, weights_of


class Couples:
    """Training images of two contrasts of one subject, on the device: (moving, fixed) before any
    motion. With a translator, the moving ones are as it shows them in the fixed one's contrast."""

    def __init__(self, cohort: Cohort, device: str, translator: Disentangler | None, subjects: int):
        names = cohort.names("train")
        chosen = names[:subjects] if translator else names
        pairs = contrast_pairs(cohort.contrasts)
        self.index = [tuple(cohort.contrasts.index(c) for c in pair) for pair in pairs]
        self.images, self.moving = [], []
        for name in tqdm(chosen, desc="images", unit="subject", mininterval=2.0):
            images = cohort.load(name).images.to(device)
            self.images.append(images.half())
            if translator:
                shown = [
                    translate(translator, images[a][None, None], b, images[b][None, None])[:, 0]
                    for a, b in self.index
                ]
                self.moving.append(torch.cat(shown).half())

    def averaged(self, grid: Grid) -> Couples:
        """The same couples on a coarser grid of the pyramid."""
        coarse = copy(self)
        for name in ("images", "moving"):
            fine = getattr(self, name)
            setattr(coarse, name, [averaged(image.float()[None], grid)[0].half() for image in fine])
        return coarse

    def draw(self, batch: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch of couples (B, 1, X, Y, Z), mirrored left to right half the time."""
        moving, fixed = [], []
        for _ in range(batch):
            subject = int(torch.randint(len(self.images), (1,), generator=rng))
            pair = int(torch.randint(len(self.index), (1,), generator=rng))
            a, b = self.index[pair]
            own = self.images[subject]
            one = self.moving[subject][pair] if self.moving else own[a]
            both = torch.stack([one, own[b]]).float()
            if float(torch.rand(1, generator=rng)) < 0.5:
                both = both.flip(1)
            moving.append(both[None, :1])
            fixed.append(both[None, 1:])
        return torch.cat(moving), torch.cat(fixed)


@dataclass
class BaselineTrainer:
    """One baseline's training; `train` runs it.

    The similarity is that of the working grid's images at every stage: averaged, they tell
    alignment by a third as much, and interpolation alone then makes MI greater. Only the warm-ups,
    of RCN's affine network and to the drawn displacement, make do with their own scale's images, of
    an eighth of the voxels or fewer: they have to see as many as our models see.
    """

    section: BaselineSection
    cohort: Cohort
    device: str
    translator: Disentangler | None = None
    init: Path | None = None
    team: Team = field(default_factory=Team)

    def __post_init__(self) -> None:
        section, cohort = self.section, self.cohort
        torch.manual_seed(section.seed)
        if section.network == "voxelmorph":
            model = VoxelMorph(section.smooth_mm, section.told)
        else:
            model = Rcn(smooth_mm=section.smooth_mm)
        self.model = model.to(self.device)
        if self.init:
            begin(self.model, self.init)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=section.stages[0].lr)
        self.couples = Couples(cohort, self.device, self.translator, section.translated)
        self.coarse: dict[int, Couples] = {}
        self.grids = cohort.grid.pyramid(BASELINE_SCALES)
        self.transform = BSpline() if section.task == "deformable" else Rigid()
        self.schedule = Schedule(section.stages)
        mono = section.similarity == "ncc"
        self.similarity = CrossCorrelation() if mono else MutualInformation(bins=16)
        self.coarse_similarity = MutualInformation(bins=16, stride=1)
        self.pairs = []
        for each in validation_pairs(cohort, section.task, section.validation_pairs):
            pair = each.to(self.device)
            moving = pair.moving
            if self.translator:
                target = cohort.contrasts.index(pair.key.fixed)
                moving = translate(self.translator, moving, target, pair.fixed)
            self.pairs.append((pair, moving))

    def step(self, number: int) -> dict[str, float]:
        """One step of Adam."""
        section, (stage, _) = self.section, self.schedule.at(number)
        self.schedule.set_rate(self.optimizer, number)
        rng = step_generator(section.seed, number)
        grid, similarity, couples = self.cohort.grid, self.similarity, self.couples
        if stage.objective != "losses":
            grid, similarity = self.grids[stage.scales - 1], self.coarse_similarity
            if stage.scales not in self.coarse:
                self.coarse[stage.scales] = couples.averaged(grid)
            couples = self.coarse[stage.scales]
        one, two = couples.draw(stage.batch, rng)
        moving, fixed, drawn = drawn_pair(
            self.transform, section.motion, section.augment, grid, one, two, rng
        )
        mine = self.team.share(stage.batch).to(self.device)
        moving, fixed, truth = (x[mine] for x in (moving, fixed, drawn.displacement))
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with mixed_precision(self.device, section.precision):
            u, terms = self.found(moving, fixed, stage)
        if stage.objective == "displacement":
            inside = (fixed > 0).float()
            loss = velocity_loss(u, truth, Dense(), grid, inside, stage.floor_mm)
        else:
            terms["similarity"] = similarity(warp(moving, u, grid), fixed).mean()
            loss = terms["similarity"] + section.lambda_reg * terms["regularity"]
            loss = loss + 0.1 * terms.get("affine", 0.0)
        loss.backward()
        self.team.average(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return {"loss": float(loss.detach())} | {k: float(v.detach()) for k, v in terms.items()}

    def found(
        self, moving: Tensor, fixed: Tensor, stage: Stage
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """u on the images' grid, of what the network finds at a stage's resolution, and the
        penalties on it there."""
        grid = self.grids[stage.scales - 1]
        seen = averaged(moving, grid), averaged(fixed, grid)
        penalties = {}
        if isinstance(self.model, Rcn):
            cascades = 0 if stage.objective == "affine" else None
            u, matrix, parts = self.model.stages(*seen, grid, cascades)
            penalties["affine"] = affine_regularity(matrix)
        else:
            u = self.model(*seen, grid)
            parts = [u]
        each = (regularity(part, grid) for part in parts)
        penalties["regularity"] = sum(each, u.new_zeros(()))
        return F.interpolate(u, size=moving.shape[2:], mode="trilinear"), penalties

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """RMSE(phi) on the validation pairs, of what is found at the resolution `step` trains."""
        self.model.eval()
        stage, errors = self.schedule.at(step)[0], []
        for pair, moving in self.pairs:
            u, _ = self.found(moving, pair.fixed, stage)
            errors.append(pair.error_mm(u))
        error = torch.tensor(errors)
        return {"rmse_phi_mm": float(error.mean()), "median_mm": float(error.median())}


def begin(model: VoxelMorph | Rcn, init: Path) -> None:
    """Give a baseline the weights of one like it or, to each cascade of an RCN, a VoxelMorph's."""
    alone = isinstance(model, Rcn) and kind_of(init) is VoxelMorph
    for network in model.dense if alone else [model]:
        start_from(network, init)


def affine_regularity(matrix: Tensor) -> Tensor:
    """How far maps A (B, 3, 3) are from rigid: the sum over singular values s of s^2 + s^-2 - 2,
    plus (det A - 1)^2, as the affine stage of [32] is trained."""
    s = torch.linalg.svdvals(matrix).clamp_min(1e-3)
    stretch = (s.square() + s.pow(-2) - 2).sum(1)
    return (stretch + (torch.linalg.det(matrix) - 1).square()).mean()


def train(
    name: str,
    profile: Profile,
    cohort: Cohort,
    out: Path,
    device: str,
    command: str = "",
    encoder: Path | None = None,
    init: Path | None = None,
    team: Team | None = None,
) -> Path:
    """Train the baseline `name` of a profile: `<name>.safetensors`, its `.json` and `.log.csv` in
    `out`.

    A baseline on translated images takes `encoder`, or `encoder.safetensors` in `out`; one that
    starts from another's weights takes `init`, or that one's in `out`, with their `.json` beside
    them: what they saw counts among the samples. `team`: the processes that train together. Goes on
    from `<name>.checkpoint.safetensors` where there is one. Returns the weights file.
    """
    check(cohort, profile)
    section, team = profile.baselines[name], team or Team()
    for stage in section.stages:
        team.share(stage.batch)
    encoder = (encoder or weights_of(out, "encoder")) if section.translated else None
    translator = encoder and load_model(encoder, device, Disentangler)
    if section.start:
        init = init or weights_of(out, section.start)
    before = record_of(init)
    trainer = BaselineTrainer(section, cohort, device, translator, init, team)
    facts = origin(command, profile, section, cohort, device, init=init, encoder=encoder)
    fitted = fit(
        name,
        out,
        trainer.model,
        trainer.optimizer,
        trainer.schedule.ends,
        trainer.step,
        trainer.validate,
        section.validate_every,
        of=identity(facts),
        anew=trainer.schedule.anew,
        title=f"{name} ({profile.name})",
        leads=team.leads,
    )
    if not team.leads:
        return fitted.weights
    save_model(fitted.weights, trainer.model)
    fitted.write_record(
        facts,
        trainer.schedule.samples,
        device,
        before,
        processes=team.size,
        validation_rmse_phi_mm=fitted.best,
    )
    return fitted.weights
