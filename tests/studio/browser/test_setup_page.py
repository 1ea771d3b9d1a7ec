"""The studio sets up a robot: two emulated arms are checked, calibrated and moved."""

import asyncio
import re
from contextlib import contextmanager

import pytest
from fixtures.hands import Hand
from fixtures.studios import press, served, tab
from fixtures.waiting import wait_until

from understudy.commands.studio import StudioOptions, _make_robot, _robot_setup
from understudy.robots.calibration import MotorCalibration, write_calibration
from understudy.robots.emulator import emulate_arm
from understudy.robots.registry import RobotConfig, TeleoperatorConfig
from understudy.robots.servo_arm import ARM_TYPES
from understudy.studio.browser.jobs import JobRunner
from understudy.studio.browser.project import Project
from understudy.studio.browser.robot_live import RobotLiveSession
from understudy.studio.browser.robot_setup import RobotToSetUp, joint_finding, setup_arms

pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
KINDS = {"robot": "so101_follower", "teleop": "so101_leader"}


@pytest.fixture
def calibrations(tmp_path, monkeypatch):
    """The folder of calibrations, also of commands that are run."""
    monkeypatch.setenv("UNDERSTUDY_CALIBRATION", str(tmp_path / "calibrations"))
    monkeypatch.setenv("HF_LEROBOT_CALIBRATION", str(tmp_path / "none"))
    return tmp_path / "calibrations"


def calibrate(folder, kind, low=1000):
    write_calibration(folder / kind / f"{kind}.json", {
        name: MotorCalibration(motor.id, 0, 0, low, 3000) for name, motor in ARM_TYPES[kind].servos.items()})


@contextmanager
def arms():
    """Two emulated arms."""
    with emulate_arm(ARM_TYPES[KINDS["robot"]]) as follower, emulate_arm(ARM_TYPES[KINDS["teleop"]]) as leader:
        yield follower, leader


def words(follower, leader):
    return ["--robot", KINDS["robot"], "--robot.port", follower, "--teleop", KINDS["teleop"], "--teleop.port", leader]


def made(folder, options):
    """The project of a robot, how it is set up, and the session with which it opens."""
    from understudy.commands.parts.common import parse

    o = parse(StudioOptions, "studio", options)
    session = _make_robot(o)
    project = Project(folder, o.robot, options)
    return project, _robot_setup(o, project), session(project)


def run(project, job):
    """Runs the commands of a job to their end."""
    async def wait():
        ended = asyncio.Event()
        JobRunner(project.folder, lambda job: ended.set()).start(job)
        await ended.wait()
    asyncio.run(wait())
    return job


def test_a_robot_opens_before_it_is_calibrated(tmp_path, calibrations):
    project, setup, session = made(tmp_path / "project", ["--robot", "so101_follower", "--robot.id", "mine",
                                                          "--teleop", "so101_leader", "--teleop.port", "/dev/no"])
    assert isinstance(session, RobotToSetUp) and session.error is None and not setup.is_ready
    assert [(a.title, a.named.port, a.calibration) for a in setup.arms()] == [
        ("Robot arm", "", None), ("Leader arm", "/dev/no", None)]
    with pytest.raises(RuntimeError, match="Start with Set up"):
        session.start("show")
    assert session.mode == "idle"
    project.set_robot_option(setup.arms()[0].port_option, "/dev/also-no")
    assert Project(tmp_path / "project").robot[-2:] == ["--robot.port", "/dev/also-no"]
    assert setup.arms()[0].words == ["--robot", "so101_follower", "--robot.port", "/dev/also-no", "--robot.id", "mine"]
    assert isinstance(setup.open(), RobotToSetUp)
    for path in ("so101_follower/mine.json", "so101_leader/so101_leader.json"):
        (calibrations / path).parent.mkdir(parents=True)
        calibrate(tmp_path, "so101_leader")
        (tmp_path / "so101_leader" / "so101_leader.json").rename(calibrations / path)
    assert setup.is_ready and isinstance(setup.open(), RobotLiveSession)


def test_two_arms_are_set_up_one_by_one(tmp_path, calibrations):
    _, setup, _ = made(tmp_path / "project", [
        "--robot", "bi_so101_follower", "--robot.left-arm-port", "/dev/a", "--robot.right-arm-port", "/dev/b",
        "--robot.calibration-dir", "here", "--teleop", "gamepad"])
    left, right = setup.arms()
    assert left.title == "Robot arm, left" and left.port_option == "--robot.left-arm-port"
    assert right.words[:6] == ["--robot", "so101_follower", "--robot.port", "/dev/b", "--robot.id",
                               "bi_so101_follower_right"]
    assert right.words[-1].endswith("/here") and right.words[-1].startswith("/")


def test_a_robot_without_servos_has_no_arms_to_set_up():
    assert setup_arms(RobotConfig("simulated_arm"), TeleoperatorConfig("gamepad")) == []


def test_a_finding_is_said_in_plain_words():
    servo = {"is_same": True, "drift": 0.0, "outside": 0.0}
    assert joint_finding("elbow", servo).text == "as calibrated"
    assert joint_finding("elbow", {**servo, "outside": 7.25}).text == "7.2° outside its range"
    drifted = joint_finding("elbow", {**servo, "is_same": False, "drift": -12.34})
    assert (drifted.text, drifted.is_wrong) == ("moved by 12.3°", True)
    assert joint_finding("elbow", {**servo, "is_same": False}).text == "another range"


