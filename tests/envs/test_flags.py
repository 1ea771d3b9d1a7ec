"""Flags of environments are one True or False per row, whatever makes the environment."""

from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from understudy.core import UserCodeError, UserError
from understudy.envs.flags import check_flag, check_flags
from understudy.envs.gymnasium_adapter import GymVector, vectorize, wrap_vector
from understudy.envs.toys.fork import Fork
from understudy.evaluate.recording import UniformRandomActor
from understudy.evaluate.rollout import rollout

FLAGS = {
    "True": (True, True), "numpy bool": (np.False_, False), "one": (1, True), "zero as a float": (0.0, False),
    "one as a float": (np.float32(1), True), "without axes": (np.array(True), True), "one element": ([True], True),
    "two axes": (np.array([[0]]), False), "a tensor": (torch.tensor(True), True),
}
NO_FLAGS = {
    "array": np.array([True, False]), "equal array": np.array([True, True]), "empty": np.array([]), "list": [1, 0, 1],
    "ragged": [[1], [0, 1]], "dict": {"task": True}, "word": "yes", "empty word": "", "NaN": float("nan"),
    "infinite": np.float32("inf"), "degree": 0.5, "count": 2, "negative": -1, "complex": 1j, "object": object(),
    "tensor": torch.ones(3), "words": np.array(["no"])}


@pytest.mark.parametrize("kind", FLAGS)
def test_values_that_are_one_flag(kind):
    value, expected = FLAGS[kind]
    assert check_flag(value, "success", "here") is expected
    assert check_flags([None, value, value], "success", np.array([True, True, False]), "here").tolist() == [
        False, expected, expected]


@pytest.mark.parametrize("kind", NO_FLAGS)
def test_values_that_are_no_flag(kind):
    with pytest.raises(UserCodeError, match="here: reports lost as .*, which is not one True or False"):
        check_flag(NO_FLAGS[kind], "lost", "here")
    with pytest.raises(UserCodeError, match="here: reports lost as"):
        check_flags([True, NO_FLAGS[kind]], "lost", np.ones(2, bool), "here")
    assert check_flags([True, NO_FLAGS[kind]], "lost", np.array([True, False]), "here")[0]  # nothing reads the second


@pytest.mark.parametrize("values", [True, np.True_, {0: True, 1: False}, "no", [True], np.zeros((3, 2)), None])
def test_a_flag_of_rows_has_one_value_per_row(values):
    with pytest.raises(UserCodeError, match="not one value for each of its 2 rows"):
        check_flags(values, "truncated", np.ones(2, bool), "here")


class Flagged(gymnasium.Env):
    """Ends after three steps. Its flags have a given value in the second step of odd starts."""

    observation_space, action_space = spaces.Box(0, 9, (1,), np.float32), spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, name="success", value=False):
        self.name, self.value = name, value

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock, self.odd = 0, seed % 2
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.clock += 1
        flags = {"success": False, "terminated": self.clock == 3, "truncated": False}
        if self.clock == 2 and self.odd:
            flags[self.name] = self.value
        info = {k: v for k, v in flags.items() if k not in ("terminated", "truncated")}
        return np.zeros(1, np.float32), 0.0, flags["terminated"], flags["truncated"], info


@pytest.mark.parametrize("name", ["success", "is_success", "terminated", "truncated", "lost"])
@pytest.mark.parametrize("kind", NO_FLAGS)
def test_environments_with_other_values_are_refused(name, kind):
    """Gymnasium casts the values of all rows to the type of the first one, so that 0.5 and "no" would become True."""
    env = GymVector(vectorize(partial(Flagged, name, NO_FLAGS[kind]), 2), {"env": "theirs"}, lift=("lost",))
    with pytest.raises(UserCodeError, match=rf"test_flags.py, line \d+, in step: reports {name} as"):
        rollout(UniformRandomActor(env), env, 6)


@pytest.mark.parametrize("kind", FLAGS)
def test_environments_with_one_element_are_read(kind):
    value, expected = FLAGS[kind]
    env = wrap_vector(vectorize(partial(Flagged, "success", value), 2), {"env": "theirs"})
    keys = [bool(e.metadata["success"]) for e in rollout(UniformRandomActor(env), env, 12)]
    assert (0 < sum(keys) < 12) == expected and any(keys) == expected


@pytest.mark.parametrize(("cls", "mode"), [(SyncVectorEnv, mode) for mode in AutoresetMode]
                         + [(AsyncVectorEnv, AutoresetMode.DISABLED)])
@pytest.mark.parametrize("kind", ["array", "dict", "word", "NaN", "degree", "count"])
def test_vector_environments_with_other_values_are_refused(cls, mode, kind):
    class Always(Flagged):
        def step(self, action):
            return (*super().step(action)[:4], {"success": NO_FLAGS[kind]})
    env = wrap_vector(cls([Always] * 2, autoreset_mode=mode), {"env": "theirs"})
    try:
        with pytest.raises(UserCodeError, match="theirs: reports success as"):
            rollout(UniformRandomActor(env), env, 2)
    finally:
        env.close()


class OwnFork(Fork):
    """Fork, one of whose flags has other values."""

    change = {}

    def step(self, action):
        result = super().step(action)
        flags = {name: change(getattr(result, name)) for name, change in self.change.items() if name != "success"}
        info = {"success": self.change["success"](result.info["success"])} if "success" in self.change else {}
        return replace(result, **flags, info={**result.info, **info})


@pytest.mark.parametrize("name", ["success", "terminated", "truncated"])
def test_own_environments_report_one_flag_per_row(name):
    def collect(change):
        env = OwnFork(3)
        env.change = {name: change}
        return rollout(env.expert(), env, 5, seed=2)
    plain = rollout(Fork(3).expert(), Fork(3), 5, seed=2)
    for same in (lambda f: f.float(), lambda f: f.numpy(), lambda f: f.tolist(), lambda f: f.unsqueeze(1)):
        assert collect(same).fingerprint() == plain.fingerprint()
    for other in (lambda f: f * 0.5 + 0.25, lambda f: f.float() / 0, lambda f: {"a": f}, lambda f: f[:2],
                  lambda f: f.unsqueeze(1).expand(-1, 2), lambda f: "word", lambda f: True):
        with pytest.raises(UserError, match=rf"test_flags.py, line \d+, in step: reports {name} as"):
            collect(other)
