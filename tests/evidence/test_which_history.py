"""What the expert records of its computation."""

import numpy as np

from evidence.families.histories import which_history


def test_the_recorded_computation_says_to_which_goal_the_expert_goes():
    for episode in which_history.ExplainedDemonstrations(6).load(1):
        at_first, at_second = episode.steps[which_history.STATE][:-1, 4:6], episode.steps[which_history.STATE][:-1, 6:8]
        onward = episode.steps[which_history.RESULT]
        assert np.array_equal(episode.steps["action"], np.where(onward, at_second, at_first))
        assert np.array_equal(episode.steps[which_history.READ][:-1], onward) and 0 < onward.mean() < 1
        silent = which_history.first_goal_always(episode).steps
        assert not silent[which_history.READ].any() and not silent[which_history.RESULT].any()
