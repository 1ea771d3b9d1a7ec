"""Remedies against copying past actions: keyframes, a limited code, and numbers that cannot be causes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from understudy.audit.scores import MarkKeyframes, action_dependence
from understudy.core import Feature, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs.toys.drive import Drive
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import ColumnWeights
from understudy.methods.behavior_cloning.bottleneck_bc import BottleneckEncoder, InformationBottleneck
from understudy.nets.base import capture_intermediates
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

STATE = "observation.state"
CHANGES = 3  # times at which the action of an episode changes


def held_actions(episodes=20, steps=40, dtype="float32"):
    """Actions that are held, and change at random steps. The observation shows the right action now and then noise."""
    rng, recordings = np.random.default_rng(0), []
    for _ in range(episodes):
        change = np.sort(rng.choice(np.arange(4, steps, 4), CHANGES, replace=False))
        action = np.where(np.searchsorted(change, np.arange(steps), side="right") % 2, 1, 0)
        action = action if rng.random() < 0.5 else 1 - action
        state = np.stack([action + rng.normal(0, 0.5, steps), rng.normal(size=steps)], 1).astype(np.float32)
        recordings.append((Episode({STATE: state, "action": action[:, None].astype(dtype)}), change))
    return recordings


# -- keyframes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_keyframes_are_the_changes_of_held_actions_and_the_first_steps(dtype):
    recordings = held_actions(dtype=dtype)
    feature = Feature(dtype, (1,), "discrete", num_classes=(2,)) if dtype == "int64" else Feature(dtype, (1,))
    data = Dataset([Episode(e.steps, schema={**e.features(), "action": feature}) for e, _ in recordings])
    steps = sum(data.lengths)
    marked = MarkKeyframes((CHANGES + 1) * len(data) / steps, n_updates=300).apply(data)
    assert marked.features()["keyframe"] == Feature("float32", (1,)) and "keyframe" not in data.features()
    for (episode, change), with_keyframes in zip(recordings, marked, strict=True):
        assert np.flatnonzero(with_keyframes.steps["keyframe"]).tolist() == [0, *change]
        np.testing.assert_array_equal(with_keyframes.steps["action"], episode.steps["action"])


def test_how_many_steps_are_keyframes_and_what_is_refused():
    data = Dataset([e for e, _ in held_actions(4)])
    marked = np.concatenate([e.steps["keyframe"] for e in MarkKeyframes(0.25, n_updates=2).apply(data)])
    assert marked.sum() == 40 and set(marked.flat) == {0.0, 1.0}
    for options in ({"fraction": 0.0}, {"fraction": 1.0}, {"n_past": 0}):
        with pytest.raises(UserError, match=f"MarkKeyframes.{next(iter(options))}"):
            MarkKeyframes(**options)
    broken = Dataset([Episode({STATE: np.zeros((3, 1), np.float32),
                               "action": np.array([[0], [np.nan], [1]], np.float32)})])
    with pytest.raises(UserError, match="not finite"):
        MarkKeyframes().apply(broken)


def test_with_keyframes_the_error_is_smaller_where_the_action_changes():
    """Few updates of a small network that sees three observations, the last action among them."""
    episodes = []
    for episode, _ in held_actions(40):
        action = episode.steps["action"]
        last = np.concatenate([np.zeros_like(action[:1]), action[:-1]])
        episodes.append(episode.replace({STATE: np.concatenate([episode.steps[STATE], last], 1)}))
    marked = MarkKeyframes(0.1, n_updates=300).apply(Dataset(episodes))
    policy = PolicyConfig(Regression(), MLP(16, 1), ConcatEncoder(), window=Window(3, 1), inputs=(STATE,))

    def error(weight):
        learner = BehaviorCloning(150, optimizer=OptimizerConfig(lr=3e-3),
                                  sample_weights=ColumnWeights("keyframe", weight))
        trained = fit_method(Method(policy, learner=learner), marked, seed=0).policy
        batch = trained.windows(marked, extra=("keyframe",)).batch(1600, 0)
        off = (trained.plan(batch.obs, trained.noise(torch.zeros(1600, dtype=torch.int64),
                                                     torch.arange(1600))) - batch.action).square()[:, 0, 0]
        at = batch.extra["keyframe"].flatten() > 0
        return float(off[at].mean()), float(off[~at].mean())
    (plain_at, plain_else), (weighted_at, weighted_else) = error(1.0), error(5.0)
    assert weighted_at < 0.8 * plain_at, "the policy copies less"
    assert weighted_else > plain_else, "which costs some precision elsewhere"


# -- bottleneck ---------------------------------------------------------------------------------------------------


def test_the_penalty_is_the_divergence_from_a_standard_normal():
    mean, log_std = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    loss = InformationBottleneck(0.5).build(None)(None, None, None, {"bottleneck": torch.stack([mean, log_std], 1)})
    divergence = kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(loss, 0.5 * divergence)


def test_training_draws_the_code_and_acting_takes_its_mean():
    torch.manual_seed(0)
    net = BottleneckEncoder(3, ConcatEncoder()).build({STATE: Feature("float32", (2,))}, 2)
    obs = {STATE: torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(1)).expand(20_000, 2, 2)}
    with torch.no_grad(), capture_intermediates(["bottleneck"]) as captured:
        drawn, acted = net(obs, torch.Generator().manual_seed(2)).tokens[:, 0], net(obs).tokens[:, 0]
    mean, log_std = captured["bottleneck"][0]
    torch.testing.assert_close(acted, mean.expand_as(acted))
    standard = (drawn - mean) / log_std.exp()
    torch.testing.assert_close(standard.mean(0), torch.zeros(3), atol=0.03, rtol=0)
    torch.testing.assert_close(standard.std(0), torch.ones(3), atol=0.03, rtol=0)


def test_a_narrow_bottleneck_forgets_what_does_not_tell_the_action():
    """The second number of the state is noise. The code carries it only where carrying is free."""
    data = Dataset([e for e, _ in held_actions(40)])

    def carried(weight):
        """Change of the code, in units of its noise, by a change of each number of the state."""
        policy = PolicyConfig(Regression(), MLP(16, 1), BottleneckEncoder(4, ConcatEncoder()), inputs=(STATE,))
        learner = BehaviorCloning(250, optimizer=OptimizerConfig(lr=3e-3),
                                  auxiliary_losses=(InformationBottleneck(weight),))
        net = fit_method(Method(policy, learner=learner), data, seed=0).policy.encoder
        obs = torch.randn(64, 1, 2, generator=torch.Generator().manual_seed(0))

        def gaussian(obs):
            with torch.no_grad(), capture_intermediates(["bottleneck"]) as captured:
                net({STATE: obs})
            return captured["bottleneck"].unbind(1)
        mean, log_std = gaussian(obs)
        return [float(((gaussian(obs + shift)[0] - mean) / log_std.exp()).norm(dim=-1).mean())
                for shift in torch.eye(2)[:, None]]
    (cue, noise), (free_cue, free_noise) = carried(0.2), carried(0.0)
    assert cue > 0.6 * free_cue, "the cue stays in the code"
    assert noise < 0.5 * free_noise, "the noise leaves it"


# -- dependence ---------------------------------------------------------------------------------------------------


def lamp_data(episodes=200, steps=6, reset="random"):
    """Cause, lamp and noise. The action follows the cause, and the lamp shows the last action.

    At the first step it shows something random, or what the demonstrator has in mind.
    """
    rng, recordings = np.random.default_rng(0), []
    for _ in range(episodes):
        cause = rng.normal(size=1) + np.cumsum(rng.normal(0, 0.3, steps))
        action = np.tanh(cause) + rng.normal(0, 0.1, steps)
        first = rng.normal() if reset == "random" else action[0] + rng.normal(0, 0.1)
        lamp = np.concatenate([[first], action[:-1]])
        state = np.stack([cause, lamp, rng.normal(size=steps)], 1).astype(np.float32)
        recordings.append(Episode({STATE: state, "action": action[:, None].astype(np.float32)}))
    return Dataset(recordings)


def test_a_lamp_is_no_cause_if_it_was_random_at_the_start():
    cause, lamp, noise = action_dependence(lamp_data())
    assert cause.may_be_cause and not lamp.may_be_cause and not noise.may_be_cause
    assert lamp.upper[0] < 0.1 < 0.5 < lamp.estimate[1], "later the lamp tells the action as well as the cause does"
    dependences = action_dependence(lamp_data(reset="intended"))
    assert [d.may_be_cause for d in dependences] == [True, True, False], "without the intervention nothing proves it"


def test_the_dependence_is_that_of_the_definition():
    """Squared distance correlation without bias: 1 for a linear function; the sums over all pairs by hand."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 1))
    data = Dataset([Episode({STATE: np.array([[v, v * v]], np.float32), "action": np.array([[3 * v - 1]], np.float32)})
                    for v in x[:, 0]])
    linear, square = action_dependence(data, n_steps=1)
    assert linear.estimate[0] == pytest.approx(1) and linear.upper[0] == pytest.approx(1)

    def centered(v):
        d = np.abs(v - v.T)
        n = len(v)
        return np.array([[0 if i == j else d[i, j] - d[i].sum() / (n - 2) - d[j].sum() / (n - 2)
                          + d.sum() / (n - 1) / (n - 2) for j in range(n)] for i in range(n)])
    a, b = centered(x), centered(x**2)
    assert square.estimate[0] == pytest.approx((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()), rel=1e-5)


