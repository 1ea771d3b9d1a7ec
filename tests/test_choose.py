"""understudy choose: which candidates are dropped, that an interrupted call continues, and what is recommended."""

import json
from dataclasses import replace

import numpy as np
import pytest
from folders import BENCHMARKS

from understudy import demo
from understudy.choose import (
    MAX_ROUNDS,
    DataProperties,
    MethodTrial,
    Standing,
    _Trials,
    candidate_methods,
    choose_method,
    data_properties,
    survivors,
)
from understudy.commands.choose import _cells, _print_choice, write_choice_page
from understudy.commands.parts.common import Output
from understudy.config import dump
from understudy.core import Feature, UserError
from understudy.data.episode import Dataset
from understudy.envs import make
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.recording import expert_actor
from understudy.evaluate.rollout import rollout
from understudy.evaluate.stats import Interval
from understudy.files import write_json
from understudy.learn.run import Run
from understudy.methods import find_method, read_info
from understudy.policy import Policy
from understudy.testing import random_dataset


@pytest.fixture(scope="module")
def demonstrations():
    env = make("fork", 20)
    return rollout(expert_actor(env), env, 40, recording_seed(0))


@pytest.fixture
def short(tmp_path):
    """The path of a method whose training takes a moment."""
    method = find_method("bc")
    path = tmp_path / "short.json"
    write_json(path, dump(replace(method, learner=replace(method.learner, steps=40))))
    return str(path)


def test_the_worse_candidate_is_dropped_after_three_seeds():
    """20 starts of 40 are won by the best alone: the p-value is below 0.001, and the level is 0.05 / (5 * 2)."""
    best, worse, alike = np.ones((1, 40)), np.tile([1.0, 0.0], 20)[None], np.ones((1, 40))
    alike[0, :3] = 0  # p = 2 / 2**3: nobody is dropped by that
    values = {"worse": worse, "best": best, "alike": alike}
    assert survivors(values, 3) == ["best", "alike"]
    two = {"best": best, "worse": worse}
    assert survivors(two, 2) == ["best", "worse"]  # the best two stay until each has three seeds
    assert survivors({k: np.repeat(v, 3, 0) for k, v in two.items()}, 2) == ["best"]
    assert survivors({"best": best}, 2) == ["best"]


def test_a_worse_candidate_that_is_kept_for_its_few_seeds_did_not_do_as_well(tmp_path, monkeypatch):
    """knn needs no training, and a policy without updates never succeeds: it is worse on all 20 starts."""
    env = make("fork", 16)
    untrained = replace(find_method("bc"), learner=replace(find_method("bc").learner, steps=1))
    write_json(tmp_path / "untrained.json", dump(untrained))
    monkeypatch.setattr("understudy.choose.MAX_ROUNDS", 1)
    data = rollout(expert_actor(env), env, 40, recording_seed(0))
    choice = choose_method(data, tmp_path / "choice", env=env, budget=60.0, episodes=20,
                           methods=("knn", str(tmp_path / "untrained.json")))
    worse = choice.standings[1]
    assert (choice.recommended, choice.rounds, worse.estimate.estimate, worse.dropped_after) == ("knn", 1, 0.0, None)
    assert choice.tied == () and choice.to_json()["tied"] == []
    assert choice.verdict_parts()[1].endswith(" was worse, but with 1 training seed of each that is not certain.")
    write_choice_page(choice, tmp_path / "choice.html", [])
    assert "1 round in" in (tmp_path / "choice.html").read_text()


def test_the_same_starts_count_once():
    """Seeds that repeat what the first showed add no evidence: eleven starts that differ have p = 2 / 2**11 = 0.00098,
    and six p = 0.031, however many seeds show the same."""
    best = np.ones((5, 30))
    few, many = best.copy(), best.copy()
    few[:, :6], many[:, :11] = 0, 0
    assert survivors({"best": best, "few": few}, 2) == ["best", "few"]
    assert survivors({"best": best, "many": many}, 2) == ["best"]


