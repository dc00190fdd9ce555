"""Profiles: the built-in ones are sound, bad ones are named."""

import pytest

from odereg_core.errors import InputError
from odereg_core.profiles import BUILT_IN, load_profile


def test_the_built_in_profiles():
    assert set(BUILT_IN) == {"smoke", "demo", "paper"}
    for name in BUILT_IN:
        profile = load_profile(name)
        assert profile.name == name
        for section in profile.models.values():
            profile.working_grid.pyramid(len(section.solvers))
    paper = load_profile("paper")
    assert paper.grid.shape == (240, 240, 160) and paper.grid.spacing == 1
    assert paper.models["rigid"].solvers == ("A(1e-3)", "A(1e-3)", "F(0.1)")
    assert paper.split.test == 50
    stages = paper.models["rigid"].stages
    assert {stage.lr for stage in stages} == {1e-4} and {stage.decay for stage in stages} == {1}


def test_a_profile_extends_another(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: demo\nname: mine\nevaluation: {pairs: 3}\n")
    mine, demo = load_profile(path), load_profile("demo")
    assert mine.evaluation.pairs == 3 and mine.evaluation.seed == demo.evaluation.seed
    assert mine.models == demo.models


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: demo\nspeed: 3\n", "key 'speed'"),
        ("extends: demo\nmodels: {rigid: {time: fast}}\n", "key 'models.rigid.time'"),
        ("extends: demo\nmodels: {rigid: {solvers: [Z(1)]}}\n", "is no solver"),
        ("extends: demo\nmodels: {rigid: {solvers: [Z(1)]}}\n", "write F(dt), A(eps)"),
        ("extends: demo\nmodels: {rigid: {solvers: [F(1)]}}\n", "stage 2 does not fit 1 scales"),
        ("extends: demo\ngrid: {shape: [81, 80, 56]}\n", "81"),
        ("extends: nothing\n", "no such profile"),
        ("extends: bad\n", "extends itself"),
        ("[1, 2]\n", "a profile is a mapping"),
        ("a: [\n", "not a readable YAML file"),
    ],
)
def test_a_bad_profile_is_named(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_profile(path)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_missing_profile_lists_the_built_in_ones():
    with pytest.raises(InputError, match="built in: demo, paper, smoke"):
        load_profile("grand")


def test_a_profile_is_called_as_its_file_where_it_says_no_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: demo\n")
    assert load_profile(path).name == "mine"
