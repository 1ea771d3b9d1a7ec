"""Proximal policy optimization (PPO) of the steps in which a policy turns noise into a chunk of actions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ...core import Above, AtLeast, AtMost, Context, Unsupported, normal, part, put, take
from ...data.episode import Dataset
from ...execute.actor import Actor, PolicyActor
from ...execute.base import require_stepwise
from ...execute.chunking import RecedingHorizon
from ...heads.base import Head
from ...heads.denoising.diffusion import Diffusion
from ...heads.denoising.flow import Flow
from ...heads.solvers import DeterministicSolver
from ...policy import Policy, StepwisePlanner
from ..optimizer import OptimizerConfig
from ..targets import REWARD, TERMINATED, gae
from .ppo import ADVANTAGE, FIRST_UPDATE, LOG_PROB, PPO, REFERENCE_LOG_PROB, RETURN, EpochSampler, PPOLearner

CHAIN = "policy.chain"  # the states between noise and coded chunk, (K + 1) * H * A numbers
PLANS = "policy.plans"  # whether a new chunk begins in this step
POLICY = OptimizerConfig(lr=1e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=1.0)


@part
class DenoisingPPO(PPO):
    """Proximal policy optimization in which each denoising step of a chunk is an action.

    While it explores, a policy with the head `Flow` or `Diffusion` adds noise to each step from noise to action, which
    makes the step a Gaussian with a density. Every chunk has one reward, which is the sum over its executed steps, and
    one advantage, which all its denoising steps share. Batches and the discount count chunks. The deployed policy takes
    the same steps without this noise.

    Use it with ``CollectionRounds(..., retention=LastRounds(1))``, a collector that has `DenoisingExploration`, and
    `RecedingHorizon`. The horizon of the policy can be any, and `reward` must be None.

    The authors add the noise of DDPM, at least `std`, and clip ratios of mean densities at 0.01. Here the noise is
    `std` in all steps, so that the mean of a step equals the step of the deployed sampler, and densities are densities
    of whole chunks.

    Args:
        optimizer: Optimizer of the value.
        policy_optimizer: Optimizer of the policy. None for the optimizer of the value.
        std: Standard deviation of the noise, in coded actions.
        denoising_discount: Weight of a step relative to the one after it.

    References:
        Ren et al. (2024), Diffusion Policy Policy Optimization (DPPO), arXiv:2409.00588.
        Zhang et al. (2025), ReinFlow: Fine-tuning Flow Matching Policy with Online Reinforcement Learning,
        arXiv:2505.22094.
    """

    optimizer: OptimizerConfig = field(default_factory=lambda: replace(POLICY, lr=1e-3))
    policy_optimizer: OptimizerConfig | None = POLICY
    std: Annotated[float, Above(0)] = 0.1
    denoising_discount: Annotated[float, Above(0), AtMost(1)] = 0.99
    steps: Annotated[int, AtLeast(0)] = 2000

    def build(self, policy, seed, steps, data):
        return DenoisingPPOLearner(self, policy, seed, steps, data)


def check_denoising(head: Head) -> None:
    """Raises Unsupported if `DenoisingPPO` cannot train the denoising steps of a head."""
    if not isinstance(head, (Flow, Diffusion)) or type(head) not in (Flow, Diffusion) or head.times != "shared":
        raise Unsupported(f"{type(head).__name__} has no denoising steps that all steps of a chunk share",
                          where="DenoisingPPO", hint="use the head Flow or Diffusion with times=\"shared\", or "
                          "correct the policy: understudy improve RUN --with residual-ppo")
    if isinstance(head, Diffusion) and (head.spacing != "trailing" or head.n_extra_steps
                                        or not isinstance(head.solver, DeterministicSolver)):
        raise Unsupported("the steps of training would not be those of the deployed sampler", where="DenoisingPPO",
                          hint="use Diffusion(solver=DDIM(), spacing=\"trailing\", n_extra_steps=0)")


class DenoisingPPOLearner(PPOLearner):
    """Learner of `DenoisingPPO`, which trains on its newest rollouts."""

    config: DenoisingPPO

    def check_policy(self, policy):
        check_denoising(policy.config.head)
        if self.config.reward is not None:
            raise Unsupported("a learned reward judges single steps, and an action here is a chunk",
                              where="DenoisingPPO.reward", hint="leave it out: the data have the rewards")
        if self.config.group_size is not None or self.config.critic is not None:
            raise Unsupported("chunks have values here", where="DenoisingPPO",
                              hint="leave group_size and critic out, or use PPO with a head that has a density")

    def exploring_actor(self, actor: Actor) -> Actor:
        """Returns the actor that adds noise to the denoising steps of the deployed one, and records them."""
        if not isinstance(actor, PolicyActor) or not isinstance(actor.executor, RecedingHorizon):
            raise Unsupported("the density is that of whole chunks, one executed after the other", where="DenoisingPPO",
                              hint="train the policy with RecedingHorizon and no wrapper")
        planner, policy = require_stepwise(actor.planner, "DenoisingPPO"), self.trained_policy
        shape = policy.guided_head.n_steps + 1, *policy.noise_shape
        return ChainActor(actor, planner, actor.executor, shape, self.config.std)

    # -- once for each round --------------------------------------------------------------------------------------

    def annotate(self, episodes, round):
        """Adds the log-densities, the advantage and the return of each chunk to its first step, as `PPO` does."""
        if round is None:  # demonstrations, which have no chains
            return episodes
        plans = [np.flatnonzero(np.asarray(e.steps[PLANS][:len(e)]).reshape(-1)) for e in episodes]
        ends = np.cumsum(episodes.lengths)
        rows = np.concatenate([p + end - len(e) for p, end, e in zip(plans, ends, episodes, strict=True)])
        windows = self.policy.windows(episodes, extra=(CHAIN,))
        parts = [self._judge(windows.gather(rows[i:i + 256])) for i in range(0, len(rows), 256)]
        log_prob, reference, value = (torch.cat(column) for column in zip(*parts, strict=True))
        reward = np.concatenate([np.add.reduceat(np.asarray(e.steps[REWARD][:len(e)], np.float32), p)
                                 for p, e in zip(plans, episodes, strict=True)])
        bounds = np.cumsum([len(p) for p in plans])
        last, terminated = torch.zeros((2, len(rows)), dtype=torch.bool)
        last[bounds - 1] = True
        terminated[last] = torch.tensor([bool(np.any(e.steps[TERMINATED][:len(e)])) for e in episodes])
        next_value = value.roll(-1)
        next_value[last] = self._last_values(episodes, ends - 1)
        advantage = gae(torch.from_numpy(reward), value, next_value, terminated, last, self.config.discount,
                        self.config.gae_decay)
        columns = {LOG_PROB: log_prob, REFERENCE_LOG_PROB: reference, ADVANTAGE: advantage, RETURN: advantage + value}
        return self._with_columns(episodes, {  # zero but at these rows
            name: torch.zeros(ends[-1], *x.shape[1:]).index_copy(0, torch.from_numpy(rows), x)
            for name, x in columns.items()})

    def _judge(self, batch):
        """Returns log-densities of the policy and of the reference, (B, K) each, and the value, (B,)."""
        batch = batch.to(self.device)
        with self.evaluation():
            return tuple(x.cpu() for x in (*self.log_probs(batch), self.value(batch.obs)))

    def _last_values(self, episodes: Dataset, rows: np.ndarray) -> Tensor:
        """Returns the values of the observations after the last step of each episode."""
        windows = self.policy.windows(episodes, next_obs=True, lookahead=1 - self.policy.window.action_offset)
        with self.evaluation():
            return self.value(windows.gather(rows).to(self.device).next).cpu()

    def batch_sampler(self, data, sampling_weights=None):
        if sampling_weights is not None:
            raise Unsupported("each chunk is read once in a pass", where="DenoisingPPO",
                              hint="leave the sampling weights out")
        if not any(FIRST_UPDATE in episode.metadata for episode in data):  # demonstrations
            return self.policy.windows(data)
        self.round_start = max(episode.metadata[FIRST_UPDATE] for episode in data)
        columns = (CHAIN, LOG_PROB, REFERENCE_LOG_PROB, ADVANTAGE, RETURN)
        plans = np.concatenate([np.asarray(e.steps[PLANS][:len(e)]).reshape(-1) for e in data])
        return EpochSampler(self.policy.windows(data, extra=columns), self.round_start, np.flatnonzero(plans))

    # -- updates --------------------------------------------------------------------------------------------------

    def density_weights(self, log_prob):
        n = log_prob.shape[1]
        return self.config.denoising_discount ** torch.arange(n - 1.0, -1.0, -1.0, device=log_prob.device)

    def log_prob(self, policy, batch):
        """Returns the log-density of each recorded denoising step, (B, K)."""
        chain = self.column(batch, CHAIN).unflatten(1, (-1, *policy.noise_shape))
        return chain_log_prob(policy, policy.context(batch.obs), chain, self.config.std)


def sample_chain(planner: StepwisePlanner, obs: Mapping[str, Tensor], noise: Tensor, std: float) -> Tensor:
    """Returns the states from noise to coded chunk, (B, K + 1, H, A), with noise in each of the K steps.

    Args:
        obs: Observation windows, (B, To, ...).
        noise: Standard normal noise of the beginning and of each step, (B, K + 1, H, A).
        std: Standard deviation of the noise that is added in the steps.
    """
    context, chain = planner.context(obs), [noise[:, 0]]
    for k in range(noise.shape[1] - 1):
        number = torch.full((len(noise),), k, device=noise.device)
        chain.append(_step_mean(planner, context, chain[-1], number, noise.shape[1] - 1) + std * noise[:, k + 1])
    return torch.stack(chain, 1)


def chain_log_prob(policy: Policy, context: Context, chain: Tensor, std: float) -> Tensor:
    """Returns the log-density of each step of a chain that `sample_chain` made, (B, K)."""
    rows, n = len(chain), chain.shape[1] - 1
    number = torch.arange(n, device=chain.device).repeat(rows)
    mean = _step_mean(policy, context.repeat(n), chain[:, :-1].flatten(0, 1), number, n)
    error = (chain[:, 1:].flatten(0, 1) - mean) / std
    return (-0.5 * error.square() - math.log(std) - 0.5 * math.log(2 * math.pi)).sum((1, 2)).unflatten(0, (rows, n))


def _step_mean(planner: StepwisePlanner, context: Context, x: Tensor, number: Tensor, n_steps: int) -> Tensor:
    """Returns where the deployed sampler moves x (B, H, A) in its step of this number (B,)."""
    t = number[:, None].expand(x.shape[:2])
    return planner.denoise_step(context, x, t / n_steps, (t + 1) / n_steps)


class ChainActor(Actor):
    """Actor that executes chunks sampled with noise in each denoising step, and records these steps.

    Args:
        actor: Keeps the history of observations.
        shape: Shape of the states of one row, (K + 1, H, A).
        std: Standard deviation of the noise, in coded actions.
    """

    def __init__(self, actor: PolicyActor, planner: StepwisePlanner, executor: RecedingHorizon, shape: tuple[int, ...],
                 std: float):
        self.actor, self.planner, self.executor, self.shape, self.std = actor, planner, executor, shape, std

    def start(self, obs, key):
        self.executor.check_planner(self.planner)
        zero = torch.zeros_like(key)
        return {"seen": self.actor.first_windows(obs, key)[1], "key": key, "count": zero,
                "cursor": zero + self.executor.n_action_steps,
                "chunk": torch.zeros(len(key), self.planner.window.horizon, self.planner.action_dim),
                "chain": torch.zeros(len(key), *self.shape)}

    @torch.no_grad()
    def act(self, obs, state):
        windows = self.actor.next_windows(obs, state["seen"])
        due = state["cursor"] >= self.executor.n_action_steps
        chunk, chain = state["chunk"], state["chain"]
        if len(rows := due.nonzero().flatten()):
            planned = take(windows, rows.to(self.planner.device))
            noise = normal(state["key"][rows], state["count"][rows], self.shape, stream=6)
            states = sample_chain(self.planner, planned, noise.to(self.planner.device), self.std)
            chunk = put(chunk, rows, self.planner.decode(states[:, -1], planned).cpu())
            chain = put(chain, rows, states.cpu())
        cursor = torch.where(due, 0, state["cursor"])
        action = chunk[torch.arange(len(cursor)), cursor + self.executor.skip]
        return action, {**state, "seen": windows, "count": state["count"] + due, "cursor": cursor + 1, "chunk": chunk,
                        "chain": chain, "record": {CHAIN: chain.flatten(1), PLANS: due}}
