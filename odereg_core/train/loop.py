"""What every training shares: steps that resume to the bit, a log, a bar, the best weights kept."""

from __future__ import annotations

import csv
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float16
from torch import Tensor, nn
from tqdm.auto import tqdm

from odereg_core.cohort import Cohort
from odereg_core.errors import InputError
from odereg_core.files import (
    atomic,
    commit,
    digest,
    load_tensors,
    provenance,
    read_json,
    save_tensors,
    sha256,
    write_json,
)
from odereg_core.grid import Grid
from odereg_core.msodenet import MSODENet
from odereg_core.networks.disentangle import Disentangler
from odereg_core.networks.regression import Rcn, VoxelMorph
from odereg_core.pairs import Pair, pair_keys, simulate
from odereg_core.profiles import BaselineSection, EncoderSection, ModelSection, Profile, Stage
from odereg_core.warp import averaged
from odereg_core.weights import load_model, weights_of

SEED = 1_000_000
"""Of the simulated motions that validate and calibrate: no evaluation pair is drawn from it."""


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step: a function of seed and step alone, so a resumed run needs
    no state."""
    return torch.Generator().manual_seed((seed << 32) + step)


def arithmetic(device: str, precision: str) -> str:
    """What a profile's `precision` comes to on a device: `bf16` only where the hardware has it.

    A CPU without such instructions imitates them, some fifty times slower than float32.
    """
    if precision == "bf16" and torch.device(device).type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        known = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        return "bf16" if known else "float32"
    return precision


def mixed_precision(device: str, precision: str) -> torch.autocast:
    """Autocast to bfloat16 where that is the `arithmetic`, nothing otherwise."""
    chosen = arithmetic(device, precision) == "bf16"
    return torch.autocast(torch.device(device).type, torch.bfloat16, chosen)


def check(cohort: Cohort, profile: Profile) -> None:
    """Raises InputError where a profile's models cannot be trained on this cohort."""
    cohort.expect(profile.working_grid, profile.name)
    for split in ("train", "val"):
        if not cohort.names(split):
            raise InputError(f"{cohort.folder}: no subject is for '{split}', so nothing can train")


def training_images(
    cohort: Cohort, grid: Grid, device: str
) -> Float16[Tensor, "subjects contrasts x y z"]:
    """Every training subject's images, averaged to a grid of the cohort's pyramid, on the device:
    no file is read during training."""
    names = cohort.names("train")
    # Filled where they stay: of 424 subjects at full size a list and its copy would be 60 GB.
    found = torch.empty(
        (len(names), len(cohort.contrasts), *grid.shape), dtype=torch.half, device=device
    )
    for images, name in zip(found, names, strict=True):
        images.copy_(averaged(cohort.load(name).images[None], grid)[0])
    return found


def start_from(model: MSODENet | Disentangler | VoxelMorph | Rcn, init: Path) -> None:
    """Give a model the weights of one like it. Raises InputError where kind, grid or network
    differ."""
    other = load_model(init, next(model.parameters()).device, type(model))
    theirs = other.describe()
    for key, ours in model.describe().items():
        if key not in ("solvers", "time", "gain", "smooth_mm") and theirs[key] != ours:
            raise InputError(f"{init}: its {key} is {theirs[key]}, that of the profile {ours}")
    try:
        model.load_state_dict(other.state_dict())
    except RuntimeError:
        raise InputError(f"{init}: it has not as many scales as the profile's model") from None


def origin(
    command: str,
    profile: Profile,
    section: EncoderSection | ModelSection | BaselineSection,
    cohort: Cohort,
    device: str,
    **weights: Path | None,
) -> dict[str, object]:
    """What any trained model's provenance begins with; `weights`: the files that it starts from or
    trains with."""
    return {
        "command": command,
        "profile": profile.name,
        "settings": section.model_dump(mode="json"),
        "arithmetic": arithmetic(device, section.precision),
        "cohort": cohort.settings,
        "training_subjects": len(cohort.names("train")),
        **{name: path and sha256(path) for name, path in weights.items()},
    }


def identity(facts: Mapping[str, object]) -> str:
    """A hash of what has to be the same for a training to go on: all of `origin` but the
    command."""
    return digest([], {key: value for key, value in facts.items() if key != "command"})


