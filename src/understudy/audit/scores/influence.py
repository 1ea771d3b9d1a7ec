"""What a demonstration does to the policy that learns from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator
from torch.func import functional_call

from ...core import UserError
from ...data.episode import Dataset
from ...policy import Policy
from ..base import Score
from .network_scores import NetworkEnsemble
from .step_table import StepTable


@dataclass(frozen=True)
class Datamodel(Score):
    """How much higher `worth` is with an episode than without: the slope of a ridge regression of worth(subset) on who
    is in the subset, over `fits` random halves of the data (Ilyas et al. 2022, Datamodels). Nothing is assumed of what
    worth does; let it train and judge a policy on starts that nothing else is judged on, and it is the influence on
    closed-loop success. Its error is about that of one worth times sqrt(4 / fits): take as many fits as episodes, at
    least."""

    value: Callable[[Dataset], float]
    n_subsets: int = 64
    subset_fraction: float = 0.5
    ridge: float = 1.0
    seed: int = 0

    def __call__(self, data):
        rng, n = np.random.default_rng(self.seed), len(data)
        size = min(max(round(self.subset_fraction * n), 1), n)
        chosen = np.zeros((self.n_subsets, n))
        for row in chosen:
            row[rng.choice(n, size, replace=False)] = 1
        worth = np.array([self.value(data.select(np.flatnonzero(row))) for row in chosen])
        x, y = chosen - chosen.mean(0), worth - worth.mean()
        return np.linalg.solve(
            x.T @ x + self.ridge * self.subset_fraction * (1 - self.subset_fraction) * np.eye(n), x.T @ y
        )


@dataclass(frozen=True)
class Influence(Score):
    """How much a small step of training on this episode would make `policy` more likely to do as in those of its own
    `rollouts` that did well, and less as in the others: sum over rollouts of (outcome - mean outcome) times the product
    of the two losses' gradients. The outcome is success where it is defined, else the return. One look at a policy that
    is trained, where Datamodel trains many (TracIn, Pruthi et al. 2020; of robots' success: CUPID, Agia et al. 2025,
    which weighs by the inverse of the curvature too)."""

    policy: Policy
    rollouts: Dataset
    n_windows: int = 256  # of each episode, at most
    seed: int = 0

    def __call__(self, data):
        outcome = np.array([float(e.metadata["success"]) if "success" in e.metadata else
                            float(np.sum(e.steps["next.reward"])) for e in self.rollouts])
        if not np.ptp(outcome) > 0:
            raise UserError("expected rollouts of which some did better than others, found all alike",
                            where="Influence", hint="roll out more, or on harder starts")
        weight = (outcome - outcome.mean()) / outcome.std()
        policy, was = self.policy, self.policy.training
        policy.eval()
        try:
            wanted = sum(w * self._gradient(self.rollouts, i) for i, w in enumerate(weight)) / len(weight)
            return np.array([float(self._gradient(data, i) @ wanted) for i in range(len(data))])
        finally:
            policy.train(was)

    def _gradient(self, data, number):
        policy = self.policy
        windows = policy.windows(data.select([number]))
        rng = np.random.default_rng(self.seed)
        at = np.arange(len(windows))
        if len(at) > self.n_windows:
            at = rng.choice(at, self.n_windows, replace=False)
        batch = windows.gather(at, rng).to(policy.device)
        loss = policy.loss(batch, Generator(policy.device).manual_seed(self.seed)).sum() / batch.mask.sum()
        weights = [p for p in policy.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, weights,
                                                                                          strict=True)]).cpu().double()


@dataclass(frozen=True)
class ValidationWeights(Score):
    """The log weight that makes training on the weighted data do best on `test`, episodes known to be good: each
    update of a small regression is done on a batch weighted by a softmax, the loss on `test` after it is differentiated
    through the update, and the weights follow (FLYT, Shechter and Carmon 2025, Filter Like You Test, in the small: a
    weight an episode in place of a network that scores).

    mix: with other scores, the log weight is a learnt sum of them (M-FLYT), each in ranks from -1 to 1.
    """

    test: Dataset
    base_scores: tuple[Score, ...] = ()
    n_updates: int = 600  # updates
    batch_size: int = 256
    lr: float = 0.5  # of the update that is differentiated
    seed: int = 0
    inputs: tuple[str, ...] = ()

    def __call__(self, data):
        table = StepTable.from_data(data, self.inputs)
        test = StepTable.from_data(self.test, like=table)
        x, y, tx, ty = (torch.as_tensor(v) for v in (table.state, table.action, test.state[test.is_complete],
                                                     test.action[test.is_complete]))
        episode, whole = torch.as_tensor(table.episode), torch.as_tensor(np.flatnonzero(table.is_complete))
        given = torch.as_tensor(np.stack([_scaled_ranks(s(data)) for s in self.base_scores], 1), dtype=torch.float32) \
            if self.base_scores else torch.eye(len(data))
        logits = torch.zeros(given.shape[1], requires_grad=True)
        net = NetworkEnsemble(x.shape[1], y.shape[1], seed=self.seed)
        theta = {k: v.detach().clone() for k, v in net.named_parameters()}
        rng, optim = Generator().manual_seed(self.seed), torch.optim.Adam([logits], 0.05)

        def losses(weights, x, y):
            return (functional_call(net, weights, (x,))[0] - y).square().mean(1)

        for _ in range(self.n_updates):
            at = whole[torch.randint(len(whole), (self.batch_size,), generator=rng)]
            theta = {k: v.requires_grad_() for k, v in theta.items()}
            share = torch.softmax((given @ logits)[episode[at]], 0)
            slope = torch.autograd.grad((share * losses(theta, x[at], y[at])).sum(), list(theta.values()),
                                        create_graph=True)
            after = {k: v - self.lr * g for (k, v), g in zip(theta.items(), slope, strict=True)}
            some = torch.randint(len(tx), (self.batch_size,), generator=rng)
            outer = losses(after, tx[some], ty[some]).mean()
            optim.zero_grad()
            (logits.grad,) = torch.autograd.grad(outer, [logits])
            optim.step()
            theta = {k: v.detach() for k, v in after.items()}
        return (given @ logits).detach().double().numpy()


def _scaled_ranks(values: np.ndarray) -> np.ndarray:
    """From -1 to 1; what is no number is in the middle."""
    good = np.isfinite(values)
    out = np.zeros(len(values))
    out[good] = np.argsort(np.argsort(values[good])) / max(good.sum() - 1, 1) * 2 - 1
    return out


def soft_capped_counts(logits: np.ndarray, count: int, penalty: float = 0.15, seed: int = 0) -> np.ndarray:
    """(E,) how often each is taken in `count` draws by softmax(logits), where every time that one is taken its logit
    falls by `penalty`: the good ones more often, but not without end (Soft Cap Sampling, Shechter and Carmon 2025)."""
    rng, logits = np.random.default_rng(seed), np.array(logits, float)
    taken = np.zeros(len(logits), np.int64)
    for _ in range(count):
        odds = np.exp(logits - penalty * taken - (logits - penalty * taken).max())
        taken[rng.choice(len(logits), p=odds / odds.sum())] += 1
    return taken
