"""The toys: closed forms, invariants, and that their best possible success is reached."""

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from understudy import envs
from understudy.config import UntrustedCode
from understudy.core import UserError, keys
from understudy.envs.raster import Canvas
from understudy.envs.toys import four_rooms, gridworld_tasks, maze, peg_insertion, planar_arms, push, tabletop
from understudy.envs.toys.fork import Fork, ForkExpert
from understudy.envs.toys.gridworld_tasks import GridworldTasks
from understudy.envs.toys.particle import Particle
from understudy.envs.toys.peg_insertion import PegInsertion
from understudy.envs.toys.planar_arms import ARMS, TASKS, PlanarArms
from understudy.envs.toys.push import Push
from understudy.envs.toys.tabletop import BINS, COLORS, CONTROLS, MISSIONS, Tabletop
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.testing import check_env

TOYS = (*envs.names(), "particle:8")


@pytest.mark.parametrize("name", TOYS)
def test_every_toy_keeps_the_contract(name):
    check_env(lambda rows: envs.make(name, rows, limit=25))


@pytest.mark.parametrize("name", TOYS)
def test_the_best_possible_success_is_reached(name):
    env = envs.make(name, 200)
    expert = env.expert()
    steady = type(expert)(**{**vars(expert), "noise": 0.0})
    ran = rollout(steady, env, 200, seed=4)
    assert np.mean([e.metadata["success"] for e in ran]) == env.metadata["optimum"] == 1.0


@pytest.mark.parametrize("name", TOYS)
def test_recorded_experts_succeed_and_differ(name):
    env = envs.make(name, 100)
    ran = rollout(env.expert(), env, 100, seed=5)
    assert np.mean([e.metadata["success"] for e in ran]) >= 0.98
    assert len({len(e) for e in ran}) > 3
    for e in ran:
        ended = e.steps["next.terminated"] | e.steps["next.truncated"]
        assert ended[-1] and not ended[:-1].any() and len(e) <= env.metadata["limit"]


# -- fork ---------------------------------------------------------------------------------------------------------


def test_the_mean_of_both_ways_round_the_fork_is_the_pillar():
    @dataclass(frozen=True)
    class Mean(Actor):
        def start(self, obs, key):
            return {str(s): ForkExpert(s, 0.0).start(obs, key) for s in (1, -1)}

        def act(self, obs, state):
            return sum(ForkExpert(s, 0.0).act(obs, state[str(s)])[0] for s in (1, -1)) / 2, state
    ran = rollout(Mean(), Fork(50), 200, seed=0)
    assert not any(e.metadata["success"] for e in ran)
    assert all(e.steps["next.reward"][-1] == -1 for e in ran)


def test_both_ways_are_taken_equally_often():
    ran = rollout(ForkExpert(), Fork(400), 400, seed=1)
    left = sum(e.steps["observation.state"][:, 1].mean() > 0 for e in ran)
    assert 160 <= left <= 240  # four standard deviations of a fair coin
    assert all(e.steps["observation.state"][:, 1].mean() > 0 for e in rollout(ForkExpert(side=1), Fork(20), 20))


def test_the_side_says_nothing_of_the_first_unsteadiness():
    key, obs = keys(0, range(4000)), {"observation.state": torch.zeros(4000, 2)}
    state = ForkExpert().start(obs, key)
    shaken = ForkExpert(noise=1.0).act(obs, state)[0] - ForkExpert(noise=0.0).act(obs, state)[0]
    alike = (shaken.sign() == state["way"].unsqueeze(1)).float().mean(0)
    assert (alike - 0.5).abs().max() < 4.5 * 0.5 / 4000 ** 0.5


def test_the_fork_moves_by_velocity_and_clips_it():
    env = Fork(2)
    start = env.reset(torch.arange(2), keys(0, [0, 1]))["observation.state"]
    seen = env.step(torch.tensor([[0.5, -0.25], [9.0, 0.0]])).obs["observation.state"]
    torch.testing.assert_close(seen - start, torch.tensor([[0.05, -0.025], [0.1, 0.0]]), atol=1e-7, rtol=0)


def test_gusts_are_drawn_by_the_row():
    a, b = (rollout(ForkExpert(noise=0.0), Fork(n, gust=0.3), 6, seed=2) for n in (1, 6))
    assert a.fingerprint() == b.fingerprint() != rollout(ForkExpert(noise=0.0), Fork(6), 6, seed=2).fingerprint()


