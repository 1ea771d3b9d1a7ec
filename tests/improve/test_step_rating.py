"""Ratings of single steps: what the rater learns, and which steps of new episodes are cloned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.cli import refused

from understudy.cli import main
from understudy.core import UserError
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.improve import step_rating
from understudy.improve.collection import TaskSequenceCollector
from understudy.improve.corrections import without_added_parts
from understudy.improve.improvement import Improvement, _marked_steps
from understudy.improve.step_rating import MarkGoodSteps, StepRating, step_rater, step_scores
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, load_policy, with_steps
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

STATE, FAST = "observation.state", OptimizerConfig(lr=1e-2)


def episode(actions, metadata=None, **columns) -> Episode:
    actions = np.array(actions, np.float32)[:, None]
    return Episode({STATE: np.zeros((len(actions) + 1, 1), np.float32), "action": actions,
                    **{name: np.array(column, float) for name, column in columns.items()}}, metadata or {})


def test_what_nobody_rated_is_not_drawn_and_bad_steps_are_half_of_a_batch():
    data = Dataset([episode([5, 6, 7, 8], good=[1, 0, np.nan, 0]), episode([9, 10], good=[0, 0])])
    first, second = StepRating().apply(data)
    assert first.steps["is_good"].tolist() == [[1], [0], [0], [0]]
    assert first.steps["share"].tolist() == [1, 0.25, 0, 0.25] and second.steps["share"].tolist() == [0.25, 0.25]
    assert first.steps["observation.taken"].tolist() == [[5], [5], [6], [7], [8]]
    with pytest.raises(UserError, match="0 steps are rated good .1. and 2 bad"):
        StepRating().apply(data.select([1]))
    with pytest.raises(UserError, match="(?s)episode 0.*no column 'stars'"):
        StepRating("stars").apply(data)


def walk(rng, n=30) -> Episode:
    """Steps left or right, of which half are blocked. Those are good that go right and are not blocked."""
    action, moves = rng.choice([-1.0, 1.0], n), rng.random(n) < 0.5
    state = np.concatenate([[0.0], np.cumsum(action * moves)])
    return Episode({STATE: state[:, None].astype(np.float32), "action": action[:, None].astype(np.float32),
                    "good": ((action > 0) & moves).astype(float)})


def test_a_rater_compares_the_observations_before_and_after():
    rng = np.random.default_rng(0)
    method = with_steps(step_rater(), 300)
    method = replace(method, policy=replace(method.policy, trunk=FeedForward((32, 32)), encoder=ConcatEncoder()),
                     learner=replace(method.learner, optimizer=FAST))
    rater = fit_method(method, Dataset([walk(rng) for _ in range(20)]), seed=0).policy
    for new in (walk(rng), walk(rng)):
        marked = MarkGoodSteps(rater)(new).steps["marked"]
        assert (marked == (new.steps["good"] > 0)).mean() > 0.95
        assert marked.shape == step_scores(rater, new).shape == (30,)
    helped = MarkGoodSteps(rater)(new.replace({"intervention": np.ones(30, bool)}))
    assert helped.steps["marked"].all()


@pytest.mark.parametrize(("scores", "expected"), [
    ((0, 0, 0, 0), (0, 0)), ((1, 0, 1, 0), (2 / 6, 0)), ((0, 1, 0, 1), (10 / 6, 0)), ((1, 1, 1, 1), (12 / 8, 11 / 6))])
def test_the_policy_learns_the_mean_of_demonstrated_and_marked_actions(monkeypatch, scores, expected):
    """Demonstrations do 0, and the collected episode does 1, 5, 1, 5. All states are equal, so that a regression to
    chunks of two actions learns the mean of those first actions that are demonstrated or marked, and of the second
    ones that follow them and are demonstrated or marked too."""
    monkeypatch.setattr(step_rating, "step_scores", lambda rater, episode: np.array(scores, float))
    data = Dataset([episode([0, 0, 0, 0], {"task": "demonstrated"}), episode([1, 5, 1, 5], {"task": "collected"})])
    config = PolicyConfig(Regression(), MLP(8, 1), ConcatEncoder(), Normalizer("identity", "identity"), Window(1, 2))
    base = Method(config, learner=BehaviorCloning(400, 64, FAST))
    method = _marked_steps(Improvement("unused", data, n_rounds=1, n_updates=400), base)
    rounds = replace(method.collection, collector=TaskSequenceCollector(), compare_rounds=False,
                     relabel=(MarkGoodSteps(Policy(config, data.features())),))
    policy = fit_method(replace(method, collection=rounds), data, 0).policy
    zero = torch.zeros(8, dtype=torch.int64)
    chunk = policy.plan(next(policy.windows(data).scan()).obs, policy.noise(zero, zero))[0, :, 0]
    assert chunk.tolist() == pytest.approx(expected, abs=0.15)


@pytest.mark.slow
def test_improve_learns_the_steps_that_a_rater_likes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["record", "fork", "--out", "demos", "--episodes", "30"]) == 0
    tiny = ["--device", "cpu", "--policy.trunk.width", "32", "--policy.trunk.depth", "1"]
    assert main(["train", "bc", "demos", "--out", "run", "--steps", "200", *tiny]) == 0
    assert main(["eval", "run", "fork", "--episodes", "10", "--save", "own", "--device", "cpu"]) == 0
    progress = [np.diff(e.steps[STATE][:, 0]) for e in open_dataset("own")]
    write_dataset(Dataset([e.replace({"good": (p > p.mean()).astype(float)})
                           for e, p in zip(open_dataset("own"), progress, strict=True)]), "rated.npz", "npz")
    name = "understudy.improve.step_rating:step_rater"
    assert main(["train", name, "rated.npz", "--out", "rater", "--steps", "100", *tiny]) == 0

    def improve(run, out, *args, how="filtered"):
        capsys.readouterr()
        return main(["improve", run, "--with", how, "--rater", "rater", "--rounds", "1", "--episodes", "4", "--steps",
                     "3", "--compare", "10", "--device", "cpu", "--out", out, *args]), *capsys.readouterr()
    refused(improve("run", "no", how="dsrl"), "use --with filtered")
    status, _, err = improve("run", "better")
    assert status == 0 and "learned: the steps that rater scores above 0.5" in err, err
    policy = load_policy("rater")
    own = open_dataset("better/collection/000000/episodes.npz")
    for e in own:
        np.testing.assert_array_equal(e.steps["marked"], step_scores(policy, e) > 0.5)
    status, _, err = improve("better", "again")  # what the first rounds marked stays so
    assert status == 0, err
    plain = without_added_parts(Method.load("again"))
    assert plain.transforms == () and plain.learner.sampling_column is None
