"""Shifted worlds, late plans, and where success halves: closed forms, and that 0 is nothing."""

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.cli import main
from understudy.core import Feature, UserError, keys, put, take
from understudy.data.video import resize
from understudy.data.window import Window
from understudy.envs import make
from understudy.envs.base import Env, StepResult
from understudy.envs.shifts import ActionLag, Distractors, ObservationDelay, SensorNoise, Shift, env_shifts
from understudy.evaluate import robustness
from understudy.evaluate.robustness import SeveritySweep, half_success_level, observation_std
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, PolicyActor
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon
from understudy.execute.latency import DelayedAction, DelayedPlan, DroppedObservation, delay_actor
from understudy.execute.temporal_ensemble import TemporalEnsemble
from understudy.heads.flow import Flow
from understudy.nets.mlp import MLP
from understudy.policy import Planner, PolicyConfig
from understudy.testing import ContractViolation, check_executor, check_shift


def build(name, **options):
    return lambda rows: make(name, rows, **options)


def kinds(name, **options):
    return robustness.available_shifts(make(name, 4, **options))


TOYS = {"fork": {"limit": 9}, "particle": {"limit": 9}, "push": {"limit": 6}, "push-images": {"limit": 4, "size": 24}}
OTHERS = {"blocks": ("start", "goal"), "arms": ("start", "goal"), "words": ("noise", "lag", "slow")}  # what is new
TOYS |= {name: {"limit": 6} for name in OTHERS}
OTHERS["fork@images=12"], TOYS["fork@images=12"] = ("start", "gust", "light"), {"limit": 6}
EVERY = [(name, kind) for name, options in TOYS.items() for kind in OTHERS.get(name) or kinds(name, **options)]


# -- the contract -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_shift_keeps_the_contract(name, kind):
    check_shift(build(name, **TOYS[name]), kinds(name, **TOYS[name])[kind])


def test_each_toy_has_the_shifts_that_it_can_have():
    both = {"noise", "delay", "lag", "dropped", "slow", "weak", "start"}
    assert set(kinds("fork")) == both | {"gust"}
    assert set(kinds("particle")) == set(kinds("push")) == both | {"goal"}
    assert set(kinds("push-images")) == both | {"goal", "light", "camera", "distractors"}
    assert set(kinds("fork@images=12")) == both | {"gust", "light", "camera", "distractors"}


def test_a_shift_that_changes_something_at_0_is_found():
    wrong = Shift(
        "bias", "", "m", (1.0,), lambda env, s: SensorNoise(env, s + 0.1, {"observation.state": torch.ones(2)})
    )
    with pytest.raises(ContractViolation, match="severity 0"):
        check_shift(build("fork", limit=4), wrong)


# -- what is seen and done, in closed form ---------------------------------------------------------------------------


class Counter(Env):
    """Shows how many steps there were since the start, in a number and in a grey picture; the reward is the action."""

    def __init__(self, rows, limit=12, pixels=(8, 16)):
        self.rows, self.limit, self.pixels = rows, limit, pixels
        self.features = {"observation.state": Feature("float32", (2,)), "simulator.state": Feature("float32", (1,)),
                         "observation.images.top": Feature("uint8", (*pixels, 3), "image"),
                         "action": Feature("float32", (1,))}
        self.metadata = {
            "env": "counter",
            "version": 1,
            "fps": 10,
            "limit": limit,
            "success": None,
            "low": -1,
            "high": 1,
        }
        self.clock = torch.zeros(rows, dtype=torch.int64)

    def _seen(self):
        at = self.clock.float().unsqueeze(1)
        grey = torch.arange(self.pixels[1], dtype=torch.uint8).expand(self.rows, *self.pixels).unsqueeze(-1)
        return {"observation.state": torch.cat([at, 0 * at], 1), "simulator.state": at,
                "observation.images.top": grey.repeat(1, 1, 1, 3) * 10}

    def reset(self, which, key):
        self.clock = self.clock.clone()
        self.clock[which] = 0
        return self._seen()

    def step(self, action):
        self.clock = self.clock + 1
        over = self.clock >= self.limit
        return StepResult(self._seen(), action[:, 0], torch.zeros_like(over), over)


