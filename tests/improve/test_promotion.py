"""The best of several rounds, compared on the same starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures.collections import Constant, fork, method, rounds, run

from understudy.evaluate import stats
from understudy.evaluate.evaluation import Evaluation, evaluation_of, recording_seed, validation_seed
from understudy.evaluate.rollout import rollout
from understudy.improve.collection import RolloutCollector
from understudy.improve.promotion import Promotion, best_checkpoint, compared_checkpoints
from understudy.learn.run import Run


class Scripted(Promotion):
    """Rounds whose outcomes are known."""

    outcomes: list

    def evaluate(self, actor) -> Evaluation:
        data = rollout(Constant(0.0), fork(4), len(self.outcomes[0]), validation_seed(self.seed))
        given = iter(self.outcomes.pop(0))

        def judged(episode):  # "." if the environment has not reported any success
            if (outcome := next(given)) == ".":
                return type(episode)(episode.steps, {k: v for k, v in episode.metadata.items() if k != "success"})
            return type(episode)(episode.steps, {**episode.metadata, "success": outcome == "1"})
        return evaluation_of(type(data)([judged(e) for e in data], data.metadata))


@pytest.fixture
def compared(tmp_path):
    """compared(*outcomes) -> the lines of the metrics of a run whose rounds had these outcomes."""
    env = fork(6)
    demos = rollout(env.expert(), env, 6, recording_seed(0))

    def train(*outcomes, **fields):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        score = Scripted(fork(4), len(outcomes[0]), 0, Run(out))
        object.__setattr__(score, "outcomes", list(outcomes))
        made = method(rounds(len(outcomes) - 1, compare_rounds=True, initial_updates=0, **fields))
        run(out, made, demos, score=score, val_fraction=0)
        return out, compared_checkpoints(Run(out))
    return train


def test_a_round_is_promoted_if_it_does_at_least_as_well_as_the_best_before_it(compared):
    out, lines = compared("1100000000", "1010000000", "1110000000", "1100000000", "0000011100")
    assert [line["promoted"] for line in lines] == [True, True, True, False, True]
    steps = [line["step"] for line in lines]
    assert [line.get("against") for line in lines] == [None, steps[0], steps[1], steps[2], steps[2]]
    assert [line.get("gain") for line in lines[1:]] == pytest.approx([0, 0.1, -0.1, 0])
    for line, (only, other) in zip(lines[1:], [(1, 1), (1, 0), (0, 1), (3, 3)], strict=True):
        interval = stats.tango(only, other, 10, 0.95)
        assert (line["gain/low"], line["gain/high"]) == (interval.low, interval.high)
    assert best_checkpoint(lines)["step"] == steps[4]
    assert Run(out).named_checkpoints()["best"] == f"checkpoints/{steps[4]:06d}"


def test_the_base_stays_the_best_if_no_round_reaches_it(compared):
    out, lines = compared("1110", "1100", "0000")
    assert lines[0]["step"] == 0 and [line["against"] for line in lines[1:]] == [0, 0]
    assert Run(out).named_checkpoints()["best"] == "checkpoints/000000"
    assert Run(out).saved_steps() == [0, lines[-1]["step"]]


def test_rounds_before_an_environment_first_reported_success_failed(compared):
    """Returns were compared with rates, or ended in a TypeError."""
    out, lines = compared("....", "1000", "0110", "....")
    assert [line["score"] for line in lines] == [0, 0.25, 0.5, 0]
    assert [line["gain"] for line in lines[1:]] == pytest.approx([0.25, 0.25, -0.5])
    assert [line["outcomes"] for line in lines[::3]] == [[False] * 4] * 2
    assert lines[0]["score/high"] == stats.clopper_pearson(0, 4).high
    assert Run(out).named_checkpoints()["best"] == f"checkpoints/{lines[2]['step']:06d}"


def test_outcomes_are_those_of_starts_that_are_not_collected(compared):
    _, lines = compared("10", "01")
    assert all(len(line["outcomes"]) == 2 for line in lines)
    assert validation_seed(0) != recording_seed(0)
    assert np.isfinite([line["score/low"] for line in lines]).all()


@pytest.mark.parametrize(("collect_with", "is_best"), [("best", True), ("last", False)])
def test_the_best_policy_can_collect_after_a_round_that_made_it_worse(collect_with, is_best, compared, monkeypatch):
    collect, weights = RolloutCollector.collect, []

    def spy(self, actor, number, training):
        weights.append(torch.cat([p.flatten() for p in actor.planner.planner.parameters()]).clone())
        return collect(self, actor, number, training)
    monkeypatch.setattr(RolloutCollector, "collect", spy)
    compared("1100", "1111", "0000", "0000", collect_with=collect_with)
    base, promoted, third = weights
    assert torch.equal(promoted, third) is is_best and not torch.equal(base, promoted)
