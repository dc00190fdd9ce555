"""Training: it learns, it resumes to the bit, and what it draws is what it says."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from odereg_core import motion as simulated
from odereg_core import pairs
from odereg_core.cohort import Cohort
from odereg_core.errors import InputError
from odereg_core.files import load_tensors, read_json, save_tensors, sha256, write_json
from odereg_core.losses import regularity, self_loss
from odereg_core.metrics import rmse_phi
from odereg_core.msodenet import MSODENet, Registration
from odereg_core.profiles import Augmentation, load_profile
from odereg_core.seen import load_seen
from odereg_core.similarity import MutualInformation
from odereg_core.train.augment import augment, random_contrast
from odereg_core.train.draws import motion
from odereg_core.train.loop import start_from
from odereg_core.train.registration import UNDERWAY, Trainer, Volumes, build, train
from odereg_core.train.team import Team
from odereg_core.transforms import Rigid
from odereg_core.warp import warp
from odereg_core.weights import shipped

TRANSFORMS = ("rigid", "bspline", "dense")
QUIET = Augmentation(contrast=0, bias=0, noise=0, blur=0, erode=0, stretch=0)


@pytest.fixture
def profile(tiny_profile):
    return load_profile(tiny_profile)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_resumed_is_uninterrupted_to_the_bit(tmp_path, profile, tiny_cohort, monkeypatch, name):
    whole = train(name, profile, tiny_cohort, tmp_path / "whole", "cpu")
    steps = Trainer.step

    def killed(self, number):
        if number == 7:  # after the checkpoint at step 6, in the second stage
            raise KeyboardInterrupt
        return steps(self, number)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(name, profile, tiny_cohort, tmp_path / "cut", "cpu")
    assert not (tmp_path / "cut" / f"{name}.safetensors").exists()
    monkeypatch.setattr(Trainer, "step", steps)
    resumed = train(name, profile, tiny_cohort, tmp_path / "cut", "cpu")
    ours, theirs = load_tensors(resumed)[0], load_tensors(whole)[0]
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    logs = [
        [line.split(",")[2:] for line in (p / f"{name}.log.csv").read_text().splitlines()]
        for p in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert [row[1:] for row in logs[0]] == [row[1:] for row in logs[1]]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_training_never_sees_an_evaluation_motion(profile, tiny_cohort, monkeypatch, name):
    trainer = Trainer(name, profile, tiny_cohort, "cpu")

    def forbidden(*_, **__):
        raise AssertionError("a step drew an evaluation motion")

    monkeypatch.setattr(simulated.Motion, "draw", forbidden)
    for module in (simulated, pairs):
        monkeypatch.setattr(module, "pair_generator", forbidden)
    assert {stage.objective for stage in trainer.section.stages} == {"velocity", "losses"}
    for start in trainer.schedule.starts:
        assert trainer.step(start)["loss"] > 0


def test_a_step_depends_on_its_number_alone(profile, tiny_cohort):
    losses = []
    for _ in range(2):
        trainer = Trainer("rigid", profile, tiny_cohort, "cpu")
        losses.append(trainer.step(3)["loss"])
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["velocity", "losses"])
def test_it_learns_to_undo_small_motions(tiny_cohort, profile, objective):
    """On images that look alike the paper's loss falls; the warm-up fits what it sees again."""
    section = profile.models["rigid"]
    stage = section.stages[0].model_copy(
        update={
            "objective": objective,
            "steps": 200,
            "batch": 8,
            "lr": 3e-3,
            "solvers": ("F(0.5)",) * 3,
        }
    )
    small = section.motion.model_copy(update={"rotation_deg": 40.0, "mixed": 0.0})
    section = section.model_copy(update={"stages": (stage,), "augment": QUIET, "motion": small})
    trainer = Trainer(
        "rigid", profile.model_copy(update={"models": {"rigid": section}}), tiny_cohort, "cpu"
    )
    again = objective == "velocity"
    losses = [trainer.step(0 if again else i)["loss"] for i in range(200)]
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])


def test_warm_up_trains_one_scale_and_the_losses_all(profile, tiny_cohort):
    trainer = Trainer("bspline", profile, tiny_cohort, "cpu")
    for stage, moved in ((0, {0}), (1, {0, 1})):
        before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        trainer.step(trainer.schedule.starts[stage])
        after = trainer.model.state_dict()
        found = {int(k.split(".")[1]) for k, v in after.items() if not torch.equal(v, before[k])}
        assert found == moved


