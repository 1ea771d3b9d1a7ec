"""A window at the end of an episode counts as much as any other: losses are means over steps that are not padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.learn.targets import mean_over_steps
from understudy.methods import find_method
from understudy.nets.mlp import MLP
from understudy.policy import Policy

# Learners whose losses are not sums over steps, such as the density of a whole chunk.
METHODS = ("bc", "td3-bc", "rebrac", "spot", "prdc", "iql", "awac", "crr", "fql", "bear", "plas", "edac")


def episode(action: float) -> Episode:
    zeros = np.zeros(8, np.float32)
    return Episode({"observation.state": np.linspace(-1, 1, 9)[:, None].repeat(2, 1).astype(np.float32),
                    "action": np.full((8, 2), action, np.float32), "next.reward": zeros,
                    "next.terminated": zeros > 0}, {"expert": action > 0})


def test_means_leave_padding_out():
    values = torch.tensor([[1.0, 2, 6], [5, 7, 9], [3, 3, 3]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 0]]) > 0
    assert mean_over_steps(values, mask).tolist() == [3, 7, 0]
    assert mean_over_steps(values.unsqueeze(-1) * torch.tensor([1.0, 3]), mask).tolist() == [6, 14, 0]


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_of_a_window_does_not_change_when_steps_are_padded(name):
    """All errors are equal: the networks' outputs are 0, and all actions of an episode are 1 or -1."""
    data = Dataset([episode(1), episode(-1)])
    method = find_method(name, data.features())
    config = replace(method.policy, window=Window(horizon=4), trunk=MLP(8, 1))
    policy = Policy(config, data.features()).fit_statistics(data)
    learner = replace(method.learner, batch_size=16).build(policy, 0, 4, data)
    compared, minimize = [], learner.minimize

    def clear():
        with torch.no_grad():
            for network in (*learner._networks.values(), *learner.targets.values()):
                for parameter in network.module.parameters():
                    parameter.zero_()

    def per_window(loss, batch):
        terms = loss(batch, torch.Generator().manual_seed(0))
        terms = terms if isinstance(terms, tuple) else (terms,)
        return torch.stack([mean_over_steps(x, batch.mask) if x.ndim == 2 else x for x in terms]).detach()

    def compare(network, loss, batch, *args, **options):
        if network in ("policy", "behavior"):  # the target of a critic has the discount of the steps before it
            is_whole, padded = batch.mask.all(1), batch.mask.clone()
            padded[is_whole, 2:] = False
            losses = [per_window(loss, b)[:, is_whole] for b in (batch, batch.replace(mask=padded))]
            torch.testing.assert_close(losses[1], losses[0])
            compared.append(network)
        minimize(network, loss, batch, *args, **options)
        clear()
    clear()
    learner.minimize = compare
    sampler = learner.batch_sampler(learner.annotate(data, None))
    for step in range(4):
        learner.update(sampler.batch(16, step))
    assert "policy" in compared


def test_following_actions_are_compared_where_there_are_any():
    """All actions are 1 or -1 in coded units, so that a plan of zeros has the distance 1, however few steps follow."""
    data = Dataset([episode(1), episode(-1)])
    method = find_method("rebrac", data.features())
    config = replace(method.policy, window=Window(horizon=4), trunk=MLP(8, 1))
    learner = method.learner.build(Policy(config, data.features()).fit_statistics(data), 0, 4, data)
    batch = learner.batch_sampler(data).batch(64, 0)
    follows = batch.extra["index"][:, 0] % 8 < 4
    distance = learner.config._following_distance(learner.nets, torch.zeros(64, 4, 2), batch)
    torch.testing.assert_close(distance, follows.float())
    assert follows.any() and not follows.all()


def test_the_nearest_stored_plan_counts_where_it_has_steps():
    data = Dataset([episode(1), episode(-1)])
    method = find_method("prdc", data.features())
    config = replace(method.policy, window=Window(horizon=4), trunk=MLP(8, 1))
    learner = method.learner.build(Policy(config, data.features()).fit_statistics(data), 0, 4, data)
    batch = learner.batch_sampler(data).batch(64, 0)
    distance = learner.config.distance(learner.nets, torch.zeros(64, 4, 2), batch, None)
    torch.testing.assert_close(distance, torch.ones(64))
