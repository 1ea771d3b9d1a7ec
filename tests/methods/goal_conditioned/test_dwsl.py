"""DWSL: distances from a classifier of the number of steps, and the weights that they give."""

import numpy as np
import pytest
import torch
from fixtures.learning import call_step

from understudy.data.episode import Dataset, Episode
from understudy.data.window import Goal, Window
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.learn.critic import CriticConfig
from understudy.methods.goal_conditioned.dwsl import DWSL
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

STATE, GOAL = "observation.state", "observation.goal"
CONFIG = PolicyConfig(Gaussian(std=1.0), FeedForward((8,)), ConcatEncoder(), window=Window(goals=(Goal(STATE),)),
                      inputs=(STATE, GOAL))


class KnownDistances(DWSL):
    """DWSL whose distances are those in a column of the observations."""

    def distance(self, nets, obs):
        return obs["distance"]


def built(config: type[DWSL] = DWSL, **options):
    rng = np.random.default_rng(0)
    data = Dataset([Episode({STATE: rng.normal(size=(n + 1, 2)).astype(np.float32),
                             "action": rng.normal(size=(n, 1)).astype(np.float32)}) for n in (9, 6)])
    policy = Policy(CONFIG, data.features()).fit_statistics(data)
    learner = config(critic=CriticConfig((8,)), **options).build(policy, 0, 10, data)
    return learner, learner.batch_sampler(data).batch(64, 0)


def test_contract():
    check_learner(DWSL(batch_size=8, critic=CriticConfig((8,), layer_norm=True)), [CONFIG])


def test_the_distance_is_the_soft_minimum_of_a_known_distribution():
    probabilities = torch.tensor([0.1, 0.2, 0.0, 0.7])
    for temperature, expected in ((1e6, (0.2 * 1 + 0.7 * 3) / 4), (1e-3, 0.0),
                                  (1.0, -np.log(0.1 + 0.2 * np.exp(-1 / 4) + 0.7 * np.exp(-3 / 4)))):
        learner, batch = built(n_bins=4, temperature=temperature)
        learner.nets.distance.forward = lambda obs: (probabilities.log() + 5).double().expand(1, 64, 4)
        distance = learner.config.distance(learner.nets, batch.obs)
        assert distance.numpy() == pytest.approx(np.full(64, expected), abs=3e-3)


def test_classes_are_numbers_of_steps():
    learner, batch = built(n_bins=4)
    logits = torch.randn(1, 64, 4)
    learner.nets.distance.forward = lambda obs: logits
    steps = batch.extra["observation.goal.steps"].squeeze(1)
    loss = call_step(learner, "distance_loss", batch, torch.Generator())
    surprise = -logits[0].log_softmax(-1)
    for row, n in enumerate(steps.tolist()):
        assert loss[row] == pytest.approx(0.0 if n == 0 else surprise[row, min(int(n), 4) - 1])
    assert {0.0, 1.0, 4.0, 5.0} <= set(steps.tolist())
    elsewhere = batch.replace(extra={**batch.extra, "observation.goal.steps": torch.full((64, 1), torch.inf)})
    torch.testing.assert_close(call_step(learner, "distance_loss", elsewhere, torch.Generator()), surprise[:, 3])


def test_steps_that_save_more_steps_weigh_more_up_to_a_bound():
    learner, batch = built(KnownDistances, n_bins=10, beta=0.05)
    saved = torch.arange(64) % 5 - 2.0  # steps by which the goal is nearer afterwards
    batch = batch.replace(obs={**batch.obs, "distance": saved / 10}, next={**batch.next, "distance": torch.zeros(64)})
    plain = learner.policy.loss(batch, torch.Generator())
    ratio = (call_step(learner, "policy_loss", batch, torch.Generator()) / plain).squeeze(1).detach()
    torch.testing.assert_close(ratio, ((saved - 1) / 10 / 0.05).exp().clamp(max=10))
    assert ratio.max() == pytest.approx(np.exp(0.1 * 1 / 0.05))
