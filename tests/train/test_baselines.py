"""The learned baselines: what they answer, what they compose, and that their training learns."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from scipy.ndimage import gaussian_filter

from odereg_core.baselines.base import Outcome
from odereg_core.baselines.regression import AfterRigid, Regression
from odereg_core.baselines.translate import Translated
from odereg_core.errors import InputError
from odereg_core.files import read_json, sha256
from odereg_core.grid import Grid
from odereg_core.msodenet import MSODENet
from odereg_core.networks.disentangle import Disentangler
from odereg_core.networks.regression import AffineRegression, Rcn, VoxelMorph, smoothed
from odereg_core.profiles import load_profile
from odereg_core.train.augment import drawn_pair
from odereg_core.train.baselines import BaselineTrainer, affine_regularity, train
from odereg_core.transforms import Rigid
from odereg_core.warp import averaged, warp
from odereg_core.weights import load_model, save_model

GRID = Grid((20, 18, 14), (12.0,) * 3)
CONTRASTS = ("t1", "t2")


def images(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.rand(1, 1, *GRID.shape), torch.rand(1, 1, *GRID.shape)


def test_untrained_voxelmorph_is_nearly_the_identity_on_any_grid():
    u = VoxelMorph()(*images(), GRID)
    assert u.shape == (1, 3, *GRID.shape) and u.abs().max() < 0.1


def test_voxelmorph_sees_no_background():
    """A head answers alike wherever it lies in a volume, and about it the field goes on."""
    torch.manual_seed(1)
    model = VoxelMorph(smooth_mm=12.0)
    *_, last = (m for m in model.modules() if isinstance(m, torch.nn.Conv3d))
    torch.nn.init.normal_(last.weight)
    heads = torch.rand(2, 1, 1, 9, 8, 7) + 0.1
    wide = Grid((24, 20, 18), GRID.spacing)
    fields = []
    for x, y, z in ((1, 1, 1), (9, 7, 6)):
        volumes = torch.zeros(2, 1, 1, *wide.shape)
        volumes[..., x : x + 9, y : y + 8, z : z + 7] = heads
        u = model(*volumes, wide)
        fields.append(u[..., x : x + 9, y : y + 8, z : z + 7])
        torch.testing.assert_close(
            u[..., x + 10 :, :, :], u[..., [x + 9], :, :].expand_as(u[..., x + 10 :, :, :])
        )
    assert fields[0].abs().max() > 1
    torch.testing.assert_close(*fields)


def test_voxelmorph_finds_voxels_so_its_millimetres_scale_with_the_grid():
    model = VoxelMorph(smooth_mm=12.0)
    pair, wider = images(), Grid(GRID.shape, (24.0,) * 3)
    narrow = model(*pair, GRID)
    model.smooth_mm = 24.0
    torch.testing.assert_close(2 * narrow, model(*pair, wider))


@pytest.mark.parametrize("spacing", [6.0, 3.0])
def test_a_told_voxelmorph_starts_at_the_gauss_newton_step(spacing):
    """Untrained, on two contrasts of a head that SciPy has moved: most of the way, on any grid."""
    grid = Grid((round(192 / spacing),) * 3, (spacing,) * 3)
    x, y, z = (np.asarray(axis) for axis in grid.axes())
    radius = np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2)
    texture = gaussian_filter(np.random.default_rng(0).standard_normal(grid.shape), 9 / spacing)
    texture = 0.5 + 0.1 * texture / texture.std()
    moved = np.array([3.0, -2.0, 1.5])  # mm
    there = scipy.ndimage.shift(texture, moved / spacing, order=3, mode="nearest")
    moving, fixed = (
        torch.from_numpy(image * (radius < 72)).float().clamp(0, 1)[None, None]
        for image in (there, 1 - texture)
    )
    u = VoxelMorph(smooth_mm=12.0, told=True)(moving, fixed, grid)
    found = u[0][:, torch.from_numpy(radius < 40)].mean(1)
    torch.testing.assert_close(found, torch.from_numpy(moved).float(), rtol=0.35, atol=0)


def test_only_a_voxelmorph_is_told(tmp_path):
    chosen = tmp_path / "profile.yaml"
    chosen.write_text("extends: smoke\nbaselines: {rcn: {told: true}}\n")
    with pytest.raises(InputError, match="only a VoxelMorph can be 'told'"):
        load_profile(chosen)


@pytest.mark.parametrize(("spacing", "error"), [((12.0,) * 3, 0.01), ((4.0, 4.0, 5.0), 0.07)])
def test_a_displacement_is_smoothed_as_scipy_smooths_it(spacing, error):
    """Closely where no coarser grid is taken for it, roughly where one is."""
    grid = Grid((48, 40, 32), spacing)
    torch.manual_seed(0)
    rough = torch.randn(1, 3, 6, 5, 4)
    u = torch.nn.functional.interpolate(rough, size=grid.shape, mode="trilinear")
    sigma = [0, 0, *(24.0 / h for h in spacing)]
    weight = gaussian_filter(torch.ones_like(u).numpy(), sigma, mode="constant")
    wanted = torch.from_numpy(gaussian_filter(u.numpy(), sigma, mode="constant") / weight)
    found = smoothed(u, 24.0, grid)
    assert found.shape == u.shape
    assert (found - wanted).abs().mean() < error * wanted.abs().mean()


def test_untrained_rcn_is_nearly_the_identity():
    u, matrix, parts = Rcn(cascades=3).stages(*images(), GRID)
    torch.testing.assert_close(matrix, torch.eye(3)[None])
    assert u.abs().max() < 0.5 and len(parts) == 3


def test_rcn_warps_the_moving_image_itself_through_the_composed_maps():
    """With known stages the whole map is A (p + v) + b, v the composition of the dense ones."""
    model = Rcn(cascades=2)
    torch.nn.init.constant_(model.affine.linear.bias[:9], 0.02)
    torch.nn.init.constant_(model.affine.linear.bias[9:], 0.1)
    shift = torch.tensor([1.0, -2.0, 3.0])
    for network in model.dense:
        last = [m for m in network.unet.modules() if isinstance(m, torch.nn.Conv3d)][-1]
        torch.nn.init.zeros_(last.weight)
        last.bias.data = shift / 12
    u = model(*images(), GRID)
    p, matrix = GRID.points()[0], torch.eye(3) + 0.02
    wanted = torch.einsum("ij,jxyz->ixyz", matrix, p + 2 * shift[:, None, None, None]) + 2.0 - p
    inside = (..., slice(2, -2), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(u[0][inside], wanted[inside], atol=1e-3, rtol=1e-4)


def test_the_affine_network_sees_the_same_on_every_grid_of_a_pyramid():
    torch.manual_seed(0)
    network = AffineRegression()
    torch.nn.init.normal_(network.linear.weight, std=0.1)
    fine = Grid((80, 72, 56), (3.0,) * 3)
    pair = torch.rand(2, 1, 1, *fine.shape)
    wanted = network(*pair, fine)
    assert wanted[1].abs().max() > 0.1
    for coarse in fine.pyramid(3):
        found = network(*(averaged(image, coarse) for image in pair), coarse)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_affine_regularity_is_zero_for_rotations_and_known_for_a_stretch():
    turned = Rigid().matrix(torch.tensor([[0.3, -0.5, 0.7, 0, 0, 0.0]]))[:, :3, :3]
    assert float(affine_regularity(turned)) == pytest.approx(0, abs=1e-5)
    stretched = torch.diag(torch.tensor([2.0, 1.0, 1.0]))[None]
    assert float(affine_regularity(stretched)) == pytest.approx(4 + 0.25 - 2 + 1)


def test_after_rigid_composes_and_warps_once():
    rigid = MSODENet("rigid", GRID, ["F(0.5)"])
    theta = torch.tensor([[0.1, 0, 0, 5.0, 0, 0]])
    rigid.forward = lambda *_: type("Found", (), {"theta": theta, "grids": [GRID], "nfe": 2})()
    inner = torch.full((1, 3, *GRID.shape), 2.0)
    seen = []

    def register(moving, fixed, grid, contrasts):
        seen.append(moving)
        return Outcome(inner)

    moving, fixed = images()
    found = AfterRigid(rigid, register)(moving, fixed, GRID, CONTRASTS)
    p = GRID.points()[0]
    wanted = Rigid().map(theta, (p + 2.0)[None]) - p
    torch.testing.assert_close(found.displacement, wanted)
    expected = warp(moving, Rigid().displacement(theta, GRID), GRID)
    torch.testing.assert_close(seen[0], expected)


def test_translated_hands_on_the_fixed_contrast_and_refuses_unknown_ones():
    model = Disentangler(CONTRASTS, width=4, blocks=1).eval()
    moving, fixed = images()
    seen = []

    def register(*args):
        seen.append(args)
        return Outcome(torch.zeros(1, 3, *GRID.shape))

    Translated(model, register)(moving, fixed, GRID, CONTRASTS)
    assert seen[0][1] is fixed and seen[0][3] == CONTRASTS
    assert not torch.allclose(seen[0][0], moving)
    with pytest.raises(InputError, match="no translation into 'pd'"):
        Translated(model, register)(moving, fixed, GRID, ("t1", "pd"))


def test_a_translation_is_into_the_fixed_contrast_in_the_fixed_images_style():
    """A translator of which content is the stack, and style its largest value, says so."""

    class Told:
        contrasts, slices, downs = ("t1", "t2", "pd"), 3, 2

        def code(self, contrast):
            return torch.nn.functional.one_hot(contrast, 3).float()

        def content(self, x):
            assert not any(n % 4 for n in x.shape[2:])
            return x

        def style(self, x, code):
            return x.amax((1, 2, 3))[:, None] * code

        def generator(self, content, style, code):
            told = 10 * style.sum(1) + 100 * code @ torch.tensor([1.0, 2.0, 3.0])
            return content + told[:, None, None, None]

    moving, fixed = images()
    moving[..., :5, :, :] = 0
    fixed = torch.full_like(fixed, 0.5)
    seen = []

    def register(moving, *_):
        seen.append(moving)
        return Outcome(torch.zeros(1, 3, *GRID.shape))

    Translated(Told(), register)(moving, fixed, GRID, ("pd", "t2"))
    wanted = torch.where(moving > 0, moving + 10 * 0.5 + 100 * 2, 0.0)
    torch.testing.assert_close(seen[0], wanted)


@pytest.mark.parametrize(
    "model", [VoxelMorph(9.0), VoxelMorph(9.0, told=True), Rcn(cascades=1, smooth_mm=9.0)]
)
def test_weights_come_back(model, tmp_path):
    save_model(tmp_path / "w.safetensors", model)
    again = load_model(tmp_path / "w.safetensors", kind=type(model))
    dense = again.dense if isinstance(again, Rcn) else [again]
    assert all(network.smooth_mm == 9.0 for network in dense)
    pair = images()
    with torch.no_grad():
        torch.testing.assert_close(
            Regression(again)(*pair, GRID, CONTRASTS).displacement,
            model.half().float()(*pair, GRID),
        )


@pytest.mark.parametrize("name", ["vm", "vm_told", "rcn"])
def test_a_step_changes_every_part_and_the_loss_is_the_sum_of_its_terms(name, tiny_cohort):
    section = load_profile("smoke").baselines[name]
    trainer = BaselineTrainer(section, tiny_cohort, "cpu")
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    terms = trainer.step(0)
    total = terms["similarity"] + section.lambda_reg * terms["regularity"]
    assert terms["loss"] == pytest.approx(total + 0.1 * terms.get("affine", 0.0), rel=1e-5)
    trainer.step(1)
    changed = [k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed and (name != "rcn" or any(k.startswith("affine") for k in changed))


def test_what_a_baseline_starts_from_is_its_beginning_and_counts(tiny_cohort, tmp_path):
    profile = load_profile("smoke")
    first = train("vm", profile, tiny_cohort, tmp_path, "cpu")
    section = profile.baselines["vm"].model_copy(update={"start": "vm", "smooth_mm": 9.0})
    trainer = BaselineTrainer(section, tiny_cohort, "cpu", init=first)
    assert trainer.model.smooth_mm == 9.0  # its own, as its solvers would be
    given = load_model(first, kind=VoxelMorph).state_dict()
    assert all(torch.equal(v, given[k]) for k, v in trainer.model.state_dict().items())

    tuned = profile.model_copy(update={"baselines": {"again": section}})
    again = read_json(train("again", tuned, tiny_cohort, tmp_path, "cpu").with_suffix(".json"))
    assert again["init"] == sha256(first)
    assert again["samples"] == 2 * read_json(first.with_suffix(".json"))["samples"]


def test_the_cascades_of_an_rcn_may_start_from_a_voxelmorph(tiny_cohort, tmp_path):
    given = VoxelMorph()
    torch.nn.init.normal_(
        [m for m in given.unet.modules() if isinstance(m, torch.nn.Conv3d)][-1].weight
    )
    save_model(tmp_path / "vm.safetensors", given)
    section = load_profile("smoke").baselines["rcn"]
    model = BaselineTrainer(section, tiny_cohort, "cpu", init=tmp_path / "vm.safetensors").model
    wanted = load_model(tmp_path / "vm.safetensors", kind=VoxelMorph).state_dict()
    for network in model.dense:
        assert all(torch.equal(v, wanted[k]) for k, v in network.state_dict().items())
    assert not model.affine.linear.weight.any()


def test_a_start_is_a_baseline_of_the_same_network(tiny_cohort, tmp_path):
    chosen = tmp_path / "profile.yaml"
    chosen.write_text("extends: smoke\nbaselines: {vm: {start: rcn}}\n")
    with pytest.raises(InputError, match="'vm' cannot start from 'rcn'"):
        load_profile(chosen)
    with pytest.raises(InputError, match="there is no such file"):
        train("vm", load_profile("smoke"), tiny_cohort, tmp_path, "cpu", init=tmp_path / "x")


def test_an_affine_stage_trains_the_affine_network_alone_at_its_scale(tiny_cohort, monkeypatch):
    trainer = BaselineTrainer(load_profile("smoke").baselines["rcn"], tiny_cohort, "cpu")
    stage = trainer.schedule.stages[0]
    assert stage.objective == "affine"
    seen = []
    forward = trainer.model.affine.forward
    monkeypatch.setattr(
        trainer.model.affine, "forward", lambda *pair: seen.append(pair) or forward(*pair)
    )
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    terms = trainer.step(0)
    changed = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(key.startswith("affine") for key in changed)
    assert terms["regularity"] == 0
    assert seen[0][0].shape == (stage.batch, 1, *trainer.grids[stage.scales - 1].shape)
    trainer.validate(0)
    assert seen[-1][0].shape == (1, 1, *trainer.grids[stage.scales - 1].shape)


@pytest.mark.parametrize("translated", [0, 2])
def test_a_displacement_stage_teaches_the_drawn_motion_at_its_scale(
    translated, tiny_cohort, monkeypatch
):
    """The squared distance over the fixed brain relative to the motion's own, in NumPy."""
    section = load_profile("smoke").baselines["vm"]
    changes = {"objective": "displacement", "scales": 2, "batch": 3, "floor_mm": 2.0}
    stage = section.stages[0].model_copy(update=changes)
    section = section.model_copy(update={"stages": (stage,), "translated": translated})
    translator = Disentangler(tiny_cohort.contrasts, width=4, blocks=1) if translated else None
    trainer = BaselineTrainer(section, tiny_cohort, "cpu", translator)
    pairs, found = [], []
    forward = trainer.model.forward

    def drawn(*arguments):
        pairs.append(drawn_pair(*arguments))
        return pairs[-1]

    def answer(moving, fixed, grid):
        assert grid == trainer.grids[1] and tuple(moving.shape[2:]) == grid.shape
        found.append(forward(moving, fixed, grid))
        return found[-1]

    monkeypatch.setattr("odereg_core.train.baselines.drawn_pair", drawn)
    monkeypatch.setattr(trainer.model, "forward", answer)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    terms = trainer.step(0)
    (_, fixed, motion), shares = pairs[0], []
    for image, true, u in zip(fixed, motion.displacement, found[0].detach(), strict=True):
        brain = image[0].numpy() > 0
        left, whole = (
            np.square(np.moveaxis(v.numpy(), 0, -1)[brain]).sum(-1).mean() for v in (u - true, true)
        )
        shares.append(left / (whole + 4))
    assert terms["loss"] == pytest.approx(np.mean(shares), rel=1e-4)
    assert "similarity" not in terms
    assert any(not torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())


