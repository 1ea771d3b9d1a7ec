"""Makes robots and teleoperators by name, with LeRobot's names and options."""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..config import UntrustedCode, load
from ..core import ConfigError, UserError, unknown_name
from ..envs.devices import Gamepad, JointKeyboard
from ..files import read_json
from ..hints import command_line, trust_hint
from ..user_code import import_module
from .base import Robot, Teleoperator
from .bimanual import BimanualRobot, BimanualTeleoperator, join_limits
from .calibration import MotorCalibration, find_calibration, read_calibration
from .cameras import Camera, EmulatedCamera, OpenCVCamera
from .lerobot import PREFIX, LeRobotRobot, make_lerobot_robot, make_lerobot_teleoperator
from .limits import SafetyLimits
from .ports import refuse_shared_ports
from .safety import SafeRobot
from .servo_arm import ARM_TYPES, ServoArm, ServoArmType, ServoFollower, ServoLeader
from .simulated import SimulatedArm
from .teleoperators import VelocityTeleoperator

Arm = TypeVar("Arm", ServoFollower, ServoLeader)

FOLLOWERS = tuple(n for n, t in ARM_TYPES.items() if not t.is_leader)
LEADERS = tuple(n for n, t in ARM_TYPES.items() if t.is_leader)
ROBOTS = (*FOLLOWERS, *(f"bi_{n}" for n in FOLLOWERS), "simulated_arm")
_CAMERAS = {"opencv": OpenCVCamera, "emulated": EmulatedCamera}
TELEOPERATORS = (*LEADERS, *(f"bi_{n}" for n in LEADERS), "keyboard", "gamepad")


@dataclass(frozen=True)
class RobotConfig:
    """Options of a robot and its limits, as commands take them.

    Args:
        type: One of `ROBOTS`, lerobot/TYPE for a robot of LeRobot, or module:factory, a function that returns a
            `Robot`.
        retries: Largest number of times that a request to the servos is repeated.
        id: Name of this arm, under which its calibration is stored. By default the type. The arms of a robot with two
            arms are ID_left and ID_right.
        calibration_dir: Folder of the calibration. By default understudy's folder, and then LeRobot's.
        cameras: Settings of each camera by its name: type, index_or_path, width, height, fps, rotation, fourcc.
        use_degrees: Whether joints are in degrees. Otherwise they are from -100 to 100 over their calibrated range.
        limits: A JSON file of `SafetyLimits` (`understudy.config.dump`). The fields below replace its values.
        max_velocity: Largest velocity in units of the action per second, for all joints or for each.
        max_relative_target: Largest distance of a goal from the measured position, for all joints or for each.
        max_torque: Fraction of the largest torque that joints may use.
        max_load: Fraction of the largest torque at which the robot stops, if it lasts.
        slow_start: Duration of the slow start (s).
        timeout: Longest time between two commands (s).
        options: Further fields of the config of a robot of LeRobot, as text.
    """

    type: str
    port: str | None = None
    id: str | None = None
    calibration_dir: Path | None = None
    cameras: Mapping[str, Mapping[str, Any]] | None = None
    use_degrees: bool = True
    disable_torque_on_disconnect: bool = True
    limits: Path | None = None
    max_velocity: tuple[float, ...] | None = None
    max_relative_target: tuple[float, ...] | None = None
    max_torque: float | None = None
    max_load: float | None = None
    slow_start: float | None = None
    timeout: float | None = None
    left_arm_port: str | None = None
    right_arm_port: str | None = None
    retries: int | None = None
    options: Mapping[str, str] | None = None


@dataclass(frozen=True)
class TeleoperatorConfig:
    """Options of a teleoperator, as commands take them.

    Args:
        type: One of `TELEOPERATORS`, lerobot/TYPE for a teleoperator of LeRobot, or module:factory, a function that
            returns a `Teleoperator`.
        port: Serial port of a leader arm.
        id: Name of this arm, under which its calibration is stored. By default the type.
        use_degrees: As for the robot.
        retries: As for the robot.
        options: Further fields of the config of a teleoperator of LeRobot, as text.
    """

    type: str
    port: str | None = None
    id: str | None = None
    calibration_dir: Path | None = None
    use_degrees: bool = True
    left_arm_port: str | None = None
    right_arm_port: str | None = None
    retries: int | None = None
    options: Mapping[str, str] | None = None


