"""Planning: power, smallest effects and the command."""

import json
import math

import numpy as np
import pytest
from fixtures.statistics import documented
from scipy import stats as scipy_stats

from understudy.core import UserError
from understudy.evaluate import independent, planning, stats
from understudy.evaluate.planning import (
    fit_power_law,
    max_correlation,
    paired_power,
    plan,
    plan_rate,
    rate_power,
    unpaired_power,
)
from understudy.evaluate.sequential import SequentialDifferenceTest, SequentialRateTest


def named(b, c, n):
    """As `compare` names the better of two checkpoints."""
    i = stats.tango(b, c, n)
    return stats.mcnemar(b, c) < 0.05 and (i.low > 0 or i.high < 0)


@pytest.mark.parametrize("first, second, n, r", [(0.9, 0.5, 25, 0.0), (0.5, 0.8, 22, 0.4), (0.99, 0.05, 9, 0.0)])
def test_the_power_of_pairs_is_that_of_compare(first, second, n, r):
    """Exactly, over all outcomes; naming the worse one does not count."""
    low, high = min(first, second), max(first, second)
    both = low * high + r * math.sqrt(low * (1 - low) * high * (1 - high))
    cells = [high - both, low - both, 1 - high - low + 2 * both]
    power = sum(scipy_stats.multinomial.pmf([b, c, n - b - c], n, cells)
                for b in range(n + 1) for c in range(n + 1 - b) if b > c and named(b, c, n))
    assert paired_power(first, second, n, r) == pytest.approx(power, abs=1e-9)


@pytest.mark.parametrize("first, second, n", [(0.9, 0.5, 23), (0.3, 0.1, 40), (0.999, 0.01, 4)])
def test_the_power_of_fishers_test_by_enumeration(first, second, n):
    k, high, low = np.arange(n + 1), max(first, second), min(first, second)
    power = sum(scipy_stats.binom.pmf(a, n, high) * scipy_stats.binom.pmf(b, n, low)
                for a in k for b in k[:a] if independent.fisher_exact(a, n, b, n) < 0.05)
    assert unpaired_power(first, second, n) == pytest.approx(power, abs=1e-9)


def test_the_power_of_one_rate_is_that_of_its_interval():
    for rate, than, n in ((0.9, 0.7, 30), (0.6, 0.7, 80), (0.99, 0.5, 5)):
        intervals = [stats.clopper_pearson(k, n) for k in range(n + 1)]
        outside = sum(scipy_stats.binom.pmf(k, n, rate) for k, i in enumerate(intervals)
                      if (i.low > than if rate > than else i.high < than))
        assert rate_power(rate, than, n) == pytest.approx(outside, abs=1e-9)


def test_plans_are_the_smallest_with_the_power():
    p = plan(0.7, 0.8)
    assert 290 <= p.paired[0.0] <= 315 and 290 <= p.unpaired <= 315
    for c, n in p.paired.items():
        assert paired_power(0.7, 0.8, n, c) >= 0.8 > paired_power(0.7, 0.8, n - 1, c)
    assert unpaired_power(0.7, 0.8, p.unpaired) >= 0.8 > unpaired_power(0.7, 0.8, p.unpaired - 1)
    assert list(p.paired) == [0.0, 0.25, 0.5, 0.75]
    assert sorted(p.paired.values(), reverse=True) == list(p.paired.values())
    assert plan(0.8, 0.7) == p == plan(0.3, 0.2)
    assert list(plan(0.1, 0.9).paired) == [0.0]  # such rates cannot be correlated by more than
    assert max_correlation(0.1, 0.9) == pytest.approx(1 / 9) == max_correlation(0.9, 0.1)
    assert p.to_json() == {"fixed": {"unpaired": p.unpaired, "paired": {"0": p.paired[0.0], "0.25": p.paired[0.25],
                                                                        "0.5": p.paired[0.5], "0.75": p.paired[0.75]}},
                           "sequential": {"expected": p.expected, "maximum": p.maximum}}
    strict = plan(0.7, 0.8, alpha=0.01, power=0.95)
    assert strict.unpaired > 1.8 * p.unpaired and strict.maximum > 1.5 * p.maximum


@pytest.mark.slow
def test_what_was_planned_has_the_power_in_simulation():
    rng, n = np.random.default_rng(0), plan(0.7, 0.8).paired[0.0]
    is_significant = {}
    x, y = rng.random((2000, n)) < 0.8, rng.random((2000, n)) < 0.7
    pairs = list(zip((x & ~y).sum(1).tolist(), (y & ~x).sum(1).tolist(), strict=True))
    for b, c in pairs:
        is_significant.setdefault((b, c), named(b, c, n) and b > c)
    detection_rate = np.mean([is_significant[p] for p in pairs])
    assert abs(detection_rate - 0.8) < 3 * math.sqrt(0.16 / 2000) + 0.005


