"""Behavior metrics: closed forms, published values, planted structure, and second computations."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from understudy import make, rollout
from understudy.core import Feature, UserError, normal
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs.base import Env, Renderable, StepResult
from understudy.envs.toys.fork import Fork, ForkExpert
from understudy.evaluate.behavior import clearance, modes, motion
from understudy.evaluate.behavior.clusters import find_clusters, silhouette
from understudy.evaluate.behavior.demo_distance import DemonstrationIndex, discriminator_accuracy, distribution_distance
from understudy.evaluate.behavior.latency import measure_latency
from understudy.evaluate.behavior.scaling import TrajectoryScaling, evenly_spaced, resample_rows
from understudy.evaluate.behavior_metrics import measure_behavior
from understudy.evaluate.failures import failure_figures, group_failures
from understudy.execute.actor import Actor, NoisyActor, ObservationWrapper, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import PlannerWrapper
from understudy.heads.regression import Regression
from understudy.nets.mlp import MLP
from understudy.policy import Planner, PolicyConfig
from understudy.testing import random_batch


def episode(states, actions=None, success=None, number=0, **meta):
    states = np.asarray(states, np.float32).reshape(len(states), -1)
    actions = np.zeros((len(states) - 1, 1), np.float32) if actions is None else np.asarray(actions, np.float32)
    steps = {"observation.state": states, "action": actions,
             "next.truncated": np.zeros(len(actions), bool)}
    if success is not None:
        steps["next.success"] = np.zeros(len(actions), bool)
        steps["next.success"][-1], meta = success, {**meta, "success": success}
    return Episode(steps, {"number": number, "seed": 0, "env": "made up", **meta})


@pytest.fixture(scope="module")
def shaky():
    """The fork's expert with a hand so unsteady that it fails often."""
    env = Fork(50)
    return rollout(NoisyActor(env.expert(), 2, 1.2), env, 60, seed=0)


# -- ways ---------------------------------------------------------------------------------------------------------


def test_entropy_is_that_of_the_paper():
    assert modes.mode_entropy([5, 5], 2) == pytest.approx(1)
    assert modes.mode_entropy([10], 2) == modes.mode_entropy([10, 0], 2) == 0
    assert math.isnan(modes.mode_entropy([], 2)) and math.isnan(modes.mode_entropy([0, 0], 2))
    assert modes.mode_entropy([3, 3, 3], 24) == pytest.approx(math.log(3) / math.log(24))  # its Avoiding has 24
    assert modes.mode_entropy([1, 3], 2) == pytest.approx(-(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)))
    for counts, ways in (([1, 2, 3], 2), ([4], 1)):
        with pytest.raises(ValueError):
            modes.mode_entropy(counts, ways)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 4))
def test_entropy_is_between_none_and_all_alike(counts, more):
    ways = max(len(counts) + more, 2)
    found = modes.mode_entropy(counts, ways)
    assert -1e-12 <= found <= 1 + 1e-12 and found == pytest.approx(modes.mode_entropy(counts[::-1], ways))
    assert modes.mode_entropy([10 * c for c in counts], ways) == pytest.approx(found)
    assert modes.mode_entropy([7] * ways, ways) == pytest.approx(1)


@pytest.mark.parametrize("ways,repeats", [(2, 2), (2, 8), (4, 5)])
def test_what_a_fair_policy_gets_is_the_mean_over_its_draws(ways, repeats):
    from itertools import product

    every = [
        modes.mode_entropy(np.bincount(draw, minlength=ways), ways) for draw in product(range(ways), repeat=repeats)
    ]
    assert modes.expected_entropy(ways, repeats) == pytest.approx(np.mean(every))


def test_the_forks_expert_goes_both_ways_from_one_start_and_one_side_does_not():
    env = Fork(7)
    both = modes.rollout_repeated_starts(env.expert(), env, 12, 16, seed=3)
    one = modes.rollout_repeated_starts(ForkExpert(side=-1), env, 12, 16, seed=3)
    assert modes.conditional_entropy(both, modes.fork_mode, 2).estimate == pytest.approx(
        modes.expected_entropy(2, 16), abs=0.06
    )
    assert modes.conditional_entropy(one, modes.fork_mode, 2).estimate == 0 and set(
        modes.mode_counts(one, modes.fork_mode)
    ) == {"right"}
    # Both sides, but always the same from one start: much entropy over all starts, none from each.
    decided = Dataset([replace(e, metadata={**e.metadata, "start": n}) for n in range(10) for e in [
        *rollout(ForkExpert(side=1 if n % 2 else -1), env, 3, seed=n)]])
    assert modes.mode_entropy(list(modes.mode_counts(decided, modes.fork_mode).values()), 2) == 1
    assert modes.conditional_entropy(decided, modes.fork_mode, 2).estimate == 0


