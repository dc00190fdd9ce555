"""Trained models on disk: safetensors with the model's description in the header, never pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch

from odereg_core.errors import InputError
from odereg_core.files import load_metadata, load_tensors, save_tensors
from odereg_core.msodenet import MSODENet
from odereg_core.networks.disentangle import Disentangler
from odereg_core.networks.regression import Rcn, VoxelMorph
from odereg_core.similarity import ContentSimilarity, content_similarity

HERE = Path(__file__).parent

Model = TypeVar("Model", MSODENet, Disentangler, VoxelMorph, Rcn)
KINDS = {kind.FORMAT: kind for kind in (MSODENet, Disentangler, VoxelMorph, Rcn)}
"""The kinds of model by the format of their weights."""


def weights_of(models: Path, name: str) -> Path:
    """The weights file of a model in a folder of models."""
    return models / f"{name}.safetensors"


def describe(model: Model) -> dict:
    """What is needed to build the model again, its format included."""
    return {"format": model.FORMAT, **model.describe()}


def save_model(path: Path, model: Model, metadata: Mapping[str, str] | None = None) -> None:
    """Write the model, weights in float16 (they lose nothing that a registration would show)."""
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_tensors(path, tensors, {"model": json.dumps(describe(model)), **(metadata or {})})


def kind_of(path: Path) -> type[MSODENet | Disentangler | VoxelMorph | Rcn]:
    """The kind of model that a weights file says it holds. Raises InputError where it is missing,
    damaged or none of ours."""
    metadata = load_metadata(path)
    try:
        found = json.loads(metadata["model"])["format"]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: not the weights of any model") from None
    if found not in KINDS:
        raise InputError(f"{path}: weights of format {found!r}; known: {', '.join(KINDS)}")
    return KINDS[found]


def load_model(
    path: Path, device: torch.device | str = "cpu", kind: type[Model] = MSODENet
) -> Model:
    """The model of a weights file, ready for inference; `kind` says which is expected.

    Raises InputError, naming the file, where it is missing, damaged or of another format.
    """
    tensors, metadata = load_tensors(path)
    try:
        spec = json.loads(metadata["model"])
        if (found := spec.pop("format")) != kind.FORMAT:
            raise InputError(
                f"{path}: weights of format {found!r}, {kind.FORMAT!r} is what is needed here"
            )
        model = kind.build(spec)
        model.load_state_dict(tensors)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: not the weights of a {kind.__name__} ({str(error).splitlines()[0]})"
        ) from None
    return model.float().to(device).eval()


def shipped(name: str) -> Path:
    """The weights file that came with the package. Raises InputError where there is none."""
    path = weights_of(HERE, name)
    if not path.exists():
        raise InputError(
            f"no weights of '{name}' come with this version: train them, or name a file"
        )
    return path


def load_content(path: Path, device: torch.device | str = "cpu") -> ContentSimilarity:
    """L_sim of Eq. 4 by the encoder of a weights file, frozen. Raises InputError as `load_model`
    does."""
    return content_similarity(load_model(path, device, Disentangler)).requires_grad_(False)
