"""Options of commands that use a robot, with LeRobot's names: --robot TYPE --robot.port PORT --teleop TYPE ..."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

if TYPE_CHECKING:
    from ..robots.base import Teleoperator
    from ..robots.recording import CommandKeys
    from ..robots.registry import RobotConfig, TeleoperatorConfig
    from ..robots.safety import SafeRobot


@dataclass(frozen=True, kw_only=True)
class RobotOptions:
    """A robot and its limits."""

    robot: Annotated[str | None, arg(metavar="TYPE")] = None
    """so100_follower, so101_follower, koch_follower, viperx; two of them: bi_so101_follower, ...;
    simulated_arm, or module:factory"""
    robot_port: Annotated[str | None, arg(name="robot.port", metavar="PORT")] = None
    """serial port of the robot; understudy robot find-port finds it"""
    robot_left_arm_port: Annotated[str | None, arg(name="robot.left-arm-port", metavar="PORT")] = None
    """serial port of the left arm of a robot with two arms"""
    robot_right_arm_port: Annotated[str | None, arg(name="robot.right-arm-port", metavar="PORT")] = None
    """serial port of the right arm of a robot with two arms"""
    robot_id: Annotated[str | None, arg(name="robot.id", metavar="NAME")] = None
    """name of this robot, under which its calibration is stored; by default its type"""
    robot_calibration_dir: Annotated[Path | None, arg(name="robot.calibration-dir", metavar="DIR")] = None
    """folder of the calibration; by default understudy's folder, and then LeRobot's"""
    robot_cameras: Annotated[str | None, arg(name="robot.cameras", metavar="CAMERAS")] = None
    """cameras by name: '{front: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}}'"""
    robot_use_degrees: Annotated[Literal["true", "false"], arg(name="robot.use-degrees")] = "true"
    """joints in degrees, or from -100 to 100 over their calibrated range"""
    robot_disable_torque_on_disconnect: Annotated[
        Literal["true", "false"], arg(name="robot.disable-torque-on-disconnect")] = "true"
    """switch the torque off at the end; the arm then falls if nothing supports it"""
    robot_limits: Annotated[Path | None, arg(name="robot.limits", metavar="FILE")] = None
    """a JSON file of SafetyLimits; the options below replace its values"""
    robot_max_velocity: Annotated[tuple[float, ...], arg(name="robot.max-velocity", metavar="V")] = ()
    """largest velocity in units of the action per second: one number, or one for each joint"""
    robot_max_relative_target: Annotated[tuple[float, ...], arg(name="robot.max-relative-target", metavar="D")] = ()
    """largest distance of a goal from the measured position: one number, or one for each joint"""
    robot_max_torque: Annotated[float | None, arg(name="robot.max-torque", metavar="FRACTION")] = None
    """fraction of the largest torque that joints may use"""
    robot_max_load: Annotated[float | None, arg(name="robot.max-load", metavar="FRACTION")] = None
    """fraction of the largest torque at which the robot stops, if it lasts for half a second"""
    robot_slow_start: Annotated[float | None, arg(name="robot.slow-start", metavar="SECONDS")] = None
    """duration of the slow start after connecting and after every pause"""
    robot_timeout: Annotated[float | None, arg(name="robot.timeout", metavar="SECONDS")] = None
    """longest time between two commands, after which the robot holds"""

    def robot_config(self) -> RobotConfig:
        """The robot of these options.

        Raises:
            ConfigError: --robot is missing.
        """
        from ..core import ConfigError
        from ..robots.registry import ROBOTS, RobotConfig, parse_cameras

        if self.robot is None:
            raise ConfigError("is missing", where="--robot", hint=f"one of {', '.join(ROBOTS)}, or module:factory")
        return RobotConfig(
            self.robot, self.robot_port, self.robot_id, self.robot_calibration_dir,
            None if self.robot_cameras is None else parse_cameras(self.robot_cameras),
            self.robot_use_degrees == "true", self.robot_disable_torque_on_disconnect == "true", self.robot_limits,
            self.robot_max_velocity or None, self.robot_max_relative_target or None, self.robot_max_torque,
            self.robot_max_load, self.robot_slow_start, self.robot_timeout, self.robot_left_arm_port,
            self.robot_right_arm_port)

    def given_robot_options(self) -> list[str]:
        """The first option of the robot that was given without --robot, or nothing."""
        given = [n for n in vars(self) if n.startswith("robot_") and getattr(self, n) not in (None, (), "true")]
        return [] if self.robot is not None else [f"--robot.{n[6:].replace('_', '-')}" for n in given[:1]]


@dataclass(frozen=True, kw_only=True)
class TeleopOptions:
    """A teleoperator."""

    teleop: Annotated[str | None, arg(metavar="TYPE")] = None
    """so100_leader, so101_leader, koch_leader, widowx; two of them: bi_so101_leader, ...; keyboard, gamepad, or
    module:factory"""
    teleop_port: Annotated[str | None, arg(name="teleop.port", metavar="PORT")] = None
    """serial port of the leader arm"""
    teleop_left_arm_port: Annotated[str | None, arg(name="teleop.left-arm-port", metavar="PORT")] = None
    """serial port of the left one of two leader arms"""
    teleop_right_arm_port: Annotated[str | None, arg(name="teleop.right-arm-port", metavar="PORT")] = None
    """serial port of the right one of two leader arms"""
    teleop_id: Annotated[str | None, arg(name="teleop.id", metavar="NAME")] = None
    """name of this leader arm, under which its calibration is stored; by default its type"""
    teleop_calibration_dir: Annotated[Path | None, arg(name="teleop.calibration-dir", metavar="DIR")] = None
    """folder of the calibration of the leader arm"""

    def teleop_config(self, use_degrees: bool) -> TeleoperatorConfig:
        """The teleoperator of these options.

        Raises:
            ConfigError: --teleop is missing.
        """
        from ..core import ConfigError
        from ..robots.registry import TELEOPERATORS, TeleoperatorConfig

        if self.teleop is None:
            raise ConfigError("is missing", where="--teleop",
                              hint=f"one of {', '.join(TELEOPERATORS)}, or module:factory")
        return TeleoperatorConfig(self.teleop, self.teleop_port, self.teleop_id, self.teleop_calibration_dir,
                                  use_degrees, self.teleop_left_arm_port, self.teleop_right_arm_port)


@contextmanager
def connected(robot: SafeRobot, teleop: Teleoperator | None = None) -> Iterator[None]:
    """Context in which a robot and a teleoperator are connected. At its end the robot stops."""
    if teleop is None:
        with robot:
            yield
        return
    with teleop, robot:  # the robot is released first
        yield


@contextmanager
def command_keys(keyboard=None) -> Iterator[CommandKeys]:
    """Context in which a person gives commands by keys, if there is a terminal.

    Args:
        keyboard: The keyboard, if it also moves the robot.
    """
    from ..envs.devices import RecordingKeys
    from ..robots.recording import NoKeys

    if keyboard is None and not sys.stdin.isatty():
        yield NoKeys()
        return
    with (keyboard or RecordingKeys()).listening() as keys:
        yield keys


def show_line(text: str) -> None:
    """Shows one line of text in a terminal, in place of the last one."""
    if sys.stderr.isatty():
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