def test_the_same_start_is_the_same_and_is_that_of_the_evaluation():
    env = make("fork", 5, gust=0.3)
    data = modes.rollout_repeated_starts(ForkExpert(side=1, noise=0.0), env, 3, 4, seed=9)
    plain = rollout(ForkExpert(side=1, noise=0.0), env, 3, seed=9)
    assert [e.metadata["start"] for e in data] == [n // 4 for n in range(12)]
    for e in data:  # a policy that draws nothing: luck is the start's, so all is the same
        assert np.array_equal(e.steps["observation.state"], plain[e.metadata["start"]].steps["observation.state"])
    noisy = modes.rollout_repeated_starts(ForkExpert(side=1), env, 1, 4, seed=9)
    assert len({e.steps["action"].tobytes() for e in noisy}) == 4
    other = modes.rollout_repeated_starts(ForkExpert(side=1), make("fork", 12, gust=0.3), 1, 4, seed=9)
    assert all(np.array_equal(a.steps["action"], b.steps["action"]) for a, b in zip(noisy, other, strict=True))
    for starts, repeats in ((0, 4), (3, 1)):
        with pytest.raises(UserError):
            modes.rollout_repeated_starts(ForkExpert(), env, starts, repeats)


def test_failures_count_in_no_way():
    data = Dataset([episode(np.zeros((3, 1)), success=s, mode=m, start=0) for s, m in (
        (True, "a"), (True, "b"), (False, "b"), (False, "b"), (True, -1))])
    assert modes.mode_counts(data, modes.reported_mode) == {"a": 1, "b": 1}
    assert modes.conditional_entropy(data, modes.reported_mode, 2).estimate == 1
    lost = episode(np.zeros((3, 1)), success=False, mode="a", start=1)
    # a start without success has none
    assert modes.conditional_entropy(data + Dataset([lost]), modes.reported_mode, 2).estimate == 1


def test_ways_that_an_environment_tells_of():
    data = Dataset([episode(np.zeros((3, 1)), mode=m, number=i) for i, m in enumerate((0, 0, 1, 2))])
    way, ways, source = modes.find_mode_function(None, data, None, None)
    assert (ways, source) == (3, "the environment") and modes.mode_counts(data, way) == {"0": 2, "1": 1, "2": 1}
    none = Dataset([episode(np.zeros((3, 1)), mode=-1)] * 2)  # failures went none of the ways that were shown
    way, ways, source = modes.find_mode_function(None, none, data, None)
    assert (ways, source) == (3, "the environment") and not modes.mode_counts(none, way)
    alike = Dataset([episode(np.zeros((3, 1)), mode=0)] * 4)
    assert modes.find_mode_function(None, alike, None, None) is None


def test_ways_found_by_clusters_are_the_sides_of_the_fork():
    env = Fork(50)
    data = rollout(env.expert(), env, 60, seed=1)
    shapes = modes.TrajectoryClusters.from_data(data, TrajectoryScaling.from_data(data))
    assert len(shapes.clusters) == 2
    pairs = {(shapes(e), modes.fork_mode(e)) for e in rollout(env.expert(), env, 60, seed=2)}
    assert len(pairs) == 2
    straight = rollout(ForkExpert(side=1), env, 60, seed=1)
    assert len(modes.TrajectoryClusters.from_data(straight, TrajectoryScaling.from_data(straight)).clusters) == 1


def test_overlap():
    assert modes.mode_overlap({"a": 5, "b": 5}, {"a": 50, "b": 50}) == pytest.approx(1)
    assert modes.mode_overlap({"a": 5}, {"a": 50, "b": 50}) == pytest.approx(0.5)
    assert modes.mode_overlap({"c": 5}, {"a": 50, "b": 50}) == 0 and math.isnan(modes.mode_overlap({}, {"a": 1}))


# -- clusters ------------------------------------------------------------------------------------------------------


def test_planted_clusters_are_found():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10]])
    which = rng.permutation(np.repeat([0, 1, 2], [20, 12, 5]))
    points = centres[which] + rng.normal(size=(37, 2))
    found = find_clusters(points)
    assert np.array_equal(found.labels, which) and found.silhouette > 0.7  # numbered by size
    assert np.allclose(found.centers, centres, atol=1.2) and found.assign([[9, 1], [1, 9]]).tolist() == [1, 2]
    assert len(find_clusters(rng.normal(size=(60, 3)))) == 1
    assert len(find_clusters(points[:1])) == len(find_clusters(points[:3])) == 1
    assert len(find_clusters(np.ones((9, 2)))) == 1


