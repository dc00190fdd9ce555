"""Warnings fire on what training had not, and are silent on what it had."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odereg_core.errors import InputError
from odereg_core.files import load_tensors, save_tensors, sha256
from odereg_core.grid import Grid
from odereg_core.profiles import load_profile
from odereg_core.registration import register
from odereg_core.seen import KEY, MARGIN, Seen, cut_cm2, load_seen, of_image, of_result
from odereg_core.train.calibrate import calibrate
from odereg_core.train.registration import train
from odereg_core.volume import Volume, model_image
from odereg_core.weights import load_model, shipped


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9), st.floats(-500, 500))
def test_outside_is_past_the_range_by_the_margin(values, value):
    seen = Seen.gather([{"mean": v, "cut_cm2": v} for v in values], {})
    low, high = min(values), max(values)
    margin = MARGIN * (high - low)
    assert bool(seen.outside({"mean": value}, "x")) == (not low - margin <= value <= high + margin)
    assert bool(seen.outside({"cut_cm2": value}, "x")) == (value > high + margin)
    assert seen.outside({"unheard of": value}, "x") == []


def test_it_is_kept_in_the_weights(tmp_path, tiny_cohort, untrained):
    path = tmp_path / "rigid.safetensors"
    path.write_bytes((untrained / "rigid.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"rigid\.json: there is no such file"):
        calibrate(path, tiny_cohort)
    path.with_suffix(".json").write_bytes((untrained / "rigid.json").read_bytes())
    assert load_seen(path) is None
    tensors = load_tensors(path)[0]
    seen = calibrate(path, tiny_cohort)
    again = load_seen(path)
    assert again.facts == seen.facts and again.facts["cohort"] == tiny_cohort.settings
    for name, bounds in seen.ranges.items():
        assert again.ranges[name] == pytest.approx(bounds, rel=1e-3)
    assert all(torch.equal(v, tensors[k]) for k, v in load_tensors(path)[0].items())
    load_model(path)
    # Every training image of the cohort, as it is, lies inside.
    for name in tiny_cohort.names("train"):
        for image in tiny_cohort.load(name).images:
            assert not seen.outside(of_image(image[None, None], tiny_cohort.grid), name)
    bad = tmp_path / "demo.safetensors"
    bad.write_bytes(shipped("rigid").read_bytes())
    with pytest.raises(InputError, match="another grid"):
        calibrate(bad, tiny_cohort)
    for text in ("{", "[]", '{"ranges": {"mean": 3}, "facts": {}}'):
        save_tensors(path, tensors, {KEY: text})
        with pytest.raises(InputError, match="cannot be read"):
            load_seen(path)


def test_calibration_repeats_what_training_measured(tmp_path, tiny_cohort, tiny_profile):
    profile = load_profile(tiny_profile)
    section = profile.models["rigid"]
    milder = section.augment.model_copy(update={"bias": 0.0, "noise": 0.0, "contrast": 0.0})
    section = section.model_copy(update={"augment": milder})
    profile = profile.model_copy(update={"models": {"rigid": section}})
    weights = train("rigid", profile, tiny_cohort, tmp_path, "cpu")
    trained = load_seen(weights)
    again = calibrate(weights, tiny_cohort)
    assert again.facts["registrations"] == trained.facts["registrations"]
    for name in ("mean", "spread", "roughness", "litres"):
        assert again.ranges[name] == pytest.approx(trained.ranges[name], rel=1e-3)


def test_a_finer_scan_is_as_large_on_the_models_grid_as_it_was():
    """Its smoothed edge, brought to larger voxels, is no head."""
    shape = (160, 180, 150)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2
    blank = Volume(np.zeros(shape, np.float32), affine, np.array([[0, 1], [1, 1], [2, 1.0]]), "x")
    x, y, z = blank.world()
    inside = (x / 65) ** 2 + (y / 80) ** 2 + (z / 60) ** 2 < 1
    data = np.where(inside, 300 + 100 * np.sin(x / 11) + 60 * np.cos(y / 9), 0)
    grid = Grid((80, 80, 56), (3.0, 3.0, 3.0))
    image = model_image(blank.with_data(data.astype(np.float32)), inside, grid, blank.centre)
    assert of_image(image, grid)["litres"] == pytest.approx(inside.sum() / 1e6, rel=0.01)
    assert float(image[image > 0].min()) > 0.25  # nor is it dimmer at its edge


def test_measures_are_what_they_say():
    grid = Grid((20, 20, 16), (5.0, 5.0, 6.0))
    image = torch.zeros(1, 1, 20, 20, 16)
    image[..., 4:14, 5:15, :8] = 0.5
    found = of_image(image, grid)
    assert found["litres"] == pytest.approx(800 * 150 / 1e6)
    assert found["mean"] == 0.5 and found["spread"] == 0
    assert found["cut_cm2"] == pytest.approx(100 * 25 / 100) == cut_cm2(image[0, 0] > 0, (5, 5, 6))


def test_scales_that_agree_differ_by_nothing(tiny_cohort, untrained):
    model = load_model(untrained / "rigid.safetensors")
    image = tiny_cohort.load(tiny_cohort.names("train")[0]).images[:1, None]
    result = model(image, image)
    found = of_result(result, model.transform, image > 0)
    assert found["rotation_deg"] == found["translation_mm"] == found["scales_mm"] == 0
    result.theta = result.theta + torch.tensor([[0, 0, 0, 3.0, 4.0, 0]])
    found = of_result(result, model.transform, image > 0)
    assert found["translation_mm"] == 4 and found["scales_mm"] == pytest.approx(5)


def head(radius_mm=62.0, cut=False, rng=None):
    """A brain-sized ball of three tissues, smooth or noisy."""
    shape, affine = (60, 60, 50), np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -2.0 * (np.array(shape) - 1)
    volume = Volume(np.zeros(shape, np.float32), affine, np.array([[0, 1], [1, 1], [2, 1.0]]), "x")
    x, y, z = volume.world()
    radius = np.sqrt((x / 1.1) ** 2 + (y / 1.25) ** 2 + z**2)
    texture = np.sin(x / 11) + np.sin(y / 9 + z / 12) + 0.7 * np.cos(z / 10)
    data = np.where(radius < radius_mm, 400 + 120 * texture, 0)
    if cut:
        data = data[:, :, 20:30]
        affine[2, 3] += 80
    return Volume(data.astype(np.float32).clip(0), affine, volume.orientation, "x")


@pytest.mark.parametrize(
    ("scan", "words"),
    [
        (head(), None),
        (head(radius_mm=95.0), "Is the skull still on"),
        (head(cut=True), "cut off by its field of view"),
        (head(radius_mm=35.0), "that is not background"),
    ],
)
def test_the_report_says_so(scan, words):
    report = register(scan, head(), device="cpu").report
    said = [w for w in report["warnings"] if w.startswith("The moving scan")]
    assert any(words in w for w in said) if words else said == []
    assert set(report["measures"]) == {"moving", "fixed", "rigid"}


def test_a_map_that_leaves_the_contents_apart_is_lost(tmp_path, untrained):
    """Identity weights, two heads apart; the range holds for the encoder it was measured with."""
    tensors, metadata = load_tensors(untrained / "rigid.safetensors")
    away = head().with_data(np.roll(head().data, 6, axis=0))
    for encoder in (sha256(shipped("encoder")), "another"):
        seen = Seen({"content": (0.0, 0.02)}, {"encoder": encoder})
        save_tensors(tmp_path / "rigid.safetensors", tensors, {**metadata, KEY: seen.dumps()})
        options = {"weights": tmp_path / "rigid.safetensors", "device": "cpu"}
        same = register(head(), head(), **options).report
        assert same["measures"]["rigid"]["content"] == 0 and same["warnings"] == []
        apart = register(away, head(), **options).report
        assert apart["measures"]["rigid"]["content"] > 0.025
        assert ["probably lost" in w for w in apart["warnings"]] == [True] * (encoder != "another")


def test_weights_that_do_not_say_are_named(untrained):
    report = register(head(), head(), weights=untrained / "rigid.safetensors", device="cpu").report
    assert report["warnings"] == ["These weights do not say what their training saw."]


def test_refining_comes_nearer_to_the_truth(untrained):
    away = head().with_data(np.roll(head().data, 1, axis=0))
    options = {"weights": untrained / "rigid.safetensors", "device": "cpu"}
    shift = np.array([1.0, 0, 0]) * head().spacing[0]
    errors = []
    for steps in (0, 24):  # of at most a tenth of a millimetre
        found = register(away, head(), **options, refine=steps).displacement
        errors.append(np.abs(found.mean((1, 2, 3)) - shift).max())
    assert errors[1] < 0.7 * errors[0]


def test_refining_lowers_the_loss_and_moves_the_last_stage(untrained):
    weights = [untrained / "rigid.safetensors", untrained / "bspline.safetensors"]
    away = head().with_data(np.roll(head().data, 1, axis=0))
    options = {"transform": "rigid+bspline", "weights": weights, "device": "cpu"}
    plain = register(away, head(), **options)
    refined = register(away, head(), **options, refine=4)
    assert refined.report["refined"]["loss_after"] < refined.report["refined"]["loss_before"]
    assert "refined" not in plain.report
    (first, last), (first_before, last_before) = (
        [stage.theta for stage in each.trajectory.stages] for each in (refined, plain)
    )
    assert torch.equal(first, first_before)
    assert not torch.equal(last, last_before)
