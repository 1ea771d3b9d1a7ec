"""A person who watches a policy on a robot: handovers without a jump, keys, and lost devices. Time is simulated."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from fixtures.collections import Constant
from fixtures.servo_arms import CALIBRATION, feetech, patient
from fixtures.takeovers import FPS, LIMITS, VELOCITY, Clock, Device, Hand, Keys, World, supervised

from understudy.core import NonFiniteAction, UserError
from understudy.envs.devices import Gamepad
from understudy.execute.actor import Actor
from understudy.improve.journal import EpisodeJournal
from understudy.improve.robot_takeover import RobotPerson, RobotTakeoverEnv
from understudy.improve.unlearned_steps import count_learned
from understudy.robots.base import ConnectionLost, DrivenTeleoperator
from understudy.robots.emulator import DynamixelServo, EmulatedDynamixelBus
from understudy.robots.handover import Handover
from understudy.robots.safety import SafeRobot
from understudy.robots.servo_arm import ARM_TYPES, ServoFollower, ServoLeader
from understudy.robots.teleoperators import VelocityTeleoperator


class DrivenHand(Hand, DrivenTeleoperator):
    """A leader with motors. Without torque a person can move it."""

    follows = 0

    def follow(self, position):
        self.follows += 1
        self.place = self.place + np.clip(position - self.place, -1.5, 1.5)
        return bool(np.allclose(self.place, position))

    def release(self):
        self.released_at = self.place.copy()


@pytest.mark.parametrize("mover", ["leader", "robot", "nobody"])
def test_a_person_takes_over_without_a_jump_and_gives_back(mover):
    """The policy goes to 20 degrees, and the leader lies at 50."""
    world = World(DrivenHand if mover == "leader" else Hand, mover, _25=["takeover"], _60=["takeover"], _70=["success"],
                  limit=100)
    world.teleop.place = np.full(2, 50.0)
    episode = world.episode(Constant(20.0))
    acted, handover = episode.steps["intervention"], episode.steps["handover"]
    assert np.flatnonzero(acted).tolist() == list(range(25, 60)) and len(episode) == 70
    assert episode.metadata["success"] is True and episode.steps["next.reward"].tolist() == [0.0] * 69 + [1.0]
    assert world.arm.fastest() <= VELOCITY * 1.001
    state = episode.steps["observation.state"][:70, 0]
    assert state[25] == pytest.approx(20, abs=1e-3)
    if mover == "leader":  # the leader came to the robot, which does not move
        assert world.teleop.released_at == pytest.approx([20, 20]) and world.teleop.follows >= 20
        assert not handover[27:].any() and state[25:60] == pytest.approx([20] * 35, abs=1e-3)
    elif mover == "robot":  # in a second, and a little longer because limits slow it down
        ends = int(np.flatnonzero(handover)[-1])
        assert np.flatnonzero(handover).tolist() == list(range(25, ends + 1)) and 43 <= ends <= 47
        assert np.abs(np.diff(state[25:ends])).max() <= 30 / FPS * 1.1  # 30 degrees in a second
        assert state[ends + 2] == pytest.approx(50, abs=0.1) and not handover[60:].any()
    else:  # the difference stays
        assert not handover.any() and state[25:60] == pytest.approx([20] * 35, abs=1e-3)
    assert episode.steps["action"][acted & ~handover] == pytest.approx(
        episode.steps["supervisor_action"][acted & ~handover])


@pytest.mark.parametrize("mover", ["leader", "robot"])
def test_the_corrections_of_a_leader_beyond_the_range_of_the_robot_are_learned(mover):
    """The robot goes to its limit of 90 degrees, and the handover is complete there, whoever moves."""
    world = World(Hand, mover, _5=["takeover"], _95=["success"], limit=200)
    world.teleop.place = np.array([110.0, 40.0])
    episode = world.episode(Constant(80.0))
    acted, handover = episode.steps["intervention"], episode.steps["handover"]
    assert np.flatnonzero(acted).tolist() == list(range(5, 95)) and handover[5] and not handover[60:].any()
    assert episode.steps["action"][60:95] == pytest.approx(np.tile([90.0, 40.0], (35, 1)))
    assert count_learned([episode]) == (acted & ~handover).sum() >= 35 and not world.env.person.handover.problem


def test_a_handover_that_something_blocks_stops_and_names_the_joints():
    """The second joint is blocked at 20 degrees, and the leader is at 60. Then a hand moves it to 21."""
    world = World(Hand, "robot", _5=["takeover"], limit=400)
    limits = replace(LIMITS, max_relative_target=(5.0, 5.0))
    world.robot.limits = world.env.person.handover.limits = limits
    world.teleop.place = np.array([40.0, 60.0])
    advance, commands, holds = world.arm.advance, world.keys.commands, []

    def advance_but_for_the_elbow():
        advance()
        world.arm.joints[1] = min(world.arm.joints[1], 20.0)
    world.arm.advance = advance_but_for_the_elbow

    def move_the_leader_once_it_holds():
        takeover = world.env.takeover
        if takeover.is_person and takeover.is_held:
            holds.append(takeover.n_steps)
            if len(holds) == 20:
                world.teleop.place = np.array([40.0, 21.0])
                world.keys.press("hold")
        elif holds and takeover.n_steps == holds[-1] + 60:
            world.keys.press("success")
        return commands()
    world.keys.commands = move_the_leader_once_it_holds
    episode = world.episode(Constant(0.0))
    acted, handover = episode.steps["intervention"], episode.steps["handover"]
    stopped = [line for line in world.lines if line.startswith("no handover")]
    problem = "elbow.pos is at 25.0, your device at 60.0 | move it there, p"
    assert stopped and all(problem in line and "shoulder" not in line for line in stopped)
    assert len({*holds}) == 1 and 5 * FPS < holds[0] < 8 * FPS and handover[5:holds[0]].all()
    assert acted[-1] and not handover[-10:].any() and world.arm.fastest() <= VELOCITY * 1.001


def test_a_device_of_velocities_begins_at_the_present_pose():
    world = World(velocity=True, _25=["takeover"], _45=["failure"], limit=100)
    world.teleop.device.axes = np.array([1.0, 0.0])
    episode = world.episode(Constant(20.0))
    state = episode.steps["observation.state"][25:45]
    assert state[0] == pytest.approx([20, 20], abs=1e-3) and state[:, 1] == pytest.approx([20] * 20, abs=1e-3)
    assert np.diff(state[1:, 0]) == pytest.approx([VELOCITY / 2 / FPS] * 18, rel=1e-3)
    assert not episode.steps["handover"].any() and episode.metadata["success"] is False


def test_while_it_is_held_the_robot_rests_and_starts_slowly():
    world = World(_15=["hold", *[""] * 30, "hold"], _30=["success"], limit=100)
    episode = world.episode(Constant(80.0))
    state = episode.steps["observation.state"][:, 0]
    assert len(episode) == 30 and world.arm.stops >= 2 and world.arm.fastest() <= VELOCITY * 1.001
    step = VELOCITY / FPS  # whose limit grows from 0 in 10 steps, after a first command that does not move
    assert np.diff(state[14:20]) == pytest.approx([step, 0, 0.1 * step, 0.2 * step, 0.3 * step], rel=0.01, abs=1e-4)
    assert episode.metadata["seconds_watched"] == pytest.approx(30 / FPS + 31 / FPS, abs=0.01)
    assert (episode.steps["policy_action"] == 80).all()  # and what is stored as the action was sent, within the limits
    assert np.abs(np.diff(episode.steps["action"], axis=0)).max() <= VELOCITY / FPS * 1.001


def test_the_person_says_how_an_episode_ends_when_the_time_is_over():
    world = World(limit=5, _5=["", "hold", "", "success"])
    episode = world.episode(Constant(10.0))
    assert len(episode) == 5 and episode.metadata["success"] is True and any("time is over" in x for x in world.lines)


def test_between_episodes_the_person_can_move_the_robot_and_nothing_of_it_is_recorded():
    world = World(_0=["", "", "takeover", *[""] * 60, "enter"], _3=["success"])
    world.teleop.place = np.full(2, 30.0)
    episode = world.episode(Constant(30.0))
    assert len(episode) == 3 and not episode.steps["intervention"].any()
    assert episode.steps["observation.state"][0] == pytest.approx([30, 30], abs=0.1)
    assert world.arm.fastest() <= VELOCITY * 1.001 and "t: move the robot" in world.lines[0]
    assert any("you move the robot" in text for text in world.lines)


@pytest.mark.parametrize("device", ["leader", "robot"])
def test_a_lost_device_costs_no_step(device):
    """At step 12 the cable is pulled. The person waits, plugs it in, continues, and all steps are kept."""
    world = World(_5=["takeover"], _12=["", "", "enter", "", "hold"], _30=["success"], limit=100)
    if device == "robot":
        world.arm.breaks_at = 13  # its path begins with the pose at the start

    def pull_cable():
        if world.env.takeover.n_steps == 12 and not world.teleop.connections:
            world.teleop.is_lost = True
    world.arm.breaks_at = 12 if device == "robot" else None
    read = world.teleop.read

    def read_if_there_is_a_cable():
        if device == "leader":
            pull_cable()
        return read()
    world.teleop.read = read_if_there_is_a_cable
    episode = world.episode(Constant(0.0))
    assert len(episode) == 30 and episode.metadata["success"] is True
    assert any(("your device" if device == "leader" else "the robot") + " is lost" in text for text in world.lines)
    assert world.teleop.connections == (device == "leader") and world.arm.fastest() <= VELOCITY * 1.001
    assert world.robot._error is None


def test_the_pose_is_recorded_where_not_even_the_first_action_was_sent():
    world = World(_1=["enter", "hold"], _4=["success"])
    world.arm.joints[:] = 30.0
    world.arm.breaks_at = 1  # its path starts with the pose at the start
    episode = world.episode(Constant(35.0))
    assert episode.steps["action"][0] == pytest.approx([30, 30]) and len(episode) == 4


@pytest.mark.parametrize("error", [ConnectionLost("no reply", where="hand", hint="check it"), KeyboardInterrupt()])
def test_a_leader_that_is_stopped_on_its_way_has_no_torque(error):
    world = World(DrivenHand)
    world.teleop.place = np.full(2, 50.0)
    follow = world.teleop.follow

    def follow_until_it_fails(position):
        if world.teleop.follows == 3:
            raise error
        return follow(position)
    world.teleop.follow = follow_until_it_fails
    with pytest.raises(type(error)):
        world.env.person.handover.begin(world.robot, 1 / FPS)
    assert world.teleop.released_at == pytest.approx([45.5, 45.5])


def test_a_device_that_stays_lost_ends_an_episode_that_is_kept():
    world = World(_5=["takeover"], _12=["", "enter", "", "failure"], limit=100)
    read = world.teleop.read

    def read_until_it_breaks():
        if world.env.takeover.n_steps == 12:
            world.teleop.is_lost = "for ever"
        return read()
    world.teleop.read = read_until_it_breaks
    episode = world.episode(Constant(0.0))
    assert len(episode) == 12 and episode.metadata["success"] is False and world.arm.stops


def test_an_action_that_is_not_finite_is_no_lost_device():
    world = World()
    world.keys.press("enter")
    world.env.reset(torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(NonFiniteAction, match="nan was commanded"):
        world.env.step(torch.tensor([[np.nan, 0.0]]))
    assert world.robot._is_holding


def random_handovers(env, keys, teleops, rng, n_handovers, target):
    """Drives the environment as a policy with random goals, with random takeovers, holds and leaders."""
    n_handovers_so_far = 0
    env.reset(torch.tensor([0]), torch.tensor([0]))
    while n_handovers_so_far < n_handovers:
        env.person.handover.teleop = teleops[rng.integers(len(teleops))]
        env.person.handover.mover = rng.choice(["leader", "robot", "nobody"])
        env.person.handover.seconds = rng.choice([0.0, 0.3, 1.0])
        for command in (["takeover"], ["hold"], [], ["takeover"], ["hold"]):
            if rng.random() < 0.7 or command == ["takeover"]:
                keys.press(*command)
                if command == ["hold"]:
                    keys.press(*[""] * int(rng.integers(0, 3)))
                    keys.press("hold")
            for _ in range(rng.integers(1, 4)):
                wanted = env.read() if env.takeover.is_person else target(rng)
                env.step(torch.as_tensor(wanted, dtype=torch.float32)[None])
        n_handovers_so_far += 2  # to the person and back
    return n_handovers_so_far


def test_no_step_of_200_handovers_is_above_the_velocity_limit():
    world, rng = World(limit=10**6), np.random.default_rng(0)
    world.keys.press("enter")

    class Restless(DrivenHand):
        def read(self):  # somebody moves it fast
            self.place = np.clip(self.place + rng.uniform(-30, 30, 2), -90, 90)
            return super().read()
    sticks = Device()
    sticks.axes = np.array([1.0, -1.0], np.float32)
    stick = VelocityTeleoperator(sticks, (VELOCITY / 2,) * 2, LIMITS.low, LIMITS.high, world.clock)
    world.keys.calls = -10**6
    n_handovers = random_handovers(world.env, world.keys, (Restless(world.clock), Hand(world.clock), stick), rng, 200,
                                   lambda rng: rng.uniform(-90, 90, 2))
    assert n_handovers == 200 and world.env.takeover.n_takeovers == 100
    assert world.arm.fastest() <= VELOCITY * 1.001 and len(world.arm.path) > 500
    assert np.ptp([joints for _, joints in world.arm.path], axis=0).min() > 20  # it moved


@pytest.mark.parametrize("name", ["so101_leader", "koch_leader"])
def test_a_leader_of_servos_is_driven_slowly_and_released(name):
    pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
    pytest.importorskip("dynamixel_sdk", reason="extra dynamixel not installed")
    clock = Clock()
    bus = feetech() if name == "so101_leader" else EmulatedDynamixelBus(
        *(DynamixelServo(i, "xl330-m077", 2000) for i in range(1, 7)))
    for servo in bus.servos:
        servo.clock, servo._at = clock, clock()
        servo.set("Operating_Mode", 1)  # another program let it turn at a velocity
    with bus:
        leader = patient(ServoLeader(ARM_TYPES[name], bus.port, CALIBRATION))
        with leader:
            start = leader.read().astype(float)
            goal = start + [10, -10, 20, 5, -20, 5]
            poses = [start]
            while not leader.follow(goal):
                clock.sleep(0.05)
                poses.append(leader.read())
                assert len(poses) < 100, "it does not arrive"
            speed = np.abs(np.diff(poses, axis=0)).max(0) / 0.05
            assert (speed[:5] <= 30 + 360 / 4096 / 0.05).all() and speed.max() > 15  # deg/s, and a step of the encoder
            assert {s.get("Operating_Mode") for s in bus.servos} == {0 if name == "so101_leader" else 4}
            assert poses[-1] == pytest.approx(goal, abs=2.1) and all(s.get("Torque_Enable") for s in bus.servos)
            leader.release()
            assert not any(s.get("Torque_Enable") for s in bus.servos)
            assert leader.follow(start) is False and all(s.get("Torque_Enable") for s in bus.servos)
        assert not any(s.get("Torque_Enable") for s in bus.servos)  # also if it ends on its way


def test_a_leader_that_is_moved_between_episodes_or_while_the_robot_holds_does_not_take_over():
    world = World(_30=["hold", "", "hold"], _60=["success", "success"], limit=100)
    commands = world.keys.commands

    def move_while_it_holds():
        if world.env.takeover.is_held:
            world.teleop.place = np.full(2, 30.0)
        return commands()
    world.keys.commands = move_while_it_holds
    for place in (0.0, 60.0):
        world.teleop.place = np.full(2, place)
        episode = world.episode(Constant(0.0))
        assert len(episode) == 60 and not episode.steps["intervention"].any()


def emulated_arms(stack, clock):
    """A follower and a leader of six emulated servos each, and the servos of the leader."""
    buses = [stack.enter_context(feetech()) for _ in range(2)]
    for bus in buses:
        for servo in bus.servos:
            servo.clock, servo._at = clock, clock()
    follower, leader = (kind(ARM_TYPES[name], bus.port, CALIBRATION) for kind, name, bus in zip(
        (ServoFollower, ServoLeader), ("so101_follower", "so101_leader"), buses, strict=True))
    robot = SafeRobot(patient(follower), follower.default_limits(slow_start=0.5), clock, watchdog=False)
    stack.enter_context(patient(leader))
    stack.enter_context(robot)
    return robot, leader, buses[1]


@dataclass(frozen=True)
class Still(Actor):
    pose: torch.Tensor

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        return self.pose, state


def test_a_person_takes_over_by_moving_an_emulated_leader():
    """The leader sags for 2 s, is moved at step 40, given back at 60, put down fast at once, and moved again at 100."""
    pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
    clock, keys = Clock(), Keys(_60=["takeover"], _110=["success"])
    with ExitStack() as stack:
        robot, leader, bus = emulated_arms(stack, clock)
        handover = Handover(leader, robot.limits, clock=clock, sleep=clock.sleep)
        env = keys.env = RobotTakeoverEnv(robot, RobotPerson(handover, keys), FPS, 200, clock, clock.sleep)
        pan, commands, moved = bus.servos[0], keys.commands, {40: 150, 50: 200, 61: -600, 100: 150}

        def move_and_press():
            step = env.takeover.n_steps
            pan.push(pan.position + (1 if step < 40 else moved.pop(step, 0)))  # steps of 0.088 degrees
            return commands()
        keys.commands = move_and_press
        rest = robot.position(robot.observe())
        actor = supervised(env, Still(torch.tensor(rest, dtype=torch.float32)[None]), env.read)
        episode = EpisodeJournal(None).rollout(actor, env, 1, 0)[0]
    acted, handed = episode.steps["intervention"], episode.steps["handover"]
    assert np.flatnonzero(acted).tolist() == [*range(40, 60), *range(100, 110)] and not moved
    sent = episode.steps["action"][:, 0]
    assert sent[:50] == pytest.approx([rest[0]] * 50, abs=2.1)  # the leader has come to the robot
    assert sent[55] == pytest.approx(sent[48] + 200 * 360 / 4096, abs=0.1) and not handed[55:60].any()
    largest = np.array(robot.limits.max_velocity) / FPS
    assert (np.abs(np.diff(episode.steps["action"], axis=0)) <= largest * 1.01 + 0.1).all()


@pytest.mark.slow
def test_no_step_of_200_handovers_of_emulated_servos_is_above_the_velocity_limit():
    """A follower and a leader of six emulated servos each. The leader is driven, or the robot goes to it."""
    pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
    clock, rng, keys = Clock(), np.random.default_rng(1), Keys()
    with ExitStack() as stack:
        robot, leader, bus = emulated_arms(stack, clock)
        limits = robot.limits
        velocity, path = np.array(limits.max_velocity), []  # of what is sent: (time, pose)
        stop = robot.stop

        def stop_and_note():
            path.append((clock(), stop(), True))
            return path[-1][1]  # a pose that is held is where the robot is
        robot.stop = stop_and_note
        robot.on_step = lambda obs, action, sent: path.append((clock(), np.array(sent)))
        handover = Handover(leader, limits, clock=clock, sleep=clock.sleep)
        env = RobotTakeoverEnv(robot, RobotPerson(handover, keys), FPS, 10**6, clock, clock.sleep)
        keys.env, keys.calls = env, -10**6
        keys.press("enter")

        def target(rng):  # and a hand moves the leader, as far as it has no torque
            for servo in bus.servos:
                if not servo.get("Torque_Enable"):
                    servo.push(servo.position + rng.uniform(-100, 100))
            return rng.uniform(limits.low, limits.high)
        assert random_handovers(env, keys, (leader,), rng, 200, target) == 200
        assert not any(servo.get("Torque_Enable") for servo in bus.servos)
    assert len(path) > 500
    for (before, pose, *_), (now, goal, *stopped) in pairwise(path):
        assert stopped or (np.abs(goal - pose) <= velocity * (now - before) + 1e-3).all()


def test_a_gamepad_that_is_plugged_in_again_is_read_again(tmp_path):
    device = tmp_path / "js0"
    device.write_bytes(b"")
    pad = Gamepad(path=device)
    with pytest.raises(UserError, match="the gamepad is gone"):
        pad.read()
    device.unlink()
    with pytest.raises(UserError, match="there is no gamepad"):
        pad.read()
    device.write_bytes(b"\0\0\0\0\xff\x7f\x02\x00")  # axis 0 at its end
    with pytest.raises(UserError, match="the gamepad is gone"):  # after this event the file ends
        pad.read()
    assert pad._at == {0: 1.0}
