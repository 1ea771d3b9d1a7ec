"""Following demonstrations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.plans import SMALL, flow

from understudy.core import Unsupported, UserError
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.execute.following import FollowDemonstration
from understudy.heads.likelihood.regression import Regression
from understudy.heads.memory.neighbors import Neighbors
from understudy.nets.encoders import ConcatEncoder
from understudy.policy import Policy, PolicyConfig
from understudy.testing import random_batch

STATE, TOP = "observation.state", "observation.images.top"


def line(*episodes):
    """A policy that remembers episodes with these states. The action of step t of episode e is 10 e + t."""
    data = Dataset([Episode({"observation.state": np.array(states, np.float32)[:, None],
                             "action": 10 * i + np.arange(len(states), dtype=np.float32)[:, None]})
                    for i, states in enumerate(episodes)])
    config = PolicyConfig(Neighbors(1), encoder=ConcatEncoder(), codec=Normalizer("identity", "identity"),
                          window=Window(horizon=2))
    return Policy(config, data.features()).fit_statistics(data).eval()


def followed(executor, policy, *states):
    observations = [{"observation.state": torch.tensor([[[float(s)]]])} for s in states]
    state, out = executor.start(policy, observations[0], torch.tensor([1])), []
    for obs in observations:
        action, state = executor.act(policy, obs, state)
        out.append(int(action.item()))
    return out


def test_a_demonstration_is_followed_until_it_no_longer_fits():
    policy = line([0, 1, 2, 3, 4], [10, 11, 12, 13])
    follow = FollowDemonstration(ratio=3.0, min_distance=0.0)
    # It begins at a distance of 0.2, and 0.5 farther on still fits, although another step would be nearer.
    assert followed(follow, policy, 0.2, 1.5, 1.55) == [0, 1, 2]
    assert followed(follow, policy, 0.2, 1.7, 2.9) == [0, 2, 3]  # 0.7 is more than 3 * 0.2: the step at 2 is searched
    assert followed(follow, policy, 0.2, 11.2, 12.2) == [0, 11, 12]
    assert followed(FollowDemonstration(ratio=None), policy, 0, 12, 12) == [0, 1, 2]
    assert followed(FollowDemonstration(2, ratio=None), policy, 0, 12, 12) == [0, 1, 12]
    assert followed(follow, policy, 3.1, 4.1, 0) == [3, 4, 0]  # a demonstration that has ended is not left for the next
    assert [followed(replace(follow, min_distance=d), policy, 0, 1.6) for d in (0.0, 0.7)] == [[0, 2], [0, 1]]


def test_only_stored_demonstrations_can_be_followed():
    with pytest.raises(Unsupported, match="not stored in the policy"):
        FollowDemonstration().check_planner(random_batch(PolicyConfig(Regression(), trunk=SMALL))[0])
    with pytest.raises(UserError, match="where a demonstration ends"):
        FollowDemonstration().check_planner(random_batch(PolicyConfig(Neighbors(1), window=Window()))[0])


@pytest.mark.parametrize("change, said", [
    (lambda obs, noise: (None, noise), "obs is a NoneType, and not a dict of columns"),
    (lambda obs, noise: ({}, noise), "there is no column 'observation.environment_state'; there are no columns"),
    (lambda obs, noise: ({k: x[:, 0] for k, x in obs.items()}, noise), r"must be a tensor of shape \(rows, 2, 3\)"),
    (lambda obs, noise: ({k: x[..., :2] for k, x in obs.items()}, noise), r"but is a tensor of shape \(5, 2, 2\)"),
    (lambda obs, noise: ({k: x.numpy() for k, x in obs.items()}, noise), "but is a ndarray"),
    (lambda obs, noise: ({**obs, STATE: obs[STATE][:3]}, noise), r"shape \(5, 2, 3\), but is .* \(3, 2, 3\)"),
    (lambda obs, noise: (obs, None), r"noise must be a tensor of shape \(5, 4, 2\), but is a NoneType"),
    (lambda obs, noise: (obs, noise[:1]), r"noise must be .* \(5, 4, 2\), but is a tensor of shape \(1, 4, 2\)"),
    (lambda obs, noise: (obs, noise[:, :3]), r"noise must be .* but is a tensor of shape \(5, 3, 2\)")])
def test_a_plan_of_wrong_arguments_says_what_is_wrong(change, said):
    policy, batch = random_batch(flow(Window(2, 4)))
    noise = torch.randn(len(batch), *policy.noise_shape)
    obs, noise = change(dict(batch.obs), noise)
    with pytest.raises(UserError, match=f"Policy.plan.*{said}"):
        policy.plan(obs, noise)
