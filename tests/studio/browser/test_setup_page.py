"""The studio sets up a robot: two emulated arms are checked, calibrated and moved."""

import asyncio
from contextlib import contextmanager

import pytest

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


@pytest.mark.slow
def test_a_check_finds_what_has_moved(tmp_path, calibrations):
    for kind in KINDS.values():
        calibrate(calibrations, kind)
    with arms() as (follower, leader):
        project, setup, _ = made(tmp_path / "project", words(follower.port, leader.port))
        for bus, kind in ((follower, "so101_follower"), (leader, "so101_leader")):
            for name in ARM_TYPES[kind].servos:
                servo = next(s for s in bus.servos if s.number == ARM_TYPES[kind].servos[name].id)
                servo.set("Min_Position_Limit", 1000)
                servo.set("Max_Position_Limit", 3000)
        assert run(project, setup.check()).state == "done"
        assert {joint.text for arm in setup.findings() for joint in arm.joints} == {"as calibrated"}
        follower.servos[2].set("Homing_Offset", 100)
        assert run(project, setup.check()).state == "done"
        robot, teleop = setup.findings()
        assert [j.joint for j in robot.joints if j.is_wrong] == ["elbow_flex"]
        assert robot.joints[2].text == "moved by 8.8°" and not any(j.is_wrong for j in teleop.joints)
    job = run(project, setup.check())
    assert job.state == "failed" and "->" in "\n".join(job.tail)  # with its remedy
    calibrate(calibrations, "so101_leader")
    assert setup.findings() == []  # the report is about the calibration before