def test_a_dialog_says_what_is_asked_and_found(tmp_path, calibrations):
    project, setup, _ = made(tmp_path / "project", ["--robot", "so101_follower", "--teleop", "so101_leader"])
    job = setup.find_port(setup.arms()[1])
    assert job.commands == [["robot", "find-port", "--dialog"]]
    for line in ("ports: /dev/a", '{"ask": "Pull"}', "The port is /dev/a.", '{"port": "/dev/a"}'):
        job.hear(line)
    assert (setup.dialog.question, setup.dialog.is_choice) == ("Pull", False)
    assert setup.dialog.lines[-1] == "The port is /dev/a."
    job.state = "done"
    assert setup.take_over(job) and setup.arms()[1].named.port == "/dev/a"
    job = setup.calibrate(setup.arms()[1])
    job.hear('{"confirm": "Replace it?"}')
    job.hear('{"positions": {"elbow": [1000, 1500, 2024], "wrist_roll": [0, 0, 0]}}')
    assert setup.dialog.is_choice and setup.dialog.positions["elbow"] == [1000, 1500, 2024]
    pytest.importorskip("nicegui", reason="extra studio not installed")
    from understudy.studio.browser.setup_panel import ranges_html

    shown = ranges_html({**setup.dialog.positions, "gripper": (7, 7, 90)}, ("wrist_roll",))
    assert "moved 90°" in shown and "turns freely" in shown and "not moved yet" in shown
    job.state = "failed"
    assert not setup.take_over(job)


@pytest.mark.slow
def test_a_check_finds_what_has_moved(tmp_path, calibrations):
    for kind in KINDS.values():
        calibrate(calibrations, kind)
    with arms() as (follower, leader):
        project, setup, _ = made(tmp_path / "project", words(follower.port, leader.port))
        for servo in (*follower.servos, *leader.servos):
            servo.set("Min_Position_Limit", 1000)
            servo.set("Max_Position_Limit", 3000)
        follower.servos[2].set("Homing_Offset", 100)
        assert run(project, setup.check()).state == "done"
        robot, teleop = setup.findings()
        assert [(j.joint, j.text) for j in robot.differing] == [("elbow_flex", "moved by 8.8°")]
        assert not teleop.differing and {joint.text for joint in teleop.joints} == {"as calibrated"}
        calibrate(calibrations, "so101_leader")
        assert setup.findings() == []  # it was about the calibration before
    job = run(project, setup.check())
    assert job.state == "failed" and "->" in "\n".join(job.tail)  # with its remedy


@pytest.mark.slow
def test_a_robot_is_set_up_by_clicks(page, tmp_path, calibrations):
    pytest.importorskip("nicegui", reason="extra studio not installed")
    folder = tmp_path / "project"
    with arms() as (follower, leader):
        with Hand(follower, leader), served(folder, *words(follower.port, leader.port), "--warmup-time-s",
                                                   "600", env="") as address:
            page.goto(address)
            page.get_by_role("tab", name="Set up: to do").wait_for()
            for device in ("Robot arm", "Leader arm"):
                press(page, "Calibrate")
                page.get_by_text(f"Calibrate: {device}").wait_for()
                page.get_by_role("status").filter(has_text="middle of its range").wait_for()
                page.keyboard.press("Enter")
                page.get_by_role("status").filter(has_text="Move every joint").wait_for()
                page.get_by_text(re.compile(r"moved 10\d°")).nth(4).wait_for()
                press(page, "Enter")
                page.get_by_text("Calibration written to").wait_for()
            page.get_by_role("tab", name="Set up: done").wait_for()
            assert len(list(calibrations.rglob("*.json"))) == 2
            follower.servos[2].set("Homing_Offset", follower.servos[2].get("Homing_Offset") + 50)
            press(page, "Check")
            page.get_by_text("moved by 4.4°").wait_for()
            page.get_by_text("Leader arm: all 6 joints are as calibrated").wait_for()
        with Hand(leader, size=200), served(None, env=str(folder)) as address:  # opened again
            page.goto(address)
            tab(page, "Set up")
            page.get_by_text("moved by 4.4°").wait_for()
            press(page, "Teleoperate")
            press(page, "Yes")  # it is the right arm
            page.get_by_role("status").filter(has_text="The leader moves the robot").wait_for()
            wait_until(lambda: follower.servos[0].get("Torque_Enable") == 1, 60)
            press(page, "Enter")
            page.get_by_text("steps per second").wait_for()
            assert all(servo.get("Torque_Enable") == 0 for servo in follower.servos)
            assert page.get_by_text("moved by 4.4°").count() == 0  # the servos have the calibration of the file
            tab(page, "Show")
            press(page, "Start showing")  # with the robot that was made again
            page.get_by_role("status").filter(has_text="warm-up").wait_for()
            tab(page, "Set up")
            press(page, "Check")
            page.get_by_text("all 6 joints are as calibrated").first.wait_for()
            assert page.get_by_role("button", name="Stop showing").count() == 0
    commands = (folder / "commands.jsonl").read_text()
    assert commands.count('"calibrate"') == 2 and "--dialog" in commands