def test_outliers_are_no_groups():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(12, 2)), [[30, 0]], rng.normal(size=(9, 2)) + [0, 12]])
    found = find_clusters(points)
    assert len(found) == 3 and len(two := found.without_small(2)) == 2
    assert two.labels.tolist() == [0] * 13 + [1] * 9 and np.allclose(two.centers, found.centers[:2])
    assert len(find_clusters(points[:13]).without_small(2)) == 1 and found.without_small(1) is found


def test_silhouette_is_its_definition():
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(12, 2)), np.array([0] * 5 + [1] * 6 + [2])
    d = cdist(x, x)
    for i, mine in enumerate(labels):
        a = np.mean([d[i, j] for j in range(12) if labels[j] == mine and j != i]) if mine != 2 else None
        b = min(np.mean(d[i, labels == k]) for k in {0, 1, 2} - {mine})
        assert silhouette(d, labels)[i] == pytest.approx(0 if a is None else (b - a) / max(a, b))


# -- motion --------------------------------------------------------------------------------------------------------


def test_smoothness_is_as_its_authors_publish_it():
    """The two examples in the authors' own documentation of their code (github.com/siva82kb/SPARC)."""
    move = np.exp(-5 * np.arange(-1, 1, 0.01) ** 2)
    assert motion.spectral_arc_length(move, 100) == pytest.approx(-1.41403, abs=1e-5)
    assert motion.log_dimensionless_jerk(move, 100) == pytest.approx(-5.81636, abs=1e-5)


def test_the_smoothest_stroke_has_the_jerk_of_theory():
    """Of minimal jerk: 720 D^2 / T^5 integrated, with a largest speed of 15/8 D/T."""
    t = np.linspace(0, 1, 4001)
    speed = 30 * t**2 - 60 * t**3 + 30 * t**4
    assert motion.log_dimensionless_jerk(speed, 4000) == pytest.approx(-math.log(720 / 1.875**2), abs=3e-3)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 100), st.sampled_from([1.0, 2.0, 5.0]))
def test_smoothness_knows_neither_size_nor_pace(size, slower):
    move = np.sin(np.linspace(0, np.pi, 200)) ** 2
    for of in (motion.spectral_arc_length, motion.log_dimensionless_jerk):
        band = {"max_frequency": 10 / slower} if of is motion.spectral_arc_length else {}
        assert of(size * move, 100 / slower, **band) == pytest.approx(of(move, 100), rel=1e-6)


def test_halts_are_less_smooth():
    def strokes(n, rest):
        one = np.sin(np.linspace(0, np.pi, 60)) ** 2
        return np.concatenate([np.concatenate([one, np.zeros(rest)]) for _ in range(n)])
    found = [motion.spectral_arc_length(strokes(n, 20), 60) for n in (1, 2, 4)]
    assert found[0] > found[1] > found[2]
    for bad in (np.zeros(50), np.ones(3), np.array([1, 2, np.nan, 2, 1, 0, 1])):
        assert math.isnan(motion.spectral_arc_length(bad, 10)) and math.isnan(motion.log_dimensionless_jerk(bad, 10))


def test_spectral_arc_length_reads_nothing_above_half_the_rate():
    """A record of 10 Hz has a mirror image of its spectrum there, which would count as trembling."""
    move = np.sin(np.linspace(0, np.pi, 20)) ** 2
    assert motion.spectral_arc_length(move, 10, max_frequency=5) == motion.spectral_arc_length(
        move, 10, max_frequency=10
    )
    assert motion.spectral_arc_length(move, 10) > -2


def test_action_jerk():
    t = np.arange(20.0)[:, None]
    assert motion.action_jerk(t**2) == pytest.approx(0, abs=1e-9) and motion.action_jerk(t**3) == pytest.approx(6)
    assert math.isnan(motion.action_jerk(t[:3]))


def test_time_to_success_is_the_first_step_that_tells():
    e = episode(np.zeros((6, 1)), success=False)
    e.steps["next.success"][2:4] = True
    assert motion.success_step(e) == 3
    assert math.isnan(motion.success_step(episode(np.zeros((6, 1)), success=False)))


# -- nearness ------------------------------------------------------------------------------------------------------


def walk(rng, offset=0.0, n=30):
    states = rng.normal(size=(n + 1, 3)).cumsum(0) + offset
    return episode(states, rng.normal(size=(n, 2)))


def test_distances_are_those_of_every_pair():
    rng = np.random.default_rng(0)
    data, other = Dataset([walk(rng) for _ in range(5)]), walk(rng)
    view = TrajectoryScaling.from_data(data, Dataset([other]))
    near = DemonstrationIndex.from_data(data, view)
    states, actions = (np.concatenate([f(e)[:len(e)] for e in data]) for f in (view.states, view.actions))
    whose = np.repeat(np.arange(5), 30)
    for e, without in ((other, None), (data[3], 3)):
        kept = whose != without if without is not None else np.ones(150, bool)
        d = cdist(view.states(e)[:30], states[kept])
        order = np.argsort(d, 1)[:, :10]
        gap = [min(np.linalg.norm(actions[kept][j] - a) for j in o)
               for o, a in zip(order, view.actions(e), strict=True)]
        far, off = near.distances(e, exclude=without)
        assert np.allclose(far, d.min(1) / math.sqrt(3)) and np.allclose(off, np.array(gap) / math.sqrt(2))
    assert np.all(near.distances(data[3])[0] == 0)


