"""understudy train --reward-scale, --reward-shift and --reward-clip."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures.staged import call

from understudy.core import ConfigError
from understudy.data.episode import Episode
from understudy.data.formats import open_dataset
from understudy.data.relabel import ScaledReward
from understudy.learn.method import Method, training_data

OPTIONS = ("--reward-scale", 2, "--reward-shift", -0.5, "--reward-clip", -0.4, 1.0)


def test_a_reward_is_multiplied_then_shifted_then_limited():
    episode = Episode({"observation.state": np.zeros((4, 1), "f"), "action": np.zeros((3, 1), "f"),
                       "next.reward": np.array([-1.0, 0.25, 3.0], "f")})
    for change, expected in ((ScaledReward(2.0, -1.0), [-3, -0.5, 5]), (ScaledReward(2.0, -1.0, -1.0), [-1, -0.5, 5]),
                             (ScaledReward(2.0, -1.0, -1.0, 2.0), [-1, -0.5, 2]), (ScaledReward(), [-1, 0.25, 3])):
        reward = change(episode).steps["next.reward"]
        assert reward.tolist() == expected and reward.dtype == np.float32
    assert episode.steps["next.reward"].tolist() == [-1, 0.25, 3]


@pytest.mark.parametrize(("options", "says"), [
    ({"scale": 0.0}, "the factor is 0"), ({"low": 1.0, "high": 1.0}, "is not below the largest"),
    ({"scale": float("nan")}, "nan"), ({"shift": float("nan")}, "nan")])
def test_numbers_that_leave_nothing_to_learn_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        ScaledReward(**options)


def test_the_command_changes_stored_and_collected_rewards(tmp_path):
    out = tmp_path / "run"
    status, text = call("train", "sac", "--env", "particle", "--out", out, "--random-steps", "20", "--device", "cpu",
                        "--n-rounds", "1", "--n-steps", "12", "--batch-size", "8", *OPTIONS)
    assert status == 0, text
    assert "understudy eval" in text and f"eval {out} {out}" not in text, "random actions are nothing to predict"
    method = Method.load(out)
    assert method.transforms[-1] == ScaledReward(2.0, -0.5, -0.4, 1.0)
    first = open_dataset(out / "random" / "episodes.npz")
    raw, changed = (np.concatenate([e.steps["next.reward"] for e in d]) for d in (first, training_data(first, method)))
    assert changed == pytest.approx((2 * raw - 0.5).clip(-0.4, 1.0))
    collected = open_dataset(out / "collection" / "000000" / "episodes.npz")
    assert min(e.steps["next.reward"].min() for e in collected) >= np.float32(-0.4) > raw.min() - 0.5


@pytest.mark.parametrize("name", ["cqn-as", "dac"])
def test_random_episodes_are_no_demonstrations(name, tmp_path):
    status, text = call("train", name, "--env", "particle", "--out", tmp_path / "run", "--random-steps", "20")
    assert status == 2 and f"{name} learns from demonstrations, and there are none" in text and "DATA" in text


def test_equal_random_episodes_are_no_copies(tmp_path):
    status, text = call("train", "dqn", "--env", "FrozenLake-v1", "--out", tmp_path / "run", "--random-steps", "300",
                        "--n-rounds", "1", "--n-steps", "10", *OPTIONS)
    assert status == 0 and "copies" not in text and "no episode is held out, so" in text
    status, text = call("inspect", tmp_path / "run" / "random" / "episodes.npz")
    assert "1 episode equal to an earlier one" in text, "otherwise this tests nothing"


def test_a_reward_that_sums_what_follows_an_end_needs_its_discount(tmp_path):
    assert call("record", "particle", "--out", tmp_path / "data", "--episodes", "2")[0] == 0
    status, text = call("train", "dac", tmp_path / "data", "--env", "particle", "--out", tmp_path / "dac",
                        "--n-rounds", "1", "--n-episodes", "1", "--steps", "2", "--device", "cpu")
    assert status == 0, text
    again = ("train", "sac", tmp_path / "data", "--env", "particle", "--out", tmp_path / "sac",
             "--n-rounds", "1", "--n-steps", "10", "--reward", tmp_path / "dac", "--device", "cpu")
    status, text = call(*again, "--discount", "0.9")
    assert status == 2 and "with the discount 0.99, and sac has 0.9" in text and "--discount 0.99" in text
    status, text = call(*again, "--optimizer.lr-schedule", "cosine")
    assert status == 0 and "The learning rate is 0 from update 20,000 on" in text, text


def test_methods_without_rewards_refuse_it(tmp_path):
    assert call("record", "particle", "--out", tmp_path / "data", "--episodes", "2")[0] == 0
    status, text = call("train", "bc", tmp_path / "data", "--out", tmp_path / "run", *OPTIONS)
    assert status == 2 and "bc does not learn from single rewards" in text and "iql" in text
    status, text = call("train", "iql", tmp_path / "data", "--out", tmp_path / "run", "--reward-scale", "0")
    assert status == 2 and "the factor is 0" in text
