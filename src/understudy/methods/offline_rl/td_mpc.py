from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn

from ...core import Above, AtLeast, AtMost, Batch, Below, ConfigError, Schema, Unsupported, part
from ...data.batch_sampler import BatchSampler
from ...data.episode import Dataset
from ...data.window import SamplingWeights, Window
from ...execute.chunking import RecedingHorizon
from ...heads.base import Head
from ...learn.algorithm import Algorithm, MetricBound, Net, loss
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...learn.targets import REWARD, TERMINATED, ReturnBound, expectile_loss
from ...nets.encoders import simplest_encoder
from ...nets.feed_forward import feed_forward_layers
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@part
class LatentPlanning(Head):
    """Head that plans by a model of encoded observations: it samples candidates again around the best ones.

    The score of a candidate is the sum of the rewards that the model predicts, the score of what follows, and a penalty
    where the critics differ. It begins at the plan of a policy network, which also proposes candidates. `TDMPC` trains
    all of them. The trunk of the policy is not used.

    Args:
        latent: Width of the encoding that the model predicts.
        hidden: Widths of the hidden layers of each network.
        n_candidates: Number of candidates that are drawn in each iteration.
        n_policy_candidates: Number of candidates that follow the policy network, with noise of `min_std`.
        n_elites: Number of the best candidates whose mean and spread the next iteration has.
        elite_temperature: Factor of scores in the weights of these, in units of 1 / return.
        max_std: First spread of candidates, in coded units.
        min_std: Least spread of candidates, in coded units.
        momentum: Fraction of its mean that an iteration keeps.
        uncertainty_weight: Weight of the standard deviation of the critics.
    """

    latent: Annotated[int, AtLeast(1)] = 64
    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (128, 128)
    n_critics: Annotated[int, AtLeast(2)] = 5
    n_candidates: Annotated[int, AtLeast(1)] = 64
    n_policy_candidates: Annotated[int, AtLeast(1)] = 8
    n_elites: Annotated[int, AtLeast(1)] = 8
    n_iterations: Annotated[int, AtLeast(1)] = 4
    elite_temperature: Annotated[float, AtLeast(0)] = 0.5
    max_std: Annotated[float, Above(0)] = 2.0
    min_std: Annotated[float, Above(0)] = 0.05
    momentum: Annotated[float, AtLeast(0), Below(1)] = 0.1
    uncertainty_weight: Annotated[float, AtLeast(0)] = 1.0

    def __post_init__(self):
        if self.n_elites > (n := self.n_candidates + self.n_policy_candidates):
            raise ConfigError(f"n_elites is {self.n_elites}, which is more than the {n} candidates",
                              where="LatentPlanning.n_elites", hint="use fewer, or more n_candidates")

    def noise(self, horizon, coded_dim):
        return (horizon, coded_dim * (self.n_policy_candidates + self.n_iterations * self.n_candidates))

    def build(self, trunk, coded_dim, spec):
        if spec.num_classes or not spec.bound:
            raise Unsupported("candidates are drawn in a range of actions, and these have none",
                              where="LatentPlanning", hint='use actions that are numbers, with the codec '
                                                           'Normalizer(target="minmax")')
        return _LatentModel(self, spec.tokens * spec.width, coded_dim, spec.bound)

    def loss(self, net, context, action, mask, rng):
        """Returns the squared error of the policy network along the stored actions, a mean over components, (B, H).

        It only validates. Trained by it alone, plans would follow critics that know nothing.
        """
        if torch.is_grad_enabled():
            raise Unsupported("this head is trained by TDMPC alone", where="LatentPlanning",
                              hint="use the method td-mpc")
        latent, errors = net.encode(context), []
        for step in action.unbind(1):
            errors.append((net.policy_action(latent) - step).square().mean(-1))
            latent, _ = net(latent, step)
        return torch.stack(errors, 1)

    def sample(self, net, context, noise):
        latent, noise = net.encode(context), noise.unflatten(2, (-1, net.action_dim)).transpose(1, 2)  # (B, N, H, A)
        own, *draws = noise.split([self.n_policy_candidates, *[self.n_candidates] * self.n_iterations], 1)
        proposals = net.follow_policy(latent.unsqueeze(1), self.min_std * own)
        mean = net.follow_policy(latent.unsqueeze(1), 0 * own[:, :1])  # (B, 1, H, A)
        std = torch.full_like(mean, self.max_std)
        for draw in draws:
            candidates = torch.cat([(mean + std * draw).clamp(-net.bound, net.bound), proposals], 1)
            best, index = self.scores(net, latent, candidates).topk(self.n_elites, 1)
            elites = candidates.gather(1, index[..., None, None].expand(-1, -1, *candidates.shape[2:]))
            weights = (self.elite_temperature * best).softmax(1)[..., None, None]
            mean_of_elites = (weights * elites).sum(1, keepdim=True)
            std = (weights * (elites - mean_of_elites).square()).sum(1, keepdim=True).sqrt()
            std = std.clamp(self.min_std, self.max_std)
            mean = mean_of_elites.lerp(mean, self.momentum)
        return mean.squeeze(1)

    def scores(self, net, latent: Tensor, candidates: Tensor) -> Tensor:
        """Returns the score of each candidate, (B, N), given encodings, (B, D), and coded plans, (B, N, H, A)."""
        latent, factor, total = latent.unsqueeze(1).expand(-1, candidates.shape[1], -1), 1.0, 0.0
        for step in candidates.unbind(2):
            doubt = net.critic_scores(latent, step).std(0)
            latent, reward = net(latent, step)
            total = total + factor * (reward - self.uncertainty_weight * doubt)
            factor = factor * net.discount
        last = net.critic_scores(latent, net.policy_action(latent))
        return total + factor * (last.mean(0) - self.uncertainty_weight * last.std(0))


