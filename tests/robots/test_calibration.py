"""Calibrations of emulated arms."""

import json

import numpy as np
import pytest
from fixtures.servo_arms import CALIBRATION, feetech, koch, patient
from fixtures.waiting import wait_until

from understudy.core import ConfigError, Feature, UserError
from understudy.data.episode import Dataset, Episode
from understudy.robots.base import ConnectionLost, RobotError
from understudy.robots.calibration import MotorCalibration, find_calibration, read_calibration, write_calibration
from understudy.robots.drift import excess, recorded_ranges
from understudy.robots.emulator import (
    DynamixelServo,
    EmulatedDynamixelBus,
    EmulatedFeetechBus,
    FeetechServo,
    emulate_arm,
    wave,
)
from understudy.robots.servo_arm import ARM_TYPES, Calibrator, ServoFollower, ServoLeader, set_up_motor

pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
pytest.importorskip("dynamixel_sdk", reason="extra dynamixel not installed")

NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


def test_calibrations_of_lerobot_are_found_and_read(folder):
    path = folder / "lerobot" / "robots" / "so_follower" / "mine.json"  # where LeRobot 0.4 writes
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({n: {"id": c.id, "drive_mode": 0, "homing_offset": c.homing_offset,
                                    "range_min": c.range_min, "range_max": c.range_max}
                                for n, c in CALIBRATION.items()}, indent=4))
    assert find_calibration("so101_follower", "mine") == path
    ids = {n: c.id for n, c in CALIBRATION.items()}
    assert read_calibration(path, ids) == CALIBRATION
    ours = folder / "ours" / "so101_follower" / "mine.json"
    write_calibration(ours, CALIBRATION)
    assert find_calibration("so101_follower", "mine") == ours and read_calibration(ours, ids) == CALIBRATION
    assert json.loads(ours.read_text()) == json.loads(path.read_text())
    for change, message in (({"id": 9}, "has id 9 there, but id 3"), ({"range_min": 5000}, "range .* is empty"),
                            ({"range_max": 1.5}, "no whole numbers")):
        broken = json.loads(path.read_text())
        broken["elbow_flex"].update(change)
        ours.write_text(json.dumps(broken))
        with pytest.raises(UserError, match=message):
            read_calibration(ours, ids)


def test_units_are_those_of_lerobot():
    each = MotorCalibration(1, 0, 0, 1000, 3000)
    assert each.to_unit(2000, "degrees", 4096) == 0
    assert each.to_unit(3000, "degrees", 4096) == pytest.approx(1000 * 360 / 4095)
    assert each.to_unit(1500, "percent", 4096) == 25 and each.to_unit(1500, "signed_percent", 4096) == -50
    for unit in ("degrees", "percent", "signed_percent"):
        for steps in range(900, 3100, 7):
            assert each.to_steps(each.to_unit(steps, unit, 4096), unit, 4096) == steps


@pytest.mark.parametrize("name", ["so101_follower", "so100_leader", "koch_follower", "koch_leader"])
def test_an_emulated_arm_is_calibrated(name):
    kind = ARM_TYPES[name]
    with (feetech if kind.manufacturer == "feetech" else koch)() as emulated:
        if name == "koch_leader":
            for servo in emulated.servos:
                servo.set("Model_Number", 1190)
        at = {n: 1000 + 300 * i for i, n in enumerate(NAMES)}
        for n, number in zip(NAMES, range(1, 7), strict=True):
            emulated.servo(number).push(at[n])
        calibrator = Calibrator(kind, emulated.port)
        calibrator.arm.bus.reply_timeout = 3.0
        calibrator.connect()
        calibrator.set_middle()
        assert {p for _, p, _ in calibrator.update().values()} == {2047}  # half a turn
        with pytest.raises(ConfigError, match="shoulder_lift.* moved by less than 9 degrees"):
            calibrator.finish()
        for way in (-500, 800):
            for n, number in zip(NAMES, range(1, 7), strict=True):
                emulated.servo(number).push(at[n] + way)
            calibrator.update()
        calibration = calibrator.finish()
        assert all(calibration[n].id == i for i, n in enumerate(NAMES, 1))
        sign = -1 if "elbow_flex" in kind.inverted else 1
        low, high = sorted((2047 + sign * -500, 2047 + sign * 800))
        assert (calibration["elbow_flex"].range_min, calibration["elbow_flex"].range_max) == (low, high)
        assert (calibration["wrist_roll"].range_min, calibration["wrist_roll"].range_max) == (0, 4095)
        assert calibration["elbow_flex"].drive_mode == int("elbow_flex" in kind.inverted)
        assert calibrator.arm.stored_calibration() == calibration  # also in the servos
        calibrator.disconnect()


