"""Options of commands that use a robot, with LeRobot's names: --robot TYPE --robot.port PORT --teleop TYPE ..."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import UseAppendAction, arg

from ...core import Above, AtLeast, ConfigError, UserError
from ...serve.address import is_this_machine
from .groups import Seconds
from .options import Advice, is_option
from .unblocked_output import unblocked_output, wait_for_output

LEROBOT = "lerobot/"  # before the type of a device of LeRobot
_NO_RETRIES = Advice("0 never repeats a request")

if TYPE_CHECKING:
    from ...envs.devices import JointKeyboard
    from ...robots.base import Robot
    from ...robots.recording import CommandKeys, RecordingTimes
    from ...robots.registry import RobotConfig, TeleoperatorConfig
    from ...robots.safety import SafeRobot
    from ...serve.live_rerun import RerunView
    from ...serve.live_view import LiveView


@dataclass(frozen=True, kw_only=True)
class RobotOptions:
    """Options of a robot and its limits."""

    robot: Annotated[str | None, arg(metavar="TYPE")] = None
    """so100_follower, so101_follower, koch_follower, viperx; two of them: bi_so101_follower, ...;
    simulated_arm; lerobot/TYPE, a robot of LeRobot, or module:factory"""
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
    """cameras by name: '{front: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}}'; also rotation: 90
    and fourcc: MJPG. type: emulated needs no camera"""
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
    robot_retries: Annotated[int | None, AtLeast(0), _NO_RETRIES, arg(name="robot.retries", metavar="N")] = None
    """number of times that a request to the servos is repeated when its reply is lost, after the third only within
    0.3 s; by default 10"""
    robot_lerobot: Annotated[UseAppendAction[tuple[str, ...]], arg(name="robot.NAME", metavar="VALUE")] = ()
    """of lerobot/TYPE: any field of LeRobot's config, such as --robot.remote-ip 10.0.0.2"""
    yes: bool = False
    """replace another calibration without a question: in the servos, or the file of robot calibrate"""

    def robot_config(self) -> RobotConfig:
        """Returns the robot config of these options."""
        from ...robots.registry import ROBOTS, RobotConfig, parse_cameras

        if self.robot is None:
            raise ConfigError("is missing", where="--robot",
                              hint=f"one of {', '.join(ROBOTS)}, lerobot/TYPE, or module:factory")
        options, cameras = dict(word.partition("=")[::2] for word in self.robot_lerobot), self.robot_cameras
        if cameras is not None and self.robot.startswith(LEROBOT):  # LeRobot reads them itself
            options, cameras = {"cameras": cameras, **options}, None
        return RobotConfig(
            self.robot, self.robot_port, self.robot_id, self.robot_calibration_dir,
            None if cameras is None else parse_cameras(cameras),
            self.robot_use_degrees == "true", self.robot_disable_torque_on_disconnect == "true", self.robot_limits,
            self.robot_max_velocity or None, self.robot_max_relative_target or None, self.robot_max_torque,
            self.robot_max_load, self.robot_slow_start, self.robot_timeout, self.robot_left_arm_port,
            self.robot_right_arm_port, self.robot_retries, options)

    def robot_arguments(self) -> list[str]:
        """Returns the options of the robot as they were given, to repeat them in another command."""
        return [word for words in _given_options(self, "robot") for word in words]

    def refuse_without_robot(self, hint: str) -> None:
        """Raises an error for options of a robot or a teleoperator if there is no robot."""
        if self.robot is None and (robot_options := _given_options(self, "robot", "teleop", "yes")):
            raise ConfigError("needs --robot TYPE", where=robot_options[0][0], hint=hint)


def _given_options(o: RobotOptions, *devices: str) -> list[list[str]]:
    """Returns the options of devices that differ from their defaults: --robot TYPE, --robot.port PORT, ..."""
    options = []
    for f in fields(o):
        device, _, setting = f.name.partition("_")
        if device in devices and (value := getattr(o, f.name)) != f.default:
            if setting == "lerobot":
                options += [[f"--{device}.{name}", text] for name, _, text in (word.partition("=") for word in value)]
                continue
            name = f"--{device}" + (f".{setting.replace('_', '-')}" if setting else "")
            values = () if value is True else value if isinstance(value, tuple) else (value,)
            options.append([name, *map(str, values)])
    return options


