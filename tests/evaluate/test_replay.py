"""Replaying what was recorded in the bundled toys: exact where nothing changed, and the first change is found."""

import json

import numpy as np
import pytest
import torch

from understudy.core import Feature, UserError, keys
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset
from understudy.envs import make
from understudy.envs.base import Env, StepResult
from understudy.envs.toys.fork import Fork
from understudy.envs.toys.push import Push
from understudy.evaluate.evaluation import compare, evaluation_of, recording_seed
from understudy.evaluate.recording import record_episodes
from understudy.evaluate.replay import replay
from understudy.evaluate.rollout import rollout


@pytest.fixture(scope="module")
def data():
    env = Fork(8)
    return rollout(env.expert(), env, 8, recording_seed(3))


def changed(data, number, **columns):
    return Dataset([e.replace({k.replace("__", "."): v for k, v in columns.items()}) if i == number else e
                    for i, e in enumerate(data)], data.metadata)


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("state", [False, True])
def test_what_we_recorded_replays_to_the_last_bit(data, rows, state):
    replayed = replay(data, Fork(rows), state=state, tolerance=0.0)
    assert [t.episode for t in replayed.episodes] == list(range(8))
    for t, e in zip(replayed.episodes, data, strict=True):
        assert t.divergence is None and t.steps == len(e) and t.success and t.recorded_success
        assert t.max_differences == {"observation.state": 0.0, "next.reward": 0.0, "next.terminated": 0.0}
    assert (
        "every step is as recorded" in replayed.describe()
        and "Success: 8 of 8, 8 of 8 when recorded" in replayed.describe())
    json.dumps(replayed.to_json(), allow_nan=False)


def test_a_changed_action_is_found_at_the_step_after_it(data):
    action = data[5].steps["action"].copy()
    action[7, 1] = -action[7, 1]
    moved = changed(data, 5, action=action)
    size = 0.1 * abs(2 * action[7, 1]) / np.abs(data[5].steps["observation.state"]).max()
    for state in (False, True):
        replayed = replay(moved, Fork(4), state=state)
        assert [t.episode for t in replayed.episodes if t.divergence] == [5]
        d = replayed.episodes[5].divergence
        assert (d.step, d.column) == (8, "observation.state") and d.difference == pytest.approx(size, rel=1e-4)
        assert "7 as recorded to the last step, 1 not" in replayed.describe()
        assert "episode 5 at step 8" in replayed.describe()
    # Playback begins anew at every step, so the change stays where it is; open loop carries it on.
    assert replay(moved, Fork(4), [5], state=True).episodes[0].max_differences["observation.state"] == pytest.approx(
        size, rel=1e-4)
    assert replay(moved, Fork(4), [5]).episodes[0].max_differences["observation.state"] >= size * 0.999


def test_a_changed_observation_is_found_where_it_is(data):
    states = data[2].steps["observation.state"].copy()
    states[4, 0] += 0.01
    replayed = replay(changed(data, 2, observation__state=states), Fork(4), [2])
    d = replayed.episodes[0].divergence
    assert (d.step, d.column) == (4, "observation.state")
    assert d.difference == pytest.approx(0.01 / states.max(), rel=1e-3)
    assert replay(changed(data, 2, observation__state=states), Fork(4), [2],
                  tolerance=0.1).episodes[0].divergence is None


def test_another_world_is_told_by_its_reward(data):
    reward = data[0].steps["next.reward"].copy()
    reward[-1] = 5.0
    d = replay(changed(data, 0, next__reward=reward), Fork(4), [0]).episodes[0].divergence
    assert (d.step, d.column, d.difference) == (len(data[0]) - 1, "next.reward", pytest.approx(0.8))


def test_recordings_of_others_begin_where_their_first_step_was(data):
    foreign = Dataset([Episode(dict(e.steps)) for e in data])  # no seed, no number
    replayed = replay(foreign, Fork(3), tolerance=0.0)
    assert all(t.divergence is None and t.success for t in replayed.episodes)
    push = Push(4)
    pushed = rollout(push.expert(), push, 4, recording_seed(0))
    assert all(t.divergence is None for t in replay(pushed, Push(3), tolerance=0.0).episodes)
    assert all(t.divergence is None for t in replay(pushed, Push(16), state=True, tolerance=0.0).episodes)


def test_a_recording_longer_or_shorter_than_the_episode_is_still_replayed(data):
    cut = changed(data, 1, **{k.replace(".", "__"): v[:5] for k, v in data[1].steps.items()})
    assert len(cut[1]) == 5
    t = replay(cut, Fork(4), [1], tolerance=0.0).episodes[0]
    assert t.divergence is None and t.steps == 5 and t.success is False
    longer = changed(data, 1, **{k.replace(".", "__"): np.concatenate([v, v[-3:]]) for k, v in data[1].steps.items()})
    t = replay(longer, Fork(4), [1], tolerance=0.0).episodes[0]
    assert t.success is True and t.divergence is None  # the environment ended where the recording first did


