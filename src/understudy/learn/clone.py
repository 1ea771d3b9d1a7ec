"""Behaviour cloning of anything: the weighted mean of the head's loss, plus penalties."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from ..core import Batch, UserError, keys
from ..nets.ema import EMA, Decay, Warmup
from ..policy import Policy, fill
from .devices import Processes
from .fit import Learner, Learning
from .optim import Optim
from .weights import Even, Weights

Pull = Callable[[Policy, Batch, Generator], Tensor]  # -> (B,), added to the loss


class Penalty(ABC):
    """A frozen dataclass: something more that the weights should heed (an auxiliary loss, a regulariser)."""

    @abstractmethod
    def build(self, policy: Policy) -> Pull:
        """If this is a Module, its parameters train too."""


@dataclass(frozen=True)
class Cloning(Learning):
    """`steps` updates on batches of `batch` windows. ema: the average of the weights, which is what acts;
    Constant(0.0) acts with the last weights."""

    steps: int = 2000
    batch: int = 128
    optim: Optim = field(default_factory=Optim)
    ema: Decay = field(default_factory=lambda: Warmup(0.995))
    weights: Weights = field(default_factory=Even)
    penalties: tuple[Penalty, ...] = ()

    @property
    def extra(self):
        return self.weights.columns

    def build(self, policy: Policy, seed: int = 0, steps: int | None = None) -> Clone:
        return Clone(policy, self, seed, self.steps if steps is None else steps)


class Clone(Learner):
    """Minimises sum(w * loss) / sum(w) over steps that are not padding, plus the mean of each penalty.

    The batch is worked through in parts (`Optim.accumulate`), and the noise and dropout of part k of update n are a
    function of (seed, n, k). Processes take the parts in turn, so the result does not depend on how many there are.
    """

    def __init__(self, policy: Policy, learning: Cloning, seed: int, steps: int):
        self.policy, self.learning, self.seed, self.updates = policy.train(), learning, seed, 0
        self.penalties = tuple(p.build(policy) for p in learning.penalties)
        self.modules = nn.ModuleList([policy, *(p for p in self.penalties if isinstance(p, nn.Module))])
        self.modules.to(policy.device)
        self.average = EMA(policy, learning.ema)
        self.descent = learning.optim.build(self.modules, steps, policy.device)
        self.processes = Processes.now()
        self.parts = -(-learning.optim.accumulate // self.processes.count)  # of this process
        least = self.parts * self.processes.count
        if learning.batch < least:
            raise UserError(f"expected a batch of {least} windows or more, one for each part of each process, found "
                            f"{learning.batch}", where="Cloning",
                            do="take a larger batch, or a smaller optim.accumulate")

    @property
    def trained(self) -> Policy:
        return self.average.module

    def update(self, batch: Batch) -> dict[str, float]:
        """`batch` is this process's share (all of it, where there is one process)."""
        device, P = self.policy.device, self.processes
        batch = batch.to(device)
        weight = self._weight(batch)
        sums = torch.stack([weight.sum(), weight.new_tensor(len(batch))])
        P.sum([sums])
        whole, count = sums[0].clamp(min=1e-8), sums[1]
        total_rows = self.learning.batch if P.count > 1 else len(batch)
        numbers = range(P.rank * self.parts, (P.rank + 1) * self.parts + 1)
        cuts = [total_rows * k // (self.parts * P.count) for k in numbers]
        total = torch.zeros((), device=device)
        for number, low, high in zip(numbers[:-1], cuts[:-1], cuts[1:], strict=True):
            part = slice(low - cuts[0], high - cuts[0])
            if low == high:
                continue
            loss = self._loss(batch.rows(part), weight[part], whole, count, number)
            self.descent.backward(loss)
            total += loss.detach()
        P.sum([total, *(p.grad for p in self.descent.parameters if p.grad is not None)])
        norm = self.descent.gradient()
        seen = dict(zip(("loss", "gradient"), torch.stack([total, norm.to(total.dtype)]).tolist(), strict=True))
        self._check(seen)
        rate = self.descent.step(self.updates)
        self.average.update(self.policy)
        self.updates += 1
        return {**seen, "rate": rate}

    def _weight(self, batch) -> Tensor:
        """(B, H)"""
        with torch.no_grad():
            weight = self.learning.weights(batch, self.policy)
            weight = weight.unsqueeze(1) if weight.ndim == 1 else weight
            return weight * batch.mask

    def _loss(self, part, weight, whole, count, number) -> Tensor:
        """This part's share of the whole batch's loss."""
        device = self.policy.device
        noise, dropout = keys(int(keys(self.seed, [self.updates])[0]), [2 * number, 2 * number + 1]).tolist()
        rng = Generator(device).manual_seed(noise)
        with torch.random.fork_rng([device] if device.type == "cuda" else []), self.descent.arithmetic():
            torch.manual_seed(dropout)
            loss = (weight * self.policy.loss(part, rng).float()).sum() / whole
            for penalty in self.penalties:
                loss = loss + penalty(self.policy, part, rng).float().sum() / count
        return loss

    def _check(self, seen):
        scaled = self.descent.scaler.is_enabled()  # then a gradient too large is skipped and the scale lowered
        for name, value in seen.items():
            if not abs(value) < float("inf") and not (scaled and name == "gradient"):
                self.descent.forget()
                raise UserError(f"expected a finite {name}, found {value}", where=f"update {self.updates + 1}",
                                do="lower the rate (--learn.optim.rate) or clip harder, and look for odd values "
                                   "in the data (understudy inspect)")

    # Buffers are the policy's: the average only copies them.

    def state(self):
        tensors, facts = self.descent.state()
        named = {"modules": self.modules.state_dict(), "average": dict(self.trained.named_parameters()),
                 "optim": tensors}
        return ({f"{group}.{k}": v.detach() for group, tree in named.items() for k, v in tree.items()},
                {"updates": self.updates, "average": self.average.count, "scaler": facts})

    def restore(self, tensors, facts):
        def group(name):
            return {k[len(name) + 1:]: v for k, v in tensors.items() if k.startswith(name + ".")}
        fill(self.modules, group("modules"))
        fill(self.trained, {**self.policy.state_dict(), **group("average")})
        self.descent.restore(group("optim"), facts["scaler"])
        self.updates, self.average.count = facts["updates"], facts["average"]
