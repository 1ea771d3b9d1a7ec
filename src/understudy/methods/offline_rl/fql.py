from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...core import AtLeast, Batch, ConfigError, Schema, Unsupported, part
from ...data.episode import Dataset
from ...heads.denoising.flow import Flow
from ...learn.algorithm import Net, loss
from ...learn.critics.critic_learning import CriticLearning, critic_method
from ...learn.method import Method
from ...learn.targets import td_loss
from ...policy import Policy
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@method("Park et al. 2025 (FQL), arXiv 2502.02538", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards, the demonstrators act in several ways, and plans must be fast.")
@part
class FQL(CriticLearning):
    """Flow Q-learning: a one-step policy that maximizes scores and stays close to a flow that clones the data.

    The policy makes an action from noise in one step. It maximizes the critic's score, and stays close to what the
    flow makes from the same noise.

    Args:
        distance_weight: Weight of the mean squared distance to the flow, in coded units, relative to a score of mean
            absolute value 1.
        n_steps: Number of integration steps of the flow.

    References:
        Park et al. (2025), Flow Q-Learning, arXiv:2502.02538, with the normalization of scores that its code offers.
    """

    distance_weight: Annotated[float, AtLeast(0)] = 10.0
    n_steps: Annotated[int, AtLeast(1)] = 10

    def method(self, features: Schema | None = None) -> Method:
        return critic_method(Flow(1, prediction="sample"), self, features)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        self.critic.check_no_subset()
        if not isinstance(policy.config.head, Flow):
            raise Unsupported(f"the head is {type(policy.config.head).__name__}, but noise must have the shape of an "
                              "action", where="FQL", hint='use Flow(1, prediction="sample")')
        head = Flow(self.n_steps)
        if (ignored := next((name for name in ("time_distribution", "times", "coupling", "condition_weight")
                             if getattr(policy.config.head, name) != getattr(head, name)), None)) is not None:
            raise ConfigError("no loss of the head trains the policy, and the flow that clones has the default",
                              where=f"Flow.{ignored}", hint='leave it out, as Flow(1, prediction="sample") does')
        flow = Policy(replace(policy.config, head=head), policy.features)
        flow.codec = policy.codec
        return {"flow": Net(flow, self.optimizer), **super().networks(policy, data)}

    @loss("critic")
    def critic_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the `td_loss` against rewards and the policy's return, summed over the networks, (B,)."""
        assert batch.next is not None
        with torch.no_grad():
            coded = nets.policy.clip(nets.policy.sample(nets.policy.context(batch.next), rng))
            value = nets.target.critic.quantiles(batch.next, nets.policy.decode(coded, batch.next)).mean(0)
        quantiles, levels = nets.critic.training_quantiles(batch.obs, batch.action, rng)
        return (td_loss(quantiles, self.bootstrapped(batch, value), levels).sum(0),
                {"score": quantiles.mean((0, 1))})

    @loss("flow")
    def flow_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return nets.flow.loss(batch, rng)

    @loss("policy")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the weighted distance to the flow minus the score, relative to its size, (B,)."""
        noise = torch.randn(len(batch), *nets.policy.noise_shape, generator=rng, device=batch.action.device)
        coded = _from_noise(nets.policy, batch, noise)
        with torch.no_grad():
            cloned = nets.policy.clip(_from_noise(nets.flow, batch, noise))
        distance = (coded - cloned).square().mean((1, 2))
        plan = nets.policy.decode(nets.policy.clip(coded), batch.obs)
        score = nets.critic.scores(batch.obs, plan).mean(0)
        return self.distance_weight * distance - score / score.detach().abs().mean().clamp(min=1e-6)


def _from_noise(policy: Policy, batch: Batch, noise: Tensor) -> Tensor:
    return policy.config.head.sample(policy.net, policy.context(batch.obs), noise)
