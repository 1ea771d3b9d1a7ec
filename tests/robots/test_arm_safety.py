"""No arm gets the calibration of another one, and no leader gets torque, with emulated arms and real processes."""

import json
import os
import sys
import threading
import time
from io import StringIO

import numpy as np
import pytest
from fixtures.terminals import Terminal

from understudy.cli import main
from understudy.core import ConfigError, Feature, UserError
from understudy.data.recording.recorder import Recorder
from understudy.robots import ports
from understudy.robots.base import RobotError
from understudy.robots.calibration import MotorCalibration, read_calibration, write_calibration
from understudy.robots.emulator import emulate_arm
from understudy.robots.motors_bus import MotorsBus
from understudy.robots.registers import DYNAMIXEL, FEETECH
from understudy.robots.registry import RobotConfig, TeleoperatorConfig, make_robot, make_teleoperator
from understudy.robots.servo_arm import ARM_TYPES, ServoFollower

pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
pytest.importorskip("dynamixel_sdk", reason="extra dynamixel not installed")

KIND = ARM_TYPES["so101_follower"]


def calibration(shift, kind=KIND):
    return {n: MotorCalibration(m.id, 0, shift + m.id, 1000 + shift, 3000 + shift) for n, m in kind.servos.items()}


def hold(bus, values):
    """Puts a calibration into emulated servos."""
    for each in values.values():
        servo = bus.servo(each.id)
        for register, value in (("Homing_Offset", each.homing_offset), ("Min_Position_Limit", each.range_min),
                                ("Max_Position_Limit", each.range_max)):
            servo.set(register, value)


def held(bus):
    return [tuple(s.get(r) for r in ("Homing_Offset", "Min_Position_Limit", "Max_Position_Limit")) for s in bus.servos]


def had_torque(bus):
    """Whether a servo was ever told to switch its torque on."""
    registers = FEETECH if bus.servos[0].registers is FEETECH else DYNAMIXEL
    address = registers["Torque_Enable"].address
    return any(at == address and data == b"\x01" for servo in bus.servos for _, at, data in servo.writes)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with calibrations of a follower and a leader, and longer waits for a busy machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_CALIBRATION", str(tmp_path / "calibration"))
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "lerobot"))
    for kind, shift in (("so101_follower", 10), ("so101_leader", 500)):
        write_calibration(tmp_path / "calibration" / kind / "mine.json", calibration(shift))
    begin = MotorsBus.__init__
    monkeypatch.setattr(MotorsBus, "__init__", lambda self, port, motors: begin(self, port, motors, 1_000_000, 0.3, 5))
    return tmp_path


@pytest.fixture
def arms(folder):
    """A follower and a leader, both calibrated."""
    with emulate_arm(KIND) as follower, emulate_arm(KIND) as leader:
        hold(follower, calibration(10))
        hold(leader, calibration(500))
        yield follower, leader


def options(follower, leader):
    return ["--robot", "so101_follower", "--robot.port", follower.port, "--robot.id", "mine",
            "--teleop", "so101_leader", "--teleop.port", leader.port, "--teleop.id", "mine"]


# -- calibrations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [[], ["--yes"]])
def test_swapped_arms_are_refused_before_anything_is_written(arms, answer, capsys):
    follower, leader = arms
    before = held(follower), held(leader)
    assert main(["record", *options(leader, follower), "--out", "demos", "--episodes", "1", *answer]) == 2
    error = capsys.readouterr().err
    assert "this is another arm: its servos hold the calibration of" in error and "the ports are swapped" in error
    assert "so101_leader/mine.json" in error and leader.port in error
    assert (held(follower), held(leader)) == before and not had_torque(leader) and not had_torque(follower)
    assert main(["robot", "teleoperate", *options(follower, leader), "--teleop-time-s", "0.2"]) == 0
    assert had_torque(follower) and not had_torque(leader)


def test_a_leader_gets_no_torque_from_a_command_without_a_teleoperator(arms, capsys):
    _, leader = arms
    assert main(["record", "fork", "--out", "demos", "--episodes", "1"]) == 0
    assert main(["replay", "demos", *options(leader, leader)[:6], "--yes"]) == 2
    assert "so101_leader/mine.json" in capsys.readouterr().err and not leader.servos[0].writes