def ports_of(config: RobotConfig | TeleoperatorConfig) -> dict[str, str | None]:
    """Returns the serial ports by the options that gave them."""
    device = _device_of(config)
    return {f"--{device}.port": config.port, f"--{device}.left-arm-port": config.left_arm_port,
            f"--{device}.right-arm-port": config.right_arm_port}


def _device_of(config: RobotConfig | TeleoperatorConfig) -> str:
    return "robot" if isinstance(config, RobotConfig) else "teleop"


def make_robot(config: RobotConfig, trust: Sequence[str] = ()) -> SafeRobot:
    """Makes a robot with safety limits. It is not connected yet.

    Raises:
        UntrustedCode: The factory is in a package that is not trusted.
    """
    refuse_shared_ports(ports_of(config))
    is_lerobot = config.type.startswith(PREFIX)  # with cameras of its own
    cameras = {} if is_lerobot else {
        name: _make_camera(name, settings, trust) for name, settings in (config.cameras or {}).items()}
    robot: Robot
    limits: SafetyLimits | None
    kept: dict[str, Any] = {}  # of a robot that already has limits
    if config.type.removeprefix("bi_") in FOLLOWERS:
        is_single = config.type in FOLLOWERS
        arms = _make_arms(config, lambda *arm: ServoFollower(
            *arm, cameras if is_single else {}, config.disable_torque_on_disconnect, config.use_degrees))
        robot = arms[0] if is_single else BimanualRobot(*arms, cameras)
        limits = arms[0].default_limits() if is_single else join_limits(*(arm.default_limits() for arm in arms))
    elif config.type == "simulated_arm":
        robot = SimulatedArm(clock=time.monotonic, cameras=cameras)
        limits = SafetyLimits((-90.0, -90.0), (90.0, 90.0), (120.0, 120.0))
    elif is_lerobot:
        robot = make_lerobot_robot(config.type.removeprefix(PREFIX), _lerobot_options(config))
        limits = robot.default_limits()
    else:
        robot = _from_factory(config.type, ROBOTS, "--robot", trust, {"port": config.port, "id": config.id,
                                                                       "cameras": cameras})
        limits = None
        if isinstance(robot, SafeRobot):
            kept = {"clock": robot.clock, "watchdog": robot.watchdog}
            robot, limits = robot.robot, robot.limits
    if config.limits is not None:
        limits = read_limits(config.limits)
    if limits is None:
        names = robot.schema["action"].names or ()
        raise UserError("this robot has no limits" + (f"; its action is {', '.join(names)}" if names else ""),
                        where=config.type, hint="give them in a file, --robot.limits FILE (docs/robots.md shows one)"
                        + ("" if is_lerobot else ", or let the factory return SafeRobot(robot, SafetyLimits(...))"))
    size = robot.schema["action"].size
    changes = {name: _per_joint(value, size, name) if isinstance(value, tuple) else value for name in (
        "max_velocity", "max_relative_target", "max_torque", "max_load", "slow_start", "timeout")
        if (value := getattr(config, name)) is not None}
    return SafeRobot(robot, replace(limits, **changes), **kept)