# -- particle -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 5])
def test_the_particle_follows_its_controller(dim):
    """Ten explicit Euler steps of x'' = 10 (u - x) - 5 x' are a power of one matrix."""
    env = Particle(3, dim=dim)
    env.reset(torch.arange(3), keys(0, range(3)))
    env.step(torch.rand(3, dim, generator=torch.Generator().manual_seed(0)))
    at, speed = (env.state[k].astype(np.float64) for k in ("at", "speed"))
    target = np.linspace(0.1, 0.9, dim)
    env.step(torch.from_numpy(np.tile(target, (3, 1))))
    dt = 0.005
    power = np.linalg.matrix_power(np.array([[1, dt], [-10 * dt, 1 - 5 * dt]]), 10)
    offset, after = np.einsum("ij,jbd->ibd", power, np.stack([at - target, speed]))
    np.testing.assert_allclose(env.state["at"], target + offset, atol=1e-6)
    np.testing.assert_allclose(env.state["speed"], after, atol=1e-6)


def test_the_order_of_the_goals_counts():
    @dataclass(frozen=True)
    class Only(Actor):
        goal: int

        def start(self, obs, key):
            return {}

        def act(self, obs, state):
            return obs["observation.state"].chunk(4, 1)[self.goal], state
    for goal, visited in ((2, 1.0), (3, 0.0)):
        ran = rollout(Only(goal), Particle(50), 50, seed=0)
        assert not any(e.metadata["success"] and len(e) < 5 for e in ran)
        flags = [e.steps["simulator.state"][-1, 0] for e in ran]
        assert np.mean(np.array(flags) == visited) > 0.9  # the other goal may lie on the way


def test_a_particle_that_must_stay_succeeds_at_the_end_only():
    @dataclass(frozen=True)
    class Passing(Actor):
        """Visits both goals and goes back to the first."""

        def start(self, obs, key):
            return {"step": 0}

        def act(self, obs, state):
            goals = obs["observation.state"].chunk(4, 1)[2:]
            return goals[state["step"] // 30 % 2], {"step": state["step"] + 1}
    for steps, succeeds in ((60, True), (90, False)):
        ran = rollout(Passing(), Particle(20, steps, stay=True), 20, seed=0)
        assert {len(e) for e in ran} == {steps}
        assert sum(e.metadata["success"] for e in ran) >= 18 if succeeds else not any(
            e.metadata["success"] and np.linalg.norm(e.steps["observation.state"][0, 4:6]
                                                     - e.steps["observation.state"][0, 6:8]) > 0.1 for e in ran)


def test_particles_in_many_dimensions_are_named():
    assert envs.make("particle:8").metadata["env"] == "particle:8"
    assert envs.make("particle").features["observation.state"].names[:3] == ("at.x", "at.y", "speed.x")
    with pytest.raises(UserError, match="at least 2 dimensions"):
        envs.make("particle:1")


# -- push ---------------------------------------------------------------------------------------------------------


def _placed(disc, block, angle, goal=(0.9, 0.9), rows=1):
    env = Push(rows)
    whole = np.float32([*disc, *block, math.cos(angle), math.sin(angle), *goal])
    env.restore(torch.arange(rows), {"observation.state": torch.from_numpy(np.tile(whole, (rows, 1)))})
    return env


def _depth(env):
    return push.contact(*(env.state[k].T for k in ("disc", "block", "heading")))[0]


def test_a_push_through_the_centre_moves_the_block_straight():
    env = _placed((0.5 - push.HALF - push.DISC, 0.5), (0.5, 0.5), 0.0)
    env.step(torch.tensor([[0.25, 0.0]]))
    np.testing.assert_allclose(env.state["block"], [[0.525, 0.5]], atol=1e-6)
    np.testing.assert_allclose(env.state["heading"], [[1, 0]], atol=1e-6)


@pytest.mark.parametrize(("arm", "across"), [(0.02, 0.0), (-0.03, 0.0), (0.0, 0.004)])
def test_a_contact_that_sticks_moves_as_the_disc_does(arm, across):
    """Contact displacement (I + J J^T / c^2) f = d, with J = z x p, and the block's motion is f, J.f / c^2."""
    env = _placed((0.5 - push.HALF - push.DISC, 0.5 - arm), (0.5, 0.5), 0.0)
    step = np.array([0.001, across * 0.1])
    env.step(torch.from_numpy(step[None] * 10))
    lever = np.array([arm, -push.HALF])
    force = np.linalg.solve(np.eye(2) + np.outer(lever, lever) / push.LEVER ** 2, step)
    assert abs(force[1]) < push.FRICTION * force[0]  # it does stick
    np.testing.assert_allclose(env.state["block"][0] - 0.5, force, atol=2e-5)
    turned = math.atan2(env.state["heading"][0, 1], env.state["heading"][0, 0])
    assert turned == pytest.approx(lever @ force / push.LEVER ** 2, abs=4e-5)


def test_a_glancing_disc_slides_when_the_contact_cannot_hold_it():
    """Then the sideways push is 0.3 of the normal one, in the direction in which the disc slides."""
    env = _placed((0.5 - push.HALF - push.DISC, 0.5), (0.5, 0.5), 0.0)
    env.step(torch.tensor([[0.01, 0.2]]))
    along, across = (env.state["block"] - 0.5)[0]
    assert across / along == pytest.approx(push.FRICTION, rel=0.05)


unit = st.floats(-1, 1, width=32)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), first=st.tuples(unit, unit), second=st.tuples(unit, unit))
def test_the_disc_is_never_in_the_block_nor_beyond_the_table(seed, first, second):
    env = Push(64)
    env.reset(torch.arange(64), keys(seed, range(64)))
    for n in range(24):
        aim = torch.from_numpy(env.state["block"] - env.state["disc"])
        before = {k: v.copy() for k, v in env.state.items()}
        env.step(0.25 * aim / aim.norm(dim=1, keepdim=True) + 0.1 * torch.tensor(first if n % 2 else second))
        s = env.state
        assert _depth(env).max() < 1e-6
        assert (s["block"] >= push.MARGIN - 1e-6).all() and (s["block"] <= 1 - push.MARGIN + 1e-6).all()
        assert np.abs(np.linalg.norm(s["heading"], axis=1) - 1).max() < 1e-5
        far = np.linalg.norm(before["disc"] - before["block"], axis=1) > push.REACH + 0.05
        assert (s["block"][far] == before["block"][far]).all() and (s["heading"][far] == before["heading"][far]).all()
        # It goes round or pushes; it does not jump to the other side.
        assert (((before["disc"] - before["block"]) * (s["disc"] - s["block"])).sum(1) > 0).all()


