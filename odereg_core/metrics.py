"""How well a registration went: the measures of section 3.1, and a few the paper does not report.

All work on a batch and return one number a sample, shape (B,). MONAI, whose import takes as long as
everything else's, is loaded by who uses it.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from odereg_core.grid import Grid


def dice(a: Bool[Tensor, "b 1 x y z"], b: Bool[Tensor, "b 1 x y z"]) -> Float[Tensor, " b"]:
    """Dice score of two masks [12]: 2 |a and b| / (|a| + |b|); 1 where both are empty."""
    a, b = a.flatten(1).bool(), b.flatten(1).bool()
    total = a.sum(1) + b.sum(1)
    return torch.where(total > 0, 2 * (a & b).sum(1) / total.clamp_min(1), torch.ones_like(total))


def rmse(
    a: Float[Tensor, "b c x y z"],
    b: Float[Tensor, "b c x y z"],
    mask: Bool[Tensor, "b 1 x y z"] | None = None,
) -> Float[Tensor, " b"]:
    """RMSE(x): root of the mean squared difference of two images in [0, 1], over `mask`."""
    return _masked_mean((a - b).square().mean(1, keepdim=True), mask).sqrt()


def rmse_phi(
    u: Float[Tensor, "b 3 x y z"],
    v: Float[Tensor, "b 3 x y z"],
    mask: Bool[Tensor, "b 1 x y z"] | None = None,
) -> Float[Tensor, " b"]:
    """RMSE(phi) in mm: root of the mean squared distance between two maps, over `mask`."""
    return _masked_mean((u - v).square().sum(1, keepdim=True), mask).sqrt()


def _masked_mean(value: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return value.flatten(1).mean(1)
    weight = mask.to(value.dtype)
    return (value * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1)


def jacobian_determinant(
    displacement: Float[Tensor, "b 3 x y z"], grid: Grid
) -> Float[Tensor, "b 1 x y z"]:
    """|J| of phi by central differences (one-sided at the edges): volume change a voxel."""
    rows = torch.gradient(displacement, spacing=list(grid.spacing), dim=(2, 3, 4))
    jacobian = (
        torch.stack(rows, dim=2) + torch.eye(3).to(displacement)[None, :, :, None, None, None]
    )
    return torch.linalg.det(jacobian.permute(0, 3, 4, 5, 1, 2))[:, None]


def folding(
    displacement: Float[Tensor, "b 3 x y z"], grid: Grid, mask: Tensor | None = None
) -> Float[Tensor, " b"]:
    """The fraction of voxels where phi folds: |J| <= 0."""
    folded = jacobian_determinant(displacement, grid) <= 0
    return _masked_mean(folded.to(displacement.dtype), mask)


def log_jacobian_std(
    displacement: Float[Tensor, "b 3 x y z"], grid: Grid, mask: Tensor | None = None
) -> Float[Tensor, " b"]:
    """The spread (standard deviation) of log |J|; folded voxels count as |J| = 1e-3."""
    log_j = jacobian_determinant(displacement, grid).clamp_min(1e-3).log()
    mean = _masked_mean(log_j, mask).reshape(-1, 1, 1, 1, 1)
    return _masked_mean((log_j - mean).square(), mask).sqrt()


def hausdorff95(
    a: Int[Tensor, "b 1 x y z"], b: Int[Tensor, "b 1 x y z"], grid: Grid
) -> Float[Tensor, " b"]:
    """95 % Hausdorff distance of two masks in mm (MONAI); NaN where one is empty."""
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the NaN, and of MONAI's own old argument
        distance = compute_hausdorff_distance(
            a.bool(), b.bool(), include_background=True, percentile=95, spacing=grid.spacing
        )
    return distance.flatten()
