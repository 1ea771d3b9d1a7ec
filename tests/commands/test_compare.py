"""understudy compare, and eval --sequential: the numbers behind the words, and what becomes of bad input."""

from __future__ import annotations

import json
import shutil
from itertools import combinations

import numpy as np
import pytest
from fixtures.statistics import documented

from understudy.cli import main
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset
from understudy.evaluate.comparison import compare_all
from understudy.evaluate.evaluation import compare, evaluation_of, sequential_verdict_parts, verdict_parts
from understudy.evaluate.planning import plan_rate
from understudy.evaluate.sequential import SequentialDifferenceTest, SequentialRateTest
from understudy.evaluate.stats import clopper_pearson, mcnemar, tango, two_level_difference

TINY = [
    "--steps",
    "20",
    "--save-freq",
    "20",
    "--device",
    "cpu",
    "--policy.trunk.width",
    "16",
    "--policy.trunk.depth",
    "1",
]


def evaluation(outcomes, rewards=None, seed=0):
    """Of one checkpoint whose episodes ended so."""
    rewards = outcomes if rewards is None else rewards
    episodes = []
    for n, (won, r) in enumerate(zip(outcomes, rewards, strict=True)):
        steps = {"observation.state": np.float32([[n], [n]]), "next.reward": np.float32([r])}
        facts = {"env": "made-up", "seed": seed, "number": n} | ({} if won is None else {"success": bool(won)})
        episodes.append(Episode(steps, facts))
    return evaluation_of(Dataset(episodes))


def bernoulli(p, n, seed):
    return np.random.default_rng(seed).random(n) < p


# -- several policies ----------------------------------------------------------------------------------------------


def test_every_two_are_compared_and_their_p_adjusted():
    won = {"good": bernoulli(0.9, 80, 0), "middling": bernoulli(0.75, 80, 1), "bad": bernoulli(0.3, 80, 2)}
    c = compare_all({name: evaluation(w) for name, w in won.items()})
    doc = json.loads(json.dumps(c.to_json()))
    assert [set(p) for p in doc["policies"]] == [{"name", "success", "letters"}] * 3
    assert [set(p) for p in doc["pairs"]] == [{"a", "b", "difference", "low", "high", "p", "p_adjusted"}] * 3
    assert doc["of"] == "success" and [p["name"] for p in doc["policies"]] == list(won)
    raw = {}
    for (a, b), pair in zip(combinations(won, 2), doc["pairs"], strict=True):
        only, other = int((won[a] & ~won[b]).sum()), int((won[b] & ~won[a]).sum())
        gap, raw[a, b] = tango(only, other, 80), mcnemar(only, other)
        assert (pair["a"], pair["b"]) == (a, b)
        np.testing.assert_allclose([pair[k] for k in ("difference", "low", "high", "p")],
                                   [gap.estimate, gap.low, gap.high, raw[a, b]])
    smallest, middle, largest = sorted(raw, key=raw.get)
    by_hand = {smallest: 3 * raw[smallest], middle: max(3 * raw[smallest], 2 * raw[middle])}
    by_hand[largest] = max(by_hand[middle], raw[largest])
    for pair in doc["pairs"]:
        assert pair["p_adjusted"] == pytest.approx(min(1, by_hand[pair["a"], pair["b"]]))
    # 0.038 alone would do; among three it counts as 0.076 or more, unless the others are surer.
    assert [p["letters"] for p in doc["policies"]] == ["a", "b" if raw["good", "middling"] < 0.05 else "a", doc[
        "policies"][2]["letters"]]
    assert not set(doc["policies"][2]["letters"]) & set(doc["policies"][0]["letters"])
    assert (
        c.ranking[0] == 0
        and "good succeeds most often" in c.verdict_parts()[0]
        or "Cannot tell" in c.verdict_parts()[0]
    )


