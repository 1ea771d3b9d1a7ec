"""The page of real input: its commands are commands, and what did not run says so."""

import importlib.util
import json
from pathlib import Path

import pytest
from folders import BENCHMARKS

from understudy.methods import method_files


@pytest.fixture
def bench(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("real_input", BENCHMARKS / "real_input.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "real_input", module)
    spec.loader.exec_module(module)
    return module


def test_cells_name_methods_that_there_are(bench):
    for task in bench.TASKS.values():
        assert set(task.methods) <= set(method_files()) and set(task.methods) <= set(bench.STEPS)
    assert {"bc", "bc-gmm", "act", "diffusion-policy", "mip", "knn"} == set(bench.TASKS["door"].methods)
    assert bench.EPISODES >= 100


def test_what_did_not_run_says_so_and_what_ran_is_shown(bench):
    page = bench.page()
    assert page.count("did not run") == len(bench.CELLS)
    interval = {"estimate": 0.5, "low": 0.398, "high": 0.602, "level": 0.95}
    result = {"success": interval, "opened": interval, "d4rl": {**interval, "estimate": 2.3},
              "return": {"mean": 10.0, "low": 9.0, "high": 11.0, "level": 0.95}, "train_cpu_seconds": 12.3}
    bench.RESULTS.mkdir(parents=True)
    (bench.RESULTS / "door-knn.json").write_text(json.dumps(result))
    page = bench.page()
    assert page.count("did not run") == len(bench.CELLS) - 1
    assert "| knn | 50 % [40, 60] | 50 % [40, 60] | 2.3 [0.4, 0.6] |" in page
    assert "this checkpoint" in page


def test_missing_data_is_said_and_nothing_is_made_up(bench, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["real_input.py", "door/knn"])
    monkeypatch.setattr(bench, "DATA", Path("nowhere"))
    assert bench.main() == 2
    assert "nowhere" in (captured := capsys.readouterr()).err and "UNDERSTUDY_DATA" in captured.err
    assert not (bench.RESULTS / "door-knn.json").exists()
    monkeypatch.setattr("sys.argv", ["real_input.py", "door/none"])
    assert bench.main() == 2 and "no cell 'door/none'" in capsys.readouterr().err
