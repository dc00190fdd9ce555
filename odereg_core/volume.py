"""NIfTI volumes as they come: read, checked, and brought to a grid and a range."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Float
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from scipy.ndimage import (
    affine_transform,
    center_of_mass,
    gaussian_filter,
    label,
    map_coordinates,
)
from skimage.filters import threshold_otsu
from torch import Tensor

from odereg_core.errors import InputError
from odereg_core.files import atomic
from odereg_core.grid import Grid

Affine = NDArray[np.float64]


@dataclass(frozen=True)
class Volume:
    """A scalar volume with axes closest to RAS+, and how to put it back as the file had it.

    `data` (X, Y, Z) float32; `affine` maps its voxel indices to RAS world mm, obliqueness and all;
    `orientation` is nibabel's, from the file's own axes to these. `doubts`: sentences about where
    its header says that it lies, for tools read that differently.
    """

    data: NDArray[np.float32]
    affine: Affine
    orientation: NDArray[np.float64]
    path: str = ""
    doubts: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path | str) -> Volume:
        """Read a NIfTI file of any orientation, spacing, size and number type.

        Raises InputError, naming the file and the fault, for what is not a usable 3-D scan.
        """
        image = open_nifti(path)
        shape = image.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3:
            raise InputError(f"{path}: a 3-D volume is needed, its shape is {image.shape}")
        if min(shape) < 4:
            raise InputError(f"{path}: too small to register, its shape is {shape}")
        kind = image.get_data_dtype()
        if not any(np.issubdtype(kind, real) for real in (np.integer, np.floating)):
            raise InputError(f"{path}: a scalar volume is needed, its voxels are {kind}")
        affine = np.asarray(image.affine, np.float64)
        data = read_voxels(image, path).reshape(shape)
        orientation = np.asarray(io_orientation(affine), np.float64)
        canonical = affine @ inv_ornt_aff(orientation, shape)
        turned = apply_orientation(data, orientation)
        return cls(turned, canonical, orientation, str(path), _doubts(image))

    def checked(self) -> Volume:
        """The same volume, as an image to register.

        Raises InputError where it is constant or not finite, or where its field of view is none of
        a head's.
        """
        _finite(self.data, self.path)
        low, high = float(self.data.min()), float(self.data.max())
        if low == high:
            raise InputError(f"{self.path}: every voxel is {low:g}, nothing to register")
        if max(-low, high) > 1e30:
            raise InputError(f"{self.path}: its voxels run from {low:g} to {high:g}, no MR signal")
        extent = self.spacing * self.shape
        if extent.min() < 2 or extent.max() > 5000:
            size = " × ".join(f"{mm:.3g}" for mm in extent)
            raise InputError(f"{self.path}: its field of view is {size} mm; are voxel sizes in mm?")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.data.shape  # type: ignore[return-value]

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Voxel sizes in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def centre(self) -> NDArray[np.float64]:
        """The centre of the field of view, RAS world mm."""
        return self.affine[:3, :3] @ ((np.array(self.shape) - 1) / 2) + self.affine[:3, 3]

    def world(self, first: int = 0, last: int | None = None) -> NDArray[np.float64]:
        """RAS world mm of the voxel centres (3, X, Y, Z), of the planes `first` to `last` of X."""
        planes = len(range(self.shape[0])[first:last])
        index = np.indices((planes, *self.shape[1:]), dtype=np.float64)
        index[0] += first
        return np.tensordot(self.affine[:3, :3], index, 1) + self.affine[:3, 3].reshape(3, 1, 1, 1)

    def index(self, world: NDArray[np.float64]) -> NDArray[np.float64]:
        """Continuous voxel indices of points in RAS world mm, (3, ...)."""
        back = np.linalg.inv(self.affine)
        shift = back[:3, 3].reshape(3, *[1] * (world.ndim - 1))
        return np.tensordot(back[:3, :3], world, 1) + shift

    def sample(
        self, world: NDArray[np.float64], mode: Literal["linear", "nearest"] = "linear"
    ) -> NDArray[np.float32]:
        """The values at points in RAS world mm (3, ...); zero outside the field of view."""
        index = self.index(world)
        if mode == "nearest":
            return map_coordinates(self.data, index, order=0, mode="grid-constant")
        values = map_coordinates(self.data, index, order=1, mode="nearest")
        return np.where(self._within(index), values, 0)

    def covers(self, other: Volume) -> bool:
        """Whether some voxel of another volume that is not zero lies in this field of view."""
        index = np.argwhere(other.data).T
        world = other.affine[:3, :3] @ index + other.affine[:3, 3:]
        return bool(self._within(self.index(world)).any())

    def _within(self, index: NDArray[np.float64]) -> NDArray[np.bool_]:
        # As in ITK, the outermost voxels reach half a voxel further out.
        last = np.array(self.shape).reshape(3, *[1] * (index.ndim - 1)) - 0.5
        return ((index >= -0.5) & (index <= last)).all(0)

    def with_data(self, data: NDArray) -> Volume:
        """Other voxels in the same place."""
        return replace(self, data=np.asarray(data))

    def same_grid(self, other: Volume) -> bool:
        """Whether both have the same voxels in the same places, to a hundredth of a mm."""
        if self.shape != other.shape:
            return False
        corners = np.array([*product(*((0, n - 1) for n in self.shape))]).T
        apart = (self.affine - other.affine)[:3] @ np.vstack([corners, np.ones(8)])
        return bool(np.abs(apart).max() < 0.01)

    def native(self) -> tuple[NDArray, Affine]:
        """Voxels and affine in the file's own axis order; trailing axes of `data` go along."""
        # nibabel's orientation goes from the file to RAS; this is the inverse permutation.
        back = np.empty_like(self.orientation)
        for axis, (target, flip) in enumerate(self.orientation):
            back[int(target)] = axis, flip
        data = apply_orientation(self.data, back)
        return data, self.affine @ inv_ornt_aff(back, self.shape)

    def save(self, path: Path | str) -> None:
        """Write NIfTI in the axis order the volume was read in, on exactly its grid."""
        data, affine = self.native()
        save_nifti(path, data, affine)