@dataclass(frozen=True)
class Echo(Actor):
    """Its action is what it sees."""

    def start(self, obs, key):
        return {"count": torch.zeros_like(key)}

    def act(self, obs, state):
        return obs["observation.state"][:, :1].clone(), {"count": state["count"] + 1, "record": {"n": state["count"]}}


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_delayed_observation_is_exactly_so_old(k, rows):
    for episode in rollout(Echo(), ObservationDelay(Counter(rows), k), 5):
        wanted = [max(t - k, 0) for t in range(13)]
        np.testing.assert_array_equal(episode.steps["observation.state"][:, 0], wanted)
        np.testing.assert_array_equal(episode.steps["simulator.state"][:, 0], range(13))  # nobody's senses


@pytest.mark.parametrize("k", [1, 3, 20])
def test_a_late_action_is_exactly_so_late(k):
    """By the environment and by the actor alike."""
    for data in (rollout(Echo(), ActionLag(Counter(3), k), 5), rollout(DelayedAction(Echo(), k), Counter(3), 5)):
        for episode in data:
            np.testing.assert_array_equal(episode.steps["next.reward"], [max(t - k, 0) for t in range(12)])
            np.testing.assert_array_equal(episode.steps["n"], range(12))  # what the actor writes down is written down


def test_noise_is_as_large_as_it_says_new_at_every_step_and_on_numbers_only():
    width = {"observation.state": torch.tensor([2.0, 0.0])}
    data = rollout(Echo(), SensorNoise(Counter(50, limit=40), 0.5, width), 100)
    off = np.stack([e.steps["observation.state"] for e in data]) - np.stack(
        [e.steps["simulator.state"] * [1, 0] for e in data])
    assert off[..., 0].std() == pytest.approx(1.0, abs=4 / math.sqrt(2 * 4100))
    assert abs(off[..., 0].mean()) < 4 / math.sqrt(4100)
    assert not off[..., 1].any()  # what does not vary gets none
    by_time, by_episode = off[:, 1:, 0] * off[:, :-1, 0], off[1:, :, 0] * off[:-1, :, 0]
    assert abs(by_time.mean()) < 4 / math.sqrt(4000) and abs(by_episode.mean()) < 4 / math.sqrt(4000)


def test_the_same_noise_at_another_level_is_the_same_times_that():
    def off(severity):
        env = SensorNoise(Counter(2), severity, {"observation.state": torch.ones(2)})
        return env.reset(torch.arange(2), keys(0, range(2)))["observation.state"]
    torch.testing.assert_close(off(3.0), 3 * off(1.0))


def test_light_camera_and_discs_change_the_picture_as_said():
    def picture(kind, severity):
        env = robustness.available_shifts(Counter(8))[kind].world(Counter(8), severity)
        return env.reset(torch.arange(8), keys(0, range(8)))["observation.images.top"], env
    plain = Counter(8)._seen()["observation.images.top"]
    assert torch.equal(picture("light", 0.5)[0], plain // 2)
    assert not picture("light", 1.0)[0].any()
    moved = picture("camera", 0.25)[0][:, 4, :, 0].long() // 10  # columns of the original: 16, a quarter are 4
    for row in moved:
        offset = int((torch.arange(16) - row)[8])
        assert abs(offset) <= 4
        assert torch.equal(row, (torch.arange(16) - offset).clamp(0, 15))  # its edge is repeated
    assert len({tuple(r.tolist()) for r in moved}) > 2  # another way in every episode
    drawn, env = picture("distractors", 1)
    changed = (drawn != plain).any(-1).flatten(1).sum(1)
    assert changed.max() <= 6  # a disc of a sixth of 8 pixels
    assert torch.equal(env.step(torch.zeros(8, 1)).obs["observation.state"][:, 0], torch.ones(8))
    big = Distractors(Counter(4, pixels=(96, 96)), 1)
    shown = big.reset(torch.arange(4), keys(0, range(4)))["observation.images.top"]
    area = (shown != Counter(4, pixels=(96, 96))._seen()["observation.images.top"]).any(-1).flatten(1).sum(1)
    assert 0.2 * math.pi * 64 < area.min() and area.max() < 1.1 * math.pi * 64  # cut by an edge at most


def test_of_the_dropped_observations_the_share_is_right_and_the_last_is_seen_again():
    data = rollout(DroppedObservation(Echo(), 0.3), Counter(20, limit=50), 60)
    seen = np.stack([e.steps["next.reward"] for e in data])  # the step that each action was decided from
    fresh = seen == np.arange(50)
    assert fresh[:, 0].all()  # the first one comes
    np.testing.assert_array_equal(seen, np.maximum.accumulate(np.where(fresh, np.arange(50), 0), 1))
    assert 1 - fresh[:, 1:].mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / (60 * 49)))
    every = rollout(DroppedObservation(Echo(), 1.0), Counter(2), 2)
    assert not any(e.steps["next.reward"].any() for e in every)


