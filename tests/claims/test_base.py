"""Rules decide from intervals and from the smallest effects."""

from dataclasses import replace

import numpy as np
import pytest
from fixtures.toy_claims import CALLS, toy_claim

from understudy.claims.base import (
    RATE,
    SCORE,
    AboveBound,
    AllOf,
    Arm,
    BelowBound,
    Claim,
    ClaimPart,
    Condition,
    EquivalentTo,
    Experiment,
    ExpertDemonstrations,
    GreaterThan,
    Measure,
    NegativeControl,
    summarize,
)
from understudy.claims.measures import log_jerk
from understudy.claims.runner import judge_figures, run_pilot
from understudy.core import UserError
from understudy.data.episode import Episode
from understudy.files import read_json


def flags(rate, seed=0):
    return (np.random.default_rng(seed).random((5, 100)) < rate).astype(float).tolist()


FIGURES = {"good": {"success": flags(0.9), "time": (np.full((5, 1), 3.0) + np.arange(5)[:, None] * 0.01).tolist()},
           "twin": {"success": flags(0.9), "time": (np.full((5, 1), 3.0) + np.arange(5)[:, None] * 0.01).tolist()},
           "bad": {"success": flags(0.4, 1), "time": (np.full((5, 1), 2.0) - np.arange(5)[:, None] * 0.01).tolist()}}


@pytest.mark.parametrize("rule,verdict", [
    (GreaterThan("success", "good", "bad"), "holds"), (GreaterThan("success", "good", "bad", 0.3), "holds"),
    (GreaterThan("success", "bad", "good"), "fails"), (GreaterThan("success", "good", "bad", 0.45), "undecided"),
    (GreaterThan("success", "good", "bad", 0.5), "undecided"), (GreaterThan("success", "good", "bad", 0.6), "fails"),
    (GreaterThan("success", "good", "twin"), "undecided"), (GreaterThan("success", "good", "twin", -0.1), "holds"),
    (GreaterThan("time", "good", "bad", 0.9), "holds"), (GreaterThan("time", "good", "bad", 1.2), "fails"),
    (EquivalentTo("success", "good", "twin", 0.1), "holds"), (EquivalentTo("success", "good", "bad", 0.1), "fails"),
    (EquivalentTo("success", "good", "twin", 0.001), "undecided"),
    (AboveBound("success", "good", 0.7), "holds"), (AboveBound("success", "bad", 0.7), "fails"),
    (AboveBound("time", "good", 3.02), "undecided"),
    (BelowBound("success", "bad", 0.7), "holds"), (BelowBound("success", "good", 0.7), "fails"),
    (BelowBound("time", "good", 3.02), "undecided"),
    (AllOf((GreaterThan("success", "good", "bad"), EquivalentTo("success", "good", "twin", 0.1))), "holds"),
    (AllOf((GreaterThan("success", "good", "bad"), EquivalentTo("success", "good", "bad", 0.1))), "fails"),
    (AllOf((GreaterThan("success", "good", "bad"), GreaterThan("success", "good", "twin"))), "undecided"),
])
def test_a_rule_decides_from_its_interval(rule, verdict):
    assert rule.judge(FIGURES, {"time": Measure("real", "loss fraction")}).verdict == verdict


def test_a_measure_declares_its_kind():
    """An AUROC of exactly 1 in every seed is no sequence of Bernoulli trials."""
    perfect = {"a": {"auroc": [[1.0]] * 6}}
    assert summarize(perfect, {"auroc": SCORE})["a"]["auroc"]["low"] == 1
    assert summarize(perfect, {"auroc": RATE})["a"]["auroc"]["low"] < 0.01
    assert AboveBound("auroc", "a", 0.8).judge(perfect, {"auroc": SCORE}).verdict == "holds"
    with pytest.raises(UserError, match="'auroc' has no kind.*\n.*declare it"):
        AboveBound("auroc", "a", 0.8).judge(perfect)


def test_a_rule_names_the_arms_it_looks_at():
    assert AllOf((GreaterThan("success", "good", "bad"), AboveBound("success", "good", 0.5))).arms == ("good", "bad")


def test_seeds_that_tune_never_judge_and_arms_are_tuned_alike():
    def build(seeds=(100, 101), tuning=(900,), options=(1, 1)):
        return Experiment(None, "fork", tuple(Arm(str(i), (None,) * n) for i, n in enumerate(options)), None,
                          seeds=seeds, tuning_seeds=tuning)
    build()
    with pytest.raises(ValueError, match="must not judge"):
        build(tuning=(100,))
    with pytest.raises(ValueError, match="must not judge"):
        build(seeds=(0, 1))
    with pytest.raises(ValueError, match="same number"):
        build(options=(1, 2))


