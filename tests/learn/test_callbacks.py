"""What looks on while a policy trains: curves, progress and metrics for others."""

from __future__ import annotations

import io
import json
import sys
import types

import pytest

from understudy.core import UserError
from understudy.hints import format_duration
from understudy.learn.callbacks import LossCurve, ProgressBar


def test_a_curve_is_the_mean_of_each_stretch_however_it_was_interrupted():
    records, losses = [], [1.0, 2.0, 6.0, 4.0, 5.0, 9.0, 7.0]
    curve = LossCurve(3, lambda **line: records.append(line))
    for step, loss in enumerate(losses, 1):
        if step in (2, 5):
            curve = LossCurve(3, curve.write, json.loads(json.dumps(curve.state)))
        curve(step, None, {"loss": loss})
    assert records == [{"step": 3, "loss": 3.0}, {"step": 6, "loss": 6.0}]


def _watched(monkeypatch, steps, seconds, bar):
    from rich.console import Console

    from understudy.learn import callbacks

    out, clock = io.StringIO(), iter(range(1000))
    progress = ProgressBar(steps, bar=bar)
    progress.console = Console(file=out)
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: seconds * next(clock))
    with progress:
        for n in range(1, 15):
            progress(n, None, {"loss": 1.0})
    return out.getvalue()


def test_what_takes_long_says_so_once_and_what_does_not_is_quiet(monkeypatch):
    output = _watched(monkeypatch, 100_011, 0.1, None)
    assert output.count("about 2.8 hours") == 1 and "10 a second" in output and "Ctrl-C" in output
    assert _watched(monkeypatch, 9_000, 0.1, None) == ""  # 15 minutes
    assert _watched(monkeypatch, 100_011, 0.1, False) == ""


def test_updates_of_the_critic_alone_move_the_bar_on():
    progress = ProgressBar(100, bar=False)
    assert {progress.bar.tasks[0].fields[name] for name in ("loss", "speed")} == {"–"}
    for n, metrics in enumerate(({"critic/loss": 1.0}, {"critic/loss": 1.0}, {"loss": 2.0}, {"critic/loss": 1.0}), 1):
        progress(n, None, metrics)
        progress(n, None, {"validation/energy": 9.0})
    assert progress.bar.tasks[0].completed == 4 and progress.bar.tasks[0].fields["loss"] == "2"
    assert float(progress.bar.tasks[0].fields["speed"]) > 0


def test_durations_in_words():
    assert [format_duration(s) for s in (40, 900, 5400, 7200, 90_000, 400_000)] == [
        "40 seconds", "15 minutes", "1.5 hours", "2 hours", "25 hours", "4.6 days"]


def test_metrics_for_others(monkeypatch):
    """Neither package is needed to run the tests: what they are told is what counts."""
    from understudy.learn import callbacks

    calls = []

    class Writer:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def flush(self):
            calls.append("flush")

        def close(self):
            calls.append("close")
    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    look = callbacks.TensorBoard("logs", every=2)
    assert not calls, "only the process that logs writes"
    for step, metrics in ((1, {"critic/loss": 3.0}), (2, {"loss": 2.0}), (3, {}), (3, {"score": 1.0})):
        look(step, None, metrics)
    look.close()
    # updates now and then, judgements always; a resumed run drops what was logged after its checkpoint
    assert calls == [("logs", 2), ("loss", 2.0, 2), "flush", ("score", 1.0, 3), "flush", "close"]

    biases = types.ModuleType("wandb")
    biases.setup = lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode="offline"))
    biases.init = lambda **options: types.SimpleNamespace(
        define_metric=lambda name, step_metric: calls.append((name, step_metric)),
        log=lambda line: calls.append((options, line)), finish=lambda: calls.append("finish"))
    monkeypatch.setitem(sys.modules, "wandb", biases)
    look = callbacks.Wandb(every=1, project="toys")
    look(4, None, {"loss": 1.0})
    look.close()
    assert calls[-3:] == [("*", "step"), ({"project": "toys"}, {"loss": 1.0, "step": 4}), "finish"]

    for name, package, options in (("TensorBoard", "torch.utils.tensorboard", ["logs"]), ("Wandb", "wandb", [])):
        monkeypatch.setitem(sys.modules, package, None)  # not installed
        with pytest.raises(UserError, match="pip install"):
            getattr(callbacks, name)(*options)
