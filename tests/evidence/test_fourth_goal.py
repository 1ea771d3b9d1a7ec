"""The pushes to a fourth goal, and the control, of the claim about alignment with dynamics."""

from collections import Counter

import numpy as np
import torch
from claims.features_of_pictures import fourth_goal as claim

from understudy.learn.objectives.representation import RepresentationLearning
from understudy.policy import Policy


def test_policies_learn_from_pushes_to_the_fourth_goal_alone():
    data = claim.PushesToFourth(6, 2, 3).load(5)
    goals = [tuple(np.round(np.asarray(e.steps[claim.STATE], float)[0, 6:], 2).tolist()) for e in data]
    assert Counter(zip(goals, (e.metadata["dataset"] for e in data), strict=True)) == {
        **dict.fromkeys(((goal, "prior") for goal in ((0.7, 0.65), (0.3, 0.75), (0.75, 0.3))), 2),
        (claim.FOURTH, "task"): 2, (claim.FOURTH, "more"): 3}
    first = [np.asarray(e.steps[claim.STATE])[0, :6].tobytes() for e in data]
    assert len(set(first)) == len(first) and all(e.metadata["success"] for e in data)


def test_encoders_see_the_picture_alone_and_the_control_aligns_with_another_video():
    data = claim.part("prior").apply(claim.PushesToFourth(6, 2, 3).load(5))
    method = claim.TABLE.experiment.arms[0].options[0].encoder
    policy = Policy(method.policy, data.features()).fit_statistics(data)
    learner = RepresentationLearning((claim.ALIGNMENT,), 1, 130).build(policy, 0, 1, data)
    batch = learner.batch_sampler(data).batch(130, 0)
    assert policy.training_context(batch.obs, torch.Generator()).mask.tolist() == [[True, False]] * 130
    plain, other = (x.dynamics(policy, batch) for x in (claim.ALIGNMENT, claim.OtherDynamics(claim.OWN)))
    assert plain.shape == (130, 3 * 2 + 2 * 2)
    torch.testing.assert_close(other.unflatten(0, (26, 5)), plain.unflatten(0, (26, 5))[[-1, *range(25)]])