def test_what_is_sure_alone_may_be_unsure_among_many():
    base = np.ones(40, bool)

    def lost(k):
        return np.concatenate([np.zeros(k, bool), np.ones(40 - k, bool)])
    two = compare_all({"a": evaluation(base), "b": evaluation(lost(6))})
    assert (
        two.pairs[0].better == "first"
        and two.pairs[0].adjusted_p_value == pytest.approx(2 * 0.5**6)
        and not two.next_steps()
    )
    assert two.letters == ["a", "b"] and [r.low for r in two.ranks] == [1, 2]
    # Three more policies like the first: the same six losses, counted among ten pairs, say less.
    five = compare_all({"a": evaluation(base), "b": evaluation(lost(6)), **{n: evaluation(base) for n in "cde"}})
    pair = five.pairs[0]
    assert (
        pair.comparison.better == "first"
        and pair.better is None
        and pair.adjusted_p_value == pytest.approx(10 * 2 * 0.5**6)
    )
    assert five.letters == ["a"] * 5 and "Cannot tell which is best" in five.verdict_parts()[0]
    equal = next(p for p in five.pairs if (p.a, p.b) == (2, 3))
    assert equal.episodes_needed is None and any("no number of episodes" in m for m in five.next_steps())
    assert {"a": "c", "b": "d", "episodes": None} in five.to_json()["needed"]
    assert five.to_json()["verdict"].startswith("Cannot tell which is best")


def test_what_it_would_take_is_what_it_takes():
    """As many episodes as are proposed, drawn from what was seen, name the better one four times in five."""
    x, y = bernoulli(0.8, 60, 5), bernoulli(0.62, 60, 6)
    c = compare_all({"x": evaluation(x), "y": evaluation(y)})
    [pair] = c.pairs
    assert (
        pair.better is None
        and 60 < pair.episodes_needed < 2000
        and f"about {pair.episodes_needed} episodes" in c.next_steps()[0]
    )
    rng = np.random.default_rng(0)
    chances = [(x & ~y).mean(), (y & ~x).mean()]
    both = rng.multinomial(pair.episodes_needed, [*chances, 1 - sum(chances)], 300)
    named = [mcnemar(b, c) < 0.05 and tango(b, c, pair.episodes_needed).low > 0 for b, c, _ in both.tolist()]
    assert abs(np.mean(named) - 0.8) < 0.08


def test_without_success_returns_are_compared_and_it_says_so():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    c = compare_all({"x": evaluation([None] * 30, x), "y": evaluation([None] * 30, x - 1 + 0.1 * rng.normal(size=30))})
    assert c.metric == c.to_json()["of"] == "return" and c.pairs[0].better == "first"
    assert c.to_json()["policies"][0]["success"]["estimate"] == pytest.approx(np.float32(x).mean(), abs=1e-6)
    assert "highest return" in c.verdict_parts()[0]
    noisy = compare_all({"x": evaluation([None] * 30, x), "y": evaluation([None] * 30, x - 0.1 * rng.normal(size=30))})
    assert noisy.pairs[0].better is None and noisy.pairs[0].episodes_needed > 30
    with pytest.raises(UserError, match="one episode is not enough"):
        compare_all({"x": evaluation([None], x[:1]), "y": evaluation([None], x[1:2])})


def test_no_success_is_failure_where_another_policy_succeeds():
    """Some environments report success only when there is one."""
    never, ever = evaluation([None] * 30), evaluation([n > 20 for n in range(30)])
    late = evaluation([None] * 20 + [True] * 5 + [False] * 5)
    assert never.success is None and (late.success, late.successes.sum()) == (clopper_pearson(5, 30), 5)
    for pair in ((never, ever), (ever, never)):
        assert compare(*pair).metric == "success" and compare_all({"x": pair[0], "y": pair[1]}).metric == "success"
        assert "9 of 30" in verdict_parts(*pair)[0] and "0 of 30" in verdict_parts(*pair)[0]
    assert compare_all({"a": never, "b": evaluation([None] * 30, bernoulli(0.5, 30, 0)), "c": ever}).metric == "success"
    assert compare(never, never).metric == "return"


