"""What an evaluation warns of: environments that do not repeat, and episodes that no policy decides."""

import math
import warnings

import gymnasium
import numpy as np
import pytest
from fixtures.walking import Walk
from gymnasium.wrappers import NormalizeObservation, NormalizeReward

from understudy.core import DataWarning, Feature, UserCodeError, UserError
from understudy.data.formats import open_dataset
from understudy.envs.gymnasium_adapter import vectorize, wrap_vector
from understudy.envs.recorded_columns import check_recorded_columns
from understudy.envs.toys.fork import Fork
from understudy.evaluate.env_checks import warn_of_early_ends, warn_unless_repeatable
from understudy.evaluate.recording import UniformRandomActor, record_episodes
from understudy.evaluate.rollout import rollout


def warned(check) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check()
    return [str(w.message) for w in caught if w.category is DataWarning]


def repeats(make, rows=3):
    env = wrap_vector(vectorize(make, rows), {"env": "theirs"})
    texts = warned(lambda: warn_unless_repeatable(UniformRandomActor(env), env, 0))
    assert all("theirs does not repeat" in text and "--rows" in text for text in texts)
    return texts


class Unseeded(Walk):
    def start(self):
        return float(np.random.default_rng().uniform(-1, 0))


class Noisy(Walk):
    def reward(self):
        return float(np.random.default_rng().normal())


class Drifting(Walk):
    """Its goal moves with each episode. It is only seen in the reward."""

    episodes = 0

    def start(self):
        self.episodes += 1
        return -1.0

    def reward(self):
        return float(self.episodes)


@pytest.mark.parametrize(("make", "named"), [
    (Unseeded, "observation.state differs at the start"), (Noisy, "next.reward differs in step 0"),
    (Drifting, "next.reward differs in step 0"),
    (lambda: NormalizeObservation(Walk()), "observation.state differs at the start"),
    (lambda: NormalizeReward(Walk()), "next.reward differs in step")])
def test_environments_that_do_not_repeat_are_named(make, named):
    text, = repeats(make)
    assert named in text


class Missing(Walk):
    """Shows NaN where nothing is measured."""

    def obs(self):
        return np.array([self.x, np.nan], np.float32)


def test_environments_that_repeat_are_not():
    assert not repeats(Walk) and not repeats(Missing, 1)
    for env in (Fork(4), Fork(1)):
        assert not warned(lambda env=env: warn_unless_repeatable(env.expert(), env, 3))


def test_the_check_leaves_the_episodes_as_they_are():
    env, other = (wrap_vector(vectorize(Walk, 3), {"env": "theirs"}) for _ in range(2))
    warn_unless_repeatable(UniformRandomActor(env), env, 0)
    assert rollout(UniformRandomActor(env), env, 7).fingerprint() == rollout(UniformRandomActor(other), other,
                                                                             7).fingerprint()


class Already(Walk):
    def is_done(self):
        return True


class Half(Already):
    """Every second start is decided at once."""

    def is_done(self):
        return self.first < -0.5 and self.clock == 1


class Lost(Walk):
    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, True, truncated, {"success": False}


def test_episodes_that_are_decided_in_their_first_step_are_counted():
    def of(make, limit=None):
        env = wrap_vector(vectorize(make, 4), {"env": "theirs", "limit": limit})
        data = rollout(UniformRandomActor(env), env, 40)
        return data, warned(lambda: warn_of_early_ends(data, env))
    _, (text,) = of(Already)
    assert text.startswith("theirs: 40 of 40 episodes succeeded in their first step. If that happens whatever")
    data, (text,) = of(Half)
    k = sum(bool(e.steps["observation.state"][0, 1] < -0.5) for e in data)
    assert 0 < k < 40 and text.startswith(f"theirs: {k} of 40 episodes succeeded in their first step.")
    _, (text,) = of(Lost)
    assert text.startswith("theirs: 40 of 40 episodes ended in their first step without a success.")
    assert not of(Walk)[1] and not of(Lost, limit=1)[1]  # where all episodes are one step, it means nothing


@pytest.mark.parametrize(("value", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_a_reward_that_is_no_number_is_refused_with_its_step(value, shown):
    class Bad(Walk):
        def reward(self):
            return value if self.first < -0.5 and self.clock == 3 else -1.0
    env = wrap_vector(vectorize(Bad, 4), {"env": "theirs"})
    plain = wrap_vector(vectorize(Walk, 4), {"env": "theirs"})
    firsts = [float(e.steps["observation.state"][0, 1]) for e in rollout(UniformRandomActor(plain), plain, 40)]
    bad = {i for i, first in enumerate(firsts) if first < -0.5}
    with pytest.raises(UserCodeError, match=rf"theirs, episode \d+, step 2: the reward is {shown}") as caught:
        rollout(UniformRandomActor(env), env, 40)
    assert int(str(caught.value.where).split("episode ")[1].split(",")[0]) in bad


class Offset(Walk):
    """Shows a float64 number with a large offset, that changes by 0.5 in each step."""

    observation_space = gymnasium.spaces.Dict({
        "clock": gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64),
        "ticks": gymnasium.spaces.Box(-2**62, 2**62, (1,), np.int64)})
    offset, ticks = 1e9, 2**31

    def obs(self):
        return {"clock": np.array([0.5 * self.clock, self.offset + 0.5 * self.clock]),
                "ticks": np.array([self.ticks + self.clock])}


def test_numbers_whose_changes_are_lost_are_named(tmp_path):
    def record(name, **values):
        env = wrap_vector(vectorize(type("Shifted", (Offset,), values), 2), {"env": "theirs", "fps": 10})
        texts = warned(lambda: record_episodes(env, UniformRandomActor(env), 3, tmp_path / name, 0, actor_name="a"))
        return texts, open_dataset(tmp_path / name)[0].steps["observation.clock"]
    texts, clock = record("both")
    assert (clock[:, 1] == 1e9).all()  # spacing 64
    assert len(texts) == 2
    assert "observation.clock loses precision" in texts[0] and "component 1 goes from 1000000000 to" in texts[0]
    assert "in steps of 64" in texts[0] and "observation.ticks loses precision" in texts[1]
    texts, clock = record("none", offset=1e4, ticks=0)  # steps of 0.001
    assert not texts and np.ptp(clock[:, 1]) > 0
    texts, _ = record("reward", offset=0.0, ticks=0, reward=lambda self: 1e8 + self.clock)
    assert len(texts) == 1 and "next.reward loses precision" in texts[0]


def test_environments_with_other_columns_than_the_data_are_named():
    env = wrap_vector(vectorize(Walk, 1), {"env": "theirs"})
    same = dict(env.features)
    check_recorded_columns({**same, "observation.extra": same["observation.state"]}, env)
    with pytest.raises(UserError) as caught:
        check_recorded_columns({"observation.state": Feature("float32", (7,)), "action": Feature(
            "int64", (1,), "discrete", num_classes=(4,)), "next.reward": Feature("float64", (2,))}, env)
    assert str(caught.value).startswith(
        "--env theirs: observation.state is vector of shape (7,) in the data and vector of shape (2,) there; "
        "action is discrete of shape (1,) in the data and vector of shape (1,) there\n")
    with pytest.raises(UserError, match="the data have observation.joints, and there is observation.state there"):
        check_recorded_columns({"observation.joints": same["observation.state"], "action": same["action"]}, env)
