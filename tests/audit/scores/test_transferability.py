"""Transferability of demonstrations of others."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from understudy.audit.scores import Transferability
from understudy.audit.scores.transferability import imitator_likeness, mode_labels
from understudy.data.episode import Dataset, Episode
from understudy.envs import make
from understudy.envs.toys.fork import GOAL, ForkExpert
from understudy.evaluate.rollout import rollout


def transitions(*rates, n=100):
    """Transitions of three kinds, one-hot, at the given rates."""
    return np.repeat(np.eye(3), [round(r * n) for r in rates], 0)


@pytest.mark.parametrize("n_own", [100, 2000])
def test_the_score_is_the_sigmoid_of_the_mean_log_ratio_of_both_rates(n_own):
    """The logit of the best discriminator of classes that weigh the same is the log ratio of their rates."""
    shown = [transitions(1, 0, 0), transitions(0, 1, 0), transitions(0.5, 0, 0.5)]  # at rates of 3/6, 2/6, 1/6 together
    own = [transitions(0.05, 0.15, 0.8, n=n_own)]
    logits = np.log([0.05 / (3 / 6), 0.15 / (2 / 6), 0.8 / (1 / 6)])
    expected = 1 / (1 + np.exp([-logits[0], -logits[1], -(logits[0] + logits[2]) / 2]))
    assert imitator_likeness(shown, own, seed=0) == pytest.approx(expected, abs=0.03)


def test_ways_of_doing_the_task_are_the_modes():
    """Noisy walks in three directions, of other lengths: a group for each direction."""
    rng, direction = np.random.default_rng(0), np.arange(30) % 3
    walks = [np.linspace(0, 1, rng.integers(20, 40))[:, None] * 3 * np.eye(3)[d] for d in direction]
    walks = [(w + 0.1 * rng.standard_normal(w.shape)).astype(np.float32) for w in walks]
    labels = mode_labels(walks, 3, seed=0)
    assert len(set(zip(labels.tolist(), direction.tolist(), strict=True))) == len(set(labels.tolist())) == 3
    assert len(set(mode_labels(walks[:2], 5, seed=0).tolist())) <= 2


def from_states(states):
    states = np.asarray(states, np.float32)
    return Episode({"observation.state": states, "action": np.clip(np.diff(states, axis=0) / 0.1, -1, 1)})


def test_a_way_is_compared_with_an_imitator_of_the_same_way(monkeypatch):
    """An imitator that repeats its first demonstration is like all of them, which have the score 1/2, but not like
    those of the other way."""
    module = "understudy.audit.scores.transferability"
    monkeypatch.setattr(f"{module}.fit_method", lambda imitator, data, seed: SimpleNamespace(actor=data))
    monkeypatch.setattr(f"{module}.rollout", lambda data, env, n, seed: Dataset([data[0]] * n))
    ways = [from_states(np.linspace(0, 1, 30)[:, None] * [1, side] + 1e-3 * i) for i in range(8) for side in (1, -1)]
    assert Transferability("fork", n_modes=2)(Dataset(ways)) == pytest.approx(np.full(16, 0.5), abs=0.1)
    in_one_group = Transferability("fork", n_modes=1)(Dataset(ways))
    assert in_one_group[::2].min() > 0.5 and in_one_group[1::2].max() < 0.1


def around_and_through(n):
    """Ways around the pillar of fork, to the left and to the right, and ways of another body, through the pillar."""
    env, rng = make("fork", n), np.random.default_rng(0)
    around = [from_states(e.steps["observation.state"]) for side in (1, -1)
              for e in rollout(ForkExpert(side=side), env, n, seed=side + 2) if e.metadata["success"]]
    through = [from_states(np.linspace(0, 1, 14)[:, None] * GOAL + 0.03 * rng.standard_normal((14, 2)))
               for _ in range(n)]
    return Dataset([*around, *through]), np.arange(len(around) + n) < len(around)


def test_what_the_imitator_cannot_do_is_rated_low():
    data, is_possible = around_and_through(10)
    empty = Episode({"observation.state": np.zeros((1, 2), np.float32), "action": np.zeros((0, 2), np.float32)})
    score = Transferability("fork", n_modes=3, n_episodes=10, seed=1)
    learner = replace(score.imitator.learner, steps=200)
    score = replace(score, imitator=replace(score.imitator, learner=learner))
    values = score(Dataset([*data, empty]))
    assert np.isnan(values[-1]) and ((values[:-1] > 0) & (values[:-1] < 1)).all()
    assert (values[:-1][is_possible][:, None] > values[:-1][~is_possible]).mean() > 0.9
