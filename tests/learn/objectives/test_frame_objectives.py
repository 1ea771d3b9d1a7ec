"""Objectives of ordered frames, against the formulas of the paper's code."""

import pytest
import torch
from fixtures.learning import call_step

from understudy.core import ConfigError, Feature
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.objectives.frame_objectives import ActionPrediction, DynamicsAlignment, OrderedContrastive
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.nets.encoders import TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner, random_dataset

STATE = "observation.state"
ALL = (OrderedContrastive(weight=2.0), DynamicsAlignment(hidden=8, weight=3.0), ActionPrediction(4.0))


def sim(a, b):
    return torch.exp(-(a - b).norm())


def test_losses_by_hand():
    data = random_dataset({STATE: Feature("float32", (3,)), "action": Feature("float32", (2,))})
    torch.manual_seed(0)
    config = PolicyConfig(Regression(), FeedForward(()), TokenEncoder(6), window=Window(horizon=3, action_offset=-1))
    policy = Policy(config, data.features()).fit_statistics(data)
    learner = RepresentationLearning(ALL, batch_size=20).build(policy, 0, 1, data)
    batch = learner.batch_sampler(data).batch(20, 0)
    order, alignment, prediction = call_step(learner, "losses", batch, torch.Generator().manual_seed(0))[1:]
    context, actions, rng = policy.context(batch.obs), policy.encode_batch(batch), torch.Generator().manual_seed(0)
    near_0, near_2 = (torch.randint(1, 4, (4, 3), generator=rng) for _ in range(2))
    states = policy.codec.encode_obs({STATE: batch.extra[STATE]})[STATE]
    assert torch.equal(batch.extra[STATE][:, 1], batch.obs[STATE][:, 0])  # the rows before, at and after the frame
    g = learner.nets.objectives[1].projector(torch.cat([states.flatten(1), actions[:, 0], actions[:, 1]], 1))
    encodings, g = (x.unflatten(0, (4, 5))[:, 2:] for x in (context.flat(), g))
    for i, (s0, s1, s2) in enumerate(encodings):
        total_0, total_2 = (sim(s1, s) + sim(s0, s2) + sum(sim(s, encodings[(i + k) % 4, n]) for k in shifts[i])
                            for n, s, shifts in ((0, s0, near_0), (2, s2, near_2)))
        expected = -torch.log(sim(s1, s0) / total_0) / 2 - torch.log(sim(s2, s1) / total_2) / 2
        torch.testing.assert_close(order[5 * i:5 * i + 5], 2 * expected.expand(5))
        g0, _, g2 = g[i]
        right_0, right_2 = sim(s0, g0) / (sim(s0, g0) + sim(s0, g2)), sim(s2, g2) / (sim(s2, g2) + sim(s2, g0))
        expected = -torch.log(right_0) / 2 - torch.log(right_2) / 2
        torch.testing.assert_close(alignment[5 * i:5 * i + 5], 3 * expected.expand(5))
    error = policy.net(actions[..., :0], actions[..., :0], context)[:, 1] - actions[:, 1]
    torch.testing.assert_close(prediction, 4 * error.square().mean(-1))
    with pytest.raises(ConfigError, match="no ordered frames"):
        plain = BehaviorCloning(auxiliary_losses=ALL[:1]).build(policy, 0, 1, data)
        plain.update(plain.batch_sampler(data).batch(8, 0))


def test_the_contract():
    check_learner(RepresentationLearning(ALL, batch_size=15))