def test_methods_are_compared_over_seeds_and_starts():
    first = [bernoulli(p, 50, s) for s, p in enumerate((0.9, 0.85, 0.95, 0.9, 0.8))]
    second = [bernoulli(p, 50, 10 + s) for s, p in enumerate((0.2, 0.3, 0.15, 0.2, 0.3))]
    c = compare_all({"new": [evaluation(w) for w in first], "old": [evaluation(w) for w in second]})
    difference, p = two_level_difference(first, second)
    assert c.seeds == 5 and c.pairs[0].comparison.low == difference.low and c.pairs[0].comparison.p_value == p
    assert c.pairs[0].better == "first" and "methods" in c.verdict_parts()[2]
    caveat = "Even if 5 of 5 training seeds succeed, up to 45% of all seeds may fail (95% confidence)."
    one, two = ([evaluation(w) for w in x] for x in (first, second))
    assert (
        c.verdict_parts()[2].endswith(caveat)
        and verdict_parts(one)[2].endswith(caveat)
        and verdict_parts(one, two)[2].endswith(caveat)
    )
    assert "good seeds" not in verdict_parts(one[0])[2] + verdict_parts(one[0], two[0])[2]
    spread = [bernoulli(p, 50, s) for s, p in enumerate((0.9, 0.1, 0.5, 0.9, 0.95))]
    c = compare_all({"new": [evaluation(w) for w in first], "old": [evaluation(w) for w in spread]})
    assert (
        c.pairs[0].better is None and c.pairs[0].episodes_needed > 5 and "training seeds of each" in c.next_steps()[0]
    )
    assert {"a": "new", "b": "old", "seeds": c.pairs[0].episodes_needed} in c.to_json()["needed"]
    with pytest.raises(UserError, match="5 of new, 2 of old"):
        compare_all({"new": [evaluation(w) for w in first], "old": [evaluation(w) for w in second[:2]]})
    with pytest.raises(UserError, match="the starts differ: seed 0, episode 0, and seed 1"):
        compare_all({"x": evaluation(first[0]), "y": evaluation(second[0], seed=1)})