def make_teleoperator(config: TeleoperatorConfig, robot: SafeRobot, trust: Sequence[str] = ()
                      ) -> tuple[Teleoperator, JointKeyboard | None]:
    """Makes a teleoperator for a robot. It is not connected yet.

    Returns:
        The teleoperator, and the keyboard if it is one. Its context `listening` reads the keys.
    """
    arms = servo_arms(robot)
    options = ("--robot.port",) if len(arms) < 2 else ("--robot.left-arm-port", "--robot.right-arm-port")
    lerobot = {"--robot.port": robot.robot.port} if isinstance(robot.robot, LeRobotRobot) else {}
    refuse_shared_ports({**{option: arm.bus.port_name for option, arm in zip(options, arms, strict=False)}, **lerobot,
                         **ports_of(config)})
    if config.type.removeprefix("bi_") in LEADERS:
        leaders = _make_arms(config, lambda *arm: ServoLeader(*arm, config.use_degrees))
        return leaders[0] if len(leaders) == 1 else BimanualTeleoperator(*leaders), None
    limits = robot.limits
    half_velocity = tuple(v / 2 for v in limits.max_velocity)
    if config.type == "keyboard":
        keys = JointKeyboard(n_joints=len(limits.low))
        return VelocityTeleoperator(keys, half_velocity, limits.low, limits.high), keys
    if config.type == "gamepad":
        axes = tuple(range(min(len(limits.low), 6)))
        pad = Gamepad(axes=axes, scale=tuple(1.0 if i % 2 == 0 else -1.0 for i in axes))
        return VelocityTeleoperator(pad, half_velocity, limits.low, limits.high), None
    if config.type.startswith(PREFIX):
        return make_lerobot_teleoperator(config.type.removeprefix(PREFIX), _lerobot_options(config), robot.robot), None
    return _from_factory(config.type, TELEOPERATORS, "--teleop", trust, {"port": config.port, "id": config.id}), None


def servo_arms(*devices: Robot | Teleoperator) -> list[ServoArm]:
    """Returns the servo arms of robots and teleoperators."""
    arms = []
    for device in devices:
        robot = device.robot if isinstance(device, SafeRobot) else device
        parts = (robot.arms if isinstance(robot, BimanualRobot) else
                 robot.parts if isinstance(robot, BimanualTeleoperator) else (robot,))
        arms += [part.arm for part in parts if isinstance(part, (ServoFollower, ServoLeader))]
    return arms


def _lerobot_options(config: RobotConfig | TeleoperatorConfig) -> dict[str, Any]:
    """Returns the fields of LeRobot's config that were given."""
    names = ("port", "id", "calibration_dir", "use_degrees", "left_arm_port", "right_arm_port",
             "retries", *(("disable_torque_on_disconnect", "cameras") if isinstance(config, RobotConfig) else ()))
    return {**{n: value for n in names if (value := getattr(config, n)) is not None}, **(config.options or {})}


@dataclass(frozen=True)
class NamedArm:
    """A servo arm with its name and calibration, of a robot or a teleoperator.

    Args:
        id: Name of the arm, under which its calibration is stored. None for its type.
        folder: Folder of the calibration. None for the usual ones.
        device: The option that names it, "robot" or "teleop".
        side: Of two arms, "left" or "right".
    """

    kind: ServoArmType
    port: str
    id: str | None
    folder: Path | None
    device: str
    side: str | None

    def read_calibration(self) -> tuple[dict[str, MotorCalibration], Path]:
        """Reads the calibration of the arm. Returns it and its file."""
        kind, name = self.kind.name, self.id or self.kind.name
        path = find_calibration(kind, name, self.folder)
        if path is None:
            raise UserError(f"there is no calibration of the arm {name!r}", where=kind,
                            hint=command_line("robot", "calibrate", f"--{self.device}", kind, f"--{self.device}.port",
                                              self.port, *((f"--{self.device}.id", self.id) if self.id else ())))
        ids = {servo: motor.id for servo, motor in self.kind.servos.items()}
        return read_calibration(path, ids, self.kind.max_offset), path


def named_arms(config: RobotConfig | TeleoperatorConfig) -> Iterator[NamedArm]:
    """Yields the servo arm that a config names, or the left and the right one."""
    kind, device = config.type.removeprefix("bi_"), _device_of(config)
    for side in (None,) if kind == config.type else ("left", "right"):
        option = f"{side}-arm-port" if side else "port"
        port = getattr(config, option.replace("-", "_"))
        if port is None:
            raise ConfigError("is missing", where=f"--{device}.{option}", hint="understudy robot find-port finds it")
        name = f"{config.id or config.type}_{side}" if side else config.id
        yield NamedArm(ARM_TYPES[kind], port, name, config.calibration_dir, device, side)


def _make_arms(config: RobotConfig | TeleoperatorConfig,
               make: Callable[[ServoArmType, str, dict[str, MotorCalibration]], Arm]) -> list[Arm]:
    arms = []
    for named in named_arms(config):
        calibration, path = named.read_calibration()
        arm = make(named.kind, named.port, calibration)
        arm.arm.calibration_file = path
        if config.retries is not None:
            arm.arm.bus.n_retries = config.retries
        arms.append(arm)
    return arms


