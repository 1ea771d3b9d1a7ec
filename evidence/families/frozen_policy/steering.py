"""Row 271: a frozen policy proposes the right action among others. Steer its noise, or correct its actions?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from evidence.experiment import Experiment
from evidence.worlds.frozen_base import BothSides, Practised, practised
from understudy.core import part
from understudy.execute.wrappers import NoiseSteeringWrapper
from understudy.improve.collection import CollectionRounds, RolloutCollector
from understudy.improve.practice import BASE, Practice, dsrl, residual
from understudy.improve.retention import SuccessfulEpisodes
from understudy.improve.updates import PerRound
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import InitializeFrom, Method
from understudy.learn.optimizer import OptimizerConfig


@part
class RedrawnNoise(NoiseSteeringWrapper):
    """Noise that is drawn again after the actor has chosen one, as the policy alone would draw it."""

    def start(self, obs, key):
        return {**super().start(obs, key), "key": key, "count": torch.zeros_like(key)}

    def transform_action(self, obs, action, state):
        key, count, step = (state[name] for name in ("key", "count", "step"))
        noise = self._checked_policy().noise(key, count)
        assert isinstance(noise, torch.Tensor)
        executed, after = super().transform_action(obs, noise.flatten(1), state)
        return executed, {**after, "key": key, "count": count + (step == 0)}


@dataclass(frozen=True)
class Ambiguous(Practised):
    """How the policy of the fork is improved.

    DSRL begins with episodes of random noise, so that the other methods have 13 more episodes in each round.

    Args:
        learns: "noise" and "residual" are `dsrl` and `residual` of `understudy improve`, "successes" is `filtered`.
        redrawn: Whether the noise is drawn again after the actor.
    """

    n_rounds: int = 5
    n_episodes: int = 20
    n_updates: int | None = 400
    learns: Literal["nothing", "noise", "residual", "successes"] = "noise"
    redrawn: bool = False

    def method(self, practice: Practice, base: Method) -> Method:
        if self.learns == "noise":
            method = dsrl(practice, base)
            wrapper = method.wrapper
            assert isinstance(wrapper, NoiseSteeringWrapper)
            return replace(method, wrapper=RedrawnNoise(BASE, wrapper.period)) if self.redrawn else method
        if self.learns == "residual":
            method = residual(practice, base)  # whose published rate hardly moves a policy in so few updates
            return replace(method, learner=replace(method.learner, policy_optimizer=None))
        if self.learns == "successes":
            assert practice.n_updates is not None
            rounds = CollectionRounds(practice.n_rounds, RolloutCollector(practice.n_episodes),
                                      updates=PerRound(practice.n_updates), retention=SuccessfulEpisodes())
            learner = BehaviorCloning(batch_size=128, optimizer=OptimizerConfig(lr=1e-3, lr_schedule="constant"))
            return replace(base, learner=learner, collection=rounds, initialize_from=(InitializeFrom(BASE),))
        return base


TABLE = Experiment(BothSides(50), measure=practised, first_seed=1600, episodes=300, arms={
    "base": Ambiguous(learns="nothing"),
    "DSRL": Ambiguous(),
    "residual": Ambiguous(n_episodes=33, learns="residual"),
    "filtered": Ambiguous(n_episodes=33, learns="successes"),
    "redrawn": Ambiguous(redrawn=True)})
