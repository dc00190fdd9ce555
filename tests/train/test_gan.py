"""The GAN's training: its losses as section 2.2 says, two sides that move apart, and resuming."""

import pytest
import torch
import torch.nn.functional as F

from odereg_core.files import load_tensors
from odereg_core.networks.disentangle import Disentangler
from odereg_core.profiles import load_profile
from odereg_core.train.gan import (
    CLIP,
    GanTrainer,
    gradient_penalty,
    noisy,
    reconstruction_losses,
    swap,
    train,
    wasserstein,
)


@pytest.fixture
def section(tiny_profile):
    return load_profile(tiny_profile).encoders["encoder"]


@pytest.fixture
def trainer(section, tiny_cohort):
    return GanTrainer(section, tiny_cohort, "cpu")


def samples(trainer, seed=0):
    return trainer.draw(torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_swaps_and_reconstructions_are_section_2_2s(trainer):
    model: Disentangler = trainer.translator
    a, b = samples(trainer)
    s = swap(model, a, b, model.generator)
    x_ab = model.generator(model.content(a.image), model.style(b.image, b.code), b.code)
    assert torch.equal(s.translated[0], x_ab)
    losses = reconstruction_losses(model, a, b, s, model.generator)
    x_ba = s.translated[1]
    aba = model.generator(model.content(x_ab), model.style(x_ba, a.code), a.code)
    bab = model.generator(model.content(x_ba), model.style(x_ab, b.code), b.code)
    wanted = (F.l1_loss(aba, a.image) + F.l1_loss(bab, b.image)) / 2
    assert float(losses["cycle"]) == pytest.approx(float(wanted), rel=1e-5)
    wanted = (F.l1_loss(model.style(x_ba, a.code), s.style[0])
              + F.l1_loss(model.style(x_ab, b.code), s.style[1])) / 2  # fmt: skip
    assert float(losses["rec_style"]) == pytest.approx(float(wanted), rel=1e-5)


def test_the_generator_sees_white_noise_on_the_foreground_alone():
    content = torch.ones(2, 8, 40, 40)
    content[:, :, :, 20:] = 0
    seen = noisy(lambda c, *_: c, 0.5, torch.Generator().manual_seed(0))(content, None, None)
    assert torch.equal(seen[:, :, :, 20:], content[:, :, :, 20:])
    noise = (seen - content)[:, :, :, :20]
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)
    assert abs(float(noise.mean())) < 0.01


def test_the_two_images_of_a_pair_differ_in_contrast(trainer):
    for seed in range(5):
        a, b = samples(trainer, seed)
        assert not (a.code * b.code).any()
        assert a.image.shape == b.image.shape and a.image.shape[1] == trainer.translator.slices


def test_the_penalty_of_a_linear_critic_is_closed_form():
    """A critic that is k times the mean has a gradient of k / n a voxel: k / sqrt(n) in root sum,
    k in root mean square's terms."""

    def critic(x, code):
        return 3.0 * x.flatten(1).mean(1)

    x = torch.rand(4, 2, 8, 6)
    code = torch.eye(4)
    rng = torch.Generator().manual_seed(0)
    penalty = gradient_penalty(critic, (x, code), (1 - x, code), rng)
    assert float(penalty) == pytest.approx((3.0 - 1) ** 2, rel=1e-4)
    assert float(wasserstein(critic, (x, code), (x, code))) == 0


def test_each_side_moves_its_own_weights_alone(trainer):
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.critic_step(torch.Generator().manual_seed(1))
    moved = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(k.split(".")[0].endswith("critic") for k in moved)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.generator_step(torch.Generator().manual_seed(1), 0.5)
    moved = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(k.startswith("translator") for k in moved)


def test_without_a_penalty_weights_are_clipped(section, tiny_cohort):
    clipped = section.model_copy(update={"penalty": 0.0})
    trainer = GanTrainer(clipped, tiny_cohort, "cpu")
    trainer.critic_step(torch.Generator().manual_seed(1))
    weights = [p.detach() for c in trainer.critics for p in c.parameters()]
    assert max(float(w.abs().max()) for w in weights) <= CLIP


def test_critics_learn_to_tell(trainer):
    """Against a generator that stands still, the image critic comes to score images higher."""
    distances = [
        trainer.critic_step(torch.Generator().manual_seed(i))["w_image"] for i in range(60)
    ]
    assert min(distances[-10:]) > 0 and sum(distances[-10:]) > 2 * abs(sum(distances[:10]))


@pytest.mark.slow
def test_it_learns_to_reconstruct(section, tiny_cohort):
    quick = section.model_copy(update={"lr": 3e-3, "steps": 60, "critic_steps": 1})
    trainer = GanTrainer(quick, tiny_cohort, "cpu")
    losses = [trainer.step(i)["rec_image"] for i in range(60)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_resumed_is_uninterrupted_to_the_bit(tmp_path, tiny_profile, tiny_cohort, monkeypatch):
    profile = load_profile(tiny_profile)
    whole = train("encoder", profile, tiny_cohort, tmp_path / "whole", "cpu")
    assert (tmp_path / "whole" / "encoder.swaps.png").stat().st_size > 1000
    steps = GanTrainer.step

    def killed(self, number):
        if number == 5:  # after the checkpoint at step 3
            raise KeyboardInterrupt
        return steps(self, number)

    monkeypatch.setattr(GanTrainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train("encoder", profile, tiny_cohort, tmp_path / "cut", "cpu")
    monkeypatch.setattr(GanTrainer, "step", steps)
    resumed = train("encoder", profile, tiny_cohort, tmp_path / "cut", "cpu")
    ours, theirs = load_tensors(resumed)[0], load_tensors(whole)[0]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