@settings(max_examples=40, deadline=None)
@given(angle=st.floats(0, 6.3), arm=st.floats(-0.1, 0.1), steer=st.floats(-0.25, 0.25))
def test_the_mirror_image_of_a_push_is_the_push_of_the_mirror_image(angle, arm, steer):
    a, b = (_placed((0.37, 0.5 + sign * arm), (0.5, 0.5), sign * angle) for sign in (1, -1))
    for _ in range(8):
        a.step(torch.tensor([[0.2, steer]]))
        b.step(torch.tensor([[0.2, -steer]]))
    flip = np.float32([1, -1])
    np.testing.assert_allclose(a.state["block"] - 0.5, (b.state["block"] - 0.5) * flip, atol=1e-4)
    np.testing.assert_allclose(a.state["heading"], b.state["heading"] * flip, atol=2e-3)


def test_the_table_holds_the_block_and_the_block_the_disc():
    env = _placed((0.7, 0.5), (0.85, 0.5), 0.0, goal=(0.2, 0.2))
    for _ in range(20):
        env.step(torch.tensor([[0.25, 0.0]]))
    assert env.state["block"][0, 0] == pytest.approx(1 - push.MARGIN)
    assert env.state["disc"][0, 0] == pytest.approx(1 - push.MARGIN - push.HALF - push.DISC, abs=1e-5)


# -- pictures -----------------------------------------------------------------------------------------------------


def _cover(image, color):
    """How much of the picture has the color of a shape, 1 being one pixel."""
    paper, ink = np.float64([246, 244, 238]), np.float64(color)
    return ((image - paper) @ (ink - paper) / ((ink - paper) @ (ink - paper))).sum()


def test_shapes_have_their_areas():
    canvas = Canvas(2, 64, (0.0, 0.0), 1.0)
    canvas.circle(np.float32([[0.5, 0.5], [0.31, 0.72]]), 0.2, (0, 0, 0))
    for image in canvas.image:
        assert _cover(image, (0, 0, 0)) / 64 ** 2 == pytest.approx(math.pi * 0.04, rel=0.01)
    for angle in (0.0, 0.3, 1.2):
        canvas = Canvas(1, 64, (0.0, 0.0), 1.0)
        canvas.box(np.float32([[0.5, 0.5]]), np.float32([[math.cos(angle), math.sin(angle)]]), (0.2, 0.1), (0, 0, 0))
        assert _cover(canvas.image[0], (0, 0, 0)) / 64 ** 2 == pytest.approx(0.08, rel=0.02)


