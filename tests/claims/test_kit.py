"""Family experiments: each row takes its arms from one table, and shared arms run once."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from claims.policy_heads.diffusion_components import Carry
from understudy.claims.base import DemonstrationSource, ExpertDemonstrations
from understudy.claims.kit import Row, ablation, experiment, family, higher
from understudy.claims.measures import Rollouts, closed_loop
from understudy.claims.records import code_digest, fingerprint
from understudy.claims.runner import Cells, judge_figures, run_figures
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.policy import PolicyConfig

RUNS: list[tuple[str, int]] = []
TEXT = """+++
[first]
{0}
[second]
{0}
+++

How.
"""
KEYS = "\n".join(f'{key} = "{value}"' for key, value in {
    "decision": "which head", "paper": "p", "statement": "s", "control": "c", "advice": "a", "against": "b"}.items())


@dataclass(frozen=True)
class Nothing(DemonstrationSource):
    env: str = "none"

    def load(self, seed):
        return Dataset([])


@dataclass(frozen=True)
class Rate:
    """A method that succeeds at this rate."""

    name: str
    rate: float


def successes(experiment, method, data, seed, episodes, starts):
    RUNS.append((method.name, seed))
    draws = np.random.default_rng([seed, *map(ord, method.name)]).random(episodes)
    return {"success": (draws < method.rate).astype(float).tolist()}


ARMS = {"baseline": Rate("baseline", 0.3), "good": Rate("good", 0.9), "better": Rate("better", 0.95),
        "aside": Rate("aside", 0.5), "broken good": ablation("good", Rate("broken good", 0.3)),
        "broken better": ablation("better", Rate("broken better", 0.3))}
ROWS = {"001": Row("first", higher("good", "baseline", 0.2), control="broken good"),
        "002": Row("second", (higher("better", "baseline", 0.2), higher("better", "good", -0.2)),
                   control="broken better", reported=("aside",))}


def table(arms=None, **options):
    return experiment(Nothing(), arms or ARMS, measure=successes, first_seed=700, **options)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "toys.md").write_text(TEXT.format(KEYS))
    return str(tmp_path / "toys.py")


def test_a_row_has_its_arms_its_control_and_its_levels(file):
    first, second = family(file, table(sanity={"baseline": 0.1, "better": 0.5}), ROWS)
    assert (first.name, first.rows, second.rows) == ("first", ("001",), ("002",))
    assert [a.name for a in first.parts[0].experiment.arms] == ["baseline", "good"]
    assert [a.name for a in second.parts[0].experiment.arms] == ["baseline", "good", "better", "aside"]
    assert first.parts[0].experiment.sanity == (("baseline", "success", 0.1),)
    assert second.parts[0].experiment.seeds == (700, 701, 702, 703, 704)
    assert second.parts[0].experiment.starts_seed == 700 and second.parts[0].experiment.env == "none"
    changed = second.negative_control.change(second.parts[0].experiment)
    assert {a.name: a.options[0].name for a in changed.arms}["better"] == "broken better"
    assert [a.options for a in changed.arms if a.name != "better"] == [
        a.options for a in second.parts[0].experiment.arms if a.name != "better"]
    assert second.removed_rules == ROWS["002"].rule and first.removed_rules == (ROWS["001"].rule,)


def test_all_rules_of_a_row_decide_and_shared_cells_run_once(file, tmp_path):
    RUNS.clear()
    first, second = family(file, table(episodes=200), ROWS)
    verdicts = {}
    for claim in (first, second):
        figures, _ = run_figures(claim, Cells(tmp_path / "cells"), lambda text: None)
        verdicts[claim.name] = judge_figures(claim, figures)
    assert len(RUNS) == len(set(RUNS)) == 5 * 6  # six methods; the baseline and `good` are shared
    assert {name: v["verdict"] for name, v in verdicts.items()} == {"first": "holds", "second": "holds"}
    strict = {"002": replace(ROWS["002"], rule=(ROWS["002"].rule[0], higher("better", "good", 0.2)))}
    claim, = family(file, table(episodes=200), strict)
    figures, _ = run_figures(claim, Cells(tmp_path / "cells"), lambda text: None)
    assert judge_figures(claim, figures)["verdict"] == "fails" and len(RUNS) == 5 * 6


def test_a_fingerprint_is_of_the_arms_that_a_row_has(file):
    marks = [fingerprint(c) for c in family(file, table(), ROWS)]
    more = {**ARMS, "new": Rate("new", 0.1)}
    assert [fingerprint(c) for c in family(file, table(more), ROWS)] == marks
    other = {**ARMS, "aside": Rate("aside", 0.6)}  # of the second row alone
    assert [a == b for a, b in zip(marks, map(fingerprint, family(file, table(other), ROWS)), strict=True)] == [
        True, False]
    control = {**ARMS, "broken good": ablation("good", Rate("broken good", 0.2))}
    assert [a == b for a, b in zip(marks, map(fingerprint, family(file, table(control), ROWS)), strict=True)] == [
        False, True]


@pytest.mark.parametrize("row,problem", [
    (Row("first", higher("good", "nobody"), "broken good"), "the table has no arm nobody"),
    (Row("first", higher("good", "baseline"), "broken"), "first: the table has no ablation broken"),
    (Row("third", higher("good", "baseline"), "broken good"), "no text of third")])
def test_a_row_names_what_there_is(file, row, problem):
    with pytest.raises(ValueError, match=problem):
        family(file, table(), {"001": row})


CARRY = "claims.policy_heads.diffusion_components:Carry"


def test_demonstrations_are_of_the_environment_with_its_options():
    """Also of one that a claim defines. The fingerprint follows its name."""
    source = ExpertDemonstrations(CARRY, 6, options=(("grip", 4),))
    env = Carry(6, grip=4)
    rolled_out = rollout(env.expert(), env, 6, recording_seed(3)).filter(lambda e: e.metadata["success"])
    assert source.load(3).fingerprint() == rolled_out.fingerprint()
    assert rolled_out.fingerprint() != ExpertDemonstrations(CARRY, 6).load(3).fingerprint()
    sources = {}
    assert code_digest(source, sources) and "claims.policy_heads.diffusion_components" in sources


def test_rollouts_measure_what_closed_loop_does_and_more():
    method = Method(PolicyConfig(Regression(), window=Window(1, 4)), RecedingHorizon(2), BehaviorCloning(steps=3))
    fork = experiment(ExpertDemonstrations("fork", 8), {"a": method}, first_seed=100).experiment
    measure = Rollouts((("length", len),), (("episodes", lambda policy, ran: len(ran)),))
    measured = measure(fork, method, fork.source.load(100), 100, 5, 7)
    plain = closed_loop(fork, method, fork.source.load(100), 100, 5, 7)
    assert measured["success"] == plain["success"] and len(measured["length"]) == 5 and measured["episodes"] == [5.0]
    assert list(measured) == ["success", "length", "episodes"] and min(measured["length"]) > 1