# -- the commands ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Demonstrations, two small runs ("a", "b"), which fail, and one that works ("knn")."""
    folder = tmp_path_factory.mktemp("compare")
    assert main(["record", "fork", "--out", str(folder / "demos"), "--episodes", "40"]) == 0
    for run, seed in (("a", "0"), ("b", "1")):
        assert main(["train", "bc", str(folder / "demos"), "--out", str(folder / run), "--seed", seed, *TINY]) == 0
    assert main(["train", "knn", str(folder / "demos"), "--out", str(folder / "knn"), "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def call(capsys):
    def run(*args):
        capsys.readouterr()
        status = main([str(a) for a in args])
        return status, *capsys.readouterr()
    return run


def refused(result, *words):
    status, out, err = result
    assert (status, out) == (2, "") and "Traceback" not in err and "\n  -> " in err, err
    for word in words:
        assert word in err, err


def document(result):
    status, out, err = result
    assert status == 0, err
    return json.loads(out, parse_constant=pytest.fail)


def test_compare_rolls_out_keeps_and_goes_on(call, place, tmp_path):
    runs = [place / r for r in ("a", "b", "knn")]
    kept = tmp_path / "kept"
    comparison = document(call("compare", *runs, "--env", "fork", "--episodes", 10, "--json", "--save", kept))
    alone = document(call("eval", place / "knn", "fork", "--episodes", 10, "--json"))
    assert comparison["policies"][2] == {"name": str(place / "knn"), "letters": "a", "success": {
        k: alone["success"][k] for k in ("estimate", "low", "high")}}
    folders = sorted(kept.iterdir())
    assert len(folders) == 3 and all(len(open_dataset(f)) == 10 for f in folders)
    more = document(call("compare", *runs, "--env", "fork", "--episodes", 12, "--json", "--save", kept, "--rows", 5))
    assert all(len(open_dataset(f)) == 12 for f in folders)
    again = document(call("compare", *runs, "--env", "fork", "--episodes", 12, "--json"))
    assert more == again  # what was kept says what all at once says
    assert documented("comparing", "compare") == set(again)
    # Saved rollouts alone, and beside a run, with names of their own.
    saved = document(call("compare", *folders, "--json"))
    assert saved["pairs"][0] | {"a": 0, "b": 0} == again["pairs"][0] | {"a": 0, "b": 0} and saved["episodes"] == 12
    mixed = document(call("compare", folders[0], place / "knn", "--env", "fork", "--episodes", 12, "--json"))
    assert mixed["pairs"][0]["difference"] == again["pairs"][1]["difference"]
    status, out, _ = call("compare", *runs, "--env", "fork", "--episodes", 12, "--html", tmp_path / "r.html")
    assert status == 0 and "knn is better" in out and "cannot tell" in out and "and is better than every other" in out
    page = (tmp_path / "r.html").read_text()
    assert "succeeds most often" in page and "rank" in page
    assert page.count("<svg") == 2 + 3 and "The first 12 episodes of each" in page  # and the trajectories of each
    assert page.count("Trajectories over the map") == 3
    refused(call("compare", *runs, "--env", "fork", "--episodes", 12, "--seed", 1, "--save", kept), "seed 1")
    refused(call("eval", runs[0], "push", "--against", runs[1], "--episodes", 2), f"{runs[0]} in push, column")
    refused(call("compare", *folders, "--episodes", 13), "has 12 episodes, but --episodes is 13")


def test_compare_of_groups(call, place):
    args = ["--group", "bc", place / "a", place / "b", "--group", "knn", place / "knn", place / "knn" / "best"]
    refused(call("compare", *args, "--env", "fork"), "are the same policy")
    refused(call("compare", *args[:4], "--env", "fork"), "at least two groups, but has 1")
    refused(call("compare", "--group", "bc", place / "a", *args[4:], "--env", "fork"), "two runs or more", "bc")
    refused(call("compare", *args[:4], "--group", "x", place / "a", place / "b", place / "knn"), "2 of bc", "3 of x")
    refused(call("compare", place / "a", *args), "runs or groups, not both")


def test_a_training_counts_once_in_a_group(call, place, tmp_path):
    a, b, knn = (place / r for r in ("a", "b", "knn"))
    saved = tmp_path / "saved"
    assert call("eval", a, "fork", "--episodes", 2, "--save", saved)[0] == 0
    copy = shutil.copytree(a, tmp_path / "copy")
    early = shutil.copytree(next((b / "checkpoints").iterdir()), copy / "checkpoints" / "000001")  # other weights
    for pair in ((a, saved), (saved, copy), (copy, early)):
        refused(call("compare", "--group", "bc", *pair, "--group", "x", b, knn, "--env", "fork"),
                f"{pair[0]} and {pair[1]} are of one training")


def test_what_cannot_be_compared(call, place):
    a, b = place / "a", place / "b"
    refused(call("compare"), "at least two policies, but has 0")
    refused(call("compare", a), "but has 1", "understudy eval")
    refused(call("compare", a, a, "--env", "fork"), "twice")
    refused(call("compare", a, b), "--env")
    refused(call("compare", a, place / "none", "--env", "fork"), "not a trained run")
    for args in ((a, place / "demos", "--env", "fork"), (a, b, place / "demos")):
        refused(call("compare", *args, "--episodes", 2), f"{place / 'demos'}: these are demonstrations, neither a run "
                "nor rollouts that eval --save wrote\n  -> train a policy on them: understudy train METHOD")
    refused(call("compare", a, b, "--env", "fork", "--episodes", 0), "at least 1")
    refused(call("compare", a, b, "--env", "fork", "--seed", -1), "but is -1")
    refused(call("compare", a, b, "--env", "fork", "--task", "go"), "trained without words")
    refused(call("compare", a, b, "--env", "fork", "--html", place), "--html", "it is a folder")
    refused(call("compare", a, b, "--env", "fork", "--html", place / "none/x.html"), "--html", "there is no folder")


def test_saved_rollouts_are_of_one_environment_and_seed(call, place, tmp_path):
    runs = [_saved(call, place, tmp_path / r, r) for r in ("a", "b")]
    refused(call("compare", *runs, "--env", "push"), "the rollouts are in fork, but --env is push")
    refused(call("compare", *runs, "--seed", 3), "the starts are of seed 0, but --seed is 3")
    assert len(document(call("compare", *runs, "--env", "fork", "--json"))["policies"]) == 2
    for option in (("--task", "go"), ("--condition", "goal=1"), ("--executor", "receding-horizon"),
                   ("--save", tmp_path / "more")):
        refused(call("compare", *runs, *option), f"{option[0]}: all rollouts were saved, so no policy acts")
    assert not (tmp_path / "more").exists()


def test_sequential_uses_as_many_as_it_takes_whatever_runs_side_by_side(call, place, tmp_path):
    args = ["eval", place / "knn", "fork", "--sequential", "--threshold", "0.7", "--json"]
    evaluation = document(call(*args, "--html", tmp_path / "s.html"))
    assert {**document(call(*args, "--rows", 3)), "seconds": 0} == {**evaluation, "seconds": 0}
    won = [bool(e.metadata["success"]) for e in open_dataset(_saved(call, place, tmp_path, "knn"))]
    test, n = SequentialRateTest(0.7, max_rollouts=1000), 0
    state = test.start()
    while test.verdict(state) is None:
        state, n = test.update(state, won[n]), n + 1
    now = test.interval(state)
    assert evaluation["verdict"] == test.verdict(state) == "above" and evaluation["episodes"] == n < 40
    assert evaluation["successes"] == sum(won[:n]) and evaluation["threshold"] == 0.7 and evaluation["paired"] is None
    assert evaluation["success"] == {"estimate": now.estimate, "low": now.low, "high": now.high, "level": 0.95}
    assert evaluation["success"]["low"] > 0.7 and "<svg" in (tmp_path / "s.html").read_text()
    lines = (place / "knn" / "eval" / "fork.jsonl").read_text().splitlines()
    assert len(json.loads(lines[-1])["each"]["success"]) in (n, 40)
    status, out, _ = call("eval", place / "a", "fork", "--sequential", "--threshold", "0.7")
    assert status == 0 and "succeeds in less than 0.7" in out and "Settled after" in out


def _saved(call, place, tmp_path, run):
    assert call("eval", place / run, "fork", "--episodes", 40, "--save", tmp_path / "saved")[0] == 0
    return tmp_path / "saved"


def test_sequential_of_two_policies(call, place):
    args = ["eval", place / "a", "fork", "--sequential", "--against", place / "knn", "--json"]
    comparison = document(call(*args))
    assert comparison["verdict"] == "second" and comparison["paired"]["high"] < 0 and comparison["episodes"] < 30
    assert documented("comparing", "eval --sequential") == set(comparison)
    assert {**document(call(*args, "--rows", 2)), "seconds": 0} == {**comparison, "seconds": 0}
    status, out, _ = call(*args[:-1][:3], "--sequential", "--against", place / "b", "--episodes", 40)
    assert status == 0 and "Cannot tell whether" in out and "next:" not in out  # nothing to find: both succeed as often


def test_a_question_that_is_left_open_comes_with_the_planned_number_of_episodes(call, place):
    args = ["eval", place / "a", "fork", "--sequential", "--episodes", 30, "--threshold"]
    than = 0.05  # it never succeeds, but 30 episodes could not show that it does so less often
    evaluation = document(call(*args, than, "--json"))
    assert evaluation["verdict"] == "futile"
    n_planned = plan_rate((evaluation["successes"] + 1) / (evaluation["episodes"] + 2), than).maximum
    out = call(*args, than)[1]
    assert f"{n_planned:,} episodes settle it four times in five" in out and f"--episodes {n_planned}\n" in out
    assert "--executor receding-horizon" in call(*args, than, "--executor", "receding-horizon")[1]


def test_sequential_questions_that_are_none(call, place):
    a = place / "a"
    refused(call("eval", a, "fork", "--labels", "bad", "good"), "--labels: needs --interactive")
    refused(call("eval", a, "fork", "--sequential"), "--threshold", "neither")
    refused(call("eval", a, "fork", "--sequential", "--against", a), "--against", "the same checkpoint")
    refused(call("eval", a, "fork", "--sequential", "--threshold", 0.5, "--against", place / "b"), "both are given")
    refused(call("eval", a, "fork", "--sequential", "--threshold", 1.5), "above 0 and below 1, but is 1.5")
    refused(call("eval", a, "fork", "--threshold", 0.5), "--sequential")
    refused(call("eval", a, "fork", "--sequential", "--threshold", 0.5, "--episodes", 3), "at least",
            "3 episodes are too few")
    refused(call("eval", a, place / "demos", "--sequential", "--threshold", 0.5), "needs an environment")
    refused(call("eval", a, "--sequential", "--threshold", 0.5), "neither an environment nor")
    refused(call("eval", a), "neither an environment nor recorded episodes are named")


def test_the_words_of_a_verdict():
    rate = SequentialRateTest(0.5, max_rollouts=100)
    assert "in more than 0.5" in sequential_verdict_parts(rate, {"trials": 20, "successes": 19}, (19,))[0]
    assert "in less than 0.5" in sequential_verdict_parts(rate, {"trials": 20, "successes": 1}, (1,))[0]
    head, sure, _ = sequential_verdict_parts(rate, {"trials": 100, "successes": 52}, (52,))
    assert head.startswith("Cannot tell whether this checkpoint") and "all that were asked for" in sure
    two = SequentialDifferenceTest(max_rollouts=100)
    head, sure, _ = sequential_verdict_parts(two, {"pairs": 30, "first": 1, "second": 20}, (5, 24), ("x", "y"))
    assert head.startswith("y succeeds more often than x: 24 of 30 against 5 of 30") and "x minus y: -63.3" in sure
    head, sure, _ = sequential_verdict_parts(two, {"pairs": 90, "first": 10, "second": 10}, (50, 50), ("x", "y"))
    assert "Cannot tell whether x or y" in head and "would hardly be settled" in sure
    a, b = bernoulli(0.5, 40, 0), bernoulli(0.5, 40, 1)
    assert compare(evaluation(a), evaluation(b)).better is None