def test_pictures_show_where_things_are():
    canvas = Canvas(3, 32, (0.0, 0.0), 1.0)
    canvas.circle(np.float32([[0.25, 0.75], [0.75, 0.25], [-0.5, 0.5]]), 0.1, (255, 0, 0))
    red = (canvas.image[..., 1] < 10)
    assert red[0, 8, 8] and not red[0, 24, 24]  # y is up, so 0.75 is near the top
    assert red[1, 24, 24] and not red[1, 8, 8]
    assert not red[2].any()  # beyond the edge
    assert (canvas.image[2] == (246, 244, 238)).all()


@pytest.mark.parametrize("name", TOYS)
def test_maps_can_be_drawn(name):
    env = envs.make(name, 4)
    obs = env.reset(torch.arange(4), keys(0, range(4)))
    plane, frame = env.map(), env.frame(0)
    assert frame.shape == (256, 256, 3) and len(np.unique(frame.reshape(-1, 3), axis=0)) > 3
    for mark in plane.get("marks", ()):
        column, i, j = mark["column"]
        assert obs[column][:, [i, j]].shape == (4, 2)
    assert any(not np.array_equal(frame, env.frame(i)) for i in range(1, 4))


# -- four rooms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", four_rooms.STYLES)
def test_every_style_keeps_the_contract(style):
    check_env(lambda rows: envs.make(f"four_rooms:{style}", rows, limit=25))


def test_every_cell_is_reached_and_rooms_part_at_doors_only():
    steps = four_rooms.STEPS.reshape(64, 64)
    assert np.isfinite(steps).all() and (steps == steps.T).all()
    assert steps[0, 63] == 14 and steps[0, 4] == 6 and steps[8 * 3 + 3, 8 * 4 + 3] == 5  # round by the door at (3, 1)
    env = four_rooms.FourRooms(1)
    env.restore(torch.tensor([0]), {"observation.state": torch.tensor([[3.9, 2.5]]),
                                    "observation.goal": torch.tensor([[7.5, 7.5]])})
    assert env.step(torch.tensor([[2.0, 0.0]])).obs["observation.state"][0].tolist() == pytest.approx([3.9, 2.5])
    env.restore(torch.tensor([0]), {"observation.state": torch.tensor([[3.9, 1.5]]),
                                    "observation.goal": torch.tensor([[7.5, 7.5]])})
    assert env.step(torch.tensor([[2.0, 0.0]])).obs["observation.state"][0].tolist() == pytest.approx([4.1, 1.5])


def test_styles_differ_in_what_their_episodes_show():
    def rooms_and_success(style):
        ran = rollout(envs.make(f"four_rooms:{style}", 60).expert(), envs.make(f"four_rooms:{style}", 60), 60, seed=3)
        at = [(e.steps["observation.state"] > 4) @ [1, 2] for e in ran]
        return np.mean([len(np.unique(a)) for a in at]), [e.metadata.get("success") for e in ran], ran
    rooms, success, _ = rooms_and_success("navigate")
    assert rooms < 2.5 and all(success)
    rooms, success, _ = rooms_and_success("play")
    assert rooms > 2.5 and set(success) == {None}
    rooms, success, ran = rooms_and_success("stitch")
    cells = [maze.cell_of(e.steps["observation.state"], 8) @ [8, 1] for e in ran]
    far = max(four_rooms.STEPS.reshape(64, 64)[c[0], c].max() for c in cells)
    assert rooms < 2.2 and far <= four_rooms.REACH + 2  # of 14; the way between two waypoints may lead farther
    assert 0.3 < np.mean(rooms_and_success("mixed")[1]) < 0.8


# -- missions of several stages ------------------------------------------------------------------------------------


def test_missions_keep_what_a_stage_needs_within_reach():
    env = GridworldTasks(300, missions=(0, 3, 5))
    obs = env.reset(torch.arange(300), keys(0, range(300)))
    state = env.state
    assert set(state["mission"]) == {0, 3, 5}
    where = np.concatenate([state["at"][:, None], state["things"]], 1)
    assert (where[:, 0, 0] < 4).all() and (where[:, 1, 0] < 4).all() and (where[..., 0] != 4).all()
    assert all(len(np.unique(cells, axis=0)) == 4 for cells in where)
    for mission, ball, pad in zip(state["mission"], where[:, 2, 0], where[:, 3, 0], strict=True):
        order = gridworld_tasks.ORDERS[mission]
        door = order.index(gridworld_tasks.DOOR)
        assert ball < 4 or order.index(gridworld_tasks.BALL) > door
        assert pad < 4 or order.index(gridworld_tasks.PAD) > door
    text = bytes(obs["observation.task"][0].numpy()).rstrip(b"\0").decode()
    assert text == gridworld_tasks.MISSIONS[state["mission"][0]] and "take the key" in text


