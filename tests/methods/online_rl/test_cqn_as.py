"""CQN-AS: the zoom against brute force, the projection against the textbook's loop, and the values of a chain."""

import re
import warnings
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures.collections import fork

from understudy.core import ConfigError, Context, DataWarning, Feature, Unsupported
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import ROUND
from understudy.data.window import Window
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.heads.energy.coarse_to_fine import CoarseToFineQ
from understudy.heads.likelihood.regression import Regression
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.methods.online_rl.cqn_as import CQNAS
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_collection, check_learner

STATE = "observation.state"
LEVELS, BINS = 3, 5
NOTHING = Context(torch.zeros(40, 1, 1), torch.ones(40, 1, dtype=torch.bool))
SMALL = PolicyConfig(CoarseToFineQ(2, 3, 5), MLP(16, 1), window=Window(1, 2), inputs=(STATE,))


def valued(best: torch.Tensor) -> SimpleNamespace:
    """A network of two atoms, -4 and 4, whose value of a bin is minus the distance of its center to `best` (B, H, A).
    """
    def trunk(inputs, t, context):
        center, level = inputs[..., :2], inputs[..., 2:].argmax(-1)[..., None, None]
        centers = center[..., None] + (torch.arange(BINS) - (BINS - 1) / 2) * 2 / BINS ** (level + 1.0)
        p = (4 - (centers - best.repeat_interleave(len(center) // len(best), 0)[..., None]).abs()) / 8
        logits = torch.stack([(1 - p).log(), p.log()], -1)
        return torch.cat([logits.mean(-2, keepdim=True), logits], -2).flatten(2)
    return SimpleNamespace(trunk=trunk, bound=1.0, dim=2)


def test_the_zoom_ends_where_brute_force_does():
    best = 2 * torch.rand(40, 3, 2, generator=torch.Generator().manual_seed(0)) - 1
    head = CoarseToFineQ(LEVELS, BINS, 2, -4.0, 4.0)
    plan = head.sample(valued(best), NOTHING, best[..., :0])
    leaves = torch.tensor([sum((b - 2) * 2 / BINS ** (i + 1) for i, b in enumerate(path))
                           for path in product(range(BINS), repeat=LEVELS)])
    nearest = leaves[(best[..., None] - leaves).abs().argmin(-1)]
    torch.testing.assert_close(plan, nearest, rtol=0, atol=1e-5)
    log_probs, chosen = head.evaluate(valued(best), NOTHING, plan)  # its bins are the best of each level
    assert torch.equal(head.mean(log_probs).argmax(-1), chosen)


def test_the_cloning_loss_by_hand():
    """Of the atoms 0 and 1, the latter has p. Dominance is lost by p - own p, and the margin counts the own bin too."""
    p, own = torch.tensor([0.2, 0.5, 0.9]), 0.5
    log_probs = torch.stack([1 - p, p], -1).log().reshape(1, 1, 1, 1, 3, 2)
    head = CoarseToFineQ(1, 3, 2, 0.0, 1.0, margin=0.1)
    loss = head.cloning_loss(log_probs, torch.ones(1, 1, 1, 1, dtype=torch.int64))
    torch.testing.assert_close(loss, torch.tensor([[(0.9 - own + 0.1 + 0.9 - own + 0.1) / 3]]))


def chain() -> Dataset:
    """Two steps. The reward comes after the second, whose action is 0.8 or -0.8, and is 1 for the first of these."""
    def episode(first, second):
        return Episode({STATE: np.float32([[-1], [1]]), "action": np.float32([[first], [second]]),
                        "next.reward": np.float32([0, second > 0]), "next.terminated": np.array([False, True])})
    return Dataset([episode(a, b) for a, b in product((-0.8, 0.8), repeat=2)])


def chain_learner(**options):
    data = chain()
    config = replace(SMALL, head=CoarseToFineQ(1, 2, 11, 0.0, 1.0, margin=0.0), trunk=MLP(32, 1))
    policy = Policy(config, data.features()).fit_statistics(data)
    rate = OptimizerConfig(lr=3e-3, weight_decay=0.0, lr_schedule="constant")
    learner = CQNAS(200, 32, rate, 0.9, 0.8, **options).build(policy, 0, 200, data)
    return learner, learner.batch_sampler(data)


def test_the_values_of_a_chain():
    """The last action is worth its own reward, in every step that it pads; before it, all are worth 0.9 of the best."""
    learner, sampler = chain_learner(value_weight=100.0)
    for step in range(200):
        learner.update(sampler.batch(32, step))
    obs = {STATE: torch.tensor([-1.0, 1.0]).reshape(2, 1, 1)}
    policy, head = learner.policy, learner.policy.config.head
    log_probs, _ = head.evaluate(policy.net, policy.context(obs), torch.zeros(2, 2, 1))
    values = head.mean(log_probs)[:, :, 0, 0].detach()  # (state, step, bin)
    expected = torch.tensor([[0.9, 0.9], [0.0, 1.0]])[:, None].expand(2, 2, 2)
    torch.testing.assert_close(values, expected, rtol=0, atol=0.05)


def test_targets_are_projected_as_in_the_textbook():
    learner, sampler = chain_learner()
    batch = sampler.batch(16, 0)
    rewards = torch.rand(16, 1, generator=torch.Generator().manual_seed(0))
    batch = batch.replace(extra={**batch.extra, "next.reward": rewards})
    noise, head, target = torch.zeros(16, 2, 0), learner.policy.config.head, learner.nets.target.policy
    best = head.sample(learner.policy.net, learner.policy.context(batch.next), noise)
    log_probs, chosen = head.evaluate(target.net, target.context(batch.next), best)
    expected = torch.zeros(16, 2, 1, 1, 11)
    for row, step, atom in product(range(16), range(2), range(11)):
        p = log_probs[row, step, 0, 0, chosen[row, step, 0, 0], atom].exp().detach()
        goes_on = 1 - batch.extra["next.terminated"][row].float().item()
        place = min(batch.extra["next.reward"][row].item() + goes_on * 0.9 * atom / 10, 1.0) * 10
        low, high = int(np.floor(place)), int(np.ceil(place))
        expected[row, step, 0, 0, low] += p * (1 if low == high else high - place)
        expected[row, step, 0, 0, high] += p * (0 if low == high else place - low)
    torch.testing.assert_close(learner.config.target_probs(learner.nets, batch), expected, rtol=0, atol=1e-5)


def test_episodes_that_succeed_count_as_demonstrations():
    learner, _ = chain_learner()
    metadata = [{}, {ROUND: 0, "success": False}, {ROUND: 0, "success": True}]
    data = Dataset([replace(e, metadata=m) for e, m in zip(chain(), metadata, strict=False)])
    sampler = learner.batch_sampler(data)
    own, expert = (s.scan() for s in (sampler.sampler, sampler.others["expert"]))
    first = [[float(a) for b in batches for a in b.action[::2, 0, 0]] for batches in (own, expert)]
    assert np.allclose(first, [[-0.8, 0.8], [-0.8, 0.8]])  # rounds alone; the demonstration and the success


def test_it_keeps_the_contract_of_learners():
    check_learner(CQNAS(batch_size=8), (SMALL,))


@pytest.mark.slow
def test_stopped_within_and_between_rounds_it_is_the_same_run():
    demos = rollout(fork(4).expert(), fork(4), 4, recording_seed(0))
    method = find_method("cqn-as", n_rounds=2, n_steps=20, horizon=3)
    method = replace(method, policy=replace(method.policy, head=SMALL.head, trunk=MLP(8, 1)),
                     learner=replace(method.learner, batch_size=8))
    check_collection(method, demos, fork)


def test_returns_that_are_reversed_are_refused():
    with pytest.raises(ConfigError, match=r"low \(2\.0\) must be below high \(2\.0\)"):
        CoarseToFineQ(low=2.0)


@pytest.mark.parametrize(("rewards", "says"), [
    ([0, 0, 1], None), ([-0.5, -0.5, 2], None), ([-1, -1, -1], "from -2.71 to 0,"), ([0, 0, 1000], "to 1e[+]03")])
def test_returns_beyond_the_atoms_are_told(rewards, says):
    episode = Episode({STATE: np.zeros((4, 1), "f"), "action": np.zeros((3, 1), "f"),
                       "next.reward": np.float32(rewards), "next.terminated": np.arange(3) == 2})
    data = Dataset([episode])
    policy = Policy(SMALL, data.features()).fit_statistics(data)
    with warnings.catch_warnings(record=True) as told:
        CQNAS(discount=0.9).build(policy, 0, 1, data)
    texts = [str(w.message) for w in told if w.category is DataWarning]
    assert bool(texts) == bool(says) and (not says or re.search(says, texts[0]) and "--policy.head.low" in texts[0])


def test_another_head_is_refused():
    features = {STATE: Feature("float32", (1,)), "action": Feature("float32", (1,))}
    with pytest.raises(Unsupported, match="CoarseToFineQ"):
        CQNAS().build(Policy(PolicyConfig(Regression(), MLP(8, 1)), features), 0, 1, Dataset([]))
