"""dp4: the encoding must draw the present observation and, with the chunk, the one after it."""

from dataclasses import replace

import pytest
import torch
from fixtures.learning import call_step
from torch import nn

from understudy.core import Feature
from understudy.data.augment import RandomShift
from understudy.data.codec import Normalizer
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.methods.generative.dp4 import ScenePrediction
from understudy.nets.encoders import TokenEncoder
from understudy.nets.unet import UNet
from understudy.nets.vision import SmallConv
from understudy.policy import Policy
from understudy.testing import check_learner, random_dataset

TOP, STATE = "observation.images.top", "observation.state"
FEATURES = {TOP: Feature("uint8", (12, 10, 3), "image"), STATE: Feature("float32", (3,)),
            "action": Feature("float32", (2,))}
DATA = random_dataset(FEATURES, episodes=2, steps=20)
POLICY = {"trunk": UNet((8, 16), 3, 4, 8), "encoder": TokenEncoder(8, vision=SmallConv((8,) * 4, 4)),
          "codec": Normalizer("identity", "identity"), "augmentations": (RandomShift(TOP, 2),)}
METHOD = find_method("dp4")
SMALL = replace(METHOD.policy, **POLICY)


def new_learner(**changes):
    torch.manual_seed(0)
    config = replace(METHOD.learner, auxiliary_losses=(ScenePrediction(2, **changes),))
    return config.build(Policy(SMALL, DATA.features()).fit_statistics(DATA), 0, 10, DATA)


def of_the_scene(learner, batch):
    return call_step(learner, "policy_loss", batch, torch.Generator().manual_seed(3))[1]


def test_the_loss_of_constant_pictures_has_a_closed_form():
    """The present is that of the observation, without shifts. The future is the observation after the chunk."""
    learner = new_learner(present=0.5, future=0.25)
    (scene,) = learner.nets.auxiliary_losses
    for decoders, color in ((scene.present_decoders, 0.2), (scene.future_decoders, -0.6)):
        for layer in (decoders[0].fine, decoders[1][-1]):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, color)
    batch = learner.batch_sampler(DATA).batch(12, 0)
    assert 0 < batch.mask[:, -1].sum() < 12  # some windows have no future

    def error(obs, color):
        pictures = (obs[TOP] / 127.5 - 1 - color).square().mean((1, 2, 3, 4))
        return pictures + (obs[STATE] - color).square().mean((1, 2))
    expected = 0.5 * error(batch.obs, 0.2) + 0.25 * error(batch.next, -0.6) * batch.mask[:, -1]
    torch.testing.assert_close(of_the_scene(learner, batch), expected)
    following = replace(batch, next=batch.obs)
    assert not torch.allclose(of_the_scene(learner, following), expected)


def test_actions_and_the_encoder_shape_the_future_alone():
    learner = new_learner(present=0.0)
    batch = learner.batch_sampler(DATA).batch(12, 0)
    loss, other = of_the_scene(learner, batch), of_the_scene(learner, replace(batch, action=batch.action.flip(1)))
    has_future = batch.mask[:, -1]
    assert torch.equal(loss != other, has_future) and not loss[~has_future].any()
    loss.sum().backward()
    reached = {name.split(".")[0] for name, p in learner.policy.named_parameters()
               if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {"encoder"}
    only_present = new_learner(future=0.0)
    assert torch.equal(*(of_the_scene(only_present, replace(batch, action=a)) for a in (batch.action, -batch.action)))


@pytest.mark.slow
def test_the_contract():
    policy = replace(SMALL, inputs=(STATE,), augmentations=())
    check_learner(BehaviorCloning(batch_size=8, optimizer=OptimizerConfig(lr=1e-3),
                                  auxiliary_losses=(ScenePrediction(2),)), [policy])
