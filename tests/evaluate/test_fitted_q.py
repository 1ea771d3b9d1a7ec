"""understudy eval RUN DATA --fitted-q: the value, what it cannot tell, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from fixtures.staged import call

from understudy.core import Diverged, UserError
from understudy.data.episode import Dataset
from understudy.data.formats import open_dataset
from understudy.evaluate.fitted_q import PolicyValue, evaluate_fitted_q
from understudy.evaluate.stats import Interval
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.fitted_q import FittedQ
from understudy.learn.method import TrainedRun
from understudy.learn.train import train
from understudy.methods import find_method

SMALL = FittedQ(steps=20, critic=CriticConfig((8,)), n_resamples=2, discount=0.9)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Recorded episodes with rewards, and a run that was trained on most of them."""
    folder = tmp_path_factory.mktemp("fitted")
    assert call("record", "tabular:bandit", "--actor", "random", "--out", folder / "data", "--episodes", "20")[0] == 0
    assert call("train", "discrete-cql", folder / "data", "--out", folder / "run", "--steps", 3, "--device", "cpu",
                "--batch-size", "8")[0] == 0
    return folder


def test_the_command_says_the_value_and_what_it_cannot_tell(place):
    status, text = call("eval", place / "run", place / "data", "--fitted-q", "--updates", 20)
    assert status == 0 and "Fitted Q evaluation on 20 episodes, 20 of which it was trained on" in text
    assert "discount 0.99" in text and "This value is not measured" in text and "which can be far too high" in text
    status, text = call("eval", place / "run", place / "data", "--fitted-q", "--updates", 20, "--discount",
                        0.5, "--json")
    value = json.loads(text[text.index("{"):])["fitted_q"]
    assert value["discount"] == 0.5 and value["n_episodes"] == 20 and value["value"]["low"] < value["value"]["high"]
    again = next(line for line in call("eval", place / "run", place / "data", "--fitted-q", "--updates", 20)[1]
                 .splitlines() if "--html" in line)
    assert "--fitted-q --updates 20" in again
    assert call(*again.replace("report.html", str(place / "page.html")).split()[1:])[0] == 0
    assert "Fitted Q evaluation on 20 episodes" in (place / "page.html").read_text()


@pytest.mark.parametrize(("target", "options", "says"), [
    ("tabular:bandit", ("--fitted-q",), "from recorded episodes, and there are none here"),
    ("tabular:bandit", ("--discount", 0.9), "from recorded episodes, and there are none here"),
    ("data", ("--discount", 0.9), "--discount: is an option of --fitted-q"),
    ("data", ("--updates", 5), "--updates: is an option of --fitted-q"),
    ("data", ("--seed", 5), "--seed: is the seed of --fitted-q"),
    ("tabular:bandit", ("--fps", 5), "--fps: needs --interactive and --robot"),
    ("data", ("--fitted-q", "--discount", 1.5), "discount is 1.5"),
    ("data", ("--fitted-q", "--updates", 0), "--updates")])
def test_options_that_do_not_fit_are_refused(place, target, options, says):
    target = place / target if target == "data" else target
    status, text = call("eval", place / "run", target, *options)
    assert status and says in text and "of the predicted actions" not in text, text


def without(name):
    return lambda e: e.replace({name: None})


@pytest.mark.parametrize(("change", "says"), [
    (lambda d: d.map(without("next.reward")), "there is no column 'next.reward'(.|\n)*view make DATA"),
    (lambda d: d.map(without("next.terminated")), "there is no column 'next.terminated'"),
    (lambda d: d.select(range(4)), "there are 4 episodes"),
    (lambda d: d.map(lambda e: e.replace({"next.reward": np.zeros(len(e), "f")})), "all rewards are 0"),
    (lambda d: d.map(lambda e: e.replace({"next.reward": np.full(len(e), np.nan, "f")})), "not finite")])
def test_data_that_say_nothing_about_values_are_refused(place, change, says):
    data = open_dataset(place / "data")
    with pytest.raises(UserError, match=says):
        evaluate_fitted_q(TrainedRun.load(place / "run"), change(data), SMALL)


def test_policies_whose_actions_depend_on_more_than_observations_are_refused(tmp_path):
    assert call("record", "particle", "--out", tmp_path / "data", "--episodes", "6")[0] == 0
    data = open_dataset(tmp_path / "data")
    for name, says in (("gcbc", "it reads goals"), ("decision-transformer", "by a condition")):
        method = find_method(name, data.features())
        train(replace(method, learner=replace(method.learner, steps=1)), data, tmp_path / name, device="cpu")
        with pytest.raises(UserError, match=says):
            evaluate_fitted_q(TrainedRun.load(tmp_path / name), data, SMALL)