@pytest.mark.parametrize("name", ["so101_follower", "koch_follower", "viperx"])
def test_servos_keep_their_calibration_until_the_new_one_is_finished(name):
    with emulate_arm(ARM_TYPES[name]) as emulated:
        for servo in emulated.servos:
            for register, number in (("Homing_Offset", 300), ("Min_Position_Limit", 900), ("Max_Position_Limit", 3100)):
                servo.set(register, number)
        calibrator = Calibrator(ARM_TYPES[name], emulated.port)
        calibrator.arm.bus.reply_timeout = 3.0
        calibrator.connect()
        old = calibrator.arm.stored_calibration()
        calibrator.set_middle()
        assert calibrator.arm.stored_calibration() != old
        calibrator.disconnect()  # as after Ctrl-C
        calibrator.connect()
        assert calibrator.arm.stored_calibration() == old
        calibrator.set_middle()
        emulated.pull_cable()
        with pytest.raises(ConnectionLost, match="the connection is gone"):
            calibrator.update()
        calibrator.disconnect()  # and no other error instead


def test_a_servo_that_made_more_than_a_turn_is_not_calibrated():
    """Without power it forgets the turns, and all its positions would be a turn away."""
    with koch(wrist_roll=2000 + 4096) as emulated:
        calibrator = Calibrator(ARM_TYPES["koch_follower"], emulated.port)
        calibrator.arm.bus.reply_timeout = 3.0
        calibrator.connect()
        with pytest.raises(RobotError, match="wrist_roll made more than one turn"):
            calibrator.set_middle()
        calibrator.disconnect()


@pytest.mark.parametrize("kind", [ServoFollower, ServoLeader])
def test_a_joint_that_shows_another_turn_is_refused_before_it_has_torque(kind):
    """A Dynamixel servo whose zero is within its range shows another turn, if its power came on beyond it."""
    with koch(elbow_flex=2000 - 4096) as emulated:
        emulated.servo(3).set("Operating_Mode", 4)  # as a calibration leaves it
        device = patient(kind(ARM_TYPES["koch_follower"], emulated.port, CALIBRATION))
        with pytest.raises(RobotError, match="elbow_flex shows 272 degrees outside its calibrated range"):
            device.connect()
        assert not any(s.get("Torque_Enable") for s in emulated.servos)
        emulated.servo(3).push(2000)
        with device:
            assert abs(device.arm.positions()[2]) < 2


@pytest.mark.parametrize("name, device", [("viperx", ServoFollower), ("widowx", ServoLeader)])
def test_a_hand_that_waves_moves_both_servos_of_a_joint(name, device):
    with emulate_arm(ARM_TYPES[name]) as emulated:
        calibrator = Calibrator(ARM_TYPES[name], emulated.port)
        calibrator.arm.bus.reply_timeout = 3.0
        calibrator.connect()
        calibrator.set_middle()
        for seconds in range(16):
            wave(emulated, seconds)
            calibrator.update()
        calibration = calibrator.finish()
        calibrator.disconnect()
        with patient(device(ARM_TYPES[name], emulated.port, calibration)) as arm:  # refused if they differ
            assert len(arm.arm.positions()) == len(ARM_TYPES[name].motors)


