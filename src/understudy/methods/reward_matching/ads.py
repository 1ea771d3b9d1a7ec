from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import permutations, product
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...checkpoint import FromStage
from ...core import Above, AtLeast, AtMost, Batch, Below, Unsupported, part
from ...data.episode import Dataset
from ...data.mixture import ROUND
from ...improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from ...learn.critics.td3 import TD3
from ...learn.method import Method
from ...learn.rewards.reward_models import RewardedEngine, RewardModelConfig
from ...learn.rewards.transport_reward import EpisodeReward, OptimalTransportReward
from ...learn.targets import td_terms
from ...policy import Policy
from ..needs import ENDS, NUMBERS
from ..registry import method
from .pwil import pwil

SCORED = "scored"  # metadata: True for an episode without exploration, which the progress is measured by


@part
class ScoredRolloutCollector(RolloutCollector):
    """Collector that also collects episodes without exploration, which tell how far the policy follows demonstrations.

    Args:
        n_scored: Number of these episodes in each round.
    """

    n_scored: Annotated[int, AtLeast(1)] = 2

    def collect(self, actor, number, training):
        explored = super().collect(actor, number, training)
        scored = RolloutCollector(self.n_scored).collect(actor, number, training)
        marked = [replace(e, metadata={**e.metadata, SCORED: True}) for e in scored]
        return Dataset([*explored, *marked], explored.metadata)


class ProgressDiscount(nn.Module):
    """The discount of `ADS`, and the number of steps k that it depends on.

    Args:
        demonstrations: The steps of each, (T, D).
    """

    k: Tensor
    n_rounds: Tensor

    def __init__(self, config: ADS, demonstrations: Sequence[Tensor]):
        super().__init__()
        self.config, self.demonstrations, self.length = config, demonstrations, max(map(len, demonstrations))
        self.register_buffer("k", torch.tensor(max(int(config.first * self.length), 1)))
        self.register_buffer("n_rounds", torch.tensor(0))  # that have been scored

    def forward(self) -> float:
        return min(self.config.alpha**(1 / int(self.k)), self.config.discount)

    def update(self, episodes: Sequence[Tensor]) -> None:
        """Increases k by how far the episodes of a round, whose steps are (T, D) each, follow demonstrations."""
        own = list(product(episodes, self.demonstrations))
        pairs = list(permutations(self.demonstrations, 2)) or [(d, d) for d in self.demonstrations]
        for _ in range(self.config.max_growth):
            k = int(self.k)
            reference = int(self.config.threshold * np.percentile(count_followed_steps(pairs, k), 50))
            if k >= self.length or np.percentile(count_followed_steps(own, k), 90) < reference:
                break
            self.k += 1


def count_followed_steps(pairs: Iterable[tuple[Tensor, Tensor]], k: int) -> list[int]:
    """Counts how many of the first k steps of one episode match steps of another episode in the same order."""
    return [longest_increasing_subsequence(torch.cdist(a[:k], b[:k]).argmin(1).tolist()) for a, b in pairs]


def longest_increasing_subsequence(numbers: Iterable[int]) -> int:
    """Returns the length of the longest strictly increasing subsequence of some numbers."""
    ends: list[int] = []  # the smallest last number of such subsequences of length 1, 2, ...
    for number in numbers:
        position = bisect_left(ends, number)
        ends[position:position + 1] = [number]
    return len(ends)


@method("Liu et al. 2024 (ADS), arXiv 2310.07433, without its encoder of pictures",
        rows=("012",), needs=(NUMBERS, ENDS, "an environment"),
        when="if demonstrations are few, there is an environment, and later steps need earlier ones.")
@part
class ADS(TD3):
    """TD3 with rewards of optimal transport, and a discount that grows as far as the policy follows demonstrations.

    The discount is ``alpha ** (1 / k)``, but at most `discount`, if the policy follows the demonstrations for k steps.
    It holds for all stored steps.

    After each round of collection, k grows by 1 as long as the first k steps of the round's episodes score at least
    ``threshold`` times as much as the first k steps of demonstrations, rounded down. k never falls. If the collector
    marks episodes without exploration (`ScoredRolloutCollector`), only these count. Otherwise all episodes of the round
    count.

    To score an episode against a demonstration, each step of the episode is replaced by the number of the nearest step
    of the demonstration. The score is the length of the longest increasing subsequence of these numbers. A round scores
    the 90th percentile over all pairs of an episode and a demonstration. Demonstrations score the median over pairs of
    demonstrations. A single demonstration is compared with itself.

    Args:
        alpha: How much the reward after k steps counts.
        threshold: 0 lets k grow whatever the policy does.
        first: The first k, as a fraction of the steps of the longest demonstration.
        max_growth: Most by which k grows after a round.

    References:
        Liu et al. (2024), Imitation Learning from Observation with Automatic Discount Scheduling, arXiv:2310.07433.
    """

    n_step: Annotated[int, AtLeast(0)] = 3
    reward: RewardModelConfig | FromStage | None = OptimalTransportReward()
    alpha: Annotated[float, Above(0), Below(1)] = 0.2
    threshold: Annotated[float, AtLeast(0), AtMost(1)] = 0.9
    first: Annotated[float, Above(0), AtMost(1)] = 0.2
    max_growth: Annotated[int, AtLeast(1)] = 5

    def method(self, n_rounds: int = 50, n_episodes: int = 4, noise: float = 0.1) -> Method:
        """Builds a method with rounds of practice.

        Args:
            n_episodes: Number of episodes in each round, beside two without noise that measure the progress.
        """
        collector = ScoredRolloutCollector(n_episodes, GaussianExploration(noise))
        return replace(pwil(), learner=self, collection=CollectionRounds(n_rounds, collector))

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> ADSEngine:
        return ADSEngine(self, policy, seed, steps, data)

    def bootstrapped(self, nets: Any, batch: Batch, value: Tensor) -> Tensor:
        reward, bootstrap = td_terms(batch, nets.progress(), self.n_step)
        return reward + bootstrap * value


class ADSEngine(RewardedEngine):
    """Learner of `ADS`, which measures the progress after each collection of episodes."""

    config: ADS

    def register_networks(self, data: Dataset) -> None:
        super().register_networks(data)
        if not isinstance(self.reward, EpisodeReward):
            raise Unsupported("progress is measured by the distances of a reward of whole episodes",
                              where="ADS.reward", hint="use OptimalTransportReward()")
        demonstrations = self.reward.points.split(self.reward.lengths.tolist())
        self.progress = self.register("progress", ProgressDiscount(self.config, demonstrations))

    def batch_sampler(self, data, sampling_weights=None):
        """Returns the sampler of batches. Scores the last round, once."""
        assert isinstance(self.reward, EpisodeReward)
        last = max((episode.metadata.get(ROUND, -1) for episode in data), default=-1)
        if last >= self.progress.n_rounds:
            episodes = [episode for episode in data if episode.metadata.get(ROUND) == last]
            scored = [episode for episode in episodes if episode.metadata.get(SCORED)] or episodes
            self.progress.update([self.reward.read(episode) for episode in scored])
            self.progress.n_rounds.fill_(last + 1)
        return super().batch_sampler(data, sampling_weights)

    def update(self, batch):
        return {**super().update(batch), "discount": self.progress(), "progress": float(self.progress.k)}