def test_a_stage_before_its_turn_fails_and_a_slip_must_be_tried_again():
    mission = gridworld_tasks.ORDERS.index((2, 0, 1, 3))  # the ball first
    env = GridworldTasks(2)
    task = torch.from_numpy(gridworld_tasks._TEXTS[[mission] * 2])
    env.restore(torch.arange(2), {
        "observation.task": task, "observation.state": torch.tensor([[1.0, 1, 0, 0, 0, 0], [2, 2, 0, 0, 0, 0]]),
        "observation.environment_state": torch.tensor([[1.0, 1, 2, 2, 3, 3, 0]] * 2),
        "simulator.state": torch.zeros(2, 2)})
    out = env.step(torch.tensor([[4], [4]]))  # the key, and the ball
    assert out.reward.tolist() == [-1, 0] and out.terminated.tolist() == [True, False]
    assert out.obs["simulator.subgoal"][1].item() == gridworld_tasks.KEY and out.obs["observation.state"][1, 4] == 1
    env = GridworldTasks(200, slip=0.5)
    used = [int((e.steps["action"] == 4).sum()) for e in rollout(replace(env.expert(), noise=0.0), env, 200)]
    assert 7.3 < np.mean(used) < 8.7  # four stages at 1/2: 8 on average, with standard error 0.2


@pytest.mark.parametrize("options", [{"limit": 22, "slip": 0.5}, {"limit": 20},
                                     {"limit": 18, "slip": 0.5, "missions": (5,)},
                                     {"limit": 26, "slip": 0.3, "missions": (0, 1)}])
def test_the_optimum_of_missions_in_little_time_is_what_the_expert_reaches(options):
    env = GridworldTasks(2000, **options)
    successes = sum(e.metadata["success"] for e in rollout(replace(env.expert(), noise=0.0), env, 4000))
    interval = binomtest(successes, 4000).proportion_ci(0.999)
    assert interval.low < env.metadata["optimum"] < interval.high and interval.high - interval.low < 0.06
    assert 0.1 < env.metadata["optimum"] < 0.9


def test_the_optimum_of_missions_is_1_where_there_is_time():
    longest = max(np.flatnonzero(gridworld_tasks._walk_distribution(m)).max() for m in range(6)) + 4
    for limit in (gridworld_tasks.FARTHEST + 4, gridworld_tasks.FARTHEST + 3, longest):
        assert GridworldTasks(1, limit=limit).metadata["optimum"] == 1.0
    assert GridworldTasks(1, limit=longest - 8).metadata["optimum"] < 1.0
    assert GridworldTasks(1, limit=4, slip=0.5).metadata["optimum"] == 0.0  # the walker begins elsewhere


def test_a_mission_in_other_words_is_refused():
    with pytest.raises(UserError, match="'dance' is not a mission"):
        gridworld_tasks.parse_missions(np.frombuffer(b"dance".ljust(80, b"\0"), np.uint8)[None])
    with pytest.raises(UserError, match="0 to 5"):
        GridworldTasks(1, missions=(6,))


# -- a peg and a hole --------------------------------------------------------------------------------------------


def peg_at(env, u, v, turn, outline=0):
    hole = np.array([[0.1, -0.2, 0.7]], np.float32)
    pose = peg_insertion._to_world(np.array([[u, v, turn]], np.float32), hole, np.array([outline]))
    return env.restore(torch.tensor([0]), {"observation.state": torch.from_numpy(pose), "observation.environment_state":
                                           torch.from_numpy(np.concatenate([hole, peg_insertion.RADII[[outline]]], 1))})


def in_hole(env, u, v, turn=0.0):
    """The pose that the hole sees after one step of a velocity that it sees."""
    cos, sin = np.cos(0.7), np.sin(0.7)
    out = env.step(torch.tensor([[cos * u - sin * v, sin * u + cos * v, turn]], dtype=torch.float32))
    s = env.state
    return peg_insertion.to_hole(s["peg"], s["hole"], s["outline"])[0], out


def test_a_peg_slides_along_the_wall_and_goes_in_where_it_fits():
    env = PegInsertion(1, tolerance=0.01)
    for offset, turn, depth in ((0.02, 0.0, 0.0), (0.005, 0.0, -0.04), (0.005, 0.04, 0.0), (0.0, 0.04, -0.04)):
        peg_at(env, offset, 0.01, turn, 3)
        pose, out = in_hole(env, 0, -1)
        assert pose[:2] == pytest.approx([offset, depth], abs=1e-5) and not out.terminated[0]
    peg_at(env, 0.02, 0.0, 0.0)
    assert in_hole(env, 0.3, -0.7)[0][:2] == pytest.approx([0.035, 0.0], abs=1e-5)  # it slides
    peg_at(env, 0.0, -0.05, 0.0)
    pose, _ = in_hole(env, 1, 0, 1)  # inside, the hole keeps it in line
    assert abs(pose[0]) + 0.2 * abs(pose[2]) <= 0.01 + 1e-5
    peg_at(env, 0.0, -0.06, 0.0)
    pose, out = in_hole(env, 0, -1)
    assert pose[1] == pytest.approx(-0.1, abs=1e-5) and out.reward.tolist() == [1] and out.terminated[0]