@dataclass(frozen=True)
class Schedule:
    """Stages one after the other."""

    stages: tuple[Stage, ...]

    @property
    def ends(self) -> tuple[int, ...]:
        """The step at which each stage is over; the last is the whole training's length."""
        return tuple(accumulate(stage.steps for stage in self.stages))

    @property
    def starts(self) -> tuple[int, ...]:
        """The first step of each stage."""
        return (0, *self.ends[:-1])

    @property
    def anew(self) -> tuple[int, ...]:
        """The ends after which something else is validated, of other scales or more networks, so
        that its scores compare with none before."""
        kinds = [(stage.scales, stage.objective == "affine") for stage in self.stages]
        changes = zip(self.ends, pairwise(kinds), strict=False)
        return tuple(end for end, (one, next_) in changes if one != next_)

    @property
    def samples(self) -> int:
        """Examples seen in all."""
        return sum(stage.steps * stage.batch for stage in self.stages)

    def at(self, step: int) -> tuple[Stage, float]:
        """The stage that a step falls into and how far through it the step is, in [0, 1)."""
        i = bisect_right(self.ends, step)
        return self.stages[i], (step - self.starts[i]) / self.stages[i].steps

    def set_rate(self, optimizer: torch.optim.Adam, step: int) -> None:
        """The learning rate of a step: down half a cosine in each stage."""
        stage, progress = self.at(step)
        fall = (1 + math.cos(math.pi * progress)) / 2
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * (stage.decay + (1 - stage.decay) * fall)


def record_of(init: Path | None) -> dict[str, Any]:
    """The record beside the weights that a training starts from; empty without any. Raises
    InputError where it does not say how many samples they have seen."""
    if init is None:
        return {}
    if not init.exists():
        raise InputError(f"{init}: there is no such file")
    record = init.with_suffix(".json")
    if "samples" not in (facts := read_json(record)):
        raise InputError(f"{record}: does not say how many samples its weights have seen")
    return facts


def validation_pairs(cohort: Cohort, task: str, count: int) -> list[Pair]:
    """Simulated pairs of validation subjects; their motions are no test pair's."""
    keys = pair_keys(cohort.names("val"), cohort.contrasts, task, count)
    return [simulate(cohort, key, SEED) for key in keys]


class Log:
    """A CSV of one line a validation; rows past the step resumed from are dropped."""

    def __init__(self, path: Path, resume_step: int):
        self.path = path
        self.rows: list[dict[str, float]] = []
        if resume_step and path.exists():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    numbers = {k: float(v) for k, v in row.items() if v}
                    self.rows.append(numbers | {"step": int(row["step"])})
            self.rows = [row for row in self.rows if row["step"] <= resume_step]

    def add(self, **row: float) -> None:
        self.rows.append(row)
        with atomic(self.path) as temporary, Path(temporary).open("w", newline="") as file:
            names = list(dict.fromkeys(name for row in self.rows for name in row))
            writer = csv.DictWriter(file, fieldnames=names)
            writer.writeheader()
            writer.writerows(self.rows)


