"""Several processes share a batch: together they have the single process's gradient."""

from unittest.mock import patch

import pytest
import torch
from lightning_fabric import Fabric

from odereg_core.cohort import Cohort
from odereg_core.errors import InputError
from odereg_core.profiles import load_profile
from odereg_core.similarity import MutualInformation
from odereg_core.train.baselines import BaselineTrainer
from odereg_core.train.registration import Trainer
from odereg_core.train.team import Team

FIXED = ("F(0.5)",)


def whole(inside):
    return tuple(slice(0, n) for n in inside.shape[2:])


def gradients(profile, cohort, name, number, team):
    """The gradient of one step. VoxelMorph's cells lie as the heads of its batch do; here as the
    grid does, for any batch."""
    torch.set_num_threads(1)
    settings, cohort = load_profile(profile), Cohort(cohort)
    section = settings.section(name)
    stages = tuple(
        stage.model_copy(update={"batch": 4, "solvers": FIXED * 3}) for stage in section.stages
    )
    section = section.model_copy(update={"stages": stages, "lambda_reg": 2.0})
    if name in settings.models:
        settings = settings.model_copy(update={"models": {name: section}})
        trainer = Trainer(name, settings, cohort, "cpu", MutualInformation(), team=team)
    else:
        trainer = BaselineTrainer(section, cohort, "cpu", team=team)
    torch.manual_seed(0)
    for parameter in trainer.model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    with patch("odereg_core.networks.regression.box_of", whole):
        trainer.step(number)
    found = [torch.zeros(1) if p.grad is None else p.grad for p in trainer.model.parameters()]
    return torch.cat([gradient.flatten() for gradient in found])


def member(fabric, profile, cohort, name, number, path):
    found = gradients(profile, cohort, name, number, Team(fabric))
    if fabric.is_global_zero:
        torch.save(found, path)


@pytest.mark.parametrize(
    ("name", "number"), [("bspline", 0), ("rigid", 6), ("vm", 0), ("vm", 22), ("rcn", 0)]
)
def test_two_processes_have_the_single_processs_gradient(
    tmp_path, tiny_profile, tiny_cohort, name, number
):
    """Of a model, 0 is a step of the warm-up and 6 one of the losses through the solver; of a
    baseline, of its first stage and of its last."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")
    args = (tiny_profile, tiny_cohort.folder, name, number)
    fabric.launch(member, *args, tmp_path / "two.pt")
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one = gradients(*args, Team())
    assert one.norm() > 0
    assert (two - one).norm() <= 1e-4 * one.norm()


def test_alone_nothing_is_shared():
    team = Team()
    assert team.leads and team.size == 1
    assert team.share(5).tolist() == [0, 1, 2, 3, 4]


def test_a_batch_that_cannot_be_dealt_is_refused():
    fabric = type("Fabric", (), {"world_size": 2, "global_rank": 1, "is_global_zero": False})()
    team = Team(fabric)
    assert team.share(4).tolist() == [1, 3] and not team.leads
    with pytest.raises(InputError, match="5 examples of a batch cannot be shared by 2 devices"):
        team.share(5)
