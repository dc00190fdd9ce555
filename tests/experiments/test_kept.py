"""Results that are kept: copied with their provenance, found again, the reader's own first."""

import json

import pandas as pd
import pytest

from odereg_core.errors import InputError
from odereg_core.experiments import kept
from odereg_core.experiments.evaluate import COLUMNS


def make(folder, name, error):
    path = folder / kept.TABLES[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    row = dict.fromkeys(COLUMNS, 0.0) | {"subject": "s1", "rmse_phi_mm": error}
    pd.DataFrame([row]).to_csv(path, index=False)
    facts = {"rigid/ants_rigid": {"commit": "abc", "voxel_mm": 3.0}}
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


def test_no_number_is_kept_without_its_provenance(tmp_path):
    make(tmp_path, "pairs", 1.0)
    (tmp_path / "results" / "pairs.json").unlink()
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