def parse_cameras(text: str) -> dict[str, dict[str, Any]]:
    """Parses cameras as LeRobot writes them, which is a part of YAML, or as JSON.

    Args:
        text: Such as "{front: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}}".
    """
    tokens = re.findall(r'"[^"]*"|\'[^\']*\'|[{}:,]|[^{}:,\s"\']+(?::(?=\S)[^{}:,\s]+)*', text)
    pairs = list(zip(tokens, [*tokens[1:], ""], strict=True))  # each with the one after it
    words = [_as_json(token, after == ":") for token, after in pairs if (token, after) != (",", "}")]
    try:
        value = json.loads("".join(words), object_pairs_hook=_unique_keys)
        if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
            raise ValueError
    except ConfigError:  # also a ValueError
        raise
    except ValueError:
        raise ConfigError(f"{text!r} does not describe cameras", where="--robot.cameras",
                          hint="such as '{front: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}}'"
                          ) from None
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object from its pairs. Raises ConfigError if a key occurs twice."""
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{twice!r} is given twice", where="--robot.cameras", hint="give each camera its own name")
    return dict(pairs)


def _as_json(word: str, is_key: bool) -> str:
    """Converts a word of a YAML-like description of cameras to JSON."""
    if word in "{}:," or not is_key and word in ("true", "false"):
        return word
    for kind in () if is_key else (int, float):
        with suppress(ValueError):
            return json.dumps(kind(word))
    return json.dumps(word.strip("\"'"))


def _make_camera(name: str, settings: Mapping[str, Any], trust: Sequence[str]) -> Camera:
    options = dict(settings)
    kind = options.pop("type", "opencv")
    if kind not in _CAMERAS:
        return _from_factory(str(kind), tuple(_CAMERAS), f"camera {name}", trust, options)
    parameters = inspect.signature(_CAMERAS[kind]).parameters
    takes = parameters.keys() - {"clock"}
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in options]
    if missing or not options.keys() <= takes:
        raise ConfigError(f"the camera has the settings {', '.join(options) or 'none'}", where=f"camera {name}",
                          hint=(f"it needs {', '.join(missing)}, and" if missing else f"type {kind}")
                          + f" takes {', '.join(sorted(takes))}")
    try:
        return _CAMERAS[kind](**options)
    except ConfigError as error:
        raise ConfigError(error.problem, where=f"camera {name}", hint=error.hint) from None


def _from_factory(name: str, valid_names: Sequence[str], where: str, trust: Sequence[str],
                  options: Mapping[str, Any]) -> Any:
    """Calls a function of the user with those options that it takes, and returns its result."""
    module, colon, function = name.partition(":")
    if not colon:
        others = ["lerobot/TYPE"] if where.startswith("--") else []
        raise unknown_name("device", name, (*valid_names, *others, "module:factory"), where, hint="check the name")
    package = module.split(".")[0]
    if package not in trust:
        raise UntrustedCode(f"names code of the package {package!r}, which is not trusted", where=name,
                            hint=trust_hint(package))
    factory: Callable | None = getattr(import_module(module, name), function, None)
    if factory is None or not callable(factory):
        raise ConfigError(f"there is no function {function!r} in {module}", where=name,
                          hint="name a function that returns the device")
    takes = inspect.signature(factory).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    return factory(**{k: v for k, v in options.items() if every or k in takes})


def read_limits(path: Path) -> SafetyLimits:
    limits = load(read_json(path))
    if not isinstance(limits, SafetyLimits):
        raise ConfigError(f"this describes {type(limits).__name__}, not SafetyLimits", where=path,
                          hint="write it with understudy.config.dump")
    return limits


def _per_joint(values: tuple[float, ...], size: int, name: str) -> tuple[float, ...]:
    if len(values) not in (1, size):
        raise ConfigError(f"has {len(values)} numbers, but the robot has {size} joints",
                          where=f"--robot.{name.replace('_', '-')}", hint="give one number, or one per joint")
    return values if len(values) == size else values * size
