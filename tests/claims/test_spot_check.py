"""A spot check draws within its budget, runs in full, and publishes how often a verdict differs."""

import numpy as np
import pytest
from fixtures.toy_claims import CALLS, toy_claim

from understudy.claims import spot_check
from understudy.claims.runner import Cells, run_figures, write_figures
from understudy.claims.spot_check import SpotCheck, check_record, disagreement, draw_claims, largest_difference
from understudy.files import write_json


def entry(name, seconds, verdict="holds"):
    return {"name": name, "seconds": seconds, "verdict": verdict}


def test_claims_are_drawn_at_random_within_the_budget():
    entries = [entry(str(i), 10.0) for i in range(6)] + [entry("never", None, "not run"), entry("dear", 1000.0)]
    drawn = [draw_claims(entries, 35.0, np.random.default_rng(seed)) for seed in range(200)]
    assert {len(d) for d in drawn} == {3} and all(len(set(d)) == 3 for d in drawn)
    counts = np.bincount([int(name) for d in drawn for name in d], minlength=6)
    assert counts.min() > 70 and counts.max() < 130  # 100 each, standard deviation 7
    assert draw_claims(entries, 5.0, np.random.default_rng(0)) == []
    assert "dear" in draw_claims(entries, 2000.0, np.random.default_rng(0))


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A claim with its record, and how often cells ran."""
    for module in ("spot_check", "runner"):
        monkeypatch.setattr(f"understudy.claims.{module}.figures_path", lambda name: tmp_path / f"{name}.figures.json")
    monkeypatch.setattr("understudy.claims.spot_check.record_path", lambda name: tmp_path / f"{name}.json")
    claim = toy_claim()
    figures, _ = run_figures(claim, Cells(tmp_path / "cells"), lambda text: None)
    write_figures(claim.name, figures)
    write_json(tmp_path / "toy.json", {"verdict": "holds"})
    return claim, tmp_path


def test_a_check_runs_every_cell_again_and_compares(recorded):
    claim, folder = recorded
    CALLS.clear()
    check = check_record(claim)
    assert len(CALLS) == 10  # two arms of five seeds; the control shares them
    assert check.agrees and check.largest_difference == 0 and check.recorded_verdict == check.new_verdict == "holds"
    write_json(folder / "toy.json", {"verdict": "fails"})
    assert not check_record(claim).agrees


def test_the_largest_difference_is_relative_to_the_scale_of_its_measure():
    stored = {"p": {"a": {"time": [[10.0], [100.0]], "rate": [[0.5], [0.5]]}}}
    now = {"p": {"a": {"time": [[10.0], [99.0]], "rate": [[0.5], [0.52]]}}}
    assert largest_difference(stored, stored) == 0
    assert largest_difference(stored, now) == pytest.approx(0.04)
    assert largest_difference(stored, {"p": {"a": {"time": [[10.0]], "rate": [[0.5], [0.5]]}}}) == float("inf")


def test_checks_add_up_to_a_published_rate(tmp_path):
    """One of ten: Clopper and Pearson's interval is 0.0025 to 0.4450."""
    path = tmp_path / "checks.json"
    assert spot_check.published(path) == []
    checks = [SpotCheck("a", "2026-01-01", None, "holds", "holds", 0.0, 1.0)] * 9
    spot_check.save(checks, path)
    spot_check.save([SpotCheck("b", "2026-01-02", "c" * 40, "holds", "undecided", 0.5, 2.0)], path)
    assert spot_check.published(path)[:9] == checks
    rate = disagreement(spot_check.published(path))
    assert (rate.estimate, rate.low, rate.high) == pytest.approx((0.1, 0.0025, 0.4450), abs=1e-4)
