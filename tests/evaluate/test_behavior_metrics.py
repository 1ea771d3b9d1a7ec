"""Behavior metrics together, and from the command line."""


import numpy as np
import pytest
from fixtures.behaviors import episode

from understudy import rollout
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.envs.base import Env
from understudy.envs.toys.fork import Fork
from understudy.evaluate.behavior import modes
from understudy.evaluate.behavior.scaling import evenly_spaced, resample_rows
from understudy.evaluate.behavior_metrics import measure_behavior

# -- together ------------------------------------------------------------------------------------------------------


def test_beside_puts_them_together(shaky):
    env = Fork(50)
    demos = rollout(env.expert(), env, 40, seed=-2)
    metrics = measure_behavior(shaky, env, demos, repeated=modes.rollout_repeated_starts(env.expert(), env, 4, 4))
    by = {m.key: m for m in metrics.metrics}
    won = [e for e in shaky if e.metadata["success"]]
    assert by["time_to_success"].n_episodes == len(won) and by["time_to_success"].unit == "s"
    assert by["time_to_success"].value.estimate == pytest.approx(np.mean([len(e) for e in won]) / 10)
    assert by["time_to_success"].demonstrations.estimate == pytest.approx(np.mean([len(e) for e in demos]) / 10)
    assert by["failures_margin"].n_episodes == 60 - len(won) and by["failures_margin"].demonstrations is None
    assert by["state_distance"].value.estimate > 2 * by["state_distance"].demonstrations.estimate
    assert (
        metrics.modes.n_modes == 2
        and metrics.modes.n_modes_found == 2
        and (metrics.modes.n_starts, metrics.modes.n_repeats) == (4, 4)
    )
    assert (
        sum(metrics.modes.counts.values()) <= len(won)
        and metrics.discriminator_accuracy.estimate > 0.8
        and not metrics.missing
    )
    document = metrics.to_json()
    assert set(document) == {"metrics", "modes", "discriminator_accuracy", "earth_movers_distance", "latency",
                             "support", "failures", "missing", "scaled_by"}
    assert len(metrics.summary_lines()) == 4 + len(metrics.failures)


def test_a_figure_says_in_whose_units_it_is(shaky):
    """Smoothness is that of the path in these units: a component that varies little in the data counts more."""
    env = Fork(4)
    shown_episodes = rollout(env.expert(), env, 12, seed=0)
    for demonstrations, scaled_by, words in ((shown_episodes, "demonstrations", "over the demonstrations"),
                                             (None, "episodes", "over its own episodes")):
        metrics = measure_behavior(shaky, env, demonstrations)
        assert metrics.scaled_by == metrics.to_json()["scaled_by"] == scaled_by
        line, = (line for line in metrics.describe() if line.startswith("Smoothness, jerk and distances"))
        assert words in line
    state = "observation.state"
    stretched = shown_episodes.map(lambda e: e.replace({state: e.steps[state] * np.array([1, 9], np.float32)}))
    one, other = (next(m.value.estimate for m in measure_behavior(shaky, env, d).metrics if m.key == "smoothness")
                  for d in (shown_episodes, stretched))
    assert one != other


def test_beside_says_what_is_missing(shaky):
    alone = measure_behavior(shaky, Fork())
    n_successes = sum(e.metadata["success"] for e in shaky)
    assert 0 < sum(alone.modes.counts.values()) == n_successes < len(shaky)
    (ways,) = (line for line in alone.describe() if line.startswith("Ways"))
    assert ways.startswith(f"Ways of the {n_successes} successes (2 ways, by the environment): ")
    assert "over the successes of all starts" in ways
    unjudged = shaky.map(lambda e: Episode({k: v for k, v in e.steps.items() if k != "next.success"},
                                           {k: v for k, v in e.metadata.items() if k != "success"}))
    (ways,) = (line for line in measure_behavior(unjudged, Fork()).describe() if line.startswith("Ways"))
    assert " episodes (2 ways, " in ways and "successes" not in ways
    assert alone.modes.demonstrations is None and alone.discriminator_accuracy is None
    assert any("--demonstrations" in w for w in alone.missing) and any("--repeats" in w for w in alone.missing)
    strange = Dataset([Episode({"observation.joints": np.random.default_rng(0).normal(size=(9, 4)),
                                "action": np.zeros((8, 2))})])
    metrics = measure_behavior(shaky, Fork(), strange)
    assert any("share no column" in w for w in metrics.missing)
    assert "state_distance" not in {m.key for m in metrics.metrics}


@pytest.mark.parametrize("episodes", [1, 2, 3])
def test_beside_of_few_episodes(episodes):
    env = Fork(4)
    metrics = measure_behavior(rollout(env.expert(), env, episodes, seed=0), env, rollout(env.expert(), env, 1, seed=1))
    assert {m.n_episodes for m in metrics.metrics} == {episodes} and metrics.to_json()


