"""Objectives of ordered frames, against numbers that are worked out by hand and the formulas of the paper's code."""

from math import exp, log

import pytest
import torch
from fixtures.learning import call_step

from understudy.core import Batch, ConfigError, Feature
from understudy.data.codec import Normalizer
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.objectives.frame_objectives import ActionPrediction, DynamicsAlignment, OrderedContrastive
from understudy.learn.objectives.ordered_frames import FRAME
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.nets.encoders import TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner, random_dataset

STATE = "observation.state"
ALL = (OrderedContrastive(weight=2.0), DynamicsAlignment(hidden=8, weight=3.0), ActionPrediction(4.0))


def losses_of_videos(objective, encodings, change=lambda function, policy: None, states=(), actions=()):
    """The loss of videos with these encodings of their frames, one number each. Nothing is scaled."""
    n, columns = len(encodings), {STATE: Feature("float32", (1,)), "action": Feature("float32", (1,))}
    config = PolicyConfig(Regression(), FeedForward(()), TokenEncoder(1), Normalizer("identity", "identity"),
                          Window(horizon=3, action_offset=-1))
    policy = Policy(config, columns)
    function = objective.build(policy)
    change(function, policy)
    states, actions = (torch.tensor(x or [[0.0] * 3] * n).unsqueeze(-1) for x in (states, actions))
    extra = {STATE: states, FRAME: torch.arange(n).unsqueeze(1) % 5}
    batch = Batch({STATE: states[:, 1:2]}, actions, torch.ones(n, 3, dtype=torch.bool), extra)
    captured = {"context": torch.tensor(encodings).view(n, 1, 1), "context_mask": torch.ones(n, 1, dtype=torch.bool)}
    return function(policy, batch, torch.Generator(), captured)


def test_distances_of_ordered_frames_on_a_line():
    """The frames s0, s1, s2 are at 0, 1, 3 and, in the only other video, at 10, 11, 14."""
    loss = losses_of_videos(OrderedContrastive(weight=2.0), [50.0, -50.0, 0.0, 1.0, 3.0, 7.0, 7.0, 10.0, 11.0, 14.0])
    first = log(1 + exp(-2) + 3 * exp(-9)) + log(1 + exp(-1) + 3 * exp(-9))  # s0: 1, 3, 10 away; s2: 2, 3, 11
    second = log(1 + exp(-3) + 3 * exp(-9)) + log(1 + exp(-1) + 3 * exp(-8))  # s0: 1, 4, 10 away; s2: 3, 4, 11
    torch.testing.assert_close(loss, torch.tensor([first] * 5 + [second] * 5))


def test_dynamics_are_chosen_among_two_times_of_the_same_video():
    """The encodings of the dynamics, from three states and the two actions between them, are 323 of s0 and 0 of s2."""
    def project(function, policy):
        function.projector = torch.nn.Linear(5, 1, bias=False)
        function.projector.weight.data = torch.tensor([[1.0, 10.0, 100.0, 0.5, 0.25]])
    states, actions = [[0.0] * 3 for _ in range(5)], [[0.0] * 3 for _ in range(5)]
    states[2], actions[2] = [1.0, 2.0, 3.0], [2.0, 4.0, 9.0]
    loss = losses_of_videos(DynamicsAlignment(hidden=8, weight=3.0), [0.0, 0.0, 162.0, 5.0, 161.0], project, states,
                            actions)  # each frame is 161 from its own dynamics, and 162 from the other's
    torch.testing.assert_close(loss, torch.full((5,), 3 * log(1 + exp(-1))))


def test_the_action_of_the_frame_is_predicted():
    def predict(function, policy):
        for parameter in policy.net.parameters():
            parameter.data.zero_()
        policy.net.layers[0].bias.data = torch.tensor([7.0, 2.0, 8.0])
    loss = losses_of_videos(ActionPrediction(4.0), [0.0] * 5, predict, actions=[[5.0, n, 6.0] for n in range(5)])
    torch.testing.assert_close(loss, torch.tensor([16.0, 4.0, 0.0, 4.0, 16.0]))  # 4 (2 - n)^2


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
