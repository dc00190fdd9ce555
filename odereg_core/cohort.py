"""The prepared cohort on disk: one safetensors a subject on the working grid, and an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from odereg_core.errors import InputError
from odereg_core.files import load_metadata, load_tensors, read_json, save_tensors, write_json
from odereg_core.grid import Grid

FORMAT = 1
INDEX = "cohort.json"
CONTRASTS = ("t1", "t1ce", "t2", "flair")
SPLITS = ("train", "val", "test")


def contrast_pairs(contrasts: Sequence[str] = CONTRASTS) -> list[tuple[str, str]]:
    """All ordered pairs (moving, fixed) of two different contrasts: 12 of four."""
    return list(permutations(contrasts, 2))


@dataclass(frozen=True)
class Subject:
    """One subject on the cohort's grid."""

    name: str
    images: Float[Tensor, "m x y z"]
    """One image a contrast, float32 in [0, 1], background zero."""
    seg: UInt8[Tensor, "x y z"] | None
    """Tumour labels as BraTS has them (1, 2, 4), where the subject has a mask."""

    @property
    def mask(self) -> Bool[Tensor, "x y z"]:
        """The brain: wherever any contrast is not zero."""
        return (self.images > 0).any(0)


def write_subject(folder: Path, subject: Subject, source: str = "") -> None:
    """One subject's file; float16 holds [0, 1] to half of BraTS's own quantisation.

    `source` says what the file was made of, for `subject_source` to tell whether it still holds.
    """
    tensors = {"images": subject.images.half().contiguous()}
    if subject.seg is not None:
        tensors["seg"] = subject.seg.contiguous()
    save_tensors(folder / f"{subject.name}.safetensors", tensors, {"source": source})


def subject_source(folder: Path, name: str) -> str | None:
    """What a subject's file was made of; None where there is no whole file."""
    try:
        return load_metadata(folder / f"{name}.safetensors").get("source")
    except InputError:
        return None


def write_index(
    folder: Path,
    grid: Grid,
    contrasts: Sequence[str],
    split: Mapping[str, Sequence[str]],
    settings: Mapping[str, object],
) -> None:
    """The index, written last: a folder with one is a whole cohort."""
    content = {
        "format": FORMAT,
        "shape": list(grid.shape),
        "spacing": list(grid.spacing),
        "contrasts": list(contrasts),
        "split": {name: list(split[name]) for name in SPLITS},
        "settings": dict(settings),
    }
    write_json(folder / INDEX, content)


class Cohort:
    """A prepared cohort. Raises InputError where the folder holds none, or another format's."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.exists():
            raise InputError(f"{self.folder}: no prepared cohort here ({INDEX} is missing)")
        index = read_json(path)
        if index.get("format") != FORMAT:
            found = index.get("format")
            raise InputError(f"{path}: cohort format {found!r}, this version reads {FORMAT}")
        try:
            self.grid = Grid(tuple(index["shape"]), tuple(index["spacing"]))
            self.contrasts = tuple(index["contrasts"])
            self.split = {name: list(index["split"][name]) for name in SPLITS}
            self.settings: dict = index["settings"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not a cohort's index ({error})") from None
        self._last: Subject | None = None

    def expect(self, grid: Grid, profile: str) -> None:
        """Raises InputError where the cohort lies on another grid than a profile's."""
        if self.grid != grid:
            raise InputError(
                f"{self.folder}: lies on another grid than the profile '{profile}' works on"
            )

    def names(self, split: str) -> list[str]:
        """The subjects of 'train', 'val' or 'test'."""
        return self.split[split]

    def load(self, name: str) -> Subject:
        """One subject; the last one is remembered. Raises InputError where its file is missing,
        damaged or on another grid."""
        if self._last and self._last.name == name:
            return self._last
        path = self.folder / f"{name}.safetensors"
        tensors, _ = load_tensors(path)
        images, seg = tensors.get("images"), tensors.get("seg")
        if images is None or tuple(images.shape) != (len(self.contrasts), *self.grid.shape):
            raise InputError(f"{path}: not {len(self.contrasts)} images on the cohort's grid")
        if seg is not None and (tuple(seg.shape) != self.grid.shape or seg.dtype != torch.uint8):
            raise InputError(f"{path}: its mask is no uint8 volume on the cohort's grid")
        self._last = Subject(name, images.to(torch.float32), seg)
        return self._last
