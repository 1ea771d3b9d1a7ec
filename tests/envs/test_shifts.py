"""Shifted worlds in closed form, and that 0 changes nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.shifts import Counter, Echo, build, kinds

from understudy.core import UserError, keys
from understudy.data.video import resize
from understudy.envs import make
from understudy.envs.shifts import ActionLag, Distractors, ObservationDelay, SensorNoise, Shift, env_shifts
from understudy.evaluate import robustness
from understudy.evaluate.rollout import rollout
from understudy.execute.latency import DelayedAction, DroppedObservation
from understudy.testing import ContractViolation, check_shift

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
    broken_shift = Shift(
        "bias", "", "m", (1.0,), lambda env, s: SensorNoise(env, s + 0.1, {"observation.state": torch.ones(2)}))
    with pytest.raises(ContractViolation, match="severity 0"):
        check_shift(build("fork", limit=4), broken_shift)


# -- what is seen and done, in closed form ---------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_delayed_observation_is_exactly_so_old(k, rows):
    for episode in rollout(Echo(), ObservationDelay(Counter(rows), k), 5):
        expected = [max(t - k, 0) for t in range(13)]
        np.testing.assert_array_equal(episode.steps["observation.state"][:, 0], expected)
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
    pictures = big.reset(torch.arange(4), keys(0, range(4)))["observation.images.top"]
    area = (pictures != Counter(4, pixels=(96, 96))._seen()["observation.images.top"]).any(-1).flatten(1).sum(1)
    assert 0.2 * math.pi * 64 < area.min() and area.max() < 1.1 * math.pi * 64  # cut by an edge at most


def test_of_the_dropped_observations_the_share_is_right_and_the_last_is_seen_again():
    data = rollout(DroppedObservation(Echo(), 0.3), Counter(20, limit=50), 60)
    steps_shown = np.stack([e.steps["next.reward"] for e in data])  # the step that each action was decided from
    fresh = steps_shown == np.arange(50)
    assert fresh[:, 0].all()  # the first one comes
    np.testing.assert_array_equal(steps_shown, np.maximum.accumulate(np.where(fresh, np.arange(50), 0), 1))
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
        states = kinds(name)[kind].world(make(name, 2000), 0.05).reset(*everyone)["observation.state"][:, at]
        assert float(states.min()) == pytest.approx(low - 0.05, abs=0.01), (name, kind)
        assert float(states.max()) == pytest.approx(high + 0.05, abs=0.01), (name, kind)
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
    with pytest.raises(UserError, match=rf"{kind}.*(the level must be|which is not)"):
        shift.actor(env.expert(), severity)
        shift.world(env, severity)
    with pytest.raises(UserError, match=r"'start' of push.*from 0 to 0.08, not 0.1"):
        kinds("push")["start"].world(make("push", 1), 0.1)


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
        model_values = {"mass": now.body_mass, "friction": now.geom_friction[:, 0], "gravity": now.opt.gravity}[name]
        np.testing.assert_allclose(model_values, was * (factor[name] if name == kind else 1))
    speeds = slice(1 + model.nq, 1 + model.nq + model.nv)
    assert bool(moved[0, speeds].any()) == (kind == "start") and not moved[0, :1 + model.nq].any()
