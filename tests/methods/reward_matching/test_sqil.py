"""SQIL is its actor-critic on relabeled data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from fixtures.collections import fork

from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.learn.fit_method import fit_method
from understudy.methods import find_method


@dataclass(frozen=True)
class SetReward:
    value: float

    def __call__(self, episode):
        return episode.replace({"next.reward": np.full(len(episode), self.value, np.float32)})


def test_it_is_bit_equal_to_its_actor_critic_on_relabeled_data():
    env = fork(4)
    demos = rollout(env.expert(), env, 4, recording_seed(0))
    sqil = find_method("sqil", n_rounds=2, n_episodes=2)
    sqil = replace(sqil, learner=replace(sqil.learner, batch_size=16))
    plain = replace(sqil, learner=replace(sqil.learner, reward=None),
                    collection=replace(sqil.collection, relabel=(SetReward(0.0),)))
    one, other = (fit_method(method, data, 0, env=fork(4))
                  for method, data in ((sqil, demos), (plain, demos.map(SetReward(1.0)))))
    for name in ("policy", "critic"):
        weights = [list(result.modules[name].state_dict().values()) for result in (one, other)]
        assert all(map(torch.equal, *weights))
