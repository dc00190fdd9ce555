"""How unlike two images of one grid are, whatever their contrasts: L_sim of Eq. 4, and what it is
compared with, behind one signature.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odereg_core.descriptor import mind
from odereg_core.networks.disentangle import ContentEncoder, Disentangler

Image = Float[Tensor, "b 1 x y z"]


class Similarity(Protocol):
    """A dissimilarity of two batches of images in [0, 1] on one grid: one number an example,
    smaller is more alike. `rng` draws what is random in it, the same for both images; without it
    nothing is random."""

    def __call__(
        self, a: Image, b: Image, rng: torch.Generator | None = None
    ) -> Float[Tensor, " b"]: ...


def stacks(
    volume: Float[Tensor, "b 1 x y z"], axis: int, centres: Tensor, slices: int
) -> Float[Tensor, "n s h w"]:
    """Stacks of adjacent slices about the given centres along one axis, all examples' in a row.

    Past the volume's ends the last slice is repeated. H and W are the other two axes, in order.
    """
    offsets = torch.arange(slices, device=volume.device) - slices // 2
    index = (centres.to(volume.device)[:, None] + offsets).clamp(0, volume.shape[axis + 2] - 1)
    moved = volume[:, 0].movedim(axis + 1, 1)
    return moved[:, index].flatten(0, 1)


def pad_to_multiple(x: Float[Tensor, "n s h w"], downs: int) -> Float[Tensor, "n s h2 w2"]:
    """Zeros past the ends, to sizes that halve `downs` times."""
    rest = [(-size) % 2**downs for size in x.shape[2:]]
    return F.pad(x, (0, rest[1], 0, rest[0])) if any(rest) else x


class ContentSimilarity(nn.Module):
    """Eq. 4: mean squared difference of 3-D content, that of N stacks of slices on each axis.

    Gradients reach both images, and the encoder unless it is frozen. With `rng` the stacks lie
    anywhere that the second image has a foreground, without it evenly spaced there.
    """

    def __init__(self, encoder: ContentEncoder, slices: int, downs: int, stacks_an_axis: int = 5):
        super().__init__()
        self.encoder, self.slices, self.downs = encoder, slices, downs
        self.count = stacks_an_axis

    def centres(self, b: Image, axis: int, rng: torch.Generator | None) -> Tensor:
        """Where along an axis the stacks lie; the same for all of the batch."""
        inside = (b > 0).movedim(axis + 2, 0).flatten(1).any(1).nonzero().flatten()
        first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (0, 0)
        share = (torch.arange(self.count) + 0.5) / self.count
        if rng is not None:
            share = torch.rand(self.count, generator=rng)
        return first + (share * (last - first)).round().long()

    def codes(self, image: Image, axis: int, centres: Tensor) -> Float[Tensor, "b n c h w"]:
        """Content codes of stacks of every example."""
        x = stacks(image, axis, centres, self.slices)
        code = self.encoder(pad_to_multiple(x, self.downs))
        return code.unflatten(0, (len(image), len(centres)))

    def forward(
        self, a: Image, b: Image, rng: torch.Generator | None = None
    ) -> Float[Tensor, " batch"]:
        total = torch.zeros(len(a), device=a.device)
        for axis in range(3):
            centres = self.centres(b, axis, rng)
            difference = self.codes(a, axis, centres) - self.codes(b, axis, centres)
            total = total + difference.float().square().flatten(1).mean(1) / 3
        return total


def content_similarity(model: Disentangler, stacks_an_axis: int = 5) -> ContentSimilarity:
    """Eq. 4's metric by a trained E^c, on the model's device."""
    return ContentSimilarity(model.content, model.slices, model.downs, stacks_an_axis)


class MutualInformation:
    """Minus the mutual information [21] of the voxels where either image has a foreground.

    MONAI's, by Parzen windows, on every `stride`-th voxel of each axis.
    """

    def __init__(self, bins: int = 32, stride: int = 2):
        from monai.losses.image_dissimilarity import GlobalMutualInformationLoss

        self.loss, self.stride = GlobalMutualInformationLoss(num_bins=bins), stride

    def __call__(
        self, a: Image, b: Image, rng: torch.Generator | None = None
    ) -> Float[Tensor, " batch"]:
        step = (..., *(slice(None, None, self.stride),) * 3)
        values = []
        for one, two in zip(a[step], b[step], strict=True):
            inside = (one > 0) | (two > 0)
            values.append(self.loss(one[inside][None, None], two[inside][None, None]))
        return torch.stack(values)


class CrossCorrelation:
    """Minus the squared local correlation of two images of one contrast, over cubes of `size`
    voxels an edge: VoxelMorph's [5] mono-modal loss, MONAI's code."""

    def __init__(self, size: int = 7):
        from monai.losses.image_dissimilarity import LocalNormalizedCrossCorrelationLoss

        self.loss = LocalNormalizedCrossCorrelationLoss(kernel_size=size)

    def __call__(
        self, a: Image, b: Image, rng: torch.Generator | None = None
    ) -> Float[Tensor, " batch"]:
        return torch.stack([self.loss(one[None], two[None]) for one, two in zip(a, b, strict=True)])


class Mind:
    """Mean squared difference of the modality-independent neighbourhood descriptor [13].

    Six neighbours one voxel away, patches of 3^3 voxels, the descriptor scaled to a maximum of 1.
    """

    def descriptor(self, image: Image) -> Float[Tensor, "b 6 x y z"]:
        code = mind(image)
        return code / code.amax(1, keepdim=True)

    def __call__(
        self, a: Image, b: Image, rng: torch.Generator | None = None
    ) -> Float[Tensor, " batch"]:
        difference = self.descriptor(a) - self.descriptor(b)
        return difference.square().flatten(1).mean(1)