def test_a_stage_may_train_through_other_solvers_than_the_model_is_validated_with(
    profile, tiny_cohort
):
    section = profile.models["bspline"]
    stage = section.stages[1].model_copy(
        update={"scales": 3, "solvers": ("F(1)", "F(0.25)", "F(1)")}
    )
    section = section.model_copy(update={"stages": (stage,), "solvers": ("F(0.5)",) * 3})
    profile = profile.model_copy(update={"models": {"bspline": section}})
    trainer = Trainer("bspline", profile, tiny_cohort, "cpu")
    for _ in range(2):
        assert trainer.step(0)["nfe"] == 1 + 4 + 1
        assert trainer.validate(3)["val_nfe"] == 2 + 2 + 2


def quiet(profile, name, **changes):
    """The profile, its images seen as they are."""
    section = profile.models[name].model_copy(update={"augment": QUIET, **changes})
    return profile.model_copy(update={"models": {**profile.models, name: section}})


def answer(trainer, monkeypatch, theta):
    """Let a trainer's model answer `theta`, whatever it sees."""

    def forward(moving, fixed, scales):
        grids = trainer.model.grids[:scales]
        assert moving.shape == fixed.shape and tuple(moving.shape[2:]) == grids[-1].shape
        return Registration(theta, [], grids)

    monkeypatch.setattr(trainer.model, "forward", forward)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_total_loss_is_the_papers_sum(profile, tiny_cohort, monkeypatch, name):
    """L_sim + lambda_self L_self + lambda_reg L_reg of a known answer: L_sim on the pairs of two
    contrasts, warped, L_self on the others, L_reg on both."""
    similarity = MutualInformation(bins=8)
    profile = quiet(profile, name, lambda_self=3.0)
    trainer = Trainer(name, profile, tiny_cohort, "cpu", similarity)
    stage = trainer.section.stages[1].model_copy(update={"batch": 5})
    transform, grid = trainer.model.transform, trainer.model.grids[stage.scales - 1]
    volumes, rng = trainer.use(stage), torch.Generator().manual_seed(0)
    one, two = volumes.draw(5, rng, crossed=2)
    drawn = motion(transform, trainer.section.motion, 5, grid, one, rng)
    fixed = warp(two, drawn.displacement, grid)
    theta = 0.1 * torch.randn(drawn.theta.shape) * transform.unit(drawn.theta)
    u = transform.displacement(theta, grid)

    answer(trainer, monkeypatch, theta)
    found = trainer.losses(stage, volumes, torch.Generator().manual_seed(0))
    l_sim = similarity(warp(one[:2], u[:2], grid), fixed[:2]).mean()
    inside = (fixed[2:] > 0).float()
    l_self = self_loss(theta[2:], drawn.theta[2:], transform, grid, inside)
    lambda_reg = {"rigid": 0, "bspline": 2, "dense": 10}[name]
    close = {"rtol": 1e-4, "atol": 1e-5}  # an image warped by nothing is itself to that
    torch.testing.assert_close(found["l_sim"], l_sim, **close)
    torch.testing.assert_close(found["l_self"], l_self, **close)
    wanted = l_sim + 3 * l_self + lambda_reg * regularity(u, grid)
    torch.testing.assert_close(found["loss"], wanted, **close)