@pytest.mark.slow
def test_equal_candidates_are_rarely_dropped():
    """All tests together drop one of equals in at most 5 % of the choices (here: 3 candidates, 5 rounds)."""
    rng, n_dropped = np.random.default_rng(0), 0
    for _ in range(30):
        values = {name: (rng.random((MAX_ROUNDS, 40)) < 0.5).astype(float) for name in "abc"}
        n_dropped += any(len(survivors({k: v[:n] for k, v in values.items()}, 3)) < 3 for n in (1, 3, 5))
    assert n_dropped <= 4  # binomial with 30 and 0.05: more than 4 has probability 0.02


NUMBERS = ["bc", "bc-gmm", "bc-rnn-gmm", "knn", "mip", "flow-policy", "act", "diffusion-policy"]
ORDINARY = DataProperties(episodes=100, steps=4000, fps=10, cameras=0, actions="numbers", two_ways=0.0)


def test_ordinary_data_have_all_candidates_with_the_sentences_of_the_methods():
    chosen, dropped = candidate_methods(ORDINARY)
    assert chosen == {name: read_info(name)[1].when for name in NUMBERS} and not dropped
    assert list(candidate_methods(replace(ORDINARY, actions="classes", two_ways=None))[0]) == ["bc", "knn"]


# What differs from ordinary data, the methods that are added and dropped, and the reason of one of them.
@pytest.mark.parametrize(("change", "added", "gone", "name", "reason"), [
    ({"episodes": 12}, {"search-bc"}, set(), "knn", "12 episodes"),
    ({"episodes": 12}, {"search-bc"}, set(), "search-bc", "12 episodes"),
    ({"episodes": 39}, {"search-bc"}, set(), "search-bc", "39 episodes"),
    ({"episodes": 40}, set(), set(), "knn", read_info("knn")[1].when),
    ({"two_ways": 0.02}, set(), set(), "flow-policy", "two ways at 2.0% of the steps"),
    ({"two_ways": 0.02}, set(), set(), "bc-rnn-gmm",
     "two ways at 2.0% of the steps, which earlier observations may tell apart"),
    ({"two_ways": 0.1}, set(), {"mip"}, "mip", "it gives one answer, and there are two ways at 10.0% of the steps"),
    ({"episodes": 200}, set(), {"diffusion-policy"}, "diffusion-policy",
     "it is slow, and 200 episodes show one way to act"),
    ({"episodes": 199}, set(), set(), "diffusion-policy", read_info("diffusion-policy")[1].when),
    ({"episodes": 200, "two_ways": None}, set(), set(), "diffusion-policy", read_info("diffusion-policy")[1].when),
    ({"episodes": 200, "two_ways": 0.02}, set(), set(), "diffusion-policy", "two ways at 2.0% of the steps"),
    ({"fps": 50}, set(), {"bc-rnn-gmm"}, "act", "long chunks for 50 steps a second"),
    ({"fps": 30}, set(), {"bc-rnn-gmm"}, "bc-rnn-gmm", "at 30 steps a second its ten observations tell little"),
    ({"fps": 50, "two_ways": 0.02}, set(), set(), "act", "long chunks for 50 steps a second"),
    ({"fps": None}, set(), set(), "act", read_info("act")[1].when),
    ({"cameras": 2, "two_ways": None}, set(), {"knn"}, "knn", "it cannot read images"),
    ({"learners": {"iql": "Returns differ."}}, {"iql"}, set(), "iql", "returns differ between episodes"),
    ({"learners": {"iql": "Returns differ."}, "has_ends": False}, set(), set(), "bc", read_info("bc")[1].when),
    ({"given_goal": True}, {"gcivl", "hiql"}, set(), "gcivl", "the environment gives a goal"),
    ({"learners": {"dac": "Experts."}}, set(), set(), "bc", read_info("bc")[1].when),
    ({"cameras": 1, "episodes": 12, "two_ways": None}, {"vinn-byol"}, {"knn"}, "vinn-byol", "12 episodes with images"),
])
def test_each_rule_about_numbers(change, added, gone, name, reason):
    chosen, dropped = candidate_methods(replace(ORDINARY, **change))
    assert set(chosen) == set(NUMBERS) - gone | added and gone <= set(dropped)
    assert {**chosen, **dropped}[name] == reason


