"""Profiles: one YAML file says everything a run depends on.

`smoke` is for CI, `demo` for a laptop, `paper` for BraTS 2020 and a GPU; a file of one's own may
start `extends: demo` and name only what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from odereg_core.errors import InputError
from odereg_core.grid import Grid
from odereg_core.ode import Solver
from odereg_core.transforms import TRANSFORMS

HERE = Path(__file__).parent
BUILT_IN = tuple(sorted(path.stem for path in HERE.glob("*.yaml")))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _parsed(solvers: tuple[str, ...]) -> tuple[str, ...]:
    for solver in solvers:
        Solver.parse(solver)
    return solvers


Solvers = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_parsed)]
"""Solvers as the paper writes them, one a scale."""
BASELINE_SCALES = 3
"""A baseline's stages name scales as MS-ODENet's do: at 3 its network sees the working grid, at 2
half its resolution."""
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class GridSection(_Section):
    """The working grid: voxels, and their size in mm."""

    shape: tuple[int, int, int]
    spacing: float = Field(gt=0)


class CohortSection(_Section):
    """The embedded cohort: subjects, voxel size in mm, seed."""

    subjects: int = Field(ge=3)
    spacing: float = Field(gt=0)
    seed: Seed


class SplitSection(_Section):
    """Subjects held out for validation and for test; the rest train."""

    val: int = Field(ge=1)
    test: int = Field(ge=1)
    seed: Seed


class Stage(_Section):
    """One stage of training.

    `objective: velocity` trains the network of scale `scales` alone, on velocities drawn with the
    states they belong to, without a solve; `losses` trains the coarsest `scales` scales through
    the solver, on the paper's loss. `affine`, for RCN: its affine network alone, before all of it
    is trained together. `displacement`, for VoxelMorph: the drawn motion itself, as `velocity`
    teaches it to ours.
    """

    objective: Literal["velocity", "losses", "affine", "displacement"] = "losses"
    scales: int = Field(ge=1)
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    lr: float = Field(gt=0)
    decay: float = Field(0.05, ge=0, le=1)
    """The last learning rate over the first, down a half cosine; 1 keeps it constant."""
    solvers: Solvers | None = None
    """For `losses`: what it trains through in place of the model's own, which validate it."""
    left: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.05, 1.0)
    """For `velocity`: what a state has left to do, as shares of a whole motion."""
    solved: float = Field(0.0, ge=0, le=1)
    """For `velocity`: the share of states that are where the network's own solve has come to."""
    floor_mm: float = Field(1.0, gt=0)
    """For `velocity` and `displacement`: errors weigh relative to what is left, plus this."""


def _checked(stages: tuple[Stage, ...], warm_up: str) -> tuple[Stage, ...]:
    """The stages of a network that knows one objective beside `losses`."""
    for stage in stages:
        if stage.objective not in ("losses", warm_up):
            raise ValueError(f"no objective '{stage.objective}' for this network")
    return stages


class Augmentation(_Section):
    """What one image may look like twice: see `odereg_core.train.augment`.

    `contrast`, `blur` and `erode` are chances; `bias` is the deviation of the field's logarithm,
    `noise` its largest deviation in the image's range of [0, 1], `stretch` relative.
    """

    contrast: float = Field(default=1.0, ge=0, le=1)
    knots: int = Field(default=7, ge=2)
    """Of the random intensity map: the more, the less of a tissue's own texture it leaves."""
    bias: float = Field(default=0.3, ge=0)
    noise: float = Field(default=0.03, ge=0)
    blur: float = Field(default=0.5, ge=0, le=1)
    erode: float = Field(default=0.5, ge=0, le=1)
    stretch: float = Field(default=0.05, ge=0, le=0.3)


class MotionSection(_Section):
    """P_theta of L_self: U(±deg), U(±mm), N(0, mm^2) at control points.

    `mixed`: the share of examples that are as the cascades meet them (see
    `odereg_core.train.draws.motion`).
    """

    rotation_deg: float = Field(ge=0, le=90)
    translation_mm: float = Field(ge=0)
    control_mm: float = Field(ge=0)
    mixed: float = Field(default=0.4, ge=0, le=1)


