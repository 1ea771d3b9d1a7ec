"""Data that a method cannot learn from, tried by the command with the methods that it concerns."""

from __future__ import annotations

import re

import numpy as np
import pytest
from fixtures.staged import call

from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset

OFFLINE = ("awac", "bcq", "bear", "cal-ql", "cql", "crr", "edac", "plas", "prdc", "rebrac", "fql", "idql", "iris",
           "spot", "tacr", "td-mpc")
CRITICS = ("iql", *OFFLINE, "td3-bc", "sac", "td3")
MATCHING = ("dac", "airl", "rot", "sqil", "iq-learn", "pwil", "density-reward", "virl")
GOALS = ("gcivl", "gciql", "hiql", "qrl", "crl", "dwsl", "hilp", "fb")
N = 40


def write(path, **changes):
    """Six episodes of unequal length, in columns of the toy fork: the first three terminate."""
    rng, ends = np.random.default_rng(0), np.array([5, 12, 19, 25, 33, N])
    last = np.isin(np.arange(N), ends - 1)
    columns = {"observations": rng.normal(size=(N, 2)).astype("f"), "actions": rng.uniform(-1, 1, (N, 2)).astype("f"),
               "rewards": rng.normal(size=N).astype("f"), "terminals": last & (np.arange(N) < 19),
               "timeouts": last & (np.arange(N) >= 19), "episode_ends": ends}
    np.savez(path, **{k: v for k, v in {**columns, **changes}.items() if v is not None})
    return path


def train(name: str, tmp_path, *options, **changes) -> tuple[int, str]:
    """The exit status and the output of a small training on data with these changes."""
    collects = {**dict.fromkeys(MATCHING, ("--n-episodes", 1)),
                **dict.fromkeys(("sac", "td3", "ppo", "gail", "composite-motion"), ("--n-steps", 4)),
                "td3-bc": ("--n-episodes", 1, "--collection.initial-updates", 2)}
    small = ("--env", "fork", "--n-rounds", 1, *collects[name]) if name in collects else ("--steps", 2)
    if name == "rot":
        small += ("--stages.0.method.learner.steps", 2)
    return call("train", name, write(tmp_path / "data.npz", **changes), "--out", tmp_path / "run", "--device", "cpu",
                "--batch-size", 4, *small, *options)


def refused(result: tuple[int, str], says: str, tmp_path) -> None:
    """Nothing was trained, and the output is not a traceback."""
    code, text = result
    assert code == 2 and re.search(says, text, re.DOTALL) and "Traceback" not in text, text
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("name", [*CRITICS, "ppo", "composite-motion"])
def test_no_rewards(name, tmp_path):
    refused(train(name, tmp_path, rewards=None), "there is no column next.reward", tmp_path)


@pytest.mark.parametrize("name", [*CRITICS, "ppo", "gail", "composite-motion", *MATCHING])
def test_no_ends(name, tmp_path):
    refused(train(name, tmp_path, terminals=None), "there is no column next.terminated.*False at a time limit",
            tmp_path)


@pytest.mark.parametrize("name", ["iql", "sac"])
def test_rewards_under_a_name_that_is_not_known_are_offered_as_a_view(name, tmp_path):
    result = train(name, tmp_path, rewards=None, **{"info.score": np.ones(N, "f")})
    refused(result, r"another name \(info.score\).*view make .*data.npz --out VIEW --rename info.score=next.reward",
            tmp_path)


@pytest.mark.parametrize("name", ["iql", "sac", "ppo", "dac", "iq-learn", "pwil"])
def test_time_limits_that_are_marked_as_ends_are_told(name, tmp_path):
    tens = np.arange(10, N + 1, 10)
    code, text = train(name, tmp_path, "--val-fraction", 0, terminals=np.arange(N) % 10 == 9, timeouts=None,
                       episode_ends=tens)
    assert code == 0 and "all 4 episodes terminate after 10 steps, as with a time limit" in text


@pytest.mark.parametrize("name", [*OFFLINE, "td3-bc", "sac", "td3", *MATCHING, "gciql", "qrl", "crl", "ccil"])
def test_classes_where_a_critic_reads_numbers_name_a_method_that_reads_them(name, tmp_path):
    refused(train(name, tmp_path, actions=np.arange(N) % 3), "the actions are classes.*(iql|bc).* learn classes",
            tmp_path)


@pytest.mark.parametrize("name", [*CRITICS, "ppo", "gail", *MATCHING, *GOALS, "ccil", "bc"])
def test_no_actions_and_some_actions_name_methods_that_do_without(name, tmp_path):
    refused(train(name, tmp_path, actions=None), "no column 'action' to learn.*--columns action=COLUMN.*vpt.*bco",
            tmp_path)
    actions = np.full((N, 2), np.nan, "f")
    actions[:1] = 0.5
    refused(train(name, tmp_path, actions=actions), "not finite.*unknown actions, train vpt.*correct the values",
            tmp_path)


