"""Importance-weighted fine-tuning: weights in closed form, and bounds on a tree whose returns are known."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.learning import call_step

from understudy.core import Feature, Unsupported, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.learn.fit import fit
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.offline_rl.iw_sft import IWSFT, ReturnStrata
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner, random_dataset

STATE = "observation.state"
COLUMNS = {STATE: Feature("float32", (3,)), "action": Feature("float32", (2,))}


def gaussian_policy(std: float, data: Dataset, horizon: int = 1) -> Policy:
    """Plans 0 with a fixed deviation, in coded units."""
    policy = Policy(PolicyConfig(Gaussian(std), MLP(16, 1), window=Window(1, horizon), inputs=(STATE,)), COLUMNS)
    policy.fit_statistics(data)
    for parameter in policy.net.parameters():
        torch.nn.init.zeros_(parameter)
    return policy.eval()


def build(policy, reference, **options):
    return IWSFT(reference, batch_size=40, **options).build(policy, 0, 10, Dataset([]))


@pytest.mark.parametrize("horizon", (1, 3))
def test_it_keeps_the_contract_of_learners(horizon):
    reference = gaussian_policy(0.5, random_dataset(COLUMNS), horizon)
    check_learner(IWSFT(reference, batch_size=30), (
        PolicyConfig(Gaussian(), MLP(16, 1, dropout=0.2), window=Window(1, horizon), inputs=(STATE,)),))


def test_weights_are_ratios_of_known_densities():
    """Two Gaussians about 0 with deviations 0.5 and 0.8: the mean log-ratio of an episode is a sum of squares."""
    data = random_dataset(COLUMNS)
    learner = build(gaussian_policy(0.5, data), gaussian_policy(0.8, data), beta=2.0)
    batch = learner.batch_sampler(data).batch(40, 0)
    squares = learner.policy.encode_batch(batch).square().sum((1, 2))
    log_ratio = 2 * math.log(0.8 / 0.5) - squares * (1 / 0.5**2 - 1 / 0.8**2) / 2
    episode = batch.extra["episode"][:, 0]
    with torch.no_grad():
        weights = call_step(learner, "weight", batch, torch.Generator())
        learner.config = replace(learner.config, over="step", max_weight=1.5)
        of_steps = call_step(learner, "weight", batch, torch.Generator())
    for number in range(int(episode[-1]) + 1):
        own = episode == number
        assert weights[own].sum().item() == pytest.approx(math.exp(2 * log_ratio[own].mean()), rel=1e-4)
        assert weights[own].amin() == weights[own].amax()
        assert of_steps[own, 0].tolist() == pytest.approx(
            ((2 * log_ratio[own]).exp().clamp(max=1.5) / own.sum()).tolist(), rel=1e-4)


def test_the_first_update_is_cloning_and_the_copy_follows_the_policy():
    data = random_dataset(COLUMNS)
    learner = build(gaussian_policy(0.5, data), gaussian_policy(0.5, data), decay=0.9)
    batch = learner.batch_sampler(data).batch(40, 0)
    with torch.no_grad():
        weights = call_step(learner, "weight", batch, torch.Generator())
    assert torch.zeros(2).index_add(0, batch.extra["episode"][:, 0], weights[:, 0]).tolist() == pytest.approx([1, 1])
    lagged = learner.nets.target.policy
    old = [p.clone() for p in lagged.parameters()]
    lengths = batch.extra["episode"][:, 0].bincount()  # of weight 1 each: 2 is the sum over the batch
    assert learner.update(batch)["effective_fraction"] == pytest.approx(2**2 / (40 * (1 / lengths).sum().item()))
    for before, after, new in zip(old, lagged.parameters(), learner.policy.parameters(), strict=True):
        torch.testing.assert_close(after, 0.9 * before + 0.1 * new)


def test_strata_repeat_the_best():
    episodes = [Episode({"action": np.zeros((2, 1)), "next.reward": np.array([0, r], np.float32)}) for r in range(10)]
    chosen = ReturnStrata((0.5, 0.2, 0.1)).apply(Dataset(episodes))
    assert [int(e.steps["next.reward"].sum()) for e in chosen] == [5, 6, 7, 8, 9, 8, 9, 9]
    with pytest.raises(UserError, match="no column 'next.reward'"):
        ReturnStrata().apply(Dataset([Episode({"action": np.zeros((2, 1))})]))


def test_what_it_cannot_learn_is_refused():
    data = random_dataset(COLUMNS)
    learner = build(gaussian_policy(0.5, data), gaussian_policy(0.5, data))
    with pytest.raises(Unsupported, match="weights of a mixture"):
        learner.batch_sampler(data, lambda episode: np.ones(len(episode)))
    flow = Policy(PolicyConfig(Flow(), MLP(16, 1), inputs=(STATE,)), COLUMNS).fit_statistics(data)
    with pytest.raises(Unsupported, match="Flow"):
        build(flow, flow)


# -- a tree of five steps with two actions, in which each state has an entry of its own in a table ---------------------

DEPTH = 5
LEAVES = list(itertools.product((0, 1), repeat=DEPTH))
RETURNS = np.array([min(3, sum(leaf)) if leaf[0] else 0 for leaf in LEAVES])  # 0 to 3
N_NODES = 2**DEPTH - 1


def episode(leaf) -> Episode:
    state = np.zeros((DEPTH, N_NODES), np.float32)
    for t in range(DEPTH):
        state[t, 2**t - 1 + int("0" + "".join(map(str, leaf[:t])), 2)] = 1
    return Episode({STATE: state, "action": np.array(leaf)[:, None]}, schema={
        STATE: Feature("float32", (N_NODES,)), "action": Feature("int64", (1,), "discrete", num_classes=(2,))})


def densities(policy: Policy) -> np.ndarray:
    """The probability of each leaf."""
    batch = policy.windows(Dataset([episode(leaf) for leaf in LEAVES])).gather(np.arange(len(LEAVES) * DEPTH))
    with torch.no_grad():
        log_prob = policy.log_prob(policy.context(batch.obs), policy.encode_batch(batch), batch.mask)
    return log_prob.reshape(len(LEAVES), DEPTH).sum(1).exp().double().numpy()


def bound(policy: np.ndarray, copy: np.ndarray) -> float:
    """The lower bound of the return of `policy`, with the density `copy` in place of the reference."""
    return float((copy * RETURNS * (1 + np.log(policy) - np.log(copy))).sum())


def test_bounds_and_returns_of_a_tree_are_ordered():
    """The reference draws all leaves equally often. A leaf of return r is r times in the data, as with strata."""
    data = Dataset([episode(leaf) for leaf, r in zip(LEAVES, RETURNS, strict=True) for _ in range(r)])
    optimizer = OptimizerConfig(lr=0.01, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)
    torch.manual_seed(0)
    reference = Policy(PolicyConfig(Categorical(), FeedForward((64,)), ConcatEncoder(), inputs=(STATE,)),
                       data.features()).fit_statistics(data)
    for parameter in list(reference.net.parameters())[-2:]:  # of the last layer
        torch.nn.init.zeros_(parameter)
    learned = [densities(reference)]
    assert learned[0] == pytest.approx(1 / len(LEAVES))
    every = reference.windows(data).gather(np.arange(DEPTH * len(data)))
    every = every.replace(extra={"episode": torch.arange(len(every))[:, None] // DEPTH})
    for beta in (0.0, float(DEPTH)):  # DEPTH times the mean log-ratio is that of the episode
        config = IWSFT(reference, 150, DEPTH * len(data), optimizer, beta=beta)
        learner = config.build(copy.deepcopy(reference), 0, 150, data)
        fit(learner, lambda step: every, 150)
        learned.append(densities(learner.trained_policy))
    uniform, sft, weighted = learned
    exact = RETURNS / RETURNS.sum()  # what cloning the strata converges to
    assert sft == pytest.approx(exact, abs=0.02)
    returns = [float(p @ RETURNS) for p in learned]
    assert returns[1] == pytest.approx(float(exact @ RETURNS), abs=0.02)  # E[R^2] / E[R]
    assert returns[0] + 0.5 < returns[1] < returns[2] - 0.2 < 2.8  # at most 3, which reinforcement learning reaches
    assert bound(weighted, uniform) < bound(weighted, sft) < returns[2]  # a copy nearer to the policy is tighter
    assert bound(weighted, weighted) == pytest.approx(returns[2])
    divergences = [-math.log(p[RETURNS == 3].sum()) for p in learned]  # from the nearest optimal policy
    assert divergences[0] > divergences[1] + 0.3 and divergences[1] > divergences[2] + 0.1
