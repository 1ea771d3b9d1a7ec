"""The benchmark of the diagnosis: its cases in two sets, and what the page says of the stored results."""

import json

import pytest
from folders import BENCHMARKS


@pytest.fixture
def benchmark(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it starts this process again
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import diagnose

    return diagnose


def test_there_are_90_cases_in_two_sets_that_differ(benchmark):
    for kind, cases in benchmark.KINDS.items():
        opened, judged = (benchmark.cases_of(which, kind) for which in benchmark.SETS)
        for chosen in (opened, judged):
            assert len(cases) == len({case.name for case in chosen}) == 30
            assert all(case.codes for case in chosen) == (kind != "sound")
        assert "|" not in "".join(case.name for case in (*opened, *judged))
        if kind != "sound":
            assert sum(a.name != b.name for a, b in zip(opened, judged, strict=True)) > 15


def test_the_page_says_what_is_stored(benchmark, capsys):
    benchmark.table()
    counts = capsys.readouterr().out.splitlines()[:5]
    page = (BENCHMARKS.parent / "docs" / "diagnose.md").read_text(encoding="utf-8")
    assert "\n".join(counts) in page and counts[2].startswith("| right fault first | ")


def test_results_are_of_cases_of_their_set(benchmark):
    stored = json.loads((BENCHMARKS / "results" / "diagnose.json").read_text())["after"]
    assert set(stored) == set(benchmark.SETS)
    for which, results in stored.items():
        assert results.keys() <= {case.name for case in benchmark.cases_of(which)}
    assert stored["judged"].keys() == {case.name for case in benchmark.cases_of("judged")}
