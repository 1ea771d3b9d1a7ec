"""benchmarks/eager_updates.py: it has a method for each class of learners."""

from __future__ import annotations

import pytest
from folders import BENCHMARKS

from understudy.methods import find_method, method_files
from understudy.testing.methods import example_columns


@pytest.fixture
def eager_updates(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it starts this process again
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import eager_updates

    return eager_updates


def test_there_is_a_method_for_each_class_of_learners(eager_updates):
    def learner(name):
        return type(find_method(name, example_columns(name)).learner)
    names = [name.partition(":")[0] for name in eager_updates.methods_of_learners()]
    assert {learner(name) for name in names} == {learner(name) for name in method_files()}
