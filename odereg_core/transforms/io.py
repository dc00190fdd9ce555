"""Transforms as ITK's family reads and writes them (ANTs, SimpleITK, 3D Slicer).

Ours and ITK's are both pull-backs: a point of the fixed image to a point of the moving image, in
mm. They differ in the axes: ours are RAS+ (right, anterior, superior), ITK's are LPS+.

A fixed image with a sheared affine has no place in ITK, which knows rotations and spacings only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.io import loadmat, savemat
from scipy.spatial.transform import Rotation
from torch import Tensor

from odereg_core.errors import InputError
from odereg_core.files import atomic
from odereg_core.volume import Affine, open_nifti, read_voxels, save_nifti

LPS = np.array([-1.0, -1.0, 1.0])
"""RAS+ to LPS+ and back, an axis each."""


def write_displacement(
    path: Path | str, field: Float[Tensor, "3 x y z"] | NDArray, affine: Affine
) -> None:
    """A displacement field as ANTs writes it: 5-D NIfTI (X, Y, Z, 1, 3), vector intent, LPS mm.

    `field` is u in RAS world mm at the voxels of the fixed image, in the axis order of its file;
    `affine` is that file's (voxel to RAS world mm). `Volume.native` gives both.
    """
    vectors = field.detach().cpu().numpy() if isinstance(field, Tensor) else np.asarray(field)
    if vectors.ndim != 4 or len(vectors) != 3:
        raise ValueError(f"a displacement field is (3, X, Y, Z), got {vectors.shape}")
    lps = np.moveaxis(vectors, 0, -1)[:, :, :, None] * LPS
    save_nifti(path, lps.astype(np.float32), affine, intent="vector")


def read_displacement(path: Path | str) -> tuple[Float[Tensor, "3 x y z"], Affine]:
    """u in RAS world mm at the voxels of ITK's displacement field, in its file's order; its affine.

    Raises InputError where the file holds none.
    """
    image = open_nifti(path)
    if len(image.shape) != 5 or image.shape[3:] != (1, 3):
        raise InputError(
            f"{path}: a displacement field has the shape (X, Y, Z, 1, 3), this one {image.shape}"
        )
    if (intent := image.header.get_intent()[0]) != "vector":
        raise InputError(f"{path}: ITK's fields have the intent 'vector', this one has '{intent}'")
    vectors = read_voxels(image, path)[:, :, :, 0] * LPS.astype(np.float32)
    field = torch.from_numpy(np.ascontiguousarray(np.moveaxis(vectors, -1, 0)))
    return field, np.asarray(image.affine, np.float64)


def write_affine_mat(path: Path | str, matrix: NDArray, centre: NDArray) -> None:
    """An `affine.mat` as ANTs writes it: MATLAB 4, twelve parameters and the fixed centre, LPS mm.

    `matrix` (4, 4) maps homogeneous RAS world mm of the fixed image to the moving image's; `centre`
    (RAS world mm) is the point c of ITK's form of it, phi(p) = A (p - c) + t + c.
    """
    matrix, centre = np.asarray(matrix, np.float64), np.asarray(centre, np.float64)
    if matrix.shape != (4, 4) or centre.shape != (3,):
        raise ValueError(f"a (4, 4) matrix and a centre of 3, got {matrix.shape}, {centre.shape}")
    linear = matrix[:3, :3]
    shift = matrix[:3, 3] - centre + linear @ centre
    parameters = np.concatenate([(linear * np.outer(LPS, LPS)).ravel(), shift * LPS])
    content = {
        "AffineTransform_double_3_3": parameters.reshape(12, 1),
        "fixed": (centre * LPS).reshape(3, 1),
    }
    with atomic(Path(path)) as temporary:
        savemat(temporary, content, appendmat=False, format="4")


def read_affine_mat(path: Path | str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The (4, 4) matrix (RAS world mm, fixed to moving) and the centre (3) of ITK's `affine.mat`.

    Affine transforms of any precision, and the Euler angles that rigid ones may come in. Raises
    InputError for anything else.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        content = loadmat(path, appendmat=False)
        (kind,) = (key for key in content if key != "fixed" and not key.startswith("__"))
        parameters = np.asarray(content[kind], np.float64).ravel()
        fixed = np.asarray(content["fixed"], np.float64).ravel()
    except Exception as error:  # SciPy fails on foreign bytes in many ways
        raise InputError(f"{path}: not a transform in ITK's MATLAB format ({error})") from None
    if not (np.isfinite(parameters).all() and np.isfinite(fixed).all()):
        raise InputError(f"{path}: the transform has parameters that are not finite")
    if parameters.size == 12 and fixed.size == 3:
        linear, shift = parameters[:9].reshape(3, 3), parameters[9:]
    elif kind.startswith("Euler3DTransform") and parameters.size == 6 and fixed.size in (3, 4):
        x, y, z = parameters[:3]
        # ITK multiplies Rz Rx Ry, or Rz Ry Rx where the fourth fixed parameter is set.
        zyx = fixed.size == 4 and fixed[3] != 0
        turn = Rotation.from_euler(*(("ZYX", [z, y, x]) if zyx else ("ZXY", [z, x, y])))
        linear, shift = turn.as_matrix(), parameters[3:]
    else:
        raise InputError(f"{path}: an affine or Euler transform in 3-D is needed, this is '{kind}'")
    centre = fixed[:3]
    matrix = np.eye(4)
    matrix[:3, :3] = linear * np.outer(LPS, LPS)
    matrix[:3, 3] = (shift + centre - linear @ centre) * LPS
    return matrix, centre * LPS
