"""Crops around a point, and a head whose clusters are their cells."""

import pytest
import torch
from torch.nn import functional as F

from understudy.core import ConfigError, Context, Feature, HeadSpec, UserError
from understudy.data.codec import Normalizer
from understudy.heads.likelihood.regression import Regression
from understudy.heads.tokens.behavior_transformer import BeT
from understudy.nets.feed_forward import FeedForward
from understudy.nets.grid import PerToken
from understudy.nets.mlp import MLP
from understudy.nets.pixels import FocusCrop
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_encoder

IMAGE, FOCUS = "observation.images.top", "observation.focus"
INPUTS = {IMAGE: Feature("uint8", (16, 16, 3), "image"), FOCUS: Feature("float32", (2,))}
PIXELS = torch.randint(0, 256, (1, 1, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def cells(image, x, y, **options):
    """Colors and positions of the cells around a point, (cells, cells, 5)."""
    encoder = FocusCrop(channels=(), cells=4, **options)
    obs = {IMAGE: image, FOCUS: torch.tensor([[[x, y]]])}
    return encoder.build(INPUTS if encoder.at else {IMAGE: INPUTS[IMAGE]}, 1)(obs).tokens[0].unflatten(0, (4, 4))


@pytest.mark.parametrize("config", [FocusCrop(cells=4, side=0.5), FocusCrop(cells=5, side=1.0, channels=(8,))])
def test_contract(config):
    check_encoder(config, INPUTS)
    check_encoder(FocusCrop(None, config.side, config.cells), {IMAGE: INPUTS[IMAGE]})
    unseen = {IMAGE: PIXELS, FOCUS: torch.zeros(1, 1, 2), FOCUS + "?": torch.zeros(1, 1, dtype=torch.bool)}
    assert not config.build(INPUTS, 1)(unseen).mask.any()


def test_a_cell_is_the_mean_of_its_pixels_and_beyond_the_edge_is_white():
    crop = cells(PIXELS, 0.25, 0.5, side=0.5)  # columns 6 to 13, and rows 0 to 7, because y goes up
    plain = (1 - PIXELS[0, 0].float() / 255).permute(2, 0, 1)
    torch.testing.assert_close(crop[..., :3].permute(2, 0, 1), F.avg_pool2d(plain[:, 0:8, 6:14], 2))
    half_pixel = cells(PIXELS, 0.25 + 1 / 16, 0.5, side=0.25)  # cells of one pixel, each half of one and of the next
    torch.testing.assert_close(half_pixel[..., :3].permute(2, 0, 1), (plain[:, 2:6, 8:12] + plain[:, 2:6, 9:13]) / 2)
    corner = cells(PIXELS, 1.0, 1.0, side=0.5)[..., :3]
    assert not corner[:2].any() and not corner[:, 2:].any() and corner[2:, :2].all()
    whole = cells(PIXELS, 0.25, 0.5, side=1.0)
    torch.testing.assert_close(whole[..., :3].permute(2, 0, 1), F.avg_pool2d(plain, 4))
    torch.testing.assert_close(whole[0, 0, 3:], torch.tensor([-0.75 - 0.25, 0.75 - 0.5]))  # relative to the point
    torch.testing.assert_close(cells(PIXELS, 9.0, 9.0, side=1.0, at=None)[0, 3, 3:], torch.tensor([0.75, 0.75]))


def test_the_crop_of_a_shifted_picture_is_the_same():
    shifted = PIXELS.roll((3, -2), (2, 3))  # down and to the left
    torch.testing.assert_close(cells(PIXELS, 0.1, 0.2, side=0.4), cells(shifted, 0.1 - 2 / 8, 0.2 - 3 / 8, side=0.4))


def test_what_it_cannot_read_is_refused():
    for features in ({IMAGE: INPUTS[IMAGE]}, {**INPUTS, "observation.state": Feature("float32", (2,))},
                     {**INPUTS, FOCUS: Feature("float32", (3,))}):
        with pytest.raises(UserError, match="one square image and a point"):
            FocusCrop().build(features, 1)
    with pytest.raises(UserError, match="elsewhere in the image"):
        Policy(PolicyConfig(Regression(), encoder=FocusCrop()), {**INPUTS, "action": Feature("float32", (2,))})
    Policy(PolicyConfig(Regression(), encoder=FocusCrop(), codec=Normalizer(unscaled=(FOCUS,))),
           {**INPUTS, "action": Feature("float32", (2,))})


def test_the_head_chooses_the_cell_whose_token_says_so():
    head = BeT(16, gamma=0.0, temperature=0.0, square=0.5)
    net = head.build(PerToken(FeedForward(())), 2, HeadSpec(1, 16, 3, token_obs_steps=(0,) * 16))
    head.fit(net, None)
    torch.testing.assert_close(net.centers[:, 0], 0.5 * cells(PIXELS, 0.3, 0.1, side=0.5)[..., 3:].flatten(0, 1))
    layer = next(m for m in net.modules() if isinstance(m, torch.nn.Linear))
    with torch.no_grad():  # a token is the logit and the offset of its cell
        layer.weight.copy_(torch.eye(3)), layer.bias.zero_()
    tokens = torch.randn(1, 16, 3, generator=torch.Generator().manual_seed(1))
    context, best = Context(tokens, torch.ones(1, 16, dtype=torch.bool)), tokens[0, :, 0].argmax()
    plan = head.sample(net, context, torch.zeros(1, 1, 16))
    torch.testing.assert_close(plan[0, 0], net.centers[best, 0] + tokens[0, best, 1:])
    place = torch.tensor([[[0.2, 0.3]]])  # in the upper row and the third column of four
    expected = -tokens[0, :, 0].log_softmax(0)[2] + 10 * (place - net.centers[2] - tokens[0, 2, 1:]).square().mean()
    torch.testing.assert_close(head.loss(net, context, place, torch.ones(1, 1, dtype=torch.bool), None)[0, 0], expected)


@pytest.mark.parametrize("make, message", [
    (lambda: BeT(12, square=1.0), "12 clusters"), (lambda: BeT(9, joint=True, square=1.0), "joint=True"),
    (lambda: BeT(9, square=1.0).build(MLP(8, 1), 3, HeadSpec(1, 1, 1)), "a place has two")])
def test_squares_that_are_none(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