def test_how_often_independent_numbers_are_found_to_be_independent():
    """With 200 episodes nearly always, with 40 not always: then the component is kept."""
    rng = np.random.default_rng(2)

    def rate(episodes):
        data = Dataset([Episode({STATE: rng.normal(size=(1, 40)).astype(np.float32),
                                 "action": rng.normal(size=(1, 1)).astype(np.float32)}) for _ in range(episodes)])
        return np.mean([not d.may_be_cause for d in action_dependence(data, n_steps=1)])
    assert rate(200) > 0.95
    assert rate(40) < 0.95


def test_what_cannot_be_tested_is_said():
    with pytest.raises(UserError, match="39 episodes have 4 steps, but a test needs 40"):
        action_dependence(lamp_data(39))
    with pytest.raises(UserError, match="no vector column 'observation.lamp'"):
        action_dependence(lamp_data(40), column="observation.lamp")
    with pytest.raises(UserError, match="n_steps is 0"):
        action_dependence(lamp_data(40), n_steps=0)


def test_a_number_that_is_constant_at_a_step_is_not_found_to_be_independent():
    """Every episode starts with the same number, so that the first step says nothing about it."""
    data = lamp_data(60)
    start = np.zeros((1, 3), np.float32)
    data = Dataset([e.replace({STATE: np.concatenate([start, e.steps[STATE][1:]])}) for e in data])
    cause, lamp, noise = action_dependence(data)
    assert [d.upper[0] for d in (cause, lamp, noise)] == [1.0, 1.0, 1.0]
    assert cause.may_be_cause and lamp.may_be_cause


def test_pixels_of_a_camera_are_tested_together():
    """The light of `drive` goes along with braking, and a person decides it, who is one of 16 pixels."""
    env = Drive(50, starts="free")
    data = rollout(env.expert(), env, 200, seed=1)
    camera, light = action_dependence(data, floor=0.03, groups=(tuple(range(16)), (16,)))
    assert camera.may_be_cause and not light.may_be_cause and (camera.component, light.component) == (0, 16)
    natural = Drive(50)
    _, light = action_dependence(rollout(natural.expert(), natural, 200, seed=1), groups=(tuple(range(16)), (16,)))
    assert light.may_be_cause, "it is off at all natural starts"
