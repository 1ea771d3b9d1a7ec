"""What a batch consists of while episodes are collected."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest

from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.improve.batch_composition import PowerLawRehearsal
from understudy.improve.collection import CollectionRounds, RolloutCollector, TaskSequenceCollector
from understudy.improve.updates import PerRound
from understudy.learn.algorithm import Engine
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

STATE = "observation.state"


def tasks(*lengths):
    """Four tasks of three episodes each, whose action is the number of the task."""
    rng = np.random.default_rng(0)
    return Dataset([Episode({STATE: rng.normal(size=(length + 1, 2)).astype(np.float32),
                             "action": np.full((length, 1), number, np.float32)}, {"task": str(number)})
                    for number, length in enumerate(lengths) for _ in range(3)])


def drawn_tasks(rehearsal, n_updates, batch_size=24):
    """How often each task was drawn in each of four phases."""
    draws = []

    class Counting(Engine):
        def update(self, batch):
            draws.append(Counter(batch.action[batch.mask].flatten().int().tolist()))
            return super().update(batch)

    @dataclass(frozen=True)
    class CountingCloning(BehaviorCloning):
        def build(self, policy, seed, steps, data):
            return Counting(self, policy, seed, steps, data)
    rounds = CollectionRounds(3, TaskSequenceCollector(), updates=PerRound(n_updates), initial_updates=n_updates,
                              rehearsal=rehearsal)
    method = Method(PolicyConfig(Regression(), MLP(8, 1), window=Window(1, 1)),
                    learner=CountingCloning(4 * n_updates, batch_size), collection=rounds)
    fit_method(method, tasks(4, 30, 8, 2), 0)
    return [dict(sum(draws[first:first + n_updates], Counter())) for first in range(0, 4 * n_updates, n_updates)]


def test_earlier_tasks_reappear_by_a_power_of_their_age_whatever_their_length():
    """Half of a batch of 24 is new, and 12 are divided by 1, by 1/2 : 1, and by 1/3 : 1/2 : 1."""
    first, second, third, fourth = drawn_tasks(PowerLawRehearsal(), 11)
    assert (first, second, third) == ({0: 264}, {0: 132, 1: 132}, {0: 44, 1: 88, 2: 132})
    assert fourth[3] == 132 and [fourth[task] for task in range(3)] == pytest.approx([24, 36, 72], abs=1)
    squares = drawn_tasks(PowerLawRehearsal(exponent=2.0, fraction=0.75), 1, batch_size=196)[-1]
    assert squares == {0: 12, 1: 27, 2: 108, 3: 49}  # of 147: 1/9 : 1/4 : 1
    assert drawn_tasks(PowerLawRehearsal(0.0), 1)[-1] == {0: 4, 1: 4, 2: 4, 3: 12}


def test_what_a_batch_consists_of_is_said_once_and_of_tasks():
    rounds = CollectionRounds(3, TaskSequenceCollector())
    for other in ({"mixture_weights": (0.5, 0.5)}, {"half_where": "intervention"}):
        with pytest.raises(UserError, match="rehearsal: both say what a batch consists of"):
            replace(rounds, rehearsal=PowerLawRehearsal(), **other)
    with pytest.raises(UserError, match="the rounds of RolloutCollector are not tasks"):
        CollectionRounds(3, RolloutCollector(2), rehearsal=PowerLawRehearsal())
    for wrong in ({"exponent": -1.0}, {"fraction": 0.0}, {"fraction": 1.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            PowerLawRehearsal(**wrong)
