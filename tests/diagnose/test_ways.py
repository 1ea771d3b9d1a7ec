"""Policies that do one of several recorded ways, or their mean."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.runs import plain

from understudy.data.episode import Dataset, Episode
from understudy.diagnose.ways import check_averaged_ways
from understudy.policy import Policy


class OneWay(Policy):
    """A policy whose plan is a multiple of the usual action."""

    way = 0.0

    def plan(self, obs, noise, guides=()):
        usual = torch.stack([torch.ones(len(noise)), obs["observation.state"][:, -1, 0]], -1)
        return (self.way * usual)[:, None].expand(-1, self.window.horizon, -1)


def finding(way, ways=(-1.0, 1.0)):
    """Half of the episodes act as 1, s, and the others as -1, -s."""
    rng = np.random.default_rng(0)

    def episode(sign):
        state = rng.uniform(1, 2, (20, 3)).astype(np.float32)
        state[:, 1:] *= 0.01
        action = sign * np.column_stack([np.ones(19), state[:-1, 0]]) + 0.05 * rng.normal(size=(19, 2))
        return Episode({"observation.state": state, "action": action.astype(np.float32)})
    data = Dataset([episode(ways[i % len(ways)]) for i in range(60)])
    config = plain().policy
    policy = OneWay(replace(config, window=replace(config.window, horizon=1)), data.features()).fit_statistics(data)
    policy.way = way
    return [(f.code, f.level, f.value > 0.5) for f in check_averaged_ways(policy, data)]


@pytest.mark.parametrize(("way", "ways", "averages"), [
    (0.0, (-1.0, 1.0), True), (1.0, (-1.0, 1.0), False), (-1.0, (-1.0, 1.0), False), (0.2, (-1.0, 1.0), True),
    (0.0, (1.0,), False), (1.0, (1.0,), False), (1 / 3, (1.0, 1.0, -1.0), True)])
def test_a_plan_between_two_ways(way, ways, averages):
    assert finding(way, ways) == [("averaged-ways", "fault", True)] * averages