# -- starts, goals and dynamics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("severity", [0.1, 0.8])
def test_the_fork_starts_so_far_back(severity):
    everyone = torch.arange(40), keys(0, range(40))
    plain = make("fork", 40).reset(*everyone)["observation.state"]
    moved = kinds("fork")["start"].world(make("fork", 40), severity).reset(*everyone)["observation.state"] - plain
    torch.testing.assert_close(moved.norm(dim=1), torch.full((40,), severity), rtol=1e-4, atol=1e-6)
    assert bool((moved[:, 0] < 0).all()) and bool((moved[:, 1].abs() <= -moved[:, 0] + 1e-6).all())


def test_images_show_the_world_that_was_shifted():
    shift = kinds("fork@images=16")["start"]
    back, plain = shift.world(make("fork@images=16", 3), 0.3), make("fork", 3)
    assert back.metadata["env"] == "fork@images=16+start:0.3"
    obs = back.reset(torch.arange(3), keys(0, range(3)))
    for _ in range(2):
        plain.restore(torch.arange(3), {"observation.state": obs["observation.state"].numpy()})
        frames = np.stack([plain.frame(row) for row in range(3)])
        assert np.array_equal(obs["observation.images.camera"], resize(frames, (16, 16)))
        obs = back.step(torch.tensor([[1.0, 0.2]] * 3)).obs
    assert obs["observation.state"][:, 0].max() < 0  # 0.2 m from farther back than any start without the shift


def test_ranges_are_wider_by_the_severity_on_every_side():
    everyone = torch.arange(2000), keys(0, range(2000))
    for name, kind, at, low, high in (
            ("particle", "start", slice(0, 2), 0.0, 1.0), ("push", "goal", slice(6, 8), 0.2, 0.8),
            ("push", "start", slice(2, 4), 0.2, 0.8), ("blocks", "start", 2, 0.28, 0.38),
            ("blocks", "goal", 9, 0.74, 0.82), ("arms", "start", 2, 1.5, 1.9), ("arms", "goal", 11, 0.6, 0.9)):
        seen = kinds(name)[kind].world(make(name, 2000), 0.05).reset(*everyone)["observation.state"][:, at]
        assert float(seen.min()) == pytest.approx(low - 0.05, abs=0.01), (name, kind)
        assert float(seen.max()) == pytest.approx(high + 0.05, abs=0.01), (name, kind)
    state = kinds("push")["start"].world(make("push", 2000), 0.08).reset(*everyone)["observation.state"]
    assert float((state[:, :2] - state[:, 2:4]).norm(dim=1).min()) > 1.5 * 0.08 + 0.035 - 1e-6  # nothing overlaps
    corners = kinds("particle")["goal"].world(make("particle", 50), 1.0).reset(*(x[:50] for x in everyone))
    assert set(corners["observation.state"][:, 4:].flatten().tolist()) == {0.0, 1.0}


def test_a_weaker_spring_pulls_so_much_less():
    """The particle's first step from rest: its speed is proportional to the pull, but for what it covers meanwhile."""
    def speed(severity):
        env = kinds("particle")["weak"].world(make("particle", 20), severity)
        env.reset(torch.arange(20), keys(0, range(20)))
        return env.step(torch.full((20, 2), 0.3)).obs["observation.state"][:, 2:4]
    torch.testing.assert_close(speed(0.6), 0.4 * speed(0.0), rtol=2e-3, atol=1e-5)


def test_actions_lose_their_share_within_their_limits():
    env = kinds("fork")["weak"].world(make("fork", 1), 0.25)
    start = env.reset(torch.arange(1), keys(0, [0]))["observation.state"]
    moved = env.step(torch.tensor([[9.0, -0.4]])).obs["observation.state"] - start
    torch.testing.assert_close(moved, 0.1 * 0.75 * torch.tensor([[1.0, -0.4]]))


def test_gusts_add_up():
    assert kinds("fork")["gust"].world(make("fork", 1, gust=3.0), 4.0).env.gust == 5.0
    assert kinds("fork")["gust"].world(make("fork", 1, gust=3.0), 0.0).env.gust == 3.0


