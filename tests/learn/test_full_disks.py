"""Disks that fill and processes that are killed lose no checkpoint."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fixtures.killed_training import save_each_update, start
from fixtures.runs import Stop, contents, made_up, plain, run

from understudy.checkpoint import find_checkpoint
from understudy.core import UserError
from understudy.learn.run import Run, disk_space_errors
from understudy.learn.stages import copy_run
from understudy.policy import Policy


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small"
    run(out, plain(4), save_freq=2)
    return out


def _fills_up(out: Path, small: Path, broken) -> None:
    """One message; what was saved is whole; with room again the same command makes the same run."""
    with broken, pytest.raises(UserError, match="(?s)no room to write: .* make room, and give the same command"):
        run(out, plain(4), save_freq=2)
    for step in Run(out).saved_steps():
        Policy.load(out / "checkpoints" / f"{step:06d}")
    assert not list(out.rglob("*.part"))
    run(out, plain(4), save_freq=2)
    assert contents(out) == contents(small)


class Full:
    """The disk is full from the n-th time on that something is written for good."""

    def __init__(self, monkeypatch, n: int):
        self.patch, self.left, self.real = monkeypatch, n, os.fsync

    def __enter__(self):
        self.patch.setattr(os, "fsync", self)

    def __exit__(self, *error):
        self.patch.setattr(os, "fsync", self.real)

    def __call__(self, file):
        self.left -= 1
        if self.left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.real(file)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 17, 24, 31, 45, 58])
def test_a_full_disk_is_one_message_and_loses_nothing(tmp_path, small, monkeypatch, n):
    _fills_up(tmp_path / "run", small, Full(monkeypatch, n))


class Limit:
    """No file may be longer than so many bytes: a real error of the system, also inside safetensors."""

    def __init__(self, size: int):
        self.size = size

    def __enter__(self):
        import resource

        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *error):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file sizes")
@pytest.mark.parametrize("size", [10, 500, 5000])
def test_a_file_that_cannot_grow_is_one_message_and_loses_nothing(tmp_path, small, size):
    _fills_up(tmp_path / "run", small, Limit(size))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file sizes")
def test_a_copied_stage_for_which_there_is_no_room_is_one_message_and_nothing(tmp_path, small):
    with Limit(500), pytest.raises(UserError, match="(?s)stage: no room to write: .* make room, and give the same"):
        copy_run(small, tmp_path / "stage")
    assert not list(tmp_path.iterdir())
    copy_run(small, tmp_path / "stage")
    assert Run.fingerprint(find_checkpoint(tmp_path / "stage")) == Run.fingerprint(find_checkpoint(small))
    assert not list((tmp_path / "stage").rglob("train"))


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), disk_space_errors(tmp_path, "make room"):
        raise PermissionError(errno.EACCES, "no")


def test_a_torn_line_and_half_a_checkpoint_are_cleared_away(tmp_path, whole):
    """What a power cut leaves: a line without its end, a folder that never got its name."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(out, callbacks=[Stop(6)])
    with open(out / "metrics.jsonl", "a") as lines:
        lines.write('{"step": 7, "loss": 1.0, "seconds": 1}\n{"step": 8, "lo')
    for half in (".000008.x1.part", ".000004.part"):
        (out / "checkpoints" / half / "train").mkdir(parents=True)
        (out / "checkpoints" / half / "policy.json").write_text("{")
    (out / ".run.json.x2.part").write_text("{")
    run(out)
    assert contents(out) == contents(whole)


def test_a_checkpoint_that_was_not_yet_named_counts(tmp_path, whole):
    """Killed between the checkpoint's move and the name in run.json."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(out, callbacks=[Stop(6)])
    (out / "run.json").write_text(json.dumps({"last": "checkpoints/000004"}))
    steps_run = []
    run(out, callbacks=[lambda n, learner, s: steps_run.append(n)])
    assert steps_run[0] == 7 and contents(out) == contents(whole)


@pytest.mark.slow  # processes are started and killed
def test_killed_at_any_moment_the_checkpoints_are_whole_and_it_goes_on(tmp_path):
    """It saves after every update, so that most kills come in the midst of saving."""
    out, rng, last = tmp_path / "run", np.random.default_rng(0), -1
    for n in range(9):
        child = start(save_each_update, out)
        # The first time at once; then when it is at work, which on a busy machine may take a while to begin.
        deadline = time.monotonic() + 60
        while n and max(Run(out).saved_steps(), default=-1) <= last and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        saved = Run(out).saved_steps()
        assert n == 0 or saved[-1] > last
        last = max(saved, default=-1)
        for step in saved:
            policy = Policy.load(out / "checkpoints" / f"{step:06d}")
            learner = plain(60).learner.build(policy, 0, 60, made_up())
            assert Run(out).resume(step, learner)["step"] == step == learner.n_updates
        if saved and (out / "run.json").exists():
            Policy.load(out)
    assert last >= 7  # each but the first got further
    run(out, plain(60), save_freq=1)
    run(tmp_path / "reference", plain(60), save_freq=1)
    assert contents(out) == contents(tmp_path / "reference")