@pytest.mark.parametrize("change", [{"episodes": 12}, {"fps": 50}, {"episodes": 500}])
def test_the_rules_about_classes(change):
    """A method that learns numbers is never a candidate for classes, and none that cannot read images for cameras."""
    properties = replace(ORDINARY, actions="classes", two_ways=None, **change)
    assert set(candidate_methods(properties)[0]) == {"bc", "knn"}
    assert set(candidate_methods(replace(properties, cameras=1))[0]) == {"bc"}


def test_the_recorded_choices_had_these_candidates():
    """Those of docs/choosing.md, which leaves two out because they are slow."""
    folder = BENCHMARKS / "results" / "choose"
    recorded = [json.loads(path.read_text()) for path in folder.glob("*-choice.json")]
    assert len(recorded) == 6
    for choice in recorded:
        chosen, dropped = candidate_methods(DataProperties(**choice["data"]))
        assert list(chosen) == NUMBERS and not dropped
        assert {m["name"] for m in choice["methods"]} | set(choice["skipped"]) == set(NUMBERS) - {
            "act", "diffusion-policy"}


def test_candidates_read_the_images_of_few_episodes():
    image = {"observation.images.top": Feature("uint8", (16, 16, 3), "image"), "action": Feature("float32", (2,))}
    data = random_dataset(image, episodes=12, steps=10)
    properties = data_properties(data)
    assert (properties.cameras, properties.two_ways) == (1, None)
    for name in candidate_methods(properties)[0]:
        Policy(find_method(name, data.features()).policy, data.features())


def test_two_ways_are_seen(demonstrations):
    """Half of the experts of `fork` go left and half go right. With one side left out, nothing is ambiguous."""
    both = data_properties(demonstrations)
    one_sided = Dataset([e for e in demonstrations if e.steps["observation.state"][:, 1].mean() > 0])
    one = data_properties(one_sided)
    assert both.two_ways > 0.01 > one.two_ways
    assert "act in neither" in both.sentences()[1] and "act in neither" not in one.sentences()[1]
    assert (both.episodes, both.cameras, both.actions) == (40, 0, "numbers")


def test_few_episodes_may_hide_two_ways(demonstrations):
    """With 20 episodes there are fewer than 30 of them to compare with."""
    few = data_properties(demonstrations.select(range(20)))
    assert few.two_ways > 0.01
    unseen = replace(few, two_ways=0.0)
    assert unseen.sentences()[1].endswith("20 episodes may be too few to see them.")
    assert replace(unseen, episodes=40).sentences()[1].endswith("ways.")
    assert data_properties(demonstrations.select(range(9))).two_ways is None  # chance would look like two ways


def test_a_goal_that_only_the_environment_gives(demonstrations):
    without, given = data_properties(demonstrations), data_properties(demonstrations, make("four_rooms", 2))
    assert given.given_goal and not without.given_goal and "gcivl" not in without.learners
    assert given.learners["gcivl"].startswith("observation.goal is shown by the environment, and not in the episodes.")
    pictured = demonstrations.map(lambda e: e.replace({"observation.other": e.steps["observation.state"],
                                                       "observation.state": None}))
    assert not data_properties(pictured, make("four_rooms", 2)).given_goal  # no later state can be a goal


def test_of_comparisons_no_policy_is_chosen(demonstrations, tmp_path):
    answers = demonstrations.map(lambda e: e.replace({name: np.zeros(len(e), np.int64) for name in (
        "segment", "preference")}))
    with pytest.raises(UserError, match="(?s)are comparisons.*understudy train preference-reward"):
        choose_method(answers, tmp_path / "trials")
    assert not (tmp_path / "trials").exists()


