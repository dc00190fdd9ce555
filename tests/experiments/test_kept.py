"""Results that are kept: copied with their provenance, found again, the reader's own first."""

import json

import pandas as pd
import pytest

from odereg_core.errors import InputError
from odereg_core.experiments import kept
from odereg_core.experiments.evaluate import COLUMNS
from odereg_core.experiments.run import Run


def make(folder, name, error, path=None):
    path = folder / (path or kept.TABLES[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    row = dict.fromkeys(COLUMNS, 0.0) | {"task": "rigid", "method": "ants_rigid"}
    row |= {"subject": "s1", "rmse_phi_mm": error}
    pd.DataFrame([row]).to_csv(path, index=False)
    facts = {"rigid/ants_rigid": {"commit": "abc", "voxel_mm": 3.0, "pairs": error}}
    path.with_suffix(".json").write_text(json.dumps(facts))


def test_what_is_kept_is_found_where_a_run_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "KEPT", tmp_path / "results")
    run = tmp_path / "run"
    with pytest.raises(InputError, match="has no results"):
        kept.keep(run, tmp_path / "results" / "demo")
    make(run, "pairs", 1.0)
    make(run, "4b", 2.0)
    assert kept.keep(run, tmp_path / "results" / "demo") == ["pairs", "4b"]
    other = tmp_path / "other"
    found = kept.find("4b", other, "smoke")
    assert found.table.rmse_phi_mm.tolist() == [2.0]
    assert str(found) == (
        "kept in the repository, profile demo, voxels of 3 mm, 1 subjects, commit abc"
    )
    make(other, "4b", 5.0)
    own = kept.find("4b", other, "smoke")
    assert own.table.rmse_phi_mm.tolist() == [5.0] and own.source == "this run, profile smoke"
    assert kept.find_kept("4a", "demo") is None
    assert kept.find("4a", other, "smoke") is None


def test_all_pairs_are_shown_and_kept_before_a_sample_of_them(tmp_path, tiny_cohort):
    (tmp_path / "prepared").symlink_to(tiny_cohort.folder)
    run = Run("smoke", tmp_path)

    def shown():
        """The one row's error as the book shows it, and as it is kept, all with its provenance."""
        vars(run).pop("results", None)
        kept.keep(tmp_path, tmp_path / "kept")
        errors = [*run.results.rmse_phi_mm, *run.table("pairs").table.rmse_phi_mm]
        errors += [*pd.read_csv(tmp_path / "kept" / "pairs.csv").rmse_phi_mm]
        facts = json.loads((tmp_path / "kept" / "pairs.json").read_text())
        errors += [*run.result_facts().pairs, facts["rigid/ants_rigid"]["pairs"]]
        return errors

    make(tmp_path, "pairs", 6.0, kept.SAMPLE)
    assert shown() == [6.0] * 5
    make(tmp_path, "pairs", 240.0)
    assert shown() == [240.0] * 5


def test_no_number_is_kept_without_its_provenance(tmp_path):
    make(tmp_path, "pairs", 1.0)
    (tmp_path / "all" / "pairs.json").unlink()
    with pytest.raises(InputError, match=r"pairs\.json"):
        kept.keep(tmp_path, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("folder", sorted(p.name for p in kept.KEPT.iterdir()))
def test_every_table_of_the_repository_reads(folder):
    tables = {path.stem for path in (kept.KEPT / folder).glob("*.csv")}
    assert tables <= set(kept.TABLES)
    for name in tables:
        found = kept.find_in(kept.KEPT / folder, name, "kept")
        assert len(found.table) and found.voxel_mm
