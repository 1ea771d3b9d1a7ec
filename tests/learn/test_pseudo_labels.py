"""Actions that an inverse dynamics model tells."""

import numpy as np
import pytest

from understudy.checkpoint import FromStage
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.pseudo_labels import PseudoLabel
from understudy.policy import PolicyConfig
from understudy.testing import check_method


def walk(seed, part):
    """The action is the next move, which only the next position tells."""
    action = np.random.default_rng(seed).uniform(-1, 1, (20, 2)).astype(np.float32)
    position = np.concatenate([np.zeros((1, 2), np.float32), 0.3 * action.cumsum(0)])
    return Episode({"observation.state": position, "action": action}, {"dataset": part})


def test_the_next_observation_tells_the_action_and_known_actions_stay():
    data = Dataset([walk(i, "task") for i in range(20)] + [walk(i, "prior") for i in range(100, 105)])
    hidden = data.map(lambda e: e if e.metadata["dataset"] == "task" else e.replace({"action": 0 * e.steps["action"]}))
    errors = []
    for window in (Window(2, obs_offset=1), Window(2)):
        inverse = Method(PolicyConfig(Regression(), window=window),
                         learner=BehaviorCloning(400, 64, OptimizerConfig(lr=3e-3)))
        labeler = fit_method(inverse, data[:20], 0).policy
        labeled = PseudoLabel(labeler).apply(hidden)
        assert all((labeled[i].steps["action"] == data[i].steps["action"]).all() for i in range(20))
        errors.append(np.mean([np.square(labeled[i].steps["action"] - data[i].steps["action"]) for i in range(20, 25)]))
    assert errors[0] < 0.01 and errors[1] > 0.25, errors  # the variance of the actions is a third
    assert not PseudoLabel(labeler, "other").apply(hidden)[20].steps["action"].any(), "only one part gets actions"


def test_the_method_trains_the_labeler_on_the_part_that_has_actions():
    check_method("ss-orl")
    stage = Stage("inverse", Method(PolicyConfig(Regression(), window=Window(2, obs_offset=1)),
                                    learner=BehaviorCloning(0)), dataset="task")
    with pytest.raises(UserError, match="is not a trained policy"):
        PseudoLabel(FromStage("inverse")).apply(Dataset([walk(0, "prior")]))
    method = Method(PolicyConfig(Regression()), learner=BehaviorCloning(0), stages=(stage,),
                    transforms=(PseudoLabel(FromStage("inverse")),))
    fit_method(method, Dataset([walk(0, "task"), walk(1, "prior")]), 0)
    with pytest.raises(UserError, match="the data have no part 'task'"):
        fit_method(method, Dataset([walk(1, "prior")]), 0)
