"""The time of an action and of a plan."""

from dataclasses import dataclass

import torch

from understudy.core import Feature
from understudy.data.window import Window
from understudy.evaluate.behavior.latency import measure_latency
from understudy.execute.actor import Actor, ObservationWrapper, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import PlannerWrapper
from understudy.heads.regression import Regression
from understudy.nets.mlp import MLP
from understudy.policy import Planner, PolicyConfig
from understudy.testing import random_batch


@dataclass(frozen=True)
class Slow(Actor):
    """Plans every fifth step, for as long as it says."""

    seconds: float
    seen: list

    def start(self, obs, key):
        return {"count": torch.zeros_like(key)}

    def act(self, obs, state):
        import time

        self.seen.append({k: tuple(v.shape) for k, v in obs.items()})
        if state["count"].item() % 5 == 0:
            time.sleep(self.seconds)
        return torch.zeros(1, 2), {"count": state["count"] + 1, "record": {"x": torch.zeros(1)}}


def test_latency_is_of_one_robot_and_tells_the_slow_ones(shaky):
    seen = []
    found = measure_latency(Slow(0.03, seen), shaky, fps=40, decisions=30)
    assert found.decisions == 30 and found.median < 20 and 30 <= found.p95 <= found.max
    assert found.n_plans is None and found.describe().startswith("A decision takes")
    assert found.period == 25 and found.n_late >= 6 and found.period_fraction == found.p95 / 25
    assert all(s == {"observation.state": (1, 2), "last.reward": (1,)} for s in seen)
    short = measure_latency(Slow(0.03, []), shaky, decisions=10_000, seconds=0.2)
    assert 0 < short.decisions < 100 and short.period is short.n_late is short.period_fraction is None


@dataclass(frozen=True)
class SlowPlanner(PlannerWrapper):
    planner: Planner
    seconds: float

    def plan(self, obs, noise, guides=()):
        import time

        time.sleep(self.seconds)
        return self.planner.plan(obs, noise, guides)


def test_the_time_of_a_plan_is_not_that_of_a_step_of_its_chunk(shaky):
    config = PolicyConfig(Regression(), MLP(8), window=Window(horizon=5))
    policy, _ = random_batch(config, inputs={"observation.state": Feature("float32", (2,))})
    actor = ObservationWrapper(PolicyActor(SlowPlanner(policy.eval(), 0.03), RecedingHorizon(5)), {})
    found = measure_latency(actor, shaky, fps=40, decisions=40)
    assert (found.decisions, found.n_plans) == (40, sum(-(-n // 5) for n in counted_steps(shaky, 40)))
    assert found.between_plans < 20 < 30 <= found.median <= found.p95 <= found.max
    assert found.n_late >= found.n_plans
    assert found.describe().startswith("A plan takes 3") and "the steps between take" in found.describe()
    every = measure_latency(PolicyActor(SlowPlanner(policy, 0.0), RecedingHorizon(1)), shaky, decisions=20)
    assert every.n_plans == every.decisions == 20 and every.between_plans is None


def counted_steps(episodes, decisions):
    """Of each episode as many steps as are timed."""
    for e in episodes:
        yield min(len(e), decisions)
        decisions -= min(len(e), decisions)