@pytest.mark.parametrize("scales", [1, 2, 3])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_validation_is_the_mean_error_of_what_the_model_answers(
    profile, tiny_cohort, monkeypatch, name, scales
):
    """In NumPy: the identity, which an untrained model answers, leaves the start; a known map what
    is between it and the true one."""
    trainer = Trainer(name, profile, tiny_cohort, "cpu")
    points = np.moveaxis(trainer.pairs[0].grid.points()[0].double().numpy(), 0, -1)

    def left(u):
        brains = [pair.brain[0, 0].numpy() for pair in trainer.pairs]
        true = [np.moveaxis(pair.displacement[0].numpy(), 0, -1) for pair in trainer.pairs]
        return [
            np.sqrt(((t - u) ** 2).sum(-1)[b].mean()) for t, b in zip(true, brains, strict=True)
        ]

    errors = left(0 * points)
    found = trainer.validate(scales)
    assert found["rmse_phi_mm"] == pytest.approx(np.mean(errors), rel=1e-4) and min(errors) > 1
    shift = np.array([3.0, -4.0, 5.0])
    theta = trainer.model.transform.identity(1, trainer.model.grids[scales - 1])
    if name == "rigid":
        u = Rotation.from_rotvec([0, 0, 0.3]).apply(points.reshape(-1, 3)).reshape(points.shape)
        u = u + shift - points
        theta[0] = torch.tensor([0, 0, 0.3, *shift])
    else:
        u = shift
        theta += torch.tensor(shift, dtype=torch.float32)[:, None, None, None]
    answer(trainer, monkeypatch, theta)
    errors = left(u)
    found = trainer.validate(scales)
    assert found["rmse_phi_mm"] == pytest.approx(np.mean(errors), rel=1e-4)


class Constant(torch.nn.Module):
    """Dynamics that answer one velocity, in units of the range, and remember what they saw."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity, self.seen = velocity, []

    def known(self, fixed):
        return ()

    def forward(self, warped, fixed, t):
        self.seen.append(warped)
        return self.velocity.expand(len(warped), -1)


def test_a_solved_state_is_where_the_networks_own_steps_lead(profile, tiny_cohort, monkeypatch):
    """Some Euler steps from the identity, as many for the whole batch; a drawn state is none."""
    profile, network = (
        quiet(profile, "rigid"),
        Constant(torch.tensor([[0.2, -0.1, 0.3, 0.5, 0, 1]])),
    )
    trainer = Trainer("rigid", profile, tiny_cohort, "cpu")
    trainer.model.networks[0] = network
    rigid, grid = Rigid(), trainer.model.grids[0]
    theta, states = torch.zeros(4, 6), []
    for _ in range(UNDERWAY[0]):
        velocity = network.velocity * rigid.unit(theta)
        theta = theta + UNDERWAY[1] * rigid.rate(theta, velocity)
        states.append(theta)
    asked = []
    towards = trainer.model.transform.towards
    monkeypatch.setattr(
        trainer.model.transform,
        "towards",
        lambda theta, target: asked.append(theta) or towards(theta, target),
    )
    taken = set()
    for solved in (1.0, 0.0):
        stage = trainer.section.stages[0].model_copy(update={"batch": 4, "solved": solved})
        for seed in range(3):
            volumes = trainer.use(stage)
            one, _ = volumes.draw(4, torch.Generator().manual_seed(seed))
            trainer.velocity(stage, volumes, torch.Generator().manual_seed(seed))
            at = [k for k, s in enumerate(states) if torch.allclose(asked[-1], s, atol=1e-4)]
            assert len(at) == solved
            taken.update(at)
            warped = warp(one, rigid.displacement(asked[-1], grid), grid)
            torch.testing.assert_close(network.seen[-1], warped, atol=1e-4, rtol=0)
    assert len(taken) > 1


def test_pairs_for_l_sim_are_two_contrasts_of_one_subject(profile, tiny_cohort):
    volumes = Volumes(tiny_cohort, 1, 3, "cpu")
    one, two = volumes.draw(8, torch.Generator().manual_seed(0), crossed=3)
    same = [(a > 0).eq(b > 0).float().mean() > 0.95 for a, b in zip(one, two, strict=True)]
    assert all(same), "one anatomy"
    assert [torch.equal(a, b) for a, b in zip(one, two, strict=True)] == [False] * 3 + [True] * 5


def test_augmentation_keeps_the_range_and_the_background():
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(4, 1, 12, 12, 10, generator=rng)
    image[:, :, :3] = 0
    for settings in (Augmentation(), Augmentation(blur=0), Augmentation(erode=0, blur=0)):
        seen = augment(image, settings, rng)
        assert seen.min() >= 0 and seen.max() <= 1 and torch.isfinite(seen).all()
        if not settings.blur:  # which alone reaches past an edge
            assert not seen[image == 0].any()
    nothing = Augmentation(contrast=0, bias=0, noise=0, blur=0, erode=0)
    assert torch.equal(augment(image, nothing, rng), image)


def test_random_contrast_is_a_function_of_intensity():
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 6, 6, 6, generator=rng)
    image[0, 0, 0] = image[0, 0, 1]  # equal intensities stay equal
    mapped = random_contrast(image, 7, rng)
    assert torch.equal(mapped[0, 0, 0], mapped[0, 0, 1])
    assert not torch.allclose(mapped, image)


def test_a_checkpoint_of_a_finished_training_changes_nothing(tmp_path, profile, tiny_cohort):
    first = train("rigid", profile, tiny_cohort, tmp_path / "a", "cpu")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    again = train("rigid", profile, tiny_cohort, tmp_path / "b", "cpu")
    assert first.read_bytes() == again.read_bytes()


def test_fine_tuning_starts_from_the_weights_given(tmp_path, profile, tiny_cohort, untrained):
    """Warm-up of a finer scale keeps its weights; from nothing it takes the coarser's."""
    tensors, metadata = load_tensors(untrained / "bspline.safetensors")
    given = {key: value + 0.1 for key, value in tensors.items()}
    init = tmp_path / "init.safetensors"
    save_tensors(init, given, metadata)
    write_json(tmp_path / "init.json", {"samples": 100})
    trainer = Trainer("bspline", profile, tiny_cohort, "cpu", init=init)
    for step in (0, 5):
        trainer.step(step)
    for key, value in trainer.model.state_dict().items():
        assert (value - given[key]).abs().max() < 5e-3  # two steps of Adam away
    tuned = train("bspline", profile, tiny_cohort, tmp_path / "tuned", "cpu", init=init)
    record = read_json(tuned.with_suffix(".json"))
    assert record["init"] == sha256(init)
    stages = profile.models["bspline"].stages
    assert record["samples"] == 100 + sum(stage.steps * stage.batch for stage in stages)
    assert record["before"] == {"samples": 100}
    assert load_seen(tuned).facts["registrations"] == 4


