"""The world of the claim about pictures of goals, and the arms without a mechanism."""

import numpy as np
import torch
from claims.features_of_states import goal_pictures as claim

from understudy.envs.toys.four_rooms import HALF
from understudy.policy import Policy


def test_goals_lie_in_the_room_of_the_start_and_their_picture_is_that_of_arriving():
    env = claim.Pictures(claim.SameRoom())
    keys = torch.arange(claim.ROWS)
    before = env.reset(keys, keys)
    state = env.env.state
    assert (state["at"] // HALF == state["goal"] // HALF).all() and np.abs(state["at"] - state["goal"]).max() > 2
    state["at"][:] = state["goal"]
    out = env.step(torch.zeros(claim.ROWS, 2))
    assert torch.equal(out.obs[claim.PICTURE], before[claim.GOAL]) and out.terminated.all()
    assert not torch.equal(before[claim.PICTURE], before[claim.GOAL])


def test_another_color_changes_the_agent_alone():
    red, blue = (claim.Pictures(claim.SameRoom(), role).reset(*[torch.arange(claim.ROWS)] * 2)
                 for role in ("agent", "block"))
    changed = (red[claim.PICTURE] != blue[claim.PICTURE]).any(-1).sum((1, 2))
    assert changed.min() >= 4 and changed.max() <= 9  # the pixels of a disc as wide as 1.6 of them


def test_the_ablations_remove_their_mechanism_alone():
    arms = {arm.name: arm.options[0] for arm in claim.TABLE.experiment.arms}
    data = claim.Walks(3).load(5)
    policy = Policy(arms["motions"].policy, data.features()).fit_statistics(data)
    batch = policy.windows(data).gather(np.arange(40), np.random.default_rng(0))
    rng = torch.Generator().manual_seed(0)
    assert not policy.with_head(arms["without classification"].policy.head).loss(batch, rng).any()
    assert policy.loss(batch, rng).min() > 0
    steps = f"{claim.GOAL}.steps"
    assert batch.extra[steps].max() <= 20
    control = dict(claim.TABLE.ablations)["goals of other episodes"].option
    others = Policy(control.policy, data.features()).fit_statistics(data).windows(data)
    other = others.gather(np.arange(300), np.random.default_rng(0)).extra[steps]
    assert 0.5 < other.isinf().float().mean() < 0.8  # two of three walks are others
