"""A step of every training in bfloat16, imitated where the CPU has no instructions for it."""

import math

import pytest
import torch

from odereg_core.profiles import load_profile
from odereg_core.similarity import MutualInformation
from odereg_core.train.baselines import BaselineTrainer
from odereg_core.train.gan import GanTrainer
from odereg_core.train.registration import Trainer


def trainer(name, cohort, tiny, precision):
    smoke = load_profile("smoke")
    if name == "encoder":
        section = tiny.encoders[name].model_copy(update={"precision": precision})
        return GanTrainer(section, cohort, "cpu")
    if name in smoke.baselines:
        section = smoke.baselines[name]
        stage = section.stages[-1].model_copy(update={"scales": 2, "batch": 1})
        update = {"precision": precision, "stages": (stage,), "validation_pairs": 1}
        return BaselineTrainer(section.model_copy(update=update), cohort, "cpu")
    section = tiny.models[name].model_copy(update={"precision": precision})
    profile = tiny.model_copy(update={"models": {name: section}})
    return Trainer(name, profile, cohort, "cpu", MutualInformation(bins=8))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rigid", "bspline", "dense", "vm", "rcn", "encoder"])
def test_a_step_in_bfloat16_is_nearly_one_in_float32(name, tiny_cohort, tiny_profile, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    tiny, found = load_profile(tiny_profile), []
    for precision in ("float32", "bf16"):
        training = trainer(name, tiny_cohort, tiny, precision)
        model, numbers = training.model, [0]
        if name in tiny.models:  # a step of each objective, no scale's weights inherited
            numbers = [1, training.schedule.starts[-1]]
        before = {k: v.clone() for k, v in model.state_dict().items()}
        losses = [training.step(number)["loss"] for number in numbers]
        after = model.state_dict()
        assert all(v.dtype == torch.float32 and v.isfinite().all() for v in after.values())
        assert any(not torch.equal(v, before[k]) for k, v in after.items())
        found.append(losses)
    assert all(map(math.isfinite, found[1]))
    assert found[0] != found[1] and found[1] == pytest.approx(found[0], rel=0.05)
