"""Rigid motion about the grid's centre."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from odereg_core.grid import Grid


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

    def displacement(self, theta: Float[Tensor, "b 6"], grid: Grid) -> Float[Tensor, "b 3 x y z"]:
        x, y, z = grid.axes(theta.device, theta.dtype)
        # (R - 1) p + t is a sum of one term an axis: broadcasting needs no array of points.
        columns = (rotation_matrix(theta[:, :3]) - torch.eye(3).to(theta)).unbind(-1)
        cx, cy, cz = (column[:, :, None, None, None] for column in columns)
        t = theta[:, 3:, None, None, None]
        return (cx * x[:, None, None] + t) + cy * y[:, None] + cz * z

    def map(
        self, theta: Float[Tensor, "b 6"], points: Float[Tensor, "b 3 *n"], grid: Grid | None = None
    ) -> Float[Tensor, "b 3 *n"]:
        moved = torch.einsum("bij,bj...->bi...", rotation_matrix(theta[:, :3]), points)
        return moved + theta[:, 3:].reshape(-1, 3, *(1,) * (points.ndim - 2))

    def resample(self, theta: Tensor, source: Grid, target: Grid) -> Tensor:
        return theta

    def unit(self, like: Tensor) -> Float[Tensor, 6]:
        return like.new_tensor(self.ranges)

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

    def matrix(self, theta: Float[Tensor, "b 6"]) -> Float[Tensor, "b 4 4"]:
        """The homogeneous matrix of phi, in mm about the grid's centre."""
        matrix = torch.zeros(len(theta), 4, 4).to(theta)
        matrix[:, :3, :3] = rotation_matrix(theta[:, :3])
        matrix[:, :3, 3] = theta[:, 3:]
        matrix[:, 3, 3] = 1
        return matrix

    def from_matrix(self, matrix: Float[Tensor, "b 4 4"]) -> Float[Tensor, "b 6"]:
        """theta of a homogeneous rigid matrix."""
        return torch.cat([rotation_angles(matrix[:, :3, :3]), matrix[:, :3, 3]], -1)

    def inverse(self, theta: Float[Tensor, "b 6"]) -> Float[Tensor, "b 6"]:
        """theta of the inverse map."""
        back = rotation_matrix(theta[:, :3]).transpose(1, 2)
        shift = -torch.einsum("bij,bj->bi", back, theta[:, 3:])
        return torch.cat([rotation_angles(back), shift], -1)
