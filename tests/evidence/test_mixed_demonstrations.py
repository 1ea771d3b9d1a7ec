"""Which recorded actions are replaced."""

import numpy as np

from evidence.families.bad_demonstrations.mixed_demonstrations import DRAW, ReplacedActions
from understudy.data.episode import Episode


def test_steps_whose_draw_is_small_have_wrong_actions():
    episode = Episode({"action": np.zeros((4, 2), np.float32), DRAW: np.array([0.05, 0.5, 0.15, 0.1], np.float32)})
    for percent, wrong in ((10, [1, 0, 0, 0]), (20, [1, 0, 1, 1])):
        steps = ReplacedActions(percent)(episode).steps
        assert steps["action"].tolist() == [[w, w] for w in wrong]
        assert steps["keep.clean"].tolist() == [1 - w for w in wrong]
