"""Recordings survive damage, full disks, kills and power cuts."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fixtures.recordings import SCHEMA, holds, settled, show, told
from folders import BENCHMARKS, TESTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.core import UserError
from understudy.data import journal
from understudy.data.formats import open_dataset
from understudy.data.recording.recorder import Recorder, publish, repair

STATE, FRONT = "observation.state", "observation.images.front"


# -- damage ---------------------------------------------------------------------------------------------------------


def _journal(folder: Path, episodes: int = 4) -> tuple[Path, list[int]]:
    """A recording whose process is gone, and how long its journal was when each episode was finished."""
    saved, ends = [], []
    r = Recorder(SCHEMA, folder, fps=10, clock=None, on_saved=saved.append)
    for number in range(episodes):
        show(r, number, 3, success=True)
        while len(saved) <= number:
            time.sleep(0.001)
        ends.append(r._journal.segment.stat().st_size)
    for t in range(3):
        r.step(*told(9, t))
    settled(r)
    r._lock.close()
    return r._journal.segment, ends


@pytest.fixture(scope="module")
def segment(tmp_path_factory):
    file, ends = _journal(tmp_path_factory.mktemp("journal") / "d")
    return file.name, file.read_bytes(), ends


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_journal_that_is_cut_anywhere_has_the_episodes_before(segment, tmp_path, data):
    name, whole, ends = segment
    at = data.draw(st.integers(0, len(whole)))
    tail = data.draw(st.sampled_from([b"", bytes(50), b"\xd5uj1" * 5, os.urandom(60)]))
    (tmp_path / name).write_bytes(whole[:at] + tail)
    contents = journal.read_segment(tmp_path / name)
    assert len(contents.episodes) == sum(end <= at for end in ends)
    assert all(holds(e.episode(), n, 3) for n, e in enumerate(contents.episodes))
    if contents.unfinished is not None:
        state = contents.unfinished.column(STATE)
        assert (state[:, 1] == np.arange(len(state))).all()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_byte_that_is_wrong_costs_no_more_than_its_episode(segment, tmp_path, data):
    name, whole, ends = segment
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= data.draw(st.integers(1, 255))
    (tmp_path / name).write_bytes(damaged)
    contents = journal.read_segment(tmp_path / name)
    hit = sum(end <= at for end in ends)
    states = [e.column(STATE) for e in contents.episodes]
    for number in set(range(len(ends))) - {hit}:
        assert any(np.array_equal(s, [[number, t] for t in range(3)]) for s in states), number
    for s, e in zip(states, contents.episodes, strict=True):  # and nothing is there that was not recorded
        assert (s == [[s[0, 0], t] for t in range(len(s))]).all() and (len(s) == 3 or e.metadata["interrupted"])
    assert contents.problems


def test_segments_that_are_in_the_files_already_are_not_put_there_twice(tmp_path, monkeypatch):
    _journal(tmp_path / "d")
    removed = Path.unlink

    def unlink(self, **more):
        if self.suffix == ".part" and self.parent.name == "journal":
            raise KeyboardInterrupt  # killed between the files and the journal
        removed(self, **more)
    with monkeypatch.context() as m:
        m.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            publish(tmp_path / "d")
    between = open_dataset(tmp_path / "d")
    assert len(between) == 5 and between.metadata["warnings"] == []
    assert publish(tmp_path / "d").episodes == 0
    assert open_dataset(tmp_path / "d").fingerprint() == between.fingerprint()


# -- full disks -----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_said_at_the_next_step_and_costs_no_saved_episode(tmp_path, monkeypatch):
    full, write, saved = [False], os.write, []

    def scarce(handle, data):
        if full[0]:
            write(handle, bytes(data)[:5])  # some of it still fits
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data)
    monkeypatch.setattr(journal.os, "write", scarce)
    r = Recorder(SCHEMA, tmp_path / "d", fps=10, clock=None, on_saved=saved.append)
    show(r, 0, 3)
    r.step(*told(1, 0))
    settled(r)
    full[0] = True
    with pytest.raises(UserError, match="the disk is full; every episode that was saved is kept"):
        for t in range(1, 1000):
            r.step(*told(1, t))
            time.sleep(0.01)
    with pytest.raises(UserError, match="understudy repair"):
        r.close()
    full[0] = False
    assert saved == [0]
    done = repair(tmp_path / "d")
    data = open_dataset(tmp_path / "d")
    assert done.episodes == 2 and holds(data[0], 0, 3) and holds(data[1], 1, 1) and data[1].metadata["interrupted"]


FULL = """
import resource, sys
import numpy as np
from understudy.data.recording.recorder import Recorder
from understudy.core import Feature
sys.path.insert(0, {tests!r})
from fixtures.recordings import SEEN, told
r = Recorder(SEEN, {path!r}, fps=10, clock=None, images="png", on_saved=lambda n: print("saved", n, flush=True))
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
with r:
    for number in range(1000):
        for step in range(3):
            r.step(*told(number % 20, step, True))
        r.end()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file sizes")
def test_a_limit_of_file_sizes_stands_in_for_a_full_disk(tmp_path):
    path, limit = tmp_path / "d", 30_000
    done = subprocess.run([sys.executable, "-c", FULL.format(tests=str(TESTS), path=str(path),
                                                             limit=limit)], capture_output=True, text=True)
    assert done.returncode == 1 and "the disk is full" in done.stderr, done.stderr
    saved = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert saved == list(range(len(saved))) and len(saved) > 0
    repair(path)
    data = open_dataset(path)
    assert len(data) >= len(saved) and all(holds(e, n % 20, 3) for n, e in zip(saved, data, strict=False))


# -- kills and power cuts -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_kill_and_a_power_cut_lose_no_finished_episode(tmp_path):
    """One of each here, more below; benchmarks/kill.py does a thousand."""
    _killed(tmp_path, 2, "frames")


@pytest.mark.slow
def test_fifty_kills_and_power_cuts(tmp_path):
    for k in range(5):
        for way in ("steps", "frames", "toy"):
            _killed(tmp_path / f"{k}-{way}", 4 if way == "steps" else 3, way)


def _killed(folder: Path, times: int, way: str) -> None:
    sys.path.insert(0, str(BENCHMARKS))
    import kill

    folder.mkdir(exist_ok=True)
    losses = list(kill.trials(folder, times, way, seed=random.randrange(2**31)))
    assert len(losses) == times and all(t.finished_lost == 0 and t.running_lost <= 1 for t in losses), losses
