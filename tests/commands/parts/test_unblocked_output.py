"""Printing that makes no control loop wait for whoever reads it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading

import pytest
from fixtures.waiting import wait_until

from understudy.commands.parts.unblocked_output import unblocked_output
from understudy.data.formats import open_dataset
from understudy.files import read_json


def test_what_is_printed_into_a_pipe_that_nobody_reads_waits_for_a_reader(monkeypatch):
    """A pipe holds 64 KB. The lines that stay all arrive, and of those that replace each other the last."""
    read_end, write_end = os.pipe()
    stream, parts = os.fdopen(write_end, "w"), []
    monkeypatch.setattr(sys, "stderr", stream)

    def read_all():
        with os.fdopen(read_end, newline="") as pipe:
            parts.append(pipe.read())
    with unblocked_output():
        for number in range(100):
            print(f"line {number}: " + 1000 * "x", file=sys.stderr, flush=True)
            for status in range(50):
                print(f"\rstep {number}, {status} " + 100 * "y", end="", file=sys.stderr, flush=True)
        reader = threading.Thread(target=read_all)
        reader.start()
    assert sys.stderr is stream
    stream.close()
    reader.join()
    lines = [line.rpartition("line ")[2].partition(":")[0] for line in parts[0].split("x\n")]
    assert lines[:-1] == [str(number) for number in range(100)] and "\rstep 99, 49 " in parts[0]
    assert len(parts[0]) < 100 * 1200 + 50 * 200  # not every status line


def test_a_stream_that_is_no_file_stays_as_it_is(capsys):
    stream = sys.stderr
    with unblocked_output():
        assert sys.stderr is stream


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a person at a terminal")
def test_a_terminal_that_stops_reading_does_not_stop_a_recording(tmp_path):
    """Nothing reads the terminal and the pipe until both episodes are complete."""
    handle, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "understudy", "record", "--robot", "simulated_arm", "--teleop", "keyboard",
         "--out", "demos", "--episodes", "2", "--fps", "100", "--warmup-time-s", "0", "--episode-time-s", "3",
         "--reset-time-s", "0"],
        cwd=tmp_path, env={**os.environ, "TERM": "dumb"}, stdin=inner, stderr=inner, stdout=subprocess.PIPE)
    os.close(inner)
    info = tmp_path / "demos" / "meta" / "info.json"
    wait_until(lambda: info.exists() and read_json(info)["total_episodes"] == 2, 200)
    text = b""
    while b"saved 1" not in text:
        text += os.read(handle, 4096)
    reader = threading.Thread(target=_read_to_the_end, args=(handle,))
    reader.start()
    printed, _ = process.communicate()
    reader.join()
    os.close(handle)
    assert process.returncode == 0 and b"2 episodes" in printed and text.count(b"saved ") == 2
    assert all(len(episode) > 30 for episode in open_dataset(tmp_path / "demos"))


def _read_to_the_end(handle: int) -> None:
    try:
        while os.read(handle, 4096):
            pass
    except OSError:  # the last process of the terminal has ended
        pass
