from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from torch import Generator, Tensor

from ...checkpoint import FromStage
from ...core import Above, AtLeast, AtMost, Batch, Schema, Unsupported, part
from ...data.batch_sampler import BatchSampler
from ...data.column_changes import get_column
from ...data.episode import Dataset
from ...data.operations import Operation
from ...data.window import SamplingWeights, Windows
from ...heads.likelihood.gaussian import Gaussian
from ...learn.algorithm import Algorithm, Net, loss
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.devices import Processes
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
    """Keeps the episodes with the largest returns, some several times.

    An episode that is among several of the fractions counts as often.

    Args:
        fractions: Fractions of the episodes, from 0 to 1.
    """

    fractions: Annotated[tuple[float, ...], AtLeast(0), AtMost(1)] = (0.1, 0.05, 0.02)

    def apply(self, data: Dataset) -> Dataset:
        returns = np.array([float(np.sum(get_column(e, REWARD)[:len(e)])) for e in data])
        return data.select(i for fraction in self.fractions
                           for i in np.flatnonzero(returns >= np.quantile(returns, 1 - fraction)))


class WholeEpisodeSampler(BatchSampler):
    """Sampler of whole episodes, for weights that depend on all steps of an episode.

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


@method("Qin and Springenberg 2025 (iw-SFT), arXiv 2507.12856", rows=("256",), needs=(NUMBERS, REWARDS),
        when="if some episodes have much larger returns than others, and no values are learned.")
@part
class IWSFT(Algorithm):
    """Importance-weighted supervised fine-tuning: clones the best episodes, weighted by ratios of densities.

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

    reference: FromStage | Policy = FromStage("reference")
    steps: Annotated[int, AtLeast(0)] = 2000
    batch_size: Annotated[int, AtLeast(1)] = 1024
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=4e-5, warmup_steps=300))
    decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.9
    beta: Annotated[float, AtLeast(0)] = 10.0
    max_weight: Annotated[float, Above(0)] = 1000.0
    over: Literal["episode", "step"] = "episode"

    def method(self, features: Schema | None = None, fractions: tuple[float, ...] = ReturnStrata.fractions) -> Method:
        """Returns the method of this learner.

        Args:
            fractions: Fractions of the episodes, by return. An episode counts once for each that it is in.
        """
        policy, reference = PolicyConfig(Gaussian(), MLP(256, 2), simplest_encoder(features)), FromStage("reference")
        clone = Method(policy, learner=BehaviorCloning(10_000))
        return Method(policy, learner=self, transforms=(ReturnStrata(fractions),),
                      stages=(Stage(reference.stage, clone),), initialize_from=(InitializeFrom(reference),))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        policy.likelihood_head  # noqa: B018  (it refuses heads without a density)
        if (n := Processes.current().count) > 1:
            raise Unsupported(f"{n} processes would each see a part of an episode", where="IWSFT",
                              hint="train in one process")
        return {"policy": Net(policy, self.optimizer, target=self.decay)}

    def sampler(self, policy: Policy, data: Dataset, weights: SamplingWeights | None) -> BatchSampler:
        if weights is not None:
            raise Unsupported("episodes are drawn equally often, without the weights of a mixture", where="IWSFT",
                              hint="give all episodes as DATA")
        return WholeEpisodeSampler(policy.training_windows(data))

    def weight(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weights of the steps, (B, H). The weights of an episode's steps sum to its weight."""
        ratio = log_prob(nets.target.policy, batch) - log_prob(cast(Policy, self.reference), batch)
        index = batch.extra["episode"][:, 0]
        n_steps, total = (x.new_zeros(len(batch)).index_add(0, index, x.sum(1)) for x in (batch.mask.float(), ratio))
        if self.over == "episode":
            ratio = (total / n_steps.clamp(min=1))[index, None]
        weights = batch.mask * (self.beta * ratio).exp().clamp(max=self.max_weight) / n_steps[index, None]
        rows = weights.sum(1)
        return weights, {"effective_fraction": rows.mean().square() / rows.square().mean()}

    @loss("policy", weights="weight")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return nets.policy.loss(batch, rng)


def log_prob(policy: Policy, batch: Batch) -> Tensor:
    """Returns the log-density of the stored steps, (B, H), 0 at padding."""
    return policy.log_prob(policy.context(batch.obs), policy.encode_batch(batch), batch.mask)