@pytest.mark.parametrize("tolerance", [0.1, 0.01, 0.001])
def test_the_expert_inserts_at_every_tolerance(tolerance):
    env = PegInsertion(200, tolerance=tolerance)
    assert all(e.metadata["success"] for e in rollout(replace(env.expert(), noise=0.0), env, 200))


def test_the_outline_decides_how_the_peg_must_stand():
    """An expert that takes every outline for the first one only works with it."""
    @dataclass(frozen=True)
    class Blind(Actor):
        expert: Actor

        def start(self, obs, key):
            return self.expert.start(obs, key)

        def act(self, obs, state):
            around = obs["observation.environment_state"].clone()
            around[:, 3:] = torch.from_numpy(peg_insertion.RADII[2])
            return self.expert.act({**obs, "observation.environment_state": around}, state)
    for outline, works in ((2, True), (0, False)):
        env = PegInsertion(40, outlines=(outline,))
        ran = rollout(Blind(replace(env.expert(), noise=0.0)), env, 40)
        assert {e.metadata["success"] for e in ran} == {works} and {e.metadata["outline"] for e in ran} == {outline}
    assert peg_insertion.outline_of(peg_insertion.RADII).tolist() == [0, 1, 2, 3, 4]


# -- arms in the plane -------------------------------------------------------------------------------------------


def test_joints_turn_all_links_behind_them():
    lengths = np.array([0.5, 0.3, 0.2], np.float32)
    at = planar_arms.joint_positions(np.array([[np.pi / 2, -np.pi / 2, np.pi / 2]], np.float32), lengths)
    np.testing.assert_allclose(at[0], [[0, 0], [0, 0.5], [0.3, 0.5], [0.3, 0.7]], atol=1e-6)
    assert all(sum(arm) == pytest.approx(1) for arm in ARMS.values())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("arm", ["two", "six", "human"])
def test_inverse_kinematics_solves_every_task_with_every_arm(task, arm):
    env = PlanarArms(200, task=task, arm=arm)
    assert all(e.metadata["success"] for e in rollout(replace(env.expert(), noise=0.0), env, 200))


def test_the_expert_moves_the_tip_where_it_wants():
    """Without damping, the tip of a bent arm moves straight at the target; joints turn as little as that takes."""
    env = PlanarArms(1, arm="four")
    joints, target = torch.tensor([[0.3, 0.5, -0.7, 0.9]]), torch.tensor([[0.55, 0.45]])
    tip = torch.from_numpy(planar_arms.joint_positions(joints.numpy(), env.lengths)[:, -1])
    obs = env.restore(torch.tensor([0]), {"observation.state": torch.cat([joints, tip], 1),
                                          "observation.environment_state": target})
    expert = replace(env.expert(), noise=0.0, damping=0.0)
    action, _ = expert.act(obs, expert.start(obs, keys(0, [0])))
    env.step(1e-3 * action)
    moved, ahead = torch.from_numpy(env.tip()) - tip, target - tip
    assert torch.nn.functional.cosine_similarity(moved, ahead).item() == pytest.approx(1, abs=1e-4)
    null = torch.linalg.svd(_jacobian(joints, env.lengths))[2][2:]  # motions of the joints that leave the tip in place
    assert (null @ action[0]).abs().max() < 1e-5


def _jacobian(joints, lengths):
    def tip(q):
        angle = q.cumsum(0)
        return torch.stack([(torch.from_numpy(lengths) * f(angle)).sum() for f in (torch.cos, torch.sin)])
    return torch.autograd.functional.jacobian(tip, joints[0])


def test_a_target_is_followed_only_while_it_is_near():
    env = PlanarArms(1, task="track")
    env.state |= {"center": env.tip() - np.float32([[0, 0.2]]), "target": env.tip(), "followed": np.array([13])}
    out = env.step(torch.zeros(1, 3))
    assert env.state["followed"].tolist() == [14] and not out.terminated[0]
    out = env.step(torch.zeros(1, 3))  # two steps of 0.06 rad are 24 mm: still near
    assert out.info["success"].tolist() == [True] and out.reward.tolist() == [1]
    env.state |= {"target": env.state["center"] - (env.tip() - env.state["center"]), "followed": np.array([13])}
    env.step(torch.zeros(1, 3))
    assert env.state["followed"].tolist() == [0]


