"""A run goes on where it was, its looks are planned, and its control must fail."""

from dataclasses import replace

import numpy as np
import pytest
from fixtures.toy_claims import CALLS, STOP, toy_claim

from understudy.claims import records
from understudy.claims.base import (
    ExpertDemonstrations,
    NegativeControl,
)
from understudy.claims.runner import Cells, judge_again, judge_figures, run_claim, run_figures
from understudy.data.window import Window
from understudy.files import read_json, write_json
from understudy.heads.likelihood.regression import Regression
from understudy.learn.method import Method
from understudy.policy import PolicyConfig


def at_rates(experiment, method, data, seed, episodes, starts):
    """The same with rates of the test's, independent between the arms."""
    arm = method.policy.window.horizon
    CALLS.append((arm, seed))
    return {"success": (np.random.default_rng([seed, arm]).random(episodes) < RATES[arm - 1]).astype(float).tolist()}


RATES = [0.0, 0.0]


def test_a_run_goes_on_where_it_was_and_its_control_must_fail(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("understudy.claims.runner.record_path", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr("understudy.claims.runner.figures_path", lambda name: tmp_path / f"{name} figures.json")
    monkeypatch.setattr("understudy.claims.runner.pilots_path", lambda name: tmp_path / f"{name} pilots.json")
    monkeypatch.setattr("understudy.claims.runner.fingerprint", lambda claim: "0" * 16)
    claim = toy_claim()
    monkeypatch.setattr("understudy.claims.runner.provenance", lambda: {
        "commit": f"after {len(CALLS)} cells", "date": "2026-11-21"})
    STOP[0] = 4
    CALLS.clear()
    with pytest.raises(KeyboardInterrupt):
        run_claim(claim)
    assert not (tmp_path / "toy.json").exists()
    STOP[0] = None
    record = run_claim(claim)
    assert len(CALLS) == 4 + 7 and len(set(CALLS)) == 10  # the one that was cut off, and none that was whole
    assert record["commit"] == "after 4 cells"  # the code as it was when this run began
    assert (
        record["verdict"] == "holds"
        and record["negative_control"]["verdict"] == "fails"
        and record["negative_control"]["passes"]
    )
    assert read_json(tmp_path / "toy figures.json").keys() == {"p", "negative control"}
    again = run_claim(claim)
    assert len(CALLS) == 11 and again["parts"] == record["parts"]
    blind = run_claim(replace(claim, negative_control=NegativeControl(lambda e: e, "p")))
    assert (blind["verdict"], blind["reason"]) == ("undecided", "control inconclusive")
    redesigned = run_claim(claim, revision="Other seeds.")
    assert [(entry["kind"], entry["change"], entry["verdict"]) for entry in redesigned["log"]] == [
        ("run", "First run.", "holds"), ("run", "Run again, with the same design.", "holds"),
        ("run", "Run again, with the same design.", "undecided"), ("redesign", "Other seeds.", "holds")]
    pilot = {"date": "2026-11-20", "kind": "pilot", "change": "", "verdict": "holds"}
    write_json(tmp_path / "toy pilots.json", [pilot])
    assert [entry["kind"] for entry in run_claim(claim)["log"]][4:] == ["pilot", "run"]
    assert [entry["kind"] for entry in run_claim(claim)["log"]][4:] == ["pilot", "run", "run"]
    CALLS.clear()


def test_judging_again_runs_nothing_and_logs_what_changed(tmp_path, monkeypatch):
    monkeypatch.setattr("understudy.claims.runner.record_path", lambda name: tmp_path / f"{name}.json")
    claim = records.find_claim("checkpoint-selection")
    old = {**read_json(records.record_path(claim.name)), "verdict": "fails", "reason": "",
           "log": [{"date": "2026-01-01", "kind": "run", "change": "First run.", "verdict": "fails", "reason": ""}]}
    write_json(tmp_path / f"{claim.name}.json", old)
    monkeypatch.setattr("understudy.claims.runner._run_cell", lambda *args: pytest.fail("nothing runs"))
    record = judge_again(claim, "2026-02-02", "New rules.")
    assert record == read_json(tmp_path / f"{claim.name}.json")
    assert record["verdict"] == "holds" and record["log"][0] == old["log"][0] and len(record["log"]) == 2
    assert record["log"][1] == {"date": "2026-02-02", "kind": "judged again", "change": "New rules.",
                                "verdict": "holds", "reason": ""}
    assert [record[k] for k in ("seconds", "date", "commit")] == [old[k] for k in ("seconds", "date", "commit")]
    assert len(judge_again(claim, "2026-03-03", "No change.")["log"]) == 2
    (part,) = record["parts"].values()
    part["conditions"][0]["bound"] -= 0.1  # another rule with the same verdict
    write_json(tmp_path / f"{claim.name}.json", record)
    assert [entry["change"] for entry in judge_again(claim, "2026-03-03", "Another bound.")["log"]][2:] == [
        "Another bound."]


@pytest.mark.parametrize("rates,used", [((0.95, 0.3), 5), ((0.5, 0.41), 10), ((0.5, 0.44), 20)])
def test_planned_looks_stop_at_the_first_that_decides(tmp_path, rates, used):
    """The bound of each look is stricter than 0.05; the last look ends the run in any case."""
    CALLS.clear()
    RATES[:] = rates
    claim = toy_claim(seeds=tuple(range(100, 120)), looks=((5, 0.01), (10, 0.015), (20, 0.025)), episodes=100)
    part = claim.parts[0]
    claim = replace(claim, parts=(replace(part, experiment=replace(part.experiment, measure=at_rates)),))
    figures, _ = run_figures(claim, Cells(tmp_path), lambda text: None)
    assert len(figures["p"]["a"]["success"]) == used
    assert {seed for arm, seed in CALLS if arm == 2} == set(range(100, 100 + used))  # the control has arm a alone
    experiment = claim.parts[0].experiment
    assert [experiment.level(n) for n in (5, 10, 20, 7)] == pytest.approx([0.99, 0.985, 0.975, 0.95])


def against_equals(experiment):
    """Arm b becomes one that is as good as arm a, with its own draws."""
    equal = Method(PolicyConfig(Regression(), window=Window(1, 3)))
    return replace(experiment, arms=(experiment.arms[0], replace(experiment.arms[1], options=(equal,))))


@pytest.mark.parametrize("rates,used,control", [((0.95, 0.3, 0.95), 5, 10), ((0.95, 0.3, 0.99), 5, 5),
                                                ((0.95, 0.3, 0.3), 5, 20), ((0.5, 0.6, 0.5), 5, None)])
def test_a_control_goes_on_to_later_looks_until_it_passes(tmp_path, monkeypatch, rates, used, control):
    """Equals are told from 5 points by 10 seeds, and a control that holds never passes. Where the rule
    does not hold, there is nothing to remove, and the control does not run."""
    monkeypatch.setattr(f"{__name__}.RATES", list(rates))
    claim = toy_claim(seeds=tuple(range(100, 120)), looks=((5, 0.01), (10, 0.015), (20, 0.025)), episodes=100)
    part = claim.parts[0]
    claim = replace(claim, parts=(replace(part, experiment=replace(part.experiment, measure=at_rates)),),
                    negative_control=replace(claim.negative_control, change=against_equals))
    figures, _ = run_figures(claim, Cells(tmp_path), lambda text: None)
    seeds = {name: len(arms["a"]["success"]) for name, arms in figures.items()}
    assert seeds == {"p": used, **({"negative control": control} if control else {})}
    judged = judge_figures(claim, figures)
    assert (judged["negative_control"]["verdict"] == "not run") == (control is None)


@pytest.mark.parametrize("looks,text", [(((5, 0.03), (20, 0.03)), "at most 0.05"), (((10, 0.01), (5, 0.01)), "growing"),
                                        (((5, 0.05),), "the last at all"), (((20, 0.0),), "positive")])
def test_looks_are_planned_within_alpha(looks, text):
    with pytest.raises(ValueError, match=text):
        toy_claim(seeds=tuple(range(100, 120)), looks=looks)


def test_a_baseline_that_does_not_work_is_no_baseline():
    rng = np.random.default_rng(0)
    good, bad = ((rng.random((5, 300)) < rate).astype(float).tolist() for rate in (0.95, 0.3))
    figures = {"p": {"a": {"success": good}, "b": {"success": bad}},
               "negative control": {"a": {"success": good}, "b": {"success": good}}}
    assert judge_figures(toy_claim(sanity=(("b", "success", 0.2),)), figures)["verdict"] == "holds"
    judgment = judge_figures(toy_claim(sanity=(("b", "success", 0.5),)), figures)
    assert (judgment["verdict"], judgment["reason"]) == ("undecided", "b does not reach 0.5 of success")


def test_new_seeds_are_new_in_demonstrations():
    new, same = ExpertDemonstrations("fork", 4), ExpertDemonstrations("fork", 4, resample=False)
    assert new.load(100).fingerprint() != new.load(101).fingerprint()
    assert same.load(100).fingerprint() == same.load(101).fingerprint()
