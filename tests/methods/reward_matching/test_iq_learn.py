"""IQ-Learn: the exact soft values of a table, and training."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.collections import fork
from fixtures.learning import call_step

from understudy.core import Batch, Feature, Unsupported, UserError, part
from understudy.data.episode import Dataset, Episode
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.regression import Regression
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.learn.algorithm import Engine
from understudy.learn.critic import CriticConfig
from understudy.learn.fit_method import fit_method
from understudy.methods import find_method
from understudy.methods.reward_matching.iq_learn import IQLearn
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

STATE = "observation.state"
SMALL = IQLearn(batch_size=8, critic=CriticConfig((16,)))
DISCOUNT, TEMPERATURE = 0.9, 0.5
REWARD = torch.tensor([0.0, 0.3, -0.5, 1.0])  # of each of four states on a line
AFTER = torch.stack([(torch.arange(4) - 1).clamp(min=0), (torch.arange(4) + 1).clamp(max=3)], 1)  # of both actions


def soft_scores(reward: torch.Tensor) -> torch.Tensor:
    """Q of the optimal policy with entropy, (4, 2), by value iteration."""
    scores = torch.zeros(4, 2)
    for _ in range(500):
        scores = reward + DISCOUNT * soft_values(scores)[AFTER]
    return scores


def soft_values(scores: torch.Tensor) -> torch.Tensor:
    return TEMPERATURE * torch.logsumexp(scores / TEMPERATURE, -1)


class Table(torch.nn.Module):
    """A critic of the number of a state and the number of an action."""

    def __init__(self, scores: torch.Tensor):
        super().__init__()
        self.table = torch.nn.Parameter(scores.clone())

    def scores(self, obs, plan):
        return self.table[obs[STATE][:, -1, 0].long(), plan[:, 0, 0].long()].expand(2, -1)


@part
class TabularIQLearn(IQLearn):
    """The exact value of a softmax policy of the critic's table."""

    def value(self, nets, obs, rng):
        return soft_values(nets.critic.table)[obs[STATE][:, -1, 0].long()]


def tabular(scores: torch.Tensor, **options) -> Engine:
    """The learner with a table as its critic, and the exact value of a softmax policy."""
    features = {STATE: Feature("float32", (1,)), "action": Feature("float32", (1,))}
    data = Dataset([Episode({STATE: np.zeros((3, 1), np.float32), "action": np.ones((3, 1), np.float32)})])
    policy = Policy(PolicyConfig(SquashedGaussian(), MLP(8, 1)), features).fit_statistics(data)
    config = TabularIQLearn(**vars(replace(SMALL, discount=DISCOUNT, temperature=TEMPERATURE, **options)))
    learner = config.build(policy, 0, 10, data)
    learner.nets.critic = Table(scores)
    return learner


def rows(states: torch.Tensor, actions: torch.Tensor, ends: torch.Tensor | None = None) -> Batch:
    n = len(states)
    return Batch({STATE: states.float().reshape(n, 1, 1)}, actions.float().reshape(n, 1, 1),
                 torch.ones(n, 1, dtype=torch.bool),
                 {"next.terminated": torch.zeros(n, 1) if ends is None else ends.float()[:, None]},
                 {STATE: AFTER[states, actions].float().reshape(n, 1, 1)})


ALL = torch.arange(4).repeat_interleave(2), torch.arange(2).repeat(4)


def test_the_inverse_bellman_operator_gives_the_reward_back():
    reward = REWARD[:, None].expand(4, 2)
    learner = tabular(soft_scores(reward))
    recovered, drop, _ = learner.config.rewards(learner.nets, rows(*ALL), torch.Generator())
    torch.testing.assert_close(recovered.detach(), REWARD[ALL[0]].expand(2, -1), rtol=0, atol=1e-5)
    values = soft_values(soft_scores(reward))
    torch.testing.assert_close(drop.detach(), values[ALL[0]] - DISCOUNT * values[AFTER[ALL]], rtol=0, atol=1e-5)
    ended, _, _ = learner.config.rewards(  # no value follows an end
        learner.nets, rows(*ALL, torch.ones(8)), torch.Generator())
    torch.testing.assert_close(ended[0].detach(), soft_scores(reward)[ALL])


