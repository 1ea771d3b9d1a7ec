"""The pushes to a fourth goal, and what encoders of ordered frames see."""

from collections import Counter

import numpy as np
import torch

from evidence.families.pictures import fourth_goal as world
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.policy import Policy


def test_policies_learn_from_pushes_to_the_fourth_goal_alone():
    data = world.PushesToFourth(6, 2, 3).load(5)
    goals = [tuple(np.round(np.asarray(e.steps[world.STATE], float)[0, 6:], 2).tolist()) for e in data]
    assert Counter(zip(goals, (e.metadata["dataset"] for e in data), strict=True)) == {
        **dict.fromkeys(((goal, "prior") for goal in ((0.7, 0.65), (0.3, 0.75), (0.75, 0.3))), 2),
        (world.FOURTH, "task"): 2, (world.FOURTH, "more"): 3}
    first = [np.asarray(e.steps[world.STATE])[0, :6].tobytes() for e in data]
    assert len(set(first)) == len(first) and all(e.metadata["success"] for e in data)


def test_encoders_see_the_picture_alone():
    data = world.part("prior").apply(world.PushesToFourth(6, 2, 3).load(5))
    method = world.TABLE.arms["MCR"].encoder
    policy = Policy(method.policy, data.features()).fit_statistics(data)
    learner = RepresentationLearning((world.ALIGNMENT,), 1, 130).build(policy, 0, 1, data)
    batch = learner.batch_sampler(data).batch(130, 0)
    assert policy.training_context(batch.obs, torch.Generator()).mask.tolist() == [[True, False]] * 130
    assert world.ALIGNMENT.dynamics(policy, batch).shape == (130, 3 * 2 + 2 * 2)
