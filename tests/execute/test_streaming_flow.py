"""Streaming flow: one action per integration step, which starts at the last executed action."""

import math

import numpy as np
import pytest
import torch

from understudy.core import Context, Unsupported, UserError, keys
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.evaluate.action_prediction import evaluate_action_prediction
from understudy.execute.actor import PolicyActor
from understudy.execute.base import ActionConditionedExecutor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.execute.streaming_flow import StreamingFlowExecutor
from understudy.heads.denoising.flow import Flow
from understudy.heads.denoising.streaming_flow import StreamingFlow
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit import fit
from understudy.learn.validation import Validation
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_executor, check_head, random_batch

EMPTY = Context(torch.zeros(3, 0, 1), torch.zeros(3, 0, dtype=torch.bool))
SLOPE = torch.tensor([1.0, -2.0])
SMALL = MLP(16, 1)


def config(head=None, horizon=5, **options):
    return PolicyConfig(head or StreamingFlow(), trunk=SMALL, window=Window(2, horizon, action_offset=-1), **options)


def exact(stabilization):
    """The velocity around the trajectory SLOPE * t."""
    return lambda x, t, context: SLOPE - stabilization * (x - SLOPE * t)


def test_head_and_executor_keep_their_contracts():
    check_head(config())
    check_executor(StreamingFlowExecutor(2), config())
    check_executor(StreamingFlowExecutor(4), config(StreamingFlow(sigma=0.0, n_substeps=2)))


@pytest.mark.parametrize("stabilization", [0.0, 2.0])
def test_the_exact_velocity_has_no_loss(stabilization):
    action = SLOPE * torch.linspace(0, 1, 5).reshape(1, 5, 1).expand(3, -1, 1)
    head, mask = StreamingFlow(0.3, stabilization), torch.ones(3, 5, dtype=torch.bool)
    net = exact(stabilization)
    loss = head.loss(net, EMPTY, action, mask, torch.Generator().manual_seed(0))
    assert loss.shape == (3, 5) and loss.max() < 1e-9
    off = head.loss(lambda x, t, c: net(x, t, c) + 0.5, EMPTY, action, mask, torch.Generator().manual_seed(0))
    assert torch.allclose(off[:, 1:], torch.tensor(0.25)) and (off[:, 0] == 0).all()


def test_samples_follow_the_trajectory_and_deviations_shrink():
    """Euler: the deviation from the trajectory is multiplied by 1 - stabilization * dt in every solver step."""
    noise = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    for head, factor in ((StreamingFlow(0.3, 0.0), 1.0), (StreamingFlow(0.3, 2.0), 0.5),
                         (StreamingFlow(0.3, 2.0, n_substeps=2), 0.75**2)):
        chunk = head.sample(exact(head.stabilization), EMPTY, noise)
        assert (chunk[:, 0] == 0).all()  # nothing was executed before
        for i in range(1, 5):
            expected = SLOPE * i / 4 + 0.3 * noise[:, 0] * factor**i
            assert torch.allclose(chunk[:, i], expected, atol=1e-6)


@torch.no_grad()
def test_each_step_gives_the_next_action_of_the_plan(monkeypatch):
    policy, batch = random_batch(config(), size=3)
    encoded, encode = [], policy.encoder.forward
    monkeypatch.setattr(policy.encoder, "forward", lambda obs, rng=None: (encoded.append(1), encode(obs, rng))[1])
    executor, key = StreamingFlowExecutor(3), keys(0, range(3))
    state, done = executor.start(policy, batch.obs, key), []
    for n in range(6):
        action, state = executor.act(policy, batch.obs, state)
        done.append(action)
        assert len(encoded) == 1 + n // 3  # once per plan
    done, count = torch.stack(done, 1), torch.zeros(3).long()
    first = executor.plan(policy, batch.obs, done[:, :1], torch.zeros(3, 1, dtype=torch.bool), policy.noise(key, count))
    assert torch.allclose(first[:, 1:4], done[:, :3], atol=1e-5)
    # The first plan is that of the policy without anything executed.
    assert torch.allclose(policy.plan(batch.obs, policy.noise(key, count))[:, 1:4], done[:, :3], atol=1e-5)
    second = executor.plan(policy, batch.obs, done[:, 2:3], torch.ones(3, 1, dtype=torch.bool),
                           policy.noise(key, count + 1))
    assert torch.allclose(second[:, 1:4], done[:, 3:], atol=1e-5)


@torch.no_grad()
def test_sigma_is_that_of_the_head():
    """Without noise a plan starts exactly at the last executed action, with noise at sigma times it."""
    starts = {}
    for sigma in (0.0, 0.5):
        policy, batch = random_batch(config(StreamingFlow(sigma)), size=3)
        state = StreamingFlowExecutor(3).start(policy, batch.obs, keys(0, range(3)))
        starts[sigma] = state["x"], policy.noise(keys(0, range(3)), torch.zeros(3).long())[:, :1]
    assert (starts[0.0][0] == 0).all() and torch.allclose(starts[0.5][0], 0.5 * starts[0.5][1])


