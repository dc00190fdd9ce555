"""Which device numbers are computed on."""

from __future__ import annotations

import platform
import re

import torch

from odereg_core.errors import InputError


def choose_device(device: str) -> str:
    """`auto` is the GPU where there is one. Raises InputError for a device that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise AssertionError
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"there is no device '{device}' here; try auto or cpu") from None
    return device


def device_name(device: str) -> str:
    """The device as a reader knows it: the GPU's product name, or the processor's kind."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def synchronise(device: str) -> None:
    """Wait until a GPU has done all that it was asked for; a clock may be read then."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
