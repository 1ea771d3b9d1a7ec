"""The matrix of tasks that are learned one after the other."""

import numpy as np
import pytest
from folders import REPOSITORY


@pytest.fixture
def lifelong(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it starts this process again
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import lifelong

    return lifelong


def test_ages_are_diagonals_of_the_matrix(lifelong):
    learned, task = np.mgrid[:8, :8]
    matrix = np.where(task <= learned, 1 / (1 + np.abs(learned - task)), np.where(task == learned + 1, 0.25, 0.0))
    matrices = np.broadcast_to(matrix, (5, 3, 8, 8))
    assert [i.estimate for i in lifelong.by_age(matrices)] == pytest.approx([1 / (1 + age) for age in range(8)])
    assert lifelong.before_learning(matrices).estimate == pytest.approx(0.25)


def test_a_cell_says_of_each_task_how_it_went_on(lifelong):
    cell = np.array(lifelong.run_cell("uniform", 899, tiny=True)["success"])
    assert cell.shape == (3, 8, 8) and set(np.unique(cell)) <= {0.0, 0.5, 1.0}