def save_nifti(
    path: Path | str, data: NDArray, affine: Affine, intent: Literal["none", "vector"] = "none"
) -> None:
    """A NIfTI file with sform and qform, whole or not at all."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_intent(intent)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    with atomic(Path(path)) as temporary:
        nib.save(image, temporary)


def open_nifti(path: Path | str) -> nib.Nifti1Image:
    """A NIfTI file, its header read. Raises InputError where it is none, or in no place."""
    if not Path(path).is_file():
        what = "is a folder, not a file" if Path(path).is_dir() else "there is no such file"
        raise InputError(f"{path}: {what}")
    try:
        image = nib.load(path)
    except Exception as error:  # nibabel fails on foreign bytes in many ways
        raise InputError(f"{path}: not a readable NIfTI file ({_first_line(error)})") from None
    if not isinstance(image, nib.Nifti1Pair):  # which all kinds of NIfTI are to nibabel
        raise InputError(f"{path}: not a NIfTI file but {type(image).__name__}")
    affine = np.asarray(image.affine, np.float64)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    placed = np.isfinite(affine).all() and sizes.min() > 1e-6 and np.abs(affine).max() < 1e6
    if not placed or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3:
        raise InputError(
            f"{path}: its affine is singular or beyond all bounds, so voxels have no place"
        )
    return image


def read_voxels(image: nib.Nifti1Image, path: Path | str) -> NDArray[np.float32]:
    """The values, scaled as the header says. Raises InputError where cut off or not finite."""
    try:
        with np.errstate(all="ignore"):
            data = np.asarray(image.dataobj, np.float32)
    except Exception as error:  # gzip, zlib, the operating system and NumPy each fail their own way
        raise InputError(f"{path}: its voxels cannot be read ({_first_line(error)})") from None
    _finite(data, path)
    return data


def _finite(data: NDArray[np.float32], path: Path | str) -> None:
    if not np.isfinite(data).all():
        count = int((~np.isfinite(data)).sum())
        raise InputError(f"{path}: {count} voxels are not finite (NaN or infinite)")


def _doubts(image: nib.Nifti1Image) -> tuple[str, ...]:
    """What a header leaves open about where its voxels lie."""
    (sform, s_code), (qform, q_code) = image.get_sform(coded=True), image.get_qform(coded=True)
    affine = np.asarray(image.affine, np.float64)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    doubts = []
    if not s_code and not q_code:
        doubts.append("says neither by an sform nor by a qform where it lies: others may differ")
    if s_code and q_code:
        ends = np.array([*product(*((0, n - 1) for n in image.shape[:3])), (0, 0, 0)]).T
        apart = np.linalg.norm((sform - qform)[:3] @ np.vstack([ends, np.ones(9)]), axis=0).max()
        if apart > 0.1:
            doubts.append(f"has an sform and a qform {apart:.1f} mm apart; the sform was taken")
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
        doubts.append("has axes that are not at right angles, which ITK and ANTs do not read")
    return tuple(doubts)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def foreground(volume: Volume) -> NDArray[np.bool_]:
    """The head: what is not zero where a stripper left zeros, else Otsu's largest component."""
    data = volume.data
    background = np.median(np.concatenate([data[[0, -1]].ravel(), data[:, :, [0, -1]].ravel()]))
    if background == 0 and (data == 0).mean() > 0.2:
        return data != 0
    # Log intensities: a bright fat rim must not raise the threshold above the brain.
    positive = np.log1p(np.clip(data - data.min(), 0, None))
    mask = positive > threshold_otsu(positive)
    return largest_part(mask)


def largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest of a mask's parts that do not touch by a face."""
    parts, count = label(mask)  # type: ignore[misc] - SciPy's types miss the pair
    return parts == 1 + int(np.bincount(parts.ravel())[1:].argmax()) if count > 1 else mask


def given_mask(mask: Path | str | Volume, volume: Volume) -> NDArray[np.bool_]:
    """A mask at the volume's voxels, by nearest sampling where its grid is another.

    Raises InputError where it is no volume or empty, or where none of it lies within this one.
    """
    mask = mask if isinstance(mask, Volume) else Volume.load(mask)
    if not (mask.data > 0).any():
        raise InputError(f"{mask.path}: this mask is empty")
    same = mask.same_grid(volume)
    inside = (mask.data if same else mask.sample(volume.world(), "nearest")) > 0
    if not inside.any():
        raise InputError(f"{mask.path}: no voxel of this mask lies within {volume.path}")
    return inside


def read_labels(path: Path | str) -> Volume:
    """A volume of whole numbers below 2^24. Raises InputError where some are not."""
    volume = Volume.load(path)
    whole = np.rint(volume.data)
    if np.abs(whole).max() >= 2**24:  # from there on float32 does not tell neighbours apart
        largest = f"{np.abs(whole).max():.0f}"
        raise InputError(f"{path}: labels lie below {2**24}, this volume has {largest}")
    if (whole != volume.data).any():
        raise InputError(f"{path}: labels are whole numbers, this volume has others")
    return volume.with_data(whole.astype(np.int16 if np.abs(whole).max() < 2**15 else np.int32))


def normalise(data: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Intensities in [0, 1]: the foreground's 99.5th percentile becomes 1, the background 0.

    MR intensities have no unit. A scan with negative values is shifted so that the foreground's
    0.1th percentile is 0.
    """
    values = data[mask]
    low = float(np.percentile(values, 0.1)) if values.min() < 0 else 0.0
    high = float(np.percentile(values, 99.5))
    scaled = np.clip((data - low) / max(high - low, 1e-6), 1e-3, 1)
    return np.where(mask, scaled, 0).astype(np.float32)


def centre_of_mass(volume: Volume, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The centre of the foreground, RAS world mm."""
    return volume.affine[:3, :3] @ np.array(center_of_mass(mask)) + volume.affine[:3, 3]


def resample(
    volume: Volume,
    grid: Grid,
    centre: NDArray[np.float64],
    mode: Literal["linear", "nearest"] = "linear",
) -> Float[Tensor, "1 1 x y z"]:
    """The volume on `grid`, its axes along RAS and its centre at `centre` (world mm); zero outside.

    Linear sampling of a finer volume is smoothed first, by the Gaussian that its voxels lack to the
    grid's, so that small structures average rather than alias.
    """
    back = np.linalg.inv(volume.affine[:3, :3])
    step = back * grid.spacing
    first = back @ (centre - volume.affine[:3, 3]) - step @ ((np.array(grid.shape) - 1) / 2)
    data = volume.data
    if mode == "linear":
        # Both axes lie close to RAS, so an axis of the volume is compared with the grid's own.
        missing = np.maximum(0, np.array(grid.spacing) ** 2 - volume.spacing**2)
        sigma = 0.42 * np.sqrt(missing) / volume.spacing
        if sigma.max() > 0.1:
            data = gaussian_filter(data, sigma)
    # Voxels that coincide are to be copied: rounding must not put them a hair beside each other.
    result = affine_transform(
        data,
        np.where(np.abs(step - np.rint(step)) < 1e-6, np.rint(step), step),
        np.where(np.abs(first - np.rint(first)) < 1e-4, np.rint(first), first),  # type: ignore[arg-type]
        output_shape=grid.shape,
        output=np.float32,
        order=1 if mode == "linear" else 0,
        mode="grid-constant",
    )
    return torch.from_numpy(result)[None, None]


def model_image(
    volume: Volume, mask: NDArray[np.bool_], grid: Grid, centre: NDArray[np.float64]
) -> Float[Tensor, "1 1 x y z"]:
    """What the models see of a scan: its foreground in [0, 1] and zeros about it, on `grid` as
    `resample` places it."""
    image = resample(volume.with_data(normalise(volume.data, mask)), grid, centre)
    # Smoothing bleeds over the edge of the brain: the mask decides what is background.
    inside = resample(volume.with_data(mask.astype(np.float32)), grid, centre)
    return torch.where(inside > 0.5, image / inside.clamp_min(0.5), 0.0).clamp(0, 1)
