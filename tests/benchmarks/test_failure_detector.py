"""Coverage of the failure detector: the stored rates, and what the page says of them."""

import json

import pytest
from folders import BENCHMARKS, REPOSITORY

RESULT = json.loads((BENCHMARKS / "results" / "failure_detector.json").read_text())


@pytest.fixture
def benchmark(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it starts this process again
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import failure_detector

    return failure_detector


def test_every_stated_rate_is_met_within_three_points_on_a_thousand_rollouts():
    assert len(RESULT["nominal"]) == 6 and RESULT["rate"] == 0.1
    for cell in RESULT["nominal"]:
        assert cell["of"] == 1000 and abs(cell["errors"] / cell["of"] - 0.1) <= 0.03 and cell["holds"]


def test_the_page_has_the_figures_of_the_stored_result(benchmark):
    page = " ".join((REPOSITORY / "docs" / "detect.md").read_text().split())
    for line in benchmark.nominal_table(RESULT):
        assert line in page
    rows = {line.split("`")[1]: line for line in benchmark.shifted_table(RESULT)[2:]}
    assert {name for name, row in rows.items() if "**" in row.split("|")[4]} == {"delay", "dropped"}
    assert "It is blind to old observations (`delay`, `dropped`)" in page
    assert "**18%**" in rows["noise"].split("|")[3] and "Sensor noise makes `spread` miss 18 %." in page