@dataclass(frozen=True, kw_only=True)
class TeleopOptions:
    teleop: Annotated[str | None, arg(metavar="TYPE")] = None
    """so100_leader, so101_leader, koch_leader, widowx; two of them: bi_so101_leader, ...; keyboard, gamepad;
    lerobot/TYPE, a teleoperator of LeRobot, or module:factory"""
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
    teleop_retries: Annotated[int | None, AtLeast(0), _NO_RETRIES, arg(name="teleop.retries", metavar="N")] = None
    """number of times that a request to the servos of the leader arm is repeated; by default 10"""
    teleop_lerobot: Annotated[UseAppendAction[tuple[str, ...]], arg(name="teleop.NAME", metavar="VALUE")] = ()
    """of lerobot/TYPE: any field of LeRobot's config, such as --teleop.gripper-open-pos 50"""

    def teleop_config(self, use_degrees: bool) -> TeleoperatorConfig:
        """Returns the teleoperator config of these options."""
        from ...robots.registry import TELEOPERATORS, TeleoperatorConfig

        if self.teleop is None:
            raise ConfigError("is missing", where="--teleop",
                              hint=f"one of {', '.join(TELEOPERATORS)}, lerobot/TYPE, or module:factory")
        return TeleoperatorConfig(self.teleop, self.teleop_port, self.teleop_id, self.teleop_calibration_dir,
                                  use_degrees, self.teleop_left_arm_port, self.teleop_right_arm_port,
                                  self.teleop_retries, dict(word.partition("=")[::2] for word in self.teleop_lerobot))


def name_lerobot_fields(flags: Sequence[str], args: Sequence[str]) -> list[str]:
    """Writes fields of LeRobot's devices as values of one option: --robot.NAME remote_ip=10.0.0.2.

    Args:
        flags: The options that the command has. Others that start with --robot. or --teleop. are fields, if the device
            is one of LeRobot.
    """
    words = [part for word in args for part in (word.split("=", 1) if word.startswith("--") else [word])]
    lerobot_devices = {device for device, kind in pairwise(words) if kind.startswith(LEROBOT)} & {"--robot", "--teleop"}
    own, pending = [], list(args)
    while pending:
        word = pending.pop(0)
        option, equals, value = word.partition("=")
        device, dot, name = option.partition(".")
        if not dot or device not in lerobot_devices or option.replace("_", "-") in flags:
            own.append(word)
            continue
        values = [value] if equals else []
        while pending and not equals and not is_option(pending[0]):
            values.append(pending.pop(0))
        if not values:
            raise ConfigError("needs a value, but has none", where=option, hint=f"such as {option} true")
        text = values[0] if len(values) == 1 else f"[{', '.join(values)}]"
        own += [f"{device}.NAME", f"{name.replace('-', '_')}={text}"]
    return own


@dataclass(frozen=True, kw_only=True)
class RobotRecordingOptions:
    fps: Annotated[float, Above(0), arg(metavar="N")] = 30.0
    """steps per second of a robot"""
    task: Annotated[str, arg(metavar="WORDS")] = ""
    """the task in words, of a recording on a robot"""
    warmup_time_s: Annotated[float, AtLeast(0), arg(metavar="SECONDS")] = 5.0
    """teleoperation of a robot before the first episode, which is not recorded"""
    episode_time_s: Seconds = 60.0
    """longest duration of an episode on a robot"""
    reset_time_s: Annotated[float, AtLeast(0), arg(metavar="SECONDS")] = 60.0
    """time to arrange the scene of a robot between two episodes, which is not recorded"""

    def times(self) -> RecordingTimes:
        """Returns the times of a recording on a robot."""
        from ...robots.recording import RecordingTimes

        return RecordingTimes(self.warmup_time_s, self.episode_time_s, self.reset_time_s)


RECORDING_OPTIONS = tuple(f.name for f in fields(RobotRecordingOptions))


def recording_words(o: RobotOptions) -> list[str]:
    """Returns the options of a robot, a teleoperator and a recording, to record again from any folder."""
    o = replace(o, **{f.name: value.absolute() for f in fields(o) if isinstance(value := getattr(o, f.name), Path)})
    changed = [f for f in fields(RobotRecordingOptions) if getattr(o, f.name) != f.default]
    return [word for words in (*_given_options(o, "robot", "teleop"), *(
        [f"--{f.name.replace('_', '-')}", str(getattr(o, f.name))] for f in changed)) for word in words]


@dataclass(frozen=True, kw_only=True)
class LiveViewOptions:
    view: bool = False
    """show cameras, joints and the state of the episode in the browser, at the address that is printed"""
    view_address: Annotated[str, arg(metavar="HOST:PORT")] = "127.0.0.1:0"
    """where the page of --view is served; 0.0.0.0 for all who have the printed address, port 0 for any free port"""
    rerun: bool = False
    """show the same in the Rerun viewer, which needs the extra rerun"""