class Checkpoint:
    """Weights, Adam's moments, best weights and the step, in one safetensors file; `of` names all
    that the training depends on."""

    def __init__(self, path: Path, model: nn.Module, optimizer: torch.optim.Adam, of: str = ""):
        self.path, self.model, self.optimizer, self.of = path, model, optimizer, of
        self.step, self.best_score, self.seconds = 0, float("inf"), 0.0
        self.best: dict[str, torch.Tensor] = {}

    def keep_best(self, score: float) -> None:
        """Keep the present weights if their score is the lowest so far."""
        if score < self.best_score:
            self.best_score = score
            self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def save(self) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        names = {p: name for name, p in self.model.named_parameters()}
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                tensors[f"adam.{names[parameter]}.{key}"] = value
        save_tensors(
            self.path,
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
            {
                "step": str(self.step),
                "best_score": repr(self.best_score),
                "seconds": repr(self.seconds),
                "of": self.of,
            },
        )

    def load(self) -> None:
        """Go on from the file if there is one. Raises InputError where it is damaged, or of another
        network or training."""
        if not self.path.exists():
            return
        tensors, metadata = load_tensors(self.path)
        if metadata.get("of") != self.of:
            raise InputError(
                f"{self.path}: a checkpoint of a training with other settings, data or start; "
                "remove it to begin anew"
            )
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "best": {}, "adam": {}}
        for name, value in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = value
        try:
            self.model.load_state_dict(parts["model"])
        except RuntimeError:
            raise InputError(
                f"{self.path}: a checkpoint of another network; remove it to begin anew"
            ) from None
        device = next(self.model.parameters()).device
        self.best = {k: v.to(device) for k, v in parts["best"].items()}
        for name, parameter in self.model.named_parameters():
            state = {
                key: parts["adam"][f"{name}.{key}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}.{key}" in parts["adam"]
            }
            if state:
                moments = {k: v if k == "step" else v.to(device) for k, v in state.items()}
                self.optimizer.state[parameter] = moments
        self.step = int(metadata["step"])
        self.best_score = float(metadata["best_score"])
        self.seconds = float(metadata["seconds"])


@dataclass(frozen=True)
class Fitted:
    """A finished training: where its weights go, and what its provenance says of it."""

    weights: Path
    best: float
    """The lowest score."""
    facts: dict[str, object]

    def write_record(
        self, facts: dict, samples: int, device: str, before: dict[str, Any], **more: object
    ) -> None:
        """The weights' `.json`. What the weights that it started from had seen counts among the
        samples, and their record stays, as `before`."""
        content = {
            **facts,
            "samples": before.get("samples", 0) + samples,
            **more,
            **self.facts,
            **provenance(device),
            **({"before": before} if before else {}),
        }
        write_json(self.weights.with_suffix(".json"), content)


def fit(
    name: str,
    out: Path,
    model: nn.Module,
    optimizer: torch.optim.Adam,
    ends: tuple[int, ...],
    step: Callable[[int], dict[str, float]],
    validate: Callable[[int], dict[str, float]],
    every: int,
    *,
    of: str,
    title: str,
    anew: tuple[int, ...] = (),
    score: str = "rmse_phi_mm",
    leads: bool = True,
) -> Fitted:
    """Train to the last step of `ends`, from `<name>.checkpoint.safetensors` in `out` where there
    is one, of the same training `of`.

    Every `every` steps and at those in `ends`, `validate` gets the number of the step just taken
    and returns its numbers; the lowest `score` among them marks the best weights. At a step in
    `ends` a stage is over and the best weights become the present ones; at one in `anew` the score
    starts over. Of several processes only the one that `leads` writes and shows anything.

    Raises InputError where the score is not a number any more, or the checkpoint is of another
    training.
    """
    commit()
    checkpoint = Checkpoint(out / f"{name}.checkpoint.safetensors", model, optimizer, of)
    checkpoint.load()
    log = Log(out / f"{name}.log.csv", checkpoint.step)
    started = time.monotonic() - checkpoint.seconds
    sums: dict[str, float] = {}
    count = 0
    with tqdm(
        total=ends[-1],
        initial=checkpoint.step,
        desc=title,
        unit="step",
        mininterval=2.0,
        disable=not leads,
    ) as bar:
        for number in range(checkpoint.step, ends[-1]):
            for key, value in step(number).items():
                sums[key] = sums.get(key, 0.0) + value
            count += 1
            checkpoint.step = number + 1
            bar.update()
            over = checkpoint.step in ends
            if checkpoint.step % every and not over:
                continue
            means = {key: value / count for key, value in sums.items()}
            sums, count = {}, 0
            numbers = validate(number)
            if not math.isfinite(numbers[score]):
                raise InputError(
                    f"{title}: {score} is {numbers[score]} at step {checkpoint.step}; "
                    "a smaller learning rate?"
                )
            checkpoint.keep_best(numbers[score])
            checkpoint.seconds = time.monotonic() - started
            if leads:
                log.add(step=checkpoint.step, seconds=checkpoint.seconds, **means, **numbers)
            bar.set_postfix({k: f"{v:.3g}" for k, v in (means | numbers).items()})
            if over:
                model.load_state_dict(checkpoint.best)
                if checkpoint.step in anew:
                    checkpoint.best_score = float("inf")
            if leads:
                checkpoint.save()
    facts = {
        "steps": ends[-1],
        "seconds": round(checkpoint.seconds, 1),
        "validation_curve": [[row["step"], row[score]] for row in log.rows],
    }
    return Fitted(weights_of(out, name), checkpoint.best_score, facts)
