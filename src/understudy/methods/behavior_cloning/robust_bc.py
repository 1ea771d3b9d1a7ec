from __future__ import annotations

from dataclasses import field
from typing import Annotated

import torch
from torch import Tensor

from ...core import AtLeast, Batch, Unsupported, UserError, part
from ...data.episode import Dataset
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.base import Head, TargetNetworkHead
from ...heads.likelihood.regression import Regression
from ...learn.fit import LearnerConfig
from ...learn.gradient_learner import GradientLearner
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.ema import EMADecay, WarmupDecay
from ...policy import Policy, PolicyConfig
from ..registry import method


@part
class MedianOfMeans(LearnerConfig):
    """Train on the block of each batch that is the median of a tournament with a rival policy.

    A batch is split into blocks. In each block the mean loss of the policy is compared with that of a rival, a second
    policy with other weights. Both then learn from the block with the median difference. If fewer than half of the
    blocks have a wrong window, wrong actions cannot move the policy far, however large they are.

    A block of b windows is clean with probability ``(1 - e)**b`` if a fraction e of the windows is wrong, so blocks
    should have at most ``0.7 / e`` windows: 7 for 10 %, 3 for 20 %. Correct but rare behavior can look like an error,
    and counts less.

    Args:
        n_blocks: Number of blocks of a batch. One of them trains.
        batch_size: Windows per batch. An update learns from one block, so that more updates are needed than in
            behavior cloning.
        optimizer: Optimizer of both policies.
        ema: Decay of the averaged weights, which act.

    References:
        Liu et al. (2022), Robust Imitation Learning from Corrupted Demonstrations, arXiv:2201.12594.
    """

    n_blocks: int = 32
    steps: Annotated[int, AtLeast(0)] = 5000
    batch_size: int = 128
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMADecay = field(default_factory=lambda: WarmupDecay(0.995))

    def __post_init__(self):
        if not 3 <= self.n_blocks <= self.batch_size:
            raise UserError(f"{self.n_blocks} blocks for {self.batch_size} windows", where="MedianOfMeans",
                            hint="use at least 3 blocks, and a batch_size of at least as many windows")

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> MedianOfMeansLearner:
        return MedianOfMeansLearner(self, policy, seed, steps)


class MedianOfMeansLearner(GradientLearner):
    """Learner of `MedianOfMeans`."""

    config: MedianOfMeans

    def __init__(self, config: MedianOfMeans, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        head = policy.config.head
        if type(head).fit is not Head.fit or isinstance(head, TargetNetworkHead):
            raise Unsupported(f"{type(head).__name__} is more than a network and its loss", where="MedianOfMeans",
                              hint="use a head such as Regression, GMM, Flow or Diffusion")
        if self.processes.count > 1:
            raise Unsupported(f"{self.processes.count} processes would each take the median of their part of a batch",
                              where="MedianOfMeans", hint="train in one process")
        self.register("policy", policy, config.optimizer)
        self.rival = self.register("rival", _other_weights(policy, seed), config.optimizer)
        self.average_weights("policy", config.ema)

    def update(self, batch: Batch) -> dict[str, float]:
        batch = batch.to(self.device)
        cuts = [len(batch) * k // self.config.n_blocks for k in range(self.config.n_blocks + 1)]
        blocks = [slice(low, high) for low, high in zip(cuts[:-1], cuts[1:], strict=True) if low < high]
        with self.evaluation():
            difference = self.loss_per_window(self.policy, batch) - self.loss_per_window(self.rival, batch)
            chosen = blocks[self.choose_block(torch.stack([difference[rows].mean() for rows in blocks]))]
        self.minimize("policy", self.policy.loss, batch.select_rows(chosen))
        self.minimize("rival", self.rival.loss, batch.select_rows(chosen))
        return self.end_update()

    def choose_block(self, differences: Tensor) -> int:
        """Returns the block that trains, given the mean loss of the policy minus that of its rival, (n_blocks,)."""
        return median_block(differences)

    @property
    def modules(self):
        return {"policy": self.trained_policy}  # the rival does not act

    def loss_per_window(self, policy: Policy, batch: Batch) -> Tensor:
        """Returns the mean loss of each window, (B,), with the same noise for every policy."""
        loss = policy.loss(batch, self.generator()).float()
        return loss.sum(1) / batch.mask.sum(1).clamp(min=1)


def median_block(differences: Tensor) -> int:
    """The index of the median, (n_blocks,). Of an even number of blocks, it is the lower of the two in the middle."""
    return int(differences.argsort(stable=True)[(len(differences) - 1) // 2])


def _other_weights(policy: Policy, seed: int) -> Policy:
    """A policy with the same statistics and other weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        rival = Policy(policy.config, policy.features)
    rival.codec.load_state_dict(policy.codec.state_dict())
    return rival


@method("Liu et al. 2022 (RBC), arXiv 2201.12594", rows=("268",),
        when="if an unknown part of the recorded actions is wrong; on clean data it only trains longer than `bc`.")
def robust_bc(horizon: int = 1, n_blocks: int = 32) -> Method:
    """Behavior cloning that survives wrong actions in the data: the median of many small blocks trains.

    Args:
        horizon: Number of actions in a chunk. All of them are executed.
        n_blocks: Number of blocks of a batch. More blocks survive a larger fraction of wrong actions.
    """
    learner = MedianOfMeans(n_blocks, steps=8000)
    return Method(PolicyConfig(Regression(), window=Window(1, horizon)), RecedingHorizon(horizon), learner)