def test_the_same_policy_with_a_longer_chunk_has_the_same_error(demonstrations, tmp_path):
    """Actions far ahead are hard to predict. They do not count against a candidate that predicts them."""
    method, paths = find_method("knn"), []
    for horizon in (1, 30):
        policy = replace(method.policy, window=replace(method.policy.window, horizon=horizon))
        paths.append(str(tmp_path / f"{horizon}.json"))
        write_json(paths[-1], dump(replace(method, policy=policy, executor=replace(method.executor, n_action_steps=1))))
    choice = choose_method(demonstrations, tmp_path / "choice", budget=9.0, methods=paths)
    first, second = choice.standings
    assert first.estimate == second.estimate and choice.ahead == 1 and not first.dropped_after
    assert "error of the next action, predicted on 8 held-out episodes" in choice.verdict_parts()[2]


def test_with_too_few_held_out_episodes_the_interval_is_unknown(demonstrations, tmp_path, capsys):
    choice = choose_method(demonstrations.select(range(9)), tmp_path / "choice", budget=9.0, methods=("knn", "vinn"))
    assert choice.judged_on < 3 and all(np.isnan(s.estimate.low) for s in choice.standings)
    assert choice.to_json()["methods"][0]["low"] is None
    with Output(False) as out:
        _print_choice(choice, out)
    assert "unknown to unknown" in capsys.readouterr().out


def test_what_cannot_act_is_said_before_any_trial(demonstrations, tmp_path):
    options = {"env": make("fork", 4), "budget": 9.0}
    with pytest.raises(UserError, match="no candidate is left; udrl: .*return_to_go.*; gcbc: .*goal"):
        choose_method(demonstrations, tmp_path / "a", methods=("udrl", "gcbc"), **options)
    with pytest.raises(UserError, match="needs more than the data"):
        choose_method(demonstrations, tmp_path / "a", methods=("bc-rnn-gmm", "thought-cloning"), **options)
    assert not list(tmp_path.glob("a/*-0"))


def test_an_environment_that_fits_no_candidate_is_the_reason_and_not_the_candidates(demonstrations, tmp_path):
    with pytest.raises(UserError, match=r"(?s)^--env planar_arms: observation.state is .* \(2,\) in the data"):
        choose_method(demonstrations, tmp_path / "c", env=make("planar_arms", 4), budget=30, methods=("knn", "bc"))


def test_a_candidate_that_fails_before_the_trials_is_left_out(demonstrations, tmp_path, capsys):
    """The loss of the first is NaN, and the second must be told a return."""
    method, lines = find_method("bc"), []
    optimizer = replace(method.learner.optimizer, lr=1e30, grad_clip_norm=None)
    write_json(tmp_path / "nan.json", dump(replace(method, learner=replace(method.learner, optimizer=optimizer))))
    names = (str(tmp_path / "nan.json"), "udrl", "knn")
    options = {"env": make("fork", 4), "methods": names, "budget": 9.0, "episodes": 4}
    choice = choose_method(demonstrations, tmp_path / "choice", say=lines.append, **options)
    assert [s.method for s in choice.standings] == ["knn"] and tuple(choice.failed) == names[:2]
    assert choice.failed[names[0]] == "update 2: the loss is nan" and "return_to_go" in choice.failed["udrl"]
    assert [line for line in lines if line.startswith("udrl failed and is left out: ")]
    assert choice.verdict_parts()[1] == f"It was compared with no other candidate. {names[0]} and udrl failed."
    with Output(False) as out:
        _print_choice(choice, out)
    assert f"failed: udrl, {choice.failed['udrl']}" in capsys.readouterr().out
    assert choose_method(demonstrations, tmp_path / "choice", **options).to_json() == choice.to_json()


