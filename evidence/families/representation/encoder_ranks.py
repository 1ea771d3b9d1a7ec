"""Row 339: policies on six frozen encoders of pictures. Do cloning and TD3 put the encoders in the same order?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from evidence.experiment import Experiment
from evidence.families.representation.frozen_encoders import (
    FAST,
    FEATURES,
    GOALS,
    LENGTH,
    OWN,
    PICTURE,
    RIVALS,
    SEQUENCE,
    SIZE,
    STATE,
    WIDTH,
    Frozen,
    NearPush,
    PushesToGoals,
    frozen,
    progress,
)
from evidence.measures import train_once
from understudy.claims.effects import SMALLEST_EFFECTS
from understudy.core import Feature
from understudy.data.episode import Dataset
from understudy.envs.base import Env
from understudy.envs.observation_wrappers import ObservationTransform
from understudy.envs.toys.push import DISC, HALF, Push
from understudy.evaluate.learner_agreement import rank_agreement, seed_variance_ratio
from understudy.evaluate.rollout import rollout
from understudy.evaluate.stats import LEVEL
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from understudy.improve.retention import LastRounds
from understudy.improve.updates import PerNewStep
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.critics import td3
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.objectives.latent_objectives import LatentDynamics
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.generative.dp4 import ScenePrediction
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

LIMIT, N_DEMONSTRATIONS = 50, 25  # steps of an episode, and pushes to a goal that are cloned
N_ROUNDS, N_COLLECTED = 7, 8  # rounds of collection, and episodes in each
CONSTANT = OptimizerConfig(lr=3e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)
CLONING, TD3 = "cloning", "TD3"
Encode = Callable[[dict[str, Tensor]], Tensor]


class RewardedPush(NearPush):
    """Pushes that earn ten times what they come nearer, with the disc behind the block and the block at the goal."""

    def __init__(self, rows: int, goal: int):
        Push.__init__(self, rows, LIMIT, images=True, size=SIZE, goal=GOALS[goal])

    def advance(self, action):
        before = self.remaining()
        _, success, failure = super().advance(action)
        return 10 * (before - self.remaining()) + success, success, failure

    def remaining(self) -> np.ndarray:
        """The block's distance to the goal, and half the disc's to where it pushes the block there, m."""
        block, ahead = self.state["block"], self.state["goal"] - self.state["block"]
        distance = np.linalg.norm(ahead, axis=1, keepdims=True)
        behind = block - (HALF + DISC) * ahead / np.maximum(distance, 1e-6)
        return distance[:, 0] + 0.5 * np.linalg.norm(self.state["disc"] - behind, axis=1)


class FeaturesAlone(ObservationTransform):
    """Observed are features of the picture in its place, and the rest."""

    def __init__(self, env: Env, encode: Encode):
        self.encode = encode
        self.width = encode({k: torch.zeros(1, *f.shape) for k, f in env.features.items()}).shape[1]
        super().__init__(env)

    def transform_features(self, features):
        kept = {k: f for k, f in features.items() if k != PICTURE}
        return {**kept, FEATURES: Feature("float32", (self.width,))}

    @torch.no_grad()
    def transform_obs(self, obs):
        return {**{k: v for k, v in obs.items() if k != PICTURE}, FEATURES: self.encode(obs)}


@dataclass(frozen=True)
class PrincipalComponents:
    """The first principal components of the pixels."""

    def encoder(self, data: Dataset) -> Encode:
        def flat(pictures):
            return torch.as_tensor(pictures).flatten(1).float() / 255
        pixels = torch.cat([flat(np.array(e.steps[PICTURE])) for e in data])
        mean = pixels.mean(0)
        axes = torch.linalg.eigh((pixels - mean).T @ (pixels - mean)).eigenvectors[:, -WIDTH:]
        return lambda obs: (flat(obs[PICTURE]) - mean) @ axes


@dataclass(frozen=True)
class TrueState:
    """The true state in place of features. Learners have the training seed plus 1,000 times `number`."""

    number: int = 0


def learners(n_rounds: int = N_ROUNDS) -> dict[str, Method]:
    """Cloning of 25 pushes, and TD3, which collects 8 episodes a round and learns from them alone."""
    policy = PolicyConfig(Regression(), FeedForward((64, 64)), inputs=(FEATURES, OWN))
    actor_critic = td3.TD3(n_step=3, batch_size=256, optimizer=CONSTANT, critic=CriticConfig((64, 64)), discount=0.9)
    rounds = CollectionRounds(n_rounds, RolloutCollector(N_COLLECTED, GaussianExploration(0.1)),
                              updates=PerNewStep(0.25), retention=LastRounds(n_rounds))
    return {CLONING: Method(policy, RecedingHorizon(), BehaviorCloning(600, 64, FAST)),
            TD3: Method(policy, RecedingHorizon(), actor_critic, collection=rounds)}


@dataclass(frozen=True)
class Ranked:
    """For each learner, the mean progress to each of the goals. Encoders learn from the pushes to all of them."""

    n_rounds: int = N_ROUNDS
    n_goals: int = len(GOALS)

    def __call__(self, experiment, arm: Frozen | PrincipalComponents | TrueState, data: Dataset, seed: int,
                 episodes: int, starts: int) -> dict[str, list[float]]:
        if isinstance(arm, Frozen):
            encoder = train_once(experiment, arm.encoder, data, seed).policy

            def encode(obs):
                return encoder.context({k: obs[k][:, None] for k in encoder.inputs}).tokens[:, 0]
        else:
            encode = arm.encoder(data) if isinstance(arm, PrincipalComponents) else lambda obs: obs[STATE].float()
            seed += 1000 * arm.number if isinstance(arm, TrueState) else 0
        measured: dict[str, list[float]] = {CLONING: [], TD3: []}
        for number, goal in enumerate(GOALS[:self.n_goals]):
            env, test_env = (FeaturesAlone(RewardedPush(rows, number), encode) for rows in (N_COLLECTED, episodes))
            pushes = data.filter(lambda e, goal=goal: np.allclose(np.asarray(e.steps[STATE])[0, 6:], goal))
            encoded = Dataset([replace(env.transform_episode(e), metadata={"success": True})
                               for e in pushes[:N_DEMONSTRATIONS]])  # demonstrations, whatever their part of the data
            for name, method in learners(self.n_rounds).items():
                policy = fit_method(method, encoded, seed, env=env).policy
                actor = PolicyActor(FixedBatch(policy, episodes), RecedingHorizon())
                rollouts = rollout(actor, test_env, episodes, starts)
                measured[name].append(float(np.mean([progress(e) for e in rollouts])))
        return measured


@dataclass(frozen=True)
class ComparedLearners(Rule):
    """Base class of rules about the scores of encoders under two learners. Encoders and goals are drawn."""

    arms: tuple[str, ...]

    def tables(self, measurements) -> list[np.ndarray]:
        """The scores by cloning and by TD3, (encoders, goals, seeds)."""
        return [np.array([measurements[arm][name] for arm in self.arms], float).transpose(0, 2, 1)
                for name in (CLONING, TD3)]


class OrderRepeats(ComparedLearners):
    """The order by cloning is related to that on other seeds.

    It fails where the interval of tau contains 0 and fewer than three of four pairs of encoders keep their order.
    """

    def judge(self, measurements, measures=MEASURES, level=LEVEL):
        cloned = self.tables(measurements)[0]
        tau = rank_agreement(cloned[..., ::2], cloned[..., 1::2], level)
        condition = Condition("tau of cloning and cloning on other seeds", tau.estimate, tau.low, tau.high, "above", 0)
        return RuleResult("holds" if tau.low > 0 else "undecided" if tau.estimate >= 0.5 else "fails", (condition,))


class OrdersDiffer(ComparedLearners):
    """Tau of the orders by cloning and by TD3 is below 0.8."""

    def judge(self, measurements, measures=MEASURES, level=LEVEL):
        tau = rank_agreement(*self.tables(measurements), level)
        condition = Condition("tau of cloning and TD3", tau.estimate, tau.low, tau.high, "below", 0.8)
        return RuleResult(condition.verdict, (condition,))


class SeedsMatterMore(ComparedLearners):
    """The variance over training seeds is larger with TD3 than with cloning."""

    def judge(self, measurements, measures=MEASURES, level=LEVEL):
        cloned, practiced = self.tables(measurements)
        ratio = seed_variance_ratio(practiced, cloned, level, rounding=ROUNDING)
        condition = Condition("log variance over seeds: TD3 - cloning", ratio.estimate, ratio.low, ratio.high, "above",
                              0.0, SMALLEST_EFFECTS["log ratio"])
        return RuleResult(condition.verdict, (condition,))


ROUNDING = 1 / 40  # one of the starts
ENCODERS = {
    "random": RIVALS["random"],
    "pixels": PrincipalComponents(),
    "autoencoder": frozen(ScenePrediction(8, 1.0, 0.0)),
    "time-contrastive": RIVALS["time-contrastive"],
    "DynaMo": frozen(LatentDynamics(trunk=SEQUENCE), LENGTH),
    "inverse dynamics": RIVALS["inverse dynamics"]}
STATES = {f"true state for {name}": TrueState(i) for i, name in enumerate(ENCODERS, 1)}
TABLE = Experiment(PushesToGoals(100, 0, 0), env="push-images", first_seed=3390, episodes=40, measure=Ranked(),
                   arms={**ENCODERS, "state": TrueState(), **STATES})
WORKS = ("state", CLONING, 0.8), ("state", TD3, 0.3)  # least progress on the true state
TABLE = replace(TABLE, experiment=replace(TABLE.experiment, sanity=WORKS))
REPEATS, *RULES = (rule(tuple(ENCODERS)) for rule in (OrderRepeats, OrdersDiffer, SeedsMatterMore))
