"""Profiles: the built-in ones are sound, bad ones are named."""

import pytest

from odereg_core.errors import InputError
from odereg_core.networks.regression import Rcn
from odereg_core.profiles import BUILT_IN, load_profile


def test_the_built_in_profiles():
    assert set(BUILT_IN) == {"smoke", "demo", "paper"}
    for name in BUILT_IN:
        profile = load_profile(name)
        assert profile.name == name
        for section in profile.models.values():
            profile.working_grid.pyramid(len(section.solvers))


@pytest.mark.parametrize(
    ("name", "solvers", "lambda_reg"),
    [
        ("rigid", ("A(1e-3)", "A(1e-3)", "F(0.1)"), 0),
        ("bspline", ("F(0.2)", "F(0.2)", "F(0.25)"), 2),
        ("dense", ("F(0.2)", "F(0.2)", "F(0.5)"), 10),
    ],
)
def test_the_models_of_the_paper_profile_are_section_3_1s(name, solvers, lambda_reg):
    section = load_profile("paper").models[name]
    assert section.solvers == solvers and section.time == len(solvers) == 3  # L = T = 3
    assert (section.lambda_self, section.lambda_reg) == (1, lambda_reg)
    assert section.similarity == "content" and section.adjoint == "aca"
    assert {(stage.lr, stage.decay) for stage in section.stages} == {(1e-4, 1)}
    last = section.stages[-1]
    assert (last.objective, last.scales, last.solvers) == ("losses", 3, None)


def test_the_rest_of_the_paper_profile_is_section_3_1s():
    """The GAN by [2], whose critics take five steps to one of the generator's."""
    paper = load_profile("paper")
    assert paper.grid.shape == (240, 240, 160) and paper.grid.spacing == 1
    assert paper.split.test == 50 and paper.evaluation.pairs == 0  # all 600 pairs
    encoder, single = (paper.encoders[name] for name in ("encoder", "encoder_single"))
    assert (encoder.network["slices"], single.network["slices"]) == (5, 1)
    assert encoder.lr == 1e-4 and encoder.critic_steps == 5
    stages = [stage for baseline in paper.baselines.values() for stage in baseline.stages]
    assert {(stage.lr, stage.decay) for stage in stages} == {(1e-4, 1)}
    metrics = {name: baseline.similarity for name, baseline in paper.baselines.items()}
    assert metrics == {"vm": "mi", "vm_i2i": "ncc", "vm_told": "mi", "rcn": "mi"}
    assert len(Rcn().dense) == 2
    moved = {name: section.motion for name, section in paper.models.items()}
    assert (moved["rigid"].rotation_deg, moved["rigid"].translation_mm) == (75, 20)
    hybrid = paper.baselines["rcn"].motion
    assert (hybrid.rotation_deg, hybrid.translation_mm, hybrid.control_mm) == (40, 10, 8)


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
        ("extends: demo\nmodels: {rigid: {solvers: [F(1)]}}\n", "stage 3 does not fit 1 scales"),
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


@pytest.mark.parametrize("name", ["demo", "paper"])
def test_learned_baselines_see_as_many_samples_as_ours(name):
    """Of their task; of the hybrid one, as many as both stages of ours together."""
    profile = load_profile(name)

    def seen(model):
        section = profile.section(model)
        own = sum(stage.steps * stage.batch for stage in section.stages)
        start = getattr(section, "start", None)
        return own + (seen(start) if start else 0)

    deformable = max(seen("bspline"), seen("dense"))
    assert min(map(seen, ("vm", "vm_i2i", "vm_told"))) >= deformable
    assert seen("rcn") >= seen("rigid") + deformable
