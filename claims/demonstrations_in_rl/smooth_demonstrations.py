"""Row 283: a cloned policy practises beside its own episodes, or beside the rough ones that it was cloned from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from claims.demonstrations_in_rl.guided_noise import GOAL, LIMIT, RLPD, UnsteadyWalks
from understudy.claims.base import REAL
from understudy.claims.kit import Row, ablation, experiment, family, higher
from understudy.claims.measures import flags, rollout_policy, train_once
from understudy.data.episode import Dataset
from understudy.envs import make
from understudy.evaluate.evaluation import recording_seed
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.squashed_gaussian import SquashedGaussian
from understudy.improve.collection import CollectionRounds, RolloutCollector, TemperatureExploration
from understudy.improve.practice import BASE, SuccessReward
from understudy.improve.updates import PerNewStep
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.off_policy_actor_critic import OffPolicyActorCritic
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

ROUGHNESS = "roughness"
LEARNER = replace(RLPD, temperature=1e-4, target_entropy=None, critic_warmup_updates=500,
                  policy_optimizer=replace(RLPD.optimizer, lr=3e-4))


@dataclass(frozen=True)
class Distilled:
    """How a policy that was cloned from rough demonstrations practises.

    Args:
        beside: What a quarter of each batch is: the episodes of the cloned policy, or the demonstrations.
        is_warm: Whether the policy begins as the cloned one.
        n_rounds: Number of rounds of at least `n_steps` steps. 0 for the cloned policy.
    """

    beside: Literal["clone", "demonstrations"] = "clone"
    is_warm: bool = True
    learner: OffPolicyActorCritic = LEARNER
    n_rounds: int = 10
    n_steps: int = 300
    cloned: int = 1000
    probe_sizes = {"n_rounds": 2, "n_steps": 30, "cloned": 20}

    @property
    def base(self) -> Method:
        return Method(PolicyConfig(SquashedGaussian(), FeedForward((64, 64))), RecedingHorizon(),
                      BehaviorCloning(self.cloned, 64, OptimizerConfig(lr=1e-3)))

    @property
    def method(self) -> Method:
        rounds = CollectionRounds(self.n_rounds, RolloutCollector(n_steps=self.n_steps,
                                                                  exploration=TemperatureExploration()),
                                  updates=PerNewStep(1), mixture_weights=(0.25, 0.75))
        warm = (InitializeFrom(BASE),) if self.is_warm else (InitializeFrom(BASE, load=("codec",)),)
        return replace(self.base, learner=self.learner, transforms=(SuccessReward(),), collection=rounds,
                       stages=(Stage(BASE.stage, self.base),), initialize_from=warm)


def roughness(episodes: Dataset) -> list[float]:
    """The mean length of the third differences of positions in each episode that succeeds, in mm."""
    paths = [np.asarray(e.steps["observation.state"], float) for e in episodes if e.metadata["success"] and len(e) > 3]
    return [1000 * float(np.linalg.norm(np.diff(path, 3, axis=0), axis=1).mean()) for path in paths]


def distilled(experiment, option: Distilled, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    clone = train_once(experiment, option.base, data, seed)
    policy, method = clone.policy, option.base
    if option.n_rounds:
        env, method = make(experiment.env, rows=4, **dict(experiment.env_options)), option.method
        beside = data if option.beside == "demonstrations" else rollout_policy(
            experiment, clone.policy, method, len(data), recording_seed(seed) + 1)
        policy = fit_method(method, beside, seed, env=env, stages={BASE.stage: clone}).policy
    rollouts = rollout_policy(experiment, policy, method, episodes, starts)
    return {"success": flags(rollouts)["success"], ROUGHNESS: roughness(rollouts)}


TABLE = experiment(UnsteadyWalks(20), env_options=(("goal", GOAL), ("limit", LIMIT)), measure=distilled, first_seed=2830,
                   episodes=100, sanity={"cloned": 0.5}, measures={ROUGHNESS: REAL}, arms={
    "smooth": Distilled(),
    "rough": Distilled("demonstrations"),
    "cloned": Distilled(n_rounds=0),
    "new policy": Distilled(is_warm=False),
    "temperature of 1": ablation("smooth", Distilled(learner=replace(LEARNER, temperature=1.0, target_entropy=-1.0)))})
BETTER = tuple(higher("smooth", rival) for rival in ("rough", "cloned"))

CLAIMS = family(__file__, TABLE, {"283": Row(
    "smooth-demonstrations", (*BETTER, higher("rough", "smooth", measure=ROUGHNESS)), control="temperature of 1",
    removes=(BETTER[1],), reported=("new policy",))})
