"""The command understudy robot."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ..core import Above, ConfigError, UserError
from .parts.arms import LineKeys, confirm, prepare_session, suggest_stable_port, tell
from .parts.common import Output, command_line, parse, plain_table
from .parts.groups import TrustOption, command_options
from .parts.options import refuse_given
from .parts.robot_check import check_arms
from .parts.robot_options import (
    LEROBOT,
    LiveViewOptions,
    RobotOptions,
    TeleopOptions,
    command_keys,
    live_view,
    show_rows,
    show_session,
)

if TYPE_CHECKING:
    from ..robots.registry import NamedArm
    from ..robots.servo_arm import Calibrator, ServoArmType

TELL_SECONDS = 0.2  # between two messages about the positions of joints
SUBCOMMANDS = Literal["find-port", "find-cameras", "setup", "calibrate", "teleoperate", "check", "release",
                      "emulate"]


@command_options
class RobotCommandOptions(TrustOption, LiveViewOptions, TeleopOptions, RobotOptions):
    """Set up a robot: find its port and cameras, give servos their ids, calibrate it, and move it.

    find-port: find the serial port of an arm, by pulling its cable. find-cameras: list the cameras. setup: give each
    servo of a new arm its id. calibrate: calibrate the arm of --robot or --teleop. teleoperate: move the robot without
    recording.

    check: compare the calibration in the servos with its file, and with the positions that were recorded; exit status 3
    if something differs. release: switch the torque of the arms of --robot and --teleop off. emulate: emulate the
    servos of an arm on a pseudo-terminal, to try other commands without hardware.

    No command has been tried on real hardware yet, only on emulated servos.
    """

    subcommand: Annotated[SUBCOMMANDS, Positional, arg(
        metavar="find-port|find-cameras|setup|calibrate|teleoperate|check|release|emulate")]
    """what to do"""
    fps: Annotated[float, Above(0), arg(metavar="N")] = 60.0
    """teleoperate: steps per second"""
    teleop_time_s: Annotated[float | None, Above(0), arg(metavar="SECONDS")] = None
    """teleoperate: how long; by default until you stop it"""
    wave: bool = False
    """emulate: move all joints as a hand would"""
    recording: Annotated[Path | None, arg(name="data", metavar="DATA")] = None
    """check: recorded data of --robot, whose positions must be within reach"""
    json: bool = False
    """find-port, find-cameras and check: one JSON document on standard output"""
    dialog: bool = False
    """find-port, setup, calibrate and teleoperate: a program stands between the command and the person, as the studio
    does. Questions are lines of JSON on standard output, such as {"ask": "..."}. Answers are lines on standard input"""


OPTIONS_OF = {("teleoperate",): ("fps", "teleop_time_s", "view", "view_address", "rerun"), ("emulate",): ("wave",),
              ("check",): ("recording",), ("find-port", "find-cameras", "check"): ("json",),
              ("find-port", "setup", "calibrate", "teleoperate"): ("dialog",)}


def main(args: list[str]) -> None:
    o = parse(RobotCommandOptions, "robot", args)
    for subcommands, names in OPTIONS_OF.items():
        if o.subcommand not in subcommands:
            refuse_given(o, names, f"has no effect with {o.subcommand}")
    with Output(o.json) as out:
        {"find-port": _find_port, "find-cameras": _find_cameras, "setup": _set_up, "calibrate": _calibrate,
         "teleoperate": _teleoperate, "check": _check,
         "release": _release, "emulate": _emulate}[o.subcommand](o, out)


def serial_ports() -> list[str]:
    """Lists the names of the serial ports. Ports of USB adapters come first."""
    ports = [str(p) for pattern in ("ttyACM*", "ttyUSB*", "cu.usb*") for p in sorted(Path("/dev").glob(pattern))]
    try:
        from serial.tools import list_ports
    except ImportError:
        return ports
    return list(dict.fromkeys([*ports, *(p.device for p in list_ports.comports())]))


def _find_port(o: RobotCommandOptions, out: Output) -> None:
    from ..robots.ports import stable_port

    before = serial_ports()
    out.print_json({"ports": before})
    if o.json or not (o.dialog or sys.stdin.isatty()):
        out.print(*(before or ["there is no serial port"]))
        return
    stable = {port: stable_port(port) for port in before}
    out.print(f"ports: {', '.join(before) or 'none'}")
    _ask(o, "Pull the USB cable of the arm, and press enter.")
    time.sleep(0.5)
    unplugged = [port for port in before if port not in serial_ports()]
    if len(unplugged) != 1:
        raise UserError(f"{len(unplugged) or 'no'} ports are gone", where="find-port",
                        hint="plug the arm in, start again, and pull only its cable")
    name = stable[unplugged[0]]
    out.print(f"The port is {unplugged[0]}. " + (f"{name} stays the same after a restart. " if name else "")
              + "Plug the cable in again.")
    if o.dialog:
        tell(port=name or unplugged[0])


def _find_cameras(o: RobotCommandOptions, out: Output) -> None:
    from ..robots.cameras import find_cameras

    cameras = find_cameras()
    header = ("index_or_path", "width", "height", "fps")
    table = plain_table(header, ([camera[k] for k in header] for camera in cameras))
    out.print(table if cameras else "there is no camera")
    out.print_json({"cameras": cameras})


def _arm_of(o: RobotCommandOptions) -> NamedArm:
    """Returns the single arm of --robot or --teleop."""
    device = "teleop" if o.robot is None else "robot"
    if len(arms := _arms_of(o, device)) > 1:
        raise ConfigError("is two arms, which are calibrated one by one", where=f"--{device}",
                          hint=f"--{device} {arms[0].kind.name} --{device}.port PORT --{device}.id {arms[0].id}")
    return arms[0]


def _arms_of(o: RobotCommandOptions, *devices: str) -> list[NamedArm]:
    """Returns the arms of --robot, of --teleop, or of both. Each has an id."""
    from ..robots.registry import named_arms

    arms = []
    for device in devices:
        if (name := getattr(o, device)) is None and len(devices) > 1:
            continue
        _kind_of(name and name.removeprefix("bi_"))
        config = o.robot_config() if device == "robot" else o.teleop_config(use_degrees=True)
        arms += named_arms(replace(config, id=config.id or config.type))
    return arms or _arms_of(o, "robot")


def _set_up(o: RobotCommandOptions, out: Output) -> None:
    from ..robots.servo_arm import set_up_motor

    arm = _arm_of(o)
    for name in reversed(arm.kind.servos):
        _ask(o, f"Connect only the servo {name} to the controller, and press enter.")
        number, rate = set_up_motor(arm.kind, arm.port, name)
        out.print(f"{name}: id {arm.kind.servos[name].id} (it had id {number} at {rate} bits per second)")
    if not o.dialog:
        out.suggest(command_line("robot", "calibrate", f"--{arm.device}", arm.kind.name, f"--{arm.device}.port",
                                 arm.port))


def _calibrate(o: RobotCommandOptions, out: Output) -> None:
    from ..robots.calibration import calibration_folder, is_leader_folder, keep_old_calibration, write_calibration
    from ..robots.servo_arm import Calibrator

    arm = _arm_of(o)
    kind, name = arm.kind, arm.kind.name if arm.id == arm.kind.name else f"{arm.kind.name} ({arm.id})"
    path = (arm.folder or calibration_folder() / kind.name) / f"{arm.id}.json"
    suggest_stable_port(arm.port)
    if path.exists():
        confirm(o.yes, f"There is a calibration of this arm: {path}. Replace it?", UserError(
            "there is a calibration of this arm", where=path, hint="--yes replaces it, and keeps the old one next to "
            f"it. --{arm.device}.id NAME calibrates another arm"), o.dialog)
    calibrator = Calibrator(kind, arm.port)
    calibrator.connect()
    try:
        if (owner := calibrator.owner()) is not None and (owner.stem, is_leader_folder(owner.parent.name)) != (
                arm.id, kind.is_leader):
            confirm(o.yes, f"The servos at {arm.port} hold the calibration of {owner}. Calibrate them as {name}?",
                    UserError(f"this is another arm: its servos hold the calibration of {owner}",
                              where=calibrator.arm.place,
                              hint="name the port of this arm. If it is this arm, --yes calibrates it"), o.dialog)
        _ask(o, f"Move {name} to the middle of its range, and press enter.")
        calibrator.set_middle()
        turning = ", ".join(kind.full_turn)
        _question(o, f"Move every joint but {turning} from one end of its range to the other. Then press enter.")
        _watch_joints(o, calibrator)
        calibration = calibrator.finish()
    finally:
        calibrator.disconnect()
    old = keep_old_calibration(path)
    write_calibration(path, calibration)
    table = plain_table(("servo", "id", "homing_offset", "range_min", "range_max"), (
        (motor, c.id, c.homing_offset, c.range_min, c.range_max) for motor, c in calibration.items()))
    out.print(table, f"Calibration written to {path}" + (f". The old one is {old}" if old else ""))


def _watch_joints(o: RobotCommandOptions, calibrator: Calibrator) -> None:
    """Shows the ranges in which a person moves the joints, until enter."""
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.append(sys.stdin.readline()), daemon=True)
    reader.start()
    is_first, last_told = True, -TELL_SECONDS
    while reader.is_alive():
        now = calibrator.update()
        if o.dialog and time.monotonic() - last_told > TELL_SECONDS:
            tell(positions=now)
            last_told = time.monotonic()
        show_rows([f"{'servo':15}{'lowest':>8}{'now':>8}{'highest':>8}", *(
            f"{n:15}{low:8}{at:8}{high:8}" for n, (low, at, high) in now.items())], is_first)
        is_first = False
        time.sleep(0.02)
    _check_entered(*lines)


def _teleoperate(o: RobotCommandOptions, out: Output) -> None:
    from ..robots.recording import RobotSession

    if o.dialog and o.teleop == "keyboard":
        raise ConfigError("keys are read from a terminal, and with --dialog there is none", where="--teleop keyboard",
                          hint="use a leader arm, or leave --dialog out")
    config = o.robot_config()
    robot, teleop, keyboard = prepare_session(config, o.teleop_config(config.use_degrees), o.trust, o.yes,
                                              o.dialog)
    listening = nullcontext(LineKeys()) if o.dialog else command_keys(keyboard)
    with (listening as keys, live_view(o, robot, o.fps, show_session(robot, keyboard)) as show, teleop,
          robot):  # the robot is released first
        session = RobotSession(robot, teleop, keys, o.fps, show)
        session.begin()
        if o.dialog:
            tell(ask="The leader moves the robot. Press enter to stop.")
        began = time.perf_counter()
        session.teleoperate(float("inf") if o.teleop_time_s is None else o.teleop_time_s, "teleoperation",
                            "enter, q: stop")
        robot.stop()
    seconds = time.perf_counter() - began
    out.print(f"{seconds:.1f} s at {o.fps:g} steps per second, {session.pace.n_late} steps were late")


def _check(o: RobotCommandOptions, out: Output) -> None:
    from ..robots.servo_arm import ServoArm

    if o.recording is not None and o.robot is None:
        raise ConfigError("needs --robot TYPE", where="--data", hint="name the robot that the data were recorded with")
    arms = []
    for each in _arms_of(o, "robot", "teleop"):
        calibration, path = each.read_calibration()
        arm = ServoArm(each.kind, each.port, calibration, o.robot_use_degrees == "true")
        arm.calibration_file = path
        arms.append((f"{each.side}_" if each.side else "", arm))
    if not check_arms(arms, o.recording, out):
        raise SystemExit(3)


def _release(o: RobotCommandOptions, out: Output) -> None:
    from ..robots.base import ConnectionLost
    from ..robots.servo_arm import release_arm

    problems = []
    for arm in _arms_of(o, "robot", "teleop"):
        try:
            silent = release_arm(arm.kind, arm.port)
        except ConnectionLost as error:  # another arm may still be reached
            problems.append(f"{arm.port}: {error.problem}")
            continue
        if silent:
            problems.append(f"{arm.port}: no answer from {', '.join(silent)}")
        else:
            out.print(f"{arm.kind.name}, {arm.port}: the torque is off")
    if problems:
        raise ConnectionLost(f"servos may still have torque. {'; '.join(problems)}", where="robot release",
                             hint="understudy robot find-port finds ports. Otherwise support the arm, and switch "
                                  "its power off")


def _emulate(o: RobotCommandOptions, out: Output) -> None:
    from ..robots.emulator import emulate_arm, wave

    with emulate_arm(_kind_of(o.robot or o.teleop)) as bus:
        print(f"port: {bus.port}", flush=True)
        began = time.monotonic()
        while True:
            if o.wave:
                wave(bus, time.monotonic() - began)
            time.sleep(0.01)


def _kind_of(name: str | None) -> ServoArmType:
    from ..robots.servo_arm import ARM_TYPES

    if name is None or (kind := ARM_TYPES.get(name)) is None:
        lerobot = "lerobot-calibrate and lerobot-setup-motors set up LeRobot's devices; " if (
            name or "").startswith(LEROBOT) else ""
        raise ConfigError(f"{name!r} is not an arm of servos" if name else "is missing", where="--robot",
                          hint=f"{lerobot}one of {', '.join(ARM_TYPES)}")
    return kind


def _question(o: RobotCommandOptions, text: str) -> None:
    if o.dialog:
        tell(ask=text)
    else:
        print(text, flush=True)


def _ask(o: RobotCommandOptions, text: str) -> None:
    _question(o, text)
    _check_entered(sys.stdin.readline())


def _check_entered(line: str) -> None:
    if not line.endswith("\n"):
        raise UserError("it ended before enter was pressed", where="standard input",
                        hint="run it in a terminal, without a pipe")
