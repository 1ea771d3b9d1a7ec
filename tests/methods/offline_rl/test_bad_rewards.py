"""Rewards and ends that no critic can learn from, tried by the command line."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from fixtures.staged import call

from understudy.core import Batch, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset
from understudy.learn.targets import ReturnBound
from understudy.methods import find_method
from understudy.policy import Policy


def columns(n: int, rng, **changes) -> dict[str, np.ndarray]:
    """Columns of n steps of four episodes, the first three of which terminate."""
    lengths = np.array([n // 4 - 1, n // 4 + 1, n // 4, n // 4])
    last = np.isin(np.arange(n), lengths.cumsum() - 1)
    ends = last & (np.arange(n) < n - 1)
    made = {"observations": rng.normal(size=(n, 3)).astype("f"), "actions": rng.uniform(-1, 1, (n, 2)).astype("f"),
            "rewards": rng.normal(size=n).astype("f"), "terminals": ends, "timeouts": last & ~ends,
            "episode_ends": lengths.cumsum()}
    return {k: v for k, v in {**made, **changes}.items() if v is not None}


def trained(tmp_path, name: str = "iql", n: int = 40, *options, **changes) -> tuple[int, str]:
    np.savez(tmp_path / "data.npz", **columns(n, np.random.default_rng(0), **changes))
    return call("train", name, tmp_path / "data.npz", "--out", tmp_path / "run", "--steps", 2, "--device", "cpu",
                "--batch-size", 4, *options)


@pytest.mark.parametrize("changes", [{}, {"rewards": -np.arange(40)},
                                     {"terminals": np.ones(40, bool), "episode_ends": np.arange(1, 41)}])
def test_good_rewards_train(tmp_path, changes):
    """Also whole ones below 0, and where each episode has one step."""
    code, text = trained(tmp_path, **changes)
    assert code == 0 and "time limit" not in text


@pytest.mark.parametrize(("changes", "says"), [
    ({"rewards": None}, "IQL learns from next.reward and next.terminated, but there is no column next.reward"),
    ({"rewards": None, "reward": np.ones(40, "f")}, "view make .*data.npz --out VIEW --rename reward=next.reward"),
    ({"terminals": None}, "(?s)there is no column next.terminated.*True where the environment ended the episode, and "
     "False at a time limit"),
    ({"rewards": np.zeros(40, "f")}, "(?s)column 'next.reward': all rewards are 0, so that no action is better.*bc"),
    ({"rewards": np.ones(40, "f"), "terminals": np.zeros(40, bool)}, "all rewards are 1 and no episode terminates"),
    ({"rewards": np.where(np.arange(40) == 7, np.nan, 1).astype("f")}, "episode 0, step 7, next.reward"),
    ({"rewards": np.arange(80, dtype="f").reshape(40, 2)}, "'next.reward': there are 2 numbers per step"),
])
def test_what_cannot_be_learned_from_is_refused(tmp_path, changes, says):
    code, text = trained(tmp_path, **changes)
    assert code and re.search(says, text), text
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(("name", "options"), [("iql", ()), ("sac", ("--env", "fork")), ("td3-bc", ("--env", "fork"))])
def test_nan_is_refused_even_if_the_audit_is_ignored(tmp_path, name, options):
    rewards = np.where(np.arange(40) == 7, np.nan, 1).astype("f")
    code, text = trained(tmp_path, name, 40, "--ignore", "not-finite", *options, rewards=rewards,
                         observations=np.zeros((40, 2), "f"))
    assert code and "episode 0, step 7, next.reward: the value is not finite" in text, text
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("options", [("reward=score",), ()])
def test_rewards_in_another_column_train_as_the_message_says(tmp_path, options):
    """By --columns, or by the view that the message offers."""
    data = tmp_path / "data.npz"
    np.savez(data, **columns(40, np.random.default_rng(0), rewards=None, score=np.arange(40, dtype="f")))
    short = ("--out", tmp_path / "run", "--steps", 2, "--device", "cpu", "--batch-size", 4)
    if options:
        assert call("train", "iql", data, *short, "--columns", *options)[0] == 0
        return
    code, text = call("train", "iql", data, *short)
    command = re.search(r"understudy (view make \S+ --out VIEW --rename score=next.reward)", text)
    assert code and command, text
    assert call(*command[1].replace("VIEW", str(tmp_path / "view")).split())[0] == 0
    assert call("train", "iql", tmp_path / "view", *short)[0] == 0


def test_a_column_of_the_simulator_is_not_offered_as_rewards(tmp_path):
    data = tmp_path / "data"
    assert call("record", "particle", "--out", tmp_path / "recorded", "--episodes", 2)[0] == 0
    assert "simulator.state" in open_dataset(tmp_path / "recorded").features()
    assert call("view", "make", tmp_path / "recorded", "--drop", "next.reward", "--out", data)[0] == 0
    code, text = call("train", "iql", data, "--out", tmp_path / "run", "--device", "cpu")
    assert code and "there is no column next.reward" in text and "simulator.state=" not in text, text


@pytest.mark.parametrize("name", ["awac", "bcq", "bear", "cal-ql", "cql", "crr", "edac", "fql", "idql", "iris", "plas",
                                  "prdc", "rebrac", "spot", "tacr", "td-mpc"])
def test_classes_are_refused_where_a_critic_reads_numbers(tmp_path, name):
    code, text = trained(tmp_path, name, actions=np.arange(40) % 3)
    assert code and "the actions are classes" in text and "iql" in text
    assert trained(tmp_path, "iql", actions=np.arange(40) % 3)[0] == 0


def test_targets_of_more_steps_than_an_episode_has(tmp_path):
    """They count the steps that there are (tests/learn/test_targets.py)."""
    assert trained(tmp_path, "rebrac", 40, "--n-step", 50)[0] == 0


@pytest.mark.parametrize("ends", [False, True])
def test_a_reward_of_last_steps_counts_if_they_terminate(tmp_path, ends):
    """The observation after them is not stored, so that nothing tells what would have followed."""
    last = np.arange(40) % 10 == 9
    code, text = trained(tmp_path, rewards=last.astype("f"), terminals=last & ends, episode_ends=np.arange(10, 50, 10))
    assert bool(code) != ends
    assert ends or re.search("all rewards are 0, except in the last steps of 4 episodes, which do not count(.|\n)*let "
                             "next.terminated be True where these episodes really ended", text), text


def test_time_limits_that_are_marked_as_ends_are_told(tmp_path):
    code, text = trained(tmp_path, terminals=np.arange(40) % 10 == 9, episode_ends=np.arange(10, 50, 10))
    assert code == 0 and "all 4 episodes terminate after 10 steps, as with a time limit" in text
    (tmp_path / "short").mkdir()
    code, text = trained(tmp_path / "short", terminals=np.arange(40) % 4 == 3, episode_ends=np.arange(4, 44, 4))
    assert code == 0 and "as with a time limit" not in text  # few steps, as with chunks, are often equally many


def test_scores_that_diverge_are_named():
    reward = np.full(5, -2, "f")
    data = Dataset([Episode({"observation.state": np.zeros((6, 1), "f"), "action": np.zeros((5, 1), "f"),
                             "next.reward": reward})])
    mask = torch.ones(5, 1, dtype=torch.bool)
    batch = Batch({}, torch.zeros(5, 1, 1), mask, {"next.reward": torch.from_numpy(reward)})
    for discount, bound in ((0.9, 20), (1.0, 10)):  # 2 for each of 1 / (1 - discount) steps, or of the longest episode
        returns = ReturnBound(data, discount)
        returns.check(-9.9 * bound, batch, 7)
        with pytest.raises(UserError, match=f"update 7: the scores of the critic diverge: .* can exceed {bound}\n  -> "
                           r"normalize the critic \(--critic.layer-norm True\), or lower --discount"):
            returns.check(-10.1 * bound, batch, 7)


def test_scores_of_a_new_critic_are_no_divergence():
    """The first batches may have no reward yet, and a bonus far smaller than what a new network returns."""
    reward = torch.zeros(5, 1)
    batch = Batch({}, torch.zeros(5, 1, 1), torch.ones(5, 1, dtype=torch.bool), {"next.reward": reward})
    returns = ReturnBound(Dataset([]), 0.9, bonus=1e-4)
    returns.check(-0.5, batch, 1)
    with pytest.raises(UserError, match=r"their mean is -1.1, but no return can exceed 0.001"):
        returns.check(-1.1, batch, 2)


@pytest.mark.parametrize("name", ["iql", "awac", "cql", "fql"])
def test_a_resumed_training_knows_the_rare_reward(name):
    """Its first batches may lack it, and larger scores than the common rewards allow are no divergence."""
    steps = {k: np.zeros((9, 1), "f") for k in ("observation.state", "action")}
    data = Dataset([Episode({**steps, "next.reward": reward, "next.terminated": np.arange(9) == 8})
                    for reward in (np.full(9, -0.01, "f"), np.linspace(-0.01, 80, 9, dtype="f"))])
    method = find_method(name, data.features())
    policy = Policy(method.policy, data.features()).fit_statistics(data)
    learner, again = (method.learner.build(policy, 0, 9, data) for _ in range(2))
    windows = learner.batch_sampler(data)
    learner.update(windows.gather(np.arange(18)))
    again.restore(*learner.state())
    batch = windows.gather(np.arange(9))
    again.update(batch)
    (bound,) = again._bounds
    bound.check(700.0, batch, 2)
    assert bound.largest_reward == 80


@pytest.mark.parametrize("name", ["spot", "plas", "bear"])
def test_a_run_whose_first_phase_is_a_fraction_is_not_continued_to_more_updates(tmp_path, name):
    """With more updates the first phase would last longer, and begin again."""
    assert trained(tmp_path, name)[0] == 0
    code, text = trained(tmp_path, name, 40, "--steps", 20)
    assert code and "_fraction is a fraction of all of them, so it cannot be continued to 20" in text, text
    assert text.strip().endswith("or train all 20 updates there"), text


def test_a_learner_whose_scores_diverge_stops(tmp_path):
    code, text = trained(tmp_path, "awac", 40, "--optimizer.lr", 30.0, "--discount", 0.5)
    assert code and re.search("the scores of the critic diverge|is (nan|inf)", text), text


@pytest.mark.parametrize(("name", "message"), [
    *((name, "scores of the critic diverge: .* can exceed 2") for name in ("gcivl", "hiql", "gciql", "hilp")),
    ("cql", r"scores of the critic diverge: .* can exceed 8.03"),  # 1 / (1 - discount) times rewards and entropy
    ("qrl", r"distances to goals diverge: .* far beyond 500"),
    ("crl", r"logits of the critic diverge: .* certain of a goal at 10"),
    ("dwsl", r"losses of the distance diverge: .* guessing costs 4.61")])  # log 100
def test_values_that_diverge_are_named_with_the_settings_to_change(tmp_path, name, message):
    options = ("--discount", 0.5) * (name != "dwsl")
    code, text = trained(tmp_path, name, 40, "--optimizer.lr", 1.0, *options, "--steps", 50,
                         "--critic.layer-norm", False)
    assert code and re.search(message + r"\n  -> .*--optimizer.lr", text), text
    assert trained(tmp_path, name, 40, "--out", tmp_path / "good")[0] == 0


def test_a_critic_of_a_stage_that_scores_other_columns_is_refused(tmp_path):
    for name in ("first", "observed", "acted"):
        (tmp_path / name).mkdir()
    assert trained(tmp_path / "first", "idql")[0] == 0
    stage = ("--stage", f"critic={tmp_path / 'first' / 'run' / 'stages' / 'critic'}")
    for folder, changes, says in (
            ("observed", {"observations": np.zeros((40, 5), "f")}, r"\(3,\).*observation.state has the shape \(5,\).*"),
            ("acted", {"actions": np.linspace(-1, 1, 120, dtype="f").reshape(40, 3)},
             r"\(2,\).*action has the shape \(3,\).*")):
        code, text = trained(tmp_path / folder, "idql", 40, *stage, **changes)
        assert code and re.search(says + r"\n.*leave --stage out", text), text
        assert not (tmp_path / folder / "run" / "checkpoints").exists()
