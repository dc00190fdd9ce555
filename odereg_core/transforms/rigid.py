"""Rigid motion about the grid's centre."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from odereg_core.grid import Grid
from odereg_core.precision import full_precision


def rotation_matrix(angles: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3 3"]:
    """R = Rz Ry Rx of the angles (rx, ry, rz) in rad, right-handed about the RAS+ axes."""
    (sx, sy, sz), (cx, cy, cz) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    rows = (
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def rotation_angles(matrix: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3"]:
    """(rx, ry, rz) in rad of a rotation matrix; ry in [-pi/2, pi/2], the inverse of
    `rotation_matrix`."""
    return torch.stack(
        [
            torch.atan2(matrix[:, 2, 1], matrix[:, 2, 2]),
            torch.asin((-matrix[:, 2, 0]).clamp(-1, 1)),
            torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]),
        ],
        -1,
    )


def rotation_vector(matrix: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3"]:
    """Axis times angle (rad, below pi) of a rotation matrix: its logarithm."""
    skew = torch.stack(
        [
            matrix[:, 2, 1] - matrix[:, 1, 2],
            matrix[:, 0, 2] - matrix[:, 2, 0],
            matrix[:, 1, 0] - matrix[:, 0, 1],
        ],
        -1,
    )
    sine = skew.norm(dim=1, keepdim=True) / 2
    cosine = (matrix.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) - 1) / 2
    return skew / 2 * torch.atan2(sine, cosine) / sine.clamp_min(1e-8)


def affine_field(
    linear: Float[Tensor, "b 3 3"], shift: Float[Tensor, "b 3"], grid: Grid
) -> Float[Tensor, "b 3 x y z"]:
    """A p + t at every voxel centre p: a sum of one term an axis, so no array of points."""
    x, y, z = grid.axes(linear.device, linear.dtype)
    wide = (slice(None), slice(None), None, None, None)
    cx, cy, cz = (column[wide] for column in linear.unbind(-1))
    return (cx * x[:, None, None] + shift[wide]) + cy * y[:, None] + cz * z


class Rigid:
    """phi(p) = R p + t; theta (B, 6): three rotations in rad, then three translations in mm."""

    name = "rigid"
    ranges = (math.radians(75.0),) * 3 + (20.0,) * 3  # section 3.2's largest motion

    def identity(
        self,
        batch: int,
        grid: Grid,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "b 6"]:
        return torch.zeros(batch, 6, device=device, dtype=dtype)

    @full_precision
    def displacement(self, theta: Float[Tensor, "b 6"], grid: Grid) -> Float[Tensor, "b 3 x y z"]:
        linear = rotation_matrix(theta[:, :3]) - torch.eye(3).to(theta)
        return affine_field(linear, theta[:, 3:], grid)

    @full_precision
    def map(
        self, theta: Float[Tensor, "b 6"], points: Float[Tensor, "b 3 *n"], grid: Grid | None = None
    ) -> Float[Tensor, "b 3 *n"]:
        moved = torch.einsum("bij,bj...->bi...", rotation_matrix(theta[:, :3]), points)
        return moved + theta[:, 3:].reshape(-1, 3, *(1,) * (points.ndim - 2))

    def resample(self, theta: Tensor, source: Grid, target: Grid) -> Tensor:
        return theta

    def unit(self, like: Tensor) -> Float[Tensor, 6]:
        return like.new_tensor(self.ranges)

    @full_precision
    def rate(
        self, theta: Float[Tensor, "b 6"], velocity: Float[Tensor, "b 6"]
    ) -> Float[Tensor, "b 6"]:
        """d theta / dt for a twist (omega in rad, v in mm, per unit time) in the warped image's
        frame.

        The warped image x∘phi_theta shows how far it is from the fixed one in its own frame,
        delta, and the map sought is phi_theta∘delta. Hence R' = R [omega]_x and t' = R v; the
        first line gives the Euler angles' rates below, regular for |ry| < pi/2.
        """
        omega, v = velocity.split(3, -1)
        (sx, sy, _), (cx, cy, _) = theta[:, :3].sin().unbind(-1), theta[:, :3].cos().unbind(-1)
        cy = cy.clamp_min(0.1)  # an overshoot beyond ±84° must not blow up the solve
        wx, wy, wz = omega.unbind(-1)
        across = sx * wy + cx * wz
        angles = torch.stack([wx + across * sy / cy, cx * wy - sx * wz, across / cy], -1)
        shift = torch.einsum("bij,bj->bi", rotation_matrix(theta[:, :3]), v)
        return torch.cat([angles, shift], -1)

    @full_precision
    def towards(
        self, theta: Float[Tensor, "b 6"], target: Float[Tensor, "b 6"]
    ) -> Float[Tensor, "b 6"]:
        """The constant twist that takes phi_theta to phi_target: log(phi_theta^-1∘phi_target)."""
        delta = self.matrix(self.inverse(theta)) @ self.matrix(target)
        omega = rotation_vector(delta[:, :3, :3])
        # v = V^-1 t, with V^-1 = 1 - [omega]/2 + c [omega]^2 (Sola et al. 2018, Eq. 176)
        angle = omega.norm(dim=1, keepdim=True).clamp_min(1e-4)
        c = (1 - angle / 2 / torch.tan(angle / 2)) / angle.square()
        t = delta[:, :3, 3]
        once = torch.linalg.cross(omega, t)
        return torch.cat([omega, t - once / 2 + c * torch.linalg.cross(omega, once)], -1)

    @full_precision
    def field(self, velocity: Float[Tensor, "b 6"], grid: Grid) -> Float[Tensor, "b 3 x y z"]:
        (x, y, z), zero = velocity[:, :3].unbind(-1), torch.zeros_like(velocity[:, 0])
        rows = ((zero, -z, y), (z, zero, -x), (-y, x, zero))
        cross = torch.stack([torch.stack(row, -1) for row in rows], -2)
        return affine_field(cross, velocity[:, 3:], grid)

    @full_precision
    def matrix(self, theta: Float[Tensor, "b 6"]) -> Float[Tensor, "b 4 4"]:
        """The homogeneous matrix of phi, in mm about the grid's centre."""
        matrix = torch.zeros(len(theta), 4, 4).to(theta)
        matrix[:, :3, :3] = rotation_matrix(theta[:, :3])
        matrix[:, :3, 3] = theta[:, 3:]
        matrix[:, 3, 3] = 1
        return matrix

    @full_precision
    def from_matrix(self, matrix: Float[Tensor, "b 4 4"]) -> Float[Tensor, "b 6"]:
        """theta of a homogeneous rigid matrix."""
        return torch.cat([rotation_angles(matrix[:, :3, :3]), matrix[:, :3, 3]], -1)

    @full_precision
    def inverse(self, theta: Float[Tensor, "b 6"]) -> Float[Tensor, "b 6"]:
        """theta of the inverse map."""
        back = rotation_matrix(theta[:, :3]).transpose(1, 2)
        shift = -torch.einsum("bij,bj->bi", back, theta[:, 3:])
        return torch.cat([rotation_angles(back), shift], -1)