def test_two_cameras_show_the_same_scene():
    env = PlanarArms(2, task="push", arm="human", camera_size=32)
    obs = env.reset(torch.arange(2), keys(0, [1, 2]))
    top, side = (obs[f"observation.images.{view}"] for view in ("top", "side"))
    assert top.shape == side.shape == (2, 32, 32, 3) and (top != side).any()
    again = env.restore(torch.tensor([1]), {k: obs[k][:1] for k in env.state_columns})
    assert torch.equal(again["observation.images.top"][1], top[0])
    with pytest.raises(UserError, match="there is no arm 'seven'"):
        PlanarArms(arm="seven")


# -- blocks on a table -------------------------------------------------------------------------------------------


def table(env, hand, blocks, mission, held=-1, closed=0.0):
    return env.restore(torch.tensor([0]), {
        "observation.state": torch.tensor([[*hand, closed]]), "simulator.state": torch.tensor([[mission, held]]),
        "observation.environment_state": torch.tensor([[v for at in blocks for v in at]])})


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("blocks", [1, 6])
def test_the_expert_puts_every_block_into_its_bin(control, blocks):
    env = Tabletop(300, control=control, blocks=blocks)
    ran = rollout(replace(env.expert(), noise=0.0), env, 300)
    assert all(e.metadata["success"] for e in ran)
    told = {bytes(e.steps["observation.task"][0]).rstrip(b"\0").decode() for e in ran}
    assert told == set(MISSIONS[:len(BINS) * blocks])  # every mission with these blocks is drawn


def test_blocks_begin_apart_and_below_the_bins():
    at = Tabletop(500, blocks=6).initial_state(keys(0, np.arange(500)))["blocks"]
    gaps = np.linalg.norm(at[:, :, None] - at[:, None], axis=3) + np.eye(6)
    assert gaps.min() > 2 * tabletop.BLOCK and at[..., 1].max() + tabletop.BLOCK < 0.9 - tabletop.BIN[1]


def test_a_hand_takes_a_block_only_by_closing_on_it():
    env, near, still = Tabletop(1, blocks=2), [(0.3, 0.3), (0.7, 0.3)], [0.0, 0.0]
    def step(*action):
        out = env.step(torch.tensor([action]))
        return out, env.state["held"][0]
    table(env, (0.33, 0.3), near, 0)
    assert step(*still, 1.0)[1] == 0
    assert env.state["blocks"][0, 0] == pytest.approx([0.33, 0.3])  # it jumps into the hand
    assert step(1.0, 0.0, 1.0)[1] == 0 and env.state["blocks"][0, 0] == pytest.approx([0.41, 0.3])
    assert step(*still, -1.0)[1] == -1 and step(1.0, 0.0, -1.0)[1] == -1
    assert env.state["blocks"][0, 0] == pytest.approx([0.41, 0.3])
    table(env, (0.36, 0.3), near, 0)
    assert step(*still, 1.0)[1] == -1  # 0.06 m is too far,
    assert step(-0.75, 0.0, 1.0)[1] == -1  # and a closed hand takes nothing


def test_a_block_counts_when_it_is_let_go_in_the_right_bin():
    env, middle = Tabletop(1, blocks=2), [(0.5, 0.9), (0.7, 0.3)]
    for mission, done in (("put the red block into the middle bin", True),
                          ("put the red block into the left bin", False),
                          ("put the green block into the middle bin", False)):
        table(env, (0.5, 0.9), middle, MISSIONS.index(mission), held=0, closed=1.0)
        assert not env.step(torch.tensor([[0.0, 0.0, 1.0]])).terminated[0]
        out = env.step(torch.tensor([[0.0, 0.0, -1.0]]))
        assert (out.terminated[0], out.reward[0]) == (done, float(done))