class _LatentModel(nn.Module):
    """The networks of TD-MPC: encoding, model, critics, value and policy. Encodings are between 0 and 1."""

    def __init__(self, head: LatentPlanning, inputs: int, action_dim: int, bound: float):
        super().__init__()
        self.action_dim, self.bound = action_dim, bound

        def layers(entering: int, leaving: int) -> nn.Sequential:
            return feed_forward_layers((entering, *head.hidden, leaving), "silu", layer_norm=True)
        self.encoder, self.dynamics = (nn.Sequential(layers(size, head.latent), nn.LayerNorm(head.latent), nn.Sigmoid())
                                       for size in (inputs, head.latent + action_dim))
        self.reward, *critics = (layers(head.latent + action_dim, 1) for _ in range(1 + head.n_critics))
        self.critics, self.value_layers = nn.ModuleList(critics), layers(head.latent, 1)
        self.policy = layers(head.latent, action_dim)
        self.register_buffer("discount", torch.tensor(0.99))  # `TDMPC` sets it

    def encode(self, context) -> Tensor:
        return self.encoder(context.flat())

    def forward(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts the next encoding, and the reward."""
        pair = torch.cat([latent, action], -1)
        return self.dynamics(pair), self.reward(pair).squeeze(-1)

    def critic_scores(self, latent: Tensor, action: Tensor) -> Tensor:
        """Returns the score of each critic, (n_critics, ...)."""
        pair = torch.cat([latent, action], -1)
        return torch.stack([critic(pair).squeeze(-1) for critic in self.critics])

    def value(self, latent: Tensor) -> Tensor:
        return self.value_layers(latent).squeeze(-1)

    def policy_action(self, latent: Tensor) -> Tensor:
        return self.bound * self.policy(latent).tanh()

    def follow_policy(self, latent: Tensor, noise: Tensor) -> Tensor:
        """Returns plans of the policy network with noise, (B, N, H, A), rolled out in the model."""
        latent, steps = latent.expand(-1, noise.shape[1], -1), []
        for draw in noise.unbind(2):
            steps.append((self.policy_action(latent) + draw).clamp(-self.bound, self.bound))
            latent, _ = self(latent, steps[-1])
        return torch.stack(steps, 2)


@method("Hansen et al. 2022 (TD-MPC), arXiv 2203.04955, with the losses of Feng et al. 2023, arXiv 2310.16029",
        needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards, and time to plan in each step.")
@part
class TDMPC(Algorithm):
    """TD-MPC: plans in each step by a learned model of encoded observations and by critics, and executes one action.

    It has the losses of implicit Q-learning, so that no action is scored that is not in the data. The model is unrolled
    along the stored actions. At each step it learns the next encoding and the reward, the critics learn rewards plus
    the value of what follows, the value learns an expectile of the critics' smallest score, and the policy network
    clones actions, weighted by ``exp(beta * advantage)``.

    Args:
        discount: Discount per step.
        target_decay: Fraction of the target networks that each update keeps.
        expectile: As in `IQL`.
        beta: As in `IQL`.
        max_weight: Upper bound of a weight of the policy's loss.
        step_decay: Weight of a later step of the window, relative to the one before it.
        consistency_weight: Weight of the loss of encodings.
        reward_weight: Weight of the loss of rewards.
        value_weight: Weight of the losses of the critics and of the value.
        policy_weight: Weight of the loss of the policy network.

    References:
        Hansen et al. (2022), Temporal Difference Learning for Model Predictive Control, arXiv:2203.04955.
        Feng et al. (2023), Finetuning Offline World Models in the Real World, arXiv:2310.16029.
    """

    steps: Annotated[int, AtLeast(0)] = 20_000
    batch_size: Annotated[int, AtLeast(1)] = 256
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=3e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=10.0))
    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.995
    expectile: Annotated[float, Above(0), Below(1)] = 0.9
    beta: Annotated[float, AtLeast(0)] = 3.0
    max_weight: Annotated[float, Above(0)] = 100.0
    step_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.5
    consistency_weight: Annotated[float, AtLeast(0)] = 20.0
    reward_weight: Annotated[float, AtLeast(0)] = 0.5
    value_weight: Annotated[float, AtLeast(0)] = 0.1
    policy_weight: Annotated[float, AtLeast(0)] = 0.5

    extra = (REWARD, TERMINATED)
    next_obs = True

    def method(self, features: Schema | None = None, horizon: int = 5) -> Method:
        """Returns the method of this learner.

        Args:
            horizon: Number of steps that are planned.
        """
        policy = PolicyConfig(LatentPlanning(), encoder=simplest_encoder(features), window=Window(horizon=horizon))
        return Method(policy, RecedingHorizon(1), self)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        window = policy.window
        net: Any = policy.net
        if not isinstance(net, _LatentModel) or window.n_obs_steps > 1 or window.action_offset:
            raise Unsupported(f"TDMPC trains the head LatentPlanning with one observation, and this policy has "
                              f"{type(policy.config.head).__name__} and {window}", where="TDMPC",
                              hint="use the method td-mpc, with --policy.window.n-obs-steps 1 and no action_offset")
        net.discount.fill_(self.discount)
        return {"policy": Net(policy, self.optimizer, target=self.target_decay)}

    def bounds(self, policy: Policy, data: Dataset) -> dict[str, MetricBound]:
        return {"critic_score": ReturnBound(data, self.discount)}

    def sampler(self, policy: Policy, data: Dataset, weights: SamplingWeights | None) -> BatchSampler:
        return policy.training_windows(data, extra=(*self.extra, *policy.inputs), next_obs=True,
                                       sampling_weights=weights)

    @loss("policy")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor | dict[str, Tensor], ...]:
        """Returns the losses of encodings, rewards, critics, value and policy, summed over steps, (B,) each."""
        policy, target, net = nets.policy, nets.target.policy, nets.policy.net
        following = self.following(policy, batch)
        rewards, ends = (batch.extra[k].reshape(batch.mask.shape).float() for k in (REWARD, TERMINATED))
        with torch.no_grad():
            target_latents, values = (f.unflatten(0, batch.mask.shape) for f in (
                target.net.encode(target.context(following)), net.value(net.encode(policy.context(following)))))
        critic_targets = rewards + self.discount * (1 - ends) * values
        latent, logged = net.encode(policy.training_context(batch.obs, rng)), {}
        total: Tensor | float = 0.0
        for i, action in enumerate(policy.encode_batch(batch).unbind(1)):
            with torch.no_grad():
                best = target.net.critic_scores(latent, action).amin(0)
            scores, advantage = net.critic_scores(latent, action), best - net.value(latent)
            weight = (self.beta * advantage.detach()).exp().clamp(max=self.max_weight)
            distance = (net.policy_action(latent.detach()) - action).square().sum(-1)
            logged = logged or {"critic_score": scores.mean(0), "weight": weight}  # metrics of the first step
            latent, reward = net(latent, action)
            terms = torch.stack([
                self.consistency_weight * (latent - target_latents[:, i]).square().mean(-1),
                self.reward_weight * (reward - rewards[:, i]).square(),
                self.value_weight * (scores - critic_targets[:, i]).square().sum(0),
                self.value_weight * expectile_loss(advantage, self.expectile),
                self.policy_weight * weight * distance])
            total = total + self.step_decay**i * batch.mask[:, i] * terms
        assert isinstance(total, Tensor)
        return (*total, logged)

    def following(self, policy: Policy, batch: Batch) -> Mapping[str, Tensor]:
        """Returns the observations after each step of a batch, (B * H, 1, ...)."""
        assert batch.next is not None
        return {k: torch.cat([batch.extra[k][:, 1:], batch.next[k]], 1).flatten(0, 1).unsqueeze(1)
                for k in policy.inputs}
