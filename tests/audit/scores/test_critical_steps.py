"""Critical steps of an errand, and what a policy learns that is trained on them alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.audit.scores import MarkCriticalSteps
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.learn.fit_method import fit_method
from understudy.learn.sample_weights import ColumnWeights
from understudy.methods import find_method
from understudy.nets.feed_forward import FeedForward
from understudy.testing import check_column_change

STATE = "observation.state"


def errand() -> Episode:
    """Somebody walks to a key, takes it, walks to a chest, opens it and finds nothing, and walks to another chest. What
    is held and whether the first chest is known to be empty are two numbers."""
    subtask = ["key"] * 3 + ["left chest"] * 3 + ["right chest"] * 2
    known = [[0, 0]] * 3 + [[1, 0]] * 3 + [[1, 1]] * 3
    return Episode({STATE: np.zeros((9, 2), np.float32), "known": np.array(known, np.float32),
                    "subtask": np.array(subtask), "action": np.zeros((8, 1), np.float32)})


@pytest.mark.parametrize("plans, events, critical", [
    (("subtask",), (), [0, 3, 6]),  # the first plan, the next one, and the one that corrects it
    ((), ("known",), [2, 5]),  # the key is taken, and the chest turns out to be empty
    (("subtask",), ("known",), [0, 2, 3, 5, 6])])
def test_plans_deeds_discoveries_and_corrections_are_critical(plans, events, critical):
    change = MarkCriticalSteps(plans, events)
    column = change(errand()).steps["critical"]
    assert column.shape == (8, 1) and np.flatnonzero(column).tolist() == critical
    check_column_change(change, Dataset([errand()]))


def test_the_last_step_changes_what_is_observed_after_it():
    def marks(rows):
        episode = Episode({STATE: np.zeros((4, 1), np.float32), "held": np.array([0, 0, 0, 1])[:rows, None],
                           "action": np.zeros((3, 1), np.float32)})
        return MarkCriticalSteps((), ("held",))(episode).steps["critical"][:, 0].tolist()
    assert marks(4) == [0, 0, 1] and marks(3) == [0, 0, 0]
    with pytest.raises(UserError, match="there is no column 'plan'"):
        MarkCriticalSteps(("plan",))(errand())
    with pytest.raises(UserError, match="no column says which steps are critical"):
        MarkCriticalSteps(())


@pytest.mark.parametrize("other_weight, expected", [(0.0, [2.0, -2.0]), (1.0, [-1.0, -3.0])])
def test_only_critical_steps_are_learned_and_others_are_read(other_weight, expected):
    """A cue of 1 or -1 is seen at steps 0, 2, 4 and 6, and nothing at the steps between, which read the cue as the step
    before. At step 1 a plan begins, and the action is 2 or -2. At the steps 3, 5 and 7, in the same situation, it is
    -2 or -10/3. With equal weights the mean (2 - 6) / 4 = -1 or (-2 - 10) / 4 = -3 is learned."""
    def episode(cue, action, other):
        state, actions = np.zeros((9, 1), np.float32), np.full((8, 1), 7, np.float32)
        state[::2], actions[1::2], actions[1] = cue, other, action
        return Episode({STATE: state, "subtask": np.array(["wait"] + ["go"] * 7), "action": actions})
    data = Dataset([episode(1, 2, -2), episode(-1, -2, -10 / 3)]).map(MarkCriticalSteps())
    method = find_method("bc", data.features())
    learner = replace(method.learner, steps=200, sample_weights=ColumnWeights("critical", 1.0, other_weight))
    policy = replace(method.policy, window=Window(2, 1), trunk=FeedForward((64,)), inputs=(STATE,))
    policy = fit_method(replace(method, policy=policy, learner=learner), data, 0).policy
    obs = {STATE: torch.tensor([[[1.0], [0.0]], [[-1.0], [0.0]]])}
    plan = policy.plan(obs, torch.zeros(2, *policy.noise_shape))[:, 0, 0]
    torch.testing.assert_close(plan, torch.tensor(expected), atol=0.2, rtol=0)