def test_a_candidate_that_fails_in_a_later_round_is_left_out(demonstrations, tmp_path, monkeypatch):
    """It was the best after the first round, and its failure is not tried again."""
    calls = []

    def values(folder, *_):
        calls.append(folder.name)
        if folder.name == "knn-1":
            raise UserError("the loss is NaN", where="update 7")
        return "error", (-0.1 if folder.name.startswith("knn") else -np.inf if "vinn-1" in folder.name else -0.2,) * 8

    monkeypatch.setattr("understudy.choose._held_out_errors", values)
    other = str(tmp_path / "other.json")
    write_json(other, dump(find_method("knn")))
    options = {"methods": ("knn", "vinn", other), "budget": 1000.0}
    choice = choose_method(demonstrations, tmp_path / "choice", **options)
    assert choice.failed == {"knn": "seed 1: update 7: the loss is NaN",
                             "vinn": "seed 1: its values are not finite"}
    assert choice.recommended == other and len(choice.standings) == 1 and choice.to_json()["failed"] == choice.failed
    n_calls = len(calls)
    assert choose_method(demonstrations, tmp_path / "choice", **options).to_json() == choice.to_json()
    assert len(calls) == n_calls


def test_no_success_is_failure_where_another_candidate_succeeds(monkeypatch, tmp_path):
    """Some environments report success only when there is one: a return of 50 won against 75 % success."""
    def trial(self, name, seed):
        return (MethodTrial(name, seed, 1, 0.0, "return", (50.0,) * 40) if name == "never" else
                MethodTrial(name, seed, 1, 0.0, "success", (1.0, 1.0, 1.0, 0.0) * 10))

    monkeypatch.setattr(_Trials, "trial", trial)
    methods = dict.fromkeys(("never", "often"))
    trials, dropped_after, *_ = _Trials(None, tmp_path, methods, {}, (), None, "cpu").run(0, 1.0, lambda line: None)
    assert {t.metric for name in methods for t in trials[name]} == {"success"} and dropped_after.keys() == {"never"}
    assert not np.any([t.values for t in trials["never"]])


