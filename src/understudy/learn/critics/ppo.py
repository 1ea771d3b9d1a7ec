"""Proximal policy optimization (PPO): updates on the newest episodes that stay close to the policy that acted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from typing import Annotated, cast

import numpy as np
import torch
from torch import Generator, Tensor

from ...checkpoint import FromStage, Scorer
from ...core import Above, AtLeast, AtMost, Batch, ConfigError, Unsupported, part
from ...data.batch_sampler import BatchSampler, SourcesSampler
from ...data.episode import Dataset
from ...data.window import Windows
from ...policy import Policy
from ..critic import CriticConfig, ValueFunction
from ..fit import own_and_expert
from ..optimizer import OptimizerConfig
from ..rewards.reward_models import RewardedConfig, RewardedLearner, RewardModelConfig
from ..targets import REWARD, TERMINATED, gae

LOG_PROB, REFERENCE_LOG_PROB = "policy.log_prob", "reference.log_prob"
ADVANTAGE, RETURN = "policy.advantage", "policy.return"
FIRST_UPDATE = "first_update"  # the metadata of an episode that has the number of updates before its round
REWARD_UNITS = "reward_units"  # and the unit of each objective, if there are several


@part
class PPO(RewardedConfig):
    """Proximal policy optimization, for policies that act one step at a time, with numbers or classes.

    After each round, the advantages of its actions are estimated once. Updates then read its steps in passes without
    replacement, and raise the density of good actions while it is near the density that the acting policy gave them.
    Use it with ``CollectionRounds(..., updates=Epochs(10), retention=LastRounds(1))`` and an exploration that samples
    from the policy, `TemperatureExploration`.

    A time limit does not count as an end: the value of what would follow the cut-off step counts.

    A reward model may have several objectives. Each then has its own value and its own advantages. They are
    standardized apart, and the loss is the weighted mean of the clipped losses of all objectives. Rewards are in units
    of their root mean square in the first round that has any, so that the unit of an objective changes nothing.

    Args:
        batch_size: Number of steps in each batch, whose advantages are standardized.
        optimizer: Optimizer of the policy and of the value.
        policy_optimizer: Optimizer of the policy. None for the optimizer of the value.
        value: The network of the value, one for each objective.
        discount: Discount per step.
        gae_decay: Weight of later steps in the advantage: 0 for the error of one step, 1 for the return.
        clip: Largest change of the ratio of densities that pays.
        max_kl: Largest estimated divergence from the policy that acted. As soon as it is larger, the remaining updates
            of the round are left out. None for no limit.
        kl_reference: A policy, such as a cloned one, from which the divergence is kept small.
        kl_weight: Weight of that divergence.
        cloning_weight: Weight of the loss of behavior cloning, on a batch of demonstrations beside each batch.
            Demonstrations need rewards, like all episodes.
        reward: A reward model that is trained on the batches of the policy, or that a stage trained. It judges each
            round before its updates. None: the rewards of the data.
        reward_every: Updates of the policy for each update of the reward model.
        group_size: Number of consecutive episodes of a round from the same start. The advantage of all steps of an
            episode is then its return minus the mean return of the other episodes of its group (leave one out, as in
            LOOP). It is not standardized. There is no value. None for a value.
        critic: A critic that a stage trained. It stays as it is, and its scores of the actions are the advantages (as
            in DVPO). There is no value, and rewards do not count. None for a value.

    References:
        Schulman et al. (2017), Proximal Policy Optimization Algorithms, arXiv:1707.06347.
        Schulman et al. (2016), High-Dimensional Continuous Control Using Generalized Advantage Estimation,
        arXiv:1506.02438.
        Baker et al. (2022), Video PreTraining (VPT), arXiv:2206.11795 (`kl_reference`).
        Andres et al. (2023), Using Offline Data to Speed Up Reinforcement Learning in Procedurally Generated
        Environments, arXiv:2304.09825 (`cloning_weight`; they alternate updates of cloning alone with updates of PPO).
        Xu et al. (2023), Composite Motion Learning with Task Control, arXiv:2305.03286 (several objectives).
        Chen et al. (2025), Reinforcement Learning for Long-Horizon Interactive LLM Agents (LOOP), arXiv:2502.01600
        (`group_size`).
        Huang et al. (2025), Lean and Mean: Decoupled Value Policy Optimization with Global Value Guidance (DVPO),
        arXiv:2502.16944 (`critic`).
    """

    steps: Annotated[int, AtLeast(0)] = 20_000
    batch_size: Annotated[int, AtLeast(2)] = 64
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=3e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=0.5))
    policy_optimizer: OptimizerConfig | None = None
    value: CriticConfig = field(default_factory=lambda: CriticConfig((64, 64), n_critics=1))
    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    gae_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.95
    clip: Annotated[float, Above(0)] = 0.2
    entropy_weight: Annotated[float, AtLeast(0)] = 0.0
    max_kl: Annotated[float | None, Above(0)] = None
    kl_reference: FromStage | Policy | None = None
    kl_weight: Annotated[float, AtLeast(0)] = 0.1
    cloning_weight: Annotated[float, AtLeast(0)] = 0.0
    reward: RewardModelConfig | FromStage | None = None
    reward_every: Annotated[int, AtLeast(1)] = 1
    group_size: Annotated[int | None, AtLeast(2)] = None
    critic: FromStage | Scorer | None = None

    def __post_init__(self):
        if self.group_size is not None and self.critic is not None:
            raise ConfigError("both say what an advantage is", where="PPO.critic", hint="leave it out, or group_size")
        self.check_discount(self.discount)

    @property
    def compares(self):
        return self.cloning_weight > 0 or RewardedConfig.compares.fget(self)

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> PPOLearner:
        return PPOLearner(self, policy, seed, steps, data)


class PPOLearner(RewardedLearner):
    """Learner of `PPO`, which trains on its newest rollouts."""

    config: PPO

    def __init__(self, config: PPO, policy: Policy, seed: int, steps: int, data: Dataset):
        super().__init__(config, policy, seed, steps)
        self.check_policy(policy)
        reference = config.kl_reference
        if isinstance(reference, Policy) and (missing := set(reference.inputs) - set(policy.inputs)):
            raise Unsupported(f"the reference reads {', '.join(sorted(missing))}, which the policy does not",
                              where="PPO.kl_reference", hint="train both on the same columns")
        if isinstance(reference, Policy) and reference.window != policy.window:
            raise Unsupported(f"the window of the reference is {reference.window}, and that of the policy "
                              f"{policy.window}", where="PPO.kl_reference", hint="train both with the same window")
        if isinstance(config.critic, Scorer):
            config.critic.to(policy.device).eval()
            if missing := set(config.critic.inputs) - set(policy.inputs):
                raise Unsupported(f"the critic reads {', '.join(sorted(missing))}, which the policy does not",
                                  where="PPO.critic", hint="train both on the same columns")
        config.value.check_no_subset()
        weights = torch.tensor(config.objective_weights(policy.inputs))
        self.objective_weights = (weights / weights.mean()).to(policy.device)  # (K,)
        value = replace(config.value, n_critics=len(weights) * config.value.n_critics)
        self.value = cast(ValueFunction, self.register("value", value.build(policy, action=False), config.optimizer))
        self.register("policy", policy, config.policy_optimizer or config.optimizer)
        self.register_reward(data)
        self.reward_units = [float(len(weights) == 1)] * len(weights)  # 0 for an objective without rewards so far
        self.round_start, self.stopped_round = 0, -1  # numbers of the updates before a round

    annotates = True

    def check_policy(self, policy: Policy) -> None:
        """Raises Unsupported if the policy gives no density of its actions."""
        if policy.window.horizon != 1 or policy.window.action_offset:
            raise Unsupported("the density is that of one action for each observation", where="PPO",
                              hint="use a policy with horizon=1 and action_offset=0")
        policy.likelihood_head  # noqa: B018  (it refuses heads without a density)

    # -- once for each round --------------------------------------------------------------------------------------

    def annotate(self, episodes, round):
        """Adds the log-density of each action, its advantage and its return, with the present networks."""
        episodes = super().annotate(episodes, round)
        parts = list(self.policy.windows(episodes, extra=self.batch_columns, next_obs=True).scan())
        columns = [torch.cat(column) for column in zip(*map(self._judge, parts), strict=True)]
        ends = np.cumsum(episodes.lengths)
        last = torch.zeros(ends[-1], dtype=torch.bool)
        last[ends - 1] = True
        log_prob, reference, reward, value, next_value, terminated, score = columns
        if round is not None:
            self.reward_units = [unit or float(x.square().mean().sqrt()) for unit, x in zip(
                self.reward_units, reward.T, strict=True)]
        reward = reward / torch.tensor([unit or 1.0 for unit in self.reward_units])
        if isinstance(self.config.critic, Scorer):
            advantage = score[:, None].expand_as(reward)
        elif self.config.group_size is None:
            advantage = gae(reward, value, next_value, terminated.bool()[:, None], last[:, None], self.config.discount,
                            self.config.gae_decay)
        else:
            advantage = left_out_advantage(reward, episodes.lengths, self.config.group_size, self.config.discount)
        return self._with_columns(episodes, {LOG_PROB: log_prob, REFERENCE_LOG_PROB: reference,
                                             ADVANTAGE: advantage.squeeze(1), RETURN: (advantage + value).squeeze(1)})

    def _judge(self, batch: Batch) -> tuple[Tensor, ...]:
        """Log-density, that of the reference, termination and score of each step, (B,), with reward, value and next
        value of each objective, (B, K)."""
        batch, critic = batch.to(self.device), self.config.critic
        assert batch.next is not None
        with self.evaluation():
            log_prob, reference_log_prob = (x[:, 0] for x in self.log_probs(batch))
            reward = batch.extra[REWARD] if self.reward is None else self.reward.objectives(batch, self.policy)
            columns = (log_prob, reference_log_prob, reward.float(), self.values(batch.obs), self.values(batch.next),
                       batch.extra[TERMINATED][:, 0].float(),
                       critic(batch.obs, batch.action) if isinstance(critic, Scorer) else log_prob)
        return tuple(column.cpu() for column in columns)

    def values(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Returns the value of each objective, (B, K)."""
        return self.value.scores(obs).unflatten(0, (len(self.objective_weights), -1)).amin(1).T

    def log_probs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the log-densities of the policy and of the reference, (B, K) each. Without one they are equal."""
        log_prob, reference = self.log_prob(self.policy, batch), self.config.kl_reference
        return log_prob, self.log_prob(reference, batch) if isinstance(reference, Policy) else log_prob

    def _with_columns(self, episodes: Dataset, columns: dict[str, Tensor]) -> Dataset:
        """Returns the episodes with further columns, (T, ...), and the number of this update."""
        ends = np.cumsum(episodes.lengths)[:-1]
        rows = zip(*(np.split(column.numpy(), ends) for column in columns.values()), strict=True)
        units = {REWARD_UNITS: self.reward_units} if len(self.reward_units) > 1 else {}
        return Dataset([replace(episode.replace(dict(zip(columns, values, strict=True))),
                                metadata={**episode.metadata, **units, FIRST_UPDATE: self.n_updates})
                        for episode, values in zip(episodes, rows, strict=True)], episodes.metadata)

    def batch_sampler(self, data, sampling_weights=None):
        if sampling_weights is not None:
            raise Unsupported("each step is read once in a pass", where="PPO", hint="leave the sampling weights out")
        newest = max((episode.metadata for episode in data), key=lambda metadata: metadata[FIRST_UPDATE])
        self.round_start, self.reward_units = newest[FIRST_UPDATE], newest.get(REWARD_UNITS, self.reward_units)
        # As in `annotate`: a last step that no observation follows is masked, and its density is not known.
        windows = partial(self.policy.windows, next_obs=True, extra=(
            *self.batch_columns, LOG_PROB, REFERENCE_LOG_PROB, ADVANTAGE, RETURN))
        if not self.config.compares:
            return EpochSampler(windows(data), self.round_start)
        own, expert = own_and_expert(data)
        return SourcesSampler(EpochSampler(windows(own), self.round_start), {"expert": windows(expert)})

    # -- updates --------------------------------------------------------------------------------------------------

    def update(self, batch: Batch) -> dict[str, float]:
        batch = batch.to(self.device)
        if "reward" in self.optimizers and (self.n_updates + 1) % self.config.reward_every == 0:
            self.with_rewards(batch)  # for the next round
        if self.config.max_kl is not None and self.divergence(batch) > self.config.max_kl:
            self.stopped_round = self.round_start
        if self.stopped_round != self.round_start:
            stored = batch.extra[ADVANTAGE]
            advantage, is_grouped = self.column(batch, ADVANTAGE), self.config.group_size is not None
            advantage = self.objective_weights * (advantage if is_grouped else self._standardized(advantage))
            advantage = (advantage if stored.ndim == 2 else advantage[:, None]).expand_as(stored)
            self.minimize("policy", self.policy_loss, batch.replace(extra={**batch.extra, ADVANTAGE: advantage}))
            if not is_grouped and self.config.critic is None:
                self.minimize("value", self.value_loss, batch)
        return self.end_update()

    def policy_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the clipped objective, less the entropy, plus the divergence from the reference and the loss of
        cloning, for each step, (B,)."""
        config, log_prob = self.config, self.log_prob(self.policy, batch)
        advantage = self.column(batch, ADVANTAGE) * self.density_weights(log_prob)
        ratio = (log_prob - self.column(batch, LOG_PROB)).exp()
        loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * advantage)
        if config.kl_reference is not None:  # the mean of log(p / reference) under p, by samples of the old p
            loss = loss + config.kl_weight * ratio * (log_prob - self.column(batch, REFERENCE_LOG_PROB))
        loss = loss.mean(1)
        if config.entropy_weight:
            loss = loss - config.entropy_weight * self.policy.entropy(self.policy.context(batch.obs), rng).sum(1)
        if config.cloning_weight:
            loss = loss + config.cloning_weight * self.policy.loss(batch.others["expert"], rng)[:, 0]
        return loss

    def value_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the squared error of the value for each step, (B,)."""
        return (self.values(batch.obs) - self.column(batch, RETURN)).square().mean(1)

    def log_prob(self, policy: Policy, batch: Batch) -> Tensor:
        """Returns the log-densities of what was done in each step, (B, K). K is 1: that of the stored action."""
        return policy.log_prob(policy.context(batch.obs), policy.encode_batch(batch), batch.mask).sum(1, keepdim=True)

    def density_weights(self, log_prob: Tensor) -> Tensor:
        """Returns the weight of each of the K densities, (K,)."""
        return log_prob.new_ones(log_prob.shape[1])

    def column(self, batch: Batch, name: str) -> Tensor:
        """Returns an added column at the observed step, (B, size)."""
        return batch.extra[name][:, -self.policy.window.action_offset].reshape(len(batch.mask), -1)

    def divergence(self, batch: Batch) -> float:
        """Returns the divergence from the policy that acted: the mean of ratio - 1 - log(ratio), over all processes."""
        with self.evaluation():
            log_ratio = self.log_prob(self.policy, batch) - self.column(batch, LOG_PROB)
            terms = (log_ratio.exp() - 1 - log_ratio).mean(1)
        total = torch.stack([terms.sum(), terms.new_tensor(len(terms))])
        self.processes.all_reduce([total])
        return float(total[0] / total[1])

    def _standardized(self, x: Tensor) -> Tensor:
        """Standardizes each column of x (B, K) over the batches of all processes."""
        exact = x.double()  # a mean far larger than the deviation takes more digits than float32 has
        sums = torch.stack([torch.ones_like(exact).sum(0), exact.sum(0), exact.square().sum(0)])
        self.processes.all_reduce([sums])
        n, mean = sums[0], sums[1] / sums[0]
        std = ((sums[2] - n * mean.square()) / (n - 1)).clamp(min=0).sqrt()
        return ((exact - mean) / (std + 1e-8)).to(x.dtype)

    # -- what resuming needs --------------------------------------------------------------------------------------

    def state(self):
        tensors, metadata = super().state()
        return tensors, {**metadata, "stopped_round": self.stopped_round}

    def restore(self, tensors, metadata):
        super().restore(tensors, metadata)
        self.stopped_round = metadata["stopped_round"]


def left_out_advantage(reward: Tensor, lengths: Sequence[int], group_size: int, discount: float) -> Tensor:
    """Returns the return of the episode of each step, minus the mean return of the others of its group, (T, ...).

    If a group has only one episode, its advantage is 0.

    Args:
        reward: Reward of each step, (T, ...).
        lengths: Number of steps of each episode. `group_size` consecutive episodes are a group.
    """
    returns = torch.stack([(discount ** torch.arange(len(r)).to(r) @ r) for r in reward.split(list(lengths))])
    advantages = [(group - group.mean(0)) * len(group) / max(len(group) - 1, 1) for group in returns.split(group_size)]
    return torch.cat(advantages).repeat_interleave(torch.tensor(lengths), 0)


class EpochSampler(BatchSampler):
    """Sampler whose batches read all windows, in a new random order each time, before they read any again.

    Args:
        start: Number of the first batch.
        rows: The windows to read. None for all.
    """

    def __init__(self, windows: Windows, start: int, rows: np.ndarray | None = None):
        self.windows, self.start = windows, start
        self.rows = np.arange(len(windows)) if rows is None else rows

    def batch(self, size, step, seed=0, rows=slice(None)):
        """Batch number `step` has the next `size` windows of the orders, one after the other."""
        first, n = (step - self.start) * size, len(self.rows)
        orders = [np.random.default_rng([seed % 2**64, self.start, epoch]).permutation(n)
                  for epoch in range(first // n, (first + size - 1) // n + 1)]
        begin = first % n
        return self.windows.gather(self.rows[np.concatenate(orders)[begin:begin + size][rows]])
