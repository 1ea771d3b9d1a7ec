from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ...core import AtLeast, Batch, Schema, Unsupported, UserError, part
from ...data.episode import Dataset
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.base import Head, TargetNetworkHead
from ...heads.likelihood.regression import Regression
from ...learn.algorithm import Algorithm, Net, loss, prepare
from ...learn.devices import Processes
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.ema import EMADecay, WarmupDecay
from ...policy import Policy, PolicyConfig
from ..registry import method


@method("Liu et al. 2022 (RBC), arXiv 2201.12594", rows=("268",),
        when="if an unknown part of the recorded actions is wrong; on clean data it only trains longer than `bc`.")
@part
class RobustBC(Algorithm):
    """Behavior cloning that survives wrong actions in the data: the median of many small blocks trains.

    A batch is split into blocks. In each block the mean loss of the policy is compared with the mean loss of a rival,
    which is a second policy with other weights. Both then learn from the block with the median difference. If fewer
    than half of the blocks have a wrong window, wrong actions cannot move the policy far, however large they are.

    A block of b windows is clean with probability ``(1 - e)**b`` if a fraction e of the windows is wrong, so blocks
    should have at most ``0.7 / e`` windows: 7 for 10 %, 3 for 20 %. Correct but rare behavior can look like an error,
    and counts less.

    Args:
        n_blocks: Number of blocks of a batch. One of them trains. More blocks survive a larger fraction of wrong
            actions.
        batch_size: Windows per batch. An update learns from one block, so that more updates are needed than in
            behavior cloning.
        optimizer: Optimizer of both policies.
        ema: Decay of the averaged weights, which act.

    References:
        Liu et al. (2022), Robust Imitation Learning from Corrupted Demonstrations, arXiv:2201.12594.
    """

    n_blocks: int = 32
    steps: Annotated[int, AtLeast(0)] = 8000
    batch_size: int = 128
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMADecay = field(default_factory=lambda: WarmupDecay(0.995))

    def __post_init__(self):
        if not 3 <= self.n_blocks <= self.batch_size:
            raise UserError(f"{self.n_blocks} blocks for {self.batch_size} windows", where="RobustBC",
                            hint="use at least 3 blocks, and a batch_size of at least as many windows")

    def method(self, features: Schema | None = None, horizon: int = 1) -> Method:
        """Returns the method of this learner.

        Args:
            horizon: Number of actions in a chunk. All of them are executed.
        """
        return Method(PolicyConfig(Regression(), window=Window(1, horizon)), RecedingHorizon(horizon), self)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        head = policy.config.head
        if type(head).fit is not Head.fit or isinstance(head, TargetNetworkHead):
            raise Unsupported(f"{type(head).__name__} is more than a network and its loss", where="RobustBC",
                              hint="use a head such as Regression, GMM, Flow or Diffusion")
        if (count := Processes.current().count) > 1:
            raise Unsupported(f"{count} processes would each take the median of their part of a batch",
                              where="RobustBC", hint="train in one process")
        return {"policy": Net(policy, self.optimizer, average=self.ema),
                "rival": Net(_other_weights(policy), self.optimizer, stored=False)}

    @prepare
    def chosen(self, nets: Any, batch: Batch, rng: Generator) -> Batch:
        """Selects the block of a batch that trains the policy, and returns it."""
        cuts = [len(batch) * k // self.n_blocks for k in range(self.n_blocks + 1)]
        blocks = [slice(low, high) for low, high in zip(cuts[:-1], cuts[1:], strict=True) if low < high]
        policy, rival = (net.loss(batch, rng.clone_state()).float().sum(1) / batch.mask.sum(1).clamp(min=1)
                         for net in (nets.policy, nets.rival))  # with the same noise
        differences = torch.stack([(policy - rival)[rows].mean() for rows in blocks])
        return batch.select_rows(blocks[self.choose_block(differences)])

    def choose_block(self, differences: Tensor) -> int:
        """Returns which block of the batch trains, given the differences of mean losses to the rival, (n_blocks,)."""
        return median_block(differences)

    @loss("policy")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return nets.policy.loss(batch, rng)

    @loss("rival")
    def rival_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return nets.rival.loss(batch, rng)


def median_block(differences: Tensor) -> int:
    """Returns the index of the median, (n_blocks,), or of the lower of the two in the middle."""
    return int(differences.argsort(stable=True)[(len(differences) - 1) // 2])


def _other_weights(policy: Policy) -> Policy:
    """Builds a policy with the same statistics and the initial weights of the next seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() + 1)
        rival = Policy(policy.config, policy.features)
    rival.codec.load_state_dict(policy.codec.state_dict())
    return rival
