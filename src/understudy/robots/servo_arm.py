"""Arms made of servos: followers that act, and leaders that a person moves."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..core import ConfigError, Feature
from .base import ConnectionLost, DrivenTeleoperator, Robot, RobotError
from .calibration import Calibration, MotorCalibration, is_leader_folder, known_calibrations, same_values
from .cameras import Camera, camera_features, read_cameras
from .dynamixel import DynamixelMotorsBus
from .feetech import FeetechMotorsBus
from .limits import SafetyLimits
from .motors_bus import Motor, MotorsBus
from .registers import BAUD_RATES
from .torque_guard import TorqueGuard

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
# Value of the load register at the largest torque: in thousandths for sts and xl430 servos, in mA for the rest.
_FULL_LOAD = {"sts3215": 1000, "sts3250": 1000, "xl430-w250": 1000, "xc430-w150": 1400, "xl330-m077": 1750,
              "xl330-m288": 1750, "xm430-w350": 1193, "xm540-w270": 2047}
MAX_VELOCITY = {"degrees": 120.0, "percent": 125.0, "signed_percent": 120.0}  # per second
MAX_RELATIVE_TARGET = {"degrees": 30.0, "percent": 50.0, "signed_percent": 30.0}
_UNIT_NAMES = {"degrees": "deg", "percent": "percent", "signed_percent": "signed percent"}  # of `Feature.unit`
_NO_ID = 255
_MAX_SHADOW_STEPS = 57  # 5 degrees between the two servos of a joint
_MAX_OUTSIDE = 512  # 45 degrees outside the calibrated range
_CONNECT_STEPS = 341  # steps/s: 30 deg/s, until `apply_limits` sets another limit
_FOLLOW_TORQUE = 0.3  # of a leader that goes to the pose of its follower
_FOLLOWED = 2.0  # units of the action: a leader that is as near has arrived


@dataclass(frozen=True)
class ServoArmType:
    """A type of servo arm, such as so101_follower: its servos and their settings.

    Args:
        manufacturer: Of the servos: "feetech" or "dynamixel".
        full_turn: Joints that turn without a stop. Calibration gives them a full turn.
        inverted: Servos that turn the other way (Dynamixel's Drive_Mode).
        shadows: Second servos of joints, by their name: the first servo of the joint, and the second one, which is
            mounted the other way round and does what the first one is told (Dynamixel's Secondary_ID).
        is_leader: Whether a person moves it.
    """

    name: str
    manufacturer: str
    motors: Mapping[str, Motor]
    full_turn: tuple[str, ...] = ("wrist_roll",)
    inverted: tuple[str, ...] = ()
    shadows: Mapping[str, tuple[str, Motor]] = field(default_factory=dict)
    is_leader: bool = False

    @property
    def servos(self) -> dict[str, Motor]:
        """All servos of the arm, those of `shadows` included."""
        return {**self.motors, **{name: motor for name, (_, motor) in self.shadows.items()}}

    @property
    def inverted_servos(self) -> tuple[str, ...]:
        """Servos whose Drive_Mode is inverted: `inverted`, and second servos of joints that are not."""
        return (*self.inverted, *(n for n, (first, _) in self.shadows.items() if first not in self.inverted))

    @property
    def is_feetech(self) -> bool:
        return self.manufacturer == "feetech"

    @property
    def max_offset(self) -> int:
        """Largest homing offset that the servos store (steps)."""
        return 2047 if self.is_feetech else 1_044_479

    def bus(self, port: str) -> MotorsBus:
        """Returns the serial bus for the servos, not yet connected."""
        return (FeetechMotorsBus if self.is_feetech else DynamixelMotorsBus)(port, self.servos)


def _arm(name: str, manufacturer: str, models: Sequence[str], joints: Sequence[str] = JOINTS,
         ids: Sequence[int] = range(1, 7), **options) -> ServoArmType:
    motors = {joint: Motor(number, model, "percent" if joint == "gripper" else "degrees")
              for joint, number, model in zip(joints, ids, models, strict=True)}
    return ServoArmType(name, manufacturer, motors, is_leader=is_leader_folder(name), **options)


def _aloha_arm(name: str, models: Sequence[str]) -> ServoArmType:
    """Builds the arm type of ViperX 300 or WidowX 250, whose shoulder and elbow have two servos each."""
    joints = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
    doubled = {"shoulder": 3, "elbow": 5}
    shadows = {f"{joint}_shadow": (joint, Motor(number, models[0])) for joint, number in doubled.items()}
    return _arm(name, "dynamixel", models, joints, (1, 2, 4, 6, 7, 8, 9), full_turn=("forearm_roll", "wrist_rotate"),
                shadows=shadows)


_SO = ("sts3215",) * 6
_KOCH = ("shoulder_pan", "wrist_roll")  # joints without a stop
ARM_TYPES = {t.name: t for t in (
    _arm("so100_follower", "feetech", _SO), _arm("so101_follower", "feetech", _SO),
    _arm("so100_leader", "feetech", _SO), _arm("so101_leader", "feetech", _SO),
    _arm("koch_follower", "dynamixel", ("xl430-w250",) * 2 + ("xl330-m288",) * 4, full_turn=_KOCH),
    _arm("koch_leader", "dynamixel", ("xl330-m077",) * 6, full_turn=_KOCH, inverted=("elbow_flex",)),
    _aloha_arm("viperx", ("xm540-w270",) * 5 + ("xm430-w350",) * 2),
    _aloha_arm("widowx", ("xm430-w350",) * 5 + ("xl430-w250", "xc430-w150")),
)}


class ServoArm:
    """Base class of follower and leader arms: the bus, the calibration, and the units.

    Args:
        calibration: Its calibration. None or empty if there is none yet.
        use_degrees: Units of the joints: degrees, or -100 to 100 over the calibrated range.

    Attributes:
        calibration_file: Where the calibration was read, for messages.
    """

    def __init__(self, kind: ServoArmType, port: str, calibration: Calibration | None, use_degrees: bool = True):
        self.kind, self.calibration, self.bus = kind, calibration or {}, kind.bus(port)
        self.calibration_file: Path | None = None
        self.units = {n: m.range if use_degrees or m.range == "percent" else "signed_percent"
                      for n, m in kind.motors.items()}

    def connect(self) -> None:
        """Opens the port, checks the servos, and writes the calibration into new ones.

        Raises:
            RobotError: There is no calibration, a servo is of another kind, the servos hold another calibration, or a
                joint is far outside its range.
            ConnectionLost: A servo does not answer.
        """
        if not self.calibration:
            raise RobotError("the arm is not calibrated", where=self.place, hint="understudy robot calibrate")
        self.bus.connect()
        try:
            self._write_calibration()
            self._check_turns()
        except BaseException:
            self.bus.disconnect()
            raise

    @property
    def place(self) -> str:
        """Type and port of the arm, for messages."""
        return f"{self.kind.name}, {self.bus.port_name}"

    def positions(self) -> np.ndarray:
        """Returns the measured positions in the units of the arm, (A,) float64."""
        return self._to_units(self.read_positions())

    def read_positions(self) -> dict[str, int]:
        """Reads the measured positions in steps."""
        return self.bus.positions(list(self.kind.motors))

    def write(self, name: str, **values: int) -> None:
        """Sets registers of one servo, in this order."""
        for register, value in values.items():
            self.bus.write(register, name, value)

    def limit(self, name: str, steps: float, torque: float | None = None) -> None:
        """Limits the velocity (steps/s) of a servo, and its torque to a fraction of the largest that it may use."""
        turns = steps / self.bus.resolution * 60  # per minute; Dynamixel's unit is 0.229 of them
        velocity = max(1, min(math.floor(steps if self.kind.is_feetech else turns / 0.229), 32767))
        self.write(name, **{"Goal_Velocity" if self.kind.is_feetech else "Profile_Velocity": velocity})
        if torque is not None:
            register, most = ("Torque_Limit", "Max_Torque_Limit") if self.kind.is_feetech else ("Goal_PWM", "PWM_Limit")
            self.write(name, **{register: round(self.bus.read(most, name) * torque)})

    def set_torque(self, on: bool) -> None:
        """Switches the torque of all servos."""
        for name in self.kind.servos:
            self.bus.write("Torque_Enable", name, int(on))

    def release(self) -> None:
        """Switches the torque of all servos off. If this fails, the port is closed."""
        try:
            self.set_torque(False)
        except BaseException:
            self.bus.disconnect()
            raise

    def stored_calibration(self) -> dict[str, MotorCalibration]:
        """Reads the calibration that the servos have now."""
        calibration = {}
        for name, motor in self.kind.servos.items():
            offset, low, high = (self.bus.read(r, name) for r in (
                "Homing_Offset", "Min_Position_Limit", "Max_Position_Limit"))
            mode = 0 if self.kind.is_feetech else self.bus.read("Drive_Mode", name)
            calibration[name] = MotorCalibration(motor.id, mode, offset, low, high)
        return calibration

    def calibration_differences(self) -> dict[str, MotorCalibration]:
        """Returns the stored values of those servos that differ from the calibration."""
        return {name: each for name, each in self.stored_calibration().items()
                if self.servo_values(each) != self.servo_values(self.calibration[name])}

    def is_new(self, differences: Calibration) -> bool:
        """Returns whether no servo has been calibrated. A single new one is a replacement, whose zero nobody knows.

        A new one among others is a replacement, whose zero nobody knows.
        """
        return all(differences.get(name, each).is_factory for name, each in self.calibration.items())

    def mismatch(self, differences: Calibration) -> RobotError:
        """Builds the error for servos that hold another calibration, which may be that of another arm."""
        rows = "".join(f"\n  {n}: servo {each} | file {self.calibration[n]}" for n, each in differences.items())
        return RobotError(f"the servos hold another calibration than {self.calibration_file or 'the given one'}:{rows}",
                          where=self.place, hint="name the port of this arm. If it is this arm, --yes writes the "
                                                 "calibration of the file into its servos. After a servo was "
                                                 "replaced, calibrate again: understudy robot calibrate")

    def write_servo_calibration(self, calibration: Calibration) -> None:
        """Writes offsets and ranges into the servos, whose torque is switched off for it."""
        self.set_torque(False)
        self.set_shadows(False)
        for name, each in calibration.items():
            first = {"Lock": 0} if self.kind.is_feetech else {"Drive_Mode": each.drive_mode}
            self.write(name, **first, Homing_Offset=each.homing_offset, Min_Position_Limit=each.range_min,
                       Max_Position_Limit=each.range_max)
            if self.kind.is_feetech:
                self.write(name, Lock=1)

    def set_shadows(self, on: bool) -> None:
        """Makes the second servos of joints follow the first ones, or not. Torque must be off.

        Raises:
            RobotError: The two servos of a joint do not show the same position. They would work against each other.
        """
        shadows = self.kind.shadows
        for name, (first, _) in shadows.items():
            self.bus.write("Secondary_ID", name, self.kind.motors[first].id if on else _NO_ID)
        if not on or not shadows:
            return
        positions = self.bus.positions()
        for name, (first, _) in shadows.items():
            if abs(gap := positions[name] - positions[first]) > _MAX_SHADOW_STEPS:
                raise RobotError(f"{name} is {gap} steps away from {first}, although they move the same joint",
                                 where=self.place,
                                 hint="calibrate the arm again: understudy robot calibrate")

    def _write_calibration(self) -> None:
        differences = self.calibration_differences()
        if differences and not self.is_new(differences):
            raise self.mismatch(differences)
        if differences:
            self.write_servo_calibration({name: self.calibration[name] for name in differences})
        if self.kind.shadows:
            self.set_torque(False)
            self.set_shadows(True)

    def _check_turns(self) -> None:
        """Raises an error for positions that no joint can have, as of Dynamixel servos that forgot a turn."""
        for name, steps in self.read_positions().items():
            outside = max(self.calibration[name].range_min - steps, steps - self.calibration[name].range_max)
            if outside > _MAX_OUTSIDE:
                raise RobotError(f"{name} shows {360 * outside / self.bus.resolution:.0f} degrees outside its "
                                 "calibrated range", where=self.place,
                                 hint="put the arm into the middle of its range, and switch its power off and on. If "
                                      "this remains, calibrate it again: understudy robot calibrate")

    def _to_units(self, steps: Mapping[str, int]) -> np.ndarray:
        return np.array([self._mirrored(n, self.calibration[n].to_unit(steps[n], unit, self.bus.resolution))
                         for n, unit in self.units.items()])

    def _to_steps(self, action: np.ndarray) -> dict[str, int]:
        return {n: self.calibration[n].to_steps(self._mirrored(n, float(v)), unit, self.bus.resolution)
                for (n, unit), v in zip(self.units.items(), action, strict=True)}

    def _mirrored(self, name: str, value: float) -> float:
        """Mirrors the value of an inverted Feetech servo, as LeRobot does. Dynamixel servos invert themselves."""
        unit = self.units[name]
        if not self.kind.is_feetech or not self.calibration[name].drive_mode or unit == "degrees":
            return value
        return 100 - value if unit == "percent" else -value

    def ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the lowest and highest positions of the calibration, in the units of the arm."""
        low, high = ({n: getattr(c, f"range_{end}") for n, c in self.calibration.items()} for end in ("min", "max"))
        ends = self._to_units(low), self._to_units(high)
        return np.minimum(*ends), np.maximum(*ends)

    def steps_per_unit(self, name: str) -> float:
        """Returns the number of servo steps for one unit of its joint."""
        each = self.calibration[name]
        width = {"degrees": 360 * (each.range_max - each.range_min) / (self.bus.resolution - 1), "percent": 100.0,
                 "signed_percent": 200.0}[self.units[name]]
        return (each.range_max - each.range_min) / width

    def servo_values(self, c: MotorCalibration) -> tuple[int, ...]:
        """Returns the values of a calibration that the servo stores."""
        mode = 0 if self.kind.is_feetech else c.drive_mode
        return mode, c.homing_offset, c.range_min, c.range_max


def joint_unit(units: Mapping[str, str]) -> str:
    """Returns the unit of a column of joints.

    Args:
        units: Unit of each joint, as `ServoArm.units`.

    Returns:
        The unit of most joints, and in brackets the joints with another unit: "deg (gripper: percent)".
    """
    most = max(units.values(), key=list(units.values()).count)
    others = ", ".join(f"{joint}: {_UNIT_NAMES[unit]}" for joint, unit in units.items() if unit != most)
    return _UNIT_NAMES[most] + (f" ({others})" if others else "")


class ServoFollower(Robot):
    """Robot made of a follower arm of servos, which follows goals.

    `observation.state` and `action` are the positions of the joints, in degrees around the middle of their calibrated
    range, and of the gripper, in percent of its range (0 is closed). These are LeRobot's units.

    Until `apply_limits` is called, the joints move with at most 30 deg/s.

    Args:
        cameras: Cameras by name. Their frames are the columns observation.images.NAME.
        disable_torque_on_disconnect: Switch the torque off at the end. The arm then falls if it is not supported.
        use_degrees: False for joints from -100 to 100 over their calibrated range.
    """

    def __init__(self, kind: ServoArmType, port: str, calibration: Calibration | None,
                 cameras: Mapping[str, Camera] | None = None, disable_torque_on_disconnect: bool = True,
                 use_degrees: bool = True):
        self.name, self.arm = kind.name, ServoArm(kind, port, calibration, use_degrees)
        self.cameras = dict(cameras or {})
        self.disable_torque_on_disconnect = disable_torque_on_disconnect
        names = tuple(f"{n}.pos" for n in kind.motors)
        column = Feature("float32", (len(names),), names=names, unit=joint_unit(self.arm.units))
        self.schema = {"observation.state": column, **camera_features(self.cameras), "action": column}
        self._load: np.ndarray | None = None
        self._guard: TorqueGuard | None = None
        self._full_load = np.array([_FULL_LOAD[m.model] for m in kind.motors.values()], np.float64)

    @property
    def calibration(self):
        return {n: str(each) for n, each in self.arm.calibration.items()}

    def connect(self):
        if self._guard is not None:  # of a connection that was lost
            self._guard.abandon()
            self._guard = None
        self.arm.connect()
        with ExitStack() as undo:
            undo.callback(self._release)
            self._configure()
            for camera in self.cameras.values():
                camera.connect()
                undo.callback(camera.disconnect)
            if self.disable_torque_on_disconnect:
                self._guard = TorqueGuard(self.arm.bus, self.arm.place)
            self._enable_torque()
            undo.pop_all()

    def observe(self):
        load = "Present_Load" if self.arm.kind.is_feetech else "Present_Current"
        readings = self.arm.bus.sync_read(["Present_Position", load], list(self.arm.kind.motors))
        self._load = np.array([v[1] for v in readings.values()]) / self._full_load
        state = self.arm._to_units({n: v[0] for n, v in readings.items()})
        return {"observation.state": state.astype(np.float32), **read_cameras(self.cameras)}

    def send(self, action):
        self.arm.bus.sync_write("Goal_Position", self.arm._to_steps(action))
        return np.asarray(action, np.float32)

    def stop(self):
        present = self.arm.read_positions()
        self.arm.bus.sync_write("Goal_Position", present)
        return self.arm._to_units(present)

    def disconnect(self):
        if self.disable_torque_on_disconnect:
            self._release()
        else:
            self.arm.bus.disconnect()
        for camera in self.cameras.values():
            camera.disconnect()

    def _release(self) -> None:
        """Switches the torque off and closes the port. If a servo does not answer, the guard tries again.

        If a servo does not answer, the guard tries again.
        """
        silent = _switch_torque_off(self.arm.bus, self.arm.kind)
        self.arm.bus.disconnect()
        if self._guard is not None:
            self._guard.end(released=not silent)
            self._guard = self._guard if silent else None

    def load(self):
        return self._load

    @property
    def n_retries(self):
        return self.arm.bus.n_repeated

    def apply_limits(self, limits: SafetyLimits):
        """Limits velocity and torque in the servos too, so that late goals that arrive together do no harm."""
        for name, fastest in zip(self.arm.units, limits.max_velocity, strict=True):
            self.arm.limit(name, fastest * self.arm.steps_per_unit(name), min(limits.max_torque, 1.0))

    def default_limits(self, **changes) -> SafetyLimits:
        """Returns limits from the calibrated ranges: 120 deg/s, and the whole range of the gripper in 0.8 s.

        Args:
            changes: Other values of the fields of `SafetyLimits`.
        """
        (low, high), units = self.arm.ranges(), self.arm.units.values()
        limits = SafetyLimits(tuple(low.tolist()), tuple(high.tolist()), tuple(MAX_VELOCITY[u] for u in units),
                              tuple(MAX_RELATIVE_TARGET[u] for u in units))
        return replace(limits, **changes)

    def _configure(self) -> None:
        self.arm.set_torque(False)
        for name in self.arm.kind.motors:
            if self.arm.kind.is_feetech:
                self.arm.write(name, Lock=0, Return_Delay_Time=0, Operating_Mode=0, P_Coefficient=16, I_Coefficient=0,
                               D_Coefficient=32, Acceleration=254)
                if name == "gripper":  # it presses against objects for minutes
                    self.arm.write(name, Max_Torque_Limit=500, Protection_Current=250, Overload_Torque=25)
                self.arm.write(name, Lock=1)
            else:  # the gripper is limited by its current, and the other joints may pass the end of a turn
                self.arm.write(name, Return_Delay_Time=0, Operating_Mode=5 if name == "gripper" else 4)
                if name == "elbow_flex":
                    self.arm.write(name, Position_P_Gain=1500, Position_I_Gain=0, Position_D_Gain=600)

    def _enable_torque(self) -> None:
        """Switches the torque on, slowly, with the present pose as the goal."""
        for name in self.arm.kind.motors:
            self.arm.limit(name, _CONNECT_STEPS)
        self.stop()
        self.arm.set_torque(True)
        if not self.arm.kind.is_feetech:
            return
        readings = self.arm.bus.sync_read(["Goal_Position", "Present_Position"])
        gaps = {n: g - p for n, (g, p) in readings.items() if abs(g - p) > 0.02 * self.arm.bus.resolution}
        if gaps:
            self.arm.set_torque(False)
            raise RobotError(f"{', '.join(gaps)} did not take the present pose as the goal", where=self.name,
                             hint="connect again while the arm rests")


class ServoLeader(DrivenTeleoperator):
    """Teleoperator made of a leader arm of servos, which a person moves.

    It has no torque, except while it follows: then it moves with at most 30 deg/s and 30 % of its torque.

    Args:
        use_degrees: False for joints from -100 to 100 over their calibrated range.
    """

    def __init__(self, kind: ServoArmType, port: str, calibration: Calibration | None, use_degrees: bool = True):
        self.name, self.arm = kind.name, ServoArm(kind, port, calibration, use_degrees)
        self._guard: TorqueGuard | None = None
        self._follows = False

    def connect(self):
        if self._guard is not None:  # of a connection that was lost
            self._guard.abandon()
            self._guard = None
        self.arm.connect()
        self.arm.release()
        self._follows = False

    def read(self):
        return self.arm.positions().astype(np.float32)

    def follow(self, position):
        bus = self.arm.bus
        if not self._follows:
            if self._guard is None:
                self._guard = TorqueGuard(bus, self.arm.place)
            for name in self.arm.kind.motors:
                # other programs leave other modes, in which a goal is not a position
                self.arm.write(name, **({"Lock": 0, "Operating_Mode": 0} if self.arm.kind.is_feetech else
                                        {"Operating_Mode": 4}))
                self.arm.limit(name, _CONNECT_STEPS, _FOLLOW_TORQUE)
            bus.sync_write("Goal_Position", self.arm.read_positions())
            self._follows = True  # from here on `disconnect` has to release it
            self.arm.set_torque(True)
        bus.sync_write("Goal_Position", self.arm._to_steps(position))
        return bool((np.abs(self.arm.positions() - position) <= _FOLLOWED).all())

    def release(self):
        self.arm.set_torque(False)
        self._follows = False

    def disconnect(self):
        if self._follows:
            with suppress(RobotError):
                self.release()
        self.arm.bus.disconnect()
        if self._guard is not None:
            self._guard.end(released=not self._follows)
            self._guard = None


def release_arm(kind: ServoArmType, port: str) -> list[str]:
    """Switches the torque of all servos off that answer. Returns the names of the servos that do not.

    Raises:
        ConnectionLost: The port cannot be opened.
    """
    bus = kind.bus(port)
    with bus.connected(check=False):
        bus.sync_write("Torque_Enable", dict.fromkeys(kind.servos, 0))  # all at once, which nobody confirms
        return _switch_torque_off(bus, kind)


def _switch_torque_off(bus: MotorsBus, kind: ServoArmType) -> list[str]:
    """Switches the torque of all servos off, one by one. Returns the names of servos that do not confirm it."""
    silent = []
    for name in kind.servos:
        try:
            bus.write("Torque_Enable", name, 0)
        except ConnectionLost:
            silent.append(name)
        except RobotError:
            continue  # the servo answered, with a fault
    return silent


# -- setting up -----------------------------------------------------------------------------------------------------


def set_up_motor(kind: ServoArmType, port: str, name: str) -> tuple[int, int]:
    """Gives the only connected servo the id that it has in the arm, and the fastest usual baud rate.

    Returns:
        The id and the baud rate that it had.
    """
    motor = kind.servos[name]
    for rate in (1_000_000, 57_600, 115_200):
        bus = kind.bus(port)
        bus.baudrate, bus.motors, bus.reply_timeout = rate, {}, 0.01
        with bus.connected(check=False):
            if not (models := bus.scan()):
                continue
            models |= bus.scan()  # a reply that came too late must not let two servos get the same id
            if len(models) > 1:
                raise RobotError(f"several servos answer: ids {', '.join(map(str, models))}", where=port,
                                 hint=f"connect only the servo {name}, without the others behind it")
            (number, _), = models.items()
            bus.motors, bus.reply_timeout = {name: Motor(number, motor.model)}, 0.5  # after the search it may wait
            bus.check_motors()
            bus.write("Torque_Enable", name, 0)
            if kind.is_feetech:
                bus.write("Lock", name, 0)
            bus.write("ID", name, motor.id)
            bus.motors = {name: motor}
            with suppress(ConnectionLost):  # its answer may already come at the new rate
                bus.write("Baud_Rate", name, BAUD_RATES[bus.name][1_000_000])
            bus.disconnect()
            time.sleep(0.05)
            bus.baudrate = 1_000_000
            bus.connect()
            if kind.is_feetech:
                bus.write("Lock", name, 1)
            return number, rate
    raise ConnectionLost("no servo answers at any baud rate", where=port,
                         hint="check the power, and that the servo is connected to the controller")


class Calibrator:
    """Calibrates an arm in two steps: `set_middle`, and `update` while a person moves all joints."""

    def __init__(self, kind: ServoArmType, port: str):
        self.arm = ServoArm(kind, port, None)
        self.arm.bus.n_retries, self.arm.bus.retry_seconds = 25, 1.0  # no motor has torque, so waiting harms nobody
        self.offsets: dict[str, int] = {}
        self.low: dict[str, int] = {}
        self.high: dict[str, int] = {}
        self._replaced: Calibration | None = None  # what the servos held, until the new calibration is complete

    def connect(self) -> None:
        self.arm.bus.connect()
        self.arm.release()

    def disconnect(self) -> None:
        """Closes the port. If the calibration was not finished, the servos get their old one back."""
        try:
            if self._replaced is not None and self.arm.bus.is_connected:  # an error of the line closes it
                self.arm.write_servo_calibration(self._replaced)
        finally:
            self.arm.bus.disconnect()

    def owner(self) -> Path | None:
        """Returns the known calibration that the servos hold. None if no file has their values."""
        stored = self.arm.stored_calibration()
        return next((path for path, each in known_calibrations() if same_values(stored, each)), None)

    def set_middle(self) -> None:
        """Makes the present pose half a turn of every servo. The arm must be in the middle of its range."""
        kind, bus = self.arm.kind, self.arm.bus
        self._replaced = self.arm.stored_calibration()
        self.arm.set_shadows(False)
        half = (bus.resolution - 1) // 2
        for name in kind.servos:  # positions without an offset
            first = {"Lock": 0, "Operating_Mode": 0} if kind.is_feetech else {
                "Operating_Mode": 4, "Drive_Mode": int(name in kind.inverted_servos)}
            self.arm.write(name, **first, Homing_Offset=0, Min_Position_Limit=0, Max_Position_Limit=bus.resolution - 1)
        sign = 1 if kind.is_feetech else -1  # Feetech subtracts the offset, Dynamixel adds it
        present = bus.positions()
        if turned := [name for name, steps in present.items() if abs(steps) >= bus.resolution]:
            raise RobotError(f"{', '.join(turned)} made more than one turn, which the servo forgets without power",
                             where=self.arm.place, hint="switch the power of the arm off and on, and calibrate again")
        for name, steps in present.items():
            self.offsets[name] = sign * min(steps - half, half)  # Feetech's offset has 11 bits and a sign
            bus.write("Homing_Offset", name, self.offsets[name])
        self.low = bus.positions()
        self.high = dict(self.low)

    def update(self) -> dict[str, tuple[int, int, int]]:
        """Reads all joints. Returns the lowest, the present and the highest position of each."""
        positions = self.arm.bus.positions()
        for name, steps in positions.items():
            self.low[name], self.high[name] = min(self.low[name], steps), max(self.high[name], steps)
        return {n: (self.low[n], steps, self.high[n]) for n, steps in positions.items()}

    def finish(self) -> dict[str, MotorCalibration]:
        """Writes the ranges into the servos, and returns the calibration."""
        kind, last = self.arm.kind, self.arm.bus.resolution - 1
        still = [n for n in kind.servos if n not in kind.full_turn and self.high[n] - self.low[n] < 100]
        if still:
            raise ConfigError(f"{', '.join(still)} moved by less than 9 degrees", where="calibration",
                              hint="move every joint from one end of its range to the other")
        calibration = {name: MotorCalibration(motor.id, int(name in kind.inverted_servos), self.offsets[name],
                                              0 if name in kind.full_turn else self.low[name],
                                              last if name in kind.full_turn else self.high[name])
                 for name, motor in kind.servos.items()}
        self.arm.write_servo_calibration(calibration)
        self._replaced = None
        return calibration
