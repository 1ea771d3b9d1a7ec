"""Injected faults are named first, and healthy runs have no finding above a note: the judgment of the benchmark."""

import json

import numpy as np
import pytest
from folders import BENCHMARKS

from understudy.data.episode import Dataset, Episode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs that the cases of a session share."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def benchmark(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it starts this process again
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import diagnose

    return diagnose


def test_development_and_judgment_share_no_seed_and_no_toy(benchmark, monkeypatch):
    def cases(develop):
        each = [case for case, _ in benchmark.faults(*benchmark.FAULTS[develop]).values()]
        return {(c.toy.name, c.seed) for c in (*each, *benchmark.HEALTHY[develop])}
    monkeypatch.setattr(benchmark, "demonstrations", lambda *args: Dataset([Episode({"action": np.zeros((2, 4))})]))
    judged, developed = cases(False), cases(True)
    assert len(benchmark.HEALTHY[False]) >= benchmark.N_HEALTHY == 20 == len(benchmark.faults(*benchmark.FAULTS[False]))
    assert not {name for name, _ in judged} & {name for name, _ in developed}
    assert not {seed for _, seed in judged} & {seed for _, seed in developed}


def test_the_stored_judgment(benchmark):
    """What is stored agrees with the findings, and the page says what is stored."""
    stored = json.loads((BENCHMARKS / "results" / "diagnose.json").read_text())
    for fault in stored["faults"].values():
        first = fault["findings"][0]
        assert fault["named_first"] == ((first["code"], first["level"]) == (fault["expected"], "fault"))
    for healthy in stored["healthy"].values():
        assert healthy["alarms"] == sum(f["level"] != "note" for f in healthy["findings"])
    first = sum(f["named_first"] for f in stored["faults"].values())
    judged = benchmark.healthy(stored)
    assert len(stored["faults"]) == 20 and first >= 18 and len(judged) == 20
    page = (BENCHMARKS.parent / "docs" / "diagnose.md").read_text(encoding="utf-8")
    assert f"{first} of 20 faults first" in page and (
        f"{sum(not h['alarms'] for h in judged)} of 20 healthy runs" in page)


@pytest.mark.slow
def test_at_least_18_of_20_faults_are_named_first(benchmark, folder):
    results = {name: benchmark.run_fault(name, case, code, folder)
               for name, (case, code) in benchmark.faults(*benchmark.FAULTS[False]).items()}
    missed = {name: r["findings"][:1] for name, r in results.items() if not r["named_first"]}
    assert len(results) == 20 and len(missed) <= 2, missed


@pytest.mark.slow
def test_healthy_runs_have_no_finding_above_a_note(benchmark, folder):
    some = [c for c in benchmark.HEALTHY[False][:20] if c.name in ("bc", "bet")]
    results = [benchmark.run_healthy(case.toy.name, case, folder) for case in some]
    assert len(results) == 5 and not any(r["alarms"] for r in results), results
