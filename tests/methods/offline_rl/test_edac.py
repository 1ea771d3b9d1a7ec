"""EDAC: the similarity of the critics' gradients in closed form, and that training lowers it."""

from __future__ import annotations

import pytest
import torch
from fixtures.d3rlpy import HIDDEN, RNG, STATE, fill_critic, make_batch, make_policy
from fixtures.learning import call_step
from torch import nn

from understudy.core import UserError
from understudy.data.episode import Dataset
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.learn.algorithm import Engine
from understudy.learn.critic import CriticConfig
from understudy.methods import find_method
from understudy.methods.offline_rl.edac import EDAC
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import check_learner


def build(n_critics: int, **options) -> Engine:
    config = EDAC(critic=CriticConfig(HIDDEN, n_critics=n_critics), policy_delay=2, target_entropy=None, **options)
    return config.build(make_policy(SquashedGaussian()), 0, 1, Dataset([]))


def with_gradients(learner: Engine, directions: list[tuple[float, float]]) -> Engine:
    """Critics that are linear, with these gradients with respect to the action."""
    for i, direction in enumerate(directions):
        learner.nets.critic.layers[i] = nn.Linear(5, 1)
        with torch.no_grad():
            learner.nets.critic.layers[i].weight[0, 3:] = torch.tensor(direction)
    return learner


@pytest.mark.parametrize(("directions", "expected"), [
    ([(1.0, 0.0), (5.0, 0.0)], 2.0), ([(1.0, 0.0), (-3.0, 0.0)], -2.0), ([(1.0, 0.0), (0.0, 2.0)], 0.0),
    ([(1.0, 0.0), (1.0, 0.0), (0.0, 1.0)], 1.0), ([(3.0, 4.0), (4.0, 3.0)], 2 * 24 / 25)])
def test_similarity_in_closed_form(directions, expected):
    """Each pair counts twice, as in the code of the authors. The sum is divided by the number of critics minus 1."""
    learner = with_gradients(build(len(directions)), directions)
    torch.testing.assert_close(learner.config.similarity(learner.nets, make_batch()), torch.full((6,), expected))


def test_the_loss_is_that_of_sac_plus_the_weighted_similarity():
    batch, losses = make_batch(), []
    learners = [build(3, diversity_weight=weight) for weight in (0.0, 0.7)]
    for learner in learners:
        learner.policy.load_state_dict(learners[0].policy.state_dict())
        fill_critic(learner.nets.critic, 200)
        fill_critic(learner.nets.target.critic, 300)
        losses.append(call_step(learner, "critic_loss", batch, RNG.manual_seed(1)))
    similarity = learners[1].config.similarity(learners[1].nets, batch)
    torch.testing.assert_close(losses[1], losses[0] + 0.7 * similarity)
    assert (similarity > 0.1).any()


def test_training_moves_the_gradients_apart():
    similarities = {}
    for weight in (0.0, 100.0):
        torch.manual_seed(0)
        learner, batch = build(4, diversity_weight=weight), make_batch()
        for _ in range(50):
            learner.update(batch)
        similarities[weight] = learner.config.similarity(learner.nets, batch).mean().item()
    assert similarities[100.0] < similarities[0.0] - 0.2, similarities


def test_it_keeps_the_contract_of_learners():
    check_learner(EDAC(batch_size=8, critic=CriticConfig((8,), n_critics=3), temperature=1.0), (
        PolicyConfig(SquashedGaussian(), MLP(16, 1, dropout=0.2), inputs=(STATE,)),))


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="diversity_weight"):
        find_method("edac", diversity_weight=-1.0)
    with pytest.raises(UserError, match="one critic has no other to differ from"):
        find_method("edac", critic=CriticConfig(n_critics=1))
    alone = find_method("edac", critic=CriticConfig(n_critics=1), diversity_weight=0.0)
    assert alone.learner.critic.n_critics == 1 and find_method("edac").learner.critic.n_critics == 10
