"""Past-token prediction: chunks that begin in the past, their weights, and the choice of plans by what was executed."""

import pytest
import torch

from understudy.core import Feature, UserError, keys
from understudy.data.window import Window
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.latency import DelayedPlan
from understudy.execute.past_verification import PastVerification
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.sample_weights import PastTargetWeights
from understudy.methods import find_method
from understudy.nets.mlp import MLP
from understudy.policy import Planner, PolicyConfig
from understudy.testing import random_batch

STATE = "observation.state"
KEY = keys(0, range(2))
SKIP, HORIZON = 3, 8


class Recalls(Planner):
    """Sample i of n plans step t as ``t + i``. Sample `honest` also recalls its past so, and the others lie about it.
    """

    inputs, action_dim, device, window = (STATE,), 1, torch.device("cpu"), Window(1, HORIZON, action_offset=-SKIP)
    features, action_scale = {STATE: Feature("float32", (1,))}, torch.full((1,), 2.0)

    def __init__(self, honest, n=4):
        self.honest, self.n = honest, n

    def noise(self, key, count):
        return (count % self.n).unsqueeze(-1)

    def plan(self, obs, noise, guides=()):
        sample = noise[:, :1].float()
        step = obs[STATE][:, 0] + torch.arange(-SKIP, HORIZON - SKIP)
        past = torch.arange(HORIZON) < SKIP
        plan = torch.where(past, step + self.honest + 5 * (sample != self.honest), step + sample)
        return plan.unsqueeze(-1)


def acted(executor, planner, steps):
    state, actions = executor.start(planner, {STATE: torch.zeros(2, 1, 1)}, KEY), []
    for t in range(steps):
        action, state = executor.act(planner, {STATE: torch.full((2, 1, 1), float(t))}, state)
        actions.append(action[0, 0].item())
    return actions, state


def test_the_plan_that_recalls_the_executed_actions_is_executed():
    """Until the history is full, the first sample is executed."""
    actions, state = acted(PastVerification(1, SKIP, 4), Recalls(honest=2), 8)
    assert actions == [0, 1, 2, 5, 6, 7, 8, 9]
    assert state["executed"][0, :, 0].tolist() == [7, 8, 9]
    assert acted(PastVerification(1, SKIP, 4), Recalls(honest=0), 8)[0] == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_a_late_plan_is_compared_with_what_was_executed_for_the_same_times(delay):
    """Step `delay` of a chunk is for the oldest action that is remembered now."""
    executor, steps = PastVerification(1, SKIP, 3), torch.arange(HORIZON)
    chunks = torch.stack([steps + 0.3, steps + 0.1, steps - 0.2]).reshape(1, 3, HORIZON, 1).float()
    executed = (steps[delay:delay + SKIP]).reshape(1, SKIP, 1).float()
    torch.testing.assert_close(executor.agreement(chunks, executed, delay), -torch.tensor([[0.09, 0.01, 0.04]]))
    late = DelayedPlan(PastVerification(2, SKIP, 2), delay)
    assert len(acted(late, Recalls(honest=1, n=2), 10)[0]) == 10


def test_without_past_steps_there_is_nothing_to_compare():
    for arguments in ({"skip": 0}, {"n_samples": 1}):
        with pytest.raises(UserError, match="past action and two samples"):
            PastVerification(**arguments)
    with pytest.raises(UserError, match="action_offset=0"):
        PastVerification(1, 3).start(random_batch(PolicyConfig(Flow(), MLP(8, 1), window=Window(1, 8)))[0], {}, KEY)


def test_weights_of_past_targets():
    policy, batch = random_batch(PolicyConfig(Regression(), MLP(8, 1), window=Window(4, 6, action_offset=-3)))

    def weights(**options):
        return PastTargetWeights(**options)(batch, policy)[0].tolist()
    assert weights() == [0, 0, 0, 1, 1, 1]
    assert weights(weight=0.5) == [0.5, 0.5, 0.5, 1, 1, 1]
    assert weights(weight=2.0, n_steps=1) == [0, 0, 2, 1, 1, 1]


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_targets_of_weight_0_train_nothing(weight):
    """The output layer has one bias per step and component: those of the past steps stay as they were."""
    config = PolicyConfig(Regression(), MLP(8, 1), window=Window(4, 6, action_offset=-3))
    policy, batch = random_batch(config, size=8)
    batch.mask[:] = True
    learner = BehaviorCloning(steps=1, sample_weights=PastTargetWeights(weight)).build(policy, 0, 1, None)
    before = policy.net.output_layer[-1].bias.detach().clone()
    learner.update(batch)
    moved = (policy.net.output_layer[-1].bias != before).unflatten(0, (6, -1)).any(1)
    assert moved.tolist() == [bool(weight)] * 3 + [True] * 3


def test_the_method_predicts_the_actions_of_its_history():
    method = find_method("ptp", n_obs_steps=6, horizon=10, n_samples=4)
    assert method.policy.window == Window(6, 10, action_offset=-5)
    assert method.executor == PastVerification(1, 5, 4)
    assert RecedingHorizon(1, 5).skip == method.executor.skip
