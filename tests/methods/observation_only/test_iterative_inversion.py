"""Iterative inversion: what rollouts are shown, and what they are learned to be."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from understudy import make
from understudy.commands.train import _check_policy_fits
from understudy.core import DataError, DataWarning, Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset
from understudy.data.mixture import ROUND, MixtureWeights, mix
from understudy.envs.base import Env, StepResult
from understudy.evaluate.recording import UniformRandomActor
from understudy.evaluate.rollout import rollout
from understudy.execute.demonstrated import NUMBER
from understudy.improve.updates import PerRound
from understudy.learn.fit_method import fit_method
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.methods.observation_only.iterative_inversion import SteeredCollector, own_steps
from understudy.nets.ema import ConstantDecay
from understudy.nets.feed_forward import FeedForward
from understudy.testing import check_collection

STATE = "observation.state"


def videos(n=6):
    env = make("fork", rows=n)
    return rollout(env.expert(), env, n, seed=1)


def data(n=6):
    env = make("fork", rows=n)
    shown = videos(n).map(lambda e: e.replace({"action": None}))
    return mix(task=(shown, 0.5), prior=(rollout(UniformRandomActor(env), env, n, seed=2), 0.5))[0]


def small(steering=1.0):
    method = find_method("iterative-inversion", data().features(), n_rounds=2, n_episodes=3, length=40)
    collector = replace(method.collection.collector, steering=steering)
    rounds = replace(method.collection, collector=collector, initial_updates=4, updates=PerRound(2))
    return replace(method, collection=rounds, learner=replace(method.learner, batch_size=16))


def one(number, **metadata):
    return Episode({STATE: np.full((3, 1), number, np.float32), "action": np.zeros((2, 1), np.float32)}, metadata)


@pytest.mark.parametrize(("steering", "n_desired", "n_own"), [(1.0, 4, 0), (0.5, 4, 4), (0.25, 4, 12), (0.0, 0, 5)])
def test_the_fraction_of_rollouts_that_are_shown_a_demonstration(steering, n_desired, n_own):
    desired = [one(i, dataset="task") for i in range(4)]
    own = [one(10 + i, **({"dataset": "prior"} if i < 2 else {ROUND: 0})) for i in range(5)]
    training = SimpleNamespace(data=Dataset([*desired, *own[:2]]), stored=Dataset([*desired, *own]), seed=3)

    def shown(number):
        return [int(e.steps[STATE][0, 0]) for e in SteeredCollector(3, steering=steering).commands(number, training)]
    first = shown(0)
    assert first[:n_desired] == list(range(n_desired)) and len(first) == n_desired + n_own
    assert set(first[n_desired:]) <= set(range(10, 15)) and first == shown(0)
    assert (shown(1) != first) == (0 < steering < 1)


def test_a_length_that_is_not_the_time_limit_is_told():
    """Otherwise the elapsed fraction, which ends at 1 in stored episodes, would end at 0.5 while acting."""
    collector = small().collection.collector
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collector.check(make("fork", 1), None)
    with pytest.warns(DataWarning, match="after 20 steps, and the policy reads how much of 40.*--length 20"):
        collector.check(make("fork", 1, limit=20), None)


def test_rollouts_are_shown_demonstrations_and_are_learned_as_what_they_became(tmp_path):
    env, parts = make("fork", 3), data()
    _check_policy_fits(small(), parts, env)  # of the command
    train(small(), parts, tmp_path / "run", device="cpu", val_fraction=0.0, progress=False, env=env,
          sampling_weights=MixtureWeights((0.5, 0.5)))
    episodes = open_dataset(tmp_path / "run" / "collection" / "000001" / "episodes.npz")
    frames = [f"observation.demonstration.{i}" for i in range(8)]
    starts = [e.steps[STATE][0] for e in videos()]
    assert len({int(episode.steps[NUMBER][0, 0]) for episode in episodes}) > 1
    for episode in episodes:
        seen = episode.steps[STATE]
        assert (episode.steps[frames[0]] == seen[0]).all() and (episode.steps[frames[-1]] == seen[-1]).all()
        assert len(np.unique(episode.steps[NUMBER])) == 1 and episode.steps[NUMBER][0, 0] < len(starts)


class Curve(Env):
    """A single step from 0 to F(a) = a + sin(a) / 2."""

    def __init__(self, rows):
        self.rows, self.features = rows, {STATE: Feature("float32", (1,)), "action": Feature("float32", (1,))}
        self.metadata = {"env": "curve", "version": 1, "fps": 1, "limit": 1, "success": None, "low": -6.0, "high": 6.0}

    def reset(self, which, key):
        return {STATE: torch.zeros(len(which), 1)}

    def step(self, action):
        zeros = torch.zeros(self.rows)
        return StepResult({STATE: action + action.sin() / 2}, zeros, zeros == 0, zeros > 0)


def test_rounds_converge_to_the_inverse_of_the_environment():
    """Demonstrations show F(4). Practice had actions up to 1, from which the first policy extrapolates wrongly."""
    demonstration = Episode({STATE: np.array([[0], [4 + np.sin(4) / 2]], np.float32)})
    practice = Dataset([Episode({STATE: np.array([[0], [a + np.sin(a) / 2]], np.float32),
                                 "action": np.array([[a]], np.float32)}) for a in np.linspace(-1, 1, 32)])
    parts = mix(task=(Dataset([demonstration] * 2), 0.5), prior=(practice, 0.5))[0]
    method = find_method("iterative-inversion", parts.features(), length=1, n_frames=2, n_rounds=4, n_episodes=32,
                         noise=0.3)
    fast = replace(method.learner, batch_size=32, ema=ConstantDecay(0.9),
                   optimizer=replace(method.learner.optimizer, lr=3e-3))
    method = replace(method, policy=replace(method.policy, trunk=FeedForward((64, 64))), learner=fast,
                     collection=replace(method.collection, initial_updates=150, updates=PerRound(60)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*constant in the first episodes", DataWarning)  # start and progress
        policy = fit_method(method, parts, 0, env=Curve(32)).policy
    obs = {name: torch.zeros(1, 1, 1) for name in policy.inputs}
    obs["observation.demonstration.1"][:] = 4 + np.sin(4) / 2
    assert policy.plan(obs, torch.zeros(1, *policy.noise_shape)).item() == pytest.approx(4, abs=0.1)


def test_demonstrations_are_not_learned_from():
    assert [own_steps(one(0, **facts)).tolist() for facts in ({}, {"dataset": "task"}, {"dataset": "prior"}, {ROUND: 1},
                                                              {"expert": False})] == [[0, 0], [0, 0], *[[1, 1]] * 3]
    assert small().collection.sampling_weights is own_steps


def test_practice_is_asked_for():
    with pytest.raises(DataError, match="(?s)no episode has actions.*--actor random.*--prior"):
        fit_method(small(), data().select(range(6)), 0, env=make("fork", 2))
    with pytest.raises(DataError, match="(?s)6 of 6 episodes are demonstrations.*--actor random.*--prior"):
        fit_method(small(), videos(), 0, env=make("fork", 2))


@pytest.mark.slow
def test_rounds_resume():
    check_collection(small(0.5), data(4), lambda rows: make("fork", rows))
