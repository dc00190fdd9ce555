"""What a notebook starts from: one profile's run on disk."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import pandas as pd

from odereg_core.cohort import Cohort
from odereg_core.errors import InputError
from odereg_core.experiments.encoders import encoders_of
from odereg_core.experiments.evaluate import read_results
from odereg_core.experiments.kept import Results, find, find_kept, place
from odereg_core.experiments.tables import in_order
from odereg_core.files import library_versions, provenance, read_json
from odereg_core.msodenet import MSODENet
from odereg_core.networks.disentangle import Disentangler
from odereg_core.pairs import Pair, pair_keys, simulate
from odereg_core.profiles import Profile, load_profile
from odereg_core.weights import load_model, weights_of

pd.set_option("display.max_colwidth", None)  # a page wraps what is long


class Run:
    """The folder runs/<profile> of `make book`: cohort, models, results."""

    def __init__(self, profile: str, run_dir: str | Path):
        self.folder = Path(run_dir)
        self.profile: Profile = load_profile(profile)
        if not (self.folder / "prepared" / "cohort.json").exists():
            raise InputError(
                f"{self.folder}: no run of the profile '{profile}' here; "
                f"`make book PROFILE={profile}` makes it"
            )

    @cached_property
    def cohort(self) -> Cohort:
        return Cohort(self.folder / "prepared")

    def pairs(self, task: str, count: int) -> list[Pair]:
        """A sample of a task's test pairs, as evaluation simulates them."""
        cohort, seed = self.cohort, self.profile.evaluation.seed
        keys = pair_keys(cohort.names("test"), cohort.contrasts, task, count, seed)
        return [simulate(cohort, key, seed) for key in keys]

    def model(self, name: str) -> MSODENet:
        """A trained model of this run, on the CPU."""
        return load_model(weights_of(self.folder / "models", name))

    def encoder(self, name: str = "encoder") -> Disentangler:
        """A trained encoder of this run, with its style encoder and generator, on the CPU."""
        return load_model(weights_of(self.folder / "models", name), kind=Disentangler)

    def encoders(self) -> dict[str, Disentangler]:
        """All encoders of this run; see `encoders_of`."""
        return encoders_of(self.profile, self.folder / "models")

    def model_facts(self, name: str) -> dict:
        """How a model was trained: command, seed, steps, device, hours, validation curve."""
        return read_json(self.folder / "models" / f"{name}.json")

    def runs_of(self, name: str) -> list[dict]:
        """The facts of every run that a model's weights came through, the first one first."""
        runs, facts = [], self.model_facts(name)
        while facts:
            runs.insert(0, facts)
            facts = facts.get("before")
        return runs

    def trainings(self) -> pd.DataFrame:
        """A line a trained registration model: samples seen, hours and devices of all its runs; of
        the last run the best RMSE(phi) on validation pairs in mm, and the best within three
        quarters of the steps: where these two are alike, the curve has flattened."""
        rows = {}
        for name in [*self.profile.models, *self.profile.baselines]:
            if not (self.folder / "models" / f"{name}.json").exists():
                continue
            *_, facts = runs = self.runs_of(name)
            curve = facts["validation_curve"]
            early = [error for step, error in curve if step <= 0.75 * facts["steps"]]
            rows[name] = {
                "samples": facts["samples"],
                "hours": round(sum(run["seconds"] for run in runs) / 3600, 2),
                "best / mm": facts["validation_rmse_phi_mm"],
                "best of the first 3/4 / mm": min(early, default=float("nan")),
                "device": "; then ".join(dict.fromkeys(run["device"] for run in runs)),
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    @cached_property
    def results(self) -> pd.DataFrame:
        """All methods' results, a line a pair: of all test pairs where `make results` has
        evaluated them, else of the profile's sample."""
        return in_order(read_results(place("pairs", self.folder)))

    def table(self, name: str) -> Results | None:
        """A table of `kept.TABLES`, as Fig. 4a's: this run's, else the one kept in the repository,
        else none."""
        return find(name, self.folder, self.profile.name)

    def kept(self) -> Results | None:
        """The results that the repository keeps, of this profile or of `demo`."""
        return find_kept("pairs", self.profile.name)

    def result_facts(self) -> pd.DataFrame:
        """Where the numbers of `results` come from, a line a method."""
        facts = read_json(place("pairs", self.folder).with_suffix(".json"))
        keep = ("task", "method", "profile", "seed", "pairs", "device", "commit")
        return pd.DataFrame([{k: f.get(k) for k in keep} for f in facts.values()])

    def stamp(self) -> pd.Series:
        """This page's provenance: profile, seeds, code and library versions, device."""
        facts = provenance()
        seeds = f"cohort {self.cohort.settings['source'].get('seed', '-')}"
        seeds += f", split {self.profile.split.seed}, evaluation {self.profile.evaluation.seed}"
        return pd.Series(
            {
                "profile": self.profile.name,
                "seeds": seeds,
                "code": f"{facts['odereg_core']} (commit {facts['commit'] or 'unknown'})",
                "device": facts["device"],
                "libraries": library_versions(facts),
            },
            name="provenance",
        )