def test_the_sequential_plan_in_simulation():
    p, rng = plan(0.5, 0.7), np.random.default_rng(1)
    needed, lengths, won = SequentialDifferenceTest().wins_needed(p.maximum), [], 0
    for _ in range(2000):
        x, y = rng.random(p.maximum) < 0.7, rng.random(p.maximum) < 0.5
        b, c = np.cumsum(x & ~y), np.cumsum(y & ~x)
        over = np.flatnonzero((b >= needed[b + c]) | (c >= needed[b + c]))
        lengths.append(over[0] + 1 if len(over) else p.maximum)
        won += len(over) > 0 and b[over[0]] > c[over[0]]
    assert abs(won / 2000 - 0.8) < 3 * math.sqrt(0.16 / 2000) + 0.005
    assert np.mean(lengths) == pytest.approx(p.expected, rel=0.05) and p.expected < p.maximum
    one = plan_rate(0.65, 0.5)
    low, high = SequentialRateTest(0.5).decision_bounds(np.arange(one.maximum + 1))
    k = np.cumsum(rng.random((4000, one.maximum)) < 0.65, 1)
    above, below = k >= high[1:], k <= low[1:]
    first = np.where((above | below).any(1), (above | below).argmax(1), one.maximum - 1)
    assert abs(above[np.arange(4000), first].mean() - 0.8) < 3 * math.sqrt(0.16 / 4000) + 0.005
    assert np.mean(first + 1) == pytest.approx(one.expected, rel=0.05)


@pytest.mark.parametrize("most", [9, 12, 40])
def test_the_least_difference_that_can_be_found(most):
    """All differing pairs are won by one: so many of them settle it, and they come with the binomial's chance."""
    test = SequentialDifferenceTest(max_rollouts=most)
    settles = next(n for n in range(1, most + 1)
                   if SequentialDifferenceTest().verdict({"pairs": n, "first": n, "second": 0}) == "first")
    low, high = planning.smallest_detectable_effect(test)
    assert low == -high and scipy_stats.binom.sf(settles - 1, most, high) == pytest.approx(0.8, abs=1e-6)
    assert np.isnan(planning.smallest_detectable_effect(SequentialDifferenceTest(max_rollouts=settles - 1))).all()


@pytest.mark.parametrize("most, than", [(7, 0.7), (12, 0.5), (25, 0.7)])
def test_the_least_rates_that_can_be_found(most, than):
    """By the tree of all counts, which the test looks at after every rollout."""
    def chance(rate, wanted):
        alive, probability, test = {0: 1.0}, 0.0, SequentialRateTest(than)
        for n in range(1, most + 1):
            after = {}
            for k, p in alive.items():
                for won, q in ((1, rate), (0, 1 - rate)):
                    if (verdict := test.verdict({"trials": n, "successes": k + won})) is None:
                        after[k + won] = after.get(k + won, 0.0) + p * q
                    elif verdict == wanted:
                        probability += p * q
            alive = after
        return probability

    for rate, side, end in zip(
        planning.smallest_detectable_effect(SequentialRateTest(than, max_rollouts=most)),
        ("below", "above"),
        (0.0, 1.0),
        strict=True,
    ):
        if np.isnan(rate):
            assert chance(end, side) < 0.8
        else:
            assert chance(rate, side) == pytest.approx(0.8, abs=1e-4)
    # seven of seven are not enough
    assert np.isnan(planning.smallest_detectable_effect(SequentialRateTest(0.7, max_rollouts=7))[1])


@pytest.mark.parametrize("test", [SequentialRateTest(0.7), SequentialDifferenceTest()])
def test_a_test_without_an_end_has_no_smallest_effect(test):
    with pytest.raises(UserError, match="no largest number of rollouts"):
        planning.smallest_detectable_effect(test)


@pytest.mark.parametrize("given, says", [
    ((0.7, 0.7), "the two rates are equal"), ((70, 80), "70 % is 0.7"), ((0.0, 0.5), "between 0 and 1"),
    ((0.7, math.nan), "between 0 and 1"), ((0.7, 0.8, 0.05, 0.05), "larger than alpha"), ((0.7, 0.8, 5), "5 % is 0.05"),
    ((0.7, 0.7001), "too close: telling them apart takes about 3")])
def test_plans_that_make_no_sense(given, says):
    with pytest.raises(UserError, match=says):
        plan(*given)
    with pytest.raises(UserError, match=says):
        plan_rate(*given)