@pytest.mark.parametrize("name", GOALS)
def test_goals_that_are_absent(name, tmp_path):
    result = train(name, tmp_path, "--column", "observation.target")
    refused(result, "there is no column 'observation.target'.*observation.state", tmp_path)
    assert "subgoal" not in result[1] and "skill" not in result[1]  # columns of the method, not of the data
    singles = {"episode_ends": np.arange(1, N + 1), "timeouts": None, "terminals": np.ones(N, bool)}
    refused(train(name, tmp_path, **singles), "no episode has two steps.*could be its goal.*train bc", tmp_path)


@pytest.mark.parametrize("name", [*CRITICS, "ppo", "gail", "composite-motion", "dac", "airl", "sqil",
                                  "iq-learn", "pwil", "sarm"])
def test_episodes_of_one_step_train(name, tmp_path):
    assert train(name, tmp_path, episode_ends=np.arange(1, N + 1), terminals=np.ones(N, bool), timeouts=None)[0] == 0


@pytest.mark.parametrize("name", ["bcq", "bear", "cal-ql", "cql", "plas", "prdc", "rebrac", "sac", "spot",
                                  "td3", "td3-bc"])
def test_targets_of_more_steps_than_an_episode_has_train(name, tmp_path):
    assert train(name, tmp_path, "--n-step", 500)[0] == 0


@pytest.mark.parametrize("name", ["dac", "sqil"])
def test_targets_of_several_steps_have_no_learned_rewards(name, tmp_path):
    """Refused before a stage is trained."""
    result = train(name, tmp_path, "--n-step", 3)
    refused(result, "--n-step: a reward model.*use 0", tmp_path)
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.parametrize("name", ["rot", "pwil", "density-reward"])
def test_targets_of_several_steps_have_the_rewards_of_whole_episodes(name, tmp_path):
    assert train(name, tmp_path, "--n-step", 3)[0] == 0


@pytest.mark.parametrize("name", ["gail", "composite-motion", *MATCHING])
def test_flags_of_experts(name, tmp_path):
    refused(train(name, tmp_path, expert=np.zeros(6, bool)), "none of the 6 episodes is a demonstration of an expert",
            tmp_path)
    result = train(name, tmp_path, "--val-fraction", 0, expert=np.arange(6) % 2 == 0)
    if name == "sqil":  # whose reward is that of the data set, not of the episode
        refused(result, "only 3 of 6 episodes are demonstrations.*--delete.*dac", tmp_path)
    else:
        assert result[0] == 0


@pytest.mark.parametrize("name", ["recoil", "dac"])
def test_experts_by_step_are_no_labels_of_episodes(name, tmp_path):
    """All six episodes were imitated."""
    result = train(name, tmp_path, expert=np.arange(N) >= 19)
    refused(result, "3 episodes would count as demonstrations, although the column expert is False", tmp_path)


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_rewards_that_are_not_finite_are_refused_before_the_first_round(name, tmp_path):
    rewards = np.ones(N, "f")
    rewards[7] = np.nan
    refused(train(name, tmp_path, rewards=rewards), "not-finite: episode 1, step 2, next.reward.*to accept them, "
            "with a method that does not read next.reward: --ignore not-finite", tmp_path)
    ignored = train(name, tmp_path, "--ignore", "not-finite", rewards=rewards)
    refused(ignored, "episode 1, step 2, next.reward: the value is not finite", tmp_path)
    assert not (tmp_path / "run" / "collection").exists()


