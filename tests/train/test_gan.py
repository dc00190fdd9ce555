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
    wanted = (F.l1_loss(model.content(x_ab), model.content(a.image))
              + F.l1_loss(model.content(x_ba), model.content(b.image))) / 2  # fmt: skip
    assert float(losses["rec_content"]) == pytest.approx(float(wanted), rel=1e-5)
    same = [model.generator(model.content(x.image), model.style(x.image, x.code), x.code)
            for x in (a, b)]  # fmt: skip
    wanted = (F.l1_loss(same[0], a.image) + F.l1_loss(same[1], b.image)) / 2
    assert float(losses["rec_image"]) == pytest.approx(float(wanted), rel=1e-5)


def score(x, code):
    """A critic that knows where it looks, and for which contrast."""
    place = torch.linspace(0, 1, x[0].numel()).view_as(x[0])
    return (place * x).flatten(1).mean(1) * (code @ torch.tensor([1.0, 2.0, 4.0, 8.0]))


def test_the_generator_deceives_the_critic_of_images_and_hides_the_contrast_in_contents(
    section, tiny_cohort
):
    """Its loss from its parts: translations score high as what they are translated into, and a
    content code no higher with its own contrast than with the other's."""
    weights = {"cycle": 2.0, "image": 3.0, "features": 5.0, "invariance": 7.0, "recolour": 11.0,
               "adversarial": 13.0, "content_adversarial": 170.0, "noise": 0.0}  # fmt: skip
    trainer = GanTrainer(section.model_copy(update=weights), tiny_cohort, "cpu")
    trainer.critics = [score, lambda c, code: score(c.abs(), 2 * code)]
    model, ramp = trainer.translator, 0.4
    with torch.no_grad():
        a, b = samples(trainer)
        contents = [model.content(x.image) for x in (a, b)]
        styles = [model.style(x.image, x.code) for x in (a, b)]
        x_ab = model.generator(contents[0], styles[1], b.code)
        x_ba = model.generator(contents[1], styles[0], a.code)
        seen = torch.cat([score(x_ab, b.code), score(x_ba, a.code)]).mean()
        (own_a, other_a), (own_b, other_b) = (
            [score(content.abs(), 2 * x.code).mean() for x in order]
            for content, order in zip(contents, ((a, b), (b, a)), strict=True)
        )
        told = (own_a + own_b - other_a - other_b) / 2
    terms = trainer.generator_step(torch.Generator().manual_seed(0), ramp / 2)
    parts = [
        2 * terms["cycle"],
        3 * terms["rec_image"],
        5 * ramp * terms["rec_content"],
        5 * terms["rec_style"],
        7 * ramp * terms["invariance"],
        11 * terms["recolour"],
        -13 * float(seen),
        170 * ramp * float(told),
    ]
    assert min(map(abs, parts)) > 5e-3  # so that none goes unseen
    assert terms["loss"] == pytest.approx(sum(parts), abs=1e-3)


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
