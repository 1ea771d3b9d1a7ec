"""Row 090: do three denoising steps reach goals as often as fifty, where play goes two ways to the same goal?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from claims.worlds.curation import cached_load
from claims.worlds.fork import N_REPEATS, ROWS, SampledMethod, measure_sides, train_sampled
from understudy.claims.base import (
    SCORE,
    AboveBound,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.core import normal, uniform
from understudy.data.episode import Dataset
from understudy.data.window import Goal, Window
from understudy.envs.toy import distance, named_vector
from understudy.envs.toys.fork import GOAL_RADIUS, PILLAR, PILLAR_RADIUS, Fork, ForkExpert
from understudy.evaluate.behavior.modes import fork_mode, rollout_repeated_starts
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.base import Head
from understudy.heads.denoising.edm import EDM
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

STATE, GOAL = "observation.state", "observation.goal"
ENDS = np.array([(1.35, 0.25), (1.35, -0.25)], np.float32)  # m; either can be reached on either side of the pillar
N_DEMONSTRATIONS = 200  # demonstrations


class TwoEnds(Fork):
    """The fork with two ends behind the pillar. `GOAL` names the one that counts. The other one has no effect."""

    state_columns = (STATE, GOAL)

    def __init__(self, rows: int):
        super().__init__(rows)
        self.features = {STATE: self.features[STATE], GOAL: named_vector("x", "y", unit="m"),
                         "action": self.features["action"]}

    def initial_state(self, key):
        end = (uniform(key, torch.zeros_like(key), (1,), stream=7)[:, 0] > 0.5).long().numpy()
        return {**super().initial_state(key), "goal": ENDS[end]}

    def observe(self):
        return {STATE: self.state["at"], GOAL: self.state["goal"]}

    def state_from_columns(self, steps):
        return {"at": steps[STATE], "goal": steps[GOAL]}

    def advance(self, action):
        self.state["at"] = at = self.state["at"] + 0.1 * action
        failure = distance(at, PILLAR) < PILLAR_RADIUS
        success = (distance(at, self.state["goal"]) < GOAL_RADIUS) & ~failure
        return success.astype(np.float32) - failure, success, failure

    def expert(self):
        return EndsExpert()


@dataclass(frozen=True)
class EndsExpert(ForkExpert):
    """Passes the pillar on a side that does not depend on the end, and goes to the end."""

    def act(self, obs, state):
        at = obs[STATE]
        around = torch.stack([torch.full_like(state["way"], PILLAR[0]), 0.45 * state["way"]], 1)
        aim = torch.where(at[:, :1] < PILLAR[0] - 0.05, around, obs[GOAL]) - at
        length = (aim * aim).sum(1, keepdim=True).sqrt()
        action = aim / length.clamp(min=0.1) + self.noise * normal(state["key"], state["count"], (2,), stream=2)
        return action, {**state, "count": state["count"] + 1}


@dataclass(frozen=True)
class PlayEpisodes(DemonstrationSource):
    """Successful episodes of the expert, without the goal.

    Args:
        episodes: Number of episodes to roll out.
        sides: Sides on which the pillar may be passed. Other episodes are left out.
    """

    episodes: int
    sides: tuple[str, ...] = ("left", "right")

    @cached_load
    def load(self, seed):
        env = TwoEnds(ROWS)
        rollouts = rollout(env.expert(), env, self.episodes, recording_seed(seed))
        demonstrations = rollouts.filter(lambda e: e.metadata["success"] and fork_mode(e) in self.sides)
        return Dataset([replace(e, steps={k: v for k, v in e.steps.items() if k != GOAL}) for e in demonstrations])


def success_and_sides(
    experiment, option: SampledMethod, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method, rolls each start out `N_REPEATS` times and measures as `measure_sides` does."""
    actor = PolicyActor(FixedBatch(train_sampled(experiment, option, data, seed), ROWS), option.method.executor)
    return measure_sides(
        rollout_repeated_starts(actor, TwoEnds(ROWS), max(1, episodes // N_REPEATS), N_REPEATS, seed=starts))


def edm(n_steps: int) -> EDM:
    """The noise levels of the authors' block pushing."""
    return EDM(n_steps, sigma_min=0.05, sigma_max=1.0, log_sigma_mean=-0.69, log_sigma_std=0.9)


def goal_sampler_arm(name: str, trained: Head, acting: Head) -> Arm:
    """A history of four observations, a later one as the goal, one action; an MLP of 128 x 1 blocks."""
    window = Window(n_obs_steps=4, horizon=1, goals=(Goal(STATE, into=GOAL),))
    policy = PolicyConfig(trained, trunk=MLP(128, 1), encoder=ConcatEncoder(), window=window)
    learner = BehaviorCloning(steps=3000, batch_size=128, optimizer=OptimizerConfig(lr=3e-3))
    return Arm(name, (SampledMethod(Method(policy, RecedingHorizon(1), learner), acting),))


def only_left(experiment: Experiment) -> Experiment:
    return replace(experiment, source=PlayEpisodes(2 * N_DEMONSTRATIONS, ("left",)))


PLAY = Experiment(
    PlayEpisodes(N_DEMONSTRATIONS),
    "fork",
    (
        goal_sampler_arm("3 steps", edm(3), edm(3)),
        goal_sampler_arm("50 steps", edm(3), edm(50)),
        goal_sampler_arm("regression", Regression(), Regression()),
        goal_sampler_arm("1 step", edm(3), edm(1)),
    ),
    success_and_sides,
    seeds=tuple(range(560, 580)),
    looks=((5, 0.01), (10, 0.015), (20, 0.025)),
    episodes=500,
    measures=(("entropy", SCORE),),
    starts_seed=560,
    sanity=(("50 steps", "success", 0.55),),
)
AS_MANY_STEPS = GreaterThan("success", "3 steps", "50 steps", -0.1)
TO_THE_GOAL = AboveBound("success", "3 steps", 0.5)
OVER_REGRESSION = GreaterThan("success", "3 steps", "regression")
BOTH_SIDES = AboveBound("entropy", "3 steps", 0.5)

CLAIM = Claim(
    name="beso-three-steps",
    rows=("090",),
    parts=(ClaimPart("play", PLAY, AllOf((AS_MANY_STEPS, TO_THE_GOAL, OVER_REGRESSION, BOTH_SIDES))),),
    negative_control=NegativeControl(only_left, "play", removes=(OVER_REGRESSION, BOTH_SIDES)),
)
