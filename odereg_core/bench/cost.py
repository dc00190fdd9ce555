"""What a profile's trainings cost: real steps at its full size, extrapolated to all of its steps.

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
from collections.abc import Callable
from types import SimpleNamespace

import pandas as pd
import torch
import torch.nn.functional as F

from odereg_core.cohort import CONTRASTS, Subject
from odereg_core.errors import InputError
from odereg_core.files import device_name
from odereg_core.grid import Grid
from odereg_core.profiles import Profile, load_profile
from odereg_core.registration import choose_device
from odereg_core.similarity import content_similarity
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
    for number in range(count + 1):
        if number == 1:
            if cuda:
                torch.cuda.synchronize(device)
            start = time.perf_counter()
        work(number)
    if cuda:
        torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - start) / count
    if cuda:
        return seconds, torch.cuda.max_memory_allocated(device) / 2**30
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def cost(profile: Profile, device: str, count: int = 3, only: tuple[str, ...] = ()) -> pd.DataFrame:
    """A line a stage of training (`rigid:1`, ..., `encoder`) and a model's inference on one pair
    (`rigid:pair`): seconds, peak GiB, steps, hours. `only`: these lines alone."""
    cohort = stand_in(profile.working_grid)
    lines = []

    def add(name: str, what: str, work: Callable[[int], object], steps: int | None) -> None:
        seconds, peak = measured(work, count, device)
        hours = None if steps is None else seconds * steps / 3600
        lines.append([name, what, seconds, peak, steps, hours])

    def wanted(name: str) -> bool:
        return not only or name in only

    if "encoder" in profile.encoders and wanted("encoder"):
        section = profile.encoders["encoder"]
        gan = GanTrainer(section.model_copy(update={"validation_pairs": 1}), cohort, device)
        add("encoder", f"GAN, batch {section.batch}", gan.step, section.steps)
    for name, section in profile.models.items():
        small = section.model_copy(update={"validation_pairs": 1})
        one = profile.model_copy(update={"models": {name: small}})
        names = [f"{name}:{i}" for i in range(1, len(section.stages) + 1)]
        if not any(map(wanted, [*names, f"{name}:pair"])):
            continue
        similarity = None
        if section.similarity == "content":
            gan = GanTrainer(profile.encoders["encoder"], cohort, device)
            similarity = content_similarity(gan.translator).requires_grad_(False)
        trainer = Trainer(name, one, cohort, device, similarity)
        starts = trainer.schedule.starts
        for label, stage, first in zip(names, section.stages, starts, strict=False):
            if wanted(label):
                what = f"{stage.objective}, {stage.scales} scales, batch {stage.batch}"
                add(label, what, lambda n, a=first, t=trainer: t.step(a + n), stage.steps)
        if wanted(f"{name}:pair"):
            pair = trainer.pairs[0].to(device)
            trainer.model.eval()
            with torch.no_grad():
                add(
                    f"{name}:pair", "registers one pair",
                    lambda _, m=trainer.model, p=pair: m(p.moving, p.fixed), None,
                )  # fmt: skip
    columns = ["part", "what", "seconds", "peak GiB", "steps", "hours"]
    return pd.DataFrame(lines, columns=columns)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m odereg_core.bench.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", default="paper", help="a profile or its file")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=3, help="measured, after one more")
    parser.add_argument("--only", default="", help="parts, by commas: rigid:1, rigid:pair, encoder")
    options = parser.parse_args(argv)
    try:
        profile, device = load_profile(options.profile), choose_device(options.device)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    only = tuple(filter(None, options.only.split(",")))
    table = cost(profile, device, max(1, options.steps), only)
    print(table.to_string(index=False, float_format=lambda v: f"{v:.3g}", na_rep="–"))
    total = table["hours"].sum()
    print(f"{total:.1f} hours in all; profile {profile.name}, {device_name(device)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
