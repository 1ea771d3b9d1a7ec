"""Dichotomy of Control: the contract of the learner, the bound of the information, and a bandit with exact values."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from understudy.core import ConfigError, Feature, Unsupported
from understudy.data.codec import Normalizer
from understudy.data.window import Window
from understudy.execute.planners import BestOfN, Hierarchical
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit_method import fit_method
from understudy.learn.method import build_planner, training_data
from understudy.methods.return_conditioned.dichotomy_of_control import FUTURE, DichotomyOfControl
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner, random_dataset

STATE = "observation.state"
POLICY = PolicyConfig(Regression(), MLP(16, 1), ConcatEncoder(), Normalizer(unscaled=(FUTURE,)), inputs=(STATE, FUTURE))
FEATURES = {STATE: Feature("float32", (3,)), FUTURE: Feature("float32", (2,)), "action": Feature("float32", (2,)),
            "next.reward": Feature("float32", ())}


def test_the_learner_keeps_the_contract():
    config = DichotomyOfControl(3, hidden=(8, 8), batch_size=8, value_weight=0.1, n_negatives=3)
    check_learner(config, (replace(POLICY, window=Window(1, 2)),))


def learner(**options):
    data = random_dataset(FEATURES, episodes=2, steps=5)
    policy = Policy(POLICY, data.features()).fit_statistics(data)
    return DichotomyOfControl(hidden=(8, 8), **options).build(policy, 0, 10, data), data


def test_the_future_ends_with_the_episode():
    dichotomy, data = learner(lookahead=3, batch_size=8)
    batch = dichotomy.batch_sampler(data).gather(torch.tensor([3, 4]).numpy())  # the last but one step, and the last
    obs, action, reward, is_known = dichotomy.nets.posterior.future(batch)
    assert is_known.tolist() == [[True, True, False], [True, False, False]]
    assert (obs.shape, action.shape, reward.shape) == ((2, 4, 3), (2, 3, 2), (2, 3))
    assert (action[~is_known] == 0).all() and (reward[~is_known] == 0).all() and (action[is_known] != 0).all()
    e = data[0]
    coded = dichotomy.policy.codec.encode_obs({STATE: torch.as_tensor(e.steps[STATE])[None],
                                                 FUTURE: torch.zeros(1, 5, 2)})
    assert torch.allclose(obs[0], coded[STATE][0, [3, 4, 4, 4]]), "from the current observation to the last"
    rewards = torch.as_tensor(e.steps["next.reward"][:5]).float()
    assert torch.allclose(batch.extra["return_to_go"].flatten(1)[:, 0], rewards.flip(0).cumsum(0).flip(0)[3:])


def test_the_bound_is_zero_for_an_energy_that_knows_nothing_and_the_gain_of_one_that_does():
    dichotomy, data = learner(batch_size=8, n_negatives=64)
    batch = dichotomy.batch_sampler(data).batch(512, 0)
    latent, rng = torch.zeros(512, 2), torch.Generator()

    class Constant(torch.nn.Module):
        def forward(self, cause, effect):
            return torch.zeros(len(cause), effect.shape[1])

    class Recognizes(torch.nn.Module):
        """The exact log-ratio where the effect is a coin (the sign of the reward) that the latent shows."""

        def forward(self, cause, effect):
            same = torch.sign(cause[..., -1]) == torch.sign(effect[..., 0])
            return torch.where(same, 0.0, -50.0)
    dichotomy.nets.energy = Constant()
    assert dichotomy.config.information_bound(dichotomy.nets, latent, batch, rng).abs().max() < 1e-5
    dichotomy.nets.energy = Recognizes()
    reward = dichotomy.nets.posterior.future(batch)[2]
    bound = dichotomy.config.information_bound(
        dichotomy.nets, torch.cat([latent[:, :1], reward], 1), batch, rng).mean()
    share = (reward > 0).float().mean()
    entropy = -(share * share.log() + (1 - share) * (1 - share).log())
    assert abs(bound - entropy) < 0.05 and entropy > 0.9 * math.log(2) * 0.9


def test_the_best_of_many_latents_is_taken_while_acting():
    data = training_data(random_dataset({k: f for k, f in FEATURES.items() if k != FUTURE}, episodes=2, steps=5),
                         method := DichotomyOfControl().method(n=7))
    result = fit_method(replace(method, transforms=(), learner=replace(method.learner, steps=1, batch_size=4)), data, 0)
    planner = build_planner(method, result.modules)
    assert isinstance(planner, Hierarchical) and isinstance(planner.high, BestOfN) and planner.high.n == 7
    assert planner.inputs == (STATE,), "the latent is planned, and not observed"
    obs, key = {STATE: torch.randn(3, 1, 3)}, torch.arange(3)
    noise = planner.noise(key, torch.zeros_like(key))
    latent = planner.high.plan(obs, noise["high"])
    expected = result.policy.plan({**obs, FUTURE: latent}, noise["low"])
    assert torch.equal(planner.plan(obs, noise), expected)


def test_wrong_policies_are_refused():
    data = random_dataset(FEATURES, episodes=2, steps=5)

    def build(policy):
        return DichotomyOfControl().build(Policy(policy, data.features()).fit_statistics(data), 0, 10, data)
    with pytest.raises(ConfigError, match="does not read 'observation.future'"):
        build(replace(POLICY, inputs=(STATE,), codec=Normalizer()))
    with pytest.raises(Unsupported, match="what follows one observation"):
        build(replace(POLICY, window=Window(2, 1)))
    with pytest.raises(ConfigError, match="lookahead is 0"):
        DichotomyOfControl(0)
