"""Online methods by command and in Python: from an environment alone, and with demonstrations."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.centers import Center
from fixtures.staged import call

from understudy import make
from understudy.core import DataWarning, UserError
from understudy.data.episode import Dataset
from understudy.data.formats import open_dataset
from understudy.evaluate.evaluation import evaluate, recording_seed
from understudy.evaluate.rollout import rollout
from understudy.improve.collection import random_episodes
from understudy.learn.critic import CriticConfig
from understudy.learn.fit_method import fit_method
from understudy.learn.run import Run
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.nets.feed_forward import FeedForward
from understudy.testing import check_collection

SMALL = ("--n-rounds", "2", "--n-steps", "12", "--batch-size", "8")


def small(name: str, data, **options):
    """A method with small networks, batches and rounds."""
    method = find_method(name, data.features(), **{"n_rounds": 2, "n_steps": 12, **options})
    learner = replace(method.learner, batch_size=8, critic=CriticConfig((8, 8)))
    return replace(method, policy=replace(method.policy, trunk=FeedForward((8,))), learner=learner)


@pytest.mark.parametrize("name", ["sac", "td3", "ppo"])
def test_a_command_trains_from_an_environment_alone(name, tmp_path):
    out = tmp_path / "run"
    command = ("train", name, "--env", "particle", "--out", out, "--random-steps", "20", "--device", "cpu", *SMALL)
    status, text = call(*command)
    assert status == 0 and "2 rounds" in text and f"understudy eval {out} particle" in text
    assert "no episode is held out, so" in text  # however many there are
    data = open_dataset(out / "random" / "episodes.npz")
    assert data.steps >= 20 and data[0].steps["action"].std() > 0.2
    rounds = [open_dataset(p / "episodes.npz") for p in sorted((out / "collection").glob("[0-9]*"))]
    assert len(rounds) == 2 and all(r.steps >= 12 for r in rounds)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    status, text = call(*command)  # finished: nothing is collected again
    assert status == 0 and before == {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}


def test_nothing_is_asked_about_classes_that_the_environment_has_named(tmp_path):
    status, text = call("train", "dqn", "--env", "tabular:bandit", "--out", tmp_path / "run", "--random-steps", "6",
                        "--device", "cpu", *SMALL)
    assert status == 0 and "--columns" not in text
    status, text = call("train", "dqn", "--env", "tabular:bandit", "--out", tmp_path / "run", "--random-steps", "6",
                        "--device", "cpu", *SMALL[2:], "--n-rounds", "3")
    assert status == 2 and f"another --out, where --from {tmp_path / 'run'} starts from the weights" in text


@pytest.mark.parametrize("change", [("--random-steps", "5"), ("--seed", "1"), ("--env", "fork")])
def test_random_episodes_of_another_command_are_not_taken(change, tmp_path):
    """Here that of a method which cannot learn from them."""
    command = ("--env", "particle", "--out", tmp_path / "run", "--random-steps", "6", "--device", "cpu")
    assert call("train", "bc", *command)[0] == 2
    status, text = call("train", "sac", *command, *change, *SMALL)
    assert status == 2 and f"are of {change[0]} " in text and f"not {change[1]}" in text and "another --out" in text


def test_without_demonstrations_and_environment_a_way_is_told(tmp_path):
    status, text = call("train", "sac", "--out", tmp_path / "run")
    assert status == 2 and "there are no demonstrations" in text and "--env ENV" in text
    status, text = call("train", "bc", "--env", "particle", "--out", tmp_path / "bc", "--random-steps", "5")
    assert status == 2 and "the method collects no episodes" in text
    data = random_episodes(make("particle", 2, limit=6), 20, 0)
    for name in ("sac", "td3", "ppo"):
        with pytest.raises(UserError, match=r"no environment to collect them in\n.*--env ENV"):
            train(find_method(name, data.features()), data, tmp_path / name, device="cpu")


def test_demonstrations_are_in_the_replay_buffer(tmp_path):
    path = tmp_path / "demos"
    assert call("record", "particle", "--out", path, "--episodes", "3")[0] == 0
    status, text = call("train", "sac", path, "--out", tmp_path / "run", "--device", "cpu", *SMALL,
                        "--collection.mixture-weights", "0.5", "0.5", "--collection.initial-updates", "3")
    assert status == 0 and "3 updates, then 2 rounds" in text and not (tmp_path / "run" / "random").exists()


def test_scores_of_sac_that_diverge_are_named():
    """The bound is 2 / (1 - 0.5) for the entropy of two components, and 2 more once a batch has the reward 1."""
    env = make("fork", 4)
    demos = rollout(env.expert(), env, 4, recording_seed(0))
    method = replace(find_method("sac", demos.features()), collection=None)
    learner = method.learner
    wild = replace(learner, steps=30, batch_size=8, discount=0.5, optimizer=replace(learner.optimizer, lr=1.0))
    with pytest.raises(UserError, match=r"critic diverge: .* can exceed [46]\n  -> .*--optimizer.lr"):
        fit_method(replace(method, learner=wild), demos, 0)


def test_demonstrations_without_rewards_and_of_classes_are_refused(tmp_path):
    env = make("particle", 2, limit=6)
    data = random_episodes(env, 20, 0)
    silent = data.map(lambda e: e.replace({"next.reward": None, "next.terminated": None}))
    for name in ("sac", "td3", "ppo"):
        with pytest.raises(UserError, match=r"next\.reward"):
            train(find_method(name, data.features()), silent, tmp_path / name, device="cpu", env=env)
        assert not Run(tmp_path / name).saved_steps()
    classes = random_episodes(make("tabular:bandit", 2), 10, 0)
    for name in ("sac", "td3"):
        with pytest.raises(UserError, match=r"but this method learns numbers\n.*discrete-sac, dqn, dvpo, loop, ppo"):
            find_method(name, classes.features())
    for name in ("dqn", "discrete-sac", "discrete-cql"):
        with pytest.raises(UserError, match=r"the actions are numbers, .*\n.*sac, td3 and cql"):
            find_method(name, data.features())
    assert "Categorical" in str(find_method("ppo", classes.features()).policy.head)


class Broken(Center):
    """Its rewards are what they should not be."""

    def __init__(self, rows: int, reward: float):
        super().__init__(rows)
        self.value = reward

    def step(self, action):
        result = super().step(action)
        return replace(result, reward=torch.full_like(result.reward, self.value))


@pytest.mark.parametrize("name", ["sac", "td3", "ppo"])
def test_an_environment_whose_rewards_are_no_numbers_is_refused_and_one_without_rewards_named(name):
    data = random_episodes(Center(2), 40, 0)
    method = find_method(name, data.features(), n_rounds=1, n_steps=20)
    with pytest.raises(UserError, match=r"episode \d+, step 0: the reward is nan\n.*correct the environment"):
        fit_method(method, data, 0, env=Broken(2, float("nan")))
    silent = Dataset([e.replace({"next.reward": np.zeros(len(e), np.float32)}) for e in data])
    with pytest.warns(DataWarning, match="all rewards are 0, also those of the first 1 collected episodes"):
        fit_method(method, silent, 0, env=Broken(2, 0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_method(method, data, 0, env=Center(2))


@pytest.mark.parametrize("name", ["sac", "td3", "ppo"])
def test_actions_of_the_data_in_another_unit_than_those_of_the_environment_are_told(name):
    """The fork executes -1 to 1. Those of half of the steps may be far larger, as those of a stiff controller are."""
    env = make("fork", 2, limit=4)
    data = random_episodes(env, 40, 0)
    method = small(name, data) if name != "ppo" else find_method(name, data.features(), n_rounds=1, n_steps=12)

    def scaled(factor: float, until: float) -> Dataset:
        return Dataset([e.replace({"action": (e.steps["action"] * np.where(
            np.arange(len(e)) < until * len(e), factor, 1)[:, None]).astype("f")}) for e in data])
    with pytest.warns(DataWarning, match=r"component \d of the actions is -\d+.* the data, and fork executes -1 to 1"):
        fit_method(method, scaled(1000, 1), 0, env=env)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "component")
        fit_method(method, scaled(1000, 0.5), 0, env=env)
        fit_method(method, scaled(3, 1), 0, env=env)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sac", "td3"])
def test_stopped_within_and_between_rounds_it_is_the_same_run(name):
    data = random_episodes(make("particle", 2, limit=6), 20, 0)
    check_collection(small(name, data), data, lambda rows: make("particle", rows, limit=6))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [
    ("sac", {"n_rounds": 60, "n_steps": 40}), ("td3", {"n_rounds": 60, "n_steps": 40}),
    ("ppo", {"n_rounds": 30, "n_steps": 400})])
def test_they_learn_from_random_actions(name, options):
    """Rule: a mean return at least nine tenths of the way from random actions to the expert."""
    env = Center(8)
    data = random_episodes(env, 400, 0)
    method = find_method(name, data.features(), **options)
    if name != "ppo":
        method = replace(method, policy=replace(method.policy, trunk=FeedForward((64, 64))), learner=replace(
            method.learner, batch_size=64, critic=CriticConfig((64, 64)),
            optimizer=replace(method.learner.optimizer, lr=1e-3)))
    result = fit_method(method, data, 0, env=env)
    best = rollout(env.expert(), env, 40, recording_seed(1))
    low, high = (sum(float(e.steps["next.reward"].sum()) for e in d) / len(d) for d in (data, best))
    assert evaluate(result.actor, env, 40).returns.estimate > low + 0.9 * (high - low)
