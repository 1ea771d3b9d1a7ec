"""Judging on recorded episodes, with policies whose every figure is known in closed form."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from understudy.cli import main
from understudy.core import Feature
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode, episode_fingerprints
from understudy.data.formats import write_dataset
from understudy.data.window import Window
from understudy.evaluate.action_prediction import episodes_to_evaluate, evaluate_action_prediction
from understudy.evaluate.report import write_prediction_report
from understudy.heads.base import Head
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.cvae import CVAE
from understudy.heads.likelihood.gmm import GMM
from understudy.learn.method import training_data
from understudy.learn.validation import Validation, target_scale
from understudy.methods import find_method
from understudy.policy import Policy, PolicyConfig


@dataclass(frozen=True)
class Draws(Head):
    """Says `at + std * noise` whatever it sees; with std 0 it is certain."""

    at: float = 0.0
    std: float = 1.0

    def noise(self, horizon, coded_dim):
        return (horizon, coded_dim) if self.std else (horizon, 0)

    def build(self, trunk, coded_dim, spec):
        net = nn.Module()
        net.dim = coded_dim
        return net

    def loss(self, net, context, action, mask, rng):
        return (action - self.at).square().mean(-1)

    def sample(self, net, context, noise):
        if self.std:
            return self.at + self.std * noise
        return self.at + torch.zeros(*noise.shape[:2], net.dim)


def policy(data, head, horizon=4):
    return Policy(
        PolicyConfig(head, codec=Normalizer(target="identity"), window=Window(1, horizon)), data.features()
    ).fit_statistics(data)


def normal_data(episodes=12, steps=60, std=(1.0, 3.0)):
    rng = np.random.default_rng(0)
    feature = Feature("float32", (2,), names=("lift", "turn"), unit="m")
    return Dataset([Episode({"observation.state": rng.normal(size=(steps, 3)).astype(np.float32),
                             "action": (rng.normal(size=(steps, 2)) * std).astype(np.float32)},
                            schema={"action": feature}) for _ in range(episodes)], {"name": "noise"})


def test_a_constant_answer_has_the_errors_that_arithmetic_says():
    data = normal_data()
    prediction = evaluate_action_prediction(policy(data, Draws(0.5, 0.0), 1), data, validation=Validation(10**6, 2))
    action = np.concatenate([e.steps["action"] for e in data]).astype(float)
    scale = action.std(0)
    each = np.sqrt((((0.5 - action) / scale) ** 2).mean(1))
    assert prediction.windows == len(action) and prediction.samples == 1
    assert (
        prediction.energy_score.estimate
        == prediction.mean_error.estimate
        == prediction.best_error.estimate
        == pytest.approx(each.mean(), rel=1e-5)
    )
    assert prediction.baseline_error == pytest.approx(
        np.sqrt((((action.mean(0) - action) / scale) ** 2).mean(1)).mean(), rel=1e-5
    )
    for i, part in enumerate(prediction.by_dimension):
        assert part.error == pytest.approx(np.sqrt(((0.5 - action[:, i]) ** 2).mean()), rel=1e-5) and part.spread == 0
    assert [p.name for p in prediction.by_dimension] == ["lift", "turn"] and prediction.unit == "m"
    third = np.concatenate([e.steps["action"][12:18] for e in data]).astype(float)  # 60 steps in ten parts
    assert prediction.by_time[2].name == "20-30%"
    assert prediction.by_time[2].error == pytest.approx(np.sqrt(((0.5 - third) ** 2).mean()), rel=1e-5)
    assert (
        prediction.coverage is None and prediction.uncertain_steps == ()
        and "cannot say where it is unsure" in prediction.describe()
    )


def test_an_error_of_another_column_is_not_called_one_of_actions(tmp_path):
    data = training_data(normal_data(4, 10), find_method("maskdp"))
    config = PolicyConfig(Draws(), codec=Normalizer(target="identity"), window=Window(), target="joint",
                          inputs=("observation.state",))
    prediction = evaluate_action_prediction(Policy(config, data.features()).fit_statistics(data), data)
    text = f"{prediction.headline()} {prediction.note}"
    assert text.startswith("Values of the column 'joint', and not actions alone, are compared. On ")
    assert "predicted values are off by" in text and "predicted actions" not in text and "cannot be compared" in text
    assert prediction.to_json()["column"] == "joint" and len(prediction.by_component) == 6
    write_prediction_report(prediction, tmp_path / "report.html")
    assert "predicted action" not in (tmp_path / "report.html").read_text()
    actions = evaluate_action_prediction(policy(data, Draws()), data)
    assert actions.headline().startswith("On ") and actions.to_json()["column"] is None


def test_a_head_at_temperature_0_gives_one_answer():
    """It has noise, as the head of ACT has, but its plans do not depend on it."""
    data = normal_data(4, 30)
    for head, samples in ((CVAE(4), 1), (CVAE(4, temperature=1.0), 5), (GMM(2), 5)):
        prediction = evaluate_action_prediction(policy(data, head), data, validation=Validation(8, 5))
        assert prediction.samples == samples and (prediction.coverage is None) == (samples == 1)
        assert ("gives one answer" in prediction.describe()) == (samples == 1)


def test_a_policy_exactly_as_unsure_as_the_data_is_found_to_be():
    data = normal_data(40, 200, (1.0, 1.0))
    right = evaluate_action_prediction(policy(data, Draws(0.0, 1.0), 1), data, validation=Validation(10**6, 9))
    assert right.expected_coverage == pytest.approx(0.8) and right.coverage == pytest.approx(0.8, abs=0.01)
    sure = evaluate_action_prediction(policy(data, Draws(0.0, 0.2), 1), data, validation=Validation(10**6, 9))
    assert sure.coverage < 0.5 and sure.energy_score.estimate > right.energy_score.estimate
    for part in (*right.by_dimension, *right.by_chunk_step, *right.by_time):
        assert part.spread == pytest.approx(1, abs=0.05) and part.error == pytest.approx(math.sqrt(2), abs=0.09)
    assert [p.name for p in evaluate_action_prediction(policy(data, Draws()), data).by_chunk_step] == [
        "0",
        "1",
        "2",
        "3",
    ]


def test_it_is_the_validation_error_with_an_interval_over_episodes():
    data = normal_data()
    p, validation = policy(data, Draws(0.3, 0.7)), Validation(200, 6)
    training, held_out = data.select(range(6)), [6, 7, 8, 9, 10, 11]
    prediction = evaluate_action_prediction(p, data, held_out, "held out", validation=validation)
    validated = validation.evaluate(p, data.select(held_out), target_scale(training, "action"))
    for name, field in (("energy", "energy_score"), ("mean", "mean_error"), ("best", "best_error")):
        assert getattr(prediction, field).estimate == pytest.approx(validated[name], rel=1e-6)
    assert prediction.energy_score.low < prediction.energy_score.estimate < prediction.energy_score.high
    assert prediction.episodes == (6, 7, 8, 9, 10, 11) and prediction.steps == 360
    assert "6 episodes that it was not trained on" in prediction.describe()
    assert "not a success rate" in prediction.describe()


def test_what_lies_beyond_the_end_does_not_count():
    data = normal_data(episodes=3, steps=5)
    short = evaluate_action_prediction(policy(data, Draws(0.5, 0.0), 50), data, validation=Validation(10**6, 2))
    assert len(short.by_chunk_step) == 5  # no window has a sixth step
    ahead = np.concatenate([e.steps["action"][4:] for e in data]).astype(float)
    assert short.by_chunk_step[4].error == pytest.approx(np.sqrt(((0.5 - ahead) ** 2).mean()), rel=1e-5)


def test_windows_beyond_the_end_altogether_are_no_windows():
    """Counted with an error of 0, they would make every policy look better."""
    data = normal_data(episodes=3, steps=5)
    late = Policy(
        PolicyConfig(Draws(0.5, 0.0), codec=Normalizer(target="identity"), window=Window(1, 1, action_offset=2)),
        data.features(),
    ).fit_statistics(data)
    errors, validation = evaluate_action_prediction(late, data, validation=Validation(10**6, 2)), Validation(10**6, 2)
    assert errors.windows == 3 * 3
    assert errors.energy_score.estimate == pytest.approx(
        validation.evaluate(late, data, target_scale(data, "action"))["energy"]
    )


@dataclass(frozen=True)
class Unsteady(Draws):
    """Unsure only where the first number it sees is positive."""

    def sample(self, net, context, noise):
        return noise * (context.flat()[:, :1] > 0).float().unsqueeze(-1)


def test_it_says_where_it_is_unsure():
    from understudy.nets.encoders import ConcatEncoder

    rng = np.random.default_rng(1)
    observations = -np.ones((4, 40, 1), np.float32)
    observations[2, 17] = 1.0
    data = Dataset([Episode({"observation.state": s, "action": rng.normal(size=(40, 1)).astype(np.float32)})
                    for s in observations])
    recipe = PolicyConfig(
        Unsteady(), encoder=ConcatEncoder(), codec=Normalizer(obs="identity", target="identity"), window=Window(1, 2)
    )
    prediction = evaluate_action_prediction(
        Policy(recipe, data.features()).fit_statistics(data), data, [1, 2, 3], validation=Validation(10**6, 8)
    )
    assert (prediction.uncertain_steps[0].episode,
            prediction.uncertain_steps[0].step) == (2, 17) and prediction.uncertain_steps[
        1
    ].spread == 0
    assert prediction.by_time[4].spread > 0 and prediction.by_time[0].spread == 0
    assert "least sure in episode 2 at step 17" in prediction.describe()


def test_fans_are_the_plans_over_what_was_recorded():
    data = normal_data(episodes=6)
    p, validation = policy(data, Draws(0.0, 1.0)), Validation(30, 5)
    prediction = evaluate_action_prediction(p, data, [1, 3, 4], validation=validation, n_examples=2)
    assert len(prediction.plan_samples) == 2 and {f.episode for f in prediction.plan_samples} <= {1, 3, 4}
    for fans in prediction.plan_samples:
        np.testing.assert_array_equal(fans.actions, data[fans.episode].steps["action"])
        assert len(fans.plan_samples) >= 2 and fans.plan_samples[0].step == 0 and fans.plan_samples[-1].step == 59
        assert all(f.plans.shape == (5, 4, 2) for f in fans.plan_samples)


def test_choices_are_judged_by_the_share_of_wrong_ones():
    rng = np.random.default_rng(2)
    data = Dataset([Episode({"observation.state": rng.normal(size=(30, 2)).astype(np.float32),
                             "action": rng.integers(0, 3, (30, 1))}) for _ in range(4)])
    torch.manual_seed(0)
    p = Policy(PolicyConfig(Categorical(temperature=1.0), window=Window(1, 1)), data.features()).fit_statistics(data)
    nn.init.zeros_(list(p.net.parameters())[-1])
    prediction = evaluate_action_prediction(p, data, validation=Validation(10**6, 8))
    assert 0.5 < prediction.by_dimension[0].error < 0.8
    assert 0.5 < prediction.by_dimension[0].spread < 0.8  # of three: about 2/3
    validated = Validation(10**6, 8).evaluate(p, data)
    assert prediction.by_dimension[0].error == pytest.approx(validated["wrong"], rel=1e-6)
    assert prediction.energy_score.estimate == pytest.approx(validated["energy"], rel=1e-6)
    assert prediction.coverage is None


def test_the_json_has_no_numbers_that_are_not_finite():
    data = normal_data(episodes=2)
    prediction = evaluate_action_prediction(policy(data, Draws()), data, [0], "held out", validation=Validation(20, 3))
    doc = json.loads(json.dumps(prediction.to_json(), allow_nan=False))
    assert doc["energy"]["low"] is None and doc["energy"]["estimate"] > 0  # one episode has no spread
    assert doc["success"] is None and doc["origin"] == "held out" and "not a success rate" in doc["note"]
    assert "1 episode that" in prediction.describe() and "interval" not in prediction.describe()


def test_what_was_held_out_is_known_from_the_provenance():
    data, other = normal_data(episodes=6), normal_data(episodes=5)
    data = data.map(lambda e: e.replace({"action": e.steps["action"] + len(e)}))
    provenance = {"episodes": episode_fingerprints(data), "held_out": [2, 5], "left_out": [0]}
    assert episodes_to_evaluate(provenance, data) == ([2, 5], "held out")
    assert episodes_to_evaluate({**provenance, "held_out": []}, data) == ([1, 2, 3, 4, 5], "trained on")
    assert episodes_to_evaluate(provenance, other) == (list(range(5)), "other data")
    assert episodes_to_evaluate({}, data) == (list(range(6)), "other data")
    assert episodes_to_evaluate(provenance, data.select([5, 4, 3])) == ([0], "held out")
    assert episodes_to_evaluate(provenance, data.select([3, 4])) == ([0, 1], "trained on")
    assert episodes_to_evaluate(provenance, data.select([1, 3]) + other[:2]) == ([2, 3], "held out")
    double = Dataset([e.replace({k: np.asarray(v, np.float64) for k, v in e.steps.items()}) for e in data])
    assert episodes_to_evaluate(provenance, double) == ([2, 5], "held out")


def test_a_copy_of_a_training_episode_is_never_called_held_out():
    data = normal_data(episodes=4)
    twice = data + data
    provenance = {"episodes": episode_fingerprints(twice), "held_out": [1, 5, 6], "left_out": []}
    assert episodes_to_evaluate(provenance, twice) == ([1, 5], "held out")  # 6 is equal to 2
    assert episodes_to_evaluate({**provenance, "held_out": [6]}, twice) == (list(range(8)), "trained on")
    assert episodes_to_evaluate({**provenance, "held_out": [5], "left_out": [6]}, data) == ([0, 1, 2, 3], "trained on")


def test_what_an_earlier_run_was_trained_on_is_not_held_out():
    data = normal_data(episodes=6)
    first = {"episodes": episode_fingerprints(data.select([0, 1, 2, 3])), "held_out": [3]}
    second = {"episodes": episode_fingerprints(data.select([0, 1, 4, 5])), "held_out": [1, 3]}
    assert episodes_to_evaluate(second, data) == ([1, 2, 3, 5], "held out")
    assert episodes_to_evaluate(second, data, [first]) == ([3, 5], "held out")
    assert episodes_to_evaluate(second, data.select([1, 2]), [first]) == ([0, 1], "trained on")
    assert episodes_to_evaluate(second, data.select([3, 5]), [first]) == ([0, 1], "other data")


def test_another_data_set_is_not_called_unseen():
    """Pieces of episodes are not recognized."""
    data = normal_data(episodes=6)
    cut = Dataset([e.replace({k: v[1:] for k, v in e.steps.items()}) for e in data.select([3])])
    provenance = {"episodes": episode_fingerprints(data), "held_out": [2, 5]}
    numbers, origin = episodes_to_evaluate(provenance, cut)
    text = evaluate_action_prediction(policy(data, Draws()), cut, numbers, origin).describe()
    assert text.startswith("On 1 episode of a data set that it was not trained on, as far as is recorded (if they are "
                           "cut from its training data, this is not a test), the predicted actions are off by ")


def test_a_converted_copy_is_recognized_and_its_frames_stay_closed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (6, 9, 8, 8, 3), dtype=np.uint8)
    data = Dataset([Episode({"observation.state": rng.normal(size=(9, 2)), "observation.images.top": frames[e],
                             "action": rng.normal(size=(9, 1))}) for e in range(6)], {"fps": 10})
    write_dataset(data, "demos")
    assert main(["train", "bc", "demos", "--out", "run", "--steps", "4", "--save-freq", "4", "--val-fraction", "0.34",
                 "--device", "cpu", "--policy.inputs", "observation.state"]) == 0
    held_out = json.loads(Path("run/checkpoints/000004/provenance.json").read_text())["held_out"]
    for copy in ("copy.npz", "copy.hdf5", "copy.csv"):
        assert main(["convert", "demos", copy]) == 0
        for file in sorted(Path(copy).rglob("*.png"))[1:]:  # the size is read from the first
            file.write_bytes(b"damaged")
        capsys.readouterr()
        assert main(["eval", "run", copy, "--json"]) == 0
        out, err = capsys.readouterr()
        assert (json.loads(out)["origin"], json.loads(out)["episodes"]) == ("held out", held_out), copy
        assert "decoded" not in err


# -- next to predictions without a policy -----------------------------------------------------------------------------


def line_data(columns, episodes=4, unit=None):
    """Episodes whose action columns are the given functions of the step."""
    steps = np.arange(20.0)
    action = np.stack([column(steps) for column in columns], 1).astype(np.float32)
    return Dataset([Episode({"observation.state": np.zeros((20, 1), np.float32), "action": action + e},
                            schema={"action": Feature("float32", action.shape[1:], unit=unit)})
                    for e in range(episodes)])


def test_the_error_stands_next_to_always_the_average_and_the_last_action():
    """A ramp of one per step: the mean is 9.5 + e, the last action is off by 1 but at the first step."""
    data = line_data([lambda t: t], episodes=2, unit="m")
    prediction = evaluate_action_prediction(policy(data, Draws(10.0, 0.0), 1), data, [1],
                                            validation=Validation(10**6, 2))
    steps = np.arange(20) + 1.0
    (error,), (all_, interval) = prediction.by_component, prediction.prediction_error
    assert error.policy == pytest.approx(np.abs(10 - steps).mean()) == interval.estimate == all_.policy
    assert error.average == pytest.approx(np.abs(9.5 - steps).mean())
    assert error.last_action == pytest.approx((19 * 1 + (9.5 - 1)) / 20)
    assert error.r2 == pytest.approx(1 - ((10 - steps) ** 2).sum() / ((9.5 - steps) ** 2).sum())
    text = prediction.describe()
    assert text.startswith("On 1 episode of a data set") and "are off by 5 m on average" in text
    assert f"Always the average: {error.average:.3g} m. Repeating the last one: 1.38 m." in text
    assert "It is no better than repeating the last one." in text
    assert text.index("off by") < text.index("not a success rate") < text.index("energy score")


def test_a_chunk_that_begins_in_the_past_is_compared_from_now_on():
    data = line_data([lambda t: t], episodes=1)
    late = Policy(PolicyConfig(Draws(0.0, 0.0), codec=Normalizer(target="identity"),
                               window=Window(2, 3, action_offset=-1)), data.features()).fit_statistics(data)
    (error,) = evaluate_action_prediction(late, data, validation=Validation(10**6, 2)).by_component
    repeated = [abs(t - 9.5) if not t else 1 for t in range(20)] + [abs(1 - 9.5)] + [2] * 18  # this step, and the next
    assert error.last_action == pytest.approx(np.mean(repeated))
    assert "on average over the next 2 steps" in evaluate_action_prediction(late, data).headline()


def test_a_constant_component_is_named_and_does_not_count():
    data = line_data([lambda t: t, np.zeros_like], episodes=1)
    prediction = evaluate_action_prediction(policy(data, Draws(0.0, 0.0), 1), data, validation=Validation(10**6, 2))
    assert [c.is_constant for c in prediction.by_component] == [False, True] and prediction.by_component[1].r2 is None
    assert prediction.prediction_error[0].policy == prediction.by_component[0].policy == pytest.approx(9.5)
    assert "Left out, because they never change in the data: action[1]." in prediction.describe()


def test_actions_that_never_change_are_no_perfect_result():
    data = line_data([np.ones_like], episodes=1)
    prediction = evaluate_action_prediction(policy(data, Draws(1.0, 0.0), 1), data, validation=Validation(10**6, 2))
    assert prediction.energy_score.estimate == 0
    assert prediction.prediction_error is None and prediction.to_json()["error"] is None
    assert prediction.describe().startswith("This data cannot show how good the policy is: every component of its "
                                            "actions has the same value at all steps (action[0]).")


def test_choices_stand_next_to_the_most_frequent_one_and_the_last():
    action = np.array([0, 0, 0, 1, 1, 2] * 5)[:, None]
    data = Dataset([Episode({"observation.state": np.zeros((30, 1), np.float32), "action": action})])
    p = Policy(PolicyConfig(Categorical(), window=Window(1, 1)), data.features()).fit_statistics(data)
    for parameter in p.net.parameters():
        nn.init.zeros_(parameter)  # always class 0
    prediction = evaluate_action_prediction(p, data, validation=Validation(10**6, 8))
    (error,) = prediction.by_component
    assert error.policy == error.average == 0.5 and error.r2 is None
    assert error.last_action == pytest.approx((1 + 1 + 1) * 5 / 30 - 1 / 30)  # the first step is the most frequent one
    assert "50.0% of the predicted actions are wrong" in prediction.describe()
    assert "It is no better than the most frequent action or repeating the last one." in prediction.describe()


def test_the_answer_ends_with_the_next_step_on_a_robot(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_dataset(normal_data(6, 20), "my demos.npz")
    assert main(["train", "bc", "my demos.npz", "--out", "my run", "--steps", "2", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["eval", "my run", "my demos.npz", "--html", "page.html"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("On ")
    assert "understudy eval 'my run' --interactive --threshold 0.7 --robot TYPE --robot.port PORT\n" in out
    page = Path("page.html").read_text()
    assert page.index("off by") < page.index("energy score")
