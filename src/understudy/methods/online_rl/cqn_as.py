from __future__ import annotations

import warnings
from dataclasses import field
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from torch import Generator, Tensor

from ...core import AtLeast, AtMost, Batch, DataWarning, Schema, Unsupported, part
from ...data.batch_sampler import BatchSampler, SourcesSampler, join_batches
from ...data.column_changes import ReturnToGo
from ...data.episode import Dataset
from ...data.mixture import expert_episodes
from ...data.window import SamplingWeights, Window
from ...execute.temporal_ensemble import TemporalEnsemble
from ...heads.energy.coarse_to_fine import CoarseToFineQ, of_chosen
from ...improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from ...improve.updates import PerNewStep
from ...learn.algorithm import Algorithm, Net, loss
from ...learn.fit import no_demonstrations, own_and_expert
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...learn.targets import REWARD, TERMINATED, td_terms
from ...nets.ema import ConstantDecay
from ...nets.encoders import simplest_encoder
from ...nets.lstm import LSTM
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@method("Seo and Abbeel 2024, arXiv 2411.12155, with a smaller network and batches", rows=("229",),
        needs=(NUMBERS, STEP_REWARDS, "an environment"),
        when="if demonstrations are few, success is the only reward, and there is an environment; whether chunks beat "
             "single actions (--horizon 1) is undecided.")
@part
class CQNAS(Algorithm):
    """Coarse-to-fine Q-network with action sequences: values of chunks of actions, learned with demonstrations.

    It is distributional double Q-learning of every bin of a `CoarseToFineQ` head, and cloning of demonstrations. All
    steps, components and levels of a recorded chunk have the same target: the reward of one step, and the values of the
    best chunk after it. Each batch has as many windows of demonstrations, and of episodes that succeeded, as of
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

    def method(self, features: Schema | None = None, n_rounds: int = 100, n_steps: int = 200, horizon: int = 4,
               noise: float = 0.01, updates_per_step: float = 1.0) -> Method:
        """Returns the method of this learner.

        Args:
            horizon: Number of actions of a chunk. 1 is CQN.
            updates_per_step: Number of updates for each collected step.
        """
        policy = PolicyConfig(CoarseToFineQ(), LSTM(256, 1), simplest_encoder(features), window=Window(1, horizon))
        collector = RolloutCollector(n_steps=n_steps, exploration=GaussianExploration(noise))
        return Method(policy, TemporalEnsemble(), self,
                      collection=CollectionRounds(n_rounds, collector, updates=PerNewStep(updates_per_step)))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if not isinstance(policy.config.head, CoarseToFineQ) or policy.window.action_offset:
            raise Unsupported("the values are those of a CoarseToFineQ head, from the current step on", where="CQNAS",
                              hint="use CoarseToFineQ(), and a window with action_offset=0")
        self.warn_of_returns(policy.config.head, data)
        return {"policy": Net(policy, self.optimizer, average=ConstantDecay(self.target_decay))}

    def warn_of_returns(self, head: CoarseToFineQ, data: Dataset) -> None:
        """Warns if returns of the data are beyond the range of returns that the network can represent."""
        columns = [e.steps["return"] for e in data.map(ReturnToGo(self.discount, into="return"))]
        returns = np.concatenate([np.zeros((1, 1)), *columns])
        if returns.min() < head.low or returns.max() > head.high:
            warnings.warn(f"the returns of the data are from {returns.min():.3g} to {returns.max():.3g}, and those "
                          f"below {head.low:g} or above {head.high:g} count as these. Give the range of returns "
                          "(--policy.head.low, --policy.head.high), or scale the rewards (--reward-scale).",
                          DataWarning, stacklevel=2)

    def sampler(self, policy: Policy, data: Dataset, weights: SamplingWeights | None) -> BatchSampler:
        own, expert = own_and_expert(data)
        if not len(expert):
            raise no_demonstrations(data)
        demonstrations = set(expert_episodes(data))
        good = [i for i, e in enumerate(data) if i in demonstrations or e.metadata.get("success")]
        windows = partial(policy.training_windows, extra=self.extra, next_obs=True, lookahead=1,
                          sampling_weights=weights)
        return SourcesSampler(windows(own), {"expert": windows(data.select(good))})

    @loss("policy")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted cross-entropy of recorded chunks against their target, and the cloning loss, (B,).

        The first is a mean over both sources. A chunk that leaves its episode repeats the last action.
        """
        both, policy = join_batches([batch, batch.others["expert"]]), nets.policy
        head = policy.config.head
        last = (both.mask.cumsum(1) - 1)[..., None].expand_as(both.action)
        chunk = policy.codec.encode(both.action.gather(1, last), both.obs)
        log_probs, chosen = head.evaluate(policy.net, policy.context(both.obs), chunk)
        values = of_chosen(log_probs, chosen)
        entropy = -(self.target_probs(nets, both) * values).sum(-1).mean((1, 2, 3)).unflatten(0, (2, -1)).mean(0)
        cloning = head.cloning_loss(log_probs[len(batch):], chosen[len(batch):])
        return self.value_weight * entropy + cloning.mean(1), {"value": head.mean(values)}

    @torch.no_grad()
    def target_probs(self, nets: Any, batch: Batch) -> Tensor:
        """Returns the distribution of the reward plus the discounted return of the next chunk, on the atoms.

        The policy chooses this chunk, and the target network evaluates it.

        Returns:
            Probabilities, (B, H, levels, A, atoms).
        """
        assert batch.next is not None
        policy, target, head = nets.policy, nets.target.policy, nets.policy.config.head
        noise = batch.action.new_zeros(len(batch), *policy.noise_shape)
        best = head.sample(policy.net, policy.context(batch.next), noise)
        after = of_chosen(*head.evaluate(target.net, target.context(batch.next), best)).exp()
        reward, bootstrap = td_terms(batch, self.discount, n_step=1)
        atoms = head.atoms(after)
        returns = (reward[:, None] + bootstrap[:, None] * atoms).clamp(head.low, head.high)
        share = (1 - (returns[..., None] - atoms).abs() / (atoms[1] - atoms[0])).clamp(min=0)  # linear interpolation
        return torch.einsum("b...i,bij->b...j", after, share)