def test_two_servos_of_a_joint_move_together_or_not_at_all():
    kind = ARM_TYPES["viperx"]
    with emulate_arm(kind) as emulated:
        mirror = {3: 2, 5: 4}  # mounted the other way round

        def hand(steps):
            for servo in emulated.servos:
                servo.push(2300 - steps if servo.number in mirror else 2000 + steps)
        calibrator = Calibrator(kind, emulated.port)
        calibrator.arm.bus.reply_timeout = 3.0
        calibrator.connect()
        hand(0)
        calibrator.set_middle()
        for steps in (-500, 700):
            hand(steps)
            ranges = calibrator.update()
            assert ranges["shoulder"] == ranges["shoulder_shadow"] and ranges["elbow_shadow"][1] == 2047 + steps
        calibration = calibrator.finish()
        calibrator.disconnect()
        robot = patient(ServoFollower(kind, emulated.port, calibration))
        with robot:
            assert robot.schema["action"].size == 7 and emulated.servo(3).get("Secondary_ID") == 2
            robot.apply_limits(robot.default_limits(max_velocity=(200.0,) * 7))
            robot.send(np.array([0, 20, -15, 0, 0, 0, 50]))

            def all_arrived():
                state = robot.observe()["observation.state"][1:3]
                with emulated.lock:  # the two servos of a joint move one after the other
                    return np.allclose(state, [20, -15], atol=0.1) and all(
                        s.get("Present_Position") == s.get("Goal_Position") for s in emulated.servos)
            wait_until(all_arrived)
            for second, first in mirror.items():
                assert emulated.servo(second).get("Goal_Position") == emulated.servo(first).get("Goal_Position")
                assert emulated.servo(second).position - 2300 == pytest.approx(2000 - emulated.servo(first).position,
                                                                                abs=1)
            assert emulated.servo(2).position != 2000 + 700
            np.testing.assert_allclose(robot.observe()["observation.state"][1:3], [20, -15], atol=0.1)
        assert not emulated.servo(3).get("Torque_Enable")
        emulated.servo(3).push(emulated.servo(3).position + 100)
        with pytest.raises(RobotError, match="shoulder_shadow is -100 steps away from shoulder"):
            robot.connect()
        assert not any(s.get("Torque_Enable") for s in emulated.servos)


def test_a_new_servo_gets_its_id():
    kind = ARM_TYPES["so101_follower"]
    with EmulatedFeetechBus(FeetechServo(1)) as emulated:
        assert set_up_motor(kind, emulated.port, "gripper")[0] == 1  # the emulator answers at every rate
        assert emulated.servos[0].number == 6 and emulated.servos[0].get("Lock") == 1
        emulated.servos.append(FeetechServo(3))
        with pytest.raises(RobotError, match="several servos answer: ids 3, 6"):
            set_up_motor(kind, emulated.port, "wrist_roll")
    with EmulatedDynamixelBus(DynamixelServo(1)) as emulated:
        with pytest.raises(RobotError, match="it is xl330-m288, and xl430-w250"):
            set_up_motor(ARM_TYPES["koch_follower"], emulated.port, "shoulder_lift")
        assert set_up_motor(ARM_TYPES["koch_follower"], emulated.port, "gripper")[0] == 1
        assert emulated.servos[0].number == 6


def test_an_unknown_position_does_not_hide_that_another_is_outside_the_range():
    feature = Feature("float32", (2,), names=("a.pos", "b.pos"), unit="degrees")
    state = np.array([[-5, 500], [7, 2], [np.nan, np.nan]], np.float32)
    episode = Episode({"observation.state": state, "action": np.full((3, 2), np.nan, np.float32)},
                      schema={"observation.state": feature, "action": feature})
    ranges = recorded_ranges(Dataset([episode]), ("a.pos", "b.pos"), "degrees")
    assert ranges == {"a.pos": (-5, 7), "b.pos": (2, 500)}
    assert [excess(span, (-100, 100)) for span in ranges.values()] == [0, 400]
