"""Sanity level of methods that practice with a reward from demonstrations: above cloning in a world of gusts."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
from fixtures.reward_matching import CONSTANT, demonstrations, small, success, trained, world

from understudy.evaluate.evaluation import evaluate
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.methods import find_method

SEED = 1
DISCRIMINATOR = {"hidden": (64, 64), "optimizer": replace(CONSTANT, lr=5e-4)}
REWARDS = {"dac": DISCRIMINATOR, "airl": DISCRIMINATOR}  # fields of the reward, besides its discount


def of_30_rounds(name: str) -> Method:
    """The method with small networks. AIRL explores by its own density, and the others by noise."""
    method = find_method(name)
    exploration = {"exploration": method.collection.collector.exploration} if name == "airl" else {}
    shorter = small(method, **REWARDS.get(name, {}))
    collector = replace(shorter.collection.collector, **exploration)
    return replace(shorter, collection=replace(shorter.collection, n_rounds=30, collector=collector))


@functools.cache
def references() -> tuple[float, float]:
    """The success of cloning and that of the expert."""
    method = small(find_method("sqil"))
    cloning = Method(method.policy, method.executor, BehaviorCloning(2000, 128, CONSTANT))
    return (success(fit_method(cloning, demonstrations(SEED), SEED)),
            evaluate(world(50).env.expert(), world(50), 200).success.estimate)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dac", "airl", "sqil", "pwil", "density-reward"])
def test_it_is_above_cloning(name):
    """The reward needs the environment, and cloning does not."""
    cloned, expert = references()
    learned = success(trained(of_30_rounds(name), SEED))
    assert learned > max(cloned, 0.68) and learned >= 0.75 * expert, (learned, cloned)
