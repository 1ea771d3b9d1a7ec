"""Fitted Q evaluation: learns the value of a fixed policy from stored episodes."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated

import numpy as np
import torch
from torch import Generator, Tensor

from ...core import AtLeast, AtMost, Batch, ConfigError, keys, part
from ...data.episode import Dataset
from ...data.window import Windows
from ...policy import Planner, Policy
from ..critic import CriticConfig, CriticSpec, QFunction
from ..fit import LearnerConfig
from ..gradient_learner import GradientLearner
from ..optimizer import OptimizerConfig
from ..targets import REWARD, TERMINATED, td_loss, td_terms


@part
class FittedQ(LearnerConfig):
    """Learns the discounted return of a policy that is not trained.

    A first critic learns from all episodes. Each further critic learns from a resample of the episodes, drawn with
    replacement. The spread of the critics therefore shows how much the estimate depends on which episodes were
    recorded. All critics are trained side by side, each with its own target network.

    Args:
        critic: Config of each critic. There are 1 + `n_resamples` critics, whatever `n_critics` of the config is.
        discount: Discount per step.
        target_decay: Fraction of the target critics that each update keeps. The time until values have settled grows
            with ``1 / (1 - target_decay) / (1 - discount)`` updates.
        skip: Number of steps of each plan of the policy that lie in the past.
        n_action_steps: Number of steps of each plan that the policy carries out. The critic scores that many.

    References:
        Le et al. (2019), Batch Policy Learning under Constraints, arXiv:1903.08738.
        Hao et al. (2021), Bootstrapping Fitted Q-Evaluation for Off-Policy Inference, arXiv:2102.03607.
    """

    steps: Annotated[int, AtLeast(0)] = 10_000
    batch_size: Annotated[int, AtLeast(1)] = 128
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.0, grad_clip_norm=None))
    critic: CriticConfig = field(default_factory=lambda: CriticConfig((128, 128)))
    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.95
    n_resamples: Annotated[int, AtLeast(2)] = 8
    skip: Annotated[int, AtLeast(0)] = 0
    n_action_steps: Annotated[int, AtLeast(1)] = 1

    extra = (REWARD, TERMINATED)
    next_obs = True

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> FittedQLearner:
        return FittedQLearner(self, policy, seed, steps, data)


class FittedQLearner(GradientLearner):
    """Learner of `FittedQ`, with several critics on bootstrap resamples.

    Args:
        planner: What plans in place of the policy, such as a search with its critic. None for the policy itself.
    """

    config: FittedQ

    def __init__(self, config: FittedQ, policy: Policy, seed: int, steps: int, data: Dataset,
                 planner: Planner | None = None):
        super().__init__(config, policy, seed, steps)
        self.planner = policy.eval() if planner is None else planner
        if config.skip + config.n_action_steps > self.planner.window.horizon:
            raise ConfigError(f"plans have {self.planner.window.horizon} steps, but skip={config.skip} and "
                              f"n_action_steps={config.n_action_steps} need more", where="FittedQ.n_action_steps",
                              hint="give the numbers of the executor with which the policy acts")
        self.window = replace(policy.window, horizon=config.n_action_steps, action_offset=0)
        config.critic.check_no_subset()
        networks = replace(config.critic, n_critics=1 + config.n_resamples)
        spec = CriticSpec(networks, policy.config.codec, self.window, policy.inputs, policy.config.target)
        self.critic = self.register("critic", QFunction(spec, policy.features, policy.codec), config.optimizer)
        self.target_critic = self.target_network("critic", config.target_decay)
        self.bound = self.score_bound(data, config.discount)
        # The critics learn in units of the root mean square of the returns.
        self.scale = float(np.sqrt(np.mean(discounted_returns(data, config.discount) ** 2))) or 1.0
        self.ends = np.cumsum(data.lengths)
        self.counts = _resampled(len(data), config.n_resamples, seed)

    def batch_sampler(self, data, sampling_weights=None) -> Windows:
        return self.window.windows(data, self.policy.inputs, self.policy.config.target, extra=self.batch_columns,
                                   next_obs=True, sampling_weights=sampling_weights)

    def update(self, batch: Batch) -> dict[str, float]:
        batch = batch.to(self.device)
        self.minimize("critic", self.critic_loss, batch)
        metrics = self.end_update()
        self.bound.check(metrics["critic/score"], batch, self.n_updates)
        return metrics

    def critic_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the `td_loss` of each critic times how often its resample has the episode, summed, (B,)."""
        assert batch.next is not None
        reward, bootstrap = td_terms(batch, self.config.discount)
        with torch.no_grad():
            following = self.target_critic.quantiles(batch.next, self.plan(batch.next, rng))
        quantiles, levels = self.critic.training_quantiles(batch.obs, batch.action, rng)
        self.log(score=self.scale * quantiles[0].mean(0))
        loss = td_loss(quantiles - reward / self.scale, bootstrap * following, levels)
        return (self.episode_counts(batch) * loss).sum(0)

    def episode_counts(self, batch: Batch) -> Tensor:
        """Returns how often the resample of each critic has the episode of each window, (n_critics, B)."""
        episode = np.searchsorted(self.ends, batch.extra["index"][:, 0].cpu().numpy(), side="right")
        return torch.from_numpy(self.counts[:, episode]).to(self.device)

    @torch.no_grad()
    def plan(self, obs, rng: Generator) -> Tensor:
        """Returns the steps that the policy would carry out, (B, n_action_steps, A)."""
        size = len(next(iter(obs.values())))
        drawn = torch.randint(2**31, (1,), generator=rng, device=self.device).item()
        key = keys(int(drawn), range(size)).to(self.device)
        plan = self.planner.plan(obs, self.planner.noise(key, torch.zeros_like(key)))
        return plan[:, self.config.skip:self.config.skip + self.config.n_action_steps]

    @torch.no_grad()
    def values(self, data: Dataset) -> np.ndarray:
        """Returns the value of the policy by each critic, of the starts in its resample, (n_critics,)."""
        starts = self.batch_sampler(data).gather(self.ends - data.lengths).to(self.device)
        scores = self.scale * self.critic.scores(starts.obs, self.plan(starts.obs, self.generator()))
        return (self.counts * scores.cpu().numpy()).sum(1) / self.counts.sum(1)


def _resampled(n_episodes: int, n_resamples: int, seed: int) -> np.ndarray:
    """Returns how often each bootstrap resample has each episode, (1 + n_resamples, n_episodes).

    The first resample has each once.
    """
    rng = np.random.default_rng(seed % 2**64)
    drawn = rng.multinomial(n_episodes, np.full(n_episodes, 1 / n_episodes), n_resamples)
    return np.concatenate([np.ones((1, n_episodes)), drawn]).astype(np.float32)


def discounted_returns(data: Dataset, discount: float) -> np.ndarray:
    """Returns the recorded discounted return of each episode from its start, (n_episodes,)."""
    rewards = [np.asarray(e.steps[REWARD][:len(e)], float).reshape(-1) for e in data]
    return np.array([(r * discount ** np.arange(len(r))).sum() for r in rewards])
