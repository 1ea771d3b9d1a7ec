"""understudy robot --dialog: a program stands between the command and the person."""

import json
import os
import sys

import pytest
from fixtures.waiting import wait_until

from understudy.cli import main
from understudy.commands import robot
from understudy.commands.parts.arms import LineKeys, confirm
from understudy.core import UserError


@pytest.fixture
def answers(monkeypatch):
    """Where a program writes the answers of the person."""
    read, write = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(read))
    with os.fdopen(write, "wb", buffering=0) as lines:
        yield lines


def test_a_port_is_found(answers, monkeypatch, capsys):
    ports = [["/dev/ttyACM0", "/dev/ttyACM1"], ["/dev/ttyACM1"]]
    monkeypatch.setattr(robot, "serial_ports", lambda: ports.pop(0) if len(ports) > 1 else ports[0])
    monkeypatch.setattr(robot.time, "sleep", lambda seconds: None)
    answers.write(b"\n")
    assert main(["robot", "find-port", "--dialog"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[1]) == {"ask": "Pull the USB cable of the arm, and press enter."}
    assert lines[2].startswith("The port is /dev/ttyACM0.") and json.loads(lines[3]) == {"port": "/dev/ttyACM0"}


def test_a_question_is_answered_by_yes_or_no(answers, capsys):
    refused = UserError("no")
    answers.write(b"y\nn\n")
    confirm(False, "Replace it?", refused, dialog=True)
    with pytest.raises(UserError, match="no"):
        confirm(False, "Replace it?", refused, dialog=True)
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == {"confirm": "Replace it?"}


def test_the_end_of_the_answers_stops_the_robot(answers):
    keys, received = LineKeys(), []
    answers.write(b"\n")
    answers.close()

    def is_over():
        received.extend(keys.commands())
        return "quit" in received
    wait_until(is_over, 10)
    assert received == ["enter", "quit"]


def test_what_asks_nothing_takes_no_answers(capsys):
    assert main(["robot", "check", "--dialog"]) == 2
    assert "--dialog: has no effect with check" in capsys.readouterr().err


def test_keys_that_nothing_reads_are_refused(capsys):
    assert main(["robot", "teleoperate", "--robot", "simulated_arm", "--teleop", "keyboard", "--dialog"]) == 2
    assert "keys are read from a terminal" in capsys.readouterr().err
