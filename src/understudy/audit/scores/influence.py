"""Scores of the effect of a demonstration on a policy that learns from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torch.func import functional_call

from ...core import UserError
from ...data.episode import Dataset
from ...policy import Policy
from ..base import Score, StepScore
from .network_scores import NetworkEnsemble
from .step_table import StepTable


@dataclass(frozen=True)
class Datamodel(Score):
    """Score of how much an episode adds to a measure of a subset of the data, such as success (datamodels).

    It is the slope of a ridge regression of value(subset) on the membership in the subset, over random subsets of the
    data. There is no assumption about `value`. If it trains a policy and evaluates it on starts that nothing else uses,
    the score is the influence on success. The error of the score is about the error of one value times sqrt(4 /
    n_subsets), so use at least as many subsets as there are episodes.

    Args:
        value: The measure of a subset. Higher is better.
        ridge: Weight of the squared slopes in the regression.

    References:
        Ilyas et al. (2022), Datamodels: Predicting Predictions from Training Data.
    """

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
        penalty = self.ridge * self.subset_fraction * (1 - self.subset_fraction) * np.eye(n)
        return np.linalg.solve(x.T @ x + penalty, x.T @ y)


@dataclass(frozen=True)
class Influence(Score):
    """Score of how much a small training step on this episode makes a policy act more like in its successful rollouts.

    It is the sum over rollouts of (outcome - mean outcome) times the product of the gradients of both losses. The
    outcome is success if it is defined, otherwise the return. It needs one trained policy, whereas `Datamodel` trains
    many.

    Args:
        rollouts: Episodes in which this policy acted.
        n_windows: Largest number of windows per episode.

    References:
        Pruthi et al. (2020), Estimating Training Data Influence by Tracing Gradient Descent (TracIn). Agia et al.
        (2025), CUPID, which also uses the inverse of the curvature.
    """

    policy: Policy
    rollouts: Dataset
    n_windows: int = 256
    seed: int = 0

    def __call__(self, data):
        outcome = np.array([float(e.metadata["success"]) if "success" in e.metadata else
                            float(np.sum(e.steps["next.reward"])) for e in self.rollouts])
        if not np.ptp(outcome) > 0:
            raise UserError("all rollouts have the same outcome",
                            where="Influence", hint="run more rollouts, or use harder starts")
        weight = (outcome - outcome.mean()) / outcome.std()
        policy, was = self.policy, self.policy.training
        policy.eval()
        try:
            weighted_gradient = sum(w * self._gradient(self.rollouts, i) for i, w in enumerate(weight)) / len(weight)
            return np.array([float(self._gradient(data, i) @ weighted_gradient) for i in range(len(data))])
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
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, weights, strict=True)]
        return torch.cat([g.flatten() for g in filled]).cpu().double()


@dataclass(frozen=True)
class ValidationWeights(Score):
    """Score by learned weights (logs): training on data with these weights is best on good `test` episodes.

    Each update of a small regression uses a batch weighted by a softmax. The loss on `test` after it is differentiated
    through the update, and the weights follow the gradient. This is a small version of FLYT, with one weight per
    episode instead of a network. With `base_scores`, the log weight is a learned sum of these scores (M-FLYT), each as
    ranks from -1 to 1.

    Args:
        test: Episodes that are known to be good.
        base_scores: The scores to mix, by their ranks. Empty for one weight per episode.
        lr: Learning rate of the update of the regression that is differentiated.
        inputs: Columns of the state. By default all numeric "observation." columns.

    References:
        Shechter and Carmon (2025), Filter Like You Test: Data-Driven Data Filtering for CLIP Pretraining.
    """

    test: Dataset
    base_scores: tuple[Score, ...] = ()
    n_updates: int = 600
    batch_size: int = 256
    lr: float = 0.5
    seed: int = 0
    inputs: tuple[str, ...] = ()

    def __call__(self, data):
        table = StepTable.from_data(data, self.inputs)
        episode, features = torch.as_tensor(table.episode), torch.eye(len(data))
        if self.base_scores:
            ranks = [_scaled_ranks(score(data)) for score in self.base_scores]
            features = torch.as_tensor(np.stack(ranks, 1), dtype=torch.float32)
        logits = torch.zeros(features.shape[1], requires_grad=True)
        _learn_weights(self, table, StepTable.from_data(self.test, like=table), [logits], 0.05,
                       lambda at: (features @ logits)[episode[at]])
        return (features @ logits).detach().double().numpy()


@dataclass(frozen=True)
class FilterLikeYouTest(StepScore):
    """Score by log weights of steps from a network that learned to weigh them for a downstream task (FLYT).

    The network reads the state and the action of a step. A small regression, the reference model, makes one update
    after another on batches of the pool, weighted by a softmax of the network's answers. After each update, the
    gradient of the loss on `downstream` says which steps should have weighed more, and the network follows it. Unlike
    `ValidationWeights` it can rate episodes that it has not seen.

    Args:
        downstream: Episodes of the task that the data are wanted for.
        pool: Episodes that the network learns to weigh. The rated episodes without it.
        batch_size: Steps of a batch, of the pool and of `downstream`.
        inputs: Columns that are the state. All numeric observations by default.

    References:
        Shechter and Carmon (2025), Filter Like You Test: Data-Driven Data Filtering for CLIP Pretraining,
        arXiv:2503.08805.
    """

    downstream: Dataset
    pool: Dataset | None = None
    n_updates: int = 600
    batch_size: int = 256
    lr: float = 0.5
    scorer_lr: float = 1e-3
    seed: int = 0
    inputs: tuple[str, ...] = ()

    def score_steps(self, data):
        learned = StepTable.from_data(data if self.pool is None else self.pool, self.inputs)
        scorer = self._train(learned, StepTable.from_data(self.downstream, like=learned))
        table = learned if self.pool is None else StepTable.from_data(data, like=learned)
        with torch.no_grad():
            step_scores = scorer(torch.as_tensor(table.state_action))[0, :, 0].double().numpy()
        return table.split(np.where(table.is_complete, step_scores, np.nan))

    def _train(self, pool: StepTable, downstream: StepTable) -> NetworkEnsemble:
        both = torch.as_tensor(pool.state_action)
        scorer = NetworkEnsemble(both.shape[1], 1, seed=self.seed + 1)
        _learn_weights(self, pool, downstream, list(scorer.parameters()), self.scorer_lr,
                       lambda at: scorer(both[at])[0, :, 0])
        return scorer


def _learn_weights(
    config: ValidationWeights | FilterLikeYouTest,
    pool: StepTable,
    downstream: StepTable,
    parameters: list[Tensor],
    parameters_lr: float,
    log_weights: Callable[[Tensor], Tensor],
) -> None:
    """Trains the parameters of the weights with which a regression learns from `pool` what `downstream` needs.

    Args:
        log_weights: The log weights of rows of `pool`, from the numbers of these rows.
    """
    x, y = torch.as_tensor(pool.state), torch.as_tensor(pool.action)
    tx, ty = (torch.as_tensor(v[downstream.is_complete]) for v in (downstream.state, downstream.action))
    complete, rng = torch.as_tensor(np.flatnonzero(pool.is_complete)), Generator().manual_seed(config.seed)
    reference = NetworkEnsemble(x.shape[1], y.shape[1], seed=config.seed)
    optim = torch.optim.Adam(parameters, parameters_lr)
    theta = {k: v.detach().clone() for k, v in reference.named_parameters()}

    def losses(weights, x, y):
        return (functional_call(reference, weights, (x,))[0] - y).square().mean(1)

    for _ in range(config.n_updates):
        at = complete[torch.randint(len(complete), (config.batch_size,), generator=rng)]
        theta = {k: v.requires_grad_() for k, v in theta.items()}
        share = torch.softmax(log_weights(at), 0)
        slope = torch.autograd.grad((share * losses(theta, x[at], y[at])).sum(), list(theta.values()),
                                    create_graph=True)
        after = {k: (v - config.lr * g).detach().requires_grad_()
                 for (k, v), g in zip(theta.items(), slope, strict=True)}
        some = torch.randint(len(tx), (config.batch_size,), generator=rng)
        gradients = torch.autograd.grad(losses(after, tx[some], ty[some]).mean(), list(after.values()))
        # What the downstream loss changes by, to first order, when the update changes with the shares.
        change = -config.lr * torch.stack([(g * d).sum() for g, d in zip(slope, gradients, strict=True)]).sum()
        optim.zero_grad()
        change.backward(inputs=parameters)
        optim.step()
        theta = {k: v.detach() for k, v in after.items()}


def _scaled_ranks(values: np.ndarray) -> np.ndarray:
    """Converts values to ranks scaled from -1 to 1. NaN has the rank 0."""
    good = np.isfinite(values)
    out = np.zeros(len(values))
    out[good] = np.argsort(np.argsort(values[good])) / max(good.sum() - 1, 1) * 2 - 1
    return out


def soft_capped_counts(logits: np.ndarray, count: int, penalty: float = 0.15, seed: int = 0) -> np.ndarray:
    """Returns the number of times each episode is taken, (E,), in `count` draws by softmax(logits) (Soft Cap Sampling).

    Each time an episode is taken, its logit falls by `penalty`, so that good ones are taken more often, but not without
    limit.

    Args:
        logits: Log weight of each episode, (E,).

    References:
        Shechter and Carmon (2025), Filter Like You Test: Data-Driven Data Filtering for CLIP Pretraining.
    """
    rng, logits = np.random.default_rng(seed), np.array(logits, float)
    taken = np.zeros(len(logits), np.int64)
    for _ in range(count):
        odds = np.exp(logits - penalty * taken - (logits - penalty * taken).max())
        taken[rng.choice(len(logits), p=odds / odds.sum())] += 1
    return taken