def test_one_of_two_demonstrated_ways_is_near():
    states = np.zeros((21, 1)) + np.linspace(0, 1, 21)[:, None]
    data = Dataset([episode(states, np.full((20, 1), a)) for a in (-1.0, 1.0, -1.0, 1.0)])
    near = DemonstrationIndex.from_data(data, TrajectoryScaling.from_data(data))
    assert near.distances(data[0])[1].max() == 0  # and not 1, as from the mean
    middle = episode(states, np.zeros((20, 1)))
    assert np.allclose(near.distances(middle)[1], 1)  # the mean of both is what nobody did


def test_what_is_constant_or_no_number_counts_nothing():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(21, 2))
    states[:, 1] = 7.0
    data = Dataset([episode(states), episode(states)])
    assert TrajectoryScaling.from_data(data).n_components == 1
    moved = states.copy()
    moved[:, 1] += 5
    moved[3, 0] = np.nan
    far, _ = DemonstrationIndex.from_data(data, TrajectoryScaling.from_data(data)).distances(episode(moved))
    assert math.isnan(far[3]) and np.nanmax(far) == 0
    only = Dataset([Episode({"observation.images.a": np.zeros((4, 8, 8, 3), np.uint8), "action": np.zeros((3, 1))})])
    assert (
        TrajectoryScaling.from_data(only).columns == ()
        and DemonstrationIndex.from_data(only, TrajectoryScaling.from_data(only)) is None
    )


def test_who_moves_alike_is_not_told_apart():
    env = Fork(50)
    demos = rollout(env.expert(), env, 40, seed=1)
    view = TrajectoryScaling.from_data(demos)
    same = discriminator_accuracy(rollout(env.expert(), env, 40, seed=2), demos, view, 10.0)
    assert same.low < 0.5 < same.high
    calm = discriminator_accuracy(rollout(ForkExpert(noise=0.02), env, 40, seed=2), demos, view, 10.0)
    assert calm.estimate > 0.9
    # The very same episodes: each is its twin's nearest, and of the other kind.
    assert discriminator_accuracy(demos, demos, view, 10.0).estimate < 0.1
    assert discriminator_accuracy(demos[:9], demos, view, 10.0) is None


def test_earth_movers_distance():
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(41, 2)), np.cumsum(rng.choice([-1, 1], (40, 1)), 0)
    data = Dataset([episode(states, actions)] * 4)
    view = TrajectoryScaling.from_data(data)
    same = distribution_distance(data, data, view)
    assert (same.states, same.state_changes, same.between_demonstrations) == (0, 0, (0, 0))
    shifted = Dataset([episode(states + [3, 0], 2 * actions)] * 2)  # a shift costs its length, in one of two components
    found = distribution_distance(shifted, data, view)
    assert found.states == pytest.approx(3 / view.scale[0] / 2, rel=1e-5)
    assert found.state_changes == pytest.approx(1 / view.action_scale[0])  # every change is twice as large
    assert distribution_distance(data, data[:3], view) is None


# -- near misses ---------------------------------------------------------------------------------------------------


def test_margins_are_distances_from_the_edge():
    env = Fork()
    past = replace(episode([[0, 0], [0.6, 0.5], [1.0, 0.3]]), metadata={"success": True})
    assert clearance.success_margin(past, env) == pytest.approx(math.hypot(0.2, 0.3) - 0.1, abs=1e-6)
    assert (
        clearance.obstacle_clearance(past, env) == pytest.approx(0.25, abs=1e-6) and clearance.distance_unit(env) == "m"
    )
    assert clearance.success_margin(past, None) is None
    assert clearance.success_margin(replace(past, metadata={"margin": 0.7}), None) == 0.7


def test_of_several_goals_none_is_the_one_that_was_missed():
    for name in ("blocks", "memory"):
        env = make(name, 2)
        still = rollout(NoisyActor(None, env.features["action"].size, 0.0), env, 2)
        assert {clearance.success_margin(e, env) for e in still} == {None}


