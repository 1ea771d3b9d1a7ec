"""Row 270: a frozen policy is not precise enough. Are corrections of its actions learned sooner off policy?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from evidence.experiment import Experiment
from evidence.families.frozen_policy.residual import OUTLINES, TOLERANCE, Imprecise, refined
from evidence.worlds.peg import PegDemonstrations
from understudy.core import part
from understudy.execute.wrappers import BASE_ACTION, ResidualWrapper
from understudy.improve.practice import Practice, residual, rlpd
from understudy.learn.algorithm import loss
from understudy.learn.critic import CriticConfig, CriticSpec, QFunction
from understudy.learn.critics.off_policy_actor_critic import ActorCritic, policy_is_due
from understudy.learn.critics.td3 import TD3
from understudy.learn.method import Method


@part
class ExecutedCritic(CriticConfig):
    """A critic of executed actions. That of `residual` reads the action of the policy and the correction instead.

    Args:
        scale: That of the corrections, for each component of the action.
    """

    scale: tuple[float, ...] = ()

    def build(self, policy, action=True):
        config, inputs = policy.config, tuple(column for column in policy.inputs if column != BASE_ACTION)
        spec = CriticSpec(self, config.codec, config.window, inputs, config.target)
        return ExecutedQFunction(spec, policy.features, policy.codec)


class ExecutedQFunction(QFunction):
    """Scores observations, and the actions that the environment executes after a correction."""

    def read_plan(self, obs, plan):
        networks = self.about.networks
        assert isinstance(networks, ExecutedCritic)
        executed = obs[BASE_ACTION] + plan.new_tensor(networks.scale) * plan  # of one step each
        return self.codec.encode_obs({**obs, BASE_ACTION: executed.clamp(-1, 1)})[BASE_ACTION].flatten(1)


@part
class ResidualTD3(TD3):
    """TD3 whose policy maximizes the mean of all critics. That of `residual` maximizes the first."""

    @loss("policy", when=policy_is_due)
    def policy_loss(self, nets, batch, rng):
        coded = nets.policy.sample(nets.policy.context(batch.obs), rng)
        return -nets.critic.scores(batch.obs, nets.policy.decode(coded, batch.obs)).mean(0)


@dataclass(frozen=True)
class OffPolicy(Imprecise):
    """How the policy of the peg is improved from a replay buffer.

    Args:
        from_scratch: RLPD, whose policy is a new one, in place of corrections.
        is_stabilized: Whether the critic of corrections has layer norm, and learns alone in the first round.
    """

    n_rounds: int = 5
    n_episodes: int = 40
    n_updates: int | None = 1000
    from_scratch: bool = False
    is_stabilized: bool = True

    def method(self, practice: Practice, base: Method) -> Method:
        method = (rlpd if self.from_scratch else residual)(practice, base)
        learner, wrapper = method.learner, method.wrapper
        assert isinstance(learner, ActorCritic)
        critic = replace(learner.critic, hidden=(64, 64))
        if self.from_scratch:
            return replace(method, learner=replace(learner, critic=critic))
        assert isinstance(wrapper, ResidualWrapper) and isinstance(wrapper.scale, tuple)
        settings: dict[str, Any] = {**vars(learner), "critic": ExecutedCritic(**vars(critic), scale=wrapper.scale)}
        stabilized = ResidualTD3(**settings)
        bare = replace(stabilized, critic=replace(stabilized.critic, layer_norm=False), critic_warmup_updates=0)
        return replace(method, learner=stabilized if self.is_stabilized else bare)


TABLE = Experiment(PegDemonstrations(20, TOLERANCE, OUTLINES), env="peg_insertion",
                   env_options=(("tolerance", TOLERANCE), ("outlines", OUTLINES)), measure=refined, first_seed=1640,
                   episodes=300, levels={"base": 0.3}, arms={
    "base": Imprecise(),
    "residual TD3": OffPolicy(),
    "residual PPO, 400 episodes": Imprecise(n_rounds=2, learns="corrections"),
    "RLPD": OffPolicy(from_scratch=True),
    "not stabilized": OffPolicy(is_stabilized=False)})
