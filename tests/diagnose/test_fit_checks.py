"""Fit, checkpoint, statistics and trials, with constructed numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.runs import made_up, plain

from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.diagnose import fit_checks
from understudy.diagnose.base import ORDER, Outcome, RunDiagnosis, RunFinding, sort_findings
from understudy.diagnose.fit_checks import ChunkTrials, FitErrors
from understudy.evaluate.stats import clopper_pearson
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.learn.training_curves import HELD_OUT_ERROR, SCORE, Curve, TrainingCurves
from understudy.policy import Policy


def codes(findings):
    return [(f.code, f.level) for f in findings]


@pytest.mark.parametrize(("errors", "expected"), [
    (FitErrors(0.1, 0.3), []), (FitErrors(0.9, 0.95), [("underfit", "fault")]),
    (FitErrors(0.05, 1.1), [("overfit", "fault")]), (FitErrors(0.05, 0.9), [("overfit", "note")]),
    (FitErrors(0.5, 0.8), []),
    (FitErrors(0.1, None, 1.0, 2.0), [("last-action", "note")]), (FitErrors(0.1, None, 2.0, 1.0), [])])
def test_fit(errors, expected):
    assert codes(fit_checks.check_fit(errors, True)) == expected
    assert all(level == "note" for _, level in codes(fit_checks.check_fit(errors, False)))


def test_the_data_of_others_are_not_those_that_it_was_trained_on():
    (finding,) = fit_checks.check_fit(FitErrors(0.9, None), True, is_own=False)
    assert "which it was not trained on" in finding.message and finding.remedy.startswith("look for what differs")


def curves(values):
    found = {} if not values else {HELD_OUT_ERROR: Curve(tuple(100 * (i + 1) for i in range(len(values))), values)}
    best = 100 * (1 + int(np.argmin(values))) if values else None
    return TrainingCurves(Path("run"), found, 100 * len(values), best, 1.0, "")


def test_checkpoint():
    assert not list(fit_checks.check_checkpoint(curves((2.0, 1.0, 1.01)), 300))
    finding, = fit_checks.check_checkpoint(curves((2.0, 1.0, 1.8)), 300)
    assert (finding.code, finding.level, finding.value) == ("wrong-checkpoint", "fault", pytest.approx(1.8))
    assert finding.command[1] == "RUN/best"
    scored, = fit_checks.check_checkpoint(replace(curves((2.0, 1.0, 1.8)), best=300), 300)  # update 200 was not kept
    assert scored.command == ("plot", "RUN") and "not kept" in scored.remedy
    note, = fit_checks.check_checkpoint(curves((2.0, 1.0, 1.2)), 300)
    assert (note.code, note.level) == ("wrong-checkpoint", "note") and note.value > note.healthy[1]
    assert codes(fit_checks.check_checkpoint(curves((2.0, 1.0)), 20)) == [("wrong-checkpoint", "fault")]
    assert codes(fit_checks.check_checkpoint(curves(()), 20)) == [("no-held-out", "note")]
    practised = replace(curves(()), curves={SCORE: Curve((20,), (0.5,))})
    assert not list(fit_checks.check_checkpoint(practised, 20))


def policy(data, codec=Normalizer()):  # noqa: B008
    return Policy(replace(plain().policy, codec=codec), data.features()).fit_statistics(data)


def test_statistics_of_the_data_and_of_others():
    data = made_up()
    trained = policy(data)
    assert not list(fit_checks.check_statistics(trained, data))
    transform = trained.codec.obs_transforms[0]
    transform.set_statistics(transform.offset, transform.scale * torch.tensor([1.0, 57.3, 1.0]))
    finding, = fit_checks.check_statistics(trained, data)
    assert finding.code == "wrong-statistics" and finding.value == pytest.approx(57.3, rel=1e-4)
    assert "observation.state[1]" in finding.message


def test_relative_actions_with_absolute_statistics():
    data = made_up()
    relative = policy(data, Normalizer(relative="observation.state", components=((0, 0), (1, 1))))
    assert not list(fit_checks.check_statistics(relative, data))
    absolute = policy(data).codec.action_transform
    relative.codec.action_transform.set_statistics(absolute.offset, absolute.scale)
    finding, = fit_checks.check_statistics(relative, data)
    assert (finding.code, finding.level) == ("relative-statistics", "fault")


def test_a_component_with_almost_no_spread():
    rng = np.random.default_rng(0)

    def episodes(size):
        return made_up().map(lambda e: e.replace({"observation.state": np.column_stack([
            e.steps["observation.state"][:, :2], size * rng.normal(size=len(e) + 1)]).astype(np.float32)}))
    trained = policy(episodes(2e-4))
    assert not list(fit_checks.check_tiny_spread(trained, episodes(2e-4)))
    finding, = fit_checks.check_tiny_spread(trained, episodes(1.0))
    assert (finding.code, finding.level) == ("tiny-spread", "fault")
    assert finding.value > 1000 and "observation.state[2]" in finding.message
    finding, = fit_checks.check_tiny_spread(trained, episodes(4e-3))
    assert finding.level == "note" and 20 < finding.value < 100


class Exact(Policy):
    """A policy whose plan is what the data have: tanh of the first two components of the state."""

    def plan(self, obs, noise, guides=()):
        return torch.tanh(obs["observation.state"][:, -1:, :2]).expand(-1, self.window.horizon, -1)


def test_an_actor_that_reads_something_else():
    data = made_up(12)
    config = plain().policy
    exact = Exact(config, data.features()).fit_statistics(data)
    actor = PolicyActor(exact, RecedingHorizon(1))
    assert not list(fit_checks.check_serving(exact, actor, data))

    class Scaled(PolicyActor):
        def next_windows(self, obs, history):
            return super().next_windows({k: -v for k, v in obs.items()}, history)
    finding, = fit_checks.check_serving(exact, Scaled(exact, RecedingHorizon(1)), data)
    assert (finding.code, finding.level) == ("serving-skew", "fault") and finding.value > 2


def test_components_that_are_treated_as_constant():
    data = made_up()
    trained = policy(data)
    assert not list(fit_checks.check_constants(trained, data))
    transform = trained.codec.action_transform
    transform.set_statistics(transform.offset, transform.scale * torch.tensor([1.0, 0.0]))
    finding, = fit_checks.check_constants(trained, data)
    assert (finding.code, finding.level) == ("treated-as-constant", "fault")
    assert finding.where.feature.startswith("action[") and "never predicts another value" in finding.message


def ending(first, n=20, length=5):
    """Episodes, of which a fraction succeeds in the first step."""
    return Dataset([Episode({"action": np.zeros((length, 1)), "next.success": np.arange(length) >= (
        0 if i < first * n else length - 1)}) for i in range(n)])


def test_episodes_that_are_decided_at_the_start():
    finding, = fit_checks.check_starts_decide(ending(0), ending(0.5), ending(0.4))
    assert (finding.code, finding.level, finding.value) == ("decided-at-the-start", "warning", 0.5)
    assert "with other actions 40% do" in finding.message
    for recorded, own, others in ((0, 0.2, 0.5), (0.4, 0.5, 0.5), (0, 0.5, 0.1)):  # the policy alone decides
        assert not list(fit_checks.check_starts_decide(ending(recorded), ending(own), ending(others)))
    assert list(fit_checks.check_starts_decide(ending(0), ending(0.5), None))


@pytest.mark.parametrize(("successes", "replanned", "levels"), [
    (2, 12, ["fault"]), (2, 9, ["warning"]), (2, 7, ["warning"]), (2, 6, []), (2, 2, []), (12, 2, []),
    (0, 8, ["fault"])])
def test_plans_of_which_fewer_steps_are_executed(successes, replanned, levels):
    """By the sign test: 8 of 8 pairs have p = 0.004, 7 of 7 have 0.008, 5 of 5 have 0.03, and 4 of 4 have 0.06."""
    first, second = ([i < n for i in range(20)] for n in (successes, replanned))
    findings = list(fit_checks.check_chunks([ChunkTrials(1, first, second)], 8))
    assert [(f.code, f.level, f.value) for f in findings] == [("chunk-too-long", level, 8) for level in levels]
    assert not list(fit_checks.check_chunks([], 8))


def test_the_number_of_executed_steps_that_helps_most():
    """In gusts, a quarter of a plan was better than one step of it, which was all that was tried."""
    failed = [False] * 20
    trials = [ChunkTrials(steps, failed, [i < n for i in range(20)]) for steps, n in ((1, 2), (5, 8))]
    finding, = fit_checks.check_chunks(trials, 20)
    assert (finding.level, finding.healthy) == ("warning", (1, 5))  # p = 0.008 for two numbers
    assert "If it executes 5, 8 of the same do" in finding.message and finding.command[-1] == "5"
    assert not list(fit_checks.check_chunks([replace(trials[1], shorter=[i < 5 for i in range(20)]), trials[0]], 20))


def test_long_plans_are_named_before_their_error():
    """Chunks of 40 in gusts were called underfit."""
    chunk, = fit_checks.check_chunks([ChunkTrials(5, [False] * 20, [i < 8 for i in range(20)])], 20)
    underfit, = fit_checks.check_fit(FitErrors(0.9, 0.95), True)
    for findings, expected in (([underfit, chunk], ["chunk-too-long", "underfit"]), ([underfit], ["underfit"])):
        judged = sort_findings(fit_checks.judge_by_outcome(findings, Outcome(0, 20)))
        assert [f.code for f in judged] == expected
    assert judged[0].level == "fault"


@pytest.mark.parametrize(("errors", "n_successes", "codes_and_levels"), [
    (FitErrors(0.05, None), 5, [("overfit", "warning")]), (FitErrors(0.05, None), 15, []),
    (FitErrors(0.05, 0.2), 5, []), (FitErrors(0.5, None), 5, [])])
def test_without_held_out_episodes_trials_say_whether_it_generalizes(errors, n_successes, codes_and_levels):
    """Nothing was said of 3 demonstrations without a held-out one."""
    outcome = Outcome(n_successes, 20)
    assert codes(fit_checks.check_fit(errors, True, outcome=outcome)) == codes_and_levels
    assert not list(fit_checks.check_fit(errors, False, outcome=outcome))
    assert not list(fit_checks.check_fit(errors, True, is_own=False, outcome=outcome))


def test_a_policy_that_was_not_shown_all_windows():
    findings = list(fit_checks.check_fit(FitErrors(0.5, 0.5), True, passes=0.3))
    assert [(f.code, f.level, f.value) for f in findings] == [("underfit", "warning", 0.3)]
    for errors, passes in (((0.2, 0.2), 0.3), ((0.5, 0.5), 1.0)):
        assert not list(fit_checks.check_fit(FitErrors(*errors), True, passes=passes))


def test_trials():
    finding, = fit_checks.check_trials([True] * 10 + [False] * 10)
    assert finding.level == "note" and "27% and 73%" in finding.message  # Clopper-Pearson of 10 in 20
    assert not list(fit_checks.check_trials([True] * 100))


def test_success_far_below_that_of_an_evaluation_of_the_same_checkpoint():
    def evaluation(successes, checkpoint="000600", **more):
        interval = clopper_pearson(successes, 50)
        return {"where": "fork", "checkpoint": checkpoint, "episodes": 50, "successes": successes,
                "success": {"estimate": interval.estimate, "low": interval.low, "high": interval.high}, **more}
    few = [True] * 2 + [False] * 18
    finding, = fit_checks.check_success(few, [evaluation(26)], 600)
    assert (finding.code, finding.level, finding.value) == ("success-drop", "warning", 0.1)
    assert "2 of 20 episodes succeeded, and 26 of 50 in an evaluation in fork" in finding.message
    others = [evaluation(26, "000300"), evaluation(26, condition=["goal"]), {"where": "data", "checkpoint": "000600"},
              {**evaluation(26), "success": None}]
    assert not list(fit_checks.check_success(few, others, 600))
    assert not list(fit_checks.check_success(few, [evaluation(26), evaluation(9)], 600))  # the latest counts
    assert not list(fit_checks.check_success([True] * 12 + [False] * 8, [evaluation(26)], 600))


def test_faults_come_first_and_causes_before_consequences():
    def finding(code, level):
        return RunFinding(code, level, "", 0, (0, 1), "")
    mixed = [finding("trials", "note"), finding("underfit", "fault"), finding("novel-states", "warning"),
             finding("observation-units", "fault")]
    assert [f.code for f in sort_findings(mixed)] == ["observation-units", "underfit", "novel-states", "trials"]
    assert len(set(ORDER)) == len(ORDER)


def test_faults_explain_failures():
    """A large error is a warning from half of the trials on, and nothing is a fault of a policy that does as shown."""
    fit = [*fit_checks.check_fit(FitErrors(0.9, 0.95), True), *fit_checks.check_fit(FitErrors(0.05, 1.1), True)]
    findings = [*fit, replace(fit[0], code="sign-flip"), replace(fit[0], code="trials", level="note")]
    for n_successes, levels in ((9, ["fault", "fault", "fault", "note"]), (10, ["warning", "warning", "fault", "note"]),
                                (16, ["note", "note", "fault", "note"]), (17, ["note", "note", "warning", "note"]),
                                (20, ["note", "note", "warning", "note"])):
        judged = fit_checks.judge_by_outcome(findings, Outcome(n_successes, 20, None, (80, 80)))
        assert [f.level for f in judged] == levels  # 16 of 20 is at most 94 %, and 80 of 80 at least 95 %
        assert [f.code for f in judged] == ["underfit", "overfit", "sign-flip", "trials"]


@pytest.mark.parametrize(("outcome", "ok"), [
    (Outcome(1, 20), False), (Outcome(9, 20), False), (Outcome(10, 20), True), (Outcome(16, 20, None, (80, 80)), False),
    (Outcome(17, 20, None, (80, 80)), True), (Outcome(100, 200, "fork", (150, 200)), False), (None, True)])
@pytest.mark.parametrize("warns", [False, True])
def test_the_headline_follows_success(outcome, ok, warns):
    """Of a policy with 2 % success it was said that no fault was found."""
    warnings = (RunFinding("novel-states", "warning", "", 0, (0, 1), ""),) * warns
    result = RunDiagnosis(warnings, ("motion", "starts"), (), outcome)
    assert result.ok == ok and bool(result.next_steps) != ok and result.to_json()["headline"] == result.headline
    assert ("No fault" in result.headline) == ok and ("novel-states" in result.headline) == warns
    if not ok:
        assert f"succeeds in {outcome.successes} of {outcome.episodes} episodes" in result.headline
        assert "Nothing unusual was found in: motion, starts." in result.headline
    assert ("is not known" in result.headline) == (outcome is None)