@pytest.mark.parametrize("scales", [1, 2, 3])
@pytest.mark.parametrize("name", ["vm", "rcn"])
def test_validation_is_the_mean_error_of_what_a_baseline_answers(
    name, scales, tiny_cohort, monkeypatch
):
    """In NumPy, of an answer of nothing and of a shift, whatever the network's resolution."""
    section = load_profile("smoke").baselines[name]
    stage = section.stages[-1].model_copy(update={"scales": scales})
    section = section.model_copy(update={"stages": (stage,)})
    trainer = BaselineTrainer(section, tiny_cohort, "cpu")
    for shift in (np.zeros(3), np.array([3.0, -4.0, 5.0])):

        def answer(moving, fixed, grid, *_, shift=shift):
            assert grid == trainer.grids[scales - 1] and tuple(moving.shape[2:]) == grid.shape
            u = torch.tensor(shift).float()[None, :, None, None, None].expand(1, 3, *grid.shape)
            return (u, torch.eye(3)[None], [u]) if name == "rcn" else u

        monkeypatch.setattr(trainer.model, "stages" if name == "rcn" else "forward", answer)
        errors = []
        for pair, _ in trainer.pairs:
            true = np.moveaxis(pair.displacement[0].numpy(), 0, -1)[pair.brain[0, 0].numpy()]
            errors.append(np.sqrt(((true - shift) ** 2).sum(-1).mean()))
        assert trainer.validate(0)["rmse_phi_mm"] == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.parametrize(
    ("section", "objective"),
    [
        ("baselines: {vm", "affine"),
        ("baselines: {vm", "velocity"),
        ("baselines: {rcn", "displacement"),
        ("models: {rigid", "affine"),
        ("models: {rigid", "displacement"),
    ],
)
def test_a_stage_of_another_network_is_refused(tmp_path, section, objective):
    stages = f"{{stages: [{{objective: {objective}, scales: 1, steps: 1, batch: 1, lr: 1.0e-3}}]}}"
    (tmp_path / "p.yaml").write_text(f"extends: smoke\n{section}: {stages}}}\n")
    with pytest.raises(InputError, match=f"'{objective}'"):
        load_profile(tmp_path / "p.yaml")
