"""Several processes that train one model, through Lightning Fabric: each takes its share of every
batch, and their gradients are averaged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from odereg_core.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Team:
    """The processes of a training; without a Fabric, this one alone.

    Every process draws the whole batch from the step's own generator, so a step means the same for
    any number of them. Its gradient is the single process's for the warm-ups, and for the losses
    of a rigid map with solvers of fixed steps; the losses of a deformation weigh by each process's
    own foreground, content codes are compared where its own images have one, and VoxelMorph's cells
    lie as its own heads do.
    """

    fabric: Fabric | None = None

    @property
    def size(self) -> int:
        return self.fabric.world_size if self.fabric else 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.fabric is None or self.fabric.is_global_zero

    def share(self, count: int) -> Tensor:
        """Which of `count` examples are this process's. Raises InputError where they cannot be
        dealt evenly."""
        if count % self.size:
            raise InputError(f"{count} examples of a batch cannot be shared by {self.size} devices")
        rank = self.fabric.global_rank if self.fabric else 0
        return torch.arange(count)[rank :: self.size]

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """The gradients' mean over all processes, in place."""
        if self.fabric is None or self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                mean = self.fabric.all_reduce(parameter.grad, reduce_op="mean")
                parameter.grad.copy_(mean)  # type: ignore[arg-type]


def assemble(device: str, devices: int) -> tuple[str, Team]:
    """Start `devices` processes, each with its own device, and return this one's device and team.

    `device` is cpu or cuda. With one device nothing is started.
    """
    if devices == 1:
        return device, Team()
    from lightning_fabric import Fabric

    kind = torch.device(device).type
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise InputError(f"{devices} GPUs are asked for, {torch.cuda.device_count()} are here")
    fabric = Fabric(accelerator=kind, devices=devices, strategy="ddp")
    fabric.launch()
    return str(fabric.device), Team(fabric)
