"""E^c, E^s, G: shapes, and what each may and may not know."""

import pytest
import torch

from odereg_core.networks.disentangle import Critic, Disentangler, instance_norm
from odereg_core.weights import load_model, save_model

CONTRASTS = ("t1", "t1ce", "t2", "flair")


@pytest.mark.parametrize(
    ("m", "slices", "downs", "size"),
    [(4, 5, 1, (40, 28)), (2, 1, 2, (32, 24)), (3, 3, 1, (20, 20))],
)
def test_shapes_for_any_number_of_contrasts_and_slices(m, slices, downs, size):
    model = Disentangler(CONTRASTS[:m], slices=slices, width=4, downs=downs, blocks=1, style=3)
    x, code = torch.rand(2, slices, *size), model.code(torch.tensor([0, m - 1]))
    content, style = model.content(x), model.style(x, code)
    assert content.shape == (2, 4 * 2**downs, size[0] // 2**downs, size[1] // 2**downs)
    assert style.shape == (2, 3)
    made = model.generator(content, style, code)
    assert made.shape == x.shape and made.min() >= 0 and made.max() <= 1
    assert Critic(slices, m, 4)(x, code).shape == (2,)


def test_content_is_normalised_so_that_brightness_cannot_hide_in_it():
    model = Disentangler(CONTRASTS, width=4, blocks=1)
    content = model.content(torch.rand(3, 5, 24, 24))
    torch.testing.assert_close(content.mean((2, 3)), torch.zeros(3, 8), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        content.var((2, 3), unbiased=False), torch.ones(3, 8), atol=1e-2, rtol=0
    )


def test_instance_norm_is_torchs():
    x = torch.randn(2, 3, 9, 7)
    torch.testing.assert_close(instance_norm(x), torch.nn.functional.instance_norm(x))


def test_content_moves_with_the_image_and_style_does_not():
    torch.manual_seed(0)
    model = Disentangler(CONTRASTS, width=4, blocks=1)
    x = torch.zeros(1, 5, 64, 64)
    x[:, :, 24:40, 24:40] = torch.rand(1, 5, 16, 16)
    moved = x.roll((8, 8), (2, 3))
    code = model.code(torch.tensor([1]))
    inside = (..., slice(8, -8), slice(8, -8))
    content, shifted = model.content(x), model.content(moved).roll((-4, -4), (2, 3))
    torch.testing.assert_close(shifted[inside], content[inside], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(model.style(moved, code), model.style(x, code), atol=1e-3, rtol=1e-3)


def test_style_knows_the_contrast_and_content_does_not_ask():
    model = Disentangler(CONTRASTS, width=4, blocks=1)
    x = torch.rand(1, 5, 24, 24)
    styles = [model.style(x, model.code(torch.tensor([i]))) for i in range(4)]
    assert not torch.allclose(styles[0], styles[1])


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="two contrasts or more"):
        Disentangler(("t1",))
    with pytest.raises(ValueError, match="odd number of slices"):
        Disentangler(CONTRASTS, slices=4)


def test_weights_round_trip(tmp_path):
    model = Disentangler(CONTRASTS, slices=3, width=4, blocks=1).half().float()
    save_model(tmp_path / "e.safetensors", model)
    again = load_model(tmp_path / "e.safetensors", kind=Disentangler)
    assert again.contrasts == CONTRASTS and again.slices == 3
    x = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(again.content(x), model.content(x))
