"""What all of a profile's trainings cost: real steps at its full size, extrapolated to all steps.

    python -m odereg_core.bench.cost --profile paper --device cuda
    python -m odereg_core.bench.cost --profile paper --only rigid:1,rigid:2   # what a CPU can do

The images are smooth noise within a brain-sized ellipsoid on the profile's grid: what a step costs
does not depend on what they show, except where an adaptive solver chooses its steps.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F

from odereg_core.cohort import CONTRASTS, Subject
from odereg_core.device import choose_device, device_name, synchronise
from odereg_core.errors import InputError, tells_faults
from odereg_core.grid import Grid
from odereg_core.profiles import Profile, load_profile
from odereg_core.similarity import content_similarity
from odereg_core.train.baselines import BaselineTrainer
from odereg_core.train.gan import GanTrainer
from odereg_core.train.registration import Trainer


def subject(grid: Grid, seed: int = 0) -> Subject:
    """Four images in [0, 1] of smooth noise in an ellipsoid with semi-axes of 70, 85 and 65 mm."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, len(CONTRASTS), 12, 12, 10), generator=rng)
    noise = F.interpolate(coarse, grid.shape, mode="trilinear", align_corners=False)[0]
    radii = torch.tensor([70.0, 85.0, 65.0]).reshape(1, 3, 1, 1, 1)
    inside = (grid.points() / radii).square().sum(1) < 1
    return Subject("cost", noise.clamp(0.05, 1) * inside, None)


def stand_in(grid: Grid) -> SimpleNamespace:
    """What a training asks of a cohort, of one subject."""
    one = subject(grid)
    return SimpleNamespace(
        grid=grid, contrasts=CONTRASTS, names=lambda split: [one.name], load=lambda name: one
    )


def measured(work: Callable[[int], object], count: int, device: str) -> tuple[float, float]:
    """Seconds of one call, the mean of `count` after one that does not count, and the peak of
    memory in GiB (on the CPU: of the whole process until now)."""
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    work(0)
    synchronise(device)
    start = time.perf_counter()
    for number in range(1, count + 1):
        work(number)
    synchronise(device)
    seconds = (time.perf_counter() - start) / count
    if cuda:
        return seconds, torch.cuda.max_memory_allocated(device) / 2**30
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def parts(profile: Profile) -> list[str]:
    """What `cost` measures: each encoder's training (`encoder`), each stage of every other one
    (`rigid:1`, `vm:2`), and each model's inference on one pair (`rigid:pair`)."""
    names = list(profile.encoders)
    for name in [*profile.models, *profile.baselines]:
        stages = len(profile.section(name).stages)  # type: ignore[union-attr]
        names += [f"{name}:{number}" for number in range(1, stages + 1)]
        names += [f"{name}:pair"] * (name in profile.models)
    return names


def trainer_of(profile: Profile, name: str, cohort: Any, device: str) -> Trainer | BaselineTrainer:
    """The training of a model or baseline, beside an untrained encoder where it needs one."""
    section = profile.section(name).model_copy(update={"validation_pairs": 1})
    encoder = None
    if "encoder" in profile.needed_for(name):
        encoder = GanTrainer(profile.encoders["encoder"], cohort, device).translator
    if name in profile.baselines:
        return BaselineTrainer(section, cohort, device, encoder)
    similarity = encoder and content_similarity(encoder).requires_grad_(False)
    one = profile.model_copy(update={"models": {name: section}})
    return Trainer(name, one, cohort, device, similarity)


def cost(profile: Profile, device: str, count: int = 3, only: Sequence[str] = ()) -> pd.DataFrame:
    """A line for each of `parts`, or of those in `only`: seconds, peak GiB, steps, hours.

    Raises InputError for a part that there is not.
    """
    known = parts(profile)
    if unknown := [name for name in only if name not in known]:
        raise InputError(f"no part '{unknown[0]}' of {profile.name}; there are: {', '.join(known)}")
    wanted = only or known
    cohort = stand_in(profile.working_grid)
    lines = []

    def add(name: str, what: str, work: Callable[[int], object], steps: int | None) -> None:
        seconds, peak = measured(work, count, device)
        hours = None if steps is None else seconds * steps / 3600
        lines.append([name, what, seconds, peak, steps, hours])

    for name, section in profile.encoders.items():
        if name in wanted:
            gan = GanTrainer(section.model_copy(update={"validation_pairs": 1}), cohort, device)
            add(name, f"GAN, batch {section.batch}", gan.step, section.steps)
    for name, section in (profile.models | profile.baselines).items():
        if not any(part.startswith(f"{name}:") for part in wanted):
            continue
        trainer = trainer_of(profile, name, cohort, device)
        for number, stage in enumerate(section.stages, 1):
            if f"{name}:{number}" in wanted:
                what = f"{stage.objective}, {stage.scales} scales, batch {stage.batch}"
                first = trainer.schedule.starts[number - 1]
                add(
                    f"{name}:{number}", what,
                    lambda n, a=first, t=trainer: t.step(a + n), stage.steps,
                )  # fmt: skip
        if f"{name}:pair" in wanted:
            pair = trainer.pairs[0].to(device)
            trainer.model.eval()
            with torch.no_grad():
                add(
                    f"{name}:pair", "registers one pair",
                    lambda _, m=trainer.model, p=pair: m(p.moving, p.fixed), None,
                )  # fmt: skip
    columns = ["part", "what", "seconds", "peak GiB", "steps", "hours"]
    return pd.DataFrame(lines, columns=columns)


@tells_faults
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m odereg_core.bench.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", default="paper", help="a profile or its file")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=3, help="measured, after one more")
    parser.add_argument("--only", default="", help="parts, by commas: rigid:1,rigid:pair,encoder")
    options = parser.parse_args(argv)
    profile, device = load_profile(options.profile), choose_device(options.device)
    only = [name.strip() for name in options.only.split(",") if name.strip()]
    table = cost(profile, device, max(1, options.steps), only)
    print(table.to_string(index=False, float_format=lambda v: f"{v:.3g}", na_rep="–"))
    hours, of = table["hours"].sum(), "these parts" if only else "all trainings"
    print(f"{hours:.1f} hours for {of}; profile {profile.name}, {device_name(device)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
