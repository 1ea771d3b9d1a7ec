"""Scores of doubt, conformal thresholds and failure detectors."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from understudy.core import Feature, Unsupported, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.toys.fork import Fork
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.failure_detection import (
    ConformalThreshold,
    Detection,
    FailureDetector,
    ObservationNovelty,
    PolicyLoss,
    RecordedEnv,
    SampleSpread,
    conformal_quantile,
    needed_scores,
    with_doubt,
)
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.doubt import DOUBT
from understudy.execute.planners import FixedBatch
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.gmm import GMM
from understudy.heads.likelihood.regression import Regression
from understudy.policy import Planner, Policy, PolicyConfig


class Listed(Planner):
    """Its plan is its noise, which is a list of numbers in turn, at every step of a chunk and component."""

    inputs, action_dim, device = ("observation.state",), 2, torch.device("cpu")
    features = {"observation.state": Feature("float32", (2,)), "action": Feature("float32", (2,))}
    window = Window(n_obs_steps=1, horizon=3)
    action_scale = torch.tensor([1.0, 10.0])
    numbers = torch.tensor([1.0, 2.0, 3.0, 6.0])

    def noise(self, key, count):
        return self.numbers[count % 4]

    def plan(self, obs, noise, guides=()):
        return noise.view(-1, 1, 1).expand(-1, 3, 2) * torch.tensor([1.0, 10.0])


def episode(doubt, success: bool) -> Episode:
    return Episode({DOUBT: np.asarray(doubt, np.float32)}, {"success": success, "env": "fork"})


def demonstrations(rows: int = 6) -> Dataset:
    env = make("fork", rows)
    return rollout(env.expert(), env, 6, recording_seed(0))


def test_the_quantile_is_the_kth_smallest_and_a_further_score_is_above_it_at_the_rate():
    assert conformal_quantile([9, 1, 5, 3, 7, 2, 8, 4, 6], 0.1) == 9  # k = ceil(10 * 0.9) = 9 of 9
    assert conformal_quantile(range(1, 20), 0.1) == 18  # k = 18 of 19
    assert conformal_quantile(range(1, 21), 0.1) == 19  # k = ceil(18.9) = 19 of 20
    assert conformal_quantile(range(1, 5), 0.5) == 3  # k = ceil(2.5)
    orders = list(permutations(range(5)))  # all orders of five scores are equally likely
    above = [order[-1] > conformal_quantile(order[:-1], 0.4) for order in orders]
    assert sum(above) / len(orders) == 0.4


def test_too_few_rollouts_are_refused_with_the_number_that_is_needed():
    assert [needed_scores(rate) for rate in (0.5, 0.1, 0.05, 0.01, 0.3)] == [1, 9, 19, 99, 3]
    for rate in (0.5, 0.1, 0.05, 0.01, 0.3):
        n = needed_scores(rate)
        assert conformal_quantile(range(n), rate) == n - 1
        with pytest.raises(UserError, match=f"at least {n} rollouts of the kind .* and there are {n - 1}"):
            conformal_quantile(range(n - 1), rate)
    few = Dataset([episode([1.0], False)] * 8 + [episode([1.0], True)] * 92)
    with pytest.raises(UserError, match="needs at least 9 failures, and 8 of 100 rollouts failed") as error:
        ConformalThreshold(SampleSpread(), 0.1).fit(few)
    assert error.value.hint == "such as --episodes 226, or a larger --rate"  # twice 9 / 0.08
    with pytest.raises(UserError, match="8 of 100 rollouts failed") as error:
        ConformalThreshold(SampleSpread(), 0.1).fit(few, is_recorded=True)
    assert str(error.value.hint).startswith("record more, such as 226 in all (understudy act RUN --robot TYPE --out")
    ConformalThreshold(SampleSpread(), 0.1, "false-alarms").fit(few)
    with pytest.raises(UserError, match="0 of 3 rollouts succeeded"):
        ConformalThreshold(SampleSpread(), 0.1, "false-alarms").fit(few.select(range(3)))


def test_the_threshold_misses_at_most_the_rate_of_the_failures_and_ties_are_on_the_safe_side():
    failed = [episode([0.0, largest, 0.5], False) for largest in range(1, 20)]  # the largest doubts are 1 to 19
    passed = [episode([0.25, largest / 10], True) for largest in range(1, 20)]
    misses = ConformalThreshold(SampleSpread(), 0.1).fit(Dataset(failed + passed))
    assert misses.threshold == 2 and misses.n_calibration == 19  # the 18th largest
    result = misses.evaluate(Dataset(failed + passed))
    assert (result.missed, result.n_failures, result.false_alarms, result.n_successes) == (1, 19, 0, 19)
    assert result.alarm_time == pytest.approx(1 / 3)
    alarms = ConformalThreshold(SampleSpread(), 0.1, "false-alarms").fit(Dataset(failed + passed))
    assert alarms.evaluate(Dataset(passed)).false_alarms == 1  # 1.9, and not 1.8 itself
    equal = Dataset([episode([1.0], False)] * 9 + [episode([1.0], True)] * 9)
    for error in ("missed-failures", "false-alarms"):
        detector = ConformalThreshold(SampleSpread(), 0.1, error).fit(equal)
        assert detector.evaluate(equal).rate_of(error)[0] == 0
    assert misses.first_alarm(episode([0, 1, 2, 3], False)) == 2 and misses.first_alarm(episode([1.9], False)) is None


def test_a_detector_is_read_as_it_was_written_and_success_must_be_known(tmp_path):
    data = Dataset([episode([float(i)], False) for i in range(9)])
    detector = replace(ConformalThreshold(ObservationNovelty(), 0.1).fit(data, "digest"), options=("--executor", "x"))
    detector.save(tmp_path / "detector.json")
    assert FailureDetector.read(tmp_path / "detector.json") == detector
    with pytest.raises(UserError, match="no failure detector"):
        FailureDetector.read(tmp_path / "other" / "detector.json")
    with pytest.raises(UserError, match="the environment defines no success"):
        detector.evaluate(Dataset([Episode({DOUBT: np.zeros(2)}, {"env": "x"})]))


def test_a_detection_says_rates_with_exact_intervals():
    detector = ConformalThreshold(SampleSpread(), 0.1).fit(Dataset([episode([1.0], False)] * 9))
    result = Detection(0, 10, 3, 0, None)
    assert "0 of 10 failures without an alarm (0.0%, 95% interval 0.0% to 30.8%); the stated rate is 10.0%." in (
        result.describe(detector))  # 1 - 0.025 ** (1 / 10)
    document = result.to_json(detector)
    assert document["missed"]["high"] == pytest.approx(1 - 0.025**0.1)
    assert document["false_alarms"]["estimate"] is None


def test_the_spread_is_the_standard_deviation_of_samples_in_units_of_the_codec():
    measure = SampleSpread(n_samples=4).build(Listed(), demonstrations())
    obs = {"observation.state": torch.zeros(2, 1, 2)}
    doubt = measure(obs, torch.zeros(2, dtype=torch.int64), torch.tensor([0, 3]))
    assert torch.allclose(doubt, torch.tensor([1.0, 2.0, 3.0, 6.0]).std().expand(2))


def test_the_novelty_is_the_distance_from_the_nearest_demonstrated_observation():
    points = np.array([[-1.0, -10.0], [1.0, 10.0]], np.float32)  # their standard deviations are 1 and 10
    data = Dataset([Episode({"observation.state": points, "action": np.zeros((2, 2), np.float32)})])
    measure = ObservationNovelty().build(Listed(), data)
    obs = {"observation.state": torch.tensor([[[9.0, 9.0], [1.0, 10.0]], [[0.0, 0.0], [3.0, 10.0]]])}  # the last counts
    doubt = measure(obs, torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    assert torch.allclose(doubt, torch.tensor([0.0, 2 / 2**0.5]), atol=1e-5)
    with pytest.raises(Unsupported, match="the policy reads no numbers"):
        ObservationNovelty().build(Listed(), Dataset([Episode({"action": points})]))


def test_what_was_not_sensed_has_a_distance_as_0_as_the_policy_reads_it():
    state = "observation.state"
    points = np.array([[-1, -10], [1, 10], [np.nan, 5], [0, 0]], np.float32)
    is_sensed = np.array([True, True, False, True])
    data = Dataset([Episode({state: points, state + "?": is_sensed, "action": np.zeros((4, 2), np.float32)})])
    planner = Listed()
    planner.inputs = (state, state + "?")
    obs = {state: torch.tensor([[[np.nan, 3.0]], [[1.0, 1e6]]]), state + "?": torch.tensor([[False], [True]])}
    doubt = ObservationNovelty().build(planner, data)(obs, torch.zeros(2), torch.zeros(2))
    assert doubt[0] == 0 and doubt[1] > 1e3


def policy(head) -> Policy:
    torch.manual_seed(0)
    data = demonstrations()
    return Policy(PolicyConfig(head, window=Window(n_obs_steps=1, horizon=3)), data.features()).fit_statistics(
        data).eval()


def test_the_loss_of_a_likelihood_is_the_negative_log_density_of_the_own_plan():
    gmm = policy(GMM(joint=False, temperature=1.0))
    obs = {n: torch.randn(4, 1, *gmm.features[n].shape) for n in gmm.inputs}
    key, count = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():
        doubt = PolicyLoss().build(gmm, demonstrations())(obs, key, count)
        coded = gmm.encode(gmm.plan(obs, gmm.noise(key, count)), obs)
        density = gmm.log_prob(gmm.context(obs), coded, torch.ones(4, 3, dtype=torch.bool))
    assert torch.allclose(doubt, -density.mean(1), atol=1e-4)


def test_deterministic_policies_have_neither_spread_nor_a_loss():
    for score in (SampleSpread(), PolicyLoss()):
        with pytest.raises(Unsupported, match="plans without randomness"):
            score.build(policy(Regression()), demonstrations())


@pytest.mark.parametrize("score", [SampleSpread(2), ObservationNovelty(), PolicyLoss(2)],
                         ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("head", [Flow(2), GMM()], ids=lambda h: type(h).__name__)
def test_doubt_changes_no_action_and_does_not_depend_on_the_number_of_rows(score, head):
    actor, data = PolicyActor(FixedBatch(policy(head), 4), RecedingHorizon(2)), demonstrations()
    plain = rollout(actor, Fork(5, limit=6), 5)
    doubts = {}
    for rows in (2, 5):
        episodes = rollout(with_doubt(actor, score, data), Fork(rows, limit=6), 5)
        for one, other in zip(plain, episodes, strict=True):
            assert np.array_equal(one.steps["action"], other.steps["action"])
        doubts[rows] = np.concatenate([e.steps[DOUBT] for e in episodes])
    assert np.array_equal(doubts[2], doubts[5]) and np.isfinite(doubts[2]).all() and doubts[2].std() > 0


@pytest.mark.parametrize("score", [SampleSpread(2), ObservationNovelty(), PolicyLoss(2)],
                         ids=lambda s: type(s).__name__)
def test_recorded_episodes_have_the_doubt_that_was_measured_while_acting(score):
    actor = with_doubt(PolicyActor(policy(Flow(2)), RecedingHorizon(2)), score, demonstrations())
    acted = rollout(actor, Fork(1, limit=6), 3)
    assert len({len(e) for e in acted}) == 1 and acted[0].steps["observation.state"].shape[0] == 7
    recorded = acted.map(lambda e: replace(e.replace({DOUBT: None}), metadata={"success": e.metadata["number"] == 1}))
    again = rollout(actor, RecordedEnv(recorded, "recorded"), 3)
    for one, other in zip(acted, again, strict=True):
        assert np.array_equal(one.steps[DOUBT], other.steps[DOUBT]) and len(other) == 6
    assert [e.metadata["success"] for e in again] == [False, True, False]
