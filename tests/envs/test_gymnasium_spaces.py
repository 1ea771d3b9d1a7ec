"""Names of the columns of an observation, and what of a space is not supported."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from understudy.core import DataWarning, UserError
from understudy.envs.gymnasium_adapter import vectorize, wrap_vector
from understudy.evaluate.recording import UniformRandomActor
from understudy.evaluate.rollout import rollout

BOX, EYE = spaces.Box(-9, 9, (1,), np.float32), spaces.Box(0, 255, (8, 8, 3), np.uint8)


@pytest.mark.parametrize(("entries", "names"), [
    ({"robot.x": BOX, "robot": spaces.Dict({"x": BOX})}, ("['robot']['x']", "['robot.x']", "observation.robot.x")),
    ({"state": BOX, "observation.state": BOX}, ("['observation.state']", "['state']", "observation.state")),
    ({"a": spaces.Tuple([BOX, BOX]), "a.1": spaces.Discrete(3)}, ("['a'][1]", "['a.1']", "observation.a.1")),
    ({"front": EYE, "images.front": BOX}, ("['front']", "['images.front']", "observation.images.front")),
    ({"left": EYE, "observation.images.left": EYE}, ("['left']", "['observation.images.left']",
                                                     "observation.images.left"))])
@pytest.mark.parametrize("cls", [SyncVectorEnv, vectorize])
def test_entries_that_would_be_one_column_are_refused(entries, names, cls):
    class Twice(gymnasium.Env):
        observation_space, action_space = spaces.Dict(entries), BOX

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {}
    first, second, column = names
    with pytest.raises(UserError) as caught:
        wrap_vector(cls([Twice]) if cls is SyncVectorEnv else cls(Twice, 1), {"env": "twice"})
    assert str(caught.value).startswith(
        f"twice: the entries {first} and {second} of its observation are both the column {column}\n")


@pytest.mark.parametrize("place", ["info", "observation", ""])
def test_action_masks_are_said_not_to_be_supported(place):
    class Masked(gymnasium.Env):
        action_space = spaces.Discrete(3)
        observation_space = spaces.Dict({"state": BOX, **(
            {"action_mask": spaces.MultiBinary(3)} if place == "observation" else {})})

        def _returned(self):
            mask = {"action_mask": np.array([1, 0, 1], np.int8)}
            return ({"state": np.zeros(1, np.float32), **(mask if place == "observation" else {})},
                    mask if place == "info" else {})

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self._returned()

        def step(self, action):
            obs, info = self._returned()
            return obs, 0.0, False, True, info
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = wrap_vector(vectorize(Masked, 2), {"env": "masked"})
        rollout(UniformRandomActor(env), env, 6)
    texts = [str(w.message) for w in caught if w.category is DataWarning]
    assert len(texts) == bool(place)
    assert all(text.startswith("masked reports 'action_mask'. Action masks are not supported") for text in texts)
