from __future__ import annotations

import warnings
from dataclasses import field
from typing import Annotated, cast

import numpy as np
import torch
from torch import Generator, Tensor

from ...core import AtLeast, AtMost, Batch, DataWarning, Schema, Unsupported, part
from ...data.batch_sampler import SourcesSampler, join_batches
from ...data.column_changes import ReturnToGo
from ...data.episode import Dataset
from ...data.mixture import expert_episodes
from ...data.window import Window
from ...execute.temporal_ensemble import TemporalEnsemble
from ...heads.energy.coarse_to_fine import CoarseToFineQ, of_chosen
from ...improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from ...improve.updates import PerNewStep
from ...learn.fit import LearnerConfig
from ...learn.gradient_learner import GradientLearner
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...learn.targets import REWARD, TERMINATED, td_terms
from ...nets.ema import ConstantDecay
from ...nets.encoders import simplest_encoder
from ...nets.lstm import LSTM
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@part
class SequenceValues(LearnerConfig):
    """Distributional double Q-learning of every bin of a `CoarseToFineQ` head, and cloning of demonstrations.

    All steps, components and levels of a recorded chunk have the same target: the reward of one step, and the values of
    the best chunk after it. Each batch has as many windows of demonstrations, and of episodes that succeeded, as of
    collected ones. A slowly updated copy of the network is the target, and acts.

    Args:
        value_weight: Weight of the values. That of cloning is 1.

    References:
        Seo and Abbeel (2024), Reinforcement Learning with Action Sequence for Data-Efficient Robot Learning,
        arXiv:2411.12155.
    """

    steps: Annotated[int, AtLeast(0)] = 20_000
    batch_size: Annotated[int, AtLeast(1)] = 64
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=5e-5, weight_decay=0.1, lr_schedule="constant", grad_clip_norm=None))
    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.98
    value_weight: Annotated[float, AtLeast(0)] = 0.1

    extra = (REWARD, TERMINATED)
    next_obs = True
    lookahead = 1
    compares = True

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> SequenceValuesLearner:
        learner = SequenceValuesLearner(self, policy, seed, steps)
        columns = [e.steps["return"] for e in data.map(ReturnToGo(self.discount, into="return"))]
        returns = np.concatenate([np.zeros((1, 1)), *columns])
        if returns.min() < (head := learner.head).low or returns.max() > head.high:
            warnings.warn(f"the returns of the data are from {returns.min():.3g} to {returns.max():.3g}, and those "
                          f"below {head.low:g} or above {head.high:g} count as these. Give the range of returns "
                          "(--policy.head.low, --policy.head.high), or scale the rewards (--reward-scale).",
                          DataWarning, stacklevel=2)
        return learner


class SequenceValuesLearner(GradientLearner):
    """Learner of `SequenceValues`."""

    config: SequenceValues

    def __init__(self, config: SequenceValues, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        if not isinstance(policy.config.head, CoarseToFineQ) or policy.window.action_offset:
            raise Unsupported("the values are those of a CoarseToFineQ head, from the current step on",
                              where="SequenceValues", hint="use CoarseToFineQ(), and a window with action_offset=0")
        self.head = policy.config.head
        self.register("policy", policy, config.optimizer)
        self.target = cast(Policy, self.average_weights("policy", ConstantDecay(config.target_decay)))

    def batch_sampler(self, data, sampling_weights=None):
        sampler, demonstrations = super().batch_sampler(data, sampling_weights), set(expert_episodes(data))
        assert isinstance(sampler, SourcesSampler)
        good = [i for i, e in enumerate(data) if i in demonstrations or e.metadata.get("success")]
        expert = self.policy.training_windows(data.select(good), extra=self.batch_columns, next_obs=True, lookahead=1,
                                              sampling_weights=sampling_weights)
        return SourcesSampler(sampler.sampler, {"expert": expert})

    def update(self, batch: Batch) -> dict[str, float]:
        self.minimize("policy", self.loss, batch)
        return self.end_update()

    def loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the weighted cross-entropy of recorded chunks against their target, and the cloning loss, (B,).

        The first is a mean over both sources. A chunk that leaves its episode repeats the last action.
        """
        both = join_batches([batch, batch.others["expert"]])
        last = (both.mask.cumsum(1) - 1)[..., None].expand_as(both.action)
        chunk = self.policy.codec.encode(both.action.gather(1, last), both.obs)
        log_probs, chosen = self.head.evaluate(self.policy.net, self.policy.context(both.obs), chunk)
        values = of_chosen(log_probs, chosen)
        self.log(value=self.head.mean(values))
        entropy = -(self.target_probs(both) * values).sum(-1).mean((1, 2, 3)).unflatten(0, (2, -1)).mean(0)
        cloning = self.head.cloning_loss(log_probs[len(batch):], chosen[len(batch):])
        return self.config.value_weight * entropy + cloning.mean(1)

    @torch.no_grad()
    def target_probs(self, batch: Batch) -> Tensor:
        """Returns the distribution of the reward plus the discounted return of the next chunk, on the atoms.

        The policy chooses this chunk, and the target network evaluates it.

        Returns:
            Probabilities, (B, H, levels, A, atoms).
        """
        assert batch.next is not None
        noise = batch.action.new_zeros(len(batch), *self.policy.noise_shape)
        best = self.head.sample(self.policy.net, self.policy.context(batch.next), noise)
        after = of_chosen(*self.head.evaluate(self.target.net, self.target.context(batch.next), best)).exp()
        reward, bootstrap = td_terms(batch, self.config.discount, n_step=1)
        atoms = self.head.atoms(after)
        returns = (reward[:, None] + bootstrap[:, None] * atoms).clamp(self.head.low, self.head.high)
        share = (1 - (returns[..., None] - atoms).abs() / (atoms[1] - atoms[0])).clamp(min=0)  # linear interpolation
        return torch.einsum("b...i,bij->b...j", after, share)


@method("Seo and Abbeel 2024, arXiv 2411.12155, with a smaller network and batches", rows=("229",),
        needs=(NUMBERS, STEP_REWARDS, "an environment"),
        when="if demonstrations are few, success is the only reward, and there is an environment; whether chunks beat "
             "single actions (--method.horizon 1) is undecided.")
def cqn_as(n_rounds: int = 100, n_steps: int = 200, horizon: int = 4, noise: float = 0.01,
           updates_per_step: float = 1.0, features: Schema | None = None) -> Method:
    """Coarse-to-fine Q-network with action sequences: values of chunks of actions, learned with demonstrations.

    Args:
        horizon: Number of actions of a chunk. 1 is CQN.
        updates_per_step: Number of updates for each collected step.
    """
    policy = PolicyConfig(CoarseToFineQ(), LSTM(256, 1), simplest_encoder(features), window=Window(1, horizon))
    collector = RolloutCollector(n_steps=n_steps, exploration=GaussianExploration(noise))
    return Method(policy, TemporalEnsemble(), SequenceValues(),
                  collection=CollectionRounds(n_rounds, collector, updates=PerNewStep(updates_per_step)))