def test_if_all_fail_nothing_is_recommended(demonstrations, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("the loss is NaN")

    monkeypatch.setattr("understudy.choose._held_out_errors", fail)
    with pytest.raises(UserError, match="no candidate is left; knn: seed 0: the loss is NaN; vinn: seed 0"):
        choose_method(demonstrations, tmp_path / "choice", budget=9.0, methods=("knn", "vinn"))


def test_an_error_about_the_folder_is_no_failure_of_the_method(demonstrations, tmp_path):
    """Such as that of another process that trains there: the same command continues later."""
    folder = tmp_path / "choice" / "knn-0"
    options = {"budget": 9.0, "methods": ("knn", "vinn")}
    choose_method(demonstrations, folder.parent, **options)
    folder.with_name("knn-0.json").unlink()
    with Run(folder).locked(), pytest.raises(UserError, match="another process is training into this folder"):
        choose_method(demonstrations, folder.parent, **options)
    assert not folder.with_name("knn-0.json").exists()


def test_an_error_that_is_not_of_actions_is_not_compared(demonstrations, tmp_path):
    """`maskdp` predicts the actions and the states as one column."""
    choice = choose_method(demonstrations, tmp_path / "choice", budget=9.0, methods=("knn", "maskdp", "vinn"))
    assert {s.method for s in choice.standings} == {"knn", "vinn"}
    assert choice.skipped["maskdp"].startswith("it predicts joint, so its error would not be that of actions")
    with pytest.raises(UserError, match="knn has nothing to be compared with; maskdp: it predicts joint"):
        choose_method(demonstrations, tmp_path / "alone", budget=9.0, methods=("knn", "maskdp"))


@pytest.mark.slow
def test_an_interrupted_choice_continues(demonstrations, tmp_path, short):
    """Finished trials are read, not repeated: a changed file changes the result."""
    env, out, lines = make("fork", 10), tmp_path / "choice", []
    options = {"env": env, "budget": 20.0, "methods": ("knn", short), "episodes": 10}
    first = choose_method(demonstrations, out, say=lines.append, **options)
    assert {s.method for s in first.standings} == {"knn", short} and first.rounds >= 1
    assert Policy.load(out / "knn-0").window.horizon == 8  # an ordinary run
    assert first.judged_on == 10 and first.metric == "success"
    assert sum(line.startswith("round 1: ") for line in lines) == 2
    again = choose_method(demonstrations, out, **options)
    assert again.to_json() == first.to_json()
    file = next(out.glob("*short.json-0.json"))
    trial = json.loads(file.read_text())
    file.write_text(json.dumps({**trial, "values": [1.0] * 10, "seconds": 1e6}))  # no time for a second round
    changed = choose_method(demonstrations, out, **options)
    values = {s.method: s.estimate.estimate for s in changed.standings}
    assert values[short] == 1.0 and changed.rounds == 1
    with pytest.raises(UserError, match="episodes 10, but this call has 20"):
        choose_method(demonstrations, out, **{**options, "episodes": 20})
    with pytest.raises(UserError, match="other data"):
        choose_method(demonstrations.select(range(30)), out, **options)


def test_without_an_environment_held_out_episodes_judge(demonstrations, tmp_path, short):
    """The error is that of the validation, in units of the standard deviation: below that of no knowledge, which is
    about 1."""
    choice = choose_method(demonstrations, tmp_path / "choice", budget=20.0, methods=("knn", short))
    assert choice.metric == "error" and choice.judged_on == 8 and choice.env is None
    document = choice.to_json()
    assert all(0 < m["low"] <= m["estimate"] <= m["high"] < 1.5 for m in document["methods"])
    assert document["methods"][0]["estimate"] < document["methods"][1]["estimate"]  # the best comes first
    assert "not by acting" in choice.verdict_parts()[2]
    worst = Standing("knn", "", Interval(-0.2, -0.53421, 0.0), 2, 1, 1, 1.0, None)  # no true error is below 0
    assert _cells(replace(choice, standings=(worst,)), worst)[2] == "0 to 0.5342"
    assert '"low": 0.0,' in json.dumps(replace(choice, standings=(worst,)).to_json())


def test_what_it_cannot_do_is_said(demonstrations, tmp_path):
    with pytest.raises(UserError, match="4 episodes are too few to hold any out"):
        choose_method(demonstrations.select(range(4)), tmp_path / "a")
    with pytest.raises(UserError, match="needs more than the data"):
        choose_method(demonstrations, tmp_path / "b", methods=("knn", "dagger"))
    with pytest.raises(UserError, match="name two methods or more"):
        choose_method(demonstrations, tmp_path / "c", methods=("knn",))
    with pytest.raises(UserError, match="there is time for 1 of 2 candidates; flow-policy: its"):
        choose_method(demonstrations, tmp_path / "d", methods=("knn", "flow-policy"), budget=0.1)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "mine.txt").write_text("")
    with pytest.raises(UserError, match="contains something else"):
        choose_method(demonstrations, tmp_path / "e", methods=("bc", "knn"))


@pytest.mark.slow
def test_where_demonstrations_go_two_ways_the_mean_is_dropped(tmp_path):
    """The mean chunk of left and right hits the pillar of `fork`. (Single actions do not: `bc` looks again after each,
    and takes a side.)"""
    env = make("fork", 16)
    data = rollout(expert_actor(env), env, 200, recording_seed(0))
    mean = demo.METHODS["regression"]
    write_json(tmp_path / "mean.json", dump(replace(mean, learner=replace(mean.learner, steps=1000))))
    choice = choose_method(data, tmp_path / "choice", env=env, budget=600.0, episodes=100,
                           methods=(str(tmp_path / "mean.json"), "knn"))
    assert (choice.recommended, choice.tied, choice.rounds) == ("knn", (), 3)
    assert choice.standings[1].dropped_after == 3 and choice.standings[1].estimate.high < 0.5
