"""Prepares robots and teleoperators for commands. No arm gets another arm's calibration without a question."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from .common import plain_table
from .robot_options import flush_input

if TYPE_CHECKING:
    from ...core import UserError
    from ...envs.devices import JointKeyboard
    from ...robots.base import Robot, Teleoperator
    from ...robots.calibration import Calibration
    from ...robots.registry import RobotConfig, TeleoperatorConfig
    from ...robots.safety import SafeRobot
    from ...robots.servo_arm import ServoArm


def prepare_robot(config: RobotConfig, trust: Sequence[str], yes: bool) -> SafeRobot:
    """Makes a robot, which is not connected yet, and asks about the calibration in its servos."""
    from ...robots.registry import make_robot

    robot = make_robot(config, trust)
    confirm_calibrations(yes, robot)
    return robot


def prepare_session(config: RobotConfig, teleop_config: TeleoperatorConfig, trust: Sequence[str], yes: bool,
                    dialog: bool = False) -> tuple[SafeRobot, Teleoperator, JointKeyboard | None]:
    """Makes a robot and a teleoperator (and the keyboard, if it is one), and asks about their calibrations."""
    from ...robots.ports import refuse_shared_ports
    from ...robots.registry import make_robot, make_teleoperator, ports_of

    refuse_shared_ports({**ports_of(config), **ports_of(teleop_config)})
    robot = make_robot(config, trust)
    teleop, keyboard = make_teleoperator(teleop_config, robot, trust)
    confirm_calibrations(yes, robot, teleop, dialog=dialog)
    return robot, teleop, keyboard


def confirm_calibrations(yes: bool, *devices: Robot | Teleoperator, dialog: bool = False) -> None:
    """Writes the calibration of the file to servos that hold another one, after a question to the person.

    Args:
        yes: Whether the answer is yes, without a question.
        dialog: As for `confirm`.
    """
    from ...robots.registry import servo_arms

    arms = servo_arms(*devices)
    for arm in arms:
        suggest_stable_port(arm.bus.port_name)
    foreign = [(arm, differences) for arm in arms if (differences := _foreign_values(arm))]
    for arm, differences in foreign:  # before the first question
        _refuse_swapped(arm, differences, arms)
    for arm, differences in foreign:
        if not yes:
            _ask_about(arm, differences, dialog)
        with arm.bus.connected():
            arm.write_servo_calibration({name: arm.calibration[name] for name in differences})


def _foreign_values(arm: ServoArm) -> Calibration:
    """Returns servo values that differ from the calibration, unless the arm is new."""
    with arm.bus.connected():
        differences = arm.calibration_differences()
    return {} if arm.is_new(differences) else differences


def _refuse_swapped(arm: ServoArm, differences: Calibration, arms: Sequence[ServoArm]) -> None:
    """Refuses the port of another arm of this command, and a leader's port for a follower: it would get torque."""
    from ...robots.base import RobotError
    from ...robots.calibration import is_leader_folder, known_calibrations, same_values

    stored = {**arm.calibration, **differences}
    others = [(other.calibration_file, other.calibration) for other in arms if other is not arm]
    others += [(path, each) for path, each in known_calibrations()
               if is_leader_folder(path.parent.name) != arm.kind.is_leader]
    for path, calibration in others:
        if same_values(stored, calibration):
            raise RobotError(f"this is another arm: its servos hold the calibration of {path}", where=arm.place,
                             hint="the ports are swapped. understudy robot find-port finds the port of each arm. If "
                                  "this is the right port, calibrate this arm again")


def _ask_about(arm: ServoArm, differences: Calibration, dialog: bool) -> None:
    """Shows what the servos and the file hold, and asks whether the file is written into the servos."""
    if dialog:
        print(f"{arm.place}: the servos {', '.join(differences)} hold another calibration than {arm.calibration_file}.")
    elif sys.stdin.isatty():
        table = plain_table(("joint", "servo", "file"),
                            ((name, each, arm.calibration[name]) for name, each in differences.items()))
        Console(stderr=True, highlight=False).print(
            f"{arm.place}: the servos hold another calibration than {arm.calibration_file}:", table)
    confirm(False, "Is this the right arm? Then its servos get the calibration of the file.", arm.mismatch(differences),
            dialog)


def confirm(yes: bool, question: str, error: UserError, dialog: bool = False) -> None:
    """Asks the person whether to continue.

    Args:
        yes: Whether the answer is yes, without a question.
        error: Raised if the answer is no, or nobody can be asked.
        dialog: Whether a program asks the person (`tell`).
    """
    if yes:
        return
    if dialog:
        tell(confirm=question)
    elif not sys.stdin.isatty():
        raise error
    else:
        flush_input()
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise error


def tell(**event: object) -> None:
    """Tells a program that stands between the command and the person what happens: one JSON object, on one line."""
    print(json.dumps(event), flush=True)


class LineKeys:
    """Commands of a program that stands between the command and the person: `CommandKeys`.

    A line on standard input is the key enter. Its end, such as when the program is killed, stops the robot.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True, name="answers").start()

    def _read(self) -> None:
        while text := os.read(sys.stdin.fileno(), 1024):  # a buffered stream would be locked when the process ends
            for _ in range(text.count(b"\n")):
                self._queue.put("enter")
        self._queue.put("quit")

    def commands(self) -> list[str]:
        return [self._queue.get() for _ in range(self._queue.qsize())]


def suggest_stable_port(port: str) -> None:
    """Suggests the stable name of a serial port, if it was named by a number that changes."""
    from ...robots.ports import stable_port

    if name := stable_port(port):
        print(f"note: {port} can be another arm after a restart. {name} stays the same", file=sys.stderr)