@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_demo_ships_it_can_tune(name):
    demo = load_profile("demo")
    start_from(build(name, demo, demo.models[name]), shipped(name))


def test_fine_tuning_refuses_another_kind_grid_or_network(
    tmp_path, profile, tiny_cohort, untrained
):
    def refused(init, words, chosen=profile):
        with pytest.raises(InputError, match=words) as error:
            train("rigid", chosen, tiny_cohort, tmp_path, "cpu", init=init)
        assert str(init) in str(error.value) and "\n" not in str(error.value)

    refused(untrained / "dense.safetensors", "its transform is dense, that of the profile rigid")
    refused(shipped("rigid"), "its shape is .80, 80, 56., that of the profile .40, 40, 28.")
    refused(shipped("encoder"), "weights of format")
    section = profile.models["rigid"]
    wide = section.model_copy(update={"network": {"width": 6, "hidden": 32}})
    refused(
        untrained / "rigid.safetensors",
        "its network is",
        profile.model_copy(update={"models": {"rigid": wide}}),
    )
    short = section.model_copy(update={"solvers": section.solvers[:2]})
    refused(
        untrained / "rigid.safetensors",
        "as many scales",
        profile.model_copy(update={"models": {"rigid": short}}),
    )


def test_a_cohort_that_cannot_train_is_refused(tmp_path, profile, tiny_cohort):
    with pytest.raises(InputError, match="another grid than the profile 'demo'"):
        train("rigid", load_profile("demo"), tiny_cohort, tmp_path, "cpu")
    shutil.copytree(tiny_cohort.folder, tmp_path / "test")
    index = read_json(tmp_path / "test" / "cohort.json")
    index["split"] = {"train": [], "val": [], "test": tiny_cohort.names("train")}
    write_json(tmp_path / "test" / "cohort.json", index)
    with pytest.raises(InputError, match="no subject is for 'train'"):
        train("rigid", profile, Cohort(tmp_path / "test"), tmp_path, "cpu")


def test_a_checkpoint_of_another_training_is_refused(tmp_path, profile, tiny_cohort):
    train("rigid", profile, tiny_cohort, tmp_path, "cpu")
    section = profile.models["rigid"].model_copy(update={"seed": 99})
    other = profile.model_copy(update={"models": {"rigid": section}})
    before = (tmp_path / "rigid.safetensors").read_bytes()
    with pytest.raises(InputError, match="other settings, data or start"):
        train("rigid", other, tiny_cohort, tmp_path, "cpu")
    assert (tmp_path / "rigid.safetensors").read_bytes() == before