@contextmanager
def live_view(o: LiveViewOptions, robot: SafeRobot, fps: float, show: Callable[[str], None]
              ) -> Iterator[Callable[[str], None]]:
    """Context in which a robot is shown as the options say, and in which nothing that is printed makes the robot wait.
    At its end it tells which cameras were too slow. Enter it before the robot."""
    host, colon, port = o.view_address.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 65536):
        raise ConfigError(f"{o.view_address!r} is not a host and a port", where="--view-address",
                          hint="such as --view-address 127.0.0.1:8080")
    views: list[LiveView | RerunView] = []
    with unblocked_output(), ExitStack() as stack:
        if o.view:
            try:
                from ...serve.live_view import LiveView
            except ImportError:
                raise UserError("websockets is not installed", where="--view",
                                hint="pip install 'understudy[serve]'") from None
            view = LiveView(robot, fps, host.strip("[]"), int(port))
            views.append(stack.enter_context(view))
            print(f"view: {view.address}", file=sys.stderr, flush=True)
            if not is_this_machine(host.strip("[]")):
                print("warning: the view is sent without TLS, so others in the network can read it", file=sys.stderr)
        if o.rerun:
            from ...serve.live_rerun import RerunView

            views.append(stack.enter_context(RerunView(robot)))

        def step(obs, command, sent) -> None:
            for view in views:
                view.step(obs, command, sent)

        def show_everywhere(text: str) -> None:
            for view in views:
                view.show(text)
            show(text)
        robot.on_step = step if views else None
        try:
            yield show_everywhere
        finally:
            robot.on_step = None
            tell_slow_cameras(robot)


def tell_slow_cameras(robot: SafeRobot) -> None:
    """Warns of cameras that sent less than 90% of the frames of their rate."""
    from ...robots.cameras import Camera

    for name, camera in getattr(robot.robot, "cameras", {}).items():
        status = camera.status() if isinstance(camera, Camera) else None
        if status is not None and 9 * status.dropped > status.frames:
            print(f"warning: the camera {name} sent {status.mean_rate:.1f} frames per second: {status.dropped} of "
                  f"{status.frames + status.dropped} frames did not come. In the dark, or with another camera at its "
                  "USB controller, a camera is slower than its fps", file=sys.stderr)


@contextmanager
def command_keys(keyboard=None) -> Iterator[CommandKeys]:
    """Context in which a person gives commands by keys, if there is a terminal. At its end the line of `show_line` is
    removed."""
    from ...envs.devices import RecordingKeys
    from ...robots.recording import NoKeys

    try:
        if keyboard is None and not sys.stdin.isatty():
            yield NoKeys()
            return
        with (keyboard or RecordingKeys()).listening() as keys:
            yield keys
    finally:
        show_line("")


def show_line(text: str) -> None:
    """Shows one line of text in a terminal, in place of the last one. What does not fit is cut off."""
    if sys.stderr.isatty():
        print(f"\r{text[:_terminal_width() - 1]}\x1b[K", end="", file=sys.stderr, flush=True)


def show_rows(rows: Sequence[str], is_first: bool) -> None:
    """Shows several lines of text in a terminal, in place of the last ones unless they are the first."""
    if sys.stderr.isatty():
        up = "" if is_first else f"\x1b[{len(rows)}A"
        print("\r" + up + "".join(f"{row[:_terminal_width() - 1]}\x1b[K\n" for row in rows), end="", file=sys.stderr,
              flush=True)


def _terminal_width() -> int:
    with suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return 80


def show_session(robot: Robot, keyboard: JointKeyboard | None) -> Callable[[str], None]:
    """Returns the function that shows the line of a `RobotSession`. If a keyboard moves the robot, its keys are
    explained once, and the line starts with the joint that they move."""
    if keyboard is None:
        return show_line
    names = [n.removesuffix(".pos") for n in robot.schema["action"].names or map(str, range(1, keyboard.n_joints + 1))]
    print("Keys: " + ", ".join(f"{i} {n}" for i, n in enumerate(names[:9], 1))
          + "; tab: the next joint; up and down (w, s) move it; space stops.", file=sys.stderr)
    return lambda text: show_line(f"{names[keyboard.selected]} | {text}")


def flush_input() -> None:
    """Discards what was typed while the robot moved, so that it cannot start the robot again. Before a question."""
    wait_for_output()
    with suppress(ImportError, OSError, ValueError):
        import termios

        if sys.stdin.isatty():
            termios.tcflush(sys.stdin, termios.TCIFLUSH)