def test_margins_where_the_goal_differs_by_episode():
    env = make("push", 3)
    for e in rollout(env.expert(), env, 3, seed=0):
        assert e.metadata["success"] and clearance.success_margin(e, env) == 0
    still = rollout(NoisyActor(None, 2, 0.0), env, 3, seed=0)
    for e in still:
        s = e.steps["observation.state"][0]
        assert clearance.success_margin(e, env) == pytest.approx(np.hypot(*(s[2:4] - s[6:8])) - 0.03, abs=1e-6)
        assert clearance.obstacle_clearance(e, env) is None


# -- latency -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slow(Actor):
    """Plans every fifth step, for as long as it says."""

    seconds: float
    seen: list

    def start(self, obs, key):
        return {"count": torch.zeros_like(key)}

    def act(self, obs, state):
        import time

        self.seen.append({k: tuple(v.shape) for k, v in obs.items()})
        if state["count"].item() % 5 == 0:
            time.sleep(self.seconds)
        return torch.zeros(1, 2), {"count": state["count"] + 1, "record": {"x": torch.zeros(1)}}


def test_latency_is_of_one_robot_and_tells_the_slow_ones(shaky):
    seen = []
    found = measure_latency(Slow(0.03, seen), shaky, fps=40, decisions=30)
    assert found.decisions == 30 and found.median < 20 and 30 <= found.p95 <= found.max
    assert found.n_plans is None and found.describe().startswith("A decision takes")
    assert found.period == 25 and found.n_late >= 6 and found.period_fraction == found.p95 / 25
    assert all(s == {"observation.state": (1, 2), "last.reward": (1,)} for s in seen)
    short = measure_latency(Slow(0.03, []), shaky, decisions=10_000, seconds=0.2)
    assert 0 < short.decisions < 100 and short.period is short.n_late is short.period_fraction is None


@dataclass(frozen=True)
class SlowPlanner(PlannerWrapper):
    planner: Planner
    seconds: float

    def plan(self, obs, noise, guides=()):
        import time

        time.sleep(self.seconds)
        return self.planner.plan(obs, noise, guides)


