"""Why real-time chunking loses without delay: python benchmarks/real_time_guidance.py [SEED ...]

Small flow policies push a block, with no delay and 4 of 16 steps executed. Real-time chunking guides each new chunk
towards the rest of the old one, and then executes its first steps. The table shows the success with the old chunk, and
with another new chunk in its place, which is drawn from the newest observation. If guidance itself did harm, both would
lose. The last column is how much of the distance to the old chunk the guidance removes in the executed steps.

A training seed takes about 20 s of a core. The settings were chosen for a policy that works and trains in seconds.
"""

from __future__ import annotations

import measure

measure.one_thread()

import sys  # noqa: E402
from dataclasses import replace  # noqa: E402

import delay  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from understudy.envs import make  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.execute.actor import PolicyActor  # noqa: E402
from understudy.execute.chunking import RealTimeChunking  # noqa: E402
from understudy.execute.planners import PlannerWrapper  # noqa: E402
from understudy.learn.fit_method import fit_method  # noqa: E402
from understudy.nets.mlp import MLP  # noqa: E402
from understudy.policy import Inpaint, Planner, Policy  # noqa: E402

UPDATES, STARTS, EXECUTED = 2400, 300, 4
SCHEDULES = ("zeros", "exponential", "linear", "ones")  # without delay, "zeros" is receding-horizon


class GuidedPlans(PlannerWrapper):
    """Measures how far guidance leads to the old chunk, or replaces the old chunk by another new one.

    Args:
        planner: The policy.
        fresh: Guide towards a second plan from the newest observation.
    """

    def __init__(self, planner: Planner, fresh: bool):
        self.planner, self.fresh, self.left, self.before = planner, fresh, 0.0, 0.0

    def plan(self, obs, noise, guides=()):
        (guide,) = (g for g in guides if isinstance(g, Inpaint))
        if self.fresh:
            guide = Inpaint(self.planner.plan(obs, noise.flip(0)), guide.weight)
        plain, guided = self.planner.plan(obs, noise), self.planner.plan(obs, noise, (guide,))
        old = (guide.weight.sum(1) > 0).nonzero().flatten()
        for name, plan in (("before", plain), ("left", guided)):
            gap = ((plan - guide.action) / self.planner.action_scale)[old, :EXECUTED]
            setattr(self, name, getattr(self, name) + gap.square().sum().item())
        return guided


def train(seed: int) -> Policy:
    """A flow policy that predicts the action, with a small network."""
    recipe = delay.method(replace(delay.FULL, updates=UPDATES))
    policy = replace(recipe.policy, head=replace(recipe.policy.head, prediction="sample"), trunk=MLP(128, 2))
    recipe = replace(recipe, policy=policy, learner=replace(recipe.learner, batch_size=64))
    return fit_method(recipe, delay.demonstrations(delay.TASKS["push"]), seed).policy


def main(seeds: list[int]) -> None:
    print("seed  schedule     old chunk  new chunk  distance removed")
    for seed in seeds:
        policy = train(seed)
        for schedule in SCHEDULES:
            rates, planners = [], [GuidedPlans(policy, fresh) for fresh in (False, True)]
            for planner in planners:
                actor = PolicyActor(planner, RealTimeChunking(EXECUTED, 0, schedule=schedule))
                rollouts = rollout(actor, make("push", rows=STARTS), STARTS)
                rates.append(np.mean([e.metadata["success"] for e in rollouts]))
            removed = 1 - (planners[0].left / planners[0].before) ** 0.5 if planners[0].before else 0.0
            print(f"{seed:4}  {schedule:11} {rates[0]:10.2f} {rates[1]:10.2f} {removed:17.2f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main([int(s) for s in sys.argv[1:]] or [1, 2, 3])
