"""PRDC: the loss of a peer, and the nearest stored pair by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures.d3rlpy import HIDDEN, LOSSES, RNG, STATE, TanhNet, fill_critic, make_batch, make_policy
from fixtures.learning import call_step

from understudy.core import Feature, Unsupported, UserError
from understudy.data.episode import Dataset, Episode
from understudy.heads.likelihood.regression import Regression
from understudy.learn.algorithm import Engine
from understudy.learn.critic import CriticConfig
from understudy.methods import find_method
from understudy.methods.offline_rl.prdc import PRDC
from understudy.nets.mlp import MLP
from understudy.nets.pixels import PixelEncoder
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner


def build(data: Dataset, **options) -> Engine:
    learner = PRDC(critic=CriticConfig(HIDDEN), **options).build(make_policy(Regression()), 0, 1, data)
    learner.policy.net = TanhNet(100)
    fill_critic(learner.nets.critic, 200)
    return learner


def stored() -> Dataset:
    """The batch of the peer, as an episode."""
    batch = make_batch()
    obs = batch.obs[STATE][:, 0].numpy()
    return Dataset([Episode({STATE: np.concatenate([obs, obs[-1:]]), "action": batch.action[:, 0].numpy()})])


def test_the_loss_equals_that_of_d3rlpy():
    """The peer's score has a weight of 2.5, and its distance that of 1."""
    learner, batch = build(stored(), bc_weight=0.4), make_batch()
    loss = call_step(learner, "policy_loss", batch, RNG).mean().item()
    assert 2.5 * loss == pytest.approx(LOSSES["prdc"]["policy"], abs=1e-5)


@pytest.mark.parametrize(("scale", "expected"), [(1e-6, 0.01), (100.0, 1.0)])
def test_the_scale_of_observations_decides_which_pair_is_nearest(scale, expected):
    """The pair of the same observation has a distant action, and a pair of another observation a near one."""
    steps = {STATE: np.array([[0.0, 0, 0], [1, 1, 1], [0, 0, 0]], np.float32),
             "action": np.array([[1.0, 1.0], [0.1, 0.1]], np.float32)}
    learner = build(Dataset([Episode(steps)]), obs_scale=scale)
    batch = make_batch().select_rows(slice(0, 1))
    batch = batch.replace(obs={STATE: torch.zeros(1, 1, 3)}, action=torch.ones(1, 1, 2))
    distance = learner.config.distance(learner.nets, torch.zeros(1, 1, 2), batch, torch.Generator())
    assert distance.item() == pytest.approx(expected, abs=1e-6)


def test_it_keeps_the_contract_of_learners():
    check_learner(PRDC(batch_size=8, critic=CriticConfig((8,))), (
        PolicyConfig(Regression(), MLP(16, 1, dropout=0.2), inputs=(STATE,)),))


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="obs_scale"):
        find_method("prdc", obs_scale=0.0)
    features = {"observation.image": Feature("uint8", (8, 8, 3), "image"), "action": Feature("float32", (2,))}
    policy = Policy(PolicyConfig(Regression(), encoder=PixelEncoder()), features)
    with pytest.raises(Unsupported, match="distances are between numbers, and 'observation.image' is of kind 'image'"):
        PRDC().build(policy, 0, 1, Dataset([]))