@pytest.mark.parametrize(("column", "key"), [("terminals", "terminated"), ("next.success", "success")])
def test_columns_that_are_named_as_flags_and_are_none(column, key, tmp_path):
    """A reward of -1 was an end of the episode that counted its next value twice."""
    marks = np.tile([0, 1, -1, 0], N // 4).astype("f")
    result = train("iql", tmp_path, "--columns", f"{key}=mark", mark=marks, **{column: None})
    refused(result, rf"label-unclear: episode 0, step 2, next.{key}: next.{key} is -1.0, and not True", tmp_path)
    texts = np.where(marks == 0, "no", "yes")
    result = train("iql", tmp_path, "--columns", f"{key}=mark", mark=texts, **{column: None})
    refused(result, rf"finds 1 error.*label-unclear: episode 0, step 0, next.{key}: next.{key} is 'no'", tmp_path)


def test_an_offline_learner_that_gets_only_demonstrations_names_what_it_takes(tmp_path):
    refused(train("recoil", tmp_path), "all 6 episodes are demonstrations.*-> give others as --prior", tmp_path)


@pytest.mark.parametrize("name", ["sac", "ppo", "gail", "composite-motion", *MATCHING])
def test_demonstrations_of_another_environment(name, tmp_path):
    result = train(name, tmp_path, "--env", "particle:3")
    refused(result, "particle:3, column 'observation.state'.*name the environment of the demonstrations", tmp_path)


def test_an_environment_of_the_same_columns_is_trained_in_and_told(tmp_path):
    states = np.zeros((6, 2), "f")
    episode = Episode({"observation.state": states, "action": states[:5], "next.terminated": np.arange(5) == 4},
                      {"env": "push"})
    write_dataset(Dataset([episode], {"fps": 10}), tmp_path / "push", "lerobot")
    code, text = call("train", "dac", tmp_path / "push", "--env", "fork", "--out", tmp_path / "run", "--device", "cpu",
                      "--n-rounds", 1, "--n-episodes", 1, "--val-fraction", 0)
    assert "the demonstrations are of push, and the method practices in fork" in text
    code, text = call("train", "discrete-sac", "--env", "tabular", "--out", tmp_path / "tabular", "--steps", 2,
                      "--random-steps", 20)  # another name of tabular:slippery-grid
    assert code == 0 and "practices in" not in text


@pytest.mark.parametrize(("name", "stage", "source"), [("idql", "critic", "iql"), ("rot", "clone", "bc"),
                                                       ("vpt", "inverse", "bc"), ("ccil", "dynamics", "bc")])
def test_stages_of_other_columns(name, stage, source, tmp_path):
    wide = write(tmp_path / "wide.npz", observations=np.zeros((N, 3), "f"))
    assert call("train", source, wide, "--out", tmp_path / "stage", "--steps", 2, "--device", "cpu",
                "--batch-size", 4)[0] == 0
    result = train(name, tmp_path, "--stage", f"{stage}={tmp_path / 'stage'}")
    refused(result, rf"stage '{stage}', column 'observation.state'.*\(3,\).*shape \(2,\) in these data", tmp_path)


@pytest.mark.parametrize("name", ["rebrac", "fql", "sac", "dac", "hiql", "dwsl"])
def test_what_diverges_names_the_setting(name, tmp_path):
    code, text = train(name, tmp_path, "--optimizer.lr", 1e30)
    assert code == 2
    assert re.search(r"update \d: the (loss|gradient|scores).*--optimizer.lr", text, re.DOTALL), text


def test_classes_without_an_axis_are_those_of_an_environment_with_one(tmp_path):
    """Gymnasium's actions have the shape (1,); files often have (N,)."""
    rng, ends = np.random.default_rng(0), np.array([20, 40])
    np.savez(tmp_path / "data.npz", observations=rng.normal(size=(40, 4)).astype("f"), actions=np.arange(40) % 2,
             rewards=np.ones(40, "f"), terminals=np.isin(np.arange(40), ends - 1) & (np.arange(40) < 25),
             episode_ends=ends)
    small = ("--n-rounds", 1, "--n-steps", 4, "--n-epochs", 1, "--device", "cpu")
    for name in ("ppo", "gail"):
        code, text = call("train", name, tmp_path / "data.npz", "--env", "CartPole-v1", "--out", tmp_path / name,
                          *small)
        assert code == 0, text
    collected = open_dataset(tmp_path / "ppo" / "collection" / "000000" / "episodes.npz")
    assert collected[0].steps["action"].shape == (len(collected[0]),)
    assert call("eval", tmp_path / "ppo", "CartPole-v1", "--episodes", 1)[0] == 0


def test_a_run_of_other_settings_stays_as_it_is(tmp_path):
    """Also a stage is not copied into it: runs that this one starts from."""
    small = ("--device", "cpu", "--batch-size", 4, "--steps", 2)
    path, mine, other = write(tmp_path / "data.npz"), tmp_path / "mine", tmp_path / "other"
    assert call("train", "bc", path, "--out", mine, *small)[0] == 0
    assert call("train", "bc", path, "--out", other, "--seed", 1, *small)[0] == 0
    before = {file: file.read_bytes() for file in mine.rglob("*") if file.is_file()}
    code, text = call("train", "bc", path, "--from", other, "--out", mine, *small)
    assert code == 2 and "started with other settings" in text and "Traceback" not in text
    assert {file: file.read_bytes() for file in mine.rglob("*") if file.is_file()} == before


def test_a_method_in_yaml(tmp_path):
    (tmp_path / "method.yaml").write_text("name: bc\n")
    code, text = call("train", tmp_path / "method.yaml", write(tmp_path / "data.npz"), "--out", tmp_path / "run")
    assert code == 2 and "cannot be read as JSON" in text and "YAML is not read here" in text