def test_beside_of_choices_and_of_pictures_alone():
    rng = np.random.default_rng(0)
    chosen = Dataset([Episode({"observation.state": rng.normal(size=(9, 4)), "action": rng.integers(0, 2, (8, 1)),
                               "next.truncated": np.zeros(8, bool)}, {"number": i, "seed": 0}) for i in range(12)])
    keys = {m.key for m in measure_behavior(chosen, None, chosen).metrics}
    assert "action_jerk" not in keys and "action_distance" not in keys and "state_distance" in keys
    blind = Dataset([Episode({"observation.images.a": rng.integers(0, 255, (9, 8, 8, 3)).astype(np.uint8),
                              "action": rng.normal(size=(8, 2)), "next.truncated": np.zeros(8, bool)},
                             {"number": i, "seed": 0, "success": i > 3}) for i in range(12)])
    metrics = measure_behavior(blind, None, blind)
    assert {m.key for m in metrics.metrics} == {"action_jerk"} and sum(map(len, metrics.failures)) == 4


def test_thinned_and_resampled():
    data = Dataset([episode(np.zeros((3, 1)), number=i) for i in range(11)])
    assert [e.metadata["number"] for e in evenly_spaced(data, 3)] == [0, 5, 10] and len(evenly_spaced(data)) == 11
    assert np.allclose(resample_rows(np.array([[0.0], [1.0], [4.0]]), 5)[:, 0], [0, 0.5, 1, 2.5, 4])
    assert np.allclose(resample_rows(np.array([[2.0]]), 4), 2)


def test_same_starts_is_an_environment():
    wrapped = modes.RepeatedStartsEnv(Fork(3), 0, 2, 2)
    assert isinstance(wrapped, Env) and wrapped.rows == 3


# -- from the command line -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with demonstrations of the fork and a policy that has hardly learned from them."""
    from understudy.cli import main

    folder = tmp_path_factory.mktemp("behavior")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["record", "fork", "--out", "demos", "--episodes", "12", "--actor", "scripted"]) == 0
        assert main(["train", "bc", "demos", "--out", "run", "--steps", "10", "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def evaluated(run, monkeypatch, capsys):
    """Exit status, what was printed and what was complained of, of `understudy eval run fork --episodes 12 ...`."""
    from understudy.cli import main

    monkeypatch.chdir(run)

    def call(*more, on="fork"):
        capsys.readouterr()
        try:
            episodes = ["--episodes", "12"] if on == "fork" else []
            status = main(["eval", "run", on, *episodes, *map(str, more)])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()
    return call


def test_eval_takes_what_the_run_learned_from(evaluated, run, tmp_path, monkeypatch):
    import json

    status, out, _ = evaluated("--json", "--repeats", 2)
    assert status == 0
    behavior = json.loads(out)["behavior"]
    assert behavior["against"] is None and behavior["metrics"]["state_distance"]["demonstrations"]["estimate"] > 0
    assert behavior["modes"]["n_starts"] == 12 and behavior["modes"]["n_repeats"] == 2
    assert behavior["latency"]["decisions"] > 10
    assert sum(g["count"] for g in behavior["failures"]) == 12 - json.loads(out)["successes"]
    # Somewhere else, or when the data have changed, nothing is taken for what it was.
    monkeypatch.setattr("understudy.data.episode.Dataset.fingerprint", lambda self: "another")
    assert "state_distance" not in json.loads(evaluated("--json")[1])["behavior"]["metrics"]
    assert "state_distance" in json.loads(evaluated("--json", "--demonstrations", "demos")[1])["behavior"]["metrics"]


def test_eval_writes_it_in_words_and_on_a_page(evaluated, tmp_path):
    _, short, _ = evaluated()
    assert "\nbehavior metrics" not in short and "A plan takes" not in short and "--details also prints" in short
    status, out, _ = evaluated("--details", "--html", tmp_path / "page.html")
    assert status == 0 and "\nbehavior metrics" in out and "A plan takes" in out
    page = (tmp_path / "page.html").read_text()
    assert "Behavior metrics" in page and ("How it fails" in page) == ("failure" in out)
    failure_lines = [line for line in out.splitlines() if " failures: " in line or " failure: " in line]
    assert page.count("Group ") >= len(failure_lines)
    frequent = [line for line in short.splitlines() if line.startswith("Most frequent failure: ")]
    assert frequent == [f"Most frequent failure: {line}" for line in failure_lines[:1]]


@pytest.mark.parametrize("args", [("--repeats", 1), ("--repeats", -2), ("--demonstrations", "nowhere"),
                                  ("--demonstrations", "run"), ("--sequential", "--threshold", 0.5, "--repeats", 2)])
def test_eval_refuses_what_makes_no_sense(evaluated, args):
    status, _, errors = evaluated(*args)
    assert status == 2 and errors.startswith("understudy: ") and "Traceback" not in errors


def test_eval_of_recorded_episodes_has_no_behaviour(evaluated):
    for more in (("--repeats", 2), ("--demonstrations", "demos")):
        status, _, errors = evaluated(*more, on="demos")
        assert status == 2 and more[0] in errors


def test_a_page_without_pictures_is_a_page(evaluated, tmp_path, monkeypatch):
    def cannot(*_):
        raise UserError("this machine cannot draw it")
    monkeypatch.setattr("understudy.evaluate.failures.failure_figures", cannot)
    status, _, errors = evaluated("--html", tmp_path / "page.html")
    assert status == 0 and "cannot draw it" in errors and "Behavior metrics" in (tmp_path / "page.html").read_text()