def test_the_command_that_plans(capsys):
    from understudy.cli import main

    assert main(["plan", "0.7", "0.8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == plan(0.7, 0.8).to_json() and all(type(n) is int for n in (
        report["fixed"]["unpaired"], *report["fixed"]["paired"].values(), *report["sequential"].values()))
    assert main(["plan", "0.7", "0.8", "--episodes", "50", "--json"]) == 0  # an under-powered comparison
    assert json.loads(capsys.readouterr().out)["power"]["paired"]["0"] == paired_power(0.7, 0.8, 50) < 0.2
    assert main(["plan", "0.8", "--threshold", "0.7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == plan_rate(0.8, 0.7).to_json()
    for args, keys in (
        (["0.7", "0.8"], {"fixed", "sequential"}),
        (["0.7", "--threshold", "0.8"], {"fixed", "sequential"}),
        (["0.7", "0.8", "--episodes", "9"], documented("statistics", "plan")),
    ):
        assert main(["plan", *args, "--json"]) == 0 and set(json.loads(capsys.readouterr().out)) == keys
    assert main(["plan", "0.5", "0.9"]) == 0
    text = capsys.readouterr().out
    assert f"unrelated{plan(0.5, 0.9).paired[0.0]:>15}" in text and "correlated 0.25" in text


@pytest.mark.parametrize("args, says", [
    (["0.7", "0.7"], "the two rates are equal"), (["70", "80"], "70 % is 0.7"), ([], "missing RATE RATE"),
    (["0.7", "0.8", "--threshold", "0.5"], "one rate with --threshold"), (["0.7", "x"], "x"),
    (["0.7", "0.8", "--episodes", "0"], "at least 1"), (["0.7", "0.8", "--power", "0.01"], "larger than alpha")])
def test_plans_that_a_person_may_ask_for_by_mistake(args, says, capsys):
    from understudy.cli import main

    assert main(["plan", *args]) == 2
    assert says in (errors := capsys.readouterr().err) and "\n  -> " in errors


@pytest.mark.parametrize("first, second, correlation", [(0.5, 0.9, 0.75), (0.1, 0.2, -0.9)])
def test_a_correlation_that_cannot_be_has_no_power(first, second, correlation):
    with pytest.raises(ValueError, match=f"cannot have a correlation of {correlation:g}"):
        paired_power(first, second, 50, correlation)
    assert 0 < paired_power(0.5, 0.9, 50, max_correlation(0.5, 0.9)) <= 1


def test_a_power_law_by_hand():
    """Logarithms 0, 1, 2 and 0, -3, -3: the slope is -3/2, the residuals are 1/2, -1, 1/2. So their variance with one
    degree of freedom is 3/2, that of the slope 3/4, and that of a new point at 3 is 3/2 (1 + 1/3 + 4/2) = 5 about -5.
    """
    law = fit_power_law(np.exp([0, 1, 2]), np.exp([0, -3, -3]))
    t = 12.706204736  # of one degree of freedom, as tables have it
    assert [law.exponent.estimate, law.exponent.low, law.exponent.high] == pytest.approx(
        [-1.5, -1.5 - t * math.sqrt(0.75), -1.5 + t * math.sqrt(0.75)])
    at_3 = law.predict(math.exp(3))
    assert [math.log(v) for v in (at_3.estimate, at_3.low, at_3.high)] == pytest.approx(
        [-5, -5 - t * math.sqrt(5), -5 + t * math.sqrt(5)])


def test_an_exact_law_is_found_and_goes_on():
    law = fit_power_law([10, 20, 40, 80], [8, 4, 2, 1])  # 80 / n
    assert (law.exponent.low, law.exponent.estimate, law.exponent.high) == pytest.approx((-1, -1, -1))
    assert law.predict(160).estimate == pytest.approx(0.5) and law.predict(160).high == pytest.approx(0.5)


def test_intervals_of_a_power_law_contain_the_truth_as_often_as_promised():
    rng, sizes = np.random.default_rng(0), np.array([20, 40, 80, 160])
    laws = [fit_power_law(sizes, 2 * sizes**-0.5 * np.exp(rng.normal(0, 0.2, 4)), level=0.8) for _ in range(1000)]
    covered = np.mean([law.exponent.low <= -0.5 <= law.exponent.high for law in laws])
    predicted = np.mean([p.low <= 2 * 640**-0.5 * math.exp(rng.normal(0, 0.2)) <= p.high
                         for p in (law.predict(640) for law in laws)])
    assert covered == pytest.approx(0.8, abs=0.04) and predicted == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("sizes, errors, message", [
    ([1, 2, 4], [0.5, 0.4], r"not \(2,\) for \(3,\)"),
    ([1, 2, 0], [0.5, 0.4, 0.3], r"numbers of demonstrations\[2\] is 0, .*leave that training out"),
    ([1, 2, 4], [0.5, 0.0, 0.3], r"errors\[1\] is 0, .*\(failures \+ 0.5\) / \(episodes \+ 1\)"),
    ([1, 2, 4], [0.5, math.nan, 0.3], r"errors\[1\] is nan"),
    ([1, 2, 2], [0.5, 0.4, 0.3], "at least three different numbers of demonstrations, not 2")])
def test_what_no_power_law_fits(sizes, errors, message):
    with pytest.raises(UserError, match=f"(?s){message}"):
        fit_power_law(sizes, errors)
