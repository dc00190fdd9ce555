"""Trained models on disk: safetensors with the model's description in the header, never pickles."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from odereg_core.errors import InputError
from odereg_core.files import load_tensors, save_tensors
from odereg_core.grid import Grid
from odereg_core.msodenet import MSODENet

HERE = Path(__file__).parent
FORMAT = "odereg-msodenet-1"


def describe(model: MSODENet) -> dict:
    """What is needed to build the model again."""
    return {
        "format": FORMAT,
        "transform": model.transform.name,
        "shape": list(model.grids[-1].shape),
        "spacing": list(model.grids[-1].spacing),
        "solvers": [str(solver) for solver in model.solvers],
        "time": model.time,
        "network": model.network_options,
    }


def save_model(path: Path, model: MSODENet) -> None:
    """Write the model, weights in float16 (they lose nothing that a registration would show)."""
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_tensors(path, tensors, {"model": json.dumps(describe(model))})


def load_model(path: Path, device: torch.device | str = "cpu") -> MSODENet:
    """The model of a weights file, ready for inference.

    Raises InputError, naming the file, where it is missing, damaged or of another format.
    """
    tensors, metadata = load_tensors(path)
    try:
        spec = json.loads(metadata["model"])
        if spec["format"] != FORMAT:
            raise InputError(
                f"{path}: weights of format {spec['format']!r}, this version reads {FORMAT!r}"
            )
        grid = Grid(tuple(spec["shape"]), tuple(spec["spacing"]))
        model = MSODENet(spec["transform"], grid, spec["solvers"], spec["time"], **spec["network"])
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: not the weights of an MS-ODENet ({str(error).splitlines()[0]})"
        ) from None
    return model.float().to(device).eval()


def shipped(name: str) -> Path:
    """The weights file that came with the package. Raises InputError where there is none."""
    path = HERE / f"{name}.safetensors"
    if not path.exists():
        raise InputError(
            f"no weights of '{name}' come with this version: train them, or name a file"
        )
    return path