@pytest.mark.parametrize(("name", "kind"), [("fork", "start"), ("particle", "start"), ("particle", "goal"),
                                            ("push", "start"), ("push", "goal"), ("blocks", "start"),
                                            ("blocks", "goal"), ("arms", "start"), ("arms", "goal")])
def test_who_sees_where_things_are_keeps_succeeding(name, kind):
    """The positive control: the expert, whose rule holds everywhere, at the hardest level."""
    env = make(name, 10)
    shift = kinds(name)[kind]
    data = rollout(env.expert(), shift.world(env, shift.levels[-1]), 10)
    assert sum(e.metadata["success"] for e in data) >= 9


@pytest.mark.parametrize(("kind", "severity"), [
    ("noise", -0.1), ("noise", math.nan), ("noise", math.inf), ("delay", 1.5), ("delay", -1), ("lag", math.inf),
    ("weak", 1.1), ("dropped", 1.1), ("dropped", math.nan), ("slow", 0.5), ("slow", -1), ("slow", math.nan)])
def test_a_level_that_cannot_be_is_refused(kind, severity):
    env, shift = make("fork", 2), kinds("fork")[kind]
    with pytest.raises(UserError, match=rf"{kind}.*(expected a level|which is not)"):
        shift.actor(env.expert(), severity)
        shift.world(env, severity)
    with pytest.raises(UserError, match=r"'start' of push.*from 0 to 0.08, found 0.1"):
        kinds("push")["start"].world(make("push", 1), 0.1)


# -- plans that come late -------------------------------------------------------------------------------------------


class Clock(Planner):
    """A plan says of each step when it was asked for and for when: 1000 * asked + step."""

    inputs, action_dim, device = ("observation.state",), 1, torch.device("cpu")
    features = {"observation.state": Feature("float32", (2,)), "action": Feature("float32", (1,))}

    def __init__(self, horizon):
        self.window = Window(n_obs_steps=1, horizon=horizon)

    def plan(self, obs, noise, guides=()):
        asked = obs["observation.state"][:, -1, :1]
        return (1000 * asked + asked + torch.arange(self.window.horizon)).unsqueeze(-1)

    def noise(self, key, count):
        return torch.zeros(len(key), 0)


def told(executor, horizon, limit=12, rows=3):
    """(asked, step) of every action, which is the same in every row."""
    data = rollout(PolicyActor(Clock(horizon), executor), Counter(rows, limit), 4)
    plans = np.stack([e.steps["next.reward"] for e in data]).astype(int)
    assert (plans == plans[0]).all()
    return [(p // 1000, p % 1000) for p in plans[0]]


def test_a_plan_arrives_so_many_steps_after_it_was_asked_for():
    """Four of eight steps are carried out, then the next plan is asked for; it takes three steps, in which the old one
    goes on. Every action is of its own time."""
    asked = told(DelayedPlan(RecedingHorizon(4), 3), 8)
    assert asked == [(0 if t < 7 else 4, t) for t in range(11)] + [(8, 11)]
    assert told(DelayedPlan(RecedingHorizon(4), 0), 8) == told(RecedingHorizon(4), 8)


def test_at_the_end_of_a_chunk_its_last_action_stays():
    """Chunks of four, all carried out; the next takes two steps."""
    asked = told(DelayedPlan(RecedingHorizon(4), 2), 4)
    assert asked == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 3), (0, 3), (4, 6), (4, 7), (4, 7), (4, 7), (8, 10), (8, 11)]
    # One step planned at a time, which takes three: it is done when it comes, and stays.
    assert told(DelayedPlan(RecedingHorizon(1), 3), 1)[:8] == [(0, 0)] * 4 + [(1, 1)] * 3 + [(4, 4)]


@pytest.mark.parametrize("steps", [1, 3])
def test_an_executor_made_late_keeps_the_contract_of_executors(steps):
    for executor in (RecedingHorizon(2), RecedingHorizon(2, skip=1), RealTimeChunking(2)):
        window = Window(n_obs_steps=2, horizon=6, action_offset=-executor.skip)
        check_executor(DelayedPlan(executor, steps), PolicyConfig(Flow(n_steps=2), trunk=MLP(16, 1), window=window))


