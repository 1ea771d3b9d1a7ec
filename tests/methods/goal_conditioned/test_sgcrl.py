"""SGCRL: contrastive learning over goals, for one goal that every episode is commanded."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.learning import call_step

from understudy import make
from understudy.core import Batch, keys
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Goal, Window
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.goal_conditioned import VALUE_GOAL
from understudy.learn.method import build_actor, training_data
from understudy.methods.goal_conditioned.sgcrl import SGCRL
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

STATE, GOAL = "observation.state", "observation.goal"
LINEAR = CriticConfig((), n_critics=1)  # networks of one layer
CONFIG = PolicyConfig(SquashedGaussian(), FeedForward((8,)), ConcatEncoder(), Normalizer(obs="identity"),
                      Window(goals=(Goal(STATE),)), (STATE, GOAL))


def column(*values):
    return torch.tensor(values)[:, None, None]


@torch.no_grad()
def product_learner():
    """A learner whose score is the action times the goal, for actions from -1 to 1, and a batch of three steps."""
    data = Dataset([Episode({STATE: np.zeros((4, 1), np.float32), "action": np.float32([[-1], [0], [1]])})])
    policy = Policy(CONFIG, data.features()).fit_statistics(data)
    learner = SGCRL(critic=LINEAR, latent_dim=1, batch_size=3).build(policy, 0, 10, data)
    for network, weights in zip(learner.nets.critic, ([[0.0, 1.0]], [[1.0]]), strict=True):  # of (state, action), goal
        (layer,) = (m for m in network.layers.modules() if isinstance(m, torch.nn.Linear))
        layer.weight.copy_(torch.tensor(weights))
        layer.bias.zero_()
    goals = {GOAL: column(2.0, 3.0, 4.0), VALUE_GOAL: column(2.0, 0.0, -1.0)}
    return learner, Batch({STATE: column(0.0, 0.0, 0.0), **goals}, column(1.0, 0.0, -1.0),
                          torch.ones(3, 1, dtype=torch.bool))


def test_the_critic_tells_the_goal_of_each_step_from_all_goals():
    """The logits are (2, 0, -1), (0, 0, 0) and (-2, 0, 1). The logs of their sums of exponentials are 2.16984, 1.09861
    and 1.34901: of each, the loss is the difference from the logit of the own goal plus 0.01 of the square."""
    learner, batch = product_learner()
    losses = call_step(learner, "critic_loss", batch, torch.Generator())
    losses = losses[0] if isinstance(losses, tuple) else losses
    assert losses.tolist() == pytest.approx([0.216924, 1.110682, 0.367210], abs=1e-5)


def test_the_policy_maximizes_the_score_of_drawn_actions():
    """With positive goals the best action is 1. The density narrows there, since nothing rewards its entropy."""
    learner, batch = product_learner()
    optimizer = torch.optim.Adam(learner.policy.parameters(), 0.05)
    for step in range(200):
        optimizer.zero_grad()
        call_step(learner, "policy_loss", batch, torch.Generator().manual_seed(step)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        draws = torch.cat([learner.policy.sample_log_prob(learner.policy.context(batch.obs),
                                                          torch.Generator().manual_seed(i))[0] for i in range(50)])
    assert float(draws.min()) > 0.9


def test_every_step_is_commanded_the_goal_whatever_the_environment_shows():
    env = make("four_rooms", 4)
    data = rollout(env.expert(), env, 4, seed=0)
    assert GOAL in data.features()
    method = SGCRL(critic=LINEAR, latent_dim=2).method(data.features(), goal=(3.0, -1.0))
    commanded = training_data(data, method)
    assert all((episode.steps[GOAL] == [3.0, -1.0]).all() for episode in commanded)
    policy = Policy(method.policy, commanded.features()).fit_statistics(commanded)
    key, obs = keys(0, range(4)), env.reset(torch.arange(4), keys(0, range(4)))
    plain = build_actor(replace(method, transforms=()), {"policy": policy})

    def first_action(actor, obs):
        return actor.act(obs, actor.start(obs, key))[0]
    goal = torch.tensor([3.0, -1.0]).expand(4, 2)
    actions = [first_action(build_actor(method, {"policy": policy}), obs), first_action(plain, {**obs, GOAL: goal}),
               first_action(plain, obs)]
    assert torch.equal(*actions[:2]) and not torch.allclose(actions[0], actions[2], atol=1e-4)


def test_contract():
    check_learner(SGCRL(batch_size=8, critic=CriticConfig((8,)), latent_dim=4), [CONFIG])
    drawn = SGCRL().method().policy.window.goals[0]
    assert (drawn.p_randomgoal, drawn.discount) == (0.5, 0.99)
