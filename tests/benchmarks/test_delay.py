"""benchmarks/delay.py: how the schemes are delayed, and the table of cells that are made up."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from folders import BENCHMARKS

from understudy.data.window import Window
from understudy.execute.chunking import RealTimeChunking
from understudy.execute.filters import FilteredExecutor
from understudy.execute.latency import DelayedPlan
from understudy.execute.schemes import EXECUTION_SCHEMES
from understudy.execute.temporal_ensemble import AdaptiveEnsemble, TemporalEnsemble
from understudy.files import write_json
from understudy.heads.denoising.flow import Flow
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import random_batch


@pytest.fixture
def delay(monkeypatch, tmp_path):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it starts this process again
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import delay

    monkeypatch.setattr(delay.measure, "RESULTS", tmp_path)
    monkeypatch.setattr(delay, "PICTURES", tmp_path)
    yield delay
    sys.modules.pop("delay")


def test_every_scheme_is_delayed_by_the_same_number_of_steps(delay):
    assert set(delay.SCHEMES) <= set(EXECUTION_SCHEMES)
    config = PolicyConfig(Flow(), MLP(8, 1), window=Window(2, 16))
    policy, _ = random_batch(config)
    method = replace(delay.method(delay.TINY), policy=config)
    for scheme in delay.SCHEMES:
        executor = delay.late_actor(policy, method, scheme, 8, 4).executor
        if scheme.endswith("-ensemble"):
            assert executor == (TemporalEnsemble if scheme.startswith("temporal") else AdaptiveEnsemble)(delay=8)
            continue
        executor = executor.executor if isinstance(executor, FilteredExecutor) else executor
        assert isinstance(executor, DelayedPlan) and executor.delay == 8, scheme
        if scheme == "real-time-chunking":
            assert executor.executor == RealTimeChunking(4, delay=8)
        executor.check_planner(policy)
    assert delay.late_actor(policy, method, "real-time-chunking", 0, 4).executor == RealTimeChunking(4, delay=0)


def test_the_table_has_the_mean_of_the_seeds_of_which_all_cells_ran(delay, tmp_path):
    """Two seeds succeed in 4 and 6 of 10 starts with one scheme, and always with the others. A third is not done."""
    size = replace(delay.FULL, seeds=(0, 1, 2), delays=(0, 8), episodes=10)
    for seed, wins in ((0, 4), (1, 6), (2, 10)):
        for scheme in delay.SCHEMES[: None if seed < 2 else -1]:
            won = [1] * wins + [0] * (10 - wins) if scheme == "low-pass" else [1] * 10
            write_json(delay.cell_path(size, "fork", seed, scheme), {"success": {"0": [1] * 10, "8": won}})
    intervals = delay.intervals(delay.outcomes(size, "fork"))
    assert delay.finished_seeds(size, "fork") == [0, 1] and not delay.outcomes(size, "push")
    assert intervals["low-pass"][1].estimate == pytest.approx(0.5) and intervals["low-pass"][0].estimate == 1
    differences = delay.differences(delay.outcomes(size, "fork"), size.delays)
    assert "receding-horizon" not in differences and differences["chunk-blending"][1].estimate == 0
    assert [d.estimate for d in differences["low-pass"]] == pytest.approx([0, -0.5]), "the delay 0 is not in the mean"
    assert delay.points(replace(differences["low-pass"][1], low=-0.6, high=-0.4)) == "**−50 [−60, −40]**"
    text = delay.page_text(size)
    row = next(line for line in text.splitlines() if line.startswith("| low-pass"))
    assert row.startswith("| low-pass | +0 [") and "−50 [" in row and "succeeds in 100 [" in text
    assert "2 training seeds" in text and "smallest size" not in text and "push" not in text
    assert (tmp_path / "delay-fork.svg").read_text().startswith("<svg")


def test_a_cell_that_ran_is_not_run_again(delay, monkeypatch):
    monkeypatch.setattr(delay, "fit_method", None)  # nothing may be trained
    for scheme in delay.SCHEMES:
        write_json(delay.cell_path(delay.TINY, "fork", 0, scheme), {"success": {}})
    delay.run_cells(delay.TINY, "fork", 0)
    delay.cell_path(delay.TINY, "fork", 0, "low-pass").unlink()
    with pytest.raises(TypeError):
        delay.run_cells(delay.TINY, "fork", 0)
