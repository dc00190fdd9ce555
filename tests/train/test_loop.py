"""What every training shares."""

import pytest
import torch

from odereg_core.errors import InputError
from odereg_core.profiles import Stage
from odereg_core.train.loop import Schedule, arithmetic, fit, mixed_precision


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [
        ({"avx2": True}, "float32"),
        ({"avx512_f": True, "avx512_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"architecture": "arm64", "bf16": True}, "bf16"),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_where_it_has_instructions_for_it(
    monkeypatch, capabilities, chosen
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert arithmetic("cpu", "bf16") == chosen
    assert arithmetic("cpu", "float32") == "float32"
    assert arithmetic("cuda:0", "bf16") == "bf16"
    with mixed_precision("cpu", "bf16"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if chosen == "bf16" else torch.float32)


def test_an_older_torch_that_cannot_tell_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert arithmetic("cpu", "bf16") == "float32"


def stages(*kinds):
    return Schedule(
        tuple(Stage(objective=kind, scales=n, steps=2, batch=1, lr=1) for kind, n in kinds)
    )


def test_scores_start_anew_only_where_something_else_is_validated():
    ours = stages(("velocity", 1), ("velocity", 2), ("velocity", 3), ("losses", 3))
    assert ours.ends == (2, 4, 6, 8) and ours.anew == (2, 4)
    assert stages(("affine", 2), ("losses", 2), ("losses", 2)).anew == (2,)


def test_a_score_that_is_no_number_stops_the_training(tmp_path):
    model = torch.nn.Linear(1, 1)
    scores = iter([3.0, float("nan")])
    with pytest.raises(InputError, match=r"^vm: rmse_phi_mm is nan at step 2; a smaller learning"):
        fit(
            "x",
            tmp_path,
            model,
            torch.optim.Adam(model.parameters()),
            (3,),
            lambda number: {"loss": 0.0},
            lambda number: {"rmse_phi_mm": next(scores)},
            1,
            of="it",
            title="vm",
        )


@pytest.mark.parametrize(("kinds", "kept"), [((1, 1), 1.0), ((1, 2), 2.0)])
def test_a_last_stage_that_only_worsens_a_model_leaves_the_weights_before_it(tmp_path, kinds, kept):
    """The model's one weight is counted up, and its score with it."""
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.zero_()
    schedule = stages(*(("losses", n) for n in kinds))

    def step(number):
        model.weight.data += 1
        return {"loss": 0.0}

    fit(
        "x",
        tmp_path,
        model,
        torch.optim.Adam(model.parameters()),
        schedule.ends,
        step,
        lambda number: {"rmse_phi_mm": float(model.weight.detach())},
        1,
        of="it",
        title="counted",
        anew=schedule.anew,
    )
    # The second stage begins with the first one's best, 1, and its own best is the step after.
    assert model.weight.item() == kept
