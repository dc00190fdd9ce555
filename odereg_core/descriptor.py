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


def newton_step(
    warped: Float[Tensor, "b c x y z"],
    fixed: Float[Tensor, "b c x y z"],
    inside: Float[Tensor, "b 1 x y z"],
    stride: int = 1,
    boxes: int = 5,
) -> Float[Tensor, "b 3 _x _y _z"]:
    """Where the warped image's descriptor about each place would be like the fixed one's, to first
    order: the Gauss-Newton step of their squared difference (Lucas & Kanade 1981), in voxels.

    Read off every `stride` voxels, and of as many as `boxes` means over 3^3 of them reach; only
    what lies `inside` counts. At most three voxels along an axis.
    """

    def every(x: Tensor, *axes: int) -> Tensor:
        for axis in axes:
            x = x[(slice(None),) * axis + (slice(None, None, stride),)]
        return x

    mean, counts, slopes = (warped + fixed) / 2, every(inside, 2, 3, 4), []
    for axis in (2, 3, 4):
        others, n = {2, 3, 4} - {axis}, mean.shape[axis]
        padded = F.pad(every(mean, *others), [0, 0] * (4 - axis) + [1, 1])
        slope = (padded.narrow(axis, 2, n) - padded.narrow(axis, 0, n)) / 2
        slopes.append(every(slope, axis) * counts)
    ahead = every(fixed - warped, 2, 3, 4)
    sums = [(slope * ahead).sum(1) for slope in slopes]
    sums += [(slopes[i] * slopes[j]).sum(1) for i in range(3) for j in range(3)]
    about = torch.stack(sums, 1)
    for _ in range(boxes):
        about = box(about)
    about = about.movedim(1, -1)
    normal = about[..., 3:].unflatten(-1, (3, 3)) + 1e-3 * torch.eye(3, device=about.device)
    step = torch.linalg.solve(normal, about[..., :3])
    return step.movedim(-1, 1).clamp(-3, 3)
