"""The benchmark of the diagnosis: its cases, the half that was sealed, and what the page says of the stored results."""

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


def test_there_are_90_cases_of_which_the_seed_seals_half(benchmark):
    for kind, cases in benchmark.KINDS.items():
        names = [case.name for case in cases]
        opened, sealed = ({case.name for case in benchmark.half(kind, which)} for which in ("open", "sealed"))
        assert len(names) == len(set(names)) == 30 and len(opened) == len(sealed) == 15
        assert opened | sealed == set(names) and not opened & sealed
        assert all(case.codes for case in cases) == (kind != "sound")


def test_the_page_says_what_is_stored(benchmark, capsys):
    benchmark.table()
    counts = capsys.readouterr().out.splitlines()[:5]
    page = (BENCHMARKS.parent / "docs" / "diagnose.md").read_text(encoding="utf-8")
    assert "\n".join(counts) in page and counts[2].startswith("| right fault first | ")


def test_results_are_of_cases_of_their_half(benchmark):
    stored = json.loads((BENCHMARKS / "results" / "diagnose.json").read_text())
    halves = {which: {case.name for kind in benchmark.KINDS for case in benchmark.half(kind, which)}
              for which in ("open", "sealed")}
    judged = {which: set().union(*(results.get(which, {}) for results in stored.values() if isinstance(results, dict)))
              for which in halves}
    assert judged["sealed"] and all(names <= halves[which] for which, names in judged.items())