def test_the_loss_by_hand():
    scores = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5], [3.0, 0.0]])
    learner, value = tabular(scores, divergence_weight=2.0), soft_values(scores)
    own, expert = (torch.tensor([1]), torch.tensor([0])), (torch.tensor([2]), torch.tensor([1]))
    batch = rows(*own).replace(others={"expert": rows(*expert)})
    own_r, expert_r = (scores[s, a] - DISCOUNT * value[AFTER[s, a]] for s, a in (own, expert))
    drops = [value[s] - DISCOUNT * value[AFTER[s, a]] for s, a in (own, expert)]
    expected = -expert_r + sum(drops) / 2 + (own_r**2 + expert_r**2) / 2 / 8
    torch.testing.assert_close(call_step(learner, "critic_loss", batch, torch.Generator()).detach(), expected)


def test_the_optimum_is_the_policy_of_soft_value_iteration():
    """Demonstrations of that policy give it back, and its reward, solved again, gives it a second time."""
    exact = soft_scores(REWARD[:, None].expand(4, 2))
    policy = torch.softmax(exact / TEMPERATURE, 1)
    counts = (policy * 1000).round().long().flatten()
    states, actions = (x.repeat_interleave(counts) for x in ALL)
    learner = tabular(torch.zeros(4, 2), divergence_weight=1e5)
    batch = rows(states, actions).replace(others={"expert": rows(states, actions)})
    optimizer = torch.optim.LBFGS(learner.nets.critic.parameters(), max_iter=300, line_search_fn="strong_wolfe",
                                  tolerance_grad=1e-9, tolerance_change=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = call_step(learner, "critic_loss", batch, torch.Generator()).mean()
        loss.backward()
        return loss
    optimizer.step(closure)
    table = learner.nets.critic.table.detach()
    torch.testing.assert_close(torch.softmax(table / TEMPERATURE, 1), policy, rtol=0, atol=2e-3)
    reward = table - DISCOUNT * soft_values(table)[AFTER]
    torch.testing.assert_close(torch.softmax(soft_scores(reward) / TEMPERATURE, 1), policy, rtol=0, atol=2e-3)


def test_it_keeps_the_contract_of_learners():
    check_learner(SMALL, (PolicyConfig(SquashedGaussian(), MLP(16, 1, dropout=0.2), inputs=(STATE,)),))


def test_it_learns_with_and_without_an_environment():
    demos = rollout(fork(4).expert(), fork(4), 4, recording_seed(0))
    method = find_method("iq-learn", n_rounds=2, n_episodes=2)
    method = replace(method, learner=replace(SMALL, steps=5))
    online = fit_method(method, demos, 0, env=fork(4))
    offline = fit_method(replace(method, collection=None), demos, 0)
    assert set(online.modules) == set(offline.modules) == {"policy", "critic"}


def test_scores_that_diverge_are_named():
    """No reward pays off beyond twice the weight of the divergence: (2 * 0.5 + 0.5 * 2 components) / (1 - 0.9)."""
    demos = rollout(fork(4).expert(), fork(4), 4, recording_seed(0))
    wild = replace(SMALL.optimizer, lr=30.0)
    method = replace(find_method("iq-learn"), collection=None, learner=replace(
        SMALL, steps=30, optimizer=wild, discount=DISCOUNT, temperature=TEMPERATURE))
    with pytest.raises(UserError, match=r"critic diverge: .* can exceed 20\n  -> .*--optimizer.lr"):
        fit_method(method, demos, 0)


@pytest.mark.parametrize("demonstrations_end", [True, False])
def test_ends_of_the_policy_alone_are_warned_of_once(demonstrations_end):
    demos = rollout(fork(4).expert(), fork(4), 4, recording_seed(0)).map(lambda e: e.replace(
        {"next.terminated": np.arange(len(e)) == (len(e) - 1 if demonstrations_end else -1)}))
    policy = Policy(PolicyConfig(SquashedGaussian(), MLP(8, 1)), demos.features()).fit_statistics(demos)
    learner = SMALL.build(policy, 0, 10, demos)
    batch = learner.batch_sampler(demos).batch(8, 0)
    batch = batch.replace(extra={**batch.extra, "next.terminated": torch.ones_like(batch.mask)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learner.update(batch)
        learner.update(batch)
    assert ["has no reward of IQLearn, so" in str(w.message) for w in caught] == [True] * (not demonstrations_end)


def test_a_head_without_a_density_is_refused():
    features = {STATE: Feature("float32", (1,)), "action": Feature("float32", (1,))}
    with pytest.raises(Unsupported, match=r"Regression has no density(.|\n)*SquashedGaussian"):
        SMALL.build(Policy(PolicyConfig(Regression(), MLP(8, 1)), features), 0, 1, Dataset([]))