def test_arms_and_options_are_replaced_by_name():
    numbers = Experiment(None, "fork", (Arm("a", (1, 2)), Arm("b", (3, 4)), Arm("c", (5, 6))), None)
    replaced = numbers.replace_arms(Arm("c", (7, 8)), Arm("a", (9, 10)))
    assert replaced.arms == (Arm("a", (9, 10)), Arm("b", (3, 4)), Arm("c", (7, 8)))
    assert numbers.change_options(lambda n: -n, "b").arms == (Arm("a", (1, 2)), Arm("b", (-3, -4)), Arm("c", (5, 6)))
    assert numbers.change_options(lambda n: 0 * n).arms == tuple(Arm(name, (0, 0)) for name in "abc")
    with pytest.raises(ValueError, match="no arm d"):
        numbers.replace_arms(Arm("d", (1, 2)))
    with pytest.raises(ValueError, match="no arm d"):
        numbers.change_options(lambda n: n, "d")


def test_jerk_of_known_motions():
    """The third difference of a cubic t^3 is 6 everywhere; that of a straight line is 0."""
    t = np.arange(10.0)[:, None]
    assert log_jerk(Episode({"action": t**3})) == pytest.approx(np.log(36))
    assert log_jerk(Episode({"action": 2 * t})) == pytest.approx(np.log(1e-12), abs=1e-6)


def at_pilot_rates(experiment, method, data, seed, episodes, starts):
    CALLS.append(seed)
    n = 5 if method.policy.window.horizon == 2 else {800: 8, 801: 9, 802: 7}[seed]
    return {"success": [1.0] * n + [0.0] * (10 - n)}