def test_a_batch_that_cannot_be_shared_is_refused_before_the_first_step(
    tmp_path, profile, tiny_cohort, monkeypatch
):
    section = profile.models["rigid"]
    odd = section.stages[-1].model_copy(update={"batch": 3})
    section = section.model_copy(update={"stages": (*section.stages, odd)})
    profile = profile.model_copy(update={"models": {"rigid": section}})
    monkeypatch.setattr(Team, "size", 2)
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(InputError, match="3 examples of a batch cannot be shared by 2 devices"):
        train("rigid", profile, tiny_cohort, tmp_path, "cpu")


def test_a_batch_without_a_half_for_l_sim_is_refused_before_the_first_step(
    tmp_path, profile, tiny_cohort, monkeypatch
):
    section = profile.models["rigid"]
    single = section.stages[-1].model_copy(update={"objective": "losses", "batch": 1})
    section = section.model_copy(update={"stages": (single,), "similarity": "mi"})
    profile = profile.model_copy(update={"models": {"rigid": section}})
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(InputError, match="a batch of 1 has no half for L_sim"):
        train("rigid", profile, tiny_cohort, tmp_path, "cpu")


def test_a_grid_that_a_network_does_not_fit_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text("extends: demo\ngrid: {shape: [180, 216, 180], spacing: 1.0}\n")
    odd = load_profile(path)
    for name in ("rigid", "bspline"):
        with pytest.raises(InputError, match=rf"'odd': no model '{name}': .* cannot be coarsened"):
            build(name, odd, odd.models[name])


def test_only_a_scales_first_warm_up_begins_with_the_coarser_network(profile, tiny_cohort):
    section = profile.models["bspline"]
    first = section.stages[0].model_copy(update={"objective": "velocity", "steps": 2})
    stages = tuple(first.model_copy(update={"scales": scales}) for scales in (1, 1, 2, 2, 3))
    models = {"bspline": section.model_copy(update={"stages": stages})}
    trainer = Trainer("bspline", profile.model_copy(update={"models": models}), tiny_cohort, "cpu")
    assert trainer.inherits == {4, 8}
    coarse, fine = trainer.model.networks[:2]
    for number in (4, 5):
        trainer.step(number)
    taught = [p.detach().clone() for p in fine.parameters()]
    trainer.step(6)
    with torch.no_grad():
        moved, away = (
            max(float((p - q).abs().max()) for p, q in zip(fine.parameters(), others, strict=True))
            for others in (taught, coarse.parameters())
        )
    assert moved < 2.5 * first.lr < away + 2.5 * first.lr


def test_a_training_whose_solves_do_not_end_leaves_its_weights(
    tmp_path, profile, tiny_cohort, monkeypatch
):
    """A warm-up takes no solve; only what measures it does, and registers nothing."""
    section = profile.models["rigid"]
    first = section.stages[0].model_copy(update={"objective": "velocity", "scales": 1})
    models = {"rigid": section.model_copy(update={"stages": (first,)})}
    monkeypatch.setattr("odereg_core.train.registration.MSODENet", partial(MSODENet, budget=0))
    chosen = profile.model_copy(update={"models": models})
    weights = train("rigid", chosen, tiny_cohort, tmp_path, "cpu")
    assert load_seen(weights).facts["arrived"] == 0
    losses = first.model_copy(update={"objective": "losses", "scales": 3, "batch": 2})
    models = {"rigid": section.model_copy(update={"stages": (losses,)})}
    chosen = profile.model_copy(update={"models": models})
    with pytest.raises(InputError, match=r"rigid: a solve of the training did not end \(segment 1"):
        train("rigid", chosen, tiny_cohort, tmp_path / "losses", "cpu")


def test_a_validation_pair_whose_solve_does_not_end_counts_as_it_was(profile, tiny_cohort):
    trainer = Trainer("rigid", profile, tiny_cohort, "cpu")
    trainer.model.budget = 0
    start = [float(rmse_phi(0 * p.displacement, p.displacement, p.brain)) for p in trainer.pairs]
    assert trainer.validate(1)["rmse_phi_mm"] == pytest.approx(sum(start) / len(start))
