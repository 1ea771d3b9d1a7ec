"""Behavior cloning of anything: the weighted mean of the head's loss, plus penalties."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from ..checkpoint import load_tensors
from ..core import Batch, UserError, keys
from ..nets.ema import EMA, EMADecay, WarmupDecay
from ..policy import Policy
from .devices import Processes
from .fit import Learner, LearnerConfig
from .optimizer import OptimizerConfig
from .sample_weights import SampleWeights, UniformWeights

AuxiliaryLossFunction = Callable[[Policy, Batch, Generator], Tensor]  # -> (B,), added to the loss


class AuxiliaryLoss(ABC):
    """A frozen dataclass: something more that the weights should heed (an auxiliary loss, a regulariser)."""

    @abstractmethod
    def build(self, policy: Policy) -> AuxiliaryLossFunction:
        """If this is a Module, its parameters train too."""


@dataclass(frozen=True)
class BehaviorCloning(LearnerConfig):
    """`steps` updates on batches of `batch` windows. ema: the average of the weights, which is what acts;
    Constant(0.0) acts with the last weights."""

    steps: int = 2000
    batch_size: int = 128
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMADecay = field(default_factory=lambda: WarmupDecay(0.995))
    sample_weights: SampleWeights = field(default_factory=UniformWeights)
    auxiliary_losses: tuple[AuxiliaryLoss, ...] = ()

    @property
    def extra(self):
        return self.sample_weights.columns

    def build(self, policy: Policy, seed: int = 0, steps: int | None = None) -> BehaviorCloningLearner:
        return BehaviorCloningLearner(policy, self, seed, self.steps if steps is None else steps)


class BehaviorCloningLearner(Learner):
    """Minimises sum(w * loss) / sum(w) over steps that are not padding, plus the mean of each penalty.

    The batch is worked through in parts (`OptimizerConfig.accumulate`), and the noise and dropout of part k of update
    n are a
    function of (seed, n, k). Processes take the parts in turn, so the result does not depend on how many there are.
    """

    def __init__(self, policy: Policy, config: BehaviorCloning, seed: int, steps: int):
        self.policy, self.config, self.seed, self.n_updates = policy.train(), config, seed, 0
        self.auxiliary_losses = tuple(p.build(policy) for p in config.auxiliary_losses)
        self.networks = nn.ModuleList([policy, *(p for p in self.auxiliary_losses if isinstance(p, nn.Module))])
        self.networks.to(policy.device)
        self.average = EMA(policy, config.ema)
        self.optimizer = config.optimizer.build(self.networks, steps, policy.device)
        self.processes = Processes.current()
        self.n_parts = -(-config.optimizer.accumulation_steps // self.processes.count)  # of this process
        least = self.n_parts * self.processes.count
        if config.batch_size < least:
            raise UserError(f"expected a batch of {least} windows or more, one for each part of each process, found "
                            f"{config.batch_size}", where="BehaviorCloning",
                            hint="take a larger batch, or a smaller optim.accumulate")

    @property
    def trained_policy(self) -> Policy:
        return self.average.module

    def update(self, batch: Batch) -> dict[str, float]:
        """`batch` is this process's share (all of it, where there is one process)."""
        device, P = self.policy.device, self.processes
        batch = batch.to(device)
        weight = self._sample_weight(batch)
        sums = torch.stack([weight.sum(), weight.new_tensor(len(batch))])
        P.all_reduce([sums])
        whole, count = sums[0].clamp(min=1e-8), sums[1]
        total_rows = self.config.batch_size if P.count > 1 else len(batch)
        numbers = range(P.rank * self.n_parts, (P.rank + 1) * self.n_parts + 1)
        cuts = [total_rows * k // (self.n_parts * P.count) for k in numbers]
        total = torch.zeros((), device=device)
        for number, low, high in zip(numbers[:-1], cuts[:-1], cuts[1:], strict=True):
            part = slice(low - cuts[0], high - cuts[0])
            if low == high:
                continue
            loss = self._part_loss(batch.select_rows(part), weight[part], whole, count, number)
            self.optimizer.backward(loss)
            total += loss.detach()
        P.all_reduce([total, *(p.grad for p in self.optimizer.parameters if p.grad is not None)])
        norm = self.optimizer.clip_gradients()
        seen = dict(zip(("loss", "gradient"), torch.stack([total, norm.to(total.dtype)]).tolist(), strict=True))
        self._check_finite(seen)
        rate = self.optimizer.step(self.n_updates)
        self.average.update(self.policy)
        self.n_updates += 1
        return {**seen, "rate": rate}

    def _sample_weight(self, batch) -> Tensor:
        """(B, H)"""
        with torch.no_grad():
            weight = self.config.sample_weights(batch, self.policy)
            weight = weight.unsqueeze(1) if weight.ndim == 1 else weight
            return weight * batch.mask

    def _part_loss(self, part, weight, whole, count, number) -> Tensor:
        """This part's share of the whole batch's loss."""
        device = self.policy.device
        noise, dropout = keys(int(keys(self.seed, [self.n_updates])[0]), [2 * number, 2 * number + 1]).tolist()
        rng = Generator(device).manual_seed(noise)
        with torch.random.fork_rng([device] if device.type == "cuda" else []), self.optimizer.autocast():
            torch.manual_seed(dropout)
            loss = (weight * self.policy.loss(part, rng).float()).sum() / whole
            for penalty in self.auxiliary_losses:
                loss = loss + penalty(self.policy, part, rng).float().sum() / count
        return loss

    def _check_finite(self, seen):
        scaled = self.optimizer.scaler.is_enabled()  # then a gradient too large is skipped and the scale lowered
        for name, value in seen.items():
            if not abs(value) < float("inf") and not (scaled and name == "gradient"):
                self.optimizer.zero_grad()
                raise UserError(f"expected a finite {name}, found {value}", where=f"update {self.n_updates + 1}",
                                hint="lower the rate (--learner.optimizer.lr) or clip harder, and look for odd values "
                                   "in the data (understudy inspect)")

    # Buffers are the policy's: the average only copies them.

    def state(self):
        tensors, facts = self.optimizer.state()
        named = {"modules": self.networks.state_dict(), "average": dict(self.trained_policy.named_parameters()),
                 "optim": tensors}
        return ({f"{group}.{k}": v.detach() for group, tree in named.items() for k, v in tree.items()},
                {"updates": self.n_updates, "average": self.average.updates, "scaler": facts})

    def restore(self, tensors, facts):
        def group(name):
            return {k[len(name) + 1:]: v for k, v in tensors.items() if k.startswith(name + ".")}
        load_tensors(self.networks, group("modules"))
        load_tensors(self.trained_policy, {**self.policy.state_dict(), **group("average")})
        self.optimizer.restore(group("optim"), facts["scaler"])
        self.n_updates, self.average.updates = facts["updates"], facts["average"]
