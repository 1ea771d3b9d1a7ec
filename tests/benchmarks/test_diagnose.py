"""The benchmark of the diagnosis: its cases in three sets, and what the page says of the stored results."""

import json
from itertools import combinations

import pytest
from folders import BENCHMARKS


@pytest.fixture
def benchmark(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it starts this process again
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import diagnose

    return diagnose


def test_there_are_90_cases_in_three_sets_that_differ(benchmark):
    for kind, cases in benchmark.KINDS.items():
        sets = [benchmark.cases_of(which, kind) for which in benchmark.SETS]
        for chosen in sets:
            assert len(cases) == len({case.name for case in chosen}) == 30
            assert all(case.codes for case in chosen) == (kind != "sound")
            assert "|" not in "".join(case.name for case in chosen)
        if kind != "sound":
            for one, other in combinations(sets, 2):
                assert sum(a.name != b.name for a, b in zip(one, other, strict=True)) > 15


def test_a_word_with_bars_has_one_alternative_for_each_set(benchmark):
    opened, judged, fresh = (benchmark.KINDS["carry"][0].of(which) for which in benchmark.SETS)
    assert [case.data for case in (opened, judged, fresh)] == ["late 1", "late 2", "late 3"]
    assert [case.size for case in (opened, judged, fresh)] == [1, 2, 3]
    assert fresh.name == "carry: actions stored 3 steps late"


def test_the_page_says_what_is_stored(benchmark, capsys):
    benchmark.table()
    counts = capsys.readouterr().out.splitlines()[:5]
    page = (BENCHMARKS.parent / "docs" / "tables" / "diagnose.md").read_text(encoding="utf-8")
    assert "\n".join(counts) in page and counts[2].startswith("| right fault first | ")


def test_results_are_of_cases_of_their_set(benchmark):
    stored = json.loads((BENCHMARKS / "results" / "diagnose.json").read_text())
    assert set(stored["after"]) == set(benchmark.SETS)
    for sets in stored.values():
        for which, results in sets.items():
            assert results.keys() <= {case.name for case in benchmark.cases_of(which)}
    assert stored["after"]["fresh"].keys() == {case.name for case in benchmark.cases_of("fresh")}