@given(steps=st.integers(0, 5), execute=st.integers(1, 4), restart=st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_a_row_that_starts_anew_is_as_if_alone(steps, execute, restart):
    plays = PolicyActor(Clock(6), DelayedPlan(RecedingHorizon(execute), steps))

    def seen(*clocks):
        return {"observation.state": torch.tensor([[float(c), 0.0] for c in clocks])}
    state, actions = plays.start(seen(0, 0), keys(0, range(2))), []
    for t in range(14):
        if t == restart:
            state = put(state, torch.tensor([1]), plays.start(seen(0), keys(0, [5])))
        action, state = plays.act(seen(t, t if t < restart else t - restart), state)
        actions.append(action)
    alone = plays.start(seen(0), keys(0, [5]))
    for t in range(14 - restart):
        action, alone = plays.act(seen(t), alone)
        assert torch.equal(action[0], actions[restart + t][1])


def test_what_cannot_be_planned_ahead_comes_late_as_a_whole():
    policy = PolicyActor(Clock(4), TemporalEnsemble())
    assert delay_actor(policy, 0) is policy
    assert delay_actor(policy, 2) == DelayedAction(policy, 2)
    assert delay_actor(PolicyActor(policy.planner, RecedingHorizon(2)), 2.0).executor == DelayedPlan(
        RecedingHorizon(2), 2
    )
    state = DelayedAction(Echo(), 2).start(Counter(3)._seen(), keys(0, range(3)))
    assert take(state, torch.tensor([1]))["queue"].shape == (1, 3, 1)


# -- where it halves ------------------------------------------------------------------------------------------------


def steps_of(severities, limits):
    """(L, episodes): each episode succeeds up to its own limit."""
    return np.array([[s < limit for limit in limits] for s in severities])


def test_where_it_halves_is_known_for_a_straight_fall():
    levels = (0, 0.2, 0.4, 0.6, 0.8, 1.0)
    fall = half_success_level(levels, steps_of(levels, np.arange(0.0005, 1, 0.001)))  # success 1 - severity
    assert fall.severity == pytest.approx(0.5, abs=1e-9)
    assert (fall.low, fall.high, fall.max_severity) == (0.4, 0.6, 1.0)
    limits = np.where(np.arange(1000) < 800, 2 * np.arange(0.0005, 1, 0.001), -1)  # 0.8 at 0, falls by 0.5 a unit
    limits[:800] = np.linspace(0.001, 1.6, 800)
    assert half_success_level(levels, steps_of(levels, limits)).severity == pytest.approx(0.8, abs=0.01)


def test_not_within_what_was_tried_is_an_answer():
    all_of_20 = half_success_level((0, 1, 2), np.ones((3, 20)))
    assert (all_of_20.severity, all_of_20.low, all_of_20.high) == (math.inf, 2.0, math.inf)
    assert str(all_of_20) == "not up to 2 [2, beyond]"
    barely = half_success_level((0, 1, 2), np.array([[1] * 20, [1] * 15 + [0] * 5, [1] * 11 + [0] * 9]))
    assert math.isinf(barely.severity) and barely.low == 1.0  # chance alone may have kept it above the half
    assert str(half_success_level((0, 1), np.zeros((2, 20)))) == "nothing to halve"
    with pytest.raises(ValueError, match="rise from 0"):
        half_success_level((1, 2), np.ones((2, 3)))


def test_a_cliff_is_not_known_better_than_the_steps_of_the_ladder():
    fall = half_success_level((0, 1, 5, 9), np.repeat([[1.0], [1.0], [0.0], [0.0]], 50, 1))
    assert fall.severity == 3.0 and (fall.low, fall.high) == (1.0, 5.0)


def wins(*counts, of):
    return np.array([[1.0] * n + [0.0] * (of - n) for n in counts])


def test_an_unlucky_rung_is_put_right():
    """Isotonic regression: 0.3 at level 1 and 0.7 at level 2 are both 0.5."""
    assert half_success_level((0, 1, 2, 3), wins(10, 3, 7, 0, of=10)).severity == pytest.approx(1.0)
    # Half of what there is at level 0, 0.3, whatever level 1 says of it: between 0.34 and 0.
    assert half_success_level((0, 1, 2, 3), wins(30, 40, 17, 0, of=50)).severity == pytest.approx(2 + 4 / 34)


def test_the_interval_is_as_wide_as_chance_makes_it():
    """11 of 20 at level 2: 10 or fewer in two of five bootstrap draws, and then the half is crossed before it."""
    fall = half_success_level((0, 1, 2, 3), wins(20, 20, 11, 0, of=20))
    assert (fall.severity, fall.low, fall.high) == (pytest.approx(2 + 1 / 11), 1.0, 3.0)
    sure = half_success_level((0, 1, 2, 3), wins(20, 20, 18, 0, of=20))
    assert (sure.low, sure.high) == (2.0, 3.0)


@pytest.mark.slow
def test_the_interval_covers_where_it_truly_halves():
    """Success falls from 0.9 as a normal distribution with its half at 0.35; the starts are paired."""
    from scipy.stats import norm

    levels, rng, hits = np.array([0, 0.1, 0.2, 0.4, 0.8]), np.random.default_rng(0), 0
    truth = 0.35
    for _ in range(200):
        limits = np.where(rng.random(50) < 0.9, truth + 0.15 * norm.ppf(rng.random(50)), -1)
        limits = np.where(limits <= 0, np.where(limits == -1, -1, 1e-9), limits)
        fall = half_success_level(tuple(levels), steps_of(levels, limits))
        hits += fall.low <= truth <= fall.high
    assert hits >= 0.95 * 200 - 2 * math.sqrt(200 * 0.05 * 0.95)


def test_a_return_halves_too():
    climb = SeveritySweep(kinds("fork")["noise"], (0.0, 1.0, 2.0), None, np.array([[8.0] * 5, [6.0] * 5, [2.0] * 5]))
    assert climb.half_success_level().severity == pytest.approx(1.5)
    assert climb.paired_changes()[2][0].estimate == -6.0
    assert math.isnan(replace(climb, returns=-climb.returns).half_success_level().severity)


# -- the whole ladder -------------------------------------------------------------------------------------------------


def test_a_ladder_is_paired_resumes_and_does_not_depend_on_rows(tmp_path):
    env, file, seen = make("fork", 4), tmp_path / "kept.jsonl", []
    shifts = [replace(kinds("fork")[k], levels=levels) for k, levels in (("gust", (0.5, 2.0)), ("slow", (8,)))]
    whole = robustness.sweep_severities(
        env.expert(), build("fork"), shifts, 12, rows=3, results_file=file, actor_name="me", watch=seen.append
    )
    assert seen[-1] == 4 * 12 and max(seen) == 48
    gust, slow = whole
    assert gust.severities == (0.0, 0.5, 2.0) and gust.success.shape == (3, 12) and slow.success.shape == (2, 12)
    np.testing.assert_array_equal(gust.success[0], slow.success[0])
    plain = rollout(env.expert(), make("fork", 7), 12)
    np.testing.assert_array_equal(gust.success[0], [e.metadata["success"] for e in plain])
    (change, p), only = gust.paired_changes()[2], int((gust.success[2] < gust.success[0]).sum())
    assert change.estimate == pytest.approx(-only / 12) and p == pytest.approx(min(1, 2 * 0.5**only))

    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:40])  # stopped in the middle of a line
    counted = []

    def counting(rows):
        counted.append(rows)
        return make("fork", rows)
    again = robustness.sweep_severities(env.expert(), counting, shifts, 12, rows=5, results_file=file, actor_name="me")
    for a, b in zip(whole, again, strict=True):
        np.testing.assert_array_equal(a.success, b.success)
    more = robustness.sweep_severities(env.expert(), counting, shifts, 14, rows=5, results_file=file, actor_name="me")
    np.testing.assert_array_equal(more[0].success[:, :12], whole[0].success)
    ran = sum(len(json.loads(line)["episodes"]) for line in file.read_text().splitlines() if line[-1] == "}")
    assert ran == 4 * 14  # nothing twice
    other = robustness.sweep_severities(
        DelayedAction(env.expert(), 9), build("fork"), shifts[:1], 12, results_file=file, actor_name="somebody else"
    )
    assert not np.array_equal(other[0].success, whole[0].success)