def test_another_calibration_is_written_only_after_a_yes(arms, capsys):
    follower, leader = arms
    hold(follower, unknown := calibration(77))
    with pytest.raises(RobotError, match=r"shoulder_pan: servo offset 78, 1077 to 3077 \| file offset 11, 1010 to"):
        ServoFollower(KIND, follower.port, calibration(10)).connect()
    command = ["robot", "teleoperate", *options(follower, leader), "--teleop-time-s", "0.2"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "the servos hold another calibration than" in error and "so101_follower/mine.json" in error
    assert "gripper: servo offset 83, 1077 to 3077 | file offset 16, 1010 to 3010" in error and "--yes" in error
    assert held(follower) == [(c.homing_offset, c.range_min, c.range_max) for c in unknown.values()]
    assert not any(s.writes for s in follower.servos)
    assert main([*command, "--yes"]) == 0
    assert held(follower)[5] == (16, 1010, 3010)
    assert main(command) == 0  # nothing differs any more


def test_new_servos_get_the_calibration_of_the_file(arms):
    follower, leader = arms
    hold(follower, {n: MotorCalibration(m.id, 0, 0, 0, 4095) for n, m in KIND.servos.items()})
    assert main(["robot", "teleoperate", *options(follower, leader), "--teleop-time-s", "0.2"]) == 0
    assert held(follower)[0] == (11, 1010, 3010)


def test_a_new_servo_among_calibrated_ones_does_not_get_the_zero_of_the_old_one(arms, capsys):
    follower, leader = arms
    hold(follower, {**calibration(10), "gripper": MotorCalibration(KIND.motors["gripper"].id, 0, 0, 0, 4095)})
    assert main(["robot", "teleoperate", *options(follower, leader), "--teleop-time-s", "0.2"]) == 2
    assert "After a servo was replaced, calibrate again" in capsys.readouterr().err
    assert held(follower)[5] == (0, 0, 4095) and not had_torque(follower)


def test_left_and_right_arms_that_are_swapped_are_refused(folder, capsys):
    for side, shift in (("left", 30), ("right", 60)):
        write_calibration(folder / "calibration" / "so101_follower" / f"duo_{side}.json", calibration(shift))
    with emulate_arm(KIND) as left_arm, emulate_arm(KIND) as right:
        hold(left_arm, calibration(30))
        hold(right, calibration(60))
        assert main(["robot", "teleoperate", "--robot", "bi_so101_follower", "--robot.id", "duo",
                     "--robot.left-arm-port", right.port, "--robot.right-arm-port", left_arm.port, "--teleop",
                     "keyboard",
                     "--yes"]) == 2
        assert "duo_right.json" in capsys.readouterr().err
        assert not had_torque(left_arm) and not had_torque(right)


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_person_is_shown_both_calibrations_and_asked(arms, answer):
    follower, leader = arms
    hold(follower, calibration(77))
    person = Terminal("robot", "teleoperate", *options(follower, leader), "--teleop-time-s", "0.2")
    printed = person.until("Is this the right arm? Then its servos get the calibration of the file. [y/N]")
    assert "joint" in printed and "offset 78, 1077 to 3077" in printed
    person.type(f"{answer}\n")
    assert person.end()[0] == (0 if answer == "y" else 2)
    assert held(follower)[0] == ((11, 1010, 3010) if answer == "y" else (78, 1077, 3077))


def test_calibrating_again_is_asked_for_and_keeps_the_old_file(arms, folder, capsys, monkeypatch):
    follower, leader = arms
    path, original = folder / "calibration" / "so101_follower" / "mine.json", calibration(10)
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    device = options(follower, leader)[:6]
    assert main(["robot", "calibrate", *device]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and "--yes replaces it, and keeps the old one next to it" in error
    assert not any(s.writes for s in follower.servos)
    assert main(["robot", "calibrate", *device[:3], leader.port, "--robot.id", "new"]) == 2  # it is the leader
    error = capsys.readouterr().err
    assert "this is another arm: its servos hold the calibration of" in error and "so101_leader/mine.json" in error
    assert held(leader)[0] == (501, 1500, 3500)

    def calibrate():
        read, write = os.pipe()
        with os.fdopen(read) as lines:
            monkeypatch.setattr(sys, "stdin", lines)
            thread = threading.Thread(target=play, args=(write,), daemon=True)
            thread.start()
            assert main(["robot", "calibrate", *device, "--yes"]) == 0
            thread.join()

    def play(keyboard):
        os.write(keyboard, b"\n")  # the arm is in the middle
        for position in (2048, 1300, 2900):
            time.sleep(1.5 if position == 2048 else 0.5)
            with follower.lock:
                for servo in follower.servos:
                    servo.push(position)
        time.sleep(0.5)
        os.write(keyboard, b"\n")
        os.close(keyboard)
    calibrate()
    assert "The old one is" in capsys.readouterr().out
    ids = {n: m.id for n, m in KIND.servos.items()}
    assert read_calibration(path.with_name("mine.1.json"), ids) == original != read_calibration(path, ids)
    calibrate()
    assert path.with_name("mine.2.json").exists() and read_calibration(path.with_name("mine.1.json"), ids) == original


@pytest.mark.parametrize("change, message", [
    ({"homing_offset": 2048}, "'elbow_flex' has the homing_offset 2048, but it must be from -2047 to 2047"),
    ({"range_max": 5000}, "'elbow_flex' has the range 1010 to 5000, but it must be within 0 to 4095"),
    ({"drive_mode": 3}, "'elbow_flex' has the drive_mode 3")])
def test_values_that_servos_cannot_store_name_the_joint_and_the_file(folder, change, message, capsys):
    path = folder / "calibration" / "so101_follower" / "mine.json"
    stored = json.loads(path.read_text())
    stored["elbow_flex"].update(change)
    path.write_text(json.dumps(stored))
    assert main(["robot", "teleoperate", "--robot", "so101_follower", "--robot.port", "/dev/null", "--robot.id", "mine",
                 "--teleop", "keyboard"]) == 2
    error = capsys.readouterr().err
    assert message in error and str(path) in error


def test_dynamixel_servos_store_larger_offsets(tmp_path):
    write_calibration(tmp_path / "a.json", {"x": MotorCalibration(1, 0, 3000, 0, 4095)})
    with pytest.raises(UserError, match="homing_offset 3000"):
        read_calibration(tmp_path / "a.json", {"x": 1})
    assert read_calibration(tmp_path / "a.json", {"x": 1}, ARM_TYPES["viperx"].max_offset)["x"].homing_offset == 3000


# -- ports -------------------------------------------------------------------------------------------------------------


def test_one_port_for_two_arms_is_refused(arms, folder, capsys):
    follower, _ = arms
    (folder / "alias").symlink_to(follower.port)
    for port in (follower.port, "alias"):
        assert main(["record", *options(follower, follower)[:9], port, "--teleop.id", "mine", "--out", "d",
                     "--episodes", "1"]) == 2
        error = capsys.readouterr().err
        assert "--teleop.port: is the same port as --robot.port" in error and follower.port in error
    assert not any(s.writes for s in follower.servos)
    config = RobotConfig("so101_follower", follower.port, "mine")
    with pytest.raises(ConfigError, match="--teleop.port: is the same port as --robot.port"):
        make_teleoperator(TeleoperatorConfig("so101_leader", str(folder / "alias"), "mine"), make_robot(config))
    with pytest.raises(ConfigError, match="--robot.right-arm-port: is the same port as --robot.left-arm-port"):
        make_robot(RobotConfig("bi_so101_follower", id="duo", left_arm_port=follower.port, right_arm_port="alias"))
    with pytest.raises(ConfigError, match="--teleop.right-arm-port: is the same port as --teleop.left-arm-port"):
        make_teleoperator(TeleoperatorConfig("bi_so101_leader", left_arm_port="COM3", right_arm_port="COM3"),
                          make_robot(RobotConfig("simulated_arm")))
    ports.refuse_shared_ports({"--robot.port": "/dev/null", "--teleop.port": "/dev/zero", "other": None})


def test_a_port_with_a_number_has_a_stable_name(arms, folder, capsys, monkeypatch):
    follower, leader = arms
    (folder / "by-id").mkdir()
    (folder / "ttyACM0").symlink_to(follower.port)
    (folder / "by-id" / "usb-1a86_USB_Single_Serial_5A46-if00").symlink_to(folder / "ttyACM0")
    monkeypatch.setattr(ports, "BY_ID", folder / "by-id")
    assert main(["robot", "teleoperate", "--robot", "so101_follower", "--robot.port", str(folder / "ttyACM0"),
                 *options(follower, leader)[4:], "--teleop-time-s", "0.2"]) == 0
    error = capsys.readouterr().err
    assert error.count("note: ") == 1 and "ttyACM0 can be another arm after a restart" in error
    assert f"{folder}/by-id/usb-1a86_USB_Single_Serial_5A46-if00 stays the same" in error


def test_find_port_tells_the_name_that_stays(folder, capsys, monkeypatch):
    (folder / "by-id").mkdir()
    (folder / "ttyACM1").touch()
    (folder / "by-id" / "usb-leader").symlink_to(folder / "ttyACM1")
    monkeypatch.setattr(ports, "BY_ID", folder / "by-id")
    plugged = [str(folder / "ttyACM0"), str(folder / "ttyACM1")]
    monkeypatch.setattr("understudy.commands.robot.serial_ports", lambda: list(plugged))
    terminal = StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    assert main(["robot", "find-port"]) == 2
    assert "it ended before enter was pressed" in capsys.readouterr().err
    terminal.readline = lambda: plugged.pop() and "\n"
    assert main(["robot", "find-port"]) == 0
    assert f"The port is {folder}/ttyACM1. {folder}/by-id/usb-leader stays the same" in capsys.readouterr().out


# -- understudy robot check --------------------------------------------------------------------------------------------


def write_recording(path, names, low, high, unit=None):
    """Two episodes whose positions go from `low` to `high`."""
    column = Feature("float32", (len(names),), names=names, unit=unit)
    with Recorder({"observation.state": column, "action": column}, path, fps=10, clock=None) as recorder:
        for part in (0.0, 1.0):
            for _ in range(2):
                at = np.asarray(low) + part * (np.asarray(high) - np.asarray(low))
                recorder.step({"observation.state": at.astype(np.float32)}, at.astype(np.float32))
            recorder.end()


def test_check_tells_how_far_a_calibration_has_moved(arms, capsys):
    follower, leader = arms
    check = ["robot", "check", *options(follower, leader)]
    assert main(check) == 0
    assert "nothing differs" in capsys.readouterr().out
    servo = follower.servo(3)
    servo.set("Homing_Offset", servo.get("Homing_Offset") + 91)  # 8 degrees; the limits moved by 2 degrees less
    servo.set("Min_Position_Limit", servo.get("Min_Position_Limit") - 23)
    servo.set("Max_Position_Limit", servo.get("Max_Position_Limit") - 23)
    before = held(follower)
    assert main([*check, "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    (text,) = report["differences"]
    assert text.startswith("so101_follower, elbow_flex: the servo holds offset 104, 987 to 2987, but the file "
                           "offset 13, 1010 to 3010")
    assert report["arms"][0]["servos"]["elbow_flex"]["drift"] == pytest.approx(68 * 360 / 4096)
    assert report["arms"][1]["type"] == "so101_leader" and report["arms"][0]["file"].endswith("mine.json")
    assert main(check) == 3
    assert "moved by (deg)" in (output := capsys.readouterr().out) and "6.0" in output
    assert held(follower) == before and not any(s.writes for s in (*follower.servos, *leader.servos))


def test_check_sees_a_joint_that_cannot_be_where_it_is(arms, capsys):
    follower, leader = arms
    follower.servo(2).push(3010 + 12 + 114)  # 10 degrees beyond the end of its range
    assert main(["robot", "check", *options(follower, leader)]) == 3
    assert "so101_follower, shoulder_lift: the joint is 10.0 degrees outside" in capsys.readouterr().out


def test_check_compares_recorded_data_with_what_the_arm_reaches(arms, folder, capsys):
    """The calibrated range is 2000 steps: 87.9 degrees to both sides, and 0 to 100 for the gripper."""
    follower, leader = arms
    names = tuple(f"{n}.pos" for n in KIND.motors)
    low, high = [-80.0] * 5 + [0.0], [80.0] * 5 + [100.0]
    write_recording(folder / "good", names, low, high)
    check = ["robot", "check", *options(follower, leader)]
    assert main([*check, "--data", "good"]) == 0
    assert "-87.9 to 87.9" in capsys.readouterr().out
    high[3] = 100.0
    write_recording(folder / "moved", names, low, high)
    assert main([*check, "--data", "moved"]) == 3
    assert ("wrist_flex.pos: recorded from -80.0 to 100.0, but this arm reaches -87.9 to 87.9: 12.1 outside"
            in capsys.readouterr().out)
    servo = follower.servo(1)  # the arm was calibrated again after the recording: its zero is 20 degrees away
    servo.set("Homing_Offset", servo.get("Homing_Offset") + 228)
    assert main([*check, "--data", "good", "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["allowed"]["shoulder_pan.pos"] == pytest.approx([-87.91 + 20.04, 87.91], abs=0.01)
    assert any("shoulder_pan.pos: recorded from -80.0 to 80.0" in text for text in report["differences"])
    write_recording(folder / "other", ("x", "y"), [0, 0], [1, 1])
    write_recording(folder / "percent", names, low, high, unit="signed percent (gripper: percent)")
    for data, message in (("other", "observation.state has x, y, but the robot has shoulder_pan.pos"),
                          ("percent", "with the unit signed percent (gripper: percent), and here it is deg (gripper"),
                          ("missing", "missing")):
        assert main([*check, "--data", data]) == 2
        assert message in capsys.readouterr().err


def test_check_knows_two_arms_by_their_names(folder, capsys):
    for side, shift in (("left", 30), ("right", 60)):
        write_calibration(folder / "calibration" / "so101_follower" / f"duo_{side}.json", calibration(shift))
    names = tuple(f"{side}_{n}.pos" for side in ("left", "right") for n in KIND.motors)
    write_recording(folder / "demos", names, [0.0] * 12, [50.0] * 11 + [110.0])
    with emulate_arm(KIND) as left_arm, emulate_arm(KIND) as right:
        hold(left_arm, calibration(30))
        hold(right, calibration(60))
        pair = ["robot", "check", "--robot", "bi_so101_follower", "--robot.id", "duo", "--data", "demos",
                "--robot.left-arm-port"]
        assert main([*pair, left_arm.port, "--robot.right-arm-port", right.port]) == 3
        text = capsys.readouterr().out
        assert "right_gripper.pos: recorded from 0.0 to 110.0" in text and "left_gripper.pos: rec" not in text
        assert main([*pair, right.port, "--robot.right-arm-port", left_arm.port]) == 3  # the cables are swapped
        assert "so101_follower, left_elbow_flex: the servo holds offset 63" in capsys.readouterr().out


def test_check_of_dynamixel_servos_has_the_right_sign(folder, capsys):
    kind = ARM_TYPES["koch_follower"]
    write_calibration(folder / "calibration" / "koch_follower" / "koch_follower.json", calibration(10, kind))
    with emulate_arm(kind) as bus:
        hold(bus, calibration(10, kind))
        arm = ["robot", "check", "--robot", "koch_follower", "--robot.port", bus.port, "--json"]
        assert main(arm) == 0
        servo = bus.servo(2)  # the same turned shaft: Dynamixel adds the offset
        for register in ("Homing_Offset", "Min_Position_Limit", "Max_Position_Limit"):
            servo.set(register, servo.get(register) + 50)
        capsys.readouterr()
        assert main(arm) == 3
        assert json.loads(capsys.readouterr().out)["arms"][0]["servos"]["shoulder_lift"]["drift"] == 0
        hold(bus, calibration(10, kind))
        servo.set("Drive_Mode", 4)  # another program made Profile_Velocity, our limit, a time
        assert main(arm) == 3
        assert "the servo holds offset 12, 1010 to 3010, Drive_Mode 4, but" in capsys.readouterr().out
        robot = make_robot(RobotConfig("koch_follower", bus.port))
        with pytest.raises(RobotError, match="hold another calibration"):
            robot.connect()
        assert not servo.get("Torque_Enable")