def test_what_does_not_fit_is_refused():
    def start(executor, config):
        policy, batch = random_batch(config, size=3)
        executor.start(policy, batch.obs, keys(0, range(3)))
    with pytest.raises(UserError, match="only 4 steps"):
        start(StreamingFlowExecutor(5), config())
    with pytest.raises(UserError, match="action_offset=0"):
        start(StreamingFlowExecutor(2), PolicyConfig(StreamingFlow(), trunk=SMALL, window=Window(1, 5)))
    with pytest.raises(Unsupported, match="steps of Flow are not actions"):
        start(StreamingFlowExecutor(2), config(Flow(n_steps=2)))
    with pytest.raises(Unsupported, match="Regression answers in one step"):
        start(StreamingFlowExecutor(2), config(Regression()))
    with pytest.raises(UserError, match="horizon is 1"):
        random_batch(config(horizon=1))


# -- a toy ----------------------------------------------------------------------------------------------------------


N_UPDATES = 300


def arcs(n=24, steps=20, seed=0):
    """A point that moves along half circles around the origin: the action is its next position."""
    rng, episodes = np.random.default_rng(seed), []
    for number in range(n):
        angle = np.linspace(0, math.pi, steps + 1) + rng.uniform(0, 2 * math.pi)
        path = (rng.uniform(0.5, 1.5) * np.stack([np.cos(angle), np.sin(angle)], 1)).astype(np.float32)
        episodes.append(Episode({"observation.state": path[:-1], "action": path[1:]}, {"number": number}))
    return Dataset(episodes)


@pytest.fixture(scope="module")
def trained():
    data = arcs()
    torch.manual_seed(0)
    settings = PolicyConfig(StreamingFlow(sigma=0.05), trunk=MLP(32, 1), codec=Normalizer(relative="observation.state"),
                            window=Window(1, 9, action_offset=-1))
    policy = Policy(settings, data.features()).fit_statistics(data)
    learner = BehaviorCloning(steps=N_UPDATES).build(policy, 0, N_UPDATES, data)
    windows = policy.windows(data)
    fit(learner, lambda step: windows.batch(64, step, seed=0), N_UPDATES)
    return learner.policy.eval()


def test_a_trained_policy_follows_the_arcs(trained):
    """The point moves where the action says; chance is to stay at the average position."""
    test, actor = arcs(seed=1), PolicyActor(FixedBatch(trained, 24), StreamingFlowExecutor(4))
    obs = {"observation.state": torch.stack([torch.from_numpy(e.steps["observation.state"][0]) for e in test])}
    state = actor.start(obs, keys(0, range(len(test))))
    for _ in range(20):
        obs["observation.state"], state = actor.act(obs, state)
    end = torch.stack([torch.from_numpy(e.steps["action"][-1]) for e in test])
    error = (obs["observation.state"] - end).norm(dim=1).mean()
    chance = (torch.from_numpy(np.concatenate([e.steps["action"] for e in test])).mean(0) - end).norm(dim=1).mean()
    assert error < chance / 3


def test_prediction_through_the_executor_leaves_executed_actions_out(trained):
    test, validation = arcs(seed=1), Validation(n_windows=64, n_samples=4)
    prediction = evaluate_action_prediction(trained, test, executor=StreamingFlowExecutor(4), validation=validation)
    assert prediction.energy_score.estimate < prediction.baseline_error / 3
    assert [p.name for p in prediction.by_chunk_step] == [str(i) for i in range(1, 9)]  # step 0 was executed already
    alone = validation.evaluate(trained, test)
    assert validation.evaluate(trained, test, executor=RecedingHorizon(4, skip=1)) == alone


def test_validation_gives_the_executor_the_recorded_actions():
    class Repeats(StreamingFlowExecutor):
        """Plans the last executed action again and again, and 7 where there is none."""

        def plan(self, planner, obs, executed, mask, noise):
            last = torch.where(mask.unsqueeze(-1), executed, torch.tensor(7.0))
            return last.expand(-1, planner.window.horizon, -1)
    assert issubclass(Repeats, ActionConditionedExecutor)
    data = arcs(n=2, steps=6)
    policy = Policy(config(horizon=3), data.features()).fit_statistics(data)
    (batch, plans), = Validation(n_windows=100, n_samples=2).sampled_plans(policy, data, executor=Repeats(1))
    assert not batch.mask[:, 0].any() and plans.shape == (12, 2, 3, 2)
    for e in range(2):
        action = torch.from_numpy(data[e].steps["action"])
        expected = torch.cat([torch.full((1, 2), 7.0), action[:-1]])
        assert torch.equal(plans[6 * e:6 * e + 6, 0, 2], expected)
