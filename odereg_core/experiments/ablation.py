"""Figs. 4a and 4b: models that lack one part of the method, described as changes to a profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from odereg_core.errors import InputError
from odereg_core.experiments.evaluate import read_results
from odereg_core.files import atomic, read_json
from odereg_core.profiles import BUILT_IN, load_profile, merged

OWN_ENCODER = "full"
"""The variant of Fig. 4a whose encoder the others use, unless they train their own."""
BEYOND = ["no_newton"]
"""Variants that lack what is this package's, not the paper's: no claim rests on them."""


@dataclass(frozen=True)
class Variant:
    """One trained and evaluated model of a figure.

    `changes` is what its profile changes; `models` are those that are trained for it, `encoder`
    the (figure, variant) whose encoder its losses use.
    """

    figure: str
    name: str
    title: str
    task: str
    method: str
    changes: Mapping[str, Any]
    models: tuple[str, ...]
    encoder: tuple[str, str]


@cache
def _data() -> dict[str, Any]:
    text = Path(__file__).with_name("ablations.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def variants(figure: str | None = None) -> Iterator[Variant]:
    """All variants, or a figure's, in the order they are drawn in."""
    for name, shared in _data()["figures"].items():
        if figure not in (None, name):
            continue
        for key, own in shared["variants"].items():
            encoder = merged(shared.get("encoder", {}), own.get("encoder", {}))
            trains_one = key == OWN_ENCODER or "encoder" in own
            changes = {"models": merged(shared["models"], own.get("models", {}))}
            yield Variant(
                name, key, own["title"], shared["task"], shared["method"],
                changes | ({"encoders": {"encoder": encoder}} if trains_one else {}),
                (*shared["models"], *(["encoder"] if trains_one else [])),
                (name, key) if trains_one else ("4a", OWN_ENCODER),
            )  # fmt: skip


def find(figure: str, name: str) -> Variant:
    """The variant of that name. Raises InputError, listing what there is, where there is none."""
    for variant in variants():
        if (variant.figure, variant.name) == (figure, name):
            return variant
    known = ", ".join(f"{v.figure}/{v.name}" for v in variants())
    raise InputError(f"there is no ablation '{figure}/{name}'; there are: {known}")


def derived(variant: Variant, profile: str) -> dict[str, Any]:
    """A variant's profile as YAML has it: `profile` (built in, or a file), and what differs.

    Its size is that which `ablations.yaml` says for the profile's name: the grid, the number of
    steps, the largest batch, and what its models have besides.
    """
    base = load_profile(profile)
    size = _data()["scale"].get(base.name, {})
    parent = profile if profile in BUILT_IN else str(Path(profile).resolve().with_suffix(""))
    name = f"{base.name}-{variant.figure}-{variant.name}"
    models = {m: v for m, v in size.get("models", {}).items() if m in variant.models}
    changes = merged({"extends": parent, "name": name, "models": models}, variant.changes)
    sections = [*changes["models"].values(), *changes.get("encoders", {}).values()]
    for section in sections:
        for counted in (section, *section.get("stages", ())):
            if "steps" in counted:
                counted["steps"] = max(2, round(counted["steps"] * size.get("steps", 1)))
            if "batch" in counted:
                counted["batch"] = min(counted["batch"], size.get("batch", counted["batch"]))
    return changes | ({"grid": size["grid"]} if "grid" in size else {})


def write_profile(variant: Variant, profile: str, path: Path) -> None:
    """The variant's profile as a file that `odereg train` and `odereg evaluate` take."""
    with atomic(path) as temporary:
        text = yaml.safe_dump(derived(variant, profile), sort_keys=False)
        temporary.write_text(text, encoding="utf-8")
    load_profile(path)


def collect(folder: Path, figure: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A figure's results, with a column `variant`, and where they come from.

    `folder` holds `<variant>/results/<method>.csv` and `.json`, and `<variant>/models`.
    Raises InputError where one is missing.
    """
    tables, facts = [], {}
    if figure not in (known := dict.fromkeys(v.figure for v in variants())):
        raise InputError(f"no figure '{figure}' is collected; there are: {', '.join(known)}")
    for variant in variants(figure):
        here = folder / variant.name
        path = here / "results" / f"{variant.method}.csv"
        tables.append(read_results(path).assign(variant=variant.name))
        trained = {m: read_json(here / "models" / f"{m}.json") for m in variant.models}
        facts[variant.name] = {
            "title": variant.title,
            **read_json(path.with_suffix(".json")),
            "training": {
                m: {k: t.get(k) for k in ("steps", "samples", "seconds", "device", "settings")}
                for m, t in trained.items()
            },
        }
    return pd.concat(tables, ignore_index=True), facts
