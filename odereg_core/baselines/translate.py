"""Image-to-image translation of whole volumes by the GAN, for the "+I2I" baselines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from odereg_core.baselines.base import Outcome, Register
from odereg_core.errors import InputError
from odereg_core.grid import Grid
from odereg_core.networks.disentangle import Disentangler
from odereg_core.similarity import pad_to_multiple, stacks

Volume = Float[Tensor, "1 1 x y z"]


@torch.no_grad()
def translate(
    model: Disentangler, volume: Volume, target: int, like: Volume, batch: int = 16
) -> Volume:
    """A volume of any contrast as contrast number `target` would show it, in [0, 1].

    Every slice along each of the three axes is translated as the middle of its stack, and the three
    passes are averaged. The style is that of `like`, a volume of the target contrast that need not
    be aligned: the mean over its slices. Outside the volume's foreground lies zero.
    """
    code = model.code(torch.tensor([target])).to(volume.device)
    total = torch.zeros_like(volume)
    for axis in range(3):
        size = volume.shape[axis + 2]
        wanted = like.movedim(axis + 2, 0).flatten(1).any(1).nonzero().flatten()
        shown = stacks(like, axis, wanted, model.slices)
        style = model.style(pad_to_multiple(shown, model.downs), code.expand(len(shown), -1))
        style = style.mean(0, keepdim=True)
        made = []
        for centres in torch.arange(size).split(batch):
            x = stacks(volume, axis, centres, model.slices)
            content = model.content(pad_to_multiple(x, model.downs))
            n = len(x)
            y = model.generator(content, style.expand(n, -1), code.expand(n, -1))
            made.append(y[:, model.slices // 2, : x.shape[2], : x.shape[3]])
        total += torch.cat(made).movedim(0, axis)[None, None]
    return torch.where(volume > 0, total / 3, 0.0)


@dataclass(frozen=True)
class Translated:
    """A "+I2I" baseline: `register`, with the moving image translated to the fixed one's contrast.

    Raises InputError for a contrast that the translator does not know.
    """

    model: Disentangler
    register: Register

    def __call__(
        self, moving: Tensor, fixed: Tensor, grid: Grid, contrasts: tuple[str, str]
    ) -> Outcome:
        if contrasts[1] not in self.model.contrasts:
            known = ", ".join(self.model.contrasts)
            raise InputError(f"no translation into '{contrasts[1]}': the encoder knows {known}")
        target = self.model.contrasts.index(contrasts[1])
        return self.register(translate(self.model, moving, target, fixed), fixed, grid, contrasts)
