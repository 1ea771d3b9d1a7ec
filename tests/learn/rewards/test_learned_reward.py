"""Rewards of a run's reward model, by understudy train --reward."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.staged import call

from understudy import make
from understudy.checkpoint import FromStage
from understudy.core import Feature, UserError
from understudy.data.episode import Dataset
from understudy.data.formats import open_dataset, write_dataset
from understudy.envs.wrappers import LearnedRewardEnv
from understudy.evaluate.rollout import rollout
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, Stage, load_modules, with_steps
from understudy.learn.rewards.learned_reward import LearnedReward
from understudy.learn.rewards.reward_models import ConstantReward
from understudy.methods import find_method

SMALL = ("--n-rounds", "1", "--n-steps", "12", "--batch-size", "8", "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Demonstrations, and a run that has learned a reward from them."""
    folder = tmp_path_factory.mktemp("learned")
    assert call("record", "particle", "--out", folder / "demos", "--episodes", "4")[0] == 0
    status, text = call("train", "dac", folder / "demos", "--env", "particle", "--out", folder / "dac", "--device",
                        "cpu", "--n-rounds", "1", "--n-episodes", "1", "--batch-size", "8")
    assert status == 0, text
    return folder


def test_rewards_are_those_of_the_environment_with_the_model(place):
    model = load_modules(place / "dac")["reward"]
    env = make("particle", 2)
    plain = rollout(env.expert(), env, 2, 5)
    wrapped = LearnedRewardEnv(make("particle", 2), model)
    for ours, theirs in zip(LearnedReward(model).apply(plain), rollout(env.expert(), wrapped, 2, 5), strict=True):
        np.testing.assert_allclose(ours.steps["next.reward"], theirs.steps["next.reward"], rtol=1e-4, atol=1e-5)
        assert ours.steps["next.reward"].std() > 0


def test_the_model_reads_batches_on_its_own_device(place, monkeypatch):
    model, env, devices = load_modules(place / "dac")["reward"].to("meta"), make("particle", 2), []

    def reward(batch, policy):
        devices.append((batch.action.device.type, batch.next["observation.state"].device.type))
        return torch.zeros(len(batch), 1)
    monkeypatch.setattr(model, "reward", reward)
    LearnedReward(model).apply(rollout(env.expert(), env, 2, 5))
    assert set(devices) == {("meta", "meta")}


def test_the_command_learns_from_them_online_and_from_data(place, tmp_path):
    online, offline = tmp_path / "sac", tmp_path / "iql"
    status, text = call("train", "sac", "--env", "particle", "--out", online, "--random-steps", "20", "--reward",
                        place / "dac", *SMALL)
    assert status == 0, text
    (raw,) = open_dataset(online / "collection" / "000000" / "episodes.npz")[:1]
    assert (raw.steps["next.reward"] != np.round(raw.steps["next.reward"])).all()
    assert call("eval", online, "particle", "--episodes", "2")[0] == 0
    status, text = call("train", "iql", place / "demos", "--out", offline, "--steps", 2, "--reward", place / "dac",
                        "--batch-size", "8", "--device", "cpu")
    assert status == 0, text


def test_own_data_need_no_environment_though_the_reward_was_learned_in_one(place, tmp_path):
    own = Dataset([replace(e, metadata={}) for e in open_dataset(place / "demos")])
    write_dataset(own, tmp_path / "own.npz", "npz")
    command = ("train", "iql", tmp_path / "own.npz", "--steps", 2, "--reward", place / "dac", "--device", "cpu",
               "--batch-size", "8", "--out")
    for _ in range(2):  # and again
        status, text = call(*command, tmp_path / "iql")
        assert status == 0, text
    status, text = call(*command, tmp_path / "other", "--env", "particle")
    assert status == 2 and "--env: the method collects no episodes" in text
    method = replace(find_method("iql", own.features()), stages=(Stage("dac", Method.load(place / "dac")),),
                     transforms=(LearnedReward(FromStage("dac", "reward")),))
    fit_method(with_steps(method, 1, ("dac",)), own, 0, stages={"dac": place / "dac"})


def test_what_has_no_reward_model_or_other_columns_is_refused(place, tmp_path):
    assert call("train", "bc", place / "demos", "--out", tmp_path / "bc", "--steps", 1, "--device", "cpu")[0] == 0
    status, text = call("train", "iql", place / "demos", "--out", tmp_path / "iql", "--reward", tmp_path / "bc")
    assert status == 2 and f"--reward {tmp_path / 'bc'}: the run has no reward model" in text
    assert not (tmp_path / "iql").exists()
    status, text = call("train", "sac", "--env", "particle", "--out", tmp_path / "sac", "--reward", tmp_path / "none")
    assert status == 2 and "not a trained run" in text and not (tmp_path / "sac").exists()
    status, text = call("train", "bc", place / "demos", "--out", tmp_path / "x", "--reward", place / "dac")
    assert status == 2 and "bc does not learn from single rewards" in text
    data = open_dataset(place / "demos")
    with pytest.raises(UserError, match="is not a FromStage or a RewardModel"):
        LearnedReward(load_modules(place / "dac")["policy"])
    with pytest.raises(UserError, match="is not a reward model"):
        LearnedReward(FromStage("reward", "reward")).apply(data)
    constant = ConstantReward().build(load_modules(place / "dac")["policy"], data)
    with pytest.raises(UserError, match="says whose a step is"):  # it would reward each step of the data
        LearnedReward(constant).apply(data)
    with pytest.raises(UserError, match="(?s)particle.*says whose a step is"):  # and of the environment
        LearnedRewardEnv(make("particle", 2), constant)
    model, bandit = LearnedReward(load_modules(place / "dac")["reward"]), make("tabular:bandit", 2)
    with pytest.raises(UserError, match=r"'observation.state': the reward model reads a column of shape .* has \(3,\)"):
        model.apply(rollout(bandit.expert(), bandit, 2, 0))
    with pytest.raises(UserError, match="'observation.state': the reward model reads .*, but there is none"):
        model.apply(data.map(lambda e: e.replace({"observation.state": None})))


def test_a_reward_of_quantities_is_not_read_from_classes(place):
    """Their numbers would be taken for positions on the scale of the quantities."""
    model = load_modules(place / "dac")["reward"]
    env = make("particle", 2)
    env.features = {**env.features, "action": Feature("int64", env.features["action"].shape, "discrete")}
    with pytest.raises(UserError, match="particle, column 'action': .* of kind 'vector', but .* of kind 'discrete'"):
        LearnedRewardEnv(env, model)
    data = open_dataset(place / "demos").map(
        lambda e: e.replace({"action": np.zeros_like(e.steps["action"], np.int64)}))
    with pytest.raises(UserError, match="column 'action': .* of kind 'vector', but .* of kind 'discrete'"):
        LearnedReward(model).apply(data)
