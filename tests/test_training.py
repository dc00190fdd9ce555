"""Training: it learns, it resumes to the bit, and what it draws is what it says."""

import shutil

import pytest
import torch

from odereg_core.files import load_tensors
from odereg_core.losses import self_loss
from odereg_core.profiles import Augmentation, load_profile
from odereg_core.train import registration
from odereg_core.train.augment import augment, random_contrast
from odereg_core.train.registration import Trainer, train
from odereg_core.transforms import Rigid


@pytest.fixture
def profile(tiny_profile):
    return load_profile(tiny_profile)


def test_resumed_is_uninterrupted_to_the_bit(tmp_path, profile, tiny_cohort, monkeypatch):
    whole = train("rigid", profile, tiny_cohort, tmp_path / "whole", "cpu")
    steps = Trainer.step

    def killed(self, number):
        if number == 7:  # after the checkpoint at step 6, in the second stage
            raise KeyboardInterrupt
        return steps(self, number)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train("rigid", profile, tiny_cohort, tmp_path / "cut", "cpu")
    assert not (tmp_path / "cut" / "rigid.safetensors").exists()
    monkeypatch.setattr(Trainer, "step", steps)
    resumed = train("rigid", profile, tiny_cohort, tmp_path / "cut", "cpu")
    ours, theirs = load_tensors(resumed)[0], load_tensors(whole)[0]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    logs = [
        [line.split(",")[2:] for line in (p / "rigid.log.csv").read_text().splitlines()]
        for p in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert [row[1:] for row in logs[0]] == [row[1:] for row in logs[1]]


def test_l_self_has_no_units():
    rigid = Rigid()
    like = torch.zeros(2, 6)
    assert float(self_loss(rigid.unit(like).expand(2, 6), like, rigid)) == pytest.approx(1)


def test_training_never_sees_an_evaluation_motion(profile, tiny_cohort, monkeypatch):
    trainer = Trainer("rigid", profile, tiny_cohort, "cpu")

    def forbidden(*_, **__):
        raise AssertionError("a step drew an evaluation pair")

    monkeypatch.setattr(registration, "simulate", forbidden)
    assert trainer.step(0)["loss"] > 0


def test_a_step_depends_on_its_number_alone(profile, tiny_cohort):
    losses = []
    for _ in range(2):
        trainer = Trainer("rigid", profile, tiny_cohort, "cpu")
        losses.append(trainer.step(3)["loss"])
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_it_learns_to_undo_small_motions(tiny_cohort, profile):
    """Two hundred steps on one image more than halve L_self."""
    section = profile.models["rigid"]
    stage = section.stages[0].model_copy(
        update={"steps": 200, "batch": 8, "lr": 3e-3, "solvers": ("F(0.5)",) * 3}
    )
    quiet = Augmentation(contrast=0, bias=0, noise=0, blur=0, erode=0)
    section = section.model_copy(update={"stages": (stage,), "augment": quiet})
    trainer = Trainer(
        "rigid", profile.model_copy(update={"models": {"rigid": section}}), tiny_cohort, "cpu"
    )
    losses = [trainer.step(i)["loss"] for i in range(200)]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


def test_augmentation_keeps_the_range_and_the_background():
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(4, 1, 12, 12, 10, generator=rng)
    image[:, :, :3] = 0
    for settings in (Augmentation(), Augmentation(erode=0)):
        seen = augment(image, settings, rng)
        assert seen.min() >= 0 and seen.max() <= 1 and torch.isfinite(seen).all()
        if settings.erode == 0 and settings.blur == 0:
            assert not seen[image == 0].any()
    nothing = Augmentation(contrast=0, bias=0, noise=0, blur=0, erode=0)
    assert torch.equal(augment(image, nothing, rng), image)


def test_random_contrast_is_a_function_of_intensity():
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 6, 6, 6, generator=rng)
    image[0, 0, 0] = image[0, 0, 1]  # equal intensities stay equal
    mapped = random_contrast(image, rng)
    assert torch.equal(mapped[0, 0, 0], mapped[0, 0, 1])
    assert not torch.allclose(mapped, image)


def test_a_checkpoint_of_a_finished_training_changes_nothing(tmp_path, profile, tiny_cohort):
    first = train("rigid", profile, tiny_cohort, tmp_path / "a", "cpu")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    again = train("rigid", profile, tiny_cohort, tmp_path / "b", "cpu")
    assert first.read_bytes() == again.read_bytes()
