"""Adapters of LeRobot's robots and teleoperators. No other file of the package imports LeRobot.

The names of their types are the ones in LeRobot's commands, with the prefix lerobot/. Tested with LeRobot 0.4.4.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import partial
from types import ModuleType
from typing import Any, Literal

import numpy as np

from ..core import ConfigError, Feature, Unsupported, UserError
from ..hints import did_you_mean
from .base import ConnectionLost, Robot, RobotError, Teleoperator
from .calibration import MotorCalibration
from .limits import SafetyLimits
from .servo_arm import MAX_RELATIVE_TARGET, MAX_VELOCITY, ServoFollower, joint_unit

PREFIX = "lerobot/"
_UNITS = {"DEGREES": "degrees", "RANGE_0_100": "percent", "RANGE_M100_100": "signed_percent"}  # of `MotorNormMode`
_RATES = ("vel", "torque", "vx", "vy", "vtheta")  # ends of the names of components that are 0 at rest


class LeRobotRobot(Robot):
    """Adapter that makes a robot of LeRobot usable here.

    The numbers of its observation are the column `observation.state`, with LeRobot's names and in LeRobot's order. Its
    images are the columns observation.images.NAME, and the numbers of its action the column `action`.

    A stop sends the measured position, and 0 for velocities and torques.

    Raises:
        Unsupported: It has a feature that is neither a number nor an RGB image, or does not measure the position of a
            component of its action.
    """

    def __init__(self, name: str, device: Any):
        self.name, self.device = name, device
        observed, self._action_names = device.observation_features, tuple(device.action_features)
        self._images = {n: tuple(shape) for n, shape in observed.items() if isinstance(shape, (tuple, list))}
        self._state_names = tuple(n for n in observed if n not in self._images)
        for feature, kind in {**observed, **device.action_features}.items():
            if kind not in (float, int, bool) and self._images.get(feature, ())[2:] != (3,):
                raise Unsupported(f"its feature {feature!r} is {kind}, neither a number nor an RGB image",
                                  where=PREFIX + name, hint="use this robot with LeRobot itself")
        if blind := [n for n in self._action_names if n not in self._state_names and not _is_rate(n)]:
            raise Unsupported(f"it does not measure {', '.join(blind)}, so it could not hold its pose",
                              where=PREFIX + name, hint="use this robot with LeRobot itself")
        self._is_rate = np.array([_is_rate(n) for n in self._action_names])
        self._sent = self._position = np.zeros(len(self._action_names))
        self._is_open = False
        self.schema = {
            "observation.state": _column(self._state_names, device),
            **{f"observation.images.{n}": Feature("uint8", shape, "image") for n, shape in self._images.items()},
            "action": _column(self._action_names, device)}

    @property
    def calibration(self):
        return {f"{prefix}{n}": str(MotorCalibration(**vars(each))) for prefix, bus in _buses(self.device).items()
                for n, each in (bus.calibration or {}).items()}

    @property
    def port(self) -> str | None:
        """The serial port of the robot, if it has one."""
        port = getattr(self.device.config, "port", None)
        return port if isinstance(port, str) else None

    def connect(self):
        self.disconnect()
        _connect(self.device, "robot", self.name)
        self._is_open = True
        try:
            self.observe()
        except BaseException:
            self.disconnect()
            raise

    def observe(self):
        try:
            readings = self.device.get_observation()
            state = np.array([readings[n] for n in self._state_names], np.float32)
            images = {f"observation.images.{n}": _image(n, readings[n], shape) for n, shape in self._images.items()}
        except Exception as error:  # each driver raises what it likes
            raise _lost(error, self.name) from error
        obs = {"observation.state": state, **images}
        self._position = self.position(obs)
        return obs

    def send(self, action):
        if not self._is_open:
            raise ConnectionLost("the robot is not connected", where=self.name, hint="call connect() first")
        commanded = {n: float(v) for n, v in zip(self._action_names, action, strict=True)}
        try:
            sent = {**commanded, **(self.device.send_action(commanded) or {})}
        except Exception as error:
            raise _lost(error, self.name) from error
        self._sent = np.array([sent[n] for n in self._action_names], np.float64)
        return self._sent.astype(np.float32)

    def stop(self):
        with suppress(ConnectionLost):  # if only a camera is lost, the joints hold where they were seen last
            self.observe()
        target = np.where(self._is_rate, 0.0, self._position)
        self.send(target)
        return target

    def disconnect(self):
        self._is_open = False
        _disconnect(self.device)

    def apply_limits(self, limits: SafetyLimits):
        for option, is_set in (("max-torque", limits.max_torque < 1), ("max-load", limits.max_load is not None)):
            if is_set:
                raise ConfigError("LeRobot's robots have no such limit", where=f"--robot.{option}",
                                  hint="leave it out, or use one of understudy's own robots")

    def position(self, obs):
        state = dict(zip(self._state_names, np.asarray(obs["observation.state"], np.float64).tolist(), strict=True))
        return np.array([state.get(n, last) for n, last in zip(self._action_names, self._sent, strict=True)])

    def default_limits(self) -> SafetyLimits | None:
        """Returns limits from the calibrated ranges of servos. None for robots without servos."""
        units, ranges = _units(self.device), _ranges(self.device)
        if not set(self._action_names) <= set(ranges):
            return None
        low, high = zip(*(ranges[n] for n in self._action_names), strict=True)
        return SafetyLimits(low, high, tuple(MAX_VELOCITY[units[n]] for n in self._action_names),
                            tuple(MAX_RELATIVE_TARGET[units[n]] for n in self._action_names))


class LeRobotTeleoperator(Teleoperator):
    """Adapter that makes a teleoperator of LeRobot usable here."""

    def __init__(self, name: str, device: Any, robot: Robot):
        self.name, self.device, self.names = name, device, robot.schema["action"].names or ()
        features = device.action_features
        gives = features.get("names", features)  # some list names, others map names to types
        if missing := [n for n in self.names if n not in gives and not _is_rate(n)]:
            raise ConfigError(f"it gives {', '.join(gives)}, but the robot takes {', '.join(missing)}",
                              where=PREFIX + name, hint="use a teleoperator with the joints of the robot, or --teleop "
                              "keyboard; LeRobot's kinematics and processors are not used")
        takes = _robot_units(robot)
        for component, unit in _units(device).items():
            if takes.get(component, unit) != unit:
                raise ConfigError(f"it gives {component} in {unit}, but the robot takes {takes[component]}",
                                  where=PREFIX + name, hint="let them agree: --robot.use-degrees false")

    def connect(self):
        _disconnect(self.device)
        _connect(self.device, "teleop", self.name)

    def read(self):
        try:
            action = self.device.get_action()
            return np.array([action.get(n, 0.0) if _is_rate(n) else action[n] for n in self.names], np.float32)
        except Exception as error:
            raise _lost(error, self.name) from error

    def disconnect(self):
        _disconnect(self.device)


# -- LeRobot's objects ------------------------------------------------------------------------------------------------


def _is_rate(name: str) -> bool:
    return name.rpartition(".")[2] in _RATES


def _parts(device: Any) -> dict[str, Any]:
    """Returns the arms that a device consists of, by the prefix of their joints: "", "left_" and "right_"."""
    arms = {side: getattr(device, f"{side}arm", None) for side in ("left_", "right_")}
    return {"": device, **{side: arm for side, arm in arms.items() if arm is not None}}


def _buses(device: Any) -> dict[str, Any]:
    """Returns the servo buses of a device, by the prefix of their joints."""
    from lerobot.motors.motors_bus import SerialMotorsBus

    buses = {prefix: getattr(part, "bus", None) for prefix, part in _parts(device).items()}
    return {prefix: bus for prefix, bus in buses.items() if isinstance(bus, SerialMotorsBus)}


def _units(device: Any) -> dict[str, str]:
    """Returns the unit of each joint with a servo, as `ServoArm.units`."""
    return {f"{prefix}{n}.pos": _UNITS[motor.norm_mode.name]
            for prefix, bus in _buses(device).items() for n, motor in bus.motors.items()}


def _column(names: tuple[str, ...], device: Any) -> Feature:
    """Returns the feature of a column of joints. Its unit is known if all have servos with one unit."""
    units = {joint_unit({n: _UNITS[motor.norm_mode.name] for n, motor in bus.motors.items()})
             for bus in _buses(device).values()}
    is_known = len(units) == 1 and set(names) <= _units(device).keys()
    return Feature("float32", (len(names),), names=names, unit=units.pop() if is_known else None)


def _robot_units(robot: Robot) -> dict[str, str]:
    if isinstance(robot, ServoFollower):
        return {f"{n}.pos": unit for n, unit in robot.arm.units.items()}
    return _units(robot.device) if isinstance(robot, LeRobotRobot) else {}


def _ranges(device: Any) -> dict[str, tuple[float, float]]:
    """Returns the calibrated range of each joint with a servo, in its unit."""
    ranges = {}
    for prefix, bus in _buses(device).items():
        for n, motor in bus.motors.items():
            each, unit = bus.calibration[n], _UNITS[motor.norm_mode.name]
            half_turn = (each.range_max - each.range_min) * 180 / (bus.model_resolution_table[motor.model] - 1)
            ranges[f"{prefix}{n}.pos"] = {"degrees": (-half_turn, half_turn), "percent": (0.0, 100.0),
                                          "signed_percent": (-100.0, 100.0)}[unit]
    return ranges


def _connect(device: Any, role: str, name: str) -> None:
    """Connects a LeRobot device without calibrating it. Servos take their present position as goal."""
    def refuse() -> None:
        raise RobotError("the calibration in its servos is not that of its file", where=PREFIX + name,
                         hint=_calibrate_command(role, name, device))

    def hold(bus: Any, configure: Any) -> None:
        bus.sync_write("Goal_Position", bus.sync_read("Present_Position", normalize=False), normalize=False)
        configure()
    buses = _buses(device)
    for prefix, part in _parts(device).items():
        part.calibrate = refuse  # LeRobot calls it if the calibrations differ, and would ask questions
        if role == "robot" and prefix in buses:
            part.configure = partial(hold, buses[prefix], type(part).configure.__get__(part))
    try:
        device.connect()
    except BaseException as error:
        _disconnect(device)
        if isinstance(error, Exception) and not isinstance(error, UserError):
            raise _lost(error, name) from error
        raise


def _disconnect(device: Any) -> None:
    """Closes all open connections of a LeRobot device, even if one is lost, and switches the torque of servos off."""
    with suppress(Exception):
        device.disconnect()
    for bus in _buses(device).values():
        if bus.is_connected:
            with suppress(Exception):
                bus.disconnect(True)


def _image(name: str, reading: Any, shape: tuple[int, ...]) -> np.ndarray:
    image = np.asarray(reading)
    if image.shape != shape or image.dtype != np.uint8:
        raise ValueError(f"the image {name!r} is {image.dtype} {image.shape}, but was announced as uint8 {shape}")
    return image


def _lost(error: Exception, name: str) -> ConnectionLost:
    return ConnectionLost(f"LeRobot's driver: {_text(error)}", where=name, hint="check power, cables and options")


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _calibrate_command(role: str, name: str, device: Any) -> str:
    options = {"type": name, "port": getattr(device.config, "port", None), "id": device.id}
    return " ".join(["lerobot-calibrate", *(f"--{role}.{n}={v}" for n, v in options.items() if v is not None)])


# -- making them by name ----------------------------------------------------------------------------------------------


def make_lerobot_robot(name: str, options: Mapping[str, Any]) -> LeRobotRobot:
    """Makes a robot of LeRobot, not connected.

    Args:
        name: Its type in LeRobot, such as "so101_follower".
        options: Fields of its config, as text or as values. "left_arm_config.port" is a field of a field.
    """
    return LeRobotRobot(name, _make_device("robot", name, options))


def make_lerobot_teleoperator(name: str, options: Mapping[str, Any], robot: Robot) -> LeRobotTeleoperator:
    """Makes a teleoperator of LeRobot, not connected.

    Args:
        name: Its type in LeRobot, such as "so101_leader".
        options: Fields of its config, as for `make_lerobot_robot`.
    """
    return LeRobotTeleoperator(name, _make_device("teleop", name, options), robot)


def _make_device(role: Literal["robot", "teleop"], name: str, options: Mapping[str, Any]) -> Any:
    flag = f"--{role} {PREFIX}{name}"
    try:
        from lerobot import cameras, robots, teleoperators
        from lerobot.utils.import_utils import register_third_party_plugins
    except ImportError as error:
        problem = "LeRobot is not installed" if error.name == "lerobot" else f"LeRobot cannot be imported: {error}"
        raise UserError(problem, where=flag, hint="pip install 'lerobot[feetech]'; version 0.4.4 was tested") from None
    package, make, kinds = (
        (robots, robots.make_robot_from_config, robots.RobotConfig) if role == "robot" else
        (teleoperators, teleoperators.make_teleoperator_from_config, teleoperators.TeleoperatorConfig))
    choices: Mapping[str, Any] = kinds.get_known_choices()  # grows with the modules that are imported
    failures = _import_modules(package, name, choices)
    if any(option.startswith("cameras") for option in options):
        _import_modules(cameras)
    register_third_party_plugins()
    if name not in choices:
        failed = "".join(f"; its module {module} cannot be imported: {text}" for module, text in failures.items())
        raise ConfigError(f"LeRobot has no {role} {name!r}; it has {', '.join(sorted(choices))}{failed}", where=flag,
                          hint=did_you_mean(name, choices, 3, 0.5) or "check it, or install its package")
    config = _make_config(choices[name], options, role, flag)
    try:
        device = make(config)
    except Exception as error:  # a missing SDK, or settings that its class refuses
        raise UserError(f"LeRobot cannot make it: {_text(error.__cause__ or error)}", where=flag,
                        hint="install what it needs: the extras of LeRobot, such as 'lerobot[lekiwi]'") from error
    if any(not bus.calibration for bus in _buses(device).values()):
        raise RobotError("it is not calibrated", where=flag, hint=_calibrate_command(role, name, device))
    return device


def _import_modules(package: ModuleType, name: str = "", registered: Container[str] = ()) -> dict[str, str]:
    """Imports the modules of a package until `name` is registered, which takes seconds. Returns errors of imports."""
    failures = {}
    modules = [module.name for module in pkgutil.iter_modules(package.__path__)]
    for module in sorted(modules, key=lambda m: -difflib.SequenceMatcher(None, m, name).ratio()):
        if name in registered:
            break
        try:
            importlib.import_module(f"{package.__name__}.{module}")
        except Exception as error:
            failures[module] = _text(error)
    return failures


def _make_config(kind: Any, options: Mapping[str, Any], role: str, where: str) -> Any:
    """Builds a config of LeRobot. Text is read as LeRobot's commands read it."""
    import draccus
    import yaml

    takes = {f.name for f in fields(kind)}
    nested: dict[str, Any] = {}
    try:
        for option, value in options.items():
            if value is True and option not in takes:
                continue  # a default of understudy's own robots
            *parents, last = option.split(".")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = yaml.safe_load(value) if isinstance(value, str) and value[:1] in ("{", "[") else value
        return draccus.decode(kind, nested)
    except (draccus.ParsingError, draccus.utils.DecodingError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise ConfigError(_text(error.__cause__ or error), where=where,
                          hint="it takes " + ", ".join(f"--{role}.{n}" for n in sorted(takes))) from None
