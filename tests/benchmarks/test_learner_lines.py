"""benchmarks/learner_lines.py: which files are those of methods, and that the stored page has both tables."""

from __future__ import annotations

import pytest
from folders import BENCHMARKS


@pytest.fixture
def learner_lines(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it starts this process again
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import learner_lines

    return learner_lines


def test_lines_of_methods(learner_lines):
    lines = {"methods/a/one.py": 10, "methods/a/two.py": 20, "methods/b/three.py": 60, "methods/a/__init__.py": 99,
             "methods/registry.py": 99, "learn/train.py": 100, "learn/critics/td3.py": 50}
    assert learner_lines.method_lines(lines) == {
        "methods": 3, "median lines of a method's file": 20, "mean lines of a method's file": 30.0,
        "lines of all files of methods": 90, "lines of `learn/`": 150, "lines of both, for each method": 80.0}


def test_the_page_has_both_tables(learner_lines):
    page = learner_lines.page()
    assert f"| | {learner_lines.BEFORE} | now |\n" in page and "| methods | 149 | 149 |" in page
    assert "| `iql` | " in page
