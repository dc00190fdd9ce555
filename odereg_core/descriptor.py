"""The modality-independent neighbourhood descriptor: what a place looks like, whatever the
contrast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def neighbours(x: Float[Tensor, "b c x y z"], axis: int) -> Float[Tensor, "b c x y z"]:
    """The sum of both neighbours along an axis; beyond the edge lies zero."""
    padded, n = F.pad(x, [0, 0] * (4 - axis) + [1, 1]), x.shape[axis]
    return padded.narrow(axis, 0, n) + padded.narrow(axis, 2, n)


def box(x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b c x y z"]:
    """The mean over 3^3 voxels; beyond the edge lies zero."""
    for axis in (2, 3, 4):
        x = (x + neighbours(x, axis)) / 3
    return x


def mind(image: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, "b 6 x y z"]:
    """MIND [13]: exp(-distance / variance) to the six neighbours one voxel away.

    A distance is the mean square over patches of 3^3 voxels; the variance is the mean of a place's
    six distances.
    """
    distances = []
    for axis in (2, 3, 4):
        n = image.shape[axis]
        square = image.diff(dim=axis).square()  # one patch distance serves both its ends
        patch = box(F.pad(square, [0, 0] * (4 - axis) + [1, 1]))
        distances += [patch.narrow(axis, 0, n), patch.narrow(axis, 1, n)]
    d = torch.cat(distances, 1)
    return torch.exp(-d / d.mean(1, keepdim=True).clamp_min(1e-5))
