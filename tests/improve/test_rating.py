"""Ratings of whole episodes: what the rater learns from, and which episodes stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fixtures.cli import refused

from understudy.checkpoint import FromStage
from understudy.cli import main
from understudy.core import DataWarning, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset
from understudy.data.mixture import ROUND
from understudy.data.replay_buffer import ReplayBuffer
from understudy.improve.rating import EpisodeRating, ScoreThreshold, episode_rater, episode_scores
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, load_policy, with_steps
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward

STATE = "observation.state"


def episode(states, **metadata) -> Episode:
    states = np.array(states, np.float32)[:, None]
    return Episode({STATE: states, "action": np.zeros((len(states) - 1, 1), np.float32)}, metadata)


def kept(rule, *scores_and_tasks):
    """Which of the episodes with these numbers stay. The first two are demonstrations."""
    data = [episode([0, 0], score=score, **({} if task is None else {"task": task}), **({ROUND: 0} if i > 1 else {}))
            for i, (score, task) in enumerate(scores_and_tasks)]
    return [next(i for i, e in enumerate(data) if e.metadata is k.metadata) for k in rule.keep(Dataset(data))]


def test_the_lower_of_the_threshold_and_the_mean_of_the_first_episodes_decides():
    rule = ScoreThreshold(threshold=7)
    assert kept(rule, (9, None), (9, None), (7, None), (7.5, None), (2, None)) == [0, 1, 3]  # the threshold is lower
    assert kept(rule, (2, None), (4, None), (3, None), (3.5, None), (9, None)) == [0, 1, 3, 4]  # the mean, 3, is lower
    own_task = kept(rule, (2, "hard"), (9, "easy"), (3, "hard"), (3, "easy"), (8, "easy"), (6, "new"), (8, "new"))
    assert own_task == [0, 1, 2, 4, 6]
    with pytest.raises(UserError, match="(?s)episode 0.*no 'stars'"):
        kept(ScoreThreshold("stars"), (1, None))


def test_a_rater_learns_from_the_last_observation_alone():
    """The state before the last says the opposite of the outcome, more often than the last one says it."""
    def rated(good):
        return episode([-1 if good else 1] * 4 + [1 if good else -1], success=good)
    data = Dataset([rated(i % 2 == 0) for i in range(20)])
    method = with_steps(episode_rater(), 80)
    method = replace(method, policy=replace(method.policy, trunk=FeedForward((16,)), encoder=ConcatEncoder()))
    method = replace(method, learner=replace(method.learner, optimizer=OptimizerConfig(lr=3e-2)))
    rater = fit_method(method, data, seed=0).policy
    scores = episode_scores(rater, ReplayBuffer(list(data)))
    assert np.abs(scores - [float(i % 2 == 0) for i in range(20)]).max() < 0.1
    assert len(ScoreThreshold(rater).keep(data)) == 20  # the first episodes stay whatever their scores are
    labeled = EpisodeRating("stars")(episode([0, 0, 0], stars=4))
    assert labeled.steps["score"].tolist() == [[4], [4]] and labeled.steps["is_rated"].tolist() == [0, 1]
    with pytest.raises(UserError, match="no 'stars'"):
        EpisodeRating("stars")(episode([0, 0]))


def test_ratings_that_are_missing_or_all_the_same_are_said():
    rated = [episode([0, 0, 0], stars=4), episode([0, 0], stars=4)]
    with pytest.warns(DataWarning, match="all 2 episodes have the same 'stars', 4"):
        assert EpisodeRating("stars").apply(Dataset(rated))[1].steps["score"].tolist() == [[4]]
    with pytest.raises(UserError, match=r"(?s)episode 2: the episode has no 'stars'.*--label stars=VALUE"):
        EpisodeRating("stars").apply(Dataset([*rated, episode([0, 0])]))
    with pytest.raises(UserError, match="'stars' is the text 'good', and not a number"):
        EpisodeRating("stars")(episode([0, 0], stars="good"))


@pytest.mark.slow
def test_a_policy_clones_what_a_rater_likes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["record", "fork", "--out", "demos", "--episodes", "30"]) == 0
    tiny = ["--device", "cpu", "--policy.trunk.width", "32", "--policy.trunk.depth", "1"]
    assert main(["train", "bc", "demos", "--out", "run", "--steps", "200", *tiny]) == 0
    assert main(["eval", "run", "fork", "--episodes", "30", "--save", "own", "--device", "cpu"]) == 0
    name = "understudy.improve.rating:episode_rater"
    assert main(["train", name, "own", "--out", "rater", "--steps", "300", *tiny]) == 0

    def improve(*args, how="filtered"):
        capsys.readouterr()
        return main(["improve", "run", "--with", how, "--rounds", "1", "--episodes", "8", "--steps", "3",
                     "--compare", "20", "--device", "cpu", *args]), *capsys.readouterr()
    refused(improve("--out", "no", "--rater", "rater", how="dsrl"), "use --with filtered")
    refused(improve("--out", "no", "--rater", "run"), "rates neither episodes nor steps")
    assert main(["record", "push", "--out", "pushes", "--episodes", "6"]) == 0
    assert main(["train", name, "pushes", "--out", "of-push", "--steps", "5", *tiny]) == 0
    refused(improve("--out", "no", "--rater", "of-push"), "--rater of-push", "episodes of this environment")
    status, _, err = improve("--out", "better", "--rater", "rater")
    assert status == 0 and "what rater scores above 0.5" in err, err
    assert vars(Method.load("better").collection)["retention"] == ScoreThreshold(FromStage("rater"))
    first, own = open_dataset("demos"), open_dataset("better/collection/000000/episodes.npz")
    rater = load_policy("rater")
    stays = ScoreThreshold(rater).keep(Dataset([*first, *own]))
    least = min(0.5, episode_scores(rater, first).mean())
    assert len(stays) == len(first) + (episode_scores(rater, own) > least).sum()