def test_the_time_of_a_plan_is_not_that_of_a_step_of_its_chunk(shaky):
    config = PolicyConfig(Regression(), MLP(8), window=Window(horizon=5))
    policy, _ = random_batch(config, inputs={"observation.state": Feature("float32", (2,))})
    actor = ObservationWrapper(PolicyActor(SlowPlanner(policy.eval(), 0.03), RecedingHorizon(5)), {})
    found = measure_latency(actor, shaky, fps=40, decisions=40)
    assert (found.decisions, found.n_plans) == (40, sum(-(-n // 5) for n in counted_steps(shaky, 40)))
    assert found.between_plans < 20 < 30 <= found.median <= found.p95 <= found.max
    assert found.n_late >= found.n_plans
    assert found.describe().startswith("A plan takes 3") and "the steps between take" in found.describe()
    every = measure_latency(PolicyActor(SlowPlanner(policy, 0.0), RecedingHorizon(1)), shaky, decisions=20)
    assert every.n_plans == every.decisions == 20 and every.between_plans is None


def counted_steps(episodes, decisions):
    """Of each episode as many steps as are timed."""
    for e in episodes:
        yield min(len(e), decisions)
        decisions -= min(len(e), decisions)


# -- failures ------------------------------------------------------------------------------------------------------


def planted(rng):
    """Twelve that succeed, seven that stop half-way at once, four that go off to the other side and run out of time."""
    out = []
    for kind, count in (("won", 12), ("short", 7), ("off", 4)):
        for _ in range(count):
            n = {"won": 20, "short": 8, "off": 40}[kind] + int(rng.integers(0, 2))
            end = {"won": (1.0, 0.0), "short": (0.4, 0.0), "off": (-1.0, 2.0)}[kind]
            way = np.linspace(0, 1, n + 1)[:, None] * end + 0.02 * rng.normal(size=(n + 1, 2))
            e = episode(way, np.zeros((n, 1)), kind == "won", len(out))
            e.steps["next.truncated"][-1] = kind == "off"
            out.append(e)
    order = rng.permutation(len(out))
    return Dataset([replace(out[i], metadata={**out[i].metadata, "number": j}) for j, i in enumerate(order)])


def test_planted_failures_are_found():
    data = planted(np.random.default_rng(0))
    groups = group_failures(data)
    assert [len(g) for g in groups] == [7, 4]
    lengths = {e.metadata["number"]: len(e) for e in data}
    assert all(lengths[n] < 10 for n in groups[0].episode_indices) and all(
        lengths[n] >= 40 for n in groups[1].episode_indices
    )
    assert [g.n_timeouts for g in groups] == [0, 4] and groups[1].steps[0] >= 40
    assert (
        groups[0].end_location.startswith("ends with state.0") and "below that of successes" in groups[0].end_location
    )
    assert groups[1].end_location.startswith("ends with state.") and "at the time limit" in groups[1].describe()
    assert "seed 0" in groups[0].remedy(0) and all(str(n) in groups[1].remedy(0) for n in groups[1].episode_indices)


def test_few_failures_and_none():
    data = planted(np.random.default_rng(1))
    won = [e for e in data if e.metadata["success"]]
    lost = [e for e in data if not e.metadata["success"]]
    assert group_failures(Dataset(won)) == () and group_failures(Dataset([episode(np.zeros((3, 1)))])) == ()
    (one,) = group_failures(Dataset([*won, lost[0]]))
    assert one.episode_indices == (lost[0].metadata["number"],) and one.steps[0] == one.steps[2] == len(lost[0])
    assert len(group_failures(Dataset(lost[:3]))) == 1 and sum(map(len, group_failures(Dataset(lost)))) == 11


def test_failures_that_begin_elsewhere_and_those_that_drift():
    rng = np.random.default_rng(0)

    def go(start, end, ok, i, n=20):
        way = np.linspace(0, 1, n + 1)[:, None] * (np.array(end) - start) + start
        return episode(way + 0.02 * rng.normal(size=way.shape), np.zeros((n, 1)), ok, i)
    shown = Dataset([go((0, 0), (1, 0), True, i) for i in range(10)])
    won = [go((0, 0), (1, 0), True, i) for i in range(10)]
    far = [go((0, 3), (1, 3), False, 10 + i) for i in range(5)]
    drift = [go((0, 0), (1, 1), False, 20 + i) for i in range(5)]
    near = DemonstrationIndex.from_data(shown, TrajectoryScaling.from_data(shown))
    (elsewhere,) = group_failures(Dataset([*won, *far]), None, near)
    assert elsewhere.start_distance > 5 and "begin" in elsewhere.remedy(0) and "from starts like" in elsewhere.remedy(0)
    (drifts,) = group_failures(Dataset([*won, *drift]), None, near)
    assert (
        drifts.start_distance < 1.5
        and 1 <= drifts.divergence_step <= 8
        and f"step {drifts.divergence_step}" in drifts.remedy(0)
    )


def test_failures_on_a_map_say_where_and_are_drawn(shaky):
    env = Fork()
    groups = group_failures(shaky, env)
    assert sum(map(len, groups)) == sum(not e.metadata["success"] for e in shaky) > 0
    assert any("at the obstacle" in g.end_location for g in groups)
    drawn = failure_figures(groups, shaky, env)
    won = sum(e.metadata["success"] for e in shaky)
    at = {e.metadata["number"]: e for e in shaky}
    for g, pictures in zip(groups, drawn, strict=True):
        svg = pictures.trajectories.svg
        assert svg.count('class="cross"') == len(g) and svg.count('class="context"') == min(won, 50)
        assert [n for n, _ in pictures.strips] == list(g.episode_indices[:6])
        number, strip = pictures.success_strip
        assert at[number].metadata["success"] and strip.svg.count("<image") == 4
        # it is the success whose start is nearest to that of the most typical failure
        start = {n: e.steps["observation.state"][0] for n, e in at.items()}
        scale = np.concatenate([e.steps["observation.state"] for e in shaky]).std(0)
        far = {n: np.linalg.norm((start[n] - start[g.episode_indices[0]]) / scale)
               for n, e in at.items() if e.metadata["success"]}
        assert far[number] == pytest.approx(min(far.values()))
    assert failure_figures((), shaky, env) == []


class Dots(Renderable):
    """A dot at its key's place that moves by its action; nothing but a picture tells where. Never succeeds."""

    def __init__(self, rows=1):
        from understudy.core import Feature

        self.rows, self.at = rows, np.zeros(rows)
        self.features = {"observation.state": Feature("float32", (1,)), "action": Feature("float32", (1,))}
        self.metadata = {"env": "dots", "version": 1, "fps": None, "limit": 5, "success": "never"}
        self.clock = torch.zeros(rows, dtype=torch.int64)

    def reset(self, which, key):
        self.at[which.numpy()] = normal(key, torch.zeros_like(key), (1,)).numpy()[:, 0]
        self.clock[which] = 0
        return self._seen()

    def _seen(self):
        return {"observation.state": torch.from_numpy(self.at[:, None].astype(np.float32))}

    def step(self, action):
        self.at, self.clock = self.at + action.numpy()[:, 0], self.clock + 1
        none = torch.zeros(self.rows, dtype=torch.bool)
        return StepResult(self._seen(), torch.zeros(self.rows), none, self.clock >= 5, {"success": none})

    def frame(self, row):
        return np.full((8, 8, 3), int(np.clip(100 + 20 * self.at[row], 0, 255)), np.uint8)


@pytest.mark.parametrize("rows", [1, 4])
def test_what_cannot_be_restored_is_done_again(rows):
    env = Dots(rows)
    data = rollout(NoisyActor(None, 1, 1.0), env, 3, seed=0)
    groups = group_failures(data, env)
    assert len(groups) == 1
    from understudy.evaluate.failures import _rerender

    for e, seen in zip(data, _rerender(list(data), env), strict=True):
        assert [t for t, _ in seen] == [0, 2, 3, 5]
        for t, frame in seen:
            at = float(e.steps["observation.state"][t, 0])
            assert abs(int(frame[0, 0, 0]) - np.clip(100 + 20 * at, 0, 255)) <= 1
    pictures = failure_figures(groups, data, env)[0]
    assert [s.svg.count("<image") for _, s in pictures.strips] == [4] * min(len(data), 6)
    assert pictures.success_strip is None, "nothing succeeds there"
    assert pictures.trajectories.svg.count('class="cross"') == len(groups[0])  # of the one number there is, over time
    assert "state.0 of" in pictures.trajectories.alt_text


# -- together ------------------------------------------------------------------------------------------------------


def test_beside_puts_them_together(shaky):
    env = Fork(50)
    demos = rollout(env.expert(), env, 40, seed=-2)
    found = measure_behavior(shaky, env, demos, repeated=modes.rollout_repeated_starts(env.expert(), env, 4, 4))
    by = {m.key: m for m in found.metrics}
    won = [e for e in shaky if e.metadata["success"]]
    assert by["time_to_success"].n_episodes == len(won) and by["time_to_success"].unit == "s"
    assert by["time_to_success"].value.estimate == pytest.approx(np.mean([len(e) for e in won]) / 10)
    assert by["time_to_success"].demonstrations.estimate == pytest.approx(np.mean([len(e) for e in demos]) / 10)
    assert by["failures_margin"].n_episodes == 60 - len(won) and by["failures_margin"].demonstrations is None
    assert by["state_distance"].value.estimate > 2 * by["state_distance"].demonstrations.estimate
    assert (
        found.modes.n_modes == 2
        and found.modes.n_modes_found == 2
        and (found.modes.n_starts, found.modes.n_repeats) == (4, 4)
    )
    assert (
        sum(found.modes.counts.values()) <= len(won)
        and found.discriminator_accuracy.estimate > 0.8
        and not found.missing
    )
    document = found.to_json()
    assert set(document) == {"metrics", "modes", "discriminator_accuracy", "earth_movers_distance", "latency",
                             "failures", "missing", "scaled_by"}
    assert len(found.summary_lines()) == 4 + len(found.failures)


def test_a_figure_says_in_whose_units_it_is(shaky):
    """Smoothness is that of the path in these units: a component that varies little in the data counts more."""
    env = Fork(4)
    shown = rollout(env.expert(), env, 12, seed=0)
    for demonstrations, scaled_by, words in ((shown, "demonstrations", "over the demonstrations"),
                                             (None, "episodes", "over its own episodes")):
        found = measure_behavior(shaky, env, demonstrations)
        assert found.scaled_by == found.to_json()["scaled_by"] == scaled_by
        line, = (line for line in found.describe() if line.startswith("Smoothness, jerk and distances"))
        assert words in line
    state = "observation.state"
    stretched = shown.map(lambda e: e.replace({state: e.steps[state] * np.array([1, 9], np.float32)}))
    one, other = (next(m.value.estimate for m in measure_behavior(shaky, env, d).metrics if m.key == "smoothness")
                  for d in (shown, stretched))
    assert one != other


def test_beside_says_what_is_missing(shaky):
    alone = measure_behavior(shaky, Fork())
    assert alone.modes.demonstrations is None and alone.discriminator_accuracy is None
    assert any("--demonstrations" in w for w in alone.missing) and any("--repeats" in w for w in alone.missing)
    strange = Dataset([Episode({"observation.joints": np.random.default_rng(0).normal(size=(9, 4)),
                                "action": np.zeros((8, 2))})])
    found = measure_behavior(shaky, Fork(), strange)
    assert any("share no column" in w for w in found.missing)
    assert "state_distance" not in {m.key for m in found.metrics}


@pytest.mark.parametrize("episodes", [1, 2, 3])
def test_beside_of_few_episodes(episodes):
    env = Fork(4)
    found = measure_behavior(rollout(env.expert(), env, episodes, seed=0), env, rollout(env.expert(), env, 1, seed=1))
    assert {m.n_episodes for m in found.metrics} == {episodes} and found.to_json()


def test_beside_of_choices_and_of_pictures_alone():
    rng = np.random.default_rng(0)
    chosen = Dataset([Episode({"observation.state": rng.normal(size=(9, 4)), "action": rng.integers(0, 2, (8, 1)),
                               "next.truncated": np.zeros(8, bool)}, {"number": i, "seed": 0}) for i in range(12)])
    keys = {m.key for m in measure_behavior(chosen, None, chosen).metrics}
    assert "action_jerk" not in keys and "action_distance" not in keys and "state_distance" in keys
    blind = Dataset([Episode({"observation.images.a": rng.integers(0, 255, (9, 8, 8, 3)).astype(np.uint8),
                              "action": rng.normal(size=(8, 2)), "next.truncated": np.zeros(8, bool)},
                             {"number": i, "seed": 0, "success": i > 3}) for i in range(12)])
    found = measure_behavior(blind, None, blind)
    assert {m.key for m in found.metrics} == {"action_jerk"} and sum(map(len, found.failures)) == 4


def test_thinned_and_resampled():
    data = Dataset([episode(np.zeros((3, 1)), number=i) for i in range(11)])
    assert [e.metadata["number"] for e in evenly_spaced(data, 3)] == [0, 5, 10] and len(evenly_spaced(data)) == 11
    assert np.allclose(resample_rows(np.array([[0.0], [1.0], [4.0]]), 5)[:, 0], [0, 0.5, 1, 2.5, 4])
    assert np.allclose(resample_rows(np.array([[2.0]]), 4), 2)


def test_same_starts_is_an_environment():
    wrapped = modes.RepeatedStartsEnv(Fork(3), 0, 2, 2)
    assert isinstance(wrapped, Env) and wrapped.rows == 3


# -- from the command line -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with demonstrations of the fork and a policy that has hardly learned from them."""
    from understudy.cli import main

    folder = tmp_path_factory.mktemp("behavior")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["record", "fork", "--out", "demos", "--episodes", "12", "--actor", "scripted"]) == 0
        assert main(["train", "bc", "demos", "--out", "run", "--steps", "10", "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def evaluated(run, monkeypatch, capsys):
    """Exit status, what was printed and what was complained of, of `understudy eval run fork --episodes 12 ...`."""
    from understudy.cli import main

    monkeypatch.chdir(run)

    def call(*more, on="fork"):
        capsys.readouterr()
        try:
            status = main(["eval", "run", on, "--episodes", "12", *map(str, more)])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()
    return call


def test_eval_takes_what_the_run_learned_from(evaluated, run, tmp_path, monkeypatch):
    import json

    status, out, _ = evaluated("--json", "--repeats", 2)
    assert status == 0
    told = json.loads(out)["behavior"]
    assert told["against"] is None and told["metrics"]["state_distance"]["demonstrations"]["estimate"] > 0
    assert told["modes"]["n_starts"] == 12 and told["modes"]["n_repeats"] == 2 and told["latency"]["decisions"] > 10
    assert sum(g["count"] for g in told["failures"]) == 12 - json.loads(out)["successes"]
    # Somewhere else, or when the data have changed, nothing is taken for what it was.
    monkeypatch.setattr("understudy.data.episode.Dataset.fingerprint", lambda self: "another")
    assert "state_distance" not in json.loads(evaluated("--json")[1])["behavior"]["metrics"]
    assert "state_distance" in json.loads(evaluated("--json", "--demonstrations", "demos")[1])["behavior"]["metrics"]


def test_eval_writes_it_in_words_and_on_a_page(evaluated, tmp_path):
    status, out, _ = evaluated("--html", tmp_path / "page.html")
    assert status == 0 and "behavior metrics" in out and "A plan takes" in out
    page = (tmp_path / "page.html").read_text()
    assert "Behavior metrics" in page and ("How it fails" in page) == ("failure" in out)
    lost = [line for line in out.splitlines() if " failures: " in line or " failure: " in line]
    assert page.count("Group ") >= len(lost)


@pytest.mark.parametrize("args", [("--repeats", 1), ("--repeats", -2), ("--demonstrations", "nowhere"),
                                  ("--demonstrations", "run"), ("--sequential", "--threshold", 0.5, "--repeats", 2)])
def test_eval_refuses_what_makes_no_sense(evaluated, args):
    status, _, said = evaluated(*args)
    assert status == 2 and said.startswith("understudy: ") and "Traceback" not in said


def test_eval_of_recorded_episodes_has_no_behaviour(evaluated):
    for more in (("--repeats", 2), ("--demonstrations", "demos")):
        status, _, said = evaluated(*more, on="demos")
        assert status == 2 and "--repeats" in said


def test_a_page_without_pictures_is_a_page(evaluated, tmp_path, monkeypatch):
    def cannot(*_):
        raise UserError("this machine cannot draw it")
    monkeypatch.setattr("understudy.evaluate.failures.failure_figures", cannot)
    status, _, said = evaluated("--html", tmp_path / "page.html")
    assert status == 0 and "cannot draw it" in said and "Behavior metrics" in (tmp_path / "page.html").read_text()