class _TrainingSection(_Section):
    """What every training has."""

    seed: Seed = 0
    augment: Augmentation = Field(default_factory=Augmentation)
    precision: Literal["float32", "bf16"] = "float32"
    validate_every: int = Field(200, ge=1)
    validation_pairs: int = Field(24, ge=1)


class ModelSection(_TrainingSection):
    """One MS-ODENet and its training."""

    solvers: Solvers
    time: float = Field(3.0, gt=0)
    gain: Annotated[float, Field(gt=0)] | tuple[Annotated[float, Field(gt=0)], ...] = 10.0
    """How fast the networks' velocities are followed; see `MSODENet`."""
    adjoint: Literal["aca", "backprop", "adjoint"] = "aca"
    network: dict[str, Annotated[int, Field(ge=0)]] = {}
    stages: tuple[Stage, ...] = Field(min_length=1)
    motion: MotionSection
    similarity: Literal["content", "mi", "none"] = "none"
    lambda_self: float = Field(1.0, ge=0)
    lambda_reg: float = Field(0.0, ge=0)

    @field_validator("stages")
    @classmethod
    def _known_objectives(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return _checked(stages, "velocity")

    @field_validator("gain")
    @classmethod
    def _gain_of_every_scale(
        cls, gain: float | tuple[float, ...], info: ValidationInfo
    ) -> float | tuple[float, ...]:
        scales = len(info.data.get("solvers", ()))
        if isinstance(gain, tuple) and len(gain) != scales:
            raise ValueError(f"{len(gain)} gains for {scales} scales; one for all, or one a scale")
        return gain


class EncoderSection(_TrainingSection):
    """The disentangling GAN of section 2.2 and its training; see `odereg_core.train.gan`."""

    network: dict[str, Annotated[int, Field(ge=0)]] = {}
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    lr: float = Field(1e-4, gt=0)
    critic_steps: int = Field(5, ge=1)
    penalty: float = Field(10.0, ge=0)
    """Weight of the gradient penalty; 0 clips the critics' weights to ±0.01 as in [2]."""
    noise: float = Field(1.0, ge=0)
    """Of the content codes that G sees in training; their own variance is 1."""
    cycle: float = Field(10.0, ge=0)
    image: float = Field(10.0, ge=0)
    features: float = Field(10.0, ge=0)
    adversarial: float = Field(1.0, ge=0)
    content_adversarial: float = Field(1.0, ge=0)
    invariance: float = Field(0.0, ge=0)
    """Weight of our own term: the content of an image is that of its augmented copy."""
    recolour: float = Field(0.0, ge=0)
    """Weight of another: the augmented copy's content in the image's style is the image."""


class BaselineSection(_TrainingSection):
    """A learned baseline of Table 1 and its training; see `odereg_core.train.baselines`.

    `smooth_mm`: the Gaussian over each dense network's displacement. `told`: a VoxelMorph that is
    told the Gauss-Newton step (not the paper's).
    `translated`: it sees moving images as the encoder translates them, of `translated` training
    subjects; 0 for the images themselves. `start`: the baseline whose weights it starts from, an
    RCN's cascades from a VoxelMorph's; what that one saw counts among its samples.
    """

    network: Literal["voxelmorph", "rcn"]
    task: Literal["rigid", "deformable", "hybrid"]
    similarity: Literal["mi", "ncc"]
    smooth_mm: float = Field(24.0, gt=0)
    told: bool = False
    translated: int = Field(0, ge=0)
    start: str | None = None
    stages: tuple[Stage, ...] = Field(min_length=1)
    motion: MotionSection
    lambda_reg: float = Field(1.0, ge=0)

    @field_validator("stages")
    @classmethod
    def _known_objectives(
        cls, stages: tuple[Stage, ...], info: ValidationInfo
    ) -> tuple[Stage, ...]:
        return _checked(stages, "affine" if info.data.get("network") == "rcn" else "displacement")

    @model_validator(mode="after")
    def _voxelmorph_is_told(self) -> BaselineSection:
        if self.told and self.network != "voxelmorph":
            raise ValueError("only a VoxelMorph can be 'told'")
        return self


class EvaluationSection(_Section):
    """The test pairs: `pairs` of them by default, `fig4` for a model of Fig. 4 (0: all), their
    motions drawn from `seed`."""

    pairs: int = Field(ge=0)
    fig4: int = Field(ge=0)
    seed: Seed


class Profile(_Section):
    """A run: data, models, evaluation."""

    name: str
    grid: GridSection
    cohort: CohortSection | None = None
    split: SplitSection
    weights: Literal["shipped", "train"]
    models: dict[str, ModelSection]
    """By the name of their transform."""
    encoders: dict[str, EncoderSection] = {}
    baselines: dict[str, BaselineSection] = {}
    evaluation: EvaluationSection

    @cached_property
    def working_grid(self) -> Grid:
        """The grid all images are brought to."""
        return Grid(self.grid.shape, (self.grid.spacing,) * 3)

    @field_validator("models")
    @classmethod
    def _known_transforms(cls, models: dict[str, ModelSection]) -> dict[str, ModelSection]:
        if unknown := [name for name in models if name not in TRANSFORMS]:
            raise ValueError(f"no transform '{unknown[0]}'; there are: {', '.join(TRANSFORMS)}")
        return models

    @field_validator("baselines")
    @classmethod
    def _known_starts(cls, baselines: dict[str, BaselineSection]) -> dict[str, BaselineSection]:
        for name, baseline in baselines.items():
            start = baselines.get(baseline.start or name)
            if start is None or start.network not in (baseline.network, "voxelmorph"):
                raise ValueError(f"'{name}' cannot start from '{baseline.start}'")
        return baselines

    @model_validator(mode="after")
    def _scales_fit(self) -> Profile:
        for name, model in self.models.items():
            scales = len(model.solvers)
            self.working_grid.pyramid(scales)
            for number, stage in enumerate(model.stages, start=1):
                if stage.scales > scales or len(stage.solvers or model.solvers) != scales:
                    raise ValueError(f"{name}: stage {number} does not fit {scales} scales")
        for name, baseline in self.baselines.items():
            for stage in baseline.stages:
                if stage.scales > BASELINE_SCALES:
                    raise ValueError(f"{name}: a baseline's scales are 1 to {BASELINE_SCALES}")
        return self

    def section(self, model: str) -> EncoderSection | ModelSection | BaselineSection:
        """What it says of one model's training."""
        return {**self.models, **self.encoders, **self.baselines}[model]

    def needed_for(self, model: str) -> tuple[str, ...]:
        """The models that have to be trained before one: the encoder of its loss, and what it
        starts from."""
        if model in self.encoders:
            return ()
        if model in self.models:
            return ("encoder",) if self.models[model].similarity == "content" else ()
        baseline = self.baselines[model]
        translator = ("encoder",) if baseline.translated else ()
        return (*translator, baseline.start) if baseline.start else translator


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over`, mappings within mappings merged likewise; both untouched."""
    result = deepcopy(dict(base))
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else deepcopy(value)
    return result


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: there is no such profile; built in: {', '.join(BUILT_IN)}"
        ) from None
    except yaml.MarkedYAMLError as error:
        at = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        what = error.problem or error.context
        raise InputError(f"{path}: not a readable YAML file ({at}{what})") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: not a readable YAML file ({str(error).splitlines()[0]})"
        ) from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: a profile is a mapping of keys, this is a {type(data).__name__}")
    if "extends" not in data:
        return data
    if not isinstance(parent := data.pop("extends"), str):
        raise InputError(f"{path}: key 'extends': the name of a profile is needed")
    data.setdefault("name", path.stem)  # another's name would pass for that profile
    beside = path.parent / f"{parent.removesuffix('.yaml')}.yaml"
    return merged(_read(HERE / f"{parent}.yaml" if parent in BUILT_IN else beside), data)


def load_profile(name: str | Path) -> Profile:
    """The built-in profile of that name, or a profile from a YAML file.

    Raises InputError, naming file and key, for a missing file, an unknown key or a wrong type.
    """
    path = HERE / f"{name}.yaml" if str(name) in BUILT_IN else Path(name)
    try:
        return Profile(**_read(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        key, fault = f"key '{where}': " if where else "", first["msg"]
        raise InputError(f"{path}: {key}{fault[:1].lower()}{fault[1:]}") from None
    except RecursionError:
        raise InputError(f"{path}: a profile that extends itself") from None
    except TypeError:
        raise InputError(f"{path}: the keys of a profile are words") from None
