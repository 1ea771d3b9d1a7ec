from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...core import Above, AtLeast, Batch, Schema, part
from ...heads.likelihood.gaussian import Gaussian
from ...learn.algorithm import loss
from ...learn.critics.critic_learning import CriticLearning, critic_method, draw_plans
from ...learn.devices import Processes
from ...learn.method import Method
from ...learn.targets import td_loss
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@method("Nair et al. 2020 (AWAC), arXiv 2006.09359", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards, and training then continues with episodes that the policy collects, which takes a "
             "`collection` in Python.")
@part
class AWAC(CriticLearning):
    """Advantage weighted actor-critic: clones the stored actions that are better than the policy's own.

    The critic learns the return of the policy, whose head has a temperature. The policy clones actions, weighted by the
    softmax over the batch of their advantages.

    Args:
        temperature: Temperature of the weights, in units of return. Large values are cloning.
        n_samples: Number of actions of the policy that each stored action is compared with.

    References:
        Nair et al. (2020), AWAC: Accelerating Online Reinforcement Learning with Offline Datasets, arXiv:2006.09359.
    """

    temperature: Annotated[float, Above(0)] = 1.0
    n_samples: Annotated[int, AtLeast(1)] = 1

    def method(self, features: Schema | None = None) -> Method:
        return critic_method(Gaussian(), self, features)

    def next_policy(self, nets: Any) -> Policy:
        """Returns the policy whose actions the targets score."""
        return nets.policy

    @loss("critic")
    def critic_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.next is not None
        with torch.no_grad():
            plan = draw_plans(self.next_policy(nets), batch.next, 1, rng).squeeze(1)
            target = self.bootstrapped(batch, nets.target.critic.target_score(batch.next, plan, rng))
        quantiles, levels = nets.critic.training_quantiles(batch.obs, batch.action, rng)
        return td_loss(quantiles, target, levels).sum(0), {"score": quantiles.mean((0, 1))}

    def compared_scores(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, Tensor]:
        """Returns the scores of the stored actions, (B,), and of actions of the policy, (B, n_samples)."""
        plans = draw_plans(nets.policy, batch.obs, self.n_samples, rng)
        obs = nets.critic.encode(batch.obs)
        return nets.critic(obs, batch.action), nets.critic.score_plans(obs, plans)

    def weight(self, nets: Any, batch: Batch, rng: Generator) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Returns the weights of the windows, (B,), with mean 1 over the batches of all processes, and a metric."""
        score, sampled = self.compared_scores(nets, batch, rng)
        logits, P = (score - sampled.mean(1)) / self.temperature, Processes.current()
        n, totals = logits.new_tensor(len(batch)), logits.new_zeros(P.count)
        totals[P.rank] = logits.logsumexp(0)
        P.all_reduce([n, totals])
        weight = logits.softmax(0) * totals.softmax(0)[P.rank] * n
        return weight, {"largest_weight": weight.max()}

    @loss("policy", weights="weight", normalize="rows")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return nets.policy.loss(batch, rng)
