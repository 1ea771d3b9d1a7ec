"""Warnings about collected episodes, and the size of their frames."""

import numpy as np
import pytest

from understudy import make, train
from understudy.core import DataWarning
from understudy.data.episode import Dataset, Episode
from understudy.improve.collection import random_episodes
from understudy.improve.round_checks import scaled_frames
from understudy.methods import find_method


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_what_varied_in_no_first_episode_and_is_not_seen_is_told(name, tmp_path, recwarn):
    env = make("particle", 2, limit=6)
    data = random_episodes(env, 20, 0)
    column = next(k for k in data.features() if k.startswith("observation."))
    hidden = data.map(lambda e: e.replace({column: np.where(np.arange(e.steps[column].shape[1]) == 1, 0.5,
                                                            e.steps[column]).astype(np.float32)}))
    for number, first in enumerate((data, hidden)):
        method = find_method(name, first.features(), n_rounds=1, n_steps=16)
        train(method, first, tmp_path / f"run{number}", env=env, device="cpu")
        told = [str(w.message) for w in recwarn if issubclass(w.category, DataWarning) and "constant" in str(w.message)]
        assert len(told) == (first is hidden and name == "sac")  # ppo sees them from the next round on
    if told:
        assert told[0].startswith(f"{column} has components that were constant in the first episodes, such as [1], and")


def test_frames_get_the_size_of_the_data():
    def episode(side):
        images = np.full((3, side, side, 3), 7, np.uint8)
        return Episode({"observation.images.front": images, "action": np.zeros((2, 1), np.float32)})
    (scaled,) = scaled_frames(Dataset([episode(32)]), Dataset([episode(8)]))
    assert np.array_equal(scaled.steps["observation.images.front"], episode(8).steps["observation.images.front"])