def test_the_second_camera_shows_heights_and_hides_what_is_behind():
    env = Tabletop(1, blocks=2, camera_size=64)
    top, side = "observation.images.top", "observation.images.side"

    def middle(image, color):
        """Mean (line, column) of the pixels of a color. None if there are none."""
        found = np.argwhere((np.abs(image[0].numpy().astype(int) - COLORS[color]) < 3).all(2))
        return found.mean(0) if len(found) else None
    lies, hangs = (table(env, (0.5, 0.4), [(0.5, 0.4), (0.2, 0.6)], 0, held=held, closed=1.0) for held in (-1, 0))
    assert torch.equal(lies[top], hangs[top]) and not torch.equal(lies[side], hangs[side])
    lifted = middle(lies[side], "red") - middle(hangs[side], "red")
    assert lifted == pytest.approx([64 * (tabletop.HAND - tabletop.TABLE - 2 * tabletop.BLOCK), 0], abs=2)
    assert (middle(lies[side], "green") == middle(hangs[side], "green")).all()
    for green, shown, hidden in ((0.6, "red", "green"), (0.2, "green", "red")):
        seen = table(env, (0.9, 0.9), [(0.5, 0.4), (0.5, green)], 0)
        assert middle(seen[side], shown) is not None and middle(seen[side], hidden) is None
        assert middle(seen[top], hidden) is not None
    assert not any("images" in name for name in Tabletop(1).features)


def test_a_click_says_the_same_as_the_words():
    words, click = Tabletop(20), Tabletop(20, instruction="click")
    told, clicked = (e.reset(torch.arange(20), keys(0, range(20))) for e in (words, click))
    for row in range(20):
        text = bytes(told["observation.task"][row].numpy()).rstrip(b"\0").decode()
        _, _, color, _, _, _, side, _ = text.split()
        block = told["observation.environment_state"][row].reshape(-1, 2)[list(COLORS).index(color)]
        wanted = [*block.tolist(), *tabletop.CENTERS[BINS.index(side)]]
        assert clicked["observation.click"][row].tolist() == pytest.approx(wanted)
    with pytest.raises(UserError, match="there is no control 'keys'"):
        Tabletop(control="keys")


# -- names --------------------------------------------------------------------------------------------------------


def test_unknown_names_and_options_say_what_there_is():
    with pytest.raises(UserError, match="did you mean 'fork'"):
        envs.make("frok")
    with pytest.raises(UserError, match="CartPole-v1"):
        envs.make("cartpole-v1")
    with pytest.raises(UserError, match="limt"):
        envs.make("fork", limt=3)
    assert envs.names() == ("fork", "particle", "push", "push-images", "blocks", "memory", "maze", "arms", "drive",
                            "words", "tabular", "four_rooms", "gridworld_tasks", "peg_insertion", "planar_arms",
                            "tabletop")


def test_a_factory_outside_needs_trust(tmp_path, monkeypatch):
    (tmp_path / "stranger_envs.py").write_text(
        "from understudy.envs.toys.fork import Fork\n"
        "import gymnasium\n"
        "def fork(rows, limit=7): return Fork(rows, limit=limit)\n"
        "def pole(rows): return gymnasium.make('CartPole-v1')\n"
        "def poles(rows): return gymnasium.make_vec('CartPole-v1', rows, vectorization_mode='sync')\n"
        "def wrong(rows): return 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UntrustedCode, match="--trust stranger_envs"):
        envs.make("stranger_envs:fork")
    trust = ("stranger_envs",)
    assert envs.make("stranger_envs:fork", 3, trust, limit=9).metadata["limit"] == 9
    for factory in ("pole", "poles"):
        env = envs.make(f"stranger_envs:{factory}", 3, trust)
        assert env.rows == 3 and env.features["action"].num_classes == (2,)
    for name, words in (("stranger_envs:wrong", "returned int"), ("stranger_envs:none", "has no function 'none'"),
                        ("stranger_envs.sub:f", "there is no module")):
        with pytest.raises(UserError, match=words):
            envs.make(name, 1, trust)


def test_columns_that_restoring_needs_are_named():
    env = envs.make("push-images", 2)
    with pytest.raises(UserError, match="simulator.state"):
        env.restore(torch.tensor([0]), {"observation.state": torch.zeros(1, 2)})
    with pytest.raises(UserError, match="expected shape"):
        envs.make("fork").restore(torch.tensor([0]), {"observation.state": torch.zeros(1, 3)})
    with pytest.raises(UserError, match=r"have shape \(2, 3\), but must have shape \(2, 2\)"):
        envs.make("fork", 2).step(torch.zeros(2, 3))


def test_a_thousand_copies_step_as_one():
    """Vectorised means that a thousand rows cost far less than a thousand times one."""
    for name in ("fork", "particle", "push"):
        took = {}
        for rows in (1, 1000):
            env = envs.make(name, rows, limit=10**6)
            env.reset(torch.arange(rows), keys(0, range(rows)))
            action = torch.zeros(rows, 2)
            began = time.process_time()
            for _ in range(30):
                env.step(action)
            took[rows] = time.process_time() - began
        assert took[1000] < 100 * took[1]
