"""The time of an action and of a plan."""

from dataclasses import dataclass

import torch

from understudy.core import Feature
from understudy.data.window import Window
from understudy.evaluate.behavior.latency import measure_latency
from understudy.execute.actor import Actor, ObservationWrapper, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import PlannerWrapper
from understudy.heads.likelihood.regression import Regression
from understudy.nets.mlp import MLP
from understudy.policy import Planner, PolicyConfig
from understudy.testing import random_batch


@dataclass(frozen=True)
class Slow(Actor):
    """Plans every fifth step, for as long as it says."""

    seconds: float
    shapes: list

    def start(self, obs, key):
        return {"count": torch.zeros_like(key)}

    def act(self, obs, state):
        import time

        self.shapes.append({k: tuple(v.shape) for k, v in obs.items()})
        if state["count"].item() % 5 == 0:
            time.sleep(self.seconds)
        return torch.zeros(1, 2), {"count": state["count"] + 1, "record": {"x": torch.zeros(1)}}


def test_latency_is_of_one_robot_and_tells_the_slow_ones(shaky):
    shapes = []
    latency = measure_latency(Slow(0.03, shapes), shaky, fps=40, decisions=30)
    assert latency.decisions == 30 and latency.median < 20 and 30 <= latency.p95 <= latency.max
    assert latency.n_plans is None and latency.describe().startswith("A decision takes")
    assert latency.period == 25 and latency.n_late >= 6 and latency.period_fraction == latency.p95 / 25
    assert all(s == {"observation.state": (1, 2), "last.reward": (1,)} for s in shapes)
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
    latency = measure_latency(actor, shaky, fps=40, decisions=40)
    assert (latency.decisions, latency.n_plans) == (40, sum(-(-n // 5) for n in counted_steps(shaky, 40)))
    assert latency.between_plans < 20 < 30 <= latency.median <= latency.p95 <= latency.max
    assert latency.n_late >= latency.n_plans
    assert latency.describe().startswith("A plan takes 3") and "the steps between take" in latency.describe()
    every = measure_latency(PolicyActor(SlowPlanner(policy, 0.0), RecedingHorizon(1)), shaky, decisions=20)
    assert every.n_plans == every.decisions == 20 and every.between_plans is None


def counted_steps(episodes, decisions):
    """Of each episode as many steps as are timed."""
    for e in episodes:
        yield min(len(e), decisions)
        decisions -= min(len(e), decisions)
