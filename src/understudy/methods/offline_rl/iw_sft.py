from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, cast

import numpy as np
import torch
from torch import Tensor

from ...checkpoint import FromStage
from ...core import Above, AtLeast, AtMost, Batch, Schema, Unsupported, part
from ...data.batch_sampler import BatchSampler
from ...data.column_changes import get_column
from ...data.episode import Dataset
from ...data.operations import Operation
from ...data.window import Windows
from ...heads.likelihood.gaussian import Gaussian
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.fit import LearnerConfig
from ...learn.gradient_learner import GradientLearner
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...learn.targets import REWARD
from ...nets.encoders import simplest_encoder
from ...nets.mlp import MLP
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS, REWARDS
from ..registry import method


@part
class ReturnStrata(Operation):
    """Keeps the episodes with the largest returns. One that is among several of the fractions counts as often.

    Args:
        fractions: Fractions of the episodes, from 0 to 1.
    """

    fractions: Annotated[tuple[float, ...], AtLeast(0), AtMost(1)] = (0.1, 0.05, 0.02)

    def apply(self, data: Dataset) -> Dataset:
        returns = np.array([float(np.sum(get_column(e, REWARD)[:len(e)])) for e in data])
        return data.select(i for fraction in self.fractions
                           for i in np.flatnonzero(returns >= np.quantile(returns, 1 - fraction)))


class WholeEpisodeSampler(BatchSampler):
    """Batches of whole episodes, for weights that depend on all steps of an episode.

    Episodes are drawn, also repeatedly, until the batch is full. Of the last one there are as many steps as fit, from a
    random step on, and then from its first. `extra["episode"]`, (B, 1), numbers the draws.
    """

    def __init__(self, windows: Windows):
        self.windows = windows

    def batch(self, size: int, step: int, seed: int = 0, rows: slice = slice(None)) -> Batch:
        """Returns one batch: see `BatchSampler.batch`. All episodes are drawn equally often."""
        rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, step]))
        bounds = self.windows.episode_bounds
        drawn = rng.integers(0, len(bounds) - 1, size)
        lengths = np.diff(bounds)[drawn]
        last = int(np.searchsorted(np.cumsum(lengths), size))
        parts = [np.arange(bounds[e], bounds[e + 1]) for e in drawn[:last + 1]]
        parts[last] = np.roll(parts[last], rng.integers(lengths[last]))
        batch = self.windows.gather(np.concatenate(parts)[:size])
        number = torch.from_numpy(np.repeat(np.arange(last + 1), lengths[:last + 1])[:size, None])
        return batch.replace(extra={**batch.extra, "episode": number}).select_rows(rows)


@part
class ImportanceWeightedCloning(LearnerConfig):
    """Clone episodes, weighted by the ratio of their densities under the policy and under a reference policy.

    Cloning successes maximizes a lower bound of the return. The weights tighten it: ``q / p`` with the density q of a
    copy that follows the policy, and p of the reference. The weight of an episode is ``exp(beta * mean(log q - log
    p))`` over its steps. It is 1 for a policy that starts from the weights of the reference.

    Args:
        reference: The policy that is thought to have recorded the episodes.
        decay: Fraction of the copy that each update keeps. 0 copies the policy.
        beta: Factor of the mean log-ratio. 0 is plain cloning of the same episodes.
        max_weight: Upper bound of a weight.
        over: Whether an episode has one weight, or each step its own.

    References:
        Qin and Springenberg (2025), Supervised Fine Tuning on Curated Data is Reinforcement Learning (and can be
        improved), arXiv:2507.12856.
    """

    reference: FromStage | Policy
    steps: Annotated[int, AtLeast(0)] = 2000
    batch_size: Annotated[int, AtLeast(1)] = 1024
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=4e-5, warmup_steps=300))
    decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.9
    beta: Annotated[float, AtLeast(0)] = 10.0
    max_weight: Annotated[float, Above(0)] = 1000.0
    over: Literal["episode", "step"] = "episode"

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> ImportanceWeightedCloningLearner:
        return ImportanceWeightedCloningLearner(self, policy, seed, steps)


class ImportanceWeightedCloningLearner(GradientLearner):
    """Learner of `ImportanceWeightedCloning`."""

    config: ImportanceWeightedCloning

    def __init__(self, config: ImportanceWeightedCloning, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        policy.likelihood_head  # noqa: B018  (it refuses heads without a density)
        if self.processes.count > 1:
            raise Unsupported(f"{self.processes.count} processes would each see a part of an episode",
                              where="ImportanceWeightedCloning", hint="train in one process")
        self.register("policy", policy, config.optimizer)
        self.lagged = self.target_network("policy", config.decay)

    def batch_sampler(self, data, sampling_weights=None):
        if sampling_weights is not None:
            raise Unsupported("episodes are drawn equally often, without the weights of a mixture",
                              where="ImportanceWeightedCloning", hint="give all episodes as DATA")
        return WholeEpisodeSampler(cast(Windows, super().batch_sampler(data)))

    def update(self, batch: Batch) -> dict[str, float]:
        batch = batch.to(self.device)
        with self.evaluation():
            weights = self.weights(batch)
        self.minimize("policy", self.policy.loss, batch, weights)
        rows = weights.sum(1)
        return self.end_update(effective_fraction=(rows.mean().square() / rows.square().mean()).item())

    def weights(self, batch: Batch) -> Tensor:
        """Returns the weights of the steps, (B, H). Those of an episode sum to its weight."""
        ratio = log_prob(self.lagged, batch) - log_prob(cast(Policy, self.config.reference), batch)
        index = batch.extra["episode"][:, 0]
        n_steps, total = (x.new_zeros(len(batch)).index_add(0, index, x.sum(1)) for x in (batch.mask.float(), ratio))
        if self.config.over == "episode":
            ratio = (total / n_steps.clamp(min=1))[index, None]
        weights = (self.config.beta * ratio).exp().clamp(max=self.config.max_weight)
        return batch.mask * weights / n_steps[index, None]


def log_prob(policy: Policy, batch: Batch) -> Tensor:
    """Returns the log-density of the stored steps, (B, H), 0 at padding."""
    return policy.log_prob(policy.context(batch.obs), policy.encode_batch(batch), batch.mask)


@method("Qin and Springenberg 2025 (iw-SFT), arXiv 2507.12856", rows=("256",), needs=(NUMBERS, REWARDS),
        when="if some episodes have much larger returns than others, and no values are learned.")
def iw_sft(beta: float = 10.0, fractions: tuple[float, ...] = (0.1, 0.05, 0.02), features: Schema | None = None
           ) -> Method:
    """Importance-weighted supervised fine-tuning: clones the best episodes, weighted by ratios of densities.

    Args:
        beta: Factor of the mean log-ratio of an episode in its weight. 0 is plain cloning of the best episodes.
        fractions: Fractions of the episodes, by return. An episode counts once for each that it is in.
    """
    policy = PolicyConfig(Gaussian(), MLP(256, 2), simplest_encoder(features))
    clone = Method(policy, learner=BehaviorCloning(10_000))
    learner = ImportanceWeightedCloning(FromStage("reference"), beta=beta)
    return Method(policy, learner=learner, transforms=(ReturnStrata(fractions),), stages=(Stage("reference", clone),),
                  initialize_from=(InitializeFrom(FromStage("reference")),))
