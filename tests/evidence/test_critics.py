"""Row 200: the equations of the pendulum, true values in closed form, and what the arms differ in. Row 229: its data
and its control."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evidence.families.reinforcement.action_sequences import VALUES, CopiedSteps, NoisyAndClean
from evidence.families.reinforcement.overestimation import (
    DISCOUNT,
    STATE,
    TABLE,
    ActorCritic,
    RandomTorques,
    estimates,
    swing,
    true_values,
)
from understudy.core import Batch
from understudy.methods.online_rl.cqn_as import CQNAS
from understudy.policy import Policy

STILL = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])  # upright, and hanging


def test_the_equations_are_those_of_gymnasium():
    for episode in RandomTorques(200).load(0):
        obs, torque = (torch.as_tensor(np.asarray(episode.steps[k])) for k in (STATE, "action"))
        following, reward = swing(obs[:-1], torque[:, 0])
        assert torch.allclose(following, obs[1:], atol=1e-4)
        assert np.allclose(reward, episode.steps["next.reward"], atol=1e-4)


class NoTorque:
    noise_shape = (1, 1)

    def plan(self, obs, noise):
        return torch.zeros_like(noise)


def test_true_values_without_torque():
    expected = [0.0, -np.pi**2 * (1 - DISCOUNT**200) / (1 - DISCOUNT)]
    assert true_values(NoTorque(), STILL).tolist() == pytest.approx(expected, abs=0.02)


def test_the_first_critic_estimates():
    method, data = ActorCritic().method, RandomTorques(200).load(0)
    policy = Policy(method.policy, data.features()).fit_statistics(data)
    critic = method.learner.critic.build(policy)
    for layers, score in zip(critic.layers, (7.0, 5.0), strict=True):
        torch.nn.init.zeros_(layers[-1].weight)
        torch.nn.init.constant_(layers[-1].bias, score)
    assert estimates(SimpleNamespace(policy=policy, nets=SimpleNamespace(critic=critic)), STILL).tolist() == [7.0, 7.0]


def test_each_arm_lacks_what_it_says():
    arms = {name: asdict(option) for name, option in TABLE.arms.items()}
    lacking = {name: {k for k, v in arm.items() if v != arms["TD3"][k]} for name, arm in arms.items()}
    assert lacking == {"TD3": set(), "DDPG": {"n_critics", "policy_delay", "target_noise"},
                       "no delay": {"policy_delay"}, "no smoothing": {"target_noise"}, "equal critics": {"n_critics"}}
    learner = ActorCritic(1, 1, 0.0).method.learner
    assert (learner.critic.n_critics, learner.policy_delay, learner.target_noise, learner.bc_weight) == (1, 1, 0, 0)


def test_the_control_of_sequences_copies_the_first_step_alone(monkeypatch):
    chunk = torch.tensor([[[1.0], [2.0], [3.0]]])
    batch = Batch({}, chunk, torch.ones(1, 3, dtype=torch.bool), others={"expert": Batch({}, -chunk, torch.ones(1, 3))})
    monkeypatch.setattr(CQNAS, "policy_loss", lambda self, nets, batch, rng: batch)
    copied = CopiedSteps(**vars(VALUES)).policy_loss(None, batch, None)
    assert copied.action.flatten().tolist() == [1.0] * 3
    assert copied.others["expert"].action.flatten().tolist() == [-1.0] * 3


def test_half_of_the_demonstrations_of_sequences_are_noisy():
    lengths = [np.linalg.norm(episode.steps["action"][:5], axis=1) for episode in NoisyAndClean().load(0)]
    deviations = [abs(x - 1).max() for x in lengths]  # the expert moves at 1 m/s until it is near its aim
    assert min(deviations[:5]) > 0.2 and max(deviations[5:]) < 1e-5
