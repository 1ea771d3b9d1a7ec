"""HILP: a space whose distances are numbers of steps, and a policy for its directions."""

import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.checkpoint import load_module, save_module
from understudy.core import ConfigError, keys
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Goal, Window
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.learn.critic import CriticConfig
from understudy.learn.devices import Processes
from understudy.learn.fit_method import fit_method
from understudy.methods import find_method
from understudy.methods.goal_conditioned.hilp import DIRECTION, HILP
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

STATE, GOAL = "observation.state", "observation.goal"
NETWORKS = CriticConfig((8,))
CONFIG = PolicyConfig(Gaussian(std=1.0), FeedForward((8,)), ConcatEncoder(), Normalizer(unscaled=(DIRECTION,)),
                      Window(goals=(Goal(STATE),)), (STATE, DIRECTION))


def episodes() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset([Episode({STATE: rng.normal(size=(13, 2)).astype(np.float32),
                             DIRECTION: np.zeros((13, 3), np.float32),
                             "action": rng.normal(size=(12, 1)).astype(np.float32)}) for _ in range(3)])


class RecordingHILP(HILP):
    """HILP that records the directions of its batches."""

    drawn = []

    def reward(self, nets, batch):
        self.drawn.append(batch.obs[DIRECTION])
        return super().reward(nets, batch)


def built(config: type[HILP] = HILP):
    data = episodes()
    learner = config(critic=NETWORKS).build(Policy(CONFIG, data.features()).fit_statistics(data), 0, 10, data)
    return learner, learner.batch_sampler(data).batch(32, 0)


def test_contract():
    check_learner(HILP(batch_size=8, critic=NETWORKS), [CONFIG])
    with pytest.raises(ConfigError, match=r"but it must read 'observation.direction' in place of 'observation.goal'"):
        HILP().build(Policy(replace(CONFIG, codec=Normalizer(), inputs=(STATE, GOAL)), episodes().features()), 0, 1,
                     episodes())


def test_values_are_minus_the_distance_of_representations():
    learner, batch = built()
    network = learner.nets.phi

    def values(obs):
        return learner.config.values(learner.nets, network, obs, GOAL)
    here, there = (network({**batch.obs, STATE: batch.obs[k]}) for k in (STATE, GOAL))
    torch.testing.assert_close(values(batch.obs), -(here - there).norm(dim=-1).clamp(min=1e-3))
    swapped = {**batch.obs, STATE: batch.obs[GOAL], GOAL: batch.obs[STATE]}
    torch.testing.assert_close(values(swapped), values(batch.obs))
    here = values({**batch.obs, GOAL: batch.obs[STATE]})
    assert torch.allclose(here, torch.tensor(-1e-3)) and torch.autograd.grad(
        here.sum(), network.layers[0][0].weight)[0].isfinite().all()


def test_rewards_of_a_way_add_up_to_its_progress_in_a_direction():
    learner, batch = built()
    states, direction = episodes()[0].steps[STATE], torch.nn.functional.normalize(torch.randn(3), dim=0)
    rows = torch.from_numpy(states)[:, None]
    z = direction.expand(12, 1, 3)
    way = replace(batch, obs={STATE: rows[:-1], DIRECTION: z}, next={STATE: rows[1:], DIRECTION: z})
    phi = learner.nets.phi({STATE: rows, DIRECTION: direction.expand(13, 1, 3)})[0]
    torch.testing.assert_close(learner.config.reward(learner.nets, way).sum(), (phi[-1] - phi[0]) @ direction)


def test_directions_are_unit_vectors_that_differ_between_rows_and_updates():
    learner, batch = built(RecordingHILP)
    for _ in range(2):
        learner.update(batch)
    learner.n_updates, learner.processes = 0, Processes(rank=1)
    learner.update(batch)
    first, second, other = RecordingHILP.drawn
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(32, 1))
    assert not torch.equal(first, second) and not torch.equal(first, other), "also between processes"
    assert len(first.unique(dim=0)) == 32


def test_a_goal_becomes_a_direction_while_acting():
    data = episodes().map(lambda e: replace(e, steps={k: e.steps[k] for k in (STATE, "action")}))
    method = find_method("hilp", data.features(), latent_dim=3)
    learner = replace(method.learner, steps=2, batch_size=16, critic=NETWORKS)
    policy = replace(method.policy, trunk=FeedForward((8,)))
    result = fit_method(replace(method, learner=learner, policy=policy), data, 0)
    policy = result.modules["policy"]
    with tempfile.TemporaryDirectory() as folder:
        save_module(result.modules["phi"], folder)
        phi = load_module(folder)
    obs = {STATE: torch.tensor([[0.1, 0.2], [0.3, -1.0]]), GOAL: torch.tensor([[1.0, 2.0], [-3.0, 0.5]])}
    action, _ = result.actor.act(obs, result.actor.start(obs, keys(0, range(2))))
    blank = {DIRECTION: torch.zeros(2, 1, 3)}
    apart = phi({**blank, STATE: obs[GOAL][:, None]})[0] - phi({**blank, STATE: obs[STATE][:, None]})[0]
    direction = apart / apart.norm(dim=-1, keepdim=True)
    expected = policy.plan({STATE: obs[STATE][:, None], DIRECTION: direction[:, None]},
                           torch.zeros(2, *policy.noise_shape))
    torch.testing.assert_close(action, expected[:, 0])


def test_distances_are_numbers_of_steps_on_a_chain_and_the_policy_goes_to_either_side():
    """Episodes walk a chain of 8 states from one end to the other, in both directions. With the discount 0.98, the
    sum of rewards on the way to a state at d steps is -(1 - 0.98^d) / 0.02: -1, -1.98, -2.94, ... -6.59. An action is 1
    or -1, and its sign must be that of the goal's side."""
    one_hot = np.eye(8, dtype=np.float32)
    data = Dataset([Episode({STATE: one_hot[way], "action": np.diff(way)[:, None].astype(np.float32)})
                    for way in (np.arange(8), np.arange(8)[::-1])])
    method = find_method("hilp", data.features(), latent_dim=8)
    learner = replace(method.learner, steps=300, batch_size=64, discount=0.98, target_decay=0.8,
                      critic=CriticConfig((64,)), optimizer=replace(method.learner.optimizer, lr=3e-3))
    method = replace(method, learner=learner, policy=replace(method.policy, trunk=FeedForward((64,))))
    result = fit_method(method, data, 0)
    states = torch.eye(8)[:, None]
    points = result.modules["phi"]({STATE: states, DIRECTION: torch.zeros(8, 1, 8)}).detach()
    n_steps = torch.arange(8)[:, None] - torch.arange(8)
    distances = (points.unsqueeze(1) - points.unsqueeze(2)).norm(dim=-1)
    torch.testing.assert_close(distances.mean(0), (1 - 0.98 ** n_steps.abs()) / 0.02, atol=0.3, rtol=0)
    here, there = (n_steps != 0).nonzero().T
    obs = {STATE: states[here, 0], GOAL: states[there, 0]}
    action, _ = result.actor.act(obs, result.actor.start(obs, keys(0, range(len(here)))))
    assert torch.equal(action[:, 0].sign(), (there - here).sign().float())