def test_spread_is_of_the_reference_episodes_and_of_each_component():
    env = make("fork", 5)
    data = np.concatenate([e.steps["observation.state"] for e in rollout(env.expert(), env, 16, -3)])
    np.testing.assert_allclose(observation_std(make("fork", 16))["observation.state"].numpy(), data.std(0), rtol=1e-6)


def test_the_command_prints_one_document_and_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = ["robustness", "scripted", "fork", "--episodes", "6", "--shifts", "start", "slow",
            "--levels", "start=0.1,0.4", "slow=8"]
    assert main([*args, "--json", "--html", "page.html"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["env"] == "fork" and list(said["shifts"]) == ["start", "slow"]
    start = said["shifts"]["start"]
    assert [level["level"] for level in start["levels"]] == [0, 0.1, 0.4] and start["unit"] == "m"
    assert start["halves"] == {"at": None, "low": 0.4, "high": None, "tried": 0.4}
    assert said["shifts"]["slow"]["halves"]["high"] == 8
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 4 and "data:image/png" in page and "script" not in page.replace("scripted", "")
    lines = (tmp_path / "robustness/scripted-fork.jsonl").read_text()
    assert main(args) == 0  # nothing is run again
    assert (tmp_path / "robustness/scripted-fork.jsonl").read_text() == lines
    assert "not up to 0.4 [0.4, beyond]" in capsys.readouterr().out


@pytest.mark.slow
def test_workers_change_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def climbed(name, *more):
        assert (
            main(
                [
                    "robustness",
                    "scripted",
                    "fork",
                    "--episodes",
                    "12",
                    "--rows",
                    "3",
                    "--levels",
                    "noise=0.8",
                    "--shifts",
                    "noise",
                    "--json",
                    "--save",
                    name,
                    *more,
                ]
            )
            == 0
        )
        lines = [json.loads(line) for line in Path(name).read_text().splitlines()]
        each = {line["about"]["severity"]: [] for line in lines}
        for line in lines:
            each[line["about"]["severity"]] += line["episodes"]
        return capsys.readouterr().out, each
    alone = climbed("one.jsonl")
    assert climbed("two.jsonl", "--workers", "2") == alone
    assert climbed("one.jsonl", "--workers", "2") == alone  # and what was kept is not run again
    with pytest.raises(UserError, match="2 workers need a setup function"):
        robustness.sweep_severities(make("fork").expert(), lambda rows: make("fork", rows), [], workers=2)


@pytest.mark.parametrize(("args", "message"), [
    (["--shifts", "wind"], "--shifts: expected one of start, gust.*found 'wind'"),
    (["--levels", "gust"], "--levels: expected KIND=L,L"),
    (["--levels", "gust=0,1"], "--levels: expected KIND=L,L"),
    (["--levels", "gust=2,1"], "--levels: expected KIND=L,L"),
    (["--levels", "gust=nan"], "--levels: expected KIND=L,L"),
    (["--levels", "delay=1.5"], "'delay' of fork: expected a level that is a whole number"),
    (["--levels", "dropped=2"], "'dropped': the probability is 2, which is not between 0 and 1"),
    (["--shifts", "gust", "--levels", "noise=1"], "--levels: expected levels of gust, found some of 'noise'"),
    (["--episodes", "0"], "--episodes: must be 1 or more"), (["--seed", "-1"], "--seed: must be 0 or more")])
def test_what_cannot_be_is_said_before_anything_is_run(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["robustness", "scripted", "fork", *args]) == 2
    assert re.search(message, said := capsys.readouterr().err) and "\n  -> " in said
    assert not (tmp_path / "robustness").exists()


# -- MuJoCo -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["start", "mass", "friction", "gravity"])
def test_mujoco_models_are_shifted(kind):
    pytest.importorskip("mujoco", reason="simulator not installed")
    hopper = build("Hopper-v5", max_episode_steps=6)
    env = hopper(1)
    shift = {s.name: s for s in env_shifts(env)}[kind]
    check_shift(hopper, replace(shift, levels=shift.levels[-1:]), episodes=2)
    model = env.models[0][0]
    plain = {"mass": model.body_mass.copy(), "friction": model.geom_friction[:, 0].copy(),
             "gravity": model.opt.gravity.copy()}
    before = env.reset(torch.arange(1), keys(0, [0]))["simulator.state"].clone()
    world = shift.world(hopper(1), 0.5)
    moved = world.reset(torch.arange(1), keys(0, [0]))["simulator.state"] - before
    now = world.env.models[0][0]
    factor = {"mass": 1.5, "friction": 0.5, "gravity": 1.5}
    for name, was in plain.items():
        found = {"mass": now.body_mass, "friction": now.geom_friction[:, 0], "gravity": now.opt.gravity}[name]
        np.testing.assert_allclose(found, was * (factor[name] if name == kind else 1))
    speeds = slice(1 + model.nq, 1 + model.nq + model.nv)
    assert bool(moved[0, speeds].any()) == (kind == "start") and not moved[0, :1 + model.nq].any()
