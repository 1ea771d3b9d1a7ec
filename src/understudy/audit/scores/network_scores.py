"""Scores that train small networks on the numbers of each step: seconds to a minute on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ...core import UserError, replaceable
from ...data.episode import Dataset
from ..base import StepScore
from .step_table import StepTable


class NetworkEnsemble(nn.Module):
    """An ensemble of networks with two hidden layers.

    It maps (N, inputs) or (members, N, inputs) to (members, N, outputs).
    """

    def __init__(self, inputs: int, outputs: int, n_members: int = 1, width: int = 64, seed: int = 0):
        super().__init__()
        rng = Generator().manual_seed(seed)
        sizes = (inputs, width, width, outputs)
        self.weights = nn.ParameterList(
            nn.Parameter((2 * torch.rand(n_members, i, o, generator=rng) - 1) / max(i, 1) ** 0.5)
            for i, o in zip(sizes[:-1], sizes[1:], strict=True))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(n_members, 1, o)) for o in sizes[1:])

    def forward(self, x: Tensor) -> Tensor:
        for layer, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.matmul(x, w) + b
            x = torch.nn.functional.gelu(x) if layer < 2 else x
        return x


@replaceable
def fit_regression(
    state: np.ndarray, action: np.ndarray, members: int, steps: int, seed: int, batch: int = 128
) -> NetworkEnsemble:
    """Trains networks to predict the mean action, each with other initial weights and another order of the data.

    Args:
        state: States, (N, S) float32.
        action: Actions, (N, A) float32.
    """
    x, y, rng = torch.as_tensor(state), torch.as_tensor(action), Generator().manual_seed(seed)
    nets = NetworkEnsemble(x.shape[1], y.shape[1], members, seed=seed)
    optim = torch.optim.Adam(nets.parameters(), 2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optim, steps)
    for _ in range(steps):
        at = torch.randint(len(x), (members, batch), generator=rng)
        loss = (nets(x[at]) - y[at]).square().mean((1, 2)).sum()
        optim.zero_grad()
        loss.backward()
        optim.step()
        rate.step()
    return nets


# -- compatibility ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompatibilityResult:
    """The result of comparing each step with an ensemble of policies, and the two thresholds of agreement.

    Attributes:
        error: For each episode, (T,). Squared error in units of the variance of the base data, mean over members and
            components.
        novelty: For each episode, (T,). Standard deviation between members, mean over components.
        error_threshold: A larger error counts as another action.
        novelty_threshold: With a smaller novelty, the base policy counts as certain.
    """

    error: Sequence[np.ndarray]
    novelty: Sequence[np.ndarray]
    error_threshold: float
    novelty_threshold: float

    def n_incompatible(self) -> np.ndarray:
        """Number of steps of each episode at which the base policy is certain and the action is another one, (E,)."""
        return np.array([int(((e > self.error_threshold) & (u < self.novelty_threshold)).sum())
                         for e, u in zip(self.error, self.novelty, strict=True)])


@dataclass(frozen=True)
class Compatibility(StepScore):
    """Score that is 0 where a base policy is certain and acts differently from the step, and otherwise 1.

    An ensemble of regressions measures both. The base should do the task in one way: the mean of two ways is neither,
    and both would look bad.

    Args:
        base: The data that the ensemble learns. By default the data are divided into `folds` parts, and each part is
            compared with all other parts.
        error_threshold: Error above which an action is another one. By default the 0.95 quantile over steps of the base
            data that the ensemble was not trained on (two halves).
        novelty_threshold: Novelty below which the ensemble is certain, with the same default.
        folds: Number of parts without `base`.
        inputs: Columns of the state. By default all numeric "observation." columns.

    References:
        Gandhi et al. (2022), Eliciting Compatible Demonstrations for Multi-Human Imitation Learning.
    """

    base: Dataset | None = None
    error_threshold: float | None = None
    novelty_threshold: float | None = None
    n_members: int = 5
    n_updates: int = 400
    folds: int = 3
    seed: int = 0
    inputs: tuple[str, ...] = ()

    def score_steps(self, data):
        return [
            np.where(u > comparison.novelty_threshold, 1.0,
                     1 - np.minimum(e / max(comparison.error_threshold, 1e-12), 1.0))
            * np.where(np.isfinite(e), 1.0, np.nan)
            for comparison, e, u in self._compare_folds(data)
        ]

    def compare_to_base(self, data: Dataset) -> CompatibilityResult:
        """Compares each step with `base`, which is required.

        In the paper, a demonstration is refused if `n_incompatible()` is more than a few steps (0 to 5, by task and
        operator).
        """
        if self.base is None:
            raise UserError("there are no base demonstrations", where="Compatibility", hint="give base=...")
        table = StepTable.from_data(self.base, self.inputs)
        return self._compare_tables(table, np.ones(len(table.length), bool), StepTable.from_data(data, like=table))

    def _compare_folds(self, data):
        if self.base is not None:
            comparison = self.compare_to_base(data)
            return [(comparison, e, u) for e, u in zip(comparison.error, comparison.novelty, strict=True)]
        table = StepTable.from_data(data, self.inputs)
        if len(data) < 2:
            nan = np.full(int(table.length.sum()), np.nan)
            return [(CompatibilityResult((), (), math.nan, math.nan), nan, nan)] * len(data)
        fold = np.random.default_rng(self.seed).permutation(len(data)) % min(self.folds, len(data))
        out = [None] * len(data)
        for part in range(fold.max() + 1):
            comparison = self._compare_tables(table, fold != part, table)
            for i in np.flatnonzero(fold == part):
                out[i] = (comparison, comparison.error[i], comparison.novelty[i])
        return out

    def _compare_tables(self, base: StepTable, is_included: np.ndarray, table: StepTable) -> CompatibilityResult:
        episodes = np.flatnonzero(is_included)
        error_limit, novelty_limit = self.error_threshold, self.novelty_threshold
        if error_limit is None or novelty_limit is None:
            half = np.random.default_rng(self.seed).permutation(len(episodes)) % 2 == 0
            a, b = episodes[half], episodes[~half]
            tests = [self._ensemble_error(base, fitted, base, tested)
                     for fitted, tested in ([(a, b), (b, a)] if len(b) else [(a, a)])]  # or a single episode
            limits = [float(np.quantile(np.concatenate(values), 0.95)) for values in zip(*tests, strict=True)]
            error_limit = limits[0] if error_limit is None else error_limit
            novelty_limit = limits[1] if novelty_limit is None else novelty_limit
        error, spread = self._ensemble_error(base, episodes, table, None)
        return CompatibilityResult(table.split(error), table.split(spread), error_limit, novelty_limit)

    def _ensemble_error(self, base, known_episodes, table, which):
        at = np.isin(base.episode, known_episodes) & base.is_complete
        if not at.any():
            raise UserError("the base demonstrations have no finite steps", where="Compatibility",
                            hint="understudy audit DATA finds NaN and infinite values")
        nets = fit_regression(base.state[at], base.action[at], self.n_members, self.n_updates, self.seed)
        look = np.ones(len(table), bool) if which is None else np.isin(table.episode, which) & table.is_complete
        with torch.no_grad():
            says = nets(torch.as_tensor(table.state[look])).numpy()
        error = ((says - table.action[look]) ** 2).mean((0, 2))
        return error, says.std(0).mean(1)


# -- expertise ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expertise(StepScore):
    """Score: the probability that the demonstrator acts like the experts at this step, learned without labels (ILEED).

    The expertise of a demonstrator in a state is sigmoid(f(state) . w), with a vector w per demonstrator. With this
    probability the action comes from the common policy, a Gaussian around a network's mean, and otherwise from a
    uniform distribution over the range of actions. Everything is fitted by maximum likelihood. Good steps are assumed
    to be more frequent, or to agree more.

    Args:
        demonstrator_key: The metadata of an episode that names its demonstrator, such as "operator". By default each
            episode is a demonstrator.
        n_components: Width of f(state) and w.
        inputs: Columns of the state. By default all numeric "observation." columns.

    References:
        Beliaev et al. (2022), Imitation Learning by Estimating Expertise of Demonstrators.
    """

    demonstrator_key: str | None = None
    n_updates: int = 1000
    n_components: int = 4
    seed: int = 0
    inputs: tuple[str, ...] = ()

    def score_steps(self, data):
        table = StepTable.from_data(data, self.inputs)
        names = [
            str(e.metadata.get(self.demonstrator_key)) if self.demonstrator_key else str(i) for i, e in enumerate(data)
        ]
        if self.demonstrator_key and all(self.demonstrator_key not in e.metadata for e in data):
            raise UserError(f"no episode has the metadata {self.demonstrator_key!r}", where="Expertise",
                            hint="use metadata that they have, or none, so that each episode is a demonstrator")
        _, who = np.unique(names, return_inverse=True)
        whole = np.flatnonzero(table.is_complete)
        if not len(whole):
            return table.split(np.full(len(table), np.nan))
        x, y = torch.as_tensor(table.state), torch.as_tensor(table.action)
        person = torch.as_tensor(who[table.episode])
        y = y[:, torch.as_tensor(np.ptp(table.action[whole], axis=0) > 0)]  # constant components carry no information
        even = -float((y[whole].amax(0) - y[whole].amin(0)).log().sum())
        means = NetworkEnsemble(x.shape[1], y.shape[1], seed=self.seed)
        state_features = NetworkEnsemble(x.shape[1], self.n_components, seed=self.seed + 1)
        skill = nn.Parameter(torch.zeros(int(who.max()) + 1, self.n_components))
        noise = nn.Parameter(torch.zeros(y.shape[1]))
        rng = Generator().manual_seed(self.seed)
        optim = torch.optim.Adam([{"params": [*means.parameters(), *state_features.parameters(), noise], "lr": 3e-3},
                                  {"params": [skill], "lr": 3e-2}])
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optim, self.n_updates)

        def logit(at):
            # a part of the expertise is the same in all states
            f = torch.cat([state_features(x[at])[0, :, 1:], torch.ones(len(at), 1)], 1)
            return (f * skill[person[at]]).sum(1) + 1.0

        for _ in range(self.n_updates):
            at = torch.as_tensor(whole)[torch.randint(len(whole), (256,), generator=rng)]
            error = (means(x[at])[0] - y[at]) / noise.exp()
            expert = -0.5 * (error**2).sum(1) - noise.sum() - 0.5 * y.shape[1] * math.log(2 * math.pi)
            rho = logit(at)
            likely = torch.logaddexp(nn.functional.logsigmoid(rho) + expert, nn.functional.logsigmoid(-rho) + even)
            loss = -likely.mean() + 1e-3 * skill.square().mean()
            optim.zero_grad()
            loss.backward()
            optim.step()
            rate.step()
            with torch.no_grad():
                noise.clamp_(-3.0, 1.0)  # so that no single step is fitted exactly
        with torch.no_grad():
            return table.split(torch.sigmoid(logit(torch.arange(len(x)))).numpy())
