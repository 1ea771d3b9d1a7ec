"""Ctrl-C at an awkward moment."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SWALLOWS = """
import signal, time

try:
    signal.raise_signal(signal.{number})
except BaseException:  # as C++ libraries do while they load
    pass
open("loaded", "w").close()


def env(rows):
    time.sleep(60)
"""


@pytest.mark.slow
def test_an_interrupt_while_a_library_loads_is_not_lost(tmp_path: Path):
    for number in ("SIGINT", "SIGTERM"):
        (tmp_path / "swallows.py").write_text(SWALLOWS.format(number=number))
        command = [sys.executable, "-c", "import sys; from understudy.cli import main; sys.exit(main())", "record",
                   "swallows:env", "--trust", "swallows", "--out", "d", "--episodes", "1"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50)
        assert done.returncode == 130 and "stopped" in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert (tmp_path / "loaded").exists()  # the import itself was not broken off
        (tmp_path / "loaded").unlink()


def test_an_interrupt_leaves_nothing_behind_that_fires_later(tmp_path: Path):
    """A program that calls the command line goes on undisturbed."""
    (tmp_path / "swallows.py").write_text(SWALLOWS.format(number="SIGINT").replace("time.sleep(60)", "1 / 0"))
    program = ("import time; from understudy.cli import main; "
               "print(main(['record', 'swallows:env', '--trust', 'swallows', '--out', 'd', '--episodes', '1'])); "
               "time.sleep(0.3); print('on')")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=50,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.stdout.split() == ["130", "on"], done.stderr
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(not hasattr(os, "login_tty"), reason="needs a terminal of its own")
def test_an_error_of_a_closed_terminal_that_comes_earlier_than_its_signal_is_an_interrupt(tmp_path: Path):
    (tmp_path / "prints.py").write_text("def env(rows):\n    while True:\n        print('.', flush=True)\n")
    program = ("import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP]); "
               "from understudy.cli import main; "
               "sys.exit(main(['record', 'prints:env', '--trust', 'prints', '--out', 'd', '--episodes', '1']))")
    outer, inner = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, preexec_fn=lambda: os.login_tty(inner),
                          env={**os.environ, "PYTHONPATH": str(tmp_path)}) as process:
        os.close(inner)
        while b"." not in os.read(outer, 4096):
            pass
        os.close(outer)
        assert process.wait(60) == 130
