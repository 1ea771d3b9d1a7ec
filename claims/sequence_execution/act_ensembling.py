"""Row 158: does averaging the actions of overlapping chunks help to succeed?"""

from dataclasses import dataclass, replace
from math import log

import numpy as np

from claims.worlds.curation import cached_load
from understudy.claims.base import (
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    ExpertDemonstrations,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import ROWS, log_jerk, train_policy
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.envs import make
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, PolicyActor
from understudy.execute.base import Executor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.execute.temporal_ensemble import TemporalEnsemble
from understudy.heads.likelihood.cvae import CVAE
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

HORIZON = 20  # steps of 0.1 s: 2 s as in the paper, which has 100 steps of 0.02 s
PERIOD, SPEED = 0.1, 0.5  # s, m/s: of arms


@dataclass(frozen=True)
class TargetDemonstrations(DemonstrationSource):
    """Demonstrations of arms whose actions are the positions where the hands are to be next, as in ALOHA."""

    episodes: int

    @cached_load
    def load(self, seed):
        data = ExpertDemonstrations("arms", self.episodes).load(seed)
        return Dataset([e.replace({"action": _targets(e.steps)}) for e in data], data.metadata)


def _targets(steps):
    velocity = np.clip(steps["action"], -SPEED, SPEED)
    hands = steps["observation.state"][: len(velocity), :4]
    return (hands + PERIOD * velocity).astype(np.float32)


@dataclass(frozen=True)
class TargetTracker(Actor):
    """Moves the hands towards the positions that `actor` asks for."""

    actor: Actor

    def start(self, obs, key):
        return self.actor.start(obs, key)

    def act(self, obs, state):
        target, state = self.actor.act(obs, state)
        return (target - obs["observation.state"][:, :4]) / PERIOD, state


def success_and_jerk(
    experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """"success" and "log_jerk" of the hands' velocities."""
    policy = train_policy(experiment, method, data, seed)
    actor = TargetTracker(PolicyActor(FixedBatch(policy, ROWS), method.executor))
    rollouts = rollout(actor, make(experiment.env, rows=min(ROWS, episodes)), episodes, seed=starts)
    return {"success": [float(e.metadata["success"]) for e in rollouts], "log_jerk": [log_jerk(e) for e in rollouts]}


def act_arm(name: str, executor: Executor) -> Arm:
    """One policy for all arms, with ACT's beta. They differ in the executor alone, so each seed is trained once."""
    policy = PolicyConfig(CVAE(latent_dim=8, beta=10.0), trunk=MLP(width=64, depth=1),
                          window=Window(n_obs_steps=1, horizon=HORIZON))
    learner = BehaviorCloning(steps=1000, optimizer=OptimizerConfig(lr=3e-3))
    return Arm(name, (Method(policy, executor, learner),))


def without_average(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(act_arm("ensemble", RecedingHorizon(1)))


BIMANUAL = Experiment(
    TargetDemonstrations(50),
    "arms",
    (
        act_arm("chunks", RecedingHorizon(HORIZON)),
        act_arm("ensemble", TemporalEnsemble(0.01)),
        act_arm("each step", RecedingHorizon(1)),
    ),
    success_and_jerk,
    seeds=tuple(range(300, 320)),
    episodes=500,
    starts_seed=300,
    looks=((5, 0.01), (10, 0.015), (20, 0.025)),
    sanity=(("chunks", "success", 0.3),),
)
FIRST_SEEDS = replace(BIMANUAL, seeds=BIMANUAL.seeds[:5], looks=())  # the same cells

CLAIM = Claim(
    name="act-ensembling",
    rows=("158",),
    parts=(
        ClaimPart("over the newest chunk", BIMANUAL, GreaterThan("success", "ensemble", "each step"),
                  is_decisive=False),
        ClaimPart("over chunks", FIRST_SEEDS, GreaterThan("success", "ensemble", "chunks", -0.05)),
        ClaimPart("smoother than chunks", FIRST_SEEDS, GreaterThan("log_jerk", "chunks", "ensemble", -log(0.8))),
    ),
    negative_control=NegativeControl(without_average, "over the newest chunk"),
)
