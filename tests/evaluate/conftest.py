"""Fixtures that several files of this folder use."""


import pytest
from folders import BENCHMARKS

from understudy import rollout
from understudy.envs.toys.fork import Fork
from understudy.evaluate.evaluation import evaluate
from understudy.execute.actor import NoisyActor


@pytest.fixture
def coverage(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import intervals
    return intervals


@pytest.fixture(scope="module")
def shaky():
    """The fork's expert with a hand so unsteady that it fails often."""
    env = Fork(50)
    return rollout(NoisyActor(env.expert(), 2, 1.2), env, 60, seed=0)


@pytest.fixture(scope="module")
def runs():
    def go(std):
        env = Fork(20)
        return evaluate(NoisyActor(env.expert(), 2, std), Fork(20), 20, 0)
    return {"steady": go(0.0), "shaky": go(2.0)}
