"""What encoders are worth, over many pairs: the landscapes of their metrics, their translations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from odereg_core.cohort import Cohort
from odereg_core.experiments.evaluate import write_results
from odereg_core.experiments.landscape import basins, curves, landscape
from odereg_core.experiments.translation import translation_errors
from odereg_core.networks.disentangle import Disentangler
from odereg_core.pairs import PairKey
from odereg_core.profiles import Profile
from odereg_core.similarity import Mind, MutualInformation, Similarity, content_similarity
from odereg_core.weights import load_model, weights_of


def encoders_of(profile: Profile, models: Path) -> dict[str, Disentangler]:
    """The encoders of a profile that a folder of weights has, by what distinguishes them: nothing
    for the one that is used, `, 1 slice` for one that sees single slices."""
    found = {}
    for name in profile.encoders:
        if (path := weights_of(models, name)).exists():
            encoder = load_model(path, kind=Disentangler)
            found["" if name == "encoder" else f", {encoder.slices} slice"] = encoder
    return found


def metrics(encoders: Mapping[str, Disentangler]) -> dict[str, Similarity]:
    """The content similarity of each encoder, called `content` and what distinguishes it, and the
    classical measures beside them."""
    ours = {f"content{name}": content_similarity(encoder) for name, encoder in encoders.items()}
    return {**ours, "MI": MutualInformation(), "MIND": Mind()}


def translations(
    encoders: Mapping[str, Disentangler],
    cohort: Cohort,
    keys: Sequence[PairKey],
    device: str = "cpu",
) -> pd.DataFrame:
    """`translation_errors` of several encoders, called `GAN` and what distinguishes each."""
    tables = []
    for name, encoder in encoders.items():
        table = translation_errors(encoder, cohort, keys, device)
        table["way"] = table["way"].replace("GAN", f"GAN{name}")
        tables.append(table)
    return pd.concat(tables).drop_duplicates(["subject", "moving", "fixed", "way"])


def measure(
    encoders: Mapping[str, Disentangler],
    cohort: Cohort,
    keys: Sequence[PairKey],
    out: Path,
    device: str = "cpu",
    **facts: object,
) -> pd.DataFrame:
    """Write `curves.csv`, `basins.csv` and `translation.csv`, each with its provenance, to `out`;
    returns the basins."""
    models = {name: encoder.to(device) for name, encoder in encoders.items()}
    table = landscape(metrics(models), cohort, keys, device=device)
    found = {
        "curves": curves(table),
        "basins": basins(table),
        "translation": translations(models, cohort, keys, device),
    }
    facts |= {"pairs": len(keys), "voxel_mm": cohort.grid.spacing[0], "cohort": cohort.settings}
    for name, rows in found.items():
        write_results(rows, out / f"{name}.csv", device, **facts)
    return found["basins"]
