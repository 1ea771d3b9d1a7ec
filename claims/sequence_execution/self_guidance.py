"""Row 258: does a policy act better if it is guided away from what it would have done at its last observation?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from understudy.claims.base import (
    Arm,
    Claim,
    ClaimPart,
    Experiment,
    ExpertDemonstrations,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import train_policy
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.envs import make
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.adaptive import AdaptiveChunking, CosineAgreement
from understudy.execute.base import Executor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.execute.self_guidance import PastObservationGuidance, SelfGuided
from understudy.heads.denoising.edm import EDM
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Planner, Policy, PolicyConfig

ROWS = 100  # environments side by side; only guides from other rows depend on it
HORIZON, SCALE, GUST = 8, 1.0, 0.3  # steps of a plan; scale of guidance; m/s


@dataclass(frozen=True)
class OthersMovement(SelfGuided):
    """The earlier observation is the present one, less the last movement of another row."""

    def plan(self, obs, noise, guides=()):
        now = self._now(obs)
        past = {k: now[k] + (v[:, : -self.lag] - now[k]).roll(1, 0) for k, v in obs.items()}
        guide = PastObservationGuidance(self.planner.context(past), self.scale)
        return self.planner.plan(now, noise, (*guides, guide))


@dataclass(frozen=True)
class OthersPast(SelfGuided):
    """The earlier observation is that of another row."""

    def plan(self, obs, noise, guides=()):
        past = self.planner.context({k: v[:, : -self.lag].roll(1, 0) for k, v in obs.items()})
        return self.planner.plan(self._now(obs), noise, (*guides, PastObservationGuidance(past, self.scale)))


def unguided(policy: Policy) -> Planner:
    return policy


def self_guided(policy: Policy) -> Planner:
    return SelfGuided(policy, SCALE)


def guided_by_others_movement(policy: Policy) -> Planner:
    return OthersMovement(policy, SCALE)


def guided_by_others_past(policy: Policy) -> Planner:
    return OthersPast(policy, SCALE)


@dataclass(frozen=True)
class ActingMethod:
    """How trained weights act. Arms share the training of each seed.

    Args:
        method: How the weights are trained.
        guide: Makes the planner of the trained policy.
    """

    method: Method
    executor: Executor
    guide: Callable[[Policy], Planner]


def success(
    experiment, option: ActingMethod, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and rolls it out. "success" of each episode."""
    policy = train_policy(experiment, option.method, data, seed)
    env = make(experiment.env, rows=ROWS, **dict(experiment.env_options))
    rollouts = rollout(PolicyActor(FixedBatch(option.guide(policy), ROWS), option.executor), env, episodes, seed=starts)
    return {"success": [float(e.metadata["success"]) for e in rollouts]}


def guided_arm(name: str, executor: Executor, guide: Callable[[Policy], Planner] = unguided) -> Arm:
    policy = PolicyConfig(EDM(4, sigma_max=5.0), trunk=MLP(128, 1), encoder=ConcatEncoder(),
                          window=Window(n_obs_steps=2, horizon=HORIZON))
    learner = BehaviorCloning(steps=1000, batch_size=128, optimizer=OptimizerConfig(lr=3e-3))
    return Arm(name, (ActingMethod(Method(policy, learner=learner), executor, guide),))


def with_others_movement(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(guided_arm("self-guided", EACH_STEP, guided_by_others_movement))


EACH_STEP, ADAPTIVE = RecedingHorizon(1), AdaptiveChunking(1, agreement=CosineAgreement(0.97))
CALM = Experiment(
    ExpertDemonstrations("fork", 100),
    "fork",
    (
        guided_arm("self-guided", EACH_STEP, self_guided),
        guided_arm("plain", EACH_STEP),
    ),
    success,
    seeds=tuple(range(550, 560)),
    episodes=500,
    starts_seed=550,
    sanity=(("plain", "success", 0.6),),
)
OTHERS = replace(CALM, seeds=CALM.seeds[:5], sanity=(),
                 arms=(CALM.arms[0], guided_arm("another's past", EACH_STEP, guided_by_others_past)))
CHUNKING = replace(CALM, seeds=CALM.seeds[:5], arms=(
    guided_arm("adaptive", ADAPTIVE), guided_arm("plain", EACH_STEP), guided_arm("both", ADAPTIVE, self_guided),
    guided_arm("chunks", RecedingHorizon(HORIZON))))
GUSTS = replace(CHUNKING, env_options=(("gust", GUST),), sanity=(),
                arms=(CALM.arms[0], CALM.arms[1], CHUNKING.arms[0], CHUNKING.arms[3]))

CLAIM = Claim(
    name="self-guidance",
    rows=("258",),
    parts=(
        ClaimPart("calm", CALM, GreaterThan("success", "self-guided", "plain")),
        ClaimPart("another's past", OTHERS, GreaterThan("success", "self-guided", "another's past"),
                  is_decisive=False),
        ClaimPart("adaptive chunking", CHUNKING, GreaterThan("success", "adaptive", "plain"), is_decisive=False),
        ClaimPart("gusts", GUSTS, GreaterThan("success", "self-guided", "plain"), is_decisive=False),
    ),
    negative_control=NegativeControl(with_others_movement, "calm"),
)