def test_plans_of_several_steps_are_valued(tmp_path):
    assert call("record", "particle", "--out", tmp_path / "data", "--episodes", "6")[0] == 0
    data = open_dataset(tmp_path / "data")
    method = find_method("bc", data.features(), horizon=4)
    train(replace(method, learner=replace(method.learner, steps=1)), data, tmp_path / "run", device="cpu")
    value = evaluate_fitted_q(TrainedRun.load(tmp_path / "run"), data, SMALL)
    assert np.isfinite(value.value.estimate) and value.n_episodes == 6
    again = evaluate_fitted_q(TrainedRun.load(tmp_path / "run"), data, SMALL)
    assert again == value  # the seed decides


def test_returns_of_episodes_that_were_cut_off_are_not_compared(place):
    """The value counts what would have followed, as far as the discount leaves 1 % of it."""
    trained, data = TrainedRun.load(place / "run"), open_dataset(place / "data")
    cut = data.map(lambda e: e.replace({"next.terminated": np.zeros(len(e), bool)}))
    mixed = Dataset([*cut.select(range(7)), *data.select(range(7, 20))])
    assert evaluate_fitted_q(trained, data, SMALL).n_cut == 0
    value = evaluate_fitted_q(trained, mixed, SMALL)
    assert value.n_cut == 7 and "7 of the episodes were cut off" in value.describe()
    assert evaluate_fitted_q(trained, mixed, replace(SMALL, discount=0.001)).n_cut == 0


def test_a_few_updates_settle_nothing(place):
    """Values approach their limit by (1 - 0.95) (1 - 0.9) of the distance in each update, of which 2 are a tenth."""
    value = evaluate_fitted_q(TrainedRun.load(place / "run"), open_dataset(place / "data"), SMALL)
    by_tenth, by_all = value.last_change / (np.exp(2 * 0.005) - 1), value.value.estimate / (np.exp(20 * 0.005) - 1)
    assert value.last_change and value.remaining == pytest.approx(max(by_tenth, by_all, key=abs))


def test_a_critic_that_has_hardly_begun_is_not_settled(place):
    """At first the estimate stays near 0, so that its last change says nothing of what is to come."""
    trained, data = TrainedRun.load(place / "run"), open_dataset(place / "data")
    value = evaluate_fitted_q(trained, data, replace(SMALL, discount=0.999))
    assert abs(value.remaining) >= abs(value.value.estimate) * 99 and not value.is_settled


def test_an_estimate_that_still_changes_is_told():
    value = PolicyValue(Interval(1.0, 0.9, 1.1), Interval(0.5, 0.4, 0.6), 0.9, 30, 0, 0.1)
    assert value.is_settled and "--updates" not in value.describe()
    assert not replace(value, last_change=0.01, remaining=0.3).is_settled
    moving = replace(value, last_change=-0.3)
    assert not moving.is_settled and "it changed by -0.3 in the last tenth" in moving.describe()
    endless = replace(moving, discount=1.0, remaining=1e5).describe()
    assert "choose a lower --discount" in endless and "--updates" not in endless


def test_a_critic_that_diverges_is_told_with_options_of_this_command(place, monkeypatch):
    def fails(error):
        def evaluate(*args):
            raise error("the scores of the critic diverge", where="update 7", hint="--optimizer.lr")
        monkeypatch.setattr("understudy.evaluate.fitted_q.evaluate_fitted_q", evaluate)
        return call("eval", place / "run", place / "data", "--fitted-q")
    code, text = fails(Diverged)
    assert code == 2 and "diverge, at update 7" in text and "--discount" in text and "--optimizer" not in text
    assert "of the predicted actions" in text  # what needs no critic
    code, text = fails(UserError)  # another error, such as one of data in a folder of this name
    assert code == 2 and "update 7: the scores" in text and "--discount" not in text and "--optimizer" in text


def test_a_policy_is_judged_by_the_rewards_as_they_are(place, tmp_path):
    """A run that learned from ten times the rewards minus 1 is the same policy to who looks at the returns."""
    assert call("train", "discrete-cql", place / "data", "--out", tmp_path / "run", "--steps", 3, "--device", "cpu",
                "--batch-size", "8", "--reward-scale", 10, "--reward-shift", -1)[0] == 0
    values = []
    for run in (place / "run", tmp_path / "run"):
        text = call("eval", run, place / "data", "--fitted-q", "--updates", 20, "--json")[1]
        values.append(json.loads(text[text.index("{"):])["fitted_q"])
    assert values[0]["recorded"] == values[1]["recorded"]
    returns = [0.99 ** np.arange(len(e)) @ e.steps["next.reward"][:len(e)] for e in open_dataset(place / "data")]
    assert values[1]["recorded"]["estimate"] == pytest.approx(np.mean(returns))
