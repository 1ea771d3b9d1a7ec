"""Arms let go when the program that moves them ends, however it ends: real processes, killed and hung up."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
from fixtures.terminals import Terminal
from fixtures.waiting import wait_until

from understudy.cli import main
from understudy.core import Feature
from understudy.data.formats import open_dataset
from understudy.data.recording.recorder import Recorder
from understudy.robots import torque_guard_process
from understudy.robots.calibration import MotorCalibration, write_calibration
from understudy.robots.emulator import emulate_arm
from understudy.robots.registers import FEETECH
from understudy.robots.servo_arm import ARM_TYPES, ServoFollower
from understudy.robots.torque_guard import TorqueGuard

pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
pytest.importorskip("dynamixel_sdk", reason="extra dynamixel not installed")

KINDS = "so101_follower", "koch_follower"


def calibration(kind):
    return {n: MotorCalibration(m.id, int(n in kind.inverted_servos), 0, 1000, 3000) for n, m in kind.servos.items()}


def torques(*buses):
    return [bool(servo.get("Torque_Enable")) for bus in buses for servo in bus.servos]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with calibrations and a teleoperator that stands still."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_CALIBRATION", str(tmp_path / "calibration"))
    for name in (*KINDS, "so101_leader"):
        for arm in (name, "duo_left", "duo_right"):
            write_calibration(tmp_path / "calibration" / name / f"{arm}.json", calibration(ARM_TYPES[name]))
    (tmp_path / "still.py").write_text('''
import os
import numpy as np
from understudy.robots import motors_bus
from understudy.robots.base import Teleoperator

begin = motors_bus.MotorsBus.__init__  # longer waits, for a busy machine
motors_bus.MotorsBus.__init__ = lambda self, port, motors: begin(self, port, motors, 1_000_000, 0.3, 5)

class Still(Teleoperator):
    def start(self, position):
        self.position = np.array(position, np.float32)

    def read(self):
        return self.position

class Fork(Still):
    def start(self, position):
        super().start(position)
        if os.fork() == 0:  # a child that outlives its parent, and inherits all its pipes
            import time
            time.sleep(20)
            os._exit(0)
''')
    return tmp_path


def teleoperated(*args, teleop="Still"):
    return [*args, "--teleop", f"still:{teleop}", "--trust", "still"]


@contextmanager
def running(*args, teleop="Still", **options):
    with subprocess.Popen([sys.executable, "-m", "understudy", *teleoperated(*args, teleop=teleop)],
                          stdin=subprocess.DEVNULL, **options) as process:
        yield process
        process.kill()


def guards(process):
    return [p for p in psutil.Process(process.pid).children() if "torque_guard_process" in " ".join(p.cmdline())]


# -- kill -9 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_program_releases_its_arm(kind, folder, capfd):
    with emulate_arm(ARM_TYPES[kind]) as bus:
        with running("robot", "teleoperate", "--robot", kind, "--robot.port", bus.port) as process:
            wait_until(lambda: all(torques(bus)))
            (guard,) = guards(process)
            assert os.getsid(guard.pid) == guard.pid != os.getsid(process.pid)  # no signal of the terminal reaches it
            assert (memory := guard.memory_info().rss) < 40e6
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                guard.send_signal(number)
            time.sleep(0.3)
            assert all(torques(bus)) and guard.is_running()
            process.kill()
            seconds = wait_until(lambda: not any(torques(bus)), 2)
            process.wait()
        guard.wait(5)
    assert f"{kind}, {bus.port} was not released at the end: its torque was switched off" in capfd.readouterr().err
    print(f"{kind}: torque off {1000 * seconds:.0f} ms after kill -9; the guard had {memory / 1e6:.0f} MB")


def test_a_child_that_inherits_the_pipe_does_not_hold_the_torque(folder):
    with (emulate_arm(ARM_TYPES["so101_follower"]) as bus,
          running("robot", "teleoperate", "--robot", "so101_follower", "--robot.port", bus.port, teleop="Fork",
                  stderr=subprocess.DEVNULL) as process):
        wait_until(lambda: all(torques(bus)))
        wait_until(lambda: len(psutil.Process(process.pid).children()) == 2)
        process.kill()
        wait_until(lambda: not any(torques(bus)), 2)


def test_both_arms_of_a_robot_are_released(folder):
    with emulate_arm(ARM_TYPES["so101_follower"]) as left_arm, \
            emulate_arm(ARM_TYPES["so101_follower"]) as right, running(
            "robot", "teleoperate", "--robot", "bi_so101_follower", "--robot.id", "duo", "--robot.left-arm-port",
            left_arm.port, "--robot.right-arm-port", right.port) as process:
        wait_until(lambda: all(torques(left_arm, right)))
        assert len(guards(process)) == 2
        process.kill()
        wait_until(lambda: not any(torques(left_arm, right)), 2)


def test_a_stopped_program_keeps_its_torque_and_a_killed_one_does_not(folder):
    """A process that is stopped or swapped may go on. Two processes must not use one port."""
    with (emulate_arm(ARM_TYPES["so101_follower"]) as bus,
          running("robot", "teleoperate", "--robot", "so101_follower", "--robot.port", bus.port) as process):
        wait_until(lambda: all(torques(bus)))
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        assert all(torques(bus))
        process.kill()  # also of a stopped process
        wait_until(lambda: not any(torques(bus)), 2)


def test_torque_that_is_to_stay_on_stays_on(folder):
    with (emulate_arm(ARM_TYPES["so101_follower"]) as bus,
          running("robot", "teleoperate", "--robot", "so101_follower", "--robot.port", bus.port,
                  "--robot.disable-torque-on-disconnect", "false") as process):
        wait_until(lambda: all(torques(bus)))
        assert not guards(process)
        process.kill()
        process.wait()
        time.sleep(0.5)
        assert all(torques(bus))
        assert main(["robot", "release", "--robot", "so101_follower", "--robot.port", bus.port]) == 0
        assert not any(torques(bus))


def test_the_guard_ends_with_the_connection_and_comes_back_with_it(folder):
    kind = ARM_TYPES["so101_follower"]
    with emulate_arm(kind) as bus:
        robot = ServoFollower(kind, bus.port, calibration(kind))
        robot.arm.bus.reply_timeout, robot.arm.bus.n_retries = 0.3, 5
        for _ in range(2):
            robot.connect()
            guard = robot._guard._process
            robot.disconnect()
            assert guard.returncode == 0 and not any(torques(bus))
        robot.connect()
        guard = robot._guard._process
        bus.servos.pop()  # the last servo answers no more
        robot.disconnect()
        assert not any(torques(bus))
        wait_until(lambda: guard.poll() is not None)  # it tried, too


def test_a_failure_while_connecting_leaves_no_torque(folder):
    kind = ARM_TYPES["so101_follower"]
    with emulate_arm(kind) as bus:
        robot = ServoFollower(kind, bus.port, calibration(kind))
        robot.arm.bus.reply_timeout, robot.arm.bus.n_retries = 0.3, 5
        switch = robot.arm.set_torque

        def fail(on):
            switch(on)
            if on:
                raise KeyboardInterrupt
        robot.arm.set_torque = fail
        with pytest.raises(KeyboardInterrupt):
            robot.connect()
        assert not any(torques(bus)) and not robot.arm.bus.is_connected


def test_the_guard_does_not_touch_the_port_while_the_program_lives(folder):
    kind = ARM_TYPES["so101_follower"]
    with emulate_arm(kind) as bus:
        servo_bus = kind.bus(bus.port)
        servo_bus.reply_timeout, servo_bus.n_retries = 0.3, 5
        servo_bus.connect()
        guard = TorqueGuard(servo_bus, "an arm")
        files = [os.readlink(f"/proc/{guard._process.pid}/fd/{fd}") for fd in os.listdir(
            f"/proc/{guard._process.pid}/fd")] if sys.platform == "linux" else []
        assert bus.port not in files
        servo_bus.disconnect()
        before = bus.instructions
        guard.end(released=True)
        assert bus.instructions == before


def test_an_interrupt_while_the_guard_starts_leaves_no_second_user_of_the_port(folder, monkeypatch):
    slow = folder / "slow.py"
    slow.write_text("import time; time.sleep(600)")  # it has not said that it is ready when the interrupt comes
    monkeypatch.setattr(torque_guard_process, "__file__", str(slow))
    kind = ARM_TYPES["so101_follower"]
    with emulate_arm(kind) as bus:
        servo_bus = kind.bus(bus.port)
        servo_bus.connect()
        before, children = bus.instructions, set(psutil.Process().children())
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            TorqueGuard(servo_bus, "an arm")
        wait_until(lambda: set(psutil.Process().children()) <= children)
        servo_bus.disconnect()
        assert bus.instructions == before


# -- SIGHUP and SIGTERM ------------------------------------------------------------------------------------------------


def n_goals(bus):
    """Number of goals that the first servo got."""
    return sum(address == FEETECH["Goal_Position"].address for _, address, _ in list(bus.servos[0].writes))


def recording(bus):
    return ["record", "--robot", "so101_follower", "--robot.port", bus.port, "--out", "demos", "--episodes", "3",
            "--warmup-time-s", "0", "--fps", "20"]


@pytest.mark.parametrize("signals", [["SIGHUP", "SIGHUP", "SIGTERM"], pytest.param(
    ["SIGTERM"], marks=pytest.mark.slow), pytest.param(["SIGINT"], marks=pytest.mark.slow)])
def test_a_signal_stops_the_robot_and_keeps_the_episode(signals, folder):
    """A shell whose terminal is closed sends SIGHUP a second time, and a session manager SIGTERM besides."""
    with (emulate_arm(ARM_TYPES["so101_follower"]) as bus,
          running(*recording(bus), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process):
        wait_until(lambda: (folder / "demos" / "meta" / "info.json").exists() and n_goals(bus) > 15)
        for name in signals:
            process.send_signal(getattr(signal, name))
            time.sleep(0.05)
        wait_until(lambda: not any(torques(bus)), 20)
        assert process.wait(30) == 130
        assert "the same command continues" in process.stderr.read()
    data = open_dataset(folder / "demos")
    assert len(data) == 1 and data[0].metadata["interrupted"] and len(data[0]) > 10


def test_a_closed_terminal_stops_the_robot_and_keeps_the_episode(folder):
    with emulate_arm(ARM_TYPES["so101_follower"]) as bus:
        terminal = Terminal(*teleoperated(*recording(bus)))
        wait_until(lambda: re.search(r"step 1[5-9]", terminal.text))  # "step 15, 1 late" too
        (guard,) = guards(terminal.process)
        terminal.close()
        seconds = wait_until(lambda: not any(torques(bus)), 20)
        print(f"torque off {seconds:.1f} s after the terminal was closed")
        assert terminal.process.wait(30) == 130
        guard.wait(5)
    data = open_dataset(folder / "demos")
    assert len(data) == 1 and data[0].metadata["interrupted"] and len(data[0]) >= 15


@pytest.mark.slow
def test_a_policy_that_acts_is_stopped_and_its_episode_is_kept(folder):
    names = tuple(f"{n}.pos" for n in ARM_TYPES["so101_follower"].motors)
    column = Feature("float32", (6,), names=names)
    with Recorder({"observation.state": column, "action": column}, "demos", fps=20, clock=None) as recorder:
        for step in range(30):
            at = np.full(6, step / 10, np.float32)
            recorder.step({"observation.state": at}, at)
        recorder.end()
    assert main(["train", "bc", "demos", "--out", "run", "--steps", "1", "--policy.trunk.width", "8"]) == 0
    with emulate_arm(ARM_TYPES["so101_follower"]) as bus:
        for number in (signal.SIGHUP, signal.SIGKILL):
            bus.servos[0].writes.clear()
            with subprocess.Popen([sys.executable, "-m", "understudy", "act", "run", "--robot", "so101_follower",
                                   "--robot.port", bus.port, "--out", f"acted{number}"], stdin=subprocess.DEVNULL
                                  ) as process:
                wait_until(lambda: n_goals(bus) > 15, 60)
                process.send_signal(number)
                wait_until(lambda: not any(torques(bus)), 20)
                assert process.wait(30) == (130 if number == signal.SIGHUP else -number)
    acted = open_dataset(f"acted{signal.SIGHUP}")
    assert len(acted) == 1 and acted[0].metadata["interrupted"] and len(acted[0]) >= 10
    assert main(["repair", f"acted{signal.SIGKILL}"]) == 0
    assert len(open_dataset(f"acted{signal.SIGKILL}")[0]) >= 1


# -- understudy robot release ------------------------------------------------------------------------------------------


def test_release_names_servos_that_do_not_answer(folder, capsys):
    kind = ARM_TYPES["so101_follower"]
    with emulate_arm(kind) as left_arm, emulate_arm(kind) as right:
        for bus in (left_arm, right):
            for servo in bus.servos:
                servo.set("Torque_Enable", 1)
        left_arm.servos.pop(2)
        right.servo(4).fault = 32  # overload: it answers, and obeys
        arms = ["--robot", "bi_so101_follower", "--robot.left-arm-port", left_arm.port, "--robot.right-arm-port"]
        assert main(["robot", "release", *arms, right.port]) == 2
        text = capsys.readouterr()
        assert f"{left_arm.port}: no answer from elbow_flex" in text.err
        assert f"so101_follower, {right.port}: the torque is off" in text.out
        assert not any(torques(left_arm, right))
        for servo in right.servos:
            servo.set("Torque_Enable", 1)
        left_arm.pull_cable()
        assert main(["robot", "release", *arms, right.port]) == 2  # the other arm is released all the same
        assert "the port cannot be opened" in capsys.readouterr().err and not any(torques(right))


def test_release_takes_leaders_and_needs_no_calibration(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UNDERSTUDY_CALIBRATION", str(tmp_path))
    with emulate_arm(ARM_TYPES["so101_leader"]) as leader:
        leader.servo(1).set("Torque_Enable", 1)
        assert main(["robot", "release", "--teleop", "so101_leader", "--teleop.port", leader.port]) == 0
        assert not any(torques(leader))
    for args, message in (([], "--robot: is missing"), (["--robot", "simulated_arm"], "is not an arm of servos"),
                          (["--robot", "so101_follower"], "--robot.port: is missing")):
        assert main(["robot", "release", *args]) == 2
        assert message in capsys.readouterr().err
