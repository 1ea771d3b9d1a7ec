"""Soft actor-critic for classes: losses of a peer."""

from __future__ import annotations

import pytest
import torch
from fixtures.d3rlpy import HIDDEN, QUANTILES, STATE, fill_critic, losses_of, make_classes, make_policy_of_classes
from fixtures.learning import call_step

from understudy.data.episode import Dataset
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.critic import CriticConfig
from understudy.methods.online_rl.discrete_sac import DiscreteSAC
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig
from understudy.testing import check_learner

RNG = torch.Generator().manual_seed(0)


def test_it_keeps_the_contract_of_learners():
    check_learner(DiscreteSAC(batch_size=8, critic=CriticConfig((8,))),
                  (PolicyConfig(Categorical(), FeedForward((8,)), inputs=(STATE,)),))


@pytest.mark.parametrize("n_quantiles", [1, QUANTILES])
def test_losses_equal_those_of_d3rlpy(n_quantiles):
    expected, batch = losses_of("discrete_sac", n_quantiles), make_classes()
    config = DiscreteSAC(critic=CriticConfig(HIDDEN, n_quantiles=n_quantiles), temperature=0.5)
    learner = config.build(make_policy_of_classes(100, Categorical()), 0, 1, Dataset([]))
    fill_critic(learner.nets.critic, 200)
    fill_critic(learner.nets.target.critic, 300)
    assert call_step(learner, "critic_loss", batch, RNG).mean().item() == pytest.approx(expected["critic"], abs=1e-5)
    policy, temperature = call_step(learner, "policy_loss", batch, RNG)
    assert policy.mean().item() == pytest.approx(expected["policy"], abs=1e-5)
    # The peer's loss of the temperature is that of the temperature, and not of its logarithm.
    scale = (0.5 / learner.nets.temperature.log).item()
    assert scale * temperature.mean().item() == pytest.approx(expected["temperature"], abs=1e-5)