def test_frames_that_a_video_has_changed_are_no_difference(tmp_path):
    """Videos lose something: the recording still replays, and still compares with rollouts that were kept in memory."""
    env = Push(2, limit=6, images=True, size=32)
    stored = record_episodes(env, env.expert(), 3, tmp_path / "d", 1, actor_name="scripted")
    rolled = rollout(env.expert(), env, 3, 1)
    camera = "observation.images.top"
    assert not np.array_equal(stored[0].steps[camera][0], rolled[0].steps[camera][0])
    for state in (False, True):
        replayed = replay(stored, env, state=state, tolerance=0.0)
        assert all(t.divergence is None and camera not in t.max_differences for t in replayed.episodes)
    assert compare(evaluation_of(stored), evaluation_of(rolled)).difference == 0


class Bare(Env):
    """Cannot be restored, shows one number, and defines no success."""

    rows, features = 2, {"observation.state": Feature("float32", (1,)), "action": Feature("float32", (2,))}
    metadata = {"env": "bare"}

    def reset(self, which, key):
        return {"observation.state": torch.zeros(2, 1)}

    def step(self, action):
        no = torch.zeros(2, dtype=torch.bool)
        return StepResult({"observation.state": torch.zeros(2, 1)}, torch.zeros(2), no, no)


def test_actions_that_were_not_recorded_are_not_executed(data):
    """They led to a divergence "by inf of its largest value"."""
    hidden = Dataset([data[0], data[1].replace({"action": np.array(data[1].steps["action"]) * np.nan})], data.metadata)
    for state in (False, True):
        with pytest.raises(UserError, match=r"(?s)episode 1, step 0: the action was not recorded: \[nan.*--delete 1"):
            replay(hidden, Fork(4), state=state)
    assert replay(hidden, Fork(4), [0]).episodes[0].divergence is None


def test_what_cannot_be_replayed_says_why(data):
    acted = Dataset([Episode({"action": e.steps["action"]}, e.metadata) for e in data])
    with pytest.raises(UserError, match="episode 0: the episode began in fork, and bare cannot.*\n.*replay DATA fork"):
        replay(acted, Bare())
    for meta, lacks in (({}, "'env', 'seed', 'number'"), ({"env": "bare", "seed": 7}, "'number'")):
        with pytest.raises(UserError) as error:
            replay(Dataset([Episode({"action": e.steps["action"]}, meta) for e in data]), Bare())
        assert str(error.value) == (
            f"data set, episode 0: the episode does not say how it began in bare (no {lacks}), and that environment "
            "cannot be put into a recorded state\n  -> keep the metadata 'env', 'seed' and 'number' of each episode "
            "(docs/formats.md), as understudy record does")
    with pytest.raises(UserError, match="bare cannot be put into a recorded state"):
        replay(acted, Bare(), state=True)
    with pytest.raises(UserError, match="there is no episode 8; the last one is 7"):
        replay(data, Fork(4), [1, 8])
    ours = Dataset([Episode(dict(e.steps), {**e.metadata, "env": "bare"}) for e in data])
    with pytest.raises(UserError, match=r"'observation.state' has the shape \(2,\), but \(1,\) in bare\n  -> rep"):
        replay(ours, Bare())
    same = Dataset([Episode({"action": e.steps["action"]}, {**e.metadata, "env": "bare"}) for e in data])
    replayed = replay(same, Bare())
    assert (
        all(t.success is None and t.recorded_success is not None for t in replayed.episodes)
        and "Success" not in replayed.describe())


def test_own_demonstrations_that_say_how_they_began_are_replayed(tmp_path):
    """As docs/environments.md tells people to: arrays of one's own, from Gymnasium without us."""
    gymnasium = pytest.importorskip("gymnasium")
    name, observations, done, ends = "MountainCarContinuous-v0", [], [], []
    env = gymnasium.make(name, max_episode_steps=30)
    for n in range(3):
        obs, _ = env.reset(seed=int(keys(7, [n])) % 2**31)
        over = False
        while not over:
            observations.append(obs)
            done.append(np.sign(obs[1:]))
            obs, _, terminated, truncated, _ = env.step(done[-1])
            over = terminated or truncated
        ends.append(len(done))
    for first in (0, 1):  # from another number on, it is another start
        file = tmp_path / f"{first}.npz"
        np.savez(file, observations=observations, actions=np.float32(done), episode_ends=ends, env=[name] * 3,
                 seed=[7] * 3,
                 number=np.arange(3) + first)
        replayed = replay(open_dataset(file), make(name, 2))
        assert [t.divergence and t.divergence.step for t in replayed.episodes] == ([0] * 3 if first else [None] * 3)
        assert [t.steps for t in replayed.episodes] == [30] * 3


def test_an_environment_of_other_shapes_names_the_one_it_was_recorded_in(data, tmp_path):
    stored = record_episodes(Fork(2), Fork(2).expert(), 2, tmp_path / "d", 1, actor_name="scripted")
    for state in (False, True):
        with pytest.raises(UserError) as error:
            replay(stored, Push(2), state=state)
        assert str(error.value) == (f"{tmp_path / 'd'}: 'observation.state' has the shape (2,), but (8,) in push"
                                    f"\n  -> replay it in the environment it was recorded in: understudy replay "
                                    f"{tmp_path / 'd'} fork")
    wide = Dataset([e.replace({"action": np.zeros((len(e), 3), np.float32)}) for e in data])
    with pytest.raises(UserError, match=r"data set: 'action' has the shape \(3,\), but \(2,\) in fork"):
        replay(wide, Fork(2))