def test_a_pilot_tells_how_much_seeds_differ(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("understudy.claims.runner.pilots_path", lambda name: tmp_path / "pilots.json")
    monkeypatch.setattr("understudy.claims.runner.provenance", lambda: {"commit": "c0ffee", "date": "2026-11-21"})
    CALLS.clear()
    claim = toy_claim()
    part = replace(claim.parts[0], experiment=replace(claim.parts[0].experiment, measure=at_pilot_rates))
    # Differences of 0.3, 0.4 and 0.2 vary by 0.1, and the smallest effect is 0.05.
    sentence, = run_pilot(replace(claim, parts=(part,)))
    assert sentence == "p, success, a and b: the spread of seeds is 2 smallest effects."
    assert sorted(set(CALLS)) == [800, 801, 802]
    note, = read_json(tmp_path / "pilots.json")
    assert note["kind"] == "pilot" and "800 to 802" in note["change"] and sentence in note["change"]
    CALLS.clear()


@pytest.mark.parametrize("failure, exponent, excess", [
    (lambda n: 0.9 * n**-0.25, -0.25, "below"), (lambda n: 0.6 * np.exp(-n / 400), None, "above"),
    (lambda n: 0.9 - 0.1 * np.log(n), None, "above")], ids=["power", "exponential", "logarithmic"])
def test_a_power_law_is_told_from_others(monkeypatch, failure, exponent, excess):
    from claims.evaluation import data_scaling_laws as scaling

    monkeypatch.setattr(scaling, "maze_success", lambda experiment, method, *rest: [[1 - failure(float(method.arm))]])
    monkeypatch.setattr(scaling.MazeDemonstrations, "load", lambda source, seed: None)
    exponents = scaling.scaling_exponent(scaling.LAW, scaling.MAZES.options[0], None, 110, 1000, 100)
    assert exponents["r"][0] < -0.85  # which would tell them from nothing
    assert (exponents["excess"][0] < -0.01) == (excess == "below")
    assert (exponents["excess"][0] > 0.01) == (excess == "above")
    if exponent is not None:
        assert exponents["exponent"][0] == pytest.approx(exponent)


def test_the_smallest_effects_are_one_table_of_positive_numbers():
    """5 % of the scale: of 0 to 1, of 0 to 100, of -1 to 1, and of D4RL's reference returns."""
    from understudy.claims.effects import SMALLEST_EFFECTS as effects

    assert all(v > 0 for v in effects.values())
    assert effects["rate"] == effects["score"] == 0.05 and effects["correlation"] == 0.05 * 2
    assert effects["return"] == 100 * effects["return fraction"] == 5
    assert effects["hopper return"] == pytest.approx(162.7, abs=0.1)
    assert effects["walker return"] == pytest.approx(229.5, abs=0.1)
    assert np.exp(effects["log ratio"]) == pytest.approx(1.1)


@pytest.mark.parametrize("low,high,verdict", [
    (0.01, 0.06, "holds"), (-0.01, 0.06, "undecided"), (0.0, 0.06, "undecided"),
    (-0.01, 0.04, "fails"), (0.01, 0.04, "fails"),  # real, but negligible
    (-0.2, -0.1, "fails"), (0.01, 0.05, "holds")])
def test_an_effect_below_the_smallest_is_none(low, high, verdict):
    """With a smallest effect of 0.05, on either side of any bound."""
    assert Condition("d", 0.0, low, high, "above", 0.0, 0.05).verdict == verdict
    assert Condition("d", 0.0, low + 0.25, high + 0.25, "above", 0.25, 0.05).verdict == verdict or low in (0.0, 0.01)
    assert Condition("d", 0.0, -high, -low, "below", 0.0, 0.05).verdict == verdict


def test_a_stated_bound_is_the_bound():
    """The smallest effect, 0.05 for a success rate, is for bounds of 0 only."""
    for rule, least in ((GreaterThan("success", "good", "bad"), 0.05),
                        (GreaterThan("success", "good", "bad", 0.3), 0.0),
                        (GreaterThan("success", "good", "twin", -0.1), 0.0),
                        (AboveBound("success", "bad", 0.3), 0.0)):
        condition, = rule.judge(FIGURES).conditions
        assert condition.smallest_effect == least
        assert condition.describe("").endswith(f"above {condition.bound:.3g}" + (" by at least 0.05" if least else ""))


def test_rates_are_described_in_percent_and_their_differences_in_points():
    def measured(episode):
        raise NotImplementedError
    arms = tuple(Arm(name, (None,)) for name in ("a", "b"))
    experiment = Experiment(ExpertDemonstrations("fork", 1), "fork", arms, measured,
                            measures=(("gap", Measure("real", "rate")), ("score", SCORE), ("success of a run", SCORE)))
    part = ClaimPart("part", experiment, GreaterThan("success", "a", "b"))
    claim = Claim("name", ("003",), (part,), NegativeControl(lambda e: e, "part"))
    labels = ("success: a", "success: a - b", "success: growth of the lead", "gap: a - b", "success of a run: b",
              "score: a - b", "return: a", "tau of a and b")
    assert [claim.unit_of(label) for label in labels] == ["%", "points", "points", "points", "%", "", "", ""]
    space = "\N{NO-BREAK SPACE}"
    condition = Condition("success: a - b", 0.1249, -0.0004, 0.25, "above", 0.0, 0.05)
    assert condition.describe("points") == (
        f"success: a - b = 12.5{space}points [0.0, 25.0], must be above 0 by at least 5{space}points")
    assert Condition("success: a", 0.914, 0.879, 1.0, "below", 0.125).describe("%") == (
        f"success: a = 91{space}% [88, 100], must be below 12.5{space}%")


def test_under_a_true_null_a_rule_can_fail():
    """Of 400 experiments without an effect, 20 seeds of 200 starts: most fail, and at most 2.5 % hold."""
    rng, rule, verdicts = np.random.default_rng(0), GreaterThan("success", "a", "b"), []
    for _ in range(400):
        figures = {arm: {"success": (rng.random((20, 200)) < 0.5).astype(float)} for arm in "ab"}
        verdicts.append(rule.judge(figures).verdict)
    assert verdicts.count("fails") > 300 and verdicts.count("holds") <= 0.025 * 400 + 2


def test_a_measure_without_a_smallest_effect_cannot_be_judged():
    with pytest.raises(UserError, match="'return' has no smallest effect.*\n.*hopper return"):
        GreaterThan("return", "a", "b").judge({a: {"return": [[1.0], [2.0]]} for a in "ab"})
    with pytest.raises(ValueError, match="not in the table"):
        Measure("real", "beauty")


def test_a_conjunction_names_the_rule_that_its_control_removes():
    claim = toy_claim()
    both = AllOf((GreaterThan("success", "a", "b"), AboveBound("success", "a", 0.5)))
    part = replace(claim.parts[0], rule=both)
    with pytest.raises(ValueError, match="names the rules of p"):
        replace(claim, parts=(part,))
    named = replace(claim, parts=(part,), negative_control=replace(claim.negative_control, removes=both.rules[:1]))
    rng = np.random.default_rng(0)
    good, bad = ((rng.random((5, 300)) < rate).astype(float).tolist() for rate in (0.95, 0.3))
    alike = {"p": {"a": {"success": good}, "b": {"success": bad}},
             "negative control": {"a": {"success": good}, "b": {"success": good}}}
    assert judge_figures(named, alike)["verdict"] == "holds"  # "above 0.5" still holds under the control, and may
    survives = {**alike, "negative control": alike["p"]}
    judgment = judge_figures(named, survives)
    assert (judgment["verdict"], judgment["reason"]) == ("undecided", "control inconclusive")
    other = replace(named, negative_control=replace(named.negative_control, removes=both.rules[1:]))
    assert judge_figures(other, alike)["reason"] == "control inconclusive"
    unable = judge_figures(replace(named, mechanism_only="The toy has one goal."), alike)
    assert (unable["verdict"], unable["reason"]) == ("undecided", "mechanism only")
    assert unable["parts"]["p"]["verdict"] == "holds"  # what the part shows stays visible
