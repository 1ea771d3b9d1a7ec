from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from torch import Generator, Tensor

from ...checkpoint import FromStage
from ...core import AtLeast, AtMost, Batch, ConfigError, UserError, part
from ...data.episode import Dataset
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.critics.off_policy_actor_critic import OffPolicyActorCritic, OffPolicyActorCriticLearner
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.rewards.transport_reward import OptimalTransportReward
from ...policy import Policy
from ..needs import ENDS, NUMBERS
from ..registry import method
from .pwil import pwil


@part
class ROT(OffPolicyActorCritic):
    """TD3 that also clones the demonstrations, with the weight `bc_weight` times w, and 1 - w for the critic's score.

    w is the fraction of the policy's own observations at which the critic scores the action of the clone higher than
    that of the policy (soft Q-filter). Without a clone, w is `fixed_weight`.

    Args:
        clone: The policy that a stage cloned.
        fixed_weight: w without a clone. 0 learns from the reward alone.

    References:
        Haldar et al. (2022), Watch and Match: Supercharging Imitation with Regularized Optimal Transport,
        arXiv:2206.15469.
    """

    clone: FromStage | None = None
    fixed_weight: Annotated[float, AtLeast(0), AtMost(1)] = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.temperature is not None:
            raise ConfigError("its policy maximizes the score without entropy", where="ROT.temperature",
                              hint="leave it out, or train an OffPolicyActorCritic with this reward")

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> ROTLearner:
        if not self.compares:
            raise UserError("cloning needs demonstrations beside each batch", where="ROT.reward",
                            hint="use a reward that compares with them, such as OptimalTransportReward()")
        return ROTLearner(self, policy, seed, steps, data)


class ROTLearner(OffPolicyActorCriticLearner):
    """Learner of `ROT`."""

    config: ROT

    def update(self, batch):
        batch = batch.to(self.device)
        self.weight = self.filter_weight(batch)
        return {**super().update(batch), "clone_weight": self.weight}

    def filter_weight(self, batch: Batch) -> float:
        """Returns w."""
        clone = self.config.clone
        if not isinstance(clone, Policy):
            return self.config.fixed_weight
        with self.evaluation():
            rng, scores = self.generator(), []
            for policy in (clone, self.policy):
                coded = self.policy.clip(policy.sample(policy.context(batch.obs), rng))
                scores.append(self.critic(batch.obs, policy.decode(coded, batch.obs)))
        return float((scores[0] > scores[1]).float().mean())

    def policy_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the policy for each row, (B,), with distances in coded units."""
        coded = self.policy.sample(self.policy.context(batch.obs), rng)
        inside = self.policy.clip(coded)
        score = self.critic(batch.obs, self.policy.decode(inside, batch.obs))
        expert = batch.others["expert"]
        cloned = self.policy.sample(self.policy.context(expert.obs), rng)
        error = (cloned - self.policy.encode_batch(expert)) * expert.mask.unsqueeze(-1)
        distance = error.square().sum((1, 2))
        beyond = (coded - inside).square().mean((1, 2))
        return self.config.bc_weight * self.weight * distance - (1 - self.weight) * score + beyond


@method("Haldar et al. 2022 (ROT), arXiv 2206.15469, without its encoder of pictures",
        rows=("302",), needs=(NUMBERS, ENDS, "an environment"),
        when="if there are a few demonstrations and an environment, and practice begins from a cloned policy.")
def rot(n_rounds: int = 50, n_episodes: int = 4, noise: float = 0.1) -> Method:
    """TD3 from a cloned policy, with rewards of optimal transport and as much cloning as the critic finds better."""
    base = pwil(n_rounds, n_episodes, noise)
    learner = ROT(bc_weight=1.5, reward=OptimalTransportReward(), clone=FromStage("clone"))
    return replace(base, learner=learner, stages=(Stage("clone", Method(base.policy, learner=BehaviorCloning(5000))),),
                   initialize_from=(InitializeFrom(FromStage("clone")),))
